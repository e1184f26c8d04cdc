//! Strategies for the handshake phase.
//!
//! Valid: values of the types of [`wire`](crate::wire), every one of which can be sent, and
//! conversations of a well-behaved client. Hostile: bytes as a broken or malicious peer may send
//! them; some are in sync (the header tells the true length), others are not.
//!
//! ```
//! use nbd_proto::conformance::strategy::{handshake, proptest::prelude::*};
//! use nbd_proto::wire::{ClientOption, OptionHeader};
//!
//! proptest!(|(option in handshake::client_option())| {
//!     let mut wire = Vec::new();
//!     option.encode(&mut wire);
//!     let body = &wire[OptionHeader::LEN..];
//!     prop_assert_eq!(ClientOption::parse(option.code(), body), Ok(option));
//! });
//! ```

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;

use crate::handshake::{ClientConfig, Context, Export, ServerConfig, TlsPolicy, TlsWanted, Wanted};
use crate::session::BlockSizes;
use crate::wire::{
    ClientFlags, ClientOption, ExportNameReply, HandshakeFlags, Info, InfoRequest, InfoType,
    MAX_STRING, MetaContextRequest, Name, NewstyleGreeting, OldstyleGreeting, OptionCode,
    OptionHeader, OptionReply, ReplyType, TransmissionFlags,
};

/// A name: mostly short and plain, sometimes empty, of other scripts, or as long as can be.
pub fn name() -> impl Strategy<Value = Name> {
    prop_oneof![
        8 => "[a-z0-9]{0,8}",
        4 => "[^\\x00]{0,16}",
        1 => Just("x".repeat(MAX_STRING)),
        1 => Just("\u{fffd}".repeat(MAX_STRING / 3)),
    ]
    .prop_map(|text: String| Name::lossy(text.as_bytes()))
}

/// A known kind of information, or any other.
pub fn info_type() -> impl Strategy<Value = InfoType> {
    prop_oneof![
        4 => proptest::sample::select(InfoType::KNOWN),
        1 => any::<u16>().prop_map(InfoType),
    ]
}

/// Transmission flags with any bits set.
pub fn transmission_flags() -> impl Strategy<Value = TransmissionFlags> {
    any::<u16>().prop_map(TransmissionFlags::from_bits_retain)
}

/// Client flags with any bits set.
pub fn client_flags() -> impl Strategy<Value = ClientFlags> {
    any::<u32>().prop_map(ClientFlags::from_bits_retain)
}

/// Legal size constraints.
pub fn block_sizes() -> impl Strategy<Value = BlockSizes> {
    (0..=16u32, 9..=31u32, any::<u32>()).prop_map(|(minimum, preferred, more)| {
        let preferred = 1 << preferred.max(minimum);
        let sizes = BlockSizes::new(1 << minimum, preferred, more.max(preferred));
        sizes.unwrap_or_default()
    })
}

/// A newstyle greeting.
pub fn newstyle_greeting() -> impl Strategy<Value = NewstyleGreeting> {
    any::<u16>().prop_map(|bits| NewstyleGreeting {
        flags: HandshakeFlags::from_bits_retain(bits),
    })
}

/// An oldstyle greeting.
pub fn oldstyle_greeting() -> impl Strategy<Value = OldstyleGreeting> {
    (any::<u64>(), any::<u16>(), transmission_flags()).prop_map(|(size, bits, flags)| {
        OldstyleGreeting {
            size,
            handshake_flags: HandshakeFlags::from_bits_retain(bits),
            flags,
        }
    })
}

/// The reply to an `EXPORT_NAME`.
pub fn export_name_reply() -> impl Strategy<Value = ExportNameReply> {
    (any::<u64>(), transmission_flags()).prop_map(|(size, flags)| ExportNameReply { size, flags })
}

/// The body of an `INFO` or a `GO`; the same may be asked for twice.
pub fn info_request() -> impl Strategy<Value = InfoRequest> {
    let infos = proptest::collection::vec(info_type(), 0..6);
    (name(), infos).prop_map(|(name, infos)| InfoRequest { name, infos })
}

/// The name of a meta context: one that is in use, or of a namespace of its own.
pub fn context_name() -> impl Strategy<Value = Name> {
    prop_oneof![
        4 => Just(String::from("base:allocation")),
        2 => Just(String::from("qemu:allocation-depth")),
        2 => "qemu:dirty-bitmap:[a-c]",
        2 => "x-[a-c]:[a-c]{1,2}",
    ]
    .prop_map(|text| Name::lossy(text.as_bytes()))
}

/// A query for meta contexts: a name, a wildcard, or something that is neither.
pub fn context_query() -> impl Strategy<Value = Name> {
    let wildcard = proptest::sample::select(vec!["base:", "qemu:", "qemu:dirty-bitmap:", "x-a:"]);
    prop_oneof![
        6 => context_name(),
        3 => wildcard.prop_map(|text| Name::lossy(text.as_bytes())),
        1 => name(),
    ]
}

/// The body of a `LIST_META_CONTEXT` or a `SET_META_CONTEXT`.
pub fn meta_context_request() -> impl Strategy<Value = MetaContextRequest> {
    let queries = proptest::collection::vec(context_query(), 0..4);
    (name(), queries).prop_map(|(export, queries)| MetaContextRequest { export, queries })
}

/// Any option, well-formed.
pub fn client_option() -> impl Strategy<Value = ClientOption> {
    prop_oneof![
        name().prop_map(ClientOption::ExportName),
        Just(ClientOption::Abort),
        Just(ClientOption::List),
        Just(ClientOption::StartTls),
        info_request().prop_map(ClientOption::Info),
        info_request().prop_map(ClientOption::Go),
        Just(ClientOption::StructuredReply),
        meta_context_request().prop_map(ClientOption::ListMetaContext),
        meta_context_request().prop_map(ClientOption::SetMetaContext),
        Just(ClientOption::ExtendedHeaders),
        unknown_option(),
    ]
}

fn unknown_option() -> impl Strategy<Value = ClientOption> {
    (12..=u32::MAX, proptest::collection::vec(any::<u8>(), 0..64)).prop_map(|(code, data)| {
        ClientOption::Unknown {
            option: OptionCode(code),
            data,
        }
    })
}

/// Any piece of information.
pub fn info() -> impl Strategy<Value = Info> {
    prop_oneof![
        (any::<u64>(), transmission_flags()).prop_map(|(size, flags)| Info::Export { size, flags }),
        name().prop_map(Info::Name),
        name().prop_map(Info::Description),
        block_sizes().prop_map(|sizes| Info::BlockSize {
            minimum: sizes.minimum(),
            preferred: sizes.preferred(),
            max_payload: sizes.max_payload(),
        }),
        (4..=u16::MAX, proptest::collection::vec(any::<u8>(), 0..16)).prop_map(|(info, data)| {
            Info::Unknown {
                info: InfoType(info),
                data,
            }
        }),
    ]
}

/// Any option reply, well-formed.
pub fn option_reply() -> impl Strategy<Value = OptionReply> {
    let error = prop_oneof![
        (0x8000_0001..=0x8000_000au32),
        (0x8000_0000..=u32::MAX), //
    ];
    prop_oneof![
        3 => Just(OptionReply::Ack),
        2 => (name(), name())
            .prop_map(|(name, description)| OptionReply::Server { name, description }),
        3 => info().prop_map(OptionReply::Info),
        1 => (any::<u32>(), name()).prop_map(|(id, name)| OptionReply::MetaContext { id, name }),
        2 => (error, name()).prop_map(|(code, message)| OptionReply::Error {
            code: ReplyType(code),
            message,
        }),
        1 => (5..0x8000_0000u32, proptest::collection::vec(any::<u8>(), 0..16)).prop_map(
            |(reply, data)| OptionReply::Unknown {
                reply: ReplyType(reply),
                data,
            }
        ),
    ]
}

/// All that a well-behaved client may send before transmission, its flags included. It may end
/// anywhere, but not in the middle of a message.
pub fn conversation() -> impl Strategy<Value = Vec<u8>> {
    (0..4u32, proptest::collection::vec(client_option(), 0..8)).prop_map(|(flags, options)| {
        let mut bytes = ClientFlags::from_bits_retain(flags).to_bytes().to_vec();
        for option in options {
            option.encode(&mut bytes);
        }
        bytes
    })
}

/// A conversation in two parts: what a well-behaved client may send up to `STARTTLS`, its flags
/// included, and what it may send once TLS was started.
pub fn tls_conversation() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
    let options = || proptest::collection::vec(client_option(), 0..5);
    (0..2u32, options(), options()).prop_map(|(no_zeroes, before, after)| {
        let mut flags = ClientFlags::FIXED_NEWSTYLE;
        flags.set(ClientFlags::NO_ZEROES, no_zeroes == 1);
        let mut plain = flags.to_bytes().to_vec();
        // One that ends the session would have to be the last.
        let goes_on = |option: &&ClientOption| {
            !matches!(
                option,
                ClientOption::ExportName(_)
                    | ClientOption::Go(_)
                    | ClientOption::Abort
                    | ClientOption::StartTls
            )
        };
        for option in before
            .iter()
            .filter(goes_on)
            .chain([&ClientOption::StartTls])
        {
            option.encode(&mut plain);
        }
        let mut protected = Vec::new();
        for option in &after {
            option.encode(&mut protected);
        }
        (plain, protected)
    })
}

/// What a server does about TLS.
pub fn tls_policy() -> impl Strategy<Value = TlsPolicy> {
    proptest::sample::select(vec![
        TlsPolicy::None,
        TlsPolicy::Selective,
        TlsPolicy::Forced,
    ])
}

/// What a client does about TLS.
pub fn tls_wanted() -> impl Strategy<Value = TlsWanted> {
    proptest::sample::select(vec![
        TlsWanted::No,
        TlsWanted::Preferred,
        TlsWanted::Required,
    ])
}

/// Any configuration of a server, with the default limits.
pub fn server_config() -> impl Strategy<Value = ServerConfig> {
    let offers = (any::<[bool; 4]>(), proptest::bool::weighted(0.9));
    (tls_policy(), offers, any::<bool>()).prop_map(|(tls, (offers, fixed), required)| {
        let [structured, extended, contexts, no_zeroes] = offers;
        ServerConfig::new()
            .with_tls(tls)
            .with_structured_replies(structured)
            .with_extended_headers(extended)
            .with_meta_contexts(contexts)
            .with_no_zeroes(no_zeroes)
            .with_block_sizes_required(required)
            .with_fixed_newstyle(fixed)
    })
}

/// Any configuration of a client, with the default limits.
pub fn client_config() -> impl Strategy<Value = ClientConfig> {
    any::<[bool; 2]>().prop_map(|[no_zeroes, oldstyle]| {
        ClientConfig::new()
            .with_no_zeroes(no_zeroes)
            .with_oldstyle(oldstyle)
    })
}

/// Whatever can be wanted of an export of that name.
pub fn wanted(export: Name) -> impl Strategy<Value = Wanted> {
    let contexts = proptest::collection::vec(context_query(), 0..4);
    (tls_wanted(), any::<[bool; 4]>(), contexts).prop_map(move |(tls, asks, contexts)| {
        let [extended, structured, name, description] = asks;
        Wanted::new(export.clone())
            .with_tls(tls)
            .with_extended_headers(extended)
            .with_structured_replies(structured)
            .with_name(name)
            .with_description(description)
            .with_contexts(contexts)
    })
}

/// Any export of that name, with flags that may contradict each other.
pub fn export(name: Name) -> impl Strategy<Value = Export> {
    let flags = transmission_flags();
    let text = self::name();
    let about = (any::<u64>(), flags, block_sizes(), text, any::<bool>());
    about.prop_map(move |(size, flags, sizes, description, tls)| {
        Export::new(name.clone(), size, flags)
            .with_block_sizes(sizes)
            .with_description(description)
            .with_tls_required(tls)
    })
}

/// The meta contexts of an export; some need extended headers.
pub fn contexts() -> impl Strategy<Value = Vec<Context>> {
    let context = (context_name(), proptest::bool::weighted(0.2));
    proptest::collection::vec(
        context.prop_map(|(name, wide)| Context::new(name).with_wide(wide)),
        0..6,
    )
}

/// Hostile, in sync: an option whose header tells the true length of its body, but whose body may
/// be anything.
pub fn framed_option() -> impl Strategy<Value = (OptionCode, Vec<u8>)> {
    let code = prop_oneof![
        8 => proptest::sample::select(OptionCode::KNOWN),
        1 => any::<u32>().prop_map(OptionCode),
    ];
    let body = prop_oneof![
        2 => Just(Vec::new()),
        2 => proptest::collection::vec(any::<u8>(), 0..64),
        4 => client_option().prop_map(|option| body_of(&option)),
        4 => mutated(client_option().prop_map(|option| body_of(&option))),
    ];
    (code, body)
}

/// The bytes of an option with this body.
#[must_use]
pub fn frame(option: OptionCode, body: &[u8]) -> Vec<u8> {
    let header = OptionHeader {
        option,
        length: u32::try_from(body.len()).unwrap_or(u32::MAX),
    };
    let mut bytes = header.to_bytes().to_vec();
    bytes.extend_from_slice(body);
    bytes
}

fn body_of(option: &ClientOption) -> Vec<u8> {
    let mut bytes = Vec::new();
    option.encode(&mut bytes);
    bytes.split_off(OptionHeader::LEN.min(bytes.len()))
}

/// Hostile, out of sync: a conversation in which bytes were changed, lost or added.
pub fn hostile_conversation() -> impl Strategy<Value = Vec<u8>> {
    mutated(conversation())
}

/// All that a server may send to a client that sends these options one after the other: some
/// replies that fit, some that do not.
pub fn server_conversation(options: Vec<OptionCode>) -> impl Strategy<Value = Vec<u8>> {
    let options = if options.is_empty() {
        vec![OptionCode::GO]
    } else {
        options
    };
    let reply = (proptest::sample::select(options), option_reply());
    (newstyle_greeting(), proptest::collection::vec(reply, 0..12)).prop_map(
        |(greeting, replies)| {
            let mut bytes = greeting.to_bytes().to_vec();
            for (option, reply) in replies {
                reply.encode(option, &mut bytes);
            }
            bytes
        },
    )
}

/// Bytes with up to three of them changed, lost or added.
pub fn mutated(bytes: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let change = (any::<proptest::sample::Index>(), 0..4u8, any::<u8>());
    (bytes, proptest::collection::vec(change, 0..4)).prop_map(|(mut bytes, changes)| {
        for (at, kind, byte) in changes {
            let at = at.index(bytes.len() + 1);
            match (kind, bytes.get_mut(at)) {
                (0, Some(old)) => *old = byte,
                (1, Some(old)) => *old ^= 1 << (byte % 8),
                (2, Some(_)) => {
                    bytes.remove(at);
                }
                _ => bytes.insert(at, byte),
            }
        }
        bytes
    })
}

/// Places at which to cut something of `len` bytes into pieces, in order; some pieces are empty.
pub fn cuts(len: usize) -> impl Strategy<Value = Vec<usize>> {
    proptest::collection::vec(0..=len, 0..12).prop_map(|mut cuts| {
        cuts.sort_unstable();
        cuts
    })
}
