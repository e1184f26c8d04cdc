//! Strategies for schedules: commands over several connections, what a backend does meanwhile, and
//! faults.
//!
//! Steps are small and choose by number, so that every part of a schedule is one, too: proptest
//! shrinks a schedule by leaving out steps, then by making connections, blocks and counts smaller,
//! and commands simpler: in the order of [`Step`], from a flush to a zeroing.
//!
//! The parts can be put together in other ways:
//!
//! ```
//! use nbd_proto::conformance::property::Step;
//! use nbd_proto::conformance::strategy::{proptest::prelude::*, schedule};
//!
//! let blocks = 8;
//! // A writer on connection 0 that nobody disturbs, and others that only read.
//! let steps = prop_oneof![
//!     2 => (0..blocks).prop_map(|block| Step::Write { conn: 0, block, count: 1, fua: false }),
//!     2 => (1..4usize, 0..blocks).prop_map(|(conn, block)| Step::Read { conn, block, count: 1 }),
//!     1 => Just(Step::Flush { conn: 0 }),
//!     4 => schedule::backend(blocks),
//! ];
//! let schedules = schedule::of(4..=4, prop::collection::vec(steps, 1..100));
//! proptest!(|(schedule in schedules)| {
//!     prop_assert!(!schedule.steps.is_empty());
//! });
//! ```

use alloc::vec::Vec;
use core::ops::RangeInclusive;

use proptest::prelude::*;

use crate::conformance::property::{Act, Schedule, Step};

/// What may happen in schedules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Freedom {
    blocks: u64,
    faults: bool,
    leaving: bool,
    fua: bool,
}

impl Freedom {
    /// Commands with and without FUA on that many blocks, and connections that stay; no faults.
    #[must_use]
    pub const fn new(blocks: u64) -> Self {
        Self {
            blocks: if blocks == 0 { 1 } else { blocks },
            faults: false,
            leaving: false,
            fua: true,
        }
    }

    /// Whether commands and backend flushes fail (default no).
    #[must_use]
    pub const fn with_faults(mut self, yes: bool) -> Self {
        self.faults = yes;
        self
    }

    /// Whether connections come and go (default no).
    #[must_use]
    pub const fn with_leaving(mut self, yes: bool) -> Self {
        self.leaving = yes;
        self
    }

    /// Whether commands carry FUA (default yes).
    #[must_use]
    pub const fn with_fua(mut self, yes: bool) -> Self {
        self.fua = yes;
        self
    }

    /// How many blocks are used.
    #[must_use]
    pub const fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Whether commands and flushes fail.
    #[must_use]
    pub const fn faults(&self) -> bool {
        self.faults
    }

    /// Whether connections come and go.
    #[must_use]
    pub const fn leaving(&self) -> bool {
        self.leaving
    }
}

/// One of the open connections.
pub fn connection() -> impl Strategy<Value = usize> {
    0..4usize
}

/// A command, about one to three blocks; a flush is about one in five.
pub fn command(freedom: Freedom) -> impl Strategy<Value = Step> {
    let fua = prop::bool::weighted(if freedom.fua { 0.15 } else { 0.0 });
    let place = || (connection(), 0..freedom.blocks, 1..=3u64);
    prop_oneof![
        4 => connection().prop_map(|conn| Step::Flush { conn }),
        6 => place().prop_map(|(conn, block, count)| Step::Read { conn, block, count }),
        1 => place().prop_map(|(conn, block, count)| Step::Load { conn, block, count }),
        7 => (place(), fua).prop_map(|((conn, block, count), fua)| {
            Step::Write { conn, block, count, fua }
        }),
        1 => (place(), fua).prop_map(|((conn, block, count), fua)| {
            Step::Zero { conn, block, count, fua }
        }),
    ]
}

/// What an honest backend does: it ends what it was asked for, sooner or later and in any order,
/// loads early, and writes back early.
pub fn backend(blocks: u64) -> impl Strategy<Value = Step> {
    let which = || 0..6usize;
    let block = 0..blocks.max(1);
    prop_oneof![
        4 => Just(Act::Take(16)),
        2 => Just(Act::Take(1)),
        7 => which().prop_map(Act::Finish),
        6 => which().prop_map(Act::FinishFlush),
        3 => (which(), block.clone()).prop_map(|(which, block)| Act::Fetch(which, block)),
        1 => (which(), block.clone()).prop_map(|(which, block)| Act::Apply(which, block)),
        1 => (which(), block.clone()).prop_map(|(which, block)| Act::WriteBack(which, block)),
        1 => (which(), block).prop_map(|(which, block)| Act::Evict(which, block)),
    ]
    .prop_map(Step::Act)
}

/// A command or a backend flush fails.
pub fn fault() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..6usize).prop_map(Act::Fail),
        (0..6usize).prop_map(Act::FailFlush),
    ]
    .prop_map(Step::Act)
}

/// Connections come and go.
pub fn coming_and_going() -> impl Strategy<Value = Step> {
    prop_oneof![
        connection().prop_map(|conn| Step::Disconnect { conn }),
        Just(Step::Connect),
        Just(Step::Ready),
    ]
}

/// Any step that is allowed: about as many commands as things that a backend does.
pub fn step(freedom: Freedom) -> impl Strategy<Value = Step> {
    let Freedom {
        blocks,
        faults,
        leaving,
        ..
    } = freedom;
    prop_oneof![
        30 => command(freedom),
        40 => backend(blocks),
        1 => Just(Step::Settle),
        2 * u32::from(faults) => fault(),
        5 * u32::from(leaving) => coming_and_going(),
    ]
}

/// Schedules of these steps, with so many connections at first. What a crash leaves is mostly what
/// is permanent, which forgives a server least.
pub fn of(
    connections: RangeInclusive<usize>,
    steps: impl Strategy<Value = Vec<Step>>,
) -> impl Strategy<Value = Schedule> {
    let left = prop_oneof![
        3 => Just(Vec::new()),
        1 => prop::collection::vec(0..4u8, 1..8),
    ];
    (connections, steps, left).prop_map(|(connections, steps, left)| Schedule {
        connections,
        steps,
        left,
    })
}

/// Schedules of up to so many steps of all kinds that are allowed, over one to four connections.
pub fn schedule(freedom: Freedom, steps: usize) -> impl Strategy<Value = Schedule> {
    let steps = prop::collection::vec(step(freedom), 1..=steps.max(1));
    of(1..=4, steps)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;

    fn sample(freedom: Freedom) -> Vec<Step> {
        let mut runner = TestRunner::deterministic();
        let schedules = schedule(freedom, 400);
        let sample = (0..50).map(|_| schedules.new_tree(&mut runner).map(|it| it.current()));
        sample
            .flat_map(|it| it.expect("no filters").steps)
            .collect()
    }

    #[test]
    fn nothing_fails_and_nobody_leaves_unless_that_is_allowed() {
        let fails = |step: &Step| matches!(step, Step::Act(act) if act.is_fault());
        let goes = |step: &Step| matches!(step, Step::Disconnect { .. } | Step::Connect);
        let tame = sample(Freedom::new(8));
        assert!(!tame.iter().any(fails) && !tame.iter().any(goes));
        let wild = sample(Freedom::new(8).with_faults(true).with_leaving(true));
        assert!(wild.iter().any(fails) && wild.iter().any(goes));
    }

    #[test]
    fn fua_is_left_out_where_it_is_not_wanted() {
        let fua = |step: &Step| {
            matches!(
                step,
                Step::Write { fua: true, .. } | Step::Zero { fua: true, .. }
            )
        };
        assert!(sample(Freedom::new(8)).iter().any(fua));
        assert!(!sample(Freedom::new(8).with_fua(false)).iter().any(fua));
    }

    #[test]
    fn a_schedule_shrinks_to_the_steps_that_matter() {
        let strategy = schedule(Freedom::new(8).with_faults(true).with_leaving(true), 100);
        let mut runner = TestRunner::deterministic();
        let needed = |schedule: &Schedule| {
            let write = |step: &&Step| matches!(step, Step::Write { block, .. } if *block >= 3);
            schedule.steps.iter().filter(write).count() >= 2
        };
        let result = runner.run(&strategy, |schedule| {
            if needed(&schedule) {
                return Err(TestCaseError::fail("found"));
            }
            Ok(())
        });
        let Err(proptest::test_runner::TestError::Fail(_, least)) = result else {
            panic!("two such writes are in some schedule");
        };
        let write = Step::Write {
            conn: 0,
            block: 3,
            count: 1,
            fua: false,
        };
        assert_eq!(least, Schedule::new(1, alloc::vec![write, write]));
    }
}
