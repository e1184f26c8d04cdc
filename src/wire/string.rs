//! Strings as the protocol has them: UTF-8, without NUL, at most 4096 bytes.

use alloc::borrow::ToOwned;
use alloc::string::String;
use core::fmt;

use super::Malformed;

/// The most bytes that a string of the protocol may have (proto.md "Conventions").
pub const MAX_STRING: usize = 4096;

/// Checks a string that came from the wire.
///
/// # Errors
///
/// [`Malformed::String`] with what is wrong with it.
///
/// # Spec
///
/// proto.md "Conventions": UTF-8, MUST NOT contain NUL, MUST be no longer than 4096 bytes.
pub(crate) fn check_string(bytes: &[u8]) -> Result<&str, Malformed> {
    if bytes.len() > MAX_STRING {
        return Err(Malformed::String(BadString::TooLong));
    }
    if bytes.contains(&0) {
        return Err(Malformed::String(BadString::Nul));
    }
    core::str::from_utf8(bytes).map_err(|_| Malformed::String(BadString::NotUtf8))
}

/// Why something is not a string of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadString {
    /// More than [`MAX_STRING`] bytes.
    #[error("longer than 4096 bytes")]
    TooLong,
    /// A NUL byte within.
    #[error("contains a NUL byte")]
    Nul,
    /// Not UTF-8.
    #[error("is not UTF-8")]
    NotUtf8,
}

/// An export name, or another string that the protocol sends: UTF-8, no NUL, at most 4096 bytes.
///
/// The empty name is a name: that of the default export.
///
/// ```
/// use nbd_proto::wire::Name;
///
/// let name = Name::new("disk0")?;
/// assert_eq!(name.as_str(), "disk0");
/// assert!(Name::new("di\0sk").is_err());
/// assert_eq!(Name::default().as_str(), "");
/// # Ok::<(), nbd_proto::wire::BadString>(())
/// ```
#[derive(Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(String);

impl Name {
    /// The name of the default export; also what stands where there is no text.
    pub const EMPTY: Self = Self(String::new());

    /// Checks and takes a name.
    ///
    /// # Errors
    ///
    /// If the string is longer than [`MAX_STRING`] bytes or contains a NUL.
    pub fn new(name: impl Into<String>) -> Result<Self, BadString> {
        let name = name.into();
        match check_string(name.as_bytes()) {
            Err(Malformed::String(why)) => Err(why),
            _ => Ok(Self(name)),
        }
    }

    /// Makes a name of any bytes: what is not UTF-8 and every NUL becomes U+FFFD, and what goes
    /// beyond [`MAX_STRING`] bytes is cut off.
    ///
    /// For text that is only shown to people, such as error messages and descriptions: a peer
    /// that gets it wrong should not cost anyone the session.
    ///
    /// ```
    /// use nbd_proto::wire::Name;
    ///
    /// assert_eq!(Name::lossy(b"caf\xe9\0").as_str(), "caf\u{fffd}\u{fffd}");
    /// ```
    #[must_use]
    pub fn lossy(bytes: &[u8]) -> Self {
        // A byte more than fits is enough to know that something has to go.
        let bytes = bytes.get(..=MAX_STRING).unwrap_or(bytes);
        let mut text = String::from_utf8_lossy(bytes).replace('\0', "\u{fffd}");
        while text.len() > MAX_STRING {
            text.pop();
        }
        Self(text)
    }

    /// Checks and copies a name that came from the wire.
    pub(crate) fn from_wire(bytes: &[u8]) -> Result<Self, Malformed> {
        check_string(bytes).map(|name| Self(name.to_owned()))
    }

    /// The name as a string slice.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name as bytes, as they go over the wire.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// The length in bytes; always fits, a name has at most 4096.
    pub(crate) fn wire_len(&self) -> u32 {
        u32::try_from(self.0.len()).unwrap_or(u32::MAX)
    }
}

impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl core::str::FromStr for Name {
    type Err = BadString;

    fn from_str(name: &str) -> Result<Self, BadString> {
        Self::new(name)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::{format, vec};

    #[test]
    fn a_name_has_at_most_4096_bytes_of_utf8_and_no_nul() {
        assert!(Name::from_wire(&vec![b'x'; MAX_STRING]).is_ok());
        let cases: [(&[u8], BadString); 3] = [
            (&[b'x'; MAX_STRING + 1], BadString::TooLong),
            (b"a\0b", BadString::Nul),
            (b"\xff", BadString::NotUtf8),
        ];
        for (bytes, why) in cases {
            assert_eq!(Name::from_wire(bytes), Err(Malformed::String(why)));
        }
    }

    #[test]
    fn any_bytes_make_a_legal_name_when_loss_is_accepted() {
        assert_eq!(Name::lossy(b"plain").as_str(), "plain");
        assert_eq!(Name::lossy(&vec![b'x'; MAX_STRING]).0.len(), MAX_STRING);
        for bytes in [vec![0xff; 5000], vec![0; 5000], vec![b'x'; 5000]] {
            let name = Name::lossy(&bytes);
            assert!(name.0.len() > MAX_STRING - 4);
            assert_eq!(Name::new(name.0.clone()), Ok(name));
        }
    }

    #[test]
    fn a_name_is_its_text_in_every_guise() {
        let name: Name = "disk".parse().unwrap();
        assert_eq!((name.as_str(), name.as_ref()), ("disk", "disk"));
        assert_eq!(format!("{name} {name:?}"), "disk \"disk\"");
        assert_eq!(String::from(name), "disk");
        assert_eq!("a\0b".parse::<Name>(), Err(BadString::Nul));
    }
}
