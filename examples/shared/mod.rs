//! What the client programs among the examples have in common: where a server is, getting into
//! transmission with it, and talking to it without ever waiting for it alone.
//!
//! A program takes it in with `#[path = "../shared/mod.rs"] mod shared;`.

pub(crate) mod channel;
pub(crate) mod connection;
pub(crate) mod count;
pub(crate) mod signals;
pub(crate) mod stream;
#[allow(dead_code, reason = "not every program has TLS")]
pub(crate) mod tls;
pub(crate) mod uri;
pub(crate) mod usage;
#[allow(dead_code, reason = "not every program waits without a word otherwise")]
pub(crate) mod waiting;
