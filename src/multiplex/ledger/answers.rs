//! What can be asked of a ledger. Nothing here changes it.

use alloc::vec::Vec;
use core::ops::Range;

use super::{
    AfterLoss, Conn, Connection, Debt, Doubt, FlushId, FlushLedger, Phase, Scope, Stamp, Summary,
    Tally, Tracked, Undurable, WriteId, WriteState,
};

impl FlushLedger {
    /// What a flush covers.
    #[must_use]
    pub const fn scope(&self) -> Scope {
        self.scope
    }

    /// How many connections there are.
    #[must_use]
    pub const fn connections(&self) -> u32 {
        self.open
    }

    /// What is known of a write.
    #[must_use]
    pub fn state(&self, write: WriteId) -> WriteState {
        let Some(tracked) = self.writes.get(write.at) else {
            return WriteState::Forgotten;
        };
        if tracked.sent == write.sent && tracked.phase != Phase::Free {
            return self.state_of(tracked);
        }
        // Whatever was in this place before has become durable, but for what was forgotten.
        if tracked.forgotten < write.sent && write.sent <= tracked.sent {
            return WriteState::Durable;
        }
        WriteState::Forgotten
    }

    fn state_of(&self, tracked: &Tracked) -> WriteState {
        let connection = self.connections.get(tracked.connection);
        let gone = !connection.is_some_and(Connection::is_open);
        match tracked.phase {
            Phase::InFlight if gone => WriteState::Unknown,
            Phase::InFlight => WriteState::InFlight,
            Phase::Acknowledged if gone && self.doubts_the_gone() => {
                WriteState::Suspect(Doubt::ConnectionEnded)
            }
            Phase::Acknowledged => WriteState::Acknowledged,
            Phase::Failed => WriteState::Failed,
            Phase::Suspect(doubt) => WriteState::Suspect(doubt),
            Phase::Free => WriteState::Forgotten,
        }
    }

    /// Whether a write is on permanent storage, as far as the server has said so.
    #[must_use]
    pub fn is_durable(&self, write: WriteId) -> bool {
        self.state(write) == WriteState::Durable
    }

    /// How many writes there are of each state.
    #[must_use]
    pub const fn summary(&self) -> Summary {
        self.summary
    }

    /// All writes that are not durable, in no order.
    pub fn undurable(&self) -> impl Iterator<Item = Undurable> {
        let tracked = self.writes.all();
        let tracked = tracked.filter(|(_, it)| it.phase != Phase::Free);
        tracked.map(|(at, it)| Undurable {
            write: WriteId { at, sent: it.sent },
            conn: self.conn(it.connection),
            offset: it.offset,
            length: it.length,
            state: self.state_of(it),
        })
    }

    /// The bytes that are not durable: ranges in order that neither overlap nor touch. What was
    /// written through this ledger anywhere else is durable, as far as the server has said so.
    ///
    /// A write that was [forgotten](Self::forget) is not among them.
    #[must_use]
    pub fn undurable_ranges(&self) -> Vec<Range<u64>> {
        let ranges = self.undurable().filter(|it| it.length > 0);
        // The sum does not overflow: that was checked when it was sent.
        let ranges = ranges.map(|it| it.offset..it.offset.saturating_add(it.length));
        let mut ranges: Vec<_> = ranges.collect();
        ranges.sort_unstable_by_key(|it| it.start);
        ranges.dedup_by(|next, last| {
            let joins = next.start <= last.end;
            if joins {
                last.end = last.end.max(next.end);
            }
            joins
        });
        ranges
    }

    /// The connections to flush now, so that all that was acknowledged until now is covered, apart
    /// from what flushes in flight will cover: none, if nothing is owed; with
    /// [`Scope::AllConnections`] one, in whose place any other will do; else each that has
    /// something to be covered.
    ///
    /// Takes time for each connection.
    pub fn to_flush(&self) -> impl Iterator<Item = Conn> {
        let (one, each) = match self.scope {
            Scope::AllConnections => (self.any_to_flush(), false),
            Scope::OwnConnection => (None, true),
        };
        let each = self
            .connections
            .all()
            .filter(move |(_, it)| each && it.is_open() && self.is_owed(it, self.last_flush(it)));
        let each = each.map(|(at, it)| Conn {
            at,
            since: it.since,
        });
        one.into_iter().chain(each)
    }

    fn any_to_flush(&self) -> Option<Conn> {
        let all = || self.connections.all();
        let open = || all().filter(|(_, it)| it.is_open());
        let last_flush = open().map(|(_, it)| self.last_flush(it)).max()?;
        if !all().any(|(_, it)| self.is_owed(it, last_flush)) {
            return None;
        }
        // Whoever has written most recently is alive, and has least to fetch from others.
        let (at, it) = open().max_by_key(|(_, it)| it.last_acknowledged)?;
        Some(Conn {
            at,
            since: it.since,
        })
    }

    /// When the last of the flushes in flight on a connection was sent.
    fn last_flush(&self, connection: &Connection) -> Stamp {
        let last = self.flushes.get(connection.flushes.last());
        last.map_or(0, |flush| flush.sent)
    }

    /// Whether a connection has acknowledged something that can be covered, and that a flush which
    /// was sent at this moment does not cover.
    fn is_owed(&self, connection: &Connection, last_flush: Stamp) -> bool {
        connection.since != 0
            && (connection.is_open() || !self.doubts_the_gone())
            && !connection.acknowledged.is_zero()
            && connection.last_acknowledged > last_flush
    }

    /// Whether a flush sent now on this connection would cover the write if it succeeded: whether
    /// the write is acknowledged, and on this connection or the scope is all of them.
    ///
    /// proto.md "Ordering of messages and writes": a client "MUST NOT issue an NBD_CMD_FLUSH
    /// request until it has received the reply for all write commands which it expects to be
    /// covered by the flush".
    #[must_use]
    pub fn would_cover(&self, conn: Conn, write: WriteId) -> bool {
        self.connection(conn).is_some_and(Connection::is_open)
            && self.state(write) == WriteState::Acknowledged
            && self.is_in_scope(conn.at, write)
    }

    /// Whether this flush, which is in flight, covers the write if it succeeds.
    #[must_use]
    pub fn covers(&self, flush: FlushId, write: WriteId) -> bool {
        let Some(sent) = self.flushes.get(flush.at) else {
            return false;
        };
        sent.sent == flush.sent
            && self.state(write) == WriteState::Acknowledged
            && self.is_in_scope(sent.connection, write)
            && self
                .writes
                .get(write.at)
                .is_some_and(|it| it.answered < flush.sent)
    }

    fn is_in_scope(&self, connection: u32, write: WriteId) -> bool {
        let on = self.writes.get(write.at).map(|it| it.connection);
        self.scope == Scope::AllConnections || on == Some(connection)
    }

    /// How many writes on this connection a flush sent now would *not* cover, because they are not
    /// answered; and how many bytes. Who wants a flush to cover everything waits until there are
    /// none, on every connection in its scope.
    #[must_use]
    pub fn in_flight(&self, conn: Conn) -> Tally {
        let connection = self.connection(conn);
        connection.map_or(Tally::ZERO, |it| it.in_flight)
    }

    /// Whether a connection may disconnect without putting anything in doubt.
    ///
    /// With [`Scope::AllConnections`] and [`AfterLoss::Covered`] it may leave its acknowledged
    /// writes to the others, but the last one may not. A connection that has ended owes nothing.
    ///
    /// # Errors
    ///
    /// What to wait for and what to flush first.
    pub fn may_leave(&self, conn: Conn) -> Result<(), Debt> {
        let Some(connection) = self.connection(conn).filter(|it| it.is_open()) else {
            return Ok(());
        };
        let left_to_others =
            self.scope == Scope::AllConnections && self.after_loss == AfterLoss::Covered;
        let debt = Debt {
            in_flight: connection.in_flight,
            flushes: connection.flushes_in_flight,
            acknowledged: match (left_to_others, self.open) {
                (false, _) => connection.acknowledged,
                (true, 1) => self.summary.acknowledged,
                (true, _) => Tally::ZERO,
            },
        };
        if debt == Debt::default() {
            Ok(())
        } else {
            Err(debt)
        }
    }

    fn connection(&self, conn: Conn) -> Option<&Connection> {
        let connection = self.connections.get(conn.at);
        connection.filter(|it| it.since == conn.since)
    }

    fn conn(&self, at: u32) -> Conn {
        let since = self.connections.get(at).map_or(0, |it| it.since);
        Conn { at, since }
    }
}
