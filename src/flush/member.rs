//! One connection as the coordinator sees it: its handle's commands in flight, what is not
//! written out, what may be stale in its cache, and the flush that runs on it.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;

use super::clock::Stamp;
use super::command::Command;
use super::config::Backend;
use super::slab::Key;
use crate::wire::Errno;

/// Commands that a handle is executing, in generations.
///
/// To know when all those that were in flight at some moment have ended, the generation is
/// advanced at that moment: commands that begin later count in the next one. This costs a read or
/// write no more than a counter.
#[derive(Clone, Debug, Default)]
#[cfg_attr(test, derive(PartialEq, Eq, Hash))]
pub(super) struct InFlight {
    generation: u64,
    count: u32,
    /// When the first command of the current generation began, if any is in flight.
    first: Stamp,
    /// Earlier generations of which something is in flight, oldest first.
    older: Vec<Generation>,
}

#[derive(Clone, Copy, Debug)]
#[cfg_attr(test, derive(PartialEq, Eq, Hash))]
struct Generation {
    number: u64,
    count: u32,
    /// When its first command began.
    first: Stamp,
}

impl InFlight {
    pub(super) fn begin(&mut self, now: Stamp) -> u64 {
        if self.count == 0 {
            self.first = now;
        }
        self.count += 1;
        self.generation
    }

    pub(super) fn end(&mut self, generation: u64) {
        if generation == self.generation {
            self.count = self.count.saturating_sub(1);
            return;
        }
        let older = &mut self.older;
        let Ok(place) = older.binary_search_by_key(&generation, |it| it.number) else {
            return;
        };
        if let Some(it) = older.get_mut(place) {
            it.count = it.count.saturating_sub(1);
            if it.count == 0 {
                older.remove(place);
            }
        }
    }

    /// Separates what is in flight now from what begins later.
    pub(super) fn advance(&mut self) {
        if self.count > 0 {
            self.older.push(Generation {
                number: self.generation,
                count: self.count,
                first: self.first,
            });
            self.count = 0;
        }
        self.generation += 1;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count == 0 && self.older.is_empty()
    }

    /// Whether a command of this generation or an earlier one is still in flight.
    pub(super) fn reaches_back_to(&self, generation: u64) -> bool {
        match self.older.first() {
            Some(oldest) => oldest.number <= generation,
            None => self.count > 0 && self.generation <= generation,
        }
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    #[cfg(test)]
    fn each_stamp(&mut self, visit: &mut dyn FnMut(&mut Stamp)) {
        // Without a command in flight it means nothing.
        if self.count == 0 {
            self.first = Stamp::NEVER;
        }
        visit(&mut self.first);
        self.older.iter_mut().for_each(|it| visit(&mut it.first));
    }

    /// When the oldest command in flight began, or a little earlier.
    pub(super) fn oldest(&self) -> Option<Stamp> {
        match self.older.first() {
            Some(oldest) => Some(oldest.first),
            None if self.count > 0 => Some(self.first),
            None => None,
        }
    }
}

/// Who waits for a flush of a handle, and what for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(test, derive(Hash))]
pub(super) enum Need {
    /// The round of a group, by its key.
    Round(Key),
    /// A FUA command, by its key.
    Fua(Key),
    /// A client's flush of its own connection, by its key.
    Own(Key),
    /// The handle itself, which is about to be released.
    Leave,
    /// Modifications that overlap with uncovered ones of this handle.
    Order,
    /// Commands that must not meet what the cache holds.
    Gate,
}

/// A backend flush that was handed out.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(test, derive(PartialEq, Eq, Hash))]
pub(super) struct Running {
    pub(super) start: Stamp,
    /// The oldest command that was in flight when it started.
    pub(super) oldest_in_flight: Option<Stamp>,
    /// When the first command after its start began.
    pub(super) first_after: Option<Stamp>,
    /// Whether there was anything to write out.
    pub(super) writes_out: bool,
}

/// A command that waits until its handle may serve.
#[derive(Clone, Debug)]
#[cfg_attr(test, derive(PartialEq, Eq, Hash))]
pub(super) struct Held<T> {
    pub(super) command: Command,
    pub(super) tag: T,
}

/// The lists that a group keeps of its members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum List {
    /// All of them.
    Members,
    /// Those that may have something to write out.
    Dirty,
    /// Those that may have something cached, and are not gated.
    Loaded,
}

/// What only a handle with a flush on it, or before it, needs.
#[derive(Clone, Debug)]
#[cfg_attr(test, derive(PartialEq, Eq, Hash))]
pub(super) struct Work<T> {
    pub(super) running: Option<Running>,
    /// A flush action waits to be taken by the caller.
    pub(super) queued: bool,
    /// Who is served by the running flush, or else by the queued one.
    pub(super) joined: Vec<Need>,
    /// Who needs another one after the running one.
    pub(super) next: Vec<Need>,
    /// Who needs a flush once the commands up to a generation have ended.
    pub(super) draining: Vec<(u64, Need)>,
    /// Commands that wait for the gate to open.
    pub(super) held: VecDeque<Held<T>>,
}

impl<T> Work<T> {
    const fn new() -> Self {
        Self {
            running: None,
            queued: false,
            joined: Vec::new(),
            next: Vec::new(),
            draining: Vec::new(),
            held: VecDeque::new(),
        }
    }

    /// Everybody who waits for a flush, now or later.
    pub(super) fn take_needs(&mut self) -> Vec<Need> {
        let mut needs = core::mem::take(&mut self.joined);
        needs.append(&mut self.next);
        needs.extend(self.draining.drain(..).map(|(_, need)| need));
        needs
    }

    /// A flush for the gate is on its way.
    pub(super) fn awaits_gate(&self) -> bool {
        let asked = self.joined.iter().chain(&self.next);
        let mut asked = asked.chain(self.draining.iter().map(|(_, need)| need));
        asked.any(|&need| need == Need::Gate)
    }

    /// Commands wait for the gate, but no flush is on its way for them.
    pub(super) fn gate_needs_flush(&self) -> bool {
        !self.held.is_empty() && !self.awaits_gate()
    }

    fn is_idle(&self) -> bool {
        self.running.is_none()
            && !self.queued
            && self.joined.is_empty()
            && self.next.is_empty()
            && self.draining.is_empty()
            && self.held.is_empty()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(test, derive(Hash))]
pub(super) enum Phase {
    /// The backend handle is being opened: it may be loading already, but serves nobody.
    Opening,
    Serving,
    /// No more commands will come; released once all is done and written out.
    Leaving,
}

/// One connection.
#[derive(Clone, Debug)]
#[cfg_attr(test, derive(PartialEq, Eq, Hash))]
pub(super) struct Member<C, T> {
    pub(super) key: C,
    pub(super) group: Key,
    pub(super) phase: Phase,
    pub(super) backend: Backend,
    pub(super) in_flight: InFlight,
    /// How many of these modify something.
    pub(super) modifying: u32,
    /// When the latest modification completed; zero if none did.
    pub(super) last_mod: Stamp,
    /// When the latest successful flush started: what completed before is covered.
    pub(super) covered: Stamp,
    /// When the oldest of what the cache may hold can have been loaded; zero if it holds nothing.
    pub(super) oldest_load: Stamp,
    /// Nothing that may be older than this may be served; zero if anything may.
    pub(super) gate: Stamp,
    /// No command has begun since it opened.
    pub(super) unused: bool,
    /// Where it stands on each list of the group.
    places: [Option<u32>; 3],
    /// A failure of this connection's data, and when, that none of its own flushes has reported.
    pub(super) unreported: Option<(Errno, Stamp)>,
    /// Why every flush fails that goes to this handle alone, under the sticky policy.
    pub(super) failed: Option<Errno>,
    /// Commands up to this generation may have had what they wrote dropped by a cache whose flush
    /// failed, under the sticky policy.
    pub(super) dropped: Option<(u64, Errno)>,
    /// The start of the round that last visited it.
    pub(super) visited: Stamp,
    /// What was covered when its ranges were last purged.
    pub(super) purged: Stamp,
    /// Commands that wait for others' overlapping modifications, and unfinished FUA commands and
    /// flushes of its own: what a leaving connection has to wait for beyond those in flight.
    pub(super) pending: u32,
    /// How many ranges of modifications are remembered for it.
    pub(super) ranges: u32,
    /// A flush was asked for by modifications that overlap with its own.
    pub(super) order_requested: bool,
    /// Its last flush before release failed: nothing more can be done for its data.
    pub(super) gave_up: bool,
    work: Option<Box<Work<T>>>,
}

impl<C, T> Member<C, T> {
    pub(super) fn new(key: C, group: Key) -> Self {
        Self {
            key,
            group,
            phase: Phase::Opening,
            backend: Backend::new(),
            in_flight: InFlight::default(),
            modifying: 0,
            last_mod: Stamp::NEVER,
            covered: Stamp::NEVER,
            oldest_load: Stamp::NEVER,
            gate: Stamp::NEVER,
            unused: true,
            places: [None; 3],
            unreported: None,
            failed: None,
            dropped: None,
            visited: Stamp::NEVER,
            purged: Stamp::NEVER,
            pending: 0,
            ranges: 0,
            order_requested: false,
            gave_up: false,
            work: None,
        }
    }

    pub(super) fn place_mut(&mut self, list: List) -> &mut Option<u32> {
        let [members, dirty, loaded] = &mut self.places;
        match list {
            List::Members => members,
            List::Dirty => dirty,
            List::Loaded => loaded,
        }
    }

    pub(super) fn is_listed(&self, list: List) -> bool {
        let [members, dirty, loaded] = &self.places;
        match list {
            List::Members => members.is_some(),
            List::Dirty => dirty.is_some(),
            List::Loaded => loaded.is_some(),
        }
    }

    pub(super) fn take_held(&mut self) -> VecDeque<Held<T>> {
        self.work
            .as_mut()
            .map(|work| core::mem::take(&mut work.held))
            .unwrap_or_default()
    }

    pub(super) fn work(&self) -> Option<&Work<T>> {
        self.work.as_deref()
    }

    pub(super) fn work_mut(&mut self) -> &mut Work<T> {
        self.work.get_or_insert_with(|| Box::new(Work::new()))
    }

    /// Gives the memory of the rare case back.
    pub(super) fn rest(&mut self) {
        if self.work.as_ref().is_some_and(|work| work.is_idle()) {
            self.work = None;
        }
    }

    pub(super) fn flush_running(&self) -> Option<&Running> {
        self.work.as_ref().and_then(|work| work.running.as_ref())
    }

    /// A command begins: it may load from now on.
    pub(super) fn begin(&mut self, now: Stamp) -> u64 {
        if let Some(work) = &mut self.work
            && let Some(running) = &mut work.running
        {
            running.first_after.get_or_insert(now);
        }
        self.unused = false;
        self.in_flight.begin(now)
    }

    #[cfg(test)]
    pub(super) fn each_stamp(&mut self, visit: &mut dyn FnMut(&mut Stamp)) {
        let Self {
            key: _,
            group: _,
            phase: _,
            backend: _,
            in_flight,
            modifying: _,
            last_mod,
            covered,
            oldest_load,
            gate,
            unused: _,
            places: _,
            unreported,
            failed: _,
            dropped: _,
            visited,
            purged,
            pending: _,
            ranges: _,
            order_requested: _,
            gave_up: _,
            work,
        } = self;
        in_flight.each_stamp(visit);
        for stamp in [last_mod, covered, oldest_load, gate, visited, purged] {
            visit(stamp);
        }
        unreported.iter_mut().for_each(|(_, at)| visit(at));
        if let Some(running) = work.as_mut().and_then(|work| work.running.as_mut()) {
            let Running {
                start,
                oldest_in_flight,
                first_after,
                writes_out: _,
            } = running;
            visit(start);
            oldest_in_flight.iter_mut().for_each(&mut *visit);
            first_after.iter_mut().for_each(visit);
        }
    }

    /// The generations of commands that it remembers.
    #[cfg(test)]
    pub(super) fn each_generation(&mut self, visit: &mut dyn FnMut(&mut u64)) {
        visit(&mut self.in_flight.generation);
        let older = self.in_flight.older.iter_mut();
        older.for_each(|it| visit(&mut it.number));
        self.dropped.iter_mut().for_each(|(until, _)| visit(until));
        if let Some(work) = &mut self.work {
            let draining = work.draining.iter_mut();
            draining.for_each(|(generation, _)| visit(generation));
        }
    }

    /// Whether a flush has covered something since its ranges were last purged.
    pub(super) fn purgeable(&self) -> bool {
        self.covered > self.purged
    }

    /// Whether it waits for nothing of its own any more.
    pub(super) fn is_quiet(&self) -> bool {
        self.in_flight.is_empty()
            && self.pending == 0
            && self.work.as_ref().is_none_or(|work| work.is_idle())
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
        assert!(!in_flight.reaches_back_to(in_flight.generation()));
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
        assert_eq!(in_flight.older.len(), 1);
        assert!(in_flight.reaches_back_to(hangs));
        in_flight.end(hangs);
        assert!(in_flight.is_empty());
    }
}
