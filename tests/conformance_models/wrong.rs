//! What breaks the promise is accused.

use nbd_proto::conformance::backend::{Breach, Failure, Kind};
use nbd_proto::conformance::property::{
    Coordinated, Coordinator, Counterexample, ModelServer, Options, Step, Task, Trouble,
    find_violation, prop_flush_consistent,
};
use nbd_proto::flush::{
    Acknowledge, Advertised, AfterFailure, Backend, Command, Config, Mode, Overlap,
};
use nbd_proto::wire::{CommandType, Errno};

use crate::toy::{Care, Toy};

/// Finds a schedule on which it breaks the promise, and that is short.
fn accused<C: Coordinator>(
    what: &str,
    options: Options,
    kind: Kind,
    coordinator: impl Fn() -> C,
) -> Counterexample {
    let found = find_violation(&options, || ModelServer::new(coordinator(), kind, 4));
    let found = found.expect_err(what);
    let steps = found.schedule.steps.len();
    assert!(steps <= 16, "{what} is shown in {steps} steps:\n{found}");
    found
}

fn options() -> Options {
    Options::new().with_cases(400)
}

fn coordinated(config: Config) -> impl Fn() -> Coordinated {
    move || Coordinated::new(config)
}

#[test]
fn unsafe_mode_is_accused_over_caches_of_connections() {
    let config = Config::new().with_mode(Mode::Unsafe);
    accused(
        "unsafe",
        options(),
        Kind::per_connection(),
        coordinated(config),
    );
}

#[test]
fn flushes_that_are_ignored_are_accused() {
    let config = Config::new().with_acknowledge(Acknowledge::IgnoreFlush);
    accused("ignored", options(), Kind::shared(), coordinated(config));
}

#[test]
fn writes_without_order_are_accused() {
    let config = Config::new().with_overlap(Overlap::Ignore);
    accused(
        "no order",
        options(),
        Kind::per_connection(),
        coordinated(config),
    );
}

#[test]
fn a_granule_that_the_coordinator_does_not_know_is_accused() {
    accused(
        "granule",
        options(),
        Kind::granular(2),
        coordinated(Config::new()),
    );
}

#[test]
fn each_breach_of_the_contract_is_accused() {
    for breach in [
        Breach::FlushDoesNothing,
        Breach::NotPermanent,
        Breach::KeepsOld,
        Breach::WritesAgain,
    ] {
        let kind = Kind::per_connection().with_breach(breach);
        accused("a breach", options(), kind, coordinated(Config::new()));
    }
    for breach in [Breach::FlushDoesNothing, Breach::NotPermanent] {
        let kind = Kind::shared().with_breach(breach);
        accused("a breach", options(), kind, coordinated(Config::new()));
    }
}

#[test]
fn a_retry_over_data_that_was_dropped_is_accused() {
    let options = options().with_faults(true).with_leaving(false);
    let config = Config::new().with_after_failure(AfterFailure::Retry);
    for failure in [Failure::Drops, Failure::Forgets] {
        let kind = Kind::per_connection().with_failure(failure);
        accused("a retry", options, kind, coordinated(config));
    }
}

/// Answers flushes without doing anything.
struct Careless;

impl Coordinator for Careless {
    fn opened(&mut self, _: usize, _: Backend) -> Result<Advertised, Trouble> {
        Ok(Advertised {
            multi_conn: true,
            flush: true,
            fua: false,
        })
    }

    fn command(&mut self, _: usize, tag: u64, command: Command) -> Option<Task> {
        Some(match command.kind {
            CommandType::FLUSH => Task::Reply {
                tag,
                result: Ok(()),
            },
            _ => Task::Execute {
                tag,
                fua: false,
                acknowledged: false,
            },
        })
    }

    fn executed(&mut self, tag: u64, result: Result<(), Errno>) -> Option<Task> {
        Some(Task::Reply { tag, result })
    }

    fn flushed(&mut self, _: u64, _: Result<(), Errno>) {}

    fn disconnect(&mut self, _: usize) {}

    fn poll(&mut self) -> Option<Task> {
        None
    }
}

#[test]
fn no_flush_at_all_is_accused_in_two_steps_or_three() {
    let kind = Kind::per_connection();
    let found = accused("no flush", options(), kind, || Careless);
    let steps = &found.schedule.steps;
    assert!(steps.len() <= 3, "{found}");
    assert!(
        steps
            .iter()
            .any(|it| matches!(it, Step::Write { .. } | Step::Zero { .. }))
    );
    // Where nothing is cached, nothing needs a flush.
    prop_flush_consistent(&options().with_cases(60), || {
        ModelServer::new(Careless, Kind::without_cache(), 4)
    });
}

#[test]
fn each_thing_that_a_coordinator_does_not_take_care_of_is_accused() {
    let cares = [
        (
            "the world goes on",
            Care {
                stops_the_world: false,
                ..Care::ALL
            },
        ),
        (
            "nothing is invalidated",
            Care {
                invalidates: false,
                ..Care::ALL
            },
        ),
        (
            "no order",
            Care {
                orders: false,
                ..Care::ALL
            },
        ),
        (
            "leaving is forgotten",
            Care {
                writes_out_leaving: false,
                ..Care::ALL
            },
        ),
        ("as a filter has it", Care::FILTER),
    ];
    for (what, care) in cares {
        accused(what, options(), Kind::per_connection(), || Toy::new(care));
    }
}

#[test]
fn a_command_that_is_never_answered_is_accused() {
    /// Forgets flushes.
    struct Forgetful;

    impl Coordinator for Forgetful {
        fn opened(&mut self, conn: usize, backend: Backend) -> Result<Advertised, Trouble> {
            Careless.opened(conn, backend)
        }

        fn command(&mut self, conn: usize, tag: u64, command: Command) -> Option<Task> {
            let flush = command.kind == CommandType::FLUSH;
            Careless.command(conn, tag, command).filter(|_| !flush)
        }

        fn executed(&mut self, tag: u64, result: Result<(), Errno>) -> Option<Task> {
            Careless.executed(tag, result)
        }

        fn flushed(&mut self, _: u64, _: Result<(), Errno>) {}

        fn disconnect(&mut self, _: usize) {}

        fn poll(&mut self) -> Option<Task> {
            None
        }
    }

    let found = accused("forgetful", options(), Kind::without_cache(), || Forgetful);
    assert!(found.explanation.contains("was never answered"), "{found}");
}

#[test]
fn a_server_without_multi_conn_is_not_passed_over_in_silence() {
    let config = Config::new().with_mode(Mode::Disable);
    let kind = Kind::per_connection();
    let found = accused("disabled", options(), kind, coordinated(config));
    assert!(
        found.explanation.contains("multi-conn is not advertised"),
        "{found}"
    );
}
