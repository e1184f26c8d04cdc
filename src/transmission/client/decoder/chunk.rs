//! What a chunk contains: data, holes, errors, block status.

use alloc::string::String;

use super::{Phase, ReplyDecoder, Step};
use crate::session::ReplyStyle;
use crate::transmission::answer::has_range;
use crate::transmission::client::{Fatal, ReplyEvent, Violation};
use crate::wire::{
    Chunk, ChunkType, CommandType, DataHead, Errno, ErrorChunk, Extent, Extents, Hole,
    MAX_ERROR_MESSAGE,
};

impl ReplyDecoder {
    pub(super) fn data_head<'b>(&mut self, input: &mut &'b [u8]) -> Result<Step<'b>, Fatal> {
        let Some(head) = self.take(input) else {
            return Ok(Step::NeedInput);
        };
        let DataHead { offset } = DataHead::from_bytes(&head);
        let left = self.left;
        self.with_request(|pending| pending.content(offset, left))?;
        self.phase = Phase::Data { at: offset };
        Ok(Step::Next)
    }

    pub(super) fn data<'b>(&mut self, at: u64, input: &mut &'b [u8]) -> Step<'b> {
        let bytes = self.lend(self.left, input);
        if bytes.is_empty() {
            return Step::NeedInput;
        }
        self.data_done(at, bytes.len() as u64);
        Step::Event(ReplyEvent::Data {
            cookie: self.cookie,
            offset: at,
            bytes,
            left: self.left,
        })
    }

    /// `left` has been lowered; moves on.
    pub(super) fn data_done(&mut self, at: u64, len: u64) {
        self.phase = if self.left == 0 {
            Phase::End
        } else {
            // Cannot overflow: the end of the chunk was checked.
            Phase::Data {
                at: at.saturating_add(len),
            }
        };
    }

    pub(super) fn hole<'b>(&mut self, input: &mut &'b [u8]) -> Result<Step<'b>, Fatal> {
        let Some(payload) = self.take(input) else {
            return Ok(Step::NeedInput);
        };
        let hole = Hole::from_bytes(&payload);
        let (offset, length) = (hole.offset, u64::from(hole.length));
        self.with_request(|pending| {
            if length == 0 {
                return Err(Violation::EmptyHole);
            }
            pending.content(offset, length)
        })?;
        self.phase = Phase::End;
        Ok(Step::Event(ReplyEvent::Hole {
            cookie: self.cookie,
            offset,
            length,
        }))
    }

    pub(super) fn error_head<'b>(
        &mut self,
        has_offset: bool,
        input: &mut &'b [u8],
    ) -> Result<Step<'b>, Fatal> {
        let Some(head) = self.take::<{ ErrorChunk::HEAD_LEN }>(input) else {
            return Ok(Step::NeedInput);
        };
        let [a, b, c, d, e, f] = head;
        let errno = Errno(u32::from_be_bytes([a, b, c, d]));
        let left = u64::from(u16::from_be_bytes([e, f]));
        let after = if has_offset { 8 } else { 0 };
        if errno.0 == 0 {
            return Err(self.broken(Violation::ZeroError));
        }
        if left.saturating_add(after) > self.left {
            return Err(self.broken(Violation::MessageLength));
        }
        self.message.clear();
        self.phase = Phase::Message {
            errno,
            left,
            has_offset,
        };
        Ok(Step::Next)
    }

    pub(super) fn message<'b>(
        &mut self,
        errno: Errno,
        left: u64,
        has_offset: bool,
        input: &mut &'b [u8],
    ) -> Result<Step<'b>, Fatal> {
        let piece = self.lend(left, input);
        let room = MAX_ERROR_MESSAGE.saturating_sub(self.message.len());
        let kept = piece.get(..room).unwrap_or(piece);
        self.message.extend_from_slice(kept);
        let left = left.saturating_sub(piece.len() as u64);
        if left > 0 {
            self.phase = Phase::Message {
                errno,
                left,
                has_offset,
            };
            return Ok(Step::NeedInput);
        }
        if has_offset {
            self.phase = Phase::ErrorOffset { errno };
            return Ok(Step::Next);
        }
        self.with_request(|pending| {
            pending.fail(errno);
            Ok(())
        })?;
        Ok(self.error(errno, None))
    }

    pub(super) fn error_offset<'b>(
        &mut self,
        errno: Errno,
        input: &mut &'b [u8],
    ) -> Result<Step<'b>, Fatal> {
        let Some(offset) = self.take(input).map(u64::from_be_bytes) else {
            return Ok(Step::NeedInput);
        };
        self.with_request(|pending| pending.fail_at(errno, offset))?;
        Ok(self.error(errno, Some(offset)))
    }

    pub(super) fn error<'b>(&mut self, errno: Errno, offset: Option<u64>) -> Step<'b> {
        self.phase = Phase::ErrorTail;
        // The first error decides what the reply comes to; but this one counts anywhere.
        self.shutting_down |= errno == Errno::ESHUTDOWN;
        Step::Event(ReplyEvent::Error {
            cookie: self.cookie,
            errno,
            offset,
            message: String::from_utf8_lossy(&self.message).into_owned(),
        })
    }

    /// "The header length then covers any remaining structured fields at the end": of error types
    /// that we do not know.
    pub(super) fn error_tail<'b>(&mut self, input: &mut &'b [u8]) -> Step<'b> {
        self.lend(self.left, input);
        if self.left > 0 {
            return Step::NeedInput;
        }
        self.phase = Phase::End;
        Step::Next
    }

    pub(super) fn status_head<'b>(&mut self, input: &mut &'b [u8]) -> Result<Step<'b>, Fatal> {
        let context = if self.style == ReplyStyle::Extended {
            let Some([a, b, c, d, e, f, g, h]) = self.take(input) else {
                return Ok(Step::NeedInput);
            };
            let count = u32::from_be_bytes([e, f, g, h]);
            if u64::from(count).saturating_mul(Extent::EXTENDED_LEN as u64) != self.left {
                return Err(self.broken(Violation::DescriptorCount { count }));
            }
            u32::from_be_bytes([a, b, c, d])
        } else {
            let Some(context) = self.take(input) else {
                return Ok(Step::NeedInput);
            };
            u32::from_be_bytes(context)
        };
        self.with_request(|pending| pending.status(context))?;
        self.phase = Phase::Status { context, before: 0 };
        Ok(Step::Next)
    }

    pub(super) fn status<'b>(
        &mut self,
        context: u32,
        before: u64,
        input: &mut &'b [u8],
    ) -> Result<Step<'b>, Fatal> {
        let extended = self.style == ReplyStyle::Extended;
        let width = if extended {
            Extent::EXTENDED_LEN
        } else {
            Extent::COMPACT_LEN
        };
        let mut first = None;
        if self.filled > 0 || input.len() < width {
            first = if extended {
                self.take(input).map(|d| Extent::from_extended(&d))
            } else {
                self.take(input).map(|d| Extent::from_compact(&d))
            };
            if first.is_none() {
                return Ok(Step::NeedInput);
            }
        }
        let whole = (input.len() / width).saturating_mul(width);
        let extents = Extents::new(first, self.lend(whole as u64, input), extended);
        let bounds = self.bounds;
        let (offset, sum) = self.with_request(|pending| {
            let mut extents = extents.clone();
            let sum =
                extents.try_fold(before, |sum, extent| pending.extent(extent, sum, bounds))?;
            // Cannot overflow: it was checked with the extents before.
            Ok((pending.request.offset.saturating_add(before), sum))
        })?;
        self.phase = if self.left == 0 {
            Phase::End
        } else {
            Phase::Status {
                context,
                before: sum,
            }
        };
        Ok(Step::Event(ReplyEvent::Status {
            cookie: self.cookie,
            context,
            offset,
            extents,
        }))
    }
}

/// The most bytes in the payload of an error chunk of a known type: error, message, offset.
pub(super) const LONGEST_ERROR: u64 = (ErrorChunk::HEAD_LEN + MAX_ERROR_MESSAGE + 8) as u64;

/// The size of what precedes the descriptors of block status, in bytes.
pub(super) const fn status_head_len(style: ReplyStyle) -> u64 {
    match style {
        ReplyStyle::Simple | ReplyStyle::Structured => 4,
        ReplyStyle::Extended => 8,
    }
}

/// Compares the number of descriptors in a block status chunk, which follows from its length, with
/// the limit.
pub(super) const fn check_count(
    length: u64,
    style: ReplyStyle,
    limit: u32,
) -> Result<(), Violation> {
    let width = match style {
        ReplyStyle::Simple | ReplyStyle::Structured => Extent::COMPACT_LEN,
        ReplyStyle::Extended => Extent::EXTENDED_LEN,
    };
    let count = length.saturating_sub(status_head_len(style)) / width as u64;
    if count > limit as u64 {
        return Err(Violation::TooManyExtents { count, limit });
    }
    Ok(())
}

/// What the payload of a chunk is, for a command in a style (proto.md "Structured reply types").
pub(super) fn phase_of(
    chunk: &Chunk,
    command: CommandType,
    style: ReplyStyle,
) -> Result<Phase, Violation> {
    let (kind, length) = (chunk.kind, chunk.length);
    let (phase, is_for, length_fits) = match kind {
        ChunkType::NONE => {
            // "This chunk type MUST always be used with the NBD_REPLY_FLAG_DONE bit set"
            if !chunk.is_last() {
                return Err(Violation::NoneNotLast);
            }
            (Phase::End, true, length == 0)
        }
        // "length MUST be at least 9"
        ChunkType::OFFSET_DATA => (Phase::DataHead, command == CommandType::READ, length >= 9),
        // "length MUST be exactly 12"
        ChunkType::OFFSET_HOLE => (Phase::Hole, command == CommandType::READ, length == 12),
        // "4 + (a positive integer multiple of 8)", and only without extended headers
        ChunkType::BLOCK_STATUS => (
            Phase::StatusHead,
            command == CommandType::BLOCK_STATUS && style != ReplyStyle::Extended,
            length >= 12 && length % 8 == 4,
        ),
        // "8 + (a positive multiple of 16)", and only with extended headers
        ChunkType::BLOCK_STATUS_EXT => (
            Phase::StatusHead,
            command == CommandType::BLOCK_STATUS && style == ReplyStyle::Extended,
            length >= 24 && length % 16 == 8,
        ),
        // "at least 14"; for a command without range it is an unexpected error, which is an error
        // like any other.
        ChunkType::ERROR_OFFSET => {
            let has_offset = has_range(command);
            (Phase::ErrorHead { has_offset }, true, length >= 14)
        }
        // "at least 6". "If the client receives an unknown or unexpected type with bit 15 set, it
        // MUST consider the current reply as errored, but MAY continue".
        _ if kind.is_error() => (Phase::ErrorHead { has_offset: false }, true, length >= 6),
        // "If the client receives an unknown or unexpected type, other than an error chunk, it
        // MUST initiate a hard disconnect."
        _ => return Err(Violation::UnknownChunk { kind }),
    };
    if !is_for {
        return Err(Violation::UnexpectedChunk { kind });
    }
    if !length_fits {
        return Err(Violation::ChunkLength { kind, length });
    }
    Ok(phase)
}
