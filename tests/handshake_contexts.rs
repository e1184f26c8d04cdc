//! Meta contexts and extended headers: what may be asked when, what is selected, and for what.

mod handshake_support;

use handshake_support::*;
use nbd_proto::error::{Fatal, Refusal};
use nbd_proto::handshake::{Ask, ClientConfig, Context, Export, ServerConfig, TlsPolicy};
use nbd_proto::limits::Limits;
use nbd_proto::session::{MetaContext, ReplyStyle, Session};
use nbd_proto::wire::{
    ClientOption, Info, InfoType, MetaContextRequest, Name, OptionCode, OptionReply, ReplyType,
    TransmissionFlags,
};

const SET: OptionCode = OptionCode::SET_META_CONTEXT;
const LIST: OptionCode = OptionCode::LIST_META_CONTEXT;
const SR: ClientOption = ClientOption::StructuredReply;
const EXT: ClientOption = ClientOption::ExtendedHeaders;

fn config() -> ServerConfig {
    ServerConfig::new().with_meta_contexts(true)
}

fn set(export: &str, wanted: &[&str]) -> ClientOption {
    ClientOption::SetMetaContext(queries(export, wanted))
}

fn list(export: &str, wanted: &[&str]) -> ClientOption {
    ClientOption::ListMetaContext(queries(export, wanted))
}

fn go(export: &str) -> ClientOption {
    ClientOption::Go(request(export, &[]))
}

fn serve(options: &[ClientOption]) -> Run {
    run_server(config(), &client_bytes(fixed(), options), &[])
}

/// The names and ids of contexts that were told, and the last reply, to the last option.
fn told(run: &Run) -> (Vec<(u32, String)>, ReplyType) {
    let (all, rest) = replies(&run.output);
    assert!(rest.is_empty());
    let mut contexts = vec![];
    let mut last = ReplyType(0);
    for (_, reply) in &all {
        if last == ReplyType::ACK || last.is_error() {
            contexts.clear();
        }
        if let OptionReply::MetaContext { id, name } = reply {
            contexts.push((*id, name.as_str().to_owned()));
        }
        last = reply.reply_type();
    }
    (contexts, last)
}

fn names(contexts: &[(u32, String)]) -> Vec<&str> {
    contexts.iter().map(|(_, name)| name.as_str()).collect()
}

fn session(run: &Run) -> &Session {
    match run.events.last() {
        Some(Event::Done(session)) => session,
        other => panic!("no session: {other:?}, {:?}", run.end),
    }
}

// --- the server ---

#[test]
fn a_list_without_queries_tells_all_that_can_be_selected() {
    let compact = [
        "base:allocation",
        "qemu:dirty-bitmap:one",
        "qemu:allocation-depth",
    ];
    let (contexts, last) = told(&serve(&[SR, list("disk", &[])]));
    assert_eq!((names(&contexts), last), (compact.to_vec(), ReplyType::ACK));
    assert!(contexts.iter().all(|(id, _)| *id == 0), "reserved");
    let (contexts, _) = told(&serve(&[EXT, list("disk", &[])]));
    assert_eq!(contexts.len(), 4, "the wide one, too");
}

#[test]
fn a_list_knows_wildcards_and_a_selection_does_not() {
    let cases: [(&[&str], &[&str], &[&str]); 6] = [
        (&["base:"], &["base:allocation"], &[]),
        (
            &["qemu:"],
            &["qemu:dirty-bitmap:one", "qemu:allocation-depth"],
            &[],
        ),
        (&["qemu:dirty-bitmap:"], &["qemu:dirty-bitmap:one"], &[]),
        (
            &["base:allocation", "base:allocation"],
            &["base:allocation"],
            &["base:allocation"],
        ),
        // Unknown namespaces and unknown leaves are ignored.
        (&["nobody:knows", "base:unknown", "nobody:"], &[], &[]),
        (
            &["nobody:knows", "qemu:allocation-depth"],
            &["qemu:allocation-depth"],
            &["qemu:allocation-depth"],
        ),
    ];
    for (wanted, listed, selected) in cases {
        let (contexts, last) = told(&serve(&[SR, list("disk", wanted)]));
        assert_eq!((names(&contexts), last), (listed.to_vec(), ReplyType::ACK));
        let (contexts, last) = told(&serve(&[SR, set("disk", wanted)]));
        assert_eq!(names(&contexts), selected, "selected by {wanted:?}");
        assert_eq!(last, ReplyType::ACK);
    }
}

#[test]
fn what_was_selected_is_in_the_session_with_the_ids_that_were_told() {
    for (style, wide) in [(SR, false), (EXT, true)] {
        let wanted = [
            "x-wide:sixty-four",
            "qemu:allocation-depth",
            "base:allocation",
        ];
        let (told, _) = told(&serve(&[style.clone(), set("disk", &wanted)]));
        let run = serve(&[style, set("disk", &wanted), go("disk")]);
        let contexts = session(&run).contexts();
        assert_eq!(contexts.len(), if wide { 3 } else { 2 });
        let selected: Vec<_> = contexts
            .iter()
            .map(|context| (context.id, context.name.as_str().to_owned()))
            .collect();
        assert_eq!(selected, told);
        // The id is the place among those of the export.
        assert!(contexts.contains(&MetaContext {
            id: 3,
            name: name("qemu:allocation-depth")
        }));
    }
}

#[test]
fn contexts_are_for_the_export_that_they_were_selected_for() {
    let wanted = ["base:allocation"];
    // "" and "disk" are the same export, but not the same name.
    let run = serve(&[SR, set("", &wanted), go("disk")]);
    assert_eq!(session(&run).contexts(), []);
    let run = serve(&[
        SR,
        set("disk", &wanted),
        ClientOption::ExportName(name("disk")),
    ]);
    assert_eq!(session(&run).contexts().len(), 1);
    let run = serve(&[SR, set("disk", &wanted), go("gone"), go("disk")]);
    assert_eq!(session(&run).contexts().len(), 1);
}

#[test]
fn the_last_selection_counts_even_if_it_fails() {
    let first = set("disk", &["base:allocation"]);
    let too_big = ClientOption::SetMetaContext(MetaContextRequest {
        export: name("disk"),
        queries: vec![name("a:"); 1025],
    });
    let garbage = ClientOption::Unknown {
        option: SET,
        data: vec![1, 2, 3],
    };
    for (second, expected) in [
        (set("disk", &["qemu:allocation-depth"]), 1),
        (set("disk", &[]), 0),
        (set("disk", &["no colon"]), 0),
        (set("gone", &["base:allocation"]), 0),
        (set("ignored", &["base:allocation"]), 0),
        (too_big, 0),
        (garbage, 0),
        // These leave it alone.
        (list("disk", &[]), 1),
        (SR, 1),
        (EXT, 1),
    ] {
        let run = serve(&[SR, first.clone(), second.clone(), go("disk")]);
        assert_eq!(session(&run).contexts().len(), expected, "{second:?}");
    }
}

#[test]
fn contexts_need_structured_replies_or_extended_headers() {
    for option in [set("disk", &["base:allocation"]), list("disk", &[])] {
        let run = serve(&[option.clone(), go("disk")]);
        let (replies, _) = replies(&run.output);
        assert_eq!(error_of(&replies[0].1), Some(ReplyType::ERR_INVALID));
        assert_eq!(session(&run).contexts(), []);
        assert_eq!(run.events.len(), 2, "nobody was asked about contexts");
        for style in [SR, EXT] {
            assert_eq!(told(&serve(&[style, option.clone()])).1, ReplyType::ACK);
        }
    }
}

#[test]
fn contexts_that_are_not_offered_are_unsupported() {
    let bytes = client_bytes(fixed(), &[SR, set("disk", &[]), list("disk", &[])]);
    let run = run_server(ServerConfig::new(), &bytes, &[]);
    let (replies, _) = replies(&run.output);
    let unsup = Some(ReplyType::ERR_UNSUP);
    assert_eq!(error_of(&replies[1].1), unsup);
    assert_eq!(error_of(&replies[2].1), unsup);
}

#[test]
fn queries_without_a_namespace_are_invalid() {
    for bad in ["", "base", ":", ":leaf", "two words:leaf"] {
        for option in [set("disk", &["base:allocation", bad]), list("disk", &[bad])] {
            let run = serve(&[SR, option]);
            assert_eq!(told(&run).1, ReplyType::ERR_INVALID, "{bad:?}");
            assert_eq!(run.events, [], "nobody was asked");
        }
    }
}

#[test]
fn too_many_queries_and_contexts_and_too_long_names_are_too_big() {
    let limits = Limits::new()
        .with_max_queries(3)
        .with_max_contexts(2)
        .with_max_string(20);
    let run = |option: ClientOption| {
        let bytes = client_bytes(fixed(), &[SR, option]);
        told(&run_server(config().with_limits(limits), &bytes, &[])).1
    };
    let all: [&str; 3] = ["base:allocation", "qemu:dirty-bitmap:on", "a:b"];
    assert_eq!(run(set("disk", &all)), ReplyType::ACK);
    assert_eq!(run(set("disk", &["a:"; 4])), ReplyType::ERR_TOO_BIG);
    assert_eq!(run(list("disk", &["a:"; 4])), ReplyType::ERR_TOO_BIG);
    let long = "x".repeat(21);
    assert_eq!(run(list(&long, &[])), ReplyType::ERR_TOO_BIG);
    let long = format!("a:{long}");
    assert_eq!(run(list("disk", &[&long])), ReplyType::ERR_TOO_BIG);

    let limits = Limits::new().with_max_contexts(2);
    let wanted: Vec<Name> = contexts().iter().map(|it| it.name.clone()).collect();
    let request = MetaContextRequest {
        export: name("disk"),
        queries: wanted,
    };
    let both = [
        SR,
        ClientOption::ListMetaContext(request.clone()),
        ClientOption::SetMetaContext(request),
    ];
    let bytes = client_bytes(fixed(), &both);
    let run = run_server(config().with_limits(limits), &bytes, &[]);
    assert_eq!(told(&run), (vec![], ReplyType::ERR_TOO_BIG));
    // As many as may be selected are.
    let limits = Limits::new().with_max_contexts(3);
    let run = run_server(config().with_limits(limits), &bytes, &[]);
    assert_eq!(told(&run).0.len(), 3);
}

#[test]
fn a_caller_can_answer_queries_in_its_own_language() {
    let dated = |text: &str| Context::new(name(text));
    let bytes = client_bytes(
        fixed(),
        &[SR, set("disk", &["x-dated:2016..2017"]), go("disk")],
    );
    let run = run_server_with(config(), &bytes, &[], |ask| match ask {
        Ask::Contexts(ask) => {
            assert_eq!(ask.queries(), [name("x-dated:2016..2017")]);
            assert!(ask.selects());
            assert_eq!(ask.reply_style(), ReplyStyle::Structured);
            let wide = dated("x-dated:wide").with_wide(true);
            let same = dated("x-dated:2016");
            // What cannot be is left out.
            ask.accept_exactly(&[dated("nonsense"), same.clone(), wide, same]);
        }
        ask => answer(ask),
    });
    let name = name("x-dated:2016");
    assert_eq!(session(&run).contexts(), [MetaContext { id: 1, name }]);
}

#[test]
fn a_caller_cannot_answer_with_what_no_query_can_have_asked_for() {
    let all = ["base:allocation", "x-dated:2016"];
    for (option, expected) in [
        // proto.md under `NBD_OPT_SET_META_CONTEXT`: "If zero queries are sent, the server MUST
        // select no metadata contexts"; under the other option they mean all.
        (set("disk", &[]), &[][..]),
        (list("disk", &[]), &all),
        // "The `base:` metadata namespace": "`base:` - the server MUST ignore this form during
        // NBD_OPT_SET_META_CONTEXT", and a leaf that is not known.
        (set("disk", &["base:", "base:other"]), &[]),
        (list("disk", &["base:"]), &all[..1]),
        // What a query of another namespace means is for that to say, but not of what is in others.
        (set("disk", &["x-dated:2010..2020"]), &all[1..]),
        (list("disk", &["x-dated:2010..2020"]), &all[1..]),
        (set("disk", &["x-other:1"]), &[]),
    ] {
        let bytes = client_bytes(fixed(), &[SR, option.clone()]);
        let run = run_server_with(config(), &bytes, &[], |ask| match ask {
            Ask::Contexts(ask) => ask.accept_exactly(&all.map(|it| Context::new(name(it)))),
            ask => answer(ask),
        });
        let names: Vec<_> = told(&run).0.into_iter().map(|(_, name)| name).collect();
        assert_eq!(names, expected, "{option:?}");
        assert_eq!(told(&run).1, ReplyType::ACK);
    }
}

#[test]
fn refusals_of_contexts_are_those_that_the_protocol_allows() {
    let base: &[&str] = &["base:allocation"];
    let other: &[&str] = &["x-wide:sixty-four"];
    let required = Refusal::ExtendedHeadersRequired;
    let sizes = Refusal::BlockSizesRequired(disk().block_sizes);
    for (style, wanted, why, code) in [
        (SR, other, required, ReplyType::ERR_EXT_HEADER_REQD),
        (SR, base, required, ReplyType::ERR_POLICY),
        (EXT, other, required, ReplyType::ERR_POLICY),
        (SR, base, sizes, ReplyType::ERR_POLICY),
        (SR, base, Refusal::UnknownExport, ReplyType::ERR_UNKNOWN),
        (SR, base, Refusal::TlsRequired, ReplyType::ERR_POLICY),
    ] {
        let bytes = client_bytes(fixed(), &[style, set("disk", wanted)]);
        let run = run_server_with(config(), &bytes, &[], |ask| {
            if let Ask::Contexts(ask) = ask {
                ask.refuse(why);
            }
        });
        assert_eq!(told(&run), (vec![], code), "{why:?}");
    }
    // Whoever asks for all contexts does not ask for those of `base:` only; no question at all is
    // one for none.
    for (option, code) in [
        (list("disk", &[]), ReplyType::ERR_EXT_HEADER_REQD),
        (set("disk", &[]), ReplyType::ERR_POLICY),
    ] {
        let bytes = client_bytes(fixed(), &[SR, option]);
        let run = run_server_with(config(), &bytes, &[], |ask| {
            if let Ask::Contexts(ask) = ask {
                ask.refuse(required);
            }
        });
        assert_eq!(told(&run), (vec![], code));
    }
}

#[test]
fn extended_headers_take_precedence() {
    let kinds = |options: &[ClientOption]| -> Vec<ReplyType> {
        let run = serve(options);
        let (replies, _) = replies(&run.output);
        replies.iter().map(|(_, it)| it.reply_type()).collect()
    };
    let ack = ReplyType::ACK;
    assert_eq!(kinds(&[SR, EXT]), [ack, ack], "structured replies first");
    assert_eq!(kinds(&[EXT, SR]), [ack, ReplyType::ERR_EXT_HEADER_REQD]);
    assert_eq!(kinds(&[EXT, EXT]), [ack, ReplyType::ERR_INVALID]);
    for options in [
        &[EXT, go("disk")][..],
        &[SR, EXT, go("disk")],
        &[EXT, SR, go("disk")],
    ] {
        assert_eq!(session(&serve(options)).reply_style(), ReplyStyle::Extended);
    }
    let data = ClientOption::Unknown {
        option: OptionCode::EXTENDED_HEADERS,
        data: vec![0],
    };
    assert_eq!(kinds(&[data]), [ReplyType::ERR_INVALID]);
    let off = ServerConfig::new().with_extended_headers(false);
    let run = run_server(off, &client_bytes(fixed(), &[EXT, go("disk")]), &[]);
    assert_eq!(session(&run).reply_style(), ReplyStyle::Simple);
}

#[test]
fn export_name_after_extended_headers_ends_the_session() {
    let run = serve(&[EXT, ClientOption::ExportName(name("disk"))]);
    assert_eq!(run.end, Err(Fatal::ExportNameAfterExtendedHeaders));
    assert_eq!(run.events, []);
}

#[test]
fn block_status_payload_is_told_with_extended_headers_and_contexts_only() {
    let payload = TransmissionFlags::BLOCK_STATUS_PAYLOAD;
    let wanted = set("disk", &["base:allocation"]);
    for (options, told) in [
        (vec![SR, wanted.clone(), go("disk")], false),
        (vec![EXT, go("disk")], false),
        (vec![EXT, wanted.clone(), go("")], false),
        (vec![EXT, wanted, go("disk")], true),
    ] {
        let bytes = client_bytes(fixed(), &options);
        let run = run_server_with(config(), &bytes, &[], |ask| match ask {
            Ask::Export(ask) => ask.accept(&Export::new(name("disk"), 1, payload)),
            ask => answer(ask),
        });
        assert_eq!(session(&run).flags().contains(payload), told, "{options:?}");
    }
}

#[test]
fn block_sizes_can_be_required_of_all_clients() {
    let config = ServerConfig::new().with_block_sizes_required(true);
    let asks = ClientOption::Go(request("disk", &[InfoType::BLOCK_SIZE]));
    let info = ClientOption::Info(request("disk", &[]));
    let bytes = client_bytes(fixed(), &[info, go("disk"), asks]);
    let run = run_server(config, &bytes, &[]);
    let (all, _) = replies(&run.output);
    let kinds: Vec<_> = all.iter().map(|(_, it)| it.reply_type()).collect();
    let (info, required) = (ReplyType::INFO, ReplyType::ERR_BLOCK_SIZE_REQD);
    assert_eq!(kinds[..4], [info, required, info, required]);
    let sizes = disk().block_sizes;
    assert_eq!(
        all[0].1,
        OptionReply::Info(Info::BlockSize {
            minimum: sizes.minimum(),
            preferred: sizes.preferred(),
            max_payload: sizes.max_payload(),
        })
    );
    assert_eq!(session(&run).block_sizes(), sizes);

    let bytes = client_bytes(fixed(), &[ClientOption::ExportName(name("disk"))]);
    let why = Refusal::BlockSizesRequired(sizes);
    let refused = Fatal::ExportRefused {
        name: name("disk"),
        why,
    };
    assert_eq!(run_server(config, &bytes, &[]).end, Err(refused));

    // The default sizes are nothing that has to be known.
    let bytes = client_bytes(fixed(), &[go("plain")]);
    let run = run_server_with(config, &bytes, &[], |ask| {
        if let Ask::Export(ask) = ask {
            ask.accept(&Export::new(name("plain"), 1, TransmissionFlags::empty()));
        }
    });
    assert_eq!(session(&run).size(), 1);
}

// --- without fixed newstyle ---

#[test]
fn a_server_that_is_not_fixed_knows_export_name_only() {
    let config = ServerConfig::new()
        .with_fixed_newstyle(false)
        .with_tls(TlsPolicy::None);
    let flags = nbd_proto::wire::ClientFlags::NO_ZEROES;
    let bytes = client_bytes(flags, &[ClientOption::ExportName(name("disk"))]);
    let run = run_server(config, &bytes, &[]);
    assert_eq!(
        run.output[16..18],
        [0, 2],
        "the greeting does not say fixed"
    );
    assert_eq!(session(&run).size(), disk().size);
    for option in [ClientOption::List, go("disk"), ClientOption::StartTls] {
        let run = run_server(
            config,
            &client_bytes(flags, std::slice::from_ref(&option)),
            &[],
        );
        let option = option.code();
        assert_eq!(run.end, Err(Fatal::NotFixedNewstyle { option }));
        assert_eq!(run.output.len(), 18);
    }
    let run = run_server(config, &client_bytes(flags, &[ClientOption::Abort]), &[]);
    assert_eq!(run.events, [Event::Aborted]);
    assert_eq!(run.output.len(), 18, "there are no replies");
    let fixed = fixed();
    let run = run_server(config, &client_bytes(fixed, &[]), &[]);
    assert_eq!(run.end, Err(Fatal::ClientFlags(fixed)));
}

// --- the client ---

fn context(id: u32, text: &str) -> OptionReply {
    let name = name(text);
    OptionReply::MetaContext { id, name }
}

/// What a client makes of these replies to an option about contexts, after structured replies.
fn heard(option: &ClientOption, answers: &[OptionReply]) -> Run {
    let mut all = vec![(OptionCode::STRUCTURED_REPLY, OptionReply::Ack)];
    all.extend(answers.iter().map(|it| (option.code(), it.clone())));
    let config = ClientConfig::new().with_limits(Limits::new().with_max_contexts(3));
    run_client(config, &[SR, option.clone()], &server_bytes(3, &all), &[])
}

#[test]
fn a_client_believes_in_no_context_that_it_did_not_ask_for() {
    let unasked = |text: &str| Err(Fatal::UnaskedContext { name: name(text) });
    let both = set("", &["base:allocation", "qemu:"]);
    for (option, told, expected) in [
        (both.clone(), "base:allocation", Ok(())),
        // What a query means, its namespace knows; except for that of the protocol itself.
        (both.clone(), "qemu:dirty-bitmap:x", Ok(())),
        (both.clone(), "base:other", unasked("base:other")),
        (both.clone(), "x:y", unasked("x:y")),
        (both, "colonless", unasked("colonless")),
        (set("", &[]), "base:allocation", unasked("base:allocation")),
        (
            set("", &["base:"]),
            "base:allocation",
            unasked("base:allocation"),
        ),
        (list("", &[]), "any:thing", Ok(())),
        (list("", &[]), "colonless", unasked("colonless")),
        (list("", &["base:"]), "base:allocation", Ok(())),
        (list("", &["base:"]), "x:y", unasked("x:y")),
    ] {
        assert_eq!(heard(&option, &[context(1, told)]).end, expected, "{told}");
    }
}

#[test]
fn contexts_that_come_twice_or_too_often_are_a_violation_of_a_selection_only() {
    let wanted = ["x:a", "x:b", "x:c", "x:d"];
    let (first, again, other) = (context(1, "x:a"), context(2, "x:a"), context(1, "x:b"));
    let duplicate = |id, text: &str| {
        let name = name(text);
        Err(Fatal::DuplicateContext { id, name })
    };
    let four =
        ["x:a", "x:b", "x:c", "x:d"].map(|text| context(u32::from(text.as_bytes()[2]), text));
    for (answers, expected) in [
        (vec![first.clone(), again], duplicate(2, "x:a")),
        (vec![first.clone(), other], duplicate(1, "x:b")),
        (vec![first.clone(), first], duplicate(1, "x:a")),
        (four[..3].to_vec(), Ok(())),
        (four.to_vec(), Err(Fatal::TooManyContexts { limit: 3 })),
    ] {
        assert_eq!(heard(&set("", &wanted), &answers).end, expected);
        assert_eq!(heard(&list("", &wanted), &answers).end, Ok(()), "in a list");
    }
}

#[test]
fn contexts_count_for_the_export_they_were_selected_for_and_if_they_were_acknowledged() {
    let answers = |last: OptionReply| {
        vec![
            (OptionCode::STRUCTURED_REPLY, OptionReply::Ack),
            (SET, context(7, "base:allocation")),
            (SET, last),
            (
                OptionCode::GO,
                OptionReply::Info(Info::Export {
                    size: 1,
                    flags: TransmissionFlags::HAS_FLAGS,
                }),
            ),
            (OptionCode::GO, OptionReply::Ack),
        ]
    };
    let error = OptionReply::Error {
        code: ReplyType::ERR_TOO_BIG,
        message: Name::EMPTY,
    };
    for (export, last, expected) in [
        ("disk", OptionReply::Ack, 1),
        ("other", OptionReply::Ack, 0),
        ("disk", error, 0),
    ] {
        let options = [SR, set("disk", &["base:allocation"]), go(export)];
        let bytes = server_bytes(3, &answers(last));
        let run = run_client(ClientConfig::new(), &options, &bytes, &[]);
        assert_eq!(session(&run).contexts().len(), expected);
    }
}

#[test]
fn a_client_forgets_its_last_selection_when_the_next_one_fails() {
    let error = OptionReply::Error {
        code: ReplyType::ERR_TOO_BIG,
        message: Name::EMPTY,
    };
    let export = OptionReply::Info(Info::Export {
        size: 1,
        flags: TransmissionFlags::HAS_FLAGS,
    });
    let answers = [
        (OptionCode::STRUCTURED_REPLY, OptionReply::Ack),
        (SET, context(7, "base:allocation")),
        (SET, OptionReply::Ack),
        (SET, error),
        (OptionCode::GO, export),
        (OptionCode::GO, OptionReply::Ack),
    ];
    let wanted = set("disk", &["base:allocation"]);
    let options = [SR, wanted.clone(), wanted, go("disk")];
    let bytes = server_bytes(3, &answers);
    let run = run_client(ClientConfig::new(), &options, &bytes, &[]);
    assert_eq!(session(&run).contexts(), []);
}

#[test]
fn a_selection_that_the_client_itself_refuses_replaces_the_last_one_too() {
    // STARTTLS within the session makes replies simple again; here nothing was negotiated at all.
    let options = [
        set("disk", &["base:allocation"]),
        list("disk", &[]),
        go("disk"),
    ];
    let bytes = server_bytes(3, &[]);
    let run = run_client(ClientConfig::new(), &options, &bytes, &[]);
    let invalid = |option| {
        let code = ReplyType::ERR_INVALID;
        let message = Name::EMPTY;
        Event::Reply(option, OptionReply::Error { code, message })
    };
    assert_eq!(run.events, [invalid(SET), invalid(LIST)]);
    assert_eq!(run.output, client_bytes(fixed(), &options[2..]));
}

#[test]
fn a_client_with_extended_headers_sends_no_export_name_and_stays_with_them() {
    let acks = [
        (OptionCode::EXTENDED_HEADERS, OptionReply::Ack),
        // A server that should have refused.
        (OptionCode::STRUCTURED_REPLY, OptionReply::Ack),
        (
            OptionCode::GO,
            OptionReply::Info(Info::Export {
                size: 1,
                flags: TransmissionFlags::HAS_FLAGS,
            }),
        ),
        (OptionCode::GO, OptionReply::Ack),
    ];
    let options = [EXT, SR, ClientOption::ExportName(name("disk")), go("disk")];
    let run = run_client(ClientConfig::new(), &options, &server_bytes(3, &acks), &[]);
    assert_eq!(session(&run).reply_style(), ReplyStyle::Extended);
    let sent = [EXT, SR, go("disk")];
    assert_eq!(run.output, client_bytes(fixed(), &sent));
}
