//! Who is dirty: what a server must not forget that it has to write out.

use super::super::script::{Kind, Script};
use super::{A, Stage};

/// A write is being executed when another connection's flush comes: that one need not cover it,
/// but the next one has to.
pub(super) fn executing(stage: &mut Stage<'_>, script: &mut Script) {
    let spot = stage.spot();
    stage.have_cached(script, spot);
    let other = stage.another(A);
    let write = stage.modification(spot);
    let write = script.send(A, write);
    stage.pause(script, Kind::Write, 130);
    let early = stage.flush(script, other);
    if stage.dice.percent(80)
        && let Some(early) = early
    {
        script.wait(early);
    }
    script.wait(write);
    let last = if stage.dice.percent(70) {
        other
    } else {
        stage.another(A)
    };
    stage.flush_and_wait(script, last, spot);
    stage.all_read(script, spot);
}

/// The same on one connection: the flush is sent right behind the write.
pub(super) fn pipelined(stage: &mut Stage<'_>, script: &mut Script) {
    let spot = stage.spot();
    stage.have_cached(script, spot);
    let write = stage.modification(spot);
    script.send(A, write);
    stage.flush(script, A);
    script.wait_all();
    let last = if stage.dice.percent(50) {
        A
    } else {
        stage.another(A)
    };
    stage.flush_and_wait(script, last, spot);
    stage.all_read(script, spot);
}

/// A write comes and is answered while a flush is going on.
pub(super) fn inside_a_flush(stage: &mut Stage<'_>, script: &mut Script) {
    let spot = stage.spot();
    let before = stage.neighbour(spot);
    stage.have_cached(script, spot);
    let write = stage.modification(before);
    script.ask(A, write);
    let flusher = if stage.dice.percent(50) {
        A
    } else {
        stage.another(A)
    };
    stage.flush(script, flusher);
    stage.pause(script, Kind::Flush, 110);
    let write = stage.modification(spot);
    script.send(A, write);
    script.wait_all();
    let last = stage.another(A);
    stage.flush_and_wait(script, last, spot);
    stage.all_read(script, spot);
}

/// What was written with FUA is known to be clean, but not to be seen by all.
pub(super) fn after_fua(stage: &mut Stage<'_>, script: &mut Script) {
    let spot = stage.spot();
    stage.have_cached(script, spot);
    let write = stage.forced(spot);
    script.ask(A, write);
    if stage.dice.percent(70) {
        stage.flush_and_wait(script, A, spot);
    }
    if stage.dice.percent(70) {
        let other = stage.another(A);
        stage.flush_and_wait(script, other, spot);
    }
    stage.all_read(script, spot);
}

/// Another connection's flush comes before the writer's own, which may then seem to be of no use.
pub(super) fn by_another_first(stage: &mut Stage<'_>, script: &mut Script) {
    let spot = stage.spot();
    stage.have_cached(script, spot);
    let write = stage.modification(spot);
    script.ask(A, write);
    let other = stage.another(A);
    stage.flush_and_wait(script, other, spot);
    if stage.dice.percent(60) {
        stage.flush_and_wait(script, A, spot);
    }
    stage.all_read(script, spot);
}
