//! Schedules: what clients send and what happens meanwhile, as plain lists.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::vec::Vec;

use super::server::{Act, Answer, Operation, Server, Trouble};
use crate::conformance::check::Promise;
use crate::conformance::history::{Command, Content, Contents, Event, Extent, History, Outcome};
use crate::flush::Advertised;

/// What happens next. Numbers choose among what is there, around and around, so that every list of
/// steps is a schedule, and every part of one, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// A flush is sent.
    Flush {
        /// On which of the open connections.
        conn: usize,
    },
    /// A read is sent.
    Read {
        /// On which of the open connections.
        conn: usize,
        /// The first block.
        block: u64,
        /// How many, at least one, as far as there are.
        count: u64,
    },
    /// Something is sent that may fill a cache, and returns nothing.
    Load {
        /// On which of the open connections.
        conn: usize,
        /// The first block.
        block: u64,
        /// How many.
        count: u64,
    },
    /// A write is sent.
    Write {
        /// On which of the open connections.
        conn: usize,
        /// The first block.
        block: u64,
        /// How many.
        count: u64,
        /// With FUA, where that was advertised.
        fua: bool,
    },
    /// Blocks are zeroed.
    Zero {
        /// On which of the open connections.
        conn: usize,
        /// The first block.
        block: u64,
        /// How many.
        count: u64,
        /// With FUA, where that was advertised.
        fua: bool,
    },
    /// Something happens in the server.
    Act(Act),
    /// Everything that was asked for is done.
    Settle,
    /// A client begins to connect, if there is to be more than one connection.
    Connect,
    /// The client that began first is connected.
    Ready,
    /// A client leaves. The last one never does.
    Disconnect {
        /// Which of the open connections.
        conn: usize,
    },
}

/// Steps, and what is around them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// How many connections are open at first, at least one; only one where multi-conn is not
    /// advertised.
    pub connections: usize,
    /// What happens.
    pub steps: Vec<Step>,
    /// What a crash leaves of each block: the number of one of its
    /// [survivors](crate::conformance::backend::Model::survivors), around and around. The list
    /// is used around and around, too; empty, it stands for zeroes: only what is permanent.
    pub left: Vec<u8>,
}

impl Schedule {
    /// Of these steps, with so many connections.
    #[must_use]
    pub const fn new(connections: usize, steps: Vec<Step>) -> Self {
        Self {
            connections,
            steps,
            left: Vec::new(),
        }
    }
}

/// What came of a schedule.
#[derive(Clone, Debug)]
pub struct Played {
    /// What clients saw.
    pub history: History,
    /// What the server has promised, going by what it has advertised.
    pub promise: Promise,
    /// Whether multi-conn was advertised on all connections; else there was only one.
    pub multi_conn: bool,
    /// What crashes would have left, each with how many events of the history come before it: one
    /// for each flush and each command with FUA that succeeded, and one for the end.
    pub images: Vec<(usize, Vec<u64>)>,
}

impl Played {
    /// What clients would have seen if the server had crashed at one of the
    /// [images](Self::images), and they had read all that was left.
    #[must_use]
    pub fn crashed(&self, image: usize) -> Option<History> {
        let (events, image) = self.images.get(image)?;
        let granule = self.history.granule();
        let mut history = History::new(granule);
        history.extend(self.history.events().iter().take(*events).cloned());
        let length = granule.saturating_mul(u64::try_from(image.len()).ok()?);
        history.extend([
            Event::Crash,
            Event::Reopen,
            Event::Invoke {
                conn: u32::MAX,
                cookie: 0,
                command: Command::Read {
                    extent: Extent::new(0, length),
                },
            },
            Event::Reply {
                conn: u32::MAX,
                cookie: 0,
                outcome: Outcome::Data(Contents::Each(
                    image.iter().copied().map(Content).collect(),
                )),
            },
        ]);
        Some(history)
    }
}

/// Has a server go through a schedule, and records what its clients see. At the end everything
/// settles, a client flushes, and all read everything.
///
/// # Errors
///
/// What the server reports as [`Trouble`]; and if a command is never answered.
pub fn play<S: Server>(server: &mut S, schedule: &Schedule) -> Result<Played, Trouble> {
    let mut player = Player::new(server, schedule);
    player.start(schedule.connections)?;
    for &step in &schedule.steps {
        player.step(step)?;
        player.listen();
    }
    player.end()?;
    Ok(Played {
        promise: player.server.promise(player.multi_conn),
        multi_conn: player.multi_conn,
        history: player.history,
        images: player.images,
    })
}

/// No schedule needs more than these, and ever more would only wait in a queue.
const MOST_CONNECTIONS: usize = 8;
const MOST_IN_FLIGHT: usize = 64;

#[derive(Debug)]
struct Open {
    conn: usize,
    advertised: Advertised,
}

struct Player<'a, S> {
    server: &'a mut S,
    blocks: u64,
    left: &'a [u8],
    multi_conn: bool,
    connecting: Vec<usize>,
    open: Vec<Open>,
    tag: u64,
    /// What is not answered, by tag, and on which connection.
    sent: BTreeMap<u64, (usize, Operation)>,
    /// What nobody hears of any more, because its client has left.
    forgotten: BTreeSet<u64>,
    history: History,
    images: Vec<(usize, Vec<u64>)>,
}

impl<'a, S: Server> Player<'a, S> {
    fn new(server: &'a mut S, schedule: &'a Schedule) -> Self {
        Self {
            blocks: server.blocks().max(1),
            server,
            left: &schedule.left,
            multi_conn: true,
            connecting: Vec::new(),
            open: Vec::new(),
            tag: 0,
            sent: BTreeMap::new(),
            forgotten: BTreeSet::new(),
            history: History::new(BLOCK),
            images: Vec::new(),
        }
    }

    fn start(&mut self, connections: usize) -> Result<(), Trouble> {
        for _ in 0..connections.clamp(1, MOST_CONNECTIONS) {
            if self.multi_conn {
                self.connect()?;
                self.ready()?;
            }
        }
        Ok(())
    }

    fn connect(&mut self) -> Result<(), Trouble> {
        let conn = self.server.connect()?;
        self.connecting.push(conn);
        Ok(())
    }

    fn ready(&mut self) -> Result<(), Trouble> {
        if self.connecting.is_empty() {
            return Ok(());
        }
        let conn = self.connecting.remove(0);
        let advertised = self.server.ready(conn)?;
        self.multi_conn &= advertised.multi_conn;
        self.open.push(Open { conn, advertised });
        Ok(())
    }

    fn pick(&self, conn: usize) -> Option<&Open> {
        self.open.get(conn.checked_rem(self.open.len())?)
    }

    fn blocks(&self, block: u64, count: u64) -> core::ops::Range<u64> {
        let start = block.checked_rem(self.blocks).unwrap_or(0);
        start..start.saturating_add(count.max(1)).min(self.blocks)
    }

    fn step(&mut self, step: Step) -> Result<(), Trouble> {
        match step {
            Step::Flush { conn } => self.send(conn, |_, _| Operation::Flush),
            Step::Read { conn, block, count } => {
                let blocks = self.blocks(block, count);
                self.send(conn, |_, _| Operation::Read { blocks })
            }
            Step::Load { conn, block, count } => {
                let blocks = self.blocks(block, count);
                self.send(conn, |_, _| Operation::Load { blocks })
            }
            Step::Write {
                conn,
                block,
                count,
                fua,
            } => {
                let blocks = self.blocks(block, count);
                self.send(conn, |content, can_fua| Operation::Write {
                    blocks,
                    content,
                    fua: fua && can_fua,
                })
            }
            Step::Zero {
                conn,
                block,
                count,
                fua,
            } => {
                let blocks = self.blocks(block, count);
                self.send(conn, |_, can_fua| Operation::Zero {
                    blocks,
                    fua: fua && can_fua,
                })
            }
            Step::Act(act) => self.server.act(act),
            Step::Settle => self.server.settle(),
            Step::Connect => {
                let known = self.open.len() + self.connecting.len();
                if self.multi_conn && known < MOST_CONNECTIONS {
                    self.connect()?;
                }
                Ok(())
            }
            Step::Ready => self.ready(),
            Step::Disconnect { conn } => self.disconnect(conn),
        }
    }

    /// `make` is given a tag, and whether FUA was advertised.
    fn send(
        &mut self,
        conn: usize,
        make: impl FnOnce(u64, bool) -> Operation,
    ) -> Result<(), Trouble> {
        let Some(&Open { conn, advertised }) = self.pick(conn) else {
            return Ok(());
        };
        if self.sent.len() >= MOST_IN_FLIGHT {
            return Ok(());
        }
        let tag = self.tag + 1;
        let operation = make(tag, advertised.fua);
        if operation == Operation::Flush && !advertised.flush {
            return Ok(());
        }
        self.tag = tag;
        if let Some(command) = recorded(&operation) {
            self.history.push(Event::Invoke {
                conn: number(conn),
                cookie: tag,
                command,
            });
        }
        self.sent.insert(tag, (conn, operation.clone()));
        self.server.submit(conn, tag, &operation)
    }

    fn disconnect(&mut self, conn: usize) -> Result<(), Trouble> {
        if self.open.len() < 2 {
            return Ok(());
        }
        let at = conn.checked_rem(self.open.len()).unwrap_or(0);
        let Open { conn, .. } = self.open.remove(at);
        let gone = self.sent.iter().filter(|(_, (on, _))| *on == conn);
        let gone: Vec<u64> = gone.map(|(&tag, _)| tag).collect();
        for tag in gone {
            self.sent.remove(&tag);
            self.forgotten.insert(tag);
        }
        self.history.push(Event::Disconnect { conn: number(conn) });
        self.server.disconnect(conn)
    }

    /// Takes down what has been answered.
    fn listen(&mut self) {
        while let Some(Answer { tag, result }) = self.server.answer() {
            if self.forgotten.remove(&tag) {
                continue;
            }
            let Some((conn, operation)) = self.sent.remove(&tag) else {
                continue;
            };
            let Some(command) = recorded(&operation) else {
                continue;
            };
            let outcome = match (result, &operation) {
                (Err(_), _) => Outcome::Failed,
                (Ok(found), Operation::Read { .. }) => {
                    Outcome::Data(Contents::Each(found.into_iter().map(Content).collect()))
                }
                (Ok(_), _) => Outcome::Done,
            };
            let promised = command == Command::Flush || command.has_fua();
            let succeeded = outcome == Outcome::Done;
            self.history.push(Event::Reply {
                conn: number(conn),
                cookie: tag,
                outcome,
            });
            if promised && succeeded {
                self.crash();
            }
        }
    }

    /// Notes what would be left if the server crashed now.
    fn crash(&mut self) {
        let left = self.left;
        let mut choose = |block: u64, survivors: &[u64]| {
            let block = usize::try_from(block).unwrap_or(0);
            let chosen = left.get(block.checked_rem(left.len()).unwrap_or(0));
            let chosen = chosen.copied().map_or(0, usize::from);
            chosen.checked_rem(survivors.len()).unwrap_or(0)
        };
        if let Some(image) = self.server.image(&mut choose) {
            self.images.push((self.history.events().len(), image));
        }
    }

    fn end(&mut self) -> Result<(), Trouble> {
        self.settle()?;
        self.send(0, |_, _| Operation::Flush)?;
        self.settle()?;
        for conn in 0..self.open.len() {
            let blocks = 0..self.blocks;
            self.send(conn, |_, _| Operation::Read { blocks })?;
        }
        self.settle()?;
        self.crash();
        for conn in self.open.iter().map(|it| it.conn) {
            self.history.push(Event::Disconnect { conn: number(conn) });
            self.server.disconnect(conn)?;
        }
        Ok(())
    }

    /// Everything comes to an end, and is answered.
    fn settle(&mut self) -> Result<(), Trouble> {
        self.server.settle()?;
        self.listen();
        match self.sent.first_key_value() {
            Some((tag, (conn, operation))) => Err(Trouble(format!(
                "command {tag} on connection {conn} was never answered: {operation:?}"
            ))),
            None => Ok(()),
        }
    }
}

/// Bytes of a block in histories.
const BLOCK: u64 = 512;

fn number(conn: usize) -> u32 {
    u32::try_from(conn).unwrap_or(u32::MAX)
}

fn recorded(operation: &Operation) -> Option<Command> {
    let extent = |blocks: &core::ops::Range<u64>| {
        let length = blocks.end.saturating_sub(blocks.start);
        Extent::new(
            blocks.start.saturating_mul(BLOCK),
            length.saturating_mul(BLOCK),
        )
    };
    Some(match operation {
        Operation::Flush => Command::Flush,
        Operation::Read { blocks } => Command::Read {
            extent: extent(blocks),
        },
        Operation::Load { .. } => return None,
        Operation::Zero { blocks, fua } => Command::Zero {
            extent: extent(blocks),
            fua: *fua,
        },
        Operation::Write {
            blocks,
            content,
            fua,
        } => Command::Write {
            extent: extent(blocks),
            content: Content(*content),
            fua: *fua,
        },
    })
}
