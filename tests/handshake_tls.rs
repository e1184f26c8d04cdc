//! TLS: when it is agreed on, and that nothing crosses from the time before into the time after.
//! No TLS is spoken here; the machines only have to believe that it was started.

mod handshake_support;

use handshake_support::*;
use nbd_proto::error::{Fatal, Refusal};
use nbd_proto::handshake::{
    Ask, ClientConfig, ClientHandshake, ClientStep, NegotiateError, ServerConfig, ServerHandshake,
    Step, TlsPolicy, TlsWanted, Wanted,
};
use nbd_proto::session::ReplyStyle;
use nbd_proto::wire::{
    ClientFlags, ClientOption, Info, Name, OptionCode, OptionReply, ReplyType, TransmissionFlags,
};

const STARTTLS: OptionCode = OptionCode::STARTTLS;
const GO: OptionCode = OptionCode::GO;

fn config(policy: TlsPolicy) -> ServerConfig {
    ServerConfig::new()
        .with_tls(policy)
        .with_meta_contexts(true)
}

fn go(export: &str) -> ClientOption {
    ClientOption::Go(request(export, &[]))
}

fn encoded(options: &[ClientOption]) -> Vec<u8> {
    let mut bytes = vec![];
    for option in options {
        option.encode(&mut bytes);
    }
    bytes
}

/// Options before TLS, and after.
fn serve(policy: TlsPolicy, before: &[ClientOption], after: &[ClientOption]) -> Run {
    let before = client_bytes(fixed(), before);
    let after = encoded(after);
    let phases: &[&[u8]] = &[&before, &after];
    run_server_over_tls(config(policy), phases, &[], answer)
}

fn kinds(run: &Run) -> Vec<(OptionCode, ReplyType)> {
    let (replies, _) = replies(&run.output);
    let kinds = replies.iter().map(|(code, it)| (*code, it.reply_type()));
    kinds.collect()
}

fn all_options() -> Vec<ClientOption> {
    vec![
        ClientOption::List,
        ClientOption::Info(request("disk", &[])),
        go("disk"),
        ClientOption::StructuredReply,
        ClientOption::ExtendedHeaders,
        ClientOption::ListMetaContext(queries("disk", &[])),
        ClientOption::SetMetaContext(queries("disk", &["base:allocation"])),
        ClientOption::Unknown {
            option: OptionCode(0x4242),
            data: vec![1; 40],
        },
    ]
}

// --- the server's policies ---

#[test]
fn without_tls_starttls_is_unsupported_and_nothing_is_refused_for_want_of_it() {
    let mut options = vec![ClientOption::StartTls, go("secret")];
    options.extend(all_options().into_iter().filter(|it| it.code() != GO));
    options.push(ClientOption::Abort);
    let run = serve(TlsPolicy::None, &options, &[]);
    let kinds = kinds(&run);
    assert_eq!(kinds[0], (STARTTLS, ReplyType::ERR_UNSUP));
    assert_eq!(kinds[1], (GO, ReplyType::ERR_POLICY));
    assert!(kinds.iter().all(|kind| kind.1 != ReplyType::ERR_TLS_REQD));
}

#[test]
fn forced_tls_refuses_everything_before_it_but_starttls_and_abort() {
    let options = all_options();
    let sent = [&options[..], &[ClientOption::Abort]].concat();
    let run = serve(TlsPolicy::Forced, &sent, &[]);
    let mut expected: Vec<_> = options
        .iter()
        .map(|option| (option.code(), ReplyType::ERR_TLS_REQD))
        .collect();
    expected.push((OptionCode::ABORT, ReplyType::ACK));
    assert_eq!(kinds(&run), expected);
    assert_eq!(run.events, [Event::Aborted], "nobody was asked");

    let run = serve(
        TlsPolicy::Forced,
        &[ClientOption::ExportName(name(""))],
        &[],
    );
    let refused = Fatal::ExportRefused {
        name: Name::EMPTY,
        why: Refusal::TlsRequired,
    };
    assert_eq!(run.end, Err(refused));
    assert_eq!((run.output.len(), run.events.len()), (18, 0));
}

#[test]
fn within_tls_everything_is_as_ever_and_a_second_starttls_is_invalid() {
    for policy in [TlsPolicy::Forced, TlsPolicy::Selective] {
        let after = [
            ClientOption::StartTls,
            ClientOption::List,
            go("gone"),
            go("secret"),
        ];
        let run = serve(policy, &[ClientOption::StartTls], &after);
        assert_eq!(run.events[0], Event::StartTls);
        let kinds = kinds(&run);
        assert_eq!(kinds[0], (STARTTLS, ReplyType::ACK));
        assert_eq!(kinds[1], (STARTTLS, ReplyType::ERR_INVALID));
        assert!(kinds.contains(&(GO, ReplyType::ERR_UNKNOWN)));
        let Some(Event::Done(session)) = run.events.last() else {
            panic!("no session");
        };
        assert!(session.is_tls());
        assert_eq!(session.export(), &name("secret"));
    }
}

#[test]
fn selective_tls_requires_it_for_those_exports_that_do() {
    let options = [
        ClientOption::List,
        ClientOption::Info(request("secret", &[])),
        go("secret"),
        go("disk"),
    ];
    let run = serve(TlsPolicy::Selective, &options, &[]);
    let kinds = kinds(&run);
    assert_eq!(
        kinds[3..5],
        [
            (OptionCode::INFO, ReplyType::ERR_TLS_REQD),
            (GO, ReplyType::ERR_TLS_REQD)
        ]
    );
    let Some(Event::Done(session)) = run.events.last() else {
        panic!("no session");
    };
    assert!(!session.is_tls());

    let export_name = ClientOption::ExportName(name("secret"));
    let run = serve(TlsPolicy::Selective, &[export_name], &[]);
    let why = Refusal::TlsRequired;
    let name = name("secret");
    assert_eq!(run.end, Err(Fatal::ExportRefused { name, why }));
}

#[test]
fn tls_required_is_said_to_info_and_go_only_and_only_before_tls() {
    let refuse = |ask: Ask<'_>| match ask {
        Ask::List(ask) => ask.refuse(Refusal::TlsRequired),
        Ask::Export(ask) => ask.refuse(Refusal::TlsRequired),
        Ask::Contexts(ask) => ask.refuse(Refusal::TlsRequired),
        _ => {}
    };
    let options = [
        ClientOption::StructuredReply,
        ClientOption::List,
        go("x"),
        ClientOption::ListMetaContext(queries("x", &[])),
    ];
    let mut before = client_bytes(fixed(), &options);
    ClientOption::StartTls.encode(&mut before);
    let after = encoded(&options);
    let run = run_server_over_tls(
        config(TlsPolicy::Selective),
        &[&before, &after],
        &[],
        refuse,
    );
    let errors: Vec<_> = kinds(&run)
        .into_iter()
        .filter(|kind| kind.1.is_error())
        .collect();
    let contexts = OptionCode::LIST_META_CONTEXT;
    assert_eq!(
        errors,
        [
            (OptionCode::LIST, ReplyType::ERR_POLICY),
            (GO, ReplyType::ERR_TLS_REQD),
            (contexts, ReplyType::ERR_POLICY),
            (OptionCode::LIST, ReplyType::ERR_POLICY),
            (GO, ReplyType::ERR_POLICY),
            (contexts, ReplyType::ERR_POLICY),
        ]
    );
}

#[test]
fn a_client_without_fixed_newstyle_gets_no_tls_and_nothing_where_it_is_forced() {
    let options = [
        ClientOption::StartTls,
        ClientOption::List,
        go("secret"),
        go("disk"),
    ];
    let bytes = client_bytes(ClientFlags::empty(), &options);
    let run = run_server(config(TlsPolicy::Forced), &bytes, &[]);
    assert!(
        kinds(&run)
            .iter()
            .all(|kind| kind.1 == ReplyType::ERR_POLICY)
    );
    assert_eq!(run.events, [], "nobody was asked");

    let run = run_server(config(TlsPolicy::Selective), &bytes, &[]);
    let errors: Vec<_> = kinds(&run)
        .into_iter()
        .filter(|kind| kind.1.is_error())
        .collect();
    let policy = ReplyType::ERR_POLICY;
    assert_eq!(errors, [(STARTTLS, policy), (GO, policy)]);
    assert!(matches!(run.events.last(), Some(Event::Done(session)) if !session.is_tls()));

    let bytes = client_bytes(ClientFlags::empty(), &[ClientOption::ExportName(name(""))]);
    let run = run_server(config(TlsPolicy::Forced), &bytes, &[]);
    assert!(matches!(run.end, Err(Fatal::ExportRefused { .. })));
}

#[test]
fn starttls_takes_no_data() {
    let mut bytes = fixed().to_bytes().to_vec();
    for body in [&b"x"[..], &[0; 2000]] {
        let header = nbd_proto::wire::OptionHeader {
            option: STARTTLS,
            length: u32::try_from(body.len()).unwrap(),
        };
        bytes.extend_from_slice(&header.to_bytes());
        bytes.extend_from_slice(body);
    }
    bytes.extend(encoded(&[ClientOption::Abort]));
    let run = run_server(config(TlsPolicy::Forced), &bytes, &[]);
    let invalid = (STARTTLS, ReplyType::ERR_INVALID);
    assert_eq!(
        kinds(&run),
        [invalid, invalid, (OptionCode::ABORT, ReplyType::ACK)]
    );
}

// --- nothing crosses ---

/// CVE-2021-3716: someone could negotiate structured replies for a client that knew nothing of it.
#[test]
fn what_was_negotiated_before_tls_is_forgotten() {
    for style in [ClientOption::StructuredReply, ClientOption::ExtendedHeaders] {
        let before = [
            style,
            ClientOption::SetMetaContext(queries("disk", &["base:allocation"])),
            ClientOption::Info(request("disk", &[])),
            ClientOption::StartTls,
        ];
        let run = serve(TlsPolicy::Selective, &before, &[go("disk")]);
        let Some(Event::Done(session)) = run.events.last() else {
            panic!("no session: {:?}", run.events);
        };
        assert!(session.is_tls());
        assert_eq!(session.reply_style(), ReplyStyle::Simple);
        assert_eq!(session.contexts(), []);
        let flags = session.flags();
        assert!(!flags.contains(TransmissionFlags::SEND_DF));

        // Structured replies may be asked for again, as for the first time.
        let after = [
            ClientOption::SetMetaContext(queries("disk", &["base:allocation"])),
            ClientOption::ExtendedHeaders,
            go("disk"),
        ];
        let run = serve(TlsPolicy::Selective, &before, &after);
        let kinds = kinds(&run);
        let set = OptionCode::SET_META_CONTEXT;
        assert!(kinds.contains(&(set, ReplyType::ERR_INVALID)));
        assert!(kinds.contains(&(OptionCode::EXTENDED_HEADERS, ReplyType::ACK)));
    }
}

/// CVE-2011-0411, in mail servers: commands that someone put into the stream before TLS were
/// executed as if the client had sent them under its protection.
#[test]
fn plaintext_injected_after_starttls_ends_the_session_before_anything_is_agreed() {
    let injected = [
        encoded(&[ClientOption::StructuredReply]),
        encoded(&[go("secret")]),
        vec![0],
        // The beginning of a TLS handshake, from a client that does not wait.
        b"\x16\x03\x01".to_vec(),
    ];
    for policy in [TlsPolicy::Forced, TlsPolicy::Selective] {
        for injected in &injected {
            let mut bytes = client_bytes(fixed(), &[ClientOption::StartTls]);
            let agreed = bytes.len();
            bytes.extend_from_slice(injected);
            let run = run_server(config(policy), &bytes, &[]);
            assert_eq!(run.end, Err(Fatal::PlaintextBeforeTls));
            assert_eq!(run.output.len(), 18, "TLS must not be agreed on");
            assert_eq!(run.events, []);
            assert_eq!(run.taken, agreed, "the injected bytes were not taken");

            // In pieces: they come when all is agreed, and still find no taker.
            for cut in agreed..bytes.len() {
                let run = run_server(config(policy), &bytes, &[agreed, cut]);
                assert_eq!(run.end, Err(Fatal::PlaintextBeforeTls));
                assert_eq!(run.events, []);
                assert_eq!(kinds(&run), [(STARTTLS, ReplyType::ACK)]);
            }
        }
    }
}

#[test]
fn leave_to_start_tls_is_given_until_it_is_given_back() {
    let (mut out, bytes) = (vec![], client_bytes(fixed(), &[ClientOption::StartTls]));
    let mut machine = ServerHandshake::new(config(TlsPolicy::Forced), &mut out);
    let mut input = &bytes[..];
    let written = {
        assert!(matches!(
            machine.step(&mut input, &mut out),
            Ok(Step::StartTls(_))
        ));
        out.len()
    };
    for _ in 0..3 {
        assert!(!machine.is_tls());
        assert_eq!(machine.wants(), 0);
        assert_eq!(machine.on_eof(), Err(Fatal::Closed));
        let again = machine.step(&mut &[][..], &mut out);
        assert!(matches!(again, Ok(Step::StartTls(_))));
        assert_eq!(out.len(), written, "agreed on once");
    }
    match machine.step(&mut &[][..], &mut out) {
        Ok(Step::StartTls(leave)) => machine.tls_started(leave),
        other => panic!("{other:?}"),
    }
    assert!(machine.is_tls());
    assert_eq!(machine.wants(), 16);
}

#[test]
fn leave_from_another_machine_changes_nothing() {
    let (mut out, bytes) = (vec![], client_bytes(fixed(), &[ClientOption::StartTls]));
    let mut agreed = ServerHandshake::new(config(TlsPolicy::Forced), &mut out);
    let Ok(Step::StartTls(leave)) = agreed.step(&mut &bytes[..], &mut out) else {
        panic!("no TLS");
    };
    let mut other = ServerHandshake::new(config(TlsPolicy::Forced), &mut out);
    other.tls_started(leave);
    assert!(!other.is_tls());
    assert_eq!(other.wants(), 4, "it still wants the client's flags");
}

#[test]
fn every_ask_says_whether_tls_runs() {
    let asks = [
        ClientOption::ExtendedHeaders,
        ClientOption::List,
        ClientOption::ListMetaContext(queries("disk", &[])),
        ClientOption::Info(request("disk", &[])),
    ];
    let (before, after) = (client_bytes(fixed(), &asks), encoded(&asks));
    let tls = client_bytes(fixed(), &[ClientOption::StartTls]);
    for (phases, expected) in [(&[&before[..]][..], false), (&[&tls, &after], true)] {
        let mut said = vec![];
        run_server_over_tls(config(TlsPolicy::Selective), phases, &[], |ask| {
            said.push(match &ask {
                Ask::List(ask) => ask.is_tls(),
                Ask::Export(ask) => ask.is_tls(),
                Ask::Contexts(ask) => ask.is_tls(),
                other => panic!("{other:?}"),
            });
            answer(ask);
        });
        assert_eq!(said, [expected; 3]);
    }
}

// --- the client ---

#[test]
fn plaintext_injected_before_tls_ends_the_clients_session() {
    let mut bytes = server_bytes(3, &[(STARTTLS, OptionReply::Ack)]);
    let agreed = bytes.len();
    let export = OptionReply::Info(Info::Export {
        size: 1,
        flags: TransmissionFlags::HAS_FLAGS,
    });
    export.encode(GO, &mut bytes);
    let options = [ClientOption::StartTls, go("disk")];
    for cuts in [&[][..], &[agreed], &[agreed, agreed + 1]] {
        let run = run_client(ClientConfig::new(), &options, &bytes, cuts);
        assert_eq!(run.end, Err(Fatal::PlaintextBeforeTls), "{cuts:?}");
        assert_eq!(run.output, client_bytes(fixed(), &options[..1]));
        assert_eq!(run.taken, agreed);
    }
}

#[test]
fn a_client_forgets_what_it_negotiated_before_tls_and_asks_once_only() {
    let set = ClientOption::SetMetaContext(queries("disk", &["base:allocation"]));
    let options = [
        ClientOption::ExtendedHeaders,
        set.clone(),
        ClientOption::StartTls,
        ClientOption::StartTls,
        set,
        go("disk"),
    ];
    let context = OptionReply::MetaContext {
        id: 5,
        name: name("base:allocation"),
    };
    let before = server_bytes(
        3,
        &[
            (OptionCode::EXTENDED_HEADERS, OptionReply::Ack),
            (OptionCode::SET_META_CONTEXT, context),
            (OptionCode::SET_META_CONTEXT, OptionReply::Ack),
            (STARTTLS, OptionReply::Ack),
        ],
    );
    let mut after = vec![];
    let export = OptionReply::Info(Info::Export {
        size: 1,
        flags: TransmissionFlags::HAS_FLAGS | TransmissionFlags::SEND_DF,
    });
    export.encode(GO, &mut after);
    OptionReply::Ack.encode(GO, &mut after);
    let run = run_client_over_tls(ClientConfig::new(), &options, &[&before, &after], &[]);
    let Some(Event::Done(session)) = run.events.last() else {
        panic!("no session: {run:?}");
    };
    assert!(session.is_tls());
    assert_eq!(session.reply_style(), ReplyStyle::Simple);
    assert_eq!(session.contexts(), []);
    assert_eq!(session.flags(), TransmissionFlags::HAS_FLAGS);
    let refused: Vec<_> = run
        .events
        .iter()
        .filter_map(|event| match event {
            Event::Reply(option, reply) => error_of(reply).map(|code| (*option, code)),
            _ => None,
        })
        .collect();
    let invalid = ReplyType::ERR_INVALID;
    assert_eq!(
        refused,
        [(STARTTLS, invalid), (OptionCode::SET_META_CONTEXT, invalid)],
        "by the client itself"
    );
}

#[test]
fn a_client_sends_no_starttls_to_a_server_that_is_not_fixed() {
    let run = run_client(
        ClientConfig::new(),
        &[ClientOption::StartTls],
        &server_bytes(0, &[]),
        &[],
    );
    assert_eq!(run.output, [0; 4]);
    assert!(matches!(&run.events[0], Event::Reply(STARTTLS, reply)
        if error_of(reply) == Some(ReplyType::ERR_UNSUP)));
}

#[test]
fn leave_is_given_again_to_a_client_that_let_go_of_it() {
    let bytes = server_bytes(3, &[(STARTTLS, OptionReply::Ack)]);
    let (mut out, mut input) = (vec![], &bytes[..]);
    let mut machine = ClientHandshake::new(ClientConfig::new());
    match machine.step(&mut input, &mut out) {
        Ok(ClientStep::Ready(ready)) => ready.start_tls(),
        other => panic!("{other:?}"),
    }
    for _ in 0..3 {
        let step = machine.step(&mut input, &mut out);
        assert!(matches!(step, Ok(ClientStep::StartTls(_))));
        assert_eq!((machine.wants(), machine.is_tls()), (0, false));
        assert_eq!(machine.on_eof(), Err(Fatal::Closed));
    }
    match machine.step(&mut input, &mut out) {
        Ok(ClientStep::StartTls(leave)) => machine.tls_started(leave),
        other => panic!("{other:?}"),
    }
    assert!(machine.is_tls());
}

// --- both ---

fn pair(policy: TlsPolicy, tls: TlsWanted, export: &str) -> Ends {
    let wanted = Wanted::new(name(export)).with_tls(tls);
    Pair::new(config(policy), wanted, ClientConfig::new()).run(answer)
}

#[test]
fn both_sides_agree_on_tls_in_every_combination_of_policies() {
    use TlsPolicy::{Forced, None, Selective};
    use TlsWanted::{No, Preferred, Required};
    let refused = |option, code| Err((option, code));
    let cases = [
        (None, No, "disk", Ok(false)),
        (None, Preferred, "disk", Ok(false)),
        (
            None,
            Required,
            "disk",
            refused(STARTTLS, ReplyType::ERR_UNSUP),
        ),
        (None, No, "secret", refused(GO, ReplyType::ERR_POLICY)),
        (Selective, No, "disk", Ok(false)),
        (Selective, Preferred, "disk", Ok(true)),
        (Selective, Required, "disk", Ok(true)),
        (
            Selective,
            No,
            "secret",
            refused(GO, ReplyType::ERR_TLS_REQD),
        ),
        (Selective, Preferred, "secret", Ok(true)),
        (
            Forced,
            No,
            "disk",
            refused(OptionCode::EXTENDED_HEADERS, ReplyType::ERR_TLS_REQD),
        ),
        (Forced, Preferred, "disk", Ok(true)),
        (Forced, Required, "secret", Ok(true)),
        (
            Forced,
            Required,
            "gone",
            refused(GO, ReplyType::ERR_UNKNOWN),
        ),
    ];
    for (policy, wanted, export, expected) in cases {
        let ends = pair(policy, wanted, export);
        let got = match ends.client {
            Ok(got) => {
                assert_eq!(ends.server, Ok(Some(got.session.clone())));
                assert_eq!(got.session.reply_style(), ReplyStyle::Extended);
                Ok(got.session.is_tls())
            }
            Err(NegotiateError::Refused(refused)) => {
                assert_eq!(ends.server, Ok(Option::None));
                Err((refused.option, refused.code))
            }
            Err(error) => panic!("{error}"),
        };
        assert_eq!(got, expected, "{policy:?}, {wanted:?}, {export}");
    }
}

#[test]
fn a_client_that_requires_tls_sends_nothing_but_starttls_without_it() {
    for code in [
        ReplyType::ERR_UNSUP,
        ReplyType::ERR_POLICY,
        ReplyType(0x8000_4242),
    ] {
        let message = Name::EMPTY;
        let no = OptionReply::Error { code, message };
        let bytes = server_bytes(3, &[(STARTTLS, no)]);
        let wanted = Wanted::new(name("disk")).with_tls(TlsWanted::Required);
        let mut negotiator = nbd_proto::handshake::Negotiator::new(wanted, ClientConfig::new());
        let mut out = vec![];
        let end = negotiator.advance(&mut &bytes[..], &mut out);
        assert!(matches!(end, Err(NegotiateError::Refused(refused)) if refused.code == code));
        let sent = [ClientOption::StartTls, ClientOption::Abort];
        assert_eq!(out, client_bytes(fixed(), &sent));
    }
}
