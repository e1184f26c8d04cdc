//! What a failed backend flush means for those who rely on a later one: FUA commands, and clients
//! that were told of an earlier failure.

use nbd_proto::flush::{AfterFailure, Backend, Command, Config, Decision, Grouping};
use nbd_proto::wire::{CommandType, Errno};

use crate::world::{Fault, Load, World};

fn caching() -> Backend {
    Backend::new().with_flush(true)
}

fn world(config: Config) -> World {
    World::with_connections(config, caching(), 2)
}

fn fua(cell: u64) -> Command {
    Command::new(CommandType::WRITE, cell, 1).with_fua(true)
}

#[test]
fn fua_does_not_trust_a_flush_after_one_that_failed_when_the_data_was_cached() {
    let mut world = world(Config::new());
    world.write(0, 3, 1);
    world.settle();
    let flush = world.flush(0);
    world.poll();
    // It completes while the flush runs that will lose everything.
    let fua = world.send_loading(0, fua(0), Load::Late);
    let at = world.executing(fua);
    world.finish(at, Ok(()));
    let at = world.flushing(0);
    world.finish_flush(at, Some(Fault::Drop));
    world.settle();
    assert_eq!(world.reply(flush), Some(Err(Errno::EIO)));
    assert_eq!(world.reply(fua), Some(Err(Errno::EIO)));
    world.check();
}

#[test]
fn fua_that_was_executing_when_a_flush_failed_fails_too() {
    let mut world = world(Config::new());
    world.write(0, 3, 1);
    world.settle();
    world.flush(0);
    world.poll();
    let fua = world.send_loading(0, fua(0), Load::Late);
    let at = world.flushing(0);
    world.finish_flush(at, Some(Fault::Drop));
    let at = world.executing(fua);
    world.finish(at, Ok(()));
    world.settle();
    assert_eq!(world.reply(fua), Some(Err(Errno::EIO)));
}

#[test]
fn fua_that_begins_after_a_failure_may_succeed() {
    let mut world = world(Config::new());
    world.write(0, 3, 1);
    world.settle();
    world.flush(0);
    world.poll();
    let at = world.flushing(0);
    world.finish_flush(at, Some(Fault::Drop));
    world.settle();
    let fua = world.send_loading(0, fua(0), Load::Late);
    world.settle();
    assert_eq!(world.reply(fua), Some(Ok(())));
}

#[test]
fn under_retry_fua_may_rely_on_a_later_flush() {
    let mut world = world(Config::new().with_after_failure(AfterFailure::Retry));
    world.write(0, 3, 1);
    world.settle();
    world.flush(0);
    world.poll();
    let fua = world.send_loading(0, fua(0), Load::Late);
    let at = world.executing(fua);
    world.finish(at, Ok(()));
    let at = world.flushing(0);
    world.finish_flush(at, Some(Fault::Keep));
    world.settle();
    assert_eq!(world.reply(fua), Some(Ok(())));
    world.check();
}

#[test]
fn over_a_shared_cache_a_failed_flush_concerns_the_fua_commands_of_all() {
    use nbd_proto::flush::{Action, FlushCoordinator, FlushId};

    let shared = caching().with_multi_conn(true);
    let mut it: FlushCoordinator<usize, u8, u32> = FlushCoordinator::new(Config::new());
    let open = |it: &mut FlushCoordinator<usize, u8, u32>, key| {
        let conn = it.connect(key, &0);
        it.opened(conn, shared).unwrap();
        conn
    };
    let (a, b) = (open(&mut it, 0), open(&mut it, 1));
    let Decision::Execute { op, tag } = it.command(a, fua(0), 1) else {
        panic!("nothing is in its way");
    };
    assert!(matches!(it.complete(op, tag, Ok(())), Decision::Wait));
    assert!(matches!(it.command(b, Command::FLUSH, 2), Decision::Wait));
    let mut replies = Vec::new();
    let mut flushes: Vec<FlushId> = Vec::new();
    loop {
        match it.poll() {
            Some(Action::Flush { flush, .. }) => flushes.push(flush),
            Some(Action::Reply { tag, result, .. }) => replies.push((tag, result)),
            Some(other) => panic!("{other:?}"),
            None if flushes.is_empty() => break,
            None => {
                // That of b fails first, and drops what the cache held.
                flushes.sort_by_key(|flush| flush.conn() == b);
                let flush = flushes.pop().unwrap();
                let failed = flush.conn() == b;
                it.flushed(flush, if failed { Err(Errno::EIO) } else { Ok(()) });
            }
        }
    }
    replies.sort_unstable_by_key(|&(tag, _)| tag);
    assert_eq!(replies, [(1, Err(Errno::EIO)), (2, Err(Errno::EIO))]);
}

#[test]
fn a_second_failure_is_not_forgotten_because_the_first_was_told() {
    let mut world = World::with_connections(
        Config::new(),
        caching().with_self_coherent(true).with_loads_on_open(false),
        2,
    );
    world.write(0, 0, 1);
    world.settle();
    let told = world.flush(1);
    world.poll();
    let at = world.flushing(0);
    world.finish_flush(at, Some(Fault::Drop));
    world.settle();
    assert_eq!(world.reply(told), Some(Err(Errno::EIO)));
    // Another write, whose loss no flush hears of: only a write that had to come after it does.
    world.write(0, 1, 1);
    world.settle();
    let late = world.write(1, 1, 1);
    world.poll();
    let at = world.flushing(0);
    world.finish_flush(at, Some(Fault::Drop));
    world.poll();
    assert_eq!(world.reply(late), Some(Err(Errno::EIO)));
    world.disconnect(0);
    world.disconnect(1);
    world.settle();
    let newcomer = world.open();
    let flush = world.flush(newcomer);
    world.settle();
    assert_eq!(world.reply(flush), Some(Err(Errno::EIO)));
}

#[test]
fn a_round_whose_write_out_failed_flushes_nothing_more() {
    let mut world = world(Config::new());
    world.write(0, 0, 1);
    world.read(1, 0, 1);
    world.settle();
    let flush = world.flush(1);
    world.poll();
    let at = world.flushing(0);
    world.finish_flush(at, Some(Fault::Keep));
    world.settle();
    assert_eq!(world.reply(flush), Some(Err(Errno::EIO)));
    assert_eq!(world.flushes, [0]);
}

#[test]
fn a_loss_is_not_told_twice_because_the_lost_connections_own_flush_had_waited() {
    let config = Config::new().with_after_failure(AfterFailure::Retry);
    let mut world = World::with_connections(config, caching(), 2);
    let write = |world: &mut World, conn, cell| {
        world.write(conn, cell, 1);
        world.finish(world.executing.len() - 1, Ok(()));
    };
    write(&mut world, 0, 0);
    world.flush(0);
    write(&mut world, 0, 1);
    // It waits for the next round.
    world.flush(0);
    world.lose(0);
    world.settle();
    let told = world.flush(1);
    world.settle();
    assert_eq!(world.reply(told), Some(Err(Errno::EIO)));
    world.write(1, 2, 1);
    world.settle();
    let later = world.flush(1);
    world.settle();
    assert_eq!(world.reply(later), Some(Ok(())));
}

/// Two handles with a FUA command each that waits for its flush; the first one's flush fails.
fn after_one_of_two_failed(
    config: Config,
    backend: Backend,
    exports: [u8; 2],
) -> (World, [usize; 2]) {
    let mut world = World::new(config, backend);
    let conns = exports.map(|export| {
        let conn = world.connect(export);
        world.opened(conn).unwrap();
        conn
    });
    let fuas = [0, 1].map(|at| {
        let id = world.send_loading(conns[at], fua(at as u64), Load::Late);
        let executing = world.executing(id);
        world.finish(executing, Ok(()));
        id
    });
    world.poll();
    let at = world.flushing(conns[0]);
    world.finish_flush(at, Some(Fault::Drop));
    world.settle();
    (world, fuas)
}

#[test]
fn a_failed_flush_of_one_handle_is_not_the_affair_of_fua_on_another() {
    let (world, [first, second]) = after_one_of_two_failed(Config::new(), caching(), [0, 0]);
    assert_eq!(world.reply(first), Some(Err(Errno::EIO)));
    assert_eq!(world.reply(second), Some(Ok(())));
}

#[test]
fn a_failed_flush_of_a_shared_cache_is_not_the_affair_of_fua_on_another_export() {
    let config = Config::new().with_grouping(Grouping::ByExport);
    let shared = caching().with_multi_conn(true);
    let (world, [first, second]) = after_one_of_two_failed(config, shared, [0, 1]);
    assert_eq!(world.reply(first), Some(Err(Errno::EIO)));
    assert_eq!(world.reply(second), Some(Ok(())));
}
