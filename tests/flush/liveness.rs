//! Nobody waits for ever, and nothing is remembered for ever.

use nbd_proto::flush::{
    Acknowledge, Action, Backend, Command, Config, Conn, Decision, FlushCoordinator, FlushId, Op,
    ThreadModel,
};
use nbd_proto::wire::CommandType;

type Coordinator = FlushCoordinator<usize, u8, u32>;

fn coordinator(config: Config) -> (Coordinator, Conn, Conn) {
    let mut it = Coordinator::new(config);
    let (a, b) = (open(&mut it, 0), open(&mut it, 1));
    (it, a, b)
}

fn open(it: &mut Coordinator, key: usize) -> Conn {
    let backend = Backend::new().with_flush(true).with_loads_on_open(false);
    let conn = it.connect(key, &0);
    it.opened(conn, backend).unwrap();
    conn
}

fn write(offset: u64) -> Command {
    Command::new(CommandType::WRITE, offset, 1)
}

/// Begins a command, unless it has to wait.
fn begin(it: &mut Coordinator, conn: Conn, command: Command) -> Option<Op> {
    match it.command(conn, command, 0) {
        Decision::Execute { op, .. } => Some(op),
        Decision::Wait => None,
        other => panic!("{other:?}"),
    }
}

fn execute(it: &mut Coordinator, conn: Conn, command: Command) {
    if let Some(op) = begin(it, conn, command) {
        let _ = it.complete(op, 0, Ok(()));
    }
}

/// What there is to do: flushes, and commands with their tags.
fn poll(it: &mut Coordinator) -> (Vec<FlushId>, Vec<(Op, u32)>) {
    let (mut flushes, mut commands) = (Vec::new(), Vec::new());
    while let Some(action) = it.poll() {
        match action {
            Action::Flush { flush, .. } => flushes.push(flush),
            Action::Execute { op, tag, .. } => commands.push((op, tag)),
            _ => {}
        }
    }
    (flushes, commands)
}

/// One writes without a pause, each write before the last one ends; the other waits for a place
/// that the first has written to.
fn a_steady_writer_lets_others_in(ranges: u32) {
    let (mut it, a, b) = coordinator(Config::new().with_max_ranges(ranges));
    for offset in 0..u64::from(ranges) {
        execute(&mut it, a, write(2 * offset));
    }
    let next = 2 * u64::from(ranges);
    let mut last = begin(&mut it, a, write(next)).expect("it merges with its neighbour");
    assert!(matches!(it.command(b, write(next - 2), 7), Decision::Wait));
    for offset in 1..10_000 {
        let Some(op) = begin(&mut it, a, write(next + 2 * offset)) else {
            // It waits behind b, whose turn it is when this ends and is written out.
            let _ = it.complete(last, 0, Ok(()));
            let (flushes, _) = poll(&mut it);
            flushes.iter().for_each(|&flush| it.flushed(flush, Ok(())));
            let (_, commands) = poll(&mut it);
            assert!(commands.iter().any(|&(_, tag)| tag == 7));
            return;
        };
        let _ = it.complete(std::mem::replace(&mut last, op), 0, Ok(()));
        let (flushes, _) = poll(&mut it);
        flushes.iter().for_each(|&flush| it.flushed(flush, Ok(())));
        if poll(&mut it).1.iter().any(|&(_, tag)| tag == 7) {
            return;
        }
    }
    panic!("b's write never has its turn");
}

#[test]
fn a_steady_writer_with_one_range_lets_others_in() {
    a_steady_writer_lets_others_in(1);
}

#[test]
fn a_steady_writer_with_many_ranges_lets_others_in() {
    a_steady_writer_lets_others_in(1024);
}

#[test]
fn a_write_that_has_to_load_its_granule_anew_keeps_its_place() {
    let (mut it, a, b) = coordinator(Config::new().with_granule(16));
    execute(&mut it, a, Command::new(CommandType::READ, 100, 1));
    execute(&mut it, b, write(0));
    assert!(matches!(it.command(a, write(4), 7), Decision::Wait));
    for _ in 0..100 {
        let (flushes, commands) = poll(&mut it);
        if commands.iter().any(|&(_, tag)| tag == 7) {
            return;
        }
        for (op, tag) in commands {
            let _ = it.complete(op, tag, Ok(()));
        }
        // Whenever they can, the clients go on: b writes the granule, a reads something old.
        for flush in flushes {
            execute(&mut it, b, write(0));
            execute(&mut it, a, Command::new(CommandType::READ, 100, 1));
            it.flushed(flush, Ok(()));
        }
    }
    panic!("a's write never has its turn");
}

#[test]
fn a_write_whose_granule_cannot_be_loaded_anew_fails_once() {
    let (mut it, a, b) = coordinator(Config::new().with_granule(16));
    execute(&mut it, a, Command::new(CommandType::READ, 100, 1));
    execute(&mut it, b, write(0));
    assert!(matches!(it.command(a, write(4), 7), Decision::Wait));
    let (flushes, _) = poll(&mut it);
    it.flushed(flushes[0], Ok(()));
    let (flushes, _) = poll(&mut it);
    assert_eq!(flushes.iter().map(FlushId::conn).collect::<Vec<_>>(), [a]);
    it.flushed(flushes[0], Err(nbd_proto::wire::Errno::EIO));
    let mut answers = 0;
    while let Some(action) = it.poll() {
        match action {
            Action::Reply { tag: 7, result, .. } => {
                assert!(result.is_err());
                answers += 1;
            }
            other => panic!("nothing more is tried: {other:?}"),
        }
    }
    assert_eq!(answers, 1);
}

#[test]
fn whoever_waits_in_the_range_of_a_write_is_found() {
    let ranges = |within: u64| {
        (0..within).flat_map(move |start| (1..=within - start).map(move |it| (start, it)))
    };
    for base in [0, 40, (1 << 32) - 6, u64::MAX - 12] {
        for (waiting, length) in ranges(12) {
            for (later, count) in ranges(12) {
                let (mut it, a, b) = coordinator(Config::new());
                execute(&mut it, a, write(base + waiting));
                let over = |start, length| Command::new(CommandType::WRITE, base + start, length);
                let first = it.command(b, over(waiting, length), 7);
                assert!(matches!(first, Decision::Wait));
                let overlaps = later < waiting + length && waiting < later + count;
                let waits = begin(&mut it, a, over(later, count)).is_none();
                assert_eq!(
                    waits, overlaps,
                    "{later}+{count} and {waiting}+{length} at {base}"
                );
            }
        }
    }
}

#[test]
fn of_those_that_wait_for_each_other_the_first_begins() {
    let (mut it, a, b) = coordinator(Config::new());
    let c = open(&mut it, 2);
    execute(&mut it, a, write(0));
    assert!(matches!(it.command(b, write(0), 1), Decision::Wait));
    assert!(matches!(it.command(c, write(0), 2), Decision::Wait));
    assert!(matches!(it.command(a, write(0), 3), Decision::Wait));
    for expected in 1..=3 {
        let (flushes, _) = poll(&mut it);
        assert_eq!(flushes.len(), 1, "before {expected}");
        it.flushed(flushes[0], Ok(()));
        let (_, commands) = poll(&mut it);
        let tags: Vec<u32> = commands.iter().map(|&(_, tag)| tag).collect();
        assert_eq!(tags, [expected]);
        for (op, tag) in commands {
            let _ = it.complete(op, tag, Ok(()));
        }
    }
}

/// What it takes to answer so many writes of one client, that wait for one of another client or of
/// their own: how many actions, and how often nothing more can be done before some are done.
fn steps_of(config: Config, count: u64, length: u64) -> (u64, u64) {
    let (mut it, a, b) = coordinator(config);
    let own = config.acknowledge() == Acknowledge::OnReceipt;
    let whole = Command::new(CommandType::WRITE, 0, 2 * count);
    let first = begin(&mut it, if own { b } else { a }, whole);
    for offset in 0..count {
        let write = Command::new(CommandType::WRITE, offset, length);
        assert!(begin(&mut it, b, write).is_none());
    }
    let _ = it.complete(first.expect("nothing is in its way"), 0, Ok(()));
    let (mut actions, mut pauses, mut ended) = (0, 0, 0);
    loop {
        let mut todo = Vec::new();
        while let Some(action) = it.poll() {
            actions += 1;
            todo.push(action);
        }
        if todo.is_empty() {
            break;
        }
        pauses += 1;
        for action in todo {
            match action {
                Action::Flush { flush, .. } => it.flushed(flush, Ok(())),
                Action::Execute { op, tag, .. } => {
                    let _ = it.complete(op, tag, Ok(()));
                    ended += 1;
                }
                _ => {}
            }
        }
    }
    assert_eq!(ended, count);
    (actions, pauses)
}

/// Nothing is done in vain, or twice, because others wait too. What a step costs, which is not to
/// depend on how many wait, is measured by `benches/flush.rs`.
fn takes_a_step_each(config: Config, length: u64, before: u64) {
    for count in [1, 125, 2000] {
        let steps = before + count;
        assert_eq!(steps_of(config, count, length), (steps, steps), "{count}");
    }
}

#[test]
fn writes_that_wait_for_what_was_acknowledged_take_a_step_each() {
    let config = Config::new().with_acknowledge(Acknowledge::OnReceipt);
    // Each overlaps with the next.
    takes_a_step_each(config, 2, 0);
}

#[test]
fn writes_that_wait_for_one_handle_take_a_step_each() {
    let config = Config::new().with_thread_model(ThreadModel::SerializeRequests);
    // What the other has written is written out before.
    takes_a_step_each(config, 1, 1);
}

#[test]
fn connections_that_come_and_go_leave_nothing_behind() {
    let (mut it, _, _) = coordinator(Config::new());
    let mut most = 0;
    for key in 2..200 {
        let conn = open(&mut it, key);
        for offset in 0..100 {
            execute(&mut it, conn, write(1000 * key as u64 + 2 * offset));
        }
        it.disconnect(conn);
        let (flushes, _) = poll(&mut it);
        flushes.iter().for_each(|&flush| it.flushed(flush, Ok(())));
        let _ = poll(&mut it);
        most = most.max(format!("{it:?}").matches("Segment").count());
    }
    assert!(most < 2500, "{most} ranges are remembered");
}
