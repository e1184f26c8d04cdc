//! Bytes between a stream and a decoder.

use alloc::boxed::Box;
use alloc::vec;
use core::fmt;
use std::io::{self, Read};

/// Bytes that were received from a stream, and that no decoder has taken yet.
///
/// [`Requests`](super::Requests) and [`Replies`](super::Replies) have one inside. It is a part of
/// its own for programs that keep stream and decoder apart: those that wait for input in one thread
/// while another tells the same [`ReplyDecoder`](crate::transmission::ReplyDecoder) what it sends.
///
/// ```
/// use nbd_proto::io::Received;
/// use nbd_proto::limits::Limits;
/// use nbd_proto::session::Session;
/// use nbd_proto::transmission::{ReplyDecoder, ReplyEvent};
/// use nbd_proto::wire::{Cookie, Name, Request, SimpleReply, TransmissionFlags};
///
/// let flags = TransmissionFlags::HAS_FLAGS | TransmissionFlags::SEND_FLUSH;
/// let session = Session::new(Name::default(), 4096, flags);
/// let mut decoder = ReplyDecoder::new(&session, &Limits::new(), 1);
/// decoder.expect(&Request::flush(Cookie(1)))?;
///
/// let reply = SimpleReply { result: Ok(()), cookie: Cookie(1) }.to_bytes();
/// let mut stream = &reply[..];
/// let mut received = Received::with_capacity(8);
/// loop {
///     // Locked only here, if it is shared.
///     if let Some(event) = received.decode(|input| decoder.next(input))? {
///         assert_eq!(event, ReplyEvent::Finished { cookie: Cookie(1), result: Ok(()) });
///         break;
///     }
///     assert_ne!(received.receive(&mut stream)?, 0);
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Received {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Received {
    /// How many bytes there is room for, unless it is said otherwise: many small requests, or a
    /// small part of a large payload.
    pub const CAPACITY: usize = 64 << 10;

    /// Nothing was received; there is room for [`CAPACITY`](Self::CAPACITY) bytes.
    #[must_use]
    pub fn new() -> Self {
        Self::with_capacity(Self::CAPACITY)
    }

    /// With room for so many bytes; for one, if that is 0.
    #[must_use]
    pub fn with_capacity(bytes: usize) -> Self {
        Self {
            buffer: vec![0; bytes.max(1)].into_boxed_slice(),
            start: 0,
            end: 0,
        }
    }

    /// What was received and not taken.
    #[must_use]
    pub fn unread(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    /// Has `decode` take what it can; returns what it made of it.
    pub fn decode<'b, T>(&'b mut self, decode: impl FnOnce(&mut &'b [u8]) -> T) -> T {
        let mut rest = self.buffer.get(self.start..self.end).unwrap_or_default();
        let decoded = decode(&mut rest);
        self.start = self.end - rest.len().min(self.end);
        decoded
    }

    /// Takes what fits into `memory`; how much, is the result.
    pub(super) fn take(&mut self, memory: &mut [u8]) -> usize {
        self.decode(|input| {
            let len = input.len().min(memory.len());
            if let (Some((taken, rest)), Some(room)) =
                (input.split_at_checked(len), memory.get_mut(..len))
            {
                room.copy_from_slice(taken);
                *input = rest;
            }
            len
        })
    }

    /// Receives once, behind what was not taken yet; waits as the stream does. 0 means that the
    /// peer has closed the connection.
    ///
    /// # Errors
    ///
    /// If the stream fails, other than by an interruption. If there is no room, because nothing
    /// was taken: [`InvalidInput`](io::ErrorKind::InvalidInput).
    pub fn receive<S: Read + ?Sized>(&mut self, stream: &mut S) -> io::Result<usize> {
        let room = self.room()?;
        let len = read(stream, room)?;
        self.filled(len);
        Ok(len)
    }

    /// Where the next bytes go: not empty.
    pub(super) fn room(&mut self) -> io::Result<&mut [u8]> {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        match self.buffer.get_mut(self.end..) {
            None | Some([]) => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "what was received has to be decoded before there is room for more",
            )),
            Some(room) => Ok(room),
        }
    }

    /// So many bytes of the room are filled.
    pub(super) fn filled(&mut self, len: usize) {
        self.end = self.end.saturating_add(len).min(self.buffer.len());
    }
}

/// Reads once, however often that is interrupted.
pub(super) fn read<S: Read + ?Sized>(stream: &mut S, room: &mut [u8]) -> io::Result<usize> {
    loop {
        match stream.read(room) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => return read,
        }
    }
}

impl Default for Received {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Received {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Received")
            .field("unread", &(self.end - self.start))
            .field("capacity", &self.buffer.len())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_taken_stays_and_more_comes_behind_it() {
        let mut stream = &b"abcdefgh"[..];
        let mut received = Received::with_capacity(4);
        assert_eq!(received.receive(&mut stream).unwrap(), 4);
        let mut memory = [0; 3];
        assert_eq!(received.take(&mut memory), 3);
        assert_eq!((&memory, received.unread()), (b"abc", &b"d"[..]));
        assert_eq!(received.receive(&mut stream).unwrap(), 3);
        assert_eq!(received.unread(), b"defg");
        let error = received.receive(&mut stream).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert_eq!(received.decode(std::mem::take), b"defg");
        assert_eq!(received.receive(&mut stream).unwrap(), 1);
        assert_eq!(received.unread(), b"h");
        assert_eq!(received.receive(&mut stream).unwrap(), 0);
        assert_eq!(received.unread(), b"h");
    }
}
