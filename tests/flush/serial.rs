//! Never two calls on one handle: what executes, what waits, and in which order. The model
//! asserts the rule itself, whatever is called.

use nbd_proto::flush::{Backend, Config, Mode, ThreadModel, TrackDirty};
use nbd_proto::wire::Errno;

use crate::world::{Id, World};

const EIO: Option<Result<(), Errno>> = Some(Err(Errno::EIO));
const OK: Option<Result<(), Errno>> = Some(Ok(()));

fn serialized() -> Config {
    Config::new()
        .with_mode(Mode::Emulate)
        .with_thread_model(ThreadModel::SerializeRequests)
}

fn caching() -> Backend {
    Backend::new().with_flush(true).with_loads_on_open(false)
}

fn world(connections: usize) -> World {
    World::with_connections(serialized(), caching(), connections)
}

/// What executes, in the order in which it began.
fn begun(world: &World) -> Vec<Id> {
    world.executing.iter().map(|it| it.id).collect()
}

/// Ends the one thing that is under way on a handle, and goes on.
fn end(world: &mut World, id: Id) {
    let at = world.executing(id);
    world.finish(at, Ok(()));
    world.poll();
}

fn end_flush(world: &mut World, conn: usize) {
    let at = world.flushing(conn);
    world.finish_flush(at, None);
    world.poll();
}

#[test]
fn commands_of_one_handle_execute_one_at_a_time_in_the_order_of_their_arrival() {
    for mode in [Mode::Emulate, Mode::Plugin, Mode::Disable] {
        let config = serialized().with_mode(mode);
        let mut world = World::with_connections(config, caching(), 2);
        world.promises = mode == Mode::Emulate;
        let first: Vec<Id> = (0..4).map(|cell| world.write(0, cell, 1)).collect();
        let other = world.read(1, 7, 1);
        world.poll();
        assert_eq!(begun(&world), [first[0], other], "each handle has its own");
        end(&mut world, other);
        for id in first {
            assert_eq!(begun(&world), [id]);
            end(&mut world, id);
        }
        world.check_all_answered();
    }
}

#[test]
fn a_backend_flush_waits_for_the_command_that_executes_and_holds_up_those_behind_it() {
    let mut world = world(2);
    let x = world.write(0, 0, 1);
    end(&mut world, x);
    let executing = world.read(0, 1, 1);
    let flush = world.flush(1);
    let behind = world.read(0, 2, 1);
    world.poll();
    assert_eq!(begun(&world), [executing]);
    assert!(!world.is_flushing(0));
    end(&mut world, executing);
    assert!(begun(&world).is_empty() && world.is_flushing(0));
    // Neither now, nor ahead of what came before.
    let late = world.read(0, 3, 1);
    world.poll();
    assert!(begun(&world).is_empty());
    end_flush(&mut world, 0);
    assert_eq!(world.reply(flush), OK);
    assert_eq!(begun(&world), [behind]);
    end(&mut world, behind);
    assert_eq!(begun(&world), [late]);
    world.settle();
    world.check_all_answered();
}

#[test]
fn a_steady_client_does_not_starve_the_flush_of_its_handle() {
    let mut world = world(2);
    let x = world.write(0, 0, 1);
    end(&mut world, x);
    let mut executing = world.read(0, 1, 1);
    let mut next = world.read(0, 1, 1);
    let flush = world.flush(1);
    for _ in 0..10 {
        if world.is_flushing(0) {
            end_flush(&mut world, 0);
            assert_eq!(world.reply(flush), OK);
            return;
        }
        let later = world.read(0, 1, 1);
        end(&mut world, executing);
        executing = std::mem::replace(&mut next, later);
    }
    panic!("the flush never has its turn");
}

#[test]
fn steady_flushes_do_not_starve_the_commands_of_a_handle() {
    let config = serialized().with_track_dirty(TrackDirty::Off);
    let mut world = World::with_connections(config, caching(), 2);
    world.flush(1);
    world.poll();
    assert!(world.is_flushing(0));
    let read = world.read(0, 0, 1);
    for _ in 0..10 {
        // The next round, which begins when the handle's flush ends, is waited for already.
        world.flush(1);
        end_flush(&mut world, 1);
        end_flush(&mut world, 0);
        if begun(&world) == [read] {
            return;
        }
    }
    panic!("the read never has its turn");
}

#[test]
fn a_backend_flush_has_its_turn_after_the_commands_that_came_before_it() {
    let mut world = world(2);
    let x = world.write(0, 0, 1);
    end(&mut world, x);
    let (first, second) = (world.read(0, 1, 1), world.write(0, 2, 1));
    let flush = world.flush(1);
    world.poll();
    end(&mut world, first);
    assert_eq!(begun(&world), [second]);
    end(&mut world, second);
    assert!(world.is_flushing(0));
    end_flush(&mut world, 0);
    assert_eq!(world.reply(flush), OK);
    assert_eq!(world.store[2], second, "it started later, and covers more");
}

#[test]
fn a_command_does_not_begin_while_its_handle_is_flushed() {
    let mut world = world(2);
    let x = world.write(0, 0, 1);
    end(&mut world, x);
    world.flush(1);
    world.poll();
    assert!(world.is_flushing(0));
    let read = world.read(0, 1, 1);
    world.poll();
    assert!(begun(&world).is_empty());
    end_flush(&mut world, 0);
    assert_eq!(begun(&world), [read]);
    world.settle();
    world.check_all_answered();
}

#[test]
fn what_waits_for_its_handle_modifies_nothing_yet_and_is_in_nobodys_way() {
    let mut world = world(2);
    let slow = world.read(0, 7, 1);
    let queued = world.write(0, 0, 1);
    let other = world.write(1, 0, 1);
    assert_eq!(begun(&world), [slow, other]);
    end(&mut world, other);
    let flush = world.flush(1);
    world.poll();
    assert_eq!(world.flushing.len(), 1, "of what is uncovered, on handle 1");
    end_flush(&mut world, 1);
    // The other handle may hold something old, and has to end what it does first.
    end(&mut world, slow);
    end(&mut world, queued);
    world.settle();
    assert_eq!(world.reply(flush), OK);
    world.flush(0);
    world.settle();
    assert_eq!(world.store[0], queued, "it came after the other");
    world.check_all_answered();
}

#[test]
fn a_write_whose_turn_has_come_keeps_its_place_while_its_handle_is_busy() {
    let mut world = world(2);
    let old = world.write(1, 0, 1);
    end(&mut world, old);
    let waits = world.write(0, 0, 1);
    let busy = world.read(0, 5, 1);
    world.poll();
    assert_eq!(begun(&world), [busy], "the handle is free while it waits");
    end_flush(&mut world, 1);
    // What it has waited for is written out. Before it could begin, here comes the next.
    let overtakes = world.write(1, 0, 1);
    world.poll();
    assert_eq!(begun(&world), [busy]);
    end(&mut world, busy);
    assert_eq!(begun(&world), [waits]);
    end(&mut world, waits);
    world.settle();
    world.flush(0);
    world.settle();
    assert_eq!(world.store[0], overtakes);
    world.check_all_answered();
}

#[test]
fn writes_that_wait_for_each_others_handles_do_not_lock_up() {
    let mut world = world(2);
    let (a, b) = (world.write(0, 0, 1), world.write(1, 1, 1));
    end(&mut world, a);
    end(&mut world, b);
    let (slow_a, slow_b) = (world.read(0, 6, 1), world.read(1, 7, 1));
    let crossing = [world.write_fua(0, 1, 1), world.write_fua(1, 0, 1)];
    let flushes = [world.flush(0), world.flush(1)];
    world.poll();
    assert_eq!(begun(&world), [slow_a, slow_b]);
    world.settle();
    for id in crossing.into_iter().chain(flushes) {
        assert_eq!(world.reply(id), OK);
    }
    world.check_all_answered();
}

#[test]
fn a_handle_that_has_to_load_anew_does_so_between_its_commands() {
    let config = serialized().with_granule(4);
    let mut world = World::with_connections(config, caching(), 2);
    let loads = world.read(0, 4, 1);
    end(&mut world, loads);
    let old = world.write(1, 0, 1);
    end(&mut world, old);
    let waits = world.write(0, 1, 1);
    let steady: Vec<Id> = (0..3).map(|_| world.read(0, 5, 1)).collect();
    world.poll();
    end_flush(&mut world, 1);
    // Its handle has read something old since, and may not merge the write into that.
    end(&mut world, steady[0]);
    assert!(begun(&world).is_empty() && world.is_flushing(0));
    end_flush(&mut world, 0);
    assert_eq!(begun(&world), [waits], "before what would load again");
    world.settle();
    world.check_all_answered();
}

#[test]
fn what_waits_for_a_lost_handle_fails() {
    let mut world = world(2);
    let x = world.write(0, 0, 1);
    end(&mut world, x);
    let executing = world.read(0, 1, 1);
    let queued = [world.read(0, 2, 1), world.write(0, 3, 1)];
    let flush = world.flush(1);
    world.poll();
    world.lose(0);
    world.settle();
    assert_eq!(world.reply(executing), None, "it is the caller's to answer");
    for id in queued {
        assert_eq!(world.reply(id), EIO);
    }
    assert_eq!(world.reply(flush), EIO);
    world.check_all_answered();
}

#[test]
fn what_waits_for_the_handle_of_a_client_that_left_is_still_carried_out() {
    let mut world = world(2);
    let executing = world.read(0, 1, 1);
    let queued = [world.read(0, 2, 1), world.write(0, 3, 1)];
    world.poll();
    world.disconnect(0);
    end(&mut world, executing);
    assert!(!world.connections[0].released);
    world.settle();
    for id in queued {
        assert_eq!(world.reply(id), OK);
    }
    assert_eq!(world.store[3], queued[1], "and written out");
    world.check_all_answered();
}
