//! Option negotiation, both sides.
//!
//! [`ServerHandshake`] and [`ClientHandshake`] take bytes that were received and append bytes to
//! be sent; what happens between is for the caller to see step by step. [`Negotiator`] does on
//! the client's side what nearly every client wants. They end in a [`Session`].
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
//! # TLS
//!
//! The machines agree on TLS and know what it means for the session; they do not speak it. Both
//! stop at a [`TlsStart`]: the caller sends what was written, wraps its stream, gives the
//! [`TlsStart`] back and goes on. Bytes that came in between are refused, and what was negotiated
//! before is forgotten, so that nothing an attacker says in the clear gets a meaning under the
//! protection of TLS. A server has a [`TlsPolicy`], a client a [`TlsWanted`].
//!
//! # More than one way
//!
//! [`ServerHandshake::oldstyle`] greets clients that know nothing else, and
//! [`ClientConfig::with_oldstyle`] takes such servers. [`Inspector`] asks a server for all it has.
//!
//! [`Session`]: crate::session::Session
//! [`wire`]: crate::wire

mod client;
mod inspector;
mod namespace;
mod negotiator;
mod opening;
mod partial;
mod server;
mod tls;

pub use client::{ClientConfig, ClientHandshake, ClientStep, Ready};
pub use inspector::{
    ExportInfo, ExportReport, Inspect, InspectProgress, Inspector, Listed, Report,
};
pub use negotiator::{NegotiateError, Negotiated, Negotiator, Progress, Wanted};
pub use opening::TlsWanted;
pub use server::{
    Ask, Context, ContextsAsk, Export, ExportAsk, ListAsk, ServerConfig, ServerHandshake, Step,
    TlsPolicy,
};
pub use tls::TlsStart;
