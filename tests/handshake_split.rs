//! Neither machine cares how its input is cut, and neither takes a byte that is not its own.

#![cfg(feature = "proptest")]

mod handshake_support;

use handshake_support::*;
use nbd_proto::conformance::strategy::handshake as strategy;
use nbd_proto::handshake::{
    ClientConfig, NegotiateError, Negotiator, Progress, ServerConfig, Wanted,
};
use nbd_proto::limits::Limits;
use nbd_proto::wire::{ClientOption, InfoType, OptionCode};
use proptest::prelude::*;

fn with_cuts(
    bytes: impl Strategy<Value = Vec<u8>>,
) -> impl Strategy<Value = (Vec<u8>, Vec<usize>)> {
    bytes.prop_flat_map(|bytes| {
        let cuts = strategy::cuts(bytes.len());
        (Just(bytes), cuts)
    })
}

/// Small enough that conversations run into them.
fn tight() -> ServerConfig {
    let limits = Limits::new()
        .with_max_option_body(64)
        .with_max_options(5)
        .with_max_drain(200);
    ServerConfig::new().with_limits(limits)
}

fn client_options() -> Vec<ClientOption> {
    vec![
        ClientOption::List,
        ClientOption::StructuredReply,
        ClientOption::Info(request("disk", &[])),
        ClientOption::ListMetaContext(queries("disk", &[])),
        ClientOption::SetMetaContext(queries("disk", &["base:allocation", "qemu:", "x-a:"])),
        ClientOption::ExtendedHeaders,
        ClientOption::Go(request("disk", &[InfoType::BLOCK_SIZE])),
        ClientOption::ExportName(name("disk")),
    ]
}

/// What a negotiator sends, how it ends, and how much it takes.
fn negotiate(
    wanted: &Wanted,
    bytes: &[u8],
    cuts: &[usize],
) -> (Vec<u8>, Result<Progress, NegotiateError>, usize) {
    let mut out = vec![];
    let mut taken = 0;
    let mut negotiator = Negotiator::new(wanted.clone(), ClientConfig::new());
    for piece in pieces(bytes, cuts) {
        let mut input = piece;
        let progress = negotiator.advance(&mut input, &mut out);
        taken += piece.len() - input.len();
        if !matches!(progress, Ok(Progress::NeedInput)) {
            return (out, progress, taken);
        }
    }
    (out, Ok(Progress::NeedInput), taken)
}

proptest! {
    #[test]
    fn a_server_does_not_care_how_a_conversation_is_cut(
        (bytes, cuts) in with_cuts(strategy::conversation()),
    ) {
        check_splits(&bytes, &cuts, |bytes, cuts| run_server(ServerConfig::new(), bytes, cuts));
        let contexts = ServerConfig::new().with_meta_contexts(true);
        check_splits(&bytes, &cuts, |bytes, cuts| run_server(contexts, bytes, cuts));
        check_splits(&bytes, &cuts, |bytes, cuts| run_server(tight(), bytes, cuts));
    }

    #[test]
    fn a_server_does_not_care_how_hostile_bytes_are_cut(
        (bytes, cuts) in with_cuts(strategy::hostile_conversation()),
    ) {
        check_splits(&bytes, &cuts, |bytes, cuts| run_server(ServerConfig::new(), bytes, cuts));
        check_splits(&bytes, &cuts, |bytes, cuts| run_server(tight(), bytes, cuts));
    }

    #[test]
    fn a_client_does_not_care_how_its_input_is_cut(
        (bytes, cuts) in with_cuts(strategy::mutated(strategy::server_conversation(vec![
            OptionCode::LIST,
            OptionCode::STRUCTURED_REPLY,
            OptionCode::INFO,
            OptionCode::LIST_META_CONTEXT,
            OptionCode::SET_META_CONTEXT,
            OptionCode::EXTENDED_HEADERS,
            OptionCode::GO,
        ]))),
        first in 0..8usize,
        no_zeroes: bool,
    ) {
        let options = client_options();
        let config = ClientConfig::new()
            .with_no_zeroes(no_zeroes)
            .with_limits(Limits::new().with_max_replies(3));
        check_splits(&bytes, &cuts, |bytes, cuts| {
            run_client(config, &options[first..], bytes, cuts)
        });
    }

    /// TLS begins where it was agreed on, however the bytes before and after it come.
    #[test]
    fn a_server_does_not_care_how_a_conversation_over_tls_is_cut(
        (before, after) in strategy::tls_conversation(),
        cuts in strategy::cuts(400),
        policy in strategy::tls_policy(),
    ) {
        let config = ServerConfig::new().with_tls(policy).with_meta_contexts(true);
        let run = |cuts: &[usize]| {
            let phases: &[&[u8]] = &[&before, &after];
            run_server_over_tls(config, phases, cuts, answer)
        };
        let whole = run(&[]);
        let every: Vec<usize> = (0..before.len().max(after.len())).collect();
        prop_assert_eq!(&run(&cuts), &whole);
        prop_assert_eq!(&run(&every), &whole);
        let started = whole.events.contains(&Event::StartTls);
        prop_assert_eq!(started, policy != nbd_proto::handshake::TlsPolicy::None);
    }

    /// Whatever is put in between, it is not taken, and ends the session.
    #[test]
    fn nothing_that_is_injected_before_tls_is_ever_taken(
        (before, injected) in strategy::tls_conversation(),
        more in 1..30usize,
        at_once: bool,
    ) {
        let agreed = before.len();
        let bytes = [&before[..], &injected, &vec![0x16; more]].concat();
        let config = ServerConfig::new()
            .with_tls(nbd_proto::handshake::TlsPolicy::Selective)
            .with_meta_contexts(true);
        let cuts = if at_once { vec![] } else { vec![agreed] };
        let run = run_server(config, &bytes, &cuts);
        prop_assert_eq!(run.end, Err(nbd_proto::error::Fatal::PlaintextBeforeTls));
        prop_assert_eq!(run.taken, agreed);
    }

    /// However a server answers, the negotiator comes to the same end and sends the same.
    #[test]
    fn a_negotiator_does_not_care_how_its_input_is_cut(
        (bytes, cuts) in with_cuts(strategy::mutated(strategy::server_conversation(vec![
            OptionCode::EXTENDED_HEADERS,
            OptionCode::STRUCTURED_REPLY,
            OptionCode::SET_META_CONTEXT,
            OptionCode::GO,
            OptionCode::GO,
        ]))),
        structured: bool,
        extended: bool,
    ) {
        let wanted = Wanted::new(name("disk"))
            .with_extended_headers(extended)
            .with_structured_replies(structured)
            .with_contexts([name("base:allocation")]);
        let whole = negotiate(&wanted, &bytes, &[]);
        let every: Vec<usize> = (0..bytes.len()).collect();
        prop_assert_eq!(&negotiate(&wanted, &bytes, &cuts), &whole);
        prop_assert_eq!(&negotiate(&wanted, &bytes, &every), &whole);
        if let Err(NegotiateError::Refused(_)) = whole.1 {
            let abort = strategy::frame(OptionCode::ABORT, b"");
            let fixed = bytes[17] & 1 == 1;
            prop_assert_eq!(whole.0.ends_with(&abort), fixed);
        }
    }

    /// What a server of ours sends is taken by a client of ours, in whatever pieces.
    #[test]
    fn a_client_gets_through_what_our_server_sends(
        cuts in strategy::cuts(600),
        upto in 1..8usize,
    ) {
        let options = &client_options()[..upto];
        let sent = client_bytes(fixed(), options);
        let config = ServerConfig::new().with_meta_contexts(true);
        let answers = run_server(config, &sent, &[]).output;
        let run = check_splits(&answers, &cuts, |bytes, cuts| {
            run_client(ClientConfig::new(), options, bytes, cuts)
        });
        prop_assert_eq!(run.end, Ok(()));
        prop_assert!(run.output.starts_with(&sent));
        prop_assert_eq!(run.taken, answers.len());
    }
}
