//! In which form a chunk of a data set is stored, and how it becomes the data set's bytes again.

use bytes::Bytes;
use maillage_codec::DecodeError;
use serde::{Deserialize, Serialize};

use crate::chunk::CHUNK_BYTES_MAX;
use crate::hash::Hash;

/// The form of a stored chunk. Ids are persisted: keep them, and append.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Form {
    /// The data set's own bytes.
    Raw,
    /// By `maillage_codec`.
    Coded,
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
        let in_form = match self.form {
            Form::Raw => self.len == self.raw_len,
            Form::Coded => self.len < self.raw_len,
        };
        in_bounds(self.len) && in_bounds(self.raw_len) && in_form
    }

    /// The data set's bytes of stored ones, which have been compared with the address. Up to 4 ms when
    /// coded: call it away from the async threads then.
    ///
    /// # Errors
    /// When the manifest lies about them, or names as coded what does not decode.
    pub fn open(&self, stored: Bytes) -> Result<Bytes, FormError> {
        if stored.len() != self.len as usize {
            return Err(FormError::Length);
        }
        match self.form {
            Form::Raw => Ok(stored),
            Form::Coded => Ok(maillage_codec::decode(&stored, self.raw_len as usize)?.into()),
        }
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
}
