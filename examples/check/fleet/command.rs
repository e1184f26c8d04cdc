//! Commands of a script as requests, and as the history has them.

use nbd_proto::conformance::{Command, Content};
use nbd_proto::wire::{CommandFlags, Cookie};

use super::super::contents::Pattern;
use super::super::script::{Fua, What};
use super::super::shared::connection::{Connection, Error};

/// Hands a command to a connection; nothing is sent before that is driven.
pub(super) fn submit(
    connection: &mut Connection,
    what: What,
    content: Content,
    pattern: Option<Pattern>,
    granule: u64,
) -> Result<Cookie, Error> {
    let flags = |fua| match fua {
        Fua::Yes => CommandFlags::FUA,
        Fua::No => CommandFlags::empty(),
    };
    let length = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    match what {
        What::Read(at) => connection.read(at.offset, length(at.length), Vec::new()),
        What::Write(at, fua) => {
            let mut bytes = vec![0; length(at.length)];
            pattern
                .unwrap_or_else(|| Pattern::new(0, granule))
                .fill(content, at.offset, &mut bytes);
            connection.write(at.offset, bytes, flags(fua))
        }
        What::Zero(at, fua) => connection.write_zeroes(at.offset, at.length, flags(fua)),
        What::Trim(at, fua) => connection.trim(at.offset, at.length, flags(fua)),
        What::Flush => connection.flush(),
        What::Cache(at) => connection.cache(at.offset, at.length),
        What::Status(at) => connection.block_status(at.offset, at.length),
    }
}

/// As the history has it.
pub(super) fn command(what: What, content: Content) -> Option<Command> {
    Some(match what {
        What::Read(extent) => Command::Read { extent },
        What::Write(extent, fua) => Command::Write {
            extent,
            content,
            fua: fua == Fua::Yes,
        },
        What::Zero(extent, fua) => Command::Zero {
            extent,
            fua: fua == Fua::Yes,
        },
        What::Trim(extent, fua) => Command::Trim {
            extent,
            fua: fua == Fua::Yes,
        },
        What::Flush => Command::Flush,
        What::Cache(_) | What::Status(_) => return None,
    })
}
