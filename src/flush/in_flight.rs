//! The commands that a handle is executing, told apart by when they began.

use alloc::boxed::Box;
use alloc::vec::Vec;

use super::clock::Stamp;

/// Commands that a handle is executing, in generations, each known by when its first command
/// began.
///
/// To know when all those that were in flight at some moment have ended, the generation is
/// advanced at that moment: commands that begin later count in the next one. This costs a read or
/// write no more than a counter.
#[derive(Clone, Debug, Default)]
#[cfg_attr(test, derive(PartialEq, Eq, Hash))]
pub(super) struct InFlight {
    /// The current generation.
    generation: Stamp,
    count: u32,
    /// How many of all, of whatever generation, modify something.
    pub(super) modifying: u32,
    /// Earlier generations of which something is in flight, oldest first. Few connections have
    /// any, and one pointer is all that the others pay.
    #[expect(
        clippy::box_collection,
        reason = "a list is three times as large where it is empty"
    )]
    older: Option<Box<Vec<Generation>>>,
}

#[derive(Clone, Copy, Debug)]
#[cfg_attr(test, derive(PartialEq, Eq, Hash))]
struct Generation {
    began: Stamp,
    count: u32,
}

impl InFlight {
    pub(super) fn begin(&mut self, now: Stamp) -> Stamp {
        if self.count == 0 {
            self.generation = now;
        }
        self.count += 1;
        self.generation
    }

    pub(super) fn end(&mut self, generation: Stamp) {
        // Just after an advance it is the one that has become an earlier one.
        if generation == self.generation && self.count > 0 {
            self.count -= 1;
        } else {
            self.end_older(generation);
        }
    }

    fn end_older(&mut self, generation: Stamp) {
        let Some(older) = &mut self.older else {
            return;
        };
        let Ok(place) = older.binary_search_by_key(&generation, |it| it.began) else {
            return;
        };
        if let Some(it) = older.get_mut(place) {
            it.count = it.count.saturating_sub(1);
            if it.count == 0 {
                older.remove(place);
            }
        }
        if older.is_empty() {
            self.older = None;
        }
    }

    /// Separates what is in flight now from what begins later.
    pub(super) fn advance(&mut self) {
        if self.count > 0 {
            self.older.get_or_insert_default().push(Generation {
                began: self.generation,
                count: self.count,
            });
            self.count = 0;
        }
    }

    fn oldest_of_older(&self) -> Option<Stamp> {
        let oldest = self.older.as_ref()?.first();
        oldest.map(|oldest| oldest.began)
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.count == 0 && self.older.is_none()
    }

    /// Whether a command of this generation or an earlier one is still in flight.
    pub(super) fn reaches_back_to(&self, generation: Stamp) -> bool {
        self.oldest().is_some_and(|oldest| oldest <= generation)
    }

    /// The latest that began, or zero; none that begins after an [`advance`](Self::advance) has the same.
    pub(super) const fn generation(&self) -> Stamp {
        self.generation
    }

    #[cfg(test)]
    pub(super) fn each_stamp(&mut self, visit: &mut dyn FnMut(&mut Stamp)) {
        let Self {
            generation,
            count,
            modifying: _,
            older,
        } = self;
        if *count == 0 {
            // It only has to be later than the earlier ones.
            let latest = older.as_ref().and_then(|older| older.last());
            let first = Stamp::from_raw(generation.happened().into());
            *generation = latest.map_or(first, |latest| latest.began);
        }
        visit(generation);
        let older = older.iter_mut().flat_map(|older| older.iter_mut());
        older.for_each(|it| visit(&mut it.began));
    }

    /// When the oldest command in flight began, or a little earlier.
    pub(super) fn oldest(&self) -> Option<Stamp> {
        let current = (self.count > 0).then_some(self.generation);
        self.oldest_of_older().or(current)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(stamp: u64) -> Stamp {
        Stamp::from_raw(stamp)
    }

    #[test]
    fn commands_that_began_before_the_advance_are_told_from_later_ones() {
        let mut in_flight = InFlight::default();
        let a = in_flight.begin(at(1));
        let b = in_flight.begin(at(2));
        let barrier = in_flight.generation();
        in_flight.advance();
        let c = in_flight.begin(at(3));
        assert!(in_flight.reaches_back_to(barrier));
        in_flight.end(a);
        assert!(in_flight.reaches_back_to(barrier));
        assert_eq!(in_flight.oldest(), Some(at(1)));
        in_flight.end(b);
        assert!(!in_flight.reaches_back_to(barrier));
        assert_eq!(in_flight.oldest(), Some(at(3)));
        in_flight.end(c);
        assert!(in_flight.is_empty());
    }

    #[test]
    fn generations_may_end_in_any_order() {
        let mut in_flight = InFlight::default();
        let first = in_flight.begin(at(1));
        in_flight.advance();
        let second = in_flight.begin(at(2));
        in_flight.advance();
        in_flight.end(second);
        assert!(in_flight.reaches_back_to(first));
        assert!(!in_flight.is_empty());
        in_flight.end(first);
        assert!(in_flight.is_empty());
        in_flight.advance();
        let barrier = in_flight.generation();
        assert!(!in_flight.reaches_back_to(barrier));
        in_flight.begin(at(3));
        assert!(!in_flight.reaches_back_to(barrier));
    }

    #[test]
    fn generations_that_have_ended_keep_no_memory_behind_one_that_hangs() {
        let mut in_flight = InFlight::default();
        let hangs = in_flight.begin(at(1));
        for now in 2..1000 {
            in_flight.advance();
            let begun = in_flight.begin(at(now));
            in_flight.advance();
            in_flight.end(begun);
        }
        assert_eq!(in_flight.older.as_ref().unwrap().len(), 1);
        assert!(in_flight.reaches_back_to(hangs));
        in_flight.end(hangs);
        assert!(in_flight.is_empty() && in_flight.older.is_none());
    }
}
