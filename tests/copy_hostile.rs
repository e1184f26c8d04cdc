//! The example `copy` with servers that fail, lie, go away or say nothing: it always ends, with
//! status 1 and one line that says why, unless every byte is there.

#![cfg(unix)]

mod copy_support;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use copy_support::{Ended, Heard, Offer, Peer, Server, contents, copy, start};
use nbd_proto::wire::{
    ChunkType, CommandType, Cookie, Errno, Request, SimpleReply, TransmissionFlags,
};
use rustix::process::Signal;
use tempfile::TempDir;

const SIZE: usize = (1 << 20) + 777;

/// The read in the middle, with which most servers here go wrong.
const THERE: u64 = 512 << 10;

fn directory() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn file(directory: &TempDir, name: &str) -> PathBuf {
    directory.path().join(name)
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// What comes of a copy from this server.
fn fetch(server: &Server, options: &[&str]) -> Ended {
    let directory = directory();
    let path = text(&file(&directory, "out"));
    let mut arguments = vec![server.uri(), path];
    arguments.extend(options.iter().map(|&option| option.to_owned()));
    copy(arguments)
}

/// What comes of a copy to this server.
fn store(server: &Server, size: usize, options: &[&str]) -> Ended {
    let directory = directory();
    let path = file(&directory, "in");
    fs::write(&path, contents(size)).unwrap();
    let mut arguments = vec![text(&path), server.uri()];
    arguments.extend(options.iter().map(|&option| option.to_owned()));
    copy(arguments)
}

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

// --- handshake ---

#[test]
fn garbage_in_place_of_a_handshake_is_refused() {
    for garbage in [
        &b"SSH-2.0-OpenSSH_9.2\r\n"[..],
        &[0; 64],
        b"NBDMAGIC????????????",
    ] {
        let server = Server::raw(move |mut stream| {
            let _ = stream.write_all(garbage);
            let _ = stream.read_to_end(&mut Vec::new());
        });
        fetch(&server, &[]).failed_with(&["negotiation failed"]);
    }
}

#[test]
fn a_server_that_leaves_within_the_handshake_is_told_of() {
    for said in [&b""[..], b"NBDMAGIC", b"NBDMAGICIHAVEOPT\0\x03"] {
        let server = Server::raw(move |mut stream| {
            let _ = stream.write_all(said);
        });
        fetch(&server, &[]).failed_with(&["negotiation failed"]);
    }
}

#[test]
fn a_handshake_that_does_not_go_on_is_left_after_the_timeout() {
    let server = Server::raw(|mut stream| {
        let _ = stream.write_all(b"NBDMAGIC");
        let _ = stream.read_to_end(&mut Vec::new());
    });
    fetch(&server, &["--timeout", "1"]).failed_with(&["did not finish the negotiation within 1 s"]);
}

#[test]
fn a_handshake_that_drips_is_left_after_the_timeout() {
    let server = Server::raw(|mut stream| {
        // Endless replies to the first option, none of which is the last.
        let _ = stream.write_all(b"NBDMAGICIHAVEOPT\0\x03");
        let _ = stream.read_exact(&mut [0; 20]);
        stream
            .set_read_timeout(Some(std::time::Duration::from_millis(50)))
            .unwrap();
        let reply = b"\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x08\0\0\0\x03\0\0\xff\xff";
        for byte in reply.iter().chain(&[0; 1000]) {
            let _ = stream.read(&mut [0; 1]);
            if stream.write_all(&[*byte]).is_err() {
                break;
            }
        }
    });
    fetch(&server, &["--timeout", "1"]).failed_with(&["did not finish the negotiation within 1 s"]);
}

#[test]
fn an_export_that_is_not_there_is_told_of_and_the_file_left_alone() {
    let server = Server::good(structured(), contents(SIZE));
    let directory = directory();
    let path = file(&directory, "out");
    fs::write(&path, "precious").unwrap();
    let uri = server.uri().replace("/disk", "/disc");
    copy([uri, text(&path)]).failed_with(&["no such export", "/disc"]);
    assert_eq!(fs::read(&path).unwrap(), b"precious");
}

#[test]
fn a_server_that_is_not_there_is_told_of() {
    let port = {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        listener.local_addr().unwrap().port()
    };
    let directory = directory();
    let path = text(&file(&directory, "out"));
    let uri = format!("nbd://127.0.0.1:{port}");
    copy([uri.as_str(), &path]).failed_with(&[&uri, "cannot connect", "refused"]);
    let socket = format!("nbd+unix:///?socket={path}.sock");
    copy([socket.as_str(), &path]).failed_with(&["cannot connect", "No such file"]);
}

// --- what can be known before anything is copied ---

#[test]
fn a_read_only_destination_is_refused_untouched() {
    let flags = TransmissionFlags::SEND_FLUSH | TransmissionFlags::READ_ONLY;
    let server = Server::good(structured().flags(flags), contents(SIZE));
    store(&server, SIZE, &[]).failed_with(&["the destination is read-only"]);
    // Nor was anything read for it.
    let source = Server::good(structured(), contents(SIZE));
    let server = Server::good(structured().flags(flags), contents(SIZE));
    copy([source.uri(), server.uri()]).failed_with(&["the destination is read-only"]);
    assert!(
        !source
            .log()
            .iter()
            .any(|heard| matches!(heard, Heard::Request(_)))
    );
}

#[test]
fn a_destination_that_is_too_small_is_refused_untouched() {
    let server = Server::good(structured(), vec![0xee; SIZE]);
    store(&server, SIZE + 1, &[]).failed_with(&["1049353 bytes", "1049354", "larger"]);
    let log = server.log();
    assert!(
        !log.iter().any(|heard| matches!(heard, Heard::Request(_))),
        "{log:?}"
    );
}

#[test]
fn an_export_that_is_too_large_for_a_file_is_refused() {
    let mut offer = structured();
    offer.size = u64::MAX;
    let server = Server::good(offer, Vec::new());
    fetch(&server, &[]).failed_with(&["18446744073709551615 bytes long"]);
}

#[test]
fn a_size_that_the_destination_cannot_take_exactly_is_refused() {
    let offer = Offer::new(1 << 20).block_sizes(512, 4096, 1 << 20);
    let server = Server::good(offer, vec![0; 1 << 20]);
    store(&server, 1000, &[]).failed_with(&["1000 bytes", "not a multiple of the 512"]);
}

#[test]
fn a_file_is_not_copied_onto_itself() {
    let directory = directory();
    let path = file(&directory, "file");
    fs::write(&path, "precious").unwrap();
    let link = file(&directory, "link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    copy([&path, &link]).failed_with(&["the same file"]);
    assert_eq!(fs::read(&path).unwrap(), b"precious");
}

#[test]
fn what_is_no_file_is_refused_without_waiting_for_it() {
    let directory = directory();
    let (pipe, other) = (file(&directory, "pipe"), file(&directory, "other"));
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, mode).unwrap();
    copy([&pipe, &other]).failed_with(&["neither a file nor a block device"]);
    fs::write(&other, "x").unwrap();
    copy([&other, &pipe]).failed_with(&["neither a file nor a block device"]);
    let absent = file(&directory, "absent");
    copy([&absent, &other]).failed_with(&["cannot open the source", "No such file"]);
    copy([directory.path(), &other]).failed_with(&["neither a file nor a block device"]);
}

#[test]
fn wrong_uris_are_refused_with_the_reason() {
    for (uri, words) in [
        (
            "nbds://localhost/",
            "TLS is not supported by this program yet",
        ),
        (
            "nbds+unix:///?socket=s",
            "TLS is not supported by this program yet",
        ),
        ("nbd://localhost/?tls-type=x509", "TLS"),
        ("nbd://localhost/?zone=1", "\"zone\" is not known"),
        ("nbd+unix:///", "?socket=PATH"),
        ("http://localhost/", "nbd://"),
        ("nbd:localhost:10809", "nbd://"),
    ] {
        copy([uri, "/nonexistent/x"]).failed_with(&[uri, words]);
    }
}

#[test]
fn a_wrong_command_line_is_refused_in_one_line() {
    for (arguments, words) in [
        (&[][..], "<SRC> <DST>"),
        (&["a"], "<DST>"),
        (&["a", "b", "c"], "'c'"),
        (&["a", "b", "--requests", "0"], "--requests"),
        (
            &["a", "b", "--request-size", "256Q"],
            "such as 65536, 64K or 1M",
        ),
        (&["a", "b", "--timeout", "0"], "--timeout"),
        (&["-", "--frobnicate"], "--frobnicate"),
    ] {
        copy(arguments).ended_with(2, &[words, "see copy --help"]);
    }
}

// --- signals ---

#[test]
fn a_signal_ends_the_copy_and_says_what_was_copied() {
    for (signal, status) in [(Signal::INT, 130), (Signal::TERM, 143), (Signal::HUP, 129)] {
        let (sender, stalled) = mpsc::channel();
        let server = Server::with(structured(), contents(SIZE), move |peer, request, _| {
            let is_last = request.offset == THERE;
            if is_last {
                sender.send(()).unwrap();
                peer.be_silent();
            }
            is_last
        });
        let directory = directory();
        let path = file(&directory, "out");
        let arguments = [
            server.uri(),
            text(&path),
            "--requests".to_owned(),
            "1".to_owned(),
            "--timeout".to_owned(),
            "1".to_owned(),
        ];
        let running = start(arguments);
        stalled.recv().unwrap();
        running.signal(signal);
        running.finish().ended_with(
            status,
            &[
                "stopped by a signal",
                "524288 of 1049353 bytes were copied",
                &text(&path),
                "incomplete",
            ],
        );
        // What was copied is there.
        let there = fs::read(&path).unwrap();
        let half = usize::try_from(THERE).unwrap();
        assert!(there[..half] == contents(SIZE)[..half]);
    }
}

#[test]
fn a_signal_ends_the_negotiation() {
    let (sender, connected) = mpsc::channel();
    let server = Server::raw(move |mut stream| {
        sender.send(()).unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let directory = directory();
    let running = start([server.uri(), text(&file(&directory, "out"))]);
    connected.recv().unwrap();
    running.signal(Signal::INT);
    running
        .finish()
        .ended_with(130, &["before anything was copied"]);
}

#[test]
fn nobody_reading_the_error_is_no_reason_to_panic() {
    let server = bad_read(structured(), |peer, request| {
        peer.fail(request, Errno::EIO, "");
    });
    let directory = directory();
    let mut running = start([server.uri(), text(&file(&directory, "out"))]);
    running.close_output();
    let ended = running.finish();
    assert_eq!(ended.status, Some(1), "101 is a panic: {ended:?}");
}
