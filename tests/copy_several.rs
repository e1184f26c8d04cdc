//! The example `copy` over several connections: as many as the plan allows, and a flush that
//! covers them all.

#![cfg(unix)]

mod copy_support;
mod program_support;

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use copy_support::crowd::{Crowd, Event};
use copy_support::{Ended, Offer, contents, copy, directory, file, text};
use nbd_proto::wire::{CommandFlags, CommandType, Errno, Request, TransmissionFlags};

/// Enough for eight workers.
const SIZE: usize = (33 << 20) + 12_345;

/// Made once: it takes its time.
fn data() -> Vec<u8> {
    static DATA: LazyLock<Vec<u8>> = LazyLock::new(|| contents(SIZE));
    DATA.clone()
}

fn write(path: &Path, data: &[u8]) -> String {
    fs::write(path, data).unwrap();
    text(path)
}

/// Copies a file to a server.
fn store(server: &Crowd, data: &[u8], options: &[&str]) -> Ended {
    let directory = directory();
    let mut arguments = vec![write(&file(&directory, "in"), data), server.uri()];
    arguments.extend(options.iter().map(|&option| option.to_owned()));
    copy(arguments)
}

fn is_modification(request: &Request) -> bool {
    request.kind.is_modification()
}

/// When a flush came, everything that was asked before had been answered.
#[track_caller]
fn check_last_flush(events: &[Event]) {
    let mut open = HashSet::new();
    let mut flushed = false;
    for event in events {
        match event {
            Event::Asked(number, request) if is_modification(request) => {
                assert!(!flushed, "a write after the last flush");
                open.insert((*number, request.cookie));
            }
            Event::Answered(number, request) => {
                open.remove(&(*number, request.cookie));
            }
            Event::Asked(_, request) if request.kind == CommandType::FLUSH => {
                assert!(open.is_empty(), "{} writes were not covered", open.len());
                flushed = true;
            }
            Event::Came(_) | Event::Asked(..) => {}
            Event::Left(_) => assert!(flushed, "left before the flush"),
        }
    }
    assert!(flushed);
}

#[test]
fn with_multi_conn_all_connections_write_and_one_flush_covers_them() {
    let data = data();
    for (connections, expected) in [("4", 4), ("1", 1), ("3", 3), ("8", 8)] {
        let server = Crowd::good(Offer::new(SIZE).multi_conn(), vec![0xee; SIZE]);
        store(&server, &data, &["--connections", connections]).well();
        assert!(*server.disk.lock().unwrap() == data, "wrong data");
        // Who is late may find nothing left to do.
        assert_eq!(server.clients(), expected, "{connections}");
        assert_eq!(server.asked(CommandType::FLUSH).len(), 1);
        check_last_flush(&server.events());
    }
}

#[test]
fn with_multi_conn_all_connections_read() {
    let data = data();
    let directory = directory();
    let path = file(&directory, "out");
    let server = Crowd::good(Offer::new(SIZE).multi_conn(), data.clone());
    copy([&server.uri(), &text(&path), "-C4"]).well();
    assert!(fs::read(&path).unwrap() == data);
    assert_eq!(server.clients(), 4);
}

#[test]
fn one_side_without_multi_conn_is_enough_for_one_connection() {
    let data = data();
    for (from, to) in [
        (Offer::new(SIZE), Offer::new(SIZE).multi_conn()),
        (Offer::new(SIZE).multi_conn(), Offer::new(SIZE)),
    ] {
        let source = Crowd::good(from, data.clone());
        let destination = Crowd::good(to, vec![0xee; SIZE]);
        copy([&source.uri(), &destination.uri(), "-C4"]).well();
        assert!(*destination.disk.lock().unwrap() == data);
        assert_eq!(source.used_for(CommandType::READ), [0]);
        assert_eq!(destination.used_for(CommandType::WRITE), [0]);
    }
}

#[test]
fn who_insists_gets_ranges_of_their_own_for_every_connection_and_a_flush_on_each() {
    let data = data();
    let server = Crowd::good(Offer::new(SIZE), vec![0xee; SIZE]);
    let options = ["--connections", "3", "--caution", "insist"];
    store(&server, &data, &options).well();
    assert!(*server.disk.lock().unwrap() == data);
    assert_eq!(server.used_for(CommandType::WRITE), [0, 1, 2]);
    assert_eq!(server.used_for(CommandType::FLUSH), [0, 1, 2]);
    check_flushed_each(&server.events());
    // No granule was touched by two.
    let mut owners = std::collections::HashMap::new();
    for event in server.events() {
        if let Event::Asked(number, request) = event
            && is_modification(&request)
        {
            for granule in request.offset >> 22..=(request.offset + request.length - 1) >> 22 {
                assert_eq!(*owners.entry(granule).or_insert(number), number);
            }
        }
    }
}

/// No connection was left with something that its own flush does not cover.
#[track_caller]
fn check_flushed_each(events: &[Event]) {
    let mut dirty = HashSet::new();
    for event in events {
        match event {
            Event::Asked(number, request) if is_modification(request) => {
                dirty.insert(*number);
            }
            Event::Asked(number, request) if request.kind == CommandType::FLUSH => {
                dirty.remove(number);
            }
            Event::Left(number) => assert!(!dirty.contains(number)),
            _ => {}
        }
    }
    assert!(dirty.is_empty());
}

#[test]
fn readers_may_be_several_without_multi_conn_if_the_user_says_so() {
    let data = data();
    let directory = directory();
    let path = file(&directory, "out");
    let server = Crowd::good(Offer::new(SIZE), data.clone());
    let readers = ["--caution", "readers", "-C4"];
    copy([&[server.uri().as_str(), &text(&path)], &readers[..]].concat()).well();
    assert!(fs::read(&path).unwrap() == data);
    assert_eq!(server.clients(), 4);
    // To write, that is not enough.
    let server = Crowd::good(Offer::new(SIZE), vec![0; SIZE]);
    store(&server, &data, &readers).well();
    assert_eq!(server.used_for(CommandType::WRITE), [0]);
}

#[test]
fn a_small_copy_has_no_use_for_many_connections() {
    let data = contents(1 << 20);
    let server = Crowd::good(Offer::new(1 << 20).multi_conn(), vec![0; 1 << 20]);
    store(&server, &data, &["--connections", "8"]).well();
    assert_eq!(server.clients(), 1);
}

// --- connections that do not fit ---

#[test]
fn a_connection_to_something_else_is_not_used_and_told_of() {
    for (other, words) in [
        (Offer::new(SIZE - 512).multi_conn(), "bytes, but"),
        (Offer::new(SIZE + 512).multi_conn(), "bytes, but"),
        (Offer::new(SIZE), "transmission flags"),
        (Offer::new(SIZE).multi_conn().simple(), "headers"),
        (
            Offer::new(SIZE)
                .multi_conn()
                .block_sizes(512, 4096, 1 << 20),
            "block sizes",
        ),
    ] {
        let data = data();
        let first = Offer::new(SIZE).multi_conn();
        let offer = move |number: usize| {
            let offer = if number == 0 { &first } else { &other };
            Some(offer.clone())
        };
        let server = Crowd::new(offer, vec![0xee; SIZE], |_, _, _| false);
        let ended = store(&server, &data, &["-C4"]);
        assert_eq!(ended.status, Some(0), "{ended:?}");
        for word in ["going on with 1 connection: ", words] {
            assert!(ended.stderr.contains(word), "no {word:?} in {ended:?}");
        }
        assert!(*server.disk.lock().unwrap() == data);
        assert_eq!(server.used_for(CommandType::WRITE), [0]);
    }
}

#[test]
fn a_server_that_takes_no_more_clients_is_made_do_with() {
    let data = data();
    let offer = |number| (number < 2).then(|| Offer::new(SIZE).multi_conn());
    let server = Crowd::new(offer, vec![0xee; SIZE], |_, _, _| false);
    let ended = store(&server, &data, &["--connections", "4"]);
    assert_eq!(ended.status, Some(0), "{ended:?}");
    assert!(
        ended.stderr.contains("going on with 2 connections"),
        "{ended:?}"
    );
    assert!(*server.disk.lock().unwrap() == data);
    check_last_flush(&server.events());
}

// --- failures ---

/// Through whichever connection it comes: on a busy machine, some may get nothing to do.
fn is_third_write(writes: &AtomicUsize, request: &Request) -> bool {
    request.kind == CommandType::WRITE && writes.fetch_add(1, Ordering::Relaxed) == 2
}

#[test]
fn one_connection_that_fails_ends_the_copy_and_nothing_is_claimed_without_a_flush() {
    let writes = AtomicUsize::new(0);
    let special = move |_, peer: &mut copy_support::Peer, request: &Request| {
        let is_it = is_third_write(&writes, request);
        if is_it {
            peer.close();
        }
        is_it
    };
    let offer = |_| Some(Offer::new(SIZE).multi_conn());
    let server = Crowd::new(offer, vec![0; SIZE], special);
    let ended = store(&server, &data(), &["-C4"]);
    ended.failed_with(&["is incomplete", "permanent storage"]);
}

#[test]
fn one_write_that_fails_ends_the_copy_and_what_others_wrote_is_flushed() {
    let writes = AtomicUsize::new(0);
    let special = move |_, peer: &mut copy_support::Peer, request: &Request| {
        let is_it = is_third_write(&writes, request);
        if is_it {
            peer.fail(request, Errno::ENOSPC, "");
        }
        is_it
    };
    let offer = |_| Some(Offer::new(SIZE).multi_conn());
    let server = Crowd::new(offer, vec![0; SIZE], special);
    let ended = store(&server, &data(), &["-C4"]);
    ended.failed_with(&["cannot write", "ENOSPC", "is incomplete"]);
    assert!(!server.asked(CommandType::FLUSH).is_empty());
}

/// The ranges that a message says are on permanent storage.
fn claimed(message: &str) -> Vec<std::ops::Range<usize>> {
    let Some((_, list)) = message.split_once("are on permanent storage: ") else {
        return Vec::new();
    };
    let list = list.split(" and ").next().unwrap();
    let numbers = |range: &str| {
        let (start, end) = range.trim().split_once("..").unwrap();
        start.parse().unwrap()..end.parse().unwrap()
    };
    list.split(", ").map(numbers).collect()
}

#[test]
fn what_is_said_to_be_durable_was_answered_before_a_flush_that_succeeded() {
    // The server dies at some moment, after some flushes in between.
    for last in [1, 2, 5] {
        for caution in ["strict", "insist"] {
            let flushes = AtomicUsize::new(0);
            let special = move |_, peer: &mut copy_support::Peer, request: &Request| {
                if request.kind == CommandType::FLUSH {
                    flushes.fetch_add(1, Ordering::SeqCst);
                }
                let is_over = flushes.load(Ordering::SeqCst) > last;
                if is_over {
                    peer.close();
                }
                is_over
            };
            let offer = move |_| {
                let offer = Offer::new(SIZE);
                Some(match caution {
                    "strict" => offer.multi_conn(),
                    _ => offer,
                })
            };
            let data = data();
            let server = Crowd::new(offer, vec![0xee; SIZE], special);
            let options = ["--flush-every", "2M", "--caution", caution, "-C4"];
            let ended = store(&server, &data, &options);
            assert_eq!(ended.status, Some(1), "{ended:?}");
            let claimed = claimed(&ended.stderr);
            assert!(!claimed.is_empty(), "{ended:?}");
            check_claims(&claimed, &server.events(), caution == "insist");
            let disk = server.disk.lock().unwrap();
            for range in claimed {
                assert!(disk[range.clone()] == data[range], "claimed, and not there");
            }
        }
    }
}

/// Each byte was answered, and then covered by a flush that was asked for later and answered.
fn check_claims(claimed: &[std::ops::Range<usize>], events: &[Event], own_only: bool) {
    let mut answered: Vec<(usize, Request)> = Vec::new();
    let mut covered_by: std::collections::HashMap<_, Vec<Request>> = Default::default();
    let mut durable: Vec<Request> = Vec::new();
    for event in events {
        match event {
            Event::Answered(number, request) if is_modification(request) => {
                answered.push((*number, *request));
            }
            Event::Asked(number, request) if request.kind == CommandType::FLUSH => {
                let covered = answered.iter().filter(|(on, _)| !own_only || on == number);
                let covered = covered.map(|(_, request)| *request).collect();
                covered_by.insert((*number, request.cookie), covered);
            }
            Event::Answered(number, request) if request.kind == CommandType::FLUSH => {
                durable.extend(&covered_by[&(*number, request.cookie)]);
            }
            _ => {}
        }
    }
    for range in claimed {
        let mut at = range.start as u64;
        while at < range.end as u64 {
            let write = durable
                .iter()
                .find(|it| it.offset <= at && at < it.offset + it.length);
            let write = write.unwrap_or_else(|| panic!("{at} is not durable"));
            at = write.offset + write.length;
        }
    }
}

#[test]
fn flushes_in_between_come_as_often_as_they_were_asked_for() {
    let data: Vec<u8> = data().iter().map(|byte| byte | 1).collect();
    let server = Crowd::good(Offer::new(SIZE).multi_conn(), vec![0; SIZE]);
    store(&server, &data, &["--flush-every", "4M", "-C4"]).well();
    let count = server.asked(CommandType::FLUSH).len();
    // And the last one. Flushes that meet become one.
    assert!((3..=9).contains(&count), "{count}");
    let server = Crowd::good(Offer::new(SIZE).multi_conn(), vec![0; SIZE]);
    store(&server, &data, &["--flush-every", "0"]).well();
    assert_eq!(server.asked(CommandType::FLUSH).len(), 1);
}

#[test]
fn without_flush_but_with_fua_everything_is_written_with_it() {
    let flags = TransmissionFlags::SEND_FUA | TransmissionFlags::SEND_WRITE_ZEROES;
    let server = Crowd::good(Offer::new(SIZE).flags(flags).multi_conn(), vec![1; SIZE]);
    let data = data();
    let ended = store(&server, &data, &[]);
    assert!(ended.stdout.ends_with(", written with FUA\n"), "{ended:?}");
    ended.well();
    assert!(*server.disk.lock().unwrap() == data);
    for event in server.events() {
        if let Event::Asked(_, request) = event {
            assert!(request.flags.contains(CommandFlags::FUA));
        }
    }
}
