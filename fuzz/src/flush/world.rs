//! What is around a coordinator: connections that come and go, and clients.
//!
//! Each byte of an export is a cell that holds the number of the command which wrote it last.

use std::collections::BTreeMap;

use nbd_proto::flush::{
    Acknowledge, Action, AfterFailure, Command, Config, Conn, Decision, FlushCoordinator, FlushId,
    FuaOnReads, Grouping, Mode, Op, OpenError, ThreadModel,
};
use nbd_proto::wire::{CommandType, Errno};

use super::nature::{Kind, Nature, Way};
use super::storage::{Cache, Cached, Executing, Flushing, Load};

/// Cells of each of two exports.
pub(super) const CELLS: u64 = 8;

/// The number of a command; 0 is that of what was in storage at first.
pub(super) type Id = usize;

/// When something happened, in steps of the world. Nothing happens at 0.
pub(super) type Time = usize;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Stage {
    Opening,
    Serving,
    Leaving,
    Gone,
}

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) conn: Conn,
    pub(super) export: u8,
    pub(super) stage: Stage,
    pub(super) kind: Kind,
    /// Whether flush, and FUA, were.
    pub(super) advertised: (bool, bool),
    /// Its own, if there is none for all.
    pub(super) cached: Cached,
    /// When its handle, while it was leaving, first could not write out.
    pub(super) doubt: Option<Time>,
    /// When its handle could not write out what it has to hear of.
    pub(super) owed: Option<Time>,
    /// When its client was last told of a failed flush.
    pub(super) told: Time,
    pub(super) connected: Time,
    pub(super) revoked: Option<Time>,
    pub(super) released: bool,
}

#[derive(Debug)]
pub(super) struct Sent {
    pub(super) conn: usize,
    pub(super) command: Command,
    pub(super) invoked: Time,
    pub(super) answered: Option<(Time, Result<(), Errno>)>,
    /// Nobody waits for the answer any more.
    pub(super) abandoned: bool,
    pub(super) started: bool,
    /// It was answered when it began, and has not ended.
    pub(super) unsettled: bool,
    /// What a read found, by cell.
    pub(super) found: Vec<(u64, Id)>,
    /// For a flush, and what has one before it: what it has to cover.
    pub(super) covers: Vec<Id>,
    /// What must not be found: anything older than these, by cell.
    pub(super) floor: BTreeMap<u64, Vec<Id>>,
    /// Nor, without any flush, anything older than these.
    pub(super) must_see: Vec<Id>,
    /// When it was covered for certain.
    pub(super) covered: Option<Time>,
    /// When it was lost, though it may have been answered.
    pub(super) lost: Option<Time>,
    /// That it was lost need not be told any more.
    pub(super) forgiven: bool,
}

impl Sent {
    fn new(conn: usize, command: Command, invoked: Time) -> Self {
        Self {
            conn,
            command,
            invoked,
            answered: None,
            abandoned: false,
            started: false,
            unsettled: false,
            found: Vec::new(),
            covers: Vec::new(),
            floor: BTreeMap::new(),
            must_see: Vec::new(),
            covered: None,
            lost: None,
            forgiven: false,
        }
    }

    pub(super) fn modifies(&self) -> bool {
        self.command.kind.is_modification()
    }
}

#[derive(Debug)]
pub(super) struct World {
    pub(super) coordinator: FlushCoordinator<usize, u8, Id>,
    pub(super) config: Config,
    pub(super) nature: Nature,
    pub(super) store: Vec<Id>,
    /// Caches for all connections, by export.
    pub(super) shared: [Cached; 2],
    pub(super) connections: Vec<Connection>,
    pub(super) sent: Vec<Sent>,
    pub(super) executing: Vec<Executing>,
    pub(super) flushing: Vec<Flushing>,
    pub(super) ended: Vec<FlushId>,
    pub(super) floor: BTreeMap<u64, Vec<Id>>,
    now: Time,
    /// Whose handles were flushed, and how many of these flushes have failed.
    pub(super) flushes: Vec<usize>,
    pub(super) flush_failures: u64,
    /// Modifications that have ended, on handles that are there.
    pub(super) modifications: u64,
    /// How often handles were, and were to be, told to end their commands.
    pub(super) cancels: (usize, usize),
    /// When a client of the group was last told of a failed flush.
    pub(super) told: [Time; 2],
    /// What can be the reason of a flush.
    pub(super) stimuli: usize,
    pub(super) failed: bool,
}

impl World {
    pub(super) fn new(config: Config, nature: Nature) -> Self {
        let first = Command::new(CommandType::WRITE, 0, CELLS);
        let mut first = Sent::new(usize::MAX, first, 0);
        first.answered = Some((0, Ok(())));
        Self {
            coordinator: FlushCoordinator::new(config),
            config,
            nature,
            store: vec![0; 2 * CELLS as usize],
            shared: [Cached::default(), Cached::default()],
            connections: Vec::new(),
            sent: vec![first],
            executing: Vec::new(),
            flushing: Vec::new(),
            ended: Vec::new(),
            floor: BTreeMap::new(),
            now: 0,
            flushes: Vec::new(),
            flush_failures: 0,
            modifications: 0,
            cancels: (0, 0),
            told: [0; 2],
            stimuli: 0,
            failed: false,
        }
    }

    pub(super) fn ever(&self) -> usize {
        self.connections.len()
    }

    pub(super) fn known(&self) -> usize {
        let gone = |it: &&Connection| it.stage != Stage::Gone;
        self.connections.iter().filter(gone).count()
    }

    /// One of the connections that are known; 0 if there are none.
    pub(super) fn nth_known(&self, which: usize) -> usize {
        let known = |&at: &usize| self.connections[at].stage != Stage::Gone;
        let nth = which.checked_rem(self.known()).unwrap_or(0);
        (0..self.ever()).filter(known).nth(nth).unwrap_or(0)
    }

    pub(super) fn export(&self, index: usize) -> u8 {
        self.connections.get(index).map_or(0, |it| it.export)
    }

    pub(super) fn ignores_flush(&self) -> bool {
        self.config.acknowledge() == Acknowledge::IgnoreFlush
    }

    pub(super) fn is_sticky(&self) -> bool {
        self.config.after_failure() == AfterFailure::Sticky
    }

    pub(super) fn group(&self, index: usize) -> usize {
        match self.config.grouping() {
            Grouping::ByExport => usize::from(self.connections[index].export),
            _ => 0,
        }
    }

    pub(super) const fn tick(&mut self) -> Time {
        self.now += 1;
        self.now
    }

    pub(super) const fn fail(&mut self) {
        self.failed = true;
        self.stimuli += 1;
    }

    // --- connections ---

    pub(super) fn connect(&mut self, export: u8) -> usize {
        // Whether its group is empty must not depend on what was not taken yet.
        self.poll();
        let index = self.connections.len();
        let conn = self.coordinator.connect(index, &export);
        let connected = self.tick();
        self.connections.push(Connection {
            conn,
            export,
            stage: Stage::Opening,
            kind: Kind::default(),
            advertised: (false, false),
            cached: Cached::default(),
            doubt: None,
            owed: None,
            told: 0,
            connected,
            revoked: None,
            released: false,
        });
        if self.nature.loads_on_open {
            self.load_all(index);
        }
        self.stimuli += 1;
        index
    }

    pub(super) fn opened(&mut self, index: usize, kind: Kind) {
        let Some(connection) = self.connections.get(index) else {
            return;
        };
        let result = self.coordinator.opened(connection.conn, kind.backend());
        if connection.stage != Stage::Opening {
            assert_eq!(result, Err(OpenError::NotOpening));
            return;
        }
        let misfit = self.is_misfit(index, kind);
        let shared = self.nature.shared[usize::from(connection.export)];
        let (ignores, config) = (self.ignores_flush(), self.config);
        let connection = &mut self.connections[index];
        let advertised = match result {
            Ok(advertised) => advertised,
            Err(why) => {
                assert!(misfit || !self.nature.promises, "{why}");
                connection.released = true;
                self.gone(index);
                return;
            }
        };
        connection.stage = Stage::Serving;
        connection.kind = kind;
        connection.advertised = (advertised.flush, advertised.fua);
        if kind.through {
            connection.cached.cache.clear();
        }
        if self.nature.promises {
            let emulates = Way::of(&config, shared) == Way::Emulate;
            let flush = kind.flush || kind.through || ignores;
            assert_eq!(advertised.flush, flush);
            assert_eq!(advertised.fua, flush || (kind.fua && !emulates));
            let multi_conn = match config.mode() {
                _ if config.thread_model() == ThreadModel::SerializeConnections => false,
                Mode::Disable => false,
                Mode::Emulate | Mode::Unsafe => true,
                Mode::Auto if !ignores => true,
                _ => shared,
            };
            assert_eq!(advertised.multi_conn, multi_conn);
        }
    }

    /// Whether a handle may be refused: one that caches and has no flush, beside one that writes.
    fn is_misfit(&self, index: usize, kind: Kind) -> bool {
        let export = self.connections[index].export;
        let shared = self.nature.shared[usize::from(export)];
        let mut others = self.connections.iter().enumerate();
        kind.is_blind()
            || others.any(|(other, it)| {
                self.group(other) == self.group(index)
                    && !it.released
                    && it.kind.is_blind()
                    && Way::of(&self.config, shared) == Way::Emulate
            })
    }

    pub(super) fn disconnect(&mut self, index: usize) {
        let Some(connection) = self.connections.get_mut(index) else {
            return;
        };
        self.stimuli += 1;
        self.coordinator.disconnect(connection.conn);
        match connection.stage {
            Stage::Opening => {
                connection.released = true;
                self.gone(index);
            }
            Stage::Serving => connection.stage = Stage::Leaving,
            Stage::Leaving | Stage::Gone => {}
        }
    }

    /// The client is gone, and what it sends again through others is newer than all of this.
    pub(super) fn revoke(&mut self, index: usize) {
        let now = self.tick();
        let Some(connection) = self.connections.get_mut(index) else {
            return;
        };
        let conn = connection.conn;
        self.stimuli += 1;
        self.coordinator.revoke(conn);
        match connection.stage {
            Stage::Opening => {
                connection.released = true;
                self.gone(index);
            }
            Stage::Serving | Stage::Leaving => {
                connection.stage = Stage::Leaving;
                connection.revoked.get_or_insert(now);
                let executes = self.executing.iter().any(|it| it.op.conn() == conn);
                self.cancels.1 += usize::from(executes);
            }
            Stage::Gone => {}
        }
    }

    /// A handle is gone; what it is executing ends with an error, or is never heard of again.
    pub(super) fn lose(&mut self, index: usize, silently: bool) {
        let now = self.tick();
        if self.nature.calm {
            return self.disconnect(index);
        }
        let Some(connection) = self.connections.get_mut(index) else {
            return;
        };
        let was = connection.stage;
        let conn = connection.conn;
        if was == Stage::Gone {
            return self.coordinator.lost(conn);
        }
        connection.released = was == Stage::Opening;
        // Not known to be in storage, even if the cache has written it back by itself.
        let lost = std::mem::take(&mut connection.cached).uncovered;
        self.lost(lost, now);
        self.fail();
        self.flushing.retain(|it| it.conn != index);
        self.coordinator.lost(conn);
        let executing = std::mem::take(&mut self.executing);
        for it in executing {
            if it.op.conn() != conn {
                self.executing.push(it);
                continue;
            }
            let sent = &mut self.sent[it.id];
            if it.op.acknowledged() {
                sent.unsettled = false;
                sent.lost = Some(now);
            } else {
                sent.abandoned = true;
            }
            if !silently {
                let decision = self.coordinator.complete(it.op, it.id, Err(Errno::EIO));
                assert!(matches!(decision, Decision::Closed { .. }));
            }
        }
        self.gone(index);
    }

    fn release(&mut self, index: usize) {
        let now = self.tick();
        let connection = &mut self.connections[index];
        assert!(!connection.released, "released twice");
        assert!(matches!(connection.stage, Stage::Leaving | Stage::Gone));
        assert!(self.flushing.iter().all(|it| it.conn != index));
        let conn = connection.conn;
        assert!(self.executing.iter().all(|it| it.op.conn() != conn));
        connection.released = true;
        let rest = std::mem::take(&mut connection.cached).uncovered;
        let doubt = connection.doubt;
        if self.nature.promises && self.way(index) == Way::Emulate {
            let excused = |&id: &Id| doubt.is_some() || self.sent[id].lost.is_some();
            assert!(
                rest.iter().all(excused),
                "{rest:?} of connection {index} is gone, and was not written out"
            );
        }
        self.lost(rest, doubt.unwrap_or(now));
        self.gone(index);
    }

    /// A connection is none any more; if it was the last of its group, what its clients were told
    /// is lost is nobody's promise any more.
    fn gone(&mut self, index: usize) {
        self.connections[index].stage = Stage::Gone;
        let group = self.group(index);
        let there = |&at: &usize| self.connections[at].stage != Stage::Gone;
        let mut others = (0..self.ever()).filter(there);
        if others.all(|other| self.group(other) != group) && self.is_sticky() {
            self.forgive(group, self.told[group]);
        }
    }

    /// Tells once more of a flush that has ended.
    pub(super) fn repeat_flushed(&mut self, which: usize) {
        if !self.ended.is_empty() {
            let flush = self.ended[which % self.ended.len()];
            self.coordinator.flushed(flush, Ok(()));
        }
    }

    /// Whoever resets does not miss what was lost.
    pub(super) fn reset(&mut self, export: u8) {
        let now = self.tick();
        let all = self.config.grouping() == Grouping::All;
        let group = if all { 0 } else { usize::from(export) };
        self.coordinator.reset(&export);
        for index in 0..self.ever() {
            if self.group(index) != group {
                continue;
            }
            self.connections[index].owed = None;
            if self.connections[index].doubt.is_some() {
                let doubtful = self.connections[index].cached.uncovered.clone();
                self.lost(doubtful, now);
            }
        }
        self.forgive(group, now);
    }

    // --- clients ---

    pub(super) fn send(&mut self, index: usize, command: Command, load: Load) -> Option<Id> {
        let connection = self.connections.get(index)?;
        if connection.kind.read_only && command.kind.is_modification() {
            return None;
        }
        let conn = connection.conn;
        let serving = connection.stage == Stage::Serving;
        let id = self.sent.len();
        let invoked = self.tick();
        let mut sent = Sent::new(index, command, invoked);
        if self.is_flush(index, command) {
            sent.covers = self.answered_modifications(index);
        }
        if !command.kind.is_modification() {
            sent.floor = self.floor_of(index);
            sent.must_see = self.must_see(index);
        }
        self.sent.push(sent);
        self.stimuli += 1;
        let decision = self.coordinator.command(conn, command, id);
        assert_eq!(!matches!(decision, Decision::Closed { .. }), serving);
        self.decide(decision, load);
        Some(id)
    }

    /// Whether a command is a flush, or has one before it.
    pub(super) fn is_flush(&self, index: usize, command: Command) -> bool {
        let preflush = self.config.fua_on_reads() == FuaOnReads::Preflush
            && command.kind == CommandType::READ
            && command.fua
            && self.connections[index].advertised.0;
        preflush || command.kind == CommandType::FLUSH
    }

    pub(super) fn decide(&mut self, decision: Decision<Id>, load: Load) {
        match decision {
            Decision::Execute { op, tag } => self.begin(op, tag, load),
            Decision::Reply { tag, result } => self.answer(tag, result),
            Decision::Answered { tag } => {
                let sent = &mut self.sent[tag];
                assert!(sent.unsettled, "command {tag} was not answered before");
                sent.unsettled = false;
            }
            Decision::Wait => {}
            Decision::Closed { tag } => self.sent[tag].abandoned = true,
            other => panic!("not known here: {other:?}"),
        }
    }

    /// A command is to be executed.
    fn begin(&mut self, op: Op, id: Id, load: Load) {
        let Sent { conn, command, .. } = self.sent[id];
        let Connection {
            conn: known,
            revoked,
            kind,
            released,
            ..
        } = self.connections[conn];
        assert_eq!(op.conn(), known);
        assert!(!released && revoked.is_none(), "command {id} begins");
        assert!(!self.sent[id].started, "command {id} begins twice");
        self.check_turn(conn);
        let modifies = command.kind.is_modification();
        let asked = command.fua || self.config.acknowledge() == Acknowledge::WriteThrough;
        assert!(!op.fua() || (modifies && kind.fua && asked));
        let early = self.config.acknowledge() == Acknowledge::OnReceipt;
        assert_eq!(op.acknowledged(), early && modifies && !command.fua);
        if op.acknowledged() {
            self.answer(id, Ok(()));
            self.sent[id].unsettled = true;
        }
        self.sent[id].started = true;
        self.execute(op, id, load);
    }

    /// Where handles are called for one thing at a time, nothing goes on.
    fn check_turn(&self, index: usize) {
        if self.config.thread_model() == ThreadModel::SerializeRequests {
            let conn = self.connections[index].conn;
            let executes = self.executing.iter().any(|it| it.op.conn() == conn);
            let flushes = self.flushing.iter().any(|it| it.conn == index);
            assert!(!executes && !flushes, "two calls on handle {index}");
        }
    }

    /// Takes whatever the coordinator wants done.
    pub(super) fn poll(&mut self) {
        while let Some(action) = self.coordinator.poll() {
            match action {
                Action::Execute { key, op, tag } => {
                    assert_eq!(key, self.sent[tag].conn);
                    let load = [Load::Late, Load::Early][tag % 2];
                    self.begin(op, tag, load);
                }
                Action::Flush { key, flush } => {
                    let connection = &self.connections[key];
                    assert!(!connection.released && connection.stage != Stage::Opening);
                    assert_eq!(flush.conn(), connection.conn);
                    assert!(connection.kind.flush && !self.ignores_flush());
                    let mut others = self.flushing.iter();
                    assert!(others.all(|it| it.conn != key), "two flushes of one handle");
                    self.check_turn(key);
                    self.begin_flush(key, flush);
                }
                Action::Reply { key, tag, result } => {
                    assert_eq!(key, self.sent[tag].conn);
                    self.answer(tag, result);
                }
                Action::Cancel { key } => {
                    assert!(self.connections[key].revoked.is_some());
                    self.cancels.0 += 1;
                }
                Action::Release { key } => self.release(key),
                other => panic!("not known here: {other:?}"),
            }
        }
        self.check();
        self.check_counters(true);
    }

    /// The backend does all that it was asked to, until nothing is left to do.
    pub(super) fn settle(&mut self) {
        for _ in 0..20_000 {
            self.poll();
            if !self.executing.is_empty() {
                self.finish(0, false);
            } else if !self.flushing.is_empty() {
                self.finish_flush(0, None);
            } else {
                return;
            }
        }
        panic!("the coordinator does not come to rest");
    }

    pub(super) fn cache(&mut self, index: usize) -> &mut Cache {
        &mut self.cached(index).cache
    }
}
