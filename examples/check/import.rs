//! Judges a history that was recorded earlier: by this program, or by others.
//!
//! | form | what it is | what can be judged |
//! |---|---|---|
//! | `text` | [the library's own](text) | all of the promise |
//! | `json` | one JSON object a line, [described here](json) | all of the promise |
//! | `nbdkit-log` | what nbdkit's log filter writes | nothing; [what was never flushed](nbdkit) is told |
//! | `nbdkit-log-pair` | the same, with a second one [below others](layers) | whether flushes reach all that they have to |
//!
//! The form is recognised by the first lines. A file is read line by line, and may be longer than
//! memory: what is remembered depends on how much of the export is in use. Whatever its bytes are,
//! it is judged, or refused with the number of the line that cannot be.
//!
//! # The verdict
//!
//! - [`Verdict::Held`]: nothing in the file contradicts the promise.
//! - [`Verdict::Broken`]: the file contradicts it, and this is how.
//! - [`Verdict::None`]: the file is in order, but has nothing that could contradict the promise. That
//!   is so for a log of nbdkit with one log filter, for a history without a read that succeeded,
//!   and for a log of two filters where nothing was promised.

pub(crate) mod json;
mod judge;
pub(crate) mod layers;
mod lines;
pub(crate) mod nbdkit;
mod report;
pub(crate) mod text;
mod uncovered;

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use nbd_proto::conformance::{Initial, Malformed, Promise, Summary, Violation};

use lines::Lines;

/// The options that are about recorded histories.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Recorded histories")]
pub(crate) struct ImportOptions {
    /// Judge a history that was recorded earlier, instead of a server: a file, or `-` for standard
    /// input. Forms: what --record writes; JSON lines; the log of `nbdkit --filter=log`, which has
    /// no contents: with one log filter it only shows what was never flushed, with a second one
    /// below the filters in question (`--filter=log --filter=multi-conn --filter=log`) it shows
    /// whether each flush reached all that it has to
    #[arg(long, value_name = "FILE", conflicts_with_all = [
        "uri", "connections", "seconds", "operations", "seed", "restart_command", "read_only",
        "record", "yes", "tls_ca", "timeout",
    ])]
    pub(crate) import: Option<PathBuf>,

    /// The form of the file; without it, its first lines tell
    #[arg(long, value_enum, requires = "import", conflicts_with = "uri")]
    pub(crate) format: Option<Format>,

    /// What the server is held to: multi-conn (a flush is for all connections) or single-connection
    /// (for its own); without it, to what the file says, or to multi-conn
    #[arg(
        long,
        value_enum,
        value_name = "PROMISE",
        requires = "import",
        conflicts_with = "uri"
    )]
    pub(crate) promise: Option<Promised>,
}

/// How a file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// The form of the library, as --record writes it.
    Text,
    /// JSON lines.
    Json,
    /// As many log filters as it looks like.
    #[value(skip)]
    NbdkitLogs,
    /// Of one log filter.
    NbdkitLog,
    /// Of two log filters, one above and one below others.
    NbdkitLogPair,
}

/// Whose commands a flush is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Promised {
    #[default]
    MultiConn,
    SingleConnection,
}

/// What is said of a history before its first event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) granule: u64,
    pub(crate) promised: Promised,
    /// Whether writes of different connections to the same place keep their order.
    pub(crate) ordered: bool,
    pub(crate) own_writes: bool,
    pub(crate) initial: Initial,
}

impl Header {
    /// As strict as the promise is by default.
    pub(crate) const fn new(granule: u64, promised: Promised) -> Self {
        Self {
            granule,
            promised,
            ordered: matches!(promised, Promised::MultiConn),
            own_writes: true,
            initial: Initial::Zeroes,
        }
    }

    pub(crate) const fn promise(&self) -> Promise {
        let promise = match self.promised {
            Promised::MultiConn => Promise::MULTI_CONN,
            Promised::SingleConnection => Promise::SINGLE_CONNECTION,
        };
        promise
            .with_order(self.ordered)
            .with_own_writes(self.own_writes)
            .with_initial(self.initial)
    }
}

impl fmt::Display for Promised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MultiConn => "multi-conn",
            Self::SingleConnection => "single-connection",
        })
    }
}

/// Why a file cannot be judged.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImportError {
    #[error("line {line}: {why}")]
    Line {
        /// Counted from 1.
        line: u64,
        /// No source: it is in the words already, and would be said twice.
        why: LineError,
    },
    #[error("there is no line in it")]
    Empty,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What is wrong with a line.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LineError {
    #[error("it is longer than {} MiB", lines::MOST_BYTES >> 20)]
    TooLong,
    #[error("it is not UTF-8")]
    NotText,
    #[error("the last line is not complete")]
    CutOff,
    #[error(
        "this is no known form of a history, which begins with `granule BYTES`, \
         {{\"granule\": BYTES}}, or the time of a log"
    )]
    UnknownForm,
    #[error("it is not of the form {0}")]
    Form(&'static str),
    #[error("it is not JSON: {0}")]
    Json(String),
    #[error("{field} is not {expected}")]
    Field {
        field: &'static str,
        expected: &'static str,
    },
    #[error("this cannot have happened: {0}")]
    Impossible(#[from] Malformed),
    #[error("this cannot have happened: {0}")]
    ImpossibleLog(&'static str),
    #[error(
        "connections were opened at the same time, so it cannot be told which of the two logs a \
         line belongs to; or there is a filter between them that does more than to flush"
    )]
    Ambiguous,
    #[error("more of the export is in use than can be followed here: {0}")]
    TooMuch(&'static str),
}

impl LineError {
    pub(crate) const fn at(self, line: u64) -> ImportError {
        ImportError::Line { line, why: self }
    }
}

/// What came of a file.
#[derive(Debug)]
pub(crate) enum Imported {
    /// A history with contents.
    Judged(Judged),
    /// A log of nbdkit with one log filter.
    Log(nbdkit::Log),
    /// A log of nbdkit with a log filter above and one below others.
    Layers(layers::Layers),
}

/// A history that was held against the promise.
#[derive(Debug)]
pub(crate) struct Judged {
    pub(crate) header: Header,
    pub(crate) summary: Summary,
    pub(crate) violation: Option<Found>,
}

/// A broken promise, and where that shows.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) line: u64,
    pub(crate) violation: Box<Violation>,
}

/// What can be said of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Held,
    Broken,
    /// Nothing could have contradicted the promise.
    None,
}

impl Imported {
    pub(crate) const fn verdict(&self) -> Verdict {
        match self {
            Self::Judged(it) if it.violation.is_some() => Verdict::Broken,
            Self::Judged(it) if it.summary.blocks_read == 0 => Verdict::None,
            Self::Judged(_) => Verdict::Held,
            Self::Log(_) => Verdict::None,
            Self::Layers(it) if it.broken.is_some() => Verdict::Broken,
            Self::Layers(it) if it.promises == 0 => Verdict::None,
            Self::Layers(_) => Verdict::Held,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Held => "HELD",
            Self::Broken => "BROKEN",
            Self::None => "NO VERDICT",
        })
    }
}

/// Reads a file, or standard input, and judges what is in it.
///
/// # Errors
///
/// Says why it cannot be judged, with the number of the line.
pub(crate) fn import(path: &Path, options: &ImportOptions) -> Result<Imported, ImportError> {
    if path == Path::new("-") {
        return judge(io::stdin().lock(), options);
    }
    judge(
        BufReader::with_capacity(1 << 20, File::open(path)?),
        options,
    )
}

/// The same for anything that can be read.
pub(crate) fn judge(input: impl BufRead, options: &ImportOptions) -> Result<Imported, ImportError> {
    let mut lines = Lines::new(input);
    let Some((number, first)) = lines.next_with_words()? else {
        return Err(ImportError::Empty);
    };
    let format = match options.format {
        Some(format) => format,
        None => recognise(first).ok_or(LineError::UnknownForm.at(number))?,
    };
    let promised = options.promise;
    match format {
        Format::Text => text::judge(lines, promised).map(Imported::Judged),
        Format::Json => json::judge(lines, promised).map(Imported::Judged),
        Format::NbdkitLogs | Format::NbdkitLog | Format::NbdkitLogPair => {
            let filters = match format {
                Format::NbdkitLog => nbdkit::Filters::One,
                Format::NbdkitLogPair => nbdkit::Filters::Two,
                _ => nbdkit::Filters::Any,
            };
            nbdkit::judge(lines, filters, promised.unwrap_or_default())
        }
    }
}

fn recognise(first: &str) -> Option<Format> {
    if first.starts_with('{') {
        return Some(Format::Json);
    }
    if first.starts_with("granule") {
        return Some(Format::Text);
    }
    nbdkit::has_time(first).then_some(Format::NbdkitLogs)
}

#[cfg(test)]
mod simulated;
#[cfg(test)]
mod tests;
