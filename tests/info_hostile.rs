//! The example `info` with servers that fail, lie, go away or say nothing: it always ends, in
//! time, with status 1 and one line that says why. A map that is not whole never looks whole.

#![cfg(unix)]

mod info_support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use info_support::{Ended, Offer, Peer, Server, info, name, start};
use nbd_proto::handshake::Export;
use nbd_proto::wire::{
    ChunkType, Cookie, Errno, Info, OptionCode, OptionReply, ReplyType, Request, SimpleReply,
    TransmissionFlags,
};

const SIZE: u64 = 1 << 20;

const WHOLE: u32 = 1 << 20;

// --- wrong block status ---

/// A server that has its own way with the second question. The first half is told of.
fn bad_status(treat: impl Fn(&mut Peer, &Request) + Send + Sync + 'static) -> Server {
    Server::new(Offer::new(SIZE), move |peer| {
        if let Some(request) = peer.next_request() {
            peer.status(&request, 0, true, &[(WHOLE / 4, 0), (WHOLE / 4, 3)]);
        }
        if let Some(request) = peer.next_request() {
            assert_eq!(request.offset, SIZE / 2);
            treat(peer, &request);
            peer.be_silent();
        }
    })
}

#[track_caller]
fn map_fails(server: &Server, words: &[&str]) {
    let uri = server.uri();
    let words = [&[uri.as_str()], words].concat();
    let ended = info(["--map", "--timeout", "5", &uri]);
    assert!(!ended.stdout.contains("total"), "{ended:?}");
    ended.ended_with(1, &words);
}

#[test]
fn extents_against_the_rules_are_refused() {
    let cases: [(&[(u32, u32)], &str); 3] = [
        (&[(0, 0), (WHOLE / 2, 0)], "an extent of no length"),
        (&[(WHOLE, 0)], "beyond the end of the export"),
        (&[(WHOLE / 2, 0), (512, 0)], "beyond the end of the request"),
    ];
    for (extents, words) in cases {
        let extents = extents.to_vec();
        let server = bad_status(move |peer, request| peer.status(request, 0, true, &extents));
        map_fails(&server, &[words]);
    }
    let unaligned = Server::new(Offer::new(SIZE).block_sizes(512, 4096, 1 << 20), |peer| {
        while let Some(request) = peer.next_request() {
            peer.status(&request, 0, true, &[(513, 0)]);
        }
    });
    map_fails(&unaligned, &["multiple of the minimum block size"]);
}

#[test]
fn success_without_status_is_refused_and_not_asked_for_again() {
    let server = bad_status(|peer, request| {
        peer.chunk(request, ChunkType::NONE, true, &[]);
    });
    map_fails(&server, &["success without the status"]);
    let empty = bad_status(|peer, request| peer.status(request, 0, true, &[]));
    map_fails(&empty, &["chunk type"]);
}

#[test]
fn a_context_that_was_not_asked_for_is_refused() {
    let other = bad_status(|peer, request| peer.status(request, 7, true, &[(512, 0)]));
    map_fails(&other, &["context 7"]);
    let twice = bad_status(|peer, request| {
        peer.status(request, 0, false, &[(512, 0)]);
        peer.status(request, 0, true, &[(512, 0)]);
    });
    map_fails(&twice, &["came before"]);
}

#[test]
fn wrong_lengths_are_refused() {
    let uneven = bad_status(|peer, request| {
        peer.chunk(request, ChunkType::BLOCK_STATUS, true, &[0; 4 + 8 + 3]);
    });
    map_fails(&uneven, &["with a length of 15"]);
    // Lengths that nobody would want to hold or wait for.
    for length in [u32::MAX - 3, (WHOLE + 1) * 8 + 4] {
        let huge = bad_status(move |peer, request| {
            let mut head = [0; 20];
            head[..4].copy_from_slice(&0x668e_33ef_u32.to_be_bytes());
            head[4..8].copy_from_slice(&[0, 1, 0, 5]);
            head[8..16].copy_from_slice(&request.cookie.0.to_be_bytes());
            head[16..].copy_from_slice(&length.to_be_bytes());
            peer.send(&head);
        });
        map_fails(&huge, &["bad reply"]);
    }
}

#[test]
fn something_that_is_no_reply_or_answers_something_else_is_refused() {
    let http = bad_status(|peer, _| peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n"));
    map_fails(&http, &["something else than a reply"]);
    let simple = bad_status(|peer, request| {
        let reply = SimpleReply {
            result: Ok(()),
            cookie: request.cookie,
        };
        peer.send(&reply.to_bytes());
    });
    map_fails(&simple, &["the server sent"]);
    let other = bad_status(|peer, request| {
        let other = Request {
            cookie: Cookie(request.cookie.0 + 1000),
            ..*request
        };
        peer.status(&other, 0, true, &[(512, 0)]);
    });
    map_fails(&other, &["reply to no request"]);
    let data = bad_status(|peer, request| {
        peer.chunk(request, ChunkType::OFFSET_DATA, true, &[0; 9]);
    });
    map_fails(&data, &["does not answer this command"]);
}

#[test]
fn an_error_is_told_with_the_words_of_the_server_made_harmless() {
    let server = bad_status(|peer, request| {
        peer.fail(request, Errno::EIO, "head\u{1b}[2Jcrash");
    });
    map_fails(
        &server,
        &[
            "block status at offset 524288 failed",
            "EIO",
            r"head\u{1b}[2Jcrash",
        ],
    );
}

#[test]
fn what_an_error_takes_back_is_not_shown() {
    let server = bad_status(|peer, request| {
        peer.status(request, 0, false, &[(WHOLE / 2, 2)]);
        peer.fail(request, Errno::EIO, "");
    });
    let uri = server.uri();
    let ended = info(["--map", "--json", &uri]);
    assert!(!ended.stdout.contains("\"type\": 2"), "{ended:?}");
    // What was told before is.
    let last = "{\"offset\": 262144, \"length\": 262144, \"type\": 3";
    assert!(ended.stdout.contains(last), "{ended:?}");
    ended.ended_with(1, &["EIO"]);
}

#[test]
fn json_that_is_not_whole_is_no_json() {
    let server = Server::new(Offer::new(SIZE), |peer| {
        let many: Vec<_> = (0..1024).map(|at| (512, at & 1)).collect();
        if let Some(request) = peer.next_request() {
            peer.status(&request, 0, true, &many);
        }
        let _ = peer.next_request();
    });
    let ended = info(["--map", "--json", &server.uri()]);
    assert!(serde_json::from_str::<serde_json::Value>(&ended.stdout).is_err());
    ended.ended_with(1, &["went away with 1 request"]);
}

#[test]
fn half_a_reply_is_none() {
    for length in [1, 20, 31] {
        let server = bad_status(move |peer, request| {
            let mut reply = vec![0; 20];
            reply[..4].copy_from_slice(&0x668e_33ef_u32.to_be_bytes());
            reply[4..8].copy_from_slice(&[0, 1, 0, 5]);
            reply[8..16].copy_from_slice(&request.cookie.0.to_be_bytes());
            reply[16..20].copy_from_slice(&12_u32.to_be_bytes());
            reply.extend_from_slice(&[0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0]);
            peer.send(&reply[..length]);
        });
        let ended = info(["--map", "--timeout", "1", &server.uri()]);
        ended.ended_with(1, &["no answer", "offset 524288", "raise --timeout"]);
    }
}

#[test]
fn extents_without_end_end() {
    // As slowly as the protocol allows, and forever, as far as anybody can wait.
    let server = Server::new(Offer::new(1 << 62), |peer| {
        while let Some(request) = peer.next_request() {
            let flags = u32::try_from(request.offset & 1).unwrap();
            peer.status(&request, 0, true, &[(1, flags)]);
        }
    });
    let ended = info(["--map", "--max-extents", "5000", &server.uri()]);
    ended.ended_with(1, &["more than 5000 extents", "--max-extents"]);

    let fast = Server::new(Offer::new(1 << 62), |peer| {
        let many: Vec<_> = (0..1 << 16).map(|at| (1, at & 1)).collect();
        while let Some(request) = peer.next_request() {
            peer.status(&request, 0, true, &many);
        }
    });
    let ended = info(["--map", "--json", "--max-extents", "200000", &fast.uri()]);
    ended.ended_with(1, &["more than 200000 extents"]);
}

#[test]
fn kinds_without_end_are_summed_up() {
    let server = Server::new(Offer::new(SIZE).contexts(&["x:y"]), |peer| {
        let many: Vec<_> = (0..WHOLE / 16).map(|at| (16, at)).collect();
        while let Some(request) = peer.next_request() {
            peer.status(&request, 0, true, &many);
        }
    });
    let text = info(["--map=x:y", &server.uri()]).well();
    let totals = text.split_once("total").unwrap().1;
    assert!(totals.lines().count() < 50, "{totals}");
    assert!(totals.contains("others"), "{totals}");
}

// --- a bad handshake ---

fn greeting() -> Vec<u8> {
    b"NBDMAGICIHAVEOPT\0\x03".to_vec()
}

/// Fails in all that `info` can do, each time with these words, and in time.
#[track_caller]
fn fails(server: &Server, words: &[&str]) {
    for arguments in [
        &[][..],
        &["--json"],
        &["--list"],
        &["--map"],
        &["--size"],
        &["--can", "read"],
    ] {
        let begun = Instant::now();
        let uri = server.uri();
        let ended = info([arguments, &["--timeout", "1", &uri]].concat());
        ended.failed_with(words);
        assert!(begun.elapsed() < Duration::from_secs(20));
    }
}

fn wait_for_end(mut stream: TcpStream) {
    let _ = stream.read_to_end(&mut Vec::new());
}

#[test]
fn what_is_no_nbd_server_is_left() {
    let http = Server::raw(|_, mut stream| {
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        wait_for_end(stream);
    });
    fails(&http, &["NBD"]);
}

#[test]
fn a_server_that_hangs_up_is_told_of() {
    let whole = greeting();
    for length in [0, 1, 8, 17, 18] {
        let part = whole[..length].to_vec();
        let server = Server::raw(move |_, mut stream| {
            let _ = stream.write_all(&part);
        });
        fails(&server, &["negotiation failed"]);
    }
}

#[test]
fn a_server_that_says_nothing_is_given_up() {
    let silent = |part: Vec<u8>| {
        Server::raw(move |_, mut stream| {
            let _ = stream.write_all(&part);
            wait_for_end(stream);
        })
    };
    let words = "did not finish the negotiation within 1 s";
    info(["--timeout", "1", &silent(Vec::new()).uri()]).failed_with(&[words]);
    fails(&silent(greeting()), &[words]);
}

#[test]
fn a_server_that_says_a_byte_now_and_then_is_given_up() {
    let server = Server::raw(|_, mut stream| {
        let (_test, never) = mpsc::channel::<()>();
        for byte in greeting() {
            if stream.write_all(&[byte]).is_err() {
                return;
            }
            let _ = never.recv_timeout(Duration::from_millis(300));
        }
    });
    let ended = info(["--timeout", "1", &server.uri()]);
    ended.failed_with(&["did not finish the negotiation within 1 s"]);
}

/// Answers each option by `reply`, until the client leaves.
fn haggle(
    mut stream: TcpStream,
    reply: impl Fn(&mut TcpStream, OptionCode, &[u8]) -> std::io::Result<()>,
) -> std::io::Result<()> {
    stream.write_all(&greeting())?;
    stream.read_exact(&mut [0; 4])?;
    loop {
        let mut head = [0; 16];
        stream.read_exact(&mut head)?;
        let [code, length] =
            [8, 12].map(|at| u32::from_be_bytes(head[at..at + 4].try_into().unwrap()));
        let mut body = vec![0; usize::try_from(length).unwrap()];
        stream.read_exact(&mut body)?;
        reply(&mut stream, OptionCode(code), &body)?;
    }
}

fn refuse(option: OptionCode) -> Vec<u8> {
    let mut out = Vec::new();
    let code = ReplyType::ERR_UNSUP;
    OptionReply::Error {
        code,
        message: name(""),
    }
    .encode(option, &mut out);
    out
}

fn haggling(
    reply: impl Fn(&mut TcpStream, OptionCode, &[u8]) -> std::io::Result<()> + Send + Sync + 'static,
) -> Server {
    Server::raw(move |_, stream| {
        // Clients leave when they have had enough.
        let _ = haggle(stream, &reply);
    })
}

#[test]
fn lists_without_end_end() {
    let server = haggling(|stream, option, _| {
        if option != OptionCode::LIST {
            return stream.write_all(&refuse(option));
        }
        let mut entry = Vec::new();
        OptionReply::Server {
            name: name("x"),
            description: name(""),
        }
        .encode(option, &mut entry);
        let many = entry.repeat(1000);
        loop {
            stream.write_all(&many)?;
        }
    });
    let ended = info(["--list", &server.uri()]);
    ended.failed_with(&["negotiation failed"]);

    let long = haggling(|stream, option, _| {
        if option != OptionCode::LIST {
            return stream.write_all(&refuse(option));
        }
        let mut entry = Vec::new();
        OptionReply::Server {
            name: name(&"x".repeat(4096)),
            description: name(&"y".repeat(4096)),
        }
        .encode(option, &mut entry);
        loop {
            stream.write_all(&entry)?;
        }
    });
    let ended = info(["--list", &long.uri()]);
    ended.failed_with(&["negotiation failed"]);
}

#[test]
fn replies_that_lie_about_their_length_are_refused() {
    for length in [u32::MAX, 1 << 20] {
        let server = haggling(move |stream, option, _| {
            let mut out = refuse(option);
            out[16..20].copy_from_slice(&length.to_be_bytes());
            stream.write_all(&out)
        });
        let ended = info(["--timeout", "2", &server.uri()]);
        ended.failed_with(&["negotiation failed"]);
    }
}

#[test]
fn sizes_that_the_protocol_forbids_are_told_of() {
    for (minimum, preferred, max_payload) in [(3, 4096, 1 << 20), (1, 100, 1 << 20), (0, 0, 0)] {
        let server = haggling(move |stream, option, _| {
            let mut out = Vec::new();
            if option != OptionCode::GO {
                return stream.write_all(&refuse(option));
            }
            for info in [
                Info::Export {
                    size: SIZE,
                    flags: TransmissionFlags::HAS_FLAGS,
                },
                Info::BlockSize {
                    minimum,
                    preferred,
                    max_payload,
                },
            ] {
                OptionReply::Info(info).encode(option, &mut out);
            }
            OptionReply::Ack.encode(option, &mut out);
            stream.write_all(&out)
        });
        info([server.uri()]).failed_with(&["negotiation failed"]);
    }
}

#[test]
fn flags_that_cannot_be_true_are_shown_as_odd_and_not_believed() {
    let server = haggling(|stream, option, _| {
        let mut out = Vec::new();
        if option != OptionCode::GO {
            return stream.write_all(&refuse(option));
        }
        let flags = TransmissionFlags::HAS_FLAGS
            | TransmissionFlags::SEND_DF
            | TransmissionFlags::SEND_FAST_ZERO
            | TransmissionFlags::CAN_MULTI_CONN;
        OptionReply::Info(Info::Export { size: SIZE, flags }).encode(option, &mut out);
        OptionReply::Ack.encode(option, &mut out);
        stream.write_all(&out)
    });
    let json = info(["--json", &server.uri()]).json();
    let export = &json["exports"][0];
    let odd = export["odd"].as_array().unwrap();
    for words in ["SEND_DF", "SEND_FAST_ZERO", "CAN_MULTI_CONN"] {
        let found = odd
            .iter()
            .find(|lint| lint["text"].as_str().unwrap().contains(words));
        assert_eq!(found.unwrap()["kind"], "forbidden", "{words}");
    }
    assert_eq!(export["can_df"], false);
    assert_eq!(export["transmission-flags"], 0x981);
    let text = info([server.uri()]).well();
    assert!(text.contains("odd (forbidden)"), "{text}");
    assert!(text.contains("(proto.md \"Transmission flags\")"), "{text}");
}

// --- parts that fail ---

#[test]
fn contexts_that_cannot_be_had_leave_all_else() {
    // The second client is hung up on.
    let offer = Offer::new(SIZE);
    let good = Server::good(offer, Vec::new());
    let address = good.address();
    let server = Server::raw(move |number, stream| {
        if number == 0 {
            relay(stream, TcpStream::connect(address).unwrap());
        }
    });
    let json = info(["--json", &server.uri()]).json();
    let export = &json["exports"][0];
    assert_eq!(export["export-size"], SIZE);
    assert!(export.get("contexts").is_none());
    let why = export["contexts-error"].as_str().unwrap();
    assert!(why.contains("second connection"), "{why}");
}

fn relay(client: TcpStream, server: TcpStream) {
    let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut from, &mut to);
        let _ = to.shutdown(std::net::Shutdown::Both);
    });
    let _ = std::io::copy(&mut &server, &mut &client);
    let _ = client.shutdown(std::net::Shutdown::Both);
}

#[test]
fn contexts_without_end_or_without_answer_leave_all_else() {
    for endless in [true, false] {
        let server = haggling(move |stream, option, _| {
            let mut out = Vec::new();
            match option {
                OptionCode::GO | OptionCode::INFO => {
                    let flags = TransmissionFlags::HAS_FLAGS;
                    OptionReply::Info(Info::Export { size: SIZE, flags }).encode(option, &mut out);
                    OptionReply::Ack.encode(option, &mut out);
                }
                OptionCode::STRUCTURED_REPLY => OptionReply::Ack.encode(option, &mut out),
                OptionCode::LIST_META_CONTEXT if endless => {
                    let name = name(&format!("x:{}", "y".repeat(4000)));
                    OptionReply::MetaContext { id: 0, name }.encode(option, &mut out);
                    loop {
                        stream.write_all(&out)?;
                    }
                }
                OptionCode::LIST_META_CONTEXT => {}
                _ => out = refuse(option),
            }
            stream.write_all(&out)
        });
        let json = info(["--json", "--timeout", "2", &server.uri()]).json();
        let export = &json["exports"][0];
        assert_eq!(export["export-size"], SIZE);
        let why = export["contexts-error"].as_str().unwrap();
        assert_eq!(why.contains("within 2 s"), !endless, "{why}");
    }
}

#[test]
fn exports_that_cannot_be_had_are_told_of_and_the_others_are_shown() {
    // Listed, but refused: they want TLS.
    let bad = |text| Export::new(name(text), 1, TransmissionFlags::empty()).with_tls_required(true);
    let offer = Offer::new(SIZE).another(bad("bad"));
    let server = Server::good(offer.clone(), Vec::new());
    let ended = info(["--list", "--json", &server.uri()]);
    let json: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(json["exports"][0]["export-size"], SIZE);
    let why = json["exports"][1]["error"].as_str().unwrap();
    assert!(why.contains("over TLS"), "{why}");
    ended.ended_with(1, &["1 of 2 exports cannot be had"]);

    let all_bad = ["a", "b", "c", "d", "e", "f", "g"].map(bad);
    let offer = all_bad.into_iter().fold(offer, Offer::another);
    let server = Server::good(offer, Vec::new());
    let ended = info(["--list", &server.uri()]);
    assert!(!ended.stdout.contains("\"g\""), "{ended:?}");
    ended.ended_with(1, &["given up after 5"]);
}

// --- signals and places ---

#[test]
fn a_signal_ends_it_wherever_it_is() {
    use rustix::process::Signal;

    type Behave = Box<dyn Fn(&mut Peer) + Send + Sync>;
    for (signal, status) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let (sender, asked) = mpsc::channel();
        let sender = std::sync::Mutex::new(sender);
        let behave: Behave = Box::new(move |peer| {
            let _ = peer.next_request();
            let _ = sender.lock().unwrap().send(());
            peer.be_silent();
        });
        let server = Server::new(Offer::new(SIZE), behave);
        let running = start(["--map", &server.uri()]);
        asked.recv_timeout(Duration::from_secs(30)).unwrap();
        running.signal(signal);
        let ended: Ended = running.finish();
        assert!(ended.took < Duration::from_secs(30));
        ended.ended_with(status, &["stopped by a signal"]);

        let (sender, asked) = mpsc::channel();
        let sender = std::sync::Mutex::new(sender);
        let silent = Server::raw(move |_, mut stream| {
            let _ = stream.write_all(&greeting());
            let _ = stream.read_exact(&mut [0; 4]);
            let _ = sender.lock().unwrap().send(());
            wait_for_end(stream);
        });
        let running = start(["--list", &silent.uri()]);
        asked.recv_timeout(Duration::from_secs(30)).unwrap();
        running.signal(signal);
        running
            .finish()
            .ended_with(status, &["stopped by a signal"]);
    }
}

#[test]
fn a_place_where_nobody_is_is_told_with_what_to_do() {
    let closed = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = closed.local_addr().unwrap();
    drop(closed);
    let uri = format!("nbd://{address}");
    info([&uri]).failed_with(&[&uri, "is the server running there?"]);
    info(["nbd+unix:///?socket=/nonexistent/s"]).failed_with(&["No such file"]);
}
