//! Blocks by their numbers: dense where they are used, nothing elsewhere.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

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

    pub(super) fn get_mut(&mut self, block: u64) -> Option<&mut Block> {
        self.pages.get_mut(&(block / PAGE))?.get_mut(place(block))
    }

    pub(super) fn get_or_add(&mut self, block: u64) -> Option<&mut Block> {
        let new = || (0..PAGE).map(|_| Block::default()).collect::<Vec<_>>();
        let page = self.pages.entry(block / PAGE);
        page.or_insert_with(|| new().into()).get_mut(place(block))
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

const fn place(block: u64) -> usize {
    // Less than PAGE.
    (block % PAGE) as usize
}
