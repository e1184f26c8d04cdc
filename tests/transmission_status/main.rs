//! Block status: what the server's builder makes of whatever a backend says, against the rules of
//! the text, which are written down here a second time and on bytes.

mod built;
mod queries;

use nbd_proto::session::{BlockSizes, MetaContext, ReplyStyle, Session};
use nbd_proto::transmission::{IllegalReply, Refusal, StatusReply};
use nbd_proto::wire::{
    CommandFlags, Cookie, Errno, ErrorChunk, Extent, Name, Request, TransmissionFlags,
};

const C: Cookie = Cookie(0x0123_4567_89ab_cdef);
const ALLOCATION: u32 = 3;
const OTHER: u32 = 0x1_0000;

fn session(style: ReplyStyle, minimum: u32, size: u64) -> Session {
    let contexts = [(ALLOCATION, "base:allocation"), (OTHER, "x-test:other")];
    let contexts = contexts.map(|(id, name)| MetaContext {
        id,
        name: Name::new(name).unwrap(),
    });
    let flags = TransmissionFlags::HAS_FLAGS | TransmissionFlags::BLOCK_STATUS_PAYLOAD;
    Session::new(Name::default(), size, flags)
        .with_reply_style(style)
        .with_block_sizes(BlockSizes::new(minimum, 512.max(minimum), 1 << 16).unwrap())
        .with_contexts(contexts.into())
}

fn structured() -> Session {
    session(ReplyStyle::Structured, 512, 1 << 20)
}

const fn extent(length: u64, flags: u64) -> Extent {
    Extent { length, flags }
}

/// A chunk as it lies on the wire, taken apart by hand.
#[derive(Debug, PartialEq)]
struct Raw {
    done: bool,
    kind: u16,
    cookie: u64,
    offset: Option<u64>,
    payload: Vec<u8>,
}

fn number(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0, |number, &byte| number << 8 | u64::from(byte))
}

fn chunks(mut wire: &[u8]) -> Vec<Raw> {
    let mut found = vec![];
    while !wire.is_empty() {
        let extended = match number(&wire[..4]) {
            0x668e_33ef => false,
            0x6e8a_278c => true,
            other => panic!("{other:#x}"),
        };
        let (length, head) = if extended {
            (number(&wire[24..32]), 32)
        } else {
            (number(&wire[16..20]), 20)
        };
        let end = head + usize::try_from(length).unwrap();
        assert!(wire[4] == 0 && wire[5] <= 1, "flags that nobody negotiated");
        found.push(Raw {
            done: wire[5] == 1,
            kind: number(&wire[6..8]) as u16,
            cookie: number(&wire[8..16]),
            offset: extended.then(|| number(&wire[16..24])),
            payload: wire[head..end].to_vec(),
        });
        wire = &wire[end..];
    }
    found
}

/// The context and the extents of a status chunk, taken apart by hand.
fn status(chunk: &Raw) -> (u32, Vec<Extent>) {
    let p = &chunk.payload;
    let context = number(&p[..4]) as u32;
    let (head, half) = match chunk.kind {
        5 => (4, 4),
        6 => {
            assert_eq!(
                number(&p[4..8]) as usize * 16 + 8,
                p.len(),
                "descriptor count"
            );
            (8, 8)
        }
        other => panic!("{other} is not a status chunk"),
    };
    assert!(p.len() > head && (p.len() - head).is_multiple_of(2 * half));
    let extents = p[head..]
        .chunks(2 * half)
        .map(|d| extent(number(&d[..half]), number(&d[half..])));
    (context, extents.collect())
}

/// Builds the status of one context and takes it apart.
fn one(
    session: &Session,
    request: &Request,
    extents: &[Extent],
) -> Result<Vec<Extent>, IllegalReply> {
    let mut wire = vec![];
    let mut reply = StatusReply::new(session, request)?;
    reply.context(ALLOCATION, extents.iter().copied(), &mut wire)?;
    let [chunk] = &chunks(&wire)[..] else {
        panic!("not one chunk");
    };
    Ok(status(chunk).1)
}

#[test]
fn each_context_is_one_chunk_and_the_last_ends_the_reply() {
    for style in [ReplyStyle::Structured, ReplyStyle::Extended] {
        let session = session(style, 512, 1 << 20);
        let request = Request::block_status(C, 512, 4096);
        let mut wire = vec![];
        let mut reply = StatusReply::new(&session, &request).unwrap();
        assert_eq!(reply.owed(), Some(ALLOCATION));
        assert_eq!(reply.effect_length(), 4096);
        // In any order.
        let extents = [extent(1024, 1), extent(4096, 0)];
        assert_eq!(reply.context(OTHER, extents, &mut wire), Ok(5120));
        assert_eq!((reply.owed(), reply.is_ended()), (Some(ALLOCATION), false));
        let extents = [extent(512, 3)];
        assert_eq!(reply.context(ALLOCATION, extents, &mut wire), Ok(512));
        assert_eq!((reply.owed(), reply.is_ended()), (None, true));

        let found = chunks(&wire);
        assert_eq!(found.len(), 2);
        let kind = if style == ReplyStyle::Extended { 6 } else { 5 };
        for (chunk, done) in found.iter().zip([false, true]) {
            assert_eq!((chunk.kind, chunk.cookie, chunk.done), (kind, C.0, done));
            // "MUST match the offset of the client's request"
            assert!(chunk.offset.is_none_or(|offset| offset == 512));
        }
        assert_eq!(
            status(&found[0]),
            (OTHER, vec![extent(1024, 1), extent(4096, 0)])
        );
        assert_eq!(status(&found[1]), (ALLOCATION, vec![extent(512, 3)]));
    }
}

#[test]
fn nothing_can_follow_the_end_of_a_reply() {
    let session = structured().with_contexts(vec![structured().contexts()[0].clone()]);
    let request = Request::block_status(C, 0, 512);
    for by_error in [false, true] {
        let mut wire = vec![];
        let mut reply = StatusReply::new(&session, &request).unwrap();
        if by_error {
            reply.error(Errno::EIO, "gone", &mut wire).unwrap();
        } else {
            let extents = [extent(512, 0)];
            reply.context(ALLOCATION, extents, &mut wire).unwrap();
        }
        let len = wire.len();
        let ended = Err(IllegalReply::Ended);
        let extents = [extent(512, 0)];
        assert_eq!(
            reply.context(ALLOCATION, extents, &mut wire),
            ended.map(|()| 0)
        );
        assert_eq!(reply.error(Errno::EIO, "", &mut wire), ended);
        assert_eq!(reply.error_at(0, Errno::EIO, "", &mut wire), ended);
        assert_eq!(wire.len(), len);
    }
}

#[test]
fn a_context_that_was_not_selected_or_was_told_already_is_not_told() {
    let session = structured();
    let request = Request::block_status(C, 0, 512);
    let mut reply = StatusReply::new(&session, &request).unwrap();
    let mut wire = vec![7];
    for id in [4, OTHER] {
        let told = reply.context(id, [extent(512, 0)], &mut wire);
        assert_eq!(told.is_ok(), id == OTHER);
    }
    let again = reply.context(OTHER, [extent(512, 0)], &mut wire);
    assert_eq!(again, Err(IllegalReply::UnexpectedContext { id: OTHER }));
    assert_eq!(chunks(&wire[1..]).len(), 1);
}

#[test]
fn extents_that_cannot_be_sent_leave_nothing_behind() {
    let session = structured();
    let request = Request::block_status(C, 0, 4096);
    let mut reply = StatusReply::new(&session, &request).unwrap();
    let mut wire = vec![1, 2, 3];
    for (extents, why) in [
        (vec![], IllegalReply::NoExtents),
        (vec![extent(0, 0)], IllegalReply::EmptyExtent),
        (
            vec![extent(512, 0), extent(0, 0), extent(512, 0)],
            IllegalReply::EmptyExtent,
        ),
        (vec![extent(100, 0)], IllegalReply::UnalignedExtent),
        (
            vec![extent(512, 0), extent(700, 1), extent(4096, 2)],
            IllegalReply::UnalignedExtent,
        ),
        (vec![extent(512, 1 << 32)], IllegalReply::FlagsTooWide),
    ] {
        let told = reply.context(OTHER, extents.clone(), &mut wire);
        assert_eq!(told, Err(why), "{extents:?}");
        assert_eq!(wire, [1, 2, 3]);
    }
    // It is still owed, and can be told.
    assert!(reply.context(OTHER, [extent(512, 0)], &mut wire).is_ok());
}

#[test]
fn neighbours_with_the_same_flags_become_one_extent() {
    let request = Request::block_status(C, 0, 4096);
    let extents = [
        extent(100, 3),
        extent(412, 3),
        extent(512, 3),
        extent(512, 0),
        extent(512, 3),
        extent(1 << 20, 3),
    ];
    assert_eq!(
        one(&structured(), &request, &extents),
        Ok(vec![
            extent(1024, 3),
            extent(512, 0),
            extent((1 << 20) - 1536, 3)
        ])
    );
}

#[test]
fn only_the_last_extent_reaches_beyond_the_request_and_none_begins_there() {
    let request = Request::block_status(C, 512, 1024);
    let session = structured();
    let extents = [extent(512, 0), extent(5120, 1), extent(512, 0)];
    let expected = vec![extent(512, 0), extent(5120, 1)];
    assert_eq!(one(&session, &request, &extents), Ok(expected));
    // What is beyond the request may be cut to a whole block, and so to the end of the request.
    let extents = [extent(512, 0), extent(1000, 1)];
    let expected = vec![extent(512, 0), extent(512, 1)];
    assert_eq!(one(&session, &request, &extents), Ok(expected));
    // The request ends where an extent does: there is no need for another.
    let extents = [extent(512, 0), extent(512, 1), extent(512, 1)];
    let expected = vec![extent(512, 0), extent(512, 1)];
    assert_eq!(one(&session, &request, &extents), Ok(expected));
}

#[test]
fn what_lies_beyond_the_request_is_not_even_asked_of_the_backend() {
    let session = structured();
    let request = Request::block_status(C, 0, 1024);
    let mut asked = 0;
    let extents = std::iter::from_fn(|| {
        asked += 1;
        Some(extent(512, asked))
    });
    let mut reply = StatusReply::new(&session, &request).unwrap();
    assert_eq!(reply.context(OTHER, extents, &mut vec![]), Ok(1024));
    assert_eq!(asked, 2);
}

#[test]
fn no_extent_reaches_beyond_the_export() {
    let request = Request::block_status(C, 512, 1024);
    let expected = vec![extent((1 << 20) - 512, 0)];
    let extents = [extent(u64::MAX, 0)];
    assert_eq!(one(&structured(), &request, &extents), Ok(expected));
    // Nor into the part of the export behind its last whole block.
    let session = session(ReplyStyle::Structured, 512, 2000);
    let expected = vec![extent(1024, 0)];
    assert_eq!(one(&session, &request, &extents), Ok(expected));
}

#[test]
fn one_extent_that_was_asked_for_is_one_and_not_beyond_the_request() {
    let request = Request::block_status(C, 0, 1024).with_flags(CommandFlags::REQ_ONE);
    let session = structured();
    for (extents, expected) in [
        (vec![extent(512, 0), extent(512, 1)], 512),
        (vec![extent(512, 0), extent(4096, 0)], 1024),
        (vec![extent(1 << 20, 0)], 1024),
        (vec![extent(1030, 0)], 1024),
    ] {
        assert_eq!(
            one(&session, &request, &extents),
            Ok(vec![extent(expected, 0)])
        );
    }
    let extents = [extent(100, 0), extent(512, 1)];
    let unaligned = Err(IllegalReply::UnalignedExtent);
    assert_eq!(one(&session, &request, &extents), unaligned);
}

#[test]
fn no_chunk_has_more_extents_than_the_protocol_or_the_maximum_payload_allow() {
    let backend = |most: u64| (0..most).map(|at| extent(1, at % 2));
    let request = Request::block_status(C, 0, 3 << 20);
    for (style, max_payload, expected) in [
        (ReplyStyle::Structured, 4096, 512),
        (ReplyStyle::Extended, 4096, 256),
        (ReplyStyle::Structured, 1 << 25, 1 << 20),
        (ReplyStyle::Extended, u32::MAX, 1 << 20),
    ] {
        let session = session(style, 1, 3 << 20)
            .with_block_sizes(BlockSizes::new(1, 512, max_payload).unwrap());
        let mut wire = vec![];
        let mut reply = StatusReply::new(&session, &request).unwrap();
        let covered = reply.context(OTHER, backend(2 << 20), &mut wire);
        assert_eq!(covered, Ok(expected));
        assert_eq!(status(&chunks(&wire)[0]).1.len() as u64, expected);
    }
}

#[test]
fn a_length_beyond_32_bits_is_cut_to_a_block_where_there_are_32_bits() {
    let request = Request::block_status(C, 0, 1 << 20);
    let extents = [extent(1 << 35, 1), extent(1 << 35, 2)];
    let narrow = session(ReplyStyle::Structured, 512, 1 << 40);
    let expected = vec![extent((1 << 32) - 512, 1)];
    assert_eq!(one(&narrow, &request, &extents), Ok(expected));
    // What was cut off is not skipped over.
    let long = Request::block_status(C, 0, (1 << 32) - 512);
    let extents = [
        extent(512, 0),
        extent(1 << 31, 1),
        extent(1 << 35, 1),
        extent(512, 2),
    ];
    let expected = vec![extent(512, 0), extent((1 << 32) - 512, 1)];
    assert_eq!(one(&narrow, &long, &extents), Ok(expected));
    // Nor is it if the request is longer than any that such a session can have.
    let longer = Request::block_status(C, 0, 1 << 36);
    let extents = [extent(1 << 35, 1), extent(1 << 35, 2)];
    let expected = vec![extent((1 << 32) - 512, 1)];
    assert_eq!(one(&narrow, &longer, &extents), Ok(expected));
    // The longest that there is needs no cut: what follows may be told.
    let extents = vec![extent((1 << 32) - 512, 1), extent(512, 2), extent(512, 3)];
    assert_eq!(one(&narrow, &longer, &extents), Ok(extents.clone()));
    let wide = session(ReplyStyle::Extended, 512, 1 << 40);
    let request = Request::block_status(C, 0, 1 << 36);
    let expected = vec![extent(1 << 35, 1), extent(1 << 35, 2)];
    assert_eq!(one(&wide, &request, &expected), Ok(expected.clone()));
}

#[test]
fn flags_of_64_bits_are_for_contexts_that_are_not_base() {
    let session = session(ReplyStyle::Extended, 512, 1 << 20);
    let request = Request::block_status(C, 0, 512);
    let mut reply = StatusReply::new(&session, &request).unwrap();
    let wide = [extent(512, 1 << 63)];
    let mut wire = vec![];
    let told = reply.context(ALLOCATION, wide, &mut wire);
    assert_eq!(told, Err(IllegalReply::FlagsTooWide));
    reply.context(OTHER, wide, &mut wire).unwrap();
    assert_eq!(status(&chunks(&wire)[0]), (OTHER, wide.to_vec()));
}

#[test]
fn only_a_block_status_request_that_is_not_refused_gets_a_status() {
    let session = structured();
    let begin = |request: &Request| StatusReply::new(&session, request).err();
    assert_eq!(
        begin(&Request::read(C, 0, 512)),
        Some(IllegalReply::NotAStatus)
    );
    for (request, why) in [
        (Request::block_status(C, 0, 0), Refusal::EmptyStatus),
        (Request::block_status(C, 1 << 20, 512), Refusal::PastEnd),
        (Request::block_status(C, 1, 512), Refusal::Unaligned),
    ] {
        assert_eq!(begin(&request), Some(IllegalReply::ToBeRefused(why)));
    }
    let request = Request::block_status(C, 0, 512);
    for session in [
        structured().with_contexts(vec![]),
        structured().with_reply_style(ReplyStyle::Simple),
    ] {
        let why = StatusReply::new(&session, &request).err();
        let expected = IllegalReply::ToBeRefused(Refusal::NotAdvertised);
        assert_eq!(why, Some(expected));
    }
}

#[test]
fn an_error_ends_a_reply_and_may_say_where() {
    let session = structured();
    let request = Request::block_status(C, 512, 512);
    let mut wire = vec![];
    let mut reply = StatusReply::new(&session, &request).unwrap();
    reply.context(OTHER, [extent(512, 0)], &mut wire).unwrap();
    for offset in [511, 1024] {
        let told = reply.error_at(offset, Errno::EIO, "", &mut wire);
        assert_eq!(told, Err(IllegalReply::OutOfRange));
    }
    reply
        .error_at(1023, Errno::EIO, "no seek", &mut wire)
        .unwrap();
    let found = chunks(&wire);
    assert_eq!((found[0].done, found[1].done), (false, true));
    let kind = found[1].kind.into();
    let error = ErrorChunk::parse(kind, &found[1].payload).unwrap();
    assert_eq!(
        (error.error, error.text().as_ref(), error.offset),
        (Errno::EIO, "no seek", Some(1023))
    );
}
