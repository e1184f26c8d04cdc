//! Requests for the status of some contexts only.

use nbd_proto::limits::Limits;
use nbd_proto::session::{ReplyStyle, Session};
use nbd_proto::transmission::{
    IllegalReply, Refusal, ReplyDecoder, ReplyEncoder, ReplyEvent, RequestDecoder, RequestEncoder,
    RequestEvent, StatusReply, Unexpectable, Unsendable,
};
use nbd_proto::wire::{CommandFlags, Errno, Request, StatusQuery};

use super::{ALLOCATION, C, OTHER, extent, session, structured};

fn extended() -> Session {
    session(ReplyStyle::Extended, 512, 1 << 40)
}

fn query(session: &Session, ids: &[u32]) -> (Request, Vec<u8>) {
    let mut wire = vec![];
    let request = RequestEncoder::new(session)
        .status_query(C, CommandFlags::empty(), 512..1 << 35, ids, &mut wire)
        .unwrap();
    (request, wire)
}

#[test]
fn a_query_says_how_much_and_which_contexts_in_its_payload() {
    let (request, wire) = query(&extended(), &[OTHER, ALLOCATION]);
    let expected = hex_literal::hex!(
        "21e41c71 0020 0007 0123456789abcdef 0000000000000200 0000000000000010"
        "00000007fffffe00 00010000 00000003"
    );
    assert_eq!(wire, expected);
    assert_eq!(request.length, 16);
    // The flag of the payload may be given; it is there anyway.
    let mut again = vec![];
    let (flags, ids) = (CommandFlags::PAYLOAD_LEN, [OTHER, ALLOCATION]);
    let sent =
        RequestEncoder::new(&extended()).status_query(C, flags, 512..1 << 35, &ids, &mut again);
    assert_eq!((sent, again), (Ok(request), wire));
}

#[test]
fn a_query_that_the_server_would_refuse_is_not_sent() {
    let session = extended();
    let encoder = RequestEncoder::new(&session);
    let refused = |range, ids: &[u32], flags| {
        let mut out = vec![9];
        let sent = encoder.status_query(C, flags, range, ids, &mut out);
        assert_eq!(out, [9]);
        sent.unwrap_err()
    };
    let none = CommandFlags::empty();
    for (range, ids, flags, why) in [
        (0..512, &[4][..], none, Refusal::BadStatusPayload),
        (0..512, &[], none, Refusal::BadStatusPayload),
        (0..512, &[OTHER, OTHER], none, Refusal::BadStatusPayload),
        (
            0..512,
            &[OTHER, ALLOCATION, 4],
            none,
            Refusal::BadStatusPayload,
        ),
        (512..512, &[OTHER], none, Refusal::EmptyStatus),
        (512..1 << 41, &[OTHER], none, Refusal::PastEnd),
        (512..600, &[OTHER], none, Refusal::Unaligned),
        (512..1024, &[OTHER], CommandFlags::DF, Refusal::BadFlags),
    ] {
        assert_eq!(refused(range, ids, flags), Unsendable::Refused(why));
    }
    let compact = structured();
    let sent =
        RequestEncoder::new(&compact).status_query(C, none, 0..512, &[OTHER], &mut Vec::new());
    assert_eq!(sent, Err(Unsendable::Refused(Refusal::BadFlags)));
}

#[test]
fn a_query_is_answered_for_the_contexts_in_it_and_no_others() {
    let session = extended();
    for ids in [&[OTHER][..], &[OTHER, ALLOCATION], &[ALLOCATION, OTHER]] {
        let (request, wire) = query(&session, ids);
        let mut server = RequestDecoder::new(&session, &Limits::new());
        let mut input = &wire[..];
        let taken = server.next(&mut input).unwrap();
        assert_eq!(taken, Some(RequestEvent::Request(request)));
        let Some(RequestEvent::Payload(payload)) = server.next(&mut input).unwrap() else {
            panic!("no payload");
        };
        assert_eq!(session.check(&request), Ok(()));
        let asked = session.check_status_payload(&request, payload).unwrap();

        let mut client = ReplyDecoder::new(&session, &Limits::new(), 1);
        client.expect_status(&request, &asked).unwrap();
        let mut reply = StatusReply::for_query(&session, &request, &asked).unwrap();
        assert_eq!(reply.effect_length(), (1 << 35) - 512);
        let mut wire = vec![];
        while let Some(id) = reply.owed() {
            let extents = [extent(1 << 34, 1), extent(1 << 39, id.into())];
            reply.context(id, extents, &mut wire).unwrap();
        }
        assert!(reply.is_ended());
        let mut input = &wire[..];
        let mut told = vec![];
        loop {
            match client.next(&mut input).unwrap().expect("an end") {
                ReplyEvent::Status {
                    context,
                    offset,
                    extents,
                    ..
                } => {
                    assert_eq!(offset, 512);
                    let expected = [extent(1 << 34, 1), extent(1 << 39, context.into())];
                    assert!(extents.eq(expected));
                    told.push(context);
                }
                ReplyEvent::Finished { result, .. } => {
                    assert_eq!(result, Ok(()));
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(told, ids);
    }
}

#[test]
fn a_payload_that_is_none_of_the_protocol_is_einval_and_the_session_lives() {
    let session = extended();
    let good = query(&session, &[OTHER]).1;
    let payloads: [&[u8]; 8] = [
        &[],
        &[0; 4],
        &[0; 9],
        &[0; 20],
        &[0, 0, 0, 0, 0, 0, 2, 0],
        // An unknown context; one twice; nothing asked about.
        &[0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 9],
        &[0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 3, 0, 0, 0, 3],
        &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3],
    ];
    for payload in payloads {
        let request =
            Request::block_status(C, 0, payload.len() as u64).with_flags(CommandFlags::PAYLOAD_LEN);
        let mut wire = request.to_extended().to_vec();
        wire.extend(payload);
        wire.extend(&good);
        let mut decoder = RequestDecoder::new(&session, &Limits::new());
        let mut input = &wire[..];
        assert_eq!(
            decoder.next(&mut input),
            Ok(Some(RequestEvent::Request(request)))
        );
        let refusal = match session.check(&request) {
            Ok(()) => {
                let Ok(Some(RequestEvent::Payload(came))) = decoder.next(&mut input) else {
                    panic!("no payload");
                };
                session.check_status_payload(&request, came).unwrap_err()
            }
            Err(why) => {
                decoder.skip_payload();
                why
            }
        };
        assert_eq!(refusal.errno(), Errno::EINVAL, "{payload:?}");
        let reply = ReplyEncoder::new(&session).fail(&request, refusal.errno());
        assert_eq!(reply.len(), 32 + 6);
        let next = decoder.next(&mut input).unwrap();
        assert!(matches!(next, Some(RequestEvent::Request(r)) if r.offset == 512));
    }
}

#[test]
fn a_query_that_has_to_be_refused_gets_no_status() {
    let session = extended();
    let begin = |offset, effect_length, ids: &[u32], flags| {
        let mut payload = vec![];
        StatusQuery::encode(effect_length, ids, &mut payload);
        let request = Request::block_status(C, offset, payload.len() as u64).with_flags(flags);
        let query = StatusQuery::parse(&payload).unwrap();
        StatusReply::for_query(&session, &request, &query).err()
    };
    let flag = CommandFlags::PAYLOAD_LEN;
    assert_eq!(begin(0, 512, &[OTHER], flag), None);
    for (offset, effect_length, ids, why) in [
        (0, 512, &[][..], Refusal::BadStatusPayload),
        (0, 512, &[4], Refusal::BadStatusPayload),
        (0, 512, &[OTHER, OTHER], Refusal::BadStatusPayload),
        (0, 0, &[OTHER], Refusal::EmptyStatus),
        (512, 1 << 40, &[OTHER], Refusal::PastEnd),
        (512, u64::MAX, &[OTHER], Refusal::PastEnd),
        (1, 512, &[OTHER], Refusal::Unaligned),
        (0, 513, &[OTHER], Refusal::Unaligned),
    ] {
        let expected = Some(IllegalReply::ToBeRefused(why));
        assert_eq!(begin(offset, effect_length, ids, flag), expected);
    }
    // The flag says whether there is a payload at all.
    let without = begin(0, 512, &[OTHER], CommandFlags::empty());
    assert_eq!(without, Some(IllegalReply::NotAStatus));
    let (request, _) = query(&session, &[OTHER]);
    let begun = StatusReply::new(&session, &request).err();
    assert_eq!(begun, Some(IllegalReply::NotAStatus));
}

#[test]
fn a_client_does_not_wait_for_contexts_that_cannot_come() {
    let session = extended();
    let mut payload = vec![];
    let mut expect = |ids: &[u32]| {
        payload.clear();
        StatusQuery::encode(512, ids, &mut payload);
        let request =
            Request::block_status(C, 0, payload.len() as u64).with_flags(CommandFlags::PAYLOAD_LEN);
        let query = StatusQuery::parse(&payload).unwrap();
        ReplyDecoder::new(&session, &Limits::new(), 1).expect_status(&request, &query)
    };
    assert_eq!(expect(&[OTHER, ALLOCATION]), Ok(()));
    for ids in [&[4][..], &[], &[OTHER, OTHER], &[OTHER, ALLOCATION, 4]] {
        assert_eq!(expect(ids), Err(Unexpectable::BadContexts));
    }
}
