//! Where the bytes live: sparse memory, a file or block device, and a write-back cache per
//! connection over either.
//!
//! A [`Backend`] is what is served; a [`Handle`] is one connection's way into it. Nothing here knows
//! the protocol: errors are [`io::Error`], and their kind says what the client is to be told:
//!
//! | kind | meaning |
//! |---|---|
//! | `InvalidInput` | the range reaches beyond the end |
//! | `PermissionDenied` | the backend is read-only |
//! | `StorageFull`, `QuotaExceeded`, `FileTooLarge` | no space |
//! | `OutOfMemory` | no memory |
//! | `Unsupported` | a fast zero that would not be fast |
//! | anything else | an I/O error |

mod cached;
mod delay;
mod file;
mod memory;
mod ranges;
#[cfg(test)]
mod tests;

use std::io;
use std::ops::Range;
use std::sync::Arc;

pub(crate) use cached::CachedBackend;
pub(crate) use delay::{DelayBackend, Delays};
pub(crate) use file::FileBackend;
pub(crate) use memory::MemoryBackend;

/// What is served; opened once per connection.
pub(crate) trait Backend: Send + Sync {
    /// The size in bytes; it never changes.
    fn size(&self) -> u64;

    /// What the backend can do; it never changes.
    fn capabilities(&self) -> Capabilities;

    /// Opens one connection's way in.
    fn open(&self) -> io::Result<Arc<dyn Handle>>;
}

/// What a backend can do by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Capabilities {
    /// Everything that modifies fails with `PermissionDenied`.
    pub(crate) read_only: bool,
    /// [`Handle::flush`] keeps its contract.
    pub(crate) flush: bool,
    /// A modification with `fua` costs less than the modification and a flush of everything.
    pub(crate) fua: bool,
    /// A flush on one handle covers all handles, and handles cache nothing of their own.
    pub(crate) multi_conn: bool,
    /// Trim can give space back.
    pub(crate) trim: bool,
    /// Zeroes can be written without sending them.
    pub(crate) write_zeroes: bool,
    /// `fast_only` zeroes have a chance to succeed.
    pub(crate) fast_zero: bool,
    /// [`Handle::cache`] does something.
    pub(crate) cache: bool,
    /// The least alignment of offsets and lengths, in bytes.
    pub(crate) min_block: u32,
    /// The alignment that costs least, in bytes.
    pub(crate) preferred_block: u32,
}

/// How long a call on a handle may keep its thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Pace {
    /// No call waits for a device: all of them may run on the thread that reads the socket.
    Immediate,
    /// Modifications without FUA normally only copy memory, and wait under memory pressure. Reads
    /// go through [`Handle::try_read`] first; the rest needs a thread that may wait.
    Buffered,
    /// Modifications wait too.
    Waits,
}

/// From this length in bytes on it is worth asking whether there is anything to read.
pub(crate) const SPARSE_READ: usize = 32 << 10;

/// One connection's way into a backend.
///
/// All methods may be called from several threads at once. A call whose range reaches beyond the
/// end fails with `InvalidInput` and changes nothing; a call of length 0 succeeds and does nothing.
/// After an error it is undefined which part of the range was modified.
///
/// # What a flush promises
///
/// When [`flush`](Self::flush) succeeds, modifications completed on this handle before the flush
/// started are on permanent storage, and visible to all handles that have nothing cached; and a
/// read started on this handle afterwards returns nothing that was cached here before the flush
/// started. Nothing is promised about calls that were in flight.
///
/// # Dropping
///
/// Dropping a handle writes nothing: what was not flushed may be lost. Who needs it flushes first
/// and looks at the result, which a destructor could only swallow.
pub(crate) trait Handle: Send + Sync {
    /// Fills `buf` from `offset`.
    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;

    /// Fills `buf` if that needs no waiting for a device. `Ok(false)`: it does (or may); `buf` holds
    /// anything, and [`read`](Self::read) on a thread that may wait is to be used. Never fails
    /// where `read` would not.
    fn try_read(&self, offset: u64, buf: &mut [u8]) -> io::Result<bool>;

    /// What [`read`](Self::read) would find now, as it lies in memory; writes that come later do
    /// not change it. `None` if it does not.
    fn pieces(&self, _offset: u64, _length: usize) -> Option<Vec<Piece>> {
        None
    }

    /// Writes all of `data`; with `fua` it is on permanent storage on return.
    fn write(&self, offset: u64, data: &[u8], fua: bool) -> io::Result<()>;

    /// Offsets and lengths that are multiples of this are best written by
    /// [`write_pages`](Self::write_pages).
    fn page_size(&self) -> Option<usize> {
        None
    }

    /// Writes full pages, and may keep them: what is left in their places is of no use but as
    /// memory.
    fn write_pages(&self, offset: u64, pages: &mut [Vec<u8>], fua: bool) -> io::Result<()> {
        let mut offset = offset;
        for page in pages {
            self.write(offset, page, fua)?;
            offset += page.len() as u64;
        }
        Ok(())
    }

    /// Makes the range read as zeroes.
    fn write_zeroes(&self, offset: u64, length: u64, how: Zeroing) -> io::Result<()>;

    /// Says that the contents of the range are not needed; they read as anything afterwards.
    fn trim(&self, offset: u64, length: u64, fua: bool) -> io::Result<()>;

    /// Says that the range will be read soon.
    fn cache(&self, offset: u64, length: u64) -> io::Result<()>;

    /// See [the contract](Self#what-a-flush-promises).
    fn flush(&self) -> io::Result<()>;

    /// How long calls may take.
    fn pace(&self) -> Pace;

    /// What is known of the range, from its beginning: at least one extent unless `length` or
    /// `limit` is 0, at most `limit`, without gaps, none of them empty, neighbours different. They
    /// may end before the range does, and the last may reach beyond it, but not beyond the end of
    /// the export.
    fn extents(&self, offset: u64, length: u64, limit: usize) -> io::Result<Vec<Extent>>;

    /// Whether all of the range, which is not empty, is known to read as zeroes. Reads ask this,
    /// and do not care where data ends, which may take long to find out.
    fn is_hole(&self, offset: u64, length: u64) -> io::Result<bool> {
        let first = self.extents(offset, length, 1)?;
        let whole = |it: &Extent| it.length >= length && it.content != Content::Data;
        Ok(first.first().is_some_and(whole))
    }
}

/// A part of what is in memory, kept as it is for as long as this is.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    page: Arc<Vec<u8>>,
    range: Range<usize>,
}

impl Piece {
    /// `None` if the page does not reach that far.
    fn new(page: Arc<Vec<u8>>, range: Range<usize>) -> Option<Self> {
        (range.start <= range.end && range.end <= page.len()).then_some(Self { page, range })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.page[self.range.clone()]
    }

    /// Brings it into the processor's cache.
    pub(crate) fn warm(&self) {
        let lines = self.bytes().iter().step_by(64);
        std::hint::black_box(lines.fold(0, |seen, byte| seen ^ byte));
    }
}

/// How zeroes are to be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Zeroing {
    /// They are on permanent storage on return.
    pub(crate) fua: bool,
    /// They may become a hole.
    pub(crate) may_trim: bool,
    /// Fail with `Unsupported`, changing nothing, if writing a buffer of zeroes would be as fast.
    pub(crate) fast_only: bool,
}

/// A part of a range about which one thing is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    /// In bytes, not 0.
    pub(crate) length: u64,
    /// What is known of it.
    pub(crate) content: Content,
}

/// What an extent holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// Anything.
    Data,
    /// Zeroes that occupy space.
    Zero,
    /// Zeroes that occupy none.
    Hole,
}

/// The end of a range that lies within `size`.
fn end_within(size: u64, offset: u64, length: u64) -> io::Result<u64> {
    match offset.checked_add(length) {
        Some(end) if end <= size => Ok(end),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{length} bytes at {offset} reach beyond the end at {size}"),
        )),
    }
}

/// [`end_within`] for a buffer.
fn buffer_within(size: u64, offset: u64, buffer: &[u8]) -> io::Result<u64> {
    // A usize has at most 64 bits on every target that exists.
    end_within(size, offset, buffer.len() as u64)
}

/// The extents of a range of which nothing is known.
fn anything(length: u64, limit: usize) -> Vec<Extent> {
    let content = Content::Data;
    let known = length > 0 && limit > 0;
    known
        .then_some(Extent { length, content })
        .into_iter()
        .collect()
}

fn read_only_error() -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, "the export is read-only")
}

/// A zeroed buffer, or `OutOfMemory`.
pub(super) fn zeroed(length: usize) -> io::Result<Vec<u8>> {
    let mut buffer = with_capacity(length)?;
    buffer.resize(length, 0);
    Ok(buffer)
}

/// An empty buffer with room for `length` bytes, or `OutOfMemory`.
fn with_capacity(length: usize) -> io::Result<Vec<u8>> {
    let mut buffer = Vec::new();
    buffer
        .try_reserve_exact(length)
        .map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
    Ok(buffer)
}

/// The part of a buffer that falls into one page or block.
#[derive(Debug)]
struct Part {
    /// Which page.
    index: u64,
    /// Where in the page it begins.
    start: usize,
    /// Which bytes of the buffer.
    range: Range<usize>,
}

/// Cuts a buffer at `offset` at the borders of units (pages, blocks) of `unit` bytes.
fn parts(offset: u64, length: usize, unit: usize) -> impl Iterator<Item = Part> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == length {
            return None;
        }
        let position = offset + done as u64;
        let start = (position % unit as u64) as usize;
        let take = (unit - start).min(length - done);
        let part = Part {
            index: position / unit as u64,
            start,
            range: done..done + take,
        };
        done += take;
        Some(part)
    })
}
