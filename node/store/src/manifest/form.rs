//! In which form a chunk of a data set is stored, and how it becomes the data set's bytes again.

use bytes::Bytes;
use maillage_codec::DecodeError;
use serde::{Deserialize, Serialize};

use crate::chunk::CHUNK_BYTES_MAX;
use crate::hash::Hash;
use crate::seal::{Place, SEAL_BYTES, SealError, StudyKey};

/// The form of a stored chunk. Ids are persisted: keep them, and append.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Form {
    /// The data set's own bytes.
    Raw,
    /// By `maillage_codec`.
    Coded,
    /// The data set's own bytes, sealed.
    SealedRaw,
    /// By `maillage_codec`, then sealed.
    SealedCoded,
}

impl Form {
    /// Whether the study's key opens it.
    pub fn is_sealed(self) -> bool {
        matches!(self, Self::SealedRaw | Self::SealedCoded)
    }

    /// Whether `maillage_codec` made it.
    pub fn is_coded(self) -> bool {
        matches!(self, Self::Coded | Self::SealedCoded)
    }

    pub(crate) fn sealed(self) -> Self {
        if self.is_coded() { Self::SealedCoded } else { Self::SealedRaw }
    }
}

/// A chunk as its instance's manifest lists it. The order of the fields is persisted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkEntry {
    /// Address: BLAKE3 of what is stored.
    pub hash: Hash,
    /// Bytes stored.
    pub len: u32,
    /// What they are.
    pub form: Form,
    /// Bytes of the data set that they stand for.
    pub raw_len: u32,
}

impl ChunkEntry {
    /// A chunk of the data set's own bytes.
    pub fn raw(hash: Hash, len: u32) -> Self {
        Self { hash, len, form: Form::Raw, raw_len: len }
    }

    /// Whether lengths and form can be true of one another.
    pub(crate) fn is_sound(&self) -> bool {
        let in_bounds = |len: u32| (1..=CHUNK_BYTES_MAX).contains(&(len as usize));
        let sealing = if self.form.is_sealed() { SEAL_BYTES } else { 0 };
        let Some(len) = (self.len as usize).checked_sub(sealing) else { return false };
        let raw_len = self.raw_len as usize;
        let in_form = if self.form.is_coded() { (1..raw_len).contains(&len) } else { len == raw_len };
        in_bounds(self.len) && in_bounds(self.raw_len) && in_form
    }

    /// The data set's bytes of stored ones, which have been compared with the address. Up to 5 ms when
    /// coded or sealed: call it away from the async threads then.
    ///
    /// # Errors
    /// When the manifest lies about them, names as coded what does not decode, or they are sealed under another
    /// key than `key`.
    pub fn open(&self, stored: Bytes, key: Option<&StudyKey>) -> Result<Bytes, FormError> {
        if stored.len() != self.len as usize {
            return Err(FormError::Length);
        }
        let open = if self.form.is_sealed() {
            let place = Place::Chunk { is_coded: self.form.is_coded(), raw_len: self.raw_len };
            key.ok_or(SealError::NoKey)?.open(place, stored)?
        } else {
            stored
        };
        if self.form.is_coded() {
            return Ok(maillage_codec::decode(&open, self.raw_len as usize)?.into());
        }
        if open.len() == self.raw_len as usize { Ok(open) } else { Err(FormError::Length) }
    }
}

/// Why a chunk is not in the form that its manifest says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FormError {
    /// It has another length.
    #[error("the chunk has another length than its manifest says")]
    Length,
    /// It does not decode.
    #[error("the chunk does not decode: {0}")]
    Decode(#[from] DecodeError),
    /// It does not open.
    #[error("the chunk does not open: {0}")]
    Seal(#[from] SealError),
}
