//! What keeps the promise is never accused.

use nbd_proto::conformance::backend::{Failure, Kind};
use nbd_proto::conformance::property::{Coordinated, ModelServer, Options, prop_flush_consistent};
use nbd_proto::flush::{Acknowledge, AfterFailure, Config, Mode, Overlap, ThreadModel, TrackDirty};

use crate::toy::{Care, Toy};

/// The coordinator keeps its promise over this kind of backend.
fn holds(options: Options, config: Config, kind: Kind) {
    let config = config.with_granule(kind.granule() * ModelServer::<Coordinated>::BLOCK);
    prop_flush_consistent(&options, || {
        ModelServer::new(Coordinated::new(config), kind, 6)
    });
}

/// The same schedules in every run, unless the environment asks for others.
fn options() -> Options {
    let number = |name| std::env::var(name).ok().and_then(|it| it.parse().ok());
    let options = Options::new().with_cases(40);
    match (number("PROPTEST_CASES"), number("PROPTEST_RNG_SEED")) {
        (cases, None) => options.with_cases(cases.unwrap_or(40) as u32),
        (cases, seed) => options
            .with_cases(cases.unwrap_or(40) as u32)
            .with_seed(seed),
    }
}

const CACHES: [Kind; 6] = [
    Kind::per_connection(),
    Kind::per_connection().with_self_coherent(true),
    Kind::per_connection().with_loads_on_open(true),
    Kind::per_connection()
        .with_volatile_storage(true)
        .with_fua(true),
    Kind::granular(2),
    Kind::granular(4).with_volatile_storage(true),
];

#[test]
fn emulation_holds_over_every_cache_that_keeps_the_contract() {
    for kind in CACHES {
        holds(options(), Config::new(), kind);
        holds(options(), Config::new().with_mode(Mode::Emulate), kind);
    }
}

#[test]
fn every_level_of_tracking_holds() {
    for level in [TrackDirty::Fast, TrackDirty::Off] {
        let config = Config::new().with_track_dirty(level);
        holds(options(), config, Kind::per_connection());
        holds(options(), config, Kind::shared());
    }
}

#[test]
fn a_shared_cache_holds_with_and_without_emulation() {
    for mode in [Mode::Auto, Mode::Plugin, Mode::Emulate, Mode::Unsafe] {
        for fua in [false, true] {
            let config = Config::new().with_mode(mode);
            holds(options(), config, Kind::shared().with_fua(fua));
        }
    }
}

#[test]
fn a_backend_without_cache_holds_in_every_mode() {
    for mode in [Mode::Auto, Mode::Emulate, Mode::Unsafe] {
        let config = Config::new().with_mode(mode);
        holds(options(), config, Kind::without_cache());
    }
}

#[test]
fn every_way_to_acknowledge_holds_that_promises_anything() {
    for when in [Acknowledge::WriteThrough, Acknowledge::OnReceipt] {
        for kind in [Kind::per_connection(), Kind::shared().with_fua(true)] {
            holds(options(), Config::new().with_acknowledge(when), kind);
        }
    }
}

#[test]
fn coherent_reads_and_calls_one_at_a_time_hold() {
    let coherent = Config::new().with_overlap(Overlap::Coherent);
    let serial = Config::new().with_thread_model(ThreadModel::SerializeRequests);
    for kind in [Kind::per_connection(), Kind::granular(3)] {
        holds(options(), coherent, kind);
        holds(options(), serial, kind);
    }
}

#[test]
fn failures_are_told_and_nothing_is_promised_that_is_gone() {
    let options = options().with_faults(true);
    for failure in [Failure::Keeps, Failure::Drops, Failure::Forgets] {
        for kind in [Kind::per_connection(), Kind::shared(), Kind::granular(2)] {
            holds(options, Config::new(), kind.with_failure(failure));
        }
    }
}

#[test]
fn a_retry_holds_where_failed_flushes_keep_the_data() {
    let options = options().with_faults(true).with_leaving(false);
    for kind in [Kind::per_connection(), Kind::shared(), Kind::granular(2)] {
        assert!(kind.survives_retry());
        let config = Config::new().with_after_failure(AfterFailure::Retry);
        holds(options, config, kind);
    }
}

#[test]
fn one_connection_is_enough_where_multi_conn_is_not_advertised() {
    let options = options().with_single_connection(true);
    for mode in [Mode::Disable, Mode::Plugin] {
        let config = Config::new().with_mode(mode);
        let kind = Kind::per_connection().with_self_coherent(true);
        holds(options, config, kind);
    }
}

#[test]
fn another_coordinator_that_takes_care_of_everything_holds() {
    for kind in [
        Kind::per_connection(),
        Kind::per_connection().with_volatile_storage(true),
        Kind::per_connection().with_loads_on_open(true),
    ] {
        prop_flush_consistent(&options(), || {
            ModelServer::new(Toy::new(Care::ALL), kind, 6)
        });
    }
}
