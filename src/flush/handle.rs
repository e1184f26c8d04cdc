//! Flushes of one backend handle: who needs one, when it may start, what it proved.

use super::clock::Stamp;
use super::command::{Action, FlushId};
use super::config::{AfterFailure, ThreadModel};
use super::coordinator::{FlushCoordinator, Pending};
use super::group::Path;
use super::member::{List, Member, Need, Phase, Place, Running, Work};
use super::slab::Key;
use super::waiting::LAST;
use crate::wire::Errno;

impl<C: Clone, E: Ord + Clone, T> FlushCoordinator<C, E, T> {
    /// Whether something completed on the handle that no flush has covered.
    pub(super) fn is_uncovered(&self, key: Key) -> bool {
        let Some(member) = self.members.get(key) else {
            return false;
        };
        let all = self
            .groups
            .get(member.group)
            .map_or(Stamp::NEVER, |group| group.covered_all);
        member.last_mod > member.covered.max(all)
    }

    /// Whether the handle may hold something that is older than what another one (or, if it is
    /// not coherent with itself, any) has written out since.
    pub(super) fn is_stale(&self, key: Key) -> bool {
        let Some(member) = self.members.get(key) else {
            return false;
        };
        member.oldest_load.happened() && member.oldest_load < self.written_beside(key)
    }

    /// When something was last written out that the cache of a handle may not know of.
    pub(super) fn written_beside(&self, key: Key) -> Stamp {
        let Some(member) = self.members.get(key) else {
            return Stamp::NEVER;
        };
        let Some(group) = self.groups.get(member.group) else {
            return Stamp::NEVER;
        };
        if member.backend.self_coherent() {
            group.write_outs.latest_not_by(key)
        } else {
            group.write_outs.latest()
        }
    }

    /// Needs a flush that covers what has completed on the handle: one that runs will do if it
    /// started after that.
    pub(super) fn write_out(&mut self, key: Key, need: Need) {
        let last_mod = self.members.get(key).map(|member| member.last_mod);
        self.flush_since(key, last_mod.unwrap_or(Stamp::NEVER), need);
    }

    /// The same of a handle that covers all, for what has completed on any of the group.
    pub(super) fn write_out_all(&mut self, key: Key, group: Key) {
        let last_mod = self.groups.get(group).map(|group| group.last_mod);
        self.flush_since(key, last_mod.unwrap_or(Stamp::NEVER), Need::Round(group));
    }

    /// Needs a flush that started after `last_mod`.
    fn flush_since(&mut self, key: Key, last_mod: Stamp, need: Need) {
        let Some(member) = self.members.get_mut(key) else {
            return;
        };
        let work = member.work_mut();
        match &work.running {
            Some(running) if running.start > last_mod => work.joined.push(need),
            _ => self.flush_later(key, need),
        }
    }

    /// Needs a flush that drops whatever was loaded until now, also by commands that are in
    /// flight: it starts when these have ended. One that runs will do if nothing is kept across it
    /// that may be old.
    pub(super) fn invalidate(&mut self, key: Key, need: Need) {
        let served = self.is_served_by_running(key, need);
        let Some(member) = self.members.get_mut(key) else {
            return;
        };
        if served {
            member.work_mut().joined.push(need);
            return;
        }
        // Where a handle is called one at a time, no flush starts before they have ended.
        if member.in_flight.is_empty() || self.serializes() {
            self.flush_later(key, need);
            return;
        }
        let Some(member) = self.members.get_mut(key) else {
            return;
        };
        let generation = member.in_flight.generation();
        member.in_flight.advance();
        member.work_mut().draining.push((generation, need));
    }

    /// Commands of the handle have ended: who waited for them?
    pub(super) fn check_draining(&mut self, key: Key) {
        loop {
            let Some(member) = self.members.get_mut(key) else {
                return;
            };
            let in_flight = &member.in_flight;
            let Some(place) = member.work().and_then(|work| {
                let mut waiting = work.draining.iter();
                waiting.position(|&(generation, _)| !in_flight.reaches_back_to(generation))
            }) else {
                return;
            };
            let (_, need) = member.work_mut().draining.remove(place);
            self.flush_later(key, need);
        }
    }

    /// Needs a flush that starts from now on.
    pub(super) fn flush_later(&mut self, key: Key, need: Need) {
        let Some(member) = self.members.get_mut(key) else {
            return;
        };
        let work = member.work_mut();
        let another = if work.running.is_some() {
            work.next.push(need);
            work.next.len() == 1
        } else {
            work.joined.push(need);
            !core::mem::replace(&mut work.queued, true)
        };
        if self.config.thread_model() == ThreadModel::SerializeRequests {
            if another {
                work.calls.flush();
                self.offer_turn(key);
            }
        } else if another && work.running.is_none() {
            self.actions.push_back(Pending::Flush(key));
        }
    }

    /// The caller takes the flush of a handle: it starts now.
    pub(super) fn start_flush(&mut self, key: Key) -> Option<Action<C, T>> {
        let writes_out = self.is_uncovered(key);
        let start = self.clock.tick();
        let member = self.members.get_mut(key)?;
        let group = self.groups.get_mut(member.group)?;
        group.counters.backend_flushes += 1;
        let running = Running {
            count: group.count(member.place(List::Dirty)),
            start,
            oldest_in_flight: member.in_flight.oldest(),
            first_after: None,
            writes_out,
        };
        member.in_flight.advance();
        let work = member.work_mut();
        work.queued = false;
        work.running = Some(running);
        let flush = FlushId { member: key, start };
        let name = member.key.clone();
        self.join_draining(key);
        Some(Action::Flush { key: name, flush })
    }

    /// A backend flush has ended, with this result. One that the coordinator does not know, or does
    /// not wait for any more because the handle was [lost](Self::lost), is ignored.
    pub fn flushed(&mut self, flush: FlushId, result: Result<(), Errno>) {
        let key = flush.member;
        let Some(member) = self.members.get_mut(key) else {
            return;
        };
        if member
            .flush_running()
            .is_none_or(|running| running.start != flush.start)
        {
            return;
        }
        let work = member.work_mut();
        let Some(running) = work.running.take() else {
            return;
        };
        let served = core::mem::take(&mut work.joined);
        if !work.next.is_empty() {
            work.joined = core::mem::take(&mut work.next);
            work.queued = true;
            // Where a handle is called one at a time, it has its place among the calls already.
            if self.config.thread_model() != ThreadModel::SerializeRequests {
                self.actions.push_back(Pending::Flush(key));
            }
        }
        work.order_requested = false;
        let group = member.group;
        match result {
            Ok(()) => self.flush_succeeded(group, key, running),
            Err(why) => {
                self.flush_failed(group, key, running, why);
                if self.config.after_failure() == AfterFailure::Sticky {
                    self.fail_fua(group, key, why);
                }
            }
        }
        for need in served {
            self.serve(need, key, result);
        }
        self.advance_fence(key);
        self.open_gate(key);
        self.recheck_order(group);
        self.offer_turn(key);
        if let Some(member) = self.members.get_mut(key) {
            member.rest();
        }
        self.try_release(key);
    }

    fn flush_succeeded(&mut self, group_key: Key, key: Key, running: Running) {
        let now = self.clock.tick();
        let (Some(member), Some(group)) =
            (self.members.get_mut(key), self.groups.get_mut(group_key))
        else {
            return;
        };
        group.cover(member.place(List::Dirty), running.count, running.start);
        member.covered = member.covered.max(running.start);
        member.purgeable = true;
        // What was cached when the flush started is gone; what commands in flight fetched before
        // may still be put in the cache after it.
        member.oldest_load = running.kept().unwrap_or(Stamp::NEVER);
        if member.backend.caches_nothing() {
            member.oldest_load = Stamp::NEVER;
        }
        if group.covers_all() {
            group.covered_all = group.covered_all.max(running.start);
        }
        if running.writes_out {
            group.write_outs.note(key, now);
            group.maybe_stale = true;
        }
        self.relist(key);
    }

    /// Something of this handle may have reached storage.
    pub(super) fn note_write_out(&mut self, group: Key, key: Key) {
        let now = self.clock.tick();
        if let Some(group) = self.groups.get_mut(group) {
            group.write_outs.note(key, now);
            group.last_change = now;
            group.maybe_stale = true;
        }
    }

    fn flush_failed(&mut self, group_key: Key, key: Key, running: Running, why: Errno) {
        let now = self.clock.tick();
        let uncovered = self.is_uncovered(key);
        let alone = self
            .groups
            .get(group_key)
            .is_some_and(|group| self.path(group) == Path::Own);
        let (Some(member), Some(group)) =
            (self.members.get_mut(key), self.groups.get_mut(group_key))
        else {
            return;
        };
        group.counters.backend_failures += 1;
        if running.writes_out {
            // Part of it may have reached storage.
            group.write_outs.note(key, now);
            group.maybe_stale = true;
        }
        match self.config.after_failure() {
            AfterFailure::Sticky if alone => member.work_mut().failed = Some(why),
            AfterFailure::Sticky => {
                group.failed.get_or_insert(why);
                group.failed_at = now;
                group.failed_reported = false;
            }
            AfterFailure::Retry if uncovered => {
                member.work_mut().unreported = Some((why, now));
            }
            AfterFailure::Retry => {}
        }
        self.relist(key);
        self.fail_order(group_key, key, running.start, why);
    }

    /// Passes the result of a flush to one who needed it.
    pub(super) fn serve(&mut self, need: Need, key: Key, result: Result<(), Errno>) {
        match need {
            Need::Round(group) => self.round_served(key, group, result),
            Need::Fua(wait) => self.fua_served(wait, key, result),
            Need::Own(wait) => self.own_served(wait, result),
            Need::Leave => self.leave_served(key, result),
            Need::Gate => self.gate_served(key, result),
            // Whether it helped is seen from the ranges.
            Need::Order => {}
        }
    }

    fn leave_served(&mut self, key: Key, result: Result<(), Errno>) {
        let (Some(member), Err(why)) = (self.members.get_mut(key), result) else {
            return;
        };
        // The handle is about to be closed, and what it could not write out goes with it.
        member.work_mut().gave_up = true;
        let group = member.group;
        if self.others_rely_on(group) {
            self.data_lost(group, why);
        }
    }

    /// Nothing that was loaded until now may be served by the handle any more.
    pub(super) fn close_gate(&mut self, key: Key) {
        let now = self.clock.tick();
        if let Some(member) = self.members.get_mut(key) {
            member.work_mut().gate = now;
        }
        self.relist(key);
    }

    /// Whether the flush that runs on a handle drops what `need` is about, if it succeeds.
    fn is_served_by_running(&self, key: Key, need: Need) -> bool {
        match need {
            Need::Gate => self.is_being_ungated(key),
            _ => self.is_being_refreshed(key),
        }
    }

    /// A flush starts: it may do for those who wait until commands have ended that are none of
    /// their business, having begun after all that is old.
    fn join_draining(&mut self, key: Key) {
        let work = self.members.get_mut(key).and_then(Member::work_if_any_mut);
        let Some(work) = work.filter(|work| !work.draining.is_empty()) else {
            return;
        };
        for (generation, need) in core::mem::take(&mut work.draining) {
            let served = self.is_served_by_running(key, need);
            let Some(member) = self.members.get_mut(key) else {
                return;
            };
            let work = member.work_mut();
            if served {
                work.joined.push(need);
            } else {
                work.draining.push((generation, need));
            }
        }
    }

    /// Whether the flush that runs on a handle opens its gate if it succeeds.
    fn is_being_ungated(&self, key: Key) -> bool {
        self.members.get(key).is_some_and(|member| {
            let running = member.flush_running();
            running.is_some_and(|it| it.kept().is_none_or(|loaded| loaded > member.gate()))
        })
    }

    /// Lets commands through again if nothing old is left in the cache.
    fn open_gate(&mut self, key: Key) {
        let Some(member) = self.members.get_mut(key) else {
            return;
        };
        let gate = member.gate();
        if !gate.happened() {
            return;
        }
        if member.oldest_load.happened() && member.oldest_load <= gate {
            // It was closed again meanwhile: whoever waits needs one more flush.
            if member.work().is_some_and(Work::gate_needs_flush) {
                self.invalidate(key, Need::Gate);
            }
            return;
        }
        member.ungate();
        let mut held = member.take_held();
        if self.config.thread_model() == ThreadModel::SerializeRequests && !held.is_empty() {
            let held = core::mem::take(&mut held);
            member.work_mut().calls.put_back(held);
        }
        self.relist(key);
        for held in held {
            let decision = self.admit(key, held.command, held.tag, LAST);
            self.act(key, decision);
        }
    }

    /// The flush that should have opened the gate has ended. If it failed, what waits fails; the
    /// next command tries again.
    fn gate_served(&mut self, key: Key, result: Result<(), Errno>) {
        let (Some(member), Err(why)) = (self.members.get_mut(key), result) else {
            return;
        };
        for held in member.take_held() {
            self.reply(key, held.tag, Err(why));
        }
    }

    /// Whether flushes on other connections are to cover what this group's handles hold.
    pub(super) fn others_rely_on(&self, group: Key) -> bool {
        self.groups
            .get(group)
            .is_some_and(|group| self.path(group) == Path::Emulate)
    }

    /// Keeps the lists of dirty and of loaded members as the member's state says.
    pub(super) fn relist(&mut self, key: Key) {
        let uncovered = self.is_uncovered(key);
        let Some(member) = self.members.get(key) else {
            return;
        };
        // One that is gated is invalidated before it serves, and need not be looked at.
        let loaded = member.oldest_load.happened() && !member.gate().happened();
        self.list(key, List::Dirty, uncovered);
        self.list(key, List::Loaded, loaded);
    }

    /// Puts a member on a list of its group, or takes it off, in constant time.
    pub(super) fn list(&mut self, key: Key, list: List, on: bool) {
        let Self {
            members, groups, ..
        } = self;
        let Some(member) = members.get_mut(key) else {
            return;
        };
        let Some(group) = groups.get_mut(member.group) else {
            return;
        };
        let place = member.place_mut(list);
        match (on, place.get()) {
            (true, None) => {
                *place = Place::new(group.enlist(list, key.index()));
            }
            (false, Some(at)) => {
                *place = Place::NONE;
                if let Some(moved) = group.delist(list, at)
                    && let Some(moved) = members.at_mut(moved)
                {
                    *moved.place_mut(list) = Place::new(at);
                }
            }
            _ => {}
        }
    }

    /// Whether a member has opened, but executed nothing since.
    pub(super) fn is_unused(&self, key: Key) -> bool {
        self.members
            .get(key)
            .is_some_and(|member| member.phase == Phase::Opening || member.is_unused())
    }
}
