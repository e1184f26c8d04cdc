//! Shows what an NBD server has: `info URI`, `info --list URI`, `info --map URI`,
//! `info --plan URI`; see `info --help`.
//!
//! With `--json`, an object with the keys `protocol`, `TLS`, `structured`, `extended`, and
//! `exports`, a list of objects with
//!
//! - `export-name`, `uri`, and, if told, `description`, `canonical-name`;
//! - `export-size` in bytes, and `export-size-str` for people;
//! - `block_size_minimum`, `block_size_preferred`, `block_size_maximum` in bytes, if told;
//! - `is_read_only`, `is_rotational`, `can_flush`, `can_fua`, `can_trim`, `can_zero`,
//!   `can_fast_zero`, `can_df`, `can_cache`, `can_multi_conn`, `can_block_status_payload`: what
//!   can be true of what was announced, and `transmission-flags`, the number that was;
//! - `contexts`, the names of meta contexts, or `contexts-error`, why they are not known;
//! - `odd`, what is wrong with what was announced: `kind` (`forbidden` by the protocol, or
//!   `advice` that was not taken), `text`, and `section` of the protocol;
//! - instead of all but the first: `error`, or nothing if `--max-exports` left it out.
//!
//! With `--plan --json`, an object with `asked`, how many connections were; `tried`, how many were
//! open at once, and `tried-end`, why there were no more, or null; and `plans`, a list of objects
//! with `use` (`read`, `copy` or `disk`), `caution` (`strict`: by the protocol; `readers` and
//! `insist`: what is possible if the user knows better than the server tells), `connections`,
//! `routing` (`single`, `any` or `pinned`, then with its `granule` in bytes), `flushing`,
//! `final-flush`, `reasons` and `missing`.
//!
//! With `--map --json`, a list of extents: `offset` and `length` in bytes, `type` (the flags), and
//! `description` if they have words. Where nbdinfo has the same, it has the same name.

mod extents;
mod facts;
mod link;
mod list;
mod map;
mod options;
mod picture;
mod plan;
mod progress;
#[allow(dead_code, reason = "each program uses its part")]
#[path = "../shared/mod.rs"]
mod shared;
mod show;
mod status;

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use indicatif::BinaryBytes;
use serde_json::json;

use facts::{can, learn, negotiate};
use link::Place;
use map::{Wish, map};
use options::Options;
use plan::show_plan;
use shared::signals::Signals;
use shared::tls::TlsClient;
use shared::uri::NbdUri;
use show::{Export, Show};

const YES: u8 = 0;
const FAILED_OR_NO: u8 = 1;
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let options = match Options::try_parse() {
        Ok(options) => options,
        Err(error) if error.use_stderr() => {
            say(&shared::usage::one_line(&error, "info"));
            return ExitCode::from(USAGE);
        }
        Err(help) => {
            // If nobody reads it, nobody needs help.
            let _ = help.print();
            return ExitCode::SUCCESS;
        }
    };
    let uri = match parse_uri(&options) {
        Ok(uri) => uri,
        Err(error) => {
            say(&format!("{error:#}"));
            return ExitCode::from(USAGE);
        }
    };
    let signals = match Signals::listen() {
        Ok(signals) => signals,
        Err(error) => {
            say(&format!("cannot listen to signals: {error}"));
            return ExitCode::from(FAILED_OR_NO);
        }
    };
    match info(&options, uri, &signals) {
        Ok(status) => ExitCode::from(status),
        Err(error) => ExitCode::from(match signals.caught() {
            Some(signal) => {
                say("stopped by a signal; what was shown is incomplete");
                // By convention, 128 and the number of the signal.
                128_u8.saturating_add(signal)
            }
            None => {
                say(&format!("{error:#}"));
                FAILED_OR_NO
            }
        }),
    }
}

/// One line on stderr. If that is closed there is nobody to tell.
fn say(words: &str) {
    let line = words.replace('\n', " ");
    let _ = writeln!(io::stderr(), "info: {line}");
}

fn parse_uri(options: &Options) -> Result<NbdUri> {
    let uri = NbdUri::parse(&options.uri).with_context(|| options.uri.clone())?;
    ensure!(
        uri.tls || options.tls_ca.is_none(),
        "{}: --tls-ca is for nbds:// and nbds+unix://, which mean TLS",
        options.uri
    );
    Ok(uri)
}

fn info(options: &Options, uri: NbdUri, signals: &Signals) -> Result<u8> {
    let tls = uri
        .tls
        .then(|| TlsClient::new(&uri, options.tls_ca.as_deref()))
        .transpose()
        .with_context(|| uri.to_string())?;
    let place = Place {
        uri,
        tls,
        timeout: options.timeout(),
        signals,
    };
    if let Some(ability) = options.can {
        let yes = can(&negotiate(&place)?, ability);
        return Ok(if yes { YES } else { FAILED_OR_NO });
    }
    if let Some(context) = &options.map {
        let wish = Wish {
            context,
            json: options.json,
            max_extents: options.max_extents,
        };
        map(&place, &wish, say)?;
    } else if options.plan {
        show_plan(&place, options.connections, options.json)?;
    } else if options.size {
        show_size(&place, options.json)?;
    } else if options.list {
        let mut show = Show::new(io::stdout().lock(), options.json);
        list::list(&place, options.max_exports, &mut show)?;
    } else {
        show_export(&place, options.json)?;
    }
    Ok(YES)
}

fn show_size(place: &Place<'_>, json: bool) -> Result<()> {
    let size = negotiate(place)?.session.size();
    let text = if json {
        let words = BinaryBytes(size).to_string();
        json!({ "export-size": size, "export-size-str": words }).to_string()
    } else {
        size.to_string()
    };
    writeln!(io::stdout(), "{text}").context("cannot write the size")
}

fn show_export(place: &Place<'_>, json: bool) -> Result<()> {
    let facts = learn(place)?;
    let mut show = Show::new(io::stdout().lock(), json);
    let export = Export {
        uri: &place.uri,
        description: None,
        facts: Some(Ok(&facts)),
    };
    let written = show
        .protocol(facts.protocol())
        .and_then(|()| show.export(&export))
        .and_then(|()| show.end());
    written.context("cannot write what was learned")
}
