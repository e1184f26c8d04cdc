//! Coordinators as a model server drives them.

use alloc::collections::BTreeMap;
use alloc::format;

use super::server::Trouble;
use crate::flush::{
    Action, Advertised, Backend, Command, Config, Conn, Decision, FlushCoordinator, FlushId, Op,
};
use crate::wire::Errno;

/// Something that a coordinator wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Task {
    /// Execute a command on the handle of its connection.
    Execute {
        /// The tag of the command.
        tag: u64,
        /// With the backend's own FUA.
        fua: bool,
        /// First answer its client with success.
        acknowledged: bool,
    },
    /// Flush the handle of a connection.
    Flush {
        /// Whose.
        conn: usize,
        /// What the coordinator calls the flush.
        flush: u64,
    },
    /// Answer a client.
    Reply {
        /// The tag of the command.
        tag: u64,
        /// The answer.
        result: Result<(), Errno>,
    },
    /// Close the handle of a connection, whose client has left.
    Close {
        /// Whose.
        conn: usize,
    },
}

/// What decides when backend handles are flushed: implement it to have it tried by
/// [`ModelServer`](super::ModelServer) and `prop_flush_consistent`.
///
/// Connections and tags are numbers that are never used twice. All that is to be done is returned
/// as [`Task`]s: what a call says is done at once; what [`poll`](Self::poll) says, when the
/// schedule gets there, in any order with what happens meanwhile.
///
/// [`Coordinated`] is the crate's own.
///
/// ```
/// use nbd_proto::conformance::property::{Coordinator, Task, Trouble};
/// use nbd_proto::flush::{Advertised, Backend, Command};
/// use nbd_proto::wire::{CommandType, Errno};
///
/// /// Answers flushes without doing anything, and says that it has multi-conn.
/// struct Careless;
///
/// impl Coordinator for Careless {
///     fn opened(&mut self, _: usize, _: Backend) -> Result<Advertised, Trouble> {
///         Ok(Advertised { multi_conn: true, flush: true, fua: false })
///     }
///     fn command(&mut self, _: usize, tag: u64, command: Command) -> Option<Task> {
///         Some(match command.kind {
///             CommandType::FLUSH => Task::Reply { tag, result: Ok(()) },
///             _ => Task::Execute { tag, fua: false, acknowledged: false },
///         })
///     }
///     fn executed(&mut self, tag: u64, result: Result<(), Errno>) -> Option<Task> {
///         Some(Task::Reply { tag, result })
///     }
///     fn flushed(&mut self, _: u64, _: Result<(), Errno>) {}
///     fn disconnect(&mut self, _: usize) {}
///     fn poll(&mut self) -> Option<Task> {
///         None
///     }
/// }
/// ```
pub trait Coordinator {
    /// The handle of a connection is about to be opened. By default, nothing.
    fn connect(&mut self, conn: usize) {
        let _ = conn;
    }

    /// The handle of a connection was opened, and can do this. Returns what its client is told.
    ///
    /// # Errors
    ///
    /// If it refuses the handle.
    fn opened(&mut self, conn: usize, backend: Backend) -> Result<Advertised, Trouble>;

    /// A client's command has arrived. Offsets and lengths are multiples of
    /// [`BLOCK`](super::ModelServer::BLOCK).
    fn command(&mut self, conn: usize, tag: u64, command: Command) -> Option<Task>;

    /// A command was executed.
    fn executed(&mut self, tag: u64, result: Result<(), Errno>) -> Option<Task>;

    /// A flush of a handle has ended.
    fn flushed(&mut self, flush: u64, result: Result<(), Errno>);

    /// The client of a connection has left. A [`Task::Close`] has to follow.
    fn disconnect(&mut self, conn: usize);

    /// Something else that is to be done now.
    fn poll(&mut self) -> Option<Task>;
}

/// The crate's own [`FlushCoordinator`] as a [`Coordinator`].
#[derive(Debug)]
pub struct Coordinated {
    coordinator: FlushCoordinator<usize, (), u64>,
    conns: BTreeMap<usize, Conn>,
    ops: BTreeMap<u64, Op>,
    flushes: BTreeMap<u64, FlushId>,
    next_flush: u64,
}

impl Coordinated {
    /// With these options.
    #[must_use]
    pub const fn new(config: Config) -> Self {
        Self {
            coordinator: FlushCoordinator::new(config),
            conns: BTreeMap::new(),
            ops: BTreeMap::new(),
            flushes: BTreeMap::new(),
            next_flush: 0,
        }
    }

    fn execute(&mut self, op: Op, tag: u64) -> Task {
        let task = Task::Execute {
            tag,
            fua: op.fua(),
            acknowledged: op.acknowledged(),
        };
        self.ops.insert(tag, op);
        task
    }

    fn decide(&mut self, decision: Decision<u64>) -> Option<Task> {
        match decision {
            Decision::Execute { op, tag } => Some(self.execute(op, tag)),
            Decision::Reply { tag, result } => Some(Task::Reply { tag, result }),
            Decision::Answered { .. } | Decision::Wait | Decision::Closed { .. } => None,
        }
    }
}

impl Coordinator for Coordinated {
    fn connect(&mut self, conn: usize) {
        let known = self.coordinator.connect(conn, &());
        self.conns.insert(conn, known);
    }

    fn opened(&mut self, conn: usize, backend: Backend) -> Result<Advertised, Trouble> {
        let known = self.conns.get(&conn).copied();
        let known = known.ok_or_else(|| Trouble::new("opened, but not connected"))?;
        let opened = self.coordinator.opened(known, backend);
        opened.map_err(|why| Trouble(format!("the coordinator refuses the handle: {why}")))
    }

    fn command(&mut self, conn: usize, tag: u64, command: Command) -> Option<Task> {
        let conn = self.conns.get(&conn).copied()?;
        let decision = self.coordinator.command(conn, command, tag);
        self.decide(decision)
    }

    fn executed(&mut self, tag: u64, result: Result<(), Errno>) -> Option<Task> {
        let op = self.ops.remove(&tag)?;
        let decision = self.coordinator.complete(op, tag, result);
        self.decide(decision)
    }

    fn flushed(&mut self, flush: u64, result: Result<(), Errno>) {
        if let Some(flush) = self.flushes.remove(&flush) {
            self.coordinator.flushed(flush, result);
        }
    }

    fn disconnect(&mut self, conn: usize) {
        if let Some(conn) = self.conns.get(&conn) {
            self.coordinator.disconnect(*conn);
        }
    }

    fn poll(&mut self) -> Option<Task> {
        loop {
            return Some(match self.coordinator.poll()? {
                Action::Execute { op, tag, .. } => self.execute(op, tag),
                Action::Flush { key, flush } => {
                    self.next_flush += 1;
                    self.flushes.insert(self.next_flush, flush);
                    Task::Flush {
                        conn: key,
                        flush: self.next_flush,
                    }
                }
                Action::Reply { tag, result, .. } => Task::Reply { tag, result },
                Action::Release { key } => {
                    self.conns.remove(&key);
                    Task::Close { conn: key }
                }
                // What is executing ends by itself.
                Action::Cancel { .. } => continue,
            });
        }
    }
}
