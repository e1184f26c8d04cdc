//! Writes to the same place, and to the same page.

use super::super::script::{Fua, Kind, Script, What};
use super::{A, B, C, Stage};

/// Two write to the same place, one after the other. Caches that are written out in the order of
/// the connections, or by whoever comes, bring the older one back.
pub(super) fn older_wins(stage: &mut Stage<'_>, script: &mut Script) {
    let spot = stage.spot();
    let mut writer = A;
    for _ in 0..2 + stage.dice.below(2) {
        let write = stage.modification(spot);
        script.ask(writer, write);
        writer = stage.another(writer);
    }
    stage.flush_and_wait(script, C, spot);
    stage.all_read(script, spot);
    if stage.dice.percent(40) {
        let last = stage.another(C);
        stage.flush_and_wait(script, last, spot);
        stage.all_read(script, spot);
    }
}

/// The newer one is stable at once; the older one comes later.
pub(super) fn fua_over_older(stage: &mut Stage<'_>, script: &mut Script) {
    let spot = stage.spot();
    let write = stage.modification(spot);
    script.ask(B, write);
    let write = stage.forced(spot);
    script.ask(A, write);
    if stage.dice.percent(50) {
        stage.all_read(script, spot);
    }
    let last = stage.another(A);
    stage.flush_and_wait(script, last, spot);
    stage.all_read(script, spot);
}

/// Several write to one page, each to a part of its own, which are all to be there then.
pub(super) fn neighbours(stage: &mut Stage<'_>, script: &mut Script) {
    let spot = stage.spot();
    stage.have_cached(script, spot);
    let one_by_one = stage.dice.percent(50);
    let mut last = spot;
    for role in 0..stage.roles.min(3) {
        let write = stage.modification(last);
        let write = script.send(role, write);
        if one_by_one {
            script.wait(write);
        }
        last = stage.neighbour(last);
    }
    script.wait_all();
    let flusher = stage.dice.index(stage.roles);
    stage.flush_and_wait(script, flusher, spot);
    stage.all_read(script, spot);
    stage.all_read(script, last);
}

/// Two write to the same place at the same time: either may win, but for all and for ever.
pub(super) fn overlap(stage: &mut Stage<'_>, script: &mut Script) {
    let spot = stage.spot();
    let write = stage.modification(spot);
    script.send(A, write);
    stage.pause(script, Kind::Write, 100);
    let write = stage.modification(spot);
    script.send(B, write);
    if stage.dice.percent(50) {
        script.send(C, What::Read(spot));
    }
    script.wait_all();
    stage.flush_and_wait(script, C, spot);
    stage.all_read(script, spot);
    stage.flush_and_wait(script, A, spot);
    stage.all_read(script, spot);
}

/// Zeroes and trims, over what was written and under it.
pub(super) fn zeroed(stage: &mut Stage<'_>, script: &mut Script) {
    let spot = stage.spot();
    let around = stage.layout.surroundings(stage.cell, spot);
    script.ask(A, What::Write(around, Fua::No));
    let other = stage.another(A);
    let fua = if stage.abilities.fua && stage.dice.percent(30) {
        Fua::Yes
    } else {
        Fua::No
    };
    if stage.abilities.trim && stage.dice.percent(50) {
        script.ask(other, What::Trim(spot, fua));
    } else if stage.abilities.zero {
        script.ask(other, What::Zero(spot, fua));
    }
    if stage.dice.percent(50) {
        let again = stage.neighbour(spot);
        script.ask(A, What::Write(again, Fua::No));
    }
    let flusher = stage.another(other);
    stage.flush_and_wait(script, flusher, spot);
    stage.all_read(script, around);
}
