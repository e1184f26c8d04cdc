//! What the coordinator costs: per command, per round, beside a bare mutex and a counter.

use std::hint::black_box;
use std::sync::Mutex;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use nbd_proto::flush::{
    Acknowledge, Action, Backend, Command, Config, Conn, Decision, FlushCoordinator, Mode, Op,
    Overlap, ThreadModel,
};
use nbd_proto::wire::CommandType;

type Coordinator = FlushCoordinator<u32, u8, u32>;

fn connected(config: Config, count: u32) -> (Coordinator, Vec<Conn>) {
    let mut coordinator = FlushCoordinator::new(config.with_mode(Mode::Emulate));
    let backend = Backend::new().with_flush(true).with_loads_on_open(false);
    let conns = (0..count).map(|key| {
        let conn = coordinator.connect(key, &0);
        coordinator.opened(conn, backend).expect("it has flush");
        conn
    });
    let conns = conns.collect();
    (coordinator, conns)
}

fn execute(coordinator: &mut Coordinator, conn: Conn, command: Command) {
    if let Decision::Execute { op, tag } = coordinator.command(conn, command, 0) {
        let _ = black_box(coordinator.complete(op, tag, Ok(())));
    }
}

fn flush(coordinator: &mut Coordinator, conn: Conn) {
    let _ = black_box(coordinator.command(conn, Command::FLUSH, 0));
    while let Some(action) = coordinator.poll() {
        if let Action::Flush { flush, .. } = action {
            coordinator.flushed(flush, Ok(()));
        }
    }
}

/// A command from its arrival to its completion.
fn commands(c: &mut Criterion) {
    let mut group = c.benchmark_group("command");
    let counter = Mutex::new(0_u64);
    group.bench_function("a mutex and a counter", |b| {
        b.iter(|| *black_box(&counter).lock().expect("not poisoned") += 1);
    });
    for count in [1, 100, 10_000] {
        for (name, kind) in [("read", CommandType::READ), ("write", CommandType::WRITE)] {
            let config = Config::new().with_overlap(Overlap::Ignore);
            let (mut coordinator, conns) = connected(config, count);
            let mut next = conns.iter().cycle().step_by(7);
            group.bench_function(BenchmarkId::new(name, count), |b| {
                b.iter(|| {
                    let conn = *next.next().expect("it cycles");
                    execute(&mut coordinator, conn, Command::new(kind, 4096, 4096));
                });
            });
        }
    }
    let (mut coordinator, conns) = connected(Config::new().with_max_ranges(20_000), 1);
    for at in 0..10_000 {
        let write = Command::new(CommandType::WRITE, at * 8192, 4096);
        execute(&mut coordinator, conns[0], write);
    }
    let mut at = 0_u64;
    group.bench_function("write in order, 10000 ranges", |b| {
        b.iter(|| {
            at = (at + 7919) % 10_000;
            let write = Command::new(CommandType::WRITE, at * 8192, 4096);
            execute(&mut coordinator, conns[0], write);
        });
    });
    group.finish();
}

/// A write of one connection, while so many of another wait for what a third has written.
fn beside_those_that_wait(c: &mut Criterion) {
    let mut group = c.benchmark_group("write while others wait");
    for waiting in [0, 100, 10_000] {
        let (mut coordinator, conns) = connected(Config::new(), 3);
        let write = |at| Command::new(CommandType::WRITE, at, 4096);
        execute(&mut coordinator, conns[0], write(0));
        for _ in 0..waiting {
            let waits = coordinator.command(conns[1], write(0), 0);
            assert!(matches!(waits, Decision::Wait));
        }
        group.bench_function(BenchmarkId::from_parameter(waiting), |b| {
            b.iter(|| execute(&mut coordinator, conns[2], write(1 << 20)));
        });
    }
    group.finish();
}

/// So many writes of the second connection, which wait for a command of the given one, and that
/// command.
fn that_wait(config: Config, owner: usize, count: u64, length: u64) -> (Coordinator, Op) {
    let (mut coordinator, conns) = connected(config, 2);
    let whole = Command::new(CommandType::WRITE, 0, 2 * count);
    let Decision::Execute { op, .. } = coordinator.command(conns[owner], whole, 0) else {
        panic!("nothing is in its way");
    };
    for offset in 0..count {
        let write = Command::new(CommandType::WRITE, offset, length);
        let _ = coordinator.command(conns[1], write, 0);
    }
    (coordinator, op)
}

/// Ends a command, and then all that it lets begin.
fn serve(coordinator: &mut Coordinator, first: Op) {
    let _ = black_box(coordinator.complete(first, 0, Ok(())));
    while let Some(action) = coordinator.poll() {
        match action {
            Action::Flush { flush, .. } => coordinator.flushed(flush, Ok(())),
            Action::Execute { op, tag, .. } => {
                let _ = black_box(coordinator.complete(op, tag, Ok(())));
            }
            _ => {}
        }
    }
}

/// From the end of what so many writes wait for to the end of the last of them. A write is to
/// cost the same whether 125 wait or 2000, within a factor of two, for caches and trees; if each
/// looked at all others, it would cost 16 times as much.
fn service_of_those_that_wait(c: &mut Criterion) {
    let mut group = c.benchmark_group("those that wait are served");
    let on_receipt = Config::new().with_acknowledge(Acknowledge::OnReceipt);
    let serial = Config::new().with_thread_model(ThreadModel::SerializeRequests);
    for (name, config, owner, length) in [
        ("for what was acknowledged", on_receipt, 1, 2),
        ("for one handle", serial, 0, 1),
    ] {
        for count in [125, 2000] {
            group.throughput(Throughput::Elements(count));
            group.bench_function(BenchmarkId::new(name, count), |b| {
                b.iter_batched(
                    || that_wait(config, owner, count, length),
                    |(mut coordinator, first)| {
                        serve(&mut coordinator, first);
                        coordinator
                    },
                    BatchSize::LargeInput,
                );
            });
        }
    }
    group.finish();
}

/// A flush with three dirty handles.
fn rounds(c: &mut Criterion) {
    let mut group = c.benchmark_group("round over three dirty handles");
    for count in [3, 100, 10_000] {
        let (mut coordinator, conns) = connected(Config::new(), count);
        let dirty = [0, conns.len() / 2, conns.len() - 1];
        group.bench_function(BenchmarkId::from_parameter(count), |b| {
            b.iter(|| {
                for (place, at) in dirty.iter().zip([0, 4096, 8192]) {
                    let write = Command::new(CommandType::WRITE, at, 4096);
                    execute(&mut coordinator, conns[*place], write);
                }
                flush(&mut coordinator, conns[0]);
            });
        });
    }
    group.finish();
}

/// A thousand clients' flushes at once over eight dirty handles.
fn concurrent_flushes(c: &mut Criterion) {
    c.bench_function("1000 flushes over 8 connections", |b| {
        b.iter_batched(
            || {
                let (mut coordinator, conns) = connected(Config::new(), 8);
                for (conn, at) in conns.iter().zip(0..) {
                    let write = Command::new(CommandType::WRITE, at * 4096, 4096);
                    execute(&mut coordinator, *conn, write);
                }
                (coordinator, conns)
            },
            |(mut coordinator, conns)| {
                for conn in conns.iter().cycle().take(1000) {
                    let _ = black_box(coordinator.command(*conn, Command::FLUSH, 0));
                }
                flush(&mut coordinator, conns[0]);
            },
            BatchSize::SmallInput,
        );
    });
}

criterion_group!(
    benches,
    commands,
    beside_those_that_wait,
    service_of_those_that_wait,
    rounds,
    concurrent_flushes
);
criterion_main!(benches);
