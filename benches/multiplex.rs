//! What the ledger costs per event.

use std::collections::VecDeque;
use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use nbd_proto::multiplex::{Conn, FlushLedger, Scope, WriteId};

fn connected(scope: Scope, count: usize) -> (FlushLedger, Vec<Conn>) {
    let mut ledger = FlushLedger::new(scope);
    let conns = (0..count).map(|_| ledger.connected().expect("there is room"));
    let conns = conns.collect();
    (ledger, conns)
}

fn flush(ledger: &mut FlushLedger, conn: Conn) {
    let flush = ledger.flush_sent(conn).expect("connected");
    black_box(ledger.flush_replied(flush).expect("in flight"));
}

/// One connection, 16 writes in flight, a flush for every 1024.
fn one_connection(c: &mut Criterion) {
    let mut group = c.benchmark_group("ledger");
    group.throughput(Throughput::Elements(2 * 1024 + 2));
    for (name, scope) in [
        ("own", Scope::OwnConnection),
        ("all", Scope::AllConnections),
    ] {
        let (mut ledger, conns) = connected(scope, 1);
        let mut in_flight: VecDeque<WriteId> = VecDeque::new();
        for at in 0..16 {
            let write = ledger.write_sent(conns[0], at * 4096, 4096);
            in_flight.push_back(write.expect("connected"));
        }
        group.bench_function(format!("1 connection, depth 16, {name}"), |b| {
            b.iter(|| {
                for at in 0..1024 {
                    let write = in_flight.pop_front().expect("16 are in flight");
                    black_box(ledger.write_replied(write).expect("in flight"));
                    let write = ledger.write_sent(conns[0], at * 4096, 4096);
                    in_flight.push_back(write.expect("connected"));
                }
                flush(&mut ledger, conns[0]);
            });
        });
    }
    group.finish();
}

/// Eight connections, 128 writes in flight, replies in a scattered order, a flush for every 4096.
fn out_of_order(c: &mut Criterion) {
    let mut group = c.benchmark_group("ledger");
    group.throughput(Throughput::Elements(2 * 4096 + 2));
    let (mut ledger, conns) = connected(Scope::AllConnections, 8);
    let sent = conns.iter().cycle().take(128).zip(0..);
    let sent = sent.map(|(conn, at)| ledger.write_sent(*conn, at * 4096, 4096));
    let mut in_flight: Vec<WriteId> = sent.map(|it| it.expect("connected")).collect();
    group.bench_function("8 connections, out of order", |b| {
        let mut at = 0;
        b.iter(|| {
            for write in 0..4096 {
                at = (at * 5 + 37) % 128;
                black_box(ledger.write_replied(in_flight[at]).expect("in flight"));
                let sent = ledger.write_sent(conns[at % 8], write * 4096, 4096);
                in_flight[at] = sent.expect("connected");
            }
            flush(&mut ledger, conns[at % 8]);
        });
    });
    group.finish();
}

/// Four events at a time: a write and its flush.
fn write_and_flush(c: &mut Criterion) {
    let mut group = c.benchmark_group("ledger");
    group.throughput(Throughput::Elements(4));
    for (name, scope) in [
        ("own", Scope::OwnConnection),
        ("all", Scope::AllConnections),
    ] {
        let (mut ledger, conns) = connected(scope, 8);
        group.bench_function(format!("write and flush, {name}"), |b| {
            b.iter(|| {
                let write = ledger.write_sent(conns[0], 0, 4096).expect("connected");
                black_box(ledger.write_replied(write).expect("in flight"));
                flush(&mut ledger, conns[0]);
            });
        });
    }
    group.finish();
}

/// A million writes that wait for a flush, then the flush: what it costs for each write, and
/// whether many make it slower.
fn many_uncovered(c: &mut Criterion) {
    let mut group = c.benchmark_group("ledger");
    group.sample_size(10);
    group.throughput(Throughput::Elements(2 * 1_000_000 + 2));
    let (mut ledger, conns) = connected(Scope::AllConnections, 8);
    group.bench_function("1000000 writes, one flush", |b| {
        b.iter(|| {
            for at in 0..1_000_000 {
                let conn = conns[at as usize % 8];
                let write = ledger.write_sent(conn, at * 4096, 4096).expect("connected");
                black_box(ledger.write_replied(write).expect("in flight"));
            }
            flush(&mut ledger, conns[0]);
        });
    });
    group.finish();
}

criterion_group!(
    benches,
    one_connection,
    out_of_order,
    write_and_flush,
    many_uncovered
);
criterion_main!(benches);
