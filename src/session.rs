//! What was negotiated: the facts about a connection that transmission depends on.
//!
//! Both handshakes end in a [`Session`]. It is plain data: it does not talk to anyone, and it
//! can be built by hand for a transport that needs no handshake, such as a socket that another
//! process negotiated.
//!
//! ```
//! use nbd_proto::session::{BlockSizes, ReplyStyle, Session};
//! use nbd_proto::wire::{Name, TransmissionFlags};
//!
//! let flags = TransmissionFlags::HAS_FLAGS | TransmissionFlags::SEND_FLUSH;
//! let session = Session::new(Name::default(), 1 << 30, flags)
//!     .with_reply_style(ReplyStyle::Structured)
//!     .with_block_sizes(BlockSizes::new(512, 4096, 1 << 25).expect("legal sizes"));
//! assert_eq!(session.size(), 1 << 30);
//! ```

mod features;
mod lint;

pub use features::Features;
pub use lint::{Announcement, Lint};

pub(crate) use features::consistent;

use alloc::vec::Vec;

use crate::limits::DEFAULT_MAX_PAYLOAD;
use crate::wire::{Name, TransmissionFlags};

/// Which headers are used during transmission.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ReplyStyle {
    /// Compact requests, simple replies.
    #[default]
    Simple,
    /// Compact requests, structured replies (`NBD_OPT_STRUCTURED_REPLY`).
    Structured,
    /// Extended requests and replies (`NBD_OPT_EXTENDED_HEADERS`).
    Extended,
}

/// The size constraints of an export, in bytes (proto.md "Size constraints").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockSizes {
    minimum: u32,
    preferred: u32,
    max_payload: u32,
}

/// Size constraints that the protocol forbids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadBlockSizes {
    /// The minimum is not a power of two between 1 and 65,536.
    #[error("minimum block size {0} is not a power of two up to 65536")]
    Minimum(u32),
    /// The preferred size is not a power of two, or below 512 or below the minimum.
    #[error(
        "preferred block size {0} is not a power of two, or below 512 or the minimum block size"
    )]
    Preferred(u32),
    /// The maximum payload is below the preferred block size.
    #[error("maximum payload {0} is below the preferred block size")]
    MaxPayload(u32),
}

impl BlockSizes {
    /// What holds where nothing else was said: 1, 4096, 32 MiB.
    pub const DEFAULT: Self = Self {
        minimum: 1,
        preferred: 4096,
        max_payload: DEFAULT_MAX_PAYLOAD,
    };

    /// Checks and takes size constraints, all in bytes.
    ///
    /// # Errors
    ///
    /// If they break proto.md "Size constraints": the minimum is a power of two, at most 2^16;
    /// the preferred size is a power of two, at least 512 and at least the minimum; the maximum
    /// payload is at least the preferred size.
    pub const fn new(
        minimum: u32,
        preferred: u32,
        max_payload: u32,
    ) -> Result<Self, BadBlockSizes> {
        if !minimum.is_power_of_two() || minimum > 1 << 16 {
            return Err(BadBlockSizes::Minimum(minimum));
        }
        if !preferred.is_power_of_two() || preferred < 512 || preferred < minimum {
            return Err(BadBlockSizes::Preferred(preferred));
        }
        if max_payload < preferred {
            return Err(BadBlockSizes::MaxPayload(max_payload));
        }
        Ok(Self {
            minimum,
            preferred,
            max_payload,
        })
    }

    /// The smallest unit that can be addressed: offsets and lengths are multiples of it.
    #[must_use]
    pub const fn minimum(&self) -> u32 {
        self.minimum
    }

    /// The unit from which on aligned requests are efficient.
    #[must_use]
    pub const fn preferred(&self) -> u32 {
        self.preferred
    }

    /// The most payload in one request; `u32::MAX` means no limit.
    #[must_use]
    pub const fn max_payload(&self) -> u32 {
        self.max_payload
    }
}

impl Default for BlockSizes {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// A meta context that was selected for the session (proto.md "Metadata querying").
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetaContext {
    /// The id that stands for the context in block status replies of this session.
    pub id: u32,
    /// The name, such as `base:allocation`.
    pub name: Name,
}

/// What server and client agreed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    export: Name,
    size: u64,
    flags: TransmissionFlags,
    block_sizes: BlockSizes,
    reply_style: ReplyStyle,
    contexts: Vec<MetaContext>,
    tls: bool,
}

impl Session {
    /// A session with an export of `size` bytes, simple replies, default size constraints and no
    /// meta contexts.
    #[must_use]
    pub const fn new(export: Name, size: u64, flags: TransmissionFlags) -> Self {
        Self {
            export,
            size,
            flags,
            block_sizes: BlockSizes::DEFAULT,
            reply_style: ReplyStyle::Simple,
            contexts: Vec::new(),
            tls: false,
        }
    }

    /// Sets which headers are used.
    #[must_use]
    pub const fn with_reply_style(mut self, style: ReplyStyle) -> Self {
        self.reply_style = style;
        self
    }

    /// Sets the size constraints.
    #[must_use]
    pub const fn with_block_sizes(mut self, sizes: BlockSizes) -> Self {
        self.block_sizes = sizes;
        self
    }

    /// Sets the selected meta contexts.
    #[must_use]
    pub fn with_contexts(mut self, contexts: Vec<MetaContext>) -> Self {
        self.contexts = contexts;
        self
    }

    /// Sets whether all of it goes over TLS.
    #[must_use]
    pub const fn with_tls(mut self, tls: bool) -> Self {
        self.tls = tls;
        self
    }

    /// The name of the export, as the client asked for it.
    #[must_use]
    pub const fn export(&self) -> &Name {
        &self.export
    }

    /// The size of the export in bytes.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// What the export can do.
    #[must_use]
    pub const fn flags(&self) -> TransmissionFlags {
        self.flags
    }

    /// The size constraints.
    #[must_use]
    pub const fn block_sizes(&self) -> BlockSizes {
        self.block_sizes
    }

    /// Which headers are used.
    #[must_use]
    pub const fn reply_style(&self) -> ReplyStyle {
        self.reply_style
    }

    /// The selected meta contexts; empty if none.
    #[must_use]
    pub fn contexts(&self) -> &[MetaContext] {
        &self.contexts
    }

    /// Whether all of it goes over TLS, from before the export was chosen.
    #[must_use]
    pub const fn is_tls(&self) -> bool {
        self.tls
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_sizes_obey_the_size_constraints() {
        assert!(BlockSizes::new(1, 512, 512).is_ok());
        assert!(BlockSizes::new(65536, 65536, u32::MAX).is_ok());
        assert_eq!(BlockSizes::new(0, 512, 512), Err(BadBlockSizes::Minimum(0)));
        assert_eq!(BlockSizes::new(3, 512, 512), Err(BadBlockSizes::Minimum(3)));
        assert_eq!(
            BlockSizes::new(1 << 17, 1 << 17, 1 << 17),
            Err(BadBlockSizes::Minimum(1 << 17))
        );
        assert_eq!(
            BlockSizes::new(1, 256, 512),
            Err(BadBlockSizes::Preferred(256))
        );
        assert_eq!(
            BlockSizes::new(4096, 512, 4096),
            Err(BadBlockSizes::Preferred(512))
        );
        assert_eq!(
            BlockSizes::new(1, 4096, 4095),
            Err(BadBlockSizes::MaxPayload(4095))
        );
    }
}
