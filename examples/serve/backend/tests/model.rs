//! Random calls on every backend, and the same on an array.

use std::ops::Range;
use std::sync::Arc;

use proptest::prelude::*;
use tempfile::NamedTempFile;

use super::super::memory::PAGE;
use super::super::{Backend, CachedBackend, Content, FileBackend, Handle, Zeroing};

use super::{assert_ranges_are_checked, memory, read};

/// Several pages of memory and many blocks, and not a multiple of anything.
const SIZE: usize = 3 * 64 * 1024 + 777;

#[derive(Clone, Debug)]
enum Op {
    Read(Range<usize>),
    TryRead(Range<usize>),
    Write(Range<usize>, u8, bool),
    /// So many pages from that one on; all zeroes where the seed is 0.
    WritePages(usize, usize, u8),
    Zero(Range<usize>, bool, bool),
    Trim(Range<usize>, bool),
    Cache(Range<usize>),
    Extents(Range<usize>, usize),
    Flush,
    FlushAndReopen,
}

/// Short and long ranges, mostly near the borders of blocks and pages.
fn range() -> impl Strategy<Value = Range<usize>> {
    let start = prop_oneof![
        0..=SIZE,
        (0..=48usize, 0..16usize).prop_map(|(block, by)| (block * 4096 + by).saturating_sub(8)),
    ];
    let length = prop_oneof![0..32usize, 4080..4112usize, Just(4096), 0..SIZE];
    (start, length).prop_map(|(start, length)| {
        let start = start.min(SIZE);
        start..(start + length).min(SIZE)
    })
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => range().prop_map(Op::Read),
        2 => range().prop_map(Op::TryRead),
        8 => (range(), 0..8u8, prop::bool::weighted(0.1))
            .prop_map(|(range, seed, fua)| Op::Write(range, seed, fua)),
        2 => (0..3usize, 1..=3usize, 0..8u8)
            .prop_map(|(page, count, seed)| Op::WritePages(page, count.min(3 - page), seed)),
        3 => (range(), any::<bool>(), prop::bool::weighted(0.1))
            .prop_map(|(range, may_trim, fua)| Op::Zero(range, may_trim, fua)),
        2 => (range(), prop::bool::weighted(0.1)).prop_map(|(range, fua)| Op::Trim(range, fua)),
        1 => range().prop_map(Op::Cache),
        2 => (range(), 1..6usize).prop_map(|(range, limit)| Op::Extents(range, limit)),
        1 => Just(Op::Flush),
        1 => Just(Op::FlushAndReopen),
    ]
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    prop::collection::vec(op(), 0..40)
}

/// Seed 0 is zeroes, since some backends treat them specially; others differ at each byte.
fn data(seed: u8, length: usize) -> Vec<u8> {
    let byte = |i: usize| {
        (i as u8)
            .wrapping_mul(31)
            .wrapping_add(seed)
            .wrapping_mul(seed)
    };
    (0..length).map(byte).collect()
}

fn run(backend: &dyn Backend, ops: Vec<Op>) -> Result<Vec<u8>, TestCaseError> {
    let mut model = vec![0; SIZE];
    let mut handle = backend.open().expect("open");
    assert_ranges_are_checked(&*handle, SIZE as u64);
    for op in ops {
        apply(&*handle, &mut model, &op)?;
        if matches!(op, Op::FlushAndReopen) {
            handle = backend.open().expect("open again");
        }
    }
    prop_assert!(read(&*handle, 0, SIZE) == model, "the handle's last view");
    handle.flush().expect("flush");
    prop_assert!(read(&*handle, 0, SIZE) == model, "the view after the flush");
    let other = backend.open().expect("open another");
    prop_assert!(read(&*other, 0, SIZE) == model, "another handle's view");
    Ok(model)
}

fn apply(handle: &dyn Handle, model: &mut [u8], op: &Op) -> Result<(), TestCaseError> {
    let at = |range: &Range<usize>| (range.start as u64, range.len() as u64);
    match op.clone() {
        Op::Read(range) => {
            if let Some(pieces) = handle.pieces(at(&range).0, range.len()) {
                let bytes: Vec<u8> = pieces.iter().flat_map(|it| it.bytes().to_vec()).collect();
                prop_assert!(bytes == model[range.clone()]);
            }
            prop_assert!(read(handle, at(&range).0, range.len()) == model[range]);
        }
        Op::TryRead(range) => {
            let mut buf = vec![0xee; range.len()];
            if handle.try_read(at(&range).0, &mut buf).expect("try_read") {
                prop_assert!(buf == model[range]);
            }
        }
        Op::Write(range, seed, fua) => {
            let data = data(seed, range.len());
            handle.write(at(&range).0, &data, fua).expect("write");
            model[range].copy_from_slice(&data);
        }
        Op::WritePages(page, count, seed) => {
            let size = handle.page_size().unwrap_or(PAGE);
            let range = page * size..((page + count) * size).min(SIZE);
            let data = data(seed, range.len());
            let mut pages: Vec<Vec<u8>> = data.chunks(size).map(<[u8]>::to_vec).collect();
            let written = handle.write_pages(range.start as u64, &mut pages, false);
            written.expect("write pages");
            for page in pages {
                prop_assert!(page.is_empty() || page.len() == size);
            }
            model[range].copy_from_slice(&data);
        }
        Op::Zero(range, may_trim, fua) => {
            let (offset, length) = at(&range);
            let how = Zeroing {
                fua,
                may_trim,
                fast_only: false,
            };
            handle.write_zeroes(offset, length, how).expect("zero");
            model[range].fill(0);
        }
        Op::Trim(range, fua) => {
            let (offset, length) = at(&range);
            handle.trim(offset, length, fua).expect("trim");
            // Zeroed, or left alone where the filesystem cannot make holes.
            let seen = read(handle, offset, range.len());
            let zeroed = seen.iter().all(|&byte| byte == 0);
            prop_assert!(zeroed || seen == model[range.clone()]);
            model[range].copy_from_slice(&seen);
        }
        Op::Cache(range) => {
            let (offset, length) = at(&range);
            handle.cache(offset, length).expect("cache");
        }
        Op::Extents(range, limit) => check_extents(handle, model, range, limit)?,
        Op::Flush | Op::FlushAndReopen => handle.flush().expect("flush"),
    }
    Ok(())
}

fn check_extents(
    handle: &dyn Handle,
    model: &[u8],
    range: Range<usize>,
    limit: usize,
) -> Result<(), TestCaseError> {
    let (offset, length) = (range.start as u64, range.len() as u64);
    let extents = handle.extents(offset, length, limit).expect("extents");
    prop_assert!(extents.len() <= limit);
    prop_assert_eq!(extents.is_empty(), length == 0);
    let mut position = range.start;
    let mut last = None;
    for extent in extents {
        prop_assert!(extent.length > 0);
        prop_assert_ne!(last, Some(extent.content), "neighbours are one extent");
        last = Some(extent.content);
        let end = position + extent.length as usize;
        prop_assert!(position < range.end, "only the last reaches beyond");
        prop_assert!(end <= SIZE, "nothing is beyond the end");
        if extent.content != Content::Data {
            prop_assert!(model[position..end].iter().all(|&byte| byte == 0));
        }
        position = end;
    }
    if length > 0 && handle.is_hole(offset, length).expect("it can be asked") {
        prop_assert!(model[range].iter().all(|&byte| byte == 0));
    }
    Ok(())
}

fn file() -> (NamedTempFile, Arc<FileBackend>) {
    let file = NamedTempFile::new().expect("a temporary file");
    file.as_file().set_len(SIZE as u64).expect("set its size");
    let backend = FileBackend::open(file.path(), false).expect("open it");
    (file, Arc::new(backend))
}

/// Little enough that random calls write back early and evict all the time.
const SMALL: usize = 0;
const LARGE: usize = 1 << 20;

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 48,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn memory_equals_an_array(ops in ops()) {
        run(&*memory(SIZE as u64), ops)?;
    }

    #[test]
    fn a_file_equals_an_array(ops in ops()) {
        let (file, backend) = file();
        let model = run(&*backend, ops)?;
        prop_assert!(std::fs::read(file.path()).expect("read the file") == model);
    }

    #[test]
    fn a_file_that_can_only_be_read_and_written_equals_an_array(ops in ops()) {
        let (file, backend) = file();
        let model = run(&(*backend).clone().plain(), ops)?;
        prop_assert!(std::fs::read(file.path()).expect("read the file") == model);
    }

    #[test]
    fn a_cache_over_memory_equals_an_array(ops in ops()) {
        let lower = memory(SIZE as u64);
        let model = run(&CachedBackend::new(lower.clone(), LARGE), ops)?;
        prop_assert!(read(&*lower.open().expect("open"), 0, SIZE) == model);
    }

    #[test]
    fn a_small_cache_over_memory_equals_an_array(ops in ops()) {
        let lower = memory(SIZE as u64);
        let model = run(&CachedBackend::new(lower.clone(), SMALL), ops)?;
        prop_assert!(read(&*lower.open().expect("open"), 0, SIZE) == model);
    }

    #[test]
    fn a_cache_over_a_file_equals_an_array(ops in ops(), limit in prop_oneof![Just(SMALL), Just(LARGE)]) {
        let (file, lower) = file();
        let model = run(&CachedBackend::new(lower, limit), ops)?;
        prop_assert!(std::fs::read(file.path()).expect("read the file") == model);
    }

    /// The bytes of each 16-byte stripe belong to one of two handles; everything each of them wrote
    /// survives whatever the other did in the same blocks.
    #[test]
    fn two_caches_never_disturb_each_others_bytes(
        ops in prop::collection::vec((any::<bool>(), 0..SIZE / 32 - 64, 1..64usize, 0..5u8), 0..60),
        small in any::<bool>(),
    ) {
        let lower = memory(SIZE as u64);
        let cached = CachedBackend::new(lower.clone(), if small { SMALL } else { LARGE });
        let handles = [cached.open().expect("open"), cached.open().expect("open")];
        let mut model = vec![0; SIZE];
        for (second, first_stripe, count, what) in ops {
            let handle = &handles[usize::from(second)];
            if what == 4 {
                handle.flush().expect("flush");
                continue;
            }
            for stripe in first_stripe..first_stripe + count {
                let start = stripe * 32 + 16 * usize::from(second);
                let range = start..start + 16;
                match what {
                    0 => {
                        handle.trim(start as u64, 16, false).expect("trim");
                        model[range].fill(0);
                    }
                    1 => prop_assert!(read(&**handle, start as u64, 16) == model[range]),
                    _ => {
                        let data = data((stripe as u8).wrapping_add(what), 16);
                        handle.write(start as u64, &data, false).expect("write");
                        model[range].copy_from_slice(&data);
                    }
                }
            }
        }
        handles[0].flush().expect("flush");
        handles[1].flush().expect("flush");
        // Before this, the first may hold what it loaded before the second was written out.
        handles[0].flush().expect("flush");
        for handle in [&handles[0], &handles[1], &lower.open().expect("open")] {
            prop_assert!(read(&**handle, 0, SIZE) == model);
        }
    }
}
