//! What a server made of this crate does with each element.

use nbd_proto::error::Refusal;
use nbd_proto::handshake::{Ask, Export, ServerConfig, ServerHandshake, TlsPolicy};
use nbd_proto::limits::Limits;
use nbd_proto::session::{BlockSizes, ReplyStyle, Session};
use nbd_proto::transmission::{ReplyEncoder, RequestDecoder, RequestEvent, StatusReply};
use nbd_proto::wire::{
    AllocationFlags, Chunk, ChunkType, ClientFlags, CommandFlags, CommandType, Errno, ErrorChunk,
    Extent, HandshakeFlags, Info, InfoType, OptionCode, OptionHeader, OptionReply, ReplyFlags,
    ReplyType, Request, SimpleReply, StatusChunk, StatusQuery, TransmissionFlags,
};

use crate::elements::Element;
use crate::handshake_support::answer as answers;
use crate::handshake_support::{
    Event, Run, client_bytes, contexts, disk, fixed, name, queries, replies, request as ask_for,
    run_server_with,
};
use crate::samples::{self, C, CONTEXT, LENGTH, session};
use nbd_proto::wire::ClientOption;

/// Whether a server takes an element, or sends it, and does what it is for.
pub(crate) fn does(element: Element) -> bool {
    match element {
        Element::Option(option) => grants(option),
        Element::Reply(reply) => sends_reply(reply),
        Element::Info(info) => tells(info),
        Element::Handshake(flag) => greets_with(flag),
        Element::Client(flag) => heeds(flag),
        Element::Transmission(flag) => announces(flag) && samples::works(flag, takes),
        Element::Command(kind) => {
            let request = samples::request(kind);
            takes_in_all_styles(&request)
        }
        Element::CommandFlag(flag) => takes_in_all_styles(&samples::flagged(flag)),
        Element::Chunk(kind) => chunks().iter().any(|it| it.kind == kind),
        Element::ReplyFlag(flag) => {
            // Not just always, or it would say nothing.
            let flagged = |it: &&Chunk| it.flags.contains(flag);
            let count = chunks().iter().filter(flagged).count();
            count > 0 && count < chunks().len()
        }
        Element::Errno(errno) => fails_with(errno),
        Element::Allocation(flag) => tells_state(flag),
    }
}

fn config() -> ServerConfig {
    ServerConfig::new()
        .with_tls(TlsPolicy::Selective)
        .with_meta_contexts(true)
}

/// Structured replies, and then this.
fn after_structured_replies(option: ClientOption) -> Run {
    let options = [ClientOption::StructuredReply, option];
    run_server_with(config(), &client_bytes(fixed(), &options), &[], answers)
}

/// An option as clients send it.
pub(crate) fn sample(option: OptionCode) -> ClientOption {
    let all = [InfoType::NAME, InfoType::DESCRIPTION, InfoType::BLOCK_SIZE];
    match option {
        OptionCode::EXPORT_NAME => ClientOption::ExportName(name("disk")),
        OptionCode::ABORT => ClientOption::Abort,
        OptionCode::LIST => ClientOption::List,
        OptionCode::STARTTLS => ClientOption::StartTls,
        OptionCode::INFO => ClientOption::Info(ask_for("disk", &all)),
        OptionCode::GO => ClientOption::Go(ask_for("disk", &all)),
        OptionCode::STRUCTURED_REPLY => ClientOption::StructuredReply,
        OptionCode::LIST_META_CONTEXT => ClientOption::ListMetaContext(queries("disk", &[])),
        OptionCode::SET_META_CONTEXT => {
            ClientOption::SetMetaContext(queries("disk", &["base:allocation"]))
        }
        OptionCode::EXTENDED_HEADERS => ClientOption::ExtendedHeaders,
        option => ClientOption::Unknown {
            option,
            data: Vec::new(),
        },
    }
}

/// The option is acknowledged, or has led into transmission.
fn grants(option: OptionCode) -> bool {
    let run = after_structured_replies(sample(option));
    let (replies, _) = replies(&run.output);
    let done = matches!(run.events.last(), Some(Event::Done(_)));
    run.end.is_ok() && (done || replies.last() == Some(&(option, OptionReply::Ack)))
}

fn sends_reply(reply: ReplyType) -> bool {
    let refuse = |why: Refusal| {
        let go = [ClientOption::Info(ask_for("disk", &[]))];
        run_server_with(
            config(),
            &client_bytes(fixed(), &go),
            &[],
            |ask| match ask {
                Ask::Export(ask) => ask.refuse(why),
                _ => panic!("only about an export"),
            },
        )
    };
    let sizes = BlockSizes::new(512, 4096, 1 << 20).unwrap();
    let runs = [
        after_structured_replies(ClientOption::List),
        after_structured_replies(sample(OptionCode::INFO)),
        after_structured_replies(sample(OptionCode::LIST_META_CONTEXT)),
        after_structured_replies(sample(OptionCode(0x63))),
        refuse(Refusal::Policy),
        refuse(Refusal::Platform),
        refuse(Refusal::TlsRequired),
        refuse(Refusal::UnknownExport),
        refuse(Refusal::ShuttingDown),
        refuse(Refusal::BlockSizesRequired(sizes)),
        refuse(Refusal::TooBig),
        refuse(Refusal::ExtendedHeadersRequired),
        list_with_a_body(),
    ];
    let sent = |run: &Run| {
        let (replies, _) = replies(&run.output);
        replies.iter().any(|(_, it)| it.reply_type() == reply)
    };
    runs.iter().any(sent)
}

/// Which is invalid.
fn list_with_a_body() -> Run {
    let mut bytes = fixed().to_bytes().to_vec();
    let option = OptionCode::LIST;
    bytes.extend_from_slice(&OptionHeader { option, length: 1 }.to_bytes());
    bytes.push(0);
    run_server_with(config(), &bytes, &[], answers)
}

/// What is told about an export of which everything is asked.
fn infos(export: &Export) -> Vec<Info> {
    let options = [
        ClientOption::ExtendedHeaders,
        ClientOption::SetMetaContext(queries("disk", &["base:allocation"])),
        sample(OptionCode::GO),
    ];
    let bytes = client_bytes(fixed(), &options);
    let run = run_server_with(config(), &bytes, &[], |ask| match ask {
        Ask::Export(ask) => ask.accept(export),
        Ask::Contexts(ask) => ask.accept(&contexts()),
        _ => panic!("only about an export"),
    });
    let (replies, _) = replies(&run.output);
    let infos = replies.into_iter().filter_map(|(_, reply)| match reply {
        OptionReply::Info(info) => Some(info),
        _ => None,
    });
    infos.collect()
}

fn tells(info: InfoType) -> bool {
    infos(&disk()).iter().any(|it| it.info_type() == info)
}

fn greets_with(flag: HandshakeFlags) -> bool {
    let mut out = Vec::new();
    let _ = ServerHandshake::new(config(), &mut out);
    let greeting = nbd_proto::wire::NewstyleGreeting::from_bytes(&out.try_into().unwrap());
    greeting.unwrap().flags.contains(flag)
}

/// It is answered in another way to a client that sets the flag, and not with hanging up.
fn heeds(flag: ClientFlags) -> bool {
    let differs = |option: OptionCode| {
        let run = |flags| {
            let bytes = client_bytes(flags, &[sample(option)]);
            run_server_with(config(), &bytes, &[], answers)
        };
        let (with, without) = (run(flag), run(ClientFlags::empty()));
        with.end.is_ok() && without.end.is_ok() && with.output != without.output
    };
    differs(OptionCode::EXPORT_NAME) || differs(OptionCode::STARTTLS)
}

/// The flag is told of an export that has all features, without being meddled with.
fn announces(flag: TransmissionFlags) -> bool {
    samples::exports().iter().any(|export| {
        infos(export)
            .iter()
            .any(|it| matches!(it, Info::Export { flags, .. } if flags.contains(flag)))
    })
}

fn takes_in_all_styles(request: &Request) -> bool {
    samples::styles_of(request)
        .iter()
        .all(|&style| takes(&session(style), request))
}

/// The request arrives as it was sent, with all of its payload, and would be executed.
pub(crate) fn takes(session: &Session, request: &Request) -> bool {
    let mut request = *request;
    let mut wire = if session.reply_style() == ReplyStyle::Extended {
        if request.kind == CommandType::WRITE {
            request.flags |= CommandFlags::PAYLOAD_LEN;
        }
        request.to_extended().to_vec()
    } else {
        request.to_compact().unwrap().to_vec()
    };
    let header = wire.len();
    if request.kind == CommandType::WRITE {
        wire.resize(header + LENGTH as usize, 0x5a);
    } else if request.flags.contains(CommandFlags::PAYLOAD_LEN) {
        StatusQuery::encode(LENGTH, &[CONTEXT], &mut wire);
    }
    let payload = wire[header..].to_vec();
    let mut input = &wire[..];
    let mut decoder = RequestDecoder::new(session, &Limits::new());
    match decoder.next(&mut input) {
        Ok(Some(RequestEvent::Disconnect)) => return request.kind == CommandType::DISC,
        Ok(Some(RequestEvent::Request(it))) if it == request && session.check(&it).is_ok() => {}
        _ => return false,
    }
    let whole = match decoder.next(&mut input) {
        Ok(Some(RequestEvent::Payload(bytes))) => bytes == payload,
        Ok(None) => payload.is_empty(),
        _ => false,
    };
    let by_payload = request.kind == CommandType::BLOCK_STATUS && !payload.is_empty();
    whole && (!by_payload || session.check_status_payload(&request, &payload).is_ok())
}

/// The chunks of replies that need all kinds of them.
fn chunks() -> Vec<Chunk> {
    let mut chunks = Vec::new();
    for style in [ReplyStyle::Structured, ReplyStyle::Extended] {
        let session = session(style);
        let encoder = ReplyEncoder::new(&session);
        let read = samples::request(CommandType::READ);
        let mut wire = Vec::new();
        let mut parts = encoder.chunks(&read).unwrap();
        wire.extend_from_slice(&parts.data(0, 8).unwrap());
        wire.extend_from_slice(&[0x5a; 8]);
        wire.extend_from_slice(&parts.hole(8, 4088).unwrap());
        wire.extend_from_slice(&parts.done().unwrap());
        encoder.error(&read, Errno::EIO, "", &mut wire);
        encoder
            .error_at(&read, 8, Errno::EIO, "", &mut wire)
            .unwrap();
        status(&session, 0, &mut wire);
        chunks.extend(
            parse_chunks(style, &wire)
                .into_iter()
                .map(|(chunk, _)| chunk),
        );
    }
    chunks
}

fn status(session: &Session, flags: u64, out: &mut Vec<u8>) {
    let request = samples::request(CommandType::BLOCK_STATUS);
    let mut reply = StatusReply::new(session, &request).unwrap();
    let length = LENGTH;
    reply
        .context(CONTEXT, [Extent { length, flags }], out)
        .unwrap();
}

fn parse_chunks(style: ReplyStyle, mut wire: &[u8]) -> Vec<(Chunk, &[u8])> {
    let mut chunks = Vec::new();
    while !wire.is_empty() {
        let (chunk, rest) = if style == ReplyStyle::Extended {
            let (header, rest) = wire.split_first_chunk().unwrap();
            (Chunk::from_extended(header).unwrap().0, rest)
        } else {
            let (header, rest) = wire.split_first_chunk().unwrap();
            (Chunk::from_structured(header).unwrap(), rest)
        };
        let (payload, rest) = rest.split_at(chunk.length as usize);
        chunks.push((chunk, payload));
        wire = rest;
    }
    chunks
}

/// The error goes out as it is, in simple replies and in chunks.
fn fails_with(errno: Errno) -> bool {
    let fast_zero = samples::flagged(CommandFlags::FAST_ZERO);
    // Above the maximum payload, which is the only reason for EOVERFLOW here.
    let large = Request::trim(C, 0, 1 << 29);
    [fast_zero, large].iter().any(|request| {
        let simple = ReplyEncoder::new(&session(ReplyStyle::Simple)).fail(request, errno);
        let simple = SimpleReply::from_bytes(&simple[..].try_into().unwrap()).unwrap();
        let mut wire = Vec::new();
        ReplyEncoder::new(&session(ReplyStyle::Extended)).error(request, errno, "", &mut wire);
        let (chunk, payload) = parse_chunks(ReplyStyle::Extended, &wire)[0];
        let chunk = ErrorChunk::parse(chunk.kind, payload).unwrap();
        simple.result == Err(errno) && chunk.error == errno
    })
}

fn tells_state(flag: AllocationFlags) -> bool {
    let flag = u64::from(flag.bits());
    let mut wire = Vec::new();
    status(&session(ReplyStyle::Structured), flag, &mut wire);
    let (chunk, payload) = parse_chunks(ReplyStyle::Structured, &wire)[0];
    assert_eq!(
        (chunk.kind, chunk.flags),
        (ChunkType::BLOCK_STATUS, ReplyFlags::DONE)
    );
    let status = StatusChunk::parse(payload).unwrap();
    status.extents().all(|it| it.flags == flag)
}
