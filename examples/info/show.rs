//! What was learned, written as text or as JSON.
//!
//! Exports are written one by one, so that a server with many of them, or with long names, takes
//! no more memory than one.

use std::fmt::Write as _;
use std::io::{self, Write};

use indicatif::BinaryBytes;
use nbd_proto::session::{Lint, ReplyStyle};
use nbd_proto::wire::Name;
use serde_json::{Map, Value, json};

use super::facts::{Contexts, FLAGS, Facts, Protocol, can};
use super::shared::uri::NbdUri;

/// An export, or what is known of it.
#[derive(Debug)]
pub(crate) struct Export<'a> {
    pub(crate) uri: &'a NbdUri,
    /// What the list says of it, if there was one.
    pub(crate) description: Option<&'a Name>,
    /// `None`: it was not asked about; an error is in words.
    pub(crate) facts: Option<Result<&'a Facts, &'a str>>,
}

/// Writes a server and its exports.
#[derive(Debug)]
pub(crate) struct Show<W> {
    out: W,
    json: bool,
    count: usize,
}

impl<W: Write> Show<W> {
    pub(crate) const fn new(out: W, json: bool) -> Self {
        Self {
            out,
            json,
            count: 0,
        }
    }

    pub(crate) fn protocol(&mut self, protocol: Protocol) -> io::Result<()> {
        let name = protocol.name();
        let style = protocol.reply_style;
        if !self.json {
            let tls = if protocol.tls { "with" } else { "without" };
            return writeln!(self.out, "protocol: {name} {tls} TLS, {}", words(style));
        }
        writeln!(self.out, "{{")?;
        for (key, value) in [
            ("protocol", json!(name)),
            ("TLS", json!(protocol.tls)),
            ("structured", json!(style != ReplyStyle::Simple)),
            ("extended", json!(style == ReplyStyle::Extended)),
        ] {
            writeln!(self.out, "{}: {value},", json!(key))?;
        }
        write!(self.out, "\"exports\": [")
    }

    pub(crate) fn export(&mut self, export: &Export<'_>) -> io::Result<()> {
        let comma = if self.count > 0 { "," } else { "" };
        self.count += 1;
        if self.json {
            let value = to_json(export);
            write!(self.out, "{comma}\n{value:#}")?;
        } else {
            self.out.write_all(to_text(export).as_bytes())?;
        }
        self.out.flush()
    }

    /// Says that all exports were shown.
    pub(crate) fn end(&mut self) -> io::Result<()> {
        if self.json {
            writeln!(self.out, "\n]\n}}")?;
        }
        self.out.flush()
    }
}

pub(crate) const fn words(style: ReplyStyle) -> &'static str {
    match style {
        ReplyStyle::Simple => "simple replies",
        ReplyStyle::Structured => "structured replies",
        ReplyStyle::Extended => "extended headers",
    }
}

fn kind_of(lint: &Lint) -> &'static str {
    if lint.is_advice() {
        "advice"
    } else {
        "forbidden"
    }
}

/// The description, from whoever told it.
fn description<'a>(export: &Export<'a>) -> Option<&'a Name> {
    let told = match export.facts {
        Some(Ok(facts)) => facts.negotiated.description.as_ref(),
        _ => None,
    };
    let description = told.or(export.description);
    description.filter(|text| !text.as_str().is_empty())
}

/// Names and texts of servers go through Debug: they may hold control characters.
fn to_text(export: &Export<'_>) -> String {
    let mut text = format!("export {:?}\n", export.uri.export);
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "  {name:<34}{value}");
    };
    line("URI", &export.uri.to_string());
    if let Some(words) = description(export) {
        line("description", &format!("{words:?}"));
    }
    let facts = match export.facts {
        None => {
            line("not asked about", "see --max-exports");
            return text;
        }
        Some(Err(why)) => {
            line("not available", why);
            return text;
        }
        Some(Ok(facts)) => facts,
    };
    let session = &facts.negotiated.session;
    if let Some(name) = facts.negotiated.name.as_ref()
        && *name != export.uri.export
    {
        line("canonical name", &format!("{name:?}"));
    }
    let size = session.size();
    line("size", &format!("{size} bytes ({})", BinaryBytes(size)));
    let sizes = session.block_sizes();
    let told = if facts.negotiated.block_sizes_announced {
        ""
    } else {
        " (assumed: the server does not tell)"
    };
    line(
        "block sizes",
        &format!(
            "at least {}, best {}, at most {} bytes{told}",
            sizes.minimum(),
            sizes.preferred(),
            sizes.max_payload()
        ),
    );
    for (ability, words, _) in FLAGS {
        let yes = can(&facts.negotiated, ability);
        line(words, if yes { "yes" } else { "no" });
    }
    match &facts.contexts {
        Contexts::None => line("meta contexts", "none, for lack of structured replies"),
        Contexts::Unknown(why) => line("meta contexts", &format!("not known: {why}")),
        Contexts::Listed(names) if names.is_empty() => line("meta contexts", "none"),
        Contexts::Listed(names) => {
            for (at, name) in names.iter().enumerate() {
                let title = if at == 0 { "meta contexts" } else { "" };
                line(title, name.as_str().escape_debug().to_string().as_str());
            }
        }
    }
    for lint in facts.lints() {
        let title = format!("odd ({})", kind_of(&lint));
        line(&title, &format!("{lint} (proto.md {:?})", lint.section()));
    }
    text
}

fn to_json(export: &Export<'_>) -> Value {
    let mut object = Map::new();
    let mut set = |key: &str, value: Value| {
        object.insert(key.to_owned(), value);
    };
    set("export-name", json!(export.uri.export.as_str()));
    set("uri", json!(export.uri.to_string()));
    if let Some(words) = description(export) {
        set("description", json!(words.as_str()));
    }
    let facts = match export.facts {
        None => return object.into(),
        Some(Err(why)) => {
            set("error", json!(why));
            return object.into();
        }
        Some(Ok(facts)) => facts,
    };
    let session = &facts.negotiated.session;
    if let Some(name) = &facts.negotiated.name {
        set("canonical-name", json!(name.as_str()));
    }
    set("export-size", json!(session.size()));
    set(
        "export-size-str",
        json!(BinaryBytes(session.size()).to_string()),
    );
    if facts.negotiated.block_sizes_announced {
        let sizes = session.block_sizes();
        set("block_size_minimum", json!(sizes.minimum()));
        set("block_size_preferred", json!(sizes.preferred()));
        set("block_size_maximum", json!(sizes.max_payload()));
    }
    for (ability, _, key) in FLAGS {
        set(key, json!(can(&facts.negotiated, ability)));
    }
    set(
        "transmission-flags",
        json!(facts.negotiated.announced_flags.bits()),
    );
    match &facts.contexts {
        Contexts::None => set("contexts", json!([])),
        Contexts::Listed(names) => {
            let names: Vec<_> = names.iter().map(Name::as_str).collect();
            set("contexts", json!(names));
        }
        Contexts::Unknown(why) => set("contexts-error", json!(why)),
    }
    let odd: Vec<_> = facts
        .lints()
        .iter()
        .map(|lint| {
            json!({
                "kind": kind_of(lint),
                "text": lint.to_string(),
                "section": lint.section(),
            })
        })
        .collect();
    set("odd", json!(odd));
    object.into()
}
