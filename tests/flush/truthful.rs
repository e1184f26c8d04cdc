//! Every combination of mode, acknowledgement, thread model and backend: what is advertised can be
//! kept, and what is refused could not.

use nbd_proto::flush::{
    Acknowledge, Action, Advertised, Backend, Command, Config, Conn, Decision, FlushCoordinator,
    Mode, Op, OpenError, ThreadModel,
};
use nbd_proto::wire::{CommandType, Errno};

const MODES: [Mode; 5] = [
    Mode::Auto,
    Mode::Emulate,
    Mode::Plugin,
    Mode::Disable,
    Mode::Unsafe,
];
const ACKNOWLEDGE: [Acknowledge; 4] = [
    Acknowledge::OnCompletion,
    Acknowledge::WriteThrough,
    Acknowledge::OnReceipt,
    Acknowledge::IgnoreFlush,
];
const THREADS: [ThreadModel; 3] = [
    ThreadModel::Parallel,
    ThreadModel::SerializeRequests,
    ThreadModel::SerializeConnections,
];

const WRITE: Command = Command::new(CommandType::WRITE, 0, 8);
const READ: Command = Command::new(CommandType::READ, 0, 8);

#[derive(Clone, Copy, Debug)]
struct Kind {
    flush: bool,
    fua: bool,
    multi_conn: bool,
    caches_nothing: bool,
    read_only: bool,
}

impl Kind {
    fn all() -> impl Iterator<Item = Self> {
        (0..32u8).map(|bits| Self {
            flush: bits & 1 != 0,
            fua: bits & 2 != 0,
            multi_conn: bits & 4 != 0,
            caches_nothing: bits & 8 != 0,
            read_only: bits & 16 != 0,
        })
    }

    fn backend(self) -> Backend {
        Backend::new()
            .with_flush(self.flush)
            .with_fua(self.fua)
            .with_multi_conn(self.multi_conn)
            .with_caches_nothing(self.caches_nothing)
            .with_read_only(self.read_only)
    }

    /// It writes to a cache that it has no way to write out.
    fn can_keep_nothing(self) -> bool {
        !self.flush && !self.caches_nothing && !self.read_only
    }
}

fn configs() -> impl Iterator<Item = Config> {
    MODES.into_iter().flat_map(|mode| {
        ACKNOWLEDGE.into_iter().flat_map(move |when| {
            THREADS.into_iter().map(move |threads| {
                Config::new()
                    .with_mode(mode)
                    .with_acknowledge(when)
                    .with_thread_model(threads)
            })
        })
    })
}

/// What became of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Answer {
    result: Result<(), Errno>,
    /// Something that was written was not on permanent storage when it came.
    volatile: bool,
}

struct Handle {
    kind: Kind,
    conn: Conn,
    advertised: Advertised,
    /// It holds what is not on permanent storage. With multi-conn all handles share this.
    dirty: bool,
    loaded: bool,
    /// What it loaded is older than what is on permanent storage.
    stale: bool,
}

/// A server that executes everything at once.
struct Server {
    coordinator: FlushCoordinator<usize, (), (usize, Command)>,
    handles: Vec<Handle>,
    answer: Option<Answer>,
}

impl Server {
    fn new(config: Config) -> Self {
        Self {
            coordinator: FlushCoordinator::new(config),
            handles: Vec::new(),
            answer: None,
        }
    }

    fn open(&mut self, kind: Kind) -> Result<Advertised, OpenError> {
        let conn = self.coordinator.connect(self.handles.len(), &());
        let advertised = self.coordinator.opened(conn, kind.backend());
        let Ok(advertised) = advertised else {
            let refused = self.coordinator.command(conn, READ, (0, READ));
            assert!(matches!(refused, Decision::Closed { .. }), "{refused:?}");
            assert!(self.coordinator.poll().is_none());
            return advertised;
        };
        self.handles.push(Handle {
            kind,
            conn,
            advertised,
            dirty: false,
            loaded: !kind.caches_nothing && !kind.multi_conn,
            stale: false,
        });
        Ok(advertised)
    }

    fn send(&mut self, on: usize, command: Command) -> Answer {
        self.answer = None;
        let conn = self.handles[on].conn;
        let decision = self.coordinator.command(conn, command, (on, command));
        self.decide(decision);
        while let Some(action) = self.coordinator.poll() {
            match action {
                Action::Execute { op, tag, .. } => self.execute(op, tag),
                Action::Flush { key, flush } => {
                    self.flush(key);
                    self.coordinator.flushed(flush, Ok(()));
                }
                Action::Reply { result, .. } => self.reply(result),
                other => panic!("{other:?}"),
            }
        }
        self.answer.expect("it is answered")
    }

    fn decide(&mut self, decision: Decision<(usize, Command)>) {
        match decision {
            Decision::Execute { op, tag } => self.execute(op, tag),
            Decision::Reply { result, .. } => self.reply(result),
            Decision::Answered { .. } => assert!(self.answer.is_some()),
            Decision::Wait => {}
            other => panic!("{other:?}"),
        }
    }

    fn reply(&mut self, result: Result<(), Errno>) {
        let volatile = self.handles.iter().any(|it| it.dirty);
        let answer = Answer { result, volatile };
        assert_eq!(self.answer.replace(answer), None, "answered twice");
    }

    fn execute(&mut self, op: Op, tag: (usize, Command)) {
        if op.acknowledged() {
            self.reply(Ok(()));
        }
        let (on, command) = tag;
        let handle = &mut self.handles[on];
        let kind = handle.kind;
        assert!(kind.fua || !op.fua(), "it cannot do that");
        handle.loaded |= !kind.caches_nothing && !kind.multi_conn;
        if command.kind == CommandType::READ {
            let decision = self.coordinator.complete(op, tag, Ok(()));
            return self.decide(decision);
        }
        if kind.caches_nothing || op.fua() {
            self.stored(on);
        } else {
            handle.dirty = true;
        }
        let decision = self.coordinator.complete(op, tag, Ok(()));
        self.decide(decision);
    }

    fn flush(&mut self, on: usize) {
        let kind = self.handles[on].kind;
        assert!(kind.flush, "it cannot do that");
        let same = |at: usize| at == on || kind.multi_conn;
        let writes = (0..self.handles.len()).any(|at| same(at) && self.handles[at].dirty);
        if writes {
            self.stored(on);
        }
        for (at, handle) in self.handles.iter_mut().enumerate() {
            handle.dirty &= !same(at);
        }
        let handle = &mut self.handles[on];
        handle.loaded = false;
        handle.stale = false;
    }

    /// Something from one handle has reached permanent storage.
    fn stored(&mut self, by: usize) {
        for (at, handle) in self.handles.iter_mut().enumerate() {
            handle.stale |= at != by && handle.loaded;
        }
    }

    /// Reads on all connections. Does one of them miss what another has written?
    fn misses_something(&mut self) -> bool {
        let hidden = self
            .handles
            .iter()
            .any(|it| it.dirty && !it.kind.multi_conn);
        for at in 0..self.handles.len() {
            assert_eq!(self.send(at, READ).result, Ok(()));
        }
        (hidden && self.handles.len() > 1) || self.handles.iter().any(|it| it.stale)
    }
}

#[test]
fn what_is_advertised_works() {
    for config in configs() {
        let ignoring = config.acknowledge() == Acknowledge::IgnoreFlush;
        for kind in Kind::all() {
            let mut server = Server::new(config);
            let Ok(advertised) = server.open(kind) else {
                continue;
            };
            let context = format!("{config:?} {kind:?} {advertised:?}");
            if !kind.read_only {
                let answer = server.send(0, WRITE);
                assert_eq!(answer.result, Ok(()), "{context}");
                if config.acknowledge() == Acknowledge::WriteThrough {
                    assert!(!answer.volatile, "{context}");
                }
            }
            let answer = server.send(0, Command::FLUSH);
            if advertised.flush {
                assert_eq!(answer.result, Ok(()), "{context}");
                assert!(ignoring || !answer.volatile, "{context}");
            } else {
                assert_eq!(answer.result, Err(Errno::EINVAL), "{context}");
            }
            if advertised.fua && !kind.read_only {
                // FUA pays for itself only.
                let mut server = Server::new(config);
                assert_eq!(server.open(kind), Ok(advertised), "{context}");
                let answer = server.send(0, WRITE.with_fua(true));
                assert_eq!(answer.result, Ok(()), "{context}");
                assert!(ignoring || !answer.volatile, "{context}");
            }
        }
    }
}

#[test]
fn multi_conn_is_advertised_where_it_can_be_kept() {
    for config in configs().filter(|config| config.mode() != Mode::Unsafe) {
        let ignoring = config.acknowledge() == Acknowledge::IgnoreFlush;
        for kind in Kind::all() {
            let Ok(advertised) = Server::new(config).open(kind) else {
                continue;
            };
            if !advertised.multi_conn {
                continue;
            }
            let context = format!("{config:?} {kind:?}");
            assert_ne!(
                config.thread_model(),
                ThreadModel::SerializeConnections,
                "{context}"
            );
            assert_ne!(config.mode(), Mode::Disable, "{context}");
            if ignoring {
                let seen = kind.multi_conn || kind.caches_nothing || kind.read_only;
                assert!(seen, "{context}");
            } else {
                assert!(!kind.can_keep_nothing(), "{context}");
                assert!(advertised.flush || kind.read_only, "{context}");
            }
        }
    }
}

/// Two connections of one group, in whatever order they come and whatever their handles can do.
fn two_connections(config: Config, kinds: [Kind; 2]) {
    let open = || {
        let mut server = Server::new(config);
        let opened = kinds.map(|kind| server.open(kind).ok());
        (opened.iter().flatten().count() == 2).then_some(server)
    };
    let Some(server) = open() else {
        return;
    };
    if !server.handles.iter().any(|it| it.advertised.multi_conn) {
        return;
    }
    let context = format!("{config:?} {kinds:?}");
    let ignoring = config.acknowledge() == Acknowledge::IgnoreFlush;
    let mut ways: Vec<(usize, Command, usize)> = Vec::new();
    for writer in (0..2).filter(|&at| !kinds[at].read_only) {
        assert!(server.handles[writer].advertised.flush, "{context}");
        ways.push((writer, WRITE.with_fua(true), writer));
        let flushers = (0..2).filter(|&at| server.handles[at].advertised.flush);
        ways.extend(flushers.map(|flusher| (writer, WRITE, flusher)));
    }
    for (writer, write, flusher) in ways {
        let mut server = open().expect("as before");
        assert!(!server.misses_something(), "{context}");
        let mut last = server.send(writer, write);
        assert_eq!(last.result, Ok(()), "{context}");
        if !write.fua && !ignoring {
            last = server.send(flusher, Command::FLUSH);
            assert_eq!(last.result, Ok(()), "{context}");
        }
        assert!(ignoring || !last.volatile, "{context}: {writer} {flusher}");
        assert!(
            !server.misses_something(),
            "{context}: {writer} {write:?} {flusher}"
        );
    }
}

#[test]
fn multi_conn_is_kept_between_handles_of_all_kinds() {
    for config in configs() {
        if config.mode() == Mode::Unsafe
            || config.thread_model() == ThreadModel::SerializeConnections
        {
            continue;
        }
        for first in Kind::all() {
            for second in Kind::all() {
                two_connections(config, [first, second]);
            }
        }
    }
}

#[test]
fn nothing_is_refused_that_could_be_kept() {
    for config in configs() {
        for kind in Kind::all() {
            let Err(why) = Server::new(config).open(kind) else {
                continue;
            };
            let ignored =
                why == OpenError::CannotIgnoreFlush && !kind.caches_nothing && !kind.read_only;
            assert!(
                kind.can_keep_nothing() || ignored,
                "{config:?} {kind:?}: {why}"
            );
        }
    }
}

#[test]
fn what_is_refused_works_with_what_the_error_says() {
    for configured in configs() {
        for kind in Kind::all() {
            let mut config = configured;
            let mut advice = Vec::new();
            while let Err(why) = Server::new(config).open(kind) {
                let said = why.to_string();
                advice.push(said.clone());
                assert!(advice.len() < 3, "{configured:?} {kind:?}: {advice:?}");
                config = if said.ends_with("use mode disable") {
                    config.with_mode(Mode::Disable)
                } else if said.ends_with("acknowledge on completion") {
                    config.with_acknowledge(Acknowledge::OnCompletion)
                } else {
                    panic!("no advice in {said:?}");
                };
            }
        }
    }
}
