//! All connections to one server, driven by one thread, and what they have in flight.

mod command;
mod travel;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nbd_proto::conformance::{Command, Content, Contents, Event, Outcome};
use nbd_proto::transmission::client::Fatal;
use nbd_proto::wire::Cookie;
use rustix::event::{PollFd, PollFlags};

use super::contents::{Pattern, fingerprint};
use super::latency::Latency;
use super::observer::{Broken, Observer};
use super::progress::Progress;
use super::script::{Tag, What};
use super::shared::connection::{Completion, Connection, Error};
use super::shared::stream::wait_any;
use super::target::Target;
use command::{command, submit};

/// How many commands are in flight on one connection, at most.
pub(crate) const CAPACITY: usize = 32;

/// How long a goodbye may take.
const GOODBYE: Duration = Duration::from_secs(1);

/// Of how many connections it is told why they were lost.
const MOST_TOLD: usize = 10;

/// Who waits for an answer: a command of a scene.
pub(crate) type Ticket = (u64, Tag);

/// Whether a command was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    Yes,
    /// The connection has as much to do as it may have.
    Busy,
    /// There is no connection now.
    Closed,
}

#[derive(Debug)]
pub(crate) struct Fleet<'a> {
    target: &'a Target<'a>,
    progress: &'a Progress,
    pub(crate) observer: Observer,
    pattern: Option<Pattern>,
    granule: u64,
    slots: Vec<Slot>,
    last_content: u64,
    answered: Vec<Ticket>,
    pub(crate) latency: Latency,
    /// Commands that were sent.
    pub(crate) sent: u64,
    pub(crate) opened: u64,
    /// Why connections were lost that nobody closed, and how many.
    pub(crate) lost: Vec<String>,
    pub(crate) lost_count: u64,
    /// The server is being killed: connections are lost, and none is to be opened yet.
    pub(crate) dying: bool,
    /// What the first command that failed was answered.
    pub(crate) first_failure: Option<String>,
    begun: Instant,
    /// How long it was waited for connections, while all else stood still.
    paused: Duration,
    /// How long it took up to the last answer, without that.
    pub(crate) worked: Duration,
}

#[derive(Debug, Default)]
struct Slot {
    connection: Option<Connection>,
    /// Nothing is sent any more: it is to be closed.
    leaving: bool,
    in_flight: HashMap<Cookie, InFlight>,
    /// The server has closed it, and nobody has asked for that.
    lost: bool,
}

#[derive(Clone, Copy, Debug)]
struct InFlight {
    what: What,
    /// As it was recorded, if it has a part in the promise.
    command: Option<Command>,
    ticket: Ticket,
    since: Instant,
}

impl<'a> Fleet<'a> {
    /// With contents of a `pattern`, or, where nothing is written, whatever there is.
    pub(crate) fn new(
        target: &'a Target<'a>,
        progress: &'a Progress,
        connections: Vec<Connection>,
        observer: Observer,
        pattern: Option<Pattern>,
        granule: u64,
    ) -> Self {
        let slot = |connection| Slot {
            connection: Some(connection),
            ..Slot::default()
        };
        Self {
            target,
            progress,
            observer,
            pattern,
            granule,
            opened: connections.len() as u64,
            slots: connections.into_iter().map(slot).collect(),
            last_content: 0,
            answered: Vec::new(),
            latency: Latency::default(),
            sent: 0,
            lost: Vec::new(),
            lost_count: 0,
            dying: false,
            first_failure: None,
            begun: Instant::now(),
            paused: Duration::ZERO,
            worked: Duration::ZERO,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    fn is_open(&self, slot: usize) -> bool {
        self.slots
            .get(slot)
            .is_some_and(|it| it.connection.is_some())
    }

    /// Whether something can be sent on it.
    pub(crate) fn is_usable(&self, slot: usize) -> bool {
        let is_usable = |it: &Slot| it.connection.is_some() && !it.leaving;
        self.slots.get(slot).is_some_and(is_usable)
    }

    /// Whether nothing is in flight.
    pub(crate) fn is_idle(&self) -> bool {
        self.slots.iter().all(|slot| slot.in_flight.is_empty())
    }

    // --- sending ---

    /// Sends a command. Its answer will be for the holder of the ticket.
    ///
    /// # Errors
    ///
    /// If it is nothing that could be sent, which is a mistake of ours.
    pub(crate) fn send(&mut self, slot: usize, what: What, ticket: Ticket) -> Result<Sent> {
        let (conn, granule) = (number(slot), self.granule);
        let Some(slot) = self.slots.get_mut(slot) else {
            return Ok(Sent::Closed);
        };
        let Some(connection) = slot.connection.as_mut().filter(|_| !slot.leaving) else {
            return Ok(Sent::Closed);
        };
        if slot.in_flight.len() >= CAPACITY {
            return Ok(Sent::Busy);
        }
        let content = Content(self.last_content + 1);
        let submitted = submit(connection, what, content, self.pattern, granule);
        let cookie = submitted.with_context(|| format!("a {} cannot be sent", what.word()))?;
        let command = command(what, content);
        if let Some(command) = command {
            if matches!(command, Command::Write { .. }) {
                self.last_content += 1;
            }
            // Nothing has been given to the socket yet: the connection was not driven.
            self.observer.record(&Event::Invoke {
                conn,
                cookie: cookie.0,
                command,
            });
        }
        let in_flight = InFlight {
            what,
            command,
            ticket,
            since: Instant::now(),
        };
        slot.in_flight.insert(cookie, in_flight);
        self.sent += 1;
        Ok(Sent::Yes)
    }

    // --- moving bytes ---

    /// Gives what is to be sent to the sockets, waits for something to happen, for so long at
    /// most, and takes it.
    ///
    /// # Errors
    ///
    /// If a server does not answer, or the system cannot poll. What a server is to blame for is
    /// told to the observer.
    pub(crate) fn turn(&mut self, time: Duration) -> Result<()> {
        for slot in 0..self.slots.len() {
            if self.wants_to_write(slot) {
                self.drive(slot)?;
            }
        }
        let time = if self.answered.is_empty() && !self.has_more() {
            time
        } else {
            Duration::ZERO
        };
        for slot in self.wait(time)? {
            self.drive(slot)?;
        }
        self.check_time()
    }

    fn wants_to_write(&self, slot: usize) -> bool {
        let connection = self.slots.get(slot).and_then(|it| it.connection.as_ref());
        connection.is_some_and(|it| it.interest().contains(PollFlags::OUT))
    }

    fn has_more(&self) -> bool {
        let connections = self.slots.iter().filter_map(|it| it.connection.as_ref());
        connections.into_iter().any(Connection::has_more)
    }

    /// The slots where something is to be done.
    fn wait(&self, time: Duration) -> Result<Vec<usize>> {
        let open: Vec<(usize, &Connection)> = self
            .slots
            .iter()
            .enumerate()
            .filter_map(|(number, slot)| Some((number, slot.connection.as_ref()?)))
            .collect();
        let mut fds: Vec<_> = open
            .iter()
            .map(|(_, connection)| PollFd::new(*connection, connection.interest()))
            .collect();
        fds.push(PollFd::new(self.target.signals(), PollFlags::IN));
        wait_any(&mut fds, Some(time)).context("cannot wait for the server")?;
        let ready = open
            .iter()
            .zip(&fds)
            .filter(|((_, connection), fd)| connection.has_more() || !fd.revents().is_empty());
        Ok(ready.map(|((number, _), _)| *number).collect())
    }

    /// Takes all that has come, without waiting for more. A server that never stops to send is
    /// not followed for ever.
    fn catch_up(&mut self) -> Result<()> {
        let deadline = Instant::now() + GOODBYE;
        loop {
            let ready = self.wait(Duration::ZERO)?;
            if ready.is_empty() || deadline <= Instant::now() {
                return Ok(());
            }
            for slot in ready {
                self.drive(slot)?;
            }
        }
    }

    fn drive(&mut self, slot: usize) -> Result<()> {
        let Some(connection) = self
            .slots
            .get_mut(slot)
            .and_then(|it| it.connection.as_mut())
        else {
            return Ok(());
        };
        let result = connection.drive();
        let completed: Vec<_> = std::iter::from_fn(|| connection.next_completed()).collect();
        for completion in completed {
            self.take(slot, completion);
        }
        match result {
            Ok(()) => Ok(()),
            Err(error) => self.failed(slot, error),
        }
    }

    fn take(&mut self, slot: usize, completion: Completion) {
        let conn = number(slot);
        let Some(slot) = self.slots.get_mut(slot) else {
            return;
        };
        let cookie = completion.request.cookie;
        let Some(asked) = slot.in_flight.remove(&cookie) else {
            return;
        };
        self.answered.push(asked.ticket);
        self.worked = self.begun.elapsed().saturating_sub(self.paused);
        let outcome = match &completion.result {
            Ok(()) => {
                self.latency.note(asked.what.kind(), asked.since.elapsed());
                match asked.what {
                    What::Read(extent) => {
                        Outcome::Data(self.contents(extent.offset, &completion.buffer))
                    }
                    _ => Outcome::Done,
                }
            }
            Err(why) => {
                let word = asked.what.word();
                self.first_failure
                    .get_or_insert_with(|| format!("{word}: {why}"));
                Outcome::Failed
            }
        };
        if let Some(command) = &asked.command {
            self.observer.replied(conn, cookie.0, command, outcome);
        }
    }

    fn contents(&self, offset: u64, bytes: &[u8]) -> Contents {
        match &self.pattern {
            Some(pattern) => pattern.identify(offset, bytes),
            None => fingerprint(self.granule, bytes),
        }
    }

    /// A connection is of no use any more. Whether that is the server's fault depends.
    fn failed(&mut self, slot: usize, error: Error) -> Result<()> {
        match error {
            // It was not lost but killed.
            Error::Protocol(Fatal::Eof { .. }) | Error::Closed | Error::Io(_) if self.dying => {}
            Error::Protocol(Fatal::Eof { .. }) | Error::Closed | Error::Io(_) => {
                self.lost_count += 1;
                if let Some(it) = self.slots.get_mut(slot) {
                    it.lost = true;
                }
                if self.lost.len() < MOST_TOLD {
                    self.lost.push(error.to_string());
                }
            }
            // A mistake of ours.
            Error::Protocol(Fatal::Overread) => bail!("{error}"),
            Error::Protocol(_) | Error::TooEarly { .. } => {
                let words = format!("on connection {slot}: {error}");
                self.observer.accuse(Broken::Protocol(words));
            }
            Error::Silent { .. } => bail!("{error}; {}", self.hanging(slot)),
            error => bail!("{error}"),
        }
        self.forget(slot);
        Ok(())
    }

    /// No command may take longer than the timeout, whatever else is answered meanwhile.
    fn check_time(&self) -> Result<()> {
        let timeout = self.target.timeout();
        for (number, slot) in self.slots.iter().enumerate() {
            let oldest = slot.in_flight.values().map(|it| it.since).min();
            ensure!(
                oldest.is_none_or(|since| since.elapsed() < timeout + GOODBYE),
                "the server does not answer; {}",
                self.hanging(number)
            );
        }
        Ok(())
    }

    /// What was not answered for longest.
    fn hanging(&self, slot: usize) -> String {
        let in_flight = self.slots.get(slot).map(|it| &it.in_flight);
        let oldest = in_flight
            .into_iter()
            .flat_map(HashMap::values)
            .min_by_key(|it| it.since);
        let Some(InFlight { what, since, .. }) = oldest else {
            return "nothing is in flight".to_owned();
        };
        let place = match what.extent() {
            Some(extent) => format!(" of {} bytes at {}", extent.length, extent.offset),
            None => String::new(),
        };
        let (word, seconds) = (what.word(), since.elapsed().as_secs());
        format!("a {word}{place} on connection {slot} was not answered for {seconds} s")
    }

    /// The tickets of commands that are over since it was asked last.
    pub(crate) fn take_answered(&mut self) -> Vec<Ticket> {
        std::mem::take(&mut self.answered)
    }
}

/// Slots are connections of the history; a connection that comes again has its old number.
fn number(slot: usize) -> u32 {
    u32::try_from(slot).unwrap_or(u32::MAX)
}
