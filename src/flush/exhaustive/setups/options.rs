//! Systems with other options.

use alloc::vec;
use alloc::vec::Vec;

use super::{NOTHING, at_each_level, system, with_each_kind, with_each_policy};
use crate::flush::config::{Acknowledge, FuaOnReads, Mode, Overlap, ThreadModel};
use crate::flush::exhaustive::world::{Budget, Caches, Setup};

/// A handle is called for one thing at a time.
pub(in crate::flush::exhaustive) fn one_at_a_time(more: u8) -> Vec<Setup> {
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
pub(in crate::flush::exhaustive) fn coherent(more: u8) -> Vec<Setup> {
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
pub(in crate::flush::exhaustive) fn unordered(more: u8) -> Vec<Setup> {
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
pub(in crate::flush::exhaustive) fn on_receipt(more: u8) -> Vec<Setup> {
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
pub(in crate::flush::exhaustive) fn write_through(more: u8) -> Vec<Setup> {
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
pub(in crate::flush::exhaustive) fn preflush(more: u8) -> Vec<Setup> {
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
pub(in crate::flush::exhaustive) fn revoking(more: u8) -> Vec<Setup> {
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
