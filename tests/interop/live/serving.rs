//! `serve` with its log.

use std::fs;
use std::process::Command;

use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};
use tempfile::TempDir;

use crate::process::{Process, SOON};
use crate::programs::example;
use crate::raw::Raw;
use crate::server::Endpoint;

/// A running `serve` over a file; dropped, it is ended.
pub(super) struct Serving {
    process: Process,
    endpoint: Endpoint,
    // Dropped after the process that uses it.
    dir: TempDir,
}

impl Serving {
    /// Starts it on a file with these contents, with arguments of the caller's.
    pub(super) fn start(contents: &[u8], arguments: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("image"), contents).unwrap();
        let mut command = Command::new("sh");
        // One stream for all it says. A write beyond the limit on the size of files is to fail,
        // and not to end the process.
        command.args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\" 2>&1"]);
        command.arg(example("serve"));
        command.arg("--unix").arg(dir.path().join("socket"));
        command.arg("--log").args(arguments);
        command.arg("file").arg(dir.path().join("image"));
        let process = Process::start(&mut command);
        process.wait_for_output(|text| text.contains("stop it with").then_some(()));
        Self {
            process,
            endpoint: Endpoint::Unix(dir.path().join("socket")),
            dir,
        }
    }

    pub(super) fn connect(&self, export: &str) -> Raw {
        Raw::connect(&self.endpoint, export)
    }

    /// What is in the file now.
    pub(super) fn stored(&self) -> Vec<u8> {
        fs::read(self.dir.path().join("image")).unwrap()
    }

    /// Waits until these words are in the log.
    pub(super) fn wait_for(&self, words: &str) {
        let said = |text: &str| text.contains(words).then_some(());
        self.process.wait_for_output(said);
    }

    /// Waits until a connection has made a request of a kind.
    pub(super) fn wait_for_request(&self, connection: usize, kind: &str) {
        self.process.wait_for_output(|text| {
            let complete = &text[..text.rfind('\n')?];
            let begun = complete.lines().filter_map(Line::parse);
            let mut of_this = begun.filter(|line| match line {
                Line::Request(id, request) => *id == connection && request.contains(kind),
                _ => false,
            });
            of_this.next().map(|_| ())
        });
    }

    /// Lets writes to the file fail from this offset on, or no more.
    pub(super) fn limit_file(&self, bytes: Option<u64>) {
        let pid = Pid::from_raw(i32::try_from(self.process.pid()).unwrap());
        let limit = Rlimit {
            current: bytes,
            maximum: None,
        };
        prlimit(pid, Resource::Fsize, limit).unwrap();
    }

    /// Ends it, and tells all that it said.
    pub(super) fn finish(self) -> (String, TempDir) {
        self.process.signal(Signal::TERM);
        (self.process.finish(SOON).stdout, self.dir)
    }
}

/// A line of the log that counts here.
#[derive(Debug, PartialEq)]
pub(super) enum Line<'l> {
    /// A connection's request is about to be begun.
    Request(usize, &'l str),
    /// A flush of a connection's backend handle begins.
    FlushBegins(usize),
    FlushEnded(usize),
}

impl<'l> Line<'l> {
    pub(super) fn parse(line: &'l str) -> Option<Self> {
        let (_seconds, said) = line.trim_start().split_once(' ')?;
        if let Some(rest) = said.strip_prefix("backend flush on ") {
            let (id, what) = rest.split_once(' ')?;
            let id = id.parse().ok()?;
            return match what {
                "begins" => Some(Self::FlushBegins(id)),
                _ if what.starts_with("ended") => Some(Self::FlushEnded(id)),
                _ => None,
            };
        }
        let (id, request) = said.strip_prefix("connection ")?.split_once(": ")?;
        let begun = request.starts_with("Request {") && !request.contains("} ended: ");
        begun.then_some(Self::Request(id.parse().ok()?, request))
    }
}
