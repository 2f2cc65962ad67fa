//! Identifiers and bounded texts of the replicated state, checked when parsed.
//!
//! Bounds exist because every site keeps every exam: a sender must not be able to grow the state of
//! the whole mesh with one field.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A site, which runs one node: the log index of the command that admitted it, so never reused. The
/// founder is 1, the index at which no command can ever stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SiteId(pub u64);

/// An exam: the log index of the command that added it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ExamId(pub u64);

/// The proof of a claim. It rises with every grant in the mesh (it is the grant's log index).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FencingToken(pub u64);

macro_rules! numbered {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = std::num::ParseIntError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }
    )*};
}
numbered!(SiteId, ExamId, FencingToken);

/// A client's name for one command. A repeat returns the first answer.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CommandId(pub uuid::Uuid);

impl CommandId {
    /// A fresh random id.
    pub fn random() -> Self {
        Self(uuid::Builder::from_random_bytes(rand::random()).into_uuid())
    }
}

impl fmt::Debug for CommandId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CommandId({})", self.0)
    }
}

/// A text was longer than its field allows, empty where it may not be, or held control characters.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// Longer than the field's bound.
    #[error("longer than {max} bytes")]
    TooLong {
        /// The bound, in bytes of UTF-8.
        max: usize,
    },
    /// Empty where a value is needed.
    #[error("empty")]
    Empty,
    /// Control characters.
    #[error("holds control characters")]
    Control,
}

/// A text of at most `MAX` bytes of UTF-8 without control characters other than tab and newline.
/// Its `Debug` is empty: most of these name a patient.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Text<const MAX: usize>(String);

impl<const MAX: usize> Text<MAX> {
    /// Checks `text`; the empty text is allowed.
    ///
    /// # Errors
    /// [`TextError`] when it is too long or holds control characters.
    pub fn new(text: impl Into<String>) -> Result<Self, TextError> {
        let text = text.into();
        if text.len() > MAX {
            return Err(TextError::TooLong { max: MAX });
        }
        if text.chars().any(|c| c.is_control() && c != '\n' && c != '\t') {
            return Err(TextError::Control);
        }
        Ok(Self(text))
    }

    /// As [`Text::new`], and not empty.
    ///
    /// # Errors
    /// [`TextError`].
    pub fn filled(text: impl Into<String>) -> Result<Self, TextError> {
        let text = Self::new(text.into().trim())?;
        if text.0.is_empty() { Err(TextError::Empty) } else { Ok(text) }
    }

    /// `text` without its control characters, cut at a character boundary to fit. For what comes
    /// from files, where refusing the whole file over a long description would harm more.
    pub fn fitted(text: &str) -> Self {
        let mut fitted = String::new();
        for c in text.trim().chars().filter(|c| !c.is_control()) {
            if fitted.len() + c.len_utf8() > MAX {
                break;
            }
            fitted.push(c);
        }
        Self(fitted)
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<const MAX: usize> TryFrom<String> for Text<MAX> {
    type Error = TextError;

    fn try_from(text: String) -> Result<Self, TextError> {
        Self::new(text)
    }
}

impl<const MAX: usize> From<Text<MAX>> for String {
    fn from(text: Text<MAX>) -> Self {
        text.0
    }
}

impl<const MAX: usize> fmt::Display for Text<MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<const MAX: usize> fmt::Debug for Text<MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// A name of a site, zone or mesh, or a user's login.
pub type Name = Text<64>;
/// One line: DICOM's LO is 64 characters, of up to 4 bytes each.
pub type Line = Text<256>;
/// A DICOM UID, at most 64 characters (PS3.5 section 9.1).
pub type UidText = Text<64>;
/// A few sentences: a note, a question, an opinion.
pub type Paragraph = Text<4096>;
/// A report.
pub type Prose = Text<262_144>;

/// A peer's public identity, opaque here: the transport's PeerId as bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<u8>", into = "Vec<u8>")]
pub struct PeerKey(Vec<u8>);

impl PeerKey {
    /// The longest identity accepted, in bytes; an ed25519 PeerId has 38.
    pub const MAX: usize = 64;

    /// Checks the length of `bytes`.
    ///
    /// # Errors
    /// [`TextError`] when empty or longer than [`PeerKey::MAX`].
    pub fn new(bytes: Vec<u8>) -> Result<Self, TextError> {
        match bytes.len() {
            0 => Err(TextError::Empty),
            1..=Self::MAX => Ok(Self(bytes)),
            _ => Err(TextError::TooLong { max: Self::MAX }),
        }
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl TryFrom<Vec<u8>> for PeerKey {
    type Error = TextError;

    fn try_from(bytes: Vec<u8>) -> Result<Self, TextError> {
        Self::new(bytes)
    }
}

impl From<PeerKey> for Vec<u8> {
    fn from(key: PeerKey) -> Self {
        key.0
    }
}

/// The name of a key under which images are sealed: random, and no secret.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyId(pub [u8; 16]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyId({self})")
    }
}

/// The bytes of such a key. Its `Debug` is empty: it is for the state, and for who opens images, and for no log.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(pub [u8; 32]);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// A content address: BLAKE3 of the content.
pub type Address = [u8; 32];
