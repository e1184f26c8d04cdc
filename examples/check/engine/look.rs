//! What is written at first, and what is looked at after each phase.

use std::collections::BTreeSet;

use anyhow::Result;
use nbd_proto::conformance::Extent;

use super::super::script::{Fua, Script, What};
use super::Engine;

impl Engine<'_> {
    /// Something to find in all cells, so that what was there before does not matter.
    pub(super) fn fill(&self) -> Script {
        let mut script = Script::default();
        let mut flushers = BTreeSet::new();
        for (number, &cell) in self.job.layout.cells().iter().enumerate() {
            let slot = self.keeper(number);
            flushers.insert(slot);
            for request in self.job.layout.requests(cell) {
                script.send(slot, What::Write(request, Fua::No));
            }
        }
        script.wait_all();
        if self.job.abilities.flush {
            for slot in flushers {
                script.send(slot, What::Flush);
            }
            script.wait_all();
        }
        script
    }

    /// The slot that has to do with a cell if only one has.
    fn keeper(&self, cell: usize) -> usize {
        if self.job.shared {
            0
        } else {
            cell % self.fleet.len().max(1)
        }
    }

    /// A flush, and then a look at all that was touched, on all connections.
    pub(super) fn settle(&mut self) -> Result<()> {
        if self.is_over() {
            return Ok(());
        }
        let touched: Vec<usize> = std::mem::take(&mut self.touched).into_iter().collect();
        let mut script = Script::default();
        if self.job.abilities.flush && self.job.abilities.writes {
            if self.job.shared {
                let slot = self.dice.index(self.fleet.len());
                script.ask(slot, What::Flush);
            } else {
                (0..self.fleet.len()).for_each(|slot| {
                    script.send(slot, What::Flush);
                });
                script.wait_all();
            }
        }
        self.look_at(&touched, &mut script);
        self.perform(script)
    }

    pub(super) fn look_at_all(&self) -> Script {
        let all: Vec<usize> = (0..self.job.layout.cells().len()).collect();
        let mut script = Script::default();
        self.look_at(&all, &mut script);
        script
    }

    fn look_at(&self, cells: &[usize], script: &mut Script) {
        let all = self.job.layout.cells();
        let extents = cells.iter().filter_map(|&it| Some((it, *all.get(it)?)));
        let look = |script: &mut Script, slot, extent: Extent| {
            for request in self.job.layout.requests(extent) {
                script.send(slot, What::Read(request));
            }
        };
        for (number, extent) in extents {
            if self.job.shared {
                (0..self.fleet.len()).for_each(|slot| look(script, slot, extent));
            } else {
                look(script, self.keeper(number), extent);
            }
        }
        script.wait_all();
    }
}
