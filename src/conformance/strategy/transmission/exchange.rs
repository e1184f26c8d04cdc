//! Requests of all kinds together with their answers.

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::{Part, content_at, encode_parts, errno, parts, request};
use crate::session::{ReplyStyle, Session};
use crate::transmission::{ReplyEncoder, StatusReply};
use crate::wire::{
    CommandFlags, CommandType, Cookie, Errno, Extent, Request, StatusQuery, TransmissionFlags,
};

/// How a request is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// As simply as possible: success, with all of the data or with one extent for each context.
    Plain,
    /// A failure with a message.
    Fail(Errno, String),
    /// A failure at an offset from that of the request, if that is legal; else one without offset.
    FailAt(u64, Errno, String),
    /// A read in parts.
    Parts(Vec<Part>),
    /// A block status with these extents of the backend for each context in turn; what the builder
    /// does not take becomes an `EIO`.
    Status(Vec<Vec<Extent>>),
}

/// A request, and how it is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// The request.
    pub request: Request,
    /// The payload of a block status request that names contexts; else empty.
    pub query: Vec<u8>,
    /// How it is answered.
    pub answer: Answer,
}

/// Valid: a block status request whose payload names some of the contexts of the session, and the
/// payload. For sessions with extended headers and `BLOCK_STATUS_PAYLOAD`.
pub fn status_query(session: &Session) -> impl Strategy<Value = (Request, Vec<u8>)> + use<> {
    let unit = u64::from(session.block_sizes().minimum());
    let blocks = session.size() / unit;
    let ids: Vec<u32> = session.contexts().iter().map(|it| it.id).collect();
    let range = (0..blocks.max(1), 1..=blocks.max(1));
    let ids = (Just(ids).prop_shuffle(), any::<prop::sample::Index>());
    (any::<u64>(), range, ids, any::<bool>()).prop_map(move |(cookie, range, ids, one)| {
        let (first, count) = range;
        let (mut ids, keep) = ids;
        ids.truncate(keep.index(ids.len().max(1)).saturating_add(1));
        let effect_length = count.min(blocks.saturating_sub(first)).saturating_mul(unit);
        let mut payload = vec![];
        StatusQuery::encode(effect_length, &ids, &mut payload);
        let mut request = Request::block_status(
            Cookie(cookie),
            first.saturating_mul(unit),
            payload.len() as u64,
        )
        .with_flags(CommandFlags::PAYLOAD_LEN);
        request.flags.set(CommandFlags::REQ_ONE, one);
        (request, payload)
    })
}

/// What a backend may say about a range: extents of any length and number, mostly whole blocks of
/// `unit` bytes; seldom none, empty ones, or ones that end between two blocks.
pub fn any_extents(unit: u64) -> impl Strategy<Value = Vec<Extent>> {
    let length = prop_oneof![
        30 => (1u64..20).prop_map(move |blocks| blocks.saturating_mul(unit)),
        2 => Just(1 << 40),
        1 => 0u64..2000,
    ];
    let extent = (length, 0u64..3).prop_map(|(length, flags)| Extent { length, flags });
    prop::collection::vec(extent, 0..40)
}

/// An answer to `request`, mostly a success.
pub fn answer(session: &Session, request: &Request) -> BoxedStrategy<Answer> {
    let unit = session.block_sizes().minimum().into();
    let failure = (errno(), ".{0,20}").prop_map(|(errno, text)| Answer::Fail(errno, text));
    let at = (0..request.length.max(1), errno(), ".{0,20}");
    let failure_at = at.prop_map(|(at, errno, text)| Answer::FailAt(at, errno, text));
    let chunked = session.reply_style() != ReplyStyle::Simple;
    let more = match request.kind {
        CommandType::READ if chunked => parts(request.offset, request.length)
            .prop_map(Answer::Parts)
            .boxed(),
        CommandType::BLOCK_STATUS => prop::collection::vec(any_extents(unit), 2)
            .prop_map(Answer::Status)
            .boxed(),
        _ => Just(Answer::Plain).boxed(),
    };
    prop_oneof![
        2 => Just(Answer::Plain),
        1 => failure,
        1 => failure_at,
        6 => more,
    ]
    .boxed()
}

/// Valid: a request that the session can execute, of any kind, and an answer.
pub fn exchange(session: &Session) -> impl Strategy<Value = Exchange> + use<> {
    let queries = session.reply_style() == ReplyStyle::Extended
        && !session.contexts().is_empty()
        && session
            .flags()
            .contains(TransmissionFlags::BLOCK_STATUS_PAYLOAD);
    let plain = request(session).prop_map(|request| (request, vec![]));
    let asked = if queries {
        prop_oneof![4 => plain, 1 => status_query(session)].boxed()
    } else {
        plain.boxed()
    };
    let session = session.clone();
    asked.prop_flat_map(move |(request, query)| {
        answer(&session, &request).prop_map(move |answer| Exchange {
            request,
            query: query.clone(),
            answer,
        })
    })
}

/// Encodes the answer, chunk by chunk, with data from [`content_at`]. Returns the chunks, and what
/// the client has to be told: success, or that it failed.
#[must_use]
pub fn encode_exchange(session: &Session, exchange: &Exchange) -> (Vec<Vec<u8>>, bool) {
    let encoder = ReplyEncoder::new(session);
    let request = &exchange.request;
    let mut wire = vec![];
    match &exchange.answer {
        Answer::Fail(errno, message) => encoder.error(request, *errno, message, &mut wire),
        Answer::FailAt(at, errno, message) => {
            let offset = request.offset.saturating_add(*at);
            let told = encoder.error_at(request, offset, *errno, message, &mut wire);
            if told.is_err() {
                encoder.error(request, *errno, message, &mut wire);
            }
        }
        Answer::Parts(parts) => {
            if let Ok(encoded) = encode_parts(session, request, parts) {
                return encoded;
            }
            wire.extend_from_slice(&encoder.fail(request, Errno::EIO));
        }
        Answer::Status(extents) => return encode_status(session, exchange, extents),
        Answer::Plain if request.kind == CommandType::BLOCK_STATUS => {
            return encode_status(session, exchange, &[]);
        }
        Answer::Plain => match encoder.read(request) {
            Ok(head) => {
                wire.extend_from_slice(&head);
                let end = request.end().unwrap_or(request.offset);
                wire.extend((request.offset..end).map(content_at));
                return (vec![wire], true);
            }
            Err(_) => {
                wire.extend_from_slice(&encoder.ok(request));
                return (vec![wire], true);
            }
        },
    }
    (vec![wire], false)
}

fn encode_status(
    session: &Session,
    exchange: &Exchange,
    extents: &[Vec<Extent>],
) -> (Vec<Vec<u8>>, bool) {
    let (encoder, request) = (ReplyEncoder::new(session), &exchange.request);
    let reply = match StatusQuery::parse(&exchange.query) {
        Ok(query) => StatusReply::for_query(session, request, &query),
        Err(_) => StatusReply::new(session, request),
    };
    let Ok(mut reply) = reply else {
        return (vec![encoder.fail(request, Errno::EINVAL).to_vec()], false);
    };
    let whole = vec![Extent {
        length: reply.effect_length(),
        flags: 0,
    }];
    let mut chunks = vec![];
    let mut from = extents.iter().cycle();
    while let Some(id) = reply.owed() {
        let mut wire = vec![];
        let extents = from.next().unwrap_or(&whole);
        let told = reply.context(id, extents.iter().copied(), &mut wire);
        let failed = told.is_err() && reply.error(Errno::EIO, "odd", &mut wire).is_ok();
        chunks.push(wire);
        if failed {
            return (chunks, false);
        }
    }
    (chunks, true)
}
