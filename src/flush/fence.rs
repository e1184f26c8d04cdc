//! Connections that are revoked: what they left behind must not come after what follows.

use super::command::{Action, Conn, Op};
use super::config::Overlap;
use super::coordinator::{FlushCoordinator, Pending};
use super::group::Path;
use super::member::{Need, Phase, Work};
use super::slab::Key;
use crate::wire::Errno;

impl<C: Clone, E: Ord + Clone, T> FlushCoordinator<C, E, T> {
    /// The client of a connection is gone without waiting for its answers, and may come back
    /// through another connection and retry what was not answered. Call this before the first
    /// command of the new connection is passed on: then nothing that the old one still executes
    /// can come after, and revert, what the new one is told is written.
    ///
    /// - No more commands of the connection are accepted. Those that wait, flushes included, are
    ///   not executed, but come back as [`Action::Reply`] with [`Errno::ESHUTDOWN`] (proto.md
    ///   "Terminating the transmission phase"), so that what the caller keeps for them can be
    ///   freed.
    /// - If any are executing, [`Action::Cancel`] says so: they should end soon, with whatever
    ///   result. Each still has to be given to [`complete`](Self::complete), or the handle to be
    ///   reported [lost](Self::lost).
    /// - Modifications through other connections of the group that overlap with modifications
    ///   which it is executing, or has not written out while its cache could write them back later,
    ///   wait until that has ended and is written out. Where ranges are not tracked (outside
    ///   emulation, and with [`Overlap::Ignore`]), all modifications of the group wait. Reads do
    ///   not: until the retry is answered, a client can expect old data as well as new.
    /// - Then the connection is released like one that has [left](Self::disconnect), and what it
    ///   was told is written stays promised. If its data cannot be written out, those that wait
    ///   for that fail where ranges are tracked, and elsewhere go on after [`Action::Release`]:
    ///   nothing of the cache may be written back after that.
    ///
    /// A connection may be revoked after it was said to have left, if it is not released
    /// yet. One that is still being opened is forgotten at once, without an [`Action::Release`].
    pub fn revoke(&mut self, conn: Conn) {
        let key = conn.0;
        let Some(member) = self.members.get_mut(key) else {
            return;
        };
        if member.phase == Phase::Opening {
            return self.remove(key);
        }
        let group = member.group;
        self.cancel_waiting(key);
        let Some(member) = self.members.get_mut(key) else {
            return;
        };
        member.phase = Phase::Leaving;
        if !member.in_flight.is_empty() {
            let key = member.key.clone();
            self.actions.push_back(Pending::Now(Action::Cancel { key }));
        }
        if self.needs_fence(group, key)
            && let Some(group) = self.groups.get_mut(group)
            && !group.unsettled.fences.contains(&key)
        {
            group.unsettled.fences.push(key);
            self.guards += 1;
        }
        self.advance_fence(key);
        self.go_on_without(group);
        self.recheck_order(group);
        self.try_release(key);
    }

    /// Gives back what waits on a connection, unexecuted.
    fn cancel_waiting(&mut self, key: Key) {
        let (waiting, unexecuted) = self.take_waiting(key);
        for tag in waiting {
            self.reply(key, tag, Err(Errno::ESHUTDOWN));
        }
        // These count as begun, but nothing of them will ever be executed.
        for (op, tag) in unexecuted {
            self.forget_acknowledged(&op);
            self.withdraw(&op);
            self.reply(key, tag, Err(Errno::ESHUTDOWN));
        }
        if let Some(member) = self.members.get_mut(key) {
            member.pending = 0;
        }
        self.check_draining(key);
        self.offer_turn(key);
    }

    /// A command that was to be executed loads and modifies nothing.
    fn withdraw(&mut self, op: &Op) {
        let Some(member) = self.members.get_mut(op.member) else {
            return;
        };
        member.in_flight.end(op.generation);
        if !op.modification {
            return;
        }
        member.in_flight.modifying = member.in_flight.modifying.saturating_sub(1);
        if let Some(range) = op.range
            && let Some(group) = self.groups.get_mut(member.group)
            && group.ranges.withdraw(op.member, range)
        {
            member.ranges = member.ranges.saturating_sub(1);
        }
    }

    /// Whether the connection could modify, later, what others modify now, and no order of ranges
    /// prevents it.
    fn needs_fence(&self, group: Key, key: Key) -> bool {
        let path = self.groups.get(group).map(|group| self.path(group));
        let in_order = path == Some(Path::Emulate) && self.config.overlap() != Overlap::Ignore;
        !in_order && self.is_unsettled(key)
    }

    /// Whether a connection modifies something, or its cache could write something back.
    fn is_unsettled(&self, key: Key) -> bool {
        self.members.get(key).is_some_and(|member| {
            let backend = member.backend;
            let writes_back =
                !backend.caches_nothing() && !backend.multi_conn() && self.is_uncovered(key);
            member.in_flight.modifying > 0 || writes_back
        })
    }

    pub(super) fn is_fence(&self, key: Key) -> bool {
        let group = || self.groups.get(self.members.get(key)?.group);
        self.guards > 0 && group().is_some_and(|group| group.unsettled.fences.contains(&key))
    }

    /// Something of a connection that leaves has ended: if it was revoked, is it time to write its
    /// data out, or to let others go on?
    pub(super) fn advance_fence(&mut self, key: Key) {
        if !self.is_fence(key) {
            return;
        }
        let Some(member) = self.members.get(key) else {
            return;
        };
        if !self.is_unsettled(key) {
            let group = member.group;
            self.lift_fence(group, key);
            self.recheck_parked(group);
        } else if member.in_flight.modifying == 0
            && member.backend.flush()
            && !member.gave_up()
            && !member.work().is_some_and(Work::leaves)
        {
            // Without waiting for commands that read.
            self.write_out(key, Need::Leave);
        }
    }

    /// Others need not wait for the connection any longer.
    pub(super) fn lift_fence(&mut self, group: Key, key: Key) {
        let group = self.groups.get_mut(group);
        let Some(fences) = group.map(|group| &mut group.unsettled.fences) else {
            return;
        };
        let before = fences.len();
        fences.retain(|&fence| fence != key);
        self.guards -= before - fences.len();
    }
}
