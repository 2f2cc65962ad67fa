//! Small instances as scanners send them, and what comes back of them.

use std::net::{Ipv4Addr, SocketAddr};

use bytes::{BufMut as _, Bytes, BytesMut};
use maillage_dicom::dimse::scp::StoreRequest;
use maillage_dicom::part10::{self, FileMeta};
use maillage_dicom::{AeTitle, Uid};

use crate::rng::Rng;

/// The storage SOP class of each modality here (PS3.6 annex A); what is not listed goes as CT.
const SOP_CLASSES: [(&str, &str); 5] = [
    ("CT", "1.2.840.10008.5.1.4.1.1.2"),
    ("MR", "1.2.840.10008.5.1.4.1.1.4"),
    ("DX", "1.2.840.10008.5.1.4.1.1.1.1"),
    ("PT", "1.2.840.10008.5.1.4.1.1.128"),
    ("NM", "1.2.840.10008.5.1.4.1.1.20"),
];
/// Of an image; its samples have two bytes.
const COLUMNS: u16 = 16;
const EXPLICIT_LITTLE_ENDIAN: &str = "1.2.840.10008.1.2.1";

/// An instance as its modality sends it.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    pub(crate) study: String,
    pub(crate) sop_instance: String,
    pub(crate) data_set: Bytes,
}

/// Of which examination an instance is.
#[derive(Debug, Clone)]
pub(crate) struct Of<'a> {
    pub(crate) study: &'a str,
    pub(crate) accession: &'a str,
    pub(crate) patient: &'a str,
    /// Who gave the patient that identifier; empty where the images do not say.
    pub(crate) issuer: &'a str,
    /// Where it was made; empty where the images do not say.
    pub(crate) institution: &'a str,
    pub(crate) modality: &'a str,
}

/// The study of an instance that a [`Sample`] is.
pub(crate) fn study_of(sop_instance: &str) -> &str {
    let series = sop_instance.rsplit_once('.').map_or(sop_instance, |(series, _)| series);
    series.rsplit_once('.').map_or(series, |(study, _)| study)
}

impl Sample {
    /// Instance `number` of a study, with about `len` bytes of pixels that no other seed gives: of every second seed
    /// some that the codec shortens, of the others some that it cannot.
    pub(crate) fn new(of: &Of<'_>, number: u64, seed: u64, len: u64) -> Self {
        let sop_instance = format!("{}.1.{number}", of.study);
        let rows = u16::try_from(len.div_ceil(2 * u64::from(COLUMNS))).unwrap_or(u16::MAX).max(1);
        let mut out = BytesMut::new();
        put_text(&mut out, 0x0008_0016, b"UI", sop_class_of(of.modality), 0);
        put_text(&mut out, 0x0008_0018, b"UI", &sop_instance, 0);
        put_text(&mut out, 0x0008_0050, b"SH", of.accession, b' ');
        put_text(&mut out, 0x0008_0060, b"CS", of.modality, b' ');
        if !of.institution.is_empty() {
            put_text(&mut out, 0x0008_0080, b"LO", of.institution, b' ');
        }
        put_text(&mut out, 0x0010_0010, b"PN", &format!("NAME OF^{}", of.patient), b' ');
        put_text(&mut out, 0x0010_0020, b"LO", of.patient, b' ');
        if !of.issuer.is_empty() {
            put_text(&mut out, 0x0010_0021, b"LO", of.issuer, b' ');
        }
        put_text(&mut out, 0x0020_000d, b"UI", of.study, 0);
        put_text(&mut out, 0x0020_000e, b"UI", &format!("{}.1", of.study), 0);
        put_text(&mut out, 0x0020_0013, b"IS", &number.to_string(), b' ');
        put_number(&mut out, 0x0028_0002, 1);
        put_text(&mut out, 0x0028_0004, b"CS", "MONOCHROME2", b' ');
        let shape = [(0x0010, rows), (0x0011, COLUMNS), (0x0100, 16), (0x0101, 12), (0x0102, 11), (0x0103, 0)];
        for (element, value) in shape {
            put_number(&mut out, 0x0028_0000 | element, value);
        }
        let mut pixels = noise(seed, u64::from(rows) * u64::from(COLUMNS) * 2);
        if seed.is_multiple_of(2) {
            pixels.iter_mut().skip(1).step_by(2).for_each(|upper| *upper &= 0x0f);
        }
        out.put_slice(&[0xe0, 0x7f, 0x10, 0x00]);
        out.put_slice(b"OW\0\0");
        out.put_u32_le(u32::try_from(pixels.len()).unwrap_or(0));
        out.put_slice(&pixels);
        Self { study: of.study.to_owned(), sop_instance, data_set: out.freeze() }
    }

    /// As its data set says, which begins with it (0008,0016).
    pub(super) fn sop_class(&self) -> Uid {
        let value = self.data_set.get(6..8).and_then(|len| {
            let len = usize::from(u16::from_le_bytes([*len.first()?, *len.get(1)?]));
            std::str::from_utf8(self.data_set.get(8..8 + len)?).ok()
        });
        Self::uid(value.unwrap_or_default().trim_end_matches('\0'))
    }

    fn uid(text: &str) -> Uid {
        Uid::parse(text).unwrap_or(Uid::IMPLEMENTATION_CLASS)
    }

    /// The C-STORE that carries it, of who calls under this AE title.
    pub(crate) fn request(&self, calling: &str) -> Option<StoreRequest> {
        Some(StoreRequest {
            calling_ae: AeTitle::parse(calling).ok()?,
            called_ae: AeTitle::parse("MAILLAGE").ok()?,
            remote: SocketAddr::from((Ipv4Addr::LOCALHOST, 11112)),
            sop_class: self.sop_class(),
            sop_instance: Self::uid(&self.sop_instance),
            transfer_syntax: Self::uid(EXPLICIT_LITTLE_ENDIAN),
            message_id: 1,
            move_originator: None,
        })
    }

    /// The file that a STOW-RS request carries.
    pub(crate) fn file(&self) -> Bytes {
        let header = part10::header(&FileMeta {
            sop_class: self.sop_class(),
            sop_instance: Self::uid(&self.sop_instance),
            transfer_syntax: Self::uid(EXPLICIT_LITTLE_ENDIAN),
            source_ae: None,
        });
        [header, self.data_set.clone()].concat().into()
    }
}

fn sop_class_of(modality: &str) -> &'static str {
    SOP_CLASSES.iter().find(|(known, _)| *known == modality).map_or(SOP_CLASSES[0].1, |(_, class)| *class)
}

/// An element of the explicit VR little endian syntax, with a value shorter than 64 KiB.
fn put(out: &mut BytesMut, tag: u32, vr: &[u8; 2], value: &[u8]) {
    let [upper, lower] = [tag >> 16, tag & 0xffff].map(|half| u16::try_from(half).unwrap_or(0));
    out.put_u16_le(upper);
    out.put_u16_le(lower);
    out.put_slice(vr);
    out.put_u16_le(u16::try_from(value.len()).unwrap_or(0));
    out.put_slice(value);
}

fn put_text(out: &mut BytesMut, tag: u32, vr: &[u8; 2], value: &str, pad: u8) {
    let mut value = value.as_bytes().to_vec();
    if value.len() % 2 == 1 {
        value.push(pad);
    }
    put(out, tag, vr, &value);
}

fn put_number(out: &mut BytesMut, tag: u32, value: u16) {
    put(out, tag, b"US", &value.to_le_bytes());
}

/// Bytes that no other seed gives.
fn noise(seed: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
    Rng::new(seed).fill(&mut bytes);
    bytes
}

/// The files of a `multipart/related` answer: each one's SOP Instance UID and data set.
pub(crate) fn parts(content_type: &str, body: &Bytes) -> Result<Vec<(String, Bytes)>, String> {
    let boundary = content_type.split(';').find_map(|part| part.trim().strip_prefix("boundary="));
    let boundary = boundary.ok_or("no boundary")?.trim_matches('"');
    let (open, close) = (format!("--{boundary}\r\n"), format!("\r\n--{boundary}"));
    let mut files = Vec::new();
    let mut rest = body.clone();
    while let Some(at) = find(&rest, open.as_bytes()) {
        let part = rest.slice(at + open.len()..);
        let head = find(&part, b"\r\n\r\n").ok_or("a part without an end of its head")?;
        let content = part.slice(head + 4..);
        let end = find(&content, close.as_bytes()).ok_or("a part without an end")?;
        let file = part10::parse(content.slice(..end)).map_err(|error| error.to_string())?;
        files.push((file.meta.sop_instance.as_str().to_owned(), file.dataset));
        rest = content.slice(end + 2..);
    }
    Ok(files)
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_is_sent_under_the_sop_class_of_its_modality() {
        for (modality, class) in SOP_CLASSES {
            let of = Of { study: "2.25.7", accession: "A7", patient: "P7", issuer: "", institution: "", modality };
            let sample = Sample::new(&of, 1, 5, 100);
            assert_eq!(sample.sop_class().as_str(), class);
            assert_eq!(sample.request("CT1").expect("a request").sop_class.as_str(), class);
        }
    }

    #[test]
    fn a_multipart_answer_is_taken_apart_into_the_data_sets_that_went_in() {
        let of = Of { study: "2.25.7", accession: "A7", patient: "P7", issuer: "", institution: "", modality: "CT" };
        let samples = [Sample::new(&of, 1, 5, 100), Sample::new(&of, 2, 6, 301)];
        let mut body = Vec::new();
        for sample in &samples {
            body.extend_from_slice(b"--xyz\r\nContent-Type: application/dicom\r\n\r\n");
            body.extend_from_slice(&sample.file());
            body.extend_from_slice(b"\r\n");
        }
        body.extend_from_slice(b"--xyz--\r\n");
        let files = parts("multipart/related; type=\"application/dicom\"; boundary=xyz", &body.into()).expect("parts");
        let expected: Vec<_> = samples.map(|sample| (sample.sop_instance, sample.data_set)).into();
        assert_eq!(files, expected);
    }
}
