//! The recorded runs of nbdkit, and how one is driven through a running server again.
//!
//! `tests/data/nbdkit-observed.json` says at its head how they were recorded.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde_json::Value;

use crate::raw::{Answer, CAN_MULTI_CONN, FLUSH, FUA, READ, Raw, SEND_FLUSH, SEND_FUA};

const CACHE: u16 = 5;
const WRITE_ZEROES: u16 = 6;

pub(super) const INITIAL: &[u8; 32] = b"Initial contents                ";

/// One of the recorded runs.
#[derive(Clone, Copy)]
pub(super) struct Case(pub(super) &'static Value);

impl Case {
    pub(super) fn word(self, field: &str) -> &'static str {
        word(self.0, field)
    }

    pub(super) fn flag(self, field: &str) -> bool {
        let flag = self.0[field].as_bool();
        flag.unwrap_or_else(|| panic!("no {field} in {}", self.0))
    }

    pub(super) fn events(self) -> &'static [Value] {
        list(self.0, "events")
    }

    pub(super) fn observed(self, what: &str) -> &'static [Value] {
        list(&self.0["observed"], what)
    }

    pub(super) fn is_serialized(self) -> bool {
        self.word("thread_model") != "parallel"
    }

    /// The exports that the connections are to, each once, in order of their names.
    pub(super) fn exports(self) -> Vec<&'static str> {
        let connects = self.events().iter().filter(|event| is(event, "connect"));
        let mut exports: Vec<_> = connects.map(|event| word(event, "export")).collect();
        exports.sort_unstable();
        exports.dedup();
        exports
    }

    /// Whether all connections, of whatever export, are flushed together though their images are
    /// not the same, which `serve` does not do.
    pub(super) fn flushes_several_images_together(self) -> bool {
        self.exports().len() > 1 && !self.flag("exportname")
    }

    /// The image behind a connection.
    pub(super) fn image(self, name: &str, shared: bool) -> &'static str {
        let mut connects = self.events().iter().filter(|event| is(event, "connect"));
        let connect = connects.find(|event| event["conn"] == name).unwrap();
        if shared { "" } else { word(connect, "export") }
    }
}

pub(super) static CASES: LazyLock<Vec<Case>> = LazyLock::new(|| {
    static RECORD: LazyLock<Value> = LazyLock::new(|| {
        let text = include_str!("../../data/nbdkit-observed.json");
        serde_json::from_str(text).unwrap()
    });
    list(&RECORD, "cases").iter().map(Case).collect()
});

pub(super) fn word<'a>(value: &'a Value, field: &str) -> &'a str {
    let text = value[field].as_str();
    text.unwrap_or_else(|| panic!("no {field} in {value}"))
}

pub(super) fn list<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    let list = value[field].as_array();
    list.unwrap_or_else(|| panic!("no {field} in {value}"))
}

pub(super) fn is(event: &Value, op: &str) -> bool {
    event["op"] == op
}

pub(super) fn number(event: &Value, field: &str) -> u32 {
    event[field].as_u64().unwrap_or(0).try_into().unwrap()
}

/// What an event writes, and where.
pub(super) fn written(event: &Value) -> Option<(usize, Vec<u8>)> {
    let data = match word(event, "op") {
        "write" => word(event, "data").as_bytes().to_vec(),
        "zero" => vec![0; number(event, "length") as usize],
        _ => return None,
    };
    Some((number(event, "offset") as usize, data))
}

/// What a run showed to its client, and in the backend.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    /// Of each connection: CAN_MULTI_CONN, SEND_FLUSH and SEND_FUA.
    pub(super) advertised: Vec<u16>,
    /// Of each event; those that have no reply count as answered.
    pub(super) answers: Vec<Answer>,
    /// The handles that were flushed in each event, `c1` is the first.
    pub(super) flushes: Vec<Vec<String>>,
    /// The handles that were given a command with FUA.
    pub(super) native_fua: Vec<Vec<String>>,
    /// At the end, by image.
    pub(super) stored: BTreeMap<String, Vec<u8>>,
}

/// A server to drive.
pub(super) trait Side {
    fn connect(&mut self, export: &str) -> Raw;

    /// An event has been answered.
    fn answered(&mut self, event: &Value);

    /// The `n`th connection has been told goodbye.
    fn wait_until_closed(&mut self, n: usize);

    /// Everything is over; these are still open.
    fn end(self, open: BTreeMap<&str, Raw>, seen: &mut Seen);
}

/// Drives all events of a case through a server, each after the answer to the one before.
pub(super) fn play(case: Case, mut side: impl Side) -> Seen {
    let mut seen = Seen::default();
    let mut open = BTreeMap::<&str, Raw>::new();
    let mut connected = Vec::new();
    for event in case.events() {
        let name = word(event, "conn");
        let answer = match word(event, "op") {
            "connect" => {
                let raw = side.connect(word(event, "export"));
                let flags = raw.flags & (CAN_MULTI_CONN | SEND_FLUSH | SEND_FUA);
                seen.advertised.push(flags);
                connected.push(name);
                open.insert(name, raw);
                Ok(Vec::new())
            }
            "disconnect" => {
                open.remove(name).unwrap().disconnect();
                let place = connected.iter().position(|it| *it == name).unwrap();
                side.wait_until_closed(place + 1);
                Ok(Vec::new())
            }
            _ => command(open.get_mut(name).unwrap(), event),
        };
        seen.answers.push(answer);
        side.answered(event);
    }
    side.end(open, &mut seen);
    seen
}

fn command(raw: &mut Raw, event: &Value) -> Answer {
    let flags = if event["fua"] == true { FUA } else { 0 };
    let offset = number(event, "offset").into();
    let length = number(event, "length");
    let cookie = match word(event, "op") {
        "read" => raw.send(READ, 0, offset, length),
        "cache" => raw.send(CACHE, 0, offset, length),
        "flush" => raw.send(FLUSH, 0, 0, 0),
        "zero" => raw.send(WRITE_ZEROES, flags, offset, length),
        "write" => raw.send_write(offset, word(event, "data").as_bytes(), flags),
        other => panic!("unknown event {other}"),
    };
    raw.wait(cookie)
}
