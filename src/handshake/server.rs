//! The server's side of option negotiation: fixed newstyle (proto.md "Fixed newstyle
//! negotiation").

mod ask;
mod config;

pub use ask::{Ask, ExportAsk, ListAsk};
pub use config::{Export, ServerConfig};

use alloc::vec::Vec;

use super::partial::{Partial, skip, to_usize};
use crate::error::{Fatal, Refusal};
use crate::session::{BlockSizes, ReplyStyle, Session};
use crate::wire::{
    BadMagic, ClientFlags, ClientOption, Info, InfoRequest, MAX_STRING, Malformed, Name,
    NewstyleGreeting, OptionCode, OptionHeader, OptionReply, ReplyType, TransmissionFlags,
};

/// What a [`ServerHandshake`] came to.
///
/// Asks borrow the machine: they must be answered, or let go of, before the next step. One that
/// was let go of is refused when the next step is taken: a list with
/// [`Refusal::Policy`], an export with [`Refusal::UnknownExport`].
#[derive(Debug)]
#[must_use]
#[non_exhaustive]
pub enum Step<'s> {
    /// All input was taken. Send the output, then come back with more input.
    NeedInput,
    /// The client wants the list of exports.
    List(ListAsk<'s>),
    /// The client wants to know about an export, or to use it.
    Export(ExportAsk<'s>),
    /// The client ended the session: send the output, then close the connection. What is left of
    /// the input means nothing.
    Aborted,
    /// Transmission begins: send the output first. What is left of the input belongs to
    /// transmission.
    Done(Session),
}

/// The server's side of the handshake: fixed newstyle.
///
/// 1. [`new`](Self::new) writes the greeting.
/// 2. [`step`](Self::step) takes input, writes output, and says what came of it.
/// 3. [`Step::NeedInput`]: send the output, receive at most [`wants`](Self::wants) bytes, step
///    again. When the client closes the connection, [`on_eof`](Self::on_eof) says whether that
///    was in order.
/// 4. [`Step::List`], [`Step::Export`]: answer, step again.
/// 5. [`Step::Done`], [`Step::Aborted`]: the handshake is over.
///
/// An error is final: send what output there is, as well as it goes, and close the connection.
///
/// Options that nobody has to be asked about are answered by the machine: `ABORT`,
/// `STRUCTURED_REPLY`, every option that is malformed, unknown or not supported (see
/// [`error`](crate::error)). Their bodies are skipped, however long they are and in however many
/// pieces they come, up to [`Limits::max_drain`](crate::limits::Limits::max_drain).
///
/// Options are also taken from clients that did not set `FIXED_NEWSTYLE`, which proto.md "Client
/// flags" allows; such a client can only rely on `EXPORT_NAME`.
#[derive(Debug)]
pub struct ServerHandshake {
    config: ServerConfig,
    state: State,
    partial: Partial,
    options: u32,
    no_zeroes: bool,
    reply_style: ReplyStyle,
    shutting_down: bool,
    promise: Option<Promise>,
}

/// What the last option, a successful `INFO`, was told.
#[derive(Debug)]
struct Promise {
    request: InfoRequest,
    infos: Vec<Info>,
}

#[derive(Debug)]
enum State {
    ClientFlags,
    Header,
    /// The body is wanted; its length was compared with the limits.
    Body(OptionHeader),
    /// The rest of a body is skipped before the answer is given.
    Drain {
        option: OptionCode,
        left: u32,
        answer: Answer,
    },
    /// An ask was handed out and has no answer yet.
    Asked(Question),
    Aborted,
    Done(Session),
    Failed(Fatal),
}

/// An ask in the form in which the machine remembers it.
#[derive(Clone, Debug)]
enum Question {
    List,
    Export {
        /// `EXPORT_NAME`, `INFO` or `GO`.
        option: OptionCode,
        request: InfoRequest,
    },
}

/// What the machine answers by itself.
#[derive(Clone, Copy, Debug)]
enum Answer {
    /// To `ABORT`; the session is over.
    Farewell,
    Unsupported,
    Invalid(Malformed),
    TooBig,
    ShuttingDown,
}

impl ServerHandshake {
    /// Begins a handshake: appends the greeting to `out`.
    #[must_use]
    pub fn new(config: ServerConfig, out: &mut Vec<u8>) -> Self {
        let greeting = NewstyleGreeting {
            flags: config.handshake_flags(),
        };
        out.extend_from_slice(&greeting.to_bytes());
        Self {
            config,
            state: State::ClientFlags,
            partial: Partial::default(),
            options: 0,
            no_zeroes: false,
            reply_style: ReplyStyle::Simple,
            shutting_down: false,
            promise: None,
        }
    }

    /// The most bytes that the machine can take now without any of them belonging to what comes
    /// after the handshake; 0 once it is over.
    #[must_use]
    pub fn wants(&self) -> usize {
        match &self.state {
            State::ClientFlags => self.partial.missing(ClientFlags::LEN),
            State::Header => self.partial.missing(OptionHeader::LEN),
            State::Body(header) => self.partial.missing(to_usize(header.length)),
            State::Drain { left, .. } => to_usize(*left),
            // Let go of: it will be refused, which ends the session only for EXPORT_NAME.
            State::Asked(Question::Export { option, .. }) if *option == OptionCode::EXPORT_NAME => {
                0
            }
            State::Asked(_) => OptionHeader::LEN,
            State::Aborted | State::Done(_) | State::Failed(_) => 0,
        }
    }

    /// From now on refuses every option except `ABORT` with `ERR_SHUTDOWN`, and hangs up on
    /// `EXPORT_NAME`.
    ///
    /// Does not end the session by itself: only clients can do that softly (proto.md "Termination
    /// of the session during option haggling").
    pub const fn shutdown(&mut self) {
        self.shutting_down = true;
    }

    /// The client closed the connection.
    ///
    /// # Errors
    ///
    /// [`Fatal::Closed`] if that was in the middle of a message; the error of the last step if it
    /// failed. Between options it is in order, though not polite, and after the handshake it is
    /// not for us to judge.
    pub fn on_eof(&self) -> Result<(), Fatal> {
        match &self.state {
            State::Failed(fatal) => Err(fatal.clone()),
            State::ClientFlags | State::Header if !self.partial.is_empty() => Err(Fatal::Closed),
            State::Body(_) | State::Drain { .. } => Err(Fatal::Closed),
            State::ClientFlags
            | State::Header
            | State::Asked(_)
            | State::Aborted
            | State::Done(_) => Ok(()),
        }
    }

    /// Takes from `input`, appends to `out`, and says what came of it.
    ///
    /// `input` is advanced past what was taken. Never takes a byte that belongs to transmission.
    /// Once over, every step says so again.
    ///
    /// # Errors
    ///
    /// If the session cannot go on; every later step fails in the same way.
    pub fn step<'s>(
        &'s mut self,
        input: &mut &[u8],
        out: &'s mut Vec<u8>,
    ) -> Result<Step<'s>, Fatal> {
        self.refuse_unanswered(out);
        while self.advance(input, out) {}
        match &self.state {
            State::Asked(Question::List) => Ok(Step::List(ListAsk::new(self, out))),
            State::Asked(Question::Export { option, request }) => {
                let (option, request) = (*option, request.clone());
                Ok(Step::Export(ExportAsk::new(self, out, option, request)))
            }
            State::Aborted => Ok(Step::Aborted),
            State::Done(session) => Ok(Step::Done(session.clone())),
            State::Failed(fatal) => Err(fatal.clone()),
            State::ClientFlags | State::Header | State::Body(_) | State::Drain { .. } => {
                Ok(Step::NeedInput)
            }
        }
    }

    /// Does one thing; says whether there may be more to do.
    fn advance(&mut self, input: &mut &[u8], out: &mut Vec<u8>) -> bool {
        match &mut self.state {
            State::ClientFlags => match self.partial.fill_array(input) {
                Some(bytes) => self.on_client_flags(ClientFlags::from_bytes(&bytes)),
                None => return false,
            },
            State::Header => match self.partial.fill_array(input) {
                Some(bytes) => self.on_header(OptionHeader::from_bytes(&bytes), out),
                None => return false,
            },
            State::Body(header) => {
                let header = *header;
                if !self.partial.fill(input, to_usize(header.length)) {
                    return false;
                }
                let parsed = ClientOption::parse(header.option, self.partial.bytes());
                self.partial.clear();
                self.on_body(header.option, parsed, out);
            }
            State::Drain {
                option,
                left,
                answer,
            } => {
                *left = skip(input, *left);
                if *left > 0 {
                    return false;
                }
                let (option, answer) = (*option, *answer);
                self.answer(option, answer, out);
            }
            State::Asked(_) | State::Aborted | State::Done(_) | State::Failed(_) => return false,
        }
        true
    }

    fn on_client_flags(&mut self, flags: ClientFlags) {
        // proto.md "Client flags": "the server MUST drop the TCP connection if the client sets an
        // unknown flag, or a flag that does not match something advertised by the server".
        let offered = u32::from(self.config.handshake_flags().bits());
        if flags.bits() & !offered != 0 {
            return self.fail(Fatal::ClientFlags(flags));
        }
        self.no_zeroes = flags.contains(ClientFlags::NO_ZEROES);
        self.state = State::Header;
    }

    fn on_header(&mut self, header: Result<OptionHeader, BadMagic>, out: &mut Vec<u8>) {
        let header = match header {
            Ok(header) => header,
            Err(bad) => return self.fail(Fatal::OptionMagic(bad)),
        };
        let limit = self.config.limits.max_options();
        if self.options >= limit {
            return self.fail(Fatal::TooManyOptions { limit });
        }
        self.options += 1;
        if header.option != OptionCode::GO {
            // Any option between INFO and GO frees us from what was said to INFO.
            self.promise = None;
        }
        match header.option {
            OptionCode::EXPORT_NAME => self.want_export_name(header),
            OptionCode::ABORT => self.drain(header, Answer::Farewell),
            _ if self.shutting_down => self.drain(header, Answer::ShuttingDown),
            OptionCode::LIST if header.length == 0 => {
                self.state = State::Asked(Question::List);
            }
            OptionCode::STRUCTURED_REPLY
                if self.config.structured_replies && header.length == 0 =>
            {
                // Asking again changes nothing, so it is granted again.
                self.reply_style = ReplyStyle::Structured;
                self.acknowledge(header.option, out);
            }
            OptionCode::STRUCTURED_REPLY if !self.config.structured_replies => {
                self.drain(header, Answer::Unsupported);
            }
            OptionCode::LIST | OptionCode::STRUCTURED_REPLY => {
                let excess = to_usize(header.length);
                self.drain(header, Answer::Invalid(Malformed::Trailing { excess }));
            }
            OptionCode::INFO | OptionCode::GO => {
                if header.length > self.config.limits.max_option_body() {
                    self.drain(header, Answer::TooBig);
                } else {
                    self.state = State::Body(header);
                }
            }
            // Known, but not offered: proto.md "Baseline" wants the same answer as for unknown ones.
            OptionCode::STARTTLS
            | OptionCode::LIST_META_CONTEXT
            | OptionCode::SET_META_CONTEXT
            | OptionCode::EXTENDED_HEADERS => self.drain(header, Answer::Unsupported),
            _ => self.drain(header, Answer::Unsupported),
        }
    }

    /// `EXPORT_NAME` cannot be answered with an error, so there is no point in skipping a body
    /// that is too long to be a name.
    fn want_export_name(&mut self, header: OptionHeader) {
        let longest = u32::try_from(MAX_STRING).unwrap_or(u32::MAX);
        let limit = longest.min(self.config.limits.max_option_body());
        if header.length > limit {
            self.fail(Fatal::OptionTooLong {
                option: header.option,
                length: header.length,
                limit,
            });
        } else {
            self.state = State::Body(header);
        }
    }

    /// Skips the body, then answers.
    fn drain(&mut self, header: OptionHeader, answer: Answer) {
        let limit = self.config.limits.max_drain();
        if header.length > limit {
            return self.fail(Fatal::OptionTooLong {
                option: header.option,
                length: header.length,
                limit,
            });
        }
        self.state = State::Drain {
            option: header.option,
            left: header.length,
            answer,
        };
    }

    fn answer(&mut self, option: OptionCode, answer: Answer, out: &mut Vec<u8>) {
        let (code, message) = match answer {
            Answer::Farewell => {
                OptionReply::Ack.encode(option, out);
                self.state = State::Aborted;
                return;
            }
            Answer::Unsupported => (ReplyType::ERR_UNSUP, Name::default()),
            Answer::Invalid(why) => (ReplyType::ERR_INVALID, message(&format_args!("it {why}"))),
            Answer::TooBig => (ReplyType::ERR_TOO_BIG, message(&Refusal::TooBig)),
            Answer::ShuttingDown => (ReplyType::ERR_SHUTDOWN, message(&Refusal::ShuttingDown)),
        };
        OptionReply::Error { code, message }.encode(option, out);
        self.state = State::Header;
    }

    fn on_body(
        &mut self,
        option: OptionCode,
        parsed: Result<ClientOption, Malformed>,
        out: &mut Vec<u8>,
    ) {
        let request = match parsed {
            Ok(ClientOption::ExportName(name)) => InfoRequest::new(name),
            Ok(ClientOption::Info(request) | ClientOption::Go(request)) => request,
            // Bodies are only waited for where the arms above apply.
            Ok(_) => return self.answer(option, Answer::Unsupported, out),
            Err(why) if option == OptionCode::EXPORT_NAME => {
                return self.fail(Fatal::ExportName(why));
            }
            Err(why) => return self.answer(option, Answer::Invalid(why), out),
        };
        self.state = State::Asked(Question::Export { option, request });
        if self.shutting_down {
            self.refuse_unanswered(out);
        }
    }

    /// Gives the default refusal to an ask that was let go of.
    fn refuse_unanswered(&mut self, out: &mut Vec<u8>) {
        let State::Asked(question) = &self.state else {
            return;
        };
        let question = question.clone();
        let why = match question {
            _ if self.shutting_down => Refusal::ShuttingDown,
            Question::List => Refusal::Policy,
            Question::Export { .. } => Refusal::UnknownExport,
        };
        self.refuse(&question, why, &message(&why), out);
    }

    fn refuse(&mut self, question: &Question, why: Refusal, message: &Name, out: &mut Vec<u8>) {
        let (option, why) = match question {
            Question::List => (OptionCode::LIST, why),
            Question::Export { option, request } if *option == OptionCode::EXPORT_NAME => {
                return self.fail(Fatal::ExportRefused {
                    name: request.name.clone(),
                    why,
                });
            }
            Question::Export { option, request } => (*option, explain(*option, request, why, out)),
        };
        self.promise = None;
        let error = OptionReply::Error {
            code: why.reply_type(),
            message: message.clone(),
        };
        error.encode(option, out);
        self.state = State::Header;
    }

    fn accept(
        &mut self,
        option: OptionCode,
        request: InfoRequest,
        export: &Export,
        out: &mut Vec<u8>,
    ) {
        let flags = export.flags | TransmissionFlags::HAS_FLAGS;
        let flags = super::consistent(flags, self.reply_style);
        if option == OptionCode::EXPORT_NAME {
            let reply = crate::wire::ExportNameReply {
                size: export.size,
                flags,
            };
            reply.encode(self.no_zeroes, out);
            return self.enter_transmission(request.name, export, flags);
        }
        let infos = infos(&request, export, flags);
        if self.breaks_promise(option, &request, &infos) {
            let question = Question::Export { option, request };
            let text = Name::lossy(b"the export has changed since it was asked about");
            return self.refuse(&question, Refusal::Policy, &text, out);
        }
        for info in &infos {
            OptionReply::Info(info.clone()).encode(option, out);
        }
        self.acknowledge(option, out);
        if option == OptionCode::GO {
            self.enter_transmission(request.name, export, flags);
        } else {
            self.promise = Some(Promise { request, infos });
        }
    }

    /// Whether a `GO` would be told something else than the equal `INFO` just before it.
    ///
    /// proto.md under `NBD_OPT_GO`: "the server MUST reply with the same set of information". To
    /// repeat what is not true any more would be worse than to refuse; the client can ask again.
    fn breaks_promise(&self, option: OptionCode, request: &InfoRequest, infos: &[Info]) -> bool {
        option == OptionCode::GO
            && self
                .promise
                .as_ref()
                .is_some_and(|promise| promise.request == *request && promise.infos != infos)
    }

    fn acknowledge(&mut self, option: OptionCode, out: &mut Vec<u8>) {
        OptionReply::Ack.encode(option, out);
        self.state = State::Header;
    }

    fn enter_transmission(&mut self, name: Name, export: &Export, flags: TransmissionFlags) {
        let session = Session::new(name, export.size, flags)
            .with_reply_style(self.reply_style)
            .with_block_sizes(export.block_sizes);
        self.state = State::Done(session);
    }

    fn fail(&mut self, fatal: Fatal) {
        self.state = State::Failed(fatal);
    }
}

/// Sends what belongs to a refusal before the error itself, and corrects a refusal that the
/// protocol forbids here.
fn explain(option: OptionCode, request: &InfoRequest, why: Refusal, out: &mut Vec<u8>) -> Refusal {
    let Refusal::BlockSizesRequired(sizes) = why else {
        return why;
    };
    // proto.md under `NBD_OPT_GO`: "The server MUST NOT send this error if size constraints were
    // requested"; else it "SHOULD ensure it first sends an NBD_INFO_BLOCK_SIZE".
    if request.asks(crate::wire::InfoType::BLOCK_SIZE) {
        return Refusal::Policy;
    }
    OptionReply::Info(block_size_info(sizes)).encode(option, out);
    why
}

/// What is told about an export: size and flags always, the rest if asked for; size constraints
/// also if they are not the default ones (proto.md "Size constraints").
fn infos(request: &InfoRequest, export: &Export, flags: TransmissionFlags) -> Vec<Info> {
    use crate::wire::InfoType;

    let mut infos = Vec::with_capacity(4);
    infos.push(Info::Export {
        size: export.size,
        flags,
    });
    if request.asks(InfoType::NAME) {
        infos.push(Info::Name(export.name.clone()));
    }
    if request.asks(InfoType::DESCRIPTION) && export.description != Name::EMPTY {
        infos.push(Info::Description(export.description.clone()));
    }
    if request.asks(InfoType::BLOCK_SIZE) || export.block_sizes != BlockSizes::DEFAULT {
        infos.push(block_size_info(export.block_sizes));
    }
    infos
}

const fn block_size_info(sizes: BlockSizes) -> Info {
    Info::BlockSize {
        minimum: sizes.minimum(),
        preferred: sizes.preferred(),
        max_payload: sizes.max_payload(),
    }
}

/// The text of an error reply.
fn message(text: &dyn core::fmt::Display) -> Name {
    Name::lossy(alloc::format!("{text}").as_bytes())
}
