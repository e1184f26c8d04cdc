//! Connections that are revoked: their clients may be back on others, and send again what was not
//! answered.

use nbd_proto::flush::{Acknowledge, AfterFailure, Backend, Config, Mode, Overlap};
use nbd_proto::wire::Errno;

use crate::world::{Fault, World};

const OK: Option<Result<(), Errno>> = Some(Ok(()));
const EIO: Option<Result<(), Errno>> = Some(Err(Errno::EIO));
const CANCELLED: Option<Result<(), Errno>> = Some(Err(Errno::ESHUTDOWN));

fn caching() -> Backend {
    Backend::new().with_flush(true)
}

fn shared() -> Backend {
    caching().with_multi_conn(true)
}

fn world(config: Config, backend: Backend) -> World {
    let mut world = World::new(config, backend);
    world.shared = backend == shared();
    world.own = matches!(config.mode(), Mode::Plugin | Mode::Disable) && !world.shared;
    world.unordered = world.own || config.overlap() == Overlap::Ignore;
    for _ in 0..3 {
        world.open();
    }
    world
}

/// All ways in which flushes work, with and without tracked ranges, for each time of answering.
fn worlds() -> Vec<World> {
    let mut worlds = Vec::new();
    for when in [
        Acknowledge::OnCompletion,
        Acknowledge::OnReceipt,
        Acknowledge::WriteThrough,
    ] {
        let config = Config::new().with_acknowledge(when);
        let ignore = config.with_overlap(Overlap::Ignore);
        worlds.push(world(config, caching()));
        worlds.push(world(ignore, caching()));
        for mode in [Mode::Auto, Mode::Plugin, Mode::Disable] {
            worlds.push(world(config.with_mode(mode), shared()));
        }
        for mode in [Mode::Plugin, Mode::Disable, Mode::Unsafe] {
            worlds.push(world(config.with_mode(mode), caching()));
            worlds.push(world(ignore.with_mode(mode), caching()));
        }
    }
    for world in &mut worlds {
        world.own |= world.coordinator.config().mode() == Mode::Unsafe;
        world.unordered |= world.own;
    }
    worlds
}

fn is_executing(world: &World, id: usize) -> bool {
    world.executing.iter().any(|it| it.id == id)
}

fn finish(world: &mut World, id: usize) {
    let at = world.executing(id);
    world.finish(at, Ok(()));
    world.poll();
}

/// Lets a write end, with the flushes that it needs.
fn answer(world: &mut World, id: usize) {
    if is_executing(world, id) {
        finish(world, id);
    }
    for _ in 0..4 {
        while !world.flushing.is_empty() {
            world.finish_flush(0, None);
            world.poll();
        }
    }
    assert_eq!(world.reply(id), OK);
}

#[test]
fn a_write_in_flight_when_its_connection_was_revoked_does_not_revert_the_retry() {
    for mut world in worlds() {
        let old = world.write(0, 0, 1);
        world.revoke(0);
        let retry = world.write(1, 0, 1);
        world.poll();
        let config = *world.coordinator.config();
        assert!(!is_executing(&world, retry), "{config:?}");
        assert_eq!(world.cancels, [0], "it is to be brought to an end");
        finish(&mut world, old);
        if !world.shared {
            assert!(!is_executing(&world, retry), "{config:?}: not written out");
            assert!(world.is_flushing(0), "{config:?}");
        }
        while !is_executing(&world, retry) {
            world.finish_flush(0, None);
            world.poll();
        }
        answer(&mut world, retry);
        let flush = world.flush(1);
        world.settle();
        assert_eq!(world.reply(flush), OK);
        assert_eq!(world.store[0], retry, "{config:?}");
        assert!(world.connections[0].released);
        world.check_all_answered();
    }
}

#[test]
fn what_a_cache_could_write_back_later_is_written_out_before_the_retry() {
    for mut world in worlds() {
        if world.shared {
            continue;
        }
        // It was executed, and the answer may have been lost on its way.
        let old = world.write(0, 0, 1);
        finish(&mut world, old);
        world.revoke(0);
        let retry = world.write(1, 0, 1);
        world.poll();
        let config = *world.coordinator.config();
        if config.acknowledge() != Acknowledge::WriteThrough {
            assert!(!is_executing(&world, retry), "{config:?}");
        }
        world.settle();
        assert_eq!(world.reply(retry), OK);
        let flush = world.flush(1);
        world.settle();
        assert_eq!(world.reply(flush), OK);
        assert_eq!(world.store[0], retry, "{config:?}");
    }
}

#[test]
fn what_had_not_begun_is_never_executed_and_comes_back() {
    for when in [Acknowledge::OnCompletion, Acknowledge::OnReceipt] {
        let mut world = world(Config::new().with_acknowledge(when), caching());
        let first = world.write(1, 0, 1);
        let behind = world.write(0, 0, 1);
        let read = world.read(0, 4, 1);
        let flush = world.flush(0);
        world.revoke(0);
        world.poll();
        assert_eq!(world.reply(behind), CANCELLED);
        let executing: Vec<_> = world.executing.iter().map(|it| it.id).collect();
        assert_eq!(executing, [first, read]);
        world.settle();
        world.check_all_answered();
        let flushed = world.reply(flush);
        assert!(flushed == CANCELLED || flushed == OK, "{flushed:?}");
        assert_eq!(world.sent[behind].conn, 0);
    }
}

#[test]
fn a_command_whose_action_was_not_taken_is_cancelled_too() {
    for policy in [AfterFailure::Sticky, AfterFailure::Retry] {
        for when in [Acknowledge::OnCompletion, Acknowledge::OnReceipt] {
            let config = Config::new().with_acknowledge(when);
            let mut world = world(config.with_after_failure(policy), caching());
            let first = world.write(1, 0, 1);
            let behind = world.write(0, 0, 1);
            let at = world.executing(first);
            world.finish(at, Ok(()));
            world.poll();
            world.finish_flush(0, None);
            // It may begin now, but nobody has begun it.
            world.revoke(0);
            world.poll();
            assert_eq!(world.reply(behind), CANCELLED);
            assert!(world.executing.is_empty() && world.cancels.is_empty());
            world.settle();
            assert!(world.connections[0].released);
            // Nobody was told that it is done.
            let flush = world.flush(1);
            world.settle();
            assert_eq!(world.reply(flush), OK);
            assert_eq!(world.store[0], first);
        }
    }
}

#[test]
fn nobody_waits_for_a_write_that_was_cancelled_before_it_began() {
    let mut world = world(Config::new(), caching());
    // So that the connection stays for a while.
    let hangs = world.read(0, 7, 1);
    let first = world.write(1, 0, 1);
    world.write(0, 0, 1);
    finish(&mut world, first);
    world.poll();
    world.finish_flush(0, None);
    world.revoke(0);
    world.poll();
    let retry = world.write(1, 0, 1);
    assert!(is_executing(&world, retry));
    assert!(is_executing(&world, hangs));
    world.settle();
    world.check_all_answered();
}

#[test]
fn a_revoked_connection_accepts_no_more_commands() {
    let mut world = world(Config::new(), caching());
    world.write(0, 0, 1);
    world.revoke(0);
    let late = world.read(0, 0, 1);
    assert!(world.sent[late].abandoned);
}

#[test]
fn what_was_acknowledged_before_stays_promised() {
    for mut world in worlds() {
        if world.own {
            continue;
        }
        let write = world.write(0, 0, 1);
        answer(&mut world, write);
        world.write(0, 1, 1);
        world.revoke(0);
        let flush = world.flush(1);
        world.settle();
        assert_eq!(world.reply(flush), OK);
        assert_eq!(world.store[0], write);
    }
}

#[test]
fn reads_do_not_wait_for_what_was_never_acknowledged() {
    for mut world in worlds() {
        if world.coordinator.config().acknowledge() == Acknowledge::OnReceipt {
            continue;
        }
        world.write(0, 0, 1);
        world.revoke(0);
        world.write(1, 0, 1);
        let read = world.read(2, 0, 1);
        assert!(is_executing(&world, read));
        world.settle();
    }
}

#[test]
fn only_what_overlaps_waits_where_ranges_are_tracked() {
    let mut world = world(Config::new(), caching());
    world.write(0, 0, 2);
    world.revoke(0);
    let beside = world.write(1, 2, 1);
    assert!(is_executing(&world, beside));
    world.settle();
}

#[test]
fn other_groups_do_not_wait() {
    use nbd_proto::flush::{Action, Command, Decision, FlushCoordinator, Grouping};
    use nbd_proto::wire::CommandType;

    let config = Config::new()
        .with_mode(Mode::Plugin)
        .with_grouping(Grouping::ByExport);
    let mut it: FlushCoordinator<u8, u8, u8> = FlushCoordinator::new(config);
    let [a, b, c] = [(0, 0), (1, 0), (2, 1)].map(|(key, export)| {
        let conn = it.connect(key, &export);
        it.opened(conn, caching()).unwrap();
        conn
    });
    let write = Command::new(CommandType::WRITE, 0, 1);
    let hangs = it.command(a, write, 0);
    assert!(matches!(hangs, Decision::Execute { .. }));
    it.revoke(a);
    assert!(matches!(it.poll(), Some(Action::Cancel { key: 0 })));
    assert!(matches!(it.command(b, write, 1), Decision::Wait));
    let elsewhere = it.command(c, write, 2);
    assert!(matches!(elsewhere, Decision::Execute { .. }));
}

#[test]
fn a_read_that_hangs_holds_up_the_release_but_no_write() {
    for mut world in worlds() {
        let read = world.read(0, 7, 1);
        let old = world.write(0, 0, 1);
        world.revoke(0);
        let retry = world.write(1, 0, 1);
        finish(&mut world, old);
        while !is_executing(&world, retry) {
            assert!(
                !world.flushing.is_empty(),
                "{:?}",
                world.coordinator.config()
            );
            world.finish_flush(0, None);
            world.poll();
        }
        assert!(!world.connections[0].released);
        assert!(is_executing(&world, read));
        world.settle();
        world.check_all_answered();
    }
}

#[test]
fn nobody_is_stuck_when_the_last_flush_fails_or_the_handle_is_lost() {
    for fault in [Some(Fault::Keep), Some(Fault::Drop), None] {
        for policy in [AfterFailure::Sticky, AfterFailure::Retry] {
            for world in worlds() {
                let config = world.coordinator.config().with_after_failure(policy);
                let mut world = self::world(config, world.backend);
                world.own |= config.mode() == Mode::Unsafe;
                world.unordered |= world.own;
                let old = world.write(0, 0, 1);
                world.revoke(0);
                let retry = world.write(1, 0, 1);
                if fault.is_some() {
                    finish(&mut world, old);
                    if !world.flushing.is_empty() {
                        world.finish_flush(0, fault);
                    }
                } else {
                    world.lose(0);
                }
                world.settle();
                world.check_all_answered();
                let reply = world.reply(retry);
                assert!(reply == OK || reply == EIO, "{config:?}: {reply:?}");
            }
        }
    }
}

#[test]
fn the_fence_holds_while_a_cache_that_failed_may_still_write_back() {
    let config = Config::new().with_mode(Mode::Plugin);
    let mut world = world(config, caching());
    let old = world.write(0, 0, 1);
    let read = world.read(0, 7, 1);
    world.revoke(0);
    let retry = world.write(1, 0, 1);
    finish(&mut world, old);
    world.finish_flush(0, Some(Fault::Keep));
    world.poll();
    assert!(!is_executing(&world, retry), "the handle is still open");
    finish(&mut world, read);
    assert!(world.connections[0].released);
    assert!(is_executing(&world, retry));
    world.settle();
    // On its own, nobody else is told.
    let flush = world.flush(1);
    world.settle();
    assert_eq!(world.reply(flush), OK);
}

#[test]
fn where_flushes_are_ignored_the_fence_holds_until_the_handle_is_released() {
    let config = Config::new().with_acknowledge(Acknowledge::IgnoreFlush);
    let mut world = world(config, caching());
    world.promises = false;
    let old = world.write(0, 0, 1);
    let read = world.read(0, 7, 1);
    world.revoke(0);
    let retry = world.write(1, 0, 1);
    finish(&mut world, old);
    assert!(!is_executing(&world, retry));
    finish(&mut world, read);
    assert!(world.connections[0].released && is_executing(&world, retry));
    assert!(world.flushes.is_empty());
}

#[test]
fn what_was_to_begin_when_its_connection_was_revoked_is_not_counted_nor_flushed() {
    for mut world in worlds() {
        // The retry of another connection's write waits, and may begin when that is gone.
        let old = world.write(0, 0, 1);
        world.revoke(0);
        world.poll();
        let waits = world.write(1, 0, 1);
        let at = world.executing(old);
        world.finish(at, Err(Errno::EIO));
        while !world.flushing.is_empty() {
            world.finish_flush(0, None);
        }
        let flushes = world.flushes.len();
        world.revoke(1);
        let next = world.write(2, 0, 1);
        world.settle();
        let config = *world.coordinator.config();
        assert_eq!(world.reply(waits), CANCELLED, "{config:?}");
        assert_eq!(world.reply(next), OK, "{config:?}");
        assert_eq!(world.coordinator.counters().modifications, 2, "{config:?}");
        assert!(!world.flushes[flushes..].contains(&1), "{config:?}");
        world.check_all_answered();
    }
}

#[test]
fn a_connection_that_was_said_to_have_left_can_be_revoked() {
    for mut world in worlds() {
        let old = world.write(0, 0, 1);
        world.disconnect(0);
        world.revoke(0);
        let retry = world.write(1, 0, 1);
        assert!(!is_executing(&world, retry));
        finish(&mut world, old);
        world.settle();
        assert_eq!(world.reply(retry), OK);
        // And one that is gone, or was never open, without any effect.
        world.coordinator.revoke(world.connections[0].conn);
        let opening = world.connect(0);
        world.revoke(opening);
        world.settle();
        world.check_all_answered();
    }
}

#[test]
fn two_revoked_connections_are_both_waited_for() {
    for mut world in worlds() {
        let first = world.write(0, 0, 1);
        let second = world.write(1, 1, 1);
        world.revoke(0);
        world.revoke(1);
        let retry = world.write(2, 0, 2);
        finish(&mut world, first);
        while !world.flushing.is_empty() {
            world.finish_flush(0, None);
            world.poll();
        }
        assert!(
            !is_executing(&world, retry),
            "{:?}",
            world.coordinator.config()
        );
        finish(&mut world, second);
        world.settle();
        assert_eq!(world.reply(retry), OK);
        world.check_all_answered();
    }
}

#[test]
fn a_revoked_connection_is_written_out_once() {
    let config = Config::new().with_mode(Mode::Disable);
    let mut world = World::with_connections(config, caching(), 2);
    world.promises = false;
    world.write(0, 0, 1);
    world.settle();
    let [first, second] = [0, 1].map(|cell| world.read(0, cell, 1));
    world.revoke(0);
    world.poll();
    // Each end of a read is a moment to see whether the data can be written out.
    finish(&mut world, first);
    finish(&mut world, second);
    world.settle();
    assert_eq!(world.flushes, [0]);
    assert!(world.connections[0].released);
}
