//! What a server reads: requests.
//!
//! The [`RequestDecoder`] finds where requests begin and end in what a client sends. It owns the
//! framing: payload that nobody takes is not taken for the next header. It does not judge
//! requests; that is for [`Session::check`]. It never buffers payload, and never more than one
//! header.
//!
//! ```
//! use nbd_proto::limits::Limits;
//! use nbd_proto::session::Session;
//! use nbd_proto::transmission::{RequestDecoder, RequestEvent};
//! use nbd_proto::wire::{Cookie, Name, Request, TransmissionFlags};
//!
//! let session = Session::new(Name::default(), 4096, TransmissionFlags::HAS_FLAGS);
//! let mut decoder = RequestDecoder::new(&session, &Limits::new());
//!
//! let write = Request::write(Cookie(1), 8192, 4); // beyond the end
//! let wire = [&write.to_compact()?[..], b"data", &Request::disconnect().to_compact()?].concat();
//! let mut input = &wire[..];
//! while let Some(event) = decoder.next(&mut input)? {
//!     match event {
//!         RequestEvent::Request(request) => {
//!             assert_eq!(decoder.payload_left(), 4);
//!             if session.check(&request).is_err() {
//!                 decoder.skip_payload(); // and send the error
//!             }
//!         }
//!         RequestEvent::Payload(_) => panic!("it is skipped"),
//!         RequestEvent::Disconnect => break,
//!     }
//! }
//! assert!(input.is_empty());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use crate::limits::Limits;
use crate::session::{ReplyStyle, Session};
use crate::wire::{BadMagic, CommandFlags, CommandType, Cookie, Request};

/// Why a server has to hang up on a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fatal {
    /// What should be a request does not begin like one.
    #[error("the client sent something else than a request: {0}")]
    Magic(#[from] BadMagic),
    /// A payload so large that it is not even skipped.
    #[error("the client announced a payload of {length} bytes, more than {limit}")]
    PayloadTooLarge {
        /// The request.
        cookie: Cookie,
        /// The announced length in bytes.
        length: u64,
        /// How much would have been taken, in bytes.
        limit: u64,
    },
    /// The connection ended within a request.
    #[error("the client went away in the middle of a request")]
    Eof,
    /// [`RequestDecoder::payload_read`] was told of more than there is. A mistake of the caller,
    /// not of the client; but the stream cannot be trusted any more.
    #[error("more payload was read than the request has")]
    Overread,
}

/// What a client sent. There is nothing else that it could send, so this is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestEvent<'b> {
    /// A request; [`RequestDecoder::payload_left`] bytes of payload follow.
    Request(Request),
    /// Some of the payload of the last request, never empty.
    Payload(&'b [u8]),
    /// The client wants no more: answer what is outstanding and close.
    Disconnect,
}

/// Turns bytes from a client into requests.
///
/// Feed it with [`next`](Self::next); when it returns `None`, get more bytes. After a request with
/// payload there are three ways on: take [`Payload`](RequestEvent::Payload) events; read
/// [`payload_left`](Self::payload_left) bytes straight from the connection (once the input at hand
/// is used up) and say so with [`payload_read`](Self::payload_read); or
/// [`skip_payload`](Self::skip_payload).
///
/// After an error, every call returns the same error.
#[derive(Clone, Debug)]
pub struct RequestDecoder {
    phase: Phase,
    // What is left of the payload at hand; not 0 only in `Payload` and `Skip`.
    payload_left: u64,
    max_payload: u64,
    extended: bool,
    // The beginning of a header that came in pieces.
    partial: [u8; Request::EXTENDED_LEN],
    filled: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Header,
    Payload,
    Skip,
    Disconnected,
    Failed(Fatal),
}

impl RequestDecoder {
    /// A decoder for a session. Of the limits, [`Limits::max_drain`] is used: a larger payload
    /// ends the session, unless the session itself allows it.
    #[must_use]
    pub fn new(session: &Session, limits: &Limits) -> Self {
        // proto.md "Size constraints": a payload above the maximum, but not above 32 MiB, is not
        // to be taken for an attack. So it is skipped and refused.
        let max_payload = session.block_sizes().max_payload().max(limits.max_drain());
        Self {
            phase: Phase::Header,
            payload_left: 0,
            max_payload: max_payload.into(),
            extended: session.reply_style() == ReplyStyle::Extended,
            partial: [0; Request::EXTENDED_LEN],
            filled: 0,
        }
    }

    /// The most bytes that can be taken before the next decision: what is left of the header or
    /// of the payload. 0 after a disconnect or an error.
    ///
    /// Reading more is fine, and faster, where what comes after is read by this decoder too.
    #[must_use]
    pub fn wants(&self) -> usize {
        match self.phase {
            Phase::Header => self.header_len().saturating_sub(self.filled),
            Phase::Payload | Phase::Skip => {
                usize::try_from(self.payload_left).unwrap_or(usize::MAX)
            }
            Phase::Disconnected | Phase::Failed(_) => 0,
        }
    }

    /// Takes what comes next from the input and advances it past what was taken. `None` if more
    /// input is needed, or after a disconnect.
    ///
    /// # Errors
    ///
    /// If the client has to be hung up on.
    #[inline]
    pub fn next<'b>(&mut self, input: &mut &'b [u8]) -> Result<Option<RequestEvent<'b>>, Fatal> {
        // The common case first: a whole header at once.
        if self.phase == Phase::Header && self.filled == 0 {
            if self.extended {
                if let Some((header, rest)) = input.split_first_chunk() {
                    *input = rest;
                    let decoded = Request::from_extended(header);
                    return self.begin(decoded).map(Some);
                }
            } else if let Some((header, rest)) = input.split_first_chunk() {
                *input = rest;
                let decoded = Request::from_compact(header);
                return self.begin(decoded).map(Some);
            }
        }
        self.next_in_pieces(input)
    }

    fn next_in_pieces<'b>(
        &mut self,
        input: &mut &'b [u8],
    ) -> Result<Option<RequestEvent<'b>>, Fatal> {
        match self.phase {
            Phase::Failed(why) => Err(why),
            Phase::Disconnected => Ok(None),
            Phase::Header => self.gather(input),
            Phase::Payload => {
                let payload = self.take_payload(input);
                Ok((!payload.is_empty()).then_some(RequestEvent::Payload(payload)))
            }
            Phase::Skip => {
                self.take_payload(input);
                match self.phase {
                    Phase::Header => self.next(input),
                    _ => Ok(None),
                }
            }
        }
    }

    /// Adds to a header that comes in pieces.
    fn gather<'b>(&mut self, input: &mut &'b [u8]) -> Result<Option<RequestEvent<'b>>, Fatal> {
        let len = self.header_len();
        let room = self.partial.get_mut(self.filled..len).unwrap_or_default();
        let taken = room.len().min(input.len());
        if let (Some(room), Some((piece, rest))) =
            (room.get_mut(..taken), input.split_at_checked(taken))
        {
            room.copy_from_slice(piece);
            *input = rest;
            self.filled += taken;
        }
        if self.filled < len {
            return Ok(None);
        }
        self.filled = 0;
        let decoded = match self.partial.first_chunk() {
            Some(compact) if !self.extended => Request::from_compact(compact),
            _ => Request::from_extended(&self.partial),
        };
        self.begin(decoded).map(Some)
    }

    #[inline]
    fn begin<'b>(&mut self, decoded: Result<Request, BadMagic>) -> Result<RequestEvent<'b>, Fatal> {
        let request = match decoded {
            Ok(request) => request,
            Err(why) => return Err(self.fail(why.into())),
        };
        // proto.md "Request message": in the compact style only a write has payload; in the
        // extended style the flag says so, for any command. But qemu's client (seen in 10.0.2)
        // leaves the flag out of its writes and sends the payload all the same, so the payload
        // of a write is there in any case. A write without it would be nothing to execute.
        let has_payload = request.kind == CommandType::WRITE
            || (self.extended && request.flags.contains(CommandFlags::PAYLOAD_LEN));
        if request.kind == CommandType::DISC {
            // "A client MUST NOT send anything to the server after": not even a payload.
            self.phase = Phase::Disconnected;
            return Ok(RequestEvent::Disconnect);
        }
        if has_payload && request.length > 0 {
            if request.length > self.max_payload {
                return Err(self.fail(Fatal::PayloadTooLarge {
                    cookie: request.cookie,
                    length: request.length,
                    limit: self.max_payload,
                }));
            }
            self.payload_left = request.length;
            self.phase = Phase::Payload;
        }
        Ok(RequestEvent::Request(request))
    }

    fn take_payload<'b>(&mut self, input: &mut &'b [u8]) -> &'b [u8] {
        let len = usize::try_from(self.payload_left)
            .unwrap_or(usize::MAX)
            .min(input.len());
        let Some((payload, rest)) = input.split_at_checked(len) else {
            return &[];
        };
        *input = rest;
        self.payload_done(len as u64);
        payload
    }

    fn payload_done(&mut self, len: u64) {
        self.payload_left = self.payload_left.saturating_sub(len);
        if self.payload_left == 0 {
            self.phase = Phase::Header;
        }
    }

    /// How many bytes of payload of the last request are still to come.
    #[must_use]
    pub const fn payload_left(&self) -> u64 {
        self.payload_left
    }

    /// Tells that the caller has read `len` bytes of payload past this decoder.
    ///
    /// `len` is at most [`payload_left`](Self::payload_left). A larger one means that the place in
    /// the stream is lost, and ends in [`Fatal::Overread`].
    pub fn payload_read(&mut self, len: u64) {
        if matches!(self.phase, Phase::Failed(_)) || len == 0 {
            return;
        }
        if len > self.payload_left {
            self.fail(Fatal::Overread);
        } else {
            self.payload_done(len);
        }
    }

    /// Leaves out what is left of the payload of the last request: no more
    /// [`Payload`](RequestEvent::Payload) events for it. Does nothing if there is none.
    pub fn skip_payload(&mut self) {
        if self.phase == Phase::Payload {
            self.phase = Phase::Skip;
        }
    }

    /// Says whether the connection may end here.
    ///
    /// # Errors
    ///
    /// [`Fatal::Eof`] within a request; whatever has failed before.
    pub const fn on_eof(&self) -> Result<(), Fatal> {
        match self.phase {
            Phase::Header if self.filled == 0 => Ok(()),
            Phase::Disconnected => Ok(()),
            Phase::Header | Phase::Payload | Phase::Skip => Err(Fatal::Eof),
            Phase::Failed(why) => Err(why),
        }
    }

    const fn header_len(&self) -> usize {
        if self.extended {
            Request::EXTENDED_LEN
        } else {
            Request::COMPACT_LEN
        }
    }

    fn fail(&mut self, why: Fatal) -> Fatal {
        self.phase = Phase::Failed(why);
        self.payload_left = 0;
        why
    }
}
