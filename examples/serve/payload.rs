//! The payload of a write, on its way from the socket to the storage.
//!
//! Where the storage is pages in memory, the payload is received into pages, which the storage
//! then exchanges for its own: large writes are not copied.

use std::io;

use super::backend::zeroed;

/// Memory is taken in steps of this size, as data arrives, and not as it is announced.
const STEP: usize = 1 << 20;

/// The most bytes that are kept for use again.
const KEEP: usize = 1 << 20;

/// The most buffers that are kept. More requests than this are seldom read at once.
const SPARE: usize = 16;

/// Bytes that have arrived.
#[derive(Debug)]
pub(crate) enum Payload {
    /// In one piece.
    Whole(Buffer),
    /// In pages that the storage takes as its own.
    Pages(Pages),
}

impl Default for Payload {
    fn default() -> Self {
        Self::Whole(Buffer::default())
    }
}

impl Payload {
    /// Adds bytes to a payload that will have `total`.
    pub(crate) fn extend_within(&mut self, total: u64, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let space = self.space(total)?;
            let take = space.len().min(bytes.len());
            if take == 0 {
                break;
            }
            space[..take].copy_from_slice(&bytes[..take]);
            self.filled(take);
            bytes = &bytes[take..];
        }
        Ok(())
    }

    /// Where the next bytes go; never more than is missing to `total`.
    pub(crate) fn space(&mut self, total: u64) -> io::Result<&mut [u8]> {
        match self {
            Self::Whole(buffer) => buffer.space(total),
            Self::Pages(pages) => pages.space(total),
        }
    }

    /// So many bytes have been put there.
    pub(crate) fn filled(&mut self, bytes: usize) {
        match self {
            Self::Whole(buffer) => buffer.filled(bytes),
            Self::Pages(pages) => pages.len += bytes,
        }
    }
}

/// Bytes in a buffer whose rest stays initialized, so that it need not be
/// zeroed for each write.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    len: usize,
}

impl Buffer {
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Where the next bytes go; never more than is missing to `total`.
    fn space(&mut self, total: u64) -> io::Result<&mut [u8]> {
        let missing = usize::try_from(total)
            .unwrap_or(usize::MAX)
            .saturating_sub(self.len);
        let end = self.len + missing.min(STEP);
        if let Some(more) = end.checked_sub(self.bytes.len()) {
            self.bytes
                .try_reserve_exact(more)
                .map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
            self.bytes.resize(end, 0);
        }
        Ok(&mut self.bytes[self.len..end])
    }

    /// So many bytes have been put there.
    fn filled(&mut self, bytes: usize) {
        self.len = (self.len + bytes).min(self.bytes.len());
    }
}

/// Bytes in pages of one size, all of which are filled in the end.
#[derive(Debug)]
pub(crate) struct Pages {
    /// Each is initialized to its end.
    pages: Vec<Vec<u8>>,
    size: usize,
    len: usize,
    /// Pages for use again, before new ones are made.
    spare: Vec<Vec<u8>>,
}

impl Pages {
    /// The pages, to be taken or exchanged for others.
    pub(crate) fn all(&mut self) -> &mut [Vec<u8>] {
        &mut self.pages
    }

    fn space(&mut self, total: u64) -> io::Result<&mut [u8]> {
        let missing = usize::try_from(total)
            .unwrap_or(usize::MAX)
            .saturating_sub(self.len);
        if missing == 0 {
            return Ok(&mut []);
        }
        let (last, start) = (self.len / self.size, self.len % self.size);
        if last == self.pages.len() {
            let page = match self.spare.pop() {
                Some(page) => page,
                None => zeroed(self.size)?,
            };
            self.pages.push(page);
        }
        let end = (start + missing).min(self.size);
        Ok(&mut self.pages[last][start..end])
    }
}

/// Empty buffers for use again.
#[derive(Debug, Default)]
pub(crate) struct Spare {
    buffers: Vec<Buffer>,
    pages: Vec<Vec<u8>>,
    /// Of all of them together.
    bytes: usize,
}

impl Spare {
    pub(crate) fn take(&mut self) -> Payload {
        let buffer = self.buffers.pop().unwrap_or_default();
        self.bytes -= buffer.bytes.len();
        Payload::Whole(buffer)
    }

    /// For `count` pages of `size`.
    pub(crate) fn take_pages(&mut self, size: usize, count: usize) -> Payload {
        let from = self.pages.len().saturating_sub(count);
        let spare = self.pages.split_off(from);
        self.bytes -= size * spare.len();
        Payload::Pages(Pages {
            pages: Vec::with_capacity(count.min(KEEP / size)),
            size,
            len: 0,
            spare,
        })
    }

    /// Keeps what is worth it.
    pub(crate) fn keep(&mut self, payload: Payload) {
        match payload {
            Payload::Whole(mut buffer) => {
                let bytes = self.bytes + buffer.bytes.len();
                if self.buffers.len() < SPARE && !buffer.bytes.is_empty() && bytes <= KEEP {
                    buffer.len = 0;
                    self.bytes = bytes;
                    self.buffers.push(buffer);
                }
            }
            Payload::Pages(Pages {
                pages, spare, size, ..
            }) => {
                // The storage may have taken some, and given none back.
                for page in pages.into_iter().chain(spare) {
                    if page.len() == size && self.bytes + size <= KEEP {
                        self.bytes += size;
                        self.pages.push(page);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(payload: &Payload) -> &[u8] {
        match payload {
            Payload::Whole(buffer) => buffer.bytes(),
            Payload::Pages(_) => panic!("it is in pages"),
        }
    }

    fn capacity(payload: &Payload) -> usize {
        match payload {
            Payload::Whole(buffer) => buffer.bytes.capacity(),
            Payload::Pages(pages) => pages.pages.iter().map(Vec::capacity).sum(),
        }
    }

    #[test]
    fn memory_grows_with_what_arrives_and_not_with_what_is_announced() {
        for mut payload in [
            Payload::default(),
            Spare::default().take_pages(64 << 10, 512),
        ] {
            payload.extend_within(32 << 20, &[7; 100]).unwrap();
            assert!(payload.space(32 << 20).unwrap().len() <= STEP);
            assert!(capacity(&payload) <= 2 * STEP);
        }
    }

    #[test]
    fn a_buffer_that_is_used_again_shows_nothing_of_its_past() {
        let mut payload = Payload::default();
        payload.extend_within(4, b"past").unwrap();
        let mut spare = Spare::default();
        spare.keep(payload);
        let mut payload = spare.take();
        assert_eq!(bytes(&payload), b"");
        assert!(capacity(&payload) > 0, "it is the same one");
        payload.extend_within(2, b"ab").unwrap();
        assert_eq!(bytes(&payload), b"ab");
        assert_eq!(payload.space(3).unwrap().len(), 1);
    }

    #[test]
    fn pages_are_filled_one_after_the_other_and_used_again() {
        let mut spare = Spare::default();
        let mut payload = spare.take_pages(4, 3);
        payload.extend_within(12, b"abcdef").unwrap();
        assert_eq!(payload.space(12).unwrap().len(), 2);
        payload.extend_within(12, b"ghijkl").unwrap();
        assert!(payload.space(12).unwrap_or_default().is_empty());
        let Payload::Pages(pages) = &mut payload else {
            panic!("it is in pages");
        };
        assert_eq!(pages.all(), [b"abcd", b"efgh", b"ijkl"]);
        // The storage keeps one, and gives another one back for it.
        pages.all()[0] = Vec::new();
        spare.keep(payload);
        assert_eq!(spare.bytes, 8);
        let mut payload = spare.take_pages(4, 2);
        assert_eq!(spare.bytes, 0);
        payload.extend_within(8, b"mnopqrst").unwrap();
        let Payload::Pages(pages) = &mut payload else {
            panic!("it is in pages");
        };
        assert_eq!(pages.all(), [b"mnop", b"qrst"]);
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
        assert!(spare.buffers.is_empty());
        for _ in 0..2 * SPARE {
            spare.keep(payload(KEEP / 2));
            spare.keep(payload(4096));
            let mut pages = spare.take_pages(64 << 10, 4);
            pages.extend_within(4 << 16, &vec![1; 4 << 16]).unwrap();
            spare.keep(pages);
        }
        assert!(spare.bytes <= KEEP);
        assert!(spare.buffers.len() <= SPARE);
        while !spare.buffers.is_empty() {
            spare.take();
        }
        while !spare.pages.is_empty() {
            drop(spare.take_pages(64 << 10, 1));
        }
        assert_eq!(spare.bytes, 0);
    }
}
