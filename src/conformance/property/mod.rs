//! Servers under test, and schedules for them.
mod coordinator;
mod model_server;
mod schedule;
mod server;
#[cfg(feature = "std")]
mod stream;

pub use coordinator::{Coordinated, Coordinator, Task};
pub use model_server::ModelServer;
pub use schedule::{Played, Schedule, Step, play};
pub use server::{Act, Answer, Operation, Server, Trouble};
#[cfg(feature = "std")]
#[cfg_attr(docsrs, doc(cfg(feature = "std")))]
pub use stream::StreamServer;
