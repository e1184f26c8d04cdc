//! All exports of a server.

use std::io::{self, Write};

use anyhow::{Context, Result, anyhow, ensure};
use nbd_proto::handshake::{Inspect, Listed, Report};
use nbd_proto::wire::{GreetingStyle, HandshakeFlags, Name};

use super::facts::{Protocol, learn};
use super::link::Place;
use super::show::{Export, Show};

/// Shows all exports. Each is asked about on connections of its own: what GO says is what clients
/// get, and some servers hang up after so many options (nbdkit after 32).
pub(crate) fn list(place: &Place<'_>, most: usize, show: &mut Show<impl Write>) -> Result<()> {
    let (report, end) = place.inspect(Inspect::new().with_list(true))?;
    let protocol = protocol(&report);
    let Some(protocol) = protocol else {
        end?;
        return Err(anyhow!("{}: the server did not greet", place.uri));
    };
    let names = names(place, report, protocol, end)?;
    written(show.protocol(protocol))?;
    let mut failures = 0_usize;
    for (at, listed) in names.iter().enumerate() {
        let uri = place.uri.with_export(listed.name.clone());
        let facts = (at < most).then(|| learn(&place.with_uri(uri.clone())));
        if place.signals.caught().is_some() {
            return Err(anyhow!("stopped by a signal"));
        }
        let facts = facts.map(|facts| facts.map_err(|why| format!("{why:#}")));
        failures += usize::from(matches!(facts, Some(Err(_))));
        let export = Export {
            uri: &uri,
            description: Some(&listed.description),
            facts: facts
                .as_ref()
                .map(|facts| facts.as_ref().map_err(String::as_str)),
        };
        written(show.export(&export))?;
        // Where one takes too long or cannot be had, so may all the others.
        ensure!(
            failures < MAX_FAILURES,
            "{}: given up after {failures} exports that cannot be had",
            place.uri
        );
    }
    written(show.end())?;
    ensure!(
        failures == 0,
        "{}: {failures} of {} exports cannot be had",
        place.uri,
        names.len()
    );
    Ok(())
}

/// How many exports may fail before the rest is left alone.
const MAX_FAILURES: usize = 5;

fn written(result: io::Result<()>) -> Result<()> {
    result.context("cannot write the list")
}

fn protocol(report: &Report) -> Option<Protocol> {
    let (greeting, flags) = report.greeting?;
    Some(Protocol {
        greeting,
        fixed: flags.contains(HandshakeFlags::FIXED_NEWSTYLE),
        tls: report.tls,
        reply_style: report.reply_style,
    })
}

/// The names of all exports.
fn names(
    place: &Place<'_>,
    report: Report,
    protocol: Protocol,
    end: Result<()>,
) -> Result<Vec<Entry>> {
    if protocol.greeting == GreetingStyle::Oldstyle {
        // There is one, which needs no name.
        return Ok(vec![Entry::default()]);
    }
    match report.list {
        Some(Ok(listed)) => Ok(listed.into_iter().map(Entry::from).collect()),
        Some(Err(refused)) => Err(anyhow!(
            "{}: {refused}; without --list, the export of the URI is shown",
            place.uri
        )),
        None => {
            end?;
            Err(anyhow!(
                "{}: the server did not list its exports",
                place.uri
            ))
        }
    }
}

#[derive(Debug, Default)]
struct Entry {
    name: Name,
    description: Name,
}

impl From<Listed> for Entry {
    fn from(listed: Listed) -> Self {
        Self {
            name: listed.name,
            description: listed.description,
        }
    }
}
