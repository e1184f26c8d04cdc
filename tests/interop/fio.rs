//! fio: four connections that write at random, deeply queued, and verify what they wrote.

use crate::process::{Finished, LONG, Process, peer};
use crate::server::{Serve, Server, Storage};
use crate::settings::{fio_seconds, whole_machine};

fn verified_load(server: &Server, seconds: u64) -> Finished {
    let mut command = peer("fio");
    command.current_dir(server.dir());
    command.args([
        "--name=verified",
        "--ioengine=nbd",
        "--rw=randrw",
        "--numjobs=4",
    ]);
    command.args([
        "--bsrange=512-64k",
        "--bs_unaligned=0",
        "--iodepth=16",
        "--thread",
    ]);
    // Each job has a quarter, else they would verify each other's writes.
    command.args(["--size=16m", "--offset_increment=16m", "--group_reporting"]);
    command.args([
        "--verify=crc32c",
        "--verify_fatal=1",
        "--verify_backlog=128",
        "--fsync=64",
    ]);
    command.args([
        "--time_based",
        &format!("--runtime={seconds}"),
        "--output-format=terse",
    ]);
    command.arg(format!("--uri={}", server.uri()));
    let patience = LONG + std::time::Duration::from_secs(seconds);
    Process::start(&mut command).finish(patience)
}

over_every_storage! { four_connections_verify_what_they_wrote }

fn four_connections_verify_what_they_wrote(storage: Storage) {
    let _busy = whole_machine();
    let server = Serve::over(storage).size(64 << 20).start();
    verified_load(&server, fio_seconds()).ok();
}

/// Shows that the check above can fail: nbdkit's null plugin forgets every write.
#[test]
fn a_server_that_forgets_writes_is_noticed() {
    let _busy = whole_machine();
    let server = Server::nbdkit(&["null", "size=64M"]);
    let finished = verified_load(&server, 2);
    assert!(!finished.status.success(), "{finished}");
}
