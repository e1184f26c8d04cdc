//! A server that is asked to end finishes what it has begun, flushes, and ends with status 0.

use std::fs;
use std::thread;
use std::time::Duration;

use crate::server::{Serve, Server, Storage};

fn start(storage: Storage, write_delay: u64) -> Server {
    let serve = Serve::over(storage).size(1 << 20);
    if write_delay > 0 {
        serve.delay("write", write_delay).start()
    } else {
        serve.start()
    }
}

/// The file after the server has ended well.
fn file_after_the_end(server: Server) -> Vec<u8> {
    let image = server.image().to_owned();
    let (status, _dir) = server.exit_status();
    assert_eq!(status.code(), Some(0));
    fs::read(image).unwrap()
}

over_every_storage! { an_idle_server_ends_when_asked, open_connections_do_not_hold_the_end_up }

fn an_idle_server_ends_when_asked(storage: Storage) {
    for end in [Server::terminate, Server::interrupt] {
        let server = start(storage, 0);
        end(&server);
        assert_eq!(server.exit_status().0.code(), Some(0));
    }
}

fn open_connections_do_not_hold_the_end_up(storage: Storage) {
    let server = start(storage, 0);
    let mut used = server.connect();
    used.read(0, 512).unwrap();
    let _silent = crate::raw::Stream::connect(server.endpoint());
    server.terminate();
    assert_eq!(server.exit_status().0.code(), Some(0));
}

#[test]
fn a_dirty_cache_is_written_out_at_the_end() {
    for end in [Server::terminate, Server::interrupt] {
        let server = start(Storage::Cached, 0);
        let (mut a, mut b) = (server.connect(), server.connect());
        a.write(0, b"first").unwrap();
        b.write(4096, b"second").unwrap();
        end(&server);
        let file = file_after_the_end(server);
        assert_eq!(
            (&file[..5], &file[4096..4102]),
            (&b"first"[..], &b"second"[..])
        );
    }
}

#[test]
fn the_data_of_a_client_that_left_is_written_out_at_the_end() {
    let server = start(Storage::Cached, 0);
    let mut client = server.connect();
    client.write(0, b"left").unwrap();
    client.disconnect();
    server.terminate();
    assert_eq!(&file_after_the_end(server)[..4], b"left");
}

fn a_write_in_flight(storage: Storage) {
    let server = start(storage, 2000);
    let mut client = server.connect();
    let cookie = client.send_write(0, b"in flight", 0);
    // Long enough for the write to be in the backend, short enough for it to be there still.
    // Nothing outside the server can see that moment.
    thread::sleep(Duration::from_millis(500));
    server.terminate();
    assert_eq!(
        client.wait(cookie),
        Ok(Vec::new()),
        "a request in flight is finished"
    );
    assert_eq!(&file_after_the_end(server)[..9], b"in flight");
}

#[test]
fn a_write_in_flight_is_finished_and_answered_over_a_file() {
    a_write_in_flight(Storage::File);
}

#[test]
fn a_write_in_flight_is_finished_and_answered_over_a_cache() {
    a_write_in_flight(Storage::Cached);
}
