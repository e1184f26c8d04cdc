//! Known ways in which NBD programs lost their place, their data or their memory; none of them is
//! to be had with this crate.

use hex_literal::hex;
use nbd_proto::limits::Limits;
use nbd_proto::session::{BlockSizes, MetaContext, ReplyStyle, Session};
use nbd_proto::transmission::client::{Fatal, Violation};
use nbd_proto::transmission::{
    IllegalReply, ReadBuffer, ReplyDecoder, ReplyEncoder, ReplyEvent, RequestDecoder, RequestEvent,
};
use nbd_proto::wire::{
    Chunk, ChunkType, CommandFlags, CommandType, Cookie, Errno, Hole, Name, ReplyFlags, Request,
    StatusQuery, TransmissionFlags,
};

const C: Cookie = Cookie(0xc0);
const SIZE: u64 = 1 << 40;

const ALL: [ReplyStyle; 3] = [
    ReplyStyle::Simple,
    ReplyStyle::Structured,
    ReplyStyle::Extended,
];

fn session(style: ReplyStyle) -> Session {
    let flags = TransmissionFlags::from_bits_retain(0x1fff) - TransmissionFlags::READ_ONLY;
    let name = Name::new("base:allocation").unwrap();
    Session::new(Name::default(), SIZE, flags)
        .with_reply_style(style)
        .with_block_sizes(BlockSizes::new(512, 512, 1 << 20).unwrap())
        .with_contexts(vec![MetaContext { id: 1, name }])
}

fn header(style: ReplyStyle, request: &Request) -> Vec<u8> {
    match style {
        ReplyStyle::Extended => request.to_extended().to_vec(),
        _ => request.to_compact().unwrap().to_vec(),
    }
}

fn chunk(style: ReplyStyle, done: bool, kind: ChunkType, offset: u64, payload: &[u8]) -> Vec<u8> {
    let mut flags = ReplyFlags::empty();
    flags.set(ReplyFlags::DONE, done);
    let (cookie, length) = (C, payload.len() as u64);
    let chunk = Chunk {
        flags,
        kind,
        cookie,
        length,
    };
    let head = match style {
        ReplyStyle::Extended => chunk.to_extended(offset).to_vec(),
        _ => chunk.to_structured().unwrap().to_vec(),
    };
    [&head, payload].concat()
}

/// Feeds all of it: the results of the requests that ended, and what the end of the stream means.
fn run(decoder: &mut ReplyDecoder, wire: &[u8]) -> (Vec<Cookie>, Result<(), Fatal>) {
    let mut input = wire;
    let mut succeeded = vec![];
    loop {
        match decoder.next(&mut input) {
            Ok(Some(ReplyEvent::Finished { cookie, result })) => {
                succeeded.extend(result.is_ok().then_some(cookie));
            }
            Ok(Some(_)) => {}
            Ok(None) => return (succeeded, decoder.on_eof()),
            Err(why) => return (succeeded, Err(why)),
        }
    }
}

fn waiting(style: ReplyStyle, requests: &[Request]) -> ReplyDecoder {
    let mut decoder = ReplyDecoder::new(&session(style), &Limits::new(), requests.len());
    for request in requests {
        decoder.expect(request).unwrap();
    }
    decoder
}

fn violation(end: Result<(), Fatal>) -> Violation {
    match end {
        Err(Fatal::Reply {
            cookie: C,
            violation,
        }) => violation,
        other => panic!("{other:?}"),
    }
}

#[test]
fn unread_payload_of_a_refused_request_is_not_taken_for_the_next_header() {
    let mut query = vec![];
    StatusQuery::encode(512, &[7], &mut query);
    for style in ALL {
        let session = session(style);
        // The payload looks like requests that destroy things.
        let trap = header(style, &Request::trim(Cookie(0xdead), 0, 1 << 30)).repeat(128);
        let trap = &trap[..trap.len() / 512 * 512];
        let length = trap.len() as u64;
        let payload = CommandFlags::PAYLOAD_LEN;
        let mut refused = vec![
            (Request::write(C, SIZE, length), trap),
            (Request::write(C, 1, length), trap),
            (
                Request::write(C, 0, length).with_flags(CommandFlags::DF),
                trap,
            ),
        ];
        if style == ReplyStyle::Extended {
            for kind in [0, 3, 4, 5, 6, 7, 8, 0xffff].map(CommandType) {
                refused.push((Request::new(kind, C, 0, length).with_flags(payload), trap));
            }
            let unknown = Request::block_status(C, 0, query.len() as u64).with_flags(payload);
            refused.push((unknown, &query));
        }
        for (request, payload) in refused {
            let mut wire = header(style, &request);
            wire.extend(payload);
            wire.extend(header(style, &Request::flush(Cookie(1))));
            let mut decoder = RequestDecoder::new(&session, &Limits::new());
            let mut input = &wire[..];
            let taken = decoder.next(&mut input);
            assert_eq!(taken, Ok(Some(RequestEvent::Request(request))));
            if session.check(&request).is_ok() {
                let Ok(Some(RequestEvent::Payload(payload))) = decoder.next(&mut input) else {
                    panic!("no payload");
                };
                let query = session.check_status_payload(&request, payload);
                assert_eq!(query.unwrap_err().errno(), Errno::EINVAL);
            }
            decoder.skip_payload();
            let flush = RequestEvent::Request(Request::flush(Cookie(1)));
            assert_eq!(decoder.next(&mut input), Ok(Some(flush)), "{request:?}");
            assert!(input.is_empty());
        }
    }
}

#[test]
fn a_read_that_fails_after_its_header_was_sent_is_padded_and_then_an_error() {
    for style in [ReplyStyle::Structured, ReplyStyle::Extended] {
        let session = session(style);
        let (read, flush) = (Request::read(C, 4096, 4096), Request::flush(Cookie(1)));
        let encoder = ReplyEncoder::new(&session);
        let mut reply = encoder.chunks(&read).unwrap();
        let mut wire = reply.data(4096, 4096).unwrap().to_vec();
        wire.extend([7; 1000]);
        // Here the disk fails. What was begun has to be completed, and is no success.
        wire.extend([0; 3096]);
        assert_eq!(
            reply.error_at(9000, Errno::EIO, "", &mut wire),
            Err(IllegalReply::OutOfRange)
        );
        reply
            .error_at(5096, Errno::EIO, "bad sector", &mut wire)
            .unwrap();
        wire.extend_from_slice(&reply.done().unwrap());
        wire.extend_from_slice(&encoder.ok(&flush));

        let mut decoder = waiting(style, &[read, flush]);
        let mut memory = [0xff; 4096];
        let mut buffer = ReadBuffer::new(&read, &mut memory).unwrap();
        let mut input = &wire[..];
        while let Some(event) = decoder.next(&mut input).unwrap() {
            buffer.take(&event);
        }
        assert_eq!(buffer.result(), Some(Err(Errno::EIO)));
        assert!(buffer.good().eq(std::iter::once(4096..5096)));
        // The stream has not lost its place.
        assert_eq!((decoder.in_flight(), decoder.on_eof()), (0, Ok(())));
    }
}

#[test]
fn a_simple_read_that_fails_after_its_header_ends_with_the_connection_and_never_in_success() {
    let read = Request::read(C, 0, 4096);
    let encoder = ReplyEncoder::new(&session(ReplyStyle::Simple));
    let mut wire = encoder.read(&read).unwrap().to_vec();
    wire.extend([7; 1000]);
    for len in 16..wire.len() {
        let mut decoder = waiting(ReplyStyle::Simple, &[read]);
        let (succeeded, end) = run(&mut decoder, &wire[..len]);
        assert_eq!((succeeded, end), (vec![], Err(Fatal::Eof { in_flight: 1 })));
        assert!(decoder.unanswered().eq([&read]));
    }
}

#[test]
fn a_reply_to_the_wrong_cookie_is_never_taken_for_another() {
    for style in ALL {
        let session = session(style);
        let encoder = ReplyEncoder::new(&session);
        let stranger = encoder.ok(&Request::flush(Cookie(2)));
        let mut decoder = waiting(style, &[Request::flush(C)]);
        let (succeeded, end) = run(&mut decoder, &stranger);
        let cookie = Cookie(2);
        assert_eq!(
            (succeeded, end),
            (vec![], Err(Fatal::UnknownCookie { cookie }))
        );

        // A second answer: the first one freed the cookie.
        let flush = Request::flush(C);
        let twice = [encoder.ok(&flush).as_ref(), &encoder.ok(&flush)].concat();
        let (succeeded, end) = run(&mut waiting(style, &[flush]), &twice);
        assert_eq!(
            (succeeded, end),
            (vec![C], Err(Fatal::UnknownCookie { cookie: C }))
        );
    }
    // The answer to another read that is in flight.
    for style in [ReplyStyle::Structured, ReplyStyle::Extended] {
        let (asked, other) = (Request::read(C, 0, 512), Request::read(C, 512, 512));
        let mut wire = ReplyEncoder::new(&session(style))
            .read(&other)
            .unwrap()
            .to_vec();
        wire.extend([7; 512]);
        let (succeeded, end) = run(&mut waiting(style, &[asked]), &wire);
        assert_eq!(succeeded, []);
        let why = violation(end);
        assert!(
            matches!(
                why,
                Violation::OutOfRange { .. } | Violation::WrongOffset { .. }
            ),
            "{why:?}"
        );
    }
    // A success without data where data was asked for.
    let trim = Request::trim(C, 0, 512);
    for style in [ReplyStyle::Structured, ReplyStyle::Extended] {
        let wire = ReplyEncoder::new(&session(style)).ok(&trim);
        let (succeeded, end) = run(&mut waiting(style, &[Request::read(C, 0, 512)]), &wire);
        assert_eq!(succeeded, []);
        let why = violation(end);
        assert!(
            matches!(
                why,
                Violation::SimpleReplyToRead | Violation::Incomplete { .. }
            ),
            "{why:?}"
        );
    }
}

#[test]
fn a_hole_of_4_gib_in_a_small_read_is_refused_and_writes_nothing() {
    for style in [ReplyStyle::Structured, ReplyStyle::Extended] {
        let read = Request::read(C, 4096, 512);
        for (offset, length) in [
            (4096, u32::MAX),
            (4096, 513),
            (0, u32::MAX),
            (u64::MAX, u32::MAX),
            (u64::MAX - u64::from(u32::MAX), u32::MAX),
        ] {
            let hole = Hole { offset, length }.to_bytes();
            let wire = chunk(style, true, ChunkType::OFFSET_HOLE, 4096, &hole);
            let mut decoder = waiting(style, &[read]);
            let mut memory = [9; 512];
            let mut buffer = ReadBuffer::new(&read, &mut memory).unwrap();
            let mut input = &wire[..];
            let end = loop {
                match decoder.next(&mut input) {
                    Ok(Some(event)) => assert!(buffer.take(&event)),
                    Ok(None) => break Ok(()),
                    Err(why) => break Err(why),
                }
            };
            let length = length.into();
            assert_eq!(violation(end), Violation::OutOfRange { offset, length });
            assert_eq!(memory, [9; 512]);
        }
    }
}

#[test]
fn a_hole_of_4_gib_that_was_asked_for_costs_no_memory() {
    let length = u32::MAX;
    let read = Request::read(C, 0, length.into());
    let limits = Limits::new().with_max_payload(u32::MAX);
    let session = session(ReplyStyle::Structured);
    let mut decoder = ReplyDecoder::new(&session, &limits, 1);
    decoder.expect(&read).unwrap();
    let hole = Hole { offset: 0, length }.to_bytes();
    let wire = chunk(
        ReplyStyle::Structured,
        true,
        ChunkType::OFFSET_HOLE,
        0,
        &hole,
    );
    assert_eq!(run(&mut decoder, &wire), (vec![C], Ok(())));
}

/// A status chunk of context 1 with extents of these lengths.
fn status(style: ReplyStyle, offset: u64, lengths: &[u64]) -> Vec<u8> {
    let mut payload = vec![0, 0, 0, 1];
    if style == ReplyStyle::Extended {
        payload.extend((lengths.len() as u32).to_be_bytes());
    }
    for &length in lengths {
        if style == ReplyStyle::Extended {
            payload.extend(length.to_be_bytes());
            payload.extend([0; 8]);
        } else {
            payload.extend((length as u32).to_be_bytes());
            payload.extend([0; 4]);
        }
    }
    let kind = if style == ReplyStyle::Extended {
        ChunkType::BLOCK_STATUS_EXT
    } else {
        ChunkType::BLOCK_STATUS
    };
    chunk(style, true, kind, offset, &payload)
}

#[test]
fn block_status_descriptors_beyond_the_request_or_the_export_are_refused() {
    let end = SIZE - 4096;
    for style in [ReplyStyle::Structured, ReplyStyle::Extended] {
        for (offset, flags, lengths, expected) in [
            // The last may reach beyond the request; nothing may begin there.
            (0, 0, &[1024, 512][..], Ok(())),
            (0, 0, &[512, 512, 512], Ok(())),
            (0, 0, &[1 << 31], Ok(())),
            (0, 0, &[1536, 512], Err(Violation::ExtentBeyondRequest)),
            (0, 0, &[512, 1024, 512], Err(Violation::ExtentBeyondRequest)),
            (0, 8, &[1536], Ok(())),
            (0, 8, &[2048], Err(Violation::MoreThanOneExtent)),
            (0, 8, &[512, 512], Err(Violation::MoreThanOneExtent)),
            (end, 0, &[4096], Ok(())),
            (end, 0, &[4608], Err(Violation::ExtentBeyondExport)),
            (end, 0, &[512, 4096], Err(Violation::ExtentBeyondExport)),
            (0, 0, &[100], Err(Violation::UnalignedExtent)),
            (0, 0, &[512, 700], Err(Violation::UnalignedExtent)),
            (0, 0, &[512, 0], Err(Violation::EmptyExtent)),
        ] {
            let flags = CommandFlags::from_bits_retain(flags);
            let request = Request::block_status(C, offset, 1536).with_flags(flags);
            let (succeeded, end) = run(
                &mut waiting(style, &[request]),
                &status(style, offset, lengths),
            );
            assert_eq!(succeeded.len(), usize::from(expected.is_ok()));
            let found = end.map_err(|why| violation(Err(why)));
            assert_eq!(found, expected, "{request:?} {lengths:?}");
        }
    }
}

#[test]
fn extents_whose_sum_overflows_are_refused() {
    let request = Request::block_status(C, 512, 1 << 39);
    for lengths in [
        &[u64::MAX - 511][..],
        &[512, u64::MAX - 511],
        &[1 << 63, 1 << 63],
    ] {
        let wire = status(ReplyStyle::Extended, 512, lengths);
        let (_, end) = run(&mut waiting(ReplyStyle::Extended, &[request]), &wire);
        assert_eq!(violation(end), Violation::ExtentBeyondExport);
    }
}

#[test]
fn the_last_extent_of_an_export_that_ends_between_two_blocks_may_end_there_too() {
    let session = session(ReplyStyle::Structured);
    let flags = session.flags();
    let odd = Session::new(Name::default(), 5000, flags)
        .with_reply_style(ReplyStyle::Structured)
        .with_block_sizes(session.block_sizes())
        .with_contexts(session.contexts().to_vec());
    let mut decoder = ReplyDecoder::new(&odd, &Limits::new(), 1);
    decoder.expect(&Request::block_status(C, 0, 4608)).unwrap();
    let wire = status(ReplyStyle::Structured, 0, &[512, 4488]);
    assert_eq!(run(&mut decoder, &wire), (vec![C], Ok(())));
}

#[test]
fn a_chunk_of_more_extents_than_the_limit_ends_the_session_at_its_header() {
    for (style, width) in [(ReplyStyle::Structured, 8), (ReplyStyle::Extended, 16)] {
        let session = session(style);
        let limits = Limits::new().with_max_extents(3);
        let request = Request::block_status(C, 0, 1 << 20);
        for (count, fits) in [(3, true), (4, false)] {
            let mut decoder = ReplyDecoder::new(&session, &limits, 1);
            decoder.expect(&request).unwrap();
            let wire = status(style, 0, &vec![512; count]);
            let head = wire.len() - count * width;
            let (_, end) = run(&mut decoder, &wire[..head - 4]);
            if fits {
                assert_eq!(end, Err(Fatal::Eof { in_flight: 1 }));
            } else {
                let (count, limit) = (4, 3);
                assert_eq!(violation(end), Violation::TooManyExtents { count, limit });
            }
        }
    }
}

#[test]
fn a_descriptor_count_of_4_billion_allocates_and_believes_nothing() {
    let request = Request::block_status(C, 0, 1 << 39);
    let mut wire = status(ReplyStyle::Extended, 0, &[512]);
    wire[32 + 4..32 + 8].copy_from_slice(&[0xff; 4]);
    let (_, end) = run(&mut waiting(ReplyStyle::Extended, &[request]), &wire);
    let count = u32::MAX;
    assert_eq!(violation(end), Violation::DescriptorCount { count });
    // The same with a header that agrees.
    let length = 8 + 16 * u64::from(u32::MAX);
    wire[24..32].copy_from_slice(&length.to_be_bytes());
    let (_, end) = run(&mut waiting(ReplyStyle::Extended, &[request]), &wire);
    assert!(matches!(violation(end), Violation::ChunkTooLarge { .. }));
}

#[test]
fn a_reply_whose_last_chunk_is_missing_is_no_success_however_much_came() {
    for style in [ReplyStyle::Structured, ReplyStyle::Extended] {
        let session = session(style);
        let read = Request::read(C, 0, 512);
        let mut reply = ReplyEncoder::new(&session).chunks(&read).unwrap();
        let mut wire = reply.data(0, 512).unwrap().to_vec();
        wire.extend([7; 512]);
        let mut decoder = waiting(style, &[read]);
        assert_eq!(
            run(&mut decoder, &wire),
            (vec![], Err(Fatal::Eof { in_flight: 1 }))
        );
        assert!(decoder.unanswered().eq([&read]));
        let done = reply.done().unwrap();
        for len in 0..done.len() {
            let cut = [&wire, &done[..len]].concat();
            let (succeeded, end) = run(&mut waiting(style, &[read]), &cut);
            assert_eq!((succeeded, end), (vec![], Err(Fatal::Eof { in_flight: 1 })));
        }
        wire.extend_from_slice(&done);
        assert_eq!(run(&mut waiting(style, &[read]), &wire), (vec![C], Ok(())));
    }
}

#[test]
fn success_of_a_block_status_request_without_contexts_is_no_success() {
    let mut bare = session(ReplyStyle::Structured).with_contexts(vec![]);
    let request = Request::block_status(C, 0, 512);
    for style in [ReplyStyle::Structured, ReplyStyle::Extended] {
        bare = bare.with_reply_style(style);
        let mut decoder = ReplyDecoder::new(&bare, &Limits::new(), 1);
        decoder.expect(&request).unwrap();
        let wire = chunk(style, true, ChunkType::NONE, 0, &[]);
        let (succeeded, end) = run(&mut decoder, &wire);
        assert_eq!(succeeded, []);
        assert_eq!(violation(end), Violation::StatusOfNothing);
        // The error that is due is understood.
        let mut decoder = ReplyDecoder::new(&bare, &Limits::new(), 1);
        decoder.expect(&request).unwrap();
        let wire = ReplyEncoder::new(&bare).fail(&request, Errno::EINVAL);
        assert_eq!(run(&mut decoder, &wire), (vec![], Ok(())));
    }
}

#[test]
fn a_message_of_an_error_is_never_longer_than_a_string_or_the_maximum_payload() {
    let long = "\u{20ac}".repeat(30_000);
    for (style, max_payload, expected) in [
        (ReplyStyle::Structured, 1 << 20, 4095),
        (ReplyStyle::Extended, 512, 510),
    ] {
        let session =
            session(style).with_block_sizes(BlockSizes::new(1, 512, max_payload).unwrap());
        let write = Request::write(C, 0, 512);
        let mut wire = vec![];
        ReplyEncoder::new(&session).error(&write, Errno::EIO, &long, &mut wire);
        let mut decoder = ReplyDecoder::new(&session, &Limits::new(), 1);
        decoder.expect(&write).unwrap();
        let Ok(Some(ReplyEvent::Error { message, .. })) = decoder.next(&mut &wire[..]) else {
            panic!("no error");
        };
        assert_eq!(message.len(), expected);
        assert!(long.starts_with(&message));
    }
}

#[test]
fn an_error_that_the_request_may_not_have_is_not_sent() {
    let fast = CommandFlags::FAST_ZERO;
    let huge = 1 << 30;
    let cases = [
        (
            Request::write_zeroes(C, 0, 512).with_flags(fast),
            Errno::ENOTSUP,
            true,
        ),
        (Request::write_zeroes(C, 0, 512), Errno::ENOTSUP, false),
        (Request::trim(C, 0, 512), Errno::ENOTSUP, false),
        (
            Request::trim(C, 0, 512).with_flags(fast),
            Errno::ENOTSUP,
            false,
        ),
        (Request::write(C, 0, 512), Errno::EOVERFLOW, false),
        (Request::flush(C), Errno::EOVERFLOW, false),
        (Request::trim(C, 0, 512), Errno::EOVERFLOW, false),
        (Request::trim(C, 0, huge), Errno::EOVERFLOW, true),
        (Request::cache(C, 0, huge), Errno::EOVERFLOW, true),
        (Request::write_zeroes(C, 0, huge), Errno::EOVERFLOW, true),
        (Request::write(C, 0, 512), Errno::ENOSPC, true),
        (Request::read(C, 0, 512), Errno::ESHUTDOWN, true),
        (Request::read(C, 0, 512), Errno(4711), false),
    ];
    for style in ALL {
        let read = (
            Request::read(C, 0, 512),
            Errno::EOVERFLOW,
            style != ReplyStyle::Simple,
        );
        for (request, errno, passes) in cases.iter().copied().chain([read]) {
            let encoder = ReplyEncoder::new(&session(style));
            let mut message = vec![];
            encoder.error(&request, errno, "why", &mut message);
            for wire in [&encoder.fail(&request, errno), &message[..]] {
                let at = match style {
                    ReplyStyle::Simple => 4,
                    ReplyStyle::Structured => 20,
                    ReplyStyle::Extended => 32,
                };
                let sent = Errno(u32::from_be_bytes(wire[at..at + 4].try_into().unwrap()));
                let expected = if passes { errno } else { Errno::EINVAL };
                assert_eq!(sent, expected, "{request:?} {errno} {style:?}");
            }
        }
    }
}

#[test]
fn a_server_that_shuts_down_says_so_and_the_client_knows_that_it_has_to_go() {
    for style in ALL {
        let (one, two) = (Request::flush(C), Request::read(Cookie(2), 0, 512));
        let encoder = ReplyEncoder::new(&session(style));
        let mut decoder = waiting(style, &[one, two]);
        assert!(!decoder.is_shutting_down());
        let (_, end) = run(&mut decoder, &encoder.fail(&one, Errno::EIO));
        assert_eq!(end, Err(Fatal::Eof { in_flight: 1 }));
        assert!(!decoder.is_shutting_down());
        assert_eq!(
            run(&mut decoder, &encoder.shutting_down(&two)),
            (vec![], Ok(()))
        );
        assert!(decoder.is_shutting_down());
    }
}

#[test]
fn the_last_chunk_of_a_read_completes_it_or_is_not_sent() {
    let session = session(ReplyStyle::Structured);
    let read = Request::read(C, 0, 2048);
    let encoder = ReplyEncoder::new(&session);
    let mut reply = encoder.chunks(&read).unwrap();
    assert_eq!(
        reply.last_data(0, 1024),
        Err(IllegalReply::Incomplete { gap: 0 })
    );
    assert!(reply.hole(0, 512).is_ok());
    assert!(reply.hole(1024, 512).is_ok());
    for result in [reply.last_hole(512, 512), reply.last_data(1536, 512)] {
        assert_eq!(result, Err(IllegalReply::Incomplete { gap: 512 }));
    }
    assert_eq!(reply.last_hole(512, 1536), Err(IllegalReply::Overlap));
    assert!(reply.hole(512, 512).is_ok());
    let head = reply.last_hole(1536, 512).unwrap();
    assert_eq!(
        head.as_ref(),
        hex!("668e33ef 0001 0002 00000000000000c0 0000000c 0000000000000600 00000200")
    );
    assert_eq!(reply.done(), Err(IllegalReply::Ended));
    assert_eq!(reply.last_hole(1536, 512), Err(IllegalReply::Ended));

    // After an error nothing needs to be complete, but the rest of the rules hold.
    let mut reply = encoder.chunks(&read).unwrap();
    reply.error_at(100, Errno::EIO, "", &mut vec![]).unwrap();
    assert_eq!(reply.last_data(0, 512), Err(IllegalReply::Overlap));
    assert!(reply.last_data(512, 512).is_ok());
    assert_eq!(reply.done(), Err(IllegalReply::Ended));
}
