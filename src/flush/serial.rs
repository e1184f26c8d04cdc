//! Never two calls on one handle: commands and flushes take turns, in the order in which they came.
//!
//! Only under [`ThreadModel::SerializeRequests`]. What waits for its turn has not begun: it loads
//! nothing, modifies nothing, and has no range. When it gets its turn it is looked at like one
//! that has just arrived, so that a command which then has to wait for something else (a gate,
//! another handle's overlapping modification) leaves the handle to the next one.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use super::command::{Action, Command, Decision};
use super::config::ThreadModel;
use super::coordinator::FlushCoordinator;
use super::member::{Held, Member};
use super::slab::Key;
use super::waiting::LAST;

/// What waits until its handle is free.
#[derive(Clone, Debug)]
#[cfg_attr(test, derive(PartialEq, Eq, Hash))]
enum Call<T> {
    Command(Held<T>),
    /// The flush that was asked for, for whoever needs it by the time it starts.
    Flush,
    /// Commands of the handle that have waited for others' modifications, and need not any more.
    Ordered,
}

/// The calls that wait for one handle.
#[derive(Clone, Debug)]
#[cfg_attr(test, derive(PartialEq, Eq, Hash))]
pub(super) struct Calls<T> {
    waiting: VecDeque<Call<T>>,
    /// [`Call::Ordered`] is among them.
    ordered: bool,
    /// The handle stands in the coordinator's list of those that may be free.
    offered: bool,
}

impl<T> Calls<T> {
    pub(super) const fn new() -> Self {
        Self {
            waiting: VecDeque::new(),
            ordered: false,
            offered: false,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Removes the commands from among them.
    pub(super) fn take_commands(&mut self) -> Vec<T> {
        let mut commands = Vec::new();
        for call in core::mem::take(&mut self.waiting) {
            match call {
                Call::Command(held) => commands.push(held.tag),
                Call::Flush | Call::Ordered => self.waiting.push_back(call),
            }
        }
        commands
    }

    pub(super) fn flush(&mut self) {
        self.waiting.push_back(Call::Flush);
    }

    /// Commands that had their turn before those that wait, but could not use it.
    pub(super) fn put_back(&mut self, held: VecDeque<Held<T>>) {
        for held in held.into_iter().rev() {
            self.waiting.push_front(Call::Command(held));
        }
    }

    fn next(&mut self) -> Option<Call<T>> {
        let call = self.waiting.pop_front();
        if let Some(Call::Ordered) = call {
            self.ordered = false;
        }
        call
    }
}

impl<C, T> Member<C, T> {
    /// A command executes on the handle, or a flush runs.
    fn is_occupied(&self) -> bool {
        !self.in_flight.is_empty() || self.flush_running().is_some()
    }

    /// Nothing may be called on the handle before what waits already.
    fn has_calls(&self) -> bool {
        self.work().is_some_and(|work| !work.calls.is_empty())
    }
}

impl<C: Clone, E: Ord + Clone, T> FlushCoordinator<C, E, T> {
    pub(super) fn serializes(&self) -> bool {
        self.config.thread_model() == ThreadModel::SerializeRequests
    }

    /// A command arrives at its handle.
    pub(super) fn arrive(&mut self, key: Key, command: Command, tag: T) -> Decision<T> {
        if !self.serializes() {
            return self.admit(key, command, tag, LAST);
        }
        let Some(member) = self.members.get_mut(key) else {
            return Decision::Closed { tag };
        };
        if !member.is_occupied() && !member.has_calls() {
            return self.admit(key, command, tag, LAST);
        }
        let held = Held { command, tag };
        let calls = &mut member.work_mut().calls;
        calls.waiting.push_back(Call::Command(held));
        Decision::Wait
    }

    /// Whether a modification that waited for others' has to wait for its own handle now. It keeps
    /// its place among those that wait for modifications, lest others come before it again.
    pub(super) fn must_wait_for_handle(&mut self, key: Key) -> bool {
        if !self.serializes() {
            return false;
        }
        let Some(member) = self.members.get_mut(key) else {
            return false;
        };
        if !member.is_occupied() {
            return false;
        }
        let calls = &mut member.work_mut().calls;
        if !calls.ordered {
            calls.ordered = true;
            calls.waiting.push_back(Call::Ordered);
        }
        true
    }

    /// The handle may be free for one of the calls that wait for it, if there are any.
    pub(super) fn offer_turn(&mut self, key: Key) {
        if !self.serializes() {
            return;
        }
        let Some(member) = self.members.get_mut(key) else {
            return;
        };
        if member.has_calls() && !member.is_occupied() {
            let calls = &mut member.work_mut().calls;
            if !calls.offered {
                calls.offered = true;
                self.turns.push_back(key);
            }
        } else {
            member.rest();
        }
    }

    /// Begins one of the calls whose handles are free. `None` if there is none.
    pub(super) fn next_turn(&mut self) -> Option<Next<C, T>> {
        let key = self.turns.pop_front()?;
        let Some(member) = self.members.get_mut(key) else {
            return Some(Next::Done);
        };
        let group = member.group;
        member.work_mut().calls.offered = false;
        if member.is_occupied() {
            return Some(Next::Done);
        }
        match member.work_mut().calls.next() {
            Some(Call::Flush) => return self.start_flush(key).map(Next::Flush),
            Some(Call::Command(held)) => {
                let decision = self.admit(key, held.command, held.tag, LAST);
                self.act(key, decision);
            }
            Some(Call::Ordered) => {
                self.recheck_order_of(group, key);
                self.recheck_parked_of(group, key);
            }
            None => {}
        }
        self.offer_turn(key);
        self.try_release(key);
        Some(Next::Done)
    }
}

/// What has become of a call that had its turn.
pub(super) enum Next<C, T> {
    /// A flush starts.
    Flush(Action<C, T>),
    /// Whatever is to be done stands among the actions.
    Done,
}
