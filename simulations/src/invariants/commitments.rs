//! I5 and I9 for storage commitment: nothing is ever committed before the disks of two sites in distinct zones have all
//! of it durably, what was committed is never asked for again, and every request is answered.
//!
//! Whoever hears "committed" deletes. So it is not the mesh that is asked where copies are, but the disks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use maillage_consensus::View;
use maillage_consensus::ids::SiteId;
use tokio::task::JoinHandle;

use crate::cluster::{Cluster, Running};
use crate::durable;
use crate::world::{World, lock};

/// Zones on whose disks it is; each site is one of its own here unless the layout says otherwise.
const ZONES: usize = 2;
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

    /// The node of `running` told a sender that these instances are safe. When it was asked, so many machines were lost
    /// for good, and this layout held.
    pub(crate) async fn told(
        &self,
        cluster: &Cluster,
        running: &Running,
        (lost, layout): (usize, u64),
        instances: &[String],
    ) {
        lock(&self.committed).extend(instances.iter().cloned());
        // A machine that is lost may have been one of the two; a disk that rots may no longer have what it had.
        let excused = usize::from(cluster.lost() > lost) + usize::from(cluster.rotten().is_some());
        let zones = zones(cluster, layout);
        for sop_instance in instances {
            let Some(marks) = marks(cluster, running, sop_instance).await else {
                let detail = format!("{:?} told that {sop_instance} is safe, and no node has all of it", running.owner);
                if excused == 0 {
                    self.world.violation("I5", detail);
                }
                continue;
            };
            if !durable::is_in_zones(cluster, &marks, &zones, ZONES.saturating_sub(excused).max(1)) {
                let detail = format!(
                    "{:?} told that {sop_instance} is safe, which is not on the disks of two zones",
                    running.owner
                );
                self.world.violation("I5", detail);
            }
        }
    }
}

/// The zone of each slot: by the layout, if it is the one of that time, else by what each site says of itself.
fn zones(cluster: &Cluster, layout: u64) -> BTreeMap<u32, String> {
    let own = |slot: u32| format!("zone-{slot}");
    let plan = cluster.all_running().first().and_then(|running| View::new(&*running.group.reader()).plan().ok());
    let plan = plan.filter(|plan| plan.layout().version == layout);
    let zone = |slot: u32| {
        let ground = plan.as_ref()?.ground(SiteId(cluster.site(slot)?))?;
        Some(ground.zone.to_string())
    };
    cluster.slots().map(|slot| (slot, zone(slot).unwrap_or_else(|| own(slot)))).collect()
}

/// What is stored of an instance, at the node that was asked or at any other.
async fn marks(cluster: &Cluster, running: &Running, sop_instance: &str) -> Option<Vec<bytes::Bytes>> {
    for running in std::iter::once(running.clone()).chain(cluster.all_running()) {
        if let Some(marks) = durable::of_instance(&running.store, sop_instance).await {
            return Some(marks);
        }
    }
    None
}

/// Waits until every sender is answered; a violation when that takes too long.
pub(crate) async fn all_are_answered(cluster: &Cluster, asking: Vec<(u32, JoinHandle<()>)>) {
    let deadline = cluster.world.instant(cluster.world.now() + ANSWERED);
    for (slot, mut sender) in asking {
        if tokio::time::timeout_at(deadline, &mut sender).await.is_err() {
            let detail =
                format!("{ANSWERED:?} after all copies were made, a storage commitment of slot {slot} is open");
            cluster.world.violation("I9", detail);
            sender.abort();
        }
    }
}
