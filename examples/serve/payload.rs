//! The payload of a write, on its way from the socket to the storage.

use std::io;

/// Memory is taken in steps of this size, as data arrives, and not as it is announced.
const STEP: usize = 1 << 20;

/// A buffer that is larger is not kept for use again.
const KEEP: usize = 1 << 20;

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

    /// The buffer, empty, if it is worth keeping.
    pub(crate) fn for_reuse(mut self) -> Option<Self> {
        self.len = 0;
        (1..=KEEP).contains(&self.buffer.len()).then_some(self)
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
        let mut payload = payload.for_reuse().unwrap();
        assert_eq!(payload.bytes(), b"");
        payload.extend_within(2, b"ab").unwrap();
        assert_eq!(payload.bytes(), b"ab");
        assert_eq!(payload.space(3).unwrap().len(), 1);
    }

    #[test]
    fn large_buffers_are_given_back() {
        let mut payload = Payload::default();
        let bytes = vec![1; KEEP + 1];
        payload.extend_within(bytes.len() as u64, &bytes).unwrap();
        assert_eq!(payload.bytes(), bytes);
        assert!(payload.for_reuse().is_none());
        assert!(Payload::default().for_reuse().is_none());
    }
}
