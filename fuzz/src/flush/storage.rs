//! Backend handles that cache, and the storage behind them.

use std::collections::BTreeMap;

use nbd_proto::flush::{FlushId, Grouping, Op};
use nbd_proto::wire::Errno;

use super::world::{CELLS, Id, Sent, Stage, Time, World};

/// How a backend flush goes wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Fault {
    /// Nothing is written, everything is kept.
    Keep,
    /// Every other cell is written, everything is kept.
    Half,
    /// Nothing is written, and what was to be written is gone.
    Drop,
}

/// What a handle does for a command, beyond the command.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Load {
    /// Fetches the cells asked for when the command ends.
    Late,
    /// Fetches them when it starts, and caches them when it ends.
    Early,
    /// So for all cells of the export.
    Everything,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Cell {
    id: Id,
    dirty: bool,
}

pub(super) type Cache = BTreeMap<u64, Cell>;

/// What one cache holds, and which modifications went into it that no flush has covered.
#[derive(Clone, Debug, Default)]
pub(super) struct Cached {
    pub(super) cache: Cache,
    pub(super) uncovered: Vec<Id>,
}

#[derive(Debug)]
pub(super) struct Executing {
    pub(super) op: Op,
    pub(super) id: Id,
    fetched: BTreeMap<u64, Id>,
}

#[derive(Debug)]
pub(super) struct Flushing {
    pub(super) conn: usize,
    flush: FlushId,
    /// What was cached when it started.
    before: Cached,
}

impl World {
    /// Where cells of an export are in storage.
    pub(super) fn cells(
        &self,
        index: usize,
        range: std::ops::Range<u64>,
    ) -> impl Iterator<Item = u64> + use<> {
        let export = u64::from(self.export(index));
        let base = if self.nature.one_disk { 0 } else { export };
        range.map(move |cell| base * CELLS + cell)
    }

    /// Where a command has its cells.
    pub(super) fn cells_of(&self, id: Id) -> impl Iterator<Item = u64> + use<> {
        let Sent { conn, command, .. } = self.sent[id];
        self.cells(conn, command.offset..command.offset + command.length)
    }

    /// Whether a connection uses the cache of all, and which.
    pub(super) fn shares(&self, index: usize) -> Option<usize> {
        let export = usize::from(self.export(index));
        let by_export = self.config.grouping() == Grouping::ByExport;
        self.nature.shared[export].then_some(if by_export { export } else { 0 })
    }

    fn share(&self, one: usize, other: usize) -> bool {
        one == other || (self.shares(one).is_some() && self.shares(one) == self.shares(other))
    }

    pub(super) fn cached(&mut self, index: usize) -> &mut Cached {
        match self.shares(index) {
            Some(which) => &mut self.shared[which],
            None => &mut self.connections[index].cached,
        }
    }

    /// A handle is opened, and caches the whole export.
    pub(super) fn load_all(&mut self, index: usize) {
        if self.shares(index).is_some() {
            return;
        }
        for cell in self.cells(index, 0..CELLS) {
            let id = self.store[cell as usize];
            self.cache(index).insert(cell, Cell { id, dirty: false });
        }
    }

    pub(super) fn execute(&mut self, op: Op, id: Id, load: Load) {
        let Sent { conn, command, .. } = self.sent[id];
        let range = match load {
            Load::Everything => 0..CELLS,
            Load::Early | Load::Late => command.offset..command.offset + command.length,
        };
        let mut fetched = BTreeMap::new();
        if load != Load::Late && self.shares(conn).is_none() {
            let cells = self.cells(conn, range);
            fetched.extend(cells.map(|cell| (cell, self.store[cell as usize])));
        }
        self.executing.push(Executing { op, id, fetched });
    }

    /// A command takes effect and ends; one that fails may have taken effect, or not.
    pub(super) fn finish(&mut self, which: usize, fails: bool) {
        if self.executing.is_empty() {
            return;
        }
        let fails = fails && !self.nature.calm;
        let Executing { op, id, fetched } = self.executing.remove(which % self.executing.len());
        let Sent { conn, command, .. } = self.sent[id];
        let now = self.tick();
        let mut result = Ok(());
        if fails {
            result = Err(Errno::ENOSPC);
            self.fail();
        }
        let modifies = command.kind.is_modification();
        let through = self.connections[conn].kind.through;
        let stable = op.fua() && result.is_ok();
        if modifies && (!fails || id % 2 == 0) {
            if through {
                for cell in self.cells_of(id) {
                    self.store[cell as usize] = id;
                }
            } else {
                self.keep(conn, fetched);
                self.modify(id, stable);
            }
        } else if !modifies {
            self.load(id, fetched, through);
        }
        if modifies {
            self.modifications += 1;
            if !through && !stable {
                self.cached(conn).uncovered.push(id);
            }
        }
        let acknowledged = op.acknowledged();
        if acknowledged && fails {
            self.sent[id].lost.get_or_insert(now);
        }
        let decision = self.coordinator.complete(op, id, result);
        self.decide(decision, Load::Late);
        assert!(!self.sent[id].unsettled, "it has ended");
        self.check();
        self.check_counters(false);
    }

    fn keep(&mut self, conn: usize, fetched: BTreeMap<u64, Id>) {
        let cache = self.cache(conn);
        for (cell, id) in fetched {
            cache.entry(cell).or_insert(Cell { id, dirty: false });
        }
    }

    fn modify(&mut self, id: Id, stable: bool) {
        let Sent { conn, command, .. } = self.sent[id];
        if self.nature.granular {
            self.merge(id);
        }
        for cell in self.cells(conn, command.offset..command.offset + command.length) {
            let dirty = !stable;
            self.cache(conn).insert(cell, Cell { id, dirty });
            if stable {
                self.store[cell as usize] = id;
                // What a flush still has to write is older.
                for at in 0..self.flushing.len() {
                    if self.share(self.flushing[at].conn, conn) {
                        self.flushing[at].before.cache.remove(&cell);
                    }
                }
            }
        }
    }

    /// The rest of the granules is read, and will be written with what was modified.
    fn merge(&mut self, id: Id) {
        let Sent { conn, command, .. } = self.sent[id];
        let granule = u64::from(self.config.granule());
        let start = command.offset / granule * granule;
        let end = (command.offset + command.length).div_ceil(granule) * granule;
        for cell in self.cells(conn, start..end.min(CELLS)) {
            let id = self.store[cell as usize];
            let clean = Cell { id, dirty: false };
            self.cache(conn).entry(cell).or_insert(clean).dirty = true;
        }
    }

    /// A command finds what is cached, or else in storage.
    fn load(&mut self, id: Id, fetched: BTreeMap<u64, Id>, through: bool) {
        let conn = self.sent[id].conn;
        if !through {
            self.keep(conn, fetched.clone());
        }
        for cell in self.cells_of(id) {
            let stored = self.store[cell as usize];
            let value = if through {
                fetched.get(&cell).copied().unwrap_or(stored)
            } else {
                let clean = Cell {
                    id: stored,
                    dirty: false,
                };
                self.cache(conn).entry(cell).or_insert(clean).id
            };
            self.sent[id].found.push((cell, value));
        }
    }

    pub(super) fn begin_flush(&mut self, index: usize, flush: FlushId) {
        self.flushes.push(index);
        let before = self.cached(index).clone();
        self.flushing.push(Flushing {
            conn: index,
            flush,
            before,
        });
    }

    /// A backend flush ends. What was cached while it ran stays in the cache.
    pub(super) fn finish_flush(&mut self, which: usize, fault: Option<Fault>) {
        if self.flushing.is_empty() {
            return;
        }
        let fault = fault.filter(|_| !self.nature.calm);
        let now = self.tick();
        let at = which % self.flushing.len();
        let Flushing {
            conn,
            flush,
            before,
        } = self.flushing.remove(at);
        self.write_out(conn, before.cache, fault);
        if self.nature.self_coherent {
            let known = self.connections[conn].conn;
            let executing = self.executing.iter_mut();
            for it in executing.filter(|it| it.op.conn() == known) {
                it.fetched.clear();
            }
        }
        let mut result = Ok(());
        if fault.is_none() {
            let uncovered = &mut self.cached(conn).uncovered;
            uncovered.retain(|id| !before.uncovered.contains(id));
        } else {
            result = Err(Errno::EIO);
            self.flush_failures += 1;
            self.fail();
            self.note_failure(conn, now);
        }
        self.ended.push(flush);
        self.coordinator.flushed(flush, result);
        self.check();
        self.check_counters(false);
    }

    fn write_out(&mut self, conn: usize, before: Cache, fault: Option<Fault>) {
        let shared = self.shares(conn).is_some();
        for (cell, old) in before {
            let written = match fault {
                None => true,
                Some(Fault::Half) => cell % 2 == 0,
                Some(Fault::Keep | Fault::Drop) => false,
            };
            let cache = self.cache(conn);
            // A cache of one's own writes what it had when the flush started, as late as it can; a
            // shared one cannot have older data written over newer.
            let current = cache.get(&cell).map(|it| it.id);
            let id = if shared { current } else { Some(old.id) };
            let forgets = matches!(fault, None | Some(Fault::Drop));
            if forgets && current == Some(old.id) {
                cache.remove(&cell);
            }
            if written
                && old.dirty
                && let Some(id) = id
            {
                self.store[cell as usize] = id;
            }
        }
    }

    fn note_failure(&mut self, conn: usize, now: Time) {
        if self.is_sticky() {
            // Whether it is gone or not, nobody may be told that it is there.
            let doubtful = self.cached(conn).uncovered.clone();
            return self.lost(doubtful, now);
        }
        if self.shares(conn).is_none() && !self.cached(conn).uncovered.is_empty() {
            let connection = &mut self.connections[conn];
            connection.owed = Some(now);
            if connection.stage == Stage::Leaving {
                connection.doubt.get_or_insert(now);
            }
        }
    }

    /// The cache writes a cell back before anybody asks for it.
    pub(super) fn write_back(&mut self, index: usize, which: u8) {
        let mut flushing = self.flushing.iter();
        if index >= self.ever() || flushing.any(|it| self.share(it.conn, index)) {
            return;
        }
        let cache = self.cache(index);
        let count = cache.values().filter(|cell| cell.dirty).count();
        let which = usize::from(which).checked_rem(count).unwrap_or(0);
        let mut dirty = cache.iter_mut().filter(|(_, cell)| cell.dirty);
        if let Some((&cell, cached)) = dirty.nth(which) {
            cached.dirty = false;
            let id = cached.id;
            self.store[cell as usize] = id;
        }
        self.check();
    }
}
