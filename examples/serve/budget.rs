//! How much clients may have outstanding: the bound on what they make the server hold.
//!
//! A request counts from before its payload is read until its reply is sent. Small ones come out
//! of what each connection has [of its own](OWN), so that a modest client never has to wait for
//! what others hold; larger ones out of what [all share](SHARED). A connection that holds nothing
//! of that may use all of it, the others only half, so that those that are greedy cannot keep
//! those out that have just come. For what becomes of clients that do not let go, see
//! [`end_stalled`](super::server::Server::end_stalled).
//!
//! Beyond this a connection costs its buffers, some 2 MiB at most, the stacks of its threads, its
//! cache if it has one, and what pages of memory have been replaced by writes while a reply still
//! shows them: at most a page at either end of each read more than was asked for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// Most requests of one connection that are read but not answered.
const MAX_REQUESTS: u32 = 1024;

/// Most bytes that these requests may carry or ask for. One request may exceed it, if it is alone.
const MAX_BYTES: u64 = 64 << 20;

/// How many of these are each connection's own.
const OWN: u64 = 256 << 10;

/// Most bytes that all connections together may hold beyond that.
const SHARED: u64 = 512 << 20;

/// What all connections share.
#[derive(Debug)]
pub(crate) struct Memory {
    most: u64,
    used: Mutex<u64>,
    less: Condvar,
}

impl Default for Memory {
    fn default() -> Self {
        Self::of(SHARED)
    }
}

impl Memory {
    const fn of(most: u64) -> Self {
        Self {
            most,
            used: Mutex::new(0),
            less: Condvar::new(),
        }
    }

    fn has_room(&self, used: u64, bytes: u64, holder: bool) -> bool {
        let most = if holder { self.most / 2 } else { self.most };
        used == 0 || used.saturating_add(bytes) <= most
    }

    /// Takes so much, if it is there, for somebody who holds some of it already or not.
    fn try_take(&self, bytes: u64, holder: bool) -> bool {
        let mut used = self.used.lock();
        let room = self.has_room(*used, bytes, holder);
        if room {
            *used += bytes;
        }
        room
    }

    /// The same, but waits for some time until it is there.
    fn take(&self, bytes: u64, holder: impl Fn() -> bool, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut used = self.used.lock();
        while !self.has_room(*used, bytes, holder()) {
            if self.less.wait_until(&mut used, deadline).timed_out() {
                return false;
            }
        }
        *used += bytes;
        true
    }

    fn give_back(&self, bytes: u64) {
        if bytes > 0 {
            *self.used.lock() -= bytes;
            // Those who wait need different amounts.
            self.less.notify_all();
        }
    }
}

/// What requests were granted; to be given back when they are answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Held {
    requests: u32,
    own: u64,
    shared: u64,
}

impl Held {
    pub(crate) const fn add(&mut self, other: Self) {
        self.requests += other.requests;
        self.own += other.own;
        self.shared += other.shared;
    }
}

/// The part of one connection. One thread takes; any gives back.
#[derive(Debug)]
pub(crate) struct Budget {
    memory: Arc<Memory>,
    used: Mutex<Used>,
    /// Changes without its lock, to be looked at by who has the lock of the memory.
    shared: AtomicU64,
    less: Condvar,
}

#[derive(Debug, Default)]
struct Used {
    requests: u32,
    own: u64,
}

impl Budget {
    pub(crate) fn new(memory: &Arc<Memory>) -> Self {
        Self {
            memory: Arc::clone(memory),
            used: Mutex::default(),
            shared: AtomicU64::new(0),
            less: Condvar::new(),
        }
    }

    /// Whether it holds anything that others may be waiting for.
    pub(crate) fn holds_shared(&self) -> bool {
        self.shared.load(Ordering::Relaxed) > 0
    }

    fn has_room(&self, used: &Used, bytes: u64) -> bool {
        let held = used.own + self.shared.load(Ordering::Relaxed);
        used.requests == 0
            || (used.requests < MAX_REQUESTS && held.saturating_add(bytes) <= MAX_BYTES)
    }

    fn take(&self, used: &mut Used, bytes: u64, own: bool) -> Held {
        let (own, shared) = if own { (bytes, 0) } else { (0, bytes) };
        used.requests += 1;
        used.own += own;
        self.shared.fetch_add(shared, Ordering::Relaxed);
        Held {
            requests: 1,
            own,
            shared,
        }
    }

    /// Room for one more request of `bytes`, if it is there.
    pub(crate) fn try_take(&self, bytes: u64) -> Option<Held> {
        let mut used = self.used.lock();
        if !self.has_room(&used, bytes) {
            return None;
        }
        let own = used.own + bytes <= OWN;
        (own || self.memory.try_take(bytes, self.holds_shared()))
            .then(|| self.take(&mut used, bytes, own))
    }

    /// The same, but waits until the connection's own requests leave room, and then for some time
    /// for those of others. To be called with no request in hand that nobody else works on.
    pub(crate) fn wait(&self, bytes: u64, patience: Duration) -> Option<Held> {
        let mut used = self.used.lock();
        while !self.has_room(&used, bytes) {
            self.less.wait(&mut used);
        }
        if used.own + bytes <= OWN {
            return Some(self.take(&mut used, bytes, true));
        }
        // What was granted until now has to be able to come back.
        drop(used);
        self.memory
            .take(bytes, || self.holds_shared(), patience)
            .then(|| self.take(&mut self.used.lock(), bytes, false))
    }

    /// Requests have been answered.
    pub(crate) fn give_back(&self, held: Held) {
        let mut used = self.used.lock();
        used.requests -= held.requests;
        used.own -= held.own;
        self.shared.fetch_sub(held.shared, Ordering::Relaxed);
        drop(used);
        self.less.notify_one();
        self.memory.give_back(held.shared);
    }
}

impl Drop for Budget {
    /// Some requests never come to an answer.
    fn drop(&mut self) {
        self.memory.give_back(*self.shared.get_mut());
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    const SOON: Duration = Duration::from_secs(60);
    const AT_ONCE: Duration = Duration::ZERO;
    const MIB: u64 = 1 << 20;

    fn budgets(memory: u64, count: usize) -> Vec<Budget> {
        let memory = Arc::new(Memory::of(memory));
        (0..count).map(|_| Budget::new(&memory)).collect()
    }

    #[test]
    fn all_connections_together_never_hold_more_than_is_there() {
        let budgets = budgets(64 * MIB, 100);
        let mut held = 0;
        for _ in 0..4 {
            for budget in &budgets {
                held += budget.try_take(8 * MIB).map_or(0, |held| held.shared);
            }
        }
        assert!(held <= 64 * MIB);
        assert!(held >= 32 * MIB, "{held} bytes are not much");
    }

    #[test]
    fn small_requests_never_wait_for_what_others_hold() {
        let budgets = budgets(8 * MIB, 2);
        budgets[0].try_take(8 * MIB).unwrap();
        for _ in 0..64 {
            assert!(budgets[1].try_take(4096).is_some());
        }
        assert!(budgets[1].try_take(4096).is_none(), "its own is used up");
    }

    #[test]
    fn who_holds_nothing_comes_before_who_is_greedy() {
        let budgets = budgets(64 * MIB, 2);
        while budgets[0].try_take(4 * MIB).is_some() {}
        assert_eq!(budgets[0].wait(4 * MIB, AT_ONCE), None);
        assert!(budgets[1].wait(32 * MIB, AT_ONCE).is_some());
    }

    #[test]
    fn a_request_of_any_size_is_granted_when_nothing_else_is_held() {
        let budgets = budgets(MIB, 1);
        let held = budgets[0].try_take(100 * MIB).unwrap();
        assert!(budgets[0].try_take(1).is_none());
        budgets[0].give_back(held);
        assert!(budgets[0].try_take(1).is_some());
    }

    #[test]
    fn who_waits_goes_on_when_something_is_given_back() {
        let budgets = budgets(8 * MIB, 2);
        let held = budgets[0].try_take(8 * MIB).unwrap();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| budgets[1].wait(8 * MIB, SOON));
            budgets[0].give_back(held);
            assert!(waiting.join().unwrap().is_some());
        });
    }

    #[test]
    fn who_waits_for_itself_goes_on_when_it_is_answered() {
        let budgets = budgets(1024 * MIB, 1);
        let first = budgets[0].try_take(40 * MIB).unwrap();
        assert!(budgets[0].try_take(40 * MIB).is_none());
        thread::scope(|scope| {
            let waiting = scope.spawn(|| budgets[0].wait(40 * MIB, SOON));
            budgets[0].give_back(first);
            assert!(waiting.join().unwrap().is_some());
        });
    }

    #[test]
    fn a_connection_that_goes_leaves_nothing_taken() {
        let mut budgets = budgets(8 * MIB, 2);
        budgets[0].try_take(8 * MIB).unwrap();
        budgets.remove(0);
        assert!(budgets[0].try_take(8 * MIB).is_some());
    }

    #[test]
    fn requests_without_bytes_are_counted_too() {
        let budgets = budgets(MIB, 1);
        let mut all = Held::default();
        for _ in 0..MAX_REQUESTS {
            all.add(budgets[0].try_take(0).unwrap());
        }
        assert_eq!(budgets[0].try_take(0), None);
        budgets[0].give_back(all);
        assert!(budgets[0].try_take(0).is_some());
    }
}
