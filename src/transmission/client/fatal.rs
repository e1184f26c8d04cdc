//! What a server can do wrong.

use crate::wire::{ChunkType, Cookie};

/// Why a client has to hang up on a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fatal {
    /// What should be a reply does not begin like one.
    #[error("the server sent something else than a reply: {found:#x}")]
    Magic {
        /// What stood in the place of the magic number.
        found: u32,
    },
    /// A reply in a style that was not negotiated.
    #[error("the server sent a reply in a style that was not negotiated: {found:#x}")]
    Style {
        /// The magic number of the reply.
        found: u32,
    },
    /// A reply to no request that is in flight; also the second end of a reply.
    #[error("the server sent a reply to no request: cookie {cookie}")]
    UnknownCookie {
        /// The cookie of the reply.
        cookie: Cookie,
    },
    /// A reply that breaks a rule.
    #[error("the server sent a bad reply to the request with cookie {cookie}: {violation}")]
    Reply {
        /// The request.
        cookie: Cookie,
        /// The rule.
        violation: Violation,
    },
    /// The connection ended within a reply, or before every request was answered.
    #[error("the server went away with {in_flight} {} unanswered", requests(*.in_flight))]
    Eof {
        /// How many requests were not answered.
        in_flight: usize,
    },
    /// [`ReplyDecoder::payload_read`](super::ReplyDecoder::payload_read) was told of more than
    /// there is. A mistake of the caller, not of the server; but the stream cannot be trusted any
    /// more.
    #[error("more payload was read than the chunk has")]
    Overread,
}

/// The rules that a reply can break.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// A simple reply to a read where structured replies were negotiated.
    #[error("a simple reply to a read")]
    SimpleReplyToRead,
    /// A simple reply after chunks of a structured one.
    #[error("a simple reply after chunks")]
    SimpleReplyAfterChunks,
    /// An extended reply with another offset than the request.
    #[error("offset {found} is not that of the request")]
    WrongOffset {
        /// The offset in the reply.
        found: u64,
    },
    /// A chunk of a kind that the client does not know, and that is not an error.
    #[error("unknown chunk type {kind}")]
    UnknownChunk {
        /// The kind.
        kind: ChunkType,
    },
    /// A chunk of a kind that does not belong to the command or the session.
    #[error("chunk type {kind} does not answer this command")]
    UnexpectedChunk {
        /// The kind.
        kind: ChunkType,
    },
    /// A chunk whose length cannot be that of its kind.
    #[error("chunk type {kind} with a length of {length}")]
    ChunkLength {
        /// The kind.
        kind: ChunkType,
        /// The length of the payload in bytes.
        length: u64,
    },
    /// A chunk larger than the maximum payload or the limits allow.
    #[error("chunk of {length} bytes, more than {limit}")]
    ChunkTooLarge {
        /// The length of the payload in bytes.
        length: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// More chunks in one reply than the limits allow.
    #[error("too many chunks")]
    TooManyChunks,
    /// A `NONE` chunk that does not end the reply.
    #[error("a chunk without content that does not end the reply")]
    NoneNotLast,
    /// Content or an error offset outside the range of the request.
    #[error("{length} bytes at {offset} are not within the request")]
    OutOfRange {
        /// Where it begins in the export, in bytes.
        offset: u64,
        /// Its length in bytes.
        length: u64,
    },
    /// Content over earlier content or an earlier error.
    #[error("{length} bytes at {offset} overlap an earlier chunk")]
    Overlap {
        /// Where it begins in the export, in bytes.
        offset: u64,
        /// Its length in bytes.
        length: u64,
    },
    /// A hole without length.
    #[error("a hole of no length")]
    EmptyHole,
    /// A second content chunk for a read that must not be fragmented.
    #[error("more than one content chunk for a read that must not be fragmented")]
    Fragmented,
    /// Success without all of the data.
    #[error("success without the data at {gap}")]
    Incomplete {
        /// The first offset that is missing.
        gap: u64,
    },
    /// An error chunk with error number 0.
    #[error("an error chunk without an error")]
    ZeroError,
    /// An error message longer than its chunk.
    #[error("an error message that is longer than its chunk")]
    MessageLength,
    /// A block status of a context that was not asked for, or that came already.
    #[error("status of context {context}, which was not asked for or came before")]
    UnexpectedContext {
        /// The id of the context.
        context: u32,
    },
    /// Success without the status of a context.
    #[error("success without the status of context {context}")]
    MissingContext {
        /// The id of the context.
        context: u32,
    },
    /// A descriptor count that does not agree with the length of the chunk.
    #[error("a descriptor count of {count} that does not agree with the chunk")]
    DescriptorCount {
        /// The count.
        count: u32,
    },
    /// An extent without length.
    #[error("an extent of no length")]
    EmptyExtent,
    /// More than one extent, or one longer than the request, where one was asked for.
    #[error("more than the one extent that was asked for")]
    MoreThanOneExtent,
    /// An extent that begins beyond the end of the request.
    #[error("an extent beyond the end of the request")]
    ExtentBeyondRequest,
    /// An extent that reaches beyond the end of the export.
    #[error("an extent beyond the end of the export")]
    ExtentBeyondExport,
    /// An extent that ends between two blocks of the minimum size, and not at the end of the
    /// export.
    #[error("an extent that does not end at a multiple of the minimum block size")]
    UnalignedExtent,
    /// More extents in one chunk than the limits allow.
    #[error("a chunk of {count} extents, more than {limit}")]
    TooManyExtents {
        /// How many there are.
        count: u64,
        /// How many are allowed.
        limit: u32,
    },
    /// Success of a block status request where no contexts were selected.
    #[error("success of a block status request without contexts")]
    StatusOfNothing,
}

const fn requests(count: usize) -> &'static str {
    if count == 1 { "request" } else { "requests" }
}
