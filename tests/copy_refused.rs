//! The example `copy` where it does not come to copying, or is stopped: what it says, what it
//! leaves alone, and its exit status.

#![cfg(unix)]

mod copy_support;
mod program_support;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::mpsc;

use copy_support::{
    Heard, Offer, Server, contents, copy, directory, fetch, file, start, start_with_file_limit,
    store, text,
};
use nbd_proto::wire::{Errno, TransmissionFlags};
use rustix::process::Signal;

const SIZE: usize = (1 << 20) + 777;

/// Where the copy is stopped.
const THERE: u64 = 512 << 10;

fn structured() -> Offer {
    Offer::new(SIZE)
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
    fetch(&server, &[]).failed_with(&["18446744073709551615 bytes long", "nothing can be"]);
}

#[test]
fn a_size_that_the_destination_cannot_take_exactly_is_refused() {
    let offer = Offer::new(1 << 20).block_sizes(512, 4096, 1 << 20);
    let server = Server::good(offer, vec![0; 1 << 20]);
    store(&server, 1000, &[]).failed_with(&["1000 bytes", "not a multiple of the 512"]);
}

#[test]
fn a_file_stays_as_it_is_if_the_source_cannot_be_copied() {
    let directory = directory();
    let path = file(&directory, "precious");
    for (offer, words) in [
        // Its last bytes cannot be read.
        (
            structured().block_sizes(512, 4096, 1 << 20),
            "not a multiple of the 512",
        ),
        (
            Offer {
                size: (1 << 63) + 512,
                ..structured()
            },
            "which nothing can be",
        ),
    ] {
        fs::write(&path, "precious").unwrap();
        let server = Server::good(offer, Vec::new());
        copy([server.uri(), text(&path)]).failed_with(&[words]);
        assert_eq!(fs::read(&path).unwrap(), b"precious", "{words}");
    }
}

#[test]
fn a_file_that_would_be_larger_than_allowed_stays_as_it_is() {
    let directory = directory();
    let path = file(&directory, "precious");
    fs::write(&path, "precious").unwrap();
    let server = Server::good(structured(), contents(SIZE));
    start_with_file_limit(64 << 10, [server.uri(), text(&path)])
        .finish()
        .failed_with(&["cannot make the destination", "File too large"]);
    assert_eq!(fs::read(&path).unwrap(), b"precious");
}

#[test]
fn an_export_is_not_copied_onto_itself() {
    let server = Server::good(structured(), contents(SIZE));
    copy([server.uri(), server.uri()]).failed_with(&["the same export"]);
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
            "nbds://localhost/?tls-certificates=/nonexistent",
            "ca-cert.pem",
        ),
        ("nbds://localhost/?tls-type=psk", "tls-type=x509"),
    ] {
        copy([uri, "/nonexistent/x"]).failed_with(&[uri, words]);
    }
    for (uri, words) in [
        (
            "nbds+unix:///?socket=s&tls-verify-peer=maybe",
            "\"tls-verify-peer\" cannot be \"maybe\"",
        ),
        ("nbd://localhost/?tls-type=x509", "TLS"),
        ("nbd://localhost/?zone=1", "\"zone\" is not known"),
        ("nbd+unix:///", "?socket=PATH"),
        ("http://localhost/", "nbd://"),
        ("nbd:localhost:10809", "nbd://"),
    ] {
        copy([uri, "/nonexistent/x"]).achieved_nothing(2, &[uri, words]);
    }
}

#[test]
fn a_wrong_command_line_is_refused_in_one_line() {
    for (arguments, words) in [
        (&[][..], "<SRC> <DST>"),
        (&["a"], "<DST>"),
        (&["a", "b", "c"], "'c'"),
        (&["a", "b", "--requests", "0"], "--requests"),
        (&["a", "b", "--request-size", "256Q"], "unknown unit \"q\""),
        (&["a", "b", "--request-size", "64M"], "512 bytes to 32 MiB"),
        (&["a", "b", "--timeout", "0"], "--timeout"),
        (&["-", "--frobnicate"], "--frobnicate"),
    ] {
        copy(arguments).achieved_nothing(2, &[words, "see copy --help"]);
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
        running.finish().achieved_nothing(
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
fn signals_that_come_at_once_are_one_and_the_last_words_are_said() {
    let (sender, stalled) = mpsc::channel();
    let server = Server::with(structured(), contents(SIZE), move |peer, _, _| {
        let _ = sender.send(());
        peer.be_silent();
        true
    });
    let directory = directory();
    let path = file(&directory, "out");
    let running = start([server.uri(), text(&path)]);
    stalled.recv().unwrap();
    // As `timeout` does, which signals the program and then its group.
    running.signal(Signal::TERM);
    running.signal(Signal::INT);
    let ended = running.finish();
    assert!(matches!(ended.status, Some(130 | 143)), "{ended:?}");
    let words = "bytes were copied";
    assert!(ended.stderr.contains(words), "{ended:?}");
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
        .achieved_nothing(130, &["before anything was copied"]);
}

#[test]
fn nobody_reading_the_error_is_no_reason_to_panic() {
    let server = Server::with(structured(), contents(SIZE), |peer, request, _| {
        peer.fail(request, Errno::EIO, "");
        true
    });
    let directory = directory();
    let mut running = start([server.uri(), text(&file(&directory, "out"))]);
    running.close_stdout();
    running.close_stderr();
    let ended = running.finish();
    assert_eq!(ended.status, Some(1), "101 is a panic: {ended:?}");
}
