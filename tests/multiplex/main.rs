//! The client's side of multi-conn: plans, and what is durable.

mod crash;
mod ledger;
mod pinning;
mod plan;
mod random;
mod repair;
