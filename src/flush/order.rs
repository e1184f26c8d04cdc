//! Which bytes have modifications that are in flight or not written out, and whose they are.
//!
//! Rule 6: ranges of different connections never overlap here, because a modification that would
//! is not begun before the earlier one was written out. So each byte has at most one owner, and
//! one ordered map without overlaps is enough. What a flush covered is not removed when it ends,
//! but when it is next met, or when its owner's ranges become too many.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use super::clock::Stamp;
use super::slab::Key;

/// Bytes from `start` up to, but not including, `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Range {
    pub(super) start: u64,
    pub(super) end: u64,
}

impl Range {
    /// The range of a command, rounded out to granules; `None` if it is empty. What lies beyond
    /// 2^64 is cut off.
    pub(super) fn of(offset: u64, length: u64, granule: u32) -> Option<Self> {
        if length == 0 {
            return None;
        }
        let granule = u64::from(granule.max(1));
        let end = offset.saturating_add(length);
        Some(Self {
            start: offset - offset % granule,
            end: end.checked_next_multiple_of(granule).unwrap_or(u64::MAX),
        })
    }

    pub(super) const fn overlaps(self, other: Self) -> bool {
        self.start < other.end && other.start < self.end
    }

    fn union(self, other: Self) -> Self {
        Self {
            start: self.start.min(other.start),
            end: self.end.max(other.end),
        }
    }
}

#[derive(Clone, Copy, Debug)]
#[cfg_attr(test, derive(PartialEq, Eq, Hash))]
pub(super) struct Segment {
    end: u64,
    pub(super) owner: Key,
    /// Modifications in it that are in flight.
    pub(super) in_flight: u32,
    /// When the latest modification in it completed.
    pub(super) last: Stamp,
}

/// The ranges of one group.
#[derive(Clone, Debug, Default)]
#[cfg_attr(test, derive(PartialEq, Eq, Hash))]
pub(super) struct Ranges {
    segments: BTreeMap<u64, Segment>,
}

impl Ranges {
    /// The segments that overlap with `range`, in order.
    pub(super) fn over(&self, range: Range) -> impl Iterator<Item = (Range, &Segment)> {
        // Segments do not overlap each other, so that only the last one that begins before the
        // range can reach into it.
        let first = self
            .segments
            .range(..range.start)
            .next_back()
            .map_or(range.start, |(&start, _)| start);
        self.segments
            .range(first..range.end)
            .map(|(&start, segment)| {
                let end = segment.end;
                (Range { start, end }, segment)
            })
            .filter(move |(at, _)| at.overlaps(range))
    }

    /// What `range` would become if `owner` modified it: merged with the owner's ranges that it
    /// overlaps.
    pub(super) fn extent(&self, owner: Key, range: Range) -> Range {
        self.over(range)
            .filter(|(_, segment)| segment.owner == owner)
            .fold(range, |extent, (at, _)| extent.union(at))
    }

    /// A modification of `range` begins, if all of it is in one range of `owner`; then nobody else
    /// has a part of it.
    pub(super) fn begin_within(&mut self, owner: Key, range: Range) -> bool {
        let before = self.segments.range_mut(..=range.start).next_back();
        let within = before.filter(|(_, it)| it.owner == owner && it.end >= range.end);
        within.map(|(_, it)| it.in_flight += 1).is_some()
    }

    /// A modification of `range` begins. No other owner's segment overlaps it. Returns by how
    /// many the owner's ranges became more (-n to 1).
    pub(super) fn begin(&mut self, owner: Key, range: Range) -> i32 {
        if self.begin_within(owner, range) {
            return 0;
        }
        let mut merged = Segment {
            end: range.end,
            owner,
            in_flight: 1,
            last: Stamp::NEVER,
        };
        // The common case needs no list.
        let extent = self.extent(owner, range);
        let mut more = 1;
        if extent != range || self.over(range).next().is_some() {
            let starts: Vec<u64> = self.over(range).map(|(at, _)| at.start).collect();
            for start in starts {
                if let Some(old) = self.segments.remove(&start) {
                    merged.in_flight += old.in_flight;
                    merged.last = merged.last.max(old.last);
                    more -= 1;
                }
            }
            merged.end = extent.end;
        }
        self.segments.insert(extent.start, merged);
        more
    }

    /// The modification of `range` by `owner` completed. Returns the segment that it is part of
    /// if nothing else is in flight there.
    pub(super) fn complete(&mut self, owner: Key, range: Range, now: Stamp) -> Option<Range> {
        let (&start, segment) = self.segments.range_mut(..=range.start).next_back()?;
        if segment.owner != owner {
            return None;
        }
        segment.in_flight = segment.in_flight.saturating_sub(1);
        segment.last = now;
        let end = segment.end;
        (segment.in_flight == 0).then_some(Range { start, end })
    }

    /// A modification in `range` that was to begin never will. Returns whether its segment was
    /// removed, because nothing else is known of it.
    pub(super) fn withdraw(&mut self, owner: Key, range: Range) -> bool {
        let Some((&start, segment)) = self.segments.range_mut(..=range.start).next_back() else {
            return false;
        };
        if segment.owner != owner {
            return false;
        }
        segment.in_flight = segment.in_flight.saturating_sub(1);
        let forgotten = segment.in_flight == 0 && !segment.last.happened();
        if forgotten {
            self.segments.remove(&start);
        }
        forgotten
    }

    /// Where the first segment over `range` that is not `owner`'s starts, and whose it is.
    pub(super) fn first_not_of(&self, owner: Key, range: Range) -> Option<(u64, Key)> {
        self.over(range)
            .find(|(_, segment)| segment.owner != owner)
            .map(|(at, segment)| (at.start, segment.owner))
    }

    /// Removes the segment that starts there.
    pub(super) fn remove(&mut self, start: u64) {
        self.segments.remove(&start);
    }

    /// Keeps the segments that `live` says are still uncovered or in flight.
    pub(super) fn retain(&mut self, mut live: impl FnMut(&Segment) -> bool) {
        self.segments.retain(|_, segment| live(segment));
    }

    /// What `range` would become if `owner` modified it with no room for one more range.
    pub(super) fn merged_extent(&self, owner: Key, range: Range) -> Range {
        let extent = self.extent(owner, range);
        if extent != range {
            return extent;
        }
        let before = self.segments.range(..range.start).next_back();
        let after = self.segments.range(range.start..).next();
        let mut near = before.into_iter().chain(after);
        let neighbour = near.find(|(_, segment)| segment.owner == owner);
        neighbour.map_or(range, |(&start, segment)| {
            let end = segment.end;
            range.union(Range { start, end })
        })
    }

    /// Extends a neighbouring range of `owner` over `range`, so that there is one range less to
    /// remember; false if neither neighbour is the owner's. Nobody's segment overlaps `range`.
    pub(super) fn begin_merged(&mut self, owner: Key, range: Range) -> bool {
        if let Some((_, before)) = self.segments.range_mut(..range.start).next_back()
            && before.owner == owner
        {
            before.end = before.end.max(range.end);
            before.in_flight += 1;
            return true;
        }
        let after = self.segments.range(range.start..).next();
        if let Some((&start, after)) = after
            && after.owner == owner
        {
            let mut segment = *after;
            segment.in_flight += 1;
            self.segments.remove(&start);
            self.segments.insert(range.start, segment);
            return true;
        }
        false
    }

    /// Whether a modification of `range` would add to a range of `owner` that exists, or could be
    /// made to.
    pub(super) fn touches_or_neighbours(&self, owner: Key, range: Range) -> bool {
        let before = self.segments.range(..range.start).next_back();
        let after = self.segments.range(range.start..).next();
        let mut near = before.into_iter().chain(after);
        near.any(|(_, segment)| segment.owner == owner)
            || self.over(range).any(|(_, segment)| segment.owner == owner)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Range, &Segment)> {
        self.segments.iter().map(|(&start, segment)| {
            let end = segment.end;
            (Range { start, end }, segment)
        })
    }

    pub(super) fn len(&self) -> usize {
        self.segments.len()
    }

    pub(super) fn clear(&mut self) {
        self.segments.clear();
    }

    #[cfg(test)]
    pub(super) fn each_stamp(&mut self, visit: &mut dyn FnMut(&mut Stamp)) {
        let segments = self.segments.values_mut();
        segments.for_each(|segment| visit(&mut segment.last));
    }

    #[cfg(test)]
    fn list(&self) -> Vec<(u64, u64, Key)> {
        self.segments
            .iter()
            .map(|(&start, segment)| (start, segment.end, segment.owner))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::slab::Slab;
    use super::*;
    use alloc::vec;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    fn owners() -> (Key, Key) {
        let mut slab = Slab::new();
        (slab.insert(()), slab.insert(()))
    }

    fn range(start: u64, end: u64) -> Range {
        Range { start, end }
    }

    #[test]
    fn a_range_is_rounded_out_to_granules() {
        assert_eq!(Range::of(5, 0, 16), None);
        assert_eq!(Range::of(5, 3, 1), Some(range(5, 8)));
        assert_eq!(Range::of(5, 3, 16), Some(range(0, 16)));
        assert_eq!(Range::of(15, 2, 16), Some(range(0, 32)));
        assert_eq!(
            Range::of(u64::MAX - 1, 9, 1),
            Some(range(u64::MAX - 1, u64::MAX))
        );
        assert_eq!(
            Range::of(u64::MAX - 1, 1, 512),
            Some(range(u64::MAX - 511, u64::MAX))
        );
    }

    #[test]
    fn neighbours_do_not_overlap() {
        let middle = range(4, 8);
        assert!(middle.overlaps(range(7, 9)) && range(7, 9).overlaps(middle));
        assert!(middle.overlaps(range(5, 6)) && range(5, 6).overlaps(middle));
        assert!(!middle.overlaps(range(8, 9)) && !range(8, 9).overlaps(middle));
        assert!(!middle.overlaps(range(0, 4)) && !range(0, 4).overlaps(middle));
    }

    #[test]
    fn overlapping_ranges_of_one_owner_merge_and_neighbours_do_not() {
        let (a, _) = owners();
        let mut ranges = Ranges::default();
        assert_eq!(ranges.begin(a, range(0, 4)), 1);
        assert_eq!(ranges.begin(a, range(4, 8)), 1);
        assert_eq!(ranges.list(), vec![(0, 4, a), (4, 8, a)]);
        assert_eq!(ranges.begin(a, range(3, 6)), -1);
        assert_eq!(ranges.list(), vec![(0, 8, a)]);
        assert_eq!(ranges.begin(a, range(0, 8)), 0);
        let (_, segment) = ranges.over(range(0, 1)).next().unwrap();
        assert_eq!(segment.in_flight, 4);
    }

    #[test]
    fn a_completed_modification_is_found_in_what_it_merged_into() {
        let (a, _) = owners();
        let mut ranges = Ranges::default();
        ranges.begin(a, range(10, 20));
        ranges.begin(a, range(5, 12));
        assert_eq!(ranges.complete(a, range(10, 20), Stamp::from_raw(7)), None);
        let (at, segment) = ranges.over(range(19, 20)).next().unwrap();
        assert_eq!(at, range(5, 20));
        assert_eq!((segment.in_flight, segment.last), (1, Stamp::from_raw(7)));
        let idle = ranges.complete(a, range(5, 12), Stamp::from_raw(8));
        assert_eq!(idle, Some(range(5, 20)));
    }

    #[test]
    fn beyond_the_cap_a_neighbour_grows_but_never_over_anothers_range() {
        let (a, b) = owners();
        let mut ranges = Ranges::default();
        ranges.begin(a, range(0, 4));
        ranges.begin(b, range(10, 14));
        assert!(ranges.begin_merged(a, range(6, 8)));
        assert_eq!(ranges.list(), vec![(0, 8, a), (10, 14, b)]);
        assert!(!ranges.begin_merged(a, range(20, 24)));
        ranges.begin(a, range(30, 34));
        assert!(ranges.begin_merged(a, range(20, 24)));
        assert_eq!(ranges.list(), vec![(0, 8, a), (10, 14, b), (20, 34, a)]);
    }

    proptest! {
        /// What is remembered is never less than what was modified, and each byte has one owner.
        #[test]
        fn ranges_cover_every_byte_that_was_begun(
            ops in proptest::collection::vec((0u64..100, 1u64..20, any::<bool>()), 1..60)
        ) {
            let (a, b) = owners();
            let mut ranges = Ranges::default();
            let mut bytes: Vec<Option<Key>> = vec![None; 128];
            for (start, length, first) in ops {
                let owner = if first { a } else { b };
                let at = range(start, start + length);
                if ranges.over(at).any(|(_, segment)| segment.owner != owner) {
                    continue;
                }
                ranges.begin(owner, at);
                for byte in start..start + length {
                    let known = &mut bytes[byte as usize];
                    prop_assert!(known.is_none_or(|known| known == owner));
                    *known = Some(owner);
                }
            }
            for (byte, owner) in bytes.iter().enumerate() {
                let byte = byte as u64;
                let found: Vec<Key> = ranges
                    .over(range(byte, byte + 1))
                    .map(|(_, segment)| segment.owner)
                    .collect();
                prop_assert_eq!(found, owner.iter().copied().collect::<Vec<_>>());
            }
        }
    }

    fn in_flight(ranges: &Ranges, at: u64) -> u32 {
        let (_, segment) = ranges.over(range(at, at + 1)).next().unwrap();
        segment.in_flight
    }

    #[test]
    fn what_a_neighbour_takes_in_is_in_flight_in_it() {
        let (a, b) = owners();
        let mut ranges = Ranges::default();
        ranges.begin(a, range(10, 14));
        ranges.begin(a, range(10, 14));
        assert!(ranges.begin_merged(a, range(16, 20)));
        assert_eq!(in_flight(&ranges, 10), 3);
        assert!(ranges.begin_merged(a, range(4, 8)));
        assert_eq!(in_flight(&ranges, 4), 4);
        assert_eq!(ranges.list(), vec![(4, 20, a)]);
        ranges.begin(b, range(30, 34));
        assert!(!ranges.begin_merged(b, range(0, 2)));
        assert_eq!((ranges.len(), Ranges::default().len()), (2, 0));
        ranges.clear();
        assert_eq!(ranges.len(), 0);
    }

    #[test]
    fn a_range_counts_as_touched_or_near_only_for_its_owner() {
        let (a, b) = owners();
        let mut ranges = Ranges::default();
        assert!(!ranges.touches_or_neighbours(a, range(0, 4)));
        ranges.begin(a, range(10, 14));
        for near in [range(0, 4), range(12, 20), range(40, 44)] {
            assert!(ranges.touches_or_neighbours(a, near));
            assert!(!ranges.touches_or_neighbours(b, near));
        }
        // Between the two neighbours of the query there is one of each.
        ranges.begin(b, range(20, 24));
        assert!(ranges.touches_or_neighbours(a, range(16, 18)));
        assert!(ranges.touches_or_neighbours(b, range(16, 18)));
        assert!(!ranges.touches_or_neighbours(a, range(30, 34)));
    }

    #[test]
    fn what_never_begins_leaves_only_what_has_completed() {
        let (a, b) = owners();
        let mut ranges = Ranges::default();
        ranges.begin(a, range(0, 4));
        assert!(!ranges.withdraw(b, range(0, 4)));
        assert!(ranges.withdraw(a, range(0, 4)));
        assert_eq!(ranges.len(), 0);
        ranges.begin(a, range(0, 4));
        ranges.begin(a, range(0, 4));
        assert!(!ranges.withdraw(a, range(0, 4)));
        assert_eq!(in_flight(&ranges, 0), 1);
        ranges.complete(a, range(0, 4), Stamp::from_raw(3));
        ranges.begin(a, range(0, 4));
        assert!(!ranges.withdraw(a, range(0, 4)));
        assert_eq!((ranges.len(), in_flight(&ranges, 0)), (1, 0));
    }
}
