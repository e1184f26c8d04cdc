//! Handles of different kinds: a shared cache that one flush covers, caches of their own, and
//! no cache at all; which of them may be in one group, and what a flush on one means for another.

use nbd_proto::flush::{
    Action, Backend, Command, Config, Conn, Decision, FlushCoordinator, FlushId, Mode, Op,
    OpenError, TrackDirty,
};
use nbd_proto::wire::{CommandType, Errno};

type Coordinator = FlushCoordinator<usize, u8, u32>;
type Answer = (u32, Result<(), Errno>);

fn shared() -> Backend {
    Backend::new().with_flush(true).with_multi_conn(true)
}

fn caching() -> Backend {
    Backend::new().with_flush(true).with_loads_on_open(false)
}

fn through() -> Backend {
    Backend::new().with_caches_nothing(true)
}

fn write(offset: u64) -> Command {
    Command::new(CommandType::WRITE, offset, 1)
}

fn read(offset: u64) -> Command {
    Command::new(CommandType::READ, offset, 1)
}

fn open(coordinator: &mut Coordinator, key: usize, backend: Backend) -> Conn {
    let conn = coordinator.connect(key, &0);
    coordinator.opened(conn, backend).unwrap();
    conn
}

fn begin(coordinator: &mut Coordinator, conn: Conn, command: Command, tag: u32) -> Op {
    match coordinator.command(conn, command, tag) {
        Decision::Execute { op, .. } => op,
        other => panic!("nothing is in its way: {other:?}"),
    }
}

/// Executes a command and answers it.
fn execute(coordinator: &mut Coordinator, conn: Conn, command: Command) {
    let op = begin(coordinator, conn, command, 0);
    let decision = coordinator.complete(op, 0, Ok(()));
    assert!(matches!(decision, Decision::Reply { result: Ok(()), .. }));
}

fn starts_flush(coordinator: &mut Coordinator, conn: Conn, tag: u32) {
    let decision = coordinator.command(conn, Command::FLUSH, tag);
    assert!(matches!(decision, Decision::Wait), "{decision:?}");
}

/// What there is to do: flushes, and answers.
fn poll(coordinator: &mut Coordinator) -> (Vec<FlushId>, Vec<Answer>) {
    let (mut flushes, mut replies) = (Vec::new(), Vec::new());
    while let Some(action) = coordinator.poll() {
        match action {
            Action::Flush { flush, .. } => flushes.push(flush),
            Action::Reply { tag, result, .. } => replies.push((tag, result)),
            Action::Execute { op, tag, .. } => {
                let _ = coordinator.complete(op, tag, Ok(()));
            }
            _ => {}
        }
    }
    (flushes, replies)
}

fn end(coordinator: &mut Coordinator, flushes: &[FlushId]) {
    for &flush in flushes {
        coordinator.flushed(flush, Ok(()));
    }
}

#[test]
fn over_a_shared_cache_a_flush_does_not_join_one_that_began_before_anothers_write() {
    for mode in [Mode::Auto, Mode::Plugin, Mode::Disable] {
        let mut it = Coordinator::new(Config::new().with_mode(mode));
        let (a, b) = (open(&mut it, 0, shared()), open(&mut it, 1, shared()));
        // The flush of a FUA command runs on b.
        let fua = begin(&mut it, b, write(0).with_fua(true), 1);
        assert!(matches!(it.complete(fua, 1, Ok(())), Decision::Wait));
        let (running, _) = poll(&mut it);
        assert_eq!(running.len(), 1);
        execute(&mut it, a, write(5));
        starts_flush(&mut it, b, 2);
        assert!(poll(&mut it).0.is_empty());
        end(&mut it, &running);
        let (later, replies) = poll(&mut it);
        assert_eq!(replies, [(1, Ok(()))], "{mode}: a's write is not covered");
        assert_eq!(later.len(), 1);
        end(&mut it, &later);
        assert_eq!(poll(&mut it).1, [(2, Ok(()))]);
    }
}

#[test]
fn a_flush_whose_handle_is_lost_starts_anew_on_another_that_shares_the_cache() {
    let mut it = Coordinator::new(Config::new());
    let (a, b) = (open(&mut it, 0, shared()), open(&mut it, 1, shared()));
    let c = open(&mut it, 2, shared());
    let fua = begin(&mut it, b, write(0).with_fua(true), 1);
    assert!(matches!(it.complete(fua, 1, Ok(())), Decision::Wait));
    let (running, _) = poll(&mut it);
    execute(&mut it, a, write(5));
    starts_flush(&mut it, c, 2);
    starts_flush(&mut it, b, 3);
    let (on_c, _) = poll(&mut it);
    assert_eq!(on_c.iter().map(FlushId::conn).collect::<Vec<_>>(), [c]);
    it.lost(c);
    assert_eq!(poll(&mut it).1, [(2, Err(Errno::EIO))]);
    // The one that runs on b began before a's write.
    end(&mut it, &running);
    let (on_b, replies) = poll(&mut it);
    assert_eq!(replies, [(1, Ok(()))]);
    assert_eq!(on_b.iter().map(FlushId::conn).collect::<Vec<_>>(), [b]);
    end(&mut it, &on_b);
    assert_eq!(poll(&mut it).1, [(3, Ok(()))]);
}

/// Rule 9.
#[test]
fn a_flush_whose_handle_is_lost_does_not_start_anew_for_what_another_has_covered() {
    for level in [TrackDirty::Connection, TrackDirty::Off] {
        let mut it = Coordinator::new(Config::new().with_track_dirty(level));
        let (a, b) = (open(&mut it, 0, shared()), open(&mut it, 1, shared()));
        let c = open(&mut it, 2, shared());
        execute(&mut it, a, write(0));
        starts_flush(&mut it, b, 1);
        starts_flush(&mut it, c, 2);
        let fua = begin(&mut it, a, write(5).with_fua(true), 3);
        assert!(matches!(it.complete(fua, 3, Ok(())), Decision::Wait));
        let (running, _) = poll(&mut it);
        let handles: Vec<Conn> = running.iter().map(FlushId::conn).collect();
        assert_eq!(handles, [b, a]);
        end(&mut it, &running[1..]);
        assert_eq!(poll(&mut it).1, [(3, Ok(()))]);
        it.lost(b);
        let (anew, replies) = poll(&mut it);
        if level == TrackDirty::Off {
            // Each flush is to be one, needed or not.
            assert_eq!((anew.len(), replies), (1, vec![(1, Err(Errno::EIO))]));
        } else {
            assert!(anew.is_empty());
            assert_eq!(replies, [(1, Err(Errno::EIO)), (2, Ok(()))]);
        }
    }
}

#[test]
fn handles_of_one_group_agree_on_multi_conn() {
    for mode in [Mode::Auto, Mode::Emulate, Mode::Plugin, Mode::Disable] {
        for (first, second) in [(shared(), caching()), (caching(), shared())] {
            let mut it = Coordinator::new(Config::new().with_mode(mode));
            let a = open(&mut it, 0, first);
            let b = it.connect(1, &0);
            assert_eq!(it.opened(b, second), Err(OpenError::MixedMultiConn));
            // When the group is empty, it may begin anew as the other kind.
            it.disconnect(a);
            let _ = poll(&mut it);
            open(&mut it, 2, second);
        }
    }
}

#[test]
fn what_a_shared_cache_holds_is_not_left_to_handles_that_cannot_flush_it() {
    let mut it = Coordinator::new(Config::new());
    let a = open(&mut it, 0, shared());
    execute(&mut it, a, write(0));
    it.disconnect(a);
    let _ = poll(&mut it);
    let b = it.connect(1, &0);
    assert_eq!(it.opened(b, caching()), Err(OpenError::MixedMultiConn));
    let b = open(&mut it, 2, shared());
    starts_flush(&mut it, b, 1);
    let (flushes, _) = poll(&mut it);
    assert_eq!(flushes.len(), 1);
}

#[test]
fn a_write_straight_to_storage_is_seen_by_others_after_a_flush() {
    let mut it = Coordinator::new(Config::new());
    let (a, b) = (open(&mut it, 0, caching()), open(&mut it, 1, through()));
    execute(&mut it, a, read(0));
    execute(&mut it, b, write(0));
    starts_flush(&mut it, b, 1);
    let (flushes, replies) = poll(&mut it);
    assert!(replies.is_empty());
    assert_eq!(flushes.iter().map(FlushId::conn).collect::<Vec<_>>(), [a]);
    end(&mut it, &flushes);
    assert_eq!(poll(&mut it).1, [(1, Ok(()))]);
}

#[test]
fn fua_straight_to_storage_is_answered_when_others_can_see_it() {
    let mut it = Coordinator::new(Config::new());
    let (a, b) = (open(&mut it, 0, caching()), open(&mut it, 1, through()));
    execute(&mut it, a, read(0));
    let fua = begin(&mut it, b, write(0).with_fua(true), 1);
    assert!(!fua.fua(), "it needs no FUA of the backend");
    assert!(matches!(it.complete(fua, 1, Ok(())), Decision::Wait));
    let (flushes, replies) = poll(&mut it);
    assert!(replies.is_empty());
    assert_eq!(flushes.iter().map(FlushId::conn).collect::<Vec<_>>(), [a]);
    end(&mut it, &flushes);
    assert_eq!(poll(&mut it).1, [(1, Ok(()))]);
    // With nothing in a's cache, the next one need not wait.
    let fua = begin(&mut it, b, write(0).with_fua(true), 2);
    let decision = it.complete(fua, 2, Ok(()));
    assert!(matches!(decision, Decision::Reply { result: Ok(()), .. }));
}

#[test]
fn handles_that_cache_nothing_are_never_flushed() {
    for level in [TrackDirty::Connection, TrackDirty::Fast, TrackDirty::Off] {
        let config = Config::new().with_track_dirty(level).with_max_ranges(2);
        let mut it = Coordinator::new(config);
        let (a, b) = (open(&mut it, 0, through()), open(&mut it, 1, through()));
        for offset in 0..9 {
            execute(&mut it, a, write(offset));
            execute(&mut it, b, write(offset));
        }
        for (conn, tag) in [(a, 1), (b, 2)] {
            if let Decision::Reply { result, .. } = it.command(conn, Command::FLUSH, tag) {
                assert_eq!(result, Ok(()));
            } else {
                assert_eq!(poll(&mut it), (vec![], vec![(tag, Ok(()))]), "{level}");
            }
        }
        assert!(poll(&mut it).0.is_empty());
    }
}

#[test]
fn writes_straight_to_storage_keep_their_order_with_those_that_others_cached() {
    let mut it = Coordinator::new(Config::new());
    let (a, b) = (open(&mut it, 0, caching()), open(&mut it, 1, through()));
    execute(&mut it, a, write(0));
    // What a has cached must not reach storage after what b writes now.
    assert!(matches!(it.command(b, write(0), 1), Decision::Wait));
    let (flushes, _) = poll(&mut it);
    assert_eq!(flushes.iter().map(FlushId::conn).collect::<Vec<_>>(), [a]);
    it.flushed(flushes[0], Ok(()));
    let Some(Action::Execute { op, tag, .. }) = it.poll() else {
        panic!("b's write can be executed now");
    };
    // Nor may a write to its cache while b's is under way.
    assert!(matches!(it.command(a, write(0), 2), Decision::Wait));
    assert!(it.poll().is_none());
    let _ = it.complete(op, tag, Ok(()));
    assert!(matches!(it.poll(), Some(Action::Execute { tag: 2, .. })));
}

#[test]
fn a_reader_that_cannot_be_invalidated_is_refused_if_it_may_have_loaded_something_old() {
    let mut it = Coordinator::new(Config::new().with_mode(Mode::Emulate));
    let a = open(&mut it, 0, caching());
    execute(&mut it, a, write(0));
    let late = it.connect(1, &0);
    starts_flush(&mut it, a, 1);
    let (flushes, _) = poll(&mut it);
    end(&mut it, &flushes);
    let _ = poll(&mut it);
    it.disconnect(a);
    let _ = poll(&mut it);
    let reader = Backend::new().with_read_only(true);
    assert_eq!(it.opened(late, reader), Err(OpenError::CannotEmulate));
    // Opened once more, it has loaded what is there now.
    open(&mut it, 2, reader);
}

#[test]
fn a_flush_does_not_join_a_round_that_began_before_a_write_straight_to_storage() {
    let mut it = Coordinator::new(Config::new());
    let (a, b) = (open(&mut it, 0, caching()), open(&mut it, 1, caching()));
    let (d, t) = (open(&mut it, 2, caching()), open(&mut it, 3, through()));
    execute(&mut it, b, read(0));
    execute(&mut it, a, write(0));
    starts_flush(&mut it, a, 1);
    let (on_a, _) = poll(&mut it);
    end(&mut it, &on_a);
    let (on_b, _) = poll(&mut it);
    assert_eq!(on_b.iter().map(FlushId::conn).collect::<Vec<_>>(), [b]);
    // The round does not know of what d caches now.
    execute(&mut it, d, read(1));
    execute(&mut it, t, write(1));
    starts_flush(&mut it, t, 2);
    end(&mut it, &on_b);
    let (on_d, replies) = poll(&mut it);
    assert_eq!(replies, [(1, Ok(()))]);
    assert_eq!(on_d.iter().map(FlushId::conn).collect::<Vec<_>>(), [d]);
    end(&mut it, &on_d);
    assert_eq!(poll(&mut it).1, [(2, Ok(()))]);
}

#[test]
fn a_handle_that_began_to_open_beside_a_shared_cache_cannot_turn_into_another_kind() {
    for late in [
        Backend::new().with_flush(true),
        Backend::new().with_read_only(true),
    ] {
        let mut it = Coordinator::new(Config::new());
        let (a, b) = (open(&mut it, 0, shared()), open(&mut it, 1, shared()));
        // It loads what is there now.
        let opening = it.connect(2, &0);
        execute(&mut it, a, write(0));
        starts_flush(&mut it, b, 1);
        let (flushes, _) = poll(&mut it);
        end(&mut it, &flushes);
        it.disconnect(a);
        it.disconnect(b);
        assert_eq!(poll(&mut it).1, [(1, Ok(()))]);
        assert_eq!(it.opened(opening, late), Err(OpenError::MixedMultiConn));
    }
}

#[test]
fn without_a_handle_that_could_flush_what_is_cached_a_flush_fails() {
    let mut it = Coordinator::new(Config::new());
    let a = open(&mut it, 0, shared());
    let b = open(&mut it, 1, through().with_multi_conn(true));
    execute(&mut it, a, write(0));
    it.disconnect(a);
    let _ = poll(&mut it);
    starts_flush(&mut it, b, 1);
    assert_eq!(poll(&mut it).1, [(1, Err(Errno::EIO))]);
}

#[test]
fn a_flush_fails_if_the_only_handle_that_can_flush_is_lost_meanwhile() {
    let mut it = Coordinator::new(Config::new());
    let a = open(&mut it, 0, shared());
    let b = open(&mut it, 1, through().with_multi_conn(true));
    execute(&mut it, a, write(0));
    starts_flush(&mut it, b, 1);
    assert_eq!(poll(&mut it).0.len(), 1);
    it.lost(a);
    assert_eq!(poll(&mut it).1, [(1, Err(Errno::EIO))]);
}

#[test]
fn a_write_that_was_executing_on_a_lost_handle_may_have_reached_storage() {
    let mut it = Coordinator::new(Config::new());
    let (b, t) = (open(&mut it, 0, caching()), open(&mut it, 1, through()));
    let u = open(&mut it, 2, through());
    execute(&mut it, b, read(0));
    let op = begin(&mut it, t, write(0), 1);
    it.lost(t);
    assert!(matches!(
        it.complete(op, 1, Ok(())),
        Decision::Closed { .. }
    ));
    // It can be read now, so that after a flush it has to be what everybody reads.
    execute(&mut it, u, read(0));
    starts_flush(&mut it, u, 2);
    let (flushes, _) = poll(&mut it);
    assert_eq!(flushes.iter().map(FlushId::conn).collect::<Vec<_>>(), [b]);
}

#[test]
fn a_handle_that_is_lost_while_it_reads_is_nobodys_affair() {
    let mut it = Coordinator::new(Config::new());
    let (a, b) = (open(&mut it, 0, caching()), open(&mut it, 1, caching()));
    execute(&mut it, b, read(0));
    let op = begin(&mut it, a, read(0), 1);
    it.lost(a);
    assert!(matches!(
        it.complete(op, 1, Ok(())),
        Decision::Closed { .. }
    ));
    let flush = it.command(b, Command::FLUSH, 2);
    assert!(
        matches!(flush, Decision::Reply { result: Ok(()), .. }),
        "{flush:?}"
    );
}

#[test]
fn a_group_without_anybody_who_could_flush_is_open_to_another_kind() {
    let mut it = Coordinator::new(Config::new().with_mode(Mode::Disable));
    let a = open(&mut it, 0, Backend::new().with_multi_conn(true));
    execute(&mut it, a, write(0));
    it.disconnect(a);
    let _ = poll(&mut it);
    open(&mut it, 1, caching());
}

#[test]
fn a_group_that_was_reset_when_it_was_empty_is_open_to_another_kind() {
    let mut it = Coordinator::new(Config::new());
    let a = open(&mut it, 0, shared());
    execute(&mut it, a, write(0));
    it.disconnect(a);
    let _ = poll(&mut it);
    it.reset(&0);
    open(&mut it, 1, caching());
}
