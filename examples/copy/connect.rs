//! Opening the ends: as many connections as both plans allow, and no more than are of use.

use std::fmt;
use std::time::Duration;

use nbd_proto::multiplex::{
    Caution, Flushing, Intent, NotAdmitted, Pinning, Plan, Reason, Routing, Scope, Use, plan,
};

use super::endpoint::{Destination, Source};
use super::pair::Pair;
use super::shared::connection::{Connection, Settings};
use super::shared::count::count;
use super::work::SMALLEST;

/// The most connections that there are if nobody says otherwise.
const MOST_USUAL: u32 = 4;

/// A server that says nothing to a further connection, though it has taken the first, often serves
/// one at a time.
const PATIENCE: Duration = Duration::from_secs(10);

/// How many connections there are if nobody says otherwise: each has a thread, and threads that
/// wait for each other's processor are slower than fewer of them.
pub(crate) fn usual() -> u32 {
    let processors = std::thread::available_parallelism();
    let processors = processors.map_or(1, |count| u32::try_from(count.get()).unwrap_or(u32::MAX));
    processors.min(MOST_USUAL)
}

/// How the connections of both ends are used.
#[derive(Debug)]
pub(crate) struct Ways {
    source: Option<Plan>,
    destination: Option<Plan>,
    /// How many would have something to do.
    useful: u32,
    /// How many the user wants.
    wanted: u32,
}

impl Ways {
    /// Plans for two ends of which the first connections are there.
    pub(crate) fn new(
        source: &Source,
        destination: Option<&Destination>,
        connections: u32,
        caution: Caution,
    ) -> Self {
        let size = source.size();
        let useful = u32::try_from(size.div_ceil(SMALLEST)).unwrap_or(u32::MAX);
        let asked = connections.min(useful.max(1));
        let source = source.connection();
        let destination = destination.and_then(Destination::connection);
        let intent = |usage, connections| {
            Intent::new(usage, connections)
                .with_caution(caution)
                // As large as what is dealt out to the workers.
                .with_granule(SMALLEST)
        };
        let make = |connection: Option<&Connection>, usage, connections| {
            connection.map(|it| plan(it.session(), intent(usage, connections)))
        };
        let mut ways = Self {
            source: make(source, Use::Read, asked),
            destination: make(destination, Use::Copy, asked),
            useful,
            wanted: connections,
        };
        // Where one end has fewer, more on the other are of no use.
        let both = ways.connections(asked);
        if ways
            .source
            .as_ref()
            .is_some_and(|it| it.connections() > both)
        {
            ways.source = make(source, Use::Read, both);
        }
        if ways
            .destination
            .as_ref()
            .is_some_and(|it| it.connections() > both)
        {
            ways.destination = make(destination, Use::Copy, both);
        }
        ways
    }

    /// How many pairs there are to be, if files set no limit.
    fn connections(&self, asked: u32) -> u32 {
        let plans = self.source.iter().chain(&self.destination);
        plans
            .map(Plan::connections)
            .chain([asked])
            .min()
            .unwrap_or(1)
    }

    /// How many pairs of ends there will be, if all goes well.
    pub(crate) fn workers(&self, connections: u32) -> usize {
        self.connections(connections.min(self.useful.max(1))) as usize
    }

    /// Opens what is still to be opened. What does not work out is said to `remark`, and done
    /// without.
    pub(crate) fn open(
        &mut self,
        source: Source,
        destination: Destination,
        connections: u32,
        settings: [&Settings<'_>; 2],
        remark: &dyn Fn(&str),
    ) -> Vec<Pair> {
        let mut pairs = vec![Pair {
            number: 0,
            source,
            destination,
        }];
        while pairs.len() < self.workers(connections)
            && settings.iter().all(|it| it.signals.caught().is_none())
        {
            let Some(pair) = self.open_one(&pairs, settings, remark) else {
                break;
            };
            pairs.push(pair);
        }
        // Whoever was to have more is told that there are no more.
        let plans = self.source.iter_mut().chain(&mut self.destination);
        plans.for_each(Plan::unavailable);
        pairs
    }

    fn open_one(
        &mut self,
        pairs: &[Pair],
        settings: [&Settings<'_>; 2],
        remark: &dyn Fn(&str),
    ) -> Option<Pair> {
        let first = pairs.first()?;
        let [for_source, for_destination] = settings.map(|settings| Settings {
            timeout: settings.timeout.min(PATIENCE),
            ..*settings
        });
        let several = count(pairs.len(), "connection");
        let go_on = |why: String| remark(&format!("going on with {several}: {why}"));
        // Whatever fails, the longer timeout is for those that are in use.
        let mut source = match first.source.another(&for_source) {
            Ok(source) => source,
            Err(error) => {
                go_on(first.source.explain(&error));
                return None;
            }
        };
        let mut destination = match first.destination.another(&for_destination) {
            Ok(destination) => destination,
            Err(error) => {
                go_on(first.destination.explain(&error));
                return None;
            }
        };
        source.set_timeout(settings[0].timeout);
        destination.set_timeout(settings[1].timeout);
        let places = [first.source.place(), first.destination.place()];
        let plans = [
            (&mut self.source, source.connection()),
            (&mut self.destination, destination.connection()),
        ];
        for ((plan, connection), place) in plans.into_iter().zip(places) {
            let (Some(plan), Some(connection)) = (plan, connection) else {
                continue;
            };
            if let Err(NotAdmitted::Differs(mismatch)) = plan.admit(connection.session()) {
                go_on(format!("{place}: {mismatch}"));
                return None;
            }
        }
        Some(Pair {
            number: pairs.len(),
            source,
            destination,
        })
    }

    /// Which ranges belong to which connection, if they belong to one.
    pub(crate) const fn pinning(&self) -> Option<Pinning> {
        match &self.destination {
            Some(plan) => match plan.routing() {
                Routing::Pinned(pinning) => Some(pinning),
                _ => None,
            },
            None => None,
        }
    }

    /// How what was written becomes durable. Of a file, one `fsync` is enough for all.
    pub(crate) const fn flushing(&self) -> Flushing {
        match &self.destination {
            Some(plan) => plan.flushing(),
            None => Flushing::AnyOne,
        }
    }

    pub(crate) const fn scope(&self) -> Scope {
        match &self.destination {
            Some(plan) => plan.scope(),
            None => Scope::AllConnections,
        }
    }
}

/// The plans as lines of text.
impl fmt::Display for Ways {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ends = [("source", &self.source), ("destination", &self.destination)];
        let one_asked = Reason::OneAsked.to_string();
        for (name, plan) in ends {
            match plan {
                Some(plan) => {
                    for (at, line) in plan.to_string().lines().enumerate() {
                        let title = if at == 0 { name } else { "" };
                        // By us, and not by the user.
                        let line = match line {
                            _ if line != one_asked => line,
                            _ if self.wanted == 1 => line,
                            _ if self.useful <= 1 => "There is too little to copy for more.",
                            _ => "The other end has no more.",
                        };
                        writeln!(f, "{title:<13}{line}")?;
                    }
                }
                None => writeln!(f, "{name:<13}A file, which all threads share.")?,
            }
        }
        Ok(())
    }
}
