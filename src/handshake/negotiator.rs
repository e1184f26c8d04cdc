//! The usual way into transmission.

use alloc::vec::Vec;

use super::client::{ClientConfig, ClientHandshake, ClientStep};
use crate::error::{Fatal, Refused};
use crate::session::Session;
use crate::wire::{Info, InfoRequest, InfoType, Name, OptionCode, OptionReply, ReplyType};

/// What a client wants of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    export: Name,
    structured_replies: bool,
    name: bool,
    description: bool,
}

impl Wanted {
    /// This export, with structured replies if the server has them; the empty name is that of the
    /// default export.
    #[must_use]
    pub const fn new(export: Name) -> Self {
        Self {
            export,
            structured_replies: true,
            name: false,
            description: false,
        }
    }

    /// Sets whether structured replies are asked for (default: yes).
    #[must_use]
    pub const fn with_structured_replies(mut self, wanted: bool) -> Self {
        self.structured_replies = wanted;
        self
    }

    /// Sets whether the canonical name is asked for (default: no).
    #[must_use]
    pub const fn with_name(mut self, wanted: bool) -> Self {
        self.name = wanted;
        self
    }

    /// Sets whether the description is asked for (default: no).
    #[must_use]
    pub const fn with_description(mut self, wanted: bool) -> Self {
        self.description = wanted;
        self
    }

    fn request(&self) -> InfoRequest {
        let mut request = InfoRequest::new(self.export.clone()).with(InfoType::BLOCK_SIZE);
        if self.name {
            request = request.with(InfoType::NAME);
        }
        if self.description {
            request = request.with(InfoType::DESCRIPTION);
        }
        request
    }
}

/// What a client got of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Negotiated {
    /// What transmission depends on.
    pub session: Session,
    /// The way into transmission: [`GO`](OptionCode::GO) or
    /// [`EXPORT_NAME`](OptionCode::EXPORT_NAME).
    pub option: OptionCode,
    /// Whether the server told its size constraints. Where it did not, a careful client keeps to
    /// multiples of 512 bytes (proto.md "Size constraints").
    pub block_sizes_announced: bool,
    /// The canonical name of the export, if it was told.
    pub name: Option<Name>,
    /// The description of the export, if it was told.
    pub description: Option<Name>,
}

/// Where a [`Negotiator`] is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
#[non_exhaustive]
pub enum Progress {
    /// All input was taken. Send the output, then come back with more input.
    NeedInput,
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
/// Asks for structured replies, and goes on without if they are refused; then `GO`, asking for
/// the block sizes and so promising to keep to them; where the server does not know `GO`,
/// `EXPORT_NAME`. Servers that are newstyle, but not fixed, get `EXPORT_NAME` only. When the
/// server refuses the export, or wants TLS, or is shutting down, the session is ended softly.
///
/// Whatever [`advance`](Self::advance) says, send the output first; even with an error it may
/// hold a farewell.
#[derive(Debug)]
pub struct Negotiator {
    handshake: ClientHandshake,
    wanted: Wanted,
    next: Next,
    heard: Heard,
    refused: Option<Refused>,
}

/// The option to be sent next; once it is, what comes after it.
#[derive(Clone, Copy, Debug)]
enum Next {
    StructuredReply,
    Go,
    ExportName,
}

/// What the server told about the export.
#[derive(Debug, Default)]
struct Heard {
    name: Option<Name>,
    description: Option<Name>,
    block_sizes: bool,
}

impl Negotiator {
    /// Begins; the server speaks first.
    #[must_use]
    pub fn new(wanted: Wanted, config: ClientConfig) -> Self {
        let next = if wanted.structured_replies {
            Next::StructuredReply
        } else {
            Next::Go
        };
        Self {
            handshake: ClientHandshake::new(config),
            wanted,
            next,
            heard: Heard::default(),
            refused: None,
        }
    }

    /// The most bytes that can be taken now without any of them belonging to transmission; 0 once
    /// it has begun.
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
                ClientStep::Ready(ready) => match self.next {
                    Next::StructuredReply => {
                        self.next = Next::Go;
                        ready.structured_replies();
                    }
                    Next::Go => ready.go(self.wanted.request()),
                    Next::ExportName => ready.export_name(self.wanted.export.clone()),
                },
                ClientStep::Reply { option, reply } => self.on_reply(option, reply),
                ClientStep::Done(session) => return Ok(Progress::Done(self.done(session))),
                // We only abort after a refusal, which is dealt with above.
                ClientStep::Aborted => return Err(Fatal::Closed.into()),
            }
        }
    }

    fn on_reply(&mut self, option: OptionCode, reply: OptionReply) {
        match reply {
            OptionReply::Info(Info::Name(name)) => self.heard.name = Some(name),
            OptionReply::Info(Info::Description(text)) => self.heard.description = Some(text),
            OptionReply::Info(Info::BlockSize { .. }) => self.heard.block_sizes = true,
            OptionReply::Error { code, message } => self.on_error(Refused {
                option,
                code,
                message,
            }),
            _ => {}
        }
    }

    fn on_error(&mut self, refused: Refused) {
        self.heard = Heard::default();
        match (refused.option, refused.code) {
            // proto.md "Client-side requirements": to any option but INFO and GO this means that
            // no option will succeed without TLS.
            (_, ReplyType::ERR_TLS_REQD | ReplyType::ERR_SHUTDOWN) => self.refused = Some(refused),
            // Whatever the reason, simple replies will do.
            (OptionCode::STRUCTURED_REPLY, _) => {}
            // proto.md under `NBD_OPT_GO`: "clients SHOULD be prepared to also handle
            // NBD_REP_ERR_UNSUP by falling back to using NBD_OPT_EXPORT_NAME".
            (OptionCode::GO, ReplyType::ERR_UNSUP) => self.next = Next::ExportName,
            _ => self.refused = Some(refused),
        }
    }

    fn done(&self, session: Session) -> Negotiated {
        Negotiated {
            session,
            option: match self.next {
                Next::ExportName => OptionCode::EXPORT_NAME,
                Next::StructuredReply | Next::Go => OptionCode::GO,
            },
            block_sizes_announced: self.heard.block_sizes,
            name: self.heard.name.clone(),
            description: self.heard.description.clone(),
        }
    }
}
