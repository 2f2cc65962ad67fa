//! What a transfer syntax UID says about the bytes: only as much as a reader of elements needs.
//!
//! Nothing is transcoded, so no codec and no registry: every syntax is one of these five layouts.

use crate::uid::Uid;

/// How the elements of a data set are laid out, PS3.5 annex A.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Implicit VR, little endian.
    ImplicitLe,
    /// Explicit VR, little endian, native pixels.
    ExplicitLe,
    /// Explicit VR, big endian, native pixels (retired, still met).
    ExplicitBe,
    /// Explicit VR, little endian, deflated as a whole.
    DeflatedLe,
    /// Explicit VR, little endian, pixels encapsulated in fragments. Also any syntax not known here:
    /// since 1996 every new one has been of this layout (PS3.5 annex A.4).
    EncapsulatedLe,
}

impl Layout {
    /// The layout of a transfer syntax.
    pub fn of(transfer_syntax: &Uid) -> Self {
        match transfer_syntax.as_str() {
            // The latter two: Papyrus 3 and GE's private syntax with big-endian pixels.
            "1.2.840.10008.1.2" | "1.2.840.10008.1.20" | "1.2.840.113619.5.2" => Self::ImplicitLe,
            "1.2.840.10008.1.2.1" => Self::ExplicitLe,
            "1.2.840.10008.1.2.2" => Self::ExplicitBe,
            // The latter two: JPIP Referenced Deflate and its HTJ2K form.
            "1.2.840.10008.1.2.1.99" | "1.2.840.10008.1.2.4.95" | "1.2.840.10008.1.2.4.205" => Self::DeflatedLe,
            _ => Self::EncapsulatedLe,
        }
    }
}
