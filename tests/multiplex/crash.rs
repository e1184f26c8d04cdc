//! What a ledger calls durable, no crash of an honest server takes away.
//!
//! A client with one to four connections sends what a random schedule says to the crate's
//! coordinator over a model backend, connected as [`plan`](nbd_proto::multiplex::plan()) has it:
//! with multi-conn a flush on any one, without it a flush on each and every range pinned. Replies
//! arrive late and overtake each other. After *every* step the backend might crash: of each block
//! the worst is left of all that may be, and every write that the ledger calls durable by then has
//! to be there, or another that was not over when it was sent.
//!
//! That the property can fail is shown by ledgers that are fed wrongly, or believe in more than
//! the server has promised, and by backends that break their contract: each is caught within the
//! same schedules.
//!
//! The schedules are the same in every run, unless the environment asks for others
//! (`PROPTEST_CASES`, `PROPTEST_RNG_SEED`) to go through with servers that are right. The seed is
//! printed with what fails.

mod client;

use std::cell::RefCell;

use nbd_proto::conformance::backend::{Breach, Failure, Kind};
use nbd_proto::conformance::property::{Coordinated, ModelServer, Step as Inner};
use nbd_proto::conformance::strategy::schedule::{self, Freedom};
use nbd_proto::flush::{self, Acknowledge, Config, Mode, Overlap, ThreadModel, TrackDirty};
use nbd_proto::multiplex::{AfterFailure, AfterLoss, Scope};
use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestError, TestRunner};

use client::Client;

const BLOCKS: u32 = 8;
const MOST_CONNECTIONS: u32 = 4;
/// So many schedules for each setting.
const CASES: u32 = 16;
const SEED: u64 = 2021;

/// How the ledger is told of flushes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Feeding {
    /// Before they are sent.
    Right,
    /// When they are answered, as if they had been sent just then.
    FlushWhenReplied,
}

/// A server, and how its client goes about it.
#[derive(Clone, Copy, Debug)]
struct Setting {
    kind: Kind,
    config: Config,
    /// Whether commands and backend flushes fail.
    faults: bool,
    after_loss: AfterLoss,
    feeding: Feeding,
    /// What the client believes that a flush covers, whatever the plan says.
    believed: Option<Scope>,
    /// What the client takes a failure for; by default, what the coordinator does.
    doubts: Option<AfterFailure>,
}

impl Setting {
    /// Multi-conn as it comes, without failures.
    fn new(kind: Kind) -> Self {
        let granule = kind.granule() * ModelServer::<Coordinated>::BLOCK;
        Self {
            kind,
            config: Config::new().with_granule(granule),
            faults: false,
            after_loss: AfterLoss::Suspect,
            feeding: Feeding::Right,
            believed: None,
            doubts: None,
        }
    }

    fn mode(mut self, mode: Mode) -> Self {
        self.config = self.config.with_mode(mode);
        self
    }

    fn failing(mut self, policy: flush::AfterFailure) -> Self {
        self.faults = true;
        self.config = self.config.with_after_failure(policy);
        self
    }

    fn config(&self) -> Config {
        self.config
    }

    /// The client knows what the server does after a failure.
    fn ledger_after_failure(&self) -> AfterFailure {
        self.doubts.unwrap_or(match self.config.after_failure() {
            flush::AfterFailure::Retry => AfterFailure::Retry,
            _ => AfterFailure::Sticky,
        })
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// What the client sends, what the server does, or what befalls it.
    Inner(Inner),
    /// A reply arrives: one of those under way.
    Receive(usize),
}

/// More writes and flushes than in other schedules, and more that ends: what is never answered is
/// never durable.
fn steps(faults: bool) -> impl Strategy<Value = Vec<Step>> {
    let blocks = BLOCKS.into();
    let write = (schedule::connection(), 0..blocks, 1..=3u64).prop_map(|(conn, block, count)| {
        Inner::Write {
            conn,
            block,
            count,
            fua: false,
        }
    });
    let step = prop_oneof![
        12 => schedule::command(Freedom::new(blocks)).prop_map(Step::Inner),
        8 => write.prop_map(Step::Inner),
        4 => schedule::connection().prop_map(|conn| Step::Inner(Inner::Flush { conn })),
        60 => schedule::backend(blocks).prop_map(Step::Inner),
        24 => (0..8usize).prop_map(Step::Receive),
        3 * u32::from(faults) => schedule::fault().prop_map(Step::Inner),
        1 => schedule::coming_and_going().prop_map(Step::Inner),
    ];
    prop::collection::vec(step, 40..=200)
}

/// How much was tried.
#[derive(Clone, Copy, Debug, Default)]
struct Tried {
    crashes: usize,
    /// Writes that were called durable, once for each crash.
    durable: usize,
    multi_conn: bool,
}

fn run(setting: Setting, connections: u32, steps: &[Step]) -> Result<Tried, String> {
    let mut client = Client::new(setting, connections).map_err(|why| why.to_string())?;
    let mut tried = Tried {
        multi_conn: client.multi_conn(),
        ..Tried::default()
    };
    for (at, &step) in steps.iter().enumerate() {
        let done = client.step(step).map_err(|why| why.to_string());
        let durable = done.and_then(|()| client.crash());
        tried.crashes += 1;
        tried.durable += durable.map_err(|why| format!("after step {at}: {why}"))?;
    }
    Ok(tried)
}

fn config() -> ProptestConfig {
    let chosen = ProptestConfig::default();
    ProptestConfig {
        cases: match std::env::var_os("PROPTEST_CASES") {
            Some(_) => chosen.cases,
            None => CASES,
        },
        rng_seed: match chosen.rng_seed {
            RngSeed::Random => RngSeed::Fixed(SEED),
            fixed @ RngSeed::Fixed(_) => fixed,
        },
        failure_persistence: None,
        max_shrink_iters: chosen.max_shrink_iters.min(20_000),
        ..chosen
    }
}

/// Tries servers with the same schedules, which take longer to make than to go through: how much
/// that was for each, or how one failed.
fn attempt(settings: &[Setting], config: ProptestConfig) -> Result<Vec<Tried>, String> {
    let seed = config.rng_seed;
    let faults = settings.iter().any(|it| it.faults);
    let total = RefCell::new(vec![Tried::default(); settings.len()]);
    let schedules = (1..=MOST_CONNECTIONS, steps(faults));
    let result = TestRunner::new(config).run(&schedules, |(connections, steps)| {
        for (setting, total) in settings.iter().zip(&mut *total.borrow_mut()) {
            let tried = run(*setting, connections, &steps);
            let tried = tried.map_err(|why| TestCaseError::fail(format!("{why}\n{setting:?}")))?;
            total.crashes += tried.crashes;
            total.durable += tried.durable;
            total.multi_conn = tried.multi_conn;
        }
        Ok(())
    });
    match result {
        Ok(()) => Ok(total.into_inner()),
        Err(TestError::Fail(why, (connections, steps))) => Err(format!(
            "{why}\n{connections} connection(s), {seed:?}\n{steps:#?}"
        )),
        Err(TestError::Abort(why)) => Err(why.to_string()),
    }
}

/// No schedule fails, and the settings are such that it might have.
fn holds(settings: impl IntoIterator<Item = Setting>, multi_conn: bool) {
    let settings: Vec<_> = settings.into_iter().collect();
    let all = attempt(&settings, config()).unwrap_or_else(|why| panic!("{why}"));
    for (setting, tried) in settings.iter().zip(all) {
        assert_eq!(tried.multi_conn, multi_conn, "{setting:?}");
        let schedules = config().cases as usize;
        // On average.
        assert!(tried.crashes > 80 * schedules, "{tried:?} {setting:?}");
        assert!(tried.durable > 20 * schedules, "{tried:?} {setting:?}");
    }
}

/// Some schedule fails, and because a write is lost.
fn is_caught(setting: Setting) {
    // It is enough to know that there is one, among those that are tried by default.
    let config = ProptestConfig {
        cases: CASES,
        rng_seed: RngSeed::Fixed(SEED),
        max_shrink_iters: 0,
        ..config()
    };
    match attempt(&[setting], config) {
        Ok(tried) => panic!("not noticed in {tried:?}: {setting:?}"),
        Err(why) => assert!(why.contains("is called durable, but"), "{why}"),
    }
}

/// Every kind that keeps the contract.
fn honest() -> [Kind; 9] {
    let cached = Kind::per_connection();
    [
        cached,
        cached.with_fua(true),
        cached.with_loads_on_open(true).with_self_coherent(true),
        cached.with_volatile_storage(true),
        Kind::granular(2),
        Kind::granular(4).with_volatile_storage(true).with_fua(true),
        Kind::shared(),
        Kind::shared().with_fua(true),
        Kind::without_cache(),
    ]
}

fn caching() -> impl Iterator<Item = Kind> {
    honest().into_iter().filter(Kind::caches)
}

#[test]
fn with_multi_conn_no_crash_takes_what_is_called_durable() {
    holds(honest().map(Setting::new), true);
    let emulating = |kind| Setting::new(kind).mode(Mode::Emulate);
    holds([Kind::shared(), Kind::without_cache()].map(emulating), true);
}

#[test]
fn the_options_of_the_coordinator_make_no_difference() {
    let base = Setting::new(Kind::granular(2));
    let options = [
        base.config.with_track_dirty(TrackDirty::Fast),
        base.config.with_track_dirty(TrackDirty::Off),
        base.config.with_overlap(Overlap::Coherent),
        base.config.with_acknowledge(Acknowledge::OnReceipt),
        base.config.with_acknowledge(Acknowledge::WriteThrough),
        base.config
            .with_thread_model(ThreadModel::SerializeRequests),
    ];
    holds(options.map(|config| Setting { config, ..base }), true);
}

#[test]
fn a_server_that_flushes_those_who_leave_may_be_known_to() {
    let covered = |kind| Setting {
        after_loss: AfterLoss::Covered,
        ..Setting::new(kind)
    };
    holds(honest().map(covered), true);
}

#[test]
fn without_multi_conn_a_flush_on_each_connection_is_enough() {
    let disabled = caching().chain([Kind::shared()]);
    holds(
        disabled.map(|it| Setting::new(it).mode(Mode::Disable)),
        false,
    );
    let plugin = Setting::new(Kind::per_connection()).mode(Mode::Plugin);
    holds([plugin], false);
}

#[test]
fn what_is_lost_in_a_flush_that_fails_was_not_called_durable() {
    for failure in [Failure::Drops, Failure::Forgets] {
        let failing = |kind: Kind| {
            Setting::new(kind.with_failure(failure)).failing(flush::AfterFailure::Sticky)
        };
        holds(honest().map(failing), true);
        holds(caching().map(|it| failing(it).mode(Mode::Disable)), false);
    }
}

#[test]
fn a_backend_that_keeps_what_it_could_not_write_may_be_flushed_again() {
    let failing = |kind| Setting::new(kind).failing(flush::AfterFailure::Retry);
    holds(honest().map(failing), true);
    holds(caching().map(|it| failing(it).mode(Mode::Disable)), false);
}

/// As long as it is by the failure of its own flush that it hears of what was dropped. With FUA, or
/// where overlapping writes are put in order, it may be by that of a write, which says nothing of
/// other writes.
#[test]
fn a_client_that_doubts_needs_no_server_that_does() {
    for failure in [Failure::Drops, Failure::Forgets] {
        let kind = Kind::per_connection().with_failure(failure);
        let doubting = |mode| Setting {
            doubts: Some(AfterFailure::Sticky),
            ..Setting::new(kind)
                .failing(flush::AfterFailure::Retry)
                .mode(mode)
        };
        holds([Mode::Disable, Mode::Plugin].map(doubting), false);
    }
}

#[test]
fn a_ledger_that_is_told_of_flushes_when_they_are_answered_is_caught() {
    let wrong = |kind| Setting {
        feeding: Feeding::FlushWhenReplied,
        ..Setting::new(kind)
    };
    is_caught(wrong(Kind::per_connection()));
    is_caught(wrong(Kind::shared()));
    is_caught(wrong(Kind::per_connection()).mode(Mode::Disable));
}

#[test]
fn a_ledger_that_believes_in_multi_conn_where_there_is_none_is_caught() {
    for mode in [Mode::Disable, Mode::Plugin] {
        is_caught(Setting {
            believed: Some(Scope::AllConnections),
            ..Setting::new(Kind::per_connection()).mode(mode)
        });
    }
}

#[test]
fn a_server_that_claims_multi_conn_and_does_nothing_for_it_is_caught() {
    is_caught(Setting::new(Kind::per_connection()).mode(Mode::Unsafe));
}

#[test]
fn trying_again_where_a_failure_has_dropped_data_is_caught() {
    for failure in [Failure::Drops, Failure::Forgets] {
        let kind = Kind::per_connection().with_failure(failure);
        is_caught(Setting::new(kind).failing(flush::AfterFailure::Retry));
    }
}

#[test]
fn a_backend_that_makes_nothing_permanent_is_caught() {
    is_caught(Setting::new(Kind::lying()));
    is_caught(Setting::new(Kind::lying()).mode(Mode::Disable));
    for kind in [Kind::per_connection(), Kind::shared()] {
        is_caught(Setting::new(kind.with_breach(Breach::NotPermanent)));
    }
}

#[test]
fn a_backend_that_writes_again_what_was_overwritten_since_is_caught() {
    let kind = Kind::per_connection().with_breach(Breach::WritesAgain);
    is_caught(Setting::new(kind));
}
