//! States that differ only in when things happened, not in what happened before what, are equal.
//!
//! The coordinator's stamps grow for ever. It only ever compares them, so that each can be replaced by
//! its rank among those that are remembered anywhere: then the same situation, reached by a longer
//! way, is the same state. What it counts for people to look at is left out.

use alloc::vec::Vec;

use super::world::{Coordinator, World};
use crate::flush::clock::Stamp;
use crate::flush::command::{Action, FlushId, Op};
use crate::flush::coordinator::Pending;
use crate::flush::observe::Counters;

impl World {
    /// Renumbers stamps. Zero stays zero: it stands for "never".
    pub(super) fn renumber(&mut self) {
        let mut stamps = Vec::new();
        self.each_stamp(&mut |stamp| stamps.push(stamp.raw()));
        stamps.push(0);
        stamps.sort_unstable();
        stamps.dedup();
        self.each_stamp(&mut |stamp| {
            *stamp = Stamp::from_raw(rank(&stamps, stamp.raw()));
        });
        let now = Stamp::from_raw(rank(&stamps, u64::MAX));
        self.coordinator.clock.set(now);
    }

    fn each_stamp(&mut self, visit: &mut dyn FnMut(&mut Stamp)) {
        let Coordinator {
            config: _,
            clock: _,
            members,
            groups,
            by_export: _,
            everyone: _,
            fuas: _,
            own: _,
            actions,
            forgotten,
            turns: _,
            guards: _,
        } = &mut self.coordinator;
        *forgotten = Counters::new();
        for member in members.values_mut() {
            member.each_stamp(visit);
        }
        for group in groups.values_mut() {
            group.each_stamp(visit);
        }
        for action in actions {
            match action {
                Pending::FailedFlush { at, .. } => visit(at),
                Pending::Now(Action::Execute { op, .. }) => each_stamp_of(op, visit),
                // A flush has no stamp before it is taken.
                Pending::Flush(_) | Pending::Now(_) => {}
            }
        }
        for flushing in &mut self.flushing {
            let FlushId { member: _, start } = &mut flushing.flush;
            visit(start);
        }
        for executing in &mut self.executing {
            each_stamp_of(&mut executing.op, visit);
        }
    }
}

fn each_stamp_of(op: &mut Op, visit: &mut dyn FnMut(&mut Stamp)) {
    let Op {
        member: _,
        generation,
        modification: _,
        range: _,
        fua: _,
        acknowledged,
    } = op;
    visit(generation);
    visit(acknowledged);
}

fn rank(sorted: &[u64], value: u64) -> u64 {
    let rank = sorted.partition_point(|&it| it < value);
    if sorted.get(rank) == Some(&value) {
        rank as u64
    } else {
        // Later than all that are remembered: as late as the latest.
        rank.saturating_sub(1) as u64
    }
}
