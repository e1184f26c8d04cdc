//! Flushes that fail, and who is told.

use nbd_proto::flush::{AfterFailure, Config, Mode};

use super::{EIO, OK, caching, coherent_world, emulate, world};
use crate::world::{Fault, World};

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
fn e2_a_failed_flush_of_a_handle_with_nothing_to_write_out_is_not_told_to_its_client() {
    let config = emulate().with_after_failure(AfterFailure::Retry);
    let mut world = World::with_connections(config, caching(), 2);
    world.read(0, 0, 1);
    world.settle();
    let u = world.write_fua(1, 0, 1);
    let at = world.executing(u);
    world.finish(at, Ok(()));
    world.poll();
    let at = world.flushing(1);
    world.finish_flush(at, None);
    world.poll();
    let at = world.flushing(0);
    world.finish_flush(at, Some(Fault::Keep));
    world.settle();
    assert_eq!(world.reply(u), OK);
    // Nothing of it was at stake, and nothing was lost.
    let own = world.flush(0);
    world.settle();
    assert_eq!(world.reply(own), OK);
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
