//! Rows of the index, in postcard. A change of any of them is a new format of the index.

use serde::{Deserialize, Serialize};

use crate::hash::Hash;
use crate::library::InstanceCommit;
use crate::pack::{HEADER_BYTES, PackFiles, PackId, RECORD_HEADER_BYTES};

/// Where a record lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Place {
    pub(crate) pack: PackId,
    /// Of its header.
    pub(crate) offset: u64,
    /// Of its payload.
    pub(crate) len: u32,
}

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
    pub(crate) fn place(&self) -> Place {
        Place { pack: self.pack, offset: self.offset, len: self.len }
    }

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
    /// The volume was told to forget it: only the removal of the file is still to be seen to.
    pub(crate) dropped: bool,
    /// Records that a row of the index points at: chunks, manifests, commits and holds.
    pub(crate) live: u64,
    /// Chunks and manifests among them.
    pub(crate) chunks: u64,
    /// Bytes of their payloads.
    pub(crate) bytes: u64,
}

impl PackRow {
    /// A pack of which nothing but its header is known.
    pub(crate) const fn new(id: PackId, day: u64, salt: [u8; 8]) -> Self {
        Self { id, day, salt, complete: HEADER_BYTES, sealed: false, dropped: false, live: 0, chunks: 0, bytes: 0 }
    }

    /// Whether nothing in it is wanted any more, nor will be: it is to go.
    pub(crate) fn is_spent(&self) -> bool {
        self.sealed && self.live == 0
    }

    /// Whether the writer may be appending to it.
    pub(crate) fn is_being_written(&self, files: &PackFiles) -> bool {
        !self.sealed && files.is_readable(self.id, 0)
    }
}

/// An instance of the library, or of the list of conflicts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InstanceRow {
    pub(crate) commit: InstanceCommit,
    /// The record that committed it.
    pub(crate) place: Place,
    /// Of that record: the earliest of two data sets under one UID stays, in whatever order packs are read.
    pub(crate) sequence: u64,
}

/// The sum of a study's instances.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StudyRow {
    pub(crate) study_uid: String,
    pub(crate) instances: u64,
    pub(crate) bytes: u64,
    pub(crate) last_received_at: u64,
}

/// A study manifest that is held completely, or was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HeldRow {
    pub(crate) manifest: Hash,
    /// A row that says no outlasts an older record that says yes, in whatever order packs are read.
    pub(crate) held: bool,
    pub(crate) study_uid: String,
    pub(crate) since: u64,
    /// All packs in which something of it lies, sorted.
    pub(crate) packs: Vec<PackId>,
    /// The record that says so.
    pub(crate) place: Place,
    /// Of that record.
    pub(crate) sequence: u64,
}

/// What a manifest refers to: the way back from a chunk is a key of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum EdgesRow {
    /// An instance and its chunks.
    Instance { study_uid: String, series_uid: String, sop_instance: String, chunks: Vec<Hash> },
    /// A publication of a study and its instances.
    Study { study_uid: String, origin: u64, sequence: u64, instances: Vec<Hash> },
}

impl EdgesRow {
    pub(crate) fn targets(&self) -> &[Hash] {
        match self {
            Self::Instance { chunks, .. } => chunks,
            Self::Study { instances, .. } => instances,
        }
    }
}
