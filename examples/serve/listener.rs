//! Sockets that clients connect to, and the loop that accepts them.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::log::Seldom;
use super::options::Sockets;
use super::server::Server;
use super::signals::Signals;
use super::stream::Stream;

/// The port of the protocol (proto.md "Newstyle negotiation").
pub(crate) const PORT: u16 = 10809;

pub(crate) enum Listener {
    Tcp(TcpListener, SocketAddr),
    Unix(UnixListener, PathBuf),
}

impl Listener {
    /// Opens all sockets that the user wants.
    pub(crate) fn open(sockets: &Sockets) -> Result<Vec<Self>> {
        let mut listeners = Vec::new();
        let tcp = sockets.unix.is_empty() || sockets.port.is_some() || sockets.bind.is_some();
        if tcp {
            let ip = sockets.bind.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
            let address = SocketAddr::new(ip, sockets.port.unwrap_or(PORT));
            listeners.push(Self::tcp(address)?);
        }
        for path in &sockets.unix {
            listeners.push(Self::unix(path)?);
        }
        Ok(listeners)
    }

    fn tcp(address: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(address).with_context(|| {
            format!("cannot listen on {address}; choose another address with --port or --bind")
        })?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        Ok(Self::Tcp(listener, address))
    }

    fn unix(path: &Path) -> Result<Self> {
        let listener = UnixListener::bind(path).map_err(|error| {
            let advice = match error.kind() {
                io::ErrorKind::AddrInUse => "; if it is left over from a server, remove it",
                io::ErrorKind::NotFound => "; create its directory",
                io::ErrorKind::InvalidInput => "; choose a shorter path",
                _ => "",
            };
            anyhow!("cannot listen on {}{advice}: {error}", path.display())
        })?;
        listener.set_nonblocking(true)?;
        Ok(Self::Unix(listener, path.to_owned()))
    }

    /// Where it listens, in the form of the line that says so.
    pub(crate) fn address(&self) -> String {
        match self {
            Self::Tcp(_, address) => address.to_string(),
            Self::Unix(_, path) => format!("unix:{}", path.display()),
        }
    }

    /// The URI of an export that clients reach here, over TLS or not.
    pub(crate) fn uri(&self, export: &str, tls: bool) -> String {
        let scheme = if tls { "nbds" } else { "nbd" };
        let export = percent_encoding::utf8_percent_encode(export, PATH);
        match self {
            Self::Tcp(_, address) => {
                let host = match address.ip() {
                    ip if ip.is_unspecified() || ip == IpAddr::V4(Ipv4Addr::LOCALHOST) => {
                        "localhost".to_owned()
                    }
                    IpAddr::V4(ip) => ip.to_string(),
                    IpAddr::V6(ip) => format!("[{ip}]"),
                };
                let port = match address.port() {
                    PORT => String::new(),
                    port => format!(":{port}"),
                };
                match export.to_string() {
                    none if none.is_empty() => format!("{scheme}://{host}{port}"),
                    export => format!("{scheme}://{host}{port}/{export}"),
                }
            }
            Self::Unix(_, path) => {
                let path = path.to_string_lossy();
                let path = percent_encoding::utf8_percent_encode(&path, QUERY);
                format!("{scheme}+unix:///{export}?socket={path}")
            }
        }
    }

    /// Takes one client, if one is there.
    fn accept(&self) -> io::Result<Option<(Stream, String)>> {
        let accepted = match self {
            Self::Tcp(listener, _) => listener
                .accept()
                .map(|(stream, from)| (Stream::tcp(stream), from.to_string())),
            Self::Unix(listener, path) => listener
                .accept()
                .map(|(stream, _)| (Stream::unix(stream), path.display().to_string())),
        };
        match accepted {
            Ok((Ok(stream), from)) => Ok(Some((stream, from))),
            // The client is gone again.
            Ok((Err(_), _)) => Ok(None),
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock
                | io::ErrorKind::Interrupted
                | io::ErrorKind::ConnectionAborted
                | io::ErrorKind::ConnectionReset => Ok(None),
                _ => Err(error),
            },
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener, _) => listener.as_fd(),
            Self::Unix(listener, _) => listener.as_fd(),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self {
            // It may have been removed by others; it has no use any more in any case.
            let _ = fs::remove_file(path);
        }
    }
}

/// What a path may contain in a URI as it is (RFC 3986), less what separates its parts.
const PATH: &percent_encoding::AsciiSet = &percent_encoding::NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

const QUERY: &percent_encoding::AsciiSet = &PATH.remove(b'/');

/// How long no client is taken after one could not be: most likely there are too many, and some
/// may go.
const PAUSE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

static CANNOT_TAKE: Seldom = Seldom::new();

/// Accepts clients until the user wants the server to stop. Nothing else ends it: what the system
/// cannot give now it may be able to give later.
pub(crate) fn accept_until(signals: &Signals, listeners: &[Listener], server: &Arc<Server>) {
    while signals.caught().is_none() {
        if let Err(error) = accept_some(signals, listeners, server) {
            CANNOT_TAKE.warn(format_args!("cannot take a client: {error}"));
            // Should this fail too, then at once: it is tried again as fast as clients come.
            let _ = poll(&mut [PollFd::new(signals, PollFlags::IN)], Some(&PAUSE));
        }
    }
}

/// Waits for something to happen, and takes a client from each listener that has some.
fn accept_some(signals: &Signals, listeners: &[Listener], server: &Arc<Server>) -> io::Result<()> {
    let mut fds = vec![PollFd::new(signals, PollFlags::IN)];
    fds.extend(
        listeners
            .iter()
            .map(|listener| PollFd::new(listener, PollFlags::IN)),
    );
    match poll(&mut fds, None) {
        Ok(_) => {}
        Err(rustix::io::Errno::INTR) => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    if fds.first().is_some_and(|fd| !fd.revents().is_empty()) {
        return Ok(());
    }
    let ready = listeners
        .iter()
        .zip(fds.iter().skip(1))
        .filter(|(_, fd)| !fd.revents().is_empty());
    for (listener, _) in ready {
        if let Some((stream, from)) = listener.accept()? {
            server.welcome(stream, &from)?;
        }
    }
    Ok(())
}
