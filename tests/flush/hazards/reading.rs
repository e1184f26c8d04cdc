//! What caches may show after a flush: reads that are held, and what they load.

use nbd_proto::flush::Command;
use nbd_proto::wire::CommandType;

use super::{OK, each_world, world};
use crate::world::Load;

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
