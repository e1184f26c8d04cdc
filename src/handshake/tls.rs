//! What both sides have to do with TLS.

/// Leave to start TLS; also the proof that the machine agreed to it.
///
/// A machine hands it out once `STARTTLS` is acknowledged and nothing was received that TLS would
/// not protect. Then, in this order: send the output, shake hands as TLS wants it (the server of
/// the session is the TLS server), give this back to the machine that it came from, go on with
/// what TLS decrypts. Until it was given back, the machine takes no byte: one that comes is
/// [`Fatal::PlaintextBeforeTls`](crate::error::Fatal::PlaintextBeforeTls).
///
/// If TLS fails, close the connection: it is too late to go on without (proto.md "FORCEDTLS
/// mode").
#[derive(Debug, PartialEq, Eq)]
#[must_use = "the session does not go on until TLS was started"]
pub struct TlsStart(());

impl TlsStart {
    pub(super) const fn new() -> Self {
        Self(())
    }
}
