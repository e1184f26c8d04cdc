//! What a server does with requests: framing, payload, and the end of a session.

use nbd_proto::limits::Limits;
use nbd_proto::session::{BlockSizes, ReplyStyle, Session};
use nbd_proto::transmission::server::Fatal;
use nbd_proto::transmission::{IllegalReply, Refusal, ReplyEncoder, RequestDecoder, RequestEvent};
use nbd_proto::wire::{
    BadMagic, Chunk, ChunkType, CommandFlags, CommandType, Cookie, Errno, ErrorChunk, Name,
    ReplyFlags, Request, SimpleReply, TransmissionFlags,
};

const C: Cookie = Cookie(0xc0);

fn session(style: ReplyStyle) -> Session {
    Session::new(Name::default(), 1 << 20, TransmissionFlags::HAS_FLAGS)
        .with_reply_style(style)
        .with_block_sizes(BlockSizes::new(1, 512, 4096).unwrap())
}

fn limits() -> Limits {
    Limits::new().with_max_drain(8192)
}

fn decoder(style: ReplyStyle) -> RequestDecoder {
    RequestDecoder::new(&session(style), &limits())
}

fn compact(request: Request) -> Vec<u8> {
    request.to_compact().unwrap().to_vec()
}

#[test]
fn the_payload_of_a_refused_write_is_not_taken_for_the_next_header() {
    let session = session(ReplyStyle::Simple);
    let mut decoder = decoder(ReplyStyle::Simple);
    // The payload is a disconnect; only a decoder that lost its place would see it.
    let payload = compact(Request::disconnect());
    let mut wire = compact(Request::write(C, 1 << 20, payload.len() as u64));
    wire.extend(&payload);
    wire.extend(compact(Request::read(Cookie(2), 0, 1)));
    let mut input = &wire[..];
    let Ok(Some(RequestEvent::Request(write))) = decoder.next(&mut input) else {
        panic!("no request");
    };
    assert_eq!(session.check(&write), Err(Refusal::NoSpace));
    decoder.skip_payload();
    assert_eq!(decoder.payload_left(), 28);
    assert_eq!(
        decoder.next(&mut input),
        Ok(Some(RequestEvent::Request(Request::read(Cookie(2), 0, 1))))
    );
    assert_eq!(decoder.next(&mut input), Ok(None));
    assert_eq!(decoder.on_eof(), Ok(()));
}

#[test]
fn payload_that_the_caller_forgets_is_lent_and_not_decoded() {
    let mut decoder = decoder(ReplyStyle::Simple);
    let payload = compact(Request::disconnect());
    let mut wire = compact(Request::write(C, 0, payload.len() as u64));
    wire.extend(&payload);
    let mut input = &wire[..];
    assert!(matches!(
        decoder.next(&mut input),
        Ok(Some(RequestEvent::Request(_)))
    ));
    assert_eq!(
        decoder.next(&mut input),
        Ok(Some(RequestEvent::Payload(&payload)))
    );
}

#[test]
fn a_payload_above_the_maximum_is_skipped_and_refused() {
    let session = session(ReplyStyle::Simple);
    let mut decoder = decoder(ReplyStyle::Simple);
    let mut wire = compact(Request::write(C, 0, 8192));
    wire.extend([0xee; 8192]);
    wire.extend(compact(Request::disconnect()));
    let mut input = &wire[..];
    let Ok(Some(RequestEvent::Request(write))) = decoder.next(&mut input) else {
        panic!("no request");
    };
    assert_eq!(session.check(&write), Err(Refusal::PayloadTooLarge));
    decoder.skip_payload();
    assert_eq!(decoder.next(&mut input), Ok(Some(RequestEvent::Disconnect)));
}

#[test]
fn an_absurd_payload_ends_the_session_for_good() {
    for (style, header) in [
        (ReplyStyle::Simple, compact(Request::write(C, 0, 8193))),
        (
            ReplyStyle::Extended,
            Request::flush(C)
                .with_flags(CommandFlags::PAYLOAD_LEN)
                .with_length(u64::MAX)
                .to_extended()
                .to_vec(),
        ),
    ] {
        let mut decoder = decoder(style);
        let result = decoder.next(&mut &header[..]);
        let Err(why @ Fatal::PayloadTooLarge { cookie: C, .. }) = result else {
            panic!("{result:?}");
        };
        // Poisoned: what comes after is not looked at.
        let flush = compact(Request::flush(C));
        let mut input = &flush[..];
        assert_eq!(decoder.next(&mut input), Err(why));
        assert_eq!(input.len(), 28);
        assert_eq!((decoder.wants(), decoder.payload_left()), (0, 0));
        decoder.payload_read(5);
        decoder.skip_payload();
        assert_eq!(decoder.next(&mut input), Err(why));
        assert_eq!(decoder.on_eof(), Err(why));
    }
}

trait WithLength {
    fn with_length(self, length: u64) -> Self;
}

impl WithLength for Request {
    fn with_length(mut self, length: u64) -> Self {
        self.length = length;
        self
    }
}

#[test]
fn what_is_not_a_request_ends_the_session() {
    for style in [ReplyStyle::Simple, ReplyStyle::Extended] {
        let found = u64::from(u32::from_be_bytes(*b"GET "));
        assert_eq!(
            decoder(style).next(&mut &b"GET / HTTP/1.1\r\nHost: localhost\r\n"[..]),
            Err(Fatal::Magic(BadMagic { found }))
        );
    }
    // The header of the other style is no better.
    let mut wire = Request::flush(C).to_extended().to_vec();
    assert!(
        decoder(ReplyStyle::Structured)
            .next(&mut &wire[..])
            .is_err()
    );
    wire = compact(Request::flush(C));
    wire.extend([0; 4]);
    assert!(decoder(ReplyStyle::Extended).next(&mut &wire[..]).is_err());
}

#[test]
fn only_a_write_has_payload_in_the_compact_style() {
    let mut decoder = decoder(ReplyStyle::Structured);
    for kind in (0..10).filter(|&kind| kind != 2) {
        let request = Request::new(kind.into(), C, 0, 16).with_flags(CommandFlags::PAYLOAD_LEN);
        decoder.next(&mut &compact(request)[..]).unwrap();
        assert_eq!(decoder.payload_left() > 0, kind == 1, "{kind}");
        decoder.payload_read(decoder.payload_left());
    }
}

#[test]
fn any_command_may_have_payload_in_the_extended_style_and_the_flag_says_so() {
    let mut decoder = decoder(ReplyStyle::Extended);
    for kind in (0..10).filter(|&kind| kind != 2) {
        let request = Request::new(kind.into(), C, 0, 16);
        decoder.next(&mut &request.to_extended()[..]).unwrap();
        // A write has payload also without the flag, as qemu's client sends it.
        assert_eq!(decoder.payload_left() > 0, kind == 1, "{kind}");
        decoder.payload_read(decoder.payload_left());
        let request = request.with_flags(CommandFlags::PAYLOAD_LEN);
        decoder.next(&mut &request.to_extended()[..]).unwrap();
        assert_eq!(decoder.payload_left(), 16, "{kind}");
        decoder.payload_read(16);
    }
}

#[test]
fn nothing_after_a_disconnect_is_touched() {
    let mut decoder = decoder(ReplyStyle::Simple);
    let mut wire = compact(Request::disconnect());
    wire.extend(b"and more");
    let mut input = &wire[..];
    assert_eq!(decoder.next(&mut input), Ok(Some(RequestEvent::Disconnect)));
    assert_eq!(decoder.next(&mut input), Ok(None));
    assert_eq!(input, b"and more");
    assert_eq!(decoder.wants(), 0);
    assert_eq!(decoder.on_eof(), Ok(()));
}

#[test]
fn wants_never_reaches_beyond_the_message_at_hand() {
    for (style, len) in [(ReplyStyle::Simple, 28), (ReplyStyle::Extended, 32)] {
        let mut decoder = decoder(style);
        let write = Request::write(C, 0, 100).with_flags(CommandFlags::PAYLOAD_LEN);
        let wire = match style {
            ReplyStyle::Extended => write.to_extended().to_vec(),
            _ => compact(write),
        };
        for at in 0..len {
            assert_eq!(decoder.wants(), len - at);
            decoder.next(&mut &wire[at..=at]).unwrap();
        }
        assert_eq!(decoder.wants(), 100);
        decoder.next(&mut &[0; 60][..]).unwrap();
        assert_eq!(decoder.wants(), 40);
        decoder.payload_read(40);
        assert_eq!(decoder.wants(), len);
    }
}

#[test]
fn the_end_of_the_stream_is_clean_only_between_requests() {
    let mut decoder = decoder(ReplyStyle::Simple);
    assert_eq!(decoder.on_eof(), Ok(()));
    let wire = compact(Request::write(C, 0, 2));
    decoder.next(&mut &wire[..27]).unwrap();
    assert_eq!(decoder.on_eof(), Err(Fatal::Eof));
    decoder.next(&mut &wire[27..]).unwrap();
    assert_eq!(decoder.on_eof(), Err(Fatal::Eof));
    decoder.payload_read(1);
    assert_eq!(decoder.on_eof(), Err(Fatal::Eof));
    decoder.skip_payload();
    assert_eq!(decoder.on_eof(), Err(Fatal::Eof));
    decoder.next(&mut &[0][..]).unwrap();
    assert_eq!(decoder.on_eof(), Ok(()));
}

#[test]
fn reading_more_payload_than_there_is_ends_the_session() {
    let mut decoder = decoder(ReplyStyle::Simple);
    let wire = compact(Request::write(C, 0, 2));
    decoder.next(&mut &wire[..]).unwrap();
    decoder.payload_read(3);
    assert_eq!(decoder.next(&mut &[][..]), Err(Fatal::Overread));
}

#[test]
fn many_requests_are_decoded_from_one_buffer() {
    let mut wire = vec![];
    for at in 0..1000 {
        wire.extend(compact(Request::read(Cookie(at), at * 512, 512)));
    }
    let mut decoder = decoder(ReplyStyle::Simple);
    let mut input = &wire[..];
    for at in 0..1000 {
        let expected = RequestEvent::Request(Request::read(Cookie(at), at * 512, 512));
        assert_eq!(decoder.next(&mut input), Ok(Some(expected)));
    }
    assert!(input.is_empty());
}

// --- replies ---

fn encoder(style: ReplyStyle) -> ReplyEncoder {
    ReplyEncoder::new(&session(style))
}

#[test]
fn success_is_a_simple_reply_where_that_is_allowed() {
    let reply = SimpleReply {
        result: Ok(()),
        cookie: C,
    };
    let flush = Request::flush(C);
    for style in [ReplyStyle::Simple, ReplyStyle::Structured] {
        assert_eq!(encoder(style).ok(&flush).as_ref(), reply.to_bytes());
    }
    let done = Chunk {
        flags: ReplyFlags::DONE,
        kind: ChunkType::NONE,
        cookie: C,
        length: 0,
    };
    let trim = Request::trim(C, 77, 1);
    let head = encoder(ReplyStyle::Extended).ok(&trim);
    assert_eq!(head.as_ref(), done.to_extended(77));
    // A read of nothing has no data chunk, and must not have a simple reply either.
    let read = encoder(ReplyStyle::Structured).read(&Request::read(C, 77, 0));
    assert_eq!(read.unwrap().as_ref(), done.to_structured().unwrap());
}

#[test]
fn success_without_the_data_that_belongs_to_it_becomes_an_error() {
    for request in [Request::read(C, 0, 1), Request::block_status(C, 0, 1)] {
        let head = encoder(ReplyStyle::Simple).ok(&request);
        let reply = SimpleReply::from_bytes(head.as_ref().try_into().unwrap()).unwrap();
        assert_eq!(reply.result, Err(Errno::EIO));
        let head = encoder(ReplyStyle::Structured).ok(&request);
        assert_eq!(
            head,
            encoder(ReplyStyle::Structured).fail(&request, Errno::EIO)
        );
    }
}

#[test]
fn a_whole_read_is_one_head_and_the_data() {
    let read = Request::read(C, 0x1000, 0x200);
    let head = |style| encoder(style).read(&read).unwrap();
    assert_eq!(head(ReplyStyle::Simple).len(), 16);
    let head_ = head(ReplyStyle::Structured);
    let (chunk, offset) = head_.split_first_chunk().unwrap();
    let chunk = Chunk::from_structured(chunk).unwrap();
    assert_eq!(
        (chunk.kind, chunk.flags, chunk.length),
        (ChunkType::OFFSET_DATA, ReplyFlags::DONE, 0x208)
    );
    assert_eq!(offset, 0x1000u64.to_be_bytes());
    assert_eq!(head(ReplyStyle::Extended).len(), 40);
    assert_eq!(
        encoder(ReplyStyle::Simple).read(&Request::write(C, 0, 1)),
        Err(IllegalReply::NotARead)
    );
    assert_eq!(
        encoder(ReplyStyle::Simple).read(&Request::read(C, 0, 4097)),
        Err(IllegalReply::TooLarge)
    );
}

#[test]
fn an_error_has_its_message_where_there_is_room_and_never_data() {
    let read = Request::read(C, 0, 512);
    let mut out = vec![];
    encoder(ReplyStyle::Simple).error(&read, Errno::EIO, "disk on fire", &mut out);
    assert_eq!(out.len(), 16);
    out.clear();
    encoder(ReplyStyle::Structured).error(&read, Errno::EIO, "disk on fire", &mut out);
    let error = ErrorChunk::parse(ChunkType::ERROR, &out[20..]).unwrap();
    assert_eq!(
        (error.error, error.message),
        (Errno::EIO, &b"disk on fire"[..])
    );
    let chunk = Chunk::from_structured(out[..20].try_into().unwrap()).unwrap();
    assert_eq!((chunk.kind, chunk.length), (ChunkType::ERROR, 18));
    assert!(chunk.is_last());
}

#[test]
fn errors_that_the_protocol_does_not_know_go_out_as_einval() {
    for errno in [Errno(0), Errno(2), Errno(9999)] {
        let head = encoder(ReplyStyle::Simple).fail(&Request::flush(C), errno);
        let reply = SimpleReply::from_bytes(head.as_ref().try_into().unwrap()).unwrap();
        assert_eq!(reply.result, Err(Errno::EINVAL));
    }
}

#[test]
fn eoverflow_is_for_commands_without_payload_above_the_maximum_payload() {
    // proto.md "Error values": "when a command without payload requests a length larger than an
    // advertised maximum payload length". It is 4096 bytes.
    for make in [Request::trim, Request::cache, Request::write_zeroes] {
        for (length, expected) in [(4096, Errno::EINVAL), (4097, Errno::EOVERFLOW)] {
            let head = encoder(ReplyStyle::Simple).fail(&make(C, 0, length), Errno::EOVERFLOW);
            let reply = SimpleReply::from_bytes(head.as_ref().try_into().unwrap()).unwrap();
            assert_eq!(reply.result, Err(expected));
        }
    }
}

#[test]
fn a_fast_zero_does_not_overflow_whatever_its_length() {
    // proto.md under `NBD_CMD_WRITE_ZEROES`: "if NBD_CMD_FLAG_FAST_ZERO is set, the server SHOULD
    // NOT fail with NBD_EOVERFLOW regardless of the client length".
    let zero = Request::write_zeroes(C, 0, 1 << 20).with_flags(CommandFlags::FAST_ZERO);
    let head = encoder(ReplyStyle::Simple).fail(&zero, Errno::EOVERFLOW);
    let reply = SimpleReply::from_bytes(head.as_ref().try_into().unwrap()).unwrap();
    assert_eq!(reply.result, Err(Errno::EINVAL));
}

#[test]
fn a_message_ends_before_a_nul() {
    // proto.md "Conventions": a string MUST NOT contain NUL, "error messages" included.
    let read = Request::read(C, 0, 512);
    let mut out = vec![];
    encoder(ReplyStyle::Structured).error(&read, Errno::EIO, "disk\0on fire", &mut out);
    let error = ErrorChunk::parse(ChunkType::ERROR, &out[20..]).unwrap();
    assert_eq!(error.message, b"disk");
}

#[test]
fn an_error_with_offset_answers_only_commands_whose_range_is_known() {
    let encoder = encoder(ReplyStyle::Extended);
    let mut out = vec![];
    // The length is that of the payload; how much of the export is meant, is in there.
    let query = Request::block_status(C, 0, 12).with_flags(CommandFlags::PAYLOAD_LEN);
    // proto.md under `NBD_REPLY_TYPE_ERROR_OFFSET` lists the commands to which it is a reply.
    let unknown = Request::new(CommandType(9), C, 0, 12);
    for request in [query, unknown] {
        assert_eq!(
            encoder.error_at(&request, 11, Errno::EIO, "", &mut out),
            Err(IllegalReply::OutOfRange)
        );
    }
    assert!(out.is_empty());
    let write = Request::write(C, 0, 12).with_flags(CommandFlags::PAYLOAD_LEN);
    for request in [write, Request::block_status(C, 0, 12)] {
        let told = encoder.error_at(&request, 11, Errno::EIO, "", &mut out);
        assert_eq!(told, Ok(()));
    }
}

#[test]
fn an_error_with_offset_must_lie_within_the_request() {
    let encoder = encoder(ReplyStyle::Structured);
    let write = Request::write(C, 512, 512);
    let mut out = vec![];
    for offset in [511, 1024] {
        assert_eq!(
            encoder.error_at(&write, offset, Errno::EIO, "", &mut out),
            Err(IllegalReply::OutOfRange)
        );
    }
    let flush = Request::flush(C);
    assert!(
        encoder
            .error_at(&flush, 0, Errno::EIO, "", &mut out)
            .is_err()
    );
    assert!(out.is_empty());
    encoder
        .error_at(&write, 1023, Errno::EIO, "", &mut out)
        .unwrap();
    let error = ErrorChunk::parse(ChunkType::ERROR_OFFSET, &out[20..]).unwrap();
    assert_eq!(error.offset, Some(1023));
}

#[test]
fn the_builder_of_replies_cannot_be_talked_into_an_illegal_one() {
    let read = Request::read(C, 1000, 1000);
    let encoder = encoder(ReplyStyle::Structured);
    let mut out = vec![];
    let mut reply = encoder.chunks(&read).unwrap();
    assert_eq!(reply.data(999, 2), Err(IllegalReply::OutOfRange));
    assert_eq!(reply.data(1999, 2), Err(IllegalReply::OutOfRange));
    assert_eq!(reply.data(u64::MAX, 2), Err(IllegalReply::OutOfRange));
    assert_eq!(reply.data(1000, 0), Err(IllegalReply::OutOfRange));
    assert_eq!(reply.hole(1000, 0), Err(IllegalReply::OutOfRange));
    assert_eq!(reply.data(1000, 4097), Err(IllegalReply::TooLarge));
    let most = encoder.chunks(&Request::read(C, 0, 8192));
    assert!(most.unwrap().data(0, 4096).is_ok(), "the maximum itself");
    assert!(reply.data(1100, 100).is_ok());
    assert_eq!(reply.hole(1199, 2), Err(IllegalReply::Overlap));
    assert_eq!(reply.data(1099, 2), Err(IllegalReply::Overlap));
    assert_eq!(reply.data(1000, 1000), Err(IllegalReply::Overlap));
    assert_eq!(reply.done(), Err(IllegalReply::Incomplete { gap: 1000 }));
    assert!(reply.hole(1000, 100).is_ok());
    assert_eq!(reply.done(), Err(IllegalReply::Incomplete { gap: 1200 }));
    assert_eq!(
        reply.error_at(2000, Errno::EIO, "", &mut out),
        Err(IllegalReply::OutOfRange)
    );
    assert!(out.is_empty());
    reply.error_at(1500, Errno::EIO, "", &mut out).unwrap();
    assert_eq!(reply.data(1200, 800), Err(IllegalReply::Overlap));
    assert_eq!(
        reply.error_at(1500, Errno::EIO, "", &mut out),
        Err(IllegalReply::Overlap)
    );
    assert_eq!(
        reply.error(Errno::EIO, "", &mut out),
        Err(IllegalReply::MixedErrors)
    );
    assert!(reply.done().is_ok());
    assert_eq!(reply.done(), Err(IllegalReply::Ended));
    assert_eq!(reply.hole(1200, 1), Err(IllegalReply::Ended));
    assert_eq!(
        reply.error(Errno::EIO, "", &mut out),
        Err(IllegalReply::Ended)
    );
}

#[test]
fn a_read_that_must_not_be_fragmented_has_one_content_chunk() {
    let read = Request::read(C, 0, 100).with_flags(CommandFlags::DF);
    let mut reply = encoder(ReplyStyle::Extended).chunks(&read).unwrap();
    assert!(reply.data(0, 50).is_ok());
    assert_eq!(reply.hole(50, 50), Err(IllegalReply::Fragmented));
    assert_eq!(reply.done(), Err(IllegalReply::Incomplete { gap: 50 }));
}

#[test]
fn a_read_that_must_not_be_fragmented_has_content_or_overflows() {
    let read = Request::read(C, 0, 100).with_flags(CommandFlags::DF);
    let encoder = encoder(ReplyStyle::Structured);
    let (overflow, mut out) = (Errno::EOVERFLOW, vec![]);
    let mut reply = encoder.chunks(&read).unwrap();
    assert!(reply.data(0, 100).is_ok());
    let illegal = Err(IllegalReply::Overflow);
    assert_eq!(reply.error(overflow, "", &mut out), illegal);
    assert_eq!(reply.error_at(5, overflow, "", &mut out), illegal);
    assert!(out.is_empty());
    reply.error_at(5, Errno::EIO, "", &mut out).unwrap();
    assert!(reply.done().is_ok());

    let mut reply = encoder.chunks(&read).unwrap();
    reply.error(overflow, "too long", &mut out).unwrap();
    assert_eq!(reply.data(0, 100), Err(IllegalReply::Overflow));
    assert_eq!(reply.last_hole(0, 100), Err(IllegalReply::Overflow));
    assert!(reply.done().is_ok());
    // Wherever it overflowed, and whatever else went wrong then.
    let mut reply = encoder.chunks(&read).unwrap();
    reply.error_at(50, overflow, "", &mut out).unwrap();
    reply.error_at(60, Errno::EIO, "", &mut out).unwrap();
    assert_eq!(reply.data(0, 50), Err(IllegalReply::Overflow));
    // Another error leaves room for content.
    let mut reply = encoder.chunks(&read).unwrap();
    reply.error_at(50, Errno::EIO, "", &mut out).unwrap();
    assert!(reply.data(0, 50).is_ok());

    // Without the flag it is an error like any other.
    let read = Request::read(C, 0, 100);
    let mut reply = encoder.chunks(&read).unwrap();
    assert!(reply.data(0, 50).is_ok());
    reply.error(overflow, "", &mut out).unwrap();
    assert!(reply.data(50, 50).is_ok());
}

#[test]
fn simple_replies_have_no_chunks() {
    let read = Request::read(C, 0, 100);
    let chunks = encoder(ReplyStyle::Simple).chunks(&read);
    assert!(matches!(chunks, Err(IllegalReply::NoChunks)));
    let chunks = encoder(ReplyStyle::Structured).chunks(&Request::flush(C));
    assert!(matches!(chunks, Err(IllegalReply::NotARead)));
}
