//! `copy` between files and servers: equal bytes, or an error that says what is wrong.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use tempfile::TempDir;

use crate::content::{assert_same, random_file};
use crate::process::{Finished, LONG, Process, peer, run};
use crate::programs::copy_command;
use crate::server::{NbdServer, Serve, Server, Storage};
use crate::settings::{seed, whole_machine};

const SIZE: u64 = 16 << 20;

fn copy(source: &str, destination: &str) -> Finished {
    run(&mut copy_command(source, destination))
}

/// A random file, and a place for its copy.
struct Files {
    _dir: TempDir,
    before: PathBuf,
    after: PathBuf,
}

impl Files {
    fn new(size: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (before, after) = (dir.path().join("before"), dir.path().join("after"));
        random_file(&before, size, seed());
        Self {
            _dir: dir,
            before,
            after,
        }
    }

    #[track_caller]
    fn assert_copied(&self) {
        assert_same(&self.before, &self.after);
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A qcow2 image with the content of a raw one.
fn make_qcow2(raw: &Path, qcow2: &Path) {
    let mut command = peer("qemu-img");
    run(command
        .args(["convert", "-f", "raw", "-O", "qcow2"])
        .arg(raw)
        .arg(qcow2))
    .ok();
}

/// A failure as a user wants it: status 1, a message, and no trace of a panic.
#[track_caller]
pub(crate) fn assert_fails_well(finished: &Finished) {
    assert_eq!(finished.status.code(), Some(1), "{finished}");
    assert!(!finished.stderr.trim().is_empty(), "no message: {finished}");
    for word in ["panicked", "RUST_BACKTRACE", "unwrap"] {
        assert!(!finished.stderr.contains(word), "{finished}");
    }
}

over_every_storage! {
    a_file_goes_to_serve_and_back,
    an_odd_size_goes_to_serve_and_back,
    a_server_killed_midway_is_an_error,
}

fn to_serve_and_back(storage: Storage, size: u64) {
    let _busy = whole_machine();
    let files = Files::new(size);
    let server = Serve::over(storage).size(size).start();
    copy(text(&files.before), &server.uri()).ok();
    if storage != Storage::Memory {
        assert_same(&files.before, server.image());
    }
    copy(&server.uri(), text(&files.after)).ok();
    files.assert_copied();
}

fn a_file_goes_to_serve_and_back(storage: Storage) {
    to_serve_and_back(storage, SIZE);
}

fn an_odd_size_goes_to_serve_and_back(storage: Storage) {
    to_serve_and_back(storage, (1 << 20) + 513);
}

fn a_server_killed_midway_is_an_error(storage: Storage) {
    let files = Files::new(4096);
    let mut server = Serve::over(storage).size(SIZE).delay("read", 3000).start();
    // Data, lest a copier that asks where the holes are has nothing to read.
    let mut client = server.connect();
    client.write(0, &[1; 1 << 20]).unwrap();
    client.flush().unwrap();
    let running = Process::start(&mut copy_command(&server.uri(), text(&files.after)));
    // No read is answered so soon.
    thread::sleep(Duration::from_millis(700));
    server.kill();
    assert_fails_well(&running.finish(LONG));
}

#[test]
fn a_file_is_copied_to_a_file() {
    let files = Files::new(SIZE);
    copy(text(&files.before), text(&files.after)).ok();
    files.assert_copied();
}

#[test]
fn a_unix_socket_is_copied_from_and_to() {
    let files = Files::new(SIZE);
    let server = Serve::over(Storage::Memory)
        .size(SIZE)
        .on_unix_socket()
        .start();
    copy(text(&files.before), &server.uri()).ok();
    copy(&server.uri(), text(&files.after)).ok();
    files.assert_copied();
}

#[test]
fn one_server_is_copied_to_another() {
    let files = Files::new(SIZE);
    let source = Serve::over(Storage::File).image(&files.before).start();
    let target = Serve::over(Storage::Memory).size(SIZE).start();
    copy(&source.uri(), &target.uri()).ok();
    copy(&target.uri(), text(&files.after)).ok();
    files.assert_copied();
}

#[test]
fn nbdkit_is_copied_to_a_file() {
    let files = Files::new(SIZE);
    let server = Server::nbdkit(&["file", text(&files.before)]);
    copy(&server.uri(), text(&files.after)).ok();
    files.assert_copied();
}

#[test]
fn nbdkit_with_simple_replies_is_copied_to_a_file() {
    let files = Files::new(SIZE);
    let server = Server::nbdkit(&["--no-sr", "file", text(&files.before)]);
    copy(&server.uri(), text(&files.after)).ok();
    files.assert_copied();
}

#[test]
fn nbdkit_without_fixed_newstyle_is_copied_to_a_file() {
    let files = Files::new(SIZE);
    let server = Server::nbdkit(&["--mask-handshake=0", "file", text(&files.before)]);
    copy(&server.uri(), text(&files.after)).ok();
    files.assert_copied();
}

#[test]
fn a_file_is_copied_to_nbdkit() {
    let files = Files::new(SIZE);
    std::fs::File::create(&files.after)
        .unwrap()
        .set_len(SIZE)
        .unwrap();
    let server = Server::nbdkit(&["file", text(&files.after)]);
    copy(text(&files.before), &server.uri()).ok();
    files.assert_copied();
}

#[test]
fn qemu_nbd_serving_qcow2_is_copied_to_a_file() {
    let files = Files::new(SIZE);
    let qcow2 = files.before.with_extension("qcow2");
    make_qcow2(&files.before, &qcow2);
    let server = Server::qemu_nbd("qcow2", &qcow2);
    copy(&server.uri(), text(&files.after)).ok();
    files.assert_copied();
}

#[test]
fn a_file_is_copied_to_qemu_nbd() {
    let files = Files::new(SIZE);
    std::fs::File::create(&files.after)
        .unwrap()
        .set_len(SIZE)
        .unwrap();
    let server = Server::qemu_nbd("raw", &files.after);
    copy(text(&files.before), &server.uri()).ok();
    files.assert_copied();
}

#[test]
fn nbd_server_is_copied_to_a_file() {
    let files = Files::new(SIZE);
    let server = NbdServer::start(&files.before);
    copy(&server.uri(), text(&files.after)).ok();
    files.assert_copied();
}

#[test]
fn a_server_that_is_not_there_is_an_error() {
    let files = Files::new(4096);
    // A port that was free a moment ago.
    let gone = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    assert_fails_well(&copy(&format!("nbd://{gone}"), text(&files.after)));
    let socket = files.after.with_extension("socket");
    let uri = format!("nbd+unix:///?socket={}", socket.display());
    assert_fails_well(&copy(&uri, text(&files.after)));
    assert_fails_well(&copy(text(&files.before), &uri));
}

#[test]
fn an_export_that_is_not_there_is_an_error_that_names_it() {
    let files = Files::new(4096);
    let server = Serve::over(Storage::Memory).export("present").start();
    let finished = copy(&server.uri_of("absent"), text(&files.after));
    assert_fails_well(&finished);
    assert!(finished.stderr.contains("absent"), "{finished}");
}

#[test]
fn a_file_that_is_not_there_is_an_error() {
    let files = Files::new(4096);
    let server = Serve::over(Storage::Memory).size(4096).start();
    let absent = files.before.with_extension("absent");
    let finished = copy(text(&absent), &server.uri());
    assert_fails_well(&finished);
    assert!(finished.stderr.contains("before.absent"), "{finished}");
}

#[test]
fn a_target_that_is_too_small_is_an_error() {
    let files = Files::new(SIZE);
    let server = Serve::over(Storage::Memory).size(SIZE - 512).start();
    assert_fails_well(&copy(text(&files.before), &server.uri()));
}

#[test]
fn a_target_that_is_read_only_is_an_error() {
    let files = Files::new(SIZE);
    let server = Serve::over(Storage::Memory).size(SIZE).read_only().start();
    assert_fails_well(&copy(text(&files.before), &server.uri()));
}

#[test]
fn a_target_that_fails_a_write_is_an_error() {
    let files = Files::new(SIZE);
    let server = Server::nbdkit(&[
        "--filter=error",
        "memory",
        "16M",
        "error-pwrite=EIO",
        "error-pwrite-rate=5%",
    ]);
    assert_fails_well(&copy(text(&files.before), &server.uri()));
}

#[test]
fn a_source_that_fails_a_read_is_an_error() {
    let files = Files::new(SIZE);
    let server = Server::nbdkit(&[
        "--filter=error",
        "file",
        text(&files.before),
        "error-pread=EIO",
        "error-pread-rate=20%",
    ]);
    assert_fails_well(&copy(&server.uri(), text(&files.after)));
}
