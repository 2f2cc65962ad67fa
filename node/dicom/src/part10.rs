//! Part 10 files: a preamble, file meta information (group 0002), a data set (PS3.10 section 7).
//!
//! A file is taken apart without copying its data set, and the data set is what is kept: senders
//! rewrite the file meta information on every hop. [`header`] makes a data set a file again.
//!
//! Also taken are the files that real archives hold beside the standard's: file meta information
//! without a preamble, and a bare data set from group 0008 on, whose transfer syntax is then told by
//! its first bytes.

use bytes::{BufMut, Bytes, BytesMut};
use dicom_core::Tag;
use dicom_dictionary_std::tags;

use crate::ae_title::AeTitle;
use crate::attributes;
use crate::element::{Coding, Header, UNDEFINED, header as element_header};
use crate::prescan;
use crate::rejection::Rejection;
use crate::uid::Uid;

/// The implementation version that our files and associations name, PS3.7 annex D.3.3.2.
pub const IMPLEMENTATION_VERSION: &str = "MAILLAGE_0_1";

/// Bytes of the preamble, PS3.10 section 7.1.
const PREAMBLE_LEN: usize = 128;
const MAGIC: &[u8; 4] = b"DICM";
/// Most bytes of file meta information. The standard's elements take some 300; private information
/// (0002,0102) may be longer.
const META_LEN_MAX: usize = 1 << 20;
/// Most elements of file meta information; the standard knows some 20.
const META_ELEMENTS_MAX: usize = 128;

/// What the file meta information says of its data set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileMeta {
    /// Media Storage SOP Class UID (0002,0002).
    pub sop_class: Uid,
    /// Media Storage SOP Instance UID (0002,0003).
    pub sop_instance: Uid,
    /// Transfer Syntax UID (0002,0010).
    pub transfer_syntax: Uid,
    /// Source Application Entity Title (0002,0016), when there is a valid one.
    pub source_ae: Option<AeTitle>,
}

/// What the first 128 bytes of a file are. Only zeros are ever written back: a preamble is where an
/// executable can hide in a file that is an image at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PreambleKind {
    /// No preamble: the file begins with its meta information or its data set.
    Absent,
    /// All zeros, as nearly always.
    Zero,
    /// A TIFF header: the file can be read both ways, PS3.10 section 7.1.
    Tiff,
    /// Anything else: to be flagged.
    Foreign,
}

/// A file taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part10 {
    /// What it says of the data set. Where the file does not say it, what the data set says.
    pub meta: FileMeta,
    /// What stood before it.
    pub preamble: PreambleKind,
    /// The data set, a slice of the file: not scanned yet, unless the meta information was
    /// incomplete.
    pub dataset: Bytes,
}

/// Takes a file apart.
///
/// # Errors
/// A file that is neither Part 10 nor a bare data set, whose meta information is broken or too
/// large, or which says neither there nor in its data set what it is.
pub fn parse(file: Bytes) -> Result<Part10, Rejection> {
    let (preamble, meta_offset) = find_meta(&file);
    let meta = match meta_offset {
        Some(offset) => read_meta(&file, offset)?,
        None => RawMeta::default(),
    };
    let dataset = file.slice(meta.end..);
    let transfer_syntax = match meta.transfer_syntax {
        Some(uid) => uid,
        None if meta_offset.is_some() => guess_syntax(&dataset).ok_or(Rejection::NoTransferSyntax)?,
        None => guess_syntax(&dataset).ok_or(Rejection::NotDicom)?,
    };
    let (sop_class, sop_instance) = match (meta.sop_class, meta.sop_instance) {
        (Some(sop_class), Some(sop_instance)) => (sop_class, sop_instance),
        _ => {
            let scan = prescan::scan(&dataset, &transfer_syntax)?;
            let read = attributes::read(scan.head(&dataset), &transfer_syntax)?;
            (read.sop_class_uid, read.sop_instance_uid)
        }
    };
    let meta = FileMeta { sop_class, sop_instance, transfer_syntax, source_ae: meta.source_ae };
    Ok(Part10 { meta, preamble, dataset })
}

/// The preamble and file meta information for a data set: followed by it, a valid file.
pub fn header(meta: &FileMeta) -> Bytes {
    let mut elements = BytesMut::with_capacity(512);
    put_long(&mut elements, 0x0001, b"OB", &[0, 1]);
    put_uid(&mut elements, 0x0002, &meta.sop_class);
    put_uid(&mut elements, 0x0003, &meta.sop_instance);
    put_uid(&mut elements, 0x0010, &meta.transfer_syntax);
    put_uid(&mut elements, 0x0012, &Uid::IMPLEMENTATION_CLASS);
    put_short(&mut elements, 0x0013, b"SH", IMPLEMENTATION_VERSION.as_bytes(), b' ');
    if let Some(source_ae) = &meta.source_ae {
        put_short(&mut elements, 0x0016, b"AE", source_ae.as_str().as_bytes(), b' ');
    }
    let mut file = BytesMut::with_capacity(PREAMBLE_LEN + MAGIC.len() + 12 + elements.len());
    file.put_bytes(0, PREAMBLE_LEN);
    file.put_slice(MAGIC);
    let length = u32::try_from(elements.len()).unwrap_or(u32::MAX);
    put_short(&mut file, 0x0000, b"UL", &length.to_le_bytes(), 0);
    file.put_slice(&elements);
    file.freeze()
}

/// What precedes the meta information, and where that begins, if there is any.
fn find_meta(file: &[u8]) -> (PreambleKind, Option<usize>) {
    if file.get(PREAMBLE_LEN..PREAMBLE_LEN + MAGIC.len()) == Some(MAGIC) {
        return (preamble_kind(&file[..PREAMBLE_LEN]), Some(PREAMBLE_LEN + MAGIC.len()));
    }
    if file.starts_with(MAGIC) {
        return (PreambleKind::Absent, Some(MAGIC.len()));
    }
    let begins_with_meta = file.starts_with(&[0x02, 0x00]) && file.get(4..6).is_some_and(is_vr);
    (PreambleKind::Absent, begins_with_meta.then_some(0))
}

fn preamble_kind(preamble: &[u8]) -> PreambleKind {
    if preamble.iter().all(|&byte| byte == 0) {
        PreambleKind::Zero
    } else if [b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"].iter().any(|&magic| preamble.starts_with(magic)) {
        PreambleKind::Tiff
    } else {
        PreambleKind::Foreign
    }
}

#[derive(Default)]
struct RawMeta {
    sop_class: Option<Uid>,
    sop_instance: Option<Uid>,
    transfer_syntax: Option<Uid>,
    source_ae: Option<AeTitle>,
    /// Where the data set begins.
    end: usize,
}

/// Reads group 0002, always explicit VR little endian, until its declared length or another group:
/// the group length is missing or wrong in real files, so it is not relied on.
fn read_meta(file: &[u8], offset: usize) -> Result<RawMeta, Rejection> {
    let mut meta = RawMeta { end: offset, ..RawMeta::default() };
    for _ in 0..META_ELEMENTS_MAX {
        let at = meta.end;
        if !file.get(at..).is_some_and(|rest| rest.starts_with(&[0x02, 0x00])) {
            return Ok(meta);
        }
        let broken = Rejection::BrokenMeta { offset: at };
        let Header { tag, length, len, .. } =
            element_header(file, at, Coding::ExplicitLe).map_err(|_| broken.clone())?;
        let begin = at + len;
        let end = usize::try_from(length).ok().and_then(|length| begin.checked_add(length));
        let end = end.filter(|&end| length != UNDEFINED && end <= file.len() && end - offset <= META_LEN_MAX);
        let value = &file[begin..end.ok_or(broken)?];
        let uid = || match Uid::from_padded(value) {
            Err(crate::uid::UidError::Empty) => Ok(None),
            other => other.map(Some).map_err(|source| Rejection::InvalidUid { tag, source }),
        };
        match tag {
            tags::MEDIA_STORAGE_SOP_CLASS_UID => meta.sop_class = uid()?,
            tags::MEDIA_STORAGE_SOP_INSTANCE_UID => meta.sop_instance = uid()?,
            tags::TRANSFER_SYNTAX_UID => meta.transfer_syntax = uid()?,
            tags::SOURCE_APPLICATION_ENTITY_TITLE => meta.source_ae = AeTitle::from_padded(value).ok(),
            _ => {}
        }
        meta.end = begin + value.len();
    }
    Err(Rejection::BrokenMeta { offset: meta.end })
}

/// Tells the transfer syntax of native pixels by the first element, which is of group 0008 in any
/// composite object.
fn guess_syntax(dataset: &[u8]) -> Option<Uid> {
    let explicit = dataset.get(4..6).is_some_and(is_vr);
    match dataset.get(..4)? {
        [0x08, 0x00, ..] if explicit => Some(Uid::EXPLICIT_LE),
        [0x08, 0x00, ..] => Some(Uid::IMPLICIT_LE),
        [0x00, 0x08, ..] if explicit => Some(Uid::EXPLICIT_BE),
        _ => None,
    }
}

fn is_vr(letters: &[u8]) -> bool {
    letters.iter().all(u8::is_ascii_uppercase)
}

fn put_uid(out: &mut BytesMut, element: u16, uid: &Uid) {
    put_short(out, element, b"UI", uid.as_str().as_bytes(), 0);
}

/// An element with a 16-bit length, padded to an even one.
fn put_short(out: &mut BytesMut, element: u16, vr: &[u8; 2], value: &[u8], padding: u8) {
    let padded = value.len() + value.len() % 2;
    put_tag(out, Tag(0x0002, element), vr);
    out.put_u16_le(u16::try_from(padded).unwrap_or(u16::MAX));
    out.put_slice(value);
    out.put_bytes(padding, padded - value.len());
}

/// An element with a 32-bit length.
fn put_long(out: &mut BytesMut, element: u16, vr: &[u8; 2], value: &[u8]) {
    put_tag(out, Tag(0x0002, element), vr);
    out.put_u16_le(0);
    out.put_u32_le(u32::try_from(value.len()).unwrap_or(u32::MAX));
    out.put_slice(value);
}

fn put_tag(out: &mut BytesMut, tag: Tag, vr: &[u8; 2]) {
    out.put_u16_le(tag.group());
    out.put_u16_le(tag.element());
    out.put_slice(vr);
}
