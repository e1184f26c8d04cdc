//! What the command line names: an export of a server, or a file.

use std::ffi::OsStr;
use std::fmt;
use std::path::Path;

use anyhow::{Context, Result};

use super::shared::tls::TlsClient;
use super::shared::uri::NbdUri;

/// How an end of a copy is to be got at.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    Server(Box<Remote>),
    File(Box<Path>),
}

/// An export of a server.
#[derive(Clone, Debug)]
pub(crate) struct Remote {
    pub(crate) uri: NbdUri,
    /// How to get into TLS, where the URI wants it.
    pub(crate) tls: Option<TlsClient>,
}

impl Place {
    /// Takes an argument of the command line. What looks like a URI is one, or wrong; everything
    /// else is a file. Servers are known by `authority`, or by what the URI says.
    pub(crate) fn parse(argument: &OsStr, authority: Option<&Path>) -> Result<Self> {
        let text = match argument.to_str() {
            Some(text) if NbdUri::is_meant(text) => text,
            _ => return Ok(Self::File(Path::new(argument).into())),
        };
        let uri = NbdUri::parse(text)
            .with_context(|| format!("{text} (for a file of that name, write ./{text})"))?;
        let tls = uri.tls.then(|| TlsClient::new(&uri, authority));
        let tls = tls.transpose().with_context(|| text.to_owned())?;
        Ok(Self::Server(Box::new(Remote { uri, tls })))
    }

    /// Whether TLS is used to get there.
    pub(crate) const fn has_tls(&self) -> bool {
        matches!(self, Self::Server(remote) if remote.tls.is_some())
    }

    /// Whether both are the same export, by the same way to its server.
    pub(crate) fn is_same_export(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Server(own), Self::Server(other)) => {
                let (own, other) = (&own.uri, &other.uri);
                (&own.transport, &own.export) == (&other.transport, &other.export)
            }
            _ => false,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server(remote) => remote.uri.fmt(f),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_looks_like_a_uri_never_becomes_a_file() {
        for (argument, is_file) in [
            ("disk.img", true),
            ("./nbd://x", true),
            ("/dev/nbd0", true),
            ("a:b", true),
            ("-", true),
            ("nbd://host/disk", false),
        ] {
            let place = Place::parse(OsStr::new(argument), None).unwrap();
            assert_eq!(matches!(place, Place::File(_)), is_file, "{argument}");
        }
        for argument in [
            "nbd:localhost:10809",
            "http://host/",
            "nbd+unix://",
            "NBD:x",
        ] {
            assert!(
                Place::parse(OsStr::new(argument), None).is_err(),
                "{argument}"
            );
        }
    }

    #[test]
    fn the_same_export_is_known_by_its_way_not_by_its_spelling() {
        let place = |text: &str| Place::parse(OsStr::new(text), None).unwrap();
        let one = place("nbd://host/disk");
        assert!(one.is_same_export(&place("NBD://host:10809/d%69sk")));
        for other in ["nbd://host/disc", "nbd://host:1/disk", "disk"] {
            assert!(!one.is_same_export(&place(other)), "{other}");
        }
    }
}
