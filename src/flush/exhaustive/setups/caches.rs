//! Systems with caches of other kinds.

use alloc::format;
use alloc::vec::Vec;

use super::{NOTHING, at_each_level, caching, system, with_each_policy};
use crate::flush::backend::Backend;
use crate::flush::config::{Config, Mode};
use crate::flush::exhaustive::world::{Budget, Caches, Setup};

/// One cache that all share.
pub(in crate::flush::exhaustive) fn shared(more: u8) -> Vec<Setup> {
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
pub(in crate::flush::exhaustive) fn through(more: u8) -> Vec<Setup> {
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
pub(in crate::flush::exhaustive) fn alone(more: u8) -> Vec<Setup> {
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
pub(in crate::flush::exhaustive) fn lazy(more: u8) -> Vec<Setup> {
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
