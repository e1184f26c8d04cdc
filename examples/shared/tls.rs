//! TLS as a client: who we are and whom we trust, from files, and the way into it.
//!
//! Certificates are X.509, in PEM files. A directory of them is laid out as libnbd wants it:
//! `ca-cert.pem` is whom we trust; `client-cert.pem` and `client-key.pem`, if they are there, say
//! who we are.

use std::io::{self, IoSlice, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, Error, RootCertStore,
    SignatureScheme, StreamOwned,
};

use super::stream::{Patience, Patient, Stream};
use super::uri::{NbdUri, TlsKind, TlsParameters, Transport};

type Socket<'a> = Patient<'a, Stream>;

/// A stream within TLS, which says goodbye when it is dropped: whoever leaves shuts TLS down before
/// (proto.md "Termination of the session during option haggling").
#[derive(Debug)]
pub(crate) struct TlsStream<'a> {
    /// Until it is taken apart.
    inside: Option<StreamOwned<ClientConnection, Socket<'a>>>,
}

impl<'a> TlsStream<'a> {
    /// The session, and what its records go through. To say goodbye is up to the caller then.
    ///
    /// # Errors
    ///
    /// None that can come: what is taken apart is there no more.
    pub(crate) fn into_parts(mut self) -> io::Result<(ClientConnection, Socket<'a>)> {
        let inside = self.inside.take().ok_or(io::ErrorKind::NotConnected)?;
        Ok((inside.conn, inside.sock))
    }

    /// Has it wait no longer than this.
    pub(crate) const fn set_patience(&mut self, patience: Patience<'a>) {
        if let Some(inside) = &mut self.inside {
            inside.sock.patience = patience;
        }
    }

    fn inside(&mut self) -> io::Result<&mut StreamOwned<ClientConnection, Socket<'a>>> {
        let inside = self.inside.as_mut();
        inside.ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl Read for TlsStream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.inside()?.read(buffer)
    }
}

impl Write for TlsStream<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.inside()?.write(bytes)
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        self.inside()?.write_vectored(parts)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inside()?.flush()
    }
}

impl Drop for TlsStream<'_> {
    fn drop(&mut self) {
        let Some(StreamOwned { conn, sock }) = &mut self.inside else {
            return;
        };
        conn.send_close_notify();
        while conn.wants_write() {
            // The socket itself does not wait: a server that has so much to read that these few
            // bytes do not go out may never read again.
            if !matches!(conn.write_tls(&mut sock.stream), Ok(1..)) {
                return;
            }
        }
    }
}

/// Why TLS cannot be had as it is wanted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadTls {
    #[error("tls-type={0} is not supported: leave it out, or write tls-type=x509")]
    Kind(&'static str),
    #[error(
        "there is nothing to know the server by: give --tls-ca FILE, or add \
         tls-certificates=DIRECTORY to the URI, with ca-cert.pem in it \
         (tls-verify-peer=0 connects to whoever is there)"
    )]
    NoAuthority,
    #[error("{}: {why}", path.display())]
    File { path: PathBuf, why: String },
    #[error("{} and {} belong together: one of them is missing", .0.display(), .1.display())]
    Half(PathBuf, PathBuf),
    #[error("a socket has no host to be found in a certificate: add tls-hostname=NAME to the URI")]
    NoHost,
    #[error("{0:?} cannot be the name in a certificate: set tls-hostname=NAME in the URI")]
    Host(String),
    #[error("{0}")]
    Unusable(Error),
}

/// How to get into TLS with one server.
#[derive(Clone, Debug)]
pub(crate) struct TlsClient {
    config: Arc<ClientConfig>,
    server: ServerName<'static>,
}

impl TlsClient {
    /// Reads what the URI says is to be used; `authority`, if given, is whom we trust instead.
    ///
    /// # Errors
    ///
    /// If a file is missing, or has something else in it, or the URI wants what we do not have.
    pub(crate) fn new(uri: &NbdUri, authority: Option<&Path>) -> Result<Self, BadTls> {
        let parameters = &uri.tls_parameters;
        match parameters.kind {
            None | Some(TlsKind::X509) => {}
            Some(TlsKind::Anonymous) => return Err(BadTls::Kind("anon")),
            Some(TlsKind::PreShared) => return Err(BadTls::Kind("psk")),
        }
        let directory = parameters.certificates.clone().or_else(usual_directory);
        let provider = Arc::new(ring::default_provider());
        let verifier: Arc<dyn ServerCertVerifier> = if parameters.verify_peer == Some(false) {
            Arc::new(Anybody(Arc::clone(&provider)))
        } else {
            let authority = authority.map(Path::to_owned);
            let file = authority.or_else(|| Some(directory.as_deref()?.join("ca-cert.pem")));
            let roots = Arc::new(read_roots(&file.ok_or(BadTls::NoAuthority)?)?);
            let verifier =
                WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider)).build();
            verifier.map_err(|why| BadTls::Unusable(Error::General(why.to_string())))?
        };
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(BadTls::Unusable)?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let config = match directory
            .as_deref()
            .map(read_identity)
            .transpose()?
            .flatten()
        {
            Some((chain, key)) => builder
                .with_client_auth_cert(chain, key)
                .map_err(BadTls::Unusable)?,
            None => builder.with_no_client_auth(),
        };
        Ok(Self {
            config: Arc::new(config),
            server: server_name(uri, parameters)?,
        })
    }

    /// Shakes hands as TLS wants it, once server and client have agreed to.
    ///
    /// # Errors
    ///
    /// If the stream fails, or one side does not trust the other.
    pub(crate) fn start<'a>(&self, mut stream: Socket<'a>) -> io::Result<TlsStream<'a>> {
        let connection = ClientConnection::new(Arc::clone(&self.config), self.server.clone());
        let mut connection = connection.map_err(io::Error::other)?;
        while connection.is_handshaking() {
            connection.complete_io(&mut stream)?;
        }
        Ok(TlsStream {
            inside: Some(StreamOwned::new(connection, stream)),
        })
    }
}

/// What can be done about an error, if it is one of TLS. With TLS 1.3, a server's refusal comes
/// only after the handshake, with what is read first.
pub(crate) fn advice(error: &io::Error) -> Option<&'static str> {
    let error = error.get_ref()?.downcast_ref::<Error>()?;
    Some(match error {
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "the server is not one that the given authority knows (--tls-ca, tls-certificates)"
        }
        Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => "the certificate is for another host; its name can be given as tls-hostname=NAME",
        Error::AlertReceived(_) => {
            "the server does not accept us: it may want a client certificate \
             (client-cert.pem and client-key.pem in tls-certificates=DIRECTORY)"
        }
        _ => "TLS failed",
    })
}

/// Where libnbd looks if it was not told.
fn usual_directory() -> Option<PathBuf> {
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let home = home.as_deref();
    let places = [
        home.map(|home| home.join(".pki/libnbd")),
        home.map(|home| home.join(".config/pki/libnbd")),
        Some(PathBuf::from("/etc/pki/libnbd")),
    ];
    let mut places = places.into_iter().flatten();
    places.find(|place| place.join("ca-cert.pem").exists())
}

fn in_file(path: &Path) -> impl Fn(String) -> BadTls {
    let path = path.to_owned();
    move |why| BadTls::File {
        path: path.clone(),
        why,
    }
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, BadTls> {
    let wrong = in_file(path);
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|why| wrong(why.to_string()))?;
    if certificates.is_empty() {
        return Err(wrong("there is no certificate in it".to_owned()));
    }
    Ok(certificates)
}

fn read_roots(path: &Path) -> Result<RootCertStore, BadTls> {
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates(path)? {
        let added = roots.add(certificate);
        added.map_err(|why| in_file(path)(why.to_string()))?;
    }
    Ok(roots)
}

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn read_identity(directory: &Path) -> Result<Option<Identity>, BadTls> {
    let [certificate, key] = ["client-cert.pem", "client-key.pem"].map(|name| directory.join(name));
    match (certificate.exists(), key.exists()) {
        (false, false) => return Ok(None),
        (true, true) => {}
        _ => return Err(BadTls::Half(certificate, key)),
    }
    let chain = read_certificates(&certificate)?;
    let secret = PrivateKeyDer::from_pem_file(&key);
    let secret = secret.map_err(|why| in_file(&key)(why.to_string()))?;
    Ok(Some((chain, secret)))
}

fn server_name(uri: &NbdUri, parameters: &TlsParameters) -> Result<ServerName<'static>, BadTls> {
    let host = match (&parameters.hostname, &uri.transport) {
        (Some(host), _) | (None, Transport::Tcp { host, .. }) => host.clone(),
        // Nobody looks at it.
        (None, Transport::Unix { .. }) if parameters.verify_peer == Some(false) => {
            "localhost".to_owned()
        }
        (None, Transport::Unix { .. }) => return Err(BadTls::NoHost),
    };
    ServerName::try_from(host.clone()).map_err(|_| BadTls::Host(host))
}

/// Takes every server for the right one, as `tls-verify-peer=0` wants it; but it must have the key
/// of the certificate that it shows.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
