//! What a server has to give: its configuration, and its exports.

use crate::limits::Limits;
use crate::session::BlockSizes;
use crate::wire::{HandshakeFlags, Name, TransmissionFlags};

/// What a server offers, and how much it lets a client take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerConfig {
    pub(super) limits: Limits,
    pub(super) structured_replies: bool,
    no_zeroes: bool,
}

impl ServerConfig {
    /// Structured replies and `NO_ZEROES` are offered; limits are the default ones.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            limits: Limits::new(),
            structured_replies: true,
            no_zeroes: true,
        }
    }

    /// Sets the limits.
    #[must_use]
    pub const fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Sets whether structured replies can be negotiated (default: yes).
    #[must_use]
    pub const fn with_structured_replies(mut self, offered: bool) -> Self {
        self.structured_replies = offered;
        self
    }

    /// Sets whether the 124 zeroes after `EXPORT_NAME` can be left out (default: yes).
    #[must_use]
    pub const fn with_no_zeroes(mut self, offered: bool) -> Self {
        self.no_zeroes = offered;
        self
    }

    /// The limits.
    #[must_use]
    pub const fn limits(&self) -> Limits {
        self.limits
    }

    pub(super) fn handshake_flags(&self) -> HandshakeFlags {
        let mut flags = HandshakeFlags::FIXED_NEWSTYLE;
        flags.set(HandshakeFlags::NO_ZEROES, self.no_zeroes);
        flags
    }
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self::new()
    }
}

/// An export as its server describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Export {
    /// The canonical name, told to clients that ask for it.
    pub name: Name,
    /// Text for people; the empty one is not sent.
    pub description: Name,
    /// The size in bytes. It should be a multiple of the minimum block size, or a client cannot
    /// reach the end.
    pub size: u64,
    /// What the export can do, if all that can be negotiated was negotiated: what a client is
    /// told is made true to the session. `HAS_FLAGS` is always set, `SEND_DF` only with
    /// structured replies, `BLOCK_STATUS_PAYLOAD` only with extended headers, `SEND_FAST_ZERO`
    /// only with `SEND_WRITE_ZEROES` (proto.md "Transmission flags").
    pub flags: TransmissionFlags,
    /// The size constraints.
    pub block_sizes: BlockSizes,
}

impl Export {
    /// An export without description and with default size constraints.
    #[must_use]
    pub const fn new(name: Name, size: u64, flags: TransmissionFlags) -> Self {
        Self {
            name,
            description: Name::EMPTY,
            size,
            flags,
            block_sizes: BlockSizes::DEFAULT,
        }
    }

    /// Sets the description.
    #[must_use]
    pub fn with_description(mut self, description: Name) -> Self {
        self.description = description;
        self
    }

    /// Sets the size constraints.
    #[must_use]
    pub const fn with_block_sizes(mut self, sizes: BlockSizes) -> Self {
        self.block_sizes = sizes;
        self
    }
}
