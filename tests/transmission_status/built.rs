//! The builder against the rules, and against our client.

use nbd_proto::limits::Limits;
use nbd_proto::session::{ReplyStyle, Session};
use nbd_proto::transmission::{ReplyDecoder, ReplyEvent, StatusReply};
use nbd_proto::wire::{CommandFlags, Errno, Extent, Request};
use proptest::prelude::*;

use super::{C, chunks, one, session, status};

#[derive(Clone, Debug)]
struct Case {
    session: Session,
    request: Request,
    backend: Vec<Extent>,
}

fn case() -> impl Strategy<Value = Case> {
    let style = prop_oneof![Just(ReplyStyle::Structured), Just(ReplyStyle::Extended)];
    let unit = prop_oneof![Just(1u64), Just(512), Just(4096)];
    let extent = (0u64..40, 0u64..3, 0u64..40);
    let extents = prop::collection::vec(extent, 0..80);
    let tail = prop_oneof![3 => Just(0u64), 1 => 1u64..4096];
    let range = (0u64..64, 1u64..64);
    (style, unit, tail, range, any::<bool>(), extents).prop_map(
        |(style, unit, tail, (first, count), one, extents)| {
            let size = 64 * unit + tail % unit;
            let session = session(style, unit as u32, size);
            let count = count.min(64 - first);
            let mut request = Request::block_status(C, first * unit, count * unit);
            if one {
                request.flags |= CommandFlags::REQ_ONE;
            }
            let backend = extents.into_iter().map(|(blocks, flags, odd)| Extent {
                // Seldom empty or between two blocks.
                length: if odd < 37 {
                    (blocks + 1) * unit
                } else {
                    blocks
                },
                flags,
            });
            Case {
                session,
                request,
                backend: backend.collect(),
            }
        },
    )
}

/// The flags of each block of the export from the request on, as far as the backend told them.
fn blocks(case: &Case) -> Vec<u64> {
    let flags = case
        .backend
        .iter()
        .flat_map(|it| std::iter::repeat_n(it.flags, it.length as usize));
    let left = (case.session.size() - case.request.offset) as usize;
    flags.take(left).collect()
}

proptest! {
    #[test]
    fn whatever_the_backend_says_the_status_obeys_every_rule_and_is_true(case in case()) {
        let Case { session, request, backend } = &case;
        let unit = u64::from(session.block_sizes().minimum());
        let Ok(extents) = one(session, request, backend) else {
            // Refused only for a reason.
            let odd = |it: &Extent| it.length == 0 || !it.length.is_multiple_of(unit);
            prop_assert!(backend.is_empty() || backend.iter().any(odd));
            return Ok(());
        };
        // "one or more"; "MUST be nonzero"; "an integer multiple of any advertised minimum".
        prop_assert!(!extents.is_empty());
        prop_assert!(extents.iter().all(|it| it.length > 0 && it.length.is_multiple_of(unit)));
        let sum: u64 = extents.iter().map(|it| it.length).sum();
        let last = extents.last().unwrap().length;
        if request.flags.contains(CommandFlags::REQ_ONE) {
            prop_assert_eq!(extents.len(), 1);
            prop_assert!(last <= request.length);
        } else {
            // "the sum of the length fields of the first N-1 extents MUST be less than the
            // requested length"
            prop_assert!(sum - last < request.length);
        }
        prop_assert!(request.offset + sum <= session.size());
        // "SHOULD use different status values between consecutive descriptors"
        prop_assert!(extents.windows(2).all(|pair| pair[0].flags != pair[1].flags));
        // True, byte by byte.
        let told = extents
            .iter()
            .flat_map(|it| std::iter::repeat_n(it.flags, it.length as usize));
        prop_assert!(blocks(&case).iter().copied().take(sum as usize).eq(told));
        // And not less than is known, where more than one extent may be told.
        let known: u64 = backend.iter().map(|it| it.length).sum();
        if !request.flags.contains(CommandFlags::REQ_ONE) {
            prop_assert!(sum >= known.min(request.length));
        }
    }

    #[test]
    fn whatever_the_server_builds_the_client_takes_and_understands(
        case in case(),
        cuts in prop::collection::vec(1usize..40, 1..4),
    ) {
        let Case { session, request, backend } = &case;
        let mut wire = vec![];
        let mut reply = StatusReply::new(session, request).unwrap();
        let mut expected = vec![];
        while let Some(id) = reply.owed() {
            if reply.context(id, backend.iter().copied(), &mut wire).is_err() {
                reply.error(Errno::EIO, "the backend is odd", &mut wire).unwrap();
            }
        }
        prop_assert!(reply.is_ended());
        for chunk in chunks(&wire).iter().filter(|chunk| chunk.kind < 7) {
            expected.push(status(chunk));
        }
        let failed = chunks(&wire).iter().any(|chunk| chunk.kind > 7);

        let mut client = ReplyDecoder::new(session, &Limits::new(), 1);
        client.expect(request).unwrap();
        let (mut at, mut turn, mut finished) = (0, 0, None);
        let mut told: Vec<(u32, Vec<Extent>)> = vec![];
        while at < wire.len() {
            let end = wire.len().min(at + cuts[turn % cuts.len()]);
            turn += 1;
            let mut input = &wire[at..end];
            at = end;
            while let Some(event) = client.next(&mut input).unwrap() {
                match event {
                    ReplyEvent::Status { context, offset, extents, .. } => {
                        if told.last().is_none_or(|(id, _)| *id != context) {
                            told.push((context, vec![]));
                        }
                        let (_, earlier) = told.last_mut().unwrap();
                        let before: u64 = earlier.iter().map(|it| it.length).sum();
                        prop_assert_eq!(offset, request.offset + before);
                        earlier.extend(extents);
                    }
                    ReplyEvent::Error { .. } => {}
                    ReplyEvent::Finished { result, .. } => finished = Some(result),
                    other => panic!("{other:?}"),
                }
            }
            prop_assert!(input.is_empty());
        }
        prop_assert_eq!(told, expected);
        prop_assert_eq!(finished, Some(if failed { Err(Errno::EIO) } else { Ok(()) }));
        prop_assert_eq!(client.on_eof(), Ok(()));
    }
}
