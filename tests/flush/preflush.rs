//! Reads with FUA: what comes before them, if anything.

use nbd_proto::flush::{AfterFailure, Backend, Command, Config, FuaOnReads, Mode, ThreadModel};
use nbd_proto::wire::{CommandType, Errno};

use crate::world::{Fault, World};

const EIO: Option<Result<(), Errno>> = Some(Err(Errno::EIO));
const OK: Option<Result<(), Errno>> = Some(Ok(()));

fn preflush() -> Config {
    Config::new()
        .with_mode(Mode::Emulate)
        .with_fua_on_reads(FuaOnReads::Preflush)
}

fn caching() -> Backend {
    Backend::new().with_flush(true).with_loads_on_open(false)
}

fn world(config: Config) -> World {
    World::with_connections(config, caching(), 2)
}

/// Connection 0 has cached what is there at first, and connection 1 has written since.
fn stale_world(config: Config) -> (World, usize) {
    let mut world = world(config);
    world.read(0, 0, 1);
    let x = world.write(1, 0, 1);
    world.settle();
    (world, x)
}

#[test]
fn a_read_with_fua_finds_what_others_had_written_when_it_arrived() {
    let (mut world, x) = stale_world(preflush());
    let read = world.read_fua(0, 0, 1);
    world.poll();
    assert!(world.executing.is_empty() && world.is_flushing(1));
    world.settle();
    assert_eq!(world.value(read), x);
    assert_eq!(world.store[0], x, "and it is durable");
    assert_eq!(world.flushes, [1, 0], "written out, then invalidated");
    // Nothing has happened since.
    let again = world.read_fua(0, 0, 1);
    assert_eq!(world.executing.len(), 1, "it executes at once");
    world.settle();
    assert_eq!((world.value(again), world.flushes.len()), (x, 2));
}

#[test]
fn by_default_fua_means_nothing_on_a_read() {
    let (mut world, x) = stale_world(Config::new());
    let read = world.read_fua(0, 0, 1);
    assert_eq!(world.executing.len(), 1);
    world.settle();
    assert_ne!(world.value(read), x);
    assert!(world.flushes.is_empty());
}

#[test]
fn fua_means_nothing_on_other_commands_that_write_nothing() {
    let (mut world, _) = stale_world(preflush());
    for kind in [CommandType::CACHE, CommandType::BLOCK_STATUS] {
        let id = world.send(0, Command::new(kind, 0, 1).with_fua(true));
        world.settle();
        assert_eq!(world.reply(id), OK);
    }
    assert!(world.flushes.is_empty());
}

#[test]
fn where_flush_is_not_advertised_fua_means_nothing_on_a_read() {
    let backends = [
        (Mode::Disable, Backend::new()),
        (Mode::Emulate, Backend::new().with_read_only(true)),
    ];
    for (mode, backend) in backends {
        let mut world = World::with_connections(preflush().with_mode(mode), backend, 1);
        let read = world.read_fua(0, 0, 1);
        assert_eq!(world.executing.len(), 1);
        world.settle();
        assert_eq!(world.reply(read), OK);
    }
}

#[test]
fn a_read_whose_flush_fails_is_not_executed_and_its_client_has_heard_of_it() {
    let config = preflush().with_after_failure(AfterFailure::Retry);
    let (mut world, x) = stale_world(config);
    let read = world.read_fua(0, 0, 1);
    world.poll();
    let at = world.flushing(1);
    world.finish_flush(at, Some(Fault::Keep));
    world.poll();
    assert!(world.executing.is_empty());
    assert_eq!(world.reply(read), EIO);
    // The next flush tries again, and need not repeat the error.
    let flush = world.flush(0);
    world.settle();
    assert_eq!(world.reply(flush), OK);
    assert_eq!(world.store[0], x);
}

#[test]
fn under_sticky_a_read_that_reports_the_failure_ends_it_with_the_last_connection() {
    let (mut world, _) = stale_world(preflush());
    let read = world.read_fua(0, 0, 1);
    world.poll();
    let at = world.flushing(1);
    world.finish_flush(at, Some(Fault::Drop));
    world.settle();
    assert_eq!(world.reply(read), EIO);
    let again = world.read_fua(1, 0, 1);
    world.settle();
    assert_eq!(world.reply(again), EIO);
    world.disconnect(0);
    world.disconnect(1);
    world.settle();
    let newcomer = world.open();
    let flush = world.flush(newcomer);
    world.settle();
    assert_eq!(world.reply(flush), OK);
}

#[test]
fn reads_with_fua_share_rounds_with_flushes() {
    let (mut world, x) = stale_world(preflush());
    let flush = world.flush(1);
    let reads: Vec<usize> = (0..100).map(|_| world.read_fua(0, 0, 1)).collect();
    world.settle();
    assert_eq!(world.reply(flush), OK);
    for read in reads {
        assert_eq!(world.value(read), x);
    }
    assert_eq!(world.flushes, [1, 0]);
}

#[test]
fn without_emulation_the_flush_before_a_read_is_that_of_its_own_handle() {
    let config = preflush().with_mode(Mode::Plugin);
    let mut world = world(config);
    world.promises = false;
    world.write(0, 0, 1);
    world.write(1, 1, 1);
    world.settle();
    let read = world.read_fua(0, 2, 1);
    world.poll();
    assert!(world.executing.is_empty());
    world.settle();
    assert_eq!(world.reply(read), OK);
    assert_eq!(world.flushes, [0]);
}

#[test]
fn a_read_that_waits_for_its_flush_is_carried_out_though_its_client_left() {
    let (mut world, x) = stale_world(preflush());
    let read = world.read_fua(0, 0, 1);
    world.disconnect(0);
    world.settle();
    assert_eq!(world.value(read), x);
    world.check_all_answered();
}

#[test]
fn a_read_that_waits_for_its_flush_fails_with_its_handle() {
    let (mut world, _) = stale_world(preflush());
    let read = world.read_fua(0, 0, 1);
    world.poll();
    world.lose(0);
    world.settle();
    assert_eq!(world.reply(read), EIO);
}

#[test]
fn a_read_takes_its_turn_after_its_flush() {
    let config = preflush().with_thread_model(ThreadModel::SerializeRequests);
    let (mut world, x) = stale_world(config);
    let read = world.read_fua(0, 0, 1);
    let plain = world.read(0, 0, 1);
    let flush = world.flush(1);
    world.settle();
    assert_eq!(world.value(read), x);
    assert_eq!(world.reply(plain), OK);
    assert_eq!(world.reply(flush), OK);
}
