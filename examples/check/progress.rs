//! How far the check is, for whoever sits at the terminal.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{HumanCount, ProgressBar, ProgressStyle};

const TEMPLATE: &str = "{bar:30} {percent:>3} %  {msg}";

/// A bar on stderr, if that is a terminal.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
    whole: Duration,
    kills: std::cell::Cell<u64>,
}

impl Progress {
    pub(crate) fn new(whole: Duration, quiet: bool) -> Self {
        let bar = if quiet || !std::io::stderr().is_terminal() {
            ProgressBar::hidden()
        } else {
            ProgressBar::new(millis(whole))
        };
        if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
            bar.set_style(style);
        }
        Self {
            bar,
            whole,
            kills: std::cell::Cell::new(0),
        }
    }

    /// So many commands were answered in this time.
    pub(crate) fn set(&self, elapsed: Duration, commands: u64) {
        if self.bar.is_hidden() {
            return;
        }
        self.bar.set_position(millis(elapsed));
        let rate = u128::from(commands) * 1000 / elapsed.as_millis().max(1);
        let left = self.whole.saturating_sub(elapsed).as_secs();
        let kills = match self.kills.get() {
            0 => String::new(),
            kills => format!(", {kills} kills"),
        };
        let commands = HumanCount(commands);
        let words = format!("{commands} operations, {rate}/s{kills}, {left} s left");
        self.bar.set_message(words);
    }

    /// The server was killed so often.
    pub(crate) fn killed(&self, times: u64) {
        self.kills.set(times);
    }

    /// Takes the bar away, so that it is not in the way of the last words.
    pub(crate) fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

impl Drop for Progress {
    /// Also on the way out of an error, whose words come next.
    fn drop(&mut self) {
        self.clear();
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
