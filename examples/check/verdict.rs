//! What came of a check, in words.

use std::fmt;
use std::time::Duration;

use nbd_proto::conformance::{Promise, Summary};

use super::engine::Engine;
use super::observer::{Broken, Counters};
use super::shapes::Abilities;
use super::shared::count::count;

/// What is left out of multi-conn where there is nobody else.
const LONELY: &str = "on one connection: nothing between connections was checked";

/// All that was seen.
#[derive(Clone, Debug)]
pub(crate) struct Verdict {
    pub(crate) broken: Option<Broken>,
    /// Why it could not be gone on with, if it was not found out before.
    pub(crate) error: Option<String>,
    /// The signal that ended it.
    pub(crate) signal: Option<u8>,
    pub(crate) promise: Promise,
    pub(crate) connections: usize,
    /// How often the server was killed, and was to be.
    pub(crate) kills: Option<(u64, u32)>,
    pub(crate) summary: Summary,
    pub(crate) counters: Counters,
    pub(crate) opened: u64,
    pub(crate) lost: u64,
    pub(crate) lost_reasons: Vec<String>,
    pub(crate) first_failure: Option<String>,
    /// How often each kind of scene was played.
    pub(crate) played: Vec<(&'static str, u64)>,
    pub(crate) took: Duration,
    /// How long there was something to do for which there was a connection.
    pub(crate) worked: Duration,
}

impl Verdict {
    /// Of what an engine has seen.
    pub(crate) fn of(
        engine: &Engine<'_>,
        promise: Promise,
        result: anyhow::Result<()>,
        signal: Option<u8>,
        took: Duration,
    ) -> Self {
        let fleet = &engine.fleet;
        let observer = &fleet.observer;
        Self {
            broken: observer.broken().cloned(),
            error: result.err().map(|error| format!("{error:#}")),
            signal,
            promise,
            connections: fleet.len(),
            kills: engine.restarts.as_ref().map(|it| (it.done, it.wanted)),
            summary: observer.summary(),
            counters: observer.counters(),
            opened: fleet.opened,
            lost: fleet.lost_count,
            lost_reasons: fleet.lost.clone(),
            first_failure: fleet.first_failure.clone(),
            played: engine
                .played
                .iter()
                .map(|(&it, &count)| (it, count))
                .collect(),
            took,
            worked: fleet.worked,
        }
    }

    /// Why nothing can be said though nothing went wrong: there was nothing to go wrong, or not
    /// what was asked for. `wanted`: so many connections.
    pub(crate) fn check_substance(&mut self, abilities: Abilities, wanted: u32) {
        if self.broken.is_some() || self.error.is_some() || self.signal.is_some() {
            return;
        }
        let modified = self.counters.writes + self.counters.zeroes + self.counters.trims;
        let missing = if self.counters.reads == 0 {
            "no read"
        } else if abilities.writes && modified == 0 {
            "no write"
        } else if abilities.writes && abilities.flush && self.summary.flushes == 0 {
            "no flush"
        } else {
            self.error = self.gap(wanted);
            return;
        };
        let why = match &self.first_failure {
            Some(why) => format!(" ({why})"),
            None => String::new(),
        };
        self.error = Some(format!("{missing} succeeded{why}, so nothing was checked"));
    }

    /// What was asked for and not done, so that the rest has not the weight it seems to have.
    fn gap(&self, wanted: u32) -> Option<String> {
        if let Some((0, wanted)) = self.kills {
            return Some(format!(
                "the server was never killed (0 of {}), so nothing was checked of that",
                count(wanted, "kill")
            ));
        }
        (self.is_lonely() && wanted > 1).then(|| LONELY.to_owned())
    }

    /// Whether half of the promise could not be checked.
    const fn is_lonely(&self) -> bool {
        self.promise.is_multi_conn() && self.connections == 1
    }

    /// In one word, for programs.
    pub(crate) const fn word(&self) -> &'static str {
        match (&self.broken, &self.error, self.signal) {
            (Some(_), _, _) => "broken",
            (None, Some(_), _) => "unknown",
            (None, None, Some(_)) => "held so far",
            (None, None, None) => "held",
        }
    }

    pub(crate) fn status(&self) -> u8 {
        match (&self.broken, self.signal, &self.error) {
            (Some(_), _, _) => 1,
            // By convention, 128 and the number of the signal.
            (None, Some(signal), _) => 128_u8.saturating_add(signal),
            (None, None, Some(_)) => 2,
            (None, None, None) => 0,
        }
    }

    /// How much was tried.
    pub(crate) fn extent(&self) -> String {
        let Summary {
            commands,
            flushes,
            crashes,
            blocks_read,
            failed,
            ..
        } = self.summary;
        let millis = self.worked.as_millis().max(1);
        let rate = u128::from(commands) * 1000 / millis;
        let mut words = format!(
            "{} ({rate}/s), {}, {}, {} read and compared",
            count(commands, "operation"),
            count(flushes, "flush"),
            count(crashes, "crash"),
            count(blocks_read, "block"),
        );
        if let Some((done, wanted)) = self.kills {
            words.push_str(&format!(", {done} of {}", count(wanted, "kill")));
        }
        if failed > 0 {
            words.push_str(&format!(", {} failed", count(failed, "command")));
            if let Some(why) = &self.first_failure {
                words.push_str(&format!(", the first: {why}"));
            }
        }
        if self.lost > 0 {
            words.push_str(&format!(", {} lost", count(self.lost, "connection")));
            if let Some(why) = self.lost_reasons.first() {
                words.push_str(&format!(", the first: {why}"));
            }
        }
        words
    }
}

/// As it is said on stdout. Where there is no verdict, nothing is.
impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let extent = self.extent();
        match (&self.broken, &self.error, self.signal) {
            (Some(broken), _, _) => {
                writeln!(f, "BROKEN: {}", broken.to_string().trim_end())?;
                writeln!(f, "found within {extent}")
            }
            (None, Some(_), _) => writeln!(f, "no verdict; nothing wrong was seen in {extent}"),
            (None, None, Some(_)) if self.summary.blocks_read == 0 => {
                writeln!(f, "HELD so far: nothing was checked yet; {extent}")
            }
            (None, None, Some(_)) => writeln!(f, "HELD so far: {extent}"),
            (None, None, None) if self.is_lonely() => writeln!(f, "HELD: {extent}; {LONELY}"),
            (None, None, None) => writeln!(f, "HELD: {extent}"),
        }
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Promise(violation) => violation.fmt(f),
            Self::Image(difference) => difference.fmt(f),
            Self::Protocol(words) => write!(f, "a rule of the protocol, {words}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRITES: Abilities = Abilities {
        writes: true,
        flush: true,
        fua: false,
        zero: false,
        trim: false,
        cache: false,
        status: false,
    };

    fn verdict(counters: Counters) -> Verdict {
        Verdict {
            broken: None,
            error: None,
            signal: None,
            promise: Promise::MULTI_CONN,
            connections: 4,
            kills: None,
            summary: Summary::default(),
            counters,
            opened: 4,
            lost: 0,
            lost_reasons: Vec::new(),
            first_failure: Some("write: no space (ENOSPC)".to_owned()),
            played: Vec::new(),
            took: Duration::from_secs(1),
            worked: Duration::from_secs(1),
        }
    }

    #[test]
    fn what_was_not_tried_has_not_held() {
        let reads = Counters {
            reads: 9,
            ..Counters::default()
        };
        let writes = Counters { writes: 9, ..reads };
        for (counters, missing) in [
            (Counters::default(), "no read"),
            (reads, "no write succeeded (write: no space (ENOSPC))"),
            (writes, "no flush"),
        ] {
            let mut verdict = verdict(counters);
            assert_eq!(verdict.status(), 0);
            verdict.check_substance(WRITES, 4);
            assert_eq!((verdict.status(), verdict.word()), (2, "unknown"));
            let error = verdict.error.unwrap();
            assert!(error.starts_with(missing), "{error}");
        }
        let mut verdict = verdict(reads);
        let abilities = Abilities {
            writes: false,
            ..WRITES
        };
        verdict.check_substance(abilities, 4);
        assert_eq!(verdict.word(), "held");
    }

    #[test]
    fn one_of_something_is_no_plural() {
        let mut verdict = full();
        (verdict.kills, verdict.lost) = (Some((1, 1)), 1);
        verdict.first_failure = None;
        verdict.summary = Summary::default();
        verdict.summary.commands = 1;
        verdict.summary.flushes = 1;
        verdict.summary.crashes = 1;
        verdict.summary.blocks_read = 1;
        verdict.summary.failed = 1;
        assert_eq!(
            verdict.to_string(),
            "HELD: 1 operation (1/s), 1 flush, 1 crash, 1 block read and compared, 1 of 1 kill, \
             1 command failed, 1 connection lost\n"
        );
    }

    fn full() -> Verdict {
        let mut verdict = verdict(Counters {
            reads: 9,
            writes: 9,
            ..Counters::default()
        });
        verdict.summary.flushes = 9;
        verdict.summary.blocks_read = 9;
        verdict
    }

    #[test]
    fn a_server_that_was_never_killed_has_not_survived() {
        for (kills, word) in [
            (None, "held"),
            (Some((0, 5)), "unknown"),
            (Some((1, 5)), "held"),
        ] {
            let mut verdict = full();
            verdict.kills = kills;
            verdict.check_substance(WRITES, 4);
            assert_eq!(verdict.word(), word, "{kills:?}");
            assert_eq!(verdict.to_string().contains("kills"), kills.is_some());
        }
    }

    #[test]
    fn on_one_connection_multi_conn_has_not_held() {
        let mut verdict = full();
        verdict.connections = 1;
        // That is what was wanted; and it is said.
        verdict.check_substance(WRITES, 1);
        assert_eq!(verdict.status(), 0);
        assert!(verdict.to_string().contains(LONELY), "{verdict}");
        verdict.check_substance(WRITES, 4);
        assert_eq!(
            (verdict.status(), verdict.error.as_deref()),
            (2, Some(LONELY))
        );
        let mut verdict = full();
        (verdict.connections, verdict.promise) = (1, Promise::SINGLE_CONNECTION);
        verdict.check_substance(WRITES, 4);
        assert_eq!(verdict.status(), 0);
    }

    #[test]
    fn before_anything_was_read_nothing_has_held() {
        let mut verdict = verdict(Counters::default());
        verdict.signal = Some(2);
        assert!(verdict.to_string().contains("nothing was checked yet"));
        verdict.summary.blocks_read = 1;
        assert!(!verdict.to_string().contains("nothing was checked yet"));
    }

    #[test]
    fn what_was_proved_is_not_undone_by_a_signal_or_an_error() {
        let mut verdict = verdict(Counters::default());
        verdict.signal = Some(2);
        assert_eq!((verdict.status(), verdict.word()), (130, "held so far"));
        verdict.broken = Some(Broken::Protocol("it lies".to_owned()));
        verdict.error = Some("and is gone".to_owned());
        assert_eq!((verdict.status(), verdict.word()), (1, "broken"));
        assert!(
            verdict
                .to_string()
                .starts_with("BROKEN: a rule of the protocol, it lies")
        );
    }
}
