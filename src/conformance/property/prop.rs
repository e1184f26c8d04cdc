//! The property: on all schedules, the server keeps its promise.

use alloc::string::{String, ToString};
use core::fmt;
use core::hash::BuildHasher;
use std::hash::RandomState;
use std::panic::{AssertUnwindSafe, catch_unwind};

use proptest::test_runner::{Config, RngAlgorithm, RngSeed, TestCaseError, TestError, TestRunner};

use super::schedule::{Schedule, Step, play};
use super::server::{Server, Trouble};
use crate::conformance::strategy::schedule::{Freedom, schedule};

/// How a server is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    cases: u32,
    steps: usize,
    seed: Option<u64>,
    faults: bool,
    leaving: bool,
    fua: bool,
    single_connection: bool,
}

impl Options {
    /// 256 schedules of up to 100 steps, the same in every run, in which connections come and go,
    /// and nothing fails.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            cases: 256,
            steps: 100,
            seed: Some(0x6e62_6470),
            faults: false,
            leaving: true,
            fua: true,
            single_connection: false,
        }
    }

    /// How many schedules are tried.
    #[must_use]
    pub const fn with_cases(mut self, cases: u32) -> Self {
        self.cases = cases;
        self
    }

    /// How many steps a schedule has at most. Long ones find more each, and take longer to shrink.
    #[must_use]
    pub const fn with_steps(mut self, steps: usize) -> Self {
        self.steps = steps;
        self
    }

    /// What the schedules follow from; `None` for others in each run.
    #[must_use]
    pub const fn with_seed(mut self, seed: Option<u64>) -> Self {
        self.seed = seed;
        self
    }

    /// Whether commands and backend flushes fail (default no).
    ///
    /// A server that may tell of lost data only once (such as [`AfterFailure::Retry`] does, where
    /// a connection leaves and cannot be written out) breaks the promise by its own account; let
    /// no connection [leave](Self::with_leaving) then.
    ///
    /// [`AfterFailure::Retry`]: crate::flush::AfterFailure::Retry
    #[must_use]
    pub const fn with_faults(mut self, yes: bool) -> Self {
        self.faults = yes;
        self
    }

    /// Whether connections come and go (default yes).
    #[must_use]
    pub const fn with_leaving(mut self, yes: bool) -> Self {
        self.leaving = yes;
        self
    }

    /// Whether commands carry FUA, where it is advertised (default yes).
    #[must_use]
    pub const fn with_fua(mut self, yes: bool) -> Self {
        self.fua = yes;
        self
    }

    /// Whether a server that does not advertise multi-conn is tried, with one connection (default
    /// no: it fails, because what one wants to know is not tested).
    #[must_use]
    pub const fn with_single_connection(mut self, yes: bool) -> Self {
        self.single_connection = yes;
        self
    }
}

impl Default for Options {
    fn default() -> Self {
        Self::new()
    }
}

/// A schedule on which a server breaks its promise, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counterexample {
    /// As short as it could be made.
    pub schedule: Schedule,
    /// What happened.
    pub explanation: String,
    /// The [seed](Options::with_seed) with which it was found.
    pub seed: u64,
}

impl fmt::Display for Counterexample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Schedule {
            connections,
            steps,
            left,
        } = &self.schedule;
        writeln!(f, "{}\n", self.explanation.trim_end())?;
        writeln!(f, "on this schedule, with {connections} connection(s):")?;
        for step in steps {
            writeln!(f, "    {step:?}")?;
        }
        write!(
            f,
            "in a crash these are left (survivors, by block): {left:?}"
        )
    }
}

impl core::error::Error for Counterexample {}

/// So often a counterexample is tried again to make it shorter, after proptest has done what it can.
const MOST_TRIES: u32 = 2000;

impl Counterexample {
    /// Leaves out, again and again, whatever is not needed for it to fail.
    fn shrunk(mut self, mut fails: impl FnMut(&Schedule) -> Option<String>) -> Self {
        let mut tries = 0;
        let mut attempt = |found: &mut Self, schedule: Schedule| {
            tries += 1;
            if tries > MOST_TRIES || schedule == found.schedule {
                return false;
            }
            // What panics is not shrunk any further.
            let result = catch_unwind(AssertUnwindSafe(|| fails(&schedule)));
            let Ok(Some(explanation)) = result else {
                return false;
            };
            found.schedule = schedule;
            found.explanation = explanation;
            true
        };
        loop {
            let mut shorter = false;
            for length in [8, 4, 2, 1] {
                let mut at = self.schedule.steps.len();
                while at > 0 {
                    at = at.saturating_sub(length);
                    let mut schedule = self.schedule.clone();
                    let end = schedule.steps.len().min(at + length);
                    schedule.steps.drain(at..end);
                    shorter |= attempt(&mut self, schedule);
                }
            }
            for schedule in simpler(&self.schedule) {
                shorter |= attempt(&mut self, schedule);
            }
            if !shorter {
                return self;
            }
        }
    }
}

/// The same with connections that are there from the beginning, or with fewer, and with a plain
/// crash.
fn simpler(schedule: &Schedule) -> impl Iterator<Item = Schedule> + use<> {
    let mut fewer = schedule.clone();
    fewer.connections = fewer.connections.saturating_sub(1).max(1);
    let mut at_once = schedule.clone();
    at_once.connections += 1;
    let mut plain = schedule.clone();
    plain.left.clear();
    let opens = |step: &Step| matches!(step, Step::Connect | Step::Ready);
    at_once.steps.retain(|step| !opens(step));
    let worth_it = schedule.steps.iter().any(opens);
    [fewer, plain]
        .into_iter()
        .chain(worth_it.then_some(at_once))
}

/// Tries a server with many schedules: for each, `new_server` makes one (or a new
/// [`StreamServer`](super::StreamServer) for one that stays), which goes through it.
///
/// # Errors
///
/// With the shortest schedule that was found on which the server breaks its promise.
pub fn find_violation<S: Server>(
    options: &Options,
    mut new_server: impl FnMut() -> S,
) -> Result<(), Counterexample> {
    let mut config = Config {
        cases: options.cases,
        failure_persistence: None,
        rng_algorithm: RngAlgorithm::ChaCha,
        max_shrink_iters: 10_000,
        ..Config::default()
    };
    let seed = options.seed.unwrap_or_else(any_seed);
    config.rng_seed = RngSeed::Fixed(seed);
    let new_server = core::cell::RefCell::new(&mut new_server);
    let freedom = Freedom::new((new_server.borrow_mut())().blocks())
        .with_faults(options.faults)
        .with_leaving(options.leaving)
        .with_fua(options.fua);
    let result = TestRunner::new(config).run(&schedule(freedom, options.steps), |schedule| {
        let mut server = (new_server.borrow_mut())();
        match judge(&mut server, &schedule, options.single_connection) {
            Ok(()) => Ok(()),
            Err(why) => Err(TestCaseError::fail(why)),
        }
    });
    match result {
        Ok(()) => Ok(()),
        Err(TestError::Fail(why, schedule)) => {
            let found = Counterexample {
                schedule,
                explanation: why.message().to_string(),
                seed,
            };
            Err(found.shrunk(|schedule| {
                let mut server = (new_server.borrow_mut())();
                judge(&mut server, schedule, options.single_connection).err()
            }))
        }
        Err(TestError::Abort(why)) => Err(Counterexample {
            schedule: Schedule::new(0, alloc::vec::Vec::new()),
            explanation: why.message().to_string(),
            seed,
        }),
    }
}

fn any_seed() -> u64 {
    RandomState::new().hash_one(0)
}

fn judge<S: Server>(server: &mut S, schedule: &Schedule, single: bool) -> Result<(), String> {
    let played = play(server, schedule).map_err(|why| why.to_string())?;
    if !played.multi_conn && !single {
        let why = Trouble::new("multi-conn is not advertised, so there is nothing to try");
        return Err(why.to_string());
    }
    played.judge().map_err(|why| why.to_string())
}

/// A server is flush-consistent: the same as [`find_violation`], for a test.
///
/// # Panics
///
/// If the server breaks its promise, with the counterexample as message.
pub fn prop_flush_consistent<S: Server>(options: &Options, new_server: impl FnMut() -> S) {
    if let Err(counterexample) = find_violation(options, new_server) {
        // A property says what is wrong by failing its test; it is no part of any program.
        panic!("the server is not flush-consistent\n\n{counterexample}");
    }
}
