//! The example `info` with servers that are in order: it shows what is there, all of it, and
//! nothing else.

#![cfg(unix)]

mod info_support;
mod program_support;
mod serve_support;

use std::sync::mpsc;
use std::time::Duration;

use info_support::{Offer, Server, assert_line, info, name, start, start_with_memory};
use nbd_proto::handshake::{Context, Export};
use nbd_proto::wire::{Extent, TransmissionFlags};
use serde_json::{Value, json};
use serve_support::Serve;

const MIB: u64 = 1 << 20;

// --- one export ---

#[test]
fn the_memory_of_serve_is_shown_as_it_is() {
    let serve = Serve::start(&["--size", "3M"]);
    let uri = format!("nbd://{}", serve.address);
    let text = info([&uri]).well();
    assert!(
        text.starts_with("protocol: newstyle-fixed without TLS, "),
        "{text}"
    );
    assert_line(&text, "export", "\"\"");
    assert_line(&text, "size", "3145728 bytes (3.00 MiB)");
    for can in ["flush", "FUA", "trim", "write zeroes", "multi-conn"] {
        assert_line(&text, can, "yes");
    }
    assert_line(&text, "read-only", "no");
    assert!(!text.contains("odd ("), "{text}");
    let json = info(["--json", &uri]).json();
    assert_eq!(json["exports"][0]["export-size"], 3 * MIB);
    assert_eq!(info(["--size", &uri]).well(), "3145728\n");
    let json = info(["--size", "--json", &uri]).json();
    assert_eq!(json["export-size"], 3 * MIB);
    serve.stop();
}

#[test]
fn every_export_of_serve_is_listed() {
    let serve = Serve::start(&["--export", "one", "--export", "größer"]);
    let uri = format!("nbd://{}", serve.address);
    let text = info(["--list", &uri]).well();
    assert_line(&text, "export", "\"one\"");
    assert_line(&text, "export", "\"größer\"");
    let absent = info([format!("{uri}/absent")]);
    absent.failed_with(&["no such export", "--list"]);
    serve.stop();
}

fn rich() -> Offer {
    Offer::new(5 * MIB)
        .extended()
        .contexts(&["base:allocation", "x:y"])
        .block_sizes(512, 8192, 65536)
        .export(|export| {
            let mut export = export.with_description(name("a \"disk\"\u{7}"));
            export.flags = TransmissionFlags::SEND_FLUSH
                | TransmissionFlags::SEND_DF
                | TransmissionFlags::ROTATIONAL
                | TransmissionFlags::BLOCK_STATUS_PAYLOAD
                | TransmissionFlags::CAN_MULTI_CONN;
            export
        })
}

#[test]
fn everything_that_was_told_is_in_the_json() {
    let server = Server::good(rich(), Vec::new());
    let found = info(["--json", &server.uri()]).json();
    let expected = json!({
        "protocol": "newstyle-fixed",
        "TLS": false,
        "structured": true,
        "extended": true,
        "exports": [{
            "export-name": "disk",
            "canonical-name": "disk",
            "uri": server.uri(),
            "description": "a \"disk\"\u{7}",
            "export-size": 5 * MIB,
            "export-size-str": "5.00 MiB",
            "block_size_minimum": 512,
            "block_size_preferred": 8192,
            "block_size_maximum": 65536,
            "is_read_only": false,
            "is_rotational": true,
            "can_flush": true,
            "can_fua": false,
            "can_trim": false,
            "can_zero": false,
            "can_fast_zero": false,
            "can_df": true,
            "can_cache": false,
            "can_multi_conn": true,
            "can_block_status_payload": true,
            "transmission-flags": 0x1195,
            "contexts": ["base:allocation", "x:y"],
            "odd": [{
                "kind": "advice",
                "section": "Size constraints",
                "text": "the maximum payload 65536 is below 1 MiB, though the export is not",
            }],
        }],
    });
    assert_eq!(found, expected);
}

#[test]
fn everything_that_was_told_is_in_the_text_and_nothing_in_it_drives_a_terminal() {
    let server = Server::good(rich(), Vec::new());
    let text = info([server.uri()]).well();
    assert!(text.starts_with("protocol: newstyle-fixed without TLS, extended headers\n"));
    assert_line(&text, "export", "\"disk\"");
    assert_line(&text, "description", r#""a \"disk\"\u{7}""#);
    assert_line(
        &text,
        "block sizes",
        "at least 512, best 8192, at most 65536 bytes",
    );
    assert_line(&text, "rotational", "yes");
    assert_line(&text, "FUA", "no");
    assert_line(&text, "meta contexts", "base:allocation");
    assert!(text.contains("odd (advice)"), "{text}");
}

#[test]
fn simple_replies_have_no_contexts_and_ask_for_one_connection() {
    let server = Server::good(Offer::new(MIB).simple(), Vec::new());
    let json = info(["--json", &server.uri()]).json();
    assert_eq!(json["structured"], false);
    assert_eq!(json["exports"][0]["contexts"], json!([]));
    assert_eq!(server.clients(), 1);
    let uri = server.uri();
    info(["--map", &uri]).failed_with(&["no structured replies", "base:allocation"]);
}

#[test]
fn abilities_are_answered_by_the_exit_status() {
    let server = Server::good(rich(), Vec::new());
    for (word, what, yes) in [
        ("--can", "connect", true),
        ("--can", "read", true),
        ("--can", "write", true),
        ("--is", "read-only", false),
        ("--is", "rotational", true),
        ("--can", "flush", true),
        ("--can", "fua", false),
        ("--can", "trim", false),
        ("--can", "zero", false),
        ("--can", "fast-zero", false),
        ("--can", "df", true),
        ("--can", "cache", false),
        ("--can", "multi-conn", true),
        ("--can", "block-status-payload", true),
        ("--is", "tls", false),
        ("--has", "structured-reply", true),
        ("--has", "extended-headers", true),
    ] {
        let ended = info([word, what, &server.uri()]);
        assert_eq!(ended.status, Some(i32::from(!yes)), "{what}: {ended:?}");
        assert_eq!((ended.stdout, ended.stderr), Default::default(), "{what}");
    }
}

#[test]
fn a_socket_serves_as_well() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let serve = Serve::start(&["--unix", path.to_str().unwrap()]);
    let uri = format!("nbd+unix:///?socket={}", path.display());
    assert_eq!(info(["--size", &uri]).well(), "1073741824\n");
    serve.stop();
}

// --- lists ---

#[test]
fn a_list_has_names_descriptions_and_sizes_and_says_what_it_left_out() {
    let second = Export::new(name("a/b ?"), 7, TransmissionFlags::READ_ONLY);
    let offer = Offer::new(MIB)
        .export(|export| export.with_description(name("first")))
        .another(second)
        .another(Export::new(name(""), 9, TransmissionFlags::empty()));
    let server = Server::good(offer, Vec::new());
    let json = info(["--list", "--json", &server.uri_of("")]).json();
    let exports = json["exports"].as_array().unwrap();
    let get = |key| {
        exports
            .iter()
            .map(|export| &export[key])
            .collect::<Vec<_>>()
    };
    assert_eq!(get("export-name"), ["disk", "a/b ?", ""]);
    assert_eq!(get("export-size"), [&json!(MIB), &json!(7), &json!(9)]);
    assert_eq!(exports[0]["description"], "first");
    assert_eq!(exports[1]["uri"], server.uri_of("a/b%20%3F"));
    // The URI leads there.
    let uri = server.uri_of("a/b%20%3F");
    assert_eq!(info(["--size", &uri]).well(), "7\n");

    let few = info(["-L", "--max-exports", "1", &server.uri_of("")]).well();
    assert_eq!(few.matches("\n  size ").count(), 1, "{few}");
    assert_eq!(few.matches("not asked about").count(), 2, "{few}");
}

// --- maps ---

fn extent(length: u64, flags: u64) -> Extent {
    Extent { length, flags }
}

fn map_json(server: &Server, context: &str) -> Vec<(u64, u64, u64)> {
    let map = format!("--map={context}");
    let json = info([&map, "--json", &server.uri()]).json();
    let number = |value: &Value| value.as_u64().unwrap();
    let all = json.as_array().unwrap().iter();
    all.map(|extent| {
        (
            number(&extent["offset"]),
            number(&extent["length"]),
            number(&extent["type"]),
        )
    })
    .collect()
}

#[test]
fn a_map_is_a_table_with_totals_and_a_picture() {
    let extents = vec![
        extent(MIB, 0),
        extent(MIB, 3),
        extent(MIB / 2, 0),
        extent(MIB + MIB / 2, 2),
    ];
    let server = Server::good(Offer::new(4 * MIB), extents);
    let text = info(["--map", &server.uri()]).well();
    let picture = [
        "#".repeat(20),
        ".".repeat(20),
        "#".repeat(10),
        ".".repeat(30),
    ]
    .concat();
    let expected = format!(
        " offset   length  state
      0  1048576  data
1048576  1048576  hole,zero
2097152   524288  data
2621440  1572864  zero

  total           state
1572864   37.5 %  data
1572864   37.5 %  zero
1048576   25.0 %  hole,zero

each character is 51.20 KiB: # data, . hole or zeroes, + both
{picture}
"
    );
    assert_eq!(text, expected);
}

#[test]
fn what_the_server_cuts_in_pieces_is_shown_as_one() {
    let extents: Vec<_> = (0..100)
        .map(|at| extent(1000, u64::from(at >= 50)))
        .collect();
    let server = Server::new(Offer::new(100_000), move |peer| {
        while let Some(request) = peer.next_request() {
            // One extent for each question, however much is asked about.
            let at = usize::try_from(request.offset / 1000).unwrap();
            peer.answer(&request, &extents[..=at]);
        }
    });
    let found = map_json(&server, "base:allocation");
    assert_eq!(found, [(0, 50_000, 0), (50_000, 50_000, 1)]);
}

#[test]
fn an_extent_beyond_what_was_asked_is_taken_as_far_as_it_goes() {
    // Without extended headers at most 4 GiB less a bit are asked about, and can be told of.
    let size = 10 << 32;
    for offer in [Offer::new(size), Offer::new(size).extended()] {
        let server = Server::good(offer, vec![extent(size - 1, 3), extent(1, 0)]);
        let found = map_json(&server, "base:allocation");
        assert_eq!(found, [(0, size - 1, 3), (size - 1, 1, 0)]);
    }
}

#[test]
fn wide_flags_come_through() {
    let mut offer = Offer::new(MIB).extended();
    offer.contexts = vec![Context::new(name("x:wide")).with_wide(true)];
    let server = Server::good(offer, vec![extent(MIB, u64::MAX)]);
    assert_eq!(map_json(&server, "x:wide"), [(0, MIB, u64::MAX)]);
    let text = info(["--map=x:wide", &server.uri()]).well();
    assert_line(&text, "0  1048576", "flags 0xffffffffffffffff");
}

#[test]
fn only_the_context_that_was_asked_for_is_shown() {
    let offer = Offer::new(MIB).contexts(&["base:allocation", "qemu:dirty-bitmap:b"]);
    let server = Server::new(offer, |peer| {
        while let Some(request) = peer.next_request() {
            let length = u32::try_from(MIB).unwrap();
            let ids: Vec<_> = peer
                .session
                .contexts()
                .iter()
                .map(|context| context.id)
                .collect();
            assert_eq!(ids, [1]);
            peer.status(&request, 1, true, &[(length, 1)]);
        }
    });
    let text = info(["--map=qemu:dirty-bitmap:b", &server.uri()]).well();
    assert_line(&text, "0  1048576", "dirty");
    let uri = server.uri();
    info(["--map=qemu:dirty-bitmap:c", &uri]).failed_with(&["no meta context qemu:dirty-bitmap:c"]);
}

#[test]
fn the_timeout_is_for_each_answer_and_not_for_the_map() {
    let server = Server::new(Offer::new(MIB), |peer| {
        let (_test, never) = mpsc::channel::<()>();
        while let Some(request) = peer.next_request() {
            let _ = never.recv_timeout(Duration::from_millis(400));
            peer.status(&request, 0, true, &[(1 << 18, 0)]);
        }
    });
    let ended = info(["--map", "--json", "--timeout", "1", &server.uri()]);
    assert!(ended.took > Duration::from_secs(1));
    assert_eq!(ended.json()[0]["length"], MIB);
}

#[test]
fn an_empty_export_has_an_empty_map() {
    let server = Server::good(Offer::new(0), Vec::new());
    assert_eq!(map_json(&server, "base:allocation"), []);
    let text = info(["--map", &server.uri()]).well();
    assert!(text.starts_with("offset  length  state\n"), "{text}");
}

#[test]
fn an_end_that_is_no_whole_block_is_left_out_and_said_so() {
    let offer = Offer::new(MIB + 5).block_sizes(512, 4096, 1 << 20);
    let server = Server::good(offer, vec![extent(MIB, 0)]);
    let ended = info(["--map", "--json", &server.uri()]);
    assert_eq!(ended.status, Some(0), "{ended:?}");
    assert!(ended.stderr.contains("the last 5 bytes"), "{ended:?}");
    let json: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(json[0]["length"], MIB);
    assert_eq!(json.as_array().unwrap().len(), 1);
}

#[test]
fn however_many_extents_there_are_they_are_not_held_in_memory() {
    const EACH: u32 = 1 << 13;
    const ROWS: u64 = 1 << 18;
    let server = Server::new(Offer::new(ROWS * 512), |peer| {
        let some: Vec<_> = (0..EACH).map(|at| (512, at & 1)).collect();
        while let Some(request) = peer.next_request() {
            peer.status(&request, 0, true, &some);
        }
    });
    // What it needs for the map of nothing, and a little more.
    let nothing = Server::good(Offer::new(0), Vec::new());
    let least = (1..)
        .map(|mib| mib << 10)
        .find(|&kib| {
            start_with_memory(kib, ["--map", &nothing.uri()])
                .finish()
                .status
                == Some(0)
        })
        .unwrap();
    for json in [&["--json"][..], &[]] {
        let uri = server.uri();
        let arguments = [&["--map", &uri], json].concat();
        let text = start_with_memory(least + (4 << 10), arguments)
            .finish()
            .well();
        assert!(text.lines().count() as u64 > ROWS);
    }
}

// --- the command line ---

#[test]
fn a_wrong_command_line_is_told_with_status_2_in_one_line() {
    for (arguments, words) in [
        (&[][..], "<URI>"),
        (&["--can", "fly", "nbd://h"], "fly"),
        (&["--map=x", "nbd://h"], "base:allocation"),
        (&["--map", "--size", "nbd://h"], "--size"),
        (&["disk.img"], "nbd://"),
        (&["nbd://h/?tls-hostname=x"], "nbds://"),
        (&["nbd://h/", "--tls-ca", "x"], "nbds://"),
        (&["nbd+unix:///"], "?socket=PATH"),
        (&["nbd://h/", "--timeout", "0"], "--timeout"),
    ] {
        let ended = info(arguments);
        assert_eq!(ended.stdout, "");
        ended.ended_with(2, &[words]);
    }
    for help in ["--help", "--version"] {
        assert!(info([help]).well().contains("info"));
    }
}

#[test]
fn output_that_nobody_reads_is_a_failure_and_no_panic() {
    let extents: Vec<_> = (0..200_000).map(|at| extent(512, at & 1)).collect();
    let server = Server::good(Offer::new(200_000 * 512), extents);
    let mut running = start(["--map", &server.uri()]);
    running.close_stdout();
    running.finish().ended_with(1, &["cannot write the map"]);
}

// --- how many connections ---

fn plans(arguments: &[&str]) -> Value {
    info([&["--plan", "--json"], arguments].concat()).json()
}

/// The plan for a use.
fn plan<'v>(answer: &'v Value, usage: &str, caution: &str) -> &'v Value {
    let mut plans = answer["plans"].as_array().unwrap().iter();
    let found = plans.find(|plan| plan["use"] == usage && plan["caution"] == caution);
    found.unwrap_or_else(|| panic!("no plan to {usage}, {caution}: {answer}"))
}

#[test]
fn with_multi_conn_any_connection_will_do_and_they_were_opened() {
    let offer = Offer::new(64 * MIB).export(|mut export| {
        export.flags |= TransmissionFlags::CAN_MULTI_CONN;
        export
    });
    let server = Server::good(offer, vec![extent(64 * MIB, 0)]);
    let answer = plans(&[&server.uri(), "--connections", "3"]);
    assert_eq!((&answer["asked"], &answer["tried"]), (&json!(3), &json!(3)));
    assert_eq!(answer["tried-end"], Value::Null);
    for usage in ["read", "copy", "disk"] {
        let plan = plan(&answer, usage, "strict");
        assert_eq!(plan["connections"], 3);
        assert_eq!(plan["routing"], "any");
        assert_eq!(plan["final-flush"], usage != "read");
    }
    assert_eq!(answer["plans"].as_array().unwrap().len(), 3);
    let text = info(["--plan", &server.uri()]).well();
    assert!(text.contains("4 connections, any of them"), "{text}");
    assert!(text.contains("A last flush is owed"), "{text}");
}

#[test]
fn without_multi_conn_there_is_one_and_what_insisting_would_make_of_it() {
    let server = Server::good(Offer::new(64 * MIB), vec![extent(64 * MIB, 0)]);
    let answer = plans(&[&server.uri()]);
    assert_eq!(answer["tried"], 1);
    for usage in ["read", "copy", "disk"] {
        let plan = plan(&answer, usage, "strict");
        assert_eq!(
            (&plan["connections"], &plan["routing"]),
            (&json!(1), &json!("single"))
        );
        assert!(plan["missing"][0].as_str().unwrap().contains("multi-conn"));
    }
    assert_eq!(plan(&answer, "read", "readers")["routing"], "any");
    let insisted = plan(&answer, "disk", "insist");
    assert_eq!(insisted["routing"], "pinned");
    assert!(insisted["granule"].as_u64().unwrap() > 0);
    let text = info(["--plan", &server.uri()]).well();
    assert!(text.contains("Without multi-conn"), "{text}");
}
