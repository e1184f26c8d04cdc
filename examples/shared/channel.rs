//! The bytes of a connection in transmission, with TLS or without, never waiting for them.

use std::io::{self, BufReader, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use nbd_proto::io::MaybeTls;
use rustix::event::PollFlags;
use rustls::ClientConnection;

use super::stream::{Patience, Patient, Stream};
use super::tls::TlsStream;

/// Records are read many at once: rustls alone asks for 4 KiB at a time.
const INPUT: usize = 256 << 10;

/// What a handshake with a deadline ends on.
pub(crate) type Shaken<'a> = MaybeTls<Patient<'a, Stream>, TlsStream<'a>>;

/// A socket that does not block, or TLS over one.
#[derive(Debug)]
pub(crate) enum Channel {
    Plain(Stream),
    Tls(Box<Tls>),
}

/// TLS whose records come and go when the socket lets them.
#[derive(Debug)]
pub(crate) struct Tls {
    session: ClientConnection,
    socket: BufReader<Stream>,
}

impl TryFrom<Shaken<'_>> for Channel {
    type Error = io::Error;

    fn try_from(shaken: Shaken<'_>) -> io::Result<Self> {
        Ok(match shaken {
            MaybeTls::Plain(patient) => Self::Plain(patient.stream),
            MaybeTls::Tls(stream) => {
                let (session, patient) = stream.into_parts()?;
                Self::Tls(Box::new(Tls {
                    session,
                    socket: BufReader::with_capacity(INPUT, patient.stream),
                }))
            }
        })
    }
}

impl Channel {
    /// Whether something that was taken by a write has not gone to the socket yet.
    pub(crate) fn wants_write(&self) -> bool {
        match self {
            Self::Plain(_) => false,
            Self::Tls(tls) => tls.session.wants_write(),
        }
    }

    /// Says goodbye in these words, and waits for them to be taken for as long as patience lasts.
    pub(crate) fn leave(&mut self, words: &[u8], patience: Patience<'_>) -> io::Result<()> {
        let mut words = words;
        while !words.is_empty() {
            match self.write(words) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => words = words.get(count..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    patience.wait(self.as_fd(), PollFlags::OUT)?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if let Self::Tls(tls) = self {
            tls.session.send_close_notify();
        }
        while self.wants_write() {
            match self.flush() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    patience.wait(self.as_fd(), PollFlags::OUT)?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => result?,
            }
        }
        Ok(())
    }

    /// Tells the server that nothing more will be sent.
    pub(crate) fn shutdown(&self) {
        match self {
            Self::Plain(stream) => stream.shutdown(),
            Self::Tls(tls) => tls.socket.get_ref().shutdown(),
        }
    }
}

impl Tls {
    /// Gives the socket what it takes. What is left then makes
    /// [`WouldBlock`](io::ErrorKind::WouldBlock).
    fn push(&mut self) -> io::Result<()> {
        while self.session.wants_write() {
            if self.session.write_tls(self.socket.get_mut())? == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
        }
        Ok(())
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        // No more is taken before the last is gone, so that no more than that is in memory.
        self.push()?;
        let taken = self.session.writer().write_vectored(parts)?;
        match self.push() {
            // It is taken all the same, and some of it may have gone: a server may answer that, and
            // nobody may send it again. If the socket has failed, it fails with the next, too.
            Err(_) if taken > 0 => Ok(taken),
            result => result.map(|()| taken),
        }
    }

    fn read_vectored(&mut self, parts: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let mut count = 0;
        for part in parts {
            if count > 0 {
                // What is there already is taken along, but not waited for.
                match self.session.reader().read(part) {
                    Ok(more) => count += more,
                    Err(_) => break,
                }
            } else {
                count = self.read(part)?;
            }
            if count < part.len() {
                break;
            }
        }
        Ok(count)
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.session.reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // Whether something is missing, the protocol inside knows.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                result => return result,
            }
            self.session.read_tls(&mut self.socket)?;
            self.session
                .process_new_packets()
                .map_err(|why| io::Error::new(io::ErrorKind::InvalidData, why))?;
        }
    }
}

impl Read for Channel {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(buffer),
            Self::Tls(tls) => tls.read(buffer),
        }
    }

    fn read_vectored(&mut self, parts: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read_vectored(parts),
            Self::Tls(tls) => tls.read_vectored(parts),
        }
    }
}

impl Write for Channel {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(buffer)])
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.write_vectored(parts),
            Self::Tls(tls) => tls.write_vectored(parts),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(_) => Ok(()),
            Self::Tls(tls) => tls.push(),
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Plain(stream) => stream.as_fd(),
            Self::Tls(tls) => tls.socket.get_ref().as_fd(),
        }
    }
}
