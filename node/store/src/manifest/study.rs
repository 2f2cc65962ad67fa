//! The manifest of a study: the instances that one site has of it at one moment.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{ManifestError, VERSION_1, check_uid, decode, encode, open};
use crate::hash::Hash;

/// The largest encoded study manifest: 16 MiB, some 70,000 instances. One beyond 1 MiB (4,500
/// instances) does not travel as a single chunk.
pub const STUDY_MANIFEST_BYTES_MAX: usize = 16 << 20;

const KIND: u8 = b'S';

/// What a site says a study consists of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StudyManifest {
    /// Study Instance UID.
    pub study_uid: String,
    /// The site that published it.
    pub origin: u64,
    /// Rises when the same site publishes the study again.
    pub sequence: u64,
    /// Sorted by series, then SOP instance; each pair once.
    pub instances: Vec<InstanceEntry>,
}

/// One instance as its study lists it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceEntry {
    /// SOP Instance UID.
    pub sop_instance: String,
    /// Series Instance UID.
    pub series_uid: String,
    /// Address of its [`super::InstanceManifest`].
    pub manifest: Hash,
    /// Bytes of the data set.
    pub bytes: u64,
    /// BLAKE3 of the data set.
    pub dataset_hash: Hash,
}

impl StudyManifest {
    /// A manifest of `instances`, which are sorted here.
    pub fn new(study_uid: String, origin: u64, sequence: u64, mut instances: Vec<InstanceEntry>) -> Self {
        instances.sort_by(|a, b| a.order().cmp(&b.order()));
        Self { study_uid, origin, sequence, instances }
    }

    /// Bytes of all data sets.
    pub fn total_bytes(&self) -> u64 {
        self.instances.iter().fold(0, |sum, instance| sum.saturating_add(instance.bytes))
    }

    /// Checks the UIDs and the order.
    ///
    /// # Errors
    /// [`ManifestError::Invalid`] with the broken rule.
    pub fn validate(&self) -> Result<(), ManifestError> {
        check_uid(&self.study_uid, "the study UID is not a UID")?;
        for instance in &self.instances {
            check_uid(&instance.sop_instance, "a SOP instance UID is not a UID")?;
            check_uid(&instance.series_uid, "a series UID is not a UID")?;
        }
        if !self.instances.is_sorted_by(|a, b| a.order() < b.order()) {
            return Err(ManifestError::Invalid("the instances are not in order, each once"));
        }
        Ok(())
    }

    /// The canonical bytes; their BLAKE3 is the address.
    ///
    /// # Errors
    /// As [`StudyManifest::validate`], or `TooLarge`.
    pub fn encode(&self) -> Result<Bytes, ManifestError> {
        self.validate()?;
        encode([VERSION_1, KIND], self, STUDY_MANIFEST_BYTES_MAX).map(Bytes::from)
    }

    /// Reads what a peer or a disk gave. Never panics, never allocates far beyond the bytes' size.
    ///
    /// # Errors
    /// See [`ManifestError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, ManifestError> {
        let manifest: Self = match open(KIND, bytes, STUDY_MANIFEST_BYTES_MAX)? {
            (VERSION_1, body) => decode(body)?,
            (version, _) => return Err(ManifestError::Version(version)),
        };
        if encode([VERSION_1, KIND], &manifest, STUDY_MANIFEST_BYTES_MAX)? != bytes {
            return Err(ManifestError::NotCanonical);
        }
        manifest.validate()?;
        Ok(manifest)
    }
}

impl InstanceEntry {
    fn order(&self) -> (&str, &str) {
        (&self.series_uid, &self.sop_instance)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{Strategy, any, prop};
    use proptest::{prop_assert, prop_assert_eq, proptest};

    use super::*;

    fn entry(series: &str, sop: &str) -> InstanceEntry {
        InstanceEntry {
            sop_instance: sop.into(),
            series_uid: series.into(),
            manifest: Hash([1; 32]),
            bytes: 524_288,
            dataset_hash: Hash([2; 32]),
        }
    }

    fn sample() -> StudyManifest {
        StudyManifest::new("1.2".into(), 3, 1, vec![entry("1.2.2", "1"), entry("1.2.1", "9"), entry("1.2.1", "3")])
    }

    #[test]
    fn the_encoding_of_version_1_does_not_change() {
        let encoded = sample().encode().expect("encode");
        let hex: String = encoded.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, include_str!("golden/study-v1.hex").trim());
        assert_eq!(StudyManifest::decode(&encoded), Ok(sample()));
    }

    #[test]
    fn the_order_of_arrival_does_not_change_the_address_and_disorder_is_refused() {
        let sorted = sample();
        let mut reversed = sorted.instances.clone();
        reversed.reverse();
        assert_eq!(StudyManifest::new("1.2".into(), 3, 1, reversed.clone()), sorted);
        let unsorted = StudyManifest { instances: reversed, ..sorted.clone() };
        let twice = StudyManifest { instances: vec![entry("1", "1"), entry("1", "1")], ..sorted };
        for manifest in [unsorted, twice] {
            let bytes = encode([VERSION_1, KIND], &manifest, STUDY_MANIFEST_BYTES_MAX).expect("encode unchecked");
            assert!(matches!(StudyManifest::decode(&bytes), Err(ManifestError::Invalid(_))));
        }
    }

    #[test]
    fn a_declared_length_beyond_the_bytes_is_refused_without_allocating_it() {
        let mut bytes = vec![1, KIND, 1, b'1', 0, 0];
        bytes.extend_from_slice(&[0xff, 0xff, 0xff, 0xff, 0x0f]);
        assert_eq!(StudyManifest::decode(&bytes), Err(ManifestError::Malformed));
    }

    proptest! {
        #[test]
        fn what_was_encoded_decodes_to_the_same(
            origin: u64,
            sequence: u64,
            uids in prop::collection::btree_map(("[0-9.]{1,20}", "[0-9.]{1,64}"), any::<(u64, [u8; 32])>(), 0..40)
                .prop_map(|map| map.into_iter().collect::<Vec<_>>()),
        ) {
            let instances = uids.into_iter().map(|((series, sop), (bytes, hash))| InstanceEntry {
                bytes, dataset_hash: Hash(hash), ..entry(&series, &sop)
            });
            let manifest = StudyManifest::new("1.2.3".into(), origin, sequence, instances.collect());
            prop_assert_eq!(StudyManifest::decode(&manifest.encode().expect("encode")), Ok(manifest));
        }

        #[test]
        fn hostile_bytes_never_panic(noise in prop::collection::vec(any::<u8>(), 0..300), at: usize, value: u8) {
            let mut framed = vec![1, KIND];
            framed.extend_from_slice(&noise);
            let _ = StudyManifest::decode(&framed);
            let mut bytes = sample().encode().expect("encode").to_vec();
            let at = at % bytes.len();
            bytes[at] = value;
            if let Ok(manifest) = StudyManifest::decode(&bytes) {
                prop_assert!(manifest.validate().is_ok());
            }
        }
    }
}
