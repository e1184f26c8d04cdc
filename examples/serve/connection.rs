//! One client: its handshake, and the thread that reads its requests.
//!
//! The thread that reads also executes what cannot wait for a device, a batch at a time: all the
//! requests that one read from the socket brought are begun, executed and answered together, with
//! two turns at the coordinator and one write to the socket. Everything else goes to the
//! connection's [`Crew`].

use std::io::{self, IoSlice, Write};
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use nbd_proto::error::Refusal;
use nbd_proto::flush::{Advertised, Conn};
use nbd_proto::handshake::{Ask, Export, ExportAsk, ServerConfig};
use nbd_proto::io::server_handshake_with_tls;
use nbd_proto::limits::Limits;
use nbd_proto::session::{BlockSizes, Session};
use nbd_proto::transmission::{ReplyEncoder, RequestDecoder, RequestEvent};
use nbd_proto::wire::{CommandType, TransmissionFlags};
use parking_lot::Mutex;

use super::backend::Handle;
use super::batch::Batch;
use super::budget::Budget;
use super::channel::Channel;
use super::crew::Crew;
use super::execute::Task;
use super::input::Input;
use super::log::warn;
use super::server::{Server, carry_out};
use super::status;
use super::stream::Stream;

/// How long a handshake may take, altogether. It is some messages back and forth, between programs.
const HANDSHAKE: Duration = Duration::from_secs(10);

pub(crate) struct Connection {
    pub(crate) id: u64,
    pub(crate) server: Arc<Server>,
    pub(crate) channel: Channel,
    pub(crate) budget: Budget,
    pub(crate) crew: Crew,
    pub(crate) conn: OnceLock<Conn>,
    advertised: OnceLock<Advertised>,
    /// Until the coordinator releases it.
    handle: Mutex<Option<Arc<dyn Handle>>>,
    session: OnceLock<Session>,
    encoder: OnceLock<ReplyEncoder>,
    /// Only one thread writes replies at a time.
    writing: Mutex<()>,
    sending: Since,
    pub(crate) receiving: Since,
    pub(crate) broken: AtomicBool,
}

impl Connection {
    pub(crate) fn new(id: u64, server: Arc<Server>, stream: Stream) -> Arc<Self> {
        Arc::new(Self {
            id,
            crew: Crew::new(server.threads, &server.pools),
            budget: Budget::new(&server.memory),
            server,
            channel: Channel::new(stream),
            sending: Since::default(),
            receiving: Since::default(),
            conn: OnceLock::new(),
            advertised: OnceLock::new(),
            handle: Mutex::new(None),
            session: OnceLock::new(),
            encoder: OnceLock::new(),
            writing: Mutex::new(()),
            broken: AtomicBool::new(false),
        })
    }

    /// The backend handle; `None` before it is opened, and after its release.
    pub(crate) fn handle(&self) -> Option<Arc<dyn Handle>> {
        self.handle.lock().clone()
    }

    /// How replies look. Only used during transmission, which begins with its being set.
    pub(crate) fn encoder(&self) -> Option<&ReplyEncoder> {
        self.encoder.get()
    }

    /// What was negotiated; only used during transmission, too.
    pub(crate) fn session(&self) -> Option<&Session> {
        self.session.get()
    }

    /// Serves the client until it goes, or has to go.
    pub(crate) fn run(self: &Arc<Self>) {
        self.server.wait_for_turn(self.id);
        match self.shake_hands() {
            Ok(Some(session)) => {
                self.server.log.line(|| self.greeted(&session));
                let session = self.session.get_or_init(|| session);
                if let Err(error) = self.serve(session) {
                    self.server
                        .log
                        .line(|| format!("connection {}: {error}", self.id));
                }
            }
            Ok(None) => {}
            Err(error) => {
                self.server
                    .log
                    .line(|| format!("connection {}: {error}", self.id));
            }
        }
        match (self.conn.get(), self.advertised.get()) {
            // It is closed when the coordinator releases it.
            (Some(&conn), Some(_)) => {
                let mut coordinator = self.server.coordinator.lock();
                coordinator.disconnect(conn);
                carry_out(&mut coordinator);
            }
            // It was never open, and nothing waits for it.
            (Some(&conn), None) => {
                self.server.coordinator.lock().disconnect(conn);
                self.close();
            }
            (None, _) => self.close(),
        }
    }

    fn greeted(&self, session: &Session) -> String {
        format!(
            "connection {}: {}export {:?}, {:?} replies, {:?}",
            self.id,
            self.channel
                .tls_protocol()
                .map_or_else(String::new, |tls| format!("{tls:?}, ")),
            session.export(),
            session.reply_style(),
            session.flags()
        )
    }

    fn shake_hands(self: &Arc<Self>) -> io::Result<Option<Session>> {
        let config = ServerConfig::new()
            .with_meta_contexts(true)
            .with_tls(self.server.tls.policy());
        let stream = self.channel.until(Instant::now() + HANDSHAKE);

        let shaken = server_handshake_with_tls(
            stream,
            config,
            |stream| stream.start_tls(&self.server.tls),
            |ask| match ask {
                Ask::List(ask) if self.server.listed => {
                    let described = |name| (name, &self.server.description);
                    ask.accept(self.server.exports.iter().map(described));
                }
                Ask::List(ask) => ask.refuse(Refusal::Policy),
                Ask::Export(ask) => self.offer(ask),
                Ask::Contexts(ask) => status::answer(ask, &self.server.exports),
                _ => {}
            },
        );
        Ok(shaken.map(|(_, session)| session)?)
    }

    fn offer(self: &Arc<Self>, ask: ExportAsk<'_>) {
        if !self.server.exports.contains(ask.name()) {
            return ask.refuse(Refusal::UnknownExport);
        }
        match self.flags() {
            Ok(flags) => {
                let storage = &self.server.can;
                let size = self.server.storage.size();
                let sizes = block_sizes(storage.min_block, storage.preferred_block);
                let export = Export::new(ask.name().clone(), size, flags)
                    .with_description(self.server.description.clone())
                    .with_block_sizes(sizes);
                ask.accept(&export);
            }
            Err(error) => {
                warn(format_args!("cannot serve connection {}: {error}", self.id));
                ask.refuse(Refusal::Policy);
            }
        }
    }

    /// What the export can do on this connection. The first time, the backend handle is opened.
    fn flags(self: &Arc<Self>) -> io::Result<TransmissionFlags> {
        let can = &self.server.can;
        let mut flags = TransmissionFlags::SEND_DF | TransmissionFlags::BLOCK_STATUS_PAYLOAD;
        flags.set(TransmissionFlags::READ_ONLY, can.read_only);
        flags.set(TransmissionFlags::SEND_TRIM, can.trim && !can.read_only);
        flags.set(
            TransmissionFlags::SEND_WRITE_ZEROES,
            can.write_zeroes && !can.read_only,
        );
        flags.set(
            TransmissionFlags::SEND_FAST_ZERO,
            can.fast_zero && !can.read_only,
        );
        flags.set(TransmissionFlags::SEND_CACHE, can.cache);
        let advertised = match self.advertised.get() {
            Some(&advertised) => advertised,
            None => self.open()?,
        };
        flags.set(TransmissionFlags::CAN_MULTI_CONN, advertised.multi_conn);
        flags.set(TransmissionFlags::SEND_FLUSH, advertised.flush);
        flags.set(TransmissionFlags::SEND_FUA, advertised.fua);
        Ok(flags)
    }

    fn open(self: &Arc<Self>) -> io::Result<Advertised> {
        if self.conn.get().is_some() {
            return Err(io::Error::other("it could not be opened before"));
        }
        let conn = self
            .server
            .coordinator
            .lock()
            .connect(Arc::clone(self), &());
        let _ = self.conn.set(conn);
        let handle = self.server.storage.open()?;
        *self.handle.lock() = Some(handle);
        let backend = self.server.backend;
        let opened = self.server.coordinator.lock().opened(conn, backend);
        let advertised = opened.map_err(io::Error::other)?;
        let _ = self.advertised.set(advertised);
        Ok(advertised)
    }

    /// Reads requests until the client has no more.
    fn serve(self: &Arc<Self>, session: &Session) -> io::Result<()> {
        let encoder = *self.encoder.get_or_init(|| ReplyEncoder::new(session));
        let Some(handle) = self.handle() else {
            return Ok(());
        };
        let mut input = Input::new();
        let mut decoder = RequestDecoder::new(session, &Limits::new());
        let mut batch = Batch::new(self, session, &encoder, &*handle);
        loop {
            let mut rest = input.unread();
            let event = decoder.next(&mut rest).map_err(io::Error::other);
            let left = rest.len();
            let request = match event {
                Ok(Some(RequestEvent::Request(request))) => request,
                // Payload is taken together with its request.
                Ok(Some(RequestEvent::Payload(_))) => {
                    input.keep(left);
                    continue;
                }
                Ok(Some(RequestEvent::Disconnect)) => {
                    return batch.finish();
                }
                Ok(None) => {
                    input.keep(left);
                    batch.finish()?;
                    if self.server.is_stopping() {
                        return Ok(());
                    }
                    if input.fill(&self.channel)? == 0 {
                        return decoder.on_eof().map_err(io::Error::other);
                    }
                    continue;
                }
                Err(error) => {
                    batch.finish()?;
                    return Err(error);
                }
            };
            input.keep(left);
            if let Err(why) = session.check(&request) {
                decoder.skip_payload();
                batch.refuse(&request, why.errno(), &why.to_string());
                continue;
            }
            if request.length == 0 && request.kind != CommandType::FLUSH {
                // Nothing is done to nothing; the answer is success.
                batch.replies.ok(&encoder, &request);
                continue;
            }
            // Before anything is held.
            let held = batch.hold(&request)?;
            let payload = input
                .payload(&request, &mut decoder, self, &mut batch)
                .inspect_err(|_| self.budget.give_back(held))?;
            let affected = match status::affected(session, &request, &payload) {
                Ok(affected) => affected,
                Err(why) => {
                    self.budget.give_back(held);
                    batch.refuse(&request, why.errno(), &why.to_string());
                    continue;
                }
            };
            batch.add(Task {
                request,
                affected,
                payload,
                held,
            })?;
        }
    }

    /// Sends bytes to the client. If it does not take them, or not within `patience` if there is
    /// no time for more, it is gone: what remains to be sent to it is dropped.
    pub(crate) fn send(&self, parts: &mut [IoSlice<'_>], patience: Option<Duration>) {
        if let Err(error) = self.try_send(parts, patience) {
            self.broken.store(true, Ordering::Relaxed);
            self.server
                .log
                .line(|| format!("connection {}: cannot reply: {error}", self.id));
            // The thread that reads need not wait for more, nor others for their turn to write.
            self.channel.shutdown(Shutdown::Both);
        }
    }

    fn try_send(&self, parts: &mut [IoSlice<'_>], patience: Option<Duration>) -> io::Result<()> {
        let deadline = patience.map(|patience| Instant::now() + patience);
        let _writing = match deadline {
            None => self.writing.lock(),
            Some(deadline) => self
                .writing
                .try_lock_until(deadline)
                .ok_or(io::ErrorKind::TimedOut)?,
        };
        if self.broken.load(Ordering::Relaxed) {
            return Ok(());
        }
        let _since = self.sending.now();
        match deadline {
            None => write_all(&mut &self.channel, parts),
            Some(deadline) => write_all(&mut self.channel.until(deadline), parts),
        }
    }

    /// Whether it holds memory that others may need, and the server has waited so long for its
    /// client.
    pub(crate) fn is_stalled(&self, time: Duration) -> bool {
        self.budget.holds_shared()
            && (self.sending.is_before(time) || self.receiving.is_before(time))
    }

    /// The last act of a connection: all is done and answered.
    pub(crate) fn close(&self) {
        // The lock is not held while the handle is flushed.
        let handle = self.handle.lock().take();
        if let Some(handle) = handle {
            self.server.close_handle(&*handle);
        }
        self.channel.close();
        self.server.gone(self.id);
    }
}

/// Writes all of the parts, with as few calls as it takes.
fn write_all(stream: &mut impl Write, mut parts: &mut [IoSlice<'_>]) -> io::Result<()> {
    IoSlice::advance_slices(&mut parts, 0);
    while !parts.is_empty() {
        match stream.write_vectored(parts) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut parts, written),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Since when something lasts.
#[derive(Debug, Default)]
pub(crate) struct Since(Mutex<Option<Instant>>);

impl Since {
    /// It lasts from now on until the result is dropped.
    pub(crate) fn now(&self) -> impl Drop {
        struct Lasts<'s>(&'s Since);
        impl Drop for Lasts<'_> {
            fn drop(&mut self) {
                *self.0.0.lock() = None;
            }
        }
        *self.0.lock() = Some(Instant::now());
        Lasts(self)
    }

    /// Whether it has lasted for so long.
    fn is_before(&self, time: Duration) -> bool {
        self.0.lock().is_some_and(|since| since.elapsed() >= time)
    }
}

/// The size constraints of the storage; it does not announce illegal ones.
fn block_sizes(minimum: u32, preferred: u32) -> BlockSizes {
    let most = BlockSizes::DEFAULT.max_payload();
    BlockSizes::new(minimum, preferred, most).unwrap_or_default()
}
