//! A run from its first write to its last read: phases of scenes, each followed by a look at all
//! that was touched, and crashes in between.

mod crash;
mod look;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::dice::Dice;
use super::fleet::Fleet;
use super::layout::Layout;
use super::phase::Phase;
use super::progress::Progress;
use super::restart::Restarts;
use super::scene::Scene;
use super::script::{Kind, Script};
use super::shapes::{Abilities, Stage, compose};
use super::target::Target;

/// How long scenes may go on when the time is up.
const GRACE: Duration = Duration::from_secs(2);

/// A server whose flushes take this long has time for several scenes at once.
const SLOW: Duration = Duration::from_millis(5);

/// How often it is looked at what does not make itself known.
const TICK: Duration = Duration::from_millis(50);

/// No script pauses for so long.
const STUCK: Duration = Duration::from_secs(5);

/// Connections that are lost within this time are lost at once.
const AT_ONCE: Duration = Duration::from_millis(50);

/// A server that loses so many connections, without a phase in which it loses none, does nothing
/// else.
const MOST_LOST: u64 = 100;

/// What is to be done.
#[derive(Debug)]
pub(crate) struct Job<'a> {
    pub(crate) target: &'a Target<'a>,
    pub(crate) layout: &'a Layout,
    pub(crate) abilities: Abilities,
    /// Whether connections share what they write to. If not, each has cells of its own.
    pub(crate) shared: bool,
    pub(crate) seconds: Duration,
    pub(crate) operations: Option<u64>,
    pub(crate) seed: u64,
    pub(crate) progress: &'a Progress,
}

#[derive(Debug)]
pub(crate) struct Engine<'a> {
    job: Job<'a>,
    pub(crate) fleet: Fleet<'a>,
    pub(crate) restarts: Option<Restarts>,
    dice: Dice,
    scenes: Vec<Scene>,
    last_scene: u64,
    begun: Instant,
    /// When the first of the connections that are missing was lost.
    lost_since: Option<Instant>,
    /// How many connections had been lost when a phase was over that has lost none.
    forgiven: u64,
    /// When something was sent or in flight last.
    moved: Instant,
    /// Cells that were played on since all was looked at.
    touched: BTreeSet<usize>,
    /// How often each kind of scene was played.
    pub(crate) played: BTreeMap<&'static str, u64>,
}

impl<'a> Engine<'a> {
    pub(crate) fn new(job: Job<'a>, fleet: Fleet<'a>, restarts: Option<Restarts>) -> Self {
        Self {
            dice: Dice::new(job.seed),
            job,
            fleet,
            restarts,
            scenes: Vec::new(),
            last_scene: 0,
            begun: Instant::now(),
            lost_since: None,
            forgiven: 0,
            moved: Instant::now(),
            touched: BTreeSet::new(),
            played: BTreeMap::new(),
        }
    }

    /// Plays until the time is up, a signal came, or the server was found out.
    ///
    /// # Errors
    ///
    /// If it cannot be gone on with. What was observed up to then counts all the same.
    pub(crate) fn run(&mut self) -> Result<()> {
        if self.job.abilities.writes {
            let fill = self.fill();
            self.perform(fill)?;
        } else {
            let look = self.look_at_all();
            self.perform(look)?;
        }
        while !self.is_time_up() && !self.is_over() {
            let cells = self.job.layout.cells().len();
            let slow = self.fleet.latency.of(Kind::Flush) > SLOW;
            let phase = Phase::any(cells, self.job.seconds, slow, &mut self.dice);
            let lost = self.fleet.lost_count;
            self.play(&phase)?;
            if self.fleet.lost_count == lost {
                self.forgiven = lost;
            }
            if self.restarts.as_ref().is_some_and(Restarts::is_due) && !self.is_over() {
                self.restart(&phase)?;
            } else {
                self.settle()?;
            }
        }
        self.finish()
    }

    /// Waits for what is in flight: to some servers a client that leaves before does harm.
    fn finish(&mut self) -> Result<()> {
        let give_up = Instant::now() + GRACE;
        while !self.fleet.is_idle() {
            if self.is_over() && give_up <= Instant::now() {
                break;
            }
            self.fleet.turn(TICK)?;
            // Nobody plays any more, and the next turn would not wait.
            drop(self.fleet.take_answered());
        }
        self.fleet.close();
        Ok(())
    }

    fn is_time_up(&self) -> bool {
        let enough = |most| self.fleet.sent >= most;
        self.begun.elapsed() >= self.job.seconds || self.job.operations.is_some_and(enough)
    }

    /// Whether the verdict is clear, or nobody wants it any more.
    fn is_over(&self) -> bool {
        self.fleet.observer.broken().is_some() || self.job.target.is_stopped()
    }

    // --- what is played ---

    /// Scenes, as many at once as the phase wants. If it is time for a crash, they are left going.
    fn play(&mut self, phase: &Phase) -> Result<()> {
        let end = Instant::now() + phase.length;
        let is_crash_due = |it: &Self| it.restarts.as_ref().is_some_and(Restarts::is_due);
        while Instant::now() < end && !self.is_time_up() && !self.is_over() {
            if is_crash_due(self) && !self.scenes.is_empty() {
                return Ok(());
            }
            while self.scenes.len() < phase.at_once {
                if !self.begin_scene(phase) {
                    break;
                }
            }
            self.turn()?;
        }
        self.play_out(true)
    }

    fn begin_scene(&mut self, phase: &Phase) -> bool {
        let mut dice = self.dice.fork();
        let is_free = |&cell: &usize| {
            // One that waits for a connection until the crash is over keeps no cell to itself.
            phase.crowded
                || self.fleet.dying
                || self.scenes.iter().all(|scene| scene.cell != Some(cell))
        };
        let free: Vec<usize> = phase.cells.iter().copied().filter(is_free).collect();
        let Some(index) = dice.pick(&free) else {
            return false;
        };
        let Some(&cell) = self.job.layout.cells().get(index) else {
            return false;
        };
        let cast = self.cast(index, &mut dice);
        if cast.is_empty() {
            return false;
        }
        // If one leaves, another has to witness that the server stays the same.
        let may_travel =
            !self.fleet.dying && self.fleet.len() > 1 && !self.scenes.iter().any(Scene::travels);
        let mut stage = Stage {
            dice: &mut dice,
            abilities: self.job.abilities,
            layout: self.job.layout,
            cell,
            roles: cast.len(),
        };
        let (name, script) = compose(&mut stage, may_travel);
        *self.played.entry(name).or_default() += 1;
        self.touched.insert(index);
        self.begin(script, cast, Some(index));
        true
    }

    fn begin(&mut self, script: Script, cast: Vec<usize>, cell: Option<usize>) {
        self.last_scene += 1;
        let scene = Scene::new(self.last_scene, script, cast, cell);
        self.scenes.push(scene);
    }

    /// Who plays on a cell, and in which parts. While no connection comes again, those that have
    /// one.
    fn cast(&self, cell: usize, dice: &mut Dice) -> Vec<usize> {
        let can_play = |&slot: &usize| !self.fleet.dying || self.fleet.is_usable(slot);
        if !self.job.shared {
            let keeper = cell % self.fleet.len().max(1);
            return Some(keeper).into_iter().filter(can_play).collect();
        }
        let mut cast: Vec<usize> = (0..self.fleet.len()).filter(can_play).collect();
        dice.shuffle(&mut cast);
        cast
    }

    /// One script, alone, however long it takes.
    fn perform(&mut self, script: Script) -> Result<()> {
        let everybody = (0..self.fleet.len()).collect();
        self.begin(script, everybody, None);
        self.play_out(false)
    }

    /// A script that waits for what never comes would pass for one that has held.
    fn check_liveness(&mut self, moved: bool) -> Result<()> {
        if moved || !self.fleet.is_idle() || self.scenes.is_empty() || self.fleet.dying {
            self.moved = Instant::now();
        }
        ensure!(
            self.moved.elapsed() < STUCK,
            "a script waits for nothing, which is a mistake in this program"
        );
        Ok(())
    }

    /// Plays until all scenes are over, or are ended by force when the time is up.
    fn play_out(&mut self, by_force: bool) -> Result<()> {
        let mut give_up = None;
        while !self.scenes.is_empty() && !self.is_over() {
            if by_force && self.is_time_up() {
                let give_up = *give_up.get_or_insert_with(|| Instant::now() + GRACE);
                if give_up <= Instant::now() {
                    break;
                }
            }
            self.turn()?;
        }
        self.abandon();
        Ok(())
    }

    fn abandon(&mut self) {
        self.scenes.clear();
        self.fleet.stay();
    }

    // --- the loop ---

    /// One turn: what can be sent is sent, and what was answered is taken.
    fn turn(&mut self) -> Result<()> {
        let time = self.advance()?;
        self.check_liveness(time.is_zero())?;
        self.fleet.turn(time)?;
        for (id, tag) in self.fleet.take_answered() {
            if let Some(scene) = self.scenes.iter_mut().find(|it| it.id() == id) {
                scene.answered(tag);
            }
        }
        if let Some(why) = self.fleet.observer.failure() {
            anyhow::bail!("{why}");
        }
        if !self.fleet.dying && !self.is_over() {
            self.replace_lost()?;
        }
        let commands = self.fleet.observer.summary().commands;
        let (elapsed, worked) = (self.begun.elapsed(), self.fleet.worked);
        self.job.progress.set(elapsed, worked, commands);
        Ok(())
    }

    /// Lets all scenes go on. How long may be waited then.
    fn advance(&mut self) -> Result<Duration> {
        let mut time = TICK;
        let mut at = 0;
        while let Some(scene) = self.scenes.get_mut(at) {
            let advance = scene.advance(&mut self.fleet)?;
            if advance.moved {
                time = Duration::ZERO;
            }
            if let Some(until) = advance.until {
                time = time.min(until.saturating_duration_since(Instant::now()));
            }
            if advance.over {
                self.scenes.remove(at);
            } else {
                at += 1;
            }
        }
        Ok(time)
    }

    /// Connections that the server has closed are opened again, if it is there.
    fn replace_lost(&mut self) -> Result<()> {
        let mut lost = self.fleet.closed();
        let is_on_its_way = |slot: usize| self.scenes.iter().any(|scene| scene.has_closed(slot));
        lost.retain(|&slot| !is_on_its_way(slot));
        if lost.is_empty() {
            self.lost_since = None;
            return Ok(());
        }
        // A process that dies does not close all at the same time.
        let since = *self.lost_since.get_or_insert_with(Instant::now);
        if since.elapsed() < AT_ONCE {
            return Ok(());
        }
        let why = self.fleet.lost.last().cloned().unwrap_or_default();
        ensure!(
            self.fleet.lost_count - self.forgiven <= MOST_LOST,
            "the server loses one connection after the other: {why}"
        );
        for slot in lost {
            let gone = format!("connection {slot} was lost ({why}), and the server is gone");
            self.fleet.join(slot, &gone)?;
        }
        Ok(())
    }
}
