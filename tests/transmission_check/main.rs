//! `Session::check`, cell by cell, against an oracle that is written from the protocol text in
//! another way: as a list of complaints, from which the first in the documented order counts.

mod fates;

use nbd_proto::session::{BlockSizes, MetaContext, ReplyStyle, Session};
use nbd_proto::transmission::{Refusal, RequestEncoder, UnadvertisedCache, Unsendable};
use nbd_proto::wire::{
    CommandFlags, CommandType, Cookie, Errno, Name, Request, StatusQuery, TransmissionFlags,
};

const SIZE: u64 = 1 << 30;
const MAX: u32 = 1 << 20;

const ADVERTISED: [TransmissionFlags; 8] = [
    TransmissionFlags::READ_ONLY,
    TransmissionFlags::SEND_FLUSH,
    TransmissionFlags::SEND_FUA,
    TransmissionFlags::SEND_TRIM,
    TransmissionFlags::SEND_WRITE_ZEROES,
    TransmissionFlags::SEND_DF,
    TransmissionFlags::SEND_CACHE,
    TransmissionFlags::SEND_FAST_ZERO,
];

fn session(flags: TransmissionFlags, style: ReplyStyle, minimum: u32, contexts: bool) -> Session {
    let session = Session::new(Name::default(), SIZE, TransmissionFlags::HAS_FLAGS | flags)
        .with_reply_style(style)
        .with_block_sizes(BlockSizes::new(minimum, 4096, MAX).unwrap());
    if !contexts {
        return session;
    }
    let name = Name::new("base:allocation").unwrap();
    session.with_contexts(vec![MetaContext { id: 1, name }])
}

/// Everything that is wrong with a request, in numbers of the errno, each with its rank.
fn complaints(s: &Session, r: &Request, cache_allowed: bool) -> Vec<(u8, u32)> {
    let (eperm, einval, enospc, eoverflow) = (1, 22, 28, 75);
    let has = |flag| s.flags().contains(flag);
    let (simple, extended) = (
        s.reply_style() == ReplyStyle::Simple,
        s.reply_style() == ReplyStyle::Extended,
    );
    let mut wrong = vec![];
    let number = r.kind.0;
    if number == 2 {
        return wrong;
    }
    if number > 7 {
        wrong.push((0, einval));
        return wrong;
    }
    for bit in 0..16 {
        if r.flags.bits() & (1 << bit) == 0 {
            continue;
        }
        let fine = match bit {
            0 => has(TransmissionFlags::SEND_FUA),
            1 => number == 6,
            2 => number == 0 && has(TransmissionFlags::SEND_DF) && !simple,
            3 => number == 7,
            4 => number == 6 && has(TransmissionFlags::SEND_FAST_ZERO),
            5 => {
                extended
                    && (number == 1 || number == 7 && has(TransmissionFlags::BLOCK_STATUS_PAYLOAD))
            }
            _ => false,
        };
        if !fine {
            wrong.push((1, einval));
        }
    }
    if [1, 4, 6].contains(&number) && has(TransmissionFlags::READ_ONLY) {
        wrong.push((2, eperm));
    }
    let advertised = match number {
        3 => has(TransmissionFlags::SEND_FLUSH),
        4 => has(TransmissionFlags::SEND_TRIM),
        5 => has(TransmissionFlags::SEND_CACHE) || cache_allowed && r.flags.bits() == 0,
        6 => has(TransmissionFlags::SEND_WRITE_ZEROES),
        7 => !s.contexts().is_empty() && !simple,
        _ => true,
    };
    if !advertised {
        wrong.push((3, einval));
    }
    if number == 3 {
        if (r.offset, r.length) != (0, 0) {
            wrong.push((4, einval));
        }
        return wrong;
    }
    if number == 7 && r.flags.bits() & 32 != 0 {
        // For one context: 8 + 1 * 4 bytes.
        if r.length != 12 {
            wrong.push((4, einval));
        }
        return wrong;
    }
    if number == 7 && r.length == 0 {
        wrong.push((4, einval));
    }
    if u128::from(r.offset) + u128::from(r.length) > u128::from(SIZE) {
        wrong.push((
            5,
            if number == 1 || number == 6 {
                enospc
            } else {
                einval
            },
        ));
    }
    let minimum = u64::from(s.block_sizes().minimum());
    if !r.offset.is_multiple_of(minimum) || !r.length.is_multiple_of(minimum) {
        wrong.push((6, einval));
    }
    if r.length > u64::from(MAX) && number == 1 {
        wrong.push((7, einval));
    }
    if r.length > u64::from(MAX) && number == 0 {
        wrong.push((7, if simple { einval } else { eoverflow }));
    }
    wrong
}

fn ranges() -> Vec<(u64, u64)> {
    vec![
        (0, 0),
        (0, 8),
        (0, 12),
        (0, 4096),
        (4096, 4096),
        (SIZE - 4096, 4096),
        (SIZE, 0),
        (SIZE - 4096, 8192),
        (SIZE, 512),
        (SIZE + 512, 0),
        (513, 512),
        (512, 513),
        (SIZE - 1, 1),
        (SIZE - 1, 2),
        (u64::MAX, 1),
        (u64::MAX - 511, 512),
        (512, u64::MAX),
        (0, u64::from(MAX)),
        (0, u64::from(MAX) + 512),
        (0, SIZE),
    ]
}

fn sessions() -> impl Iterator<Item = Session> {
    let styles = [
        ReplyStyle::Simple,
        ReplyStyle::Structured,
        ReplyStyle::Extended,
    ];
    (0..1u32 << (ADVERTISED.len() + 2)).flat_map(move |bits| {
        styles.into_iter().flat_map(move |style| {
            [1, 512].map(|minimum| {
                let mut flags = TransmissionFlags::empty();
                for (at, &flag) in ADVERTISED.iter().enumerate() {
                    flags.set(flag, bits & (1 << at) != 0);
                }
                let payload = bits & (1 << ADVERTISED.len()) != 0;
                flags.set(TransmissionFlags::BLOCK_STATUS_PAYLOAD, payload);
                session(flags, style, minimum, bits >> (ADVERTISED.len() + 1) != 0)
            })
        })
    })
}

fn requests() -> Vec<Request> {
    let mut flags: Vec<u16> = (0..=0x3f).collect();
    flags.extend((6..16).map(|bit| 1 << bit));
    let kinds = (0..=9).chain([0x8000, u16::MAX]).map(CommandType);
    let mut requests = vec![];
    for kind in kinds {
        for &bits in &flags {
            for (at, (offset, length)) in ranges().into_iter().enumerate() {
                // Pairs of flags with every range would be too many cells; one range is enough to
                // see which flags are legal together.
                if bits.count_ones() > 1 && bits != 0x20 && at != 3 && at != 8 {
                    continue;
                }
                let request = Request::new(kind, Cookie(1), offset, length);
                requests.push(request.with_flags(CommandFlags::from_bits_retain(bits)));
            }
        }
    }
    requests
}

#[test]
fn every_cell_of_the_table_is_what_the_protocol_text_says() {
    let requests = requests();
    let (mut cells, mut executed) = (0u64, 0u64);
    for session in sessions() {
        for request in &requests {
            for (policy, allowed) in [
                (UnadvertisedCache::Refuse, false),
                (UnadvertisedCache::Allow, true),
            ] {
                if allowed && request.kind != CommandType::CACHE {
                    continue;
                }
                let expected = complaints(&session, request, allowed)
                    .into_iter()
                    .min_by_key(|(rank, _)| *rank)
                    .map(|(_, errno)| Errno(errno));
                let found = session.check_with(request, policy);
                assert_eq!(
                    found.err().map(Refusal::errno),
                    expected,
                    "{request:?} in {session:?}: {found:?}"
                );
                cells += 1;
                executed += u64::from(found.is_ok());
            }
        }
    }
    // A table of one answer would be no table.
    assert!(
        cells > 10_000_000 && executed > cells / 100,
        "{executed} of {cells}"
    );
}

fn everything() -> TransmissionFlags {
    ADVERTISED
        .into_iter()
        .filter(|&flag| flag != TransmissionFlags::READ_ONLY)
        .fold(TransmissionFlags::HAS_FLAGS, |all, flag| all | flag)
}

fn rich(style: ReplyStyle) -> Session {
    session(everything(), style, 512, true)
}

const C: Cookie = Cookie(9);

#[test]
fn unknown_commands_are_einval() {
    let session = rich(ReplyStyle::Structured);
    for kind in [8, 9, 0x100, u16::MAX] {
        let request = Request::new(CommandType(kind), C, 0, 0);
        assert_eq!(session.check(&request), Err(Refusal::UnknownCommand));
        assert_eq!(Refusal::UnknownCommand.errno(), Errno::EINVAL);
    }
}

#[test]
fn fua_is_taken_on_every_command_where_it_was_negotiated() {
    let session = rich(ReplyStyle::Structured);
    let without = Session::new(
        Name::default(),
        SIZE,
        everything() - TransmissionFlags::SEND_FUA,
    );
    for request in [
        Request::read(C, 0, 512),
        Request::write(C, 0, 512),
        Request::flush(C),
        Request::trim(C, 0, 512),
        Request::cache(C, 0, 512),
        Request::write_zeroes(C, 0, 512),
        Request::block_status(C, 0, 512),
    ] {
        let request = request.with_flags(CommandFlags::FUA);
        assert_eq!(session.check(&request), Ok(()), "{request:?}");
        assert_eq!(without.check(&request), Err(Refusal::BadFlags));
    }
}

#[test]
fn past_the_end_is_enospc_for_what_adds_data_and_einval_otherwise() {
    let session = rich(ReplyStyle::Structured);
    for (request, why) in [
        (Request::write(C, SIZE, 512), Refusal::NoSpace),
        (Request::write_zeroes(C, SIZE, 512), Refusal::NoSpace),
        (Request::read(C, SIZE, 512), Refusal::PastEnd),
        (Request::trim(C, SIZE, 512), Refusal::PastEnd),
        (Request::cache(C, SIZE, 512), Refusal::PastEnd),
        (Request::block_status(C, SIZE, 512), Refusal::PastEnd),
    ] {
        assert_eq!(session.check(&request), Err(why));
    }
    assert_eq!(Refusal::NoSpace.errno(), Errno::ENOSPC);
    assert_eq!(Refusal::PastEnd.errno(), Errno::EINVAL);
}

#[test]
fn an_offset_that_overflows_with_its_length_is_past_the_end() {
    let session = rich(ReplyStyle::Extended);
    let request = Request::read(C, u64::MAX - 511, 1024);
    assert_eq!(session.check(&request), Err(Refusal::PastEnd));
}

#[test]
fn a_read_only_export_says_eperm_even_past_its_end_and_for_unadvertised_trim() {
    let session = session(TransmissionFlags::READ_ONLY, ReplyStyle::Simple, 1, false);
    for request in [
        Request::write(C, SIZE, 512),
        Request::write(C, 0, 512),
        Request::trim(C, 0, 512),
        Request::write_zeroes(C, 0, 512),
    ] {
        assert_eq!(session.check(&request), Err(Refusal::ReadOnly));
    }
    assert_eq!(session.check(&Request::read(C, 0, 512)), Ok(()));
}

#[test]
fn commands_without_payload_may_be_longer_than_the_maximum_payload() {
    let session = rich(ReplyStyle::Structured);
    for request in [
        Request::trim(C, 0, SIZE),
        Request::write_zeroes(C, 0, SIZE),
        Request::cache(C, 0, SIZE),
        Request::block_status(C, 0, SIZE),
    ] {
        assert_eq!(session.check(&request), Ok(()));
    }
}

#[test]
fn a_read_above_the_maximum_is_einval_in_simple_replies_and_eoverflow_in_others() {
    let request = Request::read(C, 0, u64::from(MAX) + 512);
    for (style, why, errno) in [
        (ReplyStyle::Simple, Refusal::ReadTooLarge, Errno::EINVAL),
        (
            ReplyStyle::Structured,
            Refusal::ReadOverflow,
            Errno::EOVERFLOW,
        ),
        (
            ReplyStyle::Extended,
            Refusal::ReadOverflow,
            Errno::EOVERFLOW,
        ),
    ] {
        assert_eq!(rich(style).check(&request), Err(why));
        assert_eq!(why.errno(), errno);
    }
}

#[test]
fn a_read_that_no_chunk_can_hold_is_refused_however_large_the_maximum() {
    let session = Session::new(Name::default(), 1 << 40, TransmissionFlags::HAS_FLAGS)
        .with_reply_style(ReplyStyle::Structured)
        .with_block_sizes(BlockSizes::new(1, 4096, u32::MAX).unwrap());
    let largest = u64::from(u32::MAX) - 8;
    assert_eq!(session.check(&Request::read(C, 0, largest)), Ok(()));
    let request = Request::read(C, 0, largest + 1);
    assert_eq!(session.check(&request), Err(Refusal::ReadOverflow));
}

#[test]
fn requests_without_length_are_fine_except_where_there_is_no_answer() {
    let session = rich(ReplyStyle::Structured);
    for request in [
        Request::read(C, 512, 0),
        Request::write(C, 512, 0),
        Request::trim(C, 512, 0),
        Request::write_zeroes(C, 512, 0),
        Request::cache(C, SIZE, 0),
    ] {
        assert_eq!(session.check(&request), Ok(()));
    }
    let request = Request::block_status(C, 512, 0);
    assert_eq!(session.check(&request), Err(Refusal::EmptyStatus));
}

#[test]
fn unaligned_ranges_are_einval() {
    let session = rich(ReplyStyle::Simple);
    for (offset, length) in [(1, 512), (512, 1), (256, 256)] {
        let request = Request::write(C, offset, length);
        assert_eq!(session.check(&request), Err(Refusal::Unaligned));
    }
}

#[test]
fn the_payload_of_block_status_names_selected_contexts_once() {
    let name = |name| Name::new(name).unwrap();
    let contexts = [(3, "base:allocation"), (7, "qemu:dirty-bitmap:x")];
    let session = session(
        TransmissionFlags::BLOCK_STATUS_PAYLOAD,
        ReplyStyle::Extended,
        512,
        false,
    )
    .with_contexts(
        contexts
            .map(|(id, n)| MetaContext { id, name: name(n) })
            .into(),
    );
    let check = |offset, length, ids: &[u32]| {
        let mut payload = vec![];
        StatusQuery::encode(length, ids, &mut payload);
        let request = Request::block_status(C, offset, payload.len() as u64)
            .with_flags(CommandFlags::PAYLOAD_LEN);
        session.check(&request)?;
        session.check_status(&request, &StatusQuery::parse(&payload).unwrap())
    };
    assert_eq!(check(512, 512, &[3, 7]), Ok(()));
    assert_eq!(check(512, SIZE - 512, &[7]), Ok(()));
    assert_eq!(check(512, 512, &[4]), Err(Refusal::BadStatusPayload));
    assert_eq!(check(512, 512, &[7, 7]), Err(Refusal::BadStatusPayload));
    assert_eq!(check(512, 512, &[3, 7, 3]), Err(Refusal::BadStatusPayload));
    assert_eq!(check(512, 0, &[3]), Err(Refusal::EmptyStatus));
    assert_eq!(check(512, SIZE, &[3]), Err(Refusal::PastEnd));
    assert_eq!(check(512, 100, &[3]), Err(Refusal::Unaligned));
    assert_eq!(check(512, 512, &[]), Err(Refusal::BadStatusPayload));
    // Also where nobody looked at the length of the payload.
    let request = Request::block_status(C, 512, 8).with_flags(CommandFlags::PAYLOAD_LEN);
    let nothing = session.check_status_payload(&request, &[0, 0, 0, 0, 0, 0, 2, 0]);
    assert_eq!(nothing.err(), Some(Refusal::BadStatusPayload));
}

#[test]
fn a_client_sends_what_the_server_would_execute_and_nothing_else() {
    let session = rich(ReplyStyle::Simple);
    let encoder = RequestEncoder::new(&session);
    for request in requests() {
        let sent = encoder.encode(&request);
        if request.kind == CommandType::DISC {
            let clean = request.offset == 0 && request.length == 0 && request.flags.is_empty();
            assert_eq!(sent.is_ok(), clean, "{request:?}");
            continue;
        }
        match (sent, session.check(&request)) {
            (Ok(head), Ok(())) => {
                // "Request types": what a server does with an empty range is unspecified.
                assert!(request.length > 0 || request.kind == CommandType::FLUSH);
                let header = head.as_ref().try_into().unwrap();
                assert_eq!(Request::from_compact(header), Ok(request));
            }
            (Err(Unsendable::Empty), _) => assert_eq!(request.length, 0),
            (Err(Unsendable::Refused(why)), Err(refusal)) => assert_eq!(why, refusal),
            other => panic!("{request:?}: {other:?}"),
        }
    }
}

#[test]
fn a_write_with_extended_headers_says_that_it_has_payload() {
    let session = rich(ReplyStyle::Extended);
    let write = Request::write(C, 512, 512);
    let head = RequestEncoder::new(&session).encode(&write).unwrap();
    let sent = Request::from_extended(head.as_ref().try_into().unwrap()).unwrap();
    assert_eq!(sent, write.with_flags(CommandFlags::PAYLOAD_LEN));
    assert_eq!(session.check(&sent), Ok(()));
    // qemu's client leaves it out.
    assert_eq!(session.check(&write), Ok(()));
}

#[test]
fn a_length_of_33_bits_needs_extended_headers() {
    let flags = TransmissionFlags::SEND_TRIM;
    let session = |style| {
        Session::new(
            Name::default(),
            1 << 40,
            TransmissionFlags::HAS_FLAGS | flags,
        )
        .with_reply_style(style)
    };
    let trim = Request::trim(C, 0, 1 << 32);
    let encode = |style| RequestEncoder::new(&session(style)).encode(&trim);
    assert!(matches!(
        encode(ReplyStyle::Structured),
        Err(Unsendable::TooLong(_))
    ));
    assert_eq!(
        encode(ReplyStyle::Extended).unwrap().as_ref(),
        trim.to_extended()
    );
}
