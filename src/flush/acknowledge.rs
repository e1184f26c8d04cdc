//! Modifications that are acknowledged when they begin: what must not overtake them.
//!
//! To its client such a modification is done, though the backend still executes it. So whatever
//! overlaps with it waits for its end, and so does a flush that arrives after its acknowledgement;
//! only then is the flush looked at like any other, and finds the modification completed.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use super::clock::Stamp;
use super::command::{Command, Decision, Op};
use super::config::{Acknowledge, AfterFailure};
use super::coordinator::FlushCoordinator;
use super::group::{Path, Waiter};
use super::member::Member;
use super::order::Range;
use super::parked::{Parked, ParkedQueue};
use super::slab::Key;
use super::waiting::{LAST, Place};
use crate::wire::Errno;

/// Whose flushes have to cover a modification: those of the whole group, or of its connection only.
type Scope = Option<Key>;

/// What is acknowledged, but has not completed, and who waits for that.
#[derive(Clone, Debug)]
#[cfg_attr(test, derive(PartialEq, Eq, Hash))]
pub(super) struct Unsettled<T> {
    /// By when they were acknowledged.
    acknowledged: BTreeMap<(Scope, Stamp), (Key, Option<Range>)>,
    /// Where they are, by start. They never overlap: the later one would wait.
    places: BTreeMap<u64, u64>,
    parked: ParkedQueue<T>,
    /// Flushes, by when they arrived.
    flushes: BTreeMap<(Scope, Stamp), Waiter<T>>,
    /// Connections that were revoked, and may still modify anything.
    pub(super) fences: Vec<Key>,
}

impl<T> Unsettled<T> {
    pub(super) const fn new() -> Self {
        Self {
            acknowledged: BTreeMap::new(),
            places: BTreeMap::new(),
            parked: ParkedQueue::new(),
            flushes: BTreeMap::new(),
            fences: Vec::new(),
        }
    }

    #[cfg(test)]
    pub(super) fn each_stamp(&mut self, visit: &mut dyn FnMut(&mut Stamp)) {
        let Self {
            acknowledged,
            places: _,
            parked,
            flushes,
            fences: _,
        } = self;
        parked.renumber();
        for ((scope, mut at), it) in core::mem::take(acknowledged) {
            visit(&mut at);
            acknowledged.insert((scope, at), it);
        }
        for ((scope, mut at), it) in core::mem::take(flushes) {
            visit(&mut at);
            flushes.insert((scope, at), it);
        }
    }

    fn insert(&mut self, scope: Scope, now: Stamp, member: Key, range: Option<Range>) {
        self.acknowledged.insert((scope, now), (member, range));
        if let Some(range) = range {
            self.places.insert(range.start, range.end);
        }
    }

    /// Returns where it was, if it was there.
    fn remove(&mut self, scope: Scope, at: Stamp) -> Option<Option<Range>> {
        let (_, range) = self.acknowledged.remove(&(scope, at))?;
        if let Some(range) = range {
            self.places.remove(&range.start);
        }
        Some(range)
    }

    fn overlaps(&self, range: Range) -> bool {
        let before = self.places.range(..range.end).next_back();
        before.is_some_and(|(_, &end)| end > range.start)
    }

    /// Whether something that was acknowledged before is not completed.
    fn reaches_back_to(&self, scope: Scope, before: Stamp) -> bool {
        let earlier = (scope, Stamp::NEVER)..(scope, before);
        self.acknowledged.range(earlier).next().is_some()
    }

    /// The first flush that need not wait any longer.
    fn next_flush(&mut self, scope: Scope) -> Option<Waiter<T>> {
        let next = self.flushes.range((scope, Stamp::NEVER)..).next();
        let &at = next
            .map(|(at, _)| at)
            .filter(|(whose, _)| *whose == scope)?;
        if self.reaches_back_to(scope, at.1) {
            return None;
        }
        self.flushes.remove(&at)
    }

    /// Removes what waits on a connection: commands, and flushes.
    pub(super) fn take_waiting(&mut self, key: Key) -> (Vec<T>, Vec<T>) {
        let ours = self.parked.take_of(key).into_iter();
        let commands = ours.map(|parked| parked.tag).collect();
        let flushes = self.flushes.iter().filter(|(_, it)| it.member == key);
        let flushes: Vec<_> = flushes.map(|(&at, _)| at).collect();
        let flushes = flushes.iter().filter_map(|at| self.flushes.remove(at));
        (commands, flushes.map(|waiter| waiter.tag).collect())
    }
}

impl<C: Clone, E: Ord + Clone, T> FlushCoordinator<C, E, T> {
    fn scope(&self, key: Key) -> Option<(Key, Scope)> {
        let group = self.members.get(key)?.group;
        let own = self.path(self.groups.get(group)?) == Path::Own;
        Some((group, own.then_some(key)))
    }

    /// A modification begins. Returns when it was acknowledged, if it is acknowledged already.
    // Not inlined, nor the next: the common case needs neither.
    #[inline(never)]
    pub(super) fn acknowledge(&mut self, key: Key, command: Command, now: Stamp) -> Stamp {
        let early = self.config.acknowledge() == Acknowledge::OnReceipt && !command.fua;
        let scope = early.then(|| self.scope(key)).flatten();
        let Some((group, scope)) = scope else {
            return Stamp::NEVER;
        };
        let range = Range::of(command.offset, command.length, 1);
        if let Some(group) = self.groups.get_mut(group) {
            group.unsettled.insert(scope, now, key, range);
            self.guards += 1;
        }
        now
    }

    /// Whether a command must not begin yet, lest it overtake something: one that has those before
    /// it which were parked before `place`.
    #[inline(never)]
    pub(super) fn must_park(&self, key: Key, command: Command, place: Place) -> Option<Range> {
        let range = Range::of(command.offset, command.length, 1)?;
        let group = self.members.get(key).map(|member| member.group);
        let unsettled = &self.groups.get(group?)?.unsettled;
        let modifies = command.kind.is_modification();
        let parks = unsettled.overlaps(range)
            || (modifies && unsettled.fences.iter().any(|&fence| fence != key))
            // Those that wait already come first, or might wait for ever.
            || (modifies && unsettled.parked.is_behind(range, place));
        parks.then_some(range)
    }

    /// A command waits because of what it must not overtake.
    pub(super) fn park(
        &mut self,
        member: Key,
        range: Range,
        command: Command,
        tag: T,
    ) -> Decision<T> {
        let Some(state) = self.members.get_mut(member) else {
            return Decision::Closed { tag };
        };
        let Some(group) = self.groups.get_mut(state.group) else {
            return Decision::Closed { tag };
        };
        state.pending += 1;
        // It may go on waiting, for its handle, when nothing else is left to guard.
        self.guards += 1;
        group.counters.overlap_waits += 1;
        group.unsettled.parked.push(Parked {
            member,
            range,
            command,
            tag,
        });
        Decision::Wait
    }

    /// Something has ended: which of the commands that wait for such may begin?
    pub(super) fn recheck_parked(&mut self, group_key: Key) {
        let group = self.groups.get(group_key);
        let all = group
            .into_iter()
            .flat_map(|it| it.unsettled.parked.places());
        let all: Vec<Place> = all.collect();
        for place in all {
            self.recheck_parked_at(group_key, place);
        }
    }

    /// The same for those of a handle that is free for one of them.
    pub(super) fn recheck_parked_of(&mut self, group_key: Key, key: Key) {
        let mut from = 0;
        while let Some(place) = self
            .groups
            .get(group_key)
            .and_then(|group| group.unsettled.parked.next_of(key, from))
            && !self.must_wait_for_handle(key)
        {
            if let Some(range) = self.recheck_parked_at(group_key, place) {
                self.recheck_parked_over(group_key, range);
            }
            from = place + 1;
        }
    }

    /// The same for those that wait for something in `range`, and for those behind them.
    fn recheck_parked_over(&mut self, group_key: Key, range: Range) {
        let mut seen = range;
        let mut due = BTreeSet::new();
        if let Some(group) = self.groups.get(group_key) {
            due.extend(group.unsettled.parked.over(range));
        }
        while let Some(place) = due.pop_first() {
            let Some(gone) = self.recheck_parked_at(group_key, place) else {
                continue;
            };
            let Some(group) = self.groups.get(group_key) else {
                return;
            };
            // Others may have waited behind it; those in what was seen are due already.
            let (start, end) = (gone.start.min(seen.start), gone.end.max(seen.end));
            let left = (start < seen.start).then_some(Range {
                start,
                end: seen.start,
            });
            let right = (seen.end < end).then_some(Range {
                start: seen.end,
                end,
            });
            for beside in left.into_iter().chain(right) {
                let behind = group.unsettled.parked.over(beside);
                due.extend(behind.filter(|&other| other > place));
            }
            seen = Range { start, end };
        }
    }

    /// Begins a command that has waited, if it can. Returns its range if it waits here no more.
    fn recheck_parked_at(&mut self, group_key: Key, place: Place) -> Option<Range> {
        let parked = self.groups.get(group_key)?.unsettled.parked.get(place)?;
        let (key, command) = (parked.member, parked.command);
        if self.must_park(key, command, place).is_some() || self.must_wait_for_handle(key) {
            return None;
        }
        let queue = &mut self.groups.get_mut(group_key)?.unsettled.parked;
        let Parked { range, tag, .. } = queue.remove(place)?;
        self.guards -= 1;
        if let Some(member) = self.members.get_mut(key) {
            member.pending = member.pending.saturating_sub(1);
        }
        let decision = self.admit_unparked(key, command, tag, LAST);
        self.act(key, decision);
        Some(range)
    }

    /// A client's flush has arrived. To its clients, what is acknowledged has been executed: the
    /// flush waits until that is true, unless it was not advertised, and is refused at once.
    /// What is to follow the flush, if anything, is passed on.
    pub(super) fn flush_arrives(&mut self, key: Key, then: Option<Command>, tag: T) -> Decision<T> {
        let member = key;
        let waiter = Waiter { member, tag, then };
        let refused = |member: &Member<C, T>| member.backend.cannot_flush();
        if self.guards > 0
            && !self.members.get(key).is_some_and(refused)
            && let Some((group, scope)) = self.scope(key)
            && let Some(group) = self.groups.get_mut(group)
        {
            let now = self.clock.tick();
            if group.unsettled.reaches_back_to(scope, now) {
                group.unsettled.flushes.insert((scope, now), waiter);
                self.count_pending(key);
                return Decision::Wait;
            }
        }
        self.client_flush(waiter, false)
    }

    /// What was acknowledged when it began has completed, with this result.
    pub(super) fn settle_acknowledged(&mut self, op: &Op, result: Result<(), Errno>) {
        let Some((group, scope)) = self.scope(op.member) else {
            return;
        };
        let unsettled = self.groups.get_mut(group).map(|group| &mut group.unsettled);
        let Some(range) = unsettled.and_then(|it| it.remove(scope, op.acknowledged)) else {
            return;
        };
        self.guards -= 1;
        if let Err(why) = result {
            self.fail_acknowledged(group, scope, why);
        }
        self.release_flushes(group, scope);
        if let Some(range) = range {
            self.recheck_parked_over(group, range);
        }
    }

    /// What a client was told is done has failed: the next flush of all who rely on it reports
    /// that.
    fn fail_acknowledged(&mut self, group: Key, scope: Scope, why: Errno) {
        let Some(key) = scope else {
            return self.data_lost(group, why);
        };
        let now = self.clock.tick();
        if let Some(member) = self.members.get_mut(key) {
            match self.config.after_failure() {
                AfterFailure::Sticky => {
                    member.work_mut().failed.get_or_insert(why);
                }
                AfterFailure::Retry => member.work_mut().unreported = Some((why, now)),
            }
        }
    }

    /// Flushes that waited for what was acknowledged go on as if they arrived now.
    fn release_flushes(&mut self, group: Key, scope: Scope) {
        while let Some(waiter) = self
            .groups
            .get_mut(group)
            .and_then(|group| group.unsettled.next_flush(scope))
        {
            let member = waiter.member;
            let decision = self.client_flush(waiter, true);
            self.act(member, decision);
            self.settle(member);
        }
    }

    /// A modification that would have been acknowledged with the action which was to begin it is
    /// never begun. Those that wait for it have to be looked at afterwards.
    pub(super) fn forget_acknowledged(&mut self, op: &Op) {
        let Some((group, scope)) = self.scope(op.member) else {
            return;
        };
        let unsettled = self.groups.get_mut(group).map(|group| &mut group.unsettled);
        if unsettled.is_some_and(|it| it.remove(scope, op.acknowledged).is_some()) {
            self.guards -= 1;
        }
    }

    /// A handle is gone, with all that it was executing. Whether others rely on anything of that
    /// which their clients were told is done.
    pub(super) fn lose_acknowledged(&mut self, key: Key) -> bool {
        let Some((group, scope)) = self.scope(key) else {
            return false;
        };
        let Some(group) = self.groups.get_mut(group) else {
            return false;
        };
        let unsettled = &mut group.unsettled;
        let all = unsettled.acknowledged.iter();
        let ours = all.filter(|&(_, &(member, _))| member == key);
        let ours: Vec<Stamp> = ours.map(|(&(_, at), _)| at).collect();
        for &at in &ours {
            unsettled.remove(scope, at);
        }
        self.guards -= ours.len();
        scope.is_none() && !ours.is_empty()
    }

    /// Goes on with those that waited for a connection which is gone.
    pub(super) fn go_on_without(&mut self, group: Key) {
        self.release_flushes(group, None);
        self.recheck_parked(group);
    }
}

#[cfg(test)]
mod tests {
    use super::super::backend::Backend;
    use super::super::command::{Action, Conn};
    use super::super::config::{Config, Mode};
    use super::*;
    use crate::wire::CommandType;

    type Coordinator = FlushCoordinator<u8, u8, u8>;

    fn open(config: Config) -> (Coordinator, [Conn; 2]) {
        let mut coordinator = Coordinator::new(config);
        let conns = [0, 1].map(|key| {
            let conn = coordinator.connect(key, &0);
            let backend = Backend::new().with_flush(true);
            coordinator.opened(conn, backend).unwrap();
            conn
        });
        (coordinator, conns)
    }

    fn write(coordinator: &mut Coordinator, conn: Conn, offset: u64) -> Op {
        let command = Command::new(CommandType::WRITE, offset, 1);
        match coordinator.command(conn, command, 0) {
            Decision::Execute { op, .. } => op,
            other => panic!("{other:?}"),
        }
    }

    /// While nothing is unsettled, no command is looked up among what is.
    #[test]
    fn nothing_guards_what_has_ended_or_is_gone() {
        let config = Config::new().with_acknowledge(Acknowledge::OnReceipt);
        let (mut coordinator, [a, b]) = open(config);
        assert_eq!(coordinator.guards, 0);
        let first = write(&mut coordinator, a, 0);
        let second = write(&mut coordinator, a, 1);
        let lost = write(&mut coordinator, b, 2);
        assert_eq!(coordinator.guards, 3);
        let _ = coordinator.complete(first, 0, Ok(()));
        let _ = coordinator.complete(second, 0, Ok(()));
        assert_eq!(coordinator.guards, 1);
        coordinator.lost(b);
        assert_eq!(coordinator.guards, 0);
        let _ = coordinator.complete(lost, 0, Ok(()));
        assert_eq!(coordinator.guards, 0);
    }

    /// An action to execute that is not taken any more has acknowledged nothing.
    #[test]
    fn nothing_guards_what_is_never_begun() {
        let config = Config::new().with_acknowledge(Acknowledge::OnReceipt);
        let (mut coordinator, [a, b]) = open(config);
        let earlier = write(&mut coordinator, a, 0);
        let command = Command::new(CommandType::WRITE, 0, 1);
        let waits = coordinator.command(b, command, 0);
        assert!(matches!(waits, Decision::Wait));
        // Once the first has ended and is written out, the second is an action that nobody takes.
        let _ = coordinator.complete(earlier, 0, Ok(()));
        let Some(Action::Flush { flush, .. }) = coordinator.poll() else {
            panic!("the first has to be written out");
        };
        coordinator.flushed(flush, Ok(()));
        assert_eq!(coordinator.guards, 1);
        coordinator.revoke(b);
        assert_eq!(coordinator.guards, 0);
    }

    #[test]
    fn a_fence_guards_until_its_connection_is_settled() {
        let config = Config::new().with_mode(Mode::Disable);
        let (mut coordinator, [a, _]) = open(config);
        let op = write(&mut coordinator, a, 0);
        coordinator.revoke(a);
        coordinator.revoke(a);
        assert_eq!(coordinator.guards, 1);
        let _ = coordinator.complete(op, 0, Ok(()));
        while let Some(action) = coordinator.poll() {
            if let Action::Flush { flush, .. } = action {
                assert_eq!(coordinator.guards, 1);
                coordinator.flushed(flush, Ok(()));
            }
        }
        assert_eq!(coordinator.guards, 0);
    }
}
