//! The command line.

use std::ffi::OsString;
use std::ops::RangeInclusive;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;

use super::endpoint::Place;
use super::size::{display_size, parse_size};

/// No more than this is held in memory.
const MAX_IN_FLIGHT: u64 = 1 << 30;

const REQUEST_SIZES: RangeInclusive<u32> = 512..=32 << 20;

/// Copy from SRC to DST: NBD servers, files or block devices.
///
/// An NBD URI is nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH. Everything else is
/// the name of a file. A destination file is created, or its contents are replaced; a destination
/// export must be at least as large as the source, and keeps what it has beyond.
///
/// Success (exit status 0) means that every byte arrived, and that the destination was flushed if
/// it can be. If the copy fails (1) or is stopped by a signal (128 + its number), the destination
/// is left as it is, incomplete.
#[derive(Clone, Debug, Parser)]
#[command(name = "copy", version)]
pub(crate) struct Options {
    /// Where to read: an NBD URI or a file
    #[arg(value_name = "SRC")]
    source: OsString,

    /// Where to write: an NBD URI or a file
    #[arg(value_name = "DST")]
    destination: OsString,

    /// How many requests are in flight at once
    #[arg(long, value_name = "N", default_value = "16",
          value_parser = clap::value_parser!(u16).range(1..=1024))]
    requests: u16,

    /// How many bytes are moved by one request, such as 65536, 64K or 1M; less if a server wants
    /// less
    #[arg(long, value_name = "BYTES", default_value = "256K", value_parser = parse_request_size)]
    request_size: u32,

    /// How long a server may take to connect, and later be silent while it has something to do
    #[arg(long, value_name = "SECONDS", default_value = "60",
          value_parser = clap::value_parser!(u32).range(1..=86400))]
    timeout: u32,

    /// No progress bar, no summary, no remarks: only errors
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

impl Options {
    pub(crate) fn source(&self) -> Result<Place> {
        Place::parse(&self.source).context("the source is no NBD URI")
    }

    pub(crate) fn destination(&self) -> Result<Place> {
        Place::parse(&self.destination).context("the destination is no NBD URI")
    }

    /// As many as were asked for, or as memory is to be used for.
    pub(crate) fn requests(&self) -> usize {
        let most = (MAX_IN_FLIGHT / u64::from(self.request_size)).max(1);
        usize::try_from(most).map_or(usize::from(self.requests), |most| {
            most.min(self.requests.into())
        })
    }

    pub(crate) const fn request_size(&self) -> u32 {
        self.request_size
    }

    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout.into())
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
    fn large_requests_are_fewer_so_that_memory_is_bounded() {
        let options = |requests: &str, size: &str| {
            let arguments = [
                "copy",
                "a",
                "b",
                "--requests",
                requests,
                "--request-size",
                size,
            ];
            Options::try_parse_from(arguments).unwrap()
        };
        assert_eq!(options("16", "256K").requests(), 16);
        assert_eq!(options("1024", "32M").requests(), 32);
    }
}
