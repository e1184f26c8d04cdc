//! The log of nbdkit's log filter, as of nbdkit 1.32: a line when a command reaches the filter, and
//! one when what is below has answered.
//!
//! ```text
//! 2023-01-04 02:07:23.080415 connection=1 Write id=1 offset=0x0 count=0x200 fua=0 ...
//! 2023-01-04 02:07:23.080427 connection=1 ...Write id=1 return=0
//! ```
//!
//! # What one log shows
//!
//! It has no contents, so nothing can be said of what reads have found, nor of what a crash has
//! left. What can be said is which modifications were answered and then covered by FUA, or by a
//! flush that was begun later and succeeded; and which were not, until their connection, the server
//! or the log ended. That is told twice: for a server whose flushes are for all connections, and
//! for one whose flushes are for their own, since nbdkit does not log which it is. The log filter
//! is inside the server: "answered" is when the filter saw the answer, a moment before the client.
//!
//! It is a report, and no verdict: a client may leave what it likes unflushed. What it leaves is what
//! a crash at that moment may take away.
//!
//! With [two log filters](super::layers) there is a verdict.

use std::collections::{BTreeMap, HashMap};
use std::io::BufRead;

use nbd_proto::multiplex::{AfterLoss, Scope};

use super::layers;
use super::lines::Lines;
use super::uncovered::{Coverage, Totals};
use super::{ImportError, Imported, LineError, Promised};

/// What one log filter has seen.
#[derive(Debug, Default)]
pub(crate) struct Log {
    pub(crate) tally: Tally,
    /// If a flush is for its own connection.
    pub(crate) own: Totals,
    /// If a flush is for all connections.
    pub(crate) all: Totals,
}

/// How much there was of what.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) lines: u64,
    /// How often the server was started.
    pub(crate) runs: u64,
    pub(crate) connections: u64,
    pub(crate) reads: u64,
    pub(crate) modifications: u64,
    pub(crate) flushes: u64,
    pub(crate) others: u64,
    pub(crate) failed: u64,
    pub(crate) cut_off: bool,
}

/// What a line says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// The server was started.
    Ready,
    /// The server went into the background: each log filter says so. In the foreground none does.
    Fork,
    /// Somebody connects: each log filter asks what is below it, and is answered.
    Preconnect {
        returns: bool,
    },
    Connect {
        connection: u64,
        size: Option<u64>,
    },
    Disconnect {
        connection: u64,
    },
    Call {
        connection: u64,
        id: u64,
        command: Command,
    },
    Return {
        connection: u64,
        id: u64,
        succeeded: bool,
    },
    /// Of no consequence here.
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Read,
    Modification { extent: Range, fua: bool },
    Flush,
    Other,
}

/// From where, and to where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) start: u64,
    pub(crate) end: u64,
}

impl Range {
    pub(super) const fn overlaps(self, other: Self) -> bool {
        self.start < other.end && other.start < self.end
    }

    pub(super) const fn contains(self, other: Self) -> bool {
        self.start <= other.start && other.end <= self.end
    }

    pub(super) const fn length(self) -> u64 {
        self.end - self.start
    }
}

const LINE: LineError =
    LineError::Form("`DATE TIME [connection=N] [...]ACTION [KEY=VALUE...] [...]`");

/// Whether a line begins as those of the log do: `2023-01-04 02:07:23.080415`.
pub(super) fn has_time(line: &str) -> bool {
    const TIME: &[u8] = b"0000-00-00 00:00:00.";
    let begin = line.as_bytes().get(..TIME.len());
    begin.is_some_and(|begin| {
        let fits = |(&it, &like): (&u8, &u8)| match like {
            b'0' => it.is_ascii_digit(),
            like => it == like,
        };
        begin.iter().zip(TIME).all(fits)
    })
}

pub(super) fn parse(line: &str) -> Result<Entry, LineError> {
    if !has_time(line) {
        return Err(LINE);
    }
    let (_, rest) = line.split_once(' ').ok_or(LINE)?;
    let (_, rest) = rest.split_once(' ').ok_or(LINE)?;
    let (connection, rest) = match rest.strip_prefix("connection=") {
        None => (None, rest),
        Some(rest) => {
            let (number, rest) = rest.split_once(' ').ok_or(LINE)?;
            (Some(whole(number).ok_or(LINE)?), rest)
        }
    };
    let (returns, rest) = match rest.strip_prefix("...") {
        Some(rest) => (true, rest),
        None => (false, rest),
    };
    let (action, rest) = next_field(rest);
    match (action, connection) {
        ("", _) => Err(LINE),
        ("Ready", None) => Ok(Entry::Ready),
        ("Fork", None) => Ok(Entry::Fork),
        ("Preconnect", None) => Ok(Entry::Preconnect { returns }),
        (_, None) => Ok(Entry::Other),
        ("Connect", Some(connection)) => Ok(Entry::Connect {
            connection,
            size: Fields::of(rest).size,
        }),
        ("Disconnect", Some(connection)) => Ok(Entry::Disconnect { connection }),
        (_, Some(connection)) if returns => {
            let fields = Fields::of(rest);
            let succeeded = fields.returned.ok_or(LINE)?;
            let id = fields.id.ok_or(LINE)?;
            Ok(Entry::Return {
                connection,
                id,
                succeeded,
            })
        }
        (action, Some(connection)) => {
            let fields = Fields::of(rest);
            let (Some(id), true) = (fields.id, fields.goes_on) else {
                // Something that is over at once, in a later version.
                return Ok(Entry::Other);
            };
            let command = command(action, &fields)?;
            Ok(Entry::Call {
                connection,
                id,
                command,
            })
        }
    }
}

fn command(action: &str, fields: &Fields) -> Result<Command, LineError> {
    Ok(match action {
        "Read" => Command::Read,
        "Flush" => Command::Flush,
        "Write" | "Zero" | "Trim" => {
            let (start, count) = fields.offset.zip(fields.count).ok_or(LINE)?;
            let end = start.checked_add(count).ok_or(LINE)?;
            let fua = fields.fua.ok_or(LINE)? != 0;
            let extent = Range { start, end };
            Command::Modification { extent, fua }
        }
        _ => Command::Other,
    })
}

/// What is told after the action.
#[derive(Clone, Copy, Debug, Default)]
struct Fields {
    id: Option<u64>,
    offset: Option<u64>,
    count: Option<u64>,
    fua: Option<u64>,
    size: Option<u64>,
    returned: Option<bool>,
    goes_on: bool,
}

impl Fields {
    fn of(mut rest: &str) -> Self {
        let mut fields = Self::default();
        while !rest.is_empty() {
            let (field, after) = next_field(rest);
            rest = after;
            if field == "..." && rest.is_empty() {
                fields.goes_on = true;
            }
            let Some((key, value)) = field.split_once('=') else {
                continue;
            };
            match key {
                "id" => fields.id = whole(value),
                "offset" => fields.offset = whole(value),
                "count" => fields.count = whole(value),
                "fua" => fields.fua = whole(value),
                "size" => fields.size = whole(value),
                "return" => fields.returned = value.parse().ok().map(|it: i64| it == 0),
                _ => {}
            }
        }
        fields
    }
}

/// What stands before the next blank that is neither in quotes nor in brackets, and after it.
fn next_field(text: &str) -> (&str, &str) {
    let (mut quoted, mut escaped, mut depth) = (false, false, 0_u32);
    for (at, it) in text.bytes().enumerate() {
        match it {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'(' if !quoted => depth = depth.saturating_add(1),
            b')' if !quoted => depth = depth.saturating_sub(1),
            b' ' if !quoted && depth == 0 => return (&text[..at], &text[at + 1..]),
            _ => {}
        }
    }
    (text, "")
}

fn whole(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// The entries of a log, counted, and each one known to be possible where it is.
pub(super) struct Entries<R> {
    lines: Lines<R>,
    connections: HashMap<u64, Open>,
    in_flight: usize,
    pub(super) tally: Tally,
}

#[derive(Debug, Default)]
struct Open {
    size: Option<u64>,
    /// What it has in flight.
    calls: BTreeMap<u64, Command>,
}

/// An entry, and where it stands.
pub(super) struct Told {
    pub(super) line: u64,
    pub(super) entry: Entry,
}

/// Commands in flight, and connections.
const MOST_OPEN: usize = 1 << 20;

impl<R: BufRead> Entries<R> {
    pub(super) fn new(lines: Lines<R>) -> Self {
        Self {
            lines,
            connections: HashMap::new(),
            in_flight: 0,
            tally: Tally::default(),
        }
    }

    pub(super) fn next(&mut self) -> Result<Option<Told>, ImportError> {
        let Some((line, text)) = self.lines.next()? else {
            return Ok(None);
        };
        if text.is_empty() {
            let entry = Entry::Other;
            return Ok(Some(Told { line, entry }));
        }
        let entry = match parse(text) {
            Ok(entry) => entry,
            Err(_) if self.lines.is_cut_off() => {
                self.tally.cut_off = true;
                return Ok(None);
            }
            Err(why) => return Err(why.at(line)),
        };
        self.note(&entry).map_err(|why| why.at(line))?;
        self.tally.lines = line;
        Ok(Some(Told { line, entry }))
    }

    fn note(&mut self, entry: &Entry) -> Result<(), LineError> {
        const UNKNOWN: LineError = LineError::ImpossibleLog("the connection is not open");
        match *entry {
            Entry::Ready => {
                self.tally.runs += 1;
                self.connections.clear();
                self.in_flight = 0;
            }
            Entry::Connect { connection, size } => {
                let open = Open {
                    size,
                    calls: BTreeMap::new(),
                };
                if self.connections.insert(connection, open).is_some() {
                    return Err(LineError::ImpossibleLog("the connection is open already"));
                }
                if self.connections.len() > MOST_OPEN {
                    return Err(LineError::TooMuch("too many connections are open"));
                }
                self.tally.connections += 1;
            }
            Entry::Disconnect { connection } => {
                let closed = self.connections.remove(&connection).ok_or(UNKNOWN)?;
                self.in_flight -= closed.calls.len();
            }
            Entry::Call {
                connection,
                id,
                command,
            } => {
                let open = self.connections.get_mut(&connection).ok_or(UNKNOWN)?;
                if open.calls.insert(id, command).is_some() {
                    return Err(LineError::ImpossibleLog("the id is in use"));
                }
                self.in_flight += 1;
                if self.in_flight > MOST_OPEN {
                    return Err(LineError::TooMuch("too many commands are in flight"));
                }
                self.count(&command);
            }
            Entry::Return {
                connection,
                id,
                succeeded,
            } => {
                let open = self.connections.get_mut(&connection).ok_or(UNKNOWN)?;
                let call = open.calls.remove(&id);
                let call = call.ok_or(LineError::ImpossibleLog("nothing was called by this id"))?;
                self.in_flight -= 1;
                self.tally.failed += u64::from(!succeeded);
                if let (Command::Modification { extent, .. }, Some(size), true) =
                    (call, open.size, succeeded)
                    && extent.end > size
                {
                    return Err(LineError::ImpossibleLog("it ends beyond the export"));
                }
            }
            Entry::Fork | Entry::Preconnect { .. } | Entry::Other => {}
        }
        Ok(())
    }

    const fn count(&mut self, command: &Command) {
        let tally = &mut self.tally;
        match command {
            Command::Read => tally.reads += 1,
            Command::Modification { .. } => tally.modifications += 1,
            Command::Flush => tally.flushes += 1,
            Command::Other => tally.others += 1,
        }
    }

    /// How much there was, once it is over.
    pub(super) fn into_tally(self) -> Tally {
        self.tally
    }
}

/// How many log filters there were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filters {
    One,
    Two,
    /// As many as it looks like.
    Any,
}

pub(super) fn judge<R: BufRead>(
    lines: Lines<R>,
    filters: Filters,
    promised: Promised,
) -> Result<Imported, ImportError> {
    let mut entries = Entries::new(lines);
    let mut seen = Seen::default();
    // Before anybody connects, each log filter has told that it is there.
    while let Some(told) = entries.next()? {
        seen.add(&told.entry);
        let Entry::Connect { .. } = told.entry else {
            continue;
        };
        let two = match filters {
            Filters::One => false,
            Filters::Two => true,
            Filters::Any => seen.filters().map_err(|why| why.at(told.line))? == 2,
        };
        return if two {
            layers::judge(entries, told, promised).map(Imported::Layers)
        } else {
            report(entries, told).map(Imported::Log)
        };
    }
    let log = Log {
        tally: entries.into_tally(),
        ..Log::default()
    };
    Ok(Imported::Log(log))
}

/// What shows how many log filters there are.
#[derive(Default)]
struct Seen {
    forks: u32,
    /// Of the first one to connect: questions before the first answer.
    questions: u32,
    answered: bool,
}

impl Seen {
    fn add(&mut self, entry: &Entry) {
        match entry {
            Entry::Ready => *self = Self::default(),
            Entry::Fork => self.forks = self.forks.saturating_add(1),
            Entry::Preconnect { returns: true } => self.answered = true,
            Entry::Preconnect { returns: false } if !self.answered => {
                self.questions = self.questions.saturating_add(1);
            }
            _ => {}
        }
    }

    /// Several clients that come first at the same moment are as many questions, so those count
    /// only where there is nothing better.
    fn filters(&self) -> Result<u32, LineError> {
        match (self.forks, self.questions) {
            (0, 0) => Ok(1),
            (0, many @ 1..=2) | (many @ 1..=2, _) => Ok(many),
            _ => Err(LineError::ImpossibleLog(
                "there are more than two log filters; say --format if there are not",
            )),
        }
    }
}

fn report<R: BufRead>(mut entries: Entries<R>, first: Told) -> Result<Log, ImportError> {
    let new = |scope| Coverage::new(scope, AfterLoss::Covered);
    let (mut own, mut all) = (new(Scope::OwnConnection), new(Scope::AllConnections));
    let mut next = Some(first);
    while let Some(told) = next {
        for coverage in [&mut own, &mut all] {
            follow(coverage, &told).map_err(|why| why.at(told.line))?;
        }
        next = entries.next()?;
    }
    Ok(Log {
        own: own.into_totals(),
        all: all.into_totals(),
        tally: entries.into_tally(),
    })
}

fn follow(coverage: &mut Coverage, told: &Told) -> Result<(), LineError> {
    let line = told.line;
    match told.entry {
        Entry::Ready => coverage.end_of_run(),
        Entry::Connect { connection, .. } => coverage.connected(connection)?,
        Entry::Disconnect { connection } => coverage.ended(connection)?,
        Entry::Call {
            connection,
            id,
            command,
        } => match command {
            Command::Modification { extent, fua } => {
                coverage.modification((connection, id), extent, fua, line)?;
            }
            Command::Flush => coverage.flush((connection, id))?,
            Command::Read | Command::Other => {}
        },
        Entry::Return {
            connection,
            id,
            succeeded,
        } => coverage.answered((connection, id), succeeded, line)?,
        Entry::Fork | Entry::Preconnect { .. } | Entry::Other => {}
    }
    Ok(())
}
