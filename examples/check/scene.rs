//! A script that is being played.

use std::time::Instant;

use anyhow::Result;

use super::fleet::{Fleet, Sent};
use super::script::{Act, Role, Script, Tag};

/// A script, who plays it, and how far it is.
#[derive(Debug)]
pub(crate) struct Scene {
    id: u64,
    script: Script,
    /// The slots that play the parts; not empty.
    cast: Vec<usize>,
    /// The cell that it is about, if it is one.
    pub(crate) cell: Option<usize>,
    next: usize,
    unanswered: Vec<Tag>,
    pause: Option<Instant>,
    /// Slots whose connections it has closed and not opened again.
    closed: Vec<usize>,
}

/// How far it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Advance {
    /// Whether something was done.
    pub(crate) moved: bool,
    pub(crate) over: bool,
    /// When it goes on, if it is only time that it waits for.
    pub(crate) until: Option<Instant>,
}

impl Scene {
    pub(crate) const fn new(
        id: u64,
        script: Script,
        cast: Vec<usize>,
        cell: Option<usize>,
    ) -> Self {
        Self {
            id,
            script,
            cast,
            cell,
            next: 0,
            unanswered: Vec::new(),
            pause: None,
            closed: Vec::new(),
        }
    }

    pub(crate) const fn id(&self) -> u64 {
        self.id
    }

    /// Whether connections end in it.
    pub(crate) fn travels(&self) -> bool {
        self.script.travels()
    }

    /// Whether it has closed this connection.
    pub(crate) fn has_closed(&self, slot: usize) -> bool {
        self.closed.contains(&slot)
    }

    /// While the server is being killed: whether it waits for a connection, of which none comes
    /// before that is over.
    pub(crate) fn is_stranded(&self, fleet: &Fleet<'_>) -> bool {
        match self.script.acts.get(self.next) {
            Some(&Act::Send(_, role, _)) => !fleet.is_usable(self.slot(role)),
            Some(Act::Leave(..) | Act::Join(_)) => true,
            _ => false,
        }
    }

    /// One of its commands is over.
    pub(crate) fn answered(&mut self, tag: Tag) {
        self.unanswered.retain(|&it| it != tag);
    }

    /// Goes on as far as possible.
    ///
    /// # Errors
    ///
    /// If a connection cannot be opened again.
    pub(crate) fn advance(&mut self, fleet: &mut Fleet<'_>) -> Result<Advance> {
        let begun = self.next;
        while let Some(&act) = self.script.acts.get(self.next) {
            if !self.act(act, fleet)? {
                break;
            }
            self.next += 1;
        }
        Ok(Advance {
            moved: self.next > begun,
            over: self.next >= self.script.acts.len(),
            until: self.pause,
        })
    }

    /// Whether it is done.
    fn act(&mut self, act: Act, fleet: &mut Fleet<'_>) -> Result<bool> {
        Ok(match act {
            Act::Send(tag, role, what) => {
                let sent = fleet.send(self.slot(role), what, (self.id, tag))?;
                if sent == Sent::Yes {
                    self.unanswered.push(tag);
                }
                sent == Sent::Yes
            }
            Act::Wait(tag) => !self.unanswered.contains(&tag),
            Act::WaitAll => self.unanswered.is_empty(),
            Act::Pause(kind, percent) => {
                let length = fleet.latency.part(kind, percent);
                let until = *self.pause.get_or_insert_with(|| Instant::now() + length);
                let over = until <= Instant::now();
                if over {
                    self.pause = None;
                }
                over
            }
            // There is more to lose while it is connected.
            Act::Leave(..) if fleet.dying => false,
            Act::Leave(role, farewell) => {
                let slot = self.slot(role);
                let closed = fleet.leave(slot, farewell, false);
                if closed {
                    self.closed.push(slot);
                }
                closed
            }
            // It would be the next server that answers.
            Act::Join(_) if fleet.dying => false,
            Act::Join(role) => {
                let slot = self.slot(role);
                let gone = format!(
                    "connection {slot} was closed to be opened again, but the server is gone"
                );
                fleet.join(slot, &gone)?;
                self.closed.retain(|&it| it != slot);
                true
            }
        })
    }

    fn slot(&self, role: Role) -> usize {
        let at = role % self.cast.len().max(1);
        self.cast.get(at).copied().unwrap_or(0)
    }
}
