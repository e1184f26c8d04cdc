//! The example `serve`: what it says of what is allocated, and of its exports.

#![cfg(target_os = "linux")]

mod program_support;
mod serve_support;

use std::fs::File;
use std::net::TcpStream;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use nbd_proto::handshake::{ClientConfig, Inspect, Wanted};
use nbd_proto::io::inspect;
use nbd_proto::session::ReplyStyle;
use nbd_proto::wire::{CommandFlags, Cookie, Errno, Name, Request};
use proptest::prelude::RngCore;
use proptest::test_runner::{RngAlgorithm, TestRng};

use serve_support::{Negotiated, Serve};

type Client = Negotiated<TcpStream>;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

const DATA: u64 = 0;
const ZERO: u64 = 2;
const HOLE: u64 = 3;

const ANY: CommandFlags = CommandFlags::empty();

fn allocation(extended: bool) -> Wanted {
    Wanted::new(Name::default())
        .with_extended_headers(extended)
        .with_contexts([Name::new("base:allocation").unwrap()])
}

/// In each style that has block status.
fn in_each_style(serve: &Serve, check: impl Fn(&mut Client)) {
    for extended in [false, true] {
        let mut client = serve.negotiate(allocation(extended));
        let style = client.session.reply_style();
        assert_eq!(style == ReplyStyle::Extended, extended);
        assert_eq!(client.session.contexts().len(), 1);
        check(&mut client);
        client.disconnect();
    }
}

/// A file of 8 MiB with data in its second.
fn image() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    let file = File::create(&path).unwrap();
    file.set_len(8 * MIB).unwrap();
    file.write_all_at(&[7; 1 << 20], MIB).unwrap();
    (directory, path)
}

#[test]
fn memory_that_was_not_written_is_a_hole_and_the_rest_data() {
    let serve = Serve::start(&["--size", "8M"]);
    serve.negotiate(allocation(false)).write(MIB, &[7; 1 << 20]);
    in_each_style(&serve, |client| {
        let all = client.status(0, 8 * MIB, ANY);
        assert_eq!(all, [(MIB, HOLE), (MIB, DATA), (6 * MIB, HOLE)]);
        // Within the extents.
        let part = client.status(MIB + 5, MIB, ANY);
        assert_eq!(part, [(MIB - 5, DATA), (5, HOLE)]);
        let one = client.status(5, 8 * MIB - 5, CommandFlags::REQ_ONE);
        assert_eq!(one, [(MIB - 5, HOLE)]);
        assert_eq!(client.status(8 * MIB - 1, 1, ANY), [(1, HOLE)]);
    });
    serve.stop().well();
}

#[test]
fn the_holes_of_a_file_are_told_and_follow_what_is_done_to_it() {
    let (_directory, path) = image();
    let serve = Serve::start(&["file", path.to_str().unwrap()]);
    in_each_style(&serve, |client| {
        let all = client.status(0, 8 * MIB, ANY);
        assert_eq!(all, [(MIB, HOLE), (MIB, DATA), (6 * MIB, HOLE)]);
        client.write(4 * MIB, &[1; 1 << 20]);
        let trim = Request::trim(Cookie(0), MIB, MIB);
        assert_eq!(client.ask(trim, &[]).errno, None);
        let all = client.status(0, 8 * MIB, ANY);
        assert_eq!(all, [(4 * MIB, HOLE), (MIB, DATA), (3 * MIB, HOLE)]);
        // As it was.
        let trim = Request::trim(Cookie(0), 4 * MIB, MIB);
        assert_eq!(client.ask(trim, &[]).errno, None);
        client.write(MIB, &[7; 1 << 20]);
    });
    serve.stop().well();
}

#[test]
fn a_client_is_told_of_what_it_has_in_its_cache() {
    let (_directory, path) = image();
    let serve = Serve::start(&["--cache", "file", path.to_str().unwrap()]);
    in_each_style(&serve, |client| {
        client.write(4 * MIB, &[1; 4096]);
        let zeroes = Request::write_zeroes(Cookie(0), MIB, 64 * KIB);
        assert_eq!(client.ask(zeroes, &[]).errno, None);
        let expected = [
            (MIB, HOLE),
            // To be written: whether it becomes a hole is not known.
            (64 * KIB, ZERO),
            (MIB - 64 * KIB, DATA),
            (2 * MIB, HOLE),
            (4096, DATA),
            (4 * MIB - 4096, HOLE),
        ];
        assert_eq!(client.status(0, 8 * MIB, ANY), expected);
        let one = client.status(MIB, MIB, CommandFlags::REQ_ONE);
        assert_eq!(one, [(64 * KIB, ZERO)]);
        // Undone, for the next.
        let trim = Request::trim(Cookie(0), 4 * MIB, 4096);
        assert_eq!(client.ask(trim, &[]).errno, None);
        client.write(MIB, &[7; 64 << 10]);
        assert_eq!(client.ask(Request::flush(Cookie(0)), &[]).errno, None);
    });
    serve.stop().well();
}

#[test]
fn where_reads_are_coherent_so_is_block_status() {
    let (_directory, path) = image();
    let path = path.to_str().unwrap();
    let serve = Serve::start(&[
        "--cache",
        "--multi-conn",
        "emulate",
        "--overlap",
        "coherent",
        "file",
        path,
    ]);
    let [mut a, mut b] = [(); 2].map(|()| serve.negotiate(allocation(false)));
    assert_eq!(b.status(4 * MIB, 64 * KIB, ANY), [(64 * KIB, HOLE)]);
    a.write(4 * MIB, &[1; 64 << 10]);
    // It is in the cache of the other, which has to be written out first.
    assert_eq!(b.status(4 * MIB, 64 * KIB, ANY), [(64 * KIB, DATA)]);
    a.disconnect();
    b.disconnect();
    serve.stop().well();
}

#[test]
fn contexts_can_be_named_in_a_payload() {
    let serve = Serve::start(&["--size", "8M"]);
    let mut client = serve.negotiate(allocation(true));
    let id = client.session.contexts()[0].id;
    client.write(0, &[1; 65536]);
    let told = client.status_of(0, 8 * MIB, &[id], |_| {});
    assert_eq!(told.errno, None);
    assert_eq!(told.extents, [(64 * KIB, DATA), (8 * MIB - 64 * KIB, HOLE)]);
    // What is wrong in the payload is refused, and the session goes on.
    let spoilers: [fn(&mut [u8]); 4] = [
        |payload| payload[11] += 1,
        |payload| payload[0] = 0x80,
        |payload| payload[..8].fill(0),
        |payload| payload[..8].fill(0xff),
    ];
    for spoil in spoilers {
        let refused = client.status_of(0, 8 * MIB, &[id], spoil);
        assert_eq!(refused.errno, Some(Errno::EINVAL));
        assert_eq!(client.read(0, 4), [1; 4]);
    }
    client.disconnect();
    serve.stop().well();
}

#[test]
fn a_reply_has_a_bounded_number_of_extents_and_the_next_goes_on_from_there() {
    let (_directory, path) = image();
    let file = File::options().write(true).open(&path).unwrap();
    const COUNT: u64 = 3000;
    file.set_len(COUNT * 8 * KIB).unwrap();
    for at in 0..COUNT {
        file.write_all_at(&[1; 4096], at * 8 * KIB).unwrap();
    }
    for cache in [&["file"][..], &["--cache", "file"]] {
        let serve = Serve::start(&[cache, &[path.to_str().unwrap()]].concat());
        in_each_style(&serve, |client| {
            let size = client.session.size();
            let (mut position, mut all, mut replies) = (0, Vec::new(), 0);
            while position < size {
                let extents = client.status(position, size - position, ANY);
                assert!(extents.len() <= 1024, "{} extents", extents.len());
                position += extents.iter().map(|(length, _)| length).sum::<u64>();
                all.extend(extents);
                replies += 1;
            }
            assert_eq!(position, size);
            assert!(replies > 4, "{replies}");
            // From the second mebibyte on there may be more data.
            let zeroes = all.iter().filter(|(_, flags)| *flags == HOLE).count();
            assert!(zeroes > 2500, "{zeroes}");
        });
        serve.stop().well();
    }
}

/// Two connections do anything, and each is told the truth about what it reads.
fn zero_is_the_truth(arguments: &[&str]) {
    let (_directory, path) = image();
    let path = path.to_str().unwrap();
    let serve = Serve::start(&[arguments, &["file", path]].concat());
    let mut clients = [false, true].map(|extended| serve.negotiate(allocation(extended)));
    let mut random = TestRng::from_seed(RngAlgorithm::ChaCha, &[3; 32]);
    let mut number = |below: u64| random.next_u64() % below;
    let mut zeroes_told = 0;
    for _ in 0..600 {
        let client = &mut clients[number(2) as usize];
        let offset = 512 * number(3 * MIB / 512);
        let length = 512 * (1 + number(512));
        match number(6) {
            0 | 1 => client.write(offset, &vec![0xaa; length as usize]),
            2 => {
                let zeroes = Request::write_zeroes(Cookie(0), offset, length);
                assert_eq!(client.ask(zeroes, &[]).errno, None);
            }
            3 => {
                let trim = Request::trim(Cookie(0), offset, length);
                assert_eq!(client.ask(trim, &[]).errno, None);
            }
            4 => assert_eq!(client.ask(Request::flush(Cookie(0)), &[]).errno, None),
            _ => drop(client.read(offset, length)),
        }
        let offset = 512 * number(3 * MIB / 512);
        let mut position = offset;
        for (length, flags) in client.status(offset, MIB, ANY) {
            if flags & ZERO != 0 {
                let data = client.read(position, length);
                assert!(data.iter().all(|&byte| byte == 0), "{position} {length}");
                zeroes_told += 1;
            }
            position += length;
        }
    }
    assert!(zeroes_told > 500, "{zeroes_told}");
    let _ = clients.map(Negotiated::disconnect);
    serve.stop().well();
}

#[test]
fn what_is_told_to_be_zero_reads_as_zero() {
    zero_is_the_truth(&[]);
}

#[test]
fn what_is_told_to_be_zero_reads_as_zero_through_a_cache() {
    zero_is_the_truth(&["--cache", "--multi-conn", "emulate"]);
}

#[test]
fn without_the_context_there_is_no_block_status() {
    let serve = Serve::start(&[]);
    let mut client = serve.connect();
    let status = |cookie| Request::block_status(cookie, 0, 512);
    assert_eq!(client.ask(status, &[], 0), Err(Errno::EINVAL));
    client.ask(Request::flush, &[], 0).unwrap();
    client.disconnect();
    serve.stop().well();
}

#[test]
fn exports_are_listed_with_their_description_sizes_and_contexts() {
    let serve = Serve::start(&[
        "--export",
        "one",
        "--export",
        "two",
        "--description",
        "scratch space, größer",
    ]);
    let asked = Inspect::new().with_every_export(true).with_contexts(true);
    let (report, end) = inspect(&mut serve.connect_silently(), asked, ClientConfig::new());
    end.unwrap();
    let list = report.list.unwrap().unwrap();
    let names: Vec<_> = list.iter().map(|it| it.name.as_str()).collect();
    assert_eq!(names, ["one", "two"]);
    for listed in &list {
        assert_eq!(listed.description.as_str(), "scratch space, größer");
    }
    let text = format!("{:?}", report.exports);
    assert!(text.contains("base:allocation"), "{text}");
    assert!(text.contains("größer"), "{text}");
    serve.stop().well();
}

#[test]
fn exports_that_are_not_listed_can_be_used_by_who_knows_them() {
    let serve = Serve::start(&["--export", "hidden", "--no-list"]);
    let (report, _) = inspect(
        &mut serve.connect_silently(),
        Inspect::new().with_list(true),
        ClientConfig::new(),
    );
    assert!(matches!(report.list, Some(Err(_))), "{report:?}");
    let wanted = Wanted::new(Name::new("hidden").unwrap());
    serve.negotiate(wanted).disconnect();
    serve.stop().well();
}

#[test]
fn block_sizes_are_those_of_the_storage() {
    let (_directory, path) = image();
    for arguments in [&["memory"][..], &["file", path.to_str().unwrap()]] {
        let serve = Serve::start(arguments);
        let client = serve.negotiate(allocation(false));
        let sizes = client.session.block_sizes();
        assert_eq!(sizes.minimum(), 1);
        assert!(sizes.preferred() >= 4096, "{sizes:?}");
        assert_eq!(sizes.max_payload(), 32 << 20);
        client.disconnect();
        serve.stop().well();
    }
}
