//! What a server writes: replies.

use alloc::vec::Vec;

use super::coverage::{Coverage, Misfit};
use super::head::Head;
use crate::session::{ReplyStyle, Session};
use crate::wire::{
    Chunk, ChunkType, CommandFlags, CommandType, DataHead, Errno, ErrorChunk, Hole, ReplyFlags,
    Request, SimpleReply,
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
    /// Content or an error that is not within the range of the request, or empty content.
    #[error("content or error outside the range of the request, or empty")]
    OutOfRange,
    /// Content where there was content or an error before; a second error at the same offset.
    #[error("content or error where there was one before")]
    Overlap,
    /// A second content chunk for a read that must not be fragmented.
    #[error("second content chunk for a read that must not be fragmented")]
    Fragmented,
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
#[derive(Clone, Copy, Debug)]
pub struct ReplyEncoder {
    style: ReplyStyle,
    max_payload: u32,
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
                let [a, b, c, d] = known(errno).0.to_be_bytes();
                self.chunk(request, ChunkType::ERROR, ReplyFlags::DONE, length)
                    .with(&[a, b, c, d, 0, 0])
            }
        }
    }

    /// Appends the reply of a failure, with a message for people where the style has room for one.
    /// The message is cut to 4096 bytes.
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
    /// If the offset is not within the range of the request.
    pub fn error_at(
        &self,
        request: &Request,
        offset: u64,
        errno: Errno,
        message: &str,
        out: &mut Vec<u8>,
    ) -> Result<(), IllegalReply> {
        let has_range = !matches!(request.kind, CommandType::FLUSH | CommandType::DISC);
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
        Ok(Chunks {
            encoder: *self,
            request: *request,
            coverage: Coverage::new(request.offset, end),
            content: false,
            errors: Errors::None,
            ended: false,
        })
    }

    fn data(
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

    fn error_chunk(
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
        let payload = ErrorChunk {
            error: known(errno),
            message: message.as_bytes(),
            offset,
        };
        out.extend_from_slice(&self.chunk(request, kind, flags, payload.wire_len()));
        payload.encode(out);
    }

    fn simple(&self, request: &Request, result: Result<(), Errno>) -> Head {
        let reply = SimpleReply {
            result: result.map_err(known),
            cookie: request.cookie,
        };
        Head::of(&reply.to_bytes())
    }

    fn chunk(&self, request: &Request, kind: ChunkType, flags: ReplyFlags, length: u32) -> Head {
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

/// proto.md "Error values": "the allowed values for the error field have been restricted".
const fn known(errno: Errno) -> Errno {
    errno.or_einval()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Errors {
    None,
    AtOffsets,
    General,
}

/// A reply in several chunks to one read, which cannot be made illegal.
///
/// Every call checks its chunk against the request and the chunks before, and encodes nothing if
/// it would break a rule. [`done`](Self::done) succeeds only if every byte has content, or an
/// error was reported.
///
/// ```
/// # use nbd_proto::session::{ReplyStyle, Session};
/// # use nbd_proto::transmission::{IllegalReply, ReplyEncoder};
/// # use nbd_proto::wire::{Cookie, Name, Request, TransmissionFlags};
/// # let session = Session::new(Name::default(), 1 << 20, TransmissionFlags::HAS_FLAGS)
/// #     .with_reply_style(ReplyStyle::Structured);
/// # let request = Request::read(Cookie(1), 0, 8192);
/// let mut reply = ReplyEncoder::new(&session).chunks(&request)?;
/// let mut wire = Vec::new();
/// wire.extend_from_slice(&reply.data(0, 4096)?);
/// wire.extend_from_slice(&[0x55; 4096]);
/// assert_eq!(reply.done(), Err(IllegalReply::Incomplete { gap: 4096 }));
/// wire.extend_from_slice(&reply.hole(4096, 4096)?);
/// wire.extend_from_slice(&reply.done()?);
/// # Ok::<(), IllegalReply>(())
/// ```
#[derive(Clone, Debug)]
#[must_use = "the client waits until the reply is done"]
pub struct Chunks {
    encoder: ReplyEncoder,
    request: Request,
    coverage: Coverage,
    content: bool,
    errors: Errors,
    ended: bool,
}

impl Chunks {
    /// Data: exactly `length` bytes must follow the head.
    ///
    /// If they cannot be had after this, the chunk is filled up with zeroes, and an
    /// [`error_at`](Self::error_at) says where.
    ///
    /// # Errors
    ///
    /// If the chunk would break a rule.
    pub fn data(&mut self, offset: u64, length: u32) -> Result<Head, IllegalReply> {
        // proto.md "Structured reply types": no variable-length portion above the maximum payload.
        if length > self.encoder.max_payload {
            return Err(IllegalReply::TooLarge);
        }
        let flags = ReplyFlags::empty();
        let head = self
            .encoder
            .data(&self.request, offset, length.into(), flags)?;
        self.cover(offset, length)?;
        Ok(head)
    }

    /// A range that reads as zeroes.
    ///
    /// # Errors
    ///
    /// If the chunk would break a rule.
    pub fn hole(&mut self, offset: u64, length: u32) -> Result<Head, IllegalReply> {
        self.cover(offset, length)?;
        let kind = ChunkType::OFFSET_HOLE;
        Ok(self
            .encoder
            .chunk(&self.request, kind, ReplyFlags::empty(), Hole::LEN as u32)
            .with(&Hole { offset, length }.to_bytes()))
    }

    /// Appends an error at an offset within the range of the request. Content that covers the
    /// offset can only come before.
    ///
    /// # Errors
    ///
    /// If the chunk would break a rule.
    pub fn error_at(
        &mut self,
        offset: u64,
        errno: Errno,
        message: &str,
        out: &mut Vec<u8>,
    ) -> Result<(), IllegalReply> {
        self.check_open()?;
        if self.errors == Errors::General {
            return Err(IllegalReply::MixedErrors);
        }
        if self.coverage.has_error(offset) {
            return Err(IllegalReply::Overlap);
        }
        self.coverage.error(offset)?;
        self.errors = Errors::AtOffsets;
        let flags = ReplyFlags::empty();
        self.encoder
            .error_chunk(&self.request, errno, message, Some(offset), flags, out);
        Ok(())
    }

    /// Appends an error that makes all content of the reply worthless.
    ///
    /// # Errors
    ///
    /// If there was another error.
    pub fn error(
        &mut self,
        errno: Errno,
        message: &str,
        out: &mut Vec<u8>,
    ) -> Result<(), IllegalReply> {
        self.check_open()?;
        if self.errors != Errors::None {
            return Err(IllegalReply::MixedErrors);
        }
        self.errors = Errors::General;
        let flags = ReplyFlags::empty();
        self.encoder
            .error_chunk(&self.request, errno, message, None, flags, out);
        Ok(())
    }

    /// Ends the reply.
    ///
    /// # Errors
    ///
    /// If it is not complete and has no error, or has ended before.
    pub fn done(&mut self) -> Result<Head, IllegalReply> {
        self.check_open()?;
        if let (Errors::None, Some(gap)) = (self.errors, self.coverage.gap()) {
            return Err(IllegalReply::Incomplete { gap });
        }
        self.ended = true;
        let kind = ChunkType::NONE;
        Ok(self.encoder.chunk(&self.request, kind, ReplyFlags::DONE, 0))
    }

    /// The first offset that has no content yet.
    #[must_use]
    pub fn gap(&self) -> Option<u64> {
        self.coverage.gap()
    }

    fn check_open(&self) -> Result<(), IllegalReply> {
        if self.ended {
            Err(IllegalReply::Ended)
        } else {
            Ok(())
        }
    }

    fn cover(&mut self, offset: u64, length: u32) -> Result<(), IllegalReply> {
        self.check_open()?;
        if self.content && self.request.flags.contains(CommandFlags::DF) {
            return Err(IllegalReply::Fragmented);
        }
        self.coverage.content(offset, length.into())?;
        self.content = true;
        Ok(())
    }
}

impl From<Misfit> for IllegalReply {
    fn from(misfit: Misfit) -> Self {
        match misfit {
            Misfit::Outside => Self::OutOfRange,
            Misfit::Overlap => Self::Overlap,
        }
    }
}
