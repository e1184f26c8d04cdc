//! The rules of the client's side: what a server may say, and every way in which it may not.

mod handshake_support;

use handshake_support::*;
use nbd_proto::error::{Fatal, Refused};
use nbd_proto::handshake::{
    ClientConfig, ClientHandshake, ClientStep, NegotiateError, Negotiated, Negotiator, Progress,
    Wanted,
};
use nbd_proto::limits::Limits;
use nbd_proto::session::{BadBlockSizes, BlockSizes, ReplyStyle, Session};
use nbd_proto::wire::{
    BadMagic, ClientFlags, ClientOption, Info, InfoType, Malformed, Name, OldstyleGreeting,
    OptionCode, OptionReply, OptionReplyHeader, ReplyType, TransmissionFlags,
};

const GO: OptionCode = OptionCode::GO;
const INFO: OptionCode = OptionCode::INFO;
const LIST: OptionCode = OptionCode::LIST;
const SR: OptionCode = OptionCode::STRUCTURED_REPLY;
const HAS: TransmissionFlags = TransmissionFlags::HAS_FLAGS;

fn ask(option: &ClientOption, bytes: &[u8]) -> Run {
    run_client(
        ClientConfig::new(),
        std::slice::from_ref(option),
        bytes,
        &[],
    )
}

fn go() -> ClientOption {
    ClientOption::Go(request("disk", &[InfoType::BLOCK_SIZE]))
}

fn export(flags: TransmissionFlags) -> OptionReply {
    OptionReply::Info(Info::Export { size: 4096, flags })
}

fn sizes(minimum: u32, preferred: u32, max_payload: u32) -> OptionReply {
    OptionReply::Info(Info::BlockSize {
        minimum,
        preferred,
        max_payload,
    })
}

fn error(code: ReplyType, message: &str) -> OptionReply {
    OptionReply::Error {
        code,
        message: name(message),
    }
}

/// The answers of a server to a `GO`, and what the client makes of them.
fn go_answered(replies: &[OptionReply]) -> Run {
    let replies: Vec<_> = replies.iter().map(|reply| (GO, reply.clone())).collect();
    ask(&go(), &server_bytes(3, &replies))
}

fn raw_reply(option: OptionCode, reply: ReplyType, length: u32, body: &[u8]) -> Vec<u8> {
    let header = OptionReplyHeader {
        option,
        reply,
        length,
    };
    let mut bytes = server_bytes(3, &[]);
    bytes.extend_from_slice(&header.to_bytes());
    bytes.extend_from_slice(body);
    bytes
}

/// Runs a negotiator over all that a server says; its output, and how it ended.
fn negotiate(wanted: Wanted, bytes: &[u8]) -> (Vec<u8>, Result<Progress, NegotiateError>) {
    let mut out = vec![];
    let mut negotiator = Negotiator::new(wanted, ClientConfig::new());
    let progress = negotiator.advance(&mut &bytes[..], &mut out);
    if let Err(error) = &progress {
        let before = out.len();
        assert_eq!(
            negotiator.advance(&mut &[][..], &mut out).as_ref(),
            Err(error)
        );
        assert_eq!(out.len(), before, "what is over writes no more");
    }
    (out, progress)
}

fn negotiated(wanted: Wanted, bytes: &[u8]) -> (Vec<u8>, Negotiated) {
    match negotiate(wanted, bytes) {
        (out, Ok(Progress::Done(negotiated))) => (out, negotiated),
        other => panic!("not negotiated: {other:?}"),
    }
}

fn refused(option: OptionCode, code: ReplyType, message: &str) -> NegotiateError {
    NegotiateError::Refused(Refused {
        option,
        code,
        message: name(message),
    })
}

#[test]
fn a_client_sets_only_flags_that_were_offered() {
    for (offered, sent) in [(0, 0), (1, 1), (2, 2), (3, 3), (0xffff, 3)] {
        let run = ask(&go(), &server_bytes(offered, &[]));
        assert_eq!(
            ClientFlags::from_bytes(run.output.first_chunk().unwrap()).bits(),
            sent
        );
    }
    let config = ClientConfig::new().with_no_zeroes(false);
    let run = run_client(config, &[go()], &server_bytes(3, &[]), &[]);
    assert_eq!(run.output[..4], [0, 0, 0, 1]);
}

#[test]
fn what_is_not_nbd_is_refused() {
    let run = ask(&go(), b"HTTP/1.1 400 Bad Request\r\n");
    assert_eq!(
        run.end,
        Err(Fatal::NotNbd(BadMagic {
            found: u64::from_be_bytes(*b"HTTP/1.1")
        }))
    );
    assert!(run.output.is_empty());
}

#[test]
fn an_oldstyle_server_is_known_by_its_first_16_bytes_and_refused() {
    let greeting = OldstyleGreeting::default().to_bytes();
    for len in [16, 17, 152] {
        let run = ask(&go(), &greeting[..len]);
        assert_eq!(run.end, Err(Fatal::Oldstyle));
        assert!(run.output.is_empty());
    }
    assert!(ask(&go(), &greeting[..15]).end.is_ok());
}

#[test]
fn go_is_answered_with_infos_in_any_order_and_ends_in_a_session() {
    let unknown = OptionReply::Info(Info::Unknown {
        info: InfoType(77),
        data: vec![1, 2, 3],
    });
    let run = go_answered(&[
        unknown.clone(),
        sizes(512, 4096, 65536),
        export(HAS),
        OptionReply::Ack,
    ]);
    let session = Session::new(name("disk"), 4096, HAS)
        .with_block_sizes(BlockSizes::new(512, 4096, 65536).unwrap());
    assert_eq!(
        run.events,
        [
            Event::Reply(GO, unknown),
            Event::Reply(GO, sizes(512, 4096, 65536)),
            Event::Reply(GO, export(HAS)),
            Event::Done(session),
        ]
    );
}

#[test]
fn list_and_info_hand_out_every_reply_and_leave_the_session_open() {
    let entry = |text: &str| OptionReply::Server {
        name: name(text),
        description: Name::EMPTY,
    };
    let options = [
        ClientOption::List,
        ClientOption::Info(request("a", &[])),
        ClientOption::StructuredReply,
    ];
    let replies = [
        (LIST, entry("a")),
        (LIST, entry("b")),
        (LIST, OptionReply::Ack),
        (INFO, export(HAS)),
        (INFO, OptionReply::Ack),
        (SR, OptionReply::Ack),
        (OptionCode::ABORT, OptionReply::Ack),
    ];
    let run = run_client(
        ClientConfig::new(),
        &options,
        &server_bytes(3, &replies),
        &[],
    );
    let mut expected: Vec<_> = replies[..6]
        .iter()
        .map(|(option, reply)| Event::Reply(*option, reply.clone()))
        .collect();
    expected.push(Event::Aborted);
    assert_eq!(run.events, expected);
    let abort = [&options[..], &[ClientOption::Abort]].concat();
    assert_eq!(run.output, client_bytes(fixed(), &abort));
}

#[test]
fn an_ack_without_size_and_flags_is_a_violation() {
    for option in [GO, INFO] {
        let sent = match option {
            GO => go(),
            _ => ClientOption::Info(request("", &[])),
        };
        let replies = [(option, sizes(1, 512, 512)), (option, OptionReply::Ack)];
        let run = ask(&sent, &server_bytes(3, &replies));
        assert_eq!(run.end, Err(Fatal::NoExportInfo { option }));
    }
}

#[test]
fn size_constraints_that_break_the_rules_are_a_violation() {
    for (bad, why) in [
        (sizes(0, 512, 512), BadBlockSizes::Minimum(0)),
        (sizes(3, 512, 512), BadBlockSizes::Minimum(3)),
        (
            sizes(1 << 17, 1 << 17, 1 << 17),
            BadBlockSizes::Minimum(1 << 17),
        ),
        (sizes(1, 256, 512), BadBlockSizes::Preferred(256)),
        (sizes(1, 4096, 512), BadBlockSizes::MaxPayload(512)),
    ] {
        assert_eq!(
            go_answered(&[export(HAS), bad, OptionReply::Ack]).end,
            Err(Fatal::BlockSizes(why))
        );
    }
}

#[test]
fn infos_of_a_wrong_length_are_a_violation() {
    for (body, why) in [
        (&[0u8][..], Malformed::Truncated),
        (&[0; 11], Malformed::Truncated),
        (&[0; 13], Malformed::Trailing { excess: 1 }),
        (&[0, 3, 0, 0, 0, 1], Malformed::Truncated),
    ] {
        let length = u32::try_from(body.len()).unwrap();
        let run = ask(&go(), &raw_reply(GO, ReplyType::INFO, length, body));
        let reply = ReplyType::INFO;
        let option = GO;
        assert_eq!(run.end, Err(Fatal::MalformedReply { option, reply, why }));
    }
}

#[test]
fn a_reply_to_another_option_is_a_violation() {
    let run = ask(&go(), &server_bytes(3, &[(INFO, export(HAS))]));
    assert_eq!(
        run.end,
        Err(Fatal::WrongOption {
            sent: GO,
            answered: INFO
        })
    );
}

#[test]
fn a_reply_after_the_final_one_is_taken_for_the_answer_to_the_next_and_is_a_violation() {
    let replies = [(LIST, OptionReply::Ack), (LIST, OptionReply::Ack)];
    let options = [ClientOption::List, ClientOption::StructuredReply];
    let run = run_client(
        ClientConfig::new(),
        &options,
        &server_bytes(3, &replies),
        &[],
    );
    assert_eq!(
        run.end,
        Err(Fatal::WrongOption {
            sent: SR,
            answered: LIST
        })
    );
}

#[test]
fn a_reply_of_a_kind_that_the_option_cannot_have_is_a_violation() {
    let server = OptionReply::Server {
        name: Name::EMPTY,
        description: Name::EMPTY,
    };
    let context = OptionReply::MetaContext {
        id: 0,
        name: Name::EMPTY,
    };
    let unknown = OptionReply::Unknown {
        reply: ReplyType(99),
        data: vec![],
    };
    for (sent, wrong) in [
        (go(), &server),
        (go(), &context),
        (go(), &unknown),
        (ClientOption::List, &export(HAS)),
        (ClientOption::List, &unknown),
        (ClientOption::StructuredReply, &server),
        (ClientOption::Abort, &export(HAS)),
    ] {
        let option = sent.code();
        let run = ask(&sent, &server_bytes(3, &[(option, wrong.clone())]));
        assert_eq!(
            run.end,
            Err(Fatal::UnexpectedReply {
                option,
                reply: wrong.reply_type()
            })
        );
    }
}

#[test]
fn an_ack_with_data_and_a_reply_without_magic_are_violations() {
    let run = ask(&go(), &raw_reply(GO, ReplyType::ACK, 1, &[0]));
    assert!(matches!(run.end, Err(Fatal::MalformedReply { .. })));
    let mut bytes = server_bytes(3, &[(GO, OptionReply::Ack)]);
    bytes[18] ^= 1;
    assert!(matches!(ask(&go(), &bytes).end, Err(Fatal::ReplyMagic(_))));
}

#[test]
fn a_reply_above_the_limit_ends_the_session_at_its_header() {
    let limit = Limits::new().max_option_body();
    for length in [limit + 1, u32::MAX] {
        for reply in [ReplyType::INFO, ReplyType::ERR_POLICY, ReplyType::ACK] {
            let run = ask(&go(), &raw_reply(GO, reply, length, &[]));
            let option = GO;
            assert_eq!(
                run.end,
                Err(Fatal::ReplyTooLong {
                    option,
                    length,
                    limit
                })
            );
        }
    }
    assert!(
        ask(&go(), &raw_reply(GO, ReplyType::INFO, limit, &[]))
            .end
            .is_ok()
    );
}

#[test]
fn replies_without_end_are_cut_off() {
    let config = ClientConfig::new().with_limits(Limits::new().with_max_replies(3));
    let entry = OptionReply::Server {
        name: Name::EMPTY,
        description: Name::EMPTY,
    };
    let mut replies = vec![(LIST, entry); 3];
    replies.push((LIST, OptionReply::Ack));
    let enough = run_client(
        config,
        &[ClientOption::List],
        &server_bytes(3, &replies),
        &[],
    );
    assert_eq!(enough.end, Ok(()));
    replies.insert(0, replies[0].clone());
    let run = run_client(
        config,
        &[ClientOption::List],
        &server_bytes(3, &replies),
        &[],
    );
    assert_eq!(
        run.end,
        Err(Fatal::TooManyReplies {
            option: LIST,
            limit: 3
        })
    );
}

#[test]
fn an_error_message_that_is_no_string_does_not_end_the_session() {
    let mut bytes = raw_reply(LIST, ReplyType::ERR_POLICY, 3, b"a\xff\0");
    OptionReply::Ack.encode(OptionCode::ABORT, &mut bytes);
    let run = ask(&ClientOption::List, &bytes);
    let mended = Event::Reply(LIST, error(ReplyType::ERR_POLICY, "a\u{fffd}\u{fffd}"));
    assert_eq!(run.events, [mended, Event::Aborted]);
}

#[test]
fn flags_that_contradict_the_session_are_not_believed() {
    let df = TransmissionFlags::SEND_DF;
    let zero = TransmissionFlags::SEND_WRITE_ZEROES;
    let fast = TransmissionFlags::SEND_FAST_ZERO;
    let read_only = TransmissionFlags::READ_ONLY;
    let unknown = TransmissionFlags::from_bits_retain(1 << 14);
    for (said, believed) in [
        (HAS | df, HAS),
        (HAS | fast, HAS),
        (HAS | zero | fast, HAS | zero | fast),
        (HAS | TransmissionFlags::BLOCK_STATUS_PAYLOAD, HAS),
        (HAS | unknown, HAS | unknown),
        (read_only | zero, read_only),
    ] {
        let run = go_answered(&[export(said), OptionReply::Ack]);
        let Some(Event::Done(session)) = run.events.last() else {
            panic!("no session");
        };
        assert_eq!(session.flags(), believed, "{said:?}");
    }
}

#[test]
fn the_same_may_be_told_twice_but_not_two_things() {
    let info = |info| OptionReply::Info(info);
    let other = info(Info::Export {
        size: 1,
        flags: HAS,
    });
    let names = ["a", "b"].map(|text| info(Info::Name(name(text))));
    let texts = ["a", "b"].map(|text| info(Info::Description(name(text))));
    let blocks = [sizes(1, 512, 512), sizes(1, 512, 1024)];
    for (told, again, kind) in [
        (&export(HAS), &other, InfoType::EXPORT),
        (&blocks[0], &blocks[1], InfoType::BLOCK_SIZE),
        (&names[0], &names[1], InfoType::NAME),
        (&texts[0], &texts[1], InfoType::DESCRIPTION),
    ] {
        let same = [told.clone(), told.clone(), export(HAS), OptionReply::Ack];
        assert!(matches!(
            go_answered(&same).events.last(),
            Some(Event::Done(_))
        ));
        let other = [told.clone(), again.clone()];
        let contradiction = Fatal::ContradictoryInfo { info: kind };
        assert_eq!(go_answered(&other).end, Err(contradiction));
    }
}

#[test]
fn a_server_that_is_not_fixed_newstyle_is_sent_nothing_but_export_name() {
    let options = [
        ClientOption::List,
        ClientOption::StructuredReply,
        go(),
        ClientOption::ExportName(name("disk")),
    ];
    let mut bytes = server_bytes(0, &[]);
    export_name_reply(4096, HAS).encode(false, &mut bytes);
    let run = run_client(ClientConfig::new(), &options, &bytes, &[]);
    let unsup = |option| Event::Reply(option, error(ReplyType::ERR_UNSUP, ""));
    assert_eq!(
        run.events,
        [
            unsup(LIST),
            unsup(SR),
            unsup(GO),
            Event::Done(Session::new(name("disk"), 4096, HAS)),
        ]
    );
    assert_eq!(
        run.output,
        client_bytes(ClientFlags::empty(), &options[3..])
    );
    assert_eq!(
        ask(&ClientOption::Abort, &server_bytes(0, &[])).events,
        [Event::Aborted]
    );
}

#[test]
fn a_server_that_shuts_down_is_sent_an_abort() {
    let down = error(ReplyType::ERR_SHUTDOWN, "bye");
    // The client would rather go on, but is not asked.
    let options = [ClientOption::List, go()];
    let bytes = server_bytes(3, &[(LIST, down.clone())]);
    let run = run_client(ClientConfig::new(), &options, &bytes, &[]);
    assert_eq!(run.events, [Event::Reply(LIST, down)]);
    let sent = [ClientOption::List, ClientOption::Abort];
    assert_eq!(run.output, client_bytes(fixed(), &sent));
    assert_eq!(run.eof, Ok(()), "it need not answer");
}

#[test]
fn the_end_of_input_means_what_was_asked_last() {
    let greeting = server_bytes(3, &[]);
    let export_name = ClientOption::ExportName(name("x"));
    for (sent, expected) in [
        (&ClientOption::Abort, Ok(())),
        (
            &export_name,
            Err(Fatal::ExportUnavailable { name: name("x") }),
        ),
        (&go(), Err(Fatal::Closed)),
        (&ClientOption::List, Err(Fatal::Closed)),
    ] {
        assert_eq!(ask(sent, &greeting).eof, expected, "{sent:?}");
        assert_eq!(ask(sent, &greeting[..5]).eof, Err(Fatal::Closed));
    }
    let mut partial = greeting;
    partial.push(0);
    assert_eq!(ask(&export_name, &partial).eof, Err(Fatal::Closed));
}

#[test]
fn a_negotiator_gets_all_that_it_wants() {
    let bytes = server_bytes(
        3,
        &[
            (SR, OptionReply::Ack),
            (GO, export(HAS | TransmissionFlags::SEND_DF)),
            (GO, sizes(512, 512, 512)),
            (GO, OptionReply::Info(Info::Name(name("Disk")))),
            (GO, OptionReply::Info(Info::Description(name("text")))),
            (GO, OptionReply::Ack),
        ],
    );
    let wanted = compact("disk").with_name(true).with_description(true);
    let (out, got) = negotiated(wanted, &bytes);
    assert_eq!(got.option, Some(GO));
    assert!(got.block_sizes_announced);
    assert_eq!(got.name, Some(name("Disk")));
    assert_eq!(got.description, Some(name("text")));
    assert_eq!(got.session.export(), &name("disk"));
    assert_eq!(got.session.reply_style(), ReplyStyle::Structured);
    assert_eq!(got.session.flags(), HAS | TransmissionFlags::SEND_DF);
    let infos = [InfoType::BLOCK_SIZE, InfoType::NAME, InfoType::DESCRIPTION];
    let sent = [
        ClientOption::StructuredReply,
        ClientOption::Go(request("disk", &infos)),
    ];
    assert_eq!(out, client_bytes(fixed(), &sent));
}

#[test]
fn a_negotiator_does_without_structured_replies_whatever_the_reason() {
    for code in [
        ReplyType::ERR_UNSUP,
        ReplyType::ERR_POLICY,
        ReplyType::ERR_INVALID,
        ReplyType(0x8000_7777),
    ] {
        let bytes = server_bytes(
            3,
            &[
                (SR, error(code, "")),
                (GO, export(HAS)),
                (GO, OptionReply::Ack),
            ],
        );
        let (_, got) = negotiated(compact("disk"), &bytes);
        assert_eq!(got.session.reply_style(), ReplyStyle::Simple);
        assert!(!got.block_sizes_announced);
    }
}

#[test]
fn a_negotiator_falls_back_to_export_name_where_go_is_not_known() {
    let mut bytes = server_bytes(
        3,
        &[
            (SR, OptionReply::Ack),
            (GO, error(ReplyType::ERR_UNSUP, "")),
        ],
    );
    export_name_reply(4096, HAS).encode(true, &mut bytes);
    let (out, got) = negotiated(compact("disk"), &bytes);
    assert_eq!(got.option, Some(OptionCode::EXPORT_NAME));
    assert_eq!(got.session.reply_style(), ReplyStyle::Structured);
    let sent = [
        ClientOption::StructuredReply,
        go(),
        ClientOption::ExportName(name("disk")),
    ];
    assert_eq!(out, client_bytes(fixed(), &sent));
}

#[test]
fn what_was_told_before_an_error_is_forgotten() {
    let mut bytes = server_bytes(
        3,
        &[
            (GO, sizes(4096, 4096, 4096)),
            (GO, error(ReplyType::ERR_UNSUP, "")),
        ],
    );
    export_name_reply(4096, HAS).encode(true, &mut bytes);
    let wanted = compact("disk").with_structured_replies(false);
    let (_, got) = negotiated(wanted, &bytes);
    assert!(!got.block_sizes_announced);
    assert_eq!(got.session.block_sizes(), BlockSizes::DEFAULT);
}

#[test]
fn a_negotiator_that_is_refused_says_goodbye() {
    let wanted = || compact("disk").with_structured_replies(false);
    for code in [
        ReplyType::ERR_UNKNOWN,
        ReplyType::ERR_POLICY,
        ReplyType::ERR_TLS_REQD,
        ReplyType::ERR_INVALID,
        ReplyType::ERR_SHUTDOWN,
        ReplyType(0x8000_7777),
    ] {
        let bytes = server_bytes(3, &[(GO, error(code, "why"))]);
        let (out, end) = negotiate(wanted(), &bytes);
        assert_eq!(end, Err(refused(GO, code, "why")));
        let sent = [go(), ClientOption::Abort];
        assert_eq!(out, client_bytes(fixed(), &sent), "{code}");
    }
    // No option will succeed without TLS, or in a server that goes away.
    for code in [ReplyType::ERR_TLS_REQD, ReplyType::ERR_SHUTDOWN] {
        let bytes = server_bytes(3, &[(SR, error(code, ""))]);
        let (out, end) = negotiate(compact("disk"), &bytes);
        assert_eq!(end, Err(refused(SR, code, "")));
        let sent = [ClientOption::StructuredReply, ClientOption::Abort];
        assert_eq!(out, client_bytes(fixed(), &sent));
    }
}

#[test]
fn the_machine_never_wants_more_than_the_rest_of_the_message() {
    let mut bytes = server_bytes(3, &[(GO, export(HAS)), (GO, OptionReply::Ack)]);
    bytes.extend_from_slice(b"a reply");
    let (mut rest, mut out, mut wanted) = (&bytes[..], vec![], vec![]);
    let mut machine = ClientHandshake::new(ClientConfig::new());
    for turn in 0.. {
        assert!(turn < 20, "does not come to an end: {wanted:?}");
        let wants = machine.wants();
        let (mut input, after) = rest.split_at(wants);
        if wants > 0 {
            wanted.push(wants);
        }
        rest = after;
        match machine.step(&mut input, &mut out).unwrap() {
            ClientStep::NeedInput | ClientStep::Reply { .. } => {}
            ClientStep::Ready(ready) => ready.go(request("disk", &[])),
            ClientStep::Done(_) => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(wanted, [18, 20, 12, 20]);
    assert_eq!(rest, b"a reply");
    assert_eq!(machine.wants(), 0);
}

#[test]
fn a_client_knows_what_the_session_has_become_before_it_asks() {
    for (flags, fixed) in [(0, false), (1, true), (2, false), (3, true)] {
        let bytes = server_bytes(flags, &[]);
        let (mut input, mut out) = (&bytes[..], vec![]);
        let mut machine = ClientHandshake::new(ClientConfig::new());
        assert!(!machine.is_fixed_newstyle(), "not known yet");
        match machine.step(&mut input, &mut out).unwrap() {
            ClientStep::Ready(ready) => assert_eq!(ready.is_fixed_newstyle(), fixed),
            other => panic!("{other:?}"),
        }
        assert_eq!(machine.is_fixed_newstyle(), fixed);
        assert!(!machine.is_tls());
    }
}
