//! Which connection a range belongs to, where ranges are pinned.

use core::iter::FusedIterator;

/// What a range is pinned by where the caller has no wish, in bytes: large enough that few
/// requests straddle, and that only few neighbouring blocks belong to two connections; small
/// enough that a linear copy with a few requests in flight keeps all connections busy.
const USUAL_GRANULE: u64 = 1 << 20;

/// Pins every offset of an export to one of several connections: granules of equal size take
/// turns.
///
/// The rule of the 2021 message is that an action, the flush that makes it stick and whatever
/// relies on it have to be on the same connection where multi-conn cannot be relied on. As *every*
/// command goes where its range is pinned, reads too, each byte has one connection and at most one
/// cache. For the cache to have no block of which two connections own a part, the granule is a
/// multiple of the preferred block size, from which on nothing is read, modified and written back
/// (proto.md "Size constraints").
///
/// ```
/// use nbd_proto::multiplex::{Part, Pinning};
///
/// let pinning = Pinning::new(1 << 16, 2);
/// assert_eq!(pinning.connection(0x1_2345), 1);
/// let parts: Vec<_> = pinning.parts(0xff00, 0x200).collect();
/// let expected = [
///     Part { connection: 0, offset: 0xff00, length: 0x100 },
///     Part { connection: 1, offset: 0x1_0000, length: 0x100 },
/// ];
/// assert_eq!(parts, expected);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pinning {
    /// The granule is two to the power of this.
    shift: u32,
    connections: u32,
}

/// A range that belongs to one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Part {
    /// The connection: 0 is the first, then in the order in which they were admitted.
    pub connection: u32,
    /// Where the range begins, in bytes.
    pub offset: u64,
    /// How long it is, in bytes.
    pub length: u64,
}

impl Pinning {
    /// Granules of so many bytes, rounded up to a power of two (at most 2^63), over so many
    /// connections, at least one.
    #[must_use]
    pub const fn new(granule: u64, connections: u32) -> Self {
        let granule = match granule.checked_next_power_of_two() {
            Some(granule) => granule,
            None => 1 << 63,
        };
        Self {
            shift: granule.trailing_zeros(),
            connections: if connections == 0 { 1 } else { connections },
        }
    }

    /// The granule for an export of this size and preferred block size, shared by so many.
    pub(super) fn suited(size: u64, preferred: u32, wish: Option<u64>, connections: u32) -> Self {
        let share = size / u64::from(connections.max(1));
        // The largest power of two that leaves a granule for each.
        let share = share.checked_ilog2().map_or(1, |log| 1 << log);
        let granule = wish.unwrap_or_else(|| share.min(USUAL_GRANULE));
        Self::new(granule.max(u64::from(preferred)), connections)
    }

    /// The size of a granule in bytes, a power of two.
    #[must_use]
    pub const fn granule(&self) -> u64 {
        1 << self.shift
    }

    /// How many connections take turns.
    #[must_use]
    pub const fn connections(&self) -> u32 {
        self.connections
    }

    pub(super) const fn over(self, connections: u32) -> Self {
        Self::new(self.granule(), connections)
    }

    /// The connection that this offset is pinned to.
    #[must_use]
    pub const fn connection(&self, offset: u64) -> u32 {
        // Less than a `u32`, for it is a remainder of one.
        ((offset >> self.shift) % self.connections as u64) as u32
    }

    /// How many bytes from this offset on, at most `length`, can be in one request.
    ///
    /// A caller that can choose its requests asks this before it cuts the next one.
    #[must_use]
    pub const fn fits(&self, offset: u64, length: u64) -> u64 {
        if self.connections == 1 {
            return length;
        }
        let within = offset & (self.granule() - 1);
        let left = self.granule() - within;
        if left < length { left } else { length }
    }

    /// The requests that one for this range has to be split into, in the order of their offsets.
    /// The split lies at multiples of the granule, so that what was aligned to the minimum block
    /// size remains so. What reaches beyond 2^64 is left out.
    ///
    /// The request has succeeded when all parts have. One that modifies is *one* write in a
    /// [`FlushLedger`](super::FlushLedger) per part.
    #[must_use]
    pub fn parts(&self, offset: u64, length: u64) -> Parts {
        let length = length.min(u64::MAX - offset);
        Parts {
            pinning: *self,
            offset,
            length,
        }
    }
}

/// The parts of a range, in order: see [`Pinning::parts`].
#[derive(Clone, Debug)]
pub struct Parts {
    pinning: Pinning,
    offset: u64,
    length: u64,
}

impl Iterator for Parts {
    type Item = Part;

    fn next(&mut self) -> Option<Part> {
        if self.length == 0 {
            return None;
        }
        let length = self.pinning.fits(self.offset, self.length);
        let part = Part {
            connection: self.pinning.connection(self.offset),
            offset: self.offset,
            length,
        };
        self.offset += length;
        self.length -= length;
        Some(part)
    }
}

impl FusedIterator for Parts {}
