//! The server that is judged: how to get there, what it says of itself, what it promises.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use nbd_proto::conformance::{Initial, Promise};
use nbd_proto::multiplex::{Caution, Intent, Plan, Scope, Use, plan};
use nbd_proto::session::{Lint, Session};
use nbd_proto::wire::TransmissionFlags;

use super::fleet::CAPACITY;
use super::options::Options;
use super::shapes::Abilities;
use super::shared::connection::{Connection, Error, Settings};
use super::shared::signals::Signals;
use super::shared::tls::TlsClient;
use super::shared::uri::NbdUri;

/// A server that says nothing to a further connection, though it has taken the first, often serves
/// one at a time.
const PATIENCE: Duration = Duration::from_secs(10);

/// A server, with which a first connection has agreed on something.
#[derive(Debug)]
pub(crate) struct Target<'a> {
    uri: NbdUri,
    tls: Option<TlsClient>,
    timeout: Duration,
    signals: &'a Signals,
    plan: Plan,
    lints: Vec<Lint>,
    has_status: bool,
    read_only: bool,
}

impl<'a> Target<'a> {
    /// Connects for the first time.
    ///
    /// # Errors
    ///
    /// If the command line is wrong, or there is no such server or export.
    pub(crate) fn find(options: &Options, signals: &'a Signals) -> Result<(Self, Connection)> {
        let words = options.uri.as_deref().context("no URI is given")?;
        let uri = NbdUri::parse(words).with_context(|| words.to_owned())?;
        ensure!(
            uri.tls || options.tls_ca.is_none(),
            "{uri}: --tls-ca is for nbds:// and nbds+unix://, which mean TLS"
        );
        let tls = uri
            .tls
            .then(|| TlsClient::new(&uri, options.tls_ca.as_deref()))
            .transpose()
            .with_context(|| uri.to_string())?;
        let timeout = options.timeout();
        let first = open(&uri, tls.as_ref(), timeout, signals)?;
        let session = first.session();
        let read_only = options.read_only || session.flags().contains(TransmissionFlags::READ_ONLY);
        let usage = if read_only { Use::Read } else { Use::Disk };
        let intent = Intent::new(usage, options.connections).with_caution(Caution::Insist);
        let target = Self {
            timeout,
            signals,
            plan: plan(session, intent),
            lints: first.announcement().lints(),
            has_status: first.has_status(),
            read_only,
            tls,
            uri,
        };
        Ok((target, first))
    }

    /// Connects once more.
    ///
    /// # Errors
    ///
    /// Also if something else is found there than on the first connection, as a
    /// [`Mismatch`](nbd_proto::multiplex::Mismatch).
    pub(crate) fn open_another(&self) -> Result<Connection> {
        let mut connection = open(&self.uri, self.tls.as_ref(), self.patience(), self.signals)?;
        connection.set_timeout(self.timeout);
        let same = self.plan.check(connection.session());
        same.with_context(|| {
            let uri = &self.uri;
            format!("{uri}: connections to one export have to get the same")
        })?;
        Ok(connection)
    }

    /// How long it is waited for a further connection.
    pub(crate) fn patience(&self) -> Duration {
        self.timeout.min(PATIENCE)
    }

    pub(crate) const fn uri(&self) -> &NbdUri {
        &self.uri
    }

    pub(crate) const fn session(&self) -> &Session {
        self.plan.session()
    }

    pub(crate) fn lints(&self) -> &[Lint] {
        &self.lints
    }

    pub(crate) const fn timeout(&self) -> Duration {
        self.timeout
    }

    pub(crate) const fn signals(&self) -> &'a Signals {
        self.signals
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.signals.caught().is_some()
    }

    /// Whether nothing is to be modified.
    pub(crate) const fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// What it can be asked for.
    pub(crate) fn abilities(&self) -> Abilities {
        let has = |flag| self.session().flags().contains(flag);
        let writes = !self.read_only;
        Abilities {
            writes,
            flush: has(TransmissionFlags::SEND_FLUSH),
            fua: writes && has(TransmissionFlags::SEND_FUA),
            zero: writes && has(TransmissionFlags::SEND_WRITE_ZEROES),
            trim: writes && has(TransmissionFlags::SEND_TRIM),
            cache: has(TransmissionFlags::SEND_CACHE),
            status: self.has_status,
        }
    }

    /// What it is held to.
    pub(crate) fn promise(&self, initial: Initial) -> Promise {
        let promise = match self.plan.scope() {
            Scope::AllConnections => Promise::MULTI_CONN,
            _ => Promise::SINGLE_CONNECTION,
        };
        promise.with_initial(initial)
    }

    /// What that means, and what it leaves out, in sentences.
    pub(crate) fn words(&self) -> Vec<&'static str> {
        let flags = self.session().flags();
        let has = |flag| flags.contains(flag);
        let mut words = Vec::new();
        if self.read_only {
            words.push("nothing is modified: all reads of the same place have to find the same");
            return words;
        }
        words.push(match (self.plan.scope(), has(TransmissionFlags::CAN_MULTI_CONN)) {
            (Scope::AllConnections, _) => {
                "multi-conn: what is flushed on one connection is durable, and visible on all"
            }
            (_, true) => {
                "multi-conn without flush and FUA promises nothing: each connection is checked \
                 for itself"
            }
            (_, false) => {
                "no multi-conn: nothing is promised between connections, and each is checked for \
                 itself"
            }
        });
        if !has(TransmissionFlags::SEND_FLUSH) {
            words.push("no flush: what a flush does cannot be checked");
        }
        if !has(TransmissionFlags::SEND_FUA) {
            words.push("no FUA: what FUA does cannot be checked");
        }
        words
    }
}

fn open(
    uri: &NbdUri,
    tls: Option<&TlsClient>,
    timeout: Duration,
    signals: &Signals,
) -> Result<Connection> {
    let settings = Settings {
        capacity: CAPACITY,
        timeout,
        status: true,
        signals,
    };
    Connection::open(uri, tls, &settings)
        .map_err(|error: Error| match error.advice() {
            Some(advice) => anyhow!("{error}; {advice}"),
            None => anyhow!("{error}"),
        })
        .with_context(|| uri.to_string())
}
