//! What ends the session, or the request: every rule that a reply can break, broken.

use hex_literal::hex;
use nbd_proto::session::ReplyStyle;
use nbd_proto::transmission::client::{Fatal, Violation};
use nbd_proto::wire::{Chunk, ChunkType, CommandFlags, Cookie, Errno, Request};

use super::{
    C, DONE, MORE, broken, chunk, data, decoder, done, error, hole, read, run, simple, structured,
    succeeds,
};

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
    let status = Request::block_status(C, 0, 1000);
    for length in [0, 4, 8, 11, 13, 16] {
        let wire = chunk(DONE, ChunkType::BLOCK_STATUS, &vec![0; length]);
        assert!(matches!(
            structured(status, &wire),
            Violation::ChunkLength { .. }
        ));
    }
    // "length MUST be 8 + (a positive multiple of 16)".
    for length in [0, 4, 8, 16, 23, 25, 32] {
        let kind = ChunkType::BLOCK_STATUS_EXT;
        let header = Chunk {
            flags: DONE,
            kind,
            cookie: C,
            length,
        };
        assert_eq!(
            broken(ReplyStyle::Extended, status, &header.to_extended(0)),
            Violation::ChunkLength { kind, length }
        );
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

#[test]
fn reading_nothing_is_fine_everywhere_and_reading_on_after_the_end_changes_nothing() {
    let mut decoder = decoder(ReplyStyle::Structured, &[read()]);
    let wire = data(DONE, 1000, 1000);
    // In the header, before the data, and in it.
    for piece in [&wire[..7], &wire[7..28], &wire[28..500]] {
        decoder.payload_read(0);
        decoder.next(&mut &piece[..]).unwrap();
        decoder.payload_read(0);
    }
    assert_eq!(decoder.payload_left(), 1028 - 500);
    let mut input = &wire[500..];
    while decoder.next(&mut input).unwrap().is_some() {
        decoder.payload_read(0);
    }
    assert_eq!((input.len(), decoder.in_flight()), (0, 0));
    let why = Fatal::Magic {
        found: u32::from_be_bytes(*b"HTTP"),
    };
    assert_eq!(decoder.next(&mut &b"HTTP/1.1 400 Bad"[..]), Err(why));
    decoder.payload_read(5);
    assert_eq!(decoder.next(&mut &[][..]), Err(why));
    assert_eq!(decoder.on_eof(), Err(why));
}
