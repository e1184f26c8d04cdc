//! Sockets that never block, and waiting for them with a deadline.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::addr::SocketAddrArg;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, connect, socket, sockopt};

use super::signals::Signals;
use super::uri::Transport;

/// How long to wait before a server with a full queue is asked again.
const QUEUE_FULL: Duration = Duration::from_millis(20);

/// A connected socket that does not block.
#[derive(Debug)]
pub(crate) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// How long to wait, and what else to listen to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience<'a> {
    pub(crate) deadline: Instant,
    /// Signals that end the waiting; without, it goes on to the deadline.
    pub(crate) signals: Option<&'a Signals>,
}

impl Patience<'_> {
    /// Waits until one of `events` is there. At the deadline the error is
    /// [`TimedOut`](io::ErrorKind::TimedOut).
    ///
    /// # Errors
    ///
    /// Also when a signal came. That is not [`Interrupted`](io::ErrorKind::Interrupted), which
    /// drivers take for a reason to try again.
    pub(crate) fn wait(&self, fd: BorrowedFd<'_>, events: PollFlags) -> io::Result<()> {
        loop {
            if self.signals.and_then(Signals::caught).is_some() {
                return Err(io::Error::other("stopped by a signal"));
            }
            let Some(left) = self.deadline.checked_duration_since(Instant::now()) else {
                return Err(io::ErrorKind::TimedOut.into());
            };
            let mut fds = vec![PollFd::from_borrowed_fd(fd, events)];
            fds.extend(self.signals.map(|pipe| PollFd::new(pipe, PollFlags::IN)));
            wait_any(&mut fds, Some(left))?;
            if fds.first().is_some_and(|fd| !fd.revents().is_empty()) {
                return Ok(());
            }
        }
    }
}

/// Polls; an interruption is not an error, only a reason to look again.
///
/// # Errors
///
/// If the system cannot poll.
pub(crate) fn wait_any(fds: &mut [PollFd<'_>], time: Option<Duration>) -> io::Result<()> {
    let time = time.map(|time| Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: time.subsec_nanos().into(),
    });
    match poll(fds, time.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

impl Stream {
    /// Connects. Of several addresses of a host, the first that answers is taken.
    ///
    /// # Errors
    ///
    /// If no address answers in time; the error is that of the last one.
    pub(crate) fn connect(transport: &Transport, patience: Patience<'_>) -> io::Result<Self> {
        match transport {
            Transport::Tcp { host, port } => {
                let addresses: Vec<_> = (host.as_str(), *port).to_socket_addrs()?.collect();
                connect_any(&addresses, patience)
            }
            Transport::Unix { path } => {
                let address = unix_address(path)?;
                let fd = connect_to(AddressFamily::UNIX, &address, patience)?;
                Ok(Self::Unix(UnixStream::from(fd)))
            }
        }
    }

    /// Tells the server that nothing more will be sent.
    pub(crate) fn shutdown(&self) {
        // If it is gone already, so much the better.
        let _ = match self {
            Self::Tcp(stream) => stream.shutdown(std::net::Shutdown::Write),
            Self::Unix(stream) => stream.shutdown(std::net::Shutdown::Write),
        };
    }
}

/// Tries one address after the other. Each gets its share of the time that is left, lest one that
/// says nothing takes it from one that would answer.
fn connect_any(addresses: &[SocketAddr], patience: Patience<'_>) -> io::Result<Stream> {
    let mut result = Err(io::Error::other("the host has no address"));
    for (address, left) in addresses.iter().zip((1..=addresses.len()).rev()) {
        let now = Instant::now();
        let time = patience.deadline.saturating_duration_since(now);
        let share = time / u32::try_from(left).unwrap_or(u32::MAX);
        let patience = Patience {
            deadline: now + share,
            ..patience
        };
        result = connect_tcp(address, patience);
        if result.is_ok() {
            break;
        }
    }
    result
}

fn connect_tcp(address: &SocketAddr, patience: Patience<'_>) -> io::Result<Stream> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let stream = TcpStream::from(connect_to(family, address, patience)?);
    // Requests are small, and the server cannot answer what waits for more to be sent.
    stream.set_nodelay(true)?;
    Ok(Stream::Tcp(stream))
}

/// A name that begins with NUL is one in the abstract namespace (the NBD URI format,
/// "NBD URI socket parameter").
fn unix_address(path: &[u8]) -> io::Result<SocketAddrUnix> {
    match path.strip_prefix(&[0]) {
        None => Ok(SocketAddrUnix::new(path)?),
        #[cfg(target_os = "linux")]
        Some(name) => Ok(SocketAddrUnix::new_abstract_name(name)?),
        #[cfg(not(target_os = "linux"))]
        Some(_) => Err(io::Error::other(
            "this system has no abstract namespace for sockets",
        )),
    }
}

fn connect_to(
    family: AddressFamily,
    address: &impl SocketAddrArg,
    patience: Patience<'_>,
) -> io::Result<OwnedFd> {
    use rustix::io::Errno;

    let fd = socket(family, SocketType::STREAM, None)?;
    rustix::io::ioctl_fionbio(&fd, true)?;
    loop {
        match connect(&fd, address) {
            Ok(()) => return Ok(fd),
            // A Unix domain socket whose queue is full; there is nothing to poll for.
            Err(Errno::AGAIN) => {
                if patience.signals.and_then(Signals::caught).is_some() {
                    return Err(io::Error::other("stopped by a signal"));
                }
                if Instant::now() >= patience.deadline {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                std::thread::sleep(QUEUE_FULL);
            }
            Err(Errno::INPROGRESS | Errno::INTR) => {
                patience.wait(fd.as_fd(), PollFlags::OUT)?;
                sockopt::socket_error(&fd)??;
                return Ok(fd);
            }
            Err(error) => return Err(error.into()),
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
        }
    }

    fn read_vectored(&mut self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read_vectored(buffers),
            Self::Unix(stream) => stream.read_vectored(buffers),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(buffer),
            Self::Unix(stream) => stream.write(buffer),
        }
    }

    fn write_vectored(&mut self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write_vectored(buffers),
            Self::Unix(stream) => stream.write_vectored(buffers),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A stream that waits, but not for ever: for what comes before transmission, which goes back and
/// forth.
#[derive(Debug)]
pub(crate) struct Patient<'a, S> {
    pub(crate) stream: S,
    pub(crate) patience: Patience<'a>,
}

impl<S: AsFd + Read> Read for Patient<'_, S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            // Before the read, so that a server that sends a byte now and then cannot keep us for
            // longer than the deadline.
            self.patience.wait(self.stream.as_fd(), PollFlags::IN)?;
            match self.stream.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return result,
            }
        }
    }
}

impl<S: AsFd + Write> Write for Patient<'_, S> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        loop {
            self.patience.wait(self.stream.as_fd(), PollFlags::OUT)?;
            match self.stream.write(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return result,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// A socket that listens, and answers nobody: its queue is full.
    #[cfg(target_os = "linux")]
    fn mute() -> (TcpListener, Vec<TcpStream>) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let address = listener.local_addr().unwrap();
        let time = Duration::from_millis(200);
        let queue = std::iter::from_fn(|| TcpStream::connect_timeout(&address, time).ok());
        let queue = queue.take(100).collect();
        (listener, queue)
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn an_address_that_says_nothing_leaves_time_for_the_others() {
        let (mute, _queue) = mute();
        let good = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let addresses = [&mute, &mute, &good].map(|listener| listener.local_addr().unwrap());
        let patience = Patience {
            deadline: Instant::now() + Duration::from_secs(3),
            signals: None,
        };
        let error = connect_any(
            &addresses[..1],
            Patience {
                deadline: Instant::now() + Duration::from_millis(200),
                ..patience
            },
        );
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(
            matches!(connect_any(&addresses, patience), Ok(Stream::Tcp(stream))
            if stream.peer_addr().unwrap() == addresses[2])
        );
    }
}
