//! Which abstract syntaxes are stored, PS3.4 annex B.5 and PS3.6 annex A.

use crate::uid::Uid;

/// The arc of DICOM's own UIDs.
const STANDARD_ARC: &str = "1.2.840.10008.";
/// The arc of the storage SOP classes.
const STORAGE_ARC: &str = "1.2.840.10008.5.1.4.1.1.";

/// Storage SOP classes outside the storage arc: hanging protocols, colour palettes, implant
/// templates, RT delivery instructions, and retired hardcopies and stored prints.
const STORAGE_ELSEWHERE: [&str; 11] = [
    "1.2.840.10008.5.1.4.34.1",
    "1.2.840.10008.5.1.4.34.7",
    "1.2.840.10008.5.1.4.34.10",
    "1.2.840.10008.5.1.4.38.1",
    "1.2.840.10008.5.1.4.39.1",
    "1.2.840.10008.5.1.4.43.1",
    "1.2.840.10008.5.1.4.44.1",
    "1.2.840.10008.5.1.4.45.1",
    "1.2.840.10008.5.1.1.27",
    "1.2.840.10008.5.1.1.29",
    "1.2.840.10008.5.1.1.30",
];

/// Queries, retrievals and services within the storage arc.
const NOT_STORAGE: [&str; 9] = [
    "1.2.840.10008.5.1.4.1.1.200.4",
    "1.2.840.10008.5.1.4.1.1.200.5",
    "1.2.840.10008.5.1.4.1.1.200.6",
    "1.2.840.10008.5.1.4.1.1.201.1.1",
    "1.2.840.10008.5.1.4.1.1.201.2",
    "1.2.840.10008.5.1.4.1.1.201.3",
    "1.2.840.10008.5.1.4.1.1.201.4",
    "1.2.840.10008.5.1.4.1.1.201.5",
    "1.2.840.10008.5.1.4.1.1.201.6",
];

/// Whether instances of the class are stored. A class outside DICOM's arc is some maker's private
/// one: `private` decides, since nothing says whether it is for storage.
pub fn is_storage(sop_class: &Uid, private: bool) -> bool {
    let uid = sop_class.as_str();
    if !uid.starts_with(STANDARD_ARC) {
        return private;
    }
    STORAGE_ELSEWHERE.contains(&uid) || (uid.starts_with(STORAGE_ARC) && !NOT_STORAGE.contains(&uid))
}

#[cfg(test)]
mod tests {
    use dicom_dictionary_std::uids;

    use super::*;

    fn uid(text: &str) -> Uid {
        Uid::parse(text).expect("a uid")
    }

    #[test]
    fn private_classes_follow_the_switch() {
        assert!(is_storage(&uid("1.3.12.2.1107.5.9.1"), true));
        assert!(!is_storage(&uid("1.3.12.2.1107.5.9.1"), false));
    }

    #[test]
    fn services_are_not_storage() {
        for service in [
            uids::VERIFICATION,
            uids::STORAGE_COMMITMENT_PUSH_MODEL,
            uids::STUDY_ROOT_QUERY_RETRIEVE_INFORMATION_MODEL_FIND,
            uids::MODALITY_WORKLIST_INFORMATION_MODEL_FIND,
            uids::UNIFIED_PROCEDURE_STEP_PUSH,
            uids::REPOSITORY_QUERY,
            uids::BASIC_GRAYSCALE_PRINT_MANAGEMENT_META,
        ] {
            assert!(!is_storage(&uid(service), true), "{service}");
        }
    }
}
