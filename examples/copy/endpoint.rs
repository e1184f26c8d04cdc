//! The two ends of a copy, each a server or a file, behind one face.
//!
//! Both are asked without waiting, and answer in [`Done`]s. A file does what it is asked at once.
//! Of a server, every worker has a connection of its own; a file is shared by all.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use nbd_proto::wire::{CommandFlags, CommandType, Errno, TransmissionFlags};

use super::file::{DestinationFile, How, SourceFile};
use super::place::{Place, Remote};
use super::shared::connection::{Completion, Connection, Error, Extent, Settings};
use super::shared::stream::Patience;

/// Something that was asked of an end, and what came of it.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) command: CommandType,
    pub(crate) flags: CommandFlags,
    /// The name of the request among all of this end.
    pub(crate) id: u64,
    pub(crate) offset: u64,
    pub(crate) length: u64,
    /// What came with it; after a read that went well, the data.
    pub(crate) buffer: Vec<u8>,
    /// What a block status found.
    pub(crate) extents: Vec<Extent>,
    pub(crate) result: Result<(), Why>,
}

/// Why something failed.
#[derive(Debug)]
pub(crate) struct Why {
    pub(crate) words: String,
    /// Whether it is not that it failed, but that it cannot be done.
    pub(crate) unsupported: bool,
}

impl From<Completion> for Done {
    fn from(completion: Completion) -> Self {
        let request = completion.request;
        Self {
            command: request.kind,
            flags: request.flags,
            id: request.cookie.0,
            offset: request.offset,
            length: request.length,
            buffer: completion.buffer,
            extents: completion.extents,
            result: completion.result.map_err(|failed| Why {
                words: failed.to_string(),
                unsupported: failed.errno == Errno::ENOTSUP,
            }),
        }
    }
}

/// One end: a connection, or a file `F`.
#[derive(Debug)]
enum End<F> {
    Server(Box<Connection>),
    File(Arc<F>),
}

/// Where the data comes from, or where it goes.
#[derive(Debug)]
pub(crate) struct Endpoint<F> {
    end: Option<End<F>>,
    place: Arc<Place>,
    done: VecDeque<Done>,
    /// Names for what a file is asked.
    next_id: u64,
}

pub(crate) type Source = Endpoint<SourceFile>;
pub(crate) type Destination = Endpoint<DestinationFile>;

impl<F> Endpoint<F> {
    const fn new(end: End<F>, place: Arc<Place>) -> Self {
        Self {
            end: Some(end),
            place,
            done: VecDeque::new(),
            next_id: 0,
        }
    }

    /// The same end for another worker: a file again, or another connection.
    pub(crate) fn another(&self, settings: &Settings<'_>) -> Result<Self, Error> {
        let end = match (&self.end, &*self.place) {
            (Some(End::File(file)), _) => End::File(Arc::clone(file)),
            (_, Place::Server(remote)) => End::Server(Box::new(open(remote, settings)?)),
            (_, Place::File(_)) => return Err(Error::Closed),
        };
        Ok(Self::new(end, Arc::clone(&self.place)))
    }

    /// How long the server may be silent from now on.
    pub(crate) fn set_timeout(&mut self, timeout: Duration) {
        if let Some(End::Server(connection)) = &mut self.end {
            connection.set_timeout(timeout);
        }
    }

    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// The connection, while there is one.
    pub(crate) fn connection(&self) -> Option<&Connection> {
        match &self.end {
            Some(End::Server(connection)) => Some(connection),
            _ => None,
        }
    }

    /// The file, if it is one.
    pub(crate) fn file(&self) -> Option<&F> {
        match &self.end {
            Some(End::File(file)) => Some(file),
            _ => None,
        }
    }

    /// Moves what can be moved without waiting. After an error the connection is gone.
    pub(crate) fn drive(&mut self) -> Result<(), Error> {
        let Some(End::Server(connection)) = &mut self.end else {
            return Ok(());
        };
        let result = connection.drive();
        while let Some(completion) = connection.next_completed() {
            self.done.push_back(completion.into());
        }
        if result.is_err() {
            self.end = None;
        }
        result
    }

    /// Whether nothing is outstanding.
    pub(crate) fn is_idle(&self) -> bool {
        self.done.is_empty() && self.connection().is_none_or(Connection::is_idle)
    }

    pub(crate) fn next_done(&mut self) -> Option<Done> {
        self.done.pop_front()
    }

    /// Lets go of the end, in good order if there is something left to let go of.
    pub(crate) fn close(&mut self, deadline: Instant) {
        if let Some(End::Server(connection)) = self.end.take() {
            connection.disconnect(Patience {
                deadline,
                signals: None,
            });
        }
    }

    /// What the connection's error means to the user.
    pub(crate) fn explain(&self, error: &Error) -> String {
        explain(&self.place, error)
    }

    /// Notes what a file has done; returns the name of that.
    fn file_did(
        &mut self,
        command: CommandType,
        (offset, length): (u64, u64),
        buffer: Vec<u8>,
        result: io::Result<()>,
    ) -> u64 {
        self.next_id += 1;
        self.done.push_back(Done {
            command,
            flags: CommandFlags::empty(),
            id: self.next_id,
            offset,
            length,
            buffer,
            extents: Vec::new(),
            result: result.map_err(|error| Why {
                words: error.to_string(),
                unsupported: false,
            }),
        });
        self.next_id
    }
}

fn open(remote: &Remote, settings: &Settings<'_>) -> Result<Connection, Error> {
    Connection::open(&remote.uri, remote.tls.as_ref(), settings)
}

fn open_first(place: &Place, remote: &Remote, settings: &Settings<'_>) -> Result<Connection> {
    open(remote, settings).map_err(|error| anyhow!(explain(place, &error)))
}

fn explain(place: &Place, error: &Error) -> String {
    match error.advice() {
        Some(advice) => format!("{place}: {error}; {advice}"),
        None => format!("{place}: {error}"),
    }
}

/// What is known of a range of the source.
#[derive(Debug)]
pub(crate) enum Known {
    /// All that there is to know.
    Now(Vec<Extent>),
    /// It is asked; a [`Done`] will tell.
    Later,
}

impl Source {
    pub(crate) fn open(place: Place, settings: &Settings<'_>) -> Result<Self> {
        let end = match &place {
            Place::Server(remote) => {
                let connection = open_first(&place, remote, settings)?;
                End::Server(connection.into())
            }
            Place::File(path) => {
                let file = SourceFile::open(path).context(place.to_string())?;
                End::File(Arc::new(file))
            }
        };
        Ok(Self::new(end, Arc::new(place)))
    }

    pub(crate) fn size(&self) -> u64 {
        match &self.end {
            Some(End::Server(connection)) => connection.session().size(),
            Some(End::File(file)) => file.size(),
            None => 0,
        }
    }

    /// Whether it can be asked what reads as zeroes.
    pub(crate) fn has_status(&self) -> bool {
        self.connection().is_none_or(Connection::has_status)
    }

    /// Asks which parts of a range are known to read as zeroes.
    pub(crate) fn status(&mut self, range: Range<u64>) -> Result<Known, Error> {
        match &mut self.end {
            Some(End::Server(connection)) if connection.has_status() => {
                connection.block_status(range.start, range.end - range.start)?;
                Ok(Known::Later)
            }
            Some(End::Server(_)) => Ok(Known::Now(vec![Extent { range, zero: false }])),
            Some(End::File(file)) => Ok(Known::Now(file.extents(range))),
            None => Err(Error::Closed),
        }
    }

    /// Asks for `length` bytes.
    pub(crate) fn read(
        &mut self,
        offset: u64,
        length: usize,
        mut buffer: Vec<u8>,
    ) -> Result<(), Error> {
        match &mut self.end {
            Some(End::Server(connection)) => {
                connection.read(offset, length, buffer)?;
            }
            Some(End::File(file)) => {
                buffer.resize(length, 0);
                let result = file.read(offset, &mut buffer);
                let range = (offset, length as u64);
                self.file_did(CommandType::READ, range, buffer, result);
            }
            None => return Err(Error::Closed),
        }
        Ok(())
    }
}

/// How zeroes get to a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Zeroing {
    /// They are there already.
    Unneeded,
    /// By a command, without moving them.
    Command,
    /// As any other data.
    Written,
}

impl Destination {
    /// Opens the destination. Nothing in it is changed yet.
    pub(crate) fn open(
        place: Place,
        source: &Source,
        how: How,
        settings: &Settings<'_>,
    ) -> Result<Self> {
        let end = match &place {
            Place::Server(remote) => {
                ensure!(
                    !source.place().is_same_export(&place),
                    "source and destination are the same export: {place}"
                );
                let connection = open_first(&place, remote, settings)?;
                End::Server(connection.into())
            }
            Place::File(path) => {
                let file = DestinationFile::open(path, source.file(), how);
                End::File(Arc::new(file.context(place.to_string())?))
            }
        };
        Ok(Self::new(end, Arc::new(place)))
    }

    /// Makes sure that there is room for `size` bytes; a file's contents are thrown away. Before
    /// there is [`another`](Self::another).
    pub(crate) fn make_room(&mut self, size: u64) -> Result<()> {
        match &mut self.end {
            Some(End::Server(connection)) => check_room(connection, size),
            Some(End::File(file)) => match Arc::get_mut(file) {
                Some(file) => file.make_room(size),
                None => Ok(()),
            },
            None => Ok(()),
        }
        .with_context(|| self.place.to_string())
    }

    /// Makes sure that a server has room for `size` bytes, and changes nothing.
    pub(crate) fn check_room(&self, size: u64) -> Result<()> {
        match self.connection() {
            Some(connection) => check_room(connection, size),
            None => Ok(()),
        }
        .with_context(|| self.place.to_string())
    }

    /// Whether the server refuses to zero what it cannot zero fast, if it is asked to.
    pub(crate) fn has_fast_zero(&self) -> bool {
        self.connection()
            .is_some_and(|connection| has(connection, TransmissionFlags::SEND_FAST_ZERO))
    }

    /// How zeroes get there. A server does not say whether it has zeroes where it was never
    /// written; a user may know.
    pub(crate) fn zeroing(&self, is_zero: bool) -> Zeroing {
        let can = match &self.end {
            _ if is_zero => return Zeroing::Unneeded,
            Some(End::Server(connection)) => has(connection, TransmissionFlags::SEND_WRITE_ZEROES),
            Some(End::File(file)) if file.is_zero() => return Zeroing::Unneeded,
            Some(End::File(file)) => file.can_zero(),
            None => false,
        };
        if can {
            Zeroing::Command
        } else {
            Zeroing::Written
        }
    }

    /// Makes a range, which was not written yet, read as zeroes; where [`zeroing`](Self::zeroing)
    /// says that it can. Returns the request's name, or nothing if it turns out that it cannot.
    pub(crate) fn write_zeroes(
        &mut self,
        offset: u64,
        length: u64,
        flags: CommandFlags,
    ) -> Result<Option<u64>, Error> {
        match &mut self.end {
            Some(End::Server(connection)) => {
                let cookie = connection.write_zeroes(offset, length, flags)?;
                Ok(Some(cookie.0))
            }
            Some(End::File(file)) => {
                let result = match file.zero(offset, length) {
                    Ok(true) => Ok(()),
                    Ok(false) => return Ok(None),
                    Err(error) => Err(error),
                };
                let range = (offset, length);
                Ok(Some(self.file_did(
                    CommandType::WRITE_ZEROES,
                    range,
                    Vec::new(),
                    result,
                )))
            }
            None => Err(Error::Closed),
        }
    }

    /// Writes the buffer to a range that was not written yet. Returns the request's name.
    pub(crate) fn write(
        &mut self,
        offset: u64,
        buffer: Vec<u8>,
        flags: CommandFlags,
    ) -> Result<u64, Error> {
        match &mut self.end {
            Some(End::Server(connection)) => Ok(connection.write(offset, buffer, flags)?.0),
            Some(End::File(file)) => {
                let result = file.write(offset, &buffer);
                let range = (offset, buffer.len() as u64);
                Ok(self.file_did(CommandType::WRITE, range, buffer, result))
            }
            None => Err(Error::Closed),
        }
    }

    /// Asks for `length` bytes, to see what was written.
    pub(crate) fn read(
        &mut self,
        offset: u64,
        length: usize,
        mut buffer: Vec<u8>,
    ) -> Result<(), Error> {
        match &mut self.end {
            Some(End::Server(connection)) => {
                connection.read(offset, length, buffer)?;
            }
            Some(End::File(file)) => {
                buffer.resize(length, 0);
                let result = file.read(offset, &mut buffer);
                let range = (offset, length as u64);
                self.file_did(CommandType::READ, range, buffer, result);
            }
            None => return Err(Error::Closed),
        }
        Ok(())
    }

    /// Asks for everything to be put on permanent storage.
    pub(crate) fn flush(&mut self) -> Result<(), Error> {
        match &mut self.end {
            Some(End::Server(connection)) => {
                connection.flush()?;
            }
            Some(End::File(file)) => {
                let result = file.flush();
                self.file_did(CommandType::FLUSH, (0, 0), Vec::new(), result);
            }
            None => return Err(Error::Closed),
        }
        Ok(())
    }
}

fn has(connection: &Connection, flag: TransmissionFlags) -> bool {
    connection.session().flags().contains(flag)
}

fn check_room(connection: &Connection, size: u64) -> Result<()> {
    let room = connection.session().size();
    ensure!(
        !has(connection, TransmissionFlags::READ_ONLY),
        "the destination is read-only: nothing can be written to it"
    );
    ensure!(
        size <= room,
        "the destination has {room} bytes and the source {size}: it needs to be larger"
    );
    Ok(())
}
