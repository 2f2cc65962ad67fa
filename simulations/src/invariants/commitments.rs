//! I5 and I9 for storage commitment: nothing is ever committed before the disks of two sites in distinct zones have all
//! of it durably, what was committed is never asked for again, and every request is answered.
//!
//! Whoever hears "committed" deletes. So it is not the mesh that is asked where copies are, but the disks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use maillage_consensus::View;
use maillage_consensus::ids::SiteId;
use maillage_consensus::mesh::HeldPart;
use maillage_store::Hash;
use tokio::task::JoinHandle;

use crate::cluster::{Cluster, Running};
use crate::durable;
use crate::invariants::ZONES;
use crate::workload::dicom::study_of;
use crate::world::{Owner, World, lock};

/// How long nobody may be up who has what was committed, and between two looks.
const BACK: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_secs(1);
/// How long after all copies are made the last request must be answered.
const ANSWERED: Duration = Duration::from_secs(120);

/// See the module.
pub(crate) struct Commitments {
    world: Arc<World>,
    /// SOP Instance UIDs that a sender was told are safe.
    committed: Mutex<BTreeSet<String>>,
}

impl Commitments {
    pub(crate) fn new(world: Arc<World>) -> Self {
        Self { world, committed: Mutex::default() }
    }

    /// What senders have deleted since.
    pub(crate) fn committed(&self) -> BTreeSet<String> {
        lock(&self.committed).clone()
    }

    /// The node of `owner` told a sender that these instances are safe. When it was asked, this layout held.
    pub(crate) async fn told(&self, cluster: &Cluster, owner: Owner, layout: u64, instances: &[String]) {
        lock(&self.committed).extend(instances.iter().cloned());
        let zones = zones(cluster, layout);
        for sop_instance in instances {
            let excused = excused(cluster, study_of(sop_instance));
            let wanted = ZONES.saturating_sub(excused).max(1);
            let (mut found, mut is_sure) = surely_in(cluster, sop_instance, &zones).await;
            // A gateway tells of what lies at centres, which may be down; and whoever tells may have died of it.
            let until = cluster.world.now() + BACK;
            while found.is_none_or(|found| found < wanted)
                && (found.is_none() || cluster.gateway_slot() == Some(owner.slot))
                && !is_sure
                && cluster.world.now() < until
            {
                tokio::time::sleep(LOOK).await;
                (found, is_sure) = surely_in(cluster, sop_instance, &zones).await;
            }
            let why = match found {
                Some(found) if found >= wanted => continue,
                Some(1..) if cluster.laid_out_alone() => {
                    // It was safe when the node looked, and somebody laid out since that one copy is enough.
                    self.world.sometimes("of what was committed the layout wants one copy");
                    continue;
                }
                Some(_) => "it is not on the disks of two zones",
                None if excused > 0 => continue,
                None => "no node has all of it",
            };
            self.world.violation("I5", format!("{owner:?} told that {sop_instance} is safe: {why}"));
        }
    }
}

/// Whether an instance is safe, as far as that can be said at any moment: on the disks of two sites, but for machines
/// that are lost, disks that rot, and layouts that want one copy alone. None while who may have it is down.
pub(crate) async fn is_safe(cluster: &Cluster, study: &str, sop_instance: &str) -> Option<bool> {
    let excused = excused(cluster, study) + usize::from(cluster.was_alone_with(study));
    let zones = cluster.slots().map(|slot| (slot, own_zone(slot))).collect();
    let (found, is_sure) = surely_in(cluster, sop_instance, &zones).await;
    let is_safe = found? >= ZONES.saturating_sub(excused).max(1);
    (is_safe || is_sure).then_some(is_safe)
}

/// As [`zones_with`], and whether every node could say how it has it: one that came up or went down meanwhile was not asked.
async fn surely_in(cluster: &Cluster, sop_instance: &str, zones: &BTreeMap<u32, String>) -> (Option<usize>, bool) {
    let were_up = is_all_up(cluster).await;
    let found = zones_with(cluster, sop_instance, zones).await;
    (found, were_up && is_all_up(cluster).await)
}

/// Copies of a study that may be no more, and nobody knows yet: of a machine that is lost, which is only silent to the
/// others; and on a disk that rots.
fn excused(cluster: &Cluster, study: &str) -> usize {
    let known = cluster.all_running().into_iter().filter_map(|running| {
        let engine = running.group.reader();
        View::new(&*engine).study(study).ok().flatten()
    });
    let is_lost = |site: &SiteId| cluster.is_lost(site.0);
    let may_be_lost = |held: &HeldPart| held.all_holders().iter().chain([&held.origin]).any(is_lost);
    let had_lost = known.into_iter().any(|study| study.parts.iter().any(may_be_lost));
    usize::from(had_lost) + usize::from(cluster.has_flipped(study))
}

async fn is_all_up(cluster: &Cluster) -> bool {
    cluster.all_readable().await.len() == cluster.slots().count()
}

/// In how many zones disks have all that is stored of an instance, as any of the nodes that received it has it: each
/// seals it under a key of its own. None when no node that is up has all of it.
async fn zones_with(cluster: &Cluster, sop_instance: &str, zones: &BTreeMap<u32, String>) -> Option<usize> {
    let mut forms = BTreeSet::new();
    for running in cluster.all_running() {
        forms.extend(durable::of_instance(&running.store, sop_instance).await);
    }
    if forms.is_empty() {
        // Who received it may have given it up, and others have copies.
        for running in cluster.all_running() {
            let parts = parts(&running);
            forms.extend(durable::of_instance_in(&running.store, &parts, sop_instance).await);
        }
    }
    let mut found = BTreeSet::new();
    for marks in &forms {
        found.extend(durable::zones_with(cluster, marks, zones, ZONES));
    }
    (!forms.is_empty()).then_some(found.len())
}

/// The manifests of all parts, as a node knows them.
fn parts(running: &Running) -> Vec<Hash> {
    let engine = running.group.reader();
    let studies = View::new(&*engine).studies(None, usize::MAX).unwrap_or_default();
    studies.iter().flat_map(|study| &study.parts).map(|held| Hash(held.part.manifest)).collect()
}

/// As each site says of itself.
fn own_zone(slot: u32) -> String {
    format!("zone-{slot}")
}

/// The zone of each slot: by the layout, if it is the one of that time, else by what each site says of itself.
fn zones(cluster: &Cluster, layout: u64) -> BTreeMap<u32, String> {
    let plan = cluster.newest().and_then(|running| View::new(&*running.group.reader()).plan().ok());
    let plan = plan.filter(|plan| plan.layout().version == layout);
    let zone = |slot: u32| {
        let ground = plan.as_ref()?.ground(SiteId(cluster.site(slot)?))?;
        Some(ground.zone.to_string())
    };
    cluster.slots().map(|slot| (slot, zone(slot).unwrap_or_else(|| own_zone(slot)))).collect()
}

/// Waits until every sender is answered; a violation when that takes too long.
pub(crate) async fn all_are_answered(cluster: &Cluster, asking: Vec<(u32, JoinHandle<()>)>) {
    let deadline = cluster.world.instant(cluster.world.now() + ANSWERED);
    for (slot, mut sender) in asking {
        if tokio::time::timeout_at(deadline, &mut sender).await.is_err() {
            if cluster.gateway_slot() == Some(slot) && cluster.lost() > 0 {
                // What has left its spool is known by its UID to the centre alone that was lost.
                cluster.world.sometimes("a gateway's commitment was open to the end after a centre was lost");
                sender.abort();
                continue;
            }
            if cluster.gateway_slot() == Some(slot) && !cluster.can_be_safe(slot) {
                cluster.world.sometimes("the layout left a gateway's images no second zone");
                sender.abort();
                continue;
            }
            let detail =
                format!("{ANSWERED:?} after all copies were made, a storage commitment of slot {slot} is open");
            cluster.world.violation("I9", detail);
            sender.abort();
        }
    }
}
