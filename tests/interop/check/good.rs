//! Servers that keep their promise, each tried with several seeds: none is ever accused.

use std::fs::File;

use super::check;
use super::peer::Peer;
use crate::server::NbdServer;
use crate::settings::{check_seconds, check_seeds, seed};

#[track_caller]
fn holds(uri: &str) {
    let first = seed();
    for number in 0..check_seeds() {
        // What an earlier run has left is in the way of the next.
        let more: &[&str] = if number > 0 { &["--yes"] } else { &[] };
        check(uri, first + number, check_seconds(), more).held();
    }
}

/// `serve`, with options, as a test of its own for each name.
macro_rules! serve {
    ($($name:ident: $over:ident, $options:expr;)+) => {
        $(#[test]
        fn $name() {
            holds(Peer::$over(&$options).uri());
        })+
    };
}

serve! {
    memory: serve_over_memory, [];
    memory_whose_own_flush_is_enough: serve_over_memory, ["--multi-conn", "plugin"];
    memory_emulated: serve_over_memory, ["--multi-conn", "emulate"];
    memory_without_multi_conn: serve_over_memory, ["--multi-conn", "disable"];
    memory_with_caches: serve_over_memory, ["--cache"];
    memory_in_any_order: serve_over_memory, ["--overlap", "ignore"];
    file: serve_over_image, [];
    file_whose_own_flush_is_enough: serve_over_image, ["--multi-conn", "plugin"];
    file_through: serve_over_image, ["--acknowledge", "write-through"];
    caches: serve_over_image, ["--cache"];
    caches_emulated: serve_over_image, ["--cache", "--multi-conn", "emulate"];
    caches_without_multi_conn: serve_over_image, ["--cache", "--multi-conn", "disable"];
    caches_fast: serve_over_image, ["--cache", "--track-dirty", "fast"];
    caches_off: serve_over_image, ["--cache", "--track-dirty", "off"];
    caches_through: serve_over_image, ["--cache", "--acknowledge", "write-through"];
    caches_on_receipt: serve_over_image, ["--cache", "--acknowledge", "on-receipt"];
    caches_coherent: serve_over_image, ["--cache", "--overlap", "coherent"];
    caches_preflush: serve_over_image, ["--cache", "--fua-on-reads", "preflush"];
    caches_one_request: serve_over_image, ["--cache", "--thread-model", "serialize_requests"];
    caches_slow: serve_over_image,
        ["--cache", "--delay-read", "2", "--delay-write", "5", "--delay-flush", "5"];
    caches_slow_fast: serve_over_image,
        ["--cache", "--track-dirty", "fast", "--delay-write", "5", "--delay-flush", "5"];
}

#[test]
fn nbdkits_memory() {
    holds(Peer::nbdkit_memory().uri());
}

#[test]
fn nbdkits_file() {
    holds(Peer::nbdkit_file().uri());
}

#[test]
fn qemu_nbd() {
    holds(Peer::qemu_nbd().uri());
}

#[test]
fn nbd_server() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    File::create(&image).unwrap().set_len(16 << 20).unwrap();
    holds(&NbdServer::start(&image).uri());
}
