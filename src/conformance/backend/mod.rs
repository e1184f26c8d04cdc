//! Backends in memory that use every freedom the contract leaves them, and some that break it.
//!
//! A [`Model`] is what a coordinator, a server or a client's ledger is tried against: handles with
//! caches that load and write back at the worst moments, commands that take effect early or are
//! held across flushes, flushes that fail, and a crash at any point. It holds no data, but for each
//! block the number of what was written last; and it does nothing of its own accord: when a command
//! ends, what it fetches and when, what is written back early, what a crash leaves, is all said by
//! the caller, who may be a test, a strategy, or a model checker. It needs neither `std` nor the
//! feature `proptest`.
//!
//! # Which kind keeps which sentence
//!
//! [Three sentences](crate::flush#what-a-backend-must-promise) are the contract of a flush that
//! succeeds: (1) what had completed is permanent and visible, (2) reads find nothing that was cached
//! before, (3) nothing is written once more later.
//!
//! | [`Kind`] | keeps | beyond the contract |
//! |---|---|---|
//! | [`per_connection`](Kind::per_connection) | 1, 2, 3 | |
//! | [`granular`](Kind::granular) | 1, 2, 3 | caches blocks in granules ([`Config::with_granule`]); self-coherent |
//! | ... [`with_volatile_storage`](Kind::with_volatile_storage) | 1, 2, 3 | what is written back early is visible, not permanent |
//! | ... [`with_self_coherent`](Kind::with_self_coherent) | 1, 2, 3 | commands leave nothing from before a flush |
//! | [`shared`](Kind::shared) | 1, 2, 3 | multi-conn: one flush covers all handles |
//! | [`without_cache`](Kind::without_cache) | 1, 2, 3 | needs no flush |
//! | [`dropping`](Kind::dropping) | 1, 2, 3 | not fit for [`AfterFailure::Retry`] |
//! | [`lying`](Kind::lying) | 3 | a flush does nothing |
//! | [`Breach::NotPermanent`] | 2, 3 | of 1, the visible half |
//! | [`Breach::KeepsOld`] | 1, 3 | a flush drops nothing that was loaded |
//! | [`Breach::WritesAgain`] | 1 | what was flushed stays dirty |
//!
//! [`Config::with_granule`]: crate::flush::Config::with_granule
//! [`AfterFailure::Retry`]: crate::flush::AfterFailure::Retry
//!
//! # Example
//!
//! The schedule that breaks a single pass over all handles: a reads between its own flush and that
//! of b.
//!
//! ```
//! use nbd_proto::conformance::backend::{Access, Kind, Model};
//!
//! let mut disk = Model::new(Kind::per_connection(), 8);
//! let (a, b) = (disk.open(), disk.open());
//! let write = Access::Write { blocks: 0..1, content: 7, fua: false };
//! let write = disk.begin(b, write).unwrap();
//! disk.finish(write);
//!
//! let flush = disk.begin_flush(a).unwrap();
//! disk.finish_flush(flush);
//! let read = disk.begin(a, Access::Read { blocks: 0..1 }).unwrap();
//! assert_eq!(disk.finish(read), Some(vec![0]));
//! let flush = disk.begin_flush(b).unwrap();
//! disk.finish_flush(flush);
//!
//! // b's write is on storage, but a goes on reading what it has cached.
//! assert_eq!((disk.visible(0), disk.cached(a, 0)), (7, Some((0, false))));
//! let image = disk.crash(|_, survivors| survivors.len() - 1);
//! assert_eq!(image[0], 7);
//! ```

mod kind;
mod model;
mod storage;
#[cfg(test)]
mod tests;

pub use kind::{Breach, Failure, Kind};
pub use model::{Access, Call, Flushing, Handle, Model};
