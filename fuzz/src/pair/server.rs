//! The server of a pair: it executes in the order of arrival, and answers in any.

use arbitrary::Arbitrary;
use nbd_proto::limits::Limits;
use nbd_proto::session::{ReplyStyle, Session};
use nbd_proto::transmission::{
    Chunks, IllegalReply, ReplyEncoder, RequestDecoder, RequestEvent, StatusReply,
};
use nbd_proto::wire::{CommandFlags, CommandType, Cookie, Errno, Extent, Request, StatusQuery};

/// How a request is answered.
#[derive(Debug, Arbitrary)]
pub(super) enum How {
    /// As simply as possible.
    Plain,
    Fail(u8),
    FailAt(u8, u16),
    /// A read in several chunks, each of which may be illegal.
    Chunks([Part; 6]),
    /// A block status with extents that may be illegal: length and flags.
    Status([(u16, u8); 6]),
}

#[derive(Debug, Arbitrary)]
pub(super) enum Part {
    Data(u16, u16),
    Hole(u16, u16),
    ErrorAt(u16, u8),
    Error(u8),
}

/// A request that was executed, and what is to be said of it.
#[derive(Debug)]
struct Executed {
    request: Request,
    refused: Option<Errno>,
    /// What was read.
    data: Vec<u8>,
    /// The payload of a block status request that has one, and how much it asks about.
    query: Option<Vec<u8>>,
    effect_length: u64,
}

pub(super) struct Server {
    session: Session,
    decoder: RequestDecoder,
    encoder: ReplyEncoder,
    store: Vec<u8>,
    /// A request, and what came of its payload.
    arriving: Option<(Request, Vec<u8>)>,
    executed: Vec<Executed>,
    disconnected: bool,
}

impl Server {
    pub(super) fn new(session: &Session) -> Self {
        Self {
            session: session.clone(),
            decoder: RequestDecoder::new(session, &Limits::new()),
            encoder: ReplyEncoder::new(session),
            store: vec![0; usize::try_from(session.size()).expect("small")],
            arriving: None,
            executed: Vec::new(),
            disconnected: false,
        }
    }

    pub(super) fn store(&self) -> &[u8] {
        &self.store
    }

    pub(super) fn receive(&mut self, mut input: &[u8]) {
        loop {
            let event = self.decoder.next(&mut input).expect("our own client");
            match event {
                None => break,
                Some(RequestEvent::Disconnect) => self.disconnected = true,
                Some(RequestEvent::Payload(bytes)) => {
                    let (_, payload) = self.arriving.as_mut().expect("a request");
                    payload.extend_from_slice(bytes);
                }
                Some(RequestEvent::Request(request)) => {
                    if let Err(why) = self.session.check(&request) {
                        self.decoder.skip_payload();
                        self.refuse(request, why.errno());
                        continue;
                    }
                    self.arriving = Some((request, Vec::new()));
                    // Every other payload is read past the decoder.
                    if request.cookie.0.is_multiple_of(2) {
                        let left = usize::try_from(self.decoder.payload_left()).expect("small");
                        let (bytes, rest) = input.split_at(left.min(input.len()));
                        if let Some((_, payload)) = &mut self.arriving {
                            payload.extend_from_slice(bytes);
                        }
                        self.decoder.payload_read(bytes.len() as u64);
                        input = rest;
                    }
                }
            }
            if self.decoder.payload_left() == 0
                && let Some((request, payload)) = self.arriving.take()
            {
                self.execute(request, &payload);
            }
        }
        assert!(input.is_empty());
    }

    fn refuse(&mut self, request: Request, errno: Errno) {
        self.executed.push(Executed {
            request,
            refused: Some(errno),
            data: Vec::new(),
            query: None,
            effect_length: 0,
        });
    }

    fn execute(&mut self, request: Request, payload: &[u8]) {
        let mut executed = Executed {
            request,
            refused: None,
            data: Vec::new(),
            query: None,
            effect_length: request.length,
        };
        let range = || {
            let start = usize::try_from(request.offset).expect("small");
            start..start + usize::try_from(request.length).expect("small")
        };
        match request.kind {
            CommandType::READ => executed.data = self.store[range()].to_vec(),
            CommandType::WRITE => self.store[range()].copy_from_slice(payload),
            CommandType::WRITE_ZEROES => self.store[range()].fill(0),
            CommandType::BLOCK_STATUS if request.flags.contains(CommandFlags::PAYLOAD_LEN) => {
                let query = StatusQuery::parse(payload).expect("its length was checked");
                if let Err(why) = self.session.check_status(&request, &query) {
                    return self.refuse(request, why.errno());
                }
                executed.effect_length = query.effect_length();
                executed.query = Some(payload.to_vec());
            }
            _ => {}
        }
        self.executed.push(executed);
    }

    /// Whether something is not answered.
    pub(super) const fn owes(&self) -> bool {
        !self.executed.is_empty()
    }

    /// Answers a request, if there is one; says with what result.
    pub(super) fn answer(
        &mut self,
        which: usize,
        how: &How,
        out: &mut Vec<u8>,
    ) -> Option<(Cookie, Result<(), Errno>)> {
        if self.executed.is_empty() {
            return None;
        }
        let executed = self.executed.remove(which % self.executed.len());
        let request = &executed.request;
        let result = match (how, executed.refused) {
            (_, Some(errno)) => self.fail(request, errno, out),
            (How::Fail(errno), None) => {
                let errno = known(*errno);
                self.encoder.error(request, errno, "it is so", out);
                Err(self.allowed(request, errno))
            }
            (How::FailAt(errno, at), None) => {
                let (errno, at) = (known(*errno), request.offset + u64::from(*at % 1024));
                let before = out.len();
                match self.encoder.error_at(request, at, errno, "there", out) {
                    Ok(()) => Err(self.allowed(request, errno)),
                    Err(why) => {
                        assert_eq!((why, out.len()), (IllegalReply::OutOfRange, before));
                        self.fail(request, errno, out)
                    }
                }
            }
            (How::Chunks(parts), None) => match self.encoder.chunks(request) {
                Ok(chunks) => send_chunks(chunks, &executed, parts, out),
                Err(why) => {
                    let simple = self.session.reply_style() == ReplyStyle::Simple;
                    let expected = if request.kind == CommandType::READ {
                        assert!(simple);
                        IllegalReply::NoChunks
                    } else {
                        IllegalReply::NotARead
                    };
                    assert_eq!(why, expected);
                    self.plain(&executed, out)
                }
            },
            (How::Status(extents), None) if request.kind == CommandType::BLOCK_STATUS => {
                let unit = u64::from(self.session.block_sizes().minimum());
                let extents = extents.map(|(length, flags)| Extent {
                    length: u64::from(length % 512) * unit + u64::from(length >> 13 == 7),
                    flags: u64::from(flags % 3),
                });
                self.status(&executed, &extents, out)
            }
            (How::Plain | How::Status(_), None) => self.plain(&executed, out),
        };
        Some((executed.request.cookie, result))
    }

    fn fail(&self, request: &Request, errno: Errno, out: &mut Vec<u8>) -> Result<(), Errno> {
        out.extend_from_slice(&self.encoder.fail(request, errno));
        Err(self.allowed(request, errno))
    }

    /// What an error becomes that the request may not have ("Error values").
    fn allowed(&self, request: &Request, errno: Errno) -> Errno {
        let structured = self.session.reply_style() != ReplyStyle::Simple;
        let large = request.length > u64::from(self.session.block_sizes().max_payload());
        let fast = request.flags.contains(CommandFlags::FAST_ZERO);
        let fine = match (errno, request.kind) {
            (Errno::ENOTSUP, kind) => fast && kind == CommandType::WRITE_ZEROES,
            (Errno::EOVERFLOW, CommandType::READ) => structured,
            (Errno::EOVERFLOW, kind) => {
                let without_payload = [
                    CommandType::TRIM,
                    CommandType::CACHE,
                    CommandType::WRITE_ZEROES,
                ];
                large && !fast && without_payload.contains(&kind)
            }
            _ => true,
        };
        if fine { errno } else { Errno::EINVAL }
    }

    fn plain(&self, executed: &Executed, out: &mut Vec<u8>) -> Result<(), Errno> {
        let request = &executed.request;
        match request.kind {
            CommandType::READ => {
                let head = self.encoder.read(request);
                out.extend_from_slice(&head.expect("it was checked"));
                out.extend_from_slice(&executed.data);
            }
            CommandType::BLOCK_STATUS => return self.status(executed, &[], out),
            _ => out.extend_from_slice(&self.encoder.ok(request)),
        }
        Ok(())
    }

    /// These extents for every context, or one of the whole; an error if they cannot be sent.
    fn status(
        &self,
        executed: &Executed,
        extents: &[Extent],
        out: &mut Vec<u8>,
    ) -> Result<(), Errno> {
        let request = &executed.request;
        let reply = match &executed.query {
            Some(payload) => {
                let query = StatusQuery::parse(payload).expect("it was checked");
                StatusReply::for_query(&self.session, request, &query)
            }
            None => StatusReply::new(&self.session, request),
        };
        let mut reply = reply.expect("it was checked");
        assert_eq!(reply.effect_length(), executed.effect_length);
        let whole = [Extent {
            length: executed.effect_length,
            flags: 0,
        }];
        let extents = if extents.is_empty() { &whole } else { extents };
        while let Some(id) = reply.owed() {
            let before = out.len();
            match reply.context(id, extents.iter().copied(), out) {
                Ok(covered) => assert!(covered > 0 && out.len() > before),
                Err(_) => {
                    assert_eq!(out.len(), before);
                    let told = reply.error(Errno::EIO, "odd", out);
                    told.expect("not ended");
                    return Err(Errno::EIO);
                }
            }
        }
        Ok(())
    }

    pub(super) fn check_end(&self) {
        assert!(self.disconnected);
        assert_eq!(self.decoder.on_eof(), Ok(()));
        assert!(self.arriving.is_none());
    }
}

/// Sends what parts are legal, and fills the gaps; where that is not possible, fails.
fn send_chunks(
    mut chunks: Chunks,
    executed: &Executed,
    parts: &[Part],
    out: &mut Vec<u8>,
) -> Result<(), Errno> {
    let Request {
        offset: start,
        length: whole,
        ..
    } = executed.request;
    // Seldom outside of the request.
    let place = |at: u16| start + u64::from(at) % (whole + 1 + u64::from(at) % 2);
    let size = |length: u16| u32::from(length) % 2048;
    let data = |offset: u64, length: u32| {
        let at = usize::try_from(offset - start).ok()?;
        executed.data.get(at..at.checked_add(length as usize)?)
    };
    let mut result = Ok(());
    for part in parts {
        match *part {
            Part::Data(at, length) => {
                let (offset, length) = (place(at), size(length));
                if let Ok(head) = chunks.data(offset, length) {
                    out.extend_from_slice(&head);
                    out.extend_from_slice(data(offset, length).expect("legal"));
                }
            }
            Part::Hole(at, length) => {
                let (offset, length) = (place(at), size(length));
                let zeroes = data(offset, length);
                // Only zeroes may be sent as a hole; what is outside must be refused.
                if zeroes.is_none_or(|bytes| bytes.iter().all(|&byte| byte == 0))
                    && let Ok(head) = chunks.hole(offset, length)
                {
                    assert!(zeroes.is_some_and(|zeroes| !zeroes.is_empty()));
                    out.extend_from_slice(&head);
                }
            }
            Part::ErrorAt(at, errno) => {
                let (offset, errno) = (place(at), for_read(errno));
                if chunks.error_at(offset, errno, "there", out).is_ok() {
                    assert!(data(offset, 1).is_some());
                    result = result.and(Err(errno));
                }
            }
            Part::Error(errno) => {
                let errno = for_read(errno);
                if chunks.error(errno, "all of it", out).is_ok() {
                    result = result.and(Err(errno));
                }
            }
        }
    }
    while let Some(gap) = chunks.gap() {
        let Ok(head) = chunks.data(gap, 1) else {
            break;
        };
        out.extend_from_slice(&head);
        out.extend_from_slice(data(gap, 1).expect("a gap in the request"));
    }
    if let (Ok(()), Some(gap)) = (result, chunks.gap()) {
        let df = CommandFlags::DF;
        assert!(
            executed.request.flags.contains(df),
            "the gap was not filled"
        );
        assert_eq!(chunks.done(), Err(IllegalReply::Incomplete { gap }));
        chunks.error(Errno::EIO, "", out).expect("the first error");
        result = Err(Errno::EIO);
    }
    out.extend_from_slice(&chunks.done().expect("complete, or an error"));
    assert_eq!(chunks.done(), Err(IllegalReply::Ended));
    result
}

fn known(errno: u8) -> Errno {
    Errno::KNOWN[usize::from(errno) % Errno::KNOWN.len()]
}

/// An error that a read may have.
fn for_read(errno: u8) -> Errno {
    match known(errno) {
        Errno::ENOTSUP => Errno::EINVAL,
        errno => errno,
    }
}
