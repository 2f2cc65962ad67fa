//! What a client may say of a workitem when it creates or updates one (PS3.4 table CC.2.5-3), and what
//! of it the queue needs to know.

use std::collections::BTreeMap;

use maillage_consensus::command::{ATTRIBUTE_BYTES_MAX, ATTRIBUTES_MAX};
use maillage_consensus::exam::{Patient, Priority, Request, Text8};
use maillage_consensus::ids::Line;
use maillage_consensus::order::Order;
use serde_bytes::ByteBuf;

use super::dataset::{Dataset, key};
use super::tags;

/// Needed with a value (type 1 of the N-CREATE column, for the client).
const VALUED: [(u32, &str); 5] = [
    (tags::PRIORITY, "Scheduled Procedure Step Priority"),
    (tags::PROCEDURE_STEP_LABEL, "Procedure Step Label"),
    (tags::START_DATE_TIME, "Scheduled Procedure Step Start DateTime"),
    (tags::INPUT_READINESS_STATE, "Input Readiness State"),
    (tags::PROCEDURE_STEP_STATE, "Procedure Step State"),
];

/// Needed, be it without a value (type 2). One that is missing is taken for one without a value, and the
/// answer says that the workitem was modified.
const PRESENT: [u32; 20] = [
    tags::TRANSACTION_UID,
    tags::WORKLIST_LABEL,
    tags::PROCESSING_PARAMETERS,
    tags::STATION_NAME_CODES,
    tags::STATION_CLASS_CODES,
    tags::STATION_LOCATION_CODES,
    tags::WORKITEM_CODES,
    tags::COMMENTS_ON_STEP,
    tags::INPUT_INFORMATION,
    tags::PATIENT_NAME,
    tags::OTHER_PATIENT_IDS,
    tags::PATIENT_BIRTH_DATE,
    tags::PATIENT_SEX,
    tags::ADMISSION_ID,
    tags::ISSUER_OF_ADMISSION_ID,
    tags::ADMITTING_DIAGNOSES_DESCRIPTION,
    tags::ADMITTING_DIAGNOSES_CODES,
    tags::REFERENCED_REQUESTS,
    tags::PROGRESS_INFORMATION,
    tags::PERFORMED_PROCEDURE,
];

/// Needed without a value at creation: nothing has been performed yet.
const EMPTY: [u32; 3] = [tags::TRANSACTION_UID, tags::PROGRESS_INFORMATION, tags::PERFORMED_PROCEDURE];

/// What the mesh says itself: not kept as a client's attributes.
const DECIDED: [u32; 13] = [
    tags::SPECIFIC_CHARACTER_SET,
    tags::SOP_CLASS_UID,
    tags::SOP_INSTANCE_UID,
    tags::TRANSACTION_UID,
    tags::PROCEDURE_STEP_STATE,
    tags::PRIORITY,
    tags::INPUT_READINESS_STATE,
    tags::MODIFICATION_DATE_TIME,
    tags::PATIENT_NAME,
    tags::PATIENT_ID,
    tags::ISSUER_OF_PATIENT_ID,
    tags::PATIENT_BIRTH_DATE,
    tags::PATIENT_SEX,
];

/// What an update may not touch (N-SET "not allowed").
const FIXED: [u32; 17] = [
    tags::SOP_CLASS_UID,
    tags::SOP_INSTANCE_UID,
    tags::PROCEDURE_STEP_STATE,
    tags::MODIFICATION_DATE_TIME,
    tags::PATIENT_NAME,
    tags::PATIENT_ID,
    tags::ISSUER_OF_PATIENT_ID,
    tags::OTHER_PATIENT_IDS,
    tags::PATIENT_BIRTH_DATE,
    tags::PATIENT_SEX,
    tags::STUDY_INSTANCE_UID,
    tags::ADMISSION_ID,
    tags::ISSUER_OF_ADMISSION_ID,
    tags::ADMITTING_DIAGNOSES_DESCRIPTION,
    tags::ADMITTING_DIAGNOSES_CODES,
    tags::REFERENCED_REQUESTS,
    tags::REPLACED_STEPS,
];

/// Needed with a value once they are updated (N-SET type 1).
const NEVER_EMPTIED: [u32; 7] = [
    tags::PRIORITY,
    tags::PROCEDURE_STEP_LABEL,
    tags::WORKLIST_LABEL,
    tags::START_DATE_TIME,
    tags::EXPECTED_COMPLETION_DATE_TIME,
    tags::WORKITEM_CODES,
    tags::COMMENTS_ON_STEP,
];

/// General purpose workitems of PS3.16 CID 9231 that are no reading: nobody here performs them.
const OTHER_WORK: [&str; 8] = ["110001", "110002", "110003", "110004", "110006", "110007", "110008", "110009"];

/// A data set that may not be created, or an update that may not be made, with the reason.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub(crate) struct Unfit {
    /// In which way.
    pub(crate) kind: UnfitKind,
    what: String,
}

/// In which way a data set is unfit: each has a status code of its own in PS3.7 annex C.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum UnfitKind {
    /// An attribute that is needed is not there.
    Missing,
    /// … or it has no value.
    NoValue,
    /// A value that makes no sense, or may not be there or be changed.
    Invalid,
    /// A step may be created SCHEDULED only.
    NotScheduled,
    /// Over a bound.
    TooMuch,
}

impl Unfit {
    pub(crate) fn invalid(what: impl Into<String>) -> Self {
        Self { kind: UnfitKind::Invalid, what: what.into() }
    }

    pub(crate) fn too_much(what: impl Into<String>) -> Self {
        Self { kind: UnfitKind::TooMuch, what: what.into() }
    }
}

/// A workitem to be created.
#[derive(Debug)]
pub(crate) struct Creation {
    /// What the queue knows of it.
    pub(crate) request: Request,
    /// … and the rest.
    pub(crate) order: Order,
    /// The attributes to keep.
    pub(crate) attributes: BTreeMap<u32, ByteBuf>,
    /// Whether something was added.
    pub(crate) modified: bool,
}

/// An update to be made.
#[derive(Debug)]
pub(crate) struct Update {
    /// The attributes that change; empty ones are removed.
    pub(crate) attributes: BTreeMap<u32, ByteBuf>,
    /// The urgency asked for.
    pub(crate) priority: Option<Priority>,
    /// Whether attributes were left out that this software decides itself.
    pub(crate) left_out: bool,
}

/// Checks a data set for *Create Workitem*.
///
/// # Errors
/// What is missing or may not be there.
pub(crate) fn create(mut dataset: Dataset) -> Result<Creation, Unfit> {
    for (tag, name) in VALUED {
        if dataset.text(tag).is_empty() {
            let kind = if dataset.has(tag) { UnfitKind::NoValue } else { UnfitKind::Missing };
            return Err(Unfit { kind, what: format!("{} {name} is needed", key(tag)) });
        }
    }
    if let Some(tag) = EMPTY.into_iter().find(|tag| dataset.is_valued(*tag)) {
        return Err(Unfit::invalid(format!("{} must be without a value", key(tag))));
    }
    let state = dataset.text(tags::PROCEDURE_STEP_STATE);
    if state != "SCHEDULED" {
        let what = "00741000 Procedure Step State must be SCHEDULED".to_owned();
        return Err(Unfit { kind: UnfitKind::NotScheduled, what });
    }
    let readiness = dataset.text(tags::INPUT_READINESS_STATE);
    if !["READY", "UNAVAILABLE", "INCOMPLETE"].contains(&readiness.as_str()) {
        return Err(Unfit::invalid(
            "00404041 Input Readiness State must be READY, UNAVAILABLE or INCOMPLETE".to_owned(),
        ));
    }
    let codes = dataset.items(tags::WORKITEM_CODES);
    let is_other = |code: &Dataset| {
        let value = code.text(tags::CODE_VALUE);
        code.text(tags::CODING_SCHEME_DESIGNATOR) == "DCM" && OTHER_WORK.contains(&value.as_str())
    };
    if !codes.is_empty() && codes.iter().all(is_other) {
        return Err(Unfit::invalid(
            "00404018 Scheduled Workitem Code Sequence: only readings are performed here".to_owned(),
        ));
    }
    let priority = priority_of(&dataset.text(tags::PRIORITY))?;
    let modified = PRESENT.into_iter().any(|tag| !dataset.has(tag)) || !dataset.is_valued(tags::WORKLIST_LABEL);
    let (request, order) = requested(&dataset, priority, readiness != "READY")?;
    dataset.retain(|tag| !DECIDED.contains(&tag));
    Ok(Creation { request, order, attributes: kept(&dataset)?, modified })
}

/// Checks a data set for *Update Workitem*.
///
/// # Errors
/// What may not be changed.
pub(crate) fn update(mut dataset: Dataset) -> Result<Update, Unfit> {
    if let Some(tag) = FIXED.into_iter().find(|tag| dataset.has(*tag)) {
        return Err(Unfit::invalid(format!("{} may not be changed", key(tag))));
    }
    let is_empty = |tag: u32| dataset.text(tag).is_empty() && dataset.items(tag).is_empty();
    if let Some(tag) = NEVER_EMPTIED.into_iter().find(|tag| dataset.has(*tag) && is_empty(*tag)) {
        return Err(Unfit { kind: UnfitKind::NoValue, what: format!("{} needs a value", key(tag)) });
    }
    let priority = match dataset.text(tags::PRIORITY) {
        text if text.is_empty() => None,
        text => Some(priority_of(&text)?),
    };
    // Ready is what has its images, which the mesh knows.
    let left_out = dataset.has(tags::INPUT_READINESS_STATE);
    dataset.retain(|tag| !DECIDED.contains(&tag));
    let mut attributes = kept(&dataset)?;
    for (tag, value) in &mut attributes {
        if !dataset.is_valued(*tag) {
            value.clear();
        }
    }
    Ok(Update { attributes, priority, left_out })
}

fn priority_of(text: &str) -> Result<Priority, Unfit> {
    match text {
        "HIGH" => Ok(Priority::Urgent),
        "MEDIUM" => Ok(Priority::SemiUrgent),
        "LOW" => Ok(Priority::Scheduled),
        _ => Err(Unfit::invalid("00741200 Scheduled Procedure Step Priority must be HIGH, MEDIUM or LOW".to_owned())),
    }
}

/// The attributes as they are replicated, within their bounds.
fn kept(dataset: &Dataset) -> Result<BTreeMap<u32, ByteBuf>, Unfit> {
    let kept: BTreeMap<u32, ByteBuf> =
        dataset.elements().map(|(tag, text)| (tag, ByteBuf::from(text.into_bytes()))).collect();
    let bytes: usize = kept.values().map(|value| value.len()).sum();
    if kept.len() > ATTRIBUTES_MAX || bytes > ATTRIBUTE_BYTES_MAX {
        return Err(Unfit::too_much(format!(
            "at most {ATTRIBUTES_MAX} attributes of {ATTRIBUTE_BYTES_MAX} bytes are kept"
        )));
    }
    Ok(kept)
}

/// What the queue knows of an examination, out of what a workitem says of it.
fn requested(dataset: &Dataset, priority: Priority, awaits_images: bool) -> Result<(Request, Order), Unfit> {
    let item = dataset.item(tags::REFERENCED_REQUESTS);
    let either = |tag| Some(item.text(tag)).filter(|text| !text.is_empty()).unwrap_or_else(|| dataset.text(tag));
    let or = |text: String, other: u32| if text.is_empty() { either(other) } else { text };
    let line = |tag: u32, text: String| {
        Line::new(text.trim()).map_err(|error| Unfit::invalid(format!("{}: {error}", key(tag))))
    };
    let short = |tag: u32, text: String| {
        Text8::new(text.trim()).map_err(|error| Unfit::invalid(format!("{}: {error}", key(tag))))
    };
    let own = |tag: u32| line(tag, dataset.text(tag));
    let request = Request {
        accession: line(tags::ACCESSION_NUMBER, either(tags::ACCESSION_NUMBER))?,
        patient: Patient {
            id: own(tags::PATIENT_ID)?,
            issuer: own(tags::ISSUER_OF_PATIENT_ID)?,
            name: own(tags::PATIENT_NAME)?,
            birth_date: short(tags::PATIENT_BIRTH_DATE, dataset.text(tags::PATIENT_BIRTH_DATE))?,
            sex: short(tags::PATIENT_SEX, dataset.text(tags::PATIENT_SEX))?,
        },
        modality: short(tags::MODALITY, either(tags::MODALITY))?,
        description: line(
            tags::REQUESTED_PROCEDURE_DESCRIPTION,
            or(either(tags::REQUESTED_PROCEDURE_DESCRIPTION), tags::PROCEDURE_STEP_LABEL),
        )?,
        hospital: line(tags::REQUESTING_SERVICE, or(either(tags::REQUESTING_SERVICE), tags::INSTITUTION_NAME))?,
        physician: line(tags::REQUESTING_PHYSICIAN, either(tags::REQUESTING_PHYSICIAN))?,
        priority,
        awaits_images,
    };
    let question = line(tags::REASON_FOR_PROCEDURE, or(either(tags::REASON_FOR_PROCEDURE), tags::COMMENTS_ON_STEP))
        .unwrap_or_else(|_| Line::fitted(&dataset.text(tags::COMMENTS_ON_STEP)));
    Ok((request, Order { question, ..Order::default() }))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn least() -> Value {
        json!({
            "00741200": { "vr": "CS", "Value": ["HIGH"] },
            "00741204": { "vr": "LO", "Value": ["Read the head"] },
            "00404005": { "vr": "DT", "Value": ["20261124120000"] },
            "00404041": { "vr": "CS", "Value": ["READY"] },
            "00741000": { "vr": "CS", "Value": ["SCHEDULED"] },
        })
    }

    fn dataset(json: &Value) -> Dataset {
        Dataset::parse(json.to_string().as_bytes()).expect("a data set")
    }

    fn with(changes: Value) -> Dataset {
        let mut json = least();
        for (tag, element) in changes.as_object().expect("an object") {
            json[tag] = element.clone();
        }
        dataset(&json)
    }

    #[test]
    fn a_workitem_says_what_the_queue_needs_and_its_other_attributes_are_kept() {
        let created = create(with(json!({
            "00100010": { "vr": "PN", "Value": [{ "Alphabetic": "DOE^JANE" }] },
            "00100020": { "vr": "LO", "Value": ["P1"] },
            "00404041": { "vr": "CS", "Value": ["UNAVAILABLE"] },
            "0040A370": { "vr": "SQ", "Value": [{
                "00080050": { "vr": "SH", "Value": ["A1"] },
                "00321060": { "vr": "LO", "Value": ["CT head"] },
                "00321033": { "vr": "LO", "Value": ["Hospital"] },
            }] },
            "00091001": { "vr": "LO", "Value": ["private"] },
        })))
        .expect("fit");
        let request = &created.request;
        assert_eq!(
            [request.accession.as_str(), request.patient.name.as_str(), request.description.as_str()],
            ["A1", "DOE^JANE", "CT head"]
        );
        assert_eq!((request.hospital.as_str(), request.priority), ("Hospital", Priority::Urgent));
        assert!(request.awaits_images && created.modified);
        assert!(created.attributes.contains_key(&0x0009_1001));
        assert!(!created.attributes.contains_key(&tags::PATIENT_NAME), "the mesh says it itself");
    }

    #[test]
    fn what_is_missing_or_may_not_be_there_is_refused() {
        for (changes, why) in [
            (json!({ "00741200": { "vr": "CS" } }), "00741200 Scheduled Procedure Step Priority is needed"),
            (json!({ "00741200": { "vr": "CS", "Value": ["STAT"] } }), "must be HIGH"),
            (json!({ "00741204": { "vr": "LO" } }), "00741204"),
            (json!({ "00404005": { "vr": "DT" } }), "00404005"),
            (json!({ "00404041": { "vr": "CS", "Value": ["MAYBE"] } }), "must be READY"),
            (json!({ "00741000": { "vr": "CS", "Value": ["IN PROGRESS"] } }), "must be SCHEDULED"),
            (json!({ "00081195": { "vr": "UI", "Value": ["1.2"] } }), "00081195 must be without a value"),
            (json!({ "00741216": { "vr": "SQ", "Value": [{}] } }), "00741216 must be without a value"),
            (json!({ "00100020": { "vr": "LO", "Value": ["x".repeat(257)] } }), "00100020: longer"),
            (
                json!({ "00404018": { "vr": "SQ", "Value": [{ "00080100": { "vr": "SH", "Value": ["110004"] },
                    "00080102": { "vr": "SH", "Value": ["DCM"] } }] } }),
                "only readings",
            ),
            (json!({ "00091001": { "vr": "LT", "Value": ["x".repeat(ATTRIBUTE_BYTES_MAX)] } }), "at most"),
        ] {
            let error = create(with(changes.clone())).expect_err("unfit").to_string();
            assert!(error.contains(why), "{changes}: {error}");
        }
        assert!(create(dataset(&least())).is_ok());
    }

    #[test]
    fn an_update_changes_what_it_may_and_empties_what_it_says_is_empty() {
        let update_of = |json: Value| update(dataset(&json));
        let good = update_of(json!({
            "00741200": { "vr": "CS", "Value": ["LOW"] },
            "00404025": { "vr": "SQ" },
            "00741204": { "vr": "LO", "Value": ["New"] },
            "00404041": { "vr": "CS", "Value": ["READY"] },
        }))
        .expect("fit");
        assert_eq!(good.priority, Some(Priority::Scheduled));
        assert!(good.left_out);
        assert!(good.attributes[&tags::STATION_NAME_CODES].is_empty());
        assert!(!good.attributes[&tags::PROCEDURE_STEP_LABEL].is_empty());
        assert_eq!(good.attributes.len(), 2);
        for tag in ["00741000", "00080018", "00100010", "0040A370"] {
            assert!(update_of(json!({ tag: { "vr": "LO", "Value": ["x"] } })).is_err(), "{tag}");
        }
        for (tag, vr) in [("00741204", "LO"), ("00404018", "SQ"), ("00400400", "LT"), ("00404011", "DT")] {
            assert!(update_of(json!({ tag: { "vr": vr } })).is_err(), "{tag} is never emptied");
        }
        let code = json!({ "00080100": { "vr": "SH", "Value": ["110005"] } });
        assert!(update_of(json!({ "00404018": { "vr": "SQ", "Value": [code] } })).is_ok());
    }
}
