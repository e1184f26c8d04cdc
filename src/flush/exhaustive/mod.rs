//! Every schedule of small systems, by a model checker.
//!
//! What is explored is the coordinator itself, in a [`world`] of two to four connections and one or
//! two cells. Clients send a bounded number of reads, writes, writes with FUA and flushes, in any
//! order. The backend may end commands and flushes in any order, hold a command across flushes,
//! leave in a cache what it found when a command began, write back early, fail a flush and keep, drop
//! or half write what was cached, lose a handle; connections come and go. In every state that can
//! be reached it is asked:
//!
//! - what would a crash leave, and what would a read find that came now on any connection, compared
//!   with what flushes and FUA have covered;
//! - is everybody answered, once, where nothing is left to do;
//! - under each option what it adds: no handle is called twice at a time; a read finds what was
//!   written before, without a flush, or after its own; what was acknowledged counts from then on;
//!   what waits on a revoked connection comes back, once, and whatever it wrote is older than what
//!   others write later;
//! - did those hear of a failure who have to, and did nothing fail without a cause;
//! - was a handle flushed that had nothing to write out and was not stale; did a round visit all;
//!   did each flush reach the backend where it has to;
//! - where nothing goes on any more: what if each client flushed now, and again, and all left.
//!
//! The coordinator remembers when things happened, and counts. States that differ only in that are
//! recognised as equal: see [`canonical`]. The methods that visit its stamps name every field, so
//! that a new one cannot be forgotten. Connections and cells that nothing has happened on stand for
//! each other. Where multi-conn is not promised, only the promise to each connection by itself is
//! checked.
//!
//! Not here: groups by export, reset, read-only handles, other commands than read and write, order
//! of overlapping writes where nothing is promised, and, where `minimal` is false in [`setups`],
//! whether each flush was needed.
//!
//! # The larger systems
//!
//! `cargo test --release --lib exhaustive -- --ignored --nocapture`; `TOPIC=rounds` in the
//! environment for one topic. Seen on two cores that had other work to do, without a violation:
//!
//! | topic | states | depth |
//! |---|---|---|
//! | tracking | 1,788,591 | 16 |
//! | rounds | 2,792,584 | 17 |
//! | fua | 1,191,669 | 13 |
//! | coming_and_going | 2,228,523 | 15 |
//! | order | 1,708,577 | 16 |
//! | shared | 2,394,572 | 11 |
//! | through | 1,172,438 | 14 |
//! | alone | all but the last two of twelve: 3,441,341 | 11 |
//!
//! Each took one to three minutes there.
//! Only `fua` was counted since invalidations join the flush that runs; the others before that.

mod backend;
mod canonical;
mod clients;
mod model;
mod promise;
mod setups;
mod world;

use std::eprintln;
use std::time::Instant;

use stateright::{Checker, HasDiscoveries, Model};

use self::world::Setup;

fn explore(setup: Setup, threads: usize) -> usize {
    let start = Instant::now();
    let checker = setup
        .checker()
        .threads(threads)
        .finish_when(HasDiscoveries::AnyFailures)
        .spawn_bfs()
        .join();
    let states = checker.unique_state_count();
    eprintln!(
        "{states:8} states, {:8} steps, depth {:2}, {:5.1?}: {}",
        checker.state_count(),
        checker.max_depth(),
        start.elapsed(),
        checker.model().name,
    );
    checker.assert_properties();
    states
}

/// Explores some systems. So many states have to be found, lest the model collapses unnoticed.
fn explore_all(setups: &[Setup], threads: usize, at_least: usize) {
    let mut states = 0;
    for setup in setups {
        states += explore(setup.clone(), threads);
    }
    eprintln!("{states} states");
    assert!(states >= at_least, "only {states} states were found");
}

macro_rules! topics {
    ($( $test:ident: $topic:ident, $small:literal $(, larger $large:literal)?; )+) => {
        $(
            #[test]
            fn $test() {
                explore_all(&setups::$topic(0), 1, $small);
            }
        )+

        #[test]
        #[ignore = "takes minutes even if optimised"]
        fn larger_systems() {
            let only = std::env::var("TOPIC").unwrap_or_default();
            $($(
                if stringify!($topic).contains(&only) {
                    explore_all(&setups::$topic(1), 2, $large);
                }
            )?)+
        }
    };
}

topics! {
    what_is_dirty_is_written_out: tracking, 30_000, larger 1_500_000;
    what_is_stale_is_not_read: rounds, 100_000, larger 2_300_000;
    fua_lasts_and_is_seen: fua, 70_000, larger 500_000;
    failures_reach_those_they_concern: failures, 75_000;
    connections_come_and_go: coming_and_going, 170_000, larger 1_800_000;
    overlapping_writes_keep_their_order: order, 100_000, larger 1_300_000;
    a_shared_cache_is_flushed_through_any_handle: shared, 120_000, larger 1_900_000;
    handles_that_cache_nothing_may_stand_beside_others: through, 85_000, larger 900_000;
    without_multi_conn_each_connection_has_its_own_promise: alone, 45_000, larger 3_000_000;
    actions_may_be_taken_late: lazy, 20_000;
    a_handle_is_called_for_one_thing_at_a_time: one_at_a_time, 70_000;
    coherent_reads_find_what_others_have_written: coherent, 100_000;
    what_overlaps_may_have_no_order: unordered, 50_000;
    what_is_acknowledged_on_receipt_is_promised: on_receipt, 60_000;
    what_is_written_through_lasts_and_is_seen: write_through, 72_000;
    a_read_with_fua_comes_after_a_flush: preflush, 45_000;
    what_a_revoked_connection_wrote_comes_before_what_follows: revoking, 145_000;
}
