//! The one message that is being received.

use alloc::vec::Vec;

/// Collects a message of known length from however many pieces it comes in.
///
/// The caller has compared the length with a limit; even so, memory is only taken for bytes that
/// did arrive.
#[derive(Clone, Debug, Default)]
pub(super) struct Partial {
    bytes: Vec<u8>,
}

impl Partial {
    /// Takes from `input` until `len` bytes are there; says whether they are.
    pub(super) fn fill(&mut self, input: &mut &[u8], len: usize) -> bool {
        let take = self.missing(len).min(input.len());
        let (head, rest) = input.split_at(take);
        self.bytes.extend_from_slice(head);
        *input = rest;
        self.bytes.len() >= len
    }

    /// As [`fill`](Self::fill), for a fixed header; ends the message.
    pub(super) fn fill_array<const N: usize>(&mut self, input: &mut &[u8]) -> Option<[u8; N]> {
        if !self.fill(input, N) {
            return None;
        }
        let array = self.bytes.first_chunk().copied();
        self.bytes.clear();
        array
    }

    /// How many bytes are missing from a message of `len`.
    pub(super) fn missing(&self, len: usize) -> usize {
        len.saturating_sub(self.bytes.len())
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Ends the message.
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
    }
}

/// Skips up to `left` bytes of `input`; says how many are still to be skipped.
pub(super) fn skip(input: &mut &[u8], left: u32) -> u32 {
    let here = u32::try_from(input.len()).unwrap_or(u32::MAX).min(left);
    // A `here` that came from a length cannot fail to become one again.
    let (_, rest) = input.split_at(usize::try_from(here).unwrap_or(input.len()));
    *input = rest;
    left - here
}

/// A length from the wire as a length in memory. Where it does not fit, nothing of that length
/// could be held anyway; limits have refused it before.
pub(super) fn to_usize(len: u32) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}
