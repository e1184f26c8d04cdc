//! Both sides against each other, and both against a judge: a second statement of the rules for
//! replies, which looks at the whole stream at once and shares no code with the decoder.

#[path = "transmission_judge/judge.rs"]
mod judge;

use judge::{Verdict, judge};
use nbd_proto::conformance::strategy::transmission::{
    Answer, Exchange, SeenReply, SeenRequest, content_at, cuts, encode_exchange, exchange, mutated,
    observe_exchanges, observe_requests, session,
};
use nbd_proto::limits::Limits;
use nbd_proto::session::{ReplyStyle, Session};
use nbd_proto::transmission::StatusReply;
use nbd_proto::wire::{CommandFlags, CommandType, Cookie, Errno, Extent, Request, StatusQuery};
use proptest::prelude::*;

const LIMITS: Limits = Limits::new();

/// Requests with distinct cookies.
fn exchanges() -> impl Strategy<Value = (Session, Vec<Exchange>)> {
    session().prop_flat_map(|session| {
        let exchanges = prop::collection::vec(exchange(&session), 1..5).prop_map(|exchanges| {
            let mut distinct: Vec<Exchange> = vec![];
            for exchange in exchanges {
                let cookie = exchange.request.cookie;
                if distinct.iter().all(|it| it.request.cookie != cookie) {
                    distinct.push(exchange);
                }
            }
            distinct
        });
        (Just(session), exchanges)
    })
}

/// The chunks of all answers, those of one between those of another.
fn chunks(session: &Session, exchanges: &[Exchange]) -> (Vec<Vec<u8>>, Vec<bool>) {
    let encoded = exchanges.iter().map(|it| encode_exchange(session, it));
    let (queues, meant): (Vec<_>, Vec<_>) = encoded.unzip();
    let mut queues: Vec<_> = queues.into_iter().map(Vec::into_iter).collect();
    let mut sent = vec![];
    loop {
        let round: Vec<Vec<u8>> = queues.iter_mut().filter_map(Iterator::next).collect();
        if round.is_empty() {
            return (sent, meant);
        }
        sent.extend(round.into_iter().filter(|chunk| !chunk.is_empty()));
    }
}

/// What the status of each context has to be, if the builder takes the extents.
fn statuses(session: &Session, exchange: &Exchange) -> Option<Vec<(u32, Vec<Extent>)>> {
    let Answer::Status(extents) = &exchange.answer else {
        return None;
    };
    let request = &exchange.request;
    let query = StatusQuery::parse(&exchange.query);
    let reply = match &query {
        Ok(query) => StatusReply::for_query(session, request, query),
        Err(_) => StatusReply::new(session, request),
    };
    let ids: Vec<u32> = match query {
        Ok(query) => query.ids().collect(),
        Err(_) => session.contexts().iter().map(|it| it.id).collect(),
    };
    let wanted = reply.unwrap().effect_length();
    let backend = ids.into_iter().zip(extents.iter().cycle());
    Some(
        backend
            .map(|(id, extents)| (id, told(session, request, wanted, extents)))
            .collect(),
    )
}

/// The extents that the text wants for those of the backend, block by block.
fn told(session: &Session, request: &Request, wanted: u64, backend: &[Extent]) -> Vec<Extent> {
    let one = request.flags.contains(CommandFlags::REQ_ONE);
    let limit = if one {
        wanted
    } else {
        session.size() - request.offset
    };
    let mut out: Vec<Extent> = vec![];
    let mut at = 0;
    for it in backend {
        if at >= wanted {
            break;
        }
        let length = it.length.min(limit - at);
        at += length;
        match out.last_mut() {
            Some(last) if last.flags == it.flags => last.length += length,
            Some(_) if one => break,
            _ => out.push(Extent {
                length,
                flags: it.flags,
            }),
        }
    }
    if let Some(last) = out.last_mut() {
        last.length -= last.length % u64::from(session.block_sizes().minimum());
    }
    out
}

proptest! {
    #[test]
    fn whatever_our_server_says_our_client_takes_and_reports_as_it_was_meant(
        (session, exchanges) in exchanges(),
    ) {
        let (chunks, meant) = chunks(&session, &exchanges);
        let wire = chunks.concat();
        let seen = observe_exchanges(&session, &LIMITS, &exchanges, &wire, &[]);
        prop_assert_eq!(seen.end, Ok(()));
        prop_assert_eq!(seen.taken, wire.len());
        for (exchange, success) in exchanges.iter().zip(meant) {
            let Request { cookie, offset, length, kind, .. } = exchange.request;
            let finished: Vec<_> = seen.events.iter().filter_map(|event| match event {
                SeenReply::Finished(of, result) if *of == cookie => Some(*result),
                _ => None,
            }).collect();
            prop_assert_eq!(finished.len(), 1);
            prop_assert_eq!(finished[0].is_ok(), success);
            if let (Answer::Fail(errno, _), Err(came)) = (&exchange.answer, finished[0]) {
                prop_assert!(came == *errno || came == Errno::EINVAL);
            }
            let mut came = 0;
            for event in &seen.events {
                match event {
                    SeenReply::Data(of, at, bytes) if *of == cookie => {
                        prop_assert!(bytes.iter().copied().eq((*at..).map(content_at).take(bytes.len())));
                        came += bytes.len() as u64;
                    }
                    SeenReply::Hole(of, range) if *of == cookie => {
                        prop_assert!(range.start >= offset && range.end <= offset + length);
                        came += range.end - range.start;
                    }
                    _ => {}
                }
            }
            if kind == CommandType::READ && success {
                prop_assert_eq!(came, length);
            }
            if let Some(expected) = statuses(&session, exchange) && success {
                let told: Vec<_> = seen.events.iter().filter_map(|event| match event {
                    SeenReply::Status(of, id, extents) if *of == cookie => {
                        Some((*id, extents.clone()))
                    }
                    _ => None,
                }).collect();
                prop_assert_eq!(told, expected);
            }
        }
        prop_assert_eq!(judge(&session, &exchanges, &wire), Verdict::Legal(results(&seen.events)));
    }

    #[test]
    fn answers_are_the_same_however_they_are_cut(
        ((session, exchanges), wire, cuts, trailing) in exchanges().prop_flat_map(|(session, exchanges)| {
            let wire = chunks(&session, &exchanges).0.concat();
            let cuts = cuts(wire.len() + 3);
            let trailing = prop::collection::vec(any::<u8>(), 0..3);
            (Just((session, exchanges)), Just(wire), cuts, trailing)
        }),
    ) {
        let len = wire.len();
        let mut wire = wire;
        wire.extend(trailing);
        let all: Vec<usize> = (0..wire.len()).collect();
        let whole = observe_exchanges(&session, &LIMITS, &exchanges, &wire, &[]);
        prop_assert_eq!(&whole, &observe_exchanges(&session, &LIMITS, &exchanges, &wire, &cuts));
        prop_assert_eq!(&whole, &observe_exchanges(&session, &LIMITS, &exchanges, &wire, &all));
        // Less than a header is kept for later, and no event comes of it.
        let exact = observe_exchanges(&session, &LIMITS, &exchanges, &wire[..len], &[]);
        prop_assert_eq!(whole.events, exact.events);
    }

    #[test]
    fn requests_and_their_payloads_are_the_same_however_they_are_cut(
        ((session, exchanges), wire, cuts) in exchanges().prop_flat_map(|(session, exchanges)| {
            let wire = request_stream(&session, &exchanges);
            let cuts = cuts(wire.len());
            (Just((session, exchanges)), Just(wire), cuts)
        }),
    ) {
        let whole = observe_requests(&session, &LIMITS, &wire, &[]);
        prop_assert_eq!(&whole, &observe_requests(&session, &LIMITS, &wire, &cuts));
        let mut expected = vec![];
        for Exchange { request, query, .. } in &exchanges {
            expected.push(SeenRequest::Request(*request));
            if request.kind == CommandType::WRITE {
                let payload = (0..request.length).map(content_at).collect();
                expected.push(SeenRequest::Payload(payload));
            } else if !query.is_empty() {
                prop_assert!(session.check_status_payload(request, query).is_ok());
                expected.push(SeenRequest::Payload(query.clone()));
            }
            prop_assert_eq!(session.check(request), Ok(()));
        }
        prop_assert_eq!(whole.events, expected);
    }

    #[test]
    fn what_is_corrupted_in_one_field_is_refused_or_is_legal(
        (session, exchanges) in exchanges(),
        which: prop::sample::Index,
        field in 0usize..12,
        value in prop_oneof![
            prop::sample::select(vec![
                0, 1, 2, 5, 6, 7, 8, 9, 12, 13, 14, 511, 512, 513, 1024, 8192, 0x8001, 0x8002,
                0x8003, 1 << 16, u64::from(u32::MAX), 1 << 32, 1 << 40, u64::MAX,
            ]),
            any::<u64>(),
        ],
        relative in prop::option::of(-600i64..600),
    ) {
        let (mut chunks, _) = chunks(&session, &exchanges);
        let at = which.index(chunks.len());
        change(&mut chunks[at], field, value, relative);
        agree(&session, &exchanges, &chunks.concat())?;
    }

    #[test]
    fn what_is_damaged_anywhere_is_refused_or_is_legal(
        ((session, exchanges), wire) in exchanges().prop_flat_map(|(session, exchanges)| {
            let wire = chunks(&session, &exchanges).0.concat();
            (Just((session, exchanges)), mutated(wire))
        }),
    ) {
        agree(&session, &exchanges, &wire)?;
    }

    #[test]
    fn chunks_left_out_repeated_or_exchanged_are_refused_or_legal(
        (session, exchanges) in exchanges(),
        changes in prop::collection::vec((0u8..4, any::<[prop::sample::Index; 2]>()), 1..4),
    ) {
        let (mut chunks, _) = chunks(&session, &exchanges);
        for (how, [a, b]) in changes {
            if chunks.is_empty() {
                break;
            }
            let (a, b) = (a.index(chunks.len()), b.index(chunks.len()));
            match how {
                0 => drop(chunks.remove(a)),
                1 => chunks.insert(b, chunks[a].clone()),
                2 => chunks.truncate(a),
                _ => chunks.swap(a, b),
            }
        }
        agree(&session, &exchanges, &chunks.concat())?;
    }
}

fn results(events: &[SeenReply]) -> Vec<(Cookie, Result<(), Errno>)> {
    let finished = events.iter().filter_map(|event| match event {
        SeenReply::Finished(cookie, result) => Some((*cookie, *result)),
        _ => None,
    });
    finished.collect()
}

/// The decoder takes exactly what the judge takes, and comes to the same results.
fn agree(session: &Session, exchanges: &[Exchange], wire: &[u8]) -> Result<(), TestCaseError> {
    let seen = observe_exchanges(session, &LIMITS, exchanges, wire, &[]);
    let verdict = judge(session, exchanges, wire);
    match (&seen.end, &verdict) {
        (Ok(()), Verdict::Legal(expected)) => {
            prop_assert_eq!(&results(&seen.events), expected);
        }
        (Err(_), Verdict::Illegal { before, why }) => {
            prop_assert_eq!(&results(&seen.events), before, "{}", why);
        }
        _ => prop_assert!(false, "{:?}, but the judge: {verdict:?}", seen.end),
    }
    Ok(())
}

/// Changes a field of a chunk: of its header, or the first ones of its payload.
fn change(chunk: &mut [u8], field: usize, value: u64, relative: Option<i64>) {
    let fields: &[(usize, usize)] = match chunk[..4] {
        [0x67, ..] => &[(0, 4), (4, 4), (8, 8)],
        [0x66, ..] => &[
            (0, 4),
            (4, 2),
            (6, 2),
            (8, 8),
            (16, 4),
            (20, 4),
            (20, 8),
            (24, 2),
            (24, 4),
            (28, 4),
            (32, 4),
            (36, 4),
        ],
        _ => &[
            (0, 4),
            (4, 2),
            (6, 2),
            (8, 8),
            (16, 8),
            (24, 8),
            (32, 4),
            (32, 8),
            (36, 2),
            (36, 4),
            (40, 8),
            (56, 8),
        ],
    };
    let (at, len) = fields[field % fields.len()];
    let Some(place) = chunk.get_mut(at..at + len) else {
        return;
    };
    let old = place
        .iter()
        .fold(0, |n: u64, &byte| n << 8 | u64::from(byte));
    let new = relative.map_or(value, |by| old.wrapping_add_signed(by));
    place.copy_from_slice(&new.to_be_bytes()[8 - len..]);
}

fn request_stream(session: &Session, exchanges: &[Exchange]) -> Vec<u8> {
    let mut wire = vec![];
    for Exchange { request, query, .. } in exchanges {
        if session.reply_style() == ReplyStyle::Extended {
            wire.extend(request.to_extended());
        } else {
            wire.extend(request.to_compact().unwrap());
        }
        if request.kind == CommandType::WRITE {
            wire.extend((0..request.length).map(content_at));
        }
        wire.extend(query);
    }
    wire
}
