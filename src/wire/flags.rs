//! The flag fields of the protocol.
//!
//! All keep the bits that have no name: whether an unknown bit is to be ignored or refused is for
//! the reader of the field to decide, and each type says what the protocol wants.

use bitflags::bitflags;

bitflags! {
    /// What the server says of itself in its greeting (16 bits, proto.md "Handshake flags").
    ///
    /// A client ignores bits that it does not know.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct HandshakeFlags: u16 {
        /// `NBD_FLAG_FIXED_NEWSTYLE`: options other than `EXPORT_NAME` may be sent.
        const FIXED_NEWSTYLE = 1 << 0;
        /// `NBD_FLAG_NO_ZEROES`: the 124 zeroes after `EXPORT_NAME` can be left out.
        const NO_ZEROES = 1 << 1;

        const _ = !0;
    }
}

bitflags! {
    /// What the client answers to the greeting (32 bits, proto.md "Client flags").
    ///
    /// A server hangs up on bits that it does not know or did not offer.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct ClientFlags: u32 {
        /// `NBD_FLAG_C_FIXED_NEWSTYLE`: the client speaks fixed newstyle.
        const FIXED_NEWSTYLE = 1 << 0;
        /// `NBD_FLAG_C_NO_ZEROES`: the client wants no zeroes after `EXPORT_NAME`.
        const NO_ZEROES = 1 << 1;

        const _ = !0;
    }
}

bitflags! {
    /// What an export can do (16 bits, proto.md "Transmission flags").
    ///
    /// A client ignores bits that it does not know.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct TransmissionFlags: u16 {
        /// `NBD_FLAG_HAS_FLAGS`: always set.
        const HAS_FLAGS = 1 << 0;
        /// `NBD_FLAG_READ_ONLY`: every modification will be refused.
        const READ_ONLY = 1 << 1;
        /// `NBD_FLAG_SEND_FLUSH`: `NBD_CMD_FLUSH` works.
        const SEND_FLUSH = 1 << 2;
        /// `NBD_FLAG_SEND_FUA`: `NBD_CMD_FLAG_FUA` works.
        const SEND_FUA = 1 << 3;
        /// `NBD_FLAG_ROTATIONAL`: access is like that of a spinning disk.
        const ROTATIONAL = 1 << 4;
        /// `NBD_FLAG_SEND_TRIM`: `NBD_CMD_TRIM` works.
        const SEND_TRIM = 1 << 5;
        /// `NBD_FLAG_SEND_WRITE_ZEROES`: `NBD_CMD_WRITE_ZEROES` works.
        const SEND_WRITE_ZEROES = 1 << 6;
        /// `NBD_FLAG_SEND_DF`: `NBD_CMD_FLAG_DF` works; needs structured replies.
        const SEND_DF = 1 << 7;
        /// `NBD_FLAG_CAN_MULTI_CONN`: a flush on one connection covers all.
        const CAN_MULTI_CONN = 1 << 8;
        /// `NBD_FLAG_SEND_RESIZE`: reserved for an experimental extension.
        const SEND_RESIZE = 1 << 9;
        /// `NBD_FLAG_SEND_CACHE`: `NBD_CMD_CACHE` is understood.
        const SEND_CACHE = 1 << 10;
        /// `NBD_FLAG_SEND_FAST_ZERO`: `NBD_CMD_FLAG_FAST_ZERO` works.
        const SEND_FAST_ZERO = 1 << 11;
        /// `NBD_FLAG_BLOCK_STATUS_PAYLOAD`: block status may be asked for some contexts only;
        /// needs extended headers.
        const BLOCK_STATUS_PAYLOAD = 1 << 12;

        const _ = !0;
    }
}

bitflags! {
    /// How a request is to be carried out (16 bits, proto.md "Command flags").
    ///
    /// A server refuses a bit that it does not know, or that the command does not take, with
    /// [`Errno::EINVAL`](crate::wire::Errno::EINVAL).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct CommandFlags: u16 {
        /// `NBD_CMD_FLAG_FUA`: answer only when what was written is on permanent storage.
        const FUA = 1 << 0;
        /// `NBD_CMD_FLAG_NO_HOLE`: write zeroes without making a hole.
        const NO_HOLE = 1 << 1;
        /// `NBD_CMD_FLAG_DF`: answer a read with at most one content chunk.
        const DF = 1 << 2;
        /// `NBD_CMD_FLAG_REQ_ONE`: answer block status with one extent per context.
        const REQ_ONE = 1 << 3;
        /// `NBD_CMD_FLAG_FAST_ZERO`: fail rather than write zeroes slowly.
        const FAST_ZERO = 1 << 4;
        /// `NBD_CMD_FLAG_PAYLOAD_LEN`: the header's length is that of a payload; extended
        /// headers only.
        const PAYLOAD_LEN = 1 << 5;

        const _ = !0;
    }
}

bitflags! {
    /// What a chunk is to its reply (16 bits, proto.md "Structured and extended header reply
    /// flags").
    ///
    /// A client ignores bits that it does not know.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct ReplyFlags: u16 {
        /// `NBD_REPLY_FLAG_DONE`: no more chunks follow for this request.
        const DONE = 1 << 0;

        const _ = !0;
    }
}

bitflags! {
    /// The state of an extent in the `base:allocation` context (proto.md "`base:allocation`
    /// metadata context").
    ///
    /// A client ignores bits that it does not know. 0 can be said of any extent.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct AllocationFlags: u32 {
        /// `NBD_STATE_HOLE`: nothing is allocated there.
        const HOLE = 1 << 0;
        /// `NBD_STATE_ZERO`: the extent reads as zeroes.
        const ZERO = 1 << 1;

        const _ = !0;
    }
}
