//! Which writes are durable: the rules one by one.

use nbd_proto::multiplex::{
    AfterFailure, AfterLoss, Conn, Doubt, FlushLedger, Misuse, Scope, Tally, WriteId, WriteState,
};

pub(crate) const ALL: Scope = Scope::AllConnections;
pub(crate) const OWN: Scope = Scope::OwnConnection;
pub(crate) const SCOPES: [Scope; 2] = [ALL, OWN];

pub(crate) fn with(scope: Scope, connections: usize) -> (FlushLedger, Vec<Conn>) {
    let mut ledger = FlushLedger::new(scope);
    let conns = (0..connections).map(|_| ledger.connected().unwrap());
    let conns = conns.collect();
    (ledger, conns)
}

/// A write of 10 bytes, sent and answered.
pub(crate) fn write(ledger: &mut FlushLedger, conn: Conn) -> WriteId {
    let write = ledger.write_sent(conn, 0, 10).unwrap();
    ledger.write_replied(write).unwrap();
    write
}

pub(crate) fn flush(ledger: &mut FlushLedger, conn: Conn) -> Tally {
    let flush = ledger.flush_sent(conn).unwrap();
    ledger.flush_replied(flush).unwrap()
}

pub(crate) fn failing_flush(ledger: &mut FlushLedger, conn: Conn) -> Tally {
    let flush = ledger.flush_sent(conn).unwrap();
    ledger.flush_failed(flush).unwrap()
}

pub(crate) fn tally(writes: u64) -> Tally {
    Tally {
        writes,
        bytes: 10 * writes,
    }
}

// What a flush covers

#[test]
fn a_write_becomes_durable_by_a_flush_that_was_sent_after_its_reply() {
    for scope in SCOPES {
        let (mut ledger, c) = with(scope, 1);
        let write = ledger.write_sent(c[0], 0, 10).unwrap();
        assert_eq!(ledger.state(write), WriteState::InFlight);
        assert_eq!(ledger.write_replied(write), Ok(WriteState::Acknowledged));
        assert_eq!(ledger.state(write), WriteState::Acknowledged);
        let flush = ledger.flush_sent(c[0]).unwrap();
        assert!(ledger.covers(flush, write));
        assert!(!ledger.is_durable(write));
        assert_eq!(ledger.flush_replied(flush), Ok(tally(1)));
        assert_eq!(ledger.state(write), WriteState::Durable);
        assert!(ledger.summary().all_durable());
    }
}

#[test]
fn the_2016_scenario_a_flush_reply_that_arrives_late_does_not_cover_what_it_overtook() {
    // A client sends two writes, followed immediately by a flush, the second write and the flush
    // on different connections. The flush reply is held up, and arrives after both replies.
    for scope in SCOPES {
        let (mut ledger, c) = with(scope, 2);
        let small = ledger.write_sent(c[1], 0, 10).unwrap();
        let large = ledger.write_sent(c[0], 10, 10).unwrap();
        let flush = ledger.flush_sent(c[1]).unwrap();
        ledger.write_replied(small).unwrap();
        ledger.write_replied(large).unwrap();
        for write in [small, large] {
            assert!(!ledger.covers(flush, write));
        }
        assert_eq!(ledger.flush_replied(flush), Ok(tally(0)));
        for write in [small, large] {
            assert_eq!(ledger.state(write), WriteState::Acknowledged);
        }
        assert!(ledger.to_flush().next().is_some());
    }
}

#[test]
fn of_two_writes_the_flush_covers_the_one_that_was_answered_before_it_was_sent() {
    for scope in SCOPES {
        let (mut ledger, c) = with(scope, 1);
        let first = ledger.write_sent(c[0], 0, 10).unwrap();
        let second = ledger.write_sent(c[0], 10, 10).unwrap();
        // The second reply overtakes the first.
        ledger.write_replied(second).unwrap();
        let flush = ledger.flush_sent(c[0]).unwrap();
        ledger.write_replied(first).unwrap();
        assert_eq!(ledger.flush_replied(flush), Ok(tally(1)));
        assert_eq!(ledger.state(first), WriteState::Acknowledged);
        assert_eq!(ledger.state(second), WriteState::Durable);
    }
}

#[test]
fn the_simpler_failure_case_of_2016_one_channel_gets_the_writes_and_one_the_flushes() {
    let (mut alone, c) = with(OWN, 2);
    let on_its_own = write(&mut alone, c[0]);
    assert_eq!(flush(&mut alone, c[1]), tally(0));
    assert_eq!(alone.state(on_its_own), WriteState::Acknowledged);
    assert_eq!(flush(&mut alone, c[0]), tally(1));
    assert!(alone.is_durable(on_its_own));

    let (mut multi, c) = with(ALL, 2);
    let shared = write(&mut multi, c[0]);
    assert_eq!(flush(&mut multi, c[1]), tally(1));
    assert!(multi.is_durable(shared));
}

#[test]
fn flush_replies_that_overtake_each_other_cover_what_each_was_sent_after() {
    for scope in SCOPES {
        let (mut ledger, c) = with(scope, 1);
        let first = write(&mut ledger, c[0]);
        let early = ledger.flush_sent(c[0]).unwrap();
        let second = write(&mut ledger, c[0]);
        let late = ledger.flush_sent(c[0]).unwrap();
        let third = write(&mut ledger, c[0]);
        assert_eq!(ledger.flush_replied(late), Ok(tally(2)));
        assert!(ledger.is_durable(first) && ledger.is_durable(second));
        assert_eq!(ledger.flush_replied(early), Ok(tally(0)));
        assert!(!ledger.is_durable(third));
    }
}

#[test]
fn a_write_with_fua_is_durable_when_it_is_answered_and_no_other_write_is() {
    for scope in SCOPES {
        let (mut ledger, c) = with(scope, 1);
        let plain = write(&mut ledger, c[0]);
        let fua = ledger.fua_sent(c[0], 0, 10).unwrap();
        assert_eq!(ledger.state(fua), WriteState::InFlight);
        assert_eq!(ledger.write_replied(fua), Ok(WriteState::Durable));
        assert!(ledger.is_durable(fua) && !ledger.is_durable(plain));
        assert_eq!(ledger.summary().durable, tally(1));
        assert_eq!(ledger.to_flush().count(), 1);
    }
}

#[test]
fn a_failed_write_is_neither_durable_nor_owed_and_no_flush_makes_it_durable() {
    for scope in SCOPES {
        let (mut ledger, c) = with(scope, 1);
        for fua in [false, true] {
            let write = match fua {
                true => ledger.fua_sent(c[0], 0, 10).unwrap(),
                false => ledger.write_sent(c[0], 0, 10).unwrap(),
            };
            ledger.write_failed(write).unwrap();
            assert_eq!(ledger.to_flush().count(), 0);
            assert_eq!(ledger.may_leave(c[0]), Ok(()));
            assert_eq!(flush(&mut ledger, c[0]), tally(0));
            assert_eq!(ledger.state(write), WriteState::Failed);
        }
        assert_eq!(ledger.summary().failed, tally(2));
        assert!(!ledger.summary().all_durable());
    }
}

// A flush that fails

#[test]
fn after_a_failed_flush_no_later_success_makes_its_writes_durable() {
    for scope in SCOPES {
        let (mut ledger, c) = with(scope, 1);
        let lost = write(&mut ledger, c[0]);
        assert_eq!(failing_flush(&mut ledger, c[0]), tally(1));
        let doubt = WriteState::Suspect(Doubt::FlushFailed);
        assert_eq!(ledger.state(lost), doubt);
        // No flush is owed: it would be of no use.
        assert_eq!(ledger.to_flush().count(), 0);
        assert_eq!(flush(&mut ledger, c[0]), tally(0));
        assert_eq!(ledger.state(lost), doubt);
        let later = write(&mut ledger, c[0]);
        assert_eq!(flush(&mut ledger, c[0]), tally(1));
        assert!(ledger.is_durable(later));
        assert_eq!(ledger.state(lost), doubt);
        assert_eq!(ledger.summary().suspect, tally(1));
    }
}

#[test]
fn a_flush_that_was_in_flight_when_another_failed_clears_nothing() {
    for scope in SCOPES {
        let (mut ledger, c) = with(scope, 1);
        let lost = write(&mut ledger, c[0]);
        let bad = ledger.flush_sent(c[0]).unwrap();
        let good = ledger.flush_sent(c[0]).unwrap();
        assert_eq!(ledger.flush_failed(bad), Ok(tally(1)));
        assert_eq!(ledger.flush_replied(good), Ok(tally(0)));
        assert!(!ledger.is_durable(lost));
    }
}

#[test]
fn what_was_in_flight_or_answered_beside_a_flush_that_fails_is_suspect_too() {
    // A server that drops what it could not write drops what it had executed, not only what it had
    // answered before.
    for scope in SCOPES {
        let (mut ledger, c) = with(scope, 1);
        let beside = ledger.write_sent(c[0], 0, 10).unwrap();
        let slow = ledger.write_sent(c[0], 10, 10).unwrap();
        let forced = ledger.fua_sent(c[0], 20, 10).unwrap();
        let bad = ledger.flush_sent(c[0]).unwrap();
        ledger.write_replied(beside).unwrap();
        assert_eq!(ledger.flush_failed(bad), Ok(tally(1)));
        let doubt = WriteState::Suspect(Doubt::FlushFailed);
        assert_eq!(ledger.state(beside), doubt);
        assert_eq!(ledger.state(slow), WriteState::InFlight);
        assert_eq!(ledger.write_replied(slow), Ok(doubt));
        assert_eq!(ledger.write_replied(forced), Ok(doubt));
        assert_eq!(flush(&mut ledger, c[0]), tally(0));
        assert_eq!(ledger.summary().suspect, tally(3));
        let later = write(&mut ledger, c[0]);
        flush(&mut ledger, c[0]);
        assert!(ledger.is_durable(later));
    }
}

#[test]
fn a_failed_flush_casts_doubt_on_its_scope_and_no_further() {
    let (mut alone, c) = with(OWN, 2);
    let other = write(&mut alone, c[0]);
    let in_flight = alone.write_sent(c[0], 0, 10).unwrap();
    write(&mut alone, c[1]);
    assert_eq!(failing_flush(&mut alone, c[1]), tally(1));
    alone.write_replied(in_flight).unwrap();
    assert_eq!(flush(&mut alone, c[0]), tally(2));
    assert!(alone.is_durable(other));

    let (mut multi, c) = with(ALL, 2);
    let other = write(&mut multi, c[0]);
    assert_eq!(failing_flush(&mut multi, c[1]), tally(1));
    assert_eq!(multi.state(other), WriteState::Suspect(Doubt::FlushFailed));
}

#[test]
fn where_the_server_keeps_its_data_a_failed_flush_is_followed_by_another() {
    for scope in SCOPES {
        let ledger = FlushLedger::new(scope);
        let mut ledger = ledger.with_after_failure(AfterFailure::Retry);
        let c = ledger.connected().unwrap();
        let kept = write(&mut ledger, c);
        let in_flight = ledger.write_sent(c, 0, 10).unwrap();
        assert_eq!(failing_flush(&mut ledger, c), tally(0));
        assert_eq!(ledger.state(kept), WriteState::Acknowledged);
        assert_eq!(
            ledger.write_replied(in_flight),
            Ok(WriteState::Acknowledged)
        );
        assert_eq!(ledger.to_flush().collect::<Vec<_>>(), [c]);
        assert_eq!(flush(&mut ledger, c), tally(2));
    }
}

// A connection that ends

#[test]
fn without_multi_conn_what_a_connection_leaves_uncovered_is_suspect_for_good() {
    for after_loss in [AfterLoss::Suspect, AfterLoss::Covered] {
        let mut ledger = FlushLedger::new(OWN).with_after_loss(after_loss);
        let c = [(); 2].map(|()| ledger.connected().unwrap());
        let covered = write(&mut ledger, c[0]);
        flush(&mut ledger, c[0]);
        let left = write(&mut ledger, c[0]);
        let in_flight = ledger.write_sent(c[0], 0, 10).unwrap();
        let ended = ledger.connection_ended(c[0]).unwrap();
        assert_eq!((ended.suspect, ended.unknown), (tally(1), tally(1)));
        assert!(ledger.is_durable(covered));
        let doubt = WriteState::Suspect(Doubt::ConnectionEnded);
        assert_eq!(ledger.state(left), doubt);
        assert_eq!(ledger.state(in_flight), WriteState::Unknown);
        let again = ledger.connected().unwrap();
        for conn in [c[1], again] {
            assert_eq!(flush(&mut ledger, conn), tally(0));
        }
        assert_eq!(ledger.state(left), doubt);
        assert_eq!(ledger.to_flush().count(), 0);
    }
}

#[test]
fn with_multi_conn_what_a_connection_leaves_is_suspect_unless_the_caller_knows_the_server() {
    let (mut careful, c) = with(ALL, 2);
    let left = write(&mut careful, c[0]);
    assert_eq!(careful.connection_ended(c[0]).unwrap().suspect, tally(1));
    assert_eq!(careful.to_flush().count(), 0);
    assert_eq!(flush(&mut careful, c[1]), tally(0));
    let doubt = WriteState::Suspect(Doubt::ConnectionEnded);
    assert_eq!(careful.state(left), doubt);
    assert_eq!(careful.summary().suspect, tally(1));

    let mut trusting = FlushLedger::new(ALL).with_after_loss(AfterLoss::Covered);
    let c = [(); 2].map(|()| trusting.connected().unwrap());
    let left = write(&mut trusting, c[0]);
    assert_eq!(trusting.connection_ended(c[0]).unwrap().suspect, tally(0));
    assert_eq!(trusting.state(left), WriteState::Acknowledged);
    assert_eq!(trusting.to_flush().collect::<Vec<_>>(), [c[1]]);
    assert_eq!(flush(&mut trusting, c[1]), tally(1));
    assert!(trusting.is_durable(left));
}

#[test]
fn a_flush_that_is_answered_after_a_connection_ended_does_not_cover_what_it_left() {
    // The server may have dropped it before it came to the flush.
    let (mut ledger, c) = with(ALL, 2);
    let left = write(&mut ledger, c[0]);
    let kept = write(&mut ledger, c[1]);
    let flush = ledger.flush_sent(c[1]).unwrap();
    ledger.connection_ended(c[0]).unwrap();
    assert_eq!(ledger.flush_replied(flush), Ok(tally(1)));
    assert!(ledger.is_durable(kept));
    assert_eq!(
        ledger.state(left),
        WriteState::Suspect(Doubt::ConnectionEnded)
    );
}

#[test]
fn a_flush_in_flight_on_a_connection_that_ends_is_as_if_it_had_never_been_sent() {
    let (mut ledger, c) = with(ALL, 2);
    let kept = write(&mut ledger, c[1]);
    let flush = ledger.flush_sent(c[0]).unwrap();
    assert_eq!(ledger.to_flush().count(), 0);
    ledger.connection_ended(c[0]).unwrap();
    assert!(!ledger.covers(flush, kept));
    assert_eq!(ledger.flush_replied(flush), Err(Misuse::NotInFlight));
    assert_eq!(ledger.state(kept), WriteState::Acknowledged);
    assert_eq!(ledger.to_flush().collect::<Vec<_>>(), [c[1]]);
}

// What is owed

#[test]
fn with_multi_conn_one_connection_is_to_be_flushed_else_each_that_wrote() {
    let (mut multi, c) = with(ALL, 3);
    assert_eq!(multi.to_flush().count(), 0);
    write(&mut multi, c[0]);
    write(&mut multi, c[2]);
    assert_eq!(multi.to_flush().count(), 1);
    let (mut alone, c) = with(OWN, 3);
    assert_eq!(alone.to_flush().count(), 0);
    write(&mut alone, c[0]);
    write(&mut alone, c[2]);
    assert_eq!(alone.to_flush().collect::<Vec<_>>(), [c[0], c[2]]);
}

#[test]
fn no_flush_is_owed_while_one_is_in_flight_that_covers_all() {
    for scope in SCOPES {
        let (mut ledger, c) = with(scope, 2);
        write(&mut ledger, c[0]);
        let sent = ledger.flush_sent(c[0]).unwrap();
        assert_eq!(ledger.to_flush().count(), 0);
        write(&mut ledger, c[0]);
        assert_eq!(ledger.to_flush().collect::<Vec<_>>(), [c[0]]);
        let second = ledger.flush_sent(c[0]).unwrap();
        assert_eq!(ledger.to_flush().count(), 0);
        ledger.flush_replied(sent).unwrap();
        assert_eq!(ledger.to_flush().count(), 0);
        ledger.flush_replied(second).unwrap();
        assert_eq!(ledger.to_flush().count(), 0);
        assert!(ledger.summary().all_durable());
    }
}

#[test]
fn a_flush_on_another_connection_is_not_taken_for_one_s_own() {
    let (mut alone, c) = with(OWN, 2);
    write(&mut alone, c[0]);
    alone.flush_sent(c[1]).unwrap();
    assert_eq!(alone.to_flush().collect::<Vec<_>>(), [c[0]]);
    let (mut multi, c) = with(ALL, 2);
    write(&mut multi, c[0]);
    multi.flush_sent(c[1]).unwrap();
    assert_eq!(multi.to_flush().count(), 0);
}

#[test]
fn a_flush_may_be_sent_for_a_write_only_when_that_is_answered_and_in_its_scope() {
    for scope in SCOPES {
        let (mut ledger, c) = with(scope, 2);
        let write = ledger.write_sent(c[0], 0, 10).unwrap();
        assert!(!ledger.would_cover(c[0], write));
        assert_eq!(ledger.in_flight(c[0]), tally(1));
        ledger.write_replied(write).unwrap();
        assert!(ledger.would_cover(c[0], write));
        assert_eq!(ledger.would_cover(c[1], write), scope == ALL);
        assert_eq!(ledger.in_flight(c[0]), tally(0));
        ledger.connection_ended(c[1]).unwrap();
        assert!(!ledger.would_cover(c[1], write));
        flush(&mut ledger, c[0]);
        assert!(!ledger.would_cover(c[0], write));
    }
}

#[test]
fn a_connection_may_leave_when_nothing_is_in_flight_and_nothing_is_uncovered() {
    for scope in SCOPES {
        let (mut ledger, c) = with(scope, 2);
        assert_eq!(ledger.may_leave(c[0]), Ok(()));
        let write = ledger.write_sent(c[0], 0, 10).unwrap();
        let debt = ledger.may_leave(c[0]).unwrap_err();
        assert_eq!((debt.in_flight, debt.acknowledged), (tally(1), tally(0)));
        ledger.write_replied(write).unwrap();
        let debt = ledger.may_leave(c[0]).unwrap_err();
        assert_eq!((debt.in_flight, debt.acknowledged), (tally(0), tally(1)));
        let sent = ledger.flush_sent(c[0]).unwrap();
        assert_eq!(ledger.may_leave(c[0]).unwrap_err().flushes, 1);
        assert_eq!(ledger.may_leave(c[1]), Ok(()));
        ledger.flush_replied(sent).unwrap();
        assert_eq!(ledger.may_leave(c[0]), Ok(()));
        ledger.connection_ended(c[0]).unwrap();
        assert_eq!(ledger.may_leave(c[0]), Ok(()));
    }
}

#[test]
fn all_but_the_last_connection_may_leave_their_writes_to_the_others_of_a_trusted_server() {
    let mut ledger = FlushLedger::new(ALL).with_after_loss(AfterLoss::Covered);
    let c = [(); 2].map(|()| ledger.connected().unwrap());
    write(&mut ledger, c[0]);
    assert_eq!(ledger.may_leave(c[0]), Ok(()));
    ledger.connection_ended(c[0]).unwrap();
    assert_eq!(ledger.may_leave(c[1]).unwrap_err().acknowledged, tally(1));
    flush(&mut ledger, c[1]);
    assert_eq!(ledger.may_leave(c[1]), Ok(()));
}

#[test]
fn a_debt_is_told_in_words() {
    let (mut ledger, c) = with(OWN, 1);
    write(&mut ledger, c[0]);
    ledger.flush_sent(c[0]).unwrap();
    assert_eq!(
        ledger.may_leave(c[0]).unwrap_err().to_string(),
        "0 writes and 1 flushes are in flight, 1 writes have to be flushed"
    );
}
