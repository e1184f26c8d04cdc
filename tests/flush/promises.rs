//! What is advertised, what is refused, and how many backend flushes are called.

use nbd_proto::flush::{
    AfterFailure, Backend, Command, Config, Decision, FlushCoordinator, Mode, OpenError,
    ThreadModel, TrackDirty,
};
use nbd_proto::wire::{CommandType, Errno};

use crate::world::{Fault, World};

fn caching() -> Backend {
    Backend::new().with_flush(true)
}

fn open(mode: Mode, backend: Backend) -> Result<(bool, bool, bool), OpenError> {
    let mut world = World::new(Config::new().with_mode(mode), backend);
    let conn = world.connect(0);
    let advertised = world.opened(conn)?;
    Ok((advertised.multi_conn, advertised.flush, advertised.fua))
}

#[test]
fn what_is_advertised_follows_from_mode_and_backend() {
    let plain = caching();
    let native = caching().with_multi_conn(true).with_fua(true);
    assert_eq!(open(Mode::Emulate, plain), Ok((true, true, true)));
    assert_eq!(open(Mode::Auto, plain), Ok((true, true, true)));
    assert_eq!(open(Mode::Plugin, plain), Ok((false, true, true)));
    assert_eq!(open(Mode::Disable, plain), Ok((false, true, true)));
    assert_eq!(open(Mode::Unsafe, plain), Ok((true, true, true)));
    assert_eq!(open(Mode::Plugin, native), Ok((true, true, true)));
    assert_eq!(open(Mode::Auto, native), Ok((true, true, true)));
    assert_eq!(open(Mode::Disable, native), Ok((false, true, true)));
    let nothing = Backend::new();
    assert_eq!(open(Mode::Plugin, nothing), Ok((false, false, false)));
    let read_only = Backend::new().with_read_only(true);
    assert_eq!(open(Mode::Emulate, read_only), Ok((true, false, false)));
    let stable = Backend::new().with_caches_nothing(true);
    assert_eq!(open(Mode::Emulate, stable), Ok((true, true, true)));
}

#[test]
fn a_promise_that_cannot_be_kept_is_refused() {
    let no_flush = Backend::new();
    let cannot = Err(OpenError::CannotEmulate);
    assert_eq!(open(Mode::Emulate, no_flush), cannot);
    assert_eq!(open(Mode::Auto, no_flush), cannot);
    let liar = no_flush.with_multi_conn(true);
    let lie = Err(OpenError::MultiConnWithoutFlush);
    assert_eq!(open(Mode::Plugin, liar), lie);
    assert_eq!(open(Mode::Auto, liar), lie);
    assert_eq!(open(Mode::Disable, liar), Ok((false, false, false)));
}

#[test]
fn a_writer_cannot_join_readers_that_could_never_see_what_it_writes() {
    let config = Config::new().with_mode(Mode::Emulate);
    let mut coordinator: FlushCoordinator<u8, u8, ()> = FlushCoordinator::new(config);
    let reader = Backend::new().with_read_only(true);
    let conn = coordinator.connect(0, &0);
    coordinator.opened(conn, reader).unwrap();
    let conn = coordinator.connect(1, &0);
    let refused = coordinator.opened(conn, caching());
    assert_eq!(refused, Err(OpenError::GroupCannotFlush));
    assert_eq!(
        coordinator.opened(conn, caching()),
        Err(OpenError::NotOpening)
    );
    let conn = coordinator.connect(2, &0);
    coordinator.opened(conn, reader).unwrap();
}

#[test]
fn a_reader_that_could_never_see_it_cannot_join_a_writer() {
    let config = Config::new().with_mode(Mode::Emulate);
    let mut world = World::with_connections(config, caching(), 1);
    let conn = world.connect(0);
    let reader = Backend::new().with_read_only(true);
    let handle = world.connections[conn].conn;
    assert_eq!(
        world.coordinator.opened(handle, reader),
        Err(OpenError::CannotEmulate)
    );
}

#[test]
fn native_fua_is_advertised_without_flush_but_not_where_a_flush_would_have_to_replace_it() {
    let fua = Backend::new().with_fua(true);
    assert_eq!(open(Mode::Plugin, fua), Ok((false, false, true)));
    assert_eq!(open(Mode::Disable, fua), Ok((false, false, true)));
    let reader = fua.with_read_only(true);
    assert_eq!(open(Mode::Emulate, reader), Ok((true, false, false)));
}

#[test]
fn where_connections_are_serialized_auto_flushes_the_own_handle_only() {
    let config = Config::new().with_thread_model(ThreadModel::SerializeConnections);
    let mut world = World::with_connections(config, caching(), 2);
    world.promises = false;
    world.write(0, 0, 1);
    world.write(1, 1, 1);
    world.settle();
    world.flush(1);
    world.settle();
    assert_eq!(world.flushes, [1]);
}

#[test]
fn a_connection_that_is_not_open_has_no_commands() {
    let config = Config::new().with_mode(Mode::Emulate);
    let mut coordinator: FlushCoordinator<u8, u8, u8> = FlushCoordinator::new(config);
    let conn = coordinator.connect(0, &0);
    let read = Command::new(CommandType::READ, 0, 1);
    let early = coordinator.command(conn, read, 7);
    assert!(matches!(early, Decision::Closed { tag: 7 }));
    coordinator.opened(conn, caching()).unwrap();
    let Decision::Execute { op, tag } = coordinator.command(conn, read, 8) else {
        panic!("it is open");
    };
    coordinator.disconnect(conn);
    let late = coordinator.command(conn, read, 9);
    assert!(matches!(late, Decision::Closed { tag: 9 }));
    let late = coordinator.command(conn, Command::FLUSH, 10);
    assert!(matches!(late, Decision::Closed { tag: 10 }));
    let _ = coordinator.complete(op, tag, Ok(()));
}

#[test]
fn nobody_is_told_of_multi_conn_where_connections_are_serialized() {
    let shared = caching().with_multi_conn(true);
    for mode in [Mode::Auto, Mode::Emulate, Mode::Plugin, Mode::Unsafe] {
        let config = Config::new()
            .with_mode(mode)
            .with_thread_model(ThreadModel::SerializeConnections);
        for backend in [caching(), shared] {
            let mut world = World::new(config, backend);
            let conn = world.connect(0);
            assert!(!world.opened(conn).unwrap().multi_conn, "{mode}");
        }
    }
}

/// The backend flushes of: c0 writes; c0 flushes; c1 flushes.
fn flushes_of_write_flush_flush(level: TrackDirty) -> [usize; 2] {
    let config = Config::new()
        .with_mode(Mode::Emulate)
        .with_track_dirty(level);
    let backend = caching().with_loads_on_open(false);
    let mut world = World::with_connections(config, backend, 2);
    world.write(0, 0, 1);
    world.settle();
    world.flush(0);
    world.settle();
    let first = world.flushes.len();
    world.flush(1);
    world.settle();
    [first, world.flushes.len() - first]
}

#[test]
fn tracking_saves_backend_flushes() {
    assert_eq!(flushes_of_write_flush_flush(TrackDirty::Off), [2, 2]);
    assert_eq!(flushes_of_write_flush_flush(TrackDirty::Fast), [2, 0]);
    assert_eq!(flushes_of_write_flush_flush(TrackDirty::Connection), [1, 0]);
}

#[test]
fn reads_alone_need_no_flush_and_a_reader_is_invalidated_once() {
    let config = Config::new().with_mode(Mode::Emulate);
    let mut world = World::with_connections(config, caching(), 3);
    world.read(0, 0, 1);
    world.read(1, 0, 1);
    world.settle();
    world.flush(0);
    world.settle();
    assert!(world.flushes.is_empty());
    world.write(1, 0, 1);
    world.settle();
    world.flush(1);
    world.settle();
    assert_eq!(world.flushes, [1, 0], "written out, then invalidated");
    for conn in [0, 1, 2, 0] {
        world.flush(conn);
        world.settle();
    }
    assert_eq!(world.flushes.len(), 2);
}

#[test]
fn concurrent_flushes_share_at_most_two_rounds() {
    let config = Config::new().with_mode(Mode::Emulate);
    let mut world = World::with_connections(config, caching(), 8);
    for conn in 0..8 {
        world.write(conn, conn as u64, 1);
    }
    while !world.executing.is_empty() {
        world.finish(0, Ok(()));
    }
    let flushes: Vec<usize> = (0..1000).map(|i| world.flush(i % 8)).collect();
    world.poll();
    world.write(0, 0, 1);
    world.finish(0, Ok(()));
    let late: Vec<usize> = (0..1000).map(|i| world.flush(i % 8)).collect();
    world.settle();
    for flush in flushes.into_iter().chain(late) {
        assert_eq!(world.reply(flush), Some(Ok(())));
    }
    assert_eq!(world.flushes.len(), 9, "eight handles, then one again");
}

#[test]
fn a_flush_visits_only_the_connections_that_need_it() {
    let config = Config::new().with_mode(Mode::Emulate);
    let mut world = World::with_connections(config, caching(), 200);
    for (cell, conn) in (0..).zip([3, 70, 150]) {
        world.write(conn, cell, 1);
        world.settle();
    }
    world.flushes.clear();
    world.flush(0);
    world.settle();
    let mut visited = world.flushes.clone();
    visited.sort_unstable();
    assert_eq!(visited, [3, 70, 150]);
}

#[test]
fn a_flush_that_was_not_advertised_is_invalid() {
    let nothing = Backend::new();
    let cases = [
        (Mode::Disable, nothing),
        (Mode::Disable, nothing.with_multi_conn(true)),
        (Mode::Emulate, nothing.with_read_only(true)),
        (Mode::Unsafe, nothing),
    ];
    for (mode, backend) in cases {
        let mut world = World::new(Config::new().with_mode(mode), backend);
        let conn = world.connect(0);
        assert!(!world.opened(conn).unwrap().flush);
        let flush = world.flush(conn);
        assert_eq!(world.reply(flush), Some(Err(Errno::EINVAL)), "{mode}");
    }
}

#[test]
fn flushes_that_were_covered_while_they_waited_flush_nothing_more() {
    let config = Config::new()
        .with_mode(Mode::Emulate)
        .with_track_dirty(TrackDirty::Fast);
    let mut world = World::with_connections(config, caching(), 2);
    world.write(0, 0, 1);
    world.settle();
    let first = world.flush(1);
    world.poll();
    let write = world.write(0, 1, 1);
    world.finish(world.executing(write), Ok(()));
    let second = world.flush(1);
    world.settle();
    assert_eq!(world.reply(first), Some(Ok(())));
    assert_eq!(world.reply(second), Some(Ok(())));
    // Written out, then invalidated (which covers the second write), with the other handle.
    let mut flushes = world.flushes.clone();
    flushes.sort_unstable();
    assert_eq!(flushes, [0, 0, 1]);
}

#[test]
fn flushes_of_a_connection_that_is_on_its_own_share_one_after_a_failure() {
    let config = Config::new()
        .with_mode(Mode::Plugin)
        .with_after_failure(AfterFailure::Retry);
    let mut world = World::with_connections(config, caching(), 1);
    world.own = true;
    world.write(0, 0, 1);
    world.settle();
    let fails = world.flush(0);
    world.poll();
    world.finish_flush(world.flushing(0), Some(Fault::Keep));
    world.settle();
    assert_eq!(world.reply(fails), Some(Err(Errno::EIO)));
    let first = world.flush(0);
    world.poll();
    let second = world.flush(0);
    world.settle();
    let ok = Some(Ok(()));
    assert_eq!((world.reply(first), world.reply(second)), (ok, ok));
    assert_eq!(world.flushes, [0, 0]);
}

#[test]
fn a_flush_that_makes_a_handle_fresh_does_for_all_who_wait_for_that() {
    let mut world = World::with_connections(Config::new(), caching(), 2);
    let fua = world.write_fua(0, 0, 1);
    let old = world.read(0, 0, 1);
    world.finish(world.executing(fua), Ok(()));
    world.poll();
    world.finish_flush(world.flushing(0), None);
    world.poll();
    // What the read has found may be from before. Another one that begins now is not in the way.
    let new = world.read(0, 0, 1);
    let flush = world.flush(1);
    world.poll();
    assert!(!world.is_flushing(0));
    world.finish(world.executing(old), Ok(()));
    world.poll();
    world.finish_flush(world.flushing(0), None);
    world.poll();
    let ok = Some(Ok(()));
    assert_eq!((world.reply(fua), world.reply(flush)), (ok, ok));
    assert_eq!(world.reply(new), None);
    world.settle();
    assert_eq!(world.flushes, [0, 0]);
}

#[test]
fn an_overlapping_write_waits_for_the_flush_that_runs_and_not_for_another() {
    let config = Config::new().with_mode(Mode::Emulate);
    let backend = caching().with_loads_on_open(false);
    let mut world = World::with_connections(config, backend, 3);
    world.write(0, 0, 1);
    world.settle();
    world.flush(2);
    world.poll();
    // The flush that runs has begun after the write which this one overlaps.
    let overlapping = world.write(1, 0, 1);
    world.finish_flush(world.flushing(0), None);
    world.poll();
    assert_eq!(world.executing(overlapping), 0);
    world.settle();
    assert_eq!(world.flushes, [0]);
}
