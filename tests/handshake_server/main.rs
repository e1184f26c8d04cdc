//! The rules of the server's side, one after the other, as transcripts: what a client sends, the
//! exact steps that come of it, and the exact replies.

#[path = "../handshake_support/mod.rs"]
mod handshake_support;

mod limits;

use handshake_support::*;
use nbd_proto::error::{Fatal, Refusal};
use nbd_proto::handshake::{Ask, Export, ServerConfig, ServerHandshake, Step};
use nbd_proto::session::{BlockSizes, ReplyStyle, Session};
use nbd_proto::wire::{
    BadString, ClientFlags, ClientOption, ExportNameReply, Info, InfoType, Malformed,
    MetaContextRequest, Name, OptionCode, OptionHeader, OptionReply, ReplyType, TransmissionFlags,
};

fn serve(options: &[ClientOption]) -> Run {
    run_server(ServerConfig::new(), &client_bytes(fixed(), options), &[])
}

/// Serves options whose header and body are given as they are.
fn serve_raw(config: ServerConfig, options: &[(OptionCode, &[u8])]) -> Run {
    let mut bytes = fixed().to_bytes().to_vec();
    for (option, body) in options {
        let header = OptionHeader {
            option: *option,
            length: u32::try_from(body.len()).unwrap(),
        };
        bytes.extend_from_slice(&header.to_bytes());
        bytes.extend_from_slice(body);
    }
    run_server(config, &bytes, &[])
}

/// The kinds of the replies.
fn kinds(run: &Run) -> Vec<(OptionCode, ReplyType)> {
    let (replies, rest) = replies(&run.output);
    assert!(rest.is_empty());
    replies
        .iter()
        .map(|(option, reply)| (*option, reply.reply_type()))
        .collect()
}

fn infos(run: &Run) -> Vec<Info> {
    let (replies, _) = replies(&run.output);
    let infos = replies.into_iter().filter_map(|(_, reply)| match reply {
        OptionReply::Info(info) => Some(info),
        _ => None,
    });
    infos.collect()
}

fn go(export: &str, infos: &[InfoType]) -> ClientOption {
    ClientOption::Go(request(export, infos))
}

fn info(export: &str, infos: &[InfoType]) -> ClientOption {
    ClientOption::Info(request(export, infos))
}

const FLUSH: TransmissionFlags = TransmissionFlags::SEND_FLUSH;
const HAS: TransmissionFlags = TransmissionFlags::HAS_FLAGS;
const DF: TransmissionFlags = TransmissionFlags::SEND_DF;

fn session(flags: TransmissionFlags, style: ReplyStyle) -> Session {
    Session::new(name("disk"), 1 << 30, flags)
        .with_reply_style(style)
        .with_block_sizes(disk().block_sizes)
}

#[test]
fn a_whole_conversation_has_exactly_these_steps_and_replies() {
    let all = [InfoType::NAME, InfoType::DESCRIPTION, InfoType::BLOCK_SIZE];
    let run = serve(&[
        ClientOption::StructuredReply,
        ClientOption::List,
        info("gone", &all),
        info("disk", &[]),
        go("disk", &all),
    ]);
    let done = session(HAS | FLUSH | DF, ReplyStyle::Structured);
    assert_eq!(
        run.events,
        [
            Event::List,
            Event::Export(OptionCode::INFO, name("gone")),
            Event::Export(OptionCode::INFO, name("disk")),
            Event::Export(OptionCode::GO, name("disk")),
            Event::Done(done),
        ]
    );
    let export = OptionReply::Info(Info::Export {
        size: 1 << 30,
        flags: HAS | FLUSH | DF,
    });
    let sizes = OptionReply::Info(Info::BlockSize {
        minimum: 512,
        preferred: 4096,
        max_payload: 1 << 20,
    });
    let server = |export: &str, text: &str| OptionReply::Server {
        name: name(export),
        description: name(text),
    };
    let unknown = OptionReply::Error {
        code: ReplyType::ERR_UNKNOWN,
        message: name("there is no such export"),
    };
    assert_eq!(
        replies(&run.output).0,
        [
            (OptionCode::STRUCTURED_REPLY, OptionReply::Ack),
            (OptionCode::LIST, server("disk", "a disk")),
            (OptionCode::LIST, server("other", "")),
            (OptionCode::LIST, OptionReply::Ack),
            (OptionCode::INFO, unknown),
            (OptionCode::INFO, export.clone()),
            (OptionCode::INFO, sizes.clone()),
            (OptionCode::INFO, OptionReply::Ack),
            (OptionCode::GO, export),
            (OptionCode::GO, OptionReply::Info(Info::Name(name("disk")))),
            (
                OptionCode::GO,
                OptionReply::Info(Info::Description(name("a disk")))
            ),
            (OptionCode::GO, sizes),
            (OptionCode::GO, OptionReply::Ack),
        ]
    );
}

#[test]
fn export_name_is_answered_with_and_without_zeroes() {
    for (flags, len) in [(ClientFlags::FIXED_NEWSTYLE, 134), (fixed(), 10)] {
        let bytes = client_bytes(flags, &[ClientOption::ExportName(name("disk"))]);
        let run = run_server(ServerConfig::new(), &bytes, &[]);
        let reply = &run.output[18..];
        assert_eq!(reply.len(), len);
        let flags = HAS | FLUSH;
        assert_eq!(
            ExportNameReply::from_bytes(reply.first_chunk().unwrap()),
            export_name_reply(1 << 30, flags)
        );
        assert!(reply[10..].iter().all(|&byte| byte == 0));
        assert_eq!(
            run.events.last(),
            Some(&Event::Done(session(flags, ReplyStyle::Simple)))
        );
    }
}

#[test]
fn export_name_that_is_refused_or_malformed_ends_the_session_without_an_answer() {
    let refused = |export: &str, why| Fatal::ExportRefused {
        name: name(export),
        why,
    };
    for (export, why) in [
        ("gone", Refusal::UnknownExport),
        ("ignored", Refusal::UnknownExport),
        ("secret", Refusal::TlsRequired),
    ] {
        let run = serve(&[ClientOption::ExportName(name(export)), ClientOption::Abort]);
        assert_eq!(run.end, Err(refused(export, why)));
        assert_eq!(run.output.len(), 18, "only the greeting");
    }
    for (body, why) in [
        (&b"a\0b"[..], BadString::Nul),
        (b"\xff", BadString::NotUtf8),
    ] {
        let run = serve_raw(ServerConfig::new(), &[(OptionCode::EXPORT_NAME, body)]);
        assert_eq!(run.end, Err(Fatal::ExportName(Malformed::String(why))));
        assert_eq!(run.output.len(), 18);
    }
}

#[test]
fn abort_is_acknowledged_even_with_data() {
    for data in [&b""[..], b"goodbye"] {
        let run = serve_raw(ServerConfig::new(), &[(OptionCode::ABORT, data)]);
        assert_eq!(run.events, [Event::Aborted]);
        assert_eq!(kinds(&run), [(OptionCode::ABORT, ReplyType::ACK)]);
        assert_eq!(run.eof, Ok(()));
    }
}

#[test]
fn options_without_a_body_do_not_take_one() {
    let options: [(OptionCode, &[u8]); 4] = [
        (OptionCode::LIST, b"x"),
        (OptionCode::STRUCTURED_REPLY, &[0; 4]),
        (OptionCode::GO, &[0; 6]),
        (OptionCode::ABORT, b""),
    ];
    let run = serve_raw(ServerConfig::new(), &options);
    // The refused STRUCTURED_REPLY left no trace.
    let done = Event::Done(
        Session::new(Name::EMPTY, 1 << 30, HAS | FLUSH).with_block_sizes(disk().block_sizes),
    );
    assert_eq!(
        run.events,
        [Event::Export(OptionCode::GO, Name::EMPTY), done]
    );
    assert_eq!(
        kinds(&run)[..2],
        [
            (OptionCode::LIST, ReplyType::ERR_INVALID),
            (OptionCode::STRUCTURED_REPLY, ReplyType::ERR_INVALID),
        ]
    );
}

#[test]
fn structured_replies_are_granted_again_and_df_goes_with_them() {
    let run = serve(&[
        info("disk", &[]),
        ClientOption::StructuredReply,
        ClientOption::StructuredReply,
        go("disk", &[]),
    ]);
    let flags: Vec<_> = infos(&run)
        .iter()
        .filter_map(|info| match info {
            Info::Export { flags, .. } => Some(*flags),
            _ => None,
        })
        .collect();
    assert_eq!(flags, [HAS | FLUSH, HAS | FLUSH | DF]);
    let acks = kinds(&run);
    let ack = (OptionCode::STRUCTURED_REPLY, ReplyType::ACK);
    assert_eq!(acks.iter().filter(|kind| **kind == ack).count(), 2);
}

#[test]
fn structured_replies_that_are_not_offered_are_unsupported() {
    let config = ServerConfig::new().with_structured_replies(false);
    let run = serve_raw(
        config,
        &[
            (OptionCode::STRUCTURED_REPLY, b""),
            (OptionCode::STRUCTURED_REPLY, b"data"),
            (OptionCode::GO, &[0; 6]),
        ],
    );
    let unsup = (OptionCode::STRUCTURED_REPLY, ReplyType::ERR_UNSUP);
    assert_eq!(kinds(&run)[..2], [unsup, unsup]);
    let Some(Event::Done(session)) = run.events.last() else {
        panic!("no session");
    };
    assert_eq!(session.reply_style(), ReplyStyle::Simple);
    assert_eq!(session.flags(), HAS | FLUSH);
}

#[test]
fn flags_that_contradict_the_session_are_not_sent() {
    let everything = TransmissionFlags::from_bits_retain(0xfffe);
    let lies = TransmissionFlags::SEND_FAST_ZERO | TransmissionFlags::BLOCK_STATUS_PAYLOAD;
    for (given, sent) in [
        (TransmissionFlags::empty(), HAS),
        (lies, HAS),
        (
            everything,
            (everything | HAS) - DF - TransmissionFlags::BLOCK_STATUS_PAYLOAD,
        ),
    ] {
        let bytes = client_bytes(fixed(), &[go("", &[])]);
        let run = run_server_with(ServerConfig::new(), &bytes, &[], |ask| {
            if let Ask::Export(ask) = ask {
                ask.accept(&Export::new(Name::EMPTY, 5, given));
            }
        });
        assert_eq!(
            infos(&run),
            [Info::Export {
                size: 5,
                flags: sent
            }]
        );
    }
}

#[test]
fn options_that_are_not_supported_are_skipped_and_answered() {
    let contexts = MetaContextRequest {
        export: name("disk"),
        queries: vec![name("base:allocation")],
    };
    let unknown = ClientOption::Unknown {
        option: OptionCode(0xdead_beef),
        // Looks like an ABORT, but it is the body of another option.
        data: client_bytes(ClientFlags::empty(), &[ClientOption::Abort]),
    };
    let options = [
        ClientOption::StartTls,
        ClientOption::ListMetaContext(contexts.clone()),
        ClientOption::SetMetaContext(contexts),
        ClientOption::ExtendedHeaders,
        unknown,
        ClientOption::Unknown {
            option: OptionCode::PEEK_EXPORT,
            data: vec![],
        },
    ];
    let bytes = client_bytes(fixed(), &[&options[..], &[ClientOption::Abort]].concat());
    let every: Vec<usize> = (0..bytes.len()).collect();
    let run = check_splits(&bytes, &every, |bytes, cuts| {
        run_server(
            ServerConfig::new().with_extended_headers(false),
            bytes,
            cuts,
        )
    });
    let mut expected: Vec<_> = options
        .iter()
        .map(|option| (option.code(), ReplyType::ERR_UNSUP))
        .collect();
    expected.push((OptionCode::ABORT, ReplyType::ACK));
    assert_eq!(kinds(&run), expected);
}

#[test]
fn a_malformed_info_or_go_is_invalid_and_the_session_goes_on() {
    let name_beyond: &[u8] = &[0xff, 0xff, 0xff, 0xff, b'x', 0, 0];
    let nul: &[u8] = &[0, 0, 0, 1, 0, 0, 0];
    let not_utf8: &[u8] = &[0, 0, 0, 1, 0xff, 0, 0];
    let count_too_high: &[u8] = &[0, 0, 0, 0, 0, 2, 0, 3];
    let count_too_low: &[u8] = &[0, 0, 0, 0, 0, 0, 0, 3];
    let mut overlong = 4097u32.to_be_bytes().to_vec();
    overlong.extend_from_slice(&[b'x'; 4097]);
    overlong.extend_from_slice(&[0, 0]);
    for body in [
        b"",
        name_beyond,
        nul,
        not_utf8,
        count_too_high,
        count_too_low,
        &overlong,
    ] {
        for option in [OptionCode::INFO, OptionCode::GO] {
            let run = serve_raw(
                ServerConfig::new(),
                &[(option, body), (OptionCode::ABORT, b"")],
            );
            assert_eq!(
                kinds(&run),
                [
                    (option, ReplyType::ERR_INVALID),
                    (OptionCode::ABORT, ReplyType::ACK)
                ],
                "{option} with {body:?}"
            );
        }
    }
}

#[test]
fn the_same_information_asked_for_twice_is_told_once() {
    let body = [0, 0, 0, 0, 0, 3, 0, 3, 0, 3, 0, 3];
    let run = serve_raw(ServerConfig::new(), &[(OptionCode::GO, &body)]);
    let kinds: Vec<_> = infos(&run).iter().map(Info::info_type).collect();
    assert_eq!(kinds, [InfoType::EXPORT, InfoType::BLOCK_SIZE]);
}

#[test]
fn block_sizes_are_told_when_asked_for_or_not_the_default() {
    let plain = Export::new(Name::EMPTY, 1, HAS);
    let odd = plain
        .clone()
        .with_block_sizes(BlockSizes::new(512, 512, 512).unwrap());
    for (export, asked, told) in [
        (&plain, false, false),
        (&plain, true, true),
        (&odd, false, true),
        (&odd, true, true),
    ] {
        let asks: &[InfoType] = if asked { &[InfoType::BLOCK_SIZE] } else { &[] };
        let bytes = client_bytes(fixed(), &[info("", asks)]);
        let run = run_server_with(ServerConfig::new(), &bytes, &[], |ask| {
            if let Ask::Export(ask) = ask {
                ask.accept(export);
            }
        });
        let was_told = infos(&run)
            .iter()
            .any(|info| info.info_type() == InfoType::BLOCK_SIZE);
        assert_eq!(was_told, told);
    }
}

#[test]
fn every_refusal_has_its_reply_and_block_sizes_come_before_their_demand() {
    let sizes = BlockSizes::new(4096, 4096, 4096).unwrap();
    let asked: &[InfoType] = &[InfoType::BLOCK_SIZE];
    let info_reply = (OptionCode::GO, ReplyType::INFO);
    let cases: [(Refusal, &[InfoType], Vec<ReplyType>); 9] = [
        (Refusal::UnknownExport, &[], vec![ReplyType::ERR_UNKNOWN]),
        (Refusal::Policy, &[], vec![ReplyType::ERR_POLICY]),
        // There is no TLS to be required.
        (Refusal::TlsRequired, &[], vec![ReplyType::ERR_POLICY]),
        (
            Refusal::ExtendedHeadersRequired,
            &[],
            vec![ReplyType::ERR_EXT_HEADER_REQD],
        ),
        (Refusal::ShuttingDown, &[], vec![ReplyType::ERR_SHUTDOWN]),
        (Refusal::Platform, &[], vec![ReplyType::ERR_PLATFORM]),
        (Refusal::TooBig, &[], vec![ReplyType::ERR_TOO_BIG]),
        (
            Refusal::BlockSizesRequired(sizes),
            &[],
            vec![info_reply.1, ReplyType::ERR_BLOCK_SIZE_REQD],
        ),
        // Forbidden where they were asked for.
        (
            Refusal::BlockSizesRequired(sizes),
            asked,
            vec![ReplyType::ERR_POLICY],
        ),
    ];
    for (why, asks, expected) in cases {
        let bytes = client_bytes(fixed(), &[go("x", asks), ClientOption::Abort]);
        let run = run_server_with(ServerConfig::new(), &bytes, &[], |ask| {
            if let Ask::Export(ask) = ask {
                ask.refuse(why);
            }
        });
        let mut kinds = kinds(&run);
        assert_eq!(
            kinds.pop(),
            Some((OptionCode::ABORT, ReplyType::ACK)),
            "after {why:?}"
        );
        let kinds: Vec<_> = kinds.iter().map(|kind| kind.1).collect();
        assert_eq!(kinds, expected, "{why:?}");
    }
}

#[test]
fn an_ask_that_is_let_go_of_is_refused() {
    let options = [ClientOption::List, info("x", &[]), go("x", &[])];
    let bytes = client_bytes(fixed(), &[&options[..], &[ClientOption::Abort]].concat());
    let run = run_server_with(ServerConfig::new(), &bytes, &[], |_| {});
    assert_eq!(
        kinds(&run),
        [
            (OptionCode::LIST, ReplyType::ERR_POLICY),
            (OptionCode::INFO, ReplyType::ERR_UNKNOWN),
            (OptionCode::GO, ReplyType::ERR_UNKNOWN),
            (OptionCode::ABORT, ReplyType::ACK),
        ]
    );
}

#[test]
fn a_list_can_be_refused_and_be_empty() {
    let lists = [ClientOption::List, ClientOption::List, ClientOption::List];
    let bytes = client_bytes(fixed(), &lists);
    let mut refusals = [Refusal::Policy, Refusal::Platform].into_iter();
    let run = run_server_with(ServerConfig::new(), &bytes, &[], |ask| {
        if let Ask::List(ask) = ask {
            match refusals.next() {
                Some(why) => ask.refuse(why),
                None => ask.accept([]),
            }
        }
    });
    assert_eq!(
        kinds(&run),
        [
            (OptionCode::LIST, ReplyType::ERR_POLICY),
            (OptionCode::LIST, ReplyType::ERR_PLATFORM),
            (OptionCode::LIST, ReplyType::ACK)
        ]
    );
}

#[test]
fn an_ask_for_an_export_says_what_is_asked_and_what_comes_of_it() {
    let some = [InfoType::NAME, InfoType::BLOCK_SIZE];
    let options = [
        info("x", &some),
        go("x", &[InfoType::DESCRIPTION]),
        ClientOption::ExportName(name("x")),
    ];
    let mut said = vec![];
    let bytes = client_bytes(fixed(), &options);
    run_server_with(ServerConfig::new(), &bytes, &[], |ask| {
        if let Ask::Export(ask) = ask {
            let asked: Vec<_> = InfoType::KNOWN
                .iter()
                .filter(|&&info| ask.asked(info))
                .copied()
                .collect();
            said.push((ask.option(), ask.enters_transmission(), asked));
            ask.refuse(Refusal::UnknownExport);
        }
    });
    let expected = [
        (OptionCode::INFO, false, some.to_vec()),
        (OptionCode::GO, true, vec![InfoType::DESCRIPTION]),
        (OptionCode::EXPORT_NAME, true, vec![]),
    ];
    assert_eq!(said, expected);
}

#[test]
fn go_is_told_the_same_as_the_equal_info_before_it() {
    let run = serve(&[
        info("disk", &[InfoType::NAME]),
        go("disk", &[InfoType::NAME]),
    ]);
    let infos = infos(&run);
    let (first, second) = infos.split_at(infos.len() / 2);
    assert_eq!(first, second);
    assert!(matches!(run.events.last(), Some(Event::Done(_))));
}

#[test]
fn an_export_that_changed_after_info_is_refused_to_the_next_go_only() {
    let grow = |options: &[ClientOption]| {
        let bytes = client_bytes(fixed(), options);
        let mut size = 0;
        run_server_with(ServerConfig::new(), &bytes, &[], move |ask| {
            size += 512;
            match ask {
                Ask::Export(ask) => ask.accept(&Export::new(Name::EMPTY, size, HAS)),
                Ask::List(ask) => ask.accept([]),
                _ => {}
            }
        })
    };
    let (info, go_same, go_other) = (info("", &[]), go("", &[]), go("", &[InfoType::NAME]));
    let run = grow(&[info.clone(), go_same.clone(), go_same.clone()]);
    assert_eq!(
        kinds(&run)[2..],
        [
            (OptionCode::GO, ReplyType::ERR_POLICY),
            (OptionCode::GO, ReplyType::INFO),
            (OptionCode::GO, ReplyType::ACK)
        ]
    );
    // Other parameters, or an option in between: nothing was promised.
    for options in [
        [info.clone(), go_other].as_slice(),
        &[info, ClientOption::List, go_same],
    ] {
        assert!(matches!(grow(options).events.last(), Some(Event::Done(_))));
    }
}

#[test]
fn a_shutdown_refuses_everything_but_abort() {
    let mut out = vec![];
    let mut machine = ServerHandshake::new(ServerConfig::new(), &mut out);
    machine.shutdown();
    let options = [
        ClientOption::List,
        ClientOption::StructuredReply,
        info("disk", &[]),
        go("disk", &[]),
        ClientOption::StartTls,
        ClientOption::Abort,
    ];
    let bytes = client_bytes(fixed(), &options);
    let mut input = &bytes[..];
    assert!(matches!(
        machine.step(&mut input, &mut out),
        Ok(Step::Aborted)
    ));
    let (replies, _) = replies(&out);
    for ((option, reply), sent) in replies.iter().zip(&options[..5]) {
        assert_eq!(
            (*option, error_of(reply)),
            (sent.code(), Some(ReplyType::ERR_SHUTDOWN))
        );
    }
    assert_eq!(replies[5], (OptionCode::ABORT, OptionReply::Ack));
}

#[test]
fn a_shutdown_while_an_ask_is_open_and_while_a_body_arrives_refuses_it() {
    for split in [0, 10] {
        let mut out = vec![];
        let mut machine = ServerHandshake::new(ServerConfig::new(), &mut out);
        let bytes = client_bytes(fixed(), &[go("disk", &[])]);
        let (mut head, mut tail) = bytes.split_at(bytes.len() - split);
        let _ = machine.step(&mut head, &mut out).unwrap();
        machine.shutdown();
        let step = machine.step(&mut tail, &mut out).unwrap();
        assert!(matches!(step, Step::NeedInput));
        let (replies, _) = replies(&out);
        assert_eq!(replies.len(), 1);
        assert_eq!(error_of(&replies[0].1), Some(ReplyType::ERR_SHUTDOWN));
    }

    let mut out = vec![];
    let mut machine = ServerHandshake::new(ServerConfig::new(), &mut out);
    machine.shutdown();
    let bytes = client_bytes(fixed(), &[ClientOption::ExportName(name("disk"))]);
    let fatal = Fatal::ExportRefused {
        name: name("disk"),
        why: Refusal::ShuttingDown,
    };
    assert_eq!(machine.step(&mut &bytes[..], &mut out).unwrap_err(), fatal);
}
