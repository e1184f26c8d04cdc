//! Bytes to values and back: every message of the protocol, in both directions.
//!
//! Pure functions on what they are given. Nothing here keeps state, does I/O, or knows what is
//! legal *when*: that is for [`handshake`](crate::handshake) and
//! [`transmission`](crate::transmission). Fixed headers decode from and encode to arrays, so that
//! there is no such thing as a short read; payload is never touched.
//!
//! ```
//! use nbd_proto::wire::{CommandType, OptionCode};
//!
//! assert_eq!(OptionCode::GO.0, 7);
//! assert_eq!(CommandType(3), CommandType::FLUSH);
//! assert_eq!(CommandType(99).name(), None);
//! ```
//!
#![cfg_attr(doc, doc = include_str!("../../PROTOCOL.md"))]

mod chunk;
mod codes;
pub(crate) mod cursor;
mod flags;
mod greeting;
mod info;
mod option;
mod option_reply;
mod reply;
mod request;
mod status;
mod string;

pub use chunk::{DataHead, ErrorChunk, Hole, MAX_ERROR_MESSAGE};
pub use codes::{ChunkType, CommandType, Errno, InfoType, OptionCode, ReplyType};
pub use flags::{
    AllocationFlags, ClientFlags, CommandFlags, HandshakeFlags, ReplyFlags, TransmissionFlags,
};
pub use greeting::{ExportNameReply, GreetingStyle, NewstyleGreeting, OldstyleGreeting};
pub use info::Info;
pub use option::{ClientOption, InfoRequest, MetaContextRequest, OptionHeader};
pub use option_reply::{OptionReply, OptionReplyHeader};
pub use reply::{
    Chunk, EXTENDED_REPLY_MAGIC, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, SimpleReply,
};
pub use request::{Cookie, EXTENDED_REQUEST_MAGIC, REQUEST_MAGIC, Request, StatusQuery, TooLong};
pub use status::{Extent, Extents, IllegalStatus, StatusChunk};
pub use string::{BadString, MAX_STRING, Name};

/// A header that does not begin with the magic number that belongs there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("bad magic number {found:#x}")]
pub struct BadMagic {
    /// What stood there instead, as an integer of the width of the field.
    pub found: u64,
}

/// A body that does not have the form which the protocol gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Malformed {
    /// A field, or a length within the body, reaches beyond its end.
    #[error("ends in the middle of a field")]
    Truncated,
    /// Bytes are left over after the last field.
    #[error("has {excess} bytes too many")]
    Trailing {
        /// How many bytes are left.
        excess: usize,
    },
    /// A string breaks the rules for strings.
    #[error("has a string that {0}")]
    String(BadString),
    /// A field has a value that the protocol forbids.
    #[error("has an illegal value in {field}")]
    Value {
        /// The name of the field, as the protocol has it.
        field: &'static str,
    },
}
