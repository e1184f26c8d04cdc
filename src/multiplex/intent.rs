//! What the caller wants of several connections.

/// What the connections are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Use {
    /// Nothing will be written, be the export writable or not.
    Read,
    /// Every byte is written at most once, none is read back, and nothing has to be durable before
    /// the end, as when an image is copied onto the export. The source of a copy is
    /// [`Read`](Self::Read).
    Copy,
    /// Reads and writes in any order, with flushes in between: a disk for a file system or a
    /// database.
    Disk,
}

/// How far to go where the server does not advertise multi-conn.
///
/// proto.md "Transmission flags": "In the absence of this flag, clients SHOULD NOT multiplex their
/// commands over more than one connection to the export." The text makes no exception, not even
/// for read-only exports. Each level but the first is a case where the caller knows something that
/// the server did not say, and answers for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Caution {
    /// As the text has it: one connection, whatever it is for.
    #[default]
    Strict,
    /// Several where nothing will be written, because the export is read-only or the use is
    /// [`Use::Read`]. Nothing of ours can then be held back in the cache of one connection, and no
    /// flush is needed. The caller answers for it that nobody else writes meanwhile: two
    /// connections may have cached different versions of what changes.
    Readers,
    /// As [`Readers`](Self::Readers); and where something is written, several with every range
    /// pinned to one of them, and a flush on each. The caller answers for it that the server's
    /// connections share their data at all, and that none of their caches works in units larger
    /// than the [granule](Intent::with_granule).
    Insist,
}

/// What the caller wants: what for, how many connections at most, and how cautiously.
///
/// ```
/// use nbd_proto::multiplex::{Caution, Intent, Use};
///
/// let intent = Intent::new(Use::Copy, 4).with_caution(Caution::Insist);
/// assert_eq!(intent.connections(), 4);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Intent {
    pub(super) usage: Use,
    pub(super) connections: u32,
    pub(super) caution: Caution,
    pub(super) granule: Option<u64>,
}

impl Intent {
    /// At most so many connections, and at least one; [`Caution::Strict`].
    #[must_use]
    pub const fn new(usage: Use, connections: u32) -> Self {
        Self {
            usage,
            connections: if connections == 0 { 1 } else { connections },
            caution: Caution::Strict,
            granule: None,
        }
    }

    /// Sets how far to go where multi-conn is not advertised.
    #[must_use]
    pub const fn with_caution(mut self, caution: Caution) -> Self {
        self.caution = caution;
        self
    }

    /// Sets the size in bytes of the ranges that are pinned, where they are pinned. It is rounded
    /// up to a power of two that is no less than the preferred block size. By default a range is
    /// as large as fits, up to 1 MiB.
    #[must_use]
    pub const fn with_granule(mut self, granule: u64) -> Self {
        self.granule = Some(granule);
        self
    }

    /// What the connections are for.
    #[must_use]
    pub const fn usage(&self) -> Use {
        self.usage
    }

    /// The most connections.
    #[must_use]
    pub const fn connections(&self) -> u32 {
        self.connections
    }

    /// How far to go where multi-conn is not advertised.
    #[must_use]
    pub const fn caution(&self) -> Caution {
        self.caution
    }
}
