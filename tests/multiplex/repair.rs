//! Ids, misuse, ranges, and how a caller gets rid of what is suspect.

use nbd_proto::multiplex::{FlushLedger, Misuse, WriteId, WriteState};

use crate::ledger::{ALL, OWN, SCOPES, failing_flush, flush, tally, with, write};

#[test]
fn an_event_that_cannot_be_is_an_error_and_changes_nothing() {
    for scope in SCOPES {
        let (mut ledger, c) = with(scope, 2);
        let answered = write(&mut ledger, c[0]);
        let failed = ledger.write_sent(c[0], 0, 10).unwrap();
        ledger.write_failed(failed).unwrap();
        let lost = ledger.write_sent(c[1], 0, 10).unwrap();
        let lost_flush = ledger.flush_sent(c[1]).unwrap();
        ledger.connection_ended(c[1]).unwrap();
        let done = ledger.flush_sent(c[0]).unwrap();
        ledger.flush_replied(done).unwrap();
        let acknowledged = write(&mut ledger, c[0]);
        let before = format!("{ledger:?}");
        for write in [answered, failed, lost, acknowledged] {
            assert_eq!(ledger.write_replied(write), Err(Misuse::NotInFlight));
            assert_eq!(ledger.write_failed(write), Err(Misuse::NotInFlight));
        }
        for flush in [done, lost_flush] {
            assert_eq!(ledger.flush_replied(flush), Err(Misuse::NotInFlight));
            assert_eq!(ledger.flush_failed(flush), Err(Misuse::NotInFlight));
        }
        assert_eq!(ledger.write_sent(c[1], 0, 10), Err(Misuse::NotConnected));
        assert_eq!(ledger.fua_sent(c[1], 0, 10), Err(Misuse::NotConnected));
        assert_eq!(ledger.flush_sent(c[1]), Err(Misuse::NotConnected));
        assert_eq!(ledger.connection_ended(c[1]), Err(Misuse::NotConnected));
        assert_eq!(ledger.write_sent(c[0], u64::MAX, 1), Err(Misuse::Range));
        for write in [answered, acknowledged] {
            assert_eq!(ledger.forget(write), Err(Misuse::StillCounts));
            assert_eq!(ledger.rewritten(write, answered), Err(Misuse::StillCounts));
        }
        assert_eq!(
            ledger.rewritten(failed, acknowledged),
            Err(Misuse::NotRewritten)
        );
        assert_eq!(format!("{ledger:?}"), before);
    }
}

#[test]
fn what_another_ledger_gave_out_is_not_taken_for_a_thing_of_its_own() {
    let (mut one, _) = with(ALL, 0);
    let (mut other, c) = with(ALL, 3);
    let write = write(&mut other, c[2]);
    let sent = other.flush_sent(c[2]).unwrap();
    assert_eq!(one.state(write), WriteState::Forgotten);
    assert_eq!(one.write_replied(write), Err(Misuse::NotInFlight));
    assert_eq!(one.flush_replied(sent), Err(Misuse::NotInFlight));
    assert_eq!(one.flush_sent(c[2]), Err(Misuse::NotConnected));
}

#[test]
fn an_old_id_does_not_find_the_next_write_in_its_place() {
    for scope in SCOPES {
        let (mut ledger, c) = with(scope, 1);
        let old = write(&mut ledger, c[0]);
        flush(&mut ledger, c[0]);
        let new = ledger.write_sent(c[0], 0, 10).unwrap();
        assert_eq!(ledger.state(old), WriteState::Durable);
        assert_eq!(ledger.state(new), WriteState::InFlight);
        assert_eq!(ledger.write_replied(old), Err(Misuse::NotInFlight));
        ledger.write_replied(new).unwrap();
        assert_eq!(failing_flush(&mut ledger, c[0]), tally(1));
        assert_eq!(ledger.state(old), WriteState::Durable);
        assert_ne!(ledger.state(new), WriteState::Durable);
    }
}

#[test]
fn an_old_connection_does_not_find_the_next_one_in_its_place() {
    for scope in SCOPES {
        let (mut ledger, c) = with(scope, 1);
        ledger.connection_ended(c[0]).unwrap();
        let next = ledger.connected().unwrap();
        assert_ne!(c[0], next);
        assert_eq!(ledger.flush_sent(c[0]), Err(Misuse::NotConnected));
        let sent = ledger.write_sent(next, 0, 10).unwrap();
        assert_eq!(ledger.in_flight(c[0]), tally(0));
        assert_eq!(ledger.in_flight(next), tally(1));
        ledger.write_replied(sent).unwrap();
        assert!(!ledger.would_cover(c[0], sent));
    }
}

#[test]
fn a_connection_s_place_is_not_reused_while_its_writes_are_remembered() {
    for scope in SCOPES {
        let (mut ledger, c) = with(scope, 1);
        let lost = ledger.write_sent(c[0], 0, 10).unwrap();
        ledger.connection_ended(c[0]).unwrap();
        let next = ledger.connected().unwrap();
        assert_eq!(ledger.state(lost), WriteState::Unknown);
        assert_eq!(ledger.write_replied(lost), Err(Misuse::NotInFlight));
        let left = ledger.undurable().next().unwrap();
        assert_eq!((left.write, left.conn), (lost, c[0]));
        assert_eq!(ledger.in_flight(next), tally(0));
    }
}

/// A write that is in the way of no flush any more, of each kind.
fn given_up(ledger: &mut FlushLedger) -> Vec<WriteId> {
    let conn = ledger.connected().unwrap();
    let failed = ledger.write_sent(conn, 0, 10).unwrap();
    ledger.write_failed(failed).unwrap();
    let suspect = write(ledger, conn);
    failing_flush(ledger, conn);
    let left = write(ledger, conn);
    let unknown = ledger.write_sent(conn, 0, 10).unwrap();
    ledger.connection_ended(conn).unwrap();
    vec![failed, suspect, left, unknown]
}

#[test]
fn what_was_written_again_durably_is_forgotten() {
    for scope in SCOPES {
        let (mut ledger, c) = with(scope, 1);
        for old in given_up(&mut ledger) {
            let again = write(&mut ledger, c[0]);
            assert_eq!(ledger.rewritten(old, again), Err(Misuse::NotRewritten));
            flush(&mut ledger, c[0]);
            assert_eq!(ledger.rewritten(old, again), Ok(()));
            assert_eq!(ledger.state(old), WriteState::Forgotten);
            assert_eq!(ledger.rewritten(old, again), Err(Misuse::StillCounts));
        }
        assert!(ledger.summary().all_durable());
        assert_eq!(ledger.undurable().count(), 0);
    }
}

#[test]
fn what_was_sent_before_the_end_of_a_write_was_known_does_not_replace_it() {
    for scope in SCOPES {
        let (mut ledger, c) = with(scope, 2);
        let failed = ledger.write_sent(c[0], 0, 10).unwrap();
        let unknown = ledger.write_sent(c[1], 0, 10).unwrap();
        let left = write(&mut ledger, c[1]);
        let early = ledger.fua_sent(c[0], 0, 10).unwrap();
        ledger.write_failed(failed).unwrap();
        ledger.connection_ended(c[1]).unwrap();
        ledger.write_replied(early).unwrap();
        for old in [failed, unknown, left] {
            assert_eq!(ledger.rewritten(old, early), Err(Misuse::NotRewritten));
        }
        let late = ledger.fua_sent(c[0], 0, 10).unwrap();
        ledger.write_replied(late).unwrap();
        for old in [failed, unknown, left] {
            assert_eq!(ledger.rewritten(old, late), Ok(()));
        }
    }
}

#[test]
fn what_is_forgotten_is_never_called_durable_though_its_place_is_reused() {
    for scope in SCOPES {
        let (mut ledger, c) = with(scope, 1);
        let olds = given_up(&mut ledger);
        for &old in &olds {
            assert_eq!(ledger.forget(old), Ok(()));
            assert_eq!(ledger.forget(old), Err(Misuse::StillCounts));
        }
        for _ in 0..3 {
            let new: Vec<_> = olds.iter().map(|_| write(&mut ledger, c[0])).collect();
            flush(&mut ledger, c[0]);
            for &old in &olds {
                assert_eq!(ledger.state(old), WriteState::Forgotten);
            }
            assert!(new.iter().all(|&it| ledger.is_durable(it)));
        }
        assert!(ledger.summary().all_durable());
    }
}

#[test]
fn a_forgotten_write_in_the_queue_does_not_break_it() {
    let (mut ledger, c) = with(ALL, 2);
    let first = write(&mut ledger, c[1]);
    let left = write(&mut ledger, c[0]);
    let last = write(&mut ledger, c[1]);
    ledger.connection_ended(c[0]).unwrap();
    ledger.forget(left).unwrap();
    assert_eq!(flush(&mut ledger, c[1]), tally(2));
    assert!(ledger.is_durable(first) && ledger.is_durable(last));
}

#[test]
fn what_is_not_durable_is_told_by_write_and_by_range() {
    let (mut ledger, c) = with(OWN, 2);
    let sent = [
        (c[0], 100, 50),
        (c[1], 0, 10),
        (c[0], 150, 5),
        (c[1], 120, 100),
        (c[0], 500, 0),
    ];
    let writes = sent.map(|(conn, offset, length)| ledger.write_sent(conn, offset, length));
    let writes = writes.map(Result::unwrap);
    assert_eq!(ledger.undurable_ranges(), [0..10, 100..220]);
    let mut all: Vec<_> = ledger.undurable().collect();
    all.sort_by_key(|it| it.write);
    for (it, (write, sent)) in all.iter().zip(writes.iter().zip(sent)) {
        assert_eq!(it.write, *write);
        assert_eq!((it.conn, it.offset, it.length), sent);
        assert_eq!(it.state, WriteState::InFlight);
    }
    assert_eq!(all.len(), sent.len());
    ledger.write_replied(writes[3]).unwrap();
    flush(&mut ledger, c[1]);
    assert_eq!(ledger.undurable_ranges(), [0..10, 100..155]);
}

#[test]
fn the_summary_counts_bytes_by_what_is_known_of_them() {
    let (mut ledger, c) = with(OWN, 1);
    let durable = ledger.write_sent(c[0], 0, 1000).unwrap();
    ledger.write_replied(durable).unwrap();
    flush(&mut ledger, c[0]);
    ledger.write_sent(c[0], 0, 1).unwrap();
    let acknowledged = ledger.write_sent(c[0], 0, 20).unwrap();
    ledger.write_replied(acknowledged).unwrap();
    let failed = ledger.write_sent(c[0], 0, 300).unwrap();
    ledger.write_failed(failed).unwrap();
    let summary = ledger.summary();
    assert_eq!(summary.durable.bytes, 1000);
    assert_eq!(summary.in_flight.bytes, 1);
    assert_eq!(summary.acknowledged.bytes, 20);
    assert_eq!(summary.failed.bytes, 300);
    ledger.connection_ended(c[0]).unwrap();
    let summary = ledger.summary();
    assert_eq!(
        (summary.in_flight.bytes, summary.acknowledged.bytes),
        (0, 0)
    );
    assert_eq!((summary.unknown.bytes, summary.suspect.bytes), (1, 20));
}
