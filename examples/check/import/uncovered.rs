//! What was answered, and what of it was flushed, by the lines of a log.

use std::collections::{BTreeMap, HashMap};

use nbd_proto::multiplex::{
    AfterLoss, Conn, Doubt, FlushId, FlushLedger, Misuse, Scope, Tally, WriteId, WriteState,
};

use super::LineError;
use super::nbdkit::Range;

/// A command of a log: its connection and its id.
pub(super) type Call = (u64, u64);

/// Modifications that may wait for a flush.
const MOST: usize = 1 << 20;

/// Of those that were never flushed, so many are told of.
const EXAMPLES: usize = 8;

/// Follows which modifications of one layer are covered.
#[derive(Debug)]
pub(super) struct Coverage {
    scope: Scope,
    after_loss: AfterLoss,
    ledger: FlushLedger,
    connections: HashMap<u64, Conn>,
    writes: BTreeMap<Call, WriteId>,
    flushes: BTreeMap<Call, FlushId>,
    /// Where those that are not durable stand, as far as we know.
    places: HashMap<WriteId, Place>,
    totals: Totals,
}

/// Where a modification stands in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) connection: u64,
    pub(crate) range: Range,
    pub(crate) called: u64,
    pub(crate) answered: Option<u64>,
}

/// What became of all modifications.
#[derive(Clone, Debug, Default)]
pub(crate) struct Totals {
    pub(crate) covered: Tally,
    /// Answered with success, and never covered.
    pub(crate) uncovered: Tally,
    /// Answered with an error.
    pub(crate) failed: Tally,
    /// Not answered.
    pub(crate) unanswered: Tally,
    /// The first of those that were never covered.
    pub(crate) examples: Vec<Example>,
}

/// A modification that was never covered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Example {
    pub(crate) place: Place,
    pub(crate) why: Why,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    NeverFlushed,
    ConnectionEnded,
    FlushFailed,
}

impl From<Misuse> for LineError {
    fn from(misuse: Misuse) -> Self {
        match misuse {
            Misuse::NotConnected => Self::ImpossibleLog("the connection is not open"),
            Misuse::NotInFlight => Self::ImpossibleLog("it is not in flight"),
            Misuse::Range => Self::ImpossibleLog("it reaches beyond 2^64"),
            _ => Self::TooMuch("too much is in flight"),
        }
    }
}

impl Coverage {
    pub(super) fn new(scope: Scope, after_loss: AfterLoss) -> Self {
        Self {
            scope,
            after_loss,
            ledger: FlushLedger::new(scope).with_after_loss(after_loss),
            connections: HashMap::new(),
            writes: BTreeMap::new(),
            flushes: BTreeMap::new(),
            places: HashMap::new(),
            totals: Totals::default(),
        }
    }

    pub(super) fn connected(&mut self, connection: u64) -> Result<(), LineError> {
        self.connections
            .insert(connection, self.ledger.connected()?);
        Ok(())
    }

    fn conn(&self, connection: u64) -> Result<Conn, LineError> {
        let conn = self.connections.get(&connection).copied();
        Ok(conn.ok_or(Misuse::NotConnected)?)
    }

    pub(super) fn ended(&mut self, connection: u64) -> Result<(), LineError> {
        let conn = self.conn(connection)?;
        self.ledger.connection_ended(conn)?;
        self.connections.remove(&connection);
        remove_all(&mut self.writes, connection);
        remove_all(&mut self.flushes, connection);
        Ok(())
    }

    pub(super) fn modification(
        &mut self,
        call: Call,
        range: Range,
        fua: bool,
        line: u64,
    ) -> Result<WriteId, LineError> {
        let conn = self.conn(call.0)?;
        let write = match fua {
            true => self.ledger.fua_sent(conn, range.start, range.length())?,
            false => self.ledger.write_sent(conn, range.start, range.length())?,
        };
        self.writes.insert(call, write);
        let place = Place {
            connection: call.0,
            range,
            called: line,
            answered: None,
        };
        self.places.insert(write, place);
        if self.places.len() > MOST {
            self.make_room()?;
        }
        Ok(write)
    }

    pub(super) fn flush(&mut self, call: Call) -> Result<(), LineError> {
        let flush = self.ledger.flush_sent(self.conn(call.0)?)?;
        self.flushes.insert(call, flush);
        Ok(())
    }

    /// An answer to anything.
    pub(super) fn answered(
        &mut self,
        call: Call,
        succeeded: bool,
        line: u64,
    ) -> Result<(), LineError> {
        if let Some(flush) = self.flushes.remove(&call) {
            match succeeded {
                true => self.ledger.flush_replied(flush)?,
                false => self.ledger.flush_failed(flush)?,
            };
        }
        if let Some(write) = self.writes.remove(&call) {
            match succeeded {
                true => drop(self.ledger.write_replied(write)?),
                false => self.ledger.write_failed(write)?,
            }
            if let Some(place) = self.places.get_mut(&write) {
                place.answered = Some(line);
            }
        }
        Ok(())
    }

    pub(super) fn state(&self, write: WriteId) -> WriteState {
        self.ledger.state(write)
    }

    /// Forgets where those stand that are covered, and then those that nothing can cover any more.
    fn make_room(&mut self) -> Result<(), LineError> {
        let ledger = &self.ledger;
        self.places.retain(|&it, _| !ledger.is_durable(it));
        if self.places.len() <= MOST / 2 {
            return Ok(());
        }
        self.give_up(|state| !matches!(state, WriteState::InFlight | WriteState::Acknowledged));
        match self.places.len() <= MOST / 2 {
            true => Ok(()),
            false => Err(LineError::TooMuch("too many writes wait for a flush")),
        }
    }

    /// The server has ended, or the log has.
    pub(super) fn end_of_run(&mut self) {
        self.give_up(|_| true);
        let durable = self.ledger.summary().durable;
        add(&mut self.totals.covered, durable);
        self.ledger = FlushLedger::new(self.scope).with_after_loss(self.after_loss);
        self.connections.clear();
        self.writes.clear();
        self.flushes.clear();
        self.places.clear();
    }

    /// Counts what is not durable and in such a state, and follows it no longer.
    fn give_up(&mut self, which: impl Fn(WriteState) -> bool) {
        let undurable: Vec<_> = self.ledger.undurable().collect();
        let mut examples = Vec::new();
        for it in undurable {
            if !which(it.state) {
                continue;
            }
            let place = self.places.remove(&it.write);
            // What is still in flight cannot be forgotten; then the ledger itself is.
            let _ = self.ledger.forget(it.write);
            let one = Tally {
                writes: 1,
                bytes: it.length,
            };
            let why = match it.state {
                WriteState::Failed => {
                    add(&mut self.totals.failed, one);
                    continue;
                }
                WriteState::InFlight | WriteState::Unknown => {
                    add(&mut self.totals.unanswered, one);
                    continue;
                }
                WriteState::Suspect(Doubt::ConnectionEnded) => Why::ConnectionEnded,
                WriteState::Suspect(Doubt::FlushFailed) => Why::FlushFailed,
                _ => Why::NeverFlushed,
            };
            add(&mut self.totals.uncovered, one);
            examples.extend(place.map(|place| Example { place, why }));
        }
        examples.sort_by_key(|it| it.place.called);
        let wanted = EXAMPLES.saturating_sub(self.totals.examples.len());
        self.totals
            .examples
            .extend(examples.into_iter().take(wanted));
    }

    pub(super) fn into_totals(mut self) -> Totals {
        self.end_of_run();
        self.totals
    }
}

/// Takes time for what there is of the connection only.
fn remove_all<T>(of: &mut BTreeMap<Call, T>, connection: u64) {
    while let Some((&call, _)) = of.range((connection, 0)..=(connection, u64::MAX)).next() {
        of.remove(&call);
    }
}

const fn add(to: &mut Tally, more: Tally) {
    to.writes = to.writes.wrapping_add(more.writes);
    to.bytes = to.bytes.wrapping_add(more.bytes);
}
