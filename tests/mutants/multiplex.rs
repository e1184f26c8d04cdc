//! The client's side of multi-conn, with a rule removed.

use super::list::{Edit, Mutant};

const LEDGER: &str = "src/multiplex/ledger/mod.rs";
const LEDGER_ANSWERS: &str = "src/multiplex/ledger/answers.rs";
const OFFER: &str = "src/multiplex/offer.rs";
const PINNING: &str = "src/multiplex/pinning.rs";
const PLAN: &str = "src/multiplex/plan.rs";

pub(crate) const MUTANTS: &[Mutant] = &[
    // The client's side: what is durable, and how many connections.
    Mutant {
        name: "a flush covers what was answered before its reply came, not before it was sent",
        edits: &[Edit {
            file: LEDGER,
            find: "        (self.writes.get(at)?.answered < sent).then_some(at)\n",
            replace: "        self.writes.get(at)?;\n        let _ = sent;\n        Some(at)\n",
        }],
        caught_by: &[
            "ledger::the_2016_scenario_a_flush_reply_that_arrives_late_does_not_cover_what_it_overtook",
        ],
    },
    Mutant {
        name: "a flush covers all connections without multi-conn",
        edits: &[Edit {
            file: LEDGER,
            find: "            Scope::OwnConnection => self.connections.get(connection)?.queue.first(),",
            replace: "            Scope::OwnConnection => {\n                let _ = connection;\n                self.connections.all().map(|(_, it)| it.queue.first()).min()?\n            }",
        }],
        caught_by: &[
            "ledger::the_simpler_failure_case_of_2016_one_channel_gets_the_writes_and_one_the_flushes",
        ],
    },
    Mutant {
        name: "a reply alone makes a write durable",
        edits: &[Edit {
            file: LEDGER,
            find: "        if tracked.fua {\n            tracked.phase = Phase::Free;",
            replace: "        if tracked.fua || tracked.sent > 0 {\n            tracked.phase = Phase::Free;",
        }],
        caught_by: &["ledger::a_write_becomes_durable_by_a_flush_that_was_sent_after_its_reply"],
    },
    Mutant {
        name: "a failed flush leaves its writes to the next one",
        edits: &[Edit {
            file: LEDGER,
            find: "        while let Some(write) = self.next_covered(at, now) {",
            replace: "        while let Some(write) = self.next_covered(at, 0) {",
        }],
        caught_by: &["ledger::after_a_failed_flush_no_later_success_makes_its_writes_durable"],
    },
    Mutant {
        name: "a failed flush casts doubt only on what it should have covered",
        edits: &[Edit {
            file: LEDGER,
            find: "        while let Some(write) = self.next_covered(at, now) {",
            replace: "        while let Some(write) = self.next_covered(at, flush.sent) {",
        }],
        caught_by: &[
            "ledger::what_was_in_flight_or_answered_beside_a_flush_that_fails_is_suspect_too",
        ],
    },
    Mutant {
        name: "what was in flight when a flush failed is believed",
        edits: &[Edit {
            file: LEDGER,
            find: "        if tracked.sent < failed {",
            replace: "        if tracked.sent < failed.min(0) {",
        }],
        caught_by: &[
            "ledger::what_was_in_flight_or_answered_beside_a_flush_that_fails_is_suspect_too",
        ],
    },
    Mutant {
        name: "whatever is sent after a failed flush is suspect, too",
        edits: &[Edit {
            file: LEDGER,
            find: "        if tracked.sent < failed {",
            replace: "        if failed > 0 {",
        }],
        caught_by: &["ledger::after_a_failed_flush_no_later_success_makes_its_writes_durable"],
    },
    Mutant {
        name: "what a connection leaves behind is covered by the next flush elsewhere",
        edits: &[Edit {
            file: LEDGER,
            find: "        let doubted = !connection.is_open() && doubts;",
            replace: "        let doubted = !connection.is_open() && doubts && connection.since == 0;",
        }],
        caught_by: &[
            "ledger::with_multi_conn_what_a_connection_leaves_is_suspect_unless_the_caller_knows_the_server",
            "ledger::a_flush_that_is_answered_after_a_connection_ended_does_not_cover_what_it_left",
        ],
    },
    Mutant {
        name: "a flush in flight survives the end of its connection",
        edits: &[Edit {
            file: LEDGER,
            find: "            flush.sent = 0;\n            let flushes",
            replace: "            let flushes",
        }],
        caught_by: &[
            "ledger::a_flush_in_flight_on_a_connection_that_ends_is_as_if_it_had_never_been_sent",
        ],
    },
    Mutant {
        name: "a reply is accepted after its connection has ended",
        edits: &[Edit {
            file: LEDGER,
            find: "    let connection = connection.filter(|it| it.is_open());\n    Ok((connection",
            replace: "    Ok((connection",
        }],
        caught_by: &["repair::an_event_that_cannot_be_is_an_error_and_changes_nothing"],
    },
    Mutant {
        name: "a write is found by its place alone",
        edits: &[Edit {
            file: LEDGER,
            find: ".filter(|it| it.sent == write.sent && it.phase == Phase::InFlight)",
            replace: ".filter(|it| it.phase == Phase::InFlight)",
        }],
        caught_by: &["repair::an_old_id_does_not_find_the_next_write_in_its_place"],
    },
    Mutant {
        name: "a connection's place is free while its writes are remembered",
        edits: &[Edit {
            file: LEDGER,
            find: "        if connection.ended != 0 && connection.referred == 0 {",
            replace: "        if connection.ended != 0 {",
        }],
        caught_by: &["repair::a_connection_s_place_is_not_reused_while_its_writes_are_remembered"],
    },
    Mutant {
        name: "a forgotten write is called durable",
        edits: &[Edit {
            file: LEDGER,
            find: "        tracked.forgotten = tracked.sent;\n",
            replace: "",
        }],
        caught_by: &[
            "repair::what_is_forgotten_is_never_called_durable_though_its_place_is_reused",
        ],
    },
    Mutant {
        name: "a forgotten write is called durable once its place is reused",
        edits: &[Edit {
            file: LEDGER,
            find: "                forgotten: write.forgotten,",
            replace: "                forgotten: 0,",
        }],
        caught_by: &[
            "repair::what_is_forgotten_is_never_called_durable_though_its_place_is_reused",
        ],
    },
    Mutant {
        name: "a write is replaced by one that may have come before it",
        edits: &[Edit {
            file: LEDGER,
            find: "        if by.sent <= ended || self",
            replace: "        if self",
        }],
        caught_by: &[
            "repair::what_was_sent_before_the_end_of_a_write_was_known_does_not_replace_it",
        ],
    },
    Mutant {
        name: "no flush is owed while any is in flight",
        edits: &[Edit {
            file: LEDGER_ANSWERS,
            find: "            && connection.last_acknowledged > last_flush\n",
            replace: "            && last_flush == 0\n",
        }],
        caught_by: &["ledger::no_flush_is_owed_while_one_is_in_flight_that_covers_all"],
    },
    Mutant {
        name: "a flush is owed though one in flight covers all",
        edits: &[Edit {
            file: LEDGER_ANSWERS,
            find: "            && connection.last_acknowledged > last_flush\n",
            replace: "            && (connection.last_acknowledged > last_flush || last_flush > 0)\n",
        }],
        caught_by: &["ledger::no_flush_is_owed_while_one_is_in_flight_that_covers_all"],
    },
    Mutant {
        name: "without multi-conn one connection is flushed for all",
        edits: &[Edit {
            file: LEDGER_ANSWERS,
            find: "            Scope::OwnConnection => (None, true),",
            replace: "            Scope::OwnConnection => (self.any_to_flush(), false),",
        }],
        caught_by: &[
            "ledger::with_multi_conn_one_connection_is_to_be_flushed_else_each_that_wrote",
        ],
    },
    Mutant {
        name: "a connection leaves while something is uncovered",
        edits: &[Edit {
            file: LEDGER_ANSWERS,
            find: "                (false, _) => connection.acknowledged,",
            replace: "                (false, _) => Tally::ZERO,",
        }],
        caught_by: &[
            "ledger::a_connection_may_leave_when_nothing_is_in_flight_and_nothing_is_uncovered",
        ],
    },
    Mutant {
        name: "the last connection leaves what others left to it",
        edits: &[Edit {
            file: LEDGER_ANSWERS,
            find: "                (true, 1) => self.summary.acknowledged,\n",
            replace: "                (true, 1) => connection.acknowledged,\n",
        }],
        caught_by: &[
            "ledger::all_but_the_last_connection_may_leave_their_writes_to_the_others_of_a_trusted_server",
        ],
    },
    Mutant {
        name: "several connections without multi-conn",
        edits: &[Edit {
            file: PLAN,
            find: "    if multi_conn && (fence",
            replace: "    if (multi_conn || fence) && (fence",
        }],
        caught_by: &["plan::without_multi_conn_clients_should_not_use_more_than_one_connection"],
    },
    Mutant {
        name: "several connections for a disk that has no flush",
        edits: &[Edit {
            file: PLAN,
            find: "    if multi_conn && (fence || !writes || intent.usage == Use::Copy) {",
            replace: "    let _ = fence;\n    if multi_conn {",
        }],
        caught_by: &["plan::multi_conn_with_neither_flush_nor_fua_promises_a_disk_nothing"],
    },
    Mutant {
        name: "a flush on any connection where ranges are pinned",
        edits: &[Edit {
            file: PLAN,
            find: "                Routing::Pinned(_) => Flushing::EachDirty,",
            replace: "                Routing::Pinned(_) => Flushing::AnyOne,",
        }],
        caught_by: &[
            "plan::only_who_insists_gets_several_without_multi_conn_pinned_with_a_flush_on_each",
        ],
    },
    Mutant {
        name: "no last flush on a single connection",
        edits: &[Edit {
            file: PLAN,
            find: "        matches!(self.flushing(), Flushing::AnyOne | Flushing::EachDirty)\n",
            replace: "        self.wanted > 1 && matches!(self.flushing(), Flushing::AnyOne | Flushing::EachDirty)\n",
        }],
        caught_by: &["plan::a_last_flush_is_owed_on_a_single_connection_too"],
    },
    Mutant {
        name: "a refused connection is asked for again",
        edits: &[Edit {
            file: PLAN,
            find: "            self.wanted -= 1;\n",
            replace: "",
        }],
        caught_by: &["plan::after_a_refusal_the_plan_goes_on_with_one_fewer"],
    },
    Mutant {
        name: "ranges are pinned to connections that there are not",
        edits: &[Edit {
            file: PLAN,
            find: "Routing::Pinned(self.pinning.over(self.admitted))",
            replace: "Routing::Pinned(self.pinning)",
        }],
        caught_by: &["plan::ranges_are_pinned_over_the_connections_that_there_are"],
    },
    Mutant {
        name: "the canonical name of the export is not compared",
        edits: &[Edit {
            file: OFFER,
            find: "            (Some(first), Some(other)) => (first, other),",
            replace: "            (Some(first), Some(_)) => (first, first),",
        }],
        caught_by: &["plan::an_export_that_was_renamed_between_connects_is_another_one"],
    },
    Mutant {
        name: "flags that nobody knows are compared",
        edits: &[Edit {
            file: OFFER,
            find: "        let known = named_flags();",
            replace: "        let known = named_flags() | TransmissionFlags::from_bits_retain(0x8000);",
        }],
        caught_by: &["plan::flags_that_nobody_knows_are_ignored"],
    },
    Mutant {
        name: "two connections own parts of a block",
        edits: &[Edit {
            file: PINNING,
            find: "        Self::new(granule.max(u64::from(preferred)), connections)",
            replace: "        let _ = preferred;\n        Self::new(granule, connections)",
        }],
        caught_by: &["pinning::the_granule_is_never_below_the_preferred_block_size"],
    },
    Mutant {
        name: "what straddles is not split",
        edits: &[Edit {
            file: PINNING,
            find: "        if left < length { left } else { length }",
            replace: "        let _ = left;\n        length",
        }],
        caught_by: &["pinning::parts_are_the_range_in_order_and_each_byte_is_where_it_is_pinned"],
    },
];
