//! What a command did to one block, and when that counts.

use alloc::boxed::Box;

use super::promise::{Promise, Scope};
use crate::conformance::history::Content;

/// When something happened: the number of its event, counted from 1. Before all events is 0.
pub(super) type Stamp = u64;

/// Has not happened.
pub(super) const NEVER: Stamp = Stamp::MAX;

/// A connection, never used again. Several of them use one number one after the other.
pub(super) type Serial = u32;

/// Of what was written through several connections.
pub(super) const SEVERAL: Serial = Serial::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// What was there at the beginning.
    Initial,
    Write,
    Zero,
    /// Leaves anything.
    Trim,
    /// Stands for several that there was no room to remember: anything.
    Forgotten,
}

/// Something that a block may hold.
#[derive(Clone, Debug)]
pub(super) struct Effect {
    pub(super) content: Content,
    pub(super) invoked: Stamp,
    pub(super) answered: Stamp,
    /// From when on it is known to have happened: when it was answered with success; or failed, and
    /// a read has found it.
    pub(super) settled: Stamp,
    /// The effects, by their places in the block, that are older. Closed: with what is older than
    /// those.
    pub(super) before: u64,
    pub(super) serial: Serial,
    pub(super) conn: u32,
    pub(super) kind: Kind,
    /// Succeeded with FUA.
    pub(super) fua: bool,
    /// The command has the flag.
    pub(super) wants_fua: bool,
    pub(super) failed: bool,
    /// A read has found it, and it can have been nothing else.
    pub(super) found: bool,
    /// One of those of which a crash has left one, or the beginning was one.
    pub(super) survivor: bool,
    /// Cannot be what a crash leaves.
    pub(super) dead: bool,
    /// The read by which it was seen to be newer than others.
    pub(super) seen: Option<Box<Reading>>,
}

/// A read, for explanations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reading {
    pub(super) invoked: Stamp,
    pub(super) replied: Stamp,
    pub(super) conn: u32,
    pub(super) flush: Flushed,
}

/// A flush that succeeded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Flushed {
    /// 0 if there was none.
    pub(super) invoked: Stamp,
    pub(super) replied: Stamp,
    pub(super) conn: u32,
}

impl Effect {
    pub(super) const fn initial(content: Option<Content>) -> Self {
        Self {
            content: match content {
                Some(content) => content,
                None => Content::ZEROES,
            },
            invoked: 0,
            answered: 0,
            settled: 0,
            before: 0,
            serial: SEVERAL,
            conn: 0,
            kind: match content {
                Some(_) => Kind::Initial,
                None => Kind::Forgotten,
            },
            fua: false,
            wants_fua: false,
            failed: false,
            found: false,
            survivor: true,
            dead: false,
            seen: None,
        }
    }

    /// Whether reads may find anything where it is.
    pub(super) const fn is_anything(&self) -> bool {
        matches!(self.kind, Kind::Trim | Kind::Forgotten)
    }

    pub(super) fn may_be(&self, content: Content) -> bool {
        self.is_anything() || self.content == content
    }

    /// Whether it certainly happened, and what is older may have to be gone because of it.
    pub(super) const fn counts(&self) -> bool {
        self.settled != NEVER && !self.survivor && !matches!(self.kind, Kind::Forgotten)
    }
}

/// What a read has to find: none of what is older than any of these.
#[derive(Clone, Copy, Debug)]
pub(super) struct Floor {
    pub(super) promise: Promise,
    /// The read's connection.
    pub(super) serial: Serial,
    /// When it was invoked.
    pub(super) at: Stamp,
    /// The flush that covers the most, of those that it can rely on.
    pub(super) flush: Flushed,
}

impl Floor {
    pub(super) const fn has(&self, effect: &Effect) -> bool {
        if !effect.counts() {
            return false;
        }
        let own = effect.serial == self.serial;
        let in_scope = own || self.promise.is_multi_conn();
        let covered =
            effect.settled < self.flush.invoked || (effect.fua && effect.settled < self.at);
        (in_scope && covered) || (own && self.promise.own_writes && effect.settled < self.at)
    }
}

/// What is covered by flushes now.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cover<'a> {
    pub(super) promise: Promise,
    pub(super) flushes: &'a super::flushes::Flushes,
}

impl Cover<'_> {
    pub(super) fn is_durable(&self, effect: &Effect) -> bool {
        effect.counts() && (effect.fua || self.is_flushed(effect))
    }

    fn is_flushed(&self, effect: &Effect) -> bool {
        effect.settled
            < self
                .flushes
                .latest(self.promise.scope, effect.serial)
                .invoked
    }

    /// Whether an effect is older than what is invoked now through this connection.
    pub(super) fn is_older(&self, effect: &Effect, serial: Serial) -> bool {
        if effect.survivor {
            return true;
        }
        if effect.settled == NEVER {
            return false;
        }
        let ordered = self.promise.ordered && self.promise.scope == Scope::All;
        ordered || effect.serial == serial || effect.fua || self.is_flushed(effect)
    }
}

/// How far back what can come, or is in flight, may look.
#[derive(Clone, Copy, Debug)]
pub(super) struct Horizon {
    /// All reads that are to be judged can rely on a flush that was invoked then.
    pub(super) flush: Stamp,
    /// The first of them was invoked then.
    pub(super) at: Stamp,
}

impl Horizon {
    /// Whether no read to come may find what is older than this.
    pub(super) const fn is_past(&self, effect: &Effect) -> bool {
        effect.counts() && (effect.settled < self.flush || (effect.fua && effect.settled < self.at))
    }
}
