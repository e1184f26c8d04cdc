//! Whatever options a client sends, as long as their headers tell the truth, the server answers
//! each exactly once and stays in sync.

#![cfg(feature = "proptest")]

mod handshake_support;

use std::collections::VecDeque;

use handshake_support::*;
use nbd_proto::conformance::strategy::handshake as strategy;
use nbd_proto::error::Fatal;
use nbd_proto::handshake::ServerConfig;
use nbd_proto::limits::Limits;
use nbd_proto::wire::{OptionCode, OptionReply, ReplyType};
use proptest::prelude::*;

/// Checks the replies against the options that were sent: each is answered by replies to itself,
/// the last of which is final, before the next one is. Says how many were answered.
fn answered(options: &[OptionCode], replies: &[(OptionCode, OptionReply)]) -> usize {
    let mut open: VecDeque<_> = options.iter().collect();
    for (option, reply) in replies {
        assert_eq!(Some(&option), open.front(), "a reply to something else");
        if reply.is_final() {
            open.pop_front();
        } else {
            let fits = matches!(
                (*option, reply.reply_type()),
                (OptionCode::LIST, ReplyType::SERVER)
                    | (OptionCode::INFO | OptionCode::GO, ReplyType::INFO)
                    | (
                        OptionCode::LIST_META_CONTEXT | OptionCode::SET_META_CONTEXT,
                        ReplyType::META_CONTEXT
                    )
            );
            assert!(fits, "{reply:?} to {option}");
        }
    }
    if let Some((_, last)) = replies.last() {
        assert!(last.is_final(), "an answer without an end");
    }
    options.len() - open.len()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn each_option_is_answered_once_and_an_abort_at_the_end_is_acknowledged(
        options in proptest::collection::vec(strategy::framed_option(), 0..10),
        tight: bool,
    ) {
        let mut limits = Limits::new();
        if tight {
            limits = limits.with_max_option_body(48).with_max_drain(96).with_max_options(6);
        }
        let mut bytes = fixed().to_bytes().to_vec();
        for (option, body) in &options {
            bytes.extend_from_slice(&strategy::frame(*option, body));
        }
        bytes.extend_from_slice(&strategy::frame(OptionCode::ABORT, b""));
        let mut codes: Vec<_> = options.iter().map(|(option, _)| *option).collect();
        codes.push(OptionCode::ABORT);

        let config = ServerConfig::new().with_limits(limits).with_meta_contexts(true);
        let run = run_server(config, &bytes, &[]);
        let (replies, rest) = replies(&run.output);
        let count = answered(&codes, &replies);
        match (&run.end, run.events.last()) {
            (Ok(()), Some(Event::Aborted)) => {
                prop_assert_eq!(codes[count - 1], OptionCode::ABORT);
                prop_assert_eq!(&replies.last().unwrap().1, &OptionReply::Ack);
                prop_assert!(rest.is_empty());
            }
            (Ok(()), Some(Event::Done(_))) if rest.is_empty() => {
                prop_assert_eq!(codes[count - 1], OptionCode::GO);
                prop_assert_eq!(&replies.last().unwrap().1, &OptionReply::Ack);
            }
            (Ok(()), Some(Event::Done(_))) => {
                prop_assert_eq!(codes[count], OptionCode::EXPORT_NAME);
                prop_assert_eq!(rest.len(), 10);
            }
            // Hung up, by a rule that is stated in the documentation of `error`.
            (Err(Fatal::ExportName(_) | Fatal::ExportRefused { .. }), _) => {
                prop_assert_eq!(codes[count], OptionCode::EXPORT_NAME);
            }
            (Err(Fatal::ExportNameAfterExtendedHeaders), _) => {
                prop_assert_eq!(codes[count], OptionCode::EXPORT_NAME);
                let acked = (OptionCode::EXTENDED_HEADERS, OptionReply::Ack);
                prop_assert!(replies.contains(&acked));
            }
            (Err(Fatal::OptionTooLong { option, length, limit }), _) => {
                prop_assert_eq!(codes[count], *option);
                prop_assert!(length > limit);
                let name = *option == OptionCode::EXPORT_NAME;
                prop_assert!(name || *limit == limits.max_drain());
            }
            (Err(Fatal::TooManyOptions { limit }), _) => {
                prop_assert_eq!(count, *limit as usize);
            }
            (end, last) => prop_assert!(false, "ended with {:?} after {:?}", end, last),
        }
        prop_assert!(run.end.is_err() || is_over(&run));
    }

    /// Nothing that a client can send makes the server do anything else than answer or hang up.
    #[test]
    fn any_bytes_are_answered_or_hung_up_on(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
        flags in 0..4u32,
        header_first: bool,
    ) {
        let mut sent = flags.to_be_bytes().to_vec();
        if header_first {
            sent.extend_from_slice(b"IHAVEOPT\0\0\0");
        }
        sent.extend_from_slice(&bytes);
        let run = run_server(ServerConfig::new(), &sent, &[]);
        prop_assert!(run.taken <= sent.len());
        // Never more than a list, an export and an error for each option that fits in.
        prop_assert!(run.output.len() <= 18 + (sent.len() / 16 + 1) * 300);
    }
}
