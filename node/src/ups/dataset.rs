//! The DICOM JSON model (PS3.18 annex F), as far as workitems need it: data sets of a few hundred small
//! attributes, sequences included, without bulk data.
//!
//! What a client sends is checked for its shape and kept as it is, whatever its tags: an attribute that
//! this software does not know is still the client's. Bounds: the body's size, the number of
//! attributes, and the depth of sequences, so that parsing costs no more than reading.

use maillage_consensus::command::UnixMillisField;
use serde_json::{Map, Value, json};

use crate::http::rfc3339::date_time;

/// The deepest nesting of sequences. A workitem's own go four deep.
const DEPTH_MAX: usize = 8;
/// The most attributes of a data set, those of its sequences' items included.
const ELEMENTS_MAX: usize = 2048;
/// The value representations of PS3.5 section 6.2.
const REPRESENTATIONS: [&str; 34] = [
    "AE", "AS", "AT", "CS", "DA", "DS", "DT", "FD", "FL", "IS", "LO", "LT", "OB", "OD", "OF", "OL", "OV", "OW", "PN",
    "SH", "SL", "SQ", "SS", "ST", "SV", "TM", "UC", "UI", "UL", "UN", "UR", "US", "UT", "UV",
];
/// The component groups of a person's name.
const NAME_GROUPS: [&str; 3] = ["Alphabetic", "Ideographic", "Phonetic"];

/// Why bytes are no data set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DatasetError {
    /// No JSON.
    #[error("not JSON: {0}")]
    Json(String),
    /// JSON, but no data set, or not exactly one.
    #[error("one data set is needed: an object, or an array with one")]
    NotOne,
    /// A member's name is no tag.
    #[error("{0:?} is no tag of eight hexadecimal digits")]
    Tag(String),
    /// An attribute's value is not in the model's form.
    #[error("attribute {tag}: {what}")]
    Element {
        /// Which.
        tag: String,
        /// What is wrong.
        what: &'static str,
    },
    /// Over a bound.
    #[error("too many attributes, or sequences nested too deep")]
    TooLarge,
}

/// A data set: attributes by their tags, in ascending order.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Dataset(Map<String, Value>);

impl Dataset {
    /// Reads what a client sent. An array with one data set is taken too: it is how results are written.
    ///
    /// # Errors
    /// See [`DatasetError`].
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, DatasetError> {
        let value: Value = serde_json::from_slice(bytes).map_err(|error| DatasetError::Json(error.to_string()))?;
        let one = match value {
            Value::Array(mut list) if list.len() == 1 => list.remove(0),
            other => other,
        };
        checked(&one, DEPTH_MAX, &mut ELEMENTS_MAX.clone())
    }

    /// Takes a data set that was read from bytes, within the same bounds.
    ///
    /// # Errors
    /// See [`DatasetError`].
    pub(crate) fn of_map(map: Map<String, Value>) -> Result<Self, DatasetError> {
        checked(&Value::Object(map), DEPTH_MAX, &mut ELEMENTS_MAX.clone())
    }

    /// Takes what [`Dataset::into_json`] gave.
    pub(crate) fn of_described(map: Map<String, Value>) -> Self {
        Self(map)
    }

    /// The attributes in the model's form.
    pub(crate) fn into_map(self) -> Map<String, Value> {
        self.0
    }

    /// Whether the attribute is there, be it without a value.
    pub(crate) fn has(&self, tag: u32) -> bool {
        self.0.contains_key(&key(tag))
    }

    /// The values of an attribute.
    pub(crate) fn values(&self, tag: u32) -> &[Value] {
        self.0.get(&key(tag)).and_then(|element| element["Value"].as_array()).map_or(&[], Vec::as_slice)
    }

    /// Whether the attribute has a value.
    pub(crate) fn is_valued(&self, tag: u32) -> bool {
        !self.values(tag).is_empty()
            || self.0.get(&key(tag)).is_some_and(|element| !element["InlineBinary"].is_null())
            || self.0.get(&key(tag)).is_some_and(|element| !element["BulkDataURI"].is_null())
    }

    /// The first value as a text, empty when there is none.
    pub(crate) fn text(&self, tag: u32) -> String {
        self.values(tag).first().map(text_of).unwrap_or_default()
    }

    /// The items of a sequence.
    pub(crate) fn items(&self, tag: u32) -> Vec<Self> {
        self.values(tag).iter().filter_map(|item| item.as_object().cloned().map(Self)).collect()
    }

    /// The first item of a sequence, or an empty one.
    pub(crate) fn item(&self, tag: u32) -> Self {
        self.items(tag).into_iter().next().unwrap_or_default()
    }

    /// Sets a text; without a value when it is empty. The representation is the caller's.
    pub(crate) fn put(&mut self, tag: u32, vr: &str, text: &str) {
        let value = match (text.is_empty(), vr) {
            (true, _) => json!({ "vr": vr }),
            (_, "PN") => json!({ "vr": vr, "Value": [{ "Alphabetic": text }] }),
            _ => json!({ "vr": vr, "Value": [text] }),
        };
        self.0.insert(key(tag), value);
    }

    /// Sets a number.
    pub(crate) fn put_number(&mut self, tag: u32, vr: &str, number: u64) {
        self.0.insert(key(tag), json!({ "vr": vr, "Value": [number] }));
    }

    /// Sets a date and time (VR DT), in UTC.
    pub(crate) fn put_time(&mut self, tag: u32, at: UnixMillisField) {
        self.put(tag, "DT", &dicom_time(at));
    }

    /// Sets a sequence; one without items has no value.
    pub(crate) fn put_items(&mut self, tag: u32, items: Vec<Self>) {
        let items: Vec<Value> = items.into_iter().map(Self::into_json).collect();
        let value = if items.is_empty() { json!({ "vr": "SQ" }) } else { json!({ "vr": "SQ", "Value": items }) };
        self.0.insert(key(tag), value);
    }

    /// Sets a code sequence of one item (PS3.3 table 8.8-1).
    pub(crate) fn put_code(&mut self, tag: u32, code: &Code<'_>) {
        self.put_items(tag, vec![code.item()]);
    }

    /// Sets an element as it is kept, a text of the model; what is none is left out.
    pub(crate) fn put_kept(&mut self, tag: u32, kept: &[u8]) {
        if let Ok(value) = serde_json::from_slice(kept) {
            self.0.insert(key(tag), value);
        }
    }

    /// Removes an attribute.
    pub(crate) fn remove(&mut self, tag: u32) {
        self.0.remove(&key(tag));
    }

    /// Puts `other`'s attributes where this one has no value.
    pub(crate) fn complete(&mut self, other: Self) {
        for (tag, value) in other.0 {
            let valued = self.0.get(&tag).is_some_and(|own| own.as_object().is_some_and(|own| own.len() > 1));
            if !valued {
                self.0.insert(tag, value);
            }
        }
    }

    /// Each attribute: its tag and its element's text in the model.
    pub(crate) fn elements(&self) -> impl Iterator<Item = (u32, String)> {
        self.0.iter().filter_map(|(tag, value)| Some((u32::from_str_radix(tag, 16).ok()?, value.to_string())))
    }

    /// Keeps the attributes for which `keep` says so.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(u32) -> bool) {
        self.0.retain(|tag, _| u32::from_str_radix(tag, 16).is_ok_and(&mut keep));
    }

    /// Its representation of a value: `SQ`, `PN` and so on; empty when the attribute is not there.
    pub(crate) fn representation(&self, tag: u32) -> &str {
        self.0.get(&key(tag)).and_then(|element| element["vr"].as_str()).unwrap_or_default()
    }

    /// The JSON.
    pub(crate) fn into_json(self) -> Value {
        Value::Object(self.0)
    }
}

/// A coded concept.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Code<'t> {
    /// Code Value.
    pub(crate) value: &'t str,
    /// Coding Scheme Designator.
    pub(crate) scheme: &'t str,
    /// Code Meaning.
    pub(crate) meaning: &'t str,
}

impl Code<'_> {
    /// As an item of a code sequence. A value longer than SH has room for is a Long Code Value.
    pub(crate) fn item(&self) -> Dataset {
        const LONG_CODE_VALUE: u32 = 0x0008_0119;
        const SH_MAX: usize = 16;
        let mut item = Dataset::default();
        if self.value.chars().count() > SH_MAX {
            item.put(LONG_CODE_VALUE, "UC", self.value);
        } else {
            item.put(super::tags::CODE_VALUE, "SH", self.value);
        }
        item.put(super::tags::CODING_SCHEME_DESIGNATOR, "SH", self.scheme);
        item.put(super::tags::CODE_MEANING, "LO", self.meaning);
        item
    }
}

/// A tag as the model writes it.
pub(crate) fn key(tag: u32) -> String {
    format!("{tag:08X}")
}

/// A value as a text; a person's name is its alphabetic form.
pub(crate) fn text_of(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        Value::Object(name) => NAME_GROUPS.iter().find_map(|group| name.get(*group)?.as_str()).unwrap_or("").to_owned(),
        _ => String::new(),
    }
}

/// A time as VR DT has it, in UTC and with the offset that says so.
pub(crate) fn dicom_time(at: UnixMillisField) -> String {
    let time = date_time(at);
    format!(
        "{:04}{:02}{:02}{:02}{:02}{:02}.{:03}+0000",
        time.year(),
        u8::from(time.month()),
        time.day(),
        time.hour(),
        time.minute(),
        time.second(),
        time.millisecond()
    )
}

fn checked(value: &Value, depth: usize, left: &mut usize) -> Result<Dataset, DatasetError> {
    let object = value.as_object().ok_or(DatasetError::NotOne)?;
    let mut dataset = Map::new();
    for (tag, element) in object {
        if tag.len() != 8 || !tag.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(DatasetError::Tag(tag.chars().take(64).collect()));
        }
        *left = left.checked_sub(1).ok_or(DatasetError::TooLarge)?;
        dataset.insert(tag.to_ascii_uppercase(), checked_element(tag, element, depth, left)?);
    }
    Ok(Dataset(dataset))
}

fn checked_element(tag: &str, element: &Value, depth: usize, left: &mut usize) -> Result<Value, DatasetError> {
    let wrong = |what| DatasetError::Element { tag: tag.to_owned(), what };
    let members = element.as_object().ok_or_else(|| wrong("no object"))?;
    let vr = members.get("vr").and_then(Value::as_str).unwrap_or_default();
    if !REPRESENTATIONS.contains(&vr) {
        return Err(wrong("vr is no value representation"));
    }
    let mut kept = Map::from_iter([("vr".to_owned(), json!(vr))]);
    for (name, value) in members.iter().filter(|(name, _)| *name != "vr") {
        let value = match name.as_str() {
            "Value" => {
                let values = value.as_array().ok_or_else(|| wrong("Value is no array"))?;
                if values.is_empty() {
                    continue;
                }
                let values: Result<Vec<Value>, _> =
                    values.iter().map(|value| checked_value(&wrong, vr, value, depth, left)).collect();
                Value::Array(values?)
            }
            "InlineBinary" | "BulkDataURI" if value.is_string() => value.clone(),
            _ => return Err(wrong("only vr, Value, InlineBinary and BulkDataURI may be there")),
        };
        kept.insert(name.clone(), value);
    }
    Ok(Value::Object(kept))
}

fn checked_value(
    wrong: &dyn Fn(&'static str) -> DatasetError,
    vr: &str,
    value: &Value,
    depth: usize,
    left: &mut usize,
) -> Result<Value, DatasetError> {
    *left = left.checked_sub(1).ok_or(DatasetError::TooLarge)?;
    match (vr, value) {
        ("SQ", Value::Object(_)) => {
            let depth = depth.checked_sub(1).ok_or(DatasetError::TooLarge)?;
            checked(value, depth, left).map(Dataset::into_json)
        }
        ("SQ", _) => Err(wrong("an item of a sequence is an object")),
        ("PN", Value::Object(name)) => {
            let good = name.iter().all(|(group, text)| NAME_GROUPS.contains(&group.as_str()) && text.is_string());
            if good { Ok(value.clone()) } else { Err(wrong("a person's name has groups of text")) }
        }
        // Not of the model, but what several clients write.
        ("PN", Value::String(name)) => Ok(json!({ "Alphabetic": name })),
        (_, Value::String(_) | Value::Number(_) | Value::Null) => Ok(value.clone()),
        _ => Err(wrong("a value is a text, a number or null")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &Value) -> Result<Dataset, DatasetError> {
        Dataset::parse(json.to_string().as_bytes())
    }

    #[test]
    fn a_data_set_is_kept_as_it_is_with_unknown_and_private_attributes() {
        let given = json!({
            "00100010": { "vr": "PN", "Value": [{ "Alphabetic": "DOE^J" }] },
            "00404018": { "vr": "SQ", "Value": [{ "00080100": { "vr": "SH", "Value": ["110005"] } }] },
            "00091001": { "vr": "LO", "Value": ["private"] },
            "7FFE0001": { "vr": "US", "Value": [7] },
            "00404025": { "vr": "SQ" },
        });
        let dataset = parse(&given).expect("a data set");
        assert_eq!(dataset.clone().into_json(), given);
        assert_eq!(parse(&json!([given])).expect("in an array"), dataset);
        assert_eq!(dataset.text(super::super::tags::PATIENT_NAME), "DOE^J");
        assert_eq!(dataset.item(super::super::tags::WORKITEM_CODES).text(super::super::tags::CODE_VALUE), "110005");
        assert!(dataset.has(super::super::tags::STATION_NAME_CODES));
        assert!(!dataset.is_valued(super::super::tags::STATION_NAME_CODES));
    }

    #[test]
    fn what_is_no_data_set_is_refused_with_the_reason() {
        for (given, why) in [
            (json!("text"), "one data set"),
            (json!([]), "one data set"),
            (json!([{}, {}]), "one data set"),
            (json!({ "PatientName": { "vr": "PN" } }), "no tag"),
            (json!({ "00100010": "DOE" }), "no object"),
            (json!({ "00100010": { "Value": ["DOE"] } }), "vr is no"),
            (json!({ "00100010": { "vr": "XX" } }), "vr is no"),
            (json!({ "00100010": { "vr": "LO", "Value": "x" } }), "Value is no array"),
            (json!({ "00100010": { "vr": "LO", "Value": [{}] } }), "a text, a number or null"),
            (json!({ "00100010": { "vr": "PN", "Value": [{ "First": "x" }] } }), "groups of text"),
            (json!({ "00100010": { "vr": "SQ", "Value": ["x"] } }), "is an object"),
            (json!({ "00100010": { "vr": "LO", "Values": ["x"] } }), "only vr"),
        ] {
            let error = parse(&given).expect_err("refused").to_string();
            assert!(error.contains(why), "{given}: {error}");
        }
        let mut deep = json!({});
        for _ in 0..=DEPTH_MAX {
            deep = json!({ "00404018": { "vr": "SQ", "Value": [deep] } });
        }
        assert_eq!(parse(&deep), Err(DatasetError::TooLarge));
        let wide: Vec<u32> = (0..=u32::try_from(ELEMENTS_MAX).expect("small")).collect();
        assert_eq!(parse(&json!({ "00404018": { "vr": "US", "Value": wide } })), Err(DatasetError::TooLarge));
    }

    #[test]
    fn times_are_written_in_utc() {
        assert_eq!(dicom_time(UnixMillisField(1_767_323_045_678)), "20260102030405.678+0000");
    }
}
