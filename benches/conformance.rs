//! What it costs to check a history, per event.

use std::hint::black_box;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use nbd_proto::conformance::{
    Checker, Command, Content, Contents, Event, Extent, Outcome, Promise,
};

const GRANULE: u64 = 4096;
const EVENTS: u64 = 1 << 20;

/// Histories of a server that is one store, seen by clients that have several commands in flight.
struct Workload {
    /// Blocks of the export.
    blocks: u64,
    /// Blocks of a command.
    count: u64,
    conns: u32,
    /// In flight on each.
    depth: usize,
    /// Reads in a hundred commands.
    reads: u64,
    /// Commands for each flush.
    flush_every: u64,
}

struct Server {
    workload: Workload,
    store: Vec<Content>,
    in_flight: Vec<(u32, u64, Command)>,
    next: u64,
}

impl Server {
    fn new(workload: Workload) -> Self {
        let blocks = usize::try_from(workload.blocks).expect("it fits");
        Self {
            store: vec![Content::ZEROES; blocks],
            in_flight: Vec::new(),
            next: 0,
            workload,
        }
    }

    fn random(&self, salt: u64) -> u64 {
        let mut z = (self.next ^ (salt << 40)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z ^ (z >> 31)
    }

    fn event(&mut self) -> Event {
        self.next += 1;
        let Workload {
            blocks,
            count,
            conns,
            depth,
            reads,
            flush_every,
        } = self.workload;
        if self.in_flight.len() >= depth * conns as usize {
            return self.reply();
        }
        let first = self.random(1) % (blocks - count + 1);
        let extent = Extent::new(first * GRANULE, count * GRANULE);
        let command = if self.random(2).is_multiple_of(flush_every) {
            Command::Flush
        } else if self.random(3) % 100 < reads {
            Command::Read { extent }
        } else {
            let content = Content(self.next);
            let fua = false;
            Command::Write {
                extent,
                content,
                fua,
            }
        };
        let conn = (self.random(4) % u64::from(conns)) as u32;
        self.in_flight.push((conn, self.next, command));
        let cookie = self.next;
        Event::Invoke {
            conn,
            cookie,
            command,
        }
    }

    fn reply(&mut self) -> Event {
        let which = self.random(5) as usize % self.in_flight.len();
        let (conn, cookie, command) = self.in_flight.swap_remove(which);
        let extent = command.extent().unwrap_or(Extent::new(0, 0));
        let first = (extent.offset / GRANULE) as usize;
        let blocks = first..first + (extent.length / GRANULE) as usize;
        let outcome = match command {
            Command::Read { .. } => match &self.store[blocks] {
                [only] => Outcome::Data(Contents::Same(*only)),
                all => Outcome::Data(Contents::Each(all.to_vec())),
            },
            Command::Write { content, .. } => {
                self.store[blocks].fill(content);
                Outcome::Done
            }
            _ => Outcome::Done,
        };
        Event::Reply {
            conn,
            cookie,
            outcome,
        }
    }
}

/// Half-way through: what is measured is not how memory is allocated.
fn warm(workload: Workload) -> (Checker, Vec<Event>) {
    let mut checker = Checker::new(Promise::MULTI_CONN, GRANULE);
    let mut server = Server::new(workload);
    for _ in 0..EVENTS {
        checker.record(&server.event()).expect("it is correct");
    }
    let events = (0..EVENTS).map(|_| server.event()).collect();
    (checker, events)
}

fn check(c: &mut Criterion) {
    let mut group = c.benchmark_group("check");
    group.throughput(Throughput::Elements(EVENTS));
    group.sample_size(10);
    let small = |blocks| Workload {
        blocks,
        count: 1,
        conns: 4,
        depth: 16,
        reads: 50,
        flush_every: 200,
    };
    let mut cases = vec![
        ("64 KiB", small(16)),
        ("16 MiB", small(1 << 12)),
        ("1 GiB", small(1 << 18)),
        ("1 GiB, reads", {
            let mut it = small(1 << 18);
            it.reads = 90;
            it
        }),
        ("1 GiB, one at a time", {
            let mut it = small(1 << 18);
            (it.conns, it.depth) = (1, 1);
            it
        }),
        ("1 GiB, 64 KiB commands", {
            let mut it = small(1 << 18);
            it.count = 16;
            it
        }),
    ];
    for (name, workload) in cases.drain(..) {
        let (checker, events) = warm(workload);
        group.bench_function(BenchmarkId::from_parameter(name), |b| {
            b.iter_batched_ref(
                || checker.clone(),
                |checker| {
                    for event in &events {
                        let _ = black_box(checker.record(black_box(event)));
                    }
                },
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, check);
criterion_main!(benches);
