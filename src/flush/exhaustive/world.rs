//! What is around the coordinator: clients that obey the protocol, a store, and backend handles
//! that use every freedom the contract leaves them. One state of it, and what may happen to it.
//!
//! Every write leaves its own number in the cells that it covers, so that what a read returns, and
//! what a crash would leave, tells which write it is from.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use crate::flush::backend::Backend;
use crate::flush::command::{Conn, FlushId, Op};
use crate::flush::config::{Acknowledge, AfterFailure, Config, Overlap, ThreadModel};
use crate::flush::coordinator::FlushCoordinator;

pub(super) type Coordinator = FlushCoordinator<u8, u8, u8>;

/// The most cells there are. A cell is one byte as the coordinator sees it.
pub(super) const CELLS: usize = 2;

/// A write; 0 is what was there at first.
pub(super) type Id = u8;

/// A set of writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Ids(u16);

impl Ids {
    pub(super) fn contains(self, id: Id) -> bool {
        self.0 & (1 << id) != 0
    }

    pub(super) fn insert(&mut self, id: Id) {
        self.0 |= 1 << id;
    }

    pub(super) fn with(self, others: Self) -> Self {
        Self(self.0 | others.0)
    }

    pub(super) fn without(self, others: Self) -> Self {
        Self(self.0 & !others.0)
    }

    pub(super) fn iter(self) -> impl Iterator<Item = Id> {
        (0..16).filter(move |&id| self.contains(id))
    }
}

/// What caches there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Caches {
    /// One for each connection.
    Own,
    /// One for all.
    Shared,
    /// One for each connection, but every other connection has none.
    Mixed,
}

/// How often what may happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Budget {
    /// Commands of clients, of whatever kind.
    pub(super) commands: u8,
    pub(super) writes: u8,
    /// Writes with FUA.
    pub(super) fuas: u8,
    pub(super) reads: u8,
    /// Reads with a flush before them.
    pub(super) preflushes: u8,
    pub(super) flushes: u8,
    /// Writes and reads may be of all cells at once.
    pub(super) wide: u8,
    /// The cache writes something out before it is asked to.
    pub(super) write_backs: u8,
    /// A backend flush fails.
    pub(super) flush_faults: u8,
    /// A write fails, but has an effect.
    pub(super) write_faults: u8,
    pub(super) connects: u8,
    pub(super) disconnects: u8,
    pub(super) losses: u8,
    pub(super) revokes: u8,
}

/// One system to explore.
#[derive(Clone, Debug)]
pub(super) struct Setup {
    pub(super) name: String,
    pub(super) config: Config,
    pub(super) backend: Backend,
    pub(super) caches: Caches,
    /// Connections that are open at first.
    pub(super) connections: u8,
    pub(super) cells: u8,
    /// The promise is only made to each connection for itself.
    pub(super) alone: bool,
    /// What the coordinator wants done may wait; else it is done before anything else happens.
    pub(super) lazy: bool,
    /// No handle is flushed without need.
    pub(super) minimal: bool,
    /// How many flushes of a handle a client's flush waits for is counted.
    pub(super) counts_rounds: bool,
    /// A connection always reads what it was told is written: nothing fails, and handles are
    /// coherent with themselves.
    pub(super) reads_back: bool,
    pub(super) budget: Budget,
}

impl Setup {
    /// What different connections write to the same place has no order before it is flushed.
    pub(super) fn unordered(&self) -> bool {
        let ignored = self.config.overlap() == Overlap::Ignore;
        self.alone || (ignored && self.caches != Caches::Shared)
    }

    pub(super) fn is_coherent(&self) -> bool {
        self.config.overlap() == Overlap::Coherent
    }

    pub(super) fn serializes(&self) -> bool {
        self.config.thread_model() == ThreadModel::SerializeRequests
    }

    /// Whether a write is as good as one with FUA.
    pub(super) fn writes_through(&self) -> bool {
        self.config.acknowledge() == Acknowledge::WriteThrough
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Cached {
    pub(super) id: Id,
    pub(super) dirty: bool,
}

/// What ended commands may have left in a cache: nothing, something, something that is older
/// than what another handle has written out since.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Left {
    #[default]
    Nothing,
    Fresh,
    Stale,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Cache {
    pub(super) cells: [Option<Cached>; CELLS],
    /// A modification has completed that no flush has covered.
    pub(super) uncovered: bool,
}

impl Cache {
    pub(super) fn dirty(&self) -> Ids {
        let mut ids = Ids::default();
        for cached in self.cells.iter().flatten().filter(|it| it.dirty) {
            ids.insert(cached.id);
        }
        ids
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Phase {
    Opening,
    Open,
    Leaving,
    Closed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Handle {
    pub(super) conn: Conn,
    pub(super) phase: Phase,
    /// Something has happened on it.
    pub(super) used: bool,
    pub(super) left: Left,
    /// It was stale, and executing something, when its last flush started.
    pub(super) unsure: bool,
    /// A flush of it has failed, or it was lost.
    pub(super) failed: bool,
    /// A flush failed to write out its data, and its client has not been told.
    pub(super) owed: bool,
    /// What it had not written out may be gone.
    pub(super) lost_data: bool,
    pub(super) revoked: bool,
    /// It was revoked while it was executing something, of which the backend has to be told.
    pub(super) cancel_due: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Span {
    pub(super) first: u8,
    pub(super) end: u8,
}

impl Span {
    pub(super) fn cells(self) -> core::ops::Range<usize> {
        usize::from(self.first)..usize::from(self.end)
    }

    pub(super) fn overlaps(self, other: Self) -> bool {
        self.first < other.end && other.first < self.end
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum What {
    Read(Span),
    /// A read with FUA, where a flush comes before that.
    FlushAndRead(Span),
    Write {
        id: Id,
        at: Span,
        fua: bool,
    },
    Flush,
}

/// A command without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Sent {
    pub(super) tag: u8,
    pub(super) conn: u8,
    pub(super) what: What,
    /// What it has to read, or newer.
    pub(super) floor: [Ids; CELLS],
    /// The writes that it has to find, or newer ones, flushed or not.
    pub(super) must_see: Ids,
    /// The writes that a flush has to cover.
    pub(super) covers: Ids,
    /// A failure had not been reported to its client when it came.
    pub(super) owed: bool,
    /// How often each handle was flushed since it came.
    pub(super) visits: [u8; 4],
    /// Where each flush is to reach the backend: none that did so has ended since it came.
    pub(super) unreached: bool,
    /// Handles with something to write out when it came, of which no flush has ended since.
    pub(super) unvisited: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Write {
    pub(super) conn: u8,
    pub(super) at: Span,
    /// Those that had been answered with success when it was sent.
    pub(super) after: Ids,
    /// Those that come before it through whatever connection: they were flushed, or those of a
    /// connection that was revoked, when it was sent.
    pub(super) after_settled: Ids,
    pub(super) answered: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Executing {
    pub(super) op: Op,
    pub(super) tag: u8,
    pub(super) conn: u8,
    pub(super) what: What,
    /// What it has fetched from the store when it started.
    pub(super) fetched: Option<[Id; CELLS]>,
    /// Another handle has written something out since it started.
    pub(super) stale: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Flushing {
    pub(super) conn: u8,
    pub(super) flush: FlushId,
    /// What was cached when it started.
    pub(super) before: [Option<Cached>; CELLS],
    pub(super) left: Left,
    pub(super) writes_out: bool,
    /// A modification has completed since.
    pub(super) dirtied: bool,
}

/// What a command that ends leaves in the cache beside what it wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Load {
    /// What is in the store at its end, as far as it was asked for it.
    Late,
    /// What was in the store at its start, as far as it was asked for it.
    Early,
    /// All that was in the store at its start.
    Everything,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Success,
    /// It fails and all stays as it was.
    Keep,
    /// It fails, and what was cached is gone.
    Drop,
    /// It fails, and what was to be written out counts as written out, as in Linux's page cache.
    Forget,
    /// It fails when the first cell is written out; the rest is gone.
    Half,
}

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Wrong {
    Lost,
    Stale,
    Incoherent,
    Twice,
    Stuck,
    Answered,
    Unreported,
    Groundless,
    Unneeded,
    Unreached,
    Unvisited,
    Rounds,
}

#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct World {
    pub(super) coordinator: Coordinator,
    pub(super) store: [Id; CELLS],
    pub(super) caches: Vec<Cache>,
    pub(super) handles: Vec<Handle>,
    pub(super) writes: Vec<Write>,
    pub(super) sent: Vec<Sent>,
    pub(super) executing: Vec<Executing>,
    pub(super) flushing: Vec<Flushing>,
    /// What no cell may be older than.
    pub(super) floor: [Ids; CELLS],
    /// Writes of which a client has been told that they are lost.
    pub(super) forgiven: Ids,
    /// Writes that were in a cache that is gone.
    pub(super) gone: Ids,
    /// Writes that a flush, or FUA, has covered.
    pub(super) covered: Ids,
    /// Writes that were acknowledged, and then were not executed.
    pub(super) failed_late: Ids,
    /// A client was told of a failure.
    pub(super) told: bool,
    /// No flush may succeed any more.
    pub(super) sticky: bool,
    /// Something has failed.
    pub(super) trouble: bool,
    pub(super) budget: Budget,
    /// Cells from this one on are untouched.
    pub(super) used_cells: u8,
    pub(super) wrong: Option<Wrong>,
}

impl fmt::Debug for World {
    /// Only what tells what is wrong: the coordinator's inside would bury it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("World")
            .field("wrong", &self.wrong)
            .field("store", &self.store)
            .field("caches", &self.caches)
            .field("floor", &self.floor)
            .field("sent", &self.sent)
            .finish_non_exhaustive()
    }
}

impl Executing {
    pub(super) fn on(&self) -> (usize, What) {
        (self.conn.into(), self.what)
    }
}

impl World {
    pub(super) fn new(setup: &Setup) -> Self {
        let mut world = Self {
            coordinator: Coordinator::new(setup.config),
            store: [0; CELLS],
            caches: Vec::new(),
            handles: Vec::new(),
            writes: Vec::new(),
            sent: Vec::new(),
            executing: Vec::new(),
            flushing: Vec::new(),
            floor: [Ids::default(); CELLS],
            forgiven: Ids::default(),
            gone: Ids::default(),
            covered: Ids::default(),
            failed_late: Ids::default(),
            told: false,
            sticky: false,
            trouble: false,
            budget: setup.budget,
            used_cells: 0,
            wrong: None,
        };
        for _ in 0..setup.connections {
            world.connect(setup);
            world.opened(setup, world.handles.len() - 1);
        }
        world
    }

    pub(super) fn is_through(setup: &Setup, conn: usize) -> bool {
        setup.backend.caches_nothing() || (setup.caches == Caches::Mixed && conn % 2 == 1)
    }

    /// Which cache a handle has.
    pub(super) fn cache_of(setup: &Setup, conn: usize) -> usize {
        match setup.caches {
            Caches::Shared => 0,
            Caches::Own | Caches::Mixed => conn,
        }
    }

    pub(super) fn accuse(&mut self, wrong: Wrong) {
        self.wrong.get_or_insert(wrong);
    }

    pub(super) fn connect(&mut self, setup: &Setup) {
        let index = self.handles.len();
        let conn = self.coordinator.connect(index as u8, &0);
        let loads = setup.backend.loads_on_open()
            && setup.caches != Caches::Shared
            && !Self::is_through(setup, index);
        let mut cache = Cache::default();
        if loads {
            for (cell, &id) in cache.cells.iter_mut().zip(&self.store) {
                *cell = Some(Cached { id, dirty: false });
            }
        }
        self.caches.push(cache);
        self.handles.push(Handle {
            conn,
            phase: Phase::Opening,
            used: false,
            left: if loads { Left::Fresh } else { Left::Nothing },
            unsure: false,
            failed: false,
            owed: false,
            lost_data: false,
            revoked: false,
            cancel_due: false,
        });
    }

    pub(super) fn opened(&mut self, setup: &Setup, index: usize) {
        let mut backend = setup.backend;
        if Self::is_through(setup, index) {
            backend = Backend::new().with_caches_nothing(true);
        }
        let handle = &mut self.handles[index];
        handle.phase = Phase::Open;
        let opened = self.coordinator.opened(handle.conn, backend);
        assert!(opened.is_ok(), "the backend suits the mode: {opened:?}");
    }

    pub(super) fn disconnect(&mut self, index: usize) {
        let handle = &mut self.handles[index];
        handle.phase = match handle.phase {
            Phase::Opening => Phase::Closed,
            _ => Phase::Leaving,
        };
        self.coordinator.disconnect(handle.conn);
    }

    /// The client is gone, and may send again through others what was not answered.
    pub(super) fn revoke(&mut self, setup: &Setup, index: usize) {
        let executing = self.executing.iter();
        let executing = executing.filter(|it| usize::from(it.conn) == index);
        let executing: Vec<u8> = executing.map(|it| it.tag).collect();
        let handle = &mut self.handles[index];
        handle.phase = Phase::Leaving;
        handle.revoked = true;
        handle.cancel_due = !executing.is_empty();
        self.coordinator.revoke(handle.conn);
        if setup.lazy {
            return;
        }
        self.poll(setup);
        let mut left = self.sent.iter().filter(|it| usize::from(it.conn) == index);
        if left.any(|it| !executing.contains(&it.tag)) || self.handles[index].cancel_due {
            self.accuse(Wrong::Answered);
        }
    }

    /// The handle is gone. What it was executing has taken effect on the store, or has not.
    pub(super) fn lose(&mut self, setup: &Setup, index: usize, landed: bool) {
        self.trouble = true;
        let conn = self.handles[index].conn;
        let answered = self.answered();
        let dirty = self.caches[Self::cache_of(setup, index)].dirty();
        if setup.caches != Caches::Shared && !setup.alone {
            let lost = dirty.iter().any(|id| answered.contains(id));
            self.fail_all(setup, lost);
        }
        self.lose_acknowledged(setup, index);
        if landed {
            for executing in self.executing.clone() {
                if let What::Write { id, at, .. } = executing.what
                    && usize::from(executing.conn) == index
                {
                    at.cells().for_each(|cell| self.store[cell] = id);
                }
            }
        }
        let writing = self
            .executing
            .iter()
            .any(|it| usize::from(it.conn) == index && matches!(it.what, What::Write { .. }));
        if writing || self.caches[Self::cache_of(setup, index)].uncovered {
            self.wrote_out(setup, index);
        }
        let ended: Vec<u8> = self
            .executing
            .extract_if(.., |it| usize::from(it.conn) == index)
            .map(|it| it.tag)
            .collect();
        // What was executing is the caller's to answer.
        self.sent.retain(|it| !ended.contains(&it.tag));
        self.flushing.retain(|it| usize::from(it.conn) != index);
        self.close(setup, index);
        self.handles[index].phase = Phase::Leaving;
        self.handles[index].failed = true;
        self.coordinator.lost(conn);
    }

    /// What it was executing, and a client was told is done, is not.
    fn lose_acknowledged(&mut self, setup: &Setup, index: usize) {
        let mut lost = false;
        for executing in &self.executing {
            if let What::Write { id, .. } = executing.what
                && usize::from(executing.conn) == index
                && executing.op.acknowledged()
            {
                self.failed_late.insert(id);
                lost = true;
            }
        }
        self.fail_all(setup, lost && !setup.alone);
    }

    /// Data that others rely on is lost: all have to hear of it.
    pub(super) fn fail_all(&mut self, setup: &Setup, lost: bool) {
        if !lost {
            return;
        }
        match setup.config.after_failure() {
            AfterFailure::Sticky => {
                self.sticky = true;
                self.told = false;
            }
            AfterFailure::Retry => {
                for handle in &mut self.handles {
                    handle.owed |= handle.phase == Phase::Open;
                }
            }
        }
    }

    /// The handle is closed, and drops what it has cached.
    pub(super) fn close(&mut self, setup: &Setup, index: usize) {
        if setup.caches == Caches::Shared {
            return;
        }
        self.drop_dirty(index);
        self.caches[index] = Cache::default();
        self.handles[index].left = Left::Nothing;
    }

    /// What a handle has not written out is gone: also what it had been overwritten by.
    pub(super) fn drop_dirty(&mut self, index: usize) {
        let cells = self.caches[index].cells;
        for (id, write) in (1..).zip(&self.writes) {
            let mut cells = cells[write.at.cells()].iter().flatten();
            if usize::from(write.conn) == index && cells.any(|it| it.dirty) {
                self.gone.insert(id);
                self.handles[index].lost_data = true;
            }
        }
    }
}
