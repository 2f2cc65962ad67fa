//! The library: which instances and studies this node holds, by their DICOM identifiers.
//!
//! Rows in the index, rebuilt from the commit and hold records in the packs. The first data set of
//! a SOP instance wins; another one under the same UID is kept beside it and listed as a conflict,
//! never in its place.

use bytes::Bytes;
use maillage_host::UnixMillis;
use serde::{Deserialize, Serialize};

use crate::hash::Hash;
use crate::manifest::{InstanceEntry, InstanceManifest, StudyManifest};

pub(crate) mod record;
mod rules;
mod store;

pub(crate) use record::HoldRecord;
pub(crate) use rules::{apply_commit, apply_hold, classify, first, link, superseded_commit, unlink, unlist};

/// What became of an instance that was committed. Durable in every case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// The first time that this SOP instance came.
    New {
        /// Address of its manifest.
        manifest: Hash,
    },
    /// The same data set was here already.
    Duplicate {
        /// Address of the manifest under which it is listed.
        manifest: Hash,
    },
    /// The same SOP instance UID came with other bytes: kept apart, listed by
    /// [`crate::Store::conflicts`].
    Conflict {
        /// Address of the manifest of what came.
        manifest: Hash,
        /// Address of the manifest of what stays in its place.
        first: Hash,
    },
}

impl Stored {
    /// Address of the manifest under which the data set is listed.
    pub fn manifest(&self) -> Hash {
        match self {
            Self::New { manifest } | Self::Duplicate { manifest } | Self::Conflict { manifest, .. } => *manifest,
        }
    }
}

/// What commits an instance: said in its own record, so that the library can be rebuilt without
/// reading manifests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceCommit {
    pub(crate) study_uid: String,
    pub(crate) series_uid: String,
    pub(crate) sop_instance: String,
    pub(crate) manifest: Hash,
    pub(crate) dataset_hash: Hash,
    pub(crate) bytes: u64,
    pub(crate) received_at: u64,
    pub(crate) source: String,
}

/// One instance in the library.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// As its study's manifest lists it.
    pub entry: InstanceEntry,
    /// Study Instance UID.
    pub study_uid: String,
    /// When it came.
    pub received_at: UnixMillis,
    /// The application entity (or other source) it came from.
    pub source: String,
}

/// A second data set under a SOP instance UID that was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// The later one, quarantined.
    pub second: Instance,
    /// Address of the manifest of the one that stays, if it is still known.
    pub first: Option<Hash>,
}

/// How much of a study is here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StudySeen {
    /// Instances, conflicts not counted.
    pub instances: u64,
    /// Bytes of their data sets.
    pub bytes: u64,
    /// When the last of them came.
    pub last_received_at: UnixMillis,
}

/// One row of the list of studies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StudySummary {
    /// Study Instance UID.
    pub study_uid: String,
    /// How much of it is here.
    pub seen: StudySeen,
}

/// A study manifest that this node holds completely.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldStudy {
    /// Address of the study manifest.
    pub manifest: Hash,
    /// Study Instance UID.
    pub study_uid: String,
    /// When it was found complete.
    pub since: UnixMillis,
}

/// A manifest of either kind, as the store checks it before keeping it.
pub(crate) fn check_manifest(bytes: &Bytes) -> Result<(), crate::manifest::ManifestError> {
    match InstanceManifest::decode(bytes) {
        Err(crate::manifest::ManifestError::Kind | crate::manifest::ManifestError::TooLarge) => {
            StudyManifest::decode(bytes).map(drop)
        }
        other => other.map(drop),
    }
}
