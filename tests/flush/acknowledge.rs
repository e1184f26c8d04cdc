//! When modifications are answered, and what their answers mean.

use nbd_proto::flush::{
    Acknowledge, Action, AfterFailure, Backend, Command, Config, Decision, FlushCoordinator, Mode,
    OpenError, ThreadModel, TrackDirty,
};
use nbd_proto::wire::{CommandType, Errno};

use crate::world::{Fault, World};

fn caching() -> Backend {
    Backend::new().with_flush(true)
}

fn shared() -> Backend {
    caching().with_multi_conn(true)
}

fn config(when: Acknowledge) -> Config {
    Config::new().with_acknowledge(when)
}

fn on_receipt() -> Config {
    config(Acknowledge::OnReceipt)
}

fn world(config: Config, backend: Backend) -> World {
    let mut world = World::new(config, backend);
    world.shared = backend == shared();
    world.own = matches!(config.mode(), Mode::Plugin | Mode::Disable) && !world.shared;
    for _ in 0..3 {
        world.open();
    }
    world
}

fn open(config: Config, backend: Backend) -> Result<(bool, bool, bool), OpenError> {
    let mut world = World::new(config, backend);
    let conn = world.connect(0);
    let advertised = world.opened(conn)?;
    Ok((advertised.multi_conn, advertised.flush, advertised.fua))
}

const OK: Option<Result<(), Errno>> = Some(Ok(()));
const EIO: Option<Result<(), Errno>> = Some(Err(Errno::EIO));

mod write_through {
    use super::*;

    fn config() -> Config {
        super::config(Acknowledge::WriteThrough)
    }

    #[test]
    fn a_write_is_stable_and_visible_to_all_before_its_reply() {
        let mut world = world(config(), caching());
        world.read(1, 0, 1);
        world.settle();
        let write = world.write(0, 0, 1);
        let at = world.executing(write);
        world.finish(at, Ok(()));
        assert_eq!(world.reply(write), None, "it is only in the cache");
        world.poll();
        world.finish_flush(0, None);
        world.poll();
        assert_eq!(world.reply(write), None, "another one may read what is old");
        world.settle();
        assert_eq!(world.reply(write), OK);
        assert_eq!(world.store[0], write);
        let read = world.read(1, 0, 1);
        world.settle();
        assert_eq!(world.value(read), write);
    }

    #[test]
    fn a_flush_has_nothing_left_to_do() {
        for mode in [Mode::Emulate, Mode::Plugin] {
            let mut world = world(config().with_mode(mode), caching().with_self_coherent(true));
            world.own = mode == Mode::Plugin;
            world.write(0, 0, 1);
            world.settle();
            let before = world.flushes.len();
            let flush = world.flush(0);
            assert_eq!(world.reply(flush), OK, "{mode}");
            assert_eq!(world.flushes.len(), before, "{mode}");
        }
    }

    #[test]
    fn native_fua_is_used_where_it_suffices() {
        let backend = Backend::new().with_fua(true);
        let mut world = world(config().with_mode(Mode::Disable), backend);
        let write = world.write(0, 0, 1);
        assert!(world.executing[0].op.fua());
        world.settle();
        assert_eq!(world.reply(write), OK);
        assert_eq!(world.store[0], write);
        assert!(world.flushes.is_empty());
    }

    #[test]
    fn a_flush_that_fails_fails_the_write() {
        let mut world = world(config(), caching());
        let write = world.write(0, 0, 1);
        world.finish(0, Ok(()));
        world.poll();
        world.finish_flush(0, Some(Fault::Drop));
        world.poll();
        assert_eq!(world.reply(write), EIO);
    }

    #[test]
    fn a_backend_that_can_make_nothing_stable_is_refused() {
        let cannot = Err(OpenError::CannotWriteThrough);
        for mode in [Mode::Auto, Mode::Plugin, Mode::Disable, Mode::Unsafe] {
            assert_eq!(open(config().with_mode(mode), Backend::new()), cannot);
        }
        let disable = config().with_mode(Mode::Disable);
        let read_only = Backend::new().with_read_only(true);
        assert_eq!(open(disable, read_only), Ok((false, false, false)));
        let stable = Backend::new().with_caches_nothing(true);
        assert_eq!(open(disable, stable), Ok((false, true, true)));
        let fua = Backend::new().with_fua(true);
        assert_eq!(open(disable, fua), Ok((false, false, true)));
    }
}

mod ignore_flush {
    use super::*;

    fn config(mode: Mode) -> Config {
        super::config(Acknowledge::IgnoreFlush).with_mode(mode)
    }

    #[test]
    fn flush_and_fua_are_answered_without_any_backend_flush() {
        let modes = [Mode::Auto, Mode::Plugin, Mode::Disable, Mode::Unsafe];
        for backend in [caching(), shared(), caching().with_fua(true)] {
            for mode in modes {
                for level in [TrackDirty::Connection, TrackDirty::Fast, TrackDirty::Off] {
                    let mut world = world(config(mode).with_track_dirty(level), backend);
                    world.promises = false;
                    let fua = world.write_fua(0, 0, 1);
                    assert!(!world.executing[0].op.fua());
                    world.settle();
                    let flush = world.flush(0);
                    let other = world.flush(1);
                    assert_eq!([fua, flush, other].map(|id| world.reply(id)), [OK; 3]);
                    world.disconnect(0);
                    world.settle();
                    world.check_all_answered();
                    assert!(world.flushes.is_empty(), "{mode} {level}");
                }
            }
        }
    }

    #[test]
    fn multi_conn_is_advertised_only_where_data_is_visible_without_a_flush() {
        let no = Ok((false, true, true));
        let yes = Ok((true, true, true));
        for (mode, over_caches, over_shared) in [
            (Mode::Auto, no, yes),
            (Mode::Plugin, no, yes),
            (Mode::Disable, no, no),
            (Mode::Unsafe, yes, yes),
        ] {
            assert_eq!(open(config(mode), caching()), over_caches, "{mode}");
            assert_eq!(open(config(mode), shared()), over_shared, "{mode}");
            assert_eq!(open(config(mode), Backend::new()), over_caches, "{mode}");
        }
        let through = Backend::new().with_caches_nothing(true);
        assert_eq!(open(config(Mode::Emulate), through), yes);
        let read_only = caching().with_read_only(true);
        assert_eq!(open(config(Mode::Emulate), read_only), yes);
    }

    #[test]
    fn it_cannot_be_combined_with_emulation_over_caches() {
        let refused = Err(OpenError::CannotIgnoreFlush);
        assert_eq!(open(config(Mode::Emulate), caching()), refused);
        // Nor may a writer join readers that would never see what it writes.
        let mut it: FlushCoordinator<u8, u8, ()> = FlushCoordinator::new(config(Mode::Emulate));
        let conn = it.connect(0, &0);
        it.opened(conn, caching().with_read_only(true)).unwrap();
        let conn = it.connect(1, &0);
        let through = Backend::new().with_caches_nothing(true);
        assert_eq!(it.opened(conn, through), Err(OpenError::GroupCannotFlush));
    }
}

mod on_receipt {
    use super::*;

    /// All ways in which flushes work.
    fn worlds() -> Vec<World> {
        let config = on_receipt();
        vec![
            world(config, caching()),
            world(config, shared()),
            world(config.with_mode(Mode::Plugin), shared()),
            world(config.with_mode(Mode::Disable), caching()),
        ]
    }

    #[test]
    fn a_flush_that_was_not_advertised_is_refused_without_waiting_for_anything() {
        let mut it = FlushCoordinator::<usize, u8, u32>::new(on_receipt());
        let (writer, reader) = (it.connect(0, &0), it.connect(1, &0));
        it.opened(writer, shared()).unwrap();
        let no_flush = Backend::new().with_multi_conn(true).with_read_only(true);
        assert!(!it.opened(reader, no_flush).unwrap().flush);
        let write = Command::new(CommandType::WRITE, 0, 1);
        let Decision::Execute { op, .. } = it.command(writer, write, 1) else {
            panic!("nothing is in its way");
        };
        assert!(op.acknowledged());
        let refused = it.command(reader, Command::FLUSH, 2);
        let einval = Err(Errno::EINVAL);
        assert!(matches!(refused, Decision::Reply { tag: 2, result } if result == einval));
    }

    #[test]
    fn a_write_is_answered_when_it_begins_and_not_again() {
        for mut world in worlds() {
            let write = world.write(0, 0, 1);
            assert_eq!(world.reply(write), OK);
            assert_eq!(world.executing.len(), 1);
            world.settle();
            world.check_all_answered();
        }
    }

    #[test]
    fn reads_and_fua_are_answered_on_completion() {
        for mut world in worlds() {
            let read = world.read(0, 0, 1);
            let fua = world.write_fua(0, 1, 1);
            assert_eq!([read, fua].map(|id| world.reply(id)), [None; 2]);
            world.settle();
            assert_eq!([read, fua].map(|id| world.reply(id)), [OK; 2]);
        }
    }

    #[test]
    fn what_waited_for_a_write_is_not_served_by_a_handle_that_may_hold_what_is_old() {
        let backend = caching().with_loads_on_open(false);
        let mut world = World::with_connections(on_receipt(), backend, 3);
        world.read(1, 0, 1);
        world.settle();
        let fua = world.write_fua(2, 0, 1);
        world.finish(world.executing(fua), Ok(()));
        world.poll();
        world.finish_flush(world.flushing(2), None);
        world.poll();
        let early = world.write(0, 5, 1);
        let read = world.read(1, 0, 6);
        let is_executing = |world: &World| world.executing.iter().any(|it| it.id == read);
        assert!(
            !is_executing(&world),
            "what was answered is not executed yet"
        );
        world.finish_flush(world.flushing(1), Some(Fault::Keep));
        world.poll();
        assert_eq!(world.reply(fua), OK, "its data is safe");
        world.finish(world.executing(early), Ok(()));
        world.poll();
        assert!(!is_executing(&world) && world.is_flushing(1));
        world.settle();
        assert_eq!(world.value(read), fua);
    }

    #[test]
    fn what_has_to_wait_is_answered_when_it_begins() {
        let mut world = world(on_receipt(), caching());
        world.write(0, 0, 1);
        let later = world.write(1, 0, 1);
        assert_eq!(
            world.reply(later),
            None,
            "a client that is ahead slows down"
        );
        world.finish(0, Ok(()));
        world.poll();
        assert_eq!(world.reply(later), None, "the first is not written out");
        world.finish_flush(0, None);
        world.poll();
        assert_eq!(world.reply(later), OK);
        assert_eq!(world.executing.len(), 1);
    }

    #[test]
    fn a_read_that_overlaps_an_acknowledged_write_waits_for_it() {
        for mut world in worlds() {
            for conn in [0, 1] {
                let write = world.write(0, 0, 2);
                let read = world.read(conn, 1, 2);
                let beside = world.read(conn, 2, 1);
                let executing: Vec<_> = world.executing.iter().map(|it| it.id).collect();
                assert_eq!(executing, [write, beside]);
                world.finish(0, Ok(()));
                world.poll();
                let at = world.executing(read);
                world.finish(at, Ok(()));
                if conn == 0 || world.shared {
                    assert_eq!(world.sent[read].data[&1], write);
                }
                world.settle();
            }
        }
    }

    #[test]
    fn writes_that_overlap_an_acknowledged_write_wait_their_turn() {
        for mut world in worlds() {
            let first = world.write(0, 0, 2);
            let second = world.write(0, 1, 2);
            // It overlaps with the one that waits only, and must not come before it.
            let third = world.write(0, 2, 2);
            let executing: Vec<_> = world.executing.iter().map(|it| it.id).collect();
            assert_eq!(executing, [first]);
            world.finish(0, Ok(()));
            world.poll();
            let executing: Vec<_> = world.executing.iter().map(|it| it.id).collect();
            assert_eq!(executing, [second]);
            world.finish(0, Ok(()));
            world.poll();
            let executing: Vec<_> = world.executing.iter().map(|it| it.id).collect();
            assert_eq!(executing, [third]);
            world.settle();
            world.check_all_answered();
        }
    }

    /// Writes without a pause: each begins, if it may, before the one before it ends.
    fn write_steadily(world: &mut World) {
        for round in 0..6 {
            world.write(0, 4 + 2 * (round % 2), 2);
            world.finish(0, Ok(()));
            world.poll();
            while !world.flushing.is_empty() {
                world.finish_flush(0, None);
                world.poll();
            }
        }
    }

    #[test]
    fn a_steady_writer_does_not_starve_a_reader() {
        for mut world in worlds() {
            world.write(0, 6, 2);
            let read = world.read(1, 4, 4);
            write_steadily(&mut world);
            assert_eq!(world.reply(read), OK);
        }
    }

    #[test]
    fn a_steady_writer_does_not_starve_a_flush() {
        for mut world in worlds() {
            world.write(0, 6, 2);
            let flush = world.flush(0);
            write_steadily(&mut world);
            assert_eq!(world.reply(flush), OK);
        }
    }

    #[test]
    fn a_flush_waits_for_what_was_acknowledged_before_it_arrived() {
        for level in [TrackDirty::Connection, TrackDirty::Fast, TrackDirty::Off] {
            for mut world in worlds() {
                let config = world.coordinator.config().with_track_dirty(level);
                world.coordinator = FlushCoordinator::new(config);
                world.connections.clear();
                for _ in 0..2 {
                    world.open();
                }
                let write = world.write(0, 0, 1);
                let conn = if world.own { 0 } else { 1 };
                let flush = world.flush(conn);
                world.poll();
                assert!(world.flushing.is_empty(), "it would not cover the write");
                assert_eq!(world.reply(flush), None);
                world.finish(0, Ok(()));
                world.settle();
                assert_eq!(world.reply(flush), OK);
                assert_eq!(world.store[0], write);
            }
        }
    }

    #[test]
    fn a_flush_joins_no_round_that_began_before_an_acknowledged_write_ended() {
        for backend in [caching(), shared()] {
            let mut world = world(on_receipt(), backend);
            world.write(0, 0, 1);
            world.finish(0, Ok(()));
            let first = world.flush(1);
            world.poll();
            let write = world.write(0, 1, 1);
            let second = world.flush(2);
            world.finish(0, Ok(()));
            world.finish_flush(0, None);
            world.poll();
            assert_eq!(world.reply(second), None);
            world.settle();
            assert_eq!([first, second].map(|id| world.reply(id)), [OK; 2]);
            assert_eq!(world.store[1], write);
        }
    }

    #[test]
    fn a_flush_of_one_connection_does_not_wait_for_another_where_each_is_on_its_own() {
        let mut world = world(on_receipt().with_mode(Mode::Disable), caching());
        world.write(0, 0, 1);
        let flush = world.flush(1);
        assert_eq!(world.reply(flush), OK);
    }

    #[test]
    fn a_write_that_fails_late_is_reported_by_the_next_flush_of_all() {
        for policy in [AfterFailure::Sticky, AfterFailure::Retry] {
            for backend in [caching(), shared()] {
                let mut world = world(on_receipt().with_after_failure(policy), backend);
                let write = world.write(0, 0, 1);
                let waiting = world.flush(1);
                world.finish(0, Err(Errno::ENOSPC));
                world.settle();
                assert_eq!(world.reply(write), OK);
                let told = Some(Err(Errno::ENOSPC));
                assert_eq!(world.reply(waiting), told);
                for conn in [0, 2] {
                    let flush = world.flush(conn);
                    world.settle();
                    assert_eq!(world.reply(flush), told, "{policy} {conn}");
                }
                let again = world.flush(1);
                world.settle();
                let retry = policy == AfterFailure::Retry;
                assert_eq!(world.reply(again), if retry { OK } else { told });
            }
        }
    }

    #[test]
    fn what_waits_for_an_acknowledged_write_and_then_for_its_handle_keeps_its_place() {
        let config = on_receipt().with_thread_model(ThreadModel::SerializeRequests);
        let mut world = world(config, caching());
        let write = world.write(1, 0, 1);
        let read = world.read(0, 0, 1);
        let beside = world.read(0, 5, 1);
        world.finish(world.executing(write), Ok(()));
        world.poll();
        // The write has ended, but the handle is busy.
        assert_eq!(world.executing.len(), 1);
        let later = world.write(1, 0, 1);
        assert_eq!(world.reply(later), None, "it would overtake the read");
        world.finish(world.executing(beside), Ok(()));
        world.poll();
        world.finish(world.executing(read), Ok(()));
        world.settle();
        assert_eq!([read, later].map(|id| world.reply(id)), [OK; 2]);
        assert_eq!(world.coordinator.counters().overlap_waits, 2);
    }

    #[test]
    fn a_flush_that_comes_before_the_answer_of_a_deferred_one_fails_like_it() {
        let config = on_receipt().with_after_failure(AfterFailure::Retry);
        let mut coordinator: FlushCoordinator<u8, u8, u8> = FlushCoordinator::new(config);
        let conn = coordinator.connect(0, &0);
        // So that no flush of the handle is needed, and the deferred one is answered at once.
        let backend = Backend::new().with_caches_nothing(true);
        coordinator.opened(conn, backend).unwrap();
        let write = Command::new(CommandType::WRITE, 0, 1);
        let Decision::Execute { op, tag } = coordinator.command(conn, write, 1) else {
            panic!("nothing is in its way");
        };
        let deferred = coordinator.command(conn, Command::FLUSH, 2);
        assert!(matches!(deferred, Decision::Wait));
        let end = coordinator.complete(op, tag, Err(Errno::ENOSPC));
        assert!(matches!(end, Decision::Answered { tag: 1 }));
        // The answer of the first stands among the actions, and nobody has taken it.
        let next = coordinator.command(conn, Command::FLUSH, 3);
        let failed = |decision| {
            matches!(
                decision,
                Decision::Reply {
                    result: Err(Errno::ENOSPC),
                    ..
                }
            )
        };
        assert!(failed(next));
        let told = coordinator.poll();
        let result = Err(Errno::ENOSPC);
        assert!(matches!(told, Some(Action::Reply { tag: 2, result: it, .. }) if it == result));
        assert!(coordinator.poll().is_none());
        let later = coordinator.command(conn, Command::FLUSH, 4);
        assert!(matches!(later, Decision::Reply { result: Ok(()), .. }));
    }

    #[test]
    fn where_each_is_on_its_own_a_late_failure_concerns_one() {
        for policy in [AfterFailure::Sticky, AfterFailure::Retry] {
            let config = on_receipt().with_after_failure(policy);
            let mut world = world(config.with_mode(Mode::Plugin), caching());
            world.write(0, 0, 1);
            world.finish(0, Err(Errno::EIO));
            let [first, other] = [world.flush(0), world.flush(1)];
            world.settle();
            let again = world.flush(0);
            world.settle();
            assert_eq!([first, other].map(|id| world.reply(id)), [EIO, OK]);
            let retry = policy == AfterFailure::Retry;
            assert_eq!(world.reply(again), if retry { OK } else { EIO });
        }
    }

    #[test]
    fn a_handle_lost_with_an_acknowledged_write_is_data_lost() {
        for policy in [AfterFailure::Sticky, AfterFailure::Retry] {
            for backend in [caching(), shared()] {
                let mut world = world(on_receipt().with_after_failure(policy), backend);
                world.write(0, 0, 1);
                let waiting = world.flush(1);
                world.lose(0);
                let later = world.flush(2);
                world.settle();
                assert_eq!([waiting, later].map(|id| world.reply(id)), [EIO; 2]);
                world.check_all_answered();
            }
        }
    }

    #[test]
    fn what_was_not_begun_when_its_handle_was_lost_was_not_acknowledged() {
        let mut it: FlushCoordinator<u8, u8, u32> = FlushCoordinator::new(on_receipt());
        let [a, b] = [0, 1].map(|key| {
            let conn = it.connect(key, &0);
            it.opened(conn, shared()).unwrap();
            conn
        });
        let write = Command::new(CommandType::WRITE, 0, 1);
        let Decision::Execute { op, .. } = it.command(b, write, 1) else {
            panic!("nothing is in its way");
        };
        assert!(matches!(it.command(a, write, 2), Decision::Wait));
        let decision = it.complete(op, 1, Ok(()));
        assert!(matches!(decision, Decision::Answered { tag: 1 }));
        // The action that would begin it waits to be taken.
        it.lost(a);
        assert!(matches!(it.command(b, Command::FLUSH, 3), Decision::Wait));
        let mut replies = Vec::new();
        while let Some(action) = it.poll() {
            match action {
                Action::Flush { flush, .. } => it.flushed(flush, Ok(())),
                Action::Reply { tag, result, .. } => replies.push((tag, result)),
                Action::Release { key } => assert_eq!(key, 0),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(replies, [(2, Err(Errno::EIO)), (3, Ok(()))]);
    }

    #[test]
    fn a_leaving_connection_waits_for_its_acknowledged_writes() {
        let mut world = world(on_receipt(), caching());
        let write = world.write(0, 0, 1);
        let flush = world.flush(1);
        world.disconnect(0);
        world.poll();
        assert!(!world.connections[0].released);
        world.settle();
        assert!(world.connections[0].released);
        assert_eq!(world.reply(flush), OK);
        assert_eq!(world.store[0], write);
    }

    #[test]
    fn a_backend_without_flush_could_never_report_a_late_failure() {
        let disable = on_receipt().with_mode(Mode::Disable);
        let cannot = Err(OpenError::CannotReportLater);
        assert_eq!(open(disable, Backend::new()), cannot);
        assert_eq!(open(disable, Backend::new().with_fua(true)), cannot);
        let read_only = Backend::new().with_read_only(true);
        assert_eq!(open(disable, read_only), Ok((false, false, false)));
        let through = Backend::new().with_caches_nothing(true);
        assert_eq!(open(disable, through), Ok((false, true, true)));
    }
}
