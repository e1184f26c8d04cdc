//! Histories as text: a line for the granule, then a line for each event.
//!
//! ```text
//! granule 4096
//! c0 write #7 8192+4096 =1 fua
//! c0 done #7
//! c1 read #1 0+8192
//! c1 data #1 =0 =1
//! c1 gone
//! crash
//! reopen
//! ```

use alloc::vec::Vec;
use core::fmt;
use core::str::{FromStr, SplitAsciiWhitespace};

use super::{Command, Content, Contents, Event, Extent, History, Outcome};

/// A text that is no history, or a line that is no event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of the history is not of the form {expected}")]
#[non_exhaustive]
pub struct HistoryError {
    /// Counted from 1.
    pub line: usize,
    /// What could stand there.
    pub expected: &'static str,
}

const GRANULE: &str = "`granule BYTES`";
const EVENT: &str = "`cN read|write|zero|trim|flush #COOKIE [OFFSET+LENGTH] [=CONTENT] [fua]`, \
    `cN done|failed|data #COOKIE [=CONTENT...]`, `cN gone`, `crash` or `reopen`";

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::MIXED => f.write_str("mixed"),
            Self(number) => number.fmt(f),
        }
    }
}

impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.offset, self.length)
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invoke {
                conn,
                cookie,
                command,
            } => {
                write!(f, "c{conn} {} #{cookie}", word(command))?;
                if let Some(extent) = command.extent() {
                    write!(f, " {extent}")?;
                }
                if let Command::Write { content, .. } = command {
                    write!(f, " ={content}")?;
                }
                f.write_str(if command.has_fua() { " fua" } else { "" })
            }
            Self::Reply {
                conn,
                cookie,
                outcome,
            } => match outcome {
                Outcome::Done => write!(f, "c{conn} done #{cookie}"),
                Outcome::Failed => write!(f, "c{conn} failed #{cookie}"),
                Outcome::Data(Contents::Same(content)) => {
                    write!(f, "c{conn} data #{cookie} ={content}...")
                }
                Outcome::Data(Contents::Each(contents)) => {
                    write!(f, "c{conn} data #{cookie}")?;
                    contents.iter().try_for_each(|it| write!(f, " ={it}"))
                }
            },
            Self::Disconnect { conn } => write!(f, "c{conn} gone"),
            Self::Crash => f.write_str("crash"),
            Self::Reopen => f.write_str("reopen"),
        }
    }
}

const fn word(command: &Command) -> &'static str {
    match command {
        Command::Read { .. } => "read",
        Command::Write { .. } => "write",
        Command::Zero { .. } => "zero",
        Command::Trim { .. } => "trim",
        Command::Flush => "flush",
    }
}

impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "granule {}", self.granule)?;
        self.events.iter().try_for_each(|it| writeln!(f, "{it}"))
    }
}

impl FromStr for History {
    type Err = HistoryError;

    /// Empty lines, and what follows `//`, do not count.
    fn from_str(text: &str) -> Result<Self, HistoryError> {
        let mut history = None;
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.split("//").next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            let error = |expected| HistoryError {
                line: number,
                expected,
            };
            match &mut history {
                None => history = Some(first(line).ok_or_else(|| error(GRANULE))?),
                Some(history) => {
                    let event = event(line).ok_or_else(|| error(EVENT))?;
                    Self::push(history, event);
                }
            }
        }
        history.ok_or(HistoryError {
            line: 1,
            expected: GRANULE,
        })
    }
}

impl FromStr for Event {
    type Err = HistoryError;

    fn from_str(line: &str) -> Result<Self, HistoryError> {
        event(line).ok_or(HistoryError {
            line: 1,
            expected: EVENT,
        })
    }
}

fn first(line: &str) -> Option<History> {
    let granule: u64 = line.strip_prefix("granule ")?.trim().parse().ok()?;
    (granule > 0).then(|| History::new(granule))
}

fn event(line: &str) -> Option<Event> {
    let mut words = line.split_ascii_whitespace();
    let event = match words.next()? {
        "crash" => Event::Crash,
        "reopen" => Event::Reopen,
        conn => on_connection(conn.strip_prefix('c')?.parse().ok()?, &mut words)?,
    };
    words.next().is_none().then_some(event)
}

fn on_connection(conn: u32, words: &mut SplitAsciiWhitespace<'_>) -> Option<Event> {
    let verb = words.next()?;
    if verb == "gone" {
        return Some(Event::Disconnect { conn });
    }
    let cookie = words.next()?.strip_prefix('#')?.parse().ok()?;
    let outcome = match verb {
        "done" => Outcome::Done,
        "failed" => Outcome::Failed,
        "data" => Outcome::Data(contents(words)?),
        verb => {
            let command = command(verb, words)?;
            return Some(Event::Invoke {
                conn,
                cookie,
                command,
            });
        }
    };
    Some(Event::Reply {
        conn,
        cookie,
        outcome,
    })
}

fn command(verb: &str, words: &mut SplitAsciiWhitespace<'_>) -> Option<Command> {
    if verb == "flush" {
        return Some(Command::Flush);
    }
    let (offset, length) = words.next()?.split_once('+')?;
    let extent = Extent::new(offset.parse().ok()?, length.parse().ok()?);
    Some(match verb {
        "read" => Command::Read { extent },
        "write" => Command::Write {
            extent,
            content: content(words.next()?)?,
            fua: fua(words)?,
        },
        "zero" => Command::Zero {
            extent,
            fua: fua(words)?,
        },
        "trim" => Command::Trim {
            extent,
            fua: fua(words)?,
        },
        _ => return None,
    })
}

fn fua(words: &mut SplitAsciiWhitespace<'_>) -> Option<bool> {
    match words.next() {
        None => Some(false),
        Some("fua") => Some(true),
        Some(_) => None,
    }
}

fn contents(words: &mut SplitAsciiWhitespace<'_>) -> Option<Contents> {
    let mut each = Vec::new();
    for word in words {
        if let (Some(same), true) = (word.strip_suffix("..."), each.is_empty()) {
            return Some(Contents::Same(content(same)?));
        }
        each.push(content(word)?);
    }
    (!each.is_empty()).then_some(Contents::Each(each))
}

fn content(word: &str) -> Option<Content> {
    match word.strip_prefix('=')? {
        "mixed" => Some(Content::MIXED),
        number => Some(Content(number.parse().ok()?)),
    }
}
