//! Whether a server kept its promise.

mod promise;

pub use promise::{Initial, Promise};
