//! From what clients saw to a verdict.

use alloc::string::{String, ToString};

use super::schedule::Played;
use super::server::Trouble;
use crate::conformance::check::check;

/// What is wrong with a server.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Broken {
    /// It did what no server may.
    #[error(transparent)]
    Trouble(#[from] Trouble),
    /// Clients saw what it had promised they would not.
    #[error("{0}")]
    Visibility(String),
    /// A crash would have lost what it had promised to keep.
    #[error("{0}\n(Nothing has crashed: this is what a crash after event {1} would have shown.)")]
    Durability(String, usize),
}

impl Played {
    /// Decides whether the server kept its promise: in what clients saw, and in what they would have
    /// found after each of the possible [crashes](Self::images).
    ///
    /// # Errors
    ///
    /// If it did not, with the explanation of the [check](mod@crate::conformance::check).
    pub fn judge(&self) -> Result<(), Broken> {
        if let Err(why) = check(&self.history, self.promise) {
            return Err(Broken::Visibility(why.to_string()));
        }
        for (at, (events, _)) in self.images.iter().enumerate() {
            let Some(history) = self.crashed(at) else {
                continue;
            };
            if let Err(why) = check(&history, self.promise) {
                return Err(Broken::Durability(why.to_string(), *events));
            }
        }
        Ok(())
    }
}
