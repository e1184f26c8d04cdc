//! Requests of one connection that came together, on their way to replies that go together.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nbd_proto::flush::{Command, Decision, Op};
use nbd_proto::session::Session;
use nbd_proto::transmission::ReplyEncoder;
use nbd_proto::wire::{CommandType, Errno, Request};

use super::backend::{Handle, Pace};
use super::budget::Held;
use super::connection::Connection;
use super::execute::{Task, bytes_to_hold, execute, hole_reply};
use super::payload::{Payload, Spare};
use super::replies::Replies;
use super::server::carry_out;
use super::status;

/// A batch is answered when its replies have this many bytes, and not only when the input is used
/// up.
const BATCH_BYTES: u64 = 256 << 10;

/// From this length on, data is sent from where it lies: gathering it costs less than copying it.
const LARGE_READ: u64 = 32 << 10;

/// How long memory may be short before it is taken from clients for which the server has been
/// waiting for as long: to take a reply, or to send what they have announced.
const SHORTAGE: Duration = Duration::from_secs(5);

/// Requests that were read together and are answered together.
pub(crate) struct Batch<'c> {
    connection: &'c Arc<Connection>,
    handle: &'c dyn Handle,
    pace: Pace,
    /// Not begun yet.
    tasks: Vec<Task>,
    /// Begun, to be executed here.
    begun: Vec<(Op, Task)>,
    pub(crate) replies: Replies,
    session: &'c Session,
    encoder: &'c ReplyEncoder,
    bytes: u64,
    /// Of what stands in the replies.
    held: Held,
    /// Payload buffers for use again.
    spare: Spare,
}

impl<'c> Batch<'c> {
    pub(crate) fn new(
        connection: &'c Arc<Connection>,
        session: &'c Session,
        encoder: &'c ReplyEncoder,
        handle: &'c dyn Handle,
    ) -> Self {
        Self {
            connection,
            handle,
            pace: handle.pace(),
            tasks: Vec::new(),
            begun: Vec::new(),
            replies: Replies::new(),
            session,
            encoder,
            bytes: 0,
            held: Held::default(),
            spare: Spare::default(),
        }
    }

    pub(crate) fn refuse(&mut self, request: &Request, errno: Errno, message: &str) {
        let connection = self.connection;
        connection.server.log.line(|| {
            let id = connection.id;
            format!("connection {id}: {request:?} refused: {message}")
        });
        self.replies.error(self.encoder, request, errno, message);
    }

    /// Where the payload of a request goes.
    pub(crate) fn place_for(&mut self, request: &Request) -> Payload {
        let Some(size) = self.handle.page_size() else {
            return self.spare.take();
        };
        let pages = |offset: u64, length: u64| {
            let unit = size as u64;
            let whole = offset.is_multiple_of(unit) && length.is_multiple_of(unit);
            (whole && length > 0).then_some(length / unit)
        };
        match (request.kind, pages(request.offset, request.length)) {
            (CommandType::WRITE, Some(count)) => {
                let count = usize::try_from(count).unwrap_or(usize::MAX);
                self.spare.take_pages(size, count)
            }
            _ => self.spare.take(),
        }
    }

    /// Waits until the server may hold what a request brings or asks for.
    pub(crate) fn hold(&mut self, request: &Request) -> io::Result<Held> {
        let bytes = bytes_to_hold(request);
        let budget = &self.connection.budget;
        if let Some(held) = budget.try_take(bytes) {
            return Ok(held);
        }
        // What is in hand may be what the budget is spent on.
        self.finish()?;
        loop {
            if let Some(held) = budget.wait(bytes, SHORTAGE) {
                return Ok(held);
            }
            self.connection.server.end_stalled(SHORTAGE);
        }
    }

    pub(crate) fn add(&mut self, task: Task) -> io::Result<()> {
        self.bytes += bytes_to_hold(&task.request);
        self.tasks.push(task);
        if self.bytes >= BATCH_BYTES {
            self.finish()?;
        }
        Ok(())
    }

    /// Executes and answers all that is in hand.
    pub(crate) fn finish(&mut self) -> io::Result<()> {
        self.bytes = 0;
        if !self.tasks.is_empty() {
            self.begin();
            self.execute();
        }
        if !self.replies.is_empty() {
            let connection = self.connection;
            if connection.channel.is_by_segment() {
                self.replies.warm();
            }
            self.replies.send(|parts| connection.send(parts, None));
        }
        self.connection
            .budget
            .give_back(std::mem::take(&mut self.held));
        if self.connection.broken.load(Ordering::Relaxed) {
            return Err(io::Error::from(io::ErrorKind::BrokenPipe));
        }
        Ok(())
    }

    /// Asks the coordinator about each request.
    pub(crate) fn begin(&mut self) {
        let Some(&conn) = self.connection.conn.get() else {
            return;
        };
        let server = &self.connection.server;
        let mut coordinator = server.coordinator.lock();
        for task in self.tasks.drain(..) {
            let request = task.request;
            server
                .log
                .line(|| format!("connection {}: {request:?}", self.connection.id));
            let command =
                Command::new(request.kind, request.offset, task.affected).with_fua(task.is_fua());
            match coordinator.command(conn, command, task) {
                Decision::Execute { op, tag } => self.begun.push((op, tag)),
                Decision::Reply { tag, result } => {
                    self.held.add(tag.held);
                    self.replies.result(self.encoder, &tag.request, result);
                }
                Decision::Closed { tag } => {
                    self.held.add(tag.held);
                    let errno = Errno::ESHUTDOWN;
                    self.replies.result(self.encoder, &tag.request, Err(errno));
                }
                // The rest of the story is an action.
                _ => {}
            }
        }
        carry_out(&mut coordinator);
    }

    /// Executes what does not wait; the rest is for the crew. What was executed is completed
    /// before its reply is sent.
    pub(crate) fn execute(&mut self) {
        let mut done: Vec<(Op, Task, Result<(), Errno>)> = Vec::with_capacity(self.begun.len());
        for (op, mut task) in self.begun.drain(..) {
            let Some(result) = try_execute(
                self.handle,
                self.pace,
                self.session,
                self.encoder,
                &op,
                &mut task,
                &mut self.replies,
            ) else {
                if op.acknowledged() {
                    self.replies.result(self.encoder, &task.request, Ok(()));
                }
                self.connection.crew.execute(self.connection, op, task);
                continue;
            };
            done.push((op, task, result));
        }
        if done.is_empty() {
            return;
        }
        let mut coordinator = self.connection.server.coordinator.lock();
        for (op, task, result) in done {
            self.connection.server.executed(&op, result);
            match coordinator.complete(op, task, result) {
                Decision::Reply { tag: task, result } => {
                    self.held.add(task.held);
                    // The reply to what finds something stands there already.
                    if !matches!(
                        task.request.kind,
                        CommandType::READ | CommandType::BLOCK_STATUS
                    ) {
                        self.replies.result(self.encoder, &task.request, result);
                    }
                    self.spare.keep(task.payload);
                }
                Decision::Answered { tag: task } => {
                    // It did not wait, and its answer goes with the others. To send it before
                    // would let a client that takes no answers hold up what is in flight.
                    self.replies.result(self.encoder, &task.request, Ok(()));
                    self.held.add(task.held);
                    self.spare.keep(task.payload);
                }
                Decision::Closed { tag: task } => {
                    self.held.add(task.held);
                }
                _ => {}
            }
        }
        carry_out(&mut coordinator);
    }
}

/// Executes a command if it does not have to wait for a device. What finds something leaves its
/// reply.
fn try_execute(
    handle: &dyn Handle,
    pace: Pace,
    session: &Session,
    encoder: &ReplyEncoder,
    op: &Op,
    task: &mut Task,
    replies: &mut Replies,
) -> Option<Result<(), Errno>> {
    let request = &task.request;
    match (pace, request.kind) {
        (Pace::Immediate, CommandType::READ) => {
            if let Some(reply) = hole_reply(handle, encoder, request) {
                replies.heads(&reply);
                return Some(Ok(()));
            }
            if request.length >= LARGE_READ
                && let Ok(length) = usize::try_from(request.length)
                && let Some(pieces) = handle.pieces(request.offset, length)
            {
                replies.pieces(encoder, request, pieces);
                return Some(Ok(()));
            }
            let read = |buffer: &mut [u8]| handle.read(request.offset, buffer);
            Some(replies.read(encoder, request, read))
        }
        (Pace::Immediate, CommandType::BLOCK_STATUS) => {
            let reply = status::reply(handle, session, task);
            Some(replies.whole(encoder, request, reply))
        }
        (Pace::Immediate, _) => Some(execute(handle, task, op.fua())),
        (_, CommandType::READ) => replies.try_read(encoder, request, |buffer| {
            handle.try_read(request.offset, buffer)
        }),
        (Pace::Buffered, CommandType::WRITE) if !op.fua() => Some(execute(handle, task, false)),
        _ => None,
    }
}
