//! The unit tests of the example `check`. Here because an example that is tested itself is not
//! built as a program by `cargo test`, and the other tests of `check` need the program.

#![cfg(unix)]
#![allow(dead_code, reason = "only the tests in it are used")]

#[path = "../examples/check/main.rs"]
mod check;
