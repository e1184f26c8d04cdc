//! The client's side of option negotiation: newstyle and fixed newstyle (proto.md "Newstyle
//! negotiation"), and the oldstyle greeting.

mod config;
mod ready;
mod sent;

pub use config::ClientConfig;
pub use ready::Ready;

use alloc::vec::Vec;

use super::partial::{Partial, to_usize};
use super::tls::TlsStart;
use crate::error::Fatal;
use crate::session::{BlockSizes, MetaContext, ReplyStyle, Session, consistent};
use crate::wire::{
    ClientFlags, ClientOption, ExportNameReply, GreetingStyle, HandshakeFlags, Name,
    NewstyleGreeting, OldstyleGreeting, OptionCode, OptionReply, OptionReplyHeader, ReplyType,
    TransmissionFlags,
};
use sent::Sent;

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
    /// The server agreed to start TLS: do so, then give the leave back to
    /// [`ClientHandshake::tls_started`]. Let go of, it is given again.
    StartTls(TlsStart),
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
/// 4. [`ClientStep::StartTls`]: start TLS, [`tls_started`](Self::tls_started), step again. What
///    was negotiated before is forgotten. Receive no more than [`wants`](Self::wants) before, so
///    that nothing is left over from the time without TLS: what is, is fatal.
/// 5. [`ClientStep::Done`], [`ClientStep::Aborted`]: the handshake is over.
///
/// An error is final: the server broke the protocol, or speaks another one. Close the connection.
///
/// For the usual way into transmission there is [`Negotiator`](super::Negotiator).
#[derive(Debug)]
pub struct ClientHandshake {
    config: ClientConfig,
    state: State,
    partial: Partial,
    greeting: Option<(GreetingStyle, HandshakeFlags)>,
    fixed: bool,
    no_zeroes: bool,
    tls: bool,
    reply_style: ReplyStyle,
    selected: Option<Selected>,
    announced: TransmissionFlags,
}

/// What the last `SET_META_CONTEXT` came to.
#[derive(Debug)]
struct Selected {
    export: Name,
    contexts: Vec<MetaContext>,
}

#[derive(Debug)]
enum State {
    Greeting,
    /// The rest of an oldstyle greeting is wanted.
    Oldstyle,
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
    /// `STARTTLS` was granted. No byte is taken until TLS runs.
    TlsPending,
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

impl ClientHandshake {
    /// Begins a handshake; the server speaks first.
    #[must_use]
    pub fn new(config: ClientConfig) -> Self {
        Self {
            config,
            state: State::Greeting,
            partial: Partial::default(),
            greeting: None,
            fixed: false,
            no_zeroes: false,
            tls: false,
            reply_style: ReplyStyle::Simple,
            selected: None,
            announced: TransmissionFlags::empty(),
        }
    }

    /// The most bytes that the machine can take now without any of them belonging to what comes
    /// after the handshake, or to TLS; 0 once it is over, and while an option has to be sent or
    /// TLS to be started first.
    #[must_use]
    pub fn wants(&self) -> usize {
        match &self.state {
            // An oldstyle greeting is longer.
            State::Greeting => self.partial.missing(NewstyleGreeting::LEN),
            State::Oldstyle => self.partial.missing(OldstyleGreeting::LEN),
            State::Header(_) => self.partial.missing(OptionReplyHeader::LEN),
            State::Body { header, .. } => self.partial.missing(to_usize(header.length)),
            State::ExportName(_) => self.partial.missing(self.export_name_len()),
            State::Ready
            | State::Reply { .. }
            | State::TlsPending
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

    /// Whether TLS runs.
    #[must_use]
    pub const fn is_tls(&self) -> bool {
        self.tls
    }

    /// How the server greeted, and with which handshake flags; `None` before it did.
    #[must_use]
    pub const fn greeting(&self) -> Option<(GreetingStyle, HandshakeFlags)> {
        self.greeting
    }

    /// The transmission flags of the export in use as the server sent them, of which the session
    /// has only those that can be true. Means something once [`ClientStep::Done`] was reached; for
    /// [`Announcement`](crate::session::Announcement).
    #[must_use]
    pub const fn announced_flags(&self) -> TransmissionFlags {
        self.announced
    }

    /// TLS runs: what is given to [`step`](Self::step) from now on was decrypted, and what it
    /// writes will be encrypted. All that was negotiated before is forgotten (proto.md under
    /// `NBD_OPT_STARTTLS`).
    pub fn tls_started(&mut self, leave: TlsStart) {
        // One from another machine changes nothing.
        let TlsStart { .. } = leave;
        if matches!(self.state, State::TlsPending) {
            self.tls = true;
            self.reply_style = ReplyStyle::Simple;
            self.selected = None;
            self.state = State::Ready;
        }
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
            | State::Oldstyle
            | State::TlsPending
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
            State::TlsPending => Ok(ClientStep::StartTls(TlsStart::new())),
            State::Aborted => Ok(ClientStep::Aborted),
            State::Done(session) => Ok(ClientStep::Done(session.clone())),
            State::Failed(fatal) => Err(fatal.clone()),
            State::Greeting
            | State::Oldstyle
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
            State::Oldstyle => return self.on_oldstyle(input),
            State::Header(mut sent) => {
                if let Some(bytes) = self.partial.fill_array(input) {
                    let limits = &self.config.limits;
                    let judged = OptionReplyHeader::from_bytes(&bytes)
                        .map_err(Fatal::ReplyMagic)
                        .and_then(|header| sent.on_header(header, limits).map(|()| header));
                    match judged {
                        Ok(header) => self.state = State::Body { sent, header },
                        Err(fatal) => self.fail(fatal),
                    }
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
            // Whoever can write into the connection could write the beginning of what the server
            // says under the protection of TLS (CVE-2011-0411, the other way round).
            State::TlsPending if !input.is_empty() => {
                self.fail(Fatal::PlaintextBeforeTls);
                return true;
            }
            state @ (State::Ready
            | State::Reply { .. }
            | State::TlsPending
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
            Some(Ok(GreetingStyle::Oldstyle)) if self.config.oldstyle => {
                self.state = State::Oldstyle;
                return true;
            }
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

    fn on_oldstyle(&mut self, input: &mut &[u8]) -> bool {
        self.state = State::Oldstyle;
        let Some(bytes) = self.partial.fill_array(input) else {
            return false;
        };
        match OldstyleGreeting::from_bytes(&bytes) {
            Ok(greeting) => {
                self.greeting = Some((GreetingStyle::Oldstyle, greeting.handshake_flags));
                // Its name, if it has one, was not negotiated.
                self.enter_transmission(Name::EMPTY, greeting.size, greeting.flags, None);
            }
            Err(bad) => self.fail(Fatal::NotNbd(bad)),
        }
        true
    }

    /// Sets those client flags that the server offered; flags that have no name are ignored
    /// (proto.md "Newstyle negotiation").
    fn on_handshake_flags(&mut self, offered: HandshakeFlags, out: &mut Vec<u8>) {
        self.greeting = Some((GreetingStyle::Newstyle, offered));
        self.fixed = offered.contains(HandshakeFlags::FIXED_NEWSTYLE);
        self.no_zeroes = self.config.no_zeroes && offered.contains(HandshakeFlags::NO_ZEROES);
        let mut flags = ClientFlags::empty();
        flags.set(ClientFlags::FIXED_NEWSTYLE, self.fixed);
        flags.set(ClientFlags::NO_ZEROES, self.no_zeroes);
        out.extend_from_slice(&flags.to_bytes());
        self.state = State::Ready;
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
                self.state = State::Ready;
                if let Err(fatal) = self.on_ack(sent) {
                    return self.fail(fatal);
                }
                // The answer is what the machine comes to, with GO and STARTTLS.
                if !matches!(self.state, State::Ready) {
                    return;
                }
                Next::Ready
            }
            OptionReply::Error { code, .. } if *code == ReplyType::ERR_SHUTDOWN => Next::Abort,
            OptionReply::Error { .. } => Next::Ready,
            reply => match sent.learn(reply, &self.config.limits) {
                Ok(()) => Next::Header(sent),
                Err(fatal) => return self.fail(fatal),
            },
        };
        self.state = State::Reply {
            option,
            reply,
            next,
        };
    }

    fn on_ack(&mut self, sent: Sent) -> Result<(), Fatal> {
        let option = sent.option;
        match option {
            OptionCode::STARTTLS => self.state = State::TlsPending,
            OptionCode::EXTENDED_HEADERS => self.reply_style = ReplyStyle::Extended,
            // Extended headers take precedence, whatever the server says to this.
            OptionCode::STRUCTURED_REPLY if self.reply_style == ReplyStyle::Simple => {
                self.reply_style = ReplyStyle::Structured;
            }
            OptionCode::SET_META_CONTEXT => {
                self.selected = Some(Selected {
                    export: sent.name,
                    contexts: sent.contexts,
                });
            }
            OptionCode::INFO | OptionCode::GO => {
                // proto.md under `NBD_REP_INFO`: "The server MUST send an NBD_INFO_EXPORT
                // information type at some point before sending an NBD_REP_ACK".
                let (size, flags) = sent.export.ok_or(Fatal::NoExportInfo { option })?;
                if option == OptionCode::GO {
                    self.enter_transmission(sent.name, size, flags, sent.block_sizes);
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
        self.enter_transmission(name, reply.size, reply.flags, None);
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
        block_sizes: Option<BlockSizes>,
    ) {
        self.announced = flags;
        // proto.md under `NBD_OPT_SET_META_CONTEXT`: they count if they were selected for "the
        // same export name that was ultimately selected".
        let contexts = match self.selected.take() {
            Some(selected) if selected.export == name => selected.contexts,
            _ => Vec::new(),
        };
        let session = Session::new(name, size, believable(flags, self.reply_style))
            .with_reply_style(self.reply_style)
            .with_block_sizes(block_sizes.unwrap_or_default())
            .with_contexts(contexts)
            .with_tls(self.tls);
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
        if code == OptionCode::SET_META_CONTEXT {
            // It replaces what was selected before, even if it fails.
            self.selected = None;
        }
        if let Some(error) = self.unsendable(code) {
            return self.answer_ourselves(code, error);
        }
        option.encode(out);
        self.state = match option {
            ClientOption::ExportName(name) => State::ExportName(name.clone()),
            option => State::Header(Sent::new(option)),
        };
    }

    /// Why an option must not be sent to this server now, as the error that is the answer to it.
    fn unsendable(&self, option: OptionCode) -> Option<ReplyType> {
        // proto.md "Newstyle negotiation": "In non-fixed newstyle only one option can be set". The
        // server would hang up on any other.
        if !self.fixed && option != OptionCode::EXPORT_NAME {
            return Some(ReplyType::ERR_UNSUP);
        }
        let forbidden = match option {
            // "Client-side requirements": "MUST NOT issue NBD_OPT_STARTTLS if TLS has already been
            // initiated".
            OptionCode::STARTTLS => self.tls,
            // Under `NBD_OPT_SET_META_CONTEXT`: "MUST NOT be requested unless structured replies
            // or extended headers have been negotiated first".
            OptionCode::LIST_META_CONTEXT | OptionCode::SET_META_CONTEXT => {
                self.reply_style == ReplyStyle::Simple
            }
            // Under `NBD_OPT_EXTENDED_HEADERS`: then "a client MUST NOT use NBD_OPT_EXPORT_NAME".
            OptionCode::EXPORT_NAME => self.reply_style == ReplyStyle::Extended,
            _ => false,
        };
        forbidden.then_some(ReplyType::ERR_INVALID)
    }

    /// Answers in the stead of the server.
    fn answer_ourselves(&mut self, option: OptionCode, code: ReplyType) {
        self.state = if option == OptionCode::ABORT {
            State::Aborted
        } else {
            State::Reply {
                option,
                reply: OptionReply::Error {
                    code,
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

/// What we take from the flags of a server: not what contradicts the rest of the negotiation
/// (proto.md "Transmission flags").
fn believable(flags: TransmissionFlags, style: ReplyStyle) -> TransmissionFlags {
    if !flags.contains(TransmissionFlags::HAS_FLAGS) {
        // The field does not say that it means anything. Read-only does no harm to believe.
        return flags & TransmissionFlags::READ_ONLY;
    }
    consistent(flags, style)
}
