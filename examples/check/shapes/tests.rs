use std::collections::{BTreeMap, BTreeSet};

use super::super::script::Act;
use super::*;

const ALL: Abilities = Abilities {
    writes: true,
    flush: true,
    fua: true,
    zero: true,
    trim: true,
    cache: true,
    status: true,
};

const READS: Abilities = Abilities {
    writes: false,
    flush: false,
    fua: false,
    zero: false,
    trim: false,
    cache: false,
    status: false,
};

fn scripts(abilities: Abilities, roles: usize) -> Vec<(&'static str, Script)> {
    let layout = Layout::new(1 << 20, 1, 32 << 20).unwrap();
    let mut dice = Dice::new(5);
    let script = |_| {
        let cell = layout.cells()[dice.index(layout.cells().len())];
        let mut stage = Stage {
            dice: &mut dice,
            abilities,
            layout: &layout,
            cell,
            roles,
        };
        compose(&mut stage, true)
    };
    (0..3000).map(script).collect()
}

#[test]
fn every_shape_is_played_where_all_is_possible() {
    let mut seen: BTreeMap<_, u32> = BTreeMap::new();
    for (name, _) in scripts(ALL, 4) {
        *seen.entry(name).or_default() += 1;
    }
    let expected = SHAPES
        .iter()
        .filter(|shape| shape.needs != Needs::OnlyReads)
        .map(|shape| shape.name);
    assert!(expected.clone().all(|name| seen[name] > 10), "{seen:?}");
    assert_eq!(seen.len(), expected.count());
}

#[test]
fn nothing_is_sent_that_the_server_cannot_do() {
    let lacking = [
        Abilities { fua: false, ..ALL },
        Abilities {
            flush: false,
            ..ALL
        },
        Abilities { trim: false, ..ALL },
        Abilities { zero: false, ..ALL },
        READS,
    ];
    for abilities in lacking {
        for (name, script) in scripts(abilities, 3) {
            for act in &script.acts {
                let Act::Send(_, _, what) = *act else {
                    continue;
                };
                let possible = match what {
                    What::Read(_) => true,
                    What::Write(_, fua) => abilities.writes && (abilities.fua || fua == Fua::No),
                    What::Zero(_, fua) => abilities.zero && (abilities.fua || fua == Fua::No),
                    What::Trim(_, fua) => abilities.trim && (abilities.fua || fua == Fua::No),
                    What::Flush => abilities.flush,
                    What::Cache(_) => abilities.cache,
                    What::Status(_) => abilities.status,
                };
                assert!(possible, "{name}: {what:?} with {abilities:?}");
            }
        }
    }
}

#[test]
fn scripts_wait_only_for_what_was_sent_and_in_the_end_for_all() {
    for roles in 1..=5 {
        for (name, script) in scripts(ALL, roles) {
            let mut sent = BTreeSet::new();
            let mut unanswered = BTreeSet::new();
            for act in &script.acts {
                match *act {
                    Act::Send(tag, role, _) => {
                        assert!(sent.insert(tag), "{name}");
                        assert!(role < roles.max(3), "{name}");
                        unanswered.insert(tag);
                    }
                    Act::Wait(tag) => {
                        assert!(sent.contains(&tag), "{name}");
                        unanswered.remove(&tag);
                    }
                    Act::WaitAll => unanswered.clear(),
                    Act::Pause(_, percent) => assert!(percent <= 200),
                    Act::Leave(..) | Act::Join(_) => {}
                }
            }
            assert!(unanswered.is_empty(), "{name}: {script:?}");
        }
    }
}

#[test]
fn who_leaves_comes_back() {
    for roles in 1..=4 {
        for (name, script) in scripts(ALL, roles) {
            let mut gone = BTreeSet::new();
            for act in &script.acts {
                match *act {
                    Act::Leave(role, _) => assert!(gone.insert(role % roles)),
                    Act::Join(role) => {
                        gone.remove(&(role % roles));
                    }
                    Act::Send(_, role, _) => {
                        assert!(
                            !gone.contains(&(role % roles)),
                            "{name} with {roles}: {script:?}"
                        );
                    }
                    _ => {}
                }
            }
            assert!(gone.is_empty(), "{name}");
        }
    }
}

#[test]
fn every_script_that_writes_ends_with_reads_on_all_connections() {
    for (name, script) in scripts(ALL, 4) {
        let is_send = |act: &&Act| matches!(act, Act::Send(..));
        let last = script.acts.iter().rev().filter(is_send).take(4);
        let roles: BTreeSet<_> = last
            .map(|act| match act {
                Act::Send(_, role, What::Read(_)) => *role,
                other => panic!("{name} ends with {other:?}"),
            })
            .collect();
        assert_eq!(roles.len(), 4, "{name}");
    }
}
