//! Random schedules: whatever clients, backend and caches do, the promise holds, and everybody
//! is answered.

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use nbd_proto::flush::{
    Acknowledge, AfterFailure, Backend, Command, Config, FuaOnReads, Mode, Overlap, ThreadModel,
    TrackDirty,
};
use nbd_proto::wire::CommandType;

use crate::counters;
use crate::world::{CELLS, Fault, Load, World};

/// What happens next. Numbers choose among what is possible, so that any list of steps is a
/// schedule, and shrinks to one.
#[derive(Clone, Copy, Debug)]
enum Step {
    Send {
        conn: usize,
        kind: CommandType,
        cell: u64,
        count: u64,
        fua: bool,
        load: Load,
    },
    Flush {
        conn: usize,
    },
    Poll,
    Finish {
        which: usize,
        fails: bool,
    },
    FinishFlush {
        which: usize,
        fault: Option<Fault>,
    },
    WriteBack {
        conn: usize,
        cell: u64,
    },
    Connect,
    Opened,
    Disconnect {
        conn: usize,
    },
    Lose {
        conn: usize,
    },
    Revoke {
        conn: usize,
    },
    PollOne,
    /// Also of connections that are being opened, or are leaving.
    EndAny {
        conn: usize,
        lost: bool,
    },
    Reset,
}

impl Step {
    fn without_faults(self) -> Self {
        match self {
            Self::Finish { which, .. } => {
                let fails = false;
                Self::Finish { which, fails }
            }
            Self::FinishFlush { which, .. } => {
                let fault = None;
                Self::FinishFlush { which, fault }
            }
            Self::Lose { conn } => Self::Disconnect { conn },
            Self::EndAny { conn, .. } => Self::EndAny { conn, lost: false },
            Self::Reset => Self::Poll,
            other => other,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Freedom {
    faults: bool,
    leaving: bool,
    revoking: bool,
    /// Actions are taken one by one, connections end in any phase, failures are reset.
    anything: bool,
}

impl Freedom {
    const fn new(faults: bool, leaving: bool) -> Self {
        Self {
            faults,
            leaving,
            revoking: false,
            anything: false,
        }
    }

    const fn with_revoking(mut self) -> Self {
        self.revoking = true;
        self
    }

    const fn with_anything(mut self) -> Self {
        self.anything = true;
        self
    }
}

fn step(freedom: Freedom) -> impl Strategy<Value = Step> {
    let load = prop_oneof![
        2 => Just(Load::Late),
        2 => Just(Load::Early),
        1 => Just(Load::Everything),
    ];
    let kind = prop_oneof![
        4 => Just(CommandType::WRITE),
        4 => Just(CommandType::READ),
        1 => Just(CommandType::WRITE_ZEROES),
        1 => Just(CommandType::TRIM),
        1 => Just(CommandType::CACHE),
        1 => Just(CommandType::BLOCK_STATUS),
    ];
    let send = (
        any::<usize>(),
        kind,
        0..CELLS,
        1..4u64,
        prop::bool::weighted(0.15),
        load,
    );
    let send = send.prop_map(|(conn, kind, cell, count, fua, load)| Step::Send {
        conn,
        kind,
        cell,
        count: count.min(CELLS - cell),
        fua,
        load,
    });
    let faults = u32::from(freedom.faults);
    let leaving = u32::from(freedom.leaving);
    let anything = u32::from(freedom.anything);
    let revoked = prop::bool::weighted(if freedom.revoking { 0.75 } else { 0.0 });
    let end = (any::<usize>(), revoked).prop_map(|(conn, revoked)| match revoked {
        true => Step::Revoke { conn },
        false => Step::Disconnect { conn },
    });
    let fault = prop_oneof![
        12 => Just(None),
        faults => prop_oneof![Just(Some(Fault::Keep)), Just(Some(Fault::Drop))],
    ];
    let ends = if freedom.revoking { 4 } else { 1 };
    let comes_and_goes = prop_oneof![
        1 => Just(Step::Connect),
        1 => Just(Step::Opened),
        ends => end,
        faults => any::<usize>().prop_map(|conn| Step::Lose { conn }),
    ];
    let lost = prop::bool::weighted(0.5 * f64::from(faults));
    let any_end = (any::<usize>(), lost).prop_map(|(conn, lost)| Step::EndAny { conn, lost });
    let anything_else = prop_oneof![
        8 => Just(Step::PollOne),
        leaving => any_end,
        faults => Just(Step::Reset),
    ];
    prop_oneof![
        12 => send,
        4 => any::<usize>().prop_map(|conn| Step::Flush { conn }),
        8 => Just(Step::Poll),
        10 => (any::<usize>(), prop::bool::weighted(0.05 * f64::from(faults)))
            .prop_map(|(which, fails)| Step::Finish { which, fails }),
        8 => (any::<usize>(), fault)
            .prop_map(|(which, fault)| Step::FinishFlush { which, fault }),
        2 => (any::<usize>(), 0..CELLS)
            .prop_map(|(conn, cell)| Step::WriteBack { conn, cell }),
        leaving * (2 + ends + faults) => comes_and_goes,
        anything * (8 + leaving + faults) => anything_else,
    ]
}

impl Step {
    /// The same, but without failures unless they are wanted.
    fn with_faults(self, wanted: bool) -> Self {
        match self {
            Self::Finish { which, .. } if !wanted => Self::Finish {
                which,
                fails: false,
            },
            Self::FinishFlush { which, .. } if !wanted => Self::FinishFlush { which, fault: None },
            Self::Lose { conn } if !wanted => Self::Disconnect { conn },
            Self::EndAny { conn, .. } if !wanted => Self::EndAny { conn, lost: false },
            Self::Reset if !wanted => Self::Poll,
            step => step,
        }
    }
}

fn apply(world: &mut World, step: Step, policy: AfterFailure) {
    let usable: Vec<usize> = (0..world.connections.len())
        .filter(|&at| world.connections[at].open && !world.connections[at].leaving)
        .collect();
    let pick = |from: &[usize], which: usize| (!from.is_empty()).then(|| from[which % from.len()]);
    match step {
        Step::Send {
            conn,
            kind,
            cell,
            count,
            fua,
            load,
        } => {
            if let Some(conn) = pick(&usable, conn) {
                let command = Command::new(kind, cell, count).with_fua(fua);
                world.send_loading(conn, command, load);
            }
        }
        Step::Flush { conn } => {
            if let Some(conn) = pick(&usable, conn) {
                world.flush(conn);
            }
        }
        Step::Poll => {
            world.poll();
        }
        Step::Finish { which, fails } => {
            if !world.executing.is_empty() {
                let at = which % world.executing.len();
                let result = if fails {
                    Err(nbd_proto::wire::Errno::ENOSPC)
                } else {
                    Ok(())
                };
                world.finish(at, result);
            }
        }
        Step::FinishFlush { which, fault } => {
            if !world.flushing.is_empty() {
                // What retry promises, it promises for backends that keep the data.
                let fault = fault.map(|fault| match policy {
                    AfterFailure::Retry => Fault::Keep,
                    _ => fault,
                });
                world.finish_flush(which % world.flushing.len(), fault);
            }
        }
        Step::WriteBack { conn, cell } => {
            if !world.connections.is_empty() {
                world.write_back(conn % world.connections.len(), cell);
            }
        }
        Step::Connect => {
            if world.connections.len() < 8 {
                world.connect(0);
            }
        }
        Step::Opened => {
            let opening = (0..world.connections.len())
                .find(|&at| !world.connections[at].open && !world.connections[at].leaving);
            if let Some(at) = opening {
                world.opened(at).expect("the backend suits the mode");
            }
        }
        Step::Disconnect { conn } => {
            if let Some(conn) = pick(&usable, conn) {
                world.disconnect(conn);
            }
        }
        Step::Lose { conn } => {
            if let Some(conn) = pick(&usable, conn) {
                world.lose(conn);
            }
        }
        Step::PollOne => {
            world.poll_one();
        }
        Step::EndAny { conn, lost } => {
            let there: Vec<usize> = (0..world.connections.len())
                .filter(|&at| !world.connections[at].released)
                .collect();
            match pick(&there, conn) {
                Some(conn) if lost => world.lose(conn),
                Some(conn) => world.disconnect(conn),
                None => {}
            }
        }
        Step::Reset => world.reset(),
        Step::Revoke { conn } => {
            let there: Vec<usize> = (0..world.connections.len())
                .filter(|&at| !world.connections[at].released)
                .collect();
            if let Some(conn) = pick(&there, conn) {
                world.revoke(conn);
            }
        }
    }
}

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
