//! Keys of the index: one letter for the kind, then the parts, UIDs separated by NUL.
//!
//! UIDs are digits and dots (manifests are checked before they get here), all greater than NUL, so
//! that the order of keys is the order of (study, series, instance).

use crate::hash::Hash;
use crate::index::Place;
use crate::pack::PackId;

pub(crate) const FORMAT: &[u8] = b"v";
pub(crate) const PACK: &[u8] = b"p";
pub(crate) const BAD: &[u8] = b"b";
pub(crate) const BATCH: &[u8] = b"n";
pub(crate) const LAST: &[u8] = b"l";
pub(crate) const CHUNK: &[u8] = b"c";
/// Instances, by study.
pub(crate) const INSTANCE: &[u8] = b"s";
pub(crate) const STUDY: &[u8] = b"t";
pub(crate) const CONFLICT: &[u8] = b"x";
pub(crate) const HELD: &[u8] = b"h";
/// The number of the last commit or hold.
pub(crate) const SEQUENCE: &[u8] = b"q";

pub(crate) fn pack(pack: PackId) -> Vec<u8> {
    [PACK, &pack.number.to_be_bytes(), &pack.generation.to_be_bytes()].concat()
}

/// Where a batch says its number.
pub(crate) fn batch(slot: u16) -> Vec<u8> {
    [BATCH, &slot.to_be_bytes()].concat()
}

/// Where a batch says that none follows it.
pub(crate) fn last(slot: u16) -> Vec<u8> {
    [LAST, &slot.to_be_bytes()].concat()
}

pub(crate) fn chunk(hash: Hash) -> Vec<u8> {
    [CHUNK, &hash.0[..]].concat()
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
    [INSTANCE, study_uid.as_bytes(), b"\0"].concat()
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

/// What a manifest refers to.
pub(crate) fn edges(manifest: Hash) -> Vec<u8> {
    [b"e", &manifest.0[..]].concat()
}

/// The prefix of all that refer to a chunk or manifest.
pub(crate) fn referrers(target: Hash) -> Vec<u8> {
    [b"r", &target.0[..]].concat()
}

/// One that refers to it.
pub(crate) fn referrer(target: Hash, manifest: Hash) -> Vec<u8> {
    [&referrers(target), &manifest.0[..]].concat()
}

/// The prefix of all places where a record lies besides the one that its row points at.
pub(crate) fn superseded_of(of: Hash) -> Vec<u8> {
    [b"o", &of.0[..]].concat()
}

/// One such place.
pub(crate) fn superseded(of: Hash, place: Place) -> Vec<u8> {
    let Place { pack, offset, .. } = place;
    [&superseded_of(of)[..], &pack.number.to_be_bytes(), &pack.generation.to_be_bytes(), &offset.to_be_bytes()].concat()
}

/// The prefix of a site's publications of a study.
pub(crate) fn publications_of(study_uid: &str, origin: u64) -> Vec<u8> {
    [b"m", study_uid.as_bytes(), b"\0", &origin.to_be_bytes()].concat()
}

/// One publication of a study.
pub(crate) fn publication(study_uid: &str, origin: u64, sequence: u64, manifest: Hash) -> Vec<u8> {
    [&publications_of(study_uid, origin)[..], &sequence.to_be_bytes(), &manifest.0].concat()
}

/// The sequence number and the address at the end of a publication's key.
pub(crate) fn publication_parts(key: &[u8]) -> Option<(u64, Hash)> {
    let (rest, manifest) = key.split_last_chunk::<32>()?;
    let (_, sequence) = rest.split_last_chunk::<8>()?;
    Some((u64::from_be_bytes(*sequence), Hash(*manifest)))
}

/// The prefix of all conflicts of a SOP instance.
pub(crate) fn conflicts_of(sop_instance: &str) -> Vec<u8> {
    [CONFLICT, sop_instance.as_bytes(), b"\0"].concat()
}
