//! What a client believes, and what it does not.

mod block_status;
mod wrong;

use hex_literal::hex;
use nbd_proto::limits::Limits;
use nbd_proto::session::{BlockSizes, MetaContext, ReplyStyle, Session};
use nbd_proto::transmission::client::{Fatal, Payload, Violation};
use nbd_proto::transmission::{ReplyDecoder, ReplyEvent, Unexpectable};
use nbd_proto::wire::{
    Chunk, ChunkType, CommandFlags, Cookie, DataHead, Errno, ErrorChunk, Hole, Name, ReplyFlags,
    Request, SimpleReply, TransmissionFlags,
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
fn eshutdown_is_noticed_whichever_error_of_a_reply_it_is() {
    let wire = [
        error(MORE, 5, b"", Some(1000)),
        error(DONE, 108, b"bye", Some(1500)),
    ]
    .concat();
    let mut decoder = decoder(ReplyStyle::Structured, &[read()]);
    let mut input = &wire[..];
    assert!(!decoder.is_shutting_down());
    while decoder.next(&mut input).unwrap().is_some() {}
    assert_eq!(decoder.in_flight(), 0);
    assert!(decoder.is_shutting_down());
}

#[test]
fn an_error_chunk_is_taken_however_little_may_be_skipped() {
    let limits = Limits::new().with_max_drain(0);
    let mut decoder = ReplyDecoder::new(&session(ReplyStyle::Structured), &limits, 1);
    decoder.expect(&read()).unwrap();
    let wire = error(DONE, 5, &[b'x'; 4096], Some(1000));
    let mut input = &wire[..];
    let mut events = 0;
    while decoder.next(&mut input).unwrap().is_some() {
        events += 1;
    }
    assert_eq!((events, decoder.in_flight()), (2, 0));
    // What is longer than any error that is known is skipped in part, and so is limited.
    decoder.expect(&read()).unwrap();
    let wire = error(DONE, 5, &[b'x'; 4097], Some(1000));
    assert!(decoder.next(&mut &wire[..]).is_err());
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
fn what_an_unknown_error_chunk_has_at_its_end_is_skipped_however_it_arrives() {
    let payload = hex!("0000001c 0002 6869 0102030405060708090a");
    let wire = chunk(DONE, ChunkType(0x8099), &payload);
    let flush = Request::flush(Cookie(6));
    for size in 1..=wire.len() {
        let mut decoder = decoder(ReplyStyle::Structured, &[read(), flush]);
        let mut finished = vec![];
        for piece in [&wire[..], &simple(flush.cookie, Ok(()))]
            .concat()
            .chunks(size)
        {
            let mut input = piece;
            while let Some(event) = decoder.next(&mut input).unwrap() {
                if let ReplyEvent::Finished { cookie, result } = event {
                    finished.push((cookie, result));
                }
            }
        }
        assert_eq!(finished, [(C, Err(Errno::ENOSPC)), (Cookie(6), Ok(()))]);
    }
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
            assert!(wants > 0, "needs input but wants none");
            let mut input = &wire[at..at + wants];
            at += wants;
            while decoder.next(&mut input).unwrap().is_some() {}
            assert!(input.is_empty());
        }
        assert_eq!(at, wire.len());
    }
}

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

#[test]
fn error_chunks_decode_as_they_were_encoded_by_hand() {
    let bytes = error(DONE, 28, b"full", Some(4096));
    let parsed = ErrorChunk::parse(ChunkType::ERROR_OFFSET, &bytes[20..]).unwrap();
    assert_eq!(parsed.offset, Some(4096));
    assert_eq!(parsed.text(), "full");
}
