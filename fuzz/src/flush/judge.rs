//! What is promised, and whether it is kept.

use std::collections::BTreeMap;

use nbd_proto::flush::{Acknowledge, Command, Grouping, Overlap, TrackDirty};
use nbd_proto::wire::{CommandType, Errno};

use super::MOST_CONNECTIONS;
use super::nature::Way;
use super::storage::Load;
use super::world::{Id, Sent, Stage, Time, World};

impl World {
    pub(super) fn way(&self, index: usize) -> Way {
        let connection = &self.connections[index];
        // Where nothing is promised, it follows from what handles say.
        let shared = match self.nature.promises {
            true => self.nature.shared[usize::from(connection.export)],
            false => connection.kind.multi_conn,
        };
        Way::of(&self.config, shared)
    }

    // --- what commands have to find, or to cover ---

    /// What a flush on this connection has to cover.
    pub(super) fn answered_modifications(&self, index: usize) -> Vec<Id> {
        let way = self.way(index);
        let sent = self.sent.iter().enumerate().skip(1);
        sent.filter(|(_, it)| it.modifies() && matches!(it.answered, Some((_, Ok(())))))
            .filter(|(_, it)| match way {
                Way::Own => it.conn == index,
                Way::Emulate | Way::CoversAll => self.group(it.conn) == self.group(index),
            })
            .map(|(id, _)| id)
            .collect()
    }

    /// What a read that arrives now must not find anything older than.
    pub(super) fn floor_of(&self, index: usize) -> BTreeMap<u64, Vec<Id>> {
        if self.way(index) != Way::Own {
            return self.floor.clone();
        }
        let mut floor = self.floor.clone();
        // What a handle makes of its own modifications is its own affair.
        let kind = self.connections[index].kind;
        let coherent = kind.self_coherent || kind.through;
        for ids in floor.values_mut() {
            ids.retain(|&id| coherent && self.sent[id].conn == index);
        }
        floor
    }

    /// What it must find without any flush.
    pub(super) fn must_see(&self, index: usize) -> Vec<Id> {
        let coherent = self.config.overlap() == Overlap::Coherent;
        let emulated = self.way(index) == Way::Emulate;
        let kind = self.connections[index].kind;
        let shared = self.shares(index);
        let sent = self.sent.iter().enumerate().skip(1);
        sent.filter(|(_, it)| it.modifies() && matches!(it.answered, Some((_, Ok(())))))
            .filter(|(_, it)| {
                if it.conn == index {
                    kind.self_coherent || kind.through
                } else if shared.is_some() {
                    shared == self.shares(it.conn)
                } else {
                    coherent && emulated && self.group(index) == self.group(it.conn)
                }
            })
            .map(|(id, _)| id)
            .collect()
    }

    // --- answers ---

    pub(super) fn answer(&mut self, id: Id, result: Result<(), Errno>) {
        let now = self.tick();
        let sent = &mut self.sent[id];
        let (index, command, started) = (sent.conn, sent.command, sent.started);
        assert!(sent.answered.is_none(), "command {id} is answered twice");
        assert!(!sent.abandoned, "command {id} was closed");
        sent.answered = Some((now, result));
        let connection = &self.connections[index];
        assert!(
            !connection.released,
            "command {id} is answered after the release"
        );
        if result == Err(Errno::ESHUTDOWN) {
            assert!(connection.revoked.is_some(), "command {id} was cancelled");
            // What is executed already may still wait for its flush.
            let stable = self.config.acknowledge() == Acknowledge::WriteThrough;
            assert!(!started || command.fua || stable, "command {id} executes");
            return;
        }
        if command.kind == CommandType::FLUSH && !connection.advertised.0 {
            assert_eq!(result, Err(Errno::EINVAL));
            return;
        }
        if result.is_err() {
            self.refused(id, now);
            return;
        }
        match command.kind {
            _ if !self.nature.promises => {}
            CommandType::FLUSH => {
                self.flush_succeeded(id);
            }
            kind if kind.is_modification() => {
                let stable = self.config.acknowledge() == Acknowledge::WriteThrough;
                let fua = command.fua && connection.advertised.1;
                if (fua || stable) && !self.ignores_flush() {
                    self.raise_floor(id);
                }
            }
            _ => {
                if self.is_flush(index, command) {
                    self.read_after_flush(id);
                }
                self.check_read(id);
            }
        }
        self.check();
    }

    /// A command is answered with an error.
    fn refused(&mut self, id: Id, now: Time) {
        let Sent {
            conn,
            command,
            started,
            ..
        } = self.sent[id];
        let flush = self.is_flush(conn, command);
        // Where some handles cannot flush, nobody may be left who could.
        assert!(
            self.failed || (flush && !self.nature.promises),
            "nothing has failed"
        );
        assert!(
            !self.ignores_flush() || started || self.connections[conn].stage == Stage::Gone,
            "flushes are ignored"
        );
        // One whose handle is gone hears nothing.
        if flush && !started && self.connections[conn].stage != Stage::Gone {
            let group = self.group(conn);
            self.told[group] = now;
            self.connections[conn].told = now;
            self.connections[conn].owed = None;
        }
    }

    /// Returns what it covers.
    fn flush_succeeded(&mut self, id: Id) -> Vec<Id> {
        let Sent { conn, invoked, .. } = self.sent[id];
        let mut covers = std::mem::take(&mut self.sent[id].covers);
        if self.ignores_flush() {
            return Vec::new();
        }
        let owed = self.connections[conn].owed;
        assert!(
            owed.is_none_or(|since| since > invoked),
            "flush {id} succeeds, though its connection has to hear of a failure"
        );
        covers.retain(|&covered| {
            let sent = &self.sent[covered];
            assert!(!sent.unsettled, "flush {id} overtakes {covered}");
            if let Some(since) = sent.lost {
                let told = sent.forgiven || self.was_told(conn, since);
                assert!(told, "flush {id} succeeds, though {covered} is lost");
                return false;
            }
            let owner = &self.connections[sent.conn];
            let doubt = owner.doubt.filter(|_| owner.stage == Stage::Leaving);
            let doubt = doubt.filter(|_| owner.cached.uncovered.contains(&covered));
            doubt.is_none_or(|since| !self.was_told(conn, since))
        });
        for &covered in &covers {
            self.raise_floor(covered);
        }
        covers
    }

    /// A read succeeds that has a flush before it.
    fn read_after_flush(&mut self, id: Id) {
        for covered in self.flush_succeeded(id) {
            let foreign = self.sent[covered].conn != self.sent[id].conn;
            let kind = self.connections[self.sent[id].conn].kind;
            let own = self.way(self.sent[id].conn) == Way::Own;
            if own && (foreign || !(kind.self_coherent || kind.through)) {
                continue;
            }
            for cell in self.cells_of(covered) {
                let floor = self.sent[id].floor.entry(cell).or_default();
                floor.push(covered);
            }
        }
    }

    /// Whether a client need not hear of a loss any more.
    fn was_told(&self, index: usize, since: Time) -> bool {
        let connection = &self.connections[index];
        let newcomer = connection.connected > since && self.told[self.group(index)] >= since;
        !self.is_sticky() && (connection.told >= since || newcomer)
    }

    /// These are not promised any more, but whoever relies on them has to hear of it.
    pub(super) fn lost(&mut self, ids: Vec<Id>, since: Time) {
        for id in ids {
            self.sent[id].lost.get_or_insert(since);
        }
    }

    /// Nobody has to hear of what a group has lost until then.
    pub(super) fn forgive(&mut self, group: usize, until: Time) {
        for id in 1..self.sent.len() {
            let ours = self.group(self.sent[id].conn) == group;
            let sent = &mut self.sent[id];
            sent.forgiven |= ours && sent.lost.is_some_and(|since| since <= until);
        }
    }

    // --- the promise ---

    /// Nothing older than this may be read or be in storage from now on.
    fn raise_floor(&mut self, id: Id) {
        let now = self.tick();
        self.sent[id].covered.get_or_insert(now);
        for cell in self.cells_of(id) {
            let floor = self.floor.entry(cell).or_default();
            if !floor.contains(&id) {
                floor.push(id);
            }
        }
    }

    /// Whether one command comes before another for certain: it was answered, or its client has
    /// given it up, before that one was sent.
    fn precedes(&self, old: Id, new: Id) -> bool {
        let (old, new) = (&self.sent[old], &self.sent[new]);
        let Some(connection) = self.connections.get(old.conn) else {
            // What was there at first.
            return true;
        };
        if connection.revoked.is_some_and(|at| at < new.invoked) {
            return true;
        }
        let Some((answered, Ok(()))) = old.answered else {
            // What failed, or is not answered, may take effect at any time.
            return false;
        };
        // Without an order, only a flush makes one.
        let unordered = match self.way(old.conn) {
            Way::Own => true,
            Way::Emulate => self.config.overlap() == Overlap::Ignore,
            Way::CoversAll => false,
        };
        if unordered && old.conn != new.conn && self.shares(old.conn).is_none() {
            return old.covered.is_some_and(|at| at < new.invoked);
        }
        answered < new.invoked
    }

    fn is_older(&self, value: Id, floor: &[Id]) -> bool {
        let mut floor = floor.iter();
        floor.any(|&id| id != value && self.precedes(value, id))
    }

    fn check_read(&self, id: Id) {
        let sent = &self.sent[id];
        for &(cell, value) in &sent.found {
            let floor = sent.floor.get(&cell).map_or(&[][..], Vec::as_slice);
            assert!(
                !self.is_older(value, floor),
                "stale: command {id} found {value} in cell {cell}, not {floor:?}"
            );
            let there = |&&id: &&Id| self.sent[id].lost.is_none();
            let written = sent.must_see.iter().filter(there).copied();
            let written = written.filter(|&id| self.cells_of(id).any(|it| it == cell));
            let written: Vec<Id> = written.collect();
            assert!(
                !self.is_older(value, &written),
                "incoherent: command {id} found {value} in cell {cell}, not {written:?}"
            );
        }
    }

    /// Whether a crash now would lose anything.
    pub(super) fn check(&self) {
        for (&cell, floor) in &self.floor {
            let value = self.store[cell as usize];
            assert!(
                !self.is_older(value, floor),
                "lost: {value} is in cell {cell} of the storage, not {floor:?}"
            );
        }
    }

    // --- what the coordinator tells of itself ---

    /// Counts have to agree with what has happened; what is uncovered only when all actions were
    /// taken.
    pub(super) fn check_counters(&self, taken: bool) {
        let counters = self.coordinator.counters();
        let all = self.config.grouping() == Grouping::All;
        let exports: &[u8] = if all { &[0] } else { &[0, 1] };
        let uncovered = exports
            .iter()
            .filter_map(|it| self.coordinator.uncovered(it));
        let uncovered: u64 = uncovered.map(|it| it.modifications).sum();
        assert_eq!(
            counters.covered + counters.given_up + uncovered,
            counters.modifications,
            "{counters:?}"
        );
        assert_eq!(counters.modifications, self.modifications);
        assert_eq!(counters.backend_flushes, self.flushes.len() as u64);
        assert_eq!(counters.backend_failures, self.flush_failures);
        assert!(counters.skipped + counters.joined <= counters.flushes);
        assert!(counters.failed <= counters.flushes);
        if self.nature.promises && taken && !self.nature.shared.contains(&true) {
            let ours = self.connections.iter();
            let ours: usize = ours.map(|it| it.cached.uncovered.len()).sum();
            assert_eq!(uncovered, ours as u64, "uncovered");
        }
    }

    /// When nothing goes on: what is explained is what a flush does.
    pub(super) fn check_explanation(&mut self, index: usize) {
        let serves = |world: &Self, at: usize| world.connections[at].stage == Stage::Serving;
        if index >= self.ever() || !serves(self, index) {
            return;
        }
        let emulated = self.way(index) == Way::Emulate;
        let conn = self.connections[index].conn;
        let mut foretold: Vec<usize> = (0..self.ever())
            .filter(|&at| serves(self, at) && self.group(at) == self.group(index))
            .filter(|&at| emulated || at == index)
            .collect();
        let explain = |world: &Self, at: usize| {
            let conn = world.connections[at].conn;
            world.coordinator.explain(conn)
        };
        let reasons: Vec<_> = foretold.iter().map(|&at| explain(self, at)).collect();
        // Where flush was not advertised, it is refused.
        let advertised = self.connections[index].advertised.0;
        foretold.retain(|&at| advertised && explain(self, at).touches());
        let standing = self.coordinator.standing_failure(conn);
        let before = self.flushes.len();
        let sent = self.send(index, Command::FLUSH, Load::Late);
        self.settle();
        let mut flushed = self.flushes[before..].to_vec();
        // If it has no flush, and needs none, that of another covers all.
        let able = emulated || self.connections[index].kind.flush;
        flushed.retain(|&at| able || at == index);
        flushed.sort_unstable();
        flushed.dedup();
        assert_eq!(flushed, foretold, "connection {index} flushes: {reasons:?}");
        let answer = sent.and_then(|id| self.sent[id].answered);
        if advertised {
            let failed = answer.is_none_or(|(_, result)| result.is_err());
            assert!(failed || standing.is_none(), "{standing:?} was forgotten");
            assert!(
                !failed || standing.is_some() || !self.nature.promises,
                "{answer:?} was not foreseen"
            );
        }
    }

    // --- the end ---

    pub(super) fn check_all_answered(&self) {
        for (id, sent) in self.sent.iter().enumerate() {
            assert!(
                sent.answered.is_some() || sent.abandoned,
                "command {id} is never answered: {:?}",
                sent.command
            );
        }
        assert_eq!(self.cancels.0, self.cancels.1, "cancelled");
        for (index, connection) in self.connections.iter().enumerate() {
            assert!(
                connection.stage != Stage::Leaving,
                "connection {index} is never released"
            );
        }
    }

    pub(super) fn check_all_released(&self) {
        for (index, connection) in self.connections.iter().enumerate() {
            assert!(connection.released, "connection {index} is never released");
        }
    }

    /// Everything has a reason, and the number of flushes is bounded by that of reasons.
    pub(super) fn check_flushes(&self) {
        let most = 4 * MOST_CONNECTIONS * self.stimuli;
        assert!(self.flushes.len() <= most, "{} flushes", self.flushes.len());
        let tracks = self.config.track_dirty() == TrackDirty::Connection;
        let modified = self.sent.iter().any(|it| it.started && it.modifies());
        if self.nature.promises && tracks && !modified {
            assert_eq!(self.flushes.len(), 0, "nothing was modified");
        }
    }
}
