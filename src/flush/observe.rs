//! What a coordinator has done so far, what is uncovered now, and why a flush would touch a handle.

use core::fmt;
use core::ops::AddAssign;

use super::clock::Stamp;
use super::command::Conn;
use super::config::{Grouping, TrackDirty};
use super::coordinator::FlushCoordinator;
use super::group::{Group, Path};
use super::member::{List, Member, Phase};
use super::overlap::is_live;
use super::slab::Key;
use crate::wire::Errno;

/// How often what has happened, since the coordinator (or the group) came to be. All of them only
/// grow.
///
/// `flushes` is what clients asked for and `backend_flushes` what that came to: their ratio is
/// what coalescing and tracking save.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Counters {
    /// Flushes that clients asked for, also by reads with FUA where these
    /// [mean a flush](super::FuaOnReads::Preflush). One that was not advertised is not counted.
    pub flushes: u64,
    /// Of these, answered at once, because no handle had to be flushed.
    pub skipped: u64,
    /// Of these, served by a round or a backend flush that others had asked for already.
    pub joined: u64,
    /// Of these, answered with an error because of what could not be written out.
    pub failed: u64,
    /// Rounds that were started: flushes of a whole group.
    pub rounds: u64,
    /// Flushes of backend handles that were started, for whatever reason.
    pub backend_flushes: u64,
    /// Of these, ended with an error.
    pub backend_failures: u64,
    /// Modifications that were executed.
    pub modifications: u64,
    /// Of these, on permanent storage: covered by a backend flush, executed with FUA by the
    /// backend, or through a handle that caches nothing.
    pub covered: u64,
    /// Of these, given up: their connection was released, or its handle lost, before a flush
    /// covered them. While emulating this means that data was lost, and that flushes failed.
    pub given_up: u64,
    /// Commands that had to wait for overlapping modifications through other handles.
    pub overlap_waits: u64,
}

impl Counters {
    pub(super) const fn new() -> Self {
        Self {
            flushes: 0,
            skipped: 0,
            joined: 0,
            failed: 0,
            rounds: 0,
            backend_flushes: 0,
            backend_failures: 0,
            modifications: 0,
            covered: 0,
            given_up: 0,
            overlap_waits: 0,
        }
    }
}

impl AddAssign for Counters {
    fn add_assign(&mut self, other: Self) {
        self.flushes += other.flushes;
        self.skipped += other.skipped;
        self.joined += other.joined;
        self.failed += other.failed;
        self.rounds += other.rounds;
        self.backend_flushes += other.backend_flushes;
        self.backend_failures += other.backend_failures;
        self.modifications += other.modifications;
        self.covered += other.covered;
        self.given_up += other.given_up;
        self.overlap_waits += other.overlap_waits;
    }
}

/// What the connections of a group have modified that no flush has covered yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Uncovered {
    /// Modifications that were executed.
    pub modifications: u64,
    /// How many separate ranges they make, with those that are executing. Known only where
    /// overlapping modifications are [kept in order](super::Overlap::OrderWrites).
    pub ranges: usize,
    /// How many bytes these ranges have: at least as many as were modified, because ranges are
    /// rounded out to [granules](super::Config::with_granule), and merge beyond the
    /// [cap](super::Config::with_max_ranges).
    pub bytes: u64,
    /// How many events of the coordinator ago the oldest of the modifications was executed, at
    /// most. An event is anything that the coordinator gives a place in its order of things:
    /// a command that begins, a modification that ends, a backend flush that begins or ends.
    pub age: u64,
}

/// What a flush, begun now with nothing else going on, would do to the handle of a connection,
/// and why. It prints as a sentence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Explanation {
    /// The connection was never opened, or is gone.
    Unknown,
    /// The handle is still being opened: it is flushed before its first command, if it has to be.
    Opening,
    /// The handle caches, but has no flush.
    CannotFlush,
    /// Nothing to write out, and nothing cached that is old.
    Clean,
    /// What the handle has cached is old, but it has served nobody: it is flushed before its next
    /// command, not while a client waits for its flush.
    Gated,
    /// Written out: no flush has covered so many modifications.
    WriteOut {
        /// How many modifications.
        modifications: u64,
        /// How many events ago the oldest of them was executed, at most.
        age: u64,
    },
    /// Flushed to drop what was loaded before another connection's data reached storage.
    Invalidate,
    /// As [`Invalidate`](Self::Invalidate), once the flush has written out other handles.
    InvalidateAfterOthers,
    /// Flushed without need, because of the level of tracking.
    EveryHandle,
    /// The cache is common to all handles, and so many modifications in it are uncovered. The
    /// handle of the connection whose client asks is flushed, for all.
    Shared {
        /// How many modifications, of all connections.
        modifications: u64,
    },
}

impl Explanation {
    /// Whether the handle is flushed while the client that asked waits. Where connections are on
    /// their own, or share a cache, this is about the flush of their own client.
    #[must_use]
    pub const fn touches(&self) -> bool {
        matches!(
            self,
            Self::WriteOut { .. }
                | Self::Invalidate
                | Self::InvalidateAfterOthers
                | Self::EveryHandle
                | Self::Shared { .. }
        )
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::WriteOut { modifications, age } => {
                return write!(
                    f,
                    "flushed: {modifications} modifications are not covered, the oldest for {age} \
                     events"
                );
            }
            Self::Shared { modifications } => {
                return write!(
                    f,
                    "flushed for all connections: {modifications} modifications are not covered"
                );
            }
            Self::Unknown => "not flushed: no such connection",
            Self::Opening => "not flushed: still being opened",
            Self::CannotFlush => "not flushed: it has no flush",
            Self::Clean => "not flushed: nothing to write out, nothing old in its cache",
            Self::Gated => "not flushed now, but before its next command: its cache is old",
            Self::Invalidate => "flushed: its cache may be older than another connection's data",
            Self::InvalidateAfterOthers => {
                "flushed, once others are written out: its cache is then older than their data"
            }
            Self::EveryHandle => "flushed without need, for the level of tracking",
        })
    }
}

/// Modifications of one handle, or of one shared cache, that no flush has covered.
#[derive(Clone, Copy, Debug, Default)]
#[cfg_attr(test, derive(PartialEq, Eq, Hash))]
pub(super) struct Pile {
    /// How many, ever.
    count: u64,
    /// How many of these are covered, or given up.
    settled: u64,
    /// When the oldest uncovered one was executed, or a little earlier.
    since: Stamp,
}

impl Pile {
    pub(super) const fn add(&mut self, now: Stamp) {
        if self.count == self.settled {
            self.since = now;
        }
        self.count += 1;
    }

    pub(super) const fn count(&self) -> u64 {
        self.count
    }

    pub(super) const fn uncovered(&self) -> u64 {
        self.count - self.settled
    }

    /// A flush has covered the first `count`, and started at `start`. Returns how many of them no
    /// other had.
    pub(super) fn cover(&mut self, count: u64, start: Stamp) -> u64 {
        let more = count.min(self.count).saturating_sub(self.settled);
        self.settled += more;
        self.since = self.since.max(start);
        more
    }

    /// Returns how many were uncovered.
    pub(super) const fn give_up(&mut self) -> u64 {
        let uncovered = self.uncovered();
        self.settled = self.count;
        uncovered
    }
}

impl<C: Clone, E: Ord + Clone, T> FlushCoordinator<C, E, T> {
    /// What has happened on all connections together, those that are gone too. Takes time in
    /// proportion to the groups.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let mut all = self.forgotten;
        for (_, group) in self.groups.iter() {
            all += group.counters;
        }
        all
    }

    /// What has happened in the group of an export, since its first connection was opened; `None`
    /// if there is no such group (any more).
    #[must_use]
    pub fn group_counters(&self, export: &E) -> Option<Counters> {
        self.known_group(export).map(|(_, group)| group.counters)
    }

    /// What the connections of an export's group have not written out; `None` if there is no such
    /// group (any more). Takes time in proportion to what is uncovered: it is for people who
    /// look, not for the path of a command.
    #[must_use]
    pub fn uncovered(&self, export: &E) -> Option<Uncovered> {
        let (_, group) = self.known_group(export)?;
        let mut found = Uncovered::default();
        let mut since = None;
        let mut pile = |pile: &Pile| {
            if pile.uncovered() > 0 {
                found.modifications += pile.uncovered();
                since = since.into_iter().chain([pile.since]).min();
            }
        };
        pile(&group.shared);
        for at in 0..group.list(List::Dirty).len() {
            pile(&group.pile(at));
        }
        for (range, segment) in group.ranges.iter() {
            if is_live(&self.members, segment) {
                found.ranges += 1;
                found.bytes = found.bytes.saturating_add(range.end - range.start);
            }
        }
        found.age = since.map_or(0, |since| self.clock.since(since));
        Some(found)
    }

    /// Why a client's flush, if it came now, would flush the handle of this connection, or why
    /// not.
    #[must_use]
    pub fn explain(&self, conn: Conn) -> Explanation {
        let Some(member) = self.members.get(conn.0) else {
            return Explanation::Unknown;
        };
        let Some(group) = self.groups.get(member.group) else {
            return Explanation::Unknown;
        };
        if member.phase == Phase::Opening {
            return Explanation::Opening;
        }
        if member.backend.cannot_flush() {
            return Explanation::CannotFlush;
        }
        match self.path(group) {
            Path::Emulate => self.explain_in_round(conn.0, member, group),
            // Another handle is flushed for it.
            Path::CoversAll if !member.backend.flush() => Explanation::Clean,
            Path::CoversAll => self.explain_shared(group),
            Path::Own => self.explain_own(conn.0, member, group),
        }
    }

    /// Why a flush by any connection of the group could not succeed, whatever the backend
    /// answers: something has failed before, and is not forgiven (see
    /// [`AfterFailure`](super::AfterFailure)). `None` if it could, or if there is no such
    /// connection.
    #[must_use]
    pub fn standing_failure(&self, conn: Conn) -> Option<Errno> {
        let group = self.members.get(conn.0)?.group;
        self.verdict(group, conn.0, None).err()
    }

    fn known_group(&self, export: &E) -> Option<(Key, &Group<E, T>)> {
        let key = match self.config.grouping() {
            Grouping::All => self.everyone,
            Grouping::ByExport => self.by_export.get(export).copied(),
        }?;
        Some((key, self.groups.get(key)?))
    }

    fn write_out_of(&self, member: &Member<C, T>, group: &Group<E, T>) -> Explanation {
        let pile = match member.place(List::Dirty) {
            Some(at) if !group.covers_all() => group.pile(at),
            _ => group.shared,
        };
        Explanation::WriteOut {
            modifications: pile.uncovered(),
            age: self.clock.since(pile.since),
        }
    }

    fn explain_in_round(
        &self,
        key: Key,
        member: &Member<C, T>,
        group: &Group<E, T>,
    ) -> Explanation {
        if self.is_uncovered(key) {
            return self.write_out_of(member, group);
        }
        if member.phase != Phase::Serving || !member.backend.flush() {
            return Explanation::Clean;
        }
        // It is clean itself, so that whoever is dirty is another.
        let dirty = group
            .listed(List::Dirty, &self.members)
            .any(|other| self.is_uncovered(other));
        let comes = dirty || self.has_stale(group) || self.config.track_dirty() == TrackDirty::Off;
        if comes && self.visits_everyone() {
            return Explanation::EveryHandle;
        }
        let loaded = member.oldest_load.happened();
        if loaded && (dirty || self.is_stale(key)) {
            return if member.gate().happened() || member.is_unused() {
                Explanation::Gated
            } else if self.is_stale(key) {
                Explanation::Invalidate
            } else {
                Explanation::InvalidateAfterOthers
            };
        }
        Explanation::Clean
    }

    fn explain_shared(&self, group: &Group<E, T>) -> Explanation {
        if group.last_mod > group.covered_all {
            let modifications = group.shared.uncovered();
            Explanation::Shared { modifications }
        } else if self.config.track_dirty() == TrackDirty::Off {
            Explanation::EveryHandle
        } else {
            Explanation::Clean
        }
    }

    fn explain_own(&self, key: Key, member: &Member<C, T>, group: &Group<E, T>) -> Explanation {
        if !member.backend.flush() {
            Explanation::Clean
        } else if self.is_uncovered(key) {
            self.write_out_of(member, group)
        } else if self.is_stale(key) {
            Explanation::Invalidate
        } else if self.config.track_dirty() == TrackDirty::Off {
            Explanation::EveryHandle
        } else {
            Explanation::Clean
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pile_knows_what_is_uncovered_and_since_when() {
        let at = Stamp::from_raw;
        let mut pile = Pile::default();
        pile.add(at(3));
        pile.add(at(5));
        assert_eq!((pile.count(), pile.uncovered(), pile.since), (2, 2, at(3)));
        // A flush that began after the first.
        assert_eq!(pile.cover(1, at(4)), 1);
        assert_eq!((pile.uncovered(), pile.since), (1, at(4)));
        assert_eq!(pile.cover(1, at(6)), 0);
        assert_eq!(pile.give_up(), 1);
        assert_eq!((pile.uncovered(), pile.give_up()), (0, 0));
        pile.add(at(9));
        assert_eq!((pile.count(), pile.uncovered(), pile.since), (3, 1, at(9)));
    }
}
