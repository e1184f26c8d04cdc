//! What clients saw of a server: a record of invocations and replies.
//!
//! A [`History`] is a list of [`Event`]s in the order in which an observer saw them: a client that
//! drives several connections, a test, a model, a proxy. It is all that [`check`](super::check)
//! looks at. Nothing is assumed about the moments between two events.
//!
//! # How to record one
//!
//! - An [`Event::Invoke`] is recorded *before* the request is handed to the connection, and an
//!   [`Event::Reply`] *after* the reply was taken from it. If the order of two events is not known,
//!   the invocation comes first: commands then seem to overlap in time that did not, which
//!   excuses more, and accuses nobody wrongly.
//! - Contents are told apart by identities, one per block of [`granule`](History::granule) bytes:
//!   a write gets an identity that no other write has, fills each of its blocks with something
//!   that only this identity and the block's offset give, and a read is recorded with the
//!   identities that it found. [`Content::ZEROES`] is what a zeroing leaves, and
//!   [`Content::MIXED`] is a block that is not as any write left it.
//! - A connection that ends, however it ends, is [`Event::Disconnect`]; what it has not answered
//!   then is never answered. Its number may be used again for another connection.
//! - [`Event::Crash`] is recorded when the server is dead, and all replies that it had sent have been
//!   recorded. It ends all connections. [`Event::Reopen`] is recorded before the first connection
//!   to what came after it, when nothing of the dead server runs any more.
//!
//! ```
//! use nbd_proto::conformance::{Command, Content, Contents, Event, Extent, History, Outcome};
//!
//! let mut history = History::new(4096);
//! let extent = Extent::new(8192, 4096);
//! let write = Command::Write { extent, content: Content(1), fua: false };
//! history.push(Event::Invoke { conn: 0, cookie: 7, command: write });
//! history.push(Event::Reply { conn: 0, cookie: 7, outcome: Outcome::Done });
//! history.push(Event::Invoke { conn: 1, cookie: 7, command: Command::Read { extent } });
//! let found = Contents::Same(Content(1));
//! history.push(Event::Reply { conn: 1, cookie: 7, outcome: Outcome::Data(found) });
//! assert_eq!(history.events().len(), 4);
//!
//! // It can be kept as text.
//! assert_eq!(history.to_string().parse::<History>()?, history);
//! # Ok::<(), nbd_proto::conformance::HistoryError>(())
//! ```

use alloc::vec::Vec;

mod text;

pub use text::HistoryError;

/// What a block holds, told apart by who wrote it. The block's place is not part of it: all blocks
/// of a write have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Content(pub u64);

impl Content {
    /// Nothing but zero bytes.
    pub const ZEROES: Self = Self(0);
    /// Not as any one write left it: a mixture, or something that nobody wrote.
    pub const MIXED: Self = Self(u64::MAX);
}

/// A range of the export, in bytes. Both are multiples of the history's granule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Extent {
    /// Where it begins.
    pub offset: u64,
    /// How long it is; not zero.
    pub length: u64,
}

impl Extent {
    /// So many bytes from there on.
    #[must_use]
    pub const fn new(offset: u64, length: u64) -> Self {
        Self { offset, length }
    }
}

/// A command of a client. Others than these have no part in the promise, and are not recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Command {
    /// `NBD_CMD_READ`.
    Read {
        /// What is read.
        extent: Extent,
    },
    /// `NBD_CMD_WRITE`.
    Write {
        /// What is written to.
        extent: Extent,
        /// What its blocks hold then.
        content: Content,
        /// `NBD_CMD_FLAG_FUA`.
        fua: bool,
    },
    /// `NBD_CMD_WRITE_ZEROES`.
    Zero {
        /// What is zeroed.
        extent: Extent,
        /// `NBD_CMD_FLAG_FUA`.
        fua: bool,
    },
    /// `NBD_CMD_TRIM`. Its blocks hold anything then (proto.md "Request types": "a client MUST NOT
    /// make any assumptions about the contents").
    Trim {
        /// What is given up.
        extent: Extent,
        /// `NBD_CMD_FLAG_FUA`.
        fua: bool,
    },
    /// `NBD_CMD_FLUSH`.
    Flush,
}

impl Command {
    /// Where it reads or writes; a flush is for all.
    #[must_use]
    pub const fn extent(&self) -> Option<Extent> {
        match *self {
            Self::Read { extent }
            | Self::Write { extent, .. }
            | Self::Zero { extent, .. }
            | Self::Trim { extent, .. } => Some(extent),
            Self::Flush => None,
        }
    }

    /// Whether it modifies: `NBD_CMD_WRITE`, `NBD_CMD_WRITE_ZEROES`, `NBD_CMD_TRIM` (proto.md
    /// "Ordering of messages and writes").
    #[must_use]
    pub const fn is_modification(&self) -> bool {
        matches!(
            self,
            Self::Write { .. } | Self::Zero { .. } | Self::Trim { .. }
        )
    }

    /// Whether it is a modification with FUA.
    #[must_use]
    pub const fn has_fua(&self) -> bool {
        match *self {
            Self::Write { fua, .. } | Self::Zero { fua, .. } | Self::Trim { fua, .. } => fua,
            Self::Read { .. } | Self::Flush => false,
        }
    }
}

/// What a read found, block by block.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Contents {
    /// The same in all blocks of its extent.
    Same(Content),
    /// One for each block, in the order of their offsets.
    Each(Vec<Content>),
}

/// How a command was answered.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Outcome {
    /// A modification or flush, with success.
    Done,
    /// A read, with success.
    Data(Contents),
    /// With any error. Data that a failed read may have had does not count.
    Failed,
}

/// One entry of a history.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Event {
    /// A client sends a command.
    Invoke {
        /// On this connection. Any number; the first use of one is a new connection.
        conn: u32,
        /// What its reply will be known by: unique among what its connection has in flight.
        cookie: u64,
        /// The command.
        command: Command,
    },
    /// A client has got a reply.
    Reply {
        /// On the connection of the command.
        conn: u32,
        /// That of the command.
        cookie: u64,
        /// The answer.
        outcome: Outcome,
    },
    /// A connection is gone, with all that it had in flight.
    Disconnect {
        /// The connection.
        conn: u32,
    },
    /// The server died, and all that was not on permanent storage with it. No connection is left.
    Crash,
    /// A server serves what the crash has left.
    Reopen,
}

/// Events in the order in which an observer saw them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History {
    granule: u64,
    events: Vec<Event>,
}

impl History {
    /// An empty one. Blocks have `granule` bytes: the smallest unit that contents are told apart
    /// in; all extents are multiples of it. Zero counts as one.
    #[must_use]
    pub const fn new(granule: u64) -> Self {
        Self {
            granule: if granule == 0 { 1 } else { granule },
            events: Vec::new(),
        }
    }

    /// Bytes of a block.
    #[must_use]
    pub const fn granule(&self) -> u64 {
        self.granule
    }

    /// What comes next. Whether it makes sense there is seen when the history is checked.
    pub fn push(&mut self, event: Event) {
        self.events.push(event);
    }

    /// All events; their places in this list are the numbers that a
    /// violation gives.
    #[must_use]
    pub fn events(&self) -> &[Event] {
        &self.events
    }
}

impl Extend<Event> for History {
    fn extend<T: IntoIterator<Item = Event>>(&mut self, events: T) {
        self.events.extend(events);
    }
}
