//! Sessions of other people's programs, replayed: every request and every reply of theirs must be
//! understood. A request must be the same bytes when encoded again. What a reply says must be
//! something that our server can say too, and mean the same then.
//!
//! The handshake is followed here by a few lines of its own, so that a mistake in the library's
//! handshake cannot hide one in its transmission.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use nbd_proto::limits::Limits;
use nbd_proto::session::{BlockSizes, MetaContext, ReplyStyle, Session};
use nbd_proto::transmission::{
    Refusal, ReplyDecoder, ReplyEncoder, ReplyEvent, RequestDecoder, RequestEncoder, RequestEvent,
    StatusReply,
};
use nbd_proto::wire::{
    CommandFlags, CommandType, Cookie, Errno, Extent, Name, Request, StatusQuery, TransmissionFlags,
};

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
    queries: usize,
}

/// What a server said about one request.
#[derive(Clone, Debug, PartialEq)]
enum Said {
    Data(u64, Vec<u8>),
    Hole(u64, u64),
    Status(u32, Vec<Extent>),
    Error(Errno, Option<u64>, String),
    Finished(Result<(), Errno>),
}

/// A request, the payload of a block status request, and what was said so far.
struct Asked {
    request: Request,
    query: Vec<u8>,
    refused: Option<Errno>,
    said: Vec<Said>,
}

impl Asked {
    /// Our client would send the same bytes, if it would send the request at all.
    fn check_encoder(&self, session: &Session) {
        let encoder = RequestEncoder::new(session);
        let (request, flag) = (self.request, CommandFlags::PAYLOAD_LEN);
        let extended = session.reply_style() == ReplyStyle::Extended;
        if self.refused.is_some() || request.length == 0 && request.kind != CommandType::FLUSH {
            assert!(
                self.refused.is_none()
                    || encoder.encode(&request).is_err()
                    || self.is_query(session)
            );
            return;
        }
        let mut expected = encode(&request, extended);
        if self.is_query(session) {
            expected.extend(&self.query);
            let query = StatusQuery::parse(&self.query).unwrap();
            let ids: Vec<u32> = query.ids().collect();
            let range = request.offset..request.offset + query.effect_length();
            let (cookie, flags) = (request.cookie, request.flags - flag);
            let mut sent = vec![];
            let again = encoder.status_query(cookie, flags, range, &ids, &mut sent);
            assert_eq!((again, sent), (Ok(request), expected));
            return;
        }
        if extended && request.kind == CommandType::WRITE {
            // qemu leaves it out.
            expected = encode(&request.with_flags(flag), extended);
        }
        assert_eq!(encoder.encode(&request).unwrap().as_ref(), expected);
    }

    fn is_query(&self, session: &Session) -> bool {
        session.reply_style() == ReplyStyle::Extended
            && self.request.kind == CommandType::BLOCK_STATUS
            && self.request.flags.contains(CommandFlags::PAYLOAD_LEN)
    }

    /// Waits for the answer. A query that has to be refused is waited for as if it was none: only
    /// an error can come.
    fn expect(&self, session: &Session, replies: &mut ReplyDecoder) {
        if self.is_query(session) && self.refused.is_none() {
            let query = StatusQuery::parse(&self.query).unwrap();
            replies.expect_status(&self.request, &query).unwrap();
            return;
        }
        // One of them asks for 8 GiB by hand; no answer to that is a success.
        let length = self.request.length.min(u32::MAX.into());
        let flags = self.request.flags - CommandFlags::PAYLOAD_LEN;
        let request = Request {
            length,
            flags,
            ..self.request
        };
        replies.expect(&request).unwrap();
    }

    fn hear(&mut self, event: ReplyEvent<'_>) {
        let said = match event {
            ReplyEvent::Data { offset, bytes, .. } => match self.said.last_mut() {
                Some(Said::Data(start, earlier)) if *start + earlier.len() as u64 == offset => {
                    return earlier.extend_from_slice(bytes);
                }
                _ => Said::Data(offset, bytes.to_vec()),
            },
            ReplyEvent::Hole { offset, length, .. } => Said::Hole(offset, length),
            ReplyEvent::Status {
                context, extents, ..
            } => match self.said.last_mut() {
                Some(Said::Status(id, earlier)) if *id == context => {
                    return earlier.extend(extents);
                }
                _ => Said::Status(context, extents.collect()),
            },
            ReplyEvent::Error {
                errno,
                offset,
                message,
                ..
            } => Said::Error(errno, offset, message),
            ReplyEvent::Finished { result, .. } => Said::Finished(result),
            other => panic!("not known here: {other:?}"),
        };
        self.said.push(said);
    }

    /// The same answer, from our server.
    fn answer(&self, session: &Session) -> Vec<u8> {
        let encoder = ReplyEncoder::new(session);
        let (request, mut out) = (&self.request, vec![]);
        let Some(Said::Finished(result)) = self.said.last() else {
            panic!("not finished");
        };
        let error = self.said.iter().find_map(|said| match said {
            Said::Error(errno, offset, message) => Some((*errno, *offset, message)),
            _ => None,
        });
        match (request.kind, *result, error) {
            (CommandType::READ, Ok(()), _) if session.reply_style() == ReplyStyle::Simple => {
                out.extend_from_slice(&encoder.read(request).unwrap());
                for said in &self.said {
                    if let Said::Data(_, bytes) = said {
                        out.extend(bytes);
                    }
                }
            }
            (CommandType::READ, Ok(()), _) => {
                let mut chunks = encoder.chunks(request).unwrap();
                for said in &self.said {
                    let small = |length: u64| u32::try_from(length).unwrap();
                    match said {
                        Said::Data(offset, bytes) => {
                            let length = small(bytes.len() as u64);
                            out.extend_from_slice(&chunks.data(*offset, length).unwrap());
                            out.extend(bytes);
                        }
                        Said::Hole(offset, length) => {
                            let head = chunks.hole(*offset, small(*length)).unwrap();
                            out.extend_from_slice(&head);
                        }
                        _ => {}
                    }
                }
                out.extend_from_slice(&chunks.done().unwrap());
            }
            (CommandType::BLOCK_STATUS, Ok(()), _) => {
                let mut reply = if request.flags.contains(CommandFlags::PAYLOAD_LEN) {
                    let query = StatusQuery::parse(&self.query).unwrap();
                    StatusReply::for_query(session, request, &query).unwrap()
                } else {
                    StatusReply::new(session, request).unwrap()
                };
                for said in &self.said {
                    if let Said::Status(context, extents) = said {
                        let extents = extents.iter().copied();
                        reply.context(*context, extents, &mut out).unwrap();
                    }
                }
                assert!(reply.is_ended());
            }
            (_, Ok(()), _) => out.extend_from_slice(&encoder.ok(request)),
            (_, Err(_), Some((errno, Some(offset), message))) => encoder
                .error_at(request, offset, errno, message, &mut out)
                .unwrap(),
            (_, Err(_), Some((errno, None, message))) => {
                encoder.error(request, errno, message, &mut out);
            }
            // Our server says it with a chunk where it can; the error is the same.
            (_, Err(errno), None) => out.extend_from_slice(&encoder.fail(request, errno)),
        }
        out
    }

    /// What our server would say means the same to our client.
    fn check_answer(&self, name: &str, session: &Session) {
        let wire = self.answer(session);
        let limits = Limits::new().with_max_payload(u32::MAX);
        let mut replies = ReplyDecoder::new(session, &limits, 1);
        self.expect(session, &mut replies);
        let mut again = Self {
            request: self.request,
            query: vec![],
            refused: None,
            said: vec![],
        };
        let mut input = &wire[..];
        while let Some(event) = replies.next(&mut input).unwrap() {
            again.hear(event);
        }
        assert!(input.is_empty());
        let silent = |said: &Said| !matches!(said, Said::Error(_, None, text) if text.is_empty());
        assert!(
            again
                .said
                .iter()
                .filter(|it| silent(it))
                .eq(self.said.iter().filter(|it| silent(it))),
            "{name}: {:?} became {:?}",
            self.said,
            again.said
        );
    }
}

/// Both directions of a transmission phase through both decoders, in the order of the capture.
fn replay(name: &str, session: &Session, runs: &[(Side, Vec<u8>)], from: [usize; 2]) -> Count {
    let mut requests = RequestDecoder::new(session, &Limits::new());
    let mut replies = ReplyDecoder::new(session, &Limits::new().with_max_payload(u32::MAX), 64);
    let mut in_flight: BTreeMap<Cookie, Asked> = BTreeMap::new();
    let mut arriving: Option<Asked> = None;
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
                            arriving = Some(Asked {
                                request,
                                query: vec![],
                                refused: session.check(&request).err().map(Refusal::errno),
                                said: vec![],
                            });
                        }
                        RequestEvent::Payload(bytes) => {
                            encoded.extend(bytes);
                            if let Some(asked) = &mut arriving {
                                asked.query.extend(bytes);
                            }
                        }
                        RequestEvent::Disconnect => {
                            encoded.extend(encode(&Request::disconnect(), extended));
                        }
                    }
                    if requests.payload_left() > 0 {
                        continue;
                    }
                    let Some(mut asked) = arriving.take() else {
                        continue;
                    };
                    let request = asked.request;
                    if asked.refused.is_none() && asked.is_query(session) {
                        count.queries += 1;
                        let checked = session.check_status_payload(&request, &asked.query);
                        asked.refused = checked.err().map(Refusal::errno);
                    }
                    asked.check_encoder(session);
                    asked.expect(session, &mut replies);
                    assert!(in_flight.insert(request.cookie, asked).is_none());
                }
            }
            Side::Server => {
                while let Some(event) = replies.next(&mut input).expect(name) {
                    let asked = in_flight.get_mut(&event.cookie()).unwrap();
                    asked.hear(event);
                    let Some(&Said::Finished(result)) = asked.said.last() else {
                        continue;
                    };
                    match asked.refused {
                        // What we would refuse, the others refused too. Which error they chose is
                        // theirs where the protocol leaves it open.
                        Some(errno) => {
                            let request = asked.request;
                            assert!(result.is_err(), "{name}: {request:?} was executed: {errno}");
                            count.refusals += 1;
                        }
                        None => count.successes += usize::from(result.is_ok()),
                    }
                    asked.check_answer(name, session);
                    let cookie = asked.request.cookie;
                    in_flight.remove(&cookie);
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
        total.queries += count.queries;
        styles.push(session.reply_style());
    }
    assert!(total.requests > 0 && total.successes > 0 && total.refusals > 0 && total.queries > 0);
    for style in [
        ReplyStyle::Simple,
        ReplyStyle::Structured,
        ReplyStyle::Extended,
    ] {
        assert!(styles.contains(&style), "{style:?} was never spoken");
    }
}
