//! Several connections to one export, from the client's side: how many, and what a flush proves.
//!
//! Two pure parts, which know nothing of each other's insides:
//!
//! - [`plan()`] looks at what the first connection negotiated and at what the caller wants, and says
//!   how many connections to use, which command goes where, where to flush, and why. It admits
//!   further connections only if they got the same export.
//! - A [`FlushLedger`] is told of every write, reply and flush, and says which writes are on
//!   permanent storage, as far as the server has said so.
//!
//! Neither ever opens a connection, sends anything, holds data, takes a lock or looks at a clock.
//! They are plain data for a client of any kind: one thread, a thread for each connection behind
//! one lock, or a pool of tasks.
//!
//! ```
//! use nbd_proto::multiplex::{FlushLedger, Flushing, Intent, Use, plan};
//! use nbd_proto::session::Session;
//! use nbd_proto::wire::{Name, TransmissionFlags as Flags};
//!
//! // What the first connection negotiated.
//! let flags = Flags::HAS_FLAGS | Flags::SEND_FLUSH | Flags::CAN_MULTI_CONN;
//! let session = Session::new(Name::default(), 1 << 30, flags);
//! let mut plan = plan(&session, Intent::new(Use::Copy, 2));
//!
//! let mut ledger = FlushLedger::new(plan.scope());
//! let mut connections = vec![ledger.connected()?];
//! while plan.to_open() > 0 {
//!     // Connect and negotiate; here, the second connection gets the same.
//!     match plan.admit(&session) {
//!         Ok(_) => connections.push(ledger.connected()?),
//!         Err(why) => eprintln!("closing a connection: {why}"),
//!     }
//! }
//!
//! // Two writes, on any connection. Their replies come in any order.
//! let first = ledger.write_sent(connections[0], 0, 4096)?;
//! let second = ledger.write_sent(connections[1], 4096, 4096)?;
//! ledger.write_replied(second)?;
//!
//! // A flush covers what was answered before it was sent: the second write only.
//! let flush = ledger.flush_sent(connections[0])?;
//! ledger.write_replied(first)?;
//! ledger.flush_replied(flush)?;
//! assert!(ledger.is_durable(second) && !ledger.is_durable(first));
//!
//! // So one more is owed before the connections may be closed.
//! assert!(plan.final_flush() && ledger.may_leave(connections[0]).is_err());
//! let owed: Vec<_> = ledger.to_flush().collect();
//! for conn in owed {
//!     let flush = ledger.flush_sent(conn)?;
//!     ledger.flush_replied(flush)?;
//! }
//! assert!(ledger.summary().all_durable());
//! # Ok::<(), nbd_proto::multiplex::Misuse>(())
//! ```
//!
//! # How many connections
//!
//! | the server has | used for | caution | connections | routing | flush |
//! |---|---|---|---|---|---|
//! | multi-conn, flush | anything | any | many | any | on any one |
//! | multi-conn, FUA only | anything | any | many | any | none: writes with FUA |
//! | multi-conn, neither, writable | [`Copy`](Use::Copy) | any | many | any | impossible |
//! | multi-conn, neither, writable | [`Disk`](Use::Disk) | less than [`Insist`](Caution::Insist) | 1 | | impossible |
//! | no multi-conn, nothing is written | anything | [`Strict`](Caution::Strict) | 1 | | not needed |
//! | no multi-conn, nothing is written | anything | [`Readers`](Caution::Readers), [`Insist`](Caution::Insist) | many | any | not needed |
//! | no multi-conn | writing | less than [`Insist`](Caution::Insist) | 1 | | on the one |
//! | no multi-conn, or neither flush nor FUA | writing | [`Insist`](Caution::Insist) | many | pinned | on each that wrote |
//!
//! The text behind it is proto.md "Transmission flags". With `NBD_FLAG_CAN_MULTI_CONN`, "the
//! effects of `NBD_CMD_FLUSH` and `NBD_CMD_FLAG_FUA` MUST be visible across all connections when
//! the server sends its reply". Without it, "clients SHOULD NOT multiplex their commands over more
//! than one connection to the export": a *should*, without any exception, so that read-only
//! exports, too, get one connection unless the caller has a reason that the server could not give.
//! Then again it is no *must*. A read-only connection has nothing to flush, and loses nothing but
//! the certainty that two connections show the same version of what others write; and a copy
//! whose writes are "non-overlapping and at a large enough granularity", and which flushes in the
//! end (the 2021 message), loses nothing by several caches if each of them is flushed. For these
//! two there is [`Caution`].
//!
//! Every further connection has to have got the same export, size, flags, block sizes, headers and
//! meta contexts ([`Difference`]). That is not in the text, for a server that it describes cannot
//! differ; load balancers, restarts and resizes can.
//!
//! # What a flush proves
//!
//! proto.md "Ordering of messages and writes" has a server make durable "all write commands [...]
//! that the server completes (i.e. replies to) prior to processing a `NBD_CMD_FLUSH`", and a
//! client with several connections "MUST NOT issue an `NBD_CMD_FLUSH` request until it has received
//! the reply for all write commands which it expects to be covered by the flush". So a write is
//! durable when a flush has succeeded that was *sent* after the write's reply was *received*: on the
//! same connection, or with multi-conn on any ([`Scope`]). When the flush's reply is received does
//! not matter. That is the scenario of the 2016 message:
//!
//! ```text
//!       client              server
//!          |                   |
//!   c1 W(x)├─────────┐         |
//!   c2 F   ├─────────┼────────>| processed: nothing to cover
//!          |         └────────>| x is in the cache
//!          |   ┌───────────────┤ F ok, and is held up
//!   W ok   |<──┼───────────────┤
//!   F ok   |<──┘               |
//!          |                   X crash: x is lost
//! ```
//!
//! Whoever goes by the order of the replies believes that x is durable. The flush was sent before
//! `W ok`, so that the ledger does not; it says that a flush is still [owed](FlushLedger::to_flush).
//!
//! # The states of a write
//!
//! | state | on | becomes |
//! |---|---|---|
//! | [`InFlight`](WriteState::InFlight) | reply | `Acknowledged`; with FUA `Durable`; `Suspect` if a flush in its scope was heard to fail since it was sent |
//! | | error reply | `Failed` |
//! | | end of its connection | `Unknown` |
//! | [`Acknowledged`](WriteState::Acknowledged) | success of a flush that covers it | `Durable` |
//! | | failure of a flush in its scope | `Suspect`, unless [`AfterFailure::Retry`] |
//! | | end of its connection | `Suspect`; with multi-conn and [`AfterLoss::Covered`] it remains |
//! | [`Durable`](WriteState::Durable) | anything | remains |
//! | [`Suspect`](WriteState::Suspect), [`Failed`](WriteState::Failed), [`Unknown`](WriteState::Unknown) | any flush | remain |
//! | | [`rewritten`](FlushLedger::rewritten), [`forget`](FlushLedger::forget) | [`Forgotten`](WriteState::Forgotten) |
//!
//! The last three are the caller's to deal with, for no flush can. Of a *suspect* write the data
//! was accepted and may be gone: a server that passes on what its system tells it fails a flush
//! once, drops the data, and succeeds the next time. Of a *failed* one the range may have the old
//! data, the new, or a mixture, and a crash may turn one into the other; an *unknown* one may even
//! be executed later. The remedy is the same for all: write the range again, flush, and
//! [say so](FlushLedger::rewritten); or tell whoever cares, and [forget](FlushLedger::forget) it.
//! Until then it is among the [ranges](FlushLedger::undurable_ranges) that are not durable, which is
//! what an interrupted copy has to do again.
//!
//! What a server does behind its replies the ledger cannot know: a connection may have ended for
//! the server, and its cache been dropped, before the client hears of it.

mod intent;
mod ledger;
mod offer;
mod pinning;
mod plan;

pub use intent::{Caution, Intent, Use};
pub use ledger::{
    AfterFailure, AfterLoss, Conn, Debt, Doubt, Ended, FlushId, FlushLedger, Misuse, Scope,
    Summary, Tally, Undurable, WriteId, WriteState,
};
pub use offer::{Difference, Mismatch, Offer};
pub use pinning::{Part, Parts, Pinning};
pub use plan::{Flushing, Missing, NotAdmitted, Plan, Reason, Routing, plan};
