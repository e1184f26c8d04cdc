//! The example `info` says what nbdinfo says, of every server that there is.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use serde_json::Value;

use crate::process::{Finished, peer, run};
use crate::programs::example;
use crate::server::{NbdServer, Serve, Server, Storage};

const MIB: u64 = 1 << 20;

fn info(arguments: &[&str], uri: &str) -> Finished {
    run(Command::new(example("info")).args(arguments).arg(uri))
}

fn nbdinfo(arguments: &[&str], uri: &str) -> Finished {
    run(peer("nbdinfo").args(arguments).arg(uri))
}

#[track_caller]
fn parse(finished: Finished) -> Value {
    let text = finished.ok();
    serde_json::from_str(&text).unwrap_or_else(|why| panic!("{why}: {text}"))
}

/// Everything that nbdinfo says of a server, `info` says, too; but for the URI, which nbdinfo
/// writes in its own way, sizes in words, and how it guesses at contents.
#[track_caller]
fn assert_same_info(mode: &[&str], uri: &str) -> Value {
    assert_same_info_but(&[], mode, uri)
}

#[track_caller]
fn assert_same_info_but(other: &[&str], mode: &[&str], uri: &str) -> Value {
    let ours = parse(info(&[&["--json"], mode].concat(), uri));
    let theirs = parse(nbdinfo(&[&["--json", "--no-content"], mode].concat(), uri));
    for key in ["protocol", "TLS", "structured"] {
        assert_eq!(ours[key], theirs[key], "{key} of {uri}");
    }
    let [our_exports, their_exports] =
        [&ours, &theirs].map(|all| all["exports"].as_array().unwrap());
    assert_eq!(our_exports.len(), their_exports.len(), "{uri}");
    for (our, their) in our_exports.iter().zip(their_exports) {
        let their = their.as_object().unwrap();
        assert!(their.len() > 10, "{their:?}");
        for (key, value) in their {
            let key = key.as_str();
            if !["uri", "export-size-str", "content"].contains(&key) && !other.contains(&key) {
                assert_eq!(&our[key], value, "{key} of {uri}");
            }
        }
    }
    ours
}

/// The same size, by the same words on the command line, and the same answers to `--can`.
#[track_caller]
fn assert_same_answers(uri: &str) {
    let size = ["--size"];
    assert_eq!(info(&size, uri).ok(), nbdinfo(&size, uri).ok());
    for what in [
        "cache",
        "connect",
        "df",
        "fast-zero",
        "flush",
        "fua",
        "multi-conn",
        "read",
        "trim",
        "write",
        "zero",
        "read-only",
        "rotational",
        "tls",
        "structured-reply",
    ] {
        let question = ["--can", what];
        let ours = info(&question, uri);
        // nbdinfo's no is 2.
        let yes = match nbdinfo(&question, uri).status.code() {
            Some(0) => 0,
            Some(2) => 1,
            other => panic!("nbdinfo --can {what} {uri}: {other:?}"),
        };
        assert_eq!(ours.status.code(), Some(yes), "{ours}");
    }
}

/// The same extents; how many there are.
#[track_caller]
fn assert_same_map(context: &str, uri: &str) -> usize {
    let map = format!("--map={context}");
    let arguments = [map.as_str(), "--json"];
    let ours = parse(info(&arguments, uri));
    let theirs = parse(nbdinfo(&arguments, uri));
    assert_eq!(ours, theirs, "{context} of {uri}");
    ours.as_array().unwrap().len()
}

// --- nbdkit ---

#[test]
fn of_nbdkit_in_memory() {
    for options in [&[][..], &["-r"], &["--no-sr"]] {
        let server = Server::nbdkit(&[options, &["memory", "3M"]].concat());
        let uri = server.uri();
        let json = assert_same_info(&[], &uri);
        assert_eq!(json["exports"][0]["export-size"], 3 * MIB);
        assert_same_info(&["--list"], &uri);
        assert_same_answers(&uri);
        if !options.contains(&"--no-sr") {
            assert_eq!(assert_same_map("base:allocation", &uri), 1);
        }
    }
}

#[test]
fn of_nbdkit_with_data_here_and_there() {
    let data = "1 @0x100000 2 @0x3fffff 3";
    let server = Server::nbdkit(&["data", data, "size=64M"]);
    assert_same_info(&[], &server.uri());
    assert!(assert_same_map("base:allocation", &server.uri()) > 3);
    let random = Server::nbdkit(&["sparse-random", "8G", "seed=7", "percent=3"]);
    assert_same_info(&[], &random.uri());
    assert!(assert_same_map("base:allocation", &random.uri()) > 10);
    // As large as an export can be.
    let vast = Server::nbdkit(&["data", data, "size=1T"]);
    assert!(assert_same_map("base:allocation", &vast.uri()) > 3);
}

#[test]
fn of_nbdkit_with_older_handshakes() {
    for options in [
        &["-o"][..],
        &["--mask-handshake=0"],
        &["--mask-handshake=1"],
    ] {
        let server = Server::nbdkit(&[options, &["memory", "1M"]].concat());
        assert_same_info(&[], &server.uri());
        let size = info(&["--size"], &server.uri()).ok();
        assert_eq!(size, "1048576\n", "{options:?}");
    }
    let oldstyle = Server::nbdkit(&["-o", "memory", "1M"]);
    let text = info(&["--list"], &oldstyle.uri()).ok();
    assert!(
        text.starts_with("protocol: oldstyle without TLS, simple replies\n"),
        "{text}"
    );
}

#[test]
fn of_nbdkit_with_block_sizes() {
    let server = Server::nbdkit(&[
        "--filter=blocksize-policy",
        "memory",
        "1M",
        "blocksize-minimum=512",
        "blocksize-preferred=64K",
        "blocksize-maximum=1M",
        "blocksize-error-policy=error",
    ]);
    let json = assert_same_info(&[], &server.uri());
    assert_eq!(json["exports"][0]["block_size_preferred"], 65536);
    assert_same_map("base:allocation", &server.uri());
}

#[test]
fn of_nbdkit_with_more_exports_than_options_that_it_takes() {
    let directory = tempfile::tempdir().unwrap();
    for number in 0..40_u64 {
        let file = File::create(directory.path().join(format!("disk {number:02}"))).unwrap();
        file.set_len((1 + number) * 512).unwrap();
    }
    let dir = format!("dir={}", directory.path().display());
    let server = Server::nbdkit(&["file", &dir]);
    let json = assert_same_info(&["--list"], &server.uri());
    let exports = json["exports"].as_array().unwrap();
    let mut sizes: Vec<_> = exports
        .iter()
        .map(|e| e["export-size"].as_u64().unwrap())
        .collect();
    sizes.sort_unstable();
    assert_eq!(sizes, (1..=40).map(|n| n * 512).collect::<Vec<_>>());
}

/// Certificates for nbdkit, and for the clients of it.
pub(crate) fn certificates(directory: &Path) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let authority = CertifiedIssuer::self_signed(params, key).unwrap();
    let write = |name: &str, text: String| fs::write(directory.join(name), text).unwrap();
    write("ca-cert.pem", authority.pem());
    for (whose, usage) in [
        ("server", ExtendedKeyUsagePurpose::ServerAuth),
        ("client", ExtendedKeyUsagePurpose::ClientAuth),
    ] {
        let mut params = CertificateParams::new(vec!["disks.example".to_owned()]).unwrap();
        params.extended_key_usages.push(usage);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &authority).unwrap();
        write(&format!("{whose}-cert.pem"), certificate.pem());
        write(&format!("{whose}-key.pem"), key.serialize_pem());
    }
}

#[test]
fn of_nbdkit_over_tls() {
    let directory = tempfile::tempdir().unwrap();
    certificates(directory.path());
    let path = directory.path().display();
    let tls = format!("--tls-certificates={path}");
    let server = Server::nbdkit(&[
        "--tls=require",
        "--tls-verify-peer",
        &tls,
        "data",
        "1 @0x100000 2",
        "size=16M",
    ]);
    let plain = server.uri();
    let parameters = format!("&tls-certificates={path}&tls-hostname=disks.example");
    let uri = format!("{}{parameters}", plain.replace("nbd+unix", "nbds+unix"));
    // nbdinfo takes the host of a socket from nowhere else but tls-hostname, too.
    let json = assert_same_info(&[], &uri);
    assert_eq!(json["TLS"], true);
    assert!(assert_same_map("base:allocation", &uri) > 2);
    let refused = info(&[], &plain);
    assert_eq!(refused.status.code(), Some(1), "{refused}");
    assert!(refused.stderr.contains("nbds"), "{refused}");
    let stranger = uri.replace("disks.example", "others.example");
    let refused = info(&[], &stranger);
    assert_eq!(refused.status.code(), Some(1), "{refused}");
    assert!(refused.stderr.contains("tls-hostname"), "{refused}");
}

// --- qemu-nbd ---

fn qemu(program: &str, arguments: &[&str]) {
    run(peer(program).args(arguments)).ok();
}

#[test]
fn of_qemu_nbd_with_a_bitmap() {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("image");
    let path = image.to_str().unwrap();
    qemu("qemu-img", &["create", "-q", "-f", "qcow2", path, "64M"]);
    qemu(
        "qemu-io",
        &["-c", "write 0 1M", "-c", "write -z 2M 1M", path],
    );
    qemu("qemu-img", &["bitmap", "--add", path, "changed"]);
    qemu(
        "qemu-io",
        &["-c", "write 5M 192k", "-c", "write 40M 64k", path],
    );
    let options = [
        "--bitmap=changed",
        "--allocation-depth",
        "--export-name=disk",
    ];
    let server = Server::qemu_nbd_with(&options, "qcow2", &image);
    let uri = server.uri_of("disk");
    let json = assert_same_info(&[], &uri);
    assert_eq!(json["extended"], true);
    assert_eq!(json["exports"][0]["contexts"].as_array().unwrap().len(), 3);
    assert_same_answers(&uri);
    assert_eq!(assert_same_map("qemu:dirty-bitmap:changed", &uri), 5);
    assert!(assert_same_map("base:allocation", &uri) > 5);
    assert!(assert_same_map("qemu:allocation-depth", &uri) > 3);
    let text = info(&["--map=qemu:dirty-bitmap:changed"], &uri).ok();
    assert!(text.contains("# dirty, . clean"), "{text}");
    let absent = info(&["--map=qemu:dirty-bitmap:other"], &uri);
    assert_eq!(absent.status.code(), Some(1), "{absent}");
}

#[test]
fn of_qemu_nbd_with_a_raw_file() {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("image");
    let path = image.to_str().unwrap();
    qemu("qemu-img", &["create", "-q", "-f", "raw", path, "32M"]);
    qemu("qemu-io", &["-f", "raw", "-c", "write 8M 1M", path]);
    let server = Server::qemu_nbd("raw", &image);
    assert_same_info(&[], &server.uri());
    assert_same_info(&["--list"], &server.uri());
    // qemu-img writes the first block of a raw image.
    assert!(assert_same_map("base:allocation", &server.uri()) >= 3);
}

// --- the others ---

#[test]
fn of_nbd_server() {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("image");
    File::create(&image).unwrap().set_len(5 * MIB).unwrap();
    let server = NbdServer::start(&image);
    // nbdinfo asks by INFO, to which nbd-server says a size of 0.
    for mode in [&[][..], &["--list"]] {
        let json = assert_same_info_but(&["export-size"], mode, &server.uri());
        assert_eq!(json["exports"][0]["export-size"], 5 * MIB);
    }
    assert_same_answers(&server.uri());
}

#[test]
fn of_serve() {
    for storage in [Storage::Memory, Storage::File, Storage::Cached] {
        let server = Serve::over(storage).export("one").export("two").start();
        let uri = server.uri_of("two");
        assert_same_info(&[], &uri);
        assert_same_info(&["--list"], &uri);
        assert_same_answers(&uri);
        let offered = &parse(info(&["--json"], &uri))["exports"][0]["contexts"];
        if offered.as_array().is_some_and(|names| !names.is_empty()) {
            assert_same_map("base:allocation", &uri);
        }
    }
}

/// What `info` makes of the multi-conn of every server agrees with what nbdinfo says of it.
#[test]
fn the_plan_for_every_server_follows_its_multi_conn() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    File::create(&image).unwrap().set_len(64 * MIB).unwrap();
    let image = image.to_str().unwrap();
    let check = |uri: &str| {
        let can = run(peer("nbdinfo").args(["--can", "multi-conn", uri]));
        let expected = if can.status.success() { 4 } else { 1 };
        let answer = parse(info(&["--plan", "--json", "--connections=4"], uri));
        for plan in answer["plans"].as_array().unwrap() {
            if plan["caution"] == "strict" {
                assert_eq!(plan["connections"], expected, "{uri}: {answer}");
            }
        }
        assert_eq!(answer["tried"], expected);
    };
    check(&Serve::over(Storage::Memory).start().uri());
    check(
        &Serve::over(Storage::Cached)
            .multi_conn("disable")
            .start()
            .uri(),
    );
    check(&Server::nbdkit(&["file", image]).uri());
    check(&Server::nbdkit(&["--filter=cow", "file", image]).uri());
    check(&Server::qemu_nbd("raw", Path::new(image)).uri());
    check(&NbdServer::start(Path::new(image)).uri());
}
