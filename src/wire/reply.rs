//! Headers of replies: simple, structured, extended (proto.md "Simple reply message" and the two
//! sections after it).

use super::cursor::{put_u16_at, put_u32_at, put_u64_at, u16_at, u32_at, u64_at};
use super::request::check_magic;
use super::{BadMagic, ChunkType, Cookie, Errno, ReplyFlags, TooLong};

/// `NBD_SIMPLE_REPLY_MAGIC`: begins a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;

/// `NBD_STRUCTURED_REPLY_MAGIC`: begins a structured reply chunk.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

/// `NBD_EXTENDED_REPLY_MAGIC`: begins an extended reply chunk.
pub const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

/// A simple reply, without the data that follows when a read succeeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SimpleReply {
    /// Whether the request succeeded.
    pub result: Result<(), Errno>,
    /// The cookie of the request.
    pub cookie: Cookie,
}

impl SimpleReply {
    /// The size of the reply in bytes.
    pub const LEN: usize = 16;

    /// Decodes a simple reply.
    ///
    /// # Errors
    ///
    /// If it does not begin with [`SIMPLE_REPLY_MAGIC`].
    #[inline]
    pub fn from_bytes(reply: &[u8; Self::LEN]) -> Result<Self, BadMagic> {
        check_magic(u32_at::<0, 16>(reply), SIMPLE_REPLY_MAGIC)?;
        Ok(Self {
            result: match u32_at::<4, 16>(reply) {
                0 => Ok(()),
                errno => Err(Errno(errno)),
            },
            cookie: Cookie(u64_at::<8, 16>(reply)),
        })
    }

    /// Encodes the reply. `Err(Errno(0))`, which would read as success, goes out as
    /// [`Errno::EINVAL`].
    #[inline]
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut reply = [0; Self::LEN];
        put_u32_at::<0, 16>(&mut reply, SIMPLE_REPLY_MAGIC);
        put_u32_at::<4, 16>(
            &mut reply,
            match self.result {
                Ok(()) => 0,
                Err(errno) => nonzero(errno).0,
            },
        );
        put_u64_at::<8, 16>(&mut reply, self.cookie.0);
        reply
    }
}

/// An error number that cannot be read as success.
pub(crate) const fn nonzero(errno: Errno) -> Errno {
    match errno.0 {
        0 => Errno::EINVAL,
        _ => errno,
    }
}

/// The header of one chunk of a structured or extended reply. What its payload looks like depends
/// on the kind; see [`Hole`](super::Hole), [`StatusChunk`](super::StatusChunk) and
/// [`ErrorChunk`](super::ErrorChunk).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Chunk {
    /// What the chunk is to its reply.
    pub flags: ReplyFlags,
    /// What the payload is.
    pub kind: ChunkType,
    /// The cookie of the request.
    pub cookie: Cookie,
    /// The size of the payload in bytes. A structured header has 32 bits for it.
    pub length: u64,
}

impl Chunk {
    /// The size of a structured header in bytes.
    pub const STRUCTURED_LEN: usize = 20;

    /// The size of an extended header in bytes.
    pub const EXTENDED_LEN: usize = 32;

    /// Whether this is the last chunk of its reply.
    #[must_use]
    pub const fn is_last(&self) -> bool {
        self.flags.contains(ReplyFlags::DONE)
    }

    /// Decodes a structured header.
    ///
    /// # Errors
    ///
    /// If it does not begin with [`STRUCTURED_REPLY_MAGIC`].
    #[inline]
    pub fn from_structured(header: &[u8; Self::STRUCTURED_LEN]) -> Result<Self, BadMagic> {
        check_magic(u32_at::<0, 20>(header), STRUCTURED_REPLY_MAGIC)?;
        Ok(Self {
            flags: ReplyFlags::from_bits_retain(u16_at::<4, 20>(header)),
            kind: ChunkType(u16_at::<6, 20>(header)),
            cookie: Cookie(u64_at::<8, 20>(header)),
            length: u32_at::<16, 20>(header).into(),
        })
    }

    /// Encodes a structured header.
    ///
    /// # Errors
    ///
    /// If the length does not fit 32 bits.
    #[inline]
    pub fn to_structured(&self) -> Result<[u8; Self::STRUCTURED_LEN], TooLong> {
        let length = u32::try_from(self.length).map_err(|_| TooLong {
            length: self.length,
        })?;
        let mut header = [0; Self::STRUCTURED_LEN];
        put_u32_at::<0, 20>(&mut header, STRUCTURED_REPLY_MAGIC);
        put_u16_at::<4, 20>(&mut header, self.flags.bits());
        put_u16_at::<6, 20>(&mut header, self.kind.0);
        put_u64_at::<8, 20>(&mut header, self.cookie.0);
        put_u32_at::<16, 20>(&mut header, length);
        Ok(header)
    }

    /// Decodes an extended header: the chunk, and the offset of the request that it answers.
    ///
    /// # Errors
    ///
    /// If it does not begin with [`EXTENDED_REPLY_MAGIC`].
    #[inline]
    pub fn from_extended(header: &[u8; Self::EXTENDED_LEN]) -> Result<(Self, u64), BadMagic> {
        check_magic(u32_at::<0, 32>(header), EXTENDED_REPLY_MAGIC)?;
        let chunk = Self {
            flags: ReplyFlags::from_bits_retain(u16_at::<4, 32>(header)),
            kind: ChunkType(u16_at::<6, 32>(header)),
            cookie: Cookie(u64_at::<8, 32>(header)),
            length: u64_at::<24, 32>(header),
        };
        Ok((chunk, u64_at::<16, 32>(header)))
    }

    /// Encodes an extended header; `offset` is that of the request, whatever the payload is about.
    #[inline]
    #[must_use]
    pub fn to_extended(&self, offset: u64) -> [u8; Self::EXTENDED_LEN] {
        let mut header = [0; Self::EXTENDED_LEN];
        put_u32_at::<0, 32>(&mut header, EXTENDED_REPLY_MAGIC);
        put_u16_at::<4, 32>(&mut header, self.flags.bits());
        put_u16_at::<6, 32>(&mut header, self.kind.0);
        put_u64_at::<8, 32>(&mut header, self.cookie.0);
        put_u64_at::<16, 32>(&mut header, offset);
        put_u64_at::<24, 32>(&mut header, self.length);
        header
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hex_literal::hex;

    const COOKIE: Cookie = Cookie(0x0102_0304_0506_0708);

    #[test]
    fn a_simple_reply_is_16_bytes_in_the_order_of_the_protocol() {
        for (bytes, result) in [
            (hex!("67446698 00000000 0102030405060708"), Ok(())),
            (
                hex!("67446698 00000016 0102030405060708"),
                Err(Errno::EINVAL),
            ),
            (
                hex!("67446698 0000abcd 0102030405060708"),
                Err(Errno(0xabcd)),
            ),
        ] {
            let reply = SimpleReply {
                result,
                cookie: COOKIE,
            };
            assert_eq!(SimpleReply::from_bytes(&bytes), Ok(reply));
            assert_eq!(reply.to_bytes(), bytes);
        }
    }

    #[test]
    fn an_error_without_a_number_is_never_sent_as_success() {
        let reply = SimpleReply {
            result: Err(Errno(0)),
            cookie: COOKIE,
        };
        let decoded = SimpleReply::from_bytes(&reply.to_bytes()).unwrap();
        assert_eq!(decoded.result, Err(Errno::EINVAL));
    }

    #[test]
    fn a_structured_chunk_header_is_20_bytes_in_the_order_of_the_protocol() {
        let bytes = hex!("668e33ef 0001 8002 0102030405060708 0000000e");
        let chunk = Chunk {
            flags: ReplyFlags::DONE,
            kind: ChunkType::ERROR_OFFSET,
            cookie: COOKIE,
            length: 14,
        };
        assert_eq!(Chunk::from_structured(&bytes), Ok(chunk));
        assert_eq!(chunk.to_structured(), Ok(bytes));
    }

    #[test]
    fn an_extended_chunk_header_is_32_bytes_in_the_order_of_the_protocol() {
        let bytes = hex!("6e8a278c 0000 0006 0102030405060708 0000000000001000 0000000100000018");
        let chunk = Chunk {
            flags: ReplyFlags::empty(),
            kind: ChunkType::BLOCK_STATUS_EXT,
            cookie: COOKIE,
            length: 0x1_0000_0018,
        };
        assert_eq!(Chunk::from_extended(&bytes), Ok((chunk, 0x1000)));
        assert_eq!(chunk.to_extended(0x1000), bytes);
        assert_eq!(
            chunk.to_structured(),
            Err(TooLong {
                length: 0x1_0000_0018
            })
        );
    }

    #[test]
    fn no_reply_is_taken_for_one_of_another_style() {
        let mut header = [0; 32];
        header[..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
        assert!(Chunk::from_extended(&header).is_err());
        assert!(Chunk::from_structured(header.first_chunk().unwrap()).is_err());
        header[..4].copy_from_slice(&STRUCTURED_REPLY_MAGIC.to_be_bytes());
        assert!(Chunk::from_extended(&header).is_err());
        assert!(SimpleReply::from_bytes(header.first_chunk().unwrap()).is_err());
        header[..4].copy_from_slice(&EXTENDED_REPLY_MAGIC.to_be_bytes());
        assert!(Chunk::from_structured(header.first_chunk().unwrap()).is_err());
        assert!(SimpleReply::from_bytes(header.first_chunk().unwrap()).is_err());
    }
}
