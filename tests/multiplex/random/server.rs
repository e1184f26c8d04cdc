//! Servers that keep no more than the text demands, behind a network that delays as it likes.
//!
//! A write is executed, its reply leaves the server, and it arrives: three moments, in this order,
//! with anything in between. A flush makes durable what had been *replied to* when it was
//! processed, and nothing else (proto.md "Ordering of messages and writes"); one that fails drops
//! what had been executed. A connection that ends takes along what it has cached, except where the
//! ledger was told that the server is better than that.

use nbd_proto::multiplex::{AfterFailure, AfterLoss, Conn, FlushId, FlushLedger, Scope, WriteId};
use proptest::prelude::*;

use super::{MOST_CONNECTIONS, Setting, config, setting};

#[derive(Clone, Copy, Debug)]
enum Step {
    Write {
        conn: usize,
        fua: bool,
    },
    Flush {
        conn: usize,
    },
    /// The server does the next thing for a command: executes it, or sends the reply.
    Serve {
        which: usize,
        fails: bool,
    },
    /// A reply arrives.
    Receive {
        which: usize,
    },
    End {
        conn: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let any = || any::<usize>();
    let rarely = || prop::bool::weighted(0.1);
    prop_oneof![
        8 => (any(), rarely()).prop_map(|(conn, fua)| Step::Write { conn, fua }),
        6 => any().prop_map(|conn| Step::Flush { conn }),
        24 => (any(), rarely()).prop_map(|(which, fails)| Step::Serve { which, fails }),
        12 => any().prop_map(|which| Step::Receive { which }),
        1 => any().prop_map(|conn| Step::End { conn }),
    ]
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Under way to the server.
    Sent,
    Executed,
    /// The reply is under way to the client.
    Replied,
    Received,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Data {
    Nowhere,
    Cached,
    Stored,
    Dropped,
}

struct Write {
    id: WriteId,
    conn: usize,
    fua: bool,
    place: Place,
    data: Data,
    fails: bool,
}

struct Flush {
    id: FlushId,
    conn: usize,
    place: Place,
    fails: bool,
    /// What had been replied to when it was processed.
    covers: Vec<usize>,
}

struct World {
    setting: Setting,
    ledger: FlushLedger,
    conns: Vec<(Conn, bool)>,
    writes: Vec<Write>,
    flushes: Vec<Flush>,
}

impl World {
    fn new(setting: Setting) -> Self {
        let mut ledger = setting.ledger();
        let conns = (0..MOST_CONNECTIONS).map(|_| (ledger.connected().unwrap(), true));
        Self {
            setting,
            conns: conns.collect(),
            ledger,
            writes: Vec::new(),
            flushes: Vec::new(),
        }
    }

    fn open(&self, conn: usize) -> Option<usize> {
        let conn = conn % self.conns.len();
        self.conns[conn].1.then_some(conn)
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Write { conn, fua } => {
                let Some(conn) = self.open(conn) else {
                    return;
                };
                let on = self.conns[conn].0;
                let id = match fua {
                    true => self.ledger.fua_sent(on, 0, 1),
                    false => self.ledger.write_sent(on, 0, 1),
                };
                self.writes.push(Write {
                    id: id.unwrap(),
                    conn,
                    fua,
                    place: Place::Sent,
                    data: Data::Nowhere,
                    fails: false,
                });
            }
            Step::Flush { conn } => {
                if let Some(conn) = self.open(conn).filter(|&conn| self.may_flush(conn)) {
                    self.flushes.push(Flush {
                        id: self.ledger.flush_sent(self.conns[conn].0).unwrap(),
                        conn,
                        place: Place::Sent,
                        fails: false,
                        covers: Vec::new(),
                    });
                }
            }
            Step::Serve { which, fails } => {
                let both = self.writes.len() + self.flushes.len();
                let which = which % both.max(1);
                match which.checked_sub(self.writes.len()) {
                    None => self.serve_write(which),
                    Some(flush) if flush < self.flushes.len() => self.serve_flush(flush, fails),
                    Some(_) => {}
                }
            }
            Step::Receive { which } => self.receive(which),
            Step::End { conn } => self.end(conn),
        }
    }

    /// With a server that drops what it could not write, one flush at a time in each scope, as
    /// [`AfterFailure::Sticky`] advises.
    fn may_flush(&self, conn: usize) -> bool {
        self.setting.after_failure == AfterFailure::Retry
            || !self
                .flushes
                .iter()
                .any(|it| it.place != Place::Received && self.setting.in_scope(it.conn, conn))
    }

    fn serve_write(&mut self, at: usize) {
        let write = &mut self.writes[at];
        match write.place {
            Place::Sent => {
                write.place = Place::Executed;
                write.data = Data::Cached;
            }
            Place::Executed => {
                write.place = Place::Replied;
                // What it has dropped in between it cannot call persisted.
                write.fails = write.fua && write.data != Data::Cached;
                if write.fua && write.data == Data::Cached {
                    write.data = Data::Stored;
                }
            }
            Place::Replied | Place::Received => {}
        }
    }

    fn serve_flush(&mut self, at: usize, fails: bool) {
        let setting = self.setting;
        let flush = &mut self.flushes[at];
        let conn = flush.conn;
        let in_scope = |it: &Write| setting.in_scope(conn, it.conn);
        match flush.place {
            Place::Sent => {
                flush.place = Place::Executed;
                flush.fails = fails;
                let writes = self.writes.iter().enumerate();
                let replied = writes.filter(|(_, it)| {
                    in_scope(it) && matches!(it.place, Place::Replied | Place::Received)
                });
                flush.covers = replied.map(|(at, _)| at).collect();
                if fails && setting.after_failure == AfterFailure::Sticky {
                    let cached = self.writes.iter_mut().filter(|it| in_scope(it));
                    for write in cached.filter(|it| it.data == Data::Cached) {
                        write.data = Data::Dropped;
                    }
                }
            }
            Place::Executed => {
                flush.place = Place::Replied;
                let covers = if flush.fails { &[][..] } else { &flush.covers };
                for &at in covers {
                    let write = &mut self.writes[at];
                    if write.data == Data::Cached {
                        write.data = Data::Stored;
                    }
                }
            }
            Place::Replied | Place::Received => {}
        }
    }

    fn receive(&mut self, which: usize) {
        let open = |conn: usize| self.conns[conn].1;
        let writes = (0..self.writes.len())
            .filter(|&at| self.writes[at].place == Place::Replied && open(self.writes[at].conn));
        let flushes = (0..self.flushes.len())
            .filter(|&at| self.flushes[at].place == Place::Replied && open(self.flushes[at].conn));
        let replies: Vec<_> = writes.map(Ok).chain(flushes.map(Err)).collect();
        match replies.get(which % replies.len().max(1)) {
            Some(Ok(at)) => {
                let write = &mut self.writes[*at];
                write.place = Place::Received;
                match write.fails {
                    true => self.ledger.write_failed(write.id).unwrap(),
                    false => drop(self.ledger.write_replied(write.id).unwrap()),
                }
            }
            Some(Err(at)) => {
                let flush = &mut self.flushes[*at];
                flush.place = Place::Received;
                match flush.fails {
                    true => self.ledger.flush_failed(flush.id).unwrap(),
                    false => self.ledger.flush_replied(flush.id).unwrap(),
                };
            }
            None => {}
        }
    }

    fn end(&mut self, conn: usize) {
        let Some(conn) = self.open(conn) else {
            return;
        };
        // A failure of which nobody can hear any more is beyond what a client can know.
        let unheard = |it: &Flush| it.conn == conn && it.fails && it.place != Place::Received;
        if self.flushes.iter().any(unheard) {
            return;
        }
        self.conns[conn].1 = false;
        self.ledger.connection_ended(self.conns[conn].0).unwrap();
        for flush in self.flushes.iter_mut().filter(|it| it.conn == conn) {
            flush.place = Place::Received;
        }
        let keeps = self.setting.scope == Scope::AllConnections
            && self.setting.after_loss == AfterLoss::Covered;
        if keeps {
            return;
        }
        let left = self.writes.iter_mut().filter(|it| it.conn == conn);
        for write in left.filter(|it| it.data == Data::Cached) {
            write.data = Data::Dropped;
        }
    }

    fn check(&self) {
        for (at, write) in self.writes.iter().enumerate() {
            if self.ledger.is_durable(write.id) {
                assert!(write.data == Data::Stored, "write {at} would be lost");
            }
        }
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn nothing_is_called_durable_that_a_server_may_still_lose(
        setting in setting(),
        steps in prop::collection::vec(step(), 1..150),
    ) {
        let mut world = World::new(setting);
        for step in steps {
            world.step(step);
            world.check();
        }
    }
}
