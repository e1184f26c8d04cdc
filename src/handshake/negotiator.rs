//! The usual way into transmission.

mod wanted;

pub use wanted::{Negotiated, Wanted};

use alloc::vec::Vec;

use super::client::{ClientConfig, ClientHandshake, ClientStep};
use super::inspector::ExportInfo;
use super::opening::{Opening, TlsWanted};
use super::tls::TlsStart;
use crate::error::{Fatal, Refused};
use crate::session::{ReplyStyle, Session};
use crate::wire::{GreetingStyle, HandshakeFlags, Name, OptionCode, OptionReply, ReplyType};

/// Where a [`Negotiator`] is.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
#[non_exhaustive]
pub enum Progress {
    /// All input was taken. Send the output, then come back with more input.
    NeedInput,
    /// The server agreed to start TLS: do so, then give the leave back to
    /// [`Negotiator::tls_started`]. Only if [`Wanted::with_tls`] says so.
    StartTls(TlsStart),
    /// Transmission begins. What is left of the input belongs to it.
    Done(Negotiated),
}

/// Why a client did not get into transmission.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NegotiateError {
    /// The session cannot go on: close the connection.
    #[error(transparent)]
    Fatal(#[from] Fatal),
    /// The server said no. An `ABORT` was written: send the output, then close the connection.
    #[error(transparent)]
    Refused(#[from] Refused),
}

#[cfg(feature = "std")]
#[cfg_attr(docsrs, doc(cfg(feature = "std")))]
impl From<NegotiateError> for std::io::Error {
    fn from(error: NegotiateError) -> Self {
        match error {
            NegotiateError::Fatal(fatal) => fatal.into(),
            NegotiateError::Refused(refused) => {
                let kind = match refused.code {
                    ReplyType::ERR_UNKNOWN => std::io::ErrorKind::NotFound,
                    ReplyType::ERR_POLICY | ReplyType::ERR_TLS_REQD => {
                        std::io::ErrorKind::PermissionDenied
                    }
                    _ => std::io::ErrorKind::ConnectionRefused,
                };
                Self::new(kind, refused)
            }
        }
    }
}

/// Gets a client into transmission with what the server has of what is [`Wanted`].
///
/// In this order: `STARTTLS`, if TLS is wanted; extended headers; structured replies, if those
/// were refused; meta contexts, if any are wanted; then `GO`, asking for the block sizes and so
/// promising to keep to them; where the server does not know `GO`, `EXPORT_NAME`. What is refused
/// is done without, TLS too unless it is required. Servers that are newstyle, but not fixed, get
/// `EXPORT_NAME` only. When the server refuses the export, or wants TLS and we do not, or is
/// shutting down, the session is ended softly.
///
/// An oldstyle server is accepted if [`ClientConfig::with_oldstyle`] says so, no export was named,
/// and TLS is not required.
///
/// Whatever [`advance`](Self::advance) says, send the output first; even with an error it may
/// hold a farewell.
#[derive(Debug)]
pub struct Negotiator {
    handshake: ClientHandshake,
    wanted: Wanted,
    opening: Opening,
    next: Next,
    /// What the server told about the export.
    heard: ExportInfo,
    refused: Option<Refused>,
}

/// The option to be sent when nothing else is left to be asked for.
#[derive(Clone, Copy, Debug)]
enum Next {
    Contexts,
    Go,
    ExportName,
}

impl Negotiator {
    /// Begins; the server speaks first.
    #[must_use]
    pub fn new(wanted: Wanted, config: ClientConfig) -> Self {
        // The only export of an oldstyle server is not the one that was named, and cannot be had
        // over TLS.
        let anything = wanted.export == Name::EMPTY && wanted.tls() != TlsWanted::Required;
        let config = config.with_oldstyle(config.oldstyle() && anything);
        Self {
            handshake: ClientHandshake::new(config),
            opening: Opening::new(wanted.basics),
            wanted,
            next: Next::Contexts,
            heard: ExportInfo::default(),
            refused: None,
        }
    }

    /// TLS runs: what is given to [`advance`](Self::advance) from now on was decrypted, and what
    /// it writes will be encrypted.
    pub fn tls_started(&mut self, leave: TlsStart) {
        self.handshake.tls_started(leave);
    }

    /// The most bytes that can be taken now without any of them belonging to transmission or to
    /// TLS; 0 once that has begun.
    #[must_use]
    pub fn wants(&self) -> usize {
        self.handshake.wants()
    }

    /// The server closed the connection.
    ///
    /// # Errors
    ///
    /// Always, unless the end was reached before: what the server said last, or
    /// [`Fatal::ExportUnavailable`] after an `EXPORT_NAME`, or [`Fatal::Closed`].
    pub fn on_eof(&self) -> Result<(), NegotiateError> {
        match &self.refused {
            Some(refused) => Err(refused.clone().into()),
            None => Ok(self.handshake.on_eof()?),
        }
    }

    /// Takes from `input`, which is advanced, and appends to `out`.
    ///
    /// # Errors
    ///
    /// If the server refuses, or breaks the protocol. Every later call fails in the same way.
    pub fn advance(
        &mut self,
        input: &mut &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Progress, NegotiateError> {
        loop {
            if let Some(refused) = &self.refused {
                let refused = refused.clone();
                // After ERR_SHUTDOWN the machine has sent the ABORT already. Its answer is not
                // waited for: not every server gives one.
                if let ClientStep::Ready(ready) = self.handshake.step(&mut &[][..], out)? {
                    ready.abort();
                }
                return Err(refused.into());
            }
            match self.handshake.step(input, out)? {
                ClientStep::NeedInput => return Ok(Progress::NeedInput),
                ClientStep::Ready(ready) => {
                    let Some(ready) = self.opening.send(ready) else {
                        continue;
                    };
                    match (self.next, self.wanted.context_request()) {
                        (Next::Contexts, Some(request))
                            if ready.reply_style() != ReplyStyle::Simple =>
                        {
                            self.next = Next::Go;
                            ready.set_contexts(request);
                        }
                        (Next::Contexts | Next::Go, _) => ready.go(self.wanted.request()),
                        (Next::ExportName, _) => ready.export_name(self.wanted.export.clone()),
                    }
                }
                ClientStep::StartTls(leave) => return Ok(Progress::StartTls(leave)),
                ClientStep::Reply { option, reply } => self.on_reply(option, reply),
                ClientStep::Done(session) => return Ok(Progress::Done(self.done(session))),
                // We only abort after a refusal, which is dealt with above.
                ClientStep::Aborted => return Err(Fatal::Closed.into()),
            }
        }
    }

    fn on_reply(&mut self, option: OptionCode, reply: OptionReply) {
        match reply {
            OptionReply::Info(info) => self.heard.learn(info),
            OptionReply::Error { code, message } => self.on_error(Refused {
                option,
                code,
                message,
            }),
            _ => {}
        }
    }

    fn on_error(&mut self, refused: Refused) {
        self.heard = ExportInfo::default();
        let compact = self.handshake.reply_style() != ReplyStyle::Extended;
        match (refused.option, refused.code) {
            // proto.md under `NBD_OPT_GO`: "clients SHOULD be prepared to also handle
            // NBD_REP_ERR_UNSUP by falling back to using NBD_OPT_EXPORT_NAME"; with extended
            // headers, a server "MUST NOT" do that.
            (OptionCode::GO, ReplyType::ERR_UNSUP) if compact => {
                self.next = Next::ExportName;
                self.opening.refused.push(refused);
            }
            _ if self.opening.survives(&refused) => self.opening.refused.push(refused),
            _ => self.refused = Some(refused),
        }
    }

    fn done(&self, session: Session) -> Negotiated {
        let (greeting, handshake_flags) = self
            .handshake
            .greeting()
            .unwrap_or((GreetingStyle::Newstyle, HandshakeFlags::empty()));
        Negotiated {
            session,
            option: match (greeting, self.next) {
                (GreetingStyle::Oldstyle, _) => None,
                (_, Next::ExportName) => Some(OptionCode::EXPORT_NAME),
                (_, Next::Contexts | Next::Go) => Some(OptionCode::GO),
            },
            greeting,
            handshake_flags,
            announced_flags: self.handshake.announced_flags(),
            block_sizes_announced: self.heard.block_sizes.is_some(),
            name: self.heard.name.clone(),
            description: self.heard.description.clone(),
            refused: self.opening.refused.clone(),
        }
    }
}
