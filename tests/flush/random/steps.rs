//! What may happen next, and how it is done to the model.

use proptest::prelude::*;

use nbd_proto::flush::{AfterFailure, Command};
use nbd_proto::wire::CommandType;

use crate::world::{CELLS, Fault, Load, World};

/// What happens next. Numbers choose among what is possible, so that any list of steps is a
/// schedule, and shrinks to one.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    Send {
        conn: usize,
        kind: CommandType,
        cell: u64,
        count: u64,
        fua: bool,
        load: Load,
    },
    Flush {
        conn: usize,
    },
    Poll,
    Finish {
        which: usize,
        fails: bool,
    },
    FinishFlush {
        which: usize,
        fault: Option<Fault>,
    },
    WriteBack {
        conn: usize,
        cell: u64,
    },
    Connect,
    Opened,
    Disconnect {
        conn: usize,
    },
    Lose {
        conn: usize,
    },
    Revoke {
        conn: usize,
    },
    PollOne,
    /// Also of connections that are being opened, or are leaving.
    EndAny {
        conn: usize,
        lost: bool,
    },
    Reset,
}

impl Step {
    pub(super) fn without_faults(self) -> Self {
        match self {
            Self::Finish { which, .. } => {
                let fails = false;
                Self::Finish { which, fails }
            }
            Self::FinishFlush { which, .. } => {
                let fault = None;
                Self::FinishFlush { which, fault }
            }
            Self::Lose { conn } => Self::Disconnect { conn },
            Self::EndAny { conn, .. } => Self::EndAny { conn, lost: false },
            Self::Reset => Self::Poll,
            other => other,
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Freedom {
    faults: bool,
    leaving: bool,
    revoking: bool,
    /// Actions are taken one by one, connections end in any phase, failures are reset.
    anything: bool,
}

impl Freedom {
    pub(super) const fn new(faults: bool, leaving: bool) -> Self {
        Self {
            faults,
            leaving,
            revoking: false,
            anything: false,
        }
    }

    pub(super) const fn with_revoking(mut self) -> Self {
        self.revoking = true;
        self
    }

    pub(super) const fn with_anything(mut self) -> Self {
        self.anything = true;
        self
    }
}

pub(super) fn step(freedom: Freedom) -> impl Strategy<Value = Step> {
    let load = prop_oneof![
        2 => Just(Load::Late),
        2 => Just(Load::Early),
        1 => Just(Load::Everything),
    ];
    let kind = prop_oneof![
        4 => Just(CommandType::WRITE),
        4 => Just(CommandType::READ),
        1 => Just(CommandType::WRITE_ZEROES),
        1 => Just(CommandType::TRIM),
        1 => Just(CommandType::CACHE),
        1 => Just(CommandType::BLOCK_STATUS),
    ];
    let send = (
        any::<usize>(),
        kind,
        0..CELLS,
        1..4u64,
        prop::bool::weighted(0.15),
        load,
    );
    let send = send.prop_map(|(conn, kind, cell, count, fua, load)| Step::Send {
        conn,
        kind,
        cell,
        count: count.min(CELLS - cell),
        fua,
        load,
    });
    let faults = u32::from(freedom.faults);
    let leaving = u32::from(freedom.leaving);
    let anything = u32::from(freedom.anything);
    let revoked = prop::bool::weighted(if freedom.revoking { 0.75 } else { 0.0 });
    let end = (any::<usize>(), revoked).prop_map(|(conn, revoked)| match revoked {
        true => Step::Revoke { conn },
        false => Step::Disconnect { conn },
    });
    let fault = prop_oneof![
        12 => Just(None),
        faults => prop_oneof![Just(Some(Fault::Keep)), Just(Some(Fault::Drop))],
    ];
    let ends = if freedom.revoking { 4 } else { 1 };
    let comes_and_goes = prop_oneof![
        1 => Just(Step::Connect),
        1 => Just(Step::Opened),
        ends => end,
        faults => any::<usize>().prop_map(|conn| Step::Lose { conn }),
    ];
    let lost = prop::bool::weighted(0.5 * f64::from(faults));
    let any_end = (any::<usize>(), lost).prop_map(|(conn, lost)| Step::EndAny { conn, lost });
    let anything_else = prop_oneof![
        8 => Just(Step::PollOne),
        leaving => any_end,
        faults => Just(Step::Reset),
    ];
    prop_oneof![
        12 => send,
        4 => any::<usize>().prop_map(|conn| Step::Flush { conn }),
        8 => Just(Step::Poll),
        10 => (any::<usize>(), prop::bool::weighted(0.05 * f64::from(faults)))
            .prop_map(|(which, fails)| Step::Finish { which, fails }),
        8 => (any::<usize>(), fault)
            .prop_map(|(which, fault)| Step::FinishFlush { which, fault }),
        2 => (any::<usize>(), 0..CELLS)
            .prop_map(|(conn, cell)| Step::WriteBack { conn, cell }),
        leaving * (2 + ends + faults) => comes_and_goes,
        anything * (8 + leaving + faults) => anything_else,
    ]
}

impl Step {
    /// The same, but without failures unless they are wanted.
    pub(super) fn with_faults(self, wanted: bool) -> Self {
        match self {
            Self::Finish { which, .. } if !wanted => Self::Finish {
                which,
                fails: false,
            },
            Self::FinishFlush { which, .. } if !wanted => Self::FinishFlush { which, fault: None },
            Self::Lose { conn } if !wanted => Self::Disconnect { conn },
            Self::EndAny { conn, .. } if !wanted => Self::EndAny { conn, lost: false },
            Self::Reset if !wanted => Self::Poll,
            step => step,
        }
    }
}

pub(super) fn apply(world: &mut World, step: Step, policy: AfterFailure) {
    let usable: Vec<usize> = (0..world.connections.len())
        .filter(|&at| world.connections[at].open && !world.connections[at].leaving)
        .collect();
    let pick = |from: &[usize], which: usize| (!from.is_empty()).then(|| from[which % from.len()]);
    match step {
        Step::Send {
            conn,
            kind,
            cell,
            count,
            fua,
            load,
        } => {
            if let Some(conn) = pick(&usable, conn) {
                let command = Command::new(kind, cell, count).with_fua(fua);
                world.send_loading(conn, command, load);
            }
        }
        Step::Flush { conn } => {
            if let Some(conn) = pick(&usable, conn) {
                world.flush(conn);
            }
        }
        Step::Poll => {
            world.poll();
        }
        Step::Finish { which, fails } => {
            if !world.executing.is_empty() {
                let at = which % world.executing.len();
                let result = if fails {
                    Err(nbd_proto::wire::Errno::ENOSPC)
                } else {
                    Ok(())
                };
                world.finish(at, result);
            }
        }
        Step::FinishFlush { which, fault } => {
            if !world.flushing.is_empty() {
                // What retry promises, it promises for backends that keep the data.
                let fault = fault.map(|fault| match policy {
                    AfterFailure::Retry => Fault::Keep,
                    _ => fault,
                });
                world.finish_flush(which % world.flushing.len(), fault);
            }
        }
        Step::WriteBack { conn, cell } => {
            if !world.connections.is_empty() {
                world.write_back(conn % world.connections.len(), cell);
            }
        }
        Step::Connect => {
            if world.connections.len() < 8 {
                world.connect(0);
            }
        }
        Step::Opened => {
            let opening = (0..world.connections.len())
                .find(|&at| !world.connections[at].open && !world.connections[at].leaving);
            if let Some(at) = opening {
                world.opened(at).expect("the backend suits the mode");
            }
        }
        Step::Disconnect { conn } => {
            if let Some(conn) = pick(&usable, conn) {
                world.disconnect(conn);
            }
        }
        Step::Lose { conn } => {
            if let Some(conn) = pick(&usable, conn) {
                world.lose(conn);
            }
        }
        Step::PollOne => {
            world.poll_one();
        }
        Step::EndAny { conn, lost } => {
            let there: Vec<usize> = (0..world.connections.len())
                .filter(|&at| !world.connections[at].released)
                .collect();
            match pick(&there, conn) {
                Some(conn) if lost => world.lose(conn),
                Some(conn) => world.disconnect(conn),
                None => {}
            }
        }
        Step::Reset => world.reset(),
        Step::Revoke { conn } => {
            let there: Vec<usize> = (0..world.connections.len())
                .filter(|&at| !world.connections[at].released)
                .collect();
            if let Some(conn) = pick(&there, conn) {
                world.revoke(conn);
            }
        }
    }
}
