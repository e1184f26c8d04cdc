//! The payloads of block status chunks: what is known of extents in one meta context.

use alloc::vec::Vec;

use super::Malformed;
use super::cursor::{PutExt, Reader, u32_at, u64_at};

/// One block status descriptor: how much of the export has the same status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Extent {
    /// The length in bytes, at least one.
    pub length: u64,
    /// The status; what its bits mean is for the meta context to say.
    pub flags: u64,
}

impl Extent {
    /// The size of a descriptor in a `BLOCK_STATUS` chunk, in bytes.
    pub const COMPACT_LEN: usize = 8;

    /// The size of a descriptor in a `BLOCK_STATUS_EXT` chunk, in bytes.
    pub const EXTENDED_LEN: usize = 16;

    /// Decodes a descriptor of a `BLOCK_STATUS` chunk.
    #[must_use]
    pub fn from_compact(descriptor: &[u8; Self::COMPACT_LEN]) -> Self {
        Self {
            length: u32_at::<0, 8>(descriptor).into(),
            flags: u32_at::<4, 8>(descriptor).into(),
        }
    }

    /// Decodes a descriptor of a `BLOCK_STATUS_EXT` chunk.
    #[must_use]
    pub fn from_extended(descriptor: &[u8; Self::EXTENDED_LEN]) -> Self {
        Self {
            length: u64_at::<0, 16>(descriptor),
            flags: u64_at::<8, 16>(descriptor),
        }
    }
}

/// Block status descriptors as they lie in a payload, decoded one by one.
#[derive(Clone, Debug)]
pub struct Extents<'a> {
    // A descriptor that did not arrive in one piece comes before the others.
    first: Option<Extent>,
    rest: &'a [u8],
    extended: bool,
}

impl<'a> Extents<'a> {
    /// Descriptors in `bytes`; what is left over after the last whole one is not looked at.
    pub(crate) const fn new(first: Option<Extent>, bytes: &'a [u8], extended: bool) -> Self {
        Self {
            first,
            rest: bytes,
            extended,
        }
    }

    const fn width(&self) -> usize {
        if self.extended {
            Extent::EXTENDED_LEN
        } else {
            Extent::COMPACT_LEN
        }
    }
}

impl Iterator for Extents<'_> {
    type Item = Extent;

    fn next(&mut self) -> Option<Extent> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        if self.extended {
            let (descriptor, rest) = self.rest.split_first_chunk()?;
            self.rest = rest;
            Some(Extent::from_extended(descriptor))
        } else {
            let (descriptor, rest) = self.rest.split_first_chunk()?;
            self.rest = rest;
            Some(Extent::from_compact(descriptor))
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let count = self.rest.len() / self.width() + usize::from(self.first.is_some());
        (count, Some(count))
    }
}

impl ExactSizeIterator for Extents<'_> {}

impl PartialEq for Extents<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.clone().eq(other.clone())
    }
}

impl Eq for Extents<'_> {}

/// The payload of a block status chunk of either width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusChunk<'a> {
    context: u32,
    descriptors: &'a [u8],
    extended: bool,
}

/// Extents that no block status chunk can carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IllegalStatus {
    /// There are none.
    #[error("no extents")]
    None,
    /// One has no length.
    #[error("an extent of no length")]
    Empty,
    /// One does not fit the 32 bits of a `BLOCK_STATUS` chunk.
    #[error("an extent that does not fit 32 bits")]
    TooWide,
    /// More than 2^20, which is what the protocol recommends to stay below.
    #[error("more than 2^20 extents")]
    TooMany,
}

impl<'a> StatusChunk<'a> {
    /// The most extents in one chunk (under `NBD_REPLY_TYPE_BLOCK_STATUS`).
    pub const MAX_EXTENTS: usize = 1 << 20;

    /// Decodes the payload of an `NBD_REPLY_TYPE_BLOCK_STATUS` chunk.
    ///
    /// # Errors
    ///
    /// If it is not a context id and at least one whole descriptor, or an extent has no length.
    pub fn parse(payload: &'a [u8]) -> Result<Self, Malformed> {
        let mut body = Reader::new(payload);
        let context = body.u32()?;
        Self::with_descriptors(context, body.rest(), false)
    }

    /// Decodes the payload of an `NBD_REPLY_TYPE_BLOCK_STATUS_EXT` chunk.
    ///
    /// # Errors
    ///
    /// If it is not a context id, a count, and exactly that many descriptors, at least one; or an
    /// extent has no length.
    pub fn parse_extended(payload: &'a [u8]) -> Result<Self, Malformed> {
        let mut body = Reader::new(payload);
        let context = body.u32()?;
        let count = body.u32()?;
        let status = Self::with_descriptors(context, body.rest(), true)?;
        if u32::try_from(status.extents().len()) != Ok(count) {
            return Err(Malformed::Value {
                field: "descriptor count",
            });
        }
        Ok(status)
    }

    fn with_descriptors(
        context: u32,
        descriptors: &'a [u8],
        extended: bool,
    ) -> Result<Self, Malformed> {
        let status = Self {
            context,
            descriptors,
            extended,
        };
        let width = status.extents().width();
        if descriptors.len() < width {
            return Err(Malformed::Truncated);
        }
        match descriptors.len() % width {
            0 => {}
            excess => return Err(Malformed::Trailing { excess }),
        }
        if status.extents().any(|extent| extent.length == 0) {
            return Err(Malformed::Value {
                field: "extent length",
            });
        }
        Ok(status)
    }

    /// The id of the meta context.
    #[must_use]
    pub const fn context(&self) -> u32 {
        self.context
    }

    /// The extents, in the order of the export, from the offset of the request on.
    #[must_use]
    pub const fn extents(&self) -> Extents<'a> {
        Extents::new(None, self.descriptors, self.extended)
    }

    /// Appends the payload of an `NBD_REPLY_TYPE_BLOCK_STATUS` chunk.
    ///
    /// # Errors
    ///
    /// If the extents are not what the chunk can carry; nothing is appended then.
    pub fn encode(
        context: u32,
        extents: impl IntoIterator<Item = Extent>,
        out: &mut Vec<u8>,
    ) -> Result<(), IllegalStatus> {
        appended(out, |out| {
            out.put_u32(context);
            put_extents(extents, out, |extent, out| {
                let narrow = |n| u32::try_from(n).map_err(|_| IllegalStatus::TooWide);
                out.put_u32(narrow(extent.length)?);
                out.put_u32(narrow(extent.flags)?);
                Ok(())
            })?;
            Ok(())
        })
    }

    /// Appends the payload of an `NBD_REPLY_TYPE_BLOCK_STATUS_EXT` chunk.
    ///
    /// # Errors
    ///
    /// If the extents are not what the chunk can carry; nothing is appended then.
    pub fn encode_extended(
        context: u32,
        extents: impl IntoIterator<Item = Extent>,
        out: &mut Vec<u8>,
    ) -> Result<(), IllegalStatus> {
        appended(out, |out| {
            out.put_u32(context);
            let at = out.len();
            out.put_u32(0);
            let count = put_extents(extents, out, |extent, out| {
                out.put_u64(extent.length);
                out.put_u64(extent.flags);
                Ok(())
            })?;
            if let Some(field) = out.get_mut(at..at.saturating_add(4)) {
                field.copy_from_slice(&count.to_be_bytes());
            }
            Ok(())
        })
    }
}

/// Appends by `put`, or leaves `out` as it was.
fn appended(
    out: &mut Vec<u8>,
    put: impl FnOnce(&mut Vec<u8>) -> Result<(), IllegalStatus>,
) -> Result<(), IllegalStatus> {
    let start = out.len();
    let result = put(out);
    if result.is_err() {
        out.truncate(start);
    }
    result
}

fn put_extents(
    extents: impl IntoIterator<Item = Extent>,
    out: &mut Vec<u8>,
    put: impl Fn(Extent, &mut Vec<u8>) -> Result<(), IllegalStatus>,
) -> Result<u32, IllegalStatus> {
    let mut count = 0u32;
    for extent in extents {
        if extent.length == 0 {
            return Err(IllegalStatus::Empty);
        }
        if count as usize >= StatusChunk::MAX_EXTENTS {
            return Err(IllegalStatus::TooMany);
        }
        put(extent, out)?;
        count += 1;
    }
    match count {
        0 => Err(IllegalStatus::None),
        count => Ok(count),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use hex_literal::hex;

    const EXTENTS: [Extent; 2] = [
        Extent {
            length: 0x1000,
            flags: 3,
        },
        Extent {
            length: 0x2000,
            flags: 0,
        },
    ];

    #[test]
    fn block_status_is_a_context_and_descriptors_of_32_bits() {
        let bytes = hex!("00000007 00001000 00000003 00002000 00000000");
        let status = StatusChunk::parse(&bytes).unwrap();
        assert_eq!(status.context(), 7);
        assert_eq!(status.extents().len(), 2);
        assert_eq!(status.extents().collect::<Vec<_>>(), EXTENTS);
        let mut out = vec![0xa5];
        StatusChunk::encode(7, EXTENTS, &mut out).unwrap();
        assert_eq!(out[1..], bytes);

        assert_eq!(StatusChunk::parse(&bytes[..4]), Err(Malformed::Truncated));
        assert_eq!(StatusChunk::parse(&bytes[..3]), Err(Malformed::Truncated));
        assert_eq!(
            StatusChunk::parse(&bytes[..16]),
            Err(Malformed::Trailing { excess: 4 })
        );
        let empty = hex!("00000007 00000000 00000003");
        assert_eq!(
            StatusChunk::parse(&empty),
            Err(Malformed::Value {
                field: "extent length"
            })
        );
    }

    #[test]
    fn extended_block_status_has_a_count_and_descriptors_of_64_bits() {
        let bytes = hex!(
            "00000007 00000002"
            "0000000000001000 0000000000000003"
            "0000000000002000 0000000000000000"
        );
        let status = StatusChunk::parse_extended(&bytes).unwrap();
        assert_eq!(status.context(), 7);
        assert_eq!(status.extents().collect::<Vec<_>>(), EXTENTS);
        let mut out = vec![0xa5];
        StatusChunk::encode_extended(7, EXTENTS, &mut out).unwrap();
        assert_eq!(out[1..], bytes);

        for count in [0, 1, 3] {
            let mut wrong = bytes;
            wrong[7] = count;
            assert_eq!(
                StatusChunk::parse_extended(&wrong),
                Err(Malformed::Value {
                    field: "descriptor count"
                })
            );
        }
        assert!(StatusChunk::parse_extended(&bytes[..8]).is_err());
        assert!(StatusChunk::parse_extended(&bytes[..32]).is_err());
    }

    #[test]
    fn extents_that_a_chunk_cannot_carry_are_not_sent() {
        let mut out = vec![1, 2, 3];
        let extent = |length, flags| [Extent { length, flags }];
        for (extents, why) in [
            (&[][..], IllegalStatus::None),
            (&extent(0, 0), IllegalStatus::Empty),
            (&extent(1 << 32, 0), IllegalStatus::TooWide),
            (&extent(1, 1 << 32), IllegalStatus::TooWide),
        ] {
            let result = StatusChunk::encode(1, extents.iter().copied(), &mut out);
            assert_eq!(result, Err(why));
        }
        let many = core::iter::repeat_n(EXTENTS[0], StatusChunk::MAX_EXTENTS + 1);
        assert_eq!(
            StatusChunk::encode_extended(1, many, &mut out),
            Err(IllegalStatus::TooMany)
        );
        assert_eq!(out, [1, 2, 3]);
    }

    #[test]
    fn extents_are_counted_and_compared_as_decoded_however_they_lie_in_memory() {
        let bytes = hex!("00001000 00000003 00002000 00000000");
        let whole = Extents::new(None, &bytes, false);
        let split = Extents::new(Some(EXTENTS[0]), &bytes[8..], false);
        let wide = hex!("0000000000002000 0000000000000000");
        let wide = Extents::new(Some(EXTENTS[0]), &wide, true);
        for extents in [&whole, &split, &wide] {
            assert_eq!(extents.len(), 2);
            assert_eq!(extents.clone().collect::<Vec<_>>(), EXTENTS);
            assert_eq!(*extents, whole);
        }
        let one = Extents::new(Some(EXTENTS[0]), &[], false);
        assert_eq!(one.len(), 1);
        assert_ne!(one, whole);
        assert_ne!(Extents::new(None, &bytes[8..], false), one);
    }
}
