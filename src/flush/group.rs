//! Connections that share data: what the group as a whole has to remember.

use alloc::vec::Vec;

use super::acknowledge::Unsettled;
use super::clock::Stamp;
use super::command::Command;
use super::member::List;
use super::observe::{Counters, Pile};
use super::order::{Range, Ranges};
use super::slab::{Index, Key, Slab, grow};
use super::waiting::Waiting;
use crate::wire::Errno;

/// A client that waits for a flush.
#[derive(Clone, Debug)]
#[cfg_attr(test, derive(PartialEq, Eq, Hash))]
pub(super) struct Waiter<T> {
    pub(super) member: Key,
    pub(super) tag: T,
    /// What is to be executed after it, instead of an answer.
    pub(super) then: Option<Command>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(test, derive(Hash))]
pub(super) enum Step {
    /// Every handle with uncovered modifications is written out, all at once.
    WriteOut,
    /// Every handle that may hold data from before the barrier is flushed once more.
    Invalidate,
}

/// A flush of the whole group, on behalf of one or more clients.
#[derive(Clone, Debug)]
#[cfg_attr(test, derive(PartialEq, Eq, Hash))]
pub(super) struct Round<T> {
    /// It covers what completed before.
    pub(super) start: Stamp,
    pub(super) step: Step,
    /// Handles that have not answered in this step.
    pub(super) remaining: u32,
    pub(super) failed: Option<Errno>,
    pub(super) waiters: Vec<Waiter<T>>,
}

/// A modification that waits until others' overlapping ones are written out.
#[derive(Clone, Debug)]
#[cfg_attr(test, derive(PartialEq, Eq, Hash))]
pub(super) struct OrderWait<T> {
    pub(super) member: Key,
    pub(super) range: Range,
    /// It waits for its handle to drop what it has cached.
    pub(super) loads_anew: bool,
    /// It need not be looked at before modifications that overlap with this have ended, or a
    /// flush has.
    pub(super) until: Range,
    pub(super) command: Command,
    pub(super) tag: T,
}

/// When data last became visible in storage, and through whose handle.
///
/// Two entries are enough to know, for any handle, when another one last wrote something out.
#[derive(Clone, Copy, Debug, Default)]
#[cfg_attr(test, derive(PartialEq, Eq, Hash))]
pub(super) struct WriteOuts {
    latest: Option<(Stamp, Key)>,
    by_another: Stamp,
}

impl WriteOuts {
    pub(super) fn note(&mut self, by: Key, now: Stamp) {
        if let Some((before, whose)) = self.latest
            && whose != by
        {
            self.by_another = before;
        }
        self.latest = Some((now, by));
    }

    /// The latest one by anybody.
    pub(super) fn latest(&self) -> Stamp {
        self.latest.map_or(Stamp::NEVER, |(stamp, _)| stamp)
    }

    /// The latest one by somebody else.
    pub(super) fn latest_not_by(&self, member: Key) -> Stamp {
        match self.latest {
            Some((_, whose)) if whose == member => self.by_another,
            _ => self.latest(),
        }
    }
}

/// How a client's flush is carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Path {
    /// By rounds over all handles.
    Emulate,
    /// On one handle, which covers all.
    CoversAll,
    /// On the handle of the connection, for that connection.
    Own,
}

#[derive(Clone, Debug)]
#[cfg_attr(test, derive(PartialEq, Eq, Hash))]
pub(super) struct Group<E, T> {
    /// The export whose connections these are, if they are grouped by export.
    pub(super) export: Option<E>,
    /// All of them, those that may have something to write out, and those that may have
    /// something cached.
    lists: [Vec<Index>; 3],
    /// What those that may have something to write out have modified, in the order of their list.
    piles: Vec<Pile>,
    /// What all have modified, where their cache is a shared one.
    pub(super) shared: Pile,
    pub(super) counters: Counters,
    /// How many are open, and of these how many are writable, and how many cache but cannot
    /// flush.
    pub(super) open: u32,
    pub(super) writable: u32,
    pub(super) cannot_flush: u32,
    /// Whether their backends have multi-conn; `None` if none is open, and nothing is left of
    /// those that were.
    pub(super) multi_conn: Option<bool>,
    /// Whether any of them could flush.
    pub(super) flush: bool,
    /// When the latest modification of any member completed that has to be covered by a flush.
    pub(super) last_mod: Stamp,
    /// When the latest modification of any member completed.
    pub(super) last_change: Stamp,
    /// What completed before is covered, on whatever handle, by a flush that covers all.
    pub(super) covered_all: Stamp,
    pub(super) write_outs: WriteOuts,
    /// There was a write-out since nobody was last found to hold something stale.
    pub(super) maybe_stale: bool,
    /// Under the sticky policy: why every flush fails.
    pub(super) failed: Option<Errno>,
    /// When a flush last failed.
    pub(super) failed_at: Stamp,
    /// A client has been told of `failed`, since it last happened.
    pub(super) failed_reported: bool,
    /// Under the retry policy: data was lost, at that time, and no client has been told yet.
    pub(super) lost: Option<(Errno, Stamp)>,
    pub(super) round: Option<Round<T>>,
    /// Flushes that the running round does not cover.
    pub(super) waiting: Vec<Waiter<T>>,
    /// Why these fail, if data was lost that they have to cover.
    pub(super) waiting_failed: Option<Errno>,
    pub(super) ranges: Ranges,
    /// At most so many of these belonged to members that are gone.
    pub(super) orphans: u32,
    pub(super) order_waiting: Waiting<T>,
    /// What others must not overtake.
    pub(super) unsettled: Unsettled<T>,
}

impl<E, T> Group<E, T> {
    pub(super) fn new(export: Option<E>) -> Self {
        Self {
            export,
            lists: [const { Vec::new() }; 3],
            piles: Vec::new(),
            shared: Pile::default(),
            counters: Counters::default(),
            open: 0,
            writable: 0,
            cannot_flush: 0,
            multi_conn: None,
            flush: false,
            last_change: Stamp::NEVER,
            last_mod: Stamp::NEVER,
            covered_all: Stamp::NEVER,
            write_outs: WriteOuts::default(),
            maybe_stale: false,
            failed: None,
            failed_at: Stamp::NEVER,
            failed_reported: false,
            lost: None,
            round: None,
            waiting: Vec::new(),
            waiting_failed: None,
            ranges: Ranges::default(),
            orphans: 0,
            order_waiting: Waiting::new(),
            unsettled: Unsettled::new(),
        }
    }

    /// Those of the group's members that are on the list.
    pub(super) fn listed<V>(
        &self,
        list: List,
        members: &Slab<V>,
    ) -> impl DoubleEndedIterator<Item = Key> {
        let listed = self.list(list).iter();
        listed.filter_map(|&index| members.key_at(index))
    }

    pub(super) fn list(&self, list: List) -> &[Index] {
        let [members, dirty, loaded] = &self.lists;
        match list {
            List::Members => members,
            List::Dirty => dirty,
            List::Loaded => loaded,
        }
    }

    /// Puts a member at the end of a list, and returns its place there.
    pub(super) fn enlist(&mut self, list: List, member: Index) -> usize {
        if list == List::Dirty {
            grow(&mut self.piles);
            self.piles.push(Pile::default());
        }
        let listed = self.list_mut(list);
        grow(listed);
        listed.push(member);
        listed.len() - 1
    }

    /// Takes the member at this place off a list, and returns the one that stands there now.
    pub(super) fn delist(&mut self, list: List, at: usize) -> Option<Index> {
        if list == List::Dirty {
            let pile = self.piles.swap_remove(at);
            self.counters.given_up += pile.uncovered();
        }
        let listed = self.list_mut(list);
        listed.swap_remove(at);
        listed.get(at).copied()
    }

    /// What the member has modified that stands at this place of the list of dirty ones.
    pub(super) fn pile(&self, at: usize) -> Pile {
        self.piles.get(at).copied().unwrap_or_default()
    }

    /// A modification has gone into a cache: the one that all share, or that of the member at
    /// this place of the list of dirty ones.
    pub(super) fn modified(&mut self, at: Option<usize>, now: Stamp) {
        self.counters.modifications += 1;
        if self.covers_all() {
            self.shared.add(now);
        } else if let Some(pile) = at.and_then(|at| self.piles.get_mut(at)) {
            pile.add(now);
        }
    }

    /// How many modifications have gone into that cache.
    pub(super) fn count(&self, at: Option<usize>) -> u64 {
        if self.covers_all() {
            self.shared.count()
        } else {
            at.map_or(0, |at| self.pile(at).count())
        }
    }

    /// A flush that started at `start` has covered the first `count` of them.
    pub(super) fn cover(&mut self, at: Option<usize>, count: u64, start: Stamp) {
        let pile = if self.covers_all() {
            Some(&mut self.shared)
        } else {
            at.and_then(|at| self.piles.get_mut(at))
        };
        self.counters.covered += pile.map_or(0, |pile| pile.cover(count, start));
    }

    /// What has not been covered never will be.
    pub(super) fn give_up(&mut self) {
        self.covered_all = self.last_mod;
        self.counters.given_up += self.shared.give_up();
    }

    fn list_mut(&mut self, list: List) -> &mut Vec<Index> {
        let [members, dirty, loaded] = &mut self.lists;
        match list {
            List::Members => members,
            List::Dirty => dirty,
            List::Loaded => loaded,
        }
    }

    /// One flush, on any handle, covers what completed on all.
    pub(super) fn covers_all(&self) -> bool {
        self.multi_conn == Some(true)
    }

    #[cfg(test)]
    pub(super) fn each_stamp(&mut self, visit: &mut dyn FnMut(&mut Stamp)) {
        let Self {
            export: _,
            lists: _,
            piles,
            shared,
            counters,
            open: _,
            writable: _,
            cannot_flush: _,
            multi_conn: _,
            flush: _,
            last_mod,
            last_change,
            covered_all,
            write_outs: WriteOuts { latest, by_another },
            maybe_stale: _,
            failed: _,
            failed_at,
            failed_reported: _,
            lost,
            round,
            waiting: _,
            waiting_failed: _,
            ranges,
            orphans: _,
            order_waiting,
            unsettled,
        } = self;
        // What is counted decides nothing.
        piles.fill(Pile::default());
        *shared = Pile::default();
        *counters = Counters::default();
        order_waiting.renumber();
        unsettled.each_stamp(visit);
        for stamp in [last_mod, last_change, covered_all, by_another, failed_at] {
            visit(stamp);
        }
        latest.iter_mut().for_each(|(at, _)| visit(at));
        lost.iter_mut().for_each(|(_, at)| visit(at));
        round.iter_mut().for_each(|round| visit(&mut round.start));
        ranges.each_stamp(visit);
    }

    /// Whether it can be forgotten: nobody is in it, and nobody has to be told anything.
    pub(super) fn is_forgettable(&self) -> bool {
        self.list(List::Members).is_empty()
            && self.failed.is_none()
            && self.lost.is_none()
            && self.last_mod <= self.covered_all
    }
}

#[cfg(test)]
mod tests {
    use super::super::slab::Slab;
    use super::*;

    #[test]
    fn write_outs_by_others_are_known_for_every_member() {
        let mut slab = Slab::new();
        let (a, b, c) = (slab.insert(()), slab.insert(()), slab.insert(()));
        let at = Stamp::from_raw;
        let mut outs = WriteOuts::default();
        assert_eq!(outs.latest_not_by(a), Stamp::NEVER);
        outs.note(a, at(1));
        assert_eq!(
            (outs.latest_not_by(a), outs.latest_not_by(b)),
            (Stamp::NEVER, at(1))
        );
        outs.note(a, at(2));
        outs.note(b, at(3));
        outs.note(b, at(4));
        assert_eq!(outs.latest_not_by(a), at(4));
        assert_eq!(outs.latest_not_by(b), at(2));
        assert_eq!(outs.latest_not_by(c), at(4));
        assert_eq!(outs.latest(), at(4));
    }

    #[test]
    fn a_group_is_forgettable_when_nobody_is_left_who_has_to_know_anything() {
        let at = Stamp::from_raw;
        let known: [fn(&mut Group<u8, u8>); 4] = [
            |group| {
                group.enlist(List::Members, Slab::new().insert(()).index());
            },
            |group| group.failed = Some(Errno::EIO),
            |group| group.lost = Some((Errno::EIO, Stamp::from_raw(1))),
            |group| group.last_mod = Stamp::from_raw(2),
        ];
        for (number, know) in known.into_iter().enumerate() {
            let mut group = Group::new(None);
            group.covered_all = at(1);
            assert!(group.is_forgettable());
            know(&mut group);
            assert!(!group.is_forgettable(), "{number}");
        }
        let mut covered = Group::<u8, u8>::new(None);
        (covered.last_mod, covered.covered_all) = (at(2), at(2));
        assert!(covered.is_forgettable());
    }
}
