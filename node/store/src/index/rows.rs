//! Rows of the index, in postcard. A change of any of them is a new format of the index.

use serde::{Deserialize, Serialize};

use crate::hash::Hash;
use crate::library::InstanceCommit;
use crate::pack::{PackFiles, PackId, RECORD_HEADER_BYTES};

/// Where a chunk or manifest lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ChunkRow {
    pub(crate) pack: PackId,
    /// Of the record's header.
    pub(crate) offset: u64,
    /// Of the payload.
    pub(crate) len: u32,
    pub(crate) bad: bool,
}

impl ChunkRow {
    pub(crate) fn payload_offset(&self) -> u64 {
        self.offset + RECORD_HEADER_BYTES
    }

    /// Whether its bytes are within what may be read.
    pub(crate) fn is_readable(&self, files: &PackFiles) -> bool {
        files.is_readable(self.pack, self.payload_offset() + u64::from(self.len))
    }

    pub(crate) fn is_live(&self, files: &PackFiles) -> bool {
        !self.bad && self.is_readable(files)
    }
}

/// What is known of a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PackRow {
    pub(crate) id: PackId,
    pub(crate) day: u64,
    pub(crate) salt: [u8; 8],
    /// The index holds everything of the pack below this offset.
    pub(crate) complete: u64,
    /// Nothing is appended any more.
    pub(crate) sealed: bool,
    /// Chunks and manifests.
    pub(crate) chunks: u64,
    /// Bytes of their payloads.
    pub(crate) bytes: u64,
}

/// An instance of the library, or of the list of conflicts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InstanceRow {
    pub(crate) commit: InstanceCommit,
    /// The pack with the record that committed it.
    pub(crate) pack: PackId,
}

/// The sum of a study's instances.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StudyRow {
    pub(crate) study_uid: String,
    pub(crate) instances: u64,
    pub(crate) bytes: u64,
    pub(crate) last_received_at: u64,
}

/// A study manifest that is held completely.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HeldRow {
    pub(crate) manifest: Hash,
    pub(crate) study_uid: String,
    pub(crate) since: u64,
    /// All packs in which something of it lies, sorted.
    pub(crate) packs: Vec<PackId>,
}
