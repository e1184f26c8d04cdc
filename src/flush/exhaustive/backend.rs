//! Backend handles that use every freedom the contract leaves them.

use alloc::vec::Vec;

use super::world::{
    CELLS, Cached, Caches, Executing, Flushing, Id, Left, Load, Outcome, Phase, Setup, Span, What,
    World, Wrong,
};
use crate::flush::command::{Action, Decision, FlushId, Op};
use crate::flush::config::{AfterFailure, TrackDirty};
use crate::wire::Errno;

impl World {
    pub(super) fn poll(&mut self, setup: &Setup) {
        while self.poll_once(setup) {}
    }

    pub(super) fn poll_once(&mut self, setup: &Setup) -> bool {
        let Some(action) = self.coordinator.poll() else {
            return false;
        };
        match action {
            Action::Execute { op, tag, .. } => self.start(setup, op, tag),
            Action::Flush { key, flush } => self.start_flush(setup, key, flush),
            Action::Reply { tag, result, .. } => self.answer(setup, tag, result),
            Action::Release { key } => self.release(setup, key.into()),
            Action::Cancel { key } => {
                let due = &mut self.handles[usize::from(key)].cancel_due;
                if !core::mem::take(due) && !setup.lazy {
                    self.accuse(Wrong::Answered);
                }
            }
        }
        true
    }

    pub(super) fn release(&mut self, setup: &Setup, index: usize) {
        if self.handles[index].phase == Phase::Closed {
            self.accuse(Wrong::Answered);
        }
        self.close(setup, index);
        self.handles[index].phase = Phase::Closed;
        let nobody = self.handles.iter().all(|it| it.phase == Phase::Closed);
        if nobody && self.told {
            // From now on nobody is promised what was written before.
            self.forgiven = self.answered();
            self.told = false;
            self.sticky = false;
        }
    }

    pub(super) fn start(&mut self, setup: &Setup, op: Op, tag: u8) {
        let Some(sent) = self.sent.iter().find(|it| it.tag == tag) else {
            return self.accuse(Wrong::Answered);
        };
        let (conn, mut what) = (sent.conn, sent.what);
        self.check_calls(setup, conn);
        if let What::FlushAndRead(at) = what {
            what = What::Read(at);
            self.check_preflush(setup, tag);
        }
        let acknowledged = op.acknowledged();
        let caches = setup.caches != Caches::Shared && !Self::is_through(setup, conn.into());
        let matters = caches && (setup.cells > 1 || matches!(what, What::Read(_)));
        self.executing.push(Executing {
            op,
            tag,
            conn,
            what,
            fetched: matters.then_some(self.store),
            stale: false,
        });
        if acknowledged {
            self.answer(setup, tag, Ok(()));
        }
    }

    /// A handle is about to be called.
    fn check_calls(&mut self, setup: &Setup, conn: u8) {
        let executing = self.executing.iter().any(|it| it.conn == conn);
        let flushing = self.flushing.iter().any(|it| it.conn == conn);
        if setup.serializes() && (executing || flushing) {
            self.accuse(Wrong::Twice);
        }
    }

    /// A read begins that a flush has to come before: it has succeeded.
    fn check_preflush(&mut self, setup: &Setup, tag: u8) {
        let Some(&sent) = self.sent.iter().find(|it| it.tag == tag) else {
            return;
        };
        if sent.unreached {
            self.accuse(Wrong::Unreached);
        }
        // What fails after its flush, while it waits for its handle, is the next one's to report.
        let owed = self.sticky || self.handles[usize::from(sent.conn)].owed;
        if !setup.lazy && sent.owed && owed {
            self.accuse(Wrong::Unreported);
        }
    }

    /// What may be left in the cache by a command that ends now, each once.
    pub(super) fn loads(&self, setup: &Setup, at: usize) -> Vec<Load> {
        let executing = &self.executing[at];
        let mut loads = alloc::vec![Load::Late];
        let Some(fetched) = executing.fetched else {
            return loads;
        };
        let cache = &self.caches[usize::from(executing.conn)].cells;
        let (span, reads) = match executing.what {
            What::Read(span) => (span, true),
            What::Write { at, .. } => (at, setup.config.granule() > 1),
            What::FlushAndRead(_) | What::Flush => return loads,
        };
        let asked = if setup.config.granule() > 1 {
            0..usize::from(setup.cells)
        } else {
            span.cells()
        };
        let differs = |cell: usize| cache[cell].is_none() && fetched[cell] != self.store[cell];
        if reads && asked.clone().any(differs) {
            loads.push(Load::Early);
        }
        let mut others = (0..usize::from(setup.cells)).filter(|cell| !asked.contains(cell));
        if others.any(|cell| cache[cell].is_none()) {
            loads.push(Load::Everything);
        }
        loads
    }

    /// A command that is being executed takes effect and ends.
    pub(super) fn finish(&mut self, setup: &Setup, at: usize, load: Load, success: bool) {
        let executing = self.executing.remove(at);
        let index = usize::from(executing.conn);
        if Self::is_through(setup, index) {
            self.pass_through(setup, &executing);
        } else if setup.caches == Caches::Shared {
            self.apply(setup, &executing, success);
        } else {
            self.load(setup, &executing, load);
            self.apply(setup, &executing, success);
            let left = if executing.stale {
                Left::Stale
            } else {
                Left::Fresh
            };
            let handle = &mut self.handles[index];
            handle.left = handle.left.max(left);
        }
        let Executing { op, tag, what, .. } = executing;
        if let What::Read(at) = what {
            self.check_read(setup, index, tag, at);
        }
        let result = if success { Ok(()) } else { Err(Errno::EIO) };
        let acknowledged = op.acknowledged();
        // What is cancelled concerns nobody, if nobody was told that it is done.
        self.trouble |= !success && (acknowledged || !self.handles[index].revoked);
        if let What::Write { id, .. } = what
            && acknowledged
            && !success
        {
            self.failed_late.insert(id);
            if setup.alone {
                self.handles[index].owed = true;
            } else {
                self.fail_all(setup, true);
            }
        }
        let decision = self.coordinator.complete(op, tag, result);
        if acknowledged {
            if !matches!(decision, Decision::Answered { tag: it } if it == tag) {
                self.accuse(Wrong::Answered);
            }
            return;
        }
        if !success {
            // A command that fails is answered so at once, and there is a cause.
            let answered = self.sent.extract_if(.., |it| it.tag == tag).count() == 1;
            let now = matches!(decision, Decision::Reply { tag: it, result: Err(_) } if it == tag);
            if !answered || !now {
                self.accuse(Wrong::Answered);
            }
            return;
        }
        self.decide(setup, decision);
    }

    pub(super) fn load(&mut self, setup: &Setup, executing: &Executing, load: Load) {
        let cache = &mut self.caches[usize::from(executing.conn)].cells;
        let (span, reads) = match executing.what {
            What::Read(span) => (span, true),
            What::Write { at, .. } => (at, setup.config.granule() > 1),
            What::FlushAndRead(_) | What::Flush => return,
        };
        for cell in 0..usize::from(setup.cells) {
            let asked = reads && (setup.config.granule() > 1 || span.cells().contains(&cell));
            let early = executing.fetched.map_or(self.store[cell], |it| it[cell]);
            let id = match load {
                Load::Late if asked => self.store[cell],
                Load::Early if asked => early,
                Load::Everything => early,
                _ => continue,
            };
            cache[cell].get_or_insert(Cached { id, dirty: false });
        }
    }

    pub(super) fn apply(&mut self, setup: &Setup, executing: &Executing, success: bool) {
        let What::Write { id, at, .. } = executing.what else {
            return;
        };
        let own = Self::cache_of(setup, executing.conn.into());
        let native = executing.op.fua() && success;
        let granules = setup.config.granule() > 1 && setup.caches != Caches::Shared;
        for cell in 0..usize::from(setup.cells) {
            let cached = &mut self.caches[own].cells[cell];
            if at.cells().contains(&cell) {
                *cached = Some(Cached { id, dirty: true });
            } else if let Some(cached) = cached
                && granules
            {
                // The whole granule is written back.
                cached.dirty = true;
            }
            if let Some(cached) = cached
                && native
                && at.cells().contains(&cell)
            {
                cached.dirty = false;
                let id = cached.id;
                self.put(setup, own, cell, id, None);
            }
        }
        if native {
            return self.wrote_out(setup, executing.conn.into());
        }
        self.caches[own].uncovered = true;
        for flushing in &mut self.flushing {
            if Self::cache_of(setup, flushing.conn.into()) == own {
                flushing.dirtied = true;
            }
        }
    }

    /// A cell of a cache is written out as it is now, or by this flush as it was when that began:
    /// flushes that began before do not put back what is older.
    pub(super) fn put(
        &mut self,
        setup: &Setup,
        own: usize,
        cell: usize,
        id: Id,
        by: Option<FlushId>,
    ) {
        self.store[cell] = id;
        for flushing in &mut self.flushing {
            if Self::cache_of(setup, flushing.conn.into()) == own
                && by.is_none_or(|by| flushing.flush.start < by.start)
                && let Some(before) = &mut flushing.before[cell]
            {
                before.dirty = false;
            }
        }
    }

    pub(super) fn pass_through(&mut self, setup: &Setup, executing: &Executing) {
        if let What::Write { id, at, .. } = executing.what {
            at.cells().for_each(|cell| self.store[cell] = id);
            self.wrote_out(setup, executing.conn.into());
        }
    }

    pub(super) fn check_read(&mut self, setup: &Setup, index: usize, tag: u8, at: Span) {
        let Some(&sent) = self.sent.iter().find(|it| it.tag == tag) else {
            return;
        };
        let mut floor = sent.floor;
        for id in self.promised(sent.covers).iter() {
            self.raise(setup, &mut floor, id);
        }
        for cell in at.cells() {
            let cached = self.caches[Self::cache_of(setup, index)].cells[cell];
            let value = cached.map_or(self.store[cell], |it| it.id);
            if !setup.alone && self.is_older(value, floor[cell], setup.unordered()) {
                self.accuse(Wrong::Stale);
            }
            let must_see = self.kept_in(cell, sent.must_see);
            if self.is_older(value, must_see, setup.unordered()) {
                self.accuse(Wrong::Incoherent);
            }
        }
    }

    /// Something of this handle has reached the store: what others have loaded before is old.
    pub(super) fn wrote_out(&mut self, setup: &Setup, by: usize) {
        let own = setup.backend.self_coherent().then_some(by);
        for (index, handle) in self.handles.iter_mut().enumerate() {
            if Some(index) == own {
                continue;
            }
            let running = self.flushing.iter_mut();
            let mut running = running.filter(|it| usize::from(it.conn) == index);
            let before = running.next().map(|it| &mut it.left);
            for left in before.into_iter().chain([&mut handle.left]) {
                if *left == Left::Fresh {
                    *left = Left::Stale;
                }
            }
            let executing = self.executing.iter_mut();
            for executing in executing.filter(|it| usize::from(it.conn) == index) {
                executing.stale = true;
            }
        }
    }

    pub(super) fn start_flush(&mut self, setup: &Setup, conn: u8, flush: FlushId) {
        let index = usize::from(conn);
        let cache = self.caches[Self::cache_of(setup, index)];
        self.check_calls(setup, conn);
        if Self::is_through(setup, index) || self.handles[index].phase == Phase::Closed {
            return self.accuse(Wrong::Unneeded);
        }
        let stale = self.handles[index].left == Left::Stale
            || self.executing.iter().any(|it| it.conn == conn && it.stale);
        let exact = setup.minimal && setup.config.track_dirty() == TrackDirty::Connection;
        // Commands that overlap in time may count as if all had begun with the first: of those in
        // flight across a flush it is not known exactly whether they have loaded what is old.
        let in_flight = self.executing.iter().any(|it| it.conn == conn);
        let unsure = &mut self.handles[index].unsure;
        let unsure = core::mem::replace(unsure, stale && in_flight);
        if exact && !cache.uncovered && !stale && !unsure {
            self.accuse(Wrong::Unneeded);
        }
        if setup.counts_rounds {
            for sent in self.sent.iter_mut().filter(|it| it.what == What::Flush) {
                sent.visits[index] += 1;
            }
            // Two rounds, each of which writes a handle out and invalidates it.
            if self.sent.iter().any(|it| it.visits[index] > 4) {
                self.accuse(Wrong::Rounds);
            }
        }
        self.flushing.push(Flushing {
            conn,
            flush,
            before: cache.cells,
            left: core::mem::take(&mut self.handles[index].left),
            writes_out: cache.uncovered,
            dirtied: false,
        });
    }

    /// How a backend flush may end.
    pub(super) fn outcomes(&self, setup: &Setup, at: usize) -> Vec<Outcome> {
        let mut outcomes = alloc::vec![Outcome::Success];
        if self.budget.flush_faults > 0 {
            outcomes.push(Outcome::Keep);
            let dirty = self.flushing[at].before.iter().flatten();
            let dirty = dirty.filter(|it| it.dirty).count();
            // A backend that drops what it could not write must not be retried.
            if setup.config.after_failure() == AfterFailure::Sticky && dirty > 0 {
                outcomes.extend([Outcome::Drop, Outcome::Forget]);
                if dirty > 1 {
                    outcomes.push(Outcome::Half);
                }
            }
        }
        outcomes
    }

    /// A backend flush ends. Whatever was put in the cache while it ran stays there.
    pub(super) fn finish_flush(&mut self, setup: &Setup, at: usize, outcome: Outcome) {
        let flushing = self.flushing.remove(at);
        let index = usize::from(flushing.conn);
        for sent in &mut self.sent {
            sent.unreached = false;
            sent.unvisited &= !(1 << index);
        }
        let own = Self::cache_of(setup, index);
        let mut written = flushing
            .before
            .iter()
            .flatten()
            .filter(|it| it.dirty)
            .count();
        if outcome == Outcome::Half {
            written = 1;
        }
        for (cell, old) in flushing.before.iter().enumerate() {
            let Some(old) = old else { continue };
            let cached = &mut self.caches[own].cells[cell];
            let same = cached.is_some_and(|it| it.id == old.id);
            let again = cached.is_some_and(|it| it.dirty) && !old.dirty;
            match outcome {
                Outcome::Success | Outcome::Half => {
                    if same && !again {
                        *cached = None;
                    }
                    if old.dirty && written > 0 {
                        written -= 1;
                        self.put(setup, own, cell, old.id, Some(flushing.flush));
                    }
                }
                Outcome::Forget if same => {
                    *cached = Some(Cached {
                        id: old.id,
                        dirty: again,
                    });
                }
                _ => {}
            }
        }
        if matches!(outcome, Outcome::Drop | Outcome::Half | Outcome::Forget) {
            self.handles[index].lost_data = true;
        }
        if matches!(outcome, Outcome::Drop | Outcome::Half) {
            self.caches[own].cells = [None; CELLS];
        }
        // With granules the handle could lose its own writes if it were otherwise: to write a cell it
        // would put the old neighbour back that it had fetched before a flush.
        if setup.backend.self_coherent() || setup.config.granule() > 1 {
            for executing in &mut self.executing {
                if executing.conn == flushing.conn {
                    executing.fetched = None;
                }
            }
        }
        if flushing.writes_out {
            self.wrote_out(setup, index);
        }
        if outcome == Outcome::Success {
            self.caches[own].uncovered &= flushing.dirtied;
            self.coordinator.flushed(flushing.flush, Ok(()));
        } else {
            self.flush_failed(setup, &flushing);
            self.coordinator.flushed(flushing.flush, Err(Errno::EIO));
        }
    }

    pub(super) fn flush_failed(&mut self, setup: &Setup, flushing: &Flushing) {
        let index = usize::from(flushing.conn);
        let own = Self::cache_of(setup, index);
        self.trouble = true;
        let handle = &mut self.handles[index];
        handle.left = handle.left.max(flushing.left);
        handle.failed = true;
        let uncovered = self.caches[own].uncovered;
        match setup.config.after_failure() {
            AfterFailure::Sticky if setup.alone => handle.owed = true,
            AfterFailure::Sticky => {
                self.sticky = true;
                self.told = false;
            }
            AfterFailure::Retry => handle.owed |= uncovered && setup.caches == Caches::Own,
        }
        if handle.phase == Phase::Leaving {
            // It may have been the last chance of what is cached.
            self.drop_dirty(own);
        }
    }

    /// The cells that a cache may write out of its own accord.
    pub(super) fn write_backs(&self, index: usize) -> impl Iterator<Item = usize> {
        let cells = self.caches[index].cells;
        (0..CELLS).filter(move |&cell| cells[cell].is_some_and(|it| it.dirty))
    }

    pub(super) fn write_back(&mut self, setup: &Setup, index: usize, cell: usize) {
        if let Some(cached) = &mut self.caches[index].cells[cell] {
            cached.dirty = false;
            let id = cached.id;
            self.put(setup, index, cell, id, None);
        }
    }

    /// Puts what is in no particular order in one.
    pub(super) fn sort(&mut self) {
        self.sent.sort_by_key(|it| it.tag);
        self.executing.sort_by_key(|it| it.tag);
        self.flushing.sort_by_key(|it| it.conn);
    }
}
