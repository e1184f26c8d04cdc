//! A client's connection, which never waits for its server alone.
//!
//! Everything goes through one socket that does not block: [`Connection::drive`] writes what the
//! server takes and reads what it gives, in one go. So two full socket buffers cannot hold each
//! other up, one thread can look after several connections, and the same poll that waits for the
//! server hears of signals and of the time.

mod error;
mod requests;

pub(crate) use error::Error;

use std::collections::{HashMap, VecDeque};
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nbd_proto::handshake::{ClientConfig, Negotiated, TlsWanted, Wanted};
use nbd_proto::io::client_handshake_with_tls;
use nbd_proto::limits::Limits;
use nbd_proto::session::{Announcement, Session};
use nbd_proto::transmission::{Head, ReplyDecoder, ReplyEvent, RequestEncoder};
use nbd_proto::wire::{AllocationFlags, CommandType, Cookie, Errno, Extents, Name, Request};
use rustix::event::PollFlags;

use super::channel::Channel;
use super::signals::Signals;
use super::stream::{Patience, Patient, Stream};
use super::tls::TlsClient;
use super::uri::NbdUri;

/// The context that says what reads as zeroes.
const ALLOCATION: &str = "base:allocation";

/// Replies without their data are small; data that comes after the one at hand is better read to
/// where it belongs.
const INPUT: usize = 16 << 10;

/// Requests that go into one write.
const BATCH: usize = 16;

/// Reads and writes in one go, so that a fast server does not keep us from all else.
const TURNS: usize = 16;

/// A connection in transmission.
#[derive(Debug)]
pub(crate) struct Connection {
    channel: Channel,
    session: Session,
    announcement: Announcement,
    /// The id of the context [`ALLOCATION`], if it was selected.
    allocation: Option<u32>,
    encoder: RequestEncoder,
    decoder: ReplyDecoder,
    next_cookie: u64,
    /// What was asked and is not completed yet.
    slots: HashMap<Cookie, Slot>,
    outgoing: VecDeque<Outgoing>,
    /// Received and not decoded: `input[..filled]`.
    input: Box<[u8]>,
    filled: usize,
    completed: VecDeque<Completion>,
    /// Whether there may be more to read that polling the socket does not tell of.
    more: bool,
    timeout: Duration,
    /// When something moved last, or began to be waited for.
    moved: Instant,
    /// Why nothing can be sent any more; what the server said before it left is still read.
    unwritable: Option<io::Error>,
}

#[derive(Debug)]
struct Slot {
    request: Request,
    buffer: Vec<u8>,
    extents: Vec<Extent>,
    /// The server's words about an error.
    message: String,
    sent: bool,
    result: Option<Result<(), Errno>>,
}

#[derive(Debug)]
struct Outgoing {
    head: Head,
    cookie: Cookie,
    /// How much of head and payload together is written.
    written: usize,
}

/// A part of the export, and whether it is known to read as zeroes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) range: Range<u64>,
    pub(crate) zero: bool,
}

/// A request that is over.
#[derive(Debug)]
pub(crate) struct Completion {
    pub(crate) request: Request,
    /// The buffer that came with the request; after a read that went well it has the data.
    pub(crate) buffer: Vec<u8>,
    /// After a block status that went well: from its offset on, one behind the other, at least one.
    pub(crate) extents: Vec<Extent>,
    pub(crate) result: Result<(), Failed>,
}

/// Why a request failed; the connection can be used on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failed {
    pub(crate) errno: Errno,
    /// What the server says about it, for people; often empty.
    pub(crate) message: String,
}

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({}", self.errno.describe(), self.errno)?;
        if !self.message.is_empty() {
            // Through Debug: what a server says may hold control characters.
            write!(f, ", the server says {:?}", self.message)?;
        }
        f.write_str(")")
    }
}

/// How to connect, and how to talk then.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings<'a> {
    /// How many requests can be in flight.
    pub(crate) capacity: usize,
    /// How long the server may take to get us into transmission, and later to move a byte while
    /// it has something to do.
    pub(crate) timeout: Duration,
    /// Whether it is to be asked what reads as zeroes, if the server can tell.
    pub(crate) status: bool,
    pub(crate) signals: &'a Signals,
}

impl Connection {
    /// Connects, and negotiates the export with extended headers, or what comes closest.
    ///
    /// # Errors
    ///
    /// If there is no such server or export, or it takes too long, or is no NBD server.
    pub(crate) fn open(
        uri: &NbdUri,
        tls: Option<&TlsClient>,
        settings: &Settings<'_>,
    ) -> Result<Self, Error> {
        let (signals, timeout) = (settings.signals, settings.timeout);
        let deadline = Instant::now() + timeout;
        let patience = Patience {
            deadline,
            signals: Some(signals),
        };
        let explain = |error: Error| match error {
            _ if signals.caught().is_some() => Error::Stopped,
            Error::Connect(error) if error.kind() == io::ErrorKind::TimedOut => {
                Error::ConnectTimeout(timeout)
            }
            error if error.is_timeout() => Error::HandshakeTimeout(timeout),
            error => error,
        };
        let stream = Stream::connect(&uri.transport, patience)
            .map_err(|error| explain(Error::Connect(error)))?;
        let wanted = Wanted::new(uri.export.clone())
            .with_tls(match tls {
                Some(_) => TlsWanted::Required,
                None => TlsWanted::No,
            })
            .with_contexts(settings.status.then(allocation).flatten());
        let (shaken, negotiated) = client_handshake_with_tls(
            Patient { stream, patience },
            wanted,
            // Not if a name or TLS is wanted, which the negotiator sees to.
            ClientConfig::new().with_oldstyle(true),
            |stream| match tls {
                Some(tls) => tls.start(stream),
                // It was not asked for.
                None => Err(io::ErrorKind::InvalidInput.into()),
            },
        )
        .map_err(|error| explain(Error::Handshake(Box::new(error))))?;
        let channel = shaken.try_into().map_err(Error::Io)?;
        Ok(Self::new(channel, negotiated, settings))
    }

    fn new(channel: Channel, negotiated: Negotiated, settings: &Settings<'_>) -> Self {
        let announcement = negotiated.announcement();
        let session = negotiated.session;
        let contexts = session.contexts().iter();
        let allocation = contexts
            .filter(|context| context.name.as_str() == ALLOCATION)
            .map(|context| context.id)
            .next();
        Self {
            channel,
            allocation,
            encoder: RequestEncoder::new(&session),
            decoder: ReplyDecoder::new(&session, &Limits::new(), settings.capacity),
            session,
            announcement,
            next_cookie: 0,
            slots: HashMap::new(),
            outgoing: VecDeque::new(),
            input: vec![0; INPUT].into(),
            filled: 0,
            completed: VecDeque::new(),
            more: false,
            timeout: settings.timeout,
            moved: Instant::now(),
            unwritable: None,
        }
    }

    /// What was negotiated.
    pub(crate) const fn session(&self) -> &Session {
        &self.session
    }

    /// What the server said, to be looked at for contradictions.
    #[allow(dead_code, reason = "for programs that judge servers")]
    pub(crate) const fn announcement(&self) -> &Announcement {
        &self.announcement
    }

    /// Whether the server tells what reads as zeroes.
    pub(crate) const fn has_status(&self) -> bool {
        self.allocation.is_some()
    }

    /// How long the server may be silent from now on.
    pub(crate) const fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    // --- requests ---

    /// Whether nothing is in flight.
    pub(crate) fn is_idle(&self) -> bool {
        self.slots.is_empty()
    }

    /// The next request that is over, in the order of the replies.
    pub(crate) fn next_completed(&mut self) -> Option<Completion> {
        self.completed.pop_front()
    }

    // --- moving bytes ---

    /// What to poll the socket for. Always for input too: a server that leaves is to be noticed.
    pub(crate) fn interest(&self) -> PollFlags {
        if self.outgoing.is_empty() && !self.channel.wants_write() {
            PollFlags::IN
        } else {
            PollFlags::IN | PollFlags::OUT
        }
    }

    /// Whether [`drive`](Self::drive) has something to do without any waiting.
    pub(crate) const fn has_more(&self) -> bool {
        self.more
    }

    /// When the server will have taken too long, if it is not heard of before.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        (!self.is_idle()).then(|| self.moved + self.timeout)
    }

    /// Writes and reads what can be without waiting, and checks the time.
    ///
    /// # Errors
    ///
    /// If the connection is of no use any more. What was completed before can still be had.
    pub(crate) fn drive(&mut self) -> Result<(), Error> {
        self.send();
        self.receive()?;
        match self.deadline() {
            // Whatever was there to be read has been read: the time that we spent elsewhere is
            // not held against the server.
            Some(deadline) if deadline <= Instant::now() => Err(Error::Silent {
                timeout: self.timeout,
                in_flight: self.slots.len(),
            }),
            _ => Ok(()),
        }
    }

    fn send(&mut self) {
        for _ in 0..TURNS {
            if self.outgoing.is_empty() {
                match self.channel.flush() {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => self.give_up_writing(error),
                    Ok(()) => {}
                }
                return;
            }
            match self.send_some() {
                Ok(0) => return self.give_up_writing(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    self.moved = Instant::now();
                    self.sent(written);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return self.give_up_writing(error),
            }
        }
    }

    /// Often the server has said why before it left: that is still to be read.
    fn give_up_writing(&mut self, error: io::Error) {
        self.outgoing.clear();
        self.unwritable = Some(error);
    }

    fn send_some(&mut self) -> io::Result<usize> {
        let mut parts = Vec::with_capacity(2 * BATCH);
        for outgoing in self.outgoing.iter().take(BATCH) {
            let payload = payload_of(self.slots.get(&outgoing.cookie));
            let head = outgoing.head.as_ref();
            let in_payload = outgoing.written.saturating_sub(head.len());
            parts.push(IoSlice::new(head.get(outgoing.written..).unwrap_or(&[])));
            parts.push(IoSlice::new(payload.get(in_payload..).unwrap_or(&[])));
        }
        parts.retain(|part| !part.is_empty());
        self.channel.write_vectored(&parts)
    }

    fn sent(&mut self, mut count: usize) {
        while let Some(outgoing) = self.outgoing.front_mut() {
            let slot = self.slots.get_mut(&outgoing.cookie);
            let whole = outgoing.head.len() + payload_of(slot.as_deref()).len();
            let part = count.min(whole - outgoing.written);
            outgoing.written += part;
            count -= part;
            if outgoing.written < whole {
                return;
            }
            let cookie = outgoing.cookie;
            self.outgoing.pop_front();
            if let Some(slot) = slot {
                slot.sent = true;
                if slot.result.is_some() {
                    self.complete(cookie);
                }
            }
        }
    }

    fn receive(&mut self) -> Result<(), Error> {
        self.more = false;
        for _ in 0..TURNS {
            match self.receive_some() {
                Ok(true) => self.moved = Instant::now(),
                Ok(false) => return Err(self.ended()),
                Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    // Nothing more will come of what was sent in vain.
                    return match self.unwritable.take() {
                        Some(error) => Err(Error::Io(error)),
                        None => Ok(()),
                    };
                }
                Err(Error::Io(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.more = true;
        Ok(())
    }

    /// Reads once and decodes; whether there was anything but the end.
    fn receive_some(&mut self) -> Result<bool, Error> {
        let direct = self.decoder.payload();
        let room = direct.and_then(|payload| {
            let slot = self.slots.get_mut(&payload.cookie)?;
            slot.room(payload.offset, payload.left)
        });
        let room = room.unwrap_or_default();
        let in_place = room.len();
        // `next` takes all input that it is given, so nothing is left from before.
        let mut parts = [IoSliceMut::new(room), IoSliceMut::new(&mut self.input)];
        let parts = if in_place == 0 {
            &mut parts[1..]
        } else {
            &mut parts[..]
        };
        let read = self.channel.read_vectored(parts).map_err(Error::Io)?;
        if read == 0 {
            return Ok(false);
        }
        if in_place > 0 {
            self.decoder.payload_read(read.min(in_place) as u64);
        }
        self.filled = read.saturating_sub(in_place);
        self.decode()?;
        Ok(true)
    }

    fn decode(&mut self) -> Result<(), Error> {
        let mut input = self.input.get(..self.filled).unwrap_or(&[]);
        let mut finished = Vec::new();
        let result = loop {
            match self.decoder.next(&mut input) {
                Ok(None) => break Ok(()),
                Ok(Some(ReplyEvent::Finished { cookie, result })) => {
                    finished.push((cookie, result));
                }
                Ok(Some(ReplyEvent::Status {
                    cookie,
                    context,
                    offset,
                    extents,
                })) if Some(context) == self.allocation => {
                    if let Some(slot) = self.slots.get_mut(&cookie) {
                        slot.take_status(offset, extents);
                    }
                }
                Ok(Some(event)) => take_event(&mut self.slots, event),
                Err(fatal) => break Err(Error::Protocol(fatal)),
            }
        };
        self.filled = 0;
        // Also before an error: the replies before it were in order.
        for (cookie, result) in finished {
            self.finish(cookie, result)?;
        }
        result
    }

    fn finish(&mut self, cookie: Cookie, result: Result<(), Errno>) -> Result<(), Error> {
        let Some(slot) = self.slots.get_mut(&cookie) else {
            return Ok(());
        };
        if !slot.sent && result.is_ok() {
            // The decoder knows what was asked, but not how much of it we have sent.
            return Err(Error::TooEarly {
                offset: slot.request.offset,
            });
        }
        slot.result = Some(result);
        if slot.sent || self.unwritable.is_some() {
            self.complete(cookie);
        }
        Ok(())
    }

    fn complete(&mut self, cookie: Cookie) {
        if let Some(slot) = self.slots.remove(&cookie) {
            self.completed.push_back(Completion {
                request: slot.request,
                buffer: slot.buffer,
                extents: slot.extents,
                result: match slot.result {
                    Some(Ok(())) => Ok(()),
                    Some(Err(errno)) => Err(Failed {
                        errno,
                        message: slot.message,
                    }),
                    // Never so: only what has a result is completed.
                    None => Err(Failed {
                        errno: Errno::EIO,
                        message: String::new(),
                    }),
                },
            });
        }
    }

    fn ended(&self) -> Error {
        match self.decoder.on_eof() {
            Ok(()) => Error::Closed,
            Err(fatal) => Error::Protocol(fatal),
        }
    }

    /// Says goodbye, as the protocol wants it, for as long as patience lasts. There is no answer
    /// to wait for.
    pub(crate) fn disconnect(mut self, patience: Patience<'_>) {
        if let (Ok(head), None) = (
            self.encoder.encode(&Request::disconnect()),
            &self.unwritable,
        ) {
            // A request that is half sent is ended first, or the goodbye would be its payload.
            let mut bytes = Vec::new();
            if let Some(outgoing) = self.outgoing.front().filter(|out| out.written > 0) {
                let payload = payload_of(self.slots.get(&outgoing.cookie));
                bytes.extend_from_slice(&outgoing.head);
                bytes.extend_from_slice(payload);
                bytes.drain(..outgoing.written);
            }
            bytes.extend_from_slice(&head);
            // If it does not work out, the connection is closed without it.
            let _ = self.channel.leave(&bytes, patience);
        }
        self.channel.shutdown();
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

impl Slot {
    /// Where in the buffer `length` bytes from `offset` of the export belong. The decoder only
    /// lets through what lies within the request.
    fn room(&mut self, offset: u64, length: u64) -> Option<&mut [u8]> {
        let start = usize::try_from(offset.checked_sub(self.request.offset)?).ok()?;
        let end = start.checked_add(usize::try_from(length).ok()?)?;
        self.buffer.get_mut(start..end)
    }

    /// Neighbours of one kind become one: how a server cuts them has no meaning. The decoder lets
    /// through what is within the export.
    fn take_status(&mut self, offset: u64, extents: Extents<'_>) {
        let mut start = offset;
        for extent in extents {
            let end = start.saturating_add(extent.length);
            let zero = extent.flags & u64::from(AllocationFlags::ZERO.bits()) != 0;
            match self.extents.last_mut() {
                Some(last) if last.zero == zero && last.range.end == start => last.range.end = end,
                _ => self.extents.push(Extent {
                    range: start..end,
                    zero,
                }),
            }
            start = end;
        }
    }
}

fn allocation() -> Option<Name> {
    Name::new(ALLOCATION).ok()
}

/// What has to be sent after the head of a request.
fn payload_of(slot: Option<&Slot>) -> &[u8] {
    match slot {
        Some(slot) if slot.request.kind == CommandType::WRITE => &slot.buffer,
        _ => &[],
    }
}

fn take_event(slots: &mut HashMap<Cookie, Slot>, event: ReplyEvent<'_>) {
    match event {
        ReplyEvent::Data {
            cookie,
            offset,
            bytes,
            ..
        } => {
            let slot = slots.get_mut(&cookie);
            if let Some(room) = slot.and_then(|slot| slot.room(offset, bytes.len() as u64)) {
                room.copy_from_slice(bytes);
            }
        }
        ReplyEvent::Hole {
            cookie,
            offset,
            length,
        } => {
            let slot = slots.get_mut(&cookie);
            if let Some(room) = slot.and_then(|slot| slot.room(offset, length)) {
                room.fill(0);
            }
        }
        ReplyEvent::Error {
            cookie, message, ..
        } => {
            if let Some(slot) = slots.get_mut(&cookie) {
                slot.message = message;
            }
        }
        // The status of other contexts was not asked for; `Finished` is dealt with where it comes.
        _ => {}
    }
}
