//! The unit tests of the example `copy`. Here because an example that is tested itself is not
//! built as a program by `cargo test`, and the other tests of `copy` need the program.

#![cfg(unix)]
#![allow(dead_code, reason = "only the tests in it are used")]

#[path = "../examples/copy/main.rs"]
mod copy;
