//! The oldstyle greeting, for one export (proto.md "Oldstyle negotiation").

use alloc::vec::Vec;

use super::{Export, ServerHandshake};
use crate::error::Refusal;
use crate::session::{ReplyStyle, Session, consistent};
use crate::wire::{HandshakeFlags, OldstyleGreeting, TransmissionFlags};

impl ServerHandshake {
    /// Another way to begin, which is also the end: appends the oldstyle greeting for the one
    /// export that there is, after which transmission begins at once.
    ///
    /// For clients from before 2011, and to test how newer ones take it. Nothing is negotiated:
    /// replies are simple, no name is asked for (the session has that of the export), and size
    /// constraints have to be agreed on by other means. The port should not be the one of NBD
    /// (proto.md "Newstyle negotiation").
    ///
    /// # Errors
    ///
    /// [`Refusal::TlsRequired`] for an export that [requires](Export::with_tls_required) TLS,
    /// which there cannot be. Nothing was written.
    pub fn oldstyle(export: &Export, out: &mut Vec<u8>) -> Result<Session, Refusal> {
        if export.tls_required {
            return Err(Refusal::TlsRequired);
        }
        let flags = export.flags | TransmissionFlags::HAS_FLAGS;
        let flags = consistent(flags, ReplyStyle::Simple);
        let greeting = OldstyleGreeting {
            size: export.size,
            // proto.md "Handshake flags": "MUST NOT set any of these flags during oldstyle
            // negotiation".
            handshake_flags: HandshakeFlags::empty(),
            flags,
        };
        out.extend_from_slice(&greeting.to_bytes());
        let session = Session::new(export.name.clone(), export.size, flags);
        Ok(session.with_block_sizes(export.block_sizes))
    }
}
