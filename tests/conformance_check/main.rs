//! Whether the checker of histories is right: it accuses what no correct server does, and nothing
//! else.

mod brute;
mod clauses;
mod dice;
mod legal;
mod models;
mod schedules;
mod server;
mod small;
