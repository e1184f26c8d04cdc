//! The client's side of multi-conn: plans, and what is durable.

mod ledger;
mod pinning;
mod plan;
mod random;
mod repair;
