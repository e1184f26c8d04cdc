//! Histories as JSON lines: an object for the header, then one for each event.
//!
//! ```json
//! {"granule": 4096, "promise": "multi-conn"}
//! {"event": "invoke", "conn": 0, "cookie": 7, "command": "write", "offset": 8192, "length": 4096, "content": 1}
//! {"event": "reply", "conn": 0, "cookie": 7, "outcome": "done"}
//! {"event": "invoke", "conn": 1, "cookie": 1, "command": "read", "offset": 0, "length": 12288}
//! {"event": "reply", "conn": 1, "cookie": 1, "outcome": "data", "each": [0, 0, 1]}
//! {"event": "disconnect", "conn": 1}
//! {"event": "crash"}
//! {"event": "reopen"}
//! ```
//!
//! In the **header**, `granule` is the size of a block in bytes. What else it may have:
//!
//! | field | values | without it |
//! |---|---|---|
//! | `promise` | `multi-conn`, `single-connection`; `--promise` comes before it | `multi-conn` |
//! | `initial` | `zeroes`, `unknown`: what the export holds at first | `zeroes` |
//! | `order` | whether writes of several connections to one block keep their order | `true` with `multi-conn` |
//! | `own_writes` | whether a connection sees its own writes without a flush | `true` |
//!
//! An **event** is an `invoke`, before a request is sent; a `reply`, after it was received;
//! `disconnect`; `crash`; or `reopen`. They stand in the order in which they happened. When to
//! record each is said [in the library](nbd_proto::conformance::history).
//!
//! - `conn` is the number of a connection, up to 2^32 - 1, and `cookie` what tells its commands in
//!   flight apart.
//! - `command` is `read`, `write`, `zero`, `trim` or `flush`. All but a flush have `offset` and
//!   `length` in bytes; modifications may have `"fua": true`.
//! - `content` is a number, from 1 on, that no other write has. Zeroes are 0.
//! - `outcome` is `done`, `failed` or, for a read that succeeded, `data`: with `same`, if all its
//!   blocks have the same content, or with `each`, one content for each block. `"mixed"` is what no
//!   one write has left.
//! - Numbers above 2^53 may be strings, for the sake of languages that would round them.
//!
//! Other fields are passed over, and so are empty lines.

use std::io::{self, BufRead, Write};

use nbd_proto::conformance::{Command, Content, Contents, Event, Extent, Initial, Outcome};
use serde_json::{Map, Value, json};

use super::judge::Judge;
use super::lines::Lines;
use super::{Found, Header, ImportError, Judged, LineError, Promised};

type Fields = Map<String, Value>;

pub(super) fn judge<R: BufRead>(
    mut lines: Lines<R>,
    promised: Option<Promised>,
) -> Result<Judged, ImportError> {
    let Some((number, first)) = lines.next_with_words()? else {
        return Err(ImportError::Empty);
    };
    let header = parse_header(first, promised).map_err(|why| why.at(number))?;
    let mut judge = Judge::new(&header);
    let mut violation = None;
    lines.next()?;
    while let Some((line, text)) = lines.next()? {
        if text.trim().is_empty() {
            continue;
        }
        let judged = parse_event(text).and_then(|event| judge.record(&event));
        if let Some(it) = judged.map_err(|why| why.at(line))? {
            violation = Some(Found {
                line,
                violation: it,
            });
            break;
        }
    }
    Ok(Judged {
        header,
        summary: judge.summary(),
        violation,
    })
}

// Reading

fn object(line: &str) -> Result<Fields, LineError> {
    match serde_json::from_str(line) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err(LineError::Form("a JSON object")),
        Err(error) => Err(LineError::Json(error.to_string())),
    }
}

const fn wrong(field: &'static str, expected: &'static str) -> LineError {
    LineError::Field { field, expected }
}

/// `promised` is believed before the header: who asks for another promise has a reason.
pub(crate) fn parse_header(line: &str, promised: Option<Promised>) -> Result<Header, LineError> {
    let fields = object(line)?;
    let granule = number(&fields, "granule")?;
    if granule == 0 {
        return Err(wrong("granule", "a positive number"));
    }
    let said = match fields.get("promise").map(Value::as_str) {
        None => None,
        Some(Some("multi-conn")) => Some(Promised::MultiConn),
        Some(Some("single-connection")) => Some(Promised::SingleConnection),
        Some(_) => return Err(wrong("promise", "multi-conn or single-connection")),
    };
    let mut header = Header::new(granule, promised.or(said).unwrap_or_default());
    header.initial = match fields.get("initial").map(Value::as_str) {
        None | Some(Some("zeroes")) => Initial::Zeroes,
        Some(Some("unknown")) => Initial::Unknown,
        Some(_) => return Err(wrong("initial", "zeroes or unknown")),
    };
    header.ordered = flag(&fields, "order", header.ordered)?;
    header.own_writes = flag(&fields, "own_writes", true)?;
    Ok(header)
}

pub(crate) fn parse_event(line: &str) -> Result<Event, LineError> {
    let fields = object(line)?;
    match text(&fields, "event")? {
        "invoke" => Ok(Event::Invoke {
            conn: conn(&fields)?,
            cookie: number(&fields, "cookie")?,
            command: command(&fields)?,
        }),
        "reply" => Ok(Event::Reply {
            conn: conn(&fields)?,
            cookie: number(&fields, "cookie")?,
            outcome: outcome(&fields)?,
        }),
        "disconnect" => Ok(Event::Disconnect {
            conn: conn(&fields)?,
        }),
        "crash" => Ok(Event::Crash),
        "reopen" => Ok(Event::Reopen),
        _ => Err(wrong("event", "invoke, reply, disconnect, crash or reopen")),
    }
}

fn command(fields: &Fields) -> Result<Command, LineError> {
    let command = text(fields, "command")?;
    if command == "flush" {
        return Ok(Command::Flush);
    }
    let extent = Extent::new(number(fields, "offset")?, number(fields, "length")?);
    let fua = flag(fields, "fua", false)?;
    match command {
        "read" => Ok(Command::Read { extent }),
        "write" => Ok(Command::Write {
            extent,
            content: content(fields.get("content")).ok_or(wrong("content", CONTENT))?,
            fua,
        }),
        "zero" => Ok(Command::Zero { extent, fua }),
        "trim" => Ok(Command::Trim { extent, fua }),
        _ => Err(wrong("command", "read, write, zero, trim or flush")),
    }
}

fn outcome(fields: &Fields) -> Result<Outcome, LineError> {
    match text(fields, "outcome")? {
        "done" => Ok(Outcome::Done),
        "failed" => Ok(Outcome::Failed),
        "data" => contents(fields).map(Outcome::Data),
        _ => Err(wrong("outcome", "done, failed or data")),
    }
}

fn contents(fields: &Fields) -> Result<Contents, LineError> {
    match (fields.get("same"), fields.get("each")) {
        (Some(same), None) => {
            let same = content(Some(same)).ok_or(wrong("same", CONTENT))?;
            Ok(Contents::Same(same))
        }
        (None, Some(Value::Array(each))) => {
            let each = each.iter().map(|it| content(Some(it)));
            let each: Option<Vec<_>> = each.collect();
            Ok(Contents::Each(each.ok_or(wrong("each", CONTENTS))?))
        }
        (None, Some(_)) => Err(wrong("each", CONTENTS)),
        _ => Err(wrong("the data", "either `same` or `each`")),
    }
}

const CONTENT: &str = "a number of 64 bits, or \"mixed\"";
const CONTENTS: &str = "a list of numbers of 64 bits, or \"mixed\"";

fn content(value: Option<&Value>) -> Option<Content> {
    match value? {
        Value::String(text) if text == "mixed" => Some(Content::MIXED),
        value => whole(value).map(Content),
    }
}

fn whole(value: &Value) -> Option<u64> {
    match value {
        Value::Number(number) => number.as_u64(),
        Value::String(digits) => digits.parse().ok(),
        _ => None,
    }
}

fn number(fields: &Fields, field: &'static str) -> Result<u64, LineError> {
    let number = fields.get(field).and_then(whole);
    number.ok_or(wrong(field, "a number of 64 bits"))
}

fn conn(fields: &Fields) -> Result<u32, LineError> {
    let conn = u32::try_from(number(fields, "conn")?);
    conn.map_err(|_| wrong("conn", "a number of 32 bits"))
}

fn text<'a>(fields: &'a Fields, field: &'static str) -> Result<&'a str, LineError> {
    let text = fields.get(field).and_then(Value::as_str);
    text.ok_or(wrong(field, "there, or not a string"))
}

fn flag(fields: &Fields, field: &'static str, default: bool) -> Result<bool, LineError> {
    match fields.get(field) {
        None => Ok(default),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(_) => Err(wrong(field, "true or false")),
    }
}

// Writing

/// Writes the first line.
pub(crate) fn write_header(out: &mut impl Write, header: &Header) -> io::Result<()> {
    let initial = match header.initial {
        Initial::Unknown => "unknown",
        _ => "zeroes",
    };
    let line = json!({
        "granule": header.granule,
        "promise": header.promised.to_string(),
        "initial": initial,
        "order": header.ordered,
        "own_writes": header.own_writes,
    });
    writeln!(out, "{line}")
}

/// Writes the line of an event.
pub(crate) fn write_event(out: &mut impl Write, event: &Event) -> io::Result<()> {
    let line = match event {
        Event::Invoke {
            conn,
            cookie,
            command,
        } => invocation(*conn, *cookie, command),
        Event::Reply {
            conn,
            cookie,
            outcome,
        } => reply(*conn, *cookie, outcome).ok_or_else(unknown)?,
        Event::Disconnect { conn } => json!({"event": "disconnect", "conn": conn}),
        Event::Crash => json!({"event": "crash"}),
        Event::Reopen => json!({"event": "reopen"}),
        _ => return Err(unknown()),
    };
    writeln!(out, "{line}")
}

fn unknown() -> io::Error {
    io::Error::other("an event of a kind that has no form here")
}

fn invocation(conn: u32, cookie: u64, command: &Command) -> Value {
    let name = match command {
        Command::Read { .. } => "read",
        Command::Write { .. } => "write",
        Command::Zero { .. } => "zero",
        Command::Trim { .. } => "trim",
        _ => "flush",
    };
    let mut line = json!({"event": "invoke", "conn": conn, "cookie": cookie, "command": name});
    if let Some(Extent { offset, length }) = command.extent() {
        line["offset"] = offset.into();
        line["length"] = length.into();
    }
    if let Command::Write { content, .. } = command {
        line["content"] = named(*content);
    }
    if command.has_fua() {
        line["fua"] = true.into();
    }
    line
}

fn reply(conn: u32, cookie: u64, outcome: &Outcome) -> Option<Value> {
    let mut line = json!({"event": "reply", "conn": conn, "cookie": cookie});
    let (name, data) = match outcome {
        Outcome::Done => ("done", None),
        Outcome::Failed => ("failed", None),
        Outcome::Data(Contents::Same(content)) => ("data", Some(("same", named(*content)))),
        Outcome::Data(Contents::Each(each)) => {
            let each = each.iter().map(|it| named(*it)).collect();
            ("data", Some(("each", Value::Array(each))))
        }
        _ => return None,
    };
    line["outcome"] = name.into();
    if let Some((field, data)) = data {
        line[field] = data;
    }
    Some(line)
}

/// Not rounded by readers who know no whole numbers.
fn named(content: Content) -> Value {
    const EXACT: u64 = 1 << 53;
    match content {
        Content::MIXED => "mixed".into(),
        Content(number) if number > EXACT => number.to_string().into(),
        Content(number) => number.into(),
    }
}
