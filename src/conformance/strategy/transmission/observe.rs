//! Observers: what a decoder makes of its input, the same however the input is cut.

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use super::Exchange;
use crate::limits::Limits;
use crate::session::Session;
use crate::transmission::{ReplyDecoder, ReplyEvent, RequestDecoder, RequestEvent, client, server};
use crate::wire::{Cookie, Errno, Extent, Request, StatusQuery};

/// What a decoder made of its input, the same however the input was cut.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen<E, F> {
    /// The events; payload that came in pieces is put together.
    pub events: Vec<E>,
    /// How many bytes of the input were taken.
    pub taken: usize,
    /// How it ended: the error, or what the decoder says of an end of the stream here.
    pub end: Result<(), F>,
}

/// A [`RequestEvent`] with its own payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SeenRequest {
    /// A request.
    Request(Request),
    /// The payload of the last request, or as much as came of it.
    Payload(Vec<u8>),
    /// A disconnect.
    Disconnect,
}

/// Feeds a [`RequestDecoder`] with `wire`, cut at `cuts` (ascending).
#[must_use]
pub fn observe_requests(
    session: &Session,
    limits: &Limits,
    wire: &[u8],
    cuts: &[usize],
) -> Seen<SeenRequest, server::Fatal> {
    let mut decoder = RequestDecoder::new(session, limits);
    let mut events = vec![];
    let (taken, failed) = feed(wire, cuts, |input| {
        let event = decoder.next(input)?;
        let more = event.is_some();
        match event {
            Some(RequestEvent::Request(request)) => events.push(SeenRequest::Request(request)),
            Some(RequestEvent::Disconnect) => events.push(SeenRequest::Disconnect),
            Some(RequestEvent::Payload(bytes)) => match events.last_mut() {
                Some(SeenRequest::Payload(earlier)) => earlier.extend_from_slice(bytes),
                _ => events.push(SeenRequest::Payload(bytes.to_vec())),
            },
            None => {}
        }
        Ok(more)
    });
    let end = failed.and_then(|()| decoder.on_eof());
    Seen { events, taken, end }
}

/// A [`ReplyEvent`] with its own data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SeenReply {
    /// Data that came for an offset: one chunk, or as much as came of it.
    Data(Cookie, u64, Vec<u8>),
    /// A hole.
    Hole(Cookie, Range<u64>),
    /// The status of a context.
    Status(Cookie, u32, Vec<Extent>),
    /// An error, its offset and message.
    Error(Cookie, Errno, Option<u64>, String),
    /// The end of a reply.
    Finished(Cookie, Result<(), Errno>),
}

/// Feeds a [`ReplyDecoder`] that expects `requests` with `wire`, cut at `cuts` (ascending).
#[must_use]
pub fn observe_replies(
    session: &Session,
    limits: &Limits,
    requests: &[Request],
    wire: &[u8],
    cuts: &[usize],
) -> Seen<SeenReply, client::Fatal> {
    let mut decoder = ReplyDecoder::new(session, limits, requests.len());
    for request in requests {
        // What cannot be expected is not in flight; the decoder will say so.
        let _ = decoder.expect(request);
    }
    observe(decoder, wire, cuts)
}

/// Feeds a [`ReplyDecoder`] that expects the answers to `exchanges` with `wire`, cut at `cuts`
/// (ascending).
#[must_use]
pub fn observe_exchanges(
    session: &Session,
    limits: &Limits,
    exchanges: &[Exchange],
    wire: &[u8],
    cuts: &[usize],
) -> Seen<SeenReply, client::Fatal> {
    let mut decoder = ReplyDecoder::new(session, limits, exchanges.len());
    for exchange in exchanges {
        // What cannot be expected is not in flight; the decoder will say so.
        let _ = match StatusQuery::parse(&exchange.query) {
            Ok(query) => decoder.expect_status(&exchange.request, &query),
            Err(_) => decoder.expect(&exchange.request),
        };
    }
    observe(decoder, wire, cuts)
}

fn observe(
    mut decoder: ReplyDecoder,
    wire: &[u8],
    cuts: &[usize],
) -> Seen<SeenReply, client::Fatal> {
    let mut events = vec![];
    let mut unfinished = false;
    let (taken, failed) = feed(wire, cuts, |input| {
        let event = decoder.next(input)?;
        let more = event.is_some();
        if let Some(event) = event {
            let goes_on = matches!(event, ReplyEvent::Data { left, .. } if left > 0);
            see(event, unfinished, &mut events);
            unfinished = goes_on;
        }
        Ok(more)
    });
    let end = failed.and_then(|()| decoder.on_eof());
    Seen { events, taken, end }
}

/// Adds an event; data after an `unfinished` chunk is the rest of it.
fn see(event: ReplyEvent<'_>, unfinished: bool, events: &mut Vec<SeenReply>) {
    let new = match event {
        ReplyEvent::Data {
            cookie,
            offset,
            bytes,
            ..
        } => {
            if let Some(SeenReply::Data(_, _, earlier)) = events.last_mut()
                && unfinished
            {
                earlier.extend_from_slice(bytes);
                return;
            }
            SeenReply::Data(cookie, offset, bytes.to_vec())
        }
        ReplyEvent::Hole {
            cookie,
            offset,
            length,
        } => SeenReply::Hole(cookie, offset..offset.saturating_add(length)),
        ReplyEvent::Status {
            cookie,
            context,
            extents,
            ..
        } => {
            if let Some(SeenReply::Status(same, id, earlier)) = events.last_mut()
                && (*same, *id) == (cookie, context)
            {
                earlier.extend(extents);
                return;
            }
            SeenReply::Status(cookie, context, extents.collect())
        }
        ReplyEvent::Error {
            cookie,
            errno,
            offset,
            message,
        } => SeenReply::Error(cookie, errno, offset, message),
        ReplyEvent::Finished { cookie, result } => SeenReply::Finished(cookie, result),
    };
    events.push(new);
}

/// Calls `next` with ever more of `wire` until it wants more than there is, or fails. Returns how
/// much was taken.
fn feed<'w, F>(
    wire: &'w [u8],
    cuts: &[usize],
    mut next: impl FnMut(&mut &'w [u8]) -> Result<bool, F>,
) -> (usize, Result<(), F>) {
    let mut taken = 0;
    for &cut in cuts.iter().chain([&wire.len()]) {
        let Some(mut input) = wire.get(taken..cut) else {
            continue;
        };
        loop {
            let before = input.len();
            let result = next(&mut input);
            taken += before - input.len();
            match result {
                Ok(true) => {}
                Ok(false) => break,
                Err(why) => return (taken, Err(why)),
            }
        }
    }
    (taken, Ok(()))
}
