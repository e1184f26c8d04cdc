//! What a server writes: replies to block status requests.

use alloc::vec::Vec;

use super::answer::{IllegalReply, ReplyEncoder};
use crate::session::{ReplyStyle, Session};
use crate::wire::{
    ChunkType, CommandFlags, CommandType, Errno, Extent, ReplyFlags, Request, StatusChunk,
    StatusQuery,
};

/// A reply to one block status request, which cannot be made illegal.
///
/// Each context that was asked for gets its extents by one call of [`context`](Self::context), in
/// any order; the last of them ends the reply. An [`error`](Self::error) ends it at any time.
///
/// The extents are those of the backend: as long as it likes, from the offset of the request on,
/// and as many as it has. What of them goes out is what the protocol wants
/// (`NBD_REPLY_TYPE_BLOCK_STATUS`, `NBD_CMD_BLOCK_STATUS`):
///
/// - Neighbours with the same flags become one extent.
/// - What begins beyond the end of the request is not looked at. What reaches beyond it goes out
///   as it is, but not beyond the end of the export; with `REQ_ONE`, not beyond the request.
/// - With `REQ_ONE` there is one extent.
/// - There are at most 2^20 extents, and not more than the maximum payload holds. What is left out
///   then is for the client to ask again.
/// - Lengths that do not fit 32 bits, where the session has 32, are cut.
///
/// What cannot be put right so is an error, and nothing is encoded: no extents at all, an extent
/// of no length, one that ends between two blocks, flags that are too wide.
///
/// ```
/// # use nbd_proto::session::{MetaContext, ReplyStyle, Session};
/// # use nbd_proto::transmission::{IllegalReply, StatusReply};
/// # use nbd_proto::wire::{Cookie, Extent, Name, Request, TransmissionFlags};
/// # let context = MetaContext { id: 1, name: Name::new("base:allocation").unwrap() };
/// # let session = Session::new(Name::default(), 1 << 20, TransmissionFlags::HAS_FLAGS)
/// #     .with_reply_style(ReplyStyle::Structured)
/// #     .with_contexts(vec![context]);
/// let request = Request::block_status(Cookie(1), 0, 8192);
/// let mut wire = Vec::new();
/// let mut reply = StatusReply::new(&session, &request)?;
/// while let Some(id) = reply.owed() {
///     let extents = [Extent { length: 4096, flags: 0 }, Extent { length: 1 << 16, flags: 3 }];
///     reply.context(id, extents, &mut wire)?;
/// }
/// # assert_eq!(wire.len(), 20 + 4 + 2 * 8);
/// # assert!(reply.is_ended());
/// # Ok::<(), IllegalReply>(())
/// ```
#[derive(Clone, Debug)]
#[must_use = "the client waits until the reply is ended"]
pub struct StatusReply<'s> {
    session: &'s Session,
    encoder: ReplyEncoder,
    request: Request,
    effect_length: u64,
    // The contexts whose status is not told yet.
    owed: Vec<u32>,
    ended: bool,
}

impl<'s> StatusReply<'s> {
    /// Begins the reply to a request that asks for all contexts of the session.
    ///
    /// # Errors
    ///
    /// If the request is not one, has a payload, or has to be refused.
    pub fn new(session: &'s Session, request: &Request) -> Result<Self, IllegalReply> {
        if request.flags.contains(CommandFlags::PAYLOAD_LEN) {
            return Err(IllegalReply::NotAStatus);
        }
        let owed = session.contexts().iter().map(|context| context.id);
        Self::begin(session, request, request.length, owed.collect())
    }

    /// Begins the reply to a request that asks for the contexts in its payload.
    ///
    /// # Errors
    ///
    /// If the request is not one, has no payload, or has to be refused for what is in it.
    pub fn for_query(
        session: &'s Session,
        request: &Request,
        query: &StatusQuery<'_>,
    ) -> Result<Self, IllegalReply> {
        if !request.flags.contains(CommandFlags::PAYLOAD_LEN) {
            return Err(IllegalReply::NotAStatus);
        }
        session.check_status(request, query)?;
        let owed = query.ids().collect();
        Self::begin(session, request, query.effect_length(), owed)
    }

    fn begin(
        session: &'s Session,
        request: &Request,
        effect_length: u64,
        owed: Vec<u32>,
    ) -> Result<Self, IllegalReply> {
        if request.kind != CommandType::BLOCK_STATUS {
            return Err(IllegalReply::NotAStatus);
        }
        session.check(request)?;
        Ok(Self {
            session,
            encoder: ReplyEncoder::new(session),
            request: *request,
            effect_length,
            owed,
            ended: false,
        })
    }

    /// A context whose status is not told yet, if there is one: the next in the order in which they
    /// were asked for, unless others were told first.
    #[must_use]
    pub fn owed(&self) -> Option<u32> {
        self.owed.first().copied().filter(|_| !self.ended)
    }

    /// Whether the reply has ended.
    #[must_use]
    pub const fn is_ended(&self) -> bool {
        self.ended
    }

    /// How many bytes from the offset of the request on are asked about.
    #[must_use]
    pub const fn effect_length(&self) -> u64 {
        self.effect_length
    }

    /// Appends the status of one context: its extents in the order of the export, from the offset
    /// of the request on. With the last context that is owed, the reply ends.
    ///
    /// Returns how many bytes the extents that went out cover.
    ///
    /// # Errors
    ///
    /// If the context was not asked for or is told already, or the extents cannot be sent. Nothing
    /// is appended then, and the context is still owed.
    pub fn context(
        &mut self,
        id: u32,
        extents: impl IntoIterator<Item = Extent>,
        out: &mut Vec<u8>,
    ) -> Result<u64, IllegalReply> {
        self.check_open()?;
        let at = self.owed.iter().position(|&owed| owed == id);
        let at = at.ok_or(IllegalReply::UnexpectedContext { id })?;
        let start = out.len();
        let last = self.owed.len() == 1;
        let covered = self.put_chunk(id, extents.into_iter(), last, out);
        if covered.is_err() {
            out.truncate(start);
        } else {
            self.owed.remove(at);
            self.ended = last;
        }
        covered
    }

    /// Appends an error, which ends the reply: the status of the contexts that are still owed will
    /// not come, and that of the others is not to be relied on.
    ///
    /// # Errors
    ///
    /// If the reply has ended.
    pub fn error(
        &mut self,
        errno: Errno,
        message: &str,
        out: &mut Vec<u8>,
    ) -> Result<(), IllegalReply> {
        self.end_with_error(errno, message, None, out)
    }

    /// Appends an error at an offset within the range that was asked about, which ends the reply.
    ///
    /// # Errors
    ///
    /// If the offset is not within the range, or the reply has ended.
    pub fn error_at(
        &mut self,
        offset: u64,
        errno: Errno,
        message: &str,
        out: &mut Vec<u8>,
    ) -> Result<(), IllegalReply> {
        let inside = offset
            .checked_sub(self.request.offset)
            .is_some_and(|at| at < self.effect_length);
        if !inside {
            return Err(IllegalReply::OutOfRange);
        }
        self.end_with_error(errno, message, Some(offset), out)
    }

    fn end_with_error(
        &mut self,
        errno: Errno,
        message: &str,
        offset: Option<u64>,
        out: &mut Vec<u8>,
    ) -> Result<(), IllegalReply> {
        self.check_open()?;
        self.ended = true;
        let done = ReplyFlags::DONE;
        self.encoder
            .error_chunk(&self.request, errno, message, offset, done, out);
        Ok(())
    }

    const fn check_open(&self) -> Result<(), IllegalReply> {
        if self.ended {
            Err(IllegalReply::Ended)
        } else {
            Ok(())
        }
    }

    fn put_chunk(
        &self,
        id: u32,
        extents: impl Iterator<Item = Extent>,
        last: bool,
        out: &mut Vec<u8>,
    ) -> Result<u64, IllegalReply> {
        let extended = self.session.reply_style() == ReplyStyle::Extended;
        let kind = if extended {
            ChunkType::BLOCK_STATUS_EXT
        } else {
            ChunkType::BLOCK_STATUS
        };
        let flags = if last {
            ReplyFlags::DONE
        } else {
            ReplyFlags::empty()
        };
        let start = out.len();
        let head = self.encoder.chunk(&self.request, kind, flags, 0);
        out.extend_from_slice(&head);
        let payload = out.len();
        out.extend_from_slice(&id.to_be_bytes());
        if extended {
            out.extend_from_slice(&[0; 4]);
        }
        let mut writer = Writer::new(self, id, out);
        for extent in extents {
            if !writer.put(extent)? {
                break;
            }
        }
        let (count, covered) = writer.finish()?;
        let length = u32::try_from(out.len().saturating_sub(payload));
        let length = length.map_err(|_| IllegalReply::TooLarge)?;
        // Now that its length is known, the header takes the place of the one above.
        let head = self.encoder.chunk(&self.request, kind, flags, length);
        if let Some(place) = out.get_mut(start..payload) {
            place.copy_from_slice(&head);
        }
        if extended && let Some(place) = out.get_mut(payload..).and_then(|p| p.get_mut(4..8)) {
            place.copy_from_slice(&count.to_be_bytes());
        }
        Ok(covered)
    }
}

/// Puts extents one after the other, as the protocol wants them.
struct Writer<'o> {
    out: &'o mut Vec<u8>,
    extended: bool,
    /// The most extents that go out.
    most: u32,
    /// The smallest unit of lengths, minus one.
    mask: u64,
    /// Where the request ends, and where the last extent has to end at the latest; from the offset
    /// of the request, in bytes.
    wanted: u64,
    limit: u64,
    /// The longest extent, a multiple of the unit.
    widest: u64,
    /// The bits that flags may have.
    flags: u64,
    count: u32,
    /// How many bytes have gone out.
    covered: u64,
    /// The extent at hand, which the next may make longer.
    pending: Option<Extent>,
}

impl<'o> Writer<'o> {
    fn new(reply: &StatusReply<'_>, id: u32, out: &'o mut Vec<u8>) -> Self {
        let session = reply.session;
        let extended = session.reply_style() == ReplyStyle::Extended;
        let one = reply.request.flags.contains(CommandFlags::REQ_ONE);
        let mask = u64::from(session.block_sizes().minimum()).saturating_sub(1);
        let width = if extended {
            Extent::EXTENDED_LEN
        } else {
            Extent::COMPACT_LEN
        };
        // "Servers SHOULD NOT send more than 2^20 extents in a single reply chunk", and no
        // variable-length portion may be larger than the maximum payload.
        let payload = session.block_sizes().max_payload() / width as u32;
        let most = if one {
            1
        } else {
            payload.min(StatusChunk::MAX_EXTENTS as u32)
        };
        let limit = if one {
            reply.effect_length
        } else {
            session.size().saturating_sub(reply.request.offset) & !mask
        };
        // "For metadata contexts that only return a 32-bit status (including all contexts in the
        // "base:" namespace), the most-significant 32 bits of status MUST be all zeroes."
        let is_base = |name: &str| name.starts_with("base:");
        let mut contexts = session.contexts().iter();
        let narrow = contexts.any(|it| it.id == id && is_base(it.name.as_str()));
        Self {
            out,
            extended,
            most,
            mask,
            wanted: reply.effect_length,
            limit,
            widest: if extended {
                u64::MAX
            } else {
                u64::from(u32::MAX)
            } & !mask,
            flags: if extended && !narrow {
                u64::MAX
            } else {
                u32::MAX.into()
            },
            count: 0,
            covered: 0,
            pending: None,
        }
    }

    /// Takes an extent; says whether more are of use.
    fn put(&mut self, extent: Extent) -> Result<bool, IllegalReply> {
        if extent.length == 0 {
            return Err(IllegalReply::EmptyExtent);
        }
        if extent.flags & !self.flags != 0 {
            return Err(IllegalReply::FlagsTooWide);
        }
        let pending = match self.pending {
            Some(pending) if pending.flags == extent.flags => Extent {
                length: pending.length.saturating_add(extent.length),
                ..pending
            },
            Some(pending) => {
                self.write(pending)?;
                if self.count >= self.most {
                    self.pending = None;
                    return Ok(false);
                }
                extent
            }
            None => extent,
        };
        self.pending = Some(pending);
        // "the sum of the length fields of the first N-1 extents MUST be less than the requested
        // length": once the request is covered, nothing may follow.
        Ok(self.covered.saturating_add(pending.length) < self.wanted)
    }

    fn write(&mut self, extent: Extent) -> Result<(), IllegalReply> {
        let left = self.limit.saturating_sub(self.covered);
        let mut length = extent.length.min(left);
        // "The server MUST use descriptor lengths that are an integer multiple of any advertised
        // minimum block size." The request ends at such a multiple, so what is beyond it can be
        // cut to one.
        if length & self.mask != 0 {
            length &= !self.mask;
            if self.covered.saturating_add(length) < self.wanted {
                return Err(IllegalReply::UnalignedExtent);
            }
        }
        if length > self.widest {
            length = self.widest;
            // What follows would have to begin where this ends: the client asks again.
            self.most = self.count.saturating_add(1);
        }
        if length == 0 {
            return Err(IllegalReply::EmptyExtent);
        }
        if self.extended {
            self.out.extend_from_slice(&length.to_be_bytes());
            self.out.extend_from_slice(&extent.flags.to_be_bytes());
        } else {
            let narrow = |n| u32::try_from(n).map_err(|_| IllegalReply::FlagsTooWide);
            self.out.extend_from_slice(&narrow(length)?.to_be_bytes());
            self.out
                .extend_from_slice(&narrow(extent.flags)?.to_be_bytes());
        }
        self.count = self.count.saturating_add(1);
        self.covered = self.covered.saturating_add(length);
        Ok(())
    }

    fn finish(mut self) -> Result<(u32, u64), IllegalReply> {
        if let Some(pending) = self.pending.take() {
            self.write(pending)?;
        }
        match self.count {
            0 => Err(IllegalReply::NoExtents),
            count => Ok((count, self.covered)),
        }
    }
}
