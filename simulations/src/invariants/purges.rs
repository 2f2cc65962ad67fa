//! I6: after a purge and a heal no disk holds anything of it, whoever was away, and no node shows it; and what came
//! after the purge is there (which is I3's to see).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::http::{Method, StatusCode};
use bytes::Bytes;
use maillage_consensus::View;
use maillage_consensus::exam::ExamState;
use maillage_consensus::ids::{ExamId, KeyId, SiteId};
use maillage_consensus::study_key::KeptKey;
use maillage_store::Hash;

use crate::cluster::{Cluster, Running};
use crate::workload::dicom::parts;
use crate::workload::http;
use crate::world::{World, lock};

/// How long after the last work every site must have confirmed every purge.
const CONFIRMED: Duration = Duration::from_secs(120);
/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// A viewer that hears nothing for so long gives up.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is stored of a study before its purge.
#[derive(Debug, Clone, Default)]
pub(crate) struct Kept {
    pub(crate) study: String,
    /// SOP Instance UIDs.
    pub(crate) instances: Vec<String>,
    /// Chunks and manifests.
    pub(crate) objects: Vec<Hash>,
    /// Bytes that are stored of them and nowhere else, as they are in packs and as they came.
    pub(crate) marks: Vec<Bytes>,
    /// Under which they are sealed.
    pub(crate) keys: Vec<KeyId>,
}

/// See the module.
pub(crate) struct Purges {
    world: Arc<World>,
    kept: Mutex<BTreeMap<ExamId, Kept>>,
    /// Acknowledged purges, with an index of the log at which they had been applied.
    told: Mutex<BTreeMap<ExamId, u64>>,
}

impl Purges {
    pub(crate) fn new(world: Arc<World>) -> Self {
        Self { world, kept: Mutex::default(), told: Mutex::default() }
    }

    /// A study that is to be purged later.
    pub(crate) fn keeps(&self, exam: ExamId, kept: Kept) {
        lock(&self.kept).insert(exam, kept);
    }

    /// A client was told that the purge of `exam` is decided, by an answer at `index`.
    pub(crate) fn purged(&self, exam: ExamId, index: u64) {
        lock(&self.told).insert(exam, index);
    }

    /// An acknowledged purge stands on every node that has reached it.
    pub(crate) fn check(&self, running: &Running) {
        let applied = running.group.applied();
        let engine = running.group.reader();
        let view = View::new(&*engine);
        for (exam, index) in lock(&self.told).iter() {
            if *index <= applied && !is_purged(&view, *exam) {
                let detail = format!("{:?}: exam {exam} is not purged, though it was told so", running.owner);
                self.world.violation("I6", detail);
            }
        }
    }

    /// What must be gone, as the node of `running` knows it: also purges whose answer was lost.
    fn gone(&self, running: &Running) -> Vec<Kept> {
        let engine = running.group.reader();
        let view = View::new(&*engine);
        let kept = lock(&self.kept);
        kept.iter().filter(|(exam, _)| is_purged(&view, **exam)).map(|(_, kept)| kept.clone()).collect()
    }
}

fn is_purged(view: &View<'_>, exam: ExamId) -> bool {
    view.exam(exam).ok().flatten().is_some_and(|exam| exam.state == ExamState::Purged)
}

/// Waits until every site has confirmed every purge, then searches stores, disks and answers.
pub(crate) async fn all_are_gone(cluster: &Cluster) {
    let deadline = cluster.world.now() + CONFIRMED;
    while let Some(pending) = unconfirmed(cluster) {
        if cluster.world.now() > deadline {
            cluster.world.violation("I9", format!("{CONFIRMED:?} after the last work, {pending}"));
            return;
        }
        tokio::time::sleep(LOOK).await;
    }
    for running in cluster.all_running() {
        let gone = cluster.watch.purges.gone(&running);
        if gone.is_empty() {
            continue;
        }
        for kept in &gone {
            opens_no_more(cluster, &running, kept);
            is_not_stored(cluster, &running, kept).await;
            is_not_shown(cluster, &running, kept).await;
        }
        let marks: BTreeSet<Bytes> = gone.into_iter().flat_map(|kept| kept.marks).collect();
        if let Some(path) = cluster.disks.find(running.owner.slot, &marks) {
            cluster.world.violation("I6", format!("{:?} has purged bytes in {path}", running.owner));
        }
        cluster.world.sometimes("a disk was searched for purged images");
    }
}

/// What a site has still to confirm; a machine that is lost with its disk confirms nothing.
fn unconfirmed(cluster: &Cluster) -> Option<String> {
    cluster.all_running().iter().find_map(|running| {
        let engine = running.group.reader();
        let (pending, _) = View::new(&*engine).purges_of(SiteId(running.site), None, 1).ok()?;
        let first = pending.first()?;
        Some(format!("{:?} has not confirmed the purge of exam {}", running.owner, first.exam))
    })
}

/// Copies that were made before the purge, of backups too, open nowhere: no state has their keys.
fn opens_no_more(cluster: &Cluster, running: &Running, kept: &Kept) {
    let engine = running.group.reader();
    let view = View::new(&*engine);
    for id in &kept.keys {
        match view.study_key(*id) {
            Ok(Some(key)) if matches!(key.what, KeptKey::Destroyed { .. }) => {
                cluster.world.sometimes("a key was destroyed")
            }
            Ok(Some(_)) => {
                let detail = format!("{:?} has the key of study {}, which was purged", running.owner, kept.study);
                cluster.world.violation("I6", detail);
            }
            _ => {}
        }
    }
}

async fn is_not_stored(cluster: &Cluster, running: &Running, kept: &Kept) {
    let missing = running.store.missing(&kept.objects).await.unwrap_or_default();
    if missing.len() < kept.objects.len() {
        let left = kept.objects.len() - missing.len();
        let detail = format!("{:?} stores {left} purged objects of study {}", running.owner, kept.study);
        cluster.world.violation("I6", detail);
    }
}

async fn is_not_shown(cluster: &Cluster, running: &Running, kept: &Kept) {
    let request = http::request(Method::GET, &format!("/dicom-web/studies/{}", kept.study), None, None);
    let Some(answered) = http::ask(cluster, running, PATIENCE, request).await else { return };
    if answered.status != StatusCode::OK {
        return;
    }
    let shown = parts(&answered.content_type, &answered.body).unwrap_or_default();
    if let Some((sop_instance, _)) = shown.iter().find(|(shown, _)| kept.instances.contains(shown)) {
        cluster.world.violation("I6", format!("{:?} shows {sop_instance}, which was purged", running.owner));
    }
}
