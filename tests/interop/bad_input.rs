//! Bytes that no client should send: the server goes on serving others, in little memory.

use std::io::Write;
use std::thread;
use std::time::{Duration, Instant};

use crate::content::Random;
use crate::process::SOON;
use crate::raw::{
    CLIENT_FLAGS, DISC, EINVAL, IHAVEOPT, OPT_GO, READ, Raw, Stream, WRITE, go, hung_up, option,
    request,
};
use crate::server::{Serve, Server, Storage};
use crate::settings::{seed, serve_is_nbdkit};

/// Far more than a server of 64 MiB needs, far less than what the lengths below ask for.
const MODEST: u64 = 512 << 20;

/// A server, and a client of it that must never notice anything.
struct Witnessed {
    server: Server,
    witness: Raw,
    written: u8,
}

impl Witnessed {
    fn new(storage: Storage) -> Self {
        let server = Serve::over(storage).start();
        let witness = server.connect();
        Self {
            server,
            witness,
            written: 0,
        }
    }

    fn stranger(&self) -> Stream {
        Stream::connect(self.server.endpoint())
    }

    /// The witness writes and reads, a new client comes and goes, and memory is modest.
    #[track_caller]
    fn assert_unmoved(&mut self) {
        assert!(self.server.is_running(), "the server ended");
        self.written += 1;
        let data = [self.written; 4096];
        self.witness
            .write(1 << 20, &data)
            .expect("the witness writes");
        assert_eq!(self.witness.read(1 << 20, 4096).unwrap(), data);
        let mut newcomer = self.server.connect();
        newcomer.read(0, 512).expect("a newcomer is served");
        newcomer.disconnect();
        let peak = self.server.peak_memory();
        assert!(peak < MODEST, "the server held {peak} bytes");
    }
}

/// Sends what it can; a server may hang up in the middle.
fn send(stream: &mut Stream, bytes: &[u8]) {
    if let Err(error) = stream.write_all(bytes) {
        assert!(hung_up(&error), "{error}");
    }
}

over_every_storage! {
    garbage_ends_its_own_connection_only,
    a_session_cut_anywhere_leaves_nothing_behind,
    a_client_that_dies_in_a_payload_loses_its_own_connection_only,
}

fn garbage_ends_its_own_connection_only(storage: Storage) {
    let mut serve = Witnessed::new(storage);
    let mut random = Random(seed());
    let http = b"GET / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: somebody\r\n\r\n".to_vec();
    let mut heaps = vec![http, vec![0; 1 << 16], vec![0xff; 1 << 16]];
    heaps.extend((0..16).map(|i| random.bytes(1 << i)));
    for garbage in heaps {
        let mut stream = serve.stranger();
        send(&mut stream, &garbage);
        stream.end_of_input();
        stream.read_until_hang_up();
        // The same, once the server has taken us for a client.
        let mut stream = serve.stranger();
        send(&mut stream, &[&CLIENT_FLAGS, &garbage[..]].concat());
        stream.end_of_input();
        stream.read_until_hang_up();
        // And in transmission.
        let mut client = serve.server.connect();
        send(&mut client.stream, &garbage);
        client.stream.end_of_input();
        client.stream.read_until_hang_up();
    }
    serve.assert_unmoved();
}

/// A short session with a bit of everything.
fn session() -> Vec<u8> {
    let mut bytes = CLIENT_FLAGS.to_vec();
    bytes.extend(option(3, &[]));
    bytes.extend(option(0x4242, b"unknown"));
    bytes.extend(option(8, &[]));
    bytes.extend(go(""));
    bytes.extend(request(0, READ, 1, 0, 512));
    bytes.extend(request(0, WRITE, 2, 4096, 512));
    bytes.extend([7; 512]);
    bytes.extend(request(0, DISC, 3, 0, 0));
    bytes
}

fn a_session_cut_anywhere_leaves_nothing_behind(storage: Storage) {
    let mut serve = Witnessed::new(storage);
    serve.assert_unmoved();
    let idle = serve.server.open_files();
    let session = session();
    // Every cut in the headers; the payload is all alike.
    for cut in (0..session.len()).filter(|cut| cut % 64 == 0 || *cut < 190) {
        let mut stream = serve.stranger();
        send(&mut stream, &session[..cut]);
        if cut % 2 == 0 {
            stream.end_of_input();
            stream.read_until_hang_up();
        }
    }
    serve.assert_unmoved();
    let deadline = Instant::now() + SOON;
    while serve.server.open_files() > idle + 1 {
        assert!(
            Instant::now() < deadline,
            "connections stay open in the server"
        );
        thread::sleep(Duration::from_millis(10));
    }
}

fn a_client_that_dies_in_a_payload_loses_its_own_connection_only(storage: Storage) {
    let mut serve = Witnessed::new(storage);
    for sent in [0, 1, 4096, (1 << 20) - 1] {
        let mut client = serve.server.connect();
        client.write(1 << 20, b"before").unwrap();
        let payload = vec![0xdd; sent];
        send(&mut client.stream, &request(0, WRITE, 99, 8 << 20, 1 << 20));
        send(&mut client.stream, &payload);
        drop(client);
        serve.assert_unmoved();
    }
}

#[test]
fn a_client_that_sends_byte_by_byte_is_served() {
    let serve = Witnessed::new(Storage::Memory);
    let mut stream = serve.stranger();
    for byte in session() {
        stream.write_all(&[byte]).unwrap();
    }
    let replies = stream.read_until_hang_up();
    // Structured replies were negotiated: the read's data and the write's end are both there.
    let magic = [0x66, 0x8e, 0x33, 0xef];
    assert!(replies.windows(4).filter(|window| *window == magic).count() >= 1);
    assert!(replies.len() > 512);
}

#[test]
fn options_of_absurd_lengths_cost_nothing() {
    let mut serve = Witnessed::new(Storage::Memory);
    for code in [1, 2, 3, 5, 6, OPT_GO, 8, 9, 10, 11, 0x4242] {
        for length in [u32::MAX, 1 << 31, 1 << 25] {
            let mut stream = serve.stranger();
            send(&mut stream, &CLIENT_FLAGS);
            send(
                &mut stream,
                &[IHAVEOPT, &u32::to_be_bytes(code), &length.to_be_bytes()].concat(),
            );
            send(&mut stream, &vec![0; 1 << 18]);
            stream.end_of_input();
            stream.read_until_hang_up();
        }
    }
    serve.assert_unmoved();
}

#[test]
fn names_of_absurd_inner_lengths_are_refused() {
    let mut serve = Witnessed::new(Storage::Memory);
    for code in [6, OPT_GO, 9, 10] {
        for inner in [u32::MAX, 4097, 7, 1 << 31] {
            let mut stream = serve.stranger();
            send(&mut stream, &CLIENT_FLAGS);
            send(
                &mut stream,
                &option(code, &[&inner.to_be_bytes()[..], &[0; 6]].concat()),
            );
            stream.end_of_input();
            let reply = stream.read_until_hang_up();
            let refused = reply.get(18 + 12).is_some_and(|byte| byte & 0x80 != 0);
            assert!(
                refused || reply.len() == 18,
                "option {code}, inner length {inner}"
            );
        }
    }
    serve.assert_unmoved();
}

#[test]
fn options_without_end_come_to_an_end() {
    let mut serve = Witnessed::new(Storage::Memory);
    let mut stream = serve.stranger();
    send(&mut stream, &CLIENT_FLAGS);
    let started = Instant::now();
    let list = option(3, &[]).repeat(64);
    // The server may have a limit or patience; what it must not do is to hold the replies.
    stream.set_write_timeout(Duration::from_secs(1));
    while started.elapsed() < Duration::from_secs(2) {
        if stream.write_all(&list).is_err() {
            break;
        }
    }
    serve.assert_unmoved();
}

#[test]
fn a_read_of_absurd_length_is_refused_and_the_session_lives() {
    let mut serve = Witnessed::new(Storage::Memory);
    let mut client = serve.server.connect();
    for length in [u32::MAX, 1 << 31, (64 << 20) + 1] {
        assert!(client.read(0, length).is_err());
        client.read(0, 512).expect("the session lives");
    }
    assert_eq!(client.read(u64::MAX - 100, 512), Err(EINVAL));
    assert_eq!(client.read(u64::MAX, u32::MAX), Err(EINVAL));
    serve.assert_unmoved();
}

#[test]
fn a_write_of_absurd_length_is_drained_or_ends_its_connection() {
    let mut serve = Witnessed::new(Storage::Memory);
    for length in [u32::MAX, 1 << 31, (32 << 20) + 1] {
        let mut client = serve.server.connect();
        send(&mut client.stream, &request(0, WRITE, 5, 0, length));
        send(&mut client.stream, &vec![1; 8 << 20]);
        client.stream.end_of_input();
        client.stream.read_until_hang_up();
    }
    assert_eq!(
        serve.witness.read(0, 512).unwrap(),
        [0; 512],
        "nothing was executed"
    );
    serve.assert_unmoved();
}

#[test]
fn the_payload_of_a_refused_write_is_never_taken_for_requests() {
    let serve = Witnessed::new(Storage::Memory);
    let mut client = serve.server.connect();
    // A payload that is a flawless request to overwrite the first bytes.
    let mut trap = request(0, WRITE, 77, 0, 4);
    trap.extend(b"trap");
    let end = client.size;
    let past_the_end = client.send_write(end, &trap, 0);
    assert!(client.wait(past_the_end).is_err());
    let unknown_flag = client.send_write(0, &trap, 1 << 13);
    assert_eq!(client.wait(unknown_flag), Err(EINVAL));
    assert_eq!(client.read(0, 4), Ok(vec![0; 4]));
}

#[test]
fn a_wrong_magic_ends_the_connection() {
    let mut serve = Witnessed::new(Storage::Memory);
    let mut client = serve.server.connect();
    let mut wrong = request(0, READ, 1, 0, 512);
    wrong[0] ^= 1;
    send(&mut client.stream, &wrong);
    assert_eq!(
        client.stream.read_until_hang_up(),
        b"",
        "no answer is possible"
    );
    serve.assert_unmoved();
}

#[test]
fn silent_clients_hold_nobody_up() {
    let mut serve = Witnessed::new(Storage::Memory);
    let mut silent = Vec::new();
    for i in 0..60 {
        let mut stream = serve.stranger();
        match i % 3 {
            0 => {}
            1 => send(&mut stream, &CLIENT_FLAGS),
            _ => send(&mut stream, &[&CLIENT_FLAGS, &go("")[..9]].concat()),
        }
        silent.push(stream);
        // Silence in the middle of a payload is silence too.
        let mut client = serve.server.connect();
        send(&mut client.stream, &request(0, WRITE, 1, 0, 4096));
        silent.push(client.stream);
    }
    serve.assert_unmoved();
}

#[test]
fn a_client_that_reads_no_replies_cannot_fill_the_memory() {
    if serve_is_nbdkit() {
        return; // nbdkit stops at the socket, with a thread per request.
    }
    let mut serve = Witnessed::new(Storage::Memory);
    let mut client = serve.server.connect();
    client.stream.set_write_timeout(Duration::from_secs(2));
    // Replies of 16 GiB, if the server made them all.
    for i in 0..16384 {
        if client
            .stream
            .write_all(&request(0, READ, i, 0, 1 << 20))
            .is_err()
        {
            break;
        }
    }
    serve.assert_unmoved();
}

#[test]
fn many_clients_that_take_no_replies_cannot_fill_the_memory_together() {
    if serve_is_nbdkit() {
        return;
    }
    let mut serve = Witnessed::new(Storage::Memory);
    // Replies of 3 GiB that must not be made before they are taken.
    let mut greedy: Vec<_> = (0..24).map(|_| serve.server.connect()).collect();
    for client in &mut greedy {
        for _ in 0..4 {
            client.send(READ, 0, 0, 32 << 20);
        }
    }
    // As much as any client may ask for at once, while the others hold all there is.
    let mut modest = serve.server.connect();
    assert_eq!(
        modest.read(0, 32 << 20).map(|data| data.len()),
        Ok(32 << 20)
    );
    let mut small = serve.server.connect();
    small.read(0, 4096).expect("small requests are served");
    let peak = serve.server.peak_memory();
    assert!(peak < 1 << 30, "the server held {peak} bytes");
    serve.written += 1;
    serve
        .witness
        .write(1 << 20, &[serve.written; 4096])
        .expect("the witness notices nothing");
}
