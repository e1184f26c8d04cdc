//! Thin drivers over sockets.
//!
//! Each moves bytes between a stream and a machine of [`handshake`](crate::handshake) or
//! [`transmission`](crate::transmission), and decides nothing. They know nothing of time: a
//! deadline is for the stream to keep
//! ([`TcpStream::set_read_timeout`](std::net::TcpStream::set_read_timeout)), or for whoever
//! cancels.
//!
//! The drivers of the handshake read no byte that belongs to transmission, and do not buffer across
//! calls. For transmission there are the pieces of a loop, for each program has a loop of its own:
//! [`Requests`] for a server and [`Replies`] for a client, which read ahead, and
//! [`write_message`] for both.
//!
//! TLS is the caller's: the drivers `.._with_tls` take the stream, and a callback that wraps it when
//! both sides have agreed to start TLS; the others refuse configurations that could lead there.
//! Give them the socket itself, not something that reads ahead: what was read before TLS is no part
//! of it.
//!
//! This module is for [`std::io`]; `io::futures` is the same for `futures::io`. Both are short
//! enough to be replaced, where a program has its own way of waiting. [`guide`] has a whole server and
//! a whole client.
//!
//! ```
//! use std::os::unix::net::UnixStream;
//! use std::thread;
//!
//! use nbd_proto::handshake::{Ask, ClientConfig, Export, ServerConfig, Wanted};
//! use nbd_proto::io;
//! use nbd_proto::session::Features;
//! use nbd_proto::wire::Name;
//!
//! let (mut ours, mut theirs) = UnixStream::pair()?;
//! let server = thread::spawn(move || {
//!     let disk = Export::new(Name::default(), 4096, Features::read_only().flags());
//!     io::server_handshake(&mut theirs, ServerConfig::new(), |ask| match ask {
//!         Ask::List(ask) => ask.accept([(&disk.name, &disk.description)]),
//!         Ask::Export(ask) if ask.name() == &disk.name => ask.accept(&disk),
//!         _ => {} // Refused, because it was not answered.
//!     })
//! });
//! let wanted = Wanted::new(Name::default());
//! let negotiated = io::client_handshake(&mut ours, wanted, ClientConfig::new())?;
//! assert_eq!(negotiated.session.size(), 4096);
//! assert_eq!(server.join().unwrap()?, Some(negotiated.session));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#[cfg(feature = "futures")]
#[cfg_attr(docsrs, doc(cfg(feature = "futures")))]
pub mod futures;
pub mod guide;
mod input;
mod maybe_tls;
mod received;
mod transmission;

pub use maybe_tls::MaybeTls;
pub use received::Received;
pub use transmission::{Replies, Requests, write_message};

use alloc::vec::Vec;
use std::io::{self, Read, Write};

use crate::error::Fatal;
use crate::handshake::{
    Ask, ClientConfig, Inspect, InspectProgress, Inspector, NegotiateError, Negotiated, Negotiator,
    Progress, Report, ServerConfig, ServerHandshake, Step, TlsPolicy, TlsStart, TlsWanted, Wanted,
};
use crate::session::Session;

/// Bytes taken from a stream at once during a handshake. Most messages are far smaller.
const CHUNK: usize = 4096;

/// What stopped a driver.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error<P> {
    /// The stream failed, or TLS did.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The peer closed the connection where that is not in order.
    #[error(transparent)]
    Closed(P),
    /// The peer broke the protocol, or refused.
    #[error(transparent)]
    Protocol(P),
}

impl<P: Into<Self>> From<Error<P>> for io::Error {
    fn from(error: Error<P>) -> Self {
        match error {
            Error::Io(error) => error,
            Error::Closed(why) | Error::Protocol(why) => why.into(),
        }
    }
}

/// How a driver with TLS ends: with the stream, wrapped or not, and what was negotiated on it.
pub type Shaken<S, T, D, P> = Result<(MaybeTls<S, T>, D), Error<P>>;

/// Shakes hands as a server, until transmission begins or the client goes away.
///
/// `answer` is called for each [`Ask`]; what it does not answer is refused. `None` means that the
/// client left in good order: by an abort, or between two options.
///
/// Reads from the stream only, and no further than the handshake goes. Blocks for as long as the
/// stream does.
///
/// # Errors
///
/// If the stream fails, or the client breaks the protocol; close the connection then. With a
/// [TLS policy](ServerConfig::with_tls), at once:
/// [`InvalidInput`](io::ErrorKind::InvalidInput), see [`server_handshake_with_tls`].
pub fn server_handshake<S: Read + Write>(
    stream: &mut S,
    config: ServerConfig,
    answer: impl FnMut(Ask<'_>),
) -> Result<Option<Session>, Error<Fatal>> {
    if config.tls() != TlsPolicy::None {
        return Err(no_tls_here().into());
    }
    let (_, session) = server_handshake_with_tls(stream, config, no_upgrade, answer)?;
    Ok(session)
}

/// Shakes hands as a server that has TLS.
///
/// As [`server_handshake`], but takes the stream and gives it back, wrapped by `upgrade` if TLS was
/// started: that is where the caller makes the TLS handshake, as the server.
///
/// # Errors
///
/// If the stream or `upgrade` fails, or the client breaks the protocol; the connection is closed
/// then, by dropping the stream.
pub fn server_handshake_with_tls<S: Read + Write, T: Read + Write>(
    mut stream: S,
    config: ServerConfig,
    upgrade: impl FnOnce(S) -> io::Result<T>,
    mut answer: impl FnMut(Ask<'_>),
) -> Shaken<S, T, Option<Session>, Fatal> {
    let mut out = Vec::new();
    let mut handshake = ServerHandshake::new(config, &mut out);
    let leave = match serve(&mut stream, &mut handshake, &mut out, &mut answer)? {
        Served::Over(session) => return Ok((MaybeTls::Plain(stream), session)),
        Served::StartTls(leave) => leave,
    };
    let mut stream = upgrade(stream)?;
    handshake.tls_started(leave);
    match serve(&mut stream, &mut handshake, &mut out, &mut answer)? {
        Served::Over(session) => Ok((MaybeTls::Tls(stream), session)),
        Served::StartTls(_) => Err(no_tls_here().into()),
    }
}

/// Shakes hands as a client, until transmission begins.
///
/// Reads no further than the handshake goes. Blocks for as long as the stream does.
///
/// # Errors
///
/// If the stream fails, or the server refuses or breaks the protocol; close the connection then.
/// If [TLS](Wanted::with_tls) is wanted, at once:
/// [`InvalidInput`](io::ErrorKind::InvalidInput), see [`client_handshake_with_tls`].
pub fn client_handshake<S: Read + Write>(
    stream: &mut S,
    wanted: Wanted,
    config: ClientConfig,
) -> Result<Negotiated, Error<NegotiateError>> {
    if wanted.tls() != TlsWanted::No {
        return Err(no_tls_here().into());
    }
    let (_, negotiated) = client_handshake_with_tls(stream, wanted, config, no_upgrade)?;
    Ok(negotiated)
}

/// Shakes hands as a client that can have TLS.
///
/// As [`client_handshake`], but takes the stream and gives it back, wrapped by `upgrade` if TLS was
/// started: that is where the caller makes the TLS handshake, as the client, and checks who the
/// server is.
///
/// # Errors
///
/// If the stream or `upgrade` fails, or the server refuses or breaks the protocol; the connection
/// is closed then, by dropping the stream. If the server refuses, TLS should be shut down before
/// (proto.md "Termination of the session during option haggling"), which is for the [`Drop`] of
/// what `upgrade` made to do: [`Write`] knows no such thing.
pub fn client_handshake_with_tls<S: Read + Write, T: Read + Write>(
    stream: S,
    wanted: Wanted,
    config: ClientConfig,
    upgrade: impl FnOnce(S) -> io::Result<T>,
) -> Shaken<S, T, Negotiated, NegotiateError> {
    talk_with_tls(stream, &mut Negotiator::new(wanted, config), upgrade)
}

/// Asks a server what it has, and leaves.
///
/// What was learned is there even if the conversation did not come to its end. Reads and blocks as
/// [`client_handshake`] does.
pub fn inspect<S: Read + Write>(
    stream: &mut S,
    inspect: Inspect,
    config: ClientConfig,
) -> (Report, Result<(), Error<NegotiateError>>) {
    inspect_with_tls(stream, inspect, config, no_upgrade)
}

/// Asks a server what it has, over TLS if that is [wanted](Inspect::with_tls), and leaves.
///
/// As [`inspect`]; the stream is wrapped by `upgrade` if TLS is started, and dropped at the end. The
/// protocol wants TLS to be shut down then, which is for the [`Drop`] of what `upgrade` made to do.
pub fn inspect_with_tls<S: Read + Write, T: Read + Write>(
    stream: S,
    inspect: Inspect,
    config: ClientConfig,
    upgrade: impl FnOnce(S) -> io::Result<T>,
) -> (Report, Result<(), Error<NegotiateError>>) {
    let mut inspector = Inspector::new(inspect, config);
    let end = talk_with_tls(stream, &mut inspector, upgrade).map(|_| ());
    (inspector.report().clone(), end)
}

/// What a server's side came to.
enum Served {
    /// With a session, or because the client left.
    Over(Option<Session>),
    StartTls(TlsStart),
}

/// Serves until the stream has to be wrapped, or the handshake is over.
fn serve<S: Read + Write>(
    stream: &mut S,
    handshake: &mut ServerHandshake,
    out: &mut Vec<u8>,
    answer: &mut impl FnMut(Ask<'_>),
) -> Result<Served, Error<Fatal>> {
    let mut chunk = [0; CHUNK];
    let mut input: &[u8] = &[];
    loop {
        match serve_step(handshake, &mut input, out, answer) {
            Ok(ServeStep::Go) => {}
            Ok(ServeStep::NeedInput) => {
                send(stream, out)?;
                input = receive(stream, &mut chunk, handshake.wants())?;
                if input.is_empty() {
                    let left = handshake.on_eof().map(|()| Served::Over(None));
                    return left.map_err(Error::Closed);
                }
            }
            Ok(ServeStep::StartTls(leave)) => {
                send(stream, out)?;
                return Ok(Served::StartTls(leave));
            }
            Ok(ServeStep::Done(session)) => {
                send(stream, out)?;
                return Ok(Served::Over(Some(session)));
            }
            Ok(ServeStep::Aborted) => {
                // proto.md under `NBD_OPT_ABORT`: the client may be gone without waiting for it.
                let _ = send::<_, Fatal>(stream, out);
                return Ok(Served::Over(None));
            }
            // Nothing is left to be sent: every answer went out before more was received.
            Err(fatal) => return Err(Error::Protocol(fatal)),
        }
    }
}

/// One step of a server, for either kind of stream.
enum ServeStep {
    Go,
    NeedInput,
    StartTls(TlsStart),
    Done(Session),
    Aborted,
}

fn serve_step(
    handshake: &mut ServerHandshake,
    input: &mut &[u8],
    out: &mut Vec<u8>,
    answer: &mut impl FnMut(Ask<'_>),
) -> Result<ServeStep, Fatal> {
    match handshake.step(input, out)? {
        Step::NeedInput => return Ok(ServeStep::NeedInput),
        Step::List(ask) => answer(Ask::List(ask)),
        Step::Export(ask) => answer(Ask::Export(ask)),
        Step::Contexts(ask) => answer(Ask::Contexts(ask)),
        Step::StartTls(leave) => return Ok(ServeStep::StartTls(leave)),
        Step::Aborted => return Ok(ServeStep::Aborted),
        Step::Done(session) => return Ok(ServeStep::Done(session)),
    }
    Ok(ServeStep::Go)
}

/// Either machine of a client.
trait Client {
    type Done;

    /// `None`: more input is needed.
    fn advance(
        &mut self,
        input: &mut &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Option<Talked<Self::Done>>, NegotiateError>;
    fn wants(&self) -> usize;
    fn on_eof(&self) -> Result<(), NegotiateError>;
    fn tls_started(&mut self, leave: TlsStart);

    /// Why it matters that the server closed the connection.
    fn closed(&self) -> NegotiateError {
        self.on_eof().err().unwrap_or_else(|| Fatal::Closed.into())
    }
}

/// What a client's side came to.
enum Talked<D> {
    Over(D),
    StartTls(TlsStart),
}

impl Client for Negotiator {
    type Done = Negotiated;

    fn advance(
        &mut self,
        input: &mut &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Option<Talked<Negotiated>>, NegotiateError> {
        Ok(match self.advance(input, out)? {
            Progress::NeedInput => None,
            Progress::StartTls(leave) => Some(Talked::StartTls(leave)),
            Progress::Done(negotiated) => Some(Talked::Over(negotiated)),
        })
    }

    fn wants(&self) -> usize {
        self.wants()
    }

    fn on_eof(&self) -> Result<(), NegotiateError> {
        self.on_eof()
    }

    fn tls_started(&mut self, leave: TlsStart) {
        self.tls_started(leave);
    }
}

impl Client for Inspector {
    type Done = Report;

    fn advance(
        &mut self,
        input: &mut &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Option<Talked<Report>>, NegotiateError> {
        Ok(match self.advance(input, out)? {
            InspectProgress::NeedInput => None,
            InspectProgress::StartTls(leave) => Some(Talked::StartTls(leave)),
            InspectProgress::Done(report) => Some(Talked::Over(report)),
        })
    }

    fn wants(&self) -> usize {
        self.wants()
    }

    fn on_eof(&self) -> Result<(), NegotiateError> {
        self.on_eof()
    }

    fn tls_started(&mut self, leave: TlsStart) {
        self.tls_started(leave);
    }
}

/// Talks until the stream has to be wrapped, or the handshake is over.
fn talk<S: Read + Write, C: Client>(
    stream: &mut S,
    client: &mut C,
    out: &mut Vec<u8>,
) -> Result<Talked<C::Done>, Error<NegotiateError>> {
    let mut chunk = [0; CHUNK];
    let mut input: &[u8] = &[];
    loop {
        match client.advance(&mut input, out) {
            Ok(None) => {
                send(stream, out)?;
                input = receive(stream, &mut chunk, client.wants())?;
                if input.is_empty() {
                    return Err(Error::Closed(client.closed()));
                }
            }
            Ok(Some(talked)) => {
                send(stream, out)?;
                return Ok(talked);
            }
            Err(error) => {
                // A farewell, perhaps. If it fails, what the server said is the better story.
                let _ = send::<_, NegotiateError>(stream, out);
                return Err(Error::Protocol(error));
            }
        }
    }
}

fn talk_with_tls<S: Read + Write, T: Read + Write, C: Client>(
    mut stream: S,
    client: &mut C,
    upgrade: impl FnOnce(S) -> io::Result<T>,
) -> Shaken<S, T, C::Done, NegotiateError> {
    let mut out = Vec::new();
    let leave = match talk(&mut stream, client, &mut out)? {
        Talked::Over(done) => return Ok((MaybeTls::Plain(stream), done)),
        Talked::StartTls(leave) => leave,
    };
    let mut stream = upgrade(stream)?;
    client.tls_started(leave);
    match talk(&mut stream, client, &mut out)? {
        Talked::Over(done) => Ok((MaybeTls::Tls(stream), done)),
        Talked::StartTls(_) => Err(no_tls_here().into()),
    }
}

/// TLS is to be started where nobody can.
fn no_tls_here() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        "TLS is offered or wanted, but this driver cannot start it",
    )
}

/// The upgrade of the drivers without TLS.
fn no_upgrade<S>(_: S) -> io::Result<S> {
    Err(no_tls_here())
}

fn send<S: Write, P>(stream: &mut S, out: &mut Vec<u8>) -> Result<(), Error<P>> {
    stream.write_all(out)?;
    stream.flush()?;
    out.clear();
    Ok(())
}

/// Receives at most `wants` bytes; none means that the peer closed the connection.
fn receive<'c, S: Read, P>(
    stream: &mut S,
    chunk: &'c mut [u8; CHUNK],
    wants: usize,
) -> Result<&'c [u8], Error<P>> {
    let room = room(chunk, wants);
    loop {
        match stream.read(room) {
            Ok(len) => return Ok(room.get(..len).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::Io(error)),
        }
    }
}

/// The part of a buffer that may be filled.
fn room(chunk: &mut [u8; CHUNK], wants: usize) -> &mut [u8] {
    let len = wants.min(CHUNK);
    chunk.split_at_mut(len).0
}
