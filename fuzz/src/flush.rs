//! The coordinator, driven by bytes: each chooses what happens next.

mod judge;
mod nature;
mod storage;
mod world;

use nbd_proto::flush::Command;
use nbd_proto::wire::CommandType;

use crate::choices::Choices;
use nature::{configure, kind};
use storage::{Fault, Load};
use world::{CELLS, World};

/// Connections that are known at the same time.
const MOST_CONNECTIONS: usize = 6;

/// Connections in all.
const MOST_EVER: usize = 24;

/// Choices after these are not looked at.
const MOST_EVENTS: usize = 400;

/// Whatever happens, everything is answered once, connections that leave are released, the number
/// of backend flushes is bounded, and what the coordinator counts and foretells is true; and where
/// it is promised, what a flush covered is in storage, and is what is read.
pub fn flush(data: &[u8]) {
    let mut choices = Choices::new(data);
    let (config, nature) = configure(&mut choices);
    let mut world = World::new(config, nature);
    for _ in 0..MOST_EVENTS {
        if choices.is_empty() {
            break;
        }
        happen(&mut world, &mut choices);
    }
    finish(world);
}

fn happen(world: &mut World, choices: &mut Choices<'_>) {
    let event = choices.byte();
    // So many again, that short inputs get far.
    let often = event >= 128;
    match event % 32 {
        0..=9 => send(world, choices),
        10..=12 => {
            let conn = connection(world, choices);
            world.send(conn, Command::FLUSH, Load::Late);
        }
        16 if often => world.settle(),
        27 | 29 if often => world.revoke(connection(world, choices)),
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
                4 if world.is_sticky() => Some(Fault::Drop),
                _ => None,
            };
            world.finish_flush(which, fault);
        }
        25 => {
            let conn = connection(world, choices);
            world.write_back(conn, choices.byte());
        }
        26 | 27 => {
            if world.known() < MOST_CONNECTIONS && world.ever() < MOST_EVER {
                world.connect(choices.byte() & 1);
            }
        }
        28 => {
            let conn = choices.below(MOST_EVER);
            let kind = kind(world.nature, world.export(conn), choices);
            world.opened(conn, kind);
        }
        29 => world.disconnect(connection(world, choices)),
        30 => {
            let (conn, how) = (connection(world, choices), choices.byte());
            match how % 8 {
                0 => world.lose(conn, true),
                1 => world.lose(conn, false),
                2 => world.repeat_flushed(conn),
                3 => world.reset(how >> 3 & 1),
                4 => {
                    world.settle();
                    world.check_explanation(conn);
                }
                _ => world.revoke(conn),
            }
        }
        _ => {
            // The usual beginning of a connection.
            if world.known() < MOST_CONNECTIONS && world.ever() < MOST_EVER {
                let conn = world.connect(choices.byte() & 1);
                let kind = kind(world.nature, world.export(conn), choices);
                world.opened(conn, kind);
            }
        }
    }
}

/// Any connection that has ever been, or one of those that are there.
fn connection(world: &World, choices: &mut Choices<'_>) -> usize {
    let which = usize::from(choices.byte());
    if which < MOST_EVER {
        which
    } else {
        world.nth_known(which)
    }
}

fn send(world: &mut World, choices: &mut Choices<'_>) {
    let conn = connection(world, choices);
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
        world.check_explanation(conn);
    }
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
