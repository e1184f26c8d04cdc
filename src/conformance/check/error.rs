//! Why a history was not found to be good.

use alloc::boxed::Box;

use crate::conformance::violation::Violation;

/// Why a check ended, or passed an event over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CheckError {
    /// The server broke its promise. This is why nobody can say it did not.
    #[error("{0}")]
    Violation(Box<Violation>),
    /// The events are not the history of any client.
    #[error("event {event} is not part of any history: {why}")]
    Malformed {
        /// The number of the event, counted from 0.
        event: u64,
        /// What is wrong with it.
        why: Malformed,
    },
}

/// What makes an event impossible where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Malformed {
    /// A client sent a cookie that it was waiting for.
    #[error("connection {conn} has a command in flight with cookie {cookie}")]
    CookieInUse {
        /// The connection.
        conn: u32,
        /// The cookie.
        cookie: u64,
    },
    /// A reply to nothing.
    #[error("connection {conn} has no command in flight with cookie {cookie}")]
    NoSuchCommand {
        /// The connection.
        conn: u32,
        /// The cookie.
        cookie: u64,
    },
    /// Between a crash and what serves after it.
    #[error("the server has crashed")]
    ServerIsDown,
    /// Reopened without a crash.
    #[error("the server has not crashed")]
    NoCrash,
    /// An extent that is not a number of whole blocks.
    #[error("the extent is not a multiple of the granule")]
    Misaligned,
    /// An extent without any bytes, or beyond what can be addressed.
    #[error("the extent is empty, or too far out")]
    NoExtent,
    /// An extent of more than 2^20 blocks.
    #[error("the extent has too many blocks for this granule")]
    TooLong,
    /// [`Content::MIXED`](crate::conformance::Content::MIXED) is nothing that can be written.
    #[error("a mixture cannot be written")]
    WritesMixture,
    /// Data for what is not a read, or none for a read.
    #[error("the answer does not suit the command")]
    WrongOutcome,
    /// Data for more or fewer blocks than were asked for.
    #[error("the answer is about another number of blocks")]
    WrongCount,
}
