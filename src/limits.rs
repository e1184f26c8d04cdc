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

/// The most extents in one block status chunk: what servers should not exceed, by the text under
/// `NBD_REPLY_TYPE_BLOCK_STATUS`. nbdkit stops there, qemu at 2^17.
pub const DEFAULT_MAX_EXTENTS: u32 = 1 << 20;

/// Limits for one connection, on either side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    max_option_body: u32,
    max_options: u32,
    max_replies: u32,
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
            // nbdkit hangs up after 32 options; qemu has no limit. A client that lists and then
            // asks for INFO on each of many exports needs more.
            max_options: 1024,
            // How many replies a server may give to one option: exports listed, infos, contexts.
            // libnbd stops at 10,000 exports.
            max_replies: 10_000,
            // What is skipped in one go before we hang up: an unknown option, or a payload above
            // our maximum. The protocol does not allow us to take up to 32 MiB for an attack.
            max_drain: DEFAULT_MAX_PAYLOAD,
            // proto.md "Size constraints": a server without constraints takes 32 MiB.
            max_payload: DEFAULT_MAX_PAYLOAD,
            // Chunks in one reply. A 32 MiB read in pieces of 512 bytes has 65,536.
            max_chunks: 1 << 17,
            // Extents are lent, not kept; so this bounds work, not memory.
            max_extents: DEFAULT_MAX_EXTENTS,
        }
    }

    /// Most bytes in the body of one option or option reply (default 64 KiB). A longer option is
    /// answered with `ERR_TOO_BIG` and drained.
    #[must_use]
    pub const fn with_max_option_body(mut self, bytes: u32) -> Self {
        self.max_option_body = bytes;
        self
    }

    /// Most options that a client may send in one session (default 1024); a server hangs up on
    /// the next one.
    #[must_use]
    pub const fn with_max_options(mut self, count: u32) -> Self {
        self.max_options = count;
        self
    }

    /// Most replies that a client takes to one option (default 10,000); it hangs up on the next.
    #[must_use]
    pub const fn with_max_replies(mut self, count: u32) -> Self {
        self.max_replies = count;
        self
    }

    /// Most bytes of one message that are skipped to keep the session alive (default 32 MiB);
    /// for more we hang up.
    #[must_use]
    pub const fn with_max_drain(mut self, bytes: u32) -> Self {
        self.max_drain = bytes;
        self
    }

    /// Most bytes of payload in one request or reply chunk (default 32 MiB).
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

    /// Most bytes of payload in one request or reply chunk.
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
