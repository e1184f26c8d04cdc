//! Broken coordinators as their clients see them: `serve` is built with each, and `check` has to find
//! out that it does not keep its promise.
//!
//! `cargo test --test mutants served -- --ignored`; `MUTANT=words` chooses, as for the others.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::list::Mutant;
use super::{BUILD_TIMEOUT, Copy, all, root, say};

/// A mutant of the coordinator, and the options of `serve` with which it bites.
struct Seen {
    name: &'static str,
    options: &'static [&'static str],
}

const FAST: &[&str] = &["--cache"];
/// Commands take so long that others come between.
const SLOW: &[&str] = &["--cache", "--delay-write", "10", "--delay-flush", "10"];

const SEEN: &[Seen] = &[
    Seen {
        name: "a modification is stamped when it begins, not when it completes",
        options: SLOW,
    },
    Seen {
        name: "no handle is invalidated after the write-out",
        options: FAST,
    },
    Seen {
        name: "a flush covers what completed before its end, not before its start",
        options: SLOW,
    },
    Seen {
        name: "FUA does not invalidate what others hold",
        options: FAST,
    },
    Seen {
        name: "a leaving connection is released without being written out",
        options: FAST,
    },
    Seen {
        name: "overlapping writes execute as they come",
        options: FAST,
    },
    Seen {
        name: "FUA is answered before its flush",
        options: SLOW,
    },
    Seen {
        name: "a flush does not wait for a connection that is leaving",
        options: SLOW,
    },
    Seen {
        name: "a flush of any handle makes all clean",
        options: FAST,
    },
];

/// What `serve` needs beyond the library.
const DEV_DEPENDENCIES: [&str; 8] = [
    "anyhow",
    "clap",
    "parking_lot",
    "percent-encoding",
    "rustix",
    "rustls",
    "signal-hook",
    "url",
];

const SERVE: &str = "\n[[example]]\nname = \"serve\"\npath = \"examples/serve/main.rs\"\n";

/// What `check` may take to find out.
const SECONDS: u64 = 20;
const SIZE: u64 = 16 << 20;
const SOON: Duration = Duration::from_secs(30);

#[test]
#[ignore = "builds serve once per mutant, which takes minutes"]
fn check_finds_out_what_clients_can_see_of_a_mutant() {
    let only = std::env::var("MUTANT").unwrap_or_default();
    let seen: Vec<&Seen> = SEEN.iter().filter(|it| it.name.contains(&only)).collect();
    let check = build_check();
    let copy = Copy::of(
        &["examples/serve", "examples/shared"],
        &DEV_DEPENDENCIES,
        SERVE,
    );
    let serve = copy.build_serve("the control");
    let options: BTreeSet<_> = seen.iter().map(|it| it.options).collect();
    for options in options {
        let (status, said) = judge(&check, &serve, options, 4);
        assert_eq!(status, Some(0), "without any mutant, {options:?}:\n{said}");
    }
    let mut survivors = Vec::new();
    for Seen { name, options } in seen {
        let (status, said) = copy.with(mutant(name), || {
            judge(&check, &copy.build_serve(name), options, SECONDS)
        });
        let proof = said.lines().find(|line| line.starts_with("BROKEN: "));
        say(&format!("{} | {name}", proof.unwrap_or("NOT SEEN")));
        if status != Some(1) || proof.is_none() {
            survivors.push(format!("{name}: {status:?}\n{said}"));
        }
    }
    assert!(survivors.is_empty(), "{}", survivors.join("\n"));
}

/// Takes no time, and keeps the list from rotting between the runs of the above.
#[test]
fn every_mutant_that_clients_can_see_is_there() {
    for seen in SEEN {
        assert_eq!(mutant(seen.name).name, seen.name);
    }
}

fn mutant(name: &str) -> &'static Mutant {
    let found = all().find(|it| it.name == name);
    found.unwrap_or_else(|| panic!("there is no mutant {name}"))
}

/// `check` from the sources as they are.
fn build_check() -> PathBuf {
    // This test is <target>/<profile>/deps/mutants-<hash>.
    let this = std::env::current_exe().unwrap();
    let target = this.ancestors().nth(3).unwrap();
    let mut command = Command::new(env!("CARGO"));
    command
        .args(["build", "--release", "--example", "check", "--target-dir"])
        .arg(target)
        .current_dir(root())
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    target.join("release/examples/check")
}

impl Copy {
    fn build_serve(&self, what: &str) -> PathBuf {
        let mut command = Command::new(env!("CARGO"));
        command
            .args(["build", "--offline", "--example", "serve", "--target-dir"])
            .arg(self.path("target"))
            .env("CARGO_INCREMENTAL", "1")
            .env("CARGO_PROFILE_DEV_DEBUG", "0")
            // A debug build would be too slow for much to come together.
            .env("CARGO_PROFILE_DEV_OPT_LEVEL", "1")
            .env_remove("RUSTFLAGS")
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .current_dir(self.directory.path());
        let run = self.run(what, command, BUILD_TIMEOUT);
        assert!(run.succeeded, "{what} does not compile:\n{}", run.errors);
        self.path("target/debug/examples/serve")
    }
}

/// A server that ends with us.
struct Served(Child);

impl Drop for Served {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The status of `check`, and what it said.
fn judge(check: &Path, serve: &Path, options: &[&str], seconds: u64) -> (Option<i32>, String) {
    let dir = tempfile::tempdir().unwrap();
    let (socket, image) = (dir.path().join("socket"), dir.path().join("image"));
    File::create(&image).unwrap().set_len(SIZE).unwrap();
    let mut command = Command::new(serve);
    command.arg("--unix").arg(&socket).args(options);
    command.arg("file").arg(&image);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let served = Served(command.spawn().unwrap());
    wait_until(SOON, || UnixStream::connect(&socket).is_ok());
    let said = dir.path().join("said");
    let mut command = Command::new(check);
    command.args(["--seed", "1", "--quiet", "--seconds", &seconds.to_string()]);
    command.arg(format!("nbd+unix:///?socket={}", socket.display()));
    command
        .stdin(Stdio::null())
        .stdout(File::create(&said).unwrap())
        .stderr(Stdio::null());
    let mut checking = Served(command.spawn().unwrap());
    let mut status = None;
    wait_until(SOON + Duration::from_secs(seconds), || {
        status = checking.0.try_wait().unwrap();
        status.is_some()
    });
    drop(served);
    let said = fs::read_to_string(said).unwrap();
    (status.and_then(|it| it.code()), said)
}

fn wait_until(patience: Duration, mut it_is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience;
    while !it_is_so() {
        assert!(
            Instant::now() < deadline,
            "it took longer than {patience:?}"
        );
        thread::sleep(Duration::from_millis(10));
    }
}
