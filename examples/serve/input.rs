//! What a client sends: bytes, until they are decoded, and payload, to where it is needed.

use std::io::{self, Read};

use nbd_proto::transmission::RequestDecoder;
use nbd_proto::wire::Request;

use super::batch::Batch;
use super::channel::Channel;
use super::connection::Connection;
use super::payload::Payload;

/// Bytes taken from the socket at once. Payload beyond it is read straight to where it is needed.
const INPUT: usize = 64 << 10;

/// Bytes taken from the socket at once between large payloads.
const SIP: usize = 4 << 10;

/// Bytes that were read from the socket, but not decoded.
pub(crate) struct Input {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    /// How much to read next.
    appetite: usize,
}

impl Input {
    pub(crate) fn new() -> Self {
        Self {
            buffer: vec![0; INPUT].into_boxed_slice(),
            start: 0,
            end: 0,
            appetite: INPUT,
        }
    }

    pub(crate) fn unread(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Only the last `left` bytes have not been taken.
    pub(crate) fn keep(&mut self, left: usize) {
        self.start = self.end - left;
    }

    /// Reads once; 0 at the end. Everything that was there has been taken.
    pub(crate) fn fill(&mut self, channel: &Channel) -> io::Result<usize> {
        let mut stream = channel;
        self.start = 0;
        self.end = loop {
            match stream.read(&mut self.buffer[..self.appetite]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read?,
            }
        };
        Ok(self.end)
    }

    /// Takes the payload of the request that was just decoded.
    pub(crate) fn payload(
        &mut self,
        request: &Request,
        decoder: &mut RequestDecoder,
        connection: &Connection,
        batch: &mut Batch<'_>,
    ) -> io::Result<Payload> {
        let mut payload = batch.place_for(request);
        let here = self.unread();
        let take = usize::try_from(decoder.payload_left())
            .unwrap_or(usize::MAX)
            .min(here.len());
        let total = decoder.payload_left();
        payload.extend_within(total, &here[..take])?;
        self.start += take;
        decoder.payload_read(take as u64);
        // What is read along with a header is copied once more. Large payloads come in series:
        // then read little more than the header.
        self.appetite = if total < INPUT as u64 { INPUT } else { SIP };
        if decoder.payload_left() == 0 {
            return Ok(payload);
        }
        // Waiting for more with answers in hand would keep the client waiting, too.
        batch.finish()?;
        let _since = connection.receiving.now();
        let mut stream = &connection.channel;
        while decoder.payload_left() > 0 {
            let read = match stream.read(payload.space(total)?) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                read => read?,
            };
            if read == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
            }
            payload.filled(read);
            decoder.payload_read(read as u64);
        }
        Ok(payload)
    }
}
