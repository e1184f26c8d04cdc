//! What other people's clients are told of what is allocated.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};

use crate::process::{peer, python, run};
use crate::server::{Serve, Server, Storage};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 8 * MIB;

over_every_storage! {
    nbdinfo_draws_the_map,
    qemu_img_draws_the_map,
    libnbd_is_told_extent_by_extent,
    nbdcopy_leaves_the_holes,
}

/// 8 MiB with data in the third, put there by a client that has left.
fn start(storage: Storage) -> Server {
    let server = Serve::over(storage).size(SIZE).start();
    let script = r"
import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.pwrite(b'x' * (1 << 20), 2 << 20)
h.flush()
h.shutdown()
";
    python(script, &[&server.uri()]).ok();
    server
}

fn nbdinfo_draws_the_map(storage: Storage) {
    let server = start(storage);
    let map = run(peer("nbdinfo").args(["--map", &server.uri()])).ok();
    let lines: Vec<Vec<&str>> = map
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    let expected = [
        ["0", "2097152", "3", "hole,zero"],
        ["2097152", "1048576", "0", "data"],
        ["3145728", "5242880", "3", "hole,zero"],
    ];
    assert_eq!(lines, expected, "{map}");
}

fn qemu_img_draws_the_map(storage: Storage) {
    let server = start(storage);
    let map = run(peer("qemu-img").args(["map", "-f", "raw", "--output=json", &server.uri()])).ok();
    let json: serde_json::Value = serde_json::from_str(&map).unwrap();
    let entries: Vec<_> = json
        .as_array()
        .unwrap()
        .iter()
        .map(|it| {
            (
                it["start"].as_u64().unwrap(),
                it["length"].as_u64().unwrap(),
                it["zero"].as_bool().unwrap(),
                it["data"].as_bool().unwrap(),
            )
        })
        .collect();
    let expected = [
        (0, 2 * MIB, true, false),
        (2 * MIB, MIB, false, true),
        (3 * MIB, 5 * MIB, true, false),
    ];
    assert_eq!(entries, expected, "{map}");
}

fn libnbd_is_told_extent_by_extent(storage: Storage) {
    let server = start(storage);
    let script = r"
import nbd, sys
h = nbd.NBD()
h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h.connect_uri(sys.argv[1])
assert h.can_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
def status(length, offset, flags=0):
    seen = []
    def each(name, at, entries, error):
        assert (name, at) == (nbd.CONTEXT_BASE_ALLOCATION, offset)
        seen.extend(entries)
    h.block_status(length, offset, each, flags)
    # Unless one extent was asked for, the last may reach beyond, up to the end of the export.
    most = length if flags & nbd.CMD_FLAG_REQ_ONE else 8 * M - offset
    assert sum(seen[::2]) <= most, seen
    seen[-2] -= max(0, sum(seen[::2]) - length)
    return seen
M = 1 << 20
assert status(8 * M, 0) == [2 * M, 3, M, 0, 5 * M, 3], status(8 * M, 0)
assert status(8 * M, 0, nbd.CMD_FLAG_REQ_ONE) == [2 * M, 3]
assert status(2, 2 * M - 1) == [1, 3, 1, 0]
assert status(1, 8 * M - 1) == [1, 3]
# What is written is data at once, where it was a hole and where zeroes were told.
h.pwrite(b'y' * 65536, 6 * M)
assert status(65536, 6 * M) == [65536, 0]
h.zero(65536, 6 * M)
flags = status(65536, 6 * M, nbd.CMD_FLAG_REQ_ONE)[1]
assert flags & nbd.STATE_ZERO
h.pwrite(b'z', 6 * M)
assert status(1, 6 * M) == [1, 0]
try:
    status(2, 8 * M - 1)
except nbd.Error:
    pass
else:
    raise AssertionError('past the end')
assert h.pread(1, 2 * M) == b'x'
h.shutdown()
";
    python(script, &[&server.uri()]).ok();
}

fn nbdcopy_leaves_the_holes(storage: Storage) {
    let server = start(storage);
    let path = server.dir().join("copy");
    // It makes holes where it is told of them, not where it finds zeroes.
    run(peer("nbdcopy")
        .args(["--sparse=0", &server.uri()])
        .arg(&path))
    .ok();
    let file = File::open(&path).unwrap();
    let allocated = file.metadata().unwrap().blocks() * 512;
    assert!((MIB..2 * MIB).contains(&allocated), "{allocated}");
    let mut data = vec![0; SIZE as usize];
    file.read_exact_at(&mut data, 0).unwrap();
    for (at, byte) in (0..).zip(&data) {
        let expected = if at / MIB == 2 { b'x' } else { 0 };
        assert_eq!(*byte, expected, "{at}");
    }
}
