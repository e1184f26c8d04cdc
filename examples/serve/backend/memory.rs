//! Sparse memory: any size, and only what was written occupies memory.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;

use super::{
    Backend, Capabilities, Content, Extent, Handle, Pace, Part, Piece, Zeroing, buffer_within,
    end_within, parts, with_capacity,
};

/// Large enough that the index is small against the data (a thousandth), small enough that random
/// writes do not take many times their size.
pub(super) const PAGE: usize = 64 * 1024;

/// Each shard has its own lock. Neighbouring pages are in different shards, so that connections
/// working side by side seldom meet; readers never wait for readers.
const SHARDS: u64 = 128;

/// The most the protocol can express: offsets are unsigned, but everybody stores them signed.
const LARGEST: u64 = i64::MAX as u64;

/// A memory of some size, shared by all connections, that lives as long as this value.
#[derive(Clone)]
pub(crate) struct MemoryBackend {
    store: Arc<Store>,
}

struct Store {
    size: u64,
    /// The most pages that may exist at once.
    page_limit: u64,
    page_count: AtomicU64,
    shards: Box<[Shard]>,
}

/// Aligned, so that two locks are never in one cache line (or in two that are fetched as a pair).
#[repr(align(128))]
struct Shard(RwLock<Pages>);

/// Page index to page. A page is shorter than `PAGE` when nothing was written beyond; the rest reads
/// as zeroes. So a disk that is filled in order is never zeroed first. Its capacity is always `PAGE`.
///
/// It is shared with replies that are on their way, which have to show it as it was.
type Pages = HashMap<u64, Arc<Vec<u8>>, PageHasher>;

impl MemoryBackend {
    /// `size` bytes that read as zeroes, up to 2^63 - 1. At most about `limit` bytes of memory will
    /// be used, then writes fail with `StorageFull`.
    pub(crate) fn new(size: u64, limit: Option<u64>) -> io::Result<Self> {
        if size > LARGEST {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("a memory of {size} bytes is too large: at most {LARGEST}"),
            ));
        }
        let hasher = PageHasher::new();
        let shards = (0..SHARDS).map(|_| Shard(RwLock::new(Pages::with_hasher(hasher))));
        Ok(Self {
            store: Arc::new(Store {
                size,
                page_limit: limit.map_or(u64::MAX, |bytes| bytes / PAGE as u64),
                page_count: AtomicU64::new(0),
                shards: shards.collect(),
            }),
        })
    }

    /// The memory that holds data now, in bytes.
    #[cfg(test)]
    pub(crate) fn allocated(&self) -> u64 {
        self.store.page_count.load(Ordering::Relaxed) * PAGE as u64
    }
}

impl Backend for MemoryBackend {
    fn size(&self) -> u64 {
        self.store.size
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            read_only: false,
            flush: true,
            fua: true,
            multi_conn: true,
            trim: true,
            write_zeroes: true,
            fast_zero: true,
            cache: true,
            min_block: 1,
            preferred_block: 4096,
        }
    }

    fn open(&self) -> io::Result<Arc<dyn Handle>> {
        Ok(self.store.clone())
    }
}

impl Handle for Store {
    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        buffer_within(self.size, offset, buf)?;
        for Part {
            index,
            start,
            range,
        } in parts(offset, buf.len(), PAGE)
        {
            let target = &mut buf[range];
            match self.shard(index).0.read().get(&index) {
                Some(page) => load(page, start, target),
                None => target.fill(0),
            }
        }
        Ok(())
    }

    fn try_read(&self, offset: u64, buf: &mut [u8]) -> io::Result<bool> {
        self.read(offset, buf).map(|()| true)
    }

    fn pieces(&self, offset: u64, length: usize) -> Option<Vec<Piece>> {
        end_within(self.size, offset, length as u64).ok()?;
        let piece = |part: Part| {
            let pages = self.shard(part.index).0.read();
            let page = Arc::clone(pages.get(&part.index)?);
            Piece::new(page, part.start..part.start + part.range.len())
        };
        parts(offset, length, PAGE).map(piece).collect()
    }

    // Memory is as permanent as this export ever gets, so FUA asks for nothing more.
    fn write(&self, offset: u64, data: &[u8], _fua: bool) -> io::Result<()> {
        buffer_within(self.size, offset, data)?;
        for part in parts(offset, data.len(), PAGE) {
            self.write_part(part.index, part.start, &data[part.range])?;
        }
        Ok(())
    }

    fn page_size(&self) -> Option<usize> {
        Some(PAGE)
    }

    fn write_pages(&self, offset: u64, pages: &mut [Vec<u8>], fua: bool) -> io::Result<()> {
        let mut at = offset;
        for page in pages {
            let end = buffer_within(self.size, at, page)?;
            if at.is_multiple_of(PAGE as u64) && page.len() == PAGE && page.capacity() == PAGE {
                self.exchange(at / PAGE as u64, page)?;
            } else {
                self.write(at, page, fua)?;
            }
            at = end;
        }
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, length: u64, _how: Zeroing) -> io::Result<()> {
        let end = end_within(self.size, offset, length)?;
        self.zero(offset, end)
    }

    fn trim(&self, offset: u64, length: u64, _fua: bool) -> io::Result<()> {
        self.write_zeroes(offset, length, Zeroing::default())
    }

    fn cache(&self, offset: u64, length: u64) -> io::Result<()> {
        end_within(self.size, offset, length).map(drop)
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn pace(&self) -> Pace {
        Pace::Immediate
    }

    fn extents(&self, offset: u64, length: u64, limit: usize) -> io::Result<Vec<Extent>> {
        let end = end_within(self.size, offset, length)?;
        let mut extents = Vec::new();
        if length == 0 || limit == 0 {
            return Ok(extents);
        }
        let pages = offset / PAGE as u64..end.div_ceil(PAGE as u64);
        let mut position = offset;
        for page in self.present(pages) {
            let start = (page * PAGE as u64).max(offset);
            let stop = ((page + 1) * PAGE as u64).min(end);
            push_extent(&mut extents, start - position, Content::Hole);
            push_extent(&mut extents, stop - start, Content::Data);
            position = stop;
            // One more than asked: the last may still grow.
            if extents.len() > limit {
                break;
            }
        }
        if extents.len() <= limit {
            push_extent(&mut extents, end - position, Content::Hole);
        }
        extents.truncate(limit);
        Ok(extents)
    }
}

impl Store {
    fn shard(&self, page: u64) -> &Shard {
        // Fewer shards than a usize can count.
        &self.shards[(page % SHARDS) as usize]
    }

    fn write_part(&self, index: u64, start: usize, data: &[u8]) -> io::Result<()> {
        let mut pages = self.shard(index).0.write();
        if let Some(page) = pages.get_mut(&index) {
            store(own(page)?, start, data);
            return Ok(());
        }
        if is_zero(data) {
            return Ok(());
        }
        let mut page = self.new_page(&mut pages)?;
        store(&mut page, start, data);
        pages.insert(index, Arc::new(page));
        Ok(())
    }

    /// Puts a full page in its place, and what was there in its stead.
    fn exchange(&self, index: u64, page: &mut Vec<u8>) -> io::Result<()> {
        let mut pages = self.shard(index).0.write();
        if let Some(old) = pages.get_mut(&index) {
            let new = Arc::new(std::mem::take(page));
            let old = std::mem::replace(old, new);
            drop(pages);
            // If a reply still shows it, it goes with that.
            if let Ok(mut old) = Arc::try_unwrap(old) {
                old.resize(PAGE, 0);
                *page = old;
            }
        } else if !is_zero(page) {
            self.count_page(&mut pages)?;
            pages.insert(index, Arc::new(std::mem::take(page)));
        }
        Ok(())
    }

    /// An empty page, counted, and room for it in the index.
    fn new_page(&self, pages: &mut Pages) -> io::Result<Vec<u8>> {
        self.count_page(pages)?;
        with_capacity(PAGE).inspect_err(|_| {
            self.page_count.fetch_sub(1, Ordering::Relaxed);
        })
    }

    /// Counts one page more, if there may be one, and makes room for it in the index.
    fn count_page(&self, pages: &mut Pages) -> io::Result<()> {
        let counted = self
            .page_count
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
                (count < self.page_limit).then_some(count + 1)
            });
        if counted.is_err() {
            return Err(io::Error::new(
                io::ErrorKind::StorageFull,
                format!("the memory limit of {} pages is reached", self.page_limit),
            ));
        }
        pages.try_reserve(1).map_err(|_| {
            self.page_count.fetch_sub(1, Ordering::Relaxed);
            io::Error::from(io::ErrorKind::OutOfMemory)
        })
    }

    fn zero(&self, start: u64, end: u64) -> io::Result<()> {
        let unit = PAGE as u64;
        let (first_whole, past_whole) = (start.div_ceil(unit), end / unit);
        let (head, tail) = ((start % unit) as usize, (end % unit) as usize);
        if first_whole > past_whole {
            return self.zero_part(past_whole, head, tail);
        }
        if head != 0 {
            self.zero_part(first_whole - 1, head, PAGE)?;
        }
        self.free(first_whole, past_whole);
        if tail != 0 {
            self.zero_part(past_whole, 0, tail)?;
        }
        Ok(())
    }

    /// Zeroes a part of a page, and frees the page when that leaves nothing in it.
    fn zero_part(&self, index: u64, start: usize, end: usize) -> io::Result<()> {
        let mut pages = self.shard(index).0.write();
        let Some(page) = pages.get_mut(&index) else {
            return Ok(());
        };
        let page = own(page)?;
        if end >= page.len() {
            page.truncate(start);
        } else {
            page[start..end].fill(0);
        }
        if page.is_empty() {
            pages.remove(&index);
            self.page_count.fetch_sub(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Frees the pages `start..end`, in time bounded by the pages that exist, not by the range.
    fn free(&self, start: u64, end: u64) {
        if end - start < SHARDS {
            for index in start..end {
                let page = self.shard(index).0.write().remove(&index);
                self.forget(usize::from(page.is_some()));
            }
            return;
        }
        for (number, shard) in (0..SHARDS).zip(&self.shards) {
            let mut pages = shard.0.write();
            let before = pages.len();
            if (end - start) / SHARDS < before as u64 {
                let first = start + (number + SHARDS - start % SHARDS) % SHARDS;
                for index in (first..end).step_by(SHARDS as usize) {
                    pages.remove(&index);
                }
            } else {
                pages.retain(|index, _| !(start..end).contains(index));
            }
            self.forget(before - pages.len());
        }
    }

    fn forget(&self, pages: usize) {
        self.page_count.fetch_sub(pages as u64, Ordering::Relaxed);
    }

    /// Which pages of the range exist, in order; again in time bounded by both.
    fn present(&self, range: std::ops::Range<u64>) -> Box<dyn Iterator<Item = u64> + '_> {
        let exists = |index: &u64| self.shard(*index).0.read().contains_key(index);
        if range.end - range.start <= self.page_count.load(Ordering::Relaxed) {
            return Box::new(range.filter(exists));
        }
        let mut found = Vec::new();
        for shard in &self.shards {
            let pages = shard.0.read();
            found.extend(pages.keys().filter(|index| range.contains(index)));
        }
        found.sort_unstable();
        Box::new(found.into_iter())
    }
}

/// Appends an extent, or lengthens the last.
fn push_extent(extents: &mut Vec<Extent>, length: u64, content: Content) {
    match extents.last_mut() {
        _ if length == 0 => {}
        Some(last) if last.content == content => last.length += length,
        _ => extents.push(Extent { length, content }),
    }
}

fn load(page: &[u8], start: usize, target: &mut [u8]) {
    let written = page.get(start..).unwrap_or_default();
    let length = written.len().min(target.len());
    target[..length].copy_from_slice(&written[..length]);
    target[length..].fill(0);
}

/// The page, to be modified: a copy of its own, if a reply still shows it.
fn own(page: &mut Arc<Vec<u8>>) -> io::Result<&mut Vec<u8>> {
    if Arc::get_mut(page).is_none() {
        let mut copy = with_capacity(PAGE)?;
        copy.extend_from_slice(page);
        *page = Arc::new(copy);
    }
    // Nobody else can have found the copy: the index is locked.
    Arc::get_mut(page).ok_or_else(|| io::Error::other("the page is in use"))
}

/// Never reallocates: a page's capacity is `PAGE`.
fn store(page: &mut Vec<u8>, start: usize, data: &[u8]) {
    if start > page.len() {
        page.resize(start, 0);
    }
    let (inside, beyond) = data.split_at(data.len().min(page.len() - start));
    page[start..start + inside.len()].copy_from_slice(inside);
    page.extend_from_slice(beyond);
}

fn is_zero(data: &[u8]) -> bool {
    // In chunks, so that the loop without branches becomes vector code, and data that is not zero
    // is found out early.
    let mut chunks = data.chunks_exact(64);
    chunks.all(|chunk| chunk.iter().fold(0, |seen, byte| seen | byte) == 0)
        && data[data.len() - data.len() % 64..]
            .iter()
            .all(|&byte| byte == 0)
}

/// Mixes a page index by one multiplication. The seed differs between runs, since clients choose
/// the indices.
#[derive(Clone, Copy)]
pub(super) struct PageHasher {
    state: u64,
}

impl PageHasher {
    pub(super) fn new() -> Self {
        Self {
            state: RandomState::new().hash_one(0),
        }
    }
}

impl BuildHasher for PageHasher {
    type Hasher = Self;

    fn build_hasher(&self) -> Self {
        *self
    }
}

impl Hasher for PageHasher {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u64(&mut self, index: u64) {
        // The golden ratio: odd, and without pattern. Both halves of the product are needed, the
        // map takes its bucket from the low bits.
        let product = u128::from(self.state ^ index) * 0x9e37_79b9_7f4a_7c15;
        self.state = (product >> 64) as u64 ^ product as u64;
    }

    fn finish(&self) -> u64 {
        self.state
    }
}
