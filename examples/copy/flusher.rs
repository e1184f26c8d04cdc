//! The last flush: of one connection, or of each, once everything is answered.

use std::time::Instant;

use nbd_proto::wire::CommandType;
use rustix::event::{PollFd, PollFlags};

use super::pair::Pair;
use super::place::Place;
use super::shared::connection::Connection;
use super::shared::stream::wait_any;
use super::state::{Failure, State};

/// Flushes what the ledger says has to be, and waits for it. All connections are looked after
/// meanwhile: what one of them was told is written may be gone with it.
pub(crate) fn flush(pairs: &mut [Pair], state: &State<'_>) {
    let mut flusher = Flusher {
        state,
        until: None,
        waiting: Vec::new(),
    };
    flusher.run(pairs, || state.heed_signals());
}

/// Tries to save what a copy that has failed did write, for a short time. Whether it works out,
/// the ledger knows.
pub(crate) fn try_flush(pairs: &mut [Pair], state: &State<'_>) {
    let mut flusher = Flusher {
        state,
        until: Some(Instant::now() + state.grace()),
        waiting: Vec::new(),
    };
    flusher.run(pairs, || ());
}

struct Flusher<'a> {
    state: &'a State<'a>,
    /// Until when it is tried, where the copy has failed already.
    until: Option<Instant>,
    /// Those whose flush is not answered.
    waiting: Vec<usize>,
}

impl Flusher<'_> {
    fn run(&mut self, pairs: &mut [Pair], heed_signals: impl Fn()) {
        self.drive(pairs);
        self.begin(pairs);
        loop {
            heed_signals();
            self.take_done(pairs);
            if self.waiting.is_empty() || self.is_too_late() {
                return;
            }
            self.wait(pairs);
            self.drive(pairs);
        }
    }

    fn begin(&mut self, pairs: &mut [Pair]) {
        let state = self.state;
        let mut numbers = state.durability.to_flush();
        if numbers.is_empty() && self.until.is_none() {
            // Nothing was written; but the size of a file has to be kept, too.
            numbers.push(0);
        }
        for number in numbers {
            let Some(pair) = pairs.iter_mut().find(|pair| pair.number == number) else {
                continue;
            };
            state.durability.flush_sent(number);
            match pair.destination.flush() {
                Ok(()) => self.waiting.push(number),
                Err(error) => self.fail(pair.destination.explain(&error)),
            }
        }
    }

    /// Of a copy that has failed already, the first reason is the one to be told.
    fn fail(&self, words: String) {
        self.state.fail(Failure::Error(words));
    }

    fn is_too_late(&self) -> bool {
        let until = self.until.or_else(|| self.state.give_up());
        until.is_some_and(|until| until <= Instant::now())
    }

    fn take_done(&mut self, pairs: &mut [Pair]) {
        for pair in pairs {
            self.take_done_of(pair);
        }
    }

    fn take_done_of(&mut self, pair: &mut Pair) {
        let number = pair.number;
        while let Some(done) = pair.destination.next_done() {
            // After a failure, a write may be answered late.
            if done.command != CommandType::FLUSH {
                continue;
            }
            self.waiting.retain(|&it| it != number);
            self.state.durability.flushed(number, done.result.is_ok());
            if let Err(why) = &done.result {
                let place = pair.destination.place();
                self.fail(cannot_flush(place, &why.words));
            }
        }
    }

    fn drive(&mut self, pairs: &mut [Pair]) {
        for pair in pairs {
            if let Err(error) = pair.destination.drive() {
                // What was answered before comes first: it may say why.
                self.take_done_of(pair);
                self.waiting.retain(|&it| it != pair.number);
                self.state.durability.lost(pair.number);
                self.fail(pair.destination.explain(&error));
            }
        }
    }

    fn wait(&self, pairs: &[Pair]) {
        let connections = || {
            pairs
                .iter()
                .filter_map(|pair| pair.destination.connection())
        };
        if connections().any(Connection::has_more) {
            return;
        }
        let until = self.until.or_else(|| self.state.give_up());
        let deadlines = connections().filter_map(Connection::deadline);
        let until = deadlines.chain(until).min();
        let time = until.map(|until| until.saturating_duration_since(Instant::now()));
        let mut fds: Vec<_> = connections()
            .map(|connection| PollFd::new(connection, connection.interest()))
            .collect();
        if self.state.signals.caught().is_none() {
            fds.push(PollFd::new(self.state.signals, PollFlags::IN));
        }
        if let Err(error) = wait_any(&mut fds, time) {
            self.fail(format!("cannot wait for the servers: {error}"));
        }
    }
}

/// A failed flush, and what it means.
pub(crate) fn cannot_flush(place: &Place, why: &str) -> String {
    format!("cannot flush {place}: {why}; what was written may be lost when its server stops")
}
