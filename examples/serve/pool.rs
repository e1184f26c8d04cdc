//! Threads that do what may wait, for all connections.
//!
//! Pushing work never waits, not even for the start of a thread: that is the affair of the threads
//! themselves. Each that takes something up first makes sure that another one is there for what
//! comes next. If the system has no more threads to give, the one that could find no successor is
//! told so: it has to come back soon, because all others may be waiting for something. So
//! everything that is pushed is done, if later.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::log::Seldom;

/// How long a thread waits for more to do. One always stays.
const IDLE: Duration = Duration::from_secs(5);

/// Whether others are there for what comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Company {
    /// The thread may wait for as long as it takes.
    Others,
    /// The thread may be the only one that does not wait for something.
    Alone,
}

struct State<T> {
    queue: VecDeque<T>,
    threads: usize,
    idle: usize,
}

pub(crate) struct Pool<T> {
    name: &'static str,
    /// How many threads there may be; the system may allow fewer.
    most: usize,
    work: fn(T, Company),
    state: Mutex<State<T>>,
    more: Condvar,
}

static NO_THREAD: Seldom = Seldom::new();

impl<T: Send + 'static> Pool<T> {
    /// A pool with its first thread.
    ///
    /// # Errors
    ///
    /// If it could not be started.
    pub(crate) fn start(
        name: &'static str,
        most: usize,
        work: fn(T, Company),
    ) -> io::Result<Arc<Self>> {
        let pool = Arc::new(Self {
            name,
            most,
            work,
            state: Mutex::new(State {
                queue: VecDeque::new(),
                threads: 1,
                idle: 0,
            }),
            more: Condvar::new(),
        });
        pool.spawn()?;
        Ok(pool)
    }

    /// Has this done. Takes no time to speak of, and cannot fail.
    pub(crate) fn push(&self, item: T) {
        self.state.lock().queue.push_back(item);
        self.more.notify_one();
    }

    /// Whether something waits for a thread.
    pub(crate) fn is_behind(&self) -> bool {
        !self.state.lock().queue.is_empty()
    }

    fn spawn(self: &Arc<Self>) -> io::Result<()> {
        let pool = Arc::clone(self);
        let run = move || {
            while let Some((item, company)) = pool.next() {
                (pool.work)(item, company);
            }
        };
        thread::Builder::new()
            .name(self.name.to_owned())
            .spawn(run)
            .map(drop)
    }

    /// What to do next; `None` if the thread is not needed any more.
    fn next(self: &Arc<Self>) -> Option<(T, Company)> {
        let mut state = self.state.lock();
        state.idle += 1;
        let item = loop {
            if let Some(item) = state.queue.pop_front() {
                break item;
            }
            let timeout = self.more.wait_for(&mut state, IDLE);
            if timeout.timed_out() && state.queue.is_empty() && state.idle > 1 {
                state.idle -= 1;
                state.threads -= 1;
                return None;
            }
        };
        state.idle -= 1;
        if state.idle > 0 {
            return Some((item, Company::Others));
        }
        if state.threads >= self.most {
            return Some((item, Company::Alone));
        }
        state.threads += 1;
        drop(state);
        let company = match self.spawn() {
            Ok(()) => Company::Others,
            Err(error) => {
                self.state.lock().threads -= 1;
                NO_THREAD.warn(format_args!(
                    "clients may have to wait, a thread could not be started: {error}"
                ));
                Company::Alone
            }
        };
        Some((item, company))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    const SOON: Duration = Duration::from_secs(60);

    type Work = Box<dyn FnOnce(Company) + Send>;

    fn pool(most: usize) -> Arc<Pool<Work>> {
        Pool::start("test", most, |work: Work, company| work(company)).unwrap()
    }

    /// Something that says what company it has, and then waits to be let go.
    fn wait_for(said: &Sender<Company>, go: Receiver<()>) -> Work {
        let said = said.clone();
        Box::new(move |company| {
            said.send(company).unwrap();
            let _ = go.recv_timeout(SOON);
        })
    }

    #[test]
    fn whatever_waits_holds_up_nothing_else_while_there_are_threads() {
        let pool = pool(usize::MAX);
        let (said, hear) = channel();
        let mut held = Vec::new();
        for _ in 0..50 {
            let (go, wait) = channel();
            held.push(go);
            pool.push(wait_for(&said, wait));
            assert_eq!(hear.recv_timeout(SOON), Ok(Company::Others));
        }
    }

    #[test]
    fn without_more_threads_the_last_one_knows_and_does_the_rest_in_order() {
        let pool = pool(2);
        let (said, hear) = channel();
        let (_go, wait) = channel();
        pool.push(wait_for(&said, wait));
        assert_eq!(hear.recv_timeout(SOON), Ok(Company::Others));
        let (numbers, order) = channel();
        for number in 0..100 {
            let numbers = numbers.clone();
            pool.push(Box::new(move |company| {
                numbers.send((number, company)).unwrap();
            }));
        }
        for number in 0..100 {
            assert_eq!(order.recv_timeout(SOON), Ok((number, Company::Alone)));
        }
    }

    #[test]
    fn a_thread_that_comes_back_is_company_again() {
        let pool = pool(2);
        let (said, hear) = channel();
        let mut holds = Vec::new();
        for expected in [Company::Others, Company::Alone] {
            let (go, wait) = channel();
            holds.push(go);
            pool.push(wait_for(&said, wait));
            assert_eq!(hear.recv_timeout(SOON), Ok(expected));
        }
        holds.clear();
        // Both are back once both have been idle.
        while pool.state.lock().idle < 2 {
            thread::yield_now();
        }
        let (_go, wait) = channel();
        pool.push(wait_for(&said, wait));
        assert_eq!(hear.recv_timeout(SOON), Ok(Company::Others));
    }

    #[test]
    fn pushing_starts_no_thread_itself() {
        // With no thread that could start others, nothing happens to what is pushed; and pushing
        // returns.
        let pool: Arc<Pool<Work>> = Arc::new(Pool {
            name: "test",
            most: usize::MAX,
            work: |work, company| work(company),
            state: Mutex::new(State {
                queue: VecDeque::new(),
                threads: 0,
                idle: 0,
            }),
            more: Condvar::new(),
        });
        pool.push(Box::new(|_| panic!("nobody does it")));
        assert_eq!(pool.state.lock().queue.len(), 1);
        assert_eq!(Arc::strong_count(&pool), 1);
    }
}
