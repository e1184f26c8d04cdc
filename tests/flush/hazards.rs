//! Schedules on which a coordinator that only keeps dirty bits loses data or serves old data.
//!
//! Connections are numbered from 0. Each test would fail without the rule it is about.

use nbd_proto::flush::{AfterFailure, Backend, Command, Config, Mode, TrackDirty};
use nbd_proto::wire::{CommandType, Errno};

use crate::world::{Fault, Load, World};

const EIO: Option<Result<(), Errno>> = Some(Err(Errno::EIO));
const OK: Option<Result<(), Errno>> = Some(Ok(()));

/// A cache per connection, filled by commands only.
fn caching() -> Backend {
    Backend::new().with_flush(true).with_loads_on_open(false)
}

fn emulate() -> Config {
    Config::new().with_mode(Mode::Emulate)
}

fn world(connections: usize) -> World {
    World::with_connections(emulate(), caching(), connections)
}

/// At every level, over handles that are coherent with themselves and over such that are not: the
/// flush that the latter need once more must not hide that something is missed.
fn each_world(connections: usize, test: impl Fn(World)) {
    for level in [TrackDirty::Connection, TrackDirty::Fast, TrackDirty::Off] {
        for coherent in [false, true] {
            let config = emulate().with_track_dirty(level);
            test(coherent_world(config, coherent, connections));
        }
    }
}

fn coherent_world(config: Config, coherent: bool, connections: usize) -> World {
    let backend = caching().with_self_coherent(coherent);
    let mut world = World::with_connections(config, backend, connections);
    world.self_coherent = coherent;
    world
}

/// Handles that load while they are opened.
fn loading_world(connections: usize) -> World {
    let mut world = World::new(emulate(), caching().with_loads_on_open(true));
    world.load_on_open = true;
    for _ in 0..connections {
        world.open();
    }
    world
}

#[test]
fn t1_a_write_that_ends_after_anothers_flush_is_covered_by_the_next_flush() {
    each_world(2, |mut world| {
        let x = world.write(0, 0, 1);
        let first = world.flush(1);
        world.poll();
        while !world.flushing.is_empty() {
            world.finish_flush(0, None);
            world.poll();
        }
        assert_eq!(world.reply(first), OK);
        let at = world.executing(x);
        world.finish(at, Ok(()));
        let second = world.flush(1);
        world.settle();
        assert_eq!(world.reply(second), OK);
        assert_eq!(world.store[0], x, "x is durable");
        let read = world.read(1, 0, 1);
        world.settle();
        assert_eq!(world.value(read), x);
    });
}

#[test]
fn t1_holds_in_plugin_mode_over_a_shared_volatile_cache() {
    for level in [TrackDirty::Connection, TrackDirty::Fast, TrackDirty::Off] {
        let config = Config::new()
            .with_mode(Mode::Plugin)
            .with_track_dirty(level);
        let backend = caching().with_multi_conn(true);
        let mut world = World::with_connections(config, backend, 2);
        // The model has a cache per handle; here only the calls count.
        world.promises = false;
        let x = world.write(0, 0, 1);
        world.flush(1);
        world.poll();
        while !world.flushing.is_empty() {
            world.finish_flush(0, None);
            world.poll();
        }
        let at = world.executing(x);
        world.finish(at, Ok(()));
        let before = world.flushes.len();
        let second = world.flush(1);
        world.poll();
        assert_eq!(world.reply(second), None);
        assert_eq!(world.flushes.len(), before + 1);
        world.settle();
        assert_eq!(world.reply(second), OK);
    }
}

#[test]
fn t2_a_flush_pipelined_behind_a_write_does_not_make_its_connection_clean() {
    each_world(1, |mut world| {
        let x = world.write(0, 0, 1);
        let first = world.flush(0);
        world.poll();
        while !world.flushing.is_empty() {
            world.finish_flush(0, None);
            world.poll();
        }
        // With some levels the flush is over; with others it waits for the write.
        if world.reply(first).is_some() {
            assert_eq!(world.reply(first), OK);
        }
        let at = world.executing(x);
        world.finish(at, Ok(()));
        world.settle();
        assert_eq!(world.reply(first), OK);
        let second = world.flush(0);
        world.settle();
        assert_eq!(world.reply(second), OK);
        assert_eq!(world.store[0], x);
    });
}

#[test]
fn t3_a_write_that_ends_while_its_handle_is_flushed_is_covered_by_the_next_flush() {
    each_world(2, |mut world| {
        world.write(0, 3, 1);
        world.finish(0, Ok(()));
        let first = world.flush(0);
        world.poll();
        assert!(world.is_flushing(0));
        let x = world.write(0, 0, 1);
        let at = world.executing(x);
        world.finish(at, Ok(()));
        let second = world.flush(1);
        assert_eq!(world.reply(second), None, "it may not join");
        world.settle();
        assert_eq!(world.reply(first), OK);
        assert_eq!(world.reply(second), OK);
        assert_eq!(world.store[0], x);
        let third = world.flush(1);
        world.settle();
        assert_eq!(world.reply(third), OK);
    });
}

#[test]
fn t3_holds_over_a_shared_volatile_cache() {
    let backend = caching().with_multi_conn(true);
    let mut world = World::with_connections(Config::new(), backend, 2);
    // The model has a cache per handle; here only the calls count.
    world.promises = false;
    world.write(0, 3, 1);
    world.finish(0, Ok(()));
    let first = world.flush(0);
    world.poll();
    world.write(0, 0, 1);
    world.finish(0, Ok(()));
    world.settle();
    assert_eq!(world.reply(first), OK);
    let second = world.flush(1);
    world.poll();
    assert_eq!(world.reply(second), None);
    assert_eq!(world.flushes.len(), 2);
    world.settle();
    assert_eq!(world.reply(second), OK);
}

#[test]
fn t3_fua_does_not_join_a_flush_that_began_before_it_was_executed() {
    each_world(1, |mut world| {
        world.write(0, 3, 1);
        world.finish(0, Ok(()));
        let flush = world.flush(0);
        world.poll();
        assert!(world.is_flushing(0));
        let x = world.write_fua(0, 0, 1);
        let at = world.executing(x);
        world.finish(at, Ok(()));
        world.finish_flush(0, None);
        world.poll();
        assert_eq!(world.reply(x), None, "it is not written out yet");
        world.settle();
        assert_eq!(world.reply(flush), OK);
        assert_eq!(world.reply(x), OK);
        assert_eq!(world.store[0], x);
    });
}

#[test]
fn t4_native_fua_counts_as_a_write_out_for_the_caches_of_others() {
    let config = Config::new().with_mode(Mode::Plugin);
    let mut world = World::with_connections(config, caching().with_fua(true), 2);
    world.promises = false;
    world.read(1, 0, 1);
    world.settle();
    let x = world.write_fua(0, 0, 1);
    world.settle();
    world.flush(0);
    world.settle();
    world.flush(1);
    world.settle();
    let read = world.read(1, 0, 1);
    world.settle();
    assert_eq!(world.value(read), x);
}

#[test]
fn t4_fua_covers_no_write_of_another_connection() {
    each_world(3, |mut world| {
        world.read(1, 0, 1);
        world.settle();
        let u = world.write_fua(2, 4, 1);
        let at = world.executing(u);
        world.finish(at, Ok(()));
        world.poll();
        world.finish_flush(0, None);
        // What connection 0 writes now is newer than the barrier, and connection 1 is flushed
        // after it.
        let x = world.write(0, 0, 1);
        let at = world.executing(x);
        world.finish(at, Ok(()));
        world.settle();
        assert_eq!(world.reply(u), OK);
        let flush = world.flush(1);
        world.settle();
        assert_eq!(world.reply(flush), OK);
        assert_eq!(world.store[0], x);
    });
}

#[test]
fn t5_fast_skips_a_flush_only_where_one_handle_covers_all() {
    let config = Config::new()
        .with_mode(Mode::Plugin)
        .with_track_dirty(TrackDirty::Fast);
    let mut world = World::with_connections(config, caching(), 2);
    world.promises = false;
    let x = world.write(0, 0, 1);
    world.settle();
    world.flush(1);
    world.settle();
    let own = world.flush(0);
    world.settle();
    assert_eq!(world.reply(own), OK);
    assert_eq!(world.store[0], x);
}

#[test]
fn t6_a_write_that_failed_may_have_had_an_effect_and_is_flushed() {
    let mut world = world(2);
    let x = world.write(0, 0, 1);
    let at = world.executing(x);
    world.finish(at, Err(Errno::EIO));
    let flush = world.flush(1);
    world.settle();
    assert_eq!(world.reply(flush), OK);
    assert_eq!(world.store[0], x);
}

#[test]
fn r1_what_is_read_between_the_flushes_of_a_round_is_dropped() {
    each_world(3, |mut world| {
        world.read(0, 0, 1);
        world.write(0, 5, 1);
        world.settle();
        let x = world.write(1, 0, 1);
        world.settle();
        let flush = world.flush(2);
        world.poll();
        let at = world.flushing(0);
        world.finish_flush(at, None);
        world.poll();
        // Connection 0 was flushed already, and caches the old data once more.
        world.read(0, 0, 1);
        world.finish(0, Ok(()));
        let at = world.flushing(1);
        world.finish_flush(at, None);
        world.settle();
        assert_eq!(world.reply(flush), OK);
        let read = world.read(0, 0, 1);
        world.settle();
        assert_eq!(world.value(read), x);
    });
}

#[test]
fn r2_a_read_that_is_held_across_a_round_leaves_nothing_old_behind() {
    each_world(3, |mut world| {
        let held = world.send_loading(0, Command::new(CommandType::READ, 0, 1), Load::Early);
        let x = world.write(1, 0, 1);
        let at = world.executing(x);
        world.finish(at, Ok(()));
        let flush = world.flush(2);
        world.poll();
        while !world.flushing.is_empty() {
            world.finish_flush(0, None);
            world.poll();
        }
        assert_eq!(world.reply(flush), None, "the held read may still cache");
        let at = world.executing(held);
        world.finish(at, Ok(()));
        world.settle();
        assert_eq!(world.reply(flush), OK);
        let read = world.read(0, 0, 1);
        world.settle();
        assert_eq!(world.value(read), x);
    });
}

#[test]
fn r2_what_cache_and_block_status_load_is_dropped_like_what_a_read_loads() {
    for kind in [CommandType::CACHE, CommandType::BLOCK_STATUS] {
        let mut world = world(2);
        let load = Command::new(kind, 0, 1);
        world.send_loading(0, load, Load::Everything);
        world.settle();
        let x = world.write(1, 0, 1);
        world.settle();
        let flush = world.flush(1);
        world.settle();
        assert_eq!(world.reply(flush), OK);
        let read = world.read(0, 0, 1);
        world.settle();
        assert_eq!(world.value(read), x);
    }
}

#[test]
fn r2_a_held_read_leaves_nothing_older_than_its_own_connections_write() {
    let mut world = world(1);
    let read = Command::new(CommandType::READ, 0, 1);
    let held = world.send_loading(0, read, Load::Early);
    let x = world.write(0, 0, 1);
    let at = world.executing(x);
    world.finish(at, Ok(()));
    let flush = world.flush(0);
    world.poll();
    world.finish_flush(0, None);
    world.poll();
    assert_eq!(world.reply(flush), None, "the held read may still cache");
    let at = world.executing(held);
    world.finish(at, Ok(()));
    world.settle();
    assert_eq!(world.reply(flush), OK);
    let read = world.read(0, 0, 1);
    world.settle();
    assert_eq!(world.value(read), x);
}

#[test]
fn r3_a_held_write_that_fills_its_neighbourhood_leaves_nothing_old_behind() {
    let mut world = world(3);
    let write = Command::new(CommandType::WRITE, 4, 1);
    let held = world.send_loading(0, write, Load::Everything);
    let x = world.write(1, 0, 1);
    let at = world.executing(x);
    world.finish(at, Ok(()));
    let flush = world.flush(2);
    world.poll();
    let at = world.flushing(1);
    world.finish_flush(at, None);
    world.poll();
    let at = world.executing(held);
    world.finish(at, Ok(()));
    world.settle();
    assert_eq!(world.reply(flush), OK);
    let read = world.read(0, 0, 1);
    world.settle();
    assert_eq!(world.value(read), x);
}

#[test]
fn r4_a_read_during_its_handles_own_flush_is_remembered_until_the_next_round() {
    let mut world = world(2);
    world.write(0, 7, 1);
    world.settle();
    let first = world.flush(0);
    world.poll();
    assert!(world.is_flushing(0));
    let read = world.send_loading(0, Command::new(CommandType::READ, 0, 1), Load::Early);
    let at = world.executing(read);
    world.finish(at, Ok(()));
    world.settle();
    assert_eq!(world.reply(first), OK);
    let x = world.write(1, 0, 1);
    world.settle();
    let second = world.flush(1);
    world.settle();
    assert_eq!(world.reply(second), OK);
    let read = world.read(0, 0, 1);
    world.settle();
    assert_eq!(world.value(read), x);
}

#[test]
fn r4_a_read_that_began_before_its_handles_own_flush_is_remembered_too() {
    let mut world = world(2);
    world.write(0, 7, 1);
    world.settle();
    let read = Command::new(CommandType::READ, 0, 1);
    let held = world.send_loading(0, read, Load::Early);
    // Written out for the sake of FUA, the handle is not stale afterwards.
    world.write_fua(0, 6, 1);
    let at = world.executing.len() - 1;
    world.finish(at, Ok(()));
    world.poll();
    world.finish_flush(0, None);
    world.poll();
    let at = world.executing(held);
    world.finish(at, Ok(()));
    world.settle();
    let x = world.write(1, 0, 1);
    world.settle();
    let flush = world.flush(1);
    world.settle();
    assert_eq!(world.reply(flush), OK);
    let read = world.read(0, 0, 1);
    world.settle();
    assert_eq!(world.value(read), x);
}

#[test]
fn r5_fua_invalidates_what_others_read_while_it_was_written_out() {
    let mut world = world(2);
    world.read(0, 0, 1);
    world.settle();
    let x = world.write_fua(1, 0, 1);
    let at = world.executing(x);
    world.finish(at, Ok(()));
    assert_eq!(
        world.reply(x),
        None,
        "not before it is on permanent storage"
    );
    world.poll();
    world.read(0, 0, 1);
    world.finish(0, Ok(()));
    world.settle();
    assert_eq!(world.reply(x), OK);
    assert_eq!(world.store[0], x);
    let read = world.read(0, 0, 1);
    world.settle();
    assert_eq!(world.value(read), x);
}

#[test]
fn e1_after_a_failed_flush_no_flush_of_the_group_succeeds() {
    let mut world = world(2);
    world.write(1, 0, 1);
    world.settle();
    let first = world.flush(0);
    world.poll();
    let at = world.flushing(1);
    world.finish_flush(at, Some(Fault::Drop));
    world.settle();
    assert_eq!(world.reply(first), EIO);
    for conn in [0, 1, 0] {
        let again = world.flush(conn);
        world.settle();
        assert_eq!(world.reply(again), EIO);
    }
    world.coordinator.reset(&0);
    world.forgive();
    let last = world.flush(0);
    world.settle();
    assert_eq!(world.reply(last), OK);
}

#[test]
fn e1_a_failure_ends_with_the_last_connection_that_was_told() {
    let mut world = world(1);
    world.write(0, 0, 1);
    world.settle();
    let flush = world.flush(0);
    world.poll();
    world.finish_flush(0, Some(Fault::Drop));
    world.settle();
    assert_eq!(world.reply(flush), EIO);
    world.disconnect(0);
    // The handle is flushed once more before it is closed.
    world.settle();
    assert!(world.connections[0].released);
    let next = world.open();
    let flush = world.flush(next);
    world.settle();
    assert_eq!(world.reply(flush), OK);
}

#[test]
fn e1_holds_for_a_connections_own_flushes_in_plugin_mode() {
    let config = Config::new().with_mode(Mode::Plugin);
    let mut world = World::with_connections(config, caching(), 2);
    world.promises = false;
    world.write(0, 0, 1);
    world.settle();
    let first = world.flush(0);
    world.poll();
    world.finish_flush(0, Some(Fault::Drop));
    world.settle();
    assert_eq!(world.reply(first), EIO);
    for (conn, result) in [(0, EIO), (1, OK), (0, EIO)] {
        let again = world.flush(conn);
        world.settle();
        assert_eq!(world.reply(again), result);
    }
}

#[test]
fn e1_under_retry_a_later_flush_writes_what_was_kept() {
    let config = emulate().with_after_failure(AfterFailure::Retry);
    for coherent in [false, true] {
        let mut world = coherent_world(config, coherent, 2);
        let x = world.write(1, 0, 1);
        world.settle();
        let first = world.flush(0);
        world.poll();
        world.finish_flush(0, Some(Fault::Keep));
        world.settle();
        assert_eq!(world.reply(first), EIO);
        let second = world.flush(0);
        world.settle();
        assert_eq!(world.reply(second), OK);
        assert_eq!(world.store[0], x);
        // Its owner was not told yet.
        let own = world.flush(1);
        world.settle();
        assert_eq!(world.reply(own), EIO);
        let own = world.flush(1);
        world.settle();
        assert_eq!(world.reply(own), OK);
    }
}

#[test]
fn e1_a_fua_command_whose_own_write_out_fails_fails() {
    let mut world = world(2);
    let u = world.write_fua(0, 0, 1);
    let at = world.executing(u);
    world.finish(at, Ok(()));
    world.poll();
    world.finish_flush(0, Some(Fault::Drop));
    world.settle();
    assert_eq!(world.reply(u), EIO);
}

#[test]
fn e2_the_failure_of_another_handle_is_its_owners_and_not_that_of_a_fua_command() {
    let mut world = world(2);
    world.write(0, 0, 1);
    world.settle();
    let u = world.write_fua(1, 4, 1);
    let at = world.executing(u);
    world.finish(at, Ok(()));
    world.poll();
    let at = world.flushing(1);
    world.finish_flush(at, None);
    world.poll();
    let at = world.flushing(0);
    world.finish_flush(at, Some(Fault::Drop));
    world.settle();
    assert_eq!(world.reply(u), OK);
    assert_eq!(world.store[4], u);
    let own = world.flush(0);
    world.settle();
    assert_eq!(world.reply(own), EIO);
}

#[test]
fn e2_a_handle_that_could_not_be_invalidated_for_fua_serves_nothing_old() {
    let mut world = world(2);
    world.read(0, 0, 1);
    world.settle();
    let u = world.write_fua(1, 0, 1);
    let at = world.executing(u);
    world.finish(at, Ok(()));
    world.poll();
    world.finish_flush(0, None);
    world.poll();
    let at = world.flushing(0);
    world.finish_flush(at, Some(Fault::Keep));
    world.settle();
    assert_eq!(world.reply(u), OK);
    let read = world.read(0, 0, 1);
    world.settle();
    assert_eq!(world.value(read), u);
}

#[test]
fn e3_a_round_with_a_failing_handle_writes_out_all_the_others() {
    for failing in 0..3 {
        let mut world = world(4);
        let writes: Vec<usize> = (0..3)
            .map(|conn| world.write(conn, conn as u64, 1))
            .collect();
        world.settle();
        let flush = world.flush(2);
        // One after the other would do too.
        world.poll();
        while !world.flushing.is_empty() {
            let fault = (world.flushing[0].conn == failing).then_some(Fault::Keep);
            world.finish_flush(0, fault);
            world.poll();
        }
        assert_eq!(world.reply(flush), EIO);
        for conn in (0..3).filter(|&conn| conn != failing) {
            assert_eq!(world.store[conn], writes[conn]);
        }
    }
}

#[test]
fn c1_a_connection_that_leaves_is_written_out_before_its_handle_is_closed() {
    each_world(2, |mut world| {
        let x = world.write(0, 0, 1);
        world.settle();
        world.disconnect(0);
        world.settle();
        assert!(world.connections[0].released);
        let flush = world.flush(1);
        world.settle();
        assert_eq!(world.reply(flush), OK);
        assert_eq!(world.store[0], x);
    });
}

#[test]
fn c1_a_connection_that_leaves_with_a_write_in_flight_is_written_out_after_it() {
    let mut world = world(2);
    let x = world.write(0, 0, 1);
    world.disconnect(0);
    world.poll();
    assert!(!world.connections[0].released);
    let at = world.executing(x);
    world.finish(at, Ok(()));
    world.settle();
    assert!(world.connections[0].released);
    assert_eq!(world.store[0], x);
    world.check_all_answered();
}

#[test]
fn c1_a_flush_fails_after_a_leaving_connection_could_not_be_written_out() {
    for policy in [AfterFailure::Sticky, AfterFailure::Retry] {
        let config = emulate().with_after_failure(policy);
        let mut world = World::with_connections(config, caching(), 2);
        world.write(0, 0, 1);
        world.settle();
        world.disconnect(0);
        world.poll();
        world.finish_flush(0, Some(Fault::Keep));
        world.settle();
        assert!(world.connections[0].released);
        let flush = world.flush(1);
        world.settle();
        assert_eq!(world.reply(flush), EIO, "{policy}");
    }
}

#[test]
fn c1_a_lost_handle_with_uncovered_writes_fails_the_next_flush_even_of_a_newcomer() {
    for policy in [AfterFailure::Sticky, AfterFailure::Retry] {
        let config = emulate().with_after_failure(policy);
        let mut world = World::with_connections(config, caching(), 1);
        world.write(0, 0, 1);
        world.settle();
        world.lose(0);
        world.settle();
        let next = world.open();
        let flush = world.flush(next);
        world.settle();
        assert_eq!(world.reply(flush), EIO, "{policy}");
    }
}

#[test]
fn c1_a_lost_handle_without_uncovered_writes_is_no_failure() {
    let mut world = world(2);
    world.write(0, 0, 1);
    world.settle();
    world.flush(0);
    world.settle();
    world.read(0, 0, 1);
    world.settle();
    world.lose(0);
    let flush = world.flush(1);
    world.settle();
    assert_eq!(world.reply(flush), OK);
}

#[test]
fn c1_what_a_shared_cache_holds_outlives_the_last_connection() {
    let backend = caching().with_multi_conn(true);
    let mut world = World::with_connections(Config::new(), backend, 1);
    world.promises = false;
    world.write(0, 0, 1);
    world.settle();
    world.disconnect(0);
    world.settle();
    assert!(world.connections[0].released);
    let next = world.open();
    let before = world.flushes.len();
    let flush = world.flush(next);
    world.settle();
    assert_eq!(world.reply(flush), OK);
    assert!(before > 0 || world.flushes.len() > before, "written out");
}

#[test]
fn c2_a_flush_waits_for_a_leaving_connection_that_is_being_written_out() {
    let mut world = world(2);
    let x = world.write(0, 0, 1);
    world.settle();
    world.disconnect(0);
    world.poll();
    assert!(world.is_flushing(0));
    let flush = world.flush(1);
    world.poll();
    assert_eq!(world.reply(flush), None);
    assert_eq!(world.flushes, [0], "the running flush covers it");
    world.settle();
    assert_eq!(world.reply(flush), OK);
    assert_eq!(world.store[0], x);
}

#[test]
fn c3_a_connection_that_opens_during_a_round_serves_nothing_older() {
    let mut world = loading_world(2);
    let x = world.write(0, 0, 1);
    world.settle();
    let flush = world.flush(0);
    world.poll();
    let late = world.connect(0);
    world.settle();
    assert_eq!(
        world.reply(flush),
        OK,
        "an opening connection holds up nobody"
    );
    world.opened(late).unwrap();
    let read = world.read(late, 0, 1);
    world.settle();
    assert_eq!(world.value(read), x);
}

#[test]
fn c3_a_connection_that_was_open_but_unused_serves_nothing_older() {
    let mut world = loading_world(2);
    let x = world.write(0, 0, 1);
    world.settle();
    let flush = world.flush(0);
    world.settle();
    assert_eq!(world.reply(flush), OK);
    let reads = [world.read(1, 0, 1), world.read(1, 0, 1)];
    world.settle();
    for read in reads {
        assert_eq!(world.value(read), x);
    }
    assert_eq!(world.flushes, [0, 1]);
}

#[test]
fn c4_a_hanging_flush_on_one_export_holds_up_nobody_on_another() {
    use nbd_proto::flush::Grouping;
    let config = emulate().with_grouping(Grouping::ByExport);
    let mut world = World::with_connections(config, caching(), 1);
    world.promises = false;
    world.write(0, 0, 1);
    world.settle();
    world.flush(0);
    world.poll();
    assert!(world.is_flushing(0));
    let other = world.connect(1);
    world.opened(other).unwrap();
    world.write(other, 0, 1);
    let at = world.executing(2 + 1);
    world.finish(at, Ok(()));
    let flush = world.flush(other);
    world.poll();
    let at = world.flushing(other);
    world.finish_flush(at, None);
    world.poll();
    assert_eq!(world.reply(flush), OK);
    world.disconnect(other);
    world.poll();
    assert!(world.connections[other].released);
    assert!(world.is_flushing(0));
}

#[test]
fn c4_connections_of_different_exports_share_data_unless_told_otherwise() {
    let mut world = World::new(emulate(), caching());
    for export in [0, 1] {
        let conn = world.connect(export);
        world.opened(conn).unwrap();
    }
    let x = world.write(0, 0, 1);
    world.settle();
    let flush = world.flush(1);
    world.settle();
    assert_eq!(world.reply(flush), OK);
    assert_eq!(world.store[0], x);
}

#[test]
fn o1_of_two_writes_to_one_place_the_later_one_wins() {
    let mut world = world(3);
    world.write(1, 0, 1);
    world.settle();
    let y = world.write(0, 0, 1);
    world.settle();
    let flush = world.flush(2);
    world.settle_latest_first();
    assert_eq!(world.reply(flush), OK);
    assert_eq!(world.store[0], y);
    let read = world.read(2, 0, 1);
    world.settle();
    assert_eq!(world.value(read), y);
}

#[test]
fn o1_holds_after_two_writes_that_were_in_flight_together() {
    let mut world = world(3);
    let x = world.write(1, 0, 1);
    let y = world.write(0, 0, 1);
    for write in [y, x] {
        // If one has to wait for the other, so much the better.
        if let Some(at) = world.executing.iter().position(|it| it.id == write) {
            world.finish(at, Ok(()));
        }
    }
    world.settle();
    let z = world.write(2, 0, 1);
    world.settle();
    let flush = world.flush(2);
    world.settle_latest_first();
    assert_eq!(world.reply(flush), OK);
    assert_eq!(world.store[0], z);
}

#[test]
fn o1_a_write_that_waits_is_not_overtaken_by_later_ones() {
    let mut world = world(2);
    world.write(1, 0, 1);
    world.settle();
    let waiting = world.write(0, 0, 1);
    world.poll();
    assert!(world.is_flushing(1));
    // However many its owner sends.
    let later = world.write(1, 0, 1);
    assert!(world.executing.is_empty());
    world.finish_flush(0, None);
    world.poll();
    let at = world.executing(waiting);
    world.finish(at, Ok(()));
    world.settle();
    assert_eq!(world.reply(later), OK);
    let flush = world.flush(0);
    world.settle();
    assert_eq!(world.reply(flush), OK);
    assert_eq!(world.store[0], later);
}

#[test]
fn o1_holds_for_ranges_beyond_those_that_are_remembered() {
    let config = emulate().with_max_ranges(1);
    let mut world = World::with_connections(config, caching(), 3);
    world.write(1, 0, 1);
    world.write(1, 4, 1);
    world.settle();
    let y = world.write(0, 4, 1);
    world.settle();
    let flush = world.flush(2);
    world.settle_latest_first();
    assert_eq!(world.reply(flush), OK);
    assert_eq!(world.store[4], y);
}

#[test]
fn o2_fua_over_an_older_uncovered_write_stays() {
    let mut world = world(2);
    world.write(1, 0, 1);
    world.settle();
    let y = world.write_fua(0, 0, 1);
    world.settle();
    assert_eq!(world.reply(y), OK);
    let flush = world.flush(1);
    world.settle();
    assert_eq!(world.reply(flush), OK);
    assert_eq!(world.store[0], y);
}

#[test]
fn o3_neighbours_in_a_granule_are_kept_in_order_like_overlapping_writes() {
    let config = emulate().with_granule(4);
    let mut world = World::with_connections(config, caching(), 2);
    world.write(0, 0, 1);
    world.settle();
    let second = world.write(1, 1, 1);
    world.poll();
    assert_eq!(world.flushes, [0]);
    assert!(world.executing.is_empty(), "it waits for the write-out");
    world.settle();
    assert_eq!(world.reply(second), OK);
}

#[test]
fn o3_a_granule_that_another_has_written_out_is_loaded_anew_before_it_is_written() {
    let config = emulate().with_granule(4);
    let mut world = World::with_connections(config, caching(), 2);
    world.read(1, 0, 4);
    world.settle();
    world.write(0, 0, 1);
    world.settle();
    world.write(1, 1, 1);
    world.settle();
    assert_eq!(world.flushes, [0, 1], "written out, then invalidated");
}

#[test]
fn a_later_write_is_not_executed_if_the_earlier_one_could_not_be_written_out() {
    let config = emulate().with_after_failure(AfterFailure::Retry);
    let mut world = World::with_connections(config, caching(), 2);
    world.write(0, 0, 1);
    world.settle();
    let y = world.write(1, 0, 1);
    world.poll();
    world.finish_flush(0, Some(Fault::Keep));
    world.settle();
    assert_eq!(world.reply(y), EIO);
    assert!(world.executing.is_empty());
}

#[test]
fn every_flush_that_arrived_before_a_loss_was_reported_fails() {
    let config = emulate().with_after_failure(AfterFailure::Retry);
    let mut world = World::with_connections(config, caching(), 2);
    world.write(1, 0, 1);
    world.settle();
    let first = world.flush(0);
    world.poll();
    // It cannot join the round that runs.
    world.write(0, 4, 1);
    world.finish(0, Ok(()));
    let second = world.flush(0);
    world.lose(1);
    world.settle();
    assert_eq!(world.reply(first), EIO);
    assert_eq!(world.reply(second), EIO);
    let third = world.flush(0);
    world.settle();
    assert_eq!(world.reply(third), OK);
}

#[test]
fn what_waits_on_a_lost_connection_is_answered() {
    let mut world = world(2);
    world.write(1, 0, 1);
    world.settle();
    let waiting = world.write(0, 0, 1);
    let fua = world.write_fua(0, 4, 1);
    let at = world.executing(fua);
    world.finish(at, Ok(()));
    let flush = world.flush(0);
    world.lose(0);
    for command in [waiting, fua, flush] {
        assert_eq!(world.reply(command), EIO);
    }
    assert!(world.connections[0].released);
}
