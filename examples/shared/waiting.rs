//! Waiting for what may take long, and not in silence.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

/// Waits for something, and tells what for, once, if it takes longer than this.
pub(crate) fn while_waiting<R>(
    longest: Duration,
    tell: impl FnOnce() + Send,
    wait: impl FnOnce() -> R,
) -> R {
    let (waiting, over) = mpsc::channel::<()>();
    thread::scope(|scope| {
        let tell_later = move || {
            if over.recv_timeout(longest) == Err(RecvTimeoutError::Timeout) {
                tell();
            }
        };
        // Without a thread it is waited for all the same.
        let _ = thread::Builder::new().spawn_scoped(scope, tell_later);
        let result = wait();
        drop(waiting);
        result
    })
}
