//! What the tests of the handshake share: driving the machines in pieces, and reading what they
//! wrote.

#![allow(dead_code, unreachable_pub, reason = "each test takes what it needs")]

use nbd_proto::error::{Fatal, Refusal};
use nbd_proto::handshake::{
    Ask, ClientConfig, ClientHandshake, ClientStep, Context, Export, NegotiateError, Negotiated,
    Negotiator, Progress, Ready, ServerConfig, ServerHandshake, Step, Wanted,
};
use nbd_proto::session::{BlockSizes, Session};
use nbd_proto::wire::{
    ClientFlags, ClientOption, ExportNameReply, InfoRequest, InfoType, MetaContextRequest, Name,
    NewstyleGreeting, OptionCode, OptionReply, OptionReplyHeader, ReplyType, TransmissionFlags,
};

pub fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// The export of these tests: not like the defaults in anything.
pub fn disk() -> Export {
    let flags = TransmissionFlags::SEND_FLUSH | TransmissionFlags::SEND_DF;
    Export::new(name("disk"), 1 << 30, flags)
        .with_description(name("a disk"))
        .with_block_sizes(BlockSizes::new(512, 4096, 1 << 20).unwrap())
}

/// What a machine came to, one step after the other.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    List,
    Export(OptionCode, Name),
    Contexts(OptionCode, Name),
    StartTls,
    Reply(OptionCode, OptionReply),
    Aborted,
    Done(Session),
}

/// A whole run of a machine.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    pub events: Vec<Event>,
    pub output: Vec<u8>,
    /// Bytes of the input that were taken.
    pub taken: usize,
    pub end: Result<(), Fatal>,
    pub eof: Result<(), Fatal>,
}

/// The meta contexts of these tests: the third is for extended headers only.
pub fn contexts() -> [Context; 4] {
    [
        Context::new(name("base:allocation")),
        Context::new(name("qemu:dirty-bitmap:one")),
        Context::new(name("x-wide:sixty-four")).with_wide(true),
        Context::new(name("qemu:allocation-depth")),
    ]
}

/// Exports "" and "disk" exist, "secret" needs TLS, "ignored" is not answered.
pub fn answer(ask: Ask<'_>) {
    match ask {
        Ask::List(ask) => ask.accept([
            (&disk().name, &disk().description),
            (&name("other"), &Name::EMPTY),
        ]),
        Ask::Export(ask) => match ask.name().as_str() {
            "" | "disk" => ask.accept(&disk()),
            "secret" => ask.accept(&disk().with_tls_required(true)),
            "ignored" => drop(ask),
            _ => ask.refuse(Refusal::UnknownExport),
        },
        Ask::Contexts(ask) => match ask.export().as_str() {
            "" | "disk" | "secret" => ask.accept(&contexts()),
            "ignored" => drop(ask),
            _ => ask.refuse(Refusal::UnknownExport),
        },
        _ => {}
    }
}

/// Feeds a server with `bytes` cut into pieces, until it needs no more or there are no more.
pub fn run_server(config: ServerConfig, bytes: &[u8], cuts: &[usize]) -> Run {
    run_server_with(config, bytes, cuts, answer)
}

pub fn run_server_with(
    config: ServerConfig,
    bytes: &[u8],
    cuts: &[usize],
    answer: impl FnMut(Ask<'_>),
) -> Run {
    run_server_over_tls(config, &[bytes], cuts, answer)
}

/// As [`run_server_with`], with what comes before TLS, and what after, which is cut like it. TLS is
/// only started where the one ends.
pub fn run_server_over_tls(
    config: ServerConfig,
    phases: &[&[u8]],
    cuts: &[usize],
    mut answer: impl FnMut(Ask<'_>),
) -> Run {
    let mut output = Vec::new();
    let mut machine = ServerHandshake::new(config, &mut output);
    let (mut events, mut taken) = (Vec::new(), 0);
    let mut end = Ok(());
    'phases: for phase in phases {
        let mut left = phase.len();
        for piece in pieces(phase, cuts) {
            let mut input = piece;
            left -= piece.len();
            loop {
                let step = machine.step(&mut input, &mut output);
                match step {
                    Ok(Step::NeedInput) => {
                        assert!(input.is_empty(), "input is left over");
                        break;
                    }
                    Ok(Step::List(ask)) => {
                        events.push(Event::List);
                        answer(Ask::List(ask));
                    }
                    Ok(Step::Export(ask)) => {
                        events.push(Event::Export(ask.option(), ask.name().clone()));
                        answer(Ask::Export(ask));
                    }
                    Ok(Step::Contexts(ask)) => {
                        events.push(Event::Contexts(ask.option(), ask.export().clone()));
                        answer(Ask::Contexts(ask));
                    }
                    Ok(Step::StartTls(leave)) => {
                        assert!(input.is_empty(), "agreed to TLS with input left over");
                        assert_eq!(machine.wants(), 0, "wants plaintext");
                        if left == 0 {
                            events.push(Event::StartTls);
                            machine.tls_started(leave);
                            taken += phase.len();
                            continue 'phases;
                        }
                        break;
                    }
                    Ok(over @ (Step::Aborted | Step::Done(_))) => {
                        events.push(match over {
                            Step::Done(session) => Event::Done(session),
                            _ => Event::Aborted,
                        });
                        taken += phase.len() - left - input.len();
                        break 'phases;
                    }
                    Ok(other) => panic!("a step without a test: {other:?}"),
                    Err(fatal) => {
                        taken += phase.len() - left - input.len();
                        end = Err(fatal);
                        break 'phases;
                    }
                }
            }
        }
        taken += phase.len();
        assert!(machine.wants() > 0, "needs input but wants none");
    }
    let eof = machine.on_eof();
    check_over(&end, &mut machine);
    Run {
        events,
        output,
        taken,
        end,
        eof,
    }
}

/// A machine that failed fails again in the same way, takes nothing and writes nothing.
fn check_over(end: &Result<(), Fatal>, machine: &mut ServerHandshake) {
    if let Err(fatal) = end {
        let (mut input, mut out) = (&b"more"[..], Vec::new());
        assert_eq!(machine.step(&mut input, &mut out).unwrap_err(), *fatal);
        assert_eq!((input.len(), out.len(), machine.wants()), (4, 0, 0));
    }
}

/// Feeds a client with `bytes` cut into pieces. The client sends `options` one after the other,
/// and aborts when it has no more.
pub fn run_client(
    config: ClientConfig,
    options: &[ClientOption],
    bytes: &[u8],
    cuts: &[usize],
) -> Run {
    run_client_over_tls(config, options, &[bytes], cuts)
}

/// As [`run_client`], with what comes before TLS, and what after.
pub fn run_client_over_tls(
    config: ClientConfig,
    options: &[ClientOption],
    phases: &[&[u8]],
    cuts: &[usize],
) -> Run {
    let mut output = Vec::new();
    let mut machine = ClientHandshake::new(config);
    let mut options = options.iter();
    let (mut events, mut taken) = (Vec::new(), 0);
    let mut end = Ok(());
    'phases: for phase in phases {
        let mut left = phase.len();
        for piece in pieces(phase, cuts) {
            let mut input = piece;
            left -= piece.len();
            loop {
                match machine.step(&mut input, &mut output) {
                    Ok(ClientStep::NeedInput) => {
                        assert!(input.is_empty(), "input is left over");
                        break;
                    }
                    Ok(ClientStep::Ready(ready)) => send(ready, options.next()),
                    Ok(ClientStep::Reply { option, reply }) => {
                        events.push(Event::Reply(option, reply));
                    }
                    Ok(ClientStep::StartTls(leave)) => {
                        assert!(input.is_empty(), "agreed to TLS with input left over");
                        assert_eq!(machine.wants(), 0, "wants plaintext");
                        if left == 0 {
                            events.push(Event::StartTls);
                            machine.tls_started(leave);
                            taken += phase.len();
                            continue 'phases;
                        }
                        break;
                    }
                    Ok(over @ (ClientStep::Aborted | ClientStep::Done(_))) => {
                        events.push(match over {
                            ClientStep::Done(session) => Event::Done(session),
                            _ => Event::Aborted,
                        });
                        taken += phase.len() - left - input.len();
                        break 'phases;
                    }
                    Ok(other) => panic!("a step without a test: {other:?}"),
                    Err(fatal) => {
                        taken += phase.len() - left - input.len();
                        end = Err(fatal);
                        break 'phases;
                    }
                }
            }
        }
        taken += phase.len();
        assert!(machine.wants() > 0, "needs input but wants none");
    }
    let eof = machine.on_eof();
    if let Err(fatal) = &end {
        let (mut input, mut out) = (&b"more"[..], Vec::new());
        assert_eq!(machine.step(&mut input, &mut out).unwrap_err(), *fatal);
        assert_eq!((input.len(), out.len(), machine.wants()), (4, 0, 0));
    }
    Run {
        events,
        output,
        taken,
        end,
        eof,
    }
}

pub fn send(ready: Ready<'_>, option: Option<&ClientOption>) {
    match option {
        Some(ClientOption::List) => ready.list(),
        Some(ClientOption::StartTls) => ready.start_tls(),
        Some(ClientOption::Info(request)) => ready.info(request.clone()),
        Some(ClientOption::Go(request)) => ready.go(request.clone()),
        Some(ClientOption::ExportName(name)) => ready.export_name(name.clone()),
        Some(ClientOption::StructuredReply) => ready.structured_replies(),
        Some(ClientOption::ExtendedHeaders) => ready.extended_headers(),
        Some(ClientOption::ListMetaContext(request)) => ready.list_contexts(request.clone()),
        Some(ClientOption::SetMetaContext(request)) => ready.set_contexts(request.clone()),
        _ => ready.abort(),
    }
}

/// Checks that a run does not depend on how its input is cut, nor on what comes after it.
///
/// `run` takes bytes and cuts. One byte at a time, cut at `cuts`, with only what the machine
/// wanted, and with a tail: all the same. Returns the run.
pub fn check_splits(bytes: &[u8], cuts: &[usize], run: impl Fn(&[u8], &[usize]) -> Run) -> Run {
    let whole = run(bytes, &[]);
    let every: Vec<usize> = (0..=bytes.len()).collect();
    assert_eq!(run(bytes, &every), whole, "byte by byte");
    assert_eq!(run(bytes, cuts), whole, "cut at {cuts:?}");
    if is_over(&whole) {
        let mut longer = bytes.to_vec();
        longer.extend_from_slice(&[0x5a; 64]);
        assert_eq!(run(&longer, &[]), whole, "with a tail");
        assert_eq!(run(&longer, cuts), whole, "with a tail, cut at {cuts:?}");
        let exactly = bytes.split_at(whole.taken).0;
        assert_eq!(run(exactly, &[]), whole, "with no byte too many");
    } else {
        assert_eq!(whole.taken, bytes.len());
    }
    whole
}

pub fn is_over(run: &Run) -> bool {
    run.end.is_err() || matches!(run.events.last(), Some(Event::Aborted | Event::Done(_)))
}

pub fn pieces<'b>(bytes: &'b [u8], cuts: &'b [usize]) -> impl Iterator<Item = &'b [u8]> {
    let ends = cuts.iter().map(|&cut| cut.min(bytes.len()));
    let mut start = 0;
    ends.chain([bytes.len()]).map(move |end| {
        let piece = &bytes[start..end];
        start = end;
        piece
    })
}

/// What a client sends: flags, then options.
pub fn client_bytes(flags: ClientFlags, options: &[ClientOption]) -> Vec<u8> {
    let mut bytes = flags.to_bytes().to_vec();
    for option in options {
        option.encode(&mut bytes);
    }
    bytes
}

pub fn fixed() -> ClientFlags {
    ClientFlags::FIXED_NEWSTYLE | ClientFlags::NO_ZEROES
}

/// What a server wrote: its greeting is taken off, then option replies as far as there are any;
/// and what is left after them.
pub fn replies(output: &[u8]) -> (Vec<(OptionCode, OptionReply)>, &[u8]) {
    let (greeting, mut rest) = output.split_first_chunk().unwrap();
    NewstyleGreeting::from_bytes(greeting).unwrap();
    let mut replies = Vec::new();
    while let Some((header, after)) = rest.split_first_chunk() {
        let Ok(header) = OptionReplyHeader::from_bytes(header) else {
            break;
        };
        let (body, after) = after.split_at(header.length as usize);
        let reply = OptionReply::parse(header.reply, body).unwrap();
        replies.push((header.option, reply));
        rest = after;
    }
    (replies, rest)
}

pub fn error_of(reply: &OptionReply) -> Option<ReplyType> {
    match reply {
        OptionReply::Error { code, .. } => Some(*code),
        _ => None,
    }
}

/// What a server sends: greeting with these flags, then replies.
pub fn server_bytes(flags: u16, replies: &[(OptionCode, OptionReply)]) -> Vec<u8> {
    let greeting = NewstyleGreeting {
        flags: nbd_proto::wire::HandshakeFlags::from_bits_retain(flags),
    };
    let mut bytes = greeting.to_bytes().to_vec();
    for (option, reply) in replies {
        reply.encode(*option, &mut bytes);
    }
    bytes
}

/// Our two sides, connected in memory. TLS is started when both have agreed on it.
pub struct Pair {
    pub server: ServerHandshake,
    pub client: Negotiator,
    to_client: Vec<u8>,
    to_server: Vec<u8>,
}

/// How each side of a [`Pair`] ended.
#[derive(Debug)]
pub struct Ends {
    pub client: Result<Negotiated, NegotiateError>,
    /// `None`: aborted, or left between options.
    pub server: Result<Option<Session>, Fatal>,
}

impl Pair {
    pub fn new(server: ServerConfig, wanted: Wanted, client: ClientConfig) -> Self {
        let mut to_client = Vec::new();
        Self {
            server: ServerHandshake::new(server, &mut to_client),
            client: Negotiator::new(wanted, client),
            to_client,
            to_server: Vec::new(),
        }
    }

    /// Runs both to their ends, a bounded number of rounds.
    pub fn run(mut self, mut answer: impl FnMut(Ask<'_>)) -> Ends {
        let mut client = None;
        let mut server = None;
        for _ in 0..30 {
            let bytes = std::mem::take(&mut self.to_client);
            if client.is_none() {
                let mut input = &bytes[..];
                client = match self.client.advance(&mut input, &mut self.to_server) {
                    Ok(Progress::NeedInput) if server.is_some() && bytes.is_empty() => {
                        Some(Err(self.client.on_eof().unwrap_err()))
                    }
                    Ok(Progress::StartTls(leave)) => {
                        assert!(input.is_empty() && self.to_server.is_empty());
                        self.client.tls_started(leave);
                        let again = self.client.advance(&mut &[][..], &mut self.to_server);
                        assert_eq!(again, Ok(Progress::NeedInput));
                        None
                    }
                    Ok(Progress::Done(negotiated)) => Some(Ok(negotiated)),
                    Ok(_) => None,
                    Err(error) => Some(Err(error)),
                };
            }
            let bytes = std::mem::take(&mut self.to_server);
            let mut input = &bytes[..];
            while server.is_none() {
                match self.server.step(&mut input, &mut self.to_client) {
                    Ok(Step::NeedInput) if client.is_some() => {
                        server = Some(self.server.on_eof().map(|()| None));
                    }
                    Ok(Step::NeedInput) => break,
                    Ok(Step::List(ask)) => answer(Ask::List(ask)),
                    Ok(Step::Export(ask)) => answer(Ask::Export(ask)),
                    Ok(Step::Contexts(ask)) => answer(Ask::Contexts(ask)),
                    Ok(Step::StartTls(leave)) => self.server.tls_started(leave),
                    Ok(Step::Aborted) => server = Some(Ok(None)),
                    Ok(Step::Done(session)) => server = Some(Ok(Some(session))),
                    Ok(other) => panic!("a step without a test: {other:?}"),
                    Err(fatal) => server = Some(Err(fatal)),
                }
            }
            if client.is_some() && server.is_some() {
                break;
            }
        }
        Ends {
            client: client.expect("the client does not come to an end"),
            server: server.expect("the server does not come to an end"),
        }
    }
}

/// A question for meta contexts.
pub fn queries(export: &str, queries: &[&str]) -> MetaContextRequest {
    MetaContextRequest {
        export: name(export),
        queries: queries.iter().map(|query| name(query)).collect(),
    }
}

/// A `GO` or `INFO` for an export, asking for what is given.
pub fn request(export: &str, infos: &[InfoType]) -> InfoRequest {
    infos
        .iter()
        .fold(InfoRequest::new(name(export)), |request, info| {
            request.with(*info)
        })
}

pub fn export_name_reply(size: u64, flags: TransmissionFlags) -> ExportNameReply {
    ExportNameReply { size, flags }
}

/// Wants an export, but no extended headers.
pub fn compact(export: &str) -> Wanted {
    Wanted::new(name(export)).with_extended_headers(false)
}
