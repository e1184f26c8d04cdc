//! The table of what is supported, `PROTOCOL.md`: it has every element that has a constant, and
//! each of its cells is what both sides do.

#[path = "../handshake_support/mod.rs"]
mod handshake_support;

mod client;
mod contexts;
mod elements;
mod samples;
mod server;
mod styles;
mod table;

use std::collections::BTreeSet;

use table::Row;

const TABLE: &str = include_str!("../../PROTOCOL.md");

/// The sections whose rows have no constants: each row with what both sides do.
fn rules() -> Vec<(&'static str, &'static str, bool, bool)> {
    let styles = styles::ALL.iter().map(|it| (styles::SECTION, it));
    let contexts = contexts::ALL.iter().map(|it| (contexts::SECTION, it));
    styles
        .chain(contexts)
        .map(|(section, &(name, server, client))| (section, name, server(), client()))
        .collect()
}

#[test]
fn the_table_has_a_row_for_every_constant_and_no_other() {
    let rows = table::rows(TABLE);
    let written: Vec<_> = rows
        .iter()
        .map(|it| (it.section, it.name, it.number))
        .collect();
    let all = elements::all();
    let rules = rules();
    let constants = all
        .iter()
        .map(|it| (it.section, &it.name[..], &it.number[..]));
    let rules = rules.iter().map(|&(section, name, ..)| (section, name, ""));
    let expected: Vec<_> = rules.chain(constants).collect();
    for row in &written {
        assert!(expected.contains(row), "{row:?} has no constant");
    }
    for row in &expected {
        assert!(written.contains(row), "{row:?} has no row");
    }
    assert_eq!(written.len(), expected.len(), "a row is there twice");
}

/// A kind of elements that is new has to be put into the lists above.
#[test]
fn no_kind_of_elements_is_left_out() {
    let codes = include_str!("../../src/wire/codes.rs");
    let flags = include_str!("../../src/wire/flags.rs");
    let named = |line: &'static str| {
        let line = line.trim_start();
        let is_code = line.ends_with("32) {") || line.ends_with("16) {");
        let end = line.find(['(', ':']).unwrap_or(line.len());
        match line.strip_prefix("pub struct ") {
            Some(flags) if flags.ends_with(" {") => flags.split(':').next(),
            None if is_code => line.get(..end),
            _ => None,
        }
    };
    let kinds: BTreeSet<&str> = codes
        .lines()
        .chain(flags.lines())
        .filter_map(named)
        .collect();
    let all = elements::all();
    let listed: BTreeSet<&str> = all.iter().map(|it| it.section).collect();
    assert_eq!(kinds, listed);
    let count = |text: &str, what: &str| text.matches(what).count();
    let macros = count(codes, "\nopen_enum! {") + count(flags, "\nbitflags! {");
    assert_eq!(kinds.len(), macros);
}

#[test]
fn the_table_says_what_servers_and_clients_do() {
    let mut wrong = Vec::new();
    let mut compare = |section, name: &str, server, client| {
        let rows = table::rows(TABLE);
        let row = rows
            .iter()
            .find(|row| row.section == section && row.name == name);
        let Some(&Row {
            server: says_server,
            client: says_client,
            ..
        }) = row
        else {
            return;
        };
        for (side, says, does) in [
            ("server", says_server, server),
            ("client", says_client, client),
        ] {
            if says != does {
                wrong.push(format!("{name}: {side}: {does}, but the table says {says}"));
            }
        }
    };
    for it in elements::all() {
        compare(
            it.section,
            &it.name,
            server::does(it.element),
            client::does(it.element),
        );
    }
    for (section, name, server, client) in rules() {
        compare(section, name, server, client);
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Otherwise a yes would mean nothing.
#[test]
fn neither_side_supports_what_is_not_defined() {
    for element in elements::undefined() {
        assert!(!server::does(element), "server: {element:?}");
        assert!(!client::does(element), "client: {element:?}");
    }
}
