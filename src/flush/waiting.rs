//! Commands that wait for others' modifications: in the order of their arrival, and found by where
//! they are.
//!
//! Anybody's modification has to know whether somebody waits in its range. Looking at all that
//! wait would let one client slow down all others, so that ranges are indexed: a range belongs to
//! the one address in it that is divisible by the highest power of two (its node). What overlaps
//! with a range of interest either has its node in it, or its node is one of at most 64 addresses
//! to the left, and as many to the right, that are known from the range of interest alone: those
//! are looked up. (It is the interval tree over all addresses, of which only what is in use exists.)

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use super::group::OrderWait;
use super::order::Range;
use super::slab::Key;

/// Which of the commands that wait: the smaller, the longer it has waited.
pub(super) type Place = u64;

/// After all that wait.
pub(super) const LAST: Place = Place::MAX;

/// Ranges, by where they are.
#[derive(Clone, Debug)]
#[cfg_attr(test, derive(PartialEq, Eq, Hash))]
pub(super) struct Index {
    /// Node, first address, and whose it is.
    by_first: BTreeSet<(u64, u64, Place)>,
    /// Node, last address, and whose it is.
    by_last: BTreeSet<(u64, u64, Place)>,
    /// How many ranges of each level there are.
    levels: [u32; 64],
}

/// The first and the last address of a range.
const fn ends(range: Range) -> (u64, u64) {
    (range.start, range.end.saturating_sub(1))
}

/// The level of a range, which is the highest bit in which its ends differ, and its node; a single
/// address has no level, it is its own node.
const fn node(range: Range) -> (Option<u32>, u64) {
    let (first, last) = ends(range);
    match (first ^ last).checked_ilog2() {
        None => (None, last),
        Some(level) => (Some(level), last >> level << level),
    }
}

impl Index {
    pub(super) const fn new() -> Self {
        Self {
            by_first: BTreeSet::new(),
            by_last: BTreeSet::new(),
            levels: [0; 64],
        }
    }

    pub(super) fn insert(&mut self, range: Range, place: Place) {
        let ((first, last), (level, node)) = (ends(range), node(range));
        self.by_first.insert((node, first, place));
        self.by_last.insert((node, last, place));
        if let Some(count) = self.level_mut(level) {
            *count += 1;
        }
    }

    pub(super) fn remove(&mut self, range: Range, place: Place) {
        let ((first, last), (level, node)) = (ends(range), node(range));
        self.by_first.remove(&(node, first, place));
        self.by_last.remove(&(node, last, place));
        if let Some(count) = self.level_mut(level) {
            *count -= 1;
        }
    }

    fn level_mut(&mut self, level: Option<u32>) -> Option<&mut u32> {
        self.levels.get_mut(level? as usize)
    }

    /// Those that overlap with `range`, in no particular order.
    pub(super) fn over(&self, range: Range) -> impl Iterator<Item = Place> {
        let (first, last) = ends(range);
        let inside = self.by_first.range((first, 0, 0)..=(last, u64::MAX, LAST));
        let levels = (0u32..).zip(&self.levels).filter(|&(_, &count)| count > 0);
        let levels = levels.map(|(level, _)| level);
        // A node to the left, with a range that reaches over `first`: both have that range's upper
        // half in common, so that they are the same down to the bit of its level.
        let left = levels.clone().filter_map(move |level| {
            let node = first >> level << level;
            (first >> level & 1 == 1 && node < first).then_some(node)
        });
        let left = left.flat_map(move |node| {
            self.by_last
                .range((node, first, 0)..=(node, u64::MAX, LAST))
        });
        // A node to the right, with a range that begins at `last` or before: `last` is in that
        // range's lower half.
        let right = levels.filter_map(move |level| {
            let half = last >> level;
            (half & 1 == 0).then_some((half + 1) << level)
        });
        let right =
            right.flat_map(move |node| self.by_first.range((node, 0, 0)..=(node, last, LAST)));
        inside.chain(left).chain(right).map(|&(_, _, place)| place)
    }
}

/// The commands of a group that wait for others' modifications.
#[derive(Clone, Debug)]
#[cfg_attr(test, derive(PartialEq, Eq, Hash))]
pub(super) struct Waiting<T> {
    waits: BTreeMap<Place, OrderWait<T>>,
    next: Place,
    by_member: BTreeSet<(Key, Place)>,
    /// What they are about.
    ranges: Index,
    /// Where something has to end before it is worth looking at them.
    untils: Index,
}

impl<T> Waiting<T> {
    pub(super) const fn new() -> Self {
        Self {
            waits: BTreeMap::new(),
            next: 0,
            by_member: BTreeSet::new(),
            ranges: Index::new(),
            untils: Index::new(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waits.is_empty()
    }

    /// The same, as if nobody had ever waited who does not wait now.
    #[cfg(test)]
    pub(super) fn renumber(&mut self) {
        let waits = core::mem::replace(self, Self::new()).waits;
        waits.into_values().for_each(|wait| self.push(wait));
    }

    pub(super) fn push(&mut self, wait: OrderWait<T>) {
        let place = self.next;
        // At a billion a second it would take centuries to wrap.
        self.next += 1;
        self.by_member.insert((wait.member, place));
        self.ranges.insert(wait.range, place);
        self.untils.insert(wait.until, place);
        self.waits.insert(place, wait);
    }

    pub(super) fn remove(&mut self, place: Place) -> Option<OrderWait<T>> {
        let wait = self.waits.remove(&place)?;
        self.by_member.remove(&(wait.member, place));
        self.ranges.remove(wait.range, place);
        self.untils.remove(wait.until, place);
        Some(wait)
    }

    /// Removes those of a member, in the order of their arrival.
    pub(super) fn take_of(&mut self, member: Key) -> Vec<OrderWait<T>> {
        let of_member = self.by_member.range((member, 0)..=(member, LAST));
        let places: Vec<Place> = of_member.map(|&(_, place)| place).collect();
        let taken = places.into_iter().filter_map(|place| self.remove(place));
        taken.collect()
    }

    pub(super) fn get(&self, place: Place) -> Option<&OrderWait<T>> {
        self.waits.get(&place)
    }

    /// Where the next one to wait will be.
    pub(super) fn end(&self) -> Place {
        self.next
    }

    /// The first one of these places, which are not turned around.
    pub(super) fn next_in(&self, places: core::ops::Range<Place>) -> Option<Place> {
        self.waits.range(places).next().map(|(&place, _)| place)
    }

    /// The first one of a member from this place on.
    pub(super) fn next_of(&self, member: Key, from: Place) -> Option<Place> {
        let of_member = self.by_member.range((member, from)..=(member, LAST));
        of_member.map(|&(_, place)| place).next()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Place, &OrderWait<T>)> {
        self.waits.iter().map(|(&place, wait)| (place, wait))
    }

    pub(super) fn set_loads_anew(&mut self, place: Place, anew: bool) {
        if let Some(wait) = self.waits.get_mut(&place) {
            wait.loads_anew = anew;
        }
    }

    pub(super) fn set_until(&mut self, place: Place, until: Range) {
        if let Some(wait) = self.waits.get_mut(&place)
            && wait.until != until
        {
            self.untils.remove(wait.until, place);
            self.untils.insert(until, place);
            wait.until = until;
        }
    }

    /// One that came before `before` for another member than `member`, and overlaps with `range`.
    pub(super) fn earlier(
        &self,
        before: Place,
        member: Key,
        range: Range,
    ) -> Option<&OrderWait<T>> {
        let mut over = self.ranges.over(range).filter(|&place| place < before);
        over.find_map(|place| self.get(place).filter(|wait| wait.member != member))
    }

    /// Those after `place` that wait for something in `range` to end.
    pub(super) fn until_over(
        &self,
        range: Range,
        place: Option<Place>,
    ) -> impl Iterator<Item = Place> {
        let over = self.untils.over(range);
        over.filter(move |&other| place.is_none_or(|place| other > place))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use proptest::prelude::*;

    /// Ranges of all sizes, also at both ends of all addresses.
    fn range() -> impl Strategy<Value = Range> {
        let near = (0u64..80, 1u64..20);
        let far = (0u32..64, 0u64..4, 1u64..300).prop_map(|(bit, minus, length)| {
            let start = (1u64 << bit).saturating_sub(minus);
            (start, length)
        });
        let wide = (any::<u64>(), any::<u64>());
        let top = (0u64..40, 1u64..80).prop_map(|(below, length)| (u64::MAX - 1 - below, length));
        let any = prop_oneof![4 => near, 2 => far, 1 => wide, 1 => top];
        any.prop_map(|(start, length)| {
            let start = start.min(u64::MAX - 1);
            Range {
                start,
                end: start.saturating_add(length.max(1)),
            }
        })
    }

    proptest! {
        #[test]
        fn the_index_finds_what_overlaps_and_nothing_else(
            ranges in prop::collection::vec((range(), any::<bool>()), 0..60),
            queries in prop::collection::vec(range(), 1..20),
        ) {
            let mut index = Index::new();
            for (place, &(range, _)) in (0..).zip(&ranges) {
                index.insert(range, place);
            }
            for (place, &(range, stays)) in (0..).zip(&ranges) {
                if !stays {
                    index.remove(range, place);
                }
            }
            for query in queries {
                let mut found: Vec<Place> = index.over(query).collect();
                found.sort_unstable();
                let stays = (0..).zip(&ranges).filter(|(_, (_, stays))| *stays);
                let overlaps = stays.filter(|(_, (range, _))| range.overlaps(query));
                let expected: Vec<Place> = overlaps.map(|(place, _)| place).collect();
                prop_assert_eq!(found, expected);
            }
        }
    }

    #[test]
    fn an_index_that_was_emptied_looks_nowhere() {
        let mut index = Index::new();
        let range = Range { start: 3, end: 9 };
        index.insert(range, 1);
        assert_eq!(index.over(range).collect::<Vec<_>>(), vec![1]);
        index.remove(range, 1);
        assert!(index.levels.iter().all(|&count| count == 0));
        assert!(index.by_first.is_empty() && index.by_last.is_empty());
    }
}
