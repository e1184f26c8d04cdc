//! The mutants, as data.

/// One change of the source. The text to find is code, and occurs exactly once.
pub(crate) struct Edit {
    pub(crate) file: &'static str,
    pub(crate) find: &'static str,
    pub(crate) replace: &'static str,
}

/// A coordinator with one rule removed.
pub(crate) struct Mutant {
    /// What it does wrong.
    pub(crate) name: &'static str,
    pub(crate) edits: &'static [Edit],
    /// The tests of the rule: each of them has to fail.
    pub(crate) caught_by: &'static [&'static str],
}

const ACKNOWLEDGE: &str = "src/flush/acknowledge.rs";
const COHERENT: &str = "src/flush/coherent.rs";
const COORDINATOR: &str = "src/flush/coordinator.rs";
const FENCE: &str = "src/flush/fence.rs";
const FUA: &str = "src/flush/fua.rs";
const HANDLE: &str = "src/flush/handle.rs";
const LEAVE: &str = "src/flush/leave.rs";
const LEDGER: &str = "src/multiplex/ledger/mod.rs";
const LEDGER_ANSWERS: &str = "src/multiplex/ledger/answers.rs";
const MEMBER: &str = "src/flush/member.rs";
const ORDER: &str = "src/flush/order.rs";
const OFFER: &str = "src/multiplex/offer.rs";
const OVERLAP: &str = "src/flush/overlap.rs";
const PINNING: &str = "src/multiplex/pinning.rs";
const PLAN: &str = "src/multiplex/plan.rs";
const PREFLUSH: &str = "src/flush/preflush.rs";
const ROUND: &str = "src/flush/round.rs";
const SERIAL: &str = "src/flush/serial.rs";
const WAITING: &str = "src/flush/waiting.rs";

pub(crate) const MUTANTS: &[Mutant] = &[
    // Tracking: what is stamped, and when.
    Mutant {
        name: "a modification is stamped when it begins, not when it completes",
        edits: &[
            Edit {
                file: COORDINATOR,
                find: "        let mut fua = Fua::No;\n",
                replace:
                    "        if modification && !self.members.get(key)?.backend.caches_nothing() {
            let member = self.members.get_mut(key)?;
            member.last_mod = now;
            let group = member.group;
            self.groups.get_mut(group)?.last_mod = now;
            self.relist(key);
        }
        let mut fua = Fua::No;
",
            },
            Edit {
                file: COORDINATOR,
                find: "        member.last_mod = now;
        group.last_mod = now;
",
                replace: "",
            },
        ],
        caught_by: &[
            "hazards::t1_a_write_that_ends_after_anothers_flush_is_covered_by_the_next_flush",
            "hazards::t1_holds_in_plugin_mode_over_a_shared_volatile_cache",
            "hazards::t2_a_flush_pipelined_behind_a_write_does_not_make_its_connection_clean",
        ],
    },
    Mutant {
        name: "a flush covers what completed before its end, not before its start",
        edits: &[Edit {
            file: HANDLE,
            find: "member.covered = member.covered.max(running.start);",
            replace: "member.covered = now;",
        }],
        caught_by: &[
            "hazards::t3_a_write_that_ends_while_its_handle_is_flushed_is_covered_by_the_next_flush",
        ],
    },
    Mutant {
        name: "a flush that covers all covers what completed before its end",
        edits: &[Edit {
            file: HANDLE,
            find: "group.covered_all = group.covered_all.max(running.start);",
            replace: "group.covered_all = now;",
        }],
        caught_by: &["hazards::t3_holds_over_a_shared_volatile_cache"],
    },
    Mutant {
        name: "a client's flush always joins the running round",
        edits: &[Edit {
            file: ROUND,
            find: "Some(round) if last <= round.start => {",
            replace: "Some(round) => {",
        }],
        caught_by: &[
            "hazards::t3_a_write_that_ends_while_its_handle_is_flushed_is_covered_by_the_next_flush",
        ],
    },
    Mutant {
        name: "a write-out always joins the running flush of its handle",
        edits: &[Edit {
            file: HANDLE,
            find: "Some(running) if running.start > last_mod => work.joined.push(need),",
            replace: "Some(_) => work.joined.push(need),",
        }],
        caught_by: &["hazards::t3_fua_does_not_join_a_flush_that_began_before_it_was_executed"],
    },
    Mutant {
        name: "native FUA is not noted as a write-out",
        edits: &[Edit {
            file: COORDINATOR,
            find: "group.write_outs.note(op.member, now);",
            replace: "",
        }],
        caught_by: &["hazards::t4_native_fua_counts_as_a_write_out_for_the_caches_of_others"],
    },
    Mutant {
        name: "a flush of any handle makes all clean",
        edits: &[Edit {
            file: HANDLE,
            find: "        if group.covers_all() {\n",
            replace: "        if true {\n",
        }],
        caught_by: &["hazards::t4_fua_covers_no_write_of_another_connection"],
    },
    Mutant {
        name: "fast skips flushes in plugin mode by one mark for all",
        edits: &[
            Edit {
                file: HANDLE,
                find: "        if group.covers_all() {\n",
                replace: "        if true {\n",
            },
            Edit {
                file: ROUND,
                find: "            TrackDirty::Off => false,\n",
                replace: "            TrackDirty::Off => false,
            TrackDirty::Fast => {
                let group = self.groups.get(group);
                group.is_some_and(|group| group.last_mod <= group.covered_all)
            }
",
            },
        ],
        caught_by: &["hazards::t5_fast_skips_a_flush_only_where_one_handle_covers_all"],
    },
    Mutant {
        name: "a write that failed does not count as a modification",
        edits: &[Edit {
            file: COORDINATOR,
            find: "        if op.modification {\n",
            replace: "        if op.modification && result.is_ok() {\n",
        }],
        caught_by: &["hazards::t6_a_write_that_failed_may_have_had_an_effect_and_is_flushed"],
    },
    Mutant {
        name: "off skips flushes of handles that need none",
        edits: &[Edit {
            file: ROUND,
            find: "let everyone = self.visits_everyone();",
            replace: "let everyone = false;",
        }],
        caught_by: &["promises::tracking_saves_backend_flushes"],
    },
    // Rounds.
    Mutant {
        name: "no handle is invalidated after the write-out",
        edits: &[Edit {
            file: ROUND,
            find: "if round.step == Step::WriteOut && path == Path::Emulate && !failed {",
            replace: "if round.step == Step::WriteOut && path == Path::Own && !failed {",
        }],
        caught_by: &[
            "hazards::r1_what_is_read_between_the_flushes_of_a_round_is_dropped",
            "hazards::r2_a_read_that_is_held_across_a_round_leaves_nothing_old_behind",
            "hazards::r4_a_read_during_its_handles_own_flush_is_remembered_until_the_next_round",
        ],
    },
    Mutant {
        name: "a round has a single pass over all that is dirty or loaded",
        edits: &[
            Edit {
                file: ROUND,
                find:
                    "            let dirty = group.map(|group| group.listed(List::Dirty, &self.members));
            let dirty = dirty.into_iter().flatten();
            let dirty: Vec<Key> = dirty.filter(|&key| self.is_uncovered(key)).collect();
",
                replace:
                    "            let all = group.map(|group| group.listed(List::Members, &self.members));
            let loaded = |key| {
                self.members.get(key).is_some_and(|member| {
                    member.phase == Phase::Serving && member.oldest_load > Stamp::NEVER
                })
            };
            let all = all.into_iter().flatten();
            let wanted = |&key: &Key| self.is_uncovered(key) || loaded(key);
            let dirty: Vec<Key> = all.filter(wanted).collect();
",
            },
            Edit {
                file: ROUND,
                find: "if round.step == Step::WriteOut && path == Path::Emulate && !failed {",
                replace: "if round.step == Step::WriteOut && path == Path::Own && !failed {",
            },
        ],
        caught_by: &["hazards::r1_what_is_read_between_the_flushes_of_a_round_is_dropped"],
    },
    Mutant {
        name: "a handle is invalidated without waiting for its commands in flight",
        edits: &[Edit {
            file: HANDLE,
            find: "        if member.in_flight.is_empty() || self.serializes() {\n            self.flush_later(key, need);",
            replace: "        if true {\n            self.flush_later(key, need);",
        }],
        caught_by: &["hazards::r2_a_read_that_is_held_across_a_round_leaves_nothing_old_behind"],
    },
    Mutant {
        name: "cache and block status do not count as loads",
        edits: &[Edit {
            file: COORDINATOR,
            find: "if !member.oldest_load.happened() && !member.backend.caches_nothing() {",
            replace: "if !member.oldest_load.happened()
            && !matches!(command.kind, CommandType::CACHE | CommandType::BLOCK_STATUS)
            && !member.backend.caches_nothing()
        {",
        }],
        caught_by: &[
            "hazards::r2_what_cache_and_block_status_load_is_dropped_like_what_a_read_loads",
        ],
    },
    Mutant {
        name: "a write does not count as a load",
        edits: &[Edit {
            file: COORDINATOR,
            find: "if !member.oldest_load.happened() && !member.backend.caches_nothing() {",
            replace: "if !member.oldest_load.happened()
            && !command.kind.is_modification()
            && !member.backend.caches_nothing()
        {",
        }],
        caught_by: &[
            "hazards::r3_a_held_write_that_fills_its_neighbourhood_leaves_nothing_old_behind",
        ],
    },
    Mutant {
        name: "a handle's own write-outs do not make stale what its commands had fetched",
        edits: &[Edit {
            file: HANDLE,
            find: "        if member.backend.self_coherent() {",
            replace: "        if true {",
        }],
        caught_by: &["hazards::r2_a_held_read_leaves_nothing_older_than_its_own_connections_write"],
    },
    Mutant {
        name: "what is loaded during a flush of the handle is forgotten",
        edits: &[Edit {
            file: MEMBER,
            find: "self.oldest_in_flight.or(self.first_after)",
            replace: "self.oldest_in_flight",
        }],
        caught_by: &[
            "hazards::r4_a_read_during_its_handles_own_flush_is_remembered_until_the_next_round",
        ],
    },
    Mutant {
        name: "what is in flight at the start of a flush of the handle is forgotten",
        edits: &[Edit {
            file: HANDLE,
            find: "oldest_in_flight: member.in_flight.oldest(),",
            replace: "oldest_in_flight: None,",
        }],
        caught_by: &[
            "hazards::r4_a_read_that_began_before_its_handles_own_flush_is_remembered_too",
        ],
    },
    // FUA.
    Mutant {
        name: "FUA is answered before its flush",
        edits: &[Edit {
            file: COORDINATOR,
            find: "(Fua::Emulated, Ok(())) => self",
            replace: "(Fua::Emulated, Err(_)) => self",
        }],
        caught_by: &["hazards::r5_fua_invalidates_what_others_read_while_it_was_written_out"],
    },
    Mutant {
        name: "FUA does not invalidate what others hold",
        edits: &[Edit {
            file: FUA,
            find: "(false, Ok(())) => self.invalidate_for_fua(wait, key),",
            replace: "(false, Ok(())) => {}",
        }],
        caught_by: &["hazards::r5_fua_invalidates_what_others_read_while_it_was_written_out"],
    },
    Mutant {
        name: "FUA fails for the failures of others",
        edits: &[Edit {
            file: FUA,
            find: "(true, Err(_)) => self.close_gate(key),",
            replace: "(true, Err(why)) => {
                self.fua_ends(wait, Err(why));
                return;
            }",
        }],
        caught_by: &[
            "hazards::e2_the_failure_of_another_handle_is_its_owners_and_not_that_of_a_fua_command",
        ],
    },
    Mutant {
        name: "a handle that FUA could not invalidate goes on serving",
        edits: &[Edit {
            file: FUA,
            find: "(true, Err(_)) => self.close_gate(key),",
            replace: "(true, Err(_)) => {}",
        }],
        caught_by: &[
            "hazards::e2_a_handle_that_could_not_be_invalidated_for_fua_serves_nothing_old",
        ],
    },
    Mutant {
        name: "FUA succeeds though its own write-out failed",
        edits: &[
            Edit {
                file: FUA,
                find: "            (false, Err(why)) => {
                self.fua_ends(wait, Err(why));
",
                replace: "            (false, Err(_)) => {
                self.fua_ends(wait, Ok(()));
",
            },
            Edit {
                file: FUA,
                find: "        for wait in unwritten {
            self.fua_ends(wait, Err(why));
",
                replace: "        for wait in unwritten {
            self.fua_ends(wait, Ok(()));
",
            },
        ],
        caught_by: &["hazards::e1_a_fua_command_whose_own_write_out_fails_fails"],
    },
    // Failures.
    Mutant {
        name: "a sticky failure is forgotten",
        edits: &[Edit {
            file: HANDLE,
            find: "                group.failed.get_or_insert(why);\n",
            replace: "",
        }],
        caught_by: &["hazards::e1_after_a_failed_flush_no_flush_of_the_group_succeeds"],
    },
    Mutant {
        name: "a failed flush covers as much as one that succeeded",
        edits: &[Edit {
            file: HANDLE,
            find: "        let uncovered = self.is_uncovered(key);\n        let alone = ",
            replace: "        let uncovered = self.is_uncovered(key);
        if let Some(member) = self.members.get_mut(key) {
            member.covered = member.covered.max(running.start);
        }
        let alone = ",
        }],
        caught_by: &["hazards::e1_under_retry_a_later_flush_writes_what_was_kept"],
    },
    Mutant {
        name: "a round forgets the failure of a handle",
        edits: &[Edit {
            file: ROUND,
            find: "        if let Err(why) = result {
            round.failed.get_or_insert(why);
        }
        round.remaining",
            replace: "        let _ = result;\n        round.remaining",
        }],
        caught_by: &["hazards::e1_under_retry_a_later_flush_writes_what_was_kept"],
    },
    Mutant {
        name: "the owner of what could not be written is not told",
        edits: &[Edit {
            file: HANDLE,
            find: "AfterFailure::Retry if uncovered => {\n",
            replace: "AfterFailure::Retry if !uncovered => {\n",
        }],
        caught_by: &["hazards::e1_under_retry_a_later_flush_writes_what_was_kept"],
    },
    Mutant {
        name: "a failure is told to a flush that waits for the next round, but not remembered",
        edits: &[Edit {
            file: ROUND,
            find: "            group.waiting_failed = Some(why);\n",
            replace: "",
        }],
        caught_by: &["hazards::every_flush_that_arrived_before_a_loss_was_reported_fails"],
    },
    Mutant {
        name: "a round stops at the first error",
        edits: &[
            Edit {
                file: ROUND,
                find: "dirty.filter(|&key| self.is_uncovered(key)).collect()",
                replace: "dirty.filter(|&key| self.is_uncovered(key)).take(1).collect()",
            },
            Edit {
                file: ROUND,
                find: "        if round.step == Step::WriteOut && path == Path::Emulate && !failed {\n",
                replace: "        let (start, failed) = (round.start, round.failed.is_some());
        if round.step == Step::WriteOut && path == Path::Emulate && !failed {
            let group = self.groups.get(group_key);
            let dirty = group.map(|group| group.listed(List::Dirty, &self.members));
            let next = dirty.into_iter().flatten().find(|&key| {
                let member = self.members.get(key);
                self.is_uncovered(key) && member.is_some_and(|it| it.covered < start)
            });
            if let Some(next) = next {
                return self.visit(group_key, &[next], |this, key| {
                    this.write_out(key, Need::Round(group_key));
                });
            }
        }
        let Some(round) = self
            .groups
            .get_mut(group_key)
            .and_then(|group| group.round.as_mut())
        else {
            return;
        };
        if round.step == Step::WriteOut && path == Path::Emulate && !failed {
",
            },
        ],
        caught_by: &["hazards::e3_a_round_with_a_failing_handle_writes_out_all_the_others"],
    },
    Mutant {
        name: "a sticky failure outlives the connections that were told",
        edits: &[Edit {
            file: LEAVE,
            find: "if group.failed_reported && self.config.after_failure() == AfterFailure::Sticky {",
            replace: "if !group.failed_reported && self.config.after_failure() == AfterFailure::Sticky {",
        }],
        caught_by: &["hazards::e1_a_failure_ends_with_the_last_connection_that_was_told"],
    },
    Mutant {
        name: "a sticky failure of a connection's own flush is forgotten",
        edits: &[Edit {
            file: HANDLE,
            find: "AfterFailure::Sticky if alone => member.work_mut().failed = Some(why),",
            replace: "AfterFailure::Sticky if alone => {}",
        }],
        caught_by: &["hazards::e1_holds_for_a_connections_own_flushes_in_plugin_mode"],
    },
    // Coming and going.
    Mutant {
        name: "a leaving connection is released without being written out",
        edits: &[Edit {
            file: LEAVE,
            find: "if awaited && !member.gave_up() && member.backend.flush() && self.is_uncovered(key) {",
            replace: "if awaited && member.gave_up() && member.backend.flush() && self.is_uncovered(key) {",
        }],
        caught_by: &[
            "hazards::c1_a_connection_that_leaves_is_written_out_before_its_handle_is_closed",
        ],
    },
    Mutant {
        name: "a leaving connection does not wait for its commands in flight",
        edits: &[Edit {
            file: MEMBER,
            find: "        self.in_flight.is_empty()
            && self.pending == 0
",
            replace: "        self.pending == 0\n",
        }],
        caught_by: &[
            "hazards::c1_a_connection_that_leaves_with_a_write_in_flight_is_written_out_after_it",
        ],
    },
    Mutant {
        name: "the failure of the last flush before release is forgotten",
        edits: &[Edit {
            file: HANDLE,
            find: "self.data_lost(group, why);",
            replace: "let _ = (group, why);",
        }],
        caught_by: &[
            "hazards::c1_a_flush_fails_after_a_leaving_connection_could_not_be_written_out",
        ],
    },
    Mutant {
        name: "a lost handle is forgotten with what it had not written out",
        edits: &[Edit {
            file: LEAVE,
            find: "if self.is_uncovered(key) && self.others_rely_on(group) {",
            replace: "if self.is_uncovered(key) && !self.others_rely_on(group) {",
        }],
        caught_by: &[
            "hazards::c1_a_lost_handle_with_uncovered_writes_fails_the_next_flush_even_of_a_newcomer",
        ],
    },
    Mutant {
        name: "a failure that nobody was told of ends with the last connection",
        edits: &[Edit {
            file: LEAVE,
            find: "if group.failed_reported && self.config.after_failure() == AfterFailure::Sticky {",
            replace: "if self.config.after_failure() == AfterFailure::Sticky {",
        }],
        caught_by: &[
            "hazards::c1_a_lost_handle_with_uncovered_writes_fails_the_next_flush_even_of_a_newcomer",
        ],
    },
    Mutant {
        name: "a shared cache is thought clean when the last connection has left",
        edits: &[Edit {
            file: LEAVE,
            find: "if emulated || !group.covers_all() || !group.flush {",
            replace: "if emulated || !group.covers_all() || group.flush {",
        }],
        caught_by: &["hazards::c1_what_a_shared_cache_holds_outlives_the_last_connection"],
    },
    Mutant {
        name: "a flush does not wait for a connection that is leaving",
        edits: &[Edit {
            file: ROUND,
            find: "dirty.filter(|&key| self.is_uncovered(key)).collect()",
            replace: "dirty
                .filter(|&key| self.is_uncovered(key))
                .filter(|&key| {
                    let member = self.members.get(key);
                    member.is_some_and(|member| member.phase == Phase::Serving)
                })
                .collect()",
        }],
        caught_by: &[
            "hazards::c2_a_flush_waits_for_a_leaving_connection_that_is_being_written_out",
        ],
    },
    Mutant {
        name: "opening does not count as a load",
        edits: &[Edit {
            file: COORDINATOR,
            find: "        member.oldest_load = now;\n        let member = self.members.insert(member);",
            replace: "        let _ = now;\n        let member = self.members.insert(member);",
        }],
        caught_by: &[
            "hazards::c3_a_connection_that_opens_during_a_round_serves_nothing_older",
            "hazards::c3_a_connection_that_was_open_but_unused_serves_nothing_older",
        ],
    },
    Mutant {
        name: "connections that are opening are not gated",
        edits: &[Edit {
            file: HANDLE,
            find: ".is_some_and(|member| member.phase == Phase::Opening || member.is_unused())",
            replace: ".is_some_and(|member| member.phase != Phase::Opening && member.is_unused())",
        }],
        caught_by: &["hazards::c3_a_connection_that_opens_during_a_round_serves_nothing_older"],
    },
    Mutant {
        name: "unused connections are not gated",
        edits: &[
            Edit {
                file: FUA,
                find: "            self.gate_unused(group);\n",
                replace: "",
            },
            Edit {
                file: ROUND,
                find: "        for key in unused {
            self.close_gate(key);
        }
",
                replace: "        drop(unused);\n",
            },
        ],
        caught_by: &["hazards::c3_a_connection_that_opens_during_a_round_serves_nothing_older"],
    },
    Mutant {
        name: "all exports are one group though they were to be told apart",
        edits: &[Edit {
            file: COORDINATOR,
            find: "Grouping::ByExport => Some(export.clone()),",
            replace: "Grouping::ByExport => None,",
        }],
        caught_by: &["hazards::c4_a_hanging_flush_on_one_export_holds_up_nobody_on_another"],
    },
    Mutant {
        name: "exports are told apart though they may share data",
        edits: &[Edit {
            file: COORDINATOR,
            find: "            Grouping::All => None,\n",
            replace: "            Grouping::All => Some(export.clone()),\n",
        }],
        caught_by: &[
            "hazards::c4_connections_of_different_exports_share_data_unless_told_otherwise",
        ],
    },
    Mutant {
        name: "what waits on a lost connection is not answered",
        edits: &[Edit {
            file: LEAVE,
            find: "waiting.extend(ours.into_iter().map(|wait| wait.tag));",
            replace: "drop(ours);",
        }],
        caught_by: &["hazards::what_waits_on_a_lost_connection_is_answered"],
    },
    Mutant {
        name: "a lost handle is a failure though nothing is lost",
        edits: &[Edit {
            file: LEAVE,
            find: "if self.is_uncovered(key) && self.others_rely_on(group) {",
            replace: "if self.others_rely_on(group) {",
        }],
        caught_by: &["hazards::c1_a_lost_handle_without_uncovered_writes_is_no_failure"],
    },
    Mutant {
        name: "a handle that has to be invalidated before it serves serves",
        edits: &[Edit {
            file: COORDINATOR,
            find: "        if member.gate().happened() {
            return self.hold",
            replace: "        if member.gate().happened() && member.phase != Phase::Serving {
            return self.hold",
        }],
        caught_by: &[
            "hazards::c3_a_connection_that_opens_during_a_round_serves_nothing_older",
            "hazards::c3_a_connection_that_was_open_but_unused_serves_nothing_older",
            "hazards::e2_a_handle_that_could_not_be_invalidated_for_fua_serves_nothing_old",
        ],
    },
    // Order.
    Mutant {
        name: "overlapping writes execute as they come",
        edits: &[Edit {
            file: OVERLAP,
            find: "if group.ranges.over(range).any(|(_, it)| in_the_way(it)) {",
            replace: "if group.ranges.over(range).all(|(_, it)| in_the_way(it)) && false {",
        }],
        caught_by: &[
            "hazards::o1_of_two_writes_to_one_place_the_later_one_wins",
            "hazards::o2_fua_over_an_older_uncovered_write_stays",
            "hazards::o3_neighbours_in_a_granule_are_kept_in_order_like_overlapping_writes",
        ],
    },
    Mutant {
        name: "a write waits only for overlapping ones that are in flight",
        edits: &[Edit {
            file: OVERLAP,
            find: ".is_some_and(|owner| segment.in_flight > 0 || segment.last >= owner.covered)",
            replace: ".is_some_and(|_| segment.in_flight > 0)",
        }],
        caught_by: &[
            "hazards::o1_of_two_writes_to_one_place_the_later_one_wins",
            "hazards::o2_fua_over_an_older_uncovered_write_stays",
        ],
    },
    Mutant {
        name: "ranges are forgotten when there are too many",
        edits: &[Edit {
            file: OVERLAP,
            find: "            && group.ranges.begin_merged(key, range)\n",
            replace: "",
        }],
        caught_by: &["hazards::o1_holds_for_ranges_beyond_those_that_are_remembered"],
    },
    Mutant {
        name: "ranges are not rounded out to granules",
        edits: &[
            Edit {
                file: ORDER,
                find: "start: offset - offset % granule,",
                replace: "start: offset,",
            },
            Edit {
                file: ORDER,
                find: "end: end.checked_next_multiple_of(granule).unwrap_or(u64::MAX),",
                replace: "end,",
            },
        ],
        caught_by: &[
            "hazards::o3_neighbours_in_a_granule_are_kept_in_order_like_overlapping_writes",
        ],
    },
    Mutant {
        name: "a write goes into an old copy of its granule",
        edits: &[
            Edit {
                file: OVERLAP,
                find: "let stale = granule > 1 && self.is_stale(key);",
                replace: "let stale = false;",
            },
            Edit {
                file: OVERLAP,
                find: "let loads_anew = until.is_none() && self.must_load_anew(key, load);",
                replace: "let loads_anew = false;",
            },
        ],
        caught_by: &[
            "hazards::o3_a_granule_that_another_has_written_out_is_loaded_anew_before_it_is_written",
        ],
    },
    Mutant {
        name: "a write executes though the earlier one could not be written out",
        edits: &[Edit {
            file: HANDLE,
            find: "self.fail_order(group_key, key, running.start, why);",
            replace: "if let Some(group) = self.groups.get_mut(group_key) {
            group.ranges.retain(|segment| segment.owner != key);
        }",
        }],
        caught_by: &[
            "hazards::a_later_write_is_not_executed_if_the_earlier_one_could_not_be_written_out",
        ],
    },
    Mutant {
        name: "a write waits for ever for an earlier one that cannot be written out",
        edits: &[Edit {
            file: HANDLE,
            find: "self.fail_order(group_key, key, running.start, why);",
            replace: "",
        }],
        caught_by: &[
            "hazards::a_later_write_is_not_executed_if_the_earlier_one_could_not_be_written_out",
        ],
    },
    Mutant {
        name: "a write waits only for overlapping ones that have ended",
        edits: &[Edit {
            file: OVERLAP,
            find: ".is_some_and(|owner| segment.in_flight > 0 || segment.last >= owner.covered)",
            replace: ".is_some_and(|owner| segment.last.happened() && segment.last >= owner.covered)",
        }],
        caught_by: &["hazards::o1_holds_after_two_writes_that_were_in_flight_together"],
    },
    Mutant {
        name: "a write that waits is overtaken by later ones",
        edits: &[Edit {
            file: WAITING,
            find: ".filter(|wait| wait.member != member)",
            replace: ".filter(|wait| wait.member == member)",
        }],
        caught_by: &["hazards::o1_a_write_that_waits_is_not_overtaken_by_later_ones"],
    },
    Mutant {
        name: "what waits for a write-out is not looked at when it ends",
        edits: &[Edit {
            file: HANDLE,
            find: "        self.open_gate(key);
        self.recheck_order(group);
",
            replace: "        self.open_gate(key);
",
        }],
        caught_by: &["hazards::o1_of_two_writes_to_one_place_the_later_one_wins"],
    },
    // What is advertised, and what is called for without need.
    Mutant {
        name: "emulation of a backend without flush is accepted",
        edits: &[Edit {
            file: COORDINATOR,
            find: "if emulated && !can_flush && !backend.read_only() {",
            replace: "if emulated && !can_flush && backend.multi_conn() {",
        }],
        caught_by: &["promises::a_promise_that_cannot_be_kept_is_refused"],
    },
    Mutant {
        name: "a writer may join readers that cannot be invalidated",
        edits: &[Edit {
            file: COORDINATOR,
            find: "if group.cannot_flush > 0 && !backend.read_only() {",
            replace: "if group.cannot_flush > 0 && backend.read_only() {",
        }],
        caught_by: &["promises::a_writer_cannot_join_readers_that_could_never_see_what_it_writes"],
    },
    Mutant {
        name: "native FUA is used while emulating",
        edits: &[Edit {
            file: COORDINATOR,
            find: "} else if backend.fua() && !emulating {",
            replace: "} else if backend.fua() {",
        }],
        caught_by: &["observed::every_command_is_executed_reads_and_stores_what_was_observed"],
    },
    Mutant {
        name: "flushes that were covered while they waited are carried out all the same",
        edits: &[Edit {
            file: ROUND,
            find: "        if !needed {",
            replace: "        if !needed && path != Path::Emulate {",
        }],
        caught_by: &["promises::flushes_that_were_covered_while_they_waited_flush_nothing_more"],
    },
    Mutant {
        name: "a round flushes every handle, at every level",
        edits: &[Edit {
            file: ROUND,
            find: "let everyone = self.visits_everyone();",
            replace: "let everyone = true;",
        }],
        caught_by: &[
            "promises::a_flush_visits_only_the_connections_that_need_it",
            "observed::no_event_takes_more_backend_flushes_than_were_observed",
        ],
    },
    // Handles of different kinds.
    Mutant {
        name: "over a shared cache a round joins a flush that covers less",
        edits: &[Edit {
            file: HANDLE,
            find: "let last_mod = self.groups.get(group).map(|group| group.last_mod);",
            replace: "let last_mod = self.members.get(key).map(|member| member.last_mod);",
        }],
        caught_by: &[
            "kinds::over_a_shared_cache_a_flush_does_not_join_one_that_began_before_anothers_write",
        ],
    },
    Mutant {
        name: "handles of one group may differ in multi-conn",
        edits: &[Edit {
            file: COORDINATOR,
            find: ".is_some_and(|it| it != backend.multi_conn())",
            replace: ".is_some_and(|_| false)",
        }],
        caught_by: &[
            "kinds::handles_of_one_group_agree_on_multi_conn",
            "kinds::what_a_shared_cache_holds_is_not_left_to_handles_that_cannot_flush_it",
        ],
    },
    Mutant {
        name: "a write straight to storage leaves the caches of others alone",
        edits: &[Edit {
            file: COORDINATOR,
            find: "if member.backend.caches_nothing() || (op.fua == Fua::Native && result.is_ok()) {",
            replace: "if member.backend.caches_nothing() {
        } else if op.fua == Fua::Native && result.is_ok() {",
        }],
        caught_by: &["kinds::a_write_straight_to_storage_is_seen_by_others_after_a_flush"],
    },
    Mutant {
        name: "FUA straight to storage is answered before others can see it",
        edits: &[Edit {
            file: COORDINATOR,
            find: "(Fua::Stable, Ok(())) => self",
            replace: "(Fua::Stable, Err(_)) => self",
        }],
        caught_by: &["kinds::fua_straight_to_storage_is_answered_when_others_can_see_it"],
    },
    Mutant {
        name: "what caches nothing is waited for as if it had to be written out",
        edits: &[Edit {
            file: COORDINATOR,
            find: "            group.ranges.remove(idle.start);\n",
            replace: "",
        }],
        caught_by: &["kinds::handles_that_cache_nothing_are_never_flushed"],
    },
    Mutant {
        name: "a reader that cannot be invalidated opens with what is old",
        edits: &[Edit {
            file: COORDINATOR,
            find: "let never_fresh = backend.cannot_flush() && backend.loads_on_open();",
            replace: "let never_fresh = false;",
        }],
        caught_by: &[
            "kinds::a_reader_that_cannot_be_invalidated_is_refused_if_it_may_have_loaded_something_old",
        ],
    },
    Mutant {
        name: "multi-conn is advertised where connections are serialized",
        edits: &[Edit {
            file: COORDINATOR,
            find: "            _ if serialized => false,\n",
            replace: "",
        }],
        caught_by: &["promises::nobody_is_told_of_multi_conn_where_connections_are_serialized"],
    },
    // FUA after a failed flush.
    Mutant {
        name: "FUA that waits for its flush trusts it after another one failed",
        edits: &[Edit {
            file: FUA,
            find: "        for wait in unwritten {\n",
            replace: "        for wait in unwritten.into_iter().take(0) {\n",
        }],
        caught_by: &[
            "failures::fua_does_not_trust_a_flush_after_one_that_failed_when_the_data_was_cached",
            "failures::over_a_shared_cache_a_failed_flush_concerns_the_fua_commands_of_all",
        ],
    },
    Mutant {
        name: "FUA that was executing when a flush failed trusts a later one",
        edits: &[Edit {
            file: FUA,
            find: "&& generation <= until",
            replace: "&& generation < until && false",
        }],
        caught_by: &["failures::fua_that_was_executing_when_a_flush_failed_fails_too"],
    },
    Mutant {
        name: "no FUA succeeds any more after a failed flush",
        edits: &[Edit {
            file: FUA,
            find: "&& generation <= until",
            replace: "&& generation <= until.max(generation)",
        }],
        caught_by: &["failures::fua_that_begins_after_a_failure_may_succeed"],
    },
    Mutant {
        name: "under retry, too, FUA fails with a flush that it did not need",
        edits: &[Edit {
            file: HANDLE,
            find: "if self.config.after_failure() == AfterFailure::Sticky {",
            replace: "if true {",
        }],
        caught_by: &["failures::under_retry_fua_may_rely_on_a_later_flush"],
    },
    // Nothing is forgotten, nobody waits for ever.
    Mutant {
        name: "a flush joins a round that began before a write straight to storage",
        edits: &[Edit {
            file: ROUND,
            find: "            } else {
                group.last_change
            };
",
            replace: "            } else {
                group.last_mod
            };
",
        }],
        caught_by: &[
            "kinds::a_flush_does_not_join_a_round_that_began_before_a_write_straight_to_storage",
        ],
    },
    Mutant {
        name: "the kind of a group is forgotten while a connection is being opened",
        edits: &[Edit {
            file: LEAVE,
            find: "        if group.list(List::Members).is_empty() {
            let emulated",
            replace: "        if group.open == 0 {
            let emulated",
        }],
        caught_by: &[
            "kinds::a_handle_that_began_to_open_beside_a_shared_cache_cannot_turn_into_another_kind",
        ],
    },
    Mutant {
        name: "a flush succeeds where nobody is left who could flush",
        edits: &[Edit {
            file: ROUND,
            find: "                round.failed.get_or_insert(Errno::EIO);\n",
            replace: "                let _ = round;\n",
        }],
        caught_by: &["kinds::without_a_handle_that_could_flush_what_is_cached_a_flush_fails"],
    },
    Mutant {
        name: "a flush succeeds though the last handle that could flush is lost",
        edits: &[Edit {
            file: ROUND,
            find: "result = result.and(Err(Errno::EIO));",
            replace: "result = result.and(Ok(()));",
        }],
        caught_by: &["kinds::a_flush_fails_if_the_only_handle_that_can_flush_is_lost_meanwhile"],
    },
    Mutant {
        name: "what was executing on a lost handle is thought never to have happened",
        edits: &[Edit {
            file: LEAVE,
            find: "if member.in_flight.modifying > 0 || self.is_uncovered(key) {",
            replace: "if false {",
        }],
        caught_by: &["kinds::a_write_that_was_executing_on_a_lost_handle_may_have_reached_storage"],
    },
    Mutant {
        name: "a lost connection's flush that had waited leaves its failure to a stranger",
        edits: &[Edit {
            file: LEAVE,
            find: "                group.waiting_failed = None;",
            replace: "",
        }],
        caught_by: &[
            "failures::a_loss_is_not_told_twice_because_the_lost_connections_own_flush_had_waited",
        ],
    },
    Mutant {
        name: "a second failure counts as told because the first one was",
        edits: &[Edit {
            file: HANDLE,
            find: "                group.failed_reported = false;\n",
            replace: "",
        }],
        caught_by: &["failures::a_second_failure_is_not_forgotten_because_the_first_was_told"],
    },
    Mutant {
        name: "a round goes on to invalidate for clients that are told of a failure",
        edits: &[Edit {
            file: ROUND,
            find: "path == Path::Emulate && !failed {",
            replace: "path == Path::Emulate && (failed || !failed) {",
        }],
        caught_by: &["failures::a_round_whose_write_out_failed_flushes_nothing_more"],
    },
    Mutant {
        name: "ranges of connections that are gone stay",
        edits: &[Edit {
            file: LEAVE,
            find: "if group.orphans > MOST_ORPHANS &&",
            replace: "if group.orphans == u32::MAX &&",
        }],
        caught_by: &["liveness::connections_that_come_and_go_leave_nothing_behind"],
    },
    Mutant {
        name: "a writer that merges its ranges goes before those that wait for them",
        edits: &[Edit {
            file: OVERLAP,
            find: "if members.get(key).is_some_and(full) {",
            replace: "if members.get(key).is_none_or(full) && false {",
        }],
        caught_by: &[
            "liveness::a_steady_writer_with_one_range_lets_others_in",
            "liveness::a_steady_writer_with_many_ranges_lets_others_in",
        ],
    },
    Mutant {
        name: "a write that loads its granule anew fails with nothing",
        edits: &[Edit {
            file: OVERLAP,
            find: "wait.loads_anew || full()",
            replace: "full()",
        }],
        caught_by: &["liveness::a_write_whose_granule_cannot_be_loaded_anew_fails_once"],
    },
    // One call at a time on a handle.
    Mutant {
        name: "serialized: a handle that executes a command counts as free",
        edits: &[Edit {
            file: SERIAL,
            find: "!self.in_flight.is_empty() || self.flush_running().is_some()",
            replace: "self.flush_running().is_some()",
        }],
        caught_by: &[
            "serial::commands_of_one_handle_execute_one_at_a_time_in_the_order_of_their_arrival",
            "serial::a_backend_flush_waits_for_the_command_that_executes_and_holds_up_those_behind_it",
        ],
    },
    Mutant {
        name: "serialized: a handle that is flushed counts as free",
        edits: &[Edit {
            file: SERIAL,
            find: "!self.in_flight.is_empty() || self.flush_running().is_some()",
            replace: "!self.in_flight.is_empty()",
        }],
        caught_by: &["serial::a_command_does_not_begin_while_its_handle_is_flushed"],
    },
    Mutant {
        name: "serialized: the latest call has the first turn",
        edits: &[Edit {
            file: SERIAL,
            find: "let call = self.waiting.pop_front();",
            replace: "let call = self.waiting.pop_back();",
        }],
        caught_by: &[
            "serial::commands_of_one_handle_execute_one_at_a_time_in_the_order_of_their_arrival",
            "serial::a_steady_client_does_not_starve_the_flush_of_its_handle",
        ],
    },
    Mutant {
        name: "serialized: flushes go before commands that came earlier",
        edits: &[Edit {
            file: SERIAL,
            find: "        self.waiting.push_back(Call::Flush);\n",
            replace: "        self.waiting.push_front(Call::Flush);\n",
        }],
        caught_by: &["serial::a_backend_flush_has_its_turn_after_the_commands_that_came_before_it"],
    },
    Mutant {
        name: "serialized: what waits for its handle counts as begun",
        edits: &[Edit {
            file: SERIAL,
            find: "        let held = Held { command, tag };
        let calls",
            replace:
                "        let range = super::order::Range::of(command.offset, command.length, 1);
        let group = member.group;
        if let (Some(range), Some(group)) = (range, self.groups.get_mut(group)) {
            group.ranges.begin(key, range);
        }
        let held = Held { command, tag };
        let calls",
        }],
        caught_by: &[
            "serial::what_waits_for_its_handle_modifies_nothing_yet_and_is_in_nobodys_way",
        ],
    },
    Mutant {
        name: "serialized: a write whose turn has come lines up behind all others",
        edits: &[
            Edit {
                file: OVERLAP,
                find: "if self.must_wait_for_handle(key) {",
                replace: "if false {",
            },
            Edit {
                file: OVERLAP,
                find: "let decision = self.admit(key, wait.command, wait.tag, place);",
                replace: "let decision = self.arrive(key, wait.command, wait.tag);",
            },
        ],
        caught_by: &[
            "serial::a_write_whose_turn_has_come_keeps_its_place_while_its_handle_is_busy",
        ],
    },
    Mutant {
        name: "serialized: a write that has loaded anew lines up behind those that load again",
        edits: &[Edit {
            file: SERIAL,
            find: "        if !member.is_occupied() {
            return false;
        }
",
            replace: "        if !member.is_occupied() && !member.has_calls() {
            return false;
        }
",
        }],
        caught_by: &["serial::a_handle_that_has_to_load_anew_does_so_between_its_commands"],
    },
    Mutant {
        name: "serialized: what waits for a lost handle is forgotten",
        edits: &[Edit {
            file: LEAVE,
            find: "        waiting.extend(member.work_mut().calls.take_commands());\n",
            replace: "",
        }],
        caught_by: &["serial::what_waits_for_a_lost_handle_fails"],
    },
    Mutant {
        name: "serialized: a handle is released while commands wait for it",
        edits: &[Edit {
            file: MEMBER,
            find: "            && self.calls.is_empty()\n",
            replace: "",
        }],
        caught_by: &[
            "serial::what_waits_for_the_handle_of_a_client_that_left_is_still_carried_out",
        ],
    },
    // FUA on reads.
    Mutant {
        name: "preflush: a read with FUA is executed at once",
        edits: &[Edit {
            file: COORDINATOR,
            find: "} else if command.fua && self.needs_preflush(conn.0, command) {",
            replace: "} else if false && self.needs_preflush(conn.0, command) {",
        }],
        caught_by: &[
            "preflush::a_read_with_fua_finds_what_others_had_written_when_it_arrived",
            "preflush::without_emulation_the_flush_before_a_read_is_that_of_its_own_handle",
        ],
    },
    Mutant {
        name: "preflush: a read is executed though its flush failed",
        edits: &[Edit {
            file: ROUND,
            find: "            Ok(()) => self.go_on(waiter),\n",
            replace: "            Err(_) if waiter.then.is_some() => self.go_on(waiter),
            Ok(()) => self.go_on(waiter),\n",
        }],
        caught_by: &[
            "preflush::a_read_whose_flush_fails_is_not_executed_and_its_client_has_heard_of_it",
            "preflush::under_sticky_a_read_that_reports_the_failure_ends_it_with_the_last_connection",
        ],
    },
    Mutant {
        name: "preflush: FUA on any command is a flush",
        edits: &[Edit {
            file: PREFLUSH,
            find: "            && command.kind == CommandType::READ\n",
            replace: "",
        }],
        caught_by: &["preflush::fua_means_nothing_on_other_commands_that_write_nothing"],
    },
    Mutant {
        name: "preflush: a read is refused where there is no flush",
        edits: &[Edit {
            file: PREFLUSH,
            find: ".is_some_and(|member| !member.backend.cannot_flush())",
            replace: ".is_some()",
        }],
        caught_by: &["preflush::where_flush_is_not_advertised_fua_means_nothing_on_a_read"],
    },
    Mutant {
        name: "preflush: a read of a client that has left finds what is old",
        edits: &[Edit {
            file: PREFLUSH,
            find: "                self.keep_fresh(member);\n",
            replace: "",
        }],
        caught_by: &[
            "preflush::a_read_that_waits_for_its_flush_is_carried_out_though_its_client_left",
        ],
    },
    // Coherent loads.
    Mutant {
        name: "coherent: loads are executed as they come",
        edits: &[Edit {
            file: COHERENT,
            find: "Overlap::Coherent => true,",
            replace: "Overlap::Coherent => command.kind.is_modification(),",
        }],
        caught_by: &[
            "coherent::a_read_finds_what_another_connection_has_written_without_any_flush",
            "coherent::every_command_that_loads_is_coherent",
        ],
    },
    Mutant {
        name: "coherent: a load does not wait for what others have not written out",
        edits: &[Edit {
            file: COHERENT,
            find: "        if self.others_modify(group_key, key, range) {\n",
            replace: "        if false {\n",
        }],
        caught_by: &[
            "coherent::a_read_finds_what_another_connection_has_written_without_any_flush",
            "coherent::a_read_waits_for_a_write_that_is_under_way_and_not_for_one_elsewhere",
        ],
    },
    Mutant {
        name: "coherent: a load finds what its handle has cached before",
        edits: &[
            Edit {
                file: COHERENT,
                find: "        if self.is_stale(key) {
            return Turn::LoadAnew { range };
        }
",
                replace: "",
            },
            Edit {
                file: COHERENT,
                find: "(load || self.config.granule() > 1) && self.is_stale(key)",
                replace: "!load && self.config.granule() > 1 && self.is_stale(key)",
            },
        ],
        caught_by: &[
            "coherent::a_read_finds_what_another_connection_has_written_without_any_flush",
        ],
    },
    Mutant {
        name: "coherent: writers go before loads that wait for them",
        edits: &[Edit {
            file: WAITING,
            find: ".filter(|wait| wait.member != member)",
            replace: ".filter(|wait| wait.member != member && !wait.is_load())",
        }],
        caught_by: &["coherent::a_steady_writer_lets_a_read_in"],
    },
    Mutant {
        name: "coherent: a load that waits for what is lost finds what is older",
        edits: &[Edit {
            file: LEAVE,
            find: "            self.fail_loads(group, key, Errno::EIO);\n",
            replace: "",
        }],
        caught_by: &["coherent::a_read_fails_if_what_it_waits_for_is_lost"],
    },
    // Minimality.
    // Either of the two alone would still save the flush.
    Mutant {
        name: "a handle that is being invalidated is invalidated again",
        edits: &[
            Edit {
                file: OVERLAP,
                find: "        if self.is_being_refreshed(key) {\n",
                replace: "        if false {\n",
            },
            Edit {
                file: HANDLE,
                find: "        if served {\n            member.work_mut()",
                replace: "        if false && served {\n            member.work_mut()",
            },
        ],
        caught_by: &["coherent::a_read_is_satisfied_with_an_invalidation_that_runs_already"],
    },
    Mutant {
        name: "a flush that starts does not do for those who wait for commands to end",
        edits: &[Edit {
            file: HANDLE,
            find: "        self.join_draining(key);\n",
            replace: "",
        }],
        caught_by: &["promises::a_flush_that_makes_a_handle_fresh_does_for_all_who_wait_for_that"],
    },
    Mutant {
        name: "alone: a flush does not join one that makes its handle fresh",
        edits: &[Edit {
            file: ROUND,
            find: "self.is_stale(key) && !self.is_being_refreshed(key)",
            replace: "self.is_stale(key)",
        }],
        caught_by: &[
            "promises::flushes_of_a_connection_that_is_on_its_own_share_one_after_a_failure",
        ],
    },
    Mutant {
        name: "a round whose handle is lost starts anew for what is covered",
        edits: &[Edit {
            file: ROUND,
            find: "            if needed && self.visit_another(group) {\n",
            replace: "            if self.visit_another(group) {\n",
        }],
        caught_by: &[
            "kinds::a_flush_whose_handle_is_lost_does_not_start_anew_for_what_another_has_covered",
        ],
    },
    // Who waits is found.
    Mutant {
        name: "index: what reaches in from the left is not found",
        edits: &[Edit {
            file: WAITING,
            find: "(first >> level & 1 == 1 && node < first).then_some(node)",
            replace: "(first >> level & 1 == 1 && node < first && false).then_some(node)",
        }],
        caught_by: &["liveness::whoever_waits_in_the_range_of_a_write_is_found"],
    },
    Mutant {
        name: "index: what reaches in from the right is not found",
        edits: &[Edit {
            file: WAITING,
            find: "(half & 1 == 0).then_some((half + 1) << level)",
            replace: "(half & 1 == 2).then_some((half + 1) << level)",
        }],
        caught_by: &["liveness::whoever_waits_in_the_range_of_a_write_is_found"],
    },
    Mutant {
        name: "index: later ones are taken for earlier ones",
        edits: &[Edit {
            file: WAITING,
            find: ".filter(|&place| place < before)",
            replace: ".filter(|&place| place < before || true)",
        }],
        caught_by: &["liveness::of_those_that_wait_for_each_other_the_first_begins"],
    },
    // When modifications are acknowledged.
    Mutant {
        name: "on receipt: reads overtake acknowledged writes",
        edits: &[Edit {
            file: ACKNOWLEDGE,
            find: "let parks = unsettled.overlaps(range)\n",
            replace: "let parks = (modifies && unsettled.overlaps(range))\n",
        }],
        caught_by: &[
            "acknowledge::on_receipt::a_read_that_overlaps_an_acknowledged_write_waits_for_it",
        ],
    },
    Mutant {
        name: "on receipt: writes overtake acknowledged writes",
        edits: &[Edit {
            file: ACKNOWLEDGE,
            find: "let parks = unsettled.overlaps(range)\n",
            replace: "let parks = (!modifies && unsettled.overlaps(range))\n",
        }],
        caught_by: &[
            "acknowledge::on_receipt::writes_that_overlap_an_acknowledged_write_wait_their_turn",
        ],
    },
    Mutant {
        name: "on receipt: writes overtake commands that wait",
        edits: &[Edit {
            file: ACKNOWLEDGE,
            find: "|| (modifies && unsettled.parked.is_behind(range, place));",
            replace: ";",
        }],
        caught_by: &[
            "acknowledge::on_receipt::a_steady_writer_does_not_starve_a_reader",
            "acknowledge::on_receipt::writes_that_overlap_an_acknowledged_write_wait_their_turn",
        ],
    },
    Mutant {
        name: "on receipt: a flush does not wait for what is acknowledged",
        edits: &[Edit {
            file: ACKNOWLEDGE,
            find: "if group.unsettled.reaches_back_to(scope, now) {",
            replace: "if self.guards > 999 && group.unsettled.reaches_back_to(scope, now) {",
        }],
        caught_by: &[
            "acknowledge::on_receipt::a_flush_waits_for_what_was_acknowledged_before_it_arrived",
            "acknowledge::on_receipt::a_flush_joins_no_round_that_began_before_an_acknowledged_write_ended",
        ],
    },
    Mutant {
        name: "on receipt: a flush joins the running round without waiting",
        edits: &[Edit {
            file: ACKNOWLEDGE,
            find: "if group.unsettled.reaches_back_to(scope, now) {",
            replace: "if group.round.is_none() && group.unsettled.reaches_back_to(scope, now) {",
        }],
        caught_by: &[
            "acknowledge::on_receipt::a_flush_joins_no_round_that_began_before_an_acknowledged_write_ended",
        ],
    },
    Mutant {
        name: "on receipt: a flush waits for what is acknowledged after it, too",
        edits: &[Edit {
            file: ACKNOWLEDGE,
            find: "if self.reaches_back_to(scope, at.1) {",
            replace: "if self.acknowledged.keys().any(|it| it.0 == scope) {",
        }],
        caught_by: &["acknowledge::on_receipt::a_steady_writer_does_not_starve_a_flush"],
    },
    Mutant {
        name: "on receipt: a late failure is told to nobody",
        edits: &[Edit {
            file: ACKNOWLEDGE,
            find: "            self.fail_acknowledged(group, scope, why);\n",
            replace: "            let _ = (why, Self::fail_acknowledged);\n",
        }],
        caught_by: &[
            "acknowledge::on_receipt::a_write_that_fails_late_is_reported_by_the_next_flush_of_all",
            "acknowledge::on_receipt::where_each_is_on_its_own_a_late_failure_concerns_one",
        ],
    },
    Mutant {
        name: "on receipt: a late failure counts as told before the answer is taken",
        edits: &[Edit {
            file: ROUND,
            find: "        if deferred {",
            replace: "        if deferred && waiter.then.is_some() {",
        }],
        caught_by: &[
            "acknowledge::on_receipt::a_flush_that_comes_before_the_answer_of_a_deferred_one_fails_like_it",
        ],
    },
    Mutant {
        name: "on receipt: a late failure of one on its own is told to all",
        edits: &[Edit {
            file: ACKNOWLEDGE,
            find: "        let Some(key) = scope else {\n",
            replace: "        let Some(key) = scope.filter(|_| false) else {\n",
        }],
        caught_by: &[
            "acknowledge::on_receipt::where_each_is_on_its_own_a_late_failure_concerns_one",
        ],
    },
    Mutant {
        name: "on receipt: what a lost handle was executing is not missed",
        edits: &[Edit {
            file: ACKNOWLEDGE,
            find: "scope.is_none() && !ours.is_empty()",
            replace: "false",
        }],
        caught_by: &[
            "acknowledge::on_receipt::a_handle_lost_with_an_acknowledged_write_is_data_lost",
        ],
    },
    Mutant {
        name: "on receipt: a lost handle loses what it had not begun",
        edits: &[Edit {
            file: LEAVE,
            find: "            self.forget_acknowledged(&op);\n",
            replace: "            let _ = op;\n",
        }],
        caught_by: &[
            "acknowledge::on_receipt::what_was_not_begun_when_its_handle_was_lost_was_not_acknowledged",
        ],
    },
    Mutant {
        name: "on receipt: FUA is acknowledged before it is executed",
        edits: &[Edit {
            file: ACKNOWLEDGE,
            find: "== Acknowledge::OnReceipt && !command.fua;",
            replace: "== Acknowledge::OnReceipt;",
        }],
        caught_by: &["acknowledge::on_receipt::reads_and_fua_are_answered_on_completion"],
    },
    Mutant {
        name: "on receipt: flushes of one connection wait for others that are on their own",
        edits: &[Edit {
            file: ACKNOWLEDGE,
            find: "Some((group, own.then_some(key)))",
            replace: "Some((group, (own && false).then_some(key)))",
        }],
        caught_by: &[
            "acknowledge::on_receipt::a_flush_of_one_connection_does_not_wait_for_another_where_each_is_on_its_own",
        ],
    },
    Mutant {
        name: "on receipt: late failures that can never be told are accepted",
        edits: &[Edit {
            file: COORDINATOR,
            find: "Acknowledge::OnReceipt => Err(OpenError::CannotReportLater),",
            replace: "Acknowledge::OnReceipt => Ok(()),",
        }],
        caught_by: &[
            "acknowledge::on_receipt::a_backend_without_flush_could_never_report_a_late_failure",
        ],
    },
    Mutant {
        name: "write-through: a write is answered when it is executed",
        edits: &[Edit {
            file: COORDINATOR,
            find: "if command.fua || self.config.acknowledge() == Acknowledge::WriteThrough {",
            replace: "if command.fua {",
        }],
        caught_by: &[
            "acknowledge::write_through::a_write_is_stable_and_visible_to_all_before_its_reply",
            "acknowledge::write_through::a_flush_has_nothing_left_to_do",
            "acknowledge::write_through::a_flush_that_fails_fails_the_write",
            "acknowledge::write_through::native_fua_is_used_where_it_suffices",
        ],
    },
    Mutant {
        name: "write-through: a backend that can make nothing stable is accepted",
        edits: &[Edit {
            file: COORDINATOR,
            find: "Acknowledge::WriteThrough => Err(OpenError::CannotWriteThrough),",
            replace: "Acknowledge::WriteThrough => Ok(()),",
        }],
        caught_by: &[
            "acknowledge::write_through::a_backend_that_can_make_nothing_stable_is_refused",
        ],
    },
    Mutant {
        name: "ignore-flush: the backend is flushed",
        edits: &[
            Edit {
                file: COORDINATOR,
                find: "            backend = backend.with_flush(false).with_fua(false);\n",
                replace: "",
            },
            Edit {
                file: ROUND,
                find: "        if self.config.acknowledge() == Acknowledge::IgnoreFlush {\n            self",
                replace: "        if false && self.config.acknowledge() == Acknowledge::IgnoreFlush {\n            self",
            },
        ],
        caught_by: &[
            "acknowledge::ignore_flush::flush_and_fua_are_answered_without_any_backend_flush",
        ],
    },
    Mutant {
        name: "ignore-flush: auto advertises multi-conn over caches",
        edits: &[Edit {
            file: COORDINATOR,
            find: "            Mode::Auto if ignoring => backend.multi_conn(),\n",
            replace: "",
        }],
        caught_by: &[
            "acknowledge::ignore_flush::multi_conn_is_advertised_only_where_data_is_visible_without_a_flush",
        ],
    },
    Mutant {
        name: "ignore-flush: emulation over caches is accepted",
        edits: &[Edit {
            file: COORDINATOR,
            find: "                Err(OpenError::CannotIgnoreFlush)\n",
            replace: "                Ok(())\n",
        }],
        caught_by: &["acknowledge::ignore_flush::it_cannot_be_combined_with_emulation_over_caches"],
    },
    // Revoked connections.
    Mutant {
        name: "nobody waits for a revoked connection whose ranges are not tracked",
        edits: &[Edit {
            file: FENCE,
            find: "!in_order && self.is_unsettled(key)",
            replace: "!in_order && self.is_unsettled(key) && self.guards > 999",
        }],
        caught_by: &[
            "fence::a_write_in_flight_when_its_connection_was_revoked_does_not_revert_the_retry",
            "fence::what_a_cache_could_write_back_later_is_written_out_before_the_retry",
            "fence::two_revoked_connections_are_both_waited_for",
        ],
    },
    Mutant {
        name: "a revoked connection's cache is not written out before others go on",
        edits: &[Edit {
            file: FENCE,
            find: "member.in_flight.modifying > 0 || writes_back\n",
            replace: "member.in_flight.modifying > 0 || (writes_back && false)\n",
        }],
        caught_by: &[
            "fence::a_write_in_flight_when_its_connection_was_revoked_does_not_revert_the_retry",
            "fence::what_a_cache_could_write_back_later_is_written_out_before_the_retry",
        ],
    },
    Mutant {
        name: "others go on when a revoked connection's flush has failed",
        edits: &[Edit {
            file: FENCE,
            find: "                !backend.caches_nothing() && !backend.multi_conn() && self.is_uncovered(key);",
            replace: "                !backend.caches_nothing() && !backend.multi_conn() && self.is_uncovered(key) && !member.gave_up();",
        }],
        caught_by: &["fence::the_fence_holds_while_a_cache_that_failed_may_still_write_back"],
    },
    Mutant {
        name: "those that waited for a revoked connection are forgotten",
        edits: &[Edit {
            file: FENCE,
            find: "            self.lift_fence(group, key);\n            self.recheck_parked(group);\n",
            replace: "            self.lift_fence(group, key);\n",
        }],
        caught_by: &["fence::a_read_that_hangs_holds_up_the_release_but_no_write"],
    },
    Mutant {
        name: "a fence outlives its connection",
        edits: &[Edit {
            file: LEAVE,
            find: "        self.lift_fence(group_key, key);\n",
            replace: "",
        }],
        caught_by: &["fence::nobody_is_stuck_when_the_last_flush_fails_or_the_handle_is_lost"],
    },
    Mutant {
        name: "what waits on a revoked connection is still executed",
        edits: &[Edit {
            file: FENCE,
            find: "        self.cancel_waiting(key);\n",
            replace: "        let _ = Self::cancel_waiting;\n",
        }],
        caught_by: &[
            "fence::what_had_not_begun_is_never_executed_and_comes_back",
            "fence::a_command_whose_action_was_not_taken_is_cancelled_too",
        ],
    },
    Mutant {
        name: "a cancelled command counts as acknowledged",
        edits: &[Edit {
            file: FENCE,
            find: "            self.forget_acknowledged(&op);\n            self.withdraw(&op);\n",
            replace: "            self.withdraw(&op);\n",
        }],
        caught_by: &["fence::a_command_whose_action_was_not_taken_is_cancelled_too"],
    },
    Mutant {
        name: "reads wait for revoked connections",
        edits: &[Edit {
            file: ACKNOWLEDGE,
            find: "let modifies = command.kind.is_modification();",
            replace: "let modifies = true;",
        }],
        caught_by: &["fence::reads_do_not_wait_for_what_was_never_acknowledged"],
    },
    Mutant {
        name: "nobody is asked to bring a revoked connection's commands to an end",
        edits: &[Edit {
            file: FENCE,
            find: "        if !member.in_flight.is_empty() {\n",
            replace: "        if false {\n",
        }],
        caught_by: &[
            "fence::a_write_in_flight_when_its_connection_was_revoked_does_not_revert_the_retry",
        ],
    },
    Mutant {
        name: "a revoked connection's cache is written out when its reads have ended",
        edits: &[Edit {
            file: FENCE,
            find: "        } else if member.in_flight.modifying == 0\n",
            replace: "        } else if member.in_flight.is_empty()\n",
        }],
        caught_by: &["fence::a_read_that_hangs_holds_up_the_release_but_no_write"],
    },
    Mutant {
        name: "the failed last flush of one on its own is told to all",
        edits: &[Edit {
            file: HANDLE,
            find: "        if self.others_rely_on(group) {\n            self.data_lost(group, why);\n        }\n",
            replace: "        self.data_lost(group, why);\n",
        }],
        caught_by: &["fence::the_fence_holds_while_a_cache_that_failed_may_still_write_back"],
    },
    // The client's side: what is durable, and how many connections.
    Mutant {
        name: "a flush covers what was answered before its reply came, not before it was sent",
        edits: &[Edit {
            file: LEDGER,
            find: "        (self.writes.get(at)?.answered < sent).then_some(at)\n",
            replace: "        self.writes.get(at)?;\n        let _ = sent;\n        Some(at)\n",
        }],
        caught_by: &["ledger::the_2016_scenario_a_flush_reply_that_arrives_late_does_not_cover_what_it_overtook",],
    },
    Mutant {
        name: "a flush covers all connections without multi-conn",
        edits: &[Edit {
            file: LEDGER,
            find: "            Scope::OwnConnection => self.connections.get(connection)?.queue.first(),",
            replace: "            Scope::OwnConnection => {\n                let _ = connection;\n                self.connections.all().map(|(_, it)| it.queue.first()).min()?\n            }",
        }],
        caught_by: &["ledger::the_simpler_failure_case_of_2016_one_channel_gets_the_writes_and_one_the_flushes"],
    },
    Mutant {
        name: "a reply alone makes a write durable",
        edits: &[Edit {
            file: LEDGER,
            find: "        if tracked.fua {\n            tracked.phase = Phase::Free;",
            replace: "        if tracked.fua || tracked.sent > 0 {\n            tracked.phase = Phase::Free;",
        }],
        caught_by: &["ledger::a_write_becomes_durable_by_a_flush_that_was_sent_after_its_reply",],
    },
    Mutant {
        name: "a failed flush leaves its writes to the next one",
        edits: &[Edit {
            file: LEDGER,
            find: "        while let Some(write) = self.next_covered(at, now) {",
            replace: "        while let Some(write) = self.next_covered(at, 0) {",
        }],
        caught_by: &["ledger::after_a_failed_flush_no_later_success_makes_its_writes_durable",],
    },
    Mutant {
        name: "a failed flush casts doubt only on what it should have covered",
        edits: &[Edit {
            file: LEDGER,
            find: "        while let Some(write) = self.next_covered(at, now) {",
            replace: "        while let Some(write) = self.next_covered(at, flush.sent) {",
        }],
        caught_by: &["ledger::what_was_in_flight_or_answered_beside_a_flush_that_fails_is_suspect_too",],
    },
    Mutant {
        name: "what was in flight when a flush failed is believed",
        edits: &[Edit {
            file: LEDGER,
            find: "        if tracked.sent < failed {",
            replace: "        if tracked.sent < failed.min(0) {",
        }],
        caught_by: &["ledger::what_was_in_flight_or_answered_beside_a_flush_that_fails_is_suspect_too",],
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
        caught_by: &["ledger::with_multi_conn_what_a_connection_leaves_is_suspect_unless_the_caller_knows_the_server", "ledger::a_flush_that_is_answered_after_a_connection_ended_does_not_cover_what_it_left",],
    },
    Mutant {
        name: "a flush in flight survives the end of its connection",
        edits: &[Edit {
            file: LEDGER,
            find: "            flush.sent = 0;\n            let flushes",
            replace: "            let flushes",
        }],
        caught_by: &["ledger::a_flush_in_flight_on_a_connection_that_ends_is_as_if_it_had_never_been_sent"],
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
        caught_by: &["repair::what_is_forgotten_is_never_called_durable_though_its_place_is_reused"],
    },
    Mutant {
        name: "a forgotten write is called durable once its place is reused",
        edits: &[Edit {
            file: LEDGER,
            find: "                forgotten: write.forgotten,",
            replace: "                forgotten: 0,",
        }],
        caught_by: &["repair::what_is_forgotten_is_never_called_durable_though_its_place_is_reused"],
    },
    Mutant {
        name: "a write is replaced by one that may have come before it",
        edits: &[Edit {
            file: LEDGER,
            find: "        if by.sent <= ended || self",
            replace: "        if self",
        }],
        caught_by: &["repair::what_was_sent_before_the_end_of_a_write_was_known_does_not_replace_it"],
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
        caught_by: &["ledger::with_multi_conn_one_connection_is_to_be_flushed_else_each_that_wrote"],
    },
    Mutant {
        name: "a connection leaves while something is uncovered",
        edits: &[Edit {
            file: LEDGER_ANSWERS,
            find: "                (false, _) => connection.acknowledged,",
            replace: "                (false, _) => Tally::ZERO,",
        }],
        caught_by: &["ledger::a_connection_may_leave_when_nothing_is_in_flight_and_nothing_is_uncovered"],
    },
    Mutant {
        name: "the last connection leaves what others left to it",
        edits: &[Edit {
            file: LEDGER_ANSWERS,
            find: "                (true, 1) => self.summary.acknowledged,\n",
            replace: "                (true, 1) => connection.acknowledged,\n",
        }],
        caught_by: &["ledger::all_but_the_last_connection_may_leave_their_writes_to_the_others_of_a_trusted_server"],
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
        caught_by: &["plan::only_who_insists_gets_several_without_multi_conn_pinned_with_a_flush_on_each"],
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
