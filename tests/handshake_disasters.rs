//! Disasters that happened to others, by name: each of these bytes brought down, or opened, an NBD
//! program somewhere.

mod handshake_support;

use handshake_support::*;
use nbd_proto::error::Fatal;
use nbd_proto::handshake::{ClientConfig, ServerConfig};
use nbd_proto::limits::Limits;
use nbd_proto::wire::{
    BadString, ClientOption, Malformed, OptionCode, OptionHeader, OptionReply, OptionReplyHeader,
    ReplyType,
};

const EXTENDED: ClientOption = ClientOption::ExtendedHeaders;

fn config() -> ServerConfig {
    ServerConfig::new().with_meta_contexts(true)
}

/// An option with any length in its header, and any body, after the flags and extended headers.
fn raw(option: OptionCode, length: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = client_bytes(fixed(), &[EXTENDED]);
    bytes.extend_from_slice(&OptionHeader { option, length }.to_bytes());
    bytes.extend_from_slice(body);
    bytes
}

/// What a server says to one option, and that it goes on with the next.
fn answer_to(option: OptionCode, body: &[u8]) -> Option<ReplyType> {
    let mut bytes = raw(option, u32::try_from(body.len()).unwrap(), body);
    ClientOption::Abort.encode(&mut bytes);
    let run = run_server(config(), &bytes, &[]);
    assert_eq!(run.events.last(), Some(&Event::Aborted), "goes on");
    let (replies, _) = replies(&run.output);
    assert_eq!(replies.len(), 3);
    error_of(&replies[1].1)
}

const NAMED: [OptionCode; 4] = [
    OptionCode::INFO,
    OptionCode::GO,
    OptionCode::LIST_META_CONTEXT,
    OptionCode::SET_META_CONTEXT,
];

fn named(option: OptionCode, length: u32, text: &[u8]) -> Vec<u8> {
    let mut body = length.to_be_bytes().to_vec();
    body.extend_from_slice(text);
    let meta = option != OptionCode::INFO && option != OptionCode::GO;
    body.extend_from_slice(if meta { &[0; 4] } else { &[0; 2] });
    body
}

/// A server that allocates what the header says is dead at the first option.
#[test]
fn an_option_of_4_gib_is_refused_at_its_header() {
    let options = OptionCode::KNOWN
        .iter()
        .copied()
        .chain([OptionCode(0x4242)]);
    for option in options.filter(|it| *it != OptionCode::EXPORT_NAME) {
        let run = run_server(config(), &raw(option, u32::MAX, &[]), &[]);
        let limit = Limits::new().max_drain();
        let length = u32::MAX;
        let too_long = Fatal::OptionTooLong {
            option,
            length,
            limit,
        };
        assert_eq!(run.end, Err(too_long));
    }
}

/// CVE-2022-26495: the length of a name, plus one for its end, was zero.
#[test]
fn a_name_whose_length_wraps_around_is_invalid() {
    for option in NAMED {
        for length in [u32::MAX, u32::MAX - 1, u32::MAX - 5, 1 << 31] {
            let body = named(option, length, b"name");
            assert_eq!(answer_to(option, &body), Some(ReplyType::ERR_INVALID));
        }
    }
    let query = [&[0, 0, 0, 0, 0, 0, 0, 1][..], &[0xff; 4], b"base:"].concat();
    for option in [OptionCode::LIST_META_CONTEXT, OptionCode::SET_META_CONTEXT] {
        assert_eq!(answer_to(option, &query), Some(ReplyType::ERR_INVALID));
    }
}

/// CVE-2022-26496: a name went into a buffer on the stack, however long it was.
#[test]
fn a_name_that_is_longer_than_names_are_is_invalid_though_it_is_all_there() {
    for option in NAMED {
        for length in [4097, 5000, 60_000] {
            let body = named(option, length, &vec![b'n'; length as usize]);
            assert_eq!(answer_to(option, &body), Some(ReplyType::ERR_INVALID));
        }
        let longest = named(option, 4096, &[b'n'; 4096]);
        assert_eq!(answer_to(option, &longest), Some(ReplyType::ERR_UNKNOWN));
    }
}

/// A count of queries is not a number of bytes that are there.
#[test]
fn four_thousand_million_queries_in_no_bytes_are_invalid() {
    for option in [OptionCode::LIST_META_CONTEXT, OptionCode::SET_META_CONTEXT] {
        let body = [[0; 4], [0xff; 4]].concat();
        assert_eq!(answer_to(option, &body), Some(ReplyType::ERR_INVALID));
    }
}

/// Excess data was taken for the next option.
#[test]
fn excess_data_that_looks_like_an_option_is_skipped_with_the_option_it_came_in() {
    let mut abort = vec![];
    ClientOption::Abort.encode(&mut abort);
    for option in NAMED {
        let body = [named(option, 4, b"disk"), abort.clone()].concat();
        assert_eq!(answer_to(option, &body), Some(ReplyType::ERR_INVALID));
    }
}

#[test]
fn names_with_nul_or_without_utf8_are_invalid_or_the_end_of_the_session() {
    for (text, why) in [
        (&b"di\0sk"[..], BadString::Nul),
        (b"disk\0", BadString::Nul),
        (b"\xff\xfe", BadString::NotUtf8),
        // Overlong, surrogate, beyond the last code point.
        (b"\xc0\x80", BadString::NotUtf8),
        (b"\xed\xa0\x80", BadString::NotUtf8),
        (b"\xf4\x90\x80\x80", BadString::NotUtf8),
    ] {
        for option in NAMED {
            let body = named(option, u32::try_from(text.len()).unwrap(), text);
            assert_eq!(answer_to(option, &body), Some(ReplyType::ERR_INVALID));
        }
        let header = OptionHeader {
            option: OptionCode::EXPORT_NAME,
            length: u32::try_from(text.len()).unwrap(),
        };
        let bytes = [&fixed().to_bytes()[..], &header.to_bytes(), text].concat();
        let run = run_server(config(), &bytes, &[]);
        assert_eq!(run.end, Err(Fatal::ExportName(Malformed::String(why))));
    }
}

/// The same from the other side: what a client must not believe of a server.
#[test]
fn a_server_with_impossible_strings_and_lengths_is_left() {
    let reply = |option, reply, length: u32, body: &[u8]| {
        let header = OptionReplyHeader {
            option,
            reply,
            length,
        };
        [&server_bytes(3, &[])[..], &header.to_bytes(), body].concat()
    };
    let run = |option: &ClientOption, bytes: &[u8]| {
        run_client(
            ClientConfig::new(),
            std::slice::from_ref(option),
            bytes,
            &[],
        )
        .end
    };
    let list = ClientOption::List;
    for length in [4097u32, 60_000] {
        let mut body = length.to_be_bytes().to_vec();
        body.resize(length as usize + 4, b'n');
        let bytes = reply(OptionCode::LIST, ReplyType::SERVER, length + 4, &body);
        assert!(matches!(
            run(&list, &bytes),
            Err(Fatal::MalformedReply { why, .. }) if why == Malformed::String(BadString::TooLong)
        ));
    }
    for inner in [u32::MAX, 5, 1 << 31] {
        let body = [&inner.to_be_bytes()[..], b"disk"].concat();
        let bytes = reply(OptionCode::LIST, ReplyType::SERVER, 8, &body);
        assert!(matches!(
            run(&list, &bytes),
            Err(Fatal::MalformedReply {
                why: Malformed::Truncated,
                ..
            })
        ));
    }
    for code in [ReplyType::SERVER, ReplyType::ACK, ReplyType::ERR_UNSUP] {
        let bytes = reply(OptionCode::LIST, code, u32::MAX, &[]);
        assert!(matches!(
            run(&list, &bytes),
            Err(Fatal::ReplyTooLong { .. })
        ));
    }
}

/// A server whose list has no end, in names of the greatest length.
#[test]
fn a_list_is_bounded_in_bytes_as_well_as_in_entries() {
    let entry = OptionReply::Server {
        name: name(&"n".repeat(4096)),
        description: name(&"d".repeat(4096)),
    };
    // Twelve entries, to the byte: the length of the name, the name, the description.
    let limit = 12 * (4 + 2 * 4096);
    let limits = Limits::new().with_max_reply_bytes(limit);
    let config = ClientConfig::new().with_limits(limits);
    let mut replies = vec![(OptionCode::LIST, entry); 12];
    let end = |replies: &[_]| {
        let bytes = server_bytes(3, replies);
        run_client(config, &[ClientOption::List], &bytes, &[]).end
    };
    assert_eq!(end(&replies), Ok(()));
    replies.push(replies[0].clone());
    let option = OptionCode::LIST;
    assert_eq!(
        end(&replies),
        Err(Fatal::TooManyReplyBytes { option, limit })
    );
}
