//! The manifest of one instance: its identity, its chunks, and what was read from its head.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{ChunkEntry, Form, ManifestError, VERSION_1, VERSION_2, VERSION_3, check_uid, decode, encode, open};
use crate::chunk::CHUNK_BYTES_MAX;
use crate::cut::CutInstance;
use crate::hash::Hash;
use crate::seal::{KeyId, Place, SealError, StudyKey};

/// The largest encoded instance manifest: 1 MiB, so that it travels as a chunk does. That is room for
/// 24,000 chunks (23 GiB) beside the attributes.
pub const INSTANCE_MANIFEST_BYTES_MAX: usize = CHUNK_BYTES_MAX;

const KIND: u8 = b'I';

/// What one DICOM instance is and of which chunks its data set consists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceManifest {
    /// SOP Instance UID.
    pub sop_instance: String,
    /// SOP Class UID.
    pub sop_class: String,
    /// Series Instance UID.
    pub series_uid: String,
    /// Study Instance UID.
    pub study_uid: String,
    /// Transfer Syntax UID in which the data set came and is kept.
    pub transfer_syntax: String,
    /// BLAKE3 of the whole data set.
    pub dataset_hash: Hash,
    /// Bytes of the data set.
    pub total_len: u64,
    /// Bytes before PixelData; a chunk begins there.
    pub head_len: u64,
    /// Each chunk, in order.
    pub chunks: Vec<ChunkEntry>,
    /// The node's own encoding of the DICOM attributes; opaque here. Sealed when `key` names a key: read them
    /// by [`InstanceManifest::open_attributes`].
    #[serde(with = "serde_bytes")]
    pub attributes: Vec<u8>,
    /// What was remarkable at reception.
    pub flags: ManifestFlags,
    /// The key under which chunks and attributes are sealed; none: they are not.
    #[serde(skip)]
    pub key: Option<KeyId>,
}

/// What was remarkable about an instance when it was received.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestFlags {
    /// The pixels do not fit their own description; kept as received, never shown as an image.
    pub undecodable: bool,
    /// The file's preamble was neither zero nor TIFF; it was not kept.
    pub foreign_preamble: bool,
}

/// The UIDs that a manifest is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceIdentity {
    /// SOP Instance UID.
    pub sop_instance: String,
    /// SOP Class UID.
    pub sop_class: String,
    /// Series Instance UID.
    pub series_uid: String,
    /// Study Instance UID.
    pub study_uid: String,
    /// Transfer Syntax UID.
    pub transfer_syntax: String,
}

impl InstanceManifest {
    /// The manifest of a cut data set.
    pub fn of(cut: &CutInstance, identity: InstanceIdentity, attributes: Vec<u8>, flags: ManifestFlags) -> Self {
        let InstanceIdentity { sop_instance, sop_class, series_uid, study_uid, transfer_syntax } = identity;
        Self {
            sop_instance,
            sop_class,
            series_uid,
            study_uid,
            transfer_syntax,
            dataset_hash: cut.dataset_hash,
            total_len: cut.total_len(),
            head_len: cut.head_len(),
            chunks: cut.entries().collect(),
            attributes,
            flags,
            key: None,
        }
    }

    /// The manifest of a data set that was cut to be sealed under `key`.
    ///
    /// # Errors
    /// [`SealError::Seal`].
    pub fn sealed(
        cut: &CutInstance,
        identity: InstanceIdentity,
        attributes: &[u8],
        flags: ManifestFlags,
        key: &StudyKey,
    ) -> Result<Self, SealError> {
        let mut manifest = Self::of(cut, identity, Vec::new(), flags);
        manifest.attributes = key.seal(manifest.place_of_attributes(), attributes)?;
        manifest.key = Some(key.id());
        Ok(manifest)
    }

    /// The attributes, opened with the key that the manifest names.
    ///
    /// # Errors
    /// When they are sealed and `key` is another, or none.
    pub fn open_attributes(&self, key: Option<&StudyKey>) -> Result<Bytes, SealError> {
        let stored = Bytes::copy_from_slice(&self.attributes);
        match (self.key, key) {
            (None, _) => Ok(stored),
            (Some(_), None) => Err(SealError::NoKey),
            (Some(_), Some(key)) => key.open(self.place_of_attributes(), stored),
        }
    }

    fn place_of_attributes(&self) -> Place<'_> {
        Place::Attributes { sop_instance: &self.sop_instance, dataset_hash: self.dataset_hash }
    }

    /// Checks the limits and that the lengths add up.
    ///
    /// # Errors
    /// [`ManifestError::Invalid`] with the broken rule.
    pub fn validate(&self) -> Result<(), ManifestError> {
        check_uid(&self.sop_instance, "the SOP instance UID is not a UID")?;
        check_uid(&self.sop_class, "the SOP class UID is not a UID")?;
        check_uid(&self.series_uid, "the series UID is not a UID")?;
        check_uid(&self.study_uid, "the study UID is not a UID")?;
        check_uid(&self.transfer_syntax, "the transfer syntax UID is not a UID")?;
        let mut at = 0_u64;
        let mut head_ends = self.head_len == 0;
        for chunk in &self.chunks {
            if !chunk.is_sound() {
                return Err(ManifestError::Invalid("a chunk has between 1 and 1048576 bytes, fewer when coded"));
            }
            if chunk.form.is_sealed() != self.key.is_some() {
                return Err(ManifestError::Invalid("all chunks are sealed, under a key that is named, or none is"));
            }
            at += u64::from(chunk.raw_len);
            head_ends |= at == self.head_len;
        }
        if at != self.total_len {
            return Err(ManifestError::Invalid("the chunks do not add up to the data set"));
        }
        if !head_ends {
            return Err(ManifestError::Invalid("the head does not end with a chunk"));
        }
        Ok(())
    }

    /// The canonical bytes; their BLAKE3 is the address. Version 1 when every chunk is raw, as it always
    /// was: what is not coded stays readable by nodes that know no codec, and keeps its address. Version 3 when
    /// it is sealed.
    ///
    /// # Errors
    /// As [`InstanceManifest::validate`], or `TooLarge`.
    pub fn encode(&self) -> Result<Bytes, ManifestError> {
        self.validate()?;
        self.encode_unchecked().map(Bytes::from)
    }

    /// Reads what a peer or a disk gave. Never panics, never allocates beyond the bytes' own size.
    ///
    /// # Errors
    /// See [`ManifestError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, ManifestError> {
        let (version, body) = open(KIND, bytes, INSTANCE_MANIFEST_BYTES_MAX)?;
        let manifest: Self = match version {
            VERSION_1 => decode::<V1>(body)?.into(),
            VERSION_2 => decode(body)?,
            _ => {
                let (manifest, key): (Self, KeyId) = decode(body)?;
                Self { key: Some(key), ..manifest }
            }
        };
        if manifest.encode_unchecked()? != bytes {
            return Err(ManifestError::NotCanonical);
        }
        manifest.validate()?;
        Ok(manifest)
    }

    fn encode_unchecked(&self) -> Result<Vec<u8>, ManifestError> {
        if let Some(key) = self.key {
            encode([VERSION_3, KIND], &(self, key), INSTANCE_MANIFEST_BYTES_MAX)
        } else if !self.is_all_raw() {
            encode([VERSION_2, KIND], self, INSTANCE_MANIFEST_BYTES_MAX)
        } else {
            encode([VERSION_1, KIND], &V1::from(self.clone()), INSTANCE_MANIFEST_BYTES_MAX)
        }
    }

    /// Whether any chunk is coded.
    pub fn is_coded(&self) -> bool {
        self.chunks.iter().any(|chunk| chunk.form.is_coded())
    }

    fn is_all_raw(&self) -> bool {
        self.chunks.iter().all(|chunk| chunk.form == Form::Raw)
    }

    /// Whether the manifest says of `cut` exactly what it is.
    pub fn describes(&self, cut: &CutInstance) -> bool {
        self.dataset_hash == cut.dataset_hash
            && self.total_len == cut.total_len()
            && self.head_len == cut.head_len()
            && self.chunks.iter().copied().eq(cut.entries())
    }
}

/// Version 1 as it is encoded: each chunk by its address and length, and raw.
#[derive(Serialize, Deserialize)]
struct V1 {
    sop_instance: String,
    sop_class: String,
    series_uid: String,
    study_uid: String,
    transfer_syntax: String,
    dataset_hash: Hash,
    total_len: u64,
    head_len: u64,
    chunks: Vec<(Hash, u32)>,
    #[serde(with = "serde_bytes")]
    attributes: Vec<u8>,
    flags: ManifestFlags,
}

impl From<V1> for InstanceManifest {
    fn from(v1: V1) -> Self {
        Self {
            sop_instance: v1.sop_instance,
            sop_class: v1.sop_class,
            series_uid: v1.series_uid,
            study_uid: v1.study_uid,
            transfer_syntax: v1.transfer_syntax,
            dataset_hash: v1.dataset_hash,
            total_len: v1.total_len,
            head_len: v1.head_len,
            chunks: v1.chunks.into_iter().map(|(hash, len)| ChunkEntry::raw(hash, len)).collect(),
            attributes: v1.attributes,
            flags: v1.flags,
            key: None,
        }
    }
}

impl From<InstanceManifest> for V1 {
    fn from(manifest: InstanceManifest) -> Self {
        Self {
            sop_instance: manifest.sop_instance,
            sop_class: manifest.sop_class,
            series_uid: manifest.series_uid,
            study_uid: manifest.study_uid,
            transfer_syntax: manifest.transfer_syntax,
            dataset_hash: manifest.dataset_hash,
            total_len: manifest.total_len,
            head_len: manifest.head_len,
            chunks: manifest.chunks.into_iter().map(|chunk| (chunk.hash, chunk.len)).collect(),
            attributes: manifest.attributes,
            flags: manifest.flags,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop};
    use proptest::{prop_assert, prop_assert_eq, proptest};

    use super::*;
    use crate::cut::cut;

    fn sample() -> InstanceManifest {
        let identity = InstanceIdentity {
            sop_instance: "1.2.3.4".into(),
            sop_class: "1.2.840.10008.5.1.4.1.1.2".into(),
            series_uid: "1.2.3".into(),
            study_uid: "1.2".into(),
            transfer_syntax: "1.2.840.10008.1.2.1".into(),
        };
        let cut = cut(Bytes::from_static(b"headpixels"), 4);
        InstanceManifest::of(
            &cut,
            identity,
            vec![1, 2, 3],
            ManifestFlags { undecodable: true, foreign_preamble: false },
        )
    }

    #[test]
    fn the_encoding_of_version_1_does_not_change() {
        let encoded = sample().encode().expect("encode");
        let hex: String = encoded.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, include_str!("golden/instance-v1.hex").trim());
        assert_eq!(InstanceManifest::decode(&encoded), Ok(sample()));
    }

    fn coded_sample() -> InstanceManifest {
        let mut manifest = sample();
        let coded = ChunkEntry { hash: Hash([7; 32]), len: 300, form: Form::Coded, raw_len: 1000 };
        manifest.chunks.push(coded);
        manifest.total_len += 1000;
        manifest
    }

    #[test]
    fn the_encoding_of_version_2_does_not_change_and_is_only_of_what_has_coded_chunks() {
        let encoded = coded_sample().encode().expect("encode");
        let hex: String = encoded.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, include_str!("golden/instance-v2.hex").trim());
        assert_eq!(InstanceManifest::decode(&encoded), Ok(coded_sample()));
        let raw_in_version_2 = encode([VERSION_2, KIND], &sample(), INSTANCE_MANIFEST_BYTES_MAX).expect("encode");
        assert_eq!(InstanceManifest::decode(&raw_in_version_2), Err(ManifestError::NotCanonical));
    }

    fn sealed_sample() -> InstanceManifest {
        let mut manifest = sample();
        for chunk in &mut manifest.chunks {
            (chunk.len, chunk.form) = (chunk.len + 28, Form::SealedRaw);
        }
        let coded = ChunkEntry { hash: Hash([7; 32]), len: 300, form: Form::SealedCoded, raw_len: 1000 };
        manifest.chunks.push(coded);
        manifest.total_len += 1000;
        manifest.attributes = vec![5; 31];
        manifest.key = Some(KeyId([9; 16]));
        manifest
    }

    #[test]
    fn the_encoding_of_version_3_does_not_change_and_is_only_of_what_is_sealed() {
        let encoded = sealed_sample().encode().expect("encode");
        let hex: String = encoded.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, include_str!("golden/instance-v3.hex").trim());
        assert_eq!(InstanceManifest::decode(&encoded), Ok(sealed_sample()));
        let keyless = InstanceManifest { key: None, ..sealed_sample() };
        let open = InstanceManifest { key: Some(KeyId([9; 16])), ..coded_sample() };
        for lie in [keyless, open] {
            let bytes = lie.encode_unchecked().expect("encode unchecked");
            let error = InstanceManifest::decode(&bytes).expect_err("refused");
            assert!(error.to_string().contains("sealed"), "{error}");
        }
        let mut short = sealed_sample();
        (short.chunks[0].len, short.chunks[0].raw_len) = (28, 0);
        assert!(short.encode().is_err());
    }

    #[test]
    fn attributes_open_with_their_key_and_in_their_place_only() {
        let (key, cut) = (StudyKey::random(), cut(Bytes::new(), 0));
        let identity = || InstanceIdentity {
            sop_instance: "1.2.3.4".into(),
            sop_class: "1.2".into(),
            series_uid: "1.2.3".into(),
            study_uid: "1.2".into(),
            transfer_syntax: "1.2.840.10008.1.2.1".into(),
        };
        let seal = || InstanceManifest::sealed(&cut, identity(), b"DOE^JANE", ManifestFlags::default(), &key);
        let manifest = seal().expect("sealed");
        let encoded = manifest.encode().expect("encode");
        assert!(!encoded.windows(3).any(|window| window == b"DOE"));
        let read = InstanceManifest::decode(&encoded).expect("decode");
        assert_eq!(read.open_attributes(Some(&key)).as_deref(), Ok(&b"DOE^JANE"[..]));
        assert_eq!(read.open_attributes(None), Err(SealError::NoKey));
        assert_eq!(read.open_attributes(Some(&StudyKey::random())), Err(SealError::Open));
        let elsewhere = InstanceManifest { sop_instance: "1.2.3.5".into(), ..read };
        assert_eq!(elsewhere.open_attributes(Some(&key)), Err(SealError::Open));
    }

    #[test]
    fn rules_are_enforced_when_decoding() {
        type Break = fn(&mut InstanceManifest);
        let broken: [(Break, &str); 7] = [
            (|m| m.sop_instance = "../../x".into(), "SOP instance"),
            (|m| m.study_uid = "1".repeat(65), "study"),
            (|m| m.series_uid = "1\0".into(), "series"),
            (|m| m.total_len += 1, "add up"),
            (|m| m.head_len = 5, "head"),
            (|m| (m.chunks[0].len, m.chunks[0].raw_len) = (0, 0), "between"),
            (|m| m.chunks[1].form = Form::Coded, "between"),
        ];
        for (break_it, what) in broken {
            let mut manifest = sample();
            break_it(&mut manifest);
            assert!(manifest.encode().is_err());
            let bytes = manifest.encode_unchecked().expect("encode unchecked");
            let error = InstanceManifest::decode(&bytes).expect_err("refused");
            assert!(error.to_string().contains(what), "{error} names {what}");
        }
    }

    #[test]
    fn another_version_kind_or_a_longer_spelling_is_refused() {
        let good = sample().encode().expect("encode");
        let mut other = good.to_vec();
        other[0] = 4;
        assert_eq!(InstanceManifest::decode(&other), Err(ManifestError::Version(4)));
        other[0] = 1;
        other[1] = b'S';
        assert_eq!(InstanceManifest::decode(&other), Err(ManifestError::Kind));
        // The length of the first string, 7, spelt in two bytes.
        let mut long = vec![1, KIND, 0x87, 0x00];
        long.extend_from_slice(&good[3..]);
        assert_eq!(InstanceManifest::decode(&long), Err(ManifestError::NotCanonical));
        let mut trailing = good.to_vec();
        trailing.push(0);
        assert_eq!(InstanceManifest::decode(&trailing), Err(ManifestError::NotCanonical));
        assert_eq!(InstanceManifest::decode(&vec![1; (1 << 20) + 1]), Err(ManifestError::TooLarge));
    }

    proptest! {
        #[test]
        fn what_was_encoded_decodes_to_the_same(
            uid in "[0-9.]{1,64}",
            data in prop::collection::vec(any::<u8>(), 0..9_000),
            at in 0_usize..9_000,
            attributes in prop::collection::vec(any::<u8>(), 0..300),
            undecodable: bool,
            foreign_preamble: bool,
        ) {
            let cut = cut(Bytes::from(data), at);
            let identity = InstanceIdentity {
                sop_instance: uid.clone(), sop_class: uid.clone(), series_uid: uid.clone(), study_uid: uid.clone(), transfer_syntax: uid,
            };
            let manifest = InstanceManifest::of(&cut, identity, attributes, ManifestFlags { undecodable, foreign_preamble });
            prop_assert!(manifest.describes(&cut));
            prop_assert_eq!(InstanceManifest::decode(&manifest.encode().expect("encode")), Ok(manifest));
        }

        #[test]
        fn hostile_bytes_never_panic_and_what_decodes_is_canonical(
            noise in prop::collection::vec(any::<u8>(), 0..300),
            at in 0_usize..300,
            value: u8,
        ) {
            let _ = InstanceManifest::decode(&noise);
            let mut bytes = sample().encode().expect("encode").to_vec();
            let at = at % bytes.len();
            bytes[at] = value;
            if let Ok(manifest) = InstanceManifest::decode(&bytes) {
                prop_assert_eq!(&manifest.encode().expect("encode again")[..], &bytes[..]);
            }
        }
    }
}
