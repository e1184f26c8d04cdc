//! `copy` between every two of all kinds of ends: files, `serve`, and everybody's servers; with one
//! connection and with several; and what it says of what is durable when a server dies.
//!
//! `INTEROP_COPY_MIB` is the size of the images; a tenth of them is data.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::content::{Random, sha256};
use crate::copy::assert_fails_well;
use crate::process::{Finished, LONG, Process, peer, run};
use crate::programs::copy_command;
use crate::server::{NbdServer, Serve, Server, Storage};
use crate::settings::{copy_is_nbdcopy, copy_mib, seed, whole_machine};

/// What can be copied from and to.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    File,
    Serve,
    Nbdkit,
    QemuRaw,
    QemuQcow2,
    NbdServer,
}

const KINDS: [Kind; 6] = [
    Kind::File,
    Kind::Serve,
    Kind::Nbdkit,
    Kind::QemuRaw,
    Kind::QemuQcow2,
    Kind::NbdServer,
];

/// One end, over an image.
struct End {
    kind: Kind,
    image: PathBuf,
    server: Option<AnyServer>,
}

enum AnyServer {
    One(Server),
    Nbd(NbdServer),
}

impl End {
    /// Serves an image that exists, in the format of the kind.
    fn start(kind: Kind, image: PathBuf) -> Self {
        let server = match kind {
            Kind::File => None,
            Kind::Serve => Some(AnyServer::One(
                Serve::over(Storage::File)
                    .image(&image)
                    .on_unix_socket()
                    .start(),
            )),
            Kind::Nbdkit => Some(AnyServer::One(Server::nbdkit(&["file", text(&image)]))),
            Kind::QemuRaw => Some(AnyServer::One(Server::qemu_nbd("raw", &image))),
            Kind::QemuQcow2 => Some(AnyServer::One(Server::qemu_nbd("qcow2", &image))),
            Kind::NbdServer => Some(AnyServer::Nbd(NbdServer::start(&image))),
        };
        Self {
            kind,
            image,
            server,
        }
    }

    fn name(&self) -> String {
        match &self.server {
            Some(AnyServer::One(server)) => server.uri(),
            Some(AnyServer::Nbd(server)) => server.uri(),
            None => text(&self.image).to_owned(),
        }
    }

    /// Stops the server, and hashes what it left behind.
    fn content(mut self, dir: &Path) -> [u8; 32] {
        if let Some(AnyServer::One(server)) = self.server.take()
            && self.kind == Kind::QemuQcow2
        {
            // It owns the file until its end.
            server.terminate();
            server.exit_status();
        }
        if self.kind != Kind::QemuQcow2 {
            return sha256(&self.image);
        }
        let raw = dir.join("raw");
        let convert = ["convert", "-f", "qcow2", "-O", "raw"];
        run(peer("qemu-img").args(convert).arg(&self.image).arg(&raw)).ok();
        let hash = sha256(&raw);
        fs::remove_file(raw).unwrap();
        hash
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn size() -> u64 {
    copy_mib() << 20
}

/// A sparse image, a tenth of which is data: pieces of all sizes, on page boundaries and off them.
fn sparse_image(path: &Path) {
    let mut random = Random(seed());
    let file = File::create(path).unwrap();
    file.set_len(size()).unwrap();
    let mut left = size() / 10;
    while left > 0 {
        let length = (1 + random.below(1 << 20)).min(left);
        let offset = random.below(size() - length);
        let bytes = random.bytes(usize::try_from(length).unwrap());
        file.write_all_at(&bytes, offset).unwrap();
        left -= length;
    }
}

fn to_qcow2(raw: &Path, qcow2: &Path) {
    let convert = ["convert", "-f", "raw", "-O", "qcow2"];
    run(peer("qemu-img").args(convert).arg(raw).arg(qcow2)).ok();
}

/// An image in memory if that is possible: what is tested is not the disk.
fn directory() -> TempDir {
    let memory = Path::new("/dev/shm");
    match tempfile::tempdir_in(memory) {
        Ok(directory) => directory,
        Err(_) => tempfile::tempdir().unwrap(),
    }
}

/// A source of this kind with the content of an image.
fn source(kind: Kind, image: &Path, dir: &Path) -> End {
    if kind != Kind::QemuQcow2 {
        return End::start(kind, image.to_owned());
    }
    let qcow2 = dir.join("source.qcow2");
    to_qcow2(image, &qcow2);
    End::start(kind, qcow2)
}

/// A destination of this kind with something in it that has to be overwritten.
fn destination(kind: Kind, dir: &Path) -> End {
    let raw = dir.join("destination");
    let file = File::create(&raw).unwrap();
    file.set_len(size()).unwrap();
    for at in (0..size()).step_by(1 << 20) {
        file.write_all_at(&[0xee; 10_000], at).unwrap();
    }
    if kind != Kind::QemuQcow2 {
        return End::start(kind, raw);
    }
    let qcow2 = dir.join("destination.qcow2");
    to_qcow2(&raw, &qcow2);
    End::start(kind, qcow2)
}

fn copy(source: &End, destination: &End, options: &[&str]) -> Finished {
    let mut command = copy_command(&source.name(), &destination.name());
    run(command.args(options))
}

/// Copies from one kind to all.
fn copy_to_all(from: Kind) {
    let _busy = whole_machine();
    let dir = directory();
    let image = dir.path().join("image");
    sparse_image(&image);
    let expected = sha256(&image);
    let source = source(from, &image, dir.path());
    for (number, to) in KINDS.into_iter().enumerate() {
        // From one to eight, and not the same for every pair.
        let connections = [1, 2, 3, 4, 6, 8][(number + from as usize) % 6];
        let destination = destination(to, dir.path());
        let option = format!("--connections={connections}");
        let begun = Instant::now();
        copy(&source, &destination, &[&option]).ok();
        eprintln!(
            "{from:?} to {to:?} with {connections}: {:?}",
            begun.elapsed()
        );
        let found = destination.content(dir.path());
        assert!(found == expected, "{from:?} to {to:?} with {connections}");
    }
}

#[test]
fn a_file_is_copied_to_everything() {
    copy_to_all(Kind::File);
}

#[test]
fn serve_is_copied_to_everything() {
    copy_to_all(Kind::Serve);
}

#[test]
fn nbdkit_is_copied_to_everything() {
    copy_to_all(Kind::Nbdkit);
}

#[test]
fn qemu_nbd_over_raw_is_copied_to_everything() {
    copy_to_all(Kind::QemuRaw);
}

#[test]
fn qemu_nbd_over_qcow2_is_copied_to_everything() {
    copy_to_all(Kind::QemuQcow2);
}

#[test]
fn nbd_server_is_copied_to_everything() {
    copy_to_all(Kind::NbdServer);
}

// --- multi-conn, and without it ---

/// Copies to `serve` over one cache per connection, which loses what is not flushed where it was
/// written.
fn copy_to_caches(mode: &'static str, options: &[&str]) {
    let dir = directory();
    let image = dir.path().join("image");
    sparse_image(&image);
    let mut server = Serve::over(Storage::Cached)
        .size(size())
        .multi_conn(mode)
        .start();
    run(copy_command(text(&image), &server.uri()).args(options)).ok();
    server.kill();
    let same = sha256(&image) == sha256(server.image());
    assert!(same, "lost with the caches: {mode} {options:?}");
}

#[test]
fn what_one_last_flush_covers_survives_the_caches_of_all_connections() {
    copy_to_caches("emulate", &["--connections=4"]);
}

#[test]
fn without_multi_conn_one_connection_is_used_and_loses_nothing() {
    copy_to_caches("disable", &["--connections=4"]);
}

#[test]
fn who_insists_without_multi_conn_loses_nothing_as_every_connection_is_flushed() {
    if copy_is_nbdcopy() {
        return;
    }
    copy_to_caches("disable", &["--connections=4", "--caution=insist"]);
}

// --- servers that die ---

/// The ranges that are said to be on permanent storage.
fn claimed(message: &str) -> Vec<(u64, u64)> {
    let Some((_, list)) = message.split_once("are on permanent storage: ") else {
        return Vec::new();
    };
    let list = list.split(" and ").next().unwrap();
    let range = |words: &str| {
        let (start, end) = words.trim().split_once("..").unwrap();
        (start.parse().unwrap(), end.parse().unwrap())
    };
    list.split(", ").map(range).collect()
}

/// Waits until something was written to the file, which only a flush does.
fn wait_for_data(path: &Path, before: u64) {
    use std::os::unix::fs::MetadataExt;

    let deadline = Instant::now() + LONG;
    while fs::metadata(path).unwrap().blocks() * 512 < before + (1 << 20) {
        assert!(Instant::now() < deadline, "nothing was ever written");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn nothing_that_is_said_to_be_durable_is_missing_when_the_server_is_killed() {
    if copy_is_nbdcopy() {
        return;
    }
    for (mode, caution) in [("emulate", "strict"), ("disable", "insist")] {
        for round in 0..4 {
            let dir = directory();
            let image = dir.path().join("image");
            // No zeroes: whatever is missing is seen.
            let mut random = Random(seed() + round);
            let bytes = random.bytes(16 << 20);
            fs::write(&image, &bytes).unwrap();
            let mut server = Serve::over(Storage::Cached)
                .size(bytes.len() as u64)
                .multi_conn(mode)
                .delay("write", 20)
                .start();
            let mut command = copy_command(text(&image), &server.uri());
            let caution = format!("--caution={caution}");
            // Slow enough to be caught in the middle.
            let options = ["--requests=1", "--request-size=64K", "--flush-every=1M"];
            command.args(options).args(["--connections=4", &caution]);
            let running = Process::start(&mut command);
            wait_for_data(server.image(), round << 20);
            server.kill();
            let finished = running.finish(LONG);
            assert_fails_well(&finished);
            let found = fs::read(server.image()).unwrap();
            let claimed = claimed(&finished.stderr);
            eprintln!("round {round}: {}", finished.stderr);
            for (start, end) in claimed {
                let range = usize::try_from(start).unwrap()..usize::try_from(end).unwrap();
                assert!(
                    found[range.clone()] == bytes[range],
                    "{start}..{end}: {finished}"
                );
            }
        }
    }
}

#[test]
fn a_source_that_is_killed_ends_the_copy_and_what_was_copied_is_durable() {
    let dir = directory();
    let image = dir.path().join("image");
    let bytes = Random(seed()).bytes(16 << 20);
    fs::write(&image, &bytes).unwrap();
    let mut server = Serve::over(Storage::File)
        .image(&image)
        .delay("read", 10)
        .start();
    let path = dir.path().join("copy");
    let mut command = copy_command(&server.uri(), text(&path));
    if !copy_is_nbdcopy() {
        command.args(["--requests=1", "--request-size=64K", "--connections=2"]);
    }
    let running = Process::start(&mut command);
    while !path.exists() {
        std::thread::sleep(Duration::from_millis(1));
    }
    wait_for_data(&path, 0);
    server.kill();
    let finished = running.finish(LONG);
    assert_fails_well(&finished);
    let found = fs::read(&path).unwrap();
    for (start, end) in claimed(&finished.stderr) {
        let range = usize::try_from(start).unwrap()..usize::try_from(end).unwrap();
        assert!(
            found[range.clone()] == bytes[range],
            "{start}..{end}: {finished}"
        );
    }
}
