//! Whether the checker of histories is right: it accuses what no correct server does, and nothing
//! else.

mod brute;
mod dice;
mod legal;
mod server;
mod small;
