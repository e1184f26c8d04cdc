//! On small histories the checker says what trying everything says.

use std::collections::BTreeMap;

use nbd_proto::conformance::{
    CheckError, Command, Content, Contents, Event, Extent, History, Outcome, Promise, check,
};

use crate::brute::{self, Rules};
use crate::dice::Dice;

const GRANULE: u64 = 512;

/// What a small history may have in it.
#[derive(Clone, Copy, Debug)]
struct Size {
    commands: usize,
    blocks: usize,
    conns: u32,
    /// Zeroes and trims, so that what was found does not tell who wrote it.
    ambiguous: bool,
}

struct Open {
    conn: u32,
    cookie: u64,
    command: Command,
}

/// A history with replies that may be right or wrong.
fn any_history(dice: &mut Dice, size: Size) -> History {
    let mut history = History::new(GRANULE);
    let mut open: Vec<Open> = Vec::new();
    let mut sent = 0;
    while sent < size.commands || !open.is_empty() {
        if dice.percent(3) {
            let conn = dice.below(size.conns as usize) as u32;
            open.retain(|it| it.conn != conn);
            history.push(Event::Disconnect { conn });
        } else if dice.percent(4) {
            open.clear();
            history.push(Event::Crash);
            history.push(Event::Reopen);
        } else if sent < size.commands && (open.is_empty() || dice.percent(45)) {
            sent += 1;
            let conn = dice.below(size.conns as usize) as u32;
            let (cookie, command) = (sent as u64, any_command(dice, size, sent as u64));
            open.push(Open {
                conn,
                cookie,
                command,
            });
            history.push(Event::Invoke {
                conn,
                cookie,
                command,
            });
        } else if !open.is_empty() {
            let at = dice.below(open.len());
            let Open {
                conn,
                cookie,
                command,
            } = open.remove(at);
            history.push(Event::Reply {
                conn,
                cookie,
                outcome: any_outcome(dice, size, &history, command),
            });
        }
    }
    history
}

fn any_command(dice: &mut Dice, size: Size, number: u64) -> Command {
    let first = dice.below(size.blocks);
    let count = 1 + dice.below(size.blocks - first);
    let extent = Extent::new(first as u64 * GRANULE, count as u64 * GRANULE);
    let fua = dice.percent(15);
    match dice.below(100) {
        0..35 => Command::Read { extent },
        35..60 => Command::Flush,
        60..70 if size.ambiguous => Command::Zero { extent, fua },
        70..75 if size.ambiguous => Command::Trim { extent, fua },
        _ => Command::Write {
            extent,
            content: Content(number),
            fua,
        },
    }
}

fn any_outcome(dice: &mut Dice, size: Size, history: &History, command: Command) -> Outcome {
    if dice.percent(12) {
        return Outcome::Failed;
    }
    let Command::Read { extent } = command else {
        return Outcome::Done;
    };
    let blocks = extent.offset / GRANULE..(extent.offset + extent.length) / GRANULE;
    let any = |block| any_content(dice, size, history, block);
    Outcome::Data(Contents::Each(blocks.map(any).collect()))
}

/// Most often something that was written there.
fn any_content(dice: &mut Dice, size: Size, history: &History, block: u64) -> Content {
    let strange = if size.ambiguous { 5 } else { 1 };
    if dice.percent(strange) {
        return Content(dice.below(12) as u64);
    }
    let mut written = vec![Content::ZEROES];
    for event in history.events() {
        if let Event::Invoke { command, .. } = event
            && let Command::Write {
                extent, content, ..
            } = *command
            && (extent.offset..extent.offset + extent.length).contains(&(block * GRANULE))
        {
            written.push(content);
        }
    }
    let older = dice.below(written.len().min(3));
    written[written.len() - 1 - older]
}

fn promise(dice: &mut Dice) -> (Promise, Rules) {
    let rules = Rules {
        multi_conn: dice.percent(70),
        ordered: dice.percent(70),
        own_writes: dice.percent(70),
    };
    let promise = match rules.multi_conn {
        true => Promise::MULTI_CONN.with_order(rules.ordered),
        false => Promise::SINGLE_CONNECTION,
    };
    (promise.with_own_writes(rules.own_writes), rules)
}

#[derive(Debug, Default)]
struct Counts {
    good: usize,
    bad: usize,
    not_accused: usize,
    clauses: BTreeMap<String, usize>,
}

fn compare(seed: u64, size: Size, counts: &mut Counts) {
    let mut dice = Dice::new(seed);
    let (promise, rules) = promise(&mut dice);
    let history = any_history(&mut dice, size);
    let accused = match check(&history, promise) {
        Ok(_) => false,
        Err(CheckError::Violation(it)) => {
            *counts.clauses.entry(it.clause().to_string()).or_default() += 1;
            true
        }
        Err(error) => panic!("seed {seed}: {error}\n{history}"),
    };
    let possible = brute::is_possible(&history, rules);
    match (possible, accused) {
        (true, false) => counts.good += 1,
        (false, true) => counts.bad += 1,
        (false, false) if size.ambiguous => counts.not_accused += 1,
        _ => {
            let verdict = check(&history, promise).map_err(|it| it.to_string());
            panic!(
                "seed {seed}, {rules:?}: possible: {possible}\n{history}\n{}",
                verdict.err().unwrap_or_default()
            );
        }
    }
}

fn compare_many(seeds: std::ops::Range<u64>, ambiguous: bool) {
    let mut counts = Counts::default();
    for seed in seeds {
        let size = Size {
            commands: 3 + seed as usize % 6,
            blocks: 1 + usize::from(seed % 4 == 0),
            conns: 2 + seed as u32 % 2,
            ambiguous,
        };
        compare(seed, size, &mut counts);
    }
    eprintln!("ambiguous: {ambiguous}: {counts:?}");
    assert!(counts.good > 100 && counts.bad > 100, "{counts:?}");
    assert!(counts.not_accused < counts.bad / 20, "{counts:?}");
}

#[test]
fn the_verdict_is_that_of_all_runs_of_an_abstract_server() {
    compare_many(0..20_000, false);
}

#[test]
fn contents_that_several_have_written_are_accused_only_if_no_run_explains_them() {
    compare_many(0..20_000, true);
}

#[test]
#[ignore = "takes minutes; the same with more histories"]
fn the_verdict_is_that_of_all_runs_for_millions_of_histories() {
    compare_many(1_000_000..4_000_000, false);
    compare_many(1_000_000..3_000_000, true);
}
