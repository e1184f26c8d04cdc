//! Options: what a client asks for during option haggling (proto.md "Option types").

use alloc::vec::Vec;

use super::cursor::{PutExt, Reader, put_u32_at, put_u64_at, u32_at, u64_at};
use super::greeting::{OPTION_MAGIC, expect_magic};
use super::{BadMagic, InfoType, Malformed, Name, OptionCode};

/// What stands before the body of every option.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OptionHeader {
    /// What is asked for.
    pub option: OptionCode,
    /// Bytes in the body that follows.
    pub length: u32,
}

impl OptionHeader {
    /// Bytes on the wire.
    pub const LEN: usize = 16;

    /// Decodes a header.
    ///
    /// # Errors
    ///
    /// If it does not begin with `IHAVEOPT`.
    pub fn from_bytes(bytes: &[u8; Self::LEN]) -> Result<Self, BadMagic> {
        expect_magic(u64_at::<0, 16>(bytes), OPTION_MAGIC)?;
        Ok(Self {
            option: OptionCode(u32_at::<8, 16>(bytes)),
            length: u32_at::<12, 16>(bytes),
        })
    }

    /// Encodes the header.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        put_u64_at::<0, 16>(&mut bytes, OPTION_MAGIC);
        put_u32_at::<8, 16>(&mut bytes, self.option.0);
        put_u32_at::<12, 16>(&mut bytes, self.length);
        bytes
    }
}

/// An option with its body.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClientOption {
    /// `EXPORT_NAME`: enter transmission with this export.
    ExportName(Name),
    /// `ABORT`: end the session.
    Abort,
    /// `LIST`: list the exports.
    List,
    /// `STARTTLS`: upgrade the connection to TLS.
    StartTls,
    /// `INFO`: ask about an export.
    Info(InfoRequest),
    /// `GO`: ask about an export and enter transmission.
    Go(InfoRequest),
    /// `STRUCTURED_REPLY`: use structured replies.
    StructuredReply,
    /// `LIST_META_CONTEXT`: list meta contexts.
    ListMetaContext(MetaContextRequest),
    /// `SET_META_CONTEXT`: select meta contexts.
    SetMetaContext(MetaContextRequest),
    /// `EXTENDED_HEADERS`: use extended headers.
    ExtendedHeaders,
    /// An option that has no variant here.
    Unknown {
        /// What is asked for.
        option: OptionCode,
        /// The body as it came; at most `u32::MAX` bytes.
        data: Vec<u8>,
    },
}

impl ClientOption {
    /// Takes the body of an option apart.
    ///
    /// The data of an `ABORT` is dropped (proto.md under `NBD_OPT_ABORT`: "a server SHOULD ignore
    /// any data sent by the client").
    ///
    /// # Errors
    ///
    /// If the body does not have the form of that option. A server answers
    /// [`ERR_INVALID`](super::ReplyType::ERR_INVALID), except to `EXPORT_NAME`, which has no
    /// error reply.
    pub fn parse(option: OptionCode, body: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(body);
        let parsed = match option {
            OptionCode::EXPORT_NAME => Self::ExportName(Name::from_wire(reader.rest())?),
            OptionCode::ABORT => return Ok(Self::Abort),
            OptionCode::LIST => Self::List,
            OptionCode::STARTTLS => Self::StartTls,
            OptionCode::INFO => Self::Info(InfoRequest::read(&mut reader)?),
            OptionCode::GO => Self::Go(InfoRequest::read(&mut reader)?),
            OptionCode::STRUCTURED_REPLY => Self::StructuredReply,
            OptionCode::LIST_META_CONTEXT => {
                Self::ListMetaContext(MetaContextRequest::read(&mut reader)?)
            }
            OptionCode::SET_META_CONTEXT => {
                Self::SetMetaContext(MetaContextRequest::read(&mut reader)?)
            }
            OptionCode::EXTENDED_HEADERS => Self::ExtendedHeaders,
            option => Self::Unknown {
                option,
                data: reader.rest().to_vec(),
            },
        };
        reader.finish()?;
        Ok(parsed)
    }

    /// The number of the option.
    #[must_use]
    pub const fn code(&self) -> OptionCode {
        match self {
            Self::ExportName(_) => OptionCode::EXPORT_NAME,
            Self::Abort => OptionCode::ABORT,
            Self::List => OptionCode::LIST,
            Self::StartTls => OptionCode::STARTTLS,
            Self::Info(_) => OptionCode::INFO,
            Self::Go(_) => OptionCode::GO,
            Self::StructuredReply => OptionCode::STRUCTURED_REPLY,
            Self::ListMetaContext(_) => OptionCode::LIST_META_CONTEXT,
            Self::SetMetaContext(_) => OptionCode::SET_META_CONTEXT,
            Self::ExtendedHeaders => OptionCode::EXTENDED_HEADERS,
            Self::Unknown { option, .. } => *option,
        }
    }

    /// Appends the option, header and body.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut body = Vec::new();
        match self {
            Self::ExportName(name) => body.extend_from_slice(name.as_bytes()),
            Self::Abort
            | Self::List
            | Self::StartTls
            | Self::StructuredReply
            | Self::ExtendedHeaders => {}
            Self::Info(request) | Self::Go(request) => request.write(&mut body),
            Self::ListMetaContext(request) | Self::SetMetaContext(request) => {
                request.write(&mut body);
            }
            Self::Unknown { data, .. } => body.extend_from_slice(data),
        }
        let header = OptionHeader {
            option: self.code(),
            // A body of 4 GiB or more cannot be sent at all; every peer refuses far less.
            length: u32::try_from(body.len()).unwrap_or(u32::MAX),
        };
        out.extend_from_slice(&header.to_bytes());
        out.append(&mut body);
    }
}

/// The body of `INFO` and `GO`: which export, and what the client wants to know of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct InfoRequest {
    /// The export; the empty name is that of the default export.
    pub name: Name,
    /// What is asked for. A client must not ask for the same twice; a server need not mind. Only
    /// the first 65,535 are sent.
    pub infos: Vec<InfoType>,
}

impl InfoRequest {
    /// Asks for nothing in particular; the server always tells size and flags.
    #[must_use]
    pub const fn new(name: Name) -> Self {
        Self {
            name,
            infos: Vec::new(),
        }
    }

    /// Asks for one more piece of information, unless it is asked for already.
    #[must_use]
    pub fn with(mut self, info: InfoType) -> Self {
        if !self.asks(info) {
            self.infos.push(info);
        }
        self
    }

    /// Whether this piece of information is asked for.
    #[must_use]
    pub fn asks(&self, info: InfoType) -> bool {
        self.infos.contains(&info)
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let len = reader.u32()?;
        let name = Name::from_wire(reader.bytes(len)?)?;
        let count = reader.u16()?;
        let bytes = reader.bytes(u32::from(count) * 2)?;
        let infos = bytes
            .chunks_exact(2)
            .filter_map(|pair| pair.try_into().ok())
            .map(|pair| InfoType(u16::from_be_bytes(pair)))
            .collect();
        Ok(Self { name, infos })
    }

    fn write(&self, body: &mut Vec<u8>) {
        let count = u16::try_from(self.infos.len()).unwrap_or(u16::MAX);
        body.put_u32(self.name.wire_len());
        body.extend_from_slice(self.name.as_bytes());
        body.put_u16(count);
        for info in self.infos.iter().take(usize::from(count)) {
            body.put_u16(info.0);
        }
    }
}

/// The body of `LIST_META_CONTEXT` and `SET_META_CONTEXT`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct MetaContextRequest {
    /// The export whose contexts are meant.
    pub export: Name,
    /// Names or patterns of contexts, each a namespace, a colon and a rest. That the colon is
    /// there is not checked here: a query without one is well-formed, but means nothing.
    pub queries: Vec<Name>,
}

impl MetaContextRequest {
    fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        let len = reader.u32()?;
        let export = Name::from_wire(reader.bytes(len)?)?;
        let count = reader.u32()?;
        // The count is only believed as far as the bytes go: each query takes at least four.
        let mut queries = Vec::new();
        for _ in 0..count {
            let len = reader.u32()?;
            queries.push(Name::from_wire(reader.bytes(len)?)?);
        }
        Ok(Self { export, queries })
    }

    fn write(&self, body: &mut Vec<u8>) {
        body.put_u32(self.export.wire_len());
        body.extend_from_slice(self.export.as_bytes());
        body.put_u32(u32::try_from(self.queries.len()).unwrap_or(u32::MAX));
        for query in &self.queries {
            body.put_u32(query.wire_len());
            body.extend_from_slice(query.as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::BadString;
    use alloc::vec;
    use hex_literal::hex;

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    #[test]
    fn every_option_is_as_the_protocol_writes_it() {
        let request = InfoRequest {
            name: name("ab"),
            infos: vec![InfoType::BLOCK_SIZE, InfoType(0x1234)],
        };
        let contexts = MetaContextRequest {
            export: name("ab"),
            queries: vec![name("base:"), name("x:y")],
        };
        let request_body = hex!("00000002 6162 0002 0003 1234").as_slice();
        let contexts_body =
            hex!("00000002 6162 00000002 00000005 626173653a 00000003 783a79").as_slice();
        let unknown = ClientOption::Unknown {
            option: OptionCode(0x63),
            data: vec![9, 8],
        };
        let cases: Vec<(ClientOption, [u8; 8], &[u8])> = vec![
            (
                ClientOption::ExportName(name("ab")),
                hex!("00000001 00000002"),
                b"ab",
            ),
            (ClientOption::Abort, hex!("00000002 00000000"), b""),
            (ClientOption::List, hex!("00000003 00000000"), b""),
            (ClientOption::StartTls, hex!("00000005 00000000"), b""),
            (
                ClientOption::Info(request.clone()),
                hex!("00000006 0000000c"),
                request_body,
            ),
            (
                ClientOption::Go(request),
                hex!("00000007 0000000c"),
                request_body,
            ),
            (
                ClientOption::StructuredReply,
                hex!("00000008 00000000"),
                b"",
            ),
            (
                ClientOption::ListMetaContext(contexts.clone()),
                hex!("00000009 0000001a"),
                contexts_body,
            ),
            (
                ClientOption::SetMetaContext(contexts),
                hex!("0000000a 0000001a"),
                contexts_body,
            ),
            (
                ClientOption::ExtendedHeaders,
                hex!("0000000b 00000000"),
                b"",
            ),
            (unknown, hex!("00000063 00000002"), &[9, 8]),
        ];
        for (option, fields, body) in cases {
            let mut wire = b"IHAVEOPT".to_vec();
            wire.extend_from_slice(&fields);
            wire.extend_from_slice(body);
            let mut out = vec![0xa5];
            option.encode(&mut out);
            assert_eq!(out[0], 0xa5, "{option:?} must be appended");
            assert_eq!(out[1..], wire, "{option:?}");

            let header = OptionHeader::from_bytes(wire[..16].try_into().unwrap()).unwrap();
            assert_eq!(header.option, option.code());
            assert_eq!(ClientOption::parse(header.option, &wire[16..]), Ok(option));
        }
    }

    #[test]
    fn an_option_with_another_magic_number_is_refused() {
        let mut wire = OptionHeader {
            option: OptionCode::GO,
            length: 6,
        }
        .to_bytes();
        wire[7] ^= 1;
        assert_eq!(
            OptionHeader::from_bytes(&wire),
            Err(BadMagic {
                found: OPTION_MAGIC ^ 1
            })
        );
    }

    #[test]
    fn inner_lengths_and_counts_are_held_against_the_body() {
        let go = |body: &[u8]| ClientOption::parse(OptionCode::GO, body).unwrap_err();
        let set = |body: &[u8]| ClientOption::parse(OptionCode::SET_META_CONTEXT, body);
        assert_eq!(go(b""), Malformed::Truncated);
        assert_eq!(go(&hex!("00000005 6162 0000")), Malformed::Truncated);
        assert_eq!(go(&hex!("ffffffff 6162 0000")), Malformed::Truncated);
        assert_eq!(go(&hex!("00000000 0002 0003")), Malformed::Truncated);
        assert_eq!(
            go(&hex!("00000000 0001 0003 00")),
            Malformed::Trailing { excess: 1 }
        );
        // Four thousand million queries in no bytes at all.
        assert_eq!(
            set(&hex!("00000000 ffffffff")).unwrap_err(),
            Malformed::Truncated
        );
        assert_eq!(
            set(&hex!("00000000 00000001 ffffffff 61")).unwrap_err(),
            Malformed::Truncated
        );
    }

    #[test]
    fn names_that_are_no_strings_are_malformed() {
        let export_name = |body: &[u8]| ClientOption::parse(OptionCode::EXPORT_NAME, body);
        let cases: [(&[u8], BadString); 3] = [
            (b"a\0b", BadString::Nul),
            (b"\xc3\x28", BadString::NotUtf8),
            (&[b'x'; 4097], BadString::TooLong),
        ];
        for (body, why) in cases {
            assert_eq!(export_name(body).unwrap_err(), Malformed::String(why));
            let mut go = u32::try_from(body.len()).unwrap().to_be_bytes().to_vec();
            go.extend_from_slice(body);
            go.extend_from_slice(&[0, 0]);
            assert_eq!(
                ClientOption::parse(OptionCode::GO, &go).unwrap_err(),
                Malformed::String(why)
            );
        }
        assert!(export_name(&[b'x'; 4096]).is_ok());
    }

    #[test]
    fn options_without_a_body_do_not_take_one_but_abort_does_not_care() {
        for option in [
            OptionCode::LIST,
            OptionCode::STARTTLS,
            OptionCode::STRUCTURED_REPLY,
            OptionCode::EXTENDED_HEADERS,
        ] {
            assert_eq!(
                ClientOption::parse(option, &[1]),
                Err(Malformed::Trailing { excess: 1 })
            );
        }
        assert_eq!(
            ClientOption::parse(OptionCode::ABORT, &[1]),
            Ok(ClientOption::Abort)
        );
    }

    #[test]
    fn what_was_asked_twice_counts_once() {
        let request = InfoRequest::new(Name::default())
            .with(InfoType::NAME)
            .with(InfoType::NAME);
        assert_eq!(request.infos, [InfoType::NAME]);
        let twice = hex!("00000000 0002 0001 0001");
        assert!(ClientOption::parse(OptionCode::GO, &twice).is_ok());
    }
}
