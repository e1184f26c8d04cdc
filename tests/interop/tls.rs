//! Other people's clients over TLS, with certificates that are made here.

use crate::content::{assert_same, random_file};
use crate::process::{peer, python, run};
use crate::server::{Serve, Server, Storage};
use crate::settings::seed;
use crate::tls_support::Authority;

const SIZE: u64 = 16 << 20;

/// Servers that demand TLS, and certificates from their clients.
fn start(storage: Storage, authority: &Authority) -> Server {
    Serve::over(storage)
        .size(SIZE)
        .tls(authority)
        .tls_required()
        .start()
}

fn uri(server: &Server, authority: &Authority) -> String {
    let port = server.port();
    let directory = authority.directory().display();
    format!("nbds://localhost:{port}/?tls-certificates={directory}")
}

#[test]
fn nbdinfo_shows_what_is_served_over_tls() {
    let authority = Authority::new();
    let server = start(Storage::Memory, &authority);
    let uri = uri(&server, &authority);
    let size = run(peer("nbdinfo").args(["--size", &uri])).ok();
    assert_eq!(size.trim(), SIZE.to_string());
    let text = run(peer("nbdinfo").arg(&uri)).ok();
    assert!(text.contains("with TLS"), "{text}");
    let map = run(peer("nbdinfo").args(["--map", "--totals", &uri])).ok();
    assert!(map.contains("hole"), "{map}");
    // Without TLS there is nothing.
    let plain = run(peer("nbdinfo").arg(server.uri()));
    assert!(!plain.status.success(), "{plain}");
}

#[test]
fn nbdinfo_is_turned_away_without_a_certificate_that_is_trusted() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let server = start(Storage::Memory, &authority);
    // It trusts the server, and shows what the server does not trust.
    std::fs::copy(authority.path("ca-cert.pem"), stranger.path("ca-cert.pem")).unwrap();
    let refused = run(peer("nbdinfo").arg(uri(&server, &stranger)));
    assert!(!refused.status.success(), "{refused}");
    run(peer("nbdinfo").arg(uri(&server, &authority))).ok();
}

over_every_storage! {
    nbdcopy_copies_in_and_out_over_several_connections,
    qemu_img_converts_in_and_out,
    libnbd_has_every_command,
}

fn nbdcopy_copies_in_and_out_over_several_connections(storage: Storage) {
    let authority = Authority::new();
    let server = start(storage, &authority);
    let (before, after) = (server.dir().join("before"), server.dir().join("after"));
    random_file(&before, SIZE, seed());
    let uri = uri(&server, &authority);
    let copy = |from: &str, to: &str| {
        run(peer("nbdcopy").args(["--flush", "--connections=4", from, to])).ok();
    };
    copy(before.to_str().unwrap(), &uri);
    copy(&uri, after.to_str().unwrap());
    assert_same(&before, &after);
}

fn qemu_img_converts_in_and_out(storage: Storage) {
    let authority = Authority::new();
    let server = start(storage, &authority);
    let (before, after) = (server.dir().join("before"), server.dir().join("after"));
    random_file(&before, SIZE, seed());
    let credentials = format!(
        "tls-creds-x509,id=tls0,endpoint=client,dir={}",
        authority.directory().display()
    );
    let port = server.port();
    let disk = format!("driver=nbd,host=localhost,port={port},tls-creds=tls0");
    let qemu_img = |command: &str, arguments: &[&str]| {
        let mut qemu_img = peer("qemu-img");
        qemu_img.args([command, "--object", &credentials]);
        run(qemu_img.args(arguments)).ok()
    };
    qemu_img(
        "convert",
        &[
            "-n",
            "--target-image-opts",
            "-f",
            "raw",
            before.to_str().unwrap(),
            &disk,
        ],
    );
    qemu_img(
        "convert",
        &["--image-opts", &disk, "-O", "raw", after.to_str().unwrap()],
    );
    assert_same(&before, &after);
    let map = qemu_img("map", &["--output=json", "--image-opts", &disk]);
    assert!(map.contains("\"data\": true"), "{map}");
}

fn libnbd_has_every_command(storage: Storage) {
    let authority = Authority::new();
    let server = start(storage, &authority);
    let script = r"
import nbd, random, sys
h = nbd.NBD()
h.set_uri_allow_local_file(True)
h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h.connect_uri(sys.argv[1])
assert h.get_tls_negotiated()
r = random.Random(1)
for size in (1, 511, 4096, 16384, 16385, 65537, 1 << 20, 8 << 20):
    data = r.randbytes(size)
    h.pwrite(data, 5)
    assert h.pread(size, 5) == data, size
h.zero(1 << 20, 0)
h.trim(1 << 20, 1 << 20)
h.cache(1 << 20, 0)
h.flush()
entries = []
h.block_status(h.get_size(), 0, lambda name, offset, e, err: entries.extend(e))
assert sum(entries[0::2]) == h.get_size()
# Many requests under way at the same time, both ways.
buffers = [nbd.Buffer.from_bytearray(bytearray(r.randbytes(1 << 18))) for _ in range(32)]
cookies = [h.aio_pwrite(b, n << 18) for n, b in enumerate(buffers)]
cookies += [h.aio_pread(nbd.Buffer(1 << 18), n << 18) for n in range(32)]
while cookies := [c for c in cookies if not h.aio_command_completed(c)]:
    h.poll(-1)
for n, b in enumerate(buffers):
    assert h.pread(1 << 18, n << 18) == b.to_bytearray()
h.shutdown()
";
    python(script, &[&uri(&server, &authority)]).ok();
}
