//! What a client writes and reads: requests out, replies in.
//!
//! The [`RequestEncoder`] sends nothing that the server would have to refuse. The
//! [`ReplyDecoder`] believes nothing that it did not check: it reports success only for a reply
//! that is complete and broke no rule, and says of every broken rule which it was.
//!
//! Neither keeps data: what was read is lent from the input, or read by the caller straight to
//! where it belongs. A [`ReadBuffer`] puts it together, and knows after an error which bytes are
//! good.
//!
//! ```
//! use nbd_proto::limits::Limits;
//! use nbd_proto::session::Session;
//! use nbd_proto::transmission::client::{Fatal, Violation};
//! use nbd_proto::transmission::{ReplyDecoder, RequestEncoder, Unsendable, Refusal};
//! use nbd_proto::wire::{Cookie, Errno, Name, Request, SimpleReply, TransmissionFlags};
//!
//! let flags = TransmissionFlags::HAS_FLAGS | TransmissionFlags::READ_ONLY;
//! let session = Session::new(Name::default(), 4096, flags);
//! let encoder = RequestEncoder::new(&session);
//! assert_eq!(
//!     encoder.encode(&Request::write(Cookie(1), 0, 512)),
//!     Err(Unsendable::Refused(Refusal::ReadOnly)),
//! );
//!
//! // A reply to a question that nobody asked.
//! let mut decoder = ReplyDecoder::new(&session, &Limits::new(), 1);
//! let reply = SimpleReply { result: Err(Errno::EIO), cookie: Cookie(2) }.to_bytes();
//! assert_eq!(
//!     decoder.next(&mut &reply[..]),
//!     Err(Fatal::UnknownCookie { cookie: Cookie(2) }),
//! );
//! ```

mod decoder;
mod encoder;
mod event;
mod fatal;
mod read_buffer;

pub use decoder::ReplyDecoder;
pub use encoder::{RequestEncoder, Unsendable};
pub use event::{Payload, ReplyEvent};
pub use fatal::{Fatal, Violation};
pub use read_buffer::{ReadBuffer, WrongBuffer};
