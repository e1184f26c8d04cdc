//! Connections that open, leave, are lost, or have nothing to do with each other.

use nbd_proto::flush::{AfterFailure, Config};

use super::{EIO, OK, caching, each_world, emulate, loading_world, world};
use crate::world::{Fault, World};

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
fn c3_what_waits_for_a_handle_that_cannot_be_invalidated_fails_and_the_next_tries_again() {
    let mut world = loading_world(2);
    let x = world.write(0, 0, 1);
    world.settle();
    let flush = world.flush(0);
    world.settle();
    assert_eq!(world.reply(flush), OK);
    let reads = [world.read(1, 0, 1), world.read(1, 0, 1)];
    world.poll();
    let at = world.flushing(1);
    world.finish_flush(at, Some(Fault::Keep));
    world.poll();
    for read in reads {
        assert_eq!(world.reply(read), EIO);
    }
    let again = world.read(1, 0, 1);
    world.settle();
    assert_eq!(world.value(again), x);
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
