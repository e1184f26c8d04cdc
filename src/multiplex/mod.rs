//! Several connections to one export, from the client's side: how many, and what a flush proves.

mod intent;
mod ledger;
mod offer;
mod pinning;
mod plan;

pub use intent::{Caution, Intent, Use};
pub use ledger::{
    AfterFailure, AfterLoss, Conn, Debt, Doubt, Ended, FlushId, FlushLedger, Misuse, Scope,
    Summary, Tally, Undurable, WriteId, WriteState,
};
pub use offer::{Difference, Mismatch, Offer};
pub use pinning::{Part, Parts, Pinning};
pub use plan::{Flushing, Missing, NotAdmitted, Plan, Reason, Routing, plan};
