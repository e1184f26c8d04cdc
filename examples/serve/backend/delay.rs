//! Makes any backend slow, to see what a client or the coordinator does with slow storage.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::{Backend, Capabilities, Extent, Handle, Pace, Zeroing, anything};

/// How long to sleep before calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Delays {
    /// Before reading.
    pub(crate) read: Duration,
    /// Before writing, zeroing and trimming.
    pub(crate) write: Duration,
    /// Before flushing, and before a modification with FUA (after the delay for writing).
    pub(crate) flush: Duration,
}

/// Sleeps, then does what the backend within does.
pub(crate) struct DelayBackend {
    inner: Arc<dyn Backend>,
    delays: Delays,
}

struct DelayHandle {
    inner: Arc<dyn Handle>,
    delays: Delays,
}

impl DelayBackend {
    pub(crate) fn new(inner: Arc<dyn Backend>, delays: Delays) -> Self {
        Self { inner, delays }
    }
}

impl Backend for DelayBackend {
    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn open(&self) -> io::Result<Arc<dyn Handle>> {
        let inner = self.inner.open()?;
        if self.delays == Delays::default() {
            return Ok(inner);
        }
        Ok(Arc::new(DelayHandle {
            inner,
            delays: self.delays,
        }))
    }
}

impl DelayHandle {
    fn before_write(&self, fua: bool) {
        sleep(self.delays.write);
        if fua {
            sleep(self.delays.flush);
        }
    }
}

/// Without a duration the thread does not even yield.
fn sleep(duration: Duration) {
    if !duration.is_zero() {
        thread::sleep(duration);
    }
}

impl Handle for DelayHandle {
    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        sleep(self.delays.read);
        self.inner.read(offset, buf)
    }

    fn try_read(&self, offset: u64, buf: &mut [u8]) -> io::Result<bool> {
        if self.delays.read.is_zero() {
            return self.inner.try_read(offset, buf);
        }
        Ok(false)
    }

    fn write(&self, offset: u64, data: &[u8], fua: bool) -> io::Result<()> {
        self.before_write(fua);
        self.inner.write(offset, data, fua)
    }

    fn write_zeroes(&self, offset: u64, length: u64, how: Zeroing) -> io::Result<()> {
        self.before_write(how.fua);
        self.inner.write_zeroes(offset, length, how)
    }

    fn trim(&self, offset: u64, length: u64, fua: bool) -> io::Result<()> {
        self.before_write(fua);
        self.inner.trim(offset, length, fua)
    }

    fn cache(&self, offset: u64, length: u64) -> io::Result<()> {
        self.inner.cache(offset, length)
    }

    fn flush(&self) -> io::Result<()> {
        sleep(self.delays.flush);
        self.inner.flush()
    }

    fn pace(&self) -> Pace {
        let least = if self.delays.write.is_zero() {
            Pace::Buffered
        } else {
            Pace::Waits
        };
        self.inner.pace().max(least)
    }

    fn is_hole(&self, offset: u64, length: u64) -> io::Result<bool> {
        // As in the extents.
        Ok(self.delays.read.is_zero() && self.inner.is_hole(offset, length)?)
    }

    fn extents(&self, offset: u64, length: u64, limit: usize) -> io::Result<Vec<Extent>> {
        let extents = self.inner.extents(offset, length, limit)?;
        if self.delays.read.is_zero() {
            return Ok(extents);
        }
        // Who is told of zeroes need not read, and would not be delayed.
        Ok(anything(length, limit))
    }
}
