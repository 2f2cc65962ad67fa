//! A C-FIND's identifier as a query, and what of a step answers it (PS3.4 sections C.2.2 and CC.2.8).

use std::collections::BTreeSet;

use serde_json::Value;

use crate::ups::dataset::{Dataset, text_of};
use crate::ups::query::{KEYS_MAX, PATH_MAX, Path, Query, VALUE_MAX};
use crate::ups::tags;

/// The most results of one C-FIND, some 8 MB; a requestor that has more is told that there are more.
const RESULTS_MAX: usize = 2_000;
/// Always returned besides what is asked for: what names a step, and how its texts are to be read.
const ALWAYS: [u32; 3] = [tags::SPECIFIC_CHARACTER_SET, tags::SOP_CLASS_UID, tags::SOP_INSTANCE_UID];

/// What a C-FIND asks.
#[derive(Debug)]
pub(super) struct Asked {
    /// What must match.
    pub(super) query: Query,
    fields: BTreeSet<u32>,
}

impl Asked {
    /// Reads an identifier: attributes with a value must match it, all are returned.
    ///
    /// # Errors
    /// It asks too much.
    pub(super) fn read(identifier: &Dataset) -> Result<Self, String> {
        let mut query = Query { fields: None, limit: RESULTS_MAX, ..Query::default() };
        let mut fields = BTreeSet::from(ALWAYS);
        collect(identifier, &Vec::new(), &mut query.keys)?;
        // How the identifier's own texts are written is no key.
        query.keys.retain(|(path, _)| path.first() != Some(&tags::SPECIFIC_CHARACTER_SET));
        fields.extend(identifier.elements().map(|(tag, _)| tag));
        if query.keys.len() > KEYS_MAX {
            return Err(format!("at most {KEYS_MAX} attributes are matched"));
        }
        Ok(Self { query, fields })
    }

    /// The attributes of a result that were asked for.
    pub(super) fn returned(&self, result: Value) -> Dataset {
        let Value::Object(map) = result else { return Dataset::default() };
        let mut dataset = Dataset::of_described(map);
        dataset.retain(|tag| self.fields.contains(&tag));
        // As every text that this node writes; a search leaves it out.
        dataset.put(tags::SPECIFIC_CHARACTER_SET, "CS", "ISO_IR 192");
        dataset
    }
}

fn collect(dataset: &Dataset, above: &Path, keys: &mut Vec<(Path, String)>) -> Result<(), String> {
    for (tag, _) in dataset.elements() {
        let path: Path = above.iter().copied().chain([tag]).collect();
        if dataset.representation(tag) == "SQ" {
            if path.len() > PATH_MAX {
                return Err("sequences are nested too deep".to_owned());
            }
            for item in dataset.items(tag) {
                collect(&item, &path, keys)?;
            }
            continue;
        }
        let values: Vec<String> = dataset.values(tag).iter().map(text_of).collect();
        let wanted = values.join("\\");
        if wanted.len() > VALUE_MAX {
            return Err(format!("at most {VALUE_MAX} bytes are matched"));
        }
        if !wanted.is_empty() {
            keys.push((path, wanted));
        }
    }
    Ok(())
}

/// The keys of a filtered subscription, in the form in which a subscription keeps them.
///
/// # Errors
/// See [`Asked::read`].
pub(super) fn filter_keys(information: &Dataset) -> Result<Vec<(String, String)>, String> {
    let asked = Asked::read(information)?;
    let name = |path: Path| path.iter().map(|tag| format!("{tag:08X}")).collect::<Vec<_>>().join(".");
    Ok(asked.query.keys.into_iter().map(|(path, wanted)| (name(path), wanted)).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn dataset(json: &Value) -> Dataset {
        Dataset::parse(json.to_string().as_bytes()).expect("a data set")
    }

    #[test]
    fn attributes_with_a_value_must_match_and_all_are_returned() {
        let asked = Asked::read(&dataset(&json!({
            "00080005": { "vr": "CS", "Value": ["ISO_IR 192"] },
            "00741000": { "vr": "CS", "Value": ["SCHEDULED"] },
            "00100010": { "vr": "PN" },
            "00404018": { "vr": "SQ", "Value": [{ "00080100": { "vr": "SH", "Value": ["110005"] } }] },
        })))
        .expect("asked");
        let keys = vec![
            (vec![0x0040_4018, 0x0008_0100], "110005".to_owned()),
            (vec![tags::PROCEDURE_STEP_STATE], "SCHEDULED".to_owned()),
        ];
        assert_eq!(asked.query.keys, keys);
        let returned = asked.returned(json!({
            "00080018": { "vr": "UI", "Value": ["1.2"] },
            "00100010": { "vr": "PN", "Value": [{ "Alphabetic": "DOE" }] },
            "00100020": { "vr": "LO", "Value": ["P1"] },
        }));
        let tags: Vec<u32> = returned.elements().map(|(tag, _)| tag).collect();
        assert_eq!(tags, [0x0008_0005, 0x0008_0018, 0x0010_0010]);
        assert_eq!(
            filter_keys(&dataset(&json!({ "00741000": { "vr": "CS", "Value": ["SCHEDULED"] } }))),
            Ok(vec![("00741000".to_owned(), "SCHEDULED".to_owned())])
        );
    }

    #[test]
    fn an_identifier_that_asks_too_much_is_refused() {
        let long = json!({ "00100020": { "vr": "LO", "Value": ["x".repeat(VALUE_MAX + 1)] } });
        assert!(Asked::read(&dataset(&long)).is_err());
        let mut many = serde_json::Map::new();
        for n in 0..=KEYS_MAX {
            many.insert(format!("0009{n:04X}"), json!({ "vr": "LO", "Value": ["x"] }));
        }
        assert!(Asked::read(&dataset(&Value::Object(many))).is_err());
    }
}
