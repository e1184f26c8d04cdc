use super::*;

use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use proptest::prelude::*;

fn export(text: &str) -> String {
    NbdUri::parse(text).expect(text).export.into()
}

fn tcp(text: &str) -> (String, u16) {
    match NbdUri::parse(text).expect(text).transport {
        Transport::Tcp { host, port } => (host, port),
        Transport::Unix { .. } => panic!("{text}"),
    }
}

fn socket(text: &str) -> Vec<u8> {
    match NbdUri::parse(text).expect(text).transport {
        Transport::Unix { path } => path,
        Transport::Tcp { .. } => panic!("{text}"),
    }
}

fn why(text: &str) -> BadUri {
    NbdUri::parse(text).expect_err(text)
}

#[test]
fn export_names_are_those_of_the_table_in_the_format() {
    for (uri, name) in [
        ("nbd://example.com/disk", "disk"),
        ("nbd+unix:///disk?socket=sock", "disk"),
        ("nbd://example.com/", ""),
        ("nbd://example.com", ""),
        ("nbd://example.com//disk", "/disk"),
        ("nbd://example.com/hello%20world", "hello world"),
    ] {
        assert_eq!(export(uri), name, "{uri}");
    }
}

#[test]
fn an_export_name_is_text_and_not_a_path() {
    for (uri, name) in [
        ("nbd://h/a/../b", "a/../b"),
        ("nbd://h/.", "."),
        ("nbd://h/a//b/", "a//b/"),
        ("nbd://h/a%2Fb", "a/b"),
        ("nbd://h/%2e%2E/x", "../x"),
        ("nbd://h/a:b@c+d", "a:b@c+d"),
        ("nbd://h/%E2%82%AC", "€"),
        ("nbd://h/100%25", "100%"),
        ("nbd://h/a%3Fb%23c", "a?b#c"),
        ("nbd+unix:////x?socket=s", "/x"),
    ] {
        assert_eq!(export(uri), name, "{uri}");
    }
}

#[test]
fn the_four_schemes_say_what_is_encrypted_and_what_is_a_socket() {
    for (uri, tls, is_unix) in [
        ("nbd://h/", false, false),
        ("nbds://h/", true, false),
        ("nbd+unix:///?socket=s", false, true),
        ("nbds+unix:///?socket=s", true, true),
        ("NBD://h/", false, false),
        ("Nbds+Unix:///?socket=s", true, true),
    ] {
        let parsed = NbdUri::parse(uri).expect(uri);
        assert_eq!(parsed.tls, tls, "{uri}");
        let found = matches!(parsed.transport, Transport::Unix { .. });
        assert_eq!(found, is_unix, "{uri}");
        assert_eq!(parsed.to_string(), uri);
    }
}

#[test]
fn hosts_and_ports_have_the_defaults_of_the_format() {
    for (uri, host, port) in [
        ("nbd://example.com", "example.com", 10809),
        ("nbd://example.com:/x", "example.com", 10809),
        ("nbd://example.com:1/x", "example.com", 1),
        ("nbd://example.com:65535", "example.com", 65535),
        ("nbd://127.0.0.1:10810/x", "127.0.0.1", 10810),
        ("nbd://[::1]/x", "::1", 10809),
        ("nbd://[2001:db8::7]:99/x", "2001:db8::7", 99),
        ("nbd://me@example.com:99/x", "example.com", 99),
        ("nbd://me:secret@[::1]", "::1", 10809),
        ("nbd:///x", "localhost", 10809),
        ("nbd://:99/x", "localhost", 99),
    ] {
        assert_eq!(tcp(uri), (host.to_owned(), port), "{uri}");
    }
}

#[test]
fn a_socket_is_a_path_or_an_abstract_name() {
    assert_eq!(socket("nbd+unix:///?socket=/run/a%20b"), b"/run/a b");
    assert_eq!(socket("nbd+unix:///?socket=nbd.sock"), b"nbd.sock");
    assert_eq!(socket("nbd+unix://?socket=s"), b"s");
    assert_eq!(socket("nbd+unix:///?socket=%00/abstract"), b"\0/abstract");
    assert_eq!(socket("nbd+unix:///?socket=%FF"), b"\xff");
    assert_eq!(socket("nbd+unix:///?socket=a=b"), b"a=b");
    // RFC 3986 knows of no other meaning.
    assert_eq!(socket("nbd+unix:///?socket=a+b"), b"a+b");
    for uri in [
        "socket=",
        "socket",
        "socket=%00",
        "socket=a%00b",
        "socket=%00a%00",
    ] {
        let uri = format!("nbd+unix:///?{uri}");
        assert_eq!(why(&uri), BadUri::SocketName, "{uri}");
    }
    assert_eq!(why("nbd+unix:///x"), BadUri::NoSocket);
    assert_eq!(why("nbds+unix:///x?"), BadUri::NoSocket);
    let scheme = "nbd+unix".to_owned();
    assert_eq!(
        why("nbd+unix://tmp/sock?socket=s"),
        BadUri::HostWithUnix(scheme)
    );
    assert_eq!(why("nbd://h/?socket=s"), BadUri::SocketWithoutUnix);
    assert_eq!(
        why("nbd+unix:///?socket=a&socket=b"),
        BadUri::Twice("socket".to_owned())
    );
}

#[test]
fn unknown_parameters_are_diagnosed() {
    for name in ["x", "x-mine", "Socket", "port"] {
        let uri = format!("nbd://h/?{name}=1");
        assert_eq!(why(&uri), BadUri::Unknown(name.to_owned()), "{uri}");
    }
    // An encoded name is the same name.
    assert_eq!(socket("nbd+unix:///?sock%65t=s"), b"s");
}

#[test]
fn tls_parameters_are_never_ignored() {
    for (parameter, fits) in [
        ("tls-type=anon", true),
        ("tls-type=x509", true),
        ("tls-type=psk", true),
        ("tls-type=none", false),
        ("tls-hostname=h", true),
        ("tls-hostname=", false),
        ("tls-hostname=%ff", false),
        ("tls-verify-peer=0", true),
        ("tls-verify-peer=1", true),
        ("tls-verify-peer=yes", false),
        ("tls-certificates=%2fpki", true),
        ("tls-certificates=", false),
        ("tls-certificates=%00", false),
    ] {
        let parsed = NbdUri::parse(&format!("nbds://h/?{parameter}"));
        assert_eq!(parsed.is_ok(), fits, "{parameter}");
        if fits {
            assert_ne!(parsed.unwrap().tls_parameters, TlsParameters::default());
            let twice = why(&format!("nbds://h/?{parameter}&{parameter}"));
            assert!(matches!(twice, BadUri::Twice(_)), "{parameter}");
            // Without TLS they would be in vain.
            let plain = why(&format!("nbd://h/?{parameter}"));
            assert!(matches!(plain, BadUri::WithoutTls(_)), "{parameter}");
        } else {
            let found = parsed.unwrap_err();
            assert!(matches!(found, BadUri::Value { .. }), "{parameter}");
        }
    }
}

#[test]
fn tls_parameters_are_taken_as_they_are_written() {
    let uri = "nbds+unix:///x?socket=s&tls-type=x509&tls-hostname=h.example&tls-verify-peer=0\
               &tls-certificates=%2Fetc/pki";
    let expected = TlsParameters {
        kind: Some(TlsKind::X509),
        hostname: Some("h.example".to_owned()),
        verify_peer: Some(false),
        certificates: Some("/etc/pki".into()),
    };
    assert_eq!(NbdUri::parse(uri).unwrap().tls_parameters, expected);
}

#[test]
fn another_export_of_the_same_server_has_a_uri_that_means_it() {
    for (uri, name, expected) in [
        ("nbd://h", "disk", "nbd://h/disk"),
        ("nbd://h/", "", "nbd://h/"),
        ("nbd://h:1/old/name", "new/name", "nbd://h:1/new/name"),
        (
            "nbds://[::1]/x?tls-type=x509",
            "a?b#c%",
            "nbds://[::1]/a%3Fb%23c%25?tls-type=x509",
        ),
        (
            "nbd+unix:///x?socket=/a/b",
            "größer ja",
            "nbd+unix:///gr%C3%B6%C3%9Fer%20ja?socket=/a/b",
        ),
    ] {
        let name = Name::new(name).unwrap();
        let parsed = NbdUri::parse(uri).unwrap().with_export(name.clone());
        assert_eq!(parsed.to_string(), expected);
        assert_eq!(NbdUri::parse(expected).unwrap(), parsed);
        assert_eq!(parsed.export, name);
    }
}

#[test]
fn what_is_no_nbd_uri_is_refused_with_the_reason() {
    let export = |why| BadUri::Export(why);
    let long = format!("nbd://h/{}", "x".repeat(4097));
    for (uri, expected) in [
        ("", BadUri::Scheme),
        ("nbd", BadUri::Scheme),
        ("nbd:host:10809", BadUri::Scheme),
        ("nbd:/host", BadUri::Scheme),
        ("http://h/", BadUri::Scheme),
        ("nbd+tcp://h/", BadUri::Scheme),
        (" nbd://h/", BadUri::Scheme),
        ("nbd://h/a b", BadUri::Character(' ')),
        ("nbd://h/a\tb", BadUri::Character('\t')),
        ("nbd://h/a\nb", BadUri::Character('\n')),
        ("nbd://h\\x", BadUri::Character('\\')),
        ("nbd://h/ü", BadUri::Character('ü')),
        ("nbd://h/%", BadUri::Percent),
        ("nbd://h/%4", BadUri::Percent),
        ("nbd://h/%zz", BadUri::Percent),
        ("nbd://h/%+1", BadUri::Percent),
        ("nbd://h/x#y", BadUri::Fragment),
        ("nbd://h/%00", export(BadString::Nul)),
        ("nbd://h/%ff", export(BadString::NotUtf8)),
        (&long, export(BadString::TooLong)),
        ("nbd://h:0/", BadUri::Port("0".to_owned())),
        ("nbd://h:65536/", BadUri::Port("65536".to_owned())),
        ("nbd://h:+1/", BadUri::Port("+1".to_owned())),
        ("nbd://h:x/", BadUri::Port("x".to_owned())),
        ("nbd://::1/", BadUri::Host(":".to_owned())),
        ("nbd://[::1/", BadUri::Host("[:".to_owned())),
        ("nbd://fe80::1%25eth0/", BadUri::Host("fe80:".to_owned())),
        ("nbd://[::g]/", BadUri::Host("[::g]".to_owned())),
        ("nbd://a%20b/", BadUri::Host("a%20b".to_owned())),
        ("nbd://a@b@h/", BadUri::User("a@b".to_owned())),
    ] {
        let found = why(uri);
        assert_eq!(found, expected, "{uri}");
        assert!(!found.to_string().contains('\n'));
    }
}

proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(text in "(nbds?(\\+unix)?://?)?\\PC{0,40}") {
        let _ = NbdUri::parse(&text);
        let _ = NbdUri::is_meant(&text);
    }

    #[test]
    fn no_mixture_of_uri_characters_makes_the_parser_panic(
        text in "nbd(\\+unix)?://[a-f0-9:/?#@%&=.\\[\\]]{0,40}",
    ) {
        let _ = NbdUri::parse(&text);
    }

    #[test]
    fn every_export_name_and_socket_can_be_said(
        name in "[^\\x00]{0,60}",
        path in proptest::collection::vec(1..=255_u8, 1..60),
    ) {
        let name_text = percent_encode(name.as_bytes(), NON_ALPHANUMERIC);
        let path_text = percent_encode(&path, NON_ALPHANUMERIC);
        let uri = format!("nbd+unix:///{name_text}?socket={path_text}");
        prop_assert_eq!(export(&uri), name);
        prop_assert_eq!(socket(&uri), path);
    }
}
