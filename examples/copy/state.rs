//! What the workers of a copy have in common.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::durability::Durability;
use super::feeder::Cut;
use super::progress::Progress;
use super::shared::signals::Signals;
use super::work::Work;

/// How long, at most, requests in flight are waited for once the copy has failed.
const GRACE: Duration = Duration::from_secs(5);

/// How a copy is to be made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Job {
    pub(crate) cut: Cut,
    /// How much is zeroed at once, in bytes: a multiple of a block.
    pub(crate) hole: u64,
    /// And where the server would rather not.
    pub(crate) slow_hole: u64,
    /// How many pieces each worker has on their way at once.
    pub(crate) requests: usize,
    /// How long a server may be silent.
    pub(crate) timeout: Duration,
    /// After how many bytes there is a flush in between.
    pub(crate) flush_every: Option<u64>,
    /// Whether writes are made durable one by one, for want of a flush.
    pub(crate) fua: bool,
    /// Whether there is a flush.
    pub(crate) flush: bool,
    /// Whether each connection is flushed for itself.
    pub(crate) flush_each: bool,
    /// Whether zeroes take room like all else.
    pub(crate) allocate: bool,
    /// Whether the user says that the destination is all zeroes.
    pub(crate) is_zero: bool,
    /// Whether it is all to be read again.
    pub(crate) verify: bool,
}

/// Why a copy was not completed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    Signal(u8),
    Error(String),
}

/// Seen by all workers.
#[derive(Debug)]
pub(crate) struct State<'a> {
    pub(crate) job: Job,
    pub(crate) work: Work,
    pub(crate) signals: &'a Signals,
    pub(crate) progress: &'a Progress,
    pub(crate) durability: Durability,
    /// Set once the source has refused to say what is zero.
    pub(crate) no_status: AtomicBool,
    /// Set once the destination has refused to zero fast.
    pub(crate) no_fast_zero: AtomicBool,
    /// How many bytes were written since a flush in between was last begun.
    pub(crate) unflushed: AtomicU64,
    copied: AtomicU64,
    failure: OnceLock<(Failure, Instant)>,
    /// Readable once there is a failure: nobody waits for one end any more.
    pub(crate) stop: UnixStream,
    stopper: UnixStream,
}

impl<'a> State<'a> {
    pub(crate) fn new(
        job: Job,
        work: Work,
        durability: Durability,
        signals: &'a Signals,
        progress: &'a Progress,
    ) -> std::io::Result<Self> {
        let (stop, stopper) = UnixStream::pair()?;
        Ok(Self {
            job,
            work,
            signals,
            progress,
            durability,
            no_status: AtomicBool::new(false),
            no_fast_zero: AtomicBool::new(false),
            unflushed: AtomicU64::new(0),
            copied: AtomicU64::new(0),
            failure: OnceLock::new(),
            stop,
            stopper,
        })
    }

    /// Ends the copy. The first failure is the one to be told; others often only follow from it.
    pub(crate) fn fail(&self, failure: Failure) {
        if self.failure.set((failure, Instant::now())).is_ok() {
            // It cannot be full: this is the only byte.
            let _ = (&self.stopper).write(&[0]);
        }
    }

    /// Notes a signal that came.
    pub(crate) fn heed_signals(&self) {
        if let Some(signal) = self.signals.caught() {
            self.fail(Failure::Signal(signal));
        }
    }

    pub(crate) fn failure(&self) -> Option<&Failure> {
        self.failure.get().map(|(failure, _)| failure)
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.failure.get().is_some()
    }

    /// Until when, after a failure, what is in flight is waited for.
    pub(crate) fn give_up(&self) -> Option<Instant> {
        self.failure.get().map(|(_, since)| *since + self.grace())
    }

    /// How long something is waited for that is not worth waiting long.
    pub(crate) fn grace(&self) -> Duration {
        self.job.timeout.min(GRACE)
    }

    /// Notes that so many bytes are where they belong.
    pub(crate) fn count(&self, bytes: u64) {
        self.copied.fetch_add(bytes, Ordering::Relaxed);
        self.progress.advance(bytes);
    }

    /// How many bytes are where they belong.
    pub(crate) fn copied(&self) -> u64 {
        self.copied.load(Ordering::Relaxed)
    }
}
