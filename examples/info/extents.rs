//! Extents: what they mean, neighbours as one, and what they add up to.

use std::collections::BTreeMap;

use nbd_proto::wire::AllocationFlags;

/// How many kinds of extents are told apart at the end. A server can make up as many as it likes.
const MAX_KINDS: usize = 32;

/// A part of the export with one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) offset: u64,
    pub(crate) length: u64,
    pub(crate) flags: u64,
}

/// Makes one extent of neighbours with the same flags: how a server cuts them has no meaning.
#[derive(Debug, Default)]
pub(crate) struct Merge {
    pending: Option<Extent>,
}

impl Merge {
    /// Takes the next extent, which begins where the last one ended; returns one that is complete.
    pub(crate) fn push(&mut self, next: Extent) -> Option<Extent> {
        match &mut self.pending {
            Some(pending) if pending.flags == next.flags => {
                pending.length = pending.length.saturating_add(next.length);
                None
            }
            _ => self.pending.replace(next),
        }
    }

    /// The last extent.
    pub(crate) fn finish(self) -> Option<Extent> {
        self.pending
    }
}

/// What a meta context says about an extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// `base:allocation`
    Allocation,
    /// `qemu:dirty-bitmap:...`
    DirtyBitmap,
    /// `qemu:allocation-depth`
    AllocationDepth,
    Unknown,
}

impl Meaning {
    pub(crate) fn of(context: &str) -> Self {
        match context {
            "base:allocation" => Self::Allocation,
            "qemu:allocation-depth" => Self::AllocationDepth,
            _ if context.starts_with("qemu:dirty-bitmap:") => Self::DirtyBitmap,
            _ => Self::Unknown,
        }
    }

    /// The flags in the words of nbdinfo, if there are such.
    pub(crate) fn describe(self, flags: u64) -> Option<String> {
        let words = match (self, flags) {
            (Self::Allocation, 0) => "data",
            (Self::Allocation, 1) => "hole",
            (Self::Allocation, 2) => "zero",
            (Self::Allocation, 3) => "hole,zero",
            (Self::DirtyBitmap, 0) => "clean",
            (Self::DirtyBitmap, 1) => "dirty",
            (Self::AllocationDepth, 0) => "absent",
            (Self::AllocationDepth, 1) => "local",
            (Self::AllocationDepth, depth) => return Some(format!("backing depth {depth}")),
            _ => return None,
        };
        Some(words.to_owned())
    }

    /// Whether there is something in an extent, for the picture.
    pub(crate) const fn is_full(self, flags: u64) -> bool {
        let hole = AllocationFlags::HOLE.union(AllocationFlags::ZERO).bits() as u64;
        match self {
            Self::Allocation => flags & hole == 0,
            _ => flags != 0,
        }
    }

    /// What the picture means by full and empty.
    pub(crate) const fn legend(self) -> (&'static str, &'static str) {
        match self {
            Self::Allocation => ("data", "hole or zeroes"),
            Self::DirtyBitmap => ("dirty", "clean"),
            Self::AllocationDepth => ("allocated", "absent"),
            Self::Unknown => ("flags set", "no flags"),
        }
    }
}

/// How much there is of each kind.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    kinds: BTreeMap<u64, u64>,
    others: u64,
}

impl Totals {
    pub(crate) fn add(&mut self, extent: Extent) {
        let room = self.kinds.len() < MAX_KINDS;
        let total = match self.kinds.get_mut(&extent.flags) {
            Some(total) => total,
            None if room => self.kinds.entry(extent.flags).or_default(),
            None => &mut self.others,
        };
        *total = total.saturating_add(extent.length);
    }

    /// Flags and bytes, in the order of the flags; without flags those that are too many.
    pub(crate) fn all(&self) -> impl Iterator<Item = (Option<u64>, u64)> {
        let kinds = self
            .kinds
            .iter()
            .map(|(&flags, &bytes)| (Some(flags), bytes));
        kinds.chain((self.others > 0).then_some((None, self.others)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn extent(offset: u64, length: u64, flags: u64) -> Extent {
        Extent {
            offset,
            length,
            flags,
        }
    }

    #[test]
    fn neighbours_of_one_kind_become_one() {
        let mut merge = Merge::default();
        let mut all = Vec::new();
        for next in [
            extent(0, 10, 0),
            extent(10, 5, 0),
            extent(15, 1, 3),
            extent(16, 1, 0),
        ] {
            all.extend(merge.push(next));
        }
        all.extend(merge.finish());
        assert_eq!(all, [extent(0, 15, 0), extent(15, 1, 3), extent(16, 1, 0)]);
        assert_eq!(Merge::default().finish(), None);
    }

    #[test]
    fn however_many_kinds_there_are_few_are_kept_and_all_is_counted() {
        let mut totals = Totals::default();
        for flags in 0..1000 {
            totals.add(extent(flags, 3, flags));
            totals.add(extent(flags, 1, 0));
        }
        let all: Vec<_> = totals.all().collect();
        assert_eq!(all.len(), MAX_KINDS + 1);
        assert_eq!(all[0], (Some(0), 1003));
        assert_eq!(all.iter().map(|(_, bytes)| bytes).sum::<u64>(), 4000);
        assert_eq!(all.last(), Some(&(None, 3 * (1000 - MAX_KINDS as u64))));
    }

    #[test]
    fn flags_are_told_in_the_words_of_their_context() {
        let say = |context: &str, flags| Meaning::of(context).describe(flags);
        for (context, flags, words) in [
            ("base:allocation", 0, Some("data")),
            ("base:allocation", 3, Some("hole,zero")),
            ("base:allocation", 4, None),
            ("qemu:dirty-bitmap:b", 1, Some("dirty")),
            ("qemu:allocation-depth", 7, Some("backing depth 7")),
            ("x:y", 1, None),
        ] {
            assert_eq!(say(context, flags).as_deref(), words, "{context} {flags}");
        }
    }

    #[test]
    fn a_hole_and_zeroes_are_empty_and_unknown_bits_change_nothing() {
        let meaning = Meaning::Allocation;
        assert!(meaning.is_full(0) && meaning.is_full(4));
        assert!(![1, 2, 3, 5].into_iter().any(|flags| meaning.is_full(flags)));
    }
}
