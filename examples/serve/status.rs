//! Block status: what clients are told of what is allocated, in the context `base:allocation`.

use nbd_proto::error::Refusal as OptionRefusal;
use nbd_proto::handshake::{Context, ContextsAsk};
use nbd_proto::session::Session;
use nbd_proto::transmission::{Refusal, StatusReply};
use nbd_proto::wire::{
    AllocationFlags, CommandFlags, CommandType, Errno, Extent, Name, Request, StatusQuery,
};

use super::backend::{Content, Handle};
use super::execute::{Task, to_errno};
use super::payload::Payload;

/// The most extents in one reply: each may cost the storage some system calls, and a client that
/// wants more asks again from where they end.
const MOST_EXTENTS: usize = 1024;

/// The most bytes of a reply: its head, the id of the context, and the wider kind of extents.
pub(crate) const MOST_BYTES: u64 = 64 + 16 * MOST_EXTENTS as u64;

/// Tells a client which contexts there are, if it may use the export.
pub(crate) fn answer(ask: ContextsAsk<'_>, exports: &[Name]) {
    if !exports.contains(ask.export()) {
        return ask.refuse(OptionRefusal::UnknownExport);
    }
    match Name::new("base:allocation") {
        Ok(name) => ask.accept(&[Context::new(name)]),
        // It is a name that the protocol allows.
        Err(_) => ask.refuse(OptionRefusal::Policy),
    }
}

/// How much of the export a request is about. That of a block status may be in its payload.
pub(crate) fn affected(
    session: &Session,
    request: &Request,
    payload: &Payload,
) -> Result<u64, Refusal> {
    match query(request, payload) {
        None => Ok(request.length),
        Some(bytes) => session
            .check_status_payload(request, bytes)
            .map(|query| query.effect_length()),
    }
}

/// The payload of a block status request, if it has one.
fn query<'p>(request: &Request, payload: &'p Payload) -> Option<&'p [u8]> {
    match payload {
        Payload::Whole(buffer)
            if request.kind == CommandType::BLOCK_STATUS
                && request.flags.contains(CommandFlags::PAYLOAD_LEN) =>
        {
            Some(buffer.bytes())
        }
        _ => None,
    }
}

/// The reply to a block status request that was checked.
pub(crate) fn reply(handle: &dyn Handle, session: &Session, task: &Task) -> Result<Vec<u8>, Errno> {
    let request = &task.request;
    let limit = if request.flags.contains(CommandFlags::REQ_ONE) {
        1
    } else {
        MOST_EXTENTS
    };
    let found = handle
        .extents(request.offset, task.affected, limit)
        .map_err(|error| to_errno(&error))?;
    let begun = match query(request, &task.payload) {
        None => StatusReply::new(session, request),
        Some(bytes) => match StatusQuery::parse(bytes) {
            Ok(query) => StatusReply::for_query(session, request, &query),
            Err(_) => return Err(Errno::EINVAL),
        },
    };
    // What passed the check can be answered, and the storage is never at a loss for an extent.
    let mut reply = begun.map_err(|_| Errno::EINVAL)?;
    let mut out = Vec::new();
    while let Some(id) = reply.owed() {
        let extents = found.iter().map(|extent| Extent {
            length: extent.length,
            flags: u64::from(state(extent.content).bits()),
        });
        reply
            .context(id, extents, &mut out)
            .map_err(|_| Errno::EIO)?;
    }
    Ok(out)
}

/// proto.md "`base:allocation` metadata context".
fn state(content: Content) -> AllocationFlags {
    match content {
        Content::Data => AllocationFlags::empty(),
        Content::Zero => AllocationFlags::ZERO,
        Content::Hole => AllocationFlags::HOLE | AllocationFlags::ZERO,
    }
}
