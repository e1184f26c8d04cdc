//! What backend handles do with what the coordinator asks of them.

use std::collections::BTreeMap;
use std::ops::Range;

use nbd_proto::flush::{Action, Command, Op};
use nbd_proto::wire::Errno;

use super::{CELLS, Cell, Executing, Fault, Flushing, Id, Load, Sent, World};

impl World {
    pub(super) fn start(&mut self, op: Op, id: Id, load: Load) {
        self.check_calls(self.sent[id].conn);
        self.sent[id].executed = true;
        if op.acknowledged() {
            self.answer(id, Ok(()));
            self.sent[id].unsettled = true;
        }
        let Command { offset, length, .. } = self.sent[id].command;
        let cells = match load {
            Load::Everything => 0..CELLS,
            Load::Early | Load::Late => self.lines(offset..offset + length),
        };
        let mut fetched = BTreeMap::new();
        if load != Load::Late && !self.shared {
            fetched = cells
                .map(|cell| (cell, self.store[cell as usize]))
                .collect();
        }
        self.executing.push(Executing { op, id, fetched });
    }

    /// The granules that have a part of this.
    pub(super) fn lines(&self, cells: Range<u64>) -> Range<u64> {
        let start = cells.start - cells.start % self.granule;
        start..cells.end.next_multiple_of(self.granule).min(CELLS)
    }

    /// Whose handle's cache a connection uses.
    pub(super) fn handle_of(&self, index: usize) -> usize {
        if self.shared { 0 } else { index }
    }

    /// Finds a command that is being executed.
    pub(crate) fn executing(&self, id: Id) -> usize {
        let mut executing = self.executing.iter();
        executing
            .position(|it| it.id == id)
            .expect("the command is executing")
    }

    /// A command that is being executed takes effect and ends.
    pub(crate) fn finish(&mut self, at: usize, result: Result<(), Errno>) {
        let Executing { op, id, fetched } = self.executing.remove(at);
        let Sent { conn, command, .. } = self.sent[id].clone();
        let Command { offset, length, .. } = command;
        if op.acknowledged() && result.is_err() {
            self.sent[id].failed_late = Some(Vec::new());
            let decision = self.coordinator.complete(op, id, result);
            return self.decide(decision, Load::Late);
        }
        if self.connections[conn].through {
            return self.finish_through(op, id, result);
        }
        let at = self.handle_of(conn);
        let lines = self.lines(offset..offset + length);
        let handle = self.connections[at].handle.as_mut().expect("not closed");
        for (cell, id) in fetched {
            let cached = Cell { id, dirty: false };
            handle.cache.entry(cell).or_insert(cached);
        }
        if self.granule > 1 {
            for cell in lines {
                let stored = Cell {
                    id: self.store[cell as usize],
                    dirty: false,
                };
                let cached = handle.cache.entry(cell).or_insert(stored);
                // The whole granule is written back.
                cached.dirty |= command.kind.is_modification();
            }
        }
        for cell in offset..offset + length {
            if command.kind.is_modification() {
                handle.cache.insert(cell, Cell { id, dirty: true });
                if op.fua() && result.is_ok() {
                    self.store[cell as usize] = id;
                    handle.cache.insert(cell, Cell { id, dirty: false });
                }
            } else {
                let stored = self.store[cell as usize];
                let cached = Cell {
                    id: stored,
                    dirty: false,
                };
                let cached = handle.cache.entry(cell).or_insert(cached);
                self.sent[id].data.insert(cell, cached.id);
            }
        }
        let decision = self.coordinator.complete(op, id, result);
        self.decide(decision, Load::Late);
        self.check();
    }

    /// The same on a handle that caches nothing.
    pub(super) fn finish_through(&mut self, op: Op, id: Id, result: Result<(), Errno>) {
        let Command {
            kind,
            offset,
            length,
            ..
        } = self.sent[id].command;
        for cell in offset..offset + length {
            let stored = &mut self.store[cell as usize];
            if kind.is_modification() {
                *stored = id;
            } else {
                self.sent[id].data.insert(cell, *stored);
            }
        }
        let decision = self.coordinator.complete(op, id, result);
        self.decide(decision, Load::Late);
        self.check();
    }

    /// Takes whatever the coordinator wants done; commands start, flushes start.
    pub(crate) fn poll(&mut self) -> bool {
        let mut any = false;
        while self.poll_one() {
            any = true;
        }
        any
    }

    /// Takes one thing that the coordinator wants done, if there is any.
    pub(crate) fn poll_one(&mut self) -> bool {
        let action = self.coordinator.poll();
        if let Some(action) = action {
            match action {
                Action::Execute { op, tag, .. } => self.start(op, tag, self.load),
                Action::Flush { key, flush } => {
                    self.check_calls(key);
                    let handle = self.connections[self.handle_of(key)].handle.as_ref();
                    assert!(!self.connections[key].through, "it has nothing to flush");
                    let before = handle.expect("not closed").cache.clone();
                    self.flushes.push(key);
                    self.flushing.push(Flushing {
                        conn: key,
                        flush,
                        before,
                    });
                }
                Action::Reply { tag, result, .. } => self.answer(tag, result),
                Action::Cancel { key } => {
                    assert!(self.connections[key].revoked.is_some());
                    self.cancels.push(key);
                }
                Action::Release { key } => {
                    assert!(!self.connections[key].released, "released twice");
                    self.connections[key].released = true;
                    self.close(key);
                    self.forgive_if_empty();
                }
                other => panic!("unknown action {other:?}"),
            }
            self.check();
            return true;
        }
        false
    }

    /// Finds the running flush of a connection's handle.
    pub(crate) fn flushing(&self, index: usize) -> usize {
        let mut flushing = self.flushing.iter();
        flushing
            .position(|it| it.conn == index)
            .expect("the handle is being flushed")
    }

    pub(crate) fn is_flushing(&self, index: usize) -> bool {
        self.flushing.iter().any(|it| it.conn == index)
    }

    /// A backend flush ends. Whatever was put in the cache while it ran stays there.
    pub(crate) fn finish_flush(&mut self, at: usize, fault: Option<Fault>) {
        let Flushing {
            conn,
            flush,
            before,
        } = self.flushing.remove(at);
        let at = self.handle_of(conn);
        let handle = self.connections[at].handle.as_mut().expect("not closed");
        match fault {
            Some(Fault::Keep) => {}
            // Also what was put there while it ran.
            Some(Fault::Drop) => {
                handle.cache.clear();
                for (at, it) in self.connections.iter_mut().enumerate() {
                    it.lost_data |= self.shared || at == conn;
                }
            }
            None => {
                for (cell, old) in before {
                    let cached = handle.cache.get(&cell).filter(|it| it.dirty);
                    match cached {
                        // Another flush of the same cache may have been faster.
                        Some(newer) if self.shared => self.store[cell as usize] = newer.id,
                        None if self.shared => {}
                        _ if old.dirty => self.store[cell as usize] = old.id,
                        _ => {}
                    }
                    if handle.cache.get(&cell).is_some_and(|it| it.id == old.id) {
                        handle.cache.remove(&cell);
                    }
                }
            }
        }
        // A handle whose granules revert what was written through itself is nobody's to mend.
        if self.self_coherent || self.granule > 1 {
            let conn = self.connections[conn].conn;
            for executing in &mut self.executing {
                if executing.op.conn() == conn {
                    executing.fetched.clear();
                }
            }
        }
        if fault.is_some() && self.connections[conn].leaving {
            // It may be its last chance, and the end of its data before it is released.
            self.connections[conn].dropped = true;
            self.connections[conn].lost_data = true;
        }
        let result = fault.map_or(Ok(()), |_| Err(Errno::EIO));
        self.coordinator.flushed(flush, result);
        self.check();
    }

    /// The cache writes a dirty cell back before anybody asks for it.
    pub(crate) fn write_back(&mut self, index: usize, cell: u64) {
        let line = self.lines(cell..cell + 1);
        let Some(handle) = &mut self.connections[index].handle else {
            return;
        };
        if self
            .flushing
            .iter()
            .any(|it| self.shared || it.conn == index)
        {
            return;
        }
        for (&cell, cached) in handle.cache.range_mut(line) {
            if cached.dirty {
                cached.dirty = false;
                self.store[cell as usize] = cached.id;
            }
        }
        self.check();
    }

    /// The backend does all that it was asked to, until nothing is left to do.
    pub(crate) fn settle(&mut self) {
        for _ in 0..10_000 {
            self.poll();
            if !self.executing.is_empty() {
                self.finish(0, Ok(()));
            } else if !self.flushing.is_empty() {
                self.finish_flush(0, None);
            } else if !self.poll() {
                return;
            }
        }
        panic!("the coordinator does not come to rest");
    }

    /// The same, but of several flushes that run the one that was asked for last ends first.
    pub(crate) fn settle_latest_first(&mut self) {
        self.poll();
        while let Some(latest) = self.flushing.len().checked_sub(1) {
            self.finish_flush(latest, None);
            self.poll();
        }
        self.settle();
    }
}
