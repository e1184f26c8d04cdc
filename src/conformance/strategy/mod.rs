//! Strategies for property tests (feature `proptest`).
//!
//! They make values that the types allow; `hostile` ones are also legal Rust values or bytes, but
//! break the rules of the protocol. Distributions may change in any release.
//!
//! [`proptest`] is exported again, so that the versions match.

pub use proptest;

pub mod handshake;
pub mod history;
pub mod schedule;
pub mod transmission;
