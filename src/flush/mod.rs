//! Flush consistency across connections: the coordinator.

mod clock;
mod config;
mod coordinator;
mod fua;
mod group;
mod handle;
mod member;
mod order;
mod overlap;
mod round;
mod slab;

pub use config::{
    Advertised, AfterFailure, Backend, Config, Grouping, Mode, OpenError, Overlap, ThreadModel,
    TrackDirty, UnknownValue,
};
pub use coordinator::{Action, Command, Conn, Decision, FlushCoordinator, FlushId, Op};
