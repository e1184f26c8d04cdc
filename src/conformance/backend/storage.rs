//! What all handles share: storage, which may have a volatile cache of its own.

use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;

/// A content that was put on storage at some moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Version {
    content: u64,
    at: u64,
}

#[derive(Clone, Copy, Debug)]
struct Put {
    version: Version,
    /// The handle that has put it there.
    by: usize,
}

#[derive(Clone, Debug)]
pub(super) struct Storage {
    now: u64,
    visible: Vec<Version>,
    permanent: Vec<Version>,
    /// What is visible, or was, and is not permanent, by block and in order.
    pending: BTreeMap<u64, Vec<Put>>,
    volatile: bool,
}

fn index(block: u64) -> usize {
    // A block that no index can name is beyond the end of every image.
    usize::try_from(block).unwrap_or(usize::MAX)
}

fn latest(puts: &[Put], by: Option<usize>, until: u64) -> Option<Version> {
    let mut puts = puts.iter().rev();
    let latest = puts.find(|it| by.is_none_or(|by| by == it.by) && it.version.at <= until);
    latest.map(|it| it.version)
}

impl Storage {
    pub(super) fn new(blocks: u32, volatile: bool) -> Self {
        let blocks = vec![Version::default(); index(blocks.into())];
        Self {
            now: 0,
            visible: blocks.clone(),
            permanent: blocks,
            pending: BTreeMap::new(),
            volatile,
        }
    }

    pub(super) fn len(&self) -> u64 {
        u64::try_from(self.visible.len()).unwrap_or(u64::MAX)
    }

    /// The present moment; what is put later is put at a later one.
    pub(super) const fn now(&self) -> u64 {
        self.now
    }

    pub(super) fn read(&self, block: u64) -> u64 {
        let version = self.visible.get(index(block));
        version.map_or(0, |version| version.content)
    }

    pub(super) fn permanent(&self, block: u64) -> u64 {
        let version = self.permanent.get(index(block));
        version.map_or(0, |version| version.content)
    }

    pub(super) fn pending(&self, block: u64) -> impl Iterator<Item = u64> {
        let pending = self.pending.get(&block).into_iter().flatten();
        pending.map(|it| it.version.content)
    }

    pub(super) fn put(&mut self, by: usize, block: u64, content: u64) {
        self.now += 1;
        let at = self.now;
        let version = Version { content, at };
        if let Some(visible) = self.visible.get_mut(index(block)) {
            *visible = version;
        }
        if self.volatile {
            let put = Put { version, by };
            self.pending.entry(block).or_default().push(put);
        } else {
            self.make_permanent(block, version);
        }
    }

    /// Nothing that was put there before it comes back, in a crash or later.
    fn make_permanent(&mut self, block: u64, version: Version) {
        if let Some(permanent) = self.permanent.get_mut(index(block))
            && permanent.at < version.at
        {
            *permanent = version;
        }
        if let Some(pending) = self.pending.get_mut(&block) {
            pending.retain(|it| it.version.at > version.at);
            if pending.is_empty() {
                self.pending.remove(&block);
            }
        }
    }

    /// What was put until that moment, by one handle or by all, becomes permanent.
    pub(super) fn sync(&mut self, by: Option<usize>, until: u64) {
        for (block, version) in self.latest(by, until) {
            self.make_permanent(block, version);
        }
    }

    /// The same of one block.
    pub(super) fn sync_block(&mut self, block: u64, by: Option<usize>, until: u64) {
        let puts = self.pending.get(&block);
        if let Some(version) = puts.and_then(|puts| latest(puts, by, until)) {
            self.make_permanent(block, version);
        }
    }

    fn latest(&self, by: Option<usize>, until: u64) -> Vec<(u64, Version)> {
        let blocks = self.pending.iter();
        blocks
            .filter_map(|(&block, puts)| Some((block, latest(puts, by, until)?)))
            .collect()
    }

    /// What one handle, or all, have put there is not going to be permanent any more; `visibly` if
    /// reads find what was there before.
    pub(super) fn give_up(&mut self, by: Option<usize>, visibly: bool) {
        for (&block, puts) in &mut self.pending {
            puts.retain(|it| by.is_some_and(|by| by != it.by));
            let permanent = self.permanent.get(index(block)).copied();
            let left = puts.last().map(|it| it.version).or(permanent);
            if let (Some(visible), Some(left), true) =
                (self.visible.get_mut(index(block)), left, visibly)
            {
                *visible = left;
            }
        }
        self.pending.retain(|_, puts| !puts.is_empty());
    }

    /// After a crash: this is what is there.
    pub(super) fn restart(&mut self, image: &[u64]) {
        self.pending.clear();
        self.now += 1;
        let at = self.now;
        self.permanent = image
            .iter()
            .map(|&content| Version { content, at })
            .collect();
        self.visible.clone_from(&self.permanent);
    }
}
