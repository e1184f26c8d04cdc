//! Long schedules against a history: the coordinator, with a backend that caches per connection,
//! against an oracle that knows nothing but which writes and flushes there were, and when they
//! were sent and answered.
//!
//! A schedule that fails is made shorter as long as it fails; what is left is printed as
//! `c1: W(7 at 0)` for a command, `c1: W(7 at 0) ok` for its answer and `[flush of c1 ends]` for what
//! the backend does. The schedules are the same in every run, unless the environment asks for
//! others (`PROPTEST_CASES`, `PROPTEST_RNG_SEED`).

use std::fmt;

use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};

use nbd_proto::flush::{
    Action, AfterFailure, Backend, Command, Config, Conn, Decision, FlushCoordinator, FlushId,
    Mode, Op, TrackDirty,
};
use nbd_proto::wire::{CommandType, Errno};

const CELLS: usize = 4;
const MOST_CONNECTIONS: usize = 4;

/// When something happened, in events.
type Time = usize;

/// The number of a command, and what a write leaves in its cell. 0 is what was there at first.
type Id = usize;

#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    Write { cell: usize, fua: bool },
    Read { cell: usize },
    Flush,
}

/// What happens next. Numbers choose among what is possible, so that what is left when others are
/// taken out is a schedule, too.
#[derive(Clone, Copy)]
enum Step {
    Send { conn: usize, what: What },
    Finish { which: usize, early: bool },
    Flushed { which: usize, fails: bool },
    WriteBack { conn: usize, cell: usize },
    Take,
    Join,
    Leave { conn: usize },
}

impl fmt::Debug for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Write { cell, fua: false } => write!(f, "W(at {cell})"),
            Self::Write { cell, fua: true } => write!(f, "FUA(at {cell})"),
            Self::Read { cell } => write!(f, "R(at {cell})"),
            Self::Flush => f.write_str("F"),
        }
    }
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Send { conn, what } => write!(f, "c{conn}: {what:?}"),
            Self::Finish { which, .. } => write!(f, "[a command ends: {which}]"),
            Self::Flushed { which, fails } => {
                let how = if *fails { "fails" } else { "ends" };
                write!(f, "[a flush {how}: {which}]")
            }
            Self::WriteBack { conn, cell } => write!(f, "[c{conn} writes cell {cell} back]"),
            Self::Take => f.write_str("[the next action is taken]"),
            Self::Join => f.write_str("a client joins"),
            Self::Leave { conn } => write!(f, "c{conn} leaves"),
        }
    }
}

// The clients

/// What clients know of themselves, from which follows what they may do.
#[derive(Clone, Debug)]
struct Clients {
    level: TrackDirty,
    self_coherent: bool,
    loads_on_open: bool,
    /// Actions wait until they are taken, one by one.
    lazy: bool,
    faults: bool,
    /// Which of the connections that there were are still there.
    here: Vec<bool>,
}

impl Clients {
    fn pick(&self, which: usize) -> Option<usize> {
        let here: Vec<usize> = (0..self.here.len()).filter(|&at| self.here[at]).collect();
        here.get(which % here.len().max(1)).copied()
    }

    fn count(&self) -> usize {
        self.here.iter().filter(|&&here| here).count()
    }
}

fn what() -> impl Strategy<Value = What> {
    let write = (0..CELLS, prop::bool::weighted(0.15));
    prop_oneof![
        4 => write.prop_map(|(cell, fua)| What::Write { cell, fua }),
        4 => (0..CELLS).prop_map(|cell| What::Read { cell }),
        2 => Just(What::Flush),
    ]
}

fn clients(faults: bool) -> BoxedStrategy<Clients> {
    let level = prop_oneof![
        2 => Just(TrackDirty::Connection),
        1 => Just(TrackDirty::Fast),
        1 => Just(TrackDirty::Off),
    ];
    let connections = 1..=MOST_CONNECTIONS;
    let flags = (any::<bool>(), any::<bool>(), any::<bool>());
    (level, connections, flags)
        .prop_map(move |(level, connections, flags)| {
            let (self_coherent, loads_on_open, lazy) = flags;
            Clients {
                level,
                self_coherent,
                loads_on_open,
                lazy,
                faults,
                here: vec![true; connections],
            }
        })
        .boxed()
}

/// The schedules, without failures (and with connections that leave) or with.
struct Schedules<const FAULTS: bool>;

impl<const FAULTS: bool> ReferenceStateMachine for Schedules<FAULTS> {
    type State = Clients;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Clients> {
        clients(FAULTS)
    }

    fn transitions(clients: &Clients) -> BoxedStrategy<Step> {
        let here = clients.clone();
        let conn = any::<usize>().prop_map(move |which| here.pick(which).unwrap_or(0));
        let conn = conn.boxed();
        let send = (conn.clone(), what()).prop_map(|(conn, what)| Step::Send { conn, what });
        let finish = (0..8usize, any::<bool>());
        let fails = prop::bool::weighted(if clients.faults { 0.15 } else { 0.0 });
        let moving = u32::from(!clients.faults);
        let joining = moving * u32::from(clients.count() < MOST_CONNECTIONS);
        let leaving = moving * u32::from(clients.count() > 1);
        prop_oneof![
            14 => send,
            12 => finish.prop_map(|(which, early)| Step::Finish { which, early }),
            8 => (0..4usize, fails).prop_map(|(which, fails)| Step::Flushed { which, fails }),
            2 => (conn.clone(), 0..CELLS)
                .prop_map(|(conn, cell)| Step::WriteBack { conn, cell }),
            if clients.lazy { 14 } else { 0 } => Just(Step::Take),
            joining => Just(Step::Join),
            leaving => conn.prop_map(|conn| Step::Leave { conn }),
        ]
        .boxed()
    }

    fn preconditions(clients: &Clients, step: &Step) -> bool {
        let here = |conn: usize| clients.here.get(conn) == Some(&true);
        match *step {
            Step::Send { conn, .. } | Step::WriteBack { conn, .. } => here(conn),
            Step::Leave { conn } => here(conn) && clients.count() > 1,
            Step::Join => clients.count() < MOST_CONNECTIONS,
            Step::Finish { .. } | Step::Flushed { .. } | Step::Take => true,
        }
    }

    fn apply(mut clients: Clients, step: &Step) -> Clients {
        match *step {
            Step::Join => clients.here.push(true),
            Step::Leave { conn } => clients.here[conn] = false,
            _ => {}
        }
        clients
    }
}

// The oracle

/// A write or a flush, as a client sees it.
#[derive(Clone, Copy)]
struct Event {
    conn: usize,
    what: What,
    sent: Time,
    /// When it was answered with success.
    ok: Option<Time>,
    answered: bool,
}

/// All that clients have done, by number of the command.
struct History {
    events: Vec<Event>,
    /// For each cell, when the latest write was sent that a flush has covered, or its own FUA.
    covered: [Time; CELLS],
}

impl History {
    fn new() -> Self {
        let at_first = Event {
            conn: usize::MAX,
            what: What::Flush,
            sent: 0,
            ok: Some(0),
            answered: true,
        };
        Self {
            events: vec![at_first],
            covered: [0; CELLS],
        }
    }

    /// Whether the cell may hold the value though everything sent before `covered` is to last: it
    /// may if the value was not certainly overwritten, by a write that was sent after it had been
    /// answered.
    fn may_hold(&self, value: Id, covered: Time) -> bool {
        self.events[value].ok.is_none_or(|ok| ok >= covered)
    }

    fn answered(&mut self, id: Id, now: Time, result: Result<(), Errno>) {
        let event = &mut self.events[id];
        assert!(!event.answered, "answered twice");
        event.answered = true;
        if result.is_err() {
            return;
        }
        event.ok = Some(now);
        let Event { what, sent, .. } = *event;
        match what {
            What::Write { cell, fua: true } => {
                self.covered[cell] = self.covered[cell].max(sent);
            }
            What::Flush => {
                for event in &self.events {
                    if let What::Write { cell, .. } = event.what
                        && event.ok.is_some_and(|ok| ok < sent)
                    {
                        self.covered[cell] = self.covered[cell].max(event.sent);
                    }
                }
            }
            What::Write { .. } | What::Read { .. } => {}
        }
    }
}

// The server: the coordinator and a backend

#[derive(Clone, Copy, PartialEq, Eq)]
struct Cached {
    id: Id,
    dirty: bool,
}

struct Handle {
    conn: Conn,
    closed: bool,
    cells: [Option<Cached>; CELLS],
}

struct Executing {
    op: Op,
    id: Id,
    conn: usize,
    /// What was in the store when it started.
    fetched: Option<[Id; CELLS]>,
    /// For a read: what had to be seen when it was sent.
    covered: Time,
}

struct Flushing {
    conn: usize,
    flush: FlushId,
    before: [Option<Cached>; CELLS],
}

struct Server {
    coordinator: FlushCoordinator<usize, (), Id>,
    backend: Backend,
    lazy: bool,
    self_coherent: bool,
    store: [Id; CELLS],
    handles: Vec<Handle>,
    executing: Vec<Executing>,
    flushing: Vec<Flushing>,
    history: History,
    /// What had to be seen when a read was sent, by its number.
    floors: Vec<Time>,
    now: Time,
    /// All that happened, for whoever has to understand why it is wrong.
    log: Vec<String>,
}

impl Server {
    fn new(clients: &Clients) -> Self {
        let config = Config::new()
            .with_mode(Mode::Emulate)
            .with_track_dirty(clients.level)
            .with_after_failure(AfterFailure::Retry);
        let backend = Backend::new()
            .with_flush(true)
            .with_self_coherent(clients.self_coherent)
            .with_loads_on_open(clients.loads_on_open);
        let mut server = Self {
            coordinator: FlushCoordinator::new(config),
            backend,
            lazy: clients.lazy,
            self_coherent: clients.self_coherent,
            store: [0; CELLS],
            handles: Vec::new(),
            executing: Vec::new(),
            flushing: Vec::new(),
            history: History::new(),
            floors: vec![0],
            now: 0,
            log: Vec::new(),
        };
        for _ in &clients.here {
            server.join(clients.loads_on_open);
        }
        server
    }

    fn wrong(&self, what: &str) -> ! {
        panic!("{what}:\n  {}", self.log.join("\n  "));
    }

    fn name(&self, id: Id) -> String {
        let Event { conn, what, .. } = self.history.events[id];
        match what {
            What::Write { cell, fua } => {
                let kind = if fua { "FUA" } else { "W" };
                format!("c{conn}: {kind}({id} at {cell})")
            }
            What::Read { cell } => format!("c{conn}: R(at {cell})"),
            What::Flush => format!("c{conn}: F"),
        }
    }

    fn join(&mut self, loads: bool) {
        let index = self.handles.len();
        let conn = self.coordinator.connect(index, &());
        let opened = self.coordinator.opened(conn, self.backend);
        assert!(opened.is_ok_and(|it| it.multi_conn));
        let mut cells = [None; CELLS];
        if loads {
            cells = self.store.map(|id| Some(Cached { id, dirty: false }));
        }
        let closed = false;
        self.handles.push(Handle {
            conn,
            closed,
            cells,
        });
        self.log.push(format!("c{index} joins"));
    }

    fn send(&mut self, conn: usize, what: What) {
        self.now += 1;
        let id = self.history.events.len();
        let sent = self.now;
        self.history.events.push(Event {
            conn,
            what,
            sent,
            ok: None,
            answered: false,
        });
        self.floors.push(match what {
            What::Read { cell } => self.history.covered[cell],
            _ => 0,
        });
        self.log.push(self.name(id));
        let command = match what {
            What::Write { cell, fua } => {
                Command::new(CommandType::WRITE, cell as u64, 1).with_fua(fua)
            }
            What::Read { cell } => Command::new(CommandType::READ, cell as u64, 1),
            What::Flush => Command::FLUSH,
        };
        let decision = self
            .coordinator
            .command(self.handles[conn].conn, command, id);
        self.decide(decision);
    }

    fn decide(&mut self, decision: Decision<Id>) {
        match decision {
            Decision::Execute { op, tag } => self.start(op, tag),
            Decision::Reply { tag, result } => self.answer(tag, result),
            Decision::Wait => {}
            other => self.wrong(&format!("unexpected {other:?}")),
        }
    }

    fn start(&mut self, op: Op, id: Id) {
        let conn = self.history.events[id].conn;
        self.executing.push(Executing {
            op,
            id,
            conn,
            fetched: Some(self.store),
            covered: self.floors[id],
        });
    }

    fn answer(&mut self, id: Id, result: Result<(), Errno>) {
        self.now += 1;
        let how = if result.is_ok() { "ok" } else { "fails" };
        self.log.push(format!("{} {how}", self.name(id)));
        self.history.answered(id, self.now, result);
        self.check_crash();
    }

    /// What would be left if there were a crash now?
    fn check_crash(&self) {
        for (cell, &value) in self.store.iter().enumerate() {
            if !self.history.may_hold(value, self.history.covered[cell]) {
                self.wrong(&format!("cell {cell} holds {value} on permanent storage"));
            }
        }
    }

    fn take(&mut self) -> bool {
        let Some(action) = self.coordinator.poll() else {
            return false;
        };
        match action {
            Action::Execute { op, tag, .. } => self.start(op, tag),
            Action::Flush { key, flush } => {
                self.log.push(format!("[flush of c{key} begins]"));
                self.flushing.push(Flushing {
                    conn: key,
                    flush,
                    before: self.handles[key].cells,
                });
            }
            Action::Reply { tag, result, .. } => self.answer(tag, result),
            Action::Release { key } => {
                let handle = &mut self.handles[key];
                handle.closed = true;
                handle.cells = [None; CELLS];
                self.log.push(format!("[c{key} is closed]"));
            }
            other => self.wrong(&format!("unexpected {other:?}")),
        }
        true
    }

    fn finish(&mut self, at: usize, early: bool) {
        let Executing {
            op,
            id,
            conn,
            fetched,
            covered,
        } = self.executing.remove(at);
        let how = if early {
            ", late with what it found"
        } else {
            ""
        };
        self.log.push(format!("[{} ends{how}]", self.name(id)));
        let cells = &mut self.handles[conn].cells;
        let found = fetched.filter(|_| early).unwrap_or(self.store);
        match self.history.events[id].what {
            What::Write { cell, .. } => {
                // It may bring a part of the neighbourhood into the cache.
                let next = (cell + 1) % CELLS;
                if early {
                    let id = found[next];
                    cells[next].get_or_insert(Cached { id, dirty: false });
                }
                cells[cell] = Some(Cached { id, dirty: true });
            }
            What::Read { cell } => {
                let id = found[cell];
                let value = cells[cell].get_or_insert(Cached { id, dirty: false }).id;
                if !self.history.may_hold(value, covered) {
                    self.wrong(&format!("the read found {value}"));
                }
            }
            What::Flush => self.wrong("a flush is executed"),
        }
        let decision = self.coordinator.complete(op, id, Ok(()));
        self.decide(decision);
    }

    fn finish_flush(&mut self, at: usize, fails: bool) {
        let Flushing {
            conn,
            flush,
            before,
        } = self.flushing.remove(at);
        let how = if fails { "fails" } else { "ends" };
        self.log.push(format!("[flush of c{conn} {how}]"));
        let cells = &mut self.handles[conn].cells;
        for cell in 0..CELLS {
            let Some(old) = before[cell].filter(|_| !fails) else {
                continue;
            };
            if old.dirty {
                self.store[cell] = old.id;
            }
            if cells[cell].is_some_and(|it| it.id == old.id) {
                cells[cell] = None;
            }
        }
        if self.self_coherent {
            let own = self.executing.iter_mut().filter(|it| it.conn == conn);
            own.for_each(|it| it.fetched = None);
        }
        let result = if fails { Err(Errno::EIO) } else { Ok(()) };
        self.coordinator.flushed(flush, result);
        self.check_crash();
    }

    fn write_back(&mut self, conn: usize, cell: usize) {
        let flushing = self.flushing.iter().any(|it| it.conn == conn);
        if let Some(cached) = &mut self.handles[conn].cells[cell]
            && cached.dirty
            && !flushing
        {
            cached.dirty = false;
            self.store[cell] = cached.id;
            self.log.push(format!("[c{conn} writes cell {cell} back]"));
            self.check_crash();
        }
    }

    fn settle(&mut self) {
        for _ in 0..100_000 {
            while self.take() {}
            if !self.executing.is_empty() {
                self.finish(0, false);
            } else if !self.flushing.is_empty() {
                self.finish_flush(0, false);
            } else {
                return;
            }
        }
        self.wrong("the coordinator does not come to rest");
    }

    fn check_all_answered(&self) {
        let mut events = self.history.events.iter().enumerate();
        if let Some((id, _)) = events.find(|(_, it)| !it.answered) {
            self.wrong(&format!("{} is not answered", self.name(id)));
        }
    }
}

/// The coordinator is what is tested.
struct Coordinated<const FAULTS: bool>;

impl<const FAULTS: bool> StateMachineTest for Coordinated<FAULTS> {
    type SystemUnderTest = Server;
    type Reference = Schedules<FAULTS>;

    fn init_test(clients: &Clients) -> Server {
        Server::new(clients)
    }

    fn apply(mut server: Server, clients: &Clients, step: Step) -> Server {
        match step {
            Step::Send { conn, what } => server.send(conn, what),
            Step::Finish { which, early } => {
                if !server.executing.is_empty() {
                    server.finish(which % server.executing.len(), early);
                }
            }
            Step::Flushed { which, fails } => {
                if !server.flushing.is_empty() {
                    server.finish_flush(which % server.flushing.len(), fails);
                }
            }
            Step::WriteBack { conn, cell } => server.write_back(conn, cell),
            Step::Take => {
                server.take();
            }
            Step::Join => server.join(clients.loads_on_open),
            Step::Leave { conn } => {
                server.log.push(format!("c{conn} leaves"));
                server.coordinator.disconnect(server.handles[conn].conn);
            }
        }
        if !server.lazy {
            while server.take() {}
        }
        server
    }

    fn teardown(mut server: Server, clients: Clients) {
        server.settle();
        for (conn, _) in clients.here.iter().enumerate().filter(|(_, here)| **here) {
            server.send(conn, What::Flush);
            server.settle();
            for cell in 0..CELLS {
                server.send(conn, What::Read { cell });
            }
            server.settle();
            server.coordinator.disconnect(server.handles[conn].conn);
        }
        server.settle();
        server.check_all_answered();
        if !server.handles.iter().all(|it| it.closed) {
            server.wrong("a connection was not released");
        }
    }
}

fn config(cases: u32) -> ProptestConfig {
    let mut config = ProptestConfig {
        failure_persistence: None,
        // Enough to make a schedule of thousands of steps as short as it can be.
        max_shrink_iters: 50_000,
        ..ProptestConfig::default()
    };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = cases;
    }
    if std::env::var_os("PROPTEST_RNG_SEED").is_none() {
        config.rng_seed = RngSeed::Fixed(0x6e62_6470);
    }
    config
}

prop_state_machine! {
    #![proptest_config(config(8))]

    #[test]
    fn long_schedules_keep_the_promise(sequential 1500..3000 => Coordinated<false>);

    #[test]
    fn long_schedules_with_failures_keep_the_promise(sequential 1500..3000 => Coordinated<true>);
}

prop_state_machine! {
    #![proptest_config(config(300))]

    #[test]
    fn short_schedules_keep_the_promise(sequential 1..80 => Coordinated<false>);
}
