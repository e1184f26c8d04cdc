//! How a session begins and, with `EXPORT_NAME`, how the handshake ends (proto.md "Handshake").

use alloc::vec::Vec;

use super::cursor::{put_u16_at, put_u32_at, put_u64_at, u16_at, u32_at, u64_at};
use super::{BadMagic, ClientFlags, HandshakeFlags, TransmissionFlags};

/// `INIT_PASSWD`, the ASCII of `NBDMAGIC`.
const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// `cliserv_magic`, which says that the greeting is the oldstyle one.
const OLDSTYLE_MAGIC: u64 = 0x0000_4202_8186_1253;
/// The ASCII of `IHAVEOPT`: the greeting is the newstyle one, and every option begins with it.
pub(super) const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;

/// Which handshake a server offers: what the first 16 bytes of its greeting say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GreetingStyle {
    /// The rest of an [`OldstyleGreeting`] follows; there is no negotiation.
    Oldstyle,
    /// The rest of a [`NewstyleGreeting`] follows, then options.
    Newstyle,
}

impl GreetingStyle {
    /// Bytes from which the style can be told.
    pub const LEN: usize = 16;

    /// Tells the style from the first bytes of a greeting.
    ///
    /// # Errors
    ///
    /// If one of the two magic numbers is wrong: this is not an NBD server.
    pub fn from_bytes(bytes: &[u8; Self::LEN]) -> Result<Self, BadMagic> {
        match (u64_at::<0, 16>(bytes), u64_at::<8, 16>(bytes)) {
            (INIT_MAGIC, OLDSTYLE_MAGIC) => Ok(Self::Oldstyle),
            (INIT_MAGIC, OPTION_MAGIC) => Ok(Self::Newstyle),
            (INIT_MAGIC, found) | (found, _) => Err(BadMagic { found }),
        }
    }
}

/// The greeting of a newstyle server (proto.md "Newstyle negotiation").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct NewstyleGreeting {
    /// What the server says of itself.
    pub flags: HandshakeFlags,
}

impl NewstyleGreeting {
    /// Bytes on the wire.
    pub const LEN: usize = 18;

    /// Decodes a greeting.
    ///
    /// # Errors
    ///
    /// If it does not begin with `NBDMAGIC` and `IHAVEOPT`.
    pub fn from_bytes(bytes: &[u8; Self::LEN]) -> Result<Self, BadMagic> {
        expect_magic(u64_at::<0, 18>(bytes), INIT_MAGIC)?;
        expect_magic(u64_at::<8, 18>(bytes), OPTION_MAGIC)?;
        Ok(Self {
            flags: HandshakeFlags::from_bits_retain(u16_at::<16, 18>(bytes)),
        })
    }

    /// Encodes the greeting.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        put_u64_at::<0, 18>(&mut bytes, INIT_MAGIC);
        put_u64_at::<8, 18>(&mut bytes, OPTION_MAGIC);
        put_u16_at::<16, 18>(&mut bytes, self.flags.bits());
        bytes
    }
}

/// All that an oldstyle server ever says before transmission (proto.md "Oldstyle negotiation").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct OldstyleGreeting {
    /// The size of the only export, in bytes.
    pub size: u64,
    /// The upper half of the flags field, where newer greetings have the handshake flags. A
    /// server must not set any here.
    pub handshake_flags: HandshakeFlags,
    /// The lower half of the flags field: what the export can do.
    pub flags: TransmissionFlags,
}

impl OldstyleGreeting {
    /// Bytes on the wire, the 124 reserved ones included.
    pub const LEN: usize = 152;

    /// Decodes a greeting. The reserved bytes may hold anything.
    ///
    /// # Errors
    ///
    /// If it does not begin with `NBDMAGIC` and the oldstyle magic number.
    pub fn from_bytes(bytes: &[u8; Self::LEN]) -> Result<Self, BadMagic> {
        expect_magic(u64_at::<0, 152>(bytes), INIT_MAGIC)?;
        expect_magic(u64_at::<8, 152>(bytes), OLDSTYLE_MAGIC)?;
        Ok(Self {
            size: u64_at::<16, 152>(bytes),
            handshake_flags: HandshakeFlags::from_bits_retain(u16_at::<24, 152>(bytes)),
            flags: TransmissionFlags::from_bits_retain(u16_at::<26, 152>(bytes)),
        })
    }

    /// Encodes the greeting.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        put_u64_at::<0, 152>(&mut bytes, INIT_MAGIC);
        put_u64_at::<8, 152>(&mut bytes, OLDSTYLE_MAGIC);
        put_u64_at::<16, 152>(&mut bytes, self.size);
        put_u16_at::<24, 152>(&mut bytes, self.handshake_flags.bits());
        put_u16_at::<26, 152>(&mut bytes, self.flags.bits());
        bytes
    }
}

impl ClientFlags {
    /// Bytes on the wire.
    pub const LEN: usize = 4;

    /// Decodes the client's answer to the greeting; bits without a name are kept.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; Self::LEN]) -> Self {
        Self::from_bits_retain(u32_at::<0, 4>(bytes))
    }

    /// Encodes the client's answer to the greeting.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        put_u32_at::<0, 4>(&mut bytes, self.bits());
        bytes
    }
}

/// What a server answers to `EXPORT_NAME`, without any header (proto.md "Newstyle negotiation").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ExportNameReply {
    /// The size of the export in bytes.
    pub size: u64,
    /// What the export can do.
    pub flags: TransmissionFlags,
}

impl ExportNameReply {
    /// Bytes on the wire, without the zeroes.
    pub const LEN: usize = 10;

    /// Zero bytes that follow, unless both sides agreed on `NO_ZEROES`.
    pub const ZEROES: usize = 124;

    /// Decodes the reply.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; Self::LEN]) -> Self {
        Self {
            size: u64_at::<0, 10>(bytes),
            flags: TransmissionFlags::from_bits_retain(u16_at::<8, 10>(bytes)),
        }
    }

    /// Encodes the reply, without the zeroes.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        put_u64_at::<0, 10>(&mut bytes, self.size);
        put_u16_at::<8, 10>(&mut bytes, self.flags.bits());
        bytes
    }

    /// Appends the reply, and the zeroes unless `no_zeroes` was agreed on.
    pub fn encode(&self, no_zeroes: bool, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.to_bytes());
        if !no_zeroes {
            out.extend_from_slice(&[0; Self::ZEROES]);
        }
    }
}

pub(super) fn expect_magic(found: u64, expected: u64) -> Result<(), BadMagic> {
    if found == expected {
        Ok(())
    } else {
        Err(BadMagic { found })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hex_literal::hex;

    #[test]
    fn the_newstyle_greeting_is_as_the_protocol_writes_it() {
        let wire = hex!("4e42444d41474943 49484156454f5054 0003");
        let greeting = NewstyleGreeting {
            flags: HandshakeFlags::FIXED_NEWSTYLE | HandshakeFlags::NO_ZEROES,
        };
        assert_eq!(NewstyleGreeting::from_bytes(&wire), Ok(greeting));
        assert_eq!(greeting.to_bytes(), wire);
    }

    #[test]
    fn the_oldstyle_greeting_is_as_the_protocol_writes_it() {
        let mut wire = [0; 152];
        wire[..28].copy_from_slice(&hex!(
            "4e42444d41474943 0000420281861253 0000000000100000 0000 0005"
        ));
        let greeting = OldstyleGreeting {
            size: 1 << 20,
            handshake_flags: HandshakeFlags::empty(),
            flags: TransmissionFlags::HAS_FLAGS | TransmissionFlags::SEND_FLUSH,
        };
        assert_eq!(OldstyleGreeting::from_bytes(&wire), Ok(greeting));
        assert_eq!(greeting.to_bytes(), wire);
    }

    #[test]
    fn the_style_is_told_by_the_second_magic_number() {
        let style = |wire: [u8; 16]| GreetingStyle::from_bytes(&wire);
        assert_eq!(
            style(hex!("4e42444d41474943 49484156454f5054")),
            Ok(GreetingStyle::Newstyle)
        );
        assert_eq!(
            style(hex!("4e42444d41474943 0000420281861253")),
            Ok(GreetingStyle::Oldstyle)
        );
        assert_eq!(
            style(hex!("4e42444d41474943 0000000000000001")),
            Err(BadMagic { found: 1 })
        );
        assert_eq!(
            style(hex!("485454502f312e31 49484156454f5054")),
            Err(BadMagic {
                found: 0x4854_5450_2f31_2e31
            })
        );
    }

    #[test]
    fn a_greeting_with_another_magic_number_is_refused_whatever_its_style() {
        let mut new = NewstyleGreeting::default().to_bytes();
        let mut old = OldstyleGreeting::default().to_bytes();
        for byte in 0..16 {
            new[byte] ^= 1;
            old[byte] ^= 1;
            assert!(NewstyleGreeting::from_bytes(&new).is_err());
            assert!(OldstyleGreeting::from_bytes(&old).is_err());
            new[byte] ^= 1;
            old[byte] ^= 1;
        }
    }

    #[test]
    fn client_flags_keep_bits_that_nobody_knows() {
        assert_eq!(
            ClientFlags::from_bytes(&hex!("00000003")),
            ClientFlags::FIXED_NEWSTYLE | ClientFlags::NO_ZEROES
        );
        assert_eq!(
            ClientFlags::from_bytes(&hex!("80000001")).to_bytes(),
            hex!("80000001")
        );
    }

    #[test]
    fn the_reply_to_export_name_has_zeroes_unless_agreed_otherwise() {
        let reply = ExportNameReply {
            size: 0x0102_0304_0506_0708,
            flags: TransmissionFlags::HAS_FLAGS | TransmissionFlags::READ_ONLY,
        };
        let wire = hex!("0102030405060708 0003");
        assert_eq!(reply.to_bytes(), wire);
        assert_eq!(ExportNameReply::from_bytes(&wire), reply);

        let (mut short, mut long) = (Vec::new(), Vec::new());
        reply.encode(true, &mut short);
        reply.encode(false, &mut long);
        assert_eq!(short, wire);
        assert_eq!(long.len(), 134);
        assert_eq!(long[..10], wire);
        assert!(long[10..].iter().all(|&byte| byte == 0));
    }
}
