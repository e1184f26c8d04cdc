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
            OptionCode::GO,
        ]))),
        first in 0..5usize,
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

    /// However a server answers, the negotiator comes to the same end and sends the same.
    #[test]
    fn a_negotiator_does_not_care_how_its_input_is_cut(
        (bytes, cuts) in with_cuts(strategy::mutated(strategy::server_conversation(vec![
            OptionCode::STRUCTURED_REPLY,
            OptionCode::GO,
            OptionCode::GO,
        ]))),
        structured: bool,
    ) {
        let wanted = compact("disk").with_structured_replies(structured);
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
        upto in 1..5usize,
    ) {
        let options = &client_options()[..upto];
        let sent = client_bytes(fixed(), options);
        let answers = run_server(ServerConfig::new(), &sent, &[]).output;
        let run = check_splits(&answers, &cuts, |bytes, cuts| {
            run_client(ClientConfig::new(), options, bytes, cuts)
        });
        prop_assert_eq!(run.end, Ok(()));
        prop_assert!(run.output.starts_with(&sent));
        prop_assert_eq!(run.taken, answers.len());
    }
}
