//! Writing: the DICOM JSON model to bytes. Texts are UTF-8, and the data set is to say so itself.

use bytes::{BufMut, Bytes, BytesMut};
use data_encoding::BASE64;
use dicom_core::{Tag, VR};
use serde_json::{Map, Value};

use super::{DEPTH_MAX, dictionary_vr};
use crate::element::ITEM;
use crate::uid::Uid;

/// Elements below this group are a command's or a file's, not a data set's.
const GROUP_MIN: u16 = 0x0008;

/// Why a data set is not written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// It is not in the model's form.
    #[error("{0} is not in the form of the JSON model")]
    Form(String),
    /// Nested deeper than [`DEPTH_MAX`].
    #[error("sequences nested too deep")]
    TooDeep,
    /// Neither implicit nor explicit VR little endian.
    #[error("transfer syntax is neither implicit nor explicit VR little endian")]
    TransferSyntax,
}

/// Writes a data set. Elements of groups below 0008, which belong to commands, are left out.
///
/// # Errors
/// See [`WriteError`].
pub fn write(dataset: &Map<String, Value>, transfer_syntax: &Uid) -> Result<Bytes, WriteError> {
    let explicit = match transfer_syntax {
        syntax if *syntax == Uid::EXPLICIT_LE => true,
        syntax if *syntax == Uid::IMPLICIT_LE => false,
        _ => return Err(WriteError::TransferSyntax),
    };
    let mut out = BytesMut::with_capacity(4096);
    elements(&mut out, dataset, explicit, DEPTH_MAX)?;
    Ok(out.freeze())
}

fn elements(out: &mut BytesMut, dataset: &Map<String, Value>, explicit: bool, depth: usize) -> Result<(), WriteError> {
    // The model's keys sort as their tags do, but for the case of their letters.
    let mut ordered = Vec::with_capacity(dataset.len());
    for (name, element) in dataset {
        let number = u32::from_str_radix(name, 16).ok().filter(|_| name.len() == 8);
        let number = number.ok_or_else(|| WriteError::Form(name.chars().take(8).collect()))?;
        ordered.push((number, name, element));
    }
    ordered.sort_by_key(|(number, ..)| *number);
    for (number, name, element) in ordered {
        let [a, b, c, d] = number.to_be_bytes();
        let tag = Tag(u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        if tag.group() < GROUP_MIN {
            continue;
        }
        let form = || WriteError::Form(name.clone());
        let vr = element["vr"].as_str().and_then(|vr| vr.parse::<VR>().ok()).unwrap_or_else(|| dictionary_vr(tag));
        let value = value(vr, element, explicit, depth)?.ok_or_else(form)?;
        put(out, tag, vr, &value, explicit);
    }
    Ok(())
}

/// An element's value, padded to an even length; `None` when it is not in the model's form.
fn value(vr: VR, element: &Value, explicit: bool, depth: usize) -> Result<Option<Vec<u8>>, WriteError> {
    if let Some(base64) = element["InlineBinary"].as_str() {
        return Ok(BASE64.decode(base64.as_bytes()).ok().map(|bytes| padded(bytes, 0)));
    }
    let none = Vec::new();
    let values = element["Value"].as_array().unwrap_or(&none);
    if vr == VR::SQ {
        let depth = depth.checked_sub(1).ok_or(WriteError::TooDeep)?;
        let mut out = BytesMut::new();
        for item in values {
            let Some(item) = item.as_object() else { return Ok(None) };
            let mut within = BytesMut::new();
            elements(&mut within, item, explicit, depth)?;
            put_tag(&mut out, ITEM);
            out.put_u32_le(length_of(&within));
            out.extend_from_slice(&within);
        }
        return Ok(Some(out.to_vec()));
    }
    if is_binary(vr) {
        return Ok(values
            .iter()
            .map(|value| number(vr, value))
            .collect::<Option<Vec<_>>>()
            .map(|parts| parts.concat()));
    }
    let texts: Option<Vec<String>> = values.iter().map(text).collect();
    let padding = if vr == VR::UI { 0 } else { b' ' };
    Ok(texts.map(|texts| padded(texts.join("\\").into_bytes(), padding)))
}

fn is_binary(vr: VR) -> bool {
    matches!(vr, VR::US | VR::SS | VR::UL | VR::SL | VR::UV | VR::SV | VR::FL | VR::FD | VR::AT)
}

fn number(vr: VR, value: &Value) -> Option<Vec<u8>> {
    let text = text(value)?;
    let text = text.trim();
    Some(match vr {
        VR::US => text.parse::<u16>().ok()?.to_le_bytes().to_vec(),
        VR::SS => text.parse::<i16>().ok()?.to_le_bytes().to_vec(),
        VR::UL => text.parse::<u32>().ok()?.to_le_bytes().to_vec(),
        VR::SL => text.parse::<i32>().ok()?.to_le_bytes().to_vec(),
        VR::UV => text.parse::<u64>().ok()?.to_le_bytes().to_vec(),
        VR::SV => text.parse::<i64>().ok()?.to_le_bytes().to_vec(),
        VR::FL => text.parse::<f32>().ok()?.to_le_bytes().to_vec(),
        VR::FD => text.parse::<f64>().ok()?.to_le_bytes().to_vec(),
        _ => {
            let [a, b, c, d] = u32::from_str_radix(text, 16).ok().filter(|_| text.len() == 8)?.to_be_bytes();
            vec![b, a, d, c]
        }
    })
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::Null => Some(String::new()),
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Object(name) => {
            let group = |group: &str| name.get(group).and_then(Value::as_str).unwrap_or_default();
            let groups = [group("Alphabetic"), group("Ideographic"), group("Phonetic")];
            Some(groups.join("=").trim_end_matches('=').to_owned())
        }
        Value::Bool(_) | Value::Array(_) => None,
    }
}

fn padded(mut bytes: Vec<u8>, padding: u8) -> Vec<u8> {
    if bytes.len() % 2 == 1 {
        bytes.push(padding);
    }
    bytes
}

fn put(out: &mut BytesMut, tag: Tag, vr: VR, value: &[u8], explicit: bool) {
    put_tag(out, tag);
    if !explicit {
        out.put_u32_le(length_of(value));
    } else if let (true, Ok(length)) = (has_short_length(vr), u16::try_from(value.len())) {
        out.put_slice(&vr.to_bytes());
        out.put_u16_le(length);
    } else {
        // What is too long for its representation is of unknown representation (PS3.5 section 6.2.2).
        let vr = if has_short_length(vr) { VR::UN } else { vr };
        out.put_slice(&vr.to_bytes());
        out.put_u16_le(0);
        out.put_u32_le(length_of(value));
    }
    out.put_slice(value);
}

/// The same question as in [`crate::element`], of a representation that is known.
fn has_short_length(vr: VR) -> bool {
    use VR::{OB, OD, OF, OL, OV, OW, SQ, SV, UC, UN, UR, UT, UV};
    !matches!(vr, OB | OD | OF | OL | OV | OW | SQ | SV | UC | UN | UR | UT | UV)
}

fn put_tag(out: &mut BytesMut, tag: Tag) {
    out.put_u16_le(tag.group());
    out.put_u16_le(tag.element());
}

fn length_of(value: &[u8]) -> u32 {
    u32::try_from(value.len()).unwrap_or(u32::MAX)
}
