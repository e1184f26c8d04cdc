//! How a client shakes hands.

use crate::limits::Limits;

/// How a client shakes hands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientConfig {
    pub(super) limits: Limits,
    pub(super) no_zeroes: bool,
    pub(super) oldstyle: bool,
}

impl ClientConfig {
    /// `NO_ZEROES` is used where the server offers it; oldstyle servers are refused; limits are
    /// the default ones.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            limits: Limits::new(),
            no_zeroes: true,
            oldstyle: false,
        }
    }

    /// Sets the limits.
    #[must_use]
    pub const fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Sets whether `NO_ZEROES` is used where the server offers it (default: yes).
    #[must_use]
    pub const fn with_no_zeroes(mut self, used: bool) -> Self {
        self.no_zeroes = used;
        self
    }

    /// Sets whether the only export of an oldstyle server is taken (default: no, for nothing can
    /// be negotiated then, and whoever is in between can make any server look like one).
    #[must_use]
    pub const fn with_oldstyle(mut self, accepted: bool) -> Self {
        self.oldstyle = accepted;
        self
    }

    /// The limits.
    #[must_use]
    pub const fn limits(&self) -> Limits {
        self.limits
    }

    /// Whether the only export of an oldstyle server is taken.
    #[must_use]
    pub const fn oldstyle(&self) -> bool {
        self.oldstyle
    }
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self::new()
    }
}
