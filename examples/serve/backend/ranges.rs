//! A map from byte ranges to values.

use std::collections::BTreeMap;

/// Disjoint ranges, each with a value; neighbours with equal values are one range.
///
/// Memory and time depend on the number of ranges, never on their length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RangeMap<V> {
    /// Start to (end, value).
    ranges: BTreeMap<u64, (u64, V)>,
}

/// One range of a [`RangeMap`], not empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run<V> {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) value: V,
}

impl<V: Copy + Eq> RangeMap<V> {
    pub(super) fn new() -> Self {
        Self {
            ranges: BTreeMap::new(),
        }
    }

    /// The number of ranges.
    pub(super) fn len(&self) -> usize {
        self.ranges.len()
    }

    /// Gives all of `start..end` the value, whatever it had before.
    pub(super) fn insert(&mut self, mut start: u64, mut end: u64, value: V) {
        if start >= end {
            return;
        }
        self.remove(start, end);
        if let Some((&left, &(left_end, left_value))) = self.ranges.range(..start).next_back()
            && left_end == start
            && left_value == value
        {
            start = left;
        }
        if let Some(&(right_end, right_value)) = self.ranges.get(&end)
            && right_value == value
        {
            self.ranges.remove(&end);
            end = right_end;
        }
        self.ranges.insert(start, (end, value));
    }

    /// Takes `start..end` out.
    pub(super) fn remove(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        if let Some((_, entry)) = self.ranges.range_mut(..start).next_back() {
            let (old_end, value) = *entry;
            if old_end > start {
                entry.0 = start;
                if old_end > end {
                    self.ranges.insert(end, (old_end, value));
                    return;
                }
            }
        }
        while let Some((&inner, &(inner_end, value))) = self.ranges.range(start..end).next() {
            self.ranges.remove(&inner);
            if inner_end > end {
                self.ranges.insert(end, (inner_end, value));
            }
        }
    }

    /// What is known of `start..end`, clipped to it, in order.
    pub(super) fn overlapping(&self, start: u64, end: u64) -> impl Iterator<Item = Run<V>> {
        let reaching_in = self
            .ranges
            .range(..start)
            .next_back()
            .filter(|&(_, &(left_end, _))| left_end > start);
        // An empty or reversed range makes `BTreeMap::range` panic only when start > end.
        let inside = self.ranges.range(start..end.max(start));
        reaching_in
            .into_iter()
            .chain(inside)
            .map(move |(&run_start, &(run_end, value))| Run {
                start: run_start.max(start),
                end: run_end.min(end),
                value,
            })
            .filter(|run| run.start < run.end)
    }

    /// All ranges in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = Run<V>> {
        self.ranges
            .iter()
            .map(|(&start, &(end, value))| Run { start, end, value })
    }

    /// Whether one range contains all of `start..end`.
    pub(super) fn covering(&self, start: u64, end: u64) -> Option<V> {
        let (_, &(run_end, value)) = self.ranges.range(..=start).next_back()?;
        (run_end >= end).then_some(value)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::RangeMap;

    proptest! {
        #[test]
        fn a_range_map_equals_an_array(
            ops in proptest::collection::vec((0..64u64, 0..64u64, proptest::option::of(0..3u8)), 0..40),
            window in (0..64u64, 0..64u64),
        ) {
            let mut map = RangeMap::new();
            let mut model = [None; 64];
            for (start, end, value) in ops {
                match value {
                    Some(value) => map.insert(start, end, value),
                    None => map.remove(start, end),
                }
                for slot in model.iter_mut().take(end as usize).skip(start as usize) {
                    *slot = value;
                }
            }
            let mut seen = [None; 64];
            let mut last = None;
            for run in map.iter() {
                prop_assert!(run.start < run.end);
                prop_assert_ne!(last, Some((run.start, run.value)), "neighbours must be merged");
                last = Some((run.end, run.value));
                seen[run.start as usize..run.end as usize].fill(Some(run.value));
            }
            prop_assert_eq!(seen, model);

            let (start, end) = window;
            let mut seen = [None; 64];
            for run in map.overlapping(start, end) {
                prop_assert!(start <= run.start && run.start < run.end && run.end <= end);
                seen[run.start as usize..run.end as usize].fill(Some(run.value));
            }
            let mut clipped = [None; 64];
            if start < end {
                let range = start as usize..end as usize;
                clipped[range.clone()].copy_from_slice(&model[range.clone()]);
                let one_run = model[range.clone()].iter().all(|v| *v == model[range.start]);
                prop_assert_eq!(map.covering(start, end), model[range.start].filter(|_| one_run));
            }
            prop_assert_eq!(seen, clipped);
        }
    }
}
