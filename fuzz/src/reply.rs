//! Hostile bytes for the client's decoder of replies.

use std::collections::{BTreeMap, BTreeSet};

use nbd_proto::limits::Limits;
use nbd_proto::session::{BlockSizes, MetaContext, ReplyStyle, Session};
use nbd_proto::transmission::client::{Fatal, ReplyDecoder, ReplyEvent, Violation};
use nbd_proto::transmission::{ReadBuffer, Unexpectable};
use nbd_proto::wire::{
    CommandFlags, CommandType, Cookie, Errno, Extent, MAX_ERROR_MESSAGE, Name, Request,
    StatusQuery, TransmissionFlags,
};

use crate::choices::{Choices, Feed, same_for_all_feeds};
use crate::request::style;

/// The size of the export.
const SIZE: u64 = 1 << 40;

/// How many times a request whose flag says so is sent again once it was answered.
const AGAIN: u32 = 2;

/// Decodes whatever a server sends while some requests are in flight, and believes only what
/// comes to the same in every way.
///
/// The input is: style and limits, number of contexts and of requests, cuts (4), the requests (see
/// [`asked`]), and what the server sends.
pub fn reply_decoder(data: &[u8]) {
    let mut choices = Choices::new(data);
    let how = choices.byte();
    let counts = choices.byte();
    let contexts = (0..u32::from(counts >> 6)).map(|id| MetaContext {
        id,
        name: Name::new(format!("x:{id}")).expect("a name"),
    });
    let max_payload = if how & 4 != 0 { 4096 } else { 1 << 25 };
    let minimum = if how & 0x20 != 0 { 512 } else { 1 };
    let session = Session::new(Name::EMPTY, SIZE, TransmissionFlags::from_bits_retain(!2))
        .with_reply_style(style(how))
        .with_block_sizes(BlockSizes::new(minimum, 4096, max_payload).expect("legal"))
        .with_contexts(contexts.collect());
    let mut limits = Limits::new();
    if how & 8 != 0 {
        limits = limits
            .with_max_chunks(3)
            .with_max_drain(64)
            .with_max_extents(2);
    }
    let cuts = choices.cuts();
    let ids: Vec<u32> = session.contexts().iter().map(|it| it.id).collect();
    let asked: Vec<Asked> = (0..counts & 0x3f)
        .map(|_| asked(&mut choices, &ids))
        .collect();
    let bytes = choices.rest();

    let direct = how & 0x10 != 0;
    same_for_all_feeds(cuts, |feed| {
        run(&session, &limits, &asked, bytes, feed, direct)
    });
}

/// A request, and whether it is sent again with the same cookie once it was answered.
#[derive(Clone, Debug)]
struct Asked {
    request: Request,
    /// The payload, if it is a block status request that has one.
    query: Option<Vec<u8>>,
    /// The contexts that are asked for, if it is a block status request.
    contexts: BTreeSet<u32>,
    again: bool,
}

impl Asked {
    fn expect(&self, decoder: &mut ReplyDecoder) -> Result<(), Unexpectable> {
        match &self.query {
            Some(payload) => {
                let query = StatusQuery::parse(payload).expect("our own");
                assert_eq!(decoder.expect(&self.request), Err(Unexpectable::NeedsQuery));
                decoder.expect_status(&self.request, &query)
            }
            None => decoder.expect(&self.request),
        }
    }
}

/// A request in 13 bytes: what is done about it, command, flags, cookie (2), offset (4),
/// length (4). A block status request with payload names the contexts that are bits of its cookie.
fn asked(choices: &mut Choices<'_>, ids: &[u32]) -> Asked {
    let again = choices.flag();
    let kind = CommandType(choices.byte().into());
    let flags = CommandFlags::from_bits_retain(choices.byte().into());
    let cookie = Cookie(choices.u16().into());
    let (offset, length) = (choices.u32(), choices.u32());
    let request = Request::new(kind, cookie, offset.into(), length.into()).with_flags(flags);
    let mut asked = Asked {
        request,
        query: None,
        contexts: ids.iter().copied().collect(),
        again,
    };
    if kind == CommandType::BLOCK_STATUS && flags.contains(CommandFlags::PAYLOAD_LEN) {
        asked.contexts.retain(|id| cookie.0 >> id & 1 != 0);
        let named: Vec<u32> = asked.contexts.iter().rev().copied().collect();
        let mut payload = Vec::new();
        StatusQuery::encode(length.into(), &named, &mut payload);
        asked.query = Some(payload);
    }
    asked
}

/// What a decoder said, however the input was cut: data without its contents, which is that of
/// the input where it stands.
#[derive(Clone, Debug, PartialEq)]
enum Event {
    Data {
        cookie: Cookie,
        offset: u64,
        length: u64,
        /// Where in the input it stands.
        at: usize,
    },
    Hole {
        cookie: Cookie,
        offset: u64,
        length: u64,
    },
    Status {
        cookie: Cookie,
        context: u32,
        extents: Vec<Extent>,
    },
    Error {
        cookie: Cookie,
        errno: Errno,
        offset: Option<u64>,
        message: String,
    },
    Finished {
        cookie: Cookie,
        result: Result<(), Errno>,
    },
}

/// What a run came to.
#[derive(Debug, PartialEq)]
struct Run {
    events: Vec<Event>,
    taken: usize,
    in_flight: usize,
    end: Result<(), Fatal>,
    eof: Result<(), Fatal>,
}

fn run(
    session: &Session,
    limits: &Limits,
    asked: &[Asked],
    bytes: &[u8],
    feed: Feed,
    direct: bool,
) -> Run {
    let mut decoder = ReplyDecoder::new(session, limits, 16);
    let mut judge = Judge::new(session);
    for asked in asked {
        if asked.expect(&mut decoder).is_ok() {
            judge.expect(asked.clone(), AGAIN);
        }
    }
    assert_eq!(decoder.in_flight(), judge.open.len());
    let mut end = Ok(());
    let (mut input, mut turn, mut unused) = (bytes, 0, 0);
    'over: loop {
        let mut piece = feed.next(&mut input, decoder.wants(), turn);
        turn += 1;
        if piece.is_empty() {
            break;
        }
        loop {
            // Data may be read past the decoder; only where it is then depends on the feed.
            let payload = decoder.payload().filter(|_| direct && !piece.is_empty());
            if let Some(payload) = payload {
                assert_eq!(payload.left, decoder.payload_left());
                let left = usize::try_from(payload.left).unwrap_or(usize::MAX);
                let len = left.min(piece.len());
                let at = bytes.len() - input.len() - piece.len();
                let more = payload.left - len as u64;
                judge.data(payload.cookie, payload.offset, len as u64, more, at);
                piece = &piece[len..];
                decoder.payload_read(len as u64);
                continue;
            }
            let before = bytes.len() - input.len() - piece.len();
            match decoder.next(&mut piece) {
                Ok(Some(event)) => {
                    let at = bytes.len() - input.len() - piece.len();
                    if let ReplyEvent::Data { bytes: lent, .. } = &event {
                        assert_eq!(*lent, &bytes[at - lent.len()..at], "not from the input");
                    }
                    assert!(at >= before);
                    if let Some(again) = judge.event(event, at) {
                        again
                            .expect(&mut decoder)
                            .expect("its cookie is free again");
                    }
                }
                Ok(None) => break,
                Err(why) => {
                    end = Err(why);
                    unused = piece.len();
                    break 'over;
                }
            }
        }
        assert!(piece.is_empty(), "needs input and leaves input");
        assert!(decoder.wants() > 0, "needs input and wants none");
    }
    assert_eq!(decoder.in_flight(), judge.open.len());
    let unanswered: Vec<Cookie> = decoder.unanswered().map(|it| it.cookie).collect();
    assert!(unanswered.iter().eq(judge.open.keys()));
    let eof = decoder.on_eof();
    if let Err(why) = end {
        assert_eq!((decoder.wants(), eof), (0, Err(why)));
        let mut more = &b"more"[..];
        assert_eq!(decoder.next(&mut more), Err(why));
        assert_eq!(more.len(), 4);
        assert!(!why.to_string().is_empty());
    } else if eof.is_ok() {
        assert_eq!(decoder.in_flight(), 0);
    }
    let mut taken = bytes.len() - input.len() - unused;
    if let Err(Fatal::Reply { violation, .. }) = end
        && is_about_extents(violation)
    {
        // How many extents are looked at together, before the bad one, depends on the feed.
        judge.forget_status();
        taken = 0;
    }
    Run {
        events: judge.events,
        taken,
        in_flight: decoder.in_flight(),
        end,
        eof,
    }
}

const fn is_about_extents(violation: Violation) -> bool {
    matches!(
        violation,
        Violation::EmptyExtent
            | Violation::MoreThanOneExtent
            | Violation::ExtentBeyondRequest
            | Violation::ExtentBeyondExport
            | Violation::UnalignedExtent
    )
}

/// What is known of a request in flight, by its own book-keeping.
#[derive(Debug)]
struct Open {
    asked: Asked,
    again: u32,
    /// Disjoint ranges that came: beginning and length.
    came: BTreeMap<u64, u64>,
    /// For each context that came: its extents.
    status: BTreeMap<u32, Vec<Extent>>,
    failed: bool,
    /// Whether an error came that says nothing about where; and the offsets of the others.
    failed_at_all: bool,
    error_offsets: Vec<u64>,
    /// What a buffer is told: offset, length, what is left of the chunk.
    pieces: Vec<(u64, u64, u64)>,
}

/// Judges events one by one.
struct Judge {
    minimum: u64,
    style: ReplyStyle,
    open: BTreeMap<Cookie, Open>,
    events: Vec<Event>,
}

impl Judge {
    fn new(session: &Session) -> Self {
        Self {
            minimum: session.block_sizes().minimum().into(),
            style: session.reply_style(),
            open: BTreeMap::new(),
            events: Vec::new(),
        }
    }

    fn expect(&mut self, asked: Asked, again: u32) {
        let cookie = asked.request.cookie;
        let open = Open {
            asked,
            again,
            came: BTreeMap::new(),
            status: BTreeMap::new(),
            failed: false,
            failed_at_all: false,
            error_offsets: Vec::new(),
            pieces: Vec::new(),
        };
        let before = self.open.insert(cookie, open);
        assert!(before.is_none(), "two requests with one cookie");
    }

    fn of(&mut self, cookie: Cookie) -> &mut Open {
        self.open.get_mut(&cookie).expect("it is in flight")
    }

    /// `at` is how much of the input was taken. Returns a request that is to be sent again.
    fn event(&mut self, event: ReplyEvent<'_>, at: usize) -> Option<Asked> {
        match event {
            ReplyEvent::Data {
                cookie,
                offset,
                bytes,
                left,
            } => self.data(cookie, offset, bytes.len() as u64, left, at - bytes.len()),
            ReplyEvent::Hole {
                cookie,
                offset,
                length,
            } => {
                assert_ne!(self.style, ReplyStyle::Simple);
                let df = CommandFlags::DF;
                let open = self.of(cookie);
                assert!(open.came.is_empty() || !open.asked.request.flags.contains(df));
                open.cover(offset, length);
                open.pieces.push((offset, length, 0));
                self.events.push(Event::Hole {
                    cookie,
                    offset,
                    length,
                });
            }
            ReplyEvent::Status {
                cookie,
                context,
                offset,
                extents,
            } => self.status(cookie, context, offset, extents.collect()),
            ReplyEvent::Error {
                cookie,
                errno,
                offset,
                message,
            } => {
                assert_ne!(errno, Errno(0));
                assert!(message.len() <= 3 * MAX_ERROR_MESSAGE);
                let open = self.of(cookie);
                open.failed = true;
                open.failed_at_all |= offset.is_none();
                if let Some(offset) = offset {
                    assert!(open.has(offset, 1), "an error elsewhere");
                    open.error_offsets.push(offset);
                }
                self.events.push(Event::Error {
                    cookie,
                    errno,
                    offset,
                    message,
                });
            }
            ReplyEvent::Finished { cookie, result } => return self.finished(cookie, result),
            other => panic!("not known here: {other:?}"),
        }
        None
    }

    fn data(&mut self, cookie: Cookie, offset: u64, length: u64, left: u64, at: usize) {
        let open = self.of(cookie);
        open.pieces.push((offset, length, left));
        // Pieces of one chunk follow each other.
        let follows = open.came.is_empty() || open.came.iter().any(|(at, len)| at + len == offset);
        assert!(follows || !open.asked.request.flags.contains(CommandFlags::DF));
        open.cover(offset, length);
        if let Some(Event::Data {
            cookie: last_cookie,
            offset: last_offset,
            length: last_length,
            at: last_at,
        }) = self.events.last_mut()
            && *last_cookie == cookie
            && *last_offset + *last_length == offset
            && *last_at as u64 + *last_length == at as u64
        {
            *last_length += length;
            return;
        }
        self.events.push(Event::Data {
            cookie,
            offset,
            length,
            at,
        });
    }

    fn status(&mut self, cookie: Cookie, context: u32, offset: u64, mut extents: Vec<Extent>) {
        let minimum = self.minimum;
        assert!(!extents.is_empty());
        assert!(extents.iter().all(|extent| extent.length > 0));
        let open = self.of(cookie);
        assert!(open.asked.contexts.contains(&context), "was not asked for");
        assert_eq!(open.asked.request.kind, CommandType::BLOCK_STATUS);
        let before = open.status.entry(context).or_default();
        let mut end = before
            .iter()
            .fold(open.asked.request.offset, |at, it| at + it.length);
        assert_eq!(offset, end);
        for extent in &extents {
            end = end.checked_add(extent.length).expect("no overflow");
            assert!(end <= SIZE, "beyond the export");
            assert!(extent.length.is_multiple_of(minimum) || end == SIZE);
        }
        before.extend(&extents);
        match self.events.last_mut() {
            Some(Event::Status {
                cookie: last_cookie,
                context: last_context,
                extents: last,
            }) if (*last_cookie, *last_context) == (cookie, context) => last.append(&mut extents),
            _ => self.events.push(Event::Status {
                cookie,
                context,
                extents,
            }),
        }
    }

    fn finished(&mut self, cookie: Cookie, result: Result<(), Errno>) -> Option<Asked> {
        let open = self.open.remove(&cookie).expect("it is in flight");
        match result {
            Ok(()) => {
                assert!(!open.failed, "success after an error");
                open.check_complete();
            }
            Err(errno) => assert!(errno.name().is_some(), "an unknown error"),
        }
        open.check_buffer(result);
        self.events.push(Event::Finished { cookie, result });
        let again = open.asked.again && open.again > 0;
        again.then(|| {
            self.expect(open.asked.clone(), open.again - 1);
            open.asked
        })
    }

    fn forget_status(&mut self) {
        while matches!(self.events.last(), Some(Event::Status { .. })) {
            self.events.pop();
        }
    }
}

impl Open {
    /// How much of the export is asked about.
    fn effect_length(&self) -> u64 {
        match &self.asked.query {
            Some(payload) => StatusQuery::parse(payload)
                .expect("our own")
                .effect_length(),
            None => self.asked.request.length,
        }
    }

    /// A buffer comes to the same as the rule of the text, chunk by chunk.
    fn check_buffer(&self, result: Result<(), Errno>) {
        let request = self.asked.request;
        if request.kind != CommandType::READ || request.length > 1 << 16 {
            return;
        }
        let cookie = request.cookie;
        let mut memory = vec![1; request.length as usize];
        let mut buffer = ReadBuffer::new(&request, &mut memory).expect("its size");
        let mut expected = BTreeMap::new();
        for &(offset, length, left) in &self.pieces {
            let bytes = &vec![0; length as usize];
            assert!(buffer.take(&ReplyEvent::Data {
                cookie,
                offset,
                bytes,
                left,
            }));
            let end = offset + length + left;
            if !expected.values().any(|&other| other == end) {
                expected.insert(offset, end);
            }
        }
        let errors = self.error_offsets.iter().map(|&offset| Some(offset));
        for offset in errors.chain(self.failed_at_all.then_some(None)) {
            let (errno, message) = (Errno::EIO, String::new());
            assert!(buffer.take(&ReplyEvent::Error {
                cookie,
                errno,
                offset,
                message,
            }));
        }
        assert_eq!(buffer.good().count(), 0);
        assert!(buffer.take(&ReplyEvent::Finished { cookie, result }));
        let known = !self.failed_at_all;
        let expected = expected.into_iter().filter_map(|(start, end)| {
            let errors = self.error_offsets.iter().copied();
            let first = errors.filter(|at| (start..end).contains(at)).min();
            let end = first.unwrap_or(end);
            (known && start < end).then_some(start..end)
        });
        assert!(buffer.good().eq(expected));
        let good: u64 = buffer.good().map(|it| it.end - it.start).sum();
        if result.is_ok() {
            assert_eq!(good, request.length);
            assert!(memory.iter().all(|&byte| byte == 0));
        }
    }

    /// Whether this is a part of what was asked for.
    fn has(&self, offset: u64, length: u64) -> bool {
        let start = self.asked.request.offset;
        offset >= start && offset + length <= start + self.effect_length()
    }

    /// Content came for this range.
    fn cover(&mut self, offset: u64, length: u64) {
        assert_eq!(self.asked.request.kind, CommandType::READ);
        assert!(length > 0 && self.has(offset, length), "not asked for");
        if let Some((start, before)) = self.came.range_mut(..offset + length).next_back() {
            assert!(start + *before <= offset, "it came twice");
            if start + *before == offset {
                *before += length;
                return;
            }
        }
        self.came.insert(offset, length);
    }

    /// The reply was a success: nothing is missing.
    fn check_complete(&self) {
        let request = self.asked.request;
        if request.kind == CommandType::READ {
            // The ranges are disjoint and within the request.
            let sum: u64 = self.came.values().sum();
            assert_eq!(sum, request.length, "success without all of the data");
        }
        if request.kind == CommandType::BLOCK_STATUS {
            let contexts = &self.asked.contexts;
            assert!(!contexts.is_empty(), "success of nothing");
            assert!(self.status.keys().eq(contexts), "success without a context");
        }
        for extents in self.status.values() {
            if request.flags.contains(CommandFlags::REQ_ONE) {
                assert_eq!(extents.len(), 1);
                assert!(extents[0].length <= self.effect_length());
            } else if let Some((_, before)) = extents.split_last() {
                let sum: u64 = before
                    .iter()
                    .fold(0, |sum, it| sum.saturating_add(it.length));
                assert!(before.is_empty() || sum < self.effect_length());
            }
        }
    }
}
