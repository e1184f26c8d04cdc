//! A copy from its beginning to its end: the workers, the last flush, the verification.

use std::time::Instant;

use super::durability::Durable;
use super::flusher::{flush, try_flush};
use super::pair::Pair;
use super::state::{Failure, State};
use super::verifier::Verifier;
use super::work::Work;
use super::worker::Worker;

/// What a copy came to.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// How many bytes are where they belong.
    pub(crate) copied: u64,
    /// Which of them are on permanent storage.
    pub(crate) durable: Durable,
    /// How far it came.
    pub(crate) stage: Stage,
    pub(crate) failure: Option<Failure>,
}

/// How far a copy came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Copying,
    Flushing,
    /// Flushed, or found that there is no flush.
    Verifying,
    Verified,
}

/// Copies. All ends are closed then, in good order if they still are in order.
pub(crate) fn run(pairs: Vec<Pair>, state: &State<'_>) -> Outcome {
    let workers = pairs.len();
    let mut pairs = copy(pairs, state);
    let mut stage = Stage::Copying;
    if !state.has_failed() {
        stage = Stage::Flushing;
        if state.job.flush {
            flush(&mut pairs, state);
        }
    }
    if state.has_failed() {
        if state.job.flush {
            try_flush(&mut pairs, state);
        }
    } else if (state.job.flush || state.job.fua) && !state.durability.is_all_durable() {
        // Nothing has failed, and yet the books do not balance.
        let words = "not all that was written is known to be on permanent storage";
        state.fail(Failure::Error(words.to_owned()));
    } else {
        stage = Stage::Verifying;
        if state.job.verify {
            pairs = verify(pairs, state, workers);
        }
        if !state.has_failed() {
            stage = Stage::Verified;
        }
    }
    let deadline = Instant::now() + state.grace();
    for pair in &mut pairs {
        pair.close(deadline);
    }
    Outcome {
        copied: state.copied(),
        durable: state.durability.durable(),
        stage,
        failure: state.failure().cloned(),
    }
}

fn copy(pairs: Vec<Pair>, state: &State<'_>) -> Vec<Pair> {
    let workers = pairs.into_iter().map(|pair| Worker::new(state, pair));
    let mut workers: Vec<_> = workers.collect();
    // What is found out for one of them may save all others from asking.
    if let [first, _, ..] = &mut workers[..] {
        first.learn();
    }
    each(workers, Worker::number, state, Worker::run)
}

fn verify(pairs: Vec<Pair>, state: &State<'_>, workers: usize) -> Vec<Pair> {
    let cut = state.job.cut;
    state.progress.begin_again("verified");
    if let Some(file) = pairs.first().and_then(|pair| pair.destination.file()) {
        file.forget_cached();
    }
    // Flushed, everything is to be seen on every connection.
    let work = Work::new(cut.size, cut.block, workers, state.work.pinning());
    let verify = |pair| Verifier::new(state, &work, pair).run();
    each(pairs, |pair| pair.number, state, verify)
}

/// Has each worker, or each pair that is to be worked with, in a thread of its own, and gives the
/// pairs back in the same order.
fn each<T: Send>(
    workers: Vec<T>,
    number: impl Fn(&T) -> usize,
    state: &State<'_>,
    work: impl Fn(T) -> Pair + Sync,
) -> Vec<Pair> {
    let work = &work;
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for worker in workers {
            let name = format!("worker {}", number(&worker));
            let thread = std::thread::Builder::new().name(name);
            match thread.spawn_scoped(scope, move || work(worker)) {
                Ok(thread) => threads.push(thread),
                Err(error) => {
                    let words = format!("cannot start a thread: {error}; try --connections 1");
                    state.fail(Failure::Error(words));
                }
            }
        }
        let ended = threads.into_iter().map(std::thread::ScopedJoinHandle::join);
        let given_back = ended.filter_map(|result| {
            if result.is_err() {
                let words = "a worker has broken down, which is a mistake in this program";
                state.fail(Failure::Error(words.to_owned()));
            }
            result.ok()
        });
        given_back.collect()
    })
}
