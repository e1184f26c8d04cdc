//! The coordinator against a model of clients and backends.

mod acknowledge;
mod failures;
mod fence;
mod hazards;
mod kinds;
mod liveness;
mod observed;
mod promises;
mod random;
mod world;
