//! How long commands usually take, so that scripts can do something while one is executed.

use std::time::Duration;

use super::script::Kind;

/// What a script waits at most for a moment to come.
const LONGEST: Duration = Duration::from_secs(1);

/// A moving average for each kind of command.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Latency {
    read: Duration,
    write: Duration,
    flush: Duration,
}

impl Latency {
    pub(crate) fn note(&mut self, kind: Kind, took: Duration) {
        let average = match kind {
            Kind::Read => &mut self.read,
            Kind::Write => &mut self.write,
            Kind::Flush => &mut self.flush,
        };
        *average = if average.is_zero() {
            took
        } else {
            // One that took much longer than usual says little.
            (*average * 7 + took.min(*average * 8)) / 8
        };
    }

    pub(crate) const fn of(&self, kind: Kind) -> Duration {
        match kind {
            Kind::Read => self.read,
            Kind::Write => self.write,
            Kind::Flush => self.flush,
        }
    }

    /// So many percent of it.
    pub(crate) fn part(&self, kind: Kind, percent: u64) -> Duration {
        let percent = u32::try_from(percent).unwrap_or(u32::MAX);
        (self.of(kind).saturating_mul(percent) / 100).min(LONGEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_average_follows_what_commands_take_but_not_one_that_hangs() {
        let mut latency = Latency::default();
        assert_eq!(latency.part(Kind::Flush, 100), Duration::ZERO);
        for _ in 0..50 {
            latency.note(Kind::Flush, Duration::from_millis(10));
        }
        assert_eq!(latency.part(Kind::Flush, 50), Duration::from_millis(5));
        latency.note(Kind::Flush, Duration::from_secs(60));
        assert!(latency.of(Kind::Flush) < Duration::from_millis(20));
        assert_eq!(latency.of(Kind::Write), Duration::ZERO);
        for _ in 0..100 {
            latency.note(Kind::Flush, Duration::from_secs(60));
        }
        assert_eq!(latency.part(Kind::Flush, 100), LONGEST);
    }
}
