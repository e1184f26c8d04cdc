//! Servers under test, schedules for them, and the property that they are flush-consistent.
//!
//! A [`Server`] is what a schedule is played on: several connections, commands that do not wait for
//! their answers, and [`Act`]s, by which a schedule says what happens inside, where that can be
//! said. There are two: a [`ModelServer`] drives a [`Coordinator`] over a
//! [model backend](super::backend); a `StreamServer` (feature `std`) speaks the protocol over
//! streams, to any server. [`play`] takes a server through a [`Schedule`], records what its clients
//! see, and what crashes would have left; [`Played::judge`] decides.
//!
//! With the feature `proptest`, `prop_flush_consistent` does that with many schedules, and shrinks
//! the one that fails.
//!
//! Nothing here waits, but for the streams of a `StreamServer`, or is left to chance; the schedules
//! of `prop_flush_consistent` follow from a seed.
//!
//! A schedule on which data is lost without any coordination, and is not with it:
//!
//! ```
//! use nbd_proto::conformance::backend::Kind;
//! use nbd_proto::conformance::property::{
//!     Act, Broken, Coordinated, ModelServer, Schedule, Step, play,
//! };
//! use nbd_proto::flush::{Config, Mode};
//!
//! let schedule = Schedule::new(2, vec![
//!     Step::Write { conn: 0, block: 3, count: 1, fua: false },
//!     Step::Act(Act::Finish(0)),
//!     Step::Flush { conn: 1 },
//!     Step::Settle,
//! ]);
//! let run = |mode| {
//!     let coordinator = Coordinated::new(Config::new().with_mode(mode));
//!     let mut server = ModelServer::new(coordinator, Kind::per_connection(), 8);
//!     play(&mut server, &schedule)?.judge()
//! };
//! assert_eq!(run(Mode::Auto), Ok(()));
//! let Err(Broken::Durability(why, _)) = run(Mode::Unsafe) else {
//!     panic!("connection 1 was told that all is on permanent storage");
//! };
//! assert!(why.contains("But content 1 was written"), "{why}");
//! ```

mod coordinator;
mod judge;
mod model_server;
#[cfg(any(test, feature = "proptest"))]
mod prop;
mod schedule;
mod server;
#[cfg(feature = "std")]
mod stream;

pub use coordinator::{Coordinated, Coordinator, Task};
pub use judge::Broken;
pub use model_server::ModelServer;
#[cfg(any(test, feature = "proptest"))]
#[cfg_attr(docsrs, doc(cfg(feature = "proptest")))]
pub use prop::{Counterexample, Options, find_violation, prop_flush_consistent};
pub use schedule::{Played, Schedule, Step, play};
pub use server::{Act, Answer, Operation, Server, Trouble};
#[cfg(feature = "std")]
#[cfg_attr(docsrs, doc(cfg(feature = "std")))]
pub use stream::StreamServer;
