//! Sessions of other people's programs, replayed: every request and every reply of theirs must be
//! understood, and be the same bytes when encoded again.
//!
//! The handshake is followed here by a few lines of its own, so that a mistake in the library's
//! handshake cannot hide one in its transmission.

use std::fs;
use std::path::Path;

use nbd_proto::limits::Limits;
use nbd_proto::session::{BlockSizes, MetaContext, ReplyStyle, Session};
use nbd_proto::transmission::{ReplyDecoder, ReplyEvent, RequestDecoder, RequestEvent};
use nbd_proto::wire::{Cookie, Errno, Name, Request, TransmissionFlags};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Side {
    Client,
    Server,
}

/// A run of bytes that one side sent.
type Run = (Side, Vec<u8>);

fn transcripts() -> Vec<(String, Vec<Run>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let mut found = vec![];
    for entry in fs::read_dir(&dir).expect("tests/data is there") {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "txt") {
            let text = fs::read_to_string(&path).unwrap();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            found.push((name, text.lines().filter_map(line).collect()));
        }
    }
    found.sort_by(|(a, _), (b, _)| a.cmp(b));
    found
}

fn line(line: &str) -> Option<Run> {
    let (side, hex) = line.split_once(": ")?;
    let side = match side {
        "C" => Side::Client,
        "S" => Side::Server,
        _ => return None,
    };
    let digits = hex.trim().as_bytes();
    let bytes = digits.chunks(2).map(|pair| {
        let pair = std::str::from_utf8(pair).unwrap();
        u8::from_str_radix(pair, 16).expect("hexadecimal digits")
    });
    Some((side, bytes.collect()))
}

struct Stream<'a>(&'a [u8], usize);

impl Stream<'_> {
    fn take(&mut self, len: usize) -> Option<Vec<u8>> {
        let bytes = self.0.get(self.1..self.1 + len)?;
        self.1 += len;
        Some(bytes.to_vec())
    }

    fn number(&mut self, len: usize) -> Option<u64> {
        let bytes = self.take(len)?;
        Some(bytes.iter().fold(0, |n, &byte| n << 8 | u64::from(byte)))
    }
}

/// Follows the handshake: what was negotiated, and where transmission begins in both streams.
/// `None` if it never does.
fn handshake(client: &[u8], server: &[u8]) -> Option<(Session, usize, usize)> {
    let (mut c, mut s) = (Stream(client, 0), Stream(server, 0));
    assert_eq!(s.take(8)?, b"NBDMAGIC");
    let session = |size, flags| {
        let flags = TransmissionFlags::from_bits_retain(u16::try_from(flags).unwrap());
        Session::new(Name::default(), size, flags)
    };
    if s.take(8)? != b"IHAVEOPT" {
        let (size, flags) = (s.number(8)?, s.number(4)?);
        s.take(124)?;
        return Some((session(size, flags & 0xffff), 0, s.1));
    }
    s.number(2)?;
    let no_zeroes = c.number(4)? & 2 != 0;
    let (mut style, mut contexts) = (ReplyStyle::Simple, vec![]);
    loop {
        assert_eq!(c.take(8)?, b"IHAVEOPT");
        let (option, length) = (c.number(4)?, c.number(4)?);
        c.take(usize::try_from(length).unwrap())?;
        if option == 1 {
            let (size, flags) = (s.number(8)?, s.number(2)?);
            if !no_zeroes {
                s.take(124)?;
            }
            return Some((session(size, flags).with_reply_style(style), c.1, s.1));
        }
        if option == 10 {
            contexts.clear();
        }
        let (mut export, mut sizes) = (None, BlockSizes::DEFAULT);
        loop {
            assert_eq!(s.number(8)?, 0x0003_e889_0455_65a9);
            assert_eq!(s.number(4)?, option);
            let (reply, length) = (s.number(4)?, s.number(4)?);
            let body = s.take(usize::try_from(length).unwrap())?;
            let mut body = Stream(&body, 0);
            match (option, reply) {
                (7, 3) => match body.number(2)? {
                    0 => export = Some((body.number(8)?, body.number(2)?)),
                    3 => {
                        let mut next = || body.number(4).and_then(|n| u32::try_from(n).ok());
                        sizes = BlockSizes::new(next()?, next()?, next()?).unwrap();
                    }
                    _ => {}
                },
                (10, 4) => {
                    let id = u32::try_from(body.number(4)?).unwrap();
                    let name = String::from_utf8(body.0[4..].to_vec()).unwrap();
                    let name = Name::new(name).unwrap();
                    contexts.push(MetaContext { id, name });
                }
                (8, 1) => style = ReplyStyle::Structured,
                (11, 1) => style = ReplyStyle::Extended,
                (7, 1) => {
                    let (size, flags) = export.expect("GO tells the size");
                    let session = session(size, flags)
                        .with_reply_style(style)
                        .with_block_sizes(sizes)
                        .with_contexts(contexts);
                    return Some((session, c.1, s.1));
                }
                _ => {}
            }
            if reply == 1 || reply & (1 << 31) != 0 {
                break;
            }
        }
        if option == 2 {
            return None;
        }
    }
}

#[derive(Default, Debug)]
struct Count {
    requests: usize,
    successes: usize,
    refusals: usize,
}

/// Both directions of a transmission phase through both decoders, in the order of the capture.
fn replay(name: &str, session: &Session, runs: &[(Side, Vec<u8>)], from: [usize; 2]) -> Count {
    let mut requests = RequestDecoder::new(session, &Limits::new());
    let mut replies = ReplyDecoder::new(session, &Limits::new().with_max_payload(u32::MAX), 64);
    let mut refused: Vec<(Cookie, Errno)> = vec![];
    let mut count = Count::default();
    let mut skip = from;
    let mut encoded = vec![];
    let mut captured = vec![];
    let extended = session.reply_style() == ReplyStyle::Extended;
    for (side, bytes) in runs {
        let skipped = &mut skip[usize::from(*side == Side::Server)];
        let begin = (*skipped).min(bytes.len());
        *skipped -= begin;
        let mut input = &bytes[begin..];
        if *side == Side::Client {
            captured.extend_from_slice(input);
        }
        match side {
            Side::Client => {
                while let Some(event) = requests.next(&mut input).unwrap() {
                    match event {
                        RequestEvent::Request(request) => {
                            count.requests += 1;
                            encoded.extend(encode(&request, extended));
                            if let Err(why) = session.check(&request) {
                                refused.push((request.cookie, why.errno()));
                            }
                            // One of them asks for 8 GiB by hand; no answer to that is a success.
                            let length = request.length.min(u32::MAX.into());
                            replies.expect(&Request { length, ..request }).unwrap();
                        }
                        RequestEvent::Payload(bytes) => encoded.extend(bytes),
                        RequestEvent::Disconnect => {
                            encoded.extend(encode(&Request::disconnect(), extended));
                        }
                    }
                }
            }
            Side::Server => {
                while let Some(event) = replies.next(&mut input).expect(name) {
                    if let ReplyEvent::Finished { cookie, result } = event {
                        let ours = refused.iter().position(|(refused, _)| *refused == cookie);
                        match ours.map(|at| refused.swap_remove(at)) {
                            // What we would refuse, the others refused too. Which error they chose
                            // is theirs where the protocol leaves it open.
                            Some((_, errno)) => {
                                assert!(result.is_err(), "{name}: {cookie} was executed: {errno}");
                                count.refusals += 1;
                            }
                            None => count.successes += usize::from(result.is_ok()),
                        }
                    }
                }
            }
        }
        assert!(input.is_empty(), "{name}: bytes after the end");
    }
    assert_eq!(requests.on_eof(), Ok(()), "{name}");
    assert_eq!(replies.on_eof(), Ok(()), "{name}");
    // The cookie of a disconnect means nothing and is not kept; nor does one need to be.
    let end = encoded.len();
    if requests.wants() == 0 {
        let cookie = end - if extended { 24 } else { 20 };
        captured[cookie..cookie + 8].fill(0);
    }
    assert_eq!(captured[..end], encoded, "{name}");
    count
}

fn encode(request: &Request, extended: bool) -> Vec<u8> {
    if extended {
        request.to_extended().to_vec()
    } else {
        request.to_compact().unwrap().to_vec()
    }
}

#[test]
fn captured_sessions_are_understood_on_both_sides() {
    let transcripts = transcripts();
    assert!(!transcripts.is_empty(), "no transcripts in tests/data");
    let mut total = Count::default();
    let mut styles = vec![];
    for (name, runs) in transcripts {
        let stream = |of| {
            let runs = runs.iter().filter(|(side, _)| *side == of);
            runs.flat_map(|(_, bytes)| bytes.clone())
                .collect::<Vec<_>>()
        };
        let (client, server) = (stream(Side::Client), stream(Side::Server));
        let Some((session, c, s)) = handshake(&client, &server) else {
            continue;
        };
        let count = replay(&name, &session, &runs, [c, s]);
        total.requests += count.requests;
        total.successes += count.successes;
        total.refusals += count.refusals;
        styles.push(session.reply_style());
    }
    assert!(total.requests > 0 && total.successes > 0 && total.refusals > 0);
    for style in [ReplyStyle::Simple, ReplyStyle::Structured] {
        assert!(styles.contains(&style), "{style:?} was never spoken");
    }
}
