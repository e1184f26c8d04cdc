//! The block status of a whole export, part after part.

use std::io::{Read, Write};

use anyhow::{Context, Result, bail, ensure};
use nbd_proto::handshake::{Negotiated, Wanted};
use nbd_proto::limits::Limits;
use nbd_proto::session::{ReplyStyle, Session};
use nbd_proto::transmission::{ReplyDecoder, ReplyEvent, RequestEncoder};
use nbd_proto::wire::{Cookie, Errno, Name, Request};

use super::extents::Extent;
use super::facts::leave;
use super::link::{Place, Wire, set_patience};
use super::shared::uri::NbdUri;

const INPUT: usize = 64 << 10;

/// The most bytes that are asked about at once without extended headers: a multiple of every
/// minimum block size.
const MAX_COMPACT: u64 = (u32::MAX - u16::MAX as u32) as u64;

/// And with them, lest a server has to look at more than it can in time.
const MAX_EXTENDED: u64 = 1 << 40;

/// Asks for the extents of an export, from its beginning to its end.
#[derive(Debug)]
pub(crate) struct BlockStatus<'p, 'a> {
    place: &'p Place<'a>,
    wire: Wire<'a>,
    negotiated: Negotiated,
    encoder: RequestEncoder,
    decoder: ReplyDecoder,
    /// The id of the context.
    context: u32,
    name: Name,
    /// Up to where the status is known.
    next: u64,
    end: u64,
    requests: u64,
    input: Box<[u8]>,
    /// What one reply said.
    found: Vec<Extent>,
}

/// What became of a request.
#[derive(Debug)]
struct Answer {
    result: Result<(), Errno>,
    message: String,
}

impl<'p, 'a> BlockStatus<'p, 'a> {
    /// Connects, and selects the context.
    ///
    /// # Errors
    ///
    /// If the server does not have it.
    pub(crate) fn open(place: &'p Place<'a>, name: &Name) -> Result<Self> {
        let wanted = Wanted::new(place.uri.export.clone()).with_contexts([name.clone()]);
        let (mut wire, negotiated) = place.enter(wanted)?;
        let session = &negotiated.session;
        let Some(context) = session.contexts().iter().find(|found| found.name == *name) else {
            leave(&mut wire, &negotiated);
            bail!("{}: {}", place.uri, missing(&negotiated, name));
        };
        let context = context.id;
        let size = session.size();
        let smallest = u64::from(session.block_sizes().minimum());
        Ok(Self {
            place,
            encoder: RequestEncoder::new(session),
            decoder: ReplyDecoder::new(session, &Limits::new(), 1),
            wire,
            context,
            name: name.clone(),
            next: 0,
            // Less than a block cannot be asked about.
            end: size - size.checked_rem(smallest).unwrap_or(0),
            requests: 0,
            input: vec![0; INPUT].into(),
            found: Vec::new(),
            negotiated,
        })
    }

    pub(crate) const fn session(&self) -> &Session {
        &self.negotiated.session
    }

    pub(crate) const fn uri(&self) -> &NbdUri {
        &self.place.uri
    }

    /// Up to where the status can be asked for: the size, but for a part of a block at the end.
    pub(crate) const fn end(&self) -> u64 {
        self.end
    }

    /// Up to where the status is known.
    pub(crate) const fn position(&self) -> u64 {
        self.next
    }

    /// The next extents; none at the end.
    ///
    /// # Errors
    ///
    /// If the server fails or breaks a rule; nothing of that reply is passed on.
    pub(crate) fn next(&mut self) -> Result<&[Extent]> {
        self.found.clear();
        if self.next < self.end {
            let answer = self.ask();
            let answer = answer.with_context(|| self.place.uri.to_string())?;
            if let Err(errno) = answer.result {
                let what = failed(errno, &answer.message);
                let Self { place, next, .. } = self;
                bail!(
                    "{}: block status at offset {next} failed: {what}",
                    place.uri
                );
            }
            let last = self.found.last();
            let reached = last.map_or(self.next, |last| last.offset + last.length);
            // Otherwise this would never end. The decoder knows what is owed.
            ensure!(
                reached > self.next,
                "{}: the server told nothing of {}",
                self.place.uri,
                self.name
            );
            self.next = reached;
        }
        Ok(&self.found)
    }

    fn ask(&mut self) -> Result<Answer> {
        let most = match self.session().reply_style() {
            ReplyStyle::Extended => MAX_EXTENDED,
            _ => MAX_COMPACT,
        };
        // Cookies are not used again, so that a reply that comes twice is found out.
        self.requests += 1;
        let length = most.min(self.end - self.next);
        let request = Request::block_status(Cookie(self.requests), self.next, length);
        let head = self.encoder.encode(&request)?;
        self.decoder.expect(&request)?;
        set_patience(&mut self.wire, self.place.patience());
        self.wire
            .write_all(&head)
            .and_then(|()| self.wire.flush())
            .map_err(|error| self.explain(error))?;
        let mut message = String::new();
        loop {
            let count = match self.wire.read(&mut self.input) {
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.explain(error)),
            };
            if count == 0 {
                self.decoder.on_eof()?;
                bail!("the server closed the connection");
            }
            if let Some(result) = self.decode(count, &mut message)? {
                return Ok(Answer { result, message });
            }
        }
    }

    /// Takes in what was received; the result, if the reply is complete.
    fn decode(&mut self, count: usize, message: &mut String) -> Result<Option<Result<(), Errno>>> {
        let mut input = self.input.get(..count).unwrap_or_default();
        let mut finished = None;
        while let Some(event) = self.decoder.next(&mut input)? {
            match event {
                ReplyEvent::Status {
                    context,
                    offset,
                    extents,
                    ..
                } if context == self.context => {
                    let mut offset = offset;
                    for extent in extents {
                        // The last may reach beyond what was asked for, but not the export.
                        let length = extent.length.min(self.end.saturating_sub(offset));
                        let flags = extent.flags;
                        if length > 0 {
                            self.found.push(Extent {
                                offset,
                                length,
                                flags,
                            });
                        }
                        offset = offset.saturating_add(extent.length);
                    }
                }
                ReplyEvent::Error { message: words, .. } => *message = words,
                ReplyEvent::Finished { result, .. } => finished = Some(result),
                _ => {}
            }
        }
        Ok(finished)
    }

    fn explain(&self, error: std::io::Error) -> anyhow::Error {
        if error.kind() == std::io::ErrorKind::TimedOut {
            let seconds = self.place.timeout.as_secs();
            return anyhow::anyhow!(
                "no answer about the extents at offset {} within {seconds} s; if the server is \
                 only slow, raise --timeout",
                self.next
            );
        }
        anyhow::anyhow!("the connection failed: {error}")
    }

    /// Says goodbye.
    pub(crate) fn close(mut self) {
        set_patience(&mut self.wire, self.place.patience());
        leave(&mut self.wire, &self.negotiated);
    }
}

fn failed(errno: Errno, message: &str) -> String {
    let words = errno.describe();
    if message.is_empty() {
        return format!("{words} ({errno})");
    }
    // Through Debug: what a server says may hold control characters.
    format!("{words} ({errno}, the server says {message:?})")
}

/// Why there is no such context.
fn missing(negotiated: &Negotiated, name: &Name) -> String {
    if negotiated.session.reply_style() == ReplyStyle::Simple {
        return format!(
            "the server has no structured replies, and without them no meta context such as {name}"
        );
    }
    let refused = negotiated.refused.iter();
    let why = refused
        .rev()
        .find(|refused| refused.option == nbd_proto::wire::OptionCode::SET_META_CONTEXT);
    match why {
        Some(refused) => format!("no meta context {name}: {refused}"),
        None => format!(
            "the export has no meta context {name}; without --map, info shows those that it has"
        ),
    }
}
