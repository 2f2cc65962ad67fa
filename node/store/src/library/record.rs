//! The records of the library as they lie in packs: `[version]` and postcard.
//!
//! Since version 2 each has a number that rises with every record of the store: packs of several days are
//! written side by side, so that their order alone does not say which of two records is the later.

use maillage_host::UnixMillis;
use serde::{Deserialize, Serialize};

use super::InstanceCommit;
use crate::error::Refusal;
use crate::hash::Hash;
use crate::manifest::InstanceManifest;
use crate::pack::PackId;

const VERSION: u8 = 2;
/// Records of packs that were written one after another; their number counts as 0.
const VERSION_UNNUMBERED: u8 = 1;
/// The longest source kept, in bytes: an AE title has 16 (PS3.5 section 6.2), a gateway's name may
/// be longer.
const SOURCE_LEN_MAX: usize = 64;

/// A study manifest began (`held`) or ceased to be held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HoldRecord {
    pub(crate) manifest: Hash,
    pub(crate) held: bool,
    pub(crate) at: u64,
    pub(crate) study_uid: String,
    pub(crate) packs: Vec<PackId>,
}

impl InstanceCommit {
    /// The commit of an instance whose manifest is stored or in the same group.
    ///
    /// # Errors
    /// When the manifest breaks its rules or `source` is longer than 64 bytes.
    pub fn new(manifest: &InstanceManifest, received_at: UnixMillis, source: String) -> Result<Self, Refusal> {
        let encoded = manifest.encode().map_err(Refusal::Manifest)?;
        Self::of_encoded(manifest, Hash::of(&encoded), received_at, source)
    }

    pub(super) fn of_encoded(
        manifest: &InstanceManifest,
        address: Hash,
        received_at: UnixMillis,
        source: String,
    ) -> Result<Self, Refusal> {
        if source.len() > SOURCE_LEN_MAX {
            return Err(Refusal::Source);
        }
        Ok(Self {
            study_uid: manifest.study_uid.clone(),
            series_uid: manifest.series_uid.clone(),
            sop_instance: manifest.sop_instance.clone(),
            manifest: address,
            dataset_hash: manifest.dataset_hash,
            bytes: manifest.total_len,
            received_at: received_at.0,
            source,
        })
    }
}

/// The payload of a record.
pub(crate) fn encode<T: Serialize>(sequence: u64, record: &T) -> Result<Vec<u8>, postcard::Error> {
    postcard::to_extend(&(sequence, record), vec![VERSION])
}

/// Reads a payload, and the record's number; `None` when it is of another version or does not decode.
pub(crate) fn decode<'a, T: Deserialize<'a>>(payload: &'a [u8]) -> Option<(u64, T)> {
    let (version, body) = payload.split_first()?;
    match *version {
        VERSION => postcard::from_bytes(body).ok(),
        VERSION_UNNUMBERED => postcard::from_bytes(body).ok().map(|record| (0, record)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> (InstanceCommit, HoldRecord) {
        let commit = InstanceCommit {
            study_uid: "1.2".into(),
            series_uid: "1.2.3".into(),
            sop_instance: "1.2.3.4".into(),
            manifest: Hash([1; 32]),
            dataset_hash: Hash([2; 32]),
            bytes: 524_288,
            received_at: 1_700_000_000_000,
            source: "CT1".into(),
        };
        let hold = HoldRecord {
            manifest: Hash([3; 32]),
            held: true,
            at: 1_700_000_000_000,
            study_uid: "1.2".into(),
            packs: vec![PackId { number: 300, generation: 0 }],
        };
        (commit, hold)
    }

    fn bytes_of(hex: &str) -> Vec<u8> {
        let digits = hex.as_bytes().chunks_exact(2);
        digits.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).expect("hex"), 16).expect("hex")).collect()
    }

    #[test]
    fn the_encodings_of_version_2_do_not_change_and_version_1_is_read() {
        let (commit, hold) = samples();
        let encoded = [encode(300, &commit).expect("encode"), encode(301, &hold).expect("encode")];
        let hex = encoded.clone().map(|bytes| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
        assert_eq!(hex.join("\n"), include_str!("golden/records-v2.hex").trim());
        assert_eq!(decode(&encoded[0]), Some((300, commit.clone())));
        assert_eq!(decode(&encoded[1]), Some((301, hold.clone())));
        let old: Vec<Vec<u8>> = include_str!("golden/records-v1.hex").lines().map(bytes_of).collect();
        assert_eq!(decode(&old[0]), Some((0, commit)));
        assert_eq!(decode(&old[1]), Some((0, hold)));
        assert_eq!(decode::<HoldRecord>(&[3, 0, 0]), None);
        assert_eq!(decode::<HoldRecord>(&[]), None);
    }
}
