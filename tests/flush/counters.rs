//! What the coordinator tells of itself: counters, what is uncovered, and why a flush would touch
//! a handle.

use nbd_proto::flush::{
    Acknowledge, AfterFailure, Backend, Command, Config, Conn, Explanation, FuaOnReads, Grouping,
    Mode, TrackDirty,
};
use nbd_proto::wire::{CommandType, Errno};

use crate::world::{Fault, Load, World};

/// What must be true of the counters at any time.
pub(crate) fn check(world: &World) {
    let counters = world.coordinator.counters();
    let preflush = world.coordinator.config().fua_on_reads() == FuaOnReads::Preflush;
    let flushes = world.sent.iter().filter(|it| match it.command.kind {
        CommandType::FLUSH => true,
        CommandType::READ => preflush && it.command.fua,
        _ => false,
    });
    assert!(counters.flushes <= flushes.count() as u64);
    assert_eq!(counters.backend_flushes, world.flushes.len() as u64);
    assert!(counters.skipped + counters.joined <= counters.flushes);
    assert!(counters.failed <= counters.flushes);
    let uncovered = world.coordinator.uncovered(&0).unwrap_or_default();
    assert_eq!(
        counters.covered + counters.given_up + uncovered.modifications,
        counters.modifications,
        "a modification is covered, given up or uncovered: {counters:?} {uncovered:?}"
    );
}

/// What is explained is what happens: every open connection's client sends a flush, one after the
/// other, with nothing else going on. Unless they are emulated, an explanation is about the
/// connection's own flush.
pub(crate) fn check_explanations(world: &mut World, emulated: bool) {
    let usable = |world: &World| -> Vec<usize> {
        (0..world.connections.len())
            .filter(|&at| world.connections[at].open && !world.connections[at].leaving)
            .collect()
    };
    for asks in usable(world) {
        let foretold: Vec<usize> = usable(world)
            .into_iter()
            .filter(|&at| at == asks || emulated)
            .filter(|&at| {
                let conn = world.connections[at].conn;
                world.coordinator.explain(conn).touches()
            })
            .collect();
        let reasons: Vec<_> = usable(world)
            .into_iter()
            .map(|at| (at, world.coordinator.explain(world.connections[at].conn)))
            .collect();
        let before = world.flushes.len();
        world.flush(asks);
        world.settle();
        let mut flushed = world.flushes[before..].to_vec();
        flushed.sort_unstable();
        flushed.dedup();
        assert_eq!(flushed, foretold, "connection {asks} flushes: {reasons:?}");
    }
}

fn caching() -> Backend {
    Backend::new().with_flush(true)
}

fn emulating(count: usize) -> World {
    let config = Config::new().with_mode(Mode::Emulate);
    World::with_connections(config, caching(), count)
}

fn conn(world: &World, at: usize) -> Conn {
    world.connections[at].conn
}

#[test]
fn a_skipped_flush_a_joined_one_and_a_round_are_told_apart() {
    let mut world = emulating(3);
    world.flush(0);
    world.write(0, 0, 1);
    world.write(1, 1, 1);
    world.settle();
    world.flush(0);
    world.flush(1);
    world.flush(2);
    world.settle();
    let counters = world.coordinator.counters();
    assert_eq!(
        (counters.flushes, counters.skipped, counters.joined),
        (4, 1, 2)
    );
    assert_eq!((counters.rounds, counters.backend_flushes), (1, 2));
    assert_eq!((counters.modifications, counters.covered), (2, 2));
    assert_eq!((counters.failed, counters.backend_failures), (0, 0));
    assert_eq!(counters, world.coordinator.group_counters(&0).unwrap());
}

#[test]
fn flushes_that_wait_for_the_same_next_round_share_it() {
    let mut world = emulating(2);
    world.write(0, 0, 1);
    world.settle();
    world.flush(0);
    world.poll();
    // What completes now is not covered by the round that runs.
    let write = world.write(1, 1, 1);
    world.finish(world.executing(write), Ok(()));
    for _ in 0..3 {
        world.flush(1);
    }
    let counters = world.coordinator.counters();
    assert_eq!((counters.flushes, counters.joined), (4, 2));
    world.settle();
    assert_eq!(world.coordinator.counters().rounds, 2);
}

#[test]
fn a_flush_covers_as_many_modifications_as_had_completed_when_it_started() {
    let config = Config::new().with_mode(Mode::Emulate);
    let mut world = World::with_connections(config, caching().with_self_coherent(true), 1);
    world.self_coherent = true;
    for cell in 0..3 {
        world.write(0, cell, 1);
    }
    world.settle();
    world.flush(0);
    world.poll();
    world.write(0, 4, 1);
    world.write(0, 5, 1);
    world.finish(0, Ok(()));
    world.settle();
    let counters = world.coordinator.counters();
    assert_eq!((counters.modifications, counters.covered), (5, 3));
    assert_eq!(world.coordinator.uncovered(&0).unwrap().modifications, 2);
}

#[test]
fn a_flush_of_ones_own_connection_joins_one_that_has_not_started() {
    let config = Config::new().with_mode(Mode::Disable);
    let mut world = World::with_connections(config, caching(), 2);
    world.promises = false;
    world.write(0, 0, 1);
    world.write(1, 1, 1);
    world.settle();
    world.flush(0);
    world.flush(0);
    world.flush(1);
    let counters = world.coordinator.counters();
    assert_eq!((counters.flushes, counters.joined), (3, 1));
    world.settle();
    assert_eq!(world.coordinator.counters().backend_flushes, 2);
}

#[test]
fn failures_of_handles_and_of_clients_flushes_are_counted_apart() {
    let config = Config::new().with_mode(Mode::Emulate);
    let config = config.with_after_failure(AfterFailure::Retry);
    let mut world = World::with_connections(config, caching(), 3);
    world.write(0, 0, 1);
    world.settle();
    world.flush(1);
    world.flush(2);
    world.poll();
    world.finish_flush(0, Some(Fault::Keep));
    world.settle();
    let counters = world.coordinator.counters();
    assert_eq!((counters.failed, counters.backend_failures), (2, 1));
    assert_eq!(counters.covered, 0);
    assert_eq!(world.coordinator.uncovered(&0).unwrap().modifications, 1);
}

#[test]
fn what_is_lost_with_its_handle_is_given_up() {
    let mut world = emulating(2);
    world.write(0, 0, 1);
    world.write(0, 4, 1);
    world.settle();
    world.lose(0);
    let counters = world.coordinator.counters();
    assert_eq!((counters.covered, counters.given_up), (0, 2));
}

#[test]
fn what_groups_have_counted_outlives_them() {
    let config = Config::new().with_mode(Mode::Emulate);
    let mut world = World::new(config.with_grouping(Grouping::ByExport), caching());
    for export in [3, 4] {
        let at = world.connect(export);
        world.opened(at).unwrap();
        world.write(at, u64::from(export), 1);
        world.settle();
        world.flush(at);
        world.settle();
    }
    assert_eq!(world.coordinator.group_counters(&3).unwrap().rounds, 1);
    world.disconnect(0);
    world.settle();
    assert_eq!(world.coordinator.group_counters(&3), None);
    assert_eq!(world.coordinator.uncovered(&3), None);
    assert_eq!(world.coordinator.counters().rounds, 2);
}

#[test]
fn waits_for_overlapping_writes_are_counted() {
    let mut world = emulating(2);
    world.write(0, 0, 2);
    world.settle();
    world.write(1, 1, 2);
    world.write(1, 5, 2);
    assert_eq!(world.coordinator.counters().overlap_waits, 1);
    world.settle();
}

#[test]
fn uncovered_is_measured_in_modifications_ranges_bytes_and_events() {
    let mut world = emulating(2);
    let empty = world.coordinator.uncovered(&0).unwrap();
    assert_eq!((empty.modifications, empty.age), (0, 0));
    world.write(0, 0, 2);
    world.settle();
    let one = world.coordinator.uncovered(&0).unwrap();
    assert_eq!((one.modifications, one.ranges, one.bytes), (1, 1, 2));
    world.write(0, 1, 2);
    world.write(1, 6, 1);
    world.settle();
    let more = world.coordinator.uncovered(&0).unwrap();
    assert_eq!((more.modifications, more.ranges, more.bytes), (3, 2, 4));
    assert!(more.age > one.age, "{more:?} {one:?}");
    world.flush(0);
    world.settle();
    let none = world.coordinator.uncovered(&0).unwrap();
    assert_eq!((none.modifications, none.ranges, none.bytes), (0, 0, 0));
    assert_eq!(none.age, 0);
}

#[test]
fn what_completes_during_a_flush_stays_uncovered_and_is_young() {
    let config = Config::new().with_mode(Mode::Emulate);
    let mut world = World::with_connections(config, caching().with_self_coherent(true), 1);
    world.self_coherent = true;
    world.write(0, 0, 1);
    world.settle();
    for _ in 0..100 {
        world.read(0, 0, 1);
        world.settle();
    }
    assert!(world.coordinator.uncovered(&0).unwrap().age >= 100);
    world.flush(0);
    world.poll();
    let write = world.write(0, 1, 1);
    let at = world.executing(write);
    world.finish(at, Ok(()));
    world.settle();
    let uncovered = world.coordinator.uncovered(&0).unwrap();
    assert_eq!(uncovered.modifications, 1);
    assert!(uncovered.age < 10, "{uncovered:?}");
}

#[test]
fn each_connection_is_told_why_it_would_be_flushed() {
    let mut world = emulating(4);
    let explain = |world: &World, at| world.coordinator.explain(conn(world, at));
    assert_eq!(explain(&world, 0), Explanation::Clean);
    world.load = Load::Early;
    world.read(1, 0, 1);
    world.settle();
    assert_eq!(explain(&world, 1), Explanation::Clean);
    world.write(0, 0, 1);
    world.settle();
    let dirty = explain(&world, 0);
    assert!(
        matches!(
            dirty,
            Explanation::WriteOut {
                modifications: 1,
                ..
            }
        ),
        "{dirty}"
    );
    assert_eq!(explain(&world, 1), Explanation::InvalidateAfterOthers);
    // It has served nobody, and may have loaded something when it was opened.
    assert_eq!(explain(&world, 2), Explanation::Gated);
    // The data reaches storage without a flush of the group.
    world.write_fua(3, 5, 1);
    world.settle();
    let opening = world.connect(0);
    assert_eq!(explain(&world, opening), Explanation::Opening);
    world.disconnect(opening);
    assert_eq!(explain(&world, opening), Explanation::Unknown);
}

#[test]
fn a_connection_that_has_served_nobody_is_not_flushed_while_a_client_waits() {
    let config = Config::new().with_mode(Mode::Emulate);
    let mut world = World::new(config, caching().with_loads_on_open(true));
    world.open();
    world.open();
    world.write(0, 0, 1);
    world.settle();
    let unused = world.coordinator.explain(conn(&world, 1));
    assert_eq!(unused, Explanation::Gated);
    assert!(!unused.touches());
    check_explanations(&mut world, true);
}

#[test]
fn a_shared_cache_is_flushed_through_the_connection_that_asks() {
    let mut world = World::with_connections(Config::new(), caching().with_multi_conn(true), 2);
    world.promises = false;
    assert_eq!(
        world.coordinator.explain(conn(&world, 1)),
        Explanation::Clean
    );
    world.write(0, 0, 1);
    world.settle();
    let shared = Explanation::Shared { modifications: 1 };
    assert_eq!(world.coordinator.explain(conn(&world, 1)), shared);
    world.flush(1);
    world.settle();
    assert_eq!(
        world.coordinator.explain(conn(&world, 0)),
        Explanation::Clean
    );
    let counters = world.coordinator.counters();
    assert_eq!((counters.covered, counters.backend_flushes), (1, 1));
}

#[test]
fn without_tracking_every_handle_is_flushed_and_that_is_said() {
    let config = Config::new().with_mode(Mode::Emulate);
    let config = config.with_track_dirty(TrackDirty::Off);
    let mut world = World::with_connections(config, caching(), 2);
    let explained = world.coordinator.explain(conn(&world, 1));
    assert_eq!(explained, Explanation::EveryHandle);
    check_explanations(&mut world, true);
}

#[test]
fn a_handle_without_flush_is_never_flushed() {
    let config = Config::new().with_mode(Mode::Plugin);
    let world = World::with_connections(config, Backend::new(), 1);
    let explained = world.coordinator.explain(conn(&world, 0));
    assert_eq!(explained, Explanation::CannotFlush);
    assert_eq!(explained.to_string(), "not flushed: it has no flush");
}

#[test]
fn a_handle_without_flush_is_not_flushed_for_a_shared_cache_either() {
    let config = Config::new();
    for config in [config, config.with_acknowledge(Acknowledge::IgnoreFlush)] {
        let mut world = World::with_connections(config, caching().with_multi_conn(true), 1);
        let through = Backend::new()
            .with_multi_conn(true)
            .with_caches_nothing(true);
        let at = world.connect(0);
        world.coordinator.opened(conn(&world, at), through).unwrap();
        world.write(0, 0, 1);
        world.settle();
        let explained = world.coordinator.explain(conn(&world, at));
        assert_eq!(explained, Explanation::Clean);
    }
}

#[test]
fn a_failure_that_stands_is_known_before_the_flush() {
    let mut world = emulating(2);
    assert_eq!(world.coordinator.standing_failure(conn(&world, 1)), None);
    world.write(0, 0, 1);
    world.settle();
    world.flush(0);
    world.poll();
    world.finish_flush(0, Some(Fault::Drop));
    world.settle();
    let standing = world.coordinator.standing_failure(conn(&world, 1));
    assert_eq!(standing, Some(Errno::EIO));
    world.coordinator.reset(&0);
    assert_eq!(world.coordinator.standing_failure(conn(&world, 1)), None);
}

#[test]
fn modifications_that_need_no_flush_are_covered_at_once() {
    let config = Config::new().with_mode(Mode::Plugin);
    let mut world = World::with_connections(config, caching().with_fua(true), 1);
    let command = Command::new(CommandType::WRITE, 0, 1).with_fua(true);
    world.send(0, command);
    world.settle();
    let counters = world.coordinator.counters();
    assert_eq!((counters.modifications, counters.covered), (1, 1));
    assert_eq!(counters.backend_flushes, 0);
}
