//! Moving the data: several blocks on their way at once, each read, then written.
//!
//! One thread does it all. It never waits for one end alone, but polls both, the signals and the
//! time, so nothing that one server does or does not do can keep it from noticing the rest. Files
//! are read and written in between; they answer at once.
//!
//! One connection on each side is enough to fill it. More of them are more of these loops, each
//! with its own two ends, over one shared range of offsets.

use std::time::{Duration, Instant};

use nbd_proto::wire::CommandType;
use rustix::event::{PollFd, PollFlags};

use super::endpoint::{Destination, Done, Source};
use super::progress::Progress;
use super::shared::connection::Error;
use super::shared::signals::Signals;
use super::shared::stream::wait_any;
use super::zeroes::is_zero;

/// How long, at most, requests in flight are waited for once the copy has failed.
const GRACE: Duration = Duration::from_secs(5);

/// How a copy is to be made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// How much is copied, from offset 0 on, in bytes.
    pub(crate) size: u64,
    /// How much is moved at once, in bytes.
    pub(crate) block: usize,
    /// How much of a hole is passed on at once, in bytes: a multiple of `block`.
    pub(crate) hole: u64,
    /// How many blocks are on their way at once.
    pub(crate) blocks: usize,
    /// How long a server may be silent.
    pub(crate) timeout: Duration,
}

/// What a copy came to.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// How many bytes the destination has acknowledged.
    pub(crate) copied: u64,
    pub(crate) result: Result<Flushed, Failure>,
}

/// Whether the copy is on permanent storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flushed {
    Yes,
    /// The destination offers no flush.
    Unavailable,
}

/// Why a copy was not completed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    Signal(u8),
    Error(String),
}

/// Copies. Both ends are closed then, in good order if they still are in order.
pub(crate) fn run(
    source: Source,
    destination: Destination,
    plan: Plan,
    signals: &Signals,
    progress: &Progress,
) -> Outcome {
    let mut copy = Copy {
        source,
        destination,
        plan,
        next: 0,
        reading: 0,
        under_way: 0,
        copied: 0,
        spare: Vec::new(),
        end: Ending::Not,
        failure: None,
        give_up: None,
    };
    copy.run(signals, progress);
    let deadline = Instant::now() + plan.timeout.min(GRACE);
    copy.source.close(deadline);
    copy.destination.close(deadline);
    Outcome {
        copied: copy.copied,
        result: match (copy.failure, copy.end) {
            (Some(failure), _) => Err(failure),
            (None, Ending::Flushed) => Ok(Flushed::Yes),
            (None, _) => Ok(Flushed::Unavailable),
        },
    }
}

struct Copy {
    source: Source,
    destination: Destination,
    plan: Plan,
    /// Where the next block begins.
    next: u64,
    /// Blocks that are being read.
    reading: usize,
    /// Blocks that are being read or written.
    under_way: usize,
    copied: u64,
    /// Buffers to be used again.
    spare: Vec<Vec<u8>>,
    end: Ending,
    failure: Option<Failure>,
    /// When, after a failure, what is in flight is not waited for any longer.
    give_up: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// There are blocks to be copied.
    Not,
    /// All are written; the flush is waited for.
    Flushing,
    Flushed,
    /// All are written, and there is no flush.
    Unflushed,
}

impl Copy {
    fn run(&mut self, signals: &Signals, progress: &Progress) {
        loop {
            // What is done makes room for more; files are done at once.
            loop {
                if let Some(signal) = signals.caught()
                    && !self.is_complete()
                {
                    self.fail(Failure::Signal(signal));
                }
                self.begin_more();
                if !self.take_done() {
                    break;
                }
                progress.set(self.copied);
            }
            if self.is_over() {
                return;
            }
            self.wait(signals);
            self.drive();
        }
    }

    /// The first failure is the one to be told; others often only follow from it.
    fn fail(&mut self, failure: Failure) {
        if self.failure.is_none() {
            self.failure = Some(failure);
            self.give_up = Some(Instant::now() + self.plan.timeout.min(GRACE));
        }
    }

    fn is_over(&self) -> bool {
        let is_idle = self.source.is_idle() && self.destination.is_idle();
        match (&self.failure, self.give_up) {
            (Some(_), Some(give_up)) => is_idle || give_up <= Instant::now(),
            _ => self.is_complete(),
        }
    }

    const fn is_complete(&self) -> bool {
        matches!(self.end, Ending::Flushed | Ending::Unflushed)
    }

    // --- asking ---

    fn begin_more(&mut self) {
        while self.failure.is_none()
            && self.next < self.plan.size
            && self.under_way < self.plan.blocks
        {
            self.begin_block();
        }
        if self.failure.is_some() || self.next < self.plan.size {
            return;
        }
        if self.source.is_idle() {
            // It has given all that it has. What becomes of it while the destination is still
            // busy is no matter of ours.
            self.source
                .close(Instant::now() + self.plan.timeout.min(GRACE));
        }
        if self.under_way == 0 && self.end == Ending::Not {
            self.begin_flush();
        }
    }

    fn begin_block(&mut self) {
        let length = self.hole();
        if length > 0 {
            self.under_way += 1;
            self.write_zeroes(self.next, length);
            self.next += length;
            return;
        }
        let length =
            usize::try_from(self.left()).map_or(self.plan.block, |left| left.min(self.plan.block));
        let buffer = self.spare.pop().unwrap_or_default();
        match self.source.read(self.next, length, buffer) {
            Ok(()) => {
                self.next += length as u64;
                self.reading += 1;
                self.under_way += 1;
            }
            Err(error) => self.fail(Failure::Error(format!("{}: {error}", self.source.place()))),
        }
    }

    const fn left(&self) -> u64 {
        self.plan.size - self.next
    }

    /// How much from the next block on can be passed on as zeroes without being read: whole
    /// blocks, so that what follows is as well aligned as without.
    fn hole(&mut self) -> u64 {
        if !self.destination.has_zeroes() {
            return 0;
        }
        let hole = self.source.hole(self.next).min(self.plan.hole);
        if hole >= self.left() {
            return self.left();
        }
        hole - hole % self.plan.block as u64
    }

    fn write_zeroes(&mut self, offset: u64, length: u64) {
        if let Err(error) = self.destination.write_zeroes(offset, length) {
            self.destination_failed(&error);
        }
    }

    fn destination_failed(&mut self, error: &Error) {
        let place = self.destination.place();
        self.fail(Failure::Error(format!("{place}: {error}")));
    }

    fn begin_flush(&mut self) {
        if !self.destination.has_flush() {
            self.end = Ending::Unflushed;
            return;
        }
        self.end = Ending::Flushing;
        if let Err(error) = self.destination.flush() {
            self.destination_failed(&error);
        }
    }

    // --- being answered ---

    /// Takes what is done; whether there was anything.
    fn take_done(&mut self) -> bool {
        let mut any = false;
        while let Some(done) = self.source.next_done() {
            any = true;
            self.take_read(done);
        }
        while let Some(done) = self.destination.next_done() {
            any = true;
            self.take_written(done);
        }
        any
    }

    fn take_read(&mut self, done: Done) {
        self.reading -= 1;
        if let Err(why) = &done.result {
            let Done { offset, length, .. } = done;
            let place = self.source.place();
            self.fail(Failure::Error(format!(
                "cannot read {length} bytes at offset {offset} of {place}: {why}"
            )));
        }
        if self.failure.is_some() {
            return;
        }
        if self.destination.has_zeroes() && is_zero(&done.buffer) {
            self.spare.push(done.buffer);
            self.write_zeroes(done.offset, done.length);
        } else if let Err(error) = self.destination.write(done.offset, done.buffer) {
            self.destination_failed(&error);
        }
    }

    fn take_written(&mut self, done: Done) {
        let Done { offset, length, .. } = done;
        let place = self.destination.place();
        let failure = match (&done.result, done.command) {
            (Ok(()), CommandType::FLUSH) => {
                self.end = Ending::Flushed;
                return;
            }
            (Ok(()), _) => {
                self.copied += length;
                self.under_way -= 1;
                if !done.buffer.is_empty() {
                    self.spare.push(done.buffer);
                }
                return;
            }
            (Err(why), CommandType::FLUSH) => format!(
                "cannot flush {place}: {why}; what was written may be lost when its server stops"
            ),
            (Err(why), CommandType::WRITE_ZEROES) => {
                format!("cannot zero {length} bytes at offset {offset} of {place}: {why}")
            }
            (Err(why), _) => {
                format!("cannot write {length} bytes at offset {offset} of {place}: {why}")
            }
        };
        self.fail(Failure::Error(failure));
    }

    // --- waiting ---

    fn wait(&mut self, signals: &Signals) {
        let connections = [self.source.connection(), self.destination.connection()];
        let deadlines = connections.iter().flatten().filter_map(|c| c.deadline());
        let until = deadlines.chain(self.give_up).min();
        let time = until.map(|until| until.saturating_duration_since(Instant::now()));
        let mut fds: Vec<_> = connections
            .iter()
            .flatten()
            .map(|connection| PollFd::new(*connection, connection.interest()))
            .collect();
        // Once it is noted, there is nothing more to be heard from it.
        if signals.caught().is_none() {
            fds.push(PollFd::new(signals, PollFlags::IN));
        }
        if let Err(error) = wait_any(&mut fds, time) {
            self.fail(Failure::Error(format!(
                "cannot wait for the servers: {error}"
            )));
        }
    }

    /// Whether the source was lost too early. After its last byte it may go as it likes; only a
    /// broken rule is still a reason to doubt what it said before.
    const fn is_needed(&self, error: &Error) -> bool {
        self.reading > 0 || self.next < self.plan.size || matches!(error, Error::Protocol(_))
    }

    fn drive(&mut self) {
        let source = self.source.drive();
        let destination = self.destination.drive();
        // What was answered before the connection was lost comes first: it may say why.
        self.take_done();
        if let Err(error) = source
            && self.is_needed(&error)
        {
            self.fail(Failure::Error(format!("{}: {error}", self.source.place())));
        }
        if let Err(error) = destination {
            self.destination_failed(&error);
        }
    }
}
