//! Replies to block status requests.

use nbd_proto::session::ReplyStyle;
use nbd_proto::transmission::client::{Fatal, Violation};
use nbd_proto::wire::{
    Chunk, ChunkType, CommandFlags, Errno, Extent, ReplyFlags, Request, StatusChunk, StatusQuery,
};

use super::{
    C, DONE, MORE, broken, chunk, decoder, error, fails, run, simple, structured, succeeds,
};

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
