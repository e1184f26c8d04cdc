//! What clients that want the best of a server get of it, and tools that want to know all.

mod handshake_support;

use handshake_support::*;
use nbd_proto::error::{Fatal, Refusal};
use nbd_proto::handshake::{
    Ask, ClientConfig, Export, ExportReport, Inspect, InspectProgress, Inspector, NegotiateError,
    Negotiated, Negotiator, Progress, Report, ServerConfig, ServerHandshake, Step, TlsPolicy,
    TlsWanted, Wanted,
};
use nbd_proto::limits::Limits;
use nbd_proto::session::{Announcement, Lint, ReplyStyle};
use nbd_proto::wire::{
    ClientOption, GreetingStyle, HandshakeFlags, Info, InfoType, Name, OldstyleGreeting,
    OptionCode, OptionReply, ReplyType, TransmissionFlags,
};

const GO: OptionCode = OptionCode::GO;
const SR: OptionCode = OptionCode::STRUCTURED_REPLY;
const EXT: OptionCode = OptionCode::EXTENDED_HEADERS;
const SET: OptionCode = OptionCode::SET_META_CONTEXT;
const HAS: TransmissionFlags = TransmissionFlags::HAS_FLAGS;

fn error(code: ReplyType) -> OptionReply {
    let message = Name::EMPTY;
    OptionReply::Error { code, message }
}

fn export(flags: TransmissionFlags) -> OptionReply {
    OptionReply::Info(Info::Export { size: 4096, flags })
}

fn negotiate(
    wanted: Wanted,
    config: ClientConfig,
    bytes: &[u8],
) -> (Vec<u8>, Result<Negotiated, NegotiateError>) {
    let mut out = vec![];
    let mut negotiator = Negotiator::new(wanted, config);
    let end = match negotiator.advance(&mut &bytes[..], &mut out) {
        Ok(Progress::Done(negotiated)) => Ok(negotiated),
        Ok(other) => panic!("not at an end: {other:?}"),
        Err(error) => Err(error),
    };
    (out, end)
}

fn go() -> ClientOption {
    ClientOption::Go(request("disk", &[InfoType::BLOCK_SIZE]))
}

fn wanted() -> Wanted {
    Wanted::new(name("disk")).with_contexts([name("base:allocation")])
}

#[test]
fn the_best_headers_are_asked_for_first_and_the_others_only_if_need_be() {
    let context = OptionReply::MetaContext {
        id: 3,
        name: name("base:allocation"),
    };
    let end = [(GO, export(HAS)), (GO, OptionReply::Ack)];
    let set = [(SET, context), (SET, OptionReply::Ack)];
    let no = error(ReplyType::ERR_UNSUP);
    let extended = ClientOption::ExtendedHeaders;
    let structured = ClientOption::StructuredReply;
    let contexts = ClientOption::SetMetaContext(queries("disk", &["base:allocation"]));
    for (opening, selects, style, sent) in [
        (
            vec![(EXT, OptionReply::Ack)],
            true,
            ReplyStyle::Extended,
            vec![extended.clone(), contexts.clone(), go()],
        ),
        (
            vec![(EXT, no.clone()), (SR, OptionReply::Ack)],
            true,
            ReplyStyle::Structured,
            vec![extended.clone(), structured.clone(), contexts, go()],
        ),
        (
            vec![(EXT, no.clone()), (SR, no)],
            false,
            ReplyStyle::Simple,
            vec![extended, structured, go()],
        ),
    ] {
        let mut replies = opening;
        if selects {
            replies.extend(set.clone());
        }
        let refused = replies
            .iter()
            .filter(|it| error_of(&it.1).is_some())
            .count();
        replies.extend(end.clone());
        let (out, got) = negotiate(wanted(), ClientConfig::new(), &server_bytes(3, &replies));
        let got = got.unwrap();
        assert_eq!(got.session.reply_style(), style);
        assert_eq!(got.session.contexts().len(), usize::from(selects));
        assert_eq!(got.refused.len(), refused);
        assert_eq!(out, client_bytes(fixed(), &sent));
    }
}

#[test]
fn contexts_that_are_refused_are_done_without() {
    for code in [
        ReplyType::ERR_UNSUP,
        ReplyType::ERR_INVALID,
        ReplyType::ERR_TOO_BIG,
        ReplyType::ERR_UNKNOWN,
        ReplyType::ERR_EXT_HEADER_REQD,
    ] {
        let replies = [
            (EXT, error(ReplyType::ERR_UNSUP)),
            (SR, OptionReply::Ack),
            (SET, error(code)),
            (GO, export(HAS)),
            (GO, OptionReply::Ack),
        ];
        let (_, got) = negotiate(wanted(), ClientConfig::new(), &server_bytes(3, &replies));
        let got = got.unwrap();
        assert_eq!(got.session.contexts(), []);
        assert_eq!(got.refused[1].code, code);
    }
}

#[test]
fn with_extended_headers_there_is_no_way_back_to_export_name() {
    let replies = [
        (EXT, OptionReply::Ack),
        (GO, error(ReplyType::ERR_UNSUP)),
        (OptionCode::ABORT, OptionReply::Ack),
    ];
    let wanted = Wanted::new(name("disk"));
    let (out, end) = negotiate(wanted, ClientConfig::new(), &server_bytes(3, &replies));
    assert!(matches!(end, Err(NegotiateError::Refused(refused)) if refused.option == GO));
    let sent = [ClientOption::ExtendedHeaders, go(), ClientOption::Abort];
    assert_eq!(out, client_bytes(fixed(), &sent));
}

#[test]
fn an_oldstyle_server_is_taken_where_nothing_is_asked_that_it_cannot_give() {
    let greeting = OldstyleGreeting {
        size: 12345,
        handshake_flags: HandshakeFlags::FIXED_NEWSTYLE,
        flags: HAS | TransmissionFlags::SEND_DF | TransmissionFlags::READ_ONLY,
    };
    let bytes = greeting.to_bytes();
    let old = ClientConfig::new().with_oldstyle(true);
    let default = || Wanted::new(Name::EMPTY);
    for (config, wanted, taken) in [
        (old, default(), true),
        (old, default().with_tls(TlsWanted::Preferred), true),
        (old, default().with_tls(TlsWanted::Required), false),
        (old, Wanted::new(name("disk")), false),
        (ClientConfig::new(), default(), false),
    ] {
        let (out, end) = negotiate(wanted, config, &bytes);
        assert_eq!(out, [], "there is nothing to be said");
        if !taken {
            assert_eq!(end, Err(Fatal::Oldstyle.into()));
            continue;
        }
        let got = end.unwrap();
        assert_eq!(got.session.size(), 12345);
        assert_eq!(got.session.flags(), HAS | TransmissionFlags::READ_ONLY);
        assert_eq!(got.session.reply_style(), ReplyStyle::Simple);
        assert_eq!((got.option, got.greeting), (None, GreetingStyle::Oldstyle));
        let lints = got.announcement().lints();
        assert_eq!(
            lints,
            [
                Lint::OldstyleHandshakeFlags(HandshakeFlags::FIXED_NEWSTYLE),
                Lint::DontFragmentWithoutChunks
            ]
        );
    }
}

#[test]
fn an_oldstyle_greeting_is_taken_in_any_pieces_and_no_byte_more() {
    let export = disk();
    let mut bytes = vec![];
    let served = ServerHandshake::oldstyle(&export, &mut bytes).unwrap();
    assert_eq!(bytes.len(), OldstyleGreeting::LEN);
    let every: Vec<usize> = (0..=bytes.len()).collect();
    let config = ClientConfig::new().with_oldstyle(true);
    let run = check_splits(&bytes, &every, |bytes, cuts| {
        run_client(config, &[], bytes, cuts)
    });
    let Some(Event::Done(got)) = run.events.last() else {
        panic!("no session");
    };
    assert_eq!((got.size(), got.flags()), (served.size(), served.flags()));
    // "MUST always be 1", and there is nothing else to tell that a flush is there.
    assert_eq!(served.flags(), HAS | TransmissionFlags::SEND_FLUSH);
    assert_eq!(bytes[24..26], [0, 0], "no handshake flags");
    let flags = (export.flags | HAS).difference(TransmissionFlags::SEND_DF);
    let same = Export::new(name("disk"), export.size, flags);
    let served = ServerHandshake::oldstyle(&same, &mut vec![]).unwrap();
    assert_eq!(served.flags(), flags);

    let mut out = vec![];
    let secret = export.with_tls_required(true);
    let refused = ServerHandshake::oldstyle(&secret, &mut out);
    assert_eq!(refused.unwrap_err(), Refusal::TlsRequired);
    assert_eq!(out, []);
}

#[test]
fn what_a_server_announces_is_kept_as_it_said_it() {
    let odd = HAS | TransmissionFlags::SEND_FAST_ZERO | TransmissionFlags::SEND_FLUSH;
    let replies = [
        (EXT, error(ReplyType::ERR_UNSUP)),
        (SR, OptionReply::Ack),
        (GO, export(odd)),
        (GO, OptionReply::Ack),
    ];
    let wanted = Wanted::new(name("disk"));
    let (_, got) = negotiate(wanted, ClientConfig::new(), &server_bytes(0x8003, &replies));
    let got = got.unwrap();
    assert_eq!(got.announced_flags, odd);
    assert_eq!(got.session.flags(), odd - TransmissionFlags::SEND_FAST_ZERO);
    assert_eq!(
        got.announcement().lints(),
        [
            Lint::UnknownHandshakeFlags(HandshakeFlags::from_bits_retain(0x8000)),
            Lint::FastZeroWithoutWriteZeroes
        ]
    );
}

#[test]
fn contexts_and_size_constraints_are_announced_where_there_are_any() {
    let writable = HAS | TransmissionFlags::SEND_FLUSH;
    let payload = writable | TransmissionFlags::BLOCK_STATUS_PAYLOAD;
    let context = OptionReply::MetaContext {
        id: 0,
        name: name("base:allocation"),
    };
    let sizes = OptionReply::Info(Info::BlockSize {
        minimum: 512,
        preferred: 512,
        max_payload: 512,
    });
    let run = |wanted: Wanted, heard: &[(OptionCode, OptionReply)]| {
        let mut replies = vec![(EXT, OptionReply::Ack)];
        replies.extend_from_slice(heard);
        replies.push((GO, OptionReply::Ack));
        let bytes = server_bytes(3, &replies);
        let (_, end) = negotiate(wanted, ClientConfig::new(), &bytes);
        end.unwrap().announcement()
    };
    let disk = || Wanted::new(name("disk"));
    let said = run(disk(), &[(GO, export(payload))]);
    assert_eq!(said.lints(), [Lint::StatusPayloadWithoutContexts]);
    let heard = [
        (SET, context),
        (SET, OptionReply::Ack),
        (GO, export(payload)),
    ];
    let said = run(wanted(), &heard);
    assert_eq!(said.lints(), []);
    let flags = HandshakeFlags::FIXED_NEWSTYLE | HandshakeFlags::NO_ZEROES;
    let announced = || {
        Announcement::new(4096, writable, ReplyStyle::Extended).with_handshake_flags(flags, false)
    };
    let heard = [(GO, export(writable)), (GO, sizes)];
    assert_eq!(run(disk(), &heard[..1]), announced());
    let told = announced().with_block_sizes(512, 512, 512);
    assert_eq!(run(disk(), &heard), told);
}

// --- inspection ---

/// A tool and a server of ours, until the tool is content or the server has had enough.
fn inspect(
    inspect: Inspect,
    server: ServerConfig,
    mut answer: impl FnMut(Ask<'_>),
) -> (Report, Result<(), NegotiateError>) {
    let (mut to_client, mut to_server) = (vec![], vec![]);
    let mut server = ServerHandshake::new(server, &mut to_client);
    let mut client = Inspector::new(inspect, ClientConfig::new());
    let mut gone = false;
    for _ in 0..200 {
        let bytes = std::mem::take(&mut to_client);
        match client.advance(&mut &bytes[..], &mut to_server) {
            Ok(InspectProgress::NeedInput) => {}
            Ok(InspectProgress::StartTls(leave)) => client.tls_started(leave),
            Ok(InspectProgress::Done(report)) => {
                assert_eq!(*client.report(), report);
                assert_eq!((client.wants(), client.on_eof()), (0, Ok(())));
                let mut abort = vec![];
                ClientOption::Abort.encode(&mut abort);
                assert!(to_server.ends_with(&abort), "parts in peace");
                return (report, Ok(()));
            }
            Err(error) => return (client.report().clone(), Err(error)),
            Ok(other) => panic!("{other:?}"),
        }
        if gone {
            return (client.report().clone(), client.on_eof());
        }
        let bytes = std::mem::take(&mut to_server);
        let mut input = &bytes[..];
        loop {
            match server.step(&mut input, &mut to_client) {
                Ok(Step::List(ask)) => answer(Ask::List(ask)),
                Ok(Step::Export(ask)) => answer(Ask::Export(ask)),
                Ok(Step::Contexts(ask)) => answer(Ask::Contexts(ask)),
                Ok(Step::StartTls(leave)) => {
                    server.tls_started(leave);
                    break;
                }
                Ok(Step::NeedInput) => break,
                Ok(other) => panic!("{other:?}"),
                Err(_) => {
                    gone = true;
                    break;
                }
            }
        }
    }
    panic!("no end");
}

fn everything() -> Inspect {
    Inspect::new()
        .with_every_export(true)
        .with_contexts(true)
        .with_export(name("secret"))
        .with_export(name("disk"))
}

fn names(reports: &[ExportReport]) -> Vec<&str> {
    reports.iter().map(|it| it.name.as_str()).collect()
}

#[test]
fn an_inspection_reports_all_that_there_is() {
    let config = ServerConfig::new().with_meta_contexts(true);
    let (report, end) = inspect(everything(), config, answer);
    assert_eq!(end, Ok(()));
    assert_eq!(report.reply_style, ReplyStyle::Extended);
    assert!(!report.tls);
    let flags = HandshakeFlags::FIXED_NEWSTYLE | HandshakeFlags::NO_ZEROES;
    assert_eq!(report.greeting, Some((GreetingStyle::Newstyle, flags)));
    let list = report.list.unwrap().unwrap();
    let listed: Vec<_> = list
        .iter()
        .map(|it| (it.name.as_str(), it.description.as_str()))
        .collect();
    assert_eq!(listed, [("disk", "a disk"), ("other", "")]);

    assert_eq!(names(&report.exports), ["secret", "disk", "other"]);
    let [secret, disk_report, other] = &report.exports[..] else {
        panic!("{:?}", report.exports);
    };
    let refused = secret.info.as_ref().unwrap_err();
    assert_eq!(refused.code, ReplyType::ERR_POLICY);
    assert_eq!(secret.contexts, None, "not asked after a refusal");
    let info = disk_report.info.as_ref().unwrap();
    assert_eq!(
        (info.size, info.block_sizes),
        (disk().size, Some(disk().block_sizes))
    );
    assert_eq!(info.name, Some(name("disk")));
    assert_eq!(info.description, Some(name("a disk")));
    assert_eq!(info.announcement(report.reply_style).lints(), []);
    let contexts = disk_report.contexts.as_ref().unwrap().as_ref().unwrap();
    assert_eq!(contexts.len(), 4);
    assert_eq!(
        other.info.as_ref().unwrap_err().code,
        ReplyType::ERR_UNKNOWN
    );
}

#[test]
fn an_inspection_over_tls_sees_what_is_only_there_with_it() {
    let config = ServerConfig::new()
        .with_tls(TlsPolicy::Forced)
        .with_meta_contexts(true);
    let (report, end) = inspect(everything().with_tls(TlsWanted::Required), config, answer);
    assert_eq!(end, Ok(()));
    assert!(report.tls);
    assert!(report.exports[0].info.is_ok(), "the secret one");

    let (report, end) = inspect(everything(), config, answer);
    assert!(matches!(end, Err(NegotiateError::Refused(refused))
        if refused.code == ReplyType::ERR_TLS_REQD));
    assert_eq!(report.exports, []);
    assert_eq!(report.refused.len(), 1);
}

#[test]
fn what_was_learned_before_a_server_hangs_up_is_not_lost() {
    let limits = nbd_proto::limits::Limits::new().with_max_options(3);
    let config = ServerConfig::new().with_limits(limits);
    let (report, end) = inspect(everything(), config, answer);
    assert_eq!(end, Err(Fatal::Closed.into()));
    assert_eq!(report.list.unwrap().unwrap().len(), 2);
    assert_eq!(names(&report.exports), ["secret"]);
}

#[test]
fn an_inspection_asks_about_no_more_exports_than_it_was_told() {
    let config = ServerConfig::new();
    let all: Vec<_> = (0..100).map(|it| name(&format!("e{it}"))).collect();
    let count = std::cell::Cell::new(0);
    let answer = |ask: Ask<'_>| match ask {
        // Some servers list an export twice.
        Ask::List(ask) => ask.accept(all.iter().chain(&all).map(|it| (it, &all[0]))),
        Ask::Export(ask) => {
            count.set(count.get() + 1);
            ask.accept(&Export::new(name("x"), 1, HAS));
        }
        _ => {}
    };
    let every = Inspect::new().with_every_export(true);
    for (most, expected) in [(usize::MAX, 100), (7, 7), (0, 0)] {
        count.set(0);
        let (report, _) = inspect(every.clone().with_max_exports(most), config, answer);
        assert_eq!((report.exports.len(), count.get()), (expected, expected));
        assert_eq!(report.list.unwrap().unwrap().len(), 200);
    }
}

#[test]
fn an_inspection_of_servers_that_know_little_says_so() {
    // Not fixed: nothing can be asked.
    let mut out = vec![];
    let mut tool = Inspector::new(everything(), ClientConfig::new());
    let progress = tool.advance(&mut &server_bytes(0, &[])[..], &mut out);
    let Ok(InspectProgress::Done(report)) = progress else {
        panic!("{progress:?}");
    };
    assert_eq!(report.list.unwrap().unwrap_err().code, ReplyType::ERR_UNSUP);
    assert_eq!(out, [0; 4], "and nothing was");

    let mut bytes = vec![];
    let _ = ServerHandshake::oldstyle(&disk(), &mut bytes).unwrap();
    let mut tool = Inspector::new(Inspect::new(), ClientConfig::new().with_oldstyle(true));
    let progress = tool.advance(&mut &bytes[..], &mut out);
    let Ok(InspectProgress::Done(report)) = progress else {
        panic!("{progress:?}");
    };
    let info = report.exports[0].info.as_ref().unwrap();
    let flags = HAS | TransmissionFlags::SEND_FLUSH;
    assert_eq!((info.size, info.flags), (disk().size, flags));
    let mut tool = Inspector::new(Inspect::new(), ClientConfig::new());
    let refused = tool.advance(&mut &bytes[..], &mut out);
    assert_eq!(refused, Err(Fatal::Oldstyle.into()));
}

#[test]
fn an_oldstyle_server_is_not_looked_at_where_tls_is_required() {
    // Whoever is in between can make any server look like one.
    let mut bytes = vec![];
    let _ = ServerHandshake::oldstyle(&disk(), &mut bytes).unwrap();
    for (tls, seen) in [
        (TlsWanted::No, true),
        (TlsWanted::Preferred, true),
        (TlsWanted::Required, false),
    ] {
        let config = ClientConfig::new().with_oldstyle(true);
        let mut tool = Inspector::new(Inspect::new().with_tls(tls), config);
        let progress = tool.advance(&mut &bytes[..], &mut vec![]);
        match progress {
            Ok(InspectProgress::Done(_)) => assert!(seen, "{tls:?}"),
            end => assert_eq!((end, seen), (Err(Fatal::Oldstyle.into()), false)),
        }
        assert_eq!(tool.report().exports.len(), usize::from(seen));
    }
}

#[test]
fn all_that_an_inspection_keeps_is_bounded() {
    // Each answer is within the limits, but there are many of them.
    let limit = 100_000;
    let context = |at: usize| OptionReply::MetaContext {
        id: 0,
        name: name(&format!("x:{at:4000}")),
    };
    let mut replies = vec![(EXT, OptionReply::Ack)];
    let mut inspect = Inspect::new().with_contexts(true);
    for at in 0..100 {
        inspect = inspect.with_export(name(&format!("{at}")));
        replies.push((OptionCode::INFO, export(HAS)));
        replies.push((OptionCode::INFO, OptionReply::Ack));
        replies.push((OptionCode::LIST_META_CONTEXT, context(at)));
        replies.push((OptionCode::LIST_META_CONTEXT, OptionReply::Ack));
    }
    let bytes = server_bytes(3, &replies);
    for (limit, whole) in [(limit, false), (1_000_000, true)] {
        let config = ClientConfig::new().with_limits(Limits::new().with_max_reply_bytes(limit));
        let mut tool = Inspector::new(inspect.clone(), config);
        let mut out = vec![];
        let end = tool.advance(&mut &bytes[..], &mut out);
        let mut abort = vec![];
        ClientOption::Abort.encode(&mut abort);
        assert!(out.ends_with(&abort), "softly, either way");
        if whole {
            assert!(matches!(end, Ok(InspectProgress::Done(_))));
            continue;
        }
        let option = OptionCode::LIST_META_CONTEXT;
        let too_many = Fatal::TooManyReplyBytes { option, limit };
        assert!(end == Err(too_many.into()));
        assert!(tool.advance(&mut &[][..], &mut vec![]) == end);
        assert!(tool.on_eof().is_err());
        assert_eq!(tool.wants(), 0);
        let kept = tool.report().exports.len();
        assert!((20..=25).contains(&kept), "{kept}");
    }
}

#[test]
fn a_server_that_shuts_down_ends_an_inspection() {
    for at in [EXT, OptionCode::LIST] {
        let mut replies = vec![(EXT, OptionReply::Ack)];
        if at == EXT {
            replies.clear();
        }
        replies.push((at, error(ReplyType::ERR_SHUTDOWN)));
        let mut out = vec![];
        let mut tool = Inspector::new(everything(), ClientConfig::new());
        let end = tool.advance(&mut &server_bytes(3, &replies)[..], &mut out);
        assert!(matches!(end, Err(NegotiateError::Refused(_))), "{end:?}");
        let mut abort = vec![];
        ClientOption::Abort.encode(&mut abort);
        assert!(out.ends_with(&abort));
        let again = tool.advance(&mut &[][..], &mut out);
        assert_eq!(again, end);
    }
}

#[test]
fn a_list_that_is_only_to_be_seen_leads_to_no_more_questions() {
    let config = ServerConfig::new();
    let list = Inspect::new().with_list(true).with_export(name("disk"));
    let (report, end) = inspect(list, config, answer);
    assert_eq!(end, Ok(()));
    assert_eq!(report.list.unwrap().unwrap().len(), 2);
    assert_eq!(names(&report.exports), ["disk"]);
}

#[test]
fn what_was_listed_before_the_list_was_refused_is_not_asked_about() {
    let entry = OptionReply::Server {
        name: name("disk"),
        description: Name::EMPTY,
    };
    let replies = [
        (EXT, OptionReply::Ack),
        (OptionCode::LIST, entry),
        (OptionCode::LIST, error(ReplyType::ERR_POLICY)),
    ];
    let mut out = vec![];
    let mut tool = Inspector::new(Inspect::new().with_every_export(true), ClientConfig::new());
    let progress = tool.advance(&mut &server_bytes(3, &replies)[..], &mut out);
    let Ok(InspectProgress::Done(report)) = progress else {
        panic!("{progress:?}");
    };
    assert_eq!(
        report.list.unwrap().unwrap_err().code,
        ReplyType::ERR_POLICY
    );
    let sent = [
        ClientOption::ExtendedHeaders,
        ClientOption::List,
        ClientOption::Abort,
    ];
    assert_eq!(out, client_bytes(fixed(), &sent));
}

#[test]
fn a_negotiator_never_wants_more_than_the_rest_of_the_message() {
    let replies = [
        (EXT, error(ReplyType::ERR_UNSUP)),
        (SR, OptionReply::Ack),
        (GO, export(HAS)),
        (GO, OptionReply::Ack),
    ];
    let mut bytes = server_bytes(3, &replies);
    bytes.extend_from_slice(b"a reply");
    let (mut rest, mut out, mut wanted) = (&bytes[..], vec![], vec![]);
    let mut negotiator = Negotiator::new(Wanted::new(name("disk")), ClientConfig::new());
    loop {
        assert!(wanted.len() < 10, "does not come to an end: {wanted:?}");
        wanted.push(negotiator.wants());
        let (mut input, after) = rest.split_at(negotiator.wants());
        rest = after;
        match negotiator.advance(&mut input, &mut out).unwrap() {
            Progress::NeedInput => assert!(input.is_empty()),
            Progress::Done(_) => break,
            other => panic!("{other:?}"),
        }
    }
    // The greeting; a header for each reply; what the export has.
    assert_eq!(wanted, [18, 20, 20, 20, 12, 20]);
    assert_eq!((rest, negotiator.wants()), (&b"a reply"[..], 0));
}
