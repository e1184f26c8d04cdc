//! How far the copy is, for whoever sits at the terminal.

use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;

const TEMPLATE: &str = "{bar:30} {percent:>3} % {msg}  {binary_bytes} of {binary_total_bytes}  {binary_bytes_per_sec}  {eta} left";

/// A progress bar on stderr, if that is a terminal.
#[derive(Debug)]
pub(crate) struct Progress(ProgressBar);

impl Progress {
    pub(crate) fn new(size: u64, quiet: bool) -> Self {
        if quiet || !std::io::stderr().is_terminal() {
            return Self(ProgressBar::hidden());
        }
        let bar = ProgressBar::new(size);
        if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
            bar.set_style(style);
        }
        bar.set_message("copied");
        Self(bar)
    }

    pub(crate) fn advance(&self, bytes: u64) {
        self.0.inc(bytes);
    }

    /// Begins from zero with something else.
    pub(crate) fn begin_again(&self, with: &'static str) {
        self.0.set_message(with);
        self.0.reset();
    }

    /// Takes the bar away, so that it is not in the way of the last words.
    pub(crate) fn clear(&self) {
        self.0.finish_and_clear();
    }
}
