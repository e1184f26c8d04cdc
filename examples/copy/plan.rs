//! How a copy is to be made, and why: what the ends allow, and what the user wants.

use std::fmt::Write as _;

use anyhow::{Result, ensure};
use indicatif::BinaryBytes;
use nbd_proto::multiplex::Flushing;
use nbd_proto::session::Session;

use super::connect::Ways;
use super::endpoint::{Destination, Source, Zeroing};
use super::feeder::Cut;
use super::options::Options;
use super::shared::connection::Connection;
use super::state::Job;

/// A server may refuse to zero more at once than it takes as data (proto.md "Size constraints").
const MAX_HOLE: u32 = 32 << 20;

/// What is zeroed at once where that is not fast: little enough to be answered in time.
const SLOW_HOLE: u32 = 1 << 20;

/// How much goes into one request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    cut: Cut,
    hole: u32,
}

impl Sizes {
    /// Blocks that suit both ends (proto.md "Size constraints").
    pub(crate) fn new(
        options: &Options,
        source: &Source,
        destination: Option<&Destination>,
    ) -> Result<Self> {
        let size = source.size();
        ensure!(
            i64::try_from(size).is_ok(),
            "the source is said to be {size} bytes long, which nothing can be"
        );
        let destination = destination.and_then(Destination::connection);
        let sessions: Vec<_> = [source.connection(), destination]
            .into_iter()
            .flatten()
            .map(Connection::session)
            .collect();
        let preferred = sessions.iter().map(|it| it.block_sizes().preferred());
        let mut block = options.request_size(preferred.max().unwrap_or(1));
        let mut unit = 512;
        for session in &sessions {
            let smallest = session.block_sizes().minimum();
            ensure!(
                size.is_multiple_of(smallest.into()),
                "the source has {size} bytes, which is not a multiple of the {smallest} bytes \
                 that an end of the copy takes at least at once: make it a multiple"
            );
            unit = unit.max(smallest);
            block = block.min(max_payload(session));
        }
        // Not below one unit, where the user wants less.
        let block = block - block % unit;
        let block = if block == 0 { unit } else { block };
        ensure!(
            sessions.iter().all(|session| block <= max_payload(session)),
            "what one end takes at most at once is less than what the other takes at least"
        );
        let hole = destination.map_or(MAX_HOLE, |it| MAX_HOLE.min(max_payload(it.session())));
        Ok(Self {
            cut: Cut {
                block: block.into(),
                unit: unit.into(),
                size,
            },
            hole: hole - hole % block,
        })
    }

    pub(crate) const fn size(&self) -> u64 {
        self.cut.size
    }

    /// What so many workers are to do.
    pub(crate) fn job(&self, options: &Options, ways: &Ways, workers: usize) -> Job {
        let block = self.cut.block;
        let slow_hole = u64::from(SLOW_HOLE) / block * block;
        let flushing = ways.flushing();
        Job {
            cut: self.cut,
            hole: self.hole.into(),
            slow_hole: slow_hole.clamp(block, u64::from(self.hole).max(block)),
            requests: options.requests(block, workers),
            timeout: options.timeout(),
            flush_every: options.flush_every(),
            fua: flushing == Flushing::FuaOnly,
            flush: matches!(flushing, Flushing::AnyOne | Flushing::EachDirty),
            flush_each: flushing == Flushing::EachDirty,
            allocate: options.allocate,
            is_zero: options.destination_is_zero,
            verify: options.verify,
        }
    }
}

fn max_payload(session: &Session) -> u32 {
    session.block_sizes().max_payload()
}

/// What would be done, for `--dry-run`. A destination that is not opened is a file.
pub(crate) fn describe(
    options: &Options,
    ways: &Ways,
    sizes: &Sizes,
    source: &Source,
    destination: Option<&Destination>,
) -> String {
    let workers = ways.workers(options.connections());
    let job = sizes.job(options, ways, workers);
    let Cut { size, block, .. } = job.cut;
    let mut text = String::new();
    // Writing to a string cannot fail.
    let mut line = |name: &str, words: String| {
        let _ = writeln!(text, "{name:<13}{words}");
    };
    line("size", format!("{size} bytes ({})", BinaryBytes(size)));
    let plans = ways.to_string();
    let threads = match workers {
        1 => "1 thread".to_owned(),
        _ => format!("{workers} threads, each with a connection of its own to each server"),
    };
    line("threads", threads);
    line(
        "requests",
        format!(
            "{} at a time in each thread, of {block} bytes",
            job.requests
        ),
    );
    line("holes", holes(source).to_owned());
    line("zeroes", zeroes(options, &job, destination));
    line("flush", flush(&job));
    text + &plans
}

fn holes(source: &Source) -> &'static str {
    match (source.file(), source.has_status()) {
        (Some(_), _) => "as the file system knows them (SEEK_HOLE): they are not read",
        (None, true) => "by block status (base:allocation): what reads as zeroes is not read",
        (None, false) => "not known: the server has no block status, all is read",
    }
}

fn zeroes(options: &Options, job: &Job, destination: Option<&Destination>) -> String {
    let zeroing = destination.map_or(Zeroing::Unneeded, |it| {
        it.zeroing(options.destination_is_zero)
    });
    match (zeroing, destination) {
        (Zeroing::Unneeded, _) if options.destination_is_zero => {
            "left out: the destination is said to be zero".to_owned()
        }
        (Zeroing::Unneeded, _) => "left out: the file is emptied first".to_owned(),
        (Zeroing::Command, Some(destination)) => {
            let fast = if destination.has_fast_zero() {
                format!(", or {} where that is not fast", job.slow_hole)
            } else {
                String::new()
            };
            format!("by command, up to {} bytes at once{fast}", job.hole)
        }
        _ => "written as data: the destination has no command for them".to_owned(),
    }
}

fn flush(job: &Job) -> String {
    let every = match job.flush_every {
        Some(bytes) if job.flush => format!(", and after every {}", BinaryBytes(bytes)),
        _ => String::new(),
    };
    match (job.flush, job.flush_each, job.fua) {
        (true, true, _) => format!("every connection, at the end{every}"),
        (true, false, _) => format!("one for all, at the end{every}"),
        (false, _, true) => "none: everything is written with FUA".to_owned(),
        (false, _, false) => "none: when the copy is on permanent storage is not known".to_owned(),
    }
}
