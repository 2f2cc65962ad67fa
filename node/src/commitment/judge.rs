//! Whether an instance is safe: rules without I/O.
//!
//! Safe is what two distinct zones hold. A holder counts when it has said, after its fsync, that it holds
//! a publication which lists the instance with the same bytes, and when it is there or away for no longer
//! than a site may be before its copies are made anew: what a site holds that is gone for good is no copy.

use std::collections::{BTreeMap, BTreeSet};

use maillage_consensus::ids::SiteId;
use maillage_consensus::mesh::{HeldPart, Site, Study};
use maillage_consensus::placement::Plan;
use maillage_store::{Hash, StudyManifest};

use super::record::{Reference, reason};

/// Zones in which an instance must be: with one, a fire takes it.
pub(super) const ZONES_MIN: usize = 2;

/// An instance as it lies in this node's store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Here {
    pub(super) sop_class: String,
    pub(super) study: String,
    pub(super) dataset: Hash,
    /// Whether other bytes came under the same UID and were put apart.
    pub(super) contested: bool,
}

/// What is said of one reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Durable in two zones.
    Safe,
    /// Not yet.
    Pending,
    /// Not, for this reason.
    Failed(u16),
}

/// A publication of a study, and the zones in which holders have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Publication {
    /// Address of the study's manifest.
    pub(super) manifest: Hash,
    /// Distinct zones of the holders that count.
    pub(super) zones: BTreeSet<String>,
}

/// Zones by SOP Instance UID and the BLAKE3 of the data set.
#[derive(Debug, Default)]
pub(crate) struct Coverage(BTreeMap<(String, Hash), BTreeSet<String>>);

/// The publications of a study that somebody who counts holds: each part as it is, and as it was.
///
/// A site is in the zone that the layout of `plan` says, or its own: two sites that whoever administers the mesh knows to
/// burn together are one zone, whatever each says of itself.
pub(super) fn publications(study: &Study, sites: &[Site], plan: &Plan, now_ms: u64, grace_ms: u64) -> Vec<Publication> {
    let zone_of = |site: &Site| plan.ground(site.id).map_or(&site.description.zone, |ground| &ground.zone).to_string();
    let zones = |holders: &[SiteId]| -> BTreeSet<String> {
        let there = |site: &&Site| {
            let away = site.away_since.is_some_and(|at| now_ms.saturating_sub(at.0) < grace_ms);
            holders.contains(&site.id) && (site.session_open || away)
        };
        sites.iter().filter(there).map(zone_of).collect()
    };
    let all = study.parts.iter().flat_map(HeldPart::publications);
    let all = all.map(|(part, holders)| Publication { manifest: Hash(part.manifest), zones: zones(holders) });
    all.filter(|publication| !publication.zones.is_empty()).collect()
}

impl Coverage {
    /// Counts a publication, whose manifest this is.
    pub(super) fn add(&mut self, zones: &BTreeSet<String>, manifest: &StudyManifest) {
        for instance in &manifest.instances {
            let covered = self.0.entry((instance.sop_instance.clone(), instance.dataset_hash)).or_default();
            covered.extend(zones.iter().cloned());
        }
    }

    pub(super) fn zones(&self, sop_instance: &str, dataset: Hash) -> usize {
        let key = (sop_instance.to_owned(), dataset);
        self.0.get(&key).map_or(0, BTreeSet::len)
    }
}

/// What is said of `reference`, of which this is here.
pub(super) fn verdict(reference: &Reference, here: Option<&Here>, coverage: &Coverage) -> Verdict {
    let Some(here) = here else { return Verdict::Failed(reason::NO_SUCH_INSTANCE) };
    if here.sop_class != reference.sop_class.as_str() {
        return Verdict::Failed(reason::CLASS_CONFLICT);
    }
    if here.contested {
        // The sender may mean the bytes that were put apart, of which there is one copy.
        return Verdict::Failed(reason::PROCESSING);
    }
    if coverage.zones(reference.sop_instance.as_str(), here.dataset) >= ZONES_MIN {
        Verdict::Safe
    } else {
        Verdict::Pending
    }
}

#[cfg(test)]
mod tests {
    use maillage_consensus::command::UnixMillisField;
    use maillage_consensus::ids::Name;
    use maillage_consensus::order::Place;
    use maillage_consensus::placement::{Layout, Share};
    use maillage_dicom::Uid;
    use maillage_store::InstanceEntry;

    use super::*;
    use crate::roster::testing::site;

    const BYTES: Hash = Hash([7; 32]);

    fn manifest(instances: &[(&str, Hash)]) -> StudyManifest {
        let entry = |(sop, dataset_hash): &(&str, Hash)| InstanceEntry {
            sop_instance: (*sop).to_owned(),
            series_uid: "1.1".to_owned(),
            manifest: Hash([1; 32]),
            bytes: 1,
            dataset_hash: *dataset_hash,
        };
        StudyManifest::new("1.2".to_owned(), 1, 1, instances.iter().map(entry).collect())
    }

    fn zones(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn reference() -> Reference {
        let uid = |text: &str| Uid::parse(text).expect("a uid");
        Reference { sop_class: uid("1.5"), sop_instance: uid("1.3") }
    }

    fn here() -> Here {
        Here { sop_class: "1.5".to_owned(), study: "1.2".to_owned(), dataset: BYTES, contested: false }
    }

    /// The zones of a publication, and the instances that it lists.
    type Listed<'a> = (&'a [&'a str], &'a [(&'a str, Hash)]);

    fn covered(publications: &[Listed<'_>]) -> Verdict {
        let mut coverage = Coverage::default();
        for (names, instances) in publications {
            coverage.add(&zones(names), &manifest(instances));
        }
        verdict(&reference(), Some(&here()), &coverage)
    }

    #[test]
    fn one_copy_is_not_safe_and_neither_are_two_in_one_zone() {
        assert_eq!(covered(&[]), Verdict::Pending);
        assert_eq!(covered(&[(&["a"], &[("1.3", BYTES)])]), Verdict::Pending);
        // The same zone by two parts: one building that burns.
        assert_eq!(covered(&[(&["a"], &[("1.3", BYTES)]), (&["a"], &[("1.3", BYTES)])]), Verdict::Pending);
        assert_eq!(covered(&[(&["a", "b"], &[("1.3", BYTES)])]), Verdict::Safe);
        assert_eq!(covered(&[(&["a"], &[("1.3", BYTES)]), (&["b"], &[("1.3", BYTES)])]), Verdict::Safe);
    }

    #[test]
    fn copies_of_something_else_do_not_count() {
        let others = Hash([8; 32]);
        assert_eq!(covered(&[(&["a", "b"], &[("1.4", BYTES)])]), Verdict::Pending, "not in the publication");
        assert_eq!(covered(&[(&["a", "b"], &[("1.3", others)])]), Verdict::Pending, "other bytes of the same UID");
        assert_eq!(
            covered(&[(&["a"], &[("1.3", BYTES)]), (&["b"], &[("1.3", others)])]),
            Verdict::Pending,
            "each of two versions once is neither twice"
        );
    }

    #[test]
    fn unknown_misnamed_and_contested_instances_fail_whatever_is_held() {
        let mut coverage = Coverage::default();
        coverage.add(&zones(&["a", "b"]), &manifest(&[("1.3", BYTES)]));
        let failed = |here: Option<Here>| verdict(&reference(), here.as_ref(), &coverage);
        assert_eq!(failed(None), Verdict::Failed(0x0112));
        assert_eq!(failed(Some(Here { sop_class: "1.6".to_owned(), ..here() })), Verdict::Failed(0x0119));
        assert_eq!(failed(Some(Here { contested: true, ..here() })), Verdict::Failed(0x0110));
        assert_eq!(failed(Some(here())), Verdict::Safe);
    }

    #[test]
    fn holders_count_while_they_are_there_or_not_long_gone() {
        let mut sites: Vec<Site> = [(1, "a"), (2, "b"), (3, "c")].map(|(id, zone)| site(id, zone)).into();
        let holders = [1, 2].map(SiteId).to_vec();
        let study = crate::commitment::tests::study("1.2", [9; 32], holders);
        let plan = plan_of(&sites, Layout::default());
        let now = |sites: &[Site]| publications(&study, sites, &plan, 1_000_000, 1_000)[0].zones.clone();
        assert_eq!(now(&sites), zones(&["a", "b"]));
        sites[1].session_open = false;
        sites[1].away_since = Some(UnixMillisField(999_500));
        assert_eq!(now(&sites), zones(&["a", "b"]), "away for half the grace");
        sites[1].away_since = Some(UnixMillisField(999_000));
        assert_eq!(now(&sites), zones(&["a"]), "away for all of it");
        sites.remove(0);
        let left = publications(&study, &sites, &plan, 1_000_000, 1_000);
        assert!(left.is_empty(), "a site that was removed holds nothing");
    }

    fn plan_of(sites: &[Site], layout: Layout) -> Plan {
        Plan::new(layout, 2, sites.iter().map(|site| (site.clone(), Place::default())).collect(), &[])
    }

    #[test]
    fn two_sites_in_one_zone_by_the_layout_are_one_zone_whatever_they_say_of_themselves() {
        let sites: Vec<Site> = [(1, "a"), (2, "b")].map(|(id, zone)| site(id, zone)).into();
        let study = crate::commitment::tests::study("1.2", [9; 32], [1, 2].map(SiteId).to_vec());
        let zone = Name::new("a").expect("a name");
        let share = Share { site: SiteId(2), weight: None, zone, region: Name::default() };
        let plan = plan_of(&sites, Layout { version: 1, sites: vec![share], ..Layout::default() });
        assert_eq!(publications(&study, &sites, &plan, 0, 1_000)[0].zones, zones(&["a"]));
    }
}
