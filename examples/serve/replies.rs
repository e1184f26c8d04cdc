//! Replies that are sent together: heads and data, one after the other, in one buffer; but for
//! data that can be sent from where it lies.

use std::io::{self, IoSlice};

use nbd_proto::transmission::{Head, ReplyEncoder};
use nbd_proto::wire::{Errno, Request};

use super::backend::Piece;
use super::execute::to_errno;

/// What the buffer may keep when it is empty; a single large read grows it for a moment.
const KEEP: usize = 1 << 20;

/// The least by which the buffer grows. Not by a share of itself: it may be large already.
const STEP: usize = 64 << 10;

/// The buffer is only ever filled up to `len`, and keeps what is beyond initialized, so that
/// space for data need not be zeroed before each read.
#[derive(Debug)]
pub(crate) struct Replies {
    buffer: Vec<u8>,
    len: usize,
    /// What goes between the bytes of the buffer, and where.
    pieces: Vec<(usize, Piece)>,
}

impl Replies {
    pub(crate) const fn new() -> Self {
        Self {
            buffer: Vec::new(),
            len: 0,
            pieces: Vec::new(),
        }
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// By how much the buffer has to grow for `more` bytes.
    fn missing(&self, more: usize) -> usize {
        match (self.len + more).saturating_sub(self.buffer.len()) {
            0 => 0,
            missing => missing.max(STEP),
        }
    }

    /// The place of the next `more` bytes, if there is memory for them.
    fn space(&mut self, more: usize) -> io::Result<&mut [u8]> {
        let missing = self.missing(more);
        self.buffer
            .try_reserve_exact(missing)
            .map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        self.buffer.resize(self.buffer.len() + missing, 0);
        Ok(&mut self.buffer[self.len..self.len + more])
    }

    /// For heads and messages alone: a server that has no memory for these can say nothing.
    fn push(&mut self, bytes: &[u8]) {
        let missing = self.missing(bytes.len());
        self.buffer.reserve_exact(missing);
        self.buffer.resize(self.buffer.len() + missing, 0);
        self.buffer[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    pub(crate) fn ok(&mut self, encoder: &ReplyEncoder, request: &Request) {
        self.push(&encoder.ok(request));
    }

    pub(crate) fn result(
        &mut self,
        encoder: &ReplyEncoder,
        request: &Request,
        result: Result<(), Errno>,
    ) {
        match result {
            Ok(()) => self.push(&encoder.ok(request)),
            Err(errno) => self.push(&encoder.fail(request, errno)),
        }
    }

    pub(crate) fn error(
        &mut self,
        encoder: &ReplyEncoder,
        request: &Request,
        errno: Errno,
        message: &str,
    ) {
        let mut reply = Vec::new();
        encoder.error(request, errno, message, &mut reply);
        self.push(&reply);
    }

    /// A reply without data.
    pub(crate) fn heads(&mut self, heads: &[Head]) {
        for head in heads {
            self.push(head);
        }
    }

    /// A reply that was put together elsewhere, or why it was not.
    pub(crate) fn whole(
        &mut self,
        encoder: &ReplyEncoder,
        request: &Request,
        reply: Result<Vec<u8>, Errno>,
    ) -> Result<(), Errno> {
        match reply {
            Ok(reply) => {
                self.push(&reply);
                Ok(())
            }
            Err(errno) => {
                self.push(&encoder.fail(request, errno));
                Err(errno)
            }
        }
    }

    /// The reply to a read, whose data `read` puts in its place.
    pub(crate) fn read(
        &mut self,
        encoder: &ReplyEncoder,
        request: &Request,
        read: impl FnOnce(&mut [u8]) -> io::Result<()>,
    ) -> Result<(), Errno> {
        let done = self.try_read(encoder, request, |buffer| read(buffer).map(|()| true));
        done.unwrap_or(Err(Errno::EIO))
    }

    /// The reply to a read whose data stays where it is.
    pub(crate) fn pieces(&mut self, encoder: &ReplyEncoder, request: &Request, data: Vec<Piece>) {
        match encoder.read(request) {
            Ok(head) => {
                self.push(&head);
                let at = self.len;
                self.pieces
                    .extend(data.into_iter().map(|piece| (at, piece)));
            }
            // What passed the check fits into one reply.
            Err(_) => self.push(&encoder.fail(request, Errno::EINVAL)),
        }
    }

    /// The same for a read that may find that it has to wait: then nothing is left behind.
    pub(crate) fn try_read(
        &mut self,
        encoder: &ReplyEncoder,
        request: &Request,
        read: impl FnOnce(&mut [u8]) -> io::Result<bool>,
    ) -> Option<Result<(), Errno>> {
        let start = self.len;
        let length = usize::try_from(request.length);
        let (Ok(head), Ok(length)) = (encoder.read(request), length) else {
            self.push(&encoder.fail(request, Errno::EINVAL));
            return Some(Err(Errno::EINVAL));
        };
        self.push(&head);
        match self.space(length).and_then(read) {
            Ok(true) => {
                self.len += length;
                Some(Ok(()))
            }
            Ok(false) => {
                self.len = start;
                // The data goes elsewhere, and the memory with it.
                if self.buffer.len() > KEEP {
                    self.buffer.truncate(self.len.max(KEEP));
                    self.buffer.shrink_to_fit();
                }
                None
            }
            Err(error) => {
                // No part of the success may be sent.
                self.len = start;
                let errno = to_errno(&error);
                self.push(&encoder.fail(request, errno));
                Some(Err(errno))
            }
        }
    }

    /// Brings data that lies elsewhere into the processor's cache.
    pub(crate) fn warm(&self) {
        self.pieces.iter().for_each(|(_, piece)| piece.warm());
    }

    /// Hands over everything, and is empty again.
    pub(crate) fn send(&mut self, send: impl FnOnce(&mut [IoSlice<'_>])) {
        let bytes = &self.buffer[..self.len];
        if self.pieces.is_empty() {
            send(&mut [IoSlice::new(bytes)]);
        } else {
            let mut slices = Vec::with_capacity(2 * self.pieces.len() + 1);
            let mut from = 0;
            for (at, piece) in &self.pieces {
                if *at > from {
                    slices.push(IoSlice::new(&bytes[from..*at]));
                    from = *at;
                }
                slices.push(IoSlice::new(piece.bytes()));
            }
            slices.push(IoSlice::new(&bytes[from..]));
            send(&mut slices);
            self.pieces.clear();
        }
        self.len = 0;
        if self.buffer.len() > KEEP {
            self.buffer = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::backend::{Backend, MemoryBackend};
    use super::*;
    use nbd_proto::session::Session;
    use nbd_proto::wire::{Cookie, Name, TransmissionFlags};
    use proptest::prelude::*;

    fn sent(replies: &mut Replies) -> Vec<u8> {
        let mut bytes = Vec::new();
        replies.send(|sent| {
            for slice in sent {
                bytes.extend_from_slice(slice);
            }
        });
        bytes
    }

    #[test]
    fn a_read_that_fails_leaves_an_error_and_no_data() {
        let session = Session::new(Name::default(), 4096, TransmissionFlags::HAS_FLAGS);
        let encoder = ReplyEncoder::new(&session);
        let request = Request::read(Cookie(7), 0, 4);
        let mut replies = Replies::new();
        let result = replies.read(&encoder, &request, |buffer| {
            buffer.fill(9);
            Err(io::Error::other("broken"))
        });
        assert_eq!(result, Err(Errno::EIO));
        assert_eq!(
            sent(&mut replies),
            encoder.fail(&request, Errno::EIO).to_vec()
        );
    }

    #[test]
    fn a_read_for_which_there_is_no_memory_is_refused() {
        let session = Session::new(Name::default(), u64::MAX, TransmissionFlags::HAS_FLAGS);
        let mut replies = Replies::new();
        replies.push(b"before");
        assert!(replies.space(usize::MAX / 4).is_err());
        let encoder = ReplyEncoder::new(&session);
        replies.ok(&encoder, &Request::flush(Cookie(1)));
        let expected = [b"before", &encoder.ok(&Request::flush(Cookie(1)))[..]].concat();
        assert_eq!(sent(&mut replies), expected);
    }

    #[test]
    fn a_large_read_that_would_wait_leaves_no_memory_taken() {
        let session = Session::new(Name::default(), u64::MAX, TransmissionFlags::HAS_FLAGS);
        let encoder = ReplyEncoder::new(&session);
        let mut replies = Replies::new();
        replies.push(b"before");
        let large = Request::read(Cookie(1), 0, 32 << 20);
        assert!(replies.try_read(&encoder, &large, |_| Ok(false)).is_none());
        assert!(replies.buffer.capacity() <= KEEP);
        assert_eq!(sent(&mut replies), b"before");
    }

    #[test]
    fn a_large_reply_does_not_make_the_buffer_grow_beyond_what_follows() {
        let mut replies = Replies::new();
        replies.space(8 << 20).unwrap();
        replies.len = 8 << 20;
        replies.push(b"a little more");
        assert!(replies.buffer.capacity() <= (8 << 20) + 2 * STEP);
        sent(&mut replies);
        assert_eq!(replies.buffer.capacity(), 0, "it is not kept");
    }

    #[test]
    fn a_read_that_would_wait_leaves_nothing() {
        let session = Session::new(Name::default(), 4096, TransmissionFlags::HAS_FLAGS);
        let encoder = ReplyEncoder::new(&session);
        let first = Request::read(Cookie(1), 0, 2);
        let mut replies = Replies::new();
        assert!(replies.try_read(&encoder, &first, |_| Ok(false)).is_none());
        assert!(replies.is_empty());
        let second = replies.try_read(&encoder, &first, |buffer| {
            buffer.copy_from_slice(b"ab");
            Ok(true)
        });
        assert_eq!(second, Some(Ok(())));
        let expected = [&encoder.read(&first).unwrap()[..], b"ab"].concat();
        assert_eq!(sent(&mut replies), expected);
        assert!(replies.is_empty());
    }

    #[derive(Clone, Debug)]
    enum Reply {
        Ok,
        Fail,
        Read(usize, usize),
    }

    fn replies() -> impl Strategy<Value = Vec<Reply>> {
        let reply = prop_oneof![
            Just(Reply::Ok),
            Just(Reply::Fail),
            (0..300_000usize, 1..200_000usize).prop_map(|(at, length)| Reply::Read(at, length)),
        ];
        prop::collection::vec(reply, 1..8)
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: 64, ..Default::default() })]

        /// Data that is sent from where it lies comes where copied data would be.
        #[test]
        fn data_stands_between_its_heads_copied_or_not(wanted in replies()) {
            const SIZE: usize = 500_000;
            let memory = MemoryBackend::new(SIZE as u64, None).unwrap();
            let handle = memory.open().unwrap();
            let contents: Vec<u8> = (0..SIZE).map(|at| ((at * at) >> 7) as u8 | 1).collect();
            handle.write(0, &contents, false).unwrap();
            let session = Session::new(Name::default(), SIZE as u64, TransmissionFlags::HAS_FLAGS);
            let encoder = ReplyEncoder::new(&session);
            let (mut copied, mut shown) = (Replies::new(), Replies::new());
            for (cookie, reply) in (0..).map(Cookie).zip(wanted) {
                match reply {
                    Reply::Ok => {
                        let request = Request::flush(cookie);
                        copied.ok(&encoder, &request);
                        shown.ok(&encoder, &request);
                    }
                    Reply::Fail => {
                        let request = Request::flush(cookie);
                        copied.result(&encoder, &request, Err(Errno::EIO));
                        shown.result(&encoder, &request, Err(Errno::EIO));
                    }
                    Reply::Read(at, length) => {
                        let request = Request::read(cookie, at as u64, length as u64);
                        let read = |buffer: &mut [u8]| handle.read(at as u64, buffer);
                        copied.read(&encoder, &request, read).unwrap();
                        let pieces = handle.pieces(at as u64, length).unwrap();
                        shown.pieces(&encoder, &request, pieces);
                    }
                }
            }
            shown.warm();
            prop_assert!(sent(&mut shown) == sent(&mut copied));
            prop_assert!(shown.is_empty() && shown.pieces.is_empty());
        }
    }
}
