//! Ctrl-C and its relatives, as something that a program can poll.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::{flag, low_level::pipe};

/// What comes within this time of the first signal is the same wish: `timeout`, for one, sends its
/// signal to the program, and at once again to the group that the program is in.
const SAME_WISH: Duration = Duration::from_millis(200);

/// Whether the user wants the program to stop.
///
/// The first signal is only noted; one that comes later, be it the same or another, ends the
/// program as if nobody listened, so that a program that is stuck can still be stopped.
#[derive(Debug)]
pub(crate) struct Signals {
    caught: Arc<AtomicUsize>,
    /// Readable once a signal came. Never read from, so that it stays readable.
    pipe: UnixStream,
}

impl Signals {
    /// Begins to listen to all that mean the end.
    ///
    /// # Errors
    ///
    /// If the system does not let us.
    pub(crate) fn listen() -> io::Result<Self> {
        Self::listen_to(&[SIGINT, SIGTERM, SIGHUP])
    }

    /// Begins to listen to some.
    ///
    /// # Errors
    ///
    /// If the system does not let us.
    pub(crate) fn listen_to(signals: &[i32]) -> io::Result<Self> {
        let caught = Arc::new(AtomicUsize::new(0));
        let is_later = Arc::new(AtomicBool::new(false));
        let (pipe, writer) = UnixStream::pair()?;
        for &signal in signals {
            flag::register_conditional_default(signal, Arc::clone(&is_later))?;
            let number = usize::try_from(signal).unwrap_or(usize::MAX);
            flag::register_usize(signal, Arc::clone(&caught), number)?;
            // After the number: whoever is woken by the pipe finds it.
            pipe::register(signal, writer.try_clone()?)?;
        }
        let first = pipe.try_clone()?;
        thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                wait_for(&first);
                thread::sleep(SAME_WISH);
                is_later.store(true, Ordering::SeqCst);
            })?;
        Ok(Self { caught, pipe })
    }

    /// The number of the last signal that came, if one came.
    pub(crate) fn caught(&self) -> Option<u8> {
        match self.caught.load(Ordering::SeqCst) {
            0 => None,
            number => Some(u8::try_from(number).unwrap_or(u8::MAX)),
        }
    }
}

/// Waits until a signal came. If the system cannot even do that, none is waited for.
fn wait_for(first: &UnixStream) {
    while poll(&mut [PollFd::new(first, PollFlags::IN)], None) == Err(Errno::INTR) {}
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}
