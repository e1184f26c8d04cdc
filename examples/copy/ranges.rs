//! A set of offsets, kept as ranges that neither overlap nor touch.

use std::collections::BTreeMap;
use std::ops::Range;

#[derive(Clone, Debug, Default)]
pub(crate) struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    /// Adds a range.
    pub(crate) fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let (mut start, mut end) = (range.start, range.end);
        // Those that overlap or touch lie next to each other.
        while let Some((&other_start, &other_end)) = self.0.range(..=end).next_back() {
            if other_end < start {
                break;
            }
            start = start.min(other_start);
            end = end.max(other_end);
            self.0.remove(&other_start);
        }
        self.0.insert(start, end);
    }

    /// Takes a range away.
    pub(crate) fn remove(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        while let Some((&start, &end)) = self.0.range(..range.end).next_back() {
            if end <= range.start {
                break;
            }
            self.0.remove(&start);
            if range.end < end {
                self.0.insert(range.end, end);
            }
            if start < range.start {
                self.0.insert(start, range.start);
            }
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Range<u64>> {
        self.0.iter().map(|(&start, &end)| start..end)
    }

    /// How many ranges there are.
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// How many offsets there are.
    pub(crate) fn total(&self) -> u64 {
        self.iter().map(|range| range.end - range.start).sum()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_as_a_set_of_single_offsets(
            steps in prop::collection::vec((any::<bool>(), 0_u64..40, 0_u64..12), 0..40)
        ) {
            let mut ranges = Ranges::default();
            let mut offsets = std::collections::BTreeSet::new();
            for (add, start, length) in steps {
                let range = start..start + length;
                if add {
                    ranges.insert(range.clone());
                    offsets.extend(range);
                } else {
                    ranges.remove(range.clone());
                    offsets.retain(|offset| !range.contains(offset));
                }
                let all: Vec<_> = ranges.iter().flatten().collect();
                prop_assert_eq!(&all, &offsets.iter().copied().collect::<Vec<_>>());
                prop_assert_eq!(ranges.total(), offsets.len() as u64);
                let kept: Vec<_> = ranges.iter().collect();
                prop_assert!(kept.windows(2).all(|two| two[0].end < two[1].start));
            }
        }
    }
}
