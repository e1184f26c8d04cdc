//! How much one client may have outstanding: the bound on what it makes the server hold.

use parking_lot::{Condvar, Mutex};

/// Most requests of one connection that are read but not answered.
const MAX_REQUESTS: u32 = 1024;

/// Most bytes that these requests may carry or ask for. One request may exceed it, if it is alone.
const MAX_BYTES: u64 = 64 << 20;

#[derive(Debug, Default)]
struct Used {
    requests: u32,
    bytes: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Budget {
    used: Mutex<Used>,
    less: Condvar,
}

impl Budget {
    /// Waits until there is room for one more request of `bytes`, and takes it.
    pub(crate) fn take(&self, bytes: u64) {
        let mut used = self.used.lock();
        while used.requests > 0
            && (used.requests >= MAX_REQUESTS || used.bytes.saturating_add(bytes) > MAX_BYTES)
        {
            self.less.wait(&mut used);
        }
        used.requests += 1;
        used.bytes += bytes;
    }

    /// Whether [`take`](Self::take) would have to wait.
    pub(crate) fn is_spent(&self, bytes: u64) -> bool {
        let used = self.used.lock();
        used.requests > 0
            && (used.requests >= MAX_REQUESTS || used.bytes.saturating_add(bytes) > MAX_BYTES)
    }

    /// A request has been answered.
    pub(crate) fn give_back(&self, bytes: u64) {
        let mut used = self.used.lock();
        used.requests -= 1;
        used.bytes -= bytes;
        drop(used);
        self.less.notify_one();
    }
}
