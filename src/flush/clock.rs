//! The logical clock: when things happened, relative to each other.

/// A moment. Zero is before everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Stamp(u64);

impl Stamp {
    /// Before everything; stands for "did not happen" where a field says so.
    pub(super) const NEVER: Self = Self(0);

    #[cfg(test)]
    pub(super) const fn from_raw(stamp: u64) -> Self {
        Self(stamp)
    }

    #[cfg(test)]
    pub(super) const fn raw(self) -> u64 {
        self.0
    }

    pub(super) const fn happened(self) -> bool {
        self.0 != 0
    }
}

/// Counts events. It cannot wrap: at a billion events a second it would take centuries.
#[derive(Clone, Debug)]
#[cfg_attr(test, derive(PartialEq, Eq, Hash))]
pub(super) struct Clock(u64);

impl Clock {
    pub(super) const fn new() -> Self {
        Self(0)
    }

    /// How many events ago that was.
    pub(super) const fn since(&self, stamp: Stamp) -> u64 {
        self.0.saturating_sub(stamp.0)
    }

    #[cfg(test)]
    pub(super) const fn set(&mut self, now: Stamp) {
        self.0 = now.0;
    }

    /// A moment later than all before.
    pub(super) const fn tick(&mut self) -> Stamp {
        self.0 += 1;
        Stamp(self.0)
    }
}
