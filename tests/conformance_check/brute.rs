//! The verdict on small histories by trying everything.
//!
//! The abstract server: for each block it has a list of versions, oldest first. At the beginning
//! that is the one version that was there.
//!
//! - A modification that was invoked may, at any time or never, put its version into the list, at
//!   any place that does not contradict time: behind all that were *settled* before it was
//!   invoked. If it succeeds, its version is in the list, and settled by its reply. If it fails,
//!   or is not answered, its version may be there or not; if it failed, and a read has returned
//!   its version, it is settled by the later of the two replies. Where connections keep no order
//!   among each other, a version is settled for other connections when it is covered: by a
//!   successful flush that was invoked after it was settled and replied to, or by its own
//!   successful FUA.
//! - A read returns any version that was invoked before its reply, and is not before (in the list)
//!   any version that the read has to find: those covered before it was invoked, and, if that is
//!   promised, those of its own connection that were settled before.
//! - A crash picks one version that is not before any covered one, and leaves it as the only one.
//!
//! A history is good if there is a run of that server which produces it. Here all runs are tried:
//! all choices for reads, all orders of the list, all survivors of crashes.

use nbd_proto::conformance::{Command, Contents, Event, History, Outcome};

/// What a server is held to; see `Promise`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rules {
    pub(crate) multi_conn: bool,
    pub(crate) ordered: bool,
    pub(crate) own_writes: bool,
}

/// Anything.
const ANYTHING: Option<u64> = None;

#[derive(Clone, Debug)]
struct Write {
    invoked: usize,
    answer: Option<(usize, bool)>,
    conn: usize,
    fua: bool,
    version: Option<u64>,
}

#[derive(Clone, Debug)]
struct Read {
    invoked: usize,
    replied: usize,
    conn: usize,
    found: u64,
}

#[derive(Clone, Debug)]
struct Flush {
    invoked: usize,
    replied: usize,
    conn: usize,
}

/// Between two crashes.
#[derive(Clone, Debug, Default)]
struct Epoch {
    writes: Vec<Write>,
    reads: Vec<Read>,
    flushes: Vec<Flush>,
}

/// Whether the abstract server can have produced this.
pub(crate) fn is_possible(history: &History, rules: Rules) -> bool {
    let extents = history.events().iter().filter_map(|it| match it {
        Event::Invoke { command, .. } => command.extent(),
        _ => None,
    });
    let end = extents.map(|it| it.offset + it.length).max().unwrap_or(0);
    (0..end / history.granule()).all(|block| {
        let epochs = epochs(history, block);
        possible_from(&epochs, Some(0), rules)
    })
}

/// What of a history is about one block.
fn epochs(history: &History, block: u64) -> Vec<Epoch> {
    let granule = history.granule();
    let mut epochs = vec![Epoch::default()];
    // Connection numbers that are used again are other connections.
    let mut serials: Vec<(u32, usize)> = Vec::new();
    let mut serial = 0;
    let mut open: Vec<(u32, u64, usize, Command)> = Vec::new();
    for (now, event) in history.events().iter().enumerate() {
        let epoch = epochs.last_mut().unwrap();
        match event {
            Event::Invoke {
                conn,
                cookie,
                command,
            } => {
                if !serials.iter().any(|it| it.0 == *conn) {
                    serial += 1;
                    serials.push((*conn, serial));
                }
                open.push((*conn, *cookie, now, *command));
                let conn = serials.iter().find(|it| it.0 == *conn).unwrap().1;
                let here = command.extent().is_some_and(|it| {
                    (it.offset..it.offset + it.length).contains(&(block * granule))
                });
                if here && command.is_modification() {
                    epoch.writes.push(Write {
                        invoked: now,
                        answer: None,
                        conn,
                        fua: command.has_fua(),
                        version: match command {
                            Command::Write { content, .. } => Some(content.0),
                            Command::Zero { .. } => Some(0),
                            _ => ANYTHING,
                        },
                    });
                }
            }
            Event::Reply {
                conn,
                cookie,
                outcome,
            } => {
                let at = open.iter().position(|it| it.0 == *conn && it.1 == *cookie);
                let (_, _, invoked, command) = open.remove(at.unwrap());
                let conn = serials.iter().find(|it| it.0 == *conn).unwrap().1;
                match (command, outcome) {
                    (Command::Flush, Outcome::Done) => epoch.flushes.push(Flush {
                        invoked,
                        replied: now,
                        conn,
                    }),
                    (Command::Read { extent }, Outcome::Data(contents)) => {
                        let first = extent.offset / granule;
                        if (first..first + extent.length / granule).contains(&block) {
                            let found = match contents {
                                Contents::Same(it) => it.0,
                                Contents::Each(each) => each[(block - first) as usize].0,
                            };
                            epoch.reads.push(Read {
                                invoked,
                                replied: now,
                                conn,
                                found,
                            });
                        }
                    }
                    _ => {
                        let mut writes = epoch.writes.iter_mut();
                        if let Some(write) = writes.find(|it| it.invoked == invoked) {
                            write.answer = Some((now, *outcome == Outcome::Done));
                        }
                    }
                }
            }
            Event::Disconnect { conn } => {
                open.retain(|it| it.0 != *conn);
                serials.retain(|it| it.0 != *conn);
            }
            Event::Crash => {
                open.clear();
                serials.clear();
                epochs.push(Epoch::default());
            }
            _ => {}
        }
    }
    epochs
}

fn possible_from(epochs: &[Epoch], base: Option<u64>, rules: Rules) -> bool {
    let Some((epoch, later)) = epochs.split_first() else {
        return true;
    };
    let choices: Vec<Vec<usize>> = epoch
        .reads
        .iter()
        .map(|it| epoch.choices(it, base))
        .collect();
    let mut chosen = Vec::new();
    try_choices(epoch, later, base, rules, &choices, &mut chosen)
}

fn try_choices(
    epoch: &Epoch,
    later: &[Epoch],
    base: Option<u64>,
    rules: Rules,
    choices: &[Vec<usize>],
    chosen: &mut Vec<usize>,
) -> bool {
    if chosen.len() == choices.len() {
        let run = Run {
            epoch,
            rules,
            chosen,
        };
        let mut list = vec![0];
        let rest: Vec<usize> = (1..=epoch.writes.len()).collect();
        return run.try_orders(later, base, &mut list, &rest);
    }
    choices[chosen.len()].iter().any(|&choice| {
        chosen.push(choice);
        let possible = try_choices(epoch, later, base, rules, choices, chosen);
        chosen.pop();
        possible
    })
}

impl Epoch {
    /// The versions that a read may have returned, but for the order. 0 is the base.
    fn choices(&self, read: &Read, base: Option<u64>) -> Vec<usize> {
        let is_found = |version: Option<u64>| version.is_none_or(|it| it == read.found);
        let writes = (1..).zip(&self.writes);
        let writes = writes.filter(|(_, it)| it.invoked < read.replied && is_found(it.version));
        let base = is_found(base).then_some(0);
        base.into_iter().chain(writes.map(|it| it.0)).collect()
    }
}

/// A choice for each read.
struct Run<'a> {
    epoch: &'a Epoch,
    rules: Rules,
    chosen: &'a [usize],
}

impl Run<'_> {
    /// When a version was settled.
    fn settled(&self, version: usize) -> Option<usize> {
        match self.epoch.writes[version - 1].answer? {
            (at, true) => Some(at),
            (at, false) => {
                let reads = self.chosen.iter().zip(&self.epoch.reads);
                let found = reads.filter(|it| *it.0 == version && self.wrote_known(version));
                found.map(|it| it.1.replied.max(at)).min()
            }
        }
    }

    /// Of a trim that failed nobody can tell whether a read has returned it.
    fn wrote_known(&self, version: usize) -> bool {
        self.epoch.writes[version - 1].version.is_some()
    }

    /// Whether a version was covered at a time, by a flush of a connection if it matters whose.
    fn is_covered(&self, version: usize, at: usize) -> bool {
        let write = &self.epoch.writes[version - 1];
        let Some(settled) = self.settled(version) else {
            return false;
        };
        let forced = write.fua && write.answer.is_some_and(|it| it.1 && it.0 < at);
        let mut flushes = self.epoch.flushes.iter();
        forced
            || flushes.any(|flush| {
                let in_scope = self.rules.multi_conn || flush.conn == write.conn;
                in_scope && settled < flush.invoked && flush.replied < at
            })
    }

    fn must_find(&self, read: &Read, version: usize) -> bool {
        let own = self.epoch.writes[version - 1].conn == read.conn;
        let in_scope = own || self.rules.multi_conn;
        let settled = self.settled(version).is_some_and(|it| it < read.invoked);
        (in_scope && self.is_covered(version, read.invoked))
            || (own && self.rules.own_writes && settled)
    }

    fn is_older(&self, old: usize, new: usize) -> bool {
        let (a, b) = (&self.epoch.writes[old - 1], &self.epoch.writes[new - 1]);
        let settled = self.settled(old).is_some_and(|it| it < b.invoked);
        let ordered = self.rules.multi_conn && self.rules.ordered;
        settled && (ordered || a.conn == b.conn || self.is_covered(old, b.invoked))
    }

    fn try_orders(
        &self,
        later: &[Epoch],
        base: Option<u64>,
        list: &mut Vec<usize>,
        rest: &[usize],
    ) -> bool {
        if rest.is_empty() {
            return self.is_good(list) && self.try_survivors(later, base, list);
        }
        rest.iter().any(|&next| {
            let rest: Vec<usize> = rest.iter().copied().filter(|&it| it != next).collect();
            list.push(next);
            let possible = self.try_orders(later, base, list, &rest);
            list.pop();
            possible
        })
    }

    fn is_good(&self, list: &[usize]) -> bool {
        let in_time = (1..list.len()).all(|at| {
            let behind = &list[at + 1..];
            behind.iter().all(|&it| !self.is_older(it, list[at]))
        });
        let mut reads = self.chosen.iter().zip(&self.epoch.reads);
        in_time
            && reads.all(|(&chosen, read)| {
                let at = list.iter().position(|&it| it == chosen).unwrap();
                list[at + 1..].iter().all(|&it| !self.must_find(read, it))
            })
    }

    fn try_survivors(&self, later: &[Epoch], base: Option<u64>, list: &[usize]) -> bool {
        if later.is_empty() {
            return true;
        }
        for &survivor in list.iter().rev() {
            let version = match survivor {
                0 => base,
                write => self.epoch.writes[write - 1].version,
            };
            if possible_from(later, version, self.rules) {
                return true;
            }
            if survivor > 0 && self.is_covered(survivor, usize::MAX) {
                return false;
            }
        }
        false
    }
}
