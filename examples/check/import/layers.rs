//! The log of nbdkit with one log filter above other filters, and one below them:
//!
//! ```text
//! nbdkit --filter=log --filter=multi-conn --filter=log PLUGIN logfile=FILE
//! ```
//!
//! nbdkit writes both into one file, in one order: what clients have asked of the filters between,
//! and what these have made of it. (nbdkit 1.32.5 may die when it is told to end, because the filter
//! closes the file twice; the log is complete then.)
//!
//! # What is judged
//!
//! *When a flush succeeds above, all that was answered above before it came has been flushed below*:
//! through the same connection, by a flush that began after the modification was answered below, that
//! succeeded, and that did so before the flush above was answered; or the modification had FUA
//! below. And the same for a modification that succeeds with FUA above.
//!
//! That is what a backend with one cache for each connection needs for the durability that multi-conn
//! promises, and what `multi-conn-mode=emulate` is for. It says nothing about a plugin that has one
//! cache for all and needs less; nothing about what a plugin does when a connection is closed, so
//! what is unflushed then counts as lost; and nothing about visibility: the log has no contents.
//! With `--promise single-connection`, a flush above is for its own connection only.
//!
//! nbdkit numbers the connections of both filters in one row, and opens that below first. If several
//! clients connect at the same moment it may not be possible to tell whose is whose; then, and if the
//! filters between delay or invent modifications, the log is refused.

use std::collections::{BTreeMap, HashMap};
use std::io::BufRead;

use nbd_proto::multiplex::{AfterLoss, Doubt, Scope, WriteId, WriteState};

use super::nbdkit::{Command, Entries, Entry, Range, Tally, Told};
use super::uncovered::{Call, Coverage, Totals};
use super::{ImportError, LineError, Promised};

/// What two log filters have seen.
#[derive(Debug)]
pub(crate) struct Layers {
    pub(crate) promised: Promised,
    pub(crate) tally: Tally,
    /// Flushes and commands with FUA that have succeeded above.
    pub(crate) promises: u64,
    /// Of what was done below, if a flush is for its own connection.
    pub(crate) below: Totals,
    pub(crate) broken: Option<Broken>,
}

/// Something that was promised above and not done below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Broken {
    /// The flush above, or the modification with FUA.
    pub(crate) promise: Lines,
    pub(crate) is_flush: bool,
    /// The modification above, up to when it counts as answered.
    pub(crate) above: Lines,
    /// What was made of it below.
    pub(crate) below: Lines,
    pub(crate) range: Range,
    pub(crate) why: Unflushed,
}

/// A command in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lines {
    pub(crate) connection: u64,
    pub(crate) called: u64,
    pub(crate) answered: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unflushed {
    /// No flush that could cover it has succeeded yet.
    NotYet,
    /// Its connection was closed before any.
    Closed,
    /// The flush that should have covered it has failed.
    Failed,
}

/// Settled modifications that may wait for a flush above.
const MOST: usize = 1 << 20;

/// Modifications of one connection in flight; nbdkit has 16 threads for each by default.
const MOST_IN_FLIGHT: usize = 4096;

struct Follow {
    promised: Promised,
    below: Coverage,
    /// The connection above, by that below.
    above_of: HashMap<u64, u64>,
    above: HashMap<u64, Above>,
    /// A connection below whose connection above has not been told of yet.
    unpaired: Option<u64>,
    /// What was answered above, by the scope of the flushes that have to cover it, and by the line
    /// of the answer.
    settled: HashMap<u64, BTreeMap<(u64, WriteId), Settled>>,
    count: usize,
    promises: u64,
}

/// A connection as the clients see it.
#[derive(Default)]
struct Above {
    /// Modifications in flight.
    modifications: HashMap<u64, Asked>,
    flushes: HashMap<u64, u64>,
    /// What was begun below and not yet answered above.
    open: Vec<Part>,
}

#[derive(Clone, Copy)]
struct Asked {
    range: Range,
    fua: bool,
    line: u64,
}

/// A modification below.
#[derive(Clone, Copy)]
struct Part {
    call: Call,
    write: WriteId,
    range: Range,
    called: u64,
    /// The line of the answer, if it succeeded.
    answered: Option<u64>,
    failed: bool,
    /// Whether only one command above can have been the reason for it.
    sole: bool,
}

struct Settled {
    part: Part,
    above: Lines,
}

pub(super) fn judge<R: BufRead>(
    mut entries: Entries<R>,
    first: Told,
    promised: Promised,
) -> Result<Layers, ImportError> {
    let mut follow = Follow::new(promised);
    let (mut next, mut broken) = (Some(first), None);
    while let Some(told) = next {
        broken = follow.entry(&told).map_err(|why| why.at(told.line))?;
        if broken.is_some() {
            break;
        }
        next = entries.next()?;
    }
    Ok(Layers {
        promised,
        tally: entries.into_tally(),
        promises: follow.promises,
        below: follow.below.into_totals(),
        broken,
    })
}

impl Follow {
    fn new(promised: Promised) -> Self {
        Self {
            promised,
            // A handle that is closed may drop what it has not flushed.
            below: Coverage::new(Scope::OwnConnection, AfterLoss::Suspect),
            above_of: HashMap::new(),
            above: HashMap::new(),
            unpaired: None,
            settled: HashMap::new(),
            count: 0,
            promises: 0,
        }
    }

    fn entry(&mut self, told: &Told) -> Result<Option<Broken>, LineError> {
        let line = told.line;
        match told.entry {
            Entry::Ready => self.end_of_run(),
            Entry::Connect { connection, .. } => self.connect(connection)?,
            Entry::Disconnect { connection } => self.disconnect(connection)?,
            Entry::Call {
                connection,
                id,
                command,
            } => match self.above_of.get(&connection) {
                Some(&above) => self.call_below((connection, id), above, command, line)?,
                None => self.call_above((connection, id), command, line)?,
            },
            Entry::Return {
                connection,
                id,
                succeeded,
            } => match self.above_of.get(&connection) {
                Some(&above) => self.return_below((connection, id), above, succeeded, line)?,
                None => return self.return_above((connection, id), told, succeeded),
            },
            Entry::Fork | Entry::Preconnect { .. } | Entry::Other => {}
        }
        Ok(None)
    }

    fn end_of_run(&mut self) {
        self.below.end_of_run();
        self.above_of.clear();
        self.above.clear();
        self.unpaired = None;
        self.settled.clear();
        self.count = 0;
    }

    fn connect(&mut self, connection: u64) -> Result<(), LineError> {
        let Some(below) = self.unpaired.take() else {
            self.unpaired = Some(connection);
            return self.below.connected(connection);
        };
        self.above_of.insert(below, connection);
        self.above.insert(connection, Above::default());
        Ok(())
    }

    fn disconnect(&mut self, connection: u64) -> Result<(), LineError> {
        if self.unpaired == Some(connection) {
            self.unpaired = None;
            return self.below.ended(connection);
        }
        if self.above_of.remove(&connection).is_some() {
            return self.below.ended(connection);
        }
        self.above.remove(&connection).ok_or(LineError::Ambiguous)?;
        if self.promised == Promised::SingleConnection
            && let Some(settled) = self.settled.remove(&connection)
        {
            // No flush will ever be for it.
            self.count -= settled.len();
        }
        Ok(())
    }

    fn call_above(&mut self, call: Call, command: Command, line: u64) -> Result<(), LineError> {
        let above = self.above.get_mut(&call.0).ok_or(LineError::Ambiguous)?;
        match command {
            Command::Modification { extent, fua } => {
                let asked = Asked {
                    range: extent,
                    fua,
                    line,
                };
                above.modifications.insert(call.1, asked);
                if above.modifications.len() > MOST_IN_FLIGHT {
                    return Err(LineError::TooMuch("too many commands are in flight"));
                }
            }
            Command::Flush => drop(above.flushes.insert(call.1, line)),
            Command::Read | Command::Other => {}
        }
        Ok(())
    }

    fn call_below(
        &mut self,
        call: Call,
        above: u64,
        command: Command,
        line: u64,
    ) -> Result<(), LineError> {
        let (range, fua) = match command {
            Command::Modification { extent, fua } => (extent, fua),
            Command::Flush => return self.below.flush(call),
            Command::Read | Command::Other => return Ok(()),
        };
        // A client that left may still be waited for.
        let Some(above) = self.above.get_mut(&above) else {
            self.below.modification(call, range, fua, line)?;
            return Ok(());
        };
        let mut reasons = above.modifications.values();
        if !reasons.any(|it| it.range.contains(range)) {
            return Err(LineError::Ambiguous);
        }
        let reasons = above.modifications.values();
        let sole = reasons.filter(|it| it.range.overlaps(range)).count() == 1;
        let write = self.below.modification(call, range, fua, line)?;
        above.open.push(Part {
            call,
            write,
            range,
            called: line,
            answered: None,
            failed: false,
            sole,
        });
        if above.open.len() > MOST_IN_FLIGHT {
            return Err(LineError::TooMuch("too many commands are in flight"));
        }
        Ok(())
    }

    fn return_below(
        &mut self,
        call: Call,
        above: u64,
        succeeded: bool,
        line: u64,
    ) -> Result<(), LineError> {
        self.below.answered(call, succeeded, line)?;
        let open = self.above.get_mut(&above).map(|it| &mut it.open);
        // One id is used again when its command was answered: the latest is meant.
        let part = open.and_then(|it| it.iter_mut().rev().find(|it| it.call == call));
        if let Some(part) = part {
            part.answered = succeeded.then_some(line);
            part.failed = !succeeded;
        }
        Ok(())
    }

    fn return_above(
        &mut self,
        call: Call,
        told: &Told,
        succeeded: bool,
    ) -> Result<Option<Broken>, LineError> {
        let line = told.line;
        let above = self.above.get_mut(&call.0).ok_or(LineError::Ambiguous)?;
        if let Some(called) = above.flushes.remove(&call.1) {
            let flush = Lines {
                connection: call.0,
                called,
                answered: line,
            };
            return Ok(if succeeded { self.flushed(flush) } else { None });
        }
        let Some(asked) = above.modifications.remove(&call.1) else {
            return Ok(None);
        };
        let lines = Lines {
            connection: call.0,
            called: asked.line,
            answered: line,
        };
        let ended = above.take_ended(asked.range);
        if !succeeded {
            return Ok(None);
        }
        self.promises += u64::from(asked.fua);
        for part in ended {
            if part.failed {
                continue;
            }
            if asked.fua && part.sole {
                if let Some(broken) = self.unflushed(&part, lines, lines, false) {
                    return Ok(Some(broken));
                }
            } else {
                self.settle(part, lines)?;
            }
        }
        Ok(None)
    }

    fn settle(&mut self, part: Part, above: Lines) -> Result<(), LineError> {
        let scope = self.scope(above.connection);
        let of_scope = self.settled.entry(scope).or_default();
        of_scope.insert((above.answered, part.write), Settled { part, above });
        self.count += 1;
        if self.count > MOST {
            let below = &self.below;
            for of_scope in self.settled.values_mut() {
                of_scope.retain(|_, it| below.state(it.part.write) != WriteState::Durable);
            }
            self.count = self.settled.values().map(BTreeMap::len).sum();
            if self.count > MOST / 2 {
                return Err(LineError::TooMuch("too many writes wait for a flush"));
            }
        }
        Ok(())
    }

    /// Whose flush has to cover what was done on a connection.
    const fn scope(&self, connection: u64) -> u64 {
        match self.promised {
            Promised::MultiConn => 0,
            Promised::SingleConnection => connection,
        }
    }

    /// A flush has succeeded above: what was answered before it came has to be durable.
    fn flushed(&mut self, flush: Lines) -> Option<Broken> {
        self.promises += 1;
        let mut of_scope = self.settled.remove(&self.scope(flush.connection))?;
        while let Some(first) = of_scope.first_entry() {
            if first.key().0 >= flush.called {
                break;
            }
            let Settled { part, above } = first.remove();
            self.count -= 1;
            if let Some(broken) = self.unflushed(&part, above, flush, true) {
                return Some(broken);
            }
        }
        self.settled.insert(self.scope(flush.connection), of_scope);
        None
    }

    fn unflushed(
        &self,
        part: &Part,
        above: Lines,
        promise: Lines,
        is_flush: bool,
    ) -> Option<Broken> {
        let why = match self.below.state(part.write) {
            WriteState::Acknowledged | WriteState::InFlight => Unflushed::NotYet,
            WriteState::Suspect(Doubt::ConnectionEnded) => Unflushed::Closed,
            WriteState::Suspect(Doubt::FlushFailed) => Unflushed::Failed,
            _ => return None,
        };
        Some(Broken {
            promise,
            is_flush,
            above,
            below: Lines {
                connection: part.call.0,
                called: part.called,
                answered: part.answered.unwrap_or(above.answered),
            },
            range: part.range,
            why,
        })
    }
}

impl Above {
    /// What was done below for a command in this range that was answered, unless there is another
    /// command in flight that may have been the reason for it.
    fn take_ended(&mut self, range: Range) -> Vec<Part> {
        let in_flight = &self.modifications;
        let ended = |part: &mut Part| {
            let reason = |it: &Asked| it.line < part.called && it.range.overlaps(part.range);
            (part.answered.is_some() || part.failed)
                && part.range.overlaps(range)
                && !in_flight.values().any(reason)
        };
        self.open.extract_if(.., ended).collect()
    }
}
