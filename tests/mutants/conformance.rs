//! The checker of histories, with a rule removed.

use super::list::{Edit, Mutant};

const CHECKER: &str = "src/conformance/check/checker.rs";
const CHECK_BLOCK: &str = "src/conformance/check/block.rs";
const CHECK_PAGES: &str = "src/conformance/check/pages.rs";
const CHECK_EFFECT: &str = "src/conformance/check/effect.rs";
const CHECK_FLUSHES: &str = "src/conformance/check/flushes.rs";
const JUDGE: &str = "src/conformance/property/judge.rs";
const MODEL: &str = "src/conformance/backend/model.rs";
const MODEL_SERVER: &str = "src/conformance/property/model_server.rs";
const MODEL_STORAGE: &str = "src/conformance/backend/storage.rs";
const SCHEDULE: &str = "src/conformance/property/schedule.rs";

pub(crate) const MUTANTS: &[Mutant] = &[
    // The checker of histories.
    Mutant {
        name: "the checker lets a flush cover what was answered before its reply",
        edits: &[Edit {
            file: CHECKER,
            find: "                let flush = Flushed {
                    invoked: command.invoked,",
            replace: "                let flush = Flushed {
                    invoked: self.now,",
        }],
        caught_by: &[
            "clauses::a_flush_sent_before_the_reply_covers_nothing",
            "schedules::a_flush_whose_reply_comes_late_covers_no_more_than_what_was_answered_when_it_was_sent",
        ],
    },
    Mutant {
        name: "the checker judges a read by the flushes before its reply",
        edits: &[Edit {
            file: CHECKER,
            find: "            at: command.invoked,
            flush: command.flush,
        };",
            replace: "            at: command.invoked,
            flush: self.flushes.latest(self.promise.scope, command.serial),
        };",
        }],
        caught_by: &["clauses::a_read_sent_before_the_flush_was_answered_may_find_what_is_old"],
    },
    Mutant {
        name: "the checker believes in flushes that failed",
        edits: &[Edit {
            file: CHECKER,
            find: "            (Command::Flush, Outcome::Done) => {",
            replace: "            (Command::Flush, _) => {",
        }],
        caught_by: &[
            "clauses::a_failed_flush_covers_nothing",
            "schedules::e3_what_a_failed_flush_has_not_written_out_is_not_promised",
        ],
    },
    Mutant {
        name: "the checker takes the latest reply for the flush that covers the most",
        edits: &[Edit {
            file: CHECK_FLUSHES,
            find: "        if flush.invoked > latest.invoked {",
            replace: "        if flush.invoked != latest.invoked {",
        }],
        caught_by: &["clauses::a_flush_that_is_overtaken_by_a_later_one_does_not_take_its_place"],
    },
    Mutant {
        name: "the checker ignores FUA",
        edits: &[Edit {
            file: CHECK_BLOCK,
            find: "effect.fua = succeeded && effect.wants_fua;",
            replace: "effect.fua = false;",
        }],
        caught_by: &[
            "clauses::fua_covers_its_own_data",
            "schedules::r5_what_fua_has_written_is_found_by_all",
        ],
    },
    Mutant {
        name: "the checker believes in FUA that failed",
        edits: &[Edit {
            file: CHECK_BLOCK,
            find: "effect.fua = succeeded && effect.wants_fua;",
            replace: "effect.fua = effect.wants_fua;
        effect.settled = now;",
        }],
        caught_by: &["clauses::fua_that_failed_covers_nothing"],
    },
    Mutant {
        name: "the checker takes a failed write for settled",
        edits: &[Edit {
            file: CHECK_BLOCK,
            find: "        if succeeded || effect.found {",
            replace: "        if succeeded || now > 0 {",
        }],
        caught_by: &["clauses::a_failed_write_may_take_effect_or_not_and_late"],
    },
    Mutant {
        name: "the checker never takes a failed write for settled",
        edits: &[Edit {
            file: CHECK_BLOCK,
            find: "        if effect.failed && effect.settled == NEVER {",
            replace: "        if effect.failed && effect.settled == 0 {",
        }],
        caught_by: &[
            "clauses::a_failed_write_that_was_read_has_taken_effect",
            "schedules::t6_a_failed_write_that_was_read_is_covered_by_the_next_flush",
        ],
    },
    Mutant {
        name: "the checker learns no order from reads",
        edits: &[Edit {
            file: CHECK_BLOCK,
            find: "        if older & !effect.before == 0 {",
            replace: "        if older & !effect.before != Places::MAX {",
        }],
        caught_by: &[
            "clauses::writes_that_overlap_in_time_have_one_order",
            "small::the_verdict_is_that_of_all_runs_of_an_abstract_server",
        ],
    },
    Mutant {
        name: "the checker learns from reads only what they say themselves",
        edits: &[Edit {
            file: CHECK_BLOCK,
            find: "            if it.before >> place & 1 == 1 {
                it.before |= before;",
            replace: "            if it.before >> place & 1 == 1 {
                it.before |= before & it.before;",
        }],
        caught_by: &["clauses::what_a_read_proves_later_holds_for_what_was_newer_already"],
    },
    Mutant {
        name: "the checker allows a crash to leave several images",
        edits: &[Edit {
            file: CHECK_BLOCK,
            find: "        if others != 0 && legal & !survivors == 0 {",
            replace: "        if others == 0 && legal & !survivors == 0 {",
        }],
        caught_by: &[
            "clauses::a_crash_leaves_one_image",
            "clauses::nothing_that_was_in_flight_takes_effect_after_a_crash",
        ],
    },
    Mutant {
        name: "the checker lets a crash undo what was covered",
        edits: &[Edit {
            file: CHECK_BLOCK,
            find: "        let dead = self.older_than(durable) | self.places(|it| it.dead);
        self.remove(dead, Why::Crash, bury);",
            replace: "        let dead = self.older_than(0 & durable) | self.places(|it| it.dead);
        self.remove(dead, Why::Crash, bury);",
        }],
        caught_by: &["small::the_verdict_is_that_of_all_runs_of_an_abstract_server"],
    },
    Mutant {
        name: "the checker does not know what it had no room for",
        edits: &[Edit {
            file: CHECK_BLOCK,
            find: "        self.remove(victims, Why::Newer, bury);",
            replace: "        self.remove(victims, Why::Newer, &mut |_, _| {});",
        }],
        caught_by: &["clauses::what_is_forgotten_for_want_of_room_is_never_accused"],
    },
    Mutant {
        name: "the checker looks for blocks of two pages in one",
        edits: &[Edit {
            file: CHECK_PAGES,
            find: "        let part = start..end.min((start / PAGE).saturating_add(1).saturating_mul(PAGE));",
            replace: "        let part = start..end.min((start / PAGE).saturating_add(2).saturating_mul(PAGE));",
        }],
        caught_by: &["clauses::a_command_may_be_about_blocks_of_several_pages"],
    },
    Mutant {
        name: "the checker forgets what reads in flight may find",
        edits: &[Edit {
            file: CHECKER,
            find: "                Some((&at, &flush)) => (at, flush),",
            replace: "                Some(_) => (self.now, latest),",
        }],
        caught_by: &[
            "clauses::a_read_that_was_in_flight_is_judged_by_when_it_was_sent_however_much_came_meanwhile",
        ],
    },
    Mutant {
        name: "the checker orders what different connections write without a flush",
        edits: &[Edit {
            file: CHECK_EFFECT,
            find: "        ordered || effect.serial == serial ||",
            replace: "        ordered || serial > 0 || effect.serial == serial ||",
        }],
        caught_by: &["clauses::what_others_write_keeps_its_order_if_that_is_promised"],
    },
    Mutant {
        name: "the checker takes a connection that came back for the same one",
        edits: &[Edit {
            file: CHECKER,
            find: "        self.connections.remove(&conn);
        let of_conn",
            replace: "        let of_conn",
        }],
        caught_by: &["clauses::a_connection_that_came_back_under_the_same_number_is_another_one"],
    },
    Mutant {
        name: "the checker accuses mixtures of what is legal",
        edits: &[Edit {
            file: CHECK_BLOCK,
            find: "            if effect.is_anything() || another {",
            replace: "            if effect.is_anything() && another {",
        }],
        caught_by: &["clauses::a_mixture_is_found_only_where_two_are_legal"],
    },
    // The models that others test with.
    Mutant {
        name: "a flush of a model drops what was written since it began",
        edits: &[Edit {
            file: MODEL,
            find: "        if cached.stamp != old.stamp {\n",
            replace: "        if cached.stamp < old.stamp {\n",
        }],
        caught_by: &["models::a_flush_does_not_cover_what_completes_while_it_runs"],
    },
    Mutant {
        name: "a flush of a model keeps what was loaded before it",
        edits: &[Edit {
            file: MODEL,
            find: "            _ => {\n                open.cache.remove(&block);\n            }\n",
            replace: "            _ => cached.dirty = false,\n",
        }],
        caught_by: &["models::a_flush_drops_what_was_loaded_before_it"],
    },
    Mutant {
        name: "a flush of a model writes once more what was written back meanwhile",
        edits: &[Edit {
            file: MODEL,
            find: "                before.dirty = false;\n",
            replace: "                before.dirty &= true;\n",
        }],
        caught_by: &["models::what_was_written_back_is_not_written_once_more"],
    },
    Mutant {
        name: "what is dirty in a model never survives a crash",
        edits: &[Edit {
            file: MODEL,
            find: "open.cache.get(&block).filter(|it| it.dirty);",
            replace: "open.cache.get(&block).filter(|_| false);",
        }],
        caught_by: &["models::whatever_is_dirty_may_survive_a_crash"],
    },
    Mutant {
        name: "a failed flush of a model keeps what it should drop",
        edits: &[Edit {
            file: MODEL,
            find: "                    open.cache.clear();\n",
            replace: "                    open.cache.len();\n",
        }],
        caught_by: &["models::a_failed_flush_of_the_dropping_kind_drops"],
    },
    Mutant {
        name: "a flush of a model makes permanent what others have written back",
        edits: &[Edit {
            file: MODEL_STORAGE,
            find: "puts.find(|it| by.is_none_or(|by| by == it.by) && it.version.at <= until);",
            replace: "puts.find(|it| it.version.at <= until || by.is_none());",
        }],
        caught_by: &["models::volatile_storage_keeps_what_its_own_handle_has_flushed"],
    },
    Mutant {
        name: "no crash is tried after a command with FUA",
        edits: &[Edit {
            file: SCHEDULE,
            find: "command == Command::Flush || command.has_fua();",
            replace: "command == Command::Flush;",
        }],
        caught_by: &["models::a_crash_right_after_a_command_with_fua_shows_that_it_was_lost"],
    },
    Mutant {
        name: "crashes are tried, and not judged",
        edits: &[Edit {
            file: JUDGE,
            find: "self.images.iter().enumerate() {",
            replace: "self.images.iter().take(0).enumerate() {",
        }],
        caught_by: &[
            "models::a_crash_right_after_a_flush_shows_what_it_did_not_cover",
            "models::a_crash_right_after_a_command_with_fua_shows_that_it_was_lost",
        ],
    },
    Mutant {
        name: "a command of a model server may be answered twice",
        edits: &[Edit {
            file: MODEL_SERVER,
            find: "        if core::mem::replace(&mut pending.answered, true) {\n",
            replace: "        if core::mem::take(&mut pending.answered) {\n",
        }],
        caught_by: &["models::each_command_is_answered_once"],
    },
    Mutant {
        name: "a command that is never answered is forgiven",
        edits: &[Edit {
            file: SCHEDULE,
            find: "        match self.sent.first_key_value() {\n",
            replace: "        match self.sent.first_key_value().filter(|_| false) {\n",
        }],
        caught_by: &["models::each_command_is_answered_once"],
    },
    Mutant {
        name: "a server is held to multi-conn whatever it has advertised",
        edits: &[Edit {
            file: SCHEDULE,
            find: "        self.multi_conn &= advertised.multi_conn;\n",
            replace: "        self.multi_conn |= advertised.multi_conn;\n",
        }],
        caught_by: &["models::a_server_is_held_to_what_it_has_advertised"],
    },
];
