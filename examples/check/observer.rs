//! The one who sees everything, in one order: events go to the checker and into the record.
//!
//! All connections are driven by one thread. An invocation is recorded before the bytes of its
//! request can be given to the socket, which only driving the connection does; a reply after it
//! was taken from it. So the order of the events is one that has happened, and whatever is
//! recorded as one after the other was so.

use std::path::Path;

use anyhow::{Context, Result};
use nbd_proto::conformance::{
    CheckError, Checker, Command, Contents, Event, Extent, Outcome, Promise, Summary, Violation,
};

use super::image::{Difference, Image};
use super::import::Header;
use super::record::Record;

/// Why a server is to blame.
#[derive(Clone, Debug)]
pub(crate) enum Broken {
    /// It broke what a flush, FUA or multi-conn promises.
    Promise(Box<Violation>),
    /// It shows data that nobody modifies in two versions.
    Image(Difference),
    /// It broke the rules of the protocol, in words.
    Protocol(String),
}

/// What was answered with success.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    pub(crate) reads: u64,
    pub(crate) writes: u64,
    pub(crate) zeroes: u64,
    pub(crate) trims: u64,
    pub(crate) fua: u64,
    pub(crate) bytes_read: u64,
    pub(crate) bytes_written: u64,
}

#[derive(Debug)]
pub(crate) struct Observer {
    checker: Checker,
    image: Option<Image>,
    record: Option<Record>,
    counters: Counters,
    broken: Option<Broken>,
    /// Why nothing more can be observed.
    failure: Option<String>,
}

impl Observer {
    /// Checks what is promised. `immutable`: nobody modifies anything, so that all reads have to
    /// agree.
    pub(crate) fn new(promise: Promise, granule: u64, immutable: bool) -> Self {
        Self {
            checker: Checker::new(promise, granule),
            image: immutable.then(|| Image::new(granule)),
            record: None,
            counters: Counters::default(),
            broken: None,
            failure: None,
        }
    }

    /// Has all events written to a file.
    ///
    /// # Errors
    ///
    /// If it cannot be created.
    pub(crate) fn record_to(&mut self, path: &Path, header: &Header) -> Result<()> {
        let record = Record::create(path, header);
        let record = record.with_context(|| format!("cannot write {}", path.display()))?;
        self.record = Some(record);
        Ok(())
    }

    /// The next event.
    pub(crate) fn record(&mut self, event: &Event) {
        if let Some(record) = &mut self.record
            && let Err(error) = record.write(event)
        {
            self.record = None;
            self.fail(format!("cannot write the record: {error}"));
        }
        match self.checker.record(event) {
            Ok(()) => {}
            Err(CheckError::Violation(violation)) => self.accuse(Broken::Promise(violation)),
            Err(error) => self.fail(format!("{error}, which is a mistake in this program")),
        }
    }

    /// A command was answered. What it was is known to whoever sent it.
    pub(crate) fn replied(&mut self, conn: u32, cookie: u64, command: &Command, outcome: Outcome) {
        if outcome != Outcome::Failed {
            self.counters.count(command);
        }
        if let (Command::Read { extent }, Outcome::Data(contents)) = (command, &outcome) {
            self.look(conn, *extent, contents);
        }
        self.record(&Event::Reply {
            conn,
            cookie,
            outcome,
        });
    }

    fn look(&mut self, conn: u32, extent: Extent, contents: &Contents) {
        // The number that the reply will have, which is recorded next.
        let event = self.checker.summary().events;
        let Some(image) = &mut self.image else {
            return;
        };
        if let Err(difference) = image.look(conn, event, extent, contents) {
            self.accuse(Broken::Image(difference));
        }
    }

    /// The first accusation counts; others may only follow from it.
    pub(crate) fn accuse(&mut self, broken: Broken) {
        self.broken.get_or_insert(broken);
    }

    fn fail(&mut self, why: String) {
        self.failure.get_or_insert(why);
    }

    pub(crate) const fn broken(&self) -> Option<&Broken> {
        self.broken.as_ref()
    }

    pub(crate) fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    pub(crate) const fn summary(&self) -> Summary {
        self.checker.summary()
    }

    pub(crate) const fn counters(&self) -> Counters {
        self.counters
    }

    /// Nothing more comes: the record is complete.
    pub(crate) fn finish(&mut self) {
        if let Some(record) = self.record.take()
            && let Err(error) = record.finish()
        {
            self.fail(format!("cannot write the record: {error}"));
        }
    }
}

impl Counters {
    fn count(&mut self, command: &Command) {
        let length = command.extent().map_or(0, |extent| extent.length);
        self.fua += u64::from(command.has_fua());
        match command {
            Command::Read { .. } => {
                self.reads += 1;
                self.bytes_read += length;
            }
            Command::Write { .. } => {
                self.writes += 1;
                self.bytes_written += length;
            }
            Command::Zero { .. } => self.zeroes += 1,
            Command::Trim { .. } => self.trims += 1,
            // Flushes are counted by the checker.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use nbd_proto::conformance::{Clause, History};

    use super::*;

    fn observe(observer: &mut Observer, events: &str) {
        for line in events.lines() {
            observer.record(&line.trim().parse().unwrap());
        }
    }

    const HEADER: Header = Header::new(512, super::super::import::Promised::MultiConn);

    const LOST: &str = "c0 write #1 0+512 =1
        c0 done #1
        c1 flush #1
        c1 done #1
        c2 read #1 0+512
        c2 data #1 =0";

    #[test]
    fn what_a_flush_has_covered_is_missed() {
        let mut observer = Observer::new(Promise::MULTI_CONN, 512, false);
        observe(&mut observer, LOST);
        let Some(Broken::Promise(violation)) = observer.broken() else {
            panic!("{observer:?}");
        };
        assert_eq!(violation.clause(), Clause::Visibility);
        assert_eq!(observer.failure(), None);
    }

    #[test]
    fn the_record_is_the_history() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("history");
        let mut observer = Observer::new(Promise::MULTI_CONN, 512, false);
        observer.record_to(&path, &HEADER).unwrap();
        observe(&mut observer, LOST);
        observer.finish();
        let written: History = std::fs::read_to_string(path).unwrap().parse().unwrap();
        let expected: History = format!("granule 512\n{LOST}").parse().unwrap();
        assert_eq!(written, expected);
    }

    #[test]
    fn a_record_that_cannot_be_written_is_no_verdict() {
        let mut observer = Observer::new(Promise::MULTI_CONN, 512, false);
        if observer.record_to(Path::new("/dev/full"), &HEADER).is_ok() {
            observe(&mut observer, LOST);
            observer.finish();
            assert!(observer.failure().is_some());
        }
    }
}
