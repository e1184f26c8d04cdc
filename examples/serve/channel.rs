//! What the server and one client talk over: a socket, and TLS on it once that was started.

use std::fmt::Debug;
use std::io::{self, IoSlice, Read, Write};
use std::net::Shutdown;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use super::stream::{Stream, Until};
use super::tls::{Offer, Tls};

/// How long the end of TLS may take: nobody depends on it.
const FAREWELL: Duration = Duration::from_secs(1);

pub(crate) struct Channel {
    socket: Stream,
    /// Once it is there, nothing is read from the socket or written to it but through it.
    tls: OnceLock<Tls>,
}

impl Channel {
    pub(crate) const fn new(socket: Stream) -> Self {
        Self {
            socket,
            tls: OnceLock::new(),
        }
    }

    /// See [`Stream::is_by_segment`].
    pub(crate) const fn is_by_segment(&self) -> bool {
        self.socket.is_by_segment()
    }

    /// Ends reading, writing or both; whoever is blocked in it returns.
    pub(crate) fn shutdown(&self, how: Shutdown) {
        self.socket.shutdown(how);
    }

    /// What TLS agreed on, if it was started.
    pub(crate) fn tls_protocol(&self) -> Option<impl Debug + use<>> {
        self.tls.get().map(Tls::protocol)
    }

    /// Says that nothing more comes, where there is a way to, and ends.
    pub(crate) fn close(&self) {
        if let Some(tls) = self.tls.get() {
            let mut socket = Until::new(&self.socket, Instant::now() + FAREWELL);
            // The client may be gone.
            let _ = tls.close(&mut socket);
        }
        self.shutdown(Shutdown::Both);
    }

    pub(crate) const fn until(&self, deadline: Instant) -> ChannelUntil<'_> {
        ChannelUntil {
            channel: self,
            socket: Until::new(&self.socket, deadline),
        }
    }
}

impl Read for &Channel {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.tls.get() {
            None => (&self.socket).read(buffer),
            Some(tls) => tls.read(&mut &self.socket, buffer),
        }
    }
}

impl Write for &Channel {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        match self.tls.get() {
            None => (&self.socket).write_vectored(parts),
            Some(tls) => tls.write(&mut &self.socket, parts),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The channel up to some time, as [`Until`].
pub(crate) struct ChannelUntil<'c> {
    channel: &'c Channel,
    socket: Until<'c>,
}

impl ChannelUntil<'_> {
    /// Starts TLS, within the same time.
    pub(crate) fn start_tls(mut self, offer: &Offer) -> io::Result<Self> {
        let tls = offer.accept(&mut self.socket)?;
        match self.channel.tls.set(tls) {
            Ok(()) => Ok(self),
            Err(_) => Err(io::Error::other("TLS runs already")),
        }
    }
}

impl Read for ChannelUntil<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.channel.tls.get() {
            None => self.socket.read(buffer),
            Some(tls) => tls.read(&mut self.socket, buffer),
        }
    }
}

impl Write for ChannelUntil<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        match self.channel.tls.get() {
            None => self.socket.write_vectored(parts),
            Some(tls) => tls.write(&mut self.socket, parts),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
