//! Servers that can be killed, and started again where they were.

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::process::{Process, SOON, peer};
use crate::programs::example;

/// Cells of `check` are 64 KiB here.
const SIZE: u64 = 16 << 20;

/// A server on a unix socket, over an image in the same directory.
pub(super) struct Peer {
    process: Process,
    start: Box<dyn Fn() -> Command + Send>,
    socket: PathBuf,
    uri: String,
    // Dropped after the process that uses it.
    _dir: TempDir,
}

impl Peer {
    /// Starts what the command says, which is given the socket and the image.
    fn start(command: impl Fn(&Path, &Path) -> Command + Send + 'static) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (socket, image) = (dir.path().join("socket"), dir.path().join("image"));
        File::create(&image).unwrap().set_len(SIZE).unwrap();
        let uri = format!("nbd+unix:///?socket={}", socket.display());
        let start = {
            let socket = socket.clone();
            Box::new(move || command(&socket, &image))
        };
        let process = Process::start(&mut start());
        let mut peer = Self {
            process,
            start,
            socket,
            uri,
            _dir: dir,
        };
        peer.wait_until_it_serves();
        peer
    }

    /// `serve` with options, over a file.
    pub(super) fn serve_over_image(options: &[&str]) -> Self {
        let options = owned(options);
        Self::start(move |socket, image| {
            let mut command = Command::new(example("serve"));
            command.arg("--unix").arg(socket).args(&options);
            command.arg("file").arg(image);
            command
        })
    }

    /// `serve` with options, over memory.
    pub(super) fn serve_over_memory(options: &[&str]) -> Self {
        let options = owned(options);
        Self::start(move |socket, _| {
            let mut command = Command::new(example("serve"));
            command.arg("--unix").arg(socket).args(&options);
            command.args(["--size", &SIZE.to_string(), "memory"]);
            command
        })
    }

    /// nbdkit with filters and a plugin, which is told of the image, and more parameters.
    pub(super) fn nbdkit_over_image(arguments: &[&str], parameters: &[&str]) -> Self {
        let (arguments, parameters) = (owned(arguments), owned(parameters));
        Self::start(move |socket, image| {
            let mut command = nbdkit(socket);
            command.args(&arguments);
            command.arg(format!("image={}", image.display()));
            command.args(&parameters);
            command
        })
    }

    /// nbdkit with its own plugin for files.
    pub(super) fn nbdkit_file() -> Self {
        Self::start(|socket, image| {
            let mut command = nbdkit(socket);
            command.arg("file").arg(image);
            command
        })
    }

    /// nbdkit with its own plugin for memory.
    pub(super) fn nbdkit_memory() -> Self {
        Self::start(|socket, _| {
            let mut command = nbdkit(socket);
            command.args(["memory", &SIZE.to_string()]);
            command
        })
    }

    /// qemu-nbd for many clients at a time.
    pub(super) fn qemu_nbd() -> Self {
        Self::start(|socket, image| {
            let mut command = peer("qemu-nbd");
            command.args(["--persistent", "--shared=16", "--format=raw", "--socket"]);
            command.arg(socket).arg(image);
            command
        })
    }

    pub(super) fn uri(&self) -> &str {
        &self.uri
    }

    /// Ends it, so that it finishes what it writes.
    pub(super) fn end(mut self) {
        self.process.signal(Signal::TERM);
        let deadline = Instant::now() + SOON;
        while self.process.ended().is_none() {
            assert!(Instant::now() < deadline, "the server does not end");
            thread::sleep(Duration::from_millis(3));
        }
    }

    /// Ends it as a power cut would, and starts it again.
    pub(super) fn restart(&mut self) {
        self.process.kill();
        // What is left of it would be taken for the new one.
        let _ = fs::remove_file(&self.socket);
        self.process = Process::start(&mut (self.start)());
        self.wait_until_it_serves();
    }

    /// Between bind and listen, connections are refused.
    fn wait_until_it_serves(&mut self) {
        let deadline = Instant::now() + SOON;
        while UnixStream::connect(&self.socket).is_err() {
            assert!(Instant::now() < deadline, "the server does not listen");
            assert!(self.process.ended().is_none(), "the server ended");
            thread::sleep(Duration::from_millis(3));
        }
    }
}

fn nbdkit(socket: &Path) -> Command {
    let mut command = peer("nbdkit");
    command.arg("-f").arg("-U").arg(socket);
    command
}

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}
