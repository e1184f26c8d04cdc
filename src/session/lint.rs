//! What is odd about what a server announces, in words.
//!
//! A client that finds something here may use the session all the same: the handshake believes
//! only what can be true. This is for the people who run or write the server.

use alloc::vec::Vec;

use super::ReplyStyle;
use crate::wire::{HandshakeFlags, TransmissionFlags};

/// What a server said of an export, as it stood on the wire.
///
/// ```
/// use nbd_proto::session::{Announcement, Lint, ReplyStyle};
/// use nbd_proto::wire::TransmissionFlags;
///
/// let flags = TransmissionFlags::HAS_FLAGS | TransmissionFlags::SEND_DF;
/// let said = Announcement::new(1 << 20, flags, ReplyStyle::Simple);
/// assert!(said.lints().contains(&Lint::DontFragmentWithoutChunks));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Announcement {
    size: u64,
    flags: TransmissionFlags,
    style: ReplyStyle,
    contexts: bool,
    block_sizes: Option<(u32, u32, u32)>,
    handshake: Option<(HandshakeFlags, bool)>,
}

/// One thing that contradicts the protocol, or that it advises against.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Lint {
    /// proto.md "Transmission flags": `NBD_FLAG_HAS_FLAGS` "MUST always be 1".
    #[error("HAS_FLAGS is not set, so that the other flags may mean nothing")]
    NoFlags,
    /// proto.md "Transmission flags": a server "MUST leave this flag clear if neither structured
    /// replies nor extended headers have been negotiated".
    #[error("SEND_DF is set, but simple replies cannot be fragmented anyway")]
    DontFragmentWithoutChunks,
    /// proto.md "Transmission flags": "MUST set this transmission flag to 0 if
    /// NBD_FLAG_SEND_WRITE_ZEROES is not set".
    #[error("SEND_FAST_ZERO is set without SEND_WRITE_ZEROES, for which it is a flag")]
    FastZeroWithoutWriteZeroes,
    /// proto.md "Transmission flags": "MUST NOT advertise this bit unless the client successfully
    /// negotiates extended headers".
    #[error("BLOCK_STATUS_PAYLOAD is set without extended headers, which it needs")]
    StatusPayloadWithoutExtendedHeaders,
    /// proto.md "Transmission flags": "SHOULD NOT advertise this bit in response to NBD_OPT_GO if
    /// the client does not negotiate metacontexts".
    #[error("BLOCK_STATUS_PAYLOAD is set, but there are no meta contexts to choose from")]
    StatusPayloadWithoutContexts,
    /// proto.md "Transmission flags": with `NBD_FLAG_CAN_MULTI_CONN`, the effects of flush and
    /// FUA "MUST be visible across all connections"; here is neither.
    #[error("CAN_MULTI_CONN is set without SEND_FLUSH and SEND_FUA, whose effect it promises")]
    MultiConnWithoutFlush,
    /// proto.md "Transmission flags": with `NBD_FLAG_READ_ONLY` "the server MUST error subsequent
    /// write operations", and a flag "MUST NOT" be set for what is not supported.
    #[error("the export is read-only, but has flags of commands that modify it")]
    ReadOnlyButModifiable,
    /// proto.md "Maximum interoperability": "For data safety, implementing NBD_CMD_FLUSH and the
    /// NBD_CMD_FLAG_FUA flag to NBD_CMD_WRITE is strongly recommended".
    #[error("the export is writable, but has no flush: only writes with FUA can be made safe")]
    FuaWithoutFlush,
    /// proto.md "Maximum interoperability", as above.
    #[error("the export is writable, but has neither flush nor FUA: nothing written is ever safe")]
    NoFlush,
    /// proto.md "Size constraints": the minimum block size "MUST be a power of 2".
    #[error("the minimum block size {0} is not a power of two")]
    MinimumNotPowerOfTwo(u32),
    /// proto.md "Size constraints": the minimum block size "MUST NOT be larger than 2^16".
    #[error("the minimum block size {0} is larger than 65536")]
    MinimumTooLarge(u32),
    /// proto.md "Size constraints": the preferred block size "MUST be a power of 2".
    #[error("the preferred block size {0} is not a power of two")]
    PreferredNotPowerOfTwo(u32),
    /// proto.md "Size constraints": the preferred block size must be "at least as large as the
    /// maximum of the minimum block size and 2^9".
    #[error("the preferred block size {preferred} is below 512 or the minimum {minimum}")]
    PreferredTooSmall {
        /// The preferred block size in bytes.
        preferred: u32,
        /// The minimum block size in bytes.
        minimum: u32,
    },
    /// proto.md "Size constraints": the maximum payload "MUST be at least as large as the
    /// preferred block size".
    #[error("the maximum payload {max_payload} is below the preferred block size {preferred}")]
    MaximumBelowPreferred {
        /// The maximum payload in bytes.
        max_payload: u32,
        /// The preferred block size in bytes.
        preferred: u32,
    },
    /// proto.md "Size constraints": the maximum payload "SHOULD be at least 2^20 (1,048,576) if
    /// the export is that large".
    #[error("the maximum payload {0} is below 1 MiB, though the export is not")]
    SmallMaximum(u32),
    /// proto.md "Size constraints": the export size "SHOULD be an integer multiple of that block
    /// size, since otherwise, the client would be unable to access the final few bytes".
    #[error("the last {0} bytes cannot be reached, for they are not a whole minimum block")]
    UnreachableEnd(u32),
    /// proto.md "Handshake flags": "The server MUST NOT set any other flags".
    #[error("handshake flags are set that nobody knows: {:#x}", .0.bits())]
    UnknownHandshakeFlags(HandshakeFlags),
    /// proto.md "Handshake flags": "The server MUST NOT set any of these flags during oldstyle
    /// negotiation".
    #[error("handshake flags are set in an oldstyle greeting: {:#x}", .0.bits())]
    OldstyleHandshakeFlags(HandshakeFlags),
}

impl Lint {
    /// Whether the protocol only advises against it; else it forbids it.
    #[must_use]
    pub const fn is_advice(&self) -> bool {
        matches!(
            self,
            Self::StatusPayloadWithoutContexts
                | Self::FuaWithoutFlush
                | Self::NoFlush
                | Self::SmallMaximum(_)
                | Self::UnreachableEnd(_)
        )
    }

    /// The section of the protocol text that it is about.
    #[must_use]
    pub const fn section(&self) -> &'static str {
        match self {
            Self::NoFlags
            | Self::DontFragmentWithoutChunks
            | Self::FastZeroWithoutWriteZeroes
            | Self::StatusPayloadWithoutExtendedHeaders
            | Self::StatusPayloadWithoutContexts
            | Self::MultiConnWithoutFlush
            | Self::ReadOnlyButModifiable => "Transmission flags",
            Self::FuaWithoutFlush | Self::NoFlush => "Maximum interoperability",
            Self::MinimumNotPowerOfTwo(_)
            | Self::MinimumTooLarge(_)
            | Self::PreferredNotPowerOfTwo(_)
            | Self::PreferredTooSmall { .. }
            | Self::MaximumBelowPreferred { .. }
            | Self::SmallMaximum(_)
            | Self::UnreachableEnd(_) => "Size constraints",
            Self::UnknownHandshakeFlags(_) | Self::OldstyleHandshakeFlags(_) => "Handshake flags",
        }
    }
}

impl Announcement {
    /// An export of `size` bytes with these flags, announced in a session of this style.
    #[must_use]
    pub const fn new(size: u64, flags: TransmissionFlags, style: ReplyStyle) -> Self {
        Self {
            size,
            flags,
            style,
            contexts: false,
            block_sizes: None,
            handshake: None,
        }
    }

    /// Sets whether meta contexts were selected (default: no).
    #[must_use]
    pub const fn with_contexts(mut self, selected: bool) -> Self {
        self.contexts = selected;
        self
    }

    /// Sets the size constraints, legal or not: minimum, preferred, maximum payload, in bytes.
    #[must_use]
    pub const fn with_block_sizes(
        mut self,
        minimum: u32,
        preferred: u32,
        max_payload: u32,
    ) -> Self {
        self.block_sizes = Some((minimum, preferred, max_payload));
        self
    }

    /// Sets the handshake flags, and whether the greeting that they came in was an oldstyle one.
    #[must_use]
    pub const fn with_handshake_flags(mut self, flags: HandshakeFlags, oldstyle: bool) -> Self {
        self.handshake = Some((flags, oldstyle));
        self
    }

    /// All that is odd about it, in the order of the protocol text.
    #[must_use]
    pub fn lints(&self) -> Vec<Lint> {
        let mut lints = Vec::new();
        self.lint_handshake(&mut lints);
        self.lint_flags(&mut lints);
        self.lint_sizes(&mut lints);
        lints
    }

    fn lint_handshake(&self, lints: &mut Vec<Lint>) {
        let known = HandshakeFlags::FIXED_NEWSTYLE | HandshakeFlags::NO_ZEROES;
        match self.handshake {
            Some((flags, true)) if !flags.is_empty() => {
                lints.push(Lint::OldstyleHandshakeFlags(flags));
            }
            Some((flags, false)) if !known.contains(flags) => {
                lints.push(Lint::UnknownHandshakeFlags(flags.difference(known)));
            }
            _ => {}
        }
    }

    fn lint_flags(&self, lints: &mut Vec<Lint>) {
        let has = |flag| self.flags.contains(flag);
        let mut when = |odd: bool, lint| {
            if odd {
                lints.push(lint);
            }
        };
        when(!has(TransmissionFlags::HAS_FLAGS), Lint::NoFlags);
        when(
            has(TransmissionFlags::SEND_DF) && self.style == ReplyStyle::Simple,
            Lint::DontFragmentWithoutChunks,
        );
        when(
            has(TransmissionFlags::SEND_FAST_ZERO) && !has(TransmissionFlags::SEND_WRITE_ZEROES),
            Lint::FastZeroWithoutWriteZeroes,
        );
        let payload = has(TransmissionFlags::BLOCK_STATUS_PAYLOAD);
        let extended = self.style == ReplyStyle::Extended;
        when(
            payload && !extended,
            Lint::StatusPayloadWithoutExtendedHeaders,
        );
        when(
            payload && extended && !self.contexts,
            Lint::StatusPayloadWithoutContexts,
        );
        if has(TransmissionFlags::READ_ONLY) {
            let modifying = TransmissionFlags::SEND_TRIM
                | TransmissionFlags::SEND_WRITE_ZEROES
                | TransmissionFlags::SEND_FAST_ZERO;
            when(
                self.flags.intersects(modifying),
                Lint::ReadOnlyButModifiable,
            );
            return;
        }
        let (flush, fua) = (
            has(TransmissionFlags::SEND_FLUSH),
            has(TransmissionFlags::SEND_FUA),
        );
        let multi_conn = has(TransmissionFlags::CAN_MULTI_CONN);
        when(multi_conn && !flush && !fua, Lint::MultiConnWithoutFlush);
        when(!flush && fua, Lint::FuaWithoutFlush);
        when(!flush && !fua, Lint::NoFlush);
    }

    fn lint_sizes(&self, lints: &mut Vec<Lint>) {
        let Some((minimum, preferred, max_payload)) = self.block_sizes else {
            return;
        };
        let mut when = |odd: bool, lint| {
            if odd {
                lints.push(lint);
            }
        };
        when(
            !minimum.is_power_of_two(),
            Lint::MinimumNotPowerOfTwo(minimum),
        );
        when(minimum > 1 << 16, Lint::MinimumTooLarge(minimum));
        when(
            !preferred.is_power_of_two(),
            Lint::PreferredNotPowerOfTwo(preferred),
        );
        when(
            preferred < 512 || preferred < minimum,
            Lint::PreferredTooSmall { preferred, minimum },
        );
        when(
            max_payload < preferred,
            Lint::MaximumBelowPreferred {
                max_payload,
                preferred,
            },
        );
        when(
            max_payload < 1 << 20 && self.size >= 1 << 20,
            Lint::SmallMaximum(max_payload),
        );
        let end = self.size.checked_rem(u64::from(minimum)).unwrap_or(0);
        if let Ok(end @ 1..) = u32::try_from(end) {
            lints.push(Lint::UnreachableEnd(end));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use alloc::vec;

    const HAS: TransmissionFlags = TransmissionFlags::HAS_FLAGS;
    const SAFE: TransmissionFlags = HAS.union(TransmissionFlags::SEND_FLUSH);

    fn flags(flags: TransmissionFlags, style: ReplyStyle) -> Vec<Lint> {
        Announcement::new(1 << 20, flags, style).lints()
    }

    fn sizes(size: u64, minimum: u32, preferred: u32, max_payload: u32) -> Vec<Lint> {
        Announcement::new(size, SAFE, ReplyStyle::Simple)
            .with_block_sizes(minimum, preferred, max_payload)
            .lints()
    }

    #[test]
    fn each_contradiction_of_flags_is_found_and_found_alone() {
        use ReplyStyle::{Extended, Simple, Structured};
        let df = SAFE | TransmissionFlags::SEND_DF;
        let fast = SAFE | TransmissionFlags::SEND_FAST_ZERO;
        let zero = fast | TransmissionFlags::SEND_WRITE_ZEROES;
        let payload = SAFE | TransmissionFlags::BLOCK_STATUS_PAYLOAD;
        let multi = TransmissionFlags::CAN_MULTI_CONN;
        let fua = TransmissionFlags::SEND_FUA;
        let read_only = HAS | TransmissionFlags::READ_ONLY;
        let cases = [
            (SAFE, Simple, vec![]),
            (SAFE - HAS, Simple, vec![Lint::NoFlags]),
            (df, Simple, vec![Lint::DontFragmentWithoutChunks]),
            (df, Structured, vec![]),
            (df, Extended, vec![]),
            (fast, Simple, vec![Lint::FastZeroWithoutWriteZeroes]),
            (zero, Simple, vec![]),
            (
                payload,
                Structured,
                vec![Lint::StatusPayloadWithoutExtendedHeaders],
            ),
            (payload, Extended, vec![Lint::StatusPayloadWithoutContexts]),
            (HAS, Simple, vec![Lint::NoFlush]),
            (HAS | fua, Simple, vec![Lint::FuaWithoutFlush]),
            (
                HAS | multi,
                Simple,
                vec![Lint::MultiConnWithoutFlush, Lint::NoFlush],
            ),
            (SAFE | multi, Simple, vec![]),
            (read_only, Simple, vec![]),
            (read_only | multi, Simple, vec![]),
            (
                read_only | TransmissionFlags::SEND_TRIM,
                Simple,
                vec![Lint::ReadOnlyButModifiable],
            ),
            (
                read_only | TransmissionFlags::SEND_WRITE_ZEROES,
                Simple,
                vec![Lint::ReadOnlyButModifiable],
            ),
        ];
        for (given, style, expected) in cases {
            assert_eq!(flags(given, style), expected, "{given:?} in {style:?}");
        }
        let selected = Announcement::new(1, payload, Extended).with_contexts(true);
        assert_eq!(selected.lints(), []);
    }

    #[test]
    fn each_illegal_size_is_found_and_found_alone() {
        let cases = [
            (sizes(1 << 30, 1, 4096, u32::MAX), vec![]),
            (
                sizes(1 << 30, 0, 4096, 1 << 20),
                vec![Lint::MinimumNotPowerOfTwo(0)],
            ),
            (
                sizes(3 << 20, 3, 4096, 1 << 20),
                vec![Lint::MinimumNotPowerOfTwo(3)],
            ),
            (
                sizes(1 << 30, 1 << 17, 1 << 17, 1 << 20),
                vec![Lint::MinimumTooLarge(1 << 17)],
            ),
            // Each at its bound: "at least as large as the maximum of the minimum block size and
            // 2^9", and "MUST NOT be larger than 2^16".
            (sizes(1 << 30, 512, 512, 1 << 20), vec![]),
            (sizes(1 << 30, 1 << 16, 1 << 16, 1 << 20), vec![]),
            (
                sizes(1 << 30, 1, 5000, 1 << 20),
                vec![Lint::PreferredNotPowerOfTwo(5000)],
            ),
            (
                sizes(1 << 30, 1, 256, 1 << 20),
                vec![Lint::PreferredTooSmall {
                    preferred: 256,
                    minimum: 1,
                }],
            ),
            (
                sizes(1 << 30, 4096, 512, 1 << 20),
                vec![Lint::PreferredTooSmall {
                    preferred: 512,
                    minimum: 4096,
                }],
            ),
            (
                sizes(4096, 1, 4096, 512),
                vec![Lint::MaximumBelowPreferred {
                    max_payload: 512,
                    preferred: 4096,
                }],
            ),
            (
                sizes(1 << 20, 1, 4096, 4096),
                vec![Lint::SmallMaximum(4096)],
            ),
            (sizes((1 << 20) - 1, 1, 4096, 4096), vec![]),
            (sizes(1 << 20, 1, 4096, 1 << 20), vec![]),
            (
                sizes((1 << 20) + 5, 512, 4096, 1 << 20),
                vec![Lint::UnreachableEnd(5)],
            ),
        ];
        for (found, expected) in cases {
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn handshake_flags_are_judged_by_the_greeting_they_came_in() {
        let fixed = HandshakeFlags::FIXED_NEWSTYLE;
        let odd = HandshakeFlags::from_bits_retain(0x8000);
        let lints = |flags, oldstyle| {
            Announcement::new(1, SAFE, ReplyStyle::Simple)
                .with_handshake_flags(flags, oldstyle)
                .lints()
        };
        assert_eq!(lints(fixed, false), []);
        assert_eq!(
            lints(fixed | odd, false),
            [Lint::UnknownHandshakeFlags(odd)]
        );
        assert_eq!(lints(fixed, true), [Lint::OldstyleHandshakeFlags(fixed)]);
        assert_eq!(lints(HandshakeFlags::empty(), true), []);
    }

    #[test]
    fn every_lint_has_words_and_the_section_that_forbids_it_or_advises_against_it() {
        let flags = "Transmission flags";
        let (sizes, interoperability) = ("Size constraints", "Maximum interoperability");
        let (preferred, minimum, max_payload) = (5, 3, 4);
        let odd = HandshakeFlags::from_bits_retain(0x8000);
        // Where the text says MUST, and where it says SHOULD.
        for (lint, section, is_advice) in [
            (Lint::NoFlags, flags, false),
            (Lint::DontFragmentWithoutChunks, flags, false),
            (Lint::FastZeroWithoutWriteZeroes, flags, false),
            (Lint::StatusPayloadWithoutExtendedHeaders, flags, false),
            (Lint::StatusPayloadWithoutContexts, flags, true),
            (Lint::MultiConnWithoutFlush, flags, false),
            (Lint::ReadOnlyButModifiable, flags, false),
            (Lint::FuaWithoutFlush, interoperability, true),
            (Lint::NoFlush, interoperability, true),
            (Lint::MinimumNotPowerOfTwo(3), sizes, false),
            (Lint::MinimumTooLarge(1 << 17), sizes, false),
            (Lint::PreferredNotPowerOfTwo(5), sizes, false),
            (Lint::PreferredTooSmall { preferred, minimum }, sizes, false),
            (
                Lint::MaximumBelowPreferred {
                    max_payload,
                    preferred,
                },
                sizes,
                false,
            ),
            (Lint::SmallMaximum(512), sizes, true),
            (Lint::UnreachableEnd(5), sizes, true),
            (Lint::UnknownHandshakeFlags(odd), "Handshake flags", false),
            (Lint::OldstyleHandshakeFlags(odd), "Handshake flags", false),
        ] {
            assert_eq!((lint.section(), lint.is_advice()), (section, is_advice));
            assert!(!lint.to_string().is_empty());
        }
    }
}
