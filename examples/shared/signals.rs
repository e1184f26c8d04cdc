//! Ctrl-C and its relatives, as something that a program can poll.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::{flag, low_level::pipe};

/// Whether the user wants the program to stop.
///
/// The first signal is only noted; a second one, be it the same or another, ends the program as
/// if nobody listened, so that a program that is stuck can still be stopped.
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
        let second = Arc::new(AtomicBool::new(false));
        let (pipe, writer) = UnixStream::pair()?;
        for &signal in signals {
            // In this order: the first signal finds the flag down, and raises it.
            flag::register_conditional_default(signal, Arc::clone(&second))?;
            flag::register(signal, Arc::clone(&second))?;
            let number = usize::try_from(signal).unwrap_or(usize::MAX);
            flag::register_usize(signal, Arc::clone(&caught), number)?;
            // After the flags: whoever is woken by the pipe finds them set.
            pipe::register(signal, writer.try_clone()?)?;
        }
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

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}
