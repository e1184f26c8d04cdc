//! TLS, as a server: certificates, and one connection's state.
//!
//! The state of a TLS connection is one machine for both directions. Here it is behind a lock that
//! nobody holds while the socket is waited for, so that one thread can wait for what the client
//! sends while others send to it.

use std::fmt::Debug;
use std::fs;
use std::io::{self, IoSlice, Read, Write};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use nbd_proto::handshake::TlsPolicy;
use parking_lot::Mutex;
use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig, ServerConnection};

use super::options;

/// What the server does about TLS.
#[derive(Clone, Debug, Default)]
pub(crate) struct Offer {
    config: Option<Arc<ServerConfig>>,
    required: bool,
}

impl Offer {
    /// Reads the files that the user names.
    ///
    /// # Errors
    ///
    /// With the file, the reason and what may be done about it.
    pub(crate) fn load(options: &options::Tls) -> Result<Self> {
        let files = options.files().map_err(anyhow::Error::msg)?;
        let client_ca = options.tls_client_ca.as_deref();
        let config = files
            .map(|(cert, key)| config(cert, key, client_ca))
            .transpose()?;
        Ok(Self {
            config: config.map(Arc::new),
            required: options.tls_required,
        })
    }

    pub(crate) const fn policy(&self) -> TlsPolicy {
        match (&self.config, self.required) {
            (None, _) => TlsPolicy::None,
            (Some(_), false) => TlsPolicy::Selective,
            (Some(_), true) => TlsPolicy::Forced,
        }
    }

    /// Shakes hands with a client that wants TLS.
    pub(crate) fn accept(&self, socket: &mut (impl Read + Write)) -> io::Result<Tls> {
        match &self.config {
            Some(config) => Tls::accept(config, socket),
            None => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

fn config(cert: &Path, key: &Path, client_ca: Option<&Path>) -> Result<ServerConfig> {
    let chain = certificates(cert, "--tls-cert")?;
    let private = private_key(key)?;
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?;
    let builder = match client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for root in certificates(path, "--tls-client-ca")? {
                roots
                    .add(root)
                    .with_context(|| unusable(path, "--tls-client-ca"))?;
            }
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(
                verifier.with_context(|| unusable(path, "--tls-client-ca"))?,
            )
        }
    };
    let mut config = builder
        .with_single_cert(chain, private)
        .map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => anyhow!(
                "the private key in {} does not fit the certificate in {}: \
                 give the key that the certificate was made for, and the server's certificate first",
                key.display(),
                cert.display()
            ),
            error => anyhow!(
                "cannot use the certificate in {} with the key in {}: {error}",
                cert.display(),
                key.display()
            ),
        })?;
    // Connections last; and whoever comes again can show again who he is.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn unusable(path: &Path, option: &str) -> String {
    format!("cannot use what is in {} ({option})", path.display())
}

fn read(path: &Path, option: &str) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {} ({option})", path.display()))
}

fn certificates(path: &Path, option: &str) -> Result<Vec<CertificateDer<'static>>> {
    let text = read(path, option)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let found = found.with_context(|| unusable(path, option))?;
    if found.is_empty() {
        bail!(
            "there is no certificate in {} ({option}): it has to be in PEM form, \
             with a line `-----BEGIN CERTIFICATE-----`",
            path.display()
        );
    }
    Ok(found)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>> {
    let text = read(path, "--tls-key")?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| match error {
        pem::Error::NoItemsFound => anyhow!(
            "there is no private key in {} (--tls-key): it has to be in PEM form, without a \
             password, with a line such as `-----BEGIN PRIVATE KEY-----`",
            path.display()
        ),
        error => anyhow!(error).context(unusable(path, "--tls-key")),
    })
}

/// Bytes taken from the socket at once.
const INCOMING: usize = 64 << 10;

/// The most bytes that are encrypted before they are sent.
const OUTGOING: usize = 64 << 10;

/// TLS on one connection.
///
/// One thread reads; any may write, and what one writes goes out in one piece.
pub(crate) struct Tls {
    machine: Mutex<ServerConnection>,
    /// Received, and not taken by the machine yet.
    incoming: Mutex<Incoming>,
    /// Encrypted, and not sent yet; empty but for moments. Held while it is sent: records have to
    /// arrive in the order in which the machine made them.
    outgoing: Mutex<Vec<u8>>,
}

impl Tls {
    /// Shakes hands; the client begins.
    fn accept(config: &Arc<ServerConfig>, socket: &mut (impl Read + Write)) -> io::Result<Self> {
        let mut machine = ServerConnection::new(Arc::clone(config)).map_err(broken)?;
        machine.set_buffer_limit(Some(OUTGOING));
        while machine.is_handshaking() {
            machine.complete_io(socket)?;
        }
        while machine.wants_write() {
            machine.write_tls(socket)?;
        }
        Ok(Self {
            machine: Mutex::new(machine),
            incoming: Mutex::new(Incoming::new()),
            outgoing: Mutex::default(),
        })
    }

    /// What was agreed on, for the log.
    pub(crate) fn protocol(&self) -> impl Debug + use<> {
        self.machine.lock().protocol_version()
    }

    /// Waits until the client has sent something, and takes what is there. 0 at the end, in good
    /// order or not: the protocol within has an end of its own.
    pub(crate) fn read(&self, socket: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
        let mut incoming = self.incoming.lock();
        loop {
            let taken = self.decrypt(&mut incoming, buffer)?;
            if taken > 0 || buffer.is_empty() {
                return Ok(taken);
            }
            // The machine may have ended, or the socket.
            if incoming.ended || incoming.receive(socket)? == 0 {
                return Ok(0);
            }
        }
    }

    /// Fills the buffer as far as that needs no waiting.
    fn decrypt(&self, incoming: &mut Incoming, buffer: &mut [u8]) -> io::Result<usize> {
        let mut machine = self.machine.lock();
        let mut filled = 0;
        while filled < buffer.len() {
            match machine.reader().read(&mut buffer[filled..]) {
                Ok(0) => {
                    incoming.ended = true;
                    break;
                }
                Ok(read) => {
                    filled += read;
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            if incoming.unread().is_empty() {
                break;
            }
            let mut rest = incoming.unread();
            machine.read_tls(&mut rest)?;
            let left = rest.len();
            incoming.keep(left);
            // What it has to say to this goes out with what is sent next.
            machine.process_new_packets().map_err(broken)?;
        }
        Ok(filled)
    }

    /// Encrypts and sends some of the parts; how much, is the result.
    pub(crate) fn write(
        &self,
        socket: &mut impl Write,
        parts: &[IoSlice<'_>],
    ) -> io::Result<usize> {
        let mut outgoing = self.outgoing.lock();
        let written = {
            let mut machine = self.machine.lock();
            let written = machine.writer().write_vectored(parts)?;
            take_encrypted(&mut machine, &mut outgoing)?;
            written
        };
        let sent = socket.write_all(&outgoing);
        outgoing.clear();
        sent.map(|()| written)
    }

    /// Says that nothing more comes. Nobody else may be writing.
    pub(crate) fn close(&self, socket: &mut impl Write) -> io::Result<()> {
        let Some(mut outgoing) = self.outgoing.try_lock() else {
            return Ok(());
        };
        let mut machine = self.machine.lock();
        machine.send_close_notify();
        take_encrypted(&mut machine, &mut outgoing)?;
        drop(machine);
        socket.write_all(&outgoing)
    }
}

fn take_encrypted(machine: &mut ServerConnection, out: &mut Vec<u8>) -> io::Result<()> {
    while machine.wants_write() {
        machine.write_tls(out)?;
    }
    Ok(())
}

fn broken(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("TLS: {error}"))
}

struct Incoming {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    /// The client has said that it sends no more.
    ended: bool,
}

impl Incoming {
    fn new() -> Self {
        Self {
            buffer: vec![0; INCOMING].into_boxed_slice(),
            start: 0,
            end: 0,
            ended: false,
        }
    }

    fn unread(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Only the last `left` bytes have not been taken.
    fn keep(&mut self, left: usize) {
        self.start = self.end - left;
    }

    /// Receives once; everything that was there has been taken.
    fn receive(&mut self, socket: &mut impl Read) -> io::Result<usize> {
        self.start = 0;
        self.end = 0;
        let received = loop {
            match socket.read(&mut self.buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                received => break received?,
            }
        };
        self.end = received;
        Ok(received)
    }
}
