//! Broken versions of the coordinator, of the client's side of multi-conn, and of the checker of
//! histories, each with one rule removed: the suite of each has to catch every one, by the test of
//! the rule that is missing.
//!
//! The crate is copied to a temporary directory; there one mutant after the other is applied,
//! built and tested. `cargo test --test mutants -- --ignored` runs them all, and
//! with `MUTANT=words` in the environment only those whose name contains the words. Some are also
//! [seen by clients](served) of a server that is built with them.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

mod conformance;
mod flush;
mod list;
mod multiplex;
mod served;

use list::{Edit, Mutant};

/// The first build includes the dependencies.
const BUILD_TIMEOUT: Duration = Duration::from_secs(600);
const TEST_TIMEOUT: Duration = Duration::from_secs(120);

/// How the names of the tests begin each of which has to fail for some mutant.
const HAZARD: &str = "hazards::";

/// The suites, and where the source is that each of them is about.
const SUITES: [(&str, &str); 3] = [
    ("flush", "src/flush/"),
    ("multiplex", "src/multiplex/"),
    ("conformance_check", "src/conformance/"),
];

/// What the suites need beyond the library.
const DEV_DEPENDENCIES: [&str; 2] = ["proptest", "serde_json"];

#[test]
#[ignore = "builds the crate once per mutant, which takes minutes"]
fn every_mutant_is_caught_by_the_test_of_its_rule() {
    let only = std::env::var("MUTANT").unwrap_or_default();
    let copy = Copy::new();
    let mutants = || all().filter(|it| it.name.contains(&only));
    let suites: BTreeSet<&str> = mutants().map(suite).collect();
    let tests: BTreeSet<String> = suites.iter().flat_map(|it| copy.control(it)).collect();
    say("caught by its test | test of the rule, + others that fail | mutant");
    let mut survivors = Vec::new();
    let mut idle: BTreeSet<&String> = tests.iter().filter(|it| it.starts_with(HAZARD)).collect();
    for mutant in mutants() {
        for &test in mutant.caught_by {
            assert!(tests.contains(test), "{}: no test {test}", mutant.name);
        }
        let failed = copy.failures_with(mutant);
        let missed = mutant.caught_by.iter().filter(|&&it| !failed.contains(it));
        let missed: Vec<_> = missed.collect();
        say(&row(mutant, &failed));
        idle.retain(|&test| !failed.contains(test));
        if !missed.is_empty() {
            survivors.push(format!("{}: not caught by {missed:?}", mutant.name));
        }
    }
    assert!(survivors.is_empty(), "{}", survivors.join("\n"));
    assert!(
        idle.is_empty() || !only.is_empty(),
        "no mutant shows what these tests are for: {idle:?}"
    );
}

/// Takes no time, and keeps the list from rotting between the runs of the above.
#[test]
fn every_mutant_still_applies() {
    let mut names = BTreeSet::new();
    for mutant in all() {
        assert!(names.insert(mutant.name), "two mutants {}", mutant.name);
        assert!(!mutant.caught_by.is_empty(), "{}", mutant.name);
        for edit in mutant.edits {
            let source = fs::read_to_string(root().join(edit.file)).unwrap();
            apply(mutant.name, edit, &source);
        }
    }
}

/// All there are.
fn all() -> impl Iterator<Item = &'static Mutant> {
    let lists = [flush::MUTANTS, multiplex::MUTANTS, conformance::MUTANTS];
    lists.into_iter().flatten()
}

/// The suite that has to catch it.
fn suite(mutant: &Mutant) -> &'static str {
    let about =
        |(_, source): &(&str, &str)| mutant.edits.iter().all(|it| it.file.starts_with(source));
    let found = SUITES.into_iter().find(about);
    let found = found.map(|(suite, _)| suite);
    found.unwrap_or_else(|| panic!("{}: in no directory that has a suite", mutant.name))
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Not captured by the test harness: whoever waits for minutes wants to see where it is.
fn say(line: &str) {
    let line = format!("{line}\n");
    io::stderr().write_all(line.as_bytes()).unwrap();
}

fn row(mutant: &Mutant, failed: &BTreeSet<String>) -> String {
    let caught = |&&test: &&&str| failed.contains(test);
    let named: Vec<&str> = mutant.caught_by.iter().filter(caught).copied().collect();
    let all = named.len() == mutant.caught_by.len();
    let others = failed.len() - named.len();
    let random = failed
        .iter()
        .filter(|it| it.starts_with("random::"))
        .count();
    format!(
        "{} | {} + {others} ({random} of them random) | {}",
        if all { "yes" } else { "NO " },
        named.join(", "),
        mutant.name,
    )
}

/// The text with the one place changed that the edit is about.
fn apply(mutant: &str, edit: &Edit, source: &str) -> String {
    let found = source.matches(edit.find).count();
    let Edit { file, find, .. } = edit;
    assert_eq!(found, 1, "{mutant}: found {found} times in {file}:\n{find}");
    assert_ne!(edit.find, edit.replace, "{mutant}: changes nothing");
    source.replacen(edit.find, edit.replace, 1)
}

/// A copy of the crate that may be broken.
struct Copy {
    directory: tempfile::TempDir,
}

impl Copy {
    /// The library and the suites.
    fn new() -> Self {
        let suites = SUITES.map(|(suite, _)| format!("tests/{suite}"));
        let parts: Vec<&str> = suites.iter().map(String::as_str).collect();
        let targets = SUITES.map(|(suite, _)| {
            format!("\n[[test]]\nname = \"{suite}\"\npath = \"tests/{suite}/main.rs\"\n")
        });
        let parts = [&parts[..], &["tests/data"]].concat();
        Self::of(&parts, &DEV_DEPENDENCIES, &targets.concat())
    }

    /// The library and these parts, with the targets that are among them.
    fn of(parts: &[&str], dev_dependencies: &[&str], targets: &str) -> Self {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let to = directory.path();
        for part in ["src"].iter().chain(parts) {
            copy_all(&root().join(part), &to.join(part));
        }
        fs::copy(root().join("Cargo.lock"), to.join("Cargo.lock")).unwrap();
        let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
        let manifest = reduced(&manifest, dev_dependencies) + targets + "\n[workspace]\n";
        fs::write(to.join("Cargo.toml"), manifest).unwrap();
        Self { directory }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.directory.path().join(file)
    }

    /// Without a mutant all tests have to pass. Returns their names.
    fn control(&self, suite: &str) -> BTreeSet<String> {
        let (passed, failed) = self.test("the control", suite);
        assert!(failed.is_empty(), "without any mutant: {failed:?}");
        assert!(!passed.is_empty());
        passed
    }

    /// The tests that fail with this mutant.
    fn failures_with(&self, mutant: &Mutant) -> BTreeSet<String> {
        self.with(mutant, || self.test(mutant.name, suite(mutant)).1)
    }

    /// Does something while the source is so.
    fn with<T>(&self, mutant: &Mutant, act: impl FnOnce() -> T) -> T {
        for edit in mutant.edits {
            let file = self.path(edit.file);
            let source = fs::read_to_string(&file).unwrap();
            fs::write(&file, apply(mutant.name, edit, &source)).unwrap();
        }
        let done = act();
        for edit in mutant.edits {
            let original = fs::read(root().join(edit.file)).unwrap();
            fs::write(self.path(edit.file), original).unwrap();
        }
        done
    }

    /// Builds the suite and runs it: the tests that passed, and those that failed.
    fn test(&self, what: &str, suite: &str) -> (BTreeSet<String>, BTreeSet<String>) {
        let suite = self.build(what, suite);
        let mut command = Command::new(suite);
        command
            .current_dir(self.directory.path())
            .env("RUST_BACKTRACE", "0")
            // Enough to see which mutants random schedules find; to find all is not their task.
            .env("PROPTEST_CASES", "60")
            .env("PROPTEST_MAX_SHRINK_ITERS", "0")
            .env_remove("PROPTEST_RNG_SEED");
        let output = self.run(what, command, TEST_TIMEOUT).output;
        let ended = output.contains("\ntest result: ");
        assert!(ended, "{what}: the suite did not end:\n{output}");
        let with = |end: &str| {
            let tests = output.lines().filter_map(|line| line.strip_prefix("test "));
            let tests = tests.filter_map(|line| line.strip_suffix(end));
            tests.map(str::to_owned).collect()
        };
        (with(" ... ok"), with(" ... FAILED"))
    }

    /// The path of the suite's executable.
    fn build(&self, what: &str, suite: &str) -> PathBuf {
        let mut command = Command::new(env!("CARGO"));
        command
            .args(["test", "--offline", "--features", "proptest"])
            .args(["--test", suite, "--no-run"])
            .arg("--message-format=json-render-diagnostics")
            .arg("--target-dir")
            .arg(self.path("target"))
            // One file changes at a time, and nobody looks at a backtrace.
            .env("CARGO_INCREMENTAL", "1")
            .env("CARGO_PROFILE_DEV_DEBUG", "0")
            // Warnings are no errors here: what is left of a removed rule may be unused.
            .env_remove("RUSTFLAGS")
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .current_dir(self.directory.path());
        let run = self.run(what, command, BUILD_TIMEOUT);
        assert!(run.succeeded, "{what} does not compile:\n{}", run.errors);
        let messages = run.output.lines();
        let mut messages = messages.filter_map(|line| serde_json::from_str(line).ok());
        let program = messages.find_map(|message: serde_json::Value| {
            let executable = message["executable"].as_str()?;
            (message["target"]["name"] == suite).then(|| executable.into())
        });
        program.expect("cargo names the executable")
    }

    /// Runs a child, and kills it if it takes too long.
    fn run(&self, what: &str, mut command: Command, timeout: Duration) -> Run {
        let (output, errors) = (self.path("output"), self.path("errors"));
        let mut child = command
            .stdin(Stdio::null())
            .stdout(File::create(&output).unwrap())
            .stderr(File::create(&errors).unwrap())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + timeout;
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            if Instant::now() > deadline {
                child.kill().unwrap();
                child.wait().unwrap();
                panic!("{what}: {command:?} took longer than {timeout:?}");
            }
            thread::sleep(Duration::from_millis(20));
        };
        Run {
            succeeded: status.success(),
            output: fs::read_to_string(output).unwrap(),
            errors: fs::read_to_string(errors).unwrap(),
        }
    }
}

struct Run {
    succeeded: bool,
    output: String,
    errors: String,
}

fn copy_all(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_all(&entry.path(), &to);
        } else if entry.path().extension().is_some_and(is_needed) {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

fn is_needed(extension: &OsStr) -> bool {
    extension == "rs" || extension == "json" || extension == "md"
}

/// The manifest with no other target than the library, and without the dependencies that only
/// others need.
fn reduced(manifest: &str, dev_dependencies: &[&str]) -> String {
    let mut reduced = String::new();
    let mut section = "";
    for line in manifest.lines() {
        if line.starts_with('[') {
            section = line;
        }
        let name = line.split([' ', '=']).next().unwrap_or_default();
        let keep = match section {
            "[dev-dependencies]" => line == section || dev_dependencies.contains(&name),
            section => !section.starts_with("[[") && !section.starts_with("[workspace"),
        };
        if keep {
            // The target directory may lie in somebody's workspace.
            reduced.push_str(line);
            reduced.push('\n');
        }
    }
    reduced
}
