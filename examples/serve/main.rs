//! An NBD server over memory or a file.
//!
//! ```text
//! cargo run --release --example serve
//! ```
//!
//! It shows how the machines of the crate are wired to sockets and threads: a thread for each
//! connection reads requests, the flush coordinator decides what they need, and further threads
//! wait for what has to be waited for.

mod backend;
mod batch;
mod budget;
mod channel;
mod connection;
#[path = "../shared/count.rs"]
mod count;
mod crew;
mod execute;
mod input;
mod listener;
mod log;
mod options;
mod payload;
mod pool;
mod replies;
mod server;
#[expect(dead_code, reason = "a server leaves some signals alone")]
#[path = "../shared/signals.rs"]
mod signals;
#[path = "../shared/size.rs"]
mod size;
mod status;
mod stream;
mod tls;
#[path = "../shared/waiting.rs"]
mod waiting;

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use nbd_proto::handshake::TlsPolicy;
use nbd_proto::wire::Name;
use signal_hook::consts::{SIGINT, SIGTERM};

use backend::{Backend, CachedBackend, DelayBackend, Delays, FileBackend, MemoryBackend};
use listener::{Listener, accept_until};
use log::{Log, warn};
use options::{Options, Storage};
use server::{Server, Settings};
use signals::Signals;

/// How much memory is served if nobody says otherwise, in bytes.
const USUAL_SIZE: u64 = 1 << 30;

/// The most that the cache of one connection holds, in bytes.
const CACHE: usize = 64 << 20;

/// What the caches of all connections share, in bytes. Those that were filled before there were as
/// many may be above their share while they are not used.
const CACHES: usize = 512 << 20;

/// How long it may take to stop before it is said what it waits for.
const SOON: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let options = Options::read(std::env::args_os()).unwrap_or_else(|error| error.exit());
    if let Err(error) = log::start() {
        // Nobody holds anything yet that others could wait for.
        let _ = writeln!(io::stderr(), "serve: cannot start a thread: {error}");
        return ExitCode::FAILURE;
    }
    let status = match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            warn(format_args!("{error:#}"));
            ExitCode::FAILURE
        }
    };
    log::finish();
    status
}

fn run(options: &Options) -> Result<()> {
    let storage = open_storage(options)?;
    let mut exports = options.export.names.clone();
    if exports.is_empty() {
        exports.push(Name::default());
    }
    let settings = Settings {
        flush: options.flush.config(),
        exports,
        description: options.export.description.clone().unwrap_or_default(),
        listed: !options.export.no_list,
        read_only: options.export.read_only,
        threads: options.threads,
        most_connections: usize::try_from(options.max_connections).unwrap_or(usize::MAX),
        tls: tls::Offer::load(&options.tls)?,
        log: Log::new(options.log),
    };
    let server = Server::new(storage, settings)?;
    // A hangup is left alone: whether it ends a server that was started from a terminal is up to
    // how it was started.
    let signals = Signals::listen_to(&[SIGINT, SIGTERM]).context("cannot watch for signals")?;
    let listeners = Listener::open(&options.sockets)?;
    introduce(options, &server, &listeners);
    accept_until(&signals, &listeners, &server);
    drop(listeners);
    say(format_args!(
        "\nstopping: finishing what is in flight, and flushing (another Ctrl-C gives it up: what is \
         not flushed is lost)"
    ));
    let tell = || say(format_args!("{}", server.what_it_waits_for()));
    waiting::while_waiting(SOON, tell, || server.stop())
        .context("a flush failed: some of what clients have written may be lost")?;
    let data = match &options.storage {
        None | Some(Storage::Memory) => "what was in memory is gone",
        Some(Storage::File { .. }) => options.flush.at_the_end(),
    };
    say(format_args!("stopped, {data}"));
    Ok(())
}

fn open_storage(options: &Options) -> Result<Arc<dyn Backend>> {
    let mut storage: Arc<dyn Backend> = match &options.storage {
        None | Some(Storage::Memory) => Arc::new(
            MemoryBackend::new(options.export.size.unwrap_or(USUAL_SIZE), None)
                .context("cannot set up the memory")?,
        ),
        Some(Storage::File { path }) => {
            Arc::new(FileBackend::open(path, options.export.read_only)?)
        }
    };
    if options.flush.cache {
        storage = Arc::new(CachedBackend::within(storage, CACHE, CACHES));
    }
    let delays = Delays {
        read: options.delays.delay_read,
        write: options.delays.delay_write,
        flush: options.delays.delay_flush,
    };
    if !(delays.read.is_zero() && delays.write.is_zero() && delays.flush.is_zero()) {
        storage = Arc::new(DelayBackend::new(storage, delays));
    }
    Ok(storage)
}

/// Says what is served, where, and what to do with it.
fn introduce(options: &Options, server: &Server, listeners: &[Listener]) {
    let what = match &options.storage {
        None | Some(Storage::Memory) => "of memory, empty at first".to_owned(),
        Some(Storage::File { path }) => format!("in {}", path.display()),
    };
    let size = size::display_size(server.storage.size());
    let cache = match options.flush.cache {
        true => ", through a write-back cache per connection",
        false => "",
    };
    let read_only = if options.export.read_only {
        ", read-only"
    } else {
        ""
    };
    say(format_args!("serving {size} {what}{cache}{read_only}"));
    match server.tls.policy() {
        TlsPolicy::None => {}
        TlsPolicy::Selective => say(format_args!("with TLS for clients that want it")),
        TlsPolicy::Forced => say(format_args!("with TLS only")),
    }
    for listener in listeners {
        say(format_args!("listening on {}", listener.address()));
    }
    let Some(listener) = listeners.first() else {
        return;
    };
    let first = server.exports.first().map_or("", Name::as_str);
    let tls = server.tls.policy() == TlsPolicy::Forced;
    let uri = listener.uri(first, tls);
    say(format_args!("\ntry, from another terminal:"));
    say(format_args!("  nbdinfo '{uri}'"));
    if !tls {
        // It takes certificates in another way than by a URI.
        say(format_args!("  qemu-img info '{uri}'"));
    }
    if server.can.read_only {
        say(format_args!("  nbdcopy --progress '{uri}' disk.img"));
    } else {
        say(format_args!("  nbdcopy --progress disk.img '{uri}'"));
    }
    if let Listener::Tcp(_, address) = listener
        && !tls
    {
        let (ip, port) = (address.ip(), address.port());
        let name = match first {
            "" => String::new(),
            name => format!(" -N '{name}'"),
        };
        let several = if server.multi_conn { " -C 4" } else { "" };
        say(format_args!(
            "  sudo nbd-client{name} {ip} {port} /dev/nbd0{several}"
        ));
    }
    if tls {
        say(format_args!(
            "with tls-certificates=DIRECTORY in the URI, where ca-cert.pem is, and client-cert.pem \
             and client-key.pem"
        ));
    }
    say(format_args!("\nstop it with Ctrl-C"));
}

/// Writes a line to standard output, if it is still open.
fn say(line: std::fmt::Arguments<'_>) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
