//! A client with a ledger, in front of a model server, and what a crash would show of it.

use std::collections::BTreeMap;
use std::ops::Range;

use nbd_proto::conformance::property::{
    Answer, Coordinated, ModelServer, Operation, Server, Step as Inner, Trouble,
};
use nbd_proto::flush::Advertised;
use nbd_proto::multiplex::{
    Caution, Conn, FlushId, FlushLedger, Intent, Plan, Scope, Use, WriteId, plan,
};
use nbd_proto::session::Session;
use nbd_proto::wire::{Name, TransmissionFlags as Flags};

use super::{BLOCKS, Feeding, MOST_CONNECTIONS, Setting, Step};

/// How many bytes a block is for the client: no less than the preferred block size, below which a
/// plan pins nothing.
const BLOCK: u64 = 4096;

struct Write {
    id: WriteId,
    conn: usize,
    blocks: Range<u64>,
    content: u64,
    sent: u64,
    /// When the client had the answer, whatever it was.
    answered: Option<u64>,
}

/// A flush, as long as it is not answered.
struct Flush {
    conn: usize,
    recorded: Conn,
    /// `None` if the ledger has not been told yet: that is how it is fed wrongly.
    id: Option<FlushId>,
}

/// What a tag stands for. Those of reads stand for nothing.
enum Sent {
    Write(usize),
    Flush(Flush),
}

pub(super) struct Client {
    setting: Setting,
    server: ModelServer<Coordinated>,
    plan: Plan,
    ledger: FlushLedger,
    /// By number of the plan: the server's connection, and the ledger's.
    conns: Vec<(usize, Conn)>,
    writes: Vec<Write>,
    sent: BTreeMap<u64, Sent>,
    /// Replies that have left the server and have not arrived.
    under_way: Vec<Answer>,
    now: u64,
}

fn session(advertised: Advertised) -> Session {
    let mut flags = Flags::HAS_FLAGS;
    flags.set(Flags::SEND_FLUSH, advertised.flush);
    flags.set(Flags::SEND_FUA, advertised.fua);
    flags.set(Flags::CAN_MULTI_CONN, advertised.multi_conn);
    Session::new(Name::default(), u64::from(BLOCKS) * BLOCK, flags)
}

impl Client {
    /// With as many connections as the plan allows.
    pub(super) fn new(setting: Setting, connections: u32) -> Result<Self, Trouble> {
        let coordinator = Coordinated::new(setting.config());
        let mut server = ModelServer::new(coordinator, setting.kind, BLOCKS);
        let first = server.connect()?;
        let session = session(server.ready(first)?);
        let intent = Intent::new(Use::Disk, connections)
            .with_caution(Caution::Insist)
            .with_granule(u64::from(setting.kind.granule()) * BLOCK);
        let mut plan = plan(&session, intent);
        let mut ledger = FlushLedger::new(setting.believed.unwrap_or(plan.scope()))
            .with_after_failure(setting.ledger_after_failure())
            .with_after_loss(setting.after_loss);
        let mut conns = vec![(first, ledger.connected().unwrap())];
        while plan.to_open() > 0 {
            let conn = server.connect()?;
            server.ready(conn)?;
            plan.admit(&session).unwrap();
            conns.push((conn, ledger.connected().unwrap()));
        }
        Ok(Self {
            setting,
            server,
            plan,
            ledger,
            conns,
            writes: Vec::new(),
            sent: BTreeMap::new(),
            under_way: Vec::new(),
            now: 0,
        })
    }

    pub(super) fn multi_conn(&self) -> bool {
        self.plan.scope() == Scope::AllConnections
    }

    pub(super) fn step(&mut self, step: Step) -> Result<(), Trouble> {
        self.now += 1;
        match step {
            Step::Receive(which) => self.receive(which),
            Step::Inner(inner) => self.inner(inner)?,
        }
        while let Some(answer) = self.server.answer() {
            self.under_way.push(answer);
        }
        Ok(())
    }

    fn inner(&mut self, step: Inner) -> Result<(), Trouble> {
        let blocks = |block: u64, count: u64| {
            let end = block.saturating_add(count).min(BLOCKS.into());
            block.min(end)..end
        };
        match step {
            Inner::Flush { conn } => self.flush(conn),
            Inner::Read { conn, block, count } => self.command(conn, blocks(block, count), |it| {
                Operation::Read { blocks: it }
            }),
            Inner::Load { conn, block, count } => self.command(conn, blocks(block, count), |it| {
                Operation::Load { blocks: it }
            }),
            Inner::Write {
                conn,
                block,
                count,
                fua,
            } => {
                let fua = fua
                    && self.setting.doubts.is_none()
                    && self.plan.session().flags().contains(Flags::SEND_FUA);
                // No two writes of one step share a block, so they may share their content.
                let content = self.now;
                self.command(conn, blocks(block, count), |it| Operation::Write {
                    blocks: it,
                    content,
                    fua,
                })
            }
            Inner::Act(act) => self.server.act(act),
            Inner::Settle => self.server.settle(),
            Inner::Connect => self.connect(),
            Inner::Disconnect { conn } => self.disconnect(conn),
            // Zeroes could not be told from what was there at first; `Ready` comes with `Connect`.
            _ => Ok(()),
        }
    }

    /// Sends a command on any connection, or its parts on those that they are pinned to.
    fn command(
        &mut self,
        conn: usize,
        blocks: Range<u64>,
        operation: impl Fn(Range<u64>) -> Operation,
    ) -> Result<(), Trouble> {
        let length = (blocks.end - blocks.start) * BLOCK;
        let parts: Vec<_> = match self.plan.pinned(blocks.start * BLOCK, length) {
            None => vec![(conn % self.conns.len(), blocks)],
            Some(parts) => parts
                .map(|it| {
                    let start = it.offset / BLOCK;
                    (it.connection as usize, start..start + it.length / BLOCK)
                })
                .collect(),
        };
        for (conn, blocks) in parts {
            self.send(conn, &operation(blocks))?;
        }
        Ok(())
    }

    fn tag(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    fn send(&mut self, conn: usize, operation: &Operation) -> Result<(), Trouble> {
        let tag = self.tag();
        let (conn, recorded) = self.conns[conn];
        if let Operation::Write {
            blocks,
            content,
            fua,
        } = operation
        {
            let (offset, length) = (blocks.start * BLOCK, (blocks.end - blocks.start) * BLOCK);
            let id = match fua {
                true => self.ledger.fua_sent(recorded, offset, length),
                false => self.ledger.write_sent(recorded, offset, length),
            };
            self.sent.insert(tag, Sent::Write(self.writes.len()));
            self.writes.push(Write {
                id: id.unwrap(),
                conn,
                blocks: blocks.clone(),
                content: *content,
                sent: tag,
                answered: None,
            });
        }
        self.server.submit(conn, tag, operation)
    }

    fn flush(&mut self, conn: usize) -> Result<(), Trouble> {
        let (conn, recorded) = self.conns[conn % self.conns.len()];
        if self.setting.doubts.is_some() && self.flushes_in_flight(conn) {
            return Ok(());
        }
        let tag = self.tag();
        let id = match self.setting.feeding {
            Feeding::Right => Some(self.ledger.flush_sent(recorded).unwrap()),
            Feeding::FlushWhenReplied => None,
        };
        self.sent
            .insert(tag, Sent::Flush(Flush { conn, recorded, id }));
        self.server.submit(conn, tag, &Operation::Flush)
    }

    /// Whether a flush in the scope of one on this connection is not answered: where a server drops
    /// what it could not write and then succeeds, a client sends one at a time.
    fn flushes_in_flight(&self, conn: usize) -> bool {
        let mut sent = self.sent.values();
        sent.any(|it| matches!(it, Sent::Flush(flush) if self.multi_conn() || flush.conn == conn))
    }

    fn connect(&mut self) -> Result<(), Trouble> {
        // Where ranges are pinned, the connections are what they were.
        if !self.multi_conn() || self.conns.len() == MOST_CONNECTIONS as usize {
            return Ok(());
        }
        let conn = self.server.connect()?;
        self.server.ready(conn)?;
        self.conns.push((conn, self.ledger.connected().unwrap()));
        Ok(())
    }

    /// One leaves. Where ranges are pinned, or none would be left, another takes its place.
    fn disconnect(&mut self, conn: usize) -> Result<(), Trouble> {
        // What it leaves unanswered may be executed later, and write back with it whatever else its
        // cache has of the same granule, older than what has gone through the next connection.
        // That is beyond what a client can know.
        if !self.multi_conn() && self.setting.kind.granule() > 1 {
            return Ok(());
        }
        let at = conn % self.conns.len();
        let (left, recorded) = self.conns[at];
        if self.multi_conn() && self.conns.len() > 1 {
            self.conns.remove(at);
        } else {
            let conn = self.server.connect()?;
            self.server.ready(conn)?;
            self.conns[at] = (conn, self.ledger.connected().unwrap());
        }
        self.ledger.connection_ended(recorded).unwrap();
        // Nobody hears what was answered on it any more.
        self.sent.retain(|_, it| match it {
            Sent::Write(at) => self.writes[*at].conn != left,
            Sent::Flush(flush) => flush.conn != left,
        });
        self.server.disconnect(left)
    }

    fn receive(&mut self, which: usize) {
        if self.under_way.is_empty() {
            return;
        }
        let answer = self.under_way.swap_remove(which % self.under_way.len());
        let Some(sent) = self.sent.remove(&answer.tag) else {
            return;
        };
        if let Sent::Write(at) = sent {
            self.writes[at].answered = Some(self.now);
        }
        tell(&mut self.ledger, &self.writes, &sent, answer.result.is_ok());
    }

    /// The ledger of a client that hears at once whatever has left the server, and what raises its
    /// hopes first: it believes no less than any other that this client may become without the
    /// server doing another thing.
    fn hopeful(&self) -> FlushLedger {
        let mut ledger = self.ledger.clone();
        for hoped in [true, false] {
            for answer in &self.under_way {
                let ok = answer.result.is_ok();
                if let Some(sent) = self.sent.get(&answer.tag).filter(|_| ok == hoped) {
                    tell(&mut ledger, &self.writes, sent, ok);
                }
            }
        }
        ledger
    }

    /// What a crash would do now at its worst. Returns how many writes are called durable, or what
    /// is wrong about one of them.
    pub(super) fn crash(&self) -> Result<usize, String> {
        let ledger = self.hopeful();
        let durable = self.writes.iter().filter(|it| ledger.is_durable(it.id));
        let durable: Vec<_> = durable.collect();
        for block in 0..BLOCKS.into() {
            let survivors = self.server.model().survivors(block);
            for &left in &survivors {
                let mut lost = durable.iter().filter(|it| it.blocks.contains(&block));
                let left = self.writer(block, left);
                let over = |it: &&&Write| left.is_none_or(|left| self.was_over(left, it));
                if let Some(lost) = lost.find(over) {
                    return Err(format!(
                        "write {} of blocks {:?} is called durable, but a crash leaves {} in \
                         block {block}, of {survivors:?}",
                        lost.content,
                        lost.blocks,
                        left.map_or(0, |it| it.content),
                    ));
                }
            }
        }
        Ok(durable.len())
    }

    /// Who has written that to a block; nobody, if it is what was there at first.
    fn writer(&self, block: u64, content: u64) -> Option<&Write> {
        let mut writes = self.writes.iter().rev();
        writes.find(|it| it.content == content && it.blocks.contains(&block))
    }

    /// Whether a write had to be executed before another: its answer, good or bad, was there
    /// before the other was sent, and both go through what is one cache for their client.
    fn was_over(&self, earlier: &Write, later: &Write) -> bool {
        let answered = earlier.answered.is_some_and(|it| it < later.sent);
        answered && (self.multi_conn() || earlier.conn == later.conn)
    }
}

/// Tells a ledger of an answer.
fn tell(ledger: &mut FlushLedger, writes: &[Write], sent: &Sent, ok: bool) {
    match sent {
        Sent::Write(at) if ok => drop(ledger.write_replied(writes[*at].id).unwrap()),
        Sent::Write(at) => ledger.write_failed(writes[*at].id).unwrap(),
        Sent::Flush(flush) => {
            let id = flush.id;
            let id = id.unwrap_or_else(|| ledger.flush_sent(flush.recorded).unwrap());
            let told = match ok {
                true => ledger.flush_replied(id),
                false => ledger.flush_failed(id),
            };
            told.unwrap();
        }
    }
}
