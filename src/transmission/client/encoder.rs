//! Requests, as a client sends them.

use alloc::vec::Vec;
use core::ops::Range;

use super::super::check::Refusal;
use super::super::head::Head;
use crate::session::{ReplyStyle, Session};
use crate::wire::{CommandFlags, CommandType, Cookie, Request, StatusQuery, TooLong};

/// Why a request cannot be sent in this session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unsendable {
    /// The server would have to refuse it.
    #[error("the server would refuse the request: {0}")]
    Refused(#[from] Refusal),
    /// A range without length: what a server does with it is unspecified.
    #[error("a request without length")]
    Empty,
    /// A length that only extended headers can carry.
    #[error(transparent)]
    TooLong(#[from] TooLong),
    /// A disconnect with an offset, a length or flags.
    #[error("a disconnect with an offset, a length or flags")]
    BadDisconnect,
}

/// Encodes requests for a session, and only those that its server can execute.
#[derive(Clone, Debug)]
pub struct RequestEncoder {
    session: Session,
}

impl RequestEncoder {
    /// An encoder for a session.
    #[must_use]
    pub fn new(session: &Session) -> Self {
        Self {
            session: session.clone(),
        }
    }

    /// Encodes a header. For a write (and a block status with
    /// [`PAYLOAD_LEN`](CommandFlags::PAYLOAD_LEN)), exactly `request.length` bytes of payload must
    /// follow.
    ///
    /// With extended headers, the flag that a write must have there is added.
    ///
    /// # Errors
    ///
    /// If the request breaks a rule of the protocol or of the session.
    #[inline]
    pub fn encode(&self, request: &Request) -> Result<Head, Unsendable> {
        let extended = self.session.reply_style() == ReplyStyle::Extended;
        let mut request = *request;
        if extended && request.kind == CommandType::WRITE {
            request.flags |= CommandFlags::PAYLOAD_LEN;
        }
        self.check(&request)?;
        if extended {
            Ok(Head::of(&request.to_extended()))
        } else {
            Ok(Head::of(&request.to_compact()?))
        }
    }

    /// Appends a block status request that asks for some of the selected contexts only, header and
    /// payload. Returns the request, for
    /// [`ReplyDecoder::expect_status`](super::ReplyDecoder::expect_status) together with the
    /// payload, which is what was appended after the header.
    ///
    /// `flags` may have `REQ_ONE` and `FUA`; [`PAYLOAD_LEN`](CommandFlags::PAYLOAD_LEN) is added.
    ///
    /// # Errors
    ///
    /// If the session does not have such requests, or has no such contexts, or one is named twice,
    /// or the range is not one that can be asked about. Nothing is appended then.
    pub fn status_query(
        &self,
        cookie: Cookie,
        flags: CommandFlags,
        range: Range<u64>,
        contexts: &[u32],
        out: &mut Vec<u8>,
    ) -> Result<Request, Unsendable> {
        let count = u32::try_from(contexts.len()).map_err(|_| Refusal::BadStatusPayload)?;
        let length = StatusQuery::len_for(count);
        let request = Request::block_status(cookie, range.start, length)
            .with_flags(flags | CommandFlags::PAYLOAD_LEN);
        let head = self.encode(&request)?;
        let start = out.len();
        out.extend_from_slice(&head);
        let payload = out.len();
        let effect_length = range.end.saturating_sub(range.start);
        StatusQuery::encode(effect_length, contexts, out);
        let payload = out.get(payload..).unwrap_or_default();
        match self.session.check_status_payload(&request, payload) {
            Ok(_) => Ok(request),
            Err(why) => {
                out.truncate(start);
                Err(why.into())
            }
        }
    }

    fn check(&self, request: &Request) -> Result<(), Unsendable> {
        match request.kind {
            // "The values of the length and offset fields in a disconnect request MUST be zero."
            CommandType::DISC
                if request.offset != 0 || request.length != 0 || !request.flags.is_empty() =>
            {
                return Err(Unsendable::BadDisconnect);
            }
            CommandType::DISC | CommandType::FLUSH => {}
            _ if request.length == 0 => return Err(Unsendable::Empty),
            _ => {}
        }
        Ok(self.session.check(request)?)
    }
}
