//! What all connections share.

use std::collections::HashMap;
use std::io;
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nbd_proto::flush::{Action, Backend as Abilities, Config, FlushCoordinator, Mode, OpenError};
use nbd_proto::wire::Name;
use parking_lot::{Condvar, Mutex};

use crate::backend::{Backend, Capabilities, Handle, Pace};
use crate::connection::Connection;
use crate::execute::{Task, to_errno};
use crate::log::{Log, warn};
use crate::stream::Stream;

pub(crate) type Coordinator = FlushCoordinator<Arc<Connection>, (), Task>;

/// How long clients have, when the server stops, to take the replies that are due.
const GRACE: Duration = Duration::from_secs(10);

pub(crate) struct Server {
    /// All exports are names of the same storage, so that all connections are one group.
    pub(crate) coordinator: Mutex<Coordinator>,
    pub(crate) storage: Arc<dyn Backend>,
    /// What it can do, and is allowed to.
    pub(crate) can: Capabilities,
    /// The same in the coordinator's words.
    pub(crate) backend: Abilities,
    pub(crate) exports: Vec<Name>,
    pub(crate) threads: u16,
    pub(crate) log: Log,
    connections: Mutex<HashMap<u64, Arc<Connection>>>,
    gone: Condvar,
    next_id: AtomicU64,
    stopping: AtomicBool,
}

impl Server {
    pub(crate) fn new(
        storage: Arc<dyn Backend>,
        config: Config,
        exports: Vec<Name>,
        read_only: bool,
        threads: u16,
        log: Log,
    ) -> Result<Arc<Self>, OpenError> {
        let mut can = storage.capabilities();
        can.read_only |= read_only;
        let backend = abilities(can);
        // What would refuse every client refuses to start instead.
        let mut trial = FlushCoordinator::<(), (), ()>::new(config);
        let conn = trial.connect((), &());
        trial.opened(conn, backend)?;
        Ok(Arc::new(Self {
            coordinator: Mutex::new(FlushCoordinator::new(config)),
            storage,
            can,
            backend,
            exports,
            threads,
            log,
            connections: Mutex::default(),
            gone: Condvar::new(),
            next_id: AtomicU64::new(1),
            stopping: AtomicBool::new(false),
        }))
    }

    /// Serves a client that has connected, on a thread of its own.
    pub(crate) fn welcome(self: &Arc<Self>, stream: Stream, from: &str) -> io::Result<()> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        self.log.line(|| format!("connection {id}: from {from}"));
        let connection = Connection::new(id, Arc::clone(self), stream);
        self.connections.lock().insert(id, Arc::clone(&connection));
        let spawned = thread::Builder::new()
            .name(format!("nbd {id}"))
            .spawn(move || connection.run());
        if spawned.is_err() {
            self.gone(id);
        }
        spawned.map(|_| ())
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// A connection has been closed.
    pub(crate) fn gone(&self, id: u64) {
        let connection = self.connections.lock().remove(&id);
        drop(connection);
        self.log.line(|| format!("connection {id}: closed"));
        self.gone.notify_all();
    }

    /// What a handle still has cached is written out before it is closed. While emulating, the
    /// coordinator has seen to that already, and knew who to tell of a failure.
    pub(crate) fn close_handle(&self, handle: &dyn Handle) {
        let mode = self.coordinator.lock().config().mode();
        if self.backend_caches()
            && mode != Mode::Unsafe
            && let Err(error) = handle.flush()
        {
            warn(format_args!(
                "unflushed writes of a client are lost: {error}"
            ));
        }
    }

    fn backend_caches(&self) -> bool {
        !self.storage.capabilities().multi_conn
    }

    /// Lets nobody ask for more, finishes what is in flight, and puts everything on permanent
    /// storage.
    pub(crate) fn stop(&self) -> io::Result<()> {
        self.stopping.store(true, Ordering::Relaxed);
        self.for_each_stream(Shutdown::Read);
        let deadline = Instant::now() + GRACE;
        let mut connections = self.connections.lock();
        while !connections.is_empty() {
            if self.gone.wait_until(&mut connections, deadline).timed_out() {
                break;
            }
        }
        drop(connections);
        // Who has not taken its replies by now does not get them; storage is still waited for.
        self.for_each_stream(Shutdown::Both);
        let mut connections = self.connections.lock();
        while !connections.is_empty() {
            self.gone.wait(&mut connections);
        }
        drop(connections);
        if self.can.read_only || !self.can.flush {
            return Ok(());
        }
        self.storage.open()?.flush()
    }

    fn for_each_stream(&self, how: Shutdown) {
        for connection in self.connections.lock().values() {
            connection.stream.shutdown(how);
        }
    }
}

fn abilities(can: Capabilities) -> Abilities {
    Abilities::new()
        .with_flush(can.flush)
        .with_fua(can.fua)
        .with_multi_conn(can.multi_conn)
        .with_read_only(can.read_only)
        // The cache drops what it fetched before a flush, and is empty when it is opened.
        .with_self_coherent(true)
        .with_loads_on_open(false)
}

/// Hands out what the coordinator wants done. Nothing here waits, so that the coordinator can stay
/// locked: the order in which things are handed out is the order in which it decided.
pub(crate) fn carry_out(coordinator: &mut Coordinator) {
    while let Some(action) = coordinator.poll() {
        match action {
            Action::Execute { key, op, tag } => key.crew.execute(&key, op, tag),
            Action::Flush { key, flush } => match key.handle() {
                Some(handle) if handle.pace() == Pace::Immediate => {
                    let result = handle.flush().map_err(|error| to_errno(&error));
                    coordinator.flushed(flush, result);
                }
                _ => key.crew.flush(&key, flush),
            },
            Action::Reply { key, tag, result } => key.crew.reply(&key, tag, result),
            Action::Release { key } => key.crew.close(&key),
            _ => {}
        }
    }
}
