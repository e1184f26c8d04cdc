//! Ways to a server: connections with a deadline, with TLS where the URI wants it.

use std::io;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nbd_proto::handshake::{
    ClientConfig, Inspect, NegotiateError, Negotiated, Report, TlsWanted, Wanted,
};
use nbd_proto::io::{
    Error as HandshakeError, MaybeTls, client_handshake_with_tls, inspect_with_tls,
};
use nbd_proto::limits::Limits;

use super::shared::connection::Error;
use super::shared::signals::Signals;
use super::shared::stream::{Patience, Patient, Stream};
use super::shared::tls::{TlsClient, TlsStream};
use super::shared::uri::NbdUri;

/// What one server may say in answer to one option, in bytes: names are held in memory.
const MAX_REPLY_BYTES: u32 = 4 << 20;

/// A server and an export of it.
#[derive(Clone, Debug)]
pub(crate) struct Place<'a> {
    pub(crate) uri: NbdUri,
    pub(crate) tls: Option<TlsClient>,
    /// How long a handshake may take, or an answer.
    pub(crate) timeout: Duration,
    pub(crate) signals: &'a Signals,
}

type Socket<'a> = Patient<'a, Stream>;

/// A stream in transmission.
pub(crate) type Wire<'a> = MaybeTls<Socket<'a>, TlsStream<'a>>;

impl<'a> Place<'a> {
    /// The same server, another export.
    pub(crate) fn with_uri(&self, uri: NbdUri) -> Self {
        Self {
            uri,
            ..self.clone()
        }
    }

    /// Gets into transmission.
    ///
    /// # Errors
    ///
    /// In words, with the URI.
    pub(crate) fn enter(&self, wanted: Wanted) -> Result<(Wire<'a>, Negotiated)> {
        let wanted = wanted.with_tls(self.tls_wanted());
        let entered = self.connect().and_then(|stream| {
            client_handshake_with_tls(stream, wanted, config(), |stream| self.start_tls(stream))
                .map_err(|error| self.explain(error))
        });
        self.tell(entered)
    }

    /// Asks the server about itself.
    ///
    /// # Errors
    ///
    /// If there is no connection. What was learned before a later error is there with it.
    pub(crate) fn inspect(&self, inspect: Inspect) -> Result<(Report, Result<()>)> {
        let inspect = inspect.with_tls(self.tls_wanted());
        let stream = self.tell(self.connect())?;
        let upgrade = |stream| self.start_tls(stream);
        let (report, end) = inspect_with_tls(stream, inspect, config(), upgrade);
        Ok((report, self.tell(end.map_err(|error| self.explain(error)))))
    }

    /// What is to be waited for no longer than the timeout from now on.
    pub(crate) fn patience(&self) -> Patience<'a> {
        Patience {
            deadline: Instant::now() + self.timeout,
            signals: Some(self.signals),
        }
    }

    const fn tls_wanted(&self) -> TlsWanted {
        match self.tls {
            Some(_) => TlsWanted::Required,
            None => TlsWanted::No,
        }
    }

    fn connect(&self) -> Result<Socket<'a>, Error> {
        let patience = self.patience();
        match Stream::connect(&self.uri.transport, patience) {
            Ok(stream) => Ok(Patient { stream, patience }),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                Err(Error::ConnectTimeout(self.timeout))
            }
            Err(error) => Err(Error::Connect(error)),
        }
    }

    fn start_tls(&self, stream: Socket<'a>) -> io::Result<TlsStream<'a>> {
        match &self.tls {
            Some(tls) => tls.start(stream),
            // It was not asked for.
            None => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    fn explain(&self, error: HandshakeError<NegotiateError>) -> Error {
        let error = Error::Handshake(Box::new(error));
        if error.is_timeout() {
            return Error::HandshakeTimeout(self.timeout);
        }
        error
    }

    fn tell<T>(&self, result: Result<T, Error>) -> Result<T> {
        result
            .map_err(|error| match error.advice() {
                Some(advice) => anyhow!("{error}; {advice}"),
                None => anyhow!("{error}"),
            })
            .with_context(|| self.uri.to_string())
    }
}

/// Has the stream wait no longer than this.
pub(crate) const fn set_patience<'a>(wire: &mut Wire<'a>, patience: Patience<'a>) {
    match wire {
        MaybeTls::Plain(socket) => socket.patience = patience,
        MaybeTls::Tls(stream) => stream.set_patience(patience),
    }
}

/// A tool that shows what is there can look at an oldstyle server, too.
const fn config() -> ClientConfig {
    ClientConfig::new()
        .with_oldstyle(true)
        .with_limits(Limits::new().with_max_reply_bytes(MAX_REPLY_BYTES))
}
