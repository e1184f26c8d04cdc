//! Option negotiation, both sides.
//!
//! [`ServerHandshake`] and [`ClientHandshake`] take bytes that were received and append bytes to
//! be sent; what happens between is for the caller to see step by step. [`Negotiator`] does on
//! the client's side what nearly every client wants. All end in a [`Session`].
//!
//! They never do I/O, never keep the time, never read past the end of the handshake, and never
//! hold more than one message of bounded length.
//!
//! ```
//! use nbd_proto::handshake::{
//!     ClientConfig, Export, Negotiator, Progress, ServerConfig, ServerHandshake, Step, Wanted,
//! };
//! use nbd_proto::wire::{Name, TransmissionFlags};
//!
//! let disk = Export::new(Name::new("disk")?, 1 << 20, TransmissionFlags::SEND_FLUSH);
//! let (mut to_client, mut to_server) = (Vec::new(), Vec::new());
//! let mut server = ServerHandshake::new(ServerConfig::new(), &mut to_client);
//! let mut client = Negotiator::new(Wanted::new(disk.name.clone()), ClientConfig::new());
//!
//! let session = loop {
//!     // The client reads what the server wrote, and the other way round.
//!     let received = std::mem::take(&mut to_client);
//!     if let Progress::Done(done) = client.advance(&mut received.as_slice(), &mut to_server)? {
//!         break done.session;
//!     }
//!     let received = std::mem::take(&mut to_server);
//!     let mut input = received.as_slice();
//!     loop {
//!         match server.step(&mut input, &mut to_client)? {
//!             Step::Export(ask) if ask.name() == &disk.name => ask.accept(&disk),
//!             Step::NeedInput | Step::Done(_) | Step::Aborted => break,
//!             // Everything else is refused by letting go of it.
//!             _ => {}
//!         }
//!     }
//! };
//! assert_eq!(session.size(), 1 << 20);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What is not negotiated yet
//!
//! Oldstyle servers and clients, `STARTTLS`, meta contexts and extended headers. [`wire`] has their
//! messages; here a server answers `ERR_UNSUP` to such options, and a client does not send them.
//! The enums of this module are `#[non_exhaustive]` because steps for them will be added.
//!
//! [`Session`]: crate::session::Session
//! [`wire`]: crate::wire

mod client;
mod negotiator;
mod partial;
mod server;

pub use client::{ClientConfig, ClientHandshake, ClientStep, Ready};
pub use negotiator::{NegotiateError, Negotiated, Negotiator, Progress, Wanted};
pub use server::{Ask, Export, ExportAsk, ListAsk, ServerConfig, ServerHandshake, Step};

use crate::session::ReplyStyle;
use crate::wire::TransmissionFlags;

/// The flags without those that cannot hold in a session with this reply style (proto.md
/// "Transmission flags"). A server does not send the others; a client does not believe them.
fn consistent(mut flags: TransmissionFlags, style: ReplyStyle) -> TransmissionFlags {
    // "MUST leave this flag clear if neither structured replies nor extended headers have been
    // negotiated".
    if style == ReplyStyle::Simple {
        flags.remove(TransmissionFlags::SEND_DF);
    }
    // "Servers MUST NOT advertise this bit unless the client successfully negotiates extended
    // headers".
    if style != ReplyStyle::Extended {
        flags.remove(TransmissionFlags::BLOCK_STATUS_PAYLOAD);
    }
    // "MUST set this transmission flag to 0 if NBD_FLAG_SEND_WRITE_ZEROES is not set".
    if !flags.contains(TransmissionFlags::SEND_WRITE_ZEROES) {
        flags.remove(TransmissionFlags::SEND_FAST_ZERO);
    }
    flags
}
