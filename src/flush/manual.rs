//! Manual: which options for which server, a server with threads, coming from nbdkit, and pictures
//! of the machine.
//!
//! This module has no code.
//!
//! # Which mode do I want?
//!
//! [`Mode::Auto`](super::Mode::Auto), in nearly all cases, with a truthful
//! [`Backend`](super::Backend): the mode follows from what the handles can do. What a server has to
//! think about is that description. Five servers, as examples:
//!
//! ## One worker process per connection
//!
//! Each worker opens the disk on its own and has buffers of its own; `flush` writes them out. That
//! is what emulation is for. The coordinator sits in the parent process, which sees events and
//! actions pass as messages: it keeps each [`Op`](super::Op) and [`FlushId`](super::FlushId) under a
//! number of its own until the worker has answered, and nothing but numbers crosses.
//!
//! ```
//! use nbd_proto::flush::{Backend, Config, FlushCoordinator};
//!
//! let worker = Backend::new().with_flush(true);
//! let mut coordinator: FlushCoordinator<u32, (), u64> = FlushCoordinator::new(Config::new());
//! let conn = coordinator.connect(1, &());
//! assert!(coordinator.opened(conn, worker)?.multi_conn);
//! # Ok::<(), nbd_proto::flush::OpenError>(())
//! ```
//!
//! A worker that dies is [`lost`](super::FlushCoordinator::lost): flushes that had to cover what
//! it had not written out fail, as they must. A worker whose client has dropped the connection may
//! still be writing, while the client sends the same again on a new one:
//! [`revoke`](super::FlushCoordinator::revoke) it.
//!
//! ## An object store with a buffer per connection
//!
//! Each connection collects writes in blocks of, say, 64 KiB, reads the rest of a block from the
//! store when a part of it is written, and uploads whole blocks. Two connections that write to
//! different parts of one block would overwrite each other: the
//! [granule](super::Config::with_granule) says so. Opening fetches nothing.
//!
//! ```
//! use nbd_proto::flush::{AfterFailure, Backend, Config};
//!
//! let buffered = Backend::new().with_flush(true).with_loads_on_open(false);
//! let config = Config::new()
//!     .with_granule(64 * 1024)
//!     // A block that could not be uploaded stays in the buffer.
//!     .with_after_failure(AfterFailure::Retry);
//! # let _ = (buffered, config);
//! ```
//!
//! ## A single file, opened once or many times
//!
//! All handles see the kernel's page cache, and one `fdatasync` covers what any of them has
//! written: the backend has multi-conn by itself, and a flush by a client is one call.
//!
//! ```
//! use nbd_proto::flush::{Backend, Config};
//!
//! let file = Backend::new().with_flush(true).with_multi_conn(true);
//! // A failed fsync may have dropped what it should have written: the default, `Sticky`, holds
//! // every later flush to be failed, too.
//! let config = Config::new();
//! # let _ = (file, config);
//! ```
//!
//! ## A remote API that is slow to flush (VDDK and the like)
//!
//! Nobody can say what its handles cache: describe it as a backend that caches per connection,
//! which is always safe, and never claim more than its documentation does. What costs is a flush,
//! so the default level, [`TrackDirty::Connection`](super::TrackDirty::Connection), is right: it
//! flushes a handle only where that is needed. Where a handle may only be called for one thing at
//! a time, the [thread model](super::ThreadModel) says so.
//!
//! ```
//! use nbd_proto::flush::{Backend, Config, ThreadModel};
//!
//! let remote = Backend::new().with_flush(true);
//! let config = Config::new().with_thread_model(ThreadModel::SerializeRequests);
//! # let _ = (remote, config);
//! ```
//!
//! ## A read-only image
//!
//! Nothing changes, so nothing is ever stale: multi-conn can be advertised without any flush.
//!
//! ```
//! use nbd_proto::flush::{Backend, Config, FlushCoordinator};
//!
//! let image = Backend::new().with_read_only(true);
//! let mut coordinator: FlushCoordinator<u32, (), u64> = FlushCoordinator::new(Config::new());
//! let conn = coordinator.connect(1, &());
//! let advertised = coordinator.opened(conn, image)?;
//! assert!(advertised.multi_conn && !advertised.flush);
//! # Ok::<(), nbd_proto::flush::OpenError>(())
//! ```
//!
//! # With threads
//!
//! A server keeps the coordinator behind a lock, and does two things under it: it reports what has
//! happened, and hands out what is to be done. Two things are to be taken care of:
//!
//! - Nothing that may wait is done under the lock, least of all a call of the backend: one flush
//!   that hangs would stop everybody.
//! - What a call has decided is handed out before the lock is let go. As soon as `complete` has
//!   returned the last answer of a connection that leaves, another thread may be told to close it.
//!
//! ```
//! use std::sync::{Arc, Mutex};
//!
//! use nbd_proto::flush::{
//!     Action, Backend, Command, Config, Conn, Decision, FlushCoordinator, FlushId, Op,
//! };
//! use nbd_proto::wire::{CommandType, Errno};
//!
//! type Coordinator = FlushCoordinator<Arc<Connection>, String, Request>;
//!
//! /// What is kept for a command until its answer.
//! #[derive(Debug)]
//! struct Request {
//!     cookie: u64,
//!     command: Command,
//!     /// What is to be written, or what was read.
//!     data: Vec<u8>,
//! }
//!
//! /// What the threads of a connection do, which may wait for the backend.
//! #[derive(Debug)]
//! enum Work {
//!     Execute(Op, Request),
//!     Flush(FlushId),
//!     Close,
//! }
//!
//! #[derive(Debug, Default)]
//! struct Connection {
//!     work: Mutex<Vec<Work>>,
//!     replies: Mutex<Vec<(u64, Result<(), Errno>)>>,
//! }
//!
//! impl Connection {
//!     /// Gives work to a thread, and returns at once.
//!     fn push(&self, work: Work) {
//!         self.work.lock().unwrap().push(work);
//!     }
//!
//!     /// Gives an answer to the thread that sends, and returns at once.
//!     fn reply(&self, cookie: u64, result: Result<(), Errno>) {
//!         self.replies.lock().unwrap().push((cookie, result));
//!     }
//!
//!     fn begin(&self, op: Op, request: Request) {
//!         if op.acknowledged() {
//!             self.reply(request.cookie, Ok(()));
//!         }
//!         self.push(Work::Execute(op, request));
//!     }
//!
//!     fn decide(&self, decision: Decision<Request>) {
//!         match decision {
//!             Decision::Execute { op, tag } => self.begin(op, tag),
//!             Decision::Reply { tag, result } => self.reply(tag.cookie, result),
//!             // Answered before; still to be answered; nobody is there any more.
//!             Decision::Answered { .. } | Decision::Wait | Decision::Closed { .. } => {}
//!             unknown => panic!("a later version's {unknown:?}"),
//!         }
//!     }
//! }
//!
//! fn hand_out(coordinator: &mut Coordinator) {
//!     while let Some(action) = coordinator.poll() {
//!         match action {
//!             Action::Execute { key, op, tag } => key.begin(op, tag),
//!             Action::Flush { key, flush } => key.push(Work::Flush(flush)),
//!             Action::Reply { key, tag, result } => key.reply(tag.cookie, result),
//!             Action::Release { key } => key.push(Work::Close),
//!             // What is executing ends by itself.
//!             Action::Cancel { .. } => {}
//!             unknown => panic!("a later version's {unknown:?}"),
//!         }
//!     }
//! }
//!
//! /// By the thread that reads requests.
//! fn arrived(all: &Mutex<Coordinator>, on: &Connection, conn: Conn, request: Request) {
//!     let mut coordinator = all.lock().unwrap();
//!     let decision = coordinator.command(conn, request.command, request);
//!     on.decide(decision);
//!     hand_out(&mut coordinator);
//! }
//!
//! /// By the thread that has done the work.
//! fn executed(
//!     all: &Mutex<Coordinator>,
//!     on: &Connection,
//!     op: Op,
//!     request: Request,
//!     result: Result<(), Errno>,
//! ) {
//!     let mut coordinator = all.lock().unwrap();
//!     let decision = coordinator.complete(op, request, result);
//!     on.decide(decision);
//!     hand_out(&mut coordinator);
//! }
//!
//! fn flushed(all: &Mutex<Coordinator>, flush: FlushId, result: Result<(), Errno>) {
//!     let mut coordinator = all.lock().unwrap();
//!     coordinator.flushed(flush, result);
//!     hand_out(&mut coordinator);
//! }
//!
//! let all = Mutex::new(Coordinator::new(Config::new()));
//! let on = Arc::new(Connection::default());
//! let conn = all.lock().unwrap().connect(Arc::clone(&on), &"disk".to_owned());
//! // ... the handle is opened, without the lock ...
//! all.lock().unwrap().opened(conn, Backend::new().with_flush(true))?;
//!
//! let data = vec![1; 512];
//! let command = Command::new(CommandType::WRITE, 0, 512).with_fua(true);
//! arrived(&all, &on, conn, Request { cookie: 7, command, data });
//! all.lock().unwrap().disconnect(conn);
//! // The write, the flush that its FUA asks for, and the end of the connection.
//! let mut done = 0;
//! loop {
//!     let work = on.work.lock().unwrap().pop();
//!     match work {
//!         Some(Work::Execute(op, request)) => executed(&all, &on, op, request, Ok(())),
//!         Some(Work::Flush(flush)) => flushed(&all, flush, Ok(())),
//!         Some(Work::Close) => break,
//!         None => panic!("it is never closed"),
//!     }
//!     done += 1;
//! }
//! assert_eq!(done, 2);
//! assert_eq!(*on.replies.lock().unwrap(), [(7, Ok(()))]);
//! # Ok::<(), nbd_proto::flush::OpenError>(())
//! ```
//!
//! # Coming from nbdkit
//!
//! | nbdkit | here |
//! |---|---|
//! | `--filter=multi-conn` | [`FlushCoordinator`](super::FlushCoordinator) with [`Config::new`](super::Config::new) |
//! | `multi-conn-mode=auto`, `emulate`, `plugin`, `disable`, `unsafe` | [`Mode`](super::Mode), parsed from the same words |
//! | `multi-conn-track-dirty=connection`, `fast`, `off` | [`TrackDirty`](super::TrackDirty), from the same words (and `conn`) |
//! | `multi-conn-exportname=true`, `false` | [`Grouping`](super::Grouping), from the same words, in lower case |
//! | thread model `PARALLEL` | [`ThreadModel::Parallel`](super::ThreadModel::Parallel) |
//! | `SERIALIZE_REQUESTS`; `--filter=noparallel serialize=requests` | [`ThreadModel::SerializeRequests`](super::ThreadModel::SerializeRequests) |
//! | `SERIALIZE_ALL_REQUESTS`; `serialize=all-requests` | nothing to set: the server carries out one `Execute` or `Flush` at a time |
//! | `SERIALIZE_CONNECTIONS`; `serialize=connections` | [`ThreadModel::SerializeConnections`](super::ThreadModel::SerializeConnections) |
//! | `--filter=fua fuamode=force` | [`Acknowledge::WriteThrough`](super::Acknowledge::WriteThrough) |
//! | `fuamode=discard` | [`Acknowledge::IgnoreFlush`](super::Acknowledge::IgnoreFlush) |
//! | `fuamode=emulate` | [`with_fua(false)`](super::Backend::with_fua), which is the default; `emulate` mode never uses the backend's FUA |
//! | `fuamode=native` | [`with_fua(true)`](super::Backend::with_fua), in other modes |
//! | `fuamode=pass` | the default: [`Acknowledge::OnCompletion`](super::Acknowledge::OnCompletion) |
//! | `fuamode=none` | the server leaves out [`Advertised::fua`](super::Advertised::fua) |
//! | `.can_multi_conn` of a plugin | [`Backend::with_multi_conn`](super::Backend::with_multi_conn) |
//! | `.can_flush` | [`Backend::with_flush`](super::Backend::with_flush) |
//! | `.can_fua` returning `NBDKIT_FUA_NATIVE`; `EMULATE` or `NONE` | [`Backend::with_fua`](super::Backend::with_fua) with true; with false |
//! | `.can_write` returning false, `-r` | [`Backend::with_read_only`](super::Backend::with_read_only) |
//! | `emulate` refuses a plugin without flush | [`OpenError::CannotEmulate`](super::OpenError::CannotEmulate), but not if it caches nothing, or nobody writes |
//!
//! What differs, on purpose: `fast` skips a flush only where one flush covers all connections;
//! overlapping writes keep their order; a connection that leaves is written out first; a failed
//! flush is never followed by one that succeeds by accident; flushes run on all handles at once,
//! not one after the other, and clients that flush at the same time share them; and FUA is
//! advertised wherever flush is.
//!
//! # A handle
//!
//! What the coordinator knows of a handle are four moments of its logical clock: when something
//! was last modified, when the last successful flush started, when the oldest of what may be
//! cached was loaded, and when another handle's data last reached storage. The state of a handle
//! follows from comparing them. It begins as LOADED, because opening may load, or as EMPTY where
//! [that is known](super::Backend::with_loads_on_open):
//!
//! ```text
//!            any command loads                  another handle's
//!  opened   ┌─────────────────┐                 data reaches storage
//!    │      │                 ▼                          │
//!    ▼      │             ┌────────┐                     ▼            ┌────────┐
//! ┌─────────┴─┐           │ LOADED │ ────────────────────────────────▶│ STALE  │
//! │   EMPTY   │           └────────┘                                  └────────┘
//! └───────────┘                │ a modification        a modification    │  │
//!   ▲  ▲    │ a modification   │ completes             completes         │  │
//!   │  │    │ completes        ▼                                         │  │
//!   │  │    │             ┌────────┐ ◀───────────────────────────────────┘  │
//!   │  │    └───────────▶ │ DIRTY  │                                        │
//!   │  │                  └────────┘                                        │
//!   │  │ flushed: covers   │      │ the flush fails                         │
//!   │  │ what completed    │      ├──▶ retry: still DIRTY, its client is    │
//!   │  │ before it began   │      │    told                                 │
//!   │  └───────────────────┘      └──▶ sticky: every later flush fails      │
//!   │                                                                       │
//!   └───────────────────────────────────────────────────────────────────────┘
//!     flushed: drops what it had cached before it began
//! ```
//!
//! A client's flush has to bring every handle of the group out of DIRTY, and then every one that
//! serves out of STALE. What completes, or loads, while a flush runs belongs to the time after it:
//! the handle may be DIRTY or LOADED again when it ends, and is not called clean. A DIRTY handle
//! may hold stale data, too: it is written out with the others, and flushed again after the barrier
//! if it has loaded anything meanwhile. [`explain`](super::FlushCoordinator::explain) calls DIRTY
//! [`WriteOut`](super::Explanation::WriteOut), STALE [`Invalidate`](super::Explanation::Invalidate)
//! (or [`Gated`](super::Explanation::Gated), if it has served nobody), and the others
//! [`Clean`](super::Explanation::Clean).
//!
//! # A group
//!
//! ```text
//!            a flush arrives, and handles need one
//!   ┌──────┐ ───────────────────────────────────────────▶ ┌───────────┐
//!   │ idle │                                               │ WRITE OUT │
//!   └──────┘ a flush arrives, and no handle needs one:     └───────────┘
//!     ▲  ▲   it is answered at once                          │       │
//!     │  │                                                   │       │
//!     │  │   all have answered, one of them with an error:   │       │ all have answered:
//!     │  └─────────────── the flushes fail ──────────────────┘       │ the barrier
//!     │                                                              ▼
//!     │                                                    ┌────────────┐
//!     │      all have answered: the flushes succeed,       │ INVALIDATE │
//!     └───────── or fail if one of them has failed ─────── └────────────┘
//! ```
//!
//! A flush that arrives during a round joins it, if no modification has completed since the round
//! began, or else waits. When a round ends, with whatever result, and flushes wait, the next one
//! begins for all of them.
//!
//! Where connections are on their own there are no rounds: each flush is one of its handle. Where
//! one handle covers all, a round is one flush of one handle.
