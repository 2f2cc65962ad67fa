//! Unique identifiers, PS3.5 section 9.
//!
//! Checked when parsed: after that a [`Uid`] is one to 64 digits and dots, so it can neither climb
//! out of a directory nor end a string early. It is still never made into a path: paths come from
//! hashes.

use std::borrow::{Borrow, Cow};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Longest UID, PS3.5 section 9.1.
pub const UID_LEN_MAX: usize = 64;

/// A DICOM unique identifier.
///
/// Tolerant where real archives are: a component may have leading zeros (`1.02.3`), which PS3.5
/// section 9.1 forbids but some modalities write; [`Uid::is_strict`] tells. Never tolerant about
/// length, characters, or empty components (`1..2`, `.1`, `1.`).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uid(Cow<'static, str>);

/// Why a text is not a UID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UidError {
    /// Nothing in it.
    #[error("uid is empty")]
    Empty,
    /// Longer than [`UID_LEN_MAX`].
    #[error("uid is longer than 64 characters")]
    TooLong,
    /// Something other than digits and dots.
    #[error("uid has a character other than digits and dots")]
    Character,
    /// Two dots in a row, or one at an end.
    #[error("uid has an empty component")]
    EmptyComponent,
}

impl Uid {
    /// Implicit VR Little Endian.
    pub const IMPLICIT_LE: Self = Self::constant("1.2.840.10008.1.2");
    /// Explicit VR Little Endian.
    pub const EXPLICIT_LE: Self = Self::constant("1.2.840.10008.1.2.1");
    /// Deflated Explicit VR Little Endian.
    pub const DEFLATED_EXPLICIT_LE: Self = Self::constant("1.2.840.10008.1.2.1.99");
    /// Explicit VR Big Endian (retired).
    pub const EXPLICIT_BE: Self = Self::constant("1.2.840.10008.1.2.2");
    /// JPEG Lossless, Non-Hierarchical, First-Order Prediction.
    pub const JPEG_LOSSLESS_SV1: Self = Self::constant("1.2.840.10008.1.2.4.70");
    /// Verification SOP Class (C-ECHO).
    pub const VERIFICATION: Self = Self::constant("1.2.840.10008.1.1");
    /// CT Image Storage.
    pub const CT_IMAGE_STORAGE: Self = Self::constant("1.2.840.10008.5.1.4.1.1.2");
    /// DICOM Application Context Name, PS3.7 annex A.2.1.
    pub const APPLICATION_CONTEXT: Self = Self::constant("1.2.840.10008.3.1.1.1");
    /// This software, as an implementation: PS3.7 annex D.3.3.2.
    pub const IMPLEMENTATION_CLASS: Self = Self::constant("2.25.178408779658695993058796591209906155524");

    const fn constant(text: &'static str) -> Self {
        Self(Cow::Borrowed(text))
    }

    /// Checks and takes a text as it is.
    ///
    /// # Errors
    /// See [`UidError`].
    pub fn parse(text: &str) -> Result<Self, UidError> {
        check(text.as_bytes())?;
        Ok(Self(Cow::Owned(text.to_owned())))
    }

    /// Checks and takes the value of an element or a PDU item: trailing NULs (the standard's
    /// padding) and spaces (a common mistake) are removed first.
    ///
    /// # Errors
    /// See [`UidError`].
    pub fn from_padded(value: &[u8]) -> Result<Self, UidError> {
        let end = value.iter().rposition(|&byte| byte != 0 && byte != b' ').map_or(0, |last| last + 1);
        let value = &value[..end];
        check(value)?;
        Ok(Self(Cow::Owned(value.iter().map(|&byte| char::from(byte)).collect())))
    }

    /// A new UID under the root for UUIDs, PS3.5 annex B.2.
    pub fn generate() -> Self {
        Self::from_u128(rand::random())
    }

    /// The same UID for the same bytes, under the root for UUIDs.
    pub fn derived(from: &[u8]) -> Self {
        let mut half = [0; 16];
        half.copy_from_slice(&blake3::hash(from).as_bytes()[..16]);
        Self::from_u128(u128::from_be_bytes(half))
    }

    fn from_u128(number: u128) -> Self {
        Self(Cow::Owned(format!("2.25.{number}")))
    }

    /// The UID as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether no component has a leading zero, as PS3.5 section 9.1 wants it.
    pub fn is_strict(&self) -> bool {
        self.0.split('.').all(|component| component == "0" || !component.starts_with('0'))
    }
}

fn check(text: &[u8]) -> Result<(), UidError> {
    if text.is_empty() {
        return Err(UidError::Empty);
    }
    if text.len() > UID_LEN_MAX {
        return Err(UidError::TooLong);
    }
    if !text.iter().all(|byte| byte.is_ascii_digit() || *byte == b'.') {
        return Err(UidError::Character);
    }
    if text.split(|&byte| byte == b'.').any(<[u8]>::is_empty) {
        return Err(UidError::EmptyComponent);
    }
    Ok(())
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for Uid {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for Uid {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl FromStr for Uid {
    type Err = UidError;

    fn from_str(text: &str) -> Result<Self, UidError> {
        Self::parse(text)
    }
}

impl TryFrom<String> for Uid {
    type Error = UidError;

    fn try_from(text: String) -> Result<Self, UidError> {
        check(text.as_bytes())?;
        Ok(Self(Cow::Owned(text)))
    }
}

impl Serialize for Uid {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Uid {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.try_into().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_controls_are_no_uids() {
        for text in ["../../x", "/etc/x", "1.2\0.3", "1 2", "1.2.x", "\u{661}.2", ".."] {
            assert!(Uid::parse(text).is_err(), "{text:?} must be refused");
        }
        assert_eq!(Uid::parse(""), Err(UidError::Empty));
        assert_eq!(Uid::parse("1..2"), Err(UidError::EmptyComponent));
        assert_eq!(Uid::parse(&"1".repeat(65)), Err(UidError::TooLong));
        assert!(Uid::parse(&"1".repeat(64)).is_ok());
    }

    #[test]
    fn padding_is_removed_and_nothing_else() {
        assert_eq!(Uid::from_padded(b"1.2.3\0").expect("a uid").as_str(), "1.2.3");
        assert_eq!(Uid::from_padded(b"1.2.3 ").expect("a uid").as_str(), "1.2.3");
        assert_eq!(Uid::from_padded(b"1.2\0.3"), Err(UidError::Character));
        assert_eq!(Uid::from_padded(b"\0\0"), Err(UidError::Empty));
    }

    #[test]
    fn leading_zeros_are_tolerated_and_told() {
        assert!(!Uid::parse("1.02").expect("tolerated").is_strict());
        assert!(Uid::parse("1.0.2").expect("a uid").is_strict());
    }

    #[test]
    fn made_uids_are_uids() {
        for uid in [Uid::generate(), Uid::derived(b"x"), Uid::from_u128(u128::MAX), Uid::IMPLEMENTATION_CLASS] {
            assert_eq!(check(uid.as_str().as_bytes()), Ok(()));
            assert!(uid.is_strict());
        }
        assert_eq!(Uid::derived(b"x"), Uid::derived(b"x"));
        assert_ne!(Uid::generate(), Uid::generate());
    }
}
