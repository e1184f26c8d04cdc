//! Hostile bytes for the server's decoder of requests.

use nbd_proto::limits::Limits;
use nbd_proto::session::{BlockSizes, MetaContext, ReplyStyle, Session};
use nbd_proto::transmission::client::ReplyEvent;
use nbd_proto::transmission::server::Fatal;
use nbd_proto::transmission::{
    Refusal, ReplyDecoder, ReplyEncoder, RequestDecoder, RequestEncoder, RequestEvent, StatusReply,
    Unsendable,
};
use nbd_proto::wire::{
    CommandFlags, CommandType, EXTENDED_REQUEST_MAGIC, Errno, Extent, Name, REQUEST_MAGIC, Request,
    StatusQuery, TransmissionFlags,
};

use crate::choices::{Choices, Feed, same_for_all_feeds};

/// Decodes whatever a client sends, however it comes; judges it; answers it.
///
/// The input is: style and consumption, limits, transmission flags (2), size (2), cuts (4), and
/// what the client sends.
pub fn request_decoder(data: &[u8]) {
    let mut choices = Choices::new(data);
    let how = choices.byte();
    let session = session(how, &mut choices);
    let limits = Limits::new().with_max_drain(choices.of(&[1 << 25, 4096, 0]));
    let direct = how & 0x40 != 0;
    let cuts = choices.cuts();
    let bytes = choices.rest();

    let run = same_for_all_feeds(cuts, |feed| Run::of(&session, &limits, bytes, feed, direct));
    assert_eq!(run, expected(&session, &limits, bytes), "by hand");
    for event in &run.events {
        if let Event::Request { request, payload } = event {
            check_verdict(&session, request);
            check_status_query(&session, request, payload);
            let is_status = request.kind == CommandType::BLOCK_STATUS
                && !request.flags.contains(CommandFlags::PAYLOAD_LEN);
            if is_status && session.check(request).is_ok() {
                check_status_answer(&session, request, None);
            }
            check_answers(&session, request);
            check_encoder(&session, request);
        }
    }
}

/// A session that `how` and the next choices stand for.
fn session(how: u8, choices: &mut Choices<'_>) -> Session {
    let style = style(how);
    let sizes = [(1, 4096, 1 << 25), (512, 512, 4096), (4096, 4096, u32::MAX)];
    let (minimum, preferred, max_payload) = sizes[usize::from(how >> 2) % 3];
    let sizes = BlockSizes::new(minimum, preferred, max_payload).expect("legal");
    let contexts = (0..u32::from(how >> 4) % 4).map(|id| MetaContext {
        id: id * 3,
        name: Name::new(format!("x:{id}")).expect("a name"),
    });
    let flags = TransmissionFlags::from_bits_retain(choices.u16());
    let size = u64::from(choices.u16()) * u64::from(choices.of(&[512u32, 4096, 1, u32::MAX]));
    Session::new(Name::EMPTY, size, flags)
        .with_reply_style(style)
        .with_block_sizes(sizes)
        .with_contexts(contexts.collect())
}

pub fn style(how: u8) -> ReplyStyle {
    match how % 4 {
        0 => ReplyStyle::Simple,
        1 | 2 => ReplyStyle::Structured,
        _ => ReplyStyle::Extended,
    }
}

#[derive(Debug, PartialEq)]
enum Event {
    Request {
        request: Request,
        /// What was taken of its payload; nothing if it was refused.
        payload: Vec<u8>,
    },
    Disconnect,
}

#[derive(Debug, PartialEq)]
struct Run {
    events: Vec<Event>,
    /// Bytes of the input that were taken.
    taken: usize,
    payload_left: u64,
    end: Result<(), Fatal>,
    eof: Result<(), Fatal>,
}

impl Run {
    /// Feeds a decoder until it is over, or there are no more bytes. Payload of refused requests
    /// is skipped; other payload is lent, or read past the decoder.
    fn of(session: &Session, limits: &Limits, bytes: &[u8], feed: Feed, direct: bool) -> Self {
        let mut decoder = RequestDecoder::new(session, limits);
        let mut events = Vec::new();
        let mut end = Ok(());
        let (mut input, mut turn) = (bytes, 0);
        let mut unused = 0;
        'over: loop {
            let mut piece = feed.next(&mut input, decoder.wants(), turn);
            turn += 1;
            if piece.is_empty() {
                break;
            }
            loop {
                match decoder.next(&mut piece) {
                    Ok(Some(RequestEvent::Request(request))) => {
                        let refused = session.check(&request).is_err();
                        if refused {
                            decoder.skip_payload();
                        }
                        events.push(Event::Request {
                            request,
                            payload: Vec::new(),
                        });
                        if direct && !refused {
                            let len = piece.len().min(clamp(decoder.payload_left()));
                            take(&mut events, &piece[..len]);
                            piece = &piece[len..];
                            decoder.payload_read(len as u64);
                        }
                    }
                    Ok(Some(RequestEvent::Payload(lent))) => {
                        assert!(!lent.is_empty());
                        take(&mut events, lent);
                    }
                    Ok(Some(RequestEvent::Disconnect)) => events.push(Event::Disconnect),
                    Ok(None) => break,
                    Err(why) => {
                        end = Err(why);
                        unused = piece.len();
                        break 'over;
                    }
                }
            }
            if matches!(events.last(), Some(Event::Disconnect)) {
                unused = piece.len();
                break;
            }
            assert!(piece.is_empty(), "needs input and leaves input");
            assert!(decoder.wants() > 0, "needs input and wants none");
        }
        let over = end.is_err() || matches!(events.last(), Some(Event::Disconnect));
        if over {
            assert_eq!(decoder.wants(), 0);
            let mut more = &b"more"[..];
            assert_eq!(decoder.next(&mut more), end.map(|()| None));
            assert_eq!(more.len(), 4);
        }
        Self {
            events,
            taken: bytes.len() - input.len() - unused,
            payload_left: decoder.payload_left(),
            end,
            eof: decoder.on_eof(),
        }
    }
}

fn take(events: &mut [Event], bytes: &[u8]) {
    match events.last_mut() {
        Some(Event::Request { payload, .. }) => payload.extend_from_slice(bytes),
        _ => assert!(bytes.is_empty(), "payload of no request"),
    }
}

fn clamp(len: u64) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}

/// What the run has to be, worked out on the whole input, field by field.
fn expected(session: &Session, limits: &Limits, bytes: &[u8]) -> Run {
    let extended = session.reply_style() == ReplyStyle::Extended;
    let largest = session.block_sizes().max_payload().max(limits.max_drain());
    let mut run = Run {
        events: Vec::new(),
        taken: bytes.len(),
        payload_left: 0,
        end: Ok(()),
        eof: Ok(()),
    };
    let mut at = 0;
    loop {
        let len = if extended { 32 } else { 28 };
        let Some(header) = bytes.get(at..at + len) else {
            if at < bytes.len() {
                run.eof = Err(Fatal::Eof);
            }
            return run;
        };
        at += len;
        let decoded = if extended {
            Request::from_extended(header.try_into().expect("32 bytes"))
        } else {
            Request::from_compact(header.try_into().expect("28 bytes"))
        };
        let request = match decoded {
            Ok(request) => request,
            Err(why) => {
                let magic = if extended {
                    EXTENDED_REQUEST_MAGIC
                } else {
                    REQUEST_MAGIC
                };
                assert_ne!(header[..4], magic.to_be_bytes());
                run.taken = at;
                run.end = Err(why.into());
                run.eof = run.end;
                return run;
            }
        };
        if request.kind == CommandType::DISC {
            run.events.push(Event::Disconnect);
            run.taken = at;
            return run;
        }
        let flagged = extended && request.flags.contains(CommandFlags::PAYLOAD_LEN);
        let mut length = 0;
        if request.kind == CommandType::WRITE || flagged {
            length = request.length;
        }
        if length > largest.into() {
            run.taken = at;
            run.end = Err(Fatal::PayloadTooLarge {
                cookie: request.cookie,
                length,
                limit: largest.into(),
            });
            run.eof = run.end;
            return run;
        }
        let here = clamp(length).min(bytes.len() - at);
        let payload = match session.check(&request) {
            Ok(()) => bytes[at..at + here].to_vec(),
            Err(_) => Vec::new(),
        };
        run.events.push(Event::Request { request, payload });
        at += here;
        if (here as u64) < length {
            run.payload_left = length - here as u64;
            run.eof = Err(Fatal::Eof);
            return run;
        }
    }
}

/// What must hold of whatever is to be executed.
fn check_verdict(session: &Session, request: &Request) {
    let verdict = session.check(request);
    if let Err(why) = verdict {
        assert!(why.errno().name().is_some());
        assert!(!why.to_string().is_empty());
        if why == Refusal::ReadOnly {
            assert_eq!(why.errno(), Errno::EPERM);
        }
        return;
    }
    let flags = session.flags();
    let needs = match request.kind {
        CommandType::READ | CommandType::WRITE | CommandType::BLOCK_STATUS => {
            TransmissionFlags::empty()
        }
        CommandType::FLUSH => TransmissionFlags::SEND_FLUSH,
        CommandType::TRIM => TransmissionFlags::SEND_TRIM,
        CommandType::CACHE => TransmissionFlags::SEND_CACHE,
        CommandType::WRITE_ZEROES => TransmissionFlags::SEND_WRITE_ZEROES,
        kind => panic!("{kind} is to be executed"),
    };
    assert!(flags.contains(needs), "was not advertised");
    if request.kind.is_modification() {
        assert!(!flags.contains(TransmissionFlags::READ_ONLY));
    }
    if request.flags.contains(CommandFlags::FUA) {
        assert!(flags.contains(TransmissionFlags::SEND_FUA));
    }
    if request.kind == CommandType::FLUSH {
        assert_eq!((request.offset, request.length), (0, 0));
    }
    let status_payload = request.kind == CommandType::BLOCK_STATUS
        && request.flags.contains(CommandFlags::PAYLOAD_LEN);
    if status_payload {
        let most = StatusQuery::len_for(session.contexts().len() as u32);
        assert!(request.length <= most);
        return;
    }
    assert!(request.end().expect("no overflow") <= session.size());
    let minimum = u64::from(session.block_sizes().minimum());
    assert_eq!((request.offset % minimum, request.length % minimum), (0, 0));
    if matches!(request.kind, CommandType::READ | CommandType::WRITE) {
        assert!(request.length <= session.block_sizes().max_payload().into());
    }
}

/// A block status payload that was let through has the form of one.
fn check_status_query(session: &Session, request: &Request, payload: &[u8]) {
    let accepted = session.check(request).is_ok();
    let is_query = request.kind == CommandType::BLOCK_STATUS
        && request.flags.contains(CommandFlags::PAYLOAD_LEN);
    if !accepted || !is_query || (payload.len() as u64) < request.length {
        return;
    }
    let query = StatusQuery::parse(payload).expect("its length was checked");
    let checked = session.check_status_payload(request, payload);
    assert_eq!(
        checked.map(|_| ()),
        session.check_status(request, &query),
        "both look at the same"
    );
    let reply = StatusReply::for_query(session, request, &query);
    assert_eq!(reply.is_ok(), checked.is_ok());
    if checked.is_err() {
        return;
    }
    check_status_answer(session, request, Some(&query));
    let mut ids: Vec<u32> = query.ids().collect();
    let all = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), all);
    assert!(
        ids.iter()
            .all(|&id| session.contexts().iter().any(|it| it.id == id))
    );
    let end = request.offset.checked_add(query.effect_length());
    assert!(end.expect("no overflow") <= session.size());
}

/// Status that our server tells is taken by our client, whatever the backend says. What it says is
/// made of the request.
fn check_status_answer(session: &Session, request: &Request, query: Option<&StatusQuery<'_>>) {
    let mut client = ReplyDecoder::new(session, &Limits::new(), 1);
    let (reply, expected) = match query {
        Some(query) => (
            StatusReply::for_query(session, request, query),
            client.expect_status(request, query),
        ),
        None => (StatusReply::new(session, request), client.expect(request)),
    };
    expected.expect("what is executed is waited for");
    let mut reply = reply.expect("it is not to be refused");
    let mut wire = Vec::new();
    let mut turns = request.cookie.0;
    while let Some(id) = reply.owed() {
        let minimum = u64::from(session.block_sizes().minimum());
        let extents = (0..20).map(|_| {
            turns = turns.rotate_left(7).wrapping_add(id.into());
            Extent {
                length: (turns % 64 + 1) * minimum + u64::from(turns.is_multiple_of(61)),
                flags: turns >> 8 & 1,
            }
        });
        if reply.context(id, extents, &mut wire).is_err() {
            reply
                .error(Errno::EIO, "odd", &mut wire)
                .expect("not ended");
        }
    }
    let mut input = &wire[..];
    let mut finished = false;
    while let Some(event) = client.next(&mut input).expect("a legal reply") {
        finished = matches!(event, ReplyEvent::Finished { .. });
    }
    assert!(finished && input.is_empty());
}

/// A client that waits for the answer takes both kinds, and takes them for what they are.
fn check_answers(session: &Session, request: &Request) {
    let encoder = ReplyEncoder::new(session);
    let errno = match session.check(request) {
        Ok(()) => Errno::EIO,
        Err(why) => why.errno(),
    };
    let finished = |reply: &[u8]| {
        let mut client = ReplyDecoder::new(session, &Limits::new(), 1);
        client.expect(request).ok()?;
        let mut reply = reply;
        let mut last = None;
        while let Some(event) = client.next(&mut reply).expect("a legal reply") {
            last = match event {
                ReplyEvent::Finished { cookie, result } => {
                    assert_eq!(cookie, request.cookie);
                    Some(result)
                }
                ReplyEvent::Error { .. } => None,
                other => panic!("not in a reply without payload: {other:?}"),
            };
        }
        assert!(reply.is_empty());
        Some(last.expect("the reply ends"))
    };
    if let Some(result) = finished(&encoder.fail(request, errno)) {
        assert_eq!(result, Err(errno));
    }
    let mut out = Vec::new();
    encoder.error(request, errno, "for a reason", &mut out);
    if let Some(result) = finished(&out) {
        assert_eq!(result, Err(errno));
    }
    let needs_payload = match request.kind {
        CommandType::READ => request.length > 0,
        CommandType::BLOCK_STATUS => true,
        _ => false,
    };
    if let Some(result) = finished(&encoder.ok(request)) {
        let expected = if needs_payload {
            Err(Errno::EIO)
        } else {
            Ok(())
        };
        assert_eq!(result, expected);
    }
}

/// Our client sends what our server takes, and nothing else.
fn check_encoder(session: &Session, request: &Request) {
    let extended = session.reply_style() == ReplyStyle::Extended;
    let mut wanted = *request;
    if extended && request.kind == CommandType::WRITE {
        wanted.flags |= CommandFlags::PAYLOAD_LEN;
    }
    match RequestEncoder::new(session).encode(request) {
        Ok(head) => {
            assert_eq!(session.check(&wanted), Ok(()));
            if extended {
                assert_eq!(*head, wanted.to_extended());
            } else {
                assert_eq!(*head, request.to_compact().expect("32 bits"));
            }
        }
        Err(Unsendable::Refused(why)) => assert_eq!(session.check(&wanted), Err(why)),
        Err(Unsendable::Empty) => assert_eq!(request.length, 0),
        Err(why) => panic!("{why} cannot come from a client"),
    }
}
