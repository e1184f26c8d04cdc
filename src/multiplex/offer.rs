//! What one connection got of the server, and how it differs from what another got.

use alloc::vec::Vec;
use core::fmt;

use crate::handshake::Negotiated;
use crate::session::{BlockSizes, ReplyStyle, Session};
use crate::wire::{Name, TransmissionFlags};

/// What was negotiated on one connection: the session, and the canonical name of the export if the
/// server told it (`NBD_INFO_NAME`).
///
/// Made from a `&Session` or, better, from a [`&Negotiated`](Negotiated), which has both.
#[derive(Clone, Copy, Debug)]
pub struct Offer<'a> {
    session: &'a Session,
    name: Option<&'a Name>,
}

impl<'a> Offer<'a> {
    /// A session, and the canonical name of its export, if it is known.
    #[must_use]
    pub const fn new(session: &'a Session, name: Option<&'a Name>) -> Self {
        Self { session, name }
    }

    pub(super) const fn session(&self) -> &'a Session {
        self.session
    }

    pub(super) const fn name(&self) -> Option<&'a Name> {
        self.name
    }
}

impl<'a> From<&'a Session> for Offer<'a> {
    fn from(session: &'a Session) -> Self {
        Self::new(session, None)
    }
}

impl<'a> From<&'a Negotiated> for Offer<'a> {
    fn from(negotiated: &'a Negotiated) -> Self {
        Self::new(&negotiated.session, negotiated.name.as_ref())
    }
}

/// One thing in which a connection differs from the first.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Difference {
    /// Another export: it was asked for by another name, or the server calls it by another
    /// (`NBD_INFO_NAME`), as when what the default export stands for has changed.
    #[error("the export is {other:?}, but {first:?} on the first connection")]
    Export {
        /// The name on the first connection.
        first: Name,
        /// The name on this one.
        other: Name,
    },
    /// Another size in bytes: the export was resized between the connects, or it is another one.
    #[error("the export has {other} bytes, but {first} on the first connection")]
    Size {
        /// The size on the first connection.
        first: u64,
        /// The size on this one.
        other: u64,
    },
    /// Other transmission flags. Those that nobody knows are not compared (proto.md "Transmission
    /// flags": "Clients SHOULD ignore unknown flags").
    #[error("the transmission flags are {other:?}, but {first:?} on the first connection")]
    Flags {
        /// The flags on the first connection.
        first: TransmissionFlags,
        /// The flags on this one.
        other: TransmissionFlags,
    },
    /// Other size constraints: a request that fits one connection would not fit the other.
    #[error(
        "the block sizes are {}, but {} on the first connection",
        Sizes(.other),
        Sizes(.first)
    )]
    BlockSizes {
        /// The size constraints on the first connection.
        first: BlockSizes,
        /// The size constraints on this one.
        other: BlockSizes,
    },
    /// Other headers, and with them other limits to a request.
    #[error("the headers are {}, but {} on the first connection", style(.other), style(.first))]
    ReplyStyle {
        /// The headers on the first connection.
        first: ReplyStyle,
        /// The headers on this one.
        other: ReplyStyle,
    },
    /// A meta context that was selected on the first connection, but not on this one. The order
    /// and the ids of contexts may differ: ids hold for their own session only.
    #[error("the meta context {0:?} is missing")]
    ContextMissing(Name),
    /// A meta context that was selected on this connection, but not on the first.
    #[error("the meta context {0:?} was not selected on the first connection")]
    ContextAdded(Name),
    /// One of the two goes over TLS.
    #[error("TLS is {}, but {} on the first connection", on(*.first, true), on(*.first, false))]
    Tls {
        /// Whether the first connection goes over TLS.
        first: bool,
    },
}

struct Sizes<'a>(&'a BlockSizes);

impl fmt::Display for Sizes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(sizes) = self;
        let (minimum, preferred) = (sizes.minimum(), sizes.preferred());
        write!(f, "{minimum}/{preferred}/{}", sizes.max_payload())
    }
}

const fn style(style: &ReplyStyle) -> &'static str {
    match style {
        ReplyStyle::Simple => "simple",
        ReplyStyle::Structured => "structured",
        ReplyStyle::Extended => "extended",
    }
}

const fn on(first: bool, other: bool) -> &'static str {
    if first != other { "on" } else { "off" }
}

/// Why a connection does not belong to the others: what differs, at least one thing.
///
/// A server behind a load balancer, or one that was restarted between two connects, gives several
/// at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    differences: Vec<Difference>,
}

impl Mismatch {
    /// What differs.
    #[must_use]
    pub fn differences(&self) -> &[Difference] {
        &self.differences
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("this is not another connection to the same export: ")?;
        for (at, difference) in self.differences.iter().enumerate() {
            let separator = if at == 0 { "" } else { "; " };
            write!(f, "{separator}{difference}")?;
        }
        Ok(())
    }
}

impl core::error::Error for Mismatch {}

/// What the first connection got, kept to compare the others with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct First {
    session: Session,
    name: Option<Name>,
}

impl First {
    pub(super) fn new(offer: Offer<'_>) -> Self {
        Self {
            session: offer.session().clone(),
            name: offer.name().cloned(),
        }
    }

    pub(super) const fn session(&self) -> &Session {
        &self.session
    }

    pub(super) fn compare(&self, offer: Offer<'_>) -> Result<(), Mismatch> {
        let differences: Vec<_> = self
            .export(offer)
            .into_iter()
            .chain(self.values(offer.session()))
            .chain(self.contexts(offer.session()))
            .collect();
        if differences.is_empty() {
            return Ok(());
        }
        Err(Mismatch { differences })
    }

    /// The canonical names decide where both are known: what was asked for, often the default
    /// export, may have come to mean something else.
    fn export(&self, offer: Offer<'_>) -> Option<Difference> {
        let (first, other) = match (self.name.as_ref(), offer.name()) {
            (Some(first), Some(other)) => (first, other),
            _ => (self.session.export(), offer.session().export()),
        };
        (first != other).then(|| Difference::Export {
            first: first.clone(),
            other: other.clone(),
        })
    }

    fn values(&self, other: &Session) -> impl Iterator<Item = Difference> {
        let first = &self.session;
        let known = named_flags();
        let (these, those) = (first.flags() & known, other.flags() & known);
        let size = (first.size() != other.size()).then(|| Difference::Size {
            first: first.size(),
            other: other.size(),
        });
        let flags = (these != those).then_some(Difference::Flags {
            first: these,
            other: those,
        });
        let sizes = (first.block_sizes() != other.block_sizes()).then(|| Difference::BlockSizes {
            first: first.block_sizes(),
            other: other.block_sizes(),
        });
        let style = (first.reply_style() != other.reply_style()).then(|| Difference::ReplyStyle {
            first: first.reply_style(),
            other: other.reply_style(),
        });
        let tls = (first.is_tls() != other.is_tls()).then(|| Difference::Tls {
            first: first.is_tls(),
        });
        [size, flags, sizes, style, tls].into_iter().flatten()
    }

    fn contexts(&self, other: &Session) -> impl Iterator<Item = Difference> {
        let (these, those) = (self.session.contexts(), other.contexts());
        let missing = these
            .iter()
            .filter(|it| !those.iter().any(|that| that.name == it.name))
            .map(|it| Difference::ContextMissing(it.name.clone()));
        let added = those
            .iter()
            .filter(|it| !these.iter().any(|that| that.name == it.name))
            .map(|it| Difference::ContextAdded(it.name.clone()));
        missing.chain(added)
    }
}

/// The flags that have a name.
fn named_flags() -> TransmissionFlags {
    use bitflags::Flags as _;
    TransmissionFlags::FLAGS
        .iter()
        .filter(|flag| flag.is_named())
        .fold(TransmissionFlags::empty(), |all, flag| all | *flag.value())
}
