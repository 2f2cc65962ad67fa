//! What is prefetched stays within its room at every node, and is there when it is claimed (which is no promise, but
//! must happen).

use maillage_consensus::View;
use maillage_consensus::ids::{ExamId, SiteId};
use maillage_store::Hash;

use crate::cluster::{Cluster, Running};

/// Bytes beyond the room that are no breach: what a part takes besides its data sets (manifests, seals) is known only
/// once it is here, and then something else goes.
const SLACK: u64 = 64 << 10;
/// The share of the room from which on it counts as used, in hundredths.
const USED_PERCENT: u64 = 50;

/// What the node of `running` has prefetched is no more than it may.
pub(crate) async fn check(cluster: &Cluster, running: &Running) {
    let room = cluster.plan.storage.prefetch_mib << 20;
    let bytes = running.store.stored_bytes(running.node.prefetched().await).await.unwrap_or(0);
    if bytes > room + SLACK {
        let detail = format!("{:?} has prefetched {bytes} bytes, and has room for {room}", running.owner);
        cluster.world.violation("prefetch", detail);
    } else if bytes > 0 {
        cluster.world.sometimes("images were prefetched");
        if bytes * 100 > room * USED_PERCENT {
            cluster.world.sometimes("the room for what is prefetched was used");
        }
    }
}

/// An exam was claimed at `slot`: notes when its images are there and nobody counts on them.
pub(crate) async fn claimed(cluster: &Cluster, slot: u32, exam: u64) {
    let Some(running) = cluster.running(slot) else { return };
    let parts = {
        let engine = running.group.reader();
        let view = View::new(&*engine);
        let studies = view.exam(ExamId(exam)).ok().flatten().map(|exam| exam.studies).unwrap_or_default();
        let studies = studies.iter().filter_map(|uid| view.study(uid.as_str()).ok().flatten());
        studies.flat_map(|study| study.parts).collect::<Vec<_>>()
    };
    let site = SiteId(running.site);
    for held in parts.iter().filter(|held| held.origin != site && !held.holders.contains(&site)) {
        match running.store.lacks(Hash(held.part.manifest)).await {
            Ok(lacks) if lacks.is_empty() => cluster.world.sometimes("a claim found its images prefetched"),
            _ => cluster.world.sometimes("a claim had its images brought"),
        }
    }
}
