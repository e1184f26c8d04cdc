//! What a server does not put up with, and how much it takes.

use nbd_proto::error::Fatal;
use nbd_proto::handshake::{Ask, ServerConfig, ServerHandshake, Step};
use nbd_proto::limits::Limits;
use nbd_proto::wire::{ClientFlags, ClientOption, InfoType, OptionCode, OptionHeader, ReplyType};

use super::{go, kinds, serve_raw};
use crate::handshake_support::*;

#[test]
fn client_flags_that_were_not_offered_end_the_session() {
    let strict = ServerConfig::new().with_no_zeroes(false);
    for (config, bits) in [
        (ServerConfig::new(), 4),
        (ServerConfig::new(), 0x8000_0001),
        (strict, 2),
        (strict, 3),
    ] {
        let flags = ClientFlags::from_bits_retain(bits);
        let run = run_server(config, &client_bytes(flags, &[ClientOption::Abort]), &[]);
        assert_eq!(run.end, Err(Fatal::ClientFlags(flags)));
        assert_eq!(run.output.len(), 18, "only the greeting");
    }
    let greeting = |config| run_server(config, &[], &[]).output;
    assert_eq!(greeting(ServerConfig::new())[16..], [0, 3]);
    assert_eq!(greeting(strict)[16..], [0, 1]);
}

#[test]
fn a_client_without_fixed_newstyle_is_served_all_the_same() {
    let options = [ClientOption::List, go("disk", &[])];
    let run = run_server(
        ServerConfig::new(),
        &client_bytes(ClientFlags::empty(), &options),
        &[],
    );
    assert!(matches!(run.events.last(), Some(Event::Done(_))));
}

#[test]
fn an_option_without_its_magic_number_ends_the_session() {
    let mut bytes = client_bytes(fixed(), &[ClientOption::Abort]);
    bytes[4] = b'J';
    let run = run_server(ServerConfig::new(), &bytes, &[]);
    assert!(matches!(run.end, Err(Fatal::OptionMagic(_))));
    assert_eq!(run.output.len(), 18);
}

#[test]
fn one_option_too_many_ends_the_session() {
    let config = ServerConfig::new().with_limits(Limits::new().with_max_options(2));
    let list = ClientOption::List;
    let run = run_server(
        config,
        &client_bytes(fixed(), &[list.clone(), list.clone(), list]),
        &[],
    );
    assert_eq!(run.end, Err(Fatal::TooManyOptions { limit: 2 }));
    assert_eq!(run.events, [Event::List, Event::List]);
}

#[test]
fn a_client_may_leave_softly_after_the_last_option_that_it_may_send() {
    // proto.md under `NBD_OPT_ABORT`: "The server MUST reply with NBD_REP_ACK".
    let config = ServerConfig::new().with_limits(Limits::new().with_max_options(1));
    let options = [ClientOption::List, ClientOption::Abort];
    let run = run_server(config, &client_bytes(fixed(), &options), &[]);
    assert_eq!(run.events, [Event::List, Event::Aborted]);
    assert_eq!(
        kinds(&run).last(),
        Some(&(OptionCode::ABORT, ReplyType::ACK))
    );
}

#[test]
fn a_body_above_the_limit_is_too_big_and_skipped() {
    let limits = Limits::new().with_max_option_body(100).with_max_drain(200);
    let config = ServerConfig::new().with_limits(limits);
    let run = serve_raw(
        config,
        &[
            (OptionCode::GO, &[0; 101]),
            (OptionCode::INFO, &[0; 200]),
            (OptionCode(99), &[0; 200]),
            (OptionCode::ABORT, &[0; 200]),
        ],
    );
    assert_eq!(
        kinds(&run),
        [
            (OptionCode::GO, ReplyType::ERR_TOO_BIG),
            (OptionCode::INFO, ReplyType::ERR_TOO_BIG),
            (OptionCode(99), ReplyType::ERR_UNSUP),
            (OptionCode::ABORT, ReplyType::ACK),
        ]
    );
}

#[test]
fn a_body_and_a_name_of_exactly_the_limit_are_taken() {
    let long = "x".repeat(94);
    // The length of the name, the name, and the number of information requests.
    let go = go(&long, &[]);
    let export_name = ClientOption::ExportName(name(&long));
    let known = |ask: Ask<'_>| match ask {
        Ask::Export(ask) => ask.accept(&disk()),
        other => panic!("{other:?}"),
    };
    for (option, length) in [(&go, 100), (&export_name, 94)] {
        let limits = Limits::new().with_max_option_body(length);
        let config = ServerConfig::new().with_limits(limits);
        let bytes = client_bytes(fixed(), std::slice::from_ref(option));
        let run = run_server_with(config, &bytes, &[], known);
        assert!(
            matches!(run.events.last(), Some(Event::Done(_))),
            "{option:?}"
        );
    }
}

#[test]
fn an_option_too_long_to_be_skipped_ends_the_session_at_its_header() {
    let limits = Limits::new().with_max_option_body(100).with_max_drain(200);
    let small = ServerConfig::new().with_limits(limits);
    let default = ServerConfig::new();
    for (config, option, length, limit) in [
        (small, OptionCode(99), 201, 200),
        (small, OptionCode::GO, 201, 200),
        (small, OptionCode::ABORT, 201, 200),
        (small, OptionCode::EXPORT_NAME, 101, 100),
        (default, OptionCode::EXPORT_NAME, 4097, 4096),
        // A client that says 4 GiB.
        (default, OptionCode::EXPORT_NAME, u32::MAX, 4096),
        (default, OptionCode::GO, u32::MAX, 1 << 25),
        (default, OptionCode::LIST, u32::MAX, 1 << 25),
        (default, OptionCode(99), u32::MAX, 1 << 25),
    ] {
        let mut bytes = fixed().to_bytes().to_vec();
        bytes.extend_from_slice(&OptionHeader { option, length }.to_bytes());
        let run = run_server(config, &bytes, &[]);
        let too_long = Fatal::OptionTooLong {
            option,
            length,
            limit,
        };
        assert_eq!(run.end, Err(too_long));
        assert_eq!(run.output.len(), 18, "only the greeting");
    }
}

#[test]
fn the_machine_never_wants_more_than_the_rest_of_the_message() {
    let mut out = vec![];
    let mut machine = ServerHandshake::new(ServerConfig::new(), &mut out);
    let options = [
        ClientOption::Unknown {
            option: OptionCode(99),
            data: vec![0; 77],
        },
        go("disk", &[InfoType::BLOCK_SIZE]),
    ];
    let bytes = client_bytes(fixed(), &options);
    let mut rest = &bytes[..];
    let mut wanted = vec![];
    for turn in 0.. {
        assert!(turn < 20, "does not come to an end: {wanted:?}");
        let wants = machine.wants();
        let (mut input, after) = rest.split_at(wants.min(rest.len()));
        if wants > 0 {
            wanted.push(wants);
        }
        rest = after;
        match machine.step(&mut input, &mut out).unwrap() {
            Step::NeedInput => {}
            Step::Export(ask) => ask.accept(&disk()),
            Step::Done(_) => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(wanted, [4, 16, 77, 16, 12]);
    assert!(rest.is_empty());
    assert_eq!(machine.wants(), 0);
}

#[test]
fn after_an_ask_that_was_let_go_of_the_next_option_is_wanted_if_there_can_be_one() {
    let name = ClientOption::ExportName(name("disk"));
    for (option, wants) in [(go("disk", &[]), 16), (ClientOption::List, 16), (name, 0)] {
        let mut out = vec![];
        let mut machine = ServerHandshake::new(ServerConfig::new(), &mut out);
        let bytes = client_bytes(fixed(), std::slice::from_ref(&option));
        let step = machine.step(&mut &bytes[..], &mut out);
        assert!(matches!(step, Ok(Step::Export(_) | Step::List(_))));
        assert_eq!(machine.wants(), wants, "{option:?}");
    }
}

#[test]
fn once_done_a_server_says_so_again_and_leaves_the_rest_alone() {
    let mut bytes = client_bytes(fixed(), &[go("disk", &[])]);
    bytes.extend_from_slice(b"requests");
    let (mut out, mut input) = (vec![], &bytes[..]);
    let mut machine = ServerHandshake::new(ServerConfig::new(), &mut out);
    match machine.step(&mut input, &mut out).unwrap() {
        Step::Export(ask) => ask.accept(&disk()),
        other => panic!("{other:?}"),
    }
    let written = out.len();
    for _ in 0..2 {
        assert!(matches!(
            machine.step(&mut input, &mut out),
            Ok(Step::Done(_))
        ));
        assert_eq!(input, b"requests");
    }
    assert_eq!(out.len(), written);
}

#[test]
fn the_end_of_input_is_in_order_between_options_only() {
    let bytes = client_bytes(fixed(), &[ClientOption::List, go("gone", &[])]);
    // Flags, the header of LIST, the header of GO, its body.
    for end in 0..=bytes.len() {
        let run = run_server(ServerConfig::new(), &bytes[..end], &[]);
        let between = [0, 4, 20, bytes.len()].contains(&end);
        let expected = if between { Ok(()) } else { Err(Fatal::Closed) };
        assert_eq!(run.eof, expected, "after {end} bytes");
    }
}
