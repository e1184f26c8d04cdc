//! Copies from or to NBD servers: `copy SRC DST`, where either is an NBD URI or a file.
//!
//! It ends with success only if every byte was received, is right, and was taken by the
//! destination, and if the destination's flush, where it has one, succeeded. See `copy --help`.

mod connect;
mod durability;
mod endpoint;
mod engine;
mod feeder;
mod file;
mod flusher;
mod options;
mod pair;
mod place;
mod plan;
mod progress;
mod ranges;
#[path = "../shared/mod.rs"]
mod shared;
#[path = "../shared/size.rs"]
mod size;
mod state;
mod verifier;
mod work;
mod worker;
mod zeroes;

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use indicatif::{BinaryBytes, HumanBytes};
use nbd_proto::multiplex::Flushing;
use signal_hook::consts::SIGXFSZ;

use connect::Ways;
use durability::Durability;
use endpoint::{Destination, Source};
use engine::{Outcome, Stage};
use file::{DestinationFile, How};
use options::Options;
use place::Place;
use plan::Sizes;
use progress::Progress;
use shared::connection::Settings;
use shared::signals::Signals;
use shared::uri::BadUri;
use state::{Failure, Job, State};
use work::Work;

fn main() -> ExitCode {
    let options = match Options::try_parse() {
        Ok(options) => options,
        Err(error) if error.use_stderr() => {
            say(&shared::usage::one_line(&error, "copy"));
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

/// A URI that is none is a wrong command line; what it names may only be missing.
fn not_understood(error: anyhow::Error) -> Ended {
    let status = if error.is::<BadUri>() { 2 } else { 1 };
    Ended {
        status,
        ..error.into()
    }
}

/// One line on stderr. If that is closed there is nobody to tell.
fn say(words: &str) {
    let line = words.replace('\n', " ");
    let _ = writeln!(io::stderr(), "copy: {line}");
}

fn copy(options: &Options) -> Result<(), Ended> {
    let signals = Signals::listen().context("cannot listen to signals")?;
    // Listened to, so that a limit on the size of files is an error of the write, not our end.
    signal_hook::flag::register(SIGXFSZ, Arc::default()).context("cannot listen to signals")?;
    let for_destination = Settings {
        capacity: options.capacity(),
        timeout: options.timeout(),
        status: false,
        signals: &signals,
    };
    let for_source = Settings {
        status: true,
        ..for_destination
    };
    let [from, to] = options.places().map_err(not_understood)?;
    let opened = Source::open(from, &for_source);
    let source = or_stopped(&signals, opened)?;
    if options.dry_run && matches!(to, Place::File(_)) {
        return dry_run_to_file(options, &source, &to);
    }
    let how = How {
        verify: options.verify,
        allocate: options.allocate,
        is_zero: options.destination_is_zero,
    };
    let opened = Destination::open(to, &source, how, &for_destination);
    let mut destination = or_stopped(&signals, opened)?;
    let (connections, caution) = (options.connections(), options.caution());
    let mut ways = Ways::new(&source, Some(&destination), connections, caution);
    let sizes = Sizes::new(options, &source, Some(&destination))?;
    if options.dry_run {
        destination.check_room(sizes.size())?;
        return tell(&plan::describe(
            options,
            &ways,
            &sizes,
            &source,
            Some(&destination),
        ));
    }
    // From here on, what was in the destination is lost.
    destination.make_room(sizes.size())?;
    let remark = |words: &str| {
        if !options.quiet {
            say(words);
        }
    };
    if ways.flushing() == Flushing::Impossible {
        remark("the destination has no flush: when its data is on permanent storage is not known");
    }
    let name = destination.place().to_string();
    let settings = [&for_source, &for_destination];
    let pairs = ways.open(source, destination, connections, settings, &remark);
    if let Some(signal) = signals.caught() {
        return Err(stopped(signal, "before anything was copied"));
    }

    let job = sizes.job(options, &ways, pairs.len());
    let work = Work::new(job.cut.size, job.cut.block, pairs.len(), ways.pinning());
    let scope = (job.flush || job.fua).then(|| ways.scope());
    let durability = Durability::new(scope, pairs.len());
    let progress = Progress::new(job.cut.size, options.quiet);
    let state = State::new(job, work, durability, &signals, &progress);
    let state = state.context("cannot begin the copy")?;
    let begun = Instant::now();
    let outcome = engine::run(pairs, &state);
    let time = begun.elapsed();
    progress.clear();
    match &outcome.failure {
        None => {
            if !options.quiet {
                // The copy is made, whether or not anyone reads of it.
                let _ = writeln!(io::stdout(), "{}", summary(&job, time));
            }
            Ok(())
        }
        Some(Failure::Signal(signal)) => {
            Err(stopped(*signal, &what_is_left(&outcome, &job, &name)))
        }
        Some(Failure::Error(why)) => Err(Ended {
            words: format!("{why}; {}", what_is_left(&outcome, &job, &name)),
            status: 1,
        }),
    }
}

/// What could not be opened because of a signal is the signal's fault.
fn or_stopped<T>(signals: &Signals, opened: Result<T>) -> Result<T, Ended> {
    match signals.caught() {
        Some(signal) => Err(stopped(signal, "before anything was copied")),
        None => Ok(opened?),
    }
}

/// Plans without touching the file, which may not even exist.
fn dry_run_to_file(options: &Options, source: &Source, to: &Place) -> Result<(), Ended> {
    if let Place::File(path) = to {
        DestinationFile::look(path, source.file()).with_context(|| to.to_string())?;
    }
    let ways = Ways::new(source, None, options.connections(), options.caution());
    let sizes = Sizes::new(options, source, None)?;
    tell(&plan::describe(options, &ways, &sizes, source, None))
}

fn tell(text: &str) -> Result<(), Ended> {
    let written = io::stdout().write_all(text.as_bytes());
    Ok(written.context("cannot write the plan")?)
}

/// What a copy that has failed leaves behind.
fn what_is_left(outcome: &Outcome, job: &Job, name: &str) -> String {
    let Outcome {
        copied, durable, ..
    } = outcome;
    let size = job.cut.size;
    match outcome.stage {
        Stage::Copying if *copied < size => {
            format!("{copied} of {size} bytes were copied, and {name} is incomplete; {durable}")
        }
        Stage::Copying | Stage::Flushing => {
            format!("all {copied} bytes were written, but {name} was not flushed; {durable}")
        }
        Stage::Verifying | Stage::Verified => {
            format!("all {copied} bytes were written, but {name} is not verified")
        }
    }
}

/// By convention, 128 and the number of the signal.
fn stopped(signal: u8, rest: &str) -> Ended {
    Ended {
        words: format!("stopped by a signal; {rest}"),
        status: 128_u8.saturating_add(signal),
    }
}

fn summary(job: &Job, time: Duration) -> String {
    let size = job.cut.size;
    let seconds = time.as_secs_f64().max(0.000_001);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a rate for people to read"
    )]
    let rate = (size as f64 / seconds) as u64;
    let verified = if job.verify { "verified, " } else { "" };
    let flushed = if job.flush {
        "flushed"
    } else if job.fua {
        "written with FUA"
    } else {
        "not flushed"
    };
    format!(
        "{size} bytes ({}) copied in {seconds:.3} s, {}/s, {verified}{flushed}",
        BinaryBytes(size),
        HumanBytes(rate),
    )
}
