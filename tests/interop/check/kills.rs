//! Servers that are killed under load: what they have answered for has to be there afterwards.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::thread::{self, JoinHandle};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use tempfile::TempDir;

use super::peer::Peer;
use super::{PATIENCE, STALE, check};
use crate::settings::{check_kills, seed};

const ONE_CACHE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/one_cache.py");

/// Kills a server whenever it is asked to, by a line in a pipe, and answers in another one when it
/// serves again. So the server stays a child of this process, and ends with the test.
struct Executioner {
    asked: PathBuf,
    uri: String,
    command: String,
    thread: Option<JoinHandle<()>>,
    _dir: TempDir,
}

impl Executioner {
    fn of(mut peer: Peer) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (asked, done) = (dir.path().join("asked"), dir.path().join("done"));
        for pipe in [&asked, &done] {
            let mode = Mode::RUSR | Mode::WUSR;
            mknodat(CWD, pipe, FileType::Fifo, mode, 0).unwrap();
        }
        let command = format!("echo again > {}; cat {}", asked.display(), done.display());
        let uri = peer.uri().to_owned();
        let thread = {
            let asked = asked.clone();
            // Whoever asks opens the pipe and closes it.
            thread::spawn(move || {
                while fs::read_to_string(&asked).unwrap() == "again\n" {
                    peer.restart();
                    fs::write(&done, "done\n").unwrap();
                }
            })
        };
        Self {
            asked,
            uri,
            command,
            thread: Some(thread),
            _dir: dir,
        }
    }

    fn check(&self, seed: u64, seconds: u32, kills: u32, overwrite: bool) -> super::Run {
        let kills = kills.to_string();
        let more = ["--restart-command", &self.command, "--restarts", &kills];
        let yes: &[&str] = if overwrite { &["--yes"] } else { &[] };
        check(&self.uri, seed, seconds, &[&more, yes].concat())
    }
}

impl Drop for Executioner {
    fn drop(&mut self) {
        // The pipe has a reader as long as the thread lives.
        if let Ok(mut pipe) = OpenOptions::new().read(true).write(true).open(&self.asked) {
            let _ = pipe.write_all(b"end\n");
            drop(pipe);
        }
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            if !thread::panicking() {
                ended.unwrap();
            }
        }
    }
}

#[track_caller]
fn survives(peer: Peer) {
    let kills = check_kills();
    let run = Executioner::of(peer).check(seed(), kills + kills / 4 + 1, kills, false);
    run.held();
    // The last kill may come too late for what is left to be looked at.
    let enough = kills.saturating_sub(1).max(1)..=kills;
    let mut looked_at = enough.map(|it| format!(" {it} crash"));
    let said = &run.imported.stdout;
    assert!(looked_at.any(|it| said.contains(&it)), "{}", run.imported);
}

/// The clause of durability, which nothing but a crash can break. If there was much between what
/// was lost and the crash, nobody remembers any more what it was; so these servers are slow, and
/// there is more than one try.
#[track_caller]
fn loses(peer: Peer) {
    let executioner = Executioner::of(peer);
    for attempt in 0..3 {
        let seed = seed() + attempt;
        let run = executioner.check(seed, PATIENCE, 2 * PATIENCE, attempt > 0);
        run.broken(&["durability", "never written"]);
        let said = &run.finished.stdout;
        if said.contains(": durability\n") {
            // FUA is as good a reason as a flush, and may be the better one.
            let is_covered = said.contains("┌ flush") || said.contains(" fua\n");
            let is_lost = said.contains("┌ write") && said.contains("*** crash");
            assert!(is_covered && is_lost, "{said}");
            return;
        }
    }
    panic!("what was lost was never known");
}

#[test]
fn serve_over_a_file_survives() {
    survives(Peer::serve_over_image(&[]));
}

#[test]
fn serve_with_caches_survives() {
    survives(Peer::serve_over_image(&["--cache"]));
}

#[test]
fn serve_with_caches_that_writes_through_survives() {
    survives(Peer::serve_over_image(&[
        "--cache",
        "--acknowledge",
        "write-through",
    ]));
}

#[test]
fn serve_with_caches_that_answers_early_survives() {
    survives(Peer::serve_over_image(&[
        "--cache",
        "--acknowledge",
        "on-receipt",
    ]));
}

#[test]
fn nbdkits_file_survives() {
    survives(Peer::nbdkit_file());
}

#[test]
fn qemu_nbd_survives() {
    survives(Peer::qemu_nbd());
}

#[test]
fn one_cache_that_is_flushed_survives() {
    survives(Peer::nbdkit_over_image(&["python", ONE_CACHE], &["deaf=0"]));
}

#[test]
fn serve_that_ignores_flush_is_found_out() {
    loses(Peer::serve_over_image(&[
        "--cache",
        "--acknowledge",
        "ignore-flush",
        "--delay-write",
        "20",
    ]));
}

#[test]
fn one_cache_that_ignores_flush_is_found_out() {
    loses(Peer::nbdkit_over_image(
        &["python", ONE_CACHE],
        &["deaf=1", "write=20"],
    ));
}

/// There may be a loss before a kill shows one, or a read that has found it out.
#[test]
fn serve_that_only_claims_multi_conn_is_found_out() {
    let peer = Peer::serve_over_image(&["--cache", "--multi-conn", "unsafe"]);
    let run = Executioner::of(peer).check(seed(), PATIENCE, PATIENCE, false);
    let lost = ["durability", "never written", "one image"];
    run.broken(&[&lost, STALE].concat());
}
