//! The machine: handles, the commands and flushes that are under way on them, and crashes.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::ops::Range;

use super::kind::{Breach, Failure, Kind};
use super::storage::Storage;
use crate::flush::Backend;

/// A handle of a [`Model`]. It is never used again after its handle was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Handle(usize);

/// A command that is under way on a handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Call(u64);

/// A flush that is under way on a handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flushing(u64);

/// What a command is about. Numbers are blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Access {
    /// Reads, and caches what it has read.
    Read {
        /// Which blocks.
        blocks: Range<u64>,
    },
    /// Fills the cache, and returns nothing: as `CACHE` and `BLOCK_STATUS` may.
    Load {
        /// Which blocks.
        blocks: Range<u64>,
    },
    /// Writes the same content to all of the blocks.
    Write {
        /// Which blocks.
        blocks: Range<u64>,
        /// What is in them afterwards: 0 is zeroes, everything else is for the caller to choose,
        /// best differently for each write.
        content: u64,
        /// Whether it is to be on permanent storage when it [has ended](Model::finish); without
        /// effect where the kind has no [FUA](Kind::with_fua).
        fua: bool,
    },
}

impl Access {
    /// The blocks that it is about.
    #[must_use]
    pub const fn blocks(&self) -> &Range<u64> {
        match self {
            Self::Read { blocks } | Self::Load { blocks } | Self::Write { blocks, .. } => blocks,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Cached {
    content: u64,
    /// Nobody else has it.
    dirty: bool,
    /// When it was put in the cache; tells an older content from an equal newer one.
    stamp: u64,
}

#[derive(Clone, Debug)]
struct OpenHandle {
    cache: BTreeMap<u64, Cached>,
}

#[derive(Clone, Debug)]
struct Running {
    handle: Handle,
    access: Access,
    /// What it has read from storage before its end.
    fetched: BTreeMap<u64, u64>,
    /// Of a write: the blocks that it has written before its end.
    applied: Vec<u64>,
}

#[derive(Clone, Debug)]
struct RunningFlush {
    handle: Handle,
    /// What was cached when it began; what is written out otherwise meanwhile is not dirty any
    /// more.
    before: BTreeMap<u64, Cached>,
    /// The moment of storage when it began.
    began: u64,
}

/// A backend in memory, whose every freedom is for the caller to use. See the
/// [module](super).
///
/// Methods do nothing, and say so by `None` or `false`, where a handle is closed, a command or
/// flush has ended, or a block is not there. None panics, and nothing is left to chance or to a
/// clock: the same calls have the same effect.
#[derive(Clone, Debug)]
pub struct Model {
    kind: Kind,
    storage: Storage,
    /// By handle; `None` if closed.
    handles: Vec<Option<OpenHandle>>,
    calls: BTreeMap<u64, Running>,
    flushes: BTreeMap<u64, RunningFlush>,
    /// The next number of a command or flush, and of a content in a cache.
    next: u64,
}

/// # Handles
impl Model {
    /// A backend of that many blocks, full of zeroes, without handles.
    #[must_use]
    pub fn new(kind: Kind, blocks: u32) -> Self {
        Self {
            kind,
            storage: Storage::new(blocks, kind.volatile_storage()),
            handles: Vec::new(),
            calls: BTreeMap::new(),
            flushes: BTreeMap::new(),
            next: 0,
        }
    }

    /// What kind it is.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// What a coordinator is told of its handles.
    #[must_use]
    pub const fn description(&self) -> Backend {
        self.kind.description()
    }

    /// How many blocks it has.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.storage.len()
    }

    /// Opens a handle, which loads everything if that is its [kind](Kind::with_loads_on_open).
    pub fn open(&mut self) -> Handle {
        let mut cache = BTreeMap::new();
        if self.kind.loads_on_open() {
            for block in 0..self.blocks() {
                cache.insert(block, self.clean(self.storage.read(block)));
            }
        }
        self.handles.push(Some(OpenHandle { cache }));
        Handle(self.handles.len() - 1)
    }

    /// Closes a handle. What it has not written out is gone, and so are its commands and flushes
    /// under way. A backend that writes back when it is closed is one on which
    /// [`write_back`](Self::write_back) is called for every block before.
    pub fn close(&mut self, handle: Handle) -> bool {
        self.calls.retain(|_, call| call.handle != handle);
        self.flushes.retain(|_, flush| flush.handle != handle);
        let open = self.handles.get_mut(handle.0).and_then(Option::take);
        open.is_some()
    }

    fn open_handle(&mut self, handle: Handle) -> Option<&mut OpenHandle> {
        self.handles.get_mut(handle.0)?.as_mut()
    }

    fn clean(&self, content: u64) -> Cached {
        Cached {
            content,
            dirty: false,
            stamp: self.next,
        }
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

/// # Commands
///
/// A command may be held for any time between its begin and its end, also while flushes begin and
/// end.
impl Model {
    /// A command begins. `None` if the handle is closed, or there are no such blocks.
    #[must_use = "a command that is not ended is under way for ever"]
    pub fn begin(&mut self, handle: Handle, access: Access) -> Option<Call> {
        let fits = access.blocks().end <= self.blocks();
        if !fits || self.open_handle(handle).is_none() {
            return None;
        }
        let call = self.number();
        let running = Running {
            handle,
            access,
            fetched: BTreeMap::new(),
            applied: Vec::new(),
        };
        self.calls.insert(call, running);
        Some(Call(call))
    }

    /// A command reads a block from storage now, whether it is about that block or not, and leaves
    /// it in its handle's cache when it ends, if nothing else is there by then. What a command
    /// needs and has not fetched, it fetches when it ends.
    pub fn fetch(&mut self, call: Call, block: u64) -> bool {
        if block >= self.blocks() {
            return false;
        }
        let content = self.storage.read(block);
        match self.calls.get_mut(&call.0) {
            Some(running) => running.fetched.insert(block, content).is_none(),
            None => false,
        }
    }

    /// A write takes effect on one of its blocks before its end.
    pub fn apply(&mut self, call: Call, block: u64) -> bool {
        let Some(running) = self.calls.get(&call.0) else {
            return false;
        };
        let Access::Write {
            ref blocks,
            content,
            ..
        } = running.access
        else {
            return false;
        };
        if !blocks.contains(&block) || running.applied.contains(&block) {
            return false;
        }
        let handle = running.handle;
        let fetched = running.fetched.clone();
        self.write(handle, block, content, &fetched);
        if let Some(running) = self.calls.get_mut(&call.0) {
            running.applied.push(block);
        }
        true
    }

    /// A command takes effect, as far as it has not, and ends with success. Returns what a read
    /// has found, block by block, and nothing for others; `None` if it is not under way.
    pub fn finish(&mut self, call: Call) -> Option<Vec<u64>> {
        let running = self.calls.remove(&call.0)?;
        let Running {
            handle,
            access,
            fetched,
            applied,
        } = running;
        self.leave(handle, &fetched);
        match access {
            Access::Read { blocks } => Some(self.read(handle, blocks, &fetched)),
            Access::Load { blocks } => {
                self.read(handle, blocks, &fetched);
                Some(Vec::new())
            }
            Access::Write {
                blocks,
                content,
                fua,
            } => {
                for block in blocks.clone() {
                    if !applied.contains(&block) {
                        self.write(handle, block, content, &fetched);
                    }
                }
                if fua && self.kind.fua() {
                    self.force(handle, blocks);
                }
                Some(Vec::new())
            }
        }
    }

    /// A command ends with an error, and with no other effect than it [had](Self::apply) before.
    pub fn fail(&mut self, call: Call) -> bool {
        self.calls.remove(&call.0).is_some()
    }

    /// What a command has fetched stays in the cache, where nothing is.
    fn leave(&mut self, handle: Handle, fetched: &BTreeMap<u64, u64>) {
        if !self.kind.caches() {
            return;
        }
        for (&block, &content) in fetched {
            let clean = self.clean(content);
            if let Some(open) = self.open_handle(handle) {
                open.cache.entry(block).or_insert(clean);
            }
        }
    }

    fn read(
        &mut self,
        handle: Handle,
        blocks: Range<u64>,
        fetched: &BTreeMap<u64, u64>,
    ) -> Vec<u64> {
        if !self.kind.caches() {
            let early = |block| fetched.get(&block).copied();
            return blocks
                .map(|block| early(block).unwrap_or_else(|| self.storage.read(block)))
                .collect();
        }
        let wanted = blocks.clone();
        for block in self.granules(blocks) {
            self.load(handle, block, fetched);
        }
        let cache = self.open_handle(handle).map(|open| &open.cache);
        let content = |block| {
            cache
                .and_then(|cache| cache.get(&block))
                .map(|it| it.content)
        };
        wanted.map(|block| content(block).unwrap_or(0)).collect()
    }

    /// Has a block in the cache, if it was not.
    fn load(&mut self, handle: Handle, block: u64, fetched: &BTreeMap<u64, u64>) {
        let content = fetched.get(&block).copied();
        let clean = self.clean(content.unwrap_or_else(|| self.storage.read(block)));
        if let Some(open) = self.open_handle(handle) {
            open.cache.entry(block).or_insert(clean);
        }
    }

    fn write(&mut self, handle: Handle, block: u64, content: u64, fetched: &BTreeMap<u64, u64>) {
        if !self.kind.caches() {
            self.storage.put(handle.0, block, content);
            return;
        }
        for other in self.granules(block..block + 1) {
            if other != block {
                self.load(handle, other, fetched);
                self.merge(handle, other);
            }
        }
        self.dirty(handle, block, content);
    }

    fn dirty(&mut self, handle: Handle, block: u64, content: u64) {
        let stamp = self.number();
        if let Some(open) = self.open_handle(handle) {
            let cached = Cached {
                content,
                dirty: true,
                stamp,
            };
            open.cache.insert(block, cached);
        }
    }

    /// A block is to be written back because it shares a granule with one that was written. A
    /// flush that is running is going to drop what was cached before it, so that is not used.
    fn merge(&mut self, handle: Handle, block: u64) {
        let Some((content, false)) = self.cached(handle, block) else {
            return;
        };
        let flushed = self.flushes.values().any(|it| it.handle == handle);
        let content = if flushed {
            self.storage.read(block)
        } else {
            content
        };
        self.dirty(handle, block, content);
    }

    /// All blocks that the cache reads and writes back together with these.
    fn granules(&self, blocks: Range<u64>) -> Range<u64> {
        if blocks.is_empty() {
            return blocks;
        }
        let granule = u64::from(self.kind.granule());
        let start = blocks.start - blocks.start % granule;
        start..blocks.end.next_multiple_of(granule).min(self.blocks())
    }

    /// A command with FUA ends: what it wrote becomes permanent. In a cache of granules, that is
    /// the whole of them.
    fn force(&mut self, handle: Handle, blocks: Range<u64>) {
        let by = (!self.covers_all()).then_some(handle.0);
        for block in self.granules(blocks) {
            self.put_cached(handle, block);
            if self.kind.breach() != Breach::NotPermanent {
                let now = self.storage.now();
                self.storage.sync_block(block, by, now);
            }
        }
    }
}

/// # Flushes
impl Model {
    /// A flush begins. `None` if the handle is closed.
    #[must_use = "a flush that is not ended is under way for ever"]
    pub fn begin_flush(&mut self, handle: Handle) -> Option<Flushing> {
        let before = self.open_handle(handle)?.cache.clone();
        let flushing = self.number();
        let running = RunningFlush {
            handle,
            before,
            began: self.storage.now(),
        };
        self.flushes.insert(flushing, running);
        Some(Flushing(flushing))
    }

    /// A flush ends with success: what was cached when it began is written out, and is not cached
    /// any more, unless it was overwritten since. (Or none of that, see [`Breach`].)
    pub fn finish_flush(&mut self, flushing: Flushing) -> bool {
        let Some(running) = self.flushes.remove(&flushing.0) else {
            return false;
        };
        let RunningFlush {
            handle,
            before,
            began,
        } = running;
        if self.kind.breach() == Breach::FlushDoesNothing {
            return true;
        }
        let by = (!self.covers_all()).then_some(handle.0);
        for (block, old) in before {
            if old.dirty {
                self.storage.put(handle.0, block, old.content);
                self.written_out(handle, block, Some(flushing.0));
            }
            self.drop_flushed(handle, block, old);
            if self.kind.breach() != Breach::NotPermanent {
                // It may have been written back since the flush began.
                let now = self.storage.now();
                self.storage.sync_block(block, by, now);
            }
        }
        if self.kind.breach() != Breach::NotPermanent {
            self.storage.sync(by, began);
        }
        self.forget_fetched(handle, None);
        true
    }

    /// A flush ends with an error, and does to the data what the [kind](Kind::with_failure) says.
    /// A part of it may have been [written back](Self::write_back) before.
    pub fn fail_flush(&mut self, flushing: Flushing) -> bool {
        let Some(RunningFlush { handle, .. }) = self.flushes.remove(&flushing.0) else {
            return false;
        };
        let by = (!self.covers_all()).then_some(handle.0);
        let failure = self.kind.failure();
        match failure {
            Failure::Keeps => {}
            Failure::Drops => {
                self.storage.give_up(by, true);
                if let Some(open) = self.open_handle(handle) {
                    open.cache.clear();
                }
            }
            Failure::Forgets => {
                self.storage.give_up(by, false);
                if let Some(open) = self.open_handle(handle) {
                    open.cache.values_mut().for_each(|it| it.dirty = false);
                }
            }
        }
        if failure != Failure::Keeps {
            let same = |it: &&mut RunningFlush| it.handle == handle;
            for other in self.flushes.values_mut().filter(same) {
                other.before.values_mut().for_each(|it| it.dirty = false);
            }
        }
        self.forget_fetched(handle, None);
        true
    }

    /// Whether a flush of any handle covers all.
    const fn covers_all(&self) -> bool {
        !self.kind.caches()
    }

    /// A flush has written out a block as it was, or it was clean: it is not cached any more, unless
    /// it is newer.
    fn drop_flushed(&mut self, handle: Handle, block: u64, old: Cached) {
        let breach = self.kind.breach();
        let Some(open) = self.open_handle(handle) else {
            return;
        };
        let Some(cached) = open.cache.get_mut(&block) else {
            return;
        };
        if cached.stamp != old.stamp {
            return;
        }
        match breach {
            Breach::WritesAgain => {}
            Breach::KeepsOld => cached.dirty = false,
            _ => {
                open.cache.remove(&block);
            }
        }
    }

    /// Flushes of a handle that began before do not write a block once more, which would put what
    /// is older in the place of what is newer.
    fn written_out(&mut self, handle: Handle, block: u64, by: Option<u64>) {
        for (&number, flush) in &mut self.flushes {
            let earlier = by.is_none_or(|by| number < by);
            if flush.handle == handle
                && earlier
                && let Some(before) = flush.before.get_mut(&block)
            {
                before.dirty = false;
            }
        }
    }

    /// Commands in flight do not leave in the cache what they have fetched: of one block, or of
    /// all where the kind is such.
    fn forget_fetched(&mut self, handle: Handle, block: Option<u64>) {
        if block.is_none() && !self.kind.self_coherent() {
            return;
        }
        let same = |call: &&mut Running| call.handle == handle;
        for call in self.calls.values_mut().filter(same) {
            call.fetched
                .retain(|&at, _| block.is_some_and(|it| it != at));
        }
    }
}

/// # What caches do on their own
impl Model {
    /// A cache writes a block (and what is in its granule) to storage before anybody asks for it,
    /// and keeps it. False if there was nothing to write.
    pub fn write_back(&mut self, handle: Handle, block: u64) -> bool {
        if block >= self.blocks() {
            return false;
        }
        let mut any = false;
        for block in self.granules(block..block + 1) {
            any |= self.put_cached(handle, block);
        }
        any
    }

    /// A cache makes room: a block (and what is in its granule) is written to storage if it has to
    /// be, and is not cached any more. False if it was not cached.
    pub fn evict(&mut self, handle: Handle, block: u64) -> bool {
        if block >= self.blocks() {
            return false;
        }
        self.write_back(handle, block);
        let mut any = false;
        for block in self.granules(block..block + 1) {
            let open = self.open_handle(handle);
            any |= open.is_some_and(|open| open.cache.remove(&block).is_some());
            // A handle that went back to what a command has fetched before would not read what was
            // written through itself.
            self.forget_fetched(handle, Some(block));
        }
        any
    }

    /// Writes back a block that is dirty; whether it was.
    fn put_cached(&mut self, handle: Handle, block: u64) -> bool {
        let cached = self.open_handle(handle);
        let cached = cached.and_then(|open| open.cache.get_mut(&block));
        let Some(cached) = cached.filter(|it| it.dirty) else {
            return false;
        };
        cached.dirty = false;
        let content = cached.content;
        self.storage.put(handle.0, block, content);
        self.written_out(handle, block, None);
        true
    }
}

/// # What is where
impl Model {
    /// What a handle that has nothing cached would read.
    #[must_use]
    pub fn visible(&self, block: u64) -> u64 {
        self.storage.read(block)
    }

    /// What a handle has cached of a block, and whether it is still to be written out.
    #[must_use]
    pub fn cached(&self, handle: Handle, block: u64) -> Option<(u64, bool)> {
        let open = self.handles.get(handle.0)?.as_ref()?;
        open.cache.get(&block).map(|it| (it.content, it.dirty))
    }

    /// What is left of a block in a crash now: what is on permanent storage comes first, then
    /// everything that could have reached it just before, each once.
    #[must_use]
    pub fn survivors(&self, block: u64) -> Vec<u64> {
        let mut survivors = alloc::vec![self.storage.permanent(block)];
        let mut add = |content| {
            if !survivors.contains(&content) {
                survivors.push(content);
            }
        };
        self.storage.pending(block).for_each(&mut add);
        for open in self.handles.iter().flatten() {
            let dirty = open.cache.get(&block).filter(|it| it.dirty);
            dirty.into_iter().for_each(|it| add(it.content));
        }
        for flush in self.flushes.values() {
            let dirty = flush.before.get(&block).filter(|it| it.dirty);
            dirty.into_iter().for_each(|it| add(it.content));
        }
        for call in self.calls.values() {
            if let Access::Write {
                blocks, content, ..
            } = &call.access
                && blocks.contains(&block)
                && !call.applied.contains(&block)
            {
                add(*content);
            }
        }
        survivors
    }

    /// The backend crashes, or the power fails. For each block, `choose` is given its
    /// [survivors](Self::survivors) and returns the number of the one that is left (a number that
    /// is too large means the last). Returns the image that is left, from which the backend has
    /// started again: all handles are closed, commands and flushes are gone.
    pub fn crash(&mut self, mut choose: impl FnMut(u64, &[u64]) -> usize) -> Vec<u64> {
        let mut image = Vec::new();
        for block in 0..self.blocks() {
            let survivors = self.survivors(block);
            let chosen = choose(block, &survivors);
            let left = survivors.get(chosen).or(survivors.last());
            image.push(left.copied().unwrap_or(0));
        }
        self.calls.clear();
        self.flushes.clear();
        self.handles.iter_mut().for_each(|it| *it = None);
        self.storage.restart(&image);
        image
    }
}
