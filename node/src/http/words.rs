//! The words that requests and answers may use, as schemas of the OpenAPI document.

use maillage_consensus::exam::{ExamState, Priority};
use maillage_consensus::statistics::By;
use schemars::{Schema, SchemaGenerator, json_schema};

/// What the patient said of the transfer of the images.
pub(crate) const CONSENTS: [&str; 4] = ["undeclared", "declared", "emergency", "refused"];
/// Which physicians read an exam.
pub(crate) const SPECIALTIES: [&str; 2] = ["radiology", "nuclear-medicine"];
/// How far two opinions agree.
pub(crate) const CONCORDANCES: [&str; 3] = ["agrees", "differs-minor", "differs-major"];
/// Reports that a reader writes under a claim.
pub(crate) const REPORT_KINDS: [&str; 2] = ["preliminary", "final"];

fn one_of(words: &[&str]) -> Schema {
    json_schema!({ "type": "string", "enum": words })
}

pub(crate) fn priority(_: &mut SchemaGenerator) -> Schema {
    one_of(&Priority::ALL.map(Priority::as_str))
}

pub(crate) fn state(_: &mut SchemaGenerator) -> Schema {
    one_of(&ExamState::ALL.map(ExamState::as_str))
}

pub(crate) fn by(_: &mut SchemaGenerator) -> Schema {
    one_of(&By::ALL.map(By::as_str))
}

pub(crate) fn consent(_: &mut SchemaGenerator) -> Schema {
    one_of(&CONSENTS)
}

pub(crate) fn specialty(_: &mut SchemaGenerator) -> Schema {
    one_of(&SPECIALTIES)
}

pub(crate) fn specialties(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "array", "items": { "type": "string", "enum": SPECIALTIES } })
}

pub(crate) fn concordance(_: &mut SchemaGenerator) -> Schema {
    one_of(&CONCORDANCES)
}

pub(crate) fn report_kind(_: &mut SchemaGenerator) -> Schema {
    one_of(&REPORT_KINDS)
}

/// A value's name on every interface: how serde spells it.
pub(crate) fn spelled(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        // Only unit variants are asked for; anything else is shown rather than hidden.
        Ok(other) => other.to_string(),
        Err(error) => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use maillage_consensus::exam::ReportKind;
    use maillage_consensus::order::{Consent, Specialty};
    use maillage_consensus::remark::Concordance;
    use serde::de::DeserializeOwned;

    use super::*;

    #[test]
    fn every_word_is_read_as_what_it_says() {
        fn check<T: DeserializeOwned + serde::Serialize>(words: &[&str]) {
            for word in words {
                let read: T = serde_json::from_value((*word).into()).unwrap_or_else(|error| panic!("{word}: {error}"));
                assert_eq!(spelled(&read), *word);
            }
        }
        check::<Consent>(&CONSENTS);
        check::<Specialty>(&SPECIALTIES);
        check::<Concordance>(&CONCORDANCES);
        check::<ReportKind>(&REPORT_KINDS);
    }
}
