//! qemu's tools: conversion of images, and patterns by hand.

use std::path::Path;

use crate::content::{assert_same, random_file};
use crate::process::{Finished, peer, run};
use crate::server::{Serve, Storage};
use crate::settings::{seed, whole_machine};

const SIZE: u64 = 24 << 20;

fn qemu_img(arguments: &[&str]) -> Finished {
    run(peer("qemu-img").args(arguments))
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

over_every_storage! {
    qemu_img_shows_a_raw_image_of_the_right_size,
    qemu_img_converts_in_and_out,
    qemu_io_reads_what_it_wrote,
    qemu_io_is_told_of_what_lies_past_the_end,
}

fn qemu_img_shows_a_raw_image_of_the_right_size(storage: Storage) {
    let server = Serve::over(storage).size(SIZE).start();
    let info = qemu_img(&["info", "--output=json", &server.uri()]).ok();
    assert!(info.contains("\"virtual-size\": 25165824"), "{info}");
    assert!(info.contains("\"format\": \"raw\""), "{info}");
}

fn qemu_img_converts_in_and_out(storage: Storage) {
    let _busy = whole_machine();
    let server = Serve::over(storage).size(SIZE).start();
    let (before, after) = (server.dir().join("before"), server.dir().join("after"));
    random_file(&before, SIZE, seed());
    let uri = server.uri();
    let raw = ["convert", "-f", "raw", "-O", "raw"];
    // -n: the target exists. -W: writes may arrive in any order.
    qemu_img(&[&raw[..], &["-n", "-W", text(&before), &uri]].concat()).ok();
    qemu_img(&["compare", "-f", "raw", "-F", "raw", text(&before), &uri]).ok();
    qemu_img(&[&raw[..], &[&uri, text(&after)]].concat()).ok();
    assert_same(&before, &after);
}

fn qemu_io(uri: &str, commands: &[&str]) -> Finished {
    let mut command = peer("qemu-io");
    command.args(["-f", "raw"]);
    for line in commands {
        command.args(["-c", line]);
    }
    run(command.arg(uri))
}

/// qemu-io reports a pattern that does not match in words only.
#[track_caller]
fn assert_patterns(finished: Finished) {
    let seen = finished.ok();
    assert!(!seen.contains("fail") && !seen.contains("error"), "{seen}");
}

fn qemu_io_reads_what_it_wrote(storage: Storage) {
    let server = Serve::over(storage).size(SIZE).start();
    assert_patterns(qemu_io(
        &server.uri(),
        &[
            "write -P 0xa5 0 1M",
            "write -P 0x5a 1M 64k",
            "read -P 0xa5 0 1M",
            "read -P 0x5a 1M 64k",
            "write -f -P 0x11 4096 512",
            "read -P 0xa5 0 4096",
            "read -P 0x11 4096 512",
            "read -P 0xa5 4608 4096",
            "flush",
            "write -z 512k 4k",
            "read -P 0 512k 4k",
            "write -z -u 768k 4k",
            "read -P 0 768k 4k",
            "read -P 0xa5 516k 4k",
            "discard 1M 64k",
            "read 1M 64k",
            "aio_write -P 0x77 2M 1M",
            "aio_write -P 0x78 3M 1M",
            "aio_flush",
            "read -P 0x77 2M 1M",
            "read -P 0x78 3M 1M",
            "write -P 0x33 25165312 512",
            "read -P 0x33 25165312 512",
        ],
    ));
    // Another connection sees it too.
    assert_patterns(qemu_io(
        &server.uri(),
        &[
            "read -P 0x11 4096 512",
            "read -P 0 512k 4k",
            "read -P 0x78 3M 1M",
        ],
    ));
}

fn qemu_io_is_told_of_what_lies_past_the_end(storage: Storage) {
    let server = Serve::over(storage).size(SIZE).start();
    let refused = qemu_io(&server.uri(), &["read 25165824 512"]);
    assert!(!refused.status.success(), "{refused}");
    assert_patterns(qemu_io(&server.uri(), &["read -P 0 25165312 512"]));
}

#[test]
fn qemu_io_cannot_write_to_a_read_only_export() {
    let server = Serve::over(Storage::Memory).read_only().start();
    let refused = qemu_io(&server.uri(), &["write -P 1 0 512"]);
    assert!(!refused.status.success(), "{refused}");
    assert_eq!(server.connect().read(0, 512), Ok(vec![0; 512]));
}
