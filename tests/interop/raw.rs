//! A client of a page, written from the protocol text alone.
//!
//! It shares no line with the library, so the two cannot be wrong together, and it sends and
//! receives exactly when it is told: the tests of schedules and of bad input need that.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::process::SOON;
use crate::server::Endpoint;

pub(crate) const READ: u16 = 0;
pub(crate) const WRITE: u16 = 1;
pub(crate) const DISC: u16 = 2;
pub(crate) const FLUSH: u16 = 3;

pub(crate) const FUA: u16 = 1;

pub(crate) const SEND_FLUSH: u16 = 1 << 2;
pub(crate) const SEND_FUA: u16 = 1 << 3;
pub(crate) const CAN_MULTI_CONN: u16 = 1 << 8;

pub(crate) const EIO: u32 = 5;
pub(crate) const EINVAL: u32 = 22;

pub(crate) const OPT_GO: u32 = 7;
pub(crate) const IHAVEOPT: &[u8] = b"IHAVEOPT";

/// A connected stream of either family; every read and write has a deadline.
pub(crate) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    pub(crate) fn connect(endpoint: &Endpoint) -> Self {
        match endpoint {
            Endpoint::Tcp(address) => {
                let stream = TcpStream::connect_timeout(address, SOON).unwrap();
                stream.set_nodelay(true).unwrap();
                stream.set_read_timeout(Some(SOON)).unwrap();
                stream.set_write_timeout(Some(SOON)).unwrap();
                Self::Tcp(stream)
            }
            Endpoint::Unix(path) => {
                let stream = UnixStream::connect(path).unwrap();
                stream.set_read_timeout(Some(SOON)).unwrap();
                stream.set_write_timeout(Some(SOON)).unwrap();
                Self::Unix(stream)
            }
        }
    }

    pub(crate) fn set_write_timeout(&self, patience: Duration) {
        match self {
            Self::Tcp(stream) => stream.set_write_timeout(Some(patience)),
            Self::Unix(stream) => stream.set_write_timeout(Some(patience)),
        }
        .unwrap();
    }

    /// Says that nothing more will be sent.
    pub(crate) fn end_of_input(&self) {
        // The peer may have hung up already.
        let _ = match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Self::Unix(stream) => stream.shutdown(Shutdown::Write),
        };
    }

    /// Reads on until the peer hangs up, which it must.
    pub(crate) fn read_until_hang_up(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        match self.read_to_end(&mut all) {
            Ok(_) => {}
            Err(error) if hung_up(&error) => {}
            Err(error) => panic!("the peer neither answered nor hung up: {error}"),
        }
        all
    }

    pub(crate) fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

/// Whether an error says that the peer is gone, rather than silent.
pub(crate) fn hung_up(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(
        error.kind(),
        BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof
    )
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
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

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The bytes of an option.
pub(crate) fn option(code: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap();
    [IHAVEOPT, &code.to_be_bytes(), &length.to_be_bytes(), body].concat()
}

/// The bytes of GO for an export, with no wishes for information.
pub(crate) fn go(export: &str) -> Vec<u8> {
    let length = u32::try_from(export.len()).unwrap();
    option(
        OPT_GO,
        &[&length.to_be_bytes(), export.as_bytes(), &[0, 0]].concat(),
    )
}

/// The bytes of a request without its payload.
pub(crate) fn request(flags: u16, kind: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let mut bytes = vec![0x25, 0x60, 0x95, 0x13];
    bytes.extend_from_slice(&flags.to_be_bytes());
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&cookie.to_be_bytes());
    bytes.extend_from_slice(&offset.to_be_bytes());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes
}

fn be16(bytes: &[u8]) -> u16 {
    u16::from_be_bytes(bytes.try_into().unwrap())
}

fn be32(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes.try_into().unwrap())
}

fn be64(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes.try_into().unwrap())
}

/// The result of a command: the data of a read, or an error number of the protocol.
pub(crate) type Answer = Result<Vec<u8>, u32>;

/// A session with simple replies.
pub(crate) struct Raw {
    pub(crate) stream: Stream,
    pub(crate) size: u64,
    pub(crate) flags: u16,
    next_cookie: u64,
    reads: HashMap<u64, u32>,
    early: HashMap<u64, Answer>,
}

/// The client's half of the greeting: fixed newstyle, no zeroes.
pub(crate) const CLIENT_FLAGS: [u8; 4] = [0, 0, 0, 3];

impl Raw {
    pub(crate) fn connect(endpoint: &Endpoint, export: &str) -> Self {
        let mut stream = Stream::connect(endpoint);
        let greeting: [u8; 18] = stream.array().unwrap();
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        stream.write_all(&CLIENT_FLAGS).unwrap();
        stream.write_all(&go(export)).unwrap();
        let mut size_and_flags = None;
        loop {
            let head: [u8; 20] = stream.array().unwrap();
            let mut body = vec![0; be32(&head[16..]) as usize];
            stream.read_exact(&mut body).unwrap();
            match be32(&head[12..16]) {
                1 => break,
                3 if be16(&body[..2]) == 0 => {
                    size_and_flags = Some((be64(&body[2..10]), be16(&body[10..])));
                }
                3 => {}
                other => panic!("GO was answered with {other:#x}"),
            }
        }
        let (size, flags) = size_and_flags.expect("GO must be answered with size and flags");
        Self {
            stream,
            size,
            flags,
            next_cookie: 1,
            reads: HashMap::new(),
            early: HashMap::new(),
        }
    }

    /// Sends a request and does not wait for its reply; the result is its cookie.
    pub(crate) fn send(&mut self, kind: u16, flags: u16, offset: u64, length: u32) -> u64 {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        if kind == READ {
            self.reads.insert(cookie, length);
        }
        self.stream
            .write_all(&request(flags, kind, cookie, offset, length))
            .unwrap();
        cookie
    }

    pub(crate) fn send_write(&mut self, offset: u64, data: &[u8], flags: u16) -> u64 {
        let cookie = self.send(WRITE, flags, offset, u32::try_from(data.len()).unwrap());
        self.stream.write_all(data).unwrap();
        cookie
    }

    /// Waits for the reply to a request, keeping those to others for later.
    pub(crate) fn wait(&mut self, cookie: u64) -> Answer {
        loop {
            if let Some(answer) = self.early.remove(&cookie) {
                return answer;
            }
            self.receive()
                .unwrap_or_else(|error| panic!("no reply to {cookie}: {error}"));
        }
    }

    fn receive(&mut self) -> io::Result<()> {
        let head: [u8; 16] = self.stream.array()?;
        assert_eq!(
            &head[..4],
            &[0x67, 0x44, 0x66, 0x98],
            "magic of a simple reply"
        );
        let (error, cookie) = (be32(&head[4..8]), be64(&head[8..]));
        let length = self.reads.remove(&cookie).unwrap_or(0);
        let answer = if error == 0 {
            let mut data = vec![0; length as usize];
            self.stream.read_exact(&mut data)?;
            Ok(data)
        } else {
            Err(error)
        };
        self.early.insert(cookie, answer);
        Ok(())
    }

    pub(crate) fn read(&mut self, offset: u64, length: u32) -> Answer {
        let cookie = self.send(READ, 0, offset, length);
        self.wait(cookie)
    }

    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) -> Answer {
        let cookie = self.send_write(offset, data, 0);
        self.wait(cookie)
    }

    pub(crate) fn write_fua(&mut self, offset: u64, data: &[u8]) -> Answer {
        let cookie = self.send_write(offset, data, FUA);
        self.wait(cookie)
    }

    pub(crate) fn send_flush(&mut self) -> u64 {
        self.send(FLUSH, 0, 0, 0)
    }

    pub(crate) fn flush(&mut self) -> Answer {
        let cookie = self.send_flush();
        self.wait(cookie)
    }

    /// Leaves as the protocol wants it.
    pub(crate) fn disconnect(mut self) {
        self.send(DISC, 0, 0, 0);
    }
}
