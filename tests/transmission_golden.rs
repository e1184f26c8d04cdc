//! Replies written out field by field from the protocol text, where no captured session has them:
//! what our server makes of each, and what our client makes of that.

use hex_literal::hex;
use nbd_proto::limits::Limits;
use nbd_proto::session::{BlockSizes, MetaContext, ReplyStyle, Session};
use nbd_proto::transmission::{ReplyDecoder, ReplyEncoder, StatusReply};
use nbd_proto::wire::{
    CommandFlags, Cookie, Errno, Extent, Name, Request, StatusQuery, TransmissionFlags,
};

const C: Cookie = Cookie(0x0102_0304_0506_0708);

fn session(style: ReplyStyle) -> Session {
    let flags = TransmissionFlags::from_bits_retain(0x1fff) - TransmissionFlags::READ_ONLY;
    let contexts = [(1, "base:allocation"), (2, "x-test:two")];
    let contexts = contexts.map(|(id, name)| MetaContext {
        id,
        name: Name::new(name).unwrap(),
    });
    Session::new(Name::default(), 1 << 40, flags)
        .with_reply_style(style)
        .with_block_sizes(BlockSizes::new(1, 512, 1 << 20).unwrap())
        .with_contexts(contexts.into())
}

/// The events that our client has of the bytes, as text.
fn understood(style: ReplyStyle, request: &Request, query: &[u8], wire: &[u8]) -> Vec<String> {
    let mut decoder = ReplyDecoder::new(&session(style), &Limits::new(), 1);
    match StatusQuery::parse(query) {
        Ok(query) => decoder.expect_status(request, &query).unwrap(),
        Err(_) => decoder.expect(request).unwrap(),
    }
    let mut input = wire;
    let mut events = vec![];
    while let Some(event) = decoder.next(&mut input).unwrap() {
        events.push(format!("{event:?}"));
    }
    assert!(input.is_empty() && decoder.on_eof().is_ok());
    events
}

fn check(style: ReplyStyle, request: &Request, wire: &[u8], expected: &[u8], events: &[&str]) {
    assert_eq!(wire, expected);
    let found = understood(style, request, &[], wire);
    assert_eq!(found.len(), events.len(), "{found:?}");
    for (found, expected) in found.iter().zip(events) {
        assert!(found.starts_with(expected), "{found}");
    }
}

#[test]
fn a_structured_read_of_data_a_hole_and_an_error_with_offset() {
    let style = ReplyStyle::Structured;
    let request = Request::read(C, 0x1000, 0x18);
    let mut reply = ReplyEncoder::new(&session(style)).chunks(&request).unwrap();
    let mut wire = reply.data(0x1008, 3).unwrap().to_vec();
    wire.extend(b"abc");
    wire.extend_from_slice(&reply.hole(0x1000, 8).unwrap());
    reply
        .error_at(0x100a, Errno::EIO, "bad", &mut wire)
        .unwrap();
    wire.extend_from_slice(&reply.done().unwrap());
    let expected = hex!(
        // NBD_REPLY_TYPE_OFFSET_DATA: 8 + 3 bytes
        "668e33ef 0000 0001 0102030405060708 0000000b  0000000000001008 616263"
        // NBD_REPLY_TYPE_OFFSET_HOLE: 12 bytes
        "668e33ef 0000 0002 0102030405060708 0000000c  0000000000001000 00000008"
        // NBD_REPLY_TYPE_ERROR_OFFSET: NBD_EIO, 3 bytes of message, offset
        "668e33ef 0000 8002 0102030405060708 00000011  00000005 0003 626164 000000000000100a"
        // NBD_REPLY_TYPE_NONE with NBD_REPLY_FLAG_DONE
        "668e33ef 0001 0000 0102030405060708 00000000"
    );
    let events = ["Data", "Hole", "Error", "Finished"];
    check(style, &request, &wire, &expected, &events);
}

#[test]
fn the_same_in_extended_chunks() {
    let style = ReplyStyle::Extended;
    let request = Request::read(C, 0x1000, 0x18);
    let mut reply = ReplyEncoder::new(&session(style)).chunks(&request).unwrap();
    let mut wire = reply.data(0x1008, 3).unwrap().to_vec();
    wire.extend(b"abc");
    wire.extend_from_slice(&reply.hole(0x1000, 8).unwrap());
    reply
        .error_at(0x100a, Errno::EIO, "bad", &mut wire)
        .unwrap();
    wire.extend_from_slice(&reply.last_data(0x100b, 1).unwrap());
    wire.extend(b"d");
    // The offset in the header is that of the request, whatever the payload is about.
    let expected = hex!(
        "6e8a278c 0000 0001 0102030405060708 0000000000001000 000000000000000b"
        "0000000000001008 616263"
        "6e8a278c 0000 0002 0102030405060708 0000000000001000 000000000000000c"
        "0000000000001000 00000008"
        "6e8a278c 0000 8002 0102030405060708 0000000000001000 0000000000000011"
        "00000005 0003 626164 000000000000100a"
        "6e8a278c 0001 0001 0102030405060708 0000000000001000 0000000000000009"
        "000000000000100b 64"
    );
    let events = ["Data", "Hole", "Error", "Data", "Finished"];
    check(style, &request, &wire, &expected, &events);
}

#[test]
fn errors_without_a_read() {
    for (style, expected) in [
        (
            ReplyStyle::Structured,
            &hex!(
                "668e33ef 0001 8002 0102030405060708 00000010  0000001c 0002 6e6f 0000000000000203"
            )[..],
        ),
        (
            ReplyStyle::Extended,
            &hex!(
                "6e8a278c 0001 8002 0102030405060708 0000000000000200 0000000000000010"
                "0000001c 0002 6e6f 0000000000000203"
            ),
        ),
    ] {
        let request = Request::write(C, 0x200, 4);
        let mut wire = vec![];
        let encoder = ReplyEncoder::new(&session(style));
        encoder
            .error_at(&request, 0x203, Errno::ENOSPC, "no", &mut wire)
            .unwrap();
        check(style, &request, &wire, expected, &["Error", "Finished"]);
    }
    let request = Request::trim(C, 0x200, 4);
    let head = ReplyEncoder::new(&session(ReplyStyle::Extended)).shutting_down(&request);
    let expected =
        hex!("6e8a278c 0001 8001 0102030405060708 0000000000000200 0000000000000006 0000006c 0000");
    let events = ["Error", "Finished"];
    check(ReplyStyle::Extended, &request, &head, &expected, &events);
}

#[test]
fn block_status_of_two_contexts_in_32_and_in_64_bits() {
    let extents = [
        Extent {
            length: 0x1000,
            flags: 3,
        },
        Extent {
            length: 0x2000,
            flags: 0,
        },
    ];
    for (style, expected) in [
        (
            ReplyStyle::Structured,
            &hex!(
                "668e33ef 0000 0005 0102030405060708 00000014"
                "00000002  00001000 00000003  00002000 00000000"
                "668e33ef 0001 0005 0102030405060708 0000000c  00000001  00001000 00000003"
            )[..],
        ),
        (
            ReplyStyle::Extended,
            &hex!(
                "6e8a278c 0000 0006 0102030405060708 0000000000000200 0000000000000028"
                "00000002 00000002"
                "0000000000001000 0000000000000003  0000000000002000 0000000000000000"
                "6e8a278c 0001 0006 0102030405060708 0000000000000200 0000000000000018"
                "00000001 00000001  0000000000001000 0000000000000003"
            ),
        ),
    ] {
        let session = session(style);
        let request = Request::block_status(C, 0x200, 0x2000);
        let mut wire = vec![];
        let mut reply = StatusReply::new(&session, &request).unwrap();
        reply.context(2, extents, &mut wire).unwrap();
        reply.context(1, [extents[0]], &mut wire).unwrap();
        check(
            style,
            &request,
            &wire,
            expected,
            &["Status", "Status", "Finished"],
        );
    }
}

#[test]
fn block_status_of_one_context_and_one_extent_beyond_32_bits() {
    let session = session(ReplyStyle::Extended);
    let flags = CommandFlags::PAYLOAD_LEN | CommandFlags::REQ_ONE;
    let request = Request::block_status(C, 0x200, 12).with_flags(flags);
    // 64 bits of effect length, and context 2.
    let payload = hex!("0000000200000000 00000002");
    let query = session.check_status_payload(&request, &payload).unwrap();
    let mut wire = vec![];
    let mut reply = StatusReply::for_query(&session, &request, &query).unwrap();
    let extents = [Extent {
        length: 1 << 39,
        flags: 1 << 63,
    }];
    reply.context(2, extents, &mut wire).unwrap();
    let expected = hex!(
        "6e8a278c 0001 0006 0102030405060708 0000000000000200 0000000000000018"
        "00000002 00000001  0000000200000000 8000000000000000"
    );
    assert_eq!(wire, expected);
    let events = understood(ReplyStyle::Extended, &request, &payload, &wire);
    assert_eq!(events.len(), 2);
}
