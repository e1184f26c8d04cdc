//! What the tests of the example `check` need: the program itself. The servers that it is set on
//! are those of the tests of `serve` and `copy`.

#![allow(dead_code, reason = "each test program uses its part")]

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, ChildStdout};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::program_support::{Watchdog, command};

/// The program, running under a watchdog.
pub(crate) struct Running {
    child: Child,
    stdout: BufReader<ChildStdout>,
    watchdog: Watchdog,
}

pub(crate) fn start<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Running {
    let mut child = command("check", arguments).spawn().unwrap();
    Running {
        stdout: BufReader::new(child.stdout.take().unwrap()),
        watchdog: Watchdog::of(&child),
        child,
    }
}

pub(crate) fn check<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Ended {
    start(arguments).finish()
}

impl Running {
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits until it has said this.
    pub(crate) fn wait_for(&mut self, words: &str) -> String {
        loop {
            let mut line = String::new();
            assert_ne!(self.stdout.read_line(&mut line).unwrap(), 0, "no {words:?}");
            if line.contains(words) {
                return line;
            }
        }
    }

    pub(crate) fn finish(mut self) -> Ended {
        let mut stdout = String::new();
        self.stdout.read_to_string(&mut stdout).unwrap();
        let output = self.child.wait_with_output().unwrap();
        self.watchdog.call_off();
        Ended {
            status: output.status.code(),
            stdout,
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// How the program ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    /// The promise held, and there is nothing to complain about.
    #[track_caller]
    pub(crate) fn held(self) -> Self {
        assert_eq!(self.status, Some(0), "{self:?}");
        assert!(self.stdout.contains("HELD: "), "{self:?}");
        assert_eq!(self.stderr, "");
        self
    }

    /// It was broken, and all these words say how.
    #[track_caller]
    pub(crate) fn broken(self, words: &[&str]) -> Self {
        assert_eq!(self.status, Some(1), "{self:?}");
        assert!(self.stdout.contains("BROKEN: "), "{self:?}");
        assert_eq!(self.stderr, "");
        for word in words {
            assert!(self.stdout.contains(word), "no {word:?} in {self:?}");
        }
        self
    }

    /// There is no verdict, and one line says why in these words.
    #[track_caller]
    pub(crate) fn no_verdict(self, words: &[&str]) -> Self {
        assert_eq!(self.status, Some(2), "{self:?}");
        assert!(!self.stdout.contains("HELD"), "{self:?}");
        assert!(!self.stdout.contains("BROKEN"), "{self:?}");
        assert_eq!(self.stderr.lines().count(), 1, "{self:?}");
        assert!(self.stderr.starts_with("check: "), "{self:?}");
        assert!(!self.stderr.contains("panicked"), "{self:?}");
        for word in words {
            assert!(self.stderr.contains(word), "no {word:?} in {self:?}");
        }
        self
    }
}

pub(crate) fn json(path: &Path) -> Value {
    let text = fs::read_to_string(path).unwrap();
    serde_json::from_str(&text).unwrap()
}

pub(crate) fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}
