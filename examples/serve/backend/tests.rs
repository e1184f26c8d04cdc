//! All backends against a plain array, and what each promises beyond that.

mod cached;
mod file;
mod memory;
mod model;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::{
    Backend, Capabilities, Content, DelayBackend, Delays, Extent, Handle, MemoryBackend, Pace,
    Zeroing,
};

fn memory(size: u64) -> Arc<MemoryBackend> {
    Arc::new(MemoryBackend::new(size, None).expect("a small memory"))
}

fn read(handle: &dyn Handle, offset: u64, length: usize) -> Vec<u8> {
    let mut buf = vec![0xee; length];
    handle.read(offset, &mut buf).expect("read");
    buf
}

/// Each way to reach beyond the end, on any handle of `size` bytes.
fn assert_ranges_are_checked(handle: &dyn Handle, size: u64) {
    let mut buf = [0; 16];
    for offset in [size - 15, size, size + 1, u64::MAX - 15, u64::MAX] {
        let results = [
            handle.read(offset, &mut buf),
            handle.try_read(offset, &mut buf).map(drop),
            handle.write(offset, &buf, false),
            handle.write_pages(offset, &mut [buf.to_vec()], false),
            handle.write_zeroes(offset, 16, Zeroing::default()),
            handle.trim(offset, 16, false),
            handle.cache(offset, 16),
            handle.extents(offset, 16, 1).map(drop),
        ];
        for (call, result) in results.into_iter().enumerate() {
            let kind = result.map_err(|error| error.kind());
            assert_eq!(
                kind,
                Err(io::ErrorKind::InvalidInput),
                "call {call} at {offset}"
            );
        }
    }
    assert!(handle.pieces(size - 15, 16).is_none());
    assert!(handle.pieces(u64::MAX, 16).is_none());
    let too_long = handle.write_zeroes(1, u64::MAX, Zeroing::default());
    assert_eq!(too_long.unwrap_err().kind(), io::ErrorKind::InvalidInput);
    handle.write(size, &[], false).expect("nothing at the end");
    handle.read(size, &mut []).expect("nothing at the end");
    handle.trim(size, 0, false).expect("nothing at the end");
    assert_eq!(handle.extents(size, 0, 9).expect("nothing"), []);
    assert_eq!(handle.extents(0, 1, 0).expect("nothing"), []);
}

type Hook = Box<dyn FnOnce() + Send>;

/// A memory that fails when told to, says what it was asked, and calls back in the middle of calls.
struct Probe {
    memory: Arc<dyn Handle>,
    size: u64,
    /// Writes from this offset on fail.
    fail_writes_from: AtomicU64,
    fail_flushes: AtomicBool,
    /// Offset and length of writes; zeroes too.
    writes: Mutex<Vec<(u64, u64)>>,
    /// After it is decided whether the flush fails, before it returns.
    during_flush: Mutex<Option<Hook>>,
    /// After the data was taken from the memory, before it is returned.
    after_read: Mutex<Option<Hook>>,
}

impl Probe {
    fn new(size: u64) -> Arc<Self> {
        Arc::new(Self {
            memory: memory(size).open().expect("open"),
            size,
            fail_writes_from: AtomicU64::new(u64::MAX),
            fail_flushes: AtomicBool::new(false),
            writes: Mutex::default(),
            during_flush: Mutex::default(),
            after_read: Mutex::default(),
        })
    }

    fn run(hook: &Mutex<Option<Hook>>) {
        // Taken out first: what it calls may come here again.
        let hook = hook.lock().take();
        if let Some(hook) = hook {
            hook();
        }
    }

    fn note(&self, offset: u64, length: u64) -> io::Result<()> {
        if offset >= self.fail_writes_from.load(Ordering::SeqCst) {
            return Err(io::Error::other("write fails as told"));
        }
        self.writes.lock().push((offset, length));
        Ok(())
    }
}

struct ProbeBackend(Arc<Probe>);
struct ProbeHandle(Arc<Probe>);

impl Backend for ProbeBackend {
    fn size(&self) -> u64 {
        self.0.size
    }

    fn capabilities(&self) -> Capabilities {
        memory(1).capabilities()
    }

    fn open(&self) -> io::Result<Arc<dyn Handle>> {
        Ok(Arc::new(ProbeHandle(self.0.clone())))
    }
}

impl Handle for ProbeHandle {
    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.memory.read(offset, buf)?;
        Probe::run(&self.0.after_read);
        Ok(())
    }

    fn try_read(&self, _: u64, _: &mut [u8]) -> io::Result<bool> {
        Ok(false)
    }

    fn write(&self, offset: u64, data: &[u8], fua: bool) -> io::Result<()> {
        self.0.note(offset, data.len() as u64)?;
        self.0.memory.write(offset, data, fua)
    }

    fn write_zeroes(&self, offset: u64, length: u64, how: Zeroing) -> io::Result<()> {
        self.0.note(offset, length)?;
        self.0.memory.write_zeroes(offset, length, how)
    }

    fn trim(&self, offset: u64, length: u64, fua: bool) -> io::Result<()> {
        self.0.note(offset, length)?;
        self.0.memory.trim(offset, length, fua)
    }

    fn cache(&self, offset: u64, length: u64) -> io::Result<()> {
        self.0.memory.cache(offset, length)
    }

    fn flush(&self) -> io::Result<()> {
        let fails = self.0.fail_flushes.load(Ordering::SeqCst);
        Probe::run(&self.0.during_flush);
        if fails {
            return Err(io::Error::other("flush fails as told"));
        }
        Ok(())
    }

    fn pace(&self) -> Pace {
        Pace::Waits
    }

    fn extents(&self, offset: u64, length: u64, limit: usize) -> io::Result<Vec<Extent>> {
        let found = self.0.memory.extents(offset, length, limit);
        Probe::run(&self.0.after_read);
        found
    }
}

#[test]
fn who_is_delayed_in_reading_is_not_told_of_holes_instead() {
    let contents = |delays| {
        let backend = DelayBackend::new(memory(4096), delays);
        let handle = backend.open().expect("open");
        let extents = handle.extents(0, 4096, 1).expect("extents");
        assert!(handle.extents(1, 4096, 1).is_err(), "beyond the end");
        extents[0].content
    };
    let delay = Duration::from_millis(1);
    let read = Delays {
        read: delay,
        ..Delays::default()
    };
    let flush = Delays {
        flush: delay,
        ..Delays::default()
    };
    assert_eq!(contents(read), Content::Data);
    assert_eq!(contents(flush), Content::Hole);
}

#[test]
fn a_delay_comes_before_the_calls_it_is_for_and_no_others() {
    const DELAY: Duration = Duration::from_millis(20);
    let delayed = |delays| {
        let handle = DelayBackend::new(memory(4096), delays)
            .open()
            .expect("open");
        let time = |call: &dyn Fn() -> io::Result<()>| {
            let start = Instant::now();
            call().expect("call");
            start.elapsed() >= DELAY
        };
        [
            time(&|| handle.read(0, &mut [0; 16])),
            !handle.try_read(0, &mut [0; 16]).expect("try_read"),
            time(&|| handle.write(0, b"x", false)),
            time(&|| handle.write_zeroes(0, 16, Zeroing::default())),
            time(&|| handle.trim(0, 16, false)),
            time(&|| handle.write(0, b"x", true)),
            time(&|| handle.flush()),
            handle.pace() != Pace::Immediate,
            handle.pace() == Pace::Waits,
        ]
    };
    let (t, f) = (true, false);
    let none = Delays::default();
    let read = Delays {
        read: DELAY,
        ..none
    };
    let write = Delays {
        write: DELAY,
        ..none
    };
    let flush = Delays {
        flush: DELAY,
        ..none
    };
    // A call without delay may still take long on a busy machine; so only what must wait is sure.
    let implies = |expected: [bool; 9], seen: [bool; 9]| {
        assert!(
            expected
                .iter()
                .zip(seen)
                .all(|(&expected, seen)| !expected || seen),
            "{expected:?} {seen:?}"
        );
        assert_eq!(expected[7..], seen[7..]);
        assert_eq!(expected[1], seen[1]);
    };
    implies([f, f, f, f, f, f, f, f, f], delayed(none));
    implies([t, t, f, f, f, f, f, t, f], delayed(read));
    implies([f, f, t, t, t, t, f, t, t], delayed(write));
    implies([f, f, f, f, f, t, t, t, f], delayed(flush));
}
