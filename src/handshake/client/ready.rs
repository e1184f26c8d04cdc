//! What a client may send.

use alloc::vec::Vec;

use super::ClientHandshake;
use crate::session::ReplyStyle;
use crate::wire::{ClientOption, InfoRequest, MetaContextRequest, Name};

/// Leave to send the next option: nothing is outstanding.
///
/// What the protocol does not allow to be sent is not sent. The machine answers in the server's
/// stead, so that the caller has one way to hear of all refusals:
///
/// - `ERR_UNSUP` to everything but `EXPORT_NAME`, if the server is not *fixed* newstyle, and
///   [`ClientStep::Aborted`](super::ClientStep::Aborted) to an abort;
/// - `ERR_INVALID` to `STARTTLS` if TLS runs already, to the options about meta contexts if neither
///   structured replies nor extended headers were negotiated, and to `EXPORT_NAME` if extended
///   headers were.
#[derive(Debug)]
#[must_use = "nothing happens until an option is sent"]
pub struct Ready<'s> {
    machine: &'s mut ClientHandshake,
    out: &'s mut Vec<u8>,
}

impl<'s> Ready<'s> {
    pub(super) const fn new(machine: &'s mut ClientHandshake, out: &'s mut Vec<u8>) -> Self {
        Self { machine, out }
    }

    /// Whether the server knows options other than `EXPORT_NAME`.
    #[must_use]
    pub const fn is_fixed_newstyle(&self) -> bool {
        self.machine.fixed
    }

    /// The reply style that was negotiated so far.
    #[must_use]
    pub const fn reply_style(&self) -> ReplyStyle {
        self.machine.reply_style
    }

    /// Whether TLS runs.
    #[must_use]
    pub const fn is_tls(&self) -> bool {
        self.machine.tls
    }

    /// Asks for TLS: [`ClientStep::StartTls`](super::ClientStep::StartTls), or an error. What was
    /// negotiated before is forgotten, so this should come first.
    pub fn start_tls(self) {
        self.machine.send(&ClientOption::StartTls, self.out);
    }

    /// Asks for the list of exports: [`OptionReply::Server`](crate::wire::OptionReply::Server) for
    /// each, then `ACK`.
    pub fn list(self) {
        self.machine.send(&ClientOption::List, self.out);
    }

    /// Asks about an export: [`OptionReply::Info`](crate::wire::OptionReply::Info) for each piece
    /// of information, then `ACK`.
    pub fn info(self, request: InfoRequest) {
        self.machine.send(&ClientOption::Info(request), self.out);
    }

    /// Asks about an export and enters transmission:
    /// [`OptionReply::Info`](crate::wire::OptionReply::Info) for each piece of information, then
    /// [`ClientStep::Done`](super::ClientStep::Done).
    ///
    /// Who asks for the block sizes promises to keep to them (proto.md "Size constraints").
    pub fn go(self, request: InfoRequest) {
        self.machine.send(&ClientOption::Go(request), self.out);
    }

    /// Enters transmission. The server cannot say no, other than by closing the connection.
    pub fn export_name(self, name: Name) {
        self.machine.send(&ClientOption::ExportName(name), self.out);
    }

    /// Asks for structured replies.
    pub fn structured_replies(self) {
        self.machine.send(&ClientOption::StructuredReply, self.out);
    }

    /// Asks for extended headers, which take precedence over structured replies.
    pub fn extended_headers(self) {
        self.machine.send(&ClientOption::ExtendedHeaders, self.out);
    }

    /// Asks for the meta contexts of an export, all or those that the queries ask for:
    /// [`OptionReply::MetaContext`](crate::wire::OptionReply::MetaContext) for each, then `ACK`.
    /// Their ids mean nothing.
    pub fn list_contexts(self, request: MetaContextRequest) {
        self.machine
            .send(&ClientOption::ListMetaContext(request), self.out);
    }

    /// Selects those meta contexts of an export that the queries ask for, in place of those
    /// selected before: [`OptionReply::MetaContext`](crate::wire::OptionReply::MetaContext) for
    /// each, then `ACK`. They are in the session if it is with the same export.
    pub fn set_contexts(self, request: MetaContextRequest) {
        self.machine
            .send(&ClientOption::SetMetaContext(request), self.out);
    }

    /// Ends the session. The answer need not be waited for: the connection may be closed as soon
    /// as the output was sent.
    pub fn abort(self) {
        self.machine.send(&ClientOption::Abort, self.out);
    }
}
