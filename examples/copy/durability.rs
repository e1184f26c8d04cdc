//! What of the copy is on permanent storage: the ledger of all writes and flushes, fed by every
//! worker.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use indicatif::BinaryBytes;
use nbd_proto::multiplex::{Conn, FlushId, FlushLedger, Misuse, Scope, WriteId};

use super::ranges::Ranges;

/// How many ranges are told one by one.
const MOST_TOLD: usize = 4;

/// A [`FlushLedger`] for several threads, and what it knows as ranges.
#[derive(Debug)]
pub(crate) struct Durability(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    /// None where nothing can be made durable: then there is nothing to keep books of.
    ledger: Option<FlushLedger>,
    connections: Vec<Conn>,
    writes: HashMap<(usize, u64), WriteId>,
    flushes: Vec<Option<FlushId>>,
    acknowledged: Ranges,
    /// A mistake of ours; then nothing is claimed any more.
    misuse: Option<Misuse>,
}

impl Durability {
    /// For so many connections; without a scope for a destination that has neither flush nor FUA.
    pub(crate) fn new(scope: Option<Scope>, connections: usize) -> Self {
        let mut inner = Inner {
            ledger: scope.map(FlushLedger::new),
            connections: Vec::new(),
            writes: HashMap::new(),
            flushes: vec![None; connections],
            acknowledged: Ranges::default(),
            misuse: None,
        };
        for _ in 0..connections {
            if let Some(conn) = inner.note(FlushLedger::connected) {
                inner.connections.push(conn);
            }
        }
        Self(Mutex::new(inner))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A modification is about to be sent. A connection names no two alike.
    pub(crate) fn sent(&self, number: usize, name: u64, range: Range<u64>, fua: bool) {
        let mut inner = self.lock();
        let Some(&conn) = inner.connections.get(number) else {
            return;
        };
        let length = range.end - range.start;
        let write = inner.note(|ledger| match fua {
            true => ledger.fua_sent(conn, range.start, length),
            false => ledger.write_sent(conn, range.start, length),
        });
        if let Some(write) = write {
            inner.writes.insert((number, name), write);
        }
    }

    /// A modification succeeded.
    pub(crate) fn replied(&self, number: usize, name: u64, range: Range<u64>) {
        let mut inner = self.lock();
        if let Some(write) = inner.writes.remove(&(number, name)) {
            inner.note(|ledger| ledger.write_replied(write));
            inner.acknowledged.insert(range);
        }
    }

    /// A modification failed; `without_effect` if it is certain that it changed nothing.
    pub(crate) fn failed(&self, number: usize, name: u64, without_effect: bool) {
        let mut inner = self.lock();
        if let Some(write) = inner.writes.remove(&(number, name)) {
            inner.note(|ledger| ledger.write_failed(write));
            if without_effect {
                inner.note(|ledger| ledger.forget(write));
            }
        }
    }

    /// A flush is about to be sent.
    pub(crate) fn flush_sent(&self, number: usize) {
        let mut inner = self.lock();
        let Some(&conn) = inner.connections.get(number) else {
            return;
        };
        let flush = inner.note(|ledger| ledger.flush_sent(conn));
        if let Some(place) = inner.flushes.get_mut(number) {
            *place = flush;
        }
    }

    /// The flush was answered.
    pub(crate) fn flushed(&self, number: usize, is_ok: bool) {
        let mut inner = self.lock();
        let flush = inner.flushes.get_mut(number).and_then(Option::take);
        if let Some(flush) = flush {
            inner.note(|ledger| match is_ok {
                true => ledger.flush_replied(flush),
                false => ledger.flush_failed(flush),
            });
        }
    }

    /// The connection is gone.
    pub(crate) fn lost(&self, number: usize) {
        let mut inner = self.lock();
        if let Some(&conn) = inner.connections.get(number) {
            // It may be told twice.
            let _ = inner
                .ledger
                .as_mut()
                .map(|ledger| ledger.connection_ended(conn));
        }
    }

    /// The connections to be flushed, so that what was acknowledged becomes durable.
    pub(crate) fn to_flush(&self) -> Vec<usize> {
        let inner = self.lock();
        let Some(ledger) = &inner.ledger else {
            return Vec::new();
        };
        let number = |conn| inner.connections.iter().position(|it| *it == conn);
        ledger.to_flush().filter_map(number).collect()
    }

    /// Whether everything that was written is on permanent storage.
    pub(crate) fn is_all_durable(&self) -> bool {
        let inner = self.lock();
        let ledger = inner.ledger.as_ref();
        inner.misuse.is_none() && ledger.is_some_and(|ledger| ledger.summary().all_durable())
    }

    /// What is on permanent storage, as far as the destination has said so.
    pub(crate) fn durable(&self) -> Durable {
        let inner = self.lock();
        let Some(ledger) = &inner.ledger else {
            return Durable::Unknown;
        };
        if inner.misuse.is_some() {
            return Durable::Unknown;
        }
        let mut ranges = inner.acknowledged.clone();
        for range in ledger.undurable_ranges() {
            ranges.remove(range);
        }
        Durable::Ranges(ranges)
    }
}

impl Inner {
    fn note<T>(&mut self, event: impl FnOnce(&mut FlushLedger) -> Result<T, Misuse>) -> Option<T> {
        match event(self.ledger.as_mut()?) {
            Ok(noted) => Some(noted),
            Err(misuse) => {
                self.misuse.get_or_insert(misuse);
                None
            }
        }
    }
}

/// What is on permanent storage; printed, it is a clause.
#[derive(Clone, Debug)]
pub(crate) enum Durable {
    /// There is no way to know.
    Unknown,
    Ranges(Ranges),
}

impl fmt::Display for Durable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranges = match self {
            Self::Unknown => return f.write_str("what of it is on permanent storage is not known"),
            Self::Ranges(ranges) => ranges,
        };
        let total = ranges.total();
        if total == 0 {
            return f.write_str("none of it is known to be on permanent storage");
        }
        write!(
            f,
            "{total} bytes ({}) are on permanent storage: ",
            BinaryBytes(total)
        )?;
        for (at, range) in ranges.iter().take(MOST_TOLD).enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            write!(f, "{comma}{}..{}", range.start, range.end)?;
        }
        match ranges.count().saturating_sub(MOST_TOLD) {
            0 => Ok(()),
            more => write!(f, " and {more} ranges more"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where the ranges that are durable begin and end.
    fn told(durability: &Durability) -> Vec<(u64, u64)> {
        match durability.durable() {
            Durable::Ranges(ranges) => ranges.iter().map(|it| (it.start, it.end)).collect(),
            Durable::Unknown => panic!("not known"),
        }
    }

    #[test]
    fn only_what_was_answered_before_a_flush_was_sent_is_durable() {
        let durability = Durability::new(Some(Scope::AllConnections), 2);
        for (number, range) in [(0, 0..10), (1, 10..20), (0, 20..30)] {
            durability.sent(number, range.start, range, false);
        }
        durability.replied(0, 0, 0..10);
        durability.replied(1, 10, 10..20);
        assert_eq!(told(&durability), []);
        durability.flush_sent(1);
        durability.replied(0, 20, 20..30);
        durability.flushed(1, true);
        assert_eq!(told(&durability), [(0, 20)]);
        assert!(!durability.is_all_durable());
        for number in durability.to_flush() {
            durability.flush_sent(number);
            durability.flushed(number, true);
        }
        assert_eq!(told(&durability), [(0, 30)]);
        assert!(durability.is_all_durable());
    }

    #[test]
    fn without_multi_conn_every_connection_is_flushed_for_itself() {
        let durability = Durability::new(Some(Scope::OwnConnection), 2);
        for number in [0, 1] {
            let range = number as u64 * 10..number as u64 * 10 + 10;
            durability.sent(number, 1, range.clone(), false);
            durability.replied(number, 1, range);
        }
        assert_eq!(durability.to_flush(), [0, 1]);
        durability.flush_sent(1);
        durability.flushed(1, true);
        assert_eq!(told(&durability), [(10, 20)]);
        durability.lost(0);
        assert_eq!(durability.to_flush(), []);
        assert!(!durability.is_all_durable());
    }

    #[test]
    fn a_failed_flush_makes_nothing_durable_and_neither_does_the_next() {
        let durability = Durability::new(Some(Scope::AllConnections), 1);
        durability.sent(0, 1, 0..10, false);
        durability.replied(0, 1, 0..10);
        for is_ok in [false, true] {
            durability.flush_sent(0);
            durability.flushed(0, is_ok);
            assert_eq!(told(&durability), []);
            assert!(!durability.is_all_durable());
        }
    }

    #[test]
    fn what_was_refused_without_effect_is_no_debt() {
        let durability = Durability::new(Some(Scope::AllConnections), 1);
        durability.sent(0, 1, 0..10, false);
        durability.failed(0, 1, true);
        assert!(durability.is_all_durable());
        durability.sent(0, 2, 0..10, false);
        durability.failed(0, 2, false);
        assert!(!durability.is_all_durable());
    }

    #[test]
    fn with_fua_a_reply_is_enough_and_without_anything_nothing_is() {
        let durability = Durability::new(Some(Scope::OwnConnection), 1);
        durability.sent(0, 1, 5..10, true);
        durability.replied(0, 1, 5..10);
        assert_eq!(told(&durability), [(5, 10)]);
        assert!(durability.is_all_durable());

        let durability = Durability::new(None, 1);
        durability.sent(0, 1, 5..10, false);
        durability.replied(0, 1, 5..10);
        assert!(matches!(durability.durable(), Durable::Unknown));
        assert!(!durability.is_all_durable());
    }

    #[test]
    fn many_ranges_are_told_in_few_words() {
        let durability = Durability::new(Some(Scope::OwnConnection), 1);
        for at in 0..10_u64 {
            durability.sent(0, at, at * 10..at * 10 + 5, true);
            durability.replied(0, at, at * 10..at * 10 + 5);
        }
        let words = durability.durable().to_string();
        assert!(
            words.ends_with(": 0..5, 10..15, 20..25, 30..35 and 6 ranges more"),
            "{words}"
        );
        assert!(words.starts_with("50 bytes (50 B) are on"), "{words}");
    }
}
