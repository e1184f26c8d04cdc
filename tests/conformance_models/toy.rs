//! A coordinator that stops the world for each flush, and can be built without each of the things
//! that make it right.

use std::collections::{BTreeMap, VecDeque};

use nbd_proto::conformance::property::{Coordinator, Task, Trouble};
use nbd_proto::flush::{Advertised, Backend, Command};
use nbd_proto::wire::{CommandType, Errno};

/// What it takes care of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Care {
    /// No command begins, and none executes, while handles are flushed.
    pub(crate) stops_the_world: bool,
    /// A handle is dirty from the completion of a write on, not from its arrival on.
    pub(crate) marks_on_completion: bool,
    /// Handles that hold nothing dirty are flushed, too, for what they have loaded.
    pub(crate) invalidates: bool,
    /// What others have written is written out before the next write.
    pub(crate) orders: bool,
    /// A connection that leaves is written out.
    pub(crate) writes_out_leaving: bool,
}

impl Care {
    pub(crate) const ALL: Self = Self {
        stops_the_world: true,
        marks_on_completion: true,
        invalidates: true,
        orders: true,
        writes_out_leaving: true,
    };

    /// What seems enough at first: as a filter has it that flushes all dirty handles in turn.
    pub(crate) const FILTER: Self = Self {
        stops_the_world: false,
        marks_on_completion: false,
        invalidates: false,
        orders: false,
        writes_out_leaving: false,
    };
}

#[derive(Debug, Default)]
struct Connection {
    open: bool,
    dirty: bool,
    executing: u32,
    leaving: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    WriteOut,
    Invalidate,
    Over,
}

#[derive(Debug)]
struct Round {
    waiters: Vec<u64>,
    phase: Phase,
    todo: VecDeque<usize>,
    running: Option<usize>,
    result: Result<(), Errno>,
}

#[derive(Debug)]
pub(crate) struct Toy {
    care: Care,
    connections: BTreeMap<usize, Connection>,
    commands: BTreeMap<u64, (usize, Command)>,
    /// What begins after the round.
    waiting: VecDeque<u64>,
    round: Option<Round>,
    flushes: u64,
}

impl Toy {
    pub(crate) fn new(care: Care) -> Self {
        Self {
            care,
            connections: BTreeMap::new(),
            commands: BTreeMap::new(),
            waiting: VecDeque::new(),
            round: None,
            flushes: 0,
        }
    }

    fn begin_round(&mut self, waiters: Vec<u64>) {
        self.round = Some(Round {
            waiters,
            phase: Phase::WriteOut,
            todo: VecDeque::new(),
            running: None,
            result: Ok(()),
        });
        if !self.care.stops_the_world {
            self.plan();
        }
    }

    /// Which handles this phase of the round is to flush.
    fn plan(&mut self) {
        let Some(round) = &mut self.round else { return };
        let open = self.connections.iter().filter(|(_, it)| it.open);
        round.todo = match round.phase {
            Phase::WriteOut => open.filter(|(_, it)| it.dirty).map(|(&at, _)| at).collect(),
            Phase::Invalidate => open.map(|(&at, _)| at).collect(),
            Phase::Over => VecDeque::new(),
        };
    }

    fn admit(&mut self, tag: u64) -> Option<Task> {
        let (conn, command) = self.commands[&tag];
        if command.kind == CommandType::FLUSH {
            self.begin_round(vec![tag]);
            return None;
        }
        let modification = command.kind.is_modification();
        let others = self
            .connections
            .iter()
            .any(|(&at, it)| at != conn && it.dirty);
        if modification && self.care.orders && others {
            self.waiting.push_front(tag);
            self.begin_round(Vec::new());
            return None;
        }
        let connection = self.connections.get_mut(&conn)?;
        connection.executing += 1;
        connection.dirty |= modification && !self.care.marks_on_completion;
        Some(Task::Execute {
            tag,
            fua: false,
            acknowledged: false,
        })
    }

    fn poll_round(&mut self) -> Option<Task> {
        let executing = self.connections.values().any(|it| it.executing > 0);
        let care = self.care;
        loop {
            let round = self.round.as_mut()?;
            if round.running.is_some() || (care.stops_the_world && executing) {
                return None;
            }
            if care.stops_the_world && round.phase == Phase::WriteOut && round.todo.is_empty() {
                self.plan();
            }
            let round = self.round.as_mut()?;
            if let Some(conn) = round.todo.pop_front() {
                round.running = Some(conn);
                self.flushes += 1;
                if let Some(it) = self.connections.get_mut(&conn) {
                    it.dirty = false;
                }
                let flush = self.flushes;
                return Some(Task::Flush { conn, flush });
            }
            round.phase = match round.phase {
                Phase::WriteOut if care.invalidates => Phase::Invalidate,
                _ => Phase::Over,
            };
            if round.phase == Phase::Over {
                if let Some(tag) = round.waiters.pop() {
                    let result = round.result;
                    return Some(Task::Reply { tag, result });
                }
                self.round = None;
                return None;
            }
            self.plan();
        }
    }
}

impl Coordinator for Toy {
    /// What a handle loads while it is opened is invalidated like everything else.
    fn connect(&mut self, conn: usize) {
        let open = Connection {
            open: true,
            ..Connection::default()
        };
        self.connections.insert(conn, open);
    }

    fn opened(&mut self, _: usize, _: Backend) -> Result<Advertised, Trouble> {
        Ok(Advertised {
            multi_conn: true,
            flush: true,
            fua: false,
        })
    }

    fn command(&mut self, conn: usize, tag: u64, command: Command) -> Option<Task> {
        self.commands.insert(tag, (conn, command));
        let flush = command.kind == CommandType::FLUSH;
        let busy = self.round.is_some() && (flush || self.care.stops_the_world);
        if busy || !self.waiting.is_empty() {
            self.waiting.push_back(tag);
            return None;
        }
        self.admit(tag)
    }

    fn executed(&mut self, tag: u64, result: Result<(), Errno>) -> Option<Task> {
        let (conn, command) = self.commands[&tag];
        let connection = self.connections.get_mut(&conn)?;
        connection.executing -= 1;
        if self.care.marks_on_completion {
            connection.dirty |= command.kind.is_modification();
        }
        Some(Task::Reply { tag, result })
    }

    fn flushed(&mut self, _: u64, result: Result<(), Errno>) {
        if let Some(round) = &mut self.round {
            round.running = None;
            round.result = round.result.and(result);
        }
    }

    fn disconnect(&mut self, conn: usize) {
        if let Some(connection) = self.connections.get_mut(&conn) {
            connection.leaving = true;
        }
        self.waiting.retain(|tag| self.commands[tag].0 != conn);
    }

    fn poll(&mut self) -> Option<Task> {
        if let Some(task) = self.poll_round() {
            return Some(task);
        }
        let running = self.round.as_ref().and_then(|it| it.running);
        if self.round.is_none() || !self.care.writes_out_leaving {
            let idle = |(at, it): &(&usize, &Connection)| {
                it.open && it.leaving && it.executing == 0 && running != Some(**at)
            };
            let leaving = self.connections.iter().find(idle);
            if let Some((&conn, connection)) = leaving {
                if connection.dirty && self.care.writes_out_leaving {
                    self.begin_round(Vec::new());
                    return self.poll_round();
                }
                self.connections.remove(&conn);
                if let Some(round) = &mut self.round {
                    round.todo.retain(|&at| at != conn);
                }
                return Some(Task::Close { conn });
            }
        }
        while self.round.is_none() || !self.care.stops_the_world {
            let front = self.waiting.front().copied()?;
            let flush = self.commands[&front].1.kind == CommandType::FLUSH;
            if self.round.is_some() && flush {
                return None;
            }
            self.waiting.pop_front();
            if let Some(task) = self.admit(front) {
                return Some(task);
            }
            if let Some(task) = self.poll_round() {
                return Some(task);
            }
        }
        None
    }
}
