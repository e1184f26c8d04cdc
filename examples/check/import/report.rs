//! What is said of a history, in words and as JSON.

use std::fmt;

use nbd_proto::multiplex::Tally;
use serde_json::{Value, json};

use super::super::shared::count::count;
use super::layers::{Broken, Layers, Lines, Unflushed};
use super::nbdkit::Log;
use super::uncovered::{Example, Totals, Why};
use super::{Imported, Judged, Verdict};

impl fmt::Display for Imported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = self.verdict();
        match self {
            Self::Judged(it) => judged(it, f),
            Self::Log(it) => {
                log(it, f)?;
                writeln!(
                    f,
                    "{verdict}: a log of one filter shows what clients have left unflushed, and has \
                     nothing that could contradict a promise: no contents, and not what became of \
                     the flushes"
                )
            }
            Self::Layers(it) => {
                layers(it, f)?;
                writeln!(f, "{verdict}: {}", of_layers(it))
            }
        }
    }
}

fn judged(judged: &Judged, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match &judged.violation {
        Some(found) => {
            let violation = found.violation.to_string();
            writeln!(f, "{}: {}", Verdict::Broken, violation.trim_end())?;
            write!(f, "found at line {}, within ", found.line)?;
        }
        None if judged.summary.blocks_read == 0 => write!(
            f,
            "{}: no read has succeeded, so nothing could contradict the promise of {} in ",
            Verdict::None,
            judged.header.promised
        )?,
        None => write!(
            f,
            "{}: nothing contradicts the promise of {} in ",
            Verdict::Held,
            judged.header.promised
        )?,
    }
    let it = judged.summary;
    writeln!(
        f,
        "{}: {}, {}, {}, {} read and compared, {} failed",
        count(it.events, "event"),
        count(it.commands, "operation"),
        count(it.flushes, "flush"),
        count(it.crashes, "crash"),
        count(it.blocks_read, "block"),
        count(it.failed, "command")
    )
}

fn log(log: &Log, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    tally(&log.tally, f)?;
    for (totals, whose) in [
        (&log.all, "if a flush is for all connections (multi-conn)"),
        (&log.own, "if a flush is for its own connection only"),
    ] {
        let uncovered = totals.uncovered.writes;
        writeln!(f, "{whose}:")?;
        writeln!(
            f,
            "  covered by a flush or by FUA: {}",
            Many(totals.covered)
        )?;
        writeln!(
            f,
            "  answered and never covered:   {}",
            Many(totals.uncovered)
        )?;
        for example in &totals.examples {
            writeln!(f, "    {}", Told(example))?;
        }
        let told = totals.examples.len() as u64;
        if told > 0 && told < uncovered {
            writeln!(f, "    and {} more", uncovered - told)?;
        }
    }
    let (failed, unanswered) = (log.own.failed, log.own.unanswered);
    writeln!(
        f,
        "{} failed, {} not answered",
        count(failed.writes, "modification"),
        unanswered.writes
    )
}

fn tally(it: &super::nbdkit::Tally, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    writeln!(
        f,
        "{}: {}, {}, {}, {}, {}; {} failed",
        count(it.lines, "line"),
        count(it.connections, "connection"),
        count(it.reads, "read"),
        count(it.modifications, "modification"),
        count(it.flushes, "flush"),
        count(it.others, "other command"),
        it.failed
    )?;
    if it.runs > 1 {
        writeln!(f, "the server was started {} times", it.runs)?;
    }
    if it.cut_off {
        writeln!(f, "the last line is not complete, and was not used")?;
    }
    Ok(())
}

fn layers(layers: &Layers, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    tally(&layers.tally, f)?;
    writeln!(
        f,
        "(both filters counted.) {} flushes and commands with FUA have succeeded above",
        layers.promises
    )?;
    match &layers.broken {
        Some(broken) => explain(broken, f),
        None => Ok(()),
    }
}

fn of_layers(layers: &Layers) -> &'static str {
    match layers.broken {
        Some(_) => {
            "data that was promised to be on permanent storage may be in a cache, if the backend \
             has one for each connection"
        }
        None if layers.promises == 0 => {
            "no flush and no command with FUA has succeeded above, so nothing was promised"
        }
        None => {
            "whatever was answered for by a flush or FUA above had been flushed below, each through \
             its own connection. Only that was checked: contents are not in this log, so it shows \
             nothing of what reads have found"
        }
    }
}

fn explain(broken: &Broken, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let Broken { promise, range, .. } = broken;
    let what = match broken.is_flush {
        true => "a flush",
        false => "a command with FUA",
    };
    writeln!(f, "\n{what} has succeeded that cannot be relied on:")?;
    writeln!(
        f,
        "  {}: {} to {:#x} above",
        Where(&broken.above),
        match broken.is_flush {
            true => format!("modifies {:#x}", range.start),
            false => format!("modifies, with FUA, {:#x}", range.start),
        },
        range.end
    )?;
    writeln!(f, "  {}: is executed below", Where(&broken.below))?;
    let answered = promise.answered;
    let connection = broken.below.connection;
    match broken.why {
        Unflushed::NotYet => writeln!(
            f,
            "  up to line {answered}: no flush of connection {connection} below was called after \
             line {} and has succeeded",
            broken.below.answered
        )?,
        Unflushed::Closed => writeln!(
            f,
            "  up to line {answered}: connection {connection} below was closed, and not flushed \
             before"
        )?,
        Unflushed::Failed => writeln!(
            f,
            "  up to line {answered}: the flush of connection {connection} below has failed"
        )?,
    }
    if broken.is_flush {
        writeln!(f, "  {}: flushes above, with success", Where(promise))?;
    }
    writeln!(f)
}

struct Where<'a>(&'a Lines);

impl fmt::Display for Where<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Lines {
            connection,
            called,
            answered,
        } = self.0;
        write!(f, "lines {called} to {answered}: connection {connection}")
    }
}

struct Many(Tally);

impl fmt::Display for Many {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tally { writes, bytes } = self.0;
        let (writes, bytes) = (count(writes, "modification"), count(bytes, "byte"));
        write!(f, "{writes}, {bytes}")
    }
}

struct Told<'a>(&'a Example);

impl fmt::Display for Told<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Example { place, why } = self.0;
        let range = place.range;
        write!(
            f,
            "line {}: connection {}, {:#x} to {:#x}: {}",
            place.called,
            place.connection,
            range.start,
            range.end,
            match why {
                Why::NeverFlushed => "no flush came",
                Why::ConnectionEnded => "its connection was closed before a flush",
                Why::FlushFailed => "a flush failed",
            }
        )
    }
}

impl Imported {
    /// For programs.
    pub(crate) fn to_json(&self) -> Value {
        let verdict = match self.verdict() {
            Verdict::Held => "held",
            Verdict::Broken => "broken",
            Verdict::None => "none",
        };
        match self {
            Self::Judged(it) => json!({
                "verdict": verdict,
                "checked": "contents",
                "promise": it.header.promised.to_string(),
                "granule": it.header.granule,
                "events": it.summary.events,
                "commands": it.summary.commands,
                "failed": it.summary.failed,
                "flushes": it.summary.flushes,
                "blocks_read": it.summary.blocks_read,
                "crashes": it.summary.crashes,
                "violation": it.violation.as_ref().map(|found| json!({
                    "clause": found.violation.clause().to_string(),
                    "offset": found.violation.offset(),
                    "events": found.violation.events(),
                    "line": found.line,
                    "explanation": found.violation.to_string(),
                })),
            }),
            Self::Log(it) => json!({
                "verdict": verdict,
                "checked": "nothing",
                "lines": it.tally.lines,
                "multi_conn": totals(&it.all),
                "single_connection": totals(&it.own),
            }),
            Self::Layers(it) => json!({
                "verdict": verdict,
                "checked": "flushes",
                "promise": it.promised.to_string(),
                "lines": it.tally.lines,
                "promises": it.promises,
                "below": totals(&it.below),
                "violation": it.broken.as_ref().map(|broken| json!({
                    "offset": broken.range.start,
                    "length": broken.range.length(),
                    "promise": lines(&broken.promise),
                    "above": lines(&broken.above),
                    "below": lines(&broken.below),
                    "explanation": explained(broken),
                })),
            }),
        }
    }
}

fn explained(broken: &Broken) -> String {
    struct Explained<'a>(&'a Broken);
    impl fmt::Display for Explained<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            explain(self.0, f)
        }
    }
    Explained(broken).to_string().trim().to_owned()
}

fn lines(it: &Lines) -> Value {
    json!({"connection": it.connection, "lines": [it.called, it.answered]})
}

fn totals(it: &Totals) -> Value {
    json!({
        "covered": it.covered.writes,
        "uncovered": it.uncovered.writes,
        "uncovered_bytes": it.uncovered.bytes,
        "failed": it.failed.writes,
        "unanswered": it.unanswered.writes,
    })
}
