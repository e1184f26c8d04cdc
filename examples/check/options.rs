//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

use super::import::ImportOptions;

/// Find out whether an NBD server keeps its promise: whether a flush, FUA and multi-conn do what
/// they have to. It OVERWRITES parts of the export.
///
/// Several connections play schedules on which servers are known to lose data or to show old data,
/// and random ones, with contents that say who wrote them. Everything that is sent and answered is
/// checked as it comes. The verdict is HELD, so far as it was tried, or BROKEN, with the few events
/// that prove it.
///
/// URI is nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH, and with TLS nbds://... or
/// nbds+unix://..., where tls-certificates=DIRECTORY names the place of ca-cert.pem and, if the
/// server asks for them, client-cert.pem and client-key.pem. Nobody else may write to the export
/// meanwhile. About 1 MiB of it is written to (4 MiB if its blocks are large), in up to 16 places
/// from its beginning to its end, and what was written is left there.
///
/// With --restart-command, the server is killed under load, and what is left then is checked, too.
/// That is no power failure: what the server has handed to its operating system outlives it, be it
/// on permanent storage or not. So a server that never calls fsync is not found out in this way.
///
/// Exit status: 0 if the promise held; 1 if it was broken, or a rule of the protocol was; 2 if the
/// command line is wrong, or it could not be found out, as when there is no server or it does not
/// answer; 128 + its number if a signal ended it before. Of a recorded history (--import): 0 if
/// nothing in it contradicts the promise, also if nothing could; 1 if it does; 2 if it cannot be
/// read, is no history, or is one that cannot have happened.
#[derive(Clone, Debug, Parser)]
#[command(name = "check", version)]
pub(crate) struct Options {
    /// Which server, and which of its exports
    #[arg(value_name = "URI", required_unless_present = "import")]
    pub(crate) uri: Option<String>,

    /// How many connections. With one, nothing between connections is checked, and it stays open to
    /// the end
    #[arg(long, short = 'C', value_name = "N", default_value = "4",
          value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) connections: u32,

    /// For how long
    #[arg(long, value_name = "SECONDS", default_value = "30",
          value_parser = clap::value_parser!(u32).range(1..=604_800))]
    seconds: u32,

    /// End after so many commands, if the time is not up before
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) operations: Option<u64>,

    /// Decide by this number, as an earlier run did; but what a server does with it depends on
    /// time, too
    #[arg(long, value_name = "SEED")]
    pub(crate) seed: Option<u64>,

    /// Kill the server now and then by this command of the shell. It has to kill the server at
    /// once (kill -9), wait for its end, start it again at the same address, and return when it
    /// serves; each time in the same way, so that nothing that outlived one kill, as what is
    /// in the system's cache, is lost by the next. It finds the URI in NBD_URI, and in NBD_RESTART
    /// how often it was run. What it and the server say is dropped: redirect it to keep it
    #[arg(long, value_name = "CMD", conflicts_with = "read_only")]
    pub(crate) restart_command: Option<String>,

    /// How often to do that
    #[arg(long, value_name = "N", default_value = "5", requires = "restart_command",
          value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) restarts: u32,

    /// Write nothing: only check that all connections read the same, and go on to do so. It is
    /// the only thing that is done with an export that is read-only
    #[arg(long)]
    pub(crate) read_only: bool,

    /// Write the verdict and all that leads to it to a file, as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,

    /// Write all events to a file: as JSON lines if its name ends in .jsonl, or else as text
    #[arg(long, value_name = "FILE")]
    pub(crate) record: Option<PathBuf>,

    /// Overwrite what is in the export. Without, it has to be empty: all zeroes
    #[arg(long, short)]
    pub(crate) yes: bool,

    /// Trust servers that are certified by this authority, a PEM file
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_ca: Option<PathBuf>,

    /// How long the server may take to connect, and to answer a command; and the restart command
    /// to return
    #[arg(long, value_name = "SECONDS", default_value = "60",
          value_parser = clap::value_parser!(u32).range(1..=86400))]
    timeout: u32,

    /// No progress bar, and no words but the verdict
    #[arg(long, short)]
    pub(crate) quiet: bool,

    #[command(flatten)]
    pub(crate) history: ImportOptions,
}

impl Options {
    pub(crate) const fn seconds(&self) -> Duration {
        Duration::from_secs(self.seconds as u64)
    }

    pub(crate) const fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout as u64)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(arguments: &[&str]) -> Result<Options, clap::Error> {
        Options::try_parse_from([&["check"], arguments].concat())
    }

    #[test]
    fn the_command_line_is_consistent() {
        Options::command().debug_assert();
    }

    #[test]
    fn a_server_is_all_that_has_to_be_named() {
        let options = parse(&["nbd://h"]).unwrap();
        assert_eq!((options.connections, options.seed), (4, None));
        assert_eq!(options.seconds(), Duration::from_secs(30));
        assert!(parse(&[]).is_err());
    }

    #[test]
    fn a_history_is_judged_instead_of_a_server() {
        let options = parse(&["--import", "file", "--json", "out"]).unwrap();
        assert_eq!((options.uri, options.history.format), (None, None));
    }

    #[test]
    fn limits_are_limits() {
        for wrong in [
            &["--connections", "0"][..],
            &["--connections", "65"],
            &["--seconds", "0"],
            &["--operations", "0"],
            &["--timeout", "0"],
            &["--restarts", "3"],
            &["--restart-command", "true", "--restarts", "0"],
            &["--restart-command", "true", "--read-only"],
            &["--import", "file"],
            &["--format", "json"],
            &["--promise", "multi-conn"],
        ] {
            assert!(parse(&[&["nbd://h"], wrong].concat()).is_err(), "{wrong:?}");
        }
    }
}
