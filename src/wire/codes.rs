//! The numbers of the protocol that name something: commands, options, replies, chunks, errors.
//!
//! Each is a newtype over the integer on the wire, with a constant for every value that the
//! protocol defines. A value without a constant is still a value: it survives decoding and
//! encoding unchanged, and two codes are equal exactly when their numbers are. Match on the
//! constants and give the rest an arm of its own.

use core::fmt;

/// Defines an open set of codes: a newtype, its constants, and the conversions around it.
macro_rules! open_enum {
    (
        $(#[$meta:meta])*
        $name:ident($repr:ty) {
            $( $(#[$vmeta:meta])* $value:ident = $number:expr, )*
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(transparent)]
        pub struct $name(pub $repr);

        impl $name {
            $( $(#[$vmeta])* pub const $value: Self = Self($number); )*

            /// Every value that has a constant, in the order of the protocol text.
            pub const KNOWN: &'static [Self] = &[$(Self::$value),*];

            /// The name of the constant, without the protocol's prefix; `None` if unknown.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self {
                    $(Self::$value => Some(stringify!($value)),)*
                    _ => None,
                }
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self.name() {
                    Some(name) => f.write_str(name),
                    None => write!(f, "{}({:#x})", stringify!($name), self.0),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self.name() {
                    Some(name) => f.pad(name),
                    None => write!(f, "{:#x}", self.0),
                }
            }
        }

        impl From<$repr> for $name {
            fn from(number: $repr) -> Self {
                Self(number)
            }
        }

        impl From<$name> for $repr {
            fn from(code: $name) -> Self {
                code.0
            }
        }
    };
}

open_enum! {
    /// What a request asks for (`NBD_CMD_*`, proto.md "Request types").
    CommandType(u16) {
        /// `NBD_CMD_READ`: read a range of the export.
        READ = 0,
        /// `NBD_CMD_WRITE`: write the payload that follows the header.
        WRITE = 1,
        /// `NBD_CMD_DISC`: end the session; there is no reply.
        DISC = 2,
        /// `NBD_CMD_FLUSH`: put every write that was answered on permanent storage.
        FLUSH = 3,
        /// `NBD_CMD_TRIM`: a hint that the contents of a range are not needed any more.
        TRIM = 4,
        /// `NBD_CMD_CACHE`: a hint that a range will be accessed soon.
        CACHE = 5,
        /// `NBD_CMD_WRITE_ZEROES`: make a range read as zeroes.
        WRITE_ZEROES = 6,
        /// `NBD_CMD_BLOCK_STATUS`: ask for the state of a range in the selected meta contexts.
        BLOCK_STATUS = 7,
        /// `NBD_CMD_RESIZE`: reserved for an experimental extension.
        RESIZE = 8,
    }
}

impl CommandType {
    /// Whether the command may change what the export contains.
    #[must_use]
    pub const fn is_modification(self) -> bool {
        matches!(self, Self::WRITE | Self::TRIM | Self::WRITE_ZEROES)
    }
}

open_enum! {
    /// What a client asks for during option haggling (`NBD_OPT_*`, proto.md "Option types").
    OptionCode(u32) {
        /// `NBD_OPT_EXPORT_NAME`: choose the export and enter transmission; cannot be refused
        /// with an error.
        EXPORT_NAME = 1,
        /// `NBD_OPT_ABORT`: end the session.
        ABORT = 2,
        /// `NBD_OPT_LIST`: list the exports.
        LIST = 3,
        /// `NBD_OPT_PEEK_EXPORT`: withdrawn, not in use.
        PEEK_EXPORT = 4,
        /// `NBD_OPT_STARTTLS`: upgrade the connection to TLS.
        STARTTLS = 5,
        /// `NBD_OPT_INFO`: ask about an export.
        INFO = 6,
        /// `NBD_OPT_GO`: ask about an export and enter transmission.
        GO = 7,
        /// `NBD_OPT_STRUCTURED_REPLY`: use structured replies during transmission.
        STRUCTURED_REPLY = 8,
        /// `NBD_OPT_LIST_META_CONTEXT`: list the meta contexts of an export.
        LIST_META_CONTEXT = 9,
        /// `NBD_OPT_SET_META_CONTEXT`: select meta contexts of an export.
        SET_META_CONTEXT = 10,
        /// `NBD_OPT_EXTENDED_HEADERS`: use extended headers during transmission.
        EXTENDED_HEADERS = 11,
    }
}

open_enum! {
    /// The kind of a reply to an option (`NBD_REP_*`, proto.md "Option reply types").
    ReplyType(u32) {
        /// `NBD_REP_ACK`: accepted, nothing more follows.
        ACK = 1,
        /// `NBD_REP_SERVER`: describes an export.
        SERVER = 2,
        /// `NBD_REP_INFO`: one piece of information about an export.
        INFO = 3,
        /// `NBD_REP_META_CONTEXT`: describes a meta context.
        META_CONTEXT = 4,
        /// `NBD_REP_ERR_UNSUP`: the server does not know the option.
        ERR_UNSUP = 0x8000_0001,
        /// `NBD_REP_ERR_POLICY`: known and valid, but forbidden by the server's policy.
        ERR_POLICY = 0x8000_0002,
        /// `NBD_REP_ERR_INVALID`: known, but syntactically or semantically invalid.
        ERR_INVALID = 0x8000_0003,
        /// `NBD_REP_ERR_PLATFORM`: not supported on the server's platform or in its build.
        ERR_PLATFORM = 0x8000_0004,
        /// `NBD_REP_ERR_TLS_REQD`: TLS has to be initiated first.
        ERR_TLS_REQD = 0x8000_0005,
        /// `NBD_REP_ERR_UNKNOWN`: there is no such export.
        ERR_UNKNOWN = 0x8000_0006,
        /// `NBD_REP_ERR_SHUTDOWN`: the server is shutting down.
        ERR_SHUTDOWN = 0x8000_0007,
        /// `NBD_REP_ERR_BLOCK_SIZE_REQD`: the client has to ask for the block sizes first.
        ERR_BLOCK_SIZE_REQD = 0x8000_0008,
        /// `NBD_REP_ERR_TOO_BIG`: the request or its reply is too large to process.
        ERR_TOO_BIG = 0x8000_0009,
        /// `NBD_REP_ERR_EXT_HEADER_REQD`: extended headers have to be negotiated first.
        ERR_EXT_HEADER_REQD = 0x8000_000a,
    }
}

impl ReplyType {
    /// Whether the reply is an error and so the last one to its option, known or not (bit 31).
    #[must_use]
    pub const fn is_error(self) -> bool {
        self.0 & (1 << 31) != 0
    }
}

open_enum! {
    /// The kind of a piece of information about an export (`NBD_INFO_*`, under `NBD_REP_INFO` in
    /// proto.md "Option reply types").
    InfoType(u16) {
        /// `NBD_INFO_EXPORT`: size and transmission flags.
        EXPORT = 0,
        /// `NBD_INFO_NAME`: the canonical name.
        NAME = 1,
        /// `NBD_INFO_DESCRIPTION`: a description for people.
        DESCRIPTION = 2,
        /// `NBD_INFO_BLOCK_SIZE`: minimum and preferred block size, maximum payload.
        BLOCK_SIZE = 3,
    }
}

open_enum! {
    /// The kind of a structured or extended reply chunk (`NBD_REPLY_TYPE_*`, proto.md "Structured
    /// reply types").
    ChunkType(u16) {
        /// `NBD_REPLY_TYPE_NONE`: no payload; ends a reply.
        NONE = 0,
        /// `NBD_REPLY_TYPE_OFFSET_DATA`: an offset and the data found there.
        OFFSET_DATA = 1,
        /// `NBD_REPLY_TYPE_OFFSET_HOLE`: an offset and a length that read as zeroes.
        OFFSET_HOLE = 2,
        /// `NBD_REPLY_TYPE_BLOCK_STATUS`: extents of one meta context, 32 bits wide.
        BLOCK_STATUS = 5,
        /// `NBD_REPLY_TYPE_BLOCK_STATUS_EXT`: extents of one meta context, 64 bits wide.
        BLOCK_STATUS_EXT = 6,
        /// `NBD_REPLY_TYPE_ERROR`: the request failed.
        ERROR = 0x8001,
        /// `NBD_REPLY_TYPE_ERROR_OFFSET`: the request failed at an offset.
        ERROR_OFFSET = 0x8002,
    }
}

impl ChunkType {
    /// Whether the chunk says that the request failed, known or not (bit 15).
    #[must_use]
    pub const fn is_error(self) -> bool {
        self.0 & (1 << 15) != 0
    }
}

open_enum! {
    /// Why a request failed (proto.md "Error values").
    ///
    /// On the wire 0 means success; a value of this type that came from a decoder or stands in a
    /// `Result` is never 0.
    Errno(u32) {
        /// `NBD_EPERM`: operation not permitted, such as a write to a read-only export.
        EPERM = 1,
        /// `NBD_EIO`: input/output error.
        EIO = 5,
        /// `NBD_ENOMEM`: cannot allocate memory.
        ENOMEM = 12,
        /// `NBD_EINVAL`: invalid argument; a client also takes every unknown error for it.
        EINVAL = 22,
        /// `NBD_ENOSPC`: no space left, or a write past the end of the export.
        ENOSPC = 28,
        /// `NBD_EOVERFLOW`: the request is too large to be answered as asked.
        EOVERFLOW = 75,
        /// `NBD_ENOTSUP`: a fast zero would not be fast.
        ENOTSUP = 95,
        /// `NBD_ESHUTDOWN`: the server is shutting down.
        ESHUTDOWN = 108,
    }
}

impl Errno {
    /// The error as a client should treat it: unknown values are as good as
    /// [`EINVAL`](Self::EINVAL) (proto.md "Error values").
    #[must_use]
    pub const fn or_einval(self) -> Self {
        match self.name() {
            Some(_) => self,
            None => Self::EINVAL,
        }
    }

    /// What the error says, in a few lower-case words.
    #[must_use]
    pub const fn describe(self) -> &'static str {
        match self.or_einval() {
            Self::EPERM => "operation not permitted",
            Self::EIO => "input/output error",
            Self::ENOMEM => "cannot allocate memory",
            Self::ENOSPC => "no space left on device",
            Self::EOVERFLOW => "value too large",
            Self::ENOTSUP => "operation not supported",
            Self::ESHUTDOWN => "server is shutting down",
            _ => "invalid argument",
        }
    }
}

impl core::error::Error for Errno {}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;

    #[test]
    fn known_codes_print_their_name_and_unknown_ones_their_number() {
        assert_eq!(format!("{:?}", OptionCode::GO), "GO");
        assert_eq!(format!("{:?}", OptionCode(0x63)), "OptionCode(0x63)");
        assert_eq!(format!("{}", Errno(0x63)), "0x63");
    }

    #[test]
    fn error_bits_are_recognised_in_unknown_codes_too() {
        assert!(ReplyType(0x8000_1234).is_error());
        assert!(!ReplyType(0x1234).is_error());
        assert!(ChunkType(0x8123).is_error());
        assert!(!ChunkType(0x0123).is_error());
        assert!(ReplyType::KNOWN.iter().filter(|r| r.is_error()).count() == 10);
    }

    #[test]
    fn an_unknown_errno_counts_as_einval() {
        assert_eq!(Errno(7).or_einval(), Errno::EINVAL);
        for &errno in Errno::KNOWN {
            assert_eq!(errno.or_einval(), errno);
        }
    }

    #[test]
    fn every_errno_says_what_it_is_and_an_unknown_one_what_einval_is() {
        // proto.md "Error values", in the words of a C library.
        let words = [
            (Errno::EPERM, "operation not permitted"),
            (Errno::EIO, "input/output error"),
            (Errno::ENOMEM, "cannot allocate memory"),
            (Errno::EINVAL, "invalid argument"),
            (Errno::ENOSPC, "no space left on device"),
            (Errno::EOVERFLOW, "value too large"),
            (Errno::ENOTSUP, "operation not supported"),
            (Errno::ESHUTDOWN, "server is shutting down"),
        ];
        assert_eq!(words.map(|(errno, _)| errno)[..], *Errno::KNOWN);
        for (errno, expected) in words {
            assert_eq!(errno.describe(), expected);
        }
        assert_eq!(Errno(7).describe(), "invalid argument");
    }
}
