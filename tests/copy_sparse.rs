//! The example `copy` and zeroes: what the source knows of them is not read, and they get to the
//! destination in the best way that it has.

#![cfg(unix)]

mod copy_support;
mod program_support;

use std::fs;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};

use copy_support::crowd::Crowd;
use copy_support::{Ended, Offer, Peer, contents, copy, directory, file, text};
use nbd_proto::wire::{ChunkType, CommandFlags, CommandType, Errno, Request, TransmissionFlags};

const SIZE: usize = (4 << 20) + 777;

/// Data in the middle, and a little of it elsewhere.
fn sparse() -> Vec<u8> {
    static DATA: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let mut bytes = vec![0; SIZE];
        bytes[1 << 20..2 << 20].copy_from_slice(&contents(1 << 20));
        bytes[3 << 20] = 7;
        bytes
    });
    DATA.clone()
}

/// Copies from a server to a file, which must then have what the server has.
#[track_caller]
fn fetch(server: &Crowd) -> Ended {
    let directory = directory();
    let path = file(&directory, "out");
    let ended = copy([server.uri(), text(&path)]);
    if ended.status == Some(0) {
        let disk = server.disk.lock().unwrap();
        assert!(fs::read(&path).unwrap() == *disk, "wrong data");
    }
    ended
}

/// Copies a file to a server.
fn store(server: &Crowd, data: &[u8], options: &[&str]) -> Ended {
    let directory = directory();
    let path = file(&directory, "in");
    fs::write(&path, data).unwrap();
    let mut arguments = vec![text(&path), server.uri()];
    arguments.extend(options.iter().map(|&option| option.to_owned()));
    copy(arguments)
}

fn total(asked: &[(usize, Request)]) -> u64 {
    asked.iter().map(|(_, request)| request.length).sum()
}

// --- what the source knows ---

#[test]
fn what_the_source_says_is_zero_is_not_read() {
    let server = Crowd::good(Offer::new(SIZE).with_status(), sparse());
    fetch(&server).well();
    let read = total(&server.asked(CommandType::READ));
    assert!(read <= (1 << 20) + (64 << 10), "{read} bytes were read");
    // One section, one question.
    assert_eq!(server.asked(CommandType::BLOCK_STATUS).len(), 1);
}

#[test]
fn between_servers_holes_are_zeroed_and_data_is_written() {
    let source = Crowd::good(Offer::new(SIZE).with_status().multi_conn(), sparse());
    let destination = Crowd::good(Offer::new(SIZE).multi_conn(), vec![0xee; SIZE]);
    copy([source.uri(), destination.uri()]).well();
    assert!(*destination.disk.lock().unwrap() == sparse());
    let written = total(&destination.asked(CommandType::WRITE));
    assert!(written <= (1 << 20) + (64 << 10), "{written}");
}

#[test]
fn a_source_that_refuses_to_say_is_read() {
    let special = |_, peer: &mut Peer, request: &Request| {
        let is_it = request.kind == CommandType::BLOCK_STATUS;
        if is_it {
            peer.fail(request, Errno::EIO, "no idea");
        }
        is_it
    };
    let server = Crowd::new(|_| Some(Offer::new(SIZE).with_status()), sparse(), special);
    fetch(&server).well();
    assert_eq!(total(&server.asked(CommandType::READ)), SIZE as u64);
}

/// A server that answers block status in its own way.
fn telling(tell: impl Fn(&mut Peer, &Request) + Send + Sync + 'static) -> Crowd {
    let special = move |_, peer: &mut Peer, request: &Request| {
        let is_it = request.kind == CommandType::BLOCK_STATUS;
        if is_it {
            tell(peer, request);
        }
        is_it
    };
    Crowd::new(|_| Some(Offer::new(SIZE).with_status()), sparse(), special)
}

#[test]
fn who_tells_little_at_a_time_is_asked_no_more_often_than_there_are_blocks() {
    // At most a page each time.
    let server = telling(|peer, request| peer.status(request, &[(request.length.min(4096), 0)]));
    fetch(&server).well();
    let asked = server.asked(CommandType::BLOCK_STATUS).len();
    assert!(asked <= SIZE.div_ceil(256 << 10), "{asked}");
    // A block and a bit: then the rest is asked for.
    let server = telling(|peer, request| {
        peer.status(request, &[(request.length.min((256 << 10) + 512), 0)]);
    });
    fetch(&server).well();
}

#[test]
fn a_hole_may_be_told_beyond_what_was_asked() {
    let size = 130 << 20;
    let server = Crowd::new(
        move |_| Some(Offer::new(size).with_status()),
        vec![0; size],
        move |_, peer, request| {
            let is_it = request.kind == CommandType::BLOCK_STATUS;
            if is_it {
                peer.status(request, &[(size as u64 - request.offset, 3)]);
            }
            is_it
        },
    );
    fetch(&server).well();
    assert!(server.asked(CommandType::READ).is_empty());
}

#[test]
fn data_that_is_told_beyond_what_was_asked_is_not_asked_about_again() {
    // All of it, or the first half; what is behind that is in five sections.
    for (size, data, questions) in [(40 << 20, 40 << 20, 1..=1), (40 << 20, 20 << 20, 2..=6)] {
        let server = Crowd::new(
            move |_| Some(Offer::new(size).with_status().multi_conn()),
            [contents(data), vec![0; size - data]].concat(),
            move |_, peer, request| {
                let is_it = request.kind == CommandType::BLOCK_STATUS;
                let (offset, size, data) = (request.offset, size as u64, data as u64);
                if is_it && offset < data {
                    peer.status(request, &[(data - offset, 0)]);
                } else if is_it {
                    peer.status(request, &[(size - offset, 3)]);
                }
                is_it
            },
        );
        let directory = directory();
        let path = file(&directory, "out");
        let four = ["--connections", "4"].map(str::to_owned);
        copy([server.uri(), text(&path)].into_iter().chain(four)).well();
        assert!(fs::read(&path).unwrap() == *server.disk.lock().unwrap());
        assert_eq!(server.clients(), 4);
        assert_eq!(total(&server.asked(CommandType::READ)), data as u64);
        let asked = server.asked(CommandType::BLOCK_STATUS);
        assert!(questions.contains(&asked.len()), "{asked:?}");
    }
}

#[test]
fn a_hole_that_is_not_zero_is_read() {
    let server = telling(|peer, request| peer.status(request, &[(request.length, 1)]));
    fetch(&server).well();
    assert_eq!(total(&server.asked(CommandType::READ)), SIZE as u64);
}

#[test]
fn illegal_answers_about_extents_end_the_copy() {
    let extents = |list: &[(u32, u32)]| {
        let mut body = 1_u32.to_be_bytes().to_vec();
        for (length, flags) in list {
            body.extend_from_slice(&length.to_be_bytes());
            body.extend_from_slice(&flags.to_be_bytes());
        }
        body
    };
    for list in [
        // Nothing; no length; beyond the end; more than was asked for.
        &[][..],
        &[(0, 3)],
        &[(4096, 3), (0, 0)],
        &[(u32::MAX, 3)],
        &[(SIZE as u32, 3), (4096, 3)],
    ] {
        let body = extents(list);
        let server = telling(move |peer, request| {
            // Its id may be another, but then that is the fault.
            let id = peer.session.contexts()[0].id;
            let body = [&id.to_be_bytes(), &body[4..]].concat();
            peer.chunk(ChunkType::BLOCK_STATUS, true, request.cookie, &body);
        });
        fetch(&server).failed_with(&["incomplete"]);
    }
}

#[test]
fn extents_without_end_are_left() {
    let server = telling(|peer, request| {
        let id = peer.session.contexts()[0].id;
        let extent = [&512_u32.to_be_bytes()[..], &0_u32.to_be_bytes()].concat();
        let body = [&id.to_be_bytes()[..], &extent.repeat(1 << 16)].concat();
        for _ in 0..100 {
            peer.chunk(ChunkType::BLOCK_STATUS, false, request.cookie, &body);
        }
        peer.be_silent();
    });
    fetch(&server).failed_with(&["incomplete"]);
}

#[test]
fn a_source_that_is_silent_about_extents_is_left_after_the_timeout() {
    let server = telling(|peer, _| peer.be_silent());
    let directory = directory();
    let path = text(&file(&directory, "out"));
    copy([&server.uri(), &path, "--timeout", "1"]).failed_with(&["was silent for 1 s"]);
}

// --- how zeroes get there ---

#[test]
fn a_destination_that_is_zero_is_sent_no_zeroes() {
    let server = Crowd::good(Offer::new(SIZE), vec![0; SIZE]);
    store(&server, &sparse(), &["--destination-is-zero"]).well();
    assert!(*server.disk.lock().unwrap() == sparse());
    assert_eq!(server.asked(CommandType::WRITE_ZEROES), []);
    let written = total(&server.asked(CommandType::WRITE));
    assert!(written <= (1 << 20) + (512 << 10), "{written}");
}

#[test]
fn fast_zeroes_are_asked_for_and_slow_ones_taken() {
    let flags = TransmissionFlags::SEND_FLUSH
        | TransmissionFlags::SEND_WRITE_ZEROES
        | TransmissionFlags::SEND_FAST_ZERO;
    for is_fast in [true, false] {
        let refused = AtomicBool::new(false);
        let special = move |_, peer: &mut Peer, request: &Request| {
            let refuse = !is_fast && request.flags.contains(CommandFlags::FAST_ZERO);
            if refuse {
                refused.store(true, Ordering::SeqCst);
                peer.fail(request, Errno::ENOTSUP, "");
            }
            refuse
        };
        let offer = move |_| Some(Offer::new(SIZE).flags(flags));
        let server = Crowd::new(offer, vec![0xee; SIZE], special);
        store(&server, &sparse(), &[]).well();
        assert!(*server.disk.lock().unwrap() == sparse());
        let zeroed = server.asked(CommandType::WRITE_ZEROES);
        let is_last_fast = zeroed
            .last()
            .unwrap()
            .1
            .flags
            .contains(CommandFlags::FAST_ZERO);
        assert_eq!(is_last_fast, is_fast);
        if !is_fast {
            let slow = zeroed
                .iter()
                .filter(|(_, request)| !request.flags.contains(CommandFlags::FAST_ZERO));
            assert!(
                slow.into_iter()
                    .all(|(_, request)| request.length <= 1 << 20)
            );
        }
    }
}

#[test]
fn a_refusal_that_is_not_about_speed_is_an_error() {
    let special = |_, peer: &mut Peer, request: &Request| {
        let is_it = request.kind == CommandType::WRITE_ZEROES;
        if is_it {
            peer.fail(request, Errno::ENOTSUP, "");
        }
        is_it
    };
    let server = Crowd::new(|_| Some(Offer::new(SIZE)), vec![0xee; SIZE], special);
    store(&server, &sparse(), &[]).failed_with(&["cannot zero"]);
}

#[test]
fn allocated_zeroes_make_no_holes() {
    let server = Crowd::good(Offer::new(SIZE), vec![0xee; SIZE]);
    store(&server, &sparse(), &["--allocate"]).well();
    assert!(*server.disk.lock().unwrap() == sparse());
    let zeroed = server.asked(CommandType::WRITE_ZEROES);
    assert!(!zeroed.is_empty());
    for (_, request) in zeroed {
        assert!(request.flags.contains(CommandFlags::NO_HOLE));
    }
    let directory = directory();
    let (from, to) = (file(&directory, "from"), file(&directory, "to"));
    fs::write(&from, sparse()).unwrap();
    copy([&text(&from), &text(&to), "--allocate"]).well();
    assert!(fs::read(&to).unwrap() == sparse());
    let room = std::os::unix::fs::MetadataExt::blocks(&fs::metadata(&to).unwrap()) * 512;
    assert!(room >= SIZE as u64, "{room}");
}

#[test]
fn trim_is_not_taken_for_zeroes() {
    let flags = TransmissionFlags::SEND_FLUSH | TransmissionFlags::SEND_TRIM;
    let server = Crowd::good(Offer::new(SIZE).flags(flags), vec![0xee; SIZE]);
    store(&server, &sparse(), &[]).well();
    assert!(*server.disk.lock().unwrap() == sparse());
    assert_eq!(server.asked(CommandType::TRIM), []);
    assert_eq!(total(&server.asked(CommandType::WRITE)), SIZE as u64);
}

// --- verification ---

#[test]
fn what_was_copied_well_is_verified() {
    for offer in [
        Offer::new(SIZE),
        Offer::new(SIZE).multi_conn().with_status(),
    ] {
        let source = Crowd::good(offer.clone(), sparse());
        let destination = Crowd::good(offer, vec![0xee; SIZE]);
        let arguments = [source.uri(), destination.uri(), "--verify".to_owned()];
        let ended = copy(arguments);
        assert!(ended.stdout.ends_with(", verified, flushed\n"), "{ended:?}");
        ended.well();
        assert_eq!(total(&destination.asked(CommandType::READ)), SIZE as u64);
    }
    let directory = directory();
    let (from, to) = (file(&directory, "from"), file(&directory, "to"));
    fs::write(&from, sparse()).unwrap();
    copy([&text(&from), &text(&to), "--verify"]).well();
}

#[test]
fn a_byte_that_changes_after_the_flush_is_found() {
    for at in [0, 1 << 20, SIZE - 1] {
        let special = move |_, peer: &mut Peer, request: &Request| {
            if request.kind == CommandType::FLUSH {
                peer.disk.lock().unwrap()[at] ^= 1;
            }
            false
        };
        let server = Crowd::new(|_| Some(Offer::new(SIZE)), vec![0xee; SIZE], special);
        let place = format!("they differ at offset {at}");
        store(&server, &sparse(), &["--verify"]).failed_with(&[&place, "is not verified"]);
    }
}

#[test]
fn a_source_that_lies_about_holes_is_found_out() {
    let server = telling(|peer, request| peer.status(request, &[(request.length, 3)]));
    let directory = directory();
    let path = text(&file(&directory, "out"));
    copy([&server.uri(), &path, "--verify"])
        .failed_with(&["they differ at offset", "not verified"]);
}

#[test]
fn a_destination_that_cannot_be_read_again_is_not_verified() {
    let special = |_, peer: &mut Peer, request: &Request| {
        let is_it = request.kind == CommandType::READ;
        if is_it {
            peer.fail(request, Errno::EIO, "");
        }
        is_it
    };
    let server = Crowd::new(|_| Some(Offer::new(SIZE)), vec![0xee; SIZE], special);
    store(&server, &sparse(), &["--verify"]).failed_with(&["again", "EIO", "is not verified"]);
}

// --- without copying ---

#[test]
fn a_dry_run_says_how_and_why_and_touches_nothing() {
    let data = sparse();
    let source = Crowd::good(Offer::new(SIZE).with_status(), data.clone());
    let destination = Crowd::good(Offer::new(SIZE).multi_conn(), vec![0xee; SIZE]);
    let ended = copy([&source.uri(), &destination.uri(), "--dry-run"]);
    for words in [
        "1 connection",
        "base:allocation",
        "by command",
        "multi-conn",
    ] {
        assert!(ended.stdout.contains(words), "no {words:?} in {ended:?}");
    }
    ended.well();
    for kind in [
        CommandType::WRITE,
        CommandType::WRITE_ZEROES,
        CommandType::READ,
    ] {
        assert_eq!(destination.asked(kind), []);
        assert_eq!(source.asked(kind), []);
    }
    let directory = directory();
    let path = file(&directory, "out");
    let source = Crowd::good(Offer::new(SIZE), data);
    copy([&source.uri(), &text(&path), "--dry-run"]).well();
    assert!(!path.exists());
    fs::write(&path, "precious").unwrap();
    copy([&source.uri(), &text(&path), "--dry-run"]).well();
    assert_eq!(fs::read(&path).unwrap(), b"precious");
}

#[test]
fn a_dry_run_says_why_there_are_fewer_connections_than_were_asked_for() {
    let destination = Crowd::good(Offer::new(SIZE).multi_conn(), vec![0; SIZE]);
    let plan = |connections| {
        let small = &sparse()[..1 << 20];
        let ended = store(&destination, small, &["--dry-run", "-C", connections]);
        ended.stdout
    };
    let asked = "One connection was asked for.";
    assert!(plan("1").contains(asked));
    let fewer = plan("4");
    assert!(!fewer.contains(asked), "{fewer}");
    let why = "too little to copy";
    assert!(fewer.contains(why), "{fewer}");
}

#[test]
fn a_dry_run_of_what_cannot_be_is_refused() {
    let destination = Crowd::good(Offer::new(SIZE - 1), vec![0; SIZE]);
    store(&destination, &sparse(), &["--dry-run"]).failed_with(&["it needs to be larger"]);
    let directory = directory();
    let absent = text(&file(&directory, "absent"));
    copy([&absent, &destination.uri(), "--dry-run"]).failed_with(&["cannot open the source"]);
}
