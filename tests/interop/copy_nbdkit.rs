//! What nbdkit serves in its several ways, copied to a file: other handshakes, TLS, and plugins
//! whose data lies here and there.

use std::fs::File;
use std::path::Path;

use crate::content::assert_same;
use crate::info::certificates;
use crate::process::{peer, run};
use crate::programs::copy_command;
use crate::server::Server;

const MIB: u64 = 1 << 20;

/// Copies it, and has nbdcopy copy it, too.
#[track_caller]
fn assert_copied_as_by_nbdcopy(server: &Server) {
    let directory = tempfile::tempdir().unwrap();
    let (ours, theirs) = (
        directory.path().join("ours"),
        directory.path().join("theirs"),
    );
    run(&mut copy_command(&server.uri(), ours.to_str().unwrap())).ok();
    run(peer("nbdcopy").arg(server.uri()).arg(&theirs)).ok();
    assert_same(&ours, &theirs);
}

fn size(path: &Path) -> u64 {
    File::open(path).unwrap().metadata().unwrap().len()
}

#[test]
fn data_here_and_there_is_copied() {
    let data = "1 @0x100000 2*70000 @0x3fffff 3";
    let server = Server::nbdkit(&["data", data, "size=16M"]);
    assert_copied_as_by_nbdcopy(&server);
}

#[test]
fn random_data_with_holes_is_copied() {
    let server = Server::nbdkit(&["sparse-random", "64M", "seed=7", "percent=10"]);
    assert_copied_as_by_nbdcopy(&server);
}

#[test]
fn an_oldstyle_export_is_copied() {
    let server = Server::nbdkit(&["-o", "sparse-random", "16M", "seed=7", "percent=10"]);
    assert_copied_as_by_nbdcopy(&server);
    // It can be had in one way only.
    let directory = tempfile::tempdir().unwrap();
    let after = directory.path().join("after");
    let with_tls = server.uri().replace("nbd+unix", "nbds+unix") + "&tls-verify-peer=0";
    for uri in [server.uri_of("disk"), with_tls] {
        let refused = run(&mut copy_command(&uri, after.to_str().unwrap()));
        assert_eq!(refused.status.code(), Some(1), "{refused}");
        assert!(refused.stderr.contains("name none"), "{refused}");
    }
}

#[test]
fn an_export_that_wants_tls_is_copied_over_several_connections() {
    let directory = tempfile::tempdir().unwrap();
    certificates(directory.path());
    let path = directory.path().display();
    let tls = format!("--tls-certificates={path}");
    let seed = ["sparse-random", "16M", "seed=7", "percent=30"];
    let options = ["--tls=require", "--tls-verify-peer", &tls];
    let server = Server::nbdkit(&[&options[..], &seed].concat());
    let parameters = format!("&tls-certificates={path}&tls-hostname=disks.example");
    let plain = server.uri();
    let uri = format!("{}{parameters}", plain.replace("nbd+unix", "nbds+unix"));
    let after = directory.path().join("after");
    let after = after.to_str().unwrap();
    run(copy_command(&uri, after).arg("--connections=4")).ok();
    let same = Server::nbdkit(&seed);
    let expected = directory.path().join("expected");
    run(peer("nbdcopy").arg(same.uri()).arg(&expected)).ok();
    assert_same(Path::new(after), &expected);
    assert_eq!(size(&expected), 16 * MIB);
    let refused = run(&mut copy_command(&plain, after));
    assert!(!refused.status.success(), "{refused}");
}
