//! Loads that find what others have modified, without any flush by a client.

use nbd_proto::flush::{AfterFailure, Backend, Command, Config, Mode, Overlap, ThreadModel};
use nbd_proto::wire::{CommandType, Errno};

use crate::world::{Fault, Id, World};

const EIO: Option<Result<(), Errno>> = Some(Err(Errno::EIO));
const OK: Option<Result<(), Errno>> = Some(Ok(()));

fn coherent() -> Config {
    Config::new()
        .with_mode(Mode::Emulate)
        .with_overlap(Overlap::Coherent)
}

fn caching() -> Backend {
    Backend::new().with_flush(true).with_loads_on_open(false)
}

fn world(config: Config, connections: usize) -> World {
    World::with_connections(config, caching(), connections)
}

/// Connection 1 has cached what is there at first, and connection 0 has written since.
fn stale_world(config: Config) -> (World, Id) {
    let mut world = world(config, 2);
    world.read(1, 0, 8);
    let x = world.write(0, 0, 1);
    world.settle();
    (world, x)
}

fn end(world: &mut World, id: Id) {
    let at = world.executing(id);
    world.finish(at, Ok(()));
    world.poll();
}

fn end_flush(world: &mut World, conn: usize, fault: Option<Fault>) {
    let at = world.flushing(conn);
    world.finish_flush(at, fault);
    world.poll();
}

#[test]
fn a_read_finds_what_another_connection_has_written_without_any_flush() {
    for model in [ThreadModel::Parallel, ThreadModel::SerializeRequests] {
        let (mut world, x) = stale_world(coherent().with_thread_model(model));
        let read = world.read(1, 0, 1);
        assert!(world.executing.is_empty());
        world.settle();
        assert_eq!(world.value(read), x);
        assert_eq!(world.flushes, [0, 1], "written out, then invalidated");
        // Nothing has happened since.
        let again = world.read(1, 0, 1);
        assert_eq!(world.executing.len(), 1, "it executes at once");
        world.settle();
        assert_eq!((world.value(again), world.flushes.len()), (x, 2));
    }
}

/// Rule 9.
#[test]
fn two_reads_share_one_invalidation_of_their_handle() {
    let mut world = world(coherent(), 1);
    let fua = world.write_fua(0, 0, 1);
    end(&mut world, fua);
    // Part of what it held may have reached storage, so that what it holds may be old.
    end_flush(&mut world, 0, Some(Fault::Keep));
    let (first, second) = (world.read(0, 0, 1), world.read(0, 0, 1));
    world.settle();
    assert_eq!((world.reply(first), world.reply(second)), (OK, OK));
    assert_eq!(world.flushes, [0, 0]);
}

#[test]
fn by_default_reads_need_a_flush_to_find_it() {
    let (mut world, x) = stale_world(coherent().with_overlap(Overlap::OrderWrites));
    let read = world.read(1, 0, 1);
    world.settle();
    assert_ne!(world.value(read), x);
    assert!(world.flushes.is_empty());
}

#[test]
fn a_read_waits_for_a_write_that_is_under_way_and_not_for_one_elsewhere() {
    let mut world = world(coherent(), 2);
    let x = world.write(0, 0, 2);
    let (waits, elsewhere) = (world.read(1, 1, 1), world.read(1, 2, 1));
    world.poll();
    assert_eq!(world.executing.len(), 2);
    end(&mut world, elsewhere);
    assert!(world.flushes.is_empty());
    end(&mut world, x);
    world.settle();
    assert_eq!(world.value(waits), x);
    // Both handles may go on.
    assert_eq!(world.flushes, [0, 1]);
}

#[test]
fn every_command_that_loads_is_coherent() {
    for kind in [CommandType::CACHE, CommandType::BLOCK_STATUS] {
        let (mut world, _) = stale_world(coherent());
        let load = world.send(1, Command::new(kind, 0, 1));
        assert!(world.executing.is_empty(), "{kind:?}");
        world.settle();
        assert_eq!(world.reply(load), OK);
        assert_eq!(world.flushes, [0, 1]);
    }
}

#[test]
fn without_emulation_reads_are_executed_as_they_come() {
    for mode in [Mode::Plugin, Mode::Disable] {
        let (mut world, _) = stale_world(coherent().with_mode(mode));
        world.promises = false;
        world.read(1, 0, 1);
        assert_eq!(world.executing.len(), 1);
        assert!(world.flushes.is_empty());
    }
}

#[test]
fn reads_of_what_nobody_else_has_modified_need_no_flush() {
    let mut world = world(coherent(), 3);
    for conn in 0..3 {
        for _ in 0..3 {
            world.write(conn, 2 * conn as u64, 1);
            world.read(conn, 2 * conn as u64, 1);
            world.read(conn, 7, 1);
            world.settle();
        }
    }
    assert!(world.flushes.is_empty());
}

#[test]
fn a_steady_writer_lets_a_read_in() {
    let mut world = world(coherent(), 2);
    let mut last = world.write(0, 0, 2);
    let read = world.read(1, 0, 1);
    for _ in 0..10 {
        let next = world.write(0, 1, 2);
        end(&mut world, last);
        while !world.flushing.is_empty() {
            world.finish_flush(0, None);
            world.poll();
        }
        if world.executing.iter().any(|it| it.id == read) {
            // What waited behind it is not forgotten.
            world.settle();
            assert_eq!(world.reply(next), OK);
            return;
        }
        last = next;
    }
    panic!("the read never has its turn");
}

#[test]
fn steady_readers_let_a_writer_in() {
    let mut world = world(coherent(), 3);
    for _ in 0..3 {
        let write = world.write(0, 0, 1);
        let mut rounds = 0;
        while !world.executing.iter().any(|it| it.id == write) {
            rounds += 1;
            assert!(rounds < 10, "the writer never has its turn");
            // The next reads come before the last ones end.
            let last: Vec<Id> = world.executing.iter().map(|it| it.id).collect();
            world.read(1, 0, 1);
            world.read(2, 0, 1);
            for id in last {
                end(&mut world, id);
            }
            while !world.flushing.is_empty() {
                world.finish_flush(0, None);
                world.poll();
            }
        }
        end(&mut world, write);
    }
    world.settle();
    world.check_all_answered();
}

#[test]
fn a_write_waits_behind_a_read_only_until_that_begins() {
    let mut world = world(coherent(), 2);
    let old = world.write(0, 0, 1);
    end(&mut world, old);
    let read = world.read(1, 0, 1);
    let new = world.write(0, 0, 1);
    world.poll();
    assert!(world.executing.is_empty());
    end_flush(&mut world, 0, None);
    let begun: Vec<Id> = world.executing.iter().map(|it| it.id).collect();
    assert_eq!(begun, [read, new]);
    end(&mut world, new);
    end(&mut world, read);
    assert_eq!(world.value(read), old, "it came before the other ended");
    world.settle();
    world.check_all_answered();
}

#[test]
fn a_read_fails_if_what_it_waits_for_cannot_be_written_out() {
    for fault in [Fault::Keep, Fault::Drop] {
        let (mut world, _) = stale_world(coherent());
        let read = world.read(1, 0, 1);
        world.poll();
        end_flush(&mut world, 0, Some(fault));
        assert_eq!(world.reply(read), EIO);
        assert!(world.executing.is_empty(), "it is not executed");
        assert!(world.flushing.is_empty());
    }
}

#[test]
fn a_read_fails_if_its_handle_cannot_drop_what_is_old_and_the_next_one_tries_again() {
    let config = coherent().with_after_failure(AfterFailure::Retry);
    let (mut world, x) = stale_world(config);
    let read = world.read(1, 0, 1);
    world.poll();
    end_flush(&mut world, 0, None);
    end_flush(&mut world, 1, Some(Fault::Keep));
    assert_eq!(world.reply(read), EIO);
    let again = world.read(1, 0, 1);
    world.settle();
    assert_eq!(world.value(again), x);
}

#[test]
fn a_read_fails_if_what_it_waits_for_is_lost() {
    let (mut world, _) = stale_world(coherent());
    let (read, elsewhere) = (world.read(1, 0, 1), world.write(1, 3, 1));
    world.poll();
    world.lose(0);
    assert_eq!(world.reply(read), EIO);
    world.settle();
    assert_eq!(world.reply(elsewhere), OK);
}

#[test]
fn a_read_that_waits_for_nothing_that_was_lost_is_executed() {
    let mut world = world(coherent(), 3);
    let (x, y) = (world.write(0, 0, 1), world.write(2, 1, 1));
    end(&mut world, x);
    end(&mut world, y);
    let read = world.read(1, 0, 1);
    world.lose(2);
    world.settle();
    assert_eq!(world.value(read), x);
}

#[test]
fn a_read_is_satisfied_with_an_invalidation_that_runs_already() {
    let (mut world, x) = stale_world(coherent());
    let flush = world.flush(0);
    world.poll();
    end_flush(&mut world, 0, None);
    assert!(world.is_flushing(1), "the second phase of a round");
    let reads = [world.read(1, 0, 1), world.read(1, 5, 1)];
    assert!(world.executing.is_empty());
    end_flush(&mut world, 1, None);
    assert_eq!(world.reply(flush), OK);
    assert_eq!(world.executing.len(), 2);
    world.settle();
    assert_eq!(world.value(reads[0]), x);
    assert_eq!(world.flushes, [0, 1]);
}

/// The flush that runs leaves what a command in flight has fetched; the read needs another one.
#[test]
fn a_read_that_is_still_stale_after_a_flush_needs_one_more() {
    let (mut world, x) = stale_world(coherent());
    let slow = world.read(1, 7, 1);
    let own = world.write(1, 6, 1);
    end(&mut world, own);
    // Written out for another one's flush, while the slow read is under way.
    world.flush(0);
    world.poll();
    end_flush(&mut world, 0, None);
    let read = world.read(1, 0, 1);
    world.poll();
    end_flush(&mut world, 1, None);
    assert!(world.executing.iter().all(|it| it.id == slow));
    end(&mut world, slow);
    world.settle();
    assert_eq!(world.value(read), x);
    world.check_all_answered();
}
