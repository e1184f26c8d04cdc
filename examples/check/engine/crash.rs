//! Crashes in the middle of it all.

use std::time::Duration;

use anyhow::Result;
use nbd_proto::conformance::Event;

use super::super::phase::Phase;
use super::super::restart::Restarts;
use super::super::scene::Scene;
use super::{Engine, TICK};

/// How long a dead server's last words may take to be read.
const LAST_WORDS: Duration = Duration::from_secs(5);

impl Engine<'_> {
    /// Has the server killed while everything goes on, and looks at what is left.
    pub(super) fn restart(&mut self, phase: &Phase) -> Result<()> {
        let Some(mut restarts) = self.restarts.take() else {
            return Ok(());
        };
        let restarted = self.restart_with(&mut restarts, phase);
        self.restarts = Some(restarts);
        restarted
    }

    fn restart_with(&mut self, restarts: &mut Restarts, phase: &Phase) -> Result<()> {
        self.fleet.dying = true;
        restarts.begin()?;
        while !restarts.is_over()? {
            self.go_on(phase);
            self.turn()?;
            if self.is_over() {
                // Whatever it is doing to the server, it is to be let finish.
                while !restarts.is_over()? {
                    std::thread::sleep(TICK);
                }
                return Ok(());
            }
        }
        self.fleet.drain(LAST_WORDS)?;
        self.abandon();
        self.fleet.observer.record(&Event::Crash);
        self.fleet.observer.record(&Event::Reopen);
        self.fleet.dying = false;
        self.job.progress.killed(restarts.done);
        if self.is_over() {
            return Ok(());
        }
        for slot in self.fleet.closed() {
            let gone = "the restart command has returned, but there is no server";
            self.fleet.join(slot, gone)?;
        }
        self.touched.clear();
        let look = self.look_at_all();
        self.perform(look)
    }

    /// Nobody knows when the command kills the server: there is always to be something to lose.
    fn go_on(&mut self, phase: &Phase) {
        let playing = |it: &Self| {
            let is_playing = |scene: &&Scene| !scene.is_stranded(&it.fleet);
            it.scenes.iter().filter(is_playing).count()
        };
        while playing(self) < phase.at_once && self.begin_scene(phase) {}
    }
}
