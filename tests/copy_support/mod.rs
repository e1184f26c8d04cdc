//! What the tests of the example `copy` need: the program itself, and servers of all manners to
//! set it on, made of the library's own server side.

#![allow(dead_code, reason = "each test program uses its part")]

pub(crate) mod crowd;

use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use nbd_proto::handshake::{Ask, Context, Export, ServerConfig};
use nbd_proto::io::server_handshake;
use nbd_proto::limits::Limits;
use nbd_proto::session::{BlockSizes, Session};
use nbd_proto::transmission::{ReplyEncoder, RequestDecoder, RequestEvent, StatusReply};
use nbd_proto::wire::{
    Chunk, ChunkType, CommandType, Cookie, Errno, Extent, Name, ReplyFlags, Request,
    TransmissionFlags,
};
use tempfile::TempDir;

use crate::program_support::{self, command, limited};
pub(crate) use crate::program_support::{Ended, Running};

/// How long a server of a test waits for its client, so that no thread is left behind.
const SERVER_PATIENCE: Duration = Duration::from_secs(90);

// --- the program ---

pub(crate) fn start<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Running {
    program_support::start("copy", command("copy", arguments))
}

/// Starts the program where a file must not have more than `size` bytes, a multiple of 512.
pub(crate) fn start_with_file_limit<A: AsRef<OsStr>>(
    size: u32,
    arguments: impl IntoIterator<Item = A>,
) -> Running {
    let limit = format!("ulimit -f {}", size / 512);
    program_support::start("copy", limited(&limit, "copy", arguments))
}

pub(crate) fn copy<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Ended {
    start(arguments).finish()
}

pub(crate) fn directory() -> TempDir {
    tempfile::tempdir().unwrap()
}

pub(crate) fn file(directory: &TempDir, name: &str) -> PathBuf {
    directory.path().join(name)
}

pub(crate) fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// What comes of a copy from this server.
pub(crate) fn fetch(server: &Server, options: &[&str]) -> Ended {
    let directory = directory();
    let path = text(&file(&directory, "out"));
    let mut arguments = vec![server.uri(), path];
    arguments.extend(options.iter().map(|&option| option.to_owned()));
    copy(arguments)
}

/// What comes of a copy to this server.
pub(crate) fn store(server: &Server, size: usize, options: &[&str]) -> Ended {
    let directory = directory();
    let path = file(&directory, "in");
    fs::write(&path, contents(size)).unwrap();
    let mut arguments = vec![text(&path), server.uri()];
    arguments.extend(options.iter().map(|&option| option.to_owned()));
    copy(arguments)
}

// --- data ---

/// A small generator of numbers; the same for the same seed.
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        // Shown only when the test fails.
        eprintln!("seed {seed}");
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Below `bound`.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from((self.0 >> 11) % bound as u64).unwrap()
    }
}

/// Contents with long runs of zeroes in them.
pub(crate) fn contents(length: usize) -> Vec<u8> {
    let mut rng = Rng::new(length as u64);
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        let run = 1 + rng.below(40_000);
        if rng.below(2) == 0 {
            bytes.extend(std::iter::repeat_n(0, run));
        } else {
            bytes.extend((0..run).map(|_| u8::try_from(rng.below(256)).unwrap()));
        }
    }
    bytes.truncate(length);
    bytes
}

// --- servers ---

/// What a server offers.
#[derive(Clone, Debug)]
pub(crate) struct Offer {
    pub(crate) size: u64,
    pub(crate) flags: TransmissionFlags,
    pub(crate) structured: bool,
    /// Whether `base:allocation` is offered.
    pub(crate) status: bool,
    pub(crate) block_sizes: BlockSizes,
}

impl Offer {
    /// A writable export with all that a copy can use.
    pub(crate) fn new(size: usize) -> Self {
        Self {
            size: size as u64,
            flags: TransmissionFlags::SEND_FLUSH | TransmissionFlags::SEND_WRITE_ZEROES,
            structured: true,
            status: false,
            block_sizes: BlockSizes::DEFAULT,
        }
    }

    pub(crate) fn simple(mut self) -> Self {
        self.structured = false;
        self
    }

    /// Offers to tell what is zero.
    pub(crate) fn with_status(mut self) -> Self {
        self.status = true;
        self
    }

    /// Promises what multi-conn promises.
    pub(crate) fn multi_conn(mut self) -> Self {
        self.flags |= TransmissionFlags::CAN_MULTI_CONN;
        self
    }

    pub(crate) fn flags(mut self, flags: TransmissionFlags) -> Self {
        self.flags = flags;
        self
    }

    pub(crate) fn block_sizes(mut self, minimum: u32, preferred: u32, max_payload: u32) -> Self {
        self.block_sizes = BlockSizes::new(minimum, preferred, max_payload).unwrap();
        self
    }
}

/// A server in a thread, on a port of its own.
pub(crate) struct Server {
    address: SocketAddr,
    pub(crate) disk: Disk,
    log: Receiver<Heard>,
    /// Dropped with the server: the test is over.
    _test: Sender<()>,
}

pub(crate) type Disk = Arc<Mutex<Vec<u8>>>;

/// What a server heard of its client.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Heard {
    Request(Request),
    Disconnect,
}

impl Server {
    /// Accepts one client and leaves it to `behave`.
    pub(crate) fn raw(behave: impl FnOnce(TcpStream) + Send + 'static) -> Self {
        Self::listen(Vec::new(), |stream, _, _, _| behave(stream))
    }

    /// Accepts one client, shakes hands, and leaves the rest to `behave`.
    pub(crate) fn new(
        offer: Offer,
        contents: Vec<u8>,
        behave: impl FnOnce(&mut Peer) + Send + 'static,
    ) -> Self {
        assert!(offer.size >= contents.len() as u64);
        Self::listen(contents, move |mut stream, disk, log, test| {
            if let Some(session) = shake_hands(&mut stream, &offer) {
                behave(&mut Peer::new(stream, session, disk, log, test));
            }
        })
    }

    /// A server without fault.
    pub(crate) fn good(offer: Offer, contents: Vec<u8>) -> Self {
        Self::new(offer, contents, |peer| peer.serve(|_, _, _| false))
    }

    /// A server without fault, at an address of this machine.
    pub(crate) fn good_on(address: &str, offer: Offer, contents: Vec<u8>) -> Self {
        let address = address.parse().unwrap();
        Self::listen_on(address, contents, move |mut stream, disk, log, test| {
            if let Some(session) = shake_hands(&mut stream, &offer) {
                Peer::new(stream, session, disk, log, test).serve(|_, _, _| false);
            }
        })
    }

    /// A server that does something else with the requests for which `special` returns true.
    pub(crate) fn with(
        offer: Offer,
        contents: Vec<u8>,
        mut special: impl FnMut(&mut Peer, &Request, &[u8]) -> bool + Send + 'static,
    ) -> Self {
        Self::new(offer, contents, move |peer| peer.serve(&mut special))
    }

    /// A server that has its own way of shaking hands.
    pub(crate) fn with_handshake(
        contents: Vec<u8>,
        handshake: impl FnOnce(&mut TcpStream) -> Session + Send + 'static,
    ) -> Self {
        Self::listen(contents, move |mut stream, disk, log, test| {
            let session = handshake(&mut stream);
            Peer::new(stream, session, disk, log, test).serve(|_, _, _| false);
        })
    }

    fn listen(
        contents: Vec<u8>,
        behave: impl FnOnce(TcpStream, Disk, Sender<Heard>, Receiver<()>) + Send + 'static,
    ) -> Self {
        Self::listen_on(Ipv4Addr::LOCALHOST.into(), contents, behave)
    }

    fn listen_on(
        address: IpAddr,
        contents: Vec<u8>,
        behave: impl FnOnce(TcpStream, Disk, Sender<Heard>, Receiver<()>) + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind((address, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let disk = Arc::new(Mutex::new(contents));
        let (sender, log) = mpsc::channel();
        let (_test, test) = mpsc::channel();
        let theirs = Arc::clone(&disk);
        thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(SERVER_PATIENCE)).unwrap();
            stream.set_write_timeout(Some(SERVER_PATIENCE)).unwrap();
            stream.set_nodelay(true).unwrap();
            behave(stream, theirs, sender, test);
        });
        Self {
            address,
            disk,
            log,
            _test,
        }
    }

    pub(crate) fn uri(&self) -> String {
        format!("nbd://{}/disk", self.address)
    }

    /// All that the client asked, once it is gone.
    pub(crate) fn log(&self) -> Vec<Heard> {
        let mut all = Vec::new();
        loop {
            match self.log.recv_timeout(SERVER_PATIENCE) {
                Ok(heard) => all.push(heard),
                Err(RecvTimeoutError::Disconnected) => return all,
                Err(RecvTimeoutError::Timeout) => panic!("the client did not leave"),
            }
        }
    }

    /// Waits for the client's next request.
    pub(crate) fn next_heard(&self) -> Heard {
        self.log.recv_timeout(SERVER_PATIENCE).unwrap()
    }
}

fn shake_hands(stream: &mut TcpStream, offer: &Offer) -> Option<Session> {
    let export = Export::new(Name::new("disk").unwrap(), offer.size, offer.flags)
        .with_block_sizes(offer.block_sizes);
    let config = ServerConfig::new()
        // What the servers of these tests send by hand has compact headers.
        .with_extended_headers(false)
        .with_structured_replies(offer.structured)
        .with_meta_contexts(offer.status);
    let answer = |ask: Ask<'_>| match ask {
        Ask::Export(ask) if ask.name() == &export.name => ask.accept(&export),
        Ask::Contexts(ask) if offer.status => {
            ask.accept(&[Context::new(Name::new("base:allocation").unwrap())]);
        }
        _ => {}
    };
    server_handshake(stream, config, answer).ok().flatten()
}

/// A client, as its server sees it.
pub(crate) struct Peer {
    stream: TcpStream,
    decoder: RequestDecoder,
    input: Vec<u8>,
    log: Sender<Heard>,
    test: Receiver<()>,
    pub(crate) session: Session,
    pub(crate) encoder: ReplyEncoder,
    pub(crate) disk: Disk,
}

impl Peer {
    fn new(
        stream: TcpStream,
        session: Session,
        disk: Disk,
        log: Sender<Heard>,
        test: Receiver<()>,
    ) -> Self {
        Self {
            stream,
            decoder: RequestDecoder::new(&session, &Limits::new()),
            input: Vec::new(),
            log,
            test,
            encoder: ReplyEncoder::new(&session),
            session,
            disk,
        }
    }

    /// Answers everything until the client leaves.
    fn serve(&mut self, mut special: impl FnMut(&mut Self, &Request, &[u8]) -> bool) {
        while let Some((request, payload)) = self.next_request() {
            if !special(self, &request, &payload) {
                self.answer(&request, &payload);
            }
        }
    }

    /// The next request and its payload, unless the client left.
    pub(crate) fn next_request(&mut self) -> Option<(Request, Vec<u8>)> {
        let mut asked = None;
        let mut payload = Vec::new();
        loop {
            let mut input = self.input.as_slice();
            let before = input.len();
            let event = self.decoder.next(&mut input).unwrap();
            let taken = before - input.len();
            let mut done = false;
            match event {
                Some(RequestEvent::Request(request)) => {
                    let _ = self.log.send(Heard::Request(request));
                    asked = Some(request);
                    done = self.decoder.payload_left() == 0;
                }
                Some(RequestEvent::Payload(bytes)) => {
                    payload.extend_from_slice(bytes);
                    done = self.decoder.payload_left() == 0;
                }
                Some(RequestEvent::Disconnect) => {
                    let _ = self.log.send(Heard::Disconnect);
                    return None;
                }
                None => {}
            }
            self.input.drain(..taken);
            if done {
                return asked.map(|request| (request, payload));
            }
            // Nothing more can be had from what there is.
            if taken == 0 || self.input.is_empty() {
                let mut chunk = vec![0; 1 << 16];
                match self.stream.read(&mut chunk) {
                    Ok(count) if count > 0 => self.input.extend_from_slice(&chunk[..count]),
                    _ => return None,
                }
            }
        }
    }

    /// Does what is asked, and says so.
    pub(crate) fn answer(&mut self, request: &Request, payload: &[u8]) {
        self.answer_after(request, payload, || ());
    }

    /// Does what is asked, then something else, and then says so.
    pub(crate) fn answer_after(
        &mut self,
        request: &Request,
        payload: &[u8],
        meanwhile: impl FnOnce(),
    ) {
        if let Err(refusal) = self.session.check(request) {
            let head = self.encoder.fail(request, refusal.errno());
            return self.send(&head);
        }
        let range = range(request);
        let mut disk = self.disk.lock().unwrap();
        let reply = match request.kind {
            CommandType::READ => {
                let head = self.encoder.read(request).unwrap();
                [head.as_ref(), &disk[range]].concat()
            }
            CommandType::WRITE => {
                disk[range].copy_from_slice(payload);
                self.encoder.ok(request).to_vec()
            }
            CommandType::WRITE_ZEROES => {
                disk[range].fill(0);
                self.encoder.ok(request).to_vec()
            }
            CommandType::BLOCK_STATUS => {
                let extents = extents(&disk[range]);
                let mut out = Vec::new();
                let mut reply = StatusReply::new(&self.session, request).unwrap();
                let id = reply.owed().unwrap();
                reply.context(id, extents, &mut out).unwrap();
                out
            }
            _ => self.encoder.ok(request).to_vec(),
        };
        drop(disk);
        meanwhile();
        self.send(&reply);
    }

    /// Answers a block status in this way.
    pub(crate) fn status(&mut self, request: &Request, extents: &[(u64, u64)]) {
        let mut out = Vec::new();
        let mut reply = StatusReply::new(&self.session, request).unwrap();
        let id = reply.owed().unwrap();
        let extents = extents
            .iter()
            .map(|&(length, flags)| Extent { length, flags });
        reply.context(id, extents, &mut out).unwrap();
        self.send(&out);
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        // A client that has left is what some tests are about.
        let _ = self.stream.write_all(bytes);
    }

    pub(crate) fn fail(&mut self, request: &Request, errno: Errno, message: &str) {
        let mut out = Vec::new();
        self.encoder.error(request, errno, message, &mut out);
        self.send(&out);
    }

    /// The data that a read asks for.
    pub(crate) fn data(&self, request: &Request) -> Vec<u8> {
        self.disk.lock().unwrap()[range(request)].to_vec()
    }

    /// A chunk that the library would not let us send.
    pub(crate) fn chunk(&mut self, kind: ChunkType, last: bool, cookie: Cookie, body: &[u8]) {
        let mut flags = ReplyFlags::empty();
        flags.set(ReplyFlags::DONE, last);
        let head = Chunk {
            flags,
            kind,
            cookie,
            length: body.len() as u64,
        };
        let head = head.to_structured().unwrap();
        self.send(&[&head, body].concat());
    }

    pub(crate) fn data_chunk(&mut self, request: &Request, offset: u64, last: bool, data: &[u8]) {
        let body = [&offset.to_be_bytes(), data].concat();
        self.chunk(ChunkType::OFFSET_DATA, last, request.cookie, &body);
    }

    /// Says nothing any more, until the client has had enough.
    pub(crate) fn be_silent(&mut self) {
        let _ = self.stream.read_to_end(&mut Vec::new());
    }

    /// Takes nothing and says nothing, until the test is over.
    pub(crate) fn be_deaf(&self) {
        let _ = self.test.recv();
    }

    /// Hangs up.
    pub(crate) fn close(&self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }

    /// The connection, for what goes past the library. Nothing must have been read ahead.
    pub(crate) fn stream(&mut self) -> &mut TcpStream {
        assert!(self.input.is_empty());
        &mut self.stream
    }
}

/// What is zero, in pages, and what is not.
fn extents(bytes: &[u8]) -> Vec<Extent> {
    let mut extents: Vec<Extent> = Vec::new();
    for page in bytes.chunks(4096) {
        let flags = if page.iter().all(|&byte| byte == 0) {
            3
        } else {
            0
        };
        let length = page.len() as u64;
        match extents.last_mut() {
            Some(last) if last.flags == flags => last.length += length,
            _ => extents.push(Extent { length, flags }),
        }
    }
    extents
}

fn range(request: &Request) -> std::ops::Range<usize> {
    let start = usize::try_from(request.offset).unwrap();
    start..start + usize::try_from(request.length).unwrap()
}
