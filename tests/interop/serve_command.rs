//! `serve` as a command: what it says when it starts, and when it cannot.

use std::net::TcpListener;
use std::process::Command;

use crate::process::{Finished, run};
use crate::programs::example;

fn serve(arguments: &[&str]) -> Finished {
    run(Command::new(example("serve")).args(arguments))
}

/// A failure that names its cause, and no trace of a panic.
#[track_caller]
fn assert_refused(finished: &Finished, cause: &str) {
    assert!(
        finished.status.code().is_some_and(|code| code != 0),
        "{finished}"
    );
    assert!(
        finished.stderr.contains(cause),
        "{cause} is not named: {finished}"
    );
    assert!(!finished.stderr.contains("panicked"), "{finished}");
}

#[test]
fn help_names_every_option() {
    let help = serve(&["--help"]).ok();
    for option in [
        "--port",
        "--bind",
        "--unix",
        "--size",
        "--export",
        "--read-only",
        "--cache",
        "--multi-conn",
        "--track-dirty",
        "--delay-read",
        "--delay-write",
        "--delay-flush",
        "--threads",
        "--max-connections",
        "--log",
        "memory",
        "file",
    ] {
        assert!(help.contains(option), "{option} is not in\n{help}");
    }
}

#[test]
fn a_port_that_is_taken_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    assert_refused(&serve(&["--port", &port, "memory"]), &port);
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let absent = dir.path().join("absent.img");
    assert_refused(
        &serve(&["--port", "0", "file", absent.to_str().unwrap()]),
        "absent.img",
    );
    assert!(!absent.exists(), "it was not asked to make one");
}

#[test]
fn a_directory_for_a_socket_that_is_not_there_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("absent").join("socket");
    assert_refused(
        &serve(&["--unix", socket.to_str().unwrap(), "memory"]),
        "absent/socket",
    );
}

#[test]
fn arguments_that_make_no_sense_are_named() {
    for (arguments, cause) in [
        (&["--port", "0", "--size", "lots", "memory"][..], "lots"),
        (&["--port", "0", "--multi-conn", "sometimes"], "sometimes"),
        (&["--port", "0", "--track-dirty", "rarely"], "rarely"),
        (&["--port", "0", "--acknowledge", "never"], "never"),
        (&["--port", "99999"], "99999"),
        (&["--port", "0", "--delay-write", "-1"], "-1"),
        (&["--port", "0", "tape"], "tape"),
        (&["--no-such-option"], "--no-such-option"),
    ] {
        assert_refused(&serve(arguments), cause);
    }
}
