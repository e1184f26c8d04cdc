//! Commands, executed on a backend handle.

use std::io;

use nbd_proto::transmission::{Head, ReplyEncoder};
use nbd_proto::wire::{CommandFlags, CommandType, Errno, Request};

use super::backend::{Handle, SPARSE_READ, Zeroing};
use super::budget::Held;
use super::payload::Payload;
use super::status;

/// A request that was checked, with its payload.
#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) request: Request,
    /// How many bytes of the export it is about.
    pub(crate) affected: u64,
    pub(crate) payload: Payload,
    pub(crate) held: Held,
}

impl Task {
    pub(crate) fn is_fua(&self) -> bool {
        self.request.flags.contains(CommandFlags::FUA)
    }
}

/// How many bytes a request makes the server hold, until it is answered.
pub(crate) fn bytes_to_hold(request: &Request) -> u64 {
    match request.kind {
        CommandType::READ | CommandType::WRITE => request.length,
        CommandType::BLOCK_STATUS => status::MOST_BYTES,
        _ => 0,
    }
}

/// Executes everything but what is answered with more than success: reads and block status.
pub(crate) fn execute(handle: &dyn Handle, task: &mut Task, fua: bool) -> Result<(), Errno> {
    let Request {
        offset,
        length,
        flags,
        ..
    } = task.request;
    let result = match task.request.kind {
        CommandType::WRITE => match &mut task.payload {
            Payload::Whole(buffer) => handle.write(offset, buffer.bytes(), fua),
            Payload::Pages(pages) => handle.write_pages(offset, pages.all(), fua),
        },
        CommandType::TRIM => handle.trim(offset, length, fua),
        CommandType::WRITE_ZEROES => {
            let how = Zeroing {
                fua,
                may_trim: !flags.contains(CommandFlags::NO_HOLE),
                fast_only: flags.contains(CommandFlags::FAST_ZERO),
            };
            handle.write_zeroes(offset, length, how)
        }
        CommandType::CACHE => handle.cache(offset, length),
        // Nothing else passes the check of a session.
        _ => return Err(Errno::EINVAL),
    };
    result.map_err(|error| to_errno(&error))
}

/// The reply to a read where there are only zeroes, if the client understands it.
pub(crate) fn hole_reply(
    handle: &dyn Handle,
    encoder: &ReplyEncoder,
    request: &Request,
) -> Option<[Head; 2]> {
    // proto.md "Request types": with DF, zeroes have to be sent as data.
    if request.length < SPARSE_READ as u64 || request.flags.contains(CommandFlags::DF) {
        return None;
    }
    let mut chunks = encoder.chunks(request).ok()?;
    let length = u32::try_from(request.length).ok()?;
    if !handle.is_hole(request.offset, request.length).ok()? {
        return None;
    }
    let hole = chunks.hole(request.offset, length).ok()?;
    Some([hole, chunks.done().ok()?])
}

/// What the client is told.
pub(crate) fn to_errno(error: &io::Error) -> Errno {
    match error.kind() {
        io::ErrorKind::InvalidInput => Errno::EINVAL,
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Errno::EPERM,
        // proto.md "Error values": EDQUOT and EFBIG are ENOSPC, too.
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            Errno::ENOSPC
        }
        io::ErrorKind::OutOfMemory => Errno::ENOMEM,
        io::ErrorKind::Unsupported => Errno::ENOTSUP,
        _ => Errno::EIO,
    }
}
