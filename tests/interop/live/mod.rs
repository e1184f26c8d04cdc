//! `serve` and nbdkit's multi-conn filter, run side by side over backends with one write-back
//! cache per connection: what a client of either sees, what reaches the storage, and how many
//! backend flushes that takes.
//!
//! nbdkit's backend is `recorded_backend.py`, which says what it is asked and waits where it is
//! told; `serve` says the same with `--log`, and waits with its delays.
//!
//! | file | what it shows |
//! |---|---|
//! | `side_by_side` | where nbdkit is right, we answer the same with no more backend flushes |
//! | `hazards` | where nbdkit 1.32.5 loses data, we do not |
//! | `many_flushes` | a thousand flushes at once take two rounds |

mod cases;
mod filter;
mod hazards;
mod many_flushes;
mod serving;
mod side_by_side;
