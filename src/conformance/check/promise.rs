//! What a server is held to.

use core::fmt;

/// What a server has promised to the clients of one export, or whatever shares data.
///
/// What each of them means, clause by clause, is said [at the module](super).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Promise {
    pub(super) scope: Scope,
    pub(super) ordered: bool,
    pub(super) own_writes: bool,
    pub(super) initial: Initial,
}

/// Whose modifications a flush covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Scope {
    All,
    Own,
}

/// What the export holds when the history begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Initial {
    /// Zeroes.
    Zeroes,
    /// Nobody knows: anything is believed of a block until something written to it is covered.
    Unknown,
}

impl Promise {
    /// The server advertised `NBD_FLAG_CAN_MULTI_CONN`: a flush covers what was answered on any
    /// connection.
    pub const MULTI_CONN: Self = Self {
        scope: Scope::All,
        ordered: true,
        own_writes: true,
        initial: Initial::Zeroes,
    };

    /// The server did not: a flush covers what was answered on its own connection, and nothing is
    /// visible to others but what a crash leaves.
    pub const SINGLE_CONNECTION: Self = Self {
        scope: Scope::Own,
        ordered: false,
        own_writes: true,
        initial: Initial::Zeroes,
    };

    /// Whether writes of different connections to the same block, of which one was answered before
    /// the other was sent, keep that order without a flush between them. By default they do with
    /// [`MULTI_CONN`](Self::MULTI_CONN), and do not with
    /// [`SINGLE_CONNECTION`](Self::SINGLE_CONNECTION), for which this changes nothing. A server may
    /// leave it to its clients ([`Overlap::Ignore`](crate::flush::Overlap::Ignore)).
    #[must_use]
    pub const fn with_order(mut self, ordered: bool) -> Self {
        self.ordered = ordered && matches!(self.scope, Scope::All);
        self
    }

    /// Whether a read has to find what was written through its own connection, and answered,
    /// without any flush. By default it has to. The strictest reader of the protocol relies on
    /// nothing that was not flushed.
    #[must_use]
    pub const fn with_own_writes(mut self, own_writes: bool) -> Self {
        self.own_writes = own_writes;
        self
    }

    /// What is there at the beginning; [zeroes](Initial::Zeroes) by default.
    #[must_use]
    pub const fn with_initial(mut self, initial: Initial) -> Self {
        self.initial = initial;
        self
    }

    /// Whether a flush covers what was answered on any connection.
    #[must_use]
    pub const fn is_multi_conn(&self) -> bool {
        matches!(self.scope, Scope::All)
    }
}

impl fmt::Display for Promise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.scope {
            Scope::All => "multi-conn",
            Scope::Own => "single connection",
        })
    }
}
