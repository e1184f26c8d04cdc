//! A server that is reached through streams: any server, in this process or elsewhere.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::format;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};
use std::io::{Read, Result as IoResult, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use super::server::{Act, Answer, Operation, Server, Trouble};
use crate::conformance::check::{Initial, Promise};
use crate::conformance::history::Content;
use crate::flush::Advertised;
use crate::handshake::{ClientConfig, Wanted};
use crate::io::{Replies, client_handshake, write_message};
use crate::limits::Limits;
use crate::session::Session;
use crate::transmission::{ReplyEvent, RequestEncoder};
use crate::wire::{CommandFlags, CommandType, Cookie, Name, Request, TransmissionFlags};

/// A server that is reached through a function that opens a connection to it.
///
/// What is seen of it is real: each connection shakes hands and sends requests as any client does,
/// and what is written tells its blocks and writes apart, so that a read that mixes two of them is
/// noticed. The server has to work by itself, in threads or another process; that is why
/// [`Act`]s are only occasions to wait for an answer, and why a schedule may go differently when it
/// is played again. It overwrites the first [`BLOCKS`](Self::BLOCKS) blocks of the export.
///
/// It waits for answers as long as the stream does: set a time limit on it
/// ([`set_read_timeout`](std::net::TcpStream::set_read_timeout)), and a server that hangs is
/// [`Trouble`] like one that closes the connection or breaks the protocol.
pub struct StreamServer<F, S> {
    open: F,
    export: Name,
    /// What tells apart what was written through this value from everything before.
    nonce: u64,
    /// Bytes of a block, when that is known.
    block: u64,
    clients: Vec<Option<Client<S>>>,
    answers: VecDeque<Answer>,
}

enum Client<S> {
    Connected(S),
    Ready(Box<Transmission<S>>),
}

struct Transmission<S> {
    session: Session,
    encoder: RequestEncoder,
    replies: Replies<S>,
    waiting: BTreeMap<u64, Waiting>,
}

struct Waiting {
    offset: u64,
    /// Where the data of a read goes.
    memory: Vec<u8>,
    /// Whether the data is wanted.
    reads: bool,
}

impl<F, S> fmt::Debug for StreamServer<F, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamServer")
            .field("export", &self.export)
            .field("connections", &self.clients.len())
            .finish_non_exhaustive()
    }
}

/// More than this are not in flight on a connection, so that both sides never wait for each other
/// to read.
const MOST_IN_FLIGHT: usize = 16;

impl<F: FnMut() -> IoResult<S>, S: Read + Write> StreamServer<F, S> {
    /// How many blocks of the export are used, of 512 bytes each, or of the minimum block size if
    /// that is larger.
    pub const BLOCKS: u64 = 8;

    /// A server whose default export (that with the empty name) is used; `open` opens a connection.
    #[must_use]
    pub fn new(open: F) -> Self {
        Self {
            open,
            export: Name::default(),
            nonce: nonce(),
            block: 0,
            clients: Vec::new(),
            answers: VecDeque::new(),
        }
    }

    /// Uses another export.
    #[must_use]
    pub fn with_export(mut self, export: Name) -> Self {
        self.export = export;
        self
    }

    fn transmission(&mut self, conn: usize) -> Result<&mut Transmission<S>, Trouble> {
        match self.clients.get_mut(conn) {
            Some(Some(Client::Ready(transmission))) => Ok(transmission),
            _ => Err(Trouble(format!("connection {conn} is not open"))),
        }
    }

    fn request(&self, session: &Session, tag: u64, operation: &Operation) -> Request {
        let can = |flag| session.flags().contains(flag);
        let (kind, blocks, fua) = match operation {
            Operation::Flush => return Request::flush(Cookie(tag)),
            Operation::Load { blocks } if can(TransmissionFlags::SEND_CACHE) => {
                (CommandType::CACHE, blocks, false)
            }
            Operation::Read { blocks } | Operation::Load { blocks } => {
                (CommandType::READ, blocks, false)
            }
            Operation::Zero { blocks, fua } if can(TransmissionFlags::SEND_WRITE_ZEROES) => {
                (CommandType::WRITE_ZEROES, blocks, *fua)
            }
            Operation::Zero { blocks, fua } | Operation::Write { blocks, fua, .. } => {
                (CommandType::WRITE, blocks, *fua)
            }
        };
        let offset = blocks.start.saturating_mul(self.block);
        let length = blocks.end.saturating_sub(blocks.start);
        let length = length.saturating_mul(self.block);
        let request = Request::new(kind, Cookie(tag), offset, length);
        if fua {
            request.with_flags(CommandFlags::FUA)
        } else {
            request
        }
    }

    fn payload(&self, operation: &Operation, request: &Request) -> Vec<u8> {
        let mut payload = Vec::new();
        if request.kind != CommandType::WRITE {
            return payload;
        }
        let blocks = match operation {
            Operation::Write { blocks, .. } | Operation::Zero { blocks, .. } => blocks.clone(),
            _ => return payload,
        };
        for block in blocks {
            let unit = match operation {
                Operation::Write { content, .. } => unit(self.nonce, *content, block),
                _ => [0; UNIT],
            };
            let times = usize::try_from(self.block).unwrap_or(0) / UNIT;
            payload.extend(core::iter::repeat_n(unit, times).flatten());
        }
        payload
    }

    /// Waits for the next answer on a connection, if one is to come.
    fn receive(&mut self, conn: usize) -> Result<(), Trouble> {
        let (nonce, block) = (self.nonce, self.block);
        let transmission = self.transmission(conn)?;
        if transmission.waiting.is_empty() {
            return Ok(());
        }
        let (tag, result) = transmission
            .receive()
            .map_err(|why| Trouble(format!("connection {conn}: {why}")))?;
        let result = result.map(|waiting| match waiting.reads {
            true => contents(nonce, block, &waiting),
            false => Vec::new(),
        });
        self.answers.push_back(Answer { tag, result });
        Ok(())
    }

    fn in_flight(&self, conn: usize) -> usize {
        match self.clients.get(conn) {
            Some(Some(Client::Ready(transmission))) => transmission.waiting.len(),
            _ => 0,
        }
    }
}

type Answered = (u64, Result<Waiting, crate::wire::Errno>);

impl<S: Read + Write> Transmission<S> {
    fn receive(&mut self) -> Result<Answered, Trouble> {
        loop {
            let event = self.replies.next_received();
            let event = event.map_err(|why| Trouble(format!("the server breaks a rule: {why}")))?;
            let Some(event) = event else {
                let received = self.replies.receive();
                received.map_err(|why| Trouble(format!("no answer came: {why}")))?;
                continue;
            };
            let waiting = self.waiting.get_mut(&event.cookie().0);
            match (&event, waiting) {
                (ReplyEvent::Data { offset, bytes, .. }, Some(waiting)) => {
                    if let Some(place) = waiting.place(*offset, bytes.len()) {
                        place.copy_from_slice(bytes);
                    }
                }
                (ReplyEvent::Hole { offset, length, .. }, Some(waiting)) => {
                    let length = usize::try_from(*length).unwrap_or(usize::MAX);
                    if let Some(place) = waiting.place(*offset, length) {
                        place.fill(0);
                    }
                }
                (ReplyEvent::Finished { cookie, result }, _) => {
                    let waiting = self.waiting.remove(&cookie.0);
                    let waiting = waiting.ok_or_else(|| Trouble::new("an answer to nothing"))?;
                    return Ok((cookie.0, result.map(|()| waiting)));
                }
                _ => {}
            }
        }
    }
}

impl Waiting {
    fn place(&mut self, offset: u64, length: usize) -> Option<&mut [u8]> {
        let start = usize::try_from(offset.checked_sub(self.offset)?).ok()?;
        self.memory.get_mut(start..start.checked_add(length)?)
    }
}

/// What a block is filled with, again and again: what tells the writer's writes from all others,
/// which write, which block, and a sum, so that nothing else looks like it.
const UNIT: usize = 32;

fn unit(nonce: u64, content: u64, block: u64) -> [u8; UNIT] {
    let mut unit = [0; UNIT];
    let sum = nonce ^ content.rotate_left(17) ^ block.rotate_left(41) ^ 0x6e62_6470_726f_746f;
    let words = [nonce, content, block, sum];
    for (place, word) in unit.chunks_exact_mut(8).zip(words) {
        place.copy_from_slice(&word.to_be_bytes());
    }
    unit
}

fn contents(nonce: u64, block: u64, read: &Waiting) -> Vec<u64> {
    let size = usize::try_from(block).unwrap_or(usize::MAX).max(1);
    let first = read.offset.checked_div(block).unwrap_or(0);
    let blocks = (first..).zip(read.memory.chunks_exact(size));
    blocks
        .map(|(at, bytes)| content(nonce, at, bytes))
        .collect()
}

fn content(nonce: u64, block: u64, bytes: &[u8]) -> u64 {
    if bytes.iter().all(|&byte| byte == 0) {
        return Content::ZEROES.0;
    }
    let known = bytes.get(8..16).and_then(|it| it.try_into().ok());
    let known = known.map_or(0, u64::from_be_bytes);
    let expected = unit(nonce, known, block);
    let same = bytes.chunks(UNIT).all(|it| it == expected);
    if same { known } else { Content::MIXED.0 }
}

/// Another one for each value and each run.
fn nonce() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_or(0, |it| it.as_secs() ^ (u64::from(it.subsec_nanos()) << 32));
    now.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed) << 20)
}

impl<F: FnMut() -> IoResult<S>, S: Read + Write> Server for StreamServer<F, S> {
    fn blocks(&self) -> u64 {
        Self::BLOCKS
    }

    /// What the protocol says; but what is in a block before anything is written to it, nobody
    /// knows.
    fn promise(&self, multi_conn: bool) -> Promise {
        let promise = if multi_conn {
            Promise::MULTI_CONN
        } else {
            Promise::SINGLE_CONNECTION
        };
        promise.with_initial(Initial::Unknown)
    }

    fn connect(&mut self) -> Result<usize, Trouble> {
        let stream = (self.open)();
        let stream = stream.map_err(|why| Trouble(format!("cannot connect: {why}")))?;
        self.clients.push(Some(Client::Connected(stream)));
        Ok(self.clients.len() - 1)
    }

    fn ready(&mut self, conn: usize) -> Result<Advertised, Trouble> {
        let client = self.clients.get_mut(conn).and_then(Option::take);
        let Some(Client::Connected(mut stream)) = client else {
            return Err(Trouble(format!("connection {conn} is not being opened")));
        };
        let wanted = Wanted::new(self.export.clone());
        let negotiated = client_handshake(&mut stream, wanted, ClientConfig::new());
        let negotiated =
            negotiated.map_err(|why| Trouble(format!("connection {conn}, handshake: {why}")))?;
        let session = negotiated.session;
        let flags = session.flags();
        let block = u64::from(session.block_sizes().minimum().max(512));
        if self.block == 0 {
            self.block = block;
        }
        let needed = Self::BLOCKS.saturating_mul(block);
        if flags.contains(TransmissionFlags::READ_ONLY) {
            return Err(Trouble::new(
                "the export is read-only: nothing can be tested",
            ));
        }
        if session.size() < needed || u64::from(session.block_sizes().max_payload()) < needed {
            return Err(Trouble(format!("the export has less than {needed} bytes")));
        }
        if self.block != block {
            return Err(Trouble::new("connections differ in their block size"));
        }
        let transmission = Transmission {
            encoder: RequestEncoder::new(&session),
            replies: Replies::new(stream, &session, &Limits::new(), MOST_IN_FLIGHT),
            session,
            waiting: BTreeMap::new(),
        };
        if let Some(client) = self.clients.get_mut(conn) {
            *client = Some(Client::Ready(Box::new(transmission)));
        }
        Ok(Advertised {
            multi_conn: flags.contains(TransmissionFlags::CAN_MULTI_CONN),
            flush: flags.contains(TransmissionFlags::SEND_FLUSH),
            fua: flags.contains(TransmissionFlags::SEND_FUA),
        })
    }

    fn submit(&mut self, conn: usize, tag: u64, operation: &Operation) -> Result<(), Trouble> {
        while self.in_flight(conn) >= MOST_IN_FLIGHT {
            self.receive(conn)?;
        }
        let session = self.transmission(conn)?.session.clone();
        let request = self.request(&session, tag, operation);
        let payload = self.payload(operation, &request);
        let transmission = self.transmission(conn)?;
        let head = transmission.encoder.encode(&request);
        let head = head.map_err(|why| Trouble(format!("cannot be sent: {why}")))?;
        let expected = transmission.replies.expect(&request);
        expected.map_err(|why| Trouble(format!("cannot be sent: {why}")))?;
        let reads = request.kind == CommandType::READ;
        let length = if reads { request.length } else { 0 };
        let waiting = Waiting {
            offset: request.offset,
            memory: vec![0; usize::try_from(length).unwrap_or(0)],
            reads: matches!(operation, Operation::Read { .. }),
        };
        transmission.waiting.insert(tag, waiting);
        write_message(transmission.replies.get_mut(), &head, &payload)
            .map_err(|why| Trouble(format!("connection {conn} takes no requests: {why}")))
    }

    fn act(&mut self, act: Act) -> Result<(), Trouble> {
        let (Act::Finish(which) | Act::FinishFlush(which)) = act else {
            return Ok(());
        };
        let busy = (0..self.clients.len()).filter(|&conn| self.in_flight(conn) > 0);
        let busy: Vec<usize> = busy.collect();
        let chosen = which.checked_rem(busy.len());
        match chosen.and_then(|at| busy.get(at)) {
            Some(&conn) => self.receive(conn),
            None => Ok(()),
        }
    }

    fn answer(&mut self) -> Option<Answer> {
        self.answers.pop_front()
    }

    fn settle(&mut self) -> Result<(), Trouble> {
        for conn in 0..self.clients.len() {
            while self.in_flight(conn) > 0 {
                self.receive(conn)?;
            }
        }
        Ok(())
    }

    fn disconnect(&mut self, conn: usize) -> Result<(), Trouble> {
        let client = self.clients.get_mut(conn).and_then(Option::take);
        if let Some(Client::Ready(mut transmission)) = client
            && let Ok(head) = transmission.encoder.encode(&Request::disconnect())
        {
            // A server that is gone already has nothing to be told.
            let _ = write_message(transmission.replies.get_mut(), &head, &[]);
        }
        Ok(())
    }
}
