//! Which modifications a flush covers: what is stamped, and when.

use nbd_proto::flush::{Config, Mode, TrackDirty};
use nbd_proto::wire::Errno;

use super::{OK, caching, each_world, world};
use crate::world::World;

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
