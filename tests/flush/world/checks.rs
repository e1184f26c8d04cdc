//! What clients were promised, and whether it holds.

use nbd_proto::flush::Command;

use super::{Id, Sent, World};

impl World {
    /// A sticky failure ends with the last connection, once a client was told of it: from then on
    /// nobody is promised what was written before.
    pub(super) fn forgive_if_empty(&mut self) {
        if self.connections.iter().all(|it| it.released)
            && let Some(sent) = self.failure_reported.take()
        {
            self.forgiven = sent;
        }
    }

    /// Whoever was told of a failure does not rely on what was written before.
    pub(crate) fn forgive(&mut self) {
        self.forgiven = self.sent.len();
        self.failure_reported = None;
    }

    /// The failures are forgotten, and what was written before is not promised any more.
    pub(crate) fn reset(&mut self) {
        self.coordinator.reset(&0);
        self.forgive();
        for sent in &mut self.sent {
            if sent.reply.is_none() {
                sent.covers.clear();
            }
        }
    }

    // The promise

    /// From now on nothing older than what this flush covers may be seen.
    pub(super) fn raise_floor_to_covered(&mut self, id: Id) {
        for covered in self.sent[id].covers.clone() {
            if let Some(told) = &self.sent[covered].failed_late {
                let conn = self.sent[id].conn;
                let came_later = self.sent.iter().position(|it| it.conn == conn);
                let came_later = came_later > Some(covered) && !told.is_empty();
                assert!(
                    told.contains(&conn) || came_later || !self.promises,
                    "flush {id} hides that {covered} has failed"
                );
                continue;
            }
            assert!(
                !self.sent[covered].unsettled,
                "flush {id} overtook {covered}"
            );
            if !self.connections[self.sent[covered].conn].reported {
                self.raise_floor(covered);
            }
        }
    }

    /// From now on nothing older than this command may be seen, nor left after a crash.
    pub(super) fn raise_floor(&mut self, id: Id) {
        let Command { offset, length, .. } = self.sent[id].command;
        for cell in offset..offset + length {
            let floor = self.floor.entry(cell).or_default();
            if !floor.contains(&id) {
                floor.push(id);
            }
        }
    }

    /// Whether a value was certainly overwritten by one of these commands: it had been answered,
    /// or its connection been revoked, before that one was sent.
    pub(super) fn is_older(&self, value: Id, floor: &[Id]) -> bool {
        let old = &self.sent[value];
        let revoked = self.connections.get(old.conn).and_then(|it| it.revoked);
        let answered = match old.reply {
            Some((answered, Ok(()))) => Some(answered),
            // A write that failed, or is not answered, may take effect at any time.
            _ => None,
        };
        let mut floor = floor.iter().filter(|&&id| id != value);
        floor.any(|&id| {
            let new = &self.sent[id];
            let in_order = !self.unordered || value == 0 || old.conn == new.conn;
            (in_order && answered.is_some_and(|at| at < new.invoked))
                || revoked.is_some_and(|at| at < new.invoked)
        })
    }

    pub(super) fn check_read(&self, id: Id) {
        if !self.promises {
            return;
        }
        let sent = &self.sent[id];
        for (cell, &value) in &sent.data {
            let floor = sent.floor.get(cell).map_or(&[][..], Vec::as_slice);
            assert!(
                !self.is_older(value, floor),
                "stale: read {id} on connection {} found {value} in cell {cell}, not {floor:?}",
                sent.conn
            );
            let covers = |id: &Id| {
                let sent = &self.sent[*id];
                let Sent { conn, command, .. } = sent;
                sent.failed_late.is_none()
                    && (command.offset..command.offset + command.length).contains(cell)
                    && !self.connections[*conn].lost_data
            };
            let written: Vec<Id> = sent.must_see.iter().copied().filter(covers).collect();
            assert!(
                !self.is_older(value, &written),
                "incoherent: read {id} on connection {} found {value} in cell {cell}, after {written:?}",
                sent.conn
            );
        }
    }

    /// Would a crash now lose anything that was promised?
    pub(crate) fn check(&self) {
        if !self.promises {
            return;
        }
        for (&cell, floor) in &self.floor {
            let value = self.store[cell as usize];
            assert!(
                !self.is_older(value, floor),
                "lost: cell {cell} holds {value} on permanent storage, not {floor:?}"
            );
        }
    }

    // The backend

    /// A handle is about to be called.
    pub(super) fn check_calls(&self, index: usize) {
        if !self.one_call_at_a_time {
            return;
        }
        let conn = self.connections[index].conn;
        let command = self.executing.iter().find(|it| it.op.conn() == conn);
        assert!(
            command.is_none() && !self.is_flushing(index),
            "handle {index} is called while {command:?} or a flush is under way on it"
        );
    }

    /// Rule 11: what the backend has answered leaves no client waiting.
    pub(crate) fn check_all_answered(&self) {
        for (id, sent) in self.sent.iter().enumerate() {
            assert!(
                sent.reply.is_some() || sent.abandoned,
                "command {id} on connection {} was never answered: {:?}",
                sent.conn,
                sent.command
            );
        }
        for (index, connection) in self.connections.iter().enumerate() {
            assert!(
                !connection.leaving || connection.released,
                "connection {index} was never released"
            );
        }
    }
}
