//! Application entity titles: the names by which DICOM nodes call each other.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Longest title in bytes, PS3.5 section 6.2.
pub const AE_TITLE_LEN_MAX: usize = 16;

/// An AE title: one to 16 characters of ASCII without backslash or controls, leading and trailing
/// spaces removed as insignificant (PS3.5 section 6.2, VR AE). Case is significant.
///
/// Shell and markup characters are allowed by the standard, so they are here: it is text, and
/// whoever shows it escapes it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AeTitle(String);

/// Why a text is not an AE title.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AeTitleError {
    /// Nothing but spaces.
    #[error("ae title is empty")]
    Empty,
    /// Longer than [`AE_TITLE_LEN_MAX`].
    #[error("ae title is longer than 16 characters")]
    TooLong,
    /// A control character, a backslash, or something outside ASCII.
    #[error("ae title has a character that is not allowed")]
    Character,
}

impl AeTitle {
    /// Checks and trims a text.
    ///
    /// # Errors
    /// See [`AeTitleError`].
    pub fn parse(text: &str) -> Result<Self, AeTitleError> {
        let text = text.trim_matches(' ');
        if text.is_empty() {
            return Err(AeTitleError::Empty);
        }
        if text.len() > AE_TITLE_LEN_MAX {
            return Err(AeTitleError::TooLong);
        }
        if !text.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b'\\') {
            return Err(AeTitleError::Character);
        }
        Ok(Self(text.to_owned()))
    }

    /// Checks and takes a value as found in a PDU or an element: trailing NULs, which some senders
    /// pad with, are removed as spaces are.
    ///
    /// # Errors
    /// See [`AeTitleError`].
    pub fn from_padded(value: &[u8]) -> Result<Self, AeTitleError> {
        let text = std::str::from_utf8(value).map_err(|_| AeTitleError::Character)?;
        Self::parse(text.trim_end_matches(['\0', ' ']))
    }

    /// The title as text, trimmed.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The title padded with spaces to its 16 bytes in a PDU.
    pub fn padded(&self) -> [u8; AE_TITLE_LEN_MAX] {
        let mut padded = [b' '; AE_TITLE_LEN_MAX];
        padded[..self.0.len()].copy_from_slice(self.0.as_bytes());
        padded
    }
}

impl fmt::Display for AeTitle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for AeTitle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl FromStr for AeTitle {
    type Err = AeTitleError;

    fn from_str(text: &str) -> Result<Self, AeTitleError> {
        Self::parse(text)
    }
}

impl Serialize for AeTitle {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for AeTitle {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn titles_are_trimmed_and_bounded() {
        assert_eq!(AeTitle::parse("  SCU 1 ").expect("a title").as_str(), "SCU 1");
        assert_eq!(AeTitle::from_padded(b"SCU\0\0\0").expect("a title").as_str(), "SCU");
        assert_eq!(AeTitle::parse("   "), Err(AeTitleError::Empty));
        assert_eq!(AeTitle::parse("12345678901234567"), Err(AeTitleError::TooLong));
        for text in ["A\\B", "A\nB", "A\0B", "É"] {
            assert_eq!(AeTitle::parse(text), Err(AeTitleError::Character), "{text:?}");
        }
    }

    #[test]
    fn shell_characters_are_text() {
        assert_eq!(AeTitle::parse("`$(x)`;").expect("a title").as_str(), "`$(x)`;");
    }
}
