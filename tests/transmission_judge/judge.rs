//! The judge: is this stream of replies legal, and what does it come to?
//!
//! Written from the protocol text alone, on the whole stream, with plain numbers and maps of
//! single bytes; slow, and meant to be read beside the text.

use std::collections::{BTreeMap, BTreeSet};

use nbd_proto::conformance::strategy::transmission::Exchange;
use nbd_proto::session::{ReplyStyle, Session};
use nbd_proto::wire::{Cookie, Errno};

type Results = Vec<(Cookie, Result<(), Errno>)>;

#[derive(Debug, PartialEq)]
pub(crate) enum Verdict {
    /// Every request was answered once, by the rules; in this order and with these results.
    Legal(Results),
    /// A rule was broken, after these results.
    Illegal { before: Results, why: &'static str },
}

/// A request in flight.
struct Open {
    kind: u16,
    flags: u16,
    offset: u64,
    /// How much it is about.
    effect: u64,
    contexts: BTreeSet<u32>,
    chunks: u32,
    content_chunks: u32,
    content: BTreeSet<u64>,
    error_offsets: BTreeSet<u64>,
    error: Option<u32>,
}

struct Judge<'a> {
    session: &'a Session,
    rest: &'a [u8],
    open: BTreeMap<u64, Open>,
    results: Results,
}

type Outcome = Result<(), &'static str>;

pub(crate) fn judge(session: &Session, exchanges: &[Exchange], wire: &[u8]) -> Verdict {
    let mut judge = Judge {
        session,
        rest: wire,
        open: BTreeMap::new(),
        results: vec![],
    };
    for Exchange { request, query, .. } in exchanges {
        let mut effect = request.length;
        let mut contexts: BTreeSet<u32> = session.contexts().iter().map(|it| it.id).collect();
        if !query.is_empty() {
            effect = number(&query[..8]);
            contexts = query[8..].chunks(4).map(|id| number(id) as u32).collect();
        }
        let open = Open {
            kind: request.kind.0,
            flags: request.flags.bits(),
            offset: request.offset,
            effect,
            contexts,
            chunks: 0,
            content_chunks: 0,
            content: BTreeSet::new(),
            error_offsets: BTreeSet::new(),
            error: None,
        };
        judge.open.insert(request.cookie.0, open);
    }
    let mut outcome = Ok(());
    while outcome.is_ok() && !judge.rest.is_empty() {
        outcome = judge.message();
    }
    if outcome.is_ok() && !judge.open.is_empty() {
        outcome = Err("not everything was answered");
    }
    let before = judge.results;
    match outcome {
        Ok(()) => Verdict::Legal(before),
        Err(why) => Verdict::Illegal { before, why },
    }
}

fn number(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0, |number, &byte| number << 8 | u64::from(byte))
}

fn require(fine: bool, why: &'static str) -> Outcome {
    if fine { Ok(()) } else { Err(why) }
}

impl<'a> Judge<'a> {
    fn take(&mut self, len: u64) -> Result<&'a [u8], &'static str> {
        let len = usize::try_from(len).map_err(|_| "longer than the stream")?;
        let (taken, rest) = self.rest.split_at_checked(len).ok_or("the stream ends")?;
        self.rest = rest;
        Ok(taken)
    }

    fn message(&mut self) -> Outcome {
        let magic = number(self.take(4)?);
        match (self.session.reply_style(), magic) {
            // "MUST use only simple replies"; "A simple reply MAY be used as a reply to any
            // request other than NBD_CMD_READ"; "a simple reply MUST NOT be used".
            (ReplyStyle::Simple | ReplyStyle::Structured, 0x6744_6698) => self.simple(),
            (ReplyStyle::Structured, 0x668e_33ef) => self.chunk(false),
            (ReplyStyle::Extended, 0x6e8a_278c) => self.chunk(true),
            _ => Err("not a reply in this style"),
        }
    }

    fn simple(&mut self) -> Outcome {
        let (error, cookie) = (number(self.take(4)?) as u32, number(self.take(8)?));
        let open = self.open.get(&cookie).ok_or("nobody asked")?;
        let structured = self.session.reply_style() == ReplyStyle::Structured;
        require(!structured || open.kind != 0, "a simple reply to a read")?;
        require(open.chunks == 0, "a simple reply after chunks")?;
        if error == 0 {
            require(open.kind != 7, "success without the status")?;
            if open.kind == 0 {
                let length = open.effect;
                self.take(length)?;
            }
        }
        self.finish(cookie, (error != 0).then_some(error));
        Ok(())
    }

    fn finish(&mut self, cookie: u64, error: Option<u32>) {
        self.open.remove(&cookie);
        // "The client SHOULD treat an unexpected error value as if it had been NBD_EINVAL".
        let known = [1, 5, 12, 22, 28, 75, 95, 108];
        let result = match error {
            None => Ok(()),
            Some(error) if known.contains(&error) => Err(Errno(error)),
            Some(_) => Err(Errno(22)),
        };
        self.results.push((Cookie(cookie), result));
    }

    fn chunk(&mut self, extended: bool) -> Outcome {
        let flags = number(self.take(2)?);
        let kind = number(self.take(2)?) as u16;
        let cookie = number(self.take(8)?);
        let offset = if extended {
            Some(number(self.take(8)?))
        } else {
            None
        };
        let length = number(self.take(if extended { 8 } else { 4 })?);
        let done = flags & 1 != 0;
        let mut open = self.open.remove(&cookie).ok_or("nobody asked")?;
        require(offset.is_none_or(|it| it == open.offset), "not its offset")?;
        // "larger than any advertised maximum payload size (however, the overall chunk may exceed
        // the maximum payload by the small amount of fixed-length overhead inherent in the chunk
        // type)". Error chunks are bounded by what we skip.
        let max = u64::from(self.session.block_sizes().max_payload());
        let fixed = match kind {
            5 => 4,
            _ => 8,
        };
        if kind >> 15 == 0 {
            require(length <= max + fixed, "too large")?;
        } else {
            require(length <= 1 << 25, "too large")?;
        }
        open.chunks += 1;
        let payload = self.take(length)?;
        match kind {
            0 => {
                require(length == 0, "NONE with a payload")?;
                require(done, "NONE that is not the last")?;
            }
            1 => {
                require(open.kind == 0, "content for another command")?;
                require(length >= 9, "data without data")?;
                open.content(number(&payload[..8]), length - 8)?;
            }
            2 => {
                require(open.kind == 0, "content for another command")?;
                require(length == 12, "a hole of another form")?;
                open.content(number(&payload[..8]), number(&payload[8..]))?;
            }
            5 => {
                require(open.kind == 7 && !extended, "status for another command")?;
                require(length >= 12 && length % 8 == 4, "a status of another form")?;
                open.status(self.session, &payload[..4], &payload[4..], 4)?;
            }
            6 => {
                require(open.kind == 7 && extended, "status for another command")?;
                require(length >= 24 && length % 16 == 8, "a status of another form")?;
                require(
                    number(&payload[4..8]) * 16 + 8 == length,
                    "descriptor count",
                )?;
                open.status(self.session, &payload[..4], &payload[8..], 8)?;
            }
            _ => {
                require(kind >> 15 == 1, "an unknown chunk")?;
                open.error(kind, payload)?;
            }
        }
        if !done {
            self.open.insert(cookie, open);
            return Ok(());
        }
        if open.error.is_none() {
            // "the server MUST send enough data chunks to cover the entire region"
            let whole = open.kind != 0 || open.content.len() as u64 == open.effect;
            require(whole, "success without all of the data")?;
            // "exactly one status chunk per negotiated metadata context ID"
            require(
                open.kind != 7 || open.contexts.is_empty(),
                "a context is missing",
            )?;
        }
        self.finish(cookie, open.error);
        Ok(())
    }
}

impl Open {
    fn inside(&self, offset: u64, length: u64) -> bool {
        let (start, end) = (u128::from(offset), u128::from(offset) + u128::from(length));
        let limit = u128::from(self.offset) + u128::from(self.effect);
        start >= self.offset.into() && end <= limit
    }

    fn content(&mut self, offset: u64, length: u64) -> Outcome {
        self.content_chunks += 1;
        require(length > 0, "content of no length")?;
        require(
            self.inside(offset, length),
            "content outside of the request",
        )?;
        require(
            self.flags & 4 == 0 || self.content_chunks == 1,
            "fragmented",
        )?;
        for byte in offset..offset + length {
            require(self.content.insert(byte), "content twice")?;
            require(!self.error_offsets.contains(&byte), "content over an error")?;
        }
        Ok(())
    }

    fn status(&mut self, session: &Session, id: &[u8], list: &[u8], half: usize) -> Outcome {
        let known = self.contexts.remove(&(number(id) as u32));
        require(known, "a context that is not owed")?;
        let extents: Vec<u64> = list
            .chunks(2 * half)
            .map(|it| number(&it[..half]))
            .collect();
        require(extents.iter().all(|&it| it > 0), "an extent of no length")?;
        let (last, before) = extents.split_last().ok_or("no extents")?;
        let before: u128 = before.iter().map(|&it| u128::from(it)).sum();
        let sum = before + u128::from(*last);
        if self.flags & 8 != 0 {
            require(extents.len() == 1, "more than one extent")?;
            require(sum <= self.effect.into(), "more than was asked for")?;
        } else {
            require(
                before < self.effect.into() || before == 0,
                "beyond the request",
            )?;
        }
        let end = u128::from(self.offset) + sum;
        require(end <= session.size().into(), "beyond the export")?;
        let unit = u64::from(session.block_sizes().minimum());
        let mut at = u128::from(self.offset);
        for length in extents {
            at += u128::from(length);
            let aligned = length.is_multiple_of(unit) || at == session.size().into();
            require(aligned, "between two blocks")?;
        }
        Ok(())
    }

    fn error(&mut self, kind: u16, payload: &[u8]) -> Outcome {
        require(payload.len() >= 6, "an error of another form")?;
        let (error, message) = (number(&payload[..4]) as u32, number(&payload[4..6]));
        require(error != 0, "an error that is none")?;
        // Valid as a reply to commands with a range; else an unexpected error.
        let has_offset = kind == 0x8002 && [0, 1, 4, 5, 6, 7].contains(&self.kind);
        if kind == 0x8002 {
            require(payload.len() >= 14, "an error of another form")?;
        }
        let after = if has_offset { 8 } else { 0 };
        let room = payload.len() as u64 - 6;
        require(message + after <= room, "a message that is too long")?;
        if has_offset {
            let at = 6 + message as usize;
            let offset = number(&payload[at..at + 8]);
            require(self.inside(offset, 1), "an error outside of the request")?;
            self.error_offsets.insert(offset);
        }
        self.error.get_or_insert(error);
        Ok(())
    }
}
