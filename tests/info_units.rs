//! The unit tests of the example `info`. Here because an example that is tested itself is not
//! built as a program by `cargo test`, and the other tests of `info` need the program.

#![cfg(unix)]
#![allow(dead_code, reason = "only the tests in it are used")]

#[path = "../examples/info/main.rs"]
mod info;
