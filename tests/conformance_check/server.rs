//! A server that keeps its promise and no more, and ways to break it.
//!
//! It has a store, and a write-back cache for each connection. Commands are executed block by
//! block, at any time between invocation and reply, in any order. Caches load, write back and
//! evict when they like, flushes run beside anything, commands and flushes fail with and without
//! effect, and what a lost connection or a failed command left undone may be done at any later time.

use std::collections::BTreeMap;

use nbd_proto::conformance::{Command, Content, Contents, Event, Extent, Outcome};

use crate::brute::Rules;
use crate::dice::Dice;

pub(crate) const GRANULE: u64 = 4096;

/// One rule that the server breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    None,
    /// A flush writes out its own connection alone.
    FlushesItselfOnly,
    /// A flush leaves in the caches what was loaded before.
    KeepsCaches,
    /// What is written through another connection's cache may be overwritten by older data.
    NoOrder,
    /// FUA is ignored.
    ForcesNothing,
    /// FUA leaves old data in the caches of others.
    HidesForced,
    /// What a connection has not written out is dropped when it is gone.
    DropsAtDisconnect,
    /// What a failed flush did not write out is dropped.
    DropsAfterFailure,
    /// A flush takes what is written later, by commands that run meanwhile, for written out.
    LosesDirtyBit,
    /// A connection reads from the store what it has in its cache.
    ForgetsOwn,
    /// Reads return what was written elsewhere.
    Misplaces,
}

#[derive(Clone, Copy, Debug)]
struct Cell {
    content: Content,
    dirty: bool,
}

type Cache = BTreeMap<u64, Cell>;

struct Task {
    conn: u32,
    serial: usize,
    cookie: u64,
    command: Command,
    /// The blocks that are not executed, in the order in which they will be.
    left: Vec<u64>,
    found: BTreeMap<u64, Content>,
    outcome: Option<Outcome>,
    /// The client does not wait for it.
    lost: bool,
}

pub(crate) struct Server {
    rules: Rules,
    bug: Bug,
    blocks: u64,
    conns: u32,
    store: Vec<Content>,
    /// Of connections that are gone, too.
    caches: Vec<Cache>,
    serials: BTreeMap<u32, usize>,
    tasks: Vec<Task>,
    next: u64,
    pub(crate) dice: Dice,
}

impl Server {
    pub(crate) fn new(rules: Rules, bug: Bug, seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let blocks = dice.pick(&[1, 2, 3, 8]);
        Self {
            rules,
            bug,
            blocks,
            conns: 1 + dice.below(4) as u32,
            store: vec![Content::ZEROES; blocks as usize],
            caches: Vec::new(),
            serials: BTreeMap::new(),
            tasks: Vec::new(),
            next: 0,
            dice,
        }
    }

    /// Takes a step; most are seen by nobody.
    pub(crate) fn step(&mut self) -> Vec<Event> {
        match self.dice.below(200) {
            0..2 => self.disconnect(),
            2 if self.dice.percent(40) => self.crash(),
            3..50 if self.tasks.len() < 8 => vec![self.invoke()],
            50..140 => {
                self.execute();
                vec![]
            }
            140..180 => self.reply().into_iter().collect(),
            180..188 => {
                self.write_back();
                vec![]
            }
            _ => {
                self.evict();
                vec![]
            }
        }
    }

    fn invoke(&mut self) -> Event {
        self.next += 1;
        let conn = self.dice.below(self.conns as usize) as u32;
        let serial = *self.serials.entry(conn).or_insert_with(|| {
            self.caches.push(Cache::new());
            self.caches.len() - 1
        });
        let first = self.dice.below(self.blocks as usize) as u64;
        let count = 1 + self.dice.below((self.blocks - first).min(3) as usize) as u64;
        let extent = Extent::new(first * GRANULE, count * GRANULE);
        let fua = self.dice.percent(15);
        let content = Content(self.next);
        let command = match self.dice.below(100) {
            0..40 => Command::Read { extent },
            40..55 => Command::Flush,
            55..60 => Command::Zero { extent, fua },
            60..62 => Command::Trim { extent, fua },
            _ => Command::Write {
                extent,
                content,
                fua,
            },
        };
        let mut left: Vec<u64> = match command {
            Command::Flush => vec![],
            _ => (first..first + count).collect(),
        };
        if self.dice.percent(50) {
            left.reverse();
        }
        self.tasks.push(Task {
            conn,
            serial,
            cookie: self.next,
            command,
            left,
            found: BTreeMap::new(),
            outcome: None,
            lost: false,
        });
        Event::Invoke {
            conn,
            cookie: self.next,
            command,
        }
    }

    /// One block of a command, or its end.
    fn execute(&mut self) {
        let undone = |task: &Task| task.outcome.is_none() || !task.left.is_empty();
        let undone: Vec<usize> = (0..self.tasks.len())
            .filter(|&it| undone(&self.tasks[it]))
            .collect();
        if undone.is_empty() {
            return;
        }
        let which = self.dice.pick(&undone);
        let Task {
            serial, command, ..
        } = self.tasks[which];
        if self.tasks[which].outcome.is_none() && self.dice.percent(2) && command != Command::Flush
        {
            // Fails; what is left may be done later all the same, or never.
            self.tasks[which].outcome = Some(Outcome::Failed);
            if self.dice.percent(50) || !command.is_modification() {
                self.tasks[which].left.clear();
            }
            return;
        }
        let Some(block) = self.tasks[which].left.pop() else {
            let outcome = self.finish(which);
            self.tasks[which].outcome = Some(outcome);
            return;
        };
        match command {
            Command::Write { content, .. } => self.modify(serial, block, content),
            Command::Zero { .. } => self.modify(serial, block, Content::ZEROES),
            Command::Trim { .. } => {
                let discards = self.dice.percent(50);
                let anything = self
                    .dice
                    .pick(&[Content::ZEROES, Content::MIXED, Content(77)]);
                if discards {
                    self.modify(serial, block, anything);
                }
            }
            _ => {
                let found = self.load(serial, block);
                self.tasks[which].found.insert(block, found);
            }
        }
    }

    fn modify(&mut self, serial: usize, block: u64, content: Content) {
        if self.rules.multi_conn && self.rules.ordered && self.bug != Bug::NoOrder {
            for other in 0..self.caches.len() {
                if other != serial {
                    self.write_out(other, block);
                }
            }
        }
        let dirty = true;
        self.caches[serial].insert(block, Cell { content, dirty });
        if self.dice.percent(10) {
            self.write_out(serial, block);
        }
    }

    fn load(&mut self, serial: usize, block: u64) -> Content {
        if self.bug == Bug::Misplaces && self.dice.percent(2) {
            let other = (block + 1) % self.blocks;
            return self.store[other as usize];
        }
        if let Some(cell) = self.caches[serial].get(&block)
            && (self.bug != Bug::ForgetsOwn || self.dice.percent(90))
        {
            return cell.content;
        }
        let content = self.store[block as usize];
        if self.bug != Bug::ForgetsOwn && self.dice.percent(70) {
            let dirty = false;
            self.caches[serial].insert(block, Cell { content, dirty });
        }
        content
    }

    fn write_out(&mut self, serial: usize, block: u64) {
        if let Some(cell) = self.caches[serial].get_mut(&block)
            && cell.dirty
        {
            cell.dirty = false;
            self.store[block as usize] = cell.content;
        }
    }

    /// All blocks are done.
    fn finish(&mut self, which: usize) -> Outcome {
        let task = &self.tasks[which];
        let (serial, command) = (task.serial, task.command);
        match command {
            Command::Read { .. } => {
                let found = task.found.values().copied().collect();
                Outcome::Data(Contents::Each(found))
            }
            Command::Flush if self.dice.percent(10) => {
                self.fail_flush();
                Outcome::Failed
            }
            Command::Flush => {
                self.flush(serial);
                Outcome::Done
            }
            command => {
                if let (true, Some(extent)) = (command.has_fua(), command.extent()) {
                    self.force(serial, extent);
                }
                Outcome::Done
            }
        }
    }

    fn force(&mut self, serial: usize, extent: Extent) {
        let first = extent.offset / GRANULE;
        for block in first..first + extent.length / GRANULE {
            if self.bug != Bug::ForcesNothing {
                self.write_out(serial, block);
            }
            if self.bug == Bug::HidesForced || self.bug == Bug::ForcesNothing {
                continue;
            }
            for cache in &mut self.caches {
                if cache.get(&block).is_some_and(|it| !it.dirty) {
                    cache.remove(&block);
                }
            }
        }
    }

    fn flush(&mut self, serial: usize) {
        let all = self.rules.multi_conn;
        let mut order: Vec<usize> = (0..self.caches.len()).collect();
        if self.dice.percent(50) {
            order.reverse();
        }
        let running: Vec<u64> = self.tasks.iter().flat_map(|it| it.left.clone()).collect();
        for other in order.iter().copied().filter(|&it| all || it == serial) {
            if self.bug == Bug::FlushesItselfOnly && other != serial {
                continue;
            }
            for block in 0..self.blocks {
                if self.bug == Bug::LosesDirtyBit
                    && running.contains(&block)
                    && let Some(cell) = self.caches[other].get_mut(&block)
                {
                    cell.dirty = false;
                }
                self.write_out(other, block);
            }
        }
        for other in order.into_iter().filter(|&it| all || it == serial) {
            if self.bug != Bug::KeepsCaches {
                self.caches[other].retain(|_, it| it.dirty);
            }
        }
    }

    fn fail_flush(&mut self) {
        for serial in 0..self.caches.len() {
            for block in 0..self.blocks {
                if self.dice.percent(30) {
                    self.write_out(serial, block);
                }
            }
            if self.bug == Bug::DropsAfterFailure {
                self.caches[serial].clear();
            }
        }
    }

    fn write_back(&mut self) {
        if !self.caches.is_empty() {
            let serial = self.dice.below(self.caches.len());
            let block = self.dice.below(self.blocks as usize) as u64;
            self.write_out(serial, block);
        }
    }

    fn evict(&mut self) {
        if !self.caches.is_empty() {
            let serial = self.dice.below(self.caches.len());
            let block = self.dice.below(self.blocks as usize) as u64;
            if self.caches[serial].get(&block).is_some_and(|it| !it.dirty) {
                self.caches[serial].remove(&block);
            }
        }
    }

    fn reply(&mut self) -> Option<Event> {
        let waits = |task: &Task| task.outcome.is_some() && !task.lost;
        let waiting: Vec<usize> = (0..self.tasks.len())
            .filter(|&it| waits(&self.tasks[it]))
            .collect();
        if waiting.is_empty() {
            return None;
        }
        let which = self.dice.pick(&waiting);
        let task = &mut self.tasks[which];
        let (conn, cookie) = (task.conn, task.cookie);
        let outcome = task.outcome.clone()?;
        if task.left.is_empty() {
            self.tasks.remove(which);
        } else {
            task.lost = true;
        }
        Some(Event::Reply {
            conn,
            cookie,
            outcome,
        })
    }

    fn disconnect(&mut self) -> Vec<Event> {
        let conn = self.dice.below(self.conns as usize) as u32;
        if let Some(serial) = self.serials.remove(&conn)
            && self.bug == Bug::DropsAtDisconnect
        {
            self.caches[serial].clear();
        }
        for task in self.tasks.iter_mut().filter(|it| it.conn == conn) {
            task.lost = true;
        }
        let modifies = |it: &Task| it.command.is_modification() && !it.left.is_empty();
        self.tasks.retain(|it| !it.lost || modifies(it));
        vec![Event::Disconnect { conn }]
    }

    fn crash(&mut self) -> Vec<Event> {
        self.caches.clear();
        self.serials.clear();
        self.tasks.clear();
        vec![Event::Crash, Event::Reopen]
    }
}
