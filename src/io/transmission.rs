//! Requests and replies over [`std::io`].

use std::io::{self, IoSlice, Read, Write};

use super::Error;
use super::input::{ReplyInput, RequestInput, Taken};
use super::received::read;
use crate::limits::Limits;
use crate::session::Session;
use crate::transmission::{ReadBuffer, ReplyDecoder, ReplyEvent, Unexpectable, client, server};
use crate::wire::{Request, StatusQuery};

/// The requests of a client, read from a stream: the server's side of transmission.
///
/// A [`RequestDecoder`](crate::transmission::RequestDecoder) with the stream that it needs. It
/// reads ahead, so everything that the client sends has to be read through it; replies are for
/// [`write_message`]. A stream that can be shared (`&TcpStream`) can be given by reference; another
/// is there for writing in [`get_mut`](Self::get_mut).
///
/// ```
/// use std::io::Write;
/// use std::os::unix::net::UnixStream;
///
/// use nbd_proto::io::{Requests, write_message};
/// use nbd_proto::limits::Limits;
/// use nbd_proto::session::Session;
/// use nbd_proto::transmission::ReplyEncoder;
/// use nbd_proto::wire::{CommandType, Cookie, Errno, Name, Request, TransmissionFlags};
///
/// let (mut client, ours) = UnixStream::pair()?;
/// client.write_all(&Request::write(Cookie(1), 4, 4).to_compact()?)?;
/// client.write_all(b"data")?;
/// client.write_all(&Request::write(Cookie(2), 1 << 40, 4).to_compact()?)?;
/// client.write_all(b"lost")?;
/// client.write_all(&Request::disconnect().to_compact()?)?;
///
/// let mut disk = [0; 4096];
/// let session = Session::new(Name::default(), 4096, TransmissionFlags::HAS_FLAGS);
/// let replies = ReplyEncoder::new(&session);
/// let mut requests = Requests::new(&ours, &session, &Limits::new());
/// while let Some(request) = requests.next()? {
///     let result = match session.check(&request) {
///         Err(refusal) => Err(refusal.errno()),
///         Ok(()) if request.kind == CommandType::WRITE => {
///             let place = &mut disk[request.offset as usize..][..request.length as usize];
///             requests.read_payload(place)?;
///             Ok(())
///         }
///         Ok(()) => Err(Errno::EINVAL),
///     };
///     let head = match result {
///         Ok(()) => replies.ok(&request),
///         Err(errno) => replies.fail(&request, errno),
///     };
///     write_message(&mut &ours, &head, &[])?;
/// }
/// // The payload of the refused write was skipped.
/// assert_eq!(disk[4..8], *b"data");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Requests<S> {
    stream: S,
    input: RequestInput,
}

impl<S> Requests<S> {
    /// Nothing was read from the stream since the handshake.
    #[must_use]
    pub fn new(stream: S, session: &Session, limits: &Limits) -> Self {
        Self {
            stream,
            input: RequestInput::new(session, limits),
        }
    }

    /// How many bytes of the payload of the last request were not read yet.
    #[must_use]
    pub const fn payload_left(&self) -> u64 {
        self.input.decoder.payload_left()
    }

    /// What was received and not decoded yet. If it is not empty, the client has asked for more, or
    /// has begun to: replies can be kept back a moment, to be sent together.
    #[must_use]
    pub fn unread(&self) -> &[u8] {
        self.input.received.unread()
    }

    /// The stream.
    pub const fn get_ref(&self) -> &S {
        &self.stream
    }

    /// The stream, to write to.
    pub const fn get_mut(&mut self) -> &mut S {
        &mut self.stream
    }

    /// The stream alone. What was received and not decoded is lost.
    pub fn into_inner(self) -> S {
        self.stream
    }
}

impl<S: Read> Requests<S> {
    /// Waits for the next request. `None` when the client has disconnected, or closed the
    /// connection between two requests. Payload of the last request that was not read is skipped.
    ///
    /// A request is not checked yet: [`Session::check`] does that.
    ///
    /// # Errors
    ///
    /// If the stream fails, or the client has to be hung up on. A stream that fails because it
    /// would block, or time ran out, can be asked again: nothing is lost.
    #[expect(
        clippy::should_implement_trait,
        reason = "it can fail, and go on after that"
    )]
    pub fn next(&mut self) -> Result<Option<Request>, Error<server::Fatal>> {
        loop {
            match self.input.next().map_err(Error::Protocol)? {
                Some(Taken::Request(request)) => return Ok(Some(request)),
                Some(Taken::Disconnect) => return Ok(None),
                None => {}
            }
            if self.input.received.receive(&mut self.stream)? == 0 {
                return self.input.ended();
            }
        }
    }

    /// Waits for payload of the last request, as much as fills `memory`: what comes next of it.
    /// What was not received yet goes straight there.
    ///
    /// # Errors
    ///
    /// If the stream fails or ends. If `memory` is larger than
    /// [`payload_left`](Self::payload_left), nothing is read:
    /// [`InvalidInput`](io::ErrorKind::InvalidInput). How much was read before a stream would block
    /// only `payload_left` says; for such streams there is
    /// [`receive_payload`](Self::receive_payload).
    pub fn read_payload(&mut self, memory: &mut [u8]) -> Result<(), Error<server::Fatal>> {
        let mut filled = 0;
        while let Some(room @ [_, ..]) = memory.get_mut(filled..) {
            filled += self.receive_payload(room)?;
        }
        Ok(())
    }

    /// Waits for some payload of the last request: what comes next of it, as much as is there and
    /// fits. How many bytes of `memory` were filled: 0 only if it is empty.
    ///
    /// # Errors
    ///
    /// As [`read_payload`](Self::read_payload); but a stream that would block can be asked again:
    /// nothing is lost.
    pub fn receive_payload(&mut self, memory: &mut [u8]) -> Result<usize, Error<server::Fatal>> {
        if let Some(len) = self.input.take_payload(memory)? {
            return Ok(len);
        }
        let len = read(&mut self.stream, memory)?;
        self.input.payload_read(len)
    }
}

/// The replies of a server, read from a stream: the client's side of transmission.
///
/// A [`ReplyDecoder`] with the stream that it needs. It reads ahead, so everything that the server
/// sends has to be read through it. Unlike [`Requests::next`], which waits,
/// [`next_received`](Self::next_received) only takes what is there; when that says `None`, wait with
/// [`receive`](Self::receive), or for data of a read with [`receive_into`](Self::receive_into). Requests are made by a
/// [`RequestEncoder`](crate::transmission::RequestEncoder), announced by [`expect`](Self::expect),
/// and sent by [`write_message`]. Reading and writing in one thread is safe as long as the server
/// does not need us to read before it goes on: what is in flight should fit into what lies between
/// the two. Where it may not, read in a thread of its own, with a
/// [`Received`](super::Received).
///
/// After our own disconnect nothing more is to be read: the server closes the connection.
///
/// ```
/// use std::io::Write;
/// use std::os::unix::net::UnixStream;
///
/// use nbd_proto::io::{Replies, write_message};
/// use nbd_proto::limits::Limits;
/// use nbd_proto::session::Session;
/// use nbd_proto::transmission::{ReadBuffer, RequestEncoder};
/// use nbd_proto::wire::{Cookie, Name, Request, SimpleReply, TransmissionFlags};
///
/// let (ours, mut server) = UnixStream::pair()?;
/// let session = Session::new(Name::default(), 4096, TransmissionFlags::HAS_FLAGS);
/// let mut replies = Replies::new(&ours, &session, &Limits::new(), 16);
///
/// let request = Request::read(Cookie(1), 0, 4);
/// let head = RequestEncoder::new(&session).encode(&request)?;
/// replies.expect(&request)?; // before it is sent
/// write_message(&mut &ours, &head, &[])?;
/// # server.write_all(&SimpleReply { result: Ok(()), cookie: Cookie(1) }.to_bytes())?;
/// # server.write_all(b"data")?;
///
/// let mut memory = [0; 4];
/// let mut buffer = ReadBuffer::new(&request, &mut memory)?;
/// while buffer.result().is_none() {
///     match replies.next_received()? {
///         // With more requests in flight, `event.cookie()` says whose it is.
///         Some(event) => assert!(buffer.take(&event)),
///         None => replies.receive_into(&mut buffer)?,
///     }
/// }
/// assert_eq!(buffer.result(), Some(Ok(())));
/// assert_eq!(memory, *b"data");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Replies<S> {
    stream: S,
    input: ReplyInput,
}

impl<S> Replies<S> {
    /// Nothing was read from the stream since the handshake; at most `capacity` requests are going
    /// to be in flight.
    #[must_use]
    pub fn new(stream: S, session: &Session, limits: &Limits, capacity: usize) -> Self {
        Self {
            stream,
            input: ReplyInput::new(session, limits, capacity),
        }
    }

    /// Takes note of a request that is about to be sent.
    ///
    /// # Errors
    ///
    /// If its reply cannot be waited for; the request must not be sent then. A block status request
    /// with payload is for [`expect_status`](Self::expect_status).
    pub fn expect(&mut self, request: &Request) -> Result<(), Unexpectable> {
        self.input.decoder.expect(request)
    }

    /// Takes note of a block status request with payload that is about to be sent.
    ///
    /// # Errors
    ///
    /// If its reply cannot be waited for; the request must not be sent then.
    pub fn expect_status(
        &mut self,
        request: &Request,
        query: &StatusQuery<'_>,
    ) -> Result<(), Unexpectable> {
        self.input.decoder.expect_status(request, query)
    }

    /// What is in flight, and what comes next.
    pub const fn decoder(&self) -> &ReplyDecoder {
        &self.input.decoder
    }

    /// What the server has said, as far as it was received. `None` if more has to be
    /// [received](Self::receive). Does not wait.
    ///
    /// # Errors
    ///
    /// If the server broke a rule and has to be hung up on.
    pub fn next_received(&mut self) -> Result<Option<ReplyEvent<'_>>, Error<client::Fatal>> {
        self.input.next().map_err(Error::Protocol)
    }

    /// The stream.
    pub const fn get_ref(&self) -> &S {
        &self.stream
    }

    /// The stream, to write to.
    pub const fn get_mut(&mut self) -> &mut S {
        &mut self.stream
    }

    /// The stream alone. What was received and not decoded is lost.
    pub fn into_inner(self) -> S {
        self.stream
    }
}

impl<S: Read> Replies<S> {
    /// Waits until the server says something. Call it when
    /// [`next_received`](Self::next_received) has no more events: otherwise it may wait for what
    /// was received already.
    ///
    /// # Errors
    ///
    /// If the stream fails, or the server closes the connection:
    /// [`Closed`](Error::Closed), or, if nothing was in flight,
    /// [`UnexpectedEof`](io::ErrorKind::UnexpectedEof). If
    /// [`next_received`](Self::next_received) has not taken what is there, and that fills the
    /// buffer: [`InvalidInput`](io::ErrorKind::InvalidInput). A stream that would block, or whose
    /// time ran out, can be asked again: nothing is lost.
    pub fn receive(&mut self) -> Result<(), Error<client::Fatal>> {
        match self.input.received.receive(&mut self.stream)? {
            0 => Err(self.input.ended()),
            _ => Ok(()),
        }
    }

    /// As [`receive`](Self::receive); but data that comes next and belongs into `buffer`, if nothing
    /// else was received before it, goes straight there. Of several buffers, that of the cookie in
    /// [`decoder().payload()`](ReplyDecoder::payload) is the one to give.
    ///
    /// # Errors
    ///
    /// As [`receive`](Self::receive).
    pub fn receive_into(
        &mut self,
        buffer: &mut ReadBuffer<'_>,
    ) -> Result<(), Error<client::Fatal>> {
        let Some(room) = self.input.room_in(buffer) else {
            return self.receive();
        };
        match read(&mut self.stream, room)? {
            0 => Err(self.input.ended()),
            len => {
                self.input.decoder.payload_read(len as u64);
                Ok(())
            }
        }
    }
}

/// Writes a [`Head`](crate::transmission::Head), or another beginning of a message, and the payload
/// that follows it: in one call, where the stream takes it so. For replies of a server and for
/// requests of a client. A message without payload has an empty one.
///
/// # Errors
///
/// If the stream fails. How much was written is not known then, so that the connection cannot be
/// used on; a stream that does not block is not for this function.
pub fn write_message<S: Write + ?Sized>(
    stream: &mut S,
    head: &[u8],
    payload: &[u8],
) -> io::Result<()> {
    let mut parts = [IoSlice::new(head), IoSlice::new(payload)];
    let mut parts = &mut parts[..];
    // Empty parts go first.
    IoSlice::advance_slices(&mut parts, 0);
    while !parts.is_empty() {
        match stream.write_vectored(parts) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(len) => IoSlice::advance_slices(&mut parts, len),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    stream.flush()
}

impl From<server::Fatal> for io::Error {
    fn from(fatal: server::Fatal) -> Self {
        let kind = match fatal {
            server::Fatal::Eof => io::ErrorKind::UnexpectedEof,
            server::Fatal::Overread => io::ErrorKind::InvalidInput,
            _ => io::ErrorKind::InvalidData,
        };
        Self::new(kind, fatal)
    }
}

impl From<client::Fatal> for io::Error {
    fn from(fatal: client::Fatal) -> Self {
        let kind = match fatal {
            client::Fatal::Eof { .. } => io::ErrorKind::UnexpectedEof,
            client::Fatal::Overread => io::ErrorKind::InvalidInput,
            _ => io::ErrorKind::InvalidData,
        };
        Self::new(kind, fatal)
    }
}
