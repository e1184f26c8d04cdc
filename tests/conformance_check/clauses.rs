//! Each clause of the promise, both ways: what it forbids is accused, and what is just not
//! forbidden is not.

use nbd_proto::conformance::{
    CheckError, Checker, Clause, Event, History, Initial, Malformed, Promise, Role, check,
};

fn history(text: &str) -> History {
    let text = format!("granule 512\n{text}");
    text.parse()
        .unwrap_or_else(|error| panic!("{error}\n{text}"))
}

#[track_caller]
fn legal(promise: Promise, text: &str) {
    let result = check(&history(text), promise);
    assert!(result.is_ok(), "{}", result.unwrap_err());
}

#[track_caller]
fn illegal(promise: Promise, clause: Clause, text: &str) {
    match check(&history(text), promise) {
        Err(CheckError::Violation(it)) => assert_eq!(it.clause(), clause, "{it}"),
        other => panic!("not accused: {other:?}"),
    }
}

const MULTI: Promise = Promise::MULTI_CONN;
const SINGLE: Promise = Promise::SINGLE_CONNECTION;

/// A read of the first block by a connection that has done nothing else.
fn then_found(content: &str) -> String {
    format!("\nc9 read #99 0+512\nc9 data #99 ={content}")
}

fn then_left(content: &str) -> String {
    format!("\ncrash\nreopen{}", then_found(content))
}

const WRITTEN: &str = "c0 write #1 0+512 =1\nc0 done #1";
const FLUSHED: &str = "c0 write #1 0+512 =1\nc0 done #1\nc1 flush #1\nc1 done #1";

#[test]
fn without_a_flush_others_may_find_what_was_there() {
    legal(MULTI, &format!("{WRITTEN}{}", then_found("0")));
    legal(MULTI, &format!("{WRITTEN}{}", then_found("1")));
    legal(
        MULTI,
        &format!("{WRITTEN}{}{}", then_found("1"), then_found("0")),
    );
}

#[test]
fn after_a_flush_all_find_what_was_written() {
    legal(MULTI, &format!("{FLUSHED}{}", then_found("1")));
    illegal(
        MULTI,
        Clause::Visibility,
        &format!("{FLUSHED}{}", then_found("0")),
    );
}

#[test]
fn a_flush_sent_before_the_reply_covers_nothing() {
    let text = "c0 write #1 0+512 =1\nc1 flush #1\nc0 done #1\nc1 done #1";
    legal(MULTI, &format!("{text}{}", then_found("0")));
    legal(MULTI, &format!("{text}{}", then_left("0")));
}

#[test]
fn a_read_sent_before_the_flush_was_answered_may_find_what_is_old() {
    let text = "c0 write #1 0+512 =1\nc0 done #1\nc1 flush #1\nc2 read #1 0+512\nc1 done #1\n";
    legal(MULTI, &format!("{text}c2 data #1 =0"));
    legal(MULTI, &format!("{text}c2 data #1 =1"));
}

#[test]
fn a_read_that_was_in_flight_is_judged_by_when_it_was_sent_however_much_came_meanwhile() {
    let mut text = format!("c2 read #1 0+512\n{FLUSHED}\n");
    for content in 2..9 {
        text += &format!("c0 write #1 0+512 ={content}\nc0 done #1\nc1 flush #1\nc1 done #1\n");
    }
    for content in 0..9 {
        legal(MULTI, &format!("{text}c2 data #1 ={content}"));
    }
    illegal(
        MULTI,
        Clause::NeverWritten,
        &format!("{text}c2 data #1 =77"),
    );
    illegal(
        MULTI,
        Clause::Visibility,
        &format!("{text}{}", then_found("7")),
    );
}

#[test]
fn a_failed_flush_covers_nothing() {
    let text = FLUSHED.replace("c1 done", "c1 failed");
    legal(MULTI, &format!("{text}{}", then_found("0")));
    legal(MULTI, &format!("{text}{}", then_left("0")));
    legal(MULTI, &format!("{text}{}", then_left("1")));
}

#[test]
fn an_unanswered_flush_covers_nothing() {
    let text = format!("{WRITTEN}\nc1 flush #1\nc1 gone");
    legal(MULTI, &format!("{text}{}", then_found("0")));
    legal(MULTI, &format!("{text}{}", then_left("0")));
}

#[test]
fn fua_covers_its_own_data() {
    let text = "c0 write #1 0+512 =1 fua\nc0 done #1";
    illegal(
        MULTI,
        Clause::ForcedAccess,
        &format!("{text}{}", then_found("0")),
    );
    illegal(
        MULTI,
        Clause::Durability,
        &format!("{text}{}", then_left("0")),
    );
    legal(MULTI, &format!("{text}{}", then_left("1")));
}

#[test]
fn fua_covers_nothing_else() {
    let text = format!("{WRITTEN}\nc0 write #2 512+512 =2 fua\nc0 done #2");
    legal(MULTI, &format!("{text}{}", then_found("0")));
    legal(MULTI, &format!("{text}{}", then_left("0")));
}

#[test]
fn fua_that_failed_covers_nothing() {
    let text = "c0 write #1 0+512 =1 fua\nc0 failed #1";
    legal(MULTI, &format!("{text}{}", then_found("0")));
    legal(MULTI, &format!("{text}{}", then_left("0")));
    legal(MULTI, &format!("{text}{}", then_left("1")));
}

#[test]
fn a_connection_reads_what_it_has_written() {
    let read = "\nc0 read #2 0+512\nc0 data #2 =";
    illegal(MULTI, Clause::OwnWrites, &format!("{WRITTEN}{read}0"));
    illegal(SINGLE, Clause::OwnWrites, &format!("{WRITTEN}{read}0"));
    legal(MULTI.with_own_writes(false), &format!("{WRITTEN}{read}0"));
    legal(SINGLE.with_own_writes(false), &format!("{WRITTEN}{read}0"));
}

#[test]
fn a_connection_reads_what_it_has_flushed_whatever_else_is_believed_of_it() {
    let text = format!("{WRITTEN}\nc0 flush #3\nc0 done #3\nc0 read #2 0+512\nc0 data #2 =0");
    let promise = SINGLE.with_own_writes(false);
    illegal(promise, Clause::Visibility, &text);
    legal(promise, &text.replace("=0", "=1"));
}

#[test]
fn a_connection_that_came_back_under_the_same_number_is_another_one() {
    let text = format!("{WRITTEN}\nc0 gone\nc0 read #2 0+512\nc0 data #2 =0");
    legal(MULTI, &text);
    let text = format!(
        "{WRITTEN}\nc0 gone\nc0 flush #2\nc0 done #2{}",
        then_left("0")
    );
    legal(SINGLE, &text);
    illegal(MULTI, Clause::Durability, &text);
}

#[test]
fn without_multi_conn_a_flush_covers_its_own_connection_alone() {
    legal(SINGLE, &format!("{FLUSHED}{}", then_left("0")));
    illegal(
        MULTI,
        Clause::Durability,
        &format!("{FLUSHED}{}", then_left("0")),
    );
    let own = FLUSHED.replace("c1", "c0");
    illegal(
        SINGLE,
        Clause::Durability,
        &format!("{own}{}", then_left("0")),
    );
    legal(SINGLE, &format!("{own}{}", then_left("1")));
    legal(SINGLE, &format!("{own}{}", then_found("0")));
}

#[test]
fn a_read_that_overlaps_a_write_finds_either_block_by_block() {
    let text = "c0 write #1 0+1024 =1\nc1 read #1 0+1024\nc0 done #1\nc1 data #1";
    for found in ["=0 =1", "=1 =0", "=0 =0", "=1 =1"] {
        legal(MULTI, &format!("{text} {found}"));
    }
}

#[test]
fn nothing_is_found_that_was_not_written_there() {
    illegal(MULTI, Clause::NeverWritten, &then_found("1"));
    let elsewhere = "c0 write #1 512+512 =1\nc0 done #1";
    illegal(
        MULTI,
        Clause::NeverWritten,
        &format!("{elsewhere}{}", then_found("1")),
    );
}

#[test]
fn nothing_is_found_that_is_written_later() {
    let text = "c1 read #1 0+512\nc1 data #1 =1\nc0 write #1 0+512 =1\nc0 done #1";
    illegal(MULTI, Clause::NeverWritten, text);
}

#[test]
fn a_mixture_is_found_only_where_two_are_legal() {
    legal(MULTI, &format!("{WRITTEN}{}", then_found("mixed")));
    let alone = format!("{FLUSHED}{}", then_found("mixed"));
    illegal(MULTI, Clause::NeverWritten, &alone);
    let meanwhile = format!("{FLUSHED}\nc0 write #2 0+512 =2{}", then_found("mixed"));
    legal(MULTI, &meanwhile);
}

#[test]
fn a_failed_write_may_take_effect_or_not_and_late() {
    let text = "c0 write #1 0+512 =1\nc0 failed #1\nc0 write #2 0+512 =2\nc0 done #2
        c0 flush #3\nc0 done #3";
    legal(MULTI, &format!("{text}{}", then_found("2")));
    legal(MULTI, &format!("{text}{}", then_found("1")));
    legal(MULTI, &format!("{text}{}", then_left("1")));
    illegal(
        MULTI,
        Clause::Visibility,
        &format!("{text}{}", then_found("0")),
    );
}

#[test]
fn a_failed_write_that_was_read_has_taken_effect() {
    let text = "c0 write #1 0+512 =1\nc0 failed #1\nc1 read #1 0+512\nc1 data #1 =1";
    legal(MULTI, &format!("{text}{}", then_found("0")));
    let flushed = format!("{text}\nc1 flush #2\nc1 done #2");
    legal(MULTI, &format!("{flushed}{}", then_found("1")));
    illegal(
        MULTI,
        Clause::Visibility,
        &format!("{flushed}{}", then_found("0")),
    );
    let over = format!("{text}\nc1 write #3 0+512 =3\nc1 done #3\nc1 flush #2\nc1 done #2");
    illegal(
        MULTI,
        Clause::Visibility,
        &format!("{over}{}", then_found("1")),
    );
}

#[test]
fn what_was_never_answered_may_take_effect_however_late() {
    let text = "c0 write #1 0+512 =1\nc0 gone\nc1 read #1 0+512\nc1 data #1 =1
        c1 write #2 0+512 =2\nc1 done #2\nc1 flush #3\nc1 done #3";
    legal(MULTI, &format!("{text}{}", then_found("1")));
    legal(MULTI, &format!("{text}{}", then_left("1")));
    illegal(
        MULTI,
        Clause::Visibility,
        &format!("{text}{}", then_found("0")),
    );
}

#[test]
fn nothing_that_was_in_flight_takes_effect_after_a_crash() {
    let text = "c0 write #1 0+512 =1\ncrash\nreopen\nc1 read #1 0+512\nc1 data #1 =";
    legal(MULTI, &format!("{text}1{}", then_found("1")));
    illegal(
        MULTI,
        Clause::OneImage,
        &format!("{text}0{}", then_found("1")),
    );
}

#[test]
fn a_crash_leaves_one_image() {
    let text = format!("{WRITTEN}{}", then_left("0"));
    legal(MULTI, &format!("{text}{}", then_found("0")));
    illegal(
        MULTI,
        Clause::OneImage,
        &format!("{text}{}", then_found("1")),
    );
    legal(MULTI, &format!("{text}{}", then_left("0")));
    illegal(
        MULTI,
        Clause::OneImage,
        &format!("{text}{}", then_left("1")),
    );
}

#[test]
fn a_crash_leaves_any_of_what_was_not_covered() {
    let text = format!(
        "{FLUSHED}\nc0 write #2 0+512 =2\nc0 done #2\nc0 write #3 0+512 =3\nc0 done #3
        c0 write #4 0+512 =4"
    );
    for left in ["1", "2", "3", "4"] {
        legal(MULTI, &format!("{text}{}", then_left(left)));
    }
    illegal(
        MULTI,
        Clause::Durability,
        &format!("{text}{}", then_left("0")),
    );
}

#[test]
fn zeroes_are_what_was_there_or_what_was_zeroed() {
    let text = format!("{FLUSHED}\nc0 zero #2 0+512\nc0 done #2");
    legal(MULTI, &format!("{text}{}", then_found("0")));
    legal(MULTI, &format!("{text}{}", then_found("1")));
    let flushed = format!("{text}\nc1 flush #1\nc1 done #1");
    legal(MULTI, &format!("{flushed}{}", then_found("0")));
    illegal(
        MULTI,
        Clause::Visibility,
        &format!("{flushed}{}", then_found("1")),
    );
}

#[test]
fn what_was_trimmed_is_anything_until_it_is_written() {
    let text = format!("{FLUSHED}\nc0 trim #2 0+512\nc0 done #2\nc1 flush #1\nc1 done #1");
    for found in ["0", "1", "77", "mixed"] {
        legal(
            MULTI,
            &format!("{text}{}{}", then_found(found), then_found("1")),
        );
    }
    let over = format!("{text}\nc0 write #3 0+512 =3\nc0 done #3\nc1 flush #1\nc1 done #1");
    illegal(
        MULTI,
        Clause::Visibility,
        &format!("{over}{}", then_found("1")),
    );
    legal(MULTI, &format!("{over}{}", then_found("3")));
}

#[test]
fn what_others_write_keeps_its_order_if_that_is_promised() {
    let text = format!("{WRITTEN}\nc1 write #1 0+512 =2\nc1 done #1\nc2 flush #1\nc2 done #1");
    illegal(
        MULTI,
        Clause::Visibility,
        &format!("{text}{}", then_found("1")),
    );
    let unordered = MULTI.with_order(false);
    legal(unordered, &format!("{text}{}", then_found("1")));
    legal(unordered, &format!("{text}{}", then_left("1")));
    // But one of them wins.
    let both = format!("{text}{}{}", then_found("1"), then_found("2"));
    illegal(unordered, Clause::OneOrder, &both);
    illegal(
        unordered,
        Clause::Visibility,
        &format!("{text}{}", then_found("0")),
    );
}

#[test]
fn a_flush_between_them_orders_what_others_write() {
    let text = format!("{FLUSHED}\nc1 write #2 0+512 =2\nc1 done #2\nc2 flush #1\nc2 done #1");
    illegal(
        MULTI.with_order(false),
        Clause::Visibility,
        &format!("{text}{}", then_found("1")),
    );
    let own = "c0 write #1 0+512 =1\nc0 done #1\nc0 flush #2\nc0 done #2
        c1 write #2 0+512 =2 fua\nc1 done #2";
    illegal(
        SINGLE,
        Clause::Durability,
        &format!("{own}{}", then_left("1")),
    );
    legal(
        SINGLE,
        &format!("{}{}", own.replace("c0 done #2", ""), then_left("1")),
    );
}

#[test]
fn writes_that_overlap_in_time_have_one_order() {
    let text = "c0 write #1 0+512 =1\nc1 write #1 0+512 =2\nc0 done #1\nc1 done #1
        c2 flush #1\nc2 done #1";
    for found in ["1", "2"] {
        legal(
            MULTI,
            &format!("{text}{}{}", then_found(found), then_found(found)),
        );
    }
    let both = format!("{text}{}{}", then_found("1"), then_found("2"));
    illegal(MULTI, Clause::OneOrder, &both);
    let left = format!("{text}{}{}", then_found("1"), then_left("2"));
    illegal(MULTI, Clause::Durability, &left);
}

#[test]
fn what_reads_prove_goes_through_others() {
    // 1 and 2 overlap, 2 and 3 overlap, 1 is before 3; a read proves 3 before 2.
    let text = "c0 write #1 0+512 =1\nc1 write #1 0+512 =2\nc0 done #1
        c0 write #2 0+512 =3\nc0 done #2\nc1 done #1\nc2 flush #1\nc2 done #1";
    legal(
        MULTI,
        &format!("{text}{}{}", then_found("2"), then_found("2")),
    );
    illegal(
        MULTI,
        Clause::OneOrder,
        &format!("{text}{}{}", then_found("2"), then_found("3")),
    );
    illegal(
        MULTI,
        Clause::Visibility,
        &format!("{text}{}", then_found("1")),
    );
}

#[test]
fn what_a_read_proves_later_holds_for_what_was_newer_already() {
    // 1 and 2 overlap, 3 comes after 2; then a read proves 1 before 2, so 1 is before 3.
    let text = "c0 write #1 0+512 =1\nc1 write #1 0+512 =2\nc1 done #1\nc2 write #1 0+512 =3
        c2 done #1\nc2 gone\nc0 done #1\nc1 read #2 0+512\nc3 flush #1\nc3 done #1";
    legal(MULTI, &format!("{text}{}", then_found("1")));
    let text = "c0 write #1 0+512 =1\nc1 write #1 0+512 =2\nc1 done #1\nc0 read #4 0+512
        c2 write #1 0+512 =3 fua\nc0 done #1\nc0 read #3 0+512\nc0 data #3 =2\nc2 done #1";
    legal(MULTI, &format!("{text}{}", then_found("3")));
    illegal(
        MULTI,
        Clause::OneOrder,
        &format!("{text}{}", then_found("1")),
    );
}

#[test]
fn a_flush_that_is_overtaken_by_a_later_one_does_not_take_its_place() {
    let text = "c1 flush #1\nc0 write #1 0+512 =1\nc0 done #1\nc2 flush #1\nc2 done #1
        c1 done #1";
    illegal(
        MULTI,
        Clause::Visibility,
        &format!("{text}{}", then_found("0")),
    );
}

#[test]
fn what_is_there_at_the_beginning_may_be_unknown() {
    let promise = MULTI.with_initial(Initial::Unknown);
    legal(promise, &format!("{}{}", then_found("5"), then_found("6")));
    legal(promise, &format!("{WRITTEN}{}", then_found("5")));
    illegal(
        promise,
        Clause::NeverWritten,
        &format!("{FLUSHED}{}", then_found("5")),
    );
}

#[test]
fn what_is_forgotten_for_want_of_room_is_never_accused() {
    let mut checker = Checker::new(MULTI, 512).with_most_effects(8);
    let record =
        |checker: &mut Checker, line: &str| checker.record(&line.parse::<Event>().unwrap());
    for content in 1..10_000 {
        record(&mut checker, &format!("c0 write #1 0+512 ={content}")).unwrap();
        record(&mut checker, "c0 done #1").unwrap();
    }
    for found in [1, 5000, 9999] {
        record(&mut checker, "c1 read #1 0+512").unwrap();
        record(&mut checker, &format!("c1 data #1 ={found}")).unwrap();
    }
    assert!(checker.remembered() < 4200, "{}", checker.remembered());
    // But when all of it is covered, it must not be found.
    record(&mut checker, "c1 flush #1").unwrap();
    record(&mut checker, "c1 done #1").unwrap();
    for (found, clause) in [
        (0, Clause::Visibility),
        (5000, Clause::NeverWritten),
        (9900, Clause::Visibility),
        (9998, Clause::Visibility),
    ] {
        let mut checker = checker.clone();
        record(&mut checker, "c1 read #1 0+512").unwrap();
        let Err(CheckError::Violation(it)) = record(&mut checker, &format!("c1 data #1 ={found}"))
        else {
            panic!("{found} is not accused");
        };
        assert_eq!(it.clause(), clause, "{it}");
    }
}

/// Blocks are kept in pages of 256.
#[test]
fn a_command_may_be_about_blocks_of_several_pages() {
    let at = 200 * 512;
    for count in [1, 56, 57, 312, 313, 700] {
        let length = count * 512;
        let text = format!("c0 write #1 {at}+{length} =1\nc0 done #1\nc1 flush #1\nc1 done #1");
        legal(
            MULTI,
            &format!("{text}\nc2 read #1 {at}+{length}\nc2 data #1 =1..."),
        );
        let (before, last, after) = (at - 512, at + length - 512, at + length);
        legal(
            MULTI,
            &format!("{text}\nc2 read #1 {before}+512\nc2 data #1 =0"),
        );
        legal(
            MULTI,
            &format!("{text}\nc2 read #1 {after}+512\nc2 data #1 =0"),
        );
        for offset in [at, last] {
            let found = format!("{text}\nc2 read #1 {offset}+512\nc2 data #1 =0");
            illegal(MULTI, Clause::Visibility, &found);
        }
        for offset in [before, after] {
            let found = format!("{text}\nc2 read #1 {offset}+512\nc2 data #1 =1");
            illegal(MULTI, Clause::NeverWritten, &found);
        }
    }
}

/// However much is written in between, elsewhere and there.
#[test]
fn a_server_that_goes_back_to_what_it_began_with_has_lost_what_was_flushed() {
    let mut checker = Checker::new(MULTI, 512);
    let mut record = |lines: &str| {
        let mut events = lines.lines().map(|it| it.parse::<Event>().unwrap());
        events.try_for_each(|it| checker.record(&it))
    };
    for round in 0..2 {
        // From the first crash on, what was left by it: the last content of the first round.
        let began_with = round * 6000;
        for content in round * 6000 + 1..=(round + 1) * 6000 {
            let offset = if content % 10 == 0 { 0 } else { content * 512 };
            let write = format!("c0 write #1 {offset}+512 ={content}\nc0 done #1");
            record(&format!("{write}\nc1 flush #1\nc1 done #1")).unwrap();
        }
        record("crash\nreopen").unwrap();
        if round == 0 {
            record("c0 read #1 0+512\nc0 data #1 =6000").unwrap();
            continue;
        }
        let found = format!("c0 read #1 0+512\nc0 data #1 ={began_with}");
        let Err(CheckError::Violation(violation)) = record(&found) else {
            panic!("it is accused");
        };
        assert_eq!(violation.clause(), Clause::Durability, "{violation}");
        let roles: Vec<Role> = violation.steps().iter().map(|it| it.role).collect();
        let expected = [Role::Old, Role::New, Role::Cover, Role::Crash, Role::Wrong];
        assert_eq!(roles, expected, "{violation}");
    }
}

#[test]
fn an_explanation_names_who_wrote_what_was_found_and_what_was_to_be_found() {
    let text = format!("{FLUSHED}\nc0 write #2 0+512 =2\nc0 done #2\nc3 flush #1\nc3 done #1");
    let history = history(&format!("{text}{}", then_found("1")));
    let Err(CheckError::Violation(violation)) = check(&history, MULTI) else {
        panic!("it is accused");
    };
    assert_eq!(violation.events(), [0, 1, 4, 5, 6, 7, 8, 9]);
    let roles: Vec<Role> = violation.steps().iter().map(|it| it.role).collect();
    assert_eq!(roles, [Role::Old, Role::New, Role::Cover, Role::Wrong]);
    let text = violation.to_string();
    let picture = "
  event  c0          c3       c9
      0  ┌ write =1
      1  └ done
      4  ┌ write =2
      5  └ done
      6              ┌ flush
      7              └ done
      8                       ┌ read
      9                       └ found =1
";
    assert!(text.ends_with(picture), "{text}");
}

#[test]
fn a_picture_shows_what_overlaps_and_what_was_left_by_a_crash() {
    let text = "c0 write #1 0+512 =1\nc0 write #2 0+512 =2\nc0 done #2\nc0 done #1
        c0 flush #3\nc0 done #3\nc1 read #1 0+512\nc1 data #1 =2";
    let history = history(&format!("{text}{}", then_left("1")));
    let Err(CheckError::Violation(violation)) = check(&history, MULTI) else {
        panic!("it is accused");
    };
    let text = violation.to_string();
    let picture = "
  event  c0                      c1          c9
      0  ┌ write =1
      1  │           ┌ write =2
      2  │           └ done
      3  └ done
      4  ┌ flush
      5  └ done
      6                          ┌ read
      7                          └ found =2
      8  *** crash
      9  *** reopened
     10                                      ┌ read
     11                                      └ found =1
";
    assert!(text.ends_with(picture), "{text}");
}

#[test]
fn the_checker_repeats_itself_after_a_violation() {
    let history = history(&then_found("1"));
    let mut checker = Checker::new(MULTI, 512);
    let results = history.events().iter().map(|it| checker.record(it));
    let first = results.last().unwrap();
    assert!(matches!(first, Err(CheckError::Violation(_))));
    assert_eq!(checker.record(&Event::Crash), first);
}

#[test]
fn what_is_no_history_is_refused() {
    let malformed = |text: &str, event: u64, why: Malformed| {
        let expected = CheckError::Malformed { event, why };
        assert_eq!(check(&history(text), MULTI), Err(expected), "{text}");
    };
    let (conn, cookie) = (0, 1);
    let in_use = Malformed::CookieInUse { conn, cookie };
    malformed("c0 flush #1\nc0 flush #1", 1, in_use);
    let unknown = Malformed::NoSuchCommand { conn, cookie };
    malformed("c0 done #1", 0, unknown);
    malformed("c0 flush #1\nc0 gone\nc0 done #1", 2, unknown);
    malformed("c0 flush #1\ncrash\nreopen\nc0 done #1", 3, unknown);
    malformed("crash\nc0 flush #1", 1, Malformed::ServerIsDown);
    malformed("crash\ncrash", 1, Malformed::ServerIsDown);
    malformed("reopen", 0, Malformed::NoCrash);
    malformed("c0 read #1 1+512", 0, Malformed::Misaligned);
    malformed("c0 read #1 0+511", 0, Malformed::Misaligned);
    malformed("c0 read #1 0+0", 0, Malformed::NoExtent);
    let far = format!("c0 zero #1 {}+1024", u64::MAX - 511);
    malformed(&far, 0, Malformed::NoExtent);
    let long = format!("c0 zero #1 0+{}", 512_u64 << 21);
    malformed(&long, 0, Malformed::TooLong);
    malformed("c0 write #1 0+512 =mixed", 0, Malformed::WritesMixture);
    malformed("c0 read #1 0+512\nc0 done #1", 1, Malformed::WrongOutcome);
    malformed("c0 flush #1\nc0 data #1 =0", 1, Malformed::WrongOutcome);
    malformed("c0 read #1 0+1024\nc0 data #1 =0", 1, Malformed::WrongCount);
}

#[test]
fn what_is_no_event_is_passed_over() {
    let mut checker = Checker::new(MULTI, 512);
    let mut results = Vec::new();
    for line in [
        "c0 write #1 0+512 =1",
        "c0 done #2",
        "c0 read #1 0+512",
        "c0 done #1",
    ] {
        results.push(checker.record(&line.parse::<Event>().unwrap()).is_ok());
    }
    assert_eq!(results, [true, false, false, true]);
}

#[test]
fn histories_survive_being_written_down() {
    let text = "granule 512
c0 write #1 0+512 =1 fua
c0 failed #1
c1 zero #1 0+512
c1 trim #2 512+512 fua
c1 done #2
c1 flush #3
c2 read #1 0+1024
c2 data #1 =0 =mixed
c2 read #1 0+1024
c2 data #1 =7...
c1 gone
crash
reopen
";
    let history: History = text.parse().unwrap();
    assert_eq!(history.to_string(), text);
    for (line, broken) in [
        (1, "granule 0"),
        (1, "c0 flush #1"),
        (2, "granule 512\nc0"),
        (2, "granule 512\nx0 flush #1"),
        (2, "granule 512\nc0 flush #1 now"),
        (2, "granule 512\nc0 write #1 0+512"),
        (2, "granule 512\nc0 data #1"),
        (3, "granule 512\n// nothing\ncrash boom"),
    ] {
        assert_eq!(
            broken.parse::<History>().unwrap_err().line,
            line,
            "{broken}"
        );
    }
}
