//! Our two sides against each other: whatever both accept, both agree on.

mod handshake_support;

use handshake_support::*;
use nbd_proto::error::{Fatal, Refusal, Refused};
use nbd_proto::handshake::{Ask, ClientConfig, Export, NegotiateError, ServerConfig, Wanted};
use nbd_proto::session::{BlockSizes, ReplyStyle};
use nbd_proto::wire::{Name, OptionCode, ReplyType, TransmissionFlags};

#[test]
fn both_sides_agree_on_the_session_in_every_combination() {
    let mut sessions = 0;
    for bits in 0..128u32 {
        let bit = |at: u32| bits & (1 << at) != 0;
        let server = ServerConfig::new()
            .with_no_zeroes(bit(0))
            .with_extended_headers(false)
            .with_structured_replies(bit(1));
        let client = ClientConfig::new().with_no_zeroes(bit(2));
        let wanted = Wanted::new(name("disk"))
            .with_structured_replies(bit(3))
            .with_name(bit(4))
            .with_description(bit(4));
        let flags = if bit(5) {
            TransmissionFlags::from_bits_retain(0xffff)
        } else {
            TransmissionFlags::empty()
        };
        let export = Export::new(name("Disk"), u64::MAX, flags)
            .with_description(name("text"))
            .with_block_sizes(if bit(6) {
                BlockSizes::new(4096, 65536, u32::MAX).unwrap()
            } else {
                BlockSizes::DEFAULT
            });
        let ends = Pair::new(server, wanted, client).run(|ask| {
            if let Ask::Export(ask) = ask {
                ask.accept(&export);
            }
        });
        let (got, session) = (ends.client.unwrap(), ends.server.unwrap().unwrap());
        assert_eq!(got.session, session);
        assert_eq!(got.option, Some(OptionCode::GO));
        assert!(got.block_sizes_announced);
        assert_eq!(session.block_sizes(), export.block_sizes);
        let structured = bit(1) && bit(3);
        assert_eq!(session.reply_style() == ReplyStyle::Structured, structured);
        let df = session.flags().contains(TransmissionFlags::SEND_DF);
        assert_eq!(df, structured && bit(5));
        assert_eq!(got.name, bit(4).then(|| name("Disk")));
        assert_eq!(got.description, bit(4).then(|| name("text")));
        sessions += 1;
    }
    assert_eq!(sessions, 128);
}

#[test]
fn both_sides_agree_on_a_refusal() {
    for (export, code) in [
        ("gone", ReplyType::ERR_UNKNOWN),
        ("secret", ReplyType::ERR_POLICY),
        ("ignored", ReplyType::ERR_UNKNOWN),
    ] {
        let wanted = Wanted::new(name(export));
        let ends = Pair::new(ServerConfig::new(), wanted, ClientConfig::new()).run(answer);
        assert_eq!(ends.server, Ok(None));
        let Err(NegotiateError::Refused(Refused {
            option, code: got, ..
        })) = ends.client
        else {
            panic!("{:?}", ends.client);
        };
        assert_eq!((option, got), (OptionCode::GO, code));
    }
}

#[test]
fn a_server_that_shuts_down_gets_rid_of_its_client() {
    let mut pair = Pair::new(
        ServerConfig::new(),
        Wanted::new(Name::EMPTY),
        ClientConfig::new(),
    );
    pair.server.shutdown();
    let ends = pair.run(answer);
    assert_eq!(ends.server, Ok(None));
    assert!(matches!(
        ends.client,
        Err(NegotiateError::Refused(refused)) if refused.code == ReplyType::ERR_SHUTDOWN
    ));
}

#[test]
fn a_server_that_must_hang_up_on_export_name_is_understood() {
    // Through EXPORT_NAME, which our negotiator only sends to servers that do not know GO.
    let sent = client_bytes(
        fixed(),
        &[nbd_proto::wire::ClientOption::ExportName(name("secret"))],
    );
    let server = run_server(ServerConfig::new(), &sent, &[]);
    assert_eq!(
        server.end,
        Err(Fatal::ExportRefused {
            name: name("secret"),
            why: Refusal::TlsRequired
        })
    );
    let options = [nbd_proto::wire::ClientOption::ExportName(name("secret"))];
    let client = run_client(ClientConfig::new(), &options, &server.output, &[]);
    assert_eq!(
        client.eof,
        Err(Fatal::ExportUnavailable {
            name: name("secret")
        })
    );
}

#[test]
fn both_sides_agree_on_the_session_after_export_name() {
    for (server_zeroes, client_zeroes) in
        [(true, true), (true, false), (false, true), (false, false)]
    {
        for structured in [false, true] {
            let server = ServerConfig::new().with_no_zeroes(server_zeroes);
            let client = ClientConfig::new().with_no_zeroes(client_zeroes);
            let mut options = vec![nbd_proto::wire::ClientOption::ExportName(name("disk"))];
            if structured {
                options.insert(0, nbd_proto::wire::ClientOption::StructuredReply);
            }
            // What the client sends depends on the greeting only.
            let greeting = run_server(server, &[], &[]).output;
            let mut sent = run_client(client, &options[..1], &greeting, &[]).output;
            for option in &options[1..] {
                option.encode(&mut sent);
            }
            let export = Export::new(name("disk"), 77, TransmissionFlags::SEND_DF);
            let served = run_server_with(server, &sent, &[], |ask| {
                if let Ask::Export(ask) = ask {
                    ask.accept(&export);
                }
            });
            let got = run_client(client, &options, &served.output, &[]);
            assert_eq!(served.events.last(), got.events.last());
            assert!(matches!(got.events.last(), Some(Event::Done(_))));
            assert_eq!(got.output, sent);
            assert_eq!(got.taken, served.output.len());
        }
    }
}

/// Whatever both sides are configured to: they come to the same session, or to none.
#[cfg(feature = "proptest")]
mod random {
    use super::*;
    use nbd_proto::conformance::strategy::handshake as strategy;
    use nbd_proto::handshake::{TlsPolicy, TlsWanted};
    use nbd_proto::session::MetaContext;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3000))]

        #[test]
        fn both_sides_agree_whatever_they_are_configured_to(
            config in strategy::server_config(),
            wanted in strategy::wanted(name("disk")),
            client in strategy::client_config(),
            export in strategy::export(name("Disk")),
            contexts in strategy::contexts(),
            exists in proptest::bool::weighted(0.8),
        ) {
            let ends = Pair::new(config, wanted.clone(), client).run(|ask| match ask {
                Ask::Export(ask) if exists => ask.accept(&export),
                Ask::Contexts(ask) if exists => ask.accept(&contexts),
                _ => {}
            });
            match (&ends.client, &ends.server) {
                (Ok(got), Ok(Some(session))) => {
                    let mut seen = session.clone();
                    if got.option == Some(OptionCode::EXPORT_NAME) {
                        // They cannot be told.
                        seen = seen.with_block_sizes(BlockSizes::DEFAULT);
                    }
                    prop_assert_eq!(&got.session, &seen);
                    prop_assert!(exists);
                    check(session, &contexts);
                    let tls = session.is_tls();
                    prop_assert!(tls || config.tls() != TlsPolicy::Forced);
                    prop_assert!(tls || wanted.tls() != TlsWanted::Required);
                    prop_assert!(tls || !export.tls_required);
                    prop_assert!(!tls || wanted.tls() != TlsWanted::No);
                    prop_assert_eq!(got.announced_flags, session.flags());
                }
                (Err(NegotiateError::Refused(_)), Ok(None)) => {}
                // EXPORT_NAME, which is all that a server without fixed newstyle knows.
                (
                    Err(NegotiateError::Fatal(Fatal::ExportUnavailable { .. })),
                    Err(Fatal::ExportRefused { .. }),
                ) => {}
                other => prop_assert!(false, "they disagree: {other:?}"),
            }
        }
    }

    fn check(session: &nbd_proto::session::Session, contexts: &[nbd_proto::handshake::Context]) {
        let flags = session.flags();
        assert!(flags.contains(TransmissionFlags::HAS_FLAGS));
        let style = session.reply_style();
        let df = flags.contains(TransmissionFlags::SEND_DF);
        assert!(!df || style != ReplyStyle::Simple);
        let payload = flags.contains(TransmissionFlags::BLOCK_STATUS_PAYLOAD);
        let selected = session.contexts();
        assert!(!payload || (style == ReplyStyle::Extended && !selected.is_empty()));
        assert!(selected.is_empty() || style != ReplyStyle::Simple);
        for MetaContext { id, name } in selected {
            let known = &contexts[*id as usize];
            assert_eq!(&known.name, name, "the id leads back to the context");
            assert!(!known.wide || style == ReplyStyle::Extended);
        }
    }
}
