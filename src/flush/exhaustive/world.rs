//! What is around the coordinator: clients that obey the protocol, a store, and backend handles
//! that use every freedom the contract leaves them. One state of it, and what may happen to it.
//!
//! Every write leaves its own number in the cells that it covers, so that what a read returns, and
//! what a crash would leave, tells which write it is from.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use crate::flush::command::{Action, Command, Conn, Decision, FlushId, Op};
use crate::flush::config::{AfterFailure, Backend, Config, TrackDirty};
use crate::flush::coordinator::FlushCoordinator;
use crate::wire::{CommandType, Errno};

pub(super) type Coordinator = FlushCoordinator<u8, u8, u8>;

/// The most cells there are. A cell is one byte as the coordinator sees it.
pub(super) const CELLS: usize = 2;

/// A write; 0 is what was there at first.
pub(super) type Id = u8;

/// A set of writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Ids(u16);

impl Ids {
    fn contains(self, id: Id) -> bool {
        self.0 & (1 << id) != 0
    }

    fn insert(&mut self, id: Id) {
        self.0 |= 1 << id;
    }

    fn without(self, others: Self) -> Self {
        Self(self.0 & !others.0)
    }

    fn iter(self) -> impl Iterator<Item = Id> {
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
    pub(super) budget: Budget,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Cached {
    id: Id,
    dirty: bool,
}

/// What ended commands may have left in a cache: nothing, something, something that is older
/// than what another handle has written out since.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Left {
    #[default]
    Nothing,
    Fresh,
    Stale,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Cache {
    cells: [Option<Cached>; CELLS],
    /// A modification has completed that no flush has covered.
    uncovered: bool,
}

impl Cache {
    fn dirty(&self) -> Ids {
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
    left: Left,
    /// What it had cached was stale when its last flush started, or became so since.
    was_stale: bool,
    /// A flush of it has failed, or it was lost.
    failed: bool,
    /// A flush failed to write out its data, and its client has not been told.
    owed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Span {
    pub(super) first: u8,
    pub(super) end: u8,
}

impl Span {
    fn cells(self) -> core::ops::Range<usize> {
        usize::from(self.first)..usize::from(self.end)
    }

    fn overlaps(self, other: Self) -> bool {
        self.first < other.end && other.first < self.end
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum What {
    Read(Span),
    Write { id: Id, at: Span, fua: bool },
    Flush,
}

/// A command without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Sent {
    tag: u8,
    conn: u8,
    what: What,
    /// What it has to read, or newer.
    floor: [Ids; CELLS],
    /// The writes that a flush has to cover.
    covers: Ids,
    /// How often each handle was flushed since it came.
    visits: [u8; 4],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Write {
    conn: u8,
    at: Span,
    /// Those that had been answered with success when it was sent.
    after: Ids,
    answered: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Executing {
    pub(super) op: Op,
    tag: u8,
    conn: u8,
    what: What,
    /// What it has fetched from the store when it started.
    fetched: Option<[Id; CELLS]>,
    /// Another handle has written something out since it started.
    stale: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Flushing {
    pub(super) conn: u8,
    pub(super) flush: FlushId,
    /// What was cached when it started.
    before: [Option<Cached>; CELLS],
    left: Left,
    writes_out: bool,
    /// A modification has completed since.
    dirtied: bool,
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
    Stuck,
    Answered,
    Unreported,
    Groundless,
    Unneeded,
    Rounds,
}

#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct World {
    pub(super) coordinator: Coordinator,
    store: [Id; CELLS],
    caches: Vec<Cache>,
    pub(super) handles: Vec<Handle>,
    writes: Vec<Write>,
    sent: Vec<Sent>,
    pub(super) executing: Vec<Executing>,
    pub(super) flushing: Vec<Flushing>,
    /// What no cell may be older than.
    floor: [Ids; CELLS],
    /// Writes of which a client has been told that they are lost.
    forgiven: Ids,
    /// Writes that were in a cache that is gone.
    gone: Ids,
    /// A client was told of a failure.
    told: bool,
    /// No flush may succeed any more.
    sticky: bool,
    /// Something has failed.
    trouble: bool,
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

    fn is_through(setup: &Setup, conn: usize) -> bool {
        setup.backend.caches_nothing || (setup.caches == Caches::Mixed && conn % 2 == 1)
    }

    /// Which cache a handle has.
    fn cache_of(setup: &Setup, conn: usize) -> usize {
        match setup.caches {
            Caches::Shared => 0,
            Caches::Own | Caches::Mixed => conn,
        }
    }

    fn accuse(&mut self, wrong: Wrong) {
        self.wrong.get_or_insert(wrong);
    }

    // Connections

    pub(super) fn connect(&mut self, setup: &Setup) {
        let index = self.handles.len();
        let conn = self.coordinator.connect(index as u8, &0);
        let loads = setup.backend.loads_on_open
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
            was_stale: false,
            failed: false,
            owed: false,
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

    /// Data that others rely on is lost: all have to hear of it.
    fn fail_all(&mut self, setup: &Setup, lost: bool) {
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
    fn close(&mut self, setup: &Setup, index: usize) {
        if setup.caches == Caches::Shared {
            return;
        }
        self.drop_dirty(index);
        self.caches[index] = Cache::default();
        self.handles[index].left = Left::Nothing;
    }

    /// What a handle has not written out is gone: also what it had been overwritten by.
    fn drop_dirty(&mut self, index: usize) {
        let cells = self.caches[index].cells;
        for (id, write) in (1..).zip(&self.writes) {
            let mut cells = cells[write.at.cells()].iter().flatten();
            if usize::from(write.conn) == index && cells.any(|it| it.dirty) {
                self.gone.insert(id);
            }
        }
    }

    // Clients

    pub(super) fn next_id(&self) -> Id {
        self.writes.len() as Id + 1
    }

    /// The writes that were answered with success.
    fn answered(&self) -> Ids {
        let mut ids = Ids::default();
        for (id, _) in (1..).zip(&self.writes).filter(|(_, it)| it.answered) {
            ids.insert(id);
        }
        ids
    }

    pub(super) fn send(&mut self, setup: &Setup, index: usize, what: What) {
        let tags = (0..).find(|tag| self.sent.iter().all(|it| it.tag != *tag));
        let tag = tags.unwrap_or_default();
        let mut covers = Ids::default();
        let command = match what {
            What::Flush => {
                covers = self.answered().without(self.forgiven);
                if setup.alone {
                    let others = |id: &Id| self.conn_of(*id) != Some(index);
                    let others: Vec<Id> = covers.iter().filter(others).collect();
                    let mut unpromised = Ids::default();
                    others.into_iter().for_each(|id| unpromised.insert(id));
                    covers = covers.without(unpromised);
                }
                Command::FLUSH
            }
            What::Read(at) => Command::new(CommandType::READ, at.first.into(), length(at)),
            What::Write { at, fua, .. } => {
                self.writes.push(Write {
                    conn: index as u8,
                    at,
                    after: self.answered(),
                    answered: false,
                });
                Command::new(CommandType::WRITE, at.first.into(), length(at)).with_fua(fua)
            }
        };
        self.sent.push(Sent {
            tag,
            conn: index as u8,
            what,
            floor: match what {
                What::Read(_) => self.floor,
                _ => [Ids::default(); CELLS],
            },
            covers,
            visits: [0; 4],
        });
        let decision = self
            .coordinator
            .command(self.handles[index].conn, command, tag);
        self.decide(setup, decision);
    }

    fn decide(&mut self, setup: &Setup, decision: Decision<u8>) {
        match decision {
            Decision::Execute { op, tag } => self.start(setup, op, tag),
            Decision::Reply { tag, result } => self.answer(setup, tag, result),
            Decision::Wait => {}
            // Nobody sends on a connection that is not open.
            Decision::Closed { .. } => self.accuse(Wrong::Answered),
        }
    }

    fn conn_of(&self, id: Id) -> Option<usize> {
        let write = self.writes.get(usize::from(id).checked_sub(1)?)?;
        Some(write.conn.into())
    }

    fn answer(&mut self, setup: &Setup, tag: u8, result: Result<(), Errno>) {
        let Some(place) = self.sent.iter().position(|it| it.tag == tag) else {
            return self.accuse(Wrong::Answered);
        };
        let sent = self.sent.remove(place);
        let index = usize::from(sent.conn);
        if self.handles[index].phase == Phase::Closed {
            self.accuse(Wrong::Answered);
        }
        match (sent.what, result) {
            (What::Flush, Ok(())) => {
                if !setup.lazy && (self.sticky || self.handles[index].owed) {
                    self.accuse(Wrong::Unreported);
                }
                for id in sent.covers.without(self.forgiven).iter() {
                    self.raise_floor(id);
                }
            }
            (What::Flush, Err(_)) => {
                if !self.trouble {
                    self.accuse(Wrong::Groundless);
                }
                self.told = true;
                if setup.config.after_failure() == AfterFailure::Retry {
                    self.handles[index].owed = false;
                    let gone = self.gone;
                    gone.iter().for_each(|id| self.forgiven.insert(id));
                }
            }
            (What::Write { id, fua, .. }, Ok(())) => {
                self.writes[usize::from(id) - 1].answered = true;
                if fua {
                    self.raise_floor(id);
                }
            }
            (What::Read(_), Ok(())) => {}
            (What::Read(at) | What::Write { at, .. }, Err(_)) => {
                self.check_cause(setup, index, at);
            }
        }
    }

    /// A command has failed that the backend has not failed: only because its own handle could not
    /// be flushed, or that of an overlapping write.
    fn check_cause(&mut self, setup: &Setup, index: usize, at: Span) {
        let granules = if setup.config.granule() > 1 {
            Span {
                first: 0,
                end: setup.cells,
            }
        } else {
            at
        };
        let own = self.handles[index].failed;
        let shared = setup.caches == Caches::Shared && self.trouble;
        let below = self.writes.iter().any(|write| {
            write.at.overlaps(granules) && self.handles[usize::from(write.conn)].failed
        });
        if !own && !below && !shared {
            self.accuse(Wrong::Groundless);
        }
    }

    // The promise

    fn raise_floor(&mut self, id: Id) {
        let Some(&write) = self.writes.get(usize::from(id) - 1) else {
            return;
        };
        for cell in write.at.cells() {
            self.floor[cell].insert(id);
            // What is older than another one of the floor says nothing more.
            let floor = self.floor[cell];
            let mut implied = Ids::default();
            for older in floor.iter().filter(|&it| self.is_older(it, floor, false)) {
                implied.insert(older);
            }
            self.floor[cell] = floor.without(implied);
        }
    }

    /// Whether a value was certainly overwritten by one of these writes: its own had been answered
    /// before that one was sent.
    fn is_older(&self, value: Id, floor: Ids, alone: bool) -> bool {
        floor.iter().filter(|&id| id != value).any(|id| {
            let write = &self.writes[usize::from(id) - 1];
            let same = value == 0 || self.conn_of(value) == Some(write.conn.into());
            (value == 0 || write.after.contains(value)) && (same || !alone)
        })
    }

    /// What would be wrong if there were a crash now, or a read on any connection.
    pub(super) fn check(&mut self, setup: &Setup) {
        for cell in 0..usize::from(setup.cells) {
            if self.is_older(self.store[cell], self.floor[cell], setup.alone) {
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
    fn check_visible(&mut self, setup: &Setup, index: usize) {
        let Handle { conn, phase, .. } = self.handles[index];
        if phase != Phase::Open {
            return;
        }
        for cell in 0..usize::from(setup.cells) {
            let cached = self.caches[Self::cache_of(setup, index)].cells[cell];
            let value = cached.map_or(self.store[cell], |it| it.id);
            if self.is_older(value, self.floor[cell], false) {
                let read = Command::new(CommandType::READ, cell as u64, 1);
                let decision = self.coordinator.clone().command(conn, read, u8::MAX);
                if matches!(decision, Decision::Execute { .. }) {
                    self.accuse(Wrong::Stale);
                }
            }
        }
    }

    pub(super) fn has_actions(&self) -> bool {
        !self.coordinator.actions.is_empty()
    }

    fn is_idle(&self) -> bool {
        self.executing.is_empty() && self.flushing.is_empty() && !self.has_actions()
    }

    /// While nothing goes on: what if a client flushed now, and again, and all left?
    fn try_flushes(&mut self, setup: &Setup) {
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
    fn settle(&mut self, setup: &Setup) {
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
            if self.is_older(self.store[cell], self.floor[cell], setup.alone) {
                self.accuse(Wrong::Lost);
            }
        }
        for index in 0..self.handles.len() {
            if !setup.alone {
                self.check_visible(setup, index);
            }
        }
    }

    // The backend

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
        }
        true
    }

    fn release(&mut self, setup: &Setup, index: usize) {
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

    fn start(&mut self, setup: &Setup, op: Op, tag: u8) {
        let Some(sent) = self.sent.iter().find(|it| it.tag == tag) else {
            return self.accuse(Wrong::Answered);
        };
        let (conn, what) = (sent.conn, sent.what);
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
            What::Flush => return loads,
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
        self.trouble |= !success;
        let decision = self.coordinator.complete(op, tag, result);
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

    fn load(&mut self, setup: &Setup, executing: &Executing, load: Load) {
        let cache = &mut self.caches[usize::from(executing.conn)].cells;
        let (span, reads) = match executing.what {
            What::Read(span) => (span, true),
            What::Write { at, .. } => (at, setup.config.granule() > 1),
            What::Flush => return,
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

    fn apply(&mut self, setup: &Setup, executing: &Executing, success: bool) {
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
    fn put(&mut self, setup: &Setup, own: usize, cell: usize, id: Id, by: Option<FlushId>) {
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

    fn pass_through(&mut self, setup: &Setup, executing: &Executing) {
        if let What::Write { id, at, .. } = executing.what {
            at.cells().for_each(|cell| self.store[cell] = id);
            self.wrote_out(setup, executing.conn.into());
        }
    }

    fn check_read(&mut self, setup: &Setup, index: usize, tag: u8, at: Span) {
        let Some(floor) = self.sent.iter().find(|it| it.tag == tag) else {
            return;
        };
        let floor = floor.floor;
        for cell in at.cells() {
            let cached = self.caches[Self::cache_of(setup, index)].cells[cell];
            let value = cached.map_or(self.store[cell], |it| it.id);
            if !setup.alone && self.is_older(value, floor[cell], false) {
                self.accuse(Wrong::Stale);
            }
        }
    }

    /// Something of this handle has reached the store: what others have loaded before is old.
    fn wrote_out(&mut self, setup: &Setup, by: usize) {
        let own = setup.backend.self_coherent.then_some(by);
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
                    handle.was_stale = true;
                }
            }
            let executing = self.executing.iter_mut();
            for executing in executing.filter(|it| usize::from(it.conn) == index) {
                executing.stale = true;
                handle.was_stale = true;
            }
        }
    }

    fn start_flush(&mut self, setup: &Setup, conn: u8, flush: FlushId) {
        let index = usize::from(conn);
        let cache = self.caches[Self::cache_of(setup, index)];
        if Self::is_through(setup, index) || self.handles[index].phase == Phase::Closed {
            return self.accuse(Wrong::Unneeded);
        }
        let stale = self.handles[index].left == Left::Stale
            || self.executing.iter().any(|it| it.conn == conn && it.stale);
        let exact = setup.minimal && setup.config.track_dirty() == TrackDirty::Connection;
        // Who asks for a flush of a stale handle may get it after another has made it fresh.
        let was_stale = core::mem::replace(&mut self.handles[index].was_stale, stale);
        if exact && !cache.uncovered && !stale && !was_stale {
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
        if matches!(outcome, Outcome::Drop | Outcome::Half) {
            self.caches[own].cells = [None; CELLS];
        }
        // With granules the handle could lose its own writes if it were otherwise: to write a cell it
        // would put the old neighbour back that it had fetched before a flush.
        if setup.backend.self_coherent || setup.config.granule() > 1 {
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

    fn flush_failed(&mut self, setup: &Setup, flushing: &Flushing) {
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

fn length(at: Span) -> u64 {
    u64::from(at.end - at.first)
}
