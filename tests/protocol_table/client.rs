//! What a client made of this crate does with each element.

use nbd_proto::handshake::{ClientConfig, ServerConfig};
use nbd_proto::limits::Limits;
use nbd_proto::session::{ReplyStyle, Session};
use nbd_proto::transmission::{ReplyDecoder, ReplyEvent, RequestEncoder};
use nbd_proto::wire::{
    AllocationFlags, Chunk, ChunkType, ClientFlags, CommandFlags, CommandType, DataHead, Errno,
    ErrorChunk, Extent, HandshakeFlags, Hole, Info, InfoType, Name, OptionCode, OptionHeader,
    OptionReply, ReplyFlags, ReplyType, Request, SimpleReply, StatusChunk, TransmissionFlags,
};

use crate::elements::Element;
use crate::handshake_support::{
    Event, Pair, Run, answer, compact, disk, export_name_reply, run_client, server_bytes,
};
use crate::samples::{self, C, CONTEXT, LENGTH, SIZE, session};
use crate::server::sample;
use nbd_proto::wire::ClientOption;

/// Whether a client sends an element, or understands it, and does what it is for.
pub(crate) fn does(element: Element) -> bool {
    match element {
        Element::Option(option) => asks(option),
        Element::Reply(reply) => understands_reply(reply),
        Element::Info(info) => learns(info),
        Element::Handshake(flag) => heeds(flag),
        Element::Client(flag) => sets(flag),
        Element::Transmission(flag) => believes(flag) && samples::works(flag, sends),
        Element::Command(kind) => sends_in_all_styles(&samples::request(kind)),
        Element::CommandFlag(flag) => sends_in_all_styles(&samples::flagged(flag)),
        Element::Chunk(kind) => understands_chunk(kind),
        Element::ReplyFlag(flag) => ends_with(flag),
        Element::Errno(errno) => learns_error(errno),
        Element::Allocation(flag) => learns_state(flag),
    }
}

const FLAGS: u16 = HandshakeFlags::FIXED_NEWSTYLE.bits() | HandshakeFlags::NO_ZEROES.bits();

/// A client that wants structured replies, and then this.
fn after_structured_replies(option: ClientOption, answers: &[OptionReply], rest: &[u8]) -> Run {
    let code = option.code();
    let granted = (OptionCode::STRUCTURED_REPLY, OptionReply::Ack);
    let answers = answers.iter().map(|it| (code, it.clone()));
    let replies: Vec<_> = [granted].into_iter().chain(answers).collect();
    let bytes = [&server_bytes(FLAGS, &replies), rest].concat();
    let options = [ClientOption::StructuredReply, option];
    run_client(ClientConfig::new(), &options, &bytes, &[])
}

/// The options that a client has sent.
fn options(run: &Run) -> Vec<OptionCode> {
    let (_, mut rest) = run.output.split_first_chunk::<4>().unwrap();
    let mut options = Vec::new();
    while let Some((header, body)) = rest.split_first_chunk() {
        let header = OptionHeader::from_bytes(header).unwrap();
        options.push(header.option);
        rest = &body[header.length as usize..];
    }
    options
}

/// The option goes out, and its success is understood.
fn asks(option: OptionCode) -> bool {
    let size = Info::Export {
        size: SIZE,
        flags: TransmissionFlags::HAS_FLAGS,
    };
    let mut replies = match option {
        OptionCode::INFO | OptionCode::GO => vec![OptionReply::Info(size)],
        _ => vec![],
    };
    let mut rest = vec![];
    if option == OptionCode::EXPORT_NAME {
        export_name_reply(SIZE, TransmissionFlags::HAS_FLAGS).encode(true, &mut rest);
    } else {
        replies.push(OptionReply::Ack);
    }
    let run = after_structured_replies(sample(option), &replies, &rest);
    let understood = match run.events.last() {
        Some(Event::Reply(answered, OptionReply::Ack)) => *answered == option,
        Some(Event::StartTls) => option == OptionCode::STARTTLS,
        Some(Event::Aborted) => option == OptionCode::ABORT,
        Some(Event::Done(_)) => [OptionCode::EXPORT_NAME, OptionCode::GO].contains(&option),
        _ => false,
    };
    understood && options(&run).contains(&option)
}

/// The reply is handed out as what it is.
fn understands_reply(reply: ReplyType) -> bool {
    let text = Name::new("base:allocation").unwrap();
    let (option, answer) = match reply {
        ReplyType::ACK => (OptionCode::LIST, OptionReply::Ack),
        ReplyType::SERVER => {
            let (name, description) = (text, Name::EMPTY);
            (OptionCode::LIST, OptionReply::Server { name, description })
        }
        ReplyType::INFO => (OptionCode::INFO, OptionReply::Info(Info::Name(text))),
        ReplyType::META_CONTEXT => {
            let (id, name) = (0, text);
            let reply = OptionReply::MetaContext { id, name };
            (OptionCode::LIST_META_CONTEXT, reply)
        }
        code if code.is_error() => {
            let message = text;
            (OptionCode::INFO, OptionReply::Error { code, message })
        }
        _ => {
            let data = vec![];
            (OptionCode::INFO, OptionReply::Unknown { reply, data })
        }
    };
    let run = after_structured_replies(sample(option), std::slice::from_ref(&answer), &[]);
    run.events.contains(&Event::Reply(option, answer))
        // A soft disconnect is wanted then.
        && (reply != ReplyType::ERR_SHUTDOWN || options(&run).last() == Some(&OptionCode::ABORT))
}

/// What a server tells becomes a part of what was negotiated.
fn learns(info: InfoType) -> bool {
    let wanted = compact("disk").with_name(true).with_description(true);
    let ends = Pair::new(ServerConfig::new(), wanted, ClientConfig::new()).run(answer);
    let it = ends.client.unwrap();
    match info {
        InfoType::EXPORT => it.session.size() == disk().size,
        InfoType::NAME => it.name == Some(disk().name),
        InfoType::DESCRIPTION => it.description == Some(disk().description),
        InfoType::BLOCK_SIZE => {
            it.block_sizes_announced && it.session.block_sizes() == disk().block_sizes
        }
        _ => false,
    }
}

/// The flags of a client, to a server that greets with these.
fn client_flags(greeting: u16) -> ClientFlags {
    let bytes = server_bytes(greeting, &[]);
    let run = run_client(ClientConfig::new(), &[], &bytes, &[]);
    ClientFlags::from_bytes(run.output.first_chunk().unwrap())
}

/// The flag is answered, and answered only to a server that has it.
fn heeds(flag: HandshakeFlags) -> bool {
    let answer = ClientFlags::from_bits_retain(flag.bits().into());
    client_flags(flag.bits()) == answer && client_flags(0).is_empty()
}

fn sets(flag: ClientFlags) -> bool {
    client_flags(FLAGS).contains(flag)
}

/// The flag is a part of what was negotiated.
fn believes(flag: TransmissionFlags) -> bool {
    let all = samples::exports()[0].flags | flag | TransmissionFlags::HAS_FLAGS;
    let go = |flags| {
        let size = OptionReply::Info(Info::Export { size: SIZE, flags });
        let headers = OptionCode::EXTENDED_HEADERS;
        let go = OptionCode::GO;
        let replies = [
            (headers, OptionReply::Ack),
            (go, size),
            (go, OptionReply::Ack),
        ];
        let options = [ClientOption::ExtendedHeaders, sample(go)];
        let run = run_client(
            ClientConfig::new(),
            &options,
            &server_bytes(FLAGS, &replies),
            &[],
        );
        match run.events.last() {
            Some(Event::Done(session)) => session.flags(),
            other => panic!("{other:?}"),
        }
    };
    go(all).contains(flag) && !go(all - flag).contains(flag)
}

fn sends_in_all_styles(request: &Request) -> bool {
    samples::styles_of(request)
        .iter()
        .all(|&style| sends(&session(style), request))
}

/// The request goes out as it is, and there is a way to wait for its answer.
fn sends(session: &Session, request: &Request) -> bool {
    let encoder = RequestEncoder::new(session);
    let mut decoder = ReplyDecoder::new(session, &Limits::new(), 1);
    if request.flags.contains(CommandFlags::PAYLOAD_LEN) {
        let mut wire = Vec::new();
        let (flags, range) = (CommandFlags::empty(), 0..LENGTH);
        let sent = encoder.status_query(C, flags, range, &[CONTEXT], &mut wire);
        return sent.is_ok_and(|sent| sent == *request && wire.starts_with(&sent.to_extended()));
    }
    let Ok(head) = encoder.encode(request) else {
        return false;
    };
    let sent = match session.reply_style() {
        ReplyStyle::Extended => Request::from_extended(&head[..].try_into().unwrap()),
        _ => Request::from_compact(&head[..].try_into().unwrap()),
    };
    let mut expected = *request;
    if request.kind == CommandType::WRITE && session.reply_style() == ReplyStyle::Extended {
        expected.flags |= CommandFlags::PAYLOAD_LEN;
    }
    let answered = request.kind != CommandType::DISC;
    sent == Ok(expected) && decoder.expect(&expected).is_ok() == answered
}

/// What comes of a reply that consists of one chunk.
fn events(style: ReplyStyle, request: &Request, chunk: &Chunk, payload: &[u8]) -> Vec<Said> {
    let mut decoder = ReplyDecoder::new(&session(style), &Limits::new(), 1);
    decoder.expect(request).unwrap();
    let header = match style {
        ReplyStyle::Extended => chunk.to_extended(request.offset).to_vec(),
        _ => chunk.to_structured().unwrap().to_vec(),
    };
    let wire = [&header, payload].concat();
    let mut input = &wire[..];
    let mut said = Vec::new();
    while let Ok(Some(event)) = decoder.next(&mut input) {
        said.push(match event {
            ReplyEvent::Data { .. } => Said::Data,
            ReplyEvent::Hole { .. } => Said::Hole,
            ReplyEvent::Status { extents, .. } => Said::Status(extents.collect()),
            ReplyEvent::Error { offset, .. } => Said::Error(offset),
            ReplyEvent::Finished { result, .. } => Said::Finished(result),
            _ => Said::Other,
        });
    }
    said
}

/// An event, as far as it matters here.
#[derive(Debug, PartialEq)]
enum Said {
    Data,
    Hole,
    Status(Vec<Extent>),
    Error(Option<u64>),
    Finished(Result<(), Errno>),
    Other,
}

fn done(kind: ChunkType, payload: &[u8]) -> Chunk {
    Chunk {
        flags: ReplyFlags::DONE,
        kind,
        cookie: C,
        length: payload.len() as u64,
    }
}

/// A chunk of its kind is the whole of a reply that is understood.
fn understands_chunk(kind: ChunkType) -> bool {
    let extent = Extent {
        length: LENGTH,
        flags: 0,
    };
    let (read, status) = (CommandType::READ, CommandType::BLOCK_STATUS);
    let mut payload = Vec::new();
    let (command, said) = match kind {
        ChunkType::NONE => (CommandType::WRITE, None),
        ChunkType::OFFSET_DATA => {
            payload.extend_from_slice(&DataHead { offset: 0 }.to_bytes());
            payload.resize(payload.len() + LENGTH as usize, 0x5a);
            (read, Some(Said::Data))
        }
        ChunkType::OFFSET_HOLE => {
            let (offset, length) = (0, LENGTH as u32);
            payload.extend_from_slice(&Hole { offset, length }.to_bytes());
            (read, Some(Said::Hole))
        }
        ChunkType::BLOCK_STATUS => {
            StatusChunk::encode(CONTEXT, [extent], &mut payload).unwrap();
            (status, Some(Said::Status(vec![extent])))
        }
        ChunkType::BLOCK_STATUS_EXT => {
            StatusChunk::encode_extended(CONTEXT, [extent], &mut payload).unwrap();
            (status, Some(Said::Status(vec![extent])))
        }
        ChunkType::ERROR | ChunkType::ERROR_OFFSET => {
            let offset = (kind == ChunkType::ERROR_OFFSET).then_some(8);
            let (error, message) = (Errno::EIO, &b""[..]);
            ErrorChunk {
                error,
                message,
                offset,
            }
            .encode(&mut payload);
            (read, Some(Said::Error(offset)))
        }
        _ => (read, None),
    };
    let style = match kind {
        ChunkType::BLOCK_STATUS_EXT => ReplyStyle::Extended,
        _ => ReplyStyle::Structured,
    };
    let result = if kind.is_error() {
        Err(Errno::EIO)
    } else {
        Ok(())
    };
    let expected: Vec<_> = said.into_iter().chain([Said::Finished(result)]).collect();
    let chunk = done(kind, &payload);
    events(style, &samples::request(command), &chunk, &payload) == expected
}

/// A reply with the flag ends, and one without goes on.
fn ends_with(flag: ReplyFlags) -> bool {
    let write = samples::request(CommandType::WRITE);
    let mut payload = Vec::new();
    let (error, message, offset) = (Errno::EIO, &b""[..], None);
    ErrorChunk {
        error,
        message,
        offset,
    }
    .encode(&mut payload);
    let ends = |flags| {
        let chunk = done(ChunkType::ERROR, &payload);
        let chunk = Chunk { flags, ..chunk };
        let said = events(ReplyStyle::Structured, &write, &chunk, &payload);
        matches!(said.last(), Some(Said::Finished(_)))
    };
    ends(flag) && !ends(ReplyFlags::empty())
}

/// The request fails with this error and no other.
fn learns_error(errno: Errno) -> bool {
    let write = samples::request(CommandType::WRITE);
    let mut decoder = ReplyDecoder::new(&session(ReplyStyle::Simple), &Limits::new(), 1);
    decoder.expect(&write).unwrap();
    let (result, cookie) = (Err(errno), C);
    let wire = SimpleReply { result, cookie }.to_bytes();
    let mut last = None;
    let mut input = &wire[..];
    while let Some(event) = decoder.next(&mut input).unwrap() {
        last = Some(event);
    }
    last == Some(ReplyEvent::Finished { cookie, result })
        // The end of the session is wanted then.
        && decoder.is_shutting_down() == (errno == Errno::ESHUTDOWN)
}

fn learns_state(flag: AllocationFlags) -> bool {
    let extent = Extent {
        length: LENGTH,
        flags: flag.bits().into(),
    };
    let mut payload = Vec::new();
    StatusChunk::encode(CONTEXT, [extent], &mut payload).unwrap();
    let chunk = done(ChunkType::BLOCK_STATUS, &payload);
    let request = samples::request(CommandType::BLOCK_STATUS);
    let said = events(ReplyStyle::Structured, &request, &chunk, &payload);
    said.first() == Some(&Said::Status(vec![extent]))
}

/// The extent in this payload arrives as it is, in a session with extended headers.
pub(crate) fn learns_wide_state(extent: Extent, payload: &[u8]) -> bool {
    let chunk = done(ChunkType::BLOCK_STATUS_EXT, payload);
    let request = samples::request(CommandType::BLOCK_STATUS);
    let said = events(ReplyStyle::Extended, &request, &chunk, payload);
    said.first() == Some(&Said::Status(vec![extent]))
}

/// Every way in which an option can be sent is one that the tests know, so that what they do not
/// send cannot be sent.
#[test]
fn the_options_of_the_tests_are_all_that_a_client_can_send() {
    let ready = include_str!("../../src/handshake/client/ready.rs");
    let ways = ready.matches("\n    pub fn ").count();
    let known = OptionCode::KNOWN.iter().filter(|&&it| asks(it)).count();
    assert_eq!(ways, known);
}
