//! Short data sets as the DICOM JSON model has them (PS3.18 annex F), which is what every interface of a
//! node works on: read from bytes, and written as bytes.
//!
//! For operations of a service class, not for images: a data set is held whole, bytes as base64. What
//! is read has passed the pre-scan; its bounds are checked again all the same, and nothing is allocated
//! by a declared length.

mod write;

use data_encoding::BASE64;
use dicom_core::dictionary::{DataDictionary, DataDictionaryEntry};
use dicom_core::{Tag, VR};
use dicom_dictionary_std::StandardDataDictionary;
use serde_json::{Map, Value, json};

use crate::attributes::text::Charset;
use crate::element::{Coding, Header, ITEM, ITEM_DELIMITER, SEQUENCE_DELIMITER, UNDEFINED, header};
use crate::prescan::coding_of;
use crate::rejection::Rejection;
use crate::transfer_syntax::Layout;
use crate::uid::Uid;

pub use write::{WriteError, write};

/// The deepest nesting of sequences that is read or written.
pub const DEPTH_MAX: usize = 8;
/// The most elements and items, all together.
pub const ELEMENTS_MAX: usize = 100_000;

/// Specific Character Set.
const CHARACTER_SET: Tag = Tag(0x0008, 0x0005);

/// Why bytes are no such data set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Its structure is broken.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// Over a bound.
    #[error("too many elements, or sequences nested too deep")]
    TooLarge,
    /// A transfer syntax in which no operation's data set is.
    #[error("transfer syntax is neither implicit nor explicit VR little endian")]
    TransferSyntax,
    /// A value that is none of its representation.
    #[error("{0}: value has no length of its representation")]
    Value(Tag),
}

/// Reads a data set. Of an element that is there twice the last counts.
///
/// # Errors
/// See [`ReadError`].
pub fn read(bytes: &[u8], transfer_syntax: &Uid) -> Result<Map<String, Value>, ReadError> {
    let layout = Layout::of(transfer_syntax);
    if !matches!(layout, Layout::ImplicitLe | Layout::ExplicitLe) {
        return Err(ReadError::TransferSyntax);
    }
    let mut reader = Reader { bytes, at: 0, left: ELEMENTS_MAX };
    reader.elements(bytes.len(), false, coding_of(layout), &Charset::Ascii, DEPTH_MAX)
}

/// A tag as the model writes it.
pub(crate) fn key(tag: Tag) -> String {
    format!("{:04X}{:04X}", tag.group(), tag.element())
}

/// The representation that the dictionary gives a tag; UN for what it does not know.
pub(crate) fn dictionary_vr(tag: Tag) -> VR {
    if tag.element() == 0 {
        // Group Length, PS3.5 section 7.2.
        return VR::UL;
    }
    StandardDataDictionary.by_tag(tag).map_or(VR::UN, |entry| entry.vr().relaxed())
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    left: usize,
}

impl Reader<'_> {
    /// The elements up to `end`, or up to an item's delimiter before it.
    fn elements(
        &mut self,
        end: usize,
        delimited: bool,
        coding: Coding,
        charset: &Charset,
        depth: usize,
    ) -> Result<Map<String, Value>, ReadError> {
        let mut found = Map::new();
        let mut charset = charset.clone();
        while self.at < end {
            let header = self.header(end, coding)?;
            if header.tag == ITEM_DELIMITER && delimited {
                return Ok(found);
            }
            let value = self.element(&header, end, coding, &mut charset, depth)?;
            found.insert(key(header.tag), value);
        }
        if delimited { Err(self.cut(end)) } else { Ok(found) }
    }

    fn header(&mut self, end: usize, coding: Coding) -> Result<Header, ReadError> {
        self.left = self.left.checked_sub(1).ok_or(ReadError::TooLarge)?;
        let header = header(&self.bytes[..end], self.at, coding)?;
        self.at += header.len;
        Ok(header)
    }

    fn element(
        &mut self,
        header: &Header,
        end: usize,
        coding: Coding,
        charset: &mut Charset,
        depth: usize,
    ) -> Result<Value, ReadError> {
        let vr = header.vr.and_then(VR::from_binary).unwrap_or_else(|| match header.vr {
            None => dictionary_vr(header.tag),
            Some(_) => VR::UN,
        });
        let undefined = header.length == UNDEFINED;
        if vr == VR::SQ || undefined {
            // Of unknown representation and undefined length: implicit VR within (PS3.5 section 6.2.2, note).
            let within = if vr == VR::UN && coding == Coding::ExplicitLe { Coding::ImplicitLe } else { coding };
            let items = self.items(header.length, end, within, charset, depth)?;
            return Ok(if items.is_empty() { json!({ "vr": "SQ" }) } else { json!({ "vr": "SQ", "Value": items }) });
        }
        let value = self.value(header.length, end)?;
        if header.tag == CHARACTER_SET {
            *charset = Charset::parse(value);
        }
        element(header.tag, vr, value, charset)
    }

    fn value(&mut self, length: u32, end: usize) -> Result<&[u8], ReadError> {
        let len = usize::try_from(length).map_err(|_| self.cut(end))?;
        let value = self.bytes[self.at..end].get(..len).ok_or_else(|| self.cut(end))?;
        self.at += len;
        Ok(value)
    }

    fn items(
        &mut self,
        length: u32,
        end: usize,
        coding: Coding,
        charset: &Charset,
        depth: usize,
    ) -> Result<Vec<Value>, ReadError> {
        let depth = depth.checked_sub(1).ok_or(ReadError::TooLarge)?;
        let delimited = length == UNDEFINED;
        let end = if delimited { end } else { self.end_of(length, end)? };
        let mut items = Vec::new();
        while self.at < end {
            let header = self.header(end, coding)?;
            match header.tag {
                SEQUENCE_DELIMITER if delimited => return Ok(items),
                ITEM if header.length == UNDEFINED => {
                    items.push(Value::Object(self.elements(end, true, coding, charset, depth)?));
                }
                ITEM => {
                    let end = self.end_of(header.length, end)?;
                    items.push(Value::Object(self.elements(end, false, coding, charset, depth)?));
                }
                _ => return Err(self.cut(end)),
            }
        }
        if delimited { Err(self.cut(end)) } else { Ok(items) }
    }

    fn end_of(&self, length: u32, end: usize) -> Result<usize, ReadError> {
        let own = usize::try_from(length).ok().and_then(|length| self.at.checked_add(length));
        own.filter(|own| *own <= end).ok_or_else(|| self.cut(end))
    }

    fn cut(&self, end: usize) -> ReadError {
        Rejection::Truncated { offset: end.min(self.bytes.len()) }.into()
    }
}

/// An element with a value, in the model.
fn element(tag: Tag, vr: VR, value: &[u8], charset: &Charset) -> Result<Value, ReadError> {
    let name = vr.to_string();
    let values = match vr {
        _ if value.is_empty() => Vec::new(),
        VR::OB | VR::OW | VR::OD | VR::OF | VR::OL | VR::OV | VR::UN | VR::SQ => {
            return Ok(json!({ "vr": name, "InlineBinary": BASE64.encode(value) }));
        }
        VR::US | VR::SS | VR::UL | VR::SL | VR::UV | VR::SV | VR::FL | VR::FD | VR::AT => {
            numbers(vr, value).ok_or(ReadError::Value(tag))?
        }
        _ => texts(vr, &charset_for(vr, charset).decode(value).text),
    };
    Ok(if values.is_empty() { json!({ "vr": name }) } else { json!({ "vr": name, "Value": values }) })
}

/// Only some texts are written in the declared character set (PS3.5 section 6.1.2.2).
fn charset_for(vr: VR, charset: &Charset) -> Charset {
    match vr {
        VR::LO | VR::LT | VR::PN | VR::SH | VR::ST | VR::UC | VR::UT => charset.clone(),
        _ => Charset::Ascii,
    }
}

fn numbers(vr: VR, value: &[u8]) -> Option<Vec<Value>> {
    fn each<const N: usize>(value: &[u8], read: impl Fn([u8; N]) -> Value) -> Option<Vec<Value>> {
        let (chunks, rest) = value.as_chunks::<N>();
        rest.is_empty().then(|| chunks.iter().map(|chunk| read(*chunk)).collect())
    }
    match vr {
        VR::US => each(value, |bytes| u16::from_le_bytes(bytes).into()),
        VR::SS => each(value, |bytes| i16::from_le_bytes(bytes).into()),
        VR::UL => each(value, |bytes| u32::from_le_bytes(bytes).into()),
        VR::SL => each(value, |bytes| i32::from_le_bytes(bytes).into()),
        VR::UV => each(value, |bytes| u64::from_le_bytes(bytes).into()),
        VR::SV => each(value, |bytes| i64::from_le_bytes(bytes).into()),
        VR::FL => each(value, |bytes| f32::from_le_bytes(bytes).into()),
        VR::FD => each(value, |bytes| f64::from_le_bytes(bytes).into()),
        _ => {
            each(value, |[a, b, c, d]: [u8; 4]| key(Tag(u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]))).into())
        }
    }
}

fn texts(vr: VR, text: &str) -> Vec<Value> {
    let trimmed = |text: &str| text.trim_matches([' ', '\0']).to_owned();
    match vr {
        _ if text.is_empty() => Vec::new(),
        VR::LT | VR::ST | VR::UT | VR::UR => vec![text.into()],
        VR::PN => text.split('\\').map(|name| person(&trimmed(name))).collect(),
        _ => text.split('\\').map(|text| Some(trimmed(text)).filter(|text| !text.is_empty()).into()).collect(),
    }
}

/// A person's name by its component groups (PS3.5 section 6.2.1).
fn person(name: &str) -> Value {
    let groups = ["Alphabetic", "Ideographic", "Phonetic"].into_iter().zip(name.split('='));
    let groups: Map<String, Value> = groups
        .filter(|(_, text)| !text.is_empty())
        .map(|(group, text)| (group.to_owned(), Value::from(text.trim_end())))
        .collect();
    if groups.is_empty() { Value::Null } else { Value::Object(groups) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Map<String, Value> {
        let json = json!({
            "00080005": { "vr": "CS", "Value": ["ISO_IR 192"] },
            "00080018": { "vr": "UI", "Value": ["1.2.3"] },
            "00100010": { "vr": "PN", "Value": [{ "Alphabetic": "Doe^Jané", "Ideographic": "山田^太郎" }] },
            "00100020": { "vr": "LO", "Value": ["P1"] },
            "00100030": { "vr": "DA" },
            "00280010": { "vr": "US", "Value": [512] },
            "00404018": { "vr": "SQ", "Value": [
                { "00080100": { "vr": "SH", "Value": ["110005"] }, "00404025": { "vr": "SQ" } },
                {},
            ] },
            "00404005": { "vr": "DT", "Value": ["20261124120000"] },
            "00741002": { "vr": "SQ" },
            "00741238": { "vr": "LT", "Value": ["a\\b, and no list"] },
        });
        json.as_object().expect("an object").clone()
    }

    #[test]
    fn a_data_set_reads_back_as_it_was_written_in_both_syntaxes() {
        for syntax in [Uid::IMPLICIT_LE, Uid::EXPLICIT_LE] {
            let bytes = write(&sample(), &syntax).expect("written");
            crate::prescan::scan(&bytes, &syntax).expect("sound");
            assert_eq!(read(&bytes, &syntax).expect("read"), sample(), "{syntax}");
        }
        let private =
            json!({ "00091001": { "vr": "LO", "Value": ["x"] }, "00280009": { "vr": "AT", "Value": ["00181063"] } });
        let private = private.as_object().expect("an object");
        let bytes = write(private, &Uid::EXPLICIT_LE).expect("written");
        assert_eq!(read(&bytes, &Uid::EXPLICIT_LE).expect("read"), *private);
        assert_eq!(read(&bytes, &Uid::EXPLICIT_BE), Err(ReadError::TransferSyntax));
    }

    #[test]
    fn texts_are_read_in_the_character_set_of_their_data_set_or_item() {
        let mut bytes = b"\x08\x00\x05\x00\x0a\x00\x00\x00ISO_IR 100".to_vec();
        bytes.extend_from_slice(b"\x10\x00\x10\x00\x04\x00\x00\x00Jan\xe9");
        let read = read(&bytes, &Uid::IMPLICIT_LE).expect("read");
        assert_eq!(read["00100010"]["Value"][0]["Alphabetic"], "Jané");
    }

    #[test]
    fn sequences_may_end_by_delimiters_and_be_of_unknown_representation() {
        let mut item = b"\xfe\xff\x00\xe0\xff\xff\xff\xff\x08\x00\x00\x01\x02\x00\x00\x00AB".to_vec();
        item.extend_from_slice(b"\xfe\xff\x0d\xe0\x00\x00\x00\x00\xfe\xff\xdd\xe0\x00\x00\x00\x00");
        let implicit = [b"\x40\x00\x18\x40\xff\xff\xff\xff".as_slice(), &item].concat();
        let unknown = [b"\x40\x00\x18\x40UN\x00\x00\xff\xff\xff\xff".as_slice(), &item].concat();
        for (bytes, syntax) in [(implicit, Uid::IMPLICIT_LE), (unknown, Uid::EXPLICIT_LE)] {
            let found = read(&bytes, &syntax).expect("read");
            assert_eq!(found["00404018"]["Value"][0]["00080100"]["Value"][0], "AB");
            for cut in 1..bytes.len() {
                assert!(read(&bytes[..cut], &syntax).is_err(), "cut at {cut}");
            }
        }
    }

    #[test]
    fn deep_nesting_is_refused() {
        let mut bytes = Vec::new();
        for _ in 0..=DEPTH_MAX {
            bytes.extend_from_slice(b"\x40\x00\x18\x40\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff");
        }
        assert_eq!(read(&bytes, &Uid::IMPLICIT_LE), Err(ReadError::TooLarge));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            for syntax in [Uid::IMPLICIT_LE, Uid::EXPLICIT_LE] {
                if let Ok(read) = read(&bytes, &syntax) {
                    let _ = write(&read, &syntax);
                }
            }
        }
    }
}
