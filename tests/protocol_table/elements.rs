//! Every element of the protocol that has a constant in `wire`.

use nbd_proto::wire::{
    AllocationFlags, ChunkType, ClientFlags, CommandFlags, CommandType, Errno, HandshakeFlags,
    InfoType, OptionCode, ReplyFlags, ReplyType, TransmissionFlags,
};

/// An element, of whatever kind.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Element {
    Option(OptionCode),
    Reply(ReplyType),
    Info(InfoType),
    Handshake(HandshakeFlags),
    Client(ClientFlags),
    Transmission(TransmissionFlags),
    Command(CommandType),
    CommandFlag(CommandFlags),
    Chunk(ChunkType),
    ReplyFlag(ReplyFlags),
    Errno(Errno),
    Allocation(AllocationFlags),
}

/// An element, and how its row begins.
#[derive(Debug)]
pub(crate) struct Named {
    pub(crate) section: &'static str,
    pub(crate) name: String,
    pub(crate) number: String,
    pub(crate) element: Element,
}

/// All codes of a type.
macro_rules! codes {
    ($all:ident, $type:ident, $prefix:literal, $variant:ident) => {
        for &code in $type::KNOWN {
            $all.push(Named {
                section: stringify!($type),
                name: format!(concat!("`", $prefix, "{}`"), code.name().unwrap()),
                number: number(code.0.into(), size_of_val(&code.0)),
                element: Element::$variant(code),
            });
        }
    };
}

/// All flags of a type.
macro_rules! flags {
    ($all:ident, $type:ident, $prefix:literal, $variant:ident) => {
        for (name, flag) in $type::all().iter_names() {
            $all.push(Named {
                section: stringify!($type),
                name: format!(concat!("`", $prefix, "{}`"), name),
                number: format!("bit {}", flag.bits().trailing_zeros()),
                element: Element::$variant(flag),
            });
        }
    };
}

/// All of them, in the order of the table.
pub(crate) fn all() -> Vec<Named> {
    let mut all = Vec::new();
    flags!(all, HandshakeFlags, "NBD_FLAG_", Handshake);
    flags!(all, ClientFlags, "NBD_FLAG_C_", Client);
    codes!(all, OptionCode, "NBD_OPT_", Option);
    codes!(all, ReplyType, "NBD_REP_", Reply);
    codes!(all, InfoType, "NBD_INFO_", Info);
    flags!(all, TransmissionFlags, "NBD_FLAG_", Transmission);
    codes!(all, CommandType, "NBD_CMD_", Command);
    flags!(all, CommandFlags, "NBD_CMD_FLAG_", CommandFlag);
    codes!(all, ChunkType, "NBD_REPLY_TYPE_", Chunk);
    flags!(all, ReplyFlags, "NBD_REPLY_FLAG_", ReplyFlag);
    codes!(all, Errno, "NBD_", Errno);
    flags!(all, AllocationFlags, "NBD_STATE_", Allocation);
    all
}

/// Errors have the highest bit set, and are counted from there, as in the protocol text. Error
/// numbers are far from it.
fn number(code: u64, bytes: usize) -> String {
    let high = 8 * bytes - 1;
    match code.checked_sub(1 << high) {
        Some(rest) => format!("2^{high} + {rest}"),
        None => code.to_string(),
    }
}

/// What the protocol does not define, of each kind whose unknown values are told apart from the
/// known ones. (An error is an error whatever its number, and the state of an extent is passed on
/// as it is.)
pub(crate) fn undefined() -> Vec<Element> {
    vec![
        Element::Option(OptionCode(0x63)),
        Element::Reply(ReplyType(0x63)),
        Element::Info(InfoType(0x63)),
        Element::Handshake(HandshakeFlags::from_bits_retain(1 << 7)),
        Element::Client(ClientFlags::from_bits_retain(1 << 7)),
        Element::Transmission(TransmissionFlags::from_bits_retain(1 << 15)),
        Element::Command(CommandType(0x63)),
        Element::CommandFlag(CommandFlags::from_bits_retain(1 << 7)),
        Element::Chunk(ChunkType(0x63)),
        Element::ReplyFlag(ReplyFlags::from_bits_retain(1 << 7)),
        Element::Errno(Errno(0x63)),
    ]
}
