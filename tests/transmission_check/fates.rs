//! Execute, refuse, or hang up: the table together with the framing.

use nbd_proto::limits::Limits;
use nbd_proto::session::{MetaContext, ReplyStyle, Session};
use nbd_proto::transmission::{Refusal, RequestDecoder, RequestEvent, server};
use nbd_proto::wire::{
    CommandFlags, CommandType, Cookie, Errno, Name, Request, StatusQuery, TransmissionFlags,
};

use super::{C, MAX, SIZE, complaints, everything, ranges, session};

/// What has to become of a request, in all: what follows its header, and what is said to it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    HangUp,
    Disconnect,
    Refuse { payload: u64, errno: u32 },
    Execute { payload: u64 },
}

/// Written from "Request message", "Command flags" (bit 5) and "Size constraints".
fn fate(s: &Session, r: &Request, most_drained: u64) -> Fate {
    let extended = s.reply_style() == ReplyStyle::Extended;
    // "A client MUST NOT send anything to the server after sending an NBD_CMD_DISC command."
    if r.kind.0 == 2 {
        return Fate::Disconnect;
    }
    let payload = match (extended, r.kind.0, r.flags.bits() & 32 != 0) {
        // "length bytes of data if the request is of type NBD_CMD_WRITE"
        (false, 1, _) => r.length,
        (false, _, _) => 0,
        // "length bytes of data if flags includes NBD_CMD_FLAG_PAYLOAD_LEN"
        (true, _, true) => r.length,
        // It "MUST use the flag"; where it does not, its data follows all the same (qemu).
        (true, 1, false) => r.length,
        (true, _, false) => 0,
    };
    // "either the server or the client MAY initiate a hard disconnect if a payload length [...]
    // would be large enough to be deemed a denial of service attack"
    if payload > most_drained.max(s.block_sizes().max_payload().into()) {
        return Fate::HangUp;
    }
    let first = complaints(s, r, false).into_iter().min_by_key(|it| it.0);
    match first {
        Some((_, errno)) => Fate::Refuse { payload, errno },
        None => Fate::Execute { payload },
    }
}

/// What becomes of a request in fact. The next request has to be understood after it.
fn found(s: &Session, r: &Request, most_drained: u32) -> Fate {
    let extended = s.reply_style() == ReplyStyle::Extended;
    let header = |r: &Request| -> Vec<u8> {
        if extended {
            r.to_extended().to_vec()
        } else {
            r.to_compact().unwrap().to_vec()
        }
    };
    let limits = Limits::new().with_max_drain(most_drained);
    let mut decoder = RequestDecoder::new(s, &limits);
    let bytes = header(r);
    let event = match decoder.next(&mut &bytes[..]) {
        Err(server::Fatal::PayloadTooLarge { .. }) => return Fate::HangUp,
        other => other.unwrap().unwrap(),
    };
    if event == RequestEvent::Disconnect {
        assert_eq!(decoder.wants(), 0);
        return Fate::Disconnect;
    }
    assert_eq!(event, RequestEvent::Request(*r));
    let payload = decoder.payload_left();
    let verdict = s.check(r);
    // The payload comes all the same, and is drained or taken.
    if verdict.is_err() {
        decoder.skip_payload();
    }
    let block = [0x25; 1 << 16];
    let mut left = payload;
    while left > 0 {
        let len = left.min(block.len() as u64);
        let mut input = &block[..len as usize];
        while decoder.next(&mut input).unwrap().is_some() {}
        assert!(input.is_empty());
        left -= len;
    }
    let next = Request::flush(Cookie(77));
    let bytes = header(&next);
    let event = decoder.next(&mut &bytes[..]).unwrap();
    assert_eq!(event, Some(RequestEvent::Request(next)), "after {r:?}");
    match verdict {
        Ok(()) => Fate::Execute { payload },
        Err(why) => Fate::Refuse {
            payload,
            errno: why.errno().0,
        },
    }
}

#[test]
fn every_request_is_executed_refused_or_hung_up_on_as_the_protocol_text_says() {
    let max = u64::from(MAX);
    let drained = 2 * MAX;
    let lengths = [
        0,
        1,
        8,
        12,
        16,
        20,
        512,
        max,
        max + 512,
        2 * max,
        2 * max + 1,
        u64::from(u32::MAX),
    ];
    let mut fates = [0; 4];
    for style in [
        ReplyStyle::Simple,
        ReplyStyle::Structured,
        ReplyStyle::Extended,
    ] {
        for with_payload in [false, true] {
            for read_only in [false, true] {
                let mut flags = everything();
                flags.set(TransmissionFlags::BLOCK_STATUS_PAYLOAD, with_payload);
                flags.set(TransmissionFlags::READ_ONLY, read_only);
                let session = session(flags, style, 1, true);
                let wide = [1 << 32, 1 << 40, u64::MAX];
                let lengths = lengths.iter().chain(match style {
                    ReplyStyle::Extended => &wide[..],
                    _ => &[],
                });
                for &length in lengths {
                    for kind in [0, 1, 2, 3, 4, 5, 6, 7, 8, 0xffff].map(CommandType) {
                        for bits in [0, 1, 0x20, 0x21, 0x28, 0x40, 0x60] {
                            let flags = CommandFlags::from_bits_retain(bits);
                            let request = Request::new(kind, C, 0, length).with_flags(flags);
                            let expected = fate(&session, &request, drained.into());
                            let fate = found(&session, &request, drained);
                            assert_eq!(fate, expected, "{request:?} in {session:?}");
                            fates[match fate {
                                Fate::HangUp => 0,
                                Fate::Disconnect => 1,
                                Fate::Refuse { .. } => 2,
                                Fate::Execute { .. } => 3,
                            }] += 1;
                        }
                    }
                }
            }
        }
    }
    assert!(fates.iter().all(|&count| count > 100), "{fates:?}");
}

#[test]
fn every_query_for_contexts_is_executed_or_refused_as_the_protocol_text_says() {
    let contexts = [(3, "base:allocation"), (7, "qemu:dirty-bitmap:x")];
    let contexts = contexts.map(|(id, name)| MetaContext {
        id,
        name: Name::new(name).unwrap(),
    });
    let flags = TransmissionFlags::BLOCK_STATUS_PAYLOAD;
    let (mut executed, mut refused) = (0, 0);
    let ids = [3u32, 7, 8];
    let lists = (0..4usize.pow(4)).map(|number| {
        let digits = (0..4).map(|digit| number / 4usize.pow(digit) % 4);
        digits.filter_map(|digit| ids.get(digit).copied()).collect()
    });
    let lists: Vec<Vec<u32>> = lists.collect();
    for minimum in [1, 512] {
        let session =
            session(flags, ReplyStyle::Extended, minimum, false).with_contexts(contexts.to_vec());
        for list in &lists {
            for (offset, effect) in ranges() {
                for (odd, one) in [(0, false), (0, true), (1, false), (4, false)] {
                    let mut payload = vec![];
                    StatusQuery::encode(effect, list, &mut payload);
                    payload.truncate(payload.len() - odd.min(3));
                    if odd == 4 {
                        payload.truncate(4);
                    }
                    let mut request = Request::block_status(C, offset, payload.len() as u64)
                        .with_flags(CommandFlags::PAYLOAD_LEN);
                    request.flags.set(CommandFlags::REQ_ONE, one);
                    // "The payload form MUST occupy 8 + n*4 bytes"; "detects duplicate or unknown
                    // metacontext ids"; "an effect length exceeding the size of the export"; "MUST
                    // return at least one status descriptor".
                    let distinct = list.iter().collect::<std::collections::BTreeSet<_>>().len();
                    let fine = odd == 0
                        && distinct == list.len()
                        && distinct > 0
                        && !list.contains(&8)
                        && effect > 0
                        && u128::from(offset) + u128::from(effect) <= u128::from(SIZE)
                        && (offset | effect).is_multiple_of(minimum.into());
                    let found = session.check(&request).and_then(|()| {
                        let query = session.check_status_payload(&request, &payload)?;
                        assert_eq!(query.effect_length(), effect);
                        assert!(query.ids().eq(list.iter().copied()));
                        Ok(())
                    });
                    assert_eq!(
                        found.is_ok(),
                        fine,
                        "{request:?} {effect} {list:?}: {found:?}"
                    );
                    let errno = found.err().map(Refusal::errno);
                    assert!(errno.is_none_or(|errno| errno == Errno::EINVAL));
                    if fine {
                        executed += 1;
                    } else {
                        refused += 1;
                    }
                }
            }
        }
    }
    assert!(executed > 100 && refused > 1000, "{executed} {refused}");
}
