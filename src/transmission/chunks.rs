//! What a server writes: replies to reads in several chunks.

use alloc::vec::Vec;

use super::answer::{IllegalReply, ReplyEncoder};
use super::coverage::Coverage;
use super::head::Head;
use crate::wire::{ChunkType, CommandFlags, Errno, Hole, ReplyFlags, Request};

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
    overflowed: bool,
    ended: bool,
}

impl Chunks {
    /// `end` is where the range of the request ends.
    pub(super) const fn new(encoder: ReplyEncoder, request: &Request, end: u64) -> Self {
        Self {
            encoder,
            request: *request,
            coverage: Coverage::new(request.offset, end),
            content: false,
            errors: Errors::None,
            overflowed: false,
            ended: false,
        }
    }

    /// Data: exactly `length` bytes must follow the head.
    ///
    /// If they cannot be had after this, the chunk is filled up with zeroes, and an
    /// [`error_at`](Self::error_at) says where.
    ///
    /// # Errors
    ///
    /// If the chunk would break a rule.
    pub fn data(&mut self, offset: u64, length: u32) -> Result<Head, IllegalReply> {
        let head = self.data_head(offset, length, ReplyFlags::empty())?;
        self.cover(offset, length)?;
        Ok(head)
    }

    /// The last data: exactly `length` bytes must follow the head, and end the reply.
    ///
    /// Only to be used when the data is at hand: after this no error can be reported.
    ///
    /// # Errors
    ///
    /// If the chunk would break a rule, or would leave a gap in a reply without error.
    pub fn last_data(&mut self, offset: u64, length: u32) -> Result<Head, IllegalReply> {
        let head = self.data_head(offset, length, ReplyFlags::DONE)?;
        self.cover_last(offset, length)?;
        Ok(head)
    }

    /// A range that reads as zeroes.
    ///
    /// # Errors
    ///
    /// If the chunk would break a rule.
    pub fn hole(&mut self, offset: u64, length: u32) -> Result<Head, IllegalReply> {
        self.cover(offset, length)?;
        Ok(self.hole_head(offset, length, ReplyFlags::empty()))
    }

    /// A range that reads as zeroes, and ends the reply.
    ///
    /// # Errors
    ///
    /// If the chunk would break a rule, or would leave a gap in a reply without error.
    pub fn last_hole(&mut self, offset: u64, length: u32) -> Result<Head, IllegalReply> {
        self.cover_last(offset, length)?;
        Ok(self.hole_head(offset, length, ReplyFlags::DONE))
    }

    /// Appends an error at an offset within the range of the request. Content that covers the
    /// offset can only come before. Of several errors in one chunk of content, the first in the
    /// export is enough: what is behind it in the chunk is not valid anyway, and the protocol
    /// advises against more.
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
        self.check_overflow(errno)?;
        self.coverage.error(offset)?;
        self.overflowed |= errno == Errno::EOVERFLOW;
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
        self.check_overflow(errno)?;
        self.overflowed |= errno == Errno::EOVERFLOW;
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

    /// proto.md, under `NBD_CMD_READ`: "A server MAY reject a client's request with the error
    /// NBD_EOVERFLOW if the length is too large to send without fragmentation, in which case it
    /// MUST NOT send a content chunk".
    fn check_overflow(&self, errno: Errno) -> Result<(), IllegalReply> {
        let whole = self.request.flags.contains(CommandFlags::DF);
        if whole && self.content && errno == Errno::EOVERFLOW {
            Err(IllegalReply::Overflow)
        } else {
            Ok(())
        }
    }

    fn data_head(&self, offset: u64, length: u32, flags: ReplyFlags) -> Result<Head, IllegalReply> {
        // proto.md "Structured reply types": no variable-length portion above the maximum payload.
        if length > self.encoder.max_payload {
            return Err(IllegalReply::TooLarge);
        }
        self.encoder
            .data(&self.request, offset, length.into(), flags)
    }

    fn hole_head(&self, offset: u64, length: u32, flags: ReplyFlags) -> Head {
        let kind = ChunkType::OFFSET_HOLE;
        self.encoder
            .chunk(&self.request, kind, flags, Hole::LEN as u32)
            .with(&Hole { offset, length }.to_bytes())
    }

    /// Covers the last part; changes nothing if it is not the last.
    fn cover_last(&mut self, offset: u64, length: u32) -> Result<(), IllegalReply> {
        self.check_open()?;
        let leaves_a_gap = self.coverage.missing() > u64::from(length);
        if let (Errors::None, true, Some(gap)) = (self.errors, leaves_a_gap, self.coverage.gap()) {
            return Err(IllegalReply::Incomplete { gap });
        }
        self.cover(offset, length)?;
        self.ended = true;
        Ok(())
    }

    fn cover(&mut self, offset: u64, length: u32) -> Result<(), IllegalReply> {
        self.check_open()?;
        if self.request.flags.contains(CommandFlags::DF) {
            if self.overflowed {
                return Err(IllegalReply::Overflow);
            }
            if self.content {
                return Err(IllegalReply::Fragmented);
            }
        }
        self.coverage.content(offset, length.into())?;
        self.content = true;
        Ok(())
    }
}
