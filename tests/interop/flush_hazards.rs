//! Schedules in which a server with one cache per connection loses data or shows old data, unless
//! it coordinates: played on a running server, where delays hold commands in the backend.
//!
//! Each is played at every level of tracking: a level may spare flushes, never data.
//!
//! Whatever the order in which the server happens to see the requests, what is asserted must
//! hold; the pauses only make the dangerous order the likely one. They are no synchronisation.

use std::fs;
use std::thread;
use std::time::Duration;

use crate::raw::{CAN_MULTI_CONN, FLUSH, FUA, READ, Raw, SEND_FLUSH, SEND_FUA};
use crate::server::{Serve, Server, Storage};

const OLD: &[u8] = &[0; 8];
const X: &[u8] = b"xxxxxxxx";
const Y: &[u8] = b"yyyyyyyy";

fn serve(level: &'static str) -> Serve {
    Serve::over(Storage::Cached)
        .size(1 << 20)
        .track_dirty(level)
}

macro_rules! at_every_level {
    ($($schedule:ident),+ $(,)?) => {
        mod connection {
            $(#[test] fn $schedule() { super::$schedule(super::serve("connection")); })+
        }
        mod fast {
            $(#[test] fn $schedule() { super::$schedule(super::serve("fast")); })+
        }
        mod off {
            $(#[test] fn $schedule() { super::$schedule(super::serve("off")); })+
        }
    };
}

at_every_level! {
    what_is_asserted_here_was_promised,
    t1_a_write_that_ends_after_a_flush_of_another_is_covered_by_the_next,
    t2_a_write_that_ends_after_a_flush_of_its_own_connection_is_covered_by_the_next,
    t3_a_write_inside_a_flush_is_covered_by_the_next,
    r1_a_read_during_a_round_does_not_keep_old_data,
    r2_a_read_held_across_a_flush_does_not_keep_old_data,
    r3_a_write_held_across_a_flush_does_not_keep_its_neighbours_old,
    r5_fua_is_seen_by_another_connection_that_reads_meanwhile,
    c1_a_connection_that_left_politely_is_covered,
    c1_a_connection_that_died_is_covered,
    c1_a_connection_that_leaves_while_another_flushes_is_covered,
    c2_a_flush_waits_for_a_connection_that_is_leaving,
    c3_a_connection_that_opens_during_a_round_serves_new_data_after_it,
    o1_the_later_of_two_writes_stays,
    o2_fua_over_an_older_write_stays,
    o3_neighbours_in_one_block_both_stay,
}

/// How long commands are held, in milliseconds.
const HELD: u64 = 400;

/// Long enough for a request to reach the backend, or for a connection to be gone.
fn let_it_begin() {
    thread::sleep(Duration::from_millis(HELD / 4));
}

#[track_caller]
fn assert_durable(mut server: Server, offset: usize, data: &[u8]) {
    server.kill();
    assert_eq!(
        &fs::read(server.image()).unwrap()[offset..offset + data.len()],
        data,
        "durable"
    );
}

#[track_caller]
fn assert_reads(client: &mut Raw, data: &[u8]) {
    assert_eq!(client.read(0, 8).unwrap(), data, "visible");
}

/// Reads in every part of a round, whatever parts there are.
fn read_all_through_a_round(client: &mut Raw) {
    for _ in 0..20 {
        thread::sleep(Duration::from_millis(HELD / 10));
        client.read(0, 8).unwrap();
    }
}

fn what_is_asserted_here_was_promised(serve: Serve) {
    let promised = SEND_FLUSH | SEND_FUA | CAN_MULTI_CONN;
    assert_eq!(serve.start().connect().flags & promised, promised);
}

fn t1_a_write_that_ends_after_a_flush_of_another_is_covered_by_the_next(serve: Serve) {
    let server = serve.delay("write", HELD).start();
    let (mut c1, mut c2) = (server.connect(), server.connect());
    let write = c1.send_write(0, X, 0);
    let_it_begin();
    c2.flush().unwrap();
    c1.wait(write).unwrap();
    c2.flush().unwrap();
    assert_reads(&mut c2, X);
    assert_durable(server, 0, X);
}

fn t2_a_write_that_ends_after_a_flush_of_its_own_connection_is_covered_by_the_next(serve: Serve) {
    let server = serve.delay("write", HELD).start();
    let mut c1 = server.connect();
    let write = c1.send_write(0, X, 0);
    let early = c1.send(FLUSH, 0, 0, 0);
    c1.wait(early).unwrap();
    c1.wait(write).unwrap();
    c1.flush().unwrap();
    assert_durable(server, 0, X);
}

fn t3_a_write_inside_a_flush_is_covered_by_the_next(serve: Serve) {
    let server = serve.delay("flush", HELD).start();
    let (mut c1, mut c2) = (server.connect(), server.connect());
    c1.write(4096, Y).unwrap();
    let flush = c1.send_flush();
    let_it_begin();
    c1.write(0, X).unwrap();
    c1.wait(flush).unwrap();
    c2.flush().unwrap();
    assert_reads(&mut c2, X);
    assert_durable(server, 0, X);
}

fn r1_a_read_during_a_round_does_not_keep_old_data(serve: Serve) {
    let server = serve.delay("flush", HELD).start();
    let (mut c1, mut c2, mut c3) = (server.connect(), server.connect(), server.connect());
    assert_reads(&mut c1, OLD);
    c2.write(0, X).unwrap();
    let flush = c3.send_flush();
    read_all_through_a_round(&mut c1);
    c3.wait(flush).unwrap();
    assert_reads(&mut c1, X);
    assert_durable(server, 0, X);
}

fn r2_a_read_held_across_a_flush_does_not_keep_old_data(serve: Serve) {
    let server = serve.delay("read", HELD).start();
    let (mut c1, mut c2, mut c3) = (server.connect(), server.connect(), server.connect());
    let read = c1.send(READ, 0, 0, 8);
    let_it_begin();
    c2.write(0, X).unwrap();
    c3.flush().unwrap();
    c1.wait(read).unwrap();
    assert_reads(&mut c1, X);
}

fn r3_a_write_held_across_a_flush_does_not_keep_its_neighbours_old(serve: Serve) {
    let server = serve.delay("write", HELD).start();
    let (mut c1, mut c2, mut c3) = (server.connect(), server.connect(), server.connect());
    let write = c2.send_write(0, X, 0);
    // All writes are held for as long: what is to end last must begin last.
    thread::sleep(Duration::from_millis(HELD / 2));
    let neighbour = c1.send_write(16, Y, 0);
    c2.wait(write).unwrap();
    c3.flush().unwrap();
    c1.wait(neighbour).unwrap();
    assert_reads(&mut c1, X);
}

fn r5_fua_is_seen_by_another_connection_that_reads_meanwhile(serve: Serve) {
    let server = serve.delay("flush", HELD).start();
    let (mut c1, mut c2) = (server.connect(), server.connect());
    assert_reads(&mut c1, OLD);
    let fua = c2.send_write(0, X, FUA);
    read_all_through_a_round(&mut c1);
    c2.wait(fua).unwrap();
    assert_reads(&mut c1, X);
    assert_durable(server, 0, X);
}

fn c1_a_connection_that_left_politely_is_covered(serve: Serve) {
    let server = serve.start();
    let (mut c1, mut c2) = (server.connect(), server.connect());
    c1.write(0, X).unwrap();
    c1.disconnect();
    let_it_begin();
    c2.flush().unwrap();
    assert_reads(&mut c2, X);
    assert_durable(server, 0, X);
}

fn c1_a_connection_that_died_is_covered(serve: Serve) {
    let server = serve.start();
    let (mut c1, mut c2) = (server.connect(), server.connect());
    c1.write(0, X).unwrap();
    drop(c1);
    let_it_begin();
    c2.flush().unwrap();
    assert_reads(&mut c2, X);
    assert_durable(server, 0, X);
}

fn c1_a_connection_that_leaves_while_another_flushes_is_covered(serve: Serve) {
    let server = serve.start();
    let (mut c1, mut c2) = (server.connect(), server.connect());
    c1.write(0, X).unwrap();
    drop(c1);
    c2.flush().unwrap();
    assert_reads(&mut c2, X);
    assert_durable(server, 0, X);
}

fn c2_a_flush_waits_for_a_connection_that_is_leaving(serve: Serve) {
    let server = serve.delay("flush", HELD).start();
    let (mut c1, mut c2) = (server.connect(), server.connect());
    c1.write(0, X).unwrap();
    c1.disconnect();
    let_it_begin();
    c2.flush().unwrap();
    assert_durable(server, 0, X);
}

fn c3_a_connection_that_opens_during_a_round_serves_new_data_after_it(serve: Serve) {
    let server = serve.delay("flush", HELD).start();
    let (mut c3, mut c1) = (server.connect(), server.connect());
    // Where handles are visited in turn, this one keeps the writer's waiting.
    c3.write(4096, Y).unwrap();
    c1.write(0, X).unwrap();
    let flush = c3.send_flush();
    let_it_begin();
    let mut c2 = server.connect();
    c2.read(0, 8).unwrap();
    c3.wait(flush).unwrap();
    assert_reads(&mut c2, X);
}

fn o1_the_later_of_two_writes_stays(serve: Serve) {
    let server = serve.start();
    let (mut c1, mut c2, mut c3) = (server.connect(), server.connect(), server.connect());
    c2.write(0, X).unwrap();
    c1.write(0, Y).unwrap();
    c3.flush().unwrap();
    assert_reads(&mut c3, Y);
    assert_durable(server, 0, Y);
}

fn o2_fua_over_an_older_write_stays(serve: Serve) {
    let server = serve.start();
    let (mut c1, mut c2, mut c3) = (server.connect(), server.connect(), server.connect());
    c2.write(0, X).unwrap();
    c1.write_fua(0, Y).unwrap();
    c3.flush().unwrap();
    assert_reads(&mut c2, Y);
    assert_durable(server, 0, Y);
}

fn o3_neighbours_in_one_block_both_stay(serve: Serve) {
    let server = serve.start();
    let (mut c1, mut c2) = (server.connect(), server.connect());
    c1.write(0, &X[..4]).unwrap();
    c2.write(4, &Y[..4]).unwrap();
    c1.flush().unwrap();
    assert_reads(&mut c1, b"xxxxyyyy");
    assert_reads(&mut c2, b"xxxxyyyy");
    assert_durable(server, 0, b"xxxxyyyy");
}
