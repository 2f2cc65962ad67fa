//! A study's instances, gathered from the parts that sites published.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use maillage_store::{InstanceEntry, InstanceManifest};
use maillage_transport::PeerId;

use super::ImagesError;

/// A study's instances, being gathered from its parts.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) entries: BTreeMap<SeriesAndInstance, (InstanceEntry, Arc<[PeerId]>)>,
    pub(super) missing: u64,
}

impl Listing {
    /// Adds one entry. The same instance from another part adds its holders; other data under its UID
    /// never takes the first's place, whichever node is asked: parts come in the order of the state.
    pub(super) fn add(&mut self, entry: InstanceEntry, holders: &Arc<[PeerId]>) {
        let key = (entry.series_uid.clone(), entry.sop_instance.clone());
        match self.entries.entry(key) {
            Entry::Vacant(place) => drop(place.insert((entry, Arc::clone(holders)))),
            Entry::Occupied(mut place) => {
                let (known, known_holders) = place.get_mut();
                if known.dataset_hash != entry.dataset_hash {
                    tracing::warn!(study_entry = %entry.manifest, "two data sets under one SOP instance UID");
                } else if known.manifest == entry.manifest {
                    let more = holders.iter().filter(|peer| !known_holders.contains(peer)).copied();
                    let all: Vec<PeerId> = known_holders.iter().copied().chain(more).collect();
                    *known_holders = all.into();
                }
            }
        }
    }
}

/// Whether an instance's manifest is the one that its study lists.
pub(super) fn agrees(study: &str, entry: &InstanceEntry, manifest: &InstanceManifest) -> Result<(), ImagesError> {
    let same = manifest.study_uid == study
        && manifest.series_uid == entry.series_uid
        && manifest.sop_instance == entry.sop_instance
        && manifest.dataset_hash == entry.dataset_hash;
    if same { Ok(()) } else { Err(ImagesError::Manifest("an instance is not the one listed".to_owned())) }
}

/// A series' and an instance's UID: the order in which a study's instances are told.
type SeriesAndInstance = (String, String);
