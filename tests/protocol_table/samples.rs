//! Sessions that have everything, and a request for each element.

use nbd_proto::handshake::Export;
use nbd_proto::session::{Features, MetaContext, ReplyStyle, Session};
use nbd_proto::wire::{
    CommandFlags, CommandType, Cookie, Name, Request, StatusQuery, TransmissionFlags,
};

pub(crate) const C: Cookie = Cookie(5);
pub(crate) const SIZE: u64 = 1 << 30;
pub(crate) const LENGTH: u64 = 4096;
pub(crate) const CONTEXT: u32 = 7;

pub(crate) const STYLES: [ReplyStyle; 3] = [
    ReplyStyle::Simple,
    ReplyStyle::Structured,
    ReplyStyle::Extended,
];

/// Exports that can do all that an export can do: one to read and write, one to read.
pub(crate) fn exports() -> [Export; 2] {
    [Features::read_write(), Features::read_only()].map(|features| {
        let features = features
            .with_flush()
            .with_fua()
            .with_rotational()
            .with_trim()
            .with_write_zeroes()
            .with_fast_zero()
            .with_dont_fragment()
            .with_multi_conn()
            .with_cache()
            .with_block_status_payload();
        Export::new(Name::new("disk").unwrap(), SIZE, features.flags())
    })
}

/// A session with these transmission flags, with a meta context if it can have one.
pub(crate) fn session_with(style: ReplyStyle, flags: TransmissionFlags) -> Session {
    let session = Session::new(Name::EMPTY, SIZE, flags).with_reply_style(style);
    if style == ReplyStyle::Simple {
        return session;
    }
    let name = Name::new("base:allocation").unwrap();
    session.with_contexts(vec![MetaContext { id: CONTEXT, name }])
}

/// A session of an export that can do everything.
pub(crate) fn session(style: ReplyStyle) -> Session {
    let [export, _] = exports();
    session_with(style, export.flags)
}

/// A request of a kind, as plain as can be.
pub(crate) fn request(kind: CommandType) -> Request {
    let length = match kind {
        CommandType::DISC | CommandType::FLUSH => 0,
        _ => LENGTH,
    };
    Request::new(kind, C, 0, length)
}

/// A request that has a flag, of a kind that takes it.
pub(crate) fn flagged(flag: CommandFlags) -> Request {
    let kind = match flag {
        CommandFlags::FUA => CommandType::WRITE,
        CommandFlags::NO_HOLE | CommandFlags::FAST_ZERO => CommandType::WRITE_ZEROES,
        CommandFlags::REQ_ONE => CommandType::BLOCK_STATUS,
        CommandFlags::PAYLOAD_LEN => {
            let length = StatusQuery::len_for(1);
            return Request::block_status(C, 0, length).with_flags(flag);
        }
        _ => CommandType::READ,
    };
    request(kind).with_flags(flag)
}

/// The styles in which there can be such a request.
pub(crate) fn styles_of(request: &Request) -> &'static [ReplyStyle] {
    let flags = request.flags;
    if flags.contains(CommandFlags::PAYLOAD_LEN) {
        &STYLES[2..]
    } else if flags.contains(CommandFlags::DF) || request.kind == CommandType::BLOCK_STATUS {
        &STYLES[1..]
    } else {
        &STYLES
    }
}

/// Whether a flag of an export does what it is for, where `accepts` says whether a side takes a
/// request: what it exposes is taken with it, and not without.
pub(crate) fn works(flag: TransmissionFlags, accepts: impl Fn(&Session, &Request) -> bool) -> bool {
    let exposed = match flag {
        TransmissionFlags::SEND_FLUSH => request(CommandType::FLUSH),
        TransmissionFlags::SEND_FUA => flagged(CommandFlags::FUA),
        TransmissionFlags::SEND_TRIM => request(CommandType::TRIM),
        TransmissionFlags::SEND_WRITE_ZEROES => request(CommandType::WRITE_ZEROES),
        TransmissionFlags::SEND_DF => flagged(CommandFlags::DF),
        TransmissionFlags::SEND_RESIZE => request(CommandType::RESIZE),
        TransmissionFlags::SEND_CACHE => request(CommandType::CACHE),
        TransmissionFlags::SEND_FAST_ZERO => flagged(CommandFlags::FAST_ZERO),
        TransmissionFlags::BLOCK_STATUS_PAYLOAD => flagged(CommandFlags::PAYLOAD_LEN),
        // The other way round.
        TransmissionFlags::READ_ONLY => {
            let write = request(CommandType::WRITE);
            return !accepts(&with_and_without(flag).0, &write)
                && accepts(&with_and_without(flag).1, &write);
        }
        // They expose nothing.
        TransmissionFlags::HAS_FLAGS
        | TransmissionFlags::ROTATIONAL
        | TransmissionFlags::CAN_MULTI_CONN => return true,
        _ => return false,
    };
    let (with, without) = with_and_without(flag);
    accepts(&with, &exposed) && !accepts(&without, &exposed)
}

fn with_and_without(flag: TransmissionFlags) -> (Session, Session) {
    let [export, _] = exports();
    let [with, without] = [export.flags | flag, export.flags - flag]
        .map(|flags| session_with(ReplyStyle::Extended, flags));
    (with, without)
}
