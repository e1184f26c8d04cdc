//! What is asked of a server, and what it said.

use alloc::vec::Vec;

use crate::error::Refused;
use crate::handshake::opening::{Basics, TlsWanted};
use crate::session::{Announcement, BlockSizes, ReplyStyle};
use crate::wire::{GreetingStyle, HandshakeFlags, Info, Name, TransmissionFlags};

/// What is asked of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspect {
    pub(super) basics: Basics,
    pub(super) list: bool,
    pub(super) exports: Vec<Name>,
    pub(super) every_export: bool,
    pub(super) max_exports: usize,
    pub(super) contexts: bool,
}

impl Inspect {
    /// Nothing but what the server greets with, and which headers it has.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            basics: Basics::DEFAULT,
            list: false,
            exports: Vec::new(),
            every_export: false,
            max_exports: usize::MAX,
            contexts: false,
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

    /// Sets whether the exports are listed (default: no).
    #[must_use]
    pub const fn with_list(mut self, wanted: bool) -> Self {
        self.list = wanted;
        self
    }

    /// Asks about this export, too; the empty name is that of the default export.
    #[must_use]
    pub fn with_export(mut self, name: Name) -> Self {
        self.exports.push(name);
        self
    }

    /// Sets whether the exports are listed and each is asked about (default: no).
    #[must_use]
    pub const fn with_every_export(mut self, wanted: bool) -> Self {
        self.every_export = wanted;
        self
    }

    /// Sets how many exports are asked about at most, those that were named included (default:
    /// any number).
    #[must_use]
    pub const fn with_max_exports(mut self, count: usize) -> Self {
        self.max_exports = count;
        self
    }

    /// Sets whether the meta contexts of each export are listed, which needs extended headers or
    /// structured replies (default: no).
    #[must_use]
    pub const fn with_contexts(mut self, wanted: bool) -> Self {
        self.contexts = wanted;
        self
    }
}

impl Default for Inspect {
    fn default() -> Self {
        Self::new()
    }
}

/// What a server said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// How the server greeted, and with which handshake flags; `None` if it did not.
    pub greeting: Option<(GreetingStyle, HandshakeFlags)>,
    /// Whether it was said over TLS.
    pub tls: bool,
    /// The best headers that the server has, of those that were asked for.
    pub reply_style: ReplyStyle,
    /// The exports that it lists, if it was asked to.
    pub list: Option<Result<Vec<Listed>, Refused>>,
    /// The exports that it was asked about, in that order.
    pub exports: Vec<ExportReport>,
    /// What else was asked for and refused.
    pub refused: Vec<Refused>,
}

/// An entry in a list of exports.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Listed {
    /// Its name.
    pub name: Name,
    /// Text for people; empty if there is none.
    pub description: Name,
}

/// What was said of one export.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExportReport {
    /// The name that it was asked for by.
    pub name: Name,
    /// What it is, or why that is not told.
    pub info: Result<ExportInfo, Refused>,
    /// The names of its meta contexts, if they were asked for. Some may be wildcards, such as
    /// `qemu:dirty-bitmap:`.
    pub contexts: Option<Result<Vec<Name>, Refused>>,
}

/// What an export is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExportInfo {
    /// The size in bytes.
    pub size: u64,
    /// The transmission flags as the server sent them.
    pub flags: TransmissionFlags,
    /// The size constraints, if they were told.
    pub block_sizes: Option<BlockSizes>,
    /// The canonical name, if it was told.
    pub name: Option<Name>,
    /// The description, if it was told.
    pub description: Option<Name>,
}

impl ExportInfo {
    /// What the server said, to be [looked at](Announcement::lints) for contradictions. `style` is
    /// that of the [`Report`].
    #[must_use]
    pub fn announcement(&self, style: ReplyStyle) -> Announcement {
        // What the protocol wants of flags where no contexts were selected, it wants of the answer
        // to GO, which this is not.
        let said = Announcement::new(self.size, self.flags, style).with_contexts(true);
        match self.block_sizes {
            Some(sizes) => {
                said.with_block_sizes(sizes.minimum(), sizes.preferred(), sizes.max_payload())
            }
            None => said,
        }
    }

    /// Takes note of a piece of information; a handshake has seen that it is legal.
    pub(in crate::handshake) fn learn(&mut self, info: Info) {
        match info {
            Info::Export { size, flags } => {
                self.size = size;
                self.flags = flags;
            }
            Info::Name(name) => self.name = Some(name),
            Info::Description(text) => self.description = Some(text),
            Info::BlockSize {
                minimum,
                preferred,
                max_payload,
            } => self.block_sizes = BlockSizes::new(minimum, preferred, max_payload).ok(),
            Info::Unknown { .. } => {}
        }
    }
}
