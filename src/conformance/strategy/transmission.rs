//! Strategies for the transmission phase, and observers that feed a decoder in pieces.
//!
//! ```
//! use nbd_proto::conformance::strategy::transmission as strategy;
//! use nbd_proto::limits::Limits;
//! use strategy::{Seen, observe_requests};
//! # use nbd_proto::session::Session;
//! # use nbd_proto::wire::{Cookie, Name, Request, TransmissionFlags};
//! # let session = Session::new(Name::default(), 4096, TransmissionFlags::HAS_FLAGS);
//!
//! let wire = Request::flush(Cookie(1)).to_compact()?;
//! let whole = observe_requests(&session, &Limits::new(), &wire, &[]);
//! let pieces = observe_requests(&session, &Limits::new(), &wire, &[1, 5, 27]);
//! assert_eq!(whole, pieces);
//! # Ok::<(), nbd_proto::wire::TooLong>(())
//! ```

mod exchange;
mod observe;

pub use exchange::{
    Answer, Exchange, answer, any_extents, encode_exchange, exchange, status_query,
};
pub use observe::{
    Seen, SeenReply, SeenRequest, observe_exchanges, observe_replies, observe_requests,
};

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use proptest::prelude::*;

use crate::session::{BlockSizes, MetaContext, ReplyStyle, Session};
use crate::transmission::{IllegalReply, ReplyEncoder};
use crate::wire::{
    Chunk, ChunkType, CommandFlags, CommandType, Cookie, Errno, Extent, Hole, Name, ReplyFlags,
    Request, SimpleReply, TransmissionFlags,
};

/// One of the three reply styles.
pub fn reply_style() -> impl Strategy<Value = ReplyStyle> {
    prop_oneof![
        Just(ReplyStyle::Simple),
        Just(ReplyStyle::Structured),
        Just(ReplyStyle::Extended),
    ]
}

/// A session that can do everything, with a small export and a small maximum payload.
pub fn session() -> impl Strategy<Value = Session> {
    (reply_style(), prop_oneof![Just(1u32), Just(512)]).prop_map(|(style, minimum)| {
        let sizes = BlockSizes::new(minimum, 512, 8192).unwrap_or_default();
        let flags = TransmissionFlags::from_bits_retain(0x1fff)
            - TransmissionFlags::READ_ONLY
            - TransmissionFlags::SEND_RESIZE;
        let session = Session::new(Name::default(), 1 << 16, flags)
            .with_reply_style(style)
            .with_block_sizes(sizes);
        if style == ReplyStyle::Simple {
            return session;
        }
        let context = |id, name| Name::new(name).ok().map(|name| MetaContext { id, name });
        let contexts = [context(1, "base:allocation"), context(9, "x-test:nine")];
        session.with_contexts(contexts.into_iter().flatten().collect())
    })
}

/// A command, mostly one that the protocol knows.
pub fn command() -> impl Strategy<Value = CommandType> {
    prop_oneof![
        9 => prop::sample::select(CommandType::KNOWN),
        1 => any::<u16>().prop_map(CommandType),
    ]
}

/// An error, mostly one that the protocol knows; never 0.
pub fn errno() -> impl Strategy<Value = Errno> {
    prop_oneof![
        9 => prop::sample::select(Errno::KNOWN),
        1 => (1u32..).prop_map(Errno),
    ]
}

/// Hostile: a request with anything in its fields.
pub fn any_request() -> impl Strategy<Value = Request> {
    let number = || prop_oneof![any::<u64>(), 0u64..1 << 17, (1u64 << 32) - 4..(1 << 32) + 4];
    (any::<u16>(), command(), any::<u64>(), number(), number()).prop_map(
        |(flags, kind, cookie, offset, length)| Request {
            flags: CommandFlags::from_bits_retain(flags),
            kind,
            cookie: Cookie(cookie),
            offset,
            length,
        },
    )
}

/// Valid: a request that the session can execute, with the flag that extended headers want for a
/// write; never a disconnect.
pub fn request(session: &Session) -> impl Strategy<Value = Request> + use<> {
    let session = session.clone();
    let unit = u64::from(session.block_sizes().minimum());
    let blocks = session.size() / unit;
    let most = (u64::from(session.block_sizes().max_payload()) / unit).max(1);
    let kinds: Vec<CommandType> = [
        CommandType::READ,
        CommandType::WRITE,
        CommandType::FLUSH,
        CommandType::TRIM,
        CommandType::CACHE,
        CommandType::WRITE_ZEROES,
        CommandType::BLOCK_STATUS,
    ]
    .into_iter()
    .filter(|&kind| kind != CommandType::BLOCK_STATUS || !session.contexts().is_empty())
    .collect();
    let range = (0..blocks, 1..=most);
    let kind = prop::sample::select(kinds);
    (any::<u64>(), kind, range, any::<u16>()).prop_map(move |(cookie, kind, range, flags)| {
        let (first, count) = range;
        let count = count.min(blocks.saturating_sub(first));
        let (offset, length) = match kind {
            CommandType::FLUSH => (0, 0),
            _ => (first * unit, count * unit),
        };
        let extended = session.reply_style() == ReplyStyle::Extended;
        let mut request = Request::new(kind, Cookie(cookie), offset, length);
        if extended && kind == CommandType::WRITE {
            request.flags |= CommandFlags::PAYLOAD_LEN;
        }
        // Each flag bit is kept if the command takes it; PAYLOAD_LEN is not for chance to set.
        for bit in (0..5).map(|bit| CommandFlags::from_bits_retain(flags & (1 << bit))) {
            let flagged = request.with_flags(bit);
            if session.check(&flagged).is_ok() {
                request = flagged;
            }
        }
        request
    })
}

/// Any simple reply.
pub fn simple_reply() -> impl Strategy<Value = SimpleReply> {
    let result = prop_oneof![Just(Ok(())), errno().prop_map(Err)];
    (result, any::<u64>()).prop_map(|(result, cookie)| SimpleReply {
        result,
        cookie: Cookie(cookie),
    })
}

/// Hostile: any chunk header, mostly of known kinds; the length fits 32 bits.
pub fn chunk() -> impl Strategy<Value = Chunk> {
    let kind = prop_oneof![
        9 => prop::sample::select(ChunkType::KNOWN),
        1 => any::<u16>().prop_map(ChunkType),
    ];
    (any::<u16>(), kind, any::<u64>(), any::<u32>()).prop_map(|(flags, kind, cookie, length)| {
        Chunk {
            flags: ReplyFlags::from_bits_retain(flags),
            kind,
            cookie: Cookie(cookie),
            length: length.into(),
        }
    })
}

/// Any hole.
pub fn hole() -> impl Strategy<Value = Hole> {
    (any::<u64>(), any::<u32>()).prop_map(|(offset, length)| Hole { offset, length })
}

/// Extents that fit both widths of block status.
pub fn extents() -> impl Strategy<Value = Vec<Extent>> {
    let extent = (1..=u32::MAX, any::<u32>()).prop_map(|(length, flags)| Extent {
        length: length.into(),
        flags: flags.into(),
    });
    prop::collection::vec(extent, 1..20)
}

/// Places to cut a message of `len` bytes: in ascending order, also at the ends.
pub fn cuts(len: usize) -> impl Strategy<Value = Vec<usize>> {
    prop_oneof![
        Just((0..len).collect()),
        prop::collection::vec(0..=len, 0..20).prop_map(|mut cuts| {
            cuts.sort_unstable();
            cuts
        }),
    ]
}

/// `bytes` with a few of them changed, left out or repeated.
pub fn mutated(bytes: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let change = (any::<prop::sample::Index>(), 0u8..6, any::<u8>());
    prop::collection::vec(change, 1..4).prop_map(move |changes| {
        let mut bytes = bytes.clone();
        for (at, how, value) in changes {
            if bytes.is_empty() {
                break;
            }
            let at = at.index(bytes.len());
            match how {
                0 => drop(bytes.remove(at)),
                1 => bytes.insert(at, value),
                2 => bytes.truncate(at),
                3 => {
                    let end = bytes.len().min(at + 40);
                    let again = bytes.get(at..end).unwrap_or_default().to_vec();
                    bytes.splice(at..at, again);
                }
                _ => bytes
                    .iter_mut()
                    .skip(at)
                    .take(1)
                    .for_each(|b| *b ^= value | 1),
            }
        }
        bytes
    })
}

/// A part of a reply to a read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Data of the range.
    Data(Range<u64>),
    /// A hole of the range.
    Hole(Range<u64>),
    /// An error at an offset.
    ErrorAt(u64, Errno, String),
    /// An error.
    Error(Errno, String),
}

/// Parts for a reply to a read of `length` bytes at `offset`: mostly a legal reply, in any order,
/// sometimes with errors, gaps and overlaps.
pub fn parts(offset: u64, length: u64) -> impl Strategy<Value = Vec<Part>> {
    let cut = prop::collection::btree_set(0..=length, 0..8);
    let kind = prop::collection::vec(0u8..40, 9);
    let error = (0..length.max(1), errno(), ".{0,20}");
    (cut, kind, error, any::<u64>()).prop_map(move |(mut cut, kinds, error, order)| {
        cut.extend([0, length]);
        let ends: Vec<u64> = cut
            .into_iter()
            .map(|at| at.saturating_add(offset))
            .collect();
        let ranges = ends.iter().zip(ends.iter().skip(1));
        let mut parts: Vec<Part> = ranges
            .zip(kinds)
            .flat_map(|((&start, &end), kind)| match kind {
                0 => vec![],
                1 => vec![Part::Data(start..end), Part::Hole(start..end)],
                2 => vec![Part::ErrorAt(offset + error.0, error.1, error.2.clone())],
                3 => vec![Part::Error(error.1, error.2.clone())],
                kind if kind % 2 == 0 => vec![Part::Hole(start..end)],
                _ => vec![Part::Data(start..end)],
            })
            .collect();
        if order % 2 == 0 {
            parts.sort_by_key(|part| match part {
                Part::Data(range) | Part::Hole(range) => range.start.wrapping_mul(order | 1),
                Part::ErrorAt(..) | Part::Error(..) => order,
            });
        }
        parts
    })
}

/// What the byte at `offset` of the test export is; not 0.
#[must_use]
pub fn content_at(offset: u64) -> u8 {
    u8::try_from(offset.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 57).unwrap_or(0) | 0x80
}

/// Encodes the reply that the parts make, as far as the builder takes them, with data from
/// [`content_at`]. Returns the chunks, and whether the reply is a success; a reply that the builder
/// does not let end gets an error.
///
/// # Errors
///
/// If the style has no chunks or the request is no read.
pub fn encode_parts(
    session: &Session,
    request: &Request,
    parts: &[Part],
) -> Result<(Vec<Vec<u8>>, bool), IllegalReply> {
    let mut reply = ReplyEncoder::new(session).chunks(request)?;
    let mut chunks = vec![];
    let mut failed = false;
    for part in parts {
        let mut wire = vec![];
        let length = |range: &Range<u64>| u32::try_from(range.end - range.start).unwrap_or(0);
        match part {
            Part::Data(range) => {
                if let Ok(head) = reply.data(range.start, length(range)) {
                    wire.extend_from_slice(&head);
                    wire.extend(range.clone().map(content_at));
                }
            }
            Part::Hole(range) => {
                if let Ok(head) = reply.hole(range.start, length(range)) {
                    wire.extend_from_slice(&head);
                }
            }
            Part::ErrorAt(offset, errno, message) => {
                failed |= reply.error_at(*offset, *errno, message, &mut wire).is_ok();
            }
            Part::Error(errno, message) => {
                failed |= reply.error(*errno, message, &mut wire).is_ok();
            }
        }
        chunks.push(wire);
    }
    let mut wire = vec![];
    if matches!(reply.done(), Err(IllegalReply::Incomplete { .. })) {
        failed |= reply.error(Errno::EIO, "gap", &mut wire).is_ok();
    }
    // `done` was refused above, or has ended the reply: then this is its head again.
    match reply.done() {
        Ok(head) => wire.extend_from_slice(&head),
        Err(_) => wire.extend_from_slice(&done(session, request)),
    }
    chunks.push(wire);
    Ok((chunks, !failed))
}

/// The chunk that ends a reply.
fn done(session: &Session, request: &Request) -> Vec<u8> {
    let chunk = Chunk {
        flags: ReplyFlags::DONE,
        kind: ChunkType::NONE,
        cookie: request.cookie,
        length: 0,
    };
    match (session.reply_style(), chunk.to_structured()) {
        (ReplyStyle::Structured, Ok(head)) => head.to_vec(),
        _ => chunk.to_extended(request.offset).to_vec(),
    }
}
