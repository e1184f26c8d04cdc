//! Connections that come and go.

use super::super::script::{Kind, Script, What};
use super::{A, C, Stage};

/// A writes, and leaves; what it has written must not leave with it.
pub(super) fn leaves_dirty(stage: &mut Stage<'_>, script: &mut Script) {
    let spot = stage.spot();
    stage.have_cached(script, spot);
    let write = stage.modification(spot);
    script.ask(A, write);
    let farewell = stage.farewell();
    script.leave(A, farewell);
    stage.pause(script, Kind::Flush, 60);
    let other = stage.another(A);
    if other == A {
        script.join(A);
    }
    // Nobody looks at it before it is over: the one who would may be away.
    if let Some(flush) = stage.flush(script, other) {
        script.wait(flush);
    }
    if other != A {
        script.ask(other, What::Read(spot));
    }
    script.join(A);
    stage.all_read(script, spot);
}

/// One connects while another's data is being flushed.
pub(super) fn joins_in_a_flush(stage: &mut Stage<'_>, script: &mut Script) {
    let spot = stage.spot();
    let guest = stage.another(A);
    let farewell = stage.farewell();
    script.leave(guest, farewell);
    let write = stage.modification(spot);
    script.ask(A, write);
    let flusher = if guest == C { A } else { C };
    let flush = stage.flush(script, flusher);
    stage.pause(script, Kind::Flush, 60);
    script.join(guest);
    if stage.dice.percent(50) {
        script.send(guest, What::Read(spot));
    }
    if let Some(flush) = flush {
        script.wait(flush);
    }
    script.ask(guest, What::Read(spot));
    stage.all_read(script, spot);
}
