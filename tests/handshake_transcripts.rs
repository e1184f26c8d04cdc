//! Sessions between other people's programs, replayed: what real clients sent goes into our
//! server, what real servers sent into our client. See `tests/data/README`.

mod handshake_support;

use std::collections::VecDeque;
use std::fs;
use std::path::Path;

use handshake_support::*;
use nbd_proto::error::{Fatal, Refusal};
use nbd_proto::handshake::{Ask, ClientConfig, Context, Export, ServerConfig, TlsPolicy};
use nbd_proto::wire::{
    ClientFlags, ClientOption, ExportNameReply, GreetingStyle, HandshakeFlags, Name,
    NewstyleGreeting, OldstyleGreeting, OptionCode, OptionHeader, OptionReply, OptionReplyHeader,
    ReplyType, TransmissionFlags,
};

/// One captured connection: all bytes of either direction.
struct Capture {
    file: String,
    client: Vec<u8>,
    server: Vec<u8>,
}

fn captures() -> Vec<Capture> {
    let mut captures = vec![];
    for folder in ["tests/data", "tests/data/handshake"] {
        let before = captures.len();
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        for entry in fs::read_dir(&folder).expect("there are captured sessions") {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "txt") {
                captures.push(read(&path));
            }
        }
        assert!(captures.len() > before, "none in {}", folder.display());
    }
    captures
}

fn read(path: &Path) -> Capture {
    let (mut client, mut server) = (vec![], vec![]);
    for line in fs::read_to_string(path).unwrap().lines() {
        match line.split_at_checked(3) {
            Some(("C: ", hex)) => client.extend(unhex(hex)),
            Some(("S: ", hex)) => server.extend(unhex(hex)),
            _ => assert!(line.is_empty() || line.starts_with('#'), "{line}"),
        }
    }
    Capture {
        file: path.file_name().unwrap().to_string_lossy().into_owned(),
        client,
        server,
    }
}

fn unhex(hex: &str) -> impl Iterator<Item = u8> {
    let pairs = hex.as_bytes().chunks(2);
    pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
}

/// An option as it was sent, and what was answered.
struct Exchange {
    code: OptionCode,
    body: Vec<u8>,
    replies: Vec<OptionReply>,
}

/// The handshake of a newstyle session, taken apart with the decoders of `wire` alone.
struct Handshake {
    flags: ClientFlags,
    exchanges: Vec<Exchange>,
    /// Bytes of either direction that belong to it.
    client_len: usize,
    server_len: usize,
}

fn take_apart(capture: &Capture) -> Handshake {
    let (mut client, mut server) = (&capture.client[..], &capture.server[..]);
    let greeting = take::<18>(&mut server);
    let parsed = NewstyleGreeting::from_bytes(greeting).unwrap();
    assert_eq!(parsed.to_bytes(), *greeting);
    let flags = ClientFlags::from_bytes(take(&mut client));
    let mut exchanges = vec![];
    let mut over = false;
    while !over && !client.is_empty() {
        let header = OptionHeader::from_bytes(take(&mut client)).unwrap();
        let (body, rest) = client.split_at(header.length as usize);
        client = rest;
        let mut exchange = Exchange {
            code: header.option,
            body: body.to_vec(),
            replies: vec![],
        };
        if header.option == OptionCode::EXPORT_NAME {
            let reply = take::<10>(&mut server);
            assert_eq!(ExportNameReply::from_bytes(reply).to_bytes(), *reply);
            if !flags.contains(ClientFlags::NO_ZEROES) {
                assert_eq!(take::<124>(&mut server), &[0; 124]);
            }
            over = true;
        } else {
            take_replies(&mut exchange, &mut server);
            let acked = exchange.replies.last() == Some(&OptionReply::Ack);
            let ends = matches!(header.option, OptionCode::GO | OptionCode::STARTTLS);
            over = header.option == OptionCode::ABORT || (ends && acked);
        }
        exchanges.push(exchange);
    }
    Handshake {
        flags,
        exchanges,
        client_len: capture.client.len() - client.len(),
        server_len: capture.server.len() - server.len(),
    }
}

fn take_replies(exchange: &mut Exchange, server: &mut &[u8]) {
    // Not every server answers an ABORT.
    if exchange.code == OptionCode::ABORT && server.is_empty() {
        return;
    }
    loop {
        let whole = *server;
        let header = OptionReplyHeader::from_bytes(take(server)).unwrap();
        assert_eq!(header.option, exchange.code);
        let (body, rest) = server.split_at(header.length as usize);
        *server = rest;
        let reply = OptionReply::parse(header.reply, body).unwrap();
        let mut again = vec![];
        reply.encode(header.option, &mut again);
        assert_eq!(again, whole[..whole.len() - rest.len()]);
        let is_final = reply.is_final();
        exchange.replies.push(reply);
        if is_final {
            return;
        }
    }
}

fn take<'b, const N: usize>(bytes: &mut &'b [u8]) -> &'b [u8; N] {
    let (head, rest) = bytes.split_first_chunk().expect("more bytes");
    *bytes = rest;
    head
}

fn is_oldstyle(capture: &Capture) -> bool {
    let style = GreetingStyle::from_bytes(capture.server.first_chunk().unwrap());
    style == Ok(GreetingStyle::Oldstyle)
}

#[test]
fn every_message_of_a_real_handshake_is_decoded_and_encoded_as_it_was() {
    for capture in captures() {
        eprintln!("{}", capture.file);
        if is_oldstyle(&capture) {
            let greeting = capture.server.first_chunk().unwrap();
            let parsed = OldstyleGreeting::from_bytes(greeting).unwrap();
            assert_eq!(parsed.to_bytes(), *greeting);
            continue;
        }
        for exchange in take_apart(&capture).exchanges {
            if let Ok(option) = ClientOption::parse(exchange.code, &exchange.body) {
                let mut again = vec![];
                option.encode(&mut again);
                assert_eq!(again[16..], exchange.body);
            }
        }
    }
}

/// The captured handshake as a whole.
impl Handshake {
    /// How the captured server answered an option of this code, whenever it came.
    fn answers(&self, option: OptionCode) -> impl Iterator<Item = ReplyType> {
        let exchanges = self.exchanges.iter().filter(move |it| it.code == option);
        exchanges.filter_map(|it| it.replies.last().map(OptionReply::reply_type))
    }

    fn acknowledges(&self, option: OptionCode) -> bool {
        self.answers(option).any(|reply| reply == ReplyType::ACK)
    }

    /// A configuration of our server that has what the captured one showed.
    fn config(&self, greeting: &NewstyleGreeting) -> ServerConfig {
        let all = self.exchanges.iter().map(|it| it.replies.last());
        let tls_required = all.flatten().any(|it| {
            let required = ReplyType::ERR_TLS_REQD;
            it.reply_type() == required
        });
        let tls = if tls_required || self.acknowledges(OptionCode::STARTTLS) {
            TlsPolicy::Forced
        } else {
            TlsPolicy::None
        };
        let flags = greeting.flags;
        ServerConfig::new()
            .with_tls(tls)
            .with_fixed_newstyle(flags.contains(HandshakeFlags::FIXED_NEWSTYLE))
            .with_no_zeroes(flags.contains(HandshakeFlags::NO_ZEROES))
            .with_extended_headers(self.acknowledges(OptionCode::EXTENDED_HEADERS))
            .with_structured_replies(self.acknowledges(OptionCode::STRUCTURED_REPLY))
            .with_meta_contexts(true)
    }

    /// All contexts that the captured server ever told of.
    fn contexts(&self) -> Vec<Context> {
        let mut contexts: Vec<Context> = vec![];
        for name in self.exchanges.iter().flat_map(Exchange::contexts) {
            if contexts.iter().all(|known| known.name != name) {
                contexts.push(Context::new(name));
            }
        }
        contexts
    }
}

impl Exchange {
    fn contexts(&self) -> Vec<Name> {
        names_of_contexts(self.replies.iter())
    }
}

fn names_of_contexts<'r>(replies: impl Iterator<Item = &'r OptionReply>) -> Vec<Name> {
    let names = replies.filter_map(|reply| match reply {
        OptionReply::MetaContext { name, .. } => Some(name.clone()),
        _ => None,
    });
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

fn greeting_of(capture: &Capture) -> NewstyleGreeting {
    NewstyleGreeting::from_bytes(capture.server.first_chunk().unwrap()).unwrap()
}

#[test]
fn our_server_in_the_place_of_a_real_one_says_the_same_to_real_clients() {
    let mut selections = 0;
    for capture in captures() {
        eprintln!("{}", capture.file);
        if is_oldstyle(&capture) {
            // The client begins with a request, which is no set of client flags.
            let run = run_server(ServerConfig::new(), &capture.client, &[]);
            assert!(matches!(run.end, Err(Fatal::ClientFlags(_))));
            continue;
        }
        let handshake = take_apart(&capture);
        let every: Vec<usize> = (0..handshake.client_len).collect();
        let run = serve(&capture, &handshake, &[]);
        assert_eq!(serve(&capture, &handshake, &every), run);
        assert_eq!(run.end, Ok(()));
        assert_eq!(run.taken, handshake.client_len, "in sync");

        let (replies, _) = replies(&run.output);
        let mut replies = replies.iter();
        for exchange in &handshake.exchanges {
            if exchange.code == OptionCode::EXPORT_NAME {
                break;
            }
            let mut ours = vec![];
            for (option, reply) in replies.by_ref() {
                assert_eq!(*option, exchange.code);
                ours.push(reply);
                if reply.is_final() {
                    break;
                }
            }
            compare(exchange, ours.last().expect("an answer"));
            let contexts = names_of_contexts(ours.into_iter());
            selections += contexts.len();
            assert_eq!(contexts, exchange.contexts(), "{}", exchange.code);
        }
        assert_eq!(replies.next(), None);
        let last = handshake.exchanges.last().unwrap();
        match (run.events.last(), last.code) {
            (Some(Event::Done(_)), OptionCode::GO | OptionCode::EXPORT_NAME)
            | (Some(Event::Aborted), OptionCode::ABORT)
            | (Some(Event::StartTls), OptionCode::STARTTLS) => {}
            _ => assert_eq!(handshake.client_len, capture.client.len()),
        }
    }
    assert!(selections > 20, "contexts were compared");
}

/// Serves a captured client, accepting the exports that the real server accepted.
fn serve(capture: &Capture, handshake: &Handshake, cuts: &[usize]) -> Run {
    let asks = handshake.exchanges.iter().filter(|exchange| {
        matches!(
            exchange.code,
            OptionCode::INFO | OptionCode::GO | OptionCode::EXPORT_NAME
        ) && ClientOption::parse(exchange.code, &exchange.body).is_ok()
    });
    let mut accepted: VecDeque<bool> = asks
        .map(|exchange| !matches!(exchange.replies.last(), Some(OptionReply::Error { .. })))
        .collect();
    let export = Export::new(Name::EMPTY, 1 << 16, TransmissionFlags::SEND_FLUSH);
    let contexts = handshake.contexts();
    let config = handshake.config(&greeting_of(capture));
    // Where TLS was started, what comes after it is not ours to understand.
    let client = if handshake.acknowledges(OptionCode::STARTTLS) {
        &capture.client[..handshake.client_len]
    } else {
        &capture.client
    };
    let phases: &[&[u8]] = &[client];
    run_server_over_tls(config, phases, cuts, |ask| match ask {
        Ask::List(ask) => ask.accept([(&export.name, &export.description)]),
        Ask::Export(ask) if accepted.pop_front() == Some(true) => ask.accept(&export),
        Ask::Export(ask) => ask.refuse(Refusal::UnknownExport),
        Ask::Contexts(ask) => ask.accept(&contexts),
        _ => {}
    })
}

/// Our answer must be that of the real server. Where they differ, it is said why.
fn compare(exchange: &Exchange, ours: &OptionReply) {
    let theirs = exchange.replies.last().map(OptionReply::reply_type);
    let ours = ours.reply_type();
    match (exchange.code, theirs) {
        // Some give no answer; we always do.
        (OptionCode::ABORT, None) => assert_eq!(ours, ReplyType::ACK),
        // Both mean that there is no TLS.
        (OptionCode::STARTTLS, Some(ReplyType::ERR_POLICY)) => {
            assert_eq!(ours, ReplyType::ERR_UNSUP);
        }
        (_, theirs) => assert_eq!(Some(ours), theirs, "{}", exchange.code),
    }
}

#[test]
fn our_client_understands_real_servers() {
    for capture in captures() {
        eprintln!("{}", capture.file);
        if is_oldstyle(&capture) {
            let run = run_client(ClientConfig::new(), &[], &capture.server, &[]);
            assert_eq!(run.end, Err(Fatal::Oldstyle));
            let config = ClientConfig::new().with_oldstyle(true);
            let run = run_client(config, &[], &capture.server, &[]);
            assert!(matches!(run.events.last(), Some(Event::Done(session)) if session.size() > 0));
            assert_eq!(run.taken, OldstyleGreeting::LEN);
            continue;
        }
        let handshake = take_apart(&capture);
        // Options that our client cannot send are left out, together with their answers.
        let mut server = capture.server[..18].to_vec();
        let mut options = vec![];
        for exchange in &handshake.exchanges {
            if let Some(option) = sendable(exchange) {
                options.push(option);
                for reply in &exchange.replies {
                    reply.encode(exchange.code, &mut server);
                }
            }
        }
        if options.last().map(ClientOption::code) == Some(OptionCode::EXPORT_NAME) {
            let zeroes = if handshake.flags.contains(ClientFlags::NO_ZEROES) {
                0
            } else {
                ExportNameReply::ZEROES
            };
            let reply = ExportNameReply::LEN + zeroes;
            server.extend_from_slice(&capture.server[handshake.server_len - reply..][..reply]);
        }
        let len = server.len();
        let tls = handshake.acknowledges(OptionCode::STARTTLS);
        if !tls {
            server.extend_from_slice(&capture.server[handshake.server_len..]);
        }

        let config =
            ClientConfig::new().with_no_zeroes(handshake.flags.contains(ClientFlags::NO_ZEROES));
        let every: Vec<usize> = (0..len).collect();
        let run = run_client(config, &options, &server, &[]);
        assert_eq!(run_client(config, &options, &server, &every), run);
        assert_eq!((run.end.clone(), run.taken), (Ok(()), len));
        assert!(run.eof.is_ok() || !is_over(&run));
        if let Some(Event::Done(session)) = run.events.last() {
            assert!(session.size() > 0);
            assert!(session.flags().contains(TransmissionFlags::HAS_FLAGS));
            let mut contexts: Vec<_> = session.contexts().iter().map(|it| &it.name).collect();
            contexts.sort();
            let mut sets = handshake.exchanges.iter().rev();
            let set = sets.find(|it| it.code == OptionCode::SET_META_CONTEXT);
            let selected = set.map(Exchange::contexts).unwrap_or_default();
            assert_eq!(contexts, selected.iter().collect::<Vec<_>>());
        }
        let code = options.last().map(ClientOption::code);
        let done = matches!(run.events.last(), Some(Event::Done(_)));
        let entered = capture.client.len() > handshake.client_len && !tls;
        assert_eq!(done, entered, "transmission after {code:?}");
        assert_eq!(run.events.contains(&Event::StartTls), tls);
        let mut sent = vec![];
        for option in &options {
            option.encode(&mut sent);
        }
        assert_eq!(run.output[4..][..sent.len()], sent);
    }
}

fn sendable(exchange: &Exchange) -> Option<ClientOption> {
    let option = ClientOption::parse(exchange.code, &exchange.body).ok()?;
    (!matches!(option, ClientOption::Unknown { .. })).then_some(option)
}
