//! What goes in and out: commands, decisions about them, actions.

use super::clock::Stamp;
#[cfg(doc)]
use super::config::Acknowledge;
#[cfg(doc)]
use super::coordinator::FlushCoordinator;
use super::order::Range;
use super::slab::Key;
use crate::wire::{CommandType, Errno};

/// A connection, as the coordinator knows it. After its release, or where
/// [`FlushCoordinator::opened`] refuses it, it is never valid again: calls with it do nothing, and
/// its commands are [closed](Decision::Closed).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Conn(pub(super) Key);

/// A client's command, as far as it matters here.
///
/// The coordinator compares ranges and nothing else. Whether the command is allowed is checked
/// before, with [`Session::check`](crate::session::Session::check): that it lies within the export,
/// that it modifies nothing that is read-only, that its flags were advertised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(test, derive(Hash))]
pub struct Command {
    /// What is to be done.
    pub kind: CommandType,
    /// Where it begins, in bytes.
    pub offset: u64,
    /// How many bytes it is about. A command of no bytes waits for nobody's.
    pub length: u64,
    /// Whether it carries `NBD_CMD_FLAG_FUA`.
    pub fua: bool,
}

impl Command {
    /// A command without FUA.
    #[must_use]
    pub const fn new(kind: CommandType, offset: u64, length: u64) -> Self {
        Self {
            kind,
            offset,
            length,
            fua: false,
        }
    }

    /// A client's `NBD_CMD_FLUSH`.
    pub const FLUSH: Self = Self::new(CommandType::FLUSH, 0, 0);

    /// The same with or without FUA.
    #[must_use]
    pub const fn with_fua(mut self, fua: bool) -> Self {
        self.fua = fua;
        self
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(test, derive(Hash))]
pub(super) enum Fua {
    /// Not asked for, or without meaning for the command.
    No,
    /// By the backend.
    Native,
    /// The command is on permanent storage when it ends, with FUA or without.
    Stable,
    /// By a flush after the command.
    Emulated,
}

/// A command that the backend is to execute, or is executing: give it back with
/// [`FlushCoordinator::complete`], whatever became of it, and also if it only reads.
#[must_use = "a command that never completes holds up flushes for ever"]
#[derive(Debug)]
#[cfg_attr(test, derive(Clone, PartialEq, Eq, Hash))]
pub struct Op {
    pub(super) member: Key,
    pub(super) generation: Stamp,
    pub(super) modification: bool,
    pub(super) range: Option<Range>,
    pub(super) fua: Fua,
    /// When the client was told that it is done, if that was when it began.
    pub(super) acknowledged: Stamp,
}

impl Op {
    /// The connection on whose handle it is executed.
    #[must_use]
    pub const fn conn(&self) -> Conn {
        Conn(self.member)
    }

    /// Whether the backend has to execute it with FUA. The client's own flag does not matter here:
    /// where the backend does nothing about it, a flush follows, if one is needed.
    #[must_use]
    pub const fn fua(&self) -> bool {
        matches!(self.fua, Fua::Native)
    }

    /// Whether the client is to be answered with success now, before the command is executed:
    /// under [`Acknowledge::OnReceipt`]. Keep what the execution needs, such as the payload of a
    /// write. [`FlushCoordinator::complete`] then says [`Decision::Answered`].
    #[must_use]
    pub const fn acknowledged(&self) -> bool {
        self.acknowledged.happened()
    }
}

/// A backend flush that was asked for: give it back with [`FlushCoordinator::flushed`].
#[must_use = "a backend flush that never ends holds up clients for ever"]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlushId {
    pub(super) member: Key,
    pub(super) start: Stamp,
}

impl FlushId {
    /// The connection whose handle is flushed.
    #[must_use]
    pub const fn conn(&self) -> Conn {
        Conn(self.member)
    }
}

/// What becomes of a command now. Each of these has to be acted upon.
#[must_use]
#[derive(Debug)]
#[non_exhaustive]
pub enum Decision<T> {
    /// Execute it on the handle of its connection now; first answer the client with success, if
    /// it is [acknowledged](Op::acknowledged) already.
    Execute {
        /// What to give back when it has been executed.
        op: Op,
        /// The caller's tag.
        tag: T,
    },
    /// Answer the client now. The error is not always the one that the backend gave: a command that
    /// was executed can fail for the flush that belongs to it.
    Reply {
        /// The caller's tag.
        tag: T,
        /// The answer.
        result: Result<(), Errno>,
    },
    /// It has been executed, and nothing is left to say: the client was answered when it began, as
    /// it was [acknowledged](Op::acknowledged) then. If it has failed, flushes report it.
    Answered {
        /// The caller's tag.
        tag: T,
    },
    /// Nothing now: an [`Action::Execute`] or an [`Action::Reply`] with the tag will come from
    /// [`FlushCoordinator::poll`].
    Wait,
    /// The connection is not open: it was never opened, is leaving, or is gone. From
    /// [`command`](FlushCoordinator::command): do not execute it. From
    /// [`complete`](FlushCoordinator::complete): its handle was [lost](FlushCoordinator::lost)
    /// meanwhile. If anybody is left to answer, the command has failed, unless it was
    /// [acknowledged](Op::acknowledged) before.
    Closed {
        /// The caller's tag.
        tag: T,
    },
}

/// Something to be done by the caller. All but [`Cancel`](Self::Cancel) have to be carried out, or
/// somebody waits for ever.
#[must_use]
#[derive(Debug)]
#[cfg_attr(test, derive(Clone, PartialEq, Eq, Hash))]
#[non_exhaustive]
pub enum Action<C, T> {
    /// Execute a command that had to wait; first answer the client with success, if it is
    /// [acknowledged](Op::acknowledged) already.
    Execute {
        /// The caller's key of the connection.
        key: C,
        /// What to give back when it has been executed.
        op: Op,
        /// The caller's tag.
        tag: T,
    },
    /// Flush a backend handle. A flush of it that was begun before this action was taken from
    /// [`FlushCoordinator::poll`] is none.
    Flush {
        /// The caller's key of the connection.
        key: C,
        /// What to give back when it is done.
        flush: FlushId,
    },
    /// Answer a command that had to wait; drop the answer if the client is gone.
    Reply {
        /// The caller's key of the connection.
        key: C,
        /// The caller's tag.
        tag: T,
        /// The answer.
        result: Result<(), Errno>,
    },
    /// Bring the commands that this connection's handle is executing to an end, as fast as
    /// possible and with any result: the connection was [revoked](FlushCoordinator::revoke), and
    /// others wait for them. Each still has to be given to [`FlushCoordinator::complete`]. To do
    /// nothing is safe, and slow. What was [acknowledged](Op::acknowledged) should rather be
    /// executed: its client was told that it is done, and flushes report it if it fails.
    Cancel {
        /// The caller's key of the connection.
        key: C,
    },
    /// Close the backend handle: the connection is forgotten, and this is its last action. Nothing
    /// is executing on the handle, and no flush runs, unless it was
    /// [lost](FlushCoordinator::lost).
    ///
    /// While emulating, what the handle had cached is written out, or counts as lost. Closing it
    /// must write nothing more, because others may have written there since. That holds in all
    /// modes for a connection that was [revoked](FlushCoordinator::revoke). On all others nobody
    /// has flushed what is still cached, and the coordinator does not: where closing the handle
    /// would drop it, a server that wants to keep it flushes the handle first.
    Release {
        /// The caller's key of the connection.
        key: C,
    },
}
