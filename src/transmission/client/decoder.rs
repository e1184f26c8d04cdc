//! Replies, as a client reads them.

mod chunk;

use alloc::vec::Vec;

use super::super::in_flight::{Bounds, InFlight, Pending, Unexpectable};
use super::{Fatal, Payload, ReplyEvent, Violation};
use crate::limits::Limits;
use crate::session::{ReplyStyle, Session};
use crate::wire::{
    Chunk, CommandFlags, CommandType, Cookie, DataHead, EXTENDED_REPLY_MAGIC, Errno, Request,
    SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, SimpleReply, StatusQuery,
};

/// Turns bytes from a server into replies, and checks them against what was asked.
///
/// Tell it of every request with [`expect`](Self::expect), before the request is sent. Feed it
/// with [`next`](Self::next); when it returns `None`, get more bytes. Data need not go through the
/// input: [`payload`](Self::payload) says what comes next and where it belongs, and
/// [`payload_read`](Self::payload_read) takes the news that it was read.
///
/// After an error, every call returns the same error. Memory is bounded by the number of requests
/// in flight, and for each of them by [`Limits::max_chunks`]; replies that come in order need none.
#[derive(Clone, Debug)]
pub struct ReplyDecoder {
    style: ReplyStyle,
    contexts: Vec<u32>,
    max_payload: u64,
    max_read: u64,
    max_drain: u64,
    max_chunks: u32,
    max_extents: u32,
    bounds: Bounds,
    in_flight: InFlight,
    shutting_down: bool,
    phase: Phase,
    // The chunk at hand: whose it is, whether it is the last, how much of it is still to come.
    cookie: Cookie,
    last: bool,
    left: u64,
    // Fixed fields that came in pieces.
    partial: [u8; Chunk::EXTENDED_LEN],
    filled: usize,
    // The error message at hand.
    message: Vec<u8>,
}

/// What comes next in the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Header,
    DataHead,
    Data {
        at: u64,
    },
    Hole,
    ErrorHead {
        has_offset: bool,
    },
    Message {
        errno: Errno,
        left: u64,
        has_offset: bool,
    },
    ErrorOffset {
        errno: Errno,
    },
    ErrorTail,
    StatusHead,
    Status {
        context: u32,
        before: u64,
    },
    End,
    Failed(Fatal),
}

enum Step<'b> {
    Next,
    NeedInput,
    Event(ReplyEvent<'b>),
}

impl ReplyDecoder {
    /// A decoder for a session with at most `capacity` requests in flight.
    #[must_use]
    pub fn new(session: &Session, limits: &Limits, capacity: usize) -> Self {
        let max_payload = session
            .block_sizes()
            .max_payload()
            .min(limits.max_payload());
        // proto.md "Size constraints": with chunks, a read may be larger than the maximum payload.
        // But where the server need not split it, it must not be larger than our own limit.
        let max_read = match session.reply_style() {
            ReplyStyle::Simple => max_payload,
            ReplyStyle::Structured | ReplyStyle::Extended => limits.max_payload(),
        };
        Self {
            style: session.reply_style(),
            contexts: session
                .contexts()
                .iter()
                .map(|context| context.id)
                .collect(),
            max_payload: max_payload.into(),
            max_read: max_read.into(),
            max_drain: limits.max_drain().into(),
            max_chunks: limits.max_chunks(),
            max_extents: limits.max_extents(),
            bounds: Bounds {
                size: session.size(),
                minimum: session.block_sizes().minimum().into(),
            },
            in_flight: InFlight::new(capacity),
            shutting_down: false,
            phase: Phase::Header,
            cookie: Cookie(0),
            last: false,
            left: 0,
            partial: [0; Chunk::EXTENDED_LEN],
            filled: 0,
            message: Vec::new(),
        }
    }

    /// Takes note of a request that is about to be sent.
    ///
    /// # Errors
    ///
    /// If its reply cannot be waited for; the request must not be sent then. A block status request
    /// with payload is for [`expect_status`](Self::expect_status).
    pub fn expect(&mut self, request: &Request) -> Result<(), Unexpectable> {
        let owed = match request.kind {
            CommandType::BLOCK_STATUS if request.flags.contains(CommandFlags::PAYLOAD_LEN) => {
                return Err(Unexpectable::NeedsQuery);
            }
            CommandType::BLOCK_STATUS => self.contexts.clone(),
            _ => Vec::new(),
        };
        self.expect_range(request, request.length, owed)
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
        // The server "detects duplicate or unknown metacontext ids"; and no more are kept than
        // there are contexts.
        let ids = query.ids();
        let known = |id| self.contexts.contains(&id);
        let is_repeated = |(at, id)| query.ids().take(at).any(|earlier| earlier == id);
        if ids.len() == 0
            || ids.len() > self.contexts.len()
            || !ids.clone().all(known)
            || ids.clone().enumerate().any(is_repeated)
        {
            return Err(Unexpectable::BadContexts);
        }
        self.expect_range(request, query.effect_length(), ids.collect())
    }

    fn expect_range(
        &mut self,
        request: &Request,
        effect_length: u64,
        owed: Vec<u32>,
    ) -> Result<(), Unexpectable> {
        match request.kind {
            CommandType::DISC => return Err(Unexpectable::Disconnect),
            CommandType::READ if request.length > self.max_read => {
                return Err(Unexpectable::TooLarge {
                    limit: self.max_read,
                });
            }
            _ => {}
        }
        self.in_flight
            .add(Pending::new(request, effect_length, owed)?)
    }

    /// How many requests are not answered yet.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// The requests that are not answered yet, in the order of their cookies.
    pub fn unanswered(&self) -> impl Iterator<Item = &Request> {
        self.in_flight.iter()
    }

    /// Whether the server has answered a request with `ESHUTDOWN`. The client then has to
    /// disconnect: no more requests, a [`disconnect`](Request::disconnect) once the others are
    /// answered (proto.md "Terminating the transmission phase").
    #[must_use]
    pub const fn is_shutting_down(&self) -> bool {
        self.shutting_down
    }

    /// The most bytes that can be taken before the next decision: what is left of the header or of
    /// the chunk. 0 after an error, and where [`next`](Self::next) has an event without input.
    ///
    /// Reading more is fine, and faster, where what comes after is read by this decoder too.
    #[must_use]
    pub fn wants(&self) -> usize {
        match self.phase {
            Phase::Header => {
                let magic = (self.filled >= 4)
                    .then(|| self.partial.first_chunk())
                    .flatten();
                let len = match magic.map(|magic| self.header_len(*magic)) {
                    Some(Ok(len)) => len,
                    // Every header is at least as long as the shortest of its style.
                    _ => match self.style {
                        ReplyStyle::Simple | ReplyStyle::Structured => SimpleReply::LEN,
                        ReplyStyle::Extended => Chunk::EXTENDED_LEN,
                    },
                };
                len.saturating_sub(self.filled)
            }
            Phase::End | Phase::Failed(_) => 0,
            _ => usize::try_from(self.left).unwrap_or(usize::MAX),
        }
    }

    /// Takes what comes next from the input and advances it past what was taken. `None` if more
    /// input is needed.
    ///
    /// # Errors
    ///
    /// If the server broke a rule and has to be hung up on.
    pub fn next<'b>(&mut self, input: &mut &'b [u8]) -> Result<Option<ReplyEvent<'b>>, Fatal> {
        loop {
            match self.step(input) {
                Ok(Step::Next) => {}
                Ok(Step::NeedInput) => return Ok(None),
                Ok(Step::Event(event)) => return Ok(Some(event)),
                Err(why) => return Err(self.fail(why)),
            }
        }
    }

    fn step<'b>(&mut self, input: &mut &'b [u8]) -> Result<Step<'b>, Fatal> {
        match self.phase {
            Phase::Header => self.header(input),
            Phase::DataHead => self.data_head(input),
            Phase::Data { at } => Ok(self.data(at, input)),
            Phase::Hole => self.hole(input),
            Phase::ErrorHead { has_offset } => self.error_head(has_offset, input),
            Phase::Message {
                errno,
                left,
                has_offset,
            } => self.message(errno, left, has_offset, input),
            Phase::ErrorOffset { errno } => self.error_offset(errno, input),
            Phase::ErrorTail => Ok(self.error_tail(input)),
            Phase::StatusHead => self.status_head(input),
            Phase::Status { context, before } => self.status(context, before, input),
            Phase::End => self.end(),
            Phase::Failed(why) => Err(why),
        }
    }

    // --- headers ---

    fn header<'b>(&mut self, input: &mut &'b [u8]) -> Result<Step<'b>, Fatal> {
        if !self.fill(4, input) {
            return Ok(Step::NeedInput);
        }
        let magic = self.partial.first_chunk().copied().unwrap_or_default();
        let len = self.header_len(magic)?;
        if !self.fill(len, input) {
            return Ok(Step::NeedInput);
        }
        self.filled = 0;
        let partial = self.partial;
        let decoded = match u32::from_be_bytes(magic) {
            SIMPLE_REPLY_MAGIC => {
                let bytes = partial.first_chunk().copied().unwrap_or_default();
                match SimpleReply::from_bytes(&bytes) {
                    Ok(reply) => return self.simple(reply),
                    Err(why) => Err(why),
                }
            }
            STRUCTURED_REPLY_MAGIC => {
                let bytes = partial.first_chunk().copied().unwrap_or_default();
                Chunk::from_structured(&bytes).map(|chunk| (chunk, None))
            }
            _ => Chunk::from_extended(&partial).map(|(chunk, offset)| (chunk, Some(offset))),
        };
        match decoded {
            Ok((chunk, offset)) => self.chunk(chunk, offset),
            Err(_) => Err(Fatal::Magic {
                found: u32::from_be_bytes(magic),
            }),
        }
    }

    /// How long the header is that begins with `magic`; proto.md "Transmission" says which may
    /// come.
    fn header_len(&self, magic: [u8; 4]) -> Result<usize, Fatal> {
        let found = u32::from_be_bytes(magic);
        match (found, self.style) {
            (SIMPLE_REPLY_MAGIC, ReplyStyle::Simple | ReplyStyle::Structured) => {
                Ok(SimpleReply::LEN)
            }
            (STRUCTURED_REPLY_MAGIC, ReplyStyle::Structured) => Ok(Chunk::STRUCTURED_LEN),
            (EXTENDED_REPLY_MAGIC, ReplyStyle::Extended) => Ok(Chunk::EXTENDED_LEN),
            (SIMPLE_REPLY_MAGIC | STRUCTURED_REPLY_MAGIC | EXTENDED_REPLY_MAGIC, _) => {
                Err(Fatal::Style { found })
            }
            _ => Err(Fatal::Magic { found }),
        }
    }

    fn simple<'b>(&mut self, reply: SimpleReply) -> Result<Step<'b>, Fatal> {
        self.cookie = reply.cookie;
        self.last = true;
        self.left = 0;
        self.phase = Phase::End;
        let structured = self.style == ReplyStyle::Structured;
        let (at, left) = self.with_request(|pending| {
            let request = pending.request;
            // proto.md "Structured reply chunk message": "MUST NOT use a simple reply for
            // NBD_CMD_READ (even for the case of an early NBD_EINVAL due to bad flags)"
            if structured && request.kind == CommandType::READ {
                return Err(Violation::SimpleReplyToRead);
            }
            if !pending.is_untouched() {
                return Err(Violation::SimpleReplyAfterChunks);
            }
            match reply.result {
                Err(errno) => pending.fail(errno),
                Ok(()) if request.kind == CommandType::READ && request.length > 0 => {
                    pending.content(request.offset, request.length)?;
                    return Ok((request.offset, request.length));
                }
                Ok(()) => {}
            }
            Ok((0, 0))
        })?;
        if left > 0 {
            self.left = left;
            self.phase = Phase::Data { at };
        }
        Ok(Step::Next)
    }

    fn chunk<'b>(&mut self, chunk: Chunk, offset: Option<u64>) -> Result<Step<'b>, Fatal> {
        self.cookie = chunk.cookie;
        self.last = chunk.is_last();
        self.left = chunk.length;
        let (style, max_chunks) = (self.style, self.max_chunks);
        let (max_payload, max_drain) = (self.max_payload, self.max_drain);
        let max_extents = self.max_extents;
        self.phase = self.with_request(|pending| {
            // proto.md "Extended reply chunk message": the offset MUST match the request.
            if let Some(found) = offset
                && found != pending.request.offset
            {
                return Err(Violation::WrongOffset { found });
            }
            pending.chunk(max_chunks)?;
            let phase = chunk::phase_of(&chunk, pending.request.kind, style)?;
            // "A server MUST NOT send a chunk where any variable-length portion of the chunk is
            // larger than any advertised maximum payload size"
            let limit = match phase {
                // All of an error that is as it should be is of use.
                Phase::ErrorHead { .. } => max_drain.max(chunk::LONGEST_ERROR),
                Phase::StatusHead => max_payload.saturating_add(chunk::status_head_len(style)),
                _ => max_payload.saturating_add(DataHead::LEN as u64),
            };
            if chunk.length > limit {
                return Err(Violation::ChunkTooLarge {
                    length: chunk.length,
                    limit,
                });
            }
            if phase == Phase::StatusHead {
                chunk::check_count(chunk.length, style, max_extents)?;
            }
            Ok(phase)
        })?;
        Ok(Step::Next)
    }

    fn end<'b>(&mut self) -> Result<Step<'b>, Fatal> {
        self.phase = Phase::Header;
        if !self.last {
            return Ok(Step::Next);
        }
        let cookie = self.cookie;
        // A request whose reply ends badly stays unanswered.
        let result = self.with_request(|pending| pending.finish())?;
        self.in_flight.remove(cookie);
        self.shutting_down |= result == Err(Errno::ESHUTDOWN);
        Ok(Step::Event(ReplyEvent::Finished { cookie, result }))
    }

    // --- data that does not go through the input ---

    /// The data that comes next in the stream, if data does.
    #[must_use]
    pub const fn payload(&self) -> Option<Payload> {
        match self.phase {
            Phase::Data { at } => Some(Payload {
                cookie: self.cookie,
                offset: at,
                left: self.left,
            }),
            _ => None,
        }
    }

    /// How many bytes of data come next in the stream.
    #[must_use]
    pub const fn payload_left(&self) -> u64 {
        match self.phase {
            Phase::Data { .. } => self.left,
            _ => 0,
        }
    }

    /// Tells that the caller has read `len` bytes of data past this decoder.
    ///
    /// `len` is at most [`payload_left`](Self::payload_left). A larger one means that the place in
    /// the stream is lost, and ends in [`Fatal::Overread`].
    pub fn payload_read(&mut self, len: u64) {
        match self.phase {
            Phase::Failed(_) => {}
            _ if len == 0 => {}
            Phase::Data { at } if len <= self.left => {
                self.left -= len;
                self.data_done(at, len);
            }
            _ => {
                self.fail(Fatal::Overread);
            }
        }
    }

    /// Says whether the connection may end here.
    ///
    /// # Errors
    ///
    /// [`Fatal::Eof`] if a request is not answered; whatever has failed before.
    pub fn on_eof(&self) -> Result<(), Fatal> {
        let in_flight = self.in_flight();
        match self.phase {
            Phase::Failed(why) => Err(why),
            Phase::Header if self.filled == 0 && in_flight == 0 => Ok(()),
            _ => Err(Fatal::Eof { in_flight }),
        }
    }

    // --- parts ---

    /// Asks the request at hand; what it objects to is fatal.
    fn with_request<T>(
        &mut self,
        ask: impl FnOnce(&mut Pending) -> Result<T, Violation>,
    ) -> Result<T, Fatal> {
        let cookie = self.cookie;
        let pending = self
            .in_flight
            .get(cookie)
            .ok_or(Fatal::UnknownCookie { cookie })?;
        ask(pending).map_err(|violation| Fatal::Reply { cookie, violation })
    }

    const fn broken(&self, violation: Violation) -> Fatal {
        Fatal::Reply {
            cookie: self.cookie,
            violation,
        }
    }

    const fn fail(&mut self, why: Fatal) -> Fatal {
        self.phase = Phase::Failed(why);
        why
    }

    /// Fills the fixed fields up to `len` bytes; whether they are all there.
    fn fill(&mut self, len: usize, input: &mut &[u8]) -> bool {
        let room = self.partial.get_mut(self.filled..len).unwrap_or_default();
        let taken = room.len().min(input.len());
        if let (Some(room), Some((piece, rest))) =
            (room.get_mut(..taken), input.split_at_checked(taken))
        {
            room.copy_from_slice(piece);
            *input = rest;
            self.filled += taken;
        }
        self.filled >= len
    }

    /// Takes `N` bytes of fixed fields out of the chunk at hand, once they are all there.
    fn take<const N: usize>(&mut self, input: &mut &[u8]) -> Option<[u8; N]> {
        const { assert!(N <= Chunk::EXTENDED_LEN) };
        let before = self.filled;
        let complete = self.fill(N, input);
        self.left = self.left.saturating_sub((self.filled - before) as u64);
        if !complete {
            return None;
        }
        self.filled = 0;
        self.partial.first_chunk().copied()
    }

    /// Lends at most `len` bytes of the chunk at hand.
    fn lend<'b>(&mut self, len: u64, input: &mut &'b [u8]) -> &'b [u8] {
        let len = usize::try_from(len.min(self.left))
            .unwrap_or(usize::MAX)
            .min(input.len());
        let Some((lent, rest)) = input.split_at_checked(len) else {
            return &[];
        };
        *input = rest;
        self.left = self.left.saturating_sub(len as u64);
        lent
    }
}
