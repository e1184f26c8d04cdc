//! The example `copy` over TLS, from and to the example `serve`: with the server that was meant,
//! or not at all.

#![cfg(unix)]

mod copy_support;
mod program_support;
mod serve_support;
mod tls_support;

use std::fs;

use copy_support::{contents, copy, directory, file, text};
use serve_support::Serve;
use tls_support::Authority;

const SIZE: usize = (9 << 20) + 512;

/// A server of memory that only talks TLS, and wants certificates from its clients.
fn start(authority: &Authority) -> Serve {
    let client_authority = authority.file("ca-cert.pem");
    let size = SIZE.to_string();
    let others = [
        "--tls-client-ca",
        &client_authority,
        "--tls-required",
        "--size",
        &size,
    ];
    let arguments = authority.serve(&others);
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    Serve::start(&arguments)
}

fn uri(serve: &Serve, authority: &Authority) -> String {
    let port = serve.address.port();
    let directory = authority.directory().display();
    format!("nbds://localhost:{port}/?tls-certificates={directory}")
}

#[test]
fn a_file_goes_over_tls_and_comes_back_over_several_connections() {
    let authority = Authority::new();
    let serve = start(&authority);
    let directory = directory();
    let (before, after) = (file(&directory, "before"), file(&directory, "after"));
    fs::write(&before, contents(SIZE)).unwrap();
    let uri = uri(&serve, &authority);
    for connections in ["1", "3"] {
        let options = ["--connections", connections, "--verify"];
        copy([&[text(&before).as_str(), &uri], &options[..]].concat()).well();
        copy([&[uri.as_str(), &text(&after)], &options[..]].concat()).well();
        assert!(fs::read(&before).unwrap() == fs::read(&after).unwrap());
    }
    serve.stop();
}

#[test]
fn requests_larger_than_any_record_go_over_tls() {
    let authority = Authority::new();
    let serve = start(&authority);
    let directory = directory();
    let (before, after) = (file(&directory, "before"), file(&directory, "after"));
    // Nothing in it is left out.
    let data: Vec<_> = contents(SIZE).iter().map(|byte| byte | 1).collect();
    fs::write(&before, data).unwrap();
    let uri = uri(&serve, &authority);
    for size in ["512", "7M"] {
        let options = ["--request-size", size];
        copy([&[text(&before).as_str(), &uri], &options[..]].concat()).well();
        copy([&[uri.as_str(), &text(&after)], &options[..]].concat()).well();
        assert!(fs::read(&before).unwrap() == fs::read(&after).unwrap());
    }
    serve.stop();
}

#[test]
fn the_authority_may_be_an_option() {
    let authority = Authority::new();
    let serve = Serve::start(
        &authority
            .serve(&["--size", "1M"])
            .iter()
            .map(String::as_str)
            .collect::<Vec<_>>(),
    );
    let directory = directory();
    let path = text(&file(&directory, "out"));
    let uri = format!("nbds://127.0.0.1:{}/", serve.address.port());
    let ca = authority.file("ca-cert.pem");
    copy([&uri, &path, "--tls-ca", &ca]).well();
    let plain = format!("nbd://127.0.0.1:{}/", serve.address.port());
    copy([&plain, &path, "--tls-ca", &ca]).failed_with(&["--tls-ca is for nbds://"]);
    serve.stop();
}

#[test]
fn who_is_not_trusted_gets_nothing_and_the_file_is_left_alone() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let serve = start(&authority);
    let directory = directory();
    let path = file(&directory, "out");
    fs::write(&path, "precious").unwrap();
    // It is not whom we trust.
    let wrong = uri(&serve, &stranger);
    copy([&wrong, &text(&path)]).failed_with(&["invalid peer certificate"]);
    // We are not whom it trusts.
    fs::copy(authority.path("ca-cert.pem"), stranger.path("ca-cert.pem")).unwrap();
    let refused = copy([&wrong, &text(&path)]);
    assert_eq!(refused.status, Some(1), "{refused:?}");
    // It wants TLS.
    let plain = format!("nbd://localhost:{}/", serve.address.port());
    copy([&plain, &text(&path)]).failed_with(&["write nbds://"]);
    assert_eq!(fs::read(&path).unwrap(), b"precious");
    serve.stop();
}

#[test]
fn a_server_without_tls_is_not_talked_to_without_it() {
    let authority = Authority::new();
    let serve = Serve::start(&["--size", "1M"]);
    let directory = directory();
    let path = text(&file(&directory, "out"));
    copy([&uri(&serve, &authority), &path]).failed_with(&["write nbd://"]);
    serve.stop();
}
