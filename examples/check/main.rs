//! Judges an NBD server: `check URI` finds out whether what it promises about flush, FUA and
//! multi-conn is so; see `check --help`.
//!
//! With `--import FILE`, a history that was recorded earlier is judged (module `import`).
//!
//! With `--json FILE`, an object with the keys
//!
//! - `uri`, `export`, `size` in bytes, `flags` (words), `reply-style` (`simple`, `structured`,
//!   `extended`), `block-sizes` (least, preferred, maximum payload), `lints` (`text`, `section` of
//!   the protocol, `advice`: whether it is no more than that): what was announced;
//! - `promise` (`multi-conn`, `single connection`), `read-only`, `connections`, `granule` (what
//!   contents are told apart by, in bytes), `seed`, `kills` (how often the server was killed, and
//!   was to be; null without --restart-command): what was done;
//! - `verdict`: `held`, `held so far` (a signal ended it), `broken`, or `unknown`, then with
//!   `error`; `signal`; `seconds` that it took;
//! - `counters`, and `played`: how often each kind of schedule was;
//! - `violation`, or null: `kind` (`promise`, `image`: reads of what nobody modifies differ,
//!   `protocol`: a bad reply), `text`, and of a promise `clause`, `offset`, `found` (the identity
//!   of a content), `events` (their numbers, as in the record), and `steps` with `role`,
//!   `connection`, `action`, `content`, `begun`, `ended` (numbers of events), `failed`, `fua`.

mod contents;
mod dice;
mod empty;
mod engine;
mod fleet;
mod image;
mod import;
mod latency;
mod layout;
mod observer;
mod options;
mod phase;
mod progress;
mod record;
mod report;
mod restart;
mod scene;
mod script;
mod shapes;
#[allow(dead_code, reason = "each program uses its part")]
#[path = "../shared/mod.rs"]
mod shared;
#[allow(dead_code, reason = "each program uses its part")]
#[path = "../shared/size.rs"]
mod size;
mod target;
mod verdict;

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Parser;
use nbd_proto::conformance::{Initial, Promise};
use nbd_proto::multiplex::Mismatch;

use contents::Pattern;
use dice::Dice;
use engine::{Engine, Job};
use fleet::Fleet;
use import::{Header, Promised};
use layout::Layout;
use observer::Observer;
use options::Options;
use progress::{LONG, Progress};
use report::{Report, Setup};
use restart::Restarts;
use shared::connection::Connection;
use shared::count::count;
use shared::signals::Signals;
use shared::waiting::while_waiting;
use target::Target;
use verdict::Verdict;

/// The command line is wrong, or it could not be found out.
const NO_VERDICT: u8 = 2;

fn main() -> ExitCode {
    let options = match Options::try_parse() {
        Ok(options) => options,
        Err(error) if error.use_stderr() => {
            say(&shared::usage::one_line(&error, "check"));
            return ExitCode::from(NO_VERDICT);
        }
        Err(help) => {
            // If nobody reads it, nobody needs help.
            let _ = help.print();
            return ExitCode::SUCCESS;
        }
    };
    if let Some(path) = &options.history.import {
        let status = import(path, &options).unwrap_or_else(|error| {
            say(&format!("{}: {error:#}", path.display()));
            NO_VERDICT
        });
        return ExitCode::from(status);
    }
    let signals = match Signals::listen() {
        Ok(signals) => signals,
        Err(error) => {
            say(&format!("cannot listen to signals: {error}"));
            return ExitCode::from(NO_VERDICT);
        }
    };
    let status = check(&options, &signals).unwrap_or_else(|error| match signals.caught() {
        Some(signal) => {
            say("stopped by a signal before anything was checked");
            // By convention, 128 and the number of the signal.
            128_u8.saturating_add(signal)
        }
        None => {
            say(&format!("{error:#}"));
            NO_VERDICT
        }
    });
    ExitCode::from(status)
}

/// One line on stderr. If that is closed there is nobody to tell.
fn say(words: &str) {
    let line = words.replace('\n', " ");
    let _ = writeln!(io::stderr(), "check: {line}");
}

/// Judges a server.
///
/// # Errors
///
/// If nothing could be checked at all.
fn check(options: &Options, signals: &Signals) -> Result<u8> {
    let (target, mut first) = Target::find(options, signals)?;
    let layout = layout_for(&target)?;
    let empty = is_empty(options, &target, &layout, &mut first)?;
    let seed = options.seed.unwrap_or_else(random);
    let (mut observer, promise) = observe(&target, &layout, empty);
    if let Some(path) = &options.record {
        observer.record_to(path, &header(promise, &layout, empty))?;
    }
    let shared = promise.is_multi_conn() || target.is_read_only();
    let report = options.json.as_deref().map(Report::create).transpose()?;
    let connections = gather(options, &target, &layout, first, shared)?;
    let setup = Setup {
        target: &target,
        layout: &layout,
        connections: connections.len(),
        seed,
    };
    if !options.quiet {
        tell(&setup.text());
    }
    let mut dice = Dice::new(seed);
    // Not by the seed: what an earlier run has left is not to be taken for ours.
    let pattern = (!target.is_read_only()).then(|| Pattern::new(random(), layout.granule()));
    let progress = Progress::new(options.seconds(), options.quiet);
    let granule = layout.granule();
    let fleet = Fleet::new(&target, &progress, connections, observer, pattern, granule);
    let restarts = options.restart_command.as_ref().map(|command| {
        let (uri, timeout) = (target.uri().to_string(), target.timeout());
        let (count, time) = (options.restarts, options.seconds());
        Restarts::new(command, &uri, timeout, count, time, &mut dice)
    });
    let job = Job {
        target: &target,
        layout: &layout,
        abilities: target.abilities(),
        shared,
        seconds: options.seconds(),
        operations: options.operations,
        seed: dice.next(),
        progress: &progress,
    };
    let begun = Instant::now();
    let mut engine = Engine::new(job, fleet, restarts);
    let result = engine.run();
    engine.fleet.observer.finish();
    let result = match engine.fleet.observer.failure() {
        Some(why) if result.is_ok() => Err(anyhow::anyhow!("{why}")),
        _ => result,
    };
    progress.clear();
    let mut verdict = Verdict::of(&engine, promise, result, signals.caught(), begun.elapsed());
    verdict.check_substance(target.abilities(), options.connections);
    let unrecorded = engine.fleet.observer.failure();
    Ok(conclude(&setup, &verdict, unrecorded, report))
}

/// Judges what was recorded earlier.
///
/// # Errors
///
/// If it cannot be judged.
fn import(path: &Path, options: &Options) -> Result<u8> {
    let imported = import::import(path, &options.history)?;
    tell(&imported.to_string());
    let status = match imported.verdict() {
        import::Verdict::Broken => 1,
        import::Verdict::Held | import::Verdict::None => 0,
    };
    let report = options.json.as_deref().map(Report::create).transpose();
    let written = report.and_then(|it| it.map_or(Ok(()), |it| it.write(&imported.to_json())));
    Ok(status_with(status, written))
}

/// Says what came of it, everywhere. `unrecorded`: why not all of it could be written down.
fn conclude(
    setup: &Setup<'_>,
    verdict: &Verdict,
    unrecorded: Option<&str>,
    report: Option<Report>,
) -> u8 {
    tell(&verdict.to_string());
    match (verdict.word(), &verdict.error) {
        ("unknown", Some(why)) if verdict.signal.is_none() => say(why),
        ("broken", _) => unrecorded.into_iter().for_each(say),
        _ if verdict.signal.is_some() => say("stopped by a signal"),
        _ => {}
    }
    let written = report.map_or(Ok(()), |it| it.write(&setup.to_json(verdict)));
    status_with(verdict.status(), written)
}

/// What was found out counts more than that nobody can be told in a file.
fn status_with(status: u8, written: Result<()>) -> u8 {
    match written {
        Ok(()) => status,
        Err(error) => {
            say(&format!("{error:#}"));
            if status == 0 { NO_VERDICT } else { status }
        }
    }
}

/// If nobody reads it, the status still says what is most important.
fn tell(text: &str) {
    let _ = io::stdout().write_all(text.as_bytes());
}

fn layout_for(target: &Target<'_>) -> Result<Layout> {
    let session = target.session();
    let sizes = session.block_sizes();
    Layout::new(
        session.size(),
        sizes.minimum().into(),
        sizes.max_payload().into(),
    )
    .with_context(|| {
        format!(
            "{}: the export is too small to be checked: {} bytes",
            target.uri(),
            session.size()
        )
    })
}

/// Whether there is nothing but zeroes where it will be written to; if there is something anywhere,
/// it has to be allowed to lose it.
fn is_empty(
    options: &Options,
    target: &Target<'_>,
    layout: &Layout,
    first: &mut Connection,
) -> Result<bool> {
    if target.is_read_only() {
        return Ok(false);
    }
    let signals = target.signals();
    if !options.quiet && !options.yes {
        tell("looking whether it is empty\n");
    }
    let found = if options.yes {
        empty::first_data_of(first, layout.cells(), signals)
    } else {
        empty::first_data(first, signals)
    };
    let found = found.with_context(|| format!("{}: cannot see if it is empty", target.uri()))?;
    if let Some(offset) = found {
        if options.yes {
            return Ok(false);
        }
        bail!(
            "{}: there is data at offset {offset}, and checking would overwrite what is there; \
             if nobody needs it, say so with --yes",
            target.uri()
        );
    }
    Ok(true)
}

fn observe(target: &Target<'_>, layout: &Layout, empty: bool) -> (Observer, Promise) {
    let initial = if empty {
        Initial::Zeroes
    } else {
        Initial::Unknown
    };
    let promise = target.promise(initial);
    let observer = Observer::new(promise, layout.granule(), target.is_read_only());
    (observer, promise)
}

/// What the record says of itself.
const fn header(promise: nbd_proto::conformance::Promise, layout: &Layout, empty: bool) -> Header {
    let promised = if promise.is_multi_conn() {
        Promised::MultiConn
    } else {
        Promised::SingleConnection
    };
    let mut header = Header::new(layout.granule(), promised);
    if !empty {
        header.initial = Initial::Unknown;
    }
    header
}

/// As many connections as are wanted, or can be had, or have something to do.
///
/// # Errors
///
/// If they do not get the same thing.
fn gather(
    options: &Options,
    target: &Target<'_>,
    layout: &Layout,
    first: Connection,
    shared: bool,
) -> Result<Vec<Connection>> {
    let most = match layout.cells() {
        _ if shared => usize::MAX,
        cells if cells.iter().all(|it| it.length >= layout::CELL) => cells.len(),
        // What a server keeps at once may be larger than such a cell: then one connection would
        // disturb another, and may.
        _ => 1,
    };
    let wanted = usize::try_from(options.connections).unwrap_or(1).min(most);
    let mut connections = vec![first];
    while connections.len() < wanted && !target.is_stopped() {
        match open_another(options, target, connections.len()) {
            Ok(connection) => connections.push(connection),
            Err(error) if error.is::<Mismatch>() => return Err(error),
            Err(_) if target.is_stopped() => break,
            Err(error) => {
                let several = count(connections.len(), "connection");
                say(&format!("going on with {several}: {error:#}"));
                break;
            }
        }
    }
    Ok(connections)
}

/// One connection more than there are. Some servers serve one client at a time, and say nothing to
/// the next.
fn open_another(options: &Options, target: &Target<'_>, there: usize) -> Result<Connection> {
    if options.quiet {
        return target.open_another();
    }
    let there = count(there, "connection");
    let seconds = target.patience().as_secs();
    let tell = || {
        say(&format!(
            "with {there} so far, waiting up to {seconds} s for the server to take another"
        ));
    };
    while_waiting(LONG, tell, || target.open_another())
}

/// A number that nobody has chosen.
fn random() -> u64 {
    RandomState::new().hash_one(std::process::id())
}
