//! Verification of a study: what is here of it is read and opened, published or not, and what is not here is named.

use std::collections::BTreeSet;

use maillage_consensus::ids::SiteId;
use maillage_consensus::mesh::HeldPart;
use maillage_store::{Hash, InstanceEntry, StoreError, VerifyReport};

use super::{Images, ImagesError};

/// What was found of a study at this site.
#[derive(Debug, Default)]
pub(crate) struct VerifiedStudy {
    /// What reading it found. What is missing is to be here.
    pub(crate) report: VerifyReport,
    /// Parts that this site is not noted to hold, and of which not all is here.
    pub(crate) not_here: Vec<HeldPart>,
    /// Instances among those read that no publication here lists.
    pub(crate) unpublished: u64,
    /// Images that were acknowledged and are still to be coded: they were not read.
    pub(crate) landing: u64,
    /// … and those that cannot be.
    pub(crate) landing_lost: u64,
}

impl VerifiedStudy {
    /// Whether all that is to be here is here and right, as far as it was read.
    pub(crate) fn is_complete(&self) -> bool {
        self.report.is_complete() && self.landing_lost == 0
    }

    /// Whether anything of it is here.
    pub(crate) fn is_here(&self) -> bool {
        self.report.instances + self.landing + self.landing_lost > 0
    }

    /// Takes over what was found of a publication, nothing without its manifest. False when not all of it is here, nor
    /// is to be.
    fn add(&mut self, manifest: Hash, is_due: bool, found: Option<VerifyReport>) -> bool {
        let Some(mut found) = found else {
            if is_due {
                self.report.missing.push(manifest);
            }
            return is_due;
        };
        let is_whole = found.missing.is_empty();
        if !is_due {
            found.missing.clear();
        }
        self.report.add(found);
        is_due || is_whole
    }
}

impl Images {
    /// Reads and hashes all of a study that is here, opens every data set, and compares that, too. `None` when neither
    /// the mesh nor this site knows the study.
    ///
    /// # Errors
    /// [`ImagesError`]: the state or the store cannot be read.
    pub(crate) async fn verify(&self, uid: &str) -> Result<Option<VerifiedStudy>, ImagesError> {
        let store = &self.0.store;
        // Before the library is looked at: what is coded meanwhile is told twice rather than never.
        let (landing, landing_lost) = store.landing().count_of(uid);
        let mut verified = VerifiedStudy { landing, landing_lost, ..VerifiedStudy::default() };
        let study = self.known_study(uid)?;
        let is_known = study.is_some();
        let mut parts = study.map(|study| study.parts).unwrap_or_default();
        let listed = store.instances(uid).await?;
        let (mut read, mut absent) = (BTreeSet::new(), BTreeSet::new());
        for (manifest, is_due) in to_read(&parts, self.0.site) {
            let found = self.verify_publication(uid, manifest, &mut read).await?;
            if !verified.add(manifest, is_due, found) {
                absent.insert(manifest);
            }
        }
        parts.retain(|held| absent.contains(&Hash(held.part.manifest)));
        verified.not_here = parts;
        let unpublished: Vec<InstanceEntry> =
            listed.into_iter().map(|instance| instance.entry).filter(|entry| !read.contains(&entry.manifest)).collect();
        let found = store.verify_instances(uid, &unpublished).await?;
        verified.unpublished = found.instances;
        verified.report.add(found);
        Ok((is_known || verified.is_here()).then_some(verified))
    }

    /// Reads what is here of a publication, but for the instances in `read`, which it adds to; `None` without its
    /// manifest, which alone says what it is.
    async fn verify_publication(
        &self,
        uid: &str,
        manifest: Hash,
        read: &mut BTreeSet<Hash>,
    ) -> Result<Option<VerifyReport>, ImagesError> {
        let store = &self.0.store;
        match store.study_manifest(manifest).await {
            Ok(Some(study)) => {
                let mut instances = study.instances;
                instances.retain(|entry| read.insert(entry.manifest));
                Ok(Some(store.verify_instances(uid, &instances).await?))
            }
            Ok(None) => Ok(None),
            Err(StoreError::Corrupt(_)) => {
                Ok(Some(VerifyReport { corrupt: vec![manifest], ..VerifyReport::default() }))
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// The publications to read at `site`, and whether each is to be here: first those that it is noted to hold, then the
/// latest of the other parts. An instance counts by the first that lists it.
fn to_read(parts: &[HeldPart], site: SiteId) -> Vec<(Hash, bool)> {
    let of_part = |held: &HeldPart| {
        let all = held.publications().map(|(part, holders)| (Hash(part.manifest), holders.contains(&site)));
        all.enumerate().filter(|(n, (_, is_due))| *n == 0 || *is_due).map(|(_, one)| one).collect::<Vec<_>>()
    };
    let mut publications: Vec<(Hash, bool)> = parts.iter().flat_map(of_part).collect();
    publications.sort_by_key(|(_, is_due)| !is_due);
    publications
}

#[cfg(test)]
mod tests {
    use maillage_consensus::command::StudyPart;
    use maillage_consensus::mesh::EarlierPart;

    use super::*;
    use crate::commitment::tests::study;

    const HERE: SiteId = SiteId(1);
    const THERE: SiteId = SiteId(2);

    fn part(manifest: u8, holders: &[SiteId]) -> HeldPart {
        study("1.2", [manifest; 32], holders.to_vec()).parts.remove(0)
    }

    fn hash(of: u8) -> Hash {
        Hash([of; 32])
    }

    #[test]
    fn what_is_to_be_here_is_read_first_and_of_the_rest_the_latest() {
        let mut behind = part(4, &[THERE]);
        for (manifest, holder) in [(3, THERE), (2, HERE)] {
            let part = StudyPart { manifest: [manifest; 32], ..behind.part.clone() };
            behind.earlier.push(EarlierPart { part, holders: vec![holder] });
        }
        let parts = [part(9, &[THERE]), behind, part(1, &[HERE, THERE])];
        let read = [(2, true), (1, true), (9, false), (4, false)].map(|(manifest, is_due)| (hash(manifest), is_due));
        assert_eq!(to_read(&parts, HERE), read);
    }

    #[test]
    fn what_is_missing_counts_where_it_is_to_be_and_what_is_wrong_everywhere() {
        let lacks = || VerifyReport { instances: 2, missing: vec![hash(7)], ..VerifyReport::default() };
        let mut verified = VerifiedStudy::default();
        assert!(!verified.add(hash(1), false, None) && !verified.is_here(), "it is elsewhere");
        assert!(!verified.add(hash(2), false, Some(lacks())), "some of it is");
        assert!(verified.add(hash(3), false, Some(VerifyReport { instances: 1, ..VerifyReport::default() })));
        assert!(verified.is_complete() && verified.is_here() && verified.report.instances == 3);
        assert!(verified.add(hash(4), true, Some(lacks())) && verified.add(hash(5), true, None));
        assert_eq!(verified.report.missing, [hash(7), hash(5)]);
        assert!(!verified.is_complete());

        let mut verified = VerifiedStudy::default();
        let corrupt = VerifyReport { corrupt: vec![hash(7)], ..VerifyReport::default() };
        assert!(verified.add(hash(1), false, Some(corrupt)) && !verified.is_complete());
        let lost = VerifiedStudy { landing_lost: 1, ..VerifiedStudy::default() };
        assert!(lost.is_here() && !lost.is_complete());
        let landed = VerifiedStudy { landing: 1, ..VerifiedStudy::default() };
        assert!(landed.is_here() && landed.is_complete());
    }
}
