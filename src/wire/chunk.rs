//! Payloads of reply chunks (proto.md "Structured reply types").

use alloc::borrow::Cow;
use alloc::string::String;
use alloc::vec::Vec;

use super::cursor::{PutExt, Reader, put_u32_at, put_u64_at, u32_at, u64_at};
use super::reply::nonzero;
use super::{ChunkType, Errno, MAX_STRING, Malformed};

/// The most bytes of error message that are sent or kept: the limit of every string of the
/// protocol.
pub const MAX_ERROR_MESSAGE: usize = MAX_STRING;

/// What precedes the data of an `NBD_REPLY_TYPE_OFFSET_DATA` chunk. The data itself is never
/// touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DataHead {
    /// Where in the export the data begins, in bytes.
    pub offset: u64,
}

impl DataHead {
    /// The size in bytes; the payload of the chunk has at least one more.
    pub const LEN: usize = 8;

    /// Decodes the bytes before the data.
    #[inline]
    #[must_use]
    pub fn from_bytes(head: &[u8; Self::LEN]) -> Self {
        Self {
            offset: u64_at::<0, 8>(head),
        }
    }

    /// Encodes the bytes before the data.
    #[inline]
    #[must_use]
    pub const fn to_bytes(&self) -> [u8; Self::LEN] {
        self.offset.to_be_bytes()
    }
}

/// The payload of an `NBD_REPLY_TYPE_OFFSET_HOLE` chunk: a range that reads as zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Hole {
    /// Where in the export the hole begins, in bytes.
    pub offset: u64,
    /// Its size in bytes; the protocol wants at least one, which is for the reader to check.
    pub length: u32,
}

impl Hole {
    /// The size of the payload in bytes.
    pub const LEN: usize = 12;

    /// Decodes the payload.
    #[inline]
    #[must_use]
    pub fn from_bytes(payload: &[u8; Self::LEN]) -> Self {
        Self {
            offset: u64_at::<0, 12>(payload),
            length: u32_at::<8, 12>(payload),
        }
    }

    /// Encodes the payload.
    #[inline]
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut payload = [0; Self::LEN];
        put_u64_at::<0, 12>(&mut payload, self.offset);
        put_u32_at::<8, 12>(&mut payload, self.length);
        payload
    }
}

/// The payload of an error chunk, known or not: all begin in the same way.
///
/// What follows the message is not an error: the protocol leaves room there ("the header *length*
/// then covers any remaining structured fields at the end").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorChunk<'a> {
    /// Why the request failed; not 0.
    pub error: Errno,
    /// The message as it came. The protocol wants a string; see [`text`](Self::text).
    pub message: &'a [u8],
    /// Where the request failed, as an offset in the export; only in
    /// [`ChunkType::ERROR_OFFSET`].
    pub offset: Option<u64>,
}

impl<'a> ErrorChunk<'a> {
    /// The size of what all error chunks begin with, in bytes.
    pub const HEAD_LEN: usize = 6;

    /// Decodes the payload of an error chunk of any kind.
    ///
    /// # Errors
    ///
    /// If the payload is too short for the message or the offset, or the error is 0.
    pub fn parse(kind: ChunkType, payload: &'a [u8]) -> Result<Self, Malformed> {
        let mut body = Reader::new(payload);
        let error = match body.u32()? {
            0 => return Err(Malformed::Value { field: "error" }),
            errno => Errno(errno),
        };
        let length = body.u16()?;
        let message = body.bytes(length.into())?;
        let offset = match kind {
            ChunkType::ERROR_OFFSET => Some(body.u64()?),
            _ => None,
        };
        Ok(Self {
            error,
            message,
            offset,
        })
    }

    /// The message for people: at most [`MAX_ERROR_MESSAGE`] bytes of it, with what is not UTF-8
    /// replaced. A session is not worth less for a message in Latin-1.
    #[must_use]
    pub fn text(&self) -> Cow<'a, str> {
        let end = self.message.len().min(MAX_ERROR_MESSAGE);
        String::from_utf8_lossy(self.message.get(..end).unwrap_or_default())
    }

    /// The size of the payload that [`encode`](Self::encode) appends, in bytes.
    #[must_use]
    pub fn wire_len(&self) -> u32 {
        let offset = if self.offset.is_some() { 8 } else { 0 };
        let len = Self::HEAD_LEN + cut_message(self.message).len() + offset;
        u32::try_from(len).unwrap_or(u32::MAX)
    }

    /// Appends the payload of an `ERROR` chunk, or of an `ERROR_OFFSET` chunk if there is an
    /// offset. The message is cut to [`MAX_ERROR_MESSAGE`] bytes; error 0 goes out as `EINVAL`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let message = cut_message(self.message);
        out.put_u32(nonzero(self.error).0);
        out.put_u16(u16::try_from(message.len()).unwrap_or(u16::MAX));
        out.extend_from_slice(message);
        if let Some(offset) = self.offset {
            out.put_u64(offset);
        }
    }
}

/// As much of a message as a string of the protocol can have, without splitting a character.
fn cut_message(message: &[u8]) -> &[u8] {
    if message.len() <= MAX_ERROR_MESSAGE {
        return message;
    }
    let is_continuation = |at: usize| message.get(at).is_some_and(|byte| byte & 0xc0 == 0x80);
    let end = (MAX_ERROR_MESSAGE - 3..=MAX_ERROR_MESSAGE)
        .rev()
        .find(|&end| !is_continuation(end));
    message
        .get(..end.unwrap_or(MAX_ERROR_MESSAGE))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use hex_literal::hex;

    #[test]
    fn the_head_of_data_is_its_offset() {
        let head = DataHead {
            offset: 0x0102_0304_0506_0708,
        };
        assert_eq!(head.to_bytes(), hex!("0102030405060708"));
        assert_eq!(DataHead::from_bytes(&head.to_bytes()), head);
    }

    #[test]
    fn a_hole_is_an_offset_and_a_size() {
        let hole = Hole {
            offset: 0x0102_0304_0506_0708,
            length: 0x1000,
        };
        assert_eq!(hole.to_bytes(), hex!("0102030405060708 00001000"));
        assert_eq!(Hole::from_bytes(&hole.to_bytes()), hole);
    }

    #[test]
    fn an_error_is_a_number_and_a_message() {
        let bytes = hex!("00000005 0003") // NBD_EIO
            .into_iter()
            .chain(*b"bad")
            .collect::<Vec<_>>();
        let error = ErrorChunk::parse(ChunkType::ERROR, &bytes).unwrap();
        assert_eq!(error.error, Errno::EIO);
        assert_eq!(error.text(), "bad");
        assert_eq!(error.offset, None);
        let mut out = vec![];
        error.encode(&mut out);
        assert_eq!(out, bytes);
    }

    #[test]
    fn an_error_with_offset_has_it_after_the_message() {
        let mut bytes = hex!("0000001c 0002").to_vec(); // NBD_ENOSPC
        bytes.extend(b"no");
        bytes.extend(hex!("0000000000001000"));
        let error = ErrorChunk::parse(ChunkType::ERROR_OFFSET, &bytes).unwrap();
        assert_eq!(error.error, Errno::ENOSPC);
        assert_eq!(error.text(), "no");
        assert_eq!(error.offset, Some(0x1000));
        let mut out = vec![];
        error.encode(&mut out);
        assert_eq!(out, bytes);
        assert_eq!(
            ErrorChunk::parse(ChunkType::ERROR_OFFSET, &bytes[..15]),
            Err(Malformed::Truncated)
        );
    }

    #[test]
    fn an_error_of_nothing_or_with_a_message_beyond_its_chunk_is_malformed() {
        assert_eq!(
            ErrorChunk::parse(ChunkType::ERROR, &hex!("00000000 0000")),
            Err(Malformed::Value { field: "error" })
        );
        assert_eq!(
            ErrorChunk::parse(ChunkType::ERROR, &hex!("00000005 0001")),
            Err(Malformed::Truncated)
        );
        assert_eq!(
            ErrorChunk::parse(ChunkType::ERROR, &hex!("00000005 00")),
            Err(Malformed::Truncated)
        );
    }

    #[test]
    fn an_unknown_error_may_have_more_fields() {
        let bytes = hex!("00000005 0000 0102030405");
        let error = ErrorChunk::parse(ChunkType(0x8099), &bytes).unwrap();
        assert_eq!((error.error, error.offset), (Errno::EIO, None));
    }

    #[test]
    fn a_message_that_is_no_string_is_shown_as_well_as_possible() {
        let latin1 = ErrorChunk {
            error: Errno::EIO,
            message: b"d\xe9faut",
            offset: None,
        };
        assert_eq!(latin1.text(), "d\u{fffd}faut");
    }

    #[test]
    fn a_message_is_cut_between_characters() {
        let long = "\u{20ac}".repeat(2000);
        let mut out = vec![];
        let chunk = ErrorChunk {
            error: Errno::EIO,
            message: long.as_bytes(),
            offset: None,
        };
        chunk.encode(&mut out);
        let decoded = ErrorChunk::parse(ChunkType::ERROR, &out).unwrap();
        assert_eq!(decoded.message.len(), 4095);
        assert_eq!(decoded.text(), "\u{20ac}".repeat(1365));
    }

    #[test]
    fn a_message_in_no_encoding_is_cut_at_the_limit_and_a_character_is_not_split() {
        let sent = |message: &[u8]| {
            let error = ErrorChunk {
                error: Errno::EIO,
                message,
                offset: None,
            };
            let mut out = vec![];
            error.encode(&mut out);
            assert_eq!(out.len(), error.wire_len() as usize);
            out.split_off(6)
        };
        // Bytes that continue a character which never began.
        let mut message = vec![b'x'; 2000];
        message.resize(5000, 0x80);
        assert_eq!(sent(&message), message[..MAX_ERROR_MESSAGE]);
        let mut message = vec![b'x'; MAX_ERROR_MESSAGE - 3];
        message.extend("\u{1f4be}".bytes());
        assert_eq!(sent(&message), message[..MAX_ERROR_MESSAGE - 3]);
        message.remove(0);
        assert_eq!(sent(&message), message);
    }
}
