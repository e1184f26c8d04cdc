//! The drivers for [`futures::io`].
//!
//! The same as those of [`io`](super), for streams that are waited for.
//!
//! A future of a handshake that is dropped half-way has read bytes, and may have sent some, that
//! nobody knows of any more: it cannot be resumed, and the only use of the stream is to close it. To
//! give up after some time, drop the future and the stream together. The drivers with TLS own the stream, so that to drop their
//! future is all of it; whether the TLS handshake within can be given up is for `upgrade` to say,
//! and makes no difference to that.
//!
//! In transmission, [`Requests`] and [`Replies`] keep what they read: of their futures those that
//! are cancel safe say so, and can be dropped and made anew. [`write_message`] cannot be resumed.
//!
//! ```
//! use futures::io::Cursor;
//! use nbd_proto::handshake::{ClientConfig, Wanted};
//! use nbd_proto::io::futures::client_handshake;
//! use nbd_proto::wire::Name;
//!
//! // Something that is not an NBD server.
//! let mut stream = Cursor::new(b"SSH-2.0-OpenSSH_9.9\r\n".to_vec());
//! let wanted = Wanted::new(Name::default());
//! let handshake = client_handshake(&mut stream, wanted, ClientConfig::new());
//! assert!(futures::executor::block_on(handshake).is_err());
//! ```

mod transmission;

pub use transmission::{Replies, Requests, receive_more, write_message};

use alloc::vec::Vec;
use std::io;

use ::futures::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{
    CHUNK, Client, Error, MaybeTls, ServeStep, Served, Shaken, Talked, no_tls_here, room,
    serve_step,
};
use crate::error::Fatal;
use crate::handshake::{
    Ask, ClientConfig, Inspect, Inspector, NegotiateError, Negotiated, Negotiator, Report,
    ServerConfig, ServerHandshake, TlsPolicy, TlsWanted, Wanted,
};
use crate::session::Session;

/// Shakes hands as a server, until transmission begins or the client goes away.
///
/// As [`io::server_handshake`](super::server_handshake). `answer` must not block; where exports
/// have to be waited for, drive the machine itself.
///
/// Not cancel safe: see the module's documentation.
///
/// # Errors
///
/// If the stream fails, or the client breaks the protocol; close the connection then. With a
/// [TLS policy](ServerConfig::with_tls), at once:
/// [`InvalidInput`](io::ErrorKind::InvalidInput), see [`server_handshake_with_tls`].
pub async fn server_handshake<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    config: ServerConfig,
    answer: impl FnMut(Ask<'_>),
) -> Result<Option<Session>, Error<Fatal>> {
    if config.tls() != TlsPolicy::None {
        return Err(no_tls_here().into());
    }
    let (_, session) = server_handshake_with_tls(stream, config, no_upgrade, answer).await?;
    Ok(session)
}

/// Shakes hands as a server that has TLS.
///
/// As [`io::server_handshake_with_tls`](super::server_handshake_with_tls).
///
/// Not cancel safe: see the module's documentation.
///
/// # Errors
///
/// If the stream or `upgrade` fails, or the client breaks the protocol; the connection is closed
/// then, by dropping the stream.
pub async fn server_handshake_with_tls<S, T>(
    mut stream: S,
    config: ServerConfig,
    upgrade: impl AsyncFnOnce(S) -> io::Result<T>,
    mut answer: impl FnMut(Ask<'_>),
) -> Shaken<S, T, Option<Session>, Fatal>
where
    S: AsyncRead + AsyncWrite + Unpin,
    T: AsyncRead + AsyncWrite + Unpin,
{
    let mut out = Vec::new();
    let mut handshake = ServerHandshake::new(config, &mut out);
    let leave = match serve(&mut stream, &mut handshake, &mut out, &mut answer).await? {
        Served::Over(session) => return Ok((MaybeTls::Plain(stream), session)),
        Served::StartTls(leave) => leave,
    };
    let mut stream = upgrade(stream).await?;
    handshake.tls_started(leave);
    match serve(&mut stream, &mut handshake, &mut out, &mut answer).await? {
        Served::Over(session) => Ok((MaybeTls::Tls(stream), session)),
        Served::StartTls(_) => Err(no_tls_here().into()),
    }
}

/// Shakes hands as a client, until transmission begins.
///
/// As [`io::client_handshake`](super::client_handshake).
///
/// Not cancel safe: see the module's documentation.
///
/// # Errors
///
/// If the stream fails, or the server refuses or breaks the protocol; close the connection then.
/// If [TLS](Wanted::with_tls) is wanted, at once:
/// [`InvalidInput`](io::ErrorKind::InvalidInput), see [`client_handshake_with_tls`].
pub async fn client_handshake<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    wanted: Wanted,
    config: ClientConfig,
) -> Result<Negotiated, Error<NegotiateError>> {
    if wanted.tls() != TlsWanted::No {
        return Err(no_tls_here().into());
    }
    let (_, negotiated) = client_handshake_with_tls(stream, wanted, config, no_upgrade).await?;
    Ok(negotiated)
}

/// Shakes hands as a client that can have TLS.
///
/// As [`io::client_handshake_with_tls`](super::client_handshake_with_tls).
///
/// Not cancel safe: see the module's documentation.
///
/// # Errors
///
/// If the stream or `upgrade` fails, or the server refuses or breaks the protocol; the connection
/// is closed then, by dropping the stream. What `upgrade` made is closed before, so that TLS is
/// shut down, unless it has failed itself.
pub async fn client_handshake_with_tls<S, T>(
    stream: S,
    wanted: Wanted,
    config: ClientConfig,
    upgrade: impl AsyncFnOnce(S) -> io::Result<T>,
) -> Shaken<S, T, Negotiated, NegotiateError>
where
    S: AsyncRead + AsyncWrite + Unpin,
    T: AsyncRead + AsyncWrite + Unpin,
{
    talk_with_tls(stream, &mut Negotiator::new(wanted, config), upgrade).await
}

/// Asks a server what it has, and leaves.
///
/// As [`io::inspect`](super::inspect).
///
/// Not cancel safe: see the module's documentation.
pub async fn inspect<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    inspect: Inspect,
    config: ClientConfig,
) -> (Report, Result<(), Error<NegotiateError>>) {
    inspect_with_tls(stream, inspect, config, no_upgrade).await
}

/// Asks a server what it has, over TLS if that is [wanted](Inspect::with_tls), and leaves.
///
/// As [`io::inspect_with_tls`](super::inspect_with_tls); but TLS is shut down at the end, by
/// closing what `upgrade` made.
///
/// Not cancel safe: see the module's documentation.
pub async fn inspect_with_tls<S, T>(
    stream: S,
    inspect: Inspect,
    config: ClientConfig,
    upgrade: impl AsyncFnOnce(S) -> io::Result<T>,
) -> (Report, Result<(), Error<NegotiateError>>)
where
    S: AsyncRead + AsyncWrite + Unpin,
    T: AsyncRead + AsyncWrite + Unpin,
{
    let mut inspector = Inspector::new(inspect, config);
    let end = talk_with_tls(stream, &mut inspector, upgrade).await;
    let end = match end {
        Ok((MaybeTls::Tls(stream), _)) => {
            shut_down_tls(stream).await;
            Ok(())
        }
        end => end.map(|_| ()),
    };
    (inspector.report().clone(), end)
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
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
                send(stream, out).await?;
                input = receive(stream, &mut chunk, handshake.wants()).await?;
                if input.is_empty() {
                    let left = handshake.on_eof().map(|()| Served::Over(None));
                    return left.map_err(Error::Closed);
                }
            }
            Ok(ServeStep::StartTls(leave)) => {
                send(stream, out).await?;
                return Ok(Served::StartTls(leave));
            }
            Ok(ServeStep::Done(session)) => {
                send(stream, out).await?;
                return Ok(Served::Over(Some(session)));
            }
            Ok(ServeStep::Aborted) => {
                let _ = send::<_, Fatal>(stream, out).await;
                return Ok(Served::Over(None));
            }
            Err(fatal) => return Err(Error::Protocol(fatal)),
        }
    }
}

async fn talk<S: AsyncRead + AsyncWrite + Unpin, C: Client>(
    stream: &mut S,
    client: &mut C,
    out: &mut Vec<u8>,
) -> Result<Talked<C::Done>, Error<NegotiateError>> {
    let mut chunk = [0; CHUNK];
    let mut input: &[u8] = &[];
    loop {
        // Not in the head of the match: what it borrows would live across the waiting.
        let advanced = client.advance(&mut input, out);
        match advanced {
            Ok(None) => {
                send(stream, out).await?;
                input = receive(stream, &mut chunk, client.wants()).await?;
                if input.is_empty() {
                    return Err(Error::Closed(client.closed()));
                }
            }
            Ok(Some(talked)) => {
                send(stream, out).await?;
                return Ok(talked);
            }
            Err(error) => {
                let _ = send::<_, NegotiateError>(stream, out).await;
                return Err(Error::Protocol(error));
            }
        }
    }
}

async fn talk_with_tls<S, T, C: Client>(
    mut stream: S,
    client: &mut C,
    upgrade: impl AsyncFnOnce(S) -> io::Result<T>,
) -> Shaken<S, T, C::Done, NegotiateError>
where
    S: AsyncRead + AsyncWrite + Unpin,
    T: AsyncRead + AsyncWrite + Unpin,
{
    let mut out = Vec::new();
    let leave = match talk(&mut stream, client, &mut out).await? {
        Talked::Over(done) => return Ok((MaybeTls::Plain(stream), done)),
        Talked::StartTls(leave) => leave,
    };
    let mut stream = upgrade(stream).await?;
    client.tls_started(leave);
    match talk(&mut stream, client, &mut out).await {
        Ok(Talked::Over(done)) => Ok((MaybeTls::Tls(stream), done)),
        Ok(Talked::StartTls(_)) => Err(no_tls_here().into()),
        Err(error) => {
            if let Error::Protocol(_) = error {
                shut_down_tls(stream).await;
            }
            Err(error)
        }
    }
}

/// proto.md "Termination of the session during option haggling": an `ABORT` "MUST be followed by
/// the client shutting down TLS (if it is running)". It is over whether that succeeds or not.
async fn shut_down_tls<T: AsyncWrite + Unpin>(mut stream: T) {
    let _ = stream.close().await;
}

/// The upgrade of the drivers without TLS.
async fn no_upgrade<S>(_: S) -> io::Result<S> {
    Err(no_tls_here())
}

async fn send<S: AsyncWrite + Unpin, P>(stream: &mut S, out: &mut Vec<u8>) -> Result<(), Error<P>> {
    stream.write_all(out).await?;
    stream.flush().await?;
    out.clear();
    Ok(())
}

async fn receive<'c, S: AsyncRead + Unpin, P>(
    stream: &mut S,
    chunk: &'c mut [u8; CHUNK],
    wants: usize,
) -> Result<&'c [u8], Error<P>> {
    let room = room(chunk, wants);
    let len = stream.read(room).await?;
    Ok(room.get(..len).unwrap_or_default())
}
