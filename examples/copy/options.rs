//! The command line.

use std::ffi::OsString;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use nbd_proto::multiplex;

use super::connect::usual;
use super::place::Place;
use super::size::{display_size, parse_size};

/// No more than this is held in memory for data.
const MAX_IN_FLIGHT: u64 = 1 << 30;

const REQUEST_SIZES: RangeInclusive<u32> = 512..=32 << 20;

/// How much is moved by one request if nobody says otherwise, in bytes.
const USUAL_REQUEST: u32 = 256 << 10;

/// Copy from SRC to DST: NBD servers, files or block devices.
///
/// An NBD URI is nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH, and with TLS
/// nbds://... or nbds+unix://..., where tls-certificates=DIRECTORY names the place of ca-cert.pem
/// and, if the server asks for them, client-cert.pem and client-key.pem. Everything else is the
/// name of a file. A destination file is created, or its contents are replaced; a destination
/// export must be at least as large as the source, and keeps what it has beyond.
///
/// What the source says is zero is not read, and zeroes are not sent where the destination can be
/// told to make them.
///
/// Success (exit status 0) means that every byte arrived, and that the destination was flushed if
/// it can be. If the copy fails (1) or is stopped by a signal (128 + its number), the destination
/// is left as it is, incomplete; what of it is on permanent storage is said. 2 means that the
/// command line is wrong.
#[derive(Clone, Debug, Parser)]
#[command(name = "copy", version)]
pub(crate) struct Options {
    /// Where to read: an NBD URI or a file
    #[arg(value_name = "SRC")]
    source: OsString,

    /// Where to write: an NBD URI or a file
    #[arg(value_name = "DST")]
    destination: OsString,

    /// How many connections to each server, at most, and how many threads: a number, or auto: one
    /// for each processor, but no more than 4. Less if a server does not advertise multi-conn, see
    /// --caution
    #[arg(long, short = 'C', value_name = "N", default_value = "auto",
          value_parser = parse_connections)]
    connections: Connections,

    /// What to do where a server does not advertise multi-conn
    #[arg(long, value_name = "HOW", value_enum, default_value_t = Caution::Strict)]
    caution: Caution,

    /// How many requests are in flight at once on each connection
    #[arg(long, value_name = "N", default_value = "16",
          value_parser = clap::value_parser!(u16).range(1..=1024))]
    requests: u16,

    /// How many bytes are moved by one request, such as 65536, 64K or 1M; less if a server wants
    /// less [default: 256K, or what a server prefers]
    #[arg(long, value_name = "BYTES", value_parser = parse_request_size)]
    request_size: Option<u32>,

    /// The destination reads as zeroes already: zeroes of the source are left out. If that is not
    /// so, the copy is wrong
    #[arg(long)]
    pub(crate) destination_is_zero: bool,

    /// Have zeroes take room in the destination, instead of making holes
    #[arg(long, conflicts_with = "destination_is_zero")]
    pub(crate) allocate: bool,

    /// Read both ends again once it is flushed, and compare
    #[arg(long)]
    pub(crate) verify: bool,

    /// Flush after every so many bytes, too, so that less is lost if the copy fails
    #[arg(long, value_name = "BYTES", default_value = "16G", value_parser = parse_size)]
    flush_every: u64,

    /// Say how it would be copied and why, and do not
    #[arg(long)]
    pub(crate) dry_run: bool,

    /// Trust servers that are certified by this authority, a PEM file
    #[arg(long, value_name = "FILE")]
    tls_ca: Option<PathBuf>,

    /// How long a server may take to connect, and later be silent while it has something to do
    #[arg(long, value_name = "SECONDS", default_value = "60",
          value_parser = clap::value_parser!(u32).range(1..=86400))]
    timeout: u32,

    /// No progress bar, no summary, no remarks: only errors
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Connections {
    Auto,
    Number(u32),
}

/// How far to go where multi-conn is not advertised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Caution {
    /// One connection
    Strict,
    /// One connection to write; several to read, if you know that nobody else writes
    Readers,
    /// Several also to write, each for ranges of its own and each flushed, if you know that they
    /// show the same data
    Insist,
}

impl Options {
    /// Both ends.
    pub(crate) fn places(&self) -> Result<[Place; 2]> {
        let authority = self.tls_ca.as_deref();
        let source = Place::parse(&self.source, authority).context("the source cannot be used")?;
        let destination =
            Place::parse(&self.destination, authority).context("the destination cannot be used")?;
        ensure!(
            authority.is_none() || source.has_tls() || destination.has_tls(),
            "--tls-ca is for nbds:// and nbds+unix://, which mean TLS"
        );
        Ok([source, destination])
    }

    /// At most so many connections to each server.
    pub(crate) fn connections(&self) -> u32 {
        match self.connections {
            Connections::Auto => usual(),
            Connections::Number(number) => number,
        }
    }

    pub(crate) const fn caution(&self) -> multiplex::Caution {
        match self.caution {
            Caution::Strict => multiplex::Caution::Strict,
            Caution::Readers => multiplex::Caution::Readers,
            Caution::Insist => multiplex::Caution::Insist,
        }
    }

    /// As many on each connection as were asked for, or as memory is to be used for.
    pub(crate) fn requests(&self, request_size: u64, connections: usize) -> usize {
        let each = request_size
            .saturating_mul(connections.max(1) as u64)
            .max(1);
        // Comparing takes two buffers.
        let each = if self.verify { each * 2 } else { each };
        let most = (MAX_IN_FLIGHT / each).max(1);
        usize::try_from(most).map_or(usize::from(self.requests), |most| {
            most.min(self.requests.into())
        })
    }

    /// More than there can be in flight on one connection.
    pub(crate) fn capacity(&self) -> usize {
        // A block status and a flush besides.
        usize::from(self.requests) + 2
    }

    /// The size of requests for servers that prefer this, or nothing.
    pub(crate) fn request_size(&self, preferred: u32) -> u32 {
        let usual = || preferred.clamp(USUAL_REQUEST, *REQUEST_SIZES.end());
        self.request_size.unwrap_or_else(usual)
    }

    pub(crate) const fn flush_every(&self) -> Option<u64> {
        match self.flush_every {
            0 => None,
            bytes => Some(bytes),
        }
    }

    pub(crate) const fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout as u64)
    }
}

fn parse_connections(text: &str) -> Result<Connections, String> {
    match text.parse() {
        _ if text == "auto" => Ok(Connections::Auto),
        Ok(number @ 1..=256) => Ok(Connections::Number(number)),
        _ => Err("it has to be auto, or a number from 1 to 256".to_owned()),
    }
}

/// The protocol's maximum is 32 MiB where nothing else was negotiated.
fn parse_request_size(text: &str) -> Result<u32, String> {
    let bytes = parse_size(text)?;
    u32::try_from(bytes)
        .ok()
        .filter(|bytes| REQUEST_SIZES.contains(bytes))
        .ok_or_else(|| {
            let [least, most] =
                [REQUEST_SIZES.start(), REQUEST_SIZES.end()].map(|&size| display_size(size.into()));
            format!("it has to be from {least} to {most}")
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_size_is_from_512_bytes_to_32_mib() {
        assert_eq!(parse_request_size("512"), Ok(512));
        assert_eq!(parse_request_size("32M"), Ok(1 << 25));
        for wrong in ["511", "0", "33M", "4G", "1P", "256Q", ""] {
            assert!(parse_request_size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn connections_are_auto_or_a_number() {
        assert_eq!(parse_connections("auto"), Ok(Connections::Auto));
        assert_eq!(parse_connections("1"), Ok(Connections::Number(1)));
        for wrong in ["0", "257", "-1", "many", ""] {
            assert!(parse_connections(wrong).is_err(), "{wrong}");
        }
    }

    fn options(arguments: &[&str]) -> Options {
        Options::try_parse_from([&["copy", "a", "b"], arguments].concat()).unwrap()
    }

    #[test]
    fn large_requests_on_many_connections_are_fewer_so_that_memory_is_bounded() {
        let requests =
            |arguments: &[&str], size, connections| options(arguments).requests(size, connections);
        assert_eq!(requests(&["--requests", "16"], 256 << 10, 4), 16);
        assert_eq!(requests(&["--requests", "1024"], 32 << 20, 1), 32);
        assert_eq!(requests(&["--requests", "1024"], 32 << 20, 8), 4);
        assert_eq!(
            requests(&["--requests", "1024", "--verify"], 32 << 20, 8),
            2
        );
        assert_eq!(requests(&["--requests", "1024"], 32 << 20, 256), 1);
    }

    #[test]
    fn what_a_server_prefers_counts_where_the_user_has_no_wish() {
        assert_eq!(options(&[]).request_size(4096), 256 << 10);
        assert_eq!(options(&[]).request_size(1 << 20), 1 << 20);
        assert_eq!(options(&[]).request_size(1 << 31), 32 << 20);
        assert_eq!(
            options(&["--request-size", "4K"]).request_size(1 << 20),
            4096
        );
    }
}
