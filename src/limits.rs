//! What a hostile peer may make us hold or skip.
//!
//! Every length and every count that comes from the wire is compared with one of these before
//! anything is allocated, copied or waited for. The defaults serve every client and server that
//! is known to exist; each has the reason for its number beside it.
//!
//! Two limits are the protocol's own and cannot be changed: strings, and with them error messages,
//! have at most 4096 bytes (proto.md "Values", [`MAX_ERROR_MESSAGE`]), and a server sends at most
//! 2^20 extents in one chunk ([`DEFAULT_MAX_EXTENTS`]).
//!
//! [`MAX_ERROR_MESSAGE`]: crate::wire::MAX_ERROR_MESSAGE
//!
//! ```
//! use nbd_proto::limits::Limits;
//!
//! let limits = Limits::new().with_max_payload(1 << 20).with_max_options(16);
//! assert_eq!(limits.max_payload(), 1 << 20);
//! ```

/// The largest payload that the protocol never lets us take for an attack: 32 MiB (proto.md
/// "Size constraints").
pub const DEFAULT_MAX_PAYLOAD: u32 = 1 << 25;

/// The longest string that the protocol allows, in bytes (proto.md "Conventions").
const MAX_STRING: u32 = 4096;

/// The most extents in one block status chunk: what servers should not exceed, by the text under
/// `NBD_REPLY_TYPE_BLOCK_STATUS`. nbdkit stops there, qemu at 2^17.
pub const DEFAULT_MAX_EXTENTS: u32 = 1 << 20;

/// Limits for one connection, on either side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    max_option_body: u32,
    max_string: u32,
    max_options: u32,
    max_queries: u32,
    max_contexts: u32,
    max_replies: u32,
    max_reply_bytes: u32,
    max_drain: u32,
    max_payload: u32,
    max_chunks: u32,
    max_extents: u32,
}

impl Limits {
    /// The defaults.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            // The largest legal INFO or GO is 4 + 4096 + 2 + 2 * 65536; nobody sends more than a
            // handful of information requests. SET_META_CONTEXT with many long queries is the
            // largest body in practice; nbdkit takes 16 KiB, qemu less.
            max_option_body: 64 << 10,
            // proto.md "Conventions": strings "MUST be no longer than 4096 bytes". nbdkit and
            // libnbd take as much; qemu does too, since 4.2.
            max_string: MAX_STRING,
            // nbdkit hangs up after 32 options; qemu has no limit. A client that lists and then
            // asks for INFO on each of many exports needs more.
            max_options: 1024,
            // Queries in one option about meta contexts. Clients send one for each context that
            // they want, of which even a qemu server with many bitmaps has some dozens.
            max_queries: 1024,
            // Contexts selected at once, each of which may answer each block status. qemu has
            // two, and one for each dirty bitmap; libnbd takes any number.
            max_contexts: 256,
            // How many replies a server may give to one option: exports listed, infos, contexts.
            // libnbd stops at 10,000 exports.
            max_replies: 10_000,
            // All bodies of the replies to one option together, for clients that keep them: the
            // names and descriptions of 10,000 exports with 1600 bytes for each.
            max_reply_bytes: 16 << 20,
            // What is skipped in one go before we hang up: an unknown option, or a payload above
            // our maximum. The protocol does not allow us to take up to 32 MiB for an attack.
            max_drain: DEFAULT_MAX_PAYLOAD,
            // proto.md "Size constraints": a server without constraints answers reads of 32 MiB.
            max_payload: DEFAULT_MAX_PAYLOAD,
            // Chunks in one reply. A 32 MiB read in pieces of 512 bytes has 65,536.
            max_chunks: 1 << 17,
            // Extents are lent, not kept; so this bounds work, not memory.
            max_extents: DEFAULT_MAX_EXTENTS,
        }
    }

    /// Most bytes in the body of one option or option reply (default 64 KiB). A longer option is
    /// answered with `ERR_TOO_BIG` and drained; a client hangs up on a longer reply.
    #[must_use]
    pub const fn with_max_option_body(mut self, bytes: u32) -> Self {
        self.max_option_body = bytes;
        self
    }

    /// Most bytes in a name or a query that a client sends (default 4096, which is also the most
    /// that the protocol allows and that can be set). An option with a longer one is answered
    /// with `ERR_TOO_BIG`, one with more than 4096 bytes as malformed, with `ERR_INVALID`; after
    /// `EXPORT_NAME`, a server hangs up.
    #[must_use]
    pub const fn with_max_string(mut self, bytes: u32) -> Self {
        self.max_string = if bytes > MAX_STRING {
            MAX_STRING
        } else {
            bytes
        };
        self
    }

    /// Most options that a client may send in one session, a farewell (`ABORT`) not counted
    /// (default 1024); a server hangs up on the next one.
    #[must_use]
    pub const fn with_max_options(mut self, count: u32) -> Self {
        self.max_options = count;
        self
    }

    /// Most queries in one `LIST_META_CONTEXT` or `SET_META_CONTEXT` (default 1024); more are
    /// answered with `ERR_TOO_BIG`.
    #[must_use]
    pub const fn with_max_queries(mut self, count: u32) -> Self {
        self.max_queries = count;
        self
    }

    /// Most meta contexts that are selected at the same time (default 256). A server answers
    /// `ERR_TOO_BIG` to a request for more; a client hangs up on a server that selects more.
    #[must_use]
    pub const fn with_max_contexts(mut self, count: u32) -> Self {
        self.max_contexts = count;
        self
    }

    /// Most replies that a client takes to one option (default 10,000); it hangs up on the next.
    #[must_use]
    pub const fn with_max_replies(mut self, count: u32) -> Self {
        self.max_replies = count;
        self
    }

    /// Most bytes in the bodies of all replies to one option together (default 16 MiB); a client
    /// hangs up at the header of the reply that would exceed them. An
    /// [`Inspector`](crate::handshake::Inspector) also keeps no more than this of what it hears about
    /// all exports together.
    #[must_use]
    pub const fn with_max_reply_bytes(mut self, bytes: u32) -> Self {
        self.max_reply_bytes = bytes;
        self
    }

    /// Most bytes of one message that are skipped to keep the session alive (default 32 MiB);
    /// for more we hang up.
    #[must_use]
    pub const fn with_max_drain(mut self, bytes: u32) -> Self {
        self.max_drain = bytes;
        self
    }

    /// Most bytes that a client takes as the payload of one reply chunk, and that it can read at once
    /// (default 32 MiB).
    ///
    /// What a server takes in one request is a matter of the export, and told to the client:
    /// [`BlockSizes::max_payload`](crate::session::BlockSizes::max_payload).
    #[must_use]
    pub const fn with_max_payload(mut self, bytes: u32) -> Self {
        self.max_payload = bytes;
        self
    }

    /// Most chunks that a client takes in one structured reply (default 131,072).
    #[must_use]
    pub const fn with_max_chunks(mut self, count: u32) -> Self {
        self.max_chunks = count;
        self
    }

    /// Most extents that a client takes in one block status chunk (default 2^20); it hangs up on
    /// a longer one as soon as its header has come.
    #[must_use]
    pub const fn with_max_extents(mut self, count: u32) -> Self {
        self.max_extents = count;
        self
    }

    /// Most bytes in the body of one option or option reply.
    #[must_use]
    pub const fn max_option_body(&self) -> u32 {
        self.max_option_body
    }

    /// Most bytes in a name or a query that a client sends.
    #[must_use]
    pub const fn max_string(&self) -> u32 {
        self.max_string
    }

    /// Most queries in one option.
    #[must_use]
    pub const fn max_queries(&self) -> u32 {
        self.max_queries
    }

    /// Most meta contexts that are selected at the same time.
    #[must_use]
    pub const fn max_contexts(&self) -> u32 {
        self.max_contexts
    }

    /// Most bytes in all replies to one option.
    #[must_use]
    pub const fn max_reply_bytes(&self) -> u32 {
        self.max_reply_bytes
    }

    /// Most options in one session.
    #[must_use]
    pub const fn max_options(&self) -> u32 {
        self.max_options
    }

    /// Most replies to one option.
    #[must_use]
    pub const fn max_replies(&self) -> u32 {
        self.max_replies
    }

    /// Most bytes of one message that are skipped.
    #[must_use]
    pub const fn max_drain(&self) -> u32 {
        self.max_drain
    }

    /// Most bytes that a client takes as the payload of one reply chunk, and reads at once.
    #[must_use]
    pub const fn max_payload(&self) -> u32 {
        self.max_payload
    }

    /// Most chunks in one structured reply.
    #[must_use]
    pub const fn max_chunks(&self) -> u32 {
        self.max_chunks
    }

    /// Most extents in one block status chunk.
    #[must_use]
    pub const fn max_extents(&self) -> u32 {
        self.max_extents
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_string_is_allowed_to_be_longer_than_the_protocol_allows() {
        // proto.md "Conventions": strings of at most 4096 bytes.
        for (set, expected) in [
            (0, 0),
            (4095, 4095),
            (4096, 4096),
            (4097, 4096),
            (u32::MAX, 4096),
        ] {
            assert_eq!(Limits::new().with_max_string(set).max_string(), expected);
        }
    }
}
