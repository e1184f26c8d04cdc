//! The systems that are explored.

mod caches;
mod options;

pub(super) use caches::{alone, lazy, shared, through};
pub(super) use options::{
    coherent, on_receipt, one_at_a_time, preflush, revoking, unordered, write_through,
};

use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

use super::world::{Budget, Caches, Setup};
use crate::flush::backend::Backend;
use crate::flush::config::{AfterFailure, Config, Mode, TrackDirty};

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
