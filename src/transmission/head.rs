//! The bytes that go before a payload.

use core::fmt;

/// An encoded header, with the fixed fields that precede a payload: at most 44 bytes, to be
/// written before the payload, in one vectored write.
#[derive(Clone, Copy)]
pub struct Head {
    bytes: [u8; Self::MAX],
    len: u8,
}

impl Head {
    /// The most bytes in a head: an extended header and a hole.
    pub const MAX: usize = 44;

    pub(super) const EMPTY: Self = Self {
        bytes: [0; Self::MAX],
        len: 0,
    };

    pub(super) fn of<const N: usize>(bytes: &[u8; N]) -> Self {
        Self::EMPTY.with(bytes)
    }

    /// Appends a fixed part. No caller has parts that are longer than [`MAX`](Self::MAX)
    /// together; what would not fit is left out.
    pub(super) fn with<const N: usize>(mut self, part: &[u8; N]) -> Self {
        const { assert!(N <= Self::MAX) };
        let room = self.bytes.get_mut(usize::from(self.len)..);
        if let Some(room) = room.and_then(<[u8]>::first_chunk_mut) {
            *room = *part;
            self.len = self.len.saturating_add(const { N as u8 });
        }
        self
    }
}

impl AsRef<[u8]> for Head {
    fn as_ref(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or(&[])
    }
}

impl core::ops::Deref for Head {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.as_ref()
    }
}

impl PartialEq for Head {
    fn eq(&self, other: &Self) -> bool {
        self.as_ref() == other.as_ref()
    }
}

impl Eq for Head {}

impl fmt::Debug for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Head(")?;
        for byte in self.as_ref() {
            write!(f, "{byte:02x}")?;
        }
        f.write_str(")")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;

    #[test]
    fn the_largest_head_fits() {
        let head = Head::of(&[1; 32]).with(&[2; 12]);
        assert_eq!(head.len(), Head::MAX);
        assert_eq!(head.as_ref()[..32], [1; 32]);
        assert_eq!(head.as_ref()[32..], [2; 12]);
    }

    #[test]
    fn heads_are_compared_and_printed_by_their_bytes() {
        let head = Head::of(&[0, 0xc0]);
        assert_eq!(head, Head::of(&[0]).with(&[0xc0]));
        // What lies behind the end does not count, but where the end is does.
        assert_ne!(head, Head::of(&[0, 0xc1]));
        assert_ne!(head, Head::of(&[0, 0xc0, 0]));
        assert_eq!(format!("{head:?}"), "Head(00c0)");
    }
}
