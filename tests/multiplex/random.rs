//! Random schedules, in which replies overtake each other as they like.
//!
//! Against the whole history, from which an oracle that remembers everything works out each answer
//! anew; and against servers that keep no more than the text demands of them, and drop the rest.
//!
//! The schedules are the same in every run, unless the environment asks for others
//! (`PROPTEST_CASES`, `PROPTEST_RNG_SEED`).

mod history;
mod server;

use nbd_proto::multiplex::{AfterFailure, AfterLoss, FlushLedger, Scope};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

const MOST_CONNECTIONS: usize = 4;

/// What a ledger is made with.
#[derive(Clone, Copy, Debug)]
struct Setting {
    scope: Scope,
    after_loss: AfterLoss,
    after_failure: AfterFailure,
}

impl Setting {
    fn ledger(&self) -> FlushLedger {
        FlushLedger::new(self.scope)
            .with_after_loss(self.after_loss)
            .with_after_failure(self.after_failure)
    }

    /// Whether what a connection leaves uncovered is in doubt.
    fn doubts_the_gone(&self) -> bool {
        self.scope == Scope::OwnConnection || self.after_loss == AfterLoss::Suspect
    }

    fn in_scope(&self, flush: usize, write: usize) -> bool {
        self.scope == Scope::AllConnections || flush == write
    }
}

fn setting() -> impl Strategy<Value = Setting> {
    let scope = prop_oneof![Just(Scope::AllConnections), Just(Scope::OwnConnection)];
    let loss = prop_oneof![Just(AfterLoss::Suspect), Just(AfterLoss::Covered)];
    let failure = prop_oneof![Just(AfterFailure::Sticky), Just(AfterFailure::Retry)];
    (scope, loss, failure).prop_map(|(scope, after_loss, after_failure)| Setting {
        scope,
        after_loss,
        after_failure,
    })
}

fn config() -> ProptestConfig {
    let fixed = ProptestConfig::default();
    ProptestConfig {
        rng_seed: match fixed.rng_seed {
            RngSeed::Random => RngSeed::Fixed(2016),
            chosen @ RngSeed::Fixed(_) => chosen,
        },
        failure_persistence: None,
        max_shrink_iters: fixed.max_shrink_iters.min(20_000),
        ..fixed
    }
}
