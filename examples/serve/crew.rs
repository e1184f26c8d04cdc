//! The threads of one connection that may wait: for the storage, or for the client.
//!
//! They come when there is something to do, and go when there has been nothing for a while.
//! Commands, flushes and replies have threads of their own, so that a client which does not take
//! its replies holds up none of its commands, and commands that wait hold up no flush, for which
//! other connections may be waiting.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nbd_proto::flush::{Decision, FlushId, Op};
use nbd_proto::transmission::Head;
use nbd_proto::wire::{CommandType, Errno, Request};
use parking_lot::{Condvar, Mutex};

use crate::backend::Handle;
use crate::connection::Connection;
use crate::execute::{Task, execute, hole_reply, to_errno};
use crate::server::carry_out;

/// How long a thread waits for more to do.
const IDLE: Duration = Duration::from_secs(5);

enum Job {
    Execute(Op, Task),
    Flush(FlushId),
    Reply {
        task: Task,
        result: Result<(), Errno>,
        data: Data,
    },
    Close,
}

/// What a read has found.
enum Data {
    /// Nothing: it was not a read, or failed.
    None,
    Bytes(Vec<u8>),
    /// Zeroes, and how to say so.
    Hole([Head; 2]),
}

pub(crate) struct Crew {
    executors: Lane,
    /// A handle has one flush at a time.
    flusher: Lane,
    writer: Lane,
}

impl Crew {
    pub(crate) fn new(threads: u16) -> Self {
        Self {
            executors: Lane::new(threads.into()),
            flusher: Lane::new(1),
            writer: Lane::new(1),
        }
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
        let data = Data::None;
        self.writer
            .push(connection, Job::Reply { task, result, data });
    }

    /// Closes the connection after the replies that are on their way.
    pub(crate) fn close(&self, connection: &Arc<Connection>) {
        self.writer.push(connection, Job::Close);
    }
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

/// Jobs, and the threads that do them in order.
struct Lane {
    queue: Mutex<Queue>,
    more: Condvar,
    most_threads: usize,
}

impl Lane {
    fn new(most_threads: usize) -> Self {
        Self {
            queue: Mutex::default(),
            more: Condvar::new(),
            most_threads,
        }
    }

    fn push(&self, connection: &Arc<Connection>, job: Job) {
        let mut queue = self.queue.lock();
        queue.jobs.push_back(job);
        if queue.jobs.len() <= queue.idle || queue.threads == self.most_threads {
            self.more.notify_one();
            return;
        }
        queue.threads += 1;
        let only = queue.threads == 1;
        drop(queue);
        let theirs = Arc::clone(connection);
        let lane = self.of(connection);
        let spawned = thread::Builder::new()
            .name(format!("nbd {}", connection.id))
            .spawn(move || lane(&theirs).work(&theirs));
        if let Err(error) = spawned {
            self.queue.lock().threads -= 1;
            if only {
                // Nobody else would do it. A thread for each job is how this is meant to be, so
                // that the user has to know.
                crate::log::warn(format_args!("cannot start a thread: {error}"));
                thread::sleep(Duration::from_millis(10));
                self.retry(connection);
            }
        }
    }

    /// Tries again to find a thread for what is queued.
    fn retry(&self, connection: &Arc<Connection>) {
        let job = self.queue.lock().jobs.pop_back();
        if let Some(job) = job {
            self.push(connection, job);
        }
    }

    /// How a new thread finds this lane.
    fn of(&self, connection: &Arc<Connection>) -> fn(&Connection) -> &Self {
        let crew = &connection.crew;
        if std::ptr::eq(self, &raw const crew.executors) {
            |connection| &connection.crew.executors
        } else if std::ptr::eq(self, &raw const crew.flusher) {
            |connection| &connection.crew.flusher
        } else {
            |connection| &connection.crew.writer
        }
    }

    fn work(&self, connection: &Arc<Connection>) {
        while let Some(job) = self.next() {
            job.run(connection);
        }
    }

    /// The next job; `None` if there has been none for a while, and the thread has to end.
    fn next(&self) -> Option<Job> {
        let mut queue = self.queue.lock();
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                return Some(job);
            }
            queue.idle += 1;
            let timeout = self.more.wait_for(&mut queue, IDLE);
            queue.idle -= 1;
            if timeout.timed_out() && queue.jobs.is_empty() {
                queue.threads -= 1;
                return None;
            }
        }
    }
}

impl Job {
    fn run(self, connection: &Arc<Connection>) {
        match self {
            Self::Execute(op, task) => run_command(connection, op, task),
            Self::Flush(flush) => run_flush(connection, flush),
            Self::Reply { task, result, data } => {
                write_reply(connection, &task.request, result, &data);
                connection.budget.give_back(task.held_bytes());
            }
            Self::Close => connection.close(),
        }
    }
}

fn run_command(connection: &Arc<Connection>, op: Op, task: Task) {
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
        Some(handle) => execute(&*handle, &task, op.fua()),
        None => Err(Errno::EIO),
    };
    let server = &connection.server;
    server.log.line(|| {
        let id = connection.id;
        format!("connection {id}: {:?} ended: {result:?}", task.request)
    });
    let mut coordinator = server.coordinator.lock();
    // Replies are queued before the coordinator is let go: after that the connection may be
    // released, and closed behind what is queued.
    match coordinator.complete(op, task, result) {
        Decision::Reply { tag: task, result } => {
            let job = Job::Reply { task, result, data };
            connection.crew.writer.push(connection, job);
        }
        Decision::Closed { tag: task } => connection.budget.give_back(task.held_bytes()),
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
        crate::log::warn(format_args!("a flush failed: {error}"));
    }
    let mut coordinator = server.coordinator.lock();
    coordinator.flushed(flush, result.map_err(|error| to_errno(&error)));
    carry_out(&mut coordinator);
}

fn write_reply(connection: &Connection, request: &Request, result: Result<(), Errno>, data: &Data) {
    let Some(encoder) = connection.encoder() else {
        return;
    };
    match (result, data) {
        (Err(errno), _) => connection.send(&[&encoder.fail(request, errno)]),
        (Ok(()), Data::None) => connection.send(&[&encoder.ok(request)]),
        (Ok(()), Data::Hole([hole, done])) => connection.send(&[hole, done]),
        (Ok(()), Data::Bytes(bytes)) => match encoder.read(request) {
            Ok(head) => connection.send(&[&head, bytes]),
            // What passed the check fits into one reply.
            Err(_) => connection.send(&[&encoder.fail(request, Errno::EINVAL)]),
        },
    }
}
