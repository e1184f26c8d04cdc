//! A source and a destination that one thread looks after.
//!
//! It never waits for one of them alone, but for both, for signals, for the failure of other
//! threads, and for the time: so nothing that one server does or does not do can keep it from
//! noticing the rest. Files are read and written in between; they answer at once.

use std::time::Instant;

use rustix::event::{PollFd, PollFlags};

use super::endpoint::{Destination, Source};
use super::shared::connection::Error;
use super::shared::stream::wait_any;
use super::state::{Failure, State};

#[derive(Debug)]
pub(crate) struct Pair {
    /// The number of its connections.
    pub(crate) number: usize,
    pub(crate) source: Source,
    pub(crate) destination: Destination,
}

/// Why an end is of no use any more.
#[derive(Debug, Default)]
pub(crate) struct Lost {
    pub(crate) source: Option<Error>,
    pub(crate) destination: Option<Error>,
}

impl Pair {
    /// Waits until there is something to do.
    pub(crate) fn wait(&self, state: &State<'_>, until: Option<Instant>) {
        let connections = [self.source.connection(), self.destination.connection()];
        if connections.iter().flatten().any(|it| it.has_more()) {
            return;
        }
        let deadlines = connections.iter().flatten().filter_map(|it| it.deadline());
        let until = deadlines.chain(until).chain(state.give_up()).min();
        let time = until.map(|until| until.saturating_duration_since(Instant::now()));
        let mut fds: Vec<_> = connections
            .iter()
            .flatten()
            .map(|connection| PollFd::new(*connection, connection.interest()))
            .collect();
        // Once they are noted, there is nothing more to be heard from them.
        if state.signals.caught().is_none() {
            fds.push(PollFd::new(state.signals, PollFlags::IN));
        }
        if !state.has_failed() {
            fds.push(PollFd::new(&state.stop, PollFlags::IN));
        }
        if let Err(error) = wait_any(&mut fds, time) {
            let words = format!("cannot wait for the servers: {error}");
            state.fail(Failure::Error(words));
        }
    }

    /// Moves what can be moved without waiting.
    pub(crate) fn drive(&mut self) -> Lost {
        Lost {
            source: self.source.drive().err(),
            destination: self.destination.drive().err(),
        }
    }

    /// Whether nothing is outstanding.
    pub(crate) fn is_idle(&self) -> bool {
        self.source.is_idle() && self.destination.is_idle()
    }

    /// Says goodbye to both.
    pub(crate) fn close(&mut self, deadline: Instant) {
        self.source.close(deadline);
        self.destination.close(deadline);
    }
}
