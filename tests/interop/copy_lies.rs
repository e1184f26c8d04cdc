//! `copy` from and to servers that lie: wrong data never ends in success, and it never hangs.

use std::fs;
use std::time::Duration;

use crate::content::random_file;
use crate::copy::assert_fails_well;
use crate::hostile::{
    Asked, DATA, DONE, ERROR, ERROR_OFFSET, HOLE, Manners, NONE, Said, chunk, honest_data, serve,
    simple,
};
use crate::process::{Finished, Process};
use crate::programs::copy_command;
use crate::raw::{EIO, FLUSH, READ, WRITE};

const SIZE: u64 = 1 << 20;
/// A server that answers at once leaves no reason to take longer.
const PATIENCE: Duration = Duration::from_secs(20);

struct Copied {
    finished: Finished,
    file: Option<Vec<u8>>,
}

fn copy_from(manners: Manners, lie: impl Fn(&Asked) -> Said + Send + Sync + 'static) -> Copied {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("copy");
    let address = serve(manners, lie);
    let mut command = copy_command(&format!("nbd://{address}"), file.to_str().unwrap());
    let finished = Process::start(&mut command).finish(PATIENCE);
    Copied {
        finished,
        file: fs::read(file).ok(),
    }
}

fn copy_to(lie: impl Fn(&Asked) -> Said + Send + Sync + 'static) -> Finished {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("source");
    random_file(&file, SIZE, 1);
    let address = serve(Manners::of_size(SIZE), lie);
    let mut command = copy_command(file.to_str().unwrap(), &format!("nbd://{address}"));
    Process::start(&mut command).finish(PATIENCE)
}

/// Copies from a server that lies in its replies to reads, and to nothing else.
#[track_caller]
fn assert_lie_is_seen(lie: impl Fn(&Asked) -> Vec<u8> + Send + Sync + 'static) {
    let copied = copy_from(Manners::of_size(SIZE), move |asked| {
        Said::GoOn(if asked.kind == READ {
            lie(asked)
        } else {
            asked.honest()
        })
    });
    assert_fails_well(&copied.finished);
}

fn half(asked: &Asked) -> (u64, Vec<u8>, Vec<u8>) {
    let mut first = asked.data();
    let second = first.split_off(first.len() / 2);
    (asked.offset + first.len() as u64, first, second)
}

/// Shows that the small server is fit to be believed: without a lie the copy succeeds.
#[test]
fn an_honest_server_is_copied() {
    for structured in [true, false] {
        let manners = Manners {
            structured,
            ..Manners::of_size(SIZE)
        };
        let copied = copy_from(manners, |asked| Said::GoOn(asked.honest()));
        assert!(copied.finished.status.success(), "{}", copied.finished);
        assert!(copied.file.unwrap() == honest_data(0, SIZE));
    }
    assert!(copy_to(|asked| Said::GoOn(asked.honest())).status.success());
}

/// As unusual as a legal reply can be.
#[test]
fn chunks_in_any_order_are_copied() {
    let copied = copy_from(Manners::of_size(SIZE), |asked| {
        if asked.kind != READ {
            return Said::GoOn(asked.honest());
        }
        let (middle, first, second) = half(asked);
        let chunks = [
            asked.part(0, middle, &second),
            asked.part(0, asked.offset, &first),
            chunk(DONE, NONE, asked.cookie, &[]),
        ];
        Said::GoOn(chunks.concat())
    });
    assert!(copied.finished.status.success(), "{}", copied.finished);
    assert!(copied.file.unwrap() == honest_data(0, SIZE));
}

#[test]
fn bytes_left_out_are_seen() {
    assert_lie_is_seen(|asked| {
        let (_, first, _) = half(asked);
        [
            asked.part(0, asked.offset, &first),
            chunk(DONE, NONE, asked.cookie, &[]),
        ]
        .concat()
    });
}

#[test]
fn one_byte_left_out_at_the_end_is_seen() {
    assert_lie_is_seen(|asked| {
        let data = asked.data();
        asked.part(DONE, asked.offset, &data[..data.len() - 1])
    });
}

#[test]
fn a_read_that_succeeds_without_data_is_seen() {
    assert_lie_is_seen(|asked| chunk(DONE, NONE, asked.cookie, &[]));
}

#[test]
fn chunks_that_overlap_are_seen() {
    assert_lie_is_seen(|asked| {
        let (_, first, _) = half(asked);
        [
            asked.part(0, asked.offset, &first),
            asked.part(DONE, asked.offset, &asked.data()),
        ]
        .concat()
    });
}

#[test]
fn a_chunk_sent_twice_in_place_of_two_is_seen() {
    assert_lie_is_seen(|asked| {
        let (_, first, _) = half(asked);
        [
            asked.part(0, asked.offset, &first),
            asked.part(DONE, asked.offset, &first),
        ]
        .concat()
    });
}

#[test]
fn data_out_of_range_is_seen() {
    assert_lie_is_seen(|asked| asked.part(DONE, asked.offset + 512, &asked.data()));
    assert_lie_is_seen(|asked| asked.part(DONE, u64::MAX - 511, &asked.data()));
}

#[test]
fn a_hole_over_data_is_seen() {
    assert_lie_is_seen(|asked| {
        let hole = [&asked.offset.to_be_bytes()[..], &512_u32.to_be_bytes()].concat();
        [
            asked.part(0, asked.offset, &asked.data()),
            chunk(DONE, HOLE, asked.cookie, &hole),
        ]
        .concat()
    });
}

#[test]
fn a_hole_larger_than_the_request_is_seen() {
    assert_lie_is_seen(|asked| {
        let hole = [&asked.offset.to_be_bytes()[..], &u32::MAX.to_be_bytes()].concat();
        chunk(DONE, HOLE, asked.cookie, &hole)
    });
}

#[test]
fn a_wrong_cookie_is_seen() {
    assert_lie_is_seen(|asked| {
        let data = [&asked.offset.to_be_bytes()[..], &asked.data()].concat();
        chunk(DONE, DATA, asked.cookie ^ 0x5555_0000_0000, &data)
    });
}

#[test]
fn an_answer_given_twice_is_seen() {
    assert_lie_is_seen(|asked| asked.honest().repeat(2));
}

#[test]
fn an_error_chunk_is_an_error() {
    assert_lie_is_seen(|asked| {
        chunk(
            DONE,
            ERROR,
            asked.cookie,
            &[&EIO.to_be_bytes()[..], &[0, 4], b"disk"].concat(),
        )
    });
}

#[test]
fn an_error_with_offset_amid_data_is_an_error() {
    assert_lie_is_seen(|asked| {
        let (middle, first, _) = half(asked);
        let error = [&EIO.to_be_bytes()[..], &[0, 0], &middle.to_be_bytes()].concat();
        [
            asked.part(0, asked.offset, &first),
            chunk(0, ERROR_OFFSET, asked.cookie, &error),
            chunk(DONE, NONE, asked.cookie, &[]),
        ]
        .concat()
    });
}

#[test]
fn an_error_chunk_whose_inner_length_lies_is_seen() {
    assert_lie_is_seen(|asked| {
        chunk(
            DONE,
            ERROR,
            asked.cookie,
            &[&EIO.to_be_bytes()[..], &[0xff, 0xff], b"x"].concat(),
        )
    });
}

#[test]
fn an_error_chunk_without_an_error_is_seen() {
    assert_lie_is_seen(|asked| chunk(DONE, ERROR, asked.cookie, &[0; 6]));
}

#[test]
fn an_unknown_chunk_in_place_of_data_is_seen() {
    assert_lie_is_seen(|asked| chunk(DONE, 0x1234, asked.cookie, b"what is it"));
}

#[test]
fn a_chunk_of_absurd_length_is_seen() {
    assert_lie_is_seen(|asked| {
        let mut bytes = asked.part(DONE, asked.offset, &asked.data());
        bytes[16..20].copy_from_slice(&u32::MAX.to_be_bytes());
        bytes
    });
}

#[test]
fn a_simple_reply_to_a_structured_read_is_seen() {
    assert_lie_is_seen(|asked| simple(0, asked.cookie, &asked.data()));
}

#[test]
fn a_wrong_magic_is_seen() {
    assert_lie_is_seen(|asked| {
        let mut bytes = asked.honest();
        bytes[0] ^= 0xff;
        bytes
    });
}

#[test]
fn short_data_before_hanging_up_is_seen() {
    for structured in [true, false] {
        let manners = Manners {
            structured,
            ..Manners::of_size(SIZE)
        };
        let copied = copy_from(manners, |asked| {
            let bytes = asked.honest();
            Said::HangUp(bytes[..bytes.len() - 1].to_vec())
        });
        assert_fails_well(&copied.finished);
    }
}

#[test]
fn an_error_in_a_simple_reply_is_an_error() {
    let manners = Manners {
        structured: false,
        ..Manners::of_size(SIZE)
    };
    let copied = copy_from(manners, |asked| Said::GoOn(simple(EIO, asked.cookie, &[])));
    assert_fails_well(&copied.finished);
}

#[test]
fn a_structured_reply_that_was_not_negotiated_is_seen() {
    let manners = Manners {
        structured: false,
        ..Manners::of_size(SIZE)
    };
    let copied = copy_from(manners, |asked| {
        Said::GoOn(asked.part(DONE, asked.offset, &asked.data()))
    });
    assert_fails_well(&copied.finished);
}

#[test]
fn a_greeting_of_something_else_is_seen() {
    for greeting in [
        &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..],
        b"",
        b"NBDMAGIC",
        b"NBDMAGICIHAVEOPX\0\x03",
        b"NBDMAGIC\0\x42\x02\x81\x86\x12\x53\0\0",
    ] {
        let greeting = Some(greeting.to_vec());
        let manners = Manners {
            greeting,
            ..Manners::of_size(SIZE)
        };
        assert_fails_well(&copy_from(manners, |_| Said::HangUp(Vec::new())).finished);
    }
}

#[test]
fn answers_to_go_that_make_no_sense_are_seen() {
    let head = |option: u8, kind: [u8; 4], length: [u8; 4]| {
        [
            &[0, 3, 0xe8, 0x89, 4, 0x55, 0x65, 0xa9, 0, 0, 0, option][..],
            &kind,
            &length,
        ]
        .concat()
    };
    for info in [
        // An acknowledgement with no information before it.
        head(7, [0, 0, 0, 1], [0; 4]),
        // Another option's.
        head(6, [0, 0, 0, 1], [0; 4]),
        // 4 GiB of information.
        [head(7, [0, 0, 0, 3], [0xff; 4]), vec![0; 1 << 16]].concat(),
        // An export's information of one byte.
        [head(7, [0, 0, 0, 3], [0, 0, 0, 3]), vec![0; 3]].concat(),
        // A reply with a wrong magic.
        vec![0xee; 64],
    ] {
        let manners = Manners {
            info: Some(info),
            ..Manners::of_size(SIZE)
        };
        let hang_up = |_: &Asked| Said::HangUp(Vec::new());
        assert_fails_well(&copy_from(manners, hang_up).finished);
    }
}

#[test]
fn a_size_that_no_file_can_have_is_an_error() {
    for size in [u64::MAX, (1 << 63) + 512] {
        let copied = copy_from(Manners::of_size(size), |asked| {
            Said::GoOn(simple(EIO, asked.cookie, &[]))
        });
        assert_fails_well(&copied.finished);
    }
}

#[test]
fn a_write_that_fails_is_an_error() {
    let lie = |asked: &Asked| match asked.kind {
        WRITE if asked.offset >= SIZE / 2 => Said::GoOn(simple(28, asked.cookie, &[])),
        _ => Said::GoOn(asked.honest()),
    };
    assert_fails_well(&copy_to(lie));
}

#[test]
fn a_last_flush_that_fails_is_an_error() {
    let lie = |asked: &Asked| match asked.kind {
        FLUSH => Said::GoOn(simple(EIO, asked.cookie, &[])),
        _ => Said::GoOn(asked.honest()),
    };
    assert_fails_well(&copy_to(lie));
}

#[test]
fn a_server_that_hangs_up_on_the_last_flush_is_an_error() {
    let lie = |asked: &Asked| match asked.kind {
        FLUSH => Said::HangUp(Vec::new()),
        _ => Said::GoOn(asked.honest()),
    };
    assert_fails_well(&copy_to(lie));
}

#[test]
fn a_write_answered_with_another_cookie_is_seen() {
    let lie = |asked: &Asked| match asked.kind {
        WRITE => Said::GoOn(simple(0, !asked.cookie, &[])),
        _ => Said::GoOn(asked.honest()),
    };
    assert_fails_well(&copy_to(lie));
}
