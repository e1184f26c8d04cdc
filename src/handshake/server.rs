//! The server's side of option negotiation: fixed newstyle (proto.md "Fixed newstyle
//! negotiation"), newstyle without fixed, and the oldstyle greeting.

mod answer;
mod ask;
mod config;
mod contexts;
mod oldstyle;

pub use ask::{Ask, ExportAsk, ListAsk};
pub use config::{Export, ServerConfig, TlsPolicy};
pub use contexts::{Context, ContextsAsk};

use alloc::vec::Vec;

use super::namespace::namespace;
use super::partial::{Partial, skip, to_usize};
use super::tls::TlsStart;
use crate::error::{Fatal, Refusal};
use crate::session::{ReplyStyle, Session};
use crate::wire::{
    BadMagic, ClientFlags, ClientOption, InfoRequest, Malformed, MetaContextRequest, Name,
    NewstyleGreeting, OptionCode, OptionHeader,
};
use answer::{Answer, Promise, message};
use contexts::Selected;

/// What a [`ServerHandshake`] came to.
///
/// Asks borrow the machine: they must be answered, or let go of, before the next step. One that
/// was let go of is refused when the next step is taken: a list with
/// [`Refusal::Policy`], an export and its contexts with [`Refusal::UnknownExport`]. Leave to start
/// TLS that was let go of is given again.
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
    /// The client wants to know the meta contexts of an export, or to select some. Only if
    /// [`ServerConfig::with_meta_contexts`] says so.
    Contexts(ContextsAsk<'s>),
    /// The client wants TLS, and was told that it begins: send the output, start TLS, give the
    /// leave back to [`ServerHandshake::tls_started`]. Only if [`ServerConfig::with_tls`] says so.
    StartTls(TlsStart),
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
/// 4. [`Step::List`], [`Step::Export`], [`Step::Contexts`]: answer, step again.
/// 5. [`Step::StartTls`]: send the output, start TLS, [`tls_started`](Self::tls_started), and go
///    on with what TLS decrypts. What was negotiated before is forgotten. Receive no more than
///    [`wants`](Self::wants) before, so that nothing is left over from the time without TLS: what
///    is, is fatal.
/// 6. [`Step::Done`], [`Step::Aborted`]: the handshake is over.
///
/// An error is final: send what output there is, as well as it goes, and close the connection.
///
/// Options that nobody has to be asked about are answered by the machine: `ABORT`, `STARTTLS`,
/// `STRUCTURED_REPLY`, `EXTENDED_HEADERS`, every option that is malformed, unknown or not
/// supported, or comes before TLS where TLS is forced (see [`error`](crate::error)). Their bodies
/// are skipped, however long they are and in however many pieces they come, up to
/// [`Limits::max_drain`](crate::limits::Limits::max_drain).
///
/// Options are also taken from clients that did not set `FIXED_NEWSTYLE`, which proto.md "Client
/// flags" allows; such a client can only rely on `EXPORT_NAME`, and cannot have TLS.
#[derive(Debug)]
pub struct ServerHandshake {
    config: ServerConfig,
    state: State,
    partial: Partial,
    options: u32,
    /// Both sides set `FIXED_NEWSTYLE`.
    fixed: bool,
    no_zeroes: bool,
    tls: bool,
    reply_style: ReplyStyle,
    selected: Option<Selected>,
    shutting_down: bool,
    promise: Option<Promise>,
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
    /// `STARTTLS` was taken, and is granted if nothing follows it.
    TlsAsked,
    /// `STARTTLS` was granted. No byte is taken until TLS runs.
    TlsPending,
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
    Contexts {
        /// `LIST_META_CONTEXT` or `SET_META_CONTEXT`.
        option: OptionCode,
        request: MetaContextRequest,
    },
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
            fixed: false,
            no_zeroes: false,
            tls: false,
            reply_style: ReplyStyle::Simple,
            selected: None,
            shutting_down: false,
            promise: None,
        }
    }

    /// The most bytes that the machine can take now without any of them belonging to what comes
    /// after the handshake, or to TLS; 0 once it is over, and while TLS is to be started.
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
            State::TlsAsked
            | State::TlsPending
            | State::Aborted
            | State::Done(_)
            | State::Failed(_) => 0,
        }
    }

    /// TLS runs: what is given to [`step`](Self::step) from now on was decrypted, and what it
    /// writes will be encrypted. All that was negotiated before is forgotten (proto.md under
    /// `NBD_OPT_STARTTLS`).
    pub fn tls_started(&mut self, leave: TlsStart) {
        // One from another machine changes nothing.
        let TlsStart { .. } = leave;
        if matches!(self.state, State::TlsPending) {
            self.tls = true;
            // CVE-2021-3716: whoever can write into the connection could negotiate, in the name of
            // a client that knows nothing of it.
            self.reply_style = ReplyStyle::Simple;
            self.selected = None;
            self.promise = None;
            self.state = State::Header;
        }
    }

    /// Whether TLS runs.
    #[must_use]
    pub const fn is_tls(&self) -> bool {
        self.tls
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
            State::Body(_) | State::Drain { .. } | State::TlsAsked | State::TlsPending => {
                Err(Fatal::Closed)
            }
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
            State::Asked(Question::Contexts { option, request }) => {
                let (option, request) = (*option, request.clone());
                Ok(Step::Contexts(ContextsAsk::new(self, out, option, request)))
            }
            State::TlsPending => Ok(Step::StartTls(TlsStart::new())),
            State::Aborted => Ok(Step::Aborted),
            State::Done(session) => Ok(Step::Done(session.clone())),
            State::Failed(fatal) => Err(fatal.clone()),
            State::ClientFlags
            | State::Header
            | State::Body(_)
            | State::Drain { .. }
            | State::TlsAsked => Ok(Step::NeedInput),
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
            // Whoever can write into the connection could write the beginning of what the client
            // says under the protection of TLS (CVE-2011-0411, in mail servers).
            State::TlsAsked | State::TlsPending if !input.is_empty() => {
                self.fail(Fatal::PlaintextBeforeTls);
            }
            State::TlsAsked => {
                self.acknowledge(OptionCode::STARTTLS, out);
                self.state = State::TlsPending;
            }
            State::TlsPending
            | State::Asked(_)
            | State::Aborted
            | State::Done(_)
            | State::Failed(_) => return false,
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
        self.fixed = flags.contains(ClientFlags::FIXED_NEWSTYLE);
        self.no_zeroes = flags.contains(ClientFlags::NO_ZEROES);
        self.state = State::Header;
    }

    fn on_header(&mut self, header: Result<OptionHeader, BadMagic>, out: &mut Vec<u8>) {
        let header = match header {
            Ok(header) => header,
            Err(bad) => return self.fail(Fatal::OptionMagic(bad)),
        };
        let limit = self.config.limits.max_options();
        // A farewell is no attack, and the session is over with it.
        if header.option != OptionCode::ABORT {
            if self.options >= limit {
                return self.fail(Fatal::TooManyOptions { limit });
            }
            self.options += 1;
        }
        if header.option != OptionCode::GO {
            // Any option between INFO and GO frees us from what was said to INFO.
            self.promise = None;
        }
        if header.option == OptionCode::SET_META_CONTEXT {
            // proto.md under `NBD_OPT_SET_META_CONTEXT`: "replaces all previously-set metadata
            // contexts (including when this command fails)".
            self.selected = None;
        }
        match header.option {
            OptionCode::EXPORT_NAME => self.want_export_name(header),
            OptionCode::ABORT => self.drain(header, Answer::Farewell),
            option if !self.config.fixed_newstyle => self.fail(Fatal::NotFixedNewstyle { option }),
            _ => match self.reject(header) {
                Some(answer) => self.drain(header, answer),
                None => self.on_option(header, out),
            },
        }
    }

    /// What is answered to an option because of its header alone.
    fn reject(&self, header: OptionHeader) -> Option<Answer> {
        let option = header.option;
        if let (false, Some(answer)) = (option == OptionCode::STARTTLS, self.tls_missing()) {
            return Some(answer);
        }
        if self.shutting_down {
            return Some(Answer::Refused(Refusal::ShuttingDown));
        }
        if !self.supports(option) {
            // proto.md "Baseline" wants the same answer to the known as to the unknown.
            return Some(Answer::Unsupported);
        }
        let has_body = matches!(
            option,
            OptionCode::INFO
                | OptionCode::GO
                | OptionCode::LIST_META_CONTEXT
                | OptionCode::SET_META_CONTEXT
        );
        if !has_body && header.length > 0 {
            let excess = to_usize(header.length);
            return Some(Answer::Malformed(Malformed::Trailing { excess }));
        }
        if header.length > self.config.limits.max_option_body() {
            return Some(Answer::Refused(Refusal::TooBig));
        }
        self.out_of_place(option)
    }

    /// What is answered to an option that is only not right now.
    fn out_of_place(&self, option: OptionCode) -> Option<Answer> {
        match (option, self.reply_style) {
            (OptionCode::STARTTLS, _) if self.tls => Some(Answer::Invalid("TLS runs already")),
            // proto.md "Server-side requirements": "MUST operate in NOTLS mode unless the server
            // set flag NBD_FLAG_FIXED_NEWSTYLE and the client replied" in kind.
            (OptionCode::STARTTLS, _) if !self.fixed => Some(Answer::Refused(Refusal::Policy)),
            // proto.md "Fixed newstyle negotiation": a server MAY fail what changes its state, if
            // it comes again.
            (OptionCode::EXTENDED_HEADERS, ReplyStyle::Extended) => {
                Some(Answer::Invalid("extended headers are in use already"))
            }
            (OptionCode::STRUCTURED_REPLY, ReplyStyle::Extended) => {
                Some(Answer::ExtendedHeadersInUse)
            }
            (OptionCode::LIST_META_CONTEXT | OptionCode::SET_META_CONTEXT, ReplyStyle::Simple) => {
                Some(Answer::Invalid(
                    "structured replies or extended headers have to be negotiated first",
                ))
            }
            _ => None,
        }
    }

    const fn supports(&self, option: OptionCode) -> bool {
        match option {
            OptionCode::LIST | OptionCode::INFO | OptionCode::GO => true,
            OptionCode::STARTTLS => !matches!(self.config.tls, TlsPolicy::None),
            OptionCode::STRUCTURED_REPLY => self.config.structured_replies,
            OptionCode::EXTENDED_HEADERS => self.config.extended_headers,
            OptionCode::LIST_META_CONTEXT | OptionCode::SET_META_CONTEXT => {
                self.config.meta_contexts
            }
            _ => false,
        }
    }

    /// What is answered to every option but `STARTTLS` and `ABORT` because TLS does not run.
    fn tls_missing(&self) -> Option<Answer> {
        if self.tls || self.config.tls != TlsPolicy::Forced {
            None
        } else if self.fixed {
            Some(Answer::Refused(Refusal::TlsRequired))
        } else {
            // It cannot have TLS, and must not be told to, but it will not be served without:
            // whoever takes a flag off the client's greeting would have got rid of TLS.
            Some(Answer::Refused(Refusal::Policy))
        }
    }

    /// An option that is in place: it is granted, asked about, or its body is waited for.
    fn on_option(&mut self, header: OptionHeader, out: &mut Vec<u8>) {
        match header.option {
            OptionCode::LIST => self.state = State::Asked(Question::List),
            OptionCode::STARTTLS => self.state = State::TlsAsked,
            OptionCode::STRUCTURED_REPLY => {
                // Asking again changes nothing, so it is granted again.
                self.reply_style = ReplyStyle::Structured;
                self.acknowledge(header.option, out);
            }
            OptionCode::EXTENDED_HEADERS => {
                self.reply_style = ReplyStyle::Extended;
                self.acknowledge(header.option, out);
            }
            _ => self.state = State::Body(header),
        }
    }

    /// `EXPORT_NAME` cannot be answered with an error, so there is no point in skipping a body
    /// that is too long to be a name.
    fn want_export_name(&mut self, header: OptionHeader) {
        let limits = &self.config.limits;
        let limit = limits.max_string().min(limits.max_option_body());
        if self.reply_style == ReplyStyle::Extended {
            // proto.md under `NBD_OPT_EXPORT_NAME`: a client with extended headers "MUST NOT use
            // this option".
            self.fail(Fatal::ExportNameAfterExtendedHeaders);
        } else if header.length > limit {
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

    fn on_body(
        &mut self,
        option: OptionCode,
        parsed: Result<ClientOption, Malformed>,
        out: &mut Vec<u8>,
    ) {
        let question = match parsed {
            Ok(ClientOption::ExportName(name)) => Question::Export {
                option,
                request: InfoRequest::new(name),
            },
            Ok(ClientOption::Info(request) | ClientOption::Go(request)) => {
                Question::Export { option, request }
            }
            Ok(ClientOption::ListMetaContext(request) | ClientOption::SetMetaContext(request)) => {
                Question::Contexts { option, request }
            }
            // Bodies are only waited for where the arms above apply.
            Ok(_) => return self.answer(option, Answer::Unsupported, out),
            Err(why) if option == OptionCode::EXPORT_NAME => {
                return self.fail(Fatal::ExportName(why));
            }
            Err(why) => return self.answer(option, Answer::Malformed(why), out),
        };
        if let Some(answer) = self.reject_question(&question) {
            return self.answer(option, answer, out);
        }
        if self.tls_missing().is_some() {
            // Only EXPORT_NAME gets here.
            return self.refuse(&question, Refusal::TlsRequired, &Name::EMPTY, out);
        }
        self.state = State::Asked(question);
        if self.shutting_down {
            self.refuse_unanswered(out);
        }
    }

    /// What is answered to a well-formed option because of what is in its body.
    fn reject_question(&self, question: &Question) -> Option<Answer> {
        let limits = &self.config.limits;
        let too_long = |name: &Name| name.wire_len() > limits.max_string();
        match question {
            Question::List => None,
            Question::Export { request, .. } => {
                too_long(&request.name).then_some(Answer::Refused(Refusal::TooBig))
            }
            Question::Contexts { request, .. } => {
                let many = request.queries.len() > to_usize(limits.max_queries());
                if many || too_long(&request.export) || request.queries.iter().any(too_long) {
                    return Some(Answer::Refused(Refusal::TooBig));
                }
                // proto.md under `NBD_OPT_LIST_META_CONTEXT`: for a query that lacks "the required
                // colon that delimits the namespace, [..] the server MAY fail the request with
                // NBD_REP_ERR_INVALID".
                let mut queries = request.queries.iter();
                (!queries.all(|query| namespace(query.as_str()).is_some()))
                    .then_some(Answer::Invalid("a query has no namespace"))
            }
        }
    }

    fn fail(&mut self, fatal: Fatal) {
        self.state = State::Failed(fatal);
    }
}
