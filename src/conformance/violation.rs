//! A broken promise, explained: the few events that contradict each other.

use alloc::vec::Vec;
use core::fmt;

use super::check::Promise;
use super::diagram;
use super::history::Content;

/// Why no server that keeps its promise can have answered so.
///
/// [`Display`](fmt::Display) tells the clause, what happened in words, and draws the events: time
/// goes down, each connection has a column.
///
/// ```
/// use nbd_proto::conformance::{CheckError, Clause, History, Promise, check};
///
/// let history: History = "granule 4096
///     c0 write #1 0+4096 =1
///     c0 done #1
///     c1 flush #1
///     c1 done #1
///     c2 read #1 0+4096
///     c2 data #1 =0".parse()?;
/// let Err(CheckError::Violation(violation)) = check(&history, Promise::MULTI_CONN) else {
///     panic!("what was flushed is visible to all");
/// };
/// assert_eq!(violation.clause(), Clause::Visibility);
/// assert_eq!(violation.to_string(), "\
/// broken promise of multi-conn: visibility
///   A read finds what a flush has covered, or something newer: if A was answered before the flush
///   was sent, and the flush, with success, before the read was sent.
/// At offset 0, the read (events 4 to 5) found zeroes. That was there at the beginning.
/// But content 1 was written (events 0 to 1), and flushed (events 2 to 3).
///
///   event  c0          c1       c2
///       0  ┌ write =1
///       1  └ done
///       2              ┌ flush
///       3              └ done
///       4                       ┌ read
///       5                       └ found zeroes
/// ");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub(super) promise: Promise,
    pub(super) clause: Clause,
    pub(super) offset: u64,
    pub(super) length: u64,
    pub(super) found: Content,
    pub(super) steps: Vec<Step>,
}

/// The part of the promise that was broken. [The checker](super::check) says what each means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Clause {
    /// A read found something older than what a flush had covered.
    Visibility,
    /// A read found something older than what a command with FUA had written.
    ForcedAccess,
    /// A read found something older than what its own connection had written.
    OwnWrites,
    /// Something older than what had been covered was left by a crash.
    Durability,
    /// Reads that may each be right have found writes in orders that exclude each other.
    OneOrder,
    /// Reads have found different things that a crash had left.
    OneImage,
    /// A read found what was never written there, or not for long enough that anybody remembers.
    NeverWritten,
}

/// A command, or a crash, that takes part in a violation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Step {
    /// What it has to do with it.
    pub role: Role,
    /// Its connection; a crash has none.
    pub conn: Option<u32>,
    /// What it did to the block.
    pub action: Action,
    /// The number of the event that began it, counted from 0.
    pub invoked: u64,
    /// The number of the event that ended it, if one did.
    pub replied: Option<u64>,
    /// Whether it was answered with an error.
    pub failed: bool,
    /// Whether it carried FUA.
    pub fua: bool,
}

/// What a step has to do with a violation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Role {
    /// The read that must not find what it found.
    Wrong,
    /// Wrote what was found.
    Old,
    /// Wrote what should have been found, if nothing newer.
    New,
    /// The flush because of which it should.
    Cover,
    /// An earlier read that proves an order, or what a crash has left.
    Proof,
    /// Wrote what such a read has found.
    Other,
    /// The crash, up to what was opened after it.
    Crash,
}

/// What a step did to the block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Action {
    /// Wrote this.
    Write(Content),
    /// Zeroed it.
    Zero,
    /// Left anything there.
    Trim,
    /// Found this.
    Read(Content),
    /// A flush.
    Flush,
    /// The end of its connection.
    Disconnect,
    /// A crash.
    Crash,
}

impl Violation {
    /// What the server was held to.
    #[must_use]
    pub const fn promise(&self) -> Promise {
        self.promise
    }

    /// Which part of it was broken.
    #[must_use]
    pub const fn clause(&self) -> Clause {
        self.clause
    }

    /// Where the block begins that shows it, in bytes.
    #[must_use]
    pub const fn offset(&self) -> u64 {
        self.offset
    }

    /// What was found there.
    #[must_use]
    pub const fn found(&self) -> Content {
        self.found
    }

    /// What happened, in the order in which it began.
    #[must_use]
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// The numbers of all events of the steps, in order.
    #[must_use]
    pub fn events(&self) -> Vec<u64> {
        let ends = |it: &Step| [Some(it.invoked), it.replied];
        let mut events: Vec<u64> = self.steps.iter().flat_map(ends).flatten().collect();
        events.sort_unstable();
        events.dedup();
        events
    }

    /// Gives events the numbers that they have elsewhere.
    pub(super) fn renumber(&mut self, numbers: &[u64]) {
        let there = |it: u64| {
            let known = usize::try_from(it).ok().and_then(|it| numbers.get(it));
            known.copied().unwrap_or(it)
        };
        for step in &mut self.steps {
            step.invoked = there(step.invoked);
            step.replied = step.replied.map(there);
        }
    }

    /// Adds what is needed, too.
    pub(super) fn add_steps(&mut self, steps: impl Iterator<Item = Step>) {
        self.steps.extend(steps);
        self.steps.sort_by_key(|step| step.invoked);
    }

    fn step(&self, role: Role) -> Option<&Step> {
        self.steps.iter().find(|it| it.role == role)
    }
}

impl Clause {
    const fn name(self) -> &'static str {
        match self {
            Self::Visibility => "visibility",
            Self::ForcedAccess => "visibility of FUA",
            Self::OwnWrites => "own writes",
            Self::Durability => "durability",
            Self::OneOrder => "one order",
            Self::OneImage => "one image",
            Self::NeverWritten => "never written",
        }
    }

    const fn text(self) -> &'static str {
        match self {
            Self::Visibility => {
                "A read finds what a flush has covered, or something newer: if A was answered before \
                 the flush\n  was sent, and the flush, with success, before the read was sent."
            }
            Self::ForcedAccess => {
                "A read finds what a command with FUA has written, or something newer, if that was \
                 answered with\n  success before the read was sent."
            }
            Self::OwnWrites => {
                "A read finds what its own connection has written, or something newer, if that was \
                 answered\n  before the read was sent."
            }
            Self::Durability => {
                "A crash leaves what a flush has covered, or what FUA has forced, or something newer."
            }
            Self::OneOrder => {
                "The writes of a block have one order: what was found to be newer once is not older \
                 later."
            }
            Self::OneImage => {
                "A crash leaves one image: a block of it is not this for one read, and that for \
                 another."
            }
            Self::NeverWritten => "A read finds what was written there.",
        }
    }
}

impl fmt::Display for Clause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let clause = self.clause;
        writeln!(f, "broken promise of {}: {clause}", self.promise)?;
        writeln!(f, "  {}", clause.text())?;
        write!(f, "At offset {}, ", self.offset)?;
        if let Some(wrong) = self.step(Role::Wrong) {
            write!(
                f,
                "the read ({}) found {}.",
                Events(wrong),
                Named(self.found)
            )?;
        }
        self.tell_old(f)?;
        self.tell_new(f)?;
        f.write_str("\n\n")?;
        diagram::draw(&self.steps, f)
    }
}

impl Violation {
    fn tell_old(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.step(Role::Old), self.clause) {
            (Some(old), _) => write!(f, " That was {} ({}).", done(old), Events(old)),
            (None, Clause::NeverWritten) => f.write_str(" Nothing that is known left that there."),
            (None, _) if self.found == Content::ZEROES => {
                f.write_str(" That was there at the beginning.")
            }
            (None, _) => Ok(()),
        }
    }

    fn tell_new(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(new) = self.step(Role::New) {
            let content = match new.action {
                Action::Write(content) => content,
                _ => Content::ZEROES,
            };
            let (named, done) = (Named(content), done(new));
            write!(
                f,
                "\nBut {named} {} {done} ({})",
                verb(content),
                Events(new)
            )?;
            match self.step(Role::Cover) {
                Some(flush) => write!(f, ", and flushed ({}).", Events(flush))?,
                None if new.fua => f.write_str(", with FUA.")?,
                None => f.write_str(".")?,
            }
        }
        if let Some(proof) = self.step(Role::Proof)
            && let Action::Read(content) = proof.action
        {
            let events = Events(proof);
            write!(
                f,
                " An earlier read ({events}) has found {}.",
                Named(content)
            )?;
        }
        Ok(())
    }
}

const fn verb(content: Content) -> &'static str {
    match content {
        Content::ZEROES => "were",
        _ => "was",
    }
}

const fn done(step: &Step) -> &'static str {
    match step.action {
        Action::Zero => "zeroed",
        Action::Trim => "trimmed",
        _ => "written",
    }
}

struct Events<'a>(&'a Step);

impl fmt::Display for Events<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.replied {
            Some(replied) => write!(f, "events {} to {replied}", self.0.invoked),
            None => write!(f, "event {}, never answered", self.0.invoked),
        }
    }
}

pub(super) struct Named(pub(super) Content);

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Content::ZEROES => f.write_str("zeroes"),
            Content::MIXED => f.write_str("a mixture"),
            Content(number) => write!(f, "content {number}"),
        }
    }
}
