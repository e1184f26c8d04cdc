//! The payload of a write, on its way from the socket to the storage.

use std::io;

/// Memory is taken in steps of this size, as data arrives, and not as it is announced.
const STEP: usize = 1 << 20;

/// The most bytes that are kept for use again.
const KEEP: usize = 1 << 20;

/// The most buffers that are kept. More requests than this are seldom read at once.
const SPARE: usize = 16;

/// Bytes that have arrived, in a buffer whose rest stays initialized, so that it need not be
/// zeroed for each write.
#[derive(Debug, Default)]
pub(crate) struct Payload {
    buffer: Vec<u8>,
    len: usize,
}

impl Payload {
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.buffer[..self.len]
    }

    /// Adds bytes to a payload that will have `total`.
    pub(crate) fn extend_within(&mut self, total: u64, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let space = self.space(total)?;
            let take = space.len().min(bytes.len());
            if take == 0 {
                break;
            }
            space[..take].copy_from_slice(&bytes[..take]);
            self.len += take;
            bytes = &bytes[take..];
        }
        Ok(())
    }

    /// Where the next bytes go; never more than is missing to `total`.
    pub(crate) fn space(&mut self, total: u64) -> io::Result<&mut [u8]> {
        let missing = usize::try_from(total)
            .unwrap_or(usize::MAX)
            .saturating_sub(self.len);
        let end = self.len + missing.min(STEP);
        if let Some(more) = end.checked_sub(self.buffer.len()) {
            self.buffer
                .try_reserve_exact(more)
                .map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
            self.buffer.resize(end, 0);
        }
        Ok(&mut self.buffer[self.len..end])
    }

    /// So many bytes have been put there.
    pub(crate) fn filled(&mut self, bytes: usize) {
        self.len = (self.len + bytes).min(self.buffer.len());
    }
}

/// Empty buffers for use again.
#[derive(Debug, Default)]
pub(crate) struct Spare {
    payloads: Vec<Payload>,
    /// Of all of them together.
    bytes: usize,
}

impl Spare {
    pub(crate) fn take(&mut self) -> Payload {
        let payload = self.payloads.pop().unwrap_or_default();
        self.bytes -= payload.buffer.len();
        payload
    }

    /// Keeps a buffer, if it is worth it.
    pub(crate) fn keep(&mut self, mut payload: Payload) {
        let bytes = self.bytes + payload.buffer.len();
        if self.payloads.len() < SPARE && !payload.buffer.is_empty() && bytes <= KEEP {
            payload.len = 0;
            self.bytes = bytes;
            self.payloads.push(payload);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_grows_with_what_arrives_and_not_with_what_is_announced() {
        let mut payload = Payload::default();
        payload.extend_within(32 << 20, &[7; 100]).unwrap();
        assert_eq!(payload.bytes(), [7; 100]);
        assert!(payload.space(32 << 20).unwrap().len() <= STEP);
        assert!(payload.buffer.capacity() <= 2 * STEP);
    }

    #[test]
    fn a_buffer_that_is_used_again_shows_nothing_of_its_past() {
        let mut payload = Payload::default();
        payload.extend_within(4, b"past").unwrap();
        let mut spare = Spare::default();
        spare.keep(payload);
        let mut payload = spare.take();
        assert_eq!(payload.bytes(), b"");
        assert!(!payload.buffer.is_empty(), "it is the same one");
        payload.extend_within(2, b"ab").unwrap();
        assert_eq!(payload.bytes(), b"ab");
        assert_eq!(payload.space(3).unwrap().len(), 1);
    }

    #[test]
    fn no_more_is_kept_than_a_single_large_buffer() {
        let payload = |length: usize| {
            let mut payload = Payload::default();
            payload
                .extend_within(length as u64, &vec![1; length])
                .unwrap();
            payload
        };
        let mut spare = Spare::default();
        spare.keep(payload(KEEP + 1));
        assert!(spare.payloads.is_empty());
        for _ in 0..2 * SPARE {
            spare.keep(payload(KEEP / 2));
            spare.keep(payload(4096));
        }
        assert!(spare.bytes <= KEEP);
        assert!(spare.payloads.len() <= SPARE);
        while !spare.payloads.is_empty() {
            spare.take();
        }
        assert_eq!(spare.bytes, 0);
    }
}
