//! The coordinator against a model of clients and backends.

mod acknowledge;
mod coherent;
mod counters;
mod failures;
mod fence;
mod hazards;
mod kinds;
mod liveness;
mod observed;
mod preflush;
mod promises;
mod random;
mod serial;
mod tags;
mod truthful;
mod world;
