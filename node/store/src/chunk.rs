//! A chunk in memory: bytes that are known to have the hash they go by.

use bytes::Bytes;

use crate::hash::Hash;

/// The largest chunk, in bytes: what one transfer between nodes carries and verifies at once, small
/// enough that a lost or wrong one is cheap to fetch again.
pub const CHUNK_BYTES_MAX: usize = 1 << 20;

/// Bytes and their BLAKE3 hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    hash: Hash,
    bytes: Bytes,
}

/// Bytes that do not have the hash they were said to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("bytes do not have the hash {expected}")]
pub struct WrongHash {
    /// The hash that was promised.
    pub expected: Hash,
}

impl Chunk {
    /// Hashes `bytes`.
    pub fn new(bytes: Bytes) -> Self {
        Self { hash: Hash::of(&bytes), bytes }
    }

    /// Takes bytes that came under the name `expected`, after checking it.
    ///
    /// # Errors
    /// [`WrongHash`] when the bytes are others.
    pub fn checked(expected: Hash, bytes: Bytes) -> Result<Self, WrongHash> {
        if Hash::of(&bytes) == expected { Ok(Self { hash: expected, bytes }) } else { Err(WrongHash { expected }) }
    }

    /// Takes bytes that this process has just verified against `hash` (a chunk from the transport):
    /// hashing costs 0.4 ms a MiB, and a mistake would be caught at the first read.
    pub fn already_verified(hash: Hash, bytes: Bytes) -> Self {
        debug_assert_eq!(Hash::of(&bytes), hash, "a chunk has the hash it goes by");
        Self { hash, bytes }
    }

    /// The address.
    pub fn hash(&self) -> Hash {
        self.hash
    }

    /// The content.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The content alone.
    pub fn into_bytes(self) -> Bytes {
        self.bytes
    }

    /// The content's length, at most [`CHUNK_BYTES_MAX`] for what the store accepts as a chunk.
    pub fn byte_len(&self) -> usize {
        self.bytes.len()
    }
}
