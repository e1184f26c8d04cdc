//! A model of everything around a coordinator: clients that obey the protocol, and backend
//! handles with a write-back cache each that use every freedom the contract leaves them.
//!
//! Each byte of the image is a cell that holds the number of the command which wrote it. The
//! promise of the coordinator is checked after every step.

use std::collections::BTreeMap;
use std::ops::Range;

use nbd_proto::flush::{
    Action, Advertised, Backend, Command, Config, Conn, Decision, FlushCoordinator, FlushId,
    FuaOnReads, Op, OpenError, Overlap, ThreadModel,
};
use nbd_proto::wire::{CommandType, Errno};

/// Cells of the image.
pub(crate) const CELLS: u64 = 8;

/// The number of a command; what a write leaves in its cells. 0 is what was there at first.
pub(crate) type Id = usize;

/// When something happened, in steps of the model.
type Time = usize;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The flush fails, the cache keeps everything.
    Keep,
    /// The flush fails, what was to be written is gone.
    Drop,
}

/// What a handle does while it executes a command, beyond the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Load {
    /// Nothing but the cells asked for, when the command ends.
    Late,
    /// Fetches the cells asked for when the command starts, and caches them when it ends.
    Early,
    /// As `Early`, but the whole image.
    Everything,
}

#[derive(Clone, Debug)]
pub(crate) struct Cell {
    id: Id,
    dirty: bool,
}

/// A backend handle: a write-back cache over the store.
#[derive(Clone, Debug, Default)]
pub(crate) struct Handle {
    cache: BTreeMap<u64, Cell>,
}

#[derive(Debug)]
pub(crate) struct Executing {
    pub(crate) op: Op,
    pub(crate) id: Id,
    fetched: BTreeMap<u64, Id>,
}

#[derive(Debug)]
pub(crate) struct Flushing {
    pub(crate) conn: usize,
    pub(crate) flush: FlushId,
    /// What was cached when it started.
    before: BTreeMap<u64, Cell>,
}

/// A command of a client.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub(crate) conn: usize,
    pub(crate) command: Command,
    pub(crate) invoked: Time,
    pub(crate) reply: Option<(Time, Result<(), Errno>)>,
    /// What a read returned, by cell.
    pub(crate) data: BTreeMap<u64, Id>,
    /// The commands that every cell must not be older than, as of the invocation.
    floor: BTreeMap<u64, Vec<Id>>,
    /// For a flush, and what has one before it: the modifications that had been answered when it
    /// arrived.
    covers: Vec<Id>,
    executed: bool,
    /// For a read: what it has to find without any flush.
    must_see: Vec<Id>,
    /// Its connection was gone before it was answered.
    pub(crate) abandoned: bool,
    /// It was answered with success when it began, and has not ended.
    unsettled: bool,
    /// It was answered with success, but then was not executed: the connections whose flushes
    /// have told so.
    failed_late: Option<Vec<usize>>,
}

pub(crate) struct Connection {
    pub(crate) conn: Conn,
    /// Its handle caches nothing.
    through: bool,
    pub(crate) open: bool,
    pub(crate) leaving: bool,
    pub(crate) released: bool,
    pub(crate) handle: Option<Handle>,
    /// Its handle was closed with something that was not written out.
    dropped: bool,
    /// Something that it had not written out is gone.
    lost_data: bool,
    /// A client was told of that; no retry brings it back, and no later flush answers for it.
    reported: bool,
    pub(crate) advertised: Option<Advertised>,
    /// When it was revoked: its client does not wait for answers any more.
    revoked: Option<Time>,
}

/// The model. Steps are taken by its methods, in any order that a caller likes.
pub(crate) struct World {
    pub(crate) coordinator: FlushCoordinator<usize, u8, Id>,
    pub(crate) backend: Backend,
    pub(crate) store: Vec<Id>,
    pub(crate) connections: Vec<Connection>,
    pub(crate) sent: Vec<Sent>,
    pub(crate) executing: Vec<Executing>,
    pub(crate) flushing: Vec<Flushing>,
    /// Every backend flush that was started, by connection.
    pub(crate) flushes: Vec<usize>,
    /// The commands that each cell must not be older than.
    floor: BTreeMap<u64, Vec<Id>>,
    now: Time,
    /// How many commands had been sent when a client was last told of a failure.
    failure_reported: Option<Id>,
    /// Earlier commands are not promised any more.
    forgiven: Id,
    /// How commands load that start by themselves in `settle`.
    pub(crate) load: Load,
    /// Whether a handle forgets what its commands in flight have fetched before a flush.
    pub(crate) self_coherent: bool,
    /// Whether opening a handle fills its cache.
    pub(crate) load_on_open: bool,
    /// Whether every other handle caches nothing.
    pub(crate) some_through: bool,
    /// Caches fetch and write back so many cells at a time.
    pub(crate) granule: u64,
    /// Modes without a promise across connections are only checked for answers.
    pub(crate) promises: bool,
    /// A handle is never called while a command executes or a flush runs on it.
    one_call_at_a_time: bool,
    /// All connections use one cache, which one flush covers.
    pub(crate) shared: bool,
    /// Every connection is on its own: flushes cover what it has written itself.
    pub(crate) own: bool,
    /// What different connections write to the same place has no order without a flush.
    pub(crate) unordered: bool,
    /// Every modification is stable when it is answered.
    pub(crate) stable: bool,
    /// Connections whose commands in flight are to be brought to an end.
    pub(crate) cancels: Vec<usize>,
    /// A connection always reads what it was told is written: nothing fails, and handles are
    /// coherent with themselves.
    pub(crate) reads_back: bool,
}

impl World {
    pub(crate) fn new(config: Config, backend: Backend) -> Self {
        Self {
            coordinator: FlushCoordinator::new(config),
            backend,
            store: vec![0; CELLS as usize],
            connections: Vec::new(),
            sent: vec![Sent {
                conn: usize::MAX,
                command: Command::new(CommandType::WRITE, 0, CELLS),
                invoked: 0,
                reply: Some((0, Ok(()))),
                data: BTreeMap::new(),
                floor: BTreeMap::new(),
                covers: Vec::new(),
                executed: true,
                must_see: Vec::new(),
                abandoned: false,
                unsettled: false,
                failed_late: None,
            }],
            executing: Vec::new(),
            flushing: Vec::new(),
            flushes: Vec::new(),
            floor: BTreeMap::new(),
            now: 1,
            failure_reported: None,
            forgiven: 0,
            load: Load::Late,
            self_coherent: false,
            load_on_open: false,
            some_through: false,
            granule: 1,
            promises: true,
            one_call_at_a_time: config.thread_model() == ThreadModel::SerializeRequests,
            shared: false,
            own: false,
            unordered: false,
            stable: false,
            cancels: Vec::new(),
            reads_back: false,
        }
    }

    /// A world with that many open connections.
    pub(crate) fn with_connections(config: Config, backend: Backend, count: usize) -> Self {
        let mut world = Self::new(config, backend);
        for _ in 0..count {
            world.open();
        }
        world
    }

    fn tick(&mut self) -> Time {
        self.now += 1;
        self.now
    }

    // Connections

    pub(crate) fn connect(&mut self, export: u8) -> usize {
        // Whether the group is empty before the newcomer is not to depend on what was polled.
        self.poll();
        let index = self.connections.len();
        let conn = self.coordinator.connect(index, &export);
        let mut handle = Handle::default();
        let through = self.some_through && index % 2 == 1;
        if self.load_on_open && !through {
            for (cell, &id) in (0..).zip(&self.store) {
                handle.cache.insert(cell, Cell { id, dirty: false });
            }
        }
        self.connections.push(Connection {
            conn,
            through,
            open: false,
            leaving: false,
            released: false,
            handle: Some(handle),
            dropped: false,
            lost_data: false,
            reported: false,
            advertised: None,
            revoked: None,
        });
        index
    }

    pub(crate) fn opened(&mut self, index: usize) -> Result<Advertised, OpenError> {
        let connection = &mut self.connections[index];
        let mut backend = self.backend;
        if connection.through {
            backend = Backend::new().with_caches_nothing(true);
        }
        let result = self.coordinator.opened(connection.conn, backend);
        connection.open = result.is_ok();
        connection.advertised = result.ok();
        self.check();
        result
    }

    pub(crate) fn open(&mut self) -> usize {
        let index = self.connect(0);
        self.opened(index).expect("the backend suits the mode");
        index
    }

    pub(crate) fn disconnect(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        connection.leaving = true;
        let opening = !connection.open;
        self.coordinator.disconnect(connection.conn);
        if opening {
            connection.released = true;
            connection.handle = None;
        }
    }

    pub(crate) fn lose(&mut self, index: usize) {
        let conn = self.connections[index].conn;
        self.connections[index].leaving = true;
        self.close(index);
        for it in &self.executing {
            if it.op.conn() == conn && it.op.acknowledged() {
                self.sent[it.id].unsettled = false;
                self.sent[it.id].failed_late = Some(Vec::new());
            }
        }
        let executing = self.executing.extract_if(.., |it| it.op.conn() == conn);
        let executing: Vec<Executing> = executing.collect();
        let flushing = self.flushing.extract_if(.., |it| it.conn == index);
        let flushing: Vec<Flushing> = flushing.collect();
        self.coordinator.lost(conn);
        if !self.connections[index].open {
            self.connections[index].released = true;
        }
        // What is heard of the handle afterwards changes nothing.
        for it in flushing {
            self.coordinator.flushed(it.flush, Ok(()));
        }
        for Executing { op, id, .. } in executing {
            let decision = self.coordinator.complete(op, id, Ok(()));
            assert!(matches!(decision, Decision::Closed { .. }));
        }
        self.coordinator.lost(conn);
        self.poll();
        // What was executing is the caller's to answer.
        self.abandon(index);
    }

    /// The client is gone; what it sends again through others counts as sent later.
    pub(crate) fn revoke(&mut self, index: usize) {
        let now = self.tick();
        let connection = &mut self.connections[index];
        connection.leaving = true;
        connection.revoked.get_or_insert(now);
        self.coordinator.revoke(connection.conn);
        if !connection.open {
            connection.released = true;
            connection.handle = None;
        }
    }

    fn abandon(&mut self, index: usize) {
        for sent in &mut self.sent {
            if sent.conn == index && sent.reply.is_none() {
                sent.abandoned = true;
            }
        }
    }

    /// The handle is closed, and drops what it has cached.
    fn close(&mut self, index: usize) {
        if self.shared {
            return;
        }
        let connection = &mut self.connections[index];
        if let Some(handle) = connection.handle.take() {
            connection.dropped |= handle.cache.values().any(|cell| cell.dirty);
            connection.lost_data |= connection.dropped;
        }
    }

    // Clients

    pub(crate) fn send(&mut self, index: usize, command: Command) -> Id {
        self.send_loading(index, command, self.load)
    }

    /// Sends a command that, if it executes at once, loads like this.
    pub(crate) fn send_loading(&mut self, index: usize, command: Command, load: Load) -> Id {
        let id = self.sent.len();
        let invoked = self.tick();
        let covers = if command.kind == CommandType::FLUSH || self.has_preflush(command) {
            self.answered_modifications(index)
        } else {
            Vec::new()
        };
        let must_see = self.must_see(index, command);
        let mut floor = self.floor.clone();
        if self.own {
            let ours = |&id: &Id| self.sent[id].conn == index;
            floor.values_mut().for_each(|ids| ids.retain(ours));
        }
        if self.reads_back && command.kind == CommandType::READ {
            self.raise_to_own(&mut floor, index);
        }
        self.sent.push(Sent {
            conn: index,
            command,
            invoked,
            reply: None,
            data: BTreeMap::new(),
            floor,
            covers,
            executed: false,
            must_see,
            abandoned: false,
            unsettled: false,
            failed_late: None,
        });
        let conn = self.connections[index].conn;
        let decision = self.coordinator.command(conn, command, id);
        self.decide(decision, load);
        self.check();
        id
    }

    pub(crate) fn write(&mut self, index: usize, cell: u64, count: u64) -> Id {
        self.send(index, Command::new(CommandType::WRITE, cell, count))
    }

    pub(crate) fn write_fua(&mut self, index: usize, cell: u64, count: u64) -> Id {
        let command = Command::new(CommandType::WRITE, cell, count).with_fua(true);
        self.send(index, command)
    }

    pub(crate) fn read(&mut self, index: usize, cell: u64, count: u64) -> Id {
        self.send(index, Command::new(CommandType::READ, cell, count))
    }

    pub(crate) fn read_fua(&mut self, index: usize, cell: u64, count: u64) -> Id {
        let command = Command::new(CommandType::READ, cell, count).with_fua(true);
        self.send(index, command)
    }

    pub(crate) fn flush(&mut self, index: usize) -> Id {
        self.send(index, Command::FLUSH)
    }

    /// What a read has to find without any flush. What a handle makes of its own modifications, if
    /// it is flushed meanwhile, is its own affair.
    fn must_see(&self, index: usize, command: Command) -> Vec<Id> {
        let coherent = self.coordinator.config().overlap() == Overlap::Coherent;
        if !coherent || command.kind != CommandType::READ {
            return Vec::new();
        }
        let mut must_see = self.answered_modifications(index);
        must_see.retain(|&id| self.self_coherent || self.sent[id].conn != index);
        must_see
    }

    /// Whether a command stands for a flush and itself.
    fn has_preflush(&self, command: Command) -> bool {
        self.coordinator.config().fua_on_reads() == FuaOnReads::Preflush
            && command.kind == CommandType::READ
            && command.fua
    }

    /// A sticky failure ends with the last connection, once a client was told of it: from then on
    /// nobody is promised what was written before.
    fn forgive_if_empty(&mut self) {
        if self.connections.iter().all(|it| it.released)
            && let Some(sent) = self.failure_reported.take()
        {
            self.forgiven = sent;
        }
    }

    /// Whoever was told of a failure does not rely on what was written before.
    pub(crate) fn forgive(&mut self) {
        self.forgiven = self.sent.len();
        self.failure_reported = None;
    }

    /// The failures are forgotten, and what was written before is not promised any more.
    pub(crate) fn reset(&mut self) {
        self.coordinator.reset(&0);
        self.forgive();
        for sent in &mut self.sent {
            if sent.reply.is_none() {
                sent.covers.clear();
            }
        }
    }

    /// What was acknowledged to a connection is as good as executed for what it reads.
    fn raise_to_own(&self, floor: &mut BTreeMap<u64, Vec<Id>>, index: usize) {
        let everyone = self.shared || self.connections[index].through;
        for (id, sent) in self.sent.iter().enumerate().skip(1) {
            let ours = everyone || sent.conn == index;
            let done = matches!(sent.reply, Some((_, Ok(()))));
            if ours && done && sent.command.kind.is_modification() {
                let Command { offset, length, .. } = sent.command;
                for cell in offset..offset + length {
                    floor.entry(cell).or_default().push(id);
                }
            }
        }
    }

    /// What a flush has to cover.
    fn answered_modifications(&self, index: usize) -> Vec<Id> {
        let modifications = self.sent.iter().enumerate().skip(self.forgiven.max(1));
        modifications
            .filter(|(_, sent)| !self.own || sent.conn == index)
            .filter(|(_, sent)| sent.command.kind.is_modification())
            .filter(|(_, sent)| matches!(sent.reply, Some((_, Ok(())))))
            .map(|(id, _)| id)
            .collect()
    }

    pub(crate) fn reply(&self, id: Id) -> Option<Result<(), Errno>> {
        self.sent[id].reply.map(|(_, result)| result)
    }

    /// What a read of one cell returned.
    pub(crate) fn value(&self, id: Id) -> Id {
        *self.sent[id].data.values().next().expect("the read ended")
    }

    fn decide(&mut self, decision: Decision<Id>, load: Load) {
        match decision {
            Decision::Execute { op, tag } => self.start(op, tag, load),
            Decision::Reply { tag, result } => self.answer(tag, result),
            Decision::Answered { tag } => {
                let sent = &mut self.sent[tag];
                assert!(
                    sent.unsettled,
                    "command {tag} was not answered when it began"
                );
                sent.unsettled = false;
            }
            Decision::Wait => {}
            Decision::Closed { tag } => self.sent[tag].abandoned = true,
            other => panic!("unknown decision {other:?}"),
        }
    }

    fn answer(&mut self, id: Id, result: Result<(), Errno>) {
        let now = self.tick();
        let sent = &mut self.sent[id];
        assert!(sent.reply.is_none(), "command {id} was answered twice");
        assert!(
            !self.connections[sent.conn].released,
            "command {id} was answered after its connection was released"
        );
        sent.reply = Some((now, result));
        let (command, executed) = (sent.command, sent.executed);
        if result == Err(Errno::ESHUTDOWN) {
            let revoked = self.connections[sent.conn].revoked;
            assert!(revoked.is_some(), "command {id} was cancelled");
            return;
        }
        if result.is_err() {
            let flush_failed = self.has_preflush(command) && !executed;
            if command.kind == CommandType::FLUSH || flush_failed {
                self.failure_reported = Some(self.sent.len());
                for connection in &mut self.connections {
                    connection.reported |= connection.dropped;
                }
                let conn = self.sent[id].conn;
                for told in self
                    .sent
                    .iter_mut()
                    .filter_map(|it| it.failed_late.as_mut())
                {
                    told.push(conn);
                }
            }
            return;
        }
        match command.kind {
            CommandType::FLUSH => self.raise_floor_to_covered(id),
            CommandType::READ if self.has_preflush(command) => {
                // It came after its own flush, and others' floors may be above that by now.
                let mut own = std::mem::take(&mut self.sent[id].floor);
                std::mem::swap(&mut own, &mut self.floor);
                self.raise_floor_to_covered(id);
                std::mem::swap(&mut own, &mut self.floor);
                self.sent[id].floor = own;
                self.check_read(id);
                self.raise_floor_to_covered(id);
            }
            CommandType::READ => self.check_read(id),
            kind if kind.is_modification() && (command.fua || self.stable) => self.raise_floor(id),
            _ => {}
        }
    }

    // The promise

    /// From now on nothing older than what this flush covers may be seen.
    fn raise_floor_to_covered(&mut self, id: Id) {
        for covered in self.sent[id].covers.clone() {
            if let Some(told) = &self.sent[covered].failed_late {
                let conn = self.sent[id].conn;
                let came_later = self.sent.iter().position(|it| it.conn == conn);
                let came_later = came_later > Some(covered) && !told.is_empty();
                assert!(
                    told.contains(&conn) || came_later || !self.promises,
                    "flush {id} hides that {covered} has failed"
                );
                continue;
            }
            assert!(
                !self.sent[covered].unsettled,
                "flush {id} overtook {covered}"
            );
            if !self.connections[self.sent[covered].conn].reported {
                self.raise_floor(covered);
            }
        }
    }

    /// From now on nothing older than this command may be seen, nor left after a crash.
    fn raise_floor(&mut self, id: Id) {
        let Command { offset, length, .. } = self.sent[id].command;
        for cell in offset..offset + length {
            let floor = self.floor.entry(cell).or_default();
            if !floor.contains(&id) {
                floor.push(id);
            }
        }
    }

    /// Whether a value was certainly overwritten by one of these commands: it had been answered,
    /// or its connection been revoked, before that one was sent.
    fn is_older(&self, value: Id, floor: &[Id]) -> bool {
        let old = &self.sent[value];
        let revoked = self.connections.get(old.conn).and_then(|it| it.revoked);
        let answered = match old.reply {
            Some((answered, Ok(()))) => Some(answered),
            // A write that failed, or is not answered, may take effect at any time.
            _ => None,
        };
        let mut floor = floor.iter().filter(|&&id| id != value);
        floor.any(|&id| {
            let new = &self.sent[id];
            let in_order = !self.unordered || value == 0 || old.conn == new.conn;
            (in_order && answered.is_some_and(|at| at < new.invoked))
                || revoked.is_some_and(|at| at < new.invoked)
        })
    }

    fn check_read(&self, id: Id) {
        if !self.promises {
            return;
        }
        let sent = &self.sent[id];
        for (cell, &value) in &sent.data {
            let floor = sent.floor.get(cell).map_or(&[][..], Vec::as_slice);
            assert!(
                !self.is_older(value, floor),
                "stale: read {id} on connection {} found {value} in cell {cell}, not {floor:?}",
                sent.conn
            );
            let covers = |id: &Id| {
                let sent = &self.sent[*id];
                let Sent { conn, command, .. } = sent;
                sent.failed_late.is_none()
                    && (command.offset..command.offset + command.length).contains(cell)
                    && !self.connections[*conn].lost_data
            };
            let written: Vec<Id> = sent.must_see.iter().copied().filter(covers).collect();
            assert!(
                !self.is_older(value, &written),
                "incoherent: read {id} on connection {} found {value} in cell {cell}, after {written:?}",
                sent.conn
            );
        }
    }

    /// Would a crash now lose anything that was promised?
    pub(crate) fn check(&self) {
        if !self.promises {
            return;
        }
        for (&cell, floor) in &self.floor {
            let value = self.store[cell as usize];
            assert!(
                !self.is_older(value, floor),
                "lost: cell {cell} holds {value} on permanent storage, not {floor:?}"
            );
        }
    }

    // The backend

    /// A handle is about to be called.
    fn check_calls(&self, index: usize) {
        if !self.one_call_at_a_time {
            return;
        }
        let conn = self.connections[index].conn;
        let command = self.executing.iter().find(|it| it.op.conn() == conn);
        assert!(
            command.is_none() && !self.is_flushing(index),
            "handle {index} is called while {command:?} or a flush is under way on it"
        );
    }

    fn start(&mut self, op: Op, id: Id, load: Load) {
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
    fn lines(&self, cells: Range<u64>) -> Range<u64> {
        let start = cells.start - cells.start % self.granule;
        start..cells.end.next_multiple_of(self.granule).min(CELLS)
    }

    /// Whose handle's cache a connection uses.
    fn handle_of(&self, index: usize) -> usize {
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
    fn finish_through(&mut self, op: Op, id: Id, result: Result<(), Errno>) {
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

    /// Rule 11: what the backend has answered leaves no client waiting.
    pub(crate) fn check_all_answered(&self) {
        for (id, sent) in self.sent.iter().enumerate() {
            assert!(
                sent.reply.is_some() || sent.abandoned,
                "command {id} on connection {} was never answered: {:?}",
                sent.conn,
                sent.command
            );
        }
        for (index, connection) in self.connections.iter().enumerate() {
            assert!(
                !connection.leaving || connection.released,
                "connection {index} was never released"
            );
        }
    }
}
