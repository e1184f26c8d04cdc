//! The client's side of option negotiation: newstyle and fixed newstyle (proto.md "Newstyle
//! negotiation").

mod ready;

pub use ready::Ready;

use alloc::vec::Vec;

use super::partial::{Partial, to_usize};
use crate::error::Fatal;
use crate::limits::Limits;
use crate::session::{BlockSizes, ReplyStyle, Session};
use crate::wire::{
    BadMagic, ClientFlags, ClientOption, ExportNameReply, GreetingStyle, HandshakeFlags, Info,
    Name, NewstyleGreeting, OptionCode, OptionReply, OptionReplyHeader, ReplyType,
    TransmissionFlags,
};

/// How a client shakes hands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientConfig {
    limits: Limits,
    no_zeroes: bool,
}

impl ClientConfig {
    /// `NO_ZEROES` is used where the server offers it; limits are the default ones.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            limits: Limits::new(),
            no_zeroes: true,
        }
    }

    /// Sets the limits.
    #[must_use]
    pub const fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Sets whether `NO_ZEROES` is used where the server offers it (default: yes).
    #[must_use]
    pub const fn with_no_zeroes(mut self, used: bool) -> Self {
        self.no_zeroes = used;
        self
    }

    /// The limits.
    #[must_use]
    pub const fn limits(&self) -> Limits {
        self.limits
    }
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self::new()
    }
}

/// What a [`ClientHandshake`] came to.
#[derive(Debug)]
#[must_use]
#[non_exhaustive]
pub enum ClientStep<'s> {
    /// All input was taken. Send the output, then come back with more input.
    NeedInput,
    /// Nothing is outstanding: the next option may be sent. Let go of, it comes again.
    Ready(Ready<'s>),
    /// The server answered. After a [final](OptionReply::is_final) reply nothing is outstanding,
    /// except after `ERR_SHUTDOWN`: then the machine has written an `ABORT`, as the protocol
    /// wants it.
    Reply {
        /// What is answered.
        option: OptionCode,
        /// The answer.
        reply: OptionReply,
    },
    /// The session is over: send the output, then close the connection.
    Aborted,
    /// Transmission begins. What is left of the input belongs to it.
    Done(Session),
}

/// The client's side of the handshake, option by option.
///
/// 1. [`step`](Self::step) takes input, writes output, and says what came of it.
/// 2. [`ClientStep::NeedInput`]: send the output, receive at most [`wants`](Self::wants) bytes,
///    step again. When the server closes the connection, [`on_eof`](Self::on_eof) says what that
///    means.
/// 3. [`ClientStep::Ready`]: send an option, step again.
/// 4. [`ClientStep::Done`], [`ClientStep::Aborted`]: the handshake is over.
///
/// An error is final: the server broke the protocol, or speaks another one. Close the connection.
///
/// For the usual way into transmission there is [`Negotiator`](super::Negotiator).
#[derive(Debug)]
pub struct ClientHandshake {
    config: ClientConfig,
    state: State,
    partial: Partial,
    fixed: bool,
    no_zeroes: bool,
    reply_style: ReplyStyle,
}

#[derive(Debug)]
enum State {
    Greeting,
    Ready,
    /// An option was sent; the header of a reply to it is wanted.
    Header(Sent),
    /// The body of a reply is wanted; its length was compared with the limits.
    Body {
        sent: Sent,
        header: OptionReplyHeader,
    },
    /// `EXPORT_NAME` was sent, whose reply has no header.
    ExportName(Name),
    /// A reply is to be handed out before the next thing is done.
    Reply {
        option: OptionCode,
        reply: OptionReply,
        next: Next,
    },
    Aborted,
    Done(Session),
    Failed(Fatal),
}

/// What comes after a reply.
#[derive(Debug)]
enum Next {
    /// More replies to the same option.
    Header(Sent),
    Ready,
    /// The server is shutting down.
    Abort,
}

/// The option that is outstanding, and what was heard about it.
#[derive(Debug)]
struct Sent {
    option: OptionCode,
    /// The export, with `INFO` and `GO`.
    name: Name,
    replies: u32,
    export: Option<(u64, TransmissionFlags)>,
    block_sizes: BlockSizes,
}

impl ClientHandshake {
    /// Begins a handshake; the server speaks first.
    #[must_use]
    pub fn new(config: ClientConfig) -> Self {
        Self {
            config,
            state: State::Greeting,
            partial: Partial::default(),
            fixed: false,
            no_zeroes: false,
            reply_style: ReplyStyle::Simple,
        }
    }

    /// The most bytes that the machine can take now without any of them belonging to what comes
    /// after the handshake; 0 once it is over, and while an option has to be sent first.
    #[must_use]
    pub fn wants(&self) -> usize {
        match &self.state {
            State::Greeting => self.partial.missing(NewstyleGreeting::LEN),
            State::Header(_) => self.partial.missing(OptionReplyHeader::LEN),
            State::Body { header, .. } => self.partial.missing(to_usize(header.length)),
            State::ExportName(_) => self.partial.missing(self.export_name_len()),
            State::Ready
            | State::Reply { .. }
            | State::Aborted
            | State::Done(_)
            | State::Failed(_) => 0,
        }
    }

    /// Whether the server is *fixed* newstyle: knows options other than `EXPORT_NAME`. Means
    /// something once the first [`ClientStep::Ready`] was reached.
    #[must_use]
    pub const fn is_fixed_newstyle(&self) -> bool {
        self.fixed
    }

    /// The reply style that was negotiated so far.
    #[must_use]
    pub const fn reply_style(&self) -> ReplyStyle {
        self.reply_style
    }

    /// The server closed the connection.
    ///
    /// # Errors
    ///
    /// [`Fatal::ExportUnavailable`] after an `EXPORT_NAME`, which is how a server refuses it;
    /// the error of the last step if it failed; [`Fatal::Closed`] everywhere else, except that
    /// after an `ABORT`, and after the handshake, it is in order.
    pub fn on_eof(&self) -> Result<(), Fatal> {
        match &self.state {
            State::Failed(fatal) => Err(fatal.clone()),
            // proto.md under `NBD_OPT_ABORT`: "the client SHOULD gracefully handle the server
            // closing the connection [..] without it sending a reply".
            State::Header(sent) if sent.option == OptionCode::ABORT => Ok(()),
            State::ExportName(name) if self.partial.is_empty() => {
                Err(Fatal::ExportUnavailable { name: name.clone() })
            }
            State::Aborted | State::Done(_) => Ok(()),
            State::Greeting
            | State::Ready
            | State::Header(_)
            | State::Body { .. }
            | State::ExportName(_)
            | State::Reply { .. } => Err(Fatal::Closed),
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
    ) -> Result<ClientStep<'s>, Fatal> {
        while self.advance(input, out) {}
        if let Some((option, reply)) = self.take_reply(out) {
            return Ok(ClientStep::Reply { option, reply });
        }
        match &self.state {
            State::Ready => Ok(ClientStep::Ready(Ready::new(self, out))),
            State::Aborted => Ok(ClientStep::Aborted),
            State::Done(session) => Ok(ClientStep::Done(session.clone())),
            State::Failed(fatal) => Err(fatal.clone()),
            State::Greeting
            | State::Header(_)
            | State::Body { .. }
            | State::ExportName(_)
            | State::Reply { .. } => Ok(ClientStep::NeedInput),
        }
    }

    /// Does one thing; says whether there may be more to do.
    fn advance(&mut self, input: &mut &[u8], out: &mut Vec<u8>) -> bool {
        match core::mem::replace(&mut self.state, State::Ready) {
            State::Greeting => return self.on_greeting(input, out),
            State::Header(sent) => {
                if let Some(bytes) = self.partial.fill_array(input) {
                    self.on_header(sent, OptionReplyHeader::from_bytes(&bytes));
                    return true;
                }
                self.state = State::Header(sent);
            }
            State::Body { sent, header } => {
                if self.partial.fill(input, to_usize(header.length)) {
                    let reply = OptionReply::parse(header.reply, self.partial.bytes());
                    self.partial.clear();
                    match reply {
                        Ok(reply) => self.on_reply(sent, reply),
                        Err(why) => self.fail(Fatal::MalformedReply {
                            option: header.option,
                            reply: header.reply,
                            why,
                        }),
                    }
                    return true;
                }
                self.state = State::Body { sent, header };
            }
            State::ExportName(name) => {
                if self.partial.fill(input, self.export_name_len()) {
                    self.on_export_name_reply(name);
                    return true;
                }
                self.state = State::ExportName(name);
            }
            state @ (State::Ready
            | State::Reply { .. }
            | State::Aborted
            | State::Done(_)
            | State::Failed(_)) => self.state = state,
        }
        false
    }

    fn on_greeting(&mut self, input: &mut &[u8], out: &mut Vec<u8>) -> bool {
        self.state = State::Greeting;
        if !self.partial.fill(input, GreetingStyle::LEN) {
            return false;
        }
        // An oldstyle greeting is longer, but it need not be complete to be known.
        match self
            .partial
            .bytes()
            .first_chunk()
            .map(GreetingStyle::from_bytes)
        {
            Some(Ok(GreetingStyle::Newstyle)) => {}
            Some(Ok(GreetingStyle::Oldstyle)) => {
                self.fail(Fatal::Oldstyle);
                return true;
            }
            Some(Err(bad)) => {
                self.fail(Fatal::NotNbd(bad));
                return true;
            }
            None => return false,
        }
        let Some(bytes) = self.partial.fill_array(input) else {
            return false;
        };
        match NewstyleGreeting::from_bytes(&bytes) {
            Ok(greeting) => self.on_handshake_flags(greeting.flags, out),
            Err(bad) => self.fail(Fatal::NotNbd(bad)),
        }
        true
    }

    /// Sets those client flags that the server offered; flags that have no name are ignored
    /// (proto.md "Newstyle negotiation").
    fn on_handshake_flags(&mut self, offered: HandshakeFlags, out: &mut Vec<u8>) {
        self.fixed = offered.contains(HandshakeFlags::FIXED_NEWSTYLE);
        self.no_zeroes = self.config.no_zeroes && offered.contains(HandshakeFlags::NO_ZEROES);
        let mut flags = ClientFlags::empty();
        flags.set(ClientFlags::FIXED_NEWSTYLE, self.fixed);
        flags.set(ClientFlags::NO_ZEROES, self.no_zeroes);
        out.extend_from_slice(&flags.to_bytes());
        self.state = State::Ready;
    }

    fn on_header(&mut self, mut sent: Sent, header: Result<OptionReplyHeader, BadMagic>) {
        let header = match header {
            Ok(header) => header,
            Err(bad) => return self.fail(Fatal::ReplyMagic(bad)),
        };
        let option = sent.option;
        if header.option != option {
            return self.fail(Fatal::WrongOption {
                sent: option,
                answered: header.option,
            });
        }
        if !can_answer(option, header.reply) {
            return self.fail(Fatal::UnexpectedReply {
                option,
                reply: header.reply,
            });
        }
        let limit = self.config.limits.max_option_body();
        if header.length > limit {
            return self.fail(Fatal::ReplyTooLong {
                option,
                length: header.length,
                limit,
            });
        }
        let limit = self.config.limits.max_replies();
        if !is_final(header.reply) {
            if sent.replies >= limit {
                return self.fail(Fatal::TooManyReplies { option, limit });
            }
            sent.replies += 1;
        }
        self.state = State::Body { sent, header };
    }

    fn on_reply(&mut self, mut sent: Sent, reply: OptionReply) {
        let option = sent.option;
        if reply.is_final() && option == OptionCode::ABORT {
            // An error to ABORT is odd, but the session is over all the same.
            self.state = State::Aborted;
            return;
        }
        let next = match &reply {
            OptionReply::Ack => {
                if let Err(fatal) = self.on_ack(&mut sent) {
                    return self.fail(fatal);
                }
                if matches!(self.state, State::Done(_)) {
                    return;
                }
                Next::Ready
            }
            OptionReply::Error { code, .. } if *code == ReplyType::ERR_SHUTDOWN => Next::Abort,
            OptionReply::Error { .. } => Next::Ready,
            OptionReply::Info(info) => match sent.learn(info) {
                Ok(()) => Next::Header(sent),
                Err(fatal) => return self.fail(fatal),
            },
            _ => Next::Header(sent),
        };
        self.state = State::Reply {
            option,
            reply,
            next,
        };
    }

    fn on_ack(&mut self, sent: &mut Sent) -> Result<(), Fatal> {
        let option = sent.option;
        match option {
            OptionCode::STRUCTURED_REPLY => self.reply_style = ReplyStyle::Structured,
            OptionCode::INFO | OptionCode::GO => {
                // proto.md under `NBD_REP_INFO`: "The server MUST send an NBD_INFO_EXPORT
                // information type at some point before sending an NBD_REP_ACK".
                let (size, flags) = sent.export.ok_or(Fatal::NoExportInfo { option })?;
                if option == OptionCode::GO {
                    let name = core::mem::take(&mut sent.name);
                    self.enter_transmission(name, size, flags, sent.block_sizes);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn on_export_name_reply(&mut self, name: Name) {
        let reply = self
            .partial
            .bytes()
            .first_chunk()
            .map(ExportNameReply::from_bytes)
            .unwrap_or_default();
        self.partial.clear();
        self.enter_transmission(name, reply.size, reply.flags, BlockSizes::DEFAULT);
    }

    fn export_name_len(&self) -> usize {
        let zeroes = if self.no_zeroes {
            0
        } else {
            ExportNameReply::ZEROES
        };
        ExportNameReply::LEN + zeroes
    }

    fn enter_transmission(
        &mut self,
        name: Name,
        size: u64,
        flags: TransmissionFlags,
        block_sizes: BlockSizes,
    ) {
        let session = Session::new(name, size, believable(flags, self.reply_style))
            .with_reply_style(self.reply_style)
            .with_block_sizes(block_sizes);
        self.state = State::Done(session);
    }

    /// Hands out the reply that waits, and does what comes after it.
    fn take_reply(&mut self, out: &mut Vec<u8>) -> Option<(OptionCode, OptionReply)> {
        if !matches!(self.state, State::Reply { .. }) {
            return None;
        }
        match core::mem::replace(&mut self.state, State::Ready) {
            State::Reply {
                option,
                reply,
                next,
            } => {
                match next {
                    Next::Header(sent) => self.state = State::Header(sent),
                    Next::Ready => {}
                    // proto.md "Termination of the session during option haggling": "If the
                    // client receives NBD_REP_ERR_SHUTDOWN it MUST initiate a soft disconnect".
                    Next::Abort => self.send(&ClientOption::Abort, out),
                }
                Some((option, reply))
            }
            state => {
                self.state = state;
                None
            }
        }
    }

    fn send(&mut self, option: &ClientOption, out: &mut Vec<u8>) {
        let code = option.code();
        if !self.fixed && code != OptionCode::EXPORT_NAME {
            return self.answer_unsupported(code);
        }
        option.encode(out);
        self.state = match option {
            ClientOption::ExportName(name) => State::ExportName(name.clone()),
            ClientOption::Info(request) | ClientOption::Go(request) => {
                State::Header(Sent::new(code, request.name.clone()))
            }
            _ => State::Header(Sent::new(code, Name::EMPTY)),
        };
    }

    /// Answers in the stead of a server that is not *fixed* newstyle, which would hang up on the
    /// option: proto.md "Newstyle negotiation", "In non-fixed newstyle only one option can be
    /// set".
    fn answer_unsupported(&mut self, option: OptionCode) {
        self.state = if option == OptionCode::ABORT {
            State::Aborted
        } else {
            State::Reply {
                option,
                reply: OptionReply::Error {
                    code: ReplyType::ERR_UNSUP,
                    message: Name::EMPTY,
                },
                next: Next::Ready,
            }
        };
    }

    fn fail(&mut self, fatal: Fatal) {
        self.state = State::Failed(fatal);
    }
}

impl Sent {
    const fn new(option: OptionCode, name: Name) -> Self {
        Self {
            option,
            name,
            replies: 0,
            export: None,
            block_sizes: BlockSizes::DEFAULT,
        }
    }

    /// Takes note of what a session depends on. Where a server repeats itself, which it should
    /// not, the last word counts.
    fn learn(&mut self, info: &Info) -> Result<(), Fatal> {
        match *info {
            Info::Export { size, flags } => self.export = Some((size, flags)),
            Info::BlockSize {
                minimum,
                preferred,
                max_payload,
            } => {
                self.block_sizes =
                    BlockSizes::new(minimum, preferred, max_payload).map_err(Fatal::BlockSizes)?;
            }
            Info::Name(_) | Info::Description(_) | Info::Unknown { .. } => {}
        }
        Ok(())
    }
}

/// Whether this reply can be an answer to this option.
const fn can_answer(option: OptionCode, reply: ReplyType) -> bool {
    is_final(reply)
        || matches!(
            (option, reply),
            (OptionCode::LIST, ReplyType::SERVER)
                | (OptionCode::INFO | OptionCode::GO, ReplyType::INFO)
        )
}

const fn is_final(reply: ReplyType) -> bool {
    reply.is_error() || matches!(reply, ReplyType::ACK)
}

/// What we take from the flags of a server: not what contradicts the rest of the negotiation
/// (proto.md "Transmission flags").
fn believable(flags: TransmissionFlags, style: ReplyStyle) -> TransmissionFlags {
    if !flags.contains(TransmissionFlags::HAS_FLAGS) {
        // The field does not say that it means anything. Read-only does no harm to believe.
        return flags & TransmissionFlags::READ_ONLY;
    }
    super::consistent(flags, style)
}
