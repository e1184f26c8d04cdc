//! nbdkit with its multi-conn filter over `recorded_backend.py`.

use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::LazyLock;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::process::{SOON, peer, run};
use crate::raw::Raw;
use crate::server::Server;

/// A plugin that is not there would look like a server that ends for any reason.
static PYTHON: LazyLock<()> = LazyLock::new(|| {
    let found = run(peer("nbdkit").args(["--dump-plugin", "python"]));
    assert!(
        found.status.success(),
        "the interop tests need the Debian package nbdkit-plugin-python: {found}"
    );
});

/// How to start it.
pub(super) struct Setup<'s> {
    pub(super) mode: &'s str,
    pub(super) level: &'s str,
    pub(super) by_export: bool,
    /// What the backend is told beside where its files are.
    pub(super) backend: Vec<&'static str>,
    /// What every image holds at first, and their names.
    pub(super) contents: &'s [u8],
    pub(super) images: Vec<&'s str>,
}

impl<'s> Setup<'s> {
    pub(super) fn new(mode: &'s str, level: &'s str, contents: &'s [u8]) -> Self {
        Self {
            mode,
            level,
            by_export: false,
            backend: Vec::new(),
            contents,
            images: vec![""],
        }
    }

    pub(super) fn start(&self) -> Filter {
        LazyLock::force(&PYTHON);
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| dir.path().join(name);
        for name in &self.images {
            fs::write(file(&format!("image-{name}")), self.contents).unwrap();
        }
        File::create(file("log")).unwrap();
        let plugin = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/interop/live/recorded_backend.py"
        );
        let parameters = [
            // As many commands at once as a client can want.
            "--threads=256".to_owned(),
            "--filter=multi-conn".to_owned(),
            "python".to_owned(),
            plugin.to_owned(),
            format!("store={}", dir.path().display()),
            format!("gates={}", dir.path().display()),
            format!("log={}", file("log").display()),
            format!("multi-conn-mode={}", self.mode),
            format!("multi-conn-track-dirty={}", self.level),
            format!("multi-conn-exportname={}", self.by_export),
        ];
        let parameters = parameters.iter().map(String::as_str);
        let parameters: Vec<_> = parameters.chain(self.backend.iter().copied()).collect();
        Filter {
            server: Server::nbdkit(&parameters),
            dir,
        }
    }
}

/// It runs; dropped, it is killed: asked to end, it would wait for its clients.
pub(super) struct Filter {
    server: Server,
    dir: TempDir,
}

impl Filter {
    pub(super) fn connect(&self, export: &str) -> Raw {
        Raw::connect(self.server.endpoint(), export)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What the backend was asked, in order. A call is there before its result is known anywhere.
    pub(super) fn log(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path("log")).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    pub(super) fn wait_for_call(&self, call: &str) {
        let deadline = Instant::now() + SOON;
        while !self.log().iter().any(|line| line == call) {
            assert!(Instant::now() < deadline, "{call} did not begin");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Lets calls wait, or flushes fail, until [`open`](Self::open).
    pub(super) fn shut(&self, gate: &str) {
        File::create(self.path(gate)).unwrap();
    }

    pub(super) fn open(&self, gate: &str) {
        fs::remove_file(self.path(gate)).unwrap();
    }

    /// What is on permanent storage now.
    pub(super) fn stored(&self, image: &str) -> Vec<u8> {
        fs::read(self.path(&format!("image-{image}"))).unwrap()
    }
}

impl Drop for Filter {
    fn drop(&mut self) {
        self.server.kill();
    }
}

/// As nbdkit itself says it.
pub(super) fn version() -> String {
    let said = run(peer("nbdkit").arg("--version")).ok();
    let word = said.split_whitespace().nth(1);
    word.unwrap_or_else(|| panic!("no version in {said:?}"))
        .to_owned()
}
