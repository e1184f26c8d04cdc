//! Flush consistency across connections: the coordinator.
//!
//! A [`FlushCoordinator`] sits between the connections of a server and its backend, sees every
//! command pass, and decides which backend handles have to be flushed, and when, so that
//! multi-conn can be advertised truthfully over a backend that caches per connection. It never
//! touches data, sockets, threads or clocks: events in, actions out, all of them plain values.
//!
//! This page says what is promised, what that needs, and by which rules it is kept. The [manual]
//! says which options suit which server and what nbdkit's parameters are called here, and draws the
//! states.
//!
//! # What is promised
//!
//! To the clients of a group of connections (those that share data):
//!
//! > If the reply to a modifying command A was handed out, then a flush F arrived on any
//! > connection of the group, and F was answered with success, then A is on permanent storage
//! > (*durability*), and a read that arrives on any connection after F's reply returns A's data
//! > or newer (*visibility*). A FUA command that was answered with success counts as A followed
//! > by an F of its own.
//!
//! This is what `NBD_FLAG_CAN_MULTI_CONN` means (proto.md "Transmission flags", "Ordering of
//! messages and writes"). A flush need not cover commands that are in flight when it arrives; the
//! next one after their reply must.
//!
//! It holds wherever the coordinator advertises multi-conn, with three exceptions, each of which
//! has to be asked for:
//!
//! - [`Mode::Unsafe`] promises nothing across connections.
//! - [`Acknowledge::IgnoreFlush`] promises visibility, but no durability.
//! - [`Overlap::Ignore`] leaves it to the clients to keep modifications of the same bytes apart.
//!
//! Where multi-conn is not advertised, a flush is only promised to cover what was answered on its
//! own connection before it arrived.
//!
//! # What a backend must promise
//!
//! The coordinator drives one backend handle per connection. When `Flush` on a handle succeeds:
//!
//! - what completed on that handle before the flush started is on permanent storage, and visible
//!   to all handles that have nothing cached;
//! - a read that is started on that handle afterwards returns nothing that was cached there before
//!   the flush started;
//! - what completed on that handle before the flush started is not written to storage once more
//!   later, when others may have written something newer there.
//!
//! At any time, a handle may write out on its own what was written through it, and may load
//! whatever it likes while it executes a command or is opened. Of two modifications of the same
//! bytes through one handle, the later one wins, if it began after the other had completed. A flush
//! that fails promises nothing, unless [`AfterFailure::Retry`] says that the handle keeps its data.
//! What closing a handle may do is said at [`Action::Release`]. Under [`ThreadModel::Parallel`] a
//! handle is called for several commands and a flush at the same time, but never for two flushes.
//!
//! Of a command that is in flight across a flush only this is assumed: what it leaves in the cache
//! it has fetched from storage after it began, or written, but not copied from what the cache held
//! before; and of a cache that works in granules, that it does not revert what was written through
//! the same handle ([`Config::with_granule`]). Everything else is derived from these sentences. A
//! backend that promises more says so ([`Backend`]), and is flushed less.
//!
//! The handles of a group may differ in what they promise, but for multi-conn: where one flush
//! covers all handles, it has to cover *all* ([`OpenError::MixedMultiConn`]).
//!
//! # How to drive it
//!
//! 1. Before the backend handle is opened: [`connect`](FlushCoordinator::connect). After:
//!    [`opened`](FlushCoordinator::opened), which says what to advertise, or why the configured
//!    mode would be a lie.
//! 2. For each command of a client that the session [allows](crate::session::Session::check):
//!    [`command`](FlushCoordinator::command). Most are to be executed at once. When one has been
//!    executed, reads too, and before its reply is sent:
//!    [`complete`](FlushCoordinator::complete).
//! 3. After each event: [`poll`](FlushCoordinator::poll) until there is nothing to do. Actions may
//!    be carried out in parallel and in any order, and their ends be reported in any order.
//! 4. A finished backend flush: [`flushed`](FlushCoordinator::flushed).
//! 5. The client is gone: [`disconnect`](FlushCoordinator::disconnect), and close the handle when
//!    [`Action::Release`] comes. The client is gone, and may be back on another connection:
//!    [`revoke`](FlushCoordinator::revoke). The handle itself is gone:
//!    [`lost`](FlushCoordinator::lost).
//!
//! A tag belongs to the coordinator from the call that takes it until it comes back, which it does
//! exactly once: in the [`Decision`], or, after [`Decision::Wait`], in an [`Action`]. That is so
//! however the connection ends. [`Action::Release`] is the last action of its connection.
//!
//! A server with threads keeps the coordinator behind a lock: [the manual](manual#with-threads) has
//! one, and the two things to take care of.
//!
//! ```
//! use nbd_proto::flush::{Action, Backend, Command, Config, Decision, FlushCoordinator, Mode};
//! use nbd_proto::wire::CommandType;
//!
//! let mut coordinator = FlushCoordinator::new(Config::new().with_mode(Mode::Emulate));
//! let backend = Backend::new().with_flush(true);
//! let a = coordinator.connect("a", &"disk");
//! let b = coordinator.connect("b", &"disk");
//! assert!(coordinator.opened(a, backend)?.multi_conn);
//! coordinator.opened(b, backend)?;
//!
//! // A write on one connection needs nothing: it is executed, then answered.
//! let write = Command::new(CommandType::WRITE, 0, 4096);
//! let Decision::Execute { op, tag } = coordinator.command(a, write, 1) else {
//!     panic!("nothing is in its way");
//! };
//! let answer = coordinator.complete(op, tag, Ok(()));
//! assert!(matches!(answer, Decision::Reply { tag: 1, result: Ok(()) }));
//!
//! // A flush on the other connection has to write out the handle of the first.
//! assert!(matches!(coordinator.command(b, Command::FLUSH, 2), Decision::Wait));
//! let Some(Action::Flush { key: "a", flush }) = coordinator.poll() else {
//!     panic!("its data is not on permanent storage");
//! };
//! coordinator.flushed(flush, Ok(()));
//! let reply = coordinator.poll();
//! assert!(matches!(reply, Some(Action::Reply { key: "b", tag: 2, result: Ok(()) })));
//! assert!(coordinator.poll().is_none());
//! # Ok::<(), nbd_proto::flush::OpenError>(())
//! ```
//!
//! # The rules
//!
//! Each is followed by the schedule that breaks without it: `W(x)` writes, `F` flushes, `R` reads,
//! `ok` is a reply that was handed out.
//!
//! 1. **One logical clock.** A modification is stamped when it completes, before its reply; a
//!    backend flush covers exactly what completed before it started. Nothing is ever "cleared". (A
//!    dirty bit: `a: W(x)` is executing; `b: F ok` clears the bit; `a: W ok`; `b: F ok` finds a
//!    clean handle; x is lost.)
//! 2. **A round has two phases.** All handles with uncovered modifications are written out at once;
//!    when all have answered (the *barrier*), every handle that may hold something loaded before
//!    is flushed again, after its commands that were in flight at the barrier have ended. (In a
//!    single pass: handle a is flushed; `a: R` caches the old data again; handle b is flushed;
//!    `F ok`; `a: R` returns what is old.)
//! 3. **Any command may fill a cache**: read, cache, block status, the read-modify-write of a
//!    write, and opening. A connection that has opened but not served is not flushed while a client
//!    waits; it is invalidated before its first command. (`c` opens, and caches the old data, while
//!    a round for `a: W(x)` runs; `b: F ok`; `c: R` returns what is old.)
//! 4. **A leaving connection is flushed before it is released**, while emulating, and flushes that
//!    must cover it wait. (`a: W(x) ok`; a disconnects and its cache is dropped; `b: F ok`; x is
//!    lost.)
//! 5. **A failed flush is nobody's private affair.** The round still visits everyone; every flush
//!    that needed the failed part fails; under [`AfterFailure::Sticky`] no later one succeeds by
//!    accident, nor does a FUA command whose data the cache may have dropped. The connection whose
//!    data it was hears of it from its own next flush, even if another one's flush met the failure
//!    first. Under [`AfterFailure::Retry`], data that is gone for good (a handle was lost, or could
//!    not be written out when it left) is told once to each connection of the group. (`a: W(x) ok`;
//!    `b: F` fails, because the flush of a did, and a's cache has dropped x; `b: F ok` and
//!    `a: F ok` find nothing to write out; x is lost.)
//! 6. **Overlapping modifications through different handles keep their order**: the earlier one is
//!    written out before the later one executes. (`b: W(x) ok`; `a: W(y) ok` at the same place; `F`
//!    writes out a, then b; x wins.) With a [granule](Config::granule) above one byte, a handle
//!    whose copy may be old is invalidated before it is written to. If the write-out fails, the
//!    later modification fails, unexecuted.
//! 7. **FUA pays for itself only**: its own handle is written out, then others are invalidated.
//!    What others have not written out, and their failures, are not its business; but a handle that
//!    could not be invalidated serves nothing until it could. (With a round for each: `b: W(x) ok`;
//!    `a: W(u)` with FUA meets the failure of b's flush, and is told that u has failed; `b: F ok`;
//!    x is lost, and only the wrong client has heard of it.)
//!
//!    A read with FUA is none of that (proto.md "Command flags"); under [`FuaOnReads::Preflush`] a
//!    flush comes before it. (`a: W(x) ok`; `b: R` with FUA is answered
//!    from what b has cached before: the client that asked for what is there now gets what was.)
//! 8. **Coalescing.** Flushes that arrive during a round share the next one; a flush joins the
//!    running round only if no modification completed after that round began. At most one round
//!    runs and one waits per group. (A flush that joins any round that runs: `a: F`'s round has
//!    started to flush a; `a: W(x) ok`; `b: F` joins, `F ok`; x is lost.)
//! 9. **Minimality.** No handle is flushed that the rules above do not need:
//!    `a: W(x) ok; b: F; c: F` flushes a once, and b and c never. (This one costs time, not data.)
//! 10. **Groups and connections are independent**: a backend flush that hangs delays only those who
//!     must wait for it. (With one lock around all flushes: a disk that does not answer stops every
//!     other export.)
//! 11. **Nothing is forgotten.** In every reachable state each command and flush that was accepted
//!     is answered once the backend answers what it was asked; a steady stream of reads or writes
//!     starves nobody. (A flush that waits until nothing is executing: `a` always has a next write
//!     in flight, and `b: F` is never answered.)
//! 12. **Memory is bounded**: per connection a small constant, and ranges up to a
//!     [cap](Config::with_max_ranges), beyond which they merge: more flushes, never fewer. What
//!     waits is the clients' requests, which the caller bounds by what it reads from them. (Without
//!     a cap: a client that writes every other block of a large disk, and never flushes, has the
//!     server remember each.)
//! 13. **Calls take turns** under [`ThreadModel::SerializeRequests`]: at most one command or one
//!     flush is under way on a handle, the others wait in the order in which they came, and have
//!     not begun. One that finds, when it has its turn, that it has to wait for another handle
//!     leaves its own to the next. (With a lock around the handle instead: `a: W(x) ok`; `b: W(y)
//!     ok` elsewhere; `a: W` over y holds a's lock until b is written out, `b: W` over x holds b's
//!     lock until a is. Nothing moves any more.)
//! 14. **Loads are coherent** under [`Overlap::Coherent`]: a load waits until what others have
//!     modified in its range is written out, then until its handle has dropped what may be older;
//!     while it waits, later modifications in its range wait behind it. (`b: R` caches the old
//!     data; `a: W(x) ok`; `b: R` returns the old data, though x was written before.)
//!
//! ```text
//! a Round over three connections; time goes down
//!
//!       a            b            c
//!       |            |            |
//!     W(x) ok     R (old)         |
//!       |            |           F ─────────┐ arrives: a has something uncovered
//!     Flush a        |            |         │ phase 1: write out
//!       :            |            |         │
//!     done ══════════╪════════════╪═════ barrier: x is in storage, b may hold what is old
//!       |          Flush b        |         │ phase 2: invalidate
//!       |           done          |         │
//!       |            |           F ok ──────┘
//!       |          R (x)          |
//! ```
//!
//! # Looking inside
//!
//! [`FlushCoordinator::counters`] says how often what has happened, in all groups or
//! [in one](FlushCoordinator::group_counters): counting is a few additions, and always on.
//! [`FlushCoordinator::uncovered`] says how much a crash of the backend would lose now that no
//! client was promised, and since when; and [`FlushCoordinator::explain`] why the next flush would
//! touch a handle, or would not. A server whose flushes are slow finds the connection that they
//! wait for with these.
//!
//! # Acknowledging
//!
//! When a modification is answered is up to [`Acknowledge`]. By default it is when it has been
//! executed. With [`WriteThrough`](Acknowledge::WriteThrough) it is treated as if it carried FUA.
//!
//! With [`OnReceipt`](Acknowledge::OnReceipt) it is answered when it begins, unless it carries FUA:
//! [`Decision::Execute`] and [`Action::Execute`] come with an [`Op`] that is
//! [`acknowledged`](Op::acknowledged), and `complete` says [`Decision::Answered`]. The promise
//! counts from that answer. So, each with the schedule that breaks without it:
//!
//! - Whatever overlaps with an acknowledged modification that has not completed, reads included,
//!   on whatever connection of the group, waits for its end, but for none that is acknowledged
//!   later. (`a: W(x) ok`, executing; `a: R` comes before it in the backend, and returns what is
//!   old.)
//! - A flush waits until all that was acknowledged before it arrived has completed; only then does
//!   it look for what there is to do, or join a round. (`a: W(x) ok`, executing; `b: F ok` finds
//!   nothing to write out, or joins a round that began before; x is not on permanent storage.)
//! - A failure is reported by the next flush, like a failed flush: to all who rely on what the
//!   connection wrote, under [`AfterFailure::Retry`] once to each. (`a: W(x) ok`, then fails;
//!   `a: F ok`; nobody ever hears that x is nowhere.)
//! - A handle that is lost with such modifications has lost data, also where it would leave its
//!   data in a cache that all share. (`a: W(x) ok`, executing; a's handle is gone; `b: F ok`.)
//!
//! Where each connection is on its own, flushes wait for, and report, what was acknowledged on
//! their own connection.
//!
//! With [`IgnoreFlush`](Acknowledge::IgnoreFlush) the backend is never flushed, flush and FUA are
//! advertised and answered with success, and **a crash loses data**. Multi-conn is advertised where
//! data is visible to all without a flush: if the backend has it (in [`Mode::Auto`] and
//! [`Mode::Plugin`]), or, in [`Mode::Emulate`], if all handles of the group cache nothing or all
//! are read-only; and always in [`Mode::Unsafe`].
//!
//! # Clients that come back
//!
//! A client that loses its connection may send again, on a new one, what was not answered, while
//! the old handle still executes it. (`a: W(x)` is executing, a's network fails; the client
//! connects as b; `b: W(x) ok`; `b: W(y) ok` at the same place; a's write ends, or its cache is
//! written back; y was acknowledged, and x is there.) With [`revoke`](FlushCoordinator::revoke),
//! b's first write is not begun before a's has ended and is written out. That holds in every mode:
//! where the ranges of modifications are known, only those that overlap wait, else all of the
//! group. Reads do not wait, for a client that was not answered can expect old data and new. That b
//! is the same client as a only the server can know; a server that never knows may revoke every
//! connection that ends without `NBD_CMD_DISC` (proto.md "Terminating the transmission phase").

mod acknowledge;
mod backend;
mod clock;
mod coherent;
mod command;
mod config;
mod coordinator;
#[cfg(test)]
mod exhaustive;
mod fence;
mod fua;
mod group;
mod handle;
mod in_flight;
mod leave;
pub mod manual;
mod member;
mod observe;
mod order;
mod overlap;
mod parked;
mod preflush;
mod round;
mod serial;
mod slab;
mod waiting;

pub use backend::{Advertised, Backend, OpenError};
pub use command::{Action, Command, Conn, Decision, FlushId, Op};
pub use config::{
    Acknowledge, AfterFailure, Config, FuaOnReads, Grouping, Mode, Overlap, ThreadModel,
    TrackDirty, UnknownValue,
};
pub use coordinator::FlushCoordinator;
pub use observe::{Counters, Explanation, Uncovered};
