//! Whether a server kept its promise: [`check`](check()) for a whole [history](super::history), a
//! [`Checker`] for events as they come.
//!
//! It knows nothing of the server but what its clients saw, and it accuses only what no server that
//! keeps the promise can have answered. A [`Violation`](super::Violation) is a proof: the few
//! events that contradict each other, and the clause that they break.
//!
//! ```
//! use nbd_proto::conformance::{CheckError, History, Promise, check};
//!
//! // The older of two writes wins, and the flush does not say so.
//! let history: History = "granule 4096
//!     c1 write #1 0+4096 =1
//!     c1 done #1
//!     c2 write #1 0+4096 =2
//!     c2 done #1
//!     c3 flush #1
//!     c3 done #1
//!     crash
//!     reopen
//!     c1 read #2 0+4096
//!     c1 data #2 =1".parse()?;
//! let Err(CheckError::Violation(violation)) = check(&history, Promise::MULTI_CONN) else {
//!     panic!("content 2 was on permanent storage");
//! };
//! println!("{violation}");
//! // What does not claim multi-conn has not promised anything about it.
//! assert!(check(&history, Promise::SINGLE_CONNECTION).is_ok());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # The words
//!
//! Everything is said of one block; blocks have nothing to do with each other, and a command of
//! several blocks is as many commands that begin and end together. So a read that overlaps a write
//! in time may find some of its blocks old and some new.
//!
//! *Before* is about what the observer has recorded: A is before B if A's reply is recorded before
//! B's invocation. What is not ordered so *overlaps*.
//!
//! A **modification** is a write, a zeroing or a trim. It is **settled** when it was answered with
//! success. A modification that failed may have had its effect, may never have it, or may still have
//! it at any later time: nothing in the protocol says more. But once a read has found it, and it
//! can have been nothing else, it is settled by the later of that read's reply and its own: it was
//! answered, and it had an effect. What was never answered, because its connection is gone, is
//! never settled, whoever reads it: the server may still be about to execute it. Only a crash ends
//! what was going on.
//!
//! A modification is **covered** when a successful flush was answered that was sent after it was
//! settled; or, if it carries FUA, when it was answered with success. Flushes that fail, or are not
//! answered, cover nothing. With [`Promise::MULTI_CONN`] a flush counts for all connections, with
//! [`Promise::SINGLE_CONNECTION`] for its own (proto.md "Ordering of messages and writes";
//! "Transmission flags": "the effects of `NBD_CMD_FLUSH` and `NBD_CMD_FLAG_FUA` MUST be visible
//! across all connections").
//!
//! # The clauses
//!
//! 1. **One order** ([`Clause::OneOrder`]). The modifications of a block have an order, in which
//!    each is *newer* than those that come earlier. It does not contradict time: what was settled
//!    before B was sent is older than B. This is what "A's data or newer" is measured by, and there
//!    is one order for all reads: if two writes overlap, either may win, but not now one and then
//!    the other. Between connections, time alone only orders what overlaps in place with
//!    [`Promise::MULTI_CONN`]; without, and with [`Promise::with_order(false)`](Promise::with_order),
//!    the older one has to be covered before the newer one is sent.
//! 2. **Visibility** ([`Clause::Visibility`], [`Clause::ForcedAccess`]). A read returns nothing older
//!    than a modification that was covered before the read was sent. Without multi-conn, that is
//!    promised of what its own connection has modified and flushed.
//! 3. **Own writes** ([`Clause::OwnWrites`]). A read returns nothing older than what was written
//!    through its own connection, and settled, before the read was sent (proto.md "Request types":
//!    "The server MUST write the data to disk, and then send the reply message").
//!    [`Promise::with_own_writes(false)`](Promise::with_own_writes) takes it back, for those who
//!    hold that "if you want action A to be visible by B" there has to be a flush in between.
//! 4. **Durability** ([`Clause::Durability`]). What a crash leaves is not older than a modification
//!    that was covered when the server crashed. Of what was not covered, finished or not, any or
//!    none may be left, block by block, of different connections or of the same one: there are no
//!    barriers but flushes.
//! 5. **One image** ([`Clause::OneImage`]). A crash leaves one thing in a block, for all reads, until
//!    it is modified again. It is on permanent storage, so it is what a second crash leaves, too.
//! 6. **Nothing else** ([`Clause::NeverWritten`]). A read returns what was there at the beginning, or
//!    what was sent to that block before the read's reply.
//!
//! What is *not* demanded: that reads of one connection do not go back in time, without any flush,
//! among what others have written; that what one read has found is found by another; anything about
//! data that comes with an error.
//!
//! - A **trim** leaves anything, and not even the same for all reads, until something newer is
//!   there.
//! - [`Content::MIXED`](super::Content::MIXED) may be found where two different things could have
//!   been: the server's blocks may be smaller than the granule.
//! - Contents that **several** have written, like zeroes, are believed to be those of whoever makes
//!   them legal; nothing is concluded from such a read, unless there is only one. That is the one
//!   place where a contradiction between reads can go unnoticed, and the reason to give each write
//!   an identity of its own.
//! - A **crash** loses what is not on permanent storage. Killing only the server program, when its
//!   data lives on in the cache of the system that goes on, is a crash, too; but a history must not
//!   mix that with crashes of the system, which leave less.
//!
//! # How it decides
//!
//! Of each block it remembers the effects that a read may still find, and which of them are older
//! than which, by time or because a read has proved it. If a read returns an effect that is older
//! than one that it must not miss, that is a violation; if not, all that it must not miss is older
//! than what it returned. An order that satisfies all reads exists exactly if that never leads in a
//! circle. What is older than something that is covered, for all reads in flight, is forgotten: most
//! blocks have one effect, and two while they are written to. The tests compare the verdict with
//! that of a search through all runs of an abstract server, which is spelled out there.
//!
//! Each event costs time in proportion to its blocks, and to the effects that each of these may have
//! at the time ([`Checker::with_most_effects`] bounds them). A crash costs time in proportion to all
//! blocks that were ever written to.

#[cfg(doc)]
use super::violation::Clause;

mod block;
mod checker;
mod effect;
mod error;
mod flushes;
mod pages;
mod promise;
mod shrink;
mod witness;

pub use checker::{Checker, Summary};
pub use error::{CheckError, Malformed};
pub use promise::{Initial, Promise};
pub use shrink::check;
