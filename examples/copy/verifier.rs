//! Reading all of both ends again, once it is flushed, and comparing.
//!
//! What the source says of holes is not relied upon here: a wrong answer is one of the things to
//! be found.

use std::collections::HashMap;
use std::ops::Range;
use std::time::Instant;

use super::endpoint::{Done, Why};
use super::pair::{Lost, Pair};
use super::state::{Failure, State};
use super::work::Work;

#[derive(Debug)]
pub(crate) struct Verifier<'a> {
    state: &'a State<'a>,
    work: &'a Work,
    pair: Pair,
    section: Range<u64>,
    is_exhausted: bool,
    under_way: usize,
    /// What came of one end first, by its offset.
    first: HashMap<u64, Vec<u8>>,
    spare: Vec<Vec<u8>>,
}

impl<'a> Verifier<'a> {
    pub(crate) fn new(state: &'a State<'a>, work: &'a Work, pair: Pair) -> Self {
        Self {
            state,
            work,
            pair,
            section: 0..0,
            is_exhausted: false,
            under_way: 0,
            first: HashMap::new(),
            spare: Vec::new(),
        }
    }

    /// Compares until there is nothing left, or something has failed; then the pair is given back.
    pub(crate) fn run(mut self) -> Pair {
        loop {
            loop {
                if !self.is_complete() {
                    self.state.heed_signals();
                }
                self.begin_more();
                if !self.take_done() {
                    break;
                }
            }
            if self.is_over() {
                return self.pair;
            }
            self.pair.wait(self.state, None);
            self.drive();
        }
    }

    const fn is_complete(&self) -> bool {
        self.is_exhausted && self.under_way == 0
    }

    fn is_over(&self) -> bool {
        match self.state.give_up() {
            Some(give_up) => self.pair.is_idle() || give_up <= Instant::now(),
            None => self.is_complete(),
        }
    }

    fn begin_more(&mut self) {
        let block = self.state.job.cut.block;
        while !self.state.has_failed() && self.under_way < self.state.job.requests {
            if self.section.is_empty() {
                match self.work.claim(self.pair.number) {
                    Some(section) => self.section = section,
                    None => {
                        self.is_exhausted = true;
                        return;
                    }
                }
            }
            let offset = self.section.start;
            let end = self.section.end.min((offset / block + 1) * block);
            self.section.start = end;
            self.begin(offset, usize::try_from(end - offset).unwrap_or(usize::MAX));
        }
    }

    fn begin(&mut self, offset: u64, length: usize) {
        self.under_way += 1;
        let buffer = self.spare.pop().unwrap_or_default();
        let Pair {
            source,
            destination,
            ..
        } = &mut self.pair;
        if let Err(error) = source.read(offset, length, buffer) {
            self.state.fail(Failure::Error(source.explain(&error)));
        }
        let buffer = self.spare.pop().unwrap_or_default();
        if let Err(error) = destination.read(offset, length, buffer) {
            self.state.fail(Failure::Error(destination.explain(&error)));
        }
    }

    /// Takes what is done; whether there was anything.
    fn take_done(&mut self) -> bool {
        let mut any = false;
        while let Some(done) = self.pair.source.next_done() {
            any = true;
            let place = self.pair.source.place().to_string();
            self.take_read(done, &place);
        }
        while let Some(done) = self.pair.destination.next_done() {
            any = true;
            let place = self.pair.destination.place().to_string();
            self.take_read(done, &place);
        }
        any
    }

    fn take_read(&mut self, done: Done, place: &str) {
        let Done {
            offset,
            length,
            buffer,
            result,
            ..
        } = done;
        if let Err(Why { words, .. }) = result {
            self.state.fail(Failure::Error(format!(
                "cannot read {length} bytes at offset {offset} of {place} again: {words}"
            )));
        }
        if self.state.has_failed() {
            return;
        }
        let Some(other) = self.first.remove(&offset) else {
            self.first.insert(offset, buffer);
            return;
        };
        if buffer != other {
            let same = buffer.iter().zip(&other).take_while(|(a, b)| a == b);
            let at = offset + same.count() as u64;
            let (source, destination) = (self.pair.source.place(), self.pair.destination.place());
            self.state.fail(Failure::Error(format!(
                "{destination} is not what {source} is: they differ at offset {at}, if not before"
            )));
        }
        self.under_way -= 1;
        self.state.progress.advance(length);
        self.spare.extend([buffer, other]);
    }

    fn drive(&mut self) {
        let Lost {
            source,
            destination,
        } = self.pair.drive();
        self.take_done();
        if self.is_complete() {
            return;
        }
        if let Some(error) = source {
            let words = self.pair.source.explain(&error);
            self.state.fail(Failure::Error(words));
        }
        if let Some(error) = destination {
            let words = self.pair.destination.explain(&error);
            self.state.fail(Failure::Error(words));
        }
    }
}
