//! A server and a client, each on a page: where to begin.
//!
//! Both are complete, but for what a program decides by itself: who may connect, for how long, and
//! what is logged. Nothing here is needed: the drivers of [`io`](super) do little, and whoever has
//! another way of waiting drives the machines of [`handshake`](crate::handshake) and
//! [`transmission`](crate::transmission) with it.
//!
//! # A server
//!
//! One thread for each connection, and all of them see one store, at once: a flush has nothing to do,
//! and what it is told on one connection holds for all. So multi-conn may be promised. Where each
//! connection has a cache or a handle of its own, it must not be, unless a
//! [`FlushCoordinator`](crate::flush) keeps the promise ([`flush::manual`](crate::flush::manual)).
//!
//! ```
//! use std::error::Error;
//! use std::net::{TcpListener, TcpStream};
//! use std::sync::{Arc, Mutex};
//! use std::thread;
//! use std::time::Duration;
//!
//! use nbd_proto::handshake::{Ask, Export, ServerConfig};
//! use nbd_proto::io::{self, Requests, write_message};
//! use nbd_proto::limits::Limits;
//! use nbd_proto::session::Features;
//! use nbd_proto::transmission::ReplyEncoder;
//! use nbd_proto::wire::{CommandType, Errno, Name};
//!
//! struct Disk {
//!     export: Export,
//!     bytes: Mutex<Vec<u8>>,
//! }
//!
//! impl Disk {
//!     fn new(size: usize) -> Self {
//!         // Only what is told here may be asked for; anything else is refused by `Session::check`.
//!         let features = Features::read_write().with_flush().with_multi_conn();
//!         Self {
//!             export: Export::new(Name::default(), size as u64, features.flags()),
//!             bytes: Mutex::new(vec![0; size]),
//!         }
//!     }
//! }
//!
//! fn serve(mut stream: TcpStream, disk: &Disk) -> Result<(), Box<dyn Error + Send + Sync>> {
//!     stream.set_nodelay(true)?;
//!     // For a client that says nothing; one that uses a disk may be idle for as long as it likes.
//!     stream.set_read_timeout(Some(Duration::from_secs(60)))?;
//!     let export = &disk.export;
//!     let answer = |ask: Ask<'_>| match ask {
//!         Ask::List(ask) => ask.accept([(&export.name, &export.description)]),
//!         Ask::Export(ask) if ask.name() == &export.name => ask.accept(export),
//!         _ => {} // Refused, because it was not answered.
//!     };
//!     let Some(session) = io::server_handshake(&mut stream, ServerConfig::new(), answer)? else {
//!         return Ok(()); // It has seen what it wanted.
//!     };
//!     stream.set_read_timeout(None)?;
//!
//!     let replies = ReplyEncoder::new(&session);
//!     let mut requests = Requests::new(&stream, &session, &Limits::new());
//!     while let Some(request) = requests.next()? {
//!         // Payload of what is refused is skipped.
//!         if let Err(refusal) = session.check(&request) {
//!             write_message(&mut &stream, &replies.fail(&request, refusal.errno()), &[])?;
//!             continue;
//!         }
//!         // Within the export, and no more than its maximum payload.
//!         let (at, length) = (request.offset as usize, request.length as usize);
//!         let mut data = Vec::new();
//!         let head = match request.kind {
//!             CommandType::READ => {
//!                 data.extend_from_slice(&disk.bytes.lock().unwrap()[at..at + length]);
//!                 replies.read(&request)?
//!             }
//!             CommandType::WRITE => {
//!                 // Not into the disk: others need it while we wait for the client.
//!                 let mut payload = vec![0; length];
//!                 requests.read_payload(&mut payload)?;
//!                 disk.bytes.lock().unwrap()[at..at + length].copy_from_slice(&payload);
//!                 replies.ok(&request)
//!             }
//!             CommandType::FLUSH => replies.ok(&request),
//!             _ => replies.fail(&request, Errno::EINVAL),
//!         };
//!         write_message(&mut &stream, &head, &data)?;
//!     }
//!     Ok(())
//! }
//!
//! let listener = TcpListener::bind("127.0.0.1:0")?; // usually port 10809
//! # let address = listener.local_addr()?;
//! let disk = Arc::new(Disk::new(1 << 20));
//! thread::spawn(move || {
//!     for stream in listener.incoming() {
//!         let disk = Arc::clone(&disk);
//!         thread::spawn(move || {
//!             if let Err(error) = stream.map_err(Into::into).and_then(|it| serve(it, &disk)) {
//!                 eprintln!("a client was lost: {error}");
//!             }
//!         });
//!     }
//! });
//! # use nbd_proto::handshake::{ClientConfig, Wanted};
//! # let mut stream = TcpStream::connect(address)?;
//! # let wanted = Wanted::new(Name::default());
//! # let session = io::client_handshake(&mut stream, wanted, ClientConfig::new())?.session;
//! # assert_eq!(session.size(), 1 << 20);
//! # Ok::<(), Box<dyn Error>>(())
//! ```
//!
//! # A client
//!
//! [`Replies`](super::Replies) reads ahead and does not wait by itself: what it has received is taken
//! until there is no more of it, and then more is waited for. So a program with many requests in
//! flight finds out about each as its reply comes, in whatever order; here there is one at a time.
//! Whether several connections may be used is told by [`multiplex`](crate::multiplex).
//!
//! ```
//! use std::error::Error;
//! use std::net::TcpStream;
//!
//! use nbd_proto::handshake::{ClientConfig, Wanted};
//! use nbd_proto::io::{self, Replies, write_message};
//! use nbd_proto::limits::Limits;
//! use nbd_proto::session::Session;
//! use nbd_proto::transmission::{ReadBuffer, ReplyEvent, RequestEncoder};
//! use nbd_proto::wire::{Cookie, Name, Request};
//!
//! struct Client {
//!     encoder: RequestEncoder,
//!     replies: Replies<TcpStream>,
//! }
//!
//! impl Client {
//!     fn connect(mut stream: TcpStream) -> Result<Self, Box<dyn Error>> {
//!         stream.set_nodelay(true)?;
//!         let wanted = Wanted::new(Name::default());
//!         let session = io::client_handshake(&mut stream, wanted, ClientConfig::new())?.session;
//!         Ok(Self {
//!             encoder: RequestEncoder::new(&session),
//!             replies: Replies::new(stream, &session, &Limits::new(), 1),
//!         })
//!     }
//!
//!     fn send(&mut self, request: &Request, payload: &[u8]) -> Result<(), Box<dyn Error>> {
//!         // It knows what was not negotiated, and does not let us send it.
//!         let head = self.encoder.encode(request)?;
//!         self.replies.expect(request)?;
//!         Ok(write_message(self.replies.get_mut(), &head, payload)?)
//!     }
//!
//!     /// For all commands whose replies have no content: write, flush, trim and so on.
//!     fn modify(&mut self, request: &Request, payload: &[u8]) -> Result<(), Box<dyn Error>> {
//!         self.send(request, payload)?;
//!         loop {
//!             match self.replies.next_received()? {
//!                 Some(ReplyEvent::Finished { result, .. }) => return Ok(result?),
//!                 Some(_) => {}
//!                 None => self.replies.receive()?,
//!             }
//!         }
//!     }
//!
//!     fn read(&mut self, request: &Request, memory: &mut [u8]) -> Result<(), Box<dyn Error>> {
//!         self.send(request, &[])?;
//!         let mut buffer = ReadBuffer::new(request, memory)?;
//!         loop {
//!             if let Some(result) = buffer.result() {
//!                 return Ok(result?);
//!             }
//!             match self.replies.next_received()? {
//!                 Some(event) => assert!(buffer.take(&event)),
//!                 // Data goes straight to where it belongs.
//!                 None => self.replies.receive_into(&mut buffer)?,
//!             }
//!         }
//!     }
//!
//!     fn disconnect(mut self) -> Result<(), Box<dyn Error>> {
//!         let head = self.encoder.encode(&Request::disconnect())?;
//!         Ok(write_message(self.replies.get_mut(), &head, &[])?)
//!     }
//! }
//!
//! # use nbd_proto::handshake::{Ask, Export, ServerConfig};
//! # use nbd_proto::session::Features;
//! # use nbd_proto::transmission::ReplyEncoder;
//! # use nbd_proto::wire::CommandType;
//! # let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
//! # let address = listener.local_addr()?;
//! # let server = std::thread::spawn(move || {
//! #     let (mut stream, _) = listener.accept().unwrap();
//! #     let flags = Features::read_write().with_flush().flags();
//! #     let export = Export::new(Name::default(), 4096, flags);
//! #     let answer = |ask: Ask<'_>| match ask {
//! #         Ask::Export(ask) => ask.accept(&export),
//! #         _ => {}
//! #     };
//! #     let session = io::server_handshake(&mut stream, ServerConfig::new(), answer);
//! #     let session = session.unwrap().unwrap();
//! #     let replies = ReplyEncoder::new(&session);
//! #     let mut requests = io::Requests::new(&stream, &session, &Limits::new());
//! #     let mut disk = [0; 4096];
//! #     while let Some(request) = requests.next().unwrap() {
//! #         let range = request.offset as usize..(request.offset + request.length) as usize;
//! #         let (head, data) = match request.kind {
//! #             CommandType::READ => (replies.read(&request).unwrap(), &disk[range]),
//! #             CommandType::WRITE => {
//! #                 requests.read_payload(&mut disk[range]).unwrap();
//! #                 (replies.ok(&request), &[][..])
//! #             }
//! #             _ => (replies.ok(&request), &[][..]),
//! #         };
//! #         write_message(&mut &stream, &head, data).unwrap();
//! #     }
//! # });
//! let mut client = Client::connect(TcpStream::connect(address)?)?;
//! client.modify(&Request::write(Cookie(1), 512, 5), b"hello")?;
//! client.modify(&Request::flush(Cookie(2)), &[])?; // now it is on permanent storage
//! let mut memory = [0; 5];
//! client.read(&Request::read(Cookie(3), 512, 5), &mut memory)?;
//! assert_eq!(&memory, b"hello");
//! client.disconnect()?;
//! # server.join().unwrap();
//! # Ok::<(), Box<dyn Error>>(())
//! ```
