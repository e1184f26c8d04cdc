//! How many connections, and how to use them.

use alloc::vec::Vec;
use core::fmt;

use super::intent::{Caution, Intent, Use};
use super::ledger::Scope;
use super::offer::{First, Mismatch, Offer};
use super::pinning::{Part, Pinning};
use crate::session::Session;
use crate::wire::TransmissionFlags as Flags;

/// Which connection a command goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Routing {
    /// There is one connection.
    Single,
    /// Any of them, by whatever the caller likes: the least busy, or in turn.
    Any,
    /// The one to which the range is pinned; commands that straddle are split.
    Pinned(Pinning),
}

/// How what was written becomes durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Flushing {
    /// Nothing is written.
    NotNeeded,
    /// One flush, on any connection, covers what was answered on all before it was sent.
    AnyOne,
    /// A flush on each connection that has written something since its last.
    EachDirty,
    /// There is no flush. What has to be durable is written with FUA.
    FuaOnly,
    /// There is neither flush nor FUA: nothing ever is known to be durable.
    Impossible,
}

/// Something that the use would need, or several connections would, and the server did not
/// promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Missing {
    /// `NBD_FLAG_CAN_MULTI_CONN` is not set.
    #[error(
        "The server does not promise that its connections see what was flushed on one of them \
         (no multi-conn)."
    )]
    MultiConn,
    /// `NBD_FLAG_SEND_FLUSH` is not set on an export that will be written to.
    #[error("The server has no flush.")]
    Flush,
    /// `NBD_FLAG_SEND_FUA` is not set either.
    #[error("The server has no FUA.")]
    Fua,
    /// `NBD_FLAG_READ_ONLY` is set, though there is something to write.
    #[error("The export is read-only: every write will be refused.")]
    Writing,
}

/// Why the plan is what it is. Printed, each is a sentence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    /// No more than one was asked for.
    #[error("One connection was asked for.")]
    OneAsked,
    /// `NBD_FLAG_CAN_MULTI_CONN` is set.
    #[error(
        "The server promises that what was flushed on one connection is so for all (multi-conn)."
    )]
    MultiConn,
    /// `NBD_FLAG_CAN_MULTI_CONN` is not set.
    #[error(
        "Without multi-conn, each connection may have a cache of its own, and clients should not \
         use more than one."
    )]
    NoMultiConn,
    /// `NBD_FLAG_CAN_MULTI_CONN` is set, but the export can be written to and has neither flush nor
    /// FUA: there is no command by which a write would become visible on other connections.
    #[error(
        "Multi-conn is a promise about flush and FUA, and this writable export has neither: what \
         one connection writes need not be seen by another."
    )]
    NoFence,
    /// Nothing will be written, and the caller answers for it that nobody else writes.
    #[error(
        "Without multi-conn each connection may have a cache of its own, but nothing will be \
         written, and the caller vouches that nobody else writes."
    )]
    OnlyReads,
    /// The caller insists.
    #[error(
        "The caller insists on several connections without multi-conn, and vouches that they share \
         their data: each range has one connection, so that no two caches hold the same bytes."
    )]
    Insisted,
    /// The export has no more ranges than this that could be accessed separately.
    #[error("The export is too small for more than {0}.")]
    SmallExport(u32),
    /// So many connections got something else than the first.
    #[error("{0} more did not get the same export, and must not be used.")]
    Refused(u32),
    /// No further connection could be had.
    #[error("The server takes no further connection.")]
    Unavailable,
}

/// Why a connection was not admitted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotAdmitted {
    /// It differs from the first: close it. The plan goes on with one fewer.
    #[error(transparent)]
    Differs(#[from] Mismatch),
    /// The plan has all it wants.
    #[error("no further connection is of use")]
    Enough,
}

/// How many connections to an export, how to route commands over them, where to flush, and why.
///
/// Made by [`plan`] from the first connection, and carried on as others are opened:
///
/// 1. While [`to_open`](Self::to_open) says so, connect and negotiate the same thing again.
/// 2. What was negotiated: [`admit`](Self::admit). If the server cannot be reached or says no:
///    [`unavailable`](Self::unavailable).
/// 3. Use the connections by [`routing`](Self::routing) and [`flushing`](Self::flushing), with a
///    [`FlushLedger`](super::FlushLedger) of the plan's [`scope`](Self::scope).
///
/// With free routing, the connections that there are may be used while others are being opened.
/// With pinned routing they may not: the ranges move with each one that is admitted.
///
/// A connection that was lost is replaced by one that passes [`check`](Self::check).
///
/// Printed, a plan is a few sentences, one on each line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    first: First,
    basis: Reason,
    writes: bool,
    disk_is_read_only: bool,
    asked: u32,
    limited_to: u32,
    wanted: u32,
    admitted: u32,
    refused: u32,
    unavailable: bool,
    pinning: Pinning,
}

/// Plans for an export of which the first connection has been negotiated.
///
/// A pure function: the same session and the same intent make the same plan.
///
/// ```
/// use nbd_proto::multiplex::{Flushing, Intent, Routing, Use, plan};
/// use nbd_proto::session::Session;
/// use nbd_proto::wire::{Name, TransmissionFlags};
///
/// let flags = TransmissionFlags::HAS_FLAGS | TransmissionFlags::SEND_FLUSH;
/// let session = Session::new(Name::default(), 1 << 30, flags);
/// let alone = plan(&session, Intent::new(Use::Disk, 4));
/// assert_eq!((alone.connections(), alone.routing()), (1, Routing::Single));
///
/// let flags = flags | TransmissionFlags::CAN_MULTI_CONN;
/// let session = Session::new(Name::default(), 1 << 30, flags);
/// let mut several = plan(&session, Intent::new(Use::Disk, 4));
/// assert_eq!((several.to_open(), several.routing()), (3, Routing::Any));
/// assert_eq!(several.flushing(), Flushing::AnyOne);
/// assert_eq!(several.admit(&session), Ok(1));
/// ```
#[must_use]
pub fn plan<'a>(first: impl Into<Offer<'a>>, intent: Intent) -> Plan {
    let offer = first.into();
    let session = offer.session();
    let read_only = session.flags().contains(Flags::READ_ONLY);
    let writes = intent.usage != Use::Read && !read_only;
    let basis = basis(session.flags(), writes, &intent);
    let asked = match basis {
        Reason::MultiConn | Reason::OnlyReads | Reason::Insisted => intent.connections,
        _ => 1,
    };
    let preferred = session.block_sizes().preferred();
    let pinning = Pinning::suited(session.size(), preferred, intent.granule, asked);
    // Whoever comes late to fewer blocks than there are connections has nothing to do.
    let unit = match basis {
        Reason::Insisted => pinning.granule(),
        _ => u64::from(preferred),
    };
    let units = session.size().div_ceil(unit).max(1);
    let limited_to = u32::try_from(units).unwrap_or(u32::MAX);
    Plan {
        first: First::new(offer),
        basis,
        writes,
        disk_is_read_only: read_only && intent.usage != Use::Read,
        asked,
        limited_to,
        wanted: asked.min(limited_to),
        admitted: 1,
        refused: 0,
        unavailable: false,
        pinning,
    }
}

/// The one reason from which the rest follows.
fn basis(flags: Flags, writes: bool, intent: &Intent) -> Reason {
    let fence = flags.intersects(Flags::SEND_FLUSH | Flags::SEND_FUA);
    let multi_conn = flags.contains(Flags::CAN_MULTI_CONN);
    if intent.connections == 1 {
        return Reason::OneAsked;
    }
    // The flag promises that "the effects of NBD_CMD_FLUSH and NBD_CMD_FLAG_FUA" are "visible across
    // all connections" (proto.md "Transmission flags"). With neither, only those can rely on it who
    // do not need to see on one connection what another wrote.
    if multi_conn && (fence || !writes || intent.usage == Use::Copy) {
        return Reason::MultiConn;
    }
    if !writes && intent.caution >= Caution::Readers {
        return Reason::OnlyReads;
    }
    if writes && intent.caution == Caution::Insist {
        return Reason::Insisted;
    }
    if multi_conn {
        Reason::NoFence
    } else {
        Reason::NoMultiConn
    }
}

impl Plan {
    /// How many connections the plan is for, the first included: at least one.
    ///
    /// It becomes smaller when connections are refused or cannot be had.
    #[must_use]
    pub const fn connections(&self) -> u32 {
        self.wanted
    }

    /// How many there are, the first included.
    #[must_use]
    pub const fn admitted(&self) -> u32 {
        self.admitted
    }

    /// How many more to open.
    #[must_use]
    pub const fn to_open(&self) -> u32 {
        self.wanted.saturating_sub(self.admitted)
    }

    /// Takes a further connection, if it got what the first got. Returns its number: the first is
    /// 0, the next one 1.
    ///
    /// # Errors
    ///
    /// [`NotAdmitted::Differs`]: close the connection. It counts as one that was opened, so that
    /// a server that gives something else each time does not keep the caller busy for ever.
    /// [`NotAdmitted::Enough`]: it is not needed; nothing changes.
    pub fn admit<'a>(&mut self, offer: impl Into<Offer<'a>>) -> Result<u32, NotAdmitted> {
        if self.to_open() == 0 {
            return Err(NotAdmitted::Enough);
        }
        if let Err(mismatch) = self.check(offer) {
            self.wanted -= 1;
            self.refused += 1;
            return Err(mismatch.into());
        }
        let number = self.admitted;
        self.admitted += 1;
        Ok(number)
    }

    /// Compares a connection with the first, and changes nothing.
    ///
    /// # Errors
    ///
    /// With all that differs: export, size, flags, block sizes, headers, meta contexts, TLS.
    pub fn check<'a>(&self, offer: impl Into<Offer<'a>>) -> Result<(), Mismatch> {
        self.first.compare(offer.into())
    }

    /// No further connection can be had: the server refused it, or could not be reached. The plan
    /// goes on with those that there are.
    pub const fn unavailable(&mut self) {
        if self.to_open() > 0 {
            self.wanted = self.admitted;
            self.unavailable = true;
        }
    }

    /// Which connection a command goes to. Where ranges are pinned, it is final once
    /// [`to_open`](Self::to_open) is 0, and nothing may be sent before.
    #[must_use]
    pub const fn routing(&self) -> Routing {
        if self.wanted == 1 {
            return Routing::Single;
        }
        match self.basis {
            Reason::Insisted => Routing::Pinned(self.pinning.over(self.admitted)),
            _ => Routing::Any,
        }
    }

    /// How what was written becomes durable.
    #[must_use]
    pub const fn flushing(&self) -> Flushing {
        if !self.writes {
            return Flushing::NotNeeded;
        }
        match (self.has(Flags::SEND_FLUSH), self.has(Flags::SEND_FUA)) {
            (false, false) => Flushing::Impossible,
            (false, true) => Flushing::FuaOnly,
            (true, _) => match self.routing() {
                Routing::Single | Routing::Any => Flushing::AnyOne,
                Routing::Pinned(_) => Flushing::EachDirty,
            },
        }
    }

    /// Whether a last flush is owed before disconnecting, once something was written without FUA:
    /// by [`flushing`](Self::flushing), on one connection or on each, and before the *first* of
    /// them disconnects.
    ///
    /// A server need not write out what a connection leaves behind: proto.md demands nothing of
    /// the kind of `NBD_CMD_DISC`. "We flush the disk at least once before disconnecting, so that
    /// there is no data loss due to disconnecting too early" (the 2021 message).
    #[must_use]
    pub const fn final_flush(&self) -> bool {
        matches!(self.flushing(), Flushing::AnyOne | Flushing::EachDirty)
    }

    /// What a flush covers: what a [`FlushLedger`](super::FlushLedger) is made with.
    #[must_use]
    pub const fn scope(&self) -> Scope {
        match self.basis {
            Reason::Insisted | Reason::NoFence => Scope::OwnConnection,
            _ if self.has(Flags::CAN_MULTI_CONN) => Scope::AllConnections,
            _ => Scope::OwnConnection,
        }
    }

    /// The parts of a command over this range, each with the connection that it goes to; nothing
    /// if any connection will do, and the command can go as it is.
    ///
    /// ```
    /// use nbd_proto::multiplex::{Caution, Intent, Use, plan};
    /// use nbd_proto::session::Session;
    /// use nbd_proto::wire::{Name, TransmissionFlags};
    ///
    /// let flags = TransmissionFlags::HAS_FLAGS | TransmissionFlags::SEND_FLUSH;
    /// let session = Session::new(Name::default(), 1 << 30, flags);
    /// let intent = Intent::new(Use::Copy, 2).with_caution(Caution::Insist);
    /// let mut plan = plan(&session, intent);
    /// plan.admit(&session)?;
    /// let parts = plan.pinned(0, 3 << 20).expect("insisted on");
    /// let connections: Vec<_> = parts.map(|part| part.connection).collect();
    /// assert_eq!(connections, [0, 1, 0]);
    /// # Ok::<(), nbd_proto::multiplex::NotAdmitted>(())
    /// ```
    #[must_use]
    pub fn pinned(&self, offset: u64, length: u64) -> Option<impl Iterator<Item = Part> + use<>> {
        match self.routing() {
            Routing::Pinned(pinning) => Some(pinning.parts(offset, length)),
            Routing::Single | Routing::Any => None,
        }
    }

    /// What was negotiated on the first connection, and has to be on all.
    #[must_use]
    pub const fn session(&self) -> &Session {
        self.first.session()
    }

    /// What the server failed to promise, of what this use would profit from.
    #[must_use]
    pub fn missing(&self) -> Vec<Missing> {
        let no_flush = self.writes && !self.has(Flags::SEND_FLUSH);
        let no_fua = no_flush && !self.has(Flags::SEND_FUA);
        let no_multi_conn = self.basis != Reason::OneAsked && !self.has(Flags::CAN_MULTI_CONN);
        [
            (no_multi_conn, Missing::MultiConn),
            (no_flush, Missing::Flush),
            (no_fua, Missing::Fua),
            (self.disk_is_read_only, Missing::Writing),
        ]
        .into_iter()
        .filter_map(|(is_missing, what)| is_missing.then_some(what))
        .collect()
    }

    /// Why, the weightiest first; at least one.
    #[must_use]
    pub fn reasons(&self) -> Vec<Reason> {
        [
            (true, self.basis),
            (
                self.limited_to < self.asked,
                Reason::SmallExport(self.limited_to),
            ),
            (self.refused > 0, Reason::Refused(self.refused)),
            (self.unavailable, Reason::Unavailable),
        ]
        .into_iter()
        .filter_map(|(holds, reason)| holds.then_some(reason))
        .collect()
    }

    const fn has(&self, flag: Flags) -> bool {
        self.session().flags().contains(flag)
    }
}

impl fmt::Display for Flushing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotNeeded => "No flush is needed.",
            Self::AnyOne => "A flush covers all that was answered before it was sent.",
            Self::EachDirty => {
                "A flush covers its own connection only: each that has written is flushed."
            }
            Self::FuaOnly => "There is no flush: what has to be durable is written with FUA.",
            Self::Impossible => "There is neither flush nor FUA: nothing can be made durable.",
        })
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.connections();
        match self.routing() {
            Routing::Single => f.write_str("1 connection.")?,
            Routing::Any => write!(f, "{count} connections, any of them for each command.")?,
            Routing::Pinned(pinning) => {
                let granule = pinning.granule();
                write!(
                    f,
                    "{count} connections, pinned: ranges of {granule} bytes take turns."
                )?;
            }
        }
        for reason in self.reasons() {
            write!(f, "\n{reason}")?;
        }
        write!(f, "\n{}", self.flushing())?;
        if self.final_flush() {
            f.write_str("\nA last flush is owed before disconnecting.")?;
        }
        for missing in self.missing() {
            write!(f, "\n{missing}")?;
        }
        Ok(())
    }
}
