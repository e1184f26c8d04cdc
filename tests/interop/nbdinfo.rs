//! What nbdinfo learns of an export is what was asked of the server.

use crate::process::{Finished, peer, run};
use crate::server::{Serve, Server, Storage};

fn nbdinfo(arguments: &[&str], uri: &str) -> Finished {
    run(peer("nbdinfo").args(arguments).arg(uri))
}

/// The JSON of nbdinfo without its white space.
fn json(arguments: &[&str], uri: &str) -> String {
    let text = nbdinfo(&[&["--json"], arguments].concat(), uri).ok();
    text.split_whitespace().collect()
}

#[track_caller]
fn assert_field(json: &str, field: &str) {
    assert!(json.contains(field), "{field} is not in {json}");
}

/// `nbdinfo --can` and `--is` answer by their exit status.
fn can(server: &Server, what: &[&str]) -> bool {
    let finished = nbdinfo(what, &server.uri());
    match finished.status.code() {
        Some(0) => true,
        Some(2) => false,
        _ => panic!("{finished}"),
    }
}

over_every_storage! {
    size_and_flags_are_those_of_the_export,
    what_is_offered_is_what_the_storage_can_do,
}

fn size_and_flags_are_those_of_the_export(storage: Storage) {
    let server = Serve::over(storage).size(123 << 20).start();
    let info = json(&["--no-content"], &server.uri());
    assert_field(&info, "\"export-size\":128974848,");
    assert_field(&info, "\"is_read_only\":false");
    assert_field(&info, "\"export-name\":\"\"");
    assert_eq!(nbdinfo(&["--size"], &server.uri()).ok().trim(), "128974848");
}

fn what_is_offered_is_what_the_storage_can_do(storage: Storage) {
    let server = Serve::over(storage).start();
    for what in ["write", "flush", "fua", "trim", "zero", "structured-reply"] {
        assert!(can(&server, &["--can", what]), "can {what}");
    }
    assert!(!can(&server, &["--is", "read-only"]));
}

#[test]
fn block_sizes_are_sound_where_they_are_given() {
    let server = Serve::over(Storage::Memory).start();
    let info = json(&["--no-content"], &server.uri());
    let size = |name: &str| -> Option<u64> {
        let rest = info.split_once(&format!("\"block_size_{name}\":"))?.1;
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        Some(digits.parse().unwrap())
    };
    let (Some(least), Some(best), Some(most)) =
        (size("minimum"), size("preferred"), size("maximum"))
    else {
        assert!(
            size("minimum").is_none() && size("maximum").is_none(),
            "{info}"
        );
        return;
    };
    // proto.md "Size constraints".
    assert!(least.is_power_of_two() && least <= 1 << 16, "{info}");
    assert!(best.is_power_of_two() && best >= least.max(512), "{info}");
    assert!(most >= best && most % least == 0, "{info}");
}

#[test]
fn every_named_export_is_listed() {
    let server = Serve::over(Storage::Memory)
        .export("one")
        .export("two")
        .export("größer")
        .start();
    let list = json(&["--list"], &server.uri());
    for name in ["one", "two", "größer"] {
        assert_field(&list, &format!("\"export-name\":\"{name}\""));
    }
    assert_eq!(
        list.matches("\"export-size\":67108864").count(),
        3,
        "{list}"
    );
}

#[test]
fn the_default_export_is_listed_by_its_empty_name() {
    let server = Serve::over(Storage::Memory).start();
    assert_field(&json(&["--list"], &server.uri()), "\"export-name\":\"\"");
}

#[test]
fn a_named_export_is_reached_by_its_name_only() {
    let server = Serve::over(Storage::Memory).export("one").start();
    nbdinfo(&[], &server.uri_of("one")).ok();
    let absent = nbdinfo(&[], &server.uri_of("absent"));
    assert_eq!(absent.status.code(), Some(1), "{absent}");
    nbdinfo(&[], &server.uri_of("one")).ok();
}

#[test]
fn a_read_only_export_says_so() {
    let server = Serve::over(Storage::Memory).read_only().start();
    assert!(can(&server, &["--is", "read-only"]));
    assert!(!can(&server, &["--can", "write"]));
    assert_field(
        &json(&["--no-content"], &server.uri()),
        "\"is_read_only\":true",
    );
}

#[test]
fn multi_conn_is_claimed_when_it_is_emulated() {
    for storage in [Storage::Memory, Storage::File, Storage::Cached] {
        let server = Serve::over(storage).multi_conn("emulate").start();
        assert!(can(&server, &["--can", "multi-conn"]), "{storage:?}");
    }
}

#[test]
fn multi_conn_is_not_claimed_when_it_is_disabled() {
    for storage in [Storage::Memory, Storage::File, Storage::Cached] {
        let server = Serve::over(storage).multi_conn("disable").start();
        assert!(!can(&server, &["--can", "multi-conn"]), "{storage:?}");
    }
}

#[test]
fn multi_conn_is_claimed_by_itself_where_it_can_be_kept() {
    for storage in [Storage::Memory, Storage::File, Storage::Cached] {
        let server = Serve::over(storage).multi_conn("auto").start();
        assert!(can(&server, &["--can", "multi-conn"]), "{storage:?}");
    }
}

#[test]
fn multi_conn_is_passed_through_from_the_storage() {
    for storage in [Storage::Memory, Storage::File, Storage::Cached] {
        let server = Serve::over(storage).multi_conn("plugin").start();
        // One cache per connection is not consistent by itself.
        let expected = storage != Storage::Cached;
        assert_eq!(
            can(&server, &["--can", "multi-conn"]),
            expected,
            "{storage:?}"
        );
    }
}

#[test]
fn a_unix_socket_serves_as_well() {
    let server = Serve::over(Storage::Memory).on_unix_socket().start();
    assert_eq!(nbdinfo(&["--size"], &server.uri()).ok().trim(), "67108864");
}
