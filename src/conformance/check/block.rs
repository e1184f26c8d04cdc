//! One block: what it may hold, in which order that came, and what a read of it proves.

use alloc::boxed::Box;
use alloc::vec::Vec;

use super::effect::{Cover, Effect, Floor, Horizon, Kind, NEVER, Reading, SEVERAL, Serial, Stamp};
use crate::conformance::history::Content;

/// So many effects of a block are remembered: as many as a set of them has bits.
pub(super) const MOST_EFFECTS: usize = 64;

/// A set of effects, by their places in the block.
type Places = u64;

/// What one block may hold, oldest invocation first. Without any effect nothing was written to it.
#[derive(Clone, Debug, Default)]
pub(super) struct Block {
    pub(super) effects: Vec<Effect>,
}

/// Why an effect is not remembered any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// Something newer is covered.
    Newer,
    /// Something newer was on permanent storage when the server crashed.
    Crash,
    /// Another one was read after the crash.
    Other(Reading),
}

/// What a read of a block means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Judgement {
    Legal,
    /// It was there, but is older than what has to be found.
    Old(usize),
    /// It is nothing of what is remembered.
    Alien,
}

impl Block {
    fn places(&self, is_one: impl Fn(&Effect) -> bool) -> Places {
        let mut places = 0;
        for (place, effect) in self.effects.iter().enumerate() {
            places |= Places::from(is_one(effect)) << place;
        }
        places
    }

    /// What is older than any of these.
    fn older_than(&self, places: Places) -> Places {
        let mut older = 0;
        for (place, effect) in self.effects.iter().enumerate() {
            if places >> place & 1 == 1 {
                older |= effect.before;
            }
        }
        older
    }

    /// A modification begins.
    pub(super) fn invoke(
        &mut self,
        mut effect: Effect,
        initial: &Effect,
        cover: Cover<'_>,
        most: usize,
        bury: &mut impl FnMut(Effect, Why),
    ) {
        if self.effects.is_empty() {
            self.effects.reserve_exact(2);
            self.effects.push(initial.clone());
        }
        if self.effects.len() >= most {
            self.merge(cover, bury);
        }
        let older = self.places(|it| cover.is_older(it, effect.serial));
        effect.before = older | self.older_than(older);
        self.effects.push(effect);
    }

    /// A modification was answered.
    pub(super) fn answer(&mut self, invoked: Stamp, now: Stamp, succeeded: bool) {
        let mut latest_first = self.effects.iter_mut().rev();
        // If it is not there, there was no room to remember it.
        let Some(effect) = latest_first.find(|it| it.invoked == invoked) else {
            return;
        };
        effect.answered = now;
        effect.failed = !succeeded;
        if succeeded || effect.found {
            effect.settled = now;
        }
        effect.fua = succeeded && effect.wants_fua;
    }

    /// A read has found this. Returns what that means, and changes nothing unless it is legal.
    pub(super) fn read(
        &mut self,
        content: Content,
        floor: &Floor,
        reading: Reading,
        bury: &mut impl FnMut(Effect, Why),
    ) -> Judgement {
        // What is alone has settled, and is newer than all there was: finding it teaches nothing.
        if let [only] = &self.effects[..]
            && only.content == content
            && !only.is_anything()
        {
            return Judgement::Legal;
        }
        let floored = self.places(|it| floor.has(it));
        let old = self.older_than(floored);
        if content == Content::MIXED {
            return self.read_mixture(old);
        }
        let matching = self.places(|it| it.may_be(content));
        let legal = matching & !old;
        if legal == 0 {
            return match self.places(|it| it.content == content && !it.is_anything()) {
                0 => Judgement::Alien,
                found => Judgement::Old(lowest(found)),
            };
        }
        if legal.is_power_of_two() {
            self.found(lowest(legal), (floored | old) & !legal, reading);
        }
        self.narrow(legal, reading, bury);
        Judgement::Legal
    }

    /// A mixture of what is legal is legal: the server's own blocks may be smaller.
    fn read_mixture(&self, old: Places) -> Judgement {
        let mut first = None;
        for (place, effect) in self.effects.iter().enumerate() {
            if old >> place & 1 == 1 {
                continue;
            }
            let another = first.is_some_and(|it| it != effect.content);
            if effect.is_anything() || another {
                return Judgement::Legal;
            }
            first = Some(effect.content);
        }
        Judgement::Alien
    }

    /// A read has found an effect, and must not find what is older than these: they are older.
    fn found(&mut self, place: usize, older: Places, reading: Reading) {
        let Some(effect) = self.effects.get_mut(place) else {
            return;
        };
        if effect.is_anything() {
            return;
        }
        effect.found = true;
        if effect.failed && effect.settled == NEVER {
            effect.settled = reading.replied;
        }
        if older & !effect.before == 0 {
            return;
        }
        effect.before |= older;
        effect.seen = Some(Box::new(reading));
        let before = effect.before;
        for it in &mut self.effects {
            if it.before >> place & 1 == 1 {
                it.before |= before;
            }
        }
    }

    /// If it was something that a crash has left, then it is that which the crash has left.
    fn narrow(&mut self, legal: Places, reading: Reading, bury: &mut impl FnMut(Effect, Why)) {
        let survivors = self.places(|it| it.survivor);
        let others = survivors & !legal;
        if others != 0 && legal & !survivors == 0 {
            self.remove(others, Why::Other(reading), bury);
        }
    }

    /// Forgets what no read to come may find.
    pub(super) fn prune(&mut self, horizon: Horizon, bury: &mut impl FnMut(Effect, Why)) {
        if self.effects.len() > 1 {
            let past = self.older_than(self.places(|it| horizon.is_past(it)));
            self.remove(past, Why::Newer, bury);
        }
    }

    /// What is left may be what the crash left.
    pub(super) fn crash(
        &mut self,
        now: Stamp,
        cover: Cover<'_>,
        bury: &mut impl FnMut(Effect, Why),
    ) {
        if self.effects.is_empty() {
            return;
        }
        let durable = self.places(|it| cover.is_durable(it));
        let dead = self.older_than(durable) | self.places(|it| it.dead);
        self.remove(dead, Why::Crash, bury);
        for effect in &mut self.effects {
            effect.survivor = true;
            effect.settled = now;
            effect.before = 0;
        }
    }

    fn remove(&mut self, places: Places, why: Why, bury: &mut impl FnMut(Effect, Why)) {
        if places == 0 {
            return;
        }
        let mut rest = places;
        let leaving = self.effects.extract_if(.., |_| {
            let leaves = rest & 1 == 1;
            rest >>= 1;
            leaves
        });
        for effect in leaving.filter(|it| it.kind != Kind::Forgotten) {
            bury(effect, why);
        }
        for effect in &mut self.effects {
            effect.before = without(effect.before, places);
        }
    }

    /// Makes room: the older half of the effects becomes at most three, of which nothing is known
    /// but that they may be anything. So what was forgotten is no reason to accuse; what it was is
    /// known for as long as it lies in its grave, should it be found when nothing may be anything
    /// any more.
    fn merge(&mut self, cover: Cover<'_>, bury: &mut impl FnMut(Effect, Why)) {
        let half = self.effects.len() / 2;
        let victims: Places = (1 << half) - 1;
        let dead = self.older_than(self.places(|it| cover.is_durable(it)));
        let dead = dead | self.places(|it| it.dead);
        let unsettled = self.places(|it| it.settled == NEVER);
        let classes = [
            (dead & victims, true),
            (unsettled & !dead & victims, false),
            (!unsettled & !dead & victims, false),
        ];
        let classes = classes.into_iter().filter(|&(class, _)| class != 0);
        let merged: Vec<_> = classes
            .map(|(class, dead)| (self.as_one(class, dead), self.newer_than(class) >> half))
            .collect();
        self.remove(victims, Why::Newer, bury);
        for effect in &mut self.effects {
            effect.before <<= merged.len();
        }
        for (place, (one, newer)) in merged.into_iter().enumerate() {
            for (at, effect) in self.effects.iter_mut().skip(place).enumerate() {
                effect.before |= (newer >> at & 1) << place;
            }
            self.effects.insert(place, one);
        }
    }

    /// What is newer than all of these.
    fn newer_than(&self, places: Places) -> Places {
        self.places(|it| it.before & places == places)
    }

    fn as_one(&self, places: Places, dead: bool) -> Effect {
        let mut one = Effect::initial(None);
        let mut serials = None;
        let effects = self.effects.iter().enumerate();
        for (_, it) in effects.filter(|(place, _)| places >> place & 1 == 1) {
            one.survivor &= it.survivor;
            one.settled = one.settled.max(it.settled);
            let same = serials.is_none_or(|serial: Serial| serial == it.serial);
            serials = Some(if same { it.serial } else { SEVERAL });
        }
        one.serial = serials.unwrap_or(SEVERAL);
        one.dead = dead;
        one
    }
}

const fn without(places: Places, gone: Places) -> Places {
    let (mut places, mut gone) = (places, gone);
    while gone != 0 {
        let highest = Places::BITS - 1 - gone.leading_zeros();
        let below = places & ((1 << highest) - 1);
        // In two steps: the highest place is no number of bits to shift by.
        places = (places >> highest >> 1 << highest) | below;
        gone &= !(1 << highest);
    }
    places
}

const fn lowest(places: Places) -> usize {
    places.trailing_zeros() as usize
}
