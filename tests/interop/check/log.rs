//! Runs of `check` against nbdkit with its log filter, and what that log shows when it is imported.

use std::fs;

use super::peer::Peer;
use super::{ONE_FREEDOM, check, import};
use crate::settings::seed;

#[test]
fn one_log_filter_shows_all_that_was_done_and_gives_no_verdict() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let logfile = format!("logfile={}", log.display());
    let peer = Peer::nbdkit_over_image(
        &["--filter=log", "--filter=nozero", "python", ONE_FREEDOM],
        &[&logfile],
    );
    // The plugin promises nothing: single connections.
    let finished = check(peer.uri(), seed(), 1, &[]).finished;
    assert_eq!(finished.status.code(), Some(0), "{finished}");
    peer.end();
    let imported = import(&log, &[]);
    assert_eq!(imported.status.code(), Some(0), "{imported}");
    assert!(imported.stdout.contains("NO VERDICT"), "{imported}");
    let text = fs::read_to_string(&log).unwrap();
    let flushes = text.lines().filter(|it| it.contains(" Flush id=")).count();
    assert!(flushes > 0);
    let told = format!(" {flushes} flush");
    assert!(imported.stdout.contains(&told), "{imported}");
}

/// The lost dirty bit, seen from outside by what is read, and from inside by what is flushed.
#[test]
fn two_log_filters_show_a_flush_that_was_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let logfile = format!("logfile={}", log.display());
    let peer = Peer::nbdkit_over_image(
        &[
            "--filter=log",
            "--filter=multi-conn",
            "--filter=log",
            "python",
            ONE_FREEDOM,
        ],
        &["write=10", &logfile],
    );
    check(peer.uri(), seed(), super::PATIENCE, &[]).broken(&super::FLUSHED);
    peer.end();
    let imported = import(&log, &[]);
    assert_eq!(imported.status.code(), Some(1), "{imported}");
    assert!(imported.stdout.contains("BROKEN"), "{imported}");
    // It may also be one that has left: the filter does not flush those either.
    let why = ["no flush of connection", "was closed, and not flushed"];
    let told = why.iter().any(|it| imported.stdout.contains(it));
    assert!(told, "{imported}");
}
