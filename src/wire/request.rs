//! Requests of the transmission phase (proto.md "Request message").

use alloc::vec::Vec;
use core::fmt;

use super::cursor::{PutExt, Reader, put_u16_at, put_u32_at, put_u64_at, u16_at, u32_at, u64_at};
use super::{BadMagic, CommandFlags, CommandType, Malformed};

/// `NBD_REQUEST_MAGIC`: begins a compact request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;

/// `NBD_EXTENDED_REQUEST_MAGIC`: begins an extended request.
pub const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;

/// What ties a reply to its request; the client chooses it, the server repeats it.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct Cookie(pub u64);

impl fmt::Debug for Cookie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cookie({:#x})", self.0)
    }
}

impl fmt::Display for Cookie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl From<u64> for Cookie {
    fn from(number: u64) -> Self {
        Self(number)
    }
}

/// A request, as its header has it.
///
/// Any value of the type can be decoded; what a server makes of it is for
/// [`Session::check`](crate::session::Session::check) to say.
///
/// ```
/// use nbd_proto::wire::{CommandFlags, CommandType, Cookie, Request};
///
/// let request = Request::write(Cookie(7), 4096, 512).with_flags(CommandFlags::FUA);
/// let header = request.to_compact()?;
/// assert_eq!(Request::from_compact(&header), Ok(request));
/// # Ok::<(), nbd_proto::wire::TooLong>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Request {
    /// How the command is to be carried out.
    pub flags: CommandFlags,
    /// What is asked for.
    pub kind: CommandType,
    /// What the reply will be known by.
    pub cookie: Cookie,
    /// Where in the export, in bytes.
    pub offset: u64,
    /// How many bytes of the export, or of payload where
    /// [`PAYLOAD_LEN`](CommandFlags::PAYLOAD_LEN) says so. A compact header has 32 bits for it.
    pub length: u64,
}

/// A length that does not fit the 32 bits of a compact header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("length {length} does not fit a compact request")]
pub struct TooLong {
    /// The length in bytes.
    pub length: u64,
}

impl Request {
    /// The size of a compact header in bytes.
    pub const COMPACT_LEN: usize = 28;

    /// The size of an extended header in bytes.
    pub const EXTENDED_LEN: usize = 32;

    /// A request without flags.
    #[must_use]
    pub const fn new(kind: CommandType, cookie: Cookie, offset: u64, length: u64) -> Self {
        Self {
            flags: CommandFlags::empty(),
            kind,
            cookie,
            offset,
            length,
        }
    }

    /// `NBD_CMD_READ`.
    #[must_use]
    pub const fn read(cookie: Cookie, offset: u64, length: u64) -> Self {
        Self::new(CommandType::READ, cookie, offset, length)
    }

    /// `NBD_CMD_WRITE`; `length` bytes of payload follow the header.
    ///
    /// For extended headers, the [`RequestEncoder`](crate::transmission::RequestEncoder) adds the
    /// flag that the protocol wants there.
    #[must_use]
    pub const fn write(cookie: Cookie, offset: u64, length: u64) -> Self {
        Self::new(CommandType::WRITE, cookie, offset, length)
    }

    /// `NBD_CMD_FLUSH`.
    #[must_use]
    pub const fn flush(cookie: Cookie) -> Self {
        Self::new(CommandType::FLUSH, cookie, 0, 0)
    }

    /// `NBD_CMD_TRIM`.
    #[must_use]
    pub const fn trim(cookie: Cookie, offset: u64, length: u64) -> Self {
        Self::new(CommandType::TRIM, cookie, offset, length)
    }

    /// `NBD_CMD_CACHE`.
    #[must_use]
    pub const fn cache(cookie: Cookie, offset: u64, length: u64) -> Self {
        Self::new(CommandType::CACHE, cookie, offset, length)
    }

    /// `NBD_CMD_WRITE_ZEROES`.
    #[must_use]
    pub const fn write_zeroes(cookie: Cookie, offset: u64, length: u64) -> Self {
        Self::new(CommandType::WRITE_ZEROES, cookie, offset, length)
    }

    /// `NBD_CMD_BLOCK_STATUS`, for all selected contexts.
    #[must_use]
    pub const fn block_status(cookie: Cookie, offset: u64, length: u64) -> Self {
        Self::new(CommandType::BLOCK_STATUS, cookie, offset, length)
    }

    /// `NBD_CMD_DISC`. There is no reply.
    #[must_use]
    pub const fn disconnect() -> Self {
        Self::new(CommandType::DISC, Cookie(0), 0, 0)
    }

    /// Adds flags.
    #[must_use]
    pub const fn with_flags(mut self, flags: CommandFlags) -> Self {
        self.flags = self.flags.union(flags);
        self
    }

    /// Where the range of the request ends, exclusive; `None` if beyond 2^64.
    #[must_use]
    pub const fn end(&self) -> Option<u64> {
        self.offset.checked_add(self.length)
    }

    /// Decodes a compact header.
    ///
    /// # Errors
    ///
    /// If it does not begin with [`REQUEST_MAGIC`].
    #[inline]
    pub fn from_compact(header: &[u8; Self::COMPACT_LEN]) -> Result<Self, BadMagic> {
        check_magic(u32_at::<0, 28>(header), REQUEST_MAGIC)?;
        Ok(Self {
            flags: CommandFlags::from_bits_retain(u16_at::<4, 28>(header)),
            kind: CommandType(u16_at::<6, 28>(header)),
            cookie: Cookie(u64_at::<8, 28>(header)),
            offset: u64_at::<16, 28>(header),
            length: u32_at::<24, 28>(header).into(),
        })
    }

    /// Encodes a compact header.
    ///
    /// # Errors
    ///
    /// If the length does not fit 32 bits.
    #[inline]
    pub fn to_compact(&self) -> Result<[u8; Self::COMPACT_LEN], TooLong> {
        let length = u32::try_from(self.length).map_err(|_| TooLong {
            length: self.length,
        })?;
        let mut header = [0; Self::COMPACT_LEN];
        put_u32_at::<0, 28>(&mut header, REQUEST_MAGIC);
        put_u16_at::<4, 28>(&mut header, self.flags.bits());
        put_u16_at::<6, 28>(&mut header, self.kind.0);
        put_u64_at::<8, 28>(&mut header, self.cookie.0);
        put_u64_at::<16, 28>(&mut header, self.offset);
        put_u32_at::<24, 28>(&mut header, length);
        Ok(header)
    }

    /// Decodes an extended header.
    ///
    /// # Errors
    ///
    /// If it does not begin with [`EXTENDED_REQUEST_MAGIC`].
    #[inline]
    pub fn from_extended(header: &[u8; Self::EXTENDED_LEN]) -> Result<Self, BadMagic> {
        check_magic(u32_at::<0, 32>(header), EXTENDED_REQUEST_MAGIC)?;
        Ok(Self {
            flags: CommandFlags::from_bits_retain(u16_at::<4, 32>(header)),
            kind: CommandType(u16_at::<6, 32>(header)),
            cookie: Cookie(u64_at::<8, 32>(header)),
            offset: u64_at::<16, 32>(header),
            length: u64_at::<24, 32>(header),
        })
    }

    /// Encodes an extended header.
    #[inline]
    #[must_use]
    pub fn to_extended(&self) -> [u8; Self::EXTENDED_LEN] {
        let mut header = [0; Self::EXTENDED_LEN];
        put_u32_at::<0, 32>(&mut header, EXTENDED_REQUEST_MAGIC);
        put_u16_at::<4, 32>(&mut header, self.flags.bits());
        put_u16_at::<6, 32>(&mut header, self.kind.0);
        put_u64_at::<8, 32>(&mut header, self.cookie.0);
        put_u64_at::<16, 32>(&mut header, self.offset);
        put_u64_at::<24, 32>(&mut header, self.length);
        header
    }
}

pub(super) fn check_magic(found: u32, expected: u32) -> Result<(), BadMagic> {
    if found == expected {
        Ok(())
    } else {
        Err(BadMagic {
            found: found.into(),
        })
    }
}

/// The payload of a block status request that names the contexts it wants (under
/// `NBD_CMD_BLOCK_STATUS` in proto.md "Request types").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusQuery<'a> {
    effect_length: u64,
    ids: &'a [u8],
}

impl<'a> StatusQuery<'a> {
    /// The size of the payload that asks for `contexts` contexts, in bytes.
    #[must_use]
    pub const fn len_for(contexts: u32) -> u64 {
        8 + 4 * contexts as u64
    }

    /// Decodes the payload.
    ///
    /// # Errors
    ///
    /// If it does not have 8 + n * 4 bytes.
    pub fn parse(payload: &'a [u8]) -> Result<Self, Malformed> {
        let mut body = Reader::new(payload);
        let effect_length = body.u64()?;
        let ids = body.rest();
        match ids.len() % 4 {
            0 => Ok(Self { effect_length, ids }),
            excess => Err(Malformed::Trailing { excess }),
        }
    }

    /// Appends the payload that asks for `ids` over `effect_length` bytes.
    pub fn encode(effect_length: u64, ids: &[u32], out: &mut Vec<u8>) {
        out.put_u64(effect_length);
        for &id in ids {
            out.put_u32(id);
        }
    }

    /// How many bytes of the export are asked about.
    #[must_use]
    pub const fn effect_length(&self) -> u64 {
        self.effect_length
    }

    /// The ids of the contexts that are wanted, as they came: unknown and repeated ones too.
    pub fn ids(&self) -> impl ExactSizeIterator<Item = u32> + Clone + 'a {
        self.ids
            .chunks_exact(4)
            .map(|id| u32::from_be_bytes(id.first_chunk().copied().unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::{format, vec};
    use hex_literal::hex;

    // Each vector is written out field by field from proto.md "Request message".
    const WRITE: [u8; 28] = hex!(
        "25609513"          // NBD_REQUEST_MAGIC
        "0001"              // NBD_CMD_FLAG_FUA
        "0001"              // NBD_CMD_WRITE
        "0102030405060708"  // cookie
        "0000000100001000"  // offset
        "00020000"          // length
    );
    const EXTENDED_STATUS: [u8; 32] = hex!(
        "21e41c71"          // NBD_EXTENDED_REQUEST_MAGIC
        "0028"              // NBD_CMD_FLAG_REQ_ONE | NBD_CMD_FLAG_PAYLOAD_LEN
        "0007"              // NBD_CMD_BLOCK_STATUS
        "ffeeddccbbaa9988"  // cookie
        "0000000000010000"  // offset
        "0000000000000010"  // length
    );

    #[test]
    fn a_compact_request_is_28_bytes_in_the_order_of_the_protocol() {
        let request = Request::write(Cookie(0x0102_0304_0506_0708), 0x1_0000_1000, 0x2_0000)
            .with_flags(CommandFlags::FUA);
        assert_eq!(Request::from_compact(&WRITE), Ok(request));
        assert_eq!(request.to_compact(), Ok(WRITE));
    }

    #[test]
    fn an_extended_request_is_32_bytes_in_the_order_of_the_protocol() {
        let request = Request::block_status(Cookie(0xffee_ddcc_bbaa_9988), 0x10000, 16)
            .with_flags(CommandFlags::REQ_ONE | CommandFlags::PAYLOAD_LEN);
        assert_eq!(Request::from_extended(&EXTENDED_STATUS), Ok(request));
        assert_eq!(request.to_extended(), EXTENDED_STATUS);
    }

    #[test]
    fn every_command_has_its_number_in_the_type_field() {
        let cookie = Cookie(1);
        for (request, kind) in [
            (Request::read(cookie, 2, 3), 0),
            (Request::write(cookie, 2, 3), 1),
            (Request::trim(cookie, 2, 3), 4),
            (Request::cache(cookie, 2, 3), 5),
            (Request::write_zeroes(cookie, 2, 3), 6),
            (Request::block_status(cookie, 2, 3), 7),
        ] {
            let mut expected =
                hex!("25609513 0000 0000 0000000000000001 0000000000000002 00000003");
            expected[7] = kind;
            assert_eq!(request.to_compact(), Ok(expected));
        }
        assert_eq!(
            Request::disconnect().to_compact(),
            Ok(hex!(
                "25609513 0000 0002 0000000000000000 0000000000000000 00000000"
            ))
        );
        assert_eq!(
            Request::flush(cookie).to_compact(),
            Ok(hex!(
                "25609513 0000 0003 0000000000000001 0000000000000000 00000000"
            ))
        );
    }

    #[test]
    fn another_magic_is_refused_also_that_of_the_other_header() {
        for magic in [0u32, 0x2560_9514, 0x1256_0953, EXTENDED_REQUEST_MAGIC] {
            let mut header = WRITE;
            header[..4].copy_from_slice(&magic.to_be_bytes());
            let found = magic.into();
            assert_eq!(Request::from_compact(&header), Err(BadMagic { found }));
        }
        let mut header = EXTENDED_STATUS;
        header[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        assert!(Request::from_extended(&header).is_err());
    }

    #[test]
    fn a_length_beyond_32_bits_is_never_cut_to_fit_a_compact_header() {
        let request = Request::trim(Cookie(1), 0, 1 << 32);
        assert_eq!(request.to_compact(), Err(TooLong { length: 1 << 32 }));
        assert_eq!(Request::from_extended(&request.to_extended()), Ok(request));
    }

    #[test]
    fn the_payload_of_block_status_is_a_length_and_ids() {
        let payload = hex!("0000000100000000 00000001 00000007");
        let query = StatusQuery::parse(&payload).unwrap();
        assert_eq!(query.effect_length(), 1 << 32);
        assert_eq!(query.ids().collect::<Vec<_>>(), [1, 7]);
        let mut out = vec![];
        StatusQuery::encode(1 << 32, &[1, 7], &mut out);
        assert_eq!(out, payload);
        assert_eq!(StatusQuery::len_for(2), 16);

        assert_eq!(StatusQuery::parse(&payload[..8]).unwrap().ids().len(), 0);
        assert_eq!(StatusQuery::parse(&payload[..7]), Err(Malformed::Truncated));
        assert_eq!(
            StatusQuery::parse(&payload[..15]),
            Err(Malformed::Trailing { excess: 3 })
        );
    }

    #[test]
    fn a_cookie_is_a_number_and_prints_as_one() {
        let cookie = Cookie::from(0xffee_ddcc_bbaa_9988);
        assert_eq!(cookie, Cookie(0xffee_ddcc_bbaa_9988));
        assert_eq!(format!("{cookie}"), "0xffeeddccbbaa9988");
        assert_eq!(format!("{cookie:?}"), "Cookie(0xffeeddccbbaa9988)");
    }
}
