//! Option replies: what a server answers during option haggling (proto.md "Option reply types").

use alloc::vec::Vec;

use super::cursor::{PutExt, Reader, put_u32_at, put_u64_at, u32_at, u64_at};
use super::greeting::expect_magic;
use super::{BadMagic, Info, Malformed, Name, OptionCode, ReplyType};

/// What stands before every reply to an option.
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

/// What stands before the body of every option reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OptionReplyHeader {
    /// The option that is answered.
    pub option: OptionCode,
    /// The kind of the answer.
    pub reply: ReplyType,
    /// Bytes in the body that follows.
    pub length: u32,
}

impl OptionReplyHeader {
    /// Bytes on the wire.
    pub const LEN: usize = 20;

    /// Decodes a header.
    ///
    /// # Errors
    ///
    /// If it does not begin with the magic number of option replies.
    pub fn from_bytes(bytes: &[u8; Self::LEN]) -> Result<Self, BadMagic> {
        expect_magic(u64_at::<0, 20>(bytes), REPLY_MAGIC)?;
        Ok(Self {
            option: OptionCode(u32_at::<8, 20>(bytes)),
            reply: ReplyType(u32_at::<12, 20>(bytes)),
            length: u32_at::<16, 20>(bytes),
        })
    }

    /// Encodes the header.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        put_u64_at::<0, 20>(&mut bytes, REPLY_MAGIC);
        put_u32_at::<8, 20>(&mut bytes, self.option.0);
        put_u32_at::<12, 20>(&mut bytes, self.reply.0);
        put_u32_at::<16, 20>(&mut bytes, self.length);
        bytes
    }
}

/// One reply to an option, with its body.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OptionReply {
    /// `ACK`: accepted; the last reply to the option.
    Ack,
    /// `SERVER`: an export that the server has.
    Server {
        /// Its name.
        name: Name,
        /// Text for people, empty if there is none. What is illegal in it was replaced.
        description: Name,
    },
    /// `INFO`: something about an export.
    Info(Info),
    /// `META_CONTEXT`: a meta context.
    MetaContext {
        /// Its number in block status replies; means nothing in a list.
        id: u32,
        /// Its name.
        name: Name,
    },
    /// An error, known or not: the last reply to the option.
    Error {
        /// The kind of the error; [`is_error`](ReplyType::is_error) holds.
        code: ReplyType,
        /// Text for people, empty if there is none. What is illegal in it was replaced.
        message: Name,
    },
    /// A reply that is not an error and has no variant here.
    Unknown {
        /// The kind of the reply.
        reply: ReplyType,
        /// The body as it came; at most `u32::MAX` bytes.
        data: Vec<u8>,
    },
}

impl OptionReply {
    /// Takes the body of an option reply apart.
    ///
    /// # Errors
    ///
    /// If the body does not have the form of that reply. There is nothing that a client could
    /// answer: it hangs up.
    pub fn parse(reply: ReplyType, body: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(body);
        let parsed = match reply {
            ReplyType::ACK => Self::Ack,
            ReplyType::SERVER => {
                let len = reader.u32()?;
                Self::Server {
                    name: Name::from_wire(reader.bytes(len)?)?,
                    description: Name::lossy(reader.rest()),
                }
            }
            ReplyType::INFO => Self::Info(Info::parse(reader.rest())?),
            ReplyType::META_CONTEXT => Self::MetaContext {
                id: reader.u32()?,
                name: Name::from_wire(reader.rest())?,
            },
            code if code.is_error() => Self::Error {
                code,
                message: Name::lossy(reader.rest()),
            },
            reply => Self::Unknown {
                reply,
                data: reader.rest().to_vec(),
            },
        };
        reader.finish()?;
        Ok(parsed)
    }

    /// The number of the reply.
    #[must_use]
    pub const fn reply_type(&self) -> ReplyType {
        match self {
            Self::Ack => ReplyType::ACK,
            Self::Server { .. } => ReplyType::SERVER,
            Self::Info(_) => ReplyType::INFO,
            Self::MetaContext { .. } => ReplyType::META_CONTEXT,
            Self::Error { code, .. } => *code,
            Self::Unknown { reply, .. } => *reply,
        }
    }

    /// Whether no more replies follow to the same option.
    #[must_use]
    pub const fn is_final(&self) -> bool {
        matches!(self, Self::Ack | Self::Error { .. })
    }

    /// Appends the reply to `option`, header and body.
    pub fn encode(&self, option: OptionCode, out: &mut Vec<u8>) {
        let mut body = Vec::new();
        match self {
            Self::Ack => {}
            Self::Server { name, description } => {
                body.put_u32(name.wire_len());
                body.extend_from_slice(name.as_bytes());
                body.extend_from_slice(description.as_bytes());
            }
            Self::Info(info) => info.encode(&mut body),
            Self::MetaContext { id, name } => {
                body.put_u32(*id);
                body.extend_from_slice(name.as_bytes());
            }
            Self::Error { message, .. } => body.extend_from_slice(message.as_bytes()),
            Self::Unknown { data, .. } => body.extend_from_slice(data),
        }
        let header = OptionReplyHeader {
            option,
            reply: self.reply_type(),
            // Only the data of an unknown reply could be longer, and no peer would take it.
            length: u32::try_from(body.len()).unwrap_or(u32::MAX),
        };
        out.extend_from_slice(&header.to_bytes());
        out.append(&mut body);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::TransmissionFlags;
    use alloc::vec;
    use hex_literal::hex;

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    #[test]
    fn every_reply_is_as_the_protocol_writes_it() {
        let cases: Vec<(OptionReply, [u8; 8], &[u8])> = vec![
            (OptionReply::Ack, hex!("00000001 00000000"), b""),
            (
                OptionReply::Server {
                    name: name("ab"),
                    description: name("xyz"),
                },
                hex!("00000002 00000009"),
                &hex!("00000002 6162 78797a"),
            ),
            (
                OptionReply::Info(Info::Export {
                    size: 1,
                    flags: TransmissionFlags::HAS_FLAGS,
                }),
                hex!("00000003 0000000c"),
                &hex!("0000 0000000000000001 0001"),
            ),
            (
                OptionReply::MetaContext {
                    id: 7,
                    name: name("x:y"),
                },
                hex!("00000004 00000007"),
                &hex!("00000007 783a79"),
            ),
            (
                OptionReply::Error {
                    code: ReplyType::ERR_UNKNOWN,
                    message: name("no"),
                },
                hex!("80000006 00000002"),
                b"no",
            ),
            (
                OptionReply::Error {
                    code: ReplyType(0x8000_1234),
                    message: Name::default(),
                },
                hex!("80001234 00000000"),
                b"",
            ),
            (
                OptionReply::Unknown {
                    reply: ReplyType(0x1234),
                    data: vec![1],
                },
                hex!("00001234 00000001"),
                &[1],
            ),
        ];
        for (reply, fields, body) in cases {
            let mut wire = hex!("0003e889045565a9 00000007").to_vec();
            wire.extend_from_slice(&fields);
            wire.extend_from_slice(body);
            let mut out = vec![0xa5];
            reply.encode(OptionCode::GO, &mut out);
            assert_eq!(out[0], 0xa5, "{reply:?} must be appended");
            assert_eq!(out[1..], wire, "{reply:?}");

            let header = OptionReplyHeader::from_bytes(wire[..20].try_into().unwrap()).unwrap();
            assert_eq!(header.option, OptionCode::GO);
            assert_eq!(header.reply, reply.reply_type());
            assert_eq!(OptionReply::parse(header.reply, &wire[20..]), Ok(reply));
        }
    }

    #[test]
    fn a_reply_with_another_magic_number_is_refused() {
        let mut wire = OptionReplyHeader {
            option: OptionCode::GO,
            reply: ReplyType::ACK,
            length: 0,
        }
        .to_bytes();
        wire[0] = 1;
        assert!(OptionReplyHeader::from_bytes(&wire).is_err());
    }

    #[test]
    fn an_ack_carries_nothing_and_lengths_within_are_checked() {
        assert_eq!(
            OptionReply::parse(ReplyType::ACK, &[0]),
            Err(Malformed::Trailing { excess: 1 })
        );
        let server = |body: &[u8]| OptionReply::parse(ReplyType::SERVER, body);
        assert_eq!(server(&hex!("00000003 6162")), Err(Malformed::Truncated));
        assert_eq!(server(&hex!("ffffffff 6162")), Err(Malformed::Truncated));
        assert_eq!(
            OptionReply::parse(ReplyType::META_CONTEXT, &[0; 3]),
            Err(Malformed::Truncated)
        );
    }

    #[test]
    fn a_message_that_is_no_string_is_mended() {
        assert_eq!(
            OptionReply::parse(ReplyType::ERR_POLICY, b"\xffgo\0"),
            Ok(OptionReply::Error {
                code: ReplyType::ERR_POLICY,
                message: name("\u{fffd}go\u{fffd}"),
            })
        );
    }
}
