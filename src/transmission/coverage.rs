//! Which part of a read has been answered.

use alloc::collections::{BTreeMap, BTreeSet};

/// The parts of a range for which content or errors have come.
///
/// Content that comes in order costs nothing: only the end of what is complete moves. What comes
/// out of order is kept as disjoint ranges, one per gap; so memory is bounded by the number of
/// chunks, and each costs O(log n).
#[derive(Clone, Debug)]
pub(super) struct Coverage {
    start: u64,
    end: u64,
    // Everything from `start` to here is covered.
    complete: u64,
    // How many bytes have no content yet.
    missing: u64,
    // Start and end of what is covered behind the first gap; disjoint, and never adjacent to
    // `complete`.
    islands: BTreeMap<u64, u64>,
    // Where errors were reported. They count as one byte that no later content may cover.
    errors: BTreeSet<u64>,
}

/// Why a chunk does not fit what came before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Misfit {
    /// Not within the range, or empty.
    Outside,
    /// Some of it was covered before.
    Overlap,
}

impl Coverage {
    /// Nothing of `start..end` is covered yet.
    pub(super) const fn new(start: u64, end: u64) -> Self {
        Self {
            start,
            end,
            complete: start,
            missing: end.saturating_sub(start),
            islands: BTreeMap::new(),
            errors: BTreeSet::new(),
        }
    }

    /// Covers `offset..offset + length` with content.
    pub(super) fn content(&mut self, offset: u64, length: u64) -> Result<(), Misfit> {
        let end = offset.checked_add(length).ok_or(Misfit::Outside)?;
        if length == 0 || offset < self.start || end > self.end {
            return Err(Misfit::Outside);
        }
        if offset < self.complete || self.errors.range(offset..end).next().is_some() {
            return Err(Misfit::Overlap);
        }
        // The island that begins last before `end` is the one that could reach into the chunk.
        let before = self.islands.range(..end).next_back();
        if before.is_some_and(|(_, &island_end)| island_end > offset) {
            return Err(Misfit::Overlap);
        }
        self.missing = self.missing.saturating_sub(length);
        if offset == self.complete {
            self.complete = end;
            while let Some(island_end) = self.islands.remove(&self.complete) {
                self.complete = island_end;
            }
        } else {
            self.add_island(offset, end);
        }
        Ok(())
    }

    /// Adds an island, joined with those it touches, so that their number is that of the gaps.
    fn add_island(&mut self, mut start: u64, mut end: u64) {
        if let Some(next_end) = self.islands.remove(&end) {
            end = next_end;
        }
        if let Some((&before, &before_end)) = self.islands.range(..start).next_back()
            && before_end == start
        {
            start = before;
        }
        self.islands.insert(start, end);
    }

    /// Notes an error at `offset`. It may lie in content that came before.
    pub(super) fn error(&mut self, offset: u64) -> Result<(), Misfit> {
        if offset < self.start || offset >= self.end {
            return Err(Misfit::Outside);
        }
        self.errors.insert(offset);
        Ok(())
    }

    /// Whether an error was noted at `offset`.
    pub(super) fn has_error(&self, offset: u64) -> bool {
        self.errors.contains(&offset)
    }

    /// How many bytes have no content yet.
    pub(super) const fn missing(&self) -> u64 {
        self.missing
    }

    /// The first byte that is not covered, if any.
    pub(super) fn gap(&self) -> Option<u64> {
        (self.complete < self.end).then_some(self.complete)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    #[test]
    fn content_in_order_leaves_nothing_to_remember() {
        let mut coverage = Coverage::new(100, 200);
        for offset in (100..200).step_by(10) {
            assert_eq!(coverage.gap(), Some(offset));
            assert_eq!(coverage.content(offset, 10), Ok(()));
            assert!(coverage.islands.is_empty());
        }
        assert_eq!(coverage.gap(), None);
    }

    #[test]
    fn content_in_reverse_is_one_island() {
        let mut coverage = Coverage::new(0, 100);
        for offset in (1..100).rev() {
            assert_eq!(coverage.content(offset, 1), Ok(()));
            assert_eq!(coverage.islands.len(), 1);
        }
        assert_eq!(coverage.gap(), Some(0));
        assert_eq!(coverage.content(0, 1), Ok(()));
        assert_eq!(coverage.gap(), None);
    }

    #[test]
    fn an_error_may_lie_in_earlier_content_but_not_under_later() {
        let mut coverage = Coverage::new(0, 100);
        assert_eq!(coverage.content(0, 10), Ok(()));
        assert_eq!(coverage.error(5), Ok(()));
        assert_eq!(coverage.error(15), Ok(()));
        assert_eq!(coverage.content(10, 10), Err(Misfit::Overlap));
        assert_eq!(coverage.content(16, 4), Ok(()));
        assert_eq!(coverage.error(100), Err(Misfit::Outside));
    }

    #[test]
    fn content_beyond_2_to_the_64_is_outside() {
        let mut coverage = Coverage::new(u64::MAX - 10, u64::MAX);
        assert_eq!(coverage.content(u64::MAX - 5, 10), Err(Misfit::Outside));
        assert_eq!(coverage.content(u64::MAX - 5, 5), Ok(()));
    }

    proptest! {
        #[test]
        fn coverage_is_what_a_map_of_bytes_says(
            start in 0u64..8,
            len in 0u64..40,
            steps in prop::collection::vec((any::<bool>(), 0u64..50, 0u64..10), 0..40),
        ) {
            let mut coverage = Coverage::new(start, start + len);
            let mut covered = [false; 64];
            let mut failed = [false; 64];
            for (is_error, offset, length) in steps {
                let inside = |from: u64, to: u64| from >= start && to <= start + len && from < to;
                let bytes: Vec<usize> = (offset..offset + length).map(|b| b as usize).collect();
                if is_error {
                    let expected = inside(offset, offset + 1);
                    prop_assert_eq!(coverage.error(offset).is_ok(), expected);
                    failed[offset as usize] |= expected;
                } else {
                    let taken = bytes.iter().any(|&b| covered[b] || failed[b]);
                    let expected = if !inside(offset, offset + length) {
                        Err(Misfit::Outside)
                    } else if taken {
                        Err(Misfit::Overlap)
                    } else {
                        Ok(())
                    };
                    prop_assert_eq!(coverage.content(offset, length), expected);
                    if expected.is_ok() {
                        bytes.iter().for_each(|&b| covered[b] = true);
                    }
                }
                let gap = (start..start + len).find(|&b| !covered[b as usize]);
                prop_assert_eq!(coverage.gap(), gap);
                let missing = (start..start + len).filter(|&b| !covered[b as usize]).count();
                prop_assert_eq!(coverage.missing(), missing as u64);
            }
        }
    }
}
