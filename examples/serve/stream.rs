//! A connection's socket, of either kind.

use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SendFlags, send, sockopt};

/// A client that has said nothing for so long is asked whether it is still there, so that one
/// whose machine has vanished does not keep its place for ever.
const KEEPALIVE: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(crate) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    /// Readies the socket of a client that was accepted.
    pub(crate) fn tcp(stream: TcpStream) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        // proto.md "Protocol phases": both sides SHOULD disable Nagle's algorithm.
        stream.set_nodelay(true)?;
        sockopt::set_socket_keepalive(&stream, true)?;
        sockopt::set_tcp_keepidle(&stream, KEEPALIVE)?;
        Ok(Self::Tcp(stream))
    }

    /// The same for the other kind.
    pub(crate) fn unix(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        Ok(Self::Unix(stream))
    }

    /// Whether a reply should be sent in one go: each TCP segment wakes a client that waits for it,
    /// at the expense of who sends it, and waiting for data from main memory in between gives the
    /// client the time to go to sleep again.
    pub(crate) const fn is_by_segment(&self) -> bool {
        matches!(self, Self::Tcp(_))
    }

    /// Ends reading, writing or both; whoever is blocked in it returns. An error means that the
    /// socket is closed already.
    pub(crate) fn shutdown(&self, how: Shutdown) {
        let _ = match self {
            Self::Tcp(stream) => stream.shutdown(how),
            Self::Unix(stream) => stream.shutdown(how),
        };
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

impl Read for &Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => (&*stream).read(buffer),
            Stream::Unix(stream) => (&*stream).read(buffer),
        }
    }
}

impl Write for &Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => (&*stream).write(bytes),
            Stream::Unix(stream) => (&*stream).write(bytes),
        }
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => (&*stream).write_vectored(parts),
            Stream::Unix(stream) => (&*stream).write_vectored(parts),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The stream up to some time. However little the client sends or takes at once, all of it
/// together has to be done by then.
#[derive(Debug)]
pub(crate) struct Until<'s> {
    stream: &'s Stream,
    deadline: Instant,
}

impl<'s> Until<'s> {
    pub(crate) const fn new(stream: &'s Stream, deadline: Instant) -> Self {
        Self { stream, deadline }
    }

    fn wait(&self, what: PollFlags) -> io::Result<()> {
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the client took too long",
                ));
            }
            let time = Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            };
            match poll(&mut [PollFd::new(self.stream, what)], Some(&time)) {
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                ready => return Ok(ready.map(drop)?),
            }
        }
    }
}

impl Read for Until<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // Nobody else reads: what is there now is there still.
        self.wait(PollFlags::IN)?;
        self.stream.read(buffer)
    }
}

impl Write for Until<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            self.wait(PollFlags::OUT)?;
            // A blocking write would wait until all bytes are taken, and not only some.
            match send(self.stream, bytes, SendFlags::DONTWAIT) {
                Err(rustix::io::Errno::AGAIN) => {}
                sent => return Ok(sent?),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Stream, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Stream::unix(ours).unwrap(), theirs)
    }

    #[test]
    fn who_sends_nothing_is_not_waited_for_beyond_the_deadline() {
        let (stream, mut client) = pair();
        client.write_all(b"ab").unwrap();
        let mut bytes = [0; 2];
        let patient = Instant::now() + Duration::from_secs(60);
        Until::new(&stream, patient).read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"ab");
        let deadline = Instant::now() + Duration::from_millis(20);
        let error = Until::new(&stream, deadline).read(&mut bytes).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(Instant::now() >= deadline);
    }

    #[test]
    fn who_takes_nothing_is_not_waited_for_beyond_the_deadline() {
        let (stream, _client) = pair();
        let deadline = Instant::now() + Duration::from_millis(20);
        let error = Until::new(&stream, deadline)
            .write_all(&vec![0; 64 << 20])
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn who_keeps_up_notices_nothing() {
        let (stream, mut client) = pair();
        let sent = vec![7; 8 << 20];
        let expected = sent.clone();
        let reader = std::thread::spawn(move || {
            let mut taken = vec![0; expected.len()];
            client.read_exact(&mut taken).unwrap();
            assert!(taken == expected);
        });
        let deadline = Instant::now() + Duration::from_secs(60);
        Until::new(&stream, deadline).write_all(&sent).unwrap();
        reader.join().unwrap();
    }
}
