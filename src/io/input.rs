//! What the drivers of transmission have in common, whatever they wait with.

use std::io;

use super::Error;
use super::received::Received;
use crate::limits::Limits;
use crate::session::Session;
use crate::transmission::{
    ReadBuffer, ReplyDecoder, ReplyEvent, RequestDecoder, RequestEvent, client, server,
};
use crate::wire::Request;

#[derive(Debug)]
pub(super) struct RequestInput {
    pub(super) received: Received,
    pub(super) decoder: RequestDecoder,
    disconnected: bool,
}

pub(super) enum Taken {
    Request(Request),
    Disconnect,
}

impl RequestInput {
    pub(super) fn new(session: &Session, limits: &Limits) -> Self {
        Self {
            received: Received::new(),
            decoder: RequestDecoder::new(session, limits),
            disconnected: false,
        }
    }

    /// The next request, unless more has to be received.
    pub(super) fn next(&mut self) -> Result<Option<Taken>, server::Fatal> {
        if self.disconnected {
            return Ok(Some(Taken::Disconnect));
        }
        self.decoder.skip_payload();
        let decoder = &mut self.decoder;
        Ok(match self.received.decode(|input| decoder.next(input))? {
            Some(RequestEvent::Request(request)) => Some(Taken::Request(request)),
            Some(RequestEvent::Disconnect) => {
                self.disconnected = true;
                Some(Taken::Disconnect)
            }
            // It is skipped.
            Some(RequestEvent::Payload(_)) | None => None,
        })
    }

    /// The client has closed the connection.
    pub(super) fn ended<T>(&self) -> Result<Option<T>, Error<server::Fatal>> {
        self.decoder.on_eof().map_err(Error::Closed)?;
        Ok(None)
    }

    /// Takes what was received of the payload into `memory`. How much that was; `None` if it has to
    /// come from the stream.
    pub(super) fn take_payload(
        &mut self,
        memory: &mut [u8],
    ) -> Result<Option<usize>, Error<server::Fatal>> {
        if memory.len() as u64 > self.decoder.payload_left() {
            let why = "the request has less payload than that";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why).into());
        }
        let taken = self.received.take(memory);
        self.decoder.payload_read(taken as u64);
        Ok((taken > 0 || memory.is_empty()).then_some(taken))
    }

    /// So much payload came from the stream; none means that it has ended.
    pub(super) fn payload_read(&mut self, len: usize) -> Result<usize, Error<server::Fatal>> {
        if len == 0 {
            return Err(Error::Closed(server::Fatal::Eof));
        }
        self.decoder.payload_read(len as u64);
        Ok(len)
    }
}

#[derive(Debug)]
pub(super) struct ReplyInput {
    pub(super) received: Received,
    pub(super) decoder: ReplyDecoder,
}

impl ReplyInput {
    pub(super) fn new(session: &Session, limits: &Limits, capacity: usize) -> Self {
        Self {
            received: Received::new(),
            decoder: ReplyDecoder::new(session, limits, capacity),
        }
    }

    pub(super) fn next(&mut self) -> Result<Option<ReplyEvent<'_>>, client::Fatal> {
        let decoder = &mut self.decoder;
        self.received.decode(|input| decoder.next(input))
    }

    /// The server has closed the connection: never in order, for a client asks for it by a
    /// disconnect, and then reads no more.
    pub(super) fn ended(&self) -> Error<client::Fatal> {
        match self.decoder.on_eof() {
            Err(why) => Error::Closed(why),
            Ok(()) => Error::Io(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// The place in `buffer` for the data that comes next in the stream, if that is data for it.
    pub(super) fn room_in<'m>(&self, buffer: &'m mut ReadBuffer<'_>) -> Option<&'m mut [u8]> {
        // What was received comes before what is still in the stream.
        if !self.received.unread().is_empty() {
            return None;
        }
        let payload = self.decoder.payload()?;
        buffer.room(&payload).filter(|room| !room.is_empty())
    }
}
