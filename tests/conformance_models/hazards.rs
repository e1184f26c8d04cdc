//! Schedules on which a coordinator that is simple and plausible loses data, step by step; each is
//! harmless for the crate's own.

use nbd_proto::conformance::backend::Kind;
use nbd_proto::conformance::property::{
    Act, Broken, Coordinated, Coordinator, ModelServer, Schedule, Step, play,
};
use nbd_proto::flush::Config;

use crate::toy::{Care, Toy};

const fn write(conn: usize, block: u64) -> Step {
    Step::Write {
        conn,
        block,
        count: 1,
        fua: false,
    }
}

const fn read(conn: usize) -> Step {
    Step::Read {
        conn,
        block: 0,
        count: 1,
    }
}

const fn flush(conn: usize) -> Step {
    Step::Flush { conn }
}

const TAKE: Step = Step::Act(Act::Take(16));
const FINISH: Step = Step::Act(Act::Finish(0));
const FINISH_FLUSH: Step = Step::Act(Act::FinishFlush(0));

fn run(coordinator: impl Coordinator, schedule: &Schedule) -> Result<(), Broken> {
    let mut server = ModelServer::new(coordinator, Kind::per_connection(), 2);
    play(&mut server, schedule)?.judge()
}

/// The filter loses on it, and our coordinator does not.
fn only_the_filter_loses(connections: usize, steps: &[Step]) -> Broken {
    let schedule = Schedule::new(connections, steps.to_vec());
    let ours = run(Coordinated::new(Config::new()), &schedule);
    assert_eq!(ours, Ok(()));
    run(Toy::new(Care::FILTER), &schedule).expect_err("the filter loses")
}

#[test]
fn t1_a_write_that_executes_across_a_flush() {
    let why = only_the_filter_loses(
        2,
        &[
            write(0, 0),
            flush(1),
            TAKE,
            FINISH_FLUSH,
            TAKE,
            FINISH_FLUSH,
            TAKE,
            FINISH_FLUSH,
            TAKE,
            FINISH,
        ],
    );
    assert!(
        matches!(why, Broken::Durability(..) | Broken::Visibility(_)),
        "{why}"
    );
}

#[test]
fn r1_a_read_between_the_flushes_of_a_round() {
    let why = only_the_filter_loses(
        3,
        &[
            write(0, 1),
            FINISH,
            write(1, 0),
            FINISH,
            flush(2),
            TAKE,
            // Of connection 0; ours flushes connection 1 at the same time.
            FINISH_FLUSH,
            read(0),
            FINISH,
            TAKE,
            FINISH_FLUSH,
            TAKE,
        ],
    );
    assert!(matches!(why, Broken::Visibility(_)), "{why}");
}

#[test]
fn o1_an_older_write_is_written_out_last() {
    let why = only_the_filter_loses(
        2,
        &[
            write(1, 0),
            FINISH,
            write(0, 0),
            FINISH,
            flush(0),
            TAKE,
            FINISH_FLUSH,
            TAKE,
            FINISH_FLUSH,
            TAKE,
        ],
    );
    assert!(
        matches!(why, Broken::Durability(..) | Broken::Visibility(_)),
        "{why}"
    );
}

#[test]
fn c1_a_connection_leaves_with_what_nobody_has_flushed() {
    let why = only_the_filter_loses(
        2,
        &[
            write(0, 0),
            FINISH,
            Step::Disconnect { conn: 0 },
            TAKE,
            flush(0),
            TAKE,
        ],
    );
    assert!(
        matches!(why, Broken::Durability(..) | Broken::Visibility(_)),
        "{why}"
    );
}
