//! One connection as the coordinator sees it: its handle's commands in flight, what is not
//! written out, what may be stale in its cache, and the flush that runs on it.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;

use super::backend::Backend;
use super::clock::Stamp;
use super::command::Command;
use super::in_flight::InFlight;
use super::serial::Calls;
use super::slab::Key;
use crate::wire::Errno;

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
    /// How many modifications had gone into the cache.
    pub(super) count: u64,
}

impl Running {
    /// When the oldest of what may be cached after it can have been loaded, if anything may.
    pub(super) fn kept(&self) -> Option<Stamp> {
        self.oldest_in_flight.or(self.first_after)
    }
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

/// Where a member stands on a list, if it does: an `Option<u32>` of half the size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(test, derive(Hash))]
pub(super) struct Place(u32);

impl Place {
    pub(super) const NONE: Self = Self(u32::MAX);

    /// A place that there cannot be stands for none: nobody has 2^32 connections.
    pub(super) fn new(at: usize) -> Self {
        Self(u32::try_from(at).unwrap_or(u32::MAX))
    }

    pub(super) fn get(self) -> Option<usize> {
        (self != Self::NONE).then_some(self.0 as usize)
    }
}

/// What most connections do not need: about flushes on their handle, or before one, and about
/// failures.
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
    pub(super) draining: Vec<(Stamp, Need)>,
    /// Nothing that may be older than this may be served; zero if anything may.
    pub(super) gate: Stamp,
    /// Commands that wait for the gate to open.
    pub(super) held: VecDeque<Held<T>>,
    /// A flush was asked for by modifications that overlap with its own.
    pub(super) order_requested: bool,
    /// Its last flush before release failed: nothing more can be done for its data.
    pub(super) gave_up: bool,
    /// A failure of this connection's data, and when, that none of its own flushes has reported.
    pub(super) unreported: Option<(Errno, Stamp)>,
    /// Why every flush fails that goes to this handle alone, under the sticky policy.
    pub(super) failed: Option<Errno>,
    /// Commands up to this generation may have had what they wrote dropped by a cache whose flush
    /// failed, under the sticky policy.
    pub(super) dropped: Option<(Stamp, Errno)>,
    /// What waits until the handle is free, where it is called one at a time.
    pub(super) calls: Calls<T>,
}

impl<T> Work<T> {
    const fn new() -> Self {
        Self {
            gate: Stamp::NEVER,
            order_requested: false,
            gave_up: false,
            unreported: None,
            failed: None,
            dropped: None,
            running: None,
            queued: false,
            joined: Vec::new(),
            next: Vec::new(),
            draining: Vec::new(),
            held: VecDeque::new(),
            calls: Calls::new(),
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

    /// A last flush before the release is on its way.
    pub(super) fn leaves(&self) -> bool {
        self.joined.contains(&Need::Leave) || self.next.contains(&Need::Leave)
    }

    fn is_idle(&self) -> bool {
        self.running.is_none()
            && !self.queued
            && self.joined.is_empty()
            && self.next.is_empty()
            && self.draining.is_empty()
            && self.held.is_empty()
            && self.calls.is_empty()
    }

    #[cfg(test)]
    fn each_stamp(&mut self, visit: &mut dyn FnMut(&mut Stamp)) {
        let Self {
            running,
            queued: _,
            joined: _,
            next: _,
            draining,
            gate,
            held: _,
            order_requested: _,
            gave_up: _,
            unreported,
            failed: _,
            dropped,
            calls: _,
        } = self;
        visit(gate);
        draining.iter_mut().for_each(|(at, _)| visit(at));
        unreported.iter_mut().for_each(|(_, at)| visit(at));
        dropped.iter_mut().for_each(|(at, _)| visit(at));
        if let Some(running) = running {
            let Running {
                start,
                oldest_in_flight,
                first_after,
                writes_out: _,
                count,
            } = running;
            visit(start);
            oldest_in_flight.iter_mut().for_each(&mut *visit);
            first_after.iter_mut().for_each(visit);
            // It is for counters only.
            *count = 0;
        }
    }

    /// Whether it says no more than that there is nothing to say.
    fn is_forgettable(&self) -> bool {
        self.is_idle()
            && !self.gate.happened()
            && !self.order_requested
            && !self.gave_up
            && self.unreported.is_none()
            && self.failed.is_none()
            && self.dropped.is_none()
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

/// One connection. There may be very many that are idle: what these do not need is in [`Work`].
#[derive(Clone, Debug)]
#[cfg_attr(test, derive(PartialEq, Eq, Hash))]
pub(super) struct Member<C, T> {
    pub(super) key: C,
    pub(super) group: Key,
    pub(super) phase: Phase,
    pub(super) backend: Backend,
    pub(super) in_flight: InFlight,
    /// When the latest modification completed; zero if none did.
    pub(super) last_mod: Stamp,
    /// When the latest successful flush started: what completed before is covered.
    pub(super) covered: Stamp,
    /// When the oldest of what the cache may hold can have been loaded; zero if it holds nothing.
    pub(super) oldest_load: Stamp,
    /// The running round has written it out; known only where a round visits every handle.
    pub(super) visited: bool,
    /// A flush has covered something since its ranges were last purged.
    pub(super) purgeable: bool,
    /// Where it stands on each list of the group.
    places: [Place; 3],
    /// Commands that wait for others' overlapping modifications, and unfinished FUA commands and
    /// flushes of its own: what a leaving connection has to wait for beyond those in flight.
    pub(super) pending: u32,
    /// How many ranges of modifications are remembered for it.
    pub(super) ranges: u32,
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
            last_mod: Stamp::NEVER,
            covered: Stamp::NEVER,
            oldest_load: Stamp::NEVER,
            visited: false,
            purgeable: false,
            places: [Place::NONE; 3],
            pending: 0,
            ranges: 0,
            work: None,
        }
    }

    pub(super) const fn place_mut(&mut self, list: List) -> &mut Place {
        let [members, dirty, loaded] = &mut self.places;
        match list {
            List::Members => members,
            List::Dirty => dirty,
            List::Loaded => loaded,
        }
    }

    /// Where it stands on a list, if it does.
    pub(super) fn place(&self, list: List) -> Option<usize> {
        let [members, dirty, loaded] = &self.places;
        let place = match list {
            List::Members => members,
            List::Dirty => dirty,
            List::Loaded => loaded,
        };
        place.get()
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

    pub(super) fn work_if_any_mut(&mut self) -> Option<&mut Work<T>> {
        self.work.as_deref_mut()
    }

    pub(super) fn work_mut(&mut self) -> &mut Work<T> {
        self.work.get_or_insert_with(|| Box::new(Work::new()))
    }

    /// Nothing that may be older than this may be served; zero if anything may.
    pub(super) fn gate(&self) -> Stamp {
        self.work.as_ref().map_or(Stamp::NEVER, |work| work.gate)
    }

    /// Anything may be served.
    pub(super) fn ungate(&mut self) {
        if let Some(work) = &mut self.work {
            work.gate = Stamp::NEVER;
        }
    }

    pub(super) fn gave_up(&self) -> bool {
        self.work.as_ref().is_some_and(|work| work.gave_up)
    }

    pub(super) fn failed(&self) -> Option<Errno> {
        self.work.as_ref().and_then(|work| work.failed)
    }

    pub(super) fn unreported(&self) -> Option<(Errno, Stamp)> {
        self.work.as_ref().and_then(|work| work.unreported)
    }

    /// Its client has been told of all that had failed by then.
    pub(super) fn reported(&mut self, by: Stamp) {
        if let Some(work) = &mut self.work {
            work.unreported = work.unreported.filter(|&(_, at)| at > by);
        }
        self.rest();
    }

    pub(super) fn forget_failures(&mut self) {
        if let Some(work) = &mut self.work {
            work.unreported = None;
            work.failed = None;
        }
        self.rest();
    }

    /// No command has begun since it opened.
    pub(super) const fn is_unused(&self) -> bool {
        !self.in_flight.generation().happened()
    }

    /// Gives the memory of the rare case back.
    pub(super) fn rest(&mut self) {
        if self.work.as_ref().is_some_and(|work| work.is_forgettable()) {
            self.work = None;
        }
    }

    pub(super) fn flush_running(&self) -> Option<&Running> {
        self.work.as_ref().and_then(|work| work.running.as_ref())
    }

    /// A command begins: it may load from now on.
    pub(super) fn begin(&mut self, now: Stamp) -> Stamp {
        if let Some(work) = &mut self.work
            && let Some(running) = &mut work.running
        {
            running.first_after.get_or_insert(now);
        }
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
            last_mod,
            covered,
            oldest_load,
            visited: _,
            purgeable: _,
            places: _,
            pending: _,
            ranges: _,
            work,
        } = self;
        in_flight.each_stamp(visit);
        for stamp in [last_mod, covered, oldest_load] {
            visit(stamp);
        }
        if let Some(work) = work {
            work.each_stamp(visit);
        }
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
    use super::super::slab::Slab;
    use super::*;
    use crate::wire::CommandType;

    fn at(stamp: u64) -> Stamp {
        Stamp::from_raw(stamp)
    }

    fn member() -> Member<u8, u8> {
        Member::new(0, Slab::new().insert(()))
    }

    fn held() -> Held<u8> {
        let command = Command::new(CommandType::READ, 0, 1);
        Held { command, tag: 0 }
    }

    fn running() -> Running {
        Running {
            start: at(1),
            oldest_in_flight: None,
            first_after: None,
            writes_out: false,
            count: 0,
        }
    }

    /// Each by itself keeps a connection's work from being forgotten.
    #[test]
    fn nothing_that_is_left_to_do_or_to_say_is_forgotten() {
        let other = Need::Order;
        let left: [fn(&mut Work<u8>, Need); 13] = [
            |work, _| work.running = Some(running()),
            |work, _| work.queued = true,
            |work, need| work.joined.push(need),
            |work, need| work.next.push(need),
            |work, need| work.draining.push((at(1), need)),
            |work, _| work.held.push_back(held()),
            |work, _| work.calls.flush(),
            |work, _| work.gate = at(1),
            |work, _| work.order_requested = true,
            |work, _| work.gave_up = true,
            |work, _| work.unreported = Some((Errno::EIO, at(1))),
            |work, _| work.failed = Some(Errno::EIO),
            |work, _| work.dropped = Some((at(1), Errno::EIO)),
        ];
        for (number, leave) in left.into_iter().enumerate() {
            let mut member = member();
            leave(member.work_mut(), other);
            member.rest();
            assert!(member.work().is_some(), "{number}");
            assert_eq!(member.is_quiet(), number >= 7, "{number}");
        }
        let mut idle = member();
        assert!(idle.is_quiet());
        idle.work_mut();
        assert!(idle.is_quiet());
        idle.rest();
        assert!(idle.work().is_none());
    }

    #[test]
    fn a_need_is_found_wherever_it_waits() {
        let wait: [fn(&mut Work<u8>, Need); 3] = [
            |work, need| work.joined.push(need),
            |work, need| work.next.push(need),
            |work, need| work.draining.push((at(1), need)),
        ];
        for (number, wait) in wait.into_iter().enumerate() {
            let mut gate = Work::new();
            wait(&mut gate, Need::Gate);
            assert!(gate.awaits_gate() && !gate.leaves(), "{number}");
            let mut leave = Work::new();
            wait(&mut leave, Need::Leave);
            // None that leaves is told to wait for its own commands first.
            assert_eq!(leave.leaves(), number < 2, "{number}");
            assert!(!leave.awaits_gate(), "{number}");
        }
    }

    #[test]
    fn a_gate_needs_a_flush_if_somebody_waits_at_it_and_none_is_coming() {
        let mut work = Work::new();
        assert!(!work.gate_needs_flush());
        work.held.push_back(held());
        assert!(work.gate_needs_flush());
        work.joined.push(Need::Gate);
        assert!(!work.gate_needs_flush());
    }

    #[test]
    fn a_report_is_of_what_had_failed_by_then() {
        let mut member = member();
        member.work_mut().unreported = Some((Errno::EIO, at(5)));
        member.reported(at(4));
        assert_eq!(member.unreported(), Some((Errno::EIO, at(5))));
        member.reported(at(5));
        assert_eq!(member.unreported(), None);
        assert!(member.work().is_none());
    }

    #[test]
    fn failures_are_forgotten_all_at_once() {
        let mut member = member();
        let work = member.work_mut();
        work.unreported = Some((Errno::EIO, at(5)));
        work.failed = Some(Errno::ENOSPC);
        member.forget_failures();
        assert_eq!((member.unreported(), member.failed()), (None, None));
        assert!(member.work().is_none());
    }
}
