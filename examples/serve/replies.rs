//! Replies that are sent together: heads and data, one after the other, in one buffer.

use std::io;

use nbd_proto::transmission::{Head, ReplyEncoder};
use nbd_proto::wire::{Errno, Request};

use super::execute::to_errno;

/// What the buffer may keep when it is empty; a single large read grows it for a moment.
const KEEP: usize = 4 << 20;

/// The buffer is only ever filled up to `len`, and keeps what is beyond initialized, so that
/// space for data need not be zeroed before each read.
#[derive(Debug)]
pub(crate) struct Replies {
    buffer: Vec<u8>,
    len: usize,
}

impl Replies {
    pub(crate) const fn new() -> Self {
        Self {
            buffer: Vec::new(),
            len: 0,
        }
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn space(&mut self, more: usize) -> &mut [u8] {
        let end = self.len + more;
        if self.buffer.len() < end {
            self.buffer.resize(end, 0);
        }
        &mut self.buffer[self.len..end]
    }

    fn push(&mut self, bytes: &[u8]) {
        self.space(bytes.len()).copy_from_slice(bytes);
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
        match read(self.space(length)) {
            Ok(true) => {
                self.len += length;
                Some(Ok(()))
            }
            Ok(false) => {
                self.len = start;
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

    /// Hands over everything, and is empty again.
    pub(crate) fn send(&mut self, send: impl FnOnce(&[u8])) {
        send(&self.buffer[..self.len]);
        self.len = 0;
        if self.buffer.len() > KEEP {
            self.buffer = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nbd_proto::session::Session;
    use nbd_proto::wire::{Cookie, Name, TransmissionFlags};

    fn sent(replies: &mut Replies) -> Vec<u8> {
        let mut bytes = Vec::new();
        replies.send(|sent| bytes.extend_from_slice(sent));
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
}
