//! Guide: is my server flush-consistent? Is my coordinator?
//!
//! This module has no code. It shows how to try a server or a coordinator with schedules of
//! several connections, and how to read what comes of it. What is tried is the
//! [promise](crate::flush#what-is-promised) of multi-conn: after a flush was answered with success,
//! what had been answered before it is on permanent storage, and visible to every connection.
//!
//! | I have | and try it with |
//! |---|---|
//! | a server that takes connections | [`StreamServer`], and [`prop_flush_consistent`] |
//! | a way of my own to decide when handles are flushed | [`Coordinator`], [`ModelServer`], and [`prop_flush_consistent`] |
//! | options for this crate's coordinator | [`Coordinated`] as that |
//! | a server in memory, which is neither | [`Server`] |
//! | one schedule that I do not trust | [`play`], and [`Played::judge`] |
//! | a log of what clients saw | [`History`](super::History), and [`check`](fn@super::check) |
//! | a parser of messages | the strategies for the [handshake] and for [transmission] |
//! | a client that has to know what is durable | a [`Model`](super::backend::Model), and what its [crashes] leave |
//!
//! # A server
//!
//! A whole server in this process, one thread per connection, and its test. All that the property
//! needs to know is how to open a connection.
//!
//! ```
//! use std::error::Error;
//! use std::io::{Read, Write};
//! use std::os::unix::net::UnixStream;
//! use std::sync::{Arc, Mutex};
//! use std::thread;
//!
//! use nbd_proto::conformance::property::{Options, StreamServer, prop_flush_consistent};
//! # use nbd_proto::handshake::{Ask, Export, ServerConfig};
//! # use nbd_proto::io::server_handshake;
//! # use nbd_proto::limits::Limits;
//! # use nbd_proto::transmission::{ReplyEncoder, RequestDecoder, RequestEvent};
//! # use nbd_proto::wire::{CommandType, Name, TransmissionFlags as Flags};
//!
//! fn serve(mut socket: UnixStream, disk: &Mutex<Vec<u8>>) -> Result<(), Box<dyn Error>> {
//!     let flags = Flags::HAS_FLAGS | Flags::SEND_FLUSH | Flags::CAN_MULTI_CONN;
//!     let export = Export::new(Name::default(), 4096, flags);
//!     let session = server_handshake(&mut socket, ServerConfig::new(), |ask| {
//!         if let Ask::Export(ask) = ask { ask.accept(&export); }
//!     })?.ok_or("the client has left")?;
//!     let mut requests = RequestDecoder::new(&session, &Limits::new());
//!     let replies = ReplyEncoder::new(&session);
//!     loop {
//!         let mut header = vec![0; requests.wants()];
//!         socket.read_exact(&mut header)?;
//!         let Some(RequestEvent::Request(request)) = requests.next(&mut &header[..])? else {
//!             return Ok(()); // It disconnects.
//!         };
//!         session.check(&request)?; // Hangs up on what it does not do.
//!         let mut payload = vec![0; requests.payload_left() as usize];
//!         socket.read_exact(&mut payload)?;
//!         requests.payload_read(payload.len() as u64);
//!         let range = request.offset as usize..(request.offset + request.length) as usize;
//!         let mut disk = disk.lock().unwrap();
//!         if request.kind == CommandType::WRITE {
//!             disk[range.clone()].copy_from_slice(&payload);
//!         }
//!         let reply = match request.kind {
//!             CommandType::READ => [&replies.read(&request)?[..], &disk[range]].concat(),
//!             _ => replies.ok(&request).to_vec(),
//!         };
//!         socket.write_all(&reply)?;
//!     }
//! }
//!
//! fn the_server_is_flush_consistent() { // #[test]
//!     let disk = Arc::new(Mutex::new(vec![0; 4096]));
//!     let open = || -> std::io::Result<_> {
//!         let ((ours, theirs), disk) = (UnixStream::pair()?, Arc::clone(&disk));
//!         thread::spawn(move || drop(serve(theirs, &disk)));
//!         Ok(ours)
//!     };
//!     prop_flush_consistent(&Options::new().with_cases(32), || StreamServer::new(open));
//! }
//! # the_server_is_flush_consistent();
//! ```
//!
//! What the property sees of such a server is *visibility*: nobody pulls its plug. For durability,
//! put its backend behind something that can crash: implement [`Server::image`], or try what is
//! behind the connections as a [`Coordinator`]. A server that runs by itself does not go through a
//! schedule in the same way twice, so a counterexample may be longer than it had to be; what it
//! says has happened all the same. Give the streams a read timeout, so that a server that hangs
//! fails the test.
//!
//! # A coordinator
//!
//! Over model backends the schedule decides everything: when commands and backend flushes end, what
//! caches load and write back meanwhile, what fails, and what a crash leaves at each moment at which
//! something was promised.
//!
//! ```
//! use nbd_proto::conformance::backend::{Failure, Kind};
//! use nbd_proto::conformance::property::{
//!     Coordinated, ModelServer, Options, find_violation, prop_flush_consistent,
//! };
//! use nbd_proto::flush::{Config, Mode};
//!
//! // Flushes fail, and drop what they should have written.
//! let kind = Kind::per_connection().with_failure(Failure::Drops);
//! let options = Options::new().with_cases(32).with_faults(true);
//! prop_flush_consistent(&options, || {
//!     ModelServer::new(Coordinated::new(Config::new()), kind, 8)
//! });
//!
//! // To advertise multi-conn is not enough.
//! let careless = Config::new().with_mode(Mode::Unsafe);
//! let found = find_violation(&Options::new(), || {
//!     ModelServer::new(Coordinated::new(careless), Kind::per_connection(), 8)
//! });
//! let counterexample = found.expect_err("data is lost");
//! println!("{counterexample}");
//! ```
//!
//! An own coordinator takes the place of [`Coordinated`]: six short methods, see [`Coordinator`].
//!
//! # Reading a counterexample
//!
//! ```text
//! broken promise of multi-conn: durability
//!   A crash leaves what a flush has covered, or what FUA has forced, or something newer.
//! At offset 0, the read (events 5 to 6) found zeroes.  That was there at the beginning.
//! But content 1 was written (events 0 to 1), and flushed (events 2 to 3).
//!
//!   event  c0          c1       c9
//!       0  ┌ write =1
//!       1  └ done
//!       2              ┌ flush
//!       3              └ done
//!       4  *** crash
//!       5                       ┌ read
//!       6                       └ found zeroes
//!
//! on this schedule, with 2 connection(s):
//!     Write { conn: 0, block: 0, count: 1, fua: false }
//!     Act(Finish(0))
//!     Flush { conn: 1 }
//! ```
//!
//! The picture says which events contradict each other, whatever else went on; the schedule says
//! how to get there: nothing can be left out of it. [`play`] it again to look inside
//! ([`ModelServer::model`] tells what is where), and keep it as a test.
//!
//! # What it does not say
//!
//! A property that holds has held on the schedules that were tried. More
//! [cases](super::property::Options::with_cases), [another seed](super::property::Options::with_seed)
//! and [longer schedules](super::property::Options::with_steps) try more. Backends that break the
//! [contract](crate::flush#what-a-backend-must-promise) are beyond any coordinator: of
//! [those kinds](super::backend#which-kind-keeps-which-sentence), a counterexample says only that
//! the property can see.
//!
//! [`Coordinated`]: super::property::Coordinated
//! [`Coordinator`]: super::property::Coordinator
//! [`ModelServer`]: super::property::ModelServer
//! [`ModelServer::model`]: super::property::ModelServer::model
//! [`Played::judge`]: super::property::Played::judge
//! [`Server`]: super::property::Server
//! [`Server::image`]: super::property::Server::image
//! [`StreamServer`]: super::property::StreamServer
//! [`play`]: super::property::play
//! [`prop_flush_consistent`]: super::property::prop_flush_consistent
//! [crashes]: super::backend::Model::survivors
//! [handshake]: super::strategy::handshake
//! [transmission]: super::strategy::transmission
