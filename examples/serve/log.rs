//! What `--log` shows: one line for each event, to standard error.

use std::fmt;
use std::io::{self, Write};
use std::time::Instant;

#[derive(Debug)]
pub(crate) struct Log {
    since: Option<Instant>,
}

impl Log {
    pub(crate) fn new(enabled: bool) -> Self {
        Self {
            since: enabled.then(Instant::now),
        }
    }

    /// Logs a line if logging is on; the words are put together only then.
    pub(crate) fn line(&self, line: impl FnOnce() -> String) {
        if let Some(since) = self.since {
            let seconds = since.elapsed().as_secs_f64();
            say(format_args!("{seconds:10.6} {}", line()));
        }
    }
}

/// Tells the user something that matters even without `--log`.
pub(crate) fn warn(message: fmt::Arguments<'_>) {
    say(format_args!("serve: {message}"));
}

fn say(line: fmt::Arguments<'_>) {
    // Nobody may be listening any more: then there is nobody to tell that, either.
    let _ = writeln!(io::stderr().lock(), "{line}");
}
