//! Child processes that cannot outlive their test, hang it, or fail without a word.

use std::env;
use std::io::{self, Read};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// For anything that answers at once on an idle machine.
pub(crate) const SOON: Duration = Duration::from_secs(30);
/// For whole runs of a program.
pub(crate) const LONG: Duration = Duration::from_secs(180);

/// A command for one of the peers, wherever Debian puts it.
pub(crate) fn peer(program: &str) -> Command {
    let mut command = Command::new(program);
    let path = env::var("PATH").unwrap_or_default();
    // nbd-client lives in /usr/sbin, which is not on every user's path.
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    command
}

fn package(program: &str) -> Option<&'static str> {
    let name = Path::new(program).file_name()?.to_str()?;
    Some(match name {
        "nbdkit" => "nbdkit",
        "nbdinfo" | "nbdcopy" => "libnbd-bin",
        "python3" => "python3-libnbd",
        "qemu-nbd" | "qemu-img" | "qemu-io" => "qemu-utils",
        "nbd-server" => "nbd-server",
        "nbd-client" => "nbd-client",
        "fio" => "fio",
        _ => return None,
    })
}

/// The command line, as a person would type it.
fn words(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

/// What a process said, as it says it.
#[derive(Default)]
struct Spoken {
    text: Mutex<Streams>,
    more: Condvar,
}

#[derive(Default)]
struct Streams {
    out: Vec<u8>,
    err: Vec<u8>,
    closed: usize,
}

/// A running child process; dropped, it is ended.
pub(crate) struct Process {
    child: Child,
    what: String,
    spoken: Arc<Spoken>,
}

/// How a process ended.
pub(crate) struct Finished {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    what: String,
}

impl Process {
    pub(crate) fn start(command: &mut Command) -> Self {
        let what = words(command);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| {
            let program = command.get_program().to_string_lossy().into_owned();
            match package(&program) {
                Some(package) if error.kind() == io::ErrorKind::NotFound => panic!(
                    "{program} is not installed; the interop tests need the Debian package {package}"
                ),
                _ => panic!("{what}: {error}"),
            }
        });
        let spoken = Arc::new(Spoken::default());
        let out = child.stdout.take().expect("stdout is piped");
        let err = child.stderr.take().expect("stderr is piped");
        listen(out, Arc::clone(&spoken), |streams| &mut streams.out);
        listen(err, Arc::clone(&spoken), |streams| &mut streams.err);
        Self {
            child,
            what,
            spoken,
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until `find` makes something of the standard output so far.
    pub(crate) fn wait_for_output<T>(&self, find: impl Fn(&str) -> Option<T>) -> T {
        let deadline = Instant::now() + SOON;
        let spoken = Arc::clone(&self.spoken);
        let mut text = spoken.text.lock().unwrap();
        loop {
            if let Some(found) = find(&String::from_utf8_lossy(&text.out)) {
                return found;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || text.closed == 2 {
                drop(text);
                panic!("{} did not become ready\n{}", self.what, self.transcript());
            }
            text = spoken.more.wait_timeout(text, left).unwrap().0;
        }
    }

    /// The exit status, if the process has ended.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be waited for")
    }

    /// Waits for the end of the process.
    pub(crate) fn finish(mut self, patience: Duration) -> Finished {
        let Some(status) = self.wait(patience) else {
            panic!(
                "{} did not end in {patience:?}\n{}",
                self.what,
                self.transcript()
            );
        };
        let mut text = self.spoken.text.lock().unwrap();
        let deadline = Instant::now() + Duration::from_secs(2);
        // A grandchild may hold the pipes open for longer than anybody cares.
        while text.closed < 2 && Instant::now() < deadline {
            text = self
                .spoken
                .more
                .wait_timeout(text, Duration::from_millis(100))
                .unwrap()
                .0;
        }
        let stdout = String::from_utf8_lossy(&text.out).into_owned();
        let stderr = String::from_utf8_lossy(&text.err).into_owned();
        drop(text);
        Finished {
            status,
            stdout,
            stderr,
            what: self.what.clone(),
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        // The process may have ended by itself.
        let _ = kill_process(pid, signal);
    }

    /// Ends the process as a power cut would: nothing is finished or flushed.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn wait(&mut self, patience: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.ended() {
                return Some(status);
            }
            if Instant::now() >= deadline {
                return None;
            }
            thread::sleep(Duration::from_millis(3));
        }
    }

    fn transcript(&self) -> String {
        let text = self.spoken.text.lock().unwrap();
        format!(
            "--- stdout\n{}--- stderr\n{}---",
            String::from_utf8_lossy(&text.out),
            String::from_utf8_lossy(&text.err)
        )
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}\n{}", self.what, self.transcript());
        }
        if self.ended().is_none() {
            // nbd-server ends the processes of its clients when it is asked, not when it is killed.
            self.signal(Signal::TERM);
            self.wait(Duration::from_millis(500));
        }
        self.kill();
    }
}

fn listen(
    mut from: impl Read + Send + 'static,
    spoken: Arc<Spoken>,
    stream: fn(&mut Streams) -> &mut Vec<u8>,
) {
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        loop {
            let count = from.read(&mut buffer).unwrap_or(0);
            let mut text = spoken.text.lock().unwrap();
            stream(&mut text).extend_from_slice(&buffer[..count]);
            if count == 0 {
                text.closed += 1;
            }
            spoken.more.notify_all();
            if count == 0 {
                return;
            }
        }
    });
}

impl Finished {
    /// The standard output of a process that must have succeeded.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert!(self.status.success(), "{self}");
        self.stdout
    }
}

impl std::fmt::Display for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            status,
            stdout,
            stderr,
            what,
        } = self;
        write!(
            f,
            "{what}\n{status}\n--- stdout\n{stdout}--- stderr\n{stderr}---"
        )
    }
}

/// Runs a command to its end.
pub(crate) fn run(command: &mut Command) -> Finished {
    Process::start(command).finish(LONG)
}

/// Runs a Python script that may `import nbd`; `arguments` are `sys.argv[1:]`.
pub(crate) fn python(script: &str, arguments: &[&str]) -> Finished {
    // Debian's libnbd module belongs to Debian's interpreter, whatever else is on the path.
    let finished = run(peer("/usr/bin/python3")
        .arg("-c")
        .arg(script)
        .args(arguments));
    assert!(
        !finished.stderr.contains("No module named 'nbd'"),
        "the interop tests need the Debian package python3-libnbd"
    );
    finished
}
