//! The oracle that remembers everything.

use nbd_proto::multiplex::{
    AfterFailure, Conn, Doubt, FlushId, FlushLedger, Scope, Tally, WriteId, WriteState,
};
use proptest::prelude::*;

use super::{MOST_CONNECTIONS, Setting, config, setting};

/// What happens next. Numbers choose among what there is.
#[derive(Clone, Copy, Debug)]
enum Step {
    Connect,
    Write { conn: usize, fua: bool, cell: u64 },
    Flush { conn: usize },
    WriteAnswered { which: usize, ok: bool },
    FlushAnswered { which: usize, ok: bool },
    End { conn: usize },
    Forget { which: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let any = || any::<usize>();
    let ok = || prop::bool::weighted(0.9);
    let fua = prop::bool::weighted(0.15);
    prop_oneof![
        1 => Just(Step::Connect),
        12 => (any(), fua, 0..8_u64).prop_map(|(conn, fua, cell)| Step::Write { conn, fua, cell }),
        8 => any().prop_map(|conn| Step::Flush { conn }),
        12 => (any(), ok()).prop_map(|(which, ok)| Step::WriteAnswered { which, ok }),
        8 => (any(), ok()).prop_map(|(which, ok)| Step::FlushAnswered { which, ok }),
        1 => any().prop_map(|conn| Step::End { conn }),
        2 => any().prop_map(|which| Step::Forget { which }),
    ]
}

/// When something happened: the number of the step.
type Time = usize;

struct Write {
    id: WriteId,
    conn: usize,
    sent: Time,
    fua: bool,
    cell: u64,
    answered: Option<(Time, bool)>,
    forgotten: bool,
}

struct Flush {
    id: FlushId,
    conn: usize,
    sent: Time,
    answered: Option<(Time, bool)>,
}

struct History {
    setting: Setting,
    now: Time,
    ledger: FlushLedger,
    /// When each of the connections that there ever were ended.
    conns: Vec<(Conn, Option<Time>)>,
    writes: Vec<Write>,
    flushes: Vec<Flush>,
}

fn pick<T>(items: impl Iterator<Item = T>, which: usize) -> Option<T> {
    let mut items: Vec<T> = items.collect();
    let count = items.len();
    (count > 0).then(|| items.swap_remove(which % count))
}

impl History {
    fn new(setting: Setting) -> Self {
        Self {
            setting,
            now: 0,
            ledger: setting.ledger(),
            conns: Vec::new(),
            writes: Vec::new(),
            flushes: Vec::new(),
        }
    }

    fn open(&self) -> impl Iterator<Item = usize> {
        (0..self.conns.len()).filter(|&at| self.conns[at].1.is_none())
    }

    fn is_open(&self, conn: usize) -> bool {
        self.conns[conn].1.is_none()
    }

    fn step(&mut self, step: Step) {
        self.now += 1;
        let now = self.now;
        match step {
            Step::Connect => {
                if self.open().count() < MOST_CONNECTIONS {
                    let conn = self.ledger.connected().unwrap();
                    self.conns.push((conn, None));
                }
            }
            Step::Write { conn, fua, cell } => {
                let Some(conn) = pick(self.open(), conn) else {
                    return;
                };
                let on = self.conns[conn].0;
                let id = match fua {
                    true => self.ledger.fua_sent(on, cell * 10, 10),
                    false => self.ledger.write_sent(on, cell * 10, 10),
                };
                self.writes.push(Write {
                    id: id.unwrap(),
                    conn,
                    sent: now,
                    fua,
                    cell,
                    answered: None,
                    forgotten: false,
                });
            }
            Step::Flush { conn } => {
                if let Some(conn) = pick(self.open(), conn) {
                    self.flushes.push(Flush {
                        id: self.ledger.flush_sent(self.conns[conn].0).unwrap(),
                        conn,
                        sent: now,
                        answered: None,
                    });
                }
            }
            Step::WriteAnswered { which, ok } => {
                let waiting = |it: &usize| {
                    let write = &self.writes[*it];
                    write.answered.is_none() && self.is_open(write.conn)
                };
                let waiting = pick((0..self.writes.len()).filter(waiting), which);
                let Some(at) = waiting else {
                    return;
                };
                self.writes[at].answered = Some((now, ok));
                let id = self.writes[at].id;
                if ok {
                    let state = self.ledger.write_replied(id).unwrap();
                    assert_eq!(state, self.judge(at));
                } else {
                    self.ledger.write_failed(id).unwrap();
                }
            }
            Step::FlushAnswered { which, ok } => self.flush_answered(which, ok),
            Step::End { conn } => {
                if let Some(conn) = pick(self.open(), conn) {
                    let before = self.count();
                    self.conns[conn].1 = Some(now);
                    let ended = self.ledger.connection_ended(self.conns[conn].0).unwrap();
                    let after = self.count();
                    assert_eq!(ended.unknown.writes, after.unknown - before.unknown);
                    assert_eq!(ended.suspect.writes, after.suspect - before.suspect);
                }
            }
            Step::Forget { which } => {
                let hopeless = |it: &usize| {
                    use WriteState::{Failed, Suspect, Unknown};
                    matches!(self.judge(*it), Failed | Suspect(_) | Unknown)
                };
                if let Some(at) = pick((0..self.writes.len()).filter(hopeless), which) {
                    self.ledger.forget(self.writes[at].id).unwrap();
                    self.writes[at].forgotten = true;
                }
            }
        }
    }

    fn flush_answered(&mut self, which: usize, ok: bool) {
        let waiting = |it: &usize| {
            let flush = &self.flushes[*it];
            flush.answered.is_none() && self.is_open(flush.conn)
        };
        let Some(at) = pick((0..self.flushes.len()).filter(waiting), which) else {
            return;
        };
        let before = self.count();
        self.flushes[at].answered = Some((self.now, ok));
        let id = self.flushes[at].id;
        if ok {
            let durable = self.ledger.flush_replied(id).unwrap();
            assert_eq!(durable.writes, self.count().durable - before.durable);
        } else {
            let suspect = self.ledger.flush_failed(id).unwrap();
            assert_eq!(suspect.writes, self.count().suspect - before.suspect);
        }
    }

    /// What is known of a write, from the history alone.
    fn judge(&self, at: usize) -> WriteState {
        let write = &self.writes[at];
        if write.forgotten {
            return WriteState::Forgotten;
        }
        let replied = match write.answered {
            None if self.is_open(write.conn) => return WriteState::InFlight,
            None => return WriteState::Unknown,
            Some((_, false)) => return WriteState::Failed,
            Some((replied, true)) => replied,
        };
        let flushes = || {
            let in_scope = |it: &&Flush| self.setting.in_scope(it.conn, write.conn);
            self.flushes.iter().filter(in_scope)
        };
        let sticky = self.setting.after_failure == AfterFailure::Sticky;
        let failures = flushes().filter_map(|it| it.answered.filter(|(_, ok)| sticky && !ok));
        let failed = failures
            .map(|(at, _)| at)
            .filter(|&at| at > write.sent)
            .min();
        if failed.is_some_and(|failed| failed < replied) {
            return WriteState::Suspect(Doubt::FlushFailed);
        }
        if write.fua {
            return WriteState::Durable;
        }
        let covering = flushes().filter(|it| it.sent > replied);
        let successes = covering.filter_map(|it| it.answered.filter(|(_, ok)| *ok));
        let covered = successes.map(|(at, _)| at).min();
        let ended = self.conns[write.conn].1;
        let ended = ended.filter(|_| self.setting.doubts_the_gone());
        let events = [
            (covered, WriteState::Durable),
            (failed, WriteState::Suspect(Doubt::FlushFailed)),
            (ended, WriteState::Suspect(Doubt::ConnectionEnded)),
        ];
        let first = events.iter().filter_map(|(at, what)| Some(((*at)?, *what)));
        let first = first.min_by_key(|(at, _)| *at);
        first.map_or(WriteState::Acknowledged, |(_, what)| what)
    }

    fn count(&self) -> Count {
        let mut count = Count::default();
        for at in 0..self.writes.len() {
            match self.judge(at) {
                WriteState::InFlight => count.in_flight += 1,
                WriteState::Acknowledged => count.acknowledged += 1,
                WriteState::Durable => count.durable += 1,
                WriteState::Suspect(_) => count.suspect += 1,
                WriteState::Failed => count.failed += 1,
                WriteState::Unknown => count.unknown += 1,
                _ => {}
            }
        }
        count
    }

    // Everything that can be asked, asked

    fn check(&self) {
        self.check_states();
        self.check_totals();
        self.check_flushes();
        self.check_owed();
        self.check_leaving();
    }

    fn check_states(&self) {
        let mut undurable: Vec<_> = self.ledger.undurable().collect();
        undurable.sort_by_key(|it| it.write);
        let mut expected = Vec::new();
        for (at, write) in self.writes.iter().enumerate() {
            let (found, right) = (self.ledger.state(write.id), self.judge(at));
            // Of a write that is older than one that was forgotten it may not be known any more.
            let later = |it: &Write| it.forgotten && it.sent > write.sent;
            let blurred = right == WriteState::Durable
                && found == WriteState::Forgotten
                && self.writes.iter().any(later);
            assert!(found == right || blurred, "{at}: {found:?}, not {right:?}");
            if !matches!(right, WriteState::Durable | WriteState::Forgotten) {
                let conn = self.conns[write.conn].0;
                expected.push((write.id, conn, write.cell * 10, right));
            }
        }
        expected.sort_by_key(|it| it.0);
        let found = undurable.iter();
        let found: Vec<_> = found
            .map(|it| (it.write, it.conn, it.offset, it.state))
            .collect();
        assert_eq!(found, expected);
        let ranges = self.ledger.undurable_ranges();
        assert!(ranges.windows(2).all(|two| two[0].end < two[1].start));
        for cell in 0..8 {
            let here = expected.iter().any(|it| it.2 == cell * 10);
            let there = ranges.iter().any(|it| it.contains(&(cell * 10 + 5)));
            assert_eq!(here, there, "cell {cell} in {ranges:?}");
        }
    }

    fn check_totals(&self) {
        let summary = self.ledger.summary();
        let count = self.count();
        for (total, writes) in [
            (summary.in_flight, count.in_flight),
            (summary.acknowledged, count.acknowledged),
            (summary.durable, count.durable),
            (summary.suspect, count.suspect),
            (summary.failed, count.failed),
            (summary.unknown, count.unknown),
        ] {
            assert_eq!((total.writes, total.bytes), (writes, writes * 10));
        }
        assert_eq!(self.ledger.connections() as usize, self.open().count());
    }

    fn flushes_in_flight(&self) -> impl Iterator<Item = &Flush> {
        let flushes = self.flushes.iter();
        flushes.filter(|it| it.answered.is_none() && self.is_open(it.conn))
    }

    fn is_covered_by(&self, flush: &Flush, write: &Write) -> bool {
        let before = write.answered.is_some_and(|(at, _)| at < flush.sent);
        before && self.setting.in_scope(flush.conn, write.conn)
    }

    fn check_flushes(&self) {
        for (at, write) in self.writes.iter().enumerate() {
            let waits = self.judge(at) == WriteState::Acknowledged;
            for flush in &self.flushes {
                let in_flight = flush.answered.is_none() && self.is_open(flush.conn);
                let covers = waits && in_flight && self.is_covered_by(flush, write);
                assert_eq!(self.ledger.covers(flush.id, write.id), covers);
            }
            for (conn, (id, ended)) in self.conns.iter().enumerate() {
                let would = waits && ended.is_none() && self.setting.in_scope(conn, write.conn);
                assert_eq!(self.ledger.would_cover(*id, write.id), would);
            }
        }
    }

    /// Writes that wait for a flush that has not been sent.
    fn owed(&self) -> impl Iterator<Item = &Write> {
        let writes = self.writes.iter().enumerate();
        let waiting = writes.filter(|(at, _)| self.judge(*at) == WriteState::Acknowledged);
        let waiting = waiting.map(|(_, write)| write);
        waiting.filter(|write| {
            !self
                .flushes_in_flight()
                .any(|it| self.is_covered_by(it, write))
        })
    }

    fn check_owed(&self) {
        let found: Vec<_> = self.ledger.to_flush().collect();
        let is_open = |conn: &Conn| self.open().any(|at| self.conns[at].0 == *conn);
        assert!(found.iter().all(is_open));
        if self.setting.scope == Scope::AllConnections {
            let one = self.owed().next().is_some() && self.open().next().is_some();
            assert_eq!(found.len(), usize::from(one));
            return;
        }
        for (at, (conn, _)) in self.conns.iter().enumerate() {
            let owes = self.owed().any(|it| it.conn == at);
            assert_eq!(found.contains(conn), owes);
        }
    }

    fn check_leaving(&self) {
        for at in 0..self.conns.len() {
            let here = self.is_open(at);
            let of = |state| {
                let writes = self.writes.iter().enumerate();
                let here = writes.filter(|(_, it)| it.conn == at);
                here.filter(|(it, _)| self.judge(*it) == state).count() as u64
            };
            let in_flight = if here { of(WriteState::InFlight) } else { 0 };
            let flushes = self.flushes_in_flight().filter(|it| it.conn == at).count();
            let acknowledged = match (self.setting.doubts_the_gone(), self.open().count()) {
                _ if !here => 0,
                (true, _) => of(WriteState::Acknowledged),
                (false, 1) => self.count().acknowledged,
                (false, _) => 0,
            };
            let conn = self.conns[at].0;
            let debt = self.ledger.may_leave(conn).err().unwrap_or_default();
            let found = (
                debt.in_flight.writes,
                debt.acknowledged.writes,
                debt.flushes,
            );
            assert_eq!(found, (in_flight, acknowledged, flushes as u32));
            let tally: Tally = self.ledger.in_flight(conn);
            assert_eq!(tally.writes, in_flight);
        }
    }
}

#[derive(Default)]
struct Count {
    in_flight: u64,
    acknowledged: u64,
    durable: u64,
    suspect: u64,
    failed: u64,
    unknown: u64,
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn every_answer_is_what_the_whole_history_says(
        setting in setting(),
        connections in 1..=MOST_CONNECTIONS,
        steps in prop::collection::vec(step(), 1..80),
    ) {
        let mut history = History::new(setting);
        for _ in 0..connections {
            history.step(Step::Connect);
        }
        for step in steps {
            history.step(step);
            history.check();
        }
    }
}
