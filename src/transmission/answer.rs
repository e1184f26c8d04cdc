//! What a server writes: replies in one piece. Those in several chunks are in `chunks` and
//! `status`.

use alloc::vec::Vec;

use super::check::Refusal;
use super::chunks::Chunks;
use super::coverage::Misfit;
use super::head::Head;
use crate::session::{ReplyStyle, Session};
use crate::wire::{
    Chunk, ChunkType, CommandFlags, CommandType, DataHead, Errno, ErrorChunk, MAX_ERROR_MESSAGE,
    ReplyFlags, Request, SimpleReply,
};

/// A reply that the protocol does not allow; nothing was encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IllegalReply {
    /// The request is not a read.
    #[error("data for a request that is not a read")]
    NotARead,
    /// Chunks where only simple replies were negotiated.
    #[error("chunks where only simple replies were negotiated")]
    NoChunks,
    /// More data than one reply, or one chunk, can carry or the session allows.
    #[error("more data than fits one reply or chunk")]
    TooLarge,
    /// The request is not a block status request.
    #[error("status for a request that does not ask for it")]
    NotAStatus,
    /// Success for a request that has to be refused.
    #[error("success for a request that has to be refused: {0}")]
    ToBeRefused(#[from] Refusal),
    /// Status of a context that was not asked for, or that was told before.
    #[error("status of context {id}, which was not asked for or told before")]
    UnexpectedContext {
        /// The id of the context.
        id: u32,
    },
    /// A status without extents.
    #[error("status without extents")]
    NoExtents,
    /// An extent without length.
    #[error("an extent of no length")]
    EmptyExtent,
    /// An extent that ends between two blocks of the minimum size.
    #[error("an extent that does not end at a multiple of the minimum block size")]
    UnalignedExtent,
    /// Status flags that do not fit the 32 bits of the session or of the context.
    #[error("status flags that do not fit 32 bits")]
    FlagsTooWide,
    /// Content or an error that is not within the range of the request, or empty content.
    #[error("content or error outside the range of the request, or empty")]
    OutOfRange,
    /// Content where there was content or an error before; a second error at the same offset.
    #[error("content or error where there was one before")]
    Overlap,
    /// A second content chunk for a read that must not be fragmented.
    #[error("second content chunk for a read that must not be fragmented")]
    Fragmented,
    /// Content together with `EOVERFLOW` for a read that must not be fragmented.
    #[error("content and EOVERFLOW for a read that must not be fragmented")]
    Overflow,
    /// An error without an offset together with another error.
    #[error("error without offset is not the only error")]
    MixedErrors,
    /// The end of a reply that is neither complete nor an error.
    #[error("end of a reply that lacks content at {gap}")]
    Incomplete {
        /// The first offset without content.
        gap: u64,
    },
    /// The reply was ended before.
    #[error("the reply has ended")]
    Ended,
}

/// Encodes replies in the style of a session.
///
/// All calls take the request that is answered: its cookie, and what else the style asks for. The
/// caller writes the [`Head`], then the payload if there is one.
///
/// # Errors that may be sent
///
/// proto.md "Error values" restricts what may be answered, and what a backend reports is not so
/// restricted. So every error goes out as the one that the request may have:
///
/// | error | goes out as it is | else as |
/// |---|---|---|
/// | `ENOTSUP` | to a write zeroes with `FAST_ZERO` ("MUST NOT fail with `NBD_ENOTSUP`" without) | `EINVAL` |
/// | `EOVERFLOW` | to a read answered in chunks; to a trim, cache or write zeroes above the maximum payload, but not with `FAST_ZERO` | `EINVAL` |
/// | unknown to the protocol | never | `EINVAL` |
/// | any other | always | |
#[derive(Clone, Copy, Debug)]
pub struct ReplyEncoder {
    pub(super) style: ReplyStyle,
    pub(super) max_payload: u32,
}

impl ReplyEncoder {
    /// An encoder for a session.
    #[must_use]
    pub const fn new(session: &Session) -> Self {
        Self {
            style: session.reply_style(),
            max_payload: session.block_sizes().max_payload(),
        }
    }

    /// Success without payload.
    ///
    /// A read (unless of nothing) and a block status cannot succeed without payload. For them this
    /// is the reply `EIO`: an answer that is always understood, and never a false success.
    #[must_use]
    pub fn ok(&self, request: &Request) -> Head {
        let needs_payload = match request.kind {
            CommandType::READ => request.length > 0,
            CommandType::BLOCK_STATUS => true,
            _ => false,
        };
        if needs_payload {
            return self.fail(request, Errno::EIO);
        }
        match self.style {
            ReplyStyle::Simple => self.simple(request, Ok(())),
            // proto.md "Structured reply chunk message": MUST NOT be simple for a read.
            ReplyStyle::Structured if request.kind != CommandType::READ => {
                self.simple(request, Ok(()))
            }
            ReplyStyle::Structured | ReplyStyle::Extended => {
                self.chunk(request, ChunkType::NONE, ReplyFlags::DONE, 0)
            }
        }
    }

    /// Failure, without a message.
    #[must_use]
    pub fn fail(&self, request: &Request, errno: Errno) -> Head {
        match self.style {
            ReplyStyle::Simple => self.simple(request, Err(errno)),
            ReplyStyle::Structured | ReplyStyle::Extended => {
                let length = ErrorChunk::HEAD_LEN as u32;
                let [a, b, c, d] = self.errno_for(request, errno).0.to_be_bytes();
                self.chunk(request, ChunkType::ERROR, ReplyFlags::DONE, length)
                    .with(&[a, b, c, d, 0, 0])
            }
        }
    }

    /// Refusal because the server is going away.
    ///
    /// proto.md "Terminating the transmission phase": to be sent for what is in flight, if it is
    /// not to be waited for, and for everything that still comes in; the client then disconnects.
    #[must_use]
    pub fn shutting_down(&self, request: &Request) -> Head {
        self.fail(request, Errno::ESHUTDOWN)
    }

    /// Appends the reply of a failure, with a message for people where the style has room for one.
    /// The message is cut to 4096 bytes, or to the maximum payload of the session if that is less,
    /// and before a NUL, which no string of the protocol can have.
    pub fn error(&self, request: &Request, errno: Errno, message: &str, out: &mut Vec<u8>) {
        match self.style {
            ReplyStyle::Simple => out.extend_from_slice(&self.simple(request, Err(errno))),
            ReplyStyle::Structured | ReplyStyle::Extended => {
                self.error_chunk(request, errno, message, None, ReplyFlags::DONE, out);
            }
        }
    }

    /// Appends the reply of a failure at an offset within the range of the request, where the
    /// style has room for it.
    ///
    /// # Errors
    ///
    /// If the offset is not within the range of the request, or the command has none that the
    /// request tells: a flush, an unknown command, a block status with payload (for which there is
    /// [`StatusReply::error_at`](super::StatusReply::error_at)).
    pub fn error_at(
        &self,
        request: &Request,
        offset: u64,
        errno: Errno,
        message: &str,
        out: &mut Vec<u8>,
    ) -> Result<(), IllegalReply> {
        // The length of a block status with payload is that of the payload.
        let is_query = request.kind == CommandType::BLOCK_STATUS
            && request.flags.contains(CommandFlags::PAYLOAD_LEN);
        let has_range = has_range(request.kind) && !is_query;
        let inside = offset >= request.offset && offset - request.offset < request.length;
        if !has_range || !inside {
            return Err(IllegalReply::OutOfRange);
        }
        match self.style {
            ReplyStyle::Simple => out.extend_from_slice(&self.simple(request, Err(errno))),
            ReplyStyle::Structured | ReplyStyle::Extended => {
                self.error_chunk(request, errno, message, Some(offset), ReplyFlags::DONE, out);
            }
        }
        Ok(())
    }

    /// Success of a read, whole: exactly `request.length` bytes of data must follow the head.
    ///
    /// Only to be used when the data is at hand: after this no error can be reported.
    ///
    /// # Errors
    ///
    /// If the request is not a read, or too long for one reply in this style, which
    /// [`Session::check`](crate::session::Session::check) would have refused.
    #[inline]
    pub fn read(&self, request: &Request) -> Result<Head, IllegalReply> {
        if request.kind != CommandType::READ {
            return Err(IllegalReply::NotARead);
        }
        if request.length > self.max_payload.into() {
            return Err(IllegalReply::TooLarge);
        }
        match self.style {
            ReplyStyle::Simple => Ok(self.simple(request, Ok(()))),
            // A data chunk has at least one byte.
            ReplyStyle::Structured | ReplyStyle::Extended if request.length == 0 => {
                Ok(self.ok(request))
            }
            ReplyStyle::Structured | ReplyStyle::Extended => {
                self.data(request, request.offset, request.length, ReplyFlags::DONE)
            }
        }
    }

    /// Begins a reply in several chunks to a read.
    ///
    /// # Errors
    ///
    /// If the request is not a read, or the style has no chunks.
    pub fn chunks(&self, request: &Request) -> Result<Chunks, IllegalReply> {
        if request.kind != CommandType::READ {
            return Err(IllegalReply::NotARead);
        }
        if self.style == ReplyStyle::Simple {
            return Err(IllegalReply::NoChunks);
        }
        let end = request.end().ok_or(IllegalReply::OutOfRange)?;
        Ok(Chunks::new(*self, request, end))
    }

    pub(super) fn data(
        &self,
        request: &Request,
        offset: u64,
        length: u64,
        flags: ReplyFlags,
    ) -> Result<Head, IllegalReply> {
        let length = u32::try_from(length)
            .ok()
            .and_then(|length| length.checked_add(DataHead::LEN as u32))
            .ok_or(IllegalReply::TooLarge)?;
        Ok(self
            .chunk(request, ChunkType::OFFSET_DATA, flags, length)
            .with(&DataHead { offset }.to_bytes()))
    }

    pub(super) fn error_chunk(
        &self,
        request: &Request,
        errno: Errno,
        message: &str,
        offset: Option<u64>,
        flags: ReplyFlags,
        out: &mut Vec<u8>,
    ) {
        let kind = match offset {
            Some(_) => ChunkType::ERROR_OFFSET,
            None => ChunkType::ERROR,
        };
        // "A server MUST NOT send a chunk where any variable-length portion of the chunk is larger
        // than any advertised maximum payload size", and no string is longer than 4096 bytes.
        let most = usize::try_from(self.max_payload).unwrap_or(usize::MAX);
        let payload = ErrorChunk {
            error: self.errno_for(request, errno),
            message: cut(message, most.min(MAX_ERROR_MESSAGE)).as_bytes(),
            offset,
        };
        out.extend_from_slice(&self.chunk(request, kind, flags, payload.wire_len()));
        payload.encode(out);
    }

    /// The error that may be sent for one that occurred; the table is in the type's documentation.
    const fn errno_for(&self, request: &Request, errno: Errno) -> Errno {
        let fits = match errno {
            // "If the server advertised NBD_FLAG_SEND_FAST_ZERO but NBD_CMD_FLAG_FAST_ZERO is not
            // set, then the server MUST NOT fail with NBD_ENOTSUP"; "The server SHOULD NOT return
            // NBD_ENOTSUP except as documented in response to NBD_CMD_WRITE_ZEROES".
            Errno::ENOTSUP => {
                matches!(request.kind, CommandType::WRITE_ZEROES)
                    && request.flags.contains(CommandFlags::FAST_ZERO)
            }
            // "SHOULD NOT return NBD_EOVERFLOW except as documented in response to NBD_CMD_READ
            // when NBD_CMD_FLAG_DF is supported, or when a command without payload requests a
            // length larger than an advertised maximum payload length"; with FAST_ZERO it "SHOULD
            // NOT fail with NBD_EOVERFLOW regardless of the client length".
            Errno::EOVERFLOW => match request.kind {
                CommandType::READ => !matches!(self.style, ReplyStyle::Simple),
                CommandType::TRIM | CommandType::CACHE | CommandType::WRITE_ZEROES => {
                    request.length > self.max_payload as u64
                        && !request.flags.contains(CommandFlags::FAST_ZERO)
                }
                _ => false,
            },
            _ => true,
        };
        if fits {
            errno.or_einval()
        } else {
            Errno::EINVAL
        }
    }

    fn simple(&self, request: &Request, result: Result<(), Errno>) -> Head {
        let reply = SimpleReply {
            result: result.map_err(|errno| self.errno_for(request, errno)),
            cookie: request.cookie,
        };
        Head::of(&reply.to_bytes())
    }

    pub(super) fn chunk(
        &self,
        request: &Request,
        kind: ChunkType,
        flags: ReplyFlags,
        length: u32,
    ) -> Head {
        let chunk = Chunk {
            flags,
            kind,
            cookie: request.cookie,
            length: length.into(),
        };
        match (self.style, chunk.to_structured()) {
            // proto.md "Extended reply chunk message": the offset MUST match the request.
            (ReplyStyle::Extended, _) | (_, Err(_)) => Head::of(&chunk.to_extended(request.offset)),
            (_, Ok(header)) => Head::of(&header),
        }
    }
}

/// The commands to which an error with offset is a valid reply (under
/// `NBD_REPLY_TYPE_ERROR_OFFSET`).
pub(super) const fn has_range(command: CommandType) -> bool {
    matches!(
        command,
        CommandType::READ
            | CommandType::WRITE
            | CommandType::TRIM
            | CommandType::CACHE
            | CommandType::WRITE_ZEROES
            | CommandType::BLOCK_STATUS
    )
}

/// As much of a message as fits, without splitting a character, and has no NUL.
fn cut(message: &str, most: usize) -> &str {
    // proto.md "Conventions": strings, "error messages" among them, "MUST NOT contain NUL".
    let end = message.find('\0').unwrap_or(message.len());
    let mut end = most.min(end);
    while !message.is_char_boundary(end) {
        end = end.saturating_sub(1);
    }
    message.get(..end).unwrap_or_default()
}

impl From<Misfit> for IllegalReply {
    fn from(misfit: Misfit) -> Self {
        match misfit {
            Misfit::Outside => Self::OutOfRange,
            Misfit::Overlap => Self::Overlap,
        }
    }
}
