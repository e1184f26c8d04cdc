//! Who has a command's tag: it comes back once, however its connection ends.

use std::collections::BTreeMap;

use nbd_proto::flush::{
    Acknowledge, Action, Backend, Command, Config, Conn, Decision, FlushCoordinator, FlushId,
    FuaOnReads, Mode, Op, Overlap, ThreadModel,
};
use nbd_proto::wire::{CommandType, Errno};

type Tag = u32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Disconnect,
    Revoke,
    Lost,
}

struct Server {
    coordinator: FlushCoordinator<usize, (), Tag>,
    executing: Vec<(Op, Tag)>,
    flushing: Vec<FlushId>,
    sent: Tag,
    returned: BTreeMap<Tag, u32>,
    released: Vec<usize>,
}

impl Server {
    fn send(&mut self, conn: Conn, command: Command) {
        self.sent += 1;
        let decision = self.coordinator.command(conn, command, self.sent);
        self.decide(decision);
    }

    fn decide(&mut self, decision: Decision<Tag>) {
        match decision {
            Decision::Execute { op, tag } => self.executing.push((op, tag)),
            Decision::Reply { tag, .. } | Decision::Answered { tag } | Decision::Closed { tag } => {
                self.returned(tag);
            }
            Decision::Wait => {}
            other => panic!("{other:?}"),
        }
    }

    fn returned(&mut self, tag: Tag) {
        *self.returned.entry(tag).or_default() += 1;
    }

    fn poll(&mut self) {
        while let Some(action) = self.coordinator.poll() {
            let key = match action {
                Action::Execute { key, op, tag } => {
                    self.executing.push((op, tag));
                    key
                }
                Action::Flush { key, flush } => {
                    self.flushing.push(flush);
                    key
                }
                Action::Reply { key, tag, .. } => {
                    self.returned(tag);
                    key
                }
                Action::Cancel { key } => key,
                Action::Release { key } => {
                    assert!(!self.released.contains(&key), "released twice");
                    self.released.push(key);
                    continue;
                }
                other => panic!("{other:?}"),
            };
            assert!(!self.released.contains(&key), "after its release");
        }
    }

    fn settle(&mut self) {
        self.poll();
        while !self.executing.is_empty() || !self.flushing.is_empty() {
            if let Some((op, tag)) = self.executing.pop() {
                let decision = self.coordinator.complete(op, tag, Ok(()));
                self.decide(decision);
            } else if let Some(flush) = self.flushing.pop() {
                self.coordinator.flushed(flush, Ok(()));
            }
            self.poll();
        }
    }
}

/// Both connections send the same commands; after `before` of them are finished, the first ends.
fn each_tag_comes_back_once(config: Config, end: End, before: usize, polled: bool, fails: bool) {
    let mut server = Server {
        coordinator: FlushCoordinator::new(config),
        executing: Vec::new(),
        flushing: Vec::new(),
        sent: 0,
        returned: BTreeMap::new(),
        released: Vec::new(),
    };
    let conns = [0, 1].map(|key| {
        let conn = server.coordinator.connect(key, &());
        let backend = Backend::new().with_flush(true);
        server.coordinator.opened(conn, backend).unwrap();
        conn
    });
    let write = Command::new(CommandType::WRITE, 0, 4);
    let read = Command::new(CommandType::READ, 0, 4);
    let fua = |command: Command| command.with_fua(true);
    for command in [write, read, fua(write), Command::FLUSH, fua(read), write] {
        for conn in conns {
            server.send(conn, command);
        }
    }
    if polled {
        server.poll();
    }
    for _ in 0..before.min(server.executing.len()) {
        let (op, tag) = server.executing.remove(0);
        let decision = server.coordinator.complete(op, tag, Ok(()));
        server.decide(decision);
        if polled {
            server.poll();
        }
    }
    if fails {
        server.poll();
        for flush in server.flushing.split_off(0) {
            server.coordinator.flushed(flush, Err(Errno::EIO));
        }
    }
    match end {
        End::Disconnect => server.coordinator.disconnect(conns[0]),
        End::Revoke => server.coordinator.revoke(conns[0]),
        End::Lost => server.coordinator.lost(conns[0]),
    }
    server.settle();
    for tag in 1..=server.sent {
        let times = server.returned.get(&tag).copied().unwrap_or_default();
        assert_eq!(
            times, 1,
            "{config:?} {end:?} after {before} (polled: {polled}, fails: {fails}): command {tag}"
        );
    }
    assert_eq!(server.released, [0], "{config:?} {end:?}");
}

#[test]
fn each_tag_comes_back_once_and_the_release_is_the_last_of_a_connection() {
    for mode in [Mode::Emulate, Mode::Disable] {
        for when in ["on-completion", "write-through", "on-receipt"] {
            let when: Acknowledge = when.parse().unwrap();
            for threads in [ThreadModel::Parallel, ThreadModel::SerializeRequests] {
                for overlap in [Overlap::OrderWrites, Overlap::Ignore, Overlap::Coherent] {
                    let config = Config::new()
                        .with_mode(mode)
                        .with_acknowledge(when)
                        .with_thread_model(threads)
                        .with_overlap(overlap)
                        .with_fua_on_reads(FuaOnReads::Preflush);
                    for end in [End::Disconnect, End::Revoke, End::Lost] {
                        for before in 0..6 {
                            for polled in [true, false] {
                                for fails in [true, false] {
                                    each_tag_comes_back_once(config, end, before, polled, fails);
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}
