//! The example `serve`: what it does at the same time, and what reads find.

#![cfg(target_os = "linux")]

mod program_support;
mod serve_support;

use std::time::{Duration, Instant};

use nbd_proto::wire::{CommandFlags, Cookie, Request};

use serve_support::{Client, Serve};

/// How long a read takes from the storage.
const DELAY: Duration = Duration::from_millis(150);

/// How long it takes until so many reads, sent together, are answered.
fn time_of_reads(client: &mut Client, count: u64) -> Duration {
    let start = Instant::now();
    for _ in 0..count {
        client.send(|cookie| Request::read(cookie, 0, 512), &[]);
    }
    for _ in 0..count {
        client.take(512).1.unwrap();
    }
    start.elapsed()
}

#[test]
fn requests_of_one_connection_are_serialized_on_demand() {
    let serve = Serve::start(&[
        "--delay-read",
        "150",
        "--thread-model",
        "serialize_requests",
    ]);
    let mut client = serve.connect();
    let time = time_of_reads(&mut client, 4);
    assert!(time >= 4 * DELAY, "{time:?}: two were executed at a time");
    client.disconnect();
    serve.stop().well();
}

#[test]
fn connections_are_served_one_after_the_other_on_demand() {
    let serve = Serve::start(&[
        "--delay-read",
        "150",
        "--thread-model",
        "serialize_connections",
    ]);
    let mut first = serve.connect();
    let address = serve.address;
    let second = std::thread::spawn(move || {
        let mut client = Client::try_connect(address).unwrap();
        let greeted = Instant::now();
        client.ask(Request::flush, &[], 0).unwrap();
        client.disconnect();
        greeted
    });
    // Whenever the second one comes meanwhile, it waits.
    let time = time_of_reads(&mut first, 4);
    assert!(time >= DELAY);
    let leaves = Instant::now();
    first.disconnect();
    let greeted = second.join().unwrap();
    assert!(greeted > leaves, "it was served beside the first one");
    serve.stop().well();
}

#[test]
fn a_server_stops_though_connections_wait_for_their_turn() {
    let serve = Serve::start(&["--thread-model", "serialize_connections"]);
    let mut first = serve.connect();
    first.ask(Request::flush, &[], 0).unwrap();
    let _waits = serve.connect_silently();
    let _too = serve.connect_silently();
    serve.stop().well();
}

fn read_fua(cookie: Cookie) -> Request {
    let mut request = Request::read(cookie, 0, 4);
    request.flags |= CommandFlags::FUA;
    request
}

/// What a second connection reads after the first one has written, with a cache each.
fn read_beside(arguments: &[&str], read: fn(Cookie) -> Request) -> Vec<u8> {
    let arguments = [&["--cache"], arguments].concat();
    let serve = Serve::start(&arguments);
    let (mut writer, mut reader) = (serve.connect(), serve.connect());
    let fill = |cookie| Request::read(cookie, 0, 4);
    assert_eq!(reader.ask(fill, &[], 4).unwrap(), [0; 4]);
    let write = |cookie| Request::write(cookie, 0, 4);
    writer.ask(write, b"data", 0).unwrap();
    let found = reader.ask(read, &[], 4).unwrap();
    writer.disconnect();
    reader.disconnect();
    serve.stop().well();
    found
}

#[test]
fn reads_find_what_others_have_written_if_they_ask_for_it_or_always_do() {
    let plain = |cookie| Request::read(cookie, 0, 4);
    assert_eq!(read_beside(&[], plain), [0; 4], "there was no flush");
    assert_eq!(read_beside(&[], read_fua), [0; 4]);
    let preflush = ["--fua-on-reads", "preflush"];
    assert_eq!(read_beside(&preflush, plain), [0; 4]);
    assert_eq!(read_beside(&preflush, read_fua), b"data");
    assert_eq!(read_beside(&["--overlap", "coherent"], plain), b"data");
}

#[test]
fn with_log_the_end_says_what_flushes_came_to() {
    let serve = Serve::start(&["--log", "--cache"]);
    let (mut a, mut b) = (serve.connect(), serve.connect());
    a.ask(|cookie| Request::write(cookie, 0, 4), b"data", 0)
        .unwrap();
    b.ask(Request::flush, &[], 0).unwrap();
    b.ask(Request::flush, &[], 0).unwrap();
    a.disconnect();
    b.disconnect();
    let ended = serve.stop();
    let summary = "in all: 1 modification; 2 flushes asked for, of which 1 needed none, 0 shared \
                   one and 0 failed; 1 backend flush, of which 0 failed";
    assert!(ended.stderr.contains(summary), "{}", ended.stderr);
}
