//! Which events contradict each other.

use alloc::vec;
use alloc::vec::Vec;

use super::block::{Judgement, Why};
use super::checker::{Crash, Graves};
use super::effect::{Effect, Floor, Flushed, Kind, NEVER, Reading, Stamp};
use super::promise::Promise;
use crate::conformance::history::Content;
use crate::conformance::violation::{Action, Clause, Role, Step, Violation};

/// A read that found what it must not, and all that is known about its block.
pub(super) struct Scene<'a> {
    pub(super) promise: Promise,
    pub(super) granule: u64,
    /// The block's.
    pub(super) number: u64,
    /// What was found.
    pub(super) content: Content,
    pub(super) floor: &'a Floor,
    pub(super) reading: Reading,
    pub(super) effects: &'a [Effect],
    pub(super) graves: &'a Graves,
    pub(super) crash: Option<&'a Crash>,
}

impl Scene<'_> {
    pub(super) fn violation(&self, judgement: Judgement) -> Violation {
        let (clause, mut steps) = match judgement {
            Judgement::Old(place) => match self.effects.get(place) {
                Some(origin) => self.remembered(place, origin),
                None => self.alien(),
            },
            Judgement::Alien | Judgement::Legal => self.alien(),
        };
        steps.push(reading(&self.reading, self.content, Role::Wrong));
        // Of what has several roles, the first counts.
        steps.sort_by_key(|step| step.invoked);
        steps.dedup_by_key(|step| step.invoked);
        Violation {
            promise: self.promise,
            clause,
            offset: self.number.saturating_mul(self.granule),
            length: self.granule,
            found: self.content,
            steps,
        }
    }

    /// What was found is older than something that had to be found.
    fn remembered(&self, place: usize, origin: &Effect) -> (Clause, Vec<Step>) {
        let newer = |it: &&Effect| self.floor.has(it) && it.before >> place & 1 == 1;
        let newer: Vec<&Effect> = self.effects.iter().filter(newer).collect();
        let in_time = newer.iter().filter(|it| precedes(origin, it));
        if let Some(new) = in_time.max_by_key(|it| self.rank(it)) {
            return self.superseded(origin, new);
        }
        let Some(new) = newer.iter().max_by_key(|it| self.rank(it)) else {
            return self.alien();
        };
        // Nothing but reads says that it is newer: those that put something behind what was found.
        let (_, mut steps) = self.superseded(origin, new);
        for it in self.effects {
            let between = core::ptr::eq(it, *new) || new.before >> self.place(it) & 1 == 1;
            if between && it.before >> place & 1 == 1 {
                steps.extend(proof(it));
            }
        }
        (Clause::OneOrder, steps)
    }

    fn place(&self, of: &Effect) -> usize {
        let mut places = self.effects.iter();
        places.position(|it| core::ptr::eq(it, of)).unwrap_or(0)
    }

    /// What was found is nothing that can be found now; perhaps it was, once.
    fn alien(&self) -> (Clause, Vec<Step>) {
        let Some((origin, why)) = self.graves.find(self.number, self.content) else {
            return (Clause::NeverWritten, vec![]);
        };
        let floor = self.effects.iter().filter(|it| self.floor.has(it));
        // Most often time alone says which is newer; if not, what was read in between.
        let newest = floor.max_by_key(|it| (precedes(origin, it), self.rank(it)));
        if let Some(new) = newest {
            let (clause, mut steps) = self.superseded(origin, new);
            if precedes(origin, new) {
                return (clause, steps);
            }
            steps.extend(proof(new));
            return (Clause::OneOrder, steps);
        }
        match why {
            // Nothing that is newer was written since.
            Why::Newer if self.crash.is_some() => self.lost(origin),
            Why::Newer => (Clause::Visibility, effect(origin, Role::Old).collect()),
            Why::Crash => self.lost(origin),
            Why::Other(other) => {
                let mut steps: Vec<Step> = effect(origin, Role::Old).collect();
                let survivor = self.effects.iter().find(|it| it.survivor);
                let content = survivor.map_or(Content::MIXED, |it| it.content);
                steps.extend(survivor.into_iter().flat_map(|it| effect(it, Role::Other)));
                steps.push(reading(&other, content, Role::Proof));
                steps.extend(self.crash());
                (Clause::OneImage, steps)
            }
        }
    }

    /// Something newer was covered when the server crashed.
    fn lost(&self, origin: &Effect) -> (Clause, Vec<Step>) {
        let mut steps: Vec<Step> = effect(origin, Role::Old).collect();
        let survivors = self.effects.iter().filter(|it| it.survivor);
        let newer = survivors.filter(|it| it.answered != NEVER);
        if let Some(new) = newer.max_by_key(|it| (precedes(origin, it), it.invoked)) {
            steps.extend(effect(new, Role::New));
            if !precedes(origin, new) {
                steps.extend(proof(new));
            }
            let flushes = self.crash.map(|it| &it.flushes);
            let covering = flushes.map(|it| it.latest(self.promise.scope, new.serial));
            if !new.fua {
                steps.extend(covering.into_iter().flat_map(flush));
            }
        }
        steps.extend(self.crash());
        (Clause::Durability, steps)
    }

    /// What was found was followed by what had to be found.
    fn superseded(&self, origin: &Effect, new: &Effect) -> (Clause, Vec<Step>) {
        let mut steps: Vec<Step> = effect(origin, Role::Old).collect();
        steps.extend(effect(new, Role::New));
        if self.is_flushed(new) {
            steps.extend(flush(self.floor.flush));
            (Clause::Visibility, steps)
        } else if new.fua {
            (Clause::ForcedAccess, steps)
        } else {
            (Clause::OwnWrites, steps)
        }
    }

    /// A flush says more than FUA, and FUA more than being on the same connection.
    fn rank(&self, new: &Effect) -> (bool, bool, Stamp) {
        (self.is_flushed(new), new.fua, new.settled)
    }

    const fn is_flushed(&self, new: &Effect) -> bool {
        let own = new.serial == self.floor.serial;
        (own || self.promise.is_multi_conn()) && new.settled < self.floor.flush.invoked
    }

    fn crash(&self) -> Option<Step> {
        self.crash.map(|crash| Step {
            role: Role::Crash,
            conn: None,
            action: Action::Crash,
            invoked: number(crash.at),
            replied: crash.reopened.map(number),
            failed: false,
            fua: false,
        })
    }
}

/// In the order of time alone.
const fn precedes(old: &Effect, new: &Effect) -> bool {
    let known = if old.answered == NEVER || old.failed {
        old.settled
    } else {
        old.answered
    };
    known < new.invoked
}

/// The read that has found it when older ones were to be found, or newer.
fn proof(newer: &Effect) -> impl Iterator<Item = Step> + use<> {
    let seen = newer.seen.as_deref();
    let read = seen.map(|it| reading(it, newer.content, Role::Proof));
    let flush = seen.and_then(|it| flush(it.flush));
    let effect = seen.and_then(|_| effect(newer, Role::Other).next());
    [read, flush, effect].into_iter().flatten()
}

/// The number of an event.
const fn number(stamp: Stamp) -> u64 {
    stamp.saturating_sub(1)
}

/// Nothing did what was there at the beginning.
fn effect(effect: &Effect, role: Role) -> impl Iterator<Item = Step> + use<> {
    let action = match effect.kind {
        Kind::Write => Some(Action::Write(effect.content)),
        Kind::Zero => Some(Action::Zero),
        Kind::Trim => Some(Action::Trim),
        Kind::Initial | Kind::Forgotten => None,
    };
    let step = action.map(|action| Step {
        role,
        conn: Some(effect.conn),
        action,
        invoked: number(effect.invoked),
        replied: (effect.answered != NEVER).then(|| number(effect.answered)),
        failed: effect.failed,
        fua: effect.wants_fua,
    });
    step.into_iter()
}

fn reading(reading: &Reading, content: Content, role: Role) -> Step {
    Step {
        role,
        conn: Some(reading.conn),
        action: Action::Read(content),
        invoked: number(reading.invoked),
        replied: Some(number(reading.replied)),
        failed: false,
        fua: false,
    }
}

fn flush(flush: Flushed) -> Option<Step> {
    (flush.invoked > 0).then(|| Step {
        role: Role::Cover,
        conn: Some(flush.conn),
        action: Action::Flush,
        invoked: number(flush.invoked),
        replied: Some(number(flush.replied)),
        failed: false,
        fua: false,
    })
}
