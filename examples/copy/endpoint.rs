//! The two ends of a copy, each a server or a file, behind one face.
//!
//! Both are asked without waiting, and answer in [`Done`]s. A file does what it is asked at once.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use nbd_proto::wire::{CommandType, TransmissionFlags};

use super::file::{DestinationFile, SourceFile};
use super::shared::connection::{Completion, Connection, Error, Settings};
use super::shared::stream::Patience;
use super::shared::uri::NbdUri;

/// Something that was asked of an end, and what came of it.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) command: CommandType,
    pub(crate) offset: u64,
    pub(crate) length: u64,
    /// What came with it; after a read that went well, the data.
    pub(crate) buffer: Vec<u8>,
    /// How it went; a failure in words.
    pub(crate) result: Result<(), String>,
}

impl From<Completion> for Done {
    fn from(completion: Completion) -> Self {
        Self {
            command: completion.request.kind,
            offset: completion.request.offset,
            length: completion.request.length,
            buffer: completion.buffer,
            result: completion.result.map_err(|failed| failed.to_string()),
        }
    }
}

/// How an end of a copy is to be got at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Server(NbdUri),
    File(Box<Path>),
}

impl Place {
    /// Takes an argument of the command line. What looks like a URI is one, or wrong; everything
    /// else is a file.
    pub(crate) fn parse(argument: &OsStr) -> Result<Self> {
        match argument.to_str() {
            Some(text) if NbdUri::is_meant(text) => {
                Ok(Self::Server(NbdUri::parse(text).with_context(|| {
                    format!("{text} (for a file of that name, write ./{text})")
                })?))
            }
            _ => Ok(Self::File(Path::new(argument).into())),
        }
    }
}

impl Place {
    /// Whether this is the same export, by the same way to its server.
    fn is_export_of(&self, uri: &NbdUri) -> bool {
        matches!(self, Self::Server(own)
            if (&own.transport, &own.export) == (&uri.transport, &uri.export))
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Server(uri) => uri.fmt(f),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

/// One end: a connection, or a file `F`.
#[derive(Debug)]
enum End<F> {
    Server(Box<Connection>),
    File(F),
}

/// Where the data comes from, or where it goes.
#[derive(Debug)]
pub(crate) struct Endpoint<F> {
    end: Option<End<F>>,
    place: Place,
    done: VecDeque<Done>,
}

pub(crate) type Source = Endpoint<SourceFile>;
pub(crate) type Destination = Endpoint<DestinationFile>;

impl<F> Endpoint<F> {
    const fn new(end: End<F>, place: Place) -> Self {
        Self {
            end: Some(end),
            place,
            done: VecDeque::new(),
        }
    }

    pub(crate) const fn place(&self) -> &Place {
        &self.place
    }

    /// The connection, while there is one.
    pub(crate) fn connection(&self) -> Option<&Connection> {
        match &self.end {
            Some(End::Server(connection)) => Some(connection),
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

    /// Notes what a file has done.
    fn file_did(
        &mut self,
        command: CommandType,
        (offset, length): (u64, u64),
        buffer: Vec<u8>,
        result: std::io::Result<()>,
    ) {
        self.done.push_back(Done {
            command,
            offset,
            length,
            buffer,
            result: result.map_err(|error| error.to_string()),
        });
    }
}

impl Source {
    pub(crate) fn open(place: Place, settings: &Settings<'_>) -> Result<Self> {
        let end = match &place {
            Place::Server(uri) => {
                let connection = Connection::open(uri, settings).context(place.to_string())?;
                End::Server(connection.into())
            }
            Place::File(path) => End::File(SourceFile::open(path).context(place.to_string())?),
        };
        Ok(Self::new(end, place))
    }

    pub(crate) fn size(&self) -> u64 {
        match &self.end {
            Some(End::Server(connection)) => connection.session().size(),
            Some(End::File(file)) => file.size(),
            None => 0,
        }
    }

    const fn file(&self) -> Option<&SourceFile> {
        match &self.end {
            Some(End::File(file)) => Some(file),
            _ => None,
        }
    }

    /// How many bytes from `offset` on are known to be zeroes without being read. A server could
    /// only be asked by block status.
    pub(crate) fn hole(&mut self, offset: u64) -> u64 {
        match &mut self.end {
            Some(End::File(file)) => file.hole(offset),
            _ => 0,
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
            Some(End::Server(connection)) => connection.read(offset, length, buffer),
            Some(End::File(file)) => {
                buffer.resize(length, 0);
                let result = file.read(offset, &mut buffer);
                let range = (offset, length as u64);
                self.file_did(CommandType::READ, range, buffer, result);
                Ok(())
            }
            None => Err(Error::Closed),
        }
    }
}

impl Destination {
    /// Opens the destination. Nothing in it is changed yet.
    pub(crate) fn open(place: Place, source: &Source, settings: &Settings<'_>) -> Result<Self> {
        let end = match &place {
            Place::Server(uri) => {
                ensure!(
                    !source.place().is_export_of(uri),
                    "source and destination are the same export: {uri}"
                );
                let connection = Connection::open(uri, settings).context(place.to_string())?;
                End::Server(connection.into())
            }
            Place::File(path) => {
                let file = DestinationFile::open(path, source.file());
                End::File(file.context(place.to_string())?)
            }
        };
        Ok(Self::new(end, place))
    }

    /// Makes sure that there is room for `size` bytes; a file's contents are thrown away.
    pub(crate) fn make_room(&mut self, size: u64) -> Result<()> {
        match &mut self.end {
            Some(End::Server(connection)) => check_room(connection, size),
            Some(End::File(file)) => file.make_room(size),
            None => Ok(()),
        }
        .with_context(|| self.place.to_string())
    }

    /// Whether [`flush`](Self::flush) can be used.
    pub(crate) fn has_flush(&self) -> bool {
        match self.connection() {
            Some(connection) => has(connection, TransmissionFlags::SEND_FLUSH),
            None => true,
        }
    }

    /// Whether there is something better for zeroes than to write them.
    pub(crate) fn has_zeroes(&self) -> bool {
        match &self.end {
            Some(End::Server(connection)) => has(connection, TransmissionFlags::SEND_WRITE_ZEROES),
            Some(End::File(file)) => file.is_sparse(),
            None => false,
        }
    }

    /// Makes a range, which was not written yet, read as zeroes; where [`has_zeroes`] says so.
    ///
    /// [`has_zeroes`]: Self::has_zeroes
    pub(crate) fn write_zeroes(&mut self, offset: u64, length: u64) -> Result<(), Error> {
        match &mut self.end {
            Some(End::Server(connection)) => connection.write_zeroes(offset, length),
            Some(End::File(_)) => {
                // It is sparse: there is nothing to be done.
                let range = (offset, length);
                self.file_did(CommandType::WRITE_ZEROES, range, Vec::new(), Ok(()));
                Ok(())
            }
            None => Err(Error::Closed),
        }
    }

    /// Writes the buffer to a range that was not written yet.
    pub(crate) fn write(&mut self, offset: u64, buffer: Vec<u8>) -> Result<(), Error> {
        match &mut self.end {
            Some(End::Server(connection)) => connection.write(offset, buffer),
            Some(End::File(file)) => {
                let result = file.write(offset, &buffer);
                let range = (offset, buffer.len() as u64);
                self.file_did(CommandType::WRITE, range, buffer, result);
                Ok(())
            }
            None => Err(Error::Closed),
        }
    }

    /// Asks for everything to be put on permanent storage.
    pub(crate) fn flush(&mut self) -> Result<(), Error> {
        match &mut self.end {
            Some(End::Server(connection)) => connection.flush(),
            Some(End::File(file)) => {
                let result = file.flush();
                self.file_did(CommandType::FLUSH, (0, 0), Vec::new(), result);
                Ok(())
            }
            None => Err(Error::Closed),
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_looks_like_a_uri_never_becomes_a_file() {
        for (argument, is_file) in [
            ("disk.img", true),
            ("./nbd://x", true),
            ("/dev/nbd0", true),
            ("a:b", true),
            ("-", true),
        ] {
            let place = Place::parse(OsStr::new(argument)).unwrap();
            assert_eq!(matches!(place, Place::File(_)), is_file, "{argument}");
        }
        for argument in [
            "nbd:localhost:10809",
            "http://host/",
            "nbd+unix://",
            "NBD:x",
        ] {
            assert!(Place::parse(OsStr::new(argument)).is_err(), "{argument}");
        }
    }
}
