//! What all connections share.

use std::collections::HashMap;
use std::io;
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nbd_proto::flush::{
    Acknowledge, Action, Backend as Abilities, Config, FlushCoordinator, Mode, Op, ThreadModel,
};
use nbd_proto::wire::{Errno, Name};
use parking_lot::{Condvar, Mutex};

use super::backend::{Backend, Capabilities, Handle, Pace};
use super::budget::Memory;
use super::connection::Connection;
use super::count::count;
use super::crew::Pools;
use super::execute::{Task, to_errno};
use super::log::{Log, Seldom};
use super::stream::Stream;
use super::tls::Offer;

pub(crate) type Coordinator = FlushCoordinator<Arc<Connection>, (), Task>;

/// How long clients have, when the server stops, to take the replies that are due.
const GRACE: Duration = Duration::from_secs(10);

static STALLED: Seldom = Seldom::new();
static TOO_MANY: Seldom = Seldom::new();
static WRITE_FAILED: Seldom = Seldom::new();
static FLUSH_FAILED: Seldom = Seldom::new();

/// How to serve.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) flush: Config,
    pub(crate) exports: Vec<Name>,
    /// Of each of them; empty for none.
    pub(crate) description: Name,
    /// Whether clients may ask which there are.
    pub(crate) listed: bool,
    pub(crate) read_only: bool,
    /// How many commands of one connection may wait at the same time.
    pub(crate) threads: u16,
    pub(crate) most_connections: usize,
    pub(crate) tls: Offer,
    pub(crate) log: Log,
}

pub(crate) struct Server {
    /// All exports are names of the same storage, so that all connections are one group.
    pub(crate) coordinator: Mutex<Coordinator>,
    pub(crate) storage: Arc<dyn Backend>,
    /// What it can do, and is allowed to.
    pub(crate) can: Capabilities,
    /// Whether clients are told that they may use several connections.
    pub(crate) multi_conn: bool,
    /// What it can do in the coordinator's words.
    pub(crate) backend: Abilities,
    pub(crate) exports: Vec<Name>,
    pub(crate) description: Name,
    pub(crate) listed: bool,
    pub(crate) threads: u16,
    pub(crate) pools: Pools,
    /// For the requests of all connections.
    pub(crate) memory: Arc<Memory>,
    pub(crate) tls: Offer,
    pub(crate) log: Log,
    /// Why what was written may be lost: the first flush that failed.
    failed: Mutex<Option<io::Error>>,
    most_connections: usize,
    connections: Mutex<HashMap<u64, Arc<Connection>>>,
    gone: Condvar,
    /// Connections are served one after the other.
    one_at_a_time: bool,
    /// Which one is, if so.
    served: Mutex<Option<u64>>,
    next: Condvar,
    next_id: AtomicU64,
    stopping: AtomicBool,
}

impl Server {
    pub(crate) fn new(storage: Arc<dyn Backend>, settings: Settings) -> Result<Arc<Self>> {
        let mut can = storage.capabilities();
        can.read_only |= settings.read_only;
        let backend = abilities(can);
        // What would refuse every client refuses to start instead.
        let mut trial = FlushCoordinator::<(), (), ()>::new(settings.flush);
        let conn = trial.connect((), &());
        let advertised = trial
            .opened(conn, backend)
            .context("this storage does not suit --multi-conn or --acknowledge")?;
        Ok(Arc::new(Self {
            coordinator: Mutex::new(FlushCoordinator::new(settings.flush)),
            storage,
            can,
            multi_conn: advertised.multi_conn,
            backend,
            exports: settings.exports,
            description: settings.description,
            listed: settings.listed,
            threads: settings.threads,
            pools: Pools::start().context("cannot start the threads that are needed")?,
            memory: Arc::default(),
            tls: settings.tls,
            log: settings.log,
            failed: Mutex::new(None),
            most_connections: settings.most_connections,
            connections: Mutex::default(),
            gone: Condvar::new(),
            one_at_a_time: settings.flush.thread_model() == ThreadModel::SerializeConnections,
            served: Mutex::new(None),
            next: Condvar::new(),
            next_id: AtomicU64::new(1),
            stopping: AtomicBool::new(false),
        }))
    }

    /// Serves a client that has connected, on a thread of its own; or hangs up, if there are too
    /// many.
    ///
    /// # Errors
    ///
    /// If no thread can be had. Nothing is left of the client then.
    pub(crate) fn welcome(self: &Arc<Self>, stream: Stream, from: &str) -> io::Result<()> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let connection = Connection::new(id, Arc::clone(self), stream);
        {
            let mut connections = self.connections.lock();
            if connections.len() >= self.most_connections {
                drop(connections);
                TOO_MANY.warn(format_args!(
                    "a client was refused: there are {} already (--max-connections)",
                    self.most_connections
                ));
                return Ok(());
            }
            connections.insert(id, Arc::clone(&connection));
        }
        self.log.line(|| format!("connection {id}: from {from}"));
        let spawned = thread::Builder::new()
            .name(format!("nbd {id}"))
            .spawn(move || connection.run());
        if spawned.is_err() {
            self.gone(id);
        }
        spawned.map(drop)
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// Others have waited so long for memory: who holds some of it, and has kept the server
    /// waiting for as long, loses its connection. Without this, a few clients that take no replies
    /// could stop the service for all.
    pub(crate) fn end_stalled(&self, time: Duration) {
        let connections = self.connections.lock();
        for connection in connections.values().filter(|other| other.is_stalled(time)) {
            STALLED.warn(format_args!(
                "connection {} is ended: others need the memory that it holds",
                connection.id
            ));
            connection.channel.shutdown(Shutdown::Both);
        }
    }

    /// Waits until a connection may be served: if they are one after the other, until the one
    /// before it has been closed.
    pub(crate) fn wait_for_turn(&self, id: u64) {
        if !self.one_at_a_time {
            return;
        }
        let mut served = self.served.lock();
        while served.is_some() {
            self.next.wait(&mut served);
        }
        *served = Some(id);
    }

    /// A connection has been closed.
    pub(crate) fn gone(&self, id: u64) {
        let connection = self.connections.lock().remove(&id);
        drop(connection);
        if self.one_at_a_time {
            let mut served = self.served.lock();
            if *served == Some(id) {
                *served = None;
                self.next.notify_one();
            }
        }
        self.log.line(|| format!("connection {id}: closed"));
        self.gone.notify_all();
    }

    /// What a handle still has cached is written out before it is closed, where connections are on
    /// their own. While emulating, the coordinator has seen to that already; what could not be
    /// written then must not come now, after what others have written to the same place since.
    pub(crate) fn close_handle(&self, handle: &dyn Handle) {
        let config = *self.coordinator.lock().config();
        let own = match config.mode() {
            Mode::Plugin | Mode::Disable => true,
            // It is as if flushes were disabled, but only until the handle is closed.
            Mode::Auto => config.acknowledge() == Acknowledge::IgnoreFlush,
            _ => false,
        };
        if self.caches()
            && own
            && let Err(error) = handle.flush()
        {
            self.flush_failed(&error);
        }
    }

    /// Whether handles cache what they write.
    fn caches(&self) -> bool {
        !self.can.multi_conn
    }

    /// A command has been executed. If it has failed, and its client was told before that it is
    /// done, that client may not be there any more when the next flush could tell.
    pub(crate) fn executed(&self, op: &Op, result: Result<(), Errno>) {
        if op.acknowledged()
            && let Err(errno) = result
        {
            WRITE_FAILED.warn(format_args!("a write failed after its answer: {errno}"));
            let mut failed = self.failed.lock();
            failed.get_or_insert_with(|| io::Error::other(errno.to_string()));
        }
    }

    /// What a flush should have made permanent may be lost, and the client that wrote it may not
    /// be there any more to hear of it. That later flushes succeed proves nothing: after a failure
    /// the system may forget what it could not write.
    pub(crate) fn flush_failed(&self, error: &io::Error) {
        FLUSH_FAILED.warn(format_args!("a flush failed: {error}"));
        let mut failed = self.failed.lock();
        if failed.is_none() {
            *failed = Some(io::Error::new(error.kind(), error.to_string()));
        }
    }

    /// Lets nobody ask for more, finishes what is in flight, and puts everything on permanent
    /// storage.
    ///
    /// # Errors
    ///
    /// If this flush failed, or any one before: then not everything is there.
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
        self.log.line(|| self.summary());
        if !self.can.read_only
            && self.can.flush
            && let Err(error) = self.storage.open().and_then(|handle| handle.flush())
        {
            self.flush_failed(&error);
        }
        self.failed.lock().take().map_or(Ok(()), Err)
    }

    /// Why it takes long to stop.
    pub(crate) fn what_it_waits_for(&self) -> String {
        match self.connections.lock().len() {
            0 => "waiting for the storage to flush what it has".to_owned(),
            clients => format!(
                "waiting for what was asked for by {}, and for what was written there to be flushed",
                count(clients, "client")
            ),
        }
    }

    /// What clients asked for, and what it came to.
    fn summary(&self) -> String {
        let counters = self.coordinator.lock().counters();
        format!(
            "in all: {}; {} asked for, of which {} needed none, {} shared one and {} failed; {}, of \
             which {} failed",
            count(counters.modifications, "modification"),
            count(counters.flushes, "flush"),
            counters.skipped,
            counters.joined,
            counters.failed,
            count(counters.backend_flushes, "backend flush"),
            counters.backend_failures,
        )
    }

    fn for_each_stream(&self, how: Shutdown) {
        for connection in self.connections.lock().values() {
            connection.channel.shutdown(how);
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
            Action::Execute { key, op, tag } => {
                if op.acknowledged() {
                    key.crew.acknowledge(&key, &tag);
                }
                key.crew.execute(&key, op, tag);
            }
            Action::Flush { key, flush } => match key.handle() {
                Some(handle) if handle.pace() == Pace::Immediate => {
                    let result = handle.flush();
                    if let Err(error) = &result {
                        key.server.flush_failed(error);
                    }
                    coordinator.flushed(flush, result.map_err(|error| to_errno(&error)));
                }
                _ => key.crew.flush(&key, flush),
            },
            Action::Reply { key, tag, result } => key.crew.reply(&key, tag, result),
            Action::Release { key } => key.crew.close(&key),
            _ => {}
        }
    }
}
