//! Connections that leave: what is written out before, who is answered, what is forgotten.

use alloc::vec::Vec;

use super::command::{Action, Conn, Op};
use super::config::{AfterFailure, Mode};
use super::coordinator::{FlushCoordinator, Pending};
use super::member::{List, Need, Phase};
use super::slab::Key;
use crate::wire::Errno;

/// So many ranges of members that are gone may stay for the moment. More are looked for, which
/// takes time in proportion to all ranges, when they are half of them.
const MOST_ORPHANS: u32 = 1024;

impl<C: Clone, E: Ord + Clone, T> FlushCoordinator<C, E, T> {
    /// The client of a connection is gone, or is going (proto.md "Terminating the transmission
    /// phase"): no more commands will come. Those that
    /// came are still carried out and answered; when all is done, and what the handle holds is
    /// written out where others rely on it, [`Action::Release`] says that it can be closed.
    ///
    /// A connection that is still being opened is forgotten at once, without such an action.
    pub fn disconnect(&mut self, conn: Conn) {
        let Some(member) = self.members.get_mut(conn.0) else {
            return;
        };
        match member.phase {
            Phase::Opening => self.remove(conn.0),
            Phase::Serving | Phase::Leaving => {
                member.phase = Phase::Leaving;
                self.try_release(conn.0);
            }
        }
    }

    /// A backend handle is gone, with all that it had not written out. Call this only when nothing
    /// that the handle was asked to do can happen any more: when its process has ended, not when it
    /// does not answer. If others rely on what is lost, the group's next flushes fail. (What
    /// a handle with multi-conn has not written out is in a cache that all share, and stays there.)
    ///
    /// The connection is over: its commands are [closed](super::Decision::Closed) from now on. What
    /// waits on it is answered with [`Errno::EIO`], then [`Action::Release`] follows. Commands that
    /// are executing are the caller's to answer, but for those that were
    /// [acknowledged](super::Op::acknowledged) already; [`complete`](Self::complete) would only
    /// give their tags back, [closed](super::Decision::Closed), and their [`Op`]s may be dropped
    /// instead. A connection that is still being opened is forgotten at once, without a release.
    pub fn lost(&mut self, conn: Conn) {
        let key = conn.0;
        let Some(member) = self.members.get_mut(key) else {
            return;
        };
        if member.phase == Phase::Opening {
            return self.remove(key);
        }
        member.phase = Phase::Leaving;
        let group = member.group;
        let release = Action::Release {
            key: member.key.clone(),
        };
        let mut result = Ok(());
        if member.in_flight.modifying > 0 || self.is_uncovered(key) {
            // Who knows what of it has reached storage.
            self.note_write_out(group, key);
        }
        if self.is_uncovered(key) && self.others_rely_on(group) {
            self.data_lost(group, Errno::EIO);
            self.fail_loads(group, key, Errno::EIO);
            result = Err(Errno::EIO);
        }
        let needs = self.abandon(key);
        if self.lose_acknowledged(key) {
            self.data_lost(group, Errno::EIO);
        }
        self.actions.push_back(Pending::Now(release));
        self.remove(key);
        for need in needs {
            self.serve(need, key, result);
        }
        self.go_on_without(group);
        self.recheck_order(group);
    }

    /// Answers everything that waits on a lost connection, and returns who waits for its handle.
    fn abandon(&mut self, key: Key) -> Vec<Need> {
        let Some(member) = self.members.get_mut(key) else {
            return Vec::new();
        };
        let queued = member.work().is_some_and(|work| work.queued);
        let needs = member.work_mut().take_needs();
        let (mut waiting, unexecuted) = self.take_waiting(key);
        for (op, tag) in unexecuted {
            self.forget_acknowledged(&op);
            waiting.push(tag);
        }
        if queued {
            let ours = |it: &Pending<C, T>| matches!(it, Pending::Flush(handle) if *handle == key);
            self.actions.retain(|action| !ours(action));
        }
        for tag in waiting {
            self.reply(key, tag, Err(Errno::EIO));
        }
        needs
    }

    /// Removes everything that waits on a connection: commands and flushes, and commands that were
    /// to be executed, but have not been taken, and never will be.
    pub(super) fn take_waiting(&mut self, key: Key) -> (Vec<T>, Vec<(Op, T)>) {
        let Some(member) = self.members.get_mut(key) else {
            return (Vec::new(), Vec::new());
        };
        let group = member.group;
        let held = member.take_held().into_iter();
        let mut waiting: Vec<T> = held.map(|held| held.tag).collect();
        if member.work().is_some() {
            waiting.extend(member.work_mut().calls.take_commands());
        }
        // Most that are lost at once, as with a process that has many, are idle: each of them must
        // not look through what all the others have left to be done.
        let (pending, in_flight) = (member.pending > 0, !member.in_flight.is_empty());
        if pending {
            self.take_pending(group, key, &mut waiting);
        }
        let mut unexecuted = Vec::new();
        if pending || in_flight {
            for action in core::mem::take(&mut self.actions) {
                match action {
                    Pending::Now(Action::Execute { op, tag, .. }) if op.member == key => {
                        unexecuted.push((op, tag));
                    }
                    Pending::FailedFlush { member, tag, .. } if member == key => waiting.push(tag),
                    action => self.actions.push_back(action),
                }
            }
        }
        (waiting, unexecuted)
    }

    /// Removes what a connection has waiting in its group, or for flushes of its own.
    fn take_pending(&mut self, group: Key, key: Key, waiting: &mut Vec<T>) {
        if let Some(group) = self.groups.get_mut(group) {
            let ours = group.order_waiting.take_of(key);
            waiting.extend(ours.into_iter().map(|wait| wait.tag));
            let joined = group.round.as_mut().map(|round| &mut round.waiters);
            for waiters in joined.into_iter().chain([&mut group.waiting]) {
                let ours = waiters.extract_if(.., |wait| wait.member == key);
                waiting.extend(ours.map(|wait| wait.tag));
            }
            if group.waiting.is_empty() {
                // Nobody is left who waits for what was lost, and later flushes need not.
                group.waiting_failed = None;
            }
            let (commands, flushes) = group.unsettled.take_waiting(key);
            self.guards -= commands.len();
            waiting.extend(commands.into_iter().chain(flushes));
        }
        let fuas = self.fuas.iter().filter(|(_, wait)| wait.member == key);
        for wait in fuas.map(|(wait, _)| wait).collect::<Vec<_>>() {
            waiting.extend(self.fuas.remove(wait).map(|wait| wait.tag));
        }
        let own = self.own.iter().filter(|(_, wait)| wait.member == key);
        for wait in own.map(|(wait, _)| wait).collect::<Vec<_>>() {
            waiting.extend(self.own.remove(wait).map(|wait| wait.tag));
        }
    }

    /// Releases a leaving connection if nothing holds it any more.
    pub(super) fn try_release(&mut self, key: Key) {
        let Some(member) = self.members.get(key) else {
            return;
        };
        if member.phase != Phase::Leaving || !member.is_quiet() {
            return;
        }
        let awaited = self.others_rely_on(member.group) || self.is_fence(key);
        if awaited && !member.gave_up() && member.backend.flush() && self.is_uncovered(key) {
            self.write_out(key, Need::Leave);
            return;
        }
        let action = Action::Release {
            key: member.key.clone(),
        };
        self.actions.push_back(Pending::Now(action));
        let group = member.group;
        self.remove(key);
        self.recheck_parked(group);
        self.recheck_order(group);
    }

    /// Forgets a connection.
    pub(super) fn remove(&mut self, key: Key) {
        let Some(group_key) = self.members.get(key).map(|member| member.group) else {
            return;
        };
        self.lift_fence(group_key, key);
        for list in [List::Members, List::Dirty, List::Loaded] {
            self.list(key, list, false);
        }
        let Some(member) = self.members.remove(key) else {
            return;
        };
        let Self {
            members, groups, ..
        } = self;
        let Some(group) = groups.get_mut(group_key) else {
            return;
        };
        group.order_waiting.take_of(key);
        group.orphans = group.orphans.saturating_add(member.ranges);
        if group.orphans > MOST_ORPHANS && group.orphans as usize > group.ranges.len() / 2 {
            group
                .ranges
                .retain(|segment| members.get(segment.owner).is_some());
            group.orphans = 0;
        }
        if member.phase != Phase::Opening {
            group.open -= 1;
            group.writable -= u32::from(!member.backend.read_only());
            group.cannot_flush -= u32::from(member.backend.cannot_flush());
        }
        if group.list(List::Members).is_empty() {
            let emulated = self.config.mode() == Mode::Emulate;
            if emulated || !group.covers_all() || !group.flush {
                // What handles of their own cached is written out, or reported as lost. A shared
                // cache, in contrast, still has to be flushed by whoever comes next.
                group.give_up();
            }
            self.group_emptied(group_key);
        }
    }

    /// The last member is gone.
    pub(super) fn group_emptied(&mut self, group_key: Key) {
        let Some(group) = self.groups.get_mut(group_key) else {
            return;
        };
        group.ranges.clear();
        group.orphans = 0;
        if group.last_mod <= group.covered_all {
            group.multi_conn = None;
            group.flush = false;
        }
        if group.failed_reported && self.config.after_failure() == AfterFailure::Sticky {
            group.failed = None;
            group.failed_reported = false;
        }
        if group.is_forgettable()
            && let Some(export) = group.export.clone()
        {
            self.forgotten += group.counters;
            self.by_export.remove(&export);
            self.groups.remove(group_key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::backend::Backend;
    use super::super::command::Command;
    use super::super::config::Config;
    use super::*;
    use crate::wire::CommandType;

    type Coordinator = FlushCoordinator<u8, u8, u8>;

    fn open(it: &mut Coordinator, backend: Backend) -> Conn {
        let conn = it.connect(0, &0);
        it.opened(conn, backend).expect("it can be coordinated");
        conn
    }

    /// What a group counts of its members goes down by those that leave, and by no more.
    #[test]
    fn a_group_counts_those_that_are_open() {
        let config = Config::new().with_mode(Mode::Disable);
        let mut it = Coordinator::new(config);
        let counts = |it: &Coordinator| {
            let (_, group) = it.groups.iter().next().expect("it is there");
            (group.open, group.writable, group.cannot_flush)
        };
        let first = open(&mut it, Backend::new().with_flush(true));
        let reads = open(
            &mut it,
            Backend::new().with_flush(true).with_read_only(true),
        );
        let unflushable = [(); 3].map(|()| open(&mut it, Backend::new()));
        assert_eq!(counts(&it), (5, 4, 3));
        it.disconnect(unflushable[0]);
        assert_eq!(counts(&it), (4, 3, 2));
        it.lost(reads);
        assert_eq!(counts(&it), (3, 3, 2));
        let opening = it.connect(0, &0);
        it.disconnect(opening);
        assert_eq!(counts(&it), (3, 3, 2));
        it.disconnect(first);
        assert_eq!(counts(&it), (2, 2, 2));
    }

    /// Of those that are gone no more ranges stay than there are of the others, but for a few.
    #[test]
    fn ranges_of_those_that_are_gone_do_not_pile_up() {
        let config = Config::new()
            .with_mode(Mode::Emulate)
            .with_max_ranges(2 * MOST_ORPHANS);
        let mut it = Coordinator::new(config);
        let backend = Backend::new().with_flush(true);
        let stays = open(&mut it, backend);
        let mut place = 0;
        let mut write = |it: &mut Coordinator, conn, count: u32| {
            for _ in 0..count {
                place += 4096;
                let command = Command::new(CommandType::WRITE, place, 512);
                let decision = it.command(conn, command, 0);
                let super::super::command::Decision::Execute { op, tag } = decision else {
                    panic!("nothing overlaps");
                };
                let _ = it.complete(op, tag, Ok(()));
            }
        };
        write(&mut it, stays, 10);
        let ranges =
            |it: &Coordinator| it.groups.iter().next().map(|(_, group)| group.ranges.len());
        for expected in [Some(610), Some(10)] {
            let leaves = open(&mut it, backend);
            write(&mut it, leaves, 600);
            it.disconnect(leaves);
            while let Some(action) = it.poll() {
                if let Action::Flush { flush, .. } = action {
                    it.flushed(flush, Ok(()));
                }
            }
            assert_eq!(ranges(&it), expected);
        }
    }
}
