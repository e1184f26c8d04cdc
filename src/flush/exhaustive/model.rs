//! What may happen next in each state, in the notation of the schedules in `tests/flush/hazards.rs`.

use alloc::vec::Vec;
use core::fmt;

use stateright::{Model, Property};

use super::world::{
    Budget, Caches, Executing, Load, Outcome, Phase, Setup, Span, What, World, Wrong,
};

/// Something that happens.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Send {
        conn: usize,
        what: What,
    },
    /// The next thing that the coordinator wants is done.
    Poll,
    Finish {
        at: usize,
        conn: usize,
        what: What,
        load: Load,
        success: bool,
    },
    Flushed {
        at: usize,
        conn: usize,
        outcome: Outcome,
    },
    WriteBack {
        conn: usize,
        cell: usize,
    },
    Connect {
        conn: usize,
    },
    Opened {
        conn: usize,
    },
    Disconnect {
        conn: usize,
    },
    Revoke {
        conn: usize,
    },
    Lose {
        conn: usize,
        landed: bool,
    },
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = |f: &mut fmt::Formatter<'_>, at: Span| match at.end - at.first {
            1 => write!(f, "at {}", at.first),
            _ => write!(f, "at {}-{}", at.first, at.end - 1),
        };
        match *self {
            Self::Read(span) => {
                f.write_str("R(")?;
                at(f, span)?;
            }
            Self::FlushAndRead(span) => {
                f.write_str("F+R(")?;
                at(f, span)?;
            }
            Self::Write { id, at: span, fua } => {
                write!(f, "{}({id} ", if fua { "FUA" } else { "W" })?;
                at(f, span)?;
            }
            Self::Flush => return f.write_str("F"),
        }
        f.write_str(")")
    }
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Send { conn, what } => write!(f, "c{conn}: {what}"),
            Self::Poll => f.write_str("[the next action is taken]"),
            Self::Finish {
                conn,
                what,
                load,
                success,
                ..
            } => {
                let ends = if success { "ends" } else { "fails" };
                write!(f, "[{what} on c{conn} {ends}")?;
                match load {
                    Load::Late => f.write_str("]"),
                    Load::Early => f.write_str(", caches what it found when it began]"),
                    Load::Everything => f.write_str(", caches all as it was when it began]"),
                }
            }
            Self::Flushed { conn, outcome, .. } => {
                let how = match outcome {
                    Outcome::Success => "ends",
                    Outcome::Keep => "fails",
                    Outcome::Drop => "fails, what was cached is gone",
                    Outcome::Forget => "fails, what was dirty counts as written",
                    Outcome::Half => "fails after the first cell, the rest is gone",
                };
                write!(f, "[flush of c{conn} {how}]")
            }
            Self::WriteBack { conn, cell } => write!(f, "[c{conn} writes cell {cell} back]"),
            Self::Connect { conn } => write!(f, "c{conn} connects"),
            Self::Opened { conn } => write!(f, "[c{conn} is open]"),
            Self::Disconnect { conn } => write!(f, "c{conn} leaves"),
            Self::Revoke { conn } => write!(f, "c{conn} is revoked"),
            Self::Lose { conn, landed } => {
                let what = if landed { " what it executed has" } else { "" };
                write!(f, "[c{conn} is lost{what}]")
            }
        }
    }
}

/// Takes one from a budget.
fn spend(from: &mut u8) {
    *from = from.saturating_sub(1);
}

impl Setup {
    /// Of connections that nothing has happened on, of one kind, one stands for all.
    fn is_representative(&self, world: &World, conn: usize) -> bool {
        let step = if self.caches == Caches::Mixed { 2 } else { 1 };
        let before = conn.checked_sub(step);
        before.is_none_or(|before| world.handles[before].used)
    }

    fn spans(&self, world: &World) -> Vec<Span> {
        let mut spans = Vec::new();
        for first in 0..self.cells {
            // Cells that nobody has used differ as little.
            if world.used_cells >= first {
                let end = first + 1;
                spans.push(Span { first, end });
            }
        }
        if self.cells > 1 && world.budget.wide > 0 {
            spans.push(Span {
                first: 0,
                end: self.cells,
            });
        }
        spans
    }

    fn commands(&self, world: &World, conn: usize, steps: &mut Vec<Step>) {
        let Budget {
            commands,
            writes,
            fuas,
            reads,
            preflushes,
            flushes,
            ..
        } = world.budget;
        if commands == 0 {
            return;
        }
        let mut send = |what| steps.push(Step::Send { conn, what });
        for at in self.spans(world) {
            let id = world.next_id();
            if writes > 0 {
                let fua = false;
                send(What::Write { id, at, fua });
            }
            if fuas > 0 {
                let fua = true;
                send(What::Write { id, at, fua });
            }
            if reads > 0 {
                send(What::Read(at));
            }
            if preflushes > 0 {
                send(What::FlushAndRead(at));
            }
        }
        if flushes > 0 {
            send(What::Flush);
        }
    }

    fn backend(&self, world: &World, steps: &mut Vec<Step>) {
        for (at, executing) in world.executing.iter().enumerate() {
            let (conn, what) = executing.on();
            for load in world.loads(self, at) {
                for success in [true, false] {
                    let writes = matches!(what, What::Write { .. });
                    // A command that was cancelled may fail.
                    let may_fail = world.budget.write_faults > 0 || world.handles[conn].revoked;
                    if success || (writes && may_fail) {
                        steps.push(Step::Finish {
                            at,
                            conn,
                            what,
                            load,
                            success,
                        });
                    }
                }
            }
        }
        for (at, flushing) in world.flushing.iter().enumerate() {
            let conn = usize::from(flushing.conn);
            for outcome in world.outcomes(self, at) {
                steps.push(Step::Flushed { at, conn, outcome });
            }
        }
        if world.budget.write_backs > 0 {
            for conn in 0..world.handles.len() {
                let cells = world.write_backs(conn);
                steps.extend(cells.map(|cell| Step::WriteBack { conn, cell }));
            }
        }
    }

    fn comings_and_goings(&self, world: &World, steps: &mut Vec<Step>) {
        let Budget {
            connects,
            disconnects,
            losses,
            revokes,
            ..
        } = world.budget;
        if connects > 0 {
            let conn = world.handles.len();
            steps.push(Step::Connect { conn });
        }
        for (conn, handle) in world.handles.iter().enumerate() {
            if handle.phase == Phase::Opening {
                steps.push(Step::Opened { conn });
            }
            let open = handle.phase == Phase::Open;
            if disconnects > 0 && open && self.is_representative(world, conn) {
                steps.push(Step::Disconnect { conn });
            }
            let there = open || handle.phase == Phase::Leaving;
            let revocable = there && !handle.revoked;
            if revokes > 0 && revocable && self.is_representative(world, conn) {
                steps.push(Step::Revoke { conn });
            }
            if losses > 0 && there {
                let mut writing = world.executing.iter().map(Executing::on);
                let landed = false;
                steps.push(Step::Lose { conn, landed });
                if writing.any(|(on, what)| on == conn && matches!(what, What::Write { .. })) {
                    let landed = true;
                    steps.push(Step::Lose { conn, landed });
                }
            }
        }
    }

    fn take(&self, world: &mut World, step: Step) {
        let budget = &mut world.budget;
        match step {
            Step::Send { conn, what } => {
                spend(&mut budget.commands);
                let span = match what {
                    What::Read(at) => {
                        spend(&mut budget.reads);
                        at
                    }
                    What::FlushAndRead(at) => {
                        spend(&mut budget.preflushes);
                        at
                    }
                    What::Write { at, fua, .. } => {
                        let kind = if fua {
                            &mut budget.fuas
                        } else {
                            &mut budget.writes
                        };
                        spend(kind);
                        at
                    }
                    What::Flush => {
                        spend(&mut budget.flushes);
                        Span { first: 0, end: 0 }
                    }
                };
                if span.end - span.first > 1 {
                    spend(&mut budget.wide);
                }
                world.used_cells = world.used_cells.max(span.end);
                world.handles[conn].used = true;
                world.send(self, conn, what);
            }
            Step::Poll => {
                world.poll_once(self);
            }
            Step::Finish {
                at,
                conn,
                load,
                success,
                ..
            } => {
                if !success && !world.handles[conn].revoked {
                    spend(&mut budget.write_faults);
                }
                world.finish(self, at, load, success);
            }
            Step::Flushed { at, outcome, .. } => {
                if outcome != Outcome::Success {
                    spend(&mut budget.flush_faults);
                }
                world.finish_flush(self, at, outcome);
            }
            Step::WriteBack { conn, cell } => {
                spend(&mut budget.write_backs);
                world.write_back(self, conn, cell);
            }
            Step::Connect { .. } => {
                spend(&mut budget.connects);
                world.connect(self);
            }
            Step::Opened { conn } => world.opened(self, conn),
            Step::Disconnect { conn } => {
                spend(&mut budget.disconnects);
                world.handles[conn].used = true;
                world.disconnect(conn);
            }
            Step::Revoke { conn } => {
                spend(&mut budget.revokes);
                world.handles[conn].used = true;
                world.revoke(self, conn);
            }
            Step::Lose { conn, landed } => {
                spend(&mut budget.losses);
                world.handles[conn].used = true;
                world.lose(self, conn, landed);
            }
        }
    }
}

impl Model for Setup {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        let mut world = World::new(self);
        world.renumber();
        alloc::vec![world]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        if world.wrong.is_some() {
            return;
        }
        if world.has_actions() {
            steps.push(Step::Poll);
        }
        for (conn, handle) in world.handles.iter().enumerate() {
            if handle.phase == Phase::Open && self.is_representative(world, conn) {
                self.commands(world, conn, steps);
            }
        }
        self.backend(world, steps);
        self.comings_and_goings(world, steps);
    }

    fn next_state(&self, world: &World, step: Step) -> Option<World> {
        let mut world = world.clone();
        self.take(&mut world, step);
        if !self.lazy {
            world.poll(self);
        }
        world.sort();
        world.check(self);
        world.renumber();
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        fn is_not(world: &World, wrong: Wrong) -> bool {
            world.wrong != Some(wrong)
        }
        alloc::vec![
            Property::always("what a flush covered survives a crash", |_, world| {
                is_not(world, Wrong::Lost)
            }),
            Property::always(
                "nothing older than what a flush covered is read",
                |_, it| { is_not(it, Wrong::Stale) }
            ),
            Property::always("nothing older than what was written is read", |_, it| {
                is_not(it, Wrong::Incoherent)
            }),
            Property::always("never are there two calls on one handle", |_, it| {
                is_not(it, Wrong::Twice)
            }),
            Property::always("everybody is answered", |_, it| is_not(it, Wrong::Stuck)),
            Property::always("each is answered once, while it is there", |_, it| {
                is_not(it, Wrong::Answered)
            }),
            Property::always("failures are reported", |_, it| {
                is_not(it, Wrong::Unreported)
            }),
            Property::always("nothing fails without a cause", |_, it| {
                is_not(it, Wrong::Groundless)
            }),
            Property::always("no handle is flushed without need", |_, it| {
                is_not(it, Wrong::Unneeded)
            }),
            Property::always("with level off each flush reaches the backend", |_, it| {
                is_not(it, Wrong::Unreached)
            }),
            Property::always("a round visits all, whatever fails", |_, it| {
                is_not(it, Wrong::Unvisited)
            }),
            Property::always("a flush takes two rounds at most", |_, it| {
                is_not(it, Wrong::Rounds)
            }),
        ]
    }
}
