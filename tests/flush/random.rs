//! Random schedules: whatever clients, backend and caches do, the promise holds, and everybody
//! is answered.

mod steps;

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use nbd_proto::flush::{
    Acknowledge, AfterFailure, Backend, Config, FuaOnReads, Mode, Overlap, ThreadModel, TrackDirty,
};

use crate::counters;
use crate::world::{CELLS, World};
use steps::{Freedom, Step, apply, step};

fn level() -> impl Strategy<Value = TrackDirty> {
    prop_oneof![
        3 => Just(TrackDirty::Connection),
        1 => Just(TrackDirty::Fast),
        1 => Just(TrackDirty::Off),
    ]
}

fn run(config: Config, backend: Backend, setup: (usize, bool, bool), steps: &[Step]) {
    run_mixed(config, backend, setup, false, steps);
}

fn run_mixed(
    config: Config,
    backend: Backend,
    (connections, self_coherent, load_on_open): (usize, bool, bool),
    some_through: bool,
    steps: &[Step],
) {
    let backend = backend
        .with_self_coherent(self_coherent)
        .with_loads_on_open(load_on_open);
    let mut world = World::new(config, backend);
    world.self_coherent = self_coherent;
    world.load_on_open = load_on_open;
    world.some_through = some_through;
    play(world, connections, steps);
}

fn play(mut world: World, connections: usize, steps: &[Step]) {
    let policy = world.coordinator.config().after_failure();
    for _ in 0..connections {
        world.open();
    }
    for &step in steps {
        apply(&mut world, step, policy);
    }
    counters::check(&world);
    world.settle();
    counters::check(&world);
    let emulated = !world.own && !world.shared;
    counters::check_explanations(&mut world, emulated);
    let last = (0..world.connections.len())
        .find(|&at| world.connections[at].open && !world.connections[at].leaving);
    if let Some(last) = last {
        world.flush(last);
        world.settle();
        for cell in 0..CELLS {
            world.read(last, cell, 1);
        }
        world.settle();
    }
    for at in 0..world.connections.len() {
        if !world.connections[at].leaving {
            world.disconnect(at);
        }
    }
    world.settle();
    world.check_all_answered();
}

/// How flushes work, from the shape of caches and the mode.
#[derive(Clone, Copy, Debug)]
enum Way {
    Emulate,
    Shared,
    Own,
}

fn way() -> impl Strategy<Value = Way> {
    prop_oneof![
        2 => Just(Way::Emulate),
        1 => Just(Way::Shared),
        1 => Just(Way::Own),
    ]
}

fn policy() -> impl Strategy<Value = AfterFailure> {
    prop_oneof![Just(AfterFailure::Sticky), Just(AfterFailure::Retry)]
}

fn world(config: Config, way: Way, (self_coherent, load_on_open): (bool, bool)) -> World {
    let shared = matches!(way, Way::Shared);
    // Where a connection is on its own, nobody invalidates what it has cached.
    let self_coherent = self_coherent || matches!(way, Way::Own);
    let mode = match way {
        Way::Emulate | Way::Shared => Mode::Auto,
        Way::Own => Mode::Plugin,
    };
    let backend = caching()
        .with_multi_conn(shared)
        .with_self_coherent(self_coherent)
        .with_loads_on_open(load_on_open);
    let mut world = World::new(config.with_mode(mode), backend);
    world.self_coherent = self_coherent;
    world.load_on_open = load_on_open && !shared;
    world.shared = shared;
    world.own = matches!(way, Way::Own);
    // Outside emulation only a shared cache keeps an order.
    world.unordered = world.own || (config.overlap() == Overlap::Ignore && !shared);
    world
}

fn caching() -> Backend {
    Backend::new().with_flush(true)
}

/// The same schedules in every run, unless the environment asks for others (`PROPTEST_CASES`,
/// `PROPTEST_RNG_SEED`).
fn config() -> ProptestConfig {
    let mut config = ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = 1500;
    }
    if std::env::var_os("PROPTEST_RNG_SEED").is_none() {
        config.rng_seed = RngSeed::Fixed(0x6e62_6470);
    }
    config
}

proptest! {
    #![proptest_config(config())]

    /// No failures, nobody leaves: the plain promise.
    #[test]
    fn the_promise_holds(
        setup in (1..4usize, any::<bool>(), any::<bool>()),
        level in level(),
        steps in prop::collection::vec(step(Freedom::new(false, false)), 1..120),
    ) {
        let config = Config::new().with_mode(Mode::Emulate).with_track_dirty(level);
        run(config, caching(), setup, &steps);
    }

    /// Connections come and go.
    #[test]
    fn the_promise_holds_while_connections_come_and_go(
        setup in (1..4usize, any::<bool>(), any::<bool>()),
        level in level(),
        steps in prop::collection::vec(step(Freedom::new(false, true)), 1..120),
    ) {
        let config = Config::new().with_track_dirty(level);
        run(config, caching(), setup, &steps);
    }

    /// Flushes and commands fail, handles are lost.
    #[test]
    fn the_promise_holds_when_things_fail(
        setup in (1..4usize, any::<bool>(), any::<bool>()),
        level in level(),
        retry in any::<bool>(),
        steps in prop::collection::vec(step(Freedom::new(true, true)), 1..120),
    ) {
        let policy = if retry { AfterFailure::Retry } else { AfterFailure::Sticky };
        let config = Config::new().with_track_dirty(level).with_after_failure(policy);
        run(config, caching(), setup, &steps);
    }

    /// What the coordinator tells of itself is true, also where it promises nothing.
    #[test]
    fn counters_and_explanations_are_true_in_every_mode(
        mode in prop_oneof![
            Just(Mode::Auto), Just(Mode::Plugin), Just(Mode::Disable), Just(Mode::Unsafe),
        ],
        shared in any::<bool>(),
        setup in (1..4usize, any::<bool>(), any::<bool>()),
        level in level(),
        steps in prop::collection::vec(step(Freedom::new(false, true)), 1..80),
    ) {
        let config = Config::new().with_mode(mode).with_track_dirty(level);
        let (connections, self_coherent, loads_on_open) = setup;
        let backend = caching()
            .with_multi_conn(shared)
            .with_self_coherent(self_coherent)
            .with_loads_on_open(loads_on_open);
        let mut world = World::new(config, backend);
        world.promises = false;
        for _ in 0..connections {
            world.open();
        }
        for &step in &steps {
            apply(&mut world, step, config.after_failure());
            counters::check(&world);
        }
        world.settle();
        counters::check_explanations(&mut world, mode == Mode::Auto && !shared);
        counters::check(&world);
    }

    /// As few ranges as possible are remembered.
    #[test]
    fn the_promise_holds_with_merged_ranges(
        setup in (2..4usize, any::<bool>(), any::<bool>()),
        max_ranges in 1..4u32,
        granule in 1..4u32,
        steps in prop::collection::vec(step(Freedom::new(true, true)), 1..120),
    ) {
        let config = Config::new().with_max_ranges(max_ranges).with_granule(granule);
        run(config, caching(), setup, &steps);
    }

    /// Every other handle caches nothing.
    #[test]
    fn the_promise_holds_beside_handles_that_cache_nothing(
        setup in (2..5usize, any::<bool>(), any::<bool>()),
        level in level(),
        granule in 1..3u32,
        steps in prop::collection::vec(step(Freedom::new(true, true)), 1..120),
    ) {
        let config = Config::new().with_track_dirty(level).with_granule(granule).with_max_ranges(2);
        run_mixed(config, caching(), setup, true, &steps);
    }

    /// A handle is called for one thing at a time.
    #[test]
    fn the_promise_holds_with_one_call_at_a_time(
        setup in (1..4usize, any::<bool>(), any::<bool>()),
        level in level(),
        granule in 1..3u32,
        max_ranges in prop_oneof![Just(1u32), Just(2), Just(1024)],
        retry in any::<bool>(),
        some_through in prop::bool::weighted(0.2),
        faults in any::<bool>(),
        steps in prop::bool::ANY.prop_flat_map(|leaving| {
            prop::collection::vec(step(Freedom::new(true, leaving)), 1..120)
        }),
    ) {
        let policy = if retry { AfterFailure::Retry } else { AfterFailure::Sticky };
        let config = Config::new()
            .with_thread_model(ThreadModel::SerializeRequests)
            .with_track_dirty(level)
            .with_granule(granule)
            .with_max_ranges(max_ranges)
            .with_after_failure(policy);
        let steps: Vec<Step> = steps.into_iter().map(|step| step.with_faults(faults)).collect();
        run_mixed(config, caching(), setup, some_through, &steps);
    }

    /// A read with FUA comes after a flush.
    #[test]
    fn the_promise_holds_where_reads_with_fua_are_flushes_too(
        setup in (1..4usize, any::<bool>(), any::<bool>()),
        level in level(),
        serialized in any::<bool>(),
        retry in any::<bool>(),
        faults in any::<bool>(),
        steps in prop::collection::vec(step(Freedom::new(true, true)), 1..120),
    ) {
        let policy = if retry { AfterFailure::Retry } else { AfterFailure::Sticky };
        let model = if serialized { ThreadModel::SerializeRequests } else { ThreadModel::Parallel };
        let config = Config::new()
            .with_fua_on_reads(FuaOnReads::Preflush)
            .with_thread_model(model)
            .with_track_dirty(level)
            .with_after_failure(policy);
        let steps: Vec<Step> = steps.into_iter().map(|step| step.with_faults(faults)).collect();
        run(config, caching(), setup, &steps);
    }

    /// Reads find what others have modified, without any flush.
    #[test]
    fn reads_are_coherent_without_flushes(
        setup in (1..4usize, any::<bool>(), any::<bool>()),
        level in level(),
        serialized in any::<bool>(),
        granule in 1..3u32,
        max_ranges in prop_oneof![Just(2u32), Just(1024)],
        retry in any::<bool>(),
        some_through in prop::bool::weighted(0.2),
        faults in any::<bool>(),
        steps in prop::collection::vec(step(Freedom::new(true, true)), 1..120),
    ) {
        let policy = if retry { AfterFailure::Retry } else { AfterFailure::Sticky };
        let model = if serialized { ThreadModel::SerializeRequests } else { ThreadModel::Parallel };
        let config = Config::new()
            .with_overlap(Overlap::Coherent)
            .with_thread_model(model)
            .with_track_dirty(level)
            .with_granule(granule)
            .with_max_ranges(max_ranges)
            .with_after_failure(policy);
        let steps: Vec<Step> = steps.into_iter().map(|step| step.with_faults(faults)).collect();
        run_mixed(config, caching(), setup, some_through, &steps);
    }

    /// Writes are answered when they begin.
    #[test]
    fn the_promise_holds_from_acknowledgement_on_receipt(
        (way, policy, level) in (way(), policy(), level()),
        (connections, shape) in (1..4usize, any::<(bool, bool)>()),
        (granule, max_ranges) in prop_oneof![3 => Just((1, 1024)), 1 => (1..4u32, 1..4u32)],
        some_through in prop::bool::weighted(0.2),
        steps in prop::collection::vec(step(Freedom::new(true, true)), 1..120),
    ) {
        let config = Config::new()
            .with_acknowledge(Acknowledge::OnReceipt)
            .with_track_dirty(level)
            .with_after_failure(policy)
            .with_granule(granule)
            .with_max_ranges(max_ranges);
        let mut world = world(config, way, shape);
        world.some_through = some_through && matches!(way, Way::Emulate);
        play(world, connections, &steps);
    }

    /// A client reads what it was told is written, on receipt or on completion.
    #[test]
    fn a_connection_reads_what_it_was_told_is_written(
        (way, on_receipt, level) in (way(), prop::bool::weighted(0.8), level()),
        (connections, load_on_open) in (1..4usize, any::<bool>()),
        steps in prop::collection::vec(step(Freedom::new(false, true)), 1..120),
    ) {
        let when = if on_receipt { Acknowledge::OnReceipt } else { Acknowledge::OnCompletion };
        let config = Config::new().with_acknowledge(when).with_track_dirty(level);
        let mut world = world(config, way, (true, load_on_open));
        world.reads_back = true;
        play(world, connections, &steps);
    }

    /// Every modification is as if it carried FUA.
    #[test]
    fn what_is_answered_is_stable_with_write_through(
        (way, policy, level) in (way(), policy(), level()),
        (connections, shape) in (1..4usize, any::<(bool, bool)>()),
        steps in prop::collection::vec(step(Freedom::new(true, true)), 1..120),
    ) {
        let config = Config::new()
            .with_acknowledge(Acknowledge::WriteThrough)
            .with_track_dirty(level)
            .with_after_failure(policy);
        let mut world = world(config, way, shape);
        world.stable = true;
        play(world, connections, &steps);
    }

    /// Clients vanish, and send again through others what was not answered.
    #[test]
    fn no_late_write_of_a_revoked_connection_reverts_newer_data(
        (way, policy, level) in (way(), policy(), level()),
        (on_receipt, ordered, faults) in any::<(bool, bool, bool)>(),
        (connections, shape) in (2..5usize, any::<(bool, bool)>()),
        steps in prop::collection::vec(step(Freedom::new(true, true).with_revoking()), 1..120),
    ) {
        let when = if on_receipt { Acknowledge::OnReceipt } else { Acknowledge::OnCompletion };
        let overlap = if ordered { Overlap::OrderWrites } else { Overlap::Ignore };
        let config = Config::new()
            .with_acknowledge(when)
            .with_overlap(overlap)
            .with_track_dirty(level)
            .with_after_failure(policy);
        let mut world = world(config, way, (shape.0 || !faults, shape.1));
        world.reads_back = !faults;
        let calm = |step: &Step| if faults { *step } else { step.without_faults() };
        play(world, connections, &steps.iter().map(calm).collect::<Vec<_>>());
    }

    /// Caches fetch and write back whole granules, with what is around what was written.
    #[test]
    fn the_promise_holds_over_caches_that_write_back_granules(
        setup in (2..5usize, any::<bool>(), any::<bool>()),
        (policy, level) in (policy(), level()),
        overlap in prop_oneof![Just(Overlap::OrderWrites), Just(Overlap::Coherent)],
        (serialized, faults) in any::<(bool, bool)>(),
        some_through in prop::bool::weighted(0.2),
        granule in 2..5u32,
        max_ranges in prop_oneof![Just(1u32), Just(1024)],
        steps in prop::collection::vec(
            step(Freedom::new(true, true).with_revoking().with_anything()),
            1..120,
        ),
    ) {
        let model = if serialized { ThreadModel::SerializeRequests } else { ThreadModel::Parallel };
        let config = Config::new()
            .with_overlap(overlap)
            .with_thread_model(model)
            .with_track_dirty(level)
            .with_after_failure(policy)
            .with_granule(granule)
            .with_max_ranges(max_ranges);
        let (connections, self_coherent, load_on_open) = setup;
        let mut world = world(config, Way::Emulate, (self_coherent, load_on_open));
        world.some_through = some_through;
        world.granule = granule.into();
        let steps: Vec<Step> = steps.into_iter().map(|step| step.with_faults(faults)).collect();
        play(world, connections, &steps);
    }

    /// All options at once, in every combination.
    #[test]
    fn the_promise_holds_whatever_is_configured(
        (way, policy, level) in (way(), policy(), level()),
        overlap in prop_oneof![
            Just(Overlap::OrderWrites), Just(Overlap::Coherent), Just(Overlap::Ignore),
        ],
        acknowledge in prop_oneof![
            Just(Acknowledge::OnCompletion), Just(Acknowledge::OnReceipt),
            Just(Acknowledge::WriteThrough),
        ],
        (serialized, preflush, faults) in any::<(bool, bool, bool)>(),
        (granule, max_ranges) in prop_oneof![3 => Just((1, 1024)), 1 => (1..4u32, 1..4u32)],
        (connections, shape) in (1..5usize, any::<(bool, bool)>()),
        (some_through, granular) in (prop::bool::weighted(0.2), any::<bool>()),
        steps in prop::collection::vec(
            step(Freedom::new(true, true).with_revoking().with_anything()),
            1..120,
        ),
    ) {
        let model = if serialized { ThreadModel::SerializeRequests } else { ThreadModel::Parallel };
        let reads = if preflush { FuaOnReads::Preflush } else { FuaOnReads::Ignore };
        let config = Config::new()
            .with_overlap(overlap)
            .with_acknowledge(acknowledge)
            .with_thread_model(model)
            .with_fua_on_reads(reads)
            .with_track_dirty(level)
            .with_after_failure(policy)
            .with_granule(granule)
            .with_max_ranges(max_ranges);
        let mut world = world(config, way, shape);
        let emulated = matches!(way, Way::Emulate);
        world.some_through = some_through && emulated;
        if granular && emulated && overlap != Overlap::Ignore {
            world.granule = granule.into();
        }
        let steps: Vec<Step> = steps.into_iter().map(|step| step.with_faults(faults)).collect();
        play(world, connections, &steps);
    }
}
