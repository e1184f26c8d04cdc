//! Hostile servers for the client's side of the handshake.

use nbd_proto::error::Fatal;
use nbd_proto::handshake::{
    ClientConfig, ClientHandshake, ClientStep, Inspect, InspectProgress, Inspector, NegotiateError,
    Negotiated, Negotiator, Progress, Ready, Report, TlsStart, TlsWanted, Wanted,
};
use nbd_proto::limits::Limits;
use nbd_proto::session::{ReplyStyle, Session};
use nbd_proto::wire::{
    ClientFlags, ClientOption, GreetingStyle, Info, InfoRequest, InfoType, MetaContextRequest,
    Name, OptionCode, OptionHeader, OptionReply, ReplyType, TransmissionFlags,
};

use crate::choices::{Choices, Feed, same_for_all_feeds};

/// Takes whatever a server sends, option by option, or all the way to transmission, or as a tool
/// that only wants to know.
///
/// The input is: configuration, which options are sent (4, two in each), cuts (4), and what the
/// server sends. TLS, where it is agreed on, is started at that byte; or not, and then nothing is
/// taken any more.
pub fn client_handshake(data: &[u8]) {
    let mut choices = Choices::new(data);
    let how = choices.byte();
    let script = [(); 4].map(|()| choices.byte());
    let cuts = choices.cuts();
    let bytes = choices.rest();
    let mut limits = Limits::new();
    if how & 4 != 0 {
        limits = limits
            .with_max_replies(2)
            .with_max_option_body(32)
            .with_max_contexts(1)
            .with_max_reply_bytes(48);
    }
    let config = ClientConfig::new()
        .with_limits(limits)
        .with_oldstyle(script[0] & 1 != 0)
        .with_no_zeroes(how & 2 == 0);
    let tls = match script[1] & 3 {
        0 | 1 => TlsWanted::No,
        2 => TlsWanted::Preferred,
        _ => TlsWanted::Required,
    };
    let honest = script[3] & 1 == 0;
    let query = if how & 64 == 0 {
        "x:a"
    } else {
        "base:allocation"
    };
    if how & 1 == 1 {
        let options: Vec<ClientOption> = script
            .iter()
            .flat_map(|&two| [two & 15, two >> 4])
            .map(option)
            .collect();
        option_by_option(config, limits, &options, cuts, bytes, honest);
    } else if how & 128 == 0 {
        let export = if script[0] & 2 == 0 { "disk" } else { "" };
        let contexts = (script[2] & 3 != 0).then(|| name(query));
        let wanted = Wanted::new(name(export))
            .with_tls(tls)
            .with_extended_headers(script[2] & 4 != 0)
            .with_structured_replies(how & 8 == 0)
            .with_contexts(contexts)
            .with_name(how & 16 != 0)
            .with_description(how & 32 != 0);
        negotiate(config, &wanted, name(export), cuts, bytes, honest);
    } else {
        let inspect = Inspect::new()
            .with_tls(tls)
            .with_extended_headers(script[2] & 4 != 0)
            .with_structured_replies(how & 8 == 0)
            .with_list(how & 16 != 0)
            .with_every_export(how & 32 != 0)
            .with_contexts(how & 64 != 0)
            .with_max_exports(3)
            .with_export(name("disk"));
        inspect_all(config, &inspect, cuts, bytes, honest);
    }
}

fn name(text: &str) -> Name {
    Name::new(text).expect("a name")
}

fn option(which: u8) -> ClientOption {
    let request = InfoRequest::new(name("disk"));
    let contexts = MetaContextRequest {
        export: name("disk"),
        queries: vec![name("base:allocation"), name("x:a"), name("x:")],
    };
    match which {
        0 => ClientOption::StructuredReply,
        1 => ClientOption::ExtendedHeaders,
        2 => ClientOption::Go(request),
        3 => ClientOption::SetMetaContext(contexts),
        4 => ClientOption::Go(request.with(InfoType::BLOCK_SIZE).with(InfoType::NAME)),
        5 => ClientOption::List,
        6 => ClientOption::ListMetaContext(contexts),
        7 | 9 => ClientOption::Info(request.with(InfoType::DESCRIPTION)),
        8 | 11 => ClientOption::StartTls,
        10 | 12 => ClientOption::ExportName(name("disk")),
        13 => ClientOption::StructuredReply,
        _ => ClientOption::Abort,
    }
}

// --- option by option ---

#[derive(Debug, PartialEq)]
struct Run {
    replies: Vec<(OptionCode, OptionReply)>,
    output: Vec<u8>,
    sent: usize,
    taken: usize,
    aborted: bool,
    /// Where TLS was agreed on, counted in bytes.
    agreed_at: Option<usize>,
    session: Option<Session>,
    end: Result<(), Fatal>,
    eof: Result<(), Fatal>,
}

fn option_by_option(
    config: ClientConfig,
    limits: Limits,
    options: &[ClientOption],
    cuts: [usize; 4],
    bytes: &[u8],
    honest: bool,
) {
    let first = Run::of(config, options, bytes, Feed::Wanted, None);
    let tls_at = first.agreed_at.filter(|_| honest);
    let run = same_for_all_feeds(cuts, |feed| Run::of(config, options, bytes, feed, tls_at));
    if run.is_over() {
        let mut longer = bytes.to_vec();
        longer.extend_from_slice(&[0x5a; 40]);
        let again = Run::of(config, options, &longer, Feed::Whole, tls_at);
        assert_eq!(again, run, "what comes after the handshake matters");
    }
    run.check_output(options);
    run.check_replies(options, limits);
    if let Some(session) = &run.session {
        run.check_session(session);
    }
}

impl Run {
    fn of(
        config: ClientConfig,
        options: &[ClientOption],
        bytes: &[u8],
        feed: Feed,
        tls_at: Option<usize>,
    ) -> Self {
        let mut machine = ClientHandshake::new(config);
        let mut run = Self {
            replies: Vec::new(),
            output: Vec::new(),
            sent: 0,
            taken: 0,
            aborted: false,
            agreed_at: None,
            session: None,
            end: Ok(()),
            eof: Ok(()),
        };
        let mut output = Vec::new();
        let (mut input, mut protected) = bytes.split_at(tls_at.unwrap_or(bytes.len()));
        let mut turn = 0;
        while !run.is_over() {
            if run.agreed_at == Some(run.taken) && !machine.is_tls() {
                let Ok(ClientStep::StartTls(leave)) = machine.step(&mut &[][..], &mut output)
                else {
                    panic!("the agreement does not hold");
                };
                if tls_at.is_none() {
                    // Someone else speaks first.
                    run.end = machine.step(&mut &b"\x16"[..], &mut output).map(|_| ());
                    assert_eq!(run.end, Err(Fatal::PlaintextBeforeTls));
                    break;
                }
                assert_eq!(tls_at, Some(run.taken));
                machine.tls_started(leave);
                let step = &[][..];
                run.step(&mut machine, &mut { step }, &mut output, options);
                continue;
            }
            if input.is_empty() {
                input = std::mem::take(&mut protected);
            }
            let mut piece = feed.next(&mut input, machine.wants(), turn);
            turn += 1;
            if piece.is_empty() {
                break;
            }
            let len = piece.len();
            run.step(&mut machine, &mut piece, &mut output, options);
            run.taken += len - piece.len();
            let agreed = run.agreed_at == Some(usize::MAX);
            if agreed {
                run.agreed_at = Some(run.taken);
            }
            assert!(run.is_over() || piece.is_empty(), "input is left over");
            assert_eq!(machine.wants() == 0, run.is_over() || agreed);
        }
        if run.end == Err(Fatal::PlaintextBeforeTls) {
            run.agreed_at = Some(run.taken);
        }
        run.eof = machine.on_eof();
        run.output = output;
        run.check_over(&mut machine);
        run
    }

    fn step(
        &mut self,
        machine: &mut ClientHandshake,
        piece: &mut &[u8],
        output: &mut Vec<u8>,
        options: &[ClientOption],
    ) {
        loop {
            match machine.step(piece, output) {
                Ok(ClientStep::NeedInput) => return,
                Ok(ClientStep::Ready(ready)) => {
                    send(ready, options.get(self.sent));
                    self.sent += 1;
                }
                Ok(ClientStep::Reply { option, reply }) => self.replies.push((option, reply)),
                Ok(ClientStep::StartTls(_)) => {
                    // The caller knows how many bytes were taken.
                    self.agreed_at = Some(usize::MAX);
                    return;
                }
                Ok(ClientStep::Aborted) => {
                    self.aborted = true;
                    return;
                }
                Ok(ClientStep::Done(session)) => {
                    self.session = Some(session);
                    return;
                }
                Ok(step) => panic!("not known here: {step:?}"),
                Err(why) => {
                    assert!(!why.to_string().is_empty());
                    self.end = Err(why);
                    return;
                }
            }
        }
    }

    fn is_over(&self) -> bool {
        self.aborted || self.session.is_some() || self.end.is_err()
    }

    /// Once over, a machine says so again, takes nothing and writes nothing.
    fn check_over(&self, machine: &mut ClientHandshake) {
        if !self.is_over() {
            return;
        }
        assert_eq!(self.eof, self.end);
        let (mut more, mut out) = (&b"more"[..], Vec::new());
        match machine.step(&mut more, &mut out) {
            Ok(ClientStep::Aborted) => assert!(self.aborted),
            Ok(ClientStep::Done(session)) => assert_eq!(Some(session), self.session),
            Ok(step) => panic!("goes on: {step:?}"),
            Err(why) => assert_eq!(Err(why), self.end),
        }
        assert_eq!((more.len(), out.len()), (4, 0));
    }

    /// The client says what it was told to, once; or less, to a server that would not understand;
    /// and ends the session if the server is shutting down.
    fn check_output(&self, options: &[ClientOption]) {
        let said = said(&self.output);
        let told = &options[..self.sent.min(options.len())];
        let mut told = told.iter();
        for option in &said {
            let by_itself = *option == ClientOption::Abort;
            assert!(told.any(|it| it == option) || by_itself);
        }
        let aborts = said.iter().filter(|it| **it == ClientOption::Abort);
        assert!(aborts.count() <= 1);
    }

    /// Replies are to what was sent, in order, and not too many.
    fn check_replies(&self, options: &[ClientOption], limits: Limits) {
        let mut options = options.iter();
        let (mut last, mut count) = (None, 0);
        for (option, reply) in &self.replies {
            if last.is_none() {
                last = options.find(|it| it.code() == *option);
                assert!(last.is_some(), "a reply to {option}, which was not sent");
                count = 0;
            }
            assert_eq!(last.map(ClientOption::code), Some(*option));
            if reply.is_final() {
                last = None;
            } else {
                count += 1;
                assert!(count <= limits.max_replies(), "too many replies");
            }
        }
    }

    fn check_session(&self, session: &Session) {
        // What was negotiated before TLS counts no more.
        let granted = |option: OptionCode| {
            let ack = (option, OptionReply::Ack);
            self.replies.contains(&ack)
        };
        match session.reply_style() {
            ReplyStyle::Simple => {
                let tls = session.is_tls();
                assert!(tls || !granted(OptionCode::STRUCTURED_REPLY));
                assert!(tls || !granted(OptionCode::EXTENDED_HEADERS));
                assert_eq!(session.contexts(), []);
            }
            ReplyStyle::Structured => assert!(granted(OptionCode::STRUCTURED_REPLY)),
            ReplyStyle::Extended => assert!(granted(OptionCode::EXTENDED_HEADERS)),
        }
        assert_eq!(session.is_tls(), self.agreed_at.is_some());
        check_flags(session);
        check_contexts(session);
        let said = said(&self.output);
        match said.last() {
            Some(ClientOption::Go(_)) => {
                let mut told = self.replies.iter().rev();
                let size = told.find_map(|(option, reply)| match (option, reply) {
                    (&OptionCode::GO, OptionReply::Info(Info::Export { size, .. })) => Some(*size),
                    _ => None,
                });
                assert_eq!(size, Some(session.size()));
            }
            Some(ClientOption::ExportName(_)) => {}
            // Oldstyle.
            other => {
                assert_eq!(other, None);
                assert!(self.output.is_empty());
                assert_eq!(session.export(), &Name::EMPTY);
                return;
            }
        }
        assert_eq!(session.export(), &name("disk"));
    }
}

/// Contexts were asked for, and are told apart by their names and by their ids.
fn check_contexts(session: &Session) {
    let contexts = session.contexts();
    for (at, context) in contexts.iter().enumerate() {
        let text = context.name.as_str();
        assert!(text == "base:allocation" || text.starts_with("x:"));
        let mut before = contexts[..at].iter();
        assert!(before.all(|it| it.id != context.id && it.name != context.name));
    }
}

fn send(ready: Ready<'_>, option: Option<&ClientOption>) {
    match option {
        Some(ClientOption::List) => ready.list(),
        Some(ClientOption::Info(request)) => ready.info(request.clone()),
        Some(ClientOption::Go(request)) => ready.go(request.clone()),
        Some(ClientOption::ExportName(name)) => ready.export_name(name.clone()),
        Some(ClientOption::StructuredReply) => ready.structured_replies(),
        Some(ClientOption::ExtendedHeaders) => ready.extended_headers(),
        Some(ClientOption::StartTls) => ready.start_tls(),
        Some(ClientOption::ListMetaContext(request)) => ready.list_contexts(request.clone()),
        Some(ClientOption::SetMetaContext(request)) => ready.set_contexts(request.clone()),
        _ => ready.abort(),
    }
}

/// The options that a client sent.
fn said(output: &[u8]) -> Vec<ClientOption> {
    let Some((flags, mut rest)) = output.split_first_chunk() else {
        assert!(output.is_empty());
        return Vec::new();
    };
    let known = ClientFlags::FIXED_NEWSTYLE | ClientFlags::NO_ZEROES;
    let flags = ClientFlags::from_bytes(flags);
    assert_eq!(flags.bits() & !known.bits(), 0);
    let mut options = Vec::new();
    while !rest.is_empty() {
        let (header, after) = rest.split_first_chunk().expect("whole options");
        let header = OptionHeader::from_bytes(header).expect("options");
        let (body, after) = after.split_at(header.length as usize);
        options.push(ClientOption::parse(header.option, body).expect("well-formed"));
        rest = after;
    }
    options
}

fn check_flags(session: &Session) {
    let flags = session.flags();
    if !flags.contains(TransmissionFlags::HAS_FLAGS) {
        assert!(TransmissionFlags::READ_ONLY.contains(flags));
    }
    if session.reply_style() == ReplyStyle::Simple {
        assert!(!flags.contains(TransmissionFlags::SEND_DF));
    }
    if session.reply_style() != ReplyStyle::Extended {
        assert!(!flags.contains(TransmissionFlags::BLOCK_STATUS_PAYLOAD));
    }
}

// --- all the way ---

/// Either machine that finds its own way.
trait Machine {
    type Done: PartialEq + std::fmt::Debug;

    fn advance(&mut self, input: &mut &[u8], out: &mut Vec<u8>) -> Advanced<Self::Done>;
    fn wants(&self) -> usize;
    fn on_eof(&self) -> Result<(), NegotiateError>;
    fn tls_started(&mut self, leave: TlsStart);
}

enum Advanced<D> {
    NeedInput,
    StartTls(TlsStart),
    Over(Result<D, NegotiateError>),
}

impl Machine for Negotiator {
    type Done = Negotiated;

    fn advance(&mut self, input: &mut &[u8], out: &mut Vec<u8>) -> Advanced<Negotiated> {
        match self.advance(input, out) {
            Ok(Progress::NeedInput) => Advanced::NeedInput,
            Ok(Progress::StartTls(leave)) => Advanced::StartTls(leave),
            Ok(Progress::Done(done)) => Advanced::Over(Ok(done)),
            Ok(progress) => panic!("not known here: {progress:?}"),
            Err(error) => Advanced::Over(Err(error)),
        }
    }

    fn wants(&self) -> usize {
        self.wants()
    }

    fn on_eof(&self) -> Result<(), NegotiateError> {
        self.on_eof()
    }

    fn tls_started(&mut self, leave: TlsStart) {
        self.tls_started(leave);
    }
}

impl Machine for Inspector {
    type Done = Report;

    fn advance(&mut self, input: &mut &[u8], out: &mut Vec<u8>) -> Advanced<Report> {
        match self.advance(input, out) {
            Ok(InspectProgress::NeedInput) => Advanced::NeedInput,
            Ok(InspectProgress::StartTls(leave)) => Advanced::StartTls(leave),
            Ok(InspectProgress::Done(done)) => {
                assert_eq!(self.report(), &done);
                Advanced::Over(Ok(done))
            }
            Ok(progress) => panic!("not known here: {progress:?}"),
            Err(error) => Advanced::Over(Err(error)),
        }
    }

    fn wants(&self) -> usize {
        self.wants()
    }

    fn on_eof(&self) -> Result<(), NegotiateError> {
        self.on_eof()
    }

    fn tls_started(&mut self, leave: TlsStart) {
        self.tls_started(leave);
    }
}

#[derive(Debug, PartialEq)]
struct Journey<D> {
    output: Vec<u8>,
    taken: usize,
    agreed_at: Option<usize>,
    end: Option<Result<D, NegotiateError>>,
    eof: Result<(), NegotiateError>,
}

/// A journey that does not depend on how its input comes.
fn journey<M: Machine>(
    new: impl Fn() -> M,
    cuts: [usize; 4],
    bytes: &[u8],
    honest: bool,
) -> Journey<M::Done> {
    let first = Journey::of(new(), bytes, Feed::Wanted, None);
    let tls_at = first.agreed_at.filter(|_| honest);
    let run = same_for_all_feeds(cuts, |feed| Journey::of(new(), bytes, feed, tls_at));
    if run.end.is_some() {
        let mut longer = bytes.to_vec();
        longer.extend_from_slice(&[0x5a; 40]);
        let again = Journey::of(new(), &longer, Feed::Whole, tls_at);
        assert_eq!(again, run, "what comes after the handshake matters");
    }
    if let Some(Err(error)) = &run.end {
        assert!(!error.to_string().is_empty());
    }
    run
}

fn negotiate(
    config: ClientConfig,
    wanted: &Wanted,
    export: Name,
    cuts: [usize; 4],
    bytes: &[u8],
    honest: bool,
) {
    let new = || Negotiator::new(wanted.clone(), config);
    let run = journey(new, cuts, bytes, honest);
    let said = said(&run.output);
    // At most: TLS, extended headers, structured replies, contexts, GO, EXPORT_NAME; or a farewell.
    assert!(said.len() <= 6, "{said:?}");
    match &run.end {
        Some(Ok(negotiated)) => {
            let session = &negotiated.session;
            check_flags(session);
            check_contexts(session);
            assert_eq!(session.export(), &export);
            let oldstyle = negotiated.greeting == GreetingStyle::Oldstyle;
            assert_eq!(negotiated.option.is_none(), oldstyle);
            assert_eq!(said.last().map(ClientOption::code), negotiated.option);
            assert_eq!(session.is_tls(), run.agreed_at.is_some());
            assert!(session.is_tls() || wanted.tls() != TlsWanted::Required);
            for lint in negotiated.announcement().lints() {
                assert!(!lint.to_string().is_empty());
            }
        }
        Some(Err(NegotiateError::Refused(refused))) => {
            assert!(refused.code.is_error());
            assert!(!refused.to_string().is_empty());
            // To a server without fixed newstyle, a farewell cannot be said.
            let fixed = bytes.get(17).is_some_and(|byte| byte & 1 == 1);
            assert_eq!(said.last() == Some(&ClientOption::Abort), fixed);
            if refused.code != ReplyType::ERR_SHUTDOWN && refused.code != ReplyType::ERR_TLS_REQD {
                assert!(matches!(
                    refused.option,
                    OptionCode::GO | OptionCode::STARTTLS
                ));
            }
        }
        Some(Err(_)) => {}
        None => assert_eq!(run.taken, bytes.len()),
    }
}

fn inspect_all(
    config: ClientConfig,
    inspect: &Inspect,
    cuts: [usize; 4],
    bytes: &[u8],
    honest: bool,
) {
    let new = || Inspector::new(inspect.clone(), config);
    let run = journey(new, cuts, bytes, honest);
    if let Some(Ok(report)) = &run.end {
        let fixed = bytes.get(17).is_some_and(|byte| byte & 1 == 1);
        let oldstyle = matches!(report.greeting, Some((GreetingStyle::Oldstyle, _)));
        let farewell = said(&run.output).last() == Some(&ClientOption::Abort);
        assert_eq!(farewell, fixed && !oldstyle);
        assert!(report.exports.len() <= 3);
        assert_eq!(report.tls, run.agreed_at.is_some());
    }
}

impl<D: PartialEq + std::fmt::Debug> Journey<D> {
    fn of<M: Machine<Done = D>>(
        mut machine: M,
        bytes: &[u8],
        feed: Feed,
        tls_at: Option<usize>,
    ) -> Self {
        let mut output = Vec::new();
        let (mut end, mut agreed_at) = (None, None);
        let (mut input, mut protected) = bytes.split_at(tls_at.unwrap_or(bytes.len()));
        let (mut turn, mut taken) = (0, 0);
        while end.is_none() {
            if input.is_empty() {
                input = std::mem::take(&mut protected);
            }
            let mut piece = feed.next(&mut input, machine.wants(), turn);
            turn += 1;
            if piece.is_empty() {
                break;
            }
            let len = piece.len();
            let mut advanced = machine.advance(&mut piece, &mut output);
            taken += len - piece.len();
            if let Advanced::StartTls(leave) = advanced {
                assert!(piece.is_empty());
                assert_eq!(machine.wants(), 0, "wants plaintext");
                agreed_at = Some(taken);
                advanced = if tls_at.is_some() {
                    assert_eq!(tls_at, agreed_at);
                    machine.tls_started(leave);
                    machine.advance(&mut &[][..], &mut output)
                } else {
                    // Someone else speaks first.
                    machine.advance(&mut &b"\x16"[..], &mut output)
                };
            }
            end = match advanced {
                Advanced::NeedInput => None,
                Advanced::StartTls(_) => panic!("TLS within TLS"),
                Advanced::Over(end) => Some(end),
            };
            assert!(end.is_some() || piece.is_empty(), "input is left over");
            assert!(end.is_some() || machine.wants() > 0, "wants nothing");
        }
        let eof = machine.on_eof();
        if let Some(Err(error)) = &end {
            assert_eq!(eof.as_ref().err(), Some(error));
            if *error == NegotiateError::Fatal(Fatal::PlaintextBeforeTls) {
                agreed_at = Some(taken);
            }
            let (mut more, mut out) = (&b"more"[..], Vec::new());
            match machine.advance(&mut more, &mut out) {
                Advanced::Over(Err(again)) => assert_eq!(again, *error),
                _ => panic!("goes on after {error}"),
            }
            assert_eq!((more.len(), out.len()), (4, 0));
        }
        Self {
            output,
            taken,
            agreed_at,
            end,
            eof,
        }
    }
}
