//! A small play: what is sent on which connection, and what is waited for in between.

use nbd_proto::conformance::Extent;

/// A part in a script; which connection plays it is decided when it is played.
pub(crate) type Role = usize;

/// A command of a script, by its number.
pub(crate) type Tag = usize;

/// A command to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Read(Extent),
    Write(Extent, Fua),
    Zero(Extent, Fua),
    Trim(Extent, Fua),
    Flush,
    /// `NBD_CMD_CACHE`, which promises nothing; but it may fill a cache.
    Cache(Extent),
    /// `NBD_CMD_BLOCK_STATUS`, likewise.
    Status(Extent),
}

/// Whether a command carries `NBD_CMD_FLAG_FUA`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fua {
    No,
    Yes,
}

/// What commands are alike in how long they take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write,
    Flush,
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Farewell {
    /// With `NBD_CMD_DISC`.
    Polite,
    /// The socket is closed.
    Abrupt,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    Send(Tag, Role, What),
    /// Until that is answered.
    Wait(Tag),
    /// Until all is answered.
    WaitAll,
    /// For so many percent of the time that such a command usually takes.
    Pause(Kind, u64),
    /// Disconnects, once all that the connection has in flight is answered.
    Leave(Role, Farewell),
    /// Connects again.
    Join(Role),
}

/// What is to be done, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Script {
    pub(crate) acts: Vec<Act>,
    tags: usize,
}

impl What {
    pub(crate) const fn kind(self) -> Kind {
        match self {
            Self::Read(_) | Self::Cache(_) | Self::Status(_) => Kind::Read,
            Self::Write(..) | Self::Zero(..) | Self::Trim(..) => Kind::Write,
            Self::Flush => Kind::Flush,
        }
    }

    pub(crate) const fn extent(self) -> Option<Extent> {
        match self {
            Self::Read(extent)
            | Self::Write(extent, _)
            | Self::Zero(extent, _)
            | Self::Trim(extent, _)
            | Self::Cache(extent)
            | Self::Status(extent) => Some(extent),
            Self::Flush => None,
        }
    }

    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Read(_) => "read",
            Self::Write(..) => "write",
            Self::Zero(..) => "write zeroes",
            Self::Trim(..) => "trim",
            Self::Flush => "flush",
            Self::Cache(_) => "cache",
            Self::Status(_) => "block status",
        }
    }
}

impl Script {
    pub(crate) fn send(&mut self, role: Role, what: What) -> Tag {
        let tag = self.tags;
        self.tags += 1;
        self.acts.push(Act::Send(tag, role, what));
        tag
    }

    pub(crate) fn wait(&mut self, tag: Tag) {
        self.acts.push(Act::Wait(tag));
    }

    /// Sends, and waits for the answer.
    pub(crate) fn ask(&mut self, role: Role, what: What) {
        let tag = self.send(role, what);
        self.wait(tag);
    }

    pub(crate) fn wait_all(&mut self) {
        self.acts.push(Act::WaitAll);
    }

    pub(crate) fn pause(&mut self, kind: Kind, percent: u64) {
        self.acts.push(Act::Pause(kind, percent));
    }

    pub(crate) fn leave(&mut self, role: Role, farewell: Farewell) {
        self.acts.push(Act::Leave(role, farewell));
    }

    pub(crate) fn join(&mut self, role: Role) {
        self.acts.push(Act::Join(role));
    }

    /// Whether a connection ends in it. Of such scripts one is played at a time: two could wait
    /// for each other's connections.
    pub(crate) fn travels(&self) -> bool {
        let travels = |act: &Act| matches!(act, Act::Leave(..) | Act::Join(_));
        self.acts.iter().any(travels)
    }
}
