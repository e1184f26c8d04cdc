//! The example `serve`: what it says when it starts, or why it does not.

#![cfg(target_os = "linux")]

mod serve_support;

use std::fs::File;
use std::os::unix::net::UnixListener;
use std::process::{Command, Output};

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
