//! What an input configures: the coordinator's options, and what the handles are like.

use nbd_proto::flush::{
    Acknowledge, AfterFailure, Backend, Config, FuaOnReads, Grouping, Mode, Overlap, ThreadModel,
    TrackDirty,
};

use crate::choices::Choices;

/// What holds for all handles of a world.
#[derive(Clone, Copy, Debug)]
pub(super) struct Nature {
    /// Whether there is one cache for all connections, by export.
    pub(super) shared: [bool; 2],
    /// A handle forgets what it has fetched before a flush that has run since.
    pub(super) self_coherent: bool,
    /// A handle that is opened caches the whole export.
    pub(super) loads_on_open: bool,
    /// A write reads, and writes back, whole granules.
    pub(super) granular: bool,
    /// Both exports are the same data.
    pub(super) one_disk: bool,
    /// Nothing fails.
    pub(super) calm: bool,
    /// Whether the configuration and what handles say of themselves are such that something is
    /// promised.
    pub(super) promises: bool,
}

/// How a client's flush is to be carried out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Way {
    /// On every handle of the group that needs it.
    Emulate,
    /// On one handle, for the one cache of all.
    CoversAll,
    /// On the handle of its connection, for that connection.
    Own,
}

impl Way {
    pub(super) fn of(config: &Config, shared: bool) -> Self {
        let ignores = config.acknowledge() == Acknowledge::IgnoreFlush;
        let in_turn = config.thread_model() == ThreadModel::SerializeConnections;
        match config.mode() {
            Mode::Emulate => Self::Emulate,
            _ if shared => Self::CoversAll,
            Mode::Auto if !ignores && !in_turn => Self::Emulate,
            _ => Self::Own,
        }
    }
}

/// What one handle is like, and says of itself.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Kind {
    pub(super) flush: bool,
    pub(super) fua: bool,
    pub(super) multi_conn: bool,
    pub(super) read_only: bool,
    /// It caches nothing.
    pub(super) through: bool,
    pub(super) self_coherent: bool,
    pub(super) loads_on_open: bool,
}

impl Kind {
    pub(super) const fn backend(self) -> Backend {
        Backend::new()
            .with_flush(self.flush)
            .with_fua(self.fua)
            .with_multi_conn(self.multi_conn)
            .with_read_only(self.read_only)
            .with_caches_nothing(self.through)
            .with_self_coherent(self.self_coherent)
            .with_loads_on_open(self.loads_on_open)
    }

    /// It caches, and nothing makes it drop what it has cached.
    pub(super) const fn is_blind(self) -> bool {
        !self.flush && !self.through
    }
}

/// Half of all worlds are such that something is promised; in the others, anything may be
/// configured, and handles may say anything.
pub(super) fn configure(choices: &mut Choices<'_>) -> (Config, Nature) {
    let how = choices.byte();
    let bits = choices.byte();
    let config = Config::new()
        .with_track_dirty(choices.of(&[
            TrackDirty::Connection,
            TrackDirty::Connection,
            TrackDirty::Fast,
            TrackDirty::Off,
        ]))
        .with_granule(choices.of(&[1, 1, 2, 3, 8]))
        .with_max_ranges(choices.of(&[1024, 1, 2, 3]))
        .with_grouping(choices.of(&[Grouping::All, Grouping::ByExport]))
        .with_after_failure(choices.of(&[AfterFailure::Sticky, AfterFailure::Retry]))
        .with_thread_model(choices.of(&[
            ThreadModel::Parallel,
            ThreadModel::SerializeRequests,
            ThreadModel::Parallel,
            ThreadModel::SerializeRequests,
            ThreadModel::SerializeConnections,
        ]))
        .with_acknowledge(choices.of(&[
            Acknowledge::OnCompletion,
            Acknowledge::OnReceipt,
            Acknowledge::WriteThrough,
            Acknowledge::OnReceipt,
            Acknowledge::IgnoreFlush,
        ]))
        .with_fua_on_reads(choices.of(&[FuaOnReads::Ignore, FuaOnReads::Preflush]))
        .with_overlap(choices.of(&[
            Overlap::OrderWrites,
            Overlap::Coherent,
            Overlap::OrderWrites,
            Overlap::Ignore,
        ]));
    let more = choices.byte();
    let by_export = config.grouping() == Grouping::ByExport;
    let first = bits & 1 != 0;
    let mut nature = Nature {
        shared: [first, first != (by_export && more & 1 != 0)],
        self_coherent: bits & 2 != 0,
        loads_on_open: bits & 4 != 0,
        granular: false,
        one_disk: !by_export && more & 4 != 0,
        calm: false,
        promises: how & 1 == 0,
    };
    if nature.promises {
        promising(config, nature, usize::from(how >> 1), more)
    } else {
        nature.granular = more & 2 != 0;
        let config = config.with_mode(choices.of(&[
            Mode::Auto,
            Mode::Emulate,
            Mode::Plugin,
            Mode::Disable,
            Mode::Unsafe,
        ]));
        (config, nature)
    }
}

fn promising(config: Config, mut nature: Nature, mode: usize, more: u8) -> (Config, Nature) {
    let modes = if nature.shared[0] {
        [
            Mode::Auto,
            Mode::Plugin,
            Mode::Disable,
            Mode::Unsafe,
            Mode::Emulate,
        ]
    } else {
        [
            Mode::Auto,
            Mode::Emulate,
            Mode::Plugin,
            Mode::Disable,
            Mode::Unsafe,
        ]
    };
    let mut config = config.with_mode(modes[mode % modes.len()]);
    let emulates = config.mode() == Mode::Emulate;
    if emulates && config.acknowledge() == Acknowledge::IgnoreFlush {
        config = config.with_acknowledge(Acknowledge::OnCompletion);
    }
    let any_shared = nature.shared.contains(&true);
    // What a shared cache that is emulated still holds after its last handle is nobody's promise.
    nature.calm = emulates && any_shared;
    // What a handle that is not coherent with itself makes of a granule is its own affair.
    nature.granular = more & 2 != 0
        && nature.self_coherent
        && !any_shared
        && config.overlap() != Overlap::Ignore
        && Way::of(&config, false) == Way::Emulate;
    (config, nature)
}

/// What a handle is like: true to the nature of the world, or, where nothing is promised, anything.
pub(super) fn kind(nature: Nature, export: u8, choices: &mut Choices<'_>) -> Kind {
    let bits = choices.byte();
    if !nature.promises {
        return Kind {
            flush: bits & 3 != 0,
            fua: bits & 4 != 0,
            multi_conn: bits & 8 != 0,
            read_only: bits & 0x30 == 0x30,
            through: bits & 0xc0 == 0xc0,
            self_coherent: nature.self_coherent,
            loads_on_open: nature.loads_on_open,
        };
    }
    let shared = nature.shared[usize::from(export & 1)];
    let through = !shared && bits & 0x30 == 0x30;
    let blind = bits & 0xc0 == 0xc0;
    Kind {
        flush: !blind,
        fua: bits & 1 != 0,
        multi_conn: shared,
        read_only: bits & 0xe == 0xe || (blind && !through),
        through,
        self_coherent: nature.self_coherent || shared,
        loads_on_open: nature.loads_on_open && !shared,
    }
}
