//! The flushes that cover the most.

use alloc::collections::BTreeMap;

use super::effect::{Flushed, Serial};
use super::promise::Scope;

/// The latest successful flushes, by what they cover.
#[derive(Clone, Debug, Default)]
pub(super) struct Flushes {
    of_all: Flushed,
    /// Where each connection is on its own. Also of those that are gone: what they have written
    /// stays covered.
    of_each: BTreeMap<Serial, Flushed>,
}

impl Flushes {
    pub(super) fn latest(&self, scope: Scope, serial: Serial) -> Flushed {
        match scope {
            Scope::All => self.of_all,
            Scope::Own => self.of_each.get(&serial).copied().unwrap_or_default(),
        }
    }

    /// A flush covers what was answered before it was invoked: replies that overtake each other
    /// must not make an older one count for more.
    pub(super) fn add(&mut self, scope: Scope, serial: Serial, flush: Flushed) {
        let latest = match scope {
            Scope::All => &mut self.of_all,
            Scope::Own => self.of_each.entry(serial).or_default(),
        };
        if flush.invoked > latest.invoked {
            *latest = flush;
        }
    }

    /// No effect of before a crash is looked at in this light again.
    pub(super) fn clear(&mut self) {
        self.of_each.clear();
    }
}
