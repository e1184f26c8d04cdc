//! Clients' flushes: rounds over the handles of a group, flushes of one handle, failures.

use alloc::vec::Vec;

use super::clock::Stamp;
use super::command::Decision;
use super::config::{Acknowledge, AfterFailure, TrackDirty};
use super::coordinator::{FlushCoordinator, Pending};
use super::group::{Group, Path, Round, Step, Waiter};
use super::member::{List, Member, Need, Phase, Running};
use super::observe::Counters;
use super::slab::Key;
use crate::wire::Errno;

impl<C: Clone, E: Ord + Clone, T> FlushCoordinator<C, E, T> {
    /// A client asks for a flush, and for what comes then; now, or it had to be deferred.
    pub(super) fn client_flush(&mut self, waiter: Waiter<T>, deferred: bool) -> Decision<T> {
        let key = waiter.member;
        let Some(member) = self.members.get(key) else {
            return Decision::Closed { tag: waiter.tag };
        };
        let group = member.group;
        if self.config.acknowledge() == Acknowledge::IgnoreFlush {
            self.count(group, |counters| counters.flushes += 1);
            return self.answer_now(group, waiter, deferred);
        }
        if member.backend.cannot_flush() {
            // proto.md "Request types": it was not advertised, and MUST NOT be sent.
            let (tag, result) = (waiter.tag, Err(Errno::EINVAL));
            return Decision::Reply { tag, result };
        }
        let Some(path) = self.groups.get(group).map(|group| self.path(group)) else {
            return Decision::Closed { tag: waiter.tag };
        };
        self.count(group, |counters| counters.flushes += 1);
        if path == Path::Own {
            return self.flush_own(group, waiter, deferred);
        }
        let skip = self.config.track_dirty() != TrackDirty::Off;
        if skip && !self.round_runs(group) && !self.needs_round(group, path) {
            return self.answer_now(group, waiter, deferred);
        }
        self.count_pending(key);
        if let Some(group) = self.groups.get_mut(group) {
            let last = if path == Path::CoversAll {
                group.last_mod
            } else {
                group.last_change
            };
            match &mut group.round {
                // It may join if nothing has completed that the round's flushes could miss.
                Some(round) if last <= round.start => {
                    group.counters.joined += 1;
                    round.waiters.push(waiter);
                }
                _ => {
                    group.counters.joined += u64::from(!group.waiting.is_empty());
                    group.waiting.push(waiter);
                }
            }
        }
        self.start_rounds(group);
        Decision::Wait
    }

    pub(super) fn count(&mut self, group: Key, count: impl FnOnce(&mut Counters)) {
        if let Some(group) = self.groups.get_mut(group) {
            count(&mut group.counters);
        }
    }

    pub(super) fn count_pending(&mut self, key: Key) {
        if let Some(member) = self.members.get_mut(key) {
            member.pending += 1;
        }
    }

    fn round_runs(&self, group: Key) -> bool {
        self.groups
            .get(group)
            .is_some_and(|group| group.round.is_some())
    }

    /// Whether a flush of the whole group has anything to do.
    fn needs_round(&mut self, group_key: Key, path: Path) -> bool {
        let Some(group) = self.groups.get(group_key) else {
            return false;
        };
        if path == Path::CoversAll {
            return group.last_mod > group.covered_all;
        }
        while let Some(key) = self
            .groups
            .get(group_key)
            .and_then(|group| group.listed(List::Dirty, &self.members).next_back())
        {
            if self.is_uncovered(key) {
                return true;
            }
            // Covered by a flush of another handle that covers all.
            self.list(key, List::Dirty, false);
        }
        let Some(group) = self.groups.get(group_key) else {
            return false;
        };
        let stale = self.has_stale(group);
        if !stale && group.maybe_stale {
            self.gate_unused(group_key);
            if let Some(group) = self.groups.get_mut(group_key) {
                group.maybe_stale = false;
            }
        }
        stale
    }

    /// Whether a handle that has served may hold what is old.
    pub(super) fn has_stale(&self, group: &Group<E, T>) -> bool {
        let serves = |&key: &Key| {
            self.members
                .get(key)
                .is_some_and(|member| member.phase == Phase::Serving && member.backend.flush())
        };
        group.maybe_stale
            && group
                .listed(List::Loaded, &self.members)
                .any(|key| serves(&key) && self.is_stale(key) && !self.is_unused(key))
    }

    /// Starts the next round if flushes wait and none runs. A round that has nothing to do ends
    /// at once, so that another may follow.
    fn start_rounds(&mut self, group: Key) {
        while self
            .groups
            .get(group)
            .is_some_and(|group| group.round.is_none() && !group.waiting.is_empty())
        {
            self.start_round(group);
        }
    }

    fn start_round(&mut self, group_key: Key) {
        let now = self.clock.tick();
        let Some(path) = self.groups.get(group_key).map(|group| self.path(group)) else {
            return;
        };
        // What these flushes have to cover may have been covered while they waited.
        let needed =
            self.config.track_dirty() == TrackDirty::Off || self.needs_round(group_key, path);
        let Some(group) = self.groups.get_mut(group_key) else {
            return;
        };
        let waiters = core::mem::take(&mut group.waiting);
        group.counters.rounds += 1;
        group.round = Some(Round {
            start: now,
            step: Step::WriteOut,
            remaining: 0,
            failed: group.waiting_failed.take(),
            waiters,
        });
        if !needed {
            self.finish_round(group_key);
        } else if path == Path::Emulate {
            let group = self.groups.get(group_key);
            if self.visits_everyone() {
                for &index in group.map_or(&[][..], |group| group.list(List::Members)) {
                    if let Some(member) = self.members.at_mut(index) {
                        member.visited = false;
                    }
                }
            }
            let dirty = group.map(|group| group.listed(List::Dirty, &self.members));
            let dirty = dirty.into_iter().flatten();
            let dirty: Vec<Key> = dirty.filter(|&key| self.is_uncovered(key)).collect();
            self.visit(group_key, &dirty, |this, key| {
                this.write_out(key, Need::Round(group_key));
            });
        } else {
            let handle = self.covering_handle(group_key);
            if let Some(group) = self.groups.get_mut(group_key)
                && handle.is_none()
                && group.last_mod > group.covered_all
                && let Some(round) = &mut group.round
            {
                // Nobody is left who could flush what the cache holds.
                round.failed.get_or_insert(Errno::EIO);
            }
            self.visit(group_key, handle.as_slice(), |this, key| {
                this.write_out_all(key, group_key);
            });
        }
    }

    /// Whether a round flushes every handle of the group, needed or not.
    pub(super) fn visits_everyone(&self) -> bool {
        self.config.track_dirty() != TrackDirty::Connection
    }

    /// Makes the round wait for a flush of each of these handles; with none, goes on at once.
    fn visit(&mut self, group: Key, handles: &[Key], flush: impl Fn(&mut Self, Key)) {
        let Some(round) = self
            .groups
            .get_mut(group)
            .and_then(|group| group.round.as_mut())
        else {
            return;
        };
        // Nobody asks for more than 2^32 connections.
        round.remaining = handles.len() as u32;
        for &key in handles {
            if let Some(member) = self.members.get_mut(key) {
                member.visited = true;
            }
            flush(self, key);
        }
        if handles.is_empty() {
            self.advance_round(group);
        }
    }

    /// A handle that the round visits has answered.
    pub(super) fn round_served(&mut self, key: Key, group: Key, mut result: Result<(), Errno>) {
        let gone = self.members.get(key).is_none();
        let Some(state) = self.groups.get(group) else {
            return;
        };
        if gone && self.path(state) == Path::CoversAll {
            let uncovered = state.last_mod > state.covered_all;
            // What another flush has covered meanwhile needs none, unless each has to be one.
            let needed = uncovered || self.config.track_dirty() == TrackDirty::Off;
            if needed && self.visit_another(group) {
                return;
            }
            if uncovered {
                result = result.and(Err(Errno::EIO));
            }
        }
        let Some(round) = self
            .groups
            .get_mut(group)
            .and_then(|group| group.round.as_mut())
        else {
            return;
        };
        if let Err(why) = result {
            round.failed.get_or_insert(why);
        }
        round.remaining = round.remaining.saturating_sub(1);
        if round.remaining == 0 {
            self.advance_round(group);
            self.start_rounds(group);
        }
    }

    /// A handle whose flush covers all: if possible, that of a connection which waits for it.
    fn covering_handle(&self, group: Key) -> Option<Key> {
        let group = self.groups.get(group)?;
        let waiters = group.round.as_ref().map_or(&[][..], |round| &round.waiters);
        let waiting = waiters.iter().map(|waiter| waiter.member);
        let members = group.listed(List::Members, &self.members);
        waiting.chain(members).find(|&key| {
            self.members
                .get(key)
                .is_some_and(|member| member.phase != Phase::Opening && member.backend.flush())
        })
    }

    /// The only handle of the round is gone; another one serves as well.
    fn visit_another(&mut self, group: Key) -> bool {
        let another = self.covering_handle(group);
        if let Some(key) = another {
            self.write_out_all(key, group);
        }
        another.is_some()
    }

    fn advance_round(&mut self, group_key: Key) {
        let Some(group) = self.groups.get(group_key) else {
            return;
        };
        let path = self.path(group);
        let Some(round) = self
            .groups
            .get_mut(group_key)
            .and_then(|group| group.round.as_mut())
        else {
            return;
        };
        // Where the first step failed, nobody is promised what the second is for.
        let failed = round.failed.is_some();
        if round.step == Step::WriteOut && path == Path::Emulate && !failed {
            round.step = Step::Invalidate;
            self.gate_unused(group_key);
            let handles = self.to_invalidate(group_key);
            self.visit(group_key, &handles, |this, key| {
                if this.is_stale(key) {
                    this.invalidate(key, Need::Round(group_key));
                } else {
                    this.write_out(key, Need::Round(group_key));
                }
            });
        } else {
            self.finish_round(group_key);
        }
    }

    /// The barrier: all that the round has to write out is written out. Which handles may hold
    /// something from before?
    fn to_invalidate(&self, group: Key) -> Vec<Key> {
        let Some(group) = self.groups.get(group) else {
            return Vec::new();
        };
        let everyone = self.visits_everyone();
        let list = if everyone {
            List::Members
        } else {
            List::Loaded
        };
        let serving = |&key: &Key| {
            self.members
                .get(key)
                .is_some_and(|member| member.phase == Phase::Serving && member.backend.flush())
        };
        let wanted = |&key: &Key| {
            let visited = self.members.get(key).is_some_and(|member| member.visited);
            self.is_stale(key) || (everyone && !visited)
        };
        let handles = group.listed(list, &self.members);
        handles.filter(serving).filter(wanted).collect()
    }

    /// Handles that were opened, but not used yet, need not be flushed while a client waits:
    /// they are when, and if, their first command comes.
    pub(super) fn gate_unused(&mut self, group: Key) {
        let Some(group) = self.groups.get(group) else {
            return;
        };
        if !group.maybe_stale {
            return;
        }
        let loaded = group.listed(List::Loaded, &self.members);
        let unused: Vec<Key> = loaded
            .filter(|&key| self.is_unused(key) && self.is_stale(key))
            .collect();
        for key in unused {
            self.close_gate(key);
        }
    }

    fn finish_round(&mut self, group_key: Key) {
        let Some(round) = self
            .groups
            .get_mut(group_key)
            .and_then(|group| group.round.take())
        else {
            return;
        };
        for waiter in round.waiters {
            self.answer_flush(group_key, waiter, round.failed);
        }
    }

    /// Answers a flush that had to wait.
    pub(super) fn answer_flush(&mut self, group: Key, waiter: Waiter<T>, failed: Option<Errno>) {
        match self.verdict(group, waiter.member, failed) {
            Ok(()) => self.go_on(waiter),
            Err(why) => {
                self.count(group, |counters| counters.failed += 1);
                let at = self.clock.tick();
                let Waiter { member, tag, .. } = waiter;
                self.actions.push_back(Pending::FailedFlush {
                    member,
                    tag,
                    why,
                    at,
                });
            }
        }
    }

    /// One thing less for which a leaving connection has to wait.
    pub(super) fn settle(&mut self, key: Key) {
        if let Some(member) = self.members.get_mut(key) {
            member.pending = member.pending.saturating_sub(1);
        }
        self.try_release(key);
    }

    /// What a client's flush is answered, if the backend's answer was this.
    pub(super) fn verdict(&self, group: Key, key: Key, failed: Option<Errno>) -> Result<(), Errno> {
        let member = self.members.get(key);
        let group = self.groups.get(group);
        let failed = failed
            .or(group.and_then(|group| group.failed))
            .or(member.and_then(Member::failed))
            .or(member.and_then(|member| member.unreported().map(|(why, _)| why)))
            .or(group.and_then(|group| group.lost.map(|(why, _)| why)));
        failed.map_or(Ok(()), Err)
    }

    /// A client is told that a flush failed, because of what had failed by then. Only from now on
    /// may its next one succeed: until the client has heard of the failure, none of its flushes
    /// must.
    pub(super) fn failure_reported(&mut self, key: Key, by: Stamp) {
        let Some(member) = self.members.get_mut(key) else {
            return;
        };
        member.reported(by);
        if let Some(group) = self.groups.get_mut(member.group) {
            group.lost = group.lost.filter(|&(_, at)| at > by);
            group.failed_reported |= group.failed_at <= by;
        }
    }

    /// A flush that needs nothing is answered at once.
    fn answer_now(&mut self, group: Key, waiter: Waiter<T>, deferred: bool) -> Decision<T> {
        self.count(group, |counters| counters.skipped += 1);
        if deferred {
            // Its client knows of a failure only when it is told, and its next flush may come
            // before that.
            self.count_pending(waiter.member);
            self.answer_flush(group, waiter, None);
            return Decision::Wait;
        }
        let Waiter {
            member: key,
            tag,
            then,
        } = waiter;
        let result = self.verdict(group, key, None);
        self.count(group, |counters| {
            counters.failed += u64::from(result.is_err());
        });
        if result.is_err() {
            let now = self.clock.tick();
            self.failure_reported(key, now);
        } else if let Some(command) = then {
            return self.arrive(key, command, tag);
        }
        Decision::Reply { tag, result }
    }

    /// Data that clients believe written is gone for good.
    pub(super) fn data_lost(&mut self, group: Key, why: Errno) {
        let now = self.clock.tick();
        let Some(group) = self.groups.get_mut(group) else {
            return;
        };
        if self.config.after_failure() == AfterFailure::Sticky {
            group.failed.get_or_insert(why);
            group.failed_at = now;
            group.failed_reported = false;
            return;
        }
        // No retry brings it back: everybody who may rely on it is told once, and if a newcomer's
        // flush is the first to come, then the newcomer too.
        group.lost = Some((why, now));
        if let Some(round) = &mut group.round {
            round.failed.get_or_insert(why);
        }
        if !group.waiting.is_empty() {
            group.waiting_failed = Some(why);
        }
        for &index in group.list(List::Members) {
            if let Some(member) = self.members.at_mut(index) {
                member.work_mut().unreported = Some((why, now));
            }
        }
    }

    /// A client's flush concerns its own connection only.
    fn flush_own(&mut self, group: Key, waiter: Waiter<T>, deferred: bool) -> Decision<T> {
        let key = waiter.member;
        let skip = match self.config.track_dirty() {
            TrackDirty::Off => false,
            // A clean mark for the group would say nothing about this handle.
            TrackDirty::Fast | TrackDirty::Connection => {
                !self.is_uncovered(key) && !self.is_stale(key)
            }
        };
        let can_flush = self
            .members
            .get(key)
            .is_some_and(|member| member.backend.flush());
        if skip || !can_flush {
            return self.answer_now(group, waiter, deferred);
        }
        if self.is_flush_coming(key) {
            self.count(group, |counters| counters.joined += 1);
        }
        self.count_pending(key);
        let wait = self.own.insert(waiter);
        if self.keeps_old(key) {
            // It has to start from now on, or old data would stay.
            self.flush_later(key, Need::Own(wait));
        } else {
            self.write_out(key, Need::Own(wait));
        }
        Decision::Wait
    }

    /// Whether a flush that was asked for, and has not started, serves one more client of this
    /// connection; or one that runs, and started after what it has to cover.
    fn is_flush_coming(&self, key: Key) -> bool {
        let Some((member, work)) = self.members.get(key).and_then(|it| Some((it, it.work()?)))
        else {
            return false;
        };
        let serves = |running: &Running| running.start > member.last_mod && !self.keeps_old(key);
        work.queued || !work.next.is_empty() || work.running.as_ref().is_some_and(serves)
    }

    /// Whether a handle may hold what is old, and the flush that runs on it, if any, leaves it
    /// there.
    fn keeps_old(&self, key: Key) -> bool {
        self.is_stale(key) && !self.is_being_refreshed(key)
    }

    pub(super) fn own_served(&mut self, wait: Key, result: Result<(), Errno>) {
        let Some(waiter) = self.own.remove(wait) else {
            return;
        };
        let Some(group) = self.members.get(waiter.member).map(|member| member.group) else {
            return;
        };
        self.answer_flush(group, waiter, result.err());
    }
}

#[cfg(test)]
mod tests {
    use super::super::backend::Backend;
    use super::super::command::{Action, Command, Conn, FlushId};
    use super::super::config::{Config, Mode};
    use super::*;
    use crate::wire::CommandType;

    type Coordinator = FlushCoordinator<u8, u8, u8>;

    fn open(config: Config) -> (Coordinator, Conn) {
        let mut it = Coordinator::new(config);
        let conn = it.connect(0, &0);
        let backend = Backend::new().with_flush(true).with_loads_on_open(false);
        it.opened(conn, backend).expect("it has flush");
        (it, conn)
    }

    fn write(it: &mut Coordinator, conn: Conn) {
        let command = Command::new(CommandType::WRITE, 0, 1);
        match it.command(conn, command, 0) {
            Decision::Execute { op, tag } => drop(it.complete(op, tag, Ok(()))),
            other => panic!("{other:?}"),
        }
    }

    fn next_flush(it: &mut Coordinator) -> FlushId {
        match it.poll() {
            Some(Action::Flush { flush, .. }) => flush,
            other => panic!("{other:?}"),
        }
    }

    /// Of flushes of one connection that nobody else relies on.
    #[test]
    fn those_have_joined_that_need_no_flush_of_their_own() {
        let (mut it, conn) = open(Config::new().with_mode(Mode::Disable));
        let ask = |it: &mut Coordinator| {
            assert!(matches!(
                it.command(conn, Command::FLUSH, 0),
                Decision::Wait
            ));
            it.counters().joined
        };
        write(&mut it, conn);
        assert_eq!(ask(&mut it), 0);
        assert_eq!(ask(&mut it), 1, "one is asked for");
        let flush = next_flush(&mut it);
        assert_eq!(
            ask(&mut it),
            2,
            "the one that runs covers all that was written"
        );
        write(&mut it, conn);
        assert_eq!(ask(&mut it), 2, "the one that runs does not");
        assert_eq!(ask(&mut it), 3, "another one is asked for");
        it.flushed(flush, Ok(()));
        let flush = next_flush_after_replies(&mut it);
        it.flushed(flush, Ok(()));
        let counters = it.counters();
        assert_eq!((counters.flushes, counters.backend_flushes), (5, 2));
        assert!(matches!(
            it.command(conn, Command::FLUSH, 0),
            Decision::Reply { result: Ok(()), .. }
        ));
        assert_eq!(it.counters().skipped, 1);
    }

    fn next_flush_after_replies(it: &mut Coordinator) -> FlushId {
        loop {
            match it.poll() {
                Some(Action::Flush { flush, .. }) => return flush,
                Some(Action::Reply { result: Ok(()), .. }) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_flush_that_is_answered_at_once_counts_all_the_same() {
        let config = Config::new().with_mode(Mode::Disable);
        let (mut it, conn) = open(config.with_acknowledge(Acknowledge::IgnoreFlush));
        for asked in 1..=3 {
            let _ = it.command(conn, Command::FLUSH, 0);
            let counters = it.counters();
            assert_eq!((counters.flushes, counters.skipped), (asked, asked));
        }
        let (mut it, conn) = open(config);
        write(&mut it, conn);
        assert!(matches!(
            it.command(conn, Command::FLUSH, 0),
            Decision::Wait
        ));
        let flush = next_flush(&mut it);
        it.flushed(flush, Err(Errno::EIO));
        assert!(matches!(
            it.poll(),
            Some(Action::Reply { result: Err(_), .. })
        ));
        // Nothing is left that a flush could write out, but what failed is remembered.
        for failed in 2..=3 {
            if let Decision::Wait = it.command(conn, Command::FLUSH, 0) {
                let flush = next_flush(&mut it);
                it.flushed(flush, Ok(()));
                assert!(matches!(
                    it.poll(),
                    Some(Action::Reply { result: Err(_), .. })
                ));
            }
            assert_eq!(it.counters().failed, failed);
        }
    }
}
