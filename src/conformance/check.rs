//! Whether a server kept its promise.

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
