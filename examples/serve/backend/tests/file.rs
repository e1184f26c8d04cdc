//! What only files do.

use std::fs;
use std::io;

use tempfile::NamedTempFile;

use super::super::{Backend, Content, Extent, FileBackend, Handle, Pace, SPARSE_READ, Zeroing};

use super::{assert_ranges_are_checked, read};

fn file(contents: &[u8]) -> NamedTempFile {
    let file = NamedTempFile::new().expect("a temporary file");
    fs::write(file.path(), contents).expect("fill it");
    file
}

#[test]
fn handles_share_one_page_cache() {
    let file = file(&[0; 4096]);
    let backend = FileBackend::open(file.path(), false).expect("open");
    assert!(backend.capabilities().multi_conn);
    let (a, b) = (backend.open().expect("open"), backend.open().expect("open"));
    assert_ranges_are_checked(&*a, 4096);
    a.write(10, b"seen", true).expect("write");
    assert_eq!(read(&*b, 10, 4), b"seen");
    assert_eq!(fs::read(file.path()).expect("read").len(), 4096);
    assert_eq!(a.pace(), Pace::Buffered);
}

#[test]
fn a_file_served_read_only_refuses_to_be_modified() {
    let file = file(b"untouched");
    let backend = FileBackend::open(file.path(), true).expect("open");
    assert!(backend.capabilities().read_only);
    let handle = backend.open().expect("open");
    for result in [
        handle.write(0, b"x", false),
        handle.write_zeroes(0, 1, Zeroing::default()),
        handle.trim(0, 1, false),
    ] {
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    }
    handle.flush().expect("nothing to flush");
    assert_eq!(read(&*handle, 0, 9), b"untouched");
}

#[test]
fn what_cannot_be_served_is_refused_with_its_path() {
    let directory = tempfile::tempdir().expect("a directory");
    let missing = directory.path().join("missing");
    for (path, kind, words) in [
        (missing.as_path(), io::ErrorKind::NotFound, "truncate"),
        (
            directory.path(),
            io::ErrorKind::InvalidInput,
            "regular files",
        ),
    ] {
        let error = FileBackend::open(path, false).map(drop).unwrap_err();
        assert_eq!(error.kind(), kind);
        let text = error.to_string();
        assert!(text.contains(&path.display().to_string()), "{text}");
        assert!(text.contains(words), "{text}");
    }
}

#[test]
fn a_file_that_became_shorter_is_an_error_that_says_so() {
    let file = file(&[1; 8192]);
    let backend = FileBackend::open(file.path(), false).expect("open");
    let handle = backend.open().expect("open");
    file.as_file().set_len(100).expect("truncate");
    let error = handle.read(4096, &mut [0; 16]).unwrap_err();
    assert!(error.to_string().contains("shorter"), "{error}");
    assert!(!handle.try_read(4096, &mut [0; 16]).expect("try_read"));
}

#[test]
fn fast_zeroes_succeed_or_change_nothing() {
    for may_trim in [false, true] {
        let file = file(&[7; 65536]);
        let backend = FileBackend::open(file.path(), false).expect("open");
        let handle = backend.open().expect("open");
        let how = Zeroing {
            may_trim,
            fast_only: true,
            fua: true,
        };
        let expected = match handle.write_zeroes(4096, 8192, how) {
            Ok(()) => [0; 8192],
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::Unsupported);
                [7; 8192]
            }
        };
        assert_eq!(read(&*handle, 4096, 8192), expected);
        assert_eq!(read(&*handle, 0, 4096), [7; 4096]);
        assert_eq!(read(&*handle, 12288, 4096), [7; 4096]);
    }
}

#[test]
fn where_the_kernel_cannot_zero_fast_zeroes_fail_and_others_are_written() {
    let file = file(&[7; 300_000]);
    let backend = FileBackend::open(file.path(), false).expect("open").plain();
    let handle = backend.open().expect("open");
    for may_trim in [false, true] {
        let mut how = Zeroing {
            may_trim,
            fast_only: true,
            fua: true,
        };
        let error = handle.write_zeroes(0, 1000, how).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Unsupported);
        handle.trim(0, 1000, true).expect("a trim may do nothing");
        assert_eq!(read(&*handle, 0, 1000), [7; 1000]);
        how.fast_only = false;
        // More than is written at once, and not aligned.
        handle.write_zeroes(1001, 290_000, how).expect("zero");
        assert_eq!(read(&*handle, 1001, 290_000), vec![0; 290_000]);
        assert_eq!(read(&*handle, 1000, 1), [7]);
        assert_eq!(read(&*handle, 291_001, 1), [7]);
        handle.write(1001, &[7; 290_000], true).expect("write");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_file_in_memory_is_read_without_waiting_but_for_its_large_holes() {
    const SHARED_MEMORY: &str = "/dev/shm";
    let Ok(file) = NamedTempFile::new_in(SHARED_MEMORY) else {
        eprintln!("skipped: no file can be made in {SHARED_MEMORY}");
        return;
    };
    file.as_file().set_len(1 << 20).expect("set its size");
    let backend = FileBackend::open(file.path(), false).expect("open");
    let handle = backend.open().expect("open");
    handle.write(65_536, &[7; 8192], false).expect("write");
    let mut buf = [0; 8192];
    for offset in [65_536, 61_440] {
        assert!(handle.try_read(offset, &mut buf).expect("data"), "{offset}");
        assert_eq!(buf[4096..], [7; 4096]);
    }
    let mut large = [0; SPARSE_READ];
    for offset in [0, 65_536 - SPARSE_READ as u64, 65_536 + 8192] {
        let read = handle.try_read(offset, &mut large).expect("hole");
        assert!(!read, "{offset}");
        // The answer to a small one is data anyway.
        let read = handle.try_read(offset, &mut buf).expect("hole");
        assert!(read, "{offset}");
    }
    assert!(handle.try_read(40_960, &mut large).expect("data"));
    let handle = backend.plain().open().expect("open");
    assert!(!handle.try_read(65_536, &mut buf).expect("not known"));
}

#[test]
fn holes_are_found_where_the_filesystem_tells() {
    const MIB: u64 = 1 << 20;
    let file = file(&[]);
    file.as_file().set_len(4 * MIB).expect("set its size");
    let backend = FileBackend::open(file.path(), false).expect("open");
    let handle = backend.open().expect("open");
    let data = |length| Extent {
        length,
        content: Content::Data,
    };
    let hole = |length| Extent {
        length,
        content: Content::Hole,
    };
    handle.write(MIB, &[1; 1 << 20], false).expect("write");
    handle.flush().expect("flush");
    let extents = handle.extents(5, 4 * MIB - 5, 9).expect("extents");
    // All data is always a true answer, and that of filesystems that do not know.
    if extents != [data(4 * MIB - 5)] {
        assert_eq!(extents, [hole(MIB - 5), data(MIB), hole(2 * MIB)]);
        let first = handle.extents(MIB + 5, MIB, 1).expect("extents");
        assert_eq!(first, [data(MIB - 5)]);
        // What is told may reach beyond what was asked.
        let begun = handle.extents(0, MIB + 5, 9).expect("extents");
        assert_eq!(begun, [hole(MIB), data(MIB)]);
        let to_the_end = handle.extents(3 * MIB, MIB, 9).expect("extents");
        assert_eq!(to_the_end, [hole(MIB)]);
        let holes = [(0, MIB), (5, 9), (2 * MIB, 2 * MIB), (4 * MIB - 1, 1)];
        let others = [(0, MIB + 1), (MIB, 1), (2 * MIB - 1, MIB), (0, 4 * MIB)];
        for (offset, length) in holes {
            assert!(handle.is_hole(offset, length).expect("a hole"), "{offset}");
        }
        for (offset, length) in others {
            assert!(!handle.is_hole(offset, length).expect("data"), "{offset}");
        }
    }
    assert!(handle.is_hole(4 * MIB, 1).is_err(), "beyond the end");
}

#[test]
fn data_in_the_page_cache_is_read_at_once_where_the_kernel_can() {
    let file = file(&[3; 4096]);
    let backend = FileBackend::open(file.path(), false).expect("open");
    let handle = backend.open().expect("open");
    handle.cache(0, 4096).expect("cache");
    read(&*handle, 0, 4096);
    let mut buf = [0; 4096];
    // Not every filesystem offers it; but if so, the data must be right.
    if handle.try_read(0, &mut buf).expect("try_read") {
        assert_eq!(buf, [3; 4096]);
    }
}

#[test]
fn after_a_failed_sync_nothing_is_said_to_be_permanent_whoever_met_the_failure() {
    type Call = fn(&dyn Handle) -> io::Result<()>;
    let calls: [Call; 4] = [
        |handle| handle.flush(),
        |handle| handle.write(0, b"x", true),
        |handle| handle.trim(0, 4096, true),
        |handle| {
            let how = Zeroing {
                fua: true,
                ..Zeroing::default()
            };
            handle.write_zeroes(0, 4096, how)
        },
    ];
    for meets in calls {
        let file = NamedTempFile::new().expect("a file");
        file.as_file().set_len(1 << 16).expect("a size");
        let backend = FileBackend::open(file.path(), false).expect("open").plain();
        let (one, other) = (backend.open().expect("open"), backend.open().expect("open"));
        other.write(8192, b"earlier", false).expect("write");
        backend.fail_next_sync();
        meets(&*one).expect_err("told to fail");
        for call in calls {
            call(&*other).expect_err("the data may be lost");
        }
        other.write(0, b"still here", false).expect("write");
        assert_eq!(read(&*one, 0, 10), b"still here");
    }
}
