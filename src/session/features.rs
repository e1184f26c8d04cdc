//! Transmission flags that tell the truth (proto.md "Transmission flags").

use super::ReplyStyle;
use crate::wire::TransmissionFlags;

/// What an export can do: its transmission flags are derived from this, never put together by
/// hand.
///
/// Each feature is one that the *backend* has. Which of them a client is told of depends on the
/// session as well, and on each other: [`flags_in`](Self::flags_in) knows the rules. No
/// combination makes flags to which [`Announcement::lints`](super::Announcement::lints) objects.
///
/// ```
/// use nbd_proto::session::{Features, ReplyStyle};
/// use nbd_proto::wire::TransmissionFlags;
///
/// let disk = Features::read_write().with_flush().with_fua().with_dont_fragment();
/// let simple = disk.flags_in(ReplyStyle::Simple, false);
/// assert!(!simple.contains(TransmissionFlags::SEND_DF));
/// let structured = disk.flags_in(ReplyStyle::Structured, false);
/// assert!(structured.contains(TransmissionFlags::SEND_DF));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Features {
    flags: TransmissionFlags,
}

/// What only means something where something can be modified.
const MODIFYING: TransmissionFlags = TransmissionFlags::SEND_TRIM
    .union(TransmissionFlags::SEND_WRITE_ZEROES)
    .union(TransmissionFlags::SEND_FAST_ZERO);

impl Features {
    /// An export that can be read and written, and nothing else.
    #[must_use]
    pub const fn read_write() -> Self {
        Self {
            flags: TransmissionFlags::HAS_FLAGS,
        }
    }

    /// An export that can only be read.
    #[must_use]
    pub const fn read_only() -> Self {
        Self::read_write().with(TransmissionFlags::READ_ONLY)
    }

    const fn with(mut self, flag: TransmissionFlags) -> Self {
        self.flags = self.flags.union(flag);
        self
    }

    /// `NBD_CMD_FLUSH` puts what was written on permanent storage.
    #[must_use]
    pub const fn with_flush(self) -> Self {
        self.with(TransmissionFlags::SEND_FLUSH)
    }

    /// `NBD_CMD_FLAG_FUA` is honoured.
    #[must_use]
    pub const fn with_fua(self) -> Self {
        self.with(TransmissionFlags::SEND_FUA)
    }

    /// Access is like that of a spinning disk.
    #[must_use]
    pub const fn with_rotational(self) -> Self {
        self.with(TransmissionFlags::ROTATIONAL)
    }

    /// `NBD_CMD_TRIM` is executed. Not told of a read-only export.
    #[must_use]
    pub const fn with_trim(self) -> Self {
        self.with(TransmissionFlags::SEND_TRIM)
    }

    /// `NBD_CMD_WRITE_ZEROES` is executed. Not told of a read-only export.
    #[must_use]
    pub const fn with_write_zeroes(self) -> Self {
        self.with(TransmissionFlags::SEND_WRITE_ZEROES)
    }

    /// `NBD_CMD_FLAG_FAST_ZERO` is honoured: zeroes are written fast, or refused. Implies
    /// [`with_write_zeroes`](Self::with_write_zeroes).
    #[must_use]
    pub const fn with_fast_zero(self) -> Self {
        self.with_write_zeroes()
            .with(TransmissionFlags::SEND_FAST_ZERO)
    }

    /// `NBD_CMD_FLAG_DF` is honoured. Not told in sessions with simple replies.
    #[must_use]
    pub const fn with_dont_fragment(self) -> Self {
        self.with(TransmissionFlags::SEND_DF)
    }

    /// A flush, or a command with FUA, on one connection covers all connections. Not told of a
    /// writable export without flush, where it would promise nothing.
    #[must_use]
    pub const fn with_multi_conn(self) -> Self {
        self.with(TransmissionFlags::CAN_MULTI_CONN)
    }

    /// `NBD_CMD_CACHE` is understood.
    #[must_use]
    pub const fn with_cache(self) -> Self {
        self.with(TransmissionFlags::SEND_CACHE)
    }

    /// Block status can be asked for some of the selected contexts only. Told in sessions with
    /// extended headers and meta contexts.
    #[must_use]
    pub const fn with_block_status_payload(self) -> Self {
        self.with(TransmissionFlags::BLOCK_STATUS_PAYLOAD)
    }

    /// The flags to be told where everything was negotiated that can be; for
    /// [`Export::flags`](crate::handshake::Export), which a handshake makes true to its session.
    #[must_use]
    pub fn flags(&self) -> TransmissionFlags {
        self.flags_in(ReplyStyle::Extended, true)
    }

    /// The flags to be told in a session of this style, in which meta contexts were selected or
    /// not.
    #[must_use]
    pub fn flags_in(&self, style: ReplyStyle, contexts: bool) -> TransmissionFlags {
        let mut flags = consistent(self.flags, style);
        if !contexts {
            flags.remove(TransmissionFlags::BLOCK_STATUS_PAYLOAD);
        }
        if flags.contains(TransmissionFlags::READ_ONLY) {
            flags.remove(MODIFYING);
        } else if !flags.contains(TransmissionFlags::SEND_FLUSH) {
            flags.remove(TransmissionFlags::CAN_MULTI_CONN);
        }
        flags
    }
}

/// The flags without those that cannot hold in a session with this reply style (proto.md
/// "Transmission flags"). A server does not send the others; a client does not believe them.
pub(crate) fn consistent(mut flags: TransmissionFlags, style: ReplyStyle) -> TransmissionFlags {
    // "MUST leave this flag clear if neither structured replies nor extended headers have been
    // negotiated".
    if style == ReplyStyle::Simple {
        flags.remove(TransmissionFlags::SEND_DF);
    }
    // "Servers MUST NOT advertise this bit unless the client successfully negotiates extended
    // headers".
    if style != ReplyStyle::Extended {
        flags.remove(TransmissionFlags::BLOCK_STATUS_PAYLOAD);
    }
    // "MUST set this transmission flag to 0 if NBD_FLAG_SEND_WRITE_ZEROES is not set".
    if !flags.contains(TransmissionFlags::SEND_WRITE_ZEROES) {
        flags.remove(TransmissionFlags::SEND_FAST_ZERO);
    }
    flags
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::Announcement;

    /// A feature, all on top of it, and whether it is told at all.
    fn any(bits: u16) -> Features {
        let mut features = if bits & 1 == 0 {
            Features::read_write()
        } else {
            Features::read_only()
        };
        let steps: [fn(Features) -> Features; 10] = [
            Features::with_flush,
            Features::with_fua,
            Features::with_rotational,
            Features::with_trim,
            Features::with_write_zeroes,
            Features::with_fast_zero,
            Features::with_dont_fragment,
            Features::with_multi_conn,
            Features::with_cache,
            Features::with_block_status_payload,
        ];
        for (at, step) in steps.iter().enumerate() {
            if bits & (2 << at) != 0 {
                features = step(features);
            }
        }
        features
    }

    #[test]
    fn no_combination_of_features_makes_flags_that_contradict_themselves() {
        let styles = [
            ReplyStyle::Simple,
            ReplyStyle::Structured,
            ReplyStyle::Extended,
        ];
        for bits in 0..1 << 11 {
            let features = any(bits);
            for (style, contexts) in styles.iter().flat_map(|&it| [(it, false), (it, true)]) {
                let contexts = contexts && style != ReplyStyle::Simple;
                let flags = features.flags_in(style, contexts);
                let said = Announcement::new(1 << 20, flags, style).with_contexts(contexts);
                for lint in said.lints() {
                    // What a backend cannot do is a pity, but no contradiction.
                    assert!(lint.is_advice(), "{features:?} in {style:?}: {lint}");
                }
                assert!(features.flags().contains(flags));
            }
        }
    }

    #[test]
    fn every_feature_is_told_where_it_holds() {
        let all = any((1 << 11) - 2);
        let expected = TransmissionFlags::from_bits_retain(0x1fff)
            - TransmissionFlags::READ_ONLY
            - TransmissionFlags::SEND_RESIZE;
        assert_eq!(all.flags(), expected);
        assert_eq!(
            any(1).flags(),
            TransmissionFlags::HAS_FLAGS | TransmissionFlags::READ_ONLY
        );
    }
}
