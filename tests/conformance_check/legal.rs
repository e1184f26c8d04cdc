//! A server that keeps its promise is never accused; one that does not is, before long.

use std::collections::BTreeMap;

use nbd_proto::conformance::{
    Action, CheckError, Checker, Command, Contents, Event, Extent, History, Outcome, Promise,
    Violation, check,
};

use crate::brute::Rules;
use crate::server::{Bug, GRANULE, Server};

const MULTI_CONN: Rules = Rules {
    multi_conn: true,
    ordered: true,
    own_writes: true,
};

fn promise(rules: Rules) -> Promise {
    let promise = match rules.multi_conn {
        true => Promise::MULTI_CONN.with_order(rules.ordered),
        false => Promise::SINGLE_CONNECTION,
    };
    promise.with_own_writes(rules.own_writes)
}

/// What the server does in so many steps.
fn history(rules: Rules, bug: Bug, seed: u64, steps: usize) -> History {
    let mut server = Server::new(rules, bug, seed);
    let mut history = History::new(GRANULE);
    for _ in 0..steps {
        history.extend(server.step());
    }
    history
}

fn never_accused(rules: Rules, seeds: std::ops::Range<u64>, steps: usize) {
    for seed in seeds {
        let history = history(rules, Bug::None, seed, steps);
        // The less is remembered, the less may be accused.
        for most in [8, 32, 64] {
            let mut checker = Checker::new(promise(rules), GRANULE).with_most_effects(most);
            let result = history
                .events()
                .iter()
                .try_for_each(|it| checker.record(it));
            if let Err(error) = result {
                let smallest = check(&history, promise(rules)).err();
                let smallest = smallest.map_or(String::new(), |it| it.to_string());
                panic!("seed {seed}, {rules:?}, at most {most}: {error}\n{smallest}");
            }
        }
    }
}

fn all_rules() -> impl Iterator<Item = Rules> {
    (0..8).map(|bits| Rules {
        multi_conn: bits & 1 == 0,
        ordered: bits & 2 == 0,
        own_writes: bits & 4 == 0,
    })
}

#[test]
fn whoever_keeps_a_promise_is_not_accused() {
    for rules in all_rules() {
        never_accused(rules, 0..60, 300);
        never_accused(rules, 1000..1004, 6000);
    }
}

#[test]
#[ignore = "takes minutes; the same with more histories"]
fn whoever_keeps_a_promise_is_not_accused_in_millions_of_histories() {
    for rules in all_rules() {
        never_accused(rules, 1_000_000..1_150_000, 300);
        never_accused(rules, 2_000_000..2_000_500, 20_000);
    }
}

/// How many of so many histories of a broken server are accused.
fn accused(rules: Rules, bug: Bug, seeds: std::ops::Range<u64>) -> usize {
    let guilty = |seed: &u64| {
        let history = history(rules, bug, *seed, 3000);
        let result = check(&history, promise(rules));
        if let Err(CheckError::Violation(violation)) = &result {
            is_an_explanation(&history, rules, violation);
            assert!(violation.steps().len() <= 9, "seed {seed}: {violation}");
        }
        result.is_err()
    };
    seeds.filter(guilty).count()
}

/// The named events alone are a violation of the same clause, as far as they are about its block;
/// and none of the commands can be left out.
fn is_an_explanation(history: &History, rules: Rules, violation: &Violation) {
    let events = violation.events();
    let alone = |without: Option<u64>| {
        let mut checker = Checker::new(promise(rules), GRANULE);
        let mut extents = BTreeMap::new();
        let named = (0..).zip(history.events());
        for (number, event) in named.filter(|(number, _)| events.contains(number)) {
            let event = match event.clone() {
                Event::Invoke { .. } if without == Some(number) => continue,
                Event::Invoke {
                    conn,
                    cookie,
                    command,
                } => {
                    extents.insert((conn, cookie), command.extent());
                    Event::Invoke {
                        conn,
                        cookie,
                        command: about(command, violation.offset()),
                    }
                }
                Event::Reply {
                    conn,
                    cookie,
                    outcome,
                } => match extents.remove(&(conn, cookie)) {
                    Some(extent) => Event::Reply {
                        conn,
                        cookie,
                        outcome: found_at(outcome, extent, violation.offset()),
                    },
                    None => continue,
                },
                other => other,
            };
            match checker.record(&event) {
                Err(CheckError::Violation(violation)) => return Some(violation.clause()),
                other => other.unwrap(),
            }
        }
        None
    };
    assert_eq!(alone(None), Some(violation.clause()), "{violation}");
    for step in violation.steps() {
        if matches!(step.action, Action::Crash | Action::Disconnect) {
            continue;
        }
        let less = alone(Some(step.invoked));
        assert_ne!(
            less,
            Some(violation.clause()),
            "without {step:?}:\n{violation}"
        );
    }
}

fn about(command: Command, offset: u64) -> Command {
    let extent = Extent::new(offset, GRANULE);
    match command {
        Command::Read { .. } => Command::Read { extent },
        Command::Write { content, fua, .. } => Command::Write {
            extent,
            content,
            fua,
        },
        Command::Zero { fua, .. } => Command::Zero { extent, fua },
        Command::Trim { fua, .. } => Command::Trim { extent, fua },
        other => other,
    }
}

fn found_at(outcome: Outcome, extent: Option<Extent>, offset: u64) -> Outcome {
    match (outcome, extent) {
        (Outcome::Data(Contents::Each(each)), Some(extent)) => {
            let place = (offset - extent.offset) / GRANULE;
            Outcome::Data(Contents::Same(each[place as usize]))
        }
        (outcome, _) => outcome,
    }
}

#[test]
fn each_broken_rule_is_accused_and_explained() {
    let bugs = [
        Bug::FlushesItselfOnly,
        Bug::KeepsCaches,
        Bug::NoOrder,
        Bug::ForcesNothing,
        Bug::HidesForced,
        Bug::DropsAtDisconnect,
        Bug::DropsAfterFailure,
        Bug::LosesDirtyBit,
        Bug::ForgetsOwn,
        Bug::Misplaces,
    ];
    for bug in bugs {
        let accused = accused(MULTI_CONN, bug, 0..60);
        eprintln!("{bug:?}: {accused} of 60");
        assert!(accused >= 5, "{bug:?}: {accused} of 60");
    }
}

#[test]
fn a_server_without_multi_conn_is_not_excused_from_its_own_flushes() {
    let rules = Rules {
        multi_conn: false,
        ..MULTI_CONN
    };
    for bug in [Bug::DropsAfterFailure, Bug::ForgetsOwn, Bug::ForcesNothing] {
        let accused = accused(rules, bug, 0..60);
        eprintln!("{bug:?}: {accused} of 60");
        assert!(accused >= 5, "{bug:?}: {accused} of 60");
    }
}

#[test]
fn what_a_single_connection_may_do_is_too_little_for_multi_conn() {
    let alone = Rules {
        multi_conn: false,
        ..MULTI_CONN
    };
    let guilty = |seed: &u64| {
        let history = history(alone, Bug::None, *seed, 3000);
        check(&history, Promise::MULTI_CONN).is_err()
    };
    let accused = (0..30).filter(guilty).count();
    assert!(accused >= 10, "{accused} of 30");
}
