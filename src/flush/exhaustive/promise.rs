//! What must hold in every state: what a crash would leave, what a read would find, who has to be
//! answered.

use super::world::{CELLS, Handle, Id, Ids, Load, Outcome, Phase, Setup, What, World, Wrong};
use crate::flush::command::{Command, Decision};
use crate::wire::CommandType;

impl World {
    pub(super) fn raise_floor(&mut self, setup: &Setup, id: Id) {
        let mut floor = self.floor;
        self.raise(setup, &mut floor, id);
        self.floor = floor;
        self.covered.insert(id);
    }

    /// Adds a write to those that cells must not be older than.
    pub(super) fn raise(&self, setup: &Setup, floor: &mut [Ids; CELLS], id: Id) {
        let Some(&write) = self.writes.get(usize::from(id) - 1) else {
            return;
        };
        for cell in write.at.cells() {
            floor[cell].insert(id);
            // What is older than another one of the floor says nothing more.
            let all = floor[cell];
            let mut implied = Ids::default();
            let older = |&it: &Id| self.is_older(it, all, setup.unordered());
            all.iter().filter(older).for_each(|it| implied.insert(it));
            floor[cell] = all.without(implied);
        }
    }

    /// Whether a value was certainly overwritten by one of these writes: its own had been answered
    /// before that one was sent, through the same connection if those keep no order among them.
    pub(super) fn is_older(&self, value: Id, floor: Ids, unordered: bool) -> bool {
        floor.iter().filter(|&id| id != value).any(|id| {
            let write = &self.writes[usize::from(id) - 1];
            let same = value == 0 || self.conn_of(value) == Some(write.conn.into());
            let in_order = value == 0 || write.after.contains(value);
            (in_order && (same || !unordered)) || write.after_settled.contains(value)
        })
    }

    /// What would be wrong if there were a crash now, or a read on any connection.
    pub(super) fn check(&mut self, setup: &Setup) {
        for cell in 0..usize::from(setup.cells) {
            if self.is_older(self.store[cell], self.floor[cell], setup.unordered()) {
                self.accuse(Wrong::Lost);
            }
        }
        if !setup.alone {
            for index in 0..self.handles.len() {
                self.check_visible(setup, index);
            }
        }
        let idle = self.is_idle();
        let leaving = self.handles.iter().any(|it| it.phase == Phase::Leaving);
        if idle && (!self.sent.is_empty() || leaving) {
            self.accuse(Wrong::Stuck);
        }
        // Else all flushes that may come now are steps of their own.
        let last = self.budget.commands == 0 || self.budget.flushes == 0;
        if idle && last && self.wrong.is_none() && !self.writes.is_empty() {
            self.try_flushes(setup);
        }
    }

    /// A read that comes now, and is executed at once, must not find anything old.
    pub(super) fn check_visible(&mut self, setup: &Setup, index: usize) {
        let Handle { conn, phase, .. } = self.handles[index];
        if phase != Phase::Open {
            return;
        }
        for cell in 0..usize::from(setup.cells) {
            let cached = self.caches[Self::cache_of(setup, index)].cells[cell];
            let value = cached.map_or(self.store[cell], |it| it.id);
            let unordered = setup.unordered();
            let must_see = self.kept_in(cell, self.must_see(setup, index));
            let stale = self.is_older(value, self.floor[cell], unordered);
            if stale || self.is_older(value, must_see, unordered) {
                let read = Command::new(CommandType::READ, cell as u64, 1);
                let decision = self.coordinator.clone().command(conn, read, u8::MAX);
                if matches!(decision, Decision::Execute { .. }) {
                    let kind = if stale {
                        Wrong::Stale
                    } else {
                        Wrong::Incoherent
                    };
                    self.accuse(kind);
                }
            }
        }
    }

    pub(super) fn has_actions(&self) -> bool {
        !self.coordinator.actions.is_empty()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.executing.is_empty() && self.flushing.is_empty() && !self.has_actions()
    }

    /// While nothing goes on: what if a client flushed now, and again, and all left?
    pub(super) fn try_flushes(&mut self, setup: &Setup) {
        for index in 0..self.handles.len() {
            if self.handles[index].phase != Phase::Open {
                continue;
            }
            let mut world = self.clone();
            for _ in 0..2 {
                world.send(setup, index, What::Flush);
                world.settle(setup);
            }
            for leaving in 0..world.handles.len() {
                if matches!(world.handles[leaving].phase, Phase::Open | Phase::Opening) {
                    world.disconnect(leaving);
                    world.settle(setup);
                }
            }
            if let Some(wrong) = world.wrong {
                self.accuse(wrong);
            }
        }
    }

    /// The backend does all that it was asked to.
    pub(super) fn settle(&mut self, setup: &Setup) {
        for _ in 0..100 {
            self.poll(setup);
            if !self.executing.is_empty() {
                self.finish(setup, 0, Load::Late, true);
            } else if !self.flushing.is_empty() {
                self.finish_flush(setup, 0, Outcome::Success);
            } else if self.is_idle() {
                break;
            }
        }
        let leaving = self.handles.iter().any(|it| it.phase == Phase::Leaving);
        if !self.is_idle() || !self.sent.is_empty() || leaving {
            self.accuse(Wrong::Stuck);
        }
        for cell in 0..usize::from(setup.cells) {
            if self.is_older(self.store[cell], self.floor[cell], setup.unordered()) {
                self.accuse(Wrong::Lost);
            }
        }
        for index in 0..self.handles.len() {
            if !setup.alone {
                self.check_visible(setup, index);
            }
        }
    }
}
