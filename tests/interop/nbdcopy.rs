//! nbdcopy carries a random file in and out over several connections.

use crate::content::{assert_same, random_file};
use crate::process::{peer, run};
use crate::server::{Serve, Storage};
use crate::settings::{copy_mib, seed, whole_machine};

over_every_storage! {
    a_file_comes_back_as_it_went_in,
    a_file_whose_size_is_odd_comes_back_as_it_went_in,
}

fn there_and_back(storage: Storage, size: u64) {
    let _busy = whole_machine();
    let server = Serve::over(storage).size(size).start();
    let (before, after) = (server.dir().join("before"), server.dir().join("after"));
    random_file(&before, size, seed());
    let uri = server.uri();
    let connections = "--connections=4";
    run(peer("nbdcopy")
        .args([connections, "--flush"])
        .arg(&before)
        .arg(&uri))
    .ok();
    run(peer("nbdcopy").arg(connections).arg(&uri).arg(&after)).ok();
    assert_same(&before, &after);
    if storage != Storage::Memory {
        assert_same(&before, server.image());
    }
}

fn a_file_comes_back_as_it_went_in(storage: Storage) {
    there_and_back(storage, copy_mib() << 20);
}

fn a_file_whose_size_is_odd_comes_back_as_it_went_in(storage: Storage) {
    there_and_back(storage, (3 << 20) + 4093);
}
