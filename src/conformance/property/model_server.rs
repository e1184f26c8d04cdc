//! A server in memory: a coordinator over a model backend.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::format;
use alloc::vec::Vec;

use super::coordinator::{Coordinator, Task};
use super::server::{Act, Answer, Operation, Server, Trouble};
use crate::conformance::backend::{Access, Call, Flushing, Handle, Kind, Model};
use crate::conformance::check::Promise;
use crate::flush::{Advertised, Command};
use crate::wire::{CommandType, Errno};

#[derive(Debug)]
struct Pending {
    conn: usize,
    operation: Operation,
    /// What a read has found, if it was executed.
    found: Option<Vec<u64>>,
    answered: bool,
}

/// A [`Coordinator`] over a [`Model`], without sockets, threads or clocks: it does only what it is
/// told to, and the same acts have the same effect.
///
/// It is also strict with the coordinator: to execute what was not sent, to answer twice, or to
/// flush a handle that was closed is [`Trouble`].
#[derive(Debug)]
pub struct ModelServer<C> {
    model: Model,
    coordinator: C,
    /// By connection; `None` when closed.
    handles: Vec<Option<Handle>>,
    pending: BTreeMap<u64, Pending>,
    executing: Vec<(Call, u64)>,
    flushing: Vec<(Flushing, u64)>,
    answers: VecDeque<Answer>,
    backend_flushes: u64,
}

impl<C: Coordinator> ModelServer<C> {
    /// How many bytes a block is for the coordinator: with a [granule](Kind::granule) of the
    /// backend, its own is so many times this
    /// ([`Config::with_granule`](crate::flush::Config::with_granule)).
    pub const BLOCK: u32 = 512;

    /// A server without connections, over a backend of this kind and so many blocks.
    #[must_use]
    pub fn new(coordinator: C, kind: Kind, blocks: u32) -> Self {
        Self {
            model: Model::new(kind, blocks),
            coordinator,
            handles: Vec::new(),
            pending: BTreeMap::new(),
            executing: Vec::new(),
            flushing: Vec::new(),
            answers: VecDeque::new(),
            backend_flushes: 0,
        }
    }

    /// The backend.
    #[must_use]
    pub const fn model(&self) -> &Model {
        &self.model
    }

    /// The coordinator.
    #[must_use]
    pub const fn coordinator(&self) -> &C {
        &self.coordinator
    }

    /// How many backend flushes were started.
    #[must_use]
    pub const fn backend_flushes(&self) -> u64 {
        self.backend_flushes
    }

    fn handle(&self, conn: usize) -> Result<Handle, Trouble> {
        let handle = self.handles.get(conn).copied().flatten();
        handle.ok_or_else(|| {
            Trouble(format!(
                "the handle of connection {conn} is used, but not open"
            ))
        })
    }

    fn carry_out(&mut self, task: Task) -> Result<(), Trouble> {
        match task {
            Task::Execute {
                tag,
                fua,
                acknowledged,
            } => {
                if acknowledged {
                    self.reply(tag, Ok(()))?;
                }
                self.execute(tag, fua)
            }
            Task::Flush { conn, flush } => {
                let handle = self.handle(conn)?;
                if let Some(flushing) = self.model.begin_flush(handle) {
                    self.backend_flushes += 1;
                    self.flushing.push((flushing, flush));
                }
                Ok(())
            }
            Task::Reply { tag, result } => self.reply(tag, result),
            Task::Close { conn } => {
                let handle = self.handle(conn)?;
                self.model.close(handle);
                if let Some(handle) = self.handles.get_mut(conn) {
                    *handle = None;
                }
                Ok(())
            }
        }
    }

    fn execute(&mut self, tag: u64, native: bool) -> Result<(), Trouble> {
        let unknown = || Trouble(format!("command {tag} is executed, but was not sent"));
        let pending = self.pending.get(&tag).ok_or_else(unknown)?;
        let access = match pending.operation.clone() {
            Operation::Flush => return Err(Trouble::new("a flush is executed like a command")),
            Operation::Read { blocks } => Access::Read { blocks },
            Operation::Load { blocks } => Access::Load { blocks },
            Operation::Zero { blocks, .. } => Access::Write {
                blocks,
                content: 0,
                fua: native,
            },
            Operation::Write {
                blocks, content, ..
            } => Access::Write {
                blocks,
                content,
                fua: native,
            },
        };
        let handle = self.handle(pending.conn)?;
        let call = self.model.begin(handle, access);
        let call = call.ok_or_else(|| Trouble::new("a command is beyond the end of the image"))?;
        self.executing.push((call, tag));
        Ok(())
    }

    fn reply(&mut self, tag: u64, result: Result<(), Errno>) -> Result<(), Trouble> {
        let unknown = || Trouble(format!("command {tag} is answered, but was not sent"));
        let pending = self.pending.get_mut(&tag).ok_or_else(unknown)?;
        if core::mem::replace(&mut pending.answered, true) {
            return Err(Trouble(format!("command {tag} is answered twice")));
        }
        let found = match (&pending.operation, result) {
            (_, Err(errno)) => Err(errno),
            (Operation::Read { .. }, Ok(())) => match pending.found.take() {
                Some(found) => Ok(found),
                None => {
                    return Err(Trouble(format!("read {tag} is answered, but not executed")));
                }
            },
            _ => Ok(Vec::new()),
        };
        self.answers.push_back(Answer { tag, result: found });
        Ok(())
    }

    /// A command ends.
    fn finish(&mut self, which: usize, success: bool) -> Result<(), Trouble> {
        let Some(at) = pick(self.executing.len(), which) else {
            return Ok(());
        };
        let (call, tag) = self.executing.remove(at);
        let mut result = Err(Errno::EIO);
        if success {
            let found = self.model.finish(call);
            if let (Some(pending), Some(found)) = (self.pending.get_mut(&tag), found) {
                pending.found = Some(found);
                result = Ok(());
            }
        } else {
            self.model.fail(call);
        }
        match self.coordinator.executed(tag, result) {
            Some(task) => self.carry_out(task),
            None => Ok(()),
        }
    }

    fn finish_flush(&mut self, which: usize, success: bool) {
        let Some(at) = pick(self.flushing.len(), which) else {
            return;
        };
        let (flushing, flush) = self.flushing.remove(at);
        let result = if success && self.model.finish_flush(flushing) {
            Ok(())
        } else {
            self.model.fail_flush(flushing);
            Err(Errno::EIO)
        };
        self.coordinator.flushed(flush, result);
    }

    fn take(&mut self) -> Result<bool, Trouble> {
        match self.coordinator.poll() {
            Some(task) => self.carry_out(task).map(|()| true),
            None => Ok(false),
        }
    }

    fn nth_handle(&self, which: usize) -> Option<Handle> {
        let open: Vec<Handle> = self.handles.iter().flatten().copied().collect();
        open.get(pick(open.len(), which)?).copied()
    }

    fn nth_call(&self, which: usize) -> Option<Call> {
        let at = pick(self.executing.len(), which)?;
        self.executing.get(at).map(|&(call, _)| call)
    }
}

/// Chooses one of so many.
fn pick(count: usize, which: usize) -> Option<usize> {
    which.checked_rem(count)
}

fn command(operation: &Operation) -> Command {
    let (kind, blocks, fua) = match operation {
        Operation::Flush => return Command::FLUSH,
        Operation::Read { blocks } => (CommandType::READ, blocks, false),
        Operation::Load { blocks } => (CommandType::CACHE, blocks, false),
        Operation::Zero { blocks, fua } => (CommandType::WRITE_ZEROES, blocks, *fua),
        Operation::Write { blocks, fua, .. } => (CommandType::WRITE, blocks, *fua),
    };
    let block = u64::from(ModelServer::<super::Coordinated>::BLOCK);
    let offset = blocks.start.saturating_mul(block);
    let length = blocks.end.saturating_sub(blocks.start);
    Command::new(kind, offset, length.saturating_mul(block)).with_fua(fua)
}

impl<C: Coordinator> Server for ModelServer<C> {
    fn blocks(&self) -> u64 {
        self.model.blocks()
    }

    /// What the protocol says; but what a handle makes of its own writes, if it is flushed while its
    /// commands execute, is the backend's affair where it is not
    /// [self-coherent](Kind::with_self_coherent), or drops what it could not write out.
    fn promise(&self, multi_conn: bool) -> Promise {
        let promise = if multi_conn {
            Promise::MULTI_CONN
        } else {
            Promise::SINGLE_CONNECTION
        };
        let kind = self.model.kind();
        let coherent = kind.self_coherent() || !kind.caches();
        promise.with_own_writes(coherent && kind.survives_retry())
    }

    fn connect(&mut self) -> Result<usize, Trouble> {
        let conn = self.handles.len();
        self.coordinator.connect(conn);
        self.handles.push(Some(self.model.open()));
        Ok(conn)
    }

    fn ready(&mut self, conn: usize) -> Result<Advertised, Trouble> {
        self.coordinator.opened(conn, self.model.description())
    }

    fn submit(&mut self, conn: usize, tag: u64, operation: &Operation) -> Result<(), Trouble> {
        let pending = Pending {
            conn,
            operation: operation.clone(),
            found: None,
            answered: false,
        };
        self.pending.insert(tag, pending);
        match self.coordinator.command(conn, tag, command(operation)) {
            Some(task) => self.carry_out(task),
            None => Ok(()),
        }
    }

    fn act(&mut self, act: Act) -> Result<(), Trouble> {
        match act {
            Act::Take(count) => {
                for _ in 0..count {
                    if !self.take()? {
                        break;
                    }
                }
            }
            Act::Finish(which) => self.finish(which, true)?,
            Act::Fail(which) => self.finish(which, false)?,
            Act::FinishFlush(which) => self.finish_flush(which, true),
            Act::FailFlush(which) => self.finish_flush(which, false),
            Act::Fetch(which, block) => {
                if let Some(call) = self.nth_call(which) {
                    self.model.fetch(call, block);
                }
            }
            Act::Apply(which, block) => {
                if let Some(call) = self.nth_call(which) {
                    self.model.apply(call, block);
                }
            }
            Act::WriteBack(which, block) => {
                if let Some(handle) = self.nth_handle(which) {
                    self.model.write_back(handle, block);
                }
            }
            Act::Evict(which, block) => {
                if let Some(handle) = self.nth_handle(which) {
                    self.model.evict(handle, block);
                }
            }
        }
        Ok(())
    }

    fn answer(&mut self) -> Option<Answer> {
        self.answers.pop_front()
    }

    fn settle(&mut self) -> Result<(), Trouble> {
        // More than any coordinator needs for the commands of a schedule that is worth reading.
        for _ in 0..100_000 {
            if self.take()? {
                continue;
            }
            if !self.executing.is_empty() {
                self.finish(0, true)?;
            } else if !self.flushing.is_empty() {
                self.finish_flush(0, true);
            } else {
                return Ok(());
            }
        }
        Err(Trouble::new("the coordinator does not come to rest"))
    }

    fn disconnect(&mut self, conn: usize) -> Result<(), Trouble> {
        self.coordinator.disconnect(conn);
        Ok(())
    }

    fn image(&self, choose: &mut dyn FnMut(u64, &[u64]) -> usize) -> Option<Vec<u64>> {
        Some(self.model.clone().crash(choose))
    }
}
