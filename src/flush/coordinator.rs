//! The machine: events in, actions out.

use alloc::collections::{BTreeMap, VecDeque};

use super::backend::{Advertised, Backend, OpenError};
use super::clock::{Clock, Stamp};
use super::command::{Action, Command, Conn, Decision, Fua, Op};
use super::config::{Acknowledge, Config, Grouping, Mode, ThreadModel};
use super::group::{Group, OrderWait, Path};
use super::member::{Held, List, Member, Need, Phase};
use super::observe::Counters;
use super::order::Range;
use super::overlap::Turn;
use super::serial::Next;
use super::slab::{Key, Slab};
use super::waiting::{LAST, Place};
use crate::wire::{CommandType, Errno};

#[derive(Debug)]
#[cfg_attr(test, derive(Clone, PartialEq, Eq, Hash))]
pub(super) enum Pending<C, T> {
    /// Flush a handle; what the flush covers is known when it is taken.
    Flush(Key),
    /// Tell a client that its flush failed; it knows from when this is taken.
    FailedFlush {
        member: Key,
        tag: T,
        why: Errno,
        /// What failed later it does not hear of.
        at: Stamp,
    },
    Now(Action<C, T>),
}

/// A FUA command that was executed and waits for its flush.
#[derive(Clone, Debug)]
#[cfg_attr(test, derive(PartialEq, Eq, Hash))]
pub(super) struct FuaWait<T> {
    pub(super) member: Key,
    pub(super) tag: T,
    pub(super) written_out: bool,
    pub(super) remaining: u32,
}

/// Keeps the flush promise for all connections of a server. See the [module](super).
///
/// `C` is what the caller calls a connection by: it is cloned into every action of the connection,
/// and may be an `Arc` of all that is known of it. `E` is what it calls an export by, and `T` what
/// it keeps for a command until the answer: the request, its payload, what a read has fetched.
///
/// No method panics, waits, or fails for what a client does.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone, PartialEq, Eq, Hash))]
pub struct FlushCoordinator<C, E, T> {
    pub(super) config: Config,
    pub(super) clock: Clock,
    pub(super) members: Slab<Member<C, T>>,
    pub(super) groups: Slab<Group<E, T>>,
    pub(super) by_export: BTreeMap<E, Key>,
    pub(super) everyone: Option<Key>,
    pub(super) fuas: Slab<FuaWait<T>>,
    /// Clients' flushes of their own connection only.
    pub(super) own: Slab<super::group::Waiter<T>>,
    pub(super) actions: VecDeque<Pending<C, T>>,
    /// What was counted in groups that are gone.
    pub(super) forgotten: Counters,
    /// Handles that may be free for what waits for them.
    pub(super) turns: VecDeque<Key>,
    /// How many modifications, revoked connections, and commands that wait for these, others must
    /// not overtake, in all groups.
    pub(super) guards: usize,
}

impl<C: Clone, E: Ord + Clone, T> FlushCoordinator<C, E, T> {
    /// A coordinator without connections.
    #[must_use]
    pub const fn new(config: Config) -> Self {
        Self {
            config,
            clock: Clock::new(),
            members: Slab::new(),
            groups: Slab::new(),
            by_export: BTreeMap::new(),
            everyone: None,
            fuas: Slab::new(),
            own: Slab::new(),
            actions: VecDeque::new(),
            forgotten: Counters::new(),
            turns: VecDeque::new(),
            guards: 0,
        }
    }

    /// Its options.
    #[must_use]
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// A connection is about to open its backend handle. Call this *before* the handle is opened:
    /// a handle may load data while it is being opened, and a flush that ends meanwhile has to
    /// know.
    ///
    /// Either [`opened`](Self::opened) or, if it could not be opened,
    /// [`disconnect`](Self::disconnect) must follow.
    #[must_use = "a connection that is neither opened nor disconnected stays for ever"]
    pub fn connect(&mut self, key: C, export: &E) -> Conn {
        let group = self.group_of(export);
        let now = self.clock.tick();
        let mut member = Member::new(key, group);
        member.oldest_load = now;
        let member = self.members.insert(member);
        self.list(member, List::Members, true);
        self.relist(member);
        Conn(member)
    }

    fn group_of(&mut self, export: &E) -> Key {
        let name = match self.config.grouping() {
            Grouping::All => None,
            Grouping::ByExport => Some(export.clone()),
        };
        let known = match &name {
            None => self.everyone,
            Some(export) => self.by_export.get(export).copied(),
        };
        if let Some(group) = known {
            return group;
        }
        let group = self.groups.insert(Group::new(name.clone()));
        match name {
            None => self.everyone = Some(group),
            Some(export) => {
                self.by_export.insert(export, group);
            }
        }
        group
    }

    /// The backend handle of a connection was opened, and can do this.
    ///
    /// # Errors
    ///
    /// If the configured mode cannot keep its promise with such a handle, alone or beside those of
    /// the group that are open. The connection is then forgotten, without an
    /// [`Action::Release`]; close the handle.
    pub fn opened(&mut self, conn: Conn, mut backend: Backend) -> Result<Advertised, OpenError> {
        if self.config.acknowledge() == Acknowledge::IgnoreFlush {
            // So that nobody relies on it, and it is never asked for.
            backend = backend.with_flush(false).with_fua(false);
        }
        let Some(member) = self.members.get_mut(conn.0) else {
            return Err(OpenError::NotOpening);
        };
        if member.phase != Phase::Opening {
            return Err(OpenError::NotOpening);
        }
        let group = member.group;
        let advertised = self.advertise(group, backend);
        let advertised = advertised.and_then(|advertised| {
            // What was written out while it was being opened could never be made visible on it.
            let never_fresh = backend.cannot_flush() && backend.loads_on_open();
            if never_fresh && self.others_rely_on(group) && self.is_stale(conn.0) {
                return Err(OpenError::CannotEmulate);
            }
            Ok(advertised)
        });
        let advertised = match advertised {
            Ok(advertised) => advertised,
            Err(why) => {
                self.remove(conn.0);
                return Err(why);
            }
        };
        let (Some(member), Some(group)) =
            (self.members.get_mut(conn.0), self.groups.get_mut(group))
        else {
            return Err(OpenError::NotOpening);
        };
        member.phase = Phase::Serving;
        member.backend = backend;
        if backend.caches_nothing() || !backend.loads_on_open() {
            member.oldest_load = Stamp::NEVER;
            member.ungate();
        }
        group.open += 1;
        group.multi_conn = Some(backend.multi_conn());
        group.flush |= backend.flush();
        group.writable += u32::from(!backend.read_only());
        group.cannot_flush += u32::from(backend.cannot_flush());
        self.relist(conn.0);
        Ok(advertised)
    }

    /// What follows from mode and backend.
    fn advertise(&self, group: Key, backend: Backend) -> Result<Advertised, OpenError> {
        let group = self.groups.get(group).ok_or(OpenError::NotOpening)?;
        if group
            .multi_conn
            .is_some_and(|it| it != backend.multi_conn())
        {
            return Err(OpenError::MixedMultiConn);
        }
        self.check_acknowledge(backend)?;
        let acknowledge = self.config.acknowledge();
        let ignoring = acknowledge == Acknowledge::IgnoreFlush;
        let serialized = self.config.thread_model() == ThreadModel::SerializeConnections;
        let can_flush = backend.flush() || backend.caches_nothing();
        let emulated = match self.config.mode() {
            Mode::Emulate => true,
            Mode::Auto => !serialized && !backend.multi_conn() && !ignoring,
            Mode::Plugin | Mode::Disable | Mode::Unsafe => false,
        };
        if emulated && !can_flush && !backend.read_only() {
            return Err(OpenError::CannotEmulate);
        }
        if emulated {
            // A handle that caches and cannot flush is harmless only while nobody writes.
            if group.cannot_flush > 0 && !backend.read_only() {
                return Err(OpenError::GroupCannotFlush);
            }
            if backend.cannot_flush() && group.writable > 0 {
                return Err(OpenError::CannotEmulate);
            }
        }
        let multi_conn = match self.config.mode() {
            // A client that believed it would wait for its second connection for ever.
            _ if serialized => false,
            // Without flushes, what clients see of each other's data is up to the backend.
            Mode::Auto if ignoring => backend.multi_conn(),
            Mode::Emulate | Mode::Auto | Mode::Unsafe => true,
            Mode::Plugin => backend.multi_conn(),
            Mode::Disable => false,
        };
        let is_true =
            can_flush || ignoring || backend.read_only() || self.config.mode() == Mode::Unsafe;
        if multi_conn && !is_true {
            return Err(OpenError::MultiConnWithoutFlush);
        }
        Ok(Advertised {
            multi_conn,
            flush: can_flush || ignoring,
            // When emulating, a write and a flush take the place of native FUA.
            fua: can_flush || ignoring || (backend.fua() && !emulated),
        })
    }

    /// Whether clients can be told what the configuration says, when it says.
    fn check_acknowledge(&self, backend: Backend) -> Result<(), OpenError> {
        if backend.read_only() || backend.caches_nothing() {
            return Ok(());
        }
        match self.config.acknowledge() {
            Acknowledge::OnCompletion => Ok(()),
            Acknowledge::WriteThrough if backend.flush() || backend.fua() => Ok(()),
            Acknowledge::WriteThrough => Err(OpenError::CannotWriteThrough),
            Acknowledge::OnReceipt if backend.flush() => Ok(()),
            Acknowledge::OnReceipt => Err(OpenError::CannotReportLater),
            Acknowledge::IgnoreFlush if self.config.mode() == Mode::Emulate => {
                Err(OpenError::CannotIgnoreFlush)
            }
            Acknowledge::IgnoreFlush => Ok(()),
        }
    }

    pub(super) fn path(&self, group: &Group<E, T>) -> Path {
        match self.config.mode() {
            Mode::Emulate => Path::Emulate,
            _ if group.covers_all() => Path::CoversAll,
            Mode::Auto if self.config.acknowledge() == Acknowledge::IgnoreFlush => Path::Own,
            Mode::Auto if self.config.thread_model() != ThreadModel::SerializeConnections => {
                Path::Emulate
            }
            _ => Path::Own,
        }
    }

    /// A client's command arrived on a connection.
    ///
    /// The common case, a command that needs nothing, is decided without touching any queue. Of
    /// the commands, only [`FLUSH`](CommandType::FLUSH) is never executed: it turns into
    /// [`Action::Flush`]es, or is answered at once: with [`Errno::EINVAL`] where flush was not
    /// [advertised](Advertised::flush). `NBD_CMD_DISC` is no command here: call
    /// [`disconnect`](Self::disconnect).
    pub fn command(&mut self, conn: Conn, command: Command, tag: T) -> Decision<T> {
        match self.members.get(conn.0) {
            Some(member) if member.phase == Phase::Serving => {}
            _ => return Decision::Closed { tag },
        }
        if command.kind == CommandType::FLUSH {
            self.flush_arrives(conn.0, None, tag)
        } else if command.fua && self.needs_preflush(conn.0, command) {
            self.flush_arrives(conn.0, Some(command), tag)
        } else {
            self.arrive(conn.0, command, tag)
        }
    }

    /// Decides about a command that is to be executed, and has those before it that wait for others
    /// from before `place` on.
    pub(super) fn admit(
        &mut self,
        key: Key,
        command: Command,
        tag: T,
        place: Place,
    ) -> Decision<T> {
        let Some(member) = self.members.get_mut(key) else {
            return Decision::Closed { tag };
        };
        if member.gate().happened() {
            return self.hold(key, command, tag);
        }
        if self.guards > 0
            && let Some(range) = self.must_park(key, command, LAST)
        {
            return self.park(key, range, command, tag);
        }
        self.admit_in_order(key, command, tag, place)
    }

    /// The same of one that was parked: those that were later have not become earlier.
    pub(super) fn admit_unparked(
        &mut self,
        key: Key,
        command: Command,
        tag: T,
        place: Place,
    ) -> Decision<T> {
        match self.members.get(key) {
            Some(member) if member.gate().happened() => self.hold(key, command, tag),
            _ => self.admit_in_order(key, command, tag, place),
        }
    }

    fn admit_in_order(&mut self, key: Key, command: Command, tag: T, place: Place) -> Decision<T> {
        let mut range = None;
        if self.has_order(command) {
            let turn = if command.kind.is_modification() {
                self.turn(key, command, place)
            } else {
                self.turn_to_load(key, command)
            };
            range = match turn {
                Turn::Now(range) => range,
                Turn::Later { range, until } => {
                    let wait = OrderWait {
                        member: key,
                        range,
                        loads_anew: false,
                        until,
                        command,
                        tag,
                    };
                    return self.wait_in_order(wait);
                }
                Turn::LoadAnew { range } => {
                    let wait = OrderWait {
                        member: key,
                        range,
                        loads_anew: true,
                        until: range,
                        command,
                        tag,
                    };
                    return self.wait_in_order(wait);
                }
            };
        }
        match self.start(key, command, range) {
            Some(op) => Decision::Execute { op, tag },
            None => Decision::Closed { tag },
        }
    }

    /// A command begins to execute: from now on it may load and modify.
    fn start(&mut self, key: Key, command: Command, range: Option<Range>) -> Option<Op> {
        let now = self.clock.tick();
        let member = self.members.get_mut(key)?;
        let generation = member.begin(now);
        let modification = command.kind.is_modification();
        member.in_flight.modifying += u32::from(modification);
        if !member.oldest_load.happened() && !member.backend.caches_nothing() {
            member.oldest_load = now;
            self.relist(key);
        }
        let mut fua = Fua::No;
        let mut acknowledged = Stamp::NEVER;
        let plain = self.config.acknowledge() == Acknowledge::OnCompletion;
        if modification && (command.fua || !plain) {
            if command.fua || self.config.acknowledge() == Acknowledge::WriteThrough {
                fua = self.fua(key);
            }
            acknowledged = self.acknowledge(key, command, now);
        }
        Some(Op {
            member: key,
            generation,
            modification,
            range,
            fua,
            acknowledged,
        })
    }

    fn fua(&self, key: Key) -> Fua {
        let Some(member) = self.members.get(key) else {
            return Fua::No;
        };
        let emulating = self
            .groups
            .get(member.group)
            .is_some_and(|group| self.path(group) == Path::Emulate);
        let backend = member.backend;
        if backend.caches_nothing() {
            Fua::Stable
        } else if backend.fua() && !emulating {
            Fua::Native
        } else if backend.flush() {
            Fua::Emulated
        } else {
            Fua::No
        }
    }

    /// The backend has executed a command, with this result.
    ///
    /// Call this before the client gets the reply: what completes here is what the next flush has
    /// to cover (proto.md "Ordering of messages and writes"). A command that failed may have had an
    /// effect all the same, and counts like one that succeeded.
    pub fn complete(&mut self, op: Op, tag: T, result: Result<(), Errno>) -> Decision<T> {
        let Some(member) = self.members.get_mut(op.member) else {
            return Decision::Closed { tag };
        };
        member.in_flight.end(op.generation);
        if !op.modification && member.work().is_none() && member.phase == Phase::Serving {
            return Decision::Reply { tag, result };
        }
        self.completed(op, tag, result)
    }

    fn completed(&mut self, op: Op, tag: T, result: Result<(), Errno>) -> Decision<T> {
        let key = op.member;
        let Some(member) = self.members.get(key) else {
            return Decision::Closed { tag };
        };
        let group = member.group;
        let mut idle = None;
        if op.modification {
            idle = self.modified(group, &op, result);
        }
        let decision = match (op.fua, result) {
            (Fua::Emulated, Ok(())) => self.flush_for_fua(key, op.generation, tag),
            (Fua::Stable, Ok(())) => self.show_to_others(key, tag),
            _ if op.acknowledged() => {
                self.settle_acknowledged(&op, result);
                Decision::Answered { tag }
            }
            _ => Decision::Reply { tag, result },
        };
        self.check_draining(key);
        if let Some(range) = idle {
            self.recheck_order_over(group, range);
        }
        self.offer_turn(key);
        self.advance_fence(key);
        self.try_release(key);
        decision
    }

    /// Returns the range in which nothing is in flight any more, if others may wait for that.
    fn modified(&mut self, group_key: Key, op: &Op, result: Result<(), Errno>) -> Option<Range> {
        let now = self.clock.tick();
        let (Some(member), Some(group)) = (
            self.members.get_mut(op.member),
            self.groups.get_mut(group_key),
        ) else {
            return None;
        };
        member.in_flight.modifying = member.in_flight.modifying.saturating_sub(1);
        group.last_change = now;
        let idle = op
            .range
            .and_then(|range| group.ranges.complete(op.member, range, now));
        if let Some(idle) = idle
            && member.backend.caches_nothing()
        {
            // It waits for no flush.
            group.ranges.remove(idle.start);
            member.ranges = member.ranges.saturating_sub(1);
        }
        if member.backend.caches_nothing() || (op.fua == Fua::Native && result.is_ok()) {
            group.write_outs.note(op.member, now);
            group.maybe_stale = true;
            group.counters.modifications += 1;
            group.counters.covered += 1;
            return idle;
        }
        member.last_mod = now;
        group.last_mod = now;
        if let Some(at) = member.place(List::Dirty) {
            group.modified(Some(at), now);
        } else {
            self.first_modified(op.member, group_key, now);
        }
        idle
    }

    /// The first modification that no flush has covered has completed on a handle.
    fn first_modified(&mut self, key: Key, group: Key, now: Stamp) {
        self.relist(key);
        let at = self.members.get(key).and_then(|it| it.place(List::Dirty));
        if let Some(group) = self.groups.get_mut(group) {
            group.modified(at, now);
        }
    }

    /// A command waits until the gate of its handle opens.
    fn hold(&mut self, key: Key, command: Command, tag: T) -> Decision<T> {
        let Some(member) = self.members.get_mut(key) else {
            return Decision::Closed { tag };
        };
        let work = member.work_mut();
        let first = work.held.is_empty();
        work.held.push_back(Held { command, tag });
        if first {
            self.invalidate(key, Need::Gate);
        }
        Decision::Wait
    }

    /// Forgets the failures of an export's group, so that flushes can succeed again: for when the
    /// caller has made sure that what was lost is not missed, as by rewriting it. Under
    /// [`Grouping::All`] the group is that of all connections, whatever the export.
    pub fn reset(&mut self, export: &E) {
        let group = match self.config.grouping() {
            Grouping::All => self.everyone,
            Grouping::ByExport => self.by_export.get(export).copied(),
        };
        let Some((key, group)) = group.and_then(|key| Some((key, self.groups.get_mut(key)?)))
        else {
            return;
        };
        group.failed = None;
        group.failed_reported = false;
        group.lost = None;
        group.waiting_failed = None;
        for &index in group.list(List::Members) {
            if let Some(member) = self.members.at_mut(index) {
                member.forget_failures();
            }
        }
        if group.list(List::Members).is_empty() {
            group.give_up();
            self.group_emptied(key);
        }
    }

    /// The next thing to do, if there is any. May be called at any time; what is not taken stays.
    /// Actions may be carried out in any order, and in parallel.
    #[must_use = "an action that is taken has to be carried out"]
    pub fn poll(&mut self) -> Option<Action<C, T>> {
        loop {
            let Some(pending) = self.actions.pop_front() else {
                match self.next_turn()? {
                    Next::Flush(action) => return Some(action),
                    Next::Done => continue,
                }
            };
            match pending {
                Pending::Now(action) => return Some(action),
                Pending::FailedFlush {
                    member,
                    tag,
                    why,
                    at,
                } => {
                    self.failure_reported(member, at);
                    let key = self.members.get(member).map(|member| member.key.clone());
                    self.settle(member);
                    if let Some(key) = key {
                        let result = Err(why);
                        return Some(Action::Reply { key, tag, result });
                    }
                }
                Pending::Flush(key) => {
                    if let Some(action) = self.start_flush(key) {
                        return Some(action);
                    }
                }
            }
        }
    }

    pub(super) fn reply(&mut self, key: Key, tag: T, result: Result<(), Errno>) {
        if let Some(member) = self.members.get(key) {
            let key = member.key.clone();
            let action = Action::Reply { key, tag, result };
            self.actions.push_back(Pending::Now(action));
        }
    }

    /// Puts what was decided about a command that had waited among the actions.
    pub(super) fn act(&mut self, key: Key, decision: Decision<T>) {
        match decision {
            Decision::Execute { op, tag } => {
                if let Some(member) = self.members.get(key) {
                    let key = member.key.clone();
                    self.actions
                        .push_back(Pending::Now(Action::Execute { key, op, tag }));
                }
            }
            Decision::Reply { tag, result } => self.reply(key, tag, result),
            Decision::Wait | Decision::Answered { .. } | Decision::Closed { .. } => {}
        }
    }
}
