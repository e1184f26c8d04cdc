//! What tests of this crate, and of code that embeds it, are made of.
//!
//! - [`History`] is what clients saw of a server, and [`check`](mod@check) decides whether the
//!   server kept its promise.
//! - With the feature `proptest`, `strategy` has strategies for the messages of the protocol:
//!   valid ones, and hostile ones.
//!
//! Nothing here is needed at run time.

pub mod check;
mod diagram;
pub mod history;
#[cfg(any(test, feature = "proptest"))]
#[cfg_attr(docsrs, doc(cfg(feature = "proptest")))]
pub mod strategy;
mod violation;

pub use check::{CheckError, Checker, Initial, Malformed, Promise, Summary, check};
pub use history::{Command, Content, Contents, Event, Extent, History, HistoryError, Outcome};
pub use violation::{Action, Clause, Role, Step, Violation};
