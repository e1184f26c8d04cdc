//! Killing the server, and having it again, by a command of the user's.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process_group};

use super::dice::Dice;

/// When the server is to be killed, and how.
#[derive(Debug)]
pub(crate) struct Restarts {
    command: String,
    uri: String,
    timeout: Duration,
    /// The latest comes first.
    moments: Vec<Instant>,
    running: Option<(Child, Instant)>,
    pub(crate) wanted: u32,
    pub(crate) done: u64,
}

impl Restarts {
    /// So many times from now on, once in each part of the time.
    pub(crate) fn new(
        command: &str,
        uri: &str,
        timeout: Duration,
        count: u32,
        time: Duration,
        dice: &mut Dice,
    ) -> Self {
        let now = Instant::now();
        let moments = moments(count, time, dice).map(|after| now + after);
        let mut moments: Vec<_> = moments.collect();
        moments.reverse();
        Self {
            command: command.to_owned(),
            uri: uri.to_owned(),
            timeout,
            moments,
            running: None,
            wanted: count,
            done: 0,
        }
    }

    pub(crate) fn next(&self) -> Option<Instant> {
        self.moments.last().copied()
    }

    pub(crate) fn is_due(&self) -> bool {
        self.next().is_some_and(|moment| moment <= Instant::now())
    }

    /// Runs the command, but does not wait for it.
    ///
    /// # Errors
    ///
    /// If there is no shell.
    pub(crate) fn begin(&mut self) -> Result<()> {
        self.moments.pop();
        let child = Command::new("sh")
            .args(["-c", &self.command])
            .env("NBD_URI", &self.uri)
            .env("NBD_RESTART", (self.done + 1).to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            // A server that it leaves behind would keep ours open for whoever reads it to its end.
            .stderr(Stdio::null())
            // Not ours: Ctrl-C is not for the server.
            .process_group(0)
            .spawn()
            .context("cannot run the restart command")?;
        self.running = Some((child, Instant::now()));
        Ok(())
    }

    /// Whether the command is done.
    ///
    /// # Errors
    ///
    /// If it has failed, or takes too long.
    pub(crate) fn is_over(&mut self) -> Result<bool> {
        let Some((child, since)) = &mut self.running else {
            return Ok(true);
        };
        let ended = child.try_wait();
        let Some(status) = ended.context("cannot wait for the restart command")? else {
            if since.elapsed() < self.timeout {
                return Ok(false);
            }
            self.kill();
            bail!(
                "the restart command did not return within {} s",
                self.timeout.as_secs()
            );
        };
        self.running = None;
        ensure!(status.success(), "the restart command has failed: {status}");
        self.done += 1;
        Ok(true)
    }

    fn kill(&mut self) {
        if let Some((mut child, _)) = self.running.take() {
            // With all that it has started. If it has ended meanwhile, so much the better.
            let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
            let _ = child.wait();
        }
    }
}

impl Drop for Restarts {
    fn drop(&mut self) {
        self.kill();
    }
}

/// One in each part of the time, at random, but not before something was done in it.
fn moments(count: u32, time: Duration, dice: &mut Dice) -> impl Iterator<Item = Duration> {
    let part = time / count.max(1);
    (0..count).map(move |number| {
        let percent = 20 + u32::try_from(dice.below(70)).unwrap_or(0);
        part * number + part * percent / 100
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_is_killed_once_in_each_part_of_the_time() {
        let mut dice = Dice::new(4);
        let part = Duration::from_secs(3);
        let moments: Vec<_> = moments(10, part * 10, &mut dice).collect();
        assert_eq!(moments.len(), 10);
        for (number, moment) in (0..).zip(moments) {
            assert!(moment > part * number && moment < part * (number + 1));
        }
    }

    fn restarts(command: &str) -> Restarts {
        let time = Duration::from_millis(300);
        Restarts::new(
            command,
            "nbd://h",
            time,
            1,
            Duration::ZERO,
            &mut Dice::new(1),
        )
    }

    fn run(restarts: &mut Restarts) -> Result<()> {
        assert!(restarts.is_due());
        restarts.begin()?;
        assert!(!restarts.is_due());
        while !restarts.is_over()? {
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    #[test]
    fn the_command_knows_which_server_and_how_often() {
        let mut good = restarts("test \"$NBD_URI $NBD_RESTART\" = 'nbd://h 1'");
        run(&mut good).unwrap();
        assert_eq!(good.done, 1);
    }

    #[test]
    fn a_command_that_fails_or_hangs_is_an_error() {
        let error = run(&mut restarts("exit 3")).unwrap_err();
        assert!(error.to_string().contains("has failed"), "{error}");
        let error = run(&mut restarts("exec sleep 60")).unwrap_err();
        assert!(error.to_string().contains("did not return"), "{error}");
    }
}
