//! From a violation to the smallest history that shows it.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use super::checker::{Checker, Summary};
use super::error::CheckError;
use super::promise::Promise;
use crate::conformance::history::{Command, Content, Contents, Event, Extent, History, Outcome};
use crate::conformance::violation::{Action, Role, Step, Violation};

/// So many events may be looked at once more to find the smallest explanation. Beyond that it is
/// only a small one.
const MOST_EVENTS: usize = 50_000_000;

/// Decides whether a server kept its promise, from a whole history.
///
/// # Errors
///
/// [`CheckError::Violation`] with an explanation from which nothing can be left out; see
/// [`Checker::record`].
pub fn check(history: &History, promise: Promise) -> Result<Summary, CheckError> {
    let mut checker = Checker::new(promise, history.granule());
    for (number, event) in history.events().iter().enumerate() {
        match checker.record(event) {
            Err(CheckError::Violation(violation)) => {
                let block = OneBlock::new(history, promise, &violation, number);
                let violation = block.smallest().unwrap_or(violation);
                return Err(CheckError::Violation(violation));
            }
            other => other?,
        }
    }
    Ok(checker.summary())
}

/// What of a history is about one block: commands and crashes, each with its events.
struct OneBlock {
    promise: Promise,
    granule: u64,
    /// In the order of the history, with their numbers there, and the parts they belong to.
    events: Vec<(u64, usize, Event)>,
    parts: usize,
}

impl OneBlock {
    fn new(history: &History, promise: Promise, violation: &Violation, last: usize) -> Self {
        let (offset, granule) = (violation.offset(), history.granule());
        let mut it = Self {
            promise,
            granule,
            events: Vec::new(),
            parts: 0,
        };
        let mut in_flight: BTreeMap<(u32, u64), (usize, Extent)> = BTreeMap::new();
        for (number, event) in (0..).zip(history.events()).take(last.saturating_add(1)) {
            match *event {
                Event::Invoke {
                    conn,
                    cookie,
                    command,
                } => {
                    let all = Extent::new(offset, granule);
                    let extent = command.extent().unwrap_or(all);
                    if !(extent.offset..extent.offset.saturating_add(extent.length))
                        .contains(&offset)
                    {
                        continue;
                    }
                    in_flight.insert((conn, cookie), (it.parts, extent));
                    let event = Event::Invoke {
                        conn,
                        cookie,
                        command: at(command, all),
                    };
                    it.add(number, event);
                }
                Event::Reply {
                    conn,
                    cookie,
                    ref outcome,
                } => {
                    if let Some((part, extent)) = in_flight.remove(&(conn, cookie)) {
                        let outcome = of_block(outcome, extent, offset, granule);
                        let event = Event::Reply {
                            conn,
                            cookie,
                            outcome,
                        };
                        it.events.push((number, part, event));
                    }
                }
                Event::Disconnect { conn } => {
                    in_flight.retain(|it, _| it.0 != conn);
                    it.add(number, event.clone());
                }
                Event::Crash => {
                    in_flight.clear();
                    it.add(number, Event::Crash);
                }
                // Goes with its crash.
                Event::Reopen => {
                    let crash = it.events.iter().rev().find(|it| it.2 == Event::Crash);
                    let part = crash.map_or(0, |it| it.1);
                    it.events.push((number, part, Event::Reopen));
                }
            }
        }
        it
    }

    fn add(&mut self, number: u64, event: Event) {
        self.events.push((number, self.parts, event));
        self.parts += 1;
    }

    /// What these parts alone show.
    fn shows(&self, parts: &BTreeSet<usize>) -> Option<Box<Violation>> {
        let mut checker = Checker::new(self.promise, self.granule);
        let mut numbers = Vec::new();
        for (number, _, event) in self.events.iter().filter(|it| parts.contains(&it.1)) {
            numbers.push(*number);
            if let Err(CheckError::Violation(mut violation)) = checker.record(event) {
                violation.renumber(&numbers);
                return Some(violation);
            }
        }
        None
    }

    fn smallest(&self) -> Option<Box<Violation>> {
        let (mut violation, parts) = self.shrink()?;
        let named = violation.events();
        let missing = parts.into_iter().filter_map(|it| self.step(it));
        let missing = missing.filter(|it| !named.contains(&it.invoked));
        violation.add_steps(missing);
        Some(violation)
    }

    /// A part that takes part because the violation is none without it.
    fn step(&self, part: usize) -> Option<Step> {
        let mut events = self.events.iter().filter(|it| it.1 == part);
        let (invoked, _, event) = events.next()?;
        let end = events.next();
        let (conn, action, role) = match *event {
            Event::Invoke { conn, command, .. } => {
                let found = end.and_then(|it| found(&it.2)).unwrap_or(Content::MIXED);
                match command {
                    Command::Read { .. } => (Some(conn), Action::Read(found), Role::Proof),
                    Command::Write { content, .. } => {
                        (Some(conn), Action::Write(content), Role::Other)
                    }
                    Command::Zero { .. } => (Some(conn), Action::Zero, Role::Other),
                    Command::Trim { .. } => (Some(conn), Action::Trim, Role::Other),
                    Command::Flush => (Some(conn), Action::Flush, Role::Proof),
                }
            }
            Event::Disconnect { conn } => (Some(conn), Action::Disconnect, Role::Proof),
            Event::Crash => (None, Action::Crash, Role::Crash),
            Event::Reply { .. } | Event::Reopen => return None,
        };
        let fua = matches!(event, Event::Invoke { command, .. } if command.has_fua());
        let outcome = end.map(|it| &it.2);
        let is_failure = |it: &&Event| {
            let failed = Outcome::Failed;
            matches!(it, Event::Reply { outcome, .. } if *outcome == failed)
        };
        Some(Step {
            role,
            conn,
            action,
            invoked: *invoked,
            replied: end.map(|it| it.0),
            failed: outcome.is_some_and(|it| is_failure(&it)),
            fua,
        })
    }

    /// The least that shows the same, and the parts it is made of.
    fn shrink(&self) -> Option<(Box<Violation>, BTreeSet<usize>)> {
        let all: BTreeSet<usize> = (0..self.parts).collect();
        let mut best = self.shows(&all)?;
        let clause = best.clause();
        let mut parts = all;
        // Most often what the checker names is enough.
        let named: BTreeSet<u64> = best.events().into_iter().collect();
        let named = self.events.iter().filter(|it| named.contains(&it.0));
        let named: BTreeSet<usize> = named.map(|it| it.1).collect();
        if let Some(violation) = self.shows(&named).filter(|it| it.clause() == clause) {
            (parts, best) = (named, violation);
        }
        let mut looked_at = 0_usize;
        let mut chunk = (parts.len() / 2).max(1);
        loop {
            let before = parts.len();
            let list: Vec<usize> = parts.iter().copied().collect();
            for gone in list.chunks(chunk) {
                looked_at = looked_at.saturating_add(self.events.len());
                let rest = &parts - &gone.iter().copied().collect();
                if let Some(violation) = self.shows(&rest).filter(|it| it.clause() == clause) {
                    (parts, best) = (rest, violation);
                }
                if looked_at > MOST_EVENTS {
                    return Some((best, parts));
                }
            }
            if chunk == 1 && parts.len() == before {
                return Some((best, parts));
            }
            chunk = (chunk / 2).max(1);
        }
    }
}

fn found(event: &Event) -> Option<Content> {
    match event {
        Event::Reply {
            outcome: Outcome::Data(Contents::Same(content)),
            ..
        } => Some(*content),
        _ => None,
    }
}

/// The same command about one block of its extent.
fn at(command: Command, extent: Extent) -> Command {
    match command {
        Command::Read { .. } => Command::Read { extent },
        Command::Write { content, fua, .. } => Command::Write {
            extent,
            content,
            fua,
        },
        Command::Zero { fua, .. } => Command::Zero { extent, fua },
        Command::Trim { fua, .. } => Command::Trim { extent, fua },
        Command::Flush => Command::Flush,
    }
}

/// What an answer says about one block.
fn of_block(outcome: &Outcome, extent: Extent, offset: u64, granule: u64) -> Outcome {
    let Outcome::Data(Contents::Each(each)) = outcome else {
        return outcome.clone();
    };
    let place = offset.saturating_sub(extent.offset) / granule;
    let content = usize::try_from(place).ok().and_then(|it| each.get(it));
    Outcome::Data(Contents::Same(content.copied().unwrap_or(Content::MIXED)))
}
