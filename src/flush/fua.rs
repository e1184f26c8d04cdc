//! FUA: a modification that is followed by a flush of its own.

use alloc::vec::Vec;

use super::clock::Stamp;
use super::command::Decision;
use super::coordinator::{FlushCoordinator, FuaWait};
use super::member::{List, Need, Phase};
use super::slab::Key;
use crate::wire::Errno;

impl<C: Clone, E: Ord + Clone, T> FlushCoordinator<C, E, T> {
    /// A modification with FUA, of this generation of commands, has completed, and its handle has
    /// to be written out.
    pub(super) fn flush_for_fua(&mut self, key: Key, generation: Stamp, tag: T) -> Decision<T> {
        let Some(member) = self.members.get_mut(key) else {
            return Decision::Closed { tag };
        };
        if let Some((until, why)) = member.work().and_then(|work| work.dropped)
            && generation <= until
        {
            let result = Err(why);
            return Decision::Reply { tag, result };
        }
        member.pending += 1;
        let wait = self.fuas.insert(FuaWait {
            member: key,
            tag,
            written_out: false,
            remaining: 1,
        });
        self.write_out(key, Need::Fua(wait));
        Decision::Wait
    }

    /// A modification with FUA has completed on a handle that caches nothing: its data is safe,
    /// and others have to see it.
    pub(super) fn show_to_others(&mut self, key: Key, tag: T) -> Decision<T> {
        let result = Ok(());
        let Some(group) = self.members.get(key).map(|member| member.group) else {
            return Decision::Reply { tag, result };
        };
        if !self.others_rely_on(group) {
            return Decision::Reply { tag, result };
        }
        self.gate_unused(group);
        let stale = self.stale_members(group);
        if stale.is_empty() {
            return Decision::Reply { tag, result };
        }
        if let Some(member) = self.members.get_mut(key) {
            member.pending += 1;
        }
        let wait = self.fuas.insert(FuaWait {
            member: key,
            tag,
            written_out: true,
            // Nobody asks for more than 2^32 connections.
            remaining: stale.len() as u32,
        });
        for key in stale {
            self.invalidate(key, Need::Fua(wait));
        }
        Decision::Wait
    }

    /// A flush of `key` failed, and the cache may have dropped all that it held: a later flush
    /// that succeeds says nothing about what commands have put there until now.
    pub(super) fn fail_fua(&mut self, group_key: Key, key: Key, why: Errno) {
        let Some(group) = self.groups.get(group_key) else {
            return;
        };
        let alone = [key.index()];
        let same_cache = if group.covers_all() {
            group.list(List::Members)
        } else {
            &alone
        };
        for &index in same_cache {
            if let Some(member) = self.members.at_mut(index) {
                let generation = member.in_flight.generation();
                member.work_mut().dropped = Some((generation, why));
                member.in_flight.advance();
            }
        }
        let shared = group.covers_all();
        let members = &self.members;
        let unwritten = self.fuas.iter().filter(|(_, wait)| {
            let group = members.get(wait.member).map(|member| member.group);
            !wait.written_out && (wait.member == key || (shared && group == Some(group_key)))
        });
        let unwritten: Vec<Key> = unwritten.map(|(wait, _)| wait).collect();
        for wait in unwritten {
            self.fua_ends(wait, Err(why));
        }
    }

    /// A flush on behalf of a FUA command has ended on the handle `key`.
    pub(super) fn fua_served(&mut self, wait: Key, key: Key, result: Result<(), Errno>) {
        let Some(fua) = self.fuas.get_mut(wait) else {
            return;
        };
        fua.remaining = fua.remaining.saturating_sub(1);
        match (fua.written_out, result) {
            (false, Err(why)) => {
                self.fua_ends(wait, Err(why));
                return;
            }
            (false, Ok(())) => self.invalidate_for_fua(wait, key),
            // The data is safe, and the failure is somebody else's. But what that handle holds
            // may be old: it must not serve it any more.
            (true, Err(_)) => self.close_gate(key),
            (true, Ok(())) => {}
        }
        if self.fuas.get(wait).is_some_and(|fua| fua.remaining == 0) {
            self.fua_ends(wait, Ok(()));
        }
    }

    /// The data is on permanent storage; now all have to see it.
    fn invalidate_for_fua(&mut self, wait: Key, key: Key) {
        let Some(member) = self.members.get(key) else {
            return;
        };
        let group = member.group;
        let mut stale = Vec::new();
        if self.others_rely_on(group) {
            self.gate_unused(group);
            stale = self.stale_members(group);
        }
        if let Some(fua) = self.fuas.get_mut(wait) {
            fua.written_out = true;
            // Nobody asks for more than 2^32 connections.
            fua.remaining = stale.len() as u32;
        }
        for key in stale {
            self.invalidate(key, Need::Fua(wait));
        }
    }

    fn stale_members(&self, group: Key) -> Vec<Key> {
        let Some(group) = self.groups.get(group) else {
            return Vec::new();
        };
        let serving = |&key: &Key| {
            self.members
                .get(key)
                .is_some_and(|member| member.phase == Phase::Serving)
        };
        let loaded = group.listed(List::Loaded, &self.members);
        loaded
            .filter(serving)
            .filter(|&key| self.is_stale(key))
            .collect()
    }

    fn fua_ends(&mut self, wait: Key, result: Result<(), Errno>) {
        if let Some(fua) = self.fuas.remove(wait) {
            self.reply(fua.member, fua.tag, result);
            self.settle(fua.member);
        }
    }
}
