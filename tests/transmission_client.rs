//! What a client believes: every rule that a reply can break, broken.

use hex_literal::hex;
use nbd_proto::limits::Limits;
use nbd_proto::session::{BlockSizes, MetaContext, ReplyStyle, Session};
use nbd_proto::transmission::client::{Fatal, Payload, Violation};
use nbd_proto::transmission::{ReplyDecoder, ReplyEvent, Unexpectable};
use nbd_proto::wire::{
    Chunk, ChunkType, CommandFlags, Cookie, DataHead, Errno, ErrorChunk, Extent, Hole, Name,
    ReplyFlags, Request, SimpleReply, StatusChunk, StatusQuery, TransmissionFlags,
};

const C: Cookie = Cookie(5);
const SIZE: u64 = 1 << 40;
const DONE: ReplyFlags = ReplyFlags::DONE;
const MORE: ReplyFlags = ReplyFlags::empty();

fn session(style: ReplyStyle) -> Session {
    let contexts = [(1, "base:allocation"), (2, "x:y")].map(|(id, name)| MetaContext {
        id,
        name: Name::new(name).unwrap(),
    });
    let session = Session::new(Name::default(), SIZE, TransmissionFlags::HAS_FLAGS)
        .with_reply_style(style)
        .with_block_sizes(BlockSizes::new(1, 512, 8192).unwrap());
    match style {
        ReplyStyle::Simple => session,
        _ => session.with_contexts(contexts.into()),
    }
}

fn decoder(style: ReplyStyle, requests: &[Request]) -> ReplyDecoder {
    let limits = Limits::new().with_max_chunks(16);
    let mut decoder = ReplyDecoder::new(&session(style), &limits, 4);
    for request in requests {
        decoder.expect(request).unwrap();
    }
    decoder
}

/// Feeds all of `wire`: how many events came, and how it ended.
fn run(mut decoder: ReplyDecoder, wire: &[u8]) -> (Vec<String>, Result<(), Fatal>) {
    let mut input = wire;
    let mut events = vec![];
    loop {
        match decoder.next(&mut input) {
            Ok(Some(event)) => events.push(format!("{event:?}")),
            Ok(None) => return (events, decoder.on_eof()),
            Err(why) => {
                assert_eq!(decoder.next(&mut input), Err(why), "not poisoned");
                assert_eq!(decoder.on_eof(), Err(why));
                assert_eq!(decoder.wants(), 0);
                return (events, Err(why));
            }
        }
    }
}

fn broken(style: ReplyStyle, request: Request, wire: &[u8]) -> Violation {
    match run(decoder(style, &[request]), wire) {
        (events, Err(Fatal::Reply { cookie, violation })) => {
            assert_eq!(cookie, request.cookie);
            assert!(!events.iter().any(|e| e.contains("Finished")), "{events:?}");
            violation
        }
        other => panic!("{other:?}"),
    }
}

fn structured(request: Request, wire: &[u8]) -> Violation {
    broken(ReplyStyle::Structured, request, wire)
}

fn succeeds(style: ReplyStyle, request: Request, wire: &[u8]) {
    let (events, end) = run(decoder(style, &[request]), wire);
    assert_eq!(end, Ok(()));
    assert!(events.last().unwrap().contains("Ok(())"), "{events:?}");
}

fn fails(style: ReplyStyle, request: Request, wire: &[u8]) -> Errno {
    let mut decoder = decoder(style, &[request]);
    let mut input = wire;
    while let Some(event) = decoder.next(&mut input).unwrap() {
        if let ReplyEvent::Finished { result, .. } = event {
            assert!(input.is_empty());
            assert_eq!(decoder.on_eof(), Ok(()));
            return result.unwrap_err();
        }
    }
    panic!("not finished");
}

fn simple(cookie: Cookie, result: Result<(), Errno>) -> Vec<u8> {
    SimpleReply { result, cookie }.to_bytes().to_vec()
}

fn chunk(flags: ReplyFlags, kind: ChunkType, payload: &[u8]) -> Vec<u8> {
    let chunk = Chunk {
        flags,
        kind,
        cookie: C,
        length: payload.len() as u64,
    };
    [&chunk.to_structured().unwrap()[..], payload].concat()
}

fn data(flags: ReplyFlags, offset: u64, length: usize) -> Vec<u8> {
    let head = DataHead { offset }.to_bytes();
    chunk(
        flags,
        ChunkType::OFFSET_DATA,
        &[&head[..], &vec![7; length]].concat(),
    )
}

fn hole(flags: ReplyFlags, offset: u64, length: u32) -> Vec<u8> {
    let hole = Hole { offset, length };
    chunk(flags, ChunkType::OFFSET_HOLE, &hole.to_bytes())
}

fn error(flags: ReplyFlags, errno: u32, message: &[u8], offset: Option<u64>) -> Vec<u8> {
    let mut payload = errno.to_be_bytes().to_vec();
    payload.extend((message.len() as u16).to_be_bytes());
    payload.extend(message);
    payload.extend(offset.into_iter().flat_map(u64::to_be_bytes));
    let kind = match offset {
        Some(_) => ChunkType::ERROR_OFFSET,
        None => ChunkType::ERROR,
    };
    chunk(flags, kind, &payload)
}

fn done() -> Vec<u8> {
    chunk(DONE, ChunkType::NONE, &[])
}

fn read() -> Request {
    Request::read(C, 1000, 1000)
}

// --- what is right ---

#[test]
fn a_read_may_come_in_any_order_of_chunks() {
    for wire in [
        data(DONE, 1000, 1000),
        [data(MORE, 1000, 1000), done()].concat(),
        [data(MORE, 1500, 500), hole(MORE, 1000, 500), done()].concat(),
        [
            hole(MORE, 1900, 100),
            data(MORE, 1000, 800),
            data(DONE, 1800, 100),
        ]
        .concat(),
    ] {
        succeeds(ReplyStyle::Structured, read(), &wire);
    }
}

#[test]
fn a_simple_read_is_data_right_after_the_header() {
    let mut wire = simple(C, Ok(()));
    wire.extend([9; 1000]);
    let mut decoder = decoder(ReplyStyle::Simple, &[read()]);
    let mut input = &wire[..];
    let bytes = &[9; 1000][..];
    let offset = 1000;
    let cookie = C;
    assert_eq!(
        decoder.next(&mut input),
        Ok(Some(ReplyEvent::Data {
            cookie,
            offset,
            bytes,
            left: 0
        }))
    );
    let result = Ok(());
    assert_eq!(
        decoder.next(&mut input),
        Ok(Some(ReplyEvent::Finished { cookie, result }))
    );
    assert_eq!(decoder.in_flight(), 0);
}

#[test]
fn a_simple_error_has_no_data() {
    let wire = simple(C, Err(Errno::EIO));
    assert_eq!(fails(ReplyStyle::Simple, read(), &wire), Errno::EIO);
}

#[test]
fn eshutdown_is_an_error_like_any_other() {
    let wire = simple(C, Err(Errno::ESHUTDOWN));
    let flush = Request::flush(C);
    assert_eq!(
        fails(ReplyStyle::Structured, flush, &wire),
        Errno::ESHUTDOWN
    );
}

#[test]
fn an_unknown_error_number_ends_as_einval() {
    let wire = simple(C, Err(Errno(4711)));
    assert_eq!(fails(ReplyStyle::Simple, read(), &wire), Errno::EINVAL);
}

#[test]
fn replies_to_several_requests_may_be_interleaved() {
    let other = Request::flush(Cookie(6));
    let mut decoder = decoder(ReplyStyle::Structured, &[read(), other]);
    let wire = [
        data(MORE, 1000, 600),
        simple(Cookie(6), Ok(())),
        data(DONE, 1600, 400),
    ]
    .concat();
    let mut input = &wire[..];
    let mut finished = vec![];
    while let Some(event) = decoder.next(&mut input).unwrap() {
        if let ReplyEvent::Finished { cookie, result } = event {
            assert_eq!(result, Ok(()));
            finished.push(cookie);
        }
    }
    assert_eq!(finished, [Cookie(6), C]);
}

#[test]
fn an_error_after_all_data_makes_the_read_fail() {
    let wire = [data(MORE, 1000, 1000), error(DONE, 5, b"", Some(1200))].concat();
    assert_eq!(fails(ReplyStyle::Structured, read(), &wire), Errno::EIO);
    let wire = [error(MORE, 5, b"", None), data(MORE, 1000, 1000), done()].concat();
    assert_eq!(fails(ReplyStyle::Structured, read(), &wire), Errno::EIO);
}

#[test]
fn an_unknown_error_chunk_fails_its_request_only() {
    let kind = ChunkType(0x8099);
    let payload = hex!("0000001c 0002 6869 0102030405060708090a");
    let wire = chunk(DONE, kind, &payload);
    assert_eq!(fails(ReplyStyle::Structured, read(), &wire), Errno::ENOSPC);
    // An error with an offset is not a reply to a flush, but an error all the same.
    let wire = error(DONE, 5, b"no", Some(1 << 40));
    let flush = Request::flush(C);
    assert_eq!(fails(ReplyStyle::Structured, flush, &wire), Errno::EIO);
}

#[test]
fn a_message_that_is_not_utf_8_costs_no_session() {
    let mut decoder = decoder(ReplyStyle::Structured, &[read()]);
    let wire = error(DONE, 5, b"d\xe9faut", Some(1000));
    assert_eq!(
        decoder.next(&mut &wire[..]),
        Ok(Some(ReplyEvent::Error {
            cookie: C,
            errno: Errno::EIO,
            offset: Some(1000),
            message: "d\u{fffd}faut".into(),
        }))
    );
}

#[test]
fn a_message_above_4096_bytes_is_cut_and_the_rest_skipped() {
    let wire = error(DONE, 5, &[b'x'; 60_000], Some(1000));
    let mut decoder = decoder(ReplyStyle::Structured, &[read()]);
    let mut input = &wire[..];
    let Ok(Some(ReplyEvent::Error { message, .. })) = decoder.next(&mut input) else {
        panic!();
    };
    assert_eq!(message.len(), 4096);
    assert!(matches!(
        decoder.next(&mut input),
        Ok(Some(ReplyEvent::Finished { .. }))
    ));
}

#[test]
fn unknown_reply_flags_are_ignored() {
    let flags = ReplyFlags::from_bits_retain(0xffff);
    succeeds(ReplyStyle::Structured, read(), &data(flags, 1000, 1000));
}

#[test]
fn a_read_of_nothing_succeeds_without_data() {
    let nothing = Request::read(C, 1000, 0);
    succeeds(ReplyStyle::Structured, nothing, &done());
    succeeds(ReplyStyle::Simple, nothing, &simple(C, Ok(())));
}

#[test]
fn data_can_be_read_past_the_decoder() {
    let wire = [data(MORE, 1500, 500), data(DONE, 1000, 500)].concat();
    let mut decoder = decoder(ReplyStyle::Structured, &[read()]);
    let mut input = &wire[..28];
    assert_eq!(decoder.next(&mut input), Ok(None));
    let payload = |offset, left| {
        Some(Payload {
            cookie: C,
            offset,
            left,
        })
    };
    assert_eq!(decoder.payload(), payload(1500, 500));
    decoder.payload_read(200);
    assert_eq!(decoder.payload(), payload(1700, 300));
    assert_eq!(decoder.wants(), 300);
    decoder.payload_read(300);
    assert_eq!(decoder.payload(), None);
    let mut input = &wire[528..528 + 28];
    assert_eq!(decoder.next(&mut input), Ok(None));
    assert_eq!(decoder.payload_left(), 500);
    decoder.payload_read(500);
    // The end needs no more input.
    assert_eq!(
        decoder.next(&mut &[][..]),
        Ok(Some(ReplyEvent::Finished {
            cookie: C,
            result: Ok(())
        }))
    );
}

#[test]
fn wants_never_reaches_beyond_the_message_at_hand() {
    let wires = [
        (
            ReplyStyle::Structured,
            [data(MORE, 1000, 900), hole(MORE, 1900, 100), done()].concat(),
        ),
        (
            ReplyStyle::Structured,
            error(DONE, 5, b"message", Some(1000)),
        ),
        (
            ReplyStyle::Simple,
            [simple(C, Ok(())), vec![1; 1000]].concat(),
        ),
    ];
    for (style, wire) in wires {
        let mut decoder = decoder(style, &[read()]);
        let mut at = 0;
        while decoder.in_flight() > 0 {
            let wants = decoder.wants();
            let mut input = &wire[at..at + wants];
            at += wants;
            while decoder.next(&mut input).unwrap().is_some() {}
            assert!(input.is_empty());
        }
        assert_eq!(at, wire.len());
    }
}

// --- what is wrong ---

#[test]
fn what_is_not_a_reply_ends_the_session() {
    let garbage = b"HTTP/1.1 400 Bad Request\r\n";
    let found = u32::from_be_bytes(*b"HTTP");
    for style in [
        ReplyStyle::Simple,
        ReplyStyle::Structured,
        ReplyStyle::Extended,
    ] {
        let (_, end) = run(decoder(style, &[read()]), garbage);
        assert_eq!(end, Err(Fatal::Magic { found }));
    }
}

#[test]
fn a_reply_in_a_style_that_was_not_negotiated_ends_the_session() {
    let chunk = Chunk {
        flags: DONE,
        kind: ChunkType::NONE,
        cookie: C,
        length: 0,
    };
    let (one, two) = (simple(C, Ok(())), chunk.to_structured().unwrap());
    let three = chunk.to_extended(0);
    for (style, wire) in [
        (ReplyStyle::Simple, &two[..]),
        (ReplyStyle::Simple, &three[..]),
        (ReplyStyle::Structured, &three[..]),
        (ReplyStyle::Extended, &one[..]),
        (ReplyStyle::Extended, &two[..]),
    ] {
        let (_, end) = run(decoder(style, &[Request::flush(C)]), wire);
        assert!(matches!(end, Err(Fatal::Style { .. })), "{style:?} {end:?}");
    }
}

#[test]
fn a_simple_reply_to_a_read_under_structured_replies_ends_the_session() {
    let ok = [simple(C, Ok(())), vec![0; 1000]].concat();
    assert_eq!(structured(read(), &ok), Violation::SimpleReplyToRead);
    let error = simple(C, Err(Errno::EINVAL));
    assert_eq!(structured(read(), &error), Violation::SimpleReplyToRead);
}

#[test]
fn a_simple_reply_after_chunks_ends_the_session() {
    let wire = [error(MORE, 5, b"", None), simple(C, Ok(()))].concat();
    let trim = Request::trim(C, 0, 1);
    assert_eq!(structured(trim, &wire), Violation::SimpleReplyAfterChunks);
}

#[test]
fn a_reply_to_nobody_ends_the_session() {
    let cookie = Cookie(99);
    let (_, end) = run(
        decoder(ReplyStyle::Simple, &[read()]),
        &simple(cookie, Ok(())),
    );
    assert_eq!(end, Err(Fatal::UnknownCookie { cookie }));
}

#[test]
fn a_second_end_of_a_reply_ends_the_session() {
    let wire = [data(DONE, 1000, 1000), done()].concat();
    let (events, end) = run(decoder(ReplyStyle::Structured, &[read()]), &wire);
    assert_eq!(events.len(), 2);
    assert_eq!(end, Err(Fatal::UnknownCookie { cookie: C }));
}

#[test]
fn success_with_a_gap_ends_the_session() {
    for (wire, gap) in [
        (done(), 1000),
        (data(DONE, 1000, 999), 1999),
        (data(DONE, 1001, 999), 1000),
        (
            [data(MORE, 1000, 100), hole(DONE, 1200, 800)].concat(),
            1100,
        ),
    ] {
        assert_eq!(structured(read(), &wire), Violation::Incomplete { gap });
    }
}

#[test]
fn a_request_whose_reply_ends_too_early_stays_unanswered() {
    let mut decoder = decoder(ReplyStyle::Structured, &[read()]);
    let wire = done();
    assert!(decoder.next(&mut &wire[..]).is_err());
    assert_eq!(decoder.in_flight(), 1);
    assert!(decoder.unanswered().eq([&read()]));
}

#[test]
fn overlapping_content_ends_the_session() {
    let (offset, length) = (1400, 200);
    for second in [data(DONE, offset, 200), hole(DONE, offset, 200)] {
        for first in [
            data(MORE, 1000, 401),
            hole(MORE, 1599, 10),
            data(MORE, 1450, 1),
        ] {
            let wire = [first, second.clone()].concat();
            assert_eq!(
                structured(read(), &wire),
                Violation::Overlap { offset, length }
            );
        }
    }
    // The same content twice covers as many bytes as were asked for.
    let wire = [data(MORE, 1000, 500), data(DONE, 1000, 500)].concat();
    assert!(matches!(
        structured(read(), &wire),
        Violation::Overlap { .. }
    ));
}

#[test]
fn content_over_an_earlier_error_ends_the_session() {
    let wire = [error(MORE, 5, b"", Some(1500)), data(DONE, 1000, 1000)].concat();
    assert!(matches!(
        structured(read(), &wire),
        Violation::Overlap { .. }
    ));
}

#[test]
fn content_outside_the_request_ends_the_session() {
    for (offset, length) in [(999, 2), (1999, 2), (0, 1), (u64::MAX, 2), (2000, 1)] {
        assert_eq!(
            structured(read(), &data(DONE, offset, length)),
            Violation::OutOfRange {
                offset,
                length: length as u64
            }
        );
        assert!(matches!(
            structured(read(), &hole(DONE, offset, length as u32)),
            Violation::OutOfRange { .. }
        ));
    }
    for offset in [999, 2000] {
        let wire = error(DONE, 5, b"", Some(offset));
        assert!(matches!(
            structured(read(), &wire),
            Violation::OutOfRange { .. }
        ));
    }
}

#[test]
fn content_outside_the_request_is_noticed_before_its_data_arrives() {
    let wire = data(DONE, 5000, 10);
    assert!(matches!(
        structured(read(), &wire[..28]),
        Violation::OutOfRange { .. }
    ));
}

#[test]
fn a_hole_of_no_length_ends_the_session() {
    let wire = [hole(MORE, 1000, 0), data(DONE, 1000, 1000)].concat();
    assert_eq!(structured(read(), &wire), Violation::EmptyHole);
}

#[test]
fn a_second_content_chunk_after_df_ends_the_session() {
    let df = read().with_flags(CommandFlags::DF);
    let wire = [data(MORE, 1000, 500), data(DONE, 1500, 500)].concat();
    assert_eq!(structured(df, &wire), Violation::Fragmented);
    let wire = [data(MORE, 1000, 1000), done()].concat();
    succeeds(ReplyStyle::Structured, df, &wire);
}

#[test]
fn a_chunk_of_the_wrong_length_ends_the_session() {
    for (kind, lengths) in [
        (ChunkType::NONE, &[1, 8][..]),
        (ChunkType::OFFSET_DATA, &[0, 7, 8]),
        (ChunkType::OFFSET_HOLE, &[0, 11, 13]),
        (ChunkType::ERROR, &[0, 5]),
        (ChunkType::ERROR_OFFSET, &[6, 13]),
    ] {
        for &length in lengths {
            let wire = chunk(DONE, kind, &vec![0; length as usize]);
            assert_eq!(
                structured(read(), &wire),
                Violation::ChunkLength { kind, length }
            );
        }
    }
    for length in [0, 4, 8, 11, 13, 16] {
        let wire = chunk(DONE, ChunkType::BLOCK_STATUS, &vec![0; length]);
        assert!(matches!(
            structured(Request::block_status(C, 0, 1000), &wire),
            Violation::ChunkLength { .. }
        ));
    }
}

#[test]
fn an_absurd_chunk_length_ends_the_session_at_its_header() {
    for kind in [ChunkType::OFFSET_DATA, ChunkType::ERROR] {
        let header = Chunk {
            flags: DONE,
            kind,
            cookie: C,
            length: u32::MAX.into(),
        };
        assert!(matches!(
            structured(read(), &header.to_structured().unwrap()),
            Violation::ChunkTooLarge { .. }
        ));
        let header = Chunk {
            length: u64::MAX,
            ..header
        };
        assert!(matches!(
            broken(ReplyStyle::Extended, read(), &header.to_extended(1000)),
            Violation::ChunkTooLarge { .. }
        ));
    }
}

#[test]
fn none_that_does_not_end_the_reply_ends_the_session() {
    let wire = chunk(MORE, ChunkType::NONE, &[]);
    assert_eq!(structured(read(), &wire), Violation::NoneNotLast);
}

#[test]
fn an_unknown_chunk_that_is_not_an_error_ends_the_session() {
    for kind in [3, 4, 7, 0x7fff].map(ChunkType) {
        let wire = chunk(DONE, kind, &[0; 12]);
        assert_eq!(structured(read(), &wire), Violation::UnknownChunk { kind });
    }
}

#[test]
fn content_for_a_command_without_content_ends_the_session() {
    let write = Request::write(C, 1000, 1000);
    for wire in [data(DONE, 1000, 10), hole(DONE, 1000, 10)] {
        assert!(matches!(
            structured(write, &wire),
            Violation::UnexpectedChunk { .. }
        ));
    }
    let wire = chunk(DONE, ChunkType::BLOCK_STATUS, &[0; 12]);
    assert!(matches!(
        structured(read(), &wire),
        Violation::UnexpectedChunk { .. }
    ));
}

#[test]
fn an_error_without_an_error_ends_the_session() {
    let wire = error(DONE, 0, b"success!", None);
    assert_eq!(structured(read(), &wire), Violation::ZeroError);
}

#[test]
fn a_message_longer_than_its_chunk_ends_the_session() {
    let wire = chunk(DONE, ChunkType::ERROR, &hex!("00000005 0003 6869"));
    assert_eq!(structured(read(), &wire), Violation::MessageLength);
    // Here the message would take the place of the offset.
    let wire = chunk(
        DONE,
        ChunkType::ERROR_OFFSET,
        &hex!("00000005 0001 0000000000000000"),
    );
    assert_eq!(structured(read(), &wire), Violation::MessageLength);
}

#[test]
fn more_chunks_than_the_limit_end_the_session() {
    let wire: Vec<u8> = (0..17).flat_map(|at| hole(MORE, 1000 + at, 1)).collect();
    assert_eq!(structured(read(), &wire), Violation::TooManyChunks);
    let wire: Vec<u8> = (0..17)
        .flat_map(|_| error(MORE, 5, b"", Some(1000)))
        .collect();
    assert_eq!(structured(read(), &wire), Violation::TooManyChunks);
}

#[test]
fn an_extended_reply_with_another_offset_ends_the_session() {
    let done = Chunk {
        flags: DONE,
        kind: ChunkType::NONE,
        cookie: C,
        length: 0,
    };
    let trim = Request::trim(C, 4096, 4096);
    succeeds(ReplyStyle::Extended, trim, &done.to_extended(4096));
    assert_eq!(
        broken(ReplyStyle::Extended, trim, &done.to_extended(4097)),
        Violation::WrongOffset { found: 4097 }
    );
}

#[test]
fn the_end_of_the_stream_is_clean_only_when_all_is_answered() {
    let mut decoder = decoder(ReplyStyle::Structured, &[read()]);
    assert_eq!(decoder.on_eof(), Err(Fatal::Eof { in_flight: 1 }));
    let wire = data(DONE, 1000, 1000);
    let mut input = &wire[..];
    while decoder.next(&mut input).unwrap().is_some() {}
    assert_eq!(decoder.on_eof(), Ok(()));
    assert_eq!(decoder.next(&mut &wire[..1]), Ok(None));
    assert_eq!(decoder.on_eof(), Err(Fatal::Eof { in_flight: 0 }));
}

#[test]
fn reading_more_data_than_there_is_ends_the_session() {
    let mut decoder = decoder(ReplyStyle::Structured, &[read()]);
    let wire = data(DONE, 1000, 1000);
    assert_eq!(decoder.next(&mut &wire[..28]), Ok(None));
    decoder.payload_read(1001);
    assert_eq!(decoder.next(&mut &[][..]), Err(Fatal::Overread));
}

// --- requests in flight ---

#[test]
fn requests_in_flight_are_bounded_and_their_cookies_distinct() {
    let mut decoder = decoder(ReplyStyle::Simple, &[read()]);
    assert_eq!(decoder.expect(&read()), Err(Unexpectable::CookieInUse(C)));
    assert_eq!(
        decoder.expect(&Request::disconnect()),
        Err(Unexpectable::Disconnect)
    );
    for cookie in 10..13 {
        decoder.expect(&Request::flush(Cookie(cookie))).unwrap();
    }
    let one_more = Request::flush(Cookie(13));
    assert_eq!(decoder.expect(&one_more), Err(Unexpectable::Full));
    assert_eq!(decoder.in_flight(), 4);
    assert_eq!(decoder.unanswered().next(), Some(&read()));
    let wire = simple(Cookie(10), Ok(()));
    decoder.next(&mut &wire[..]).unwrap();
    assert_eq!(decoder.expect(&one_more), Ok(()));
}

#[test]
fn a_read_whose_reply_would_break_the_limits_is_not_expected() {
    let mut simple = decoder(ReplyStyle::Simple, &[]);
    assert_eq!(
        simple.expect(&Request::read(C, 0, 8193)),
        Err(Unexpectable::TooLarge { limit: 8192 })
    );
    // In chunks it can come.
    let mut chunked = decoder(ReplyStyle::Structured, &[]);
    assert_eq!(chunked.expect(&Request::read(C, 0, 8193)), Ok(()));
    let mut decoder = decoder(ReplyStyle::Structured, &[]);
    let limit = u64::from(Limits::new().max_payload());
    assert_eq!(
        decoder.expect(&Request::read(C, 0, limit + 1)),
        Err(Unexpectable::TooLarge { limit })
    );
    let query = Request::block_status(C, 0, 12).with_flags(CommandFlags::PAYLOAD_LEN);
    assert_eq!(decoder.expect(&query), Err(Unexpectable::NeedsQuery));
    assert_eq!(
        decoder.expect(&Request::trim(C, u64::MAX, 1)),
        Err(Unexpectable::Overflow)
    );
    assert_eq!(decoder.in_flight(), 0);
}

// --- block status ---

fn status(flags: ReplyFlags, context: u32, lengths: &[u64]) -> Vec<u8> {
    let mut payload = context.to_be_bytes().to_vec();
    for &length in lengths {
        payload.extend((length as u32).to_be_bytes());
        payload.extend(3u32.to_be_bytes());
    }
    chunk(flags, ChunkType::BLOCK_STATUS, &payload)
}

fn ask() -> Request {
    Request::block_status(C, 0, 1000)
}

#[test]
fn block_status_has_one_chunk_for_each_context() {
    let style = ReplyStyle::Structured;
    let wire = [status(MORE, 2, &[500, 5000]), status(DONE, 1, &[10])].concat();
    succeeds(style, ask(), &wire);
    assert_eq!(
        structured(ask(), &status(DONE, 2, &[1000])),
        Violation::MissingContext { context: 1 }
    );
    assert_eq!(
        structured(ask(), &simple(C, Ok(()))),
        Violation::MissingContext { context: 1 }
    );
    let twice = [status(MORE, 2, &[10]), status(DONE, 2, &[10])].concat();
    assert_eq!(
        structured(ask(), &twice),
        Violation::UnexpectedContext { context: 2 }
    );
    assert_eq!(
        structured(ask(), &status(DONE, 3, &[10])),
        Violation::UnexpectedContext { context: 3 }
    );
    let wire = error(DONE, 5, b"", None);
    assert_eq!(fails(style, ask(), &wire), Errno::EIO);
}

#[test]
fn extents_have_a_length_and_begin_within_the_request() {
    assert_eq!(
        structured(ask(), &status(DONE, 1, &[10, 0])),
        Violation::EmptyExtent
    );
    assert_eq!(
        structured(ask(), &status(DONE, 1, &[500, 500, 1])),
        Violation::ExtentBeyondRequest
    );
    let one = ask().with_flags(CommandFlags::REQ_ONE);
    for lengths in [&[10, 10][..], &[1001]] {
        assert_eq!(
            structured(one, &status(DONE, 1, lengths)),
            Violation::MoreThanOneExtent
        );
    }
    let wire = [status(MORE, 1, &[1000]), status(DONE, 2, &[10])].concat();
    succeeds(ReplyStyle::Structured, one, &wire);
}

#[test]
fn extents_larger_than_the_maximum_payload_end_the_session_at_the_header() {
    // The maximum payload is 8192 bytes; what goes before the extents does not count.
    let request = Request::block_status(C, 0, 1 << 20);
    for (style, kind, head, width) in [
        (ReplyStyle::Structured, ChunkType::BLOCK_STATUS, 4, 8),
        (ReplyStyle::Extended, ChunkType::BLOCK_STATUS_EXT, 8, 16),
    ] {
        for (extents, fits) in [(8192, true), (8192 + width, false)] {
            let length = head + extents;
            let header = Chunk {
                flags: DONE,
                kind,
                cookie: C,
                length,
            };
            let wire = match style {
                ReplyStyle::Extended => header.to_extended(0).to_vec(),
                _ => header.to_structured().unwrap().to_vec(),
            };
            if fits {
                let (_, end) = run(decoder(style, &[request]), &wire);
                assert_eq!(end, Err(Fatal::Eof { in_flight: 1 }));
            } else {
                let limit = 8192 + head;
                assert_eq!(
                    broken(style, request, &wire),
                    Violation::ChunkTooLarge { length, limit }
                );
            }
        }
    }
}

#[test]
fn extended_block_status_may_be_asked_for_some_contexts() {
    let mut payload = vec![];
    StatusQuery::encode(1 << 33, &[2], &mut payload);
    let request =
        Request::block_status(C, 512, payload.len() as u64).with_flags(CommandFlags::PAYLOAD_LEN);
    let extent = Extent {
        length: 1 << 33,
        flags: 1,
    };
    let reply = |context, count: Option<u32>| {
        let mut payload = vec![];
        StatusChunk::encode_extended(context, [extent], &mut payload).unwrap();
        if let Some(count) = count {
            payload[4..8].copy_from_slice(&count.to_be_bytes());
        }
        let header = Chunk {
            flags: DONE,
            kind: ChunkType::BLOCK_STATUS_EXT,
            cookie: C,
            length: payload.len() as u64,
        };
        [&header.to_extended(512)[..], &payload].concat()
    };
    let run_ = |wire: &[u8]| {
        let mut decoder = decoder(ReplyStyle::Extended, &[]);
        let query = StatusQuery::parse(&payload).unwrap();
        decoder.expect_status(&request, &query).unwrap();
        run(decoder, wire)
    };
    assert_eq!(run_(&reply(2, None)).1, Ok(()));
    let violation = |end| match end {
        Err(Fatal::Reply { violation, .. }) => violation,
        other => panic!("{other:?}"),
    };
    assert_eq!(
        violation(run_(&reply(1, None)).1),
        Violation::UnexpectedContext { context: 1 }
    );
    assert_eq!(
        violation(run_(&reply(2, Some(2))).1),
        Violation::DescriptorCount { count: 2 }
    );
}

#[test]
fn the_width_of_block_status_is_that_of_the_session() {
    let wire = chunk(DONE, ChunkType::BLOCK_STATUS_EXT, &[1; 24]);
    assert!(matches!(
        structured(ask(), &wire),
        Violation::UnexpectedChunk { .. }
    ));
    let header = Chunk {
        flags: DONE,
        kind: ChunkType::BLOCK_STATUS,
        cookie: C,
        length: 12,
    };
    assert!(matches!(
        broken(ReplyStyle::Extended, ask(), &header.to_extended(0)),
        Violation::UnexpectedChunk { .. }
    ));
}

#[test]
fn error_chunks_decode_as_they_were_encoded_by_hand() {
    let bytes = error(DONE, 28, b"full", Some(4096));
    let parsed = ErrorChunk::parse(ChunkType::ERROR_OFFSET, &bytes[20..]).unwrap();
    assert_eq!(parsed.offset, Some(4096));
    assert_eq!(parsed.text(), "full");
}
