//! A server as its clients see it, and what can be asked of one that is under test.

use alloc::string::String;
use alloc::vec::Vec;
use core::ops::Range;

use crate::conformance::check::Promise;
use crate::flush::Advertised;
use crate::wire::Errno;

/// What a client asks for. Numbers are blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Operation {
    /// `NBD_CMD_FLUSH`.
    Flush,
    /// `NBD_CMD_READ`.
    Read {
        /// Which blocks.
        blocks: Range<u64>,
    },
    /// `NBD_CMD_CACHE`, or any other command that may fill a cache and returns nothing; a read
    /// where there is none.
    Load {
        /// Which blocks.
        blocks: Range<u64>,
    },
    /// `NBD_CMD_WRITE_ZEROES`.
    Zero {
        /// Which blocks.
        blocks: Range<u64>,
        /// `NBD_CMD_FLAG_FUA`.
        fua: bool,
    },
    /// `NBD_CMD_WRITE`.
    Write {
        /// Which blocks.
        blocks: Range<u64>,
        /// What is in them afterwards. Never 0, and never the same twice.
        content: u64,
        /// `NBD_CMD_FLAG_FUA`.
        fua: bool,
    },
}

/// A reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The tag of the operation.
    pub tag: u64,
    /// What was found in each block of a read, nothing for other operations; or the error.
    pub result: Result<Vec<u64>, Errno>,
}

/// What a server may do next, or the world do to it. Numbers choose among what is there, counted
/// from the oldest on and around again, so that every list of these can be carried out.
///
/// A server that works by itself, with threads of its own, cannot be told. It takes
/// [`Finish`](Self::Finish) and [`FinishFlush`](Self::FinishFlush) as occasions to wait for an
/// answer, and ignores the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Act {
    /// Carries out up to so many tasks that the coordinator has for it.
    Take(u8),
    /// A command takes effect and ends.
    Finish(usize),
    /// A backend flush ends.
    FinishFlush(usize),
    /// A command reads a block from storage, and is going to leave it in the cache.
    Fetch(usize, u64),
    /// A write takes effect on a block before it ends.
    Apply(usize, u64),
    /// A connection's cache writes a block back early.
    WriteBack(usize, u64),
    /// A connection's cache makes room, writing a block back if it has to.
    Evict(usize, u64),
    /// A fault: a command fails.
    Fail(usize),
    /// A fault: a backend flush fails.
    FailFlush(usize),
}

impl Act {
    /// Whether it is a failure that an unlucky, but honest backend has.
    #[must_use]
    pub const fn is_fault(self) -> bool {
        matches!(self, Self::Fail(_) | Self::FailFlush(_))
    }
}

/// A server does what no server may, whatever has been flushed: it breaks the protocol, answers
/// what was not asked, or is not there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Trouble(pub String);

impl Trouble {
    /// With this explanation.
    #[must_use]
    pub fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}

/// A server under test.
///
/// [`ModelServer`](super::ModelServer) is one over a model backend, for a coordinator, and
/// `StreamServer` one that is reached through streams. Implement it for a server that is
/// neither. Connections are numbered from 0 on, in the order in which they were opened, and no
/// number is used twice.
///
/// Each method may report [`Trouble`], which fails the property.
pub trait Server {
    /// How many blocks the image has that clients use.
    fn blocks(&self) -> u64;

    /// What it has promised if it has advertised multi-conn, or not. By default what the protocol
    /// says, for an image that is all zeroes at first.
    fn promise(&self, multi_conn: bool) -> Promise {
        if multi_conn {
            Promise::MULTI_CONN
        } else {
            Promise::SINGLE_CONNECTION
        }
    }

    /// A client connects: its backend handle may be opened, but is not ready to serve.
    ///
    /// # Errors
    ///
    /// If there is no connection to be had.
    fn connect(&mut self) -> Result<usize, Trouble>;

    /// The connection is ready, and this was advertised on it.
    ///
    /// # Errors
    ///
    /// If it is not.
    fn ready(&mut self, conn: usize) -> Result<Advertised, Trouble>;

    /// The client of a connection that is ready sends a command. Does not wait for the answer.
    ///
    /// # Errors
    ///
    /// If it cannot be sent.
    fn submit(&mut self, conn: usize, tag: u64, operation: &Operation) -> Result<(), Trouble>;

    /// Something happens, if it can.
    ///
    /// # Errors
    ///
    /// If that brings to light that the server is wrong.
    fn act(&mut self, act: Act) -> Result<(), Trouble>;

    /// An answer that has come, in the order in which they came.
    fn answer(&mut self) -> Option<Answer>;

    /// Everything that was asked for is done, without failures, until all is answered or nothing
    /// moves any more.
    ///
    /// # Errors
    ///
    /// If that brings to light that the server is wrong.
    fn settle(&mut self) -> Result<(), Trouble>;

    /// The client of a connection leaves. What it has not been answered, it does not hear of any
    /// more.
    ///
    /// # Errors
    ///
    /// If the server does not let it go.
    fn disconnect(&mut self, conn: usize) -> Result<(), Trouble>;

    /// What a crash would leave on permanent storage now, block by block, and is left alone where
    /// it cannot be said: `None`. For each block `choose` is given what can be left of it, and
    /// returns the number of what is.
    fn image(&self, choose: &mut dyn FnMut(u64, &[u64]) -> usize) -> Option<Vec<u64>> {
        let _ = choose;
        None
    }
}
