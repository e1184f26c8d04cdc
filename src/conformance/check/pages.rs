//! Blocks by their numbers: dense where they are used, nothing elsewhere.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::ops::Range;

use super::block::Block;

/// Blocks of a page. A page is what one write anywhere in it makes us hold.
const PAGE: u64 = 256;

#[derive(Clone, Debug, Default)]
pub(super) struct Pages {
    pages: BTreeMap<u64, Box<[Block]>>,
}

impl Pages {
    pub(super) fn get(&self, block: u64) -> Option<&Block> {
        self.pages.get(&(block / PAGE))?.get(place(block))
    }

    /// The blocks of a range that lie in one page, unless nothing in it was written to.
    pub(super) fn get_mut(&mut self, part: Range<u64>) -> Option<&mut [Block]> {
        let page = self.pages.get_mut(&(part.start / PAGE))?;
        page.get_mut(places(part))
    }

    pub(super) fn get_or_add(&mut self, part: Range<u64>) -> Option<&mut [Block]> {
        let new = || (0..PAGE).map(|_| Block::default()).collect::<Vec<_>>();
        let page = self.pages.entry(part.start / PAGE);
        page.or_insert_with(|| new().into()).get_mut(places(part))
    }

    /// All blocks that there are.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (u64, &mut Block)> {
        let pages = self.pages.iter_mut();
        pages.flat_map(|(&page, blocks)| (page.saturating_mul(PAGE)..).zip(blocks.iter_mut()))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Block> {
        self.pages.values().flat_map(|it| it.iter())
    }
}

/// Parts a range of blocks where one page ends and another begins: a page is looked for once, not
/// once for each of its blocks.
pub(super) fn by_page(blocks: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let Range { mut start, end } = blocks;
    core::iter::from_fn(move || {
        let part = start..end.min((start / PAGE).saturating_add(1).saturating_mul(PAGE));
        start = part.end;
        (!part.is_empty()).then_some(part)
    })
}

const fn place(block: u64) -> usize {
    // Less than PAGE.
    (block % PAGE) as usize
}

/// Of a range that is in one page, and not empty.
const fn places(part: Range<u64>) -> Range<usize> {
    let start = place(part.start);
    start..start + (part.end - part.start) as usize
}
