//! Logs of a coordinator that is simulated: what is said of them is what a search through all of
//! their lines says.

use std::io::Cursor;

use proptest::prelude::*;

use super::{ImportOptions, Imported, Verdict, judge};

/// Pairs of connections: the one below has an odd number, the one above the next.
const PAIRS: usize = 3;

/// A coordinator that flushes all connections whenever one is flushed, but perhaps not always.
#[derive(Default)]
struct Simulated {
    log: String,
    lines: usize,
    ids: u64,
    pairs: [Pair; PAIRS],
    writes: Vec<Write>,
    /// Of successful flushes below: the pair, and the lines of call and return.
    below: Vec<(usize, usize, usize)>,
    /// Of flushes above, likewise.
    above: Vec<(usize, usize)>,
}

#[derive(Default)]
struct Pair {
    write: Option<(u64, Write)>,
    flush: Option<Flush>,
}

#[derive(Clone, Copy, Default)]
struct Write {
    pair: usize,
    offset: u64,
    below: Option<usize>,
    above: Option<usize>,
}

struct Flush {
    id: u64,
    called: usize,
    /// The pair whose turn it is, and, if that is being flushed, the id and the line of the call.
    next: usize,
    running: Option<(u64, usize)>,
}

impl Simulated {
    fn new() -> Self {
        let mut it = Self::default();
        it.line("Ready thread_model=3");
        it.line("Fork");
        it.line("Fork");
        for connection in 1..=2 * PAIRS {
            it.line(&format!(
                "connection={connection} Connect export=\"\" size=0x100000 write=1"
            ));
        }
        it
    }

    fn line(&mut self, words: &str) -> usize {
        self.log += &format!("2026-01-01 00:00:00.000000 {words}\n");
        self.lines += 1;
        self.lines
    }

    fn call(&mut self, connection: usize, words: &str) -> (u64, usize) {
        self.ids += 1;
        let (id, (name, more)) = (self.ids, words.split_once(' ').unwrap_or((words, "")));
        let line = self.line(&format!(
            "connection={connection} {name} id={id} {more} ..."
        ));
        (id, line)
    }

    fn back(&mut self, connection: usize, name: &str, id: u64) -> usize {
        self.line(&format!(
            "connection={connection} ...{name} id={id} return=0"
        ))
    }

    /// Whatever can happen next to a pair, if that is wanted.
    fn step(&mut self, pair: usize, what: u8, skips: bool) {
        let (below, above) = (2 * pair + 1, 2 * pair + 2);
        match what {
            0 => match self.pairs[pair].write {
                None => {
                    let offset = self.ids % 16 * 0x1000;
                    let words = format!("Write offset={offset:#x} count=0x1000 fua=0");
                    let id = self.call(above, &words).0;
                    self.call(below, &words);
                    let write = Write {
                        pair,
                        offset,
                        ..Write::default()
                    };
                    self.pairs[pair].write = Some((id, write));
                }
                // The call below has the next number.
                Some((id, mut write)) if write.below.is_none() => {
                    write.below = Some(self.back(below, "Write", id + 1));
                    self.pairs[pair].write = Some((id, write));
                }
                Some((id, mut write)) => {
                    write.above = Some(self.back(above, "Write", id));
                    self.pairs[pair].write = None;
                    self.writes.push(write);
                }
            },
            _ => self.flush(pair, above, skips),
        }
    }

    fn flush(&mut self, pair: usize, above: usize, skips: bool) {
        let Some(mut flush) = self.pairs[pair].flush.take() else {
            let (id, called) = self.call(above, "Flush");
            let (next, running) = (0, None);
            self.pairs[pair].flush = Some(Flush {
                id,
                called,
                next,
                running,
            });
            return;
        };
        match flush.running.take() {
            None if flush.next == PAIRS => {
                let line = self.back(above, "Flush", flush.id);
                self.above.push((flush.called, line));
                return;
            }
            None if skips => flush.next += 1,
            None => flush.running = Some(self.call(2 * flush.next + 1, "Flush")),
            Some((id, called)) => {
                let line = self.back(2 * flush.next + 1, "Flush", id);
                self.below.push((flush.next, called, line));
                flush.next += 1;
            }
        }
        self.pairs[pair].flush = Some(flush);
    }

    /// By the definition.
    fn is_kept(&self) -> bool {
        self.above.iter().all(|&(called, answered)| {
            let before = self
                .writes
                .iter()
                .filter(|it| it.above.is_some_and(|it| it < called));
            before.into_iter().all(|write| {
                let covers = |&(pair, from, to): &(usize, usize, usize)| {
                    pair == write.pair && write.below.is_some_and(|it| it < from) && to < answered
                };
                self.below.iter().any(covers)
            })
        })
    }

    /// The offset that is accused, if one is.
    fn judged(&self) -> Option<u64> {
        let judged = judge(Cursor::new(&self.log), &ImportOptions::default());
        match judged.unwrap() {
            Imported::Layers(it) => it.broken.map(|it| it.range.start),
            other => panic!("{other:?}"),
        }
    }
}

fn steps() -> impl Strategy<Value = Vec<(usize, u8, u8)>> {
    prop::collection::vec((0..PAIRS, 0..4_u8, 0..8_u8), 0..200)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 256, failure_persistence: None, ..ProptestConfig::default()
    })]

    #[test]
    fn a_coordinator_that_flushes_everything_is_never_accused(steps in steps()) {
        let mut simulated = Simulated::new();
        for (pair, what, _) in steps {
            simulated.step(pair, what, false);
        }
        prop_assert!(simulated.is_kept());
        prop_assert_eq!(simulated.judged(), None, "{}", simulated.log);
    }

    #[test]
    fn a_coordinator_that_leaves_flushes_out_is_accused_where_that_shows(steps in steps()) {
        let mut simulated = Simulated::new();
        for (pair, what, skips) in steps {
            simulated.step(pair, what, skips == 0);
        }
        let accused = simulated.judged();
        prop_assert_eq!(accused.is_none(), simulated.is_kept(), "{}", simulated.log);
        let known = |offset| simulated.writes.iter().any(|it| it.offset == offset);
        prop_assert!(accused.is_none_or(known), "{accused:?}\n{}", simulated.log);
    }
}

#[test]
fn leaving_flushes_out_shows_in_the_end() {
    let mut simulated = Simulated::new();
    for _ in 0..3 {
        simulated.step(0, 0, false);
    }
    for _ in 0..5 {
        simulated.step(1, 1, true);
    }
    assert!(!simulated.is_kept());
    assert_eq!(simulated.judged(), Some(simulated.writes[0].offset));
    let imported = judge(Cursor::new(&simulated.log), &ImportOptions::default()).unwrap();
    assert_eq!(imported.verdict(), Verdict::Broken);
}
