//! Manual: which options for which server, coming from nbdkit, and pictures of the machine.
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
//! actions pass as messages; nothing but these plain values crosses.
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
//! it had not written out fail, as they must.
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
//! flushes a handle only where that is needed. If a handle may only be called by one thread at a
//! time, choose a [thread model](super::ThreadModel) that says so.
//!
//! ```
//! use nbd_proto::flush::{Backend, Config, Mode};
//!
//! let remote = Backend::new().with_flush(true);
//! let config = Config::new().with_mode(Mode::Emulate);
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
//! # Coming from nbdkit
//!
//! | nbdkit | here |
//! |---|---|
//! | `--filter=multi-conn` | [`FlushCoordinator`](super::FlushCoordinator) with [`Config::new`](super::Config::new) |
//! | `multi-conn-mode=auto`, `emulate`, `plugin`, `disable`, `unsafe` | [`Mode`](super::Mode), parsed from the same words |
//! | `multi-conn-track-dirty=connection`, `conn`, `fast`, `off` | [`TrackDirty`](super::TrackDirty), from the same words |
//! | `multi-conn-exportname=true`, `false` | [`Grouping`](super::Grouping), from the same words |
//! | thread model `SERIALIZE_CONNECTIONS`, `PARALLEL`; `--filter=noparallel serialize=connections` | [`ThreadModel`](super::ThreadModel) |
//! | `.can_multi_conn` of a plugin | [`Backend::with_multi_conn`](super::Backend::with_multi_conn) |
//! | `.can_flush`, `.can_fua` | [`Backend::with_flush`](super::Backend::with_flush), [`with_fua`](super::Backend::with_fua) |
//! | `.can_write` returning false, `-r` | [`Backend::with_read_only`](super::Backend::with_read_only) |
//!
//! What differs, on purpose: `connection` is the default level; `fast` skips a flush only where
//! one flush covers all connections; overlapping writes keep their order; a connection that leaves
//! is written out first; a failed flush is never followed by one that succeeds by accident; and
//! flushes run on all handles at once, not one after the other.
//!
//! # A handle
//!
//! What the coordinator knows of a handle are four moments of its logical clock: when something
//! was last modified, when the last successful flush started, when the oldest of what may be
//! cached was loaded, and when another handle's data last reached storage. A handle is in one of
//! these states, which follow from comparing them:
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
//! the handle may be DIRTY or LOADED again when it ends, and is not called clean.
//!
//! # A group
//!
//! ```text
//!                      a flush arrives, and handles need one
//!   ┌──────┐ ─────────────────────────────────────────────────▶ ┌───────────┐
//!   │ idle │                                                     │ WRITE OUT │ ◀─┐
//!   └──────┘ ◀──┐  a flush arrives, and no handle needs one:     └───────────┘   │
//!               │  answered at once                                    │         │
//!               │                               all have answered: the barrier   │
//!               │                                                      ▼         │
//!               │ all have answered, nobody waits               ┌────────────┐   │
//!               ├────────────────────────────────────────────── │ INVALIDATE │   │
//!               │                                                └────────────┘   │
//!               │ a handle failed: answered with its error             │         │
//!               └── after all others have answered                     └─────────┘
//!                                              all have answered, and flushes wait
//!                                              that came too late for this round
//! ```
