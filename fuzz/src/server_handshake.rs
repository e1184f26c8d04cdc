//! Hostile options for the server's side of the handshake.

use nbd_proto::error::{Fatal, Refusal};
use nbd_proto::handshake::{Ask, Export, ServerConfig, ServerHandshake, Step};
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
/// The input is: configuration, answers of the application (4), cuts (4), and what the client
/// sends.
pub fn server_handshake(data: &[u8]) {
    let mut choices = Choices::new(data);
    let how = choices.byte();
    let answers = [(); 4].map(|()| choices.byte());
    let cuts = choices.cuts();
    let bytes = choices.rest();
    let mut limits = Limits::new();
    if how & 4 != 0 {
        limits = limits
            .with_max_options(4)
            .with_max_option_body(32)
            .with_max_drain(64);
    }
    let config = ServerConfig::new()
        .with_limits(limits)
        .with_structured_replies(how & 1 == 0)
        .with_no_zeroes(how & 2 == 0);
    let shutdown = (how & 8 != 0).then_some(usize::from(how >> 4));

    let run = same_for_all_feeds(cuts, |feed| {
        Run::of(config, bytes, feed, Application { answers, shutdown })
    });
    if run.is_over() {
        let mut longer = bytes.to_vec();
        longer.extend_from_slice(&[0x5a; 40]);
        let application = Application { answers, shutdown };
        let again = Run::of(config, &longer, Feed::Whole, application);
        assert_eq!(again, run, "what comes after the handshake matters");
    }
    check_answers(&run, bytes);
    if let Some(session) = &run.session {
        check_session(session, &run, how & 1 == 0);
    }
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
        ][usize::from(how >> 4) % 7];
        match (ask, how % 4) {
            (_, 3) => {}
            (Ask::List(ask), 2) => ask.refuse(refusal),
            (Ask::List(ask), _) => {
                let (a, b) = (export(0), export(1));
                ask.accept([(&a.name, &a.description), (&b.name, &b.description)]);
            }
            (Ask::Export(ask), 2) => ask.refuse(refusal),
            (Ask::Export(ask), which) => ask.accept(&export(which)),
            (ask, _) => panic!("not known here: {ask:?}"),
        }
    }
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
    session: Option<Session>,
    end: Result<(), Fatal>,
    eof: Result<(), Fatal>,
}

impl Run {
    fn of(config: ServerConfig, bytes: &[u8], feed: Feed, application: Application) -> Self {
        let mut output = Vec::new();
        let mut machine = ServerHandshake::new(config, &mut output);
        let mut run = Self {
            output: Vec::new(),
            asked: 0,
            taken: 0,
            aborted: false,
            session: None,
            end: Ok(()),
            eof: Ok(()),
        };
        let (mut input, mut turn) = (bytes, 0);
        while !run.is_over() {
            let mut piece = feed.next(&mut input, machine.wants(), turn);
            turn += 1;
            if piece.is_empty() {
                break;
            }
            let len = piece.len();
            run.step(&mut machine, &mut piece, &mut output, application);
            run.taken += len - piece.len();
            assert!(run.is_over() || piece.is_empty(), "input is left over");
            assert_eq!(machine.wants() == 0, run.is_over());
        }
        run.eof = machine.on_eof();
        run.output = output;
        run.check_over(&mut machine);
        run
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
fn check_answers(run: &Run, bytes: &[u8]) {
    let mut owed = options(&bytes[..run.taken]);
    match (owed.last(), &run.session, &run.end) {
        // What is fatal is fatal to the last option; EXPORT_NAME has an answer of its own.
        (Some(_), _, Err(_)) | (Some((OptionCode::EXPORT_NAME, _)), Some(_), _) => {
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
        rest = check_answer(option, rest);
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
fn check_answer(option: OptionCode, mut output: &[u8]) -> &[u8] {
    loop {
        let (header, rest) = output.split_first_chunk().expect("an answer is missing");
        let header = OptionReplyHeader::from_bytes(header).expect("an answer");
        assert_eq!(header.option, option);
        let (body, rest) = rest.split_at(header.length as usize);
        let reply = OptionReply::parse(header.reply, body).expect("well-formed");
        output = rest;
        match (option, &reply) {
            (OptionCode::LIST, OptionReply::Server { .. })
            | (OptionCode::INFO | OptionCode::GO, OptionReply::Info(_)) => {}
            (_, OptionReply::Error { code, .. }) => {
                let unknown = option.name().is_none();
                let shutting_down = *code == ReplyType::ERR_SHUTDOWN;
                assert!(!unknown || shutting_down || *code == ReplyType::ERR_UNSUP);
                return output;
            }
            (
                OptionCode::ABORT
                | OptionCode::LIST
                | OptionCode::INFO
                | OptionCode::GO
                | OptionCode::STRUCTURED_REPLY,
                OptionReply::Ack,
            ) => return output,
            _ => panic!("not an answer to {option}: {reply:?}"),
        }
    }
}

fn check_session(session: &Session, run: &Run, structured: bool) {
    assert!(run.asked > 0, "nobody was asked about the export");
    let flags = session.flags();
    assert!(flags.contains(TransmissionFlags::HAS_FLAGS));
    assert!(!flags.contains(TransmissionFlags::BLOCK_STATUS_PAYLOAD));
    match session.reply_style() {
        ReplyStyle::Simple => assert!(!flags.contains(TransmissionFlags::SEND_DF)),
        ReplyStyle::Structured => assert!(structured),
        ReplyStyle::Extended => panic!("not offered"),
    }
    let known = [export(0), export(1)];
    let mut known = known.iter();
    assert!(
        known.any(|it| it.size == session.size() && it.block_sizes == session.block_sizes()),
        "not what was accepted"
    );
}
