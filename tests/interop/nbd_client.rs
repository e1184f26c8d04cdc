//! nbd-client, which speaks the oldest dialect of those in use.

use crate::process::{peer, run};
use crate::server::{Endpoint, Serve, Storage};

#[test]
fn nbd_client_lists_the_exports() {
    let server = Serve::over(Storage::Memory)
        .export("one")
        .export("two")
        .start();
    let mut command = peer("nbd-client");
    match server.endpoint() {
        Endpoint::Tcp(address) => {
            command
                .arg("-l")
                .arg(address.ip().to_string())
                .arg(address.port().to_string());
        }
        Endpoint::Unix(path) => {
            command.arg("-l").arg("-unix").arg(path);
        }
    }
    let list = run(&mut command).ok();
    for name in ["one", "two"] {
        assert!(
            list.lines().any(|line| line.trim() == name),
            "{name} is not in {list}"
        );
    }
}
