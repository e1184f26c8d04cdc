//! What a client may send.

use alloc::vec::Vec;

use super::ClientHandshake;
use crate::wire::{ClientOption, InfoRequest, Name};

/// Leave to send the next option: nothing is outstanding.
///
/// A server that is not *fixed* newstyle knows `EXPORT_NAME` only. It is not sent anything else;
/// the machine answers `ERR_UNSUP` in its stead, and [`ClientStep::Aborted`](super::ClientStep::Aborted) to an abort.
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

    /// Asks for the list of exports: [`OptionReply::Server`](crate::wire::OptionReply::Server) for each, then `ACK`.
    pub fn list(self) {
        self.machine.send(&ClientOption::List, self.out);
    }

    /// Asks about an export: [`OptionReply::Info`](crate::wire::OptionReply::Info) for each piece of information, then `ACK`.
    pub fn info(self, request: InfoRequest) {
        self.machine.send(&ClientOption::Info(request), self.out);
    }

    /// Asks about an export and enters transmission: [`OptionReply::Info`](crate::wire::OptionReply::Info) for each piece of
    /// information, then [`ClientStep::Done`](super::ClientStep::Done).
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

    /// Ends the session. The answer need not be waited for: the connection may be closed as soon
    /// as the output was sent.
    pub fn abort(self) {
        self.machine.send(&ClientOption::Abort, self.out);
    }
}
