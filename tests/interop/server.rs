//! Servers under test, ours and the others, ready for connections when their constructor returns.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::process::{Process, SOON, peer, run};
use crate::programs::example;
use crate::raw::Raw;
use crate::settings;
use crate::tls_support::Authority;

/// What `serve` keeps the data in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Storage {
    Memory,
    File,
    /// A file under one write-back cache per connection, made consistent by the coordinator.
    Cached,
}

#[derive(Clone, Debug)]
pub(crate) enum Endpoint {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl Endpoint {
    pub(crate) fn uri(&self, export: &str) -> String {
        match self {
            Self::Tcp(address) => format!("nbd://{address}/{export}"),
            Self::Unix(path) => format!("nbd+unix:///{export}?socket={}", path.display()),
        }
    }
}

/// How to start `serve`.
pub(crate) struct Serve {
    storage: Storage,
    size: u64,
    unix: bool,
    exports: Vec<String>,
    read_only: bool,
    multi_conn: Option<&'static str>,
    track_dirty: Option<&'static str>,
    delays: Vec<(&'static str, u64)>,
    image: Option<PathBuf>,
    tls: Vec<String>,
}

impl Serve {
    pub(crate) fn over(storage: Storage) -> Self {
        Self {
            storage,
            size: 64 << 20,
            unix: false,
            exports: Vec::new(),
            read_only: false,
            multi_conn: (storage == Storage::Cached).then_some("emulate"),
            track_dirty: None,
            delays: Vec::new(),
            image: None,
            tls: Vec::new(),
        }
    }

    pub(crate) fn size(mut self, size: u64) -> Self {
        self.size = size;
        self
    }

    pub(crate) fn on_unix_socket(mut self) -> Self {
        self.unix = true;
        self
    }

    pub(crate) fn export(mut self, name: &str) -> Self {
        self.exports.push(name.to_owned());
        self
    }

    pub(crate) fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    pub(crate) fn multi_conn(mut self, mode: &'static str) -> Self {
        self.multi_conn = Some(mode);
        self
    }

    pub(crate) fn track_dirty(mut self, level: &'static str) -> Self {
        self.track_dirty = Some(level);
        self
    }

    /// Holds every `read`, `write` or `flush` back for some milliseconds in the backend.
    pub(crate) fn delay(mut self, what: &'static str, milliseconds: u64) -> Self {
        self.delays.push((what, milliseconds));
        self
    }

    /// Offers TLS to clients with a certificate.
    pub(crate) fn tls(mut self, authority: &Authority) -> Self {
        self.tls.extend(authority.serve(&["--tls-client-ca"]));
        self.tls.push(authority.file("ca-cert.pem"));
        self
    }

    pub(crate) fn tls_required(mut self) -> Self {
        self.tls.push("--tls-required".to_owned());
        self
    }

    /// Serves a file that exists already instead of an empty one of `size`.
    pub(crate) fn image(mut self, path: &Path) -> Self {
        self.image = Some(path.to_owned());
        self
    }

    pub(crate) fn start(self) -> Server {
        let dir = tempfile::tempdir().unwrap();
        let image = match (&self.image, self.storage) {
            (Some(path), _) => Some(path.clone()),
            (None, Storage::Memory) => None,
            (None, Storage::File | Storage::Cached) => {
                let path = dir.path().join("image");
                File::create(&path).unwrap().set_len(self.size).unwrap();
                Some(path)
            }
        };
        if settings::serve_is_nbdkit() {
            let socket = dir.path().join("socket");
            let process = Process::start(&mut self.nbdkit(&socket, image.as_deref()));
            return Server::ready(process, socket, image, dir);
        }
        self.start_serve(dir, image)
    }

    fn start_serve(self, dir: TempDir, image: Option<PathBuf>) -> Server {
        let mut command = Command::new(example("serve"));
        match self.unix {
            true => command.arg("--unix").arg(dir.path().join("socket")),
            false => command.args(["--port", "0"]),
        };
        for name in &self.exports {
            command.args(["--export", name]);
        }
        command.args(&self.tls);
        for (what, milliseconds) in &self.delays {
            command
                .arg(format!("--delay-{what}"))
                .arg(milliseconds.to_string());
        }
        if self.read_only {
            command.arg("--read-only");
        }
        if self.storage == Storage::Cached {
            command.arg("--cache");
        }
        if let Some(mode) = self.multi_conn {
            command.args(["--multi-conn", mode]);
        }
        if let Some(level) = self.track_dirty {
            command.args(["--track-dirty", level]);
        }
        match &image {
            Some(path) => command.arg("file").arg(path),
            None => command
                .arg("--size")
                .arg(self.size.to_string())
                .arg("memory"),
        };
        let process = Process::start(&mut command);
        let unix = self.unix;
        let endpoint = process.wait_for_output(|text| listening_on(text, unix));
        Server {
            process,
            endpoint,
            image,
            dir,
        }
    }

    /// The nearest thing that nbdkit has.
    fn nbdkit(&self, socket: &Path, image: Option<&Path>) -> Command {
        let mut command = nbdkit(socket);
        let mut parameters = Vec::new();
        if self.read_only {
            command.arg("-r");
        }
        if !self.exports.is_empty() {
            command.arg("--filter=exportname");
            parameters.push("exportname-list=explicit".to_owned());
            parameters.extend(self.exports.iter().map(|name| format!("exportname={name}")));
            parameters.push("exportname-strict=true".to_owned());
        }
        if let Some(mode) = self.multi_conn {
            command.arg("--filter=multi-conn");
            parameters.push(format!("multi-conn-mode={mode}"));
            let level = self.track_dirty.iter();
            parameters.extend(level.map(|level| format!("multi-conn-track-dirty={level}")));
        }
        if self.storage == Storage::Cached {
            let plugin = concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/tests/interop/per_connection_cache.py"
            );
            command.args(["python", plugin]);
            parameters.push(format!(
                "image={}",
                image.expect("a cache has a file").display()
            ));
            parameters.extend(self.delays.iter().map(|(what, ms)| format!("{what}={ms}")));
            command.args(parameters);
            return command;
        }
        if !self.delays.is_empty() {
            command.arg("--filter=delay");
            // The filter has no delay for flush.
            let known = self.delays.iter().filter(|(what, _)| *what != "flush");
            parameters.extend(known.map(|(what, ms)| format!("delay-{what}={ms}ms")));
        }
        match image {
            Some(path) => command.arg("file").arg(path),
            None => command.arg("memory").arg(self.size.to_string()),
        };
        command.args(parameters);
        command
    }
}

/// The address in the first line of the wanted family that says `listening on`.
fn listening_on(text: &str, unix: bool) -> Option<Endpoint> {
    // The last line may still be on its way.
    let complete = &text[..text.rfind('\n')?];
    complete.lines().find_map(|line| {
        let address = line
            .split_once("listening on ")?
            .1
            .split_whitespace()
            .next()?;
        match address.strip_prefix("unix:") {
            Some(path) if unix => Some(Endpoint::Unix(PathBuf::from(path))),
            None if !unix => address.parse().ok().map(Endpoint::Tcp),
            _ => None,
        }
    })
}

fn nbdkit(socket: &Path) -> Command {
    let mut command = peer("nbdkit");
    command.arg("-f").arg("-U").arg(socket);
    command
}

/// A running server, ours or another; dropped, it is ended.
pub(crate) struct Server {
    process: Process,
    endpoint: Endpoint,
    image: Option<PathBuf>,
    // Dropped after the process that uses it.
    dir: TempDir,
}

impl Server {
    /// Starts nbdkit with a plugin and its parameters.
    pub(crate) fn nbdkit(arguments: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let process = Process::start(nbdkit(&socket).args(arguments));
        Self::ready(process, socket, None, dir)
    }

    /// Starts qemu-nbd on an image.
    pub(crate) fn qemu_nbd(format: &str, image: &Path) -> Self {
        Self::qemu_nbd_with(&[], format, image)
    }

    /// Starts qemu-nbd on an image, with more options.
    pub(crate) fn qemu_nbd_with(options: &[&str], format: &str, image: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let mut command = peer("qemu-nbd");
        command.args(["--persistent", "--shared=8", "--format", format]);
        command.args(options);
        command.arg("--socket").arg(&socket).arg(image);
        Self::ready(Process::start(&mut command), socket, None, dir)
    }

    fn ready(mut process: Process, socket: PathBuf, image: Option<PathBuf>, dir: TempDir) -> Self {
        let deadline = Instant::now() + SOON;
        while !socket.exists() {
            assert!(Instant::now() < deadline, "the server made no socket");
            assert!(process.ended().is_none(), "the server ended at its start");
            thread::sleep(Duration::from_millis(3));
        }
        // Between bind and listen connections are refused.
        while UnixStream::connect(&socket).is_err() {
            assert!(Instant::now() < deadline, "the server refuses connections");
            thread::sleep(Duration::from_millis(3));
        }
        Self {
            process,
            endpoint: Endpoint::Unix(socket),
            image,
            dir,
        }
    }

    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    pub(crate) fn port(&self) -> u16 {
        match &self.endpoint {
            Endpoint::Tcp(address) => address.port(),
            Endpoint::Unix(path) => panic!("{} has no port", path.display()),
        }
    }

    pub(crate) fn uri(&self) -> String {
        self.endpoint.uri("")
    }

    pub(crate) fn uri_of(&self, export: &str) -> String {
        self.endpoint.uri(export)
    }

    /// A connection to the default export.
    pub(crate) fn connect(&self) -> Raw {
        Raw::connect(&self.endpoint, "")
    }

    /// The file behind the server.
    pub(crate) fn image(&self) -> &Path {
        self.image.as_deref().expect("this server has no file")
    }

    /// A directory that lives as long as the server.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.process.ended().is_none()
    }

    pub(crate) fn terminate(&self) {
        self.process.signal(Signal::TERM);
    }

    pub(crate) fn interrupt(&self) {
        self.process.signal(Signal::INT);
    }

    /// Waits for the end of a server that was asked to end; the directory stays.
    pub(crate) fn exit_status(self) -> (ExitStatus, TempDir) {
        (self.process.finish(SOON).status, self.dir)
    }

    /// The most memory that the server ever had resident, in bytes.
    pub(crate) fn peak_memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.pid())).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .unwrap();
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
        kib << 10
    }

    /// How many files and sockets the server has open.
    pub(crate) fn open_files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.process.pid()))
            .unwrap()
            .count()
    }
}

/// Between bind and listen, connections are refused.
fn wait_until_it_accepts(socket: &Path) {
    let deadline = Instant::now() + SOON;
    while UnixStream::connect(socket).is_err() {
        assert!(Instant::now() < deadline, "the server refuses connections");
        thread::sleep(Duration::from_millis(3));
    }
}

/// nbd-server, which serves more than one client only as a daemon; dropped, it is ended.
pub(crate) struct NbdServer {
    daemon: Pid,
    dir: TempDir,
}

impl NbdServer {
    /// Serves an image as the export `disk`.
    pub(crate) fn start(image: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (socket, config) = (dir.path().join("socket"), dir.path().join("config"));
        let pid_file = dir.path().join("pid");
        let text = format!(
            "[generic]\nallowlist = true\nunixsock = {}\n\
             [disk]\nexportname = {}\nflush = true\nfua = true\n",
            socket.display(),
            image.display()
        );
        fs::write(&config, text).unwrap();
        run(peer("nbd-server")
            .arg("-C")
            .arg(config)
            .arg("-p")
            .arg(&pid_file))
        .ok();
        wait_until_it_accepts(&socket);
        let pid = fs::read_to_string(pid_file).expect("nbd-server writes its process id");
        let daemon = Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
        Self { daemon, dir }
    }

    pub(crate) fn uri(&self) -> String {
        Endpoint::Unix(self.dir.path().join("socket")).uri("disk")
    }
}

impl Drop for NbdServer {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = kill_process(self.daemon, Signal::TERM);
    }
}
