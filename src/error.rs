//! What can go wrong between two peers, and what is answered.
//!
//! There are two classes, and they are types. A *refusal* has an answer on the wire, and the
//! session goes on: [`Refusal`] during the handshake, an [`Errno`](crate::wire::Errno) during
//! transmission. What is [`Fatal`] has none: hang up.
//!
//! # Errors and their answers
//!
//! Handshake, seen by the server:
//!
//! | condition | answer | then |
//! |---|---|---|
//! | client flag that is unknown or was not offered ("Client flags") | none | [`Fatal::ClientFlags`] |
//! | option without its magic number | none | [`Fatal::OptionMagic`] |
//! | more options than [`Limits::max_options`] | none | [`Fatal::TooManyOptions`] |
//! | option longer than [`Limits::max_drain`] | none | [`Fatal::OptionTooLong`] |
//! | `EXPORT_NAME` that is malformed, unknown or refused (`NBD_OPT_EXPORT_NAME`) | none possible | [`Fatal::ExportName`], [`Fatal::ExportRefused`] |
//! | option that is unknown or not supported ("Baseline") | `ERR_UNSUP` | body drained, go on |
//! | malformed body; a string above 4096 bytes, with a NUL, or not UTF-8; `LIST`, `STARTTLS`, `STRUCTURED_REPLY`, `EXTENDED_HEADERS` with data; a query without namespace | `ERR_INVALID` | body drained, go on |
//! | a second `STARTTLS` within TLS, a second `EXTENDED_HEADERS` | `ERR_INVALID` | go on |
//! | meta contexts without structured replies and extended headers | `ERR_INVALID` | body drained, go on |
//! | `STRUCTURED_REPLY` after extended headers | `ERR_EXT_HEADER_REQD` | go on |
//! | option longer than [`Limits::max_option_body`], string longer than [`Limits::max_string`], too many queries or contexts | `ERR_TOO_BIG` | body drained, go on |
//! | before TLS, where it is forced; any option but `STARTTLS` and `ABORT` ("FORCEDTLS mode") | `ERR_TLS_REQD` | body drained, go on |
//! | the same of a client that did not set `FIXED_NEWSTYLE`, to which no TLS can be offered | `ERR_POLICY` | body drained, go on |
//! | bytes after `STARTTLS`, before TLS was started | none | [`Fatal::PlaintextBeforeTls`] |
//! | `EXPORT_NAME` after extended headers | none | [`Fatal::ExportNameAfterExtendedHeaders`] |
//! | the caller refuses | as [`Refusal`] says | go on |
//! | shutting down; any option but `ABORT` ("Termination of the session during option haggling") | `ERR_SHUTDOWN` | go on |
//! | `ABORT`, with or without data | `ACK` | the session is over |
//!
//! Handshake, seen by the client:
//!
//! | condition | answer | then |
//! |---|---|---|
//! | not an NBD server; oldstyle server | none | [`Fatal::NotNbd`], [`Fatal::Oldstyle`] |
//! | reply without magic number, to another option, of a kind that cannot follow, malformed, too long, one too many, size constraints that the protocol forbids, `ACK` without `NBD_INFO_EXPORT`, information that contradicts itself, meta contexts that were not asked for or come twice | none | hang up: the [`Fatal`] says which |
//! | bytes after the `ACK` to `STARTTLS`, before TLS was started | none | [`Fatal::PlaintextBeforeTls`] |
//! | unknown information, handshake flag or transmission flag | none | ignored |
//! | error reply | none | [`Refused`]; the next option may be sent |
//! | `ERR_SHUTDOWN` | `ABORT` | the session is over |
//!
//! Transmission, seen by the server (the module `transmission`):
//!
//! | condition | answer | then |
//! |---|---|---|
//! | request without its magic number | none | hang up |
//! | unknown command or flag, unaligned, read or trim past the end, flush with offset or length | `EINVAL` | payload drained |
//! | write past the end | `ENOSPC` | payload drained |
//! | modification of a read-only export | `EPERM` | payload drained |
//! | payload above our maximum, up to 32 MiB ("Size constraints": no denial of service) | `EINVAL` | payload drained |
//! | payload above [`Limits::max_drain`] | none | hang up |
//! | block status for no context, an unknown one, or one named twice | `EINVAL` | payload drained |
//! | shutting down ("Terminating the transmission phase") | `ESHUTDOWN` | until the client disconnects |
//!
//! Every cell is in the documentation of [`Session::check`](crate::session::Session::check).
//!
//! Transmission, seen by the client:
//!
//! | condition | answer | then |
//! |---|---|---|
//! | reply to a cookie that is not in flight, unknown chunk that is no error, chunk out of range, overlapping or missing data, extents against the rules | none | hang up |
//! | unknown or unexpected error chunk, error that is unknown ("Structured reply types", "Error values") | none | the request failed; go on |
//! | `ESHUTDOWN` | `DISC` | the session is over |
//!
//! Section names in quotes are those of the protocol text.
//!
//! ```
//! use nbd_proto::error::Refusal;
//! use nbd_proto::wire::ReplyType;
//!
//! assert_eq!(Refusal::UnknownExport.reply_type(), ReplyType::ERR_UNKNOWN);
//! assert_eq!(Refusal::UnknownExport.to_string(), "there is no such export");
//! ```
//!
//! [`Limits::max_options`]: crate::limits::Limits::max_options
//! [`Limits::max_drain`]: crate::limits::Limits::max_drain
//! [`Limits::max_string`]: crate::limits::Limits::max_string
//! [`Limits::max_option_body`]: crate::limits::Limits::max_option_body

use crate::session::{BadBlockSizes, BlockSizes};
use crate::wire::{BadMagic, ClientFlags, InfoType, Malformed, Name, OptionCode, ReplyType};

/// Why the handshake cannot go on: the connection has to be closed, without an answer.
///
/// A machine that returned one is dead and returns the same again. What it wrote before is still
/// worth sending.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fatal {
    /// Seen by a server: the client set flags that nobody knows, or that were not offered.
    #[error("the client set handshake flags that were not offered: {:#x}", .0.bits())]
    ClientFlags(ClientFlags),
    /// Seen by a server: an option does not begin with `IHAVEOPT`.
    #[error("the client sent something that is not an option: {0}")]
    OptionMagic(BadMagic),
    /// Seen by a server: one more option than allowed.
    #[error("the client sent more than {limit} options")]
    TooManyOptions {
        /// How many are allowed.
        limit: u32,
    },
    /// Seen by a server: an option is too long even to be skipped.
    #[error("the client sent the option {option} with {length} bytes; {limit} are allowed")]
    OptionTooLong {
        /// The option.
        option: OptionCode,
        /// The length that its header announces, in bytes.
        length: u32,
        /// The most bytes that would have been taken.
        limit: u32,
    },
    /// Seen by a server: an `EXPORT_NAME` with something that is not a name.
    #[error("the client sent an EXPORT_NAME whose body {0}")]
    ExportName(Malformed),
    /// Seen by a server that was configured not to be *fixed* newstyle: anything else than an
    /// `EXPORT_NAME`, which has no answer there.
    #[error("the client sent the option {option}, which newstyle without fixed does not have")]
    NotFixedNewstyle {
        /// The option.
        option: OptionCode,
    },
    /// Seen by a server: an `EXPORT_NAME` after extended headers were negotiated, which the
    /// protocol forbids.
    #[error("the client sent EXPORT_NAME after it had negotiated extended headers")]
    ExportNameAfterExtendedHeaders,
    /// Seen by a server: an `EXPORT_NAME` was refused, which cannot be told to the client.
    #[error("the export {name:?} was refused: {why}")]
    ExportRefused {
        /// The export that the client asked for.
        name: Name,
        /// Why it was refused.
        why: Refusal,
    },

    /// Seen by a client: this is not an NBD server.
    #[error("the server does not speak NBD: {0}")]
    NotNbd(BadMagic),
    /// Seen by a client: an oldstyle server, with which nothing can be negotiated, where that is
    /// not accepted, or where an export was named, or TLS is required.
    #[error("the server speaks the oldstyle handshake, in which nothing can be negotiated")]
    Oldstyle,
    /// Seen by a client: a reply does not begin with the magic number of option replies.
    #[error("the server sent something that is not an option reply: {0}")]
    ReplyMagic(BadMagic),
    /// Seen by a client: a reply to another option than the one that was sent.
    #[error("the server answered the option {answered}, but {sent} was sent")]
    WrongOption {
        /// What was sent.
        sent: OptionCode,
        /// What was answered.
        answered: OptionCode,
    },
    /// Seen by a client: a reply of a kind that the option cannot have.
    #[error("the server answered the option {option} with {reply}, which is not an answer to it")]
    UnexpectedReply {
        /// What was sent.
        option: OptionCode,
        /// The kind of the reply.
        reply: ReplyType,
    },
    /// Seen by a client: the body of a reply does not have the form that belongs to it.
    #[error("the server answered the option {option} with a malformed {reply}: it {why}")]
    MalformedReply {
        /// What was sent.
        option: OptionCode,
        /// The kind of the reply.
        reply: ReplyType,
        /// What is wrong with its body.
        why: Malformed,
    },
    /// Seen by a client: a reply is longer than allowed.
    #[error(
        "the server answered the option {option} with {length} bytes in one reply; \
         {limit} are allowed"
    )]
    ReplyTooLong {
        /// What was sent.
        option: OptionCode,
        /// The length that the reply's header announces, in bytes.
        length: u32,
        /// How many are allowed.
        limit: u32,
    },
    /// Seen by a client: more replies to one option than allowed.
    #[error("the server sent more than {limit} replies to the option {option}")]
    TooManyReplies {
        /// What was sent.
        option: OptionCode,
        /// How many are allowed.
        limit: u32,
    },
    /// Seen by a client: the size constraints of the export break the rules for them.
    #[error("the server announced illegal size constraints: {0}")]
    BlockSizes(BadBlockSizes),
    /// Seen by a client: the export was accepted, but its size was never told.
    #[error("the server accepted the option {option} without telling the size of the export")]
    NoExportInfo {
        /// What was sent.
        option: OptionCode,
    },
    /// Seen by a client: the connection ended where the answer to an `EXPORT_NAME` belongs, which
    /// is how a server refuses it.
    #[error("the server has no export {name:?}, or does not let us use it")]
    ExportUnavailable {
        /// The export that was asked for.
        name: Name,
    },

    /// Seen by a client: a piece of information was told twice, and not the same both times.
    #[error("the server told {info} twice about the same export, and not the same")]
    ContradictoryInfo {
        /// What it is about.
        info: InfoType,
    },
    /// Seen by a client: all replies to one option together are longer than allowed.
    #[error("the server answered the option {option} with more than {limit} bytes")]
    TooManyReplyBytes {
        /// What was sent.
        option: OptionCode,
        /// How many bytes are allowed in the bodies of all replies.
        limit: u32,
    },
    /// Seen by a client: a meta context that no query asked for, or that has no namespace.
    #[error("the server answered with the meta context {name:?}, which was not asked for")]
    UnaskedContext {
        /// Its name.
        name: Name,
    },
    /// Seen by a client: two selected meta contexts have the same number or the same name.
    #[error("the server selected the meta context {name:?}, or its number {id}, twice")]
    DuplicateContext {
        /// The number of the second one.
        id: u32,
        /// The name of the second one.
        name: Name,
    },
    /// Seen by a client: more meta contexts are selected than allowed.
    #[error("the server selected more than {limit} meta contexts")]
    TooManyContexts {
        /// How many are allowed.
        limit: u32,
    },

    /// Seen by either: bytes came between the agreement on TLS and its start. Whatever they are,
    /// they are not protected, and must not be taken for a part of the session that will be.
    #[error("the peer sent plaintext after it had agreed to start TLS")]
    PlaintextBeforeTls,
    /// Seen by either: the connection ended in the middle of a message, or where an answer was
    /// due.
    #[error("the connection was closed in the middle of the handshake")]
    Closed,
}

#[cfg(feature = "std")]
#[cfg_attr(docsrs, doc(cfg(feature = "std")))]
impl From<Fatal> for std::io::Error {
    fn from(fatal: Fatal) -> Self {
        let kind = match fatal {
            Fatal::Closed => std::io::ErrorKind::UnexpectedEof,
            Fatal::ExportUnavailable { .. } => std::io::ErrorKind::NotFound,
            _ => std::io::ErrorKind::InvalidData,
        };
        Self::new(kind, fatal)
    }
}

/// Why a server says no to an option, while the session goes on.
///
/// Given to the `refuse` of a [`ListAsk`], an [`ExportAsk`] or a [`ContextsAsk`].
///
/// [`ListAsk`]: crate::handshake::ListAsk
/// [`ExportAsk`]: crate::handshake::ExportAsk
/// [`ContextsAsk`]: crate::handshake::ContextsAsk
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// `ERR_UNKNOWN`: the export does not exist, or it is to look so.
    #[error("there is no such export")]
    UnknownExport,
    /// `ERR_POLICY`: valid, but not allowed.
    #[error("not allowed by the server's policy")]
    Policy,
    /// `ERR_TLS_REQD`: not without TLS.
    ///
    /// The protocol allows this answer to `INFO` and `GO` only, and only where TLS is offered and
    /// does not run yet. Everywhere else the client gets [`Policy`](Self::Policy).
    #[error("only allowed over TLS")]
    TlsRequired,
    /// `ERR_SHUTDOWN`: the server is going away.
    #[error("the server is shutting down")]
    ShuttingDown,
    /// `ERR_BLOCK_SIZE_REQD`: not without a promise to keep to these size constraints, which are
    /// sent along.
    ///
    /// For a client that did ask for `NBD_INFO_BLOCK_SIZE` the protocol forbids this answer; it
    /// gets [`Policy`](Self::Policy).
    #[error("only for clients that ask for the block sizes and keep to them")]
    BlockSizesRequired(BlockSizes),
    /// `ERR_EXT_HEADER_REQD`: not without extended headers.
    ///
    /// Where they are in use already, or the client asks for contexts of the `base:` namespace
    /// only, the protocol forbids this answer; the client gets [`Policy`](Self::Policy).
    #[error("only for clients that negotiate extended headers")]
    ExtendedHeadersRequired,
    /// `ERR_PLATFORM`: not possible on this platform or in this build.
    #[error("not possible on the server's platform")]
    Platform,
    /// `ERR_TOO_BIG`: the request or its answer would be too large.
    #[error("too large to be processed")]
    TooBig,
}

impl Refusal {
    /// The reply that says so.
    #[must_use]
    pub const fn reply_type(&self) -> ReplyType {
        match self {
            Self::UnknownExport => ReplyType::ERR_UNKNOWN,
            Self::Policy => ReplyType::ERR_POLICY,
            Self::TlsRequired => ReplyType::ERR_TLS_REQD,
            Self::ShuttingDown => ReplyType::ERR_SHUTDOWN,
            Self::BlockSizesRequired(_) => ReplyType::ERR_BLOCK_SIZE_REQD,
            Self::ExtendedHeadersRequired => ReplyType::ERR_EXT_HEADER_REQD,
            Self::Platform => ReplyType::ERR_PLATFORM,
            Self::TooBig => ReplyType::ERR_TOO_BIG,
        }
    }
}

/// Seen by a client: the server said no to an option. The session goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The option.
    pub option: OptionCode,
    /// The kind of the error.
    pub code: ReplyType,
    /// What the server says about it, for people; often empty.
    pub message: Name,
}

impl Refused {
    /// What the kind of the error means, in a few lower-case words.
    #[must_use]
    pub const fn describe(&self) -> &'static str {
        match self.code {
            ReplyType::ERR_UNSUP => "the server does not support it",
            ReplyType::ERR_POLICY => "the server's policy forbids it",
            ReplyType::ERR_INVALID => "the server takes it for invalid",
            ReplyType::ERR_PLATFORM => "it is not possible on the server's platform",
            ReplyType::ERR_TLS_REQD => "the server requires TLS",
            ReplyType::ERR_UNKNOWN => "the server has no such export",
            ReplyType::ERR_SHUTDOWN => "the server is shutting down",
            ReplyType::ERR_BLOCK_SIZE_REQD => "the server requires its block sizes to be asked for",
            ReplyType::ERR_TOO_BIG => "it is too large for the server",
            ReplyType::ERR_EXT_HEADER_REQD => "the server requires extended headers",
            _ => "for a reason that is not known here",
        }
    }
}

impl core::fmt::Display for Refused {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let Self {
            option,
            code,
            message,
        } = self;
        write!(
            f,
            "the server refused {option}: {} ({code}",
            self.describe()
        )?;
        if !message.as_str().is_empty() {
            // What the peer says goes through Debug: it may hold control characters, which have
            // no business on a terminal.
            write!(f, ": {message:?}")?;
        }
        f.write_str(")")
    }
}

impl core::error::Error for Refused {}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeSet;
    use alloc::string::ToString;
    use alloc::vec::Vec;

    #[test]
    fn every_refusal_is_an_error_reply_that_says_why() {
        let all = [
            Refusal::UnknownExport,
            Refusal::Policy,
            Refusal::TlsRequired,
            Refusal::ShuttingDown,
            Refusal::BlockSizesRequired(BlockSizes::DEFAULT),
            Refusal::ExtendedHeadersRequired,
            Refusal::Platform,
            Refusal::TooBig,
        ];
        for refusal in all {
            assert!(refusal.reply_type().is_error());
            assert!(!refusal.to_string().is_empty());
        }
    }

    #[test]
    fn what_a_server_says_cannot_drive_a_terminal() {
        let refused = Refused {
            option: OptionCode::GO,
            code: ReplyType::ERR_UNKNOWN,
            message: Name::new("\u{1b}[2Jgone").unwrap(),
        };
        assert_eq!(
            refused.to_string(),
            "the server refused GO: the server has no such export \
             (ERR_UNKNOWN: \"\\u{1b}[2Jgone\")"
        );
    }

    #[test]
    fn every_error_reply_has_words_of_its_own() {
        let words = |code| {
            let (option, message) = (OptionCode::GO, Name::EMPTY);
            let refused = Refused {
                option,
                code,
                message,
            };
            refused.describe()
        };
        let unknown = words(ReplyType(0x8000_7777));
        let errors = ReplyType::KNOWN.iter().filter(|reply| reply.is_error());
        let all: Vec<&str> = errors.map(|&code| words(code)).chain([unknown]).collect();
        let distinct: BTreeSet<&str> = all.iter().copied().collect();
        assert_eq!(distinct.len(), all.len(), "{all:?}");
    }

    #[test]
    #[cfg(feature = "std")]
    fn an_io_error_tells_an_end_and_a_missing_export_from_a_peer_that_breaks_the_rules() {
        use std::io::{Error, ErrorKind};

        let name = Name::EMPTY;
        for (fatal, kind) in [
            (Fatal::Closed, ErrorKind::UnexpectedEof),
            (Fatal::ExportUnavailable { name }, ErrorKind::NotFound),
            (Fatal::Oldstyle, ErrorKind::InvalidData),
            (Fatal::PlaintextBeforeTls, ErrorKind::InvalidData),
        ] {
            assert_eq!(Error::from(fatal).kind(), kind);
        }
    }
}
