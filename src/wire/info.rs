//! Pieces of information about an export (`NBD_INFO_*`, under `NBD_REP_INFO` in proto.md "Option
//! reply types").

use alloc::vec::Vec;

use super::cursor::{PutExt, Reader};
use super::{InfoType, Malformed, Name, TransmissionFlags};

/// One piece of information about an export: the body of an `NBD_REP_INFO`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Info {
    /// `NBD_INFO_EXPORT`: what a server always tells.
    Export {
        /// The size in bytes.
        size: u64,
        /// What the export can do.
        flags: TransmissionFlags,
    },
    /// `NBD_INFO_NAME`: the canonical name, which may differ from the one asked for.
    Name(Name),
    /// `NBD_INFO_DESCRIPTION`: text for people. What is illegal in it was replaced.
    Description(Name),
    /// `NBD_INFO_BLOCK_SIZE`: the size constraints in bytes, as they stand on the wire: whether
    /// they are legal is for [`BlockSizes::new`](crate::session::BlockSizes::new) to say.
    BlockSize {
        /// The smallest unit that can be addressed.
        minimum: u32,
        /// The unit from which on aligned requests are efficient.
        preferred: u32,
        /// The most payload in one request.
        max_payload: u32,
    },
    /// A piece of information that has no variant here; a client ignores it.
    Unknown {
        /// What it is about.
        info: InfoType,
        /// What it says.
        data: Vec<u8>,
    },
}

impl Info {
    /// Takes the body of an `NBD_REP_INFO` apart, which begins with the type.
    ///
    /// # Errors
    ///
    /// If the length is not the one which the protocol gives that type, or a name is not a name.
    pub fn parse(body: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(body);
        let info = match InfoType(reader.u16()?) {
            InfoType::EXPORT => Self::Export {
                size: reader.u64()?,
                flags: TransmissionFlags::from_bits_retain(reader.u16()?),
            },
            InfoType::NAME => Self::Name(Name::from_wire(reader.rest())?),
            InfoType::DESCRIPTION => Self::Description(Name::lossy(reader.rest())),
            InfoType::BLOCK_SIZE => Self::BlockSize {
                minimum: reader.u32()?,
                preferred: reader.u32()?,
                max_payload: reader.u32()?,
            },
            info => Self::Unknown {
                info,
                data: reader.rest().to_vec(),
            },
        };
        reader.finish()?;
        Ok(info)
    }

    /// What the information is about.
    #[must_use]
    pub const fn info_type(&self) -> InfoType {
        match self {
            Self::Export { .. } => InfoType::EXPORT,
            Self::Name(_) => InfoType::NAME,
            Self::Description(_) => InfoType::DESCRIPTION,
            Self::BlockSize { .. } => InfoType::BLOCK_SIZE,
            Self::Unknown { info, .. } => *info,
        }
    }

    /// Appends the body of an `NBD_REP_INFO`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u16(self.info_type().0);
        match self {
            Self::Export { size, flags } => {
                out.put_u64(*size);
                out.put_u16(flags.bits());
            }
            Self::Name(text) | Self::Description(text) => out.extend_from_slice(text.as_bytes()),
            Self::BlockSize {
                minimum,
                preferred,
                max_payload,
            } => {
                out.put_u32(*minimum);
                out.put_u32(*preferred);
                out.put_u32(*max_payload);
            }
            Self::Unknown { data, .. } => out.extend_from_slice(data),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use hex_literal::hex;

    #[test]
    fn every_info_is_as_the_protocol_writes_it() {
        let cases: Vec<(Info, &[u8])> = vec![
            (
                Info::Export {
                    size: 0x1_0000,
                    flags: TransmissionFlags::from_bits_retain(0x0ded),
                },
                &hex!("0000 0000000000010000 0ded"),
            ),
            (Info::Name(Name::new("ab").unwrap()), &hex!("0001 6162")),
            (Info::Description(Name::default()), &hex!("0002")),
            (
                Info::BlockSize {
                    minimum: 1,
                    preferred: 4096,
                    max_payload: 0x0200_0000,
                },
                &hex!("0003 00000001 00001000 02000000"),
            ),
            (
                Info::Unknown {
                    info: InfoType(0x1234),
                    data: vec![5],
                },
                &hex!("1234 05"),
            ),
        ];
        for (info, wire) in cases {
            let mut out = Vec::new();
            info.encode(&mut out);
            assert_eq!(out, wire);
            assert_eq!(Info::parse(wire), Ok(info));
        }
    }

    #[test]
    fn fixed_infos_have_exactly_the_length_of_the_protocol() {
        for (code, len) in [(InfoType::EXPORT, 12), (InfoType::BLOCK_SIZE, 14)] {
            for other in (2..20).filter(|&other| other != len) {
                let mut body = vec![0; other];
                body[..2].copy_from_slice(&code.0.to_be_bytes());
                assert!(Info::parse(&body).is_err(), "{code} of {other} bytes");
            }
        }
        assert_eq!(Info::parse(&[0]), Err(Malformed::Truncated));
    }

    #[test]
    fn a_bad_description_is_mended_and_a_bad_name_is_not() {
        assert_eq!(
            Info::parse(b"\0\x02a\xffb"),
            Ok(Info::Description(Name::new("a\u{fffd}b").unwrap()))
        );
        assert!(Info::parse(b"\0\x01a\xffb").is_err());
    }
}
