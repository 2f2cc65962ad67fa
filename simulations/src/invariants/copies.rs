//! I5 and I9 for images: once the faults are over, each study is on as many sites as the layout wants, what a site
//! says that it holds, it has, and a site that is drained, or must not have it, is rid of what others have.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use axum::http::{Method, StatusCode};
use maillage_consensus::View;
use maillage_consensus::ids::{Name, SiteId};
use maillage_consensus::mesh::{HeldPart, Study};
use maillage_consensus::placement::{Ground, Plan};
use maillage_store::{Hash, StudyManifest};

use crate::cluster::{Cluster, Running};
use crate::invariants::ZONES;
use crate::workload::http;

/// How long after the last work all copies must be made, besides the grace of silent sites.
const COPIED: Duration = Duration::from_secs(300);
/// What a site has without the mesh's knowledge, as of a reader whose claim ended in a partition, it looks for so often.
const STRAYS: Duration = Duration::from_secs(600);
/// A repair may take so long.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks.
const LOOK: Duration = Duration::from_secs(2);
/// Studies that a node lists at once.
const PAGE: usize = 256;

/// Every study, as the node of `running` knows it.
fn studies(running: &Running) -> Vec<Study> {
    let engine = running.group.reader();
    let view = View::new(&*engine);
    let mut all: Vec<Study> = Vec::new();
    loop {
        let after = all.last().map(|study| study.uid.to_string());
        let page = view.studies(after.as_deref(), PAGE).unwrap_or_default();
        let is_last = page.len() < PAGE;
        all.extend(page);
        if is_last {
            return all;
        }
    }
}

/// Instances of the parts that a site has, by whether others have them.
#[derive(Default)]
pub(crate) struct Held {
    pub(crate) elsewhere: BTreeSet<String>,
    pub(crate) here_alone: BTreeSet<String>,
}

/// The instances that other sites hold than that of `running` and the one with the rotten disk, and those that none of
/// them does, as far as the node of `running` can tell.
pub(crate) async fn held(cluster: &Cluster, running: &Running) -> Held {
    let rotten = cluster.rotten().and_then(|slot| cluster.site(slot));
    let mut instances = Held::default();
    for study in studies(running) {
        for held in study.parts {
            let others = held
                .holders
                .iter()
                .filter(|site| site.0 != running.site && Some(site.0) != rotten && !cluster.is_lost(site.0));
            let is_elsewhere = others.count() > 0;
            let Ok(Some(bytes)) = running.store.get_manifest(Hash(held.part.manifest)).await else { continue };
            let Ok(manifest) = StudyManifest::decode(&bytes) else { continue };
            let of = if is_elsewhere { &mut instances.elsewhere } else { &mut instances.here_alone };
            of.extend(manifest.instances.into_iter().map(|instance| instance.sop_instance));
        }
    }
    instances.here_alone.retain(|sop_instance| !instances.elsewhere.contains(sop_instance));
    instances
}

/// What is not as it should be; sites that are lost hold nothing.
async fn lacking(cluster: &Cluster) -> Option<String> {
    let all = cluster.all_running();
    let Some(any) = all.first() else { return Some("no node is up".to_owned()) };
    let plan = match View::new(&*any.group.reader()).plan() {
        Ok(plan) => plan,
        Err(error) => return Some(format!("the plan cannot be read: {error}")),
    };
    for study in studies(any) {
        if cluster.may_have_rotted(study.uid.as_str()) {
            // Where its only copy was wanted, which is seen when it is retrieved.
            continue;
        }
        for held in &study.parts {
            // Lost with the only machine that had it, and sent again: it is in another part.
            if cluster.has_lost_one() && held.holders.iter().all(|site| cluster.is_lost(site.0)) {
                continue;
            }
            let holders = all.iter().filter(|running| held.holders.iter().any(|site| site.0 == running.site));
            let (counted, others): (Vec<&Running>, Vec<&Running>) =
                holders.partition(|running| plan.counts(held.origin, SiteId(running.site)));
            let mut could: Vec<&Ground> = could_have(&plan, held.origin).collect();
            could.retain(|ground| !cluster.is_lost(ground.site.0));
            let wanted = plan.copies(held.origin).min(could.len());
            if counted.len() < wanted {
                return Some(format!("study {} is held by {} of {wanted} sites", study.uid, counted.len()));
            }
            if let Some(lacking) = zones_lacking(&plan, held, &could, &counted) {
                return Some(lacking);
            }
            if let Some(other) = others.iter().find(|other| plan.spares(held, SiteId(other.site))) {
                return Some(format!("slot {} has not given up study {}", other.owner.slot, study.uid));
            }
            // What rotted is brought back from another that has it.
            let is_sound = |holder: &&Running| cluster.rotten() != Some(holder.owner.slot);
            let can_mend = counted.iter().any(&is_sound);
            for holder in counted.iter().filter(|holder| can_mend || is_sound(holder)) {
                let verified = holder.store.verify_study(Hash(held.part.manifest)).await;
                if let Err(error) = verified.as_ref().map(|report| report.is_complete()) {
                    return Some(format!("slot {} does not have study {}: {error}", holder.owner.slot, study.uid));
                }
                if verified.is_ok_and(|report| !report.is_complete()) {
                    return Some(format!("slot {} lacks chunks of study {}", holder.owner.slot, study.uid));
                }
            }
        }
    }
    None
}

/// The sites that could have copies of what `origin` receives, were they all there.
pub(crate) fn could_have(plan: &Plan, origin: SiteId) -> impl Iterator<Item = &Ground> {
    plan.grounds().iter().filter(move |ground| ground.weight > 0 && plan.counts(origin, ground.site))
}

/// Whether all that count are in one zone, though two could have a part.
fn zones_lacking(plan: &Plan, held: &HeldPart, could: &[&Ground], counted: &[&Running]) -> Option<String> {
    let could: BTreeSet<&Name> = could.iter().map(|ground| &ground.zone).collect();
    let zone = |running: &&Running| Some(&plan.ground(SiteId(running.site))?.zone);
    let are: BTreeSet<&Name> = counted.iter().filter_map(zone).collect();
    let wanted = could.len().min(plan.copies(held.origin)).min(ZONES);
    (are.len() < wanted).then(|| format!("study {} is in {} of {wanted} zones", held.part.study, are.len()))
}

/// A site that was to be rid of a part, by the mesh's word, and has it still.
async fn left_behind(cluster: &Cluster) -> Option<String> {
    let all = cluster.all_running();
    let any = all.first()?;
    let plan = View::new(&*any.group.reader()).plan().ok()?;
    for study in studies(any) {
        for held in &study.parts {
            if let Some(left) = part_left_behind(&all, &plan, held).await {
                return Some(left);
            }
        }
    }
    None
}

async fn part_left_behind(all: &[Running], plan: &Plan, held: &HeldPart) -> Option<String> {
    for running in all {
        let site = SiteId(running.site);
        if held.origin == site || held.holders.contains(&site) || plan.counts(held.origin, site) {
            continue;
        }
        let manifest = Hash(held.part.manifest);
        if running.store.held_among(vec![manifest]).await.is_ok_and(|held| !held.is_empty()) {
            return Some(format!("slot {} has study {} still, which it gave up", running.owner.slot, held.part.study));
        }
    }
    None
}

/// Has the node with the rotten disk bring back what it lacks, as its sysadmin does who is told.
async fn repair(cluster: &Arc<Cluster>) {
    let Some(running) = cluster.rotten().and_then(|slot| cluster.running(slot)) else { return };
    let request = http::request(Method::POST, "/admin/v1/repair", None, None);
    let answered = http::ask_on_socket(cluster, &running, PATIENCE, request).await;
    if answered.is_some_and(|answered| answered.status == StatusCode::OK) {
        cluster.world.sometimes("a rotten disk was repaired");
    }
}

/// Waits until all copies are made; a violation when that takes too long.
pub(crate) async fn all_are_made(cluster: &Arc<Cluster>) {
    let start = cluster.world.now();
    let limit = COPIED + cluster.plan.grace;
    loop {
        repair(cluster).await;
        let Some(lacking) = lacking(cluster).await else { break };
        if cluster.world.now() - start > limit {
            cluster.world.violation("I9", format!("{limit:?} after the last work, {lacking}"));
            return;
        }
        tokio::time::sleep(LOOK).await;
    }
    let limit = limit + STRAYS;
    while let Some(left) = left_behind(cluster).await {
        cluster.world.sometimes("a copy was left of which the mesh did not know");
        if cluster.world.now() - start > limit {
            cluster.world.violation("I9", format!("{limit:?} after the last work, {left}"));
            return;
        }
        tokio::time::sleep(LOOK).await;
    }
    if cluster.all_running().iter().any(|running| !studies(running).is_empty()) {
        cluster.world.sometimes("all copies were made");
    }
}
