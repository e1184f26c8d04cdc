//! States that differ only in when things happened, not in what happened before what, are equal.
//!
//! The coordinator's stamps grow for ever, and so do the generations of commands in flight. It only
//! ever compares them, so that each can be replaced by its rank among those that are remembered
//! anywhere: then the same situation, reached by a longer way, is the same state.

use alloc::vec::Vec;

use super::world::{Coordinator, World};
use crate::flush::clock::Stamp;
use crate::flush::command::{Action, FlushId, Op};
use crate::flush::coordinator::Pending;

impl World {
    /// Renumbers stamps and generations. Zero stays zero: it stands for "never".
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
        for index in 0..self.handles.len() {
            let mut generations = Vec::new();
            self.each_generation(index, &mut |it| generations.push(*it));
            generations.sort_unstable();
            generations.dedup();
            self.each_generation(index, &mut |it| *it = rank(&generations, *it));
        }
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
        } = &mut self.coordinator;
        for member in members.values_mut() {
            member.each_stamp(visit);
        }
        for group in groups.values_mut() {
            group.each_stamp(visit);
        }
        for action in actions {
            match action {
                Pending::FailedFlush { at, .. } => visit(at),
                // A flush has no stamp before it is taken.
                Pending::Flush(_) | Pending::Now(_) => {}
            }
        }
        for flushing in &mut self.flushing {
            let FlushId { member: _, start } = &mut flushing.flush;
            visit(start);
        }
    }

    /// The generations of one connection's commands.
    fn each_generation(&mut self, index: usize, visit: &mut dyn FnMut(&mut u64)) {
        let conn = self.handles[index].conn;
        let Some(member) = self.coordinator.members.get_mut(conn.0) else {
            return;
        };
        member.each_generation(visit);
        let queued = self.coordinator.actions.iter_mut();
        let queued = queued.filter_map(|action| match action {
            Pending::Now(Action::Execute { op, .. }) => Some(op),
            _ => None,
        });
        let executing = self.executing.iter_mut().map(|it| &mut it.op);
        for op in queued.chain(executing) {
            let Op {
                member,
                generation,
                modification: _,
                range: _,
                fua: _,
            } = op;
            if *member == conn.0 {
                visit(generation);
            }
        }
    }
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
