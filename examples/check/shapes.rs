//! The schedules on which servers lose data or show old data, as scripts with random details.
//!
//! Each is about one cell. It ends with reads on all connections, which say whether it was lost.
//! What is sent in between is sent at the moment at which the hazard is: while a write is being
//! executed, within a flush, after a connection has left.

mod leaving;
mod order;
mod rounds;
mod tracking;
mod wander;

use nbd_proto::conformance::Extent;

use super::dice::Dice;
use super::layout::Layout;
use super::script::{Farewell, Fua, Kind, Role, Script, Tag, What};

/// What the server can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Abilities {
    pub(crate) writes: bool,
    pub(crate) flush: bool,
    pub(crate) fua: bool,
    pub(crate) zero: bool,
    pub(crate) trim: bool,
    pub(crate) cache: bool,
    pub(crate) status: bool,
}

/// What a script is written for.
#[derive(Debug)]
pub(crate) struct Stage<'a> {
    pub(crate) dice: &'a mut Dice,
    pub(crate) abilities: Abilities,
    pub(crate) layout: &'a Layout,
    pub(crate) cell: Extent,
    /// How many connections there are to play parts: at least one.
    pub(crate) roles: usize,
}

type Write = fn(&mut Stage<'_>, &mut Script);

/// A kind of script.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) name: &'static str,
    write: Write,
    needs: Needs,
    /// How often it is played, relative to others.
    weight: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Needs {
    Nothing,
    Writes,
    Fua,
    /// Several connections to one thing.
    Several,
    /// Reads, which all can; but where there are writes, there is better to do.
    OnlyReads,
}

const fn shape(name: &'static str, needs: Needs, weight: u64, write: Write) -> Shape {
    Shape {
        name,
        write,
        needs,
        weight,
    }
}

const SHAPES: &[Shape] = &[
    shape(
        "write while another flushes",
        Needs::Writes,
        4,
        tracking::executing,
    ),
    shape(
        "flush behind a write",
        Needs::Writes,
        2,
        tracking::pipelined,
    ),
    shape(
        "write inside a flush",
        Needs::Writes,
        3,
        tracking::inside_a_flush,
    ),
    shape("flush after FUA", Needs::Fua, 2, tracking::after_fua),
    shape(
        "flush by another first",
        Needs::Writes,
        2,
        tracking::by_another_first,
    ),
    shape("read between", Needs::Several, 4, rounds::read_between),
    shape("read across", Needs::Several, 3, rounds::read_across),
    shape("write fills a page", Needs::Several, 3, rounds::write_fills),
    shape("two rounds", Needs::Several, 2, rounds::two_rounds),
    shape("FUA of another", Needs::Fua, 3, rounds::fua_of_another),
    shape("leaves dirty", Needs::Writes, 3, leaving::leaves_dirty),
    shape(
        "joins in a flush",
        Needs::Several,
        1,
        leaving::joins_in_a_flush,
    ),
    shape("older wins", Needs::Several, 4, order::older_wins),
    shape(
        "FUA over an older write",
        Needs::Fua,
        2,
        order::fua_over_older,
    ),
    shape("neighbours", Needs::Several, 3, order::neighbours),
    shape("overlap", Needs::Several, 2, order::overlap),
    shape("zeroed or trimmed", Needs::Writes, 1, order::zeroed),
    shape("anything", Needs::Nothing, 4, wander::anything),
    shape("reads", Needs::OnlyReads, 4, wander::reads),
];

/// One of all that make sense for this stage; scripts in which a connection leaves only if they
/// may be.
pub(crate) fn compose(stage: &mut Stage<'_>, may_travel: bool) -> (&'static str, Script) {
    let several = stage.roles > 1;
    let suits = |shape: &&Shape| match shape.needs {
        Needs::Nothing => true,
        Needs::Writes => stage.abilities.writes,
        Needs::Fua => stage.abilities.writes && stage.abilities.fua,
        Needs::Several => stage.abilities.writes && several,
        Needs::OnlyReads => !stage.abilities.writes,
    };
    let suited: Vec<&Shape> = SHAPES.iter().filter(suits).collect();
    let total = suited.iter().map(|it| it.weight).sum();
    let mut number = stage.dice.below(total);
    let chosen = suited.iter().find(|shape| {
        let is_it = number < shape.weight;
        number = number.saturating_sub(shape.weight);
        is_it
    });
    let mut script = Script::default();
    let Some(shape) = chosen else {
        return ("nothing", script);
    };
    (shape.write)(stage, &mut script);
    if !script.travels() || may_travel {
        return (shape.name, script);
    }
    let mut script = Script::default();
    wander::anything(stage, &mut script);
    ("anything", script)
}

/// The parts that all scripts have.
pub(crate) const A: Role = 0;
pub(crate) const B: Role = 1;
pub(crate) const C: Role = 2;

impl Stage<'_> {
    /// Some granules of the cell.
    pub(crate) fn spot(&mut self) -> Extent {
        self.layout.spot(self.cell, self.dice)
    }

    /// Some that are close.
    pub(crate) fn neighbour(&mut self, of: Extent) -> Extent {
        self.layout.neighbour(self.cell, of, self.dice)
    }

    /// A write, or sometimes zeroes.
    pub(crate) fn modification(&mut self, extent: Extent) -> What {
        if self.abilities.zero && self.dice.percent(6) {
            What::Zero(extent, Fua::No)
        } else {
            What::Write(extent, Fua::No)
        }
    }

    /// One that is stable when it is answered, if the server can do that.
    pub(crate) const fn forced(&self, extent: Extent) -> What {
        What::Write(
            extent,
            if self.abilities.fua {
                Fua::Yes
            } else {
                Fua::No
            },
        )
    }

    /// A flush, if there is such a thing.
    pub(crate) fn flush(&self, script: &mut Script, role: Role) -> Option<Tag> {
        self.abilities.flush.then(|| script.send(role, What::Flush))
    }

    /// A flush, and its answer. Within it, somebody may look at `watched`, and may keep what was
    /// there before.
    pub(crate) fn flush_and_wait(&mut self, script: &mut Script, role: Role, watched: Extent) {
        let Some(flush) = self.flush(script, role) else {
            return;
        };
        let mut reads = Vec::new();
        if self.dice.percent(40) {
            for _ in 0..1 + self.dice.below(3) {
                self.pause(script, Kind::Flush, 60);
                let reader = self.dice.index(self.roles);
                reads.push((reader, script.send(reader, What::Read(watched))));
            }
        }
        script.wait(flush);
        for (reader, read) in reads {
            script.wait(read);
            script.ask(reader, What::Read(watched));
        }
    }

    /// Somebody other than `role`, if there is anybody else.
    pub(crate) fn another(&mut self, role: Role) -> Role {
        let others = self.roles.saturating_sub(1).max(1);
        (role + 1 + self.dice.index(others)) % self.roles.max(1)
    }

    pub(crate) fn pause(&mut self, script: &mut Script, kind: Kind, most: u64) {
        // None at all is a good choice, too.
        if self.dice.percent(80) {
            script.pause(kind, self.dice.below(most));
        }
    }

    pub(crate) fn farewell(&mut self) -> Farewell {
        if self.dice.percent(50) {
            Farewell::Polite
        } else {
            Farewell::Abrupt
        }
    }

    /// What some have cached, they may find again when they should not.
    pub(crate) fn have_cached(&mut self, script: &mut Script, extent: Extent) {
        if self.dice.percent(60) {
            for role in 0..self.roles {
                if self.dice.percent(70) {
                    script.send(role, What::Read(extent));
                }
            }
            script.wait_all();
        }
    }

    /// Caches that are emptied by a flush have something to fetch.
    pub(crate) fn forget(&mut self, script: &mut Script, extent: Extent) {
        if self.dice.percent(60) {
            let role = self.dice.index(self.roles);
            self.flush_and_wait(script, role, extent);
        }
    }

    /// Something with more around it.
    pub(crate) fn widely(&self, extent: Extent) -> Extent {
        let mut requests = self.layout.requests(self.cell);
        let end = extent.offset + extent.length;
        let whole = requests.find(|it| it.offset <= extent.offset && end <= it.offset + it.length);
        whole.unwrap_or(extent)
    }

    /// Everybody looks, in any order.
    pub(crate) fn all_read(&mut self, script: &mut Script, extent: Extent) {
        let mut roles: Vec<Role> = (0..self.roles).collect();
        self.dice.shuffle(&mut roles);
        let around = if self.dice.percent(25) {
            self.layout.surroundings(self.cell, extent)
        } else {
            extent
        };
        for role in roles {
            script.send(role, What::Read(around));
        }
        script.wait_all();
    }
}

#[cfg(test)]
mod tests;
