//! Rule 6: overlapping modifications through different handles keep their order.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use super::clock::Stamp;
use super::command::{Command, Decision};
use super::coordinator::FlushCoordinator;
use super::group::{OrderWait, Path};
use super::member::{Member, Need, Work};
use super::order::{Range, Segment};
use super::slab::{Key, Slab};
use super::waiting::Place;
use crate::wire::Errno;

/// When a command may be executed.
pub(super) enum Turn {
    /// Now; its range is remembered, if that matters.
    Now(Option<Range>),
    /// Not before something has ended in `until`.
    Later { range: Range, until: Range },
    /// When its handle has dropped what it has cached: the modification would be merged into a
    /// granule that another handle has written since.
    LoadAnew { range: Range },
}

/// Whether modifications in the segment are in flight or uncovered.
pub(super) fn is_live<C, T>(members: &Slab<Member<C, T>>, segment: &Segment) -> bool {
    members
        .get(segment.owner)
        .is_some_and(|owner| segment.in_flight > 0 || segment.last >= owner.covered)
}

impl<C: Clone, E: Ord + Clone, T> FlushCoordinator<C, E, T> {
    /// Decides when a modification through the handle `key` may be executed, which has those that
    /// wait already before it from before `place` on.
    pub(super) fn turn(&mut self, key: Key, command: Command, place: Place) -> Turn {
        let granule = self.config.granule();
        let range = Range::of(command.offset, command.length, granule);
        let group_key = self.members.get(key).map(|member| member.group);
        let (Some(range), Some(group_key)) = (range, group_key) else {
            return Turn::Now(None);
        };
        let stale = granule > 1 && self.is_stale(key);
        let path = self.groups.get(group_key).map(|group| self.path(group));
        let Some(group) = self.groups.get_mut(group_key) else {
            return Turn::Now(None);
        };
        if path != Some(Path::Emulate) {
            return Turn::Now(None);
        }
        // The common case: what was modified is modified again.
        if !stale && group.order_waiting.is_empty() && group.ranges.begin_within(key, range) {
            return Turn::Now(Some(range));
        }
        if let Some(until) = self.must_wait_in_order(group_key, key, range, place) {
            return Turn::Later { range, until };
        }
        if stale {
            return Turn::LoadAnew { range };
        }
        self.take_range(group_key, key, range);
        Turn::Now(Some(range))
    }

    /// Whether a modification of `range` through the handle `key` has to wait: for another
    /// handle's overlapping one, or behind those that wait already from before `place` on, lest they
    /// wait for ever. Returns the range in which something has to end first.
    fn must_wait_in_order(
        &self,
        group: Key,
        key: Key,
        range: Range,
        place: Place,
    ) -> Option<Range> {
        let group = self.groups.get(group)?;
        let members = &self.members;
        let in_the_way = |segment: &Segment| segment.owner != key && is_live(members, segment);
        if group.ranges.over(range).any(|(_, it)| in_the_way(it)) {
            return Some(range);
        }
        if !group.order_waiting.is_empty() {
            // Those that wait for what this one would make longer must not wait for ever.
            let full = |member: &Member<C, T>| member.ranges >= self.config.max_ranges();
            let extent = if members.get(key).is_some_and(full) {
                group.ranges.merged_extent(key, range)
            } else {
                group.ranges.extent(key, range)
            };
            if let Some(behind) = group.order_waiting.earlier(place, key, extent) {
                return Some(behind.range);
            }
        }
        (!self.has_room(group, key, range)).then_some(range)
    }

    /// Whether one more range of this member may be remembered.
    fn has_room(&self, group: &super::group::Group<E, T>, key: Key, range: Range) -> bool {
        let Some(member) = self.members.get(key) else {
            return true;
        };
        member.ranges < self.config.max_ranges()
            || member.purgeable
            // Nothing of it is remembered beyond what is in flight.
            || member.backend.caches_nothing()
            || group.ranges.touches_or_neighbours(key, range)
    }

    /// Remembers a modification that begins.
    fn take_range(&mut self, group: Key, key: Key, range: Range) {
        let max = self.config.max_ranges();
        if self
            .members
            .get(key)
            .is_some_and(|member| member.ranges >= max && member.purgeable)
        {
            self.purge(group, key);
        }
        let Self {
            groups, members, ..
        } = self;
        let Some(group) = groups.get_mut(group) else {
            return;
        };
        // Whatever of others is left there is covered, or they would be waited for.
        while let Some((start, owner)) = group.ranges.first_not_of(key, range) {
            group.ranges.remove(start);
            if let Some(owner) = members.get_mut(owner) {
                owner.ranges = owner.ranges.saturating_sub(1);
            }
        }
        let Some(member) = members.get_mut(key) else {
            return;
        };
        let full = member.ranges >= max && group.ranges.extent(key, range) == range;
        if full
            && group.ranges.over(range).next().is_none()
            && group.ranges.begin_merged(key, range)
        {
            return;
        }
        let more = group.ranges.begin(key, range);
        member.ranges = member.ranges.saturating_add_signed(more);
    }

    /// Forgets the ranges of the group that are covered by now.
    fn purge(&mut self, group: Key, key: Key) {
        let Self {
            groups, members, ..
        } = self;
        let Some(group) = groups.get_mut(group) else {
            return;
        };
        group.ranges.retain(|segment| {
            let live = is_live(members, segment);
            if !live && let Some(owner) = members.get_mut(segment.owner) {
                owner.ranges = owner.ranges.saturating_sub(1);
            }
            live
        });
        if let Some(member) = members.get_mut(key) {
            member.purgeable = false;
        }
    }

    /// A modification waits for its turn.
    pub(super) fn wait_in_order(&mut self, wait: OrderWait<T>) -> Decision<T> {
        let (key, range) = (wait.member, wait.range);
        let Some(member) = self.members.get_mut(key) else {
            return Decision::Closed { tag: wait.tag };
        };
        let group_key = member.group;
        let Some(group) = self.groups.get_mut(group_key) else {
            return Decision::Closed { tag: wait.tag };
        };
        member.pending += 1;
        group.counters.overlap_waits += 1;
        let (anew, load) = (wait.loads_anew, wait.is_load());
        group.order_waiting.push(wait);
        if anew {
            self.load_anew(key);
        } else {
            self.write_out_below(group_key, key, range, load);
        }
        Decision::Wait
    }

    /// Has a handle drop what it has cached, before anything else is served by it.
    fn load_anew(&mut self, key: Key) {
        if self.is_being_refreshed(key) {
            return;
        }
        let awaited = |member: &Member<C, T>| member.work().is_some_and(Work::awaits_gate);
        if !self.members.get(key).is_some_and(awaited) {
            self.close_gate(key);
            self.invalidate(key, Need::Gate);
        }
    }

    /// Has every handle with finished modifications in `range` written out, so that one more of
    /// `key` can follow; those in flight are waited for first.
    fn write_out_below(&mut self, group_key: Key, key: Key, range: Range, load: bool) {
        while let Some(owner) = self.in_the_way(group_key, key, range, load) {
            if let Some(owner) = self.members.get_mut(owner) {
                owner.work_mut().order_requested = true;
            }
            self.write_out(owner, Need::Order);
        }
    }

    /// A handle that can be written out now so that `range` becomes free for `key`, and has not
    /// been asked to yet. It may be its own, if too many of its ranges are remembered.
    fn in_the_way(&self, group: Key, key: Key, range: Range, load: bool) -> Option<Key> {
        let group = self.groups.get(group)?;
        let mut finished = group
            .ranges
            .over(range)
            .map(|(_, segment)| segment)
            .filter(|segment| segment.owner != key && segment.in_flight == 0)
            .filter(|segment| is_live(&self.members, segment));
        if let Some(segment) = finished.find(|segment| self.wants_order_flush(segment.owner)) {
            return Some(segment.owner);
        }
        let full = !load && !self.has_room(group, key, range);
        (full && self.wants_order_flush(key)).then_some(key)
    }

    fn wants_order_flush(&self, key: Key) -> bool {
        self.members
            .get(key)
            .is_some_and(|member| member.work().is_none_or(|work| !work.order_requested))
    }

    /// Nothing is in flight in `range` any more: can commands that wait for that begin? Most ranges
    /// that end have nobody wait for them; that must cost others little.
    pub(super) fn recheck_order_over(&mut self, group_key: Key, range: Range) {
        let Some(group) = self.groups.get(group_key) else {
            return;
        };
        if group.order_waiting.is_empty() {
            return;
        }
        let due = group.order_waiting.until_over(range, None).collect();
        self.recheck_due(group_key, due);
    }

    /// A handle is free: can one of its commands that wait begin?
    pub(super) fn recheck_order_of(&mut self, group_key: Key, key: Key) {
        let mut from = 0;
        while let Some(place) = self
            .groups
            .get(group_key)
            .and_then(|group| group.order_waiting.next_of(key, from))
            && !self.must_wait_for_handle(key)
        {
            self.recheck_due(group_key, BTreeSet::from([place]));
            from = place + 1;
        }
    }

    /// Looks at commands that wait, and at those behind them that need not any longer.
    fn recheck_due(&mut self, group_key: Key, mut due: BTreeSet<Place>) {
        while let Some(place) = due.pop_first() {
            let gone = self.recheck_one(group_key, place);
            // Others may have waited behind it.
            if let Some(range) = gone
                && let Some(group) = self.groups.get(group_key)
            {
                due.extend(group.order_waiting.until_over(range, Some(place)));
            }
        }
    }

    /// Something has ended: can commands that wait begin?
    pub(super) fn recheck_order(&mut self, group_key: Key) {
        let Some(group) = self.groups.get(group_key) else {
            return;
        };
        // What comes to wait meanwhile has been looked at.
        let end = group.order_waiting.end();
        let mut from = 0;
        while let Some(place) = self
            .groups
            .get(group_key)
            .and_then(|group| group.order_waiting.next_in(from..end))
        {
            self.recheck_one(group_key, place);
            from = place + 1;
        }
    }

    /// Begins a command that has waited, if it can. Returns its range if it waits here no more.
    fn recheck_one(&mut self, group_key: Key, place: Place) -> Option<Range> {
        let group = self.groups.get(group_key)?;
        let wait = group.order_waiting.get(place)?;
        let (key, range, load) = (wait.member, wait.range, wait.is_load());
        let until = if load {
            self.others_modify(group_key, key, range).then_some(range)
        } else {
            self.must_wait_in_order(group_key, key, range, place)
        };
        let loads_anew = until.is_none() && self.must_load_anew(key, load);
        let waiting = &mut self.groups.get_mut(group_key)?.order_waiting;
        waiting.set_loads_anew(place, loads_anew);
        if loads_anew {
            // It keeps its place, or others might always come before it.
            self.load_anew(key);
            return None;
        }
        if let Some(until) = until {
            waiting.set_until(place, until);
            self.write_out_below(group_key, key, range, load);
            return None;
        }
        if self.must_wait_for_handle(key) {
            return None;
        }
        let wait = self
            .groups
            .get_mut(group_key)?
            .order_waiting
            .remove(place)?;
        if let Some(member) = self.members.get_mut(key) {
            member.pending = member.pending.saturating_sub(1);
        }
        let decision = self.admit(key, wait.command, wait.tag, place);
        self.act(key, decision);
        Some(range)
    }

    /// A handle could not be written out: what waited for that must not execute, or the older
    /// data might come back over it later.
    pub(super) fn fail_order(&mut self, group_key: Key, owner: Key, start: Stamp, why: Errno) {
        let Some(group) = self.groups.get(group_key) else {
            return;
        };
        let members = &self.members;
        let below = |wait: &OrderWait<T>| {
            let segments = group.ranges.over(wait.range).map(|(_, segment)| segment);
            let mut segments = segments.filter(|segment| segment.owner == owner);
            segments.any(|it| it.in_flight == 0 && it.last < start && is_live(members, it))
        };
        let must_fail = |wait: &OrderWait<T>| {
            if wait.member == owner {
                let full = || !wait.is_load() && !self.has_room(group, owner, wait.range);
                wait.loads_anew || full()
            } else {
                below(wait)
            }
        };
        let failed = group
            .order_waiting
            .iter()
            .filter(|(_, wait)| must_fail(wait));
        let failed: Vec<Place> = failed.map(|(place, _)| place).collect();
        self.fail_waiting(group_key, failed, why);
    }

    /// Commands that wait are answered, unexecuted.
    pub(super) fn fail_waiting(&mut self, group_key: Key, failed: Vec<Place>, why: Errno) {
        let Some(group) = self.groups.get_mut(group_key) else {
            return;
        };
        let waiting = &mut group.order_waiting;
        let failed = failed.into_iter().filter_map(|place| waiting.remove(place));
        let failed: Vec<OrderWait<T>> = failed.collect();
        for wait in failed {
            self.reply(wait.member, wait.tag, Err(why));
            self.settle(wait.member);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::backend::Backend;
    use super::super::command::{Action, Conn, FlushId, Op};
    use super::super::config::{AfterFailure, Config, Mode};
    use super::*;
    use crate::wire::CommandType;

    type Coordinator = FlushCoordinator<u8, u8, u8>;

    fn begin(it: &mut Coordinator, conn: Conn) -> Option<Op> {
        let command = Command::new(CommandType::WRITE, 0, 1);
        match it.command(conn, command, 0) {
            Decision::Execute { op, .. } => Some(op),
            Decision::Wait => None,
            other => panic!("{other:?}"),
        }
    }

    fn flush_of(it: &mut Coordinator) -> FlushId {
        match it.poll() {
            Some(Action::Flush { flush, .. }) => flush,
            other => panic!("{other:?}"),
        }
    }

    /// The first connection has a write completed, and another one in flight in the same range; the
    /// second one's waits for them. A flush of the first is running for a client.
    fn waiting_beside_a_flush() -> (Coordinator, Op, FlushId) {
        let config = Config::new()
            .with_mode(Mode::Emulate)
            .with_after_failure(AfterFailure::Retry);
        let mut it = Coordinator::new(config);
        let [first, second] = [0, 1].map(|key| {
            let conn = it.connect(key, &0);
            let backend = Backend::new().with_flush(true).with_loads_on_open(false);
            it.opened(conn, backend).expect("it has flush");
            conn
        });
        let done = begin(&mut it, first).expect("nobody is in the way");
        let in_flight = begin(&mut it, first).expect("nobody is in the way");
        let _ = it.complete(done, 0, Ok(()));
        assert!(begin(&mut it, second).is_none());
        assert!(matches!(
            it.command(first, Command::FLUSH, 0),
            Decision::Wait
        ));
        let flush = flush_of(&mut it);
        (it, in_flight, flush)
    }

    /// What happens until the write that waits is begun: the failed flush is told to its own client
    /// only.
    fn goes_on(mut it: Coordinator) {
        let mut failed = 0;
        let begun = loop {
            match it.poll() {
                Some(Action::Flush { flush, .. }) => it.flushed(flush, Ok(())),
                Some(Action::Reply { key, result, .. }) => {
                    assert_eq!((key, result), (0, Err(Errno::EIO)));
                    failed += 1;
                }
                Some(Action::Execute { key, .. }) => break key,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!((begun, failed), (1, 1));
    }

    #[test]
    fn a_failed_flush_is_not_told_to_a_write_that_waits_for_one_in_flight() {
        let (mut it, in_flight, flush) = waiting_beside_a_flush();
        it.flushed(flush, Err(Errno::EIO));
        let _ = it.complete(in_flight, 0, Ok(()));
        goes_on(it);
    }

    #[test]
    fn a_failed_flush_is_not_told_to_a_write_that_waits_for_what_came_after_it() {
        let (mut it, in_flight, flush) = waiting_beside_a_flush();
        let _ = it.complete(in_flight, 0, Ok(()));
        it.flushed(flush, Err(Errno::EIO));
        goes_on(it);
    }
}
