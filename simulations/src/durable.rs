//! What is on the disks themselves, whatever any node says of it: the bytes of an image or of a part, and the sites
//! that would still have them after a power cut at this instant.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use maillage_store::{Hash, InstanceManifest, Store};

use crate::cluster::Cluster;

/// The bytes that are stored of an instance: its manifest and all its chunks. None when the store lacks any.
pub(crate) async fn of_instance(store: &Store, sop_instance: &str) -> Option<Vec<Bytes>> {
    let listed = store.instance(sop_instance).await.ok()??;
    of_manifest(store, listed.entry.manifest).await
}

/// As [`of_instance`], where a store has it as a copy: by the manifests of the parts that the mesh knows.
pub(crate) async fn of_instance_in(store: &Store, parts: &[Hash], sop_instance: &str) -> Option<Vec<Bytes>> {
    for part in parts {
        let Ok(Some(study)) = store.study_manifest(*part).await else { continue };
        if let Some(entry) = study.instances.iter().find(|entry| entry.sop_instance == sop_instance) {
            return of_manifest(store, entry.manifest).await;
        }
    }
    None
}

/// Instances of a part whose bytes are looked for: its first and last ones.
const LOOKED_FOR: usize = 2;

/// Bytes that are stored of a part: its study's manifest, and the last chunk of some of its instances. None when the
/// store lacks any of all instances.
pub(crate) async fn of_part(store: &Store, manifest: Hash) -> Option<Vec<Bytes>> {
    let study = store.study_manifest(manifest).await.ok()??;
    let mut marks = vec![store.get_manifest(manifest).await.ok()??];
    let count = study.instances.len();
    for (place, instance) in study.instances.into_iter().enumerate() {
        let all = of_manifest(store, instance.manifest).await?;
        if place == 0 || place + LOOKED_FOR > count {
            marks.extend(all.into_iter().next_back());
        }
    }
    Some(marks)
}

async fn of_manifest(store: &Store, manifest: Hash) -> Option<Vec<Bytes>> {
    let bytes = store.get_manifest(manifest).await.ok()??;
    let decoded = InstanceManifest::decode(&bytes).ok()?;
    let mut marks = vec![bytes];
    for chunk in &decoded.chunks {
        marks.push(store.get(chunk.hash).await.ok()??);
    }
    Some(marks)
}

/// Zones on whose disks all of `marks` are durably; no more are looked for than `enough`.
pub(crate) fn zones_with(
    cluster: &Cluster,
    marks: &[Bytes],
    zones: &BTreeMap<u32, String>,
    enough: usize,
) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (slot, zone) in zones {
        if found.len() < enough && !found.contains(zone) && cluster.disks.keeps(*slot, marks) {
            found.insert(zone.clone());
        }
    }
    found
}
