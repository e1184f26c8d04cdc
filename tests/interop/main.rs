//! Real NBD programs against `examples/serve`, `examples/copy`, `examples/info` and
//! `examples/check`.
//!
//! Every test starts its own server, on a port or a socket that nobody else has, and stops what
//! it started. A program that is not installed is a failure, with the name of its Debian package:
//! a suite that skips proves nothing. `live` and `check` need nbdkit-plugin-python, too.
//!
//! `INTEROP_SEED`, `INTEROP_COPY_MIB`, `INTEROP_KILL_ROUNDS`, `INTEROP_FIO_SECONDS`,
//! `INTEROP_CHECK_SEEDS`, `INTEROP_CHECK_SECONDS` and `INTEROP_CHECK_KILLS` change what they name. `INTEROP_SERVE=nbdkit` and `INTEROP_COPY=nbdcopy` put those programs in the
//! place of ours (and nbdkit's multi-conn filter over a cache in Python in the place of `--cache`).
//! What passes there is right in the suite; what fails there should be a fault that those programs
//! are known for:
//!
//! - nbdkit 1.32.5 waits for its clients when it is asked to end, dies when one of them leaves with
//!   commands in flight, and loses data or shows old data in most of `flush_hazards`;
//! - nbdcopy 1.14.2 takes incomplete and overlapping replies, and sends no last flush.

/// Runs each named check over every storage that `serve` offers, as a test of its own.
macro_rules! over_every_storage {
    ($($check:ident),+ $(,)?) => {
        mod memory {
            $(#[test] fn $check() { super::$check($crate::server::Storage::Memory); })+
        }
        mod file {
            $(#[test] fn $check() { super::$check($crate::server::Storage::File); })+
        }
        mod cached {
            $(#[test] fn $check() { super::$check($crate::server::Storage::Cached); })+
        }
    };
}

// The harness.
mod content;
mod hostile;
mod process;
mod programs;
mod raw;
mod server;
mod settings;
#[path = "../tls_support/mod.rs"]
mod tls_support;

// The subjects.
mod allocation;
mod bad_input;
mod check;
mod copy;
mod copy_lies;
mod copy_nbdkit;
mod copy_pairs;
mod durability;
mod fio;
mod flush_hazards;
mod info;
mod libnbd;
mod live;
mod nbd_client;
mod nbdcopy;
mod nbdinfo;
mod qemu;
mod serve_command;
mod shutdown;
mod tls;
