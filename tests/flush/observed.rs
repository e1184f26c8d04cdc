//! Schedules as nbdkit's multi-conn filter ran them where it keeps its promise, played to the
//! coordinator over a model of the same backend: it advertises, answers, reads and stores the
//! same, and never calls for more backend flushes.
//!
//! `tests/data/nbdkit-observed.json` says at its head how the cases were recorded, and what the
//! backend does.

use std::collections::BTreeMap;

use nbd_proto::flush::{
    Action, Advertised, Backend, Command, Config, Conn, Decision, FlushCoordinator, Grouping, Mode,
    Op, ThreadModel,
};
use nbd_proto::wire::CommandType;
use serde_json::Value;

const SIZE: usize = 32;

type Image = [u8; SIZE];

fn initial() -> Image {
    let mut image = [b' '; SIZE];
    let text = b"Initial contents";
    image[..text.len()].copy_from_slice(text);
    image
}

/// A write-back cache of a whole image.
#[derive(Default)]
struct Cache {
    image: Option<Image>,
    /// What was written since the last flush.
    written: Vec<(usize, Vec<u8>)>,
}

impl Cache {
    fn filled(&mut self, store: &Image) -> &mut Image {
        self.image.get_or_insert(*store)
    }

    fn write(&mut self, store: &Image, at: usize, data: &[u8]) {
        self.filled(store)[at..at + data.len()].copy_from_slice(data);
        self.written.push((at, data.to_vec()));
    }

    fn flush(&mut self, store: &mut Image) {
        for (at, data) in self.written.drain(..) {
            store[at..at + data.len()].copy_from_slice(&data);
        }
        self.image = None;
    }
}

/// One of the recorded runs.
#[derive(Clone, Copy)]
struct Case<'a>(&'a Value);

impl<'a> Case<'a> {
    fn id(self) -> &'a str {
        word(self.0, "id")
    }

    fn mode(self) -> Mode {
        word(self.0, "mode").parse().unwrap()
    }

    fn backend_multi_conn(self) -> bool {
        flag(self.0, "backend_multi_conn")
    }

    fn thread_model(self) -> ThreadModel {
        word(self.0, "thread_model").parse().unwrap()
    }

    fn events(self) -> &'a [Value] {
        list(self.0, "events")
    }

    fn observed(self, what: &str) -> &'a Value {
        &self.0["observed"][what]
    }

    /// Which handles nbdkit flushed, for each event.
    fn flushes(self) -> Vec<Vec<&'a str>> {
        let mut of_flushes = list(&self.0["observed"], "backend_flushes").iter();
        let mut of_fua = list(&self.0["observed"], "backend_flushes_on_fua").iter();
        let flushes = |event: &Value| match word(event, "op") {
            "flush" => words(of_flushes.next().unwrap()),
            _ if event["fua"] == true => words(of_fua.next().unwrap()),
            _ => Vec::new(),
        };
        let flushes = self.events().iter().map(flushes).collect();
        assert!(of_flushes.next().is_none() && of_fua.next().is_none());
        flushes
    }

    fn config(self) -> Config {
        let grouping = match flag(self.0, "exportname") {
            true => Grouping::ByExport,
            false => Grouping::All,
        };
        Config::new()
            .with_mode(self.mode())
            .with_track_dirty(word(self.0, "track").parse().unwrap())
            .with_grouping(grouping)
            .with_thread_model(self.thread_model())
    }

    /// What is true of the recorded backend. It executes one command at a time, and is coherent
    /// with itself; that it promises so may be left out.
    fn backend(self, self_coherent: bool) -> Backend {
        Backend::new()
            .with_flush(true)
            .with_fua(true)
            .with_multi_conn(self.backend_multi_conn())
            .with_loads_on_open(false)
            .with_self_coherent(self_coherent)
    }

    /// What clients are to be told.
    fn advertised(self, name: &str) -> Advertised {
        let observed = &self.observed("advertised")[name];
        Advertised {
            multi_conn: flag(observed, "multi_conn"),
            flush: flag(observed, "flush"),
            fua: flag(observed, "fua"),
        }
    }
}

/// One case as far as it was played.
struct Player<'a> {
    case: Case<'a>,
    coordinator: FlushCoordinator<&'a str, &'a str, usize>,
    backend: Backend,
    /// The open connections, by name, with their exports.
    connections: BTreeMap<&'a str, (Conn, &'a str)>,
    stores: BTreeMap<&'a str, Image>,
    /// By connection, or by export if all connections share one.
    caches: BTreeMap<&'a str, Cache>,
    /// The handles that were flushed during each event.
    flushes: Vec<Vec<&'a str>>,
    /// The handles that were given a native FUA command, for each event with FUA.
    native_fua: Vec<Vec<&'a str>>,
    answered: Vec<usize>,
    reads: Vec<String>,
}

impl<'a> Player<'a> {
    /// Plays a whole case; the event numbers of what is answered are checked on the way.
    fn play(case: Case<'a>, self_coherent: bool) -> Self {
        let mut player = Self {
            case,
            coordinator: FlushCoordinator::new(case.config()),
            backend: case.backend(self_coherent),
            connections: BTreeMap::new(),
            stores: BTreeMap::new(),
            caches: BTreeMap::new(),
            flushes: Vec::new(),
            native_fua: Vec::new(),
            answered: Vec::new(),
            reads: Vec::new(),
        };
        for (number, event) in case.events().iter().enumerate() {
            player.flushes.push(Vec::new());
            if event["fua"] == true {
                player.native_fua.push(Vec::new());
            }
            player.event(number, event);
            let answered = core::mem::take(&mut player.answered);
            assert_eq!(answered, [number], "{}", case.id());
        }
        player
    }

    fn event(&mut self, number: usize, event: &'a Value) {
        let name = word(event, "conn");
        let kind = match word(event, "op") {
            "connect" => {
                self.connect(name, word(event, "export"));
                return self.answered.push(number);
            }
            "disconnect" => {
                let (conn, _) = self.connections[name];
                self.coordinator.disconnect(conn);
                self.act();
                assert!(!self.connections.contains_key(name), "{name} is released");
                return self.answered.push(number);
            }
            "read" => CommandType::READ,
            "write" => CommandType::WRITE,
            "zero" => CommandType::WRITE_ZEROES,
            "cache" => CommandType::CACHE,
            "flush" => CommandType::FLUSH,
            other => panic!("unknown event {other}"),
        };
        let (at, length) = place(event);
        let command = Command::new(kind, at as u64, length as u64).with_fua(event["fua"] == true);
        let (conn, _) = self.connections[name];
        let decision = self.coordinator.command(conn, command, number);
        self.decide(decision);
        self.act();
    }

    fn connect(&mut self, name: &'a str, export: &'a str) {
        let conn = self.coordinator.connect(name, &export);
        let advertised = self.coordinator.opened(conn, self.backend);
        let expected = self.case.advertised(name);
        assert_eq!(advertised, Ok(expected), "{}", self.case.id());
        self.stores.entry(export).or_insert_with(initial);
        self.connections.insert(name, (conn, export));
    }

    /// What is behind the handle of a connection.
    fn storage(&mut self, name: &'a str) -> (&mut Cache, &mut Image) {
        let (_, export) = self.connections[name];
        let shared = self.case.backend_multi_conn();
        let cache = self.caches.entry(if shared { export } else { name });
        let store = self.stores.get_mut(export).unwrap();
        (cache.or_default(), store)
    }

    fn decide(&mut self, decision: Decision<usize>) {
        match decision {
            Decision::Execute { op, tag } => self.execute(op, tag),
            Decision::Reply { tag, result } => self.answer(tag, result.is_ok()),
            Decision::Wait => {}
            other => panic!("unexpected {other:?}"),
        }
    }

    fn answer(&mut self, number: usize, ok: bool) {
        let observed = list(&self.case.0["observed"], "replies");
        assert_eq!(observed[number], "ok");
        assert!(ok, "{}: event {number} failed", self.case.id());
        self.answered.push(number);
    }

    fn act(&mut self) {
        while let Some(action) = self.coordinator.poll() {
            match action {
                Action::Execute { op, tag, .. } => self.execute(op, tag),
                Action::Flush { key, flush } => {
                    let (cache, store) = self.storage(key);
                    cache.flush(store);
                    self.flushes.last_mut().unwrap().push(key);
                    self.coordinator.flushed(flush, Ok(()));
                }
                Action::Reply { tag, result, .. } => self.answer(tag, result.is_ok()),
                Action::Release { key } => {
                    self.connections.remove(key);
                    self.caches.remove(key);
                }
                other => panic!("unexpected {other:?}"),
            }
        }
    }

    fn execute(&mut self, op: Op, number: usize) {
        let event = &self.case.events()[number];
        let name = word(event, "conn");
        let (at, length) = place(event);
        let strict = flag(self.case.0, "strictfua");
        let (cache, store) = self.storage(name);
        let data = match word(event, "op") {
            "read" => {
                let found = &cache.filled(store)[at..at + length];
                let found = String::from_utf8(found.to_vec()).unwrap();
                self.reads.push(found);
                None
            }
            "cache" => {
                cache.filled(store);
                None
            }
            "zero" => Some(vec![0; length]),
            _ => Some(word(event, "data").as_bytes().to_vec()),
        };
        if let Some(data) = data {
            let (cache, store) = self.storage(name);
            cache.write(store, at, &data);
            if op.fua() && strict {
                store[at..at + data.len()].copy_from_slice(&data);
            } else if op.fua() {
                cache.flush(store);
            }
        }
        if op.fua() {
            self.native_fua.last_mut().unwrap().push(name);
        }
        let decision = self.coordinator.complete(op, number, Ok(()));
        self.decide(decision);
    }
}

fn place(event: &Value) -> (usize, usize) {
    let at = event["offset"].as_u64().unwrap_or(0) as usize;
    let data = event["data"].as_str().map(str::len);
    let length = event["length"].as_u64().unwrap_or(0) as usize;
    (at, data.unwrap_or(length))
}

fn word<'a>(value: &'a Value, field: &str) -> &'a str {
    let text = value[field].as_str();
    text.unwrap_or_else(|| panic!("no {field} in {value}"))
}

fn flag(value: &Value, field: &str) -> bool {
    let flag = value[field].as_bool();
    flag.unwrap_or_else(|| panic!("no {field} in {value}"))
}

fn list<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    let list = value[field].as_array();
    list.unwrap_or_else(|| panic!("no {field} in {value}"))
}

fn words(value: &Value) -> Vec<&str> {
    let words = value.as_array().unwrap().iter();
    words.map(|word| word.as_str().unwrap()).collect()
}

fn each_case(mut test: impl FnMut(Case<'_>, bool, &Player<'_>)) {
    let recorded = include_str!("../data/nbdkit-observed.json");
    let recorded: Value = serde_json::from_str(recorded).unwrap();
    let cases = list(&recorded, "cases");
    assert_eq!(cases.len(), 299);
    for case in cases {
        for self_coherent in [true, false] {
            let case = Case(case);
            test(case, self_coherent, &Player::play(case, self_coherent));
        }
    }
}

#[test]
fn every_command_is_executed_reads_and_stores_what_was_observed() {
    each_case(|case, _, player| {
        let id = case.id();
        assert_eq!(player.reads, words(case.observed("read_results")), "{id}");
        let native = list(&case.0["observed"], "backend_fua_commands").iter();
        let native: Vec<_> = native.map(words).collect();
        assert_eq!(player.native_fua, native, "{id}");
        let stored = case.observed("final_store").as_object().unwrap();
        assert_eq!(player.stores.len(), stored.len(), "{id}");
        for (export, stored) in stored {
            let ours = player.stores[export.as_str()];
            assert_eq!(stored.as_str().unwrap().as_bytes(), ours, "{id}");
        }
    });
}

/// A handle that does not promise to be coherent with itself is flushed once more after a native
/// FUA command, as if others had been in flight: in these cases, when the client flushes next.
const FLUSHED_AFTER_NATIVE_FUA: [&str; 6] = [
    "one-connection/plugin/fast/mc0/strict0/names0",
    "one-connection/disable/fast/mc0/strict0/names0",
    "one-connection/unsafe/fast/mc0/strict0/names0",
    "one-connection/plugin/fast/mc0/strict1/names0",
    "one-connection/disable/fast/mc0/strict1/names0",
    "one-connection/unsafe/fast/mc0/strict1/names0",
];

/// Neither in total nor during any one event; and no handle is flushed that was left alone.
#[test]
fn no_event_takes_more_backend_flushes_than_were_observed() {
    let mut more = Vec::new();
    each_case(|case, self_coherent, player| {
        let observed = case.flushes();
        for ((number, ours), theirs) in player.flushes.iter().enumerate().zip(observed) {
            let mut left = theirs.clone();
            for handle in ours {
                if let Some(place) = left.iter().position(|it| it == handle) {
                    left.remove(place);
                } else if !self_coherent && FLUSHED_AFTER_NATIVE_FUA.contains(&case.id()) {
                    assert_eq!((number, &ours[..], theirs.len()), (8, &["c1"][..], 0));
                    more.push(case.id().to_owned());
                } else {
                    let id = case.id();
                    panic!("{id}: event {number} flushed {ours:?}, observed {theirs:?}");
                }
            }
        }
    });
    assert_eq!(more, FLUSHED_AFTER_NATIVE_FUA);
}

/// Mode, level, and how many backend flushes all its cases together take: here, and in nbdkit.
const TOTALS: [(&str, &str, usize, usize); 15] = [
    ("auto", "connection", 43, 43),
    ("auto", "fast", 52, 58),
    ("auto", "off", 98, 104),
    ("disable", "connection", 17, 33),
    ("disable", "fast", 10, 16),
    ("disable", "off", 46, 46),
    ("emulate", "connection", 61, 61),
    ("emulate", "fast", 80, 89),
    ("emulate", "off", 144, 153),
    ("plugin", "connection", 17, 33),
    ("plugin", "fast", 10, 16),
    ("plugin", "off", 46, 46),
    ("unsafe", "connection", 14, 21),
    ("unsafe", "fast", 10, 10),
    ("unsafe", "off", 34, 34),
];

#[test]
fn all_cases_together_take_no_more_backend_flushes_than_they_did() {
    let mut totals = BTreeMap::<(String, String), [usize; 2]>::new();
    each_case(|case, self_coherent, player| {
        if self_coherent {
            let key = (word(case.0, "mode").into(), word(case.0, "track").into());
            let [ours, theirs] = totals.entry(key).or_default();
            *ours += player.flushes.iter().map(Vec::len).sum::<usize>();
            *theirs += case.flushes().iter().map(Vec::len).sum::<usize>();
        }
    });
    let totals = totals.iter();
    let totals = totals.map(|((mode, level), [ours, theirs])| (&**mode, &**level, *ours, *theirs));
    assert_eq!(totals.collect::<Vec<_>>(), TOTALS);
}

#[test]
fn the_finer_the_tracking_the_fewer_backend_flushes() {
    let mut counts = BTreeMap::<(String, bool), BTreeMap<String, usize>>::new();
    each_case(|case, self_coherent, player| {
        let level = word(case.0, "track");
        let schedule = case.id().replace(&format!("/{level}/"), "/");
        let count = player.flushes.iter().map(Vec::len).sum();
        let levels = counts.entry((schedule, self_coherent)).or_default();
        assert_eq!(levels.insert(level.into(), count), None);
    });
    let mut compared = 0;
    for (schedule, levels) in counts {
        for pair in [
            ["connection", "fast"],
            ["connection", "off"],
            ["fast", "off"],
        ] {
            if let [Some(fine), Some(coarse)] = pair.map(|level| levels.get(level)) {
                assert!(fine <= coarse, "{schedule:?}: {levels:?}");
                compared += 1;
            }
        }
    }
    assert!(compared > 400, "only {compared} pairs");
}
