//! A write-back cache per connection over any other backend.
//!
//! This is the kind of storage for which flush emulation exists: what one connection writes is
//! invisible to the others until it is flushed, and what one has read it goes on seeing until it is
//! flushed itself. One flush does not cover all connections, so `multi_conn` is not claimed.
//!
//! * Modifications go to the cache alone and are tracked to the byte: only bytes that were written
//!   through a handle are ever written back by it, so neighbours within a block never disturb each
//!   other.
//! * Reads see the handle's own modifications over whole blocks of [`BLOCK`] bytes, which are loaded
//!   from below and kept.
//! * Zeroes and trims of any length are remembered as ranges.
//! * Memory is bounded: above the limit, first loaded blocks are dropped, then modifications are
//!   written back early, which is always allowed.
//!
//! # Failures
//!
//! A flush that fails leaves everything it should have covered in the cache, and the next one tries
//! all of it again, also what had been written back before the flush below failed: the lower
//! backend may have dropped it. Only what was written back early is not here any more. If the next
//! flush below fails after that, those bytes may be gone, and all later flushes of the handle fail
//! rather than claim otherwise.
//!
//! Dropping a handle drops what it did not write back, as a power failure would: whoever releases
//! a handle flushes it before, and looks at the result.

mod contents;

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::{Mutex, MutexGuard};

use super::ranges::{RangeMap, Run};
use super::{
    Backend, Capabilities, Content, Extent, Handle, Pace, Zeroing, anything, buffer_within,
    end_within, parts, read_only_error, with_capacity, zeroed,
};
use contents::{BLOCK, Contents, Dirty, New};

/// The least limit, in bytes: below, a write in pieces would make no progress.
const LEAST_LIMIT: usize = 64 * 1024;

/// The most bytes read or written below at once: calls on the same handle wait for a write-back.
const PIECE: usize = 256 * 1024;

/// The most bytes zeroed below at once, unless that made more than [`ZERO_PIECES`].
const ZERO_PIECE: u64 = 1 << 30;

/// The most pieces in which a range of zeroes is written back, however long it is.
const ZERO_PIECES: u64 = 1024;

/// Gives each connection a cache of its own over one backend.
pub(crate) struct CachedBackend {
    lower: Arc<dyn Backend>,
    limits: Arc<Limits>,
}

/// How much memory each handle may take.
struct Limits {
    each: usize,
    all: usize,
    handles: AtomicUsize,
}

impl Limits {
    /// With many handles, each has its share. A handle that had more gives it back when it is used
    /// the next time.
    fn now(&self) -> usize {
        let share = self.all / self.handles.load(Ordering::Relaxed).max(1);
        share.clamp(LEAST_LIMIT, self.each)
    }
}

impl CachedBackend {
    /// Each handle holds `limit` bytes for itself.
    #[cfg(test)]
    pub(crate) fn new(lower: Arc<dyn Backend>, limit: usize) -> Self {
        Self::within(lower, limit, usize::MAX)
    }

    /// At most `limit` bytes are held per handle, bookkeeping included, and no more than its share
    /// of `all`; at least 64 KiB.
    pub(crate) fn within(lower: Arc<dyn Backend>, limit: usize, all: usize) -> Self {
        Self {
            lower,
            limits: Arc::new(Limits {
                each: limit.max(LEAST_LIMIT),
                all,
                handles: AtomicUsize::new(0),
            }),
        }
    }

    pub(super) fn open_cached(&self) -> io::Result<Arc<CachedHandle>> {
        let capabilities = self.lower.capabilities();
        let lower = self.lower.open()?;
        self.limits.handles.fetch_add(1, Ordering::Relaxed);
        Ok(Arc::new(CachedHandle {
            lower,
            size: self.lower.size(),
            read_only: capabilities.read_only,
            limits: Arc::clone(&self.limits),
            flushing: Mutex::new(()),
            state: Mutex::new(State {
                contents: Contents::new(self.lower.size()),
                spill_from: 0,
                spilled: false,
                lost: false,
            }),
        }))
    }
}

impl Backend for CachedBackend {
    fn size(&self) -> u64 {
        self.lower.size()
    }

    fn capabilities(&self) -> Capabilities {
        let lower = self.lower.capabilities();
        Capabilities {
            // Here FUA is a write and a flush of the whole handle: the caller can do that itself.
            fua: false,
            multi_conn: false,
            write_zeroes: true,
            // Remembering a range is always faster than copying it.
            fast_zero: true,
            cache: true,
            preferred_block: lower.preferred_block.max(BLOCK as u32),
            ..lower
        }
    }

    fn open(&self) -> io::Result<Arc<dyn Handle>> {
        Ok(self.open_cached()?)
    }
}

pub(super) struct CachedHandle {
    lower: Arc<dyn Handle>,
    size: u64,
    read_only: bool,
    limits: Arc<Limits>,
    /// Held during a flush: a second one must not take what the first has written, but not made
    /// stable, for its own success.
    flushing: Mutex<()>,
    /// Locked while a piece is written back, so that nothing changes under it; not while blocks
    /// are loaded, nor during the flush below.
    state: Mutex<State>,
}

impl Drop for CachedHandle {
    fn drop(&mut self) {
        self.limits.handles.fetch_sub(1, Ordering::Relaxed);
    }
}

struct State {
    contents: Contents,
    /// Where the search for what to write back early goes on, so that all parts have their turn.
    spill_from: u64,
    /// Something was written back early, and the lower backend was not flushed since.
    spilled: bool,
    /// A flush below failed after that.
    lost: bool,
}

/// Whether a call may wait for the lower backend or for another thread.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Patience {
    Wait,
    Now,
}

impl Handle for CachedHandle {
    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.read_within(offset, buf, Patience::Wait).map(drop)
    }

    fn try_read(&self, offset: u64, buf: &mut [u8]) -> io::Result<bool> {
        self.read_within(offset, buf, Patience::Now)
    }

    fn write(&self, offset: u64, data: &[u8], fua: bool) -> io::Result<()> {
        self.check_writable()?;
        buffer_within(self.size, offset, data)?;
        for part in parts(offset, data.len(), self.modest_piece()) {
            let at = offset + part.range.start as u64;
            let data = &data[part.range];
            let mut state = self.state.lock();
            self.make_room(&mut state, Contents::most_cost(data.len()))?;
            state.contents.store(at, data)?;
        }
        self.flush_if(fua)
    }

    fn write_zeroes(&self, offset: u64, length: u64, how: Zeroing) -> io::Result<()> {
        let new = if how.may_trim { New::Hole } else { New::Zero };
        self.zero(offset, length, new, how.fua)
    }

    fn trim(&self, offset: u64, length: u64, fua: bool) -> io::Result<()> {
        self.zero(offset, length, New::Hole, fua)
    }

    fn cache(&self, offset: u64, length: u64) -> io::Result<()> {
        let end = end_within(self.size, offset, length)?;
        // Loading more would push out what was loaded first.
        let loaded = length.min(self.limits.now() as u64 / 2);
        let mut scratch = zeroed(loaded.min(PIECE as u64) as usize)?;
        let mut position = offset;
        while position < offset + loaded {
            let take = (offset + loaded - position).min(PIECE as u64);
            self.read(position, &mut scratch[..take as usize])?;
            position += take;
        }
        self.lower.cache(position, end - position)
    }

    fn flush(&self) -> io::Result<()> {
        let _turn = self.flushing.lock();
        for range in self.begin_flush()? {
            if let Err(error) = self.write_back(range) {
                self.state.lock().contents.mark_all_unwritten();
                return Err(error);
            }
        }
        // Taken before the flush below starts: what is written back early from now on may have
        // come too late for it.
        let spilled = std::mem::take(&mut self.state.lock().spilled);
        let flushed = self.lower.flush();
        let mut state = self.state.lock();
        if flushed.is_ok() {
            state.contents.forget_written();
        } else {
            state.contents.mark_all_unwritten();
            state.lost |= spilled || state.spilled;
        }
        flushed
    }

    fn pace(&self) -> Pace {
        Pace::Buffered
    }

    fn extents(&self, offset: u64, length: u64, limit: usize) -> io::Result<Vec<Extent>> {
        let range_end = end_within(self.size, offset, length)?;
        let generation = self.state.lock().contents.generation();
        let below = self.lower.extents(offset, length, limit)?;
        let mut map = RangeMap::new();
        let mut end = offset;
        for extent in below {
            let start = end;
            // What is cached beyond the range is not looked at.
            end = start.saturating_add(extent.length).min(range_end);
            map.insert(start, end, extent.content);
        }
        let state = self.state.lock();
        if state.contents.generation() != generation {
            // What was dirty then may be below by now, where it was not yet looked for.
            return Ok(anything(length, limit));
        }
        let end = state.contents.draw(offset, end, limit, &mut map);
        drop(state);
        map.remove(end, range_end);
        let extent = |run: Run<Content>| Extent {
            length: run.end - run.start,
            content: run.value,
        };
        Ok(map.iter().map(extent).take(limit).collect())
    }

    /// Without asking below how far data goes.
    fn is_hole(&self, offset: u64, length: u64) -> io::Result<bool> {
        let end = end_within(self.size, offset, length)?;
        // As if there were nothing below.
        let mut map = RangeMap::new();
        map.insert(offset, end, Content::Hole);
        let generation = {
            let state = self.state.lock();
            if state.contents.draw(offset, end, 1, &mut map) < end {
                return Ok(false);
            }
            state.contents.generation()
        };
        let is_all = |content| map.iter().all(|run: Run<Content>| run.value == content);
        if is_all(Content::Zero) {
            return Ok(true);
        }
        let is_data = |run: Run<Content>| run.value == Content::Data;
        if map.iter().any(is_data) || !self.lower.is_hole(offset, length)? {
            return Ok(false);
        }
        // What was dirty then may be below by now.
        Ok(self.state.lock().contents.generation() == generation)
    }
}

impl CachedHandle {
    /// Bytes of memory held.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.state.lock().contents.cost()
    }

    /// In bytes: what fits under the limit beside what must stay.
    fn modest_piece(&self) -> usize {
        (self.limits.now() / 4 / BLOCK * BLOCK).min(PIECE)
    }

    fn check_writable(&self) -> io::Result<()> {
        // The lower handle would say so too, but only when the cache is flushed.
        if self.read_only {
            return Err(read_only_error());
        }
        Ok(())
    }

    fn flush_if(&self, fua: bool) -> io::Result<()> {
        if fua { self.flush() } else { Ok(()) }
    }

    fn zero(&self, offset: u64, length: u64, new: New, fua: bool) -> io::Result<()> {
        self.check_writable()?;
        let end = end_within(self.size, offset, length)?;
        let mut state = self.state.lock();
        self.make_room(&mut state, Contents::most_cost(0))?;
        state.contents.zero(offset, end, new);
        drop(state);
        self.flush_if(fua)
    }

    fn lock(&self, patience: Patience) -> Option<MutexGuard<'_, State>> {
        match patience {
            Patience::Wait => Some(self.state.lock()),
            Patience::Now => self.state.try_lock(),
        }
    }

    /// `Ok(false)`: it needed patience.
    fn read_within(&self, offset: u64, buf: &mut [u8], patience: Patience) -> io::Result<bool> {
        buffer_within(self.size, offset, buf)?;
        for part in parts(offset, buf.len(), PIECE) {
            let at = offset + part.range.start as u64;
            if !self.read_piece(at, &mut buf[part.range], patience)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Takes what the cache has and loads the blocks in which something is missing.
    ///
    /// The cache is not locked while loading. So what is loaded serves only for the bytes that were
    /// missing before: all of this handle's completed modifications of those had been written back
    /// by then. It is kept only if nothing has left the cache in the meantime, for then a block
    /// loaded before would hide what was written back, or outlive a flush.
    fn read_piece(&self, offset: u64, buf: &mut [u8], patience: Patience) -> io::Result<bool> {
        let mut gaps = Vec::new();
        let generation = {
            let Some(mut state) = self.lock(patience) else {
                return Ok(false);
            };
            state.contents.view(offset, buf, &mut gaps);
            state.contents.generation()
        };
        let mut gaps = &gaps[..];
        while let Some(blocks) = self.blocks_of_first(gaps) {
            let count = gaps.partition_point(|gap| gap.start < blocks.end);
            let (here, rest) = gaps.split_at(count);
            gaps = rest;
            let mut loaded = zeroed((blocks.end - blocks.start) as usize)?;
            match patience {
                Patience::Wait => self.lower.read(blocks.start, &mut loaded)?,
                Patience::Now if self.lower.try_read(blocks.start, &mut loaded)? => {}
                Patience::Now => return Ok(false),
            }
            for gap in here {
                let source = (gap.start - blocks.start) as usize..(gap.end - blocks.start) as usize;
                let target = (gap.start - offset) as usize..(gap.end - offset) as usize;
                buf[target].copy_from_slice(&loaded[source]);
            }
            if let Some(mut state) = self.lock(patience)
                && state.contents.generation() == generation
            {
                state
                    .contents
                    .keep(blocks.start, &loaded, self.limits.now());
            }
        }
        Ok(true)
    }

    /// The blocks of the first gap, and of those that follow without a whole block between.
    fn blocks_of_first(&self, gaps: &[Range<u64>]) -> Option<Range<u64>> {
        let unit = BLOCK as u64;
        let block_end = |position: u64| position.next_multiple_of(unit).min(self.size);
        let (first, rest) = gaps.split_first()?;
        let mut end = block_end(first.end);
        for gap in rest {
            if gap.start / unit * unit > end {
                break;
            }
            end = block_end(gap.end);
        }
        Some(first.start / unit * unit..end)
    }

    /// Makes the contents cost at most the limit less `need`.
    fn make_room(&self, state: &mut State, need: usize) -> io::Result<()> {
        let limit = self.limits.now();
        let most = limit.saturating_sub(need);
        state.contents.evict(most);
        if state.contents.cost() <= most {
            return Ok(());
        }
        // Somewhat more than needed, so that not each call from now on writes back a little.
        let enough = most.min(limit / 4 * 3);
        while state.contents.cost() > enough {
            let Some(run) = state.contents.next_dirty(state.spill_from) else {
                state.contents.drop_clean();
                break;
            };
            let run = clip(run, self.modest_piece());
            if !run.value.written {
                self.write_run(&state.contents, run)?;
            }
            // Also what a running flush has written: should the flush below fail, it is as lost.
            state.contents.forget(run.start, run.end);
            state.spilled = true;
            state.spill_from = run.end;
        }
        Ok(())
    }

    /// Drops what is clean, and says what this flush must write back.
    ///
    /// The list is fixed here: what is modified later is not chased, or a steady writer could keep
    /// the flush from ending.
    fn begin_flush(&self) -> io::Result<Vec<Range<u64>>> {
        let mut state = self.state.lock();
        if state.lost {
            return Err(io::Error::other(
                "writes may have been lost when an earlier flush failed: \
                 connect again and compare the data",
            ));
        }
        state.contents.drop_clean();
        let mut list = Vec::new();
        list.try_reserve_exact(state.contents.dirty_runs())
            .map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        list.extend(state.contents.dirty().map(|run| run.start..run.end));
        Ok(list)
    }

    /// Writes back what is still dirty of the range. It stays in the cache, marked as written.
    fn write_back(&self, mut range: Range<u64>) -> io::Result<()> {
        loop {
            let mut state = self.state.lock();
            let Some(run) = state.contents.next_unwritten(range.clone()) else {
                return Ok(());
            };
            let run = clip(run, PIECE);
            self.write_run(&state.contents, run)?;
            state.contents.mark_written(run);
            range.start = run.end;
        }
    }

    fn write_run(&self, contents: &Contents, run: Run<Dirty>) -> io::Result<()> {
        let length = run.end - run.start;
        let how = Zeroing {
            may_trim: run.value.new == New::Hole,
            ..Zeroing::default()
        };
        if run.value.new != New::Bytes {
            return self.lower.write_zeroes(run.start, length, how);
        }
        // Clipped to PIECE.
        let length = length as usize;
        let mut pieces = contents.bytes(run.start, length);
        let first = pieces.next().unwrap_or_default();
        if first.len() == length {
            return self.lower.write(run.start, first, false);
        }
        let mut buffer = with_capacity(length)?;
        buffer.extend_from_slice(first);
        pieces.for_each(|piece| buffer.extend_from_slice(piece));
        self.lower.write(run.start, &buffer, false)
    }
}

/// The first part of a run, short enough to be written while others wait.
fn clip(run: Run<Dirty>, most_bytes: usize) -> Run<Dirty> {
    let length = run.end - run.start;
    let most = match run.value.new {
        New::Bytes => most_bytes as u64,
        New::Zero | New::Hole => ZERO_PIECE.max(length / ZERO_PIECES),
    };
    Run {
        end: run.start + length.min(most),
        ..run
    }
}
