//! Requests and replies over `futures::io`.

use std::io::{self, IoSlice};

use futures::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::io::input::{ReplyInput, RequestInput, Taken};
use crate::io::{Error, Received};
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
            if receive_more(&mut self.stream, &mut self.input.received).await? == 0 {
                return self.input.ended();
            }
        }
    }

    /// Waits for payload of the last request, as much as fills `memory`: what comes next of it.
    /// What was not received yet goes straight there.
    ///
    /// Not cancel safe: how much was read before the future is dropped only
    /// [`payload_left`](Self::payload_left) says. [`receive_payload`](Self::receive_payload) is.
    ///
    /// # Errors
    ///
    /// If the stream fails or ends. If `memory` is larger than
    /// [`payload_left`](Self::payload_left), nothing is read:
    /// [`InvalidInput`](io::ErrorKind::InvalidInput).
    pub async fn read_payload(&mut self, memory: &mut [u8]) -> Result<(), Error<server::Fatal>> {
        let mut filled = 0;
        while let Some(room @ [_, ..]) = memory.get_mut(filled..) {
            filled += self.receive_payload(room).await?;
        }
        Ok(())
    }

    /// Waits for some payload of the last request: what comes next of it, as much as is there and
    /// fits. How many bytes of `memory` were filled: 0 only if it is empty.
    ///
    /// Cancel safe: if the future is dropped, nothing was read.
    ///
    /// # Errors
    ///
    /// As [`read_payload`](Self::read_payload).
    pub async fn receive_payload(
        &mut self,
        memory: &mut [u8],
    ) -> Result<usize, Error<server::Fatal>> {
        if let Some(len) = self.input.take_payload(memory)? {
            return Ok(len);
        }
        let len = self.stream.read(memory).await?;
        self.input.payload_read(len)
    }
}

/// The replies of a server, read from a stream: the client's side of transmission.
///
/// As [`io::Replies`](crate::io::Replies). It is for one task; where one task sends while another
/// waits for replies, share a [`ReplyDecoder`] between them, and give the one that waits a
/// [`Received`](crate::io::Received), which [`receive_more`] fills.
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

impl<S: AsyncRead + Unpin> Replies<S> {
    /// Waits until the server says something. Call it when
    /// [`next_received`](Self::next_received) has no more events: otherwise it may wait for what
    /// was received already.
    ///
    /// Cancel safe: what was received before the future is dropped is kept.
    ///
    /// # Errors
    ///
    /// As [`io::Replies::receive`](crate::io::Replies::receive).
    pub async fn receive(&mut self) -> Result<(), Error<client::Fatal>> {
        match receive_more(&mut self.stream, &mut self.input.received).await? {
            0 => Err(self.input.ended()),
            _ => Ok(()),
        }
    }

    /// As [`receive`](Self::receive); but data that comes next and belongs into `buffer`, if nothing
    /// else was received before it, goes straight there. Of several buffers, that of the cookie in
    /// [`decoder().payload()`](ReplyDecoder::payload) is the one to give.
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

/// Receives once, behind what `received` has; 0 means that the peer has closed the connection.
///
/// As [`Received::receive`]. Cancel safe: if the future is dropped, nothing was received.
///
/// # Errors
///
/// If the stream fails. If there is no room, because nothing was taken:
/// [`InvalidInput`](io::ErrorKind::InvalidInput).
pub async fn receive_more<S: AsyncRead + Unpin + ?Sized>(
    stream: &mut S,
    received: &mut Received,
) -> io::Result<usize> {
    let len = stream.read(received.room()?).await?;
    received.filled(len);
    Ok(len)
}

/// Writes a [`Head`](crate::transmission::Head), or another beginning of a message, and the payload
/// that follows it: in one call, where the stream takes it so. For replies of a server and for
/// requests of a client.
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
