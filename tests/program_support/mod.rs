//! The example programs, as their tests run them: with everything piped, and under a watchdog.

#![allow(dead_code, reason = "each test program uses its part")]

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// What they do here takes milliseconds; whatever takes this long hangs.
pub(crate) const WATCHDOG: Duration = Duration::from_secs(60);

/// Where an example is. Cargo builds the examples before it runs the tests, and puts them next to
/// the directory of the test programs.
pub(crate) fn program(name: &str) -> PathBuf {
    let mut path = std::env::current_exe().unwrap();
    path.pop();
    path.pop();
    path.push("examples");
    path.push(name);
    assert!(
        path.exists(),
        "{} does not exist: build it with `cargo build --example {name}` (`cargo test` does)",
        path.display()
    );
    path
}

/// An example with these arguments.
pub(crate) fn command<A: AsRef<OsStr>>(
    name: &str,
    arguments: impl IntoIterator<Item = A>,
) -> Command {
    let mut command = Command::new(program(name));
    prepare(command.args(arguments));
    command
}

/// The same, with limits that the shell sets.
pub(crate) fn limited<A: AsRef<OsStr>>(
    limits: &str,
    name: &str,
    arguments: impl IntoIterator<Item = A>,
) -> Command {
    let script = format!("{limits} && exec \"$0\" \"$@\"");
    let mut shell = Command::new("sh");
    prepare(
        shell
            .args(["-c", &script])
            .arg(program(name))
            .args(arguments),
    );
    shell
}

fn prepare(command: &mut Command) {
    command
        // Nobody's own certificates are used, and no terminal's width.
        .env("HOME", "/nonexistent")
        .env_remove("COLUMNS")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
}

/// Kills a child that does not end in time, or whose test has failed before it could end it.
#[derive(Debug)]
pub(crate) struct Watchdog(Sender<()>);

impl Watchdog {
    pub(crate) fn of(child: &Child) -> Self {
        let (ended, end) = mpsc::channel();
        let pid = Pid::from_child(child);
        thread::spawn(move || {
            if end.recv_timeout(WATCHDOG).is_err() {
                let _ = kill_process(pid, Signal::KILL);
            }
        });
        Self(ended)
    }

    /// It has ended, and was waited for.
    pub(crate) fn call_off(self) {
        let _ = self.0.send(());
    }
}

/// An example that is running.
pub(crate) struct Running {
    name: &'static str,
    child: Child,
    watchdog: Watchdog,
    begun: Instant,
}

/// Starts an example that ends by itself.
pub(crate) fn start(name: &'static str, mut command: Command) -> Running {
    let child = command.spawn().unwrap();
    Running {
        name,
        watchdog: Watchdog::of(&child),
        child,
        begun: Instant::now(),
    }
}

impl Running {
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Nobody reads what it has to show.
    pub(crate) fn close_stdout(&mut self) {
        drop(self.child.stdout.take());
    }

    /// Nobody reads what it complains of.
    pub(crate) fn close_stderr(&mut self) {
        drop(self.child.stderr.take());
    }

    pub(crate) fn finish(self) -> Ended {
        let output = self.child.wait_with_output().unwrap();
        self.watchdog.call_off();
        Ended {
            name: self.name,
            status: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
            took: self.begun.elapsed(),
        }
    }
}

/// How an example ended.
#[derive(Debug)]
pub(crate) struct Ended {
    name: &'static str,
    pub(crate) status: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) took: Duration,
}

impl Ended {
    /// What was shown, with success and nothing to complain about.
    #[track_caller]
    pub(crate) fn well(self) -> String {
        assert_eq!(self.status, Some(0), "{self:?}");
        assert_eq!(self.stderr, "");
        self.stdout
    }

    #[track_caller]
    pub(crate) fn json(self) -> Value {
        let text = self.well();
        serde_json::from_str(&text).unwrap_or_else(|why| panic!("{why}: {text}"))
    }

    /// Failure with status 1, nothing shown, said in one line which has all these words.
    #[track_caller]
    pub(crate) fn failed_with(self, words: &[&str]) {
        self.achieved_nothing(1, words);
    }

    /// Nothing shown, and the reason said in one line which has all these words.
    #[track_caller]
    pub(crate) fn achieved_nothing(self, status: i32, words: &[&str]) {
        assert_eq!(self.stdout, "", "{self:?}");
        self.ended_with(status, words);
    }

    /// Whatever was shown, the reason is said in one line which has all these words.
    #[track_caller]
    pub(crate) fn ended_with(self, status: i32, words: &[&str]) {
        assert_eq!(self.status, Some(status), "{self:?}");
        assert_eq!(self.stderr.lines().count(), 1, "{self:?}");
        let title = format!("{}: ", self.name);
        assert!(self.stderr.starts_with(&title), "{self:?}");
        for word in words {
            assert!(self.stderr.contains(word), "no {word:?} in {self:?}");
        }
    }
}
