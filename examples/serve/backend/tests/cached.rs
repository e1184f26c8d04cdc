//! What a cache per connection promises: see the flush contract of `Handle`.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::{self, ScopedJoinHandle};
use std::time::Duration;

use proptest::prelude::RngCore;
use proptest::test_runner::{RngAlgorithm, TestRng};

use super::super::cached::CachedHandle;
use super::super::{Backend, CachedBackend, Content, Extent, FileBackend, Handle, Zeroing};

use super::{Probe, ProbeBackend, assert_ranges_are_checked, memory, read};

const SIZE: u64 = 1 << 20;
const LIMIT: usize = 4 << 20;
/// The least there is.
const SMALL: usize = 64 * 1024;

fn two_over_memory() -> [Arc<dyn Handle>; 3] {
    let lower = memory(SIZE);
    let cached = CachedBackend::new(lower.clone(), LIMIT);
    assert!(!cached.capabilities().multi_conn);
    [
        cached.open().expect("open"),
        cached.open().expect("open"),
        lower.open().expect("open"),
    ]
}

fn over_probe(limit: usize) -> (Arc<Probe>, Arc<CachedHandle>) {
    let probe = Probe::new(SIZE);
    let cached = CachedBackend::new(Arc::new(ProbeBackend(probe.clone())), limit);
    let handle = cached.open_cached().expect("open");
    (probe, handle)
}

#[test]
fn a_write_is_visible_to_another_handle_after_both_were_flushed() {
    let [a, b, lower] = two_over_memory();
    assert_ranges_are_checked(&*a, SIZE);
    assert_eq!(read(&*b, 0, 4), [0; 4]);
    a.write(0, b"new!", false).expect("write");
    assert_eq!(read(&*a, 0, 4), b"new!");
    assert_eq!(read(&*lower, 0, 4), [0; 4]);
    assert_eq!(read(&*b, 0, 4), [0; 4]);
    a.flush().expect("flush");
    assert_eq!(read(&*lower, 0, 4), b"new!");
    assert_eq!(
        read(&*b, 0, 4),
        [0; 4],
        "b goes on seeing what it has cached"
    );
    b.flush().expect("flush");
    assert_eq!(read(&*b, 0, 4), b"new!");
}

#[test]
fn a_flushed_handle_forgets_what_it_wrote_itself() {
    let [a, b, _] = two_over_memory();
    a.write(0, &[1; 8192], false).expect("write");
    a.flush().expect("flush");
    b.write(100, b"later", false).expect("write");
    b.flush().expect("flush");
    assert_eq!(read(&*a, 100, 5), b"later");
}

#[test]
fn neighbours_in_one_block_survive_each_others_flushes() {
    for order in [[0, 1], [1, 0]] {
        let [a, b, lower] = two_over_memory();
        let handles = [a, b];
        // Both have the block loaded, so both hold stale bytes of each other.
        for handle in &handles {
            read(&**handle, 0, 4096);
        }
        handles[0].write(0, b"AAAA", false).expect("write");
        handles[1].write(4, b"BBBB", false).expect("write");
        for first in order {
            handles[first].flush().expect("flush");
        }
        assert_eq!(read(&*lower, 0, 9), b"AAAABBBB\0");
    }
}

#[test]
fn adjacent_writes_are_written_back_as_one_in_order_of_offset() {
    let (probe, handle) = over_probe(LIMIT);
    for offset in [8192, 0, 4096, 50_000, 12288, 49_990] {
        handle.write(offset, &[1; 4096], false).expect("write");
    }
    handle.flush().expect("flush");
    assert_eq!(*probe.writes.lock(), [(0, 16384), (49_990, 4106)]);
    handle.flush().expect("flush");
    assert_eq!(probe.writes.lock().len(), 2, "nothing is written twice");
}

#[test]
fn a_write_needs_no_reading() {
    let (probe, handle) = over_probe(LIMIT);
    *probe.after_read.lock() = Some(Box::new(|| panic!("nothing is to be read")));
    handle.write(5, b"partial", false).expect("write");
    assert_eq!(read(&*handle, 5, 7), b"partial");
    handle.write(4096, &[1; 4096], false).expect("write");
    assert_eq!(read(&*handle, 4000 + 96, 4096), [1; 4096]);
    let mut buf = [0; 7];
    assert!(handle.try_read(5, &mut buf).expect("try_read"));
    assert!(
        !handle.try_read(4, &mut buf).expect("try_read"),
        "byte 4 is missing"
    );
    handle.flush().expect("flush");
    probe.after_read.lock().take();
}

#[test]
fn what_is_written_while_a_flush_runs_stays_dirty() {
    let (probe, handle) = over_probe(LIMIT);
    handle.write(0, &[1; 8192], false).expect("write");
    let writer = handle.clone();
    *probe.during_flush.lock() = Some(Box::new(move || {
        // All was written back, but is not stable yet. Part of it changes now.
        writer.write(100, b"during", false).expect("write");
        writer.write(40_000, b"elsewhere", false).expect("write");
        writer.trim(4096, 10, false).expect("trim");
    }));
    handle.flush().expect("flush");
    assert_eq!(read(&*probe.memory, 100, 6), [1; 6]);
    assert_eq!(read(&*handle, 99, 8), b"\x01during\x01");
    assert_eq!(read(&*handle, 4096, 11), b"\0\0\0\0\0\0\0\0\0\0\x01");
    probe.writes.lock().clear();
    handle.flush().expect("flush");
    assert_eq!(*probe.writes.lock(), [(100, 6), (4096, 10), (40_000, 9)]);
    assert_eq!(read(&*probe.memory, 99, 8), b"\x01during\x01");
}

#[test]
fn a_block_loaded_across_a_flush_is_not_kept() {
    let (probe, handle) = over_probe(LIMIT);
    let (flusher, below) = (handle.clone(), probe.memory.clone());
    *probe.after_read.lock() = Some(Box::new(move || {
        // The old contents were taken, then somebody else's data arrives and a flush is done.
        below.write(0, b"new", false).expect("write");
        flusher.flush().expect("flush");
    }));
    assert_eq!(read(&*handle, 0, 3), [0; 3], "the read was in flight");
    assert_eq!(read(&*handle, 0, 3), b"new");
}

#[test]
fn a_block_loaded_across_a_write_back_does_not_hide_what_was_written() {
    let (probe, handle) = over_probe(LIMIT);
    handle.write(10, b"own", false).expect("write");
    let flusher = handle.clone();
    *probe.after_read.lock() = Some(Box::new(move || {
        flusher.write(20, b"more", false).expect("write");
        flusher.flush().expect("flush");
    }));
    assert_eq!(
        read(&*handle, 10, 4),
        b"own\0",
        "written before the read began"
    );
    assert_eq!(read(&*handle, 10, 14), b"own\0\0\0\0\0\0\0more");
}

#[test]
fn a_write_during_a_load_is_not_covered_by_what_was_loaded() {
    let (probe, handle) = over_probe(LIMIT);
    let writer = handle.clone();
    *probe.after_read.lock() = Some(Box::new(move || {
        writer.write(10, b"own", false).expect("write");
        writer.trim(20, 10, false).expect("trim");
    }));
    probe.memory.write(0, &[9; 4096], false).expect("write");
    read(&*handle, 0, 4096);
    assert_eq!(
        read(&*handle, 9, 12),
        b"\x09own\x09\x09\x09\x09\x09\x09\x09\0"
    );
    handle.flush().expect("flush");
    assert_eq!(
        read(&*probe.memory, 9, 12),
        b"\x09own\x09\x09\x09\x09\x09\x09\x09\0"
    );
}

#[test]
fn a_failed_write_back_keeps_everything_and_is_tried_again() {
    let (probe, handle) = over_probe(LIMIT);
    handle.write(0, b"kept", false).expect("write");
    handle.trim(8192, 4096, false).expect("trim");
    probe.fail_writes_from.store(8192, Ordering::SeqCst);
    assert!(handle.flush().is_err());
    assert!(handle.flush().is_err());
    assert_eq!(read(&*handle, 0, 4), b"kept");
    probe.fail_writes_from.store(u64::MAX, Ordering::SeqCst);
    probe.writes.lock().clear();
    handle.flush().expect("flush");
    // The first one again too: it was written, but nobody knows what became of it.
    assert_eq!(*probe.writes.lock(), [(0, 4), (8192, 4096)]);
}

#[test]
fn after_a_failed_flush_below_all_is_written_again() {
    let (probe, handle) = over_probe(LIMIT);
    handle.write(0, b"kept", false).expect("write");
    probe.fail_flushes.store(true, Ordering::SeqCst);
    assert!(handle.flush().is_err());
    assert!(handle.write(100, b"fua", true).is_err());
    probe.fail_flushes.store(false, Ordering::SeqCst);
    probe.writes.lock().clear();
    handle.flush().expect("flush");
    assert_eq!(*probe.writes.lock(), [(0, 4), (100, 3)]);
    probe.writes.lock().clear();
    handle.flush().expect("flush");
    assert_eq!(*probe.writes.lock(), []);
}

#[test]
fn a_second_flush_does_not_rely_on_what_a_failing_first_one_wrote() {
    let (probe, handle) = over_probe(LIMIT);
    handle.write(0, b"data", false).expect("write");
    probe.fail_flushes.store(true, Ordering::SeqCst);
    let (done, is_done) = mpsc::channel();
    let (second, below) = (handle.clone(), probe.clone());
    *probe.during_flush.lock() = Some(Box::new(move || {
        // The first has lost the data, but does not know yet. The second gets time to go wrong.
        below.fail_flushes.store(false, Ordering::SeqCst);
        thread::spawn(move || done.send(second.flush().is_ok()));
        thread::sleep(Duration::from_millis(30));
    }));
    assert!(handle.flush().is_err());
    let second = is_done.recv_timeout(Duration::from_secs(30));
    assert_eq!(second, Ok(true));
    assert_eq!(*probe.writes.lock(), [(0, 4), (0, 4)]);
}

#[test]
fn no_flush_succeeds_after_data_written_back_early_may_have_been_lost() {
    let (probe, handle) = over_probe(SMALL);
    handle.write(0, &[1; 4 * SMALL], false).expect("write");
    assert!(
        !probe.writes.lock().is_empty(),
        "some was written back early"
    );
    handle.flush().expect("flush");
    probe.fail_flushes.store(true, Ordering::SeqCst);
    assert!(handle.flush().is_err(), "all was stable before");
    probe.fail_flushes.store(false, Ordering::SeqCst);
    handle.flush().expect("nothing can have been lost");

    handle.write(0, &[2; 4 * SMALL], false).expect("write");
    probe.fail_flushes.store(true, Ordering::SeqCst);
    assert!(handle.flush().is_err());
    probe.fail_flushes.store(false, Ordering::SeqCst);
    let error = handle.flush().unwrap_err();
    assert!(error.to_string().contains("lost"), "{error}");
}

#[test]
fn data_written_back_early_during_a_failing_flush_counts_as_lost_too() {
    let (probe, handle) = over_probe(SMALL);
    handle.write(0, b"data", false).expect("write");
    probe.fail_flushes.store(true, Ordering::SeqCst);
    let (writer, below) = (handle.clone(), probe.clone());
    *probe.during_flush.lock() = Some(Box::new(move || {
        writer.write(8192, &[1; 4 * SMALL], false).expect("write");
        below.fail_flushes.store(false, Ordering::SeqCst);
    }));
    assert!(handle.flush().is_err());
    let error = handle.flush().unwrap_err();
    assert!(error.to_string().contains("lost"), "{error}");
}

#[test]
fn a_block_loaded_across_an_early_write_back_is_not_kept() {
    let (probe, handle) = over_probe(SMALL);
    let writer = handle.clone();
    *probe.after_read.lock() = Some(Box::new(move || {
        writer.write(0, b"own", false).expect("write");
        writer.write(4096, &[1; 2 * SMALL], false).expect("write");
    }));
    read(&*handle, 0, 3);
    assert_eq!(read(&*probe.memory, 0, 3), b"own", "written back early");
    assert_eq!(read(&*handle, 0, 3), b"own");
}

#[test]
fn the_limit_is_respected_whatever_is_done() {
    let (_, handle) = over_probe(SMALL);
    let mut scratch = vec![0; 300_000];
    for round in 0..2000u64 {
        let offset = round * 7919 % (SIZE - 300_000);
        match round % 5 {
            // Each other byte: many ranges.
            0 => handle
                .write(round * 2 + 500_000, b"x", false)
                .expect("write"),
            1 => handle.trim(round * 3, 1, false).expect("trim"),
            2 => handle.read(offset, &mut scratch[..10_000]).expect("read"),
            3 => handle
                .write(offset, &scratch[..5000], false)
                .expect("write"),
            _ if round % 50 == 4 => handle.write(offset, &scratch, false).expect("write"),
            _ => handle.cache(offset, 100_000).expect("cache"),
        }
        assert!(handle.held() <= SMALL, "{} in round {round}", handle.held());
    }
    handle.flush().expect("flush");
    assert_eq!(handle.held(), 0);
}

#[test]
fn many_handles_share_what_there_is_for_all() {
    const ALL: usize = 8 * SMALL;
    let lower = memory(SIZE);
    let cached = CachedBackend::within(lower, 4 * SMALL, ALL);
    let fill = |handle: &CachedHandle| {
        for block in 0..100 {
            handle
                .write(block * 10_000, &[1; 10_000], false)
                .expect("write");
        }
    };
    let first = cached.open_cached().expect("open");
    fill(&first);
    assert!(first.held() > 2 * SMALL, "alone it has more than a share");
    assert!(first.held() <= 4 * SMALL);
    let others: Vec<_> = (0..7)
        .map(|_| cached.open_cached().expect("open"))
        .collect();
    for handle in others.iter().chain([&first]) {
        fill(handle);
        assert!(handle.held() <= ALL / 8);
    }
    drop(others);
    fill(&first);
    assert!(first.held() > 2 * SMALL, "those that left have no share");
}

#[test]
fn many_small_zeroes_are_limited_like_data() {
    let (probe, handle) = over_probe(SMALL);
    for round in 0..4000 {
        handle.trim(round * 2, 1, false).expect("trim");
        assert!(handle.held() <= SMALL);
    }
    assert!(!probe.writes.lock().is_empty());
}

#[test]
fn what_is_written_back_early_makes_room_and_leaves_the_rest() {
    let (probe, handle) = over_probe(SMALL);
    handle.write(0, &[1; 10 * 4096], false).expect("write");
    handle
        .write(10 * 4096, &[2; 5 * 4096], false)
        .expect("write");
    let early = probe
        .writes
        .lock()
        .iter()
        .map(|(_, length)| length)
        .sum::<u64>();
    assert!((4096..10 * 4096).contains(&early), "{early}");
    assert_eq!(read(&*handle, 10 * 4096 - 1, 2), [1, 2]);
    handle.flush().expect("flush");
    assert_eq!(read(&*probe.memory, 10 * 4096 - 1, 2), [1, 2]);
}

#[test]
fn clean_blocks_are_evicted_before_anything_is_written_back() {
    let (probe, handle) = over_probe(SMALL);
    handle.write(0, b"dirty", false).expect("write");
    read(&*handle, 0, SIZE as usize);
    for block in 0..5 {
        handle
            .write(8192 * block, &[1; 4096], false)
            .expect("write");
        read(&*handle, 0, SIZE as usize);
    }
    assert_eq!(*probe.writes.lock(), []);
    assert!(handle.held() > SMALL / 2, "reads are cached");
}

#[test]
fn zeroes_of_any_length_are_a_range_until_they_are_flushed() {
    let huge = 1 << 62;
    let lower = memory(huge);
    let cached = CachedBackend::new(lower.clone(), LIMIT);
    let handle = cached.open_cached().expect("open");
    handle.write(12345, b"some", false).expect("write");
    handle.write(huge - 4, b"last", false).expect("write");
    handle.flush().expect("flush");
    read(&*handle, 0, 65536);
    let how = Zeroing {
        may_trim: true,
        fast_only: true,
        fua: false,
    };
    handle.write_zeroes(0, 1 << 30, how).expect("zero");
    handle.trim(1 << 20, huge - (1 << 20), false).expect("trim");
    assert!(handle.held() < 1024, "{}", handle.held());
    handle.write(5000, b"over", false).expect("write");
    assert_eq!(read(&*handle, 4999, 6), b"\0over\0");
    assert_eq!(read(&*handle, huge - 4, 4), [0; 4]);
    assert_eq!(lower.allocated(), 2 * 65536, "nothing was done below");
    handle.flush().expect("flush");
    assert_eq!(lower.allocated(), 65536);
    assert_eq!(read(&*lower.open().expect("open"), 5000, 4), b"over");
}

#[test]
fn no_more_is_looked_at_for_extents_than_they_are_worth() {
    let (_, handle) = over_probe(LIMIT);
    const PIECES: u64 = 2000;
    for at in (0..PIECES).step_by(2) {
        handle.write(at * 512, &[1; 512], false).expect("write");
        let zero = handle.write_zeroes((at + 1) * 512, 512, Zeroing::default());
        zero.expect("zero");
    }
    for limit in [1, 10, 100] {
        let extents = handle.extents(0, SIZE, limit).expect("extents");
        assert_eq!(extents.len(), limit);
        for (extent, at) in extents.iter().zip(0..) {
            let expected = if at % 2 == 0 {
                Content::Data
            } else {
                Content::Zero
            };
            assert_eq!((extent.length, extent.content), (512, expected), "{at}");
        }
    }
    // Zeroes of two kinds are one extent; it is told as far as it was looked for.
    for at in 0..PIECES {
        let how = Zeroing {
            may_trim: at % 2 == 0,
            ..Zeroing::default()
        };
        handle.write_zeroes(at * 512, 512, how).expect("zero");
    }
    let [first] = handle.extents(0, SIZE, 1).expect("extents")[..] else {
        panic!("one is wanted");
    };
    assert_eq!(first.content, Content::Zero);
    assert!(first.length < PIECES * 512 / 2, "{first:?}");
    let rest = handle.extents(first.length, SIZE - first.length, 1);
    assert_eq!(rest.expect("extents")[0].content, Content::Zero);
}

#[test]
fn extents_are_those_of_the_handles_own_view() {
    let [a, _, lower] = two_over_memory();
    lower.write(0, &[1; 65536], false).expect("write");
    a.trim(4096, 4096, false).expect("trim");
    a.write(100_000, b"data", false).expect("write");
    let extent = |length, content| Extent { length, content };
    assert_eq!(
        a.extents(0, 131_072, 10).expect("extents"),
        [
            extent(4096, Content::Data),
            extent(4096, Content::Zero),
            extent(57_344, Content::Data),
            extent(34_464, Content::Hole),
            extent(4, Content::Data),
            extent(31_068, Content::Hole),
        ]
    );
    assert_eq!(a.extents(0, 131_072, 2).expect("extents").len(), 2);
    for (offset, length, is_hole) in [
        (0, 4096, false),
        (4096, 4096, true),
        (4096, 4097, false),
        (65_536, 34_464, true),
        (65_536, 34_465, false),
        (100_004, 31_068, true),
    ] {
        let found = a.is_hole(offset, length).expect("extents");
        assert_eq!(found, is_hole, "{offset}+{length}");
    }
    assert!(a.is_hole(SIZE, 1).is_err(), "beyond the end");
}

#[test]
fn dropping_a_handle_writes_nothing() {
    let (probe, handle) = over_probe(LIMIT);
    handle.write(0, b"gone", false).expect("write");
    drop(handle);
    assert_eq!(*probe.writes.lock(), []);
}

#[test]
fn a_cache_over_a_read_only_backend_refuses_at_once() {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.as_file().set_len(4096).expect("set its size");
    let lower = FileBackend::open(file.path(), true).expect("open");
    let handle = CachedBackend::new(Arc::new(lower), LIMIT)
        .open()
        .expect("open");
    for result in [
        handle.write(0, b"x", false),
        handle.write_zeroes(0, 1, Zeroing::default()),
        handle.trim(0, 1, false),
    ] {
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    }
    handle.flush().expect("flush");
}

/// Writers check after each write that they read their own data, while others write next to them in
/// the same blocks and a flusher takes everything out of the cache again and again.
#[test]
fn concurrent_writers_readers_and_flushes_lose_nothing() {
    const WRITERS: u64 = 3;
    const SPACE: u64 = 256 * 1024;
    for limit in [SMALL, LIMIT] {
        let lower = memory(SPACE);
        let handle = CachedBackend::new(lower.clone(), limit)
            .open()
            .expect("open");
        let done = AtomicBool::new(false);
        let mut expected = vec![0; SPACE as usize];
        let parts = thread::scope(|scope| {
            let writers: Vec<_> = (0..WRITERS)
                .map(|writer| {
                    let handle = &handle;
                    scope.spawn(move || write_stripes(&**handle, writer, WRITERS, SPACE))
                })
                .collect();
            scope.spawn(|| {
                while !done.load(Ordering::SeqCst) {
                    handle.flush().expect("flush");
                }
            });
            // All are joined before one may panic, or the flusher would run on for ever.
            let results: Vec<_> = writers.into_iter().map(ScopedJoinHandle::join).collect();
            done.store(true, Ordering::SeqCst);
            results
        });
        for part in parts {
            for (offset, value) in part.expect("a writer") {
                expected[offset as usize..][..STRIPE].fill(value);
            }
        }
        handle.flush().expect("flush");
        assert!(read(&*lower.open().expect("open"), 0, SPACE as usize) == expected);
    }
}

const STRIPE: usize = 512;

/// Writes stripes that no other writer touches; returns what was written where, in order.
fn write_stripes(handle: &dyn Handle, writer: u64, writers: u64, space: u64) -> Vec<(u64, u8)> {
    let mut random = TestRng::from_seed(RngAlgorithm::ChaCha, &[writer as u8; 32]);
    let stripes = space / STRIPE as u64 / writers;
    let mut written = Vec::new();
    for round in 0..3000u32 {
        let stripe = random.next_u64() % stripes;
        let offset = (stripe * writers + writer) * STRIPE as u64;
        let value = if round % 8 == 0 { 0 } else { round as u8 };
        if value == 0 {
            handle.trim(offset, STRIPE as u64, false).expect("trim");
        } else {
            handle
                .write(offset, &[value; STRIPE], false)
                .expect("write");
        }
        written.push((offset, value));
        let seen = read(handle, offset, STRIPE);
        assert!(
            seen == [value; STRIPE],
            "writer {writer}, round {round}, at {offset}"
        );
        // An older one too: it may have been written back long ago.
        let (offset, _) = written[random.next_u64() as usize % written.len()];
        let value = written.iter().rev().find(|(at, _)| *at == offset);
        assert_eq!(
            Some(read(handle, offset, 1)[0]),
            value.map(|(_, value)| *value)
        );
    }
    written
}

#[test]
fn what_leaves_the_cache_while_the_storage_is_asked_for_holes_is_no_hole() {
    let (probe, handle) = over_probe(LIMIT);
    handle.write(4096, &[7; 4096], false).expect("write");
    let other = handle.clone();
    *probe.after_read.lock() = Some(Box::new(move || other.flush().expect("flush")));
    let extents = handle.extents(0, 65536, 1).expect("extents");
    assert_ne!(extents[0].content, Content::Hole, "{extents:?}");
}
