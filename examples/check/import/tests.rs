use std::io::Cursor;

use nbd_proto::conformance::strategy::history as strategy;
use nbd_proto::conformance::{
    CheckError, Clause, Command, Content, Contents, Event, Extent, History, Outcome, check,
};
use proptest::prelude::*;

use super::judge::{Judge, Limits};
use super::layers::Unflushed;
use super::uncovered::Why;
use super::*;

const ONE: &str = include_str!("../../../tests/data/nbdkit-log/one-filter.log");
const FAILING: &str = include_str!("../../../tests/data/nbdkit-log/one-filter-failing.log");
const EMULATE: &str = include_str!("../../../tests/data/nbdkit-log/layers-emulate.log");
const UNSAFE: &str = include_str!("../../../tests/data/nbdkit-log/layers-unsafe.log");
const T1: &str = include_str!("../../../tests/data/nbdkit-log/layers-t1.log");
const C1: &str = include_str!("../../../tests/data/nbdkit-log/layers-c1.log");

fn options() -> ImportOptions {
    ImportOptions::default()
}

fn read(text: impl AsRef<[u8]>) -> Result<Imported, ImportError> {
    judge(Cursor::new(text), &options())
}

#[track_caller]
fn refused(text: impl AsRef<[u8]>) -> (u64, LineError) {
    match read(text) {
        Err(ImportError::Line { line, why }) => (line, why),
        other => panic!("not refused: {other:?}"),
    }
}

#[track_caller]
fn judged(text: &str) -> Judged {
    match read(text) {
        Ok(Imported::Judged(judged)) => judged,
        other => panic!("not judged: {other:?}"),
    }
}

/// A flush that does not reach another connection.
const STALE: &str = "\
granule 4096
// A comment, then nothing.

c0 write #1 0+4096 =1 // The write.
c0 done #1
c1 flush #1
c1 done #1
c2 read #1 0+4096
c2 data #1 =0
c2 read #1 0+4096
";

const STALE_JSON: &str = r#"
{"granule": 4096, "promise": "multi-conn", "seed": 7}
{"event": "invoke", "conn": 0, "cookie": 1, "command": "write", "offset": 0, "length": 4096, "content": 1}
{"event": "reply", "conn": 0, "cookie": 1, "outcome": "done", "at": 0.25}

{"event": "invoke", "conn": 1, "cookie": 1, "command": "flush"}
{"event": "reply", "conn": 1, "cookie": 1, "outcome": "done"}
{"event": "invoke", "conn": 2, "cookie": 1, "command": "read", "offset": 0, "length": 4096}
{"event": "reply", "conn": 2, "cookie": 1, "outcome": "data", "each": [0]}
"#;

// Histories with contents

#[test]
fn a_history_in_which_nothing_was_read_has_no_verdict() {
    let header = "granule 4096\n";
    let writes = "c0 write #1 0+4096 =1\nc0 done #1\nc0 flush #2\nc0 done #2\n";
    let fails = "c0 read #3 0+4096\nc0 failed #3\n";
    for text in [
        header.to_owned(),
        format!("{header}{writes}"),
        format!("{header}{writes}{fails}"),
    ] {
        let imported = read(&text).unwrap();
        assert_eq!(imported.verdict(), Verdict::None);
        let words = imported.to_string();
        assert!(
            words.starts_with("NO VERDICT: no read has succeeded"),
            "{words}"
        );
    }
}

#[test]
fn an_event_that_was_cut_off_is_not_judged() {
    let whole = "granule 4096\n\
                 c0 write #1 0+4096 =12345\nc0 done #1\n\
                 c0 read #2 0+4096\nc0 data #2 =12345\n";
    assert_eq!(judged(whole).violation.map(|it| it.line), None);
    let events = whole.trim_end();
    for cut in [
        events,
        &events[..events.len() - 2],
        &events[..events.len() - 7],
    ] {
        assert_eq!(refused(cut), (5, LineError::CutOff));
    }
    // There is nothing to be cut off of it.
    judged(&format!("{whole}// The end"));
}

#[test]
fn a_broken_promise_is_found_in_both_forms_at_its_line() {
    for text in [STALE, STALE_JSON] {
        let imported = read(text).unwrap();
        assert_eq!(imported.verdict(), Verdict::Broken);
        assert!(imported.to_string().contains("visibility"), "{imported}");
        assert_eq!(imported.to_json()["violation"]["line"], 9);
        let found = judged(text).violation.unwrap();
        assert_eq!(
            (found.line, found.violation.clause()),
            (9, Clause::Visibility)
        );
        assert_eq!(found.violation.events(), [0, 1, 2, 3, 4, 5]);
    }
}

#[test]
fn what_was_not_promised_is_not_demanded() {
    let options = ImportOptions {
        promise: Some(Promised::SingleConnection),
        ..options()
    };
    // In the text to the end; there, a cookie is in use.
    let text = STALE.rsplit_once("c2 read").unwrap().0;
    for text in [text, STALE_JSON] {
        let imported = judge(Cursor::new(text), &options).unwrap();
        assert_eq!(imported.verdict(), Verdict::Held, "{imported}");
    }
    let single = STALE_JSON.replace("multi-conn", "single-connection");
    assert_eq!(read(single).unwrap().verdict(), Verdict::Held);
}

#[test]
fn two_remarks_of_a_text_are_part_of_its_promise() {
    let header = |promised, initial| {
        let mut header = Header::new(4096, promised);
        header.initial = initial;
        let mut text = Vec::new();
        super::text::write_header(&mut text, &header).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert_eq!(judged(&text).header, header);
        STALE.replace("granule 4096\n", &text)
    };
    let text = header(Promised::MultiConn, Initial::Zeroes);
    assert_eq!(read(text).unwrap().verdict(), Verdict::Broken);
    let text = header(Promised::SingleConnection, Initial::Zeroes);
    assert_eq!(read(text).unwrap().verdict(), Verdict::Held);
    // Zeroes were there before anything was written.
    let nothing = "c2 read #1 0+4096\nc2 data #1 =7\n";
    let text = header(Promised::MultiConn, Initial::Unknown);
    let text = text.split("c0").next().unwrap().to_owned() + nothing;
    assert_eq!(read(&text).unwrap().verdict(), Verdict::Held);
    let text = text.replace("initial: unknown", "initially: unknown");
    assert_eq!(read(text).unwrap().verdict(), Verdict::Broken);
}

#[test]
fn the_header_may_take_parts_of_the_promise_back() {
    let header = |text| json::parse_header(text, None);
    let plain = header(r#"{"granule": 512}"#).unwrap();
    assert_eq!(plain, Header::new(512, Promised::MultiConn));
    let weak = r#"{"granule":512,"initial":"unknown","order":false,"own_writes":false}"#;
    let weak = header(weak).unwrap();
    assert_eq!(weak.initial, Initial::Unknown);
    assert!(!weak.ordered && !weak.own_writes);
    for (text, field) in [
        (r#"{"promise": "multi-conn"}"#, "granule"),
        (r#"{"granule": 0}"#, "granule"),
        (r#"{"granule": -1}"#, "granule"),
        (r#"{"granule": 1, "promise": "all"}"#, "promise"),
        (r#"{"granule": 1, "promise": true}"#, "promise"),
        (r#"{"granule": 1, "initial": 0}"#, "initial"),
        (r#"{"granule": 1, "order": 1}"#, "order"),
    ] {
        assert!(
            matches!(header(text), Err(LineError::Field { field: it, .. }) if it == field),
            "{text}"
        );
    }
}

#[test]
fn what_is_wrong_with_a_line_is_told_with_its_number() {
    assert!(matches!(read(""), Err(ImportError::Empty)));
    assert!(matches!(read("\n // nothing\n"), Err(ImportError::Empty)));
    assert_eq!(refused("\nhello\n"), (2, LineError::UnknownForm));
    assert_eq!(refused(b"granule 1\n\n\xff\n"), (3, LineError::NotText));
    assert!(matches!(refused("granule 0"), (1, LineError::Form(_))));
    assert!(matches!(
        refused("granule 1\nc0 fly #1\n"),
        (2, LineError::Form(_))
    ));
    let twice = "granule 1\nc0 flush #1\nc0 flush #1\n";
    let in_use = Malformed::CookieInUse { conn: 0, cookie: 1 };
    assert_eq!(refused(twice), (3, LineError::Impossible(in_use)));
    let json = "{\"granule\": 1}\n";
    for (line, field) in [
        (r#"{"event": "begin"}"#, "event"),
        (r#"{"event": "disconnect"}"#, "conn"),
        (r#"{"event": "disconnect", "conn": 4294967296}"#, "conn"),
        (
            r#"{"event": "reply", "conn": 0, "cookie": 1, "outcome": "good"}"#,
            "outcome",
        ),
        (
            r#"{"event": "reply", "conn": 0, "cookie": 1, "outcome": "data", "each": 1}"#,
            "each",
        ),
        (
            r#"{"event": "reply", "conn": 0, "cookie": 1, "outcome": "data"}"#,
            "the data",
        ),
    ] {
        let (number, why) = refused(format!("{json}{line}\n"));
        assert_eq!(number, 2, "{line}");
        assert!(
            matches!(why, LineError::Field { field: it, .. } if it == field),
            "{why}"
        );
    }
    assert!(matches!(
        refused(format!("{json}[]")),
        (2, LineError::Form(_))
    ));
    assert!(matches!(
        refused(format!("{json}{{")),
        (2, LineError::Json(_))
    ));
    let deep = "[".repeat(1 << 20);
    assert!(matches!(
        refused(format!("{json}{deep}")),
        (2, LineError::Json(_))
    ));
}

#[test]
fn a_line_without_end_is_refused_before_it_fills_the_memory() {
    let endless = std::io::Read::chain(Cursor::new(&b"granule 1\n"[..]), std::io::repeat(b'c'));
    let result = judge(BufReader::new(endless), &options());
    assert!(
        matches!(
            result,
            Err(ImportError::Line {
                line: 2,
                why: LineError::TooLong
            })
        ),
        "{result:?}"
    );
}

#[test]
fn a_history_that_is_all_over_the_place_is_refused_before_it_fills_the_memory() {
    let limits = Limits {
        pages: 8,
        remembered: 100,
        uncounted: 50,
    };
    let header = Header::new(1, Promised::MultiConn);
    let count = |event: &dyn Fn(u64) -> String| {
        let mut judge = Judge::with_limits(&header, limits);
        let taken = (0..1000).take_while(|&number| {
            let event = event(number).parse().unwrap();
            match judge.record(&event) {
                Ok(found) => found.is_none(),
                Err(LineError::TooMuch(_)) => false,
                Err(why) => panic!("{why}"),
            }
        });
        taken.count()
    };
    let far = |number: u64| format!("c0 trim #{number} {}+1", number << 40);
    assert_eq!(count(&far), 8);
    let long = |number: u64| format!("c0 trim #{number} 0+{}", 256 * (number + 1));
    assert!(count(&long) < 8);
    let near = |number: u64| format!("c0 trim #{number} {number}+1");
    assert!((50..150).contains(&count(&near)));
    let waiting = |number: u64| format!("c0 flush #{number}");
    assert!((50..200).contains(&count(&waiting)));
    let done = |number: u64| match number % 2 {
        0 => format!("c0 flush #{number}"),
        _ => format!("c0 done #{}", number - 1),
    };
    assert_eq!(count(&done), 1000);
}

fn header_of(granule: u64, promise: Promise) -> Header {
    let promised = match promise.is_multi_conn() {
        true => Promised::MultiConn,
        false => Promised::SingleConnection,
    };
    let strict = Header::new(granule, promised);
    let less = [(true, true), (true, false), (false, true), (false, false)];
    let mut headers = less.into_iter().map(|(ordered, own_writes)| Header {
        ordered: ordered && strict.ordered,
        own_writes,
        ..strict
    });
    headers.find(|it| it.promise() == promise).unwrap()
}

fn as_json(history: &History, promise: Promise) -> Vec<u8> {
    let mut lines = Vec::new();
    json::write_header(&mut lines, &header_of(history.granule(), promise)).unwrap();
    for event in history.events() {
        json::write_event(&mut lines, event).unwrap();
    }
    lines
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn both_forms_are_judged_as_the_library_judges_the_whole(
        (history, promise) in prop_oneof![strategy::kept(), strategy::careless()],
    ) {
        let expected = match check(&history, promise) {
            Ok(summary) if summary.blocks_read == 0 => Verdict::None,
            Ok(_) => Verdict::Held,
            Err(CheckError::Violation(_)) => Verdict::Broken,
            Err(error) => return Err(TestCaseError::fail(error.to_string())),
        };
        let json = read(as_json(&history, promise)).unwrap();
        prop_assert_eq!(json.verdict(), expected);
        let header = header_of(history.granule(), promise);
        // The text has no words for the order of writes.
        if Header::new(header.granule, header.promised).promise() == promise {
            let options = ImportOptions { promise: Some(header.promised), ..options() };
            let text = judge(Cursor::new(history.to_string()), &options).unwrap();
            prop_assert_eq!(text.verdict(), expected);
        }
    }

    #[test]
    fn what_is_written_as_json_is_read_as_it_was(history in strategy::any_history()) {
        for event in history.events() {
            let mut line = Vec::new();
            json::write_event(&mut line, event).unwrap();
            let line = String::from_utf8(line).unwrap();
            prop_assert_eq!(&json::parse_event(&line).unwrap(), event, "{}", line);
        }
    }

    #[test]
    fn any_bytes_are_judged_or_refused(
        first in prop_oneof![
            Just(""), Just("granule 1\n"), Just("{\"granule\":1}\n"), Just(ONE), Just(T1),
        ],
        rest in prop::collection::vec(any::<u8>(), 0..400),
    ) {
        let _ = read([first.as_bytes(), &rest].concat());
    }

    /// Lines of real logs, some lost, some twice, some out of place, with a letter changed here
    /// and there.
    #[test]
    fn a_log_that_was_tampered_with_is_judged_or_refused(
        log in prop::sample::select(vec![ONE, FAILING, EMULATE, UNSAFE, T1, C1, STALE, STALE_JSON]),
        picks in prop::collection::vec((any::<prop::sample::Index>(), 0..12_u8, any::<(prop::sample::Index, u8)>()), 0..120),
    ) {
        let lines: Vec<&str> = log.lines().collect();
        let mut tampered = Vec::new();
        for (at, (pick, how, (place, byte))) in picks.iter().enumerate() {
            let line = match how {
                0..9 => lines[at % lines.len()],
                _ => lines[pick.index(lines.len())],
            };
            let mut line = line.as_bytes().to_vec();
            if *how == 11 && !line.is_empty() {
                let place = place.index(line.len());
                line[place] = *byte;
            }
            tampered.extend(line);
            tampered.push(b'\n');
        }
        if let Ok(imported) = read(&tampered) {
            let _ = (imported.to_string(), imported.to_json());
        }
    }
}

#[test]
fn contents_keep_their_identity_beyond_what_other_languages_can_count() {
    for content in [0, 1, 1 << 53, (1 << 53) + 1, u64::MAX - 1, u64::MAX] {
        let extent = Extent::new(u64::MAX - 1, 1);
        let content = Content(content);
        for event in [
            Event::Invoke {
                conn: u32::MAX,
                cookie: u64::MAX,
                command: Command::Write {
                    extent,
                    content,
                    fua: true,
                },
            },
            Event::Reply {
                conn: 0,
                cookie: 0,
                outcome: Outcome::Data(Contents::Each(vec![content, Content::MIXED])),
            },
        ] {
            let mut line = Vec::new();
            json::write_event(&mut line, &event).unwrap();
            let line = String::from_utf8(line).unwrap();
            assert_eq!(json::parse_event(&line), Ok(event), "{line}");
        }
    }
}

#[test]
fn a_written_header_is_read_as_it_was() {
    let mut header = Header::new(512, Promised::SingleConnection);
    header.initial = Initial::Unknown;
    header.own_writes = false;
    let mut line = Vec::new();
    json::write_header(&mut line, &header).unwrap();
    let line = String::from_utf8(line).unwrap();
    assert_eq!(json::parse_header(&line, None), Ok(header));
}

// Logs of nbdkit

#[track_caller]
fn log(text: &str) -> nbdkit::Log {
    match read(text) {
        Ok(Imported::Log(log)) => log,
        other => panic!("not a log of one filter: {other:?}"),
    }
}

#[track_caller]
fn layers(text: &str) -> layers::Layers {
    match read(text) {
        Ok(Imported::Layers(layers)) => layers,
        other => panic!("not a log of two filters: {other:?}"),
    }
}

#[test]
fn one_log_filter_tells_what_was_never_flushed_and_gives_no_verdict() {
    let imported = read(ONE).unwrap();
    assert_eq!(imported.verdict(), Verdict::None);
    assert!(imported.to_string().contains("NO VERDICT"), "{imported}");
    let log = log(ONE);
    assert_eq!((log.tally.connections, log.tally.reads), (2, 1));
    assert_eq!((log.tally.modifications, log.tally.flushes), (6, 2));
    // c1: W(0) W(20000) F T(0); c2: FUA(1000) F Z(2000) W(10000). c1's flush comes last.
    assert_eq!((log.all.covered.writes, log.all.uncovered.writes), (5, 1));
    assert_eq!(log.all.examples[0].place.called, 25);
    assert_eq!((log.own.covered.writes, log.own.uncovered.writes), (3, 3));
    let lines: Vec<_> = log.own.examples.iter().map(|it| it.place.called).collect();
    assert_eq!(lines, [17, 19, 25]);
    assert!(
        log.own
            .examples
            .iter()
            .all(|it| it.why == Why::ConnectionEnded)
    );
}

#[test]
fn what_failed_is_not_owed() {
    let log = log(FAILING);
    assert_eq!((log.tally.modifications, log.tally.failed), (1, 1));
    assert_eq!((log.own.failed.writes, log.own.uncovered.writes), (1, 0));
}

#[test]
fn a_server_that_is_started_again_has_new_connections() {
    let log = log(&format!("{ONE}{ONE}"));
    assert_eq!((log.tally.runs, log.tally.connections), (2, 4));
    assert_eq!(log.own.uncovered.writes, 6);
}

#[test]
fn a_line_that_was_being_written_is_not_used() {
    let cut = &ONE[..ONE.len() - 40];
    let log = log(cut);
    assert!(log.tally.cut_off);
    let more = format!("{cut}\nmore\n");
    assert!(matches!(refused(more).1, LineError::Form(_)));
}

#[test]
fn what_cannot_have_happened_in_a_log_is_told() {
    let begin = ONE.lines().take(8).collect::<Vec<_>>().join("\n");
    let time = "2026-11-21 16:07:29.113770";
    for (lines, why) in [
        ("connection=3 Flush id=1 ...", "the connection is not open"),
        (
            "connection=2 ...Flush id=1 return=0",
            "nothing was called by this id",
        ),
        (
            "connection=2 Connect export=\"\" size=0x1000 ",
            "the connection is open already",
        ),
    ] {
        let text = format!("{begin}\n{time} {lines}\n");
        assert_eq!(
            refused(&text),
            (9, LineError::ImpossibleLog(why)),
            "{lines}"
        );
    }
    let beyond = format!(
        "{begin}\n{time} connection=1 Write id=1 offset=0x100000 count=0x200 fua=0 ...\n\
         {time} connection=1 ...Write id=1 return=0\n"
    );
    let why = LineError::ImpossibleLog("it ends beyond the export");
    assert_eq!(refused(&beyond), (10, why));
    for line in [
        "connection=1 Write id=1 offset=0x100000 fua=0 ...",
        "connection=1 Write id=1 offset=0xffffffffffffffff count=0x1 fua=0 ...",
        "connection=x Write",
        "connection=1 ...Write id=1",
    ] {
        let text = format!("{begin}\n{time} {line}\n");
        assert!(matches!(refused(&text), (9, LineError::Form(_))), "{line}");
    }
}

#[test]
fn names_of_exports_cannot_pass_for_something_else() {
    use super::nbdkit::{Entry, parse};
    let line = r#"2026-11-21 16:07:29.113770 connection=7 Connect export="size=0x1 \" ( size=0x2" tls=0 size=0x100 write=1"#;
    let size = Some(256);
    assert_eq!(
        parse(line),
        Ok(Entry::Connect {
            connection: 7,
            size
        })
    );
    let line = r#"2026-11-21 16:07:29.113770 connection=7 ...Extents id=5 extents=(0x0 0x1 "hole,return=1") return=0"#;
    let expected = Entry::Return {
        connection: 7,
        id: 5,
        succeeded: true,
    };
    assert_eq!(parse(line), Ok(expected));
}

/// In the foreground, the filters do not tell that they have forked.
#[test]
fn two_log_filters_are_recognised_by_their_questions_too() {
    for (text, filters) in [(EMULATE, 2), (T1, 2), (ONE, 1)] {
        let lines = text.lines().filter(|it| !it.ends_with("Fork"));
        let text = lines.collect::<Vec<_>>().join("\n") + "\n";
        let two = matches!(read(text).unwrap(), Imported::Layers(_));
        assert_eq!(two, filters == 2);
    }
    // Who knows better can say so.
    let options = ImportOptions {
        format: Some(Format::NbdkitLog),
        ..options()
    };
    let imported = judge(Cursor::new(T1), &options).unwrap();
    assert!(matches!(imported, Imported::Log(_)));
}

#[test]
fn a_coordinator_that_flushed_what_it_had_to_has_held() {
    let imported = read(EMULATE).unwrap();
    assert_eq!(imported.verdict(), Verdict::Held, "{imported}");
    assert!(
        imported.to_string().contains("Only that was checked"),
        "{imported}"
    );
    let layers = layers(EMULATE);
    // Two flushes and one FUA above; below there is no FUA.
    assert_eq!(layers.promises, 3);
    assert_eq!(layers.below.uncovered.writes, 0);
}

#[test]
fn layers_where_nothing_was_promised_have_no_verdict() {
    // All up to the flush.
    let text: Vec<&str> = C1.lines().take(21).collect();
    let imported = read(text.join("\n") + "\n").unwrap();
    assert_eq!(imported.verdict(), Verdict::None, "{imported}");
    assert!(
        imported.to_string().contains("so nothing was promised"),
        "{imported}"
    );
}

#[test]
fn a_flush_that_reaches_only_its_own_connection_has_broken_the_promise_of_multi_conn() {
    let broken = layers(UNSAFE).broken.unwrap();
    // The zeroing on the second connection; its write with FUA was durable.
    assert_eq!((broken.range.start, broken.range.end), (0x2000, 0x3000));
    assert_eq!((broken.above.connection, broken.below.connection), (4, 3));
    assert_eq!(broken.promise.connection, 2);
    assert_eq!(broken.why, Unflushed::NotYet);
    let single = ImportOptions {
        promise: Some(Promised::SingleConnection),
        ..options()
    };
    let imported = judge(Cursor::new(UNSAFE), &single).unwrap();
    assert_eq!(imported.verdict(), Verdict::Held, "{imported}");
}

#[test]
fn a_dirty_bit_that_was_lost_is_found() {
    let imported = read(T1).unwrap();
    assert_eq!(imported.verdict(), Verdict::Broken);
    let broken = layers(T1).broken.unwrap();
    // The write was answered at line 23, and the second flush does not reach its connection.
    assert_eq!((broken.above.called, broken.above.answered), (16, 23));
    assert_eq!((broken.promise.called, broken.promise.answered), (24, 25));
    assert_eq!(broken.why, Unflushed::NotYet);
    assert_eq!(imported.to_json()["violation"]["above"]["lines"][1], 23);
}

#[test]
fn a_flush_need_not_cover_what_was_answered_after_it_came() {
    // All up to the second flush.
    let text: Vec<&str> = T1.lines().take(23).collect();
    assert!(layers(&(text.join("\n") + "\n")).broken.is_none());
}

#[test]
fn what_a_connection_left_behind_is_missed() {
    let broken = layers(C1).broken.unwrap();
    assert_eq!(broken.why, Unflushed::Closed);
    assert!(read(C1).unwrap().to_string().contains("was closed"));
}

/// Every line of the log is needed: without one of the flushes below, or with it failed, the
/// promise is broken.
#[test]
fn each_flush_below_counts() {
    // The first is there for a write with FUA, the second for a flush.
    for (id, is_flush) in [
        ("connection=3 Flush id=2", false),
        ("connection=3 Flush id=5", true),
    ] {
        let call = EMULATE.lines().find(|it| it.contains(id)).unwrap();
        let back = id.replace("Flush", "...Flush");
        let back = EMULATE.lines().find(|it| it.contains(&back)).unwrap();
        let without = EMULATE.replace(&format!("{call}\n"), "");
        let without = without.replace(&format!("{back}\n"), "");
        let broken = layers(&without).broken.unwrap();
        assert_eq!((broken.why, broken.is_flush), (Unflushed::NotYet, is_flush));
        let failed = back.replace("return=0", "return=-1 error=EIO");
        let failed = EMULATE.replace(back, &failed);
        let broken = layers(&failed).broken.unwrap();
        assert_eq!((broken.why, broken.is_flush), (Unflushed::Failed, is_flush));
    }
}

/// Two writes of one connection to one place: it cannot be told which of them was executed, so it
/// counts as the one that is answered last.
#[test]
fn what_may_have_been_done_for_either_of_two_commands_is_not_answered_before_both_are() {
    let write = |id| format!("Write id={id} offset=0x0 count=0x1000");
    let lines = |fua: u8| {
        vec![
            format!("connection=2 {} fua={fua} ...", write(1)),
            format!("connection=2 {} fua=0 ...", write(2)),
            // One was left out because of the other, perhaps.
            format!("connection=1 {} fua=0 ...", write(1)),
            "connection=1 ...Write id=1 return=0".to_owned(),
            "connection=2 ...Write id=1 return=0".to_owned(),
            "connection=2 Flush id=3 ...".to_owned(),
            "connection=2 ...Flush id=3 return=0".to_owned(),
            "connection=2 ...Write id=2 return=0".to_owned(),
            "connection=2 Flush id=4 ...".to_owned(),
            "connection=2 ...Flush id=4 return=0".to_owned(),
        ]
    };
    let judged = |lines: &[String]| {
        let begin = T1.lines().take(9).map(str::to_owned);
        let time = |it: &String| format!("2026-11-21 16:07:29.393221 {it}");
        let log: Vec<String> = begin.chain(lines.iter().map(time)).collect();
        layers(&(log.join("\n") + "\n")).broken
    };
    for fua in [0, 1] {
        assert_eq!(judged(&lines(fua)[..8]), None);
        let broken = judged(&lines(fua)).unwrap();
        assert_eq!((broken.promise.called, broken.above.answered), (18, 17));
    }
    // What was done without FUA may have been done for the one without.
    let mut both = lines(0);
    both[1] = both[1].replace("fua=0", "fua=1");
    both.splice(
        4..8,
        [
            format!("connection=1 {} fua=1 ...", write(2)),
            "connection=1 ...Write id=2 return=0".to_owned(),
            "connection=2 ...Write id=1 return=0".to_owned(),
            "connection=2 ...Write id=2 return=0".to_owned(),
        ],
    );
    assert_eq!(judged(&both[..8]), None);
    assert!(judged(&both).unwrap().is_flush);
    // If it is the only one, there is no doubt.
    let mut alone = lines(1);
    alone.retain(|it| !it.contains("connection=2 Write id=2") && !it.contains("...Write id=2"));
    let broken = judged(&alone).unwrap();
    assert!(!broken.is_flush, "{broken:?}");
}

/// A flush below that was called before the write was answered there does not cover it.
#[test]
fn a_flush_below_that_came_too_early_does_not_count() {
    let mut lines: Vec<&str> = EMULATE.lines().collect();
    let place = |lines: &[&str], what: &str| lines.iter().position(|it| it.contains(what)).unwrap();
    let call = place(&lines, "connection=3 Flush id=5");
    let line = lines.remove(call);
    let trim = place(&lines, "connection=3 ...Trim id=4");
    lines.insert(trim, line);
    let text = lines.join("\n") + "\n";
    assert_eq!(layers(&text).broken.unwrap().why, Unflushed::NotYet);
}

#[test]
fn connections_that_cannot_be_told_apart_are_refused() {
    // The second client's connection below is told of before the first client's above.
    let mut lines: Vec<&str> = EMULATE.lines().collect();
    let place = |what: &str| EMULATE.lines().position(|it| it.contains(what)).unwrap();
    lines.swap(place("connection=2 Connect"), place("connection=3 Connect"));
    assert_eq!(refused(lines.join("\n")).1, LineError::Ambiguous);
}
