//! What is durable, from what was sent and answered.

mod answers;
mod list;
mod records;
mod words;

pub use words::{
    AfterFailure, AfterLoss, Conn, Debt, Doubt, Ended, FlushId, Misuse, Scope, Summary, Tally,
    Undurable, WriteId, WriteState,
};

use list::{Links, List, Places};
use records::{Connection, InFlight, Phase, Stamp, Tracked};

/// Which of the writes over several connections are on permanent storage, as far as the server has
/// said so.
///
/// # The events
///
/// Each as it happens, and before anything is sent or told because of it:
///
/// - [`connected`](Self::connected), [`connection_ended`](Self::connection_ended);
/// - [`write_sent`](Self::write_sent) or [`fua_sent`](Self::fua_sent), then
///   [`write_replied`](Self::write_replied) or [`write_failed`](Self::write_failed); "write" is
///   every command that modifies: `NBD_CMD_WRITE`, `NBD_CMD_WRITE_ZEROES`, `NBD_CMD_TRIM`;
/// - [`flush_sent`](Self::flush_sent), then [`flush_replied`](Self::flush_replied) or
///   [`flush_failed`](Self::flush_failed).
///
/// *Sent* is when the first byte may have left, *replied* when the reply was looked at. Where events
/// of several threads meet, it has to be so that a flush is recorded *before* it leaves, and a
/// reply after it came: the other way round, the ledger would believe what no server has said.
///
/// An event that cannot be is a [`Misuse`], and changes nothing.
///
/// # The answers
///
/// [`state`](Self::state) of one write, [`undurable`](Self::undurable) of all,
/// [`undurable_ranges`](Self::undurable_ranges), [`summary`](Self::summary);
/// [`to_flush`](Self::to_flush), [`would_cover`](Self::would_cover),
/// [`may_leave`](Self::may_leave).
///
/// # Cost
///
/// An event is constant time, but for a flush reply, which looks once at each write that it
/// settles. Memory is that of the writes that are not durable, of the flushes in flight and of the
/// connections, at their most. Durable writes are not remembered; their ids still know that they
/// are.
#[derive(Clone, Debug)]
pub struct FlushLedger {
    scope: Scope,
    after_loss: AfterLoss,
    after_failure: AfterFailure,
    now: Stamp,
    open: u32,
    connections: Places<Connection>,
    writes: Places<Tracked>,
    flushes: Places<InFlight>,
    /// What was acknowledged, in the order of the replies, if a flush covers all connections.
    acknowledged: List,
    /// When a flush was last heard to fail, if a flush covers all connections.
    failed: Stamp,
    summary: Summary,
}

impl FlushLedger {
    /// A ledger without connections, for servers whose flushes cover as much as `scope` says, with
    /// the cautious choice in all else.
    #[must_use]
    pub const fn new(scope: Scope) -> Self {
        Self {
            scope,
            after_loss: AfterLoss::Suspect,
            after_failure: AfterFailure::Sticky,
            now: 0,
            open: 0,
            connections: Places::new(),
            writes: Places::new(),
            flushes: Places::new(),
            acknowledged: List::EMPTY,
            failed: 0,
            summary: Summary::ZERO,
        }
    }

    /// Sets what becomes of the writes of a connection that ends before they are covered.
    #[must_use]
    pub const fn with_after_loss(mut self, after_loss: AfterLoss) -> Self {
        self.after_loss = after_loss;
        self
    }

    /// Sets what becomes of the writes that a failed flush should have covered.
    #[must_use]
    pub const fn with_after_failure(mut self, after_failure: AfterFailure) -> Self {
        self.after_failure = after_failure;
        self
    }

    /// A connection enters transmission.
    ///
    /// # Errors
    ///
    /// [`Misuse::Full`] if there are 2^32 - 1 already.
    pub fn connected(&mut self) -> Result<Conn, Misuse> {
        let at = self.connections.take(|| Connection::FREE);
        let at = at.ok_or(Misuse::Full)?;
        let since = self.tick();
        if let Some(connection) = self.connections.get_mut(at) {
            *connection = Connection {
                since,
                ..Connection::FREE
            };
        }
        self.open += 1;
        Ok(Conn { at, since })
    }

    /// A modification of `length` bytes at `offset`, without FUA, is about to be sent.
    ///
    /// # Errors
    ///
    /// [`Misuse::NotConnected`], [`Misuse::Range`] if it reaches beyond 2^64, [`Misuse::Full`] if
    /// 2^32 - 1 are not durable.
    pub fn write_sent(&mut self, conn: Conn, offset: u64, length: u64) -> Result<WriteId, Misuse> {
        self.sent(conn, offset, length, false)
    }

    /// A modification with FUA is about to be sent, on an export with `NBD_FLAG_SEND_FUA`: its
    /// successful reply says that it is durable (proto.md "Ordering of messages and writes").
    ///
    /// # Errors
    ///
    /// As [`write_sent`](Self::write_sent).
    pub fn fua_sent(&mut self, conn: Conn, offset: u64, length: u64) -> Result<WriteId, Misuse> {
        self.sent(conn, offset, length, true)
    }

    fn sent(&mut self, conn: Conn, offset: u64, length: u64, fua: bool) -> Result<WriteId, Misuse> {
        let connection = open_mut(&mut self.connections, conn)?;
        offset.checked_add(length).ok_or(Misuse::Range)?;
        let at = self.writes.take(|| Tracked::FREE).ok_or(Misuse::Full)?;
        self.now += 1;
        let sent = self.now;
        if let Some(write) = self.writes.get_mut(at) {
            *write = Tracked {
                sent,
                answered: 0,
                forgotten: write.forgotten,
                offset,
                length,
                connection: conn.at,
                links: Links::NONE,
                phase: Phase::InFlight,
                fua,
            };
            let tally = write.tally();
            connection.referred += 1;
            connection.in_flight.add(tally);
            self.summary.in_flight.add(tally);
        }
        Ok(WriteId { at, sent })
    }

    /// The reply to a write has come, and says that it succeeded. Returns what it is now: durable
    /// if it has FUA, else acknowledged; but suspect if a flush in whose scope it is has failed
    /// since it was sent ([`AfterFailure::Sticky`]).
    ///
    /// # Errors
    ///
    /// [`Misuse::NotInFlight`] if it was answered before, or its connection has ended.
    pub fn write_replied(&mut self, write: WriteId) -> Result<WriteState, Misuse> {
        let now = self.now + 1;
        let (connection, tracked) = awaited(&mut self.connections, &mut self.writes, write)?;
        let (queue, failed) = match self.scope {
            Scope::AllConnections => (&mut self.acknowledged, self.failed),
            Scope::OwnConnection => (&mut connection.queue, connection.failed),
        };
        let tally = tracked.tally();
        self.now = now;
        tracked.answered = now;
        connection.in_flight.remove(tally);
        self.summary.in_flight.remove(tally);
        if tracked.sent < failed {
            tracked.phase = Phase::Suspect(Doubt::FlushFailed);
            self.summary.suspect.add(tally);
            return Ok(WriteState::Suspect(Doubt::FlushFailed));
        }
        if tracked.fua {
            tracked.phase = Phase::Free;
            connection.referred -= 1;
            self.summary.durable.add(tally);
            self.writes.give_back(write.at);
            return Ok(WriteState::Durable);
        }
        tracked.phase = Phase::Acknowledged;
        queue.push(self.writes.as_mut_slice(), write.at);
        connection.acknowledged.add(tally);
        connection.last_acknowledged = now;
        self.summary.acknowledged.add(tally);
        Ok(WriteState::Acknowledged)
    }

    /// The reply to a write has come, and is an error: what is there now may be what was there
    /// before, what was to be written, or some of both, and may yet change from one to the other.
    ///
    /// # Errors
    ///
    /// As [`write_replied`](Self::write_replied).
    pub fn write_failed(&mut self, write: WriteId) -> Result<(), Misuse> {
        let now = self.now + 1;
        let (connection, tracked) = awaited(&mut self.connections, &mut self.writes, write)?;
        let tally = tracked.tally();
        tracked.answered = now;
        tracked.phase = Phase::Failed;
        connection.in_flight.remove(tally);
        self.summary.in_flight.remove(tally);
        self.summary.failed.add(tally);
        self.now = now;
        Ok(())
    }

    /// A flush is about to be sent. It may be sent at any time; what it covers is what was
    /// answered before this moment.
    ///
    /// # Errors
    ///
    /// [`Misuse::NotConnected`]; [`Misuse::Full`] if 2^32 - 1 are in flight.
    pub fn flush_sent(&mut self, conn: Conn) -> Result<FlushId, Misuse> {
        let connection = open_mut(&mut self.connections, conn)?;
        let at = self.flushes.take(|| InFlight::FREE).ok_or(Misuse::Full)?;
        self.now += 1;
        let sent = self.now;
        if let Some(flush) = self.flushes.get_mut(at) {
            flush.sent = sent;
            flush.connection = conn.at;
        }
        connection.flushes.push(self.flushes.as_mut_slice(), at);
        connection.flushes_in_flight += 1;
        Ok(FlushId { at, sent })
    }

    /// The reply to a flush has come, and says that it succeeded. Returns what is durable that was
    /// not before.
    ///
    /// # Errors
    ///
    /// [`Misuse::NotInFlight`] if it was answered before, or its connection has ended.
    pub fn flush_replied(&mut self, flush: FlushId) -> Result<Tally, Misuse> {
        let at = self.flush_ended(flush)?;
        let before = self.summary.durable;
        while let Some(write) = self.next_covered(at, flush.sent) {
            self.settle(write, None);
        }
        Ok(self.summary.durable.since(before))
    }

    /// The reply to a flush has come, and is an error. Returns what has become suspect: what the
    /// flush should have covered, and whatever else in its scope was sent before this moment and
    /// is not durable, for the server may have dropped that together with the rest. Of it, what is
    /// still in flight becomes suspect when it is answered.
    ///
    /// # Errors
    ///
    /// As [`flush_replied`](Self::flush_replied).
    pub fn flush_failed(&mut self, flush: FlushId) -> Result<Tally, Misuse> {
        let at = self.flush_ended(flush)?;
        if self.after_failure == AfterFailure::Retry {
            return Ok(Tally::ZERO);
        }
        let now = self.tick();
        match self.scope {
            Scope::AllConnections => self.failed = now,
            Scope::OwnConnection => {
                if let Some(connection) = self.connections.get_mut(at) {
                    connection.failed = now;
                }
            }
        }
        let before = self.summary.suspect;
        while let Some(write) = self.next_covered(at, now) {
            self.settle(write, Some(Doubt::FlushFailed));
        }
        Ok(self.summary.suspect.since(before))
    }

    /// Takes the flush out of those in flight. Returns the place of its connection.
    fn flush_ended(&mut self, flush: FlushId) -> Result<u32, Misuse> {
        let found = self.flushes.get_mut(flush.at);
        let found = found.filter(|it| it.sent == flush.sent);
        let found = found.ok_or(Misuse::NotInFlight)?;
        found.sent = 0;
        let at = found.connection;
        if let Some(connection) = self.connections.get_mut(at) {
            let flushes = self.flushes.as_mut_slice();
            connection.flushes.remove(flushes, flush.at);
            connection.flushes_in_flight -= 1;
        }
        self.flushes.give_back(flush.at);
        Ok(at)
    }

    /// The earliest write that waits for a flush and was answered before one on this connection
    /// was sent: "all write commands that the server completes (i.e. replies to) prior to
    /// processing a NBD_CMD_FLUSH" (proto.md "Ordering of messages and writes"), of which the
    /// client can be sure only where it had the reply before it sent the flush.
    fn next_covered(&self, connection: u32, sent: Stamp) -> Option<u32> {
        let at = match self.scope {
            Scope::AllConnections => self.acknowledged.first(),
            Scope::OwnConnection => self.connections.get(connection)?.queue.first(),
        };
        (self.writes.get(at)?.answered < sent).then_some(at)
    }

    /// What was acknowledged becomes suspect, or else durable; but what is in doubt already remains
    /// so.
    fn settle(&mut self, at: u32, doubt: Option<Doubt>) {
        let Some((tally, doubted)) = self.detach(at) else {
            return;
        };
        match doubt {
            _ if doubted => self.set(at, Phase::Suspect(Doubt::ConnectionEnded)),
            Some(doubt) => {
                self.summary.suspect.add(tally);
                self.set(at, Phase::Suspect(doubt));
            }
            None => {
                self.summary.durable.add(tally);
                self.free(at);
            }
        }
    }

    /// Takes an acknowledged write out of its queue. Returns whether it is in doubt already, for
    /// its connection has ended.
    fn detach(&mut self, at: u32) -> Option<(Tally, bool)> {
        let doubts = self.doubts_the_gone();
        let write = self.writes.get(at)?;
        let tally = write.tally();
        let connection = self.connections.get_mut(write.connection)?;
        let queue = match self.scope {
            Scope::AllConnections => &mut self.acknowledged,
            Scope::OwnConnection => &mut connection.queue,
        };
        queue.remove(self.writes.as_mut_slice(), at);
        connection.acknowledged.remove(tally);
        let doubted = !connection.is_open() && doubts;
        if !doubted {
            self.summary.acknowledged.remove(tally);
        }
        Some((tally, doubted))
    }

    /// Whether what a connection leaves behind is in doubt. Where each is on its own, no flush on
    /// another can ever cover it.
    fn doubts_the_gone(&self) -> bool {
        self.scope == Scope::OwnConnection || self.after_loss == AfterLoss::Suspect
    }

    fn set(&mut self, at: u32, phase: Phase) {
        if let Some(write) = self.writes.get_mut(at) {
            write.phase = phase;
        }
    }

    /// Makes the place of a write free, and that of its connection if it was the last to refer to
    /// it.
    fn free(&mut self, at: u32) {
        let Some(write) = self.writes.get_mut(at) else {
            return;
        };
        write.phase = Phase::Free;
        let of = write.connection;
        self.writes.give_back(at);
        if let Some(connection) = self.connections.get_mut(of) {
            connection.referred -= 1;
        }
        self.free_connection(of);
    }

    fn free_connection(&mut self, at: u32) {
        let Some(connection) = self.connections.get_mut(at) else {
            return;
        };
        if connection.ended != 0 && connection.referred == 0 {
            connection.since = 0;
            self.connections.give_back(at);
        }
    }

    /// A connection has ended: it was lost, or disconnected politely. proto.md demands of a server
    /// to write out what a connection leaves behind in neither case.
    ///
    /// What was not answered is [unknown](WriteState::Unknown) from now on, flushes in flight are
    /// as if they had never been sent, and what was acknowledged but not covered is
    /// [suspect](WriteState::Suspect), unless a later flush covers it
    /// ([`AfterLoss::Covered`]).
    ///
    /// # Errors
    ///
    /// [`Misuse::NotConnected`].
    pub fn connection_ended(&mut self, conn: Conn) -> Result<Ended, Misuse> {
        let doubts = self.doubts_the_gone();
        let connection = open_mut(&mut self.connections, conn)?;
        self.now += 1;
        connection.ended = self.now;
        self.open -= 1;
        let unknown = core::mem::replace(&mut connection.in_flight, Tally::ZERO);
        let mut suspect = Tally::ZERO;
        if doubts {
            suspect = connection.acknowledged;
        }
        self.summary.in_flight.remove(unknown);
        self.summary.unknown.add(unknown);
        self.summary.acknowledged.remove(suspect);
        self.summary.suspect.add(suspect);
        connection.flushes_in_flight = 0;
        loop {
            let at = connection.flushes.first();
            let Some(flush) = self.flushes.get_mut(at) else {
                break;
            };
            flush.sent = 0;
            let flushes = self.flushes.as_mut_slice();
            connection.flushes.remove(flushes, at);
            self.flushes.give_back(at);
        }
        self.free_connection(conn.at);
        Ok(Ended { unknown, suspect })
    }

    /// Gives up a write that no flush will ever make durable, because its range has been written
    /// again, durably: what a caller does who repairs what is suspect, failed or unknown.
    ///
    /// The ledger sees to it that the second write is durable and that it was sent after the end
    /// of the first was known; that it covers the range is the caller's business.
    ///
    /// Of what a connection left behind this is as good as it gets, and not quite safe: a server
    /// that has not noticed the end of the connection may execute it, or write out its cache, later,
    /// over what was written again.
    ///
    /// # Errors
    ///
    /// [`Misuse::StillCounts`] if `write` is in flight, acknowledged, or durable;
    /// [`Misuse::NotRewritten`] if the other is not durable or was sent too early.
    pub fn rewritten(&mut self, write: WriteId, by: WriteId) -> Result<(), Misuse> {
        let ended = self.ended(write)?;
        if by.sent <= ended || self.state(by) != WriteState::Durable {
            return Err(Misuse::NotRewritten);
        }
        self.forget(write)
    }

    /// When it was known of a write that can be given up how it ended.
    fn ended(&self, write: WriteId) -> Result<Stamp, Misuse> {
        let state = self.state(write);
        let tracked = self.writes.get(write.at).ok_or(Misuse::StillCounts)?;
        match state {
            WriteState::Failed | WriteState::Suspect(Doubt::FlushFailed) => Ok(tracked.answered),
            // Until then it was in a cache that could have been written out over what was newer.
            WriteState::Unknown | WriteState::Suspect(Doubt::ConnectionEnded) => {
                let connection = self.connections.get(tracked.connection);
                Ok(connection.map_or(Stamp::MAX, |it| it.ended))
            }
            _ => Err(Misuse::StillCounts),
        }
    }

    /// Gives up a write that no flush will ever make durable, without more ado: the caller has
    /// told whoever cares, or nobody does. Its id is [forgotten](WriteState::Forgotten).
    ///
    /// # Errors
    ///
    /// [`Misuse::StillCounts`] if it is in flight, acknowledged, or durable.
    pub fn forget(&mut self, write: WriteId) -> Result<(), Misuse> {
        let state = self.state(write);
        let total = match state {
            WriteState::Failed => &mut self.summary.failed,
            WriteState::Suspect(_) => &mut self.summary.suspect,
            WriteState::Unknown => &mut self.summary.unknown,
            _ => return Err(Misuse::StillCounts),
        };
        let Some(tracked) = self.writes.get_mut(write.at) else {
            return Err(Misuse::StillCounts);
        };
        total.remove(tracked.tally());
        tracked.forgotten = tracked.sent;
        if tracked.phase == Phase::Acknowledged {
            self.detach(write.at);
        }
        self.free(write.at);
        Ok(())
    }

    const fn tick(&mut self) -> Stamp {
        // At a billion events a second it would take centuries to wrap.
        self.now += 1;
        self.now
    }
}

fn open_mut(connections: &mut Places<Connection>, conn: Conn) -> Result<&mut Connection, Misuse> {
    let connection = connections.get_mut(conn.at);
    let connection = connection.filter(|it| it.since == conn.since && it.is_open());
    connection.ok_or(Misuse::NotConnected)
}

/// A write that waits for its reply, and its connection.
fn awaited<'a, 'b>(
    connections: &'a mut Places<Connection>,
    writes: &'b mut Places<Tracked>,
    write: WriteId,
) -> Result<(&'a mut Connection, &'b mut Tracked), Misuse> {
    let tracked = writes.get_mut(write.at);
    let tracked = tracked.filter(|it| it.sent == write.sent && it.phase == Phase::InFlight);
    let tracked = tracked.ok_or(Misuse::NotInFlight)?;
    let connection = connections.get_mut(tracked.connection);
    let connection = connection.filter(|it| it.is_open());
    Ok((connection.ok_or(Misuse::NotInFlight)?, tracked))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_that_of_what_is_not_durable_however_long_it_goes_on() {
        for scope in [Scope::AllConnections, Scope::OwnConnection] {
            let mut ledger = FlushLedger::new(scope);
            for round in 0..1000 {
                let conns = [(); 3].map(|()| ledger.connected().unwrap());
                let writes = [0, 1, 2, 0, 1].map(|at| {
                    let conn = conns[at];
                    ledger.write_sent(conn, round, 1).unwrap()
                });
                let flushes = conns.map(|conn| ledger.flush_sent(conn).unwrap());
                ledger.write_failed(writes[0]).unwrap();
                for &write in &writes[1..] {
                    ledger.write_replied(write).unwrap();
                }
                ledger.flush_replied(flushes[0]).unwrap();
                for conn in conns {
                    let flush = ledger.flush_sent(conn).unwrap();
                    ledger.flush_replied(flush).unwrap();
                }
                ledger.forget(writes[0]).unwrap();
                for conn in conns {
                    ledger.connection_ended(conn).unwrap();
                }
                assert!(ledger.summary().all_durable());
            }
            assert_eq!(ledger.connections.all().count(), 3);
            assert_eq!(ledger.writes.all().count(), 5);
            assert_eq!(ledger.flushes.all().count(), 3);
        }
    }
}
