//! What tests of this crate, and of code that embeds it, are made of.
//!
//! - [`History`] is what clients saw of a server, and [`check`](mod@check) decides whether the
//!   server kept its promise.
//! - [`backend`] has backends in memory that use every freedom of the flush contract, and some that
//!   break it.
//! - [`property`] has servers under test, schedules for them, and, with the feature `proptest`, the
//!   ready-made property: give it your coordinator, or a way to connect to your server.
//! - With the feature `proptest`, `strategy` has strategies for the messages of the protocol,
//!   valid ones and hostile ones, and for schedules.
//! - `guide`, with the same feature, shows how to use them.
//!
//! Nothing here is needed at run time.

pub mod backend;
pub mod check;
mod diagram;
#[cfg(any(test, feature = "proptest"))]
#[cfg_attr(docsrs, doc(cfg(feature = "proptest")))]
pub mod guide;
pub mod history;
pub mod property;
#[cfg(any(test, feature = "proptest"))]
#[cfg_attr(docsrs, doc(cfg(feature = "proptest")))]
pub mod strategy;
mod violation;

pub use check::{CheckError, Checker, Initial, Malformed, Promise, Summary, check};
pub use history::{Command, Content, Contents, Event, Extent, History, HistoryError, Outcome};
pub use violation::{Action, Clause, Role, Step, Violation};
