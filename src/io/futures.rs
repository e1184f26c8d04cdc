//! The drivers for [`futures::io`].
//!
//! The same as those of [`io`](super), for streams that are waited for. A future that is dropped
//! half-way has read bytes, and may have sent some, that nobody knows of any more: it cannot be
//! resumed, and the only use of the stream is to close it. To give up after some time, drop the
//! future and the stream together.
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

use alloc::vec::Vec;

use ::futures::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{CHUNK, Error, Served, closed, room, serve_step};
use crate::error::Fatal;
use crate::handshake::{
    Ask, ClientConfig, NegotiateError, Negotiated, Negotiator, Progress, ServerConfig,
    ServerHandshake, Wanted,
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
/// If the stream fails, or the client breaks the protocol; close the connection then.
pub async fn server_handshake<S: AsyncRead + AsyncWrite + Unpin>(
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
                send(stream, &mut out).await?;
                input = receive(stream, &mut chunk, handshake.wants()).await?;
                if input.is_empty() {
                    return handshake.on_eof().map(|()| None).map_err(Error::Closed);
                }
            }
            Ok(Served::Done(session)) => {
                send(stream, &mut out).await?;
                return Ok(Some(session));
            }
            Ok(Served::Aborted) => {
                let _ = send::<_, Fatal>(stream, &mut out).await;
                return Ok(None);
            }
            Err(fatal) => return Err(Error::Protocol(fatal)),
        }
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
pub async fn client_handshake<S: AsyncRead + AsyncWrite + Unpin>(
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
                send(stream, &mut out).await?;
                input = receive(stream, &mut chunk, negotiator.wants()).await?;
                if input.is_empty() {
                    return Err(Error::Closed(closed(&negotiator)));
                }
            }
            Ok(Progress::Done(negotiated)) => {
                send(stream, &mut out).await?;
                return Ok(negotiated);
            }
            Err(error) => {
                let _ = send::<_, NegotiateError>(stream, &mut out).await;
                return Err(Error::Protocol(error));
            }
        }
    }
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
