//! The header of one data element: tag, value representation, length (PS3.5 section 7.1).

use dicom_core::Tag;

use crate::rejection::Rejection;

/// The length that says "until a delimiter", PS3.5 section 7.1.1.
pub(crate) const UNDEFINED: u32 = u32::MAX;

pub(crate) const ITEM: Tag = Tag(0xFFFE, 0xE000);
pub(crate) const ITEM_DELIMITER: Tag = Tag(0xFFFE, 0xE00D);
pub(crate) const SEQUENCE_DELIMITER: Tag = Tag(0xFFFE, 0xE0DD);

/// How numbers and value representations are written at one place of a data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Coding {
    ImplicitLe,
    ExplicitLe,
    ExplicitBe,
}

impl Coding {
    pub(crate) fn u16(self, bytes: [u8; 2]) -> u16 {
        if self == Self::ExplicitBe { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) }
    }

    pub(crate) fn u32(self, bytes: [u8; 4]) -> u32 {
        if self == Self::ExplicitBe { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
    }
}

/// A decoded header.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Header {
    pub(crate) tag: Tag,
    /// The two letters; `None` where the VR is implicit and for items and delimiters.
    pub(crate) vr: Option<[u8; 2]>,
    pub(crate) length: u32,
    /// Bytes of the header itself.
    pub(crate) len: usize,
}

/// Decodes the header at `offset`; `bytes` ends where the enclosing item ends.
pub(crate) fn header(bytes: &[u8], offset: usize, coding: Coding) -> Result<Header, Rejection> {
    let at = bytes.get(offset..).unwrap_or_default();
    let truncated = Rejection::Truncated { offset: bytes.len() };
    let Some(&[a, b, c, d, e, f, g, h]) = at.first_chunk::<8>() else {
        return Err(truncated);
    };
    let tag = Tag(coding.u16([a, b]), coding.u16([c, d]));
    if coding == Coding::ImplicitLe || tag.group() == 0xFFFE {
        return Ok(Header { tag, vr: None, length: coding.u32([e, f, g, h]), len: 8 });
    }
    let vr = [e, f];
    if !vr.iter().all(u8::is_ascii_uppercase) {
        return Err(Rejection::BadVr { tag, offset });
    }
    if has_short_length(vr) {
        return Ok(Header { tag, vr: Some(vr), length: u32::from(coding.u16([g, h])), len: 8 });
    }
    let Some(&[.., i, j, k, l]) = at.first_chunk::<12>() else {
        return Err(truncated);
    };
    Ok(Header { tag, vr: Some(vr), length: coding.u32([i, j, k, l]), len: 12 })
}

/// Whether the length field has 16 bits. All representations added since 1993, and so any unknown
/// one, have 32 (PS3.5 section 7.1.2).
fn has_short_length(vr: [u8; 2]) -> bool {
    matches!(
        &vr,
        b"AE"
            | b"AS"
            | b"AT"
            | b"CS"
            | b"DA"
            | b"DS"
            | b"DT"
            | b"FD"
            | b"FL"
            | b"IS"
            | b"LO"
            | b"LT"
            | b"PN"
            | b"SH"
            | b"SL"
            | b"SS"
            | b"ST"
            | b"TM"
            | b"UI"
            | b"UL"
            | b"US"
    )
}
