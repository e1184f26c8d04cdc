//! What a client wants, and what it got.

use alloc::vec::Vec;

use crate::error::Refused;
use crate::handshake::opening::{Basics, TlsWanted};
use crate::session::{Announcement, Session};
use crate::wire::{
    GreetingStyle, HandshakeFlags, InfoRequest, InfoType, MetaContextRequest, Name, OptionCode,
    TransmissionFlags,
};

/// What a client wants of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub(super) export: Name,
    pub(super) basics: Basics,
    contexts: Vec<Name>,
    name: bool,
    description: bool,
}

impl Wanted {
    /// This export, with extended headers if the server has them, else with structured replies if
    /// it has those; without TLS and without meta contexts. The empty name is that of the default
    /// export.
    #[must_use]
    pub const fn new(export: Name) -> Self {
        Self {
            export,
            basics: Basics::DEFAULT,
            contexts: Vec::new(),
            name: false,
            description: false,
        }
    }

    /// Sets what is done about TLS (default: it is not asked for).
    #[must_use]
    pub const fn with_tls(mut self, tls: TlsWanted) -> Self {
        self.basics.tls = tls;
        self
    }

    /// Sets whether extended headers are asked for (default: yes).
    #[must_use]
    pub const fn with_extended_headers(mut self, wanted: bool) -> Self {
        self.basics.extended_headers = wanted;
        self
    }

    /// Sets whether structured replies are asked for, where there are no extended headers
    /// (default: yes).
    #[must_use]
    pub const fn with_structured_replies(mut self, wanted: bool) -> Self {
        self.basics.structured_replies = wanted;
        self
    }

    /// Sets which meta contexts are asked for, such as `base:allocation` (default: none). They
    /// need extended headers or structured replies, and are done without if there are neither.
    #[must_use]
    pub fn with_contexts(mut self, queries: impl IntoIterator<Item = Name>) -> Self {
        self.contexts = queries.into_iter().collect();
        self
    }

    /// Sets whether the canonical name is asked for (default: no).
    #[must_use]
    pub const fn with_name(mut self, wanted: bool) -> Self {
        self.name = wanted;
        self
    }

    /// Sets whether the description is asked for (default: no).
    #[must_use]
    pub const fn with_description(mut self, wanted: bool) -> Self {
        self.description = wanted;
        self
    }

    /// What is done about TLS.
    #[must_use]
    pub const fn tls(&self) -> TlsWanted {
        self.basics.tls
    }

    pub(super) fn request(&self) -> InfoRequest {
        let mut request = InfoRequest::new(self.export.clone()).with(InfoType::BLOCK_SIZE);
        if self.name {
            request = request.with(InfoType::NAME);
        }
        if self.description {
            request = request.with(InfoType::DESCRIPTION);
        }
        request
    }

    /// The question for meta contexts, if there is one.
    pub(super) fn context_request(&self) -> Option<MetaContextRequest> {
        (!self.contexts.is_empty()).then(|| MetaContextRequest {
            export: self.export.clone(),
            queries: self.contexts.clone(),
        })
    }
}

/// What a client got of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Negotiated {
    /// What transmission depends on: TLS, reply style, meta contexts, size constraints.
    pub session: Session,
    /// The way into transmission: [`GO`](OptionCode::GO) or
    /// [`EXPORT_NAME`](OptionCode::EXPORT_NAME); `None` with an oldstyle server.
    pub option: Option<OptionCode>,
    /// How the server greeted.
    pub greeting: GreetingStyle,
    /// What the server said of itself in its greeting.
    pub handshake_flags: HandshakeFlags,
    /// The transmission flags as the server sent them. The session has those that can be true.
    pub announced_flags: TransmissionFlags,
    /// Whether the server told its size constraints. Where it did not, a careful client keeps to
    /// multiples of 512 bytes (proto.md "Size constraints").
    pub block_sizes_announced: bool,
    /// The canonical name of the export, if it was told.
    pub name: Option<Name>,
    /// The description of the export, if it was told.
    pub description: Option<Name>,
    /// What was asked for and refused, and done without.
    pub refused: Vec<Refused>,
}

impl Negotiated {
    /// What the server said, to be [looked at](Announcement::lints) for contradictions.
    #[must_use]
    pub fn announcement(&self) -> Announcement {
        let session = &self.session;
        let said = Announcement::new(session.size(), self.announced_flags, session.reply_style())
            .with_contexts(!session.contexts().is_empty())
            .with_handshake_flags(
                self.handshake_flags,
                self.greeting == GreetingStyle::Oldstyle,
            );
        if !self.block_sizes_announced {
            return said;
        }
        let sizes = session.block_sizes();
        said.with_block_sizes(sizes.minimum(), sizes.preferred(), sizes.max_payload())
    }
}
