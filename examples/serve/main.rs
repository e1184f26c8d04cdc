#![allow(dead_code, unused_imports)]

mod backend;

fn main() {}
