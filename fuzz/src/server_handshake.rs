//! Hostile options for the server's side of the handshake.

use nbd_proto::error::{Fatal, Refusal};
use nbd_proto::handshake::{Ask, Context, Export, ServerConfig, ServerHandshake, Step, TlsPolicy};
use nbd_proto::limits::Limits;
use nbd_proto::session::{BlockSizes, ReplyStyle, Session};
use nbd_proto::wire::{
    ClientFlags, ExportNameReply, Name, NewstyleGreeting, OptionCode, OptionHeader, OptionReply,
    OptionReplyHeader, ReplyType, TransmissionFlags,
};

use crate::choices::{Choices, Feed, same_for_all_feeds};

/// The most bytes that the server of this target has to say about one option.
const MOST_PER_OPTION: usize = 512;

/// Takes whatever a client sends; every option is answered once, in order.
///
/// The input is: what is offered, more configuration, answers of the application (4), cuts (4),
/// and what the client sends. TLS, where it is agreed on, is started at that byte; or not, and then
/// nothing is taken any more.
pub fn server_handshake(data: &[u8]) {
    let mut choices = Choices::new(data);
    let offers = choices.byte();
    let how = choices.byte();
    let answers = [(); 4].map(|()| choices.byte());
    let cuts = choices.cuts();
    let bytes = choices.rest();
    let mut limits = Limits::new();
    if how & 4 != 0 {
        limits = limits
            .with_max_options(4)
            .with_max_option_body(32)
            .with_max_string(12)
            .with_max_queries(2)
            .with_max_contexts(1)
            .with_max_drain(64);
    }
    let policy = match offers >> 2 & 3 {
        0 => TlsPolicy::None,
        1 => TlsPolicy::Forced,
        _ => TlsPolicy::Selective,
    };
    let offered = Offered {
        structured: how & 1 == 0,
        extended: offers & 1 != 0,
        contexts: offers & 2 != 0,
        tls: policy,
        fixed: offers & 64 == 0,
    };
    let config = ServerConfig::new()
        .with_limits(limits)
        .with_tls(policy)
        .with_fixed_newstyle(offered.fixed)
        .with_structured_replies(offered.structured)
        .with_extended_headers(offered.extended)
        .with_meta_contexts(offered.contexts)
        .with_block_sizes_required(offers & 32 != 0)
        .with_no_zeroes(how & 2 == 0);
    let shutdown = (how & 8 != 0).then_some(usize::from(how >> 4));
    let application = Application { answers, shutdown };

    let first = Run::of(config, bytes, Feed::Wanted, None, application);
    let tls_at = first.agreed_at.filter(|_| offers & 16 == 0);
    let run = same_for_all_feeds(cuts, |feed| {
        Run::of(config, bytes, feed, tls_at, application)
    });
    if run.is_over() {
        let mut longer = bytes.to_vec();
        longer.extend_from_slice(&[0x5a; 40]);
        let again = Run::of(config, &longer, Feed::Whole, tls_at, application);
        assert_eq!(again, run, "what comes after the handshake matters");
    }
    check_answers(&run, bytes, offered);
    if let Some(session) = &run.session {
        check_session(session, &run, offered);
    }
}

/// What the server of a run offers.
#[derive(Clone, Copy)]
struct Offered {
    structured: bool,
    extended: bool,
    contexts: bool,
    tls: TlsPolicy,
    fixed: bool,
}

/// What the server's application says when it is asked.
#[derive(Clone, Copy)]
struct Application {
    answers: [u8; 4],
    /// After so many questions the server shuts down.
    shutdown: Option<usize>,
}

impl Application {
    fn answer(&self, asked: usize, ask: Ask<'_>) {
        let how = self.answers[asked % self.answers.len()];
        let sizes = BlockSizes::new(512, 4096, 1 << 20).expect("legal");
        let refusal = [
            Refusal::UnknownExport,
            Refusal::Policy,
            Refusal::TlsRequired,
            Refusal::ShuttingDown,
            Refusal::BlockSizesRequired(sizes),
            Refusal::Platform,
            Refusal::TooBig,
            Refusal::ExtendedHeadersRequired,
        ][usize::from(how >> 4) % 8];
        match (ask, how % 4) {
            (_, 3) => {}
            (Ask::List(ask), 2) => ask.refuse(refusal),
            (Ask::List(ask), _) => {
                let (a, b) = (export(0), export(1));
                ask.accept([(&a.name, &a.description), (&b.name, &b.description)]);
            }
            (Ask::Export(ask), 2) => ask.refuse(refusal),
            (Ask::Export(ask), which) => {
                ask.accept(&export(which).with_tls_required(how & 16 != 0));
            }
            (Ask::Contexts(ask), 2) => ask.refuse(refusal),
            (Ask::Contexts(ask), 1) => ask.accept_exactly(&server_contexts()),
            (Ask::Contexts(ask), _) => ask.accept(&server_contexts()),
            (ask, _) => panic!("not known here: {ask:?}"),
        }
    }
}

fn server_contexts() -> [Context; 4] {
    let context = |text: &str| Context::new(Name::new(text).expect("a name"));
    [
        context("base:allocation"),
        context("x:wide").with_wide(true),
        context("x:a"),
        context("base:allocation"),
    ]
}

fn export(which: u8) -> Export {
    let name = |text: &str| Name::new(text).expect("a name");
    match which {
        0 => Export::new(
            name("disk"),
            1 << 30,
            TransmissionFlags::from_bits_retain(0x1fff),
        )
        .with_description(name("a disk")),
        _ => Export::new(Name::EMPTY, 4096, TransmissionFlags::READ_ONLY)
            .with_block_sizes(BlockSizes::new(512, 4096, 1 << 20).expect("legal")),
    }
}

#[derive(Debug, PartialEq)]
struct Run {
    output: Vec<u8>,
    asked: usize,
    taken: usize,
    aborted: bool,
    /// Where TLS was agreed on, counted in bytes.
    agreed_at: Option<usize>,
    session: Option<Session>,
    end: Result<(), Fatal>,
    eof: Result<(), Fatal>,
}

impl Run {
    fn of(
        config: ServerConfig,
        bytes: &[u8],
        feed: Feed,
        tls_at: Option<usize>,
        application: Application,
    ) -> Self {
        let mut output = Vec::new();
        let mut machine = ServerHandshake::new(config, &mut output);
        let mut run = Self {
            output: Vec::new(),
            asked: 0,
            taken: 0,
            aborted: false,
            agreed_at: None,
            session: None,
            end: Ok(()),
            eof: Ok(()),
        };
        let (mut input, mut protected) = bytes.split_at(tls_at.unwrap_or(bytes.len()));
        let mut turn = 0;
        while !run.is_over() {
            if run.agreed_at == Some(run.taken) && !machine.is_tls() {
                run.meet_agreement(&mut machine, &mut output, tls_at);
                if tls_at.is_none() {
                    break;
                }
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
            run.step(&mut machine, &mut piece, &mut output, application);
            run.taken += len - piece.len();
            let agreed = run.agreed_at == Some(usize::MAX);
            if agreed {
                run.agreed_at = Some(run.taken);
            }
            assert!(run.is_over() || piece.is_empty(), "input is left over");
            assert_eq!(machine.wants() == 0, run.is_over() || agreed);
        }
        run.eof = machine.on_eof();
        run.output = output;
        if run.end == Err(Fatal::PlaintextBeforeTls) {
            run.forget_agreement();
        }
        run.check_over(&mut machine);
        run
    }

    /// TLS was agreed on, and is started; or someone else speaks first.
    fn meet_agreement(
        &mut self,
        machine: &mut ServerHandshake,
        output: &mut Vec<u8>,
        tls_at: Option<usize>,
    ) {
        let Ok(Step::StartTls(leave)) = machine.step(&mut &[][..], output) else {
            panic!("the agreement does not hold");
        };
        assert_eq!(machine.wants(), 0, "wants plaintext");
        if tls_at.is_some() {
            assert_eq!(tls_at, Some(self.taken));
            machine.tls_started(leave);
            return;
        }
        let injected = machine.step(&mut &b"\x16"[..], output);
        assert_eq!(injected.unwrap_err(), Fatal::PlaintextBeforeTls);
        self.end = Err(Fatal::PlaintextBeforeTls);
    }

    /// Who speaks at once is not answered any more, who speaks later was. To the session it makes
    /// no difference.
    fn forget_agreement(&mut self) {
        let mut ack = Vec::new();
        OptionReply::Ack.encode(OptionCode::STARTTLS, &mut ack);
        if self.output.ends_with(&ack) {
            self.output.truncate(self.output.len() - ack.len());
        }
        self.agreed_at = Some(self.taken);
    }

    fn step(
        &mut self,
        machine: &mut ServerHandshake,
        piece: &mut &[u8],
        output: &mut Vec<u8>,
        application: Application,
    ) {
        loop {
            let ask = match machine.step(piece, output) {
                Ok(Step::NeedInput) => return,
                Ok(Step::List(ask)) => Ask::List(ask),
                Ok(Step::Export(ask)) => Ask::Export(ask),
                Ok(Step::Contexts(ask)) => Ask::Contexts(ask),
                Ok(Step::StartTls(_)) => {
                    // The caller knows how many bytes were taken.
                    self.agreed_at = Some(usize::MAX);
                    return;
                }
                Ok(Step::Aborted) => {
                    self.aborted = true;
                    return;
                }
                Ok(Step::Done(session)) => {
                    self.session = Some(session);
                    return;
                }
                Ok(step) => panic!("not known here: {step:?}"),
                Err(why) => {
                    self.end = Err(why);
                    return;
                }
            };
            application.answer(self.asked, ask);
            self.asked += 1;
            if application.shutdown == Some(self.asked) {
                machine.shutdown();
            }
        }
    }

    fn is_over(&self) -> bool {
        self.aborted || self.session.is_some() || self.end.is_err()
    }

    /// Once over, a machine says so again, takes nothing and writes nothing.
    fn check_over(&self, machine: &mut ServerHandshake) {
        if !self.is_over() {
            return;
        }
        assert_eq!(self.eof, self.end);
        let (mut more, mut out) = (&b"more"[..], Vec::new());
        match machine.step(&mut more, &mut out) {
            Ok(Step::Aborted) => assert!(self.aborted),
            Ok(Step::Done(session)) => assert_eq!(Some(session), self.session),
            Ok(step) => panic!("goes on: {step:?}"),
            Err(why) => assert_eq!(Err(why), self.end),
        }
        assert_eq!((more.len(), out.len()), (4, 0));
    }
}

/// The options whose headers were taken, and whether their bodies were, too.
fn options(bytes: &[u8]) -> Vec<(OptionCode, bool)> {
    let mut options = Vec::new();
    let mut rest = bytes.get(ClientFlags::LEN..).unwrap_or_default();
    while let Some((header, after)) = rest.split_first_chunk::<{ OptionHeader::LEN }>() {
        let Ok(header) = OptionHeader::from_bytes(header) else {
            options.push((OptionCode(0), false));
            break;
        };
        let body = after.split_at_checked(header.length as usize);
        options.push((header.option, body.is_some()));
        match body {
            Some((_, after)) => rest = after,
            None => break,
        }
    }
    options
}

/// Each option has one final reply, before it only such as it can have, and nothing else is said.
fn check_answers(run: &Run, bytes: &[u8], offered: Offered) {
    let mut owed = options(&bytes[..run.taken]);
    match (owed.last(), &run.session, &run.end) {
        // What is fatal is fatal to the last option; EXPORT_NAME has an answer of its own.
        (Some(_), _, Err(_)) | (Some((OptionCode::EXPORT_NAME, _)), Some(_), _) => {
            owed.pop();
        }
        // Without fixed newstyle there are no replies.
        (Some((OptionCode::ABORT, true)), _, _) if run.aborted && !offered.fixed => {
            owed.pop();
        }
        // What is not complete is not answered yet.
        (Some((_, false)), None, Ok(())) => {
            owed.pop();
        }
        _ => {}
    }
    let most = NewstyleGreeting::LEN + 134 + owed.len() * MOST_PER_OPTION;
    assert!(run.output.len() <= most, "says more than it has to say");

    let (greeting, mut rest) = run.output.split_first_chunk().expect("a greeting");
    NewstyleGreeting::from_bytes(greeting).expect("a greeting");
    for (option, complete) in owed {
        assert!(complete, "answered too early");
        rest = check_answer(option, offered, rest);
    }
    match &run.session {
        Some(session) if !rest.is_empty() => {
            assert!(rest.len() == 10 || rest.len() == 134);
            let reply = ExportNameReply::from_bytes(rest.first_chunk().expect("10 bytes"));
            assert_eq!((reply.size, reply.flags), (session.size(), session.flags()));
            assert!(rest[10..].iter().all(|&byte| byte == 0));
        }
        _ => assert_eq!(rest, b"", "says something that nobody asked for"),
    }
}

/// Takes the replies to one option off the output.
fn check_answer(option: OptionCode, offered: Offered, mut output: &[u8]) -> &[u8] {
    loop {
        let (header, rest) = output.split_first_chunk().expect("an answer is missing");
        let header = OptionReplyHeader::from_bytes(header).expect("an answer");
        assert_eq!(header.option, option);
        let (body, rest) = rest.split_at(header.length as usize);
        let reply = OptionReply::parse(header.reply, body).expect("well-formed");
        output = rest;
        match (option, &reply) {
            (OptionCode::LIST, OptionReply::Server { .. })
            | (OptionCode::INFO | OptionCode::GO, OptionReply::Info(_))
            | (
                OptionCode::LIST_META_CONTEXT | OptionCode::SET_META_CONTEXT,
                OptionReply::MetaContext { .. },
            ) => {}
            (_, OptionReply::Error { code, .. }) => {
                let tls = *code == ReplyType::ERR_TLS_REQD;
                assert!(!tls || offered.tls != TlsPolicy::None);
                let gate = offered.tls == TlsPolicy::Forced;
                let gated = gate && (tls || *code == ReplyType::ERR_POLICY);
                let shutting_down = *code == ReplyType::ERR_SHUTDOWN;
                let unsup = *code == ReplyType::ERR_UNSUP;
                let unknown = option.name().is_none();
                assert!(!unknown || shutting_down || unsup || gated);
                return output;
            }
            (
                OptionCode::ABORT
                | OptionCode::LIST
                | OptionCode::INFO
                | OptionCode::GO
                | OptionCode::STRUCTURED_REPLY
                | OptionCode::STARTTLS
                | OptionCode::EXTENDED_HEADERS
                | OptionCode::LIST_META_CONTEXT
                | OptionCode::SET_META_CONTEXT,
                OptionReply::Ack,
            ) => return output,
            _ => panic!("not an answer to {option}: {reply:?}"),
        }
    }
}

fn check_session(session: &Session, run: &Run, offered: Offered) {
    assert!(run.asked > 0, "nobody was asked about the export");
    let flags = session.flags();
    assert!(flags.contains(TransmissionFlags::HAS_FLAGS));
    let payload = flags.contains(TransmissionFlags::BLOCK_STATUS_PAYLOAD);
    assert!(!payload || !session.contexts().is_empty());
    match session.reply_style() {
        ReplyStyle::Simple => {
            assert!(!flags.contains(TransmissionFlags::SEND_DF));
            assert!(!payload && session.contexts().is_empty());
        }
        ReplyStyle::Structured => assert!(offered.structured && !payload),
        ReplyStyle::Extended => assert!(offered.extended),
    }
    let contexts = session.contexts();
    assert!(contexts.is_empty() || offered.contexts);
    for (at, context) in contexts.iter().enumerate() {
        let known = &server_contexts()[context.id as usize];
        assert_eq!(known.name, context.name);
        assert!(!known.wide || session.reply_style() == ReplyStyle::Extended);
        assert!(contexts[..at].iter().all(|it| it.name != context.name));
    }
    match offered.tls {
        TlsPolicy::None => assert!(!session.is_tls()),
        TlsPolicy::Selective => {}
        TlsPolicy::Forced => assert!(session.is_tls()),
    }
    assert_eq!(session.is_tls(), run.agreed_at.is_some());
    let known = [export(0), export(1)];
    let mut known = known.iter();
    assert!(
        known.any(|it| it.size == session.size() && it.block_sizes == session.block_sizes()),
        "not what was accepted"
    );
}
