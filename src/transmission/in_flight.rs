//! What a client has asked and not been answered yet.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use super::client::Violation;
use super::coverage::{Coverage, Misfit};
use crate::wire::{CommandFlags, CommandType, Cookie, Errno, Extent, Request};

/// Why the reply to a request cannot be waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unexpectable {
    /// As many requests as were agreed on are in flight.
    #[error("too many requests in flight")]
    Full,
    /// A request with this cookie is in flight.
    #[error("cookie {0} is in flight")]
    CookieInUse(Cookie),
    /// There is no reply to a disconnect.
    #[error("there is no reply to a disconnect")]
    Disconnect,
    /// A read of more than the limits allow in one reply.
    #[error("reply would be larger than the limit of {limit} bytes")]
    TooLarge {
        /// The limit in bytes.
        limit: u64,
    },
    /// A block status request whose payload says what it is about.
    #[error("what a block status request with payload asks for is in its payload")]
    NeedsQuery,
    /// A block status payload that asks for contexts that were not selected, for one twice, or for
    /// none.
    #[error("no contexts, or some that were not selected, or one twice")]
    BadContexts,
    /// A range that reaches beyond 2^64.
    #[error("range reaches beyond 2^64")]
    Overflow,
}

/// One request, and what is known of its reply so far.
#[derive(Clone, Debug)]
pub(super) struct Pending {
    pub(super) request: Request,
    /// How much of the export the request is about; not `request.length` where that is the length
    /// of a payload.
    pub(super) effect_length: u64,
    pub(super) error: Option<Errno>,
    chunks: u32,
    content_chunks: u32,
    coverage: Coverage,
    /// The contexts whose status has to come yet.
    owed: Vec<u32>,
    /// Whether the request cannot succeed: it asks for the status of all contexts, of which there
    /// are none.
    hopeless: bool,
}

/// What the extents of an export have to obey, besides the request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// The size of the export in bytes.
    pub(super) size: u64,
    /// The minimum block size in bytes, a power of two.
    pub(super) minimum: u64,
}

impl Pending {
    pub(super) fn new(
        request: &Request,
        effect_length: u64,
        owed: Vec<u32>,
    ) -> Result<Self, Unexpectable> {
        let end = request
            .offset
            .checked_add(effect_length)
            .ok_or(Unexpectable::Overflow)?;
        let is_query = request.flags.contains(CommandFlags::PAYLOAD_LEN);
        let hopeless = request.kind == CommandType::BLOCK_STATUS && !is_query && owed.is_empty();
        Ok(Self {
            request: *request,
            effect_length,
            error: None,
            chunks: 0,
            content_chunks: 0,
            coverage: Coverage::new(request.offset, end),
            owed,
            hopeless,
        })
    }

    pub(super) const fn is_untouched(&self) -> bool {
        self.chunks == 0
    }

    pub(super) fn chunk(&mut self, limit: u32) -> Result<(), Violation> {
        if self.chunks >= limit {
            return Err(Violation::TooManyChunks);
        }
        self.chunks += 1;
        Ok(())
    }

    /// proto.md "Structured reply types": content lies within the request, overlaps nothing
    /// earlier, and comes at most once if the client set DF.
    pub(super) fn content(&mut self, offset: u64, length: u64) -> Result<(), Violation> {
        if self.content_chunks > 0 && self.request.flags.contains(CommandFlags::DF) {
            return Err(Violation::Fragmented);
        }
        self.content_chunks = self.content_chunks.saturating_add(1);
        self.coverage
            .content(offset, length)
            .map_err(|misfit| match misfit {
                Misfit::Outside => Violation::OutOfRange { offset, length },
                Misfit::Overlap => Violation::Overlap { offset, length },
            })
    }

    pub(super) fn fail(&mut self, errno: Errno) {
        self.error.get_or_insert(errno);
    }

    /// "an error occurred at a given offset, which MUST lie within the original offset and length
    /// of the request"
    pub(super) fn fail_at(&mut self, errno: Errno, offset: u64) -> Result<(), Violation> {
        self.fail(errno);
        self.coverage
            .error(offset)
            .map_err(|_| Violation::OutOfRange { offset, length: 1 })
    }

    /// "exactly one status chunk per negotiated metadata context ID"
    pub(super) fn status(&mut self, context: u32) -> Result<(), Violation> {
        let at = self.owed.iter().position(|&owed| owed == context);
        let at = at.ok_or(Violation::UnexpectedContext { context })?;
        self.owed.swap_remove(at);
        Ok(())
    }

    /// The rules for one extent, of which the earlier ones of the chunk had `before` bytes.
    /// Returns where it ends, from the offset of the request.
    pub(super) fn extent(
        &self,
        extent: Extent,
        before: u64,
        bounds: Bounds,
    ) -> Result<u64, Violation> {
        if extent.length == 0 {
            return Err(Violation::EmptyExtent);
        }
        if self.request.flags.contains(CommandFlags::REQ_ONE) {
            if before > 0 || extent.length > self.effect_length {
                return Err(Violation::MoreThanOneExtent);
            }
        } else if before >= self.effect_length {
            // "the sum of the length fields of the first N-1 extents MUST be less than the
            // requested length"
            return Err(Violation::ExtentBeyondRequest);
        }
        // Descriptors "represent consecutive portions of the export starting from specified
        // offset": beyond its end there are none.
        let after = before.checked_add(extent.length);
        let end = after.and_then(|after| self.request.offset.checked_add(after));
        let (Some(after), Some(end)) = (after, end.filter(|&end| end <= bounds.size)) else {
            return Err(Violation::ExtentBeyondExport);
        };
        // "The server MUST use descriptor lengths that are an integer multiple of any advertised
        // minimum block size". The size of an export need not be one ("SHOULD").
        if !extent.length.is_multiple_of(bounds.minimum) && end != bounds.size {
            return Err(Violation::UnalignedExtent);
        }
        Ok(after)
    }

    /// What the reply comes to, now that it has ended.
    pub(super) fn finish(&self) -> Result<Result<(), Errno>, Violation> {
        if let Some(errno) = self.error {
            // proto.md "Error values": an unexpected value is as good as EINVAL.
            return Ok(Err(errno.or_einval()));
        }
        if self.request.kind == CommandType::READ {
            // "When no error is detected, the server MUST send enough data chunks to cover the
            // entire region"
            if let Some(gap) = self.coverage.gap() {
                return Err(Violation::Incomplete { gap });
            }
        }
        if self.hopeless {
            return Err(Violation::StatusOfNothing);
        }
        match self.owed.first() {
            Some(&context) => Err(Violation::MissingContext { context }),
            None => Ok(Ok(())),
        }
    }
}

/// The requests in flight, by cookie.
#[derive(Clone, Debug)]
pub(super) struct InFlight {
    requests: BTreeMap<Cookie, Pending>,
    capacity: usize,
}

impl InFlight {
    pub(super) const fn new(capacity: usize) -> Self {
        Self {
            requests: BTreeMap::new(),
            capacity,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.requests.len()
    }

    pub(super) fn add(&mut self, pending: Pending) -> Result<(), Unexpectable> {
        let cookie = pending.request.cookie;
        if self.requests.contains_key(&cookie) {
            return Err(Unexpectable::CookieInUse(cookie));
        }
        if self.requests.len() >= self.capacity {
            return Err(Unexpectable::Full);
        }
        self.requests.insert(cookie, pending);
        Ok(())
    }

    pub(super) fn get(&mut self, cookie: Cookie) -> Option<&mut Pending> {
        self.requests.get_mut(&cookie)
    }

    pub(super) fn remove(&mut self, cookie: Cookie) {
        self.requests.remove(&cookie);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Request> {
        self.requests.values().map(|pending| &pending.request)
    }
}
