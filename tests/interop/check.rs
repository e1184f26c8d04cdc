//! `check`, and whether its verdict is right: on servers that keep their promise, and on servers
//! that break it in one way each.
//!
//! Every run is recorded, and the record is judged once more by `check --import`, which has to
//! come to the same verdict.
//!
//! `INTEROP_CHECK_SEEDS`, `INTEROP_CHECK_SECONDS` and `INTEROP_CHECK_KILLS` change how often and how
//! long the good servers are tried. The bad ones are tried until they are caught.

mod good;
mod kills;
mod log;
mod peer;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::process::{Finished, Process, SOON, run};
use crate::programs::example;
use crate::settings::seed;

use peer::Peer;

/// What breaks a promise is caught long before.
const PATIENCE: u32 = 40;

/// What a read breaks that finds less than was flushed, or forced.
const FLUSHED: [&str; 2] = ["visibility", "visibility of FUA"];

/// What a read may break that finds anything old: also what its own connection has written, if
/// somebody else's older data has come over it.
const STALE: &[&str] = &["visibility", "visibility of FUA", "own writes", "one order"];

const ONE_FREEDOM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/one_freedom.py");
const CACHE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/interop/per_connection_cache.py"
);

/// A run of `check`, and what it has recorded.
struct Run {
    finished: Finished,
    imported: Finished,
}

/// Judges a server for so many seconds, and then the record of that.
fn check(uri: &str, seed: u64, seconds: u32, more: &[&str]) -> Run {
    let dir = tempfile::tempdir().unwrap();
    let record = dir.path().join("record");
    let mut command = Command::new(example("check"));
    command.args([uri, "--seconds", &seconds.to_string()]);
    command.args(["--seed", &seed.to_string()]);
    command.arg("--record").arg(&record).args(more);
    let patience = 3 * SOON + Duration::from_secs(u64::from(seconds));
    let finished = Process::start(&mut command).finish(patience);
    let imported = import(&record, &[]);
    Run { finished, imported }
}

fn import(record: &Path, more: &[&str]) -> Finished {
    let mut command = Command::new(example("check"));
    run(command.arg("--import").arg(record).args(more))
}

impl Run {
    #[track_caller]
    fn held(&self) {
        for (finished, verdict) in self.both() {
            assert_eq!(finished.status.code(), Some(0), "{finished}");
            assert!(finished.stdout.contains(verdict), "{finished}");
        }
    }

    /// The promise was broken, in one of these clauses; and the events are shown.
    #[track_caller]
    fn broken(&self, clauses: &[&str]) {
        for (finished, _) in self.both() {
            assert_eq!(finished.status.code(), Some(1), "{finished}");
            let said = &finished.stdout;
            assert!(said.contains("BROKEN"), "{finished}");
            let named = |clause: &&str| {
                ["multi-conn", "single connection"]
                    .iter()
                    .any(|whose| said.contains(&format!("promise of {whose}: {clause}\n")))
            };
            assert!(clauses.iter().any(named), "not {clauses:?}: {finished}");
            for word in ["\n  event  ", "┌ read", "└ found"] {
                assert!(said.contains(word), "{word:?} is missing: {finished}");
            }
        }
    }

    fn both(&self) -> [(&Finished, &'static str); 2] {
        [(&self.finished, "HELD"), (&self.imported, "HELD")]
    }
}

/// nbdkit's multi-conn filter over a backend that takes one freedom.
fn coordinated(freedom: &str, more: &[&str]) -> Peer {
    let freedom = format!("freedom={freedom}");
    Peer::nbdkit_over_image(
        &["--filter=multi-conn", "python", ONE_FREEDOM],
        &[&[freedom.as_str()], more].concat(),
    )
}

const OFF: &str = "multi-conn-track-dirty=off";

/// What the tests of hazards below show is the fault of the filter, and of the one freedom: it
/// flushes all that it should, and over a backend that takes no other freedom that is enough.
#[test]
fn nbdkits_filter_that_tracks_nothing_is_right_over_a_backend_without_freedoms() {
    let peer = coordinated("none", &[OFF, "write=10", "flush=5"]);
    check(peer.uri(), seed(), 4, &[]).held();
}

#[test]
fn t1_a_lost_dirty_bit_is_found() {
    let peer = coordinated("none", &["write=10"]);
    check(peer.uri(), seed(), PATIENCE, &[]).broken(&FLUSHED);
}

#[test]
fn r1_a_read_that_fills_a_cache_within_a_round_is_found() {
    let peer = coordinated("clean", &[OFF, "flush=10"]);
    check(peer.uri(), seed(), PATIENCE, &[]).broken(STALE);
}

#[test]
fn o1_an_older_write_that_wins_is_found() {
    let peer = coordinated("order", &[OFF]);
    check(peer.uri(), seed(), PATIENCE, &[]).broken(STALE);
}

#[test]
fn c1_what_a_connection_takes_with_it_is_found() {
    let peer = coordinated("close", &[OFF]);
    // Its own writes, if it is the one that reads: the number of a connection is used again.
    check(peer.uri(), seed(), PATIENCE, &[]).broken(&["visibility"]);
}

#[test]
fn nbdkits_filter_as_it_is_by_default_is_found_out_over_caches() {
    let peer = Peer::nbdkit_over_image(
        &["--filter=multi-conn", "python", CACHE],
        &["write=5", "flush=5"],
    );
    check(peer.uri(), seed(), PATIENCE, &[]).broken(STALE);
}

#[test]
fn multi_conn_that_is_only_claimed_is_found_out() {
    let peer = Peer::nbdkit_over_image(
        &["--filter=multi-conn", "python", CACHE],
        &["multi-conn-mode=unsafe"],
    );
    check(peer.uri(), seed(), PATIENCE, &[]).broken(STALE);
}

#[test]
fn multi_conn_that_serve_only_claims_is_found_out() {
    let peer = Peer::serve_over_image(&["--cache", "--multi-conn", "unsafe"]);
    check(peer.uri(), seed(), PATIENCE, &[]).broken(STALE);
}

/// The clause, and what the events say, on a server whose fault is known: a flush is answered, and
/// a connection does not see what it covers.
#[test]
fn the_explanation_of_a_lost_dirty_bit_is_a_write_a_flush_of_another_and_a_read() {
    let peer = coordinated("none", &["write=10"]);
    let run = check(peer.uri(), seed(), PATIENCE, &[]);
    run.broken(&FLUSHED);
    let said = &run.finished.stdout;
    let but = said.find("\nBut ").expect("what should have been found");
    // By a flush that is named, or by itself.
    let flushed = said[but..].contains(", and flushed (events ") && said.contains("┌ flush");
    let forced = said[but..].contains(", with FUA.");
    assert!(flushed || forced, "{said}");
}

/// What another program recorded has the same verdict, in the other form.
#[test]
fn a_record_as_json_lines_has_the_same_verdict() {
    let dir = tempfile::tempdir().unwrap();
    let record = dir.path().join("record.jsonl");
    let record_path = record.to_str().unwrap();
    let peer = Peer::serve_over_image(&["--cache", "--multi-conn", "unsafe"]);
    let mut command = Command::new(example("check"));
    command.args([peer.uri(), "--seconds", "40", "--record", record_path]);
    assert_eq!(run(&mut command).status.code(), Some(1));
    let first = fs::read_to_string(&record).unwrap();
    assert!(first.starts_with("{\"granule\":"), "{first}");
    let imported = import(&record, &[]);
    assert_eq!(imported.status.code(), Some(1), "{imported}");
    assert!(imported.stdout.contains("BROKEN"), "{imported}");
}

#[test]
fn a_file_that_is_no_history_is_no_verdict() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "granule 512\nc0 flush #1\nc0 flush #1\n").unwrap();
    let imported = import(&file, &[]);
    assert_eq!(imported.status.code(), Some(2), "{imported}");
    assert!(imported.stderr.contains("line 3"), "{imported}");
    let imported = import(&dir.path().join("absent"), &[]);
    assert_eq!(imported.status.code(), Some(2), "{imported}");
    assert!(imported.stderr.contains("absent"), "{imported}");
}
