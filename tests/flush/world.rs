//! A model of everything around a coordinator: clients that obey the protocol, and backend
//! handles with a write-back cache each that use every freedom the contract leaves them.
//!
//! Each byte of the image is a cell that holds the number of the command which wrote it. The
//! promise of the coordinator is checked after every step.

mod checks;
mod clients;
mod handles;

use std::collections::BTreeMap;

use nbd_proto::flush::{
    Advertised, Backend, Command, Config, Conn, Decision, FlushCoordinator, FlushId, Op, OpenError,
    ThreadModel,
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
}
