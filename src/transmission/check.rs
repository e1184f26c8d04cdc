//! May this request be executed? One table, from the protocol text.

use crate::session::{ReplyStyle, Session};
use crate::wire::{CommandFlags, CommandType, Errno, Request, StatusQuery, TransmissionFlags};

/// Why a request must not be executed.
///
/// The session goes on: the payload of the request, if it has one, is drained
/// ([`RequestDecoder::skip_payload`](super::RequestDecoder::skip_payload)), and the reply is the
/// error [`errno`](Self::errno). Where the protocol wants the connection dropped instead, the
/// [`RequestDecoder`](super::RequestDecoder) says so; no well-framed request gets that far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The command is not one of the protocol's.
    #[error("unknown command")]
    UnknownCommand,
    /// A flag that is unknown, not for this command, or was not negotiated.
    #[error("flags that this command does not take in this session")]
    BadFlags,
    /// The command needs a feature that was not advertised or negotiated.
    #[error("command was not advertised")]
    NotAdvertised,
    /// A modification of a read-only export.
    #[error("export is read-only")]
    ReadOnly,
    /// A flush with an offset or a length.
    #[error("flush has an offset or a length")]
    FlushWithRange,
    /// A block status request without length, to which there is no successful answer.
    #[error("block status of nothing")]
    EmptyStatus,
    /// A block status payload of impossible size, with no, unknown or repeated contexts.
    #[error("bad block status payload")]
    BadStatusPayload,
    /// A write with more payload than was agreed on.
    #[error("payload is larger than the maximum")]
    PayloadTooLarge,
    /// A read of more than the maximum payload, to be answered with a simple reply.
    #[error("read is larger than the maximum payload")]
    ReadTooLarge,
    /// A read of more than the maximum payload; the client may retry with smaller ones.
    #[error("read is larger than the maximum payload")]
    ReadOverflow,
    /// The range reaches beyond the end of the export.
    #[error("range is beyond the end of the export")]
    PastEnd,
    /// A write or zeroing that reaches beyond the end of the export.
    #[error("no space beyond the end of the export")]
    NoSpace,
    /// Offset or length is not a multiple of the minimum block size.
    #[error("range is not aligned to the minimum block size")]
    Unaligned,
}

impl Refusal {
    /// The error to answer with.
    #[must_use]
    pub const fn errno(self) -> Errno {
        match self {
            Self::ReadOnly => Errno::EPERM,
            Self::NoSpace => Errno::ENOSPC,
            Self::ReadOverflow => Errno::EOVERFLOW,
            Self::UnknownCommand
            | Self::BadFlags
            | Self::NotAdvertised
            | Self::FlushWithRange
            | Self::EmptyStatus
            | Self::BadStatusPayload
            | Self::PayloadTooLarge
            | Self::ReadTooLarge
            | Self::PastEnd
            | Self::Unaligned => Errno::EINVAL,
        }
    }
}

/// What to do with `NBD_CMD_CACHE` where `NBD_FLAG_SEND_CACHE` was not advertised.
///
/// proto.md "Request types" knows of clients that send it all the same, without flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum UnadvertisedCache {
    /// Refuse it, as nbdkit and qemu do: the client then stops asking.
    #[default]
    Refuse,
    /// Execute it if it is otherwise right.
    Allow,
}

impl Session {
    /// Says whether a request may be executed.
    ///
    /// `Ok` also for a request without length, except a block status: the answer to it is
    /// success, and the backend need not be asked. (The protocol leaves it open, but wants no
    /// disconnect.) `Ok` also for a disconnect, which has no reply.
    ///
    /// Where a request is wrong in several ways, the first of these decides: the command and its
    /// flags, the read-only export, what was advertised, the range, its alignment, its size.
    ///
    /// | what is asked | verdict | proto.md |
    /// |---|---|---|
    /// | `DISC` | `Ok`; no reply | `NBD_CMD_DISC` |
    /// | a command above 7 | `EINVAL` | "Error values" |
    /// | `FUA`, not advertised | `EINVAL` | "Command flags", bit 0 |
    /// | `FUA` on any command, advertised | as without | "Command flags", bit 0 |
    /// | `NO_HOLE` on anything but `WRITE_ZEROES` | `EINVAL` | "Command flags", bit 1 |
    /// | `DF` on anything but `READ`; not advertised; simple replies | `EINVAL` | "Command flags", bit 2 |
    /// | `REQ_ONE` on anything but `BLOCK_STATUS` | `EINVAL` | "Command flags", bit 3 |
    /// | `FAST_ZERO` on anything but `WRITE_ZEROES`; not advertised | `EINVAL` | `NBD_CMD_WRITE_ZEROES` |
    /// | `PAYLOAD_LEN` with compact headers | `EINVAL` | "Request message" |
    /// | `PAYLOAD_LEN` on `WRITE` with extended headers; left out there | as it should be | "Request message" |
    /// | `PAYLOAD_LEN` on `BLOCK_STATUS` where `BLOCK_STATUS_PAYLOAD` is advertised | see below | `NBD_CMD_BLOCK_STATUS` |
    /// | `PAYLOAD_LEN` elsewhere | `EINVAL`, payload drained | "Command flags", bit 5 |
    /// | an unknown flag | `EINVAL` | "Error values" |
    /// | `WRITE`, `TRIM`, `WRITE_ZEROES` on a read-only export | `EPERM` | "Error values", `NBD_CMD_WRITE_ZEROES` |
    /// | `FLUSH`, `TRIM`, `WRITE_ZEROES`, `CACHE`, not advertised | `EINVAL` | "Transmission flags" |
    /// | `BLOCK_STATUS` without contexts, or with simple replies | `EINVAL` | "Metadata querying" |
    /// | `FLUSH` with an offset or a length | `EINVAL` | `NBD_CMD_FLUSH` |
    /// | `BLOCK_STATUS` with a payload that is not 8 + n * 4 bytes, n from 1 to the number of contexts | `EINVAL`, payload drained | `NBD_CMD_BLOCK_STATUS` |
    /// | in it: an unknown context, one named twice, a range as below | `EINVAL` ([`check_status`](Self::check_status)) | `NBD_CMD_BLOCK_STATUS` |
    /// | `BLOCK_STATUS` of nothing | `EINVAL` | `NBD_CMD_BLOCK_STATUS` ("unspecified") |
    /// | another command without length | `Ok`, nothing to do | "Request types" ("unspecified") |
    /// | `WRITE`, `WRITE_ZEROES` beyond the end, or beyond 2^64 | `ENOSPC` | "Error values", `NBD_CMD_WRITE_ZEROES` |
    /// | `READ`, `TRIM`, `CACHE`, `BLOCK_STATUS` beyond the end, or beyond 2^64 | `EINVAL` | "Error values", "Size constraints" |
    /// | offset or length not a multiple of the minimum block size | `EINVAL` | "Size constraints" |
    /// | `WRITE` above the maximum payload | `EINVAL`, payload drained | "Size constraints" |
    /// | `READ` above the maximum payload, simple replies | `EINVAL` | `NBD_CMD_READ` |
    /// | `READ` above the maximum payload, replies in chunks | `EOVERFLOW` | `NBD_CMD_READ` |
    /// | the others above the maximum payload | `Ok` | "Size constraints" |
    /// | a payload above what is drained at most | hang up ([`RequestDecoder`](super::RequestDecoder)) | "Size constraints" |
    /// | no request at all | hang up ([`RequestDecoder`](super::RequestDecoder)) | "Request message" |
    ///
    /// A payload above the maximum, of a request that has [`PAYLOAD_LEN`], is drained like any
    /// other up to [`Limits::max_drain`], although "Request message" wants the connection dropped:
    /// "Size constraints" wants it kept up to 32 MiB, and a connection that lives is worth more.
    ///
    /// [`PAYLOAD_LEN`]: CommandFlags::PAYLOAD_LEN
    /// [`Limits::max_drain`]: crate::limits::Limits::max_drain
    ///
    /// # Errors
    ///
    /// Why it must not be executed, and with which error it is answered.
    #[inline]
    pub fn check(&self, request: &Request) -> Result<(), Refusal> {
        self.check_with(request, UnadvertisedCache::Refuse)
    }

    /// [`check`](Self::check) with a say in what is done with an unadvertised cache command.
    ///
    /// # Errors
    ///
    /// As for [`check`](Self::check).
    pub fn check_with(&self, request: &Request, cache: UnadvertisedCache) -> Result<(), Refusal> {
        match request.kind {
            CommandType::READ
            | CommandType::WRITE
            | CommandType::FLUSH
            | CommandType::TRIM
            | CommandType::CACHE
            | CommandType::WRITE_ZEROES
            | CommandType::BLOCK_STATUS => {}
            // "There is no reply to an NBD_CMD_DISC": nothing could be refused.
            CommandType::DISC => return Ok(()),
            // "Error values": EINVAL for an unknown command.
            _ => return Err(Refusal::UnknownCommand),
        }
        self.check_flags(request)?;
        // "Error values": EPERM for a write or trim on a read-only export; "Request types": also
        // for write zeroes. It comes before what was advertised, because a read-only export
        // rarely advertises trim.
        if request.kind.is_modification() && self.flags().contains(TransmissionFlags::READ_ONLY) {
            return Err(Refusal::ReadOnly);
        }
        self.check_advertised(request, cache)?;
        match request.kind {
            // "For a flush request, length and offset are reserved, and MUST be set to all-zero."
            CommandType::FLUSH if request.offset != 0 || request.length != 0 => {
                Err(Refusal::FlushWithRange)
            }
            CommandType::FLUSH => Ok(()),
            CommandType::BLOCK_STATUS if request.flags.contains(CommandFlags::PAYLOAD_LEN) => {
                self.check_status_payload_size(request)
            }
            // A successful reply has at least one descriptor of at least one byte.
            CommandType::BLOCK_STATUS if request.length == 0 => Err(Refusal::EmptyStatus),
            _ => self
                .check_range(request)
                .and_then(|()| self.check_size(request)),
        }
    }

    /// Decodes and checks the payload of a block status request, once it has arrived. The request
    /// itself was checked before, and with it the length of its payload: there are at most 4 bytes
    /// for each context of the session, and 8 more. So it may be collected as it comes.
    ///
    /// # Errors
    ///
    /// Why it must not be executed.
    pub fn check_status_payload<'p>(
        &self,
        request: &Request,
        payload: &'p [u8],
    ) -> Result<StatusQuery<'p>, Refusal> {
        let query = StatusQuery::parse(payload).map_err(|_| Refusal::BadStatusPayload)?;
        self.check_status(request, &query)?;
        Ok(query)
    }

    /// Checks the payload of a block status request, once it was decoded; the request itself was
    /// checked before.
    ///
    /// # Errors
    ///
    /// Why it must not be executed.
    pub fn check_status(&self, request: &Request, query: &StatusQuery<'_>) -> Result<(), Refusal> {
        if query.effect_length() == 0 {
            return Err(Refusal::EmptyStatus);
        }
        // "the server MUST return at least one status descriptor": not possible for no context.
        if query.ids().len() == 0 {
            return Err(Refusal::BadStatusPayload);
        }
        // "detects duplicate or unknown metacontext ids": quadratic, but there are no more ids
        // than contexts, else one is repeated or unknown.
        if query.ids().len() > self.contexts().len() {
            return Err(Refusal::BadStatusPayload);
        }
        for (at, id) in query.ids().enumerate() {
            let known = self.contexts().iter().any(|context| context.id == id);
            if !known || query.ids().take(at).any(|earlier| earlier == id) {
                return Err(Refusal::BadStatusPayload);
            }
        }
        self.check_range(&Request {
            length: query.effect_length(),
            ..*request
        })
    }

    /// "Command flags": which flags each command takes, and what has to be negotiated for each.
    fn check_flags(&self, request: &Request) -> Result<(), Refusal> {
        let mut allowed = CommandFlags::empty();
        // "valid for all commands, provided NBD_FLAG_SEND_FUA has been negotiated, in which case
        // the server MUST accept all commands with this bit set"
        if self.flags().contains(TransmissionFlags::SEND_FUA) {
            allowed |= CommandFlags::FUA;
        }
        let extended = self.reply_style() == ReplyStyle::Extended;
        match request.kind {
            // SEND_DF is to be clear without structured replies; it then means nothing.
            CommandType::READ
                if self.flags().contains(TransmissionFlags::SEND_DF)
                    && self.reply_style() != ReplyStyle::Simple =>
            {
                allowed |= CommandFlags::DF;
            }
            // "With extended headers, the flag MUST be set for NBD_CMD_WRITE". qemu's client does
            // not set it, and its payload is taken all the same (see `RequestDecoder`); to refuse
            // would be to refuse all that it writes.
            CommandType::WRITE if extended => allowed |= CommandFlags::PAYLOAD_LEN,
            CommandType::WRITE_ZEROES => {
                allowed |= CommandFlags::NO_HOLE;
                if self.flags().contains(TransmissionFlags::SEND_FAST_ZERO) {
                    allowed |= CommandFlags::FAST_ZERO;
                }
            }
            CommandType::BLOCK_STATUS => {
                allowed |= CommandFlags::REQ_ONE;
                let payload = TransmissionFlags::BLOCK_STATUS_PAYLOAD;
                if extended && self.flags().contains(payload) {
                    allowed |= CommandFlags::PAYLOAD_LEN;
                }
            }
            _ => {}
        }
        // "Error values": EINVAL for an unknown flag and for one that is not documented as
        // applicable to the request.
        if request.flags.difference(allowed).is_empty() {
            Ok(())
        } else {
            Err(Refusal::BadFlags)
        }
    }

    /// "The client MUST NOT use a feature documented as 'exposed' by a flag unless that flag was
    /// set" ("Transmission flags").
    fn check_advertised(&self, request: &Request, cache: UnadvertisedCache) -> Result<(), Refusal> {
        let advertised = |flag| self.flags().contains(flag);
        let fine = match request.kind {
            CommandType::FLUSH => advertised(TransmissionFlags::SEND_FLUSH),
            CommandType::TRIM => advertised(TransmissionFlags::SEND_TRIM),
            CommandType::WRITE_ZEROES => advertised(TransmissionFlags::SEND_WRITE_ZEROES),
            CommandType::CACHE => {
                advertised(TransmissionFlags::SEND_CACHE)
                    || (cache == UnadvertisedCache::Allow && request.flags.is_empty())
            }
            // Contexts can only be answered with chunks.
            CommandType::BLOCK_STATUS => {
                !self.contexts().is_empty() && self.reply_style() != ReplyStyle::Simple
            }
            _ => true,
        };
        if fine {
            Ok(())
        } else {
            Err(Refusal::NotAdvertised)
        }
    }

    /// "Size constraints": within the export, and aligned.
    fn check_range(&self, request: &Request) -> Result<(), Refusal> {
        if request.end().is_none_or(|end| end > self.size()) {
            // "Error values": ENOSPC for write (and, in "Request types", for write zeroes),
            // EINVAL for read, trim, and whatever else.
            return Err(match request.kind {
                CommandType::WRITE | CommandType::WRITE_ZEROES => Refusal::NoSpace,
                _ => Refusal::PastEnd,
            });
        }
        let mask = u64::from(self.block_sizes().minimum()).saturating_sub(1);
        if (request.offset | request.length) & mask != 0 {
            return Err(Refusal::Unaligned);
        }
        Ok(())
    }

    /// "Size constraints": payload in either direction. Commands without payload may be larger.
    fn check_size(&self, request: &Request) -> Result<(), Refusal> {
        let max = u64::from(self.block_sizes().max_payload());
        match (request.kind, self.reply_style()) {
            (CommandType::WRITE, _) if request.length > max => Err(Refusal::PayloadTooLarge),
            (CommandType::READ, ReplyStyle::Simple) if request.length > max => {
                Err(Refusal::ReadTooLarge)
            }
            // "the server is also permitted to reject large read requests up front with
            // NBD_EOVERFLOW". One chunk holds 2^32 - 1 bytes together with the offset.
            (CommandType::READ, ReplyStyle::Structured | ReplyStyle::Extended)
                if request.length > max.min(u64::from(u32::MAX) - 8) =>
            {
                Err(Refusal::ReadOverflow)
            }
            _ => Ok(()),
        }
    }

    /// "The payload form MUST occupy 8 + n*4 bytes", and no context can be named twice. One is
    /// named at least; for qemu, too.
    fn check_status_payload_size(&self, request: &Request) -> Result<(), Refusal> {
        let contexts = u32::try_from(self.contexts().len()).unwrap_or(u32::MAX);
        let fits = request.length >= StatusQuery::len_for(1)
            && request.length <= StatusQuery::len_for(contexts)
            && request.length.is_multiple_of(4);
        if fits {
            Ok(())
        } else {
            Err(Refusal::BadStatusPayload)
        }
    }
}
