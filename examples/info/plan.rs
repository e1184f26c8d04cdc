//! Whether and how a client may use several connections, and why; and whether the server keeps to
//! what it announces when they come.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::time::Duration;

use anyhow::{Context, Result};
use nbd_proto::handshake::{Negotiated, Wanted};
use nbd_proto::multiplex::{Caution, Intent, NotAdmitted, Plan, Routing, Use, plan};
use nbd_proto::wire::Name;
use serde_json::{Value, json};

use super::facts::{ALLOCATION, leave};
use super::link::{Place, Wire};

/// A server that says nothing to a further connection often serves one at a time.
const PATIENCE: Duration = Duration::from_secs(10);

/// What connections may be for, in the words of the answer.
const USES: [(Use, &str, &str); 3] = [
    (Use::Read, "read", "To read"),
    (Use::Copy, "copy", "To be the destination of a copy"),
    (Use::Disk, "disk", "To be a disk"),
];

/// A plan, and what it is for.
#[derive(Debug)]
struct Answer {
    key: &'static str,
    title: &'static str,
    caution: Caution,
    plan: Plan,
}

/// What came of trying to open the connections that the server allows.
#[derive(Debug, Default)]
struct Tried {
    others: Vec<Negotiated>,
    /// Why there are no more, if it is not that no more are needed.
    end: Option<String>,
}

/// Says what may be done with up to so many connections.
pub(crate) fn show_plan(place: &Place<'_>, connections: u32, as_json: bool) -> Result<()> {
    let wanted = Wanted::new(place.uri.export.clone())
        .with_contexts(Name::new(ALLOCATION).ok())
        .with_name(true);
    let (mut wire, first) = place.enter(wanted.clone())?;
    let strict = |(usage, key, title)| Answer {
        key,
        title,
        caution: Caution::Strict,
        plan: plan(&first, Intent::new(usage, connections)),
    };
    let mut answers: Vec<_> = USES.into_iter().map(strict).collect();
    let most = answers.iter().map(|it| it.plan.to_open()).max();
    let (mut wires, tried) = open(place, &wanted, most.unwrap_or(0));
    for answer in &mut answers {
        take(&mut answer.plan, &tried);
    }
    for (other, negotiated) in wires.iter_mut().zip(&tried.others) {
        leave(other, negotiated);
    }
    leave(&mut wire, &first);
    let bolder: Vec<_> = answers
        .iter()
        .filter_map(|answer| bolder(answer, &first, connections))
        .collect();
    answers.extend(bolder);

    let text = if as_json {
        let plans: Vec<_> = answers.iter().map(to_json).collect();
        let value = json!({
            "export-name": place.uri.export.as_str(),
            "uri": place.uri.to_string(),
            "asked": connections,
            "tried": 1 + tried.others.len(),
            "tried-end": tried.end,
            "plans": plans,
        });
        format!("{value:#}\n")
    } else {
        to_text(place, &answers, &tried)
    };
    let written = io::stdout().write_all(text.as_bytes());
    written.context("cannot write the plan")
}

/// Opens so many further connections, or as many as can be had.
fn open<'a>(place: &Place<'a>, wanted: &Wanted, count: u32) -> (Vec<Wire<'a>>, Tried) {
    let place = Place {
        timeout: place.timeout.min(PATIENCE),
        ..place.clone()
    };
    let mut wires = Vec::new();
    let mut tried = Tried::default();
    for _ in 0..count {
        match place.enter(wanted.clone()) {
            Ok((wire, negotiated)) => {
                wires.push(wire);
                tried.others.push(negotiated);
            }
            Err(why) => {
                // Without the URI, which is known.
                tried.end = Some(why.root_cause().to_string());
                break;
            }
        }
    }
    (wires, tried)
}

/// Carries a plan on by what came of opening its connections.
fn take(plan: &mut Plan, tried: &Tried) {
    for other in &tried.others {
        // What differs is among the plan's reasons.
        if let Err(NotAdmitted::Enough) = plan.admit(other) {
            return;
        }
    }
    plan.unavailable();
}

/// What is possible where the server promises nothing, if the user knows better.
fn bolder(answer: &Answer, first: &Negotiated, connections: u32) -> Option<Answer> {
    let (usage, ..) = *USES.iter().find(|(_, key, _)| *key == answer.key)?;
    let (caution, title) = match usage {
        Use::Read => (
            Caution::Readers,
            "To read, if it is known that nobody writes meanwhile",
        ),
        Use::Copy => (
            Caution::Insist,
            "To be the destination of a copy, if it is known that connections share their data",
        ),
        Use::Disk => (
            Caution::Insist,
            "To be a disk, if it is known that connections share their data",
        ),
    };
    let intent = Intent::new(usage, connections).with_caution(caution);
    let plan = plan(first, intent);
    (answer.plan.connections() == 1 && plan.connections() > 1).then_some(Answer {
        title,
        caution,
        plan,
        ..*answer
    })
}

fn to_text(place: &Place<'_>, answers: &[Answer], tried: &Tried) -> String {
    let mut text = format!("export {:?}\n", place.uri.export);
    // Writing to a string cannot fail.
    for answer in answers {
        let _ = writeln!(text, "{}:", answer.title);
        for line in answer.plan.to_string().lines() {
            let _ = writeln!(text, "  {line}");
        }
    }
    if let Some(why) = &tried.end {
        let count = 1 + tried.others.len();
        let _ = writeln!(text, "Connection {} could not be had: {why}", count + 1);
    }
    for (at, other) in tried.others.iter().enumerate() {
        if let Some(answer) = answers.first()
            && let Err(mismatch) = answer.plan.check(other)
        {
            let _ = writeln!(text, "Connection {}: {mismatch}", at + 2);
        }
    }
    text
}

fn to_json(answer: &Answer) -> Value {
    let plan = &answer.plan;
    let (routing, granule) = match plan.routing() {
        Routing::Single => ("single", None),
        Routing::Any => ("any", None),
        Routing::Pinned(pinning) => ("pinned", Some(pinning.granule())),
    };
    let caution = match answer.caution {
        Caution::Strict => "strict",
        Caution::Readers => "readers",
        Caution::Insist => "insist",
    };
    let sentences = |all: &mut dyn Iterator<Item = String>| all.collect::<Vec<_>>();
    json!({
        "use": answer.key,
        "caution": caution,
        "connections": plan.connections(),
        "routing": routing,
        "granule": granule,
        "flushing": plan.flushing().to_string(),
        "final-flush": plan.final_flush(),
        "reasons": sentences(&mut plan.reasons().iter().map(ToString::to_string)),
        "missing": sentences(&mut plan.missing().iter().map(ToString::to_string)),
    })
}
