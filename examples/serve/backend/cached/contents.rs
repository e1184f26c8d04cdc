//! What one cache holds. Does no I/O.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::mem::size_of;
use std::ops::Range;

use super::super::memory::PageHasher;
use super::super::ranges::{RangeMap, Run};
use super::super::{Content, Part, parts, with_capacity, zeroed};

/// The unit in which data is loaded and held, in bytes.
pub(super) const BLOCK: usize = 4096;

/// A block with its entries in the index and in the queue.
const BLOCK_COST: usize = BLOCK + size_of::<Block>() + 32;

/// A range in the map, with the map's own bookkeeping.
const RANGE_COST: usize = 64;

/// The fewest dirty ranges that are looked at for extents.
const LEAST_DRAWN: usize = 64;

/// Cached blocks, and what of them (and beyond them) was modified.
///
/// Invariants: each byte that is dirty as [`New::Bytes`] has its block; a complete block holds this
/// handle's whole view of it, dirty zeroes included.
pub(super) struct Contents {
    size: u64,
    blocks: HashMap<u64, Block, PageHasher>,
    dirty: RangeMap<Dirty>,
    /// Blocks in the order of loading, for eviction; may name blocks that are gone.
    loaded: VecDeque<u64>,
    generation: u64,
}

#[derive(Debug)]
struct Block {
    /// As long as a block; shorter only at the end of the export.
    data: Vec<u8>,
    /// All bytes are known, not only those that are dirty.
    complete: bool,
    /// Read since it was considered for eviction.
    used: bool,
}

/// A modification that the lower handle has not made stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Dirty {
    pub(super) new: New,
    /// It was written back by a flush that is not done yet.
    pub(super) written: bool,
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum New {
    /// What the block holds.
    Bytes,
    /// Zeroes.
    Zero,
    /// Zeroes that may become a hole.
    Hole,
}

impl Contents {
    pub(super) fn new(size: u64) -> Self {
        Self {
            size,
            blocks: HashMap::with_hasher(PageHasher::new()),
            dirty: RangeMap::new(),
            loaded: VecDeque::new(),
            generation: 0,
        }
    }

    /// About the memory in use, in bytes.
    pub(super) fn cost(&self) -> usize {
        self.blocks.len() * BLOCK_COST
            + self.dirty.len() * RANGE_COST
            + self.loaded.len().saturating_sub(self.blocks.len()) * size_of::<u64>()
    }

    /// The most that storing or zeroing can add: in blocks, and ranges that split others.
    pub(super) fn most_cost(length: usize) -> usize {
        let blocks = if length == 0 { 0 } else { length / BLOCK + 2 };
        blocks * BLOCK_COST + 2 * RANGE_COST
    }

    /// Changes whenever something dirty leaves, or all that is clean.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// Copies what is known into `buf` and appends the ranges that are not, in order.
    pub(super) fn view(&mut self, offset: u64, buf: &mut [u8], gaps: &mut Vec<Range<u64>>) {
        for part in parts(offset, buf.len(), BLOCK) {
            let target = &mut buf[part.range.clone()];
            if let Some(block) = self.blocks.get_mut(&part.index)
                && block.complete
            {
                block.used = true;
                target.copy_from_slice(&block.data[part.start..part.start + target.len()]);
                continue;
            }
            self.view_modified(&part, target, gaps);
        }
    }

    fn view_modified(&self, part: &Part, target: &mut [u8], gaps: &mut Vec<Range<u64>>) {
        let block = self.blocks.get(&part.index);
        let block_start = part.index * BLOCK as u64;
        let start = block_start + part.start as u64;
        let end = start + target.len() as u64;
        let mut position = start;
        for run in self.dirty.overlapping(start, end) {
            push_gap(gaps, position..run.start);
            let here = &mut target[within(start, run.start, run.end)];
            match block {
                Some(block) if run.value.new == New::Bytes => {
                    here.copy_from_slice(&block.data[within(block_start, run.start, run.end)]);
                }
                _ => here.fill(0),
            }
            position = run.end;
        }
        push_gap(gaps, position..end);
    }

    /// Notes modified bytes. After an error nothing has changed.
    pub(super) fn store(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        // First all the memory, then the changes.
        for part in parts(offset, data.len(), BLOCK) {
            if !self.blocks.contains_key(&part.index) {
                self.add_empty_block(part.index)?;
            }
        }
        for part in parts(offset, data.len(), BLOCK) {
            let Some(block) = self.blocks.get_mut(&part.index) else {
                continue;
            };
            let length = part.range.len();
            block.data[part.start..part.start + length].copy_from_slice(&data[part.range]);
            block.complete |= length == block.data.len();
        }
        let dirty = Dirty {
            new: New::Bytes,
            written: false,
        };
        self.dirty.insert(offset, offset + data.len() as u64, dirty);
        Ok(())
    }

    fn add_empty_block(&mut self, index: u64) -> io::Result<()> {
        self.blocks
            .try_reserve(1)
            .map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        let block = Block {
            data: zeroed(self.block_length(index))?,
            complete: false,
            used: false,
        };
        self.blocks.insert(index, block);
        Ok(())
    }

    fn block_length(&self, index: u64) -> usize {
        (self.size - index * BLOCK as u64).min(BLOCK as u64) as usize
    }

    /// Notes zeroes, without memory by their length.
    pub(super) fn zero(&mut self, start: u64, end: u64, new: New) {
        let dirty = Dirty {
            new,
            written: false,
        };
        self.dirty.insert(start, end, dirty);
        self.visit_blocks(start, end, |dirty, index, block| {
            let block_start = index * BLOCK as u64;
            let block_end = block_start + block.data.len() as u64;
            let (from, to) = (start.max(block_start), end.min(block_end));
            block.data[within(block_start, from, to)].fill(0);
            // What is only zeroes now needs no block to hold them.
            (from, to) != (block_start, block_end)
                && (block.complete || has_bytes(dirty, block_start, block_end))
        });
    }

    /// Keeps blocks that were loaded, under what is dirty of them, as far as the limit allows.
    pub(super) fn keep(&mut self, offset: u64, loaded: &[u8], limit: usize) {
        let room = limit.saturating_sub(BLOCK_COST + size_of::<u64>());
        for part in parts(offset, loaded.len(), BLOCK) {
            self.evict(room);
            // Without memory for a copy the read itself still succeeds.
            if self.cost() > room || self.keep_block(part.index, &loaded[part.range]).is_err() {
                break;
            }
        }
        self.compact_queue();
    }

    fn keep_block(&mut self, index: u64, loaded: &[u8]) -> io::Result<()> {
        if !self.blocks.contains_key(&index) {
            self.add_empty_block(index)?;
        }
        let Some(block) = self.blocks.get_mut(&index) else {
            return Ok(());
        };
        if block.complete {
            return Ok(());
        }
        let mut data = with_capacity(loaded.len())?;
        data.extend_from_slice(loaded);
        let start = index * BLOCK as u64;
        for run in self.dirty.overlapping(start, start + loaded.len() as u64) {
            let range = within(start, run.start, run.end);
            match run.value.new {
                New::Bytes => data[range.clone()].copy_from_slice(&block.data[range]),
                New::Zero | New::Hole => data[range].fill(0),
            }
        }
        block.data = data;
        block.complete = true;
        self.loaded.push_back(index);
        Ok(())
    }

    /// The queue names blocks that went otherwise, or came again: not so many that they matter.
    fn compact_queue(&mut self) {
        if self.loaded.len() > 2 * self.blocks.len() + 64 {
            let blocks = &self.blocks;
            let mut seen = HashSet::with_hasher(PageHasher::new());
            self.loaded
                .retain(|index| blocks.contains_key(index) && seen.insert(*index));
        }
    }

    /// Drops clean blocks, the longest loaded and unread first, until the cost is at most `most`
    /// or there are none.
    pub(super) fn evict(&mut self, most: usize) {
        let mut second_chances = self.loaded.len();
        while self.cost() > most {
            let Some(index) = self.loaded.pop_front() else {
                return;
            };
            let Some(block) = self.blocks.get_mut(&index) else {
                continue;
            };
            if block.used && second_chances > 0 {
                second_chances -= 1;
                block.used = false;
                self.loaded.push_back(index);
                continue;
            }
            let start = index * BLOCK as u64;
            if !has_bytes(&self.dirty, start, start + block.data.len() as u64) {
                self.blocks.remove(&index);
            }
        }
    }

    /// Drops all that is not dirty.
    pub(super) fn drop_clean(&mut self) {
        self.unload(0, self.size);
        self.loaded.clear();
        self.generation += 1;
    }

    /// Takes what is dirty in the range out, and with it all that is clean in its blocks: that was
    /// loaded before, or was dirty until now, and both are older than what may follow.
    pub(super) fn forget(&mut self, start: u64, end: u64) {
        self.dirty.remove(start, end);
        self.unload(start, end);
        self.generation += 1;
    }

    /// Leaves of the range's blocks only what is dirty.
    fn unload(&mut self, start: u64, end: u64) {
        self.visit_blocks(start, end, |dirty, index, block| {
            let block_start = index * BLOCK as u64;
            let block_end = block_start + block.data.len() as u64;
            block.complete = dirty
                .covering(block_start, block_end)
                .is_some_and(|dirty| dirty.new == New::Bytes);
            block.complete || has_bytes(dirty, block_start, block_end)
        });
    }

    /// Calls `stays` with each block that the range touches, and drops those that do not; in time
    /// bounded by the blocks that exist, not by the range.
    fn visit_blocks(
        &mut self,
        start: u64,
        end: u64,
        mut stays: impl FnMut(&RangeMap<Dirty>, u64, &mut Block) -> bool,
    ) {
        if start >= end {
            return;
        }
        let Self { blocks, dirty, .. } = self;
        let range = start / BLOCK as u64..end.div_ceil(BLOCK as u64);
        if range.end - range.start > blocks.len() as u64 {
            blocks.retain(|&index, block| !range.contains(&index) || stays(dirty, index, block));
            return;
        }
        for index in range {
            if let Some(block) = blocks.get_mut(&index)
                && !stays(dirty, index, block)
            {
                blocks.remove(&index);
            }
        }
    }

    pub(super) fn dirty_runs(&self) -> usize {
        self.dirty.len()
    }

    /// All that is dirty, in order.
    pub(super) fn dirty(&self) -> impl Iterator<Item = Run<Dirty>> {
        self.dirty.iter()
    }

    /// Something dirty: the first from `from` on, or from the beginning.
    pub(super) fn next_dirty(&self, from: u64) -> Option<Run<Dirty>> {
        let after = self.dirty.overlapping(from, u64::MAX).next();
        after.or_else(|| self.dirty.iter().next())
    }

    /// The first in the range that was not written back.
    pub(super) fn next_unwritten(&self, range: Range<u64>) -> Option<Run<Dirty>> {
        self.dirty
            .overlapping(range.start, range.end)
            .find(|run| !run.value.written)
    }

    pub(super) fn mark_written(&mut self, run: Run<Dirty>) {
        let written = Dirty {
            written: true,
            ..run.value
        };
        self.dirty.insert(run.start, run.end, written);
    }

    /// What was written back may not have arrived: all of it is to be written again.
    pub(super) fn mark_all_unwritten(&mut self) {
        let mut all = RangeMap::new();
        for run in self.dirty.iter() {
            let unwritten = Dirty {
                written: false,
                ..run.value
            };
            all.insert(run.start, run.end, unwritten);
        }
        self.dirty = all;
    }

    /// What was written back is stable: it leaves the cache, but for what was modified since.
    pub(super) fn forget_written(&mut self) {
        let written: Vec<_> = self.dirty.iter().filter(|run| run.value.written).collect();
        // First all ranges, then the blocks: a block may have many ranges.
        for run in &written {
            self.dirty.remove(run.start, run.end);
        }
        for run in &written {
            self.unload(run.start, run.end);
        }
        self.generation += 1;
    }

    /// The bytes of a range that is dirty as [`New::Bytes`], block by block.
    pub(super) fn bytes(&self, offset: u64, length: usize) -> impl Iterator<Item = &[u8]> {
        parts(offset, length, BLOCK).filter_map(|part| {
            let block = self.blocks.get(&part.index)?;
            block.data.get(part.start..part.start + part.range.len())
        })
    }

    /// Draws what is cached over what is known of the lower backend, up to an end that it returns:
    /// not so far that it takes much longer than is worth it for `extents` extents.
    pub(super) fn draw(
        &self,
        start: u64,
        end: u64,
        extents: usize,
        map: &mut RangeMap<Content>,
    ) -> u64 {
        if start >= end {
            return end;
        }
        // Runs that were dirtied differently may be one extent: some more than are wanted.
        let most = extents.saturating_mul(4).max(LEAST_DRAWN);
        let beyond = self.dirty.overlapping(start, end).nth(most);
        let end = beyond.map_or(end, |run| run.start);
        let unit = BLOCK as u64;
        let mut draw_block = |index: u64, block: &Block| {
            let block_start = index * unit;
            let block_end = block_start + block.data.len() as u64;
            if block.complete && block_start < end && block_end > start {
                map.insert(block_start.max(start), block_end.min(end), Content::Data);
            }
        };
        let range = start / unit..end.div_ceil(unit);
        if range.end - range.start > self.blocks.len() as u64 {
            self.blocks
                .iter()
                .for_each(|(&index, block)| draw_block(index, block));
        } else {
            for index in range {
                if let Some(block) = self.blocks.get(&index) {
                    draw_block(index, block);
                }
            }
        }
        for run in self.dirty.overlapping(start, end) {
            let content = match run.value.new {
                New::Bytes => Content::Data,
                // It may become a hole, but it is not known to be one.
                New::Zero | New::Hole => Content::Zero,
            };
            map.insert(run.start, run.end, content);
        }
        end
    }
}

fn has_bytes(dirty: &RangeMap<Dirty>, start: u64, end: u64) -> bool {
    dirty
        .overlapping(start, end)
        .any(|run| run.value.new == New::Bytes)
}

/// A range of positions as indices of a buffer that begins at `base`.
fn within(base: u64, start: u64, end: u64) -> Range<usize> {
    (start - base) as usize..(end - base) as usize
}

fn push_gap(gaps: &mut Vec<Range<u64>>, gap: Range<u64>) {
    match gaps.last_mut() {
        _ if gap.is_empty() => {}
        Some(last) if last.end == gap.start => last.end = gap.end,
        _ => gaps.push(gap),
    }
}
