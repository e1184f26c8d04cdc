//! What tests of this crate, and of code that embeds it, are made of.
//!
//! - [`History`] is what clients saw of a server, and [`check`](mod@check) decides whether the
//!   server kept its promise.
//! - With the feature `proptest`, `strategy` has strategies for the messages of the protocol:
//!   valid ones, and hostile ones.
//!
//! Nothing here is needed at run time.

pub mod check;
pub mod history;
#[cfg(any(test, feature = "proptest"))]
#[cfg_attr(docsrs, doc(cfg(feature = "proptest")))]
pub mod strategy;

pub use check::{Initial, Promise};
pub use history::{Command, Content, Contents, Event, Extent, History, HistoryError, Outcome};
