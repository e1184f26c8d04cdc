//! What one connection has to have done that may wait: for the storage, or for the client.
//!
//! Commands, flushes and replies queue up in lanes of their own, which are worked off by
//! [pools](Pool) of their own, so that a client which does not take its replies holds up none of
//! its commands, and commands that wait hold up no flush, for which other connections may be
//! waiting. A connection that has nothing to do occupies no thread of the pools.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::time::Duration;

use nbd_proto::flush::{Decision, FlushId, Op};
use nbd_proto::transmission::Head;
use nbd_proto::wire::{CommandType, Errno, Request};
use parking_lot::Mutex;

use super::backend::Handle;
use super::budget::Held;
use super::connection::Connection;
use super::execute::{Task, execute, hole_reply, to_errno};
use super::payload::Payload;
use super::pool::{Company, Pool};
use super::server::carry_out;
use super::status;

/// How long a client may take for one reply when there is no thread left that could wait for it.
const HURRY: Duration = Duration::from_secs(1);

type Turns = Pool<Arc<Connection>>;

/// The threads for the lanes of all connections, by kind.
pub(crate) struct Pools {
    execute: Arc<Turns>,
    flush: Arc<Turns>,
    write: Arc<Turns>,
}

impl Pools {
    /// Starts the first thread of each, so that whatever happens later, there is one.
    ///
    /// # Errors
    ///
    /// If one could not be started.
    pub(crate) fn start() -> io::Result<Self> {
        let most = usize::MAX;
        Ok(Self {
            execute: Pool::start("execute", most, |connection: Arc<Connection>, company| {
                connection.crew.executors.take_turn(&connection, company);
            })?,
            flush: Pool::start("flush", most, |connection: Arc<Connection>, company| {
                connection.crew.flusher.take_turn(&connection, company);
            })?,
            write: Pool::start("write", most, |connection: Arc<Connection>, company| {
                connection.crew.writer.take_turn(&connection, company);
            })?,
        })
    }
}

enum Job {
    Execute(Op, Task),
    Flush(FlushId),
    Reply {
        task: Task,
        result: Result<(), Errno>,
        data: Data,
    },
    /// All replies are sent.
    Leave,
    Close,
}

/// What a read or a block status has found.
enum Data {
    /// Nothing: it was neither, or failed.
    None,
    Bytes(Vec<u8>),
    /// Zeroes, and how to say so.
    Hole([Head; 2]),
    /// The whole reply to a block status request.
    Status(Vec<u8>),
}

pub(crate) struct Crew {
    executors: Lane,
    /// A handle has one flush at a time.
    flusher: Lane,
    writer: Lane,
}

impl Crew {
    pub(crate) fn new(threads: u16, pools: &Pools) -> Self {
        Self {
            executors: Lane::new(threads.into(), &pools.execute),
            flusher: Lane::new(1, &pools.flush),
            writer: Lane::new(1, &pools.write),
        }
    }

    /// Answers a command that is going to be executed, and keeps what that needs.
    pub(crate) fn acknowledge(&self, connection: &Arc<Connection>, task: &Task) {
        let answer = Task {
            request: task.request,
            affected: task.affected,
            payload: Payload::default(),
            held: Held::default(),
        };
        self.reply(connection, answer, Ok(()));
    }

    pub(crate) fn execute(&self, connection: &Arc<Connection>, op: Op, task: Task) {
        self.executors.push(connection, Job::Execute(op, task));
    }

    pub(crate) fn flush(&self, connection: &Arc<Connection>, flush: FlushId) {
        self.flusher.push(connection, Job::Flush(flush));
    }

    pub(crate) fn reply(
        &self,
        connection: &Arc<Connection>,
        task: Task,
        result: Result<(), Errno>,
    ) {
        self.reply_with(connection, task, result, Data::None);
    }

    fn reply_with(
        &self,
        connection: &Arc<Connection>,
        task: Task,
        result: Result<(), Errno>,
        data: Data,
    ) {
        let job = Job::Reply { task, result, data };
        self.writer.push(connection, job);
    }

    /// Closes the connection after the replies that are on their way.
    pub(crate) fn close(&self, connection: &Arc<Connection>) {
        self.writer.push(connection, Job::Leave);
    }
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// Turns that have been asked for, or are being taken.
    turns: usize,
}

/// Jobs that are done in order, so many at a time.
struct Lane {
    queue: Mutex<Queue>,
    most_turns: usize,
    pool: Arc<Turns>,
}

impl Lane {
    fn new(most_turns: usize, pool: &Arc<Turns>) -> Self {
        Self {
            queue: Mutex::default(),
            most_turns,
            pool: Arc::clone(pool),
        }
    }

    fn push(&self, connection: &Arc<Connection>, job: Job) {
        let mut queue = self.queue.lock();
        queue.jobs.push_back(job);
        if queue.turns == self.most_turns {
            return;
        }
        queue.turns += 1;
        drop(queue);
        self.pool.push(Arc::clone(connection));
    }

    fn take_turn(&self, connection: &Arc<Connection>, company: Company) {
        while let Some(job) = self.next() {
            job.run(connection, company);
            if self.pool.is_behind() {
                // The turn goes on when others have had theirs.
                return self.pool.push(Arc::clone(connection));
            }
        }
    }

    /// The next job; without one, the turn ends.
    fn next(&self) -> Option<Job> {
        let mut queue = self.queue.lock();
        let job = queue.jobs.pop_front();
        if job.is_none() {
            queue.turns -= 1;
        }
        job
    }
}

impl Job {
    fn run(self, connection: &Arc<Connection>, company: Company) {
        match self {
            Self::Execute(op, task) => run_command(connection, op, task),
            Self::Flush(flush) => run_flush(connection, flush),
            Self::Reply { task, result, data } => {
                let patience = (company == Company::Alone).then_some(HURRY);
                write_reply(connection, &task.request, result, &data, patience);
                let held = task.held;
                // Others may have the memory only when it is free.
                drop((task, data));
                connection.budget.give_back(held);
            }
            // What is left to do waits for the storage, and not for the client.
            Self::Leave => {
                connection.crew.flusher.push(connection, Self::Close);
            }
            Self::Close => connection.close(),
        }
    }
}

fn run_command(connection: &Arc<Connection>, op: Op, mut task: Task) {
    let mut data = Data::None;
    let result = match connection.handle() {
        Some(handle) if task.request.kind == CommandType::READ => {
            let hole = connection
                .encoder()
                .and_then(|encoder| hole_reply(&*handle, encoder, &task.request));
            let read = match hole {
                Some(reply) => Ok(Data::Hole(reply)),
                None => read(&*handle, &task.request).map(Data::Bytes),
            };
            read.map(|read| data = read)
        }
        Some(handle) if task.request.kind == CommandType::BLOCK_STATUS => {
            let session = connection.session().ok_or(Errno::EIO);
            let reply = session.and_then(|session| status::reply(&*handle, session, &task));
            reply.map(|reply| data = Data::Status(reply))
        }
        Some(handle) => execute(&*handle, &mut task, op.fua()),
        None => Err(Errno::EIO),
    };
    let server = &connection.server;
    server.log.line(|| {
        let id = connection.id;
        format!("connection {id}: {:?} ended: {result:?}", task.request)
    });
    server.executed(&op, result);
    let mut coordinator = server.coordinator.lock();
    // Replies are queued before the coordinator is let go: after that the connection may be
    // released, and closed behind what is queued.
    match coordinator.complete(op, task, result) {
        Decision::Reply { tag: task, result } => {
            connection.crew.reply_with(connection, task, result, data);
        }
        Decision::Answered { tag: task } | Decision::Closed { tag: task } => {
            let held = task.held;
            drop((task, data));
            connection.budget.give_back(held);
        }
        _ => {}
    }
    carry_out(&mut coordinator);
}

fn read(handle: &dyn Handle, request: &Request) -> Result<Vec<u8>, Errno> {
    let length = usize::try_from(request.length).map_err(|_| Errno::ENOMEM)?;
    let mut data = Vec::new();
    data.try_reserve_exact(length).map_err(|_| Errno::ENOMEM)?;
    data.resize(length, 0);
    let read = handle.read(request.offset, &mut data);
    read.map_err(|error| to_errno(&error))?;
    Ok(data)
}

fn run_flush(connection: &Arc<Connection>, flush: FlushId) {
    let server = &connection.server;
    let id = connection.id;
    server.log.line(|| format!("backend flush on {id} begins"));
    let result = match connection.handle() {
        Some(handle) => handle.flush(),
        None => Ok(()),
    };
    server
        .log
        .line(|| format!("backend flush on {id} ended: {result:?}"));
    if let Err(error) = &result {
        server.flush_failed(error);
    }
    let mut coordinator = server.coordinator.lock();
    coordinator.flushed(flush, result.map_err(|error| to_errno(&error)));
    carry_out(&mut coordinator);
}

fn write_reply(
    connection: &Connection,
    request: &Request,
    result: Result<(), Errno>,
    data: &Data,
    patience: Option<Duration>,
) {
    let Some(encoder) = connection.encoder() else {
        return;
    };
    let send = |parts: [&[u8]; 2]| connection.send(&mut parts.map(IoSlice::new), patience);
    match (result, data) {
        (Err(errno), _) => send([&encoder.fail(request, errno), &[]]),
        (Ok(()), Data::None) => send([&encoder.ok(request), &[]]),
        (Ok(()), Data::Hole([hole, done])) => send([hole, done]),
        (Ok(()), Data::Status(reply)) => send([reply, &[]]),
        (Ok(()), Data::Bytes(bytes)) => match encoder.read(request) {
            Ok(head) => send([&head, bytes]),
            // What passed the check fits into one reply.
            Err(_) => send([&encoder.fail(request, Errno::EINVAL), &[]]),
        },
    }
}
