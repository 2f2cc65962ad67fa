//! A site's scanner: instances that the store must keep once it said so.

use std::sync::Arc;

use bytes::Bytes;
use maillage_host::UnixMillis;
use maillage_store::{CutInstance, InstanceIdentity, InstanceManifest, ManifestFlags, StoreError, Stored, cut};

use super::hospital::noise;
use crate::cluster::Cluster;
use crate::invariants::instances::Acknowledged;
use crate::rng::Rng;

/// Instances of one site in one run.
const INSTANCES_MAX: u64 = 400;

/// An instance as it arrives.
#[derive(Clone)]
pub(super) struct Sample {
    cut: CutInstance,
    manifest: InstanceManifest,
    dataset: Bytes,
}

pub(super) fn instance(study: &str, number: u64, seed: u64, len: u64) -> Sample {
    let dataset = noise(seed, len);
    let cut = cut(dataset.clone(), dataset.len() / 8);
    let identity = InstanceIdentity {
        sop_instance: format!("{study}.1.{number}"),
        sop_class: "1.2.840.10008.5.1.4.1.1.2".to_owned(),
        series_uid: format!("{study}.1"),
        study_uid: study.to_owned(),
        transfer_syntax: "1.2.840.10008.1.2.1".to_owned(),
    };
    let manifest = InstanceManifest::of(&cut, identity, Vec::new(), ManifestFlags::default());
    Sample { cut, manifest, dataset }
}

/// Stores an instance at the node of `slot`; `false` when it was not acknowledged.
pub(super) async fn store(cluster: &Arc<Cluster>, slot: u32, sample: &Sample) -> bool {
    let Some(running) = cluster.running(slot) else { return false };
    let world = &cluster.world;
    let received_at = UnixMillis(world.wall_ms(slot));
    let Sample { cut, manifest, dataset } = sample.clone();
    let sop_instance = manifest.sop_instance.clone();
    let asked = world.spawn_on(running.owner, async move {
        running.store.commit_instance(cut, manifest, received_at, "CT1".to_owned()).await
    });
    match asked.await {
        Ok(Ok(Stored::New { .. } | Stored::Duplicate { .. })) => {
            world.event(slot, format_args!("stored {sop_instance}"));
            cluster.watch.instances.acknowledged(slot, Acknowledged { sop_instance, dataset });
            true
        }
        Ok(Ok(Stored::Conflict { .. })) => {
            world.violation("I3", format!("instance {sop_instance} conflicts with itself"));
            true
        }
        Ok(Err(StoreError::Full { .. })) => {
            world.sometimes("an instance was refused for want of room");
            false
        }
        Ok(Err(error)) => {
            world.event(slot, format_args!("not stored {sop_instance}: {error}"));
            false
        }
        Err(_) => false,
    }
}

pub(crate) async fn run(cluster: Arc<Cluster>, slot: u32, mut rng: Rng) {
    let mut last: Option<Sample> = None;
    for number in 0..INSTANCES_MAX {
        tokio::time::sleep(rng.around(cluster.plan.instance_every)).await;
        if cluster.is_ending() {
            return;
        }
        let len = if rng.chance(0.05) { rng.between(20_000, 200_000) } else { rng.between(1, 8_000) };
        let fresh = instance(&format!("2.25.9{slot}"), number, rng.next(), len);
        // A sender that got no answer sends again; one that did sometimes does, too.
        let again = last.take().filter(|_| rng.chance(0.2));
        let sample = again.unwrap_or(fresh);
        let stored = store(&cluster, slot, &sample).await;
        last = Some(sample).filter(|_| !stored || rng.chance(0.1));
    }
}
