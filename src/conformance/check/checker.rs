//! The events of a history, one after the other.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
use core::ops::Range;

use super::block::{Judgement, MOST_EFFECTS, Why};
use super::effect::{Cover, Effect, Floor, Flushed, Horizon, Kind, NEVER, Reading, Serial, Stamp};
use super::error::{CheckError, Malformed};
use super::flushes::Flushes;
use super::pages::{Pages, by_page};
use super::promise::{Initial, Promise};
use super::witness;
use crate::conformance::history::{Command, Content, Contents, Event, Extent, Outcome};
use crate::conformance::violation::Violation;

/// Blocks that one command may be about: a limit on what one event costs.
const MOST_BLOCKS: u64 = 1 << 20;

/// Effects that nothing may find any more, kept to explain what does.
const GRAVES: usize = 4096;

/// Blocks of which it is remembered in the same way what they began with: a server that loses what
/// it should have kept goes back to that, however much was written since.
const ORIGINS: usize = 1 << 16;

/// What a block is allowed to have by default before older effects are forgotten.
const DEFAULT_EFFECTS: usize = 32;

/// Decides event by event whether a server keeps its promise.
///
/// It remembers, of each block that was written to, what reads may still find there; of commands,
/// those in flight; of connections, those that are open (and, with
/// [`Promise::SINGLE_CONNECTION`], the last flush of those that were). So what it takes depends on
/// how much of the export is in use and on how much goes on at a time, not on the length of the
/// history. To explain violations it keeps some of what it has forgotten: up to 4096 effects, and what
/// up to 65,536 blocks began with, about 200 bytes each.
///
/// After a violation it says the same again.
///
/// ```
/// use nbd_proto::conformance::{Checker, Event, Promise};
///
/// let mut checker = Checker::new(Promise::MULTI_CONN, 4096);
/// for line in ["c0 write #1 0+4096 =1", "c0 done #1", "c1 flush #1", "c1 done #1"] {
///     checker.record(&line.parse::<Event>()?)?;
/// }
/// checker.record(&"c2 read #1 0+4096".parse::<Event>()?)?;
/// // What was written is visible to all.
/// assert!(checker.record(&"c2 data #1 =0".parse::<Event>()?).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Checker {
    promise: Promise,
    granule: u64,
    most_effects: usize,
    now: Stamp,
    blocks: Pages,
    connections: BTreeMap<u32, Serial>,
    serials: Serial,
    in_flight: BTreeMap<(u32, u64), InFlight>,
    /// The reads in flight, by their invocation, with the flush that each can rely on.
    reading: BTreeMap<Stamp, Stamp>,
    flushes: Flushes,
    crash: Option<Crash>,
    down: bool,
    pub(super) graves: Graves,
    summary: Summary,
    violation: Option<Box<Violation>>,
}

#[derive(Clone, Debug)]
struct InFlight {
    invoked: Stamp,
    command: Command,
    serial: Serial,
    /// What had been flushed.
    flush: Flushed,
}

/// The latest crash.
#[derive(Clone, Debug)]
pub(super) struct Crash {
    pub(super) at: Stamp,
    pub(super) reopened: Option<Stamp>,
    pub(super) flushes: Flushes,
}

/// What is not remembered any more, but was, lately.
#[derive(Clone, Debug)]
pub(super) struct Graves {
    most: usize,
    effects: VecDeque<(u64, Effect, Why)>,
    /// What was there when the server came up, at the beginning or after a crash.
    origins: BTreeMap<u64, (Effect, Why)>,
}

impl Graves {
    fn add(&mut self, block: u64, effect: Effect, why: Why) {
        if effect.survivor || effect.kind == Kind::Initial {
            self.add_origin(block, &effect, why);
        }
        if self.effects.len() >= self.most {
            self.effects.pop_front();
        }
        self.effects.push_back((block, effect, why));
    }

    fn add_origin(&mut self, block: u64, effect: &Effect, why: Why) {
        if self.origins.len() < ORIGINS || self.origins.contains_key(&block) {
            self.origins.insert(block, (effect.clone(), why));
        }
    }

    /// Where this came from.
    pub(super) fn find(&self, block: u64, content: Content) -> Option<(&Effect, Why)> {
        let mut latest_first = self.effects.iter().rev();
        let grave = latest_first.find(|it| it.0 == block && it.1.content == content);
        let grave = grave.map(|it| (&it.1, it.2));
        let origin = self.origins.get(&block).map(|it| (&it.0, it.1));
        grave.or(origin.filter(|it| it.0.content == content))
    }
}

/// What was seen of a server that kept its promise so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Summary {
    /// Events.
    pub events: u64,
    /// Commands that were answered with success.
    pub commands: u64,
    /// Commands that failed.
    pub failed: u64,
    /// Flushes among those that were answered with success.
    pub flushes: u64,
    /// Blocks that reads have found to be legal.
    pub blocks_read: u64,
    /// Crashes.
    pub crashes: u64,
}

impl Checker {
    /// Nothing has happened. Blocks have `granule` bytes; zero counts as one.
    #[must_use]
    pub fn new(promise: Promise, granule: u64) -> Self {
        Self {
            promise,
            granule: granule.max(1),
            most_effects: DEFAULT_EFFECTS,
            now: 0,
            blocks: Pages::default(),
            connections: BTreeMap::new(),
            serials: 0,
            in_flight: BTreeMap::new(),
            reading: BTreeMap::new(),
            flushes: Flushes::default(),
            crash: None,
            down: false,
            graves: Graves {
                most: GRAVES,
                effects: VecDeque::new(),
                origins: BTreeMap::new(),
            },
            summary: Summary::default(),
            violation: None,
        }
    }

    /// How many different things are remembered that reads of one block may find, 4 to 64; by
    /// default 32. What is older is then only known to be something: less is accused where, say,
    /// the same block is written over and over without any flush.
    #[must_use]
    pub fn with_most_effects(mut self, most: usize) -> Self {
        self.most_effects = most.clamp(8, MOST_EFFECTS);
        self
    }

    /// What was seen so far.
    #[must_use]
    pub const fn summary(&self) -> Summary {
        self.summary
    }

    /// How many things are remembered: what reads may find, commands in flight, connections. The
    /// measure of the memory that is in use.
    #[must_use]
    pub fn remembered(&self) -> usize {
        let effects: usize = self.blocks.iter().map(|it| it.effects.len()).sum();
        let graves = self.graves.effects.len() + self.graves.origins.len();
        effects + self.in_flight.len() + self.connections.len() + graves
    }

    /// The next event.
    ///
    /// # Errors
    ///
    /// [`CheckError::Violation`] if no server that keeps the promise can have answered so. What
    /// cannot be a history at all is [`CheckError::Malformed`], and is passed over.
    pub fn record(&mut self, event: &Event) -> Result<(), CheckError> {
        if let Some(violation) = &self.violation {
            return Err(CheckError::Violation(violation.clone()));
        }
        self.now += 1;
        self.summary.events += 1;
        match *event {
            Event::Invoke {
                conn,
                cookie,
                ref command,
            } => self.invoke(conn, cookie, command),
            Event::Reply {
                conn,
                cookie,
                ref outcome,
            } => self.reply(conn, cookie, outcome),
            Event::Disconnect { conn } => {
                self.disconnect(conn);
                Ok(())
            }
            Event::Crash => self.crash(),
            Event::Reopen => self.reopen(),
        }
    }

    fn malformed(&self, why: Malformed) -> CheckError {
        let event = self.now - 1;
        CheckError::Malformed { event, why }
    }

    // Invocations

    fn invoke(&mut self, conn: u32, cookie: u64, command: &Command) -> Result<(), CheckError> {
        self.check_invocation(conn, cookie, command)
            .map_err(|why| self.malformed(why))?;
        let serials = &mut self.serials;
        let serial = *self.connections.entry(conn).or_insert_with(|| {
            *serials = serials.saturating_add(1);
            *serials
        });
        let flush = self.flushes.latest(self.promise.scope, serial);
        let invoked = self.now;
        match command {
            Command::Read { .. } => {
                self.reading.insert(invoked, flush.invoked);
            }
            Command::Flush => {}
            command => self.begin(conn, serial, command),
        }
        let command = *command;
        let it = InFlight {
            invoked,
            command,
            serial,
            flush,
        };
        self.in_flight.insert((conn, cookie), it);
        Ok(())
    }

    fn check_invocation(&self, conn: u32, cookie: u64, command: &Command) -> Result<(), Malformed> {
        if self.down {
            return Err(Malformed::ServerIsDown);
        }
        if self.in_flight.contains_key(&(conn, cookie)) {
            return Err(Malformed::CookieInUse { conn, cookie });
        }
        if let Command::Write { content, .. } = command
            && *content == Content::MIXED
        {
            return Err(Malformed::WritesMixture);
        }
        let Some(Extent { offset, length }) = command.extent() else {
            return Ok(());
        };
        if offset % self.granule != 0 || length % self.granule != 0 {
            return Err(Malformed::Misaligned);
        }
        if length == 0 || offset.checked_add(length).is_none() {
            return Err(Malformed::NoExtent);
        }
        if length / self.granule > MOST_BLOCKS {
            return Err(Malformed::TooLong);
        }
        Ok(())
    }

    /// A modification may take effect from now on.
    fn begin(&mut self, conn: u32, serial: Serial, command: &Command) {
        let (kind, content) = match *command {
            Command::Write { content, .. } => (Kind::Write, content),
            Command::Zero { .. } => (Kind::Zero, Content::ZEROES),
            _ => (Kind::Trim, Content::MIXED),
        };
        let effect = Effect {
            content,
            invoked: self.now,
            answered: NEVER,
            settled: NEVER,
            before: 0,
            serial,
            conn,
            kind,
            fua: false,
            wants_fua: command.has_fua(),
            failed: false,
            found: false,
            survivor: false,
            dead: false,
            seen: None,
        };
        let initial = initial(self.promise);
        let horizon = self.horizon();
        let cover = Cover {
            promise: self.promise,
            flushes: &self.flushes,
        };
        for part in by_page(blocks(self.granule, command)) {
            let there = self.blocks.get_or_add(part.clone()).unwrap_or_default();
            for (number, block) in part.zip(there) {
                let bury = &mut |it, why| self.graves.add(number, it, why);
                if let Some(horizon) = horizon {
                    block.prune(horizon, bury);
                }
                block.invoke(effect.clone(), &initial, cover, self.most_effects, bury);
            }
        }
    }

    /// Where each connection is on its own, another one may always find what is old.
    fn horizon(&self) -> Option<Horizon> {
        let promise = self.promise;
        promise.is_multi_conn().then(|| {
            let latest = self.flushes.latest(promise.scope, 0).invoked;
            let (at, flush) = match self.reading.first_key_value() {
                Some((&at, &flush)) => (at, flush),
                None => (self.now, latest),
            };
            Horizon { flush, at }
        })
    }

    // Replies

    fn reply(&mut self, conn: u32, cookie: u64, outcome: &Outcome) -> Result<(), CheckError> {
        let Some(command) = self.in_flight.get(&(conn, cookie)) else {
            return Err(self.malformed(Malformed::NoSuchCommand { conn, cookie }));
        };
        check_outcome(self.granule, &command.command, outcome)
            .map_err(|why| self.malformed(why))?;
        let Some(command) = self.in_flight.remove(&(conn, cookie)) else {
            return Ok(());
        };
        self.reading.remove(&command.invoked);
        match outcome {
            Outcome::Failed => self.summary.failed += 1,
            _ => self.summary.commands += 1,
        }
        match (&command.command, outcome) {
            (Command::Read { .. }, Outcome::Data(contents)) => {
                return self.read(conn, &command, contents);
            }
            (Command::Flush, Outcome::Done) => {
                self.summary.flushes += 1;
                let flush = Flushed {
                    invoked: command.invoked,
                    replied: self.now,
                    conn,
                };
                self.flushes.add(self.promise.scope, command.serial, flush);
            }
            (Command::Read { .. } | Command::Flush, _) => {}
            (modification, outcome) => {
                let succeeded = *outcome == Outcome::Done;
                self.end(command.invoked, modification, succeeded);
            }
        }
        Ok(())
    }

    /// A modification was answered. That alone makes nothing older unfindable: a flush has to be
    /// invoked later, or with FUA a read.
    fn end(&mut self, invoked: Stamp, command: &Command, succeeded: bool) {
        for part in by_page(blocks(self.granule, command)) {
            for block in self.blocks.get_mut(part).unwrap_or_default() {
                block.answer(invoked, self.now, succeeded);
            }
        }
    }

    fn read(
        &mut self,
        conn: u32,
        command: &InFlight,
        contents: &Contents,
    ) -> Result<(), CheckError> {
        let floor = Floor {
            promise: self.promise,
            serial: command.serial,
            at: command.invoked,
            flush: command.flush,
        };
        let reading = Reading {
            invoked: command.invoked,
            replied: self.now,
            conn,
            flush: command.flush,
        };
        let horizon = self.horizon();
        let mut each = match contents {
            Contents::Each(each) => each.iter(),
            Contents::Same(_) => [].iter(),
        };
        for part in by_page(blocks(self.granule, &command.command)) {
            let mut there = self
                .blocks
                .get_mut(part.clone())
                .unwrap_or_default()
                .iter_mut();
            for number in part {
                let content = match contents {
                    Contents::Same(content) => *content,
                    Contents::Each(_) => each.next().copied().unwrap_or(Content::MIXED),
                };
                let judgement = match there.next() {
                    Some(block) if !block.effects.is_empty() => {
                        let bury = &mut |it, why| self.graves.add(number, it, why);
                        let judgement = block.read(content, &floor, reading, bury);
                        if let (Some(horizon), Judgement::Legal) = (horizon, judgement) {
                            block.prune(horizon, bury);
                        }
                        judgement
                    }
                    _ if initial(self.promise).may_be(content) => Judgement::Legal,
                    _ => Judgement::Alien,
                };
                if judgement != Judgement::Legal {
                    return Err(self.accuse(number, content, &floor, reading, judgement));
                }
                self.summary.blocks_read += 1;
            }
        }
        Ok(())
    }

    fn accuse(
        &mut self,
        number: u64,
        content: Content,
        floor: &Floor,
        reading: Reading,
        judgement: Judgement,
    ) -> CheckError {
        let scene = witness::Scene {
            promise: self.promise,
            granule: self.granule,
            number,
            content,
            floor,
            reading,
            effects: match self.blocks.get(number) {
                Some(block) => &block.effects,
                None => &[],
            },
            graves: &self.graves,
            crash: self.crash.as_ref(),
        };
        let violation = Box::new(scene.violation(judgement));
        self.violation = Some(violation.clone());
        CheckError::Violation(violation)
    }

    // Connections

    /// What was in flight may take effect at any time, or never.
    fn disconnect(&mut self, conn: u32) {
        self.connections.remove(&conn);
        let of_conn = self.in_flight.range((conn, 0)..=(conn, u64::MAX));
        let gone: Vec<_> = of_conn.map(|(&key, it)| (key, it.invoked)).collect();
        for (key, invoked) in gone {
            self.in_flight.remove(&key);
            self.reading.remove(&invoked);
        }
    }

    fn crash(&mut self) -> Result<(), CheckError> {
        if self.down {
            return Err(self.malformed(Malformed::ServerIsDown));
        }
        self.down = true;
        self.summary.crashes += 1;
        self.connections.clear();
        self.in_flight.clear();
        self.reading.clear();
        let now = self.now;
        let cover = Cover {
            promise: self.promise,
            flushes: &self.flushes,
        };
        for (number, block) in self.blocks.iter_mut() {
            block.crash(now, cover, &mut |it, why| self.graves.add(number, it, why));
        }
        self.crash = Some(Crash {
            at: now,
            reopened: None,
            flushes: self.flushes.clone(),
        });
        self.flushes.clear();
        Ok(())
    }

    fn reopen(&mut self) -> Result<(), CheckError> {
        if !self.down {
            return Err(self.malformed(Malformed::NoCrash));
        }
        self.down = false;
        if let Some(crash) = &mut self.crash {
            crash.reopened = Some(self.now);
        }
        Ok(())
    }
}

fn initial(promise: Promise) -> Effect {
    Effect::initial(match promise.initial {
        Initial::Zeroes => Some(Content::ZEROES),
        Initial::Unknown => None,
    })
}

/// The numbers of the blocks of a command that was found to be well-formed.
fn blocks(granule: u64, command: &Command) -> Range<u64> {
    let Extent { offset, length } = command.extent().unwrap_or(Extent::new(0, 0));
    let first = offset / granule;
    first..first.saturating_add(length / granule)
}

fn check_outcome(granule: u64, command: &Command, outcome: &Outcome) -> Result<(), Malformed> {
    match (command, outcome) {
        (_, Outcome::Failed) => Ok(()),
        (Command::Read { extent }, Outcome::Data(Contents::Each(each))) => {
            let blocks = extent.length / granule;
            let same = usize::try_from(blocks).is_ok_and(|it| it == each.len());
            same.then_some(()).ok_or(Malformed::WrongCount)
        }
        (Command::Read { .. }, Outcome::Data(Contents::Same(_))) => Ok(()),
        (Command::Read { .. }, Outcome::Done) => Err(Malformed::WrongOutcome),
        (_, Outcome::Done) => Ok(()),
        (_, Outcome::Data(_)) => Err(Malformed::WrongOutcome),
    }
}
