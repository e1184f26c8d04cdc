//! What the tests of the example `info` need: the program itself, and servers of all manners to
//! set it on, made of the library's own server side.

#![allow(dead_code, reason = "each test program uses its part")]

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use nbd_proto::handshake::{Ask, Context, Export, ServerConfig};
use nbd_proto::io::{MaybeTls, server_handshake, server_handshake_with_tls};
use nbd_proto::limits::Limits;
use nbd_proto::session::{BlockSizes, Session};
use nbd_proto::transmission::{ReplyEncoder, RequestDecoder, RequestEvent, StatusReply};
use nbd_proto::wire::{
    Chunk, ChunkType, Errno, Extent, Name, ReplyFlags, Request, TransmissionFlags,
};

use crate::program_support::{self, command, limited};
pub(crate) use crate::program_support::{Ended, Running};

/// How long a server of a test waits for its client, so that no thread is left behind.
const SERVER_PATIENCE: Duration = Duration::from_secs(90);

// --- the program ---

pub(crate) fn start<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Running {
    program_support::start("info", command("info", arguments))
}

/// Starts the program where it cannot have more than so many KiB of memory.
pub(crate) fn start_with_memory<A: AsRef<OsStr>>(
    kib: u32,
    arguments: impl IntoIterator<Item = A>,
) -> Running {
    let limit = format!("ulimit -v {kib}");
    program_support::start("info", limited(&limit, "info", arguments))
}

pub(crate) fn info<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Ended {
    start(arguments).finish()
}

/// Asserts that a line begins and ends with these words, whatever space is between them.
#[track_caller]
pub(crate) fn assert_line(text: &str, title: &str, value: &str) {
    let found = text.lines().any(|line| {
        let line = line.trim();
        line.strip_prefix(title)
            .is_some_and(|rest| rest.trim() == value)
    });
    assert!(found, "no {title:?} {value:?} in\n{text}");
}

// --- servers ---

pub(crate) fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// What a server offers.
#[derive(Clone, Debug)]
pub(crate) struct Offer {
    pub(crate) config: ServerConfig,
    pub(crate) exports: Vec<Export>,
    pub(crate) contexts: Vec<Context>,
}

impl Offer {
    /// One export, `disk`, with structured replies and `base:allocation`.
    pub(crate) fn new(size: u64) -> Self {
        let flags = TransmissionFlags::SEND_FLUSH;
        Self {
            config: ServerConfig::new()
                .with_extended_headers(false)
                .with_meta_contexts(true),
            exports: vec![Export::new(name("disk"), size, flags)],
            contexts: vec![Context::new(name("base:allocation"))],
        }
    }

    pub(crate) fn extended(mut self) -> Self {
        self.config = self.config.with_extended_headers(true);
        self
    }

    pub(crate) fn simple(mut self) -> Self {
        self.config = self.config.with_structured_replies(false);
        self
    }

    pub(crate) fn export(mut self, edit: impl FnOnce(Export) -> Export) -> Self {
        let last = self.exports.pop().unwrap();
        self.exports.push(edit(last));
        self
    }

    pub(crate) fn another(mut self, export: Export) -> Self {
        self.exports.push(export);
        self
    }

    pub(crate) fn contexts(mut self, names: &[&str]) -> Self {
        let contexts = names.iter().map(|text| Context::new(name(text)));
        self.contexts = contexts.collect();
        self
    }

    pub(crate) fn block_sizes(self, minimum: u32, preferred: u32, max_payload: u32) -> Self {
        let sizes = BlockSizes::new(minimum, preferred, max_payload).unwrap();
        self.export(|export| export.with_block_sizes(sizes))
    }

    /// Answers what a client asks during the handshake.
    fn answer(&self, ask: Ask<'_>) {
        match ask {
            Ask::List(ask) => {
                let exports = self.exports.iter();
                ask.accept(exports.map(|export| (&export.name, &export.description)));
            }
            Ask::Export(ask) => {
                let mut exports = self.exports.iter();
                if let Some(export) = exports.find(|export| export.name == *ask.name()) {
                    ask.accept(export);
                }
            }
            Ask::Contexts(ask) => ask.accept(&self.contexts),
            _ => {}
        }
    }
}

/// A server on a port of its own, for any number of clients.
pub(crate) struct Server {
    address: SocketAddr,
    clients: Arc<AtomicUsize>,
}

impl Server {
    /// Leaves each client to `behave`, with its number from 0.
    pub(crate) fn raw(behave: impl Fn(usize, TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let behave = Arc::new(behave);
        let clients = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&clients);
        // The thread ends with the test program.
        thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                stream.set_read_timeout(Some(SERVER_PATIENCE)).unwrap();
                stream.set_write_timeout(Some(SERVER_PATIENCE)).unwrap();
                stream.set_nodelay(true).unwrap();
                let number = count.fetch_add(1, Ordering::SeqCst);
                let behave = Arc::clone(&behave);
                thread::spawn(move || behave(number, stream));
            }
        });
        Self { address, clients }
    }

    /// Shakes hands, and leaves the rest to `behave`.
    pub(crate) fn new(offer: Offer, behave: impl Fn(&mut Peer) + Send + Sync + 'static) -> Self {
        Self::raw(move |_, mut stream| {
            let session = server_handshake(&mut stream, offer.config, |ask| offer.answer(ask));
            if let Ok(Some(session)) = session {
                behave(&mut Peer::new(Box::new(stream), session));
            }
        })
    }

    /// A server without fault, whose export has these extents.
    pub(crate) fn good(offer: Offer, extents: Vec<Extent>) -> Self {
        Self::new(offer, move |peer| peer.serve(&extents))
    }

    /// A server without fault, over TLS if the client wants it.
    pub(crate) fn over_tls(
        offer: Offer,
        extents: Vec<Extent>,
        tls: Arc<rustls::ServerConfig>,
    ) -> Self {
        Self::raw(move |_, stream| {
            let upgrade = |stream| {
                let connection = rustls::ServerConnection::new(Arc::clone(&tls));
                let connection = connection.map_err(io::Error::other)?;
                Ok(rustls::StreamOwned::new(connection, stream))
            };
            let answer = |ask: Ask<'_>| offer.answer(ask);
            let shaken = server_handshake_with_tls(stream, offer.config, upgrade, answer);
            if let Ok((stream, Some(session))) = shaken {
                let stream: Box<dyn Duplex> = match stream {
                    MaybeTls::Plain(stream) => Box::new(stream),
                    MaybeTls::Tls(stream) => Box::new(stream),
                };
                Peer::new(stream, session).serve(&extents);
            }
        })
    }

    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn uri(&self) -> String {
        self.uri_of("disk")
    }

    pub(crate) fn uri_of(&self, export: &str) -> String {
        format!("nbd://{}/{export}", self.address)
    }

    /// How many clients have come.
    pub(crate) fn clients(&self) -> usize {
        self.clients.load(Ordering::SeqCst)
    }
}

pub(crate) trait Duplex: Read + Write {}

impl<S: Read + Write> Duplex for S {}

/// A client, as its server sees it.
pub(crate) struct Peer {
    stream: Box<dyn Duplex>,
    decoder: RequestDecoder,
    input: Vec<u8>,
    pub(crate) session: Session,
    pub(crate) encoder: ReplyEncoder,
}

impl Peer {
    fn new(stream: Box<dyn Duplex>, session: Session) -> Self {
        Self {
            stream,
            decoder: RequestDecoder::new(&session, &Limits::new()),
            input: Vec::new(),
            encoder: ReplyEncoder::new(&session),
            session,
        }
    }

    /// Answers block status until the client leaves.
    fn serve(&mut self, extents: &[Extent]) {
        while let Some(request) = self.next_request() {
            self.answer(&request, extents);
        }
    }

    /// The next request, unless the client left.
    pub(crate) fn next_request(&mut self) -> Option<Request> {
        loop {
            let mut input = self.input.as_slice();
            let before = input.len();
            let event = self.decoder.next(&mut input).unwrap();
            let taken = before - input.len();
            match event {
                Some(RequestEvent::Request(request)) => {
                    self.input.drain(..taken);
                    return Some(request);
                }
                Some(_) => return None,
                None => self.input.drain(..taken),
            };
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk) {
                Ok(count) if count > 0 => self.input.extend_from_slice(&chunk[..count]),
                _ => return None,
            }
        }
    }

    /// Says which of the extents of the whole export lie where the request asks.
    pub(crate) fn answer(&mut self, request: &Request, extents: &[Extent]) {
        let mut at = 0;
        let mut there = Vec::new();
        for extent in extents {
            let end = at + extent.length;
            if end > request.offset {
                let length = end - at.max(request.offset);
                let flags = extent.flags;
                there.push(Extent { length, flags });
            }
            at = end;
        }
        let mut out = Vec::new();
        let mut reply = StatusReply::new(&self.session, request).unwrap();
        while let Some(id) = reply.owed() {
            reply.context(id, there.iter().copied(), &mut out).unwrap();
        }
        self.send(&out);
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        // A client that has left is what some tests are about.
        let _ = self
            .stream
            .write_all(bytes)
            .and_then(|()| self.stream.flush());
    }

    pub(crate) fn fail(&mut self, request: &Request, errno: Errno, message: &str) {
        let mut out = Vec::new();
        self.encoder.error(request, errno, message, &mut out);
        self.send(&out);
    }

    /// A chunk that the library would not let us send.
    pub(crate) fn chunk(&mut self, request: &Request, kind: ChunkType, last: bool, body: &[u8]) {
        let mut flags = ReplyFlags::empty();
        flags.set(ReplyFlags::DONE, last);
        let cookie = request.cookie;
        let length = body.len() as u64;
        let head = Chunk {
            flags,
            kind,
            cookie,
            length,
        };
        let head = head.to_structured().unwrap();
        self.send(&[&head, body].concat());
    }

    /// Block status with anything in it.
    pub(crate) fn status(
        &mut self,
        request: &Request,
        context: u32,
        last: bool,
        extents: &[(u32, u32)],
    ) {
        let mut body = context.to_be_bytes().to_vec();
        for (length, flags) in extents {
            body.extend_from_slice(&length.to_be_bytes());
            body.extend_from_slice(&flags.to_be_bytes());
        }
        self.chunk(request, ChunkType::BLOCK_STATUS, last, &body);
    }

    /// Says nothing any more, until the client has had enough.
    pub(crate) fn be_silent(&mut self) {
        let _ = self.stream.read_to_end(&mut Vec::new());
    }
}
