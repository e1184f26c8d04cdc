//! The coordinator, driven by bytes: each chooses what happens next.

mod world;

use nbd_proto::flush::{
    AfterFailure, Backend, Command, Config, Grouping, Mode, Overlap, ThreadModel, TrackDirty,
};
use nbd_proto::wire::CommandType;

use crate::choices::Choices;
use world::{CELLS, Fault, Load, Nature, World};

/// Connections that are known at the same time.
const MOST_CONNECTIONS: usize = 6;

/// Connections in all.
const MOST_EVER: usize = 24;

/// Choices after these are not looked at.
const MOST_EVENTS: usize = 400;

/// Whatever happens, everything is answered once, connections that leave are released, the number
/// of backend flushes is bounded; and where it is promised, what a flush covered is in storage,
/// and is what is read.
pub fn flush(data: &[u8]) {
    let mut choices = Choices::new(data);
    let mut world = world(&mut choices);
    for _ in 0..MOST_EVENTS {
        if choices.is_empty() {
            break;
        }
        happen(&mut world, &mut choices);
    }
    finish(world);
}

/// Half of all worlds are such that the promise is kept; in the others, anything may be
/// configured.
fn world(choices: &mut Choices<'_>) -> World {
    let how = choices.byte();
    let bits = choices.byte();
    let config = Config::new()
        .with_track_dirty(choices.of(&[
            TrackDirty::Connection,
            TrackDirty::Connection,
            TrackDirty::Fast,
            TrackDirty::Off,
        ]))
        .with_granule(choices.of(&[1, 1, 2, 3, 8]))
        .with_max_ranges(choices.of(&[1024, 1, 2, 3]))
        .with_grouping(choices.of(&[Grouping::All, Grouping::ByExport]))
        .with_after_failure(choices.of(&[AfterFailure::Sticky, AfterFailure::Retry]));
    let nature = Nature {
        shared: bits & 1 != 0,
        self_coherent: bits & 2 != 0,
        loads_on_open: bits & 4 != 0,
        promises: how & 1 == 0,
    };
    if nature.promises {
        let modes = if nature.shared {
            &[Mode::Auto, Mode::Plugin, Mode::Disable][..]
        } else {
            &[Mode::Auto, Mode::Emulate][..]
        };
        let mode = modes[usize::from(how >> 1) % modes.len()];
        return World::new(config.with_mode(mode), nature);
    }
    let config = config
        .with_mode(choices.of(&[
            Mode::Auto,
            Mode::Emulate,
            Mode::Plugin,
            Mode::Disable,
            Mode::Unsafe,
        ]))
        .with_overlap(choices.of(&[Overlap::OrderWrites, Overlap::Ignore]))
        .with_thread_model(choices.of(&[ThreadModel::Parallel, ThreadModel::SerializeConnections]));
    World::new(config, nature)
}

/// What a handle can do: true to the nature of the world, or, where nothing is promised, anything.
fn backend(nature: Nature, choices: &mut Choices<'_>) -> Backend {
    let bits = choices.byte();
    if nature.promises {
        return Backend::new()
            .with_flush(true)
            .with_multi_conn(nature.shared)
            .with_self_coherent(nature.self_coherent || nature.shared)
            .with_loads_on_open(nature.loads_on_open && !nature.shared)
            .with_fua(bits & 1 != 0)
            .with_read_only(bits & 0xe == 0xe);
    }
    Backend::new()
        .with_flush(bits & 3 != 0)
        .with_fua(bits & 4 != 0)
        .with_multi_conn(bits & 8 != 0)
        .with_read_only(bits & 0x30 == 0x30)
        .with_caches_nothing(bits & 0xc0 == 0xc0)
        .with_self_coherent(nature.self_coherent)
        .with_loads_on_open(nature.loads_on_open)
}

fn happen(world: &mut World, choices: &mut Choices<'_>) {
    match choices.below(32) {
        0..=9 => send(world, choices),
        10..=12 => {
            let conn = choices.below(MOST_EVER);
            world.send(conn, Command::FLUSH, Load::Late);
        }
        13..=16 => world.poll(),
        17..=20 => {
            let (which, how) = (choices.below(256), choices.byte());
            world.finish(which, how % 16 == 1);
        }
        21..=24 => {
            let (which, how) = (choices.below(256), choices.byte());
            let fault = match how % 16 {
                1 | 2 => Some(Fault::Keep),
                3 => Some(Fault::Half),
                // What retry promises, it promises for backends that keep the data.
                4 if world.may_drop() => Some(Fault::Drop),
                _ => None,
            };
            world.finish_flush(which, fault);
        }
        25 => world.write_back(choices.below(MOST_EVER), choices.byte()),
        26 | 27 => {
            if world.known() < MOST_CONNECTIONS && world.ever() < MOST_EVER {
                world.connect(choices.byte() & 1);
            }
        }
        28 => {
            let conn = choices.below(MOST_EVER);
            let backend = backend(world.nature(), choices);
            world.opened(conn, backend);
        }
        29 => world.disconnect(choices.below(MOST_EVER)),
        30 => {
            let (conn, how) = (choices.below(MOST_EVER), choices.byte());
            match how % 8 {
                0 => world.lose(conn, true),
                1 => world.lose(conn, false),
                2 => world.repeat_flushed(conn),
                3 => world.reset(how >> 3 & 1),
                _ => {}
            }
        }
        _ => {
            // The usual beginning of a connection.
            if world.known() < MOST_CONNECTIONS && world.ever() < MOST_EVER {
                let conn = world.connect(choices.byte() & 1);
                let backend = backend(world.nature(), choices);
                world.opened(conn, backend);
            }
        }
    }
}

fn send(world: &mut World, choices: &mut Choices<'_>) {
    let conn = choices.below(MOST_EVER);
    let how = choices.byte();
    let kind = [
        CommandType::WRITE,
        CommandType::READ,
        CommandType::WRITE,
        CommandType::READ,
        CommandType::WRITE_ZEROES,
        CommandType::TRIM,
        CommandType::CACHE,
        CommandType::BLOCK_STATUS,
    ][usize::from(how & 7)];
    let load = [Load::Late, Load::Early, Load::Everything, Load::Late][usize::from(how >> 3 & 3)];
    let place = choices.byte();
    let cell = u64::from(place) % CELLS;
    let count = (1 + u64::from(place >> 4) % 3).min(CELLS - cell);
    let command = Command::new(kind, cell, count).with_fua(how >> 5 == 1);
    world.send(conn, command, load);
}

/// The backend answers all that it is asked; then everybody flushes, reads, and leaves.
fn finish(mut world: World) {
    world.settle();
    world.check_all_answered();
    for conn in 0..world.ever() {
        world.send(conn, Command::FLUSH, Load::Late);
    }
    world.settle();
    for conn in 0..world.ever() {
        let read = Command::new(CommandType::READ, 0, CELLS);
        world.send(conn, read, Load::Late);
    }
    world.settle();
    world.check_all_answered();
    world.check_flushes();
    for conn in 0..world.ever() {
        world.disconnect(conn);
    }
    world.settle();
    world.check_all_answered();
    world.check_all_released();
}
