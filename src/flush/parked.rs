//! Commands that wait because of what they must not overtake: in the order of their arrival, and
//! found by where they are, so that one client whose commands wait does not slow down the others.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use super::command::Command;
use super::order::Range;
use super::slab::Key;
use super::waiting::{Index, LAST, Place};

/// A command that waits because of what it must not overtake.
#[derive(Clone, Debug)]
#[cfg_attr(test, derive(PartialEq, Eq, Hash))]
pub(super) struct Parked<T> {
    pub(super) member: Key,
    pub(super) range: Range,
    pub(super) command: Command,
    pub(super) tag: T,
}

/// All those of a group.
#[derive(Clone, Debug)]
#[cfg_attr(test, derive(PartialEq, Eq, Hash))]
pub(super) struct ParkedQueue<T> {
    parked: BTreeMap<Place, Parked<T>>,
    next: Place,
    by_member: BTreeSet<(Key, Place)>,
    ranges: Index,
}

impl<T> ParkedQueue<T> {
    pub(super) const fn new() -> Self {
        Self {
            parked: BTreeMap::new(),
            next: 0,
            by_member: BTreeSet::new(),
            ranges: Index::new(),
        }
    }

    /// The same, as if nobody had ever waited who does not wait now.
    #[cfg(test)]
    pub(super) fn renumber(&mut self) {
        let parked = core::mem::replace(self, Self::new()).parked;
        parked.into_values().for_each(|parked| self.push(parked));
    }

    pub(super) fn push(&mut self, parked: Parked<T>) {
        let place = self.next;
        // At a billion a second it would take centuries to wrap.
        self.next += 1;
        self.by_member.insert((parked.member, place));
        self.ranges.insert(parked.range, place);
        self.parked.insert(place, parked);
    }

    pub(super) fn remove(&mut self, place: Place) -> Option<Parked<T>> {
        let parked = self.parked.remove(&place)?;
        self.by_member.remove(&(parked.member, place));
        self.ranges.remove(parked.range, place);
        Some(parked)
    }

    /// Removes those of a member, in the order of their arrival.
    pub(super) fn take_of(&mut self, member: Key) -> Vec<Parked<T>> {
        let of_member = self.by_member.range((member, 0)..=(member, LAST));
        let places: Vec<Place> = of_member.map(|&(_, place)| place).collect();
        let taken = places.into_iter().filter_map(|place| self.remove(place));
        taken.collect()
    }

    pub(super) fn get(&self, place: Place) -> Option<&Parked<T>> {
        self.parked.get(&place)
    }

    pub(super) fn places(&self) -> impl Iterator<Item = Place> {
        self.parked.keys().copied()
    }

    /// The first one of a member from this place on.
    pub(super) fn next_of(&self, member: Key, from: Place) -> Option<Place> {
        let of_member = self.by_member.range((member, from)..=(member, LAST));
        of_member.map(|&(_, place)| place).next()
    }

    /// Those that overlap with `range`, in no particular order.
    pub(super) fn over(&self, range: Range) -> impl Iterator<Item = Place> {
        self.ranges.over(range)
    }

    /// Whether one that came before `before` overlaps with `range`.
    pub(super) fn is_behind(&self, range: Range, before: Place) -> bool {
        self.over(range).any(|place| place < before)
    }
}
