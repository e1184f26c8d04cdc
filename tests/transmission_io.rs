//! The drivers of transmission, on streams that give and take as little as they can.

#![cfg(feature = "std")]

use std::io::{self, IoSlice, Read, Write};

use nbd_proto::io::{Error, Replies, Requests, write_message};
use nbd_proto::limits::Limits;
use nbd_proto::session::{ReplyStyle, Session};
use nbd_proto::transmission::{
    ReadBuffer, ReplyEncoder, ReplyEvent, RequestEncoder, client, server,
};
use nbd_proto::wire::{Cookie, Name, Request, TransmissionFlags};
use proptest::prelude::*;

const SIZE: u64 = 1 << 30;

fn session(style: ReplyStyle) -> Session {
    let flags = TransmissionFlags::HAS_FLAGS | TransmissionFlags::SEND_FLUSH;
    Session::new(Name::default(), SIZE, flags).with_reply_style(style)
}

fn limits() -> Limits {
    Limits::new()
}

/// Gives `input` in pieces; between them it is interrupted, and would block.
struct Script<'a> {
    input: &'a [u8],
    piece: usize,
    /// What it did last: 0 gave something, 1 was interrupted, 2 would block.
    turn: u8,
}

impl<'a> Script<'a> {
    const fn new(input: &'a [u8], piece: usize) -> Self {
        let turn = 0;
        Self { input, piece, turn }
    }
}

impl Read for Script<'_> {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        self.turn = (self.turn + 1) % 3;
        match self.turn {
            1 => Err(io::ErrorKind::Interrupted.into()),
            2 => Err(io::ErrorKind::WouldBlock.into()),
            _ => {
                let len = room.len().min(self.piece);
                self.input.read(&mut room[..len])
            }
        }
    }
}

/// Asks again, as long as the stream would block.
fn insist<T, P>(mut ask: impl FnMut() -> Result<T, Error<P>>) -> Result<T, Error<P>> {
    loop {
        match ask() {
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
            result => return result,
        }
    }
}

// --- requests ---

/// A request, its payload, and how much of that the server reads.
#[derive(Clone, Debug)]
struct Sent {
    request: Request,
    payload: Vec<u8>,
    read: usize,
}

fn sent() -> impl Strategy<Value = Sent> {
    let payload = prop_oneof![
        8 => prop::collection::vec(any::<u8>(), 1..100),
        1 => Just(vec![7; 70_000]),
    ];
    (any::<u64>(), 0..SIZE, payload, 0..3_u8, 0..4_u8).prop_map(
        |(cookie, offset, payload, share, kind)| {
            let cookie = Cookie(cookie);
            let (request, payload) = match kind {
                0 => (Request::flush(cookie), vec![]),
                1 => (Request::read(cookie, offset, 512), vec![]),
                _ => (
                    Request::write(cookie, offset, payload.len() as u64),
                    payload,
                ),
            };
            let read = payload.len() * usize::from(share) / 2;
            Sent {
                request,
                payload,
                read,
            }
        },
    )
}

fn wire(style: ReplyStyle, sent: &[Sent]) -> Vec<u8> {
    let mut wire = Vec::new();
    for Sent {
        request, payload, ..
    } in sent
    {
        match style {
            ReplyStyle::Extended => wire.extend(request.to_extended()),
            _ => wire.extend(request.to_compact().unwrap()),
        }
        wire.extend(payload);
    }
    wire
}

fn style() -> impl Strategy<Value = ReplyStyle> {
    prop::sample::select(&[ReplyStyle::Simple, ReplyStyle::Extended][..])
}

fn piece() -> impl Strategy<Value = usize> {
    prop::sample::select(&[1, 3, 27, 28, 29, 4096, 1 << 20][..])
}

proptest! {
    #[test]
    fn requests_come_as_they_were_sent_whatever_is_read_of_their_payload(
        style in style(),
        sent in prop::collection::vec(sent(), 0..8),
        piece in piece(),
        disconnects in any::<bool>(),
    ) {
        let mut wire = wire(style, &sent);
        if disconnects {
            let goodbye = Request::disconnect();
            match style {
                ReplyStyle::Extended => wire.extend(goodbye.to_extended()),
                _ => wire.extend(goodbye.to_compact().unwrap()),
            }
        }
        let stream = Script::new(&wire, piece);
        let mut requests = Requests::new(stream, &session(style), &limits());
        for Sent { request, payload, read } in &sent {
            let taken = insist(|| requests.next()).unwrap();
            prop_assert_eq!(taken, Some(*request));
            prop_assert_eq!(requests.payload_left(), payload.len() as u64);
            let mut memory = vec![0; *read];
            let mut filled = 0;
            while filled < *read {
                filled += insist(|| requests.receive_payload(&mut memory[filled..])).unwrap();
            }
            prop_assert_eq!(requests.receive_payload(&mut []).unwrap(), 0);
            prop_assert_eq!(&memory, &payload[..*read]);
        }
        prop_assert_eq!(insist(|| requests.next()).unwrap(), None);
        prop_assert_eq!(insist(|| requests.next()).unwrap(), None);
    }

    #[test]
    fn requests_that_are_cut_off_are_errors(
        style in style(),
        sent in sent(),
        piece in piece(),
        cut in any::<prop::sample::Index>(),
    ) {
        let whole = wire(style, std::slice::from_ref(&sent));
        let wire = &whole[..1 + cut.index(whole.len() - 1)];
        let mut requests = Requests::new(Script::new(wire, piece), &session(style), &limits());
        let mut memory = vec![0; sent.payload.len()];
        let end = match insist(|| requests.next()) {
            Ok(Some(_)) => insist(|| {
                let had = sent.payload.len() - usize::try_from(requests.payload_left()).unwrap();
                requests.read_payload(&mut memory[had..])
            }),
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        prop_assert!(matches!(end, Err(Error::Closed(server::Fatal::Eof))), "{:?}", end);
        let again = insist(|| requests.next());
        prop_assert!(matches!(again, Err(Error::Closed(server::Fatal::Eof))), "{:?}", again);
    }
}

#[test]
fn no_more_payload_can_be_read_than_there_is() {
    let session = session(ReplyStyle::Simple);
    let write = Request::write(Cookie(1), 0, 4);
    let wire = [&write.to_compact().unwrap()[..], b"data"].concat();
    let mut requests = Requests::new(&wire[..], &session, &limits());
    assert_eq!(requests.next().unwrap(), Some(write));
    let error = requests.read_payload(&mut [0; 5]).unwrap_err();
    let error = io::Error::from(error);
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    let mut memory = [0; 4];
    requests.read_payload(&mut memory).unwrap();
    assert_eq!(&memory, b"data");
    assert!(requests.read_payload(&mut [0]).is_err());
    assert_eq!(requests.next().unwrap(), None);
}

#[test]
fn after_a_disconnect_nothing_more_is_read() {
    let session = session(ReplyStyle::Simple);
    let wire = [
        &Request::disconnect().to_compact().unwrap()[..],
        &[0x42; 200_000],
    ]
    .concat();
    let mut requests = Requests::new(&wire[..], &session, &limits());
    for _ in 0..3 {
        assert_eq!(requests.next().unwrap(), None);
    }
    assert_eq!(requests.unread().len(), (64 << 10) - Request::COMPACT_LEN);
    assert_eq!(requests.into_inner().len(), wire.len() - (64 << 10));
}

#[test]
fn what_was_sent_together_is_seen_to_be_there() {
    let session = session(ReplyStyle::Simple);
    let flush = |cookie| Request::flush(Cookie(cookie)).to_compact().unwrap();
    let wire = [flush(1), flush(2)].concat();
    let mut requests = Requests::new(&wire[..], &session, &limits());
    requests.next().unwrap();
    assert_eq!(requests.unread(), flush(2));
    requests.next().unwrap();
    assert_eq!(requests.unread(), b"");
}

#[test]
fn what_is_no_request_ends_the_session() {
    let garbage = [0x42; 100];
    let mut requests = Requests::new(&garbage[..], &session(ReplyStyle::Simple), &limits());
    for _ in 0..2 {
        let error = requests.next().unwrap_err();
        assert!(
            matches!(error, Error::Protocol(server::Fatal::Magic(_))),
            "{error:?}"
        );
    }
    let error = io::Error::from(requests.next().unwrap_err());
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
}

// --- replies ---

/// A read answered in chunks: data, a hole, data; with a flush answered between them.
fn chunked(style: ReplyStyle) -> (Request, Vec<u8>, Vec<u8>) {
    let session = session(style);
    let (read, flush) = (
        Request::read(Cookie(1), 4096, 200_000),
        Request::flush(Cookie(2)),
    );
    let data: Vec<u8> = (0..200_000_u32)
        .map(|at| match at {
            100_000..150_000 => 0,
            _ => (at * 7 % 251) as u8,
        })
        .collect();
    let encoder = ReplyEncoder::new(&session);
    let mut chunks = encoder.chunks(&read).unwrap();
    let mut wire = Vec::new();
    let mut add = |head: &[u8], payload: &[u8]| {
        wire.extend(head);
        wire.extend(payload);
    };
    add(
        &chunks.data(4096 + 150_000, 50_000).unwrap(),
        &data[150_000..],
    );
    add(&encoder.ok(&flush), &[]);
    add(&chunks.hole(4096 + 100_000, 50_000).unwrap(), &[]);
    add(&chunks.data(4096, 100_000).unwrap(), &data[..100_000]);
    add(&chunks.done().unwrap(), &[]);
    (read, data, wire)
}

const CHUNKED: [ReplyStyle; 2] = [ReplyStyle::Structured, ReplyStyle::Extended];

#[test]
fn a_read_is_put_together_from_chunks_among_other_replies() {
    for style in CHUNKED {
        let (read, data, wire) = chunked(style);
        for piece in [1, 7, 4096, 1 << 20] {
            let stream = Script::new(&wire, piece);
            let mut replies = Replies::new(stream, &session(style), &limits(), 2);
            replies.expect(&read).unwrap();
            replies.expect(&Request::flush(Cookie(2))).unwrap();
            assert_eq!(replies.decoder().in_flight(), 2);
            let mut memory = vec![0xff; data.len()];
            let mut buffer = ReadBuffer::new(&read, &mut memory).unwrap();
            let mut flushed = false;
            while buffer.result().is_none() {
                insist(|| replies.receive_into(&mut buffer)).unwrap();
                while let Some(event) = replies.next_received().unwrap() {
                    let finished = ReplyEvent::Finished {
                        cookie: Cookie(2),
                        result: Ok(()),
                    };
                    flushed |= event == finished;
                    buffer.take(&event);
                }
            }
            assert!(flushed);
            assert_eq!(buffer.result(), Some(Ok(())));
            assert!(memory == data, "{style:?} in pieces of {piece}");
            // Nothing is in flight; but a server does not leave first.
            let end = insist(|| replies.receive()).unwrap_err();
            assert!(
                matches!(&end, Error::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof),
                "{end:?}"
            );
        }
    }
}

/// Whichever buffer is offered, data goes to the place of its read, behind what came before it.
#[test]
fn two_reads_are_put_together_whichever_of_them_is_asked_for() {
    let style = ReplyStyle::Structured;
    let session = session(style);
    let reads = [1, 2].map(|cookie| Request::read(Cookie(cookie), 4096 * cookie, 200_000));
    let data = [3_u32, 5].map(|step| {
        let bytes = (0..200_000_u32).map(|at| (at * step % 251) as u8);
        bytes.collect::<Vec<u8>>()
    });
    let encoder = ReplyEncoder::new(&session);
    let mut wire = Vec::new();
    let mut chunks = reads.map(|read| encoder.chunks(&read).unwrap());
    for (number, from) in [(0, 0), (1, 0), (0, 100_000), (1, 100_000)] {
        let head = chunks[number].data(reads[number].offset + from as u64, 100_000);
        wire.extend(&head.unwrap()[..]);
        wire.extend(&data[number][from..from + 100_000]);
    }
    for chunks in &mut chunks {
        wire.extend(&chunks.done().unwrap()[..]);
    }
    for piece in [7, 4096, 1 << 20] {
        for order in [[0, 1], [1, 0], [0, 0], [1, 1]] {
            let stream = Script::new(&wire, piece);
            let mut replies = Replies::new(stream, &session, &limits(), 2);
            let mut memory = [vec![0; 200_000], vec![0; 200_000]];
            let [one, other] = &mut memory;
            let mut buffers = [
                ReadBuffer::new(&reads[0], one).unwrap(),
                ReadBuffer::new(&reads[1], other).unwrap(),
            ];
            reads.iter().for_each(|it| replies.expect(it).unwrap());
            let mut rounds = 0;
            while buffers.iter().any(|it| it.result().is_none()) {
                rounds += 1;
                assert!(rounds < wire.len(), "it does not go on");
                // Not asked for events between the two.
                for which in order {
                    match insist(|| replies.receive_into(&mut buffers[which])) {
                        Ok(()) => {}
                        // Nothing is left to come, or there is no room for more: what is there has
                        // to be taken first.
                        Err(Error::Io(_) | Error::Closed(_)) => break,
                        Err(error) => panic!("{error}"),
                    }
                }
                while let Some(event) = replies.next_received().unwrap() {
                    let taken = buffers.iter_mut().any(|it| it.take(&event));
                    assert!(taken, "{event:?}");
                }
            }
            assert!(memory == data, "{order:?} in pieces of {piece}");
        }
    }
}

#[test]
fn a_server_that_leaves_with_requests_unanswered_is_an_error() {
    for style in CHUNKED {
        let (read, data, wire) = chunked(style);
        for cut in [0, 5, 40, 60_000, wire.len() - 1] {
            let stream = Script::new(&wire[..cut], 4096);
            let mut replies = Replies::new(stream, &session(style), &limits(), 2);
            replies.expect(&read).unwrap();
            replies.expect(&Request::flush(Cookie(2))).unwrap();
            let mut memory = vec![0; data.len()];
            let mut buffer = ReadBuffer::new(&read, &mut memory).unwrap();
            let end = loop {
                if let Err(end) = insist(|| replies.receive_into(&mut buffer)) {
                    break end;
                }
                while let Some(event) = replies.next_received().unwrap() {
                    buffer.take(&event);
                }
            };
            assert!(
                matches!(end, Error::Closed(client::Fatal::Eof { in_flight: 1.. })),
                "{end:?}"
            );
            assert_eq!(buffer.result(), None);
        }
    }
}

#[test]
fn what_was_received_has_to_be_taken_before_more_is() {
    let wire = [0x42; 200_000];
    let mut replies = Replies::new(&wire[..], &session(ReplyStyle::Simple), &limits(), 1);
    let end = loop {
        if let Err(end) = replies.receive() {
            break io::Error::from(end);
        }
    };
    assert_eq!(end.kind(), io::ErrorKind::InvalidInput);
    let fatal = replies.next_received().unwrap_err();
    assert!(
        matches!(fatal, Error::Protocol(client::Fatal::Magic { .. })),
        "{fatal:?}"
    );
}

// --- writing ---

/// Takes so many bytes at once, and is interrupted in between.
struct Sink {
    taken: Vec<u8>,
    piece: usize,
    calls: usize,
    flushed: bool,
}

impl Sink {
    const fn new(piece: usize) -> Self {
        Self {
            taken: Vec::new(),
            piece,
            calls: 0,
            flushed: false,
        }
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        self.calls += 1;
        if self.calls.is_multiple_of(2) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let mut left = self.piece;
        for part in parts {
            let len = left.min(part.len());
            self.taken.extend(&part[..len]);
            left -= len;
        }
        Ok(self.piece - left)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.flushed = true;
        Ok(())
    }
}

#[test]
fn messages_are_written_whole() {
    let session = session(ReplyStyle::Simple);
    let write = Request::write(Cookie(1), 0, 5);
    let head = RequestEncoder::new(&session).encode(&write).unwrap();
    for payload in [&b""[..], b"hello"] {
        for piece in [1, 27, 28, 29, 1000] {
            let mut sink = Sink::new(piece);
            write_message(&mut sink, &head, payload).unwrap();
            assert_eq!(sink.taken, [&head, payload].concat());
            assert!(sink.flushed);
            assert!(piece < 1000 || sink.calls == 1, "{} calls", sink.calls);
        }
    }
    let error = write_message(&mut Sink::new(0), &head, b"hello").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WriteZero);
}

// --- futures ---

#[cfg(feature = "futures")]
mod with_futures {
    use std::future::Future;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use futures::FutureExt as _;
    use futures::executor::block_on;
    use futures::io::{AllowStdIo, AsyncRead};
    use nbd_proto::io::MaybeTls;
    use nbd_proto::io::futures::{Replies, Requests, write_message};

    use super::*;

    /// Where the script would block, it is pending.
    impl AsyncRead for Script<'_> {
        fn poll_read(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            room: &mut [u8],
        ) -> Poll<io::Result<usize>> {
            loop {
                match self.read(room) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        context.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                    read => return Poll::Ready(read),
                }
            }
        }
    }

    /// Makes the future anew, and drops it, until one is ready at once.
    macro_rules! insist {
        ($future:expr) => {
            loop {
                if let Some(result) = $future.now_or_never() {
                    break result;
                }
            }
        };
    }

    proptest! {
        #[test]
        fn requests_survive_futures_that_are_dropped(
            style in style(),
            sent in prop::collection::vec(sent(), 0..8),
            piece in piece(),
        ) {
            let wire = wire(style, &sent);
            let mut requests = Requests::new(Script::new(&wire, piece), &session(style), &limits());
            for Sent { request, payload, read } in &sent {
                let taken = insist!(requests.next()).unwrap();
                prop_assert_eq!(taken, Some(*request));
                let mut memory = vec![0; *read];
                let mut filled = 0;
                while filled < *read {
                    filled += insist!(requests.receive_payload(&mut memory[filled..])).unwrap();
                }
                prop_assert_eq!(&memory, &payload[..*read]);
            }
            prop_assert_eq!(insist!(requests.next()).unwrap(), None);
        }
    }

    #[test]
    fn reads_survive_futures_that_are_dropped() {
        for style in CHUNKED {
            let (read, data, wire) = chunked(style);
            for piece in [1, 7, 4096, 1 << 20] {
                let stream = Script::new(&wire, piece);
                let mut replies = Replies::new(stream, &session(style), &limits(), 2);
                replies.expect(&read).unwrap();
                replies.expect(&Request::flush(Cookie(2))).unwrap();
                let mut memory = vec![0xff; data.len()];
                let mut buffer = ReadBuffer::new(&read, &mut memory).unwrap();
                while buffer.result().is_none() {
                    insist!(replies.receive_into(&mut buffer)).unwrap();
                    while let Some(event) = replies.next_received().unwrap() {
                        buffer.take(&event);
                    }
                }
                assert_eq!(buffer.result(), Some(Ok(())));
                assert!(memory == data, "{style:?} in pieces of {piece}");
                let end = insist!(replies.receive()).unwrap_err();
                assert!(matches!(end, Error::Io(_)), "{end:?}");
            }
        }
    }

    #[test]
    fn what_is_cut_off_is_an_error() {
        let (read, _, wire) = chunked(ReplyStyle::Structured);
        let stream = Script::new(&wire[..50], 7);
        let mut replies = Replies::new(stream, &session(ReplyStyle::Structured), &limits(), 1);
        replies.expect(&read).unwrap();
        let end = loop {
            if let Err(end) = block_on(replies.receive()) {
                break end;
            }
            while replies.next_received().unwrap().is_some() {}
        };
        assert!(
            matches!(end, Error::Closed(client::Fatal::Eof { in_flight: 1 })),
            "{end:?}"
        );
        let header = Request::write(Cookie(1), 0, 4).to_compact().unwrap();
        for (cut, rest) in [(20, None), (28, Some(()))] {
            let stream = Script::new(&header[..cut], 7);
            let mut requests = Requests::new(stream, &session(ReplyStyle::Simple), &limits());
            let end = match rest {
                None => block_on(requests.next()).map(drop),
                Some(()) => {
                    block_on(requests.next()).unwrap();
                    block_on(requests.read_payload(&mut [0; 4]))
                }
            };
            assert!(
                matches!(end, Err(Error::Closed(server::Fatal::Eof))),
                "{end:?}"
            );
        }
    }

    #[test]
    fn messages_are_written_whole_to_futures() {
        let session = session(ReplyStyle::Simple);
        let write = Request::write(Cookie(1), 0, 5);
        let head = RequestEncoder::new(&session).encode(&write).unwrap();
        for piece in [1, 27, 28, 29, 1000] {
            let mut stream = AllowStdIo::new(Sink::new(piece));
            block_on(write_message(&mut stream, &head, b"hello")).unwrap();
            let sink = stream.into_inner();
            assert_eq!(sink.taken, [&head[..], b"hello"].concat());
            assert!(sink.flushed);
        }
        // Head and payload together, also through what a handshake leaves.
        let plain = AllowStdIo::new(Sink::new(1000));
        let mut stream = MaybeTls::<_, AllowStdIo<Sink>>::Plain(plain);
        block_on(write_message(&mut stream, &head, b"hello")).unwrap();
        let MaybeTls::Plain(stream) = stream else {
            unreachable!("it is plain");
        };
        assert_eq!(stream.into_inner().calls, 1);
        let mut nothing = AllowStdIo::new(Sink::new(0));
        let error = block_on(write_message(&mut nothing, &head, b"hello")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WriteZero);
    }

    /// The futures can be given to executors with several threads.
    #[test]
    fn futures_can_be_sent() {
        fn sends<T>(future: impl Future<Output = T> + Send) {
            drop(future);
        }
        let session = session(ReplyStyle::Simple);
        let mut requests = Requests::new(Script::new(&[], 1), &session, &limits());
        sends(requests.next());
        sends(requests.read_payload(&mut []));
        let mut replies = Replies::new(Script::new(&[], 1), &session, &limits(), 1);
        sends(replies.receive());
    }
}
