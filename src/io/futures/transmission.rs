//! Requests and replies over `futures::io`.

use std::io::{self, IoSlice};

use futures::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::io::Error;
use crate::io::input::{ReplyInput, RequestInput, Taken};
use crate::limits::Limits;
use crate::session::Session;
use crate::transmission::{ReadBuffer, ReplyDecoder, ReplyEvent, Unexpectable, client, server};
use crate::wire::{Request, StatusQuery};

/// The requests of a client, read from a stream: the server's side of transmission.
///
/// As [`io::Requests`](crate::io::Requests).
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

    /// The stream.
    pub const fn get_ref(&self) -> &S {
        &self.stream
    }

    /// The stream, to write to.
    pub const fn get_mut(&mut self) -> &mut S {
        &mut self.stream
    }
}

impl<S: AsyncRead + Unpin> Requests<S> {
    /// Waits for the next request. `None` when the client has disconnected, or closed the
    /// connection between two requests. Payload of the last request that was not read is skipped.
    ///
    /// A request is not checked yet: [`Session::check`] does that.
    ///
    /// Cancel safe: what was received before the future is dropped is kept for the next call.
    ///
    /// # Errors
    ///
    /// If the stream fails, or the client has to be hung up on.
    pub async fn next(&mut self) -> Result<Option<Request>, Error<server::Fatal>> {
        loop {
            match self.input.next().map_err(Error::Protocol)? {
                Some(Taken::Request(request)) => return Ok(Some(request)),
                Some(Taken::Disconnect) => return Ok(None),
                None => {}
            }
            let len = self.stream.read(self.input.received.room()?).await?;
            if len == 0 {
                return self.input.ended();
            }
            self.input.received.filled(len);
        }
    }

    /// Waits for payload of the last request, as much as fills `memory`: what comes next of it.
    /// What is not buffered goes straight there.
    ///
    /// If the future is dropped, [`payload_left`](Self::payload_left) says how much was read, and
    /// the rest can be read later, or is skipped.
    ///
    /// # Errors
    ///
    /// If the stream fails or ends. If `memory` is larger than
    /// [`payload_left`](Self::payload_left), nothing is read:
    /// [`InvalidInput`](io::ErrorKind::InvalidInput).
    pub async fn read_payload(&mut self, memory: &mut [u8]) -> Result<(), Error<server::Fatal>> {
        let mut room = self.input.begin_payload(memory)?;
        while !room.is_empty() {
            let len = self.stream.read(room).await?;
            room = self.input.filled(room, len)?;
        }
        Ok(())
    }
}

/// The replies of a server, read from a stream: the client's side of transmission.
///
/// As [`io::Replies`](crate::io::Replies).
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
    #[expect(clippy::should_implement_trait, reason = "it lends, and can fail")]
    pub fn next(&mut self) -> Result<Option<ReplyEvent<'_>>, client::Fatal> {
        self.input.next()
    }

    /// The stream.
    pub const fn get_ref(&self) -> &S {
        &self.stream
    }

    /// The stream, to write to.
    pub const fn get_mut(&mut self) -> &mut S {
        &mut self.stream
    }
}

impl<S: AsyncRead + Unpin> Replies<S> {
    /// Waits until the server says something.
    ///
    /// Cancel safe: what was received before the future is dropped is kept.
    ///
    /// # Errors
    ///
    /// As [`io::Replies::receive`](crate::io::Replies::receive).
    pub async fn receive(&mut self) -> Result<(), Error<client::Fatal>> {
        let len = self.stream.read(self.input.received.room()?).await?;
        if len == 0 {
            return Err(self.input.ended());
        }
        self.input.received.filled(len);
        Ok(())
    }

    /// As [`receive`](Self::receive); but where data comes next that belongs into `buffer`, and
    /// none was received already, it goes straight there. Call it when [`next`](Self::next) has no
    /// more events.
    ///
    /// Cancel safe: what was received before the future is dropped is kept, or is in the buffer.
    ///
    /// # Errors
    ///
    /// As [`receive`](Self::receive).
    pub async fn receive_into(
        &mut self,
        buffer: &mut ReadBuffer<'_>,
    ) -> Result<(), Error<client::Fatal>> {
        let Some(room) = self.input.room_in(buffer) else {
            return self.receive().await;
        };
        match self.stream.read(room).await? {
            0 => Err(self.input.ended()),
            len => {
                self.input.decoder.payload_read(len as u64);
                Ok(())
            }
        }
    }
}

/// Writes a [`Head`](crate::transmission::Head), or another beginning of a message, and the payload
/// that follows it, together where the stream takes it so. For
/// replies of a server and for requests of a client.
///
/// Not cancel safe: if the future is dropped, part of the message may have been written, and the
/// connection cannot be used on. Write from a task of its own, or one that is not cancelled.
///
/// # Errors
///
/// If the stream fails; the connection cannot be used on.
pub async fn write_message<S: AsyncWrite + Unpin + ?Sized>(
    stream: &mut S,
    head: &[u8],
    payload: &[u8],
) -> io::Result<()> {
    let mut parts = [IoSlice::new(head), IoSlice::new(payload)];
    let mut parts = &mut parts[..];
    // Empty parts go first.
    IoSlice::advance_slices(&mut parts, 0);
    while !parts.is_empty() {
        match stream.write_vectored(parts).await? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            len => IoSlice::advance_slices(&mut parts, len),
        }
    }
    stream.flush().await
}
