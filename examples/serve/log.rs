//! What the user is told on standard error: warnings, and with `--log` a line for each event.
//!
//! Lines are written by a thread of their own, so that a reader of standard error who is slow, or
//! has stopped reading, holds up nobody: lines may be said with any lock held. What does not fit
//! into the queue meanwhile is dropped, and counted.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Write};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::count::count;

/// Most lines that wait for being written.
const MOST_LINES: usize = 4096;

/// How long the end of the program waits for the last lines to be written.
const FAREWELL: Duration = Duration::from_secs(1);

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
            LINES.say(format!("{seconds:10.6} {}", line()));
        }
    }
}

/// Tells the user something that matters even without `--log`.
pub(crate) fn warn(message: fmt::Arguments<'_>) {
    LINES.say(format!("serve: {message}"));
}

/// A warning about what may happen any number of times in a row.
#[derive(Debug, Default)]
pub(crate) struct Seldom {
    state: Mutex<Warned>,
}

#[derive(Debug, Default)]
struct Warned {
    last: Option<Instant>,
    /// How often it was not said since.
    silent: u64,
}

impl Seldom {
    /// The shortest time between two warnings.
    const PAUSE: Duration = Duration::from_secs(10);

    pub(crate) const fn new() -> Self {
        Self {
            state: Mutex::new(Warned {
                last: None,
                silent: 0,
            }),
        }
    }

    pub(crate) fn warn(&self, message: fmt::Arguments<'_>) {
        match self.at(Instant::now()) {
            Some(0) => warn(message),
            Some(silent) => warn(format_args!(
                "{message} (and {} before)",
                count(silent, "time")
            )),
            None => {}
        }
    }

    /// Whether to say it at this time, and how often it was not said before.
    fn at(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock();
        if state
            .last
            .is_some_and(|last| now.duration_since(last) < Self::PAUSE)
        {
            state.silent += 1;
            return None;
        }
        state.last = Some(now);
        Some(std::mem::take(&mut state.silent))
    }
}

/// Begins to write what is said; until then it waits.
///
/// # Errors
///
/// If there can be no thread for it.
pub(crate) fn start() -> io::Result<()> {
    thread::Builder::new()
        .name("log".to_owned())
        .spawn(|| LINES.write_to(&io::stderr()))
        .map(drop)
}

/// Lets what was said be written before the program ends, if somebody reads it.
pub(crate) fn finish() {
    LINES.wait_until_written(FAREWELL);
}

static LINES: Lines = Lines::new();

struct Lines {
    queue: Mutex<Queue>,
    more: Condvar,
    written: Condvar,
}

struct Queue {
    lines: VecDeque<String>,
    dropped: u64,
    /// Some lines have been taken, but not written yet.
    writing: bool,
}

impl Lines {
    const fn new() -> Self {
        Self {
            queue: Mutex::new(Queue {
                lines: VecDeque::new(),
                dropped: 0,
                writing: false,
            }),
            more: Condvar::new(),
            written: Condvar::new(),
        }
    }

    fn say(&self, line: String) {
        let mut queue = self.queue.lock();
        if queue.lines.len() < MOST_LINES {
            queue.lines.push_back(line);
        } else {
            queue.dropped += 1;
        }
        drop(queue);
        self.more.notify_one();
    }

    fn write_to<W>(&self, to: &W) -> !
    where
        for<'w> &'w W: Write,
    {
        loop {
            let mut text = self.next();
            text.push('\n');
            // Nobody may be listening any more: then there is nobody to tell that, either.
            let _ = (&*to).write_all(text.as_bytes());
        }
    }

    /// Waits for lines, and takes all that are there, together with what became of others.
    fn next(&self) -> String {
        let mut queue = self.queue.lock();
        queue.writing = false;
        while queue.lines.is_empty() {
            self.written.notify_all();
            self.more.wait(&mut queue);
        }
        queue.writing = true;
        let lines = std::mem::take(&mut queue.lines);
        let dropped = std::mem::take(&mut queue.dropped);
        drop(queue);
        let mut lines = Vec::from(lines);
        if dropped > 0 {
            lines.push(format!(
                "serve: {} missing here: nobody read in time",
                count(dropped, "line")
            ));
        }
        lines.join("\n")
    }

    fn wait_until_written(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        let mut queue = self.queue.lock();
        while queue.writing || !queue.lines.is_empty() {
            if self.written.wait_until(&mut queue, deadline).timed_out() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_nobody_reads_are_dropped_and_counted() {
        let lines = Lines::new();
        for number in 0..MOST_LINES + 7 {
            lines.say(number.to_string());
        }
        let text = lines.next();
        assert_eq!(text.lines().count(), MOST_LINES + 1);
        assert!(text.starts_with("0\n1\n2\n"));
        assert!(text.ends_with("serve: 7 lines missing here: nobody read in time"));
        // The next ones have a place again.
        lines.say("more".to_owned());
        assert_eq!(lines.next(), "more");
    }

    #[test]
    fn the_end_does_not_wait_for_ever_for_a_reader() {
        let lines = Lines::new();
        lines.wait_until_written(Duration::from_secs(60));
        lines.say("never written".to_owned());
        lines.wait_until_written(Duration::from_millis(1));
        assert_eq!(lines.queue.lock().lines.len(), 1);
    }

    #[test]
    fn a_warning_is_repeated_only_after_a_while_and_with_a_count() {
        let seldom = Seldom::new();
        let start = Instant::now();
        assert_eq!(seldom.at(start), Some(0));
        assert_eq!(seldom.at(start), None);
        assert_eq!(seldom.at(start + Seldom::PAUSE / 2), None);
        assert_eq!(seldom.at(start + Seldom::PAUSE), Some(2));
        assert_eq!(seldom.at(start + Seldom::PAUSE * 3), Some(0));
    }
}
