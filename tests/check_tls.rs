//! The example `check` over TLS: with the server that was meant, or not at all.

#![cfg(unix)]

mod check_support;
mod program_support;
mod serve_support;
mod tls_support;

use check_support::check;
use serve_support::Serve;
use tls_support::Authority;

#[test]
fn a_server_is_judged_over_tls_as_without() {
    let authority = Authority::new();
    for (mode, status) in [("emulate", 0), ("unsafe", 1)] {
        let cached = [
            "--tls-required",
            "--cache",
            "--multi-conn",
            mode,
            "--size",
            "1M",
        ];
        let arguments = authority.serve(&cached);
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        let server = Serve::start(&arguments);
        let port = server.address.port();
        let ca = authority.file("ca-cert.pem");
        let uri = format!("nbds://localhost:{port}");
        let ended = check([&uri, "--tls-ca", &ca, "--operations", "2000"]);
        assert_eq!(ended.status, Some(status), "{ended:?}");
        assert_eq!(ended.stderr, "");
        // Without TLS there is nothing.
        let plain = check([format!("nbd://localhost:{port}")]);
        plain.no_verdict(&["write nbds:// or nbds+unix:// to use TLS"]);
        server.stop();
    }
}

#[test]
fn a_server_that_the_authority_does_not_know_is_not_judged() {
    let (authority, other) = (Authority::new(), Authority::new());
    let arguments = authority.serve(&["--size", "1M"]);
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let server = Serve::start(&arguments);
    let uri = format!("nbds://localhost:{}", server.address.port());
    let ended = check([&uri, "--tls-ca", &other.file("ca-cert.pem")]);
    ended.no_verdict(&["invalid peer certificate"]);
    server.stop();
}
