//! How many connections, by the protocol text and by the messages about it.

use nbd_proto::multiplex::{
    Caution, Difference, Flushing, Intent, Mismatch, Missing, NotAdmitted, Offer, Plan, Reason,
    Routing, Scope, Use, plan,
};
use nbd_proto::session::{BlockSizes, MetaContext, ReplyStyle, Session};
use nbd_proto::wire::{Name, TransmissionFlags as Flags};

const PLAIN: Flags = Flags::HAS_FLAGS;
const FLUSH: Flags = PLAIN.union(Flags::SEND_FLUSH);
const FUA: Flags = PLAIN.union(Flags::SEND_FUA);
const MULTI: Flags = Flags::CAN_MULTI_CONN;
const READ_ONLY: Flags = PLAIN.union(Flags::READ_ONLY);

const USES: [Use; 3] = [Use::Read, Use::Copy, Use::Disk];
const CAUTIONS: [Caution; 3] = [Caution::Strict, Caution::Readers, Caution::Insist];

fn name(name: &str) -> Name {
    Name::new(name).unwrap()
}

fn session(flags: Flags) -> Session {
    Session::new(name("disk"), 1 << 30, flags)
}

fn planned(flags: Flags, usage: Use, caution: Caution) -> Plan {
    plan(&session(flags), Intent::new(usage, 4).with_caution(caution))
}

/// With all the connections that it wants.
fn opened(flags: Flags, usage: Use, caution: Caution) -> Plan {
    let mut plan = planned(flags, usage, caution);
    while plan.to_open() > 0 {
        plan.admit(&session(flags)).unwrap();
    }
    plan
}

fn refusal(plan: &mut Plan, other: &Session) -> Vec<Difference> {
    match plan.admit(other) {
        Err(NotAdmitted::Differs(mismatch)) => mismatch.differences().to_vec(),
        other => panic!("{other:?}"),
    }
}

// How many

#[test]
fn multi_conn_gives_as_many_as_were_asked_for_with_free_routing_and_one_flush_for_all() {
    for usage in [Use::Copy, Use::Disk] {
        for caution in CAUTIONS {
            let plan = opened(FLUSH | MULTI, usage, caution);
            assert_eq!((plan.connections(), plan.admitted()), (4, 4));
            assert_eq!(plan.routing(), Routing::Any);
            assert_eq!(plan.flushing(), Flushing::AnyOne);
            assert_eq!(plan.scope(), Scope::AllConnections);
            assert!(plan.final_flush());
            assert_eq!(plan.reasons(), [Reason::MultiConn]);
            assert_eq!(plan.missing(), []);
        }
    }
}

#[test]
fn without_multi_conn_clients_should_not_use_more_than_one_connection() {
    for flags in [PLAIN, FLUSH, FUA, READ_ONLY] {
        for usage in USES {
            let plan = planned(flags, usage, Caution::Strict);
            assert_eq!((plan.connections(), plan.to_open()), (1, 0));
            assert_eq!(plan.routing(), Routing::Single);
            assert_eq!(plan.reasons(), [Reason::NoMultiConn]);
            assert!(plan.missing().contains(&Missing::MultiConn));
        }
    }
}

#[test]
fn one_that_was_asked_for_is_one() {
    for connections in [0, 1] {
        for flags in [FLUSH, FLUSH | MULTI] {
            let plan = plan(&session(flags), Intent::new(Use::Disk, connections));
            assert_eq!(plan.connections(), 1);
            assert_eq!(plan.routing(), Routing::Single);
            assert_eq!(plan.reasons(), [Reason::OneAsked]);
            assert_eq!(plan.missing(), []);
            assert!(plan.final_flush());
        }
    }
}

#[test]
fn the_text_makes_no_exception_for_read_only_exports_but_the_caller_may() {
    let strict = planned(READ_ONLY, Use::Read, Caution::Strict);
    assert_eq!(strict.connections(), 1);
    for caution in [Caution::Readers, Caution::Insist] {
        for usage in USES {
            let plan = opened(READ_ONLY, usage, caution);
            assert_eq!((plan.connections(), plan.routing()), (4, Routing::Any));
            assert_eq!(plan.reasons(), [Reason::OnlyReads]);
            assert_eq!(plan.flushing(), Flushing::NotNeeded);
            assert!(plan.missing().contains(&Missing::MultiConn));
            assert!(!plan.final_flush());
        }
    }
}

#[test]
fn who_only_reads_from_a_writable_export_is_a_reader_too() {
    let plan = opened(FLUSH, Use::Read, Caution::Readers);
    assert_eq!((plan.connections(), plan.routing()), (4, Routing::Any));
    assert_eq!(plan.flushing(), Flushing::NotNeeded);
    assert!(!plan.final_flush());
}

#[test]
fn a_caller_who_answers_for_readers_only_does_not_insist_where_something_is_written() {
    for usage in [Use::Copy, Use::Disk] {
        let plan = planned(FLUSH, usage, Caution::Readers);
        assert_eq!(plan.connections(), 1);
        assert_eq!(plan.reasons(), [Reason::NoMultiConn]);
    }
}

#[test]
fn only_who_insists_gets_several_without_multi_conn_pinned_with_a_flush_on_each() {
    for usage in [Use::Copy, Use::Disk] {
        let plan = opened(FLUSH, usage, Caution::Insist);
        assert_eq!(plan.connections(), 4);
        let Routing::Pinned(pinning) = plan.routing() else {
            panic!("{:?}", plan.routing());
        };
        assert_eq!(pinning.connections(), 4);
        assert_eq!(plan.flushing(), Flushing::EachDirty);
        assert_eq!(plan.scope(), Scope::OwnConnection);
        assert!(plan.final_flush());
        assert_eq!(plan.reasons(), [Reason::Insisted]);
        assert_eq!(plan.missing(), [Missing::MultiConn]);
    }
}

#[test]
fn insisting_does_not_pin_where_multi_conn_is_advertised() {
    let plan = opened(FLUSH | MULTI, Use::Disk, Caution::Insist);
    assert_eq!(plan.routing(), Routing::Any);
}

// What was promised

#[test]
fn multi_conn_with_neither_flush_nor_fua_promises_a_disk_nothing() {
    let plan = planned(PLAIN | MULTI, Use::Disk, Caution::Strict);
    assert_eq!(plan.connections(), 1);
    assert_eq!(plan.reasons(), [Reason::NoFence]);
    assert_eq!(plan.missing(), [Missing::Flush, Missing::Fua]);
    assert_eq!(plan.flushing(), Flushing::Impossible);
    assert!(!plan.final_flush());
    let pinned = opened(PLAIN | MULTI, Use::Disk, Caution::Insist);
    assert!(matches!(pinned.routing(), Routing::Pinned(_)));
    assert_eq!(pinned.scope(), Scope::OwnConnection);
}

#[test]
fn multi_conn_without_flush_is_enough_for_a_copy_that_reads_nothing_back() {
    let plan = opened(PLAIN | MULTI, Use::Copy, Caution::Strict);
    assert_eq!((plan.connections(), plan.routing()), (4, Routing::Any));
    assert_eq!(plan.flushing(), Flushing::Impossible);
    assert_eq!(plan.missing(), [Missing::Flush, Missing::Fua]);
}

#[test]
fn multi_conn_with_fua_alone_has_writes_with_fua() {
    for usage in [Use::Copy, Use::Disk] {
        let plan = opened(FUA | MULTI, usage, Caution::Strict);
        assert_eq!((plan.connections(), plan.routing()), (4, Routing::Any));
        assert_eq!(plan.flushing(), Flushing::FuaOnly);
        assert_eq!(plan.missing(), [Missing::Flush]);
        assert!(!plan.final_flush());
    }
}

#[test]
fn multi_conn_on_a_read_only_export_needs_no_flush() {
    for usage in USES {
        let plan = opened(READ_ONLY | MULTI, usage, Caution::Strict);
        assert_eq!((plan.connections(), plan.routing()), (4, Routing::Any));
        assert_eq!(plan.reasons(), [Reason::MultiConn]);
        assert_eq!(plan.flushing(), Flushing::NotNeeded);
        assert!(!plan.final_flush());
    }
}

#[test]
fn whoever_wants_to_write_hears_that_the_export_is_read_only() {
    for usage in [Use::Copy, Use::Disk] {
        let plan = planned(READ_ONLY | MULTI, usage, Caution::Strict);
        assert_eq!(plan.missing(), [Missing::Writing]);
    }
    let plan = planned(READ_ONLY | MULTI, Use::Read, Caution::Strict);
    assert_eq!(plan.missing(), []);
}

#[test]
fn a_last_flush_is_owed_on_a_single_connection_too() {
    for usage in [Use::Copy, Use::Disk] {
        let plan = planned(FLUSH, usage, Caution::Strict);
        assert_eq!(plan.flushing(), Flushing::AnyOne);
        assert!(plan.final_flush());
    }
    assert!(!planned(FLUSH, Use::Read, Caution::Strict).final_flush());
}

#[test]
fn no_flush_is_ever_planned_that_was_not_advertised() {
    let bits = [Flags::SEND_FUA, MULTI, Flags::READ_ONLY];
    for chosen in 0..8_usize {
        let with = bits.iter().enumerate();
        let with = with.filter(|(at, _)| chosen & (1 << at) != 0);
        let flags = with.fold(PLAIN, |flags, (_, flag)| flags | *flag);
        for (usage, caution) in USES.iter().flat_map(|&it| CAUTIONS.map(|that| (it, that))) {
            let plan = opened(flags, usage, caution);
            assert!(!plan.final_flush(), "{flags:?} {usage:?} {caution:?}");
            let flushing = plan.flushing();
            assert!(!matches!(flushing, Flushing::AnyOne | Flushing::EachDirty));
            // Nor several connections for something that is written and not pinned, without the
            // server's word for it.
            let free = plan.routing() == Routing::Any && flushing != Flushing::NotNeeded;
            assert!(!free || flags.contains(MULTI), "{flags:?} {usage:?}");
        }
    }
}

#[test]
fn an_export_gets_no_more_connections_than_it_has_blocks() {
    let small = Session::new(name("disk"), 10_000, FLUSH | MULTI);
    let few = plan(&small, Intent::new(Use::Disk, 8));
    assert_eq!(few.connections(), 3);
    assert_eq!(few.reasons(), [Reason::MultiConn, Reason::SmallExport(3)]);
    let empty = Session::new(name("disk"), 0, FLUSH | MULTI);
    assert_eq!(plan(&empty, Intent::new(Use::Disk, 8)).connections(), 1);
    let pinned = Session::new(name("disk"), 3 << 20, FLUSH);
    let intent = Intent::new(Use::Copy, 8).with_caution(Caution::Insist);
    assert_eq!(plan(&pinned, intent).connections(), 8);
    let coarse = plan(&pinned, intent.with_granule(1 << 20));
    assert_eq!(coarse.connections(), 3);
    assert_eq!(coarse.reasons(), [Reason::Insisted, Reason::SmallExport(3)]);
}

#[test]
fn a_plan_depends_on_nothing_but_what_it_is_made_from() {
    for usage in USES {
        for caution in CAUTIONS {
            for flags in [PLAIN, FLUSH, FLUSH | MULTI, READ_ONLY] {
                let twice = [0, 0].map(|_| opened(flags, usage, caution));
                assert_eq!(twice[0], twice[1]);
            }
        }
    }
}

// Further connections

#[test]
fn connections_are_numbered_as_they_are_admitted() {
    let mut plan = planned(FLUSH | MULTI, Use::Disk, Caution::Strict);
    for number in 1..4 {
        assert_eq!(plan.to_open(), 4 - number);
        assert_eq!(plan.admit(&session(FLUSH | MULTI)), Ok(number));
    }
    let before = plan.clone();
    assert_eq!(
        plan.admit(&session(FLUSH | MULTI)),
        Err(NotAdmitted::Enough)
    );
    assert_eq!(plan, before);
}

#[test]
fn an_export_that_was_resized_between_connects_is_another_one() {
    let mut plan = planned(FLUSH | MULTI, Use::Disk, Caution::Strict);
    let other = Session::new(name("disk"), 1 << 31, FLUSH | MULTI);
    let difference = Difference::Size {
        first: 1 << 30,
        other: 1 << 31,
    };
    assert_eq!(refusal(&mut plan, &other), [difference]);
}

#[test]
fn an_export_that_was_renamed_between_connects_is_another_one() {
    let first = Session::new(Name::default(), 1 << 30, FLUSH | MULTI);
    let (a, b) = (name("a"), name("b"));
    let mut plan = plan(Offer::new(&first, Some(&a)), Intent::new(Use::Disk, 4));
    let difference = Difference::Export {
        first: a.clone(),
        other: b.clone(),
    };
    // What the default export stands for has changed.
    let refused = plan.admit(Offer::new(&first, Some(&b)));
    let Err(NotAdmitted::Differs(mismatch)) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(mismatch.differences(), [difference]);
    // One name for it is as good as another; a server need not tell.
    let named = Session::new(a.clone(), 1 << 30, FLUSH | MULTI);
    assert_eq!(plan.check(Offer::new(&named, Some(&a))), Ok(()));
    assert_eq!(plan.check(&first), Ok(()));
    assert!(plan.check(&named).is_err());
}

#[test]
fn a_flag_that_is_missing_behind_a_load_balancer_is_noticed() {
    for flag in [
        MULTI,
        Flags::SEND_FLUSH,
        Flags::SEND_FUA,
        Flags::READ_ONLY,
        Flags::SEND_TRIM,
        Flags::SEND_WRITE_ZEROES,
        Flags::BLOCK_STATUS_PAYLOAD,
    ] {
        let flags = FLUSH | MULTI;
        let mut plan = planned(flags, Use::Disk, Caution::Strict);
        let difference = Difference::Flags {
            first: flags,
            other: flags ^ flag,
        };
        assert_eq!(refusal(&mut plan, &session(flags ^ flag)), [difference]);
    }
}

#[test]
fn flags_that_nobody_knows_are_ignored() {
    let mut plan = planned(FLUSH | MULTI, Use::Disk, Caution::Strict);
    let unknown = Flags::from_bits_retain(0x8000);
    assert_eq!(plan.admit(&session(FLUSH | MULTI | unknown)), Ok(1));
}

#[test]
fn each_of_the_block_sizes_has_to_be_the_same() {
    let mut first = session(FLUSH | MULTI);
    first = first.with_block_sizes(BlockSizes::new(512, 4096, 1 << 25).unwrap());
    let sizes = [
        (1, 4096, 1 << 25),
        (512, 8192, 1 << 25),
        (512, 4096, 1 << 20),
    ];
    for (minimum, preferred, most) in sizes {
        let mut plan = plan(&first, Intent::new(Use::Disk, 2));
        let other = BlockSizes::new(minimum, preferred, most).unwrap();
        let difference = Difference::BlockSizes {
            first: first.block_sizes(),
            other,
        };
        let session = session(FLUSH | MULTI).with_block_sizes(other);
        assert_eq!(refusal(&mut plan, &session), [difference]);
    }
}

fn contexts(names: &[(u32, &str)]) -> Session {
    let contexts = names
        .iter()
        .map(|&(id, it)| MetaContext { id, name: name(it) });
    session(FLUSH | MULTI).with_contexts(contexts.collect())
}

#[test]
fn the_same_meta_contexts_have_to_be_selected_but_ids_and_order_are_each_session_s_own() {
    let first = contexts(&[(1, "base:allocation"), (2, "qemu:allocation-depth")]);
    let plan = plan(&first, Intent::new(Use::Disk, 4));
    let swapped = contexts(&[(1, "qemu:allocation-depth"), (7, "base:allocation")]);
    assert_eq!(plan.check(&swapped), Ok(()));
    let fewer = plan
        .check(&contexts(&[(1, "base:allocation")]))
        .unwrap_err();
    let missing = Difference::ContextMissing(name("qemu:allocation-depth"));
    assert_eq!(fewer.differences(), [missing]);
    let more = contexts(&[
        (1, "base:allocation"),
        (2, "qemu:allocation-depth"),
        (3, "x:y"),
    ]);
    let more = plan.check(&more).unwrap_err();
    assert_eq!(more.differences(), [Difference::ContextAdded(name("x:y"))]);
}

#[test]
fn other_headers_and_no_tls_are_differences_too() {
    let first = session(FLUSH | MULTI)
        .with_reply_style(ReplyStyle::Extended)
        .with_tls(true);
    let plan = plan(&first, Intent::new(Use::Disk, 4));
    let other = plan.check(&session(FLUSH | MULTI)).unwrap_err();
    let style = Difference::ReplyStyle {
        first: ReplyStyle::Extended,
        other: ReplyStyle::Simple,
    };
    assert_eq!(
        other.differences(),
        [style, Difference::Tls { first: true }]
    );
}

#[test]
fn all_that_differs_is_told_at_once() {
    let mut plan = planned(FLUSH | MULTI, Use::Disk, Caution::Strict);
    let other = Session::new(name("other"), 5, FLUSH).with_reply_style(ReplyStyle::Structured);
    assert_eq!(refusal(&mut plan, &other).len(), 4);
    let mismatch: Mismatch = plan.check(&other).unwrap_err();
    let words = mismatch.to_string();
    assert!(words.starts_with("this is not another connection to the same export: "));
    for part in ["\"other\"", "5 bytes", "CAN_MULTI_CONN", "structured"] {
        assert!(words.contains(part), "{words}");
    }
}

#[test]
fn after_a_refusal_the_plan_goes_on_with_one_fewer() {
    let mut plan = planned(FLUSH | MULTI, Use::Disk, Caution::Strict);
    let good = session(FLUSH | MULTI);
    let bad = session(FLUSH);
    assert_eq!(plan.admit(&good), Ok(1));
    refusal(&mut plan, &bad);
    assert_eq!(
        (plan.connections(), plan.admitted(), plan.to_open()),
        (3, 2, 1)
    );
    assert_eq!(plan.admit(&good), Ok(2));
    assert_eq!((plan.connections(), plan.to_open()), (3, 0));
    assert_eq!(plan.reasons(), [Reason::MultiConn, Reason::Refused(1)]);
}

#[test]
fn a_server_that_offers_something_else_each_time_does_not_keep_the_caller_busy() {
    let mut plan = planned(FLUSH | MULTI, Use::Disk, Caution::Strict);
    let mut tries = 0;
    while plan.to_open() > 0 {
        refusal(&mut plan, &session(FLUSH));
        tries += 1;
        assert!(tries <= 3, "it goes on for ever");
    }
    assert_eq!(tries, 3);
    assert_eq!((plan.connections(), plan.routing()), (1, Routing::Single));
}

#[test]
fn with_a_server_that_refuses_further_connections_it_goes_on_with_those_there_are() {
    let mut plan = planned(FLUSH | MULTI, Use::Disk, Caution::Strict);
    plan.admit(&session(FLUSH | MULTI)).unwrap();
    plan.unavailable();
    assert_eq!((plan.connections(), plan.to_open()), (2, 0));
    assert_eq!(plan.routing(), Routing::Any);
    assert_eq!(plan.reasons(), [Reason::MultiConn, Reason::Unavailable]);
    let mut alone = planned(FLUSH, Use::Copy, Caution::Insist);
    alone.unavailable();
    assert_eq!(alone.routing(), Routing::Single);
    assert_eq!(alone.flushing(), Flushing::AnyOne);
}

#[test]
fn that_nothing_more_is_available_does_not_matter_when_there_are_enough() {
    let mut plan = opened(FLUSH | MULTI, Use::Disk, Caution::Strict);
    plan.unavailable();
    assert_eq!(plan.reasons(), [Reason::MultiConn]);
}

#[test]
fn ranges_are_pinned_over_the_connections_that_there_are() {
    let mut plan = planned(FLUSH, Use::Copy, Caution::Insist);
    plan.admit(&session(FLUSH)).unwrap();
    plan.unavailable();
    let Routing::Pinned(pinning) = plan.routing() else {
        panic!("{:?}", plan.routing());
    };
    assert_eq!(pinning.connections(), 2);
    let parts: Vec<_> = plan.pinned(0, 4 << 20).unwrap().collect();
    assert_eq!(parts.len(), 4);
    assert!(parts.iter().all(|part| part.connection < 2));
}

// Words

#[test]
fn a_plan_prints_as_sentences() {
    let free = opened(FLUSH | MULTI, Use::Disk, Caution::Strict).to_string();
    assert_eq!(
        free,
        "4 connections, any of them for each command.\n\
         The server promises that what was flushed on one connection is so for all (multi-conn).\n\
         A flush covers all that was answered before it was sent.\n\
         A last flush is owed before disconnecting."
    );
    let mut pinned = planned(FLUSH, Use::Copy, Caution::Insist);
    pinned.admit(&session(FLUSH)).unwrap();
    refusal(&mut pinned, &session(FUA));
    pinned.unavailable();
    let pinned = pinned.to_string();
    assert_eq!(
        pinned,
        "2 connections, pinned: ranges of 1048576 bytes take turns.\n\
         The caller insists on several connections without multi-conn, and vouches that they \
         share their data: each range has one connection, so that no two caches hold the same \
         bytes.\n\
         1 more did not get the same export, and must not be used.\n\
         The server takes no further connection.\n\
         A flush covers its own connection only: each that has written is flushed.\n\
         A last flush is owed before disconnecting.\n\
         The server does not promise that its connections see what was flushed on one of them \
         (no multi-conn)."
    );
}

#[test]
fn every_line_of_every_plan_is_a_sentence() {
    for flags in (0..1 << 9).map(|bits| Flags::from_bits_retain(bits | 1)) {
        for (usage, caution) in USES.iter().flat_map(|&it| CAUTIONS.map(|that| (it, that))) {
            for line in opened(flags, usage, caution).to_string().lines() {
                assert!(line.ends_with('.') && line.len() > 10, "{line}");
                assert!(line.starts_with(|it: char| it.is_uppercase() || it.is_numeric()));
            }
        }
    }
}
