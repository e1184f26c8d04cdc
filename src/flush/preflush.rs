//! FUA on reads: a flush that comes before the read.
//!
//! The protocol leaves open what the flag means on a command that writes nothing (proto.md "Command
//! flags"); servers are known that treat it as Linux treats `REQ_PREFLUSH`.

use super::command::Command;
use super::config::FuaOnReads;
use super::coordinator::FlushCoordinator;
use super::group::Waiter;
use super::member::{Member, Phase};
use super::slab::Key;
use crate::wire::CommandType;

impl<C: Clone, E: Ord + Clone, T> FlushCoordinator<C, E, T> {
    /// Whether a command with FUA is not to be executed before a flush has succeeded.
    pub(super) fn needs_preflush(&self, key: Key, command: Command) -> bool {
        self.config.fua_on_reads() == FuaOnReads::Preflush
            && command.kind == CommandType::READ
            // Where flush is not advertised, the flag promises nothing that could be kept.
            && self
                .members
                .get(key)
                .is_some_and(|member| !member.backend.cannot_flush())
    }

    /// The flush that a client waited for has succeeded: it is answered, or was only the first
    /// half of what the client asked for.
    pub(super) fn go_on(&mut self, waiter: Waiter<T>) {
        let Waiter { member, tag, then } = waiter;
        match then {
            None => self.reply(member, tag, Ok(())),
            Some(read) => {
                self.keep_fresh(member);
                let decision = self.arrive(member, read, tag);
                self.act(member, decision);
            }
        }
        self.settle(member);
    }

    /// Rounds do not invalidate handles of clients that have left, which ask for nothing more. But
    /// here is something that was asked for before.
    fn keep_fresh(&mut self, key: Key) {
        let leaves = |member: &Member<C, T>| member.phase == Phase::Leaving;
        if self.members.get(key).is_some_and(leaves) && self.is_stale(key) {
            self.close_gate(key);
        }
    }
}
