//! Strategies for histories: what clients see of servers, right ones and wrong ones, and what
//! nobody can have seen.
//!
//! For whatever reads histories: a checker, a recorder, a proxy that rewrites them.
//!
//! ```
//! use nbd_proto::conformance::check;
//! use nbd_proto::conformance::strategy::{history, proptest::prelude::*};
//!
//! proptest!(ProptestConfig::with_cases(16), |((history, promise) in history::kept())| {
//!     // What a right server has done is never accused.
//!     prop_assert!(check(&history, promise).is_ok());
//! });
//! ```

use alloc::vec::Vec;

use proptest::prelude::*;

use super::schedule::{Freedom, schedule};
use crate::conformance::backend::Kind;
use crate::conformance::check::Promise;
use crate::conformance::history::{Command, Content, Contents, Event, Extent, History, Outcome};
use crate::conformance::property::{Coordinated, ModelServer, Schedule, play};
use crate::flush::{Config, Mode};

/// Bytes of a block in all of these.
pub const GRANULE: u64 = 512;

const BLOCKS: u32 = 8;

/// A history of a server that keeps its promise, and that promise: the crate's coordinator over one
/// of the [kinds](Kind) of backend that keep the contract. Some end in a crash, after which
/// everything is read.
pub fn kept() -> impl Strategy<Value = (History, Promise)> {
    let kind = prop_oneof![
        Just(Kind::per_connection()),
        Just(Kind::granular(2)),
        Just(Kind::shared()),
        Just(Kind::without_cache()),
    ];
    let freedom = Freedom::new(BLOCKS.into()).with_leaving(true);
    (kind, schedule(freedom, 80), any::<prop::sample::Index>()).prop_filter_map(
        "a server that is refused by its coordinator",
        |(kind, schedule, crash)| played(Mode::Auto, kind, &schedule, crash),
    )
}

/// A history of a server that promises what it does not keep, and that promise: most of these can
/// be accused, and for the others it was luck.
pub fn careless() -> impl Strategy<Value = (History, Promise)> {
    let freedom = Freedom::new(BLOCKS.into()).with_leaving(true);
    (schedule(freedom, 80), any::<prop::sample::Index>()).prop_filter_map(
        "a server that is refused by its coordinator",
        |(schedule, crash)| played(Mode::Unsafe, Kind::per_connection(), &schedule, crash),
    )
}

fn played(
    mode: Mode,
    kind: Kind,
    schedule: &Schedule,
    crash: prop::sample::Index,
) -> Option<(History, Promise)> {
    let block = ModelServer::<Coordinated>::BLOCK;
    let config = Config::new()
        .with_mode(mode)
        .with_granule(kind.granule().saturating_mul(block));
    let mut server = ModelServer::new(Coordinated::new(config), kind, BLOCKS);
    let played = play(&mut server, schedule).ok()?;
    // One in so many goes on to the end.
    let crashed = crash.index(played.images.len().saturating_add(1));
    let history = played.crashed(crashed);
    Some((history.unwrap_or(played.history), played.promise))
}

/// Hostile: any events in any order, about few connections, cookies and blocks, so that some of
/// them belong together.
pub fn any_history() -> impl Strategy<Value = History> {
    prop::collection::vec(any_event(), 0..60).prop_map(|events| {
        let mut history = History::new(GRANULE);
        history.extend(events);
        history
    })
}

/// A history with a few events changed, left out, repeated or moved.
pub fn mutated(history: History) -> impl Strategy<Value = History> {
    let change = (any::<prop::sample::Index>(), 0u8..4, any_event());
    prop::collection::vec(change, 1..4).prop_map(move |changes| {
        let mut events: Vec<Event> = history.events().to_vec();
        for (at, how, other) in changes {
            let at = at.index(events.len().max(1));
            let Some(event) = events.get(at).cloned() else {
                events.push(other);
                continue;
            };
            match how {
                0 => drop(events.remove(at)),
                1 => events.insert(at, event),
                2 => events.insert(at, other),
                _ => {
                    events.remove(at);
                    events.push(event);
                }
            }
        }
        let mut mutated = History::new(history.granule());
        mutated.extend(events);
        mutated
    })
}

/// Hostile: any event.
pub fn any_event() -> impl Strategy<Value = Event> {
    let conn = 0..3u32;
    let place = (conn, 0..4u64);
    prop_oneof![
        6 => (place.clone(), command()).prop_map(|((conn, cookie), command)| Event::Invoke {
            conn,
            cookie,
            command,
        }),
        6 => (place.clone(), outcome()).prop_map(|((conn, cookie), outcome)| Event::Reply {
            conn,
            cookie,
            outcome,
        }),
        1 => place.prop_map(|(conn, _)| Event::Disconnect { conn }),
        1 => Just(Event::Crash),
        1 => Just(Event::Reopen),
    ]
}

fn command() -> impl Strategy<Value = Command> {
    // Mostly whole blocks, near the beginning or at the end of what can be addressed.
    let number = prop_oneof![
        8 => (0..4u64).prop_map(|blocks| blocks * GRANULE),
        1 => any::<u64>(),
        1 => (u64::MAX - 2 * GRANULE)..=u64::MAX,
    ];
    let extent = (number.clone(), number).prop_map(|(offset, length)| Extent { offset, length });
    (0u8..5, extent, content(), any::<bool>()).prop_map(|(kind, extent, content, fua)| match kind {
        0 => Command::Flush,
        1 => Command::Read { extent },
        2 => Command::Zero { extent, fua },
        3 => Command::Trim { extent, fua },
        _ => Command::Write {
            extent,
            content,
            fua,
        },
    })
}

fn outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        4 => Just(Outcome::Done),
        1 => Just(Outcome::Failed),
        2 => content().prop_map(|it| Outcome::Data(Contents::Same(it))),
        2 => prop::collection::vec(content(), 1..4)
            .prop_map(|each| Outcome::Data(Contents::Each(each))),
    ]
}

fn content() -> impl Strategy<Value = Content> {
    prop_oneof![
        8 => (0..6u64).prop_map(Content),
        1 => Just(Content::MIXED),
        1 => any::<u64>().prop_map(Content),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::check::{CheckError, check};
    use alloc::string::ToString;
    use core::cell::Cell;
    use proptest::test_runner::TestRunner;

    const CASES: u32 = 64;

    fn run<S: Strategy>(strategy: &S, test: impl Fn(S::Value)) {
        let config = ProptestConfig {
            failure_persistence: None,
            rng_seed: proptest::test_runner::RngSeed::Fixed(7),
            ..ProptestConfig::with_cases(CASES)
        };
        let result = TestRunner::new(config).run(strategy, |value| {
            test(value);
            Ok(())
        });
        assert!(result.is_ok(), "{result:?}");
    }

    #[test]
    fn what_a_right_server_did_is_never_accused() {
        let crashes = Cell::new(0);
        run(&kept(), |(history, promise)| {
            assert!(check(&history, promise).is_ok(), "{history}");
            let crashed = history.events().contains(&Event::Crash);
            crashes.set(crashes.get() + u32::from(crashed));
        });
        assert!(crashes.get() > CASES / 4);
    }

    #[test]
    fn what_a_careless_server_did_is_accused_in_some_runs() {
        let accused = Cell::new(0);
        run(&careless(), |(history, promise)| {
            accused.set(accused.get() + u32::from(check(&history, promise).is_err()));
        });
        assert!(accused.get() > CASES / 8, "{}", accused.get());
    }

    #[test]
    fn whatever_nobody_can_have_seen_is_looked_at_without_a_panic() {
        let malformed = Cell::new(0);
        run(&any_history(), |history| {
            let text = history.to_string();
            assert_eq!(text.parse(), Ok(history.clone()), "{text}");
            let result = check(&history, Promise::MULTI_CONN);
            let wrong = matches!(result, Err(CheckError::Malformed { .. }));
            malformed.set(malformed.get() + u32::from(wrong));
        });
        assert!(malformed.get() > CASES / 2);
        let changed = kept().prop_flat_map(|(history, promise)| (mutated(history), Just(promise)));
        run(&changed, |(history, promise)| {
            let _ = check(&history, promise);
        });
    }
}
