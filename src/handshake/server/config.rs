//! What a server has to give: its configuration, and its exports.

use crate::limits::Limits;
use crate::session::BlockSizes;
use crate::wire::{HandshakeFlags, Name, TransmissionFlags};

/// What a server does about TLS (proto.md "Server-side requirements"); the same for all of a
/// connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TlsPolicy {
    /// There is no TLS (NOTLS): `STARTTLS` is answered with `ERR_UNSUP`.
    #[default]
    None,
    /// TLS is there for clients that ask for it, and for exports that
    /// [require](Export::with_tls_required) it (SELECTIVETLS).
    Selective,
    /// Nothing is answered before TLS runs, but `STARTTLS` and `ABORT` (FORCEDTLS).
    Forced,
}

/// What a server offers, and how much it lets a client take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerConfig {
    pub(super) limits: Limits,
    pub(super) tls: TlsPolicy,
    pub(super) fixed_newstyle: bool,
    pub(super) structured_replies: bool,
    pub(super) extended_headers: bool,
    pub(super) meta_contexts: bool,
    pub(super) block_sizes_required: bool,
    no_zeroes: bool,
}

impl ServerConfig {
    /// Fixed newstyle with structured replies, extended headers and `NO_ZEROES`; no TLS, no meta
    /// contexts; limits are the default ones.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            limits: Limits::new(),
            tls: TlsPolicy::None,
            fixed_newstyle: true,
            structured_replies: true,
            extended_headers: true,
            meta_contexts: false,
            block_sizes_required: false,
            no_zeroes: true,
        }
    }

    /// Sets the limits.
    #[must_use]
    pub const fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Sets what is done about TLS (default: there is none).
    #[must_use]
    pub const fn with_tls(mut self, policy: TlsPolicy) -> Self {
        self.tls = policy;
        self
    }

    /// Sets whether structured replies can be negotiated (default: yes).
    #[must_use]
    pub const fn with_structured_replies(mut self, offered: bool) -> Self {
        self.structured_replies = offered;
        self
    }

    /// Sets whether extended headers can be negotiated (default: yes).
    #[must_use]
    pub const fn with_extended_headers(mut self, offered: bool) -> Self {
        self.extended_headers = offered;
        self
    }

    /// Sets whether meta contexts can be negotiated (default: no). If so, there are
    /// [`ContextsAsk`](super::ContextsAsk)s to be answered, and `NBD_CMD_BLOCK_STATUS` in
    /// sessions that have contexts.
    #[must_use]
    pub const fn with_meta_contexts(mut self, offered: bool) -> Self {
        self.meta_contexts = offered;
        self
    }

    /// Sets whether exports with other than the default size constraints are only for clients
    /// that ask for them, and so promise to keep to them (default: no, for maximum
    /// interoperability). Others get `ERR_BLOCK_SIZE_REQD`, or after `EXPORT_NAME` are hung up on
    /// (proto.md "Size constraints").
    #[must_use]
    pub const fn with_block_sizes_required(mut self, required: bool) -> Self {
        self.block_sizes_required = required;
        self
    }

    /// Sets whether the 124 zeroes after `EXPORT_NAME` can be left out (default: yes).
    #[must_use]
    pub const fn with_no_zeroes(mut self, offered: bool) -> Self {
        self.no_zeroes = offered;
        self
    }

    /// Sets whether the handshake is *fixed* newstyle (default: yes; proto.md "Baseline" wants
    /// it). Without, `EXPORT_NAME` is the only option, and nothing can be negotiated: for tests
    /// of clients.
    #[must_use]
    pub const fn with_fixed_newstyle(mut self, fixed: bool) -> Self {
        self.fixed_newstyle = fixed;
        self
    }

    /// The limits.
    #[must_use]
    pub const fn limits(&self) -> Limits {
        self.limits
    }

    /// What is done about TLS.
    #[must_use]
    pub const fn tls(&self) -> TlsPolicy {
        self.tls
    }

    pub(super) fn handshake_flags(&self) -> HandshakeFlags {
        let mut flags = HandshakeFlags::empty();
        flags.set(HandshakeFlags::FIXED_NEWSTYLE, self.fixed_newstyle);
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
    /// What the export can do, if all that can be negotiated was negotiated, best taken from
    /// [`Features::flags`](crate::session::Features::flags): what a client is told is made true
    /// to the session. `HAS_FLAGS` is always set, `SEND_DF` only with structured replies or
    /// extended headers, `BLOCK_STATUS_PAYLOAD` only with extended headers and meta contexts,
    /// `SEND_FAST_ZERO` only with `SEND_WRITE_ZEROES` (proto.md "Transmission flags").
    pub flags: TransmissionFlags,
    /// The size constraints.
    pub block_sizes: BlockSizes,
    /// Whether the export is for sessions over TLS only: without TLS, to accept it is to refuse it
    /// with [`Refusal::TlsRequired`](crate::error::Refusal::TlsRequired).
    pub tls_required: bool,
}

impl Export {
    /// An export without description and with default size constraints, with or without TLS.
    #[must_use]
    pub const fn new(name: Name, size: u64, flags: TransmissionFlags) -> Self {
        Self {
            name,
            description: Name::EMPTY,
            size,
            flags,
            block_sizes: BlockSizes::DEFAULT,
            tls_required: false,
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

    /// Sets whether the export is for sessions over TLS only.
    #[must_use]
    pub const fn with_tls_required(mut self, required: bool) -> Self {
        self.tls_required = required;
        self
    }
}
