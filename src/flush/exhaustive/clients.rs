//! Clients that obey the protocol: what they send, and what they make of the answers.

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
        let tag = self.free_tag();
        let mut covers = Ids::default();
        let command = match what {
            What::Flush => {
                covers = self.covered_by_flush(setup, index);
                Command::FLUSH
            }
            What::FlushAndRead(at) => {
                covers = self.covered_by_flush(setup, index);
                let read = Command::new(CommandType::READ, at.first.into(), length(at));
                read.with_fua(true)
            }
            What::Read(at) => Command::new(CommandType::READ, at.first.into(), length(at)),
            What::Write { at, fua, .. } => {
                self.writes.push(Write {
                    conn: index as u8,
                    at,
                    after: self.answered(),
                    after_settled: self.covered.with(self.revoked()),
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
                What::Read(_) | What::FlushAndRead(_) => self.floor,
                _ => [Ids::default(); CELLS],
            },
            must_see: match what {
                What::Read(_) | What::FlushAndRead(_) => self.must_see(setup, index),
                _ => Ids::default(),
            },
            covers,
            owed: self.sticky || self.handles[index].owed,
            visits: [0; 4],
            unvisited: match what {
                What::Flush | What::FlushAndRead(_) if !setup.alone => self.uncovered(setup),
                _ => 0,
            },
            unreached: matches!(what, What::Flush | What::FlushAndRead(_))
                && Self::all_reach(setup, index),
        });
        let decision = self
            .coordinator
            .command(self.handles[index].conn, command, tag);
        self.decide(setup, decision);
    }

    /// A number by which a command can be told from all that are under way.
    fn free_tag(&self) -> u8 {
        let free = |tag: &u8| {
            self.sent.iter().all(|it| it.tag != *tag)
                && self.executing.iter().all(|it| it.tag != *tag)
        };
        (0..).find(free).unwrap_or_default()
    }

    fn writes_where(&self, is: impl Fn(Id, &Write) -> bool) -> Ids {
        let mut ids = Ids::default();
        for (id, write) in (1..).zip(&self.writes) {
            if is(id, write) {
                ids.insert(id);
            }
        }
        ids
    }

    /// The writes through connections that were revoked.
    fn revoked(&self) -> Ids {
        self.writes_where(|_, write| self.handles[usize::from(write.conn)].revoked)
    }

    /// What a flush that arrives now has to cover.
    fn covered_by_flush(&self, setup: &Setup, index: usize) -> Ids {
        let ours = |write: &Write| !setup.alone || usize::from(write.conn) == index;
        let covered = self.writes_where(|_, write| write.answered && ours(write));
        self.promised(covered)
    }

    /// Without those that nobody relies on any more.
    pub(super) fn promised(&self, covered: Ids) -> Ids {
        covered.without(self.forgiven).without(self.failed_late)
    }

    /// What a read that arrives now has to find without any flush. What a handle makes of its own
    /// writes, if it is flushed meanwhile, is its own affair, unless it is coherent with itself.
    pub(super) fn must_see(&self, setup: &Setup, index: usize) -> Ids {
        let everyone = setup.caches == Caches::Shared || Self::is_through(setup, index);
        self.writes_where(|_, write| {
            let ours = usize::from(write.conn) == index;
            let coherent = setup.is_coherent() && (!ours || setup.backend.self_coherent());
            let back = setup.reads_back && (ours || everyone);
            write.answered && (coherent || back)
        })
    }

    /// Of these writes those to a cell, as far as they are not lost.
    pub(super) fn kept_in(&self, cell: usize, ids: Ids) -> Ids {
        self.writes_where(|id, write| {
            ids.contains(id)
                && !self.failed_late.contains(id)
                && !self.handles[usize::from(write.conn)].lost_data
                && write.at.cells().contains(&cell)
        })
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
            // Nobody sends on a connection that is not open; and what was answered when it began is
            // not asked about here.
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
        if result == Err(Errno::ESHUTDOWN) {
            if !self.handles[index].revoked {
                self.accuse(Wrong::Answered);
            }
            return;
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
                for id in self.promised(sent.covers).iter() {
                    self.raise_floor(setup, id);
                }
            }
            (What::FlushAndRead(_), Ok(())) => {
                for id in self.promised(sent.covers).iter() {
                    self.raise_floor(setup, id);
                }
            }
            (What::Flush | What::FlushAndRead(_), Err(_)) => {
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
                if fua || setup.writes_through() {
                    self.raise_floor(setup, id);
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
