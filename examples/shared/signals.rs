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
/// The first signal is only noted; a second one ends the program as if nobody listened, so that
/// a program that is stuck can still be stopped.
#[derive(Debug)]
pub(crate) struct Signals {
    caught: Arc<AtomicUsize>,
    /// Readable once a signal came. Never read from, so that it stays readable.
    pipe: UnixStream,
}

impl Signals {
    /// Begins to listen.
    ///
    /// # Errors
    ///
    /// If the system does not let us.
    pub(crate) fn listen() -> io::Result<Self> {
        let caught = Arc::new(AtomicUsize::new(0));
        let (pipe, writer) = UnixStream::pair()?;
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            let second = Arc::new(AtomicBool::new(false));
            flag::register_conditional_default(signal, Arc::clone(&second))?;
            flag::register(signal, second)?;
            let number = usize::try_from(signal).unwrap_or(usize::MAX);
            flag::register_usize(signal, Arc::clone(&caught), number)?;
            // After the flag: whoever is woken by the pipe finds the flag set.
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
