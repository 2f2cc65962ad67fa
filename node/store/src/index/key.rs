//! Keys of the index: one letter for the kind, then the parts, UIDs separated by NUL.
//!
//! UIDs are digits and dots (manifests are checked before they get here), all greater than NUL, so
//! that the order of keys is the order of (study, series, instance).

use crate::hash::Hash;
use crate::pack::PackId;

pub(crate) const FORMAT: &[u8] = b"v";
pub(crate) const PACK: &[u8] = b"p";
pub(crate) const BAD: &[u8] = b"b";
pub(crate) const STUDY: &[u8] = b"t";
pub(crate) const CONFLICT: &[u8] = b"x";
pub(crate) const HELD: &[u8] = b"h";

pub(crate) fn pack(pack: PackId) -> Vec<u8> {
    [PACK, &pack.number.to_be_bytes(), &pack.generation.to_be_bytes()].concat()
}

pub(crate) fn chunk(hash: Hash) -> Vec<u8> {
    [b"c", &hash.0[..]].concat()
}

pub(crate) fn bad(hash: Hash) -> Vec<u8> {
    [BAD, &hash.0[..]].concat()
}

/// From a SOP instance to the key of its row.
pub(crate) fn sop(sop_instance: &str) -> Vec<u8> {
    [b"i", sop_instance.as_bytes()].concat()
}

pub(crate) fn study(study_uid: &str) -> Vec<u8> {
    [STUDY, study_uid.as_bytes()].concat()
}

/// The prefix of all instances of a study.
pub(crate) fn instances(study_uid: &str) -> Vec<u8> {
    [b"s", study_uid.as_bytes(), b"\0"].concat()
}

pub(crate) fn instance(study_uid: &str, series_uid: &str, sop_instance: &str) -> Vec<u8> {
    [&instances(study_uid), series_uid.as_bytes(), b"\0", sop_instance.as_bytes()].concat()
}

/// The prefix of all conflicts of a SOP instance.
pub(crate) fn conflicts(sop_instance: &str) -> Vec<u8> {
    [CONFLICT, sop_instance.as_bytes(), b"\0"].concat()
}

pub(crate) fn conflict(sop_instance: &str, dataset_hash: Hash) -> Vec<u8> {
    [CONFLICT, sop_instance.as_bytes(), b"\0", &dataset_hash.0[..]].concat()
}

pub(crate) fn held(study_manifest: Hash) -> Vec<u8> {
    [HELD, &study_manifest.0[..]].concat()
}
