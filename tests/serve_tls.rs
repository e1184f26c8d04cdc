//! The example `serve` over TLS.

#![cfg(target_os = "linux")]

mod program_support;
mod serve_support;
mod tls_support;

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;

use nbd_proto::handshake::{ClientConfig, TlsWanted, Wanted};
use nbd_proto::io::{MaybeTls, client_handshake, client_handshake_with_tls};
use nbd_proto::wire::{CommandFlags, Cookie, Name, Request};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConnection, ProtocolVersion, RootCertStore, StreamOwned};

use serve_support::{Negotiated, Serve};
use tls_support::Authority;

type Tls = StreamOwned<ClientConnection, TcpStream>;

/// What a client trusts and shows.
struct Side<'a> {
    authority: &'a Authority,
    /// Whose certificate it shows.
    shows: Option<&'a Authority>,
    version: &'static rustls::SupportedProtocolVersion,
}

impl<'a> Side<'a> {
    fn of(authority: &'a Authority) -> Self {
        Self {
            authority,
            shows: None,
            version: &rustls::version::TLS13,
        }
    }

    fn showing(self, shows: &'a Authority) -> Self {
        Self {
            shows: Some(shows),
            ..self
        }
    }

    fn start(&self, stream: TcpStream) -> io::Result<Tls> {
        let mut roots = RootCertStore::empty();
        let root = CertificateDer::from_pem_file(self.authority.path("ca-cert.pem")).unwrap();
        roots.add(root).unwrap();
        let builder =
            rustls::ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
                .with_protocol_versions(&[self.version])
                .unwrap()
                .with_root_certificates(roots);
        let config = match self.shows {
            None => builder.with_no_client_auth(),
            Some(other) => {
                let cert = CertificateDer::from_pem_file(other.path("client-cert.pem")).unwrap();
                let key = PrivateKeyDer::from_pem_file(other.path("client-key.pem")).unwrap();
                builder.with_client_auth_cert(vec![cert], key).unwrap()
            }
        };
        let name = ServerName::try_from("localhost").unwrap();
        let mut machine = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut stream = stream;
        while machine.is_handshaking() {
            machine.complete_io(&mut stream)?;
        }
        Ok(StreamOwned::new(machine, stream))
    }

    fn connect(&self, serve: &Serve) -> io::Result<Negotiated<Tls>> {
        let wanted = Wanted::new(Name::default())
            .with_tls(TlsWanted::Required)
            .with_contexts([Name::new("base:allocation").unwrap()]);
        let start = |stream| self.start(stream);
        let shaken =
            client_handshake_with_tls(serve.connect_silently(), wanted, ClientConfig::new(), start);
        match shaken.map_err(|error| io::Error::other(error.to_string()))? {
            (MaybeTls::Tls(stream), negotiated) => Ok(Negotiated::new(stream, negotiated.session)),
            (MaybeTls::Plain(_), _) => panic!("TLS was required"),
        }
    }
}

fn serve_with(arguments: &[String]) -> Serve {
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    Serve::start(&arguments)
}

fn without_tls(serve: &Serve) -> Result<Negotiated<TcpStream>, String> {
    let mut stream = serve.connect_silently();
    let wanted = Wanted::new(Name::default());
    match client_handshake(&mut stream, wanted, ClientConfig::new()) {
        Ok(negotiated) => Ok(Negotiated::new(stream, negotiated.session)),
        Err(error) => Err(error.to_string()),
    }
}

/// Bytes that are different everywhere.
fn pattern(length: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let next = |_| {
        state = state.wrapping_mul(0x915f_77f5).wrapping_add(1);
        (state >> 24) as u8
    };
    (0..length).map(next).collect()
}

/// Reads and writes of all sizes, one by one and many at once, and an end in good order.
fn use_it(mut client: Negotiated<Tls>) {
    let data = pattern(5 << 20);
    for length in [1, 512, 16 << 10, (16 << 10) + 1, 64 << 10, 5 << 20] {
        client.write(3, &data[..length]);
        assert!(client.read(3, length as u64) == data[..length], "{length}");
    }
    let told = client.status(64 << 20, 4096, CommandFlags::empty());
    assert_eq!(told.len(), 1);
    assert!(told[0].0 >= 4096, "{told:?}");
    let mut asked = Vec::new();
    for at in 0..64 {
        let read = Request::read(Cookie(0), 3 + at * 1000, 40_000);
        asked.push((client.send(read, &[]), at as usize * 1000));
        let write = Request::write(Cookie(0), (128 << 20) + at * 4096, 4096);
        client.send(write, &data[at as usize..][..4096]);
    }
    for _ in 0..128 {
        let (cookie, answer) = client.take().unwrap();
        assert_eq!(answer.errno, None);
        if let Some((_, at)) = asked.iter().find(|(asked, _)| *asked == cookie) {
            assert!(answer.data == data[*at..][..40_000], "{at}");
        }
    }
    for at in 0..64 {
        let read = client.read((128 << 20) + at * 4096, 4096);
        assert!(read == data[at as usize..][..4096], "{at}");
    }
    assert_eq!(client.ask(Request::flush(Cookie(0)), &[]).errno, None);
    // The server says in the language of TLS that it sends no more; else this is an error.
    assert_eq!(client.disconnect().read(&mut [0]).unwrap(), 0);
}

#[test]
fn everything_works_over_tls_as_it_does_without() {
    let authority = Authority::new();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    fs::File::create(&path).unwrap().set_len(1 << 30).unwrap();
    let file = ["file", path.to_str().unwrap()];
    // Replies by the thread that reads, and by others.
    for arguments in [&["memory"][..], &file, &["--delay-read", "1"]] {
        let serve = serve_with(&authority.serve(arguments));
        for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
            let side = Side {
                version,
                ..Side::of(&authority)
            };
            use_it(side.connect(&serve).unwrap());
        }
        serve.stop().well();
    }
}

#[test]
fn the_newest_version_is_agreed_on() {
    let authority = Authority::new();
    let serve = serve_with(&authority.serve(&[]));
    let client = Side::of(&authority).connect(&serve).unwrap();
    let version = client.stream.conn.protocol_version();
    assert_eq!(version, Some(ProtocolVersion::TLSv1_3));
    client.disconnect();
    serve.stop().well();
}

#[test]
fn many_connections_at_once_each_have_their_own_tls() {
    let authority = Authority::new();
    let serve = serve_with(&authority.serve(&["--tls-required", "--delay-flush", "1"]));
    std::thread::scope(|scope| {
        for number in 0..8_u8 {
            let (serve, authority) = (&serve, &authority);
            scope.spawn(move || {
                let mut client = Side::of(authority).connect(serve).unwrap();
                let at = u64::from(number) << 20;
                for round in 0..20 {
                    client.write(at, &[number + round; 70_000]);
                    assert_eq!(client.read(at, 70_000), [number + round; 70_000]);
                    assert_eq!(client.ask(Request::flush(Cookie(0)), &[]).errno, None);
                }
                client.disconnect();
            });
        }
    });
    serve.stop().well();
}

#[test]
fn tls_is_for_who_wants_it_unless_it_is_required() {
    let authority = Authority::new();
    let serve = serve_with(&authority.serve(&[]));
    let mut plain = without_tls(&serve).unwrap();
    plain.write(0, b"plain");
    let mut secure = Side::of(&authority).connect(&serve).unwrap();
    assert_eq!(secure.read(0, 5), b"plain");
    plain.disconnect();
    secure.disconnect();
    serve.stop().well();

    let serve = serve_with(&authority.serve(&["--tls-required"]));
    let Err(refused) = without_tls(&serve) else {
        panic!("served without TLS");
    };
    assert!(refused.contains("TLS"), "{refused}");
    Side::of(&authority).connect(&serve).unwrap().disconnect();
    serve.stop().well();
}

#[test]
fn a_server_without_a_certificate_has_no_tls() {
    let authority = Authority::new();
    let serve = Serve::start(&[]);
    // It says so; it does not agree, only to fail.
    let Err(refused) = Side::of(&authority).connect(&serve) else {
        panic!("TLS without a certificate");
    };
    let refused = refused.to_string();
    assert!(refused.contains("refused STARTTLS"), "{refused}");
    without_tls(&serve).unwrap().disconnect();
    serve.stop().well();
}

#[test]
fn clients_have_to_show_a_certificate_of_the_authority_that_is_trusted() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let ca = ours.file("ca-cert.pem");
    let serve = serve_with(&ours.serve(&["--tls-client-ca", &ca, "--tls-required"]));
    // With TLS 1.3 clients are done before the server has looked; then the first read fails.
    assert!(Side::of(&ours).connect(&serve).is_err());
    assert!(Side::of(&ours).showing(&theirs).connect(&serve).is_err());
    let known = Side::of(&ours).showing(&ours).connect(&serve).unwrap();
    use_it(known);
    serve.stop().well();
}

const CLIENT_FLAGS: [u8; 4] = [0, 0, 0, 3];

/// The option `STARTTLS`.
const START_TLS: [u8; 16] = *b"IHAVEOPT\0\0\0\x05\0\0\0\0";

/// A client that has leave to start TLS.
fn about_to_start(serve: &Serve) -> TcpStream {
    let mut stream = serve.connect_silently();
    stream.read_exact(&mut [0; 18]).unwrap();
    stream.write_all(&CLIENT_FLAGS).unwrap();
    stream.write_all(&START_TLS).unwrap();
    let mut reply = [0; 20];
    stream.read_exact(&mut reply).unwrap();
    assert_eq!(reply[12..], [0, 0, 0, 1, 0, 0, 0, 0]);
    stream
}

/// All that comes until the server hangs up.
fn rest(mut stream: TcpStream) -> Vec<u8> {
    let mut heard = Vec::new();
    match stream.read_to_end(&mut heard) {
        Ok(_) => heard,
        Err(error) if error.kind() == ErrorKind::ConnectionReset => heard,
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn what_is_not_tls_ends_its_connection_and_no_other() {
    let authority = Authority::new();
    let serve = serve_with(&authority.serve(&[]));
    let mut witness = Side::of(&authority).connect(&serve).unwrap();
    // The next option, as if there were no TLS; its kind is INFO.
    let info = *b"IHAVEOPT\0\0\0\x06\0\0\0\x06\0\0\0\0\0\0";
    for garbage in [&info[..], &[0; 5000], &pattern(5000)] {
        let mut stream = about_to_start(&serve);
        let _ = stream.write_all(garbage);
        let heard = rest(stream);
        // Nothing but an alert.
        assert!(heard.is_empty() || heard[0] == 0x15, "{heard:02x?}");
    }
    // Together with the option: nobody knows who wrote it.
    let mut stream = serve.connect_silently();
    let early = [&CLIENT_FLAGS[..], &START_TLS, &info].concat();
    stream.write_all(&early).unwrap();
    let heard = rest(stream);
    let replies = heard.get(18 + 20..).unwrap_or_default();
    assert!(replies.is_empty() || replies[0] == 0x15, "{heard:02x?}");
    assert_eq!(witness.read(0, 4), [0; 4]);
    witness.disconnect();
    serve.stop().well();
}

#[test]
fn plaintext_in_the_middle_of_a_session_is_no_request() {
    let authority = Authority::new();
    let serve = serve_with(&authority.serve(&[]));
    let mut client = Side::of(&authority).connect(&serve).unwrap();
    client.write(0, b"good");
    let write = Request::write(Cookie(9), 0, 4).to_extended();
    let mut stream = client.stream.sock;
    stream.write_all(&write).unwrap();
    stream.write_all(b"evil").unwrap();
    // A server that took it for a request would wait for the next.
    stream.shutdown(Shutdown::Write).unwrap();
    let heard = rest(stream);
    // Application data or an alert, both in records.
    assert!(
        matches!(heard.first(), None | Some(0x15 | 0x17)),
        "{heard:02x?}"
    );
    let mut witness = Side::of(&authority).connect(&serve).unwrap();
    assert_eq!(witness.read(0, 4), b"good");
    witness.disconnect();
    serve.stop().well();
}

#[test]
fn a_tls_handshake_that_does_not_go_on_is_ended() {
    let authority = Authority::new();
    let serve = serve_with(&authority.serve(&[]));
    assert_eq!(rest(about_to_start(&serve)), b"");
    serve.stop().well();
}

#[test]
fn clients_in_the_middle_of_tls_do_not_hold_up_the_end() {
    let authority = Authority::new();
    let serve = serve_with(&authority.serve(&["--delay-flush", "1"]));
    let _starting = about_to_start(&serve);
    let mut half = Side::of(&authority).connect(&serve).unwrap();
    half.send(Request::write(Cookie(0), 0, 1 << 20), &[7; 1000]);
    let _idle = Side::of(&authority).connect(&serve).unwrap();
    serve.stop().well();
}

#[test]
fn a_client_that_vanishes_is_no_matter() {
    let authority = Authority::new();
    let serve = serve_with(&authority.serve(&["--delay-read", "20"]));
    for _ in 0..5 {
        let mut client = Side::of(&authority).connect(&serve).unwrap();
        client.send(Request::read(Cookie(0), 0, 1 << 20), &[]);
        drop(client);
    }
    let mut witness = Side::of(&authority).connect(&serve).unwrap();
    assert_eq!(witness.read(0, 4), [0; 4]);
    witness.disconnect();
    serve.stop().well();
}

#[test]
fn where_there_is_nothing_but_tls_it_is_said_where_certificates_go() {
    let authority = Authority::new();
    let ended = Serve::start(&[
        "--tls-cert",
        &authority.file("server-cert.pem"),
        "--tls-key",
        &authority.file("server-key.pem"),
        "--tls-required",
    ])
    .stop();
    assert!(ended.stdout.contains("nbds://localhost"), "{ended:?}");
    let words = "tls-certificates=DIRECTORY";
    assert!(ended.stdout.contains(words), "{ended:?}");
    ended.well();
}

#[test]
fn files_that_do_not_do_are_refused_with_what_to_do() {
    let (authority, other) = (Authority::new(), Authority::new());
    let refused = |arguments: &[&str]| Serve::start_refused(arguments);
    let cert = &authority.file("server-cert.pem")[..];
    let key = &authority.file("server-key.pem")[..];
    let other_key = &other.file("server-key.pem")[..];
    let empty = &authority.file("empty")[..];
    fs::write(empty, "").unwrap();

    let said = refused(&["--tls-cert", cert]);
    assert!(said.contains("--tls-key"), "{said}");
    let said = refused(&["--tls-key", key]);
    assert!(said.contains("--tls-cert"), "{said}");
    let said = refused(&["--tls-required"]);
    assert!(said.contains("--tls-cert"), "{said}");
    let said = refused(&["--tls-client-ca", cert]);
    assert!(said.contains("--tls-cert"), "{said}");
    let said = refused(&["--tls-cert", "/nonexistent", "--tls-key", key]);
    assert!(
        said.contains("cannot read /nonexistent (--tls-cert)"),
        "{said}"
    );
    let said = refused(&["--tls-cert", empty, "--tls-key", key]);
    assert!(
        said.contains("no certificate in") && said.contains("PEM"),
        "{said}"
    );
    let said = refused(&["--tls-cert", cert, "--tls-key", empty]);
    assert!(
        said.contains("no private key in") && said.contains("PEM"),
        "{said}"
    );
    let said = refused(&["--tls-cert", key, "--tls-key", cert]);
    assert!(said.contains("no certificate in"), "{said}");
    let said = refused(&["--tls-cert", cert, "--tls-key", other_key]);
    assert!(said.contains("does not fit"), "{said}");
    let said = refused(&[
        "--tls-cert",
        cert,
        "--tls-key",
        key,
        "--tls-client-ca",
        empty,
    ]);
    assert!(said.contains("--tls-client-ca"), "{said}");
}
