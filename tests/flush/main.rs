//! The coordinator against a model of clients and backends.

mod hazards;
mod observed;
mod promises;
mod random;
mod world;
