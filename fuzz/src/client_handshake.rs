//! Hostile servers for the client's side of the handshake.

use nbd_proto::error::Fatal;
use nbd_proto::handshake::{
    ClientConfig, ClientHandshake, ClientStep, NegotiateError, Negotiated, Negotiator, Progress,
    Ready, Wanted,
};
use nbd_proto::limits::Limits;
use nbd_proto::session::{ReplyStyle, Session};
use nbd_proto::wire::{
    ClientFlags, ClientOption, Info, InfoRequest, InfoType, Name, OptionCode, OptionHeader,
    OptionReply, ReplyType, TransmissionFlags,
};

use crate::choices::{Choices, Feed, same_for_all_feeds};

/// Takes whatever a server sends, option by option or all the way to transmission.
///
/// The input is: configuration, which options are sent (4, two in each), cuts (4), and what the
/// server sends.
pub fn client_handshake(data: &[u8]) {
    let mut choices = Choices::new(data);
    let how = choices.byte();
    let script = [(); 4].map(|()| choices.byte());
    let cuts = choices.cuts();
    let bytes = choices.rest();
    let mut limits = Limits::new();
    if how & 4 != 0 {
        limits = limits.with_max_replies(2).with_max_option_body(32);
    }
    let config = ClientConfig::new()
        .with_limits(limits)
        .with_no_zeroes(how & 2 == 0);
    if how & 1 == 0 {
        let wanted = Wanted::new(name("disk"))
            .with_structured_replies(how & 8 == 0)
            .with_name(how & 16 != 0)
            .with_description(how & 32 != 0);
        negotiate(config, &wanted, cuts, bytes);
    } else {
        let options: Vec<ClientOption> = script
            .iter()
            .flat_map(|&two| [two & 15, two >> 4])
            .map(option)
            .collect();
        option_by_option(config, limits, &options, cuts, bytes);
    }
}

fn name(text: &str) -> Name {
    Name::new(text).expect("a name")
}

fn option(which: u8) -> ClientOption {
    let request = InfoRequest::new(name("disk"));
    match which {
        0 | 1 => ClientOption::StructuredReply,
        2..4 => ClientOption::Go(request),
        4 => ClientOption::Go(request.with(InfoType::BLOCK_SIZE).with(InfoType::NAME)),
        5 | 6 => ClientOption::List,
        7..10 => ClientOption::Info(request.with(InfoType::DESCRIPTION)),
        10..13 => ClientOption::ExportName(name("disk")),
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
) {
    let run = same_for_all_feeds(cuts, |feed| Run::of(config, options, bytes, feed));
    if run.is_over() {
        let mut longer = bytes.to_vec();
        longer.extend_from_slice(&[0x5a; 40]);
        let again = Run::of(config, options, &longer, Feed::Whole);
        assert_eq!(again, run, "what comes after the handshake matters");
    }
    run.check_output(options);
    run.check_replies(options, limits);
    if let Some(session) = &run.session {
        run.check_session(session);
    }
}

impl Run {
    fn of(config: ClientConfig, options: &[ClientOption], bytes: &[u8], feed: Feed) -> Self {
        let mut machine = ClientHandshake::new(config);
        let mut run = Self {
            replies: Vec::new(),
            output: Vec::new(),
            sent: 0,
            taken: 0,
            aborted: false,
            session: None,
            end: Ok(()),
            eof: Ok(()),
        };
        let mut output = Vec::new();
        let (mut input, mut turn) = (bytes, 0);
        while !run.is_over() {
            let mut piece = feed.next(&mut input, machine.wants(), turn);
            turn += 1;
            if piece.is_empty() {
                break;
            }
            let len = piece.len();
            run.step(&mut machine, &mut piece, &mut output, options);
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
        let structured = OptionCode::STRUCTURED_REPLY;
        let mut replies = self.replies.iter();
        let granted =
            replies.any(|(option, reply)| (*option, reply) == (structured, &OptionReply::Ack));
        assert_eq!(
            session.reply_style() == ReplyStyle::Structured,
            granted,
            "not what was negotiated"
        );
        check_flags(session);
        assert_eq!(session.export(), &name("disk"));
        let said = said(&self.output);
        if let Some(ClientOption::Go(_)) = said.last() {
            let mut told = self.replies.iter().rev();
            let size = told.find_map(|(option, reply)| match (option, reply) {
                (&OptionCode::GO, OptionReply::Info(Info::Export { size, .. })) => Some(*size),
                _ => None,
            });
            assert_eq!(size, Some(session.size()));
        } else {
            assert!(matches!(said.last(), Some(ClientOption::ExportName(_))));
        }
    }
}

fn send(ready: Ready<'_>, option: Option<&ClientOption>) {
    match option {
        Some(ClientOption::List) => ready.list(),
        Some(ClientOption::Info(request)) => ready.info(request.clone()),
        Some(ClientOption::Go(request)) => ready.go(request.clone()),
        Some(ClientOption::ExportName(name)) => ready.export_name(name.clone()),
        Some(ClientOption::StructuredReply) => ready.structured_replies(),
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
    assert!(!flags.contains(TransmissionFlags::BLOCK_STATUS_PAYLOAD));
}

// --- all the way ---

#[derive(Debug, PartialEq)]
struct Negotiation {
    output: Vec<u8>,
    taken: usize,
    end: Option<Result<Negotiated, NegotiateError>>,
    eof: Result<(), NegotiateError>,
}

fn negotiate(config: ClientConfig, wanted: &Wanted, cuts: [usize; 4], bytes: &[u8]) {
    let run = same_for_all_feeds(cuts, |feed| {
        Negotiation::of(config, wanted.clone(), bytes, feed)
    });
    if run.end.is_some() {
        let mut longer = bytes.to_vec();
        longer.extend_from_slice(&[0x5a; 40]);
        let again = Negotiation::of(config, wanted.clone(), &longer, Feed::Whole);
        assert_eq!(again, run, "what comes after the handshake matters");
    }
    let said = said(&run.output);
    // At most: structured replies, GO, EXPORT_NAME; or a farewell.
    assert!(said.len() <= 3, "{said:?}");
    match &run.end {
        Some(Ok(negotiated)) => {
            let session = &negotiated.session;
            check_flags(session);
            assert_eq!(session.export(), &name("disk"));
            assert_eq!(said.last().map(ClientOption::code), Some(negotiated.option));
        }
        Some(Err(NegotiateError::Refused(refused))) => {
            assert!(refused.code.is_error());
            assert!(!refused.to_string().is_empty());
            assert_eq!(said.last(), Some(&ClientOption::Abort));
            if refused.code != ReplyType::ERR_SHUTDOWN && refused.code != ReplyType::ERR_TLS_REQD {
                assert_eq!(refused.option, OptionCode::GO);
            }
        }
        Some(Err(error)) => assert!(!error.to_string().is_empty()),
        None => assert_eq!(run.taken, bytes.len()),
    }
}

impl Negotiation {
    fn of(config: ClientConfig, wanted: Wanted, bytes: &[u8], feed: Feed) -> Self {
        let mut machine = Negotiator::new(wanted, config);
        let mut output = Vec::new();
        let mut end = None;
        let (mut input, mut turn, mut taken) = (bytes, 0, 0);
        while end.is_none() {
            let mut piece = feed.next(&mut input, machine.wants(), turn);
            turn += 1;
            if piece.is_empty() {
                break;
            }
            let len = piece.len();
            end = match machine.advance(&mut piece, &mut output) {
                Ok(Progress::NeedInput) => None,
                Ok(Progress::Done(negotiated)) => Some(Ok(negotiated)),
                Ok(progress) => panic!("not known here: {progress:?}"),
                Err(error) => Some(Err(error)),
            };
            taken += len - piece.len();
            assert!(end.is_some() || piece.is_empty(), "input is left over");
            assert!(end.is_some() || machine.wants() > 0, "wants nothing");
        }
        let eof = machine.on_eof();
        if let Some(Err(error)) = &end {
            assert_eq!(eof.as_ref().err(), Some(error));
            let (mut more, mut out) = (&b"more"[..], Vec::new());
            let again = machine.advance(&mut more, &mut out);
            assert_eq!(again.as_ref().err(), Some(error));
            assert_eq!((more.len(), out.len()), (4, 0));
        }
        Self {
            output,
            taken,
            end,
            eof,
        }
    }
}
