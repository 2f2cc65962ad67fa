//! Why a data set or a file from outside was refused.
//!
//! One enum for the pre-scan, the attributes and Part 10, because the sender is told and the
//! counter `maillage_rejected_total{reason}` counts the same way for all of them. Tags, offsets and
//! lengths only: never a value, which may be a patient's.

use dicom_core::Tag;

use crate::uid::UidError;

/// Why a data set or a file was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// The bytes end inside an element's header, or with a sequence still open.
    #[error("data set is cut short at byte {offset}")]
    Truncated {
        /// Where the bytes end.
        offset: usize,
    },
    /// A declared length is more than what is left of the data set or of the enclosing item.
    #[error("element {tag} at byte {offset} declares {declared} bytes where {left} are left")]
    LengthBeyondEnd {
        /// The element.
        tag: Tag,
        /// Where it begins.
        offset: usize,
        /// Its declared length in bytes.
        declared: u32,
        /// Bytes that are left.
        left: usize,
    },
    /// An undefined length where PS3.5 section 7.5 and annex A.4 allow none.
    #[error("element {tag} at byte {offset} has an undefined length where none may be")]
    UndefinedLength {
        /// The element.
        tag: Tag,
        /// Where it begins.
        offset: usize,
    },
    /// Sequences nest deeper than [`crate::prescan::DEPTH_MAX`].
    #[error("sequences nest too deep at byte {offset}")]
    TooDeep {
        /// Where the first sequence too many begins.
        offset: usize,
    },
    /// More elements than [`crate::prescan::ELEMENTS_MAX`].
    #[error("data set has too many elements")]
    TooManyElements,
    /// Two bytes that are no value representation, in an explicit VR transfer syntax.
    #[error("element {tag} at byte {offset} has no valid value representation")]
    BadVr {
        /// The element.
        tag: Tag,
        /// Where it begins.
        offset: usize,
    },
    /// A tag that may not stand where it stands: a stray delimiter, a command or file meta element.
    #[error("element {tag} at byte {offset} may not stand there")]
    UnexpectedTag {
        /// The element.
        tag: Tag,
        /// Where it begins.
        offset: usize,
    },
    /// An element that says whose image it is stands twice with different values: readers would
    /// differ on which one counts.
    #[error("element {tag} is present twice with different values")]
    Duplicate {
        /// The element.
        tag: Tag,
    },
    /// A UID that must be there is absent or empty.
    #[error("element {tag} is missing")]
    MissingUid {
        /// The element.
        tag: Tag,
    },
    /// A UID that is none.
    #[error("element {tag} is not a valid uid: {source}")]
    InvalidUid {
        /// The element.
        tag: Tag,
        /// What is wrong with it.
        source: UidError,
    },
    /// A deflated data set that zlib cannot inflate.
    #[error("deflated data set is broken")]
    BrokenDeflate,
    /// A deflated data set that grows more than [`crate::prescan::INFLATE_RATIO_MAX`] to one.
    #[error("deflated data set inflates more than 100 to 1")]
    InflateRatio,
    /// A deflated data set that grows over [`crate::prescan::INFLATED_LEN_MAX`].
    #[error("deflated data set inflates to too many bytes")]
    InflateSize,
    /// Neither a Part 10 file nor a bare data set.
    #[error("not a dicom file")]
    NotDicom,
    /// File meta information that breaks PS3.10 section 7.1 or the bounds of [`crate::part10`].
    #[error("file meta information is broken at byte {offset}")]
    BrokenMeta {
        /// Where.
        offset: usize,
    },
    /// No transfer syntax is declared, and the bytes do not tell it.
    #[error("transfer syntax is not declared")]
    NoTransferSyntax,
}

impl Rejection {
    /// A short name for a metric's label; stable.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Truncated { .. } => "truncated",
            Self::LengthBeyondEnd { .. } => "length",
            Self::UndefinedLength { .. } => "undefined_length",
            Self::TooDeep { .. } => "too_deep",
            Self::TooManyElements => "too_many_elements",
            Self::BadVr { .. } => "bad_vr",
            Self::UnexpectedTag { .. } => "unexpected_tag",
            Self::Duplicate { .. } => "duplicate",
            Self::MissingUid { .. } => "missing_uid",
            Self::InvalidUid { .. } => "invalid_uid",
            Self::BrokenDeflate => "broken_deflate",
            Self::InflateRatio => "inflate_ratio",
            Self::InflateSize => "inflate_size",
            Self::NotDicom => "not_dicom",
            Self::BrokenMeta { .. } => "broken_meta",
            Self::NoTransferSyntax => "no_transfer_syntax",
        }
    }
}
