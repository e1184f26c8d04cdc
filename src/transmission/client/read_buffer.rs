//! The answer to a read, put together in the caller's memory.

use alloc::collections::BTreeMap;
use core::ops::Range;

use super::event::{Payload, ReplyEvent};
use crate::wire::{CommandType, Cookie, Errno, Request};

/// A buffer whose size is not that of the read, or a request that is not a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the buffer has {buffer} bytes, and the request is not a read of as many")]
pub struct WrongBuffer {
    /// The size of the buffer in bytes.
    pub buffer: usize,
}

/// Puts the chunks of a reply to one read into a buffer, whatever their order, and knows afterwards
/// which bytes of it are good.
///
/// Give it every [`ReplyEvent`]; it takes those of its read. What the [`ReplyDecoder`] lets
/// through fits: it lies within the read, and nothing comes twice. Data that is read past the
/// decoder goes to the [`room`](Self::room) for it.
///
/// Until the reply has ended, nothing is good. After success everything is; after an error, what
/// [`good`](Self::good) says. What is not good may have been overwritten all the same.
///
/// ```
/// # use nbd_proto::transmission::{ReadBuffer, ReplyEvent};
/// # use nbd_proto::wire::{Cookie, Errno, Request};
/// let read = Request::read(Cookie(1), 4096, 8);
/// let mut memory = [0xff; 8];
/// let mut buffer = ReadBuffer::new(&read, &mut memory)?;
/// let cookie = Cookie(1);
/// buffer.take(&ReplyEvent::Hole { cookie, offset: 4100, length: 4 });
/// buffer.take(&ReplyEvent::Data { cookie, offset: 4096, bytes: b"ab", left: 2 });
/// buffer.take(&ReplyEvent::Data { cookie, offset: 4098, bytes: b"cd", left: 0 });
/// let (errno, message) = (Errno::EIO, String::new());
/// buffer.take(&ReplyEvent::Error { cookie, errno, offset: Some(4099), message });
/// assert_eq!(buffer.result(), None);
/// assert_eq!(buffer.good().count(), 0);
/// buffer.take(&ReplyEvent::Finished { cookie, result: Err(errno) });
/// assert!(buffer.good().eq([4096..4099, 4100..4104]));
/// assert_eq!(memory, *b"abcd\0\0\0\0");
/// # Ok::<(), nbd_proto::transmission::WrongBuffer>(())
/// ```
///
/// [`ReplyDecoder`]: super::ReplyDecoder
#[derive(Debug)]
pub struct ReadBuffer<'m> {
    cookie: Cookie,
    start: u64,
    memory: &'m mut [u8],
    // Where each chunk of content begins and ends. Each costs the server a header, and the decoder
    // bounds their number.
    chunks: BTreeMap<u64, Content>,
    // Whether an error came that says nothing about where.
    failed: bool,
    result: Option<Result<(), Errno>>,
}

/// One chunk of content.
#[derive(Clone, Copy, Debug)]
struct Content {
    end: u64,
    // Where the first error in it was, or its end.
    good_to: u64,
}

impl<'m> ReadBuffer<'m> {
    /// A buffer for the answer to `read`.
    ///
    /// # Errors
    ///
    /// If the request is not a read, or not of as many bytes as `memory` has.
    pub fn new(read: &Request, memory: &'m mut [u8]) -> Result<Self, WrongBuffer> {
        if read.kind != CommandType::READ || memory.len() as u64 != read.length {
            return Err(WrongBuffer {
                buffer: memory.len(),
            });
        }
        Ok(Self {
            cookie: read.cookie,
            start: read.offset,
            memory,
            chunks: BTreeMap::new(),
            failed: false,
            result: None,
        })
    }

    /// Takes an event, if it is about this read; says whether it is.
    ///
    /// After the end of the reply, no event is: the cookie may belong to another request. An event
    /// that is about another read belongs into the buffer of that.
    pub fn take(&mut self, event: &ReplyEvent<'_>) -> bool {
        if self.result.is_some() {
            return false;
        }
        match *event {
            ReplyEvent::Data {
                cookie,
                offset,
                bytes,
                left,
            } if cookie == self.cookie => {
                if let Some(place) = self.place(offset, bytes.len() as u64, left) {
                    place.copy_from_slice(bytes);
                }
            }
            ReplyEvent::Hole {
                cookie,
                offset,
                length,
            } if cookie == self.cookie => {
                if let Some(place) = self.place(offset, length, 0) {
                    place.fill(0);
                }
            }
            ReplyEvent::Error { cookie, offset, .. } if cookie == self.cookie => match offset {
                Some(offset) => self.fail_at(offset),
                None => self.failed = true,
            },
            ReplyEvent::Finished { cookie, result } if cookie == self.cookie => {
                self.result = Some(result);
            }
            _ => return false,
        }
        true
    }

    /// Where the data that comes next in the stream belongs: `payload.left` bytes, to be read
    /// there, whole or in part. `None` if it is not for this read.
    ///
    /// What was read there is told to the decoder
    /// ([`payload_read`](super::ReplyDecoder::payload_read)), and to nobody else.
    pub fn room(&mut self, payload: &Payload) -> Option<&mut [u8]> {
        if payload.cookie != self.cookie || self.result.is_some() {
            return None;
        }
        self.place(payload.offset, payload.left, 0)
    }

    /// How the read went; `None` until the reply has ended.
    #[must_use]
    pub const fn result(&self) -> Option<Result<(), Errno>> {
        self.result
    }

    /// Which parts of the export are in the buffer as the server has them: disjoint ranges in
    /// ascending order. None until the reply has ended, and all after success.
    ///
    /// # Spec
    ///
    /// proto.md, under `NBD_CMD_READ`: "As long as all errors are accompanied by offsets, the
    /// client MAY assume that any data chunks with no subsequent error offset are valid, that
    /// chunks with an overlapping error offset errors are valid up until the reported offset, and
    /// that portions of the read that do not have a corresponding content chunk are not valid."
    pub fn good(&self) -> impl Iterator<Item = Range<u64>> {
        let known = match self.result {
            Some(Ok(())) => true,
            Some(Err(_)) => !self.failed,
            None => false,
        };
        let chunks = self.chunks.iter().take_while(move |_| known);
        chunks
            .map(|(&start, content)| start..content.good_to)
            .filter(|range| !range.is_empty())
    }

    /// The place of `length` bytes at `offset`, which belong to a chunk that goes on for `left`
    /// bytes after them.
    fn place(&mut self, offset: u64, length: u64, left: u64) -> Option<&mut [u8]> {
        let start = usize::try_from(offset.checked_sub(self.start)?).ok()?;
        let end = start.checked_add(usize::try_from(length).ok()?)?;
        let chunk_end = offset.checked_add(length)?.checked_add(left)?;
        let place = self.memory.get_mut(start..end)?;
        // A piece that continues a chunk is part of what its first piece announced.
        let before = self.chunks.range(..=offset).next_back();
        if before.is_none_or(|(_, content)| content.end <= offset) {
            let content = Content {
                end: chunk_end,
                good_to: chunk_end,
            };
            self.chunks.insert(offset, content);
        }
        Some(place)
    }

    fn fail_at(&mut self, offset: u64) {
        // "the server MUST ensure that the content chunk is sent first if a content and error
        // chunk cover the same offset": an error where nothing came is about nothing that is here.
        if let Some((_, content)) = self.chunks.range_mut(..=offset).next_back() {
            content.good_to = content.good_to.min(offset);
        }
    }
}
