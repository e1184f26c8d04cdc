//! The example `copy` with servers that keep to the protocol, each in its own way.

#![cfg(unix)]

mod copy_support;
mod program_support;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::FileExt;

use copy_support::{Heard, Offer, Peer, Rng, Server, contents, copy, directory, file, text};
use nbd_proto::session::{ReplyStyle, Session};
use nbd_proto::wire::{
    CommandType, ExportNameReply, HandshakeFlags, Name, NewstyleGreeting, OptionCode, OptionReply,
    ReplyType, Request, TransmissionFlags,
};

/// No multiple of the size of a request, nor of 512.
const SIZE: usize = 3 * (1 << 20) + 12_345;

/// Copies from a server to a file, which must then have what the server has.
#[track_caller]
fn fetch(server: &Server, options: &[&str]) {
    let directory = directory();
    let path = file(&directory, "out");
    let mut arguments = vec![server.uri(), text(&path)];
    arguments.extend(options.iter().map(|&option| option.to_owned()));
    let ended = copy(arguments);
    let expected = server.disk.lock().unwrap();
    let summary = format!("{} bytes", expected.len());
    assert!(ended.stdout.starts_with(&summary), "{ended:?}");
    assert!(ended.stdout.ends_with(", flushed\n"), "{ended:?}");
    assert!(fs::read(&path).unwrap() == *expected, "wrong data");
    ended.well();
}

/// Copies from a file to a server, which must then have what the file has.
#[track_caller]
fn store(server: &Server, data: &[u8], options: &[&str]) -> copy_support::Ended {
    let directory = directory();
    let path = file(&directory, "in");
    fs::write(&path, data).unwrap();
    let mut arguments = vec![text(&path), server.uri()];
    arguments.extend(options.iter().map(|&option| option.to_owned()));
    let ended = copy(arguments);
    let disk = server.disk.lock().unwrap();
    assert!(disk[..data.len()] == *data, "wrong data: {ended:?}");
    ended
}

fn commands(log: &[Heard], kind: CommandType) -> Vec<Request> {
    log.iter()
        .filter_map(|heard| match heard {
            Heard::Request(request) if request.kind == kind => Some(*request),
            _ => None,
        })
        .collect()
}

#[test]
fn all_of_an_export_comes_in_either_reply_style() {
    let offer = Offer::new(SIZE);
    for offer in [offer.clone(), offer.simple()] {
        let server = Server::good(offer, contents(SIZE));
        fetch(&server, &[]);
        assert_eq!(server.log().last(), Some(&Heard::Disconnect));
    }
}

#[test]
fn all_of_a_file_goes_and_is_flushed_before_goodbye() {
    let offer = Offer::new(SIZE + 5000);
    for offer in [offer.clone(), offer.simple()] {
        let old = vec![0xee; SIZE + 5000];
        let server = Server::good(offer, old);
        let ended = store(&server, &contents(SIZE), &[]);
        assert!(ended.stdout.ends_with(", flushed\n"), "{ended:?}");
        ended.well();
        let log = server.log();
        let end = &log[log.len() - 2..];
        assert!(
            matches!(end, [Heard::Request(flush), Heard::Disconnect]
                if flush.kind == CommandType::FLUSH),
            "{end:?}"
        );
        let disk = server.disk.lock().unwrap();
        assert!(
            disk[SIZE..].iter().all(|&byte| byte == 0xee),
            "wrote beyond"
        );
    }
}

#[test]
fn from_server_to_server() {
    let source = Server::good(Offer::new(SIZE), contents(SIZE));
    let destination = Server::good(Offer::new(SIZE), vec![1; SIZE]);
    copy([source.uri(), destination.uri()]).well();
    assert!(*source.disk.lock().unwrap() == *destination.disk.lock().unwrap());
}

#[test]
fn from_file_to_file() {
    let directory = directory();
    let (from, to) = (file(&directory, "from"), file(&directory, "to"));
    let mut data = contents(SIZE);
    // Whole requests of zeroes, where the destination could keep what it had.
    data[1 << 20..2 << 20].fill(0);
    fs::write(&from, data).unwrap();
    // Longer than the source, and full of something else.
    fs::write(&to, vec![0xee; 2 * SIZE]).unwrap();
    copy([&from, &to]).well();
    assert!(fs::read(&from).unwrap() == fs::read(&to).unwrap());
}

/// How many bytes of storage a file takes.
fn allocated(path: &std::path::Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(path).unwrap().blocks() * 512
}

#[test]
fn what_is_zero_takes_no_room_in_a_file() {
    let mut data = vec![0; 8 << 20];
    // Pieces that are smaller than a request.
    for at in (0..data.len()).step_by(512 << 10) {
        data[at + 5000] = 1;
    }
    let directory = directory();
    let path = file(&directory, "out");
    for old in [&b""[..], &vec![0xee; 9 << 20]] {
        fs::write(&path, old).unwrap();
        let server = Server::good(Offer::new(data.len()), data.clone());
        copy([server.uri(), text(&path)]).well();
        assert!(fs::read(&path).unwrap() == data);
        // 16 blocks, and what the file system needs for itself.
        assert!(allocated(&path) <= 1 << 20, "{}", allocated(&path));
    }
}

#[test]
fn the_holes_of_a_file_are_passed_on_in_large_pieces() {
    // Its end is no multiple of the size of a request.
    let hole = (100 << 20) + 4096;
    let data = contents(1 << 20);
    let directory = directory();
    let (from, to) = (file(&directory, "from"), file(&directory, "to"));
    let source = fs::File::create(&from).unwrap();
    source.write_all_at(&data, hole).unwrap();
    // The end is a hole, too, and ends amid a block.
    let size = usize::try_from(hole).unwrap() + data.len() + 777_777;
    source.set_len(size as u64).unwrap();

    copy([&from, &to]).well();
    assert!(fs::read(&from).unwrap() == fs::read(&to).unwrap());
    assert!(allocated(&to) <= 2 << 20, "{}", allocated(&to));

    for maximum in [1 << 20, u32::MAX] {
        let offer = Offer::new(size).block_sizes(1, 4096, maximum);
        let server = Server::good(offer, vec![0xee; size]);
        copy([text(&from), server.uri()]).well();
        assert!(*server.disk.lock().unwrap() == fs::read(&from).unwrap());
        let log = server.log();
        let written = commands(&log, CommandType::WRITE);
        assert!(!written.is_empty());
        // What follows the hole is cut where all else is: no request crosses such a line.
        assert!(written.iter().all(|request| {
            let last = request.offset + request.length - 1;
            request.offset / (256 << 10) == last / (256 << 10)
        }));
        let zeroed = commands(&log, CommandType::WRITE_ZEROES);
        let longest = zeroed.iter().map(|request| request.length).max();
        assert_eq!(longest, Some(u64::from(maximum.min(32 << 20))));
    }

    // Without such a command they are written.
    let offer = Offer::new(size).flags(TransmissionFlags::SEND_FLUSH);
    let server = Server::good(offer, vec![0xee; size]);
    copy([text(&from), server.uri()]).well();
    assert!(*server.disk.lock().unwrap() == fs::read(&from).unwrap());
}

#[test]
fn an_export_may_be_at_an_ipv6_address() {
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        eprintln!("this machine has no IPv6: nothing was tested");
        return;
    }
    let server = Server::good_on("::1", Offer::new(SIZE), contents(SIZE));
    assert!(server.uri().starts_with("nbd://[::1]:"));
    fetch(&server, &[]);
}

#[test]
fn nothing_is_copied_in_no_time() {
    let server = Server::good(Offer::new(0), Vec::new());
    fetch(&server, &[]);
    let server = Server::good(Offer::new(100), vec![7; 100]);
    store(&server, b"", &[]).well();
    assert_eq!(*server.disk.lock().unwrap(), vec![7; 100]);
}

#[test]
fn zeroes_overwrite_old_data_whether_or_not_the_server_zeroes() {
    let flush = TransmissionFlags::SEND_FLUSH;
    for flags in [flush, flush | TransmissionFlags::SEND_WRITE_ZEROES] {
        let server = Server::good(Offer::new(SIZE).flags(flags), vec![0xee; SIZE]);
        store(&server, &vec![0; SIZE], &[]).well();
        let log = server.log();
        let (zeroed, written) = (
            commands(&log, CommandType::WRITE_ZEROES).len(),
            commands(&log, CommandType::WRITE).len(),
        );
        assert_eq!(zeroed > 0, flags != flush);
        assert_eq!(written > 0, flags == flush);
    }
}

#[test]
fn a_destination_without_flush_is_told_of() {
    let flags = TransmissionFlags::empty();
    let server = Server::good(Offer::new(SIZE).flags(flags), vec![0; SIZE]);
    let ended = store(&server, &contents(SIZE), &[]);
    assert_eq!(ended.status, Some(0), "{ended:?}");
    assert!(ended.stderr.contains("no flush"), "{ended:?}");
    assert!(ended.stdout.ends_with(", not flushed\n"), "{ended:?}");
    assert!(commands(&server.log(), CommandType::FLUSH).is_empty());
}

#[test]
fn quiet_says_nothing() {
    let flags = TransmissionFlags::empty();
    let server = Server::good(Offer::new(SIZE).flags(flags), vec![0; SIZE]);
    let ended = store(&server, &contents(SIZE), &["--quiet"]);
    assert_eq!(ended.stdout, "");
    ended.well();
}

#[test]
fn a_copy_nobody_reads_about_succeeds_all_the_same() {
    let server = Server::good(Offer::new(SIZE), contents(SIZE));
    let directory = directory();
    let path = file(&directory, "out");
    let mut running = copy_support::start([server.uri(), text(&path)]);
    running.close_stdout();
    running.close_stderr();
    running.finish().well();
    assert!(fs::read(&path).unwrap() == *server.disk.lock().unwrap());
}

#[test]
fn requests_keep_to_the_sizes_of_both_servers() {
    let size = 1 << 20;
    let source = Offer::new(size).block_sizes(1, 4096, 100_000);
    let destination = Offer::new(size).block_sizes(4096, 65536, 1 << 20);
    let source = Server::good(source, contents(size));
    let destination = Server::good(destination, vec![1; size]);
    copy([source.uri(), destination.uri()]).well();
    for log in [source.log(), destination.log()] {
        for heard in log {
            if let Heard::Request(request) = heard {
                assert!(request.length <= 100_000);
                assert_eq!((request.offset % 4096, request.length % 4096), (0, 0));
            }
        }
    }
    assert!(*source.disk.lock().unwrap() == *destination.disk.lock().unwrap());
}

#[test]
fn as_many_requests_of_the_size_that_was_asked_for() {
    let server = Server::good(Offer::new(SIZE), contents(SIZE));
    fetch(&server, &["--requests", "3", "--request-size", "64K"]);
    let reads = commands(&server.log(), CommandType::READ);
    assert_eq!(reads.len(), SIZE.div_ceil(65536));
    assert!(reads.iter().all(|read| read.length <= 65536));
}

// --- replies in other orders ---

/// Serves reads with `in_flight` of them always waiting, and answers whichever `rng` picks.
/// `pieces` says in which messages a request is answered.
fn serve_in_any_order(
    peer: &mut Peer,
    in_flight: usize,
    mut rng: Rng,
    mut pieces: impl FnMut(&Peer, &Request, &mut Rng) -> Vec<Vec<u8>>,
) {
    let reads = SIZE.div_ceil(256 << 10);
    let mut waiting: Vec<Vec<Vec<u8>>> = Vec::new();
    let mut taken = 0;
    while taken < reads || !waiting.is_empty() {
        while taken < reads && waiting.len() < in_flight {
            let (request, _) = peer.next_request().unwrap();
            let mut messages = pieces(peer, &request, &mut rng);
            messages.reverse();
            waiting.push(messages);
            taken += 1;
        }
        let which = rng.below(waiting.len());
        if let Some(message) = waiting[which].pop() {
            peer.send(&message);
        }
        if waiting[which].is_empty() {
            waiting.swap_remove(which);
        }
    }
    assert!(peer.next_request().is_none(), "a goodbye was due");
}

fn whole(peer: &Peer, request: &Request, _: &mut Rng) -> Vec<Vec<u8>> {
    let head = peer.encoder.read(request).unwrap();
    vec![[head.as_ref(), &peer.data(request)].concat()]
}

/// Data and holes in a random order, holes wherever they can be.
fn shattered(peer: &Peer, request: &Request, rng: &mut Rng) -> Vec<Vec<u8>> {
    let data = peer.data(request);
    let mut cuts = vec![0, data.len()];
    cuts.extend((0..rng.below(20)).map(|_| rng.below(data.len())));
    cuts.sort_unstable();
    cuts.dedup();
    let mut parts: Vec<_> = cuts.windows(2).map(|cut| cut[0]..cut[1]).collect();
    for at in (1..parts.len()).rev() {
        parts.swap(at, rng.below(at + 1));
    }
    let mut reply = peer.encoder.chunks(request).unwrap();
    let mut messages = Vec::new();
    for part in parts {
        let offset = request.offset + part.start as u64;
        let length = u32::try_from(part.len()).unwrap();
        let bytes = &data[part];
        messages.push(if bytes.iter().all(|&byte| byte == 0) {
            reply.hole(offset, length).unwrap().to_vec()
        } else {
            [reply.data(offset, length).unwrap().as_ref(), bytes].concat()
        });
    }
    messages.push(reply.done().unwrap().to_vec());
    messages
}

#[test]
fn replies_may_come_in_any_order() {
    for seed in 0..4 {
        for offer in [Offer::new(SIZE), Offer::new(SIZE).simple()] {
            let server = Server::new(offer, contents(SIZE), move |peer| {
                serve_in_any_order(peer, 8, Rng::new(seed), whole);
            });
            fetch(&server, &["--requests", "8"]);
        }
    }
}

#[test]
fn chunks_and_holes_may_come_in_any_order_and_interleaved() {
    for seed in 0..8 {
        let server = Server::new(Offer::new(SIZE), contents(SIZE), move |peer| {
            serve_in_any_order(peer, 8, Rng::new(seed), shattered);
        });
        fetch(&server, &["--requests", "8"]);
    }
}

#[test]
fn bytes_may_come_one_by_one() {
    let size = 3000;
    let server = Server::with(Offer::new(size), contents(size), |peer, request, _| {
        if request.kind != CommandType::READ {
            return false;
        }
        let mut rng = Rng::new(9);
        for message in shattered(peer, request, &mut rng) {
            for byte in message {
                peer.send(&[byte]);
            }
        }
        true
    });
    fetch(&server, &["--request-size", "1024"]);
}

// --- older servers ---

fn export_name_session(size: usize) -> Session {
    let flags = TransmissionFlags::HAS_FLAGS | TransmissionFlags::SEND_FLUSH;
    Session::new(Name::new("disk").unwrap(), size as u64, flags)
        .with_reply_style(ReplyStyle::Simple)
}

/// Knows `EXPORT_NAME` and nothing else; whether it knows how to say so is up to `fixed`.
fn export_name_only(stream: &mut TcpStream, fixed: bool, size: usize) -> Session {
    let mut flags = HandshakeFlags::empty();
    flags.set(HandshakeFlags::FIXED_NEWSTYLE, fixed);
    stream
        .write_all(&NewstyleGreeting { flags }.to_bytes())
        .unwrap();
    stream.read_exact(&mut [0; 4]).unwrap();
    loop {
        let mut header = [0; 16];
        stream.read_exact(&mut header).unwrap();
        let option = u32::from_be_bytes(header[8..12].try_into().unwrap());
        let length = u32::from_be_bytes(header[12..].try_into().unwrap());
        let mut body = vec![0; usize::try_from(length).unwrap()];
        stream.read_exact(&mut body).unwrap();
        if OptionCode(option) == OptionCode::EXPORT_NAME {
            assert_eq!(body, b"disk");
            let session = export_name_session(size);
            let reply = ExportNameReply {
                size: session.size(),
                flags: session.flags(),
            };
            stream.write_all(&reply.to_bytes()).unwrap();
            stream.write_all(&[0; 124]).unwrap();
            return session;
        }
        assert!(fixed, "an option that only a fixed newstyle server knows");
        let mut out = Vec::new();
        let no = OptionReply::Error {
            code: ReplyType::ERR_UNSUP,
            message: Name::default(),
        };
        no.encode(OptionCode(option), &mut out);
        stream.write_all(&out).unwrap();
    }
}

#[test]
fn servers_that_only_know_export_names_will_do() {
    for fixed in [false, true] {
        let server = Server::with_handshake(contents(SIZE), move |stream| {
            export_name_only(stream, fixed, SIZE)
        });
        fetch(&server, &[]);
        let server = Server::with_handshake(vec![1; SIZE], move |stream| {
            export_name_only(stream, fixed, SIZE)
        });
        store(&server, &contents(SIZE), &[]).well();
    }
}
