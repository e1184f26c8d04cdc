//! Bytes to numbers and back. The only place where byte order is spelled out.
//!
//! Fixed headers use [`u16_at`] and its siblings on arrays: the offset is checked when the crate
//! is compiled. Variable bodies go through [`Reader`], whose [`finish`](Reader::finish) makes
//! trailing bytes an error, so that a decoder cannot forget to look for them.

use alloc::vec::Vec;
use byteorder::{BigEndian, ByteOrder};

use super::Malformed;

macro_rules! fixed {
    ($at:ident, $put:ident, $int:ty, $read:ident, $write:ident) => {
        pub(crate) fn $at<const AT: usize, const N: usize>(bytes: &[u8; N]) -> $int {
            const { assert!(AT + size_of::<$int>() <= N) };
            BigEndian::$read(&bytes[AT..])
        }

        pub(crate) fn $put<const AT: usize, const N: usize>(bytes: &mut [u8; N], value: $int) {
            const { assert!(AT + size_of::<$int>() <= N) };
            BigEndian::$write(&mut bytes[AT..], value);
        }
    };
}

fixed!(u16_at, put_u16_at, u16, read_u16, write_u16);
fixed!(u32_at, put_u32_at, u32, read_u32, write_u32);
fixed!(u64_at, put_u64_at, u64, read_u64, write_u64);

/// Takes the fields of a body one after the other.
#[derive(Clone, Debug)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(body: &'a [u8]) -> Self {
        Self { rest: body }
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, rest) = self.rest.split_first_chunk().ok_or(Malformed::Truncated)?;
        self.rest = rest;
        Ok(*head)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_be_bytes)
    }

    /// The next `len` bytes. `len` comes from the wire: it is compared with what is there, and
    /// nothing is allocated for it.
    pub(crate) fn bytes(&mut self, len: u32) -> Result<&'a [u8], Malformed> {
        let len = usize::try_from(len).map_err(|_| Malformed::Truncated)?;
        let (head, rest) = self
            .rest
            .split_at_checked(len)
            .ok_or(Malformed::Truncated)?;
        self.rest = rest;
        Ok(head)
    }

    /// All that is left.
    pub(crate) fn rest(&mut self) -> &'a [u8] {
        core::mem::take(&mut self.rest)
    }

    /// Ends the body: bytes that no field took are an error.
    pub(crate) fn finish(self) -> Result<(), Malformed> {
        match self.rest.len() {
            0 => Ok(()),
            excess => Err(Malformed::Trailing { excess }),
        }
    }
}

/// Appends numbers to a body under construction.
pub(crate) trait PutExt {
    fn put_u16(&mut self, value: u16);
    fn put_u32(&mut self, value: u32);
    fn put_u64(&mut self, value: u64);
}

impl PutExt for Vec<u8> {
    fn put_u16(&mut self, value: u16) {
        self.extend_from_slice(&value.to_be_bytes());
    }

    fn put_u32(&mut self, value: u32) {
        self.extend_from_slice(&value.to_be_bytes());
    }

    fn put_u64(&mut self, value: u64) {
        self.extend_from_slice(&value.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_taken_in_order_and_its_end_is_checked() {
        let mut body = Reader::new(&[0, 1, 0, 0, 0, 2, b'h', b'i', 9]);
        assert_eq!(body.u16(), Ok(1));
        assert_eq!(body.u32(), Ok(2));
        assert_eq!(body.bytes(2), Ok(&b"hi"[..]));
        assert_eq!(
            body.clone().finish(),
            Err(Malformed::Trailing { excess: 1 })
        );
        assert_eq!(body.rest(), &[9]);
        assert_eq!(body.finish(), Ok(()));
    }

    #[test]
    fn a_length_beyond_the_body_is_truncation() {
        assert_eq!(Reader::new(&[0; 8]).bytes(9), Err(Malformed::Truncated));
        assert_eq!(
            Reader::new(&[0; 8]).bytes(u32::MAX),
            Err(Malformed::Truncated)
        );
        assert_eq!(Reader::new(&[0; 7]).u64(), Err(Malformed::Truncated));
    }

    #[test]
    fn fixed_fields_are_big_endian() {
        let mut header = [0xa5; 14];
        put_u16_at::<0, 14>(&mut header, 0x0102);
        put_u32_at::<2, 14>(&mut header, 0x0304_0506);
        put_u64_at::<6, 14>(&mut header, 0x0708_090a_0b0c_0d0e);
        assert_eq!(header, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]);
        assert_eq!(u16_at::<0, 14>(&header), 0x0102);
        assert_eq!(u32_at::<2, 14>(&header), 0x0304_0506);
        assert_eq!(u64_at::<6, 14>(&header), 0x0708_090a_0b0c_0d0e);
    }
}
