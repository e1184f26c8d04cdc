//! What kind of backend a model is.

use crate::flush::{AfterFailure, Backend};

/// What a flush that fails does to what it should have written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Failure {
    /// Everything stays where it was; a later flush may succeed
    /// ([`AfterFailure::Retry`] may rely on it).
    #[default]
    Keeps,
    /// The cache is empty afterwards: reads find what is on storage.
    Drops,
    /// What was to be written counts as written, and reads still find it, until a crash, or until
    /// the cache drops it. So does Linux after a failed `fsync`.
    Forgets,
}

/// Which sentence of the [contract](crate::flush#what-a-backend-must-promise) a backend breaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Breach {
    /// None: it keeps the contract.
    #[default]
    None,
    /// A flush succeeds and has done nothing: breaks the first and the second sentence.
    FlushDoesNothing,
    /// A flush makes visible to all what was written, but not permanent, nor does FUA: a disk that
    /// lies about its cache. Breaks the first half of the first sentence.
    NotPermanent,
    /// A flush writes out, but drops nothing that was loaded before: breaks the second sentence.
    KeepsOld,
    /// A flush leaves marked what it has written out, and it may be written once more: breaks the
    /// third sentence.
    WritesAgain,
}

/// What kind of backend a model is: what it caches, and whether it keeps its word.
///
/// ```
/// use nbd_proto::conformance::backend::{Failure, Kind};
///
/// let buffered = Kind::per_connection().with_granule(4).with_failure(Failure::Drops);
/// assert!(buffered.keeps_contract());
/// assert!(!buffered.survives_retry());
/// assert!(!Kind::lying().keeps_contract());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Kind {
    caches: bool,
    volatile: bool,
    granule: u32,
    self_coherent: bool,
    loads_on_open: bool,
    fua: bool,
    failure: Failure,
    breach: Breach,
}

impl Kind {
    const fn base(caches: bool, volatile: bool) -> Self {
        Self {
            caches,
            volatile,
            granule: 1,
            self_coherent: false,
            loads_on_open: false,
            fua: false,
            failure: Failure::Keeps,
            breach: Breach::None,
        }
    }

    /// A write-back cache per handle, over storage that is permanent.
    #[must_use]
    pub const fn per_connection() -> Self {
        Self::base(true, false)
    }

    /// One volatile cache that all handles see: a flush on any of them makes permanent what
    /// completed on all.
    #[must_use]
    pub const fn shared() -> Self {
        Self::base(false, true)
    }

    /// No cache: what has completed is on permanent storage.
    #[must_use]
    pub const fn without_cache() -> Self {
        Self::base(false, false)
    }

    /// A write-back cache per handle whose flush is a lie: it succeeds, and does nothing.
    #[must_use]
    pub const fn lying() -> Self {
        Self::per_connection().with_breach(Breach::FlushDoesNothing)
    }

    /// A write-back cache per handle that drops all it holds when a flush fails.
    #[must_use]
    pub const fn dropping() -> Self {
        Self::per_connection().with_failure(Failure::Drops)
    }

    /// A write-back cache per handle that reads and writes back so many blocks at a time.
    #[must_use]
    pub const fn granular(blocks: u32) -> Self {
        Self::per_connection().with_granule(blocks)
    }

    /// Storage has a volatile cache itself (which [`shared`](Self::shared) is): what a handle writes
    /// back early is visible to others, but permanent only after a flush *of that handle*. Without
    /// caches per handle, of any.
    #[must_use]
    pub const fn with_volatile_storage(mut self, yes: bool) -> Self {
        self.volatile = yes;
        self
    }

    /// How many blocks, from block 0 on, a handle's cache reads and writes back at a time (default
    /// 1; 0 counts as 1). A write of a part of a granule is a read-modify-write.
    #[must_use]
    pub const fn with_granule(mut self, blocks: u32) -> Self {
        self.granule = if blocks == 0 { 1 } else { blocks };
        self
    }

    /// Commands do not leave in the cache what they have fetched before a flush of their handle has
    /// ended ([`Backend::with_self_coherent`]; default false).
    #[must_use]
    pub const fn with_self_coherent(mut self, yes: bool) -> Self {
        self.self_coherent = yes;
        self
    }

    /// Opening a handle loads the whole image into its cache (default false).
    #[must_use]
    pub const fn with_loads_on_open(mut self, yes: bool) -> Self {
        self.loads_on_open = yes;
        self
    }

    /// Commands can be executed with FUA (default false).
    #[must_use]
    pub const fn with_fua(mut self, yes: bool) -> Self {
        self.fua = yes;
        self
    }

    /// What a failed flush does.
    #[must_use]
    pub const fn with_failure(mut self, failure: Failure) -> Self {
        self.failure = failure;
        self
    }

    /// Which sentence of the contract it breaks.
    #[must_use]
    pub const fn with_breach(mut self, breach: Breach) -> Self {
        self.breach = breach;
        self
    }

    /// Whether each handle has a cache of its own.
    #[must_use]
    pub const fn caches(&self) -> bool {
        self.caches
    }

    /// Whether storage has a volatile cache itself.
    #[must_use]
    pub const fn volatile_storage(&self) -> bool {
        self.volatile || matches!(self.breach, Breach::NotPermanent)
    }

    /// How many blocks a handle's cache reads and writes back at a time.
    #[must_use]
    pub const fn granule(&self) -> u32 {
        self.granule
    }

    /// Whether commands leave nothing in the cache from before a flush.
    #[must_use]
    pub const fn self_coherent(&self) -> bool {
        // A cache of granules would revert its own writes if it were otherwise.
        self.self_coherent || self.granule > 1
    }

    /// Whether opening loads.
    #[must_use]
    pub const fn loads_on_open(&self) -> bool {
        self.loads_on_open && self.caches
    }

    /// Whether commands can be executed with FUA.
    #[must_use]
    pub const fn fua(&self) -> bool {
        self.fua
    }

    /// What a failed flush does.
    #[must_use]
    pub const fn failure(&self) -> Failure {
        self.failure
    }

    /// Which sentence of the contract it breaks.
    #[must_use]
    pub const fn breach(&self) -> Breach {
        self.breach
    }

    /// Whether a coordinator that is given the [description](Self::description) can keep its
    /// promise.
    #[must_use]
    pub const fn keeps_contract(&self) -> bool {
        matches!(self.breach, Breach::None)
    }

    /// Whether [`AfterFailure::Retry`] is right for it.
    #[must_use]
    pub const fn survives_retry(&self) -> bool {
        matches!(self.failure, Failure::Keeps)
    }

    /// The policy that suits what a failed flush does.
    #[must_use]
    pub const fn after_failure(&self) -> AfterFailure {
        if self.survives_retry() {
            AfterFailure::Retry
        } else {
            AfterFailure::Sticky
        }
    }

    /// What its author would tell a coordinator. One that breaks the contract says the same as one
    /// that keeps it: that is what makes it a lie.
    #[must_use]
    pub const fn description(&self) -> Backend {
        Backend::new()
            .with_flush(true)
            .with_fua(self.fua)
            .with_multi_conn(!self.caches && self.volatile)
            .with_caches_nothing(!self.caches && !self.volatile)
            .with_self_coherent(self.self_coherent())
            .with_loads_on_open(self.loads_on_open())
    }
}
