//! How far a map is, for whoever sits at the terminal.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

const TEMPLATE: &str = "{bar:30} {percent:>3} %  {binary_bytes} of {binary_total_bytes}  {eta}";

/// What takes less time needs no bar.
const SOON: Duration = Duration::from_secs(1);

/// A progress bar on stderr, if that is a terminal, and if it takes a while.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
    /// When the bar is shown, if it is to be and is not yet.
    shown_at: Option<Instant>,
}

impl Progress {
    pub(crate) fn new(size: u64) -> Self {
        let bar = ProgressBar::with_draw_target(Some(size), ProgressDrawTarget::hidden());
        if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
            bar.set_style(style);
        }
        let is_terminal = std::io::stderr().is_terminal();
        Self {
            bar,
            shown_at: is_terminal.then(|| Instant::now() + SOON),
        }
    }

    pub(crate) fn set(&mut self, position: u64) {
        if self.shown_at.is_some_and(|time| time <= Instant::now()) {
            self.shown_at = None;
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        self.bar.set_position(position);
    }

    /// Does something that writes to the terminal, perhaps, while the bar is away.
    pub(crate) fn aside<R>(&self, act: impl FnOnce() -> R) -> R {
        self.bar.suspend(act)
    }

    /// Takes the bar away.
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
