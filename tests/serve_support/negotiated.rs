//! A client that has whatever was negotiated, over a stream of any kind.

use std::collections::HashMap;
use std::io::{self, Read, Write};

use nbd_proto::limits::Limits;
use nbd_proto::session::Session;
use nbd_proto::transmission::{ReplyDecoder, ReplyEvent, RequestEncoder};
use nbd_proto::wire::{CommandFlags, Cookie, Errno, Request};

/// Takes replies as they come, and checks all that the protocol says of them.
pub(crate) struct Negotiated<S> {
    pub(crate) stream: S,
    pub(crate) session: Session,
    encoder: RequestEncoder,
    decoder: ReplyDecoder,
    received: Vec<u8>,
    asked: HashMap<Cookie, (Request, Answer)>,
    next_cookie: u64,
}

/// What came of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) errno: Option<Errno>,
    /// What a read has found.
    pub(crate) data: Vec<u8>,
    /// Lengths and flags.
    pub(crate) extents: Vec<(u64, u64)>,
}

impl<S: Read + Write> Negotiated<S> {
    pub(crate) fn new(stream: S, session: Session) -> Self {
        Self {
            stream,
            encoder: RequestEncoder::new(&session),
            decoder: ReplyDecoder::new(&session, &Limits::new(), 1024),
            session,
            received: Vec::new(),
            asked: HashMap::new(),
            next_cookie: 1,
        }
    }

    fn note(&mut self, request: Request) {
        let data = match request.kind {
            nbd_proto::wire::CommandType::READ => vec![0xee; request.length as usize],
            _ => Vec::new(),
        };
        let answer = Answer {
            data,
            ..Answer::default()
        };
        self.asked.insert(request.cookie, (request, answer));
    }

    fn cookie(&mut self) -> Cookie {
        self.next_cookie += 1;
        Cookie(self.next_cookie)
    }

    /// Sends a request, whose cookie is not looked at, and its payload.
    pub(crate) fn send(&mut self, request: Request, payload: &[u8]) -> Cookie {
        let cookie = self.cookie();
        let request = Request { cookie, ..request };
        self.decoder.expect(&request).unwrap();
        let head = self.encoder.encode(&request).unwrap();
        self.note(request);
        self.stream
            .write_all(&[&head[..], payload].concat())
            .unwrap();
        self.stream.flush().unwrap();
        cookie
    }

    /// The next reply that is complete.
    pub(crate) fn take(&mut self) -> io::Result<(Cookie, Answer)> {
        loop {
            let mut input = &self.received[..];
            let event = self.decoder.next(&mut input).map_err(io::Error::other)?;
            let mut finished = None;
            match &event {
                Some(ReplyEvent::Data {
                    cookie,
                    offset,
                    bytes,
                    ..
                }) => {
                    let (request, answer) = self.asked.get_mut(cookie).unwrap();
                    let at = (offset - request.offset) as usize;
                    answer.data[at..at + bytes.len()].copy_from_slice(bytes);
                }
                Some(ReplyEvent::Hole {
                    cookie,
                    offset,
                    length,
                }) => {
                    let (request, answer) = self.asked.get_mut(cookie).unwrap();
                    let at = (offset - request.offset) as usize;
                    answer.data[at..at + *length as usize].fill(0);
                }
                Some(ReplyEvent::Status {
                    cookie, extents, ..
                }) => {
                    let (_, answer) = self.asked.get_mut(cookie).unwrap();
                    let told = extents.clone().map(|it| (it.length, it.flags));
                    answer.extents.extend(told);
                }
                Some(ReplyEvent::Finished { cookie, result }) => {
                    let (_, mut answer) = self.asked.remove(cookie).unwrap();
                    answer.errno = result.err();
                    finished = Some((*cookie, answer));
                }
                _ => {}
            }
            let more = event.is_some();
            let taken = self.received.len() - input.len();
            self.received.drain(..taken);
            if let Some(finished) = finished {
                return Ok(finished);
            }
            if !more {
                let mut chunk = vec![0; 256 << 10];
                let read = self.stream.read(&mut chunk)?;
                if read == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                self.received.extend_from_slice(&chunk[..read]);
            }
        }
    }

    /// Sends one request and takes its reply, the only one that is due.
    #[track_caller]
    pub(crate) fn ask(&mut self, request: Request, payload: &[u8]) -> Answer {
        let asked = self.send(request, payload);
        let (cookie, answer) = self.take().unwrap();
        assert_eq!(cookie, asked);
        answer
    }

    #[track_caller]
    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) {
        let write = Request::write(Cookie(0), offset, data.len() as u64);
        assert_eq!(self.ask(write, data).errno, None);
    }

    #[track_caller]
    pub(crate) fn read(&mut self, offset: u64, length: u64) -> Vec<u8> {
        let answer = self.ask(Request::read(Cookie(0), offset, length), &[]);
        assert_eq!(answer.errno, None);
        answer.data
    }

    /// The extents of a range: lengths and flags.
    #[track_caller]
    pub(crate) fn status(
        &mut self,
        offset: u64,
        length: u64,
        flags: CommandFlags,
    ) -> Vec<(u64, u64)> {
        let request = Request::block_status(Cookie(0), offset, length).with_flags(flags);
        let answer = self.ask(request, &[]);
        assert_eq!(answer.errno, None);
        answer.extents
    }

    /// The same, with the contexts named in a payload, which is spoilt on its way.
    pub(crate) fn status_of(
        &mut self,
        offset: u64,
        length: u64,
        contexts: &[u32],
        spoil: impl FnOnce(&mut [u8]),
    ) -> Answer {
        let cookie = self.cookie();
        let mut payload = Vec::new();
        let request = self
            .encoder
            .status_query(
                cookie,
                CommandFlags::empty(),
                offset..offset + length,
                contexts,
                &mut payload,
            )
            .unwrap();
        let query = nbd_proto::wire::StatusQuery::parse(&payload[32..]).unwrap();
        self.decoder.expect_status(&request, &query).unwrap();
        self.note(request);
        spoil(&mut payload[32..]);
        self.stream.write_all(&payload).unwrap();
        self.take().unwrap().1
    }

    /// Leaves as the protocol wants it; the stream is for looking at its end.
    pub(crate) fn disconnect(mut self) -> S {
        let head = self.encoder.encode(&Request::disconnect()).unwrap();
        self.stream.write_all(&head).unwrap();
        self.stream.flush().unwrap();
        self.stream
    }
}
