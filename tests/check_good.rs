//! The example `check` with servers that keep their promise, and with the same servers told to
//! break it.

#![cfg(unix)]

mod check_support;
mod copy_support;
mod program_support;
mod serve_support;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::Command;

use check_support::{Ended, check, json, start, text};
use copy_support::crowd::{Crowd, Event};
use copy_support::{Offer, Peer};
use nbd_proto::conformance::{CheckError, Event as Seen, History, Promise, check as judge};
use nbd_proto::wire::{CommandType, Request, TransmissionFlags};
use rustix::process::Signal;
use serde_json::json;
use serve_support::Serve;
use tempfile::TempDir;

fn uri(server: &Serve) -> String {
    format!("nbd://{}", server.address)
}

/// A file of zeroes.
fn image(directory: &TempDir, size: u64) -> String {
    let path = directory.path().join("image");
    File::create(&path).unwrap().set_len(size).unwrap();
    text(&path)
}

/// A short check with some seed.
fn short(server: &Serve, seed: u32, options: &[&str]) -> Ended {
    let (uri, seed) = (uri(server), seed.to_string());
    // Where something else ends it, that is to be reached.
    let seconds = if options.contains(&"--operations") {
        "30"
    } else {
        "1"
    };
    let arguments = [&[&uri, "--seconds", seconds, "--seed", &seed], options].concat();
    check(arguments)
}

// --- servers that are as they should be ---

#[test]
fn memory_without_caches_holds() {
    let server = Serve::start(&["--size", "16M"]);
    for seed in 1..=2 {
        let ended = short(&server, seed, &["--yes"]).held();
        assert!(ended.stdout.contains("flags: flush, FUA"), "{ended:?}");
        assert!(ended.stdout.contains("multi-conn"), "{ended:?}");
        assert!(
            ended.stdout.contains(&format!("--seed {seed}")),
            "{ended:?}"
        );
    }
    server.stop().well();
}

#[test]
fn caches_that_are_coordinated_hold() {
    let emulate = ["--cache", "--multi-conn", "emulate", "--size", "16M"];
    let delays = [
        "--delay-read",
        "1",
        "--delay-write",
        "2",
        "--delay-flush",
        "2",
    ];
    let directory = tempfile::tempdir().unwrap();
    let file = image(&directory, 1 << 20);
    for (seed, arguments) in [
        (1, emulate.to_vec()),
        (2, [&emulate[..], &["--track-dirty", "off"]].concat()),
        (3, [&emulate[..], &delays].concat()),
        (4, [&emulate[..], &["--acknowledge", "on-receipt"]].concat()),
        (5, vec!["file", &file, "--cache", "--multi-conn", "emulate"]),
    ] {
        let server = Serve::start(&arguments);
        short(&server, seed, &[]).held();
        server.stop().well();
    }
}

#[test]
fn without_multi_conn_each_connection_is_held_to_its_own_promise() {
    let server = Serve::start(&["--cache", "--multi-conn", "disable", "--size", "16M"]);
    let ended = short(&server, 1, &[]).held();
    assert!(
        ended.stdout.contains("no multi-conn: nothing is promised"),
        "{ended:?}"
    );
    server.stop().well();
}

#[test]
fn without_multi_conn_connections_share_no_part_of_what_a_server_keeps_at_once() {
    for (size, several) in [("128K", false), ("256K", true)] {
        let server = Serve::start(&["--cache", "--multi-conn", "disable", "--size", size]);
        let ended = short(&server, 1, &["--operations", "2000"]).held();
        let said = ended.stdout.contains("on 4 connections");
        assert_eq!(said, several, "{ended:?}");
        server.stop().well();
    }
}

#[test]
fn exports_of_all_sizes_can_be_checked() {
    for size in ["4096", "5000", "700", "100K", "65537", "1T"] {
        let server = Serve::start(&["--size", size]);
        // All of the last one is said to be zeroes, so that it is not read.
        let ended = short(&server, 1, &["--operations", "2000"]).held();
        assert!(
            ended.stdout.contains("blocks read and compared"),
            "{ended:?}"
        );
        server.stop().well();
    }
}

#[test]
fn one_connection_is_enough_for_what_one_is_promised() {
    let server = Serve::start(&["--cache", "--size", "1M"]);
    let ended = short(&server, 1, &["--connections", "1"]).held();
    let words = "on one connection: nothing between connections was checked";
    assert!(ended.stdout.contains(words), "{ended:?}");
    server.stop().well();
}

#[test]
fn a_server_without_flush_is_checked_for_what_is_left() {
    let flags = TransmissionFlags::SEND_WRITE_ZEROES;
    let server = Crowd::good(Offer::new(1 << 20).flags(flags), vec![0; 1 << 20]);
    let ended = check([&server.uri(), "--operations", "1000"]).held();
    assert!(
        ended.stdout.contains("no flush: what a flush does"),
        "{ended:?}"
    );
    assert!(ended.stdout.contains("no FUA"), "{ended:?}");
    assert_eq!(server.asked(CommandType::FLUSH), []);
}

#[test]
fn block_sizes_are_kept_to() {
    for offer in [
        Offer::new(1 << 20).block_sizes(4096, 4096, 4096),
        Offer::new(1 << 20).block_sizes(1, 512, 65_536).simple(),
        Offer::new(256 << 10).block_sizes(65_536, 65_536, 1 << 20),
    ] {
        let sizes = offer.block_sizes;
        let size = usize::try_from(offer.size).unwrap();
        let server = Crowd::good(offer.multi_conn(), vec![0; size]);
        check([&server.uri(), "--operations", "1000"]).held();
        for kind in [CommandType::READ, CommandType::WRITE] {
            let asked = server.asked(kind);
            assert!(!asked.is_empty());
            for (_, request) in asked {
                let minimum = u64::from(sizes.minimum());
                assert_eq!((request.offset % minimum, request.length % minimum), (0, 0));
                assert!(request.length <= sizes.max_payload().into());
            }
        }
    }
}

#[test]
fn nothing_is_sent_to_a_server_that_it_has_not_advertised() {
    let server = Crowd::good(Offer::new(1 << 20).multi_conn(), vec![0; 1 << 20]);
    check([&server.uri(), "--operations", "2000"]).held();
    for event in server.events() {
        if let Event::Asked(_, request) = event {
            assert!(request.flags.is_empty(), "{request:?}");
            assert!(
                [
                    CommandType::READ,
                    CommandType::WRITE,
                    CommandType::WRITE_ZEROES,
                    CommandType::FLUSH
                ]
                .contains(&request.kind),
                "{request:?}"
            );
        }
    }
}

// --- servers that are not ---

#[test]
fn caches_that_nobody_coordinates_are_found_out() {
    let directory = tempfile::tempdir().unwrap();
    let report = directory.path().join("report");
    for seed in 1..=3 {
        let server = Serve::start(&["--cache", "--multi-conn", "unsafe", "--size", "16M"]);
        let seconds = ["--seconds", "20", "--json", &text(&report)];
        let (uri, seed) = (uri(&server), seed.to_string());
        let ended = check([&[&uri, "--seed", &seed][..], &seconds].concat());
        ended.broken(&["broken promise of multi-conn", "┌ write =", "└ found"]);
        server.stop().well();
        let report = json(&report);
        assert_eq!(report["verdict"], "broken");
        let violation = &report["violation"];
        assert_eq!(violation["kind"], "promise");
        let steps = violation["steps"].as_array().unwrap();
        assert!(
            steps
                .iter()
                .any(|it| it["role"] == "wrong" && it["action"] == "read")
        );
        assert!(!violation["events"].as_array().unwrap().is_empty());
    }
}

#[test]
fn a_server_that_forgets_what_it_has_flushed_is_found_out_by_a_restart() {
    restarted("ignore-flush").broken(&["broken promise", "crash"]);
}

#[test]
fn a_server_that_keeps_it_is_not() {
    let ended = restarted("on-completion").held();
    assert!(ended.stdout.contains(" of 3 kills"), "{ended:?}");
}

#[test]
fn commands_go_on_until_the_server_is_killed() {
    /// Bytes of the record: not only what was left of a few schedules.
    const MORE: u64 = 8 << 10;
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| text(&directory.path().join(name));
    let (record, sizes) = (at("record"), at("sizes"));
    let server = Restarting::new("on-completion");
    // What was in flight when the command began is answered long before the server dies: it waits
    // until more than that was recorded, but not for ever.
    let size = format!("$(wc -c <{record})");
    let command = format!(
        "first={size}; for _ in $(seq 100); do \
         [ {size} -gt $((first + {MORE})) ] && break; sleep 0.1; done; \
         echo $first {size} >>{sizes}; sh {} start",
        server.script
    );
    let restarts = ["--restart-command", &command, "--restarts", "3"];
    let others = ["--seconds", "6", "--record", &record];
    check([&[server.uri().as_str()], &restarts[..], &others].concat()).held();
    let sizes = fs::read_to_string(sizes).unwrap();
    assert!(!sizes.is_empty());
    for kill in sizes.lines() {
        let (first, last) = kill.split_once(' ').unwrap();
        let (first, last): (u64, u64) = (first.parse().unwrap(), last.parse().unwrap());
        assert!(last > first + MORE, "{sizes}");
    }
}

#[test]
fn a_restart_that_nobody_has_told_of_leaves_no_verdict() {
    let server = Restarting::new("on-completion");
    let mut running = start([server.uri().as_str(), "--seconds", "30"]);
    running.wait_for("overwriting");
    server.run("start");
    let ended = running.finish();
    ended.no_verdict(&["all connections were lost at once", "--restart-command"]);
}

fn restarted(acknowledge: &str) -> Ended {
    let server = Restarting::new(acknowledge);
    let command = format!("sh {} start", server.script);
    let restarts = ["--restart-command", &command, "--restarts", "3"];
    let time = ["--seconds", "3", "--timeout", "10"];
    check([&[server.uri().as_str()], &restarts[..], &time].concat())
}

/// A server over a file that a script kills and starts again. Its cache dies with it.
struct Restarting {
    directory: TempDir,
    script: String,
}

impl Restarting {
    fn new(acknowledge: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = image(&directory, 1 << 20);
        let at = |name: &str| text(&directory.path().join(name));
        let tests = std::env::current_exe().unwrap();
        let serve = tests.parent().unwrap().parent().unwrap();
        // Killed processes may stay as zombies if nobody waits for them, which does not matter.
        let lines = format!(
            "if [ -f {pid} ]; then
                old=$(cat {pid}); kill -9 $old
                while grep -qs '^State:.[^ZX]' /proc/$old/status; do sleep 0.01; done
            fi
            if [ \"$1\" = stop ]; then exit; fi
            rm -f {out} {socket}
            {serve} --unix {socket} file {file} --cache --acknowledge {acknowledge} >{out} 2>&1 &
            echo $! > {pid}
            until grep -qs 'listening on' {out}; do sleep 0.01; kill -0 $! || exit 1; done",
            serve = text(&serve.join("examples/serve")),
            pid = at("pid"),
            out = at("out"),
            socket = at("socket"),
        );
        let script = at("restart");
        fs::write(&script, lines).unwrap();
        let server = Self { directory, script };
        server.run("start");
        server
    }

    fn run(&self, argument: &str) {
        let status = Command::new("sh")
            .args([self.script.as_str(), argument])
            .status();
        assert!(status.unwrap().success());
    }

    fn uri(&self) -> String {
        let socket = self.directory.path().join("socket");
        format!("nbd+unix:///?socket={}", text(&socket))
    }
}

impl Drop for Restarting {
    fn drop(&mut self) {
        let _ = Command::new("sh")
            .args([self.script.as_str(), "stop"])
            .status();
    }
}

// --- what is not to be lost ---

#[test]
fn data_is_not_overwritten_unless_that_is_allowed() {
    let directory = tempfile::tempdir().unwrap();
    let path = image(&directory, 4 << 20);
    let file = File::options().write(true).open(&path).unwrap();
    file.write_all_at(&[7], (3 << 20) + 12_345).unwrap();
    let before = fs::read(&path).unwrap();
    let server = Serve::start(&["file", &path]);
    let ended = short(&server, 1, &[]);
    ended.no_verdict(&["there is data at offset 3158073", "--yes"]);
    assert!(fs::read(&path).unwrap() == before, "it was overwritten");
    let ended = short(&server, 1, &["--read-only"]).held();
    assert!(ended.stdout.contains("nothing is modified"), "{ended:?}");
    assert!(fs::read(&path).unwrap() == before, "it was overwritten");
    short(&server, 1, &["--yes"]).held();
    assert!(fs::read(&path).unwrap() != before, "nothing was tried");
    server.stop().well();
}

#[test]
fn where_nothing_says_what_is_zero_it_is_read() {
    let mut data = vec![0; 3 << 20];
    data[(3 << 20) - 1] = 1;
    for offer in [Offer::new(3 << 20), Offer::new(3 << 20).simple()] {
        let server = Crowd::good(offer, data.clone());
        check([&server.uri()]).no_verdict(&["there is data at offset 3145727"]);
        assert_eq!(server.asked(CommandType::WRITE), []);
    }
}

#[test]
fn an_export_that_is_read_only_is_only_read() {
    let flags = TransmissionFlags::READ_ONLY | TransmissionFlags::CAN_MULTI_CONN;
    let data: Vec<u8> = (0..1 << 20).map(|at: u32| at.to_le_bytes()[1]).collect();
    let server = Crowd::good(Offer::new(1 << 20).flags(flags), data.clone());
    let ended = check([&server.uri(), "--operations", "1000"]).held();
    assert!(ended.stdout.contains("nothing is modified"), "{ended:?}");
    let is_read = |event: &Event| match event {
        Event::Asked(_, request) => request.kind == CommandType::READ,
        _ => true,
    };
    assert!(server.events().iter().all(is_read));
    assert!(*server.disk.lock().unwrap() == data);
}

// --- what is told ---

#[test]
fn the_report_for_programs_says_it_all() {
    let directory = tempfile::tempdir().unwrap();
    let report = directory.path().join("report");
    let server = Serve::start(&["--size", "16M"]);
    let ended = short(&server, 77, &["--quiet", "--json", &text(&report)]).held();
    assert_eq!(ended.stdout.lines().count(), 1, "{ended:?}");
    let report = json(&report);
    for (key, value) in [
        ("verdict", json!("held")),
        ("size", json!(16 << 20)),
        ("promise", json!("multi-conn")),
        ("seed", json!(77)),
        ("connections", json!(4)),
        ("granule", json!(512)),
        ("reply-style", json!("extended")),
        ("lints", json!([])),
        ("violation", json!(null)),
        ("error", json!(null)),
    ] {
        assert_eq!(report[key], value, "{key}");
    }
    let flags = report["flags"].as_array().unwrap();
    assert!(flags.contains(&json!("multi-conn")) && flags.contains(&json!("flush")));
    let counters = &report["counters"];
    let said = format!("HELD: {} operations", counters["operations"]);
    assert!(ended.stdout.starts_with(&said), "{ended:?}");
    for key in ["reads", "writes", "flushes", "fua", "trims", "zeroes"] {
        assert!(counters[key].as_u64().unwrap() > 0, "{key}: {counters}");
    }
    assert_eq!(counters["crashes"], 0);
    server.stop().well();
}

#[test]
fn the_record_is_a_history_that_says_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let record = directory.path().join("record");
    let options = ["--operations", "3000", "--record", &text(&record)];
    let server = Serve::start(&["--size", "1M"]);
    short(&server, 1, &options).held();
    server.stop().well();
    let history: History = fs::read_to_string(&record).unwrap().parse().unwrap();
    let summary = judge(&history, Promise::MULTI_CONN).unwrap();
    assert!(summary.commands > 2500, "{summary:?}");
    let is_end = |it: &&Seen| matches!(it, Seen::Disconnect { .. });
    assert!(history.events().iter().filter(is_end).count() >= 4);

    let server = Serve::start(&["--cache", "--multi-conn", "unsafe", "--size", "1M"]);
    short(&server, 1, &options).broken(&[]);
    server.stop().well();
    let history: History = fs::read_to_string(&record).unwrap().parse().unwrap();
    let judged = judge(&history, Promise::MULTI_CONN);
    assert!(
        matches!(judged, Err(CheckError::Violation(_))),
        "{judged:?}"
    );
}

#[test]
fn a_signal_ends_it_with_the_verdict_so_far() {
    for (signal, number) in [(Signal::INT, 2), (Signal::TERM, 15)] {
        let server = Serve::start(&["--size", "1M"]);
        let mut running = start([&uri(&server), "--seconds", "3600"]);
        running.wait_for("overwriting");
        running.signal(signal);
        let ended = running.finish();
        assert_eq!(ended.status, Some(128 + number), "{ended:?}");
        assert!(ended.stdout.starts_with("HELD so far: "), "{ended:?}");
        assert_eq!(ended.stderr, "check: stopped by a signal\n");
        server.stop().well();
    }
}

#[test]
fn connections_end_as_the_protocol_wants_it() {
    // What is dropped with requests in flight does harm to some servers, and none is.
    let server = Crowd::new(
        |_| Some(Offer::new(1 << 20).multi_conn()),
        vec![0; 1 << 20],
        |_: usize, _: &mut Peer, _: &Request| false,
    );
    check([&server.uri(), "--operations", "3000"]).held();
    let clients = server.clients();
    assert!(clients > 4, "nobody left and came back");
    let mut unanswered = vec![0; clients];
    for event in server.events() {
        match event {
            Event::Came(_) => {}
            Event::Asked(number, _) => unanswered[number] += 1,
            Event::Answered(number, _) => unanswered[number] -= 1,
            Event::Left(number) => assert_eq!(unanswered[number], 0),
        }
    }
}

#[test]
fn the_wrong_command_line_is_one_line() {
    let ended = check(["nbd://localhost", "--restarts", "3"]);
    ended.no_verdict(&["--restart-command", "see check --help"]);
    check(["http://localhost"]).no_verdict(&["nbd://"]);
    let ended = check(["--help"]);
    assert_eq!(ended.status, Some(0));
    assert!(ended.stdout.contains("no power failure"), "{ended:?}");
}
