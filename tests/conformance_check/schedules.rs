//! Each hazard that loses data or shows what is old, as clients see it: accused when it happens,
//! and not when the server got it right. The schedules are those of `tests/flush/hazards.rs`.
//!
//! Content 1 is x, which has to be found; the block held zeroes, or what a row says, before.

use nbd_proto::conformance::{CheckError, Clause, History, Promise, check};

fn history(text: &str) -> History {
    let text = format!("granule 4096\n{text}");
    text.parse()
        .unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// A schedule that ends in a read of `R`: what it has to find, what it must not, and why.
fn hazard(schedule: &str, right: u64, wrong: u64, clause: Clause) {
    let good = history(&schedule.replace("R!", &right.to_string()));
    assert!(check(&good, Promise::MULTI_CONN).is_ok(), "{good}");
    let bad = history(&schedule.replace("R!", &wrong.to_string()));
    match check(&bad, Promise::MULTI_CONN) {
        Err(CheckError::Violation(violation)) => {
            assert_eq!(violation.clause(), clause, "{violation}");
        }
        other => panic!("not accused: {other:?}\n{bad}"),
    }
}

/// The server is killed, and what it left is read.
const AFTER_CRASH: &str = "
    crash
    reopen
    c9 read #9 0+4096
    c9 data #9 =R!";

const T1: &str = "
    c1 write #1 0+4096 =1
    c2 flush #1
    c2 done #1
    c1 done #1
    c2 flush #2
    c2 done #2";

#[test]
fn t1_a_dirty_bit_that_is_lost_is_seen_after_the_crash() {
    hazard(&format!("{T1} {AFTER_CRASH}"), 1, 0, Clause::Durability);
}

#[test]
fn t1_a_dirty_bit_that_is_lost_is_seen_by_a_read() {
    let read = "
        c2 read #3 0+4096
        c2 data #3 =R!";
    hazard(&format!("{T1} {read}"), 1, 0, Clause::Visibility);
}

#[test]
fn t2_a_flush_pipelined_behind_a_write_is_no_excuse_for_the_next() {
    let schedule = "
        c1 write #1 0+4096 =1
        c1 flush #2
        c1 done #2
        c1 done #1
        c1 flush #3
        c1 done #3";
    hazard(
        &format!("{schedule} {AFTER_CRASH}"),
        1,
        0,
        Clause::Durability,
    );
}

#[test]
fn t3_a_write_inside_a_flush_is_covered_by_the_next() {
    let schedule = "
        c1 flush #1
        c1 write #2 0+4096 =1
        c1 done #2
        c1 done #1
        c2 flush #1
        c2 done #1";
    hazard(
        &format!("{schedule} {AFTER_CRASH}"),
        1,
        0,
        Clause::Durability,
    );
}

#[test]
fn t4_what_fua_has_written_is_not_hidden_by_what_was_read_before() {
    let schedule = "
        c2 read #1 0+4096
        c2 data #1 =0
        c1 write #1 0+4096 =1 fua
        c1 done #1
        c1 flush #2
        c1 done #2
        c2 flush #2
        c2 done #2
        c2 read #3 0+4096
        c2 data #3 =R!";
    hazard(schedule, 1, 0, Clause::Visibility);
}

#[test]
fn t5_a_flush_that_was_skipped_loses_what_it_covers() {
    let schedule = "
        c1 write #1 0+4096 =1
        c1 done #1
        c2 flush #1
        c2 done #1
        c1 flush #2
        c1 done #2";
    hazard(
        &format!("{schedule} {AFTER_CRASH}"),
        1,
        0,
        Clause::Durability,
    );
}

#[test]
fn t6_a_failed_write_that_was_read_is_covered_by_the_next_flush() {
    let schedule = "
        c1 write #1 0+4096 =1 fua
        c1 failed #1
        c2 read #1 0+4096
        c2 data #1 =1
        c2 flush #2
        c2 done #2";
    hazard(
        &format!("{schedule} {AFTER_CRASH}"),
        1,
        0,
        Clause::Durability,
    );
}

#[test]
fn r1_a_read_between_the_phases_of_a_flush_does_not_stay_old() {
    let schedule = "
        c1 read #1 0+4096
        c1 data #1 =0
        c2 write #1 0+4096 =1
        c2 done #1
        c3 flush #1
        c1 read #2 0+4096
        c1 data #2 =0
        c3 done #1
        c1 read #3 0+4096
        c1 data #3 =R!";
    hazard(schedule, 1, 0, Clause::Visibility);
}

#[test]
fn r2_a_read_that_is_held_across_a_flush_leaves_nothing_old_behind() {
    let schedule = "
        c1 read #1 0+4096
        c2 write #1 0+4096 =1
        c2 done #1
        c3 flush #1
        c3 done #1
        c1 data #1 =0
        c1 read #2 0+4096
        c1 data #2 =R!";
    hazard(schedule, 1, 0, Clause::Visibility);
}

#[test]
fn r3_a_write_that_fills_a_line_leaves_nothing_old_behind() {
    let schedule = "
        c1 write #1 4096+4096 =7
        c2 write #1 0+4096 =1
        c2 done #1
        c3 flush #1
        c3 done #1
        c1 done #1
        c1 read #2 0+4096
        c1 data #2 =R!";
    hazard(schedule, 1, 0, Clause::Visibility);
}

#[test]
fn r4_a_second_round_leaves_nothing_older_than_itself() {
    let schedule = "
        c2 write #1 0+4096 =2
        c2 done #1
        c1 flush #1
        c1 read #2 0+4096
        c1 data #2 =2
        c1 done #1
        c2 write #2 0+4096 =1
        c2 done #2
        c3 flush #1
        c3 done #1
        c1 read #3 0+4096
        c1 data #3 =R!";
    hazard(schedule, 1, 2, Clause::Visibility);
}

#[test]
fn r5_what_fua_has_written_is_found_by_all() {
    let schedule = "
        c1 read #1 0+4096
        c1 data #1 =0
        c2 write #1 0+4096 =1 fua
        c1 read #2 0+4096
        c1 data #2 =0
        c2 done #1
        c1 read #3 0+4096
        c1 data #3 =R!";
    hazard(schedule, 1, 0, Clause::ForcedAccess);
}

#[test]
fn e1_no_success_after_a_failure_without_the_data() {
    let schedule = "
        c2 write #1 0+4096 =1
        c2 done #1
        c1 flush #1
        c1 failed #1
        c1 flush #2
        c1 done #2";
    hazard(
        &format!("{schedule} {AFTER_CRASH}"),
        1,
        0,
        Clause::Durability,
    );
    let fails = format!("{schedule} {AFTER_CRASH}").replace("done #2", "failed #2");
    let fails = history(&fails.replace("R!", "0"));
    assert!(check(&fails, Promise::MULTI_CONN).is_ok());
}

#[test]
fn e2_an_error_told_to_a_stranger_does_not_make_the_flush_succeed() {
    let schedule = "
        c1 write #1 0+4096 =1
        c1 done #1
        c2 write #1 4096+4096 =7 fua
        c2 failed #1
        c1 flush #2
        c1 done #2";
    hazard(
        &format!("{schedule} {AFTER_CRASH}"),
        1,
        0,
        Clause::Durability,
    );
}

#[test]
fn e3_what_a_failed_flush_has_not_written_out_is_not_promised() {
    let schedule = "
        c1 write #1 0+4096 =1
        c1 done #1
        c3 flush #1
        c3 failed #1";
    for left in ["0", "1"] {
        let left = format!("{schedule} {AFTER_CRASH}").replace("R!", left);
        assert!(check(&history(&left), Promise::MULTI_CONN).is_ok());
    }
}

#[test]
fn c1_what_a_connection_left_behind_is_covered_by_the_next_flush() {
    let schedule = "
        c1 write #1 0+4096 =1
        c1 done #1
        c1 gone
        c2 flush #1
        c2 done #1";
    hazard(
        &format!("{schedule} {AFTER_CRASH}"),
        1,
        0,
        Clause::Durability,
    );
}

#[test]
fn c3_a_connection_that_opens_during_a_flush_finds_nothing_old() {
    let schedule = "
        c1 write #1 0+4096 =1
        c1 done #1
        c1 flush #2
        c2 read #1 4096+4096
        c2 data #1 =0
        c1 done #2
        c2 read #2 0+4096
        c2 data #2 =R!";
    hazard(schedule, 1, 0, Clause::Visibility);
}

const O1: &str = "
    c2 write #1 0+4096 =2
    c2 done #1
    c1 write #1 0+4096 =1
    c1 done #1
    c3 flush #1
    c3 done #1";

#[test]
fn o1_the_older_of_two_writes_does_not_win() {
    let read = "
        c3 read #2 0+4096
        c3 data #2 =R!";
    hazard(&format!("{O1} {read}"), 1, 2, Clause::Visibility);
    hazard(&format!("{O1} {AFTER_CRASH}"), 1, 2, Clause::Durability);
}

#[test]
fn o2_an_older_write_does_not_come_back_over_fua() {
    let schedule = "
        c2 write #1 0+4096 =2
        c2 done #1
        c1 write #1 0+4096 =1 fua
        c1 done #1";
    hazard(
        &format!("{schedule} {AFTER_CRASH}"),
        1,
        2,
        Clause::Durability,
    );
    let flushed = "
        c3 flush #1
        c3 done #1
        c3 read #2 0+4096
        c3 data #2 =R!";
    hazard(&format!("{schedule} {flushed}"), 1, 2, Clause::Visibility);
}

#[test]
fn o3_a_neighbour_in_the_servers_block_is_not_reverted() {
    let schedule = "
        c1 write #1 0+4096 =1
        c1 done #1
        c2 write #1 4096+4096 =7
        c2 done #1
        c3 flush #1
        c3 done #1
        c3 read #2 0+8192
        c3 data #2 =R! =7";
    hazard(schedule, 1, 0, Clause::Visibility);
}

/// A schedule of the 2016 message: a reply that is late makes a flush look as if it had covered
/// what came after it.
#[test]
fn a_flush_whose_reply_comes_late_covers_no_more_than_what_was_answered_when_it_was_sent() {
    let schedule = "
        c1 write #1 0+4096 =1
        c2 flush #1
        c1 done #1
        c2 done #1";
    for left in ["0", "1"] {
        let left = format!("{schedule} {AFTER_CRASH}").replace("R!", left);
        assert!(check(&history(&left), Promise::MULTI_CONN).is_ok());
    }
}
