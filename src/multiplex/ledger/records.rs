//! What the ledger remembers of a connection, of a write and of a flush.

use super::list::{Linked, Links, List};
use super::words::{Doubt, Tally};

/// A moment: the number of the event that it was. 0 is before everything.
pub(super) type Stamp = u64;

#[derive(Clone, Debug)]
pub(super) struct Connection {
    /// When it was connected, which no other was; 0 if it is free.
    pub(super) since: Stamp,
    /// When it ended; 0 while it has not.
    pub(super) ended: Stamp,
    /// How many writes refer to it.
    pub(super) referred: u64,
    pub(super) in_flight: Tally,
    /// What was acknowledged and is neither durable nor suspect; once it has ended, what was so
    /// at the end.
    pub(super) acknowledged: Tally,
    pub(super) last_acknowledged: Stamp,
    /// As in the ledger, if a flush covers its own connection only.
    pub(super) queue: List,
    /// As in the ledger, if a flush covers its own connection only.
    pub(super) failed: Stamp,
    pub(super) flushes: List,
    pub(super) flushes_in_flight: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Free,
    InFlight,
    Acknowledged,
    Failed,
    Suspect(Doubt),
}

#[derive(Clone, Debug)]
pub(super) struct Tracked {
    /// When it was sent, which no other was. Stays when the place is free.
    pub(super) sent: Stamp,
    /// When it was answered.
    pub(super) answered: Stamp,
    /// The latest of those in this place that were given up. The others that were here before are
    /// durable.
    pub(super) forgotten: Stamp,
    pub(super) offset: u64,
    pub(super) length: u64,
    pub(super) connection: u32,
    pub(super) links: Links,
    pub(super) phase: Phase,
    pub(super) fua: bool,
}

#[derive(Clone, Debug)]
pub(super) struct InFlight {
    /// When it was sent; 0 if the place is free.
    pub(super) sent: Stamp,
    pub(super) connection: u32,
    pub(super) links: Links,
}

impl Linked for Tracked {
    fn links(&mut self) -> &mut Links {
        &mut self.links
    }
}

impl Linked for InFlight {
    fn links(&mut self) -> &mut Links {
        &mut self.links
    }
}

impl Connection {
    pub(super) const FREE: Self = Self {
        since: 0,
        ended: 0,
        referred: 0,
        in_flight: Tally::ZERO,
        acknowledged: Tally::ZERO,
        last_acknowledged: 0,
        queue: List::EMPTY,
        failed: 0,
        flushes: List::EMPTY,
        flushes_in_flight: 0,
    };

    pub(super) const fn is_open(&self) -> bool {
        self.since != 0 && self.ended == 0
    }
}

impl Tracked {
    pub(super) const FREE: Self = Self {
        sent: 0,
        answered: 0,
        forgotten: 0,
        offset: 0,
        length: 0,
        connection: 0,
        links: Links::NONE,
        phase: Phase::Free,
        fua: false,
    };

    pub(super) const fn tally(&self) -> Tally {
        Tally {
            writes: 1,
            bytes: self.length,
        }
    }
}

impl InFlight {
    pub(super) const FREE: Self = Self {
        sent: 0,
        connection: 0,
        links: Links::NONE,
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_takes_no_more_than_a_cache_line() {
        assert!(size_of::<Tracked>() <= 64);
    }
}
