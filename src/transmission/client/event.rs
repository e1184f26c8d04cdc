//! What a client learns from replies.

use alloc::string::String;

use crate::wire::{Cookie, Errno, Extents};

/// What a server said.
///
/// Until [`Finished`](Self::Finished) with success, everything else about the same cookie is
/// hearsay: the server can still take it back.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum ReplyEvent<'b> {
    /// Some of the data that was asked for, never empty.
    Data {
        /// The read.
        cookie: Cookie,
        /// Where in the export the data begins, in bytes.
        offset: u64,
        /// The data.
        bytes: &'b [u8],
        /// How many bytes of the same chunk are still to come.
        left: u64,
    },
    /// A part of what was asked for that reads as zeroes.
    Hole {
        /// The read.
        cookie: Cookie,
        /// Where in the export the hole begins, in bytes.
        offset: u64,
        /// Its length in bytes, not 0.
        length: u64,
    },
    /// Some of the status that was asked for, never empty. More extents of the same context, if
    /// there are more, follow where these end.
    Status {
        /// The block status request.
        cookie: Cookie,
        /// The id of the meta context.
        context: u32,
        /// Where in the export the first of the extents begins, in bytes.
        offset: u64,
        /// The extents, one behind the other. They lie within the export.
        extents: Extents<'b>,
    },
    /// The request will fail; here is why. The end of the reply is yet to come.
    Error {
        /// The request.
        cookie: Cookie,
        /// The error, as the server sent it.
        errno: Errno,
        /// Where in the export it happened. If all errors of the reply have an offset, the content
        /// of a read is valid that came in chunks without one, and in others up to the first;
        /// [`ReadBuffer::good`](crate::transmission::ReadBuffer::good) keeps count of it.
        offset: Option<u64>,
        /// What the server says about it, for people; may be empty. At most 4096 bytes are kept,
        /// and what is not UTF-8 is replaced.
        message: String,
    },
    /// The reply is complete; the cookie can be used again.
    Finished {
        /// The request.
        cookie: Cookie,
        /// How it went. An error that the protocol does not know has become
        /// [`Errno::EINVAL`].
        result: Result<(), Errno>,
    },
}

impl ReplyEvent<'_> {
    /// The request that the event is about.
    #[must_use]
    pub const fn cookie(&self) -> Cookie {
        match *self {
            Self::Data { cookie, .. }
            | Self::Hole { cookie, .. }
            | Self::Status { cookie, .. }
            | Self::Error { cookie, .. }
            | Self::Finished { cookie, .. } => cookie,
        }
    }
}

/// Data that comes next in the stream: where it belongs, and how much of it is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Payload {
    /// The read.
    pub cookie: Cookie,
    /// Where in the export the data belongs, in bytes.
    pub offset: u64,
    /// How many bytes are left, not 0.
    pub left: u64,
}
