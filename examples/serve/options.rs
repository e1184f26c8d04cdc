//! The command line.

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand};
use nbd_proto::flush::{Acknowledge, Config, FuaOnReads, Mode, Overlap, ThreadModel, TrackDirty};
use nbd_proto::wire::Name;

use super::size::parse_size;

/// An NBD server over memory or a file, for any number of connections.
///
/// Without arguments it serves 1 GiB of memory on 127.0.0.1, port 10809, to whoever connects.
///
/// Exit status: 0 if it was stopped, and has kept what clients wrote; 1 if it cannot serve, or if
/// some of that may be lost; 2 if the command line is wrong; 128 + its number if a further signal
/// ended it before it had stopped.
#[derive(Debug, Parser)]
#[command(name = "serve", version, max_term_width = 100)]
pub(crate) struct Options {
    #[command(subcommand)]
    pub(crate) storage: Option<Storage>,

    #[command(flatten)]
    pub(crate) sockets: Sockets,

    #[command(flatten)]
    pub(crate) export: Export,

    #[command(flatten)]
    pub(crate) tls: Tls,

    #[command(flatten)]
    pub(crate) flush: Flush,

    #[command(flatten)]
    pub(crate) delays: Delays,

    /// How many commands of one connection may wait for storage at the same time
    #[arg(long, default_value_t = 16, global = true,
          value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: u16,

    /// How many clients may be connected at the same time; more are hung up on. Each takes a
    /// thread (and others while commands, flushes or replies of it wait), an open file, and some
    /// memory: the default stays below the usual limit of 1024 open files (`ulimit -n`)
    #[arg(long, value_name = "N", default_value_t = 1000, global = true,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_connections: u32,

    /// Log connections, commands and backend flushes to standard error. If it is not read as fast
    /// as lines are written, some are left out, and their number is told
    #[arg(long, global = true)]
    pub(crate) log: bool,
}

impl Options {
    /// What the command line says.
    ///
    /// # Errors
    ///
    /// If it is wrong, or asks for help.
    pub(crate) fn read(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let options = Self::try_parse_from(arguments)?;
        // Not by attributes: options may stand on both sides of the storage, and each side would
        // miss those of the other.
        let wrong = match (&options.storage, options.export.size) {
            (Some(Storage::File { .. }), Some(_)) => Err((
                ErrorKind::ArgumentConflict,
                "--size is for memory: a file is served as large as it is; \
                 `truncate -s SIZE FILE` makes it larger",
            )),
            _ => {
                let files = options.tls.files().map(drop);
                files.map_err(|why| (ErrorKind::MissingRequiredArgument, why))
            }
        };
        match wrong {
            Ok(()) => Ok(options),
            Err((kind, why)) => Err(Self::command().error(kind, why)),
        }
    }
}

/// What is served.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Storage {
    /// Memory that is empty at first, and takes only as much as is written (the default)
    Memory,
    /// A file or block device, which has to exist
    File {
        /// Its path
        path: PathBuf,
    },
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Sockets")]
pub(crate) struct Sockets {
    /// The TCP port; 0 lets the system choose one
    #[arg(long, global = true)]
    pub(crate) port: Option<u16>,

    /// The address to listen on; the protocol has no passwords, so think before opening
    /// it up, or use --tls-client-ca with --tls-required
    #[arg(long, value_name = "ADDRESS", global = true)]
    pub(crate) bind: Option<IpAddr>,

    /// Listen on a unix socket; then TCP only with --port or --bind
    #[arg(long, value_name = "PATH", global = true)]
    pub(crate) unix: Vec<PathBuf>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Export")]
pub(crate) struct Export {
    /// The size of the memory: bytes, or with a suffix K, M, G, T, P [default: 1G]
    #[arg(long, value_parser = parse_size, global = true)]
    pub(crate) size: Option<u64>,

    /// A name under which the storage is exported; may be given several times. Without it, only
    /// the default export, whose name is empty
    #[arg(long = "export", value_name = "NAME", global = true)]
    pub(crate) names: Vec<Name>,

    /// What clients that list the exports, or ask about one, are told besides its name: for people
    #[arg(long, value_name = "TEXT", global = true)]
    pub(crate) description: Option<Name>,

    /// Do not tell clients which exports there are; those that know a name can use it
    #[arg(long, global = true)]
    pub(crate) no_list: bool,

    /// Refuse everything that would modify the storage
    #[arg(long, global = true)]
    pub(crate) read_only: bool,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "TLS")]
pub(crate) struct Tls {
    /// The server's certificate, and after it those that lead to its authority, in PEM form. With
    /// it and --tls-key, clients can use TLS
    #[arg(long, value_name = "FILE", global = true)]
    pub(crate) tls_cert: Option<PathBuf>,

    /// The private key of the certificate, in PEM form without a password
    #[arg(long, value_name = "FILE", global = true)]
    pub(crate) tls_key: Option<PathBuf>,

    /// Authorities, in PEM form: who comes with TLS has to have a certificate from one of them.
    /// Who comes without TLS is served all the same, unless there is --tls-required
    #[arg(long, value_name = "FILE", global = true)]
    pub(crate) tls_client_ca: Option<PathBuf>,

    /// Serve only clients that use TLS
    #[arg(long, global = true)]
    pub(crate) tls_required: bool,
}

impl Tls {
    /// The certificate and its key, if there is to be TLS.
    ///
    /// # Errors
    ///
    /// If something is missing that other options need.
    pub(crate) fn files(&self) -> Result<Option<(&Path, &Path)>, &'static str> {
        match (&self.tls_cert, &self.tls_key) {
            (Some(cert), Some(key)) => Ok(Some((cert, key))),
            (Some(_), None) => Err("--tls-cert needs its private key: give it with --tls-key"),
            (None, Some(_)) => Err("--tls-key needs its certificate: give it with --tls-cert"),
            (None, None) if self.tls_client_ca.is_some() || self.tls_required => {
                Err("there is no TLS without a certificate: give one with --tls-cert, --tls-key")
            }
            (None, None) => Ok(None),
        }
    }
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Caching and flushing")]
pub(crate) struct Flush {
    /// Put a write-back cache over the storage, one per connection
    #[arg(long, global = true)]
    pub(crate) cache: bool,

    /// Which caches a client's flush reaches, and whether multi-conn is advertised: auto (as the
    /// storage needs it), emulate (all that need it; yes), plugin (its own; if the storage has it),
    /// disable (its own; no) or unsafe (its own; yes, true or not: data is lost)
    #[arg(long, value_name = "MODE", default_value_t = Mode::Auto, global = true)]
    pub(crate) multi_conn: Mode,

    /// How much is tracked to avoid flushes: connection, fast (whether all are clean) or off
    #[arg(long, value_name = "LEVEL", default_value_t = TrackDirty::Connection, global = true)]
    pub(crate) track_dirty: TrackDirty,

    /// What is done at the same time: parallel, serialize_requests (never two calls on one
    /// backend handle) or serialize_connections (one connection after the other)
    #[arg(long, value_name = "MODEL", default_value_t = ThreadModel::Parallel, global = true)]
    pub(crate) thread_model: ThreadModel,

    /// What happens where connections modify the same bytes: order-writes, ignore, or coherent
    /// (reads, too, find what others have written, without a flush)
    #[arg(long, value_name = "HOW", default_value_t = Overlap::OrderWrites, global = true)]
    pub(crate) overlap: Overlap,

    /// What FUA means on a read: ignore, or preflush (a flush comes before it)
    #[arg(long, value_name = "MEANING", default_value_t = FuaOnReads::Ignore, global = true)]
    pub(crate) fua_on_reads: FuaOnReads,

    /// When writes are answered: on-completion, write-through (when they are on permanent
    /// storage), on-receipt (before they are executed; the next flush reports failures) or
    /// ignore-flush (flushes do nothing: a crash loses data)
    #[arg(long, value_name = "WHEN", default_value_t = Acknowledge::OnCompletion, global = true)]
    pub(crate) acknowledge: Acknowledge,
}

impl Flush {
    pub(crate) fn config(&self) -> Config {
        Config::new()
            .with_mode(self.multi_conn)
            .with_track_dirty(self.track_dirty)
            .with_thread_model(self.thread_model)
            .with_overlap(self.overlap)
            .with_fua_on_reads(self.fua_on_reads)
            .with_acknowledge(self.acknowledge)
    }

    /// What can be said of the data in a file once the server has stopped without a failure.
    pub(crate) fn at_the_end(&self) -> &'static str {
        match (self.cache, self.multi_conn) {
            (true, Mode::Unsafe) => "what clients have not flushed is lost",
            _ => "all data is on permanent storage",
        }
    }
}

/// Delays, to shape schedules from outside.
#[derive(Debug, Args)]
#[command(next_help_heading = "Delays (milliseconds, below the coordination of flushes)")]
pub(crate) struct Delays {
    /// Before each read
    #[arg(long, value_name = "MS", default_value = "0", value_parser = parse_delay, global = true)]
    pub(crate) delay_read: Duration,

    /// Before each write, zeroing and trim
    #[arg(long, value_name = "MS", default_value = "0", value_parser = parse_delay, global = true)]
    pub(crate) delay_write: Duration,

    /// Before each flush of a backend handle
    #[arg(long, value_name = "MS", default_value = "0", value_parser = parse_delay, global = true)]
    pub(crate) delay_flush: Duration,
}

fn parse_delay(text: &str) -> Result<Duration, String> {
    let milliseconds: u32 = text
        .parse()
        .map_err(|_| "not a whole number of milliseconds".to_owned())?;
    Ok(Duration::from_millis(milliseconds.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Options::command().debug_assert();
    }

    #[test]
    fn options_may_stand_before_or_after_the_storage() {
        for line in [
            "serve --port 0 --cache file disk.img",
            "serve file disk.img --cache --port 0",
        ] {
            let options = Options::try_parse_from(line.split(' ')).unwrap();
            assert!(options.flush.cache);
            assert_eq!(options.sockets.port, Some(0));
            assert!(matches!(options.storage, Some(Storage::File { .. })));
        }
        let options = Options::try_parse_from(["serve"]).unwrap();
        assert!(options.storage.is_none());
        assert_eq!(options.export.size, None);
    }

    #[test]
    fn what_belongs_together_may_stand_on_both_sides_of_the_storage() {
        let line = "serve --tls-cert c --tls-required file disk.img --tls-key k";
        let options = Options::read(line.split(' ').map(Into::into)).unwrap();
        let files = options.tls.files().unwrap();
        assert_eq!(files, Some((Path::new("c"), Path::new("k"))));
    }

    #[test]
    fn it_tells_its_version_as_the_other_examples_do() {
        let asked = Options::try_parse_from(["serve", "--version"]).unwrap_err();
        assert_eq!(asked.kind(), clap::error::ErrorKind::DisplayVersion);
    }

    #[test]
    fn the_words_of_the_flush_coordinator_reach_it() {
        let line = "serve --multi-conn emulate --track-dirty off --thread-model serialize_requests \
                    --overlap coherent --fua-on-reads preflush";
        let options = Options::try_parse_from(line.split_ascii_whitespace()).unwrap();
        let expected = Config::new()
            .with_mode(Mode::Emulate)
            .with_track_dirty(TrackDirty::Off)
            .with_thread_model(ThreadModel::SerializeRequests)
            .with_overlap(Overlap::Coherent)
            .with_fua_on_reads(FuaOnReads::Preflush);
        assert_eq!(options.flush.config(), expected);
    }

    #[test]
    fn wrong_values_are_refused_with_the_right_ones() {
        let error = Options::try_parse_from(["serve", "--multi-conn", "yes"]).unwrap_err();
        assert!(error.to_string().contains("emulate"), "{error}");
        let error = Options::try_parse_from(["serve", "--thread-model", "1"]).unwrap_err();
        assert!(error.to_string().contains("serialize_requests"), "{error}");
        let error = Options::try_parse_from(["serve", "--acknowledge", "never"]).unwrap_err();
        assert!(error.to_string().contains("on-receipt"), "{error}");
        assert!(Options::try_parse_from(["serve", "--size", "1X"]).is_err());
        assert!(Options::try_parse_from(["serve", "--threads", "0"]).is_err());
    }
}
