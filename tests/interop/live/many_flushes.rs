//! A thousand flushes at once: all of them are sent before the first backend flush may end.

use super::filter::{Filter, Setup};
use super::serving::{Line, Serving};
use crate::raw::Raw;
use crate::settings::whole_machine;

const CONNECTIONS: usize = 8;
const FLUSHES: usize = 1000;

/// What each connection writes, and where.
const BLOCK: usize = 4096;
const SIZE: usize = 2 * CONNECTIONS * BLOCK;

/// How long `serve` takes for a backend flush, in milliseconds: longer than sending everything,
/// and if the machine has no time for that, much longer.
const HELD: [&str; 2] = ["800", "8000"];

/// The data of a connection in a half of the image.
fn block(half: u8, connection: usize) -> Vec<u8> {
    vec![half * 16 + u8::try_from(connection).unwrap() + 1; BLOCK]
}

/// Each connection writes to its block of one half.
fn write_all(clients: &mut [Raw], half: u8) {
    for (number, client) in clients.iter_mut().enumerate() {
        let place = usize::from(half) * CONNECTIONS + number;
        let data = block(half, number);
        client.write((place * BLOCK) as u64, &data).unwrap();
    }
}

/// Sends so many flushes, the connections taking turns, without waiting for any.
fn send_flushes(clients: &mut [Raw], count: usize) -> Vec<(usize, u64)> {
    let turns = (0..count).map(|turn| turn % CONNECTIONS);
    turns
        .map(|number| (number, clients[number].send_flush()))
        .collect()
}

fn wait_for_all(clients: &mut [Raw], sent: &[(usize, u64)]) {
    for (number, cookie) in sent {
        clients[*number].wait(*cookie).unwrap();
    }
}

fn assert_stored(stored: &[u8], half: u8) {
    let half_stored = stored.chunks(BLOCK).skip(usize::from(half) * CONNECTIONS);
    for (number, stored) in half_stored.take(CONNECTIONS).enumerate() {
        assert!(stored == block(half, number), "lost: half {half}, {number}");
    }
}

/// How many backend flushes they take, if all of them were there before the first had ended. While
/// that runs, every connection may write once more.
fn by_serve(level: &str, write_more: bool, held: &str) -> Option<usize> {
    let arguments = ["--cache", "--multi-conn", "emulate", "--track-dirty", level];
    let arguments = [&arguments[..], &["--delay-flush", held]].concat();
    let server = Serving::start(&vec![0; SIZE], &arguments);
    let mut clients: Vec<_> = (0..CONNECTIONS).map(|_| server.connect("")).collect();
    write_all(&mut clients, 0);
    let mut sent = send_flushes(&mut clients, 1);
    for id in 1..=CONNECTIONS {
        server.wait_for(&format!("backend flush on {id} begins"));
    }
    if write_more {
        write_all(&mut clients, 1);
    }
    sent.extend(send_flushes(&mut clients, FLUSHES - 1));
    wait_for_all(&mut clients, &sent);
    let stored = server.stored();
    assert_stored(&stored, 0);
    if write_more {
        assert_stored(&stored, 1);
    }
    // Marks the end of what is counted.
    clients[0].read(0, 1).unwrap();
    let (log, _dir) = server.finish();
    let is = |line: &Line<'_>, kind| matches!(line, Line::Request(_, what) if what.contains(kind));
    let lines = log.lines().filter_map(Line::parse);
    let lines: Vec<_> = lines.take_while(|line| !is(line, "kind: READ")).collect();
    let flushes = lines.iter().filter(|line| is(line, "kind: FLUSH"));
    assert_eq!(flushes.count(), FLUSHES);
    let held = lines.iter();
    let held = held.take_while(|line| !matches!(line, Line::FlushEnded(_)));
    let at_once = held.filter(|line| is(line, "kind: FLUSH")).count() == FLUSHES;
    let begins = |line: &&Line<'_>| matches!(line, Line::FlushBegins(_));
    at_once.then(|| lines.iter().filter(begins).count())
}

/// The same, with nothing written meanwhile.
fn by_nbdkit(level: &str) -> usize {
    let filter: Filter = Setup::new("emulate", level, &vec![0; SIZE]).start();
    let mut clients: Vec<_> = (0..CONNECTIONS).map(|_| filter.connect("")).collect();
    write_all(&mut clients, 0);
    filter.shut("flush");
    let sent = send_flushes(&mut clients, FLUSHES);
    filter.wait_for_call("flush 1");
    filter.open("flush");
    wait_for_all(&mut clients, &sent);
    assert_stored(&filter.stored(""), 0);
    let is_flush = |call: &&String| call.starts_with("flush ");
    filter.log().iter().filter(is_flush).count()
}

/// The calls of `serve` must take so many backend flushes at most, without and with more to write
/// out when the first round has begun.
fn a_thousand_flushes_take_at_most(most: [usize; 2], level: &str) {
    let _busy = whole_machine();
    let theirs = by_nbdkit(level);
    for (write_more, most) in [false, true].into_iter().zip(most) {
        let mut tries = HELD.iter();
        let ours = tries.find_map(|held| by_serve(level, write_more, held));
        let ours = ours.expect("a machine that sends a thousand requests in some seconds");
        let and = if write_more { ", with writes" } else { "" };
        eprintln!("{FLUSHES} flushes, level {level}: serve {ours} backend flushes{and}");
        assert!(ours <= most, "{ours} and not {most} at level {level}{and}");
    }
    eprintln!("{FLUSHES} flushes, level {level}: nbdkit {theirs} backend flushes");
}

#[test]
fn a_thousand_flushes_at_once_take_one_round_or_two() {
    a_thousand_flushes_take_at_most([CONNECTIONS, 2 * CONNECTIONS], "connection");
}

#[test]
fn a_thousand_flushes_at_once_take_one_round_or_two_at_level_fast() {
    a_thousand_flushes_take_at_most([CONNECTIONS, 2 * CONNECTIONS], "fast");
}

/// Here a round visits every handle, also one that was invalidated after the flushes had come: with
/// what is written meanwhile, there are three visits in two rounds.
#[test]
fn a_thousand_flushes_at_once_take_one_round_or_two_at_level_off() {
    a_thousand_flushes_take_at_most([CONNECTIONS, 3 * CONNECTIONS], "off");
}
