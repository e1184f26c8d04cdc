//! The example `serve`: what it says when it starts, or why it does not, and when it stops.

#![cfg(target_os = "linux")]

mod program_support;
mod serve_support;

use std::fs::File;
use std::os::unix::net::UnixListener;
use std::process::{Command, Output};

use nbd_proto::wire::Request;
use serve_support::Serve;

#[test]
fn a_size_for_a_file_is_refused_and_not_ignored() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    File::create(&path).unwrap();
    let said = Serve::start_refused(&["--size", "1M", "file", path.to_str().unwrap()]);
    assert!(said.contains("--size is for memory"), "{said}");
}

/// What it says to a command line that does not let it start.
fn refused(arguments: &[&str]) -> Output {
    let tests = std::env::current_exe().unwrap();
    let target = tests.parent().unwrap().parent().unwrap();
    Command::new(target.join("examples/serve"))
        .args(["--port", "0"])
        .args(arguments)
        .output()
        .unwrap()
}

#[test]
fn a_wrong_command_line_is_told_from_what_cannot_be_served_by_the_status() {
    for (arguments, status, words) in [
        (&["--threads", "0"][..], 2, "--threads"),
        (&["--tls-required"], 2, "--tls-cert"),
        (&["--tls-client-ca", "f"], 2, "--tls-cert"),
        (&["--tls-cert", "f"], 2, "--tls-key"),
        (&["--tls-key", "f"], 2, "--tls-cert"),
        (&["--size", "1M", "file", "f"], 2, "--size is for memory"),
        (&["file", "--size", "1M", "f"], 2, "--size is for memory"),
        (&["file", "/nonexistent/f"], 1, "/nonexistent/f"),
        (
            &["--tls-cert", "/nonexistent/c", "--tls-key", "k"],
            1,
            "/nonexistent/c",
        ),
    ] {
        let output = refused(arguments);
        assert_eq!(output.status.code(), Some(status), "{output:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains(words), "{said}");
    }
}

#[test]
fn a_socket_that_cannot_be_opened_is_told_with_what_helps() {
    let directory = tempfile::tempdir().unwrap();
    let said = |name: &str| {
        let path = directory.path().join(name);
        Serve::start_refused(&["--unix", path.to_str().unwrap()])
    };
    let absent = said("absent/socket");
    assert!(absent.contains("create its directory"), "{absent}");
    let long = said(&"x".repeat(200));
    assert!(long.contains("choose a shorter path"), "{long}");

    drop(UnixListener::bind(directory.path().join("left")).unwrap());
    let left = said("left");
    assert!(left.contains("remove it"), "{left}");
}

#[test]
fn several_connections_are_suggested_where_multi_conn_is_advertised() {
    for (mode, several) in [("auto", true), ("disable", false)] {
        let ended = Serve::start(&["--multi-conn", mode]).stop();
        let line = ended.stdout.lines().find(|it| it.contains("nbd-client"));
        assert_eq!(line.unwrap().contains("-C 4"), several, "{ended:?}");
        ended.well();
    }
}

#[test]
fn it_says_what_it_waits_for_when_it_stops() {
    let slow = Serve::start(&["--delay-flush", "2500"]).stop();
    assert!(slow.stdout.contains("Ctrl-C gives it up"), "{slow:?}");
    let words = "waiting for the storage to flush";
    assert!(slow.stdout.contains(words), "{slow:?}");
    slow.well();

    let serve = Serve::start(&["--delay-write", "4000"]);
    let mut client = serve.connect();
    client.send(|cookie| Request::write(cookie, 0, 4), b"data");
    // What is answered came behind the write, so that this is in flight.
    client.send(|cookie| Request::read(cookie, 1 << 20, 4), &[]);
    client.take(4).1.unwrap();
    let busy = serve.stop();
    drop(client);
    let words = "waiting for what was asked for by 1 client,";
    assert!(busy.stdout.contains(words), "{busy:?}");
    busy.well();

    let quick = Serve::start(&[]).stop();
    assert!(!quick.stdout.contains("waiting for"), "{quick:?}");
    quick.well();
}
