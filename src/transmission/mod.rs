//! Commands and replies, both sides.
//!
//! A server takes requests from a [`RequestDecoder`], asks [`Session::check`] what to do with
//! each, and answers with heads from a [`ReplyEncoder`]: in one piece, in [`Chunks`], or with the
//! extents of a [`StatusReply`]. A client makes requests with a [`RequestEncoder`] and takes
//! replies from a [`ReplyDecoder`], which knows what is in flight and believes nothing that it did
//! not check; a [`ReadBuffer`] puts the data of a read together.
//!
//! Payload is never copied and never kept: decoders lend it from the caller's input, or let the
//! caller read it straight to where it belongs; encoders return small [`Head`]s for vectored
//! writes. Nothing here does I/O, waits, or knows what time it is.
//!
//! ```
//! use nbd_proto::session::Session;
//! use nbd_proto::limits::Limits;
//! use nbd_proto::transmission::{
//!     ReplyDecoder, ReplyEncoder, ReplyEvent, RequestDecoder, RequestEncoder, RequestEvent,
//! };
//! use nbd_proto::wire::{Cookie, Name, Request, TransmissionFlags};
//!
//! let session = Session::new(Name::default(), 1 << 20, TransmissionFlags::HAS_FLAGS);
//! let limits = Limits::new();
//!
//! // The client asks for 4 bytes.
//! let mut replies = ReplyDecoder::new(&session, &limits, 16);
//! let read = Request::read(Cookie(1), 512, 4);
//! let request = RequestEncoder::new(&session).encode(&read)?;
//! replies.expect(&read)?;
//!
//! // The server takes the request, checks it, and answers.
//! let mut requests = RequestDecoder::new(&session, &limits);
//! let mut input = request.as_ref();
//! let Some(RequestEvent::Request(taken)) = requests.next(&mut input)? else { panic!() };
//! session.check(&taken)?;
//! let head = ReplyEncoder::new(&session).read(&taken)?;
//! let wire = [head.as_ref(), b"data"].concat();
//!
//! // The client takes the data and the news that this was all.
//! let mut input = &wire[..];
//! let data = ReplyEvent::Data { cookie: Cookie(1), offset: 512, bytes: b"data", left: 0 };
//! assert_eq!(replies.next(&mut input)?, Some(data));
//! let end = ReplyEvent::Finished { cookie: Cookie(1), result: Ok(()) };
//! assert_eq!(replies.next(&mut input)?, Some(end));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! [`Session::check`]: crate::session::Session::check

mod answer;
mod check;
mod chunks;
pub mod client;
mod coverage;
mod head;
mod in_flight;
pub mod server;
mod status;
#[cfg(test)]
mod tests;

pub use answer::{IllegalReply, ReplyEncoder};
pub use check::{Refusal, UnadvertisedCache};
pub use chunks::Chunks;
pub use client::{ReadBuffer, ReplyDecoder, ReplyEvent, RequestEncoder, Unsendable, WrongBuffer};
pub use head::Head;
pub use in_flight::Unexpectable;
pub use server::{RequestDecoder, RequestEvent};
pub use status::StatusReply;
