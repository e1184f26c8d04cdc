//! What clients do: they send commands, and are answered.

use std::collections::BTreeMap;

use nbd_proto::flush::{Command, Decision, FuaOnReads, Overlap};
use nbd_proto::wire::{CommandType, Errno};

use super::{Id, Load, Sent, World};

impl World {
    // Clients

    pub(crate) fn send(&mut self, index: usize, command: Command) -> Id {
        self.send_loading(index, command, self.load)
    }

    /// Sends a command that, if it executes at once, loads like this.
    pub(crate) fn send_loading(&mut self, index: usize, command: Command, load: Load) -> Id {
        let id = self.sent.len();
        let invoked = self.tick();
        let covers = if command.kind == CommandType::FLUSH || self.has_preflush(command) {
            self.answered_modifications(index)
        } else {
            Vec::new()
        };
        let must_see = self.must_see(index, command);
        let mut floor = self.floor.clone();
        if self.own {
            let ours = |&id: &Id| self.sent[id].conn == index;
            floor.values_mut().for_each(|ids| ids.retain(ours));
        }
        if self.reads_back && command.kind == CommandType::READ {
            self.raise_to_own(&mut floor, index);
        }
        self.sent.push(Sent {
            conn: index,
            command,
            invoked,
            reply: None,
            data: BTreeMap::new(),
            floor,
            covers,
            executed: false,
            must_see,
            abandoned: false,
            unsettled: false,
            failed_late: None,
        });
        let conn = self.connections[index].conn;
        let decision = self.coordinator.command(conn, command, id);
        self.decide(decision, load);
        self.check();
        id
    }

    pub(crate) fn write(&mut self, index: usize, cell: u64, count: u64) -> Id {
        self.send(index, Command::new(CommandType::WRITE, cell, count))
    }

    pub(crate) fn write_fua(&mut self, index: usize, cell: u64, count: u64) -> Id {
        let command = Command::new(CommandType::WRITE, cell, count).with_fua(true);
        self.send(index, command)
    }

    pub(crate) fn read(&mut self, index: usize, cell: u64, count: u64) -> Id {
        self.send(index, Command::new(CommandType::READ, cell, count))
    }

    pub(crate) fn read_fua(&mut self, index: usize, cell: u64, count: u64) -> Id {
        let command = Command::new(CommandType::READ, cell, count).with_fua(true);
        self.send(index, command)
    }

    pub(crate) fn flush(&mut self, index: usize) -> Id {
        self.send(index, Command::FLUSH)
    }

    /// What a read has to find without any flush. What a handle makes of its own modifications, if
    /// it is flushed meanwhile, is its own affair.
    pub(super) fn must_see(&self, index: usize, command: Command) -> Vec<Id> {
        let coherent = self.coordinator.config().overlap() == Overlap::Coherent;
        if !coherent || command.kind != CommandType::READ {
            return Vec::new();
        }
        let mut must_see = self.answered_modifications(index);
        must_see.retain(|&id| self.self_coherent || self.sent[id].conn != index);
        must_see
    }

    /// Whether a command stands for a flush and itself.
    pub(super) fn has_preflush(&self, command: Command) -> bool {
        self.coordinator.config().fua_on_reads() == FuaOnReads::Preflush
            && command.kind == CommandType::READ
            && command.fua
    }

    /// What was acknowledged to a connection is as good as executed for what it reads.
    pub(super) fn raise_to_own(&self, floor: &mut BTreeMap<u64, Vec<Id>>, index: usize) {
        let everyone = self.shared || self.connections[index].through;
        for (id, sent) in self.sent.iter().enumerate().skip(1) {
            let ours = everyone || sent.conn == index;
            let done = matches!(sent.reply, Some((_, Ok(()))));
            if ours && done && sent.command.kind.is_modification() {
                let Command { offset, length, .. } = sent.command;
                for cell in offset..offset + length {
                    floor.entry(cell).or_default().push(id);
                }
            }
        }
    }

    /// What a flush has to cover.
    pub(super) fn answered_modifications(&self, index: usize) -> Vec<Id> {
        let modifications = self.sent.iter().enumerate().skip(self.forgiven.max(1));
        modifications
            .filter(|(_, sent)| !self.own || sent.conn == index)
            .filter(|(_, sent)| sent.command.kind.is_modification())
            .filter(|(_, sent)| matches!(sent.reply, Some((_, Ok(())))))
            .map(|(id, _)| id)
            .collect()
    }

    pub(crate) fn reply(&self, id: Id) -> Option<Result<(), Errno>> {
        self.sent[id].reply.map(|(_, result)| result)
    }

    /// What a read of one cell returned.
    pub(crate) fn value(&self, id: Id) -> Id {
        *self.sent[id].data.values().next().expect("the read ended")
    }

    pub(super) fn decide(&mut self, decision: Decision<Id>, load: Load) {
        match decision {
            Decision::Execute { op, tag } => self.start(op, tag, load),
            Decision::Reply { tag, result } => self.answer(tag, result),
            Decision::Answered { tag } => {
                let sent = &mut self.sent[tag];
                assert!(
                    sent.unsettled,
                    "command {tag} was not answered when it began"
                );
                sent.unsettled = false;
            }
            Decision::Wait => {}
            Decision::Closed { tag } => self.sent[tag].abandoned = true,
            other => panic!("unknown decision {other:?}"),
        }
    }

    pub(super) fn answer(&mut self, id: Id, result: Result<(), Errno>) {
        let now = self.tick();
        let sent = &mut self.sent[id];
        assert!(sent.reply.is_none(), "command {id} was answered twice");
        assert!(
            !self.connections[sent.conn].released,
            "command {id} was answered after its connection was released"
        );
        sent.reply = Some((now, result));
        let (command, executed) = (sent.command, sent.executed);
        if result == Err(Errno::ESHUTDOWN) {
            let revoked = self.connections[sent.conn].revoked;
            assert!(revoked.is_some(), "command {id} was cancelled");
            return;
        }
        if result.is_err() {
            let flush_failed = self.has_preflush(command) && !executed;
            if command.kind == CommandType::FLUSH || flush_failed {
                self.failure_reported = Some(self.sent.len());
                for connection in &mut self.connections {
                    connection.reported |= connection.dropped;
                }
                let conn = self.sent[id].conn;
                for told in self
                    .sent
                    .iter_mut()
                    .filter_map(|it| it.failed_late.as_mut())
                {
                    told.push(conn);
                }
            }
            return;
        }
        match command.kind {
            CommandType::FLUSH => self.raise_floor_to_covered(id),
            CommandType::READ if self.has_preflush(command) => {
                // It came after its own flush, and others' floors may be above that by now.
                let mut own = std::mem::take(&mut self.sent[id].floor);
                std::mem::swap(&mut own, &mut self.floor);
                self.raise_floor_to_covered(id);
                std::mem::swap(&mut own, &mut self.floor);
                self.sent[id].floor = own;
                self.check_read(id);
                self.raise_floor_to_covered(id);
            }
            CommandType::READ => self.check_read(id),
            kind if kind.is_modification() && (command.fua || self.stable) => self.raise_floor(id),
            _ => {}
        }
    }
}
