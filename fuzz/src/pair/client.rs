//! The client of a pair: it knows what it must read from what it sent.

use std::collections::BTreeMap;

use arbitrary::Arbitrary;
use nbd_proto::limits::Limits;
use nbd_proto::session::{ReplyStyle, Session};
use nbd_proto::transmission::{Refusal, ReplyDecoder, ReplyEvent, RequestEncoder};
use nbd_proto::wire::{CommandFlags, CommandType, Cookie, Errno, Extent, Request, StatusQuery};

/// What a client is to send.
#[derive(Debug, Arbitrary)]
pub(super) struct Ask {
    kind: Kind,
    flags: u8,
    offset: u16,
    length: u16,
    /// What a write writes.
    fill: u8,
    /// Whether it is sent even if the server will refuse it.
    bare: bool,
}

#[derive(Clone, Copy, Debug, Arbitrary)]
enum Kind {
    Read,
    Write,
    Flush,
    Trim,
    Cache,
    WriteZeroes,
    BlockStatus,
    /// A block status for some contexts only.
    StatusQuery,
    Unknown,
}

/// A request in flight.
#[derive(Debug)]
struct Asked {
    request: Request,
    /// The error of a request that the server has to refuse.
    refused: Option<Errno>,
    /// The result that the server gave.
    told: Option<Result<(), Errno>>,
    /// What a read has to find, and what came of it.
    expected: Vec<u8>,
    came: Vec<u8>,
    /// The contexts whose status has to come, and how many bytes of it came.
    contexts: BTreeMap<u32, u64>,
}

pub(super) struct Client {
    session: Session,
    encoder: RequestEncoder,
    decoder: ReplyDecoder,
    /// The image as it is once all that was sent is executed.
    model: Vec<u8>,
    in_flight: BTreeMap<Cookie, Asked>,
    sent: u64,
}

impl Client {
    pub(super) fn new(session: &Session) -> Self {
        Self {
            session: session.clone(),
            encoder: RequestEncoder::new(session),
            decoder: ReplyDecoder::new(session, &Limits::new(), 32),
            model: vec![0; usize::try_from(session.size()).expect("small")],
            in_flight: BTreeMap::new(),
            sent: 0,
        }
    }

    pub(super) fn model(&self) -> &[u8] {
        &self.model
    }

    /// Sends a request, unless it cannot be sent.
    pub(super) fn ask(&mut self, ask: &Ask, out: &mut Vec<u8>) {
        let (request, payload, contexts) = self.request(ask);
        let query = StatusQuery::parse(&payload).ok();
        let query = query.filter(|_| matches!(ask.kind, Kind::StatusQuery));
        let mut verdict = self.session.check(&request);
        if let (Ok(()), Some(query)) = (verdict, &query) {
            verdict = self.session.check_status(&request, query);
        }
        let header = match self.encoder.encode(&request) {
            Ok(head) if verdict.is_ok() || ask.bare => head.to_vec(),
            Err(_) if ask.bare => self.bare(&request),
            _ => return,
        };
        let expected = match &query {
            Some(query) => self.decoder.expect_status(&request, query),
            None => self.decoder.expect(&request),
        };
        if expected.is_err() {
            return;
        }
        out.extend_from_slice(&header);
        out.extend_from_slice(&payload);
        self.sent += 1;
        let mut asked = Asked {
            request,
            refused: verdict.err().map(|why| why.errno()),
            told: None,
            expected: Vec::new(),
            came: Vec::new(),
            contexts,
        };
        if verdict.is_ok() {
            self.execute(&mut asked, &payload);
        }
        self.in_flight.insert(request.cookie, asked);
    }

    /// The request, its payload, and the contexts that it asks for.
    fn request(&self, ask: &Ask) -> (Request, Vec<u8>, BTreeMap<u32, u64>) {
        let extended = self.session.reply_style() == ReplyStyle::Extended;
        // Requests that make sense are to be frequent.
        let minimum = u64::from(self.session.block_sizes().minimum());
        let (mut offset, mut length) = (u64::from(ask.offset), u64::from(ask.length) % 5000);
        if !ask.fill.is_multiple_of(8) {
            offset = offset % (self.session.size() + 1) / minimum * minimum;
            length = length.min(self.session.size() - offset) / minimum * minimum;
        }
        let kind = match ask.kind {
            Kind::Read => CommandType::READ,
            Kind::Write => CommandType::WRITE,
            Kind::Flush => CommandType::FLUSH,
            Kind::Trim => CommandType::TRIM,
            Kind::Cache => CommandType::CACHE,
            Kind::WriteZeroes => CommandType::WRITE_ZEROES,
            Kind::BlockStatus | Kind::StatusQuery => CommandType::BLOCK_STATUS,
            Kind::Unknown => CommandType(0x1234),
        };
        if kind == CommandType::FLUSH && !ask.fill.is_multiple_of(8) {
            (offset, length) = (0, 0);
        }
        let flags = CommandFlags::from_bits_retain(ask.flags.into());
        let mut request = Request::new(kind, Cookie(self.sent), offset, length);
        if !ask.bare || self.session.check(&request).is_err() {
            request.flags = flags;
        }
        if !ask.bare && self.session.check(&request) == Err(Refusal::BadFlags) {
            request.flags = CommandFlags::empty();
        }
        let mut contexts = BTreeMap::new();
        let mut payload = Vec::new();
        if matches!(ask.kind, Kind::StatusQuery) && extended {
            let known = self.session.contexts().iter().map(|it| it.id);
            let mut ids: Vec<u32> = known.filter(|id| ask.fill >> (id % 8) & 1 == 0).collect();
            if ask.fill == 0 {
                ids.push(99);
            }
            StatusQuery::encode(length, &ids, &mut payload);
            request.flags |= CommandFlags::PAYLOAD_LEN;
            request.length = payload.len() as u64;
            contexts.extend(ids.into_iter().map(|id| (id, 0)));
            return (request, payload, contexts);
        }
        if kind == CommandType::BLOCK_STATUS {
            contexts.extend(self.session.contexts().iter().map(|it| (it.id, 0)));
        }
        if kind == CommandType::WRITE && extended {
            request.flags |= CommandFlags::PAYLOAD_LEN;
        }
        let flagged = extended && request.flags.contains(CommandFlags::PAYLOAD_LEN);
        if kind == CommandType::WRITE || flagged {
            let length = usize::try_from(length).expect("small");
            // Different in every byte that a mistake of one could confuse.
            let bytes = (0..length).map(|at| ask.fill.wrapping_add((at % 251) as u8));
            payload.extend(bytes);
        }
        (request, payload, contexts)
    }

    /// A header that the encoder would not make.
    fn bare(&self, request: &Request) -> Vec<u8> {
        match self.session.reply_style() {
            ReplyStyle::Extended => request.to_extended().to_vec(),
            _ => request.to_compact().expect("a short request").to_vec(),
        }
    }

    /// The server executes requests in the order in which they are sent.
    fn execute(&mut self, asked: &mut Asked, payload: &[u8]) {
        let Request {
            kind,
            offset,
            length,
            ..
        } = asked.request;
        let range = || {
            let start = usize::try_from(offset).expect("small");
            start..start + usize::try_from(length).expect("small")
        };
        match kind {
            CommandType::READ => {
                asked.expected = self.model[range()].to_vec();
                asked.came = asked.expected.iter().map(|byte| !byte).collect();
            }
            CommandType::WRITE => self.model[range()].copy_from_slice(payload),
            CommandType::WRITE_ZEROES => self.model[range()].fill(0),
            _ => {}
        }
    }

    /// The server has answered, and the answer is on its way.
    pub(super) fn will_be_told(&mut self, cookie: Cookie, result: Result<(), Errno>) {
        let asked = self.in_flight.get_mut(&cookie).expect("it was asked");
        assert_eq!(asked.told, None, "answered twice");
        if let Some(errno) = asked.refused {
            assert_eq!(result, Err(errno), "the server thinks otherwise");
        }
        asked.told = Some(result);
    }

    pub(super) fn receive(&mut self, mut input: &[u8]) {
        loop {
            let payload = self.decoder.payload();
            // Every other read has its data read past the decoder.
            if let Some(payload) =
                payload.filter(|it| it.cookie.0.is_multiple_of(2) && !input.is_empty())
            {
                let len = usize::try_from(payload.left).expect("small");
                let (data, rest) = input.split_at(len.min(input.len()));
                self.data(payload.cookie, payload.offset, data);
                self.decoder.payload_read(data.len() as u64);
                input = rest;
                continue;
            }
            let Some(event) = self.decoder.next(&mut input).expect("our own server") else {
                assert!(input.is_empty());
                return;
            };
            match event {
                ReplyEvent::Data {
                    cookie,
                    offset,
                    bytes,
                    ..
                } => self.data(cookie, offset, bytes),
                ReplyEvent::Hole {
                    cookie,
                    offset,
                    length,
                } => {
                    let length = usize::try_from(length).expect("small");
                    self.data(cookie, offset, &vec![0; length]);
                }
                ReplyEvent::Status {
                    cookie,
                    context,
                    offset,
                    extents,
                } => {
                    let sum: u64 = extents.map(|Extent { length, .. }| length).sum();
                    let asked = self.in_flight.get_mut(&cookie).expect("in flight");
                    let came = asked.contexts.get_mut(&context).expect("asked for");
                    assert_eq!(offset, asked.request.offset + *came);
                    *came += sum;
                }
                ReplyEvent::Error { .. } => {}
                ReplyEvent::Finished { cookie, result } => self.finished(cookie, result),
                other => panic!("not known here: {other:?}"),
            }
        }
    }

    fn data(&mut self, cookie: Cookie, offset: u64, data: &[u8]) {
        let asked = self.in_flight.get_mut(&cookie).expect("in flight");
        let at = usize::try_from(offset - asked.request.offset).expect("small");
        asked.came[at..at + data.len()].copy_from_slice(data);
    }

    fn finished(&mut self, cookie: Cookie, result: Result<(), Errno>) {
        let asked = self.in_flight.remove(&cookie).expect("in flight");
        assert_eq!(asked.told, Some(result), "not what the server said");
        if result.is_ok() {
            assert_eq!(asked.refused, None);
            assert_eq!(asked.came, asked.expected, "not what was written");
            assert!(asked.contexts.values().all(|&sum| sum > 0));
        }
    }

    pub(super) fn disconnect(&self, out: &mut Vec<u8>) {
        let head = self.encoder.encode(&Request::disconnect());
        out.extend_from_slice(&head.expect("legal"));
    }

    pub(super) fn check_end(&self) {
        assert!(self.in_flight.is_empty());
        assert_eq!(self.decoder.in_flight(), 0);
        assert_eq!(self.decoder.on_eof(), Ok(()));
    }
}
