//! The drivers, on streams in memory and on sockets.

#![cfg(feature = "std")]

mod handshake_support;

use std::io::{self, BufWriter, Cursor, IoSlice, IoSliceMut, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use handshake_support::*;
use nbd_proto::error::{Fatal, Refusal, Refused};
use nbd_proto::handshake::{
    ClientConfig, Inspect, NegotiateError, ServerConfig, TlsPolicy, TlsWanted, Wanted,
};
use nbd_proto::io::{
    Error, MaybeTls, client_handshake, client_handshake_with_tls, inspect, inspect_with_tls,
    server_handshake, server_handshake_with_tls,
};
use nbd_proto::limits::Limits;
use nbd_proto::wire::{
    ClientFlags, ClientOption, Info, OptionCode, OptionReply, ReplyType, TransmissionFlags,
};

/// A stream that has everything to be read from the beginning, gives it in small pieces, and
/// collects what is written.
struct Script {
    input: Cursor<Vec<u8>>,
    output: Vec<u8>,
    piece: usize,
    /// Fail with this after the input, rather than say that it ends.
    error: Option<io::ErrorKind>,
    interrupts: bool,
    /// How often something was read.
    reads: usize,
}

impl Script {
    fn new(input: Vec<u8>, piece: usize) -> Self {
        Self {
            input: Cursor::new(input),
            output: vec![],
            piece,
            error: None,
            interrupts: false,
            reads: 0,
        }
    }

    fn rest(self) -> Vec<u8> {
        let at = usize::try_from(self.input.position()).unwrap();
        self.input.into_inner().split_off(at)
    }
}

impl Read for Script {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.interrupts = !self.interrupts;
        if self.interrupts {
            return Err(io::ErrorKind::Interrupted.into());
        }
        self.reads += 1;
        let len = buffer.len().min(self.piece);
        match (self.input.read(&mut buffer[..len])?, self.error) {
            (0, Some(kind)) => Err(kind.into()),
            (len, _) => Ok(len),
        }
    }
}

impl Write for Script {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let len = buffer.len().min(self.piece);
        self.output.extend_from_slice(&buffer[..len]);
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn go(export: &str) -> ClientOption {
    ClientOption::Go(request(export, &[]))
}

/// A pair of connected sockets that give up after some time.
fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (theirs, _) = listener.accept().unwrap();
    for socket in [&ours, &theirs] {
        let patience = Some(Duration::from_secs(20));
        socket.set_read_timeout(patience).unwrap();
        socket.set_write_timeout(patience).unwrap();
    }
    (ours, theirs)
}

#[test]
fn a_server_reads_no_byte_of_transmission() {
    for piece in [1, 3, 1000] {
        let mut bytes = client_bytes(fixed(), &[ClientOption::List, go("disk")]);
        bytes.extend_from_slice(b"a request");
        let mut stream = Script::new(bytes, piece);
        let session = server_handshake(&mut stream, ServerConfig::new(), answer).unwrap();
        assert_eq!(session.unwrap().export(), &name("disk"));
        assert_eq!(stream.rest(), b"a request");
    }
}

#[test]
fn a_client_reads_no_byte_of_transmission() {
    let options = [ClientOption::StructuredReply, go("disk")];
    let mut bytes = run_server(ServerConfig::new(), &client_bytes(fixed(), &options), &[]).output;
    bytes.extend_from_slice(b"a reply");
    for piece in [1, 3, 1000] {
        let mut stream = Script::new(bytes.clone(), piece);
        let wanted = compact("disk");
        let got = client_handshake(&mut stream, wanted, ClientConfig::new()).unwrap();
        assert_eq!(got.session.size(), disk().size);
        assert_eq!(stream.rest(), b"a reply");
    }
}

#[test]
fn drivers_read_as_much_at_once_as_belongs_to_a_message() {
    let mut stream = Script::new(client_bytes(fixed(), &[go("disk")]), 1000);
    server_handshake(&mut stream, ServerConfig::new(), answer).unwrap();
    assert_eq!(stream.reads, 3, "flags, header, body");

    let export = OptionReply::Info(Info::Export {
        size: 1,
        flags: TransmissionFlags::HAS_FLAGS,
    });
    let replies = [(OptionCode::GO, export), (OptionCode::GO, OptionReply::Ack)];
    let mut stream = Script::new(server_bytes(3, &replies), 1000);
    let wanted = compact("disk").with_structured_replies(false);
    client_handshake(&mut stream, wanted, ClientConfig::new()).unwrap();
    assert_eq!(stream.reads, 4, "greeting, header, body, header");

    let entry = OptionReply::Server {
        name: name("disk"),
        description: name("a disk"),
    };
    let replies = [
        (OptionCode::EXTENDED_HEADERS, OptionReply::Ack),
        (OptionCode::LIST, entry),
        (OptionCode::LIST, OptionReply::Ack),
    ];
    let mut stream = Script::new(server_bytes(3, &replies), 1000);
    let list = Inspect::new().with_list(true);
    inspect(&mut stream, list, ClientConfig::new()).1.unwrap();
    assert_eq!(stream.reads, 5, "greeting, header, header, body, header");
}

#[test]
fn a_client_that_leaves_in_good_order_is_no_error() {
    let abort = [ClientOption::List, ClientOption::Abort];
    for options in [&abort[..], &abort[..1], &[]] {
        let mut stream = Script::new(client_bytes(fixed(), options), 7);
        let session = server_handshake(&mut stream, ServerConfig::new(), answer).unwrap();
        assert_eq!(session, None);
    }
}

#[test]
fn what_goes_wrong_is_told_apart() {
    let bytes = client_bytes(fixed(), &[go("disk")]);
    let mut cut = Script::new(bytes[..29].to_vec(), 100);
    assert!(matches!(
        server_handshake(&mut cut, ServerConfig::new(), answer),
        Err(Error::Closed(Fatal::Closed))
    ));
    let mut broken = Script::new(bytes[..29].to_vec(), 100);
    broken.error = Some(io::ErrorKind::ConnectionReset);
    assert!(matches!(
        server_handshake(&mut broken, ServerConfig::new(), answer),
        Err(Error::Io(error)) if error.kind() == io::ErrorKind::ConnectionReset
    ));
    let mut hostile = Script::new(client_bytes(ClientFlags::all(), &[]), 100);
    let error = server_handshake(&mut hostile, ServerConfig::new(), answer).unwrap_err();
    assert!(matches!(error, Error::Protocol(Fatal::ClientFlags(_))));
    assert_eq!(
        io::Error::from(error).kind(),
        io::ErrorKind::InvalidData,
        "as an I/O error"
    );
    assert_eq!(hostile.output.len(), 18, "the greeting was sent");
}

#[test]
fn what_was_answered_before_the_end_is_still_sent() {
    let limits = Limits::new().with_max_options(1);
    let config = ServerConfig::new().with_limits(limits);
    let options = [ClientOption::StartTls, ClientOption::StartTls];
    let mut stream = Script::new(client_bytes(fixed(), &options), 1000);
    let end = server_handshake(&mut stream, config, answer);
    assert!(matches!(
        end,
        Err(Error::Protocol(Fatal::TooManyOptions { limit: 1 }))
    ));
    assert_eq!(replies(&stream.output).0.len(), 1);
}

#[test]
fn a_refused_client_sends_its_farewell() {
    let error = OptionReply::Error {
        code: ReplyType::ERR_UNKNOWN,
        message: name("no"),
    };
    let mut stream = Script::new(server_bytes(3, &[(OptionCode::GO, error)]), 1000);
    let wanted = compact("x").with_structured_replies(false);
    let error = client_handshake(&mut stream, wanted, ClientConfig::new()).unwrap_err();
    assert!(matches!(
        &error,
        Error::Protocol(NegotiateError::Refused(refused))
            if refused.code == ReplyType::ERR_UNKNOWN
    ));
    assert_eq!(io::Error::from(error).kind(), io::ErrorKind::NotFound);
    let mut abort = vec![];
    ClientOption::Abort.encode(&mut abort);
    assert!(stream.output.ends_with(&abort));
}

#[test]
fn why_a_client_was_refused_is_told_apart_as_an_io_error() {
    for (code, kind) in [
        (ReplyType::ERR_UNKNOWN, io::ErrorKind::NotFound),
        (ReplyType::ERR_POLICY, io::ErrorKind::PermissionDenied),
        (ReplyType::ERR_TLS_REQD, io::ErrorKind::PermissionDenied),
        (ReplyType::ERR_SHUTDOWN, io::ErrorKind::ConnectionRefused),
        (ReplyType::ERR_INVALID, io::ErrorKind::ConnectionRefused),
    ] {
        let refused = NegotiateError::Refused(Refused {
            option: OptionCode::GO,
            code,
            message: name("no"),
        });
        assert_eq!(io::Error::from(refused).kind(), kind, "{code}");
    }
}

#[test]
fn a_server_that_hangs_up_on_export_name_has_no_such_export() {
    let mut stream = Script::new(server_bytes(0, &[]), 1000);
    let error = client_handshake(&mut stream, Wanted::new(name("x")), ClientConfig::new());
    let error = error.unwrap_err();
    assert_eq!(
        error.to_string(),
        "the server has no export \"x\", or does not let us use it"
    );
    assert_eq!(io::Error::from(error).kind(), io::ErrorKind::NotFound);
}

#[test]
fn that_the_connection_was_closed_is_said_once() {
    let greeting = &server_bytes(0, &[])[..10];
    let mut stream = Script::new(greeting.to_vec(), 1000);
    let error = client_handshake(&mut stream, Wanted::new(name("x")), ClientConfig::new());
    let error = error.unwrap_err();
    let said = error.to_string();
    assert_eq!(said.matches("closed").count(), 1, "{said}");
    assert_eq!(io::Error::from(error).kind(), io::ErrorKind::UnexpectedEof);
}

#[test]
fn both_drivers_shake_hands_over_a_socket() {
    let (mut ours, mut theirs) = sockets();
    let server = thread::spawn(move || {
        let session = server_handshake(&mut theirs, ServerConfig::new(), answer).unwrap();
        let mut request = [0; 7];
        theirs.read_exact(&mut request).unwrap();
        (session, request)
    });
    let wanted = Wanted::new(name("disk")).with_description(true);
    let got = client_handshake(&mut ours, wanted, ClientConfig::new()).unwrap();
    ours.write_all(b"request").unwrap();
    let (session, request) = server.join().unwrap();
    assert_eq!(session, Some(got.session));
    assert_eq!(got.description, Some(disk().description));
    assert_eq!(&request, b"request");
}

#[test]
fn a_server_over_a_socket_refuses_and_survives_a_client_that_leaves_at_once() {
    let (mut ours, mut theirs) = sockets();
    let server = thread::spawn(move || server_handshake(&mut theirs, ServerConfig::new(), answer));
    let wanted = Wanted::new(name("secret"));
    let end = client_handshake(&mut ours, wanted, ClientConfig::new());
    drop(ours);
    assert!(matches!(
        end,
        Err(Error::Protocol(NegotiateError::Refused(_)))
    ));
    assert_eq!(server.join().unwrap().unwrap(), None);
    assert_eq!(Refusal::TlsRequired.reply_type(), ReplyType::ERR_TLS_REQD);
}

#[test]
fn a_silent_peer_ends_with_the_timeout_of_the_stream() {
    let (mut ours, theirs) = sockets();
    ours.set_read_timeout(Some(Duration::from_millis(20)))
        .unwrap();
    let end = client_handshake(&mut ours, Wanted::new(name("x")), ClientConfig::new());
    assert!(matches!(
        end,
        Err(Error::Io(error))
            if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
    ));
    drop(theirs);
}

/// What these tests have for TLS: a greeting, after which every byte is turned around.
struct NotTls<S>(S);

const HELLO: [u8; 5] = *b"hello";

impl<S: Read + Write> NotTls<S> {
    fn begin(mut stream: S) -> io::Result<Self> {
        stream.write_all(&HELLO)?;
        let mut hello = [0; 5];
        stream.read_exact(&mut hello)?;
        if hello != HELLO {
            return Err(io::Error::other("not a hello"));
        }
        Ok(Self(stream))
    }
}

impl<S: Read> Read for NotTls<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.0.read(buffer)?;
        buffer[..len].iter_mut().for_each(|byte| *byte = !*byte);
        Ok(len)
    }
}

impl<S: Write> Write for NotTls<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let turned: Vec<u8> = bytes.iter().map(|byte| !byte).collect();
        self.0.write(&turned)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

fn forced() -> ServerConfig {
    ServerConfig::new()
        .with_tls(TlsPolicy::Forced)
        .with_meta_contexts(true)
}

fn over_tls(export: &str) -> Wanted {
    Wanted::new(name(export)).with_tls(TlsWanted::Required)
}

#[test]
fn both_drivers_start_tls_and_hand_out_what_they_made_of_the_stream() {
    let (ours, theirs) = sockets();
    let server = thread::spawn(move || {
        let (mut stream, session) =
            server_handshake_with_tls(theirs, forced(), NotTls::begin, answer).unwrap();
        assert!(stream.is_tls());
        let mut request = [0; 7];
        stream.read_exact(&mut request).unwrap();
        (session, request)
    });
    let (mut stream, got) =
        client_handshake_with_tls(ours, over_tls("secret"), ClientConfig::new(), NotTls::begin)
            .unwrap();
    assert!(stream.is_tls() && got.session.is_tls());
    stream.write_all(b"request").unwrap();
    let (session, request) = server.join().unwrap();
    assert_eq!(session, Some(got.session));
    assert_eq!(&request, b"request");
}

#[test]
fn drivers_with_tls_do_without_where_both_sides_may() {
    let (ours, theirs) = sockets();
    let never = |_| -> io::Result<NotTls<TcpStream>> { panic!("TLS was not agreed on") };
    let server = thread::spawn(move || {
        let config = ServerConfig::new();
        server_handshake_with_tls(theirs, config, never, answer)
            .unwrap()
            .1
    });
    let wanted = Wanted::new(name("disk")).with_tls(TlsWanted::Preferred);
    let config = ClientConfig::new();
    let (stream, got) = client_handshake_with_tls(ours, wanted, config, never).unwrap();
    assert!(!stream.is_tls() && !got.session.is_tls());
    assert_eq!(server.join().unwrap(), Some(got.session));
}

#[test]
fn what_a_stream_can_do_at_once_it_can_still_do_when_it_may_be_tls() {
    type Either<S> = MaybeTls<S, S>;
    for wrap in [Either::Plain, Either::Tls] {
        let mut stream = wrap(Cursor::new(b"abcdef".to_vec()));
        let (mut one, mut two) = ([0; 2], [0; 3]);
        let mut buffers = [IoSliceMut::new(&mut one), IoSliceMut::new(&mut two)];
        assert_eq!(stream.read_vectored(&mut buffers).unwrap(), 5);
        assert_eq!((&one, &two), (b"ab", b"cde"));
    }
    for wrap in [Either::Plain, Either::Tls] {
        let mut stream = wrap(BufWriter::new(vec![]));
        let buffers = [IoSlice::new(b"ab"), IoSlice::new(b"cde")];
        assert_eq!(stream.write_vectored(&buffers).unwrap(), 5);
        stream.flush().unwrap();
        let (MaybeTls::Plain(inner) | MaybeTls::Tls(inner)) = &stream;
        assert_eq!(inner.get_ref(), b"abcde", "it is not in a buffer any more");
    }
}

#[test]
fn a_failure_of_tls_is_the_end_of_the_connection() {
    let (ours, theirs) = sockets();
    let server = thread::spawn(move || {
        server_handshake_with_tls(theirs, forced(), NotTls::begin, answer).map(|_| ())
    });
    let wanted = over_tls("disk");
    let failed = client_handshake_with_tls(ours, wanted, ClientConfig::new(), |_| {
        Err::<NotTls<TcpStream>, _>(io::Error::other("the certificate is no good"))
    });
    assert!(matches!(failed.map(|_| ()), Err(Error::Io(error))
        if error.to_string() == "the certificate is no good"));
    let end = server.join().unwrap();
    assert!(matches!(end, Err(Error::Io(_))), "{end:?}");
}

#[test]
fn drivers_without_tls_refuse_what_could_lead_there_before_they_say_a_word() {
    let mut stream = Script::new(vec![], 100);
    let end = server_handshake(&mut stream, forced(), answer);
    let invalid = io::ErrorKind::InvalidInput;
    assert!(matches!(end, Err(Error::Io(error)) if error.kind() == invalid));
    let end = client_handshake(&mut stream, over_tls("disk"), ClientConfig::new());
    assert!(matches!(end, Err(Error::Io(error)) if error.kind() == invalid));
    assert_eq!(stream.output, []);
}

#[test]
fn what_is_sent_before_tls_starts_is_left_to_tls() {
    // A client that says STARTTLS and does not wait: the driver reads no further than that.
    let mut bytes = client_bytes(fixed(), &[ClientOption::StartTls]);
    bytes.extend_from_slice(b"GO!!!");
    let stream = Script::new(bytes, 1000);
    let end = server_handshake_with_tls(
        stream,
        forced(),
        |mut stream: Script| {
            let mut hello = vec![];
            stream.interrupts = true;
            stream.read_to_end(&mut hello)?;
            assert_eq!(hello, b"GO!!!");
            Err::<NotTls<Script>, _>(io::Error::other("not a hello"))
        },
        answer,
    );
    assert!(matches!(end.map(|_| ()), Err(Error::Io(_))));
}

#[test]
fn an_inspection_comes_through_either_driver() {
    let what = Inspect::new()
        .with_every_export(true)
        .with_contexts(true)
        .with_export(name("secret"));
    let (mut ours, mut theirs) = sockets();
    let server = thread::spawn(move || {
        let config = ServerConfig::new().with_meta_contexts(true);
        server_handshake(&mut theirs, config, answer).unwrap()
    });
    let (report, end) = inspect(&mut ours, what.clone(), ClientConfig::new());
    drop(ours);
    assert!(end.is_ok());
    assert_eq!(report.exports.len(), 3);
    assert!(report.exports[0].info.is_err());
    assert_eq!(server.join().unwrap(), None);

    let (ours, theirs) = sockets();
    let server = thread::spawn(move || {
        server_handshake_with_tls(theirs, forced(), NotTls::begin, answer)
            .map(|(_, session)| session)
            .unwrap()
    });
    let what = what.with_tls(TlsWanted::Required);
    let (report, end) = inspect_with_tls(ours, what, ClientConfig::new(), NotTls::begin);
    assert!(end.is_ok() && report.tls);
    assert!(report.exports[0].info.is_ok());
    assert_eq!(server.join().unwrap(), None);

    // What was learned before the server broke off.
    let greeting = server_bytes(3, &[]);
    let mut stream = Script::new(greeting, 7);
    let (report, end) = inspect(&mut stream, Inspect::new(), ClientConfig::new());
    assert!(matches!(end, Err(Error::Closed(_))));
    assert!(report.greeting.is_some());
}

#[cfg(feature = "futures")]
mod with_futures {
    use super::*;
    use futures::executor::block_on;
    use futures::io::{AllowStdIo, AsyncRead, AsyncWrite};
    use nbd_proto::io::futures as driver;
    use std::pin::Pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
    use std::task::{Context, Poll};

    #[test]
    fn both_async_drivers_shake_hands_over_a_socket() {
        let (ours, theirs) = sockets();
        let server = thread::spawn(move || {
            let mut stream = AllowStdIo::new(theirs);
            let config = ServerConfig::new();
            block_on(driver::server_handshake(&mut stream, config, answer)).unwrap()
        });
        let mut stream = AllowStdIo::new(ours);
        let wanted = Wanted::new(name("disk"));
        let handshake = driver::client_handshake(&mut stream, wanted, ClientConfig::new());
        let got = block_on(handshake).unwrap();
        assert_eq!(server.join().unwrap(), Some(got.session));
    }

    #[test]
    fn both_async_drivers_start_tls() {
        type Stream = AllowStdIo<TcpStream>;
        let begin = async |stream: Stream| {
            let turned = NotTls::begin(stream.into_inner())?;
            io::Result::Ok(AllowStdIo::new(turned))
        };
        for with_inspector in [false, true] {
            let (ours, theirs) = sockets();
            let server = thread::spawn(move || {
                let stream = AllowStdIo::new(theirs);
                let shaken = driver::server_handshake_with_tls(stream, forced(), begin, answer);
                let (stream, session) = block_on(shaken).unwrap();
                assert!(stream.is_tls());
                session
            });
            let stream = AllowStdIo::new(ours);
            if with_inspector {
                let what = Inspect::new().with_list(true).with_tls(TlsWanted::Required);
                let config = ClientConfig::new();
                let (report, end) = block_on(driver::inspect_with_tls(stream, what, config, begin));
                assert!(end.is_ok() && report.tls);
                assert_eq!(server.join().unwrap(), None);
                continue;
            }
            let config = ClientConfig::new();
            let wanted = over_tls("secret");
            let shaken = driver::client_handshake_with_tls(stream, wanted, config, begin);
            let (stream, got) = block_on(shaken).unwrap();
            assert!(stream.is_tls());
            assert_eq!(server.join().unwrap(), Some(got.session));
        }
    }

    /// What these tests have for TLS where they only ask whether it was shut down.
    struct Closing {
        stream: AllowStdIo<Script>,
        closed: Arc<AtomicBool>,
    }

    impl AsyncRead for Closing {
        fn poll_read(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            buffer: &mut [u8],
        ) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.stream).poll_read(context, buffer)
        }
    }

    impl AsyncWrite for Closing {
        fn poll_write(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            assert!(!self.closed.load(Relaxed), "more is sent after the end");
            Pin::new(&mut self.stream).poll_write(context, bytes)
        }

        fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.stream).poll_flush(context)
        }

        fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.closed.store(true, Relaxed);
            Poll::Ready(Ok(()))
        }
    }

    #[test]
    fn async_drivers_shut_tls_down_after_their_farewell() {
        // proto.md "Termination of the session during option haggling": an ABORT "MUST be followed
        // by the client shutting down TLS (if it is running)".
        let refused = OptionReply::Error {
            code: ReplyType::ERR_POLICY,
            message: name("no"),
        };
        let replies = [
            (OptionCode::STARTTLS, OptionReply::Ack),
            (OptionCode::EXTENDED_HEADERS, OptionReply::Ack),
            (OptionCode::GO, refused),
        ];
        let stream = || AllowStdIo::new(Script::new(server_bytes(3, &replies), 1000));
        let closed = Arc::new(AtomicBool::new(false));
        let begin = async |stream: AllowStdIo<Script>| {
            let closed = Arc::clone(&closed);
            io::Result::Ok(Closing { stream, closed })
        };
        let config = ClientConfig::new();
        let what = Inspect::new().with_tls(TlsWanted::Required);
        let (_, end) = block_on(driver::inspect_with_tls(stream(), what, config, begin));
        assert!(end.is_ok());
        assert!(closed.swap(false, Relaxed));

        let shaken = driver::client_handshake_with_tls(stream(), over_tls("disk"), config, begin);
        let refused = block_on(shaken).map(|_| ());
        assert!(matches!(
            refused,
            Err(Error::Protocol(NegotiateError::Refused(_)))
        ));
        assert!(closed.load(Relaxed));
    }

    #[test]
    fn async_drivers_without_tls_refuse_what_could_lead_there() {
        let mut stream = AllowStdIo::new(Script::new(vec![], 100));
        let invalid = io::ErrorKind::InvalidInput;
        let end = block_on(driver::server_handshake(&mut stream, forced(), answer));
        assert!(matches!(end, Err(Error::Io(error)) if error.kind() == invalid));
        let wanted = over_tls("disk");
        let end = block_on(driver::client_handshake(
            &mut stream,
            wanted,
            ClientConfig::new(),
        ));
        assert!(matches!(end, Err(Error::Io(error)) if error.kind() == invalid));
        let what = Inspect::new().with_list(true);
        let (report, end) = block_on(driver::inspect(&mut stream, what, ClientConfig::new()));
        assert!(matches!(end, Err(Error::Closed(_))));
        assert_eq!(report.list, None);
    }

    #[test]
    fn async_drivers_read_no_byte_of_transmission_and_tell_ends_apart() {
        let mut bytes = client_bytes(fixed(), &[go("disk")]);
        bytes.extend_from_slice(b"a request");
        let config = ServerConfig::new();
        for piece in [1, 3, 1000] {
            let mut stream = AllowStdIo::new(Script::new(bytes.clone(), piece));
            let session = block_on(driver::server_handshake(&mut stream, config, answer)).unwrap();
            assert!(session.is_some());
            assert_eq!(stream.into_inner().rest(), b"a request");
        }

        let mut stream = AllowStdIo::new(Script::new(bytes[..29].to_vec(), 100));
        let end = block_on(driver::server_handshake(&mut stream, config, answer));
        assert!(matches!(end, Err(Error::Closed(Fatal::Closed))));

        let mut stream = AllowStdIo::new(Script::new(server_bytes(0, &[]), 100));
        let wanted = Wanted::new(name("x"));
        let handshake = driver::client_handshake(&mut stream, wanted, ClientConfig::new());
        assert!(matches!(
            block_on(handshake),
            Err(Error::Closed(NegotiateError::Fatal(
                Fatal::ExportUnavailable { .. }
            )))
        ));
    }
}
