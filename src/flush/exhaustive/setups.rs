//! The systems that are explored.

use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

use super::world::{Budget, Caches, Setup};
use crate::flush::backend::Backend;
use crate::flush::config::{
    Acknowledge, AfterFailure, Config, FuaOnReads, Mode, Overlap, ThreadModel, TrackDirty,
};

const LEVELS: [TrackDirty; 3] = [TrackDirty::Connection, TrackDirty::Fast, TrackDirty::Off];
const POLICIES: [AfterFailure; 2] = [AfterFailure::Sticky, AfterFailure::Retry];

const NOTHING: Budget = Budget {
    commands: 0,
    writes: 0,
    fuas: 0,
    reads: 0,
    preflushes: 0,
    flushes: 0,
    wide: 0,
    write_backs: 0,
    flush_faults: 0,
    write_faults: 0,
    connects: 0,
    disconnects: 0,
    losses: 0,
    revokes: 0,
};

fn emulate() -> Config {
    Config::new().with_mode(Mode::Emulate)
}

fn caching() -> Backend {
    Backend::new().with_flush(true)
}

/// Two connections with a cache each, one cell.
fn system(name: &str, budget: Budget) -> Setup {
    Setup {
        name: name.into(),
        config: emulate(),
        backend: caching(),
        caches: Caches::Own,
        connections: 2,
        cells: 1,
        alone: false,
        lazy: false,
        minimal: true,
        counts_rounds: false,
        reads_back: false,
        budget,
    }
}

/// The same at every level of tracking.
fn at_each_level(setup: &Setup) -> Vec<Setup> {
    let at = |level: TrackDirty| Setup {
        name: format!("{}, {level}", setup.name),
        config: setup.config.with_track_dirty(level),
        ..setup.clone()
    };
    LEVELS.map(at).to_vec()
}

fn with_each_policy(setups: &[Setup]) -> Vec<Setup> {
    let with = |setup: &Setup, policy: AfterFailure| Setup {
        name: format!("{}, {policy}", setup.name),
        config: setup.config.with_after_failure(policy),
        ..setup.clone()
    };
    let each = setups
        .iter()
        .flat_map(|it| POLICIES.map(|policy| with(it, policy)));
    each.collect()
}

/// As it is, coherent with itself, and loading nothing when it opens.
fn with_each_kind(setups: Vec<Setup>) -> Vec<Setup> {
    let mut all = setups.clone();
    for setup in setups {
        let mut coherent = setup.clone();
        coherent.name += ", self-coherent";
        coherent.backend = setup.backend.with_self_coherent(true);
        let mut opens_empty = setup;
        opens_empty.name += ", opens empty";
        opens_empty.backend = opens_empty.backend.with_loads_on_open(false);
        all.extend([coherent, opens_empty]);
    }
    all
}

/// T1 to T3, T6: what is dirty, and what a flush makes clean.
pub(super) fn tracking(more: u8) -> Vec<Setup> {
    let budget = Budget {
        commands: 4 + more,
        writes: 2,
        reads: more,
        flushes: 2,
        write_backs: 1,
        write_faults: 1,
        ..NOTHING
    };
    at_each_level(&system("tracking", budget))
}

/// R1 to R4: what is stale.
pub(super) fn rounds(more: u8) -> Vec<Setup> {
    let budget = Budget {
        commands: 4 + more,
        writes: 1 + more,
        reads: 2,
        flushes: 2,
        ..NOTHING
    };
    let mut all = with_each_kind(at_each_level(&system("rounds", budget)));
    let budget = Budget {
        commands: 5,
        writes: 2,
        flushes: 3,
        ..NOTHING
    };
    let mut many = system("many flushes", budget);
    many.connections = 3 + more;
    many.counts_rounds = true;
    let mut fast = many.clone();
    fast.name += ", fast";
    fast.config = fast.config.with_track_dirty(TrackDirty::Fast);
    let budget = Budget {
        commands: 3 + more,
        writes: 2,
        reads: 1,
        flushes: 1,
        wide: 1,
        ..NOTHING
    };
    let mut cells = system("two cells", budget);
    cells.cells = 2;
    all.extend([many, fast, cells]);
    all
}

/// R5, O2: FUA.
pub(super) fn fua(more: u8) -> Vec<Setup> {
    let budget = Budget {
        commands: 4 + more,
        writes: 1 + more,
        fuas: 1,
        reads: 2,
        flushes: 1,
        ..NOTHING
    };
    let long = system("fua", budget);
    let mut short = long.clone();
    short.name += ", shorter";
    short.budget.commands -= 1;
    let mut all = with_each_kind(at_each_level(&short));
    if more == 0 {
        all.push(long);
    }
    all
}

/// E1 to E3, and what fails because of them.
pub(super) fn failures(more: u8) -> Vec<Setup> {
    let budget = Budget {
        commands: 3 + more,
        writes: 2,
        fuas: 1,
        reads: 1,
        flushes: 2,
        flush_faults: 1 + more,
        ..NOTHING
    };
    let two = system("failures", budget);
    let mut three = two.clone();
    three.name += " of three";
    three.connections = 3;
    let mut cells = two.clone();
    cells.name += ", two cells";
    cells.cells = 2;
    cells.budget.wide = 1;
    cells.budget.reads = 0;
    cells.budget.fuas = more;
    let mut all = at_each_level(&two);
    all.extend([three, cells]);
    with_each_policy(&all)
}

/// C1 to C3: connections come and go.
pub(super) fn coming_and_going(more: u8) -> Vec<Setup> {
    let budget = Budget {
        commands: 2 + more,
        writes: 2,
        fuas: 1,
        reads: 1,
        flushes: 2,
        connects: 1,
        disconnects: 1,
        ..NOTHING
    };
    let short = system("coming and going", budget);
    let mut long = short.clone();
    long.name += ", longer";
    long.budget.commands += 1;
    long.budget.reads = more;
    let mut losing = long.clone();
    losing.name = "losing".into();
    losing.budget.losses = 1;
    losing.budget.connects = more;
    losing.budget.disconnects = more;
    let mut failing = long.clone();
    failing.name = "leaving and failing".into();
    failing.budget.flush_faults = 1;
    failing.budget.disconnects = 2;
    failing.budget.fuas = more;
    let mut all = with_each_kind(at_each_level(&short));
    if more == 0 {
        all.push(long);
        all.extend(with_each_policy(&[losing, failing]));
    }
    all
}

/// O1 to O3: what overlaps.
pub(super) fn order(more: u8) -> Vec<Setup> {
    let budget = Budget {
        commands: 3 + more,
        writes: 3,
        fuas: 1,
        reads: more,
        flushes: 1,
        write_backs: 1,
        ..NOTHING
    };
    let overlapping = system("overlapping", budget);
    let mut long = overlapping.clone();
    long.name += ", longer";
    long.budget.commands += 1;
    let mut failing = overlapping.clone();
    failing.name += ", failing";
    failing.budget.flush_faults = 1;
    let mut cells = overlapping.clone();
    cells.name += ", two cells";
    cells.cells = 2;
    cells.budget.wide = 2;
    cells.budget.fuas = more;
    let mut merged = cells.clone();
    merged.name += ", one range";
    merged.config = merged.config.with_max_ranges(1);
    // For want of room a handle is flushed that has nothing to write out yet.
    merged.minimal = false;
    let mut granule = overlapping.clone();
    granule.name = "neighbours".into();
    granule.cells = 2;
    granule.config = granule.config.with_granule(2);
    granule.budget.reads = 1;
    granule.budget.flush_faults = more;
    let mut all = at_each_level(&overlapping);
    all.extend(with_each_policy(&[failing]));
    if more == 0 {
        all.extend([long, cells, merged]);
        all.extend(with_each_kind(vec![granule]));
    }
    all
}

/// One cache that all share.
pub(super) fn shared(more: u8) -> Vec<Setup> {
    let budget = Budget {
        commands: 3 + more,
        writes: 2,
        fuas: 1,
        flushes: 2,
        flush_faults: 1,
        losses: 1,
        ..NOTHING
    };
    let mut all = Vec::new();
    for (mode, fua) in [(Mode::Auto, false), (Mode::Plugin, true)] {
        let mut setup = system(&format!("shared, {mode}, fua {fua}"), budget);
        setup.config = Config::new().with_mode(mode);
        setup.backend = caching().with_multi_conn(true).with_fua(fua);
        setup.caches = Caches::Shared;
        // FUA does not join the flush of another handle. It takes more commands to find that.
        setup.minimal = more == 0;
        all.extend(with_each_policy(&at_each_level(&setup)));
    }
    all
}

/// Handles that cache nothing, alone and beside others.
pub(super) fn through(more: u8) -> Vec<Setup> {
    let budget = Budget {
        commands: 3 + more,
        writes: 2,
        fuas: 1,
        reads: 1,
        flushes: 1,
        ..NOTHING
    };
    let mut mixed = system("mixed", budget);
    mixed.caches = Caches::Mixed;
    let mut long = mixed.clone();
    long.name += ", longer";
    long.budget.commands += 1;
    let mut failing = mixed.clone();
    failing.name += ", failing";
    failing.budget.flush_faults = 1;
    failing.budget.losses = 1;
    let mut three = mixed.clone();
    three.name += ", three";
    three.connections = 3;
    let mut nothing = system("caches nothing", budget);
    nothing.backend = Backend::new().with_caches_nothing(true);
    nothing.budget.commands += 1;
    let mut all = at_each_level(&mixed);
    all.extend(with_each_policy(&[failing]));
    all.extend([long, three, nothing]);
    all
}

/// Where multi-conn is not promised, each connection has its own promise.
pub(super) fn alone(more: u8) -> Vec<Setup> {
    let budget = Budget {
        commands: 3 + more,
        writes: 2,
        fuas: 1,
        reads: 1,
        flushes: 2,
        flush_faults: 1,
        disconnects: more,
        ..NOTHING
    };
    let mut all = Vec::new();
    for (mode, fua) in [(Mode::Disable, false), (Mode::Plugin, true)] {
        let mut setup = system(&format!("alone, {mode}, fua {fua}"), budget);
        setup.config = Config::new().with_mode(mode);
        setup.backend = caching().with_fua(fua);
        setup.alone = true;
        // What a write with native FUA leaves in its cache counts as older than what it wrote.
        setup.minimal = !fua;
        all.extend(with_each_policy(&at_each_level(&setup)));
    }
    all
}

/// The caller takes its time to do what the coordinator wants.
pub(super) fn lazy(more: u8) -> Vec<Setup> {
    let budget = Budget {
        commands: 3 + more,
        writes: 2,
        fuas: 1,
        reads: 1,
        flushes: 2,
        ..NOTHING
    };
    let mut plain = system("lazy", budget);
    plain.lazy = true;
    // A command that was to be executed on a lost handle counts as executed, taken or not.
    plain.minimal = false;
    let mut failing = plain.clone();
    failing.name += ", failing";
    failing.budget.flush_faults = 1;
    failing.budget.losses = 1;
    failing.budget.fuas = more;
    let mut all = with_each_policy(&[failing]);
    all.push(plain);
    all
}

/// A handle is called for one thing at a time.
pub(super) fn one_at_a_time(more: u8) -> Vec<Setup> {
    let budget = Budget {
        commands: 4 + more,
        writes: 2,
        fuas: 1,
        reads: 1,
        flushes: 1 + more,
        ..NOTHING
    };
    let mut plain = system("one at a time", budget);
    plain.config = plain
        .config
        .with_thread_model(ThreadModel::SerializeRequests);
    let mut failing = plain.clone();
    failing.name += ", failing";
    failing.budget.commands -= 1;
    failing.budget.flush_faults = 1;
    failing.budget.losses = 1;
    failing.budget.disconnects = more;
    let mut cells = plain.clone();
    cells.name += ", two cells";
    cells.cells = 2;
    cells.budget.wide = 1;
    cells.budget.fuas = more;
    let mut coherent = plain.clone();
    coherent.name += ", coherent";
    coherent.config = coherent.config.with_overlap(Overlap::Coherent);
    let mut short = plain.clone();
    short.name += ", shorter";
    short.budget.commands -= 1;
    let mut all = at_each_level(&short);
    all.extend(with_each_policy(&[failing]));
    all.extend([plain, cells, coherent]);
    all
}

/// Reads find what others have modified, without any flush.
pub(super) fn coherent(more: u8) -> Vec<Setup> {
    let budget = Budget {
        commands: 3 + more,
        writes: 2,
        fuas: 1,
        reads: 2,
        flushes: 1,
        ..NOTHING
    };
    let mut plain = system("coherent", budget);
    plain.config = plain.config.with_overlap(Overlap::Coherent);
    let mut long = plain.clone();
    long.name += ", longer";
    long.budget.commands += 1;
    long.budget.fuas = more;
    let mut failing = plain.clone();
    failing.name += ", failing";
    failing.budget.reads = 1 + more;
    failing.budget.flush_faults = 1;
    failing.budget.losses = 1;
    let mut three = plain.clone();
    three.name += ", three";
    three.connections = 3;
    let mut cells = plain.clone();
    cells.name += ", two cells";
    cells.cells = 2;
    cells.budget.wide = 1;
    cells.budget.fuas = more;
    let mut mixed = plain.clone();
    mixed.name += ", mixed";
    mixed.caches = Caches::Mixed;
    let mut all = with_each_kind(at_each_level(&plain));
    all.extend(with_each_policy(&[failing]));
    all.extend([three, cells, mixed]);
    if more == 0 {
        all.push(long);
    }
    all
}

/// Overlapping writes have no order; all else is as ever.
pub(super) fn unordered(more: u8) -> Vec<Setup> {
    let budget = Budget {
        commands: 4 + more,
        writes: 3,
        fuas: 1,
        reads: 1,
        flushes: 1,
        ..NOTHING
    };
    let mut plain = system("unordered", budget);
    plain.budget.fuas = more;
    plain.config = plain.config.with_overlap(Overlap::Ignore);
    let mut short = plain.clone();
    short.name += ", shorter";
    short.budget.commands -= 1;
    short.budget.fuas = 1;
    let mut failing = short.clone();
    failing.name += ", failing";
    failing.budget.flush_faults = 1;
    let mut all = at_each_level(&short);
    all.extend(with_each_policy(&[failing]));
    all.push(plain);
    all
}

/// The ways in which flushes are carried out: by rounds, on one handle, on each connection's own.
fn in_each_way(setup: &Setup) -> Vec<Setup> {
    let mut shared = setup.clone();
    shared.name += ", shared";
    shared.config = shared.config.with_mode(Mode::Auto);
    shared.backend = shared.backend.with_multi_conn(true);
    shared.caches = Caches::Shared;
    let mut alone = setup.clone();
    alone.name += ", alone";
    alone.config = alone.config.with_mode(Mode::Plugin);
    alone.alone = true;
    vec![setup.clone(), shared, alone]
}

/// Writes are answered when they begin.
pub(super) fn on_receipt(more: u8) -> Vec<Setup> {
    let budget = Budget {
        commands: 3 + more,
        writes: 2,
        fuas: 1,
        reads: 1,
        flushes: 2,
        write_faults: 1,
        ..NOTHING
    };
    let mut plain = system("on receipt", budget);
    plain.config = plain.config.with_acknowledge(Acknowledge::OnReceipt);
    let mut losing = plain.clone();
    losing.name += ", losing";
    losing.budget.losses = 1;
    losing.budget.flush_faults = 1;
    losing.budget.fuas = 0;
    let mut back = plain.clone();
    back.name += ", reading back";
    back.budget.write_faults = 0;
    back.backend = back.backend.with_self_coherent(true);
    back.reads_back = true;
    let mut cells = plain.clone();
    cells.name += ", two cells";
    cells.cells = 2;
    cells.budget.wide = 1;
    cells.budget.fuas = 0;
    let mut all = Vec::new();
    for setup in [plain, losing] {
        all.extend(with_each_policy(&in_each_way(&setup)));
    }
    all.extend(in_each_way(&back));
    all.push(cells);
    all
}

/// Every write is as if it carried FUA.
pub(super) fn write_through(more: u8) -> Vec<Setup> {
    let budget = Budget {
        commands: 3 + more,
        writes: 2,
        reads: 2,
        flushes: 1,
        flush_faults: 1,
        ..NOTHING
    };
    let mut plain = system("write through", budget);
    plain.config = plain.config.with_acknowledge(Acknowledge::WriteThrough);
    let mut long = plain.clone();
    long.name += ", longer";
    long.budget.commands += 1;
    long.budget.reads = 1 + more;
    long.budget.flush_faults = 0;
    let mut all = with_each_policy(&in_each_way(&plain));
    all.extend(in_each_way(&long));
    // What is as good as FUA does not join the flush of another handle.
    let shared = all.iter_mut().filter(|it| it.caches == Caches::Shared);
    shared.for_each(|it| it.minimal = false);
    all
}

/// A read with FUA comes after a flush.
pub(super) fn preflush(more: u8) -> Vec<Setup> {
    let budget = Budget {
        commands: 3 + more,
        writes: 2,
        reads: 1,
        preflushes: 2,
        flushes: 1,
        ..NOTHING
    };
    let mut plain = system("preflush", budget);
    plain.config = plain.config.with_fua_on_reads(FuaOnReads::Preflush);
    let mut failing = plain.clone();
    failing.name += ", failing";
    failing.budget.flush_faults = 1;
    failing.budget.disconnects = 1;
    let mut serialized = plain.clone();
    serialized.name += ", one at a time";
    serialized.config = serialized
        .config
        .with_thread_model(ThreadModel::SerializeRequests);
    let mut all = Vec::new();
    for setup in at_each_level(&plain) {
        all.extend(in_each_way(&setup));
    }
    all.extend(with_each_policy(&[failing]));
    all.push(serialized);
    all
}

/// Clients vanish, and send again through others what was not answered.
pub(super) fn revoking(more: u8) -> Vec<Setup> {
    let budget = Budget {
        commands: 3,
        writes: 3,
        fuas: more,
        flushes: 1,
        write_backs: 1,
        revokes: 1,
        ..NOTHING
    };
    let ordered = system("revoking", budget);
    let mut ignoring = ordered.clone();
    ignoring.name += ", unordered";
    ignoring.config = ignoring.config.with_overlap(Overlap::Ignore);
    let mut all = in_each_way(&ordered);
    all.push(ignoring);
    let mut more_of = Vec::new();
    for setup in &all {
        let mut failing = setup.clone();
        failing.name += ", failing";
        failing.budget.flush_faults = 1;
        failing.budget.losses = more;
        failing.budget.fuas = more;
        more_of.extend(with_each_policy(&[failing]));
        let mut back = setup.clone();
        back.name += ", reading back";
        back.backend = back.backend.with_self_coherent(true);
        back.reads_back = true;
        back.budget.reads = 1;
        back.budget.fuas = 0;
        let mut receipt = back.clone();
        receipt.name += ", on receipt";
        receipt.config = receipt.config.with_acknowledge(Acknowledge::OnReceipt);
        receipt.reads_back = false;
        more_of.extend([back, receipt]);
    }
    all.extend(more_of);
    all
}
