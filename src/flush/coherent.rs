//! Loads that are coherent with what others have modified, without any flush by a client.
//!
//! Under [`Overlap::Coherent`] a command that loads (reads, caches, asks for the block status)
//! waits until others' modifications in its range are written out, and until its own handle has
//! dropped what may be older. It has no range of its own that others would have to wait for when
//! it executes; but while it waits, later modifications in its range wait behind it, or a steady
//! writer would never let it begin. Loads never wait behind anybody: they are in nobody's way.
//!
//! Whether a handle has to drop something is known for the handle, not for ranges of it. Ranges
//! would save little: what a round or FUA writes out is followed by the invalidation of whoever
//! has loaded, so that a handle is found stale here only after a write-out that overlapping
//! commands, or a leaving connection, have forced.

use alloc::vec::Vec;

use super::command::Command;
use super::config::Overlap;
use super::coordinator::FlushCoordinator;
use super::group::{OrderWait, Path};
use super::member::Member;
use super::order::{Range, Segment};
use super::overlap::{Turn, is_live};
use super::slab::Key;
use super::waiting::Place;
use crate::wire::Errno;

impl<T> OrderWait<T> {
    pub(super) fn is_load(&self) -> bool {
        !self.command.kind.is_modification()
    }
}

impl<C: Clone, E: Ord + Clone, T> FlushCoordinator<C, E, T> {
    /// Whether others' modifications matter for when a command is executed.
    pub(super) fn has_order(&self, command: Command) -> bool {
        match self.config.overlap() {
            Overlap::OrderWrites => command.kind.is_modification(),
            Overlap::Coherent => true,
            Overlap::Ignore => false,
        }
    }

    /// Decides when a load through the handle `key` may be executed.
    pub(super) fn turn_to_load(&self, key: Key, command: Command) -> Turn {
        let range = Range::of(command.offset, command.length, self.config.granule());
        let group_key = self.members.get(key).map(|member| member.group);
        let (Some(range), Some(group_key)) = (range, group_key) else {
            return Turn::Now(None);
        };
        let path = self.groups.get(group_key).map(|group| self.path(group));
        if path != Some(Path::Emulate) {
            return Turn::Now(None);
        }
        if self.others_modify(group_key, key, range) {
            let until = range;
            return Turn::Later { range, until };
        }
        if self.is_stale(key) {
            return Turn::LoadAnew { range };
        }
        Turn::Now(None)
    }

    /// Whether another handle has modifications in `range` that are in flight or uncovered.
    pub(super) fn others_modify(&self, group: Key, key: Key, range: Range) -> bool {
        self.groups.get(group).is_some_and(|group| {
            let mut segments = group.ranges.over(range).map(|(_, segment)| segment);
            segments.any(|it| it.owner != key && is_live(&self.members, it))
        })
    }

    /// Whether a command must not be executed before its handle has dropped what it has cached.
    pub(super) fn must_load_anew(&self, key: Key, load: bool) -> bool {
        (load || self.config.granule() > 1) && self.is_stale(key)
    }

    /// Whether the flush that runs on a handle leaves nothing stale if it succeeds, with what has
    /// begun until now.
    pub(super) fn is_being_refreshed(&self, key: Key) -> bool {
        let running = self.members.get(key).and_then(Member::flush_running);
        running.is_some_and(|running| {
            let kept = running.kept();
            kept.is_none_or(|loaded| loaded >= self.written_beside(key))
        })
    }

    /// A handle is lost, and with it what it had not written out. Loads that waited for that must
    /// not find what is older, as if nothing had happened.
    pub(super) fn fail_loads(&mut self, group_key: Key, owner: Key, why: Errno) {
        let covered = self.members.get(owner).map(|owner| owner.covered);
        let (Some(group), Some(covered)) = (self.groups.get(group_key), covered) else {
            return;
        };
        let lost = |wait: &OrderWait<T>| {
            let mut segments = group.ranges.over(wait.range).map(|(_, segment)| segment);
            let lost = |it: &Segment| it.owner == owner && it.last.happened() && it.last >= covered;
            wait.is_load() && wait.member != owner && segments.any(lost)
        };
        let waiting = group.order_waiting.iter();
        let failed = waiting.filter(|(_, wait)| lost(wait));
        let failed: Vec<Place> = failed.map(|(place, _)| place).collect();
        self.fail_waiting(group_key, failed, why);
    }
}
