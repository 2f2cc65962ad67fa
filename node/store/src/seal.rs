//! Sealing: what is stored of a study is encrypted under keys of that study, so that without them every copy
//! of it, wherever it lies, is noise.
//!
//! AES-256-GCM (NIST SP 800-38D) with a nonce of 96 bits before the ciphertext and the tag of 128 bits behind it.
//! The nonce is a keyed hash of the place and the open bytes (as a synthetic IV, RFC 5297): what differs gets
//! another one but for a chance of 2^-96, and what is sealed again under the same key is the same bytes, so that
//! a chunk that was damaged is mended by its sender's sending it again. A key seals what comes between two
//! publications of one study: some thousands of chunks, far below the 2^32 of section 8.3. What binds sealed bytes
//! to their place is authenticated with them, so that none pass for others.

use std::fmt;

use bytes::Bytes;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::hash::Hash;

/// Bytes by which sealed bytes are longer than open ones: the nonce and the tag.
pub const SEAL_BYTES: usize = NONCE_LEN + TAG_LEN;
/// Bytes of a key.
pub const SECRET_BYTES: usize = 32;

const TAG_LEN: usize = 16;
/// Begins what is authenticated: another use of a key gets other words.
const CONTEXT: &[u8] = b"maillage 2026-11 sealed";
/// What the key of nonces is derived by from a study's.
const NONCE_CONTEXT: &str = "maillage 2026-11 nonces of sealed bytes";

/// The name of a key: random, and no secret.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct KeyId(pub [u8; 16]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyId({self})")
    }
}

/// A key of a study. Its `Debug` says its name only; its bytes are overwritten when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct StudyKey {
    id: KeyId,
    secret: Zeroizing<[u8; SECRET_BYTES]>,
}

impl fmt::Debug for StudyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StudyKey({})", self.id)
    }
}

/// Why bytes were not sealed or opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// They could not be sealed; a defect.
    #[error("sealing failed")]
    Seal,
    /// They are not what this key sealed for this place.
    #[error("the sealed bytes do not open with the key")]
    Open,
    /// They are sealed, and no key was given.
    #[error("the bytes are sealed")]
    NoKey,
}

/// What sealed bytes are: authenticated with them.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Place<'a> {
    /// A chunk, coded or not, that stands for so many bytes of the data set.
    Chunk { is_coded: bool, raw_len: u32 },
    /// The attributes of an instance.
    Attributes { sop_instance: &'a str, dataset_hash: Hash },
    /// A whole data set that is to be cut.
    Landed { sop_instance: &'a str, dataset_hash: Hash },
}

impl StudyKey {
    /// A fresh key.
    pub fn random() -> Self {
        Self::new(KeyId(rand::random()), rand::random())
    }

    /// The key of that name.
    pub fn new(id: KeyId, secret: [u8; SECRET_BYTES]) -> Self {
        Self { id, secret: Zeroizing::new(secret) }
    }

    /// Its name.
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// Its bytes: for the replicated state and the file of pending keys, and for nothing else.
    pub fn secret(&self) -> &[u8; SECRET_BYTES] {
        &self.secret
    }

    /// Seals `open`, which is [`SEAL_BYTES`] longer afterwards.
    pub(crate) fn seal(&self, place: Place<'_>, open: &[u8]) -> Result<Vec<u8>, SealError> {
        let nonce = self.nonce(place, open);
        let mut sealed = Vec::with_capacity(open.len() + SEAL_BYTES);
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(open);
        let tag = self.cipher(SealError::Seal)?.seal_in_place_separate_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(self.bound_to(place)),
            &mut sealed[NONCE_LEN..],
        );
        sealed.extend_from_slice(tag.map_err(|_| SealError::Seal)?.as_ref());
        Ok(sealed)
    }

    /// Opens what [`StudyKey::seal`] sealed for the same place.
    pub(crate) fn open(&self, place: Place<'_>, sealed: Bytes) -> Result<Bytes, SealError> {
        let mut buffer = Vec::from(sealed);
        let nonce = *buffer.first_chunk::<NONCE_LEN>().ok_or(SealError::Open)?;
        let opened = self.cipher(SealError::Open)?.open_within(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(self.bound_to(place)),
            &mut buffer,
            NONCE_LEN..,
        );
        let len = opened.map_err(|_| SealError::Open)?.len();
        buffer.truncate(len);
        Ok(buffer.into())
    }

    fn nonce(&self, place: Place<'_>, open: &[u8]) -> [u8; NONCE_LEN] {
        let key = Zeroizing::new(blake3::derive_key(NONCE_CONTEXT, &self.secret[..]));
        let bound = self.bound_to(place);
        let mut hasher = blake3::Hasher::new_keyed(&key);
        hasher.update(&(bound.len() as u64).to_be_bytes()).update(&bound).update(open);
        let mut nonce = [0; NONCE_LEN];
        hasher.finalize_xof().fill(&mut nonce);
        nonce
    }

    /// Made anew each time: it costs a thousandth of what a chunk does, and leaves the secret in one place.
    fn cipher(&self, otherwise: SealError) -> Result<LessSafeKey, SealError> {
        UnboundKey::new(&AES_256_GCM, &self.secret[..]).map(LessSafeKey::new).map_err(|_| otherwise)
    }

    fn bound_to(&self, place: Place<'_>) -> Vec<u8> {
        let mut bound = [CONTEXT, &self.id.0].concat();
        match place {
            Place::Chunk { is_coded, raw_len } => {
                bound.push(u8::from(is_coded));
                bound.extend_from_slice(&raw_len.to_be_bytes());
            }
            Place::Attributes { sop_instance, dataset_hash } => {
                bound.push(2);
                bound.extend_from_slice(&dataset_hash.0);
                bound.extend_from_slice(sop_instance.as_bytes());
            }
            Place::Landed { sop_instance, dataset_hash } => {
                bound.push(3);
                bound.extend_from_slice(&dataset_hash.0);
                bound.extend_from_slice(sop_instance.as_bytes());
            }
        }
        bound
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop};
    use proptest::{prop_assert, prop_assert_eq, proptest};

    use super::*;

    const CHUNK: Place<'_> = Place::Chunk { is_coded: false, raw_len: 9 };

    #[test]
    fn the_sealed_form_does_not_change() {
        let key = StudyKey::new(KeyId([7; 16]), [9; 32]);
        // Sealed by another implementation, with the nonce 00 01 … 0b.
        let hex = include_str!("golden/sealed-chunk.hex").trim();
        let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex");
        let sealed: Vec<u8> = (0..hex.len()).step_by(2).map(byte).collect();
        assert_eq!(key.open(CHUNK, sealed.into()).as_deref(), Ok(&b"ten bytes"[..]));
    }

    #[test]
    fn neither_a_key_nor_an_error_says_a_secret() {
        let key = StudyKey::new(KeyId([0xab; 16]), [0xcd; 32]);
        assert_eq!(format!("{key:?}"), format!("StudyKey({})", "ab".repeat(16)));
    }

    proptest! {
        #[test]
        fn what_was_sealed_opens_and_no_other_key_place_or_bytes_do(
            open in prop::collection::vec(any::<u8>(), 0..300),
            raw_len: u32,
            is_coded: bool,
            bit: usize,
        ) {
            let (key, other) = (StudyKey::random(), StudyKey::random());
            let place = Place::Chunk { is_coded, raw_len };
            let sealed = key.seal(place, &open).expect("seal");
            prop_assert_eq!(sealed.len(), open.len() + SEAL_BYTES);
            prop_assert_eq!(key.open(place, sealed.clone().into()), Ok(Bytes::from(open.clone())));
            prop_assert_eq!(&sealed, &key.seal(place, &open).expect("seal again"), "what is sealed again is the same");
            let elsewhere = key.seal(Place::Chunk { is_coded, raw_len: raw_len ^ 1 }, &open).expect("seal");
            prop_assert!(sealed[..NONCE_LEN] != elsewhere[..NONCE_LEN], "another place, another nonce");
            // The same secret under another name is another key.
            let renamed = StudyKey::new(other.id(), *key.secret());
            for (key, place) in [
                (&other, place),
                (&renamed, place),
                (&key, Place::Chunk { is_coded: !is_coded, raw_len }),
                (&key, Place::Chunk { is_coded, raw_len: raw_len ^ 1 }),
                (&key, Place::Attributes { sop_instance: "1.2", dataset_hash: Hash([0; 32]) }),
                (&key, Place::Landed { sop_instance: "1.2", dataset_hash: Hash([0; 32]) }),
            ] {
                prop_assert_eq!(key.open(place, sealed.clone().into()), Err(SealError::Open));
            }
            let mut flipped = sealed.clone();
            let bit = bit % (8 * flipped.len());
            flipped[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(key.open(place, flipped.into()), Err(SealError::Open));
            for len in [0, SEAL_BYTES - 1, sealed.len() - 1] {
                prop_assert_eq!(key.open(place, sealed[..len].to_vec().into()), Err(SealError::Open));
            }
        }
    }
}
