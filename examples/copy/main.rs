//! Copies from or to NBD servers: `copy SRC DST`, where either is an NBD URI or a file.
//!
//! It ends with success only if every byte was received, is right, and was taken by the
//! destination, and if the destination's flush, where it has one, succeeded. See `copy --help`.

mod endpoint;
mod engine;
mod file;
mod options;
mod progress;
#[path = "../shared/mod.rs"]
mod shared;
#[path = "../shared/size.rs"]
mod size;
mod zeroes;

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use indicatif::{BinaryBytes, HumanBytes};
use signal_hook::consts::SIGXFSZ;

use endpoint::{Destination, Source};
use engine::{Failure, Flushed, Outcome, Plan};
use nbd_proto::session::Session;
use options::Options;
use progress::Progress;
use shared::connection::{Connection, Settings};
use shared::signals::Signals;

/// A server may refuse to zero more at once than it takes as data (proto.md "Size constraints").
const MAX_HOLE: u32 = 32 << 20;

fn main() -> ExitCode {
    let options = match Options::try_parse() {
        Ok(options) => options,
        Err(error) if error.use_stderr() => {
            say(&one_line(&error.render().to_string()));
            return ExitCode::from(2);
        }
        Err(help) => {
            // If nobody reads it, nobody needs help.
            let _ = help.print();
            return ExitCode::SUCCESS;
        }
    };
    match copy(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Ended { words, status }) => {
            say(&words);
            ExitCode::from(status)
        }
    }
}

/// Why it ended without success.
struct Ended {
    words: String,
    status: u8,
}

impl From<anyhow::Error> for Ended {
    fn from(error: anyhow::Error) -> Self {
        Self {
            words: format!("{error:#}"),
            status: 1,
        }
    }
}

/// One line on stderr. If that is closed there is nobody to tell.
fn say(words: &str) {
    let line = words.replace('\n', " ");
    let _ = writeln!(io::stderr(), "copy: {line}");
}

/// What is wrong with the command line, without what `--help` says as well.
fn one_line(error: &str) -> String {
    let error = error.strip_prefix("error: ").unwrap_or(error);
    let words: Vec<_> = error
        .lines()
        .take_while(|line| !line.is_empty())
        .map(str::trim)
        .collect();
    format!("{}; see copy --help", words.join(" "))
}

fn copy(options: &Options) -> Result<(), Ended> {
    let signals = Signals::listen().context("cannot listen to signals")?;
    // Listened to, so that a limit on the size of files is an error of the write, not our end.
    signal_hook::flag::register(SIGXFSZ, Arc::default()).context("cannot listen to signals")?;
    let settings = Settings {
        // One more for the flush.
        capacity: options.requests() + 1,
        timeout: options.timeout(),
        signals: &signals,
    };
    let opened = open(options, &settings);
    if let Some(signal) = signals.caught() {
        return Err(stopped(signal, "before anything was copied"));
    }
    let (source, mut destination) = opened?;
    let plan = plan(options, &source, &destination)?;
    // From here on, what was in the destination is lost.
    destination.make_room(plan.size)?;
    let flushable = destination.has_flush();
    if !flushable && !options.quiet {
        say("the destination has no flush: when its data is on permanent storage is not known");
    }
    let name = destination.place().to_string();

    let progress = Progress::new(plan.size, options.quiet);
    let begun = Instant::now();
    let Outcome { copied, result } = engine::run(source, destination, plan, &signals, &progress);
    let time = begun.elapsed();
    progress.clear();

    let rest = if copied < plan.size {
        format!(
            "{copied} of {} bytes were copied, and {name} is incomplete",
            plan.size
        )
    } else {
        format!("all {copied} bytes were written, but {name} was not flushed")
    };
    match result {
        Ok(flushed) => {
            if !options.quiet {
                // The copy is made, whether or not anyone reads of it.
                let _ = writeln!(io::stdout(), "{}", summary(copied, time, flushed));
            }
            Ok(())
        }
        Err(Failure::Signal(signal)) => Err(stopped(signal, &rest)),
        Err(Failure::Error(why)) => Err(Ended {
            words: format!("{why}; {rest}"),
            status: 1,
        }),
    }
}

fn open(options: &Options, settings: &Settings<'_>) -> Result<(Source, Destination)> {
    let (from, to) = (options.source()?, options.destination()?);
    let source = Source::open(from, settings)?;
    let destination = Destination::open(to, &source, settings)?;
    Ok((source, destination))
}

/// By convention, 128 and the number of the signal.
fn stopped(signal: u8, rest: &str) -> Ended {
    Ended {
        words: format!("stopped by a signal; {rest}"),
        status: 128_u8.saturating_add(signal),
    }
}

/// Blocks that suit both ends (proto.md "Size constraints").
fn plan(options: &Options, source: &Source, destination: &Destination) -> Result<Plan> {
    let size = source.size();
    ensure!(
        i64::try_from(size).is_ok(),
        "the source is said to be {size} bytes long, which nothing can be"
    );
    let mut unit = 512;
    let mut block = options.request_size();
    for session in [source.connection(), destination.connection()]
        .into_iter()
        .flatten()
        .map(Connection::session)
    {
        let smallest = session.block_sizes().minimum();
        ensure!(
            size.is_multiple_of(smallest.into()),
            "the source has {size} bytes, which is not a multiple of the {smallest} bytes that \
             an end of the copy takes at least at once: make it a multiple"
        );
        unit = unit.max(smallest);
        block = block.min(max_payload(session));
    }
    // Not below one unit, where the user wants less.
    let block = block - block % unit;
    let block = if block == 0 { unit } else { block };
    for connection in [source.connection(), destination.connection()]
        .into_iter()
        .flatten()
    {
        ensure!(
            block <= max_payload(connection.session()),
            "what one end takes at most at once is less than what the other takes at least"
        );
    }
    let hole = destination.connection().map_or(MAX_HOLE, |connection| {
        MAX_HOLE.min(max_payload(connection.session()))
    });
    Ok(Plan {
        size,
        block: usize::try_from(block).unwrap_or(usize::MAX),
        hole: u64::from(hole - hole % block),
        blocks: options.requests(),
        timeout: options.timeout(),
    })
}

fn max_payload(session: &Session) -> u32 {
    session.block_sizes().max_payload()
}

fn summary(copied: u64, time: Duration, flushed: Flushed) -> String {
    let seconds = time.as_secs_f64().max(0.000_001);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a rate for people to read"
    )]
    let rate = (copied as f64 / seconds) as u64;
    let flushed = match flushed {
        Flushed::Yes => "flushed",
        Flushed::Unavailable => "not flushed",
    };
    format!(
        "{copied} bytes ({}) copied in {seconds:.3} s, {}/s, {flushed}",
        BinaryBytes(copied),
        HumanBytes(rate),
    )
}
