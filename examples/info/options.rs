//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use nbd_proto::wire::Name;

/// Show what an NBD server has: sizes, abilities, meta contexts, which parts are allocated, and
/// how many connections are safe.
///
/// URI is nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH, and with TLS nbds://... or
/// nbds+unix://..., where tls-certificates=DIRECTORY names the place of ca-cert.pem and, if the
/// server asks for them, client-cert.pem and client-key.pem.
///
/// Exit status: 0 if all went well, or the answer to --can is yes; 1 if it failed, or the answer
/// is no; 2 if the command line is wrong; 128 + its number if a signal ended it.
#[derive(Clone, Debug, Parser)]
#[command(name = "info", version)]
pub(crate) struct Options {
    /// Which server, and which of its exports
    #[arg(value_name = "URI")]
    pub(crate) uri: String,

    /// Show all exports of the server
    #[arg(long, short = 'L', conflicts_with_all = ["map", "size", "can"])]
    pub(crate) list: bool,

    /// Write JSON, with the keys of nbdinfo where there are such
    #[arg(long, conflicts_with = "can")]
    pub(crate) json: bool,

    /// Show which extents the export has in a meta context, base:allocation if not told otherwise
    #[arg(long, value_name = "CONTEXT", num_args = 0..=1, require_equals = true,
          default_missing_value = "base:allocation", value_parser = parse_context,
          conflicts_with_all = ["size", "can"])]
    pub(crate) map: Option<Name>,

    /// Write the size of the export in bytes
    #[arg(long, conflicts_with = "can")]
    pub(crate) size: bool,

    /// Show whether a client may use several connections at once, how, and why
    #[arg(long, conflicts_with_all = ["map", "size", "can", "list"])]
    pub(crate) plan: bool,

    /// How many connections --plan is for, and how many it opens if the server allows them
    #[arg(long, short = 'C', value_name = "N", default_value = "4",
          value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(crate) connections: u32,

    /// Say nothing, but answer by the exit status whether the export can do or is this
    #[arg(long, value_name = "WHAT", visible_aliases = ["is", "has"])]
    pub(crate) can: Option<Ability>,

    /// Trust servers that are certified by this authority, a PEM file
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_ca: Option<PathBuf>,

    /// How long the server may take to get ready, and later for each answer
    #[arg(long, value_name = "SECONDS", default_value = "60",
          value_parser = clap::value_parser!(u32).range(1..=86400))]
    timeout: u32,

    /// How many exports are asked about with --list; of more only the names are shown
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub(crate) max_exports: usize,

    /// How many extents are taken with --map before it is given up
    #[arg(long, value_name = "N", default_value_t = 10_000_000)]
    pub(crate) max_extents: u64,
}

impl Options {
    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout.into())
    }
}

fn parse_context(text: &str) -> Result<Name, String> {
    if !text.contains(':') {
        return Err("a context is written NAMESPACE:NAME, such as base:allocation".to_owned());
    }
    Name::new(text).map_err(|why| format!("the name {why}"))
}

/// What can be asked for by `--can`. The words are those of nbdinfo, where it has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Ability {
    Connect,
    Read,
    Write,
    ReadOnly,
    Rotational,
    Flush,
    Fua,
    Trim,
    Zero,
    FastZero,
    Df,
    Cache,
    MultiConn,
    BlockStatusPayload,
    Tls,
    StructuredReply,
    ExtendedHeaders,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Options, clap::Error> {
        Options::try_parse_from([&["info"], arguments].concat())
    }

    #[test]
    fn a_map_is_of_base_allocation_unless_another_context_is_named() {
        let map = |argument| parse(&[argument, "nbd://h"]).unwrap().map.unwrap();
        assert_eq!(map("--map").as_str(), "base:allocation");
        assert_eq!(
            map("--map=qemu:dirty-bitmap:b").as_str(),
            "qemu:dirty-bitmap:b"
        );
        assert_eq!(parse(&["nbd://h"]).unwrap().map, None);
        assert!(parse(&["--map=allocation", "nbd://h"]).is_err());
        // The word after it is the URI.
        assert_eq!(parse(&["--map", "nbd://h"]).unwrap().uri, "nbd://h");
    }

    #[test]
    fn one_thing_is_asked_at_a_time() {
        for arguments in [
            &["--map", "--size"][..],
            &["--map", "--list"],
            &["--size", "--can", "flush"],
            &["--list", "--can", "flush"],
            &["--json", "--can", "flush"],
            &["--plan", "--map"],
            &["--plan", "--list"],
            &["--plan", "--can", "flush"],
        ] {
            assert!(
                parse(&[arguments, &["nbd://h"]].concat()).is_err(),
                "{arguments:?}"
            );
        }
    }

    #[test]
    fn is_and_has_ask_the_same_as_can() {
        for word in ["--can", "--is", "--has"] {
            let options = parse(&[word, "fast-zero", "nbd://h"]).unwrap();
            assert_eq!(options.can, Some(Ability::FastZero));
        }
        assert!(parse(&["--can", "fly", "nbd://h"]).is_err());
    }
}
