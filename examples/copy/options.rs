//! The command line.

use std::ffi::OsString;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;

use super::endpoint::Place;

/// No more than this is held in memory.
const MAX_IN_FLIGHT: u64 = 1 << 30;

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
    match parse_bytes(text) {
        Some(bytes @ 512..=0x200_0000) => u32::try_from(bytes).map_err(|error| error.to_string()),
        Some(_) => Err("it has to be from 512 to 32M".to_owned()),
        None => Err("write a number of bytes, such as 65536, 64K or 1M".to_owned()),
    }
}

fn parse_bytes(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match text.get(digits.len()..)?.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        _ => return None,
    };
    if !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_can_be_written_with_binary_suffixes() {
        for (text, bytes) in [
            ("512", Some(512)),
            ("64k", Some(65536)),
            ("64KiB", Some(65536)),
            ("1M", Some(1 << 20)),
            ("1G", Some(1 << 30)),
            ("", None),
            ("K", None),
            ("-1", None),
            ("+1", None),
            ("1T", None),
            ("1 K", None),
            ("18446744073709551615K", None),
        ] {
            assert_eq!(parse_bytes(text), bytes, "{text:?}");
        }
    }

    #[test]
    fn the_request_size_is_from_512_bytes_to_32_mib() {
        assert_eq!(parse_request_size("512"), Ok(512));
        assert_eq!(parse_request_size("32M"), Ok(1 << 25));
        for wrong in ["511", "0", "33M", "4G"] {
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
