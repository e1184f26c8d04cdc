//! Moving the data: several pieces on their way at once, each read, then written.
//!
//! One thread does it for one [`Pair`]; several of them share one range of offsets.

use std::sync::atomic::Ordering;
use std::time::Instant;

use nbd_proto::wire::{CommandFlags, CommandType};

use super::endpoint::{Done, Zeroing};
use super::feeder::{Feeder, Piece};
use super::flusher::cannot_flush;
use super::pair::{Lost, Pair};
use super::shared::connection::Error;
use super::state::{Failure, Job, State};
use super::zeroes::is_zero;

#[derive(Debug)]
pub(crate) struct Worker<'a> {
    state: &'a State<'a>,
    pair: Pair,
    feeder: Feeder<'a>,
    /// Pieces that are being read.
    reading: usize,
    /// Pieces that are being read or written.
    under_way: usize,
    /// Whether a flush in between is being waited for.
    flushing: bool,
    /// How many bytes were written since the last one, where each connection is flushed for
    /// itself.
    unflushed: u64,
    /// Buffers to be used again.
    spare: Vec<Vec<u8>>,
}

impl<'a> Worker<'a> {
    pub(crate) fn new(state: &'a State<'a>, pair: Pair) -> Self {
        let Job { cut, requests, .. } = state.job;
        let ahead = cut.block.saturating_mul(requests as u64);
        let feeder = Feeder::new(&state.work, pair.number, cut, ahead, &state.no_status);
        Self {
            state,
            pair,
            feeder,
            reading: 0,
            under_way: 0,
            flushing: false,
            unflushed: 0,
            spare: Vec::new(),
        }
    }

    /// The number of its pair.
    pub(crate) const fn number(&self) -> usize {
        self.pair.number
    }

    /// Copies until there is nothing left, or the copy has failed; then the pair is given back.
    pub(crate) fn run(mut self) -> Pair {
        self.run_until(Self::is_over);
        self.pair
    }

    /// Begins, and goes on until the source has said for the first time what is zero and what is
    /// data, if it can say that.
    pub(crate) fn learn(&mut self) {
        self.run_until(|worker| worker.feeder.has_learned() || worker.is_over());
    }

    fn run_until(&mut self, is_enough: impl Fn(&Self) -> bool) {
        loop {
            // What is done makes room for more; files are done at once.
            loop {
                if !self.is_complete() {
                    self.state.heed_signals();
                }
                self.begin_more();
                let is_more = self.take_done();
                if is_enough(self) {
                    return;
                }
                if !is_more {
                    break;
                }
            }
            self.pair.wait(self.state, None);
            self.drive();
        }
    }

    fn job(&self) -> &Job {
        &self.state.job
    }

    fn is_complete(&self) -> bool {
        self.feeder.is_over() && self.under_way == 0 && !self.flushing
    }

    fn is_over(&self) -> bool {
        match self.state.give_up() {
            Some(give_up) => self.pair.is_idle() || give_up <= Instant::now(),
            None => self.is_complete(),
        }
    }

    // --- asking ---

    fn begin_more(&mut self) {
        while !self.state.has_failed() && self.under_way < self.job().requests {
            if let Err(error) = self.feeder.look_ahead(&mut self.pair.source) {
                return self.source_failed(&error);
            }
            let Some(piece) = self.feeder.next(self.most_zeroes()) else {
                break;
            };
            if piece.zero {
                self.begin_zeroes(piece);
            } else {
                self.begin_data(&piece);
            }
        }
        if self.feeder.is_over() && self.reading == 0 && !self.job().verify {
            // It has given all that it has. What becomes of it while the destination is still
            // busy is no matter of ours.
            let deadline = Instant::now() + self.state.grace();
            self.pair.source.close(deadline);
        }
    }

    fn zeroing(&self) -> Zeroing {
        self.pair.destination.zeroing(self.job().is_zero)
    }

    fn most_zeroes(&self) -> u64 {
        let job = self.job();
        match self.zeroing() {
            Zeroing::Unneeded => u64::MAX,
            Zeroing::Command if self.state.no_fast_zero.load(Ordering::Relaxed) => job.slow_hole,
            Zeroing::Command => job.hole,
            Zeroing::Written => job.cut.block,
        }
    }

    fn begin_data(&mut self, piece: &Piece) {
        let length = usize::try_from(piece.length).unwrap_or(usize::MAX);
        let buffer = self.spare.pop().unwrap_or_default();
        match self.pair.source.read(piece.offset, length, buffer) {
            Ok(()) => {
                self.reading += 1;
                self.under_way += 1;
            }
            Err(error) => self.source_failed(&error),
        }
    }

    fn begin_zeroes(&mut self, piece: Piece) {
        let Piece { offset, length, .. } = piece;
        if let Some(file) = self.pair.source.file()
            && let Err(why) = file.check(offset + length)
        {
            return self.cannot("read", &piece, &why.to_string());
        }
        match self.zeroing() {
            Zeroing::Unneeded => self.state.count(length),
            Zeroing::Command => {
                if self.write_zeroes(offset, length) {
                    self.under_way += 1;
                } else if !self.state.has_failed() {
                    self.feeder.give_back(&piece);
                }
            }
            Zeroing::Written => {
                let mut buffer = self.spare.pop().unwrap_or_default();
                buffer.clear();
                buffer.resize(usize::try_from(length).unwrap_or(usize::MAX), 0);
                self.under_way += 1;
                self.write(offset, buffer);
            }
        }
    }

    /// Whether that was possible.
    fn write_zeroes(&mut self, offset: u64, length: u64) -> bool {
        let job = self.job();
        let mut flags = self.write_flags();
        flags.set(CommandFlags::NO_HOLE, job.allocate);
        if self.pair.destination.has_fast_zero() && !self.state.no_fast_zero.load(Ordering::Relaxed)
        {
            flags |= CommandFlags::FAST_ZERO;
        }
        let destination = &mut self.pair.destination;
        match destination.write_zeroes(offset, length, flags) {
            Ok(Some(id)) => {
                let durability = &self.state.durability;
                durability.sent(
                    self.pair.number,
                    id,
                    offset..offset + length,
                    self.job().fua,
                );
                true
            }
            Ok(None) => false,
            Err(error) => {
                self.destination_failed(&error);
                false
            }
        }
    }

    fn write(&mut self, offset: u64, buffer: Vec<u8>) {
        let length = buffer.len() as u64;
        let flags = self.write_flags();
        match self.pair.destination.write(offset, buffer, flags) {
            Ok(id) => {
                let durability = &self.state.durability;
                durability.sent(
                    self.pair.number,
                    id,
                    offset..offset + length,
                    self.job().fua,
                );
            }
            Err(error) => self.destination_failed(&error),
        }
    }

    fn write_flags(&self) -> CommandFlags {
        let mut flags = CommandFlags::empty();
        flags.set(CommandFlags::FUA, self.job().fua);
        flags
    }

    /// Begins a flush in between, if it is time for one.
    fn flush_if_due(&mut self, written: u64) {
        let Some(every) = self.job().flush_every else {
            return;
        };
        if self.flushing || self.state.has_failed() {
            self.unflushed += written;
            return;
        }
        if self.job().flush_each {
            self.unflushed += written;
            if self.unflushed < every {
                return;
            }
        } else {
            let written = written + std::mem::take(&mut self.unflushed);
            let unflushed = &self.state.unflushed;
            if unflushed.fetch_add(written, Ordering::Relaxed) + written < every {
                return;
            }
            unflushed.store(0, Ordering::Relaxed);
        }
        self.unflushed = 0;
        self.state.durability.flush_sent(self.pair.number);
        match self.pair.destination.flush() {
            Ok(()) => self.flushing = true,
            Err(error) => self.destination_failed(&error),
        }
    }

    // --- failing ---

    fn fail(&self, words: String) {
        self.state.fail(Failure::Error(words));
    }

    fn source_failed(&self, error: &Error) {
        self.fail(self.pair.source.explain(error));
    }

    fn destination_failed(&self, error: &Error) {
        self.fail(self.pair.destination.explain(error));
    }

    fn cannot(&self, what: &str, piece: &Piece, why: &str) {
        let place = match what {
            "read" => self.pair.source.place(),
            _ => self.pair.destination.place(),
        };
        let Piece { offset, length, .. } = piece;
        self.fail(format!(
            "cannot {what} {length} bytes at offset {offset} of {place}: {why}"
        ));
    }

    // --- being answered ---

    /// Takes what is done; whether there was anything.
    fn take_done(&mut self) -> bool {
        let mut any = false;
        while let Some(done) = self.pair.source.next_done() {
            any = true;
            if done.command == CommandType::BLOCK_STATUS {
                let source = &mut self.pair.source;
                if let Err(error) = self.feeder.take_status(source, done) {
                    self.source_failed(&error);
                }
            } else {
                self.take_read(done);
            }
        }
        while let Some(done) = self.pair.destination.next_done() {
            any = true;
            if done.command == CommandType::FLUSH {
                self.take_flush(&done);
            } else {
                self.take_written(done);
            }
        }
        any
    }

    fn take_read(&mut self, done: Done) {
        self.reading -= 1;
        let piece = piece_of(&done);
        if let Err(why) = &done.result {
            self.cannot("read", &piece, &why.words);
        }
        if self.state.has_failed() {
            return;
        }
        let Done {
            offset,
            length,
            buffer,
            ..
        } = done;
        let zeroing = self.zeroing();
        if zeroing == Zeroing::Written || !is_zero(&buffer) {
            return self.write(offset, buffer);
        }
        if zeroing == Zeroing::Unneeded {
            self.finish(length);
            self.spare.push(buffer);
        } else if self.write_zeroes(offset, length) {
            self.spare.push(buffer);
        } else if !self.state.has_failed() {
            self.write(offset, buffer);
        }
    }

    fn finish(&mut self, length: u64) {
        self.under_way -= 1;
        self.state.count(length);
    }

    fn take_written(&mut self, done: Done) {
        let durability = &self.state.durability;
        let piece = piece_of(&done);
        let refused_fast = matches!(&done.result, Err(why) if why.unsupported)
            && done.flags.contains(CommandFlags::FAST_ZERO);
        if done.result.is_err() {
            durability.failed(self.pair.number, done.id, refused_fast);
        }
        match &done.result {
            Ok(()) => {
                let range = done.offset..done.offset + done.length;
                durability.replied(self.pair.number, done.id, range);
                self.finish(done.length);
                if !done.buffer.is_empty() {
                    self.spare.push(done.buffer);
                }
                self.flush_if_due(done.length);
            }
            Err(_) if refused_fast => {
                // proto.md "Request types": the range is as it was, and without the flag it is
                // zeroed however long that takes.
                self.state.no_fast_zero.store(true, Ordering::Relaxed);
                self.under_way -= 1;
                self.feeder.give_back(&piece);
            }
            Err(why) if done.command == CommandType::WRITE_ZEROES => {
                self.cannot("zero", &piece, &why.words);
            }
            Err(why) => self.cannot("write", &piece, &why.words),
        }
    }

    fn take_flush(&mut self, done: &Done) {
        self.flushing = false;
        let durability = &self.state.durability;
        durability.flushed(self.pair.number, done.result.is_ok());
        if let Err(why) = &done.result {
            self.fail(cannot_flush(self.pair.destination.place(), &why.words));
        }
    }

    /// Whether the source was lost too early. After its last byte it may go as it likes; only a
    /// broken rule is still a reason to doubt what it said before.
    fn is_needed(&self, error: &Error) -> bool {
        self.reading > 0 || !self.feeder.is_over() || matches!(error, Error::Protocol(_))
    }

    fn drive(&mut self) {
        let Lost {
            source,
            destination,
        } = self.pair.drive();
        // What was answered before the connection was lost comes first: it may say why.
        self.take_done();
        if let Some(error) = source
            && self.is_needed(&error)
        {
            self.source_failed(&error);
        }
        if let Some(error) = destination {
            self.state.durability.lost(self.pair.number);
            self.destination_failed(&error);
        }
    }
}

const fn piece_of(done: &Done) -> Piece {
    Piece {
        offset: done.offset,
        length: done.length,
        zero: matches!(done.command, CommandType::WRITE_ZEROES),
    }
}
