//! Holds events against the promise, within limits.

use std::collections::HashSet;

use nbd_proto::conformance::{CheckError, Checker, Command, Event, Summary, Violation};

use super::{Header, LineError};

/// Blocks that the checker keeps together: it takes memory for all of them if one is written to.
const PAGE: u64 = 256;

/// How much may be remembered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Pages that may be written to.
    pub(super) pages: usize,
    /// Things that reads may find, and commands in flight.
    pub(super) remembered: usize,
    /// How many more of these there may be before they are counted.
    pub(super) uncounted: u64,
}

impl Limits {
    /// 2^25 blocks, or 128 GiB of 4 KiB each, take about 1 GiB; and what reads may find as much.
    pub(super) const DEFAULT: Self = Self {
        pages: 1 << 17,
        remembered: 1 << 23,
        uncounted: 1 << 20,
    };
}

pub(super) struct Judge {
    checker: Checker,
    granule: u64,
    limits: Limits,
    pages: HashSet<u64>,
    uncounted: u64,
    count_after: u64,
}

impl Judge {
    pub(super) fn new(header: &Header) -> Self {
        Self::with_limits(header, Limits::DEFAULT)
    }

    pub(super) fn with_limits(header: &Header, limits: Limits) -> Self {
        Self {
            limits,
            checker: Checker::new(header.promise(), header.granule),
            granule: header.granule,
            pages: HashSet::new(),
            uncounted: 0,
            count_after: limits.uncounted,
        }
    }

    /// The violation that the next event shows, if it does.
    pub(super) fn record(&mut self, event: &Event) -> Result<Option<Box<Violation>>, LineError> {
        match self.checker.record(event) {
            Ok(()) => {}
            Err(CheckError::Violation(violation)) => return Ok(Some(violation)),
            Err(CheckError::Malformed { why, .. }) => return Err(why.into()),
            Err(_) => return Err(LineError::TooMuch("the checker has given up")),
        }
        if let Event::Invoke { command, .. } = event {
            self.stay_within_limits(command)?;
        }
        Ok(None)
    }

    /// The checker has taken the command, so its extent has a size that it can have.
    fn stay_within_limits(&mut self, command: &Command) -> Result<(), LineError> {
        let extent = command.extent().filter(|_| command.is_modification());
        let blocks = extent.map_or(0, |it| it.length / self.granule);
        if let Some(extent) = extent {
            let first = extent.offset / self.granule;
            let last = first.saturating_add(blocks.saturating_sub(1));
            self.pages.extend(first / PAGE..=last / PAGE);
        }
        if self.pages.len() > self.limits.pages {
            return Err(LineError::TooMuch("too many blocks are written to"));
        }
        self.uncounted = self.uncounted.saturating_add(blocks.max(1));
        if self.uncounted > self.count_after {
            let remembered = self.checker.remembered();
            if remembered > self.limits.remembered {
                return Err(LineError::TooMuch("too much may still be found by reads"));
            }
            self.uncounted = 0;
            // To count takes as long as there is something to count.
            self.count_after = self.limits.uncounted.max(remembered as u64 / 2);
        }
        Ok(())
    }

    pub(super) const fn summary(&self) -> Summary {
        self.checker.summary()
    }
}
