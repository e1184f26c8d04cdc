//! What a checker of histories takes in memory, counted by the allocator.

use nbd_proto::conformance::{
    Checker, Command, Content, Contents, Event, Extent, Outcome, Promise,
};

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

const GRANULE: u64 = 4096;
const BLOCKS: u64 = 64;

fn allocated() -> usize {
    dhat::HeapStats::get().curr_bytes
}

/// Connections that come and go, write, read, flush now and then, and crash now and then; some
/// commands fail, and one read is never answered.
struct Traffic {
    checker: Checker,
    store: Vec<Content>,
    number: u64,
}

impl Traffic {
    fn record(&mut self, event: &Event) {
        self.checker.record(event).expect("it is correct");
    }

    fn command(&mut self, conn: u32, command: Command, outcome: Outcome) {
        let cookie = self.number;
        self.record(&Event::Invoke {
            conn,
            cookie,
            command,
        });
        self.record(&Event::Reply {
            conn,
            cookie,
            outcome,
        });
    }

    fn commands(&mut self, count: u64, flush_every: u64) {
        for _ in 0..count {
            self.number += 1;
            let number = self.number;
            let conn = 1 + (number % 5) as u32;
            let block = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58;
            let extent = Extent::new(block * GRANULE, GRANULE);
            let place = block as usize;
            let content = Content(number);
            let fua = number.is_multiple_of(97);
            let write = Command::Write {
                extent,
                content,
                fua,
            };
            let found = Outcome::Data(Contents::Same(self.store[place]));
            self.command(conn, Command::Read { extent }, found);
            if number.is_multiple_of(101) {
                self.command(conn, write, Outcome::Failed);
            } else {
                self.command(conn, write, Outcome::Done);
                self.store[place] = content;
            }
            if number.is_multiple_of(flush_every) {
                self.command(conn, Command::Flush, Outcome::Done);
            }
            if number.is_multiple_of(1009) {
                self.record(&Event::Disconnect { conn });
            }
        }
    }
}

/// The only test that is run unless another is asked for: the allocator counts for the whole
/// process.
#[test]
fn a_checker_takes_no_more_memory_after_ten_times_the_events() {
    let _profiler = dhat::Profiler::builder().testing().build();
    for (flush_every, promise) in [
        (100, Promise::MULTI_CONN),
        // Nothing is ever covered: what is remembered has its limit.
        (u64::MAX, Promise::MULTI_CONN),
        (100, Promise::SINGLE_CONNECTION),
    ] {
        let mut traffic = Traffic {
            checker: Checker::new(promise, GRANULE),
            store: vec![Content::ZEROES; BLOCKS as usize],
            number: 0,
        };
        let held = Command::Read {
            extent: Extent::new(0, GRANULE),
        };
        traffic.record(&Event::Invoke {
            conn: 0,
            cookie: 0,
            command: held,
        });
        traffic.commands(10_000, flush_every);
        let (before, remembered) = (allocated(), traffic.checker.remembered());
        traffic.commands(100_000, flush_every);
        let (after, now) = (allocated(), traffic.checker.remembered());
        eprintln!("{promise}, {flush_every}: {remembered} -> {now}, {before} -> {after} bytes");
        assert!(now <= remembered + remembered / 10, "{remembered} -> {now}");
        assert!(after <= before + before / 10, "{before} -> {after}");
        assert!(after < 1 << 20, "{after} bytes for {BLOCKS} blocks");
    }
}

/// Takes a minute in a release build: `cargo test --release --test conformance_memory -- --ignored
/// --nocapture`.
#[test]
#[ignore = "takes minutes"]
fn a_checker_takes_no_more_memory_for_a_hundred_million_events() {
    const ROUNDS: u64 = 10;
    let _profiler = dhat::Profiler::builder().testing().build();
    let mut traffic = Traffic {
        checker: Checker::new(Promise::MULTI_CONN, GRANULE),
        store: vec![Content::ZEROES; BLOCKS as usize],
        number: 0,
    };
    let mut most = 0;
    for round in 0..ROUNDS {
        // Two commands of two events, and now and then more.
        traffic.commands(100_000_000 / 4 / ROUNDS, 100);
        let now = allocated();
        eprintln!("{} events: {now} bytes", traffic.checker.summary().events);
        if round == 0 {
            most = now + now / 10;
        }
        assert!(now <= most, "{now} bytes, {most} allowed");
    }
}
