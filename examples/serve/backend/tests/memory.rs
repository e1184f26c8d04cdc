//! What only the sparse memory does.

use std::io;
use std::sync::Arc;
use std::thread;

use super::super::memory::PAGE;
use super::super::{Backend, Content, Extent, Handle, MemoryBackend, Pace, Piece, Zeroing};

use super::{assert_ranges_are_checked, memory, read};

const UNIT: u64 = PAGE as u64;
const LARGEST: u64 = i64::MAX as u64;

fn zero(handle: &dyn Handle, offset: u64, length: u64) {
    handle
        .write_zeroes(offset, length, Zeroing::default())
        .expect("zero");
}

#[test]
fn only_what_is_not_zero_occupies_memory() {
    let backend = memory(64 * UNIT);
    let handle = backend.open().expect("open");
    handle.write(0, &vec![0; 3 * PAGE], false).expect("write");
    assert_eq!(read(&*handle, 5 * UNIT, PAGE), vec![0; PAGE]);
    zero(&*handle, 0, 64 * UNIT);
    assert_eq!(backend.allocated(), 0);
    handle.write(10 * UNIT - 1, b"ab", false).expect("write");
    assert_eq!(backend.allocated(), 2 * UNIT);
}

#[test]
fn what_is_shown_stays_as_it_was_while_it_is_written_to() {
    let backend = memory(4 * UNIT);
    let handle = backend.open().expect("open");
    handle.write(0, &vec![1; 3 * PAGE], false).expect("write");
    let shown = handle.pieces(10, 2 * PAGE).expect("all of it is there");
    handle.write(20, &[2; 100], false).expect("write");
    zero(&*handle, UNIT + 5, 10);
    let mut page = [vec![3; PAGE]];
    handle
        .write_pages(2 * UNIT, &mut page, false)
        .expect("write");
    let bytes = shown.iter().flat_map(Piece::bytes);
    assert_eq!(bytes.filter(|&&byte| byte == 1).count(), 2 * PAGE);
    assert_eq!(read(&*handle, 20, 100), [2; 100]);
    assert_eq!(read(&*handle, UNIT + 5, 10), [0; 10]);
    assert_eq!(read(&*handle, 2 * UNIT, PAGE), vec![3; PAGE]);
    assert_eq!(page, [vec![]], "the old page still is shown");
    drop(shown);
    let mut page = [vec![4; PAGE]];
    handle
        .write_pages(2 * UNIT, &mut page, false)
        .expect("write");
    assert_eq!(page, [vec![3; PAGE]], "now it can be used again");
    assert_eq!(backend.allocated(), 3 * UNIT);
    let hole = handle.pieces(2 * UNIT, 2 * PAGE);
    assert!(hole.is_none(), "what is not there cannot be shown");
}

#[test]
fn pages_that_are_handed_over_count() {
    let backend = MemoryBackend::new(8 * UNIT, Some(2 * UNIT)).expect("a small memory");
    let handle = backend.open().expect("open");
    let mut pages = vec![vec![1; PAGE], vec![0; PAGE], vec![2; PAGE]];
    handle.write_pages(0, &mut pages, false).expect("write");
    assert_eq!(backend.allocated(), 2 * UNIT);
    let full = handle.write_pages(4 * UNIT, &mut [vec![1; PAGE]], false);
    assert_eq!(full.unwrap_err().kind(), io::ErrorKind::StorageFull);
}

#[test]
fn trimmed_pages_are_freed_and_their_neighbours_kept() {
    // Few pages are freed one by one, many by index, many more than exist by a walk over those.
    for (total, used) in [(16, 16), (1000, 1000), (1 << 40, 300)] {
        let backend = memory(total * UNIT);
        let handle = backend.open().expect("open");
        let step = total / used;
        for page in (0..total).step_by(step as usize) {
            handle.write(page * UNIT + 7, b"x", false).expect("write");
        }
        let before = backend.allocated() / UNIT;
        // From within page 0 to within the last one used.
        let last = (before - 1) * step;
        handle.trim(8, last * UNIT + 7 - 8, false).expect("trim");
        assert_eq!(backend.allocated(), 2 * UNIT, "of {total} pages");
        assert_eq!(read(&*handle, 0, 16)[7], b'x');
        assert_eq!(read(&*handle, last * UNIT, 16)[7], b'x');
        zero(&*handle, 0, total * UNIT);
        assert_eq!(backend.allocated(), 0);
    }
}

#[test]
fn zeroing_all_that_a_page_holds_frees_it() {
    let backend = memory(UNIT);
    let handle = backend.open().expect("open");
    handle.write(0, &[1; 4096], false).expect("write");
    zero(&*handle, 2048, 2048);
    assert_eq!(backend.allocated(), UNIT);
    zero(&*handle, 0, 2048);
    assert_eq!(backend.allocated(), 0);
}

#[test]
fn the_largest_size_works_at_both_ends_and_more_is_refused() {
    let backend = memory(LARGEST);
    assert_eq!(backend.size(), LARGEST);
    let handle = backend.open().expect("open");
    assert_ranges_are_checked(&*handle, LARGEST);
    handle.write(0, b"first", false).expect("write");
    handle.write(LARGEST - 4, b"last", false).expect("write");
    assert_eq!(read(&*handle, LARGEST - 4, 4), b"last");
    let extents = handle.extents(0, LARGEST, 9).expect("extents");
    let extent = |length, content| Extent { length, content };
    let tail = LARGEST % UNIT;
    assert_eq!(
        extents,
        [
            extent(UNIT, Content::Data),
            extent(LARGEST - UNIT - tail, Content::Hole),
            extent(tail, Content::Data),
        ]
    );
    handle.trim(0, LARGEST, false).expect("trim");
    assert_eq!(backend.allocated(), 0);
    assert_eq!(read(&*handle, LARGEST - 4, 4), [0; 4]);

    let error = MemoryBackend::new(LARGEST + 1, None).map(drop).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
}

#[test]
fn the_memory_limit_is_an_error_and_trimming_makes_room() {
    let backend = MemoryBackend::new(100 * UNIT, Some(3 * UNIT)).expect("new");
    let handle = backend.open().expect("open");
    handle.write(0, &vec![1; 3 * PAGE], false).expect("write");
    let error = handle.write(50 * UNIT, b"x", false).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    handle
        .write(50 * UNIT, &[0; 16], false)
        .expect("zeroes need none");
    handle
        .write(5, b"y", false)
        .expect("existing pages can be written");
    handle.trim(UNIT, UNIT, false).expect("trim");
    handle
        .write(50 * UNIT, b"x", false)
        .expect("now there is room");
    assert_eq!(backend.allocated(), 3 * UNIT);
}

#[test]
fn all_handles_see_writes_at_once() {
    let backend = memory(UNIT);
    assert!(backend.capabilities().multi_conn);
    let (a, b) = (backend.open().expect("open"), backend.open().expect("open"));
    a.write(100, b"seen", false).expect("write");
    assert_eq!(read(&*b, 100, 4), b"seen");
    assert_eq!(a.pace(), Pace::Immediate);
}

#[test]
fn concurrent_writers_and_trimmers_keep_the_page_count_right() {
    let backend = memory(64 * UNIT);
    let handles: Vec<Arc<dyn Handle>> = (0..4).map(|_| backend.open().expect("open")).collect();
    thread::scope(|scope| {
        for (number, handle) in handles.iter().enumerate() {
            scope.spawn(move || {
                for round in 0..500u64 {
                    let offset = (round * 7 + number as u64 * 13) % 60 * UNIT;
                    handle.write(offset + 5, b"data", false).expect("write");
                    handle.trim(offset + UNIT, 2 * UNIT, false).expect("trim");
                }
            });
        }
    });
    let extents = handles[0].extents(0, 64 * UNIT, 1000).expect("extents");
    let data = extents
        .iter()
        .filter(|extent| extent.content == Content::Data);
    assert_eq!(
        data.map(|extent| extent.length).sum::<u64>(),
        backend.allocated()
    );
    handles[0].trim(0, 64 * UNIT, false).expect("trim");
    assert_eq!(backend.allocated(), 0);
}
