//! What there is to know about an export.

use std::io::Write;

use anyhow::Result;
use nbd_proto::handshake::{Inspect, Negotiated, Wanted};
use nbd_proto::session::{Lint, ReplyStyle};
use nbd_proto::transmission::RequestEncoder;
use nbd_proto::wire::{GreetingStyle, HandshakeFlags, Name, Request, TransmissionFlags};

use super::link::{Place, Wire};
use super::options::Ability;

/// The context that most servers have.
pub(crate) const ALLOCATION: &str = "base:allocation";

/// How the server talks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Protocol {
    pub(crate) greeting: GreetingStyle,
    pub(crate) fixed: bool,
    pub(crate) tls: bool,
    pub(crate) reply_style: ReplyStyle,
}

impl Protocol {
    /// Its name, as nbdinfo has it.
    pub(crate) const fn name(self) -> &'static str {
        match (self.greeting, self.fixed) {
            (GreetingStyle::Oldstyle, _) => "oldstyle",
            (GreetingStyle::Newstyle, true) => "newstyle-fixed",
            (GreetingStyle::Newstyle, false) => "newstyle",
        }
    }
}

/// Whatever could be learned about one export.
#[derive(Debug)]
pub(crate) struct Facts {
    pub(crate) negotiated: Negotiated,
    pub(crate) contexts: Contexts,
}

/// The meta contexts of an export.
#[derive(Debug)]
pub(crate) enum Contexts {
    /// There can be none with simple replies.
    None,
    Listed(Vec<Name>),
    /// It could not be found out, in words.
    Unknown(String),
}

/// Learns about the export that the URI names.
///
/// What GO says is what clients get; to INFO some servers say something else (nbd-server: size 0).
/// But once that was said the session is in transmission: the contexts are listed on a second
/// connection, and if there is none, as with servers for one client, all else is known still.
pub(crate) fn learn(place: &Place<'_>) -> Result<Facts> {
    let negotiated = negotiate(place)?;
    let contexts = if negotiated.session.reply_style() == ReplyStyle::Simple {
        Contexts::None
    } else {
        list_contexts(place).unwrap_or_else(|why| {
            // Without the URI, which is known.
            let why = why.root_cause();
            Contexts::Unknown(format!("on a second connection, {why}"))
        })
    };
    Ok(Facts {
        negotiated,
        contexts,
    })
}

/// Gets into transmission, and out again.
pub(crate) fn negotiate(place: &Place<'_>) -> Result<Negotiated> {
    let wanted = Wanted::new(place.uri.export.clone())
        // Some abilities are announced only to clients that select a context.
        .with_contexts(Name::new(ALLOCATION).ok())
        .with_name(true)
        .with_description(true);
    let (mut wire, negotiated) = place.enter(wanted)?;
    leave(&mut wire, &negotiated);
    Ok(negotiated)
}

/// Says goodbye. There is no answer to wait for, and if it fails we are gone all the same.
pub(crate) fn leave(wire: &mut Wire<'_>, negotiated: &Negotiated) {
    if let Ok(head) = RequestEncoder::new(&negotiated.session).encode(&Request::disconnect()) {
        let _ = wire.write_all(&head).and_then(|()| wire.flush());
    }
}

fn list_contexts(place: &Place<'_>) -> Result<Contexts> {
    let inspect = Inspect::new()
        .with_export(place.uri.export.clone())
        .with_contexts(true);
    let (mut report, end) = place.inspect(inspect)?;
    let told = report.exports.pop().and_then(|export| export.contexts);
    match told {
        Some(Ok(names)) => Ok(Contexts::Listed(names)),
        Some(Err(refused)) => Ok(Contexts::Unknown(refused.to_string())),
        None => {
            end?;
            Ok(Contexts::Unknown("the server does not tell".to_owned()))
        }
    }
}

impl Facts {
    pub(crate) const fn protocol(&self) -> Protocol {
        protocol(&self.negotiated)
    }

    /// What is odd about what the server announces.
    pub(crate) fn lints(&self) -> Vec<Lint> {
        // Which context was selected is our choice: what the protocol wants of flags where none is
        // is no fault of a server that has others.
        let listed = matches!(&self.contexts, Contexts::Listed(names) if !names.is_empty());
        let selected = !self.negotiated.session.contexts().is_empty();
        let announcement = self.negotiated.announcement();
        announcement.with_contexts(listed || selected).lints()
    }
}

const fn protocol(negotiated: &Negotiated) -> Protocol {
    Protocol {
        greeting: negotiated.greeting,
        fixed: negotiated
            .handshake_flags
            .contains(HandshakeFlags::FIXED_NEWSTYLE),
        tls: negotiated.session.is_tls(),
        reply_style: negotiated.session.reply_style(),
    }
}

/// Whether an export can do something, or is something: what can be true of what was announced.
pub(crate) fn can(negotiated: &Negotiated, ability: Ability) -> bool {
    let flags = negotiated.session.flags();
    let has = |flag| flags.contains(flag);
    match ability {
        Ability::Connect | Ability::Read => true,
        Ability::Write => !has(TransmissionFlags::READ_ONLY),
        Ability::ReadOnly => has(TransmissionFlags::READ_ONLY),
        Ability::Rotational => has(TransmissionFlags::ROTATIONAL),
        Ability::Flush => has(TransmissionFlags::SEND_FLUSH),
        Ability::Fua => has(TransmissionFlags::SEND_FUA),
        Ability::Trim => has(TransmissionFlags::SEND_TRIM),
        Ability::Zero => has(TransmissionFlags::SEND_WRITE_ZEROES),
        Ability::FastZero => has(TransmissionFlags::SEND_FAST_ZERO),
        Ability::Df => has(TransmissionFlags::SEND_DF),
        Ability::Cache => has(TransmissionFlags::SEND_CACHE),
        Ability::MultiConn => has(TransmissionFlags::CAN_MULTI_CONN),
        Ability::BlockStatusPayload => has(TransmissionFlags::BLOCK_STATUS_PAYLOAD),
        Ability::Tls => negotiated.session.is_tls(),
        Ability::StructuredReply => negotiated.session.reply_style() != ReplyStyle::Simple,
        Ability::ExtendedHeaders => negotiated.session.reply_style() == ReplyStyle::Extended,
    }
}

/// Each flag with its words for people, and its key in JSON.
pub(crate) const FLAGS: [(Ability, &str, &str); 11] = [
    (Ability::ReadOnly, "read-only", "is_read_only"),
    (Ability::Rotational, "rotational", "is_rotational"),
    (Ability::Flush, "flush", "can_flush"),
    (Ability::Fua, "FUA", "can_fua"),
    (Ability::Trim, "trim", "can_trim"),
    (Ability::Zero, "write zeroes", "can_zero"),
    (Ability::FastZero, "fast zero", "can_fast_zero"),
    (Ability::Df, "unfragmented reads (DF)", "can_df"),
    (Ability::Cache, "cache", "can_cache"),
    (Ability::MultiConn, "multi-conn", "can_multi_conn"),
    (
        Ability::BlockStatusPayload,
        "block status of chosen contexts",
        "can_block_status_payload",
    ),
];
