//! What a flush has answered for survives the server's death, whoever wrote it.
//!
//! Killing the server loses what is in its caches and keeps what it gave to the file, which is
//! the difference that one write-back cache per connection makes.

use std::fs;

use crate::content::Random;
use crate::server::{Serve, Storage};
use crate::settings::{kill_rounds, seed, whole_machine};

const SIZE: u64 = 8 << 20;

/// Writes at random on several connections, flushes on one, kills the server and looks.
fn one_round(random: &mut Random, round: u64) {
    let mut server = Serve::over(Storage::Cached).size(SIZE).start();
    let mut connections: Vec<_> = (0..4).map(|_| server.connect()).collect();
    let mut expected = vec![0; usize::try_from(SIZE).unwrap()];
    for _ in 0..1 + random.below(24) {
        let length = 1 + random.below(64 << 10);
        // Overlaps happen: each write is answered before the next is sent, so the order is known.
        let offset = random.below(SIZE - length);
        let data = random.bytes(usize::try_from(length).unwrap());
        let writer = usize::try_from(random.below(4)).unwrap();
        connections[writer].write(offset, &data).unwrap();
        let start = usize::try_from(offset).unwrap();
        expected[start..start + data.len()].copy_from_slice(&data);
        if random.below(8) == 0 {
            let other = usize::try_from(random.below(4)).unwrap();
            connections[other].flush().unwrap();
        }
    }
    let flusher = usize::try_from(random.below(4)).unwrap();
    connections[flusher].flush().unwrap();
    server.kill();
    let found = fs::read(server.image()).unwrap();
    let wrong = found.iter().zip(&expected).position(|(a, b)| a != b);
    assert_eq!(wrong, None, "round {round}: the first lost byte");
}

#[test]
fn what_was_flushed_on_any_connection_survives_a_kill() {
    let _busy = whole_machine();
    let mut random = Random(seed());
    for round in 0..kill_rounds() {
        one_round(&mut random, round);
    }
}

#[test]
fn what_was_written_with_fua_survives_a_kill() {
    let mut server = Serve::over(Storage::Cached).size(SIZE).start();
    let mut client = server.connect();
    client.write_fua(4096, b"durable at once").unwrap();
    server.kill();
    assert_eq!(
        &fs::read(server.image()).unwrap()[4096..4111],
        b"durable at once"
    );
}

/// Shows that the cache is there, and with it the danger that the tests above are about.
#[test]
fn what_was_not_flushed_is_lost_with_the_cache() {
    let mut server = Serve::over(Storage::Cached).size(SIZE).start();
    let mut client = server.connect();
    client.write(4096, b"in the cache only").unwrap();
    server.kill();
    assert_eq!(&fs::read(server.image()).unwrap()[4096..4113], &[0; 17]);
}

#[test]
fn a_server_started_again_on_the_file_serves_what_was_flushed() {
    let mut first = Serve::over(Storage::Cached).size(SIZE).start();
    let (mut a, mut b) = (first.connect(), first.connect());
    a.write(123, b"kept").unwrap();
    b.flush().unwrap();
    first.kill();
    let second = Serve::over(Storage::Cached).image(first.image()).start();
    let mut client = second.connect();
    assert_eq!(client.size, SIZE);
    assert_eq!(client.read(123, 4), Ok(b"kept".to_vec()));
}
