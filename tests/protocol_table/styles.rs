//! The forms of handshake and transmission, as far as a table has rows for them.

use nbd_proto::handshake::{
    ClientConfig, ClientHandshake, ClientStep, ServerConfig, ServerHandshake, TlsPolicy, TlsWanted,
    Wanted,
};
use nbd_proto::session::{ReplyStyle, Session};
use nbd_proto::wire::{
    ClientFlags, ClientOption, HandshakeFlags, OldstyleGreeting, OptionCode, OptionReply,
    TransmissionFlags,
};

use crate::contexts::Rule;
use crate::handshake_support::{
    Event, Pair, answer, client_bytes, compact, disk, export_name_reply, fixed, name, run_client,
    run_server, server_bytes,
};

pub(crate) const SECTION: &str = "Handshake and headers";

pub(crate) const ALL: &[Rule] = &[
    ("oldstyle", oldstyle_server, oldstyle_client),
    ("newstyle", newstyle_server, newstyle_client),
    (
        "fixed newstyle",
        || fixed_newstyle().1,
        || fixed_newstyle().0,
    ),
    ("start of TLS", || tls().1, || tls().0),
    (
        "compact headers, simple replies",
        || has(ReplyStyle::Simple).1,
        || has(ReplyStyle::Simple).0,
    ),
    (
        "compact headers, structured replies",
        || has(ReplyStyle::Structured).1,
        || has(ReplyStyle::Structured).0,
    ),
    (
        "extended headers",
        || has(ReplyStyle::Extended).1,
        || has(ReplyStyle::Extended).0,
    ),
];

fn oldstyle_server() -> bool {
    let mut out = Vec::new();
    let session = ServerHandshake::oldstyle(&disk(), &mut out).unwrap();
    let greeting = OldstyleGreeting::from_bytes(&out.try_into().unwrap()).unwrap();
    greeting.size == disk().size && session.size() == disk().size
}

fn oldstyle_client() -> bool {
    let greeting = OldstyleGreeting {
        size: disk().size,
        handshake_flags: HandshakeFlags::empty(),
        flags: TransmissionFlags::HAS_FLAGS,
    };
    let mut machine = ClientHandshake::new(ClientConfig::new().with_oldstyle(true));
    let (bytes, mut out) = (greeting.to_bytes(), Vec::new());
    let done = machine.step(&mut &bytes[..], &mut out);
    matches!(done, Ok(ClientStep::Done(session)) if session.size() == disk().size)
}

/// Without an option but the one, and with zeroes after it.
fn newstyle_server() -> bool {
    let config = ServerConfig::new()
        .with_fixed_newstyle(false)
        .with_no_zeroes(false);
    let option = ClientOption::ExportName(name("disk"));
    let run = run_server(config, &client_bytes(ClientFlags::empty(), &[option]), &[]);
    matches!(run.events.last(), Some(Event::Done(_))) && run.output.len() == 18 + 10 + 124
}

fn newstyle_client() -> bool {
    let mut bytes = server_bytes(0, &[]);
    export_name_reply(disk().size, TransmissionFlags::HAS_FLAGS).encode(false, &mut bytes);
    let options = [ClientOption::List, ClientOption::ExportName(name("disk"))];
    let run = run_client(ClientConfig::new(), &options, &bytes, &[]);
    // The list was not asked for: there is no way to answer.
    matches!(run.events.last(), Some(Event::Done(_))) && run.output.len() == 4 + 16 + 4
}

/// Several options, one after the other.
fn fixed_newstyle() -> (bool, bool) {
    let options = [ClientOption::List, ClientOption::Abort];
    let server = run_server(ServerConfig::new(), &client_bytes(fixed(), &options), &[]);
    let (list, abort) = (OptionCode::LIST, OptionCode::ABORT);
    let bytes = server_bytes(3, &[(list, OptionReply::Ack), (abort, OptionReply::Ack)]);
    let client = run_client(ClientConfig::new(), &options, &bytes, &[]);
    let both = |events: &[Event], first| events == [first, Event::Aborted];
    (
        both(&client.events, Event::Reply(list, OptionReply::Ack)),
        both(&server.events, Event::List),
    )
}

/// What client and server have come to, with each other.
fn sessions(config: ServerConfig, wanted: Wanted) -> (Session, Session) {
    let ends = Pair::new(config, wanted, ClientConfig::new()).run(answer);
    (ends.client.unwrap().session, ends.server.unwrap().unwrap())
}

fn tls() -> (bool, bool) {
    let config = ServerConfig::new().with_tls(TlsPolicy::Forced);
    let (client, server) = sessions(config, compact("disk").with_tls(TlsWanted::Required));
    (client.is_tls(), server.is_tls())
}

fn has(style: ReplyStyle) -> (bool, bool) {
    let wanted = Wanted::new(name("disk"))
        .with_structured_replies(style != ReplyStyle::Simple)
        .with_extended_headers(style == ReplyStyle::Extended);
    let (client, server) = sessions(ServerConfig::new(), wanted);
    (client.reply_style() == style, server.reply_style() == style)
}
