//! Every schedule of small systems.

mod canonical;
mod model;
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
    ($( $test:ident: $topic:ident, $small:literal, $large:literal; )+) => {
        $(
            #[test]
            fn $test() {
                explore_all(&setups::$topic(0), 1, $small);
            }
        )+

        #[test]
        #[ignore = "takes a quarter of an hour, optimised, on two cores"]
        fn the_same_with_more_of_everything() {
            let only = std::env::var("TOPIC").unwrap_or_default();
            $(
                if stringify!($topic).contains(&only) {
                    explore_all(&setups::$topic(1), 2, $large);
                }
            )+
        }
    };
}

topics! {
    what_is_dirty_is_written_out: tracking, 0, 0;
    what_is_stale_is_not_read: rounds, 0, 0;
    fua_lasts_and_is_seen: fua, 0, 0;
    failures_reach_those_they_concern: failures, 0, 0;
    connections_come_and_go: coming_and_going, 0, 0;
    overlapping_writes_keep_their_order: order, 0, 0;
    a_shared_cache_is_flushed_through_any_handle: shared, 0, 0;
    handles_that_cache_nothing_may_stand_beside_others: through, 0, 0;
    without_multi_conn_each_connection_has_its_own_promise: alone, 0, 0;
    actions_may_be_taken_late: lazy, 0, 0;
}
