//! Writes to the same place through different handles.

use nbd_proto::flush::AfterFailure;

use super::{EIO, OK, caching, emulate, world};
use crate::world::{Fault, World};

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
