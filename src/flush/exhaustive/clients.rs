//! Clients that obey the protocol: what they send, and what they make of the answers.

use alloc::vec::Vec;

use super::world::Caches;
use super::world::{CELLS, Id, Ids, Phase, Sent, Setup, Span, What, World, Write, Wrong};
use crate::flush::command::{Command, Decision};
use crate::flush::config::{AfterFailure, TrackDirty};
use crate::wire::{CommandType, Errno};

impl World {
    pub(super) fn next_id(&self) -> Id {
        self.writes.len() as Id + 1
    }

    /// The writes that were answered with success.
    pub(super) fn answered(&self) -> Ids {
        let mut ids = Ids::default();
        for (id, _) in (1..).zip(&self.writes).filter(|(_, it)| it.answered) {
            ids.insert(id);
        }
        ids
    }

    pub(super) fn send(&mut self, setup: &Setup, index: usize, what: What) {
        let tags = (0..).find(|tag| self.sent.iter().all(|it| it.tag != *tag));
        let tag = tags.unwrap_or_default();
        let mut covers = Ids::default();
        let command = match what {
            What::Flush => {
                covers = self.answered().without(self.forgiven);
                if setup.alone {
                    let others = |id: &Id| self.conn_of(*id) != Some(index);
                    let others: Vec<Id> = covers.iter().filter(others).collect();
                    let mut unpromised = Ids::default();
                    others.into_iter().for_each(|id| unpromised.insert(id));
                    covers = covers.without(unpromised);
                }
                Command::FLUSH
            }
            What::Read(at) => Command::new(CommandType::READ, at.first.into(), length(at)),
            What::Write { at, fua, .. } => {
                self.writes.push(Write {
                    conn: index as u8,
                    at,
                    after: self.answered(),
                    answered: false,
                });
                Command::new(CommandType::WRITE, at.first.into(), length(at)).with_fua(fua)
            }
        };
        self.sent.push(Sent {
            tag,
            conn: index as u8,
            what,
            floor: match what {
                What::Read(_) => self.floor,
                _ => [Ids::default(); CELLS],
            },
            covers,
            visits: [0; 4],
            unvisited: match what {
                What::Flush if !setup.alone => self.uncovered(setup),
                _ => 0,
            },
            unreached: what == What::Flush && Self::all_reach(setup, index),
        });
        let decision = self
            .coordinator
            .command(self.handles[index].conn, command, tag);
        self.decide(setup, decision);
    }

    /// The handles that have something to write out, and have not failed to.
    fn uncovered(&self, setup: &Setup) -> u8 {
        if setup.caches == Caches::Shared {
            return 0;
        }
        let handles = self.handles.iter().zip(&self.caches).enumerate();
        let uncovered = handles.filter(|(_, (handle, cache))| cache.uncovered && !handle.failed);
        uncovered.fold(0, |set, (index, _)| set | 1 << index)
    }

    /// Whether each flush of this connection is to reach the backend.
    pub(super) fn all_reach(setup: &Setup, index: usize) -> bool {
        setup.config.track_dirty() == TrackDirty::Off && !Self::is_through(setup, index)
    }

    pub(super) fn decide(&mut self, setup: &Setup, decision: Decision<u8>) {
        match decision {
            Decision::Execute { op, tag } => self.start(setup, op, tag),
            Decision::Reply { tag, result } => self.answer(setup, tag, result),
            Decision::Wait => {}
            // Nobody sends on a connection that is not open, and nothing is answered on receipt.
            Decision::Closed { .. } | Decision::Answered { .. } => self.accuse(Wrong::Answered),
        }
    }

    pub(super) fn conn_of(&self, id: Id) -> Option<usize> {
        let write = self.writes.get(usize::from(id).checked_sub(1)?)?;
        Some(write.conn.into())
    }

    pub(super) fn answer(&mut self, setup: &Setup, tag: u8, result: Result<(), Errno>) {
        let Some(place) = self.sent.iter().position(|it| it.tag == tag) else {
            return self.accuse(Wrong::Answered);
        };
        let sent = self.sent.remove(place);
        let index = usize::from(sent.conn);
        if self.handles[index].phase == Phase::Closed {
            self.accuse(Wrong::Answered);
        }
        let missed = self.handles.iter().enumerate().any(|(index, handle)| {
            let there = !handle.failed && handle.phase != Phase::Closed;
            there && sent.unvisited & (1 << index) != 0
        });
        // Who is answered because its handle is gone had no round.
        if missed && self.handles[index].phase == Phase::Open {
            self.accuse(Wrong::Unvisited);
        }
        match (sent.what, result) {
            (What::Flush, Ok(())) => {
                if !setup.lazy && (self.sticky || self.handles[index].owed) {
                    self.accuse(Wrong::Unreported);
                }
                if sent.unreached {
                    self.accuse(Wrong::Unreached);
                }
                for id in sent.covers.without(self.forgiven).iter() {
                    self.raise_floor(id);
                }
            }
            (What::Flush, Err(_)) => {
                if !self.trouble {
                    self.accuse(Wrong::Groundless);
                }
                self.told = true;
                if setup.config.after_failure() == AfterFailure::Retry {
                    self.handles[index].owed = false;
                    let gone = self.gone;
                    gone.iter().for_each(|id| self.forgiven.insert(id));
                }
            }
            (What::Write { id, fua, .. }, Ok(())) => {
                self.writes[usize::from(id) - 1].answered = true;
                if fua {
                    self.raise_floor(id);
                }
            }
            (What::Read(_), Ok(())) => {}
            (What::Read(at) | What::Write { at, .. }, Err(_)) => {
                self.check_cause(setup, index, at);
            }
        }
    }

    /// A command has failed that the backend has not failed: only because its own handle could not
    /// be flushed, or that of an overlapping write.
    pub(super) fn check_cause(&mut self, setup: &Setup, index: usize, at: Span) {
        let granules = if setup.config.granule() > 1 {
            Span {
                first: 0,
                end: setup.cells,
            }
        } else {
            at
        };
        let own = self.handles[index].failed;
        let shared = setup.caches == Caches::Shared && self.trouble;
        let below = self.writes.iter().any(|write| {
            write.at.overlaps(granules) && self.handles[usize::from(write.conn)].failed
        });
        if !own && !below && !shared {
            self.accuse(Wrong::Groundless);
        }
    }
}

fn length(at: Span) -> u64 {
    u64::from(at.end - at.first)
}
