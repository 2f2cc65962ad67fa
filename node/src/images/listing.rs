//! A study's instances, gathered from the parts that sites published.

use std::collections::BTreeMap;
use std::sync::Arc;

use maillage_store::{InstanceEntry, InstanceManifest};
use maillage_transport::PeerId;

use super::ImagesError;

/// A study's instances, being gathered from its parts.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// The same data set under each manifest under which a part has it, in the order of the parts.
    pub(super) entries: BTreeMap<SeriesAndInstance, Vec<Listed>>,
    pub(super) missing: u64,
}

/// An instance as a part lists it.
#[derive(Debug)]
pub(super) struct Listed {
    pub(super) entry: InstanceEntry,
    pub(super) holders: Arc<[PeerId]>,
    /// Whether a site that holds it is in session, as the mesh sees it.
    pub(super) is_up: bool,
}

impl Listing {
    /// Adds one entry. The same manifest from another part adds its holders; the same data set under another one is
    /// another way to have it, for one whose holders are lost; other data under its UID never takes the first's
    /// place, whichever node is asked: parts come in the order of the state.
    pub(super) fn add(&mut self, entry: InstanceEntry, holders: &Arc<[PeerId]>, is_up: bool) {
        let known = self.entries.entry((entry.series_uid.clone(), entry.sop_instance.clone())).or_default();
        if known.first().is_some_and(|first| first.entry.dataset_hash != entry.dataset_hash) {
            tracing::warn!(study_entry = %entry.manifest, "two data sets under one SOP instance UID");
            return;
        }
        match known.iter_mut().find(|listed| listed.entry.manifest == entry.manifest) {
            None => known.push(Listed { entry, holders: Arc::clone(holders), is_up }),
            Some(listed) => {
                let more = holders.iter().filter(|peer| !listed.holders.contains(peer));
                let all: Vec<PeerId> = listed.holders.iter().chain(more).copied().collect();
                listed.holders = all.into();
                listed.is_up |= is_up;
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

#[cfg(test)]
mod tests {
    use maillage_store::Hash;

    use super::*;

    fn entry(manifest: u8, dataset: u8) -> InstanceEntry {
        InstanceEntry {
            series_uid: "1.2".to_owned(),
            sop_instance: "1.2.3".to_owned(),
            manifest: Hash([manifest; 32]),
            dataset_hash: Hash([dataset; 32]),
            bytes: 9,
        }
    }

    #[test]
    fn a_data_set_is_kept_under_each_manifest_and_another_never_takes_its_place() {
        let mut listing = Listing::default();
        let holders = |count: usize| -> Arc<[PeerId]> { (0..count).map(|_| PeerId::random()).collect() };
        let (lost, others) = (holders(0), holders(2));
        listing.add(entry(1, 1), &lost, false);
        listing.add(entry(2, 1), &others, false);
        listing.add(entry(3, 2), &holders(1), true);
        let more = holders(1);
        listing.add(entry(2, 1), &more, true);
        listing.add(entry(2, 1), &others, false);
        let [listed] = <[Vec<Listed>; 1]>::try_from(listing.entries.into_values().collect::<Vec<_>>()).expect("one");
        let found = listed.iter().map(|of| (of.entry.manifest.0[0], of.holders.len(), of.is_up));
        assert_eq!(found.collect::<Vec<_>>(), [(1, 0, false), (2, 3, true)]);
    }
}
