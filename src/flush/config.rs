//! What a coordinator is told to do: its options.

use core::fmt;
use core::str::FromStr;

/// Whether flushes are replicated across connections, and whether clients are told so.
///
/// The words are those of nbdkit's multi-conn filter (`multi-conn-mode`), for parsing and for
/// printing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Mode {
    /// Like [`Plugin`](Self::Plugin) where the backend has multi-conn, else like
    /// [`Emulate`](Self::Emulate); like [`Disable`](Self::Disable) where connections are
    /// serialized, and like [`Plugin`](Self::Plugin) with [`Acknowledge::IgnoreFlush`].
    #[default]
    Auto,
    /// A flush on one connection is carried out on every handle that needs it; multi-conn is
    /// advertised (unless connections are [serialized](ThreadModel::SerializeConnections)).
    Emulate,
    /// A flush goes to the handle of its own connection; with a backend that has multi-conn, to one
    /// of those whose clients ask. Multi-conn is advertised if the backend has it. Without
    /// multi-conn nothing is promised but that the flush covers what completed on its connection:
    /// what a client reads is then the backend's affair alone.
    Plugin,
    /// As [`Plugin`](Self::Plugin), but multi-conn is never advertised.
    Disable,
    /// As [`Plugin`](Self::Plugin), but multi-conn is advertised, true or not (unless
    /// connections are [serialized](ThreadModel::SerializeConnections)).
    ///
    /// **Clients that believe it lose data** if the backend caches per connection. It is for
    /// measurements only.
    Unsafe,
}

/// How much is remembered to avoid backend flushes (`multi-conn-track-dirty` of nbdkit's filter).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TrackDirty {
    /// Per connection: a handle is flushed only if it has something to write out, or may hold
    /// something stale.
    #[default]
    Connection,
    /// Per group: nothing is flushed while the whole group is clean, else every handle is. Outside
    /// emulation a mark for the group is used only where one handle covers all; where each is on
    /// its own, this is [`Connection`](Self::Connection).
    Fast,
    /// Nothing: every flush of a client reaches the backend.
    Off,
}

/// Which connections share data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Grouping {
    /// All of them, whatever export they use. Always safe.
    #[default]
    All,
    /// Those that use the same export (`multi-conn-exportname=true` of nbdkit's filter). Safe
    /// only where different exports never share contents.
    ByExport,
}

/// What a failed backend flush means for later ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AfterFailure {
    /// The data may be gone, as it is after a failed `fsync` on Linux: every later flush of the
    /// group fails, until a client was told of it and the group has no connection left (those that
    /// are being opened count), or it is [reset](super::FlushCoordinator::reset). Where connections
    /// are on their own, every later flush of the connection.
    #[default]
    Sticky,
    /// The backend keeps what it could not write: a later flush may succeed. What is gone all the
    /// same, with a handle that was lost or released, fails one flush of each connection of the
    /// group.
    Retry,
}

/// What happens to modifications of the same bytes through different handles.
///
/// Caches are written out in no particular order, so that an older write could reach storage
/// after a newer one and win.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Overlap {
    /// The earlier one is written out before the later one executes, while emulating.
    #[default]
    OrderWrites,
    /// They execute as they come: right only if clients never modify the same
    /// [granule](Config::granule) through two connections without a flush in between.
    Ignore,
    /// As [`OrderWrites`](Self::OrderWrites), and commands that load (read, cache, block status)
    /// find what had been modified through other handles when they arrived, without any flush by a
    /// client, while emulating. They wait until it is written out, and until their own handle has
    /// dropped what may be older; if that fails, they fail, unexecuted.
    ///
    /// It is for clients that share an export without agreeing on flushes. Where one reads what
    /// another writes, it costs two backend flushes at a time. What a handle has lost in a failed
    /// flush, or was lost with it, fails only the commands that wait for it then; it is for
    /// flushes to tell the others.
    Coherent,
}

/// What FUA means on a read, where flush is advertised.
///
/// The protocol requires only that the flag is accepted (proto.md "Command flags"). On other
/// commands that write nothing it never means anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FuaOnReads {
    /// Nothing.
    #[default]
    Ignore,
    /// The read is executed after a flush, as if its client had sent one when the read arrived
    /// and waited for the answer: it finds what had been written through any connection that a
    /// flush covers, and that is on permanent storage. If the flush fails, the read is answered
    /// with its error, which then counts as reported.
    Preflush,
}

/// When a modification is answered, and what its answer means.
///
/// ```text
///                 the reply comes                   it means
/// WriteThrough    after the backend's flush or FUA  on permanent storage
/// OnCompletion    after execution                   executed; a flush makes it permanent
/// OnReceipt       before execution                  accepted; the next flush tells of failures
/// IgnoreFlush     after execution                   executed; a flush makes nothing permanent
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Acknowledge {
    /// When it has been executed.
    #[default]
    OnCompletion,
    /// When it is on permanent storage and, while emulating, visible to all: as if every
    /// modification carried FUA, advertised or not. A flush that follows has nothing to write out.
    WriteThrough,
    /// When it begins to execute, unless it carries FUA. What overlaps with it, and flushes, wait
    /// for its end, so that clients notice nothing but that an error may come late: the
    /// [next flush](super#acknowledging) reports it, to every client that must know. What a crash
    /// of the server takes is what a client may lose of any volatile cache: what it had not
    /// flushed.
    ///
    /// A modification that has to wait before it may begin is answered when it begins. That is
    /// later than on receipt, which is always safe, and slows down a client that is ahead of the
    /// backend.
    OnReceipt,
    /// When it has been executed; but flushes and FUA are answered without any flush of the
    /// backend, as if they had done what they ask for.
    ///
    /// **Data is lost in a crash**, whatever clients have flushed. It is for data that nobody
    /// needs after one, and for measurements. Multi-conn is advertised only where clients see each
    /// other's data without a flush, or in [`Mode::Unsafe`].
    IgnoreFlush,
}

/// What the server does at the same time: the words are those of nbdkit's thread models.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ThreadModel {
    /// Any number of connections, and of commands on each.
    #[default]
    Parallel,
    /// One connection after the other: [`Mode::Auto`] then means [`Mode::Disable`], and no mode
    /// advertises multi-conn, which would only make clients wait for a second connection. It is the
    /// server that lets the next one wait; the coordinator takes any number.
    SerializeConnections,
    /// Any number of connections, but never two calls on one backend handle: at most one command
    /// or one flush is under way on each. The others wait in the order in which they came. Opening
    /// and closing are no calls here: they come before and after all others.
    SerializeRequests,
}

/// A word that is not one of an option's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown value, expected {expected}")]
pub struct UnknownValue {
    /// The words that would have been understood.
    pub expected: &'static str,
}

macro_rules! words {
    ($type:ident, $expected:literal, $( $value:ident: $word:literal $(| $alias:literal)* ),+) => {
        impl FromStr for $type {
            type Err = UnknownValue;

            fn from_str(word: &str) -> Result<Self, UnknownValue> {
                match word {
                    $( $word $(| $alias)* => Ok(Self::$value), )+
                    _ => Err(UnknownValue { expected: $expected }),
                }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(match self {
                    $( Self::$value => $word, )+
                })
            }
        }
    };
}

words!(Mode, "auto, emulate, plugin, disable or unsafe",
    Auto: "auto", Emulate: "emulate", Plugin: "plugin", Disable: "disable", Unsafe: "unsafe");
words!(TrackDirty, "connection, fast or off",
    Connection: "connection" | "conn", Fast: "fast", Off: "off");
words!(Grouping, "true or false (whether the export name counts)",
    All: "false" | "0" | "no" | "off" | "f" | "n",
    ByExport: "true" | "1" | "yes" | "on" | "t" | "y");
words!(AfterFailure, "sticky or retry", Sticky: "sticky", Retry: "retry");
words!(Overlap, "order-writes, ignore or coherent",
    OrderWrites: "order-writes", Ignore: "ignore", Coherent: "coherent");
words!(FuaOnReads, "ignore or preflush", Ignore: "ignore", Preflush: "preflush");
words!(Acknowledge, "on-completion, write-through, on-receipt or ignore-flush",
    OnCompletion: "on-completion", WriteThrough: "write-through", OnReceipt: "on-receipt",
    IgnoreFlush: "ignore-flush");
words!(ThreadModel, "parallel, serialize_requests or serialize_connections",
    Parallel: "parallel", SerializeConnections: "serialize_connections",
    SerializeRequests: "serialize_requests");

/// The options of a coordinator. `Config::new()` is right for a server that knows nothing
/// special about its backend.
///
/// ```
/// use nbd_proto::flush::{Config, Mode, TrackDirty};
///
/// let config = Config::new()
///     .with_mode(Mode::Emulate)
///     .with_track_dirty("conn".parse()?);
/// assert_eq!(config.track_dirty(), TrackDirty::Connection);
/// # Ok::<(), nbd_proto::flush::UnknownValue>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(test, derive(Hash))]
pub struct Config {
    mode: Mode,
    track_dirty: TrackDirty,
    grouping: Grouping,
    after_failure: AfterFailure,
    overlap: Overlap,
    granule: u32,
    max_ranges: u32,
    thread_model: ThreadModel,
    fua_on_reads: FuaOnReads,
    acknowledge: Acknowledge,
}

impl Config {
    /// The defaults: the first value of each option, a granule of one byte.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            mode: Mode::Auto,
            track_dirty: TrackDirty::Connection,
            grouping: Grouping::All,
            after_failure: AfterFailure::Sticky,
            overlap: Overlap::OrderWrites,
            granule: 1,
            // Less than 100 KiB a connection; a guest with more scattered writes than this
            // between two flushes gains little from exact ranges.
            max_ranges: 1024,
            thread_model: ThreadModel::Parallel,
            fua_on_reads: FuaOnReads::Ignore,
            acknowledge: Acknowledge::OnCompletion,
        }
    }

    /// Sets the mode.
    #[must_use]
    pub const fn with_mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// Sets how dirt is tracked.
    #[must_use]
    pub const fn with_track_dirty(mut self, level: TrackDirty) -> Self {
        self.track_dirty = level;
        self
    }

    /// Sets which connections share data.
    #[must_use]
    pub const fn with_grouping(mut self, grouping: Grouping) -> Self {
        self.grouping = grouping;
        self
    }

    /// Sets what a failed flush means.
    #[must_use]
    pub const fn with_after_failure(mut self, policy: AfterFailure) -> Self {
        self.after_failure = policy;
        self
    }

    /// Sets what happens to overlapping modifications.
    #[must_use]
    pub const fn with_overlap(mut self, overlap: Overlap) -> Self {
        self.overlap = overlap;
        self
    }

    /// Sets the unit, in bytes, from an offset of 0 on, in which a handle's cache reads and writes
    /// back (default 1: it remembers exactly the bytes that were written). With a larger unit a
    /// write is a read-modify-write of whole granules, and writes that share a granule are kept in
    /// order like writes that overlap. 0 counts as 1.
    ///
    /// What a write is merged with must not be older than what has completed on the same handle,
    /// even where it was fetched before a flush that has ended meanwhile: [self-coherent] or not,
    /// no handle may revert with the rest of a granule what was written through itself.
    ///
    /// [self-coherent]: super::Backend::with_self_coherent
    #[must_use]
    pub const fn with_granule(mut self, bytes: u32) -> Self {
        self.granule = if bytes == 0 { 1 } else { bytes };
        self
    }

    /// Sets how many separate ranges of unflushed modifications are remembered per connection
    /// (default 1024, at least 1; 1024 take less than 100 KiB). Beyond it ranges merge: more
    /// flushes, never fewer.
    #[must_use]
    pub const fn with_max_ranges(mut self, count: u32) -> Self {
        self.max_ranges = if count == 0 { 1 } else { count };
        self
    }

    /// Sets what the server does at the same time.
    #[must_use]
    pub const fn with_thread_model(mut self, model: ThreadModel) -> Self {
        self.thread_model = model;
        self
    }

    /// Sets what FUA means on a read.
    #[must_use]
    pub const fn with_fua_on_reads(mut self, meaning: FuaOnReads) -> Self {
        self.fua_on_reads = meaning;
        self
    }

    /// Sets when modifications are answered.
    #[must_use]
    pub const fn with_acknowledge(mut self, when: Acknowledge) -> Self {
        self.acknowledge = when;
        self
    }

    /// The mode.
    #[must_use]
    pub const fn mode(&self) -> Mode {
        self.mode
    }

    /// How dirt is tracked.
    #[must_use]
    pub const fn track_dirty(&self) -> TrackDirty {
        self.track_dirty
    }

    /// Which connections share data.
    #[must_use]
    pub const fn grouping(&self) -> Grouping {
        self.grouping
    }

    /// What a failed flush means.
    #[must_use]
    pub const fn after_failure(&self) -> AfterFailure {
        self.after_failure
    }

    /// What happens to overlapping modifications.
    #[must_use]
    pub const fn overlap(&self) -> Overlap {
        self.overlap
    }

    /// The unit of the backend's caches, in bytes.
    #[must_use]
    pub const fn granule(&self) -> u32 {
        self.granule
    }

    /// How many ranges are remembered per connection.
    #[must_use]
    pub const fn max_ranges(&self) -> u32 {
        self.max_ranges
    }

    /// What the server does at the same time.
    #[must_use]
    pub const fn thread_model(&self) -> ThreadModel {
        self.thread_model
    }

    /// What FUA means on a read.
    #[must_use]
    pub const fn fua_on_reads(&self) -> FuaOnReads {
        self.fua_on_reads
    }

    /// When modifications are answered.
    #[must_use]
    pub const fn acknowledge(&self) -> Acknowledge {
        self.acknowledge
    }
}

impl Default for Config {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn options_parse_from_and_print_as_the_words_of_nbdkits_filter() {
        for mode in ["auto", "emulate", "plugin", "disable", "unsafe"] {
            assert_eq!(mode.parse::<Mode>().unwrap().to_string(), mode);
        }
        for level in ["connection", "fast", "off"] {
            assert_eq!(level.parse::<TrackDirty>().unwrap().to_string(), level);
        }
        for model in ["parallel", "serialize_connections", "serialize_requests"] {
            assert_eq!(model.parse::<ThreadModel>().unwrap().to_string(), model);
        }
        for overlap in ["order-writes", "ignore", "coherent"] {
            assert_eq!(overlap.parse::<Overlap>().unwrap().to_string(), overlap);
        }
        for meaning in ["ignore", "preflush"] {
            assert_eq!(meaning.parse::<FuaOnReads>().unwrap().to_string(), meaning);
        }
        assert_eq!("conn".parse(), Ok(TrackDirty::Connection));
        for (yes, no) in [
            ("true", "false"),
            ("1", "0"),
            ("yes", "no"),
            ("t", "f"),
            ("y", "n"),
        ] {
            assert_eq!(yes.parse(), Ok(Grouping::ByExport));
            assert_eq!(no.parse(), Ok(Grouping::All));
        }
        assert!("Emulate".parse::<Mode>().is_err());
        for when in [
            "on-completion",
            "write-through",
            "on-receipt",
            "ignore-flush",
        ] {
            assert_eq!(when.parse::<Acknowledge>().unwrap().to_string(), when);
        }
        assert_eq!(
            "x".parse::<AfterFailure>().unwrap_err().to_string(),
            "unknown value, expected sticky or retry"
        );
    }

    #[test]
    fn the_first_value_of_each_option_is_the_default() {
        let config = Config::default();
        assert_eq!(config.mode(), Mode::Auto);
        assert_eq!(config.track_dirty(), TrackDirty::Connection);
        assert_eq!(config.grouping(), Grouping::All);
        assert_eq!(config.after_failure(), AfterFailure::Sticky);
        assert_eq!(config.overlap(), Overlap::OrderWrites);
        assert_eq!(config.thread_model(), ThreadModel::Parallel);
        assert_eq!(config.fua_on_reads(), FuaOnReads::Ignore);
        assert_eq!(config.acknowledge(), Acknowledge::OnCompletion);
        assert_eq!(config.with_granule(0).granule(), 1);
        assert_eq!(config.max_ranges(), 1024);
        assert_eq!(config.with_max_ranges(7).max_ranges(), 7);
        assert_eq!(config.with_max_ranges(0).max_ranges(), 1);
    }
}
