//! The example `info` over TLS: it talks to the server that was meant, or to none.

#![cfg(unix)]

mod info_support;
mod program_support;

use std::fs;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

use info_support::{Offer, Server, info};
use nbd_proto::handshake::{Ask, TlsPolicy};
use nbd_proto::io::{MaybeTls, server_handshake_with_tls};
use nbd_proto::wire::{Extent, Name, OptionCode, OptionReply};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair,
};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use tempfile::TempDir;

const SIZE: u64 = 1 << 20;

// --- certificates ---

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority(name: &str) -> Authority {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, name);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

struct Leaf {
    certificate: rcgen::Certificate,
    key: KeyPair,
}

fn leaf(authority: &Authority, name: &str, usage: ExtendedKeyUsagePurpose) -> Leaf {
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.extended_key_usages.push(usage);
    let key = KeyPair::generate().unwrap();
    Leaf {
        certificate: params.signed_by(&key, authority).unwrap(),
        key,
    }
}

/// How a server at `name` proves itself; `clients`, if given, certifies those that it takes.
fn server_config(
    authority: &Authority,
    name: &str,
    clients: Option<&Authority>,
) -> Arc<ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let own = leaf(authority, name, ExtendedKeyUsagePurpose::ServerAuth);
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(clients) => {
            let mut roots = RootCertStore::empty();
            roots.add(clients.der().clone()).unwrap();
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.unwrap())
        }
    };
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(own.key.serialize_der()));
    let chain = vec![own.certificate.der().clone()];
    Arc::new(builder.with_single_cert(chain, key).unwrap())
}

/// A directory as libnbd wants it.
fn directory(authority: &Authority, client: Option<&Leaf>) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: String| fs::write(directory.path().join(name), text).unwrap();
    write("ca-cert.pem", authority.pem());
    if let Some(client) = client {
        write("client-cert.pem", client.certificate.pem());
        write("client-key.pem", client.key.serialize_pem());
    }
    directory
}

fn offer(policy: TlsPolicy) -> Offer {
    let mut offer = Offer::new(SIZE);
    offer.config = offer.config.with_tls(policy);
    offer
}

fn serve(tls: Arc<ServerConfig>) -> Server {
    let extents = vec![Extent {
        length: SIZE,
        flags: 3,
    }];
    Server::over_tls(offer(TlsPolicy::Forced), extents, tls)
}

/// The server's URI with TLS.
fn nbds(server: &Server, parameters: &str) -> String {
    format!(
        "nbds://localhost:{}/disk{parameters}",
        server.address().port()
    )
}

fn certificates(directory: &TempDir) -> String {
    format!("?tls-certificates={}", directory.path().display())
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

// --- servers in order ---

#[test]
fn all_that_info_shows_it_shows_over_tls() {
    let authority = authority("ours");
    let server = serve(server_config(&authority, "localhost", None));
    let directory = directory(&authority, None);
    let uri = nbds(&server, &certificates(&directory));
    let json = info(["--json", &uri]).json();
    assert_eq!(json["TLS"], true);
    assert_eq!(json["exports"][0]["export-size"], SIZE);
    assert_eq!(json["exports"][0]["contexts"][0], "base:allocation");
    let shown = info([&uri]).well();
    assert!(
        shown.starts_with("protocol: newstyle-fixed with TLS, "),
        "{shown}"
    );
    let map = info(["--map", "--json", &uri]).json();
    assert_eq!(map[0]["length"], SIZE);
    let list = info(["--list", "--json", &uri]).json();
    assert_eq!(list["exports"][0]["export-name"], "disk");
    assert_eq!(info(["--is", "tls", &uri]).status, Some(0));
}

#[test]
fn an_authority_can_be_given_by_an_option() {
    let authority = authority("ours");
    let server = serve(server_config(&authority, "localhost", None));
    let directory = directory(&authority, None);
    let file = text(&directory.path().join("ca-cert.pem"));
    let size = info(["--size", "--tls-ca", &file, &nbds(&server, "")]);
    assert_eq!(size.well(), "1048576\n");
}

#[test]
fn a_server_that_wants_to_know_us_is_shown_our_certificate() {
    let [ours, theirs] = ["ours", "theirs"].map(authority);
    let server = serve(server_config(&theirs, "localhost", Some(&ours)));
    let client = leaf(&ours, "me", ExtendedKeyUsagePurpose::ClientAuth);
    let known = directory(&theirs, Some(&client));
    let uri = nbds(&server, &certificates(&known));
    assert_eq!(info(["--size", &uri]).well(), "1048576\n");

    // Without, or with one that somebody else has certified.
    let stranger = leaf(&theirs, "me", ExtendedKeyUsagePurpose::ClientAuth);
    for unknown in [
        directory(&theirs, None),
        directory(&theirs, Some(&stranger)),
    ] {
        let uri = nbds(&server, &certificates(&unknown));
        info([&uri]).failed_with(&["client-cert.pem"]);
    }
}

#[test]
fn the_name_in_the_certificate_can_be_another_than_that_of_the_host() {
    let authority = authority("ours");
    let server = serve(server_config(&authority, "disks.example", None));
    let directory = directory(&authority, None);
    let parameters = certificates(&directory);
    info([nbds(&server, &parameters)]).failed_with(&["tls-hostname"]);
    let named = format!("{parameters}&tls-hostname=disks.example");
    assert_eq!(info(["--size", &nbds(&server, &named)]).well(), "1048576\n");
}

#[test]
fn addresses_can_be_certified_too() {
    let authority = authority("ours");
    let server = serve(server_config(&authority, "127.0.0.1", None));
    let directory = directory(&authority, None);
    let uri = format!(
        "nbds://{}/disk{}",
        server.address(),
        certificates(&directory)
    );
    assert_eq!(info(["--size", &uri]).well(), "1048576\n");
}

// --- the goodbye ---

/// TLS at a server, which tells how it ended: `Ok` if the client has shut it down.
struct Watched {
    stream: StreamOwned<ServerConnection, TcpStream>,
    told: Sender<Result<(), io::ErrorKind>>,
}

impl Read for Watched {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let result = self.stream.read(buffer);
        match &result {
            Ok(0) => drop(self.told.send(Ok(()))),
            Ok(_) => {}
            Err(error) => drop(self.told.send(Err(error.kind()))),
        }
        result
    }
}

impl Write for Watched {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// A server with one export, and how TLS ended with each client.
fn watching(tls: Arc<ServerConfig>) -> (Server, Receiver<Result<(), io::ErrorKind>>) {
    let (told, ends) = mpsc::channel();
    let offer = offer(TlsPolicy::Forced);
    let server = Server::raw(move |_, stream| {
        let upgrade = |stream| {
            let machine = ServerConnection::new(Arc::clone(&tls)).map_err(io::Error::other)?;
            Ok(Watched {
                stream: StreamOwned::new(machine, stream),
                told: told.clone(),
            })
        };
        let shaken = server_handshake_with_tls(stream, offer.config, upgrade, |ask| match ask {
            Ask::List(ask) => ask.accept([(&offer.exports[0].name, &Name::default())]),
            Ask::Export(ask) if *ask.name() == offer.exports[0].name => {
                ask.accept(&offer.exports[0]);
            }
            Ask::Contexts(ask) => ask.accept(&offer.contexts),
            _ => {}
        });
        if let Ok((MaybeTls::Tls(mut stream), _)) = shaken {
            let _ = stream.read_to_end(&mut Vec::new());
        }
    });
    (server, ends)
}

#[test]
fn tls_is_shut_down_whenever_info_leaves() {
    let authority = authority("ours");
    let directory = directory(&authority, None);
    let parameters = certificates(&directory);
    for (arguments, export, status) in [
        (&["--size"][..], "disk", 0),
        (&["--plan"], "disk", 0),
        // Left by an abort, and by a disconnect.
        (&[], "disk", 0),
        (&["--list"], "disk", 0),
        // Refused: the library drops the stream.
        (&["--size"], "absent", 1),
        // Nobody answers about the extents: the program ends while it waits.
        (&["--map", "--timeout", "1"], "disk", 1),
    ] {
        let (server, ends) = watching(server_config(&authority, "localhost", None));
        let port = server.address().port();
        let uri = format!("nbds://localhost:{port}/{export}{parameters}");
        let ended = info([arguments, &[&uri]].concat());
        assert_eq!(ended.status, Some(status), "{ended:?}");
        for number in 0..server.clients() {
            let end = ends.recv_timeout(Duration::from_secs(60));
            assert_eq!(end, Ok(Ok(())), "{arguments:?}, connection {number}");
        }
        assert!(server.clients() > 0);
    }
}

// --- the wrong server ---

#[test]
fn a_server_that_nobody_vouches_for_is_left_unless_that_does_not_matter() {
    let [ours, theirs] = ["ours", "theirs"].map(authority);
    let server = serve(server_config(&theirs, "localhost", None));
    let directory = directory(&ours, None);
    let parameters = certificates(&directory);
    for arguments in [&["--size"][..], &["--map"], &["--list"], &["--can", "read"]] {
        let uri = nbds(&server, &parameters);
        let ended = info([arguments, &[&uri]].concat());
        ended.failed_with(&["UnknownIssuer", "--tls-ca"]);
    }
    let anybody = format!("{parameters}&tls-verify-peer=0");
    assert_eq!(
        info(["--size", &nbds(&server, &anybody)]).well(),
        "1048576\n"
    );
    let nothing_known = nbds(&server, "?tls-verify-peer=0");
    assert_eq!(info(["--size", &nothing_known]).well(), "1048576\n");
}

#[test]
fn a_server_without_tls_is_left_where_tls_is_wanted() {
    let authority = authority("ours");
    let directory = directory(&authority, None);
    let server = Server::good(Offer::new(SIZE), Vec::new());
    for arguments in [&[][..], &["--list"], &["--map"]] {
        let uri = nbds(&server, &certificates(&directory));
        let ended = info([arguments, &[&uri]].concat());
        ended.failed_with(&["STARTTLS", "nbd://"]);
    }
}

#[test]
fn a_server_that_wants_tls_is_not_had_without() {
    let server = serve(server_config(&authority("ours"), "localhost", None));
    for arguments in [&[][..], &["--list"], &["--map"]] {
        let uri = server.uri();
        let ended = info([arguments, &[&uri]].concat());
        ended.failed_with(&["ERR_TLS_REQD", "nbds://"]);
    }
}

// --- servers out of order ---

/// Agrees to TLS, then does something else.
fn after_agreement(behave: impl Fn(&mut TcpStream) + Send + Sync + 'static) -> Server {
    Server::raw(move |_, mut stream| {
        // Greeting; then client flags and STARTTLS.
        let _ = stream.write_all(b"NBDMAGICIHAVEOPT\0\x03");
        let _ = stream.read_exact(&mut [0; 4 + 16]);
        let mut ack = Vec::new();
        OptionReply::Ack.encode(OptionCode::STARTTLS, &mut ack);
        let _ = stream.write_all(&ack);
        // The first bytes of the client within TLS.
        let _ = stream.read_exact(&mut [0; 5]);
        behave(&mut stream);
    })
}

#[test]
fn a_server_that_fails_at_tls_is_left_in_time_and_with_the_reason() {
    let directory = directory(&authority("ours"), None);
    let parameters = certificates(&directory);

    let garbage = after_agreement(|stream| {
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        let _ = stream.read_to_end(&mut Vec::new());
    });
    info([nbds(&garbage, &parameters)]).failed_with(&["TLS failed"]);

    let gone = after_agreement(|stream| {
        let _ = stream.shutdown(std::net::Shutdown::Both);
    });
    info([nbds(&gone, &parameters)]).failed_with(&["negotiation failed"]);

    let silent = after_agreement(|stream| {
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let uri = nbds(&silent, &parameters);
    info(["--timeout", "1", &uri]).failed_with(&["did not finish the negotiation within 1 s"]);
}

#[test]
fn plaintext_behind_the_agreement_is_not_taken_for_tls() {
    let directory = directory(&authority("ours"), None);
    let server = Server::raw(|_, mut stream| {
        let _ = stream.write_all(b"NBDMAGICIHAVEOPT\0\x03");
        let _ = stream.read_exact(&mut [0; 4 + 16]);
        let mut out = Vec::new();
        OptionReply::Ack.encode(OptionCode::STARTTLS, &mut out);
        OptionReply::Ack.encode(OptionCode::EXTENDED_HEADERS, &mut out);
        let _ = stream.write_all(&out);
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let uri = nbds(&server, &certificates(&directory));
    info(["--timeout", "5", &uri]).failed_with(&["failed"]);
}

// --- wrong files ---

#[test]
fn what_is_missing_or_wrong_among_the_files_is_told_before_anything_is_sent() {
    let authority = authority("ours");
    let server = serve(server_config(&authority, "localhost", None));
    let uri = nbds(&server, "");
    info([&uri]).failed_with(&["--tls-ca", "tls-certificates"]);
    info(["--tls-ca", "/nonexistent/ca", &uri]).failed_with(&["/nonexistent/ca"]);

    let good = directory(&authority, None);
    let path = |name: &str| good.path().join(name);
    fs::write(path("empty"), "").unwrap();
    let empty = text(&path("empty"));
    info(["--tls-ca", &empty, &uri]).failed_with(&[&empty, "no certificate"]);
    fs::write(path("client-cert.pem"), authority.pem()).unwrap();
    let half = nbds(&server, &certificates(&good));
    info([&half]).failed_with(&["client-key.pem", "missing"]);
    fs::write(path("client-key.pem"), "no key").unwrap();
    info([&half]).failed_with(&["client-key.pem"]);

    for (parameters, words) in [("?tls-type=psk", "psk"), ("?tls-type=anon", "anon")] {
        info([nbds(&server, parameters)]).failed_with(&[words, "not supported"]);
    }
    let socket = format!(
        "nbds+unix:///?socket=s&tls-certificates={}",
        good.path().display()
    );
    fs::remove_file(path("client-cert.pem")).unwrap();
    fs::remove_file(path("client-key.pem")).unwrap();
    info([&socket]).failed_with(&["tls-hostname=NAME"]);
    assert_eq!(server.clients(), 0);
}
