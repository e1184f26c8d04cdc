//! The example `serve` when clients, or who started it, mean it no good.

#![cfg(target_os = "linux")]

mod program_support;
mod serve_support;

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::time::Instant;

use nbd_proto::wire::Request;
use rustix::process::Signal;

use serve_support::{Client, Serve, WATCHDOG};

/// Whether the server hangs up without a word.
fn is_hung_up_on(mut stream: TcpStream) -> bool {
    match stream.read(&mut [0]) {
        Ok(count) => count == 0,
        Err(error) => match error.kind() {
            ErrorKind::ConnectionReset => true,
            _ => panic!("neither a word nor a hangup: {error}"),
        },
    }
}

/// Tries until the server has seen that others have left.
fn connect_in_the_end(serve: &Serve) -> Client {
    let deadline = Instant::now() + WATCHDOG;
    loop {
        match Client::try_connect(serve.address) {
            Ok(client) => return client,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
    }
}

#[test]
fn more_clients_than_allowed_are_hung_up_on_and_the_others_served() {
    let serve = Serve::start(&["--max-connections", "2"]);
    let (mut first, second) = (serve.connect(), serve.connect());
    for _ in 0..10 {
        assert!(is_hung_up_on(serve.connect_silently()));
    }
    first.ask(Request::flush, &[], 0).unwrap();
    second.disconnect();
    let mut third = connect_in_the_end(&serve);
    third.ask(Request::flush, &[], 0).unwrap();
    let ended = serve.stop();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert!(ended.stderr.contains("--max-connections"), "{ended:?}");
    assert!(ended.stderr.lines().count() < 5, "warnings flood {ended:?}");
}

#[test]
fn a_server_that_runs_out_of_descriptors_serves_on() {
    let serve = Serve::limited("ulimit -n 24", &[]);
    let mut witness = serve.connect();
    // The system takes them even if the server does not.
    let crowd: Vec<_> = (0..40).map(|_| serve.connect_silently()).collect();
    let deadline = Instant::now() + WATCHDOG;
    while serve.open_files() < 24 {
        assert!(Instant::now() < deadline, "it does not take them");
        std::thread::yield_now();
    }
    witness.ask(Request::flush, &[], 0).unwrap();
    drop(crowd);
    let mut newcomer = connect_in_the_end(&serve);
    newcomer.ask(Request::flush, &[], 0).unwrap();
    let ended = serve.stop();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
}

#[test]
fn clients_that_have_left_hold_no_descriptors() {
    // The delay makes flushes something that threads wait for.
    let serve = Serve::limited("ulimit -n 24", &["--delay-flush", "1"]);
    for _ in 0..100 {
        let mut client = serve.connect();
        client
            .ask(|cookie| Request::write(cookie, 0, 4), b"data", 0)
            .unwrap();
        client.ask(Request::flush, &[], 0).unwrap();
        let mut stream = client.stream.try_clone().unwrap();
        client.disconnect();
        // When the server has hung up, it has closed everything but for moments.
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    }
    serve.stop().well();
}

#[test]
fn a_log_that_nobody_reads_holds_up_nobody() {
    let serve = Serve::start(&["--log", "--delay-flush", "1"]);
    let (mut one, mut other) = (serve.connect(), serve.connect());
    // Several times what fits into a pipe.
    for _ in 0..3000 {
        one.ask(|cookie| Request::write(cookie, 0, 4), b"data", 0)
            .unwrap();
        other
            .ask(|cookie| Request::read(cookie, 0, 4), &[], 4)
            .unwrap();
    }
    one.ask(Request::flush, &[], 0).unwrap();
    let ended = serve.stop();
    assert_eq!(ended.status.code(), Some(0));
    assert!(ended.stderr.contains("connection 1: from"));
}

/// A file that can be written only in its first 64 KiB or so.
fn lose_writes(mode: &str) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    File::create(&path).unwrap().set_len(1 << 20).unwrap();
    let path = path.to_str().unwrap();
    let serve = Serve::limited(
        "trap '' XFSZ && ulimit -f 64",
        &["--cache", "--multi-conn", mode, "file", path],
    );
    let mut client = serve.connect();
    client
        .ask(|cookie| Request::write(cookie, 512 << 10, 4), b"lost", 0)
        .unwrap();
    let mut stream = client.stream.try_clone().unwrap();
    client.disconnect();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    let ended = serve.stop();
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(ended.stderr.contains("may be lost"), "{ended:?}");
    assert!(!ended.stdout.contains("all data"), "{ended:?}");
}

#[test]
fn writes_of_a_client_that_left_are_not_lost_silently() {
    lose_writes("emulate");
}

#[test]
fn writes_of_a_client_that_left_are_not_lost_silently_without_coordination() {
    lose_writes("disable");
}

#[test]
fn clients_in_the_middle_of_something_do_not_hold_up_the_end() {
    let serve = Serve::start(&["--delay-flush", "1"]);
    let _silent = serve.connect_silently();
    let mut half_header = serve.connect();
    half_header.send_bytes(&[0x25, 0x60, 0x95]);
    let mut half_payload = serve.connect();
    half_payload.send(|cookie| Request::write(cookie, 0, 1 << 20), &[7; 1000]);
    let mut witness = serve.connect();
    witness.ask(Request::flush, &[], 0).unwrap();
    serve.stop().well();
}

#[test]
fn a_handshake_that_does_not_go_on_is_ended() {
    let serve = Serve::start(&[]);
    let mut stream = serve.connect_silently();
    // The greeting, then nothing.
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard).unwrap();
    assert_eq!(heard.len(), 18);
    serve.stop().well();
}

#[test]
fn a_client_in_transmission_may_be_silent_for_longer_than_a_handshake_may_last() {
    let serve = Serve::start(&[]);
    let mut client = serve.connect();
    // Another one's handshake takes too long meanwhile.
    let mut stream = serve.connect_silently();
    stream.read_to_end(&mut Vec::new()).unwrap();
    client.ask(Request::flush, &[], 0).unwrap();
    serve.stop().well();
}

#[test]
fn replies_that_are_not_taken_hold_up_no_commands() {
    // The delay makes reads something that threads wait for.
    let serve = Serve::start(&["--delay-read", "1"]);
    let (mut greedy, mut other) = (serve.connect(), serve.connect());
    for _ in 0..32 {
        greedy.send(|cookie| Request::read(cookie, 0, 1 << 20), &[]);
    }
    greedy.send(|cookie| Request::write(cookie, 1 << 20, 4), b"mark");
    // Its own write is executed, and everybody else is served.
    loop {
        let read = other.ask(|cookie| Request::read(cookie, 1 << 20, 4), &[], 4);
        if read.unwrap() == b"mark" {
            break;
        }
    }
    other.ask(Request::flush, &[], 0).unwrap();
    for _ in 0..33 {
        let (cookie, answer) = {
            let mut head = [0; 16];
            greedy.stream.peek(&mut head).unwrap();
            let is_write = head[8..] == 33_u64.to_be_bytes();
            greedy.take(if is_write { 0 } else { 1 << 20 })
        };
        assert!(answer.is_ok(), "{cookie:?}");
    }
    serve.stop().well();
}

/// A write that takes longer than the test lasts.
fn stuck() -> (Serve, Client) {
    let serve = Serve::start(&["--delay-write", "50000", "--delay-read", "1"]);
    let mut client = serve.connect();
    client.send(|cookie| Request::write(cookie, 0, 4), b"slow");
    // An answer to what came later shows that the write has begun.
    client
        .ask(|cookie| Request::read(cookie, 4096, 4), &[], 4)
        .unwrap();
    (serve, client)
}

#[test]
fn a_later_signal_ends_a_server_that_waits() {
    let (mut serve, _client) = stuck();
    serve.begin_to_stop();
    let ended = serve.insist(Signal::TERM);
    assert_eq!(ended.signal(), Some(Signal::TERM.as_raw()));
}

#[test]
fn two_signals_at_the_same_time_are_one() {
    // So are those of `timeout`, and what is in caches is not lost by them.
    let serve = Serve::start(&["--delay-flush", "1"]);
    serve.signal(Signal::TERM);
    serve.signal(Signal::INT);
    serve.end().well();
}
