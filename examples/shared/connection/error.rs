//! What can go wrong with a connection.

use std::io;
use std::time::Duration;

use nbd_proto::error::Fatal as HandshakeFatal;
use nbd_proto::handshake::NegotiateError;
use nbd_proto::io::Error as HandshakeError;
use nbd_proto::transmission::client::Fatal;
use nbd_proto::wire::{OptionCode, ReplyType};

use super::super::count::count;
use super::super::tls;

/// Why there is no connection, or none any more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("stopped by a signal")]
    Stopped,
    #[error("cannot connect: {0}; is the server running there?")]
    Connect(io::Error),
    #[error("cannot connect: no answer for {} s", .0.as_secs())]
    ConnectTimeout(Duration),
    #[error("negotiation failed: {0}")]
    Handshake(Box<HandshakeError<NegotiateError>>),
    #[error("the server did not finish the negotiation within {} s", .0.as_secs())]
    HandshakeTimeout(Duration),
    #[error("the connection failed: {0}")]
    Io(io::Error),
    #[error("the server closed the connection")]
    Closed,
    #[error("{0}")]
    Protocol(Fatal),
    #[error("the server acknowledged a write at offset {offset} before it had the data")]
    TooEarly { offset: u64 },
    #[error(
        "the server was silent for {} s with {} unanswered; \
         if it is only slow, raise --timeout", .timeout.as_secs(), count(*.in_flight, "request")
    )]
    Silent { timeout: Duration, in_flight: usize },
    #[error("the request cannot be sent: {0}")]
    Request(String),
}

impl Error {
    /// What the user can do about it, if that is known.
    pub(crate) fn advice(&self) -> Option<&'static str> {
        let error = match self {
            Self::Handshake(error) => error,
            // With TLS 1.3, a server says only here that it does not want us.
            Self::Io(error) => return tls::advice(error),
            _ => return None,
        };
        let refused = match &**error {
            HandshakeError::Io(error) => return tls::advice(error),
            HandshakeError::Closed(NegotiateError::Refused(refused))
            | HandshakeError::Protocol(NegotiateError::Refused(refused)) => refused,
            HandshakeError::Protocol(NegotiateError::Fatal(HandshakeFatal::Oldstyle)) => {
                return Some(
                    "it has one export, without a name and without TLS: name none, and write \
                     nbd:// or nbd+unix://",
                );
            }
            _ => return None,
        };
        match (refused.option, refused.code) {
            (_, ReplyType::ERR_TLS_REQD) => Some("write nbds:// or nbds+unix:// to use TLS"),
            (OptionCode::STARTTLS, _) => Some("write nbd:// or nbd+unix:// to do without TLS"),
            (_, ReplyType::ERR_UNKNOWN) => Some("info --list shows which exports there are"),
            _ => None,
        }
    }

    /// Whether time ran out.
    pub(crate) fn is_timeout(&self) -> bool {
        match self {
            Self::Handshake(error) => match &**error {
                HandshakeError::Io(error) => error.kind() == io::ErrorKind::TimedOut,
                _ => false,
            },
            Self::ConnectTimeout(_) | Self::HandshakeTimeout(_) | Self::Silent { .. } => true,
            _ => false,
        }
    }
}
