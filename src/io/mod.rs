//! Thin drivers over sockets.
//!
//! Each moves bytes between a stream and a machine of [`handshake`](crate::handshake), and
//! decides nothing. They read no byte that belongs to transmission, do not buffer across calls,
//! and know nothing of time: a deadline is for the stream to keep
//! ([`TcpStream::set_read_timeout`](std::net::TcpStream::set_read_timeout)), or for whoever
//! cancels.
//!
//! This module is for [`std::io`]; `io::futures` is the same for `futures::io`. Both are short
//! enough to be replaced, where a program has its own way of waiting.
//!
//! ```
//! use std::os::unix::net::UnixStream;
//! use std::thread;
//!
//! use nbd_proto::handshake::{Ask, ClientConfig, Export, ServerConfig, Wanted};
//! use nbd_proto::io;
//! use nbd_proto::wire::{Name, TransmissionFlags};
//!
//! let (mut ours, mut theirs) = UnixStream::pair()?;
//! let server = thread::spawn(move || {
//!     let disk = Export::new(Name::default(), 4096, TransmissionFlags::READ_ONLY);
//!     io::server_handshake(&mut theirs, ServerConfig::new(), |ask| match ask {
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

use alloc::vec::Vec;
use std::io::{self, Read, Write};

use crate::error::Fatal;
use crate::handshake::{
    Ask, ClientConfig, NegotiateError, Negotiated, Negotiator, Progress, ServerConfig,
    ServerHandshake, Step, Wanted,
};
use crate::session::Session;

/// Bytes taken from a stream at once during a handshake. Most messages are far smaller.
const CHUNK: usize = 4096;

/// What stopped a driver.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error<P> {
    /// The stream failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The peer closed the connection where that is not in order.
    #[error("the connection was closed: {0}")]
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
/// If the stream fails, or the client breaks the protocol; close the connection then.
pub fn server_handshake<S: Read + Write>(
    stream: &mut S,
    config: ServerConfig,
    mut answer: impl FnMut(Ask<'_>),
) -> Result<Option<Session>, Error<Fatal>> {
    let mut out = Vec::new();
    let mut handshake = ServerHandshake::new(config, &mut out);
    let mut chunk = [0; CHUNK];
    let mut input: &[u8] = &[];
    loop {
        match serve_step(&mut handshake, &mut input, &mut out, &mut answer) {
            Ok(Served::Go) => {}
            Ok(Served::NeedInput) => {
                send(stream, &mut out)?;
                input = receive(stream, &mut chunk, handshake.wants())?;
                if input.is_empty() {
                    return handshake.on_eof().map(|()| None).map_err(Error::Closed);
                }
            }
            Ok(Served::Done(session)) => {
                send(stream, &mut out)?;
                return Ok(Some(session));
            }
            Ok(Served::Aborted) => {
                // proto.md under `NBD_OPT_ABORT`: the client may be gone without waiting for it.
                let _ = send::<_, Fatal>(stream, &mut out);
                return Ok(None);
            }
            // Nothing is left to be sent: every answer went out before more was received.
            Err(fatal) => return Err(Error::Protocol(fatal)),
        }
    }
}

/// Shakes hands as a client, until transmission begins.
///
/// Reads no further than the handshake goes. Blocks for as long as the stream does.
///
/// # Errors
///
/// If the stream fails, or the server refuses or breaks the protocol; close the connection then.
pub fn client_handshake<S: Read + Write>(
    stream: &mut S,
    wanted: Wanted,
    config: ClientConfig,
) -> Result<Negotiated, Error<NegotiateError>> {
    let mut out = Vec::new();
    let mut negotiator = Negotiator::new(wanted, config);
    let mut chunk = [0; CHUNK];
    let mut input: &[u8] = &[];
    loop {
        let progress = negotiator.advance(&mut input, &mut out);
        match progress {
            Ok(Progress::NeedInput) => {
                send(stream, &mut out)?;
                input = receive(stream, &mut chunk, negotiator.wants())?;
                if input.is_empty() {
                    return Err(Error::Closed(closed(&negotiator)));
                }
            }
            Ok(Progress::Done(negotiated)) => {
                send(stream, &mut out)?;
                return Ok(negotiated);
            }
            Err(error) => {
                // A farewell, perhaps. If it fails, what the server said is the better story.
                let _ = send::<_, NegotiateError>(stream, &mut out);
                return Err(Error::Protocol(error));
            }
        }
    }
}

/// One step of a server, for either kind of stream.
enum Served {
    Go,
    NeedInput,
    Done(Session),
    Aborted,
}

fn serve_step(
    handshake: &mut ServerHandshake,
    input: &mut &[u8],
    out: &mut Vec<u8>,
    answer: &mut impl FnMut(Ask<'_>),
) -> Result<Served, Fatal> {
    match handshake.step(input, out)? {
        Step::NeedInput => return Ok(Served::NeedInput),
        Step::List(ask) => answer(Ask::List(ask)),
        Step::Export(ask) => answer(Ask::Export(ask)),
        Step::Aborted => return Ok(Served::Aborted),
        Step::Done(session) => return Ok(Served::Done(session)),
    }
    Ok(Served::Go)
}

/// Why it matters that the server closed the connection.
fn closed(negotiator: &Negotiator) -> NegotiateError {
    negotiator
        .on_eof()
        .err()
        .unwrap_or_else(|| Fatal::Closed.into())
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
