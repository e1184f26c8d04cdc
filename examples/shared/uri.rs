//! NBD URIs: `nbd://host[:port]/export`, `nbd+unix:///export?socket=PATH`, and with TLS `nbds://`
//! and `nbds+unix://`.
//!
//! The parts of a URI are taken as RFC 3986 has them, and no further: the parsers for the web
//! resolve `..` and drop tabs, which is right for paths, but an export name is free text and no
//! path. For the same reason a `+` in a query is a plus.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use nbd_proto::wire::{BadString, Name};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use url::Host;

/// The port that IANA assigned to NBD.
pub(crate) const DEFAULT_PORT: u16 = 10809;

/// What cannot stand in the name of an export as it is; a slash can.
const RESERVED: AsciiSet = NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'/');

/// Where a server is, and which of its exports is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NbdUri {
    /// As it was given.
    text: String,
    /// Whether the connection has to be encrypted.
    pub(crate) tls: bool,
    /// What is said about the encryption; nothing, where there is none.
    pub(crate) tls_parameters: TlsParameters,
    pub(crate) transport: Transport,
    pub(crate) export: Name,
}

/// The parameters about TLS ("NBD URI query parameters related to TLS"), and libnbd's
/// `tls-certificates`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TlsParameters {
    /// `tls-type`: how the two sides prove who they are.
    pub(crate) kind: Option<TlsKind>,
    /// `tls-hostname`: the name to be found in the server's certificate.
    pub(crate) hostname: Option<String>,
    /// `tls-verify-peer`: whether it matters who the server is.
    pub(crate) verify_peer: Option<bool>,
    /// `tls-certificates`: a directory with `ca-cert.pem`, `client-cert.pem` and
    /// `client-key.pem`.
    pub(crate) certificates: Option<PathBuf>,
}

/// How the two sides of a TLS connection prove who they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TlsKind {
    /// Not at all.
    Anonymous,
    /// By certificates.
    X509,
    /// By a key that both know.
    PreShared,
}

/// The way to a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Tcp {
        /// A name or an address; an IPv6 address without brackets.
        host: String,
        port: u16,
    },
    Unix {
        /// A path, or a NUL byte and a name in the abstract namespace.
        path: Vec<u8>,
    },
}

/// Why something is not an NBD URI, or not one that we can use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadUri {
    #[error("an NBD URI begins with nbd://, nbds://, nbd+unix:// or nbds+unix://")]
    Scheme,
    #[error("the character {0:?} cannot stand in a URI: write it as %XX, its bytes in hexadecimal")]
    Character(char),
    #[error("a % in a URI is followed by two hexadecimal digits; % itself is written %25")]
    Percent,
    #[error("a fragment means nothing in an NBD URI; # itself is written %23")]
    Fragment,
    #[error("the host {0:?} is neither a name nor an address (IPv6 addresses stand in brackets)")]
    Host(String),
    #[error("the port {0:?} is not a number from 1 to 65535")]
    Port(String),
    #[error("the user name {0:?} has a character that does not belong there")]
    User(String),
    #[error("the export name {0}")]
    Export(BadString),
    #[error("the parameter {0:?} is given twice")]
    Twice(String),
    #[error("the parameter {0:?} is not known")]
    Unknown(String),
    #[error("the parameter {name:?} cannot be {value:?}")]
    Value { name: String, value: String },
    #[error("the parameter {0:?} is about TLS: write nbds:// or nbds+unix://, which mean TLS")]
    WithoutTls(String),
    #[error("a socket is missing: add ?socket=PATH")]
    NoSocket,
    #[error("the parameter \"socket\" is for nbd+unix:// and nbds+unix://")]
    SocketWithoutUnix,
    #[error("the socket has no name, or a NUL byte within")]
    SocketName,
    #[error("a Unix domain socket has no host: write three slashes, {0}:///EXPORT?socket=PATH")]
    HostWithUnix(String),
}

impl NbdUri {
    /// Whether something is meant to be a URI, rather than the name of a file.
    ///
    /// Everything with a scheme and `//` counts, so that a mistake is diagnosed and does not
    /// become a file; so do NBD schemes without `//`.
    pub(crate) fn is_meant(text: &str) -> bool {
        let Some((scheme, rest)) = text.split_once(':') else {
            return false;
        };
        let is_scheme = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
        is_scheme && (rest.starts_with("//") || scheme_of(scheme).is_some())
    }

    /// Parses a URI.
    ///
    /// # Errors
    ///
    /// Says what is wrong with it, or what we do not know in it.
    pub(crate) fn parse(text: &str) -> Result<Self, BadUri> {
        let (scheme, rest) = text.split_once(':').ok_or(BadUri::Scheme)?;
        let (tls, is_unix) = scheme_of(scheme).ok_or(BadUri::Scheme)?;
        let rest = rest.strip_prefix("//").ok_or(BadUri::Scheme)?;
        check_characters(rest)?;
        let (rest, query) = match rest.split_once('?') {
            Some((rest, query)) => (rest, query),
            None => (rest, ""),
        };
        let (authority, path) = match rest.split_once('/') {
            Some((authority, path)) => (authority, path),
            None => (rest, ""),
        };
        let parameters = Parameters::parse(query, tls)?;
        let transport = match (is_unix, parameters.socket) {
            (false, None) => parse_authority(authority)?,
            (false, Some(_)) => return Err(BadUri::SocketWithoutUnix),
            (true, _) if !authority.is_empty() => {
                return Err(BadUri::HostWithUnix(scheme.to_owned()));
            }
            (true, None) => return Err(BadUri::NoSocket),
            (true, Some(path)) => Transport::Unix { path },
        };
        Ok(Self {
            text: text.to_owned(),
            tls,
            tls_parameters: parameters.tls,
            transport,
            export: parse_export(path)?,
        })
    }

    /// The same server, another export.
    #[allow(dead_code, reason = "for programs that list exports")]
    pub(crate) fn with_export(&self, export: Name) -> Self {
        let (place, query) = match self.text.split_once('?') {
            Some((place, query)) => (place, Some(query)),
            None => (self.text.as_str(), None),
        };
        let authority = place.find("://").map_or(0, |at| at + 3);
        let path = place.get(authority..).and_then(|rest| rest.find('/'));
        let end = path.map_or(place.len(), |at| authority + at);
        let mut text = place.get(..end).unwrap_or(place).to_owned();
        text.push('/');
        text.extend(utf8_percent_encode(export.as_str(), &RESERVED));
        if let Some(query) = query {
            text.push('?');
            text.push_str(query);
        }
        Self {
            text,
            export,
            ..self.clone()
        }
    }
}

impl fmt::Display for NbdUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Whether a scheme wants TLS, and whether it is one of Unix domain sockets. Schemes are the same
/// in upper and lower case (RFC 3986, 3.1).
fn scheme_of(scheme: &str) -> Option<(bool, bool)> {
    match scheme.to_ascii_lowercase().as_str() {
        "nbd" => Some((false, false)),
        "nbds" => Some((true, false)),
        "nbd+unix" => Some((false, true)),
        "nbds+unix" => Some((true, true)),
        _ => None,
    }
}

/// RFC 3986, 2: the characters of a URI, and percent signs only before two digits.
fn check_characters(text: &str) -> Result<(), BadUri> {
    let mut rest = text.chars();
    while let Some(character) = rest.next() {
        match character {
            '#' => return Err(BadUri::Fragment),
            '%' => {
                let is_digit = |c: Option<char>| c.is_some_and(|c| c.is_ascii_hexdigit());
                if !is_digit(rest.next()) || !is_digit(rest.next()) {
                    return Err(BadUri::Percent);
                }
            }
            'a'..='z' | 'A'..='Z' | '0'..='9' => {}
            _ if "-._~:/?[]@!$&'()*+,;=".contains(character) => {}
            _ => return Err(BadUri::Character(character)),
        }
    }
    Ok(())
}

fn parse_authority(authority: &str) -> Result<Transport, BadUri> {
    let (user, place) = match authority.rsplit_once('@') {
        Some((user, place)) => (user, place),
        None => ("", authority),
    };
    // Only some kinds of TLS authentication need it: it is checked, and then has no use here.
    if user.contains(['@', '[', ']']) {
        return Err(BadUri::User(user.to_owned()));
    }
    // The colons within brackets belong to the address.
    let (host, port) = match place.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port),
        _ => (place, ""),
    };
    Ok(Transport::Tcp {
        host: parse_host(host)?,
        port: parse_port(port)?,
    })
}

/// A missing host is this one; the NBD URI format leaves that to the client.
fn parse_host(host: &str) -> Result<String, BadUri> {
    if host.is_empty() {
        return Ok("localhost".to_owned());
    }
    match Host::parse(host) {
        Ok(Host::Domain(name)) => Ok(name),
        Ok(Host::Ipv4(address)) => Ok(address.to_string()),
        Ok(Host::Ipv6(address)) => Ok(address.to_string()),
        Err(_) => Err(BadUri::Host(host.to_owned())),
    }
}

fn parse_port(port: &str) -> Result<u16, BadUri> {
    let is_number = port.bytes().all(|b| b.is_ascii_digit());
    match port.parse() {
        _ if port.is_empty() => Ok(DEFAULT_PORT),
        Ok(number) if is_number && number != 0 => Ok(number),
        _ => Err(BadUri::Port(port.to_owned())),
    }
}

fn parse_export(path: &str) -> Result<Name, BadUri> {
    let name = percent_decode_str(path).decode_utf8();
    let name = name.map_err(|_| BadUri::Export(BadString::NotUtf8))?;
    Name::new(name).map_err(BadUri::Export)
}

/// What stands behind the `?`.
#[derive(Debug, Default)]
struct Parameters {
    socket: Option<Vec<u8>>,
    tls: TlsParameters,
}

impl Parameters {
    fn parse(query: &str, tls: bool) -> Result<Self, BadUri> {
        let mut parameters = Self::default();
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            let name = percent_decode_str(name).decode_utf8_lossy().into_owned();
            let value: Vec<u8> = percent_decode_str(value).collect();
            if name == "socket" {
                parameters.take_socket(name, value)?;
            } else {
                parameters.take_tls(&name, value)?;
                // To ignore it would be to connect with less than what was asked for.
                if !tls {
                    return Err(BadUri::WithoutTls(name));
                }
            }
        }
        Ok(parameters)
    }

    fn take_socket(&mut self, name: String, value: Vec<u8>) -> Result<(), BadUri> {
        // Only the first byte can be NUL: then it is an abstract name.
        let rest = value.get(1..).ok_or(BadUri::SocketName)?;
        if rest.contains(&0) || value == [0] {
            return Err(BadUri::SocketName);
        }
        set(&mut self.socket, &name, value)
    }

    fn take_tls(&mut self, name: &str, value: Vec<u8>) -> Result<(), BadUri> {
        let bad = |value: &[u8]| BadUri::Value {
            name: name.to_owned(),
            value: String::from_utf8_lossy(value).into_owned(),
        };
        let tls = &mut self.tls;
        match name {
            "tls-type" => {
                let kind = match &value[..] {
                    b"anon" => TlsKind::Anonymous,
                    b"x509" => TlsKind::X509,
                    b"psk" => TlsKind::PreShared,
                    other => return Err(bad(other)),
                };
                set(&mut tls.kind, name, kind)
            }
            "tls-verify-peer" => match &value[..] {
                b"0" => set(&mut tls.verify_peer, name, false),
                b"1" => set(&mut tls.verify_peer, name, true),
                other => Err(bad(other)),
            },
            "tls-hostname" => match String::from_utf8(value) {
                Ok(host) if !host.is_empty() => set(&mut tls.hostname, name, host),
                Ok(host) => Err(bad(host.as_bytes())),
                Err(error) => Err(bad(error.as_bytes())),
            },
            "tls-certificates" if value.is_empty() || value.contains(&0) => Err(bad(&value)),
            "tls-certificates" => {
                let path = OsString::from_vec(value).into();
                set(&mut tls.certificates, name, path)
            }
            _ => Err(BadUri::Unknown(name.to_owned())),
        }
    }
}

/// Takes a parameter that can be given once.
fn set<T>(parameter: &mut Option<T>, name: &str, value: T) -> Result<(), BadUri> {
    match parameter {
        Some(_) => Err(BadUri::Twice(name.to_owned())),
        None => {
            *parameter = Some(value);
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests;
