//! What the environment may change: how long, how much, and which programs.

use std::env;
use std::sync::{Mutex, MutexGuard, PoisonError};

fn number(name: &str, default: u64) -> u64 {
    match env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name}={text} is not a number")),
        Err(_) => default,
    }
}

/// Where random tests start; the same seed gives the same run.
pub(crate) fn seed() -> u64 {
    let seed = number("INTEROP_SEED", 0x6e62_6470);
    eprintln!("INTEROP_SEED={seed}");
    seed
}

pub(crate) fn copy_mib() -> u64 {
    number("INTEROP_COPY_MIB", 64)
}

pub(crate) fn kill_rounds() -> u64 {
    number("INTEROP_KILL_ROUNDS", 20)
}

pub(crate) fn fio_seconds() -> u64 {
    number("INTEROP_FIO_SECONDS", 5)
}

/// How many seeds each good server is tried with.
pub(crate) fn check_seeds() -> u64 {
    number("INTEROP_CHECK_SEEDS", 3)
}

/// For how long each.
pub(crate) fn check_seconds() -> u32 {
    u32::try_from(number("INTEROP_CHECK_SECONDS", 1)).expect("fewer seconds")
}

/// How often each good server is killed.
pub(crate) fn check_kills() -> u32 {
    u32::try_from(number("INTEROP_CHECK_KILLS", 5)).expect("fewer kills")
}

/// Whether nbdkit takes the place of `serve`.
pub(crate) fn serve_is_nbdkit() -> bool {
    env::var("INTEROP_SERVE").is_ok_and(|program| program == "nbdkit")
}

/// Whether nbdcopy takes the place of `copy`.
pub(crate) fn copy_is_nbdcopy() -> bool {
    env::var("INTEROP_COPY").is_ok_and(|program| program == "nbdcopy")
}

/// Held by tests that keep every core busy, so that they do not starve each other's deadlines.
pub(crate) fn whole_machine() -> MutexGuard<'static, ()> {
    static BUSY: Mutex<()> = Mutex::new(());
    BUSY.lock().unwrap_or_else(PoisonError::into_inner)
}
