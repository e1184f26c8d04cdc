//! How far the check is, for whoever sits at the terminal, and what it waits for, for everybody.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{HumanCount, ProgressBar, ProgressStyle};

use super::shared::count::count;
use super::shared::waiting::while_waiting;

const TEMPLATE: &str = "{bar:30} {percent:>3} %  {msg}";

/// What takes longer would pass for a program that hangs.
pub(crate) const LONG: Duration = Duration::from_secs(3);

/// A bar on stderr, if that is a terminal.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
    quiet: bool,
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
            quiet,
            whole,
            kills: std::cell::Cell::new(0),
        }
    }

    /// So much time has gone by, and so many commands were answered in what of it was no waiting
    /// for connections.
    pub(crate) fn set(&self, elapsed: Duration, worked: Duration, commands: u64) {
        if self.bar.is_hidden() {
            return;
        }
        self.bar.set_position(millis(elapsed));
        let rate = u128::from(commands) * 1000 / worked.as_millis().max(1);
        let left = self.whole.saturating_sub(elapsed).as_secs();
        let kills = match self.kills.get() {
            0 => String::new(),
            kills => format!(", {}", count(kills, "kill")),
        };
        let commands = HumanCount(commands);
        let words = format!("{commands} operations, {rate}/s{kills}, {left} s left");
        self.bar.set_message(words);
    }

    /// The server was killed so often.
    pub(crate) fn killed(&self, times: u64) {
        self.kills.set(times);
    }

    /// Waits for something, and says in these words for what, once, if it takes long.
    pub(crate) fn while_waiting<R>(&self, words: &str, wait: impl FnOnce() -> R) -> R {
        if self.quiet {
            return wait();
        }
        let bar = self.bar.clone();
        while_waiting(LONG, move || bar.suspend(|| super::say(words)), wait)
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
