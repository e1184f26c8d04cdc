//! NBD URIs: `nbd://host[:port]/export`, `nbd+unix:///export?socket=PATH`, and with TLS `nbds://`
//! and `nbds+unix://`.
//!
//! The parts of a URI are taken as RFC 3986 has them, and no further: the parsers for the web
//! resolve `..` and drop tabs, which is right for paths, but an export name is free text and no
//! path. For the same reason a `+` in a query is a plus.

use std::fmt;

use nbd_proto::wire::{BadString, Name};
use percent_encoding::percent_decode_str;
use url::Host;

/// The port that IANA assigned to NBD.
pub(crate) const DEFAULT_PORT: u16 = 10809;

/// Where a server is, and which of its exports is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NbdUri {
    /// As it was given.
    text: String,
    /// Whether the connection has to be encrypted.
    pub(crate) tls: bool,
    pub(crate) transport: Transport,
    pub(crate) export: Name,
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
    #[error("the parameter {0:?} is about TLS, which is not supported by this program yet")]
    Tls(String),
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
        let parameters = Parameters::parse(query)?;
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
            transport,
            export: parse_export(path)?,
        })
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
}

impl Parameters {
    fn parse(query: &str) -> Result<Self, BadUri> {
        let mut parameters = Self::default();
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            let name = percent_decode_str(name).decode_utf8_lossy().into_owned();
            parameters.take(name, percent_decode_str(value).collect())?;
        }
        Ok(parameters)
    }

    fn take(&mut self, name: String, value: Vec<u8>) -> Result<(), BadUri> {
        match name.as_str() {
            "socket" if self.socket.is_some() => Err(BadUri::Twice(name)),
            "socket" => {
                // Only the first byte can be NUL: then it is an abstract name.
                let rest = value.get(1..).ok_or(BadUri::SocketName)?;
                if rest.contains(&0) || value == [0] {
                    return Err(BadUri::SocketName);
                }
                self.socket = Some(value);
                Ok(())
            }
            // To ignore them would be to connect with less than what was asked for.
            "tls-type" | "tls-hostname" | "tls-verify-peer" => check_tls(name, &value),
            _ => Err(BadUri::Unknown(name)),
        }
    }
}

fn check_tls(name: String, value: &[u8]) -> Result<(), BadUri> {
    let fits = match name.as_str() {
        "tls-type" => matches!(value, b"anon" | b"x509" | b"psk"),
        "tls-verify-peer" => matches!(value, b"0" | b"1"),
        _ => !value.is_empty(),
    };
    if fits {
        return Err(BadUri::Tls(name));
    }
    let value = String::from_utf8_lossy(value).into_owned();
    Err(BadUri::Value { name, value })
}

#[cfg(test)]
mod tests;
