//! Real NBD programs against `examples/serve` and `examples/copy`.
//!
//! Every test starts its own server, on a port or a socket that nobody else has, and stops what
//! it started. A program that is not installed is a failure, with the name of its Debian package:
//! a suite that skips proves nothing.
//!
//! `INTEROP_SEED`, `INTEROP_COPY_MIB`, `INTEROP_KILL_ROUNDS` and `INTEROP_FIO_SECONDS` change
//! what they name. `INTEROP_SERVE=nbdkit` and `INTEROP_COPY=nbdcopy` put those programs in the
//! place of ours, to find out whether a failure is the suite's. With nbdkit 1.32.5 and libnbd
//! 1.14.2 all must pass but the tests of a cache, which nbdkit does not have, those of a shutdown
//! with open connections, for which it waits, a session cut anywhere, of which it dies, and in
//! `copy_lies` those of incomplete replies and of the last flush, which nbdcopy does not see.

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
mod raw;
mod server;
mod settings;

// The subjects.
mod bad_input;
mod copy;
mod copy_lies;
mod durability;
mod fio;
mod flush_hazards;
mod libnbd;
mod nbd_client;
mod nbdcopy;
mod nbdinfo;
mod qemu;
mod shutdown;
