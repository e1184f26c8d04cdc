//! The example `copy` with servers that fail, lie, go away or say nothing: it always ends, with
//! status 1 and one line that says why, unless every byte is there.

#![cfg(unix)]

mod copy_support;
mod program_support;

use std::fs;
use std::io::Read;
use std::sync::mpsc;

use copy_support::{
    Heard, Offer, Peer, Server, contents, copy, directory, fetch, file, store, text,
};
use nbd_proto::wire::{ChunkType, CommandType, Cookie, Errno, Request, SimpleReply};

const SIZE: usize = (1 << 20) + 777;

/// The read in the middle, with which most servers here go wrong.
const THERE: u64 = 512 << 10;

/// A server that treats one read in its own way.
fn bad_read(offer: Offer, treat: impl Fn(&mut Peer, &Request) + Send + 'static) -> Server {
    Server::with(offer, contents(SIZE), move |peer, request, _| {
        let is_it = request.kind == CommandType::READ && request.offset == THERE;
        if is_it {
            treat(peer, request);
        }
        is_it
    })
}

fn structured() -> Offer {
    Offer::new(SIZE)
}

fn simple() -> Offer {
    Offer::new(SIZE).simple()
}

// --- wrong replies to reads ---

#[test]
fn a_gap_in_a_structured_reply_is_never_success() {
    for last_part in [0_u64, 1] {
        let server = bad_read(structured(), move |peer, request| {
            // All but one byte: the last one, or the first one.
            let data = peer.data(request);
            let (offset, data) = if last_part == 0 {
                (request.offset, &data[..data.len() - 1])
            } else {
                (request.offset + 1, &data[1..])
            };
            peer.data_chunk(request, offset, true, data);
        });
        fetch(&server, &[]).failed_with(&["success without the data at", "incomplete"]);
    }
}

#[test]
fn success_without_any_data_is_never_success() {
    let server = bad_read(structured(), |peer, request| {
        peer.chunk(ChunkType::NONE, true, request.cookie, &[]);
    });
    fetch(&server, &[]).failed_with(&["success without the data at 524288"]);
}

#[test]
fn overlapping_chunks_are_refused() {
    let server = bad_read(structured(), |peer, request| {
        let data = peer.data(request);
        let offset = request.offset;
        peer.data_chunk(request, offset, false, &data[..8192]);
        peer.data_chunk(request, offset + 8191, false, &data[8191..]);
        peer.chunk(ChunkType::NONE, true, request.cookie, &[]);
    });
    fetch(&server, &[]).failed_with(&["overlap"]);
}

#[test]
fn data_outside_the_request_is_refused() {
    for offset in [THERE - 1, THERE + 1, 0, u64::MAX] {
        let server = bad_read(structured(), move |peer, request| {
            let data = peer.data(request);
            peer.data_chunk(request, offset, true, &data);
        });
        fetch(&server, &[]).failed_with(&["not within the request"]);
    }
}

#[test]
fn a_hole_that_is_too_long_is_refused() {
    let server = bad_read(structured(), |peer, request| {
        let body = [&THERE.to_be_bytes()[..], &u32::MAX.to_be_bytes()].concat();
        peer.chunk(ChunkType::OFFSET_HOLE, true, request.cookie, &body);
    });
    fetch(&server, &[]).failed_with(&["not within the request"]);
}

#[test]
fn a_chunk_of_unknown_type_is_refused() {
    let server = bad_read(structured(), |peer, request| {
        peer.chunk(ChunkType(77), false, request.cookie, b"?");
    });
    fetch(&server, &[]).failed_with(&["unknown chunk type"]);
}

#[test]
fn a_simple_reply_to_a_read_is_refused_where_chunks_were_agreed_on() {
    let server = bad_read(structured(), |peer, request| {
        let reply = SimpleReply {
            result: Ok(()),
            cookie: request.cookie,
        };
        let data = peer.data(request);
        peer.send(&[&reply.to_bytes(), &data[..]].concat());
    });
    fetch(&server, &[]).failed_with(&["a simple reply to a read"]);
}

#[test]
fn a_reply_to_no_request_is_refused() {
    for offer in [structured(), simple()] {
        let server = bad_read(offer, |peer, request| {
            let other = Request::read(Cookie(request.cookie.0 + 1000), THERE, request.length);
            let data = peer.data(request);
            let head = peer.encoder.read(&other).unwrap();
            peer.send(&[&head, &data[..]].concat());
        });
        fetch(&server, &[]).failed_with(&["reply to no request"]);
    }
}

#[test]
fn a_reply_that_comes_twice_is_refused() {
    for offer in [structured(), simple()] {
        let server = bad_read(offer, |peer, request| {
            peer.answer(request, &[]);
            peer.answer(request, &[]);
        });
        fetch(&server, &[]).failed_with(&["reply to no request"]);
    }
}

#[test]
fn something_that_is_no_reply_is_refused() {
    for offer in [structured(), simple()] {
        let server = bad_read(offer, |peer, _| {
            peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n");
            peer.be_silent();
        });
        fetch(&server, &[]).failed_with(&["something else than a reply: 0x48545450"]);
    }
}

// --- errors ---

#[test]
fn an_error_on_a_read_is_told_with_place_and_words() {
    for offer in [structured(), simple()] {
        let server = bad_read(offer, |peer, request| {
            peer.fail(request, Errno::EIO, "disk on fire");
        });
        fetch(&server, &[]).failed_with(&[
            "cannot read 262144 bytes at offset 524288 of nbd://127.0.0.1:",
            "input/output error (EIO",
            "of 1049353 bytes were copied",
            "incomplete",
        ]);
        assert_eq!(server.log().last(), Some(&Heard::Disconnect));
    }
}

#[test]
fn what_the_server_says_of_an_error_is_passed_on_without_control_characters() {
    let server = bad_read(structured(), |peer, request| {
        peer.fail(request, Errno::EIO, "disk\non\u{1b}[2Jfire");
    });
    fetch(&server, &[]).failed_with(&["the server says \"disk\\non\\u{1b}[2Jfire\""]);
}

#[test]
fn an_error_chunk_spoils_a_reply_that_has_all_the_data() {
    let server = bad_read(structured(), |peer, request| {
        let data = peer.data(request);
        peer.data_chunk(request, THERE, false, &data);
        let mut reply = peer.encoder.chunks(request).unwrap();
        let mut out = Vec::new();
        reply.error_at(THERE + 5, Errno::EIO, "", &mut out).unwrap();
        out.extend_from_slice(&reply.done().unwrap());
        peer.send(&out);
    });
    fetch(&server, &[]).failed_with(&["at offset 524288", "EIO"]);
}

#[test]
fn an_error_number_that_nobody_knows_is_an_error() {
    let server = bad_read(simple(), |peer, request| {
        let reply = SimpleReply {
            result: Err(Errno(4711)),
            cookie: request.cookie,
        };
        peer.send(&reply.to_bytes());
    });
    fetch(&server, &[]).failed_with(&["invalid argument (EINVAL"]);
}

/// A server that refuses one kind of command.
fn refusing(kind: CommandType, errno: Errno) -> Server {
    let offer = Offer::new(SIZE);
    Server::with(offer, vec![0xee; SIZE], move |peer, request, _| {
        let is_it = request.kind == kind;
        if is_it {
            peer.fail(request, errno, "");
        }
        is_it
    })
}

#[test]
fn an_error_on_a_write_is_told_with_place_and_words() {
    let server = refusing(CommandType::WRITE, Errno::ENOSPC);
    store(&server, SIZE, &[]).failed_with(&[
        "cannot write 262144 bytes at offset ",
        "no space left on device (ENOSPC",
        "incomplete",
    ]);
    assert_eq!(server.log().last(), Some(&Heard::Disconnect));
}

#[test]
fn an_error_on_zeroing_is_told() {
    let server = refusing(CommandType::WRITE_ZEROES, Errno::EIO);
    let directory = directory();
    let path = file(&directory, "zeroes");
    fs::write(&path, vec![0; SIZE]).unwrap();
    copy([text(&path), server.uri()]).failed_with(&["cannot zero 262144 bytes at offset", "EIO"]);
    // A hole, which goes in one request.
    fs::File::create(&path)
        .unwrap()
        .set_len(SIZE as u64)
        .unwrap();
    let server = refusing(CommandType::WRITE_ZEROES, Errno::EIO);
    copy([text(&path), server.uri()])
        .failed_with(&["cannot zero 1049353 bytes at offset 0", "EIO"]);
}

#[test]
fn an_error_on_the_last_flush_is_a_failure_of_the_copy() {
    let server = refusing(CommandType::FLUSH, Errno::EIO);
    store(&server, SIZE, &[]).failed_with(&["cannot flush nbd://", "EIO", "may be lost"]);
}

#[test]
fn a_write_that_is_acknowledged_before_it_was_sent_is_a_lie() {
    let size = 32 << 20;
    let server = Server::new(Offer::new(size), vec![0; size], |peer| {
        let mut header = [0; 28];
        peer.stream().read_exact(&mut header).unwrap();
        let request = Request::from_compact(&header).unwrap();
        let head = peer.encoder.ok(&request);
        peer.send(&head);
        // Of the payload, the sockets hold only a part.
        peer.be_deaf();
    });
    store(&server, size, &["--request-size", "32M"])
        .failed_with(&["acknowledged a write at offset 0 before it had the data"]);
}

#[test]
fn a_file_that_becomes_shorter_is_told_of() {
    for keeps in [SIZE as u64 - 1, THERE, 0] {
        let directory = directory();
        let path = file(&directory, "in");
        // Data, or nothing but a hole after the first request: both must be seen to be gone.
        for data in [contents(SIZE), vec![1; 262_144]] {
            fs::write(&path, data).unwrap();
            let source = fs::File::options().write(true).open(&path).unwrap();
            source.set_len(SIZE as u64).unwrap();
            let server = Server::with(structured(), vec![0; SIZE], move |_, request, _| {
                if request.offset == 0 {
                    source.set_len(keeps).unwrap();
                }
                false
            });
            copy([&text(&path), &server.uri(), "--requests", "1"]).failed_with(&[
                "cannot read",
                "has become shorter",
                "incomplete",
            ]);
        }
    }
}

// --- servers that leave, or say nothing ---

#[test]
fn a_server_that_leaves_within_data_is_told_of() {
    for offer in [structured(), simple()] {
        let server = bad_read(offer, |peer, request| {
            let head = peer.encoder.read(request).unwrap();
            let data = peer.data(request);
            peer.send(&[&head, &data[..data.len() - 1]].concat());
            peer.close();
        });
        fetch(&server, &[]).failed_with(&["went away with", "incomplete"]);
    }
}

#[test]
fn a_server_that_leaves_between_replies_is_told_of() {
    for kind in [CommandType::WRITE, CommandType::FLUSH] {
        let offer = Offer::new(SIZE);
        let server = Server::with(offer, vec![0; SIZE], move |peer, request, _| {
            let is_it = request.kind == kind;
            if is_it {
                peer.close();
            }
            is_it
        });
        let ended = store(&server, SIZE, &[]);
        assert_eq!(ended.status, Some(1), "{ended:?}");
        // Depending on who is first, the socket says it or the protocol.
        let words = ["went away", "closed", "Broken pipe", "reset"];
        assert!(
            words.iter().any(|word| ended.stderr.contains(word)),
            "{ended:?}"
        );
        ended.failed_with(&[match kind {
            CommandType::FLUSH => "all 1049353 bytes were written, but",
            _ => "is incomplete",
        }]);
    }
}

#[test]
fn a_source_that_leaves_after_its_last_byte_has_done_its_part() {
    let (sender, left) = mpsc::channel();
    let source = Server::new(structured(), contents(SIZE), move |peer| {
        let mut to_come = SIZE as u64;
        while to_come > 0 {
            let (request, payload) = peer.next_request().unwrap();
            peer.answer(&request, &payload);
            to_come -= request.length;
        }
        peer.close();
        sender.send(()).unwrap();
    });
    let mut left = Some(left);
    let destination = Server::with(structured(), vec![0; SIZE], move |_, request, _| {
        // The last write is not answered before the source is gone.
        if request.offset >= 1 << 20
            && let Some(left) = left.take()
        {
            left.recv().unwrap();
        }
        false
    });
    copy([source.uri(), destination.uri()]).well();
    assert!(*source.disk.lock().unwrap() == *destination.disk.lock().unwrap());
}

#[test]
fn a_silent_server_is_left_after_the_timeout() {
    for offer in [structured(), simple()] {
        let server = bad_read(offer, |peer, _| peer.be_silent());
        fetch(&server, &["--timeout", "1"]).failed_with(&["was silent for 1 s", "--timeout"]);
    }
    let server = Server::with(structured(), vec![0; SIZE], |peer, request, _| {
        let is_it = request.kind == CommandType::FLUSH;
        if is_it {
            peer.be_silent();
        }
        is_it
    });
    store(&server, SIZE, &["--timeout", "1"]).failed_with(&["was silent for 1 s"]);
}

#[test]
fn a_server_that_stops_within_data_is_left_after_the_timeout() {
    let server = bad_read(structured(), |peer, request| {
        let head = peer.encoder.read(request).unwrap();
        peer.send(&[&head, &b"some"[..]].concat());
        peer.be_silent();
    });
    fetch(&server, &["--timeout", "1"]).failed_with(&["was silent for 1 s"]);
}

#[test]
fn a_server_that_takes_no_more_is_left_after_the_timeout() {
    let size = 64 << 20;
    let server = Server::new(Offer::new(size), vec![0; size], |peer| peer.be_deaf());
    store(&server, size, &["--timeout", "1", "--request-size", "4M"])
        .failed_with(&["was silent for 1 s"]);
}
