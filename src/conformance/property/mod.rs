//! Servers under test, and schedules for them.
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
