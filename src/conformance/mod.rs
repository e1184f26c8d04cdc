//! What tests of this crate, and of code that embeds it, are made of.
//!
//! With the feature `proptest`, `strategy` has strategies for the messages of the protocol:
//! valid ones, and hostile ones. Nothing here is needed at run time.

pub mod backend;
#[cfg(any(test, feature = "proptest"))]
#[cfg_attr(docsrs, doc(cfg(feature = "proptest")))]
pub mod strategy;
