//! The NBD (Network Block Device) protocol, and flush consistency across connections, without I/O.
//!
//! For authors of NBD servers and clients, on whatever threads or executor they like, and for
//! people who test what a flush is worth. The crate turns bytes into decisions and decisions into
//! bytes; sockets, threads, files and time are the caller's.
//!
//! # Which type do I want?
//!
//! | you write | handshake | transmission | and then |
//! |---|---|---|---|
//! | a server | [`ServerHandshake`], or `io::server_handshake` | [`RequestDecoder`] or `io::Requests`, [`Session::check`], [`ReplyEncoder`], [`StatusReply`] | [`FlushCoordinator`] |
//! | a client | [`Negotiator`], or `io::client_handshake` | [`RequestEncoder`], [`ReplyDecoder`] or `io::Replies`, [`ReadBuffer`] | [`multiplex::plan()`], [`FlushLedger`] |
//! | a tool that shows what a server has | [`Inspector`], or `io::inspect` | | [`Announcement::lints`] |
//! | a tool that looks at packets | [`wire`] | [`wire`] | |
//! | tests of any of these | [`conformance`]: strategies for messages | the same | [`conformance::property`], [`conformance::check`](mod@conformance::check), [`conformance::backend`] |
//!
//! `io::guide` has a whole server and a whole client, each on a page.
//!
//! [`ServerHandshake`]: handshake::ServerHandshake
//! [`Negotiator`]: handshake::Negotiator
//! [`Inspector`]: handshake::Inspector
//! [`Announcement::lints`]: session::Announcement::lints
//! [`RequestDecoder`]: transmission::RequestDecoder
//! [`Session::check`]: session::Session::check
//! [`ReplyEncoder`]: transmission::ReplyEncoder
//! [`StatusReply`]: transmission::StatusReply
//! [`RequestEncoder`]: transmission::RequestEncoder
//! [`ReplyDecoder`]: transmission::ReplyDecoder
//! [`ReadBuffer`]: transmission::ReadBuffer
//! [`FlushCoordinator`]: flush::FlushCoordinator
//! [`FlushLedger`]: multiplex::FlushLedger
//!
//! # The phases
//!
//! ```text
//!   connect ──> handshake ──────────────> Session ──> transmission ──> close
//!               options are haggled over   │           requests and replies
//!               until an export is chosen  │             │        │
//!                                          └─ what may ──┘        └─ flush: which handles have
//!                                             be executed            to be flushed, and when
//! ```
//!
//! - [`handshake`]: option negotiation, both sides, by two machines: oldstyle, newstyle, fixed
//!   newstyle; TLS (spoken by the caller), extended headers, meta contexts. They end in a
//! - [`session::Session`]: what was negotiated, as plain data.
//! - [`transmission`]: requests and replies, both sides.
//! - [`flush`]: keeps the promise that `NBD_FLAG_CAN_MULTI_CONN` makes.
//! - [`multiplex`]: what a client may rely on that promise for: how many connections, and which
//!   writes are durable.
//! - [`conformance`]: whether servers and coordinators keep that promise, and clients rely on no
//!   more: models of backends, schedules, and a checker of histories, for tests.
//! - [`wire`]: bytes to values and back; [`limits`]: what a hostile peer may make us hold;
//!   [`error`]: what is answered to what; `io`: thin drivers over streams.
//!
//! # Hostile input
//!
//! is normal input. No bytes make the crate panic, allocate by a length that was not compared with
//! a limit, or lose its place in the stream where the protocol wants the session to go on. Errors
//! are of two kinds, told apart by their types: those that have an answer on the wire, and those
//! after which the connection has to be closed.
//!
//! # Features
//!
//! - `std` (default): drivers for `std::io`, conversions to `std::io::Error`. Without it the
//!   crate is `no_std` and needs `alloc`.
//! - `futures`: drivers for `futures::io`.
//! - `proptest`: strategies for property tests, of this crate and of code that uses it.

#![no_std]
#![forbid(unsafe_code)]
#![deny(missing_docs)]
#![cfg_attr(docsrs, feature(doc_cfg))]

extern crate alloc;
#[cfg(any(feature = "std", test))]
extern crate std;

/// The README's examples compile.
#[cfg(all(doctest, feature = "std"))]
#[doc = include_str!("../README.md")]
struct Readme;

pub mod conformance;
pub mod error;
pub mod flush;
pub mod handshake;
#[cfg(feature = "std")]
#[cfg_attr(docsrs, doc(cfg(feature = "std")))]
pub mod io;
pub mod limits;
pub mod multiplex;
pub mod session;
pub mod transmission;
pub mod wire;
