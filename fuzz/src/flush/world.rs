//! What is around a coordinator: clients, and backend handles that cache.
//!
//! Each byte of an export is a cell that holds the number of the command which wrote it last.

use std::collections::BTreeMap;

use nbd_proto::flush::{
    Action, AfterFailure, Backend, Command, Config, Conn, Decision, FlushCoordinator, FlushId,
    Grouping, Op, OpenError, TrackDirty,
};
use nbd_proto::wire::{CommandType, Errno};

/// Cells of each of two exports.
pub(super) const CELLS: u64 = 8;

/// The number of a command; 0 is that of what was in storage at first.
type Id = usize;

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

/// What holds for all handles.
#[derive(Clone, Copy, Debug)]
pub(super) struct Nature {
    /// There is one cache for all.
    pub(super) shared: bool,
    /// A handle forgets what it has fetched before a flush that has run since.
    pub(super) self_coherent: bool,
    /// A handle that is opened caches the whole export.
    pub(super) loads_on_open: bool,
    /// Whether the configuration is one that promises something.
    pub(super) promises: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Cell {
    id: Id,
    dirty: bool,
}

type Cache = BTreeMap<u64, Cell>;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Stage {
    Opening,
    Serving,
    Leaving,
    Gone,
}

#[derive(Debug)]
struct Connection {
    conn: Conn,
    export: u64,
    stage: Stage,
    backend: Backend,
    /// Whether flush was.
    advertised: bool,
    read_only: bool,
    cache: Cache,
    /// Modifications that have ended on the handle, and how many of them a flush has covered.
    modified: usize,
    covered: usize,
    released: bool,
}

#[derive(Debug)]
struct Sent {
    conn: usize,
    command: Command,
    invoked: usize,
    answered: Option<(usize, Result<(), Errno>)>,
    /// Nobody waits for the answer any more.
    abandoned: bool,
    /// What a read found, by cell.
    found: Vec<(u64, Id)>,
    /// For a flush: what it has to cover. For others: what they must not find something older
    /// than, by cell.
    covers: Vec<Id>,
    floor: BTreeMap<u64, Vec<Id>>,
}

#[derive(Debug)]
struct Executing {
    op: Op,
    id: Id,
    fetched: Vec<(u64, Id)>,
}

#[derive(Debug)]
struct Flushing {
    conn: usize,
    flush: FlushId,
    before: Cache,
    /// Modifications that had ended on the handle when it started.
    modified: usize,
}

#[derive(Debug)]
pub(super) struct World {
    coordinator: FlushCoordinator<usize, u8, Id>,
    nature: Nature,
    /// Whether what is promised is still checked: not after something was lost that can be.
    promises: bool,
    store: Vec<Id>,
    shared: Cache,
    connections: Vec<Connection>,
    sent: Vec<Sent>,
    executing: Vec<Executing>,
    flushing: Vec<Flushing>,
    ended: Vec<FlushId>,
    floor: BTreeMap<u64, Vec<Id>>,
    now: usize,
    flushes: usize,
    /// What can be the reason of a flush.
    stimuli: usize,
    modified: bool,
    failed: bool,
}

impl World {
    pub(super) fn new(config: Config, nature: Nature) -> Self {
        let first = Sent {
            conn: usize::MAX,
            command: Command::new(CommandType::WRITE, 0, CELLS),
            invoked: 0,
            answered: Some((0, Ok(()))),
            abandoned: false,
            found: Vec::new(),
            covers: Vec::new(),
            floor: BTreeMap::new(),
        };
        Self {
            coordinator: FlushCoordinator::new(config),
            nature,
            promises: nature.promises,
            store: vec![0; 2 * CELLS as usize],
            shared: Cache::new(),
            connections: Vec::new(),
            sent: vec![first],
            executing: Vec::new(),
            flushing: Vec::new(),
            ended: Vec::new(),
            floor: BTreeMap::new(),
            now: 0,
            flushes: 0,
            stimuli: 0,
            modified: false,
            failed: false,
        }
    }

    pub(super) const fn nature(&self) -> Nature {
        self.nature
    }

    pub(super) fn ever(&self) -> usize {
        self.connections.len()
    }

    pub(super) fn known(&self) -> usize {
        let gone = |it: &&Connection| it.stage != Stage::Gone;
        self.connections.iter().filter(gone).count()
    }

    pub(super) const fn may_drop(&self) -> bool {
        matches!(
            self.coordinator.config().after_failure(),
            AfterFailure::Sticky
        )
    }

    const fn tick(&mut self) -> usize {
        self.now += 1;
        self.now
    }

    fn fail(&mut self) {
        self.failed = true;
        self.stimuli += 1;
    }

    // --- connections ---

    pub(super) fn connect(&mut self, export: u8) -> usize {
        let index = self.connections.len();
        let conn = self.coordinator.connect(index, &export);
        let mut connection = Connection {
            conn,
            export: export.into(),
            stage: Stage::Opening,
            backend: Backend::new(),
            advertised: false,
            read_only: false,
            cache: Cache::new(),
            modified: 0,
            covered: 0,
            released: false,
        };
        if self.nature.loads_on_open && !self.nature.shared {
            for cell in connection.cells(0..CELLS) {
                let id = self.store[cell as usize];
                connection.cache.insert(cell, Cell { id, dirty: false });
            }
        }
        self.connections.push(connection);
        self.stimuli += 1;
        index
    }

    pub(super) fn opened(&mut self, index: usize, backend: Backend) {
        let Some(connection) = self.connections.get_mut(index) else {
            return;
        };
        let result = self.coordinator.opened(connection.conn, backend);
        if connection.stage != Stage::Opening {
            assert_eq!(result, Err(OpenError::NotOpening));
            return;
        }
        match result {
            Ok(advertised) => {
                connection.stage = Stage::Serving;
                connection.backend = backend;
                connection.advertised = advertised.flush;
                connection.read_only = backend == backend.with_read_only(true);
                if self.nature.promises {
                    assert!(advertised.flush && advertised.fua);
                    assert!(advertised.multi_conn || self.nature.shared);
                }
            }
            Err(why) => {
                assert!(!self.nature.promises, "{why}");
                connection.stage = Stage::Gone;
                connection.released = true;
            }
        }
    }

    pub(super) fn disconnect(&mut self, index: usize) {
        let Some(connection) = self.connections.get_mut(index) else {
            return;
        };
        match connection.stage {
            Stage::Opening => {
                connection.stage = Stage::Gone;
                connection.released = true;
            }
            Stage::Serving => connection.stage = Stage::Leaving,
            Stage::Leaving | Stage::Gone => {}
        }
        self.stimuli += 1;
        self.coordinator.disconnect(connection.conn);
    }

    /// A handle is gone; what it is executing ends with an error, or is never heard of again.
    pub(super) fn lose(&mut self, index: usize, silently: bool) {
        let Some(connection) = self.connections.get_mut(index) else {
            return;
        };
        let was = connection.stage;
        let conn = connection.conn;
        if was == Stage::Gone {
            return self.coordinator.lost(conn);
        }
        // What was not covered is lost, or, if the cache has written it back by itself, not known to
        // be in storage.
        if connection.modified > connection.covered {
            self.promises = false;
        }
        if was == Stage::Opening {
            connection.released = true;
        }
        connection.stage = Stage::Gone;
        connection.cache.clear();
        self.fail();
        self.flushing.retain(|it| it.conn != index);
        self.coordinator.lost(conn);
        let executing = std::mem::take(&mut self.executing);
        for it in executing {
            if it.op.conn() != conn {
                self.executing.push(it);
                continue;
            }
            self.sent[it.id].abandoned = true;
            if !silently {
                let decision = self.coordinator.complete(it.op, it.id, Err(Errno::EIO));
                assert!(matches!(decision, Decision::Closed { .. }));
            }
        }
    }

    /// Tells once more of a flush that has ended.
    pub(super) fn repeat_flushed(&mut self, which: usize) {
        if !self.ended.is_empty() {
            let flush = self.ended[which % self.ended.len()];
            self.coordinator.flushed(flush, Ok(()));
        }
    }

    pub(super) fn reset(&mut self, export: u8) {
        self.coordinator.reset(&export);
    }

    // --- clients ---

    pub(super) fn send(&mut self, index: usize, command: Command, load: Load) {
        let Some(connection) = self.connections.get(index) else {
            return;
        };
        if connection.read_only && command.kind.is_modification() {
            return;
        }
        let conn = connection.conn;
        let serving = connection.stage == Stage::Serving;
        let covers = match command.kind {
            CommandType::FLUSH => self.answered_modifications(index),
            _ => Vec::new(),
        };
        let id = self.sent.len();
        let invoked = self.tick();
        self.sent.push(Sent {
            conn: index,
            command,
            invoked,
            answered: None,
            abandoned: false,
            found: Vec::new(),
            covers,
            floor: self.floor.clone(),
        });
        self.stimuli += 1;
        let decision = self.coordinator.command(conn, command, id);
        assert_eq!(!matches!(decision, Decision::Closed { .. }), serving);
        self.decide(decision, load);
    }

    /// What a flush on this connection has to cover.
    fn answered_modifications(&self, index: usize) -> Vec<Id> {
        let all = self.coordinator.config().grouping() == Grouping::All;
        let export = |conn: usize| self.connections[conn].export;
        let sent = self.sent.iter().enumerate().skip(1);
        sent.filter(|(_, it)| it.command.kind.is_modification())
            .filter(|(_, it)| matches!(it.answered, Some((_, Ok(())))))
            .filter(|(_, it)| all || export(it.conn) == export(index))
            .map(|(id, _)| id)
            .collect()
    }

    fn decide(&mut self, decision: Decision<Id>, load: Load) {
        match decision {
            Decision::Execute { op, tag } => self.start(op, tag, load),
            Decision::Reply { tag, result } => self.answer(tag, result),
            Decision::Wait => {}
            Decision::Closed { tag } => self.sent[tag].abandoned = true,
            other => panic!("not known here: {other:?}"),
        }
    }

    fn answer(&mut self, id: Id, result: Result<(), Errno>) {
        let now = self.tick();
        let sent = &mut self.sent[id];
        assert!(sent.answered.is_none(), "command {id} is answered twice");
        assert!(!sent.abandoned, "command {id} was closed");
        assert!(
            !self.connections[sent.conn].released,
            "command {id} is answered after the release"
        );
        sent.answered = Some((now, result));
        if sent.command.kind == CommandType::FLUSH && !self.connections[sent.conn].advertised {
            assert_eq!(result, Err(Errno::EINVAL));
            return;
        }
        if result.is_err() {
            // Where some handles cannot flush, nobody may be left who could.
            let flush = self.sent[id].command.kind == CommandType::FLUSH;
            let may_fail = flush && !self.nature.promises;
            assert!(self.failed || may_fail, "nothing has failed");
            return;
        }
        match sent.command.kind {
            CommandType::FLUSH => {
                for covered in std::mem::take(&mut self.sent[id].covers) {
                    self.raise_floor(covered);
                }
            }
            kind if kind.is_modification() && sent.command.fua => self.raise_floor(id),
            _ => self.check_read(id),
        }
        self.check();
    }

    // --- the promise ---

    /// Nothing older than this may be read or be in storage from now on.
    fn raise_floor(&mut self, id: Id) {
        if !self.promises {
            return;
        }
        let Sent { conn, command, .. } = self.sent[id];
        let range = command.offset..command.offset + command.length;
        for cell in self.connections[conn].cells(range) {
            let floor = self.floor.entry(cell).or_default();
            if !floor.contains(&id) {
                floor.push(id);
            }
        }
    }

    /// Whether a value was overwritten, for certain, by one of these commands: it was answered
    /// before that one was sent.
    fn is_older(&self, value: Id, floor: &[Id]) -> bool {
        let Some((answered, Ok(()))) = self.sent[value].answered else {
            // What failed, or is not answered, may take effect at any time.
            return false;
        };
        let mut floor = floor.iter();
        floor.any(|&id| id != value && answered < self.sent[id].invoked)
    }

    fn check_read(&self, id: Id) {
        if !self.promises {
            return;
        }
        let sent = &self.sent[id];
        for (cell, value) in &sent.found {
            let floor = sent.floor.get(cell).map_or(&[][..], Vec::as_slice);
            assert!(
                !self.is_older(*value, floor),
                "stale: command {id} found {value} in cell {cell}, not {floor:?}"
            );
        }
    }

    /// Whether a crash now would lose anything.
    fn check(&self) {
        if !self.promises {
            return;
        }
        for (&cell, floor) in &self.floor {
            let value = self.store[cell as usize];
            assert!(
                !self.is_older(value, floor),
                "lost: {value} is in cell {cell} of the storage, not {floor:?}"
            );
        }
    }

    // --- the backend ---

    fn cache(&mut self, index: usize) -> &mut Cache {
        if self.nature.shared {
            &mut self.shared
        } else {
            &mut self.connections[index].cache
        }
    }

    fn start(&mut self, op: Op, id: Id, load: Load) {
        let Sent { conn, command, .. } = self.sent[id];
        assert_eq!(op.conn(), self.connections[conn].conn);
        let range = match load {
            Load::Everything => 0..CELLS,
            Load::Early | Load::Late => command.offset..command.offset + command.length,
        };
        let mut fetched = Vec::new();
        if load != Load::Late && !self.nature.shared {
            let cells = self.connections[conn].cells(range);
            fetched.extend(cells.map(|cell| (cell, self.store[cell as usize])));
        }
        self.modified |= command.kind.is_modification();
        self.executing.push(Executing { op, id, fetched });
    }

    /// A command takes effect and ends.
    pub(super) fn finish(&mut self, which: usize, fails: bool) {
        if self.executing.is_empty() {
            return;
        }
        let Executing { op, id, fetched } = self.executing.remove(which % self.executing.len());
        let Sent { conn, command, .. } = self.sent[id];
        let mut result = Ok(());
        if fails {
            result = Err(Errno::ENOSPC);
            self.fail();
        }
        for (cell, id) in fetched {
            let cell = self.cache(conn).entry(cell);
            cell.or_insert(Cell { id, dirty: false });
        }
        let range = command.offset..command.offset + command.length;
        let connection = &mut self.connections[conn];
        connection.modified += usize::from(command.kind.is_modification());
        let cells: Vec<u64> = connection.cells(range).collect();
        for cell in cells {
            let stored = self.store[cell as usize];
            if command.kind.is_modification() {
                // One that fails has its effect all the same.
                let dirty = !(op.fua() && result.is_ok());
                self.cache(conn).insert(cell, Cell { id, dirty });
                if !dirty {
                    self.store[cell as usize] = id;
                }
            } else {
                let cached = self.cache(conn).entry(cell).or_insert(Cell {
                    id: stored,
                    dirty: false,
                });
                let value = cached.id;
                self.sent[id].found.push((cell, value));
            }
        }
        let decision = self.coordinator.complete(op, id, result);
        self.decide(decision, Load::Late);
        self.check();
    }

    /// Takes whatever the coordinator wants done.
    pub(super) fn poll(&mut self) {
        while let Some(action) = self.coordinator.poll() {
            match action {
                Action::Execute { key, op, tag } => {
                    assert_eq!(key, self.sent[tag].conn);
                    let load = [Load::Late, Load::Early][tag % 2];
                    self.start(op, tag, load);
                }
                Action::Flush { key, flush } => {
                    let connection = &self.connections[key];
                    assert!(!connection.released && connection.stage != Stage::Opening);
                    assert_eq!(flush.conn(), connection.conn);
                    assert!(
                        self.flushing.iter().all(|it| it.conn != key),
                        "two flushes of one handle"
                    );
                    self.flushes += 1;
                    let before = self.cache(key).clone();
                    let modified = self.connections[key].modified;
                    self.flushing.push(Flushing {
                        conn: key,
                        flush,
                        before,
                        modified,
                    });
                }
                Action::Reply { key, tag, result } => {
                    assert_eq!(key, self.sent[tag].conn);
                    self.answer(tag, result);
                }
                Action::Release { key } => self.release(key),
                other => panic!("not known here: {other:?}"),
            }
        }
        self.check();
    }

    fn release(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        assert!(!connection.released, "released twice");
        assert!(matches!(connection.stage, Stage::Leaving | Stage::Gone));
        assert!(self.flushing.iter().all(|it| it.conn != index));
        let conn = connection.conn;
        assert!(self.executing.iter().all(|it| it.op.conn() != conn));
        connection.released = true;
        connection.stage = Stage::Gone;
        if connection.cache.values().any(|cell| cell.dirty) && self.promises {
            assert!(self.failed, "what was not written out is gone");
            self.promises = false;
        }
        connection.cache.clear();
    }

    /// A backend flush ends. What was cached while it ran stays in the cache.
    pub(super) fn finish_flush(&mut self, which: usize, fault: Option<Fault>) {
        if self.flushing.is_empty() {
            return;
        }
        let at = which % self.flushing.len();
        let Flushing {
            conn,
            flush,
            before,
            modified,
        } = self.flushing.remove(at);
        for (cell, old) in before {
            let written = match fault {
                None => true,
                Some(Fault::Half) => cell % 2 == 0,
                Some(Fault::Keep | Fault::Drop) => false,
            };
            // A cache of one's own writes what it had when the flush started, as late as it can; a
            // shared one cannot have older data written over newer.
            let current = self.cache(conn).get(&cell).map(|it| it.id);
            let id = match current {
                _ if !self.nature.shared => Some(old.id),
                current => current,
            };
            if written
                && old.dirty
                && let Some(id) = id
            {
                self.store[cell as usize] = id;
            }
            let forgotten = matches!(fault, None | Some(Fault::Drop));
            let cache = self.cache(conn);
            if forgotten && cache.get(&cell).is_some_and(|it| it.id == old.id) {
                cache.remove(&cell);
            }
            if forgotten && fault.is_some() && old.dirty {
                self.promises = false;
            }
        }
        if self.nature.self_coherent {
            let conn = self.connections[conn].conn;
            let executing = self.executing.iter_mut();
            for it in executing.filter(|it| it.op.conn() == conn) {
                it.fetched.clear();
            }
        }
        let connection = &mut self.connections[conn];
        let mut result = Ok(());
        if fault.is_none() {
            connection.covered = connection.covered.max(modified);
        } else {
            result = Err(Errno::EIO);
            if connection.stage == Stage::Leaving {
                // It was its last chance: the next flush of the group tells of the loss.
                self.promises = false;
            }
            self.fail();
        }
        self.ended.push(flush);
        self.coordinator.flushed(flush, result);
        self.check();
    }

    /// The cache writes a cell back before anybody asks for it.
    pub(super) fn write_back(&mut self, index: usize, which: u8) {
        let flushed = self.flushing.iter();
        let mut flushed = flushed.filter(|it| it.conn == index || self.nature.shared);
        if index >= self.connections.len() || flushed.next().is_some() {
            return;
        }
        let cache = self.cache(index);
        let mut dirty = cache.iter_mut().filter(|(_, cell)| cell.dirty);
        let count = dirty.by_ref().count();
        let which = usize::from(which).checked_rem(count).unwrap_or(0);
        let mut dirty = cache.iter_mut().filter(|(_, cell)| cell.dirty);
        if let Some((&cell, cached)) = dirty.nth(which) {
            cached.dirty = false;
            let id = cached.id;
            self.store[cell as usize] = id;
        }
        self.check();
    }

    // --- the end ---

    /// The backend does all that it was asked to, until nothing is left to do.
    pub(super) fn settle(&mut self) {
        for _ in 0..20_000 {
            self.poll();
            if !self.executing.is_empty() {
                self.finish(0, false);
            } else if !self.flushing.is_empty() {
                self.finish_flush(0, None);
            } else {
                return;
            }
        }
        panic!("the coordinator does not come to rest");
    }

    pub(super) fn check_all_answered(&self) {
        for (id, sent) in self.sent.iter().enumerate() {
            assert!(
                sent.answered.is_some() || sent.abandoned,
                "command {id} is never answered: {:?}",
                sent.command
            );
        }
    }

    pub(super) fn check_all_released(&self) {
        for (index, connection) in self.connections.iter().enumerate() {
            assert!(connection.released, "connection {index} is never released");
        }
    }

    /// Everything has a reason, and the number of flushes is bounded by that of reasons.
    pub(super) fn check_flushes(&self) {
        let most = 4 * super::MOST_CONNECTIONS * self.stimuli;
        assert!(self.flushes <= most, "{} flushes", self.flushes);
        let tracks = self.coordinator.config().track_dirty() == TrackDirty::Connection;
        if self.nature.promises && tracks && !self.modified {
            assert_eq!(self.flushes, 0, "nothing was modified");
        }
    }
}

impl Connection {
    /// Where cells of its export are in storage.
    fn cells(&self, range: std::ops::Range<u64>) -> impl Iterator<Item = u64> + use<> {
        let base = self.export * CELLS;
        range.map(move |cell| base + cell)
    }
}
