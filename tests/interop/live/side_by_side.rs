//! The events of `tests/data/nbdkit-observed.json`, driven one after the other through a running
//! nbdkit and a running `serve` with the same mode and level, a fresh pair for every case.
//!
//! nbdkit first shows that it still does what was recorded of it, so that its backend here is the
//! one that the recording is about. Then, in each case, `serve` must
//!
//! - advertise the same, and answer every command the same;
//! - read, byte for byte, what nbdkit read or what was written later;
//! - leave the same in the storage;
//! - never flush its backend more often, in any event, nor another connection's handle.
//!
//! What of the recorded backend `serve` has no twin of, and what takes its place:
//!
//! | recorded | `serve` |
//! |---|---|
//! | a cache per connection | `--cache`; which loads when it is read, not when it is written |
//! | one cache for all | no `--cache`: the kernel's; what was written is in the file at once |
//! | FUA native to the backend | not native to `--cache`: a write and a flush, which counts |
//! | FUA for its own range alone (strict) | as above; more may be in the storage |
//! | an image per export, flushed together | both sides serve one image under all names |
//! | an image per export, flushed by export | a server for each |
//! | connections one at a time | nothing: these ten cases are only run through nbdkit |

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use serde_json::Value;

use super::cases::{CASES, Case, INITIAL, Seen, Side, is, number, play, word, written};
use super::filter::{Filter, Setup, version};
use super::serving::{Line, Serving};
use crate::raw::{CAN_MULTI_CONN, Raw, SEND_FLUSH, SEND_FUA};
use crate::settings::whole_machine;

/// The version that was recorded.
const RECORDED: &str = "1.32.5";

/// nbdkit, and how much of its log was there after each event.
struct Theirs {
    filter: Filter,
    images: Vec<&'static str>,
    until: Vec<usize>,
}

impl Theirs {
    fn start(case: Case, shared: bool) -> Self {
        let mut setup = Setup::new(case.word("mode"), case.word("track"), INITIAL);
        setup.by_export = case.flag("exportname");
        setup.images = if shared { vec![""] } else { case.exports() };
        for (set, parameter) in [
            (shared, "shared=1"),
            (case.flag("backend_multi_conn"), "multi_conn=1"),
            (case.flag("strictfua"), "strict_fua=1"),
            (case.is_serialized(), "serialize=1"),
        ] {
            setup.backend.extend(set.then_some(parameter));
        }
        Self {
            filter: setup.start(),
            images: setup.images.clone(),
            until: Vec::new(),
        }
    }
}

impl Side for Theirs {
    fn connect(&mut self, export: &str) -> Raw {
        self.filter.connect(export)
    }

    fn answered(&mut self, _: &Value) {
        self.until.push(self.filter.log().len());
    }

    fn wait_until_closed(&mut self, n: usize) {
        self.filter.wait_for_call(&format!("close {n}"));
    }

    fn end(self, open: BTreeMap<&str, Raw>, seen: &mut Seen) {
        let log = self.filter.log();
        let mut begin = 0;
        for end in self.until {
            let calls = |what| {
                let calls = log[begin..end].iter();
                let numbers = calls.filter_map(move |call| call.strip_prefix(what));
                numbers.map(|number| format!("c{number}")).collect()
            };
            seen.flushes.push(calls("flush "));
            seen.native_fua.push(calls("fua "));
            begin = end;
        }
        for image in self.images {
            let stored = self.filter.stored(image);
            seen.stored.insert(image.to_owned(), stored);
        }
        drop(open);
    }
}

/// `serve`, once for each image.
struct Ours {
    servers: BTreeMap<String, Serving>,
    /// The image of each connection.
    images: Vec<String>,
    /// The image of each event that is a request.
    events: Vec<Option<String>>,
    /// The connections of the case, by their names.
    names: BTreeMap<String, String>,
}

impl Ours {
    /// As the case says, but perhaps with another mode or level.
    fn start(case: Case, mode: &str, level: &str) -> Self {
        let exports = case.exports();
        let mut arguments = vec!["--multi-conn", mode, "--track-dirty", level];
        if !case.flag("backend_multi_conn") {
            arguments.push("--cache");
        }
        let start = |exports: &[&str]| {
            let names = exports.iter().flat_map(|name| ["--export", *name]);
            let arguments: Vec<_> = arguments.iter().copied().chain(names).collect();
            Serving::start(INITIAL, &arguments)
        };
        let servers = if case.flushes_several_images_together() {
            BTreeMap::from([(String::new(), start(&exports))])
        } else {
            let each = exports.iter();
            each.map(|export| ((*export).to_owned(), start(&[export])))
                .collect()
        };
        Self {
            servers,
            images: Vec::new(),
            events: Vec::new(),
            names: BTreeMap::new(),
        }
    }

    fn image(&self, export: &str) -> String {
        let of_its_own = self.servers.contains_key(export);
        (if of_its_own { export } else { "" }).to_owned()
    }
}

impl Side for Ours {
    fn connect(&mut self, export: &str) -> Raw {
        let image = self.image(export);
        let raw = self.servers[&image].connect(export);
        self.images.push(image);
        raw
    }

    fn answered(&mut self, event: &Value) {
        let name = word(event, "conn").to_owned();
        if is(event, "connect") {
            let image = self.images.last().unwrap().clone();
            self.names.insert(name, image);
            self.events.push(None);
        } else {
            self.events.push(Some(self.names[&name].clone()));
        }
    }

    fn wait_until_closed(&mut self, _: usize) {
        panic!("these cases are not for serve");
    }

    fn end(self, open: BTreeMap<&str, Raw>, seen: &mut Seen) {
        for (image, server) in &self.servers {
            seen.stored.insert(image.clone(), server.stored());
        }
        // What is flushed from here on, because its connection leaves, is no part of the case.
        for (name, mut raw) in open {
            raw.read(0, 1)
                .unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        let mut flushes = BTreeMap::new();
        for (image, server) in self.servers {
            // What the server calls the first, second, ... is this one of all.
            let mine = |(n, its): (usize, &String)| (*its == image).then(|| format!("c{}", n + 1));
            let numbers: Vec<_> = self.images.iter().enumerate().filter_map(mine).collect();
            let (log, _dir) = server.finish();
            flushes.insert(image, flushes_by_request(&log, &numbers).into_iter());
        }
        for image in self.events {
            let of_event = image.map(|image| flushes.get_mut(&image).unwrap().next().unwrap());
            seen.flushes.push(of_event.unwrap_or_default());
            seen.native_fua.push(Vec::new());
        }
    }
}

/// Which handles were flushed from each request on until the next.
fn flushes_by_request(log: &str, names: &[String]) -> Vec<Vec<String>> {
    let mut flushes = Vec::<Vec<String>>::new();
    for line in log.lines().filter_map(Line::parse) {
        match line {
            Line::Request(..) => flushes.push(Vec::new()),
            Line::FlushBegins(id) => {
                let last = flushes.last_mut().expect("a request comes before a flush");
                last.push(names[id - 1].clone());
            }
            Line::FlushEnded(_) => {}
        }
    }
    flushes
}

/// A case, run live.
struct Run {
    case: Case,
    /// nbdkit as it was recorded.
    theirs_alone: Seen,
    /// nbdkit as `serve` can be run, too.
    theirs: Seen,
    ours: Option<Seen>,
}

fn run_case(case: Case) -> Run {
    let theirs_alone = play(case, Theirs::start(case, false));
    let theirs = match case.flushes_several_images_together() {
        true => play(case, Theirs::start(case, true)),
        false => theirs_alone.clone(),
    };
    let (mode, level) = (case.word("mode"), case.word("track"));
    let ours = !case.is_serialized();
    Run {
        case,
        theirs_alone,
        theirs,
        ours: ours.then(|| play(case, Ours::start(case, mode, level))),
    }
}

/// Does something with each of them, some at a time; the results are in order.
fn for_all<R: Send>(cases: &[Case], work: impl Fn(Case) -> R + Sync) -> Vec<R> {
    let _busy = whole_machine();
    let next = AtomicUsize::new(0);
    let mut results = Vec::new();
    thread::scope(|scope| {
        let worker = || {
            let mut done = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let Some(&case) = cases.get(number) else {
                    return done;
                };
                done.push((number, work(case)));
            }
        };
        let workers: Vec<_> = (0..3).map(|_| scope.spawn(worker)).collect();
        for worker in workers {
            results.extend(worker.join().expect("the reason is told above"));
        }
    });
    results.sort_by_key(|(number, _)| *number);
    results.into_iter().map(|(_, result)| result).collect()
}

static RUNS: LazyLock<Vec<Run>> = LazyLock::new(|| for_all(&CASES, run_case));

/// All that `serve` did worse than nbdkit.
fn complaints(case: Case, theirs: &Seen, ours: &Seen) -> Vec<String> {
    let mut complaints = Vec::new();
    if ours.advertised != theirs.advertised {
        let (ours, theirs) = (&ours.advertised, &theirs.advertised);
        complaints.push(format!("advertises {ours:x?} and not {theirs:x?}"));
    }
    let shared = case.flushes_several_images_together();
    let mut versions = BTreeMap::<&str, Versions>::new();
    for (number, event) in case.events().iter().enumerate() {
        let image = case.image(word(event, "conn"), shared);
        let versions = versions.entry(image).or_insert_with(Versions::initial);
        if let Some((at, data)) = written(event) {
            versions.write(at, &data);
        }
        let at = number_of_first_byte(event);
        match (&ours.answers[number], &theirs.answers[number]) {
            (Ok(ours), Ok(theirs)) if versions.as_fresh(at, ours, theirs) => {}
            (Err(ours), Err(theirs)) if ours == theirs => {}
            (ours, theirs) => {
                complaints.push(format!("event {number}: {ours:?} after {theirs:?}"));
            }
        }
        let mut allowed = theirs.flushes[number].clone();
        if !case.flag("backend_multi_conn") {
            // Where FUA is native to their backend and not to ours, it costs ours a flush.
            allowed.extend_from_slice(&theirs.native_fua[number]);
        }
        let flushed = &ours.flushes[number];
        if !is_within(flushed, &allowed) {
            complaints.push(format!(
                "event {number}: flushes {flushed:?}, not {allowed:?}"
            ));
        }
    }
    let exactly = !case.flag("backend_multi_conn") && !case.flag("strictfua");
    for (image, theirs) in &theirs.stored {
        let ours = &ours.stored[image];
        let versions = &versions[image.as_str()];
        if ours != theirs && (exactly || !versions.as_fresh(0, ours, theirs)) {
            let [ours, theirs] = [ours, theirs].map(|bytes| String::from_utf8_lossy(bytes));
            complaints.push(format!("{image:?} holds {ours:?} and not {theirs:?}"));
        }
    }
    complaints
}

/// Whether each name is there at least as often.
fn is_within(names: &[String], allowed: &[String]) -> bool {
    let mut left = allowed.to_vec();
    names.iter().all(|name| {
        let place = left.iter().position(|it| it == name);
        place.map(|place| left.swap_remove(place)).is_some()
    })
}

fn number_of_first_byte(event: &Value) -> usize {
    number(event, "offset") as usize
}

/// All that the bytes of an image have been, in order.
struct Versions(Vec<Vec<u8>>);

impl Versions {
    fn initial() -> Self {
        Self(INITIAL.iter().map(|byte| vec![*byte]).collect())
    }

    fn write(&mut self, at: usize, data: &[u8]) {
        for (versions, byte) in self.0[at..].iter_mut().zip(data) {
            versions.push(*byte);
        }
    }

    /// Whether each of our bytes can be as new as theirs.
    fn as_fresh(&self, at: usize, ours: &[u8], theirs: &[u8]) -> bool {
        let mut bytes = self.0[at..].iter().zip(ours.iter().zip(theirs));
        let fresh = bytes.all(|(versions, (ours, theirs))| {
            let ours = versions.iter().rposition(|byte| byte == ours);
            let theirs = versions.iter().position(|byte| byte == theirs);
            matches!((ours, theirs), (Some(ours), Some(theirs)) if ours >= theirs)
        });
        fresh && ours.len() == theirs.len()
    }
}

/// The schedule of a case with what both sides made of it.
fn table(case: Case, theirs: &Seen, ours: &Seen) -> String {
    let mut table = format!("{}\n", case.word("id"));
    let shown = |seen: &Seen, number: usize| {
        let answer = seen.answers[number].as_ref();
        let answer = answer.map(|data| String::from_utf8_lossy(data).into_owned());
        let fua = &seen.native_fua[number];
        format!("{answer:?} flushes {:?} fua {fua:?}", seen.flushes[number])
    };
    for (number, event) in case.events().iter().enumerate() {
        let (theirs, ours) = (shown(theirs, number), shown(ours, number));
        writeln!(
            table,
            "  {number:2} {event}\n       nbdkit {theirs}\n       serve  {ours}"
        )
        .unwrap();
    }
    table
}

fn report(case: Case, theirs: &Seen, ours: &Seen) -> Option<String> {
    let complaints = complaints(case, theirs, ours);
    let table = || table(case, theirs, ours);
    (!complaints.is_empty()).then(|| format!("{}{}\n", table(), complaints.join("\n")))
}

/// Tells of a few, and how many there are.
fn assert_none(reports: &[String]) {
    let some = reports.iter().take(5);
    let some: Vec<_> = some.map(String::as_str).collect();
    let count = reports.len();
    assert!(count == 0, "{count} cases, such as\n{}", some.join("\n"));
}

#[test]
fn nbdkit_does_what_was_recorded() {
    assert_eq!((CASES.len(), RUNS.len()), (299, 299));
    let version = version();
    let reports: Vec<_> = RUNS.iter().filter_map(unlike_the_record).collect();
    if version == RECORDED {
        assert_none(&reports);
    } else {
        let count = reports.len();
        eprintln!("nbdkit {version} is not {RECORDED}: {count} cases differ from the record");
    }
}

/// A case in which nbdkit did not do the same again.
fn unlike_the_record(run: &Run) -> Option<String> {
    let (case, seen) = (run.case, &run.theirs_alone);
    let names = |value: &Value| -> Vec<String> {
        let names = value.as_array().unwrap().iter();
        names
            .map(|name| name.as_str().unwrap().to_owned())
            .collect()
    };
    let recorded = |what| case.observed(what).iter().map(names).collect::<Vec<_>>();
    let in_events = |wanted: &dyn Fn(&Value) -> bool, seen: &[Vec<String>]| -> Vec<Vec<String>> {
        let events = case.events().iter().zip(seen);
        let wanted = events.filter(|(event, _)| wanted(event));
        wanted.map(|(_, seen)| seen.clone()).collect()
    };
    let fua = |event: &Value| event["fua"] == true;
    let reads = case.events().iter().zip(&seen.answers);
    let reads = reads.filter(|(event, _)| is(event, "read"));
    let reads = reads.map(|(_, answer)| String::from_utf8(answer.clone().unwrap()).unwrap());
    let recorded_reads = case.observed("read_results").iter();
    let answers = seen.answers.iter().map(|answer| match answer {
        Ok(_) => "ok".to_owned(),
        Err(error) => error.to_string(),
    });
    let advertised = &case.0["observed"]["advertised"];
    let connects = case.events().iter().filter(|event| is(event, "connect"));
    let advertised = connects.map(|event| {
        let of_this = &advertised[word(event, "conn")];
        let bit = |name: &str, bit| if of_this[name] == true { bit } else { 0 };
        bit("multi_conn", CAN_MULTI_CONN) | bit("flush", SEND_FLUSH) | bit("fua", SEND_FUA)
    });
    let stored = case.0["observed"]["final_store"].as_object().unwrap();
    let stored = stored.iter();
    let stored = stored.map(|(name, text)| (name.clone(), text.as_str().unwrap().into()));
    let same = in_events(&|event| is(event, "flush"), &seen.flushes) == recorded("backend_flushes")
        && in_events(&fua, &seen.flushes) == recorded("backend_flushes_on_fua")
        && in_events(&fua, &seen.native_fua) == recorded("backend_fua_commands")
        && reads.eq(recorded_reads.map(|text| text.as_str().unwrap()))
        && answers.eq(case
            .observed("replies")
            .iter()
            .map(|it| it.as_str().unwrap()))
        && advertised.eq(seen.advertised.iter().copied())
        && stored.collect::<BTreeMap<_, Vec<u8>>>() == seen.stored;
    let table = || table(case, seen, seen);
    (!same).then(|| format!("{}recorded: {}\n", table(), case.0["observed"]))
}

#[test]
fn serve_does_the_same_with_no_more_backend_flushes() {
    let driven = RUNS
        .iter()
        .filter_map(|run| Some((run, run.ours.as_ref()?)));
    let driven: Vec<_> = driven.collect();
    assert_eq!(driven.len(), 289);
    let reports = driven.iter();
    let reports = reports.filter_map(|(run, ours)| report(run.case, &run.theirs, ours));
    assert_none(&reports.collect::<Vec<_>>());
    let mut totals = BTreeMap::<_, [usize; 3]>::new();
    for (run, ours) in driven {
        let flushes = |seen: &Seen| seen.flushes.iter().map(Vec::len).sum::<usize>();
        let kind = (run.case.word("mode"), run.case.word("track"));
        let [of_ours, of_theirs, native] = totals.entry(kind).or_default();
        *of_ours += flushes(ours);
        *of_theirs += flushes(&run.theirs);
        *native += run.theirs.native_fua.iter().map(Vec::len).sum::<usize>();
    }
    for ((mode, level), [ours, theirs, native]) in totals {
        eprintln!(
            "{mode} {level}: serve {ours} flushes, nbdkit {theirs} and {native} FUA commands"
        );
    }
}

/// Cases of `emulate` at the level `connection`, over a cache per connection, with a complaint of
/// this kind about a `serve` that was started with another mode or level.
fn found_out(mode: &'static str, level: &'static str, kind: &str) -> Vec<&'static str> {
    let emulated = |case: &Case| {
        case.word("id")
            .contains("/emulate/connection/mc0/strict0/names0")
            && !case.is_serialized()
    };
    let cases: Vec<_> = CASES.iter().copied().filter(emulated).collect();
    let found = for_all(&cases, |case| {
        let ours = play(case, Ours::start(case, mode, level));
        let run = RUNS
            .iter()
            .find(|run| run.case.word("id") == case.word("id"));
        let complaints = complaints(case, &run.unwrap().theirs, &ours);
        let found = complaints.iter().any(|complaint| complaint.contains(kind));
        found.then(|| case.word("schedule"))
    });
    found.into_iter().flatten().collect()
}

/// The comparison has eyes: a server that does less, or takes more, is found out.
#[test]
fn a_serve_that_is_worse_is_complained_about() {
    // Before the machine is taken for others.
    assert_eq!(RUNS.len(), 299);
    // Reads on other connections are old, and a flush leaves the data of others behind.
    let read_old = ["caching", "effects", "stat-multi", "name"];
    assert_eq!(found_out("unsafe", "connection", ": Ok"), read_old);
    let lost = ["effects", "stat-multi"];
    assert_eq!(found_out("unsafe", "connection", " holds "), lost);
    let flags = found_out("disable", "connection", "advertises");
    assert_eq!(flags.len(), 7, "{flags:?}");
    let off = [
        "caching",
        "effects",
        "stat-multi",
        "one-connection",
        "cache-only",
    ];
    assert_eq!(found_out("emulate", "off", ": flushes"), off);
    let fast = ["caching", "effects", "stat-multi"];
    assert_eq!(found_out("emulate", "fast", ": flushes"), fast);
}
