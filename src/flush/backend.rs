//! What a backend handle can do, and what the clients of its connection may be told for it.

use bitflags::bitflags;

bitflags! {
    /// One byte for all, because every connection has it.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    #[cfg_attr(test, derive(Hash))]
    struct Abilities: u8 {
        const FLUSH = 1 << 0;
        const FUA = 1 << 1;
        const MULTI_CONN = 1 << 2;
        const READ_ONLY = 1 << 3;
        const CACHES_NOTHING = 1 << 4;
        const SELF_COHERENT = 1 << 5;
        const LOADS_ON_OPEN = 1 << 6;
    }
}

/// What one backend handle can do. Be honest: the promise to the clients rests on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(test, derive(Hash))]
pub struct Backend(Abilities);

impl Backend {
    /// A writable handle that can do nothing special: it has no flush.
    #[must_use]
    pub const fn new() -> Self {
        Self(Abilities::LOADS_ON_OPEN)
    }

    const fn with(self, ability: Abilities, yes: bool) -> Self {
        Self(if yes {
            self.0.union(ability)
        } else {
            self.0.difference(ability)
        })
    }

    pub(super) const fn flush(&self) -> bool {
        self.0.contains(Abilities::FLUSH)
    }

    pub(super) const fn fua(&self) -> bool {
        self.0.contains(Abilities::FUA)
    }

    pub(super) const fn multi_conn(&self) -> bool {
        self.0.contains(Abilities::MULTI_CONN)
    }

    pub(super) const fn read_only(&self) -> bool {
        self.0.contains(Abilities::READ_ONLY)
    }

    pub(super) const fn caches_nothing(&self) -> bool {
        self.0.contains(Abilities::CACHES_NOTHING)
    }

    pub(super) const fn self_coherent(&self) -> bool {
        self.0.contains(Abilities::SELF_COHERENT)
    }

    pub(super) const fn loads_on_open(&self) -> bool {
        self.0.contains(Abilities::LOADS_ON_OPEN)
    }

    /// It caches, and there is no way to make it drop what it cached.
    pub(super) const fn cannot_flush(&self) -> bool {
        !self.flush() && !self.caches_nothing()
    }

    /// `Flush` keeps the [contract](super#what-a-backend-must-promise).
    #[must_use]
    pub const fn with_flush(self, yes: bool) -> Self {
        self.with(Abilities::FLUSH, yes)
    }

    /// A command can be executed with FUA: when it succeeds, what it wrote is on permanent
    /// storage, and visible to all handles that have nothing cached.
    ///
    /// A failed command is not taken for a failed flush. If it may have dropped what others had
    /// written, as a failed `fsync` does on Linux, the backend has to let every later flush and
    /// every later command with FUA fail, too.
    #[must_use]
    pub const fn with_fua(self, yes: bool) -> Self {
        self.with(Abilities::FUA, yes)
    }

    /// One flush, on any handle that has one, covers what completed on all handles, and no handle
    /// caches anything that others do not see. What was not flushed when the last handle is closed
    /// stays for the next to flush.
    ///
    /// All handles of a group have to agree on this ([`OpenError::MixedMultiConn`]): a server with
    /// exports of different kinds groups them [by export](super::Grouping::ByExport).
    #[must_use]
    pub const fn with_multi_conn(self, yes: bool) -> Self {
        self.with(Abilities::MULTI_CONN, yes)
    }

    /// Nothing can be modified through this handle: the server refuses it before it gets here
    /// (proto.md "Transmission flags": `NBD_FLAG_READ_ONLY`). Other handles of the group may modify
    /// what it reads.
    #[must_use]
    pub const fn with_read_only(self, yes: bool) -> Self {
        self.with(Abilities::READ_ONLY, yes)
    }

    /// Every command goes straight to permanent storage, and reads come from there. Such a handle
    /// needs no flush of its own; flush and FUA are advertised all the same.
    #[must_use]
    pub const fn with_caches_nothing(self, yes: bool) -> Self {
        self.with(Abilities::CACHES_NOTHING, yes)
    }

    /// What a command leaves in this handle's cache is never older than a modification that
    /// completed on the same handle, even if a flush ran while the command was executing.
    ///
    /// Without this, a handle whose commands were executing while it was written out is flushed
    /// once more after they end. A cache has the property if it does not keep what it fetched
    /// before a flush that has run since.
    #[must_use]
    pub const fn with_self_coherent(self, yes: bool) -> Self {
        self.with(Abilities::SELF_COHERENT, yes)
    }

    /// Opening the handle may load data into its cache (default true). Such a handle is flushed
    /// before its first command if others have written out data since it was opened.
    #[must_use]
    pub const fn with_loads_on_open(self, yes: bool) -> Self {
        self.with(Abilities::LOADS_ON_OPEN, yes)
    }
}

impl Default for Backend {
    fn default() -> Self {
        Self::new()
    }
}

/// What the client of a connection may be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advertised {
    /// `NBD_FLAG_CAN_MULTI_CONN` (proto.md "Transmission flags", like the others).
    pub multi_conn: bool,
    /// `NBD_FLAG_SEND_FLUSH`.
    pub flush: bool,
    /// `NBD_FLAG_SEND_FUA`.
    pub fua: bool,
}

/// Why a connection cannot be coordinated as configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The coordinator does not know the connection, or it is open already.
    #[error("the connection is not being opened: connect it first, and open it once")]
    NotOpening,
    /// Emulation needs a backend with flush (or one that caches nothing, or nothing but
    /// read-only connections, of which none can have loaded what was written out while it opened).
    #[error("a backend without flush cannot be emulated: give it one, or use mode disable")]
    CannotEmulate,
    /// The backend claims multi-conn for a writable export, but has no flush to make it true.
    #[error("multi-conn without flush on a writable export would be a lie: use mode disable")]
    MultiConnWithoutFlush,
    /// A writable connection wants to join connections without flush, which could never be made
    /// to see what it writes.
    #[error("other connections have no flush and could go on reading stale data: use mode disable")]
    GroupCannotFlush,
    /// The other connections of the group have multi-conn and this one does not, or the other way
    /// round: what a flush covers would depend on the connection that asks for it. Exports of
    /// different kinds that share nothing are grouped [by export](super::Grouping::ByExport); handles of
    /// the same data are all described as what the least of them is.
    #[error("backends of one group differ in multi-conn: group by export, or claim it for none")]
    MixedMultiConn,
    /// [`Acknowledge::WriteThrough`](super::Acknowledge::WriteThrough) needs a writable backend to have flush or FUA, or to cache
    /// nothing.
    #[error("without flush and FUA nothing can be written through: acknowledge on completion")]
    CannotWriteThrough,
    /// [`Acknowledge::OnReceipt`](super::Acknowledge::OnReceipt) on a writable backend that can have no flush advertised: no
    /// client could ever ask whether what was acknowledged has been executed.
    #[error("without flush no client would hear of a late failure: acknowledge on completion")]
    CannotReportLater,
    /// [`Acknowledge::IgnoreFlush`](super::Acknowledge::IgnoreFlush) and [`Mode::Emulate`](super::Mode::Emulate) contradict each other over a backend that
    /// caches: clients see each other's data only by flushes.
    #[error("flushes that are ignored cannot be emulated: use mode disable")]
    CannotIgnoreFlush,
}
