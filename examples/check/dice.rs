//! Decisions that look random, and are the same for the same seed.

/// A generator of numbers (splitmix64).
#[derive(Clone, Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// Below `bound`, or 0 if that is 0.
    pub(crate) const fn below(&mut self, bound: u64) -> u64 {
        let number = self.next();
        match bound {
            0 => 0,
            bound => number % bound,
        }
    }

    /// An index into a list of this length.
    pub(crate) fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.below(length as u64)).unwrap_or(0)
    }

    pub(crate) const fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        from.get(self.index(from.len())).copied()
    }

    pub(crate) fn shuffle<T>(&mut self, list: &mut [T]) {
        for end in (1..list.len()).rev() {
            list.swap(end, self.index(end + 1));
        }
    }

    /// Another generator, for decisions whose number depends on how fast the server is.
    pub(crate) const fn fork(&mut self) -> Self {
        Self(self.next())
    }
}

/// Spreads the bits of a number over all of it; different numbers stay different.
pub(crate) const fn mix(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_decisions() {
        let decisions = |seed| {
            let mut dice = Dice::new(seed);
            let mut fork = dice.fork();
            let mut all: Vec<u64> = (0..50).map(|_| dice.below(1000)).collect();
            all.extend((0..50).map(|_| fork.below(1000)));
            all
        };
        assert_eq!(decisions(7), decisions(7));
        assert_ne!(decisions(7), decisions(8));
    }

    #[test]
    fn what_is_shuffled_has_all_that_it_had() {
        let mut list: Vec<u32> = (0..100).collect();
        Dice::new(3).shuffle(&mut list);
        assert!(!list.is_sorted());
        list.sort_unstable();
        assert_eq!(list, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn nothing_to_choose_from_is_no_mistake() {
        let mut dice = Dice::new(0);
        assert_eq!(dice.below(0), 0);
        assert_eq!(dice.pick::<u8>(&[]), None);
    }
}
