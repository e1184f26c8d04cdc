//! Within a flush of several caches: what one of them loads again while another is written out.

use super::super::script::{Kind, Script, What};
use super::{A, B, C, Stage};

/// A reads what it has cached again and again while B's write is being flushed.
pub(super) fn read_between(stage: &mut Stage<'_>, script: &mut Script) {
    let spot = stage.spot();
    script.ask(A, What::Read(spot));
    let write = stage.modification(spot);
    script.ask(B, write);
    let flush = stage.flush(script, C);
    for _ in 0..1 + stage.dice.below(4) {
        stage.pause(script, Kind::Flush, 70);
        let read = script.send(A, What::Read(spot));
        if stage.dice.percent(50) {
            script.wait(read);
        }
    }
    if let Some(flush) = flush {
        script.wait(flush);
    }
    script.send(A, What::Read(spot));
    script.wait_all();
    stage.all_read(script, spot);
}

/// A's read is on its way, with old data, while what B wrote is flushed.
pub(super) fn read_across(stage: &mut Stage<'_>, script: &mut Script) {
    let spot = stage.spot();
    stage.forget(script, spot);
    // What is long takes long.
    let around = if stage.dice.percent(40) {
        stage.widely(spot)
    } else {
        spot
    };
    let read = if stage.abilities.cache && stage.dice.percent(20) {
        What::Cache(around)
    } else {
        What::Read(around)
    };
    let write = if stage.dice.percent(20) {
        stage.forced(spot)
    } else {
        stage.modification(spot)
    };
    across(stage, script, read, write);
    script.ask(A, What::Read(spot));
    stage.all_read(script, spot);
}

/// The same with a write of A's, for which the rest of the page is fetched.
pub(super) fn write_fills(stage: &mut Stage<'_>, script: &mut Script) {
    let spot = stage.spot();
    let other = stage.neighbour(spot);
    stage.forget(script, spot);
    let held = stage.modification(other);
    let write = stage.modification(spot);
    across(stage, script, held, write);
    if stage.dice.percent(50) {
        let last = stage.another(C);
        stage.flush_and_wait(script, last, spot);
    }
    stage.all_read(script, spot);
    stage.all_read(script, other);
}

/// A's command is held while B's write is flushed: it begins before the write, or after it.
fn across(stage: &mut Stage<'_>, script: &mut Script, held: What, write: What) {
    let kind = held.kind();
    if stage.dice.percent(40) {
        script.send(A, held);
        stage.pause(script, kind, 80);
        script.ask(B, write);
        if let Some(flush) = stage.flush(script, C) {
            script.wait(flush);
        }
    } else {
        script.ask(B, write);
        script.send(A, held);
        stage.pause(script, kind, 80);
        stage.flush(script, C);
    }
    script.wait_all();
}

/// A loads old data in the first round; the second one must not believe that A was visited.
pub(super) fn two_rounds(stage: &mut Stage<'_>, script: &mut Script) {
    let spot = stage.spot();
    let elsewhere = stage.spot();
    script.ask(A, What::Read(spot));
    let write = stage.modification(spot);
    script.ask(B, write);
    let flusher = if stage.dice.percent(50) { A } else { C };
    let first = stage.flush(script, flusher);
    stage.pause(script, Kind::Flush, 100);
    script.send(A, What::Read(spot));
    if let Some(first) = first {
        script.wait(first);
    }
    let write = stage.modification(elsewhere);
    script.ask(B, write);
    let last = stage.another(A);
    stage.flush_and_wait(script, last, spot);
    script.wait_all();
    stage.all_read(script, spot);
    stage.all_read(script, elsewhere);
}

/// B writes with FUA what A has cached.
pub(super) fn fua_of_another(stage: &mut Stage<'_>, script: &mut Script) {
    let spot = stage.spot();
    script.ask(A, What::Read(spot));
    let write = stage.forced(spot);
    let write = script.send(B, write);
    for _ in 0..stage.dice.below(3) {
        stage.pause(script, Kind::Write, 100);
        script.send(A, What::Read(spot));
    }
    script.wait(write);
    script.send(A, What::Read(spot));
    script.wait_all();
    stage.all_read(script, spot);
}
