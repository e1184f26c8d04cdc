//! The options that come before those about exports: TLS, then how requests and replies look.

use alloc::vec::Vec;

use super::client::Ready;
use crate::error::Refused;
use crate::session::ReplyStyle;
use crate::wire::{OptionCode, ReplyType};

/// What a client does about TLS (proto.md "Client-side requirements").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TlsWanted {
    /// TLS is not asked for; a server that insists on it is left.
    #[default]
    No,
    /// TLS is asked for before anything else, and done without if the server refuses. Whoever can
    /// write into the connection can bring that about: this protects from listeners only (proto.md
    /// "Protocol downgrade attacks").
    Preferred,
    /// TLS is asked for before anything else; a server that refuses is left.
    Required,
}

/// What a client asks for whatever it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Basics {
    pub(super) tls: TlsWanted,
    pub(super) extended_headers: bool,
    pub(super) structured_replies: bool,
}

impl Basics {
    pub(super) const DEFAULT: Self = Self {
        tls: TlsWanted::No,
        extended_headers: true,
        structured_replies: true,
    };
}

/// Asks for the basics, one after the other.
#[derive(Debug)]
pub(super) struct Opening {
    basics: Basics,
    next: Next,
    /// What was asked for and refused, without which the session goes on.
    pub(super) refused: Vec<Refused>,
}

#[derive(Clone, Copy, Debug)]
enum Next {
    StartTls,
    ExtendedHeaders,
    StructuredReplies,
    Over,
}

impl Opening {
    pub(super) const fn new(basics: Basics) -> Self {
        Self {
            basics,
            next: Next::StartTls,
            refused: Vec::new(),
        }
    }

    /// Sends the next option. If there is none, gives the leave back.
    pub(super) fn send<'s>(&mut self, ready: Ready<'s>) -> Option<Ready<'s>> {
        loop {
            match self.next {
                Next::StartTls => {
                    self.next = Next::ExtendedHeaders;
                    if self.basics.tls != TlsWanted::No {
                        ready.start_tls();
                        return None;
                    }
                }
                Next::ExtendedHeaders => {
                    self.next = Next::StructuredReplies;
                    if self.basics.extended_headers {
                        ready.extended_headers();
                        return None;
                    }
                }
                Next::StructuredReplies => {
                    self.next = Next::Over;
                    let simple = ready.reply_style() == ReplyStyle::Simple;
                    if simple && self.basics.structured_replies {
                        ready.structured_replies();
                        return None;
                    }
                }
                Next::Over => return Some(ready),
            }
        }
    }

    /// Whether this refusal is one that a client can live with.
    pub(super) fn survives(&self, refused: &Refused) -> bool {
        match (refused.option, refused.code) {
            (OptionCode::STARTTLS, _) if self.basics.tls == TlsWanted::Required => false,
            // proto.md "Client-side requirements": to any option but INFO and GO this means that
            // no option will succeed without TLS.
            (_, ReplyType::ERR_TLS_REQD | ReplyType::ERR_SHUTDOWN) => false,
            // Whatever the reason, there is a way to do without.
            (
                OptionCode::STARTTLS
                | OptionCode::EXTENDED_HEADERS
                | OptionCode::STRUCTURED_REPLY
                | OptionCode::SET_META_CONTEXT,
                _,
            ) => true,
            _ => false,
        }
    }
}
