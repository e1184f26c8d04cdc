//! Our own programs, built from the sources as they are now.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use crate::process::{LONG, Process, peer};
use crate::settings;

/// The path of one of our examples, built from the sources as they are now.
pub(crate) fn example(name: &'static str) -> &'static Path {
    static SERVE: LazyLock<PathBuf> = LazyLock::new(|| build("serve"));
    static COPY: LazyLock<PathBuf> = LazyLock::new(|| build("copy"));
    static INFO: LazyLock<PathBuf> = LazyLock::new(|| build("info"));
    static CHECK: LazyLock<PathBuf> = LazyLock::new(|| build("check"));
    match name {
        "serve" => &SERVE,
        "copy" => &COPY,
        "info" => &INFO,
        "check" => &CHECK,
        _ => panic!("no example is called {name}"),
    }
}

fn build(name: &str) -> PathBuf {
    // This test is <target>/<profile>/deps/interop-<hash>.
    let this = env::current_exe().unwrap();
    let target = this
        .ancestors()
        .nth(3)
        .expect("a test lies three levels deep in the target");
    let mut cargo = Command::new(env!("CARGO"));
    cargo
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["build", "--release", "--locked"]);
    cargo
        .arg("--target-dir")
        .arg(target)
        .args(["--example", name]);
    Process::start(&mut cargo).finish(3 * LONG).ok();
    target.join("release/examples").join(name)
}

/// Runs `copy SRC DST` to its end.
pub(crate) fn copy_command(source: &str, destination: &str) -> Command {
    let mut command = match settings::copy_is_nbdcopy() {
        true => peer("nbdcopy"),
        false => Command::new(example("copy")),
    };
    command.args([source, destination]);
    command
}
