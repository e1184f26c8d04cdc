//! Sockets that clients connect to, and the loop that accepts them.

use std::fs;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, poll};

use crate::log::warn;
use crate::options::Sockets;
use crate::server::Server;
use crate::stream::Stream;

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
        let listener = UnixListener::bind(path).with_context(|| {
            let path = path.display();
            format!("cannot listen on {path}; if it is left over from a server, remove it")
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

    /// The URI of an export that clients reach here.
    pub(crate) fn uri(&self, export: &str) -> String {
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
                    none if none.is_empty() => format!("nbd://{host}{port}"),
                    export => format!("nbd://{host}{port}/{export}"),
                }
            }
            Self::Unix(_, path) => {
                let path = path.to_string_lossy();
                let path = percent_encoding::utf8_percent_encode(&path, QUERY);
                format!("nbd+unix:///{export}?socket={path}")
            }
        }
    }

    /// Takes one client, if one is there.
    fn accept(&self) -> io::Result<(Stream, String)> {
        match self {
            Self::Tcp(listener, _) => {
                let (stream, from) = listener.accept()?;
                stream.set_nonblocking(false)?;
                // proto.md "Protocol phases": both sides SHOULD disable Nagle's algorithm.
                stream.set_nodelay(true)?;
                Ok((Stream::Tcp(stream), from.to_string()))
            }
            Self::Unix(listener, path) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(false)?;
                Ok((Stream::Unix(stream), path.display().to_string()))
            }
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

/// Accepts clients until something arrives on `stop`.
pub(crate) fn accept_until(
    stop: &mut UnixStream,
    listeners: &[Listener],
    server: &Arc<Server>,
) -> Result<()> {
    loop {
        let mut fds = vec![PollFd::new(stop, PollFlags::IN)];
        fds.extend(listeners.iter().map(|listener| {
            let fd = match listener {
                Listener::Tcp(listener, _) => listener.as_fd(),
                Listener::Unix(listener, _) => listener.as_fd(),
            };
            PollFd::from_borrowed_fd(fd, PollFlags::IN)
        }));
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot wait for clients"),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        if ready.first() == Some(&true) {
            // What it says does not matter, only that it was said.
            let _ = stop.read(&mut [0; 16]);
            return Ok(());
        }
        for (listener, _) in listeners
            .iter()
            .zip(&ready[1..])
            .filter(|(_, ready)| **ready)
        {
            let welcomed = listener
                .accept()
                .and_then(|(stream, from)| server.welcome(stream, &from));
            match welcomed {
                Ok(()) => {}
                // The client is gone again.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted
                    ) => {}
                Err(error) => {
                    warn(format_args!("cannot take a client: {error}"));
                    // Most likely there are too many; give some of them time to go.
                    thread::sleep(Duration::from_millis(100));
                }
            }
        }
    }
}
