//! Properties of the decoders and encoders together.

use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use super::*;
use crate::conformance::strategy::transmission::*;
use crate::limits::Limits;
use crate::session::{ReplyStyle, Session};
use crate::wire::*;

const LIMITS: Limits = Limits::new().with_max_drain(1 << 16);

fn header(session: &Session, request: &Request) -> Vec<u8> {
    match session.reply_style() {
        ReplyStyle::Extended => request.to_extended().to_vec(),
        _ => Request {
            length: request.length & 0xffff_ffff,
            ..*request
        }
        .to_compact()
        .unwrap()
        .to_vec(),
    }
}

/// Requests as bytes, each with as much payload as belongs to it, if that is not absurd.
fn request_stream(session: &Session, requests: &[Request]) -> Vec<u8> {
    let mut wire = vec![];
    for request in requests {
        wire.extend(header(session, request));
        let flagged = request.flags.contains(CommandFlags::PAYLOAD_LEN);
        let extended = session.reply_style() == ReplyStyle::Extended;
        let has_payload = request.kind == CommandType::WRITE || (extended && flagged);
        if has_payload {
            wire.extend((0..request.length.min(1 << 14)).map(content_at));
        }
    }
    wire
}

/// A session, reads of it, and for each a reply.
fn reads() -> impl Strategy<Value = (Session, Vec<(Request, Vec<Part>)>)> {
    session().prop_flat_map(|session| {
        let read = request(&session)
            .prop_filter("a read", |request| request.kind == CommandType::READ)
            .prop_flat_map(|r| (Just(r), parts(r.offset, r.length)));
        (Just(session), prop::collection::vec(read, 1..4))
    })
}

/// The replies of a server to reads, chunks of one between those of another; and which succeed.
fn reply_stream(
    session: &Session,
    reads: &[(Request, Vec<Part>)],
) -> (Vec<u8>, Vec<(Request, bool)>) {
    let (chunks, outcome) = reply_chunks(session, reads);
    (chunks.concat(), outcome)
}

fn reply_chunks(
    session: &Session,
    reads: &[(Request, Vec<Part>)],
) -> (Vec<Vec<u8>>, Vec<(Request, bool)>) {
    let encoder = ReplyEncoder::new(session);
    let mut queues = vec![];
    let mut outcome: Vec<(Request, bool)> = vec![];
    for (request, parts) in reads {
        if outcome
            .iter()
            .any(|(other, _)| other.cookie == request.cookie)
        {
            continue;
        }
        let (chunks, success) = match encode_parts(session, request, parts) {
            Ok(encoded) => encoded,
            Err(_) if parts.iter().any(|part| matches!(part, Part::Error(..))) => {
                (vec![encoder.fail(request, Errno::EIO).to_vec()], false)
            }
            Err(_) => {
                let mut wire = encoder.read(request).unwrap().to_vec();
                wire.extend((request.offset..request.end().unwrap()).map(content_at));
                (vec![wire], true)
            }
        };
        queues.push(chunks.into_iter());
        outcome.push((*request, success));
    }
    let mut sent = vec![];
    loop {
        let round: Vec<_> = queues.iter_mut().filter_map(Iterator::next).collect();
        if round.is_empty() {
            return (sent, outcome);
        }
        sent.extend(round.into_iter().filter(|chunk| !chunk.is_empty()));
    }
}

/// What was read for a request, as the client has it: `None` where nothing came.
fn reassemble(request: &Request, events: &[SeenReply]) -> Vec<Option<u8>> {
    let mut bytes = vec![None; usize::try_from(request.length).unwrap()];
    let at = |offset: u64| usize::try_from(offset - request.offset).unwrap();
    for event in events {
        match event {
            SeenReply::Data(cookie, offset, data) if *cookie == request.cookie => {
                for (byte, offset) in data.iter().zip(*offset..) {
                    assert_eq!(bytes[at(offset)].replace(*byte), None);
                }
            }
            SeenReply::Hole(cookie, range) if *cookie == request.cookie => {
                for offset in range.clone() {
                    assert_eq!(bytes[at(offset)].replace(0), None);
                }
            }
            _ => {}
        }
    }
    bytes
}

fn success_is_complete(
    requests: &[(Request, bool)],
    events: &[SeenReply],
) -> Result<(), TestCaseError> {
    for (request, _) in requests {
        let finished = SeenReply::Finished(request.cookie, Ok(()));
        if request.kind == CommandType::READ && events.contains(&finished) {
            prop_assert!(reassemble(request, events).iter().all(Option::is_some));
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn requests_survive_encoding(request in any_request()) {
        prop_assert_eq!(Request::from_extended(&request.to_extended()), Ok(request));
        match request.to_compact() {
            Ok(header) => prop_assert_eq!(Request::from_compact(&header), Ok(request)),
            Err(TooLong { length }) => prop_assert!(length > u64::from(u32::MAX)),
        }
    }

    #[test]
    fn headers_survive_decoding(bytes in any::<[u8; 28]>(), last in any::<[u8; 4]>()) {
        let mut compact = bytes;
        compact[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        prop_assert_eq!(Request::from_compact(&compact).unwrap().to_compact(), Ok(compact));
        let mut extended = [0; 32];
        extended[..28].copy_from_slice(&bytes);
        extended[28..].copy_from_slice(&last);
        extended[..4].copy_from_slice(&EXTENDED_REQUEST_MAGIC.to_be_bytes());
        prop_assert_eq!(Request::from_extended(&extended).unwrap().to_extended(), extended);
        extended[..4].copy_from_slice(&EXTENDED_REPLY_MAGIC.to_be_bytes());
        let (chunk, offset) = Chunk::from_extended(&extended).unwrap();
        prop_assert_eq!(chunk.to_extended(offset), extended);
    }

    #[test]
    fn replies_survive_encoding(reply in simple_reply(), chunk in chunk(), offset: u64) {
        prop_assert_eq!(SimpleReply::from_bytes(&reply.to_bytes()), Ok(reply));
        prop_assert_eq!(Chunk::from_structured(&chunk.to_structured().unwrap()), Ok(chunk));
        prop_assert_eq!(Chunk::from_extended(&chunk.to_extended(offset)), Ok((chunk, offset)));
    }

    #[test]
    fn payloads_survive_encoding(
        hole in hole(),
        extents in extents(),
        context: u32,
        errno in errno(),
        message in ".{0,100}",
        offset in any::<Option<u64>>(),
        ids: Vec<u32>,
    ) {
        prop_assert_eq!(Hole::from_bytes(&hole.to_bytes()), hole);
        let mut out = vec![];
        StatusChunk::encode(context, extents.iter().copied(), &mut out).unwrap();
        let status = StatusChunk::parse(&out).unwrap();
        prop_assert_eq!(status.context(), context);
        prop_assert_eq!(status.extents().collect::<Vec<_>>(), extents.clone());
        out.clear();
        StatusChunk::encode_extended(context, extents.iter().copied(), &mut out).unwrap();
        let status = StatusChunk::parse_extended(&out).unwrap();
        prop_assert_eq!(status.extents().collect::<Vec<_>>(), extents);
        out.clear();
        let error = ErrorChunk { error: errno, message: message.as_bytes(), offset };
        error.encode(&mut out);
        prop_assert_eq!(out.len() as u64, u64::from(error.wire_len()));
        let kind = if offset.is_some() { ChunkType::ERROR_OFFSET } else { ChunkType::ERROR };
        prop_assert_eq!(ErrorChunk::parse(kind, &out), Ok(error));
        prop_assert_eq!(error.text(), message.as_str());
        out.clear();
        StatusQuery::encode(7, &ids, &mut out);
        let query = StatusQuery::parse(&out).unwrap();
        prop_assert_eq!(query.ids().collect::<Vec<_>>(), ids);
    }

    #[test]
    fn payload_parsers_take_any_bytes_without_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..80),
        kind: u16,
    ) {
        if let Ok(status) = StatusChunk::parse(&bytes) {
            prop_assert_eq!(status.extents().len() * 8 + 4, bytes.len());
        }
        if let Ok(status) = StatusChunk::parse_extended(&bytes) {
            prop_assert_eq!(status.extents().len() * 16 + 8, bytes.len());
        }
        if let Ok(error) = ErrorChunk::parse(ChunkType(kind), &bytes) {
            prop_assert_ne!(error.error, Errno(0));
            prop_assert!(error.text().len() <= 3 * MAX_ERROR_MESSAGE);
        }
        let _ = StatusQuery::parse(&bytes);
    }

    #[test]
    fn requests_are_the_same_however_they_are_cut(
        (session, requests, cuts) in session().prop_flat_map(|session| {
            let requests = prop::collection::vec(
                prop_oneof![4 => request(&session).boxed(), 1 => any_request().boxed()],
                0..6,
            );
            (Just(session), requests).prop_flat_map(|(session, requests)| {
                let len = request_stream(&session, &requests).len();
                (Just(session), Just(requests), cuts(len))
            })
        }),
    ) {
        let wire = request_stream(&session, &requests);
        let whole = observe_requests(&session, &LIMITS, &wire, &[]);
        let pieces = observe_requests(&session, &LIMITS, &wire, &cuts);
        prop_assert_eq!(whole, pieces);
    }

    #[test]
    fn legal_requests_come_out_as_they_went_in(
        (session, requests) in session().prop_flat_map(|session| {
            let requests = prop::collection::vec(request(&session), 0..6);
            (Just(session), requests)
        }),
        trailing in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        let mut wire = request_stream(&session, &requests);
        wire.extend(header(&session, &Request::disconnect()));
        let len = wire.len();
        wire.extend(trailing);
        let seen = observe_requests(&session, &LIMITS, &wire, &[]);
        let mut expected = vec![];
        for request in &requests {
            prop_assert_eq!(session.check(request), Ok(()));
            expected.push(SeenRequest::Request(*request));
            if request.kind == CommandType::WRITE {
                let payload = (0..request.length).map(content_at).collect();
                expected.push(SeenRequest::Payload(payload));
            }
        }
        expected.push(SeenRequest::Disconnect);
        prop_assert_eq!(seen.events, expected);
        prop_assert_eq!(seen.end, Ok(()));
        // "A client MUST NOT send anything to the server after": it is not touched.
        prop_assert_eq!(seen.taken, len);
    }

    #[test]
    fn payload_is_the_same_lent_read_past_the_decoder_or_skipped(
        (session, requests) in session().prop_flat_map(|session| {
            let requests = prop::collection::vec(request(&session), 1..6);
            (Just(session), requests)
        }),
        ways in prop::collection::vec(0u8..3, 6),
    ) {
        let wire = request_stream(&session, &requests);
        let mut decoder = RequestDecoder::new(&session, &LIMITS);
        let mut input = &wire[..];
        let mut seen = vec![];
        while let Some(event) = decoder.next(&mut input).unwrap() {
            let RequestEvent::Request(request) = event else { continue };
            seen.push(request);
            let left = decoder.payload_left();
            prop_assert_eq!(left > 0, request.kind == CommandType::WRITE);
            match ways[seen.len() - 1] {
                0 => decoder.skip_payload(),
                1 => {
                    input = &input[usize::try_from(left).unwrap()..];
                    decoder.payload_read(left);
                    prop_assert_eq!(decoder.payload_left(), 0);
                }
                _ => {}
            }
        }
        prop_assert_eq!(seen, requests);
        prop_assert_eq!(decoder.on_eof(), Ok(()));
    }

    #[test]
    fn any_bytes_are_taken_or_refused_without_panic(
        session in session(),
        expected in prop::collection::vec(any_request(), 0..4),
        wire in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let all: Vec<usize> = (0..wire.len()).collect();
        let whole = observe_requests(&session, &LIMITS, &wire, &[]);
        prop_assert_eq!(whole, observe_requests(&session, &LIMITS, &wire, &all));
        let whole = observe_replies(&session, &LIMITS, &expected, &wire, &[]);
        prop_assert_eq!(whole, observe_replies(&session, &LIMITS, &expected, &wire, &all));
    }

    #[test]
    fn a_reply_that_the_server_can_build_is_accepted_and_complete((session, reads) in reads()) {
        let (wire, outcome) = reply_stream(&session, &reads);
        let requests: Vec<Request> = outcome.iter().map(|(request, _)| *request).collect();
        let seen = observe_replies(&session, &LIMITS, &requests, &wire, &[]);
        prop_assert_eq!(seen.end, Ok(()));
        prop_assert_eq!(seen.taken, wire.len());
        success_is_complete(&outcome, &seen.events)?;
        for (request, success) in &outcome {
            let results = seen.events.iter().filter_map(|event| match event {
                SeenReply::Finished(cookie, result) if *cookie == request.cookie => Some(*result),
                _ => None,
            });
            let results: Vec<_> = results.collect();
            prop_assert_eq!(results.len(), 1);
            prop_assert_eq!(results[0].is_ok(), *success);
            for (byte, offset) in reassemble(request, &seen.events).into_iter().zip(request.offset..) {
                prop_assert!(matches!(byte, None | Some(0)) || byte == Some(content_at(offset)));
            }
        }
    }

    #[test]
    fn replies_are_the_same_however_they_are_cut(
        (session, reads, cuts) in reads().prop_flat_map(|(session, reads)| {
            let len = reply_stream(&session, &reads).0.len();
            (Just(session), Just(reads), cuts(len))
        }),
        trailing in prop::collection::vec(any::<u8>(), 0..3),
    ) {
        let (mut wire, outcome) = reply_stream(&session, &reads);
        wire.extend(trailing);
        let requests: Vec<Request> = outcome.iter().map(|(request, _)| *request).collect();
        let whole = observe_replies(&session, &LIMITS, &requests, &wire, &[]);
        let pieces = observe_replies(&session, &LIMITS, &requests, &wire, &cuts);
        prop_assert_eq!(whole, pieces);
    }

    #[test]
    fn a_damaged_reply_is_never_a_success_with_missing_bytes(
        (session, reads, wire) in reads().prop_flat_map(|(session, reads)| {
            let wire = reply_stream(&session, &reads).0;
            (Just(session), Just(reads), mutated(wire))
        }),
    ) {
        let (_, outcome) = reply_stream(&session, &reads);
        let requests: Vec<Request> = outcome.iter().map(|(request, _)| *request).collect();
        let seen = observe_replies(&session, &LIMITS, &requests, &wire, &[]);
        // `reassemble` also fails if a byte came twice.
        success_is_complete(&outcome, &seen.events)?;
    }

    #[test]
    fn chunks_left_out_repeated_or_exchanged_are_never_a_success_with_missing_bytes(
        (session, reads) in reads(),
        changes in prop::collection::vec((0u8..3, any::<(prop::sample::Index, prop::sample::Index)>()), 1..4),
    ) {
        let (mut chunks, outcome) = reply_chunks(&session, &reads);
        for (how, (a, b)) in changes {
            if chunks.is_empty() {
                break;
            }
            let (a, b) = (a.index(chunks.len()), b.index(chunks.len()));
            match how {
                0 => drop(chunks.remove(a)),
                1 => chunks.insert(b, chunks[a].clone()),
                _ => chunks.swap(a, b),
            }
        }
        let requests: Vec<Request> = outcome.iter().map(|(request, _)| *request).collect();
        let seen = observe_replies(&session, &LIMITS, &requests, &chunks.concat(), &[]);
        success_is_complete(&outcome, &seen.events)?;
    }
}
