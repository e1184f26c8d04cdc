//! Schedules on which a coordinator that only keeps dirty bits loses data or serves old data.
//!
//! Connections are numbered from 0. Each test would fail without the rule it is about.

mod connecting;
mod failing;
mod ordering;
mod reading;
mod tracking;

use nbd_proto::flush::{Backend, Config, Mode, TrackDirty};
use nbd_proto::wire::Errno;

use crate::world::World;

const EIO: Option<Result<(), Errno>> = Some(Err(Errno::EIO));
const OK: Option<Result<(), Errno>> = Some(Ok(()));

/// A cache per connection, filled by commands only.
fn caching() -> Backend {
    Backend::new().with_flush(true).with_loads_on_open(false)
}

fn emulate() -> Config {
    Config::new().with_mode(Mode::Emulate)
}

fn world(connections: usize) -> World {
    World::with_connections(emulate(), caching(), connections)
}

/// At every level, over handles that are coherent with themselves and over such that are not: the
/// flush that the latter need once more must not hide that something is missed.
fn each_world(connections: usize, test: impl Fn(World)) {
    for level in [TrackDirty::Connection, TrackDirty::Fast, TrackDirty::Off] {
        for coherent in [false, true] {
            let config = emulate().with_track_dirty(level);
            test(coherent_world(config, coherent, connections));
        }
    }
}

fn coherent_world(config: Config, coherent: bool, connections: usize) -> World {
    let backend = caching().with_self_coherent(coherent);
    let mut world = World::with_connections(config, backend, connections);
    world.self_coherent = coherent;
    world
}

/// Handles that load while they are opened.
fn loading_world(connections: usize) -> World {
    let mut world = World::new(emulate(), caching().with_loads_on_open(true));
    world.load_on_open = true;
    for _ in 0..connections {
        world.open();
    }
    world
}
