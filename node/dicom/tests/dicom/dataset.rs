//! Data sets written by hand, right or wrong, in each coding.

use maillage_dicom::Uid;

pub(crate) const SYNTAXES: [Uid; 4] = [Uid::IMPLICIT_LE, Uid::EXPLICIT_LE, Uid::EXPLICIT_BE, Uid::JPEG_LOSSLESS_SV1];

/// Writes elements in a transfer syntax.
#[derive(Debug, Clone)]
pub(crate) struct Elements {
    implicit: bool,
    big_endian: bool,
    pub(crate) bytes: Vec<u8>,
}

impl Elements {
    pub(crate) fn new(transfer_syntax: &Uid) -> Self {
        let implicit = *transfer_syntax == Uid::IMPLICIT_LE;
        Self { implicit, big_endian: *transfer_syntax == Uid::EXPLICIT_BE, bytes: Vec::new() }
    }

    pub(crate) fn u16(&self, number: u16) -> [u8; 2] {
        if self.big_endian { number.to_be_bytes() } else { number.to_le_bytes() }
    }

    fn put_u16(&mut self, number: u16) {
        let bytes = self.u16(number);
        self.bytes.extend_from_slice(&bytes);
    }

    fn put_u32(&mut self, number: u32) {
        let bytes = if self.big_endian { number.to_be_bytes() } else { number.to_le_bytes() };
        self.bytes.extend_from_slice(&bytes);
    }

    /// A header with any length, true or not.
    pub(crate) fn header(mut self, tag: (u16, u16), vr: &str, length: u32) -> Self {
        self.put_u16(tag.0);
        self.put_u16(tag.1);
        if self.implicit || tag.0 == 0xFFFE {
            self.put_u32(length);
            return self;
        }
        self.bytes.extend_from_slice(vr.as_bytes());
        if ["OB", "OW", "SQ", "UN", "UT"].contains(&vr) {
            self.put_u16(0);
            self.put_u32(length);
        } else {
            self.put_u16(u16::try_from(length).expect("a short value"));
        }
        self
    }

    pub(crate) fn value(self, tag: (u16, u16), vr: &str, value: &[u8]) -> Self {
        let mut written = self.header(tag, vr, u32::try_from(value.len()).expect("a length"));
        written.bytes.extend_from_slice(value);
        written
    }

    /// A text, padded to an even length.
    pub(crate) fn text(self, tag: (u16, u16), vr: &str, text: &str) -> Self {
        let padding = if vr == "UI" { "\0" } else { " " };
        let text = if text.len() % 2 == 1 { format!("{text}{padding}") } else { text.to_owned() };
        self.value(tag, vr, text.as_bytes())
    }

    pub(crate) fn short(self, tag: (u16, u16), number: u16) -> Self {
        let value = self.u16(number);
        self.value(tag, "US", &value)
    }

    pub(crate) fn item(self, length: u32) -> Self {
        self.header((0xFFFE, 0xE000), "", length)
    }

    pub(crate) fn end_item(self) -> Self {
        self.header((0xFFFE, 0xE00D), "", 0)
    }

    pub(crate) fn end_sequence(self) -> Self {
        self.header((0xFFFE, 0xE0DD), "", 0)
    }

    /// The four UIDs, a patient, an accession number with its issuer, a sequence.
    pub(crate) fn identity(self) -> Self {
        self.text((0x0008, 0x0016), "UI", Uid::CT_IMAGE_STORAGE.as_str())
            .text((0x0008, 0x0018), "UI", "1.2.3.4")
            .text((0x0008, 0x0050), "SH", "ACC1")
            .header((0x0008, 0x0051), "SQ", u32::MAX)
            .item(u32::MAX)
            .text((0x0040, 0x0031), "UT", "HOSPITAL")
            .end_item()
            .end_sequence()
            .text((0x0010, 0x0010), "PN", "DOE^JANE")
            .text((0x0010, 0x0020), "LO", "P1")
            .text((0x0020, 0x000D), "UI", "1.2.3")
            .text((0x0020, 0x000E), "UI", "1.2.3.1")
    }

    /// Rows, columns, samples, bits.
    pub(crate) fn geometry(self, rows: u16, columns: u16) -> Self {
        self.short((0x0028, 0x0002), 1)
            .text((0x0028, 0x0004), "CS", "MONOCHROME2")
            .short((0x0028, 0x0010), rows)
            .short((0x0028, 0x0011), columns)
            .short((0x0028, 0x0100), 16)
    }

    pub(crate) fn pixels(self, len: usize) -> Self {
        self.value((0x7FE0, 0x0010), "OW", &vec![7; len])
    }

    pub(crate) fn fragments(self, fragments: &[usize]) -> Self {
        let mut written = self.header((0x7FE0, 0x0010), "OB", u32::MAX).item(0);
        for &len in fragments {
            written = written.item(u32::try_from(len).expect("a length"));
            written.bytes.extend_from_slice(&vec![7; len]);
        }
        written.end_sequence()
    }
}

/// A sound image of 4 x 4 pixels.
pub(crate) fn image(transfer_syntax: &Uid) -> Vec<u8> {
    let head = Elements::new(transfer_syntax).identity().geometry(4, 4);
    if *transfer_syntax == Uid::JPEG_LOSSLESS_SV1 { head.fragments(&[20, 14]).bytes } else { head.pixels(32).bytes }
}

/// Deflates as PS3.5 annex A.5 does: without a zlib header.
pub(crate) fn deflate(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).expect("written to memory");
    encoder.finish().expect("written to memory")
}
