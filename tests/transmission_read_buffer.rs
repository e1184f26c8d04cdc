//! Reads put together from chunks in any order, and what is good of a read that failed.

use std::iter::once;
use std::ops::Range;

use nbd_proto::limits::Limits;
use nbd_proto::session::{ReplyStyle, Session};
use nbd_proto::transmission::client::Payload;
use nbd_proto::transmission::{
    Chunks, ReadBuffer, ReplyDecoder, ReplyEncoder, ReplyEvent, WrongBuffer,
};
use nbd_proto::wire::{Cookie, Errno, Name, Request, TransmissionFlags};
use proptest::prelude::*;

const C: Cookie = Cookie(5);
const START: u64 = (1 << 40) + 1;

fn session(style: ReplyStyle) -> Session {
    Session::new(Name::default(), 1 << 41, TransmissionFlags::HAS_FLAGS).with_reply_style(style)
}

fn read(length: u64) -> Request {
    Request::read(C, START, length)
}

fn data(offset: u64, bytes: &[u8], left: u64) -> ReplyEvent<'_> {
    let offset = START + offset;
    ReplyEvent::Data {
        cookie: C,
        offset,
        bytes,
        left,
    }
}

const fn hole<'b>(offset: u64, length: u64) -> ReplyEvent<'b> {
    let offset = START + offset;
    ReplyEvent::Hole {
        cookie: C,
        offset,
        length,
    }
}

fn error<'b>(offset: Option<u64>) -> ReplyEvent<'b> {
    ReplyEvent::Error {
        cookie: C,
        errno: Errno::EIO,
        offset: offset.map(|offset| START + offset),
        message: String::new(),
    }
}

const fn finished<'b>(result: Result<(), Errno>) -> ReplyEvent<'b> {
    ReplyEvent::Finished { cookie: C, result }
}

/// The parts of 8 bytes that are good after the events, and the memory.
fn good(events: &[ReplyEvent<'_>]) -> (Vec<Range<u64>>, [u8; 8]) {
    let mut memory = *b"........";
    let mut buffer = ReadBuffer::new(&read(8), &mut memory).unwrap();
    for event in events {
        assert!(buffer.take(event), "{event:?}");
    }
    let good = buffer.good().map(|it| it.start - START..it.end - START);
    (good.collect(), memory)
}

#[test]
fn chunks_find_their_place_in_any_order_and_holes_are_zeroes() {
    let (parts, memory) = good(&[
        data(5, b"fgh", 0),
        hole(2, 3),
        data(0, b"a", 1),
        data(1, b"b", 0),
        finished(Ok(())),
    ]);
    assert_eq!(&memory, b"ab\0\0\0fgh");
    assert_eq!(parts, [0..2, 2..5, 5..8]);
}

#[test]
fn nothing_is_good_before_the_reply_has_ended() {
    assert_eq!(good(&[data(0, b"abcdefgh", 0)]).0, []);
}

#[test]
fn an_error_without_offset_leaves_nothing_good() {
    let end = finished(Err(Errno::EIO));
    let (parts, _) = good(&[data(0, b"abcdefgh", 0), error(None), end.clone()]);
    assert_eq!(parts, []);
    // Also together with one that has an offset.
    let (parts, _) = good(&[data(0, b"abcd", 0), error(None), error(Some(2)), end]);
    assert_eq!(parts, []);
}

#[test]
fn after_errors_with_offsets_a_chunk_is_good_up_to_the_first_in_it() {
    let end = finished(Err(Errno::EIO));
    let (parts, _) = good(&[
        data(0, b"abc", 0),
        data(3, b"def", 0),
        error(Some(5)),
        error(Some(4)),
        error(Some(5)),
        end.clone(),
    ]);
    assert_eq!(parts, [0..3, 3..4]);
    // The chunk behind the bad one is not touched by it, although it is adjacent.
    let (parts, _) = good(&[hole(0, 4), data(4, b"efgh", 0), error(Some(1)), end.clone()]);
    assert_eq!(parts, [0..1, 4..8]);
    // An error where nothing came; an error on the first byte.
    let (parts, _) = good(&[
        data(0, b"ab", 0),
        error(Some(2)),
        error(Some(7)),
        end.clone(),
    ]);
    assert!(parts.into_iter().eq(once(0..2)));
    let (parts, _) = good(&[error(Some(7)), data(0, b"ab", 0), error(Some(0)), end]);
    assert_eq!(parts, []);
}

#[test]
fn a_chunk_in_pieces_is_one_chunk() {
    let (parts, _) = good(&[
        data(0, b"ab", 6),
        data(2, b"cd", 4),
        data(4, b"efgh", 0),
        error(Some(3)),
        finished(Err(Errno::EIO)),
    ]);
    assert!(parts.into_iter().eq(once(0..3)));
}

#[test]
fn events_of_others_and_after_the_end_are_not_taken() {
    let mut memory = [9; 8];
    let mut buffer = ReadBuffer::new(&read(8), &mut memory).unwrap();
    let other = Cookie(6);
    let events = [
        data(0, b"abcdefgh", 0),
        hole(0, 8),
        error(None),
        error(Some(4)),
        finished(Ok(())),
    ];
    for mut event in events {
        if let ReplyEvent::Data { cookie, .. }
        | ReplyEvent::Hole { cookie, .. }
        | ReplyEvent::Error { cookie, .. }
        | ReplyEvent::Finished { cookie, .. } = &mut event
        {
            *cookie = other;
        }
        assert!(!buffer.take(&event), "{event:?}");
    }
    let payload = |cookie| Payload {
        cookie,
        offset: START,
        left: 8,
    };
    assert_eq!(buffer.room(&payload(other)), None);
    assert_eq!(buffer.result(), None);
    assert!(buffer.take(&finished(Err(Errno::EPERM))));
    assert_eq!(buffer.result(), Some(Err(Errno::EPERM)));
    // The cookie is free, and may be that of another read.
    assert!(!buffer.take(&data(0, b"abcdefgh", 0)));
    assert_eq!(buffer.room(&payload(C)), None);
    assert!(!buffer.take(&finished(Ok(()))));
    assert_eq!(buffer.good().count(), 0);
    assert_eq!(memory, [9; 8]);
}

#[test]
fn a_buffer_of_another_size_or_for_another_command_is_refused() {
    let mut memory = [0; 8];
    for request in [
        read(7),
        read(9),
        read(u64::MAX),
        Request::write(C, START, 8),
    ] {
        let made = ReadBuffer::new(&request, &mut memory).err();
        assert_eq!(made, Some(WrongBuffer { buffer: 8 }));
    }
    assert!(ReadBuffer::new(&Request::read(C, 0, 0), &mut []).is_ok());
}

#[test]
fn events_that_no_decoder_lets_through_do_no_harm() {
    let mut memory = [9; 8];
    let mut buffer = ReadBuffer::new(&read(8), &mut memory).unwrap();
    for event in [
        hole(7, 2),
        hole(0, 1 << 32),
        hole(0, u64::MAX),
        ReplyEvent::Hole {
            cookie: C,
            offset: 0,
            length: 8,
        },
        data(7, b"xy", 0),
        error(Some(100)),
    ] {
        buffer.take(&event);
    }
    buffer.take(&finished(Ok(())));
    assert_eq!(buffer.good().count(), 0);
    assert_eq!(memory, [9; 8]);
}

#[test]
fn data_may_be_read_straight_into_its_room() {
    let session = session(ReplyStyle::Structured);
    let request = read(8);
    let mut reply = ReplyEncoder::new(&session).chunks(&request).unwrap();
    let mut wire = reply.data(START + 4, 4).unwrap().to_vec();
    wire.extend(b"efgh");
    wire.extend_from_slice(&reply.last_data(START, 4).unwrap());
    wire.extend(b"abcd");

    let mut decoder = ReplyDecoder::new(&session, &Limits::new(), 1);
    decoder.expect(&request).unwrap();
    let mut memory = [0; 8];
    let mut buffer = ReadBuffer::new(&request, &mut memory).unwrap();
    let (mut at, mut turns) = (0, 0);
    while buffer.result().is_none() {
        turns += 1;
        assert!(turns < 50, "does not come to an end");
        if let Some(payload) = decoder.payload() {
            // Three bytes at a time, as a short read does.
            let room = buffer.room(&payload).expect("it is for this read");
            assert_eq!(room.len() as u64, payload.left);
            let len = room.len().min(3);
            room[..len].copy_from_slice(&wire[at..at + len]);
            decoder.payload_read(len as u64);
            at += len;
            continue;
        }
        let mut input = &wire[at..wire.len().min(at + decoder.wants())];
        let before = input.len();
        if let Some(event) = decoder.next(&mut input).unwrap() {
            assert!(buffer.take(&event));
        }
        at += before - input.len();
    }
    assert_eq!(buffer.result(), Some(Ok(())));
    assert!(buffer.good().eq([START..START + 4, START + 4..START + 8]));
    assert_eq!(&memory, b"abcdefgh");
}

// --- against a server that fails here and there ---

const LENGTH: u64 = 64;

/// What the byte at an offset of the read is.
const fn content(at: u64) -> u8 {
    if at % 16 < 4 { 0 } else { at as u8 | 0x80 }
}

#[derive(Clone, Debug)]
enum Part {
    Data(u64, u64),
    Hole(u64, u64),
    ErrorAt(u64),
    Error,
}

fn parts() -> impl Strategy<Value = Vec<Part>> {
    let at = || (0..LENGTH, 1..20u64);
    let part = prop_oneof![
        12 => at().prop_map(|(at, len)| Part::Data(at, len)),
        6 => (0..4u64, 0..4u64).prop_map(|(block, at)| Part::Hole(block * 16 + at, 4 - at)),
        3 => (0..LENGTH).prop_map(Part::ErrorAt),
        1 => Just(Part::Error),
    ];
    prop::collection::vec(part, 0..20)
}

/// What a server with these parts sends, and which bytes are good by the rule of the text, byte by
/// byte: `None` if the reply is a success.
fn serve(reply: &mut Chunks, parts: &[Part]) -> (Vec<u8>, Option<Vec<bool>>) {
    let mut wire = vec![];
    let mut sent: Vec<Range<u64>> = vec![];
    let (mut errors, mut general) = (vec![], false);
    for part in parts {
        match *part {
            Part::Data(at, length) => {
                if let Ok(head) = reply.data(START + at, length as u32) {
                    wire.extend_from_slice(&head);
                    wire.extend((at..at + length).map(content));
                    sent.push(at..at + length);
                }
            }
            Part::Hole(at, length) => {
                if let Ok(head) = reply.hole(START + at, length as u32) {
                    wire.extend_from_slice(&head);
                    sent.push(at..at + length);
                }
            }
            Part::ErrorAt(at) => {
                let told = reply.error_at(START + at, Errno::EIO, "here", &mut wire);
                errors.extend(told.ok().map(|()| at));
            }
            Part::Error => general |= reply.error(Errno::EIO, "", &mut wire).is_ok(),
        }
    }
    if errors.is_empty() && !general {
        while let Some(gap) = reply.gap() {
            // Byte by byte: what is behind may have come.
            let at = gap - START;
            if let Ok(head) = reply.last_data(gap, 1) {
                wire.extend_from_slice(&head);
                wire.push(content(at));
                return (wire, None);
            }
            wire.extend_from_slice(&reply.data(gap, 1).unwrap());
            wire.push(content(at));
        }
        wire.extend_from_slice(&reply.done().unwrap());
        return (wire, None);
    }
    wire.extend_from_slice(&reply.done().unwrap());
    let good = (0..LENGTH).map(|byte| {
        let chunk = sent.iter().find(|chunk| chunk.contains(&byte));
        chunk
            .is_some_and(|chunk| !general && !errors.iter().any(|&e| chunk.start <= e && e <= byte))
    });
    (wire, Some(good.collect()))
}

proptest! {
    #[test]
    fn what_is_good_is_what_the_text_says_and_as_the_server_has_it(
        parts in parts(),
        extended: bool,
        cuts in prop::collection::vec(1usize..50, 1..4),
        direct: bool,
    ) {
        let style = if extended { ReplyStyle::Extended } else { ReplyStyle::Structured };
        let (session, request) = (session(style), read(LENGTH));
        let mut reply = ReplyEncoder::new(&session).chunks(&request).unwrap();
        let (wire, expected) = serve(&mut reply, &parts);

        let mut decoder = ReplyDecoder::new(&session, &Limits::new(), 1);
        decoder.expect(&request).unwrap();
        let mut memory = [0x55; LENGTH as usize];
        let mut buffer = ReadBuffer::new(&request, &mut memory).unwrap();
        let (mut at, mut turn) = (0, 0);
        while at < wire.len() {
            let end = wire.len().min(at + cuts[turn % cuts.len()]);
            turn += 1;
            let mut input = &wire[at..end];
            at = end;
            loop {
                if let Some(payload) = decoder.payload().filter(|_| direct && !input.is_empty()) {
                    let room = buffer.room(&payload).unwrap();
                    let len = room.len().min(input.len());
                    room[..len].copy_from_slice(&input[..len]);
                    decoder.payload_read(len as u64);
                    input = &input[len..];
                    continue;
                }
                let Some(event) = decoder.next(&mut input).unwrap() else { break };
                prop_assert_eq!(buffer.good().count(), 0);
                prop_assert!(buffer.take(&event));
            }
        }
        prop_assert_eq!(buffer.result().map(|it| it.is_ok()), Some(expected.is_none()));
        let mut good = [false; LENGTH as usize];
        let mut last = 0;
        for range in buffer.good() {
            prop_assert!(range.start >= last && range.end > range.start);
            last = range.end;
            (range.start..range.end).for_each(|byte| good[(byte - START) as usize] = true);
        }
        let expected = expected.unwrap_or_else(|| vec![true; LENGTH as usize]);
        prop_assert_eq!(&good[..], &expected[..]);
        for (at, byte) in (0..).zip(memory) {
            prop_assert!(!good[at as usize] || byte == content(at));
        }
    }
}
