//! Connections that come and go.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nbd_proto::conformance::Event;
use nbd_proto::multiplex::Mismatch;

use super::super::script::Farewell;
use super::super::shared::connection::Connection;
use super::super::shared::stream::Patience;
use super::{Fleet, GOODBYE, Slot, number};

/// How long it is tried to connect again: a server may need a moment to see that one left.
const AGAIN: Duration = Duration::from_secs(10);
const BETWEEN_TRIES: Duration = Duration::from_millis(20);

impl<'a> Fleet<'a> {
    /// Closes a connection as soon as it has nothing in flight, or at once. Whether it is closed.
    pub(crate) fn leave(&mut self, slot: usize, farewell: Farewell, at_once: bool) -> bool {
        let patience = self.patience(GOODBYE);
        let Some(it) = self.slots.get_mut(slot) else {
            return true;
        };
        it.leaving = true;
        if !it.in_flight.is_empty() && !at_once {
            return false;
        }
        match (it.connection.take(), farewell) {
            (Some(connection), Farewell::Polite) => connection.disconnect(patience),
            (Some(connection), Farewell::Abrupt) => drop(connection),
            (None, _) => return true,
        }
        self.forget(slot);
        true
    }

    /// Connects again, unless a signal comes.
    ///
    /// # Errors
    ///
    /// If that cannot be done, which is told in the words `gone`; if something else is found
    /// there; or if it may be another server than before.
    pub(crate) fn join(&mut self, slot: usize, gone: &str) -> Result<()> {
        if self.is_open(slot) {
            return Ok(());
        }
        let patience = AGAIN.min(self.target.timeout());
        let words = format!(
            "waiting up to {} s for the server to take connection {slot} again",
            patience.as_secs()
        );
        let begun = Instant::now();
        let connected = self
            .progress
            .while_waiting(&words, || self.connect_again(begun + patience, gone));
        self.paused += begun.elapsed();
        let Some(connection) = connected? else {
            return Ok(());
        };
        self.check_witness()?;
        self.opened += 1;
        if let Some(slot) = self.slots.get_mut(slot) {
            *slot = Slot {
                connection: Some(connection),
                ..Slot::default()
            };
        }
        Ok(())
    }

    /// Tries to connect until the deadline; none if a signal comes.
    fn connect_again(&mut self, deadline: Instant, gone: &str) -> Result<Option<Connection>> {
        loop {
            let error = match self.target.open_another() {
                Ok(connection) => return Ok(Some(connection)),
                Err(_) if self.target.is_stopped() => return Ok(None),
                Err(error) if error.is::<Mismatch>() => return Err(error),
                Err(error) => error,
            };
            self.catch_up()?;
            if !self.has_witness() {
                // Whoever comes there now, nothing can be found out any more.
                let why = self.last_loss();
                return Err(error).with_context(|| {
                    format!(
                        "all connections were lost at once ({why}), and the server is gone; if it \
                         is being restarted, see --restart-command"
                    )
                });
            }
            if Instant::now() >= deadline {
                return Err(error).with_context(|| gone.to_owned());
            }
            std::thread::sleep(BETWEEN_TRIES);
        }
    }

    /// If all connections were lost before a new one was had, the server may have been restarted,
    /// and then nobody knows what it has lost. Those of a dead process have ended before another
    /// one can listen.
    fn check_witness(&mut self) -> Result<()> {
        self.catch_up()?;
        ensure!(
            self.has_witness(),
            "all connections were lost at once ({}): if the server was restarted, it may have \
             lost what was not flushed; see --restart-command",
            self.last_loss()
        );
        Ok(())
    }

    /// Whether there is a connection to the server as it was, or none was lost.
    fn has_witness(&self) -> bool {
        let is_any_open = self.slots.iter().any(|it| it.connection.is_some());
        is_any_open || !self.slots.iter().any(|it| it.lost)
    }

    fn last_loss(&self) -> &str {
        self.lost.last().map_or("", String::as_str)
    }

    /// Nobody wants a connection to be closed any more.
    pub(crate) fn stay(&mut self) {
        self.slots.iter_mut().for_each(|slot| slot.leaving = false);
    }

    /// The slots without a connection.
    pub(crate) fn closed(&self) -> Vec<usize> {
        (0..self.len())
            .filter(|&slot| !self.is_open(slot))
            .collect()
    }

    /// The connection is gone, with all that it had in flight. Nobody waits for it any more.
    pub(super) fn forget(&mut self, slot: usize) {
        self.observer
            .record(&Event::Disconnect { conn: number(slot) });
        if let Some(slot) = self.slots.get_mut(slot) {
            slot.connection = None;
            slot.leaving = false;
            let in_flight = slot.in_flight.drain().map(|(_, it)| it.ticket);
            self.answered.extend(in_flight);
        }
    }

    /// Takes what a dead server has said, until all connections have ended.
    ///
    /// # Errors
    ///
    /// If one does not end: then the server is not dead.
    pub(crate) fn drain(&mut self, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        while self.slots.iter().any(|it| it.connection.is_some()) {
            let left = deadline.saturating_duration_since(Instant::now());
            ensure!(
                !left.is_zero(),
                "the restart command has returned, but the connections to the old server are \
                 alive: it has to kill the server, with kill -9, and start it again"
            );
            self.turn(left)?;
            // Or the next turn would not wait.
            self.answered.clear();
        }
        self.answered.clear();
        // What comes next is not the same server, and that is known.
        self.slots.iter_mut().for_each(|it| it.lost = false);
        Ok(())
    }

    /// Says goodbye to all.
    pub(crate) fn close(&mut self) {
        for slot in 0..self.len() {
            self.leave(slot, Farewell::Polite, true);
        }
    }

    fn patience(&self, time: Duration) -> Patience<'a> {
        Patience {
            deadline: Instant::now() + time.min(self.target.timeout()),
            signals: Some(self.target.signals()),
        }
    }
}
