//! How an operation ended, PS3.7 annex C; for C-STORE PS3.4 section B.2.3 besides.

use std::borrow::Cow;
use std::fmt;

/// Longest Error Comment (0000,0902), a long string: PS3.5 section 6.2.
pub const COMMENT_LEN_MAX: usize = 64;

/// The answer to an operation other than C-STORE. The codes mean what its service class says.
pub type Status = StoreStatus;

/// The answer to a C-STORE: a code and, unless it is success, a comment for the sender's operator.
/// No patient data goes into a comment.
#[derive(Clone, PartialEq, Eq)]
pub struct StoreStatus {
    code: u16,
    comment: Cow<'static, str>,
}

/// The family of a status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatusKind {
    /// Stored.
    Success,
    /// Stored, with a remark (Bxxx).
    Warning,
    /// Refused: out of resources (A7xx). The sender may try again later.
    OutOfResources,
    /// Error: data set does not match SOP class (A9xx).
    DoesNotMatch,
    /// Error: cannot understand (Cxxx).
    CannotUnderstand,
    /// Any other failure.
    OtherFailure,
}

impl StoreStatus {
    /// 0000: stored, durably.
    pub const SUCCESS: Self = Self { code: 0x0000, comment: Cow::Borrowed("") };

    /// A700: try again later.
    pub fn out_of_resources(comment: impl Into<Cow<'static, str>>) -> Self {
        Self::from_code(0xA700, comment)
    }

    /// A900: the data set is not of the SOP class, or not of the instance, that the command names.
    pub fn does_not_match(comment: impl Into<Cow<'static, str>>) -> Self {
        Self::from_code(0xA900, comment)
    }

    /// C000: the data set was refused for what it is.
    pub fn cannot_understand(comment: impl Into<Cow<'static, str>>) -> Self {
        Self::from_code(0xC000, comment)
    }

    /// 0124: refused, not authorized.
    pub fn not_authorized(comment: impl Into<Cow<'static, str>>) -> Self {
        Self::from_code(0x0124, comment)
    }

    /// FF00: matches are continuing.
    pub const PENDING: Self = Self { code: 0xFF00, comment: Cow::Borrowed("") };
    /// FE00: matching ended because the requestor cancelled it.
    pub const CANCELLED: Self = Self { code: 0xFE00, comment: Cow::Borrowed("") };

    /// Any code. The comment is cut to [`COMMENT_LEN_MAX`] characters, those that a long string
    /// does not allow replaced.
    pub fn from_code(code: u16, comment: impl Into<Cow<'static, str>>) -> Self {
        let comment = comment.into();
        let allowed = |c: char| matches!(c, ' '..='~') && c != '\\';
        if comment.len() <= COMMENT_LEN_MAX && comment.chars().all(allowed) {
            return Self { code, comment };
        }
        let clean = comment.chars().take(COMMENT_LEN_MAX).map(|c| if allowed(c) { c } else { '?' });
        Self { code, comment: Cow::Owned(clean.collect()) }
    }

    /// The code as it travels (0000,0900).
    pub fn code(&self) -> u16 {
        self.code
    }

    /// The comment, empty when there is none.
    pub fn comment(&self) -> &str {
        &self.comment
    }

    /// The family.
    pub fn kind(&self) -> StatusKind {
        match self.code {
            0x0000 => StatusKind::Success,
            0x0001 | 0x0107 | 0x0116 | 0xB000..=0xBFFF => StatusKind::Warning,
            0xA700..=0xA7FF => StatusKind::OutOfResources,
            0xA900..=0xA9FF => StatusKind::DoesNotMatch,
            0xC000..=0xCFFF => StatusKind::CannotUnderstand,
            _ => StatusKind::OtherFailure,
        }
    }

    /// Whether the instance is stored.
    pub fn is_stored(&self) -> bool {
        matches!(self.kind(), StatusKind::Success | StatusKind::Warning)
    }
}

impl fmt::Display for StoreStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04X}", self.code)?;
        if self.comment.is_empty() { Ok(()) } else { write!(f, " ({})", self.comment) }
    }
}

impl fmt::Debug for StoreStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_are_cut_and_cleaned() {
        let status = StoreStatus::cannot_understand("é\\\n".to_owned() + &"x".repeat(100));
        assert_eq!(status.comment().len(), COMMENT_LEN_MAX);
        assert!(status.comment().starts_with("???xx"));
        assert_eq!(StoreStatus::out_of_resources("disk is full").comment(), "disk is full");
    }

    #[test]
    fn kinds_follow_the_standards_ranges() {
        assert_eq!(StoreStatus::from_code(0xB006, "").kind(), StatusKind::Warning);
        assert_eq!(StoreStatus::from_code(0xA701, "").kind(), StatusKind::OutOfResources);
        assert_eq!(StoreStatus::from_code(0x0122, "").kind(), StatusKind::OtherFailure);
        assert!(StoreStatus::SUCCESS.is_stored() && !StoreStatus::does_not_match("").is_stored());
    }
}
