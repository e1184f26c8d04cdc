//! When the example `serve` answers writes.

#![cfg(target_os = "linux")]

mod program_support;
mod serve_support;

use std::fs::{self, File};
use std::path::PathBuf;

use nbd_proto::wire::{Cookie, Errno, Request};
use rustix::process::Signal;

use serve_support::{Client, Serve};

fn image() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    File::create(&path).unwrap().set_len(1 << 20).unwrap();
    (directory, path)
}

fn write(cookie: Cookie) -> Request {
    Request::write(cookie, 8192, 4)
}

fn read(client: &mut Client) -> Vec<u8> {
    let read = |cookie| Request::read(cookie, 8192, 4);
    client.ask(read, &[], 4).unwrap()
}

#[test]
fn on_receipt_a_write_is_answered_before_it_is_executed() {
    // It takes longer than anybody would wait.
    let mut serve = Serve::start(&["--acknowledge", "on-receipt", "--delay-write", "100000"]);
    let mut client = serve.connect();
    client.ask(write, b"slow", 0).unwrap();
    // What overlaps waits, and what does not is served.
    client.send(write, b"next");
    let beside = |cookie| Request::read(cookie, 0, 4);
    client.ask(beside, &[], 4).unwrap();
    serve.begin_to_stop();
    assert_ne!(serve.insist(Signal::TERM).status.code(), Some(0));
}

#[test]
fn on_receipt_clients_read_what_was_acknowledged_and_flushes_cover_it() {
    let (_directory, path) = image();
    for delay in ["0", "100"] {
        let serve = Serve::start(&[
            "--acknowledge",
            "on-receipt",
            "--delay-write",
            delay,
            "file",
            path.to_str().unwrap(),
        ]);
        let (mut a, mut b) = (serve.connect(), serve.connect());
        for text in [b"1st.", b"2nd.", b"3rd."] {
            a.ask(write, text, 0).unwrap();
            assert_eq!(read(&mut b), text, "delay {delay}");
        }
        a.ask(write, b"last", 0).unwrap();
        b.ask(Request::flush, &[], 0).unwrap();
        assert_eq!(fs::read(&path).unwrap()[8192..8196], *b"last");
        a.disconnect();
        b.disconnect();
        serve.stop().well();
    }
}

#[test]
fn on_receipt_the_payloads_of_many_writes_are_kept_until_they_are_executed() {
    let serve = Serve::start(&["--acknowledge", "on-receipt", "--delay-write", "1"]);
    let mut client = serve.connect();
    let requests: [fn(Cookie) -> Request; 4] = [
        |cookie| Request::write(cookie, 0, 4096),
        |cookie| Request::write(cookie, 4096, 4096),
        |cookie| Request::write(cookie, 8192, 4096),
        |cookie| Request::write(cookie, 12288, 4096),
    ];
    for round in 0..16 {
        for (request, number) in requests.into_iter().zip(0..) {
            client.send(request, &[16 * number + round; 4096]);
        }
    }
    for _ in 0..64 {
        client.take(0).1.unwrap();
    }
    let whole = client.ask(|cookie| Request::read(cookie, 0, 16384), &[], 16384);
    for (page, number) in whole.unwrap().chunks(4096).zip(0..) {
        assert!(page.iter().all(|&byte| byte == 16 * number + 15));
    }
    serve.stop().well();
}

#[test]
fn on_receipt_a_late_failure_is_reported_by_the_next_flush_and_at_the_end() {
    for delay in ["0", "1"] {
        let (_directory, path) = image();
        // It can be written only in its first 64 KiB or so.
        let serve = Serve::limited(
            "trap '' XFSZ && ulimit -f 64",
            &[
                "--acknowledge",
                "on-receipt",
                "--delay-write",
                delay,
                "file",
                path.to_str().unwrap(),
            ],
        );
        let (mut a, mut b) = (serve.connect(), serve.connect());
        let far = |cookie| Request::write(cookie, 512 << 10, 4);
        a.ask(far, b"lost", 0).unwrap();
        for client in [&mut a, &mut b] {
            let flushed = client.ask(Request::flush, &[], 0);
            assert_eq!(flushed, Err(Errno::ENOSPC), "delay {delay}");
        }
        let ended = serve.stop();
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        assert!(
            ended.stderr.contains("failed after its answer"),
            "{ended:?}"
        );
        assert!(ended.stderr.contains("may be lost"), "{ended:?}");
    }
}

#[test]
fn with_write_through_what_is_answered_is_below_the_cache() {
    let (_directory, path) = image();
    let path = path.to_str().unwrap();
    let serve = Serve::start(&["--acknowledge", "write-through", "--cache", "file", path]);
    let (mut a, mut b) = (serve.connect(), serve.connect());
    assert_eq!(read(&mut b), [0; 4]);
    a.ask(write, b"safe", 0).unwrap();
    assert_eq!(fs::read(path).unwrap()[8192..8196], *b"safe");
    assert_eq!(read(&mut b), b"safe");
    serve.stop().well();
}

#[test]
fn with_ignored_flushes_the_cache_is_written_out_at_the_end_only() {
    let (_directory, path) = image();
    let path = path.to_str().unwrap();
    let serve = Serve::start(&["--acknowledge", "ignore-flush", "--cache", "file", path]);
    let mut client = serve.connect();
    client.ask(write, b"late", 0).unwrap();
    client.ask(Request::flush, &[], 0).unwrap();
    assert_eq!(fs::read(path).unwrap()[8192..8196], [0; 4]);
    client.disconnect();
    serve.stop().well();
    assert_eq!(fs::read(path).unwrap()[8192..8196], *b"late");
}

#[test]
fn levels_that_would_be_a_lie_are_refused_at_the_start() {
    let refused = Serve::start_refused(&[
        "--acknowledge",
        "ignore-flush",
        "--cache",
        "--multi-conn",
        "emulate",
    ]);
    assert!(refused.contains("ignored"), "{refused}");
}
