//! The words in which a ledger is asked and answers.

/// What a successful flush covers, of what was answered before it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Writes on all connections: multi-conn was advertised (proto.md "Transmission flags": "the
    /// effects of NBD_CMD_FLUSH and NBD_CMD_FLAG_FUA MUST be visible across all connections").
    AllConnections,
    /// Writes on its own connection only.
    OwnConnection,
}

/// What becomes of writes that were acknowledged on a connection that then ended, before a flush
/// covered them. It matters with [`Scope::AllConnections`]; with
/// [`Scope::OwnConnection`] they are always suspect, for no flush is left that could cover them.
///
/// By the text a later flush on another connection covers them: they are among the "write commands
/// that the server completes (i.e. replies to) prior to processing a NBD_CMD_FLUSH" (proto.md
/// "Ordering of messages and writes"). But nothing in the text says that a server has to keep, or
/// write out, what it cached for a connection that has gone, and servers are known that drop it and
/// answer the next flush with success.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum AfterLoss {
    /// They are suspect.
    ///
    /// So far only they are. Where a server caches in larger units than it says, a command that
    /// was never answered may still write back what is around it, over what has been written there
    /// since on another connection.
    #[default]
    Suspect,
    /// A later flush on another connection covers them: for a server that is known to flush
    /// connections that leave, or to have one cache for all.
    Covered,
}

/// What becomes of the writes that a failed flush should have covered, and of those that were sent
/// before its failure was known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum AfterFailure {
    /// They are suspect, and no later flush changes that: many servers pass on what the system
    /// tells them, and systems drop what they could not write, fail once, and then succeed. Only
    /// writing them again helps ([`FlushLedger::rewritten`](super::FlushLedger::rewritten)).
    ///
    /// A flush or a write with FUA that succeeds is believed at once, as the text demands, even if
    /// another flush is in flight in the same scope of which it turns out later that it failed,
    /// perhaps before. Who does not trust a server that far sends one at a time.
    ///
    /// A write that fails casts no doubt on others, not even with FUA. A server that drops what it
    /// could not flush, and tells only the one whose write with FUA asked for that flush, has
    /// nobody who could know: the next flush that succeeds is believed.
    #[default]
    Sticky,
    /// They go on waiting for a flush: for a server that is known to keep what it could not write.
    Retry,
}

/// A connection of a ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Conn {
    pub(super) at: u32,
    pub(super) since: u64,
}

/// A write of a ledger. It is never mistaken for another, whether the write is still tracked or
/// not; but only its own ledger knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WriteId {
    pub(super) at: u32,
    pub(super) sent: u64,
}

/// A flush of a ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlushId {
    pub(super) at: u32,
    pub(super) sent: u64,
}

/// What is known of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WriteState {
    /// It was sent and not answered.
    InFlight,
    /// It was answered with success, and waits for a flush. Other commands see it (on all
    /// connections only after a flush), but a crash may lose it.
    Acknowledged,
    /// It is on permanent storage, says the server.
    Durable,
    /// It was answered with success, but no flush can be believed to have covered it. It has to be
    /// written again.
    Suspect(Doubt),
    /// It was answered with an error: what it wrote is anybody's guess, and may be part of it. No
    /// flush is owed for it; one may make durable whatever is there.
    Failed,
    /// Its connection ended before the answer: as if it had failed; and it may even be executed
    /// later.
    Unknown,
    /// It was given up ([`FlushLedger::forget`](super::FlushLedger::forget),
    /// [`rewritten`](super::FlushLedger::rewritten)); or it is so old that it cannot be told from
    /// one that was; or it is of another ledger.
    Forgotten,
}

/// Why a write is suspect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Doubt {
    /// A flush failed that should have covered it, or that was answered after it was sent.
    FlushFailed,
    /// Its connection ended before it was covered.
    ConnectionEnded,
}

/// So many writes of so many bytes in total.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Tally {
    /// How many writes.
    pub writes: u64,
    /// How many bytes they have together; bytes that two writes overlap in count twice. Counted
    /// modulo 2^64, which only writes that overlap can reach.
    pub bytes: u64,
}

impl Tally {
    pub(super) const ZERO: Self = Self {
        writes: 0,
        bytes: 0,
    };

    /// Whether there are no writes.
    #[must_use]
    pub const fn is_zero(&self) -> bool {
        self.writes == 0
    }

    pub(super) const fn add(&mut self, other: Self) {
        self.writes = self.writes.wrapping_add(other.writes);
        self.bytes = self.bytes.wrapping_add(other.bytes);
    }

    pub(super) const fn remove(&mut self, other: Self) {
        self.writes = self.writes.wrapping_sub(other.writes);
        self.bytes = self.bytes.wrapping_sub(other.bytes);
    }

    pub(super) const fn since(mut self, before: Self) -> Self {
        self.remove(before);
        self
    }
}

/// How many writes there are of each state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Summary {
    /// Sent, not answered.
    pub in_flight: Tally,
    /// Answered with success, not covered by a flush.
    pub acknowledged: Tally,
    /// All that ever became durable.
    pub durable: Tally,
    /// Answered with success, but lost for all that is known.
    pub suspect: Tally,
    /// Answered with an error.
    pub failed: Tally,
    /// Not answered before their connection ended.
    pub unknown: Tally,
}

impl Summary {
    pub(super) const ZERO: Self = Self {
        in_flight: Tally::ZERO,
        acknowledged: Tally::ZERO,
        durable: Tally::ZERO,
        suspect: Tally::ZERO,
        failed: Tally::ZERO,
        unknown: Tally::ZERO,
    };

    /// Whether everything that was sent, and not given up, is durable.
    #[must_use]
    pub const fn all_durable(&self) -> bool {
        self.in_flight.is_zero()
            && self.acknowledged.is_zero()
            && self.suspect.is_zero()
            && self.failed.is_zero()
            && self.unknown.is_zero()
    }
}

/// A write that is not durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Undurable {
    /// Which it is.
    pub write: WriteId,
    /// The connection that it was sent on.
    pub conn: Conn,
    /// Where it begins, in bytes.
    pub offset: u64,
    /// How long it is, in bytes.
    pub length: u64,
    /// What is known of it.
    pub state: WriteState,
}

/// What became of the writes of a connection that ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Ended {
    /// What was in flight, and is [unknown](WriteState::Unknown) now.
    pub unknown: Tally,
    /// What was acknowledged, and is [suspect](WriteState::Suspect) now.
    pub suspect: Tally,
}

/// What has to be done before a connection may leave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, thiserror::Error)]
#[error(
    "{} writes and {flushes} flushes are in flight, {} writes have to be flushed",
    in_flight.writes,
    acknowledged.writes
)]
#[non_exhaustive]
pub struct Debt {
    /// Writes whose replies have to be waited for (proto.md "Terminating the transmission phase":
    /// a client "SHOULD wait until there are no inflight requests first").
    pub in_flight: Tally,
    /// Flushes whose replies have to be waited for.
    pub flushes: u32,
    /// Writes that have to be covered by a flush first.
    pub acknowledged: Tally,
}

/// An event that cannot be. It has changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Misuse {
    /// The connection has ended, or is of another ledger.
    #[error("no such connection")]
    NotConnected,
    /// The write or flush was answered before, its connection has ended, or it is of another
    /// ledger.
    #[error("not in flight")]
    NotInFlight,
    /// The range reaches beyond 2^64.
    #[error("range reaches beyond 2^64")]
    Range,
    /// There are 2^32 - 1 already.
    #[error("too many at a time")]
    Full,
    /// The write cannot be given up: it is in flight, waits for a flush, is durable, or was given up
    /// before.
    #[error("the write is neither failed, suspect nor unknown")]
    StillCounts,
    /// What should replace the write is not durable, or was sent before the write had ended.
    #[error("what was written again is not durable, or was sent too early")]
    NotRewritten,
}
