//! What nobody has thought of: any commands, in any order.

use super::super::script::{Fua, Kind, Script, What};
use super::Stage;

/// Few of them, so that what goes wrong is soon looked at.
const LEAST: u64 = 6;
const MOST: u64 = 40;

/// Anything on a few granules of the cell, several at a time.
pub(super) fn anything(stage: &mut Stage<'_>, script: &mut Script) {
    let home = stage.spot();
    let places = [home, stage.neighbour(home), stage.neighbour(home)];
    for _ in 0..LEAST + stage.dice.below(MOST - LEAST) {
        let role = stage.dice.index(stage.roles);
        let place = stage.dice.pick(&places).unwrap_or(home);
        let what = command(stage, place);
        let tag = script.send(role, what);
        match stage.dice.below(10) {
            0..=3 => script.wait(tag),
            4 => script.wait_all(),
            5 => stage.pause(script, Kind::Flush, 50),
            _ => {}
        }
    }
    script.wait_all();
    let last = stage.dice.index(stage.roles);
    stage.flush_and_wait(script, last, home);
    for place in places {
        stage.all_read(script, place);
    }
}

fn command(stage: &mut Stage<'_>, place: nbd_proto::conformance::Extent) -> What {
    let can = stage.abilities;
    match stage.dice.below(100) {
        0..=3 if can.status => What::Status(place),
        4..=6 if can.cache => What::Cache(place),
        7..=39 if can.writes => What::Write(place, Fua::No),
        40..=49 if can.writes && can.fua => What::Write(place, Fua::Yes),
        50..=52 if can.writes && can.zero => What::Zero(place, Fua::No),
        53 if can.writes && can.zero && can.fua => What::Zero(place, Fua::Yes),
        54 if can.writes && can.trim => What::Trim(place, Fua::No),
        55..=69 if can.flush => What::Flush,
        _ => What::Read(place),
    }
}

/// The same place read on all connections, and flushes in between.
pub(super) fn reads(stage: &mut Stage<'_>, script: &mut Script) {
    for _ in 0..1 + stage.dice.below(4) {
        let spot = stage.spot();
        stage.all_read(script, spot);
        if stage.dice.percent(30) {
            let role = stage.dice.index(stage.roles);
            stage.flush(script, role);
        }
    }
    if stage.dice.percent(20) {
        let role = stage.dice.index(stage.roles);
        let farewell = stage.farewell();
        script.wait_all();
        script.leave(role, farewell);
        script.join(role);
    }
    let cell = stage.cell;
    for request in stage.layout.requests(cell) {
        stage.all_read(script, request);
    }
}
