//! Bit rot, truncation and lost files: detected, never served, the rest stays readable.

use std::sync::Arc;

use maillage_host::Disk;
use maillage_host::engine::{FjallHome, MemoryHome};
use maillage_store::{Chunk, Hold, PutGroup, Recovery, StoreError, StoreEvent, StudyManifest};

use crate::faulty_disk::FaultyDisk;
use crate::fixture::{
    STUDY, TestInstance, assert_whole, commit, config, flip, instance, locate, open, open_with, packs, read_back,
};

/// Instances in a store that was closed; the first of several packs is full of them.
async fn filled(disk: &Disk, home: &Arc<MemoryHome>) -> Vec<TestInstance> {
    let store = open(disk, home).await;
    let instances: Vec<TestInstance> = (0..30).map(|n| instance(n, n, 20_000)).collect();
    for instance in &instances {
        commit(&store, instance).await.expect("commit");
    }
    store.close().await.expect("close");
    instances
}

#[tokio::test]
async fn a_flipped_bit_anywhere_in_a_pack_is_never_served() {
    let root = tempfile::tempdir().expect("temporary directory");
    let disk = Disk::real(root.path());
    let instances = filled(&disk, &Arc::default()).await;
    let packs = packs(&disk).await;
    assert!(packs.len() >= 3, "several packs: {}", packs.len());
    for (position, path) in packs.iter().enumerate() {
        let intact = disk.read(path).await.expect("read");
        let len = intact.len() as u64;
        // Odd steps reach headers, payloads, the seal and the zeroes alike.
        for (count, at) in (0..len).step_by(3_371).enumerate() {
            let bit = u8::try_from(count % 8).expect("small");
            flip(&disk, path, at, bit).await;
            // From nothing but the packs, the harder way.
            let store = open(&disk, &Arc::default()).await;
            let mut lost = 0;
            for instance in &instances {
                if store.instance(&instance.manifest.sop_instance).await.expect("index").is_none() {
                    lost += 1;
                    continue;
                }
                match read_back(&store, instance).await {
                    Ok(dataset) => assert_eq!(dataset, instance.dataset, "wrong bytes are never served"),
                    Err(StoreError::Corrupt(_) | StoreError::Missing(_)) => lost += 1,
                    Err(other) => panic!("{other}"),
                }
            }
            assert!(lost <= 1, "one bit costs one instance at most: {lost} at {at} of {path}");
            if position + 1 < packs.len() && lost == 1 {
                let recovery = store.recovery();
                let noticed = !recovery.damage.is_empty() || !store.bad_chunks(9).await.expect("bad").is_empty();
                assert!(noticed, "what was durable is reported, not cut: {at} of {path}");
                assert_eq!(recovery.torn, None);
            }
            drop(store);
            disk.replace(path, intact.clone()).await.expect("restore");
        }
    }
    let store = open(&disk, &Arc::default()).await;
    for instance in &instances {
        assert_whole(&store, instance).await;
    }
}

#[tokio::test]
async fn a_damaged_chunk_is_quarantined_announced_and_repaired_by_a_put() {
    let faulty = FaultyDisk::new();
    let disk = faulty.disk();
    let home = Arc::default();
    let instances = filled(&disk, &home).await;
    let chunk = instances[3].cut.pixels[0].chunk().clone();
    let (path, at) = locate(&disk, chunk.bytes()).await;
    flip(&disk, &path, at + 5_000, 3).await;

    let store = open(&disk, &home).await;
    let mut events = store.events();
    assert!(store.has(chunk.hash()).await.expect("has"), "not known before it is read");
    assert!(matches!(store.get(chunk.hash()).await, Err(StoreError::Corrupt(hash)) if hash == chunk.hash()));
    assert!(matches!(store.get(chunk.hash()).await, Err(StoreError::Corrupt(_))), "and stays so");
    assert_eq!(events.recv().await, Ok(StoreEvent::Quarantined(chunk.hash())));
    assert!(!store.has(chunk.hash()).await.expect("has"));
    let asked = [instances[2].cut.pixels[0].chunk().hash(), chunk.hash()];
    assert_eq!(store.missing(&asked).await.expect("missing"), [chunk.hash()]);
    assert_eq!(store.bad_chunks(9).await.expect("bad"), [chunk.hash()]);
    assert_eq!(store.stats().await.expect("stats").bad, 1);

    let before = store.stats().await.expect("stats").chunks;
    store.put(PutGroup { chunks: vec![chunk.clone()], ..PutGroup::default() }).await.expect("put again");
    assert_eq!(events.recv().await, Ok(StoreEvent::Repaired(chunk.hash())));
    assert_whole(&store, &instances[3]).await;
    let stats = store.stats().await.expect("stats");
    assert_eq!((stats.bad, stats.chunks), (0, before));
    store.close().await.expect("close");
    let rebuilt = open(&disk, &Arc::default()).await;
    assert_whole(&rebuilt, &instances[3]).await;
}

#[tokio::test]
async fn a_forged_record_inside_a_payload_is_not_found_by_resynchronising() {
    let faulty = FaultyDisk::new();
    let disk = faulty.disk();
    let instances = filled(&disk, &Arc::default()).await;
    // A whole valid pack as the pixels of an instance, its headers damaged in front: what lies inside
    // must not be taken for records.
    let inner = disk.read(&packs(&disk).await[0]).await.expect("read");
    let other = FaultyDisk::new();
    let store = open(&other.disk(), &Arc::default()).await;
    let chunk = Chunk::new(inner.slice(4096..60_000));
    store.put(PutGroup { chunks: vec![chunk.clone()], ..PutGroup::default() }).await.expect("put");
    store.put(PutGroup { chunks: vec![Chunk::new("after".into())], ..PutGroup::default() }).await.expect("put");
    store.close().await.expect("close");
    let (path, at) = locate(&other.disk(), chunk.bytes()).await;
    flip(&other.disk(), &path, at - 30, 0).await;
    let store = open(&other.disk(), &Arc::default()).await;
    assert_eq!(store.recovery().damage.len(), 1, "the header is gone");
    assert!(store.has(Chunk::new("after".into()).hash()).await.expect("has"), "what follows is found");
    assert_eq!(store.instances(STUDY).await.expect("instances"), []);
    assert!(!store.has(instances[0].cut.pixels[0].chunk().hash()).await.expect("has"));
}

#[tokio::test]
async fn a_truncated_or_missing_pack_costs_only_its_own_content() {
    for truncated in [true, false] {
        for keeps_index in [true, false] {
            let faulty = FaultyDisk::new();
            let disk = faulty.disk();
            let home = Arc::default();
            let instances = filled(&disk, &home).await;
            let path = packs(&disk).await[0].clone();
            if truncated {
                let file = disk.open(&path).await.expect("open");
                file.set_len(100_000).await.expect("truncate");
                file.sync().await.expect("sync");
            } else {
                disk.remove(&path).await.expect("remove");
            }
            let home = if keeps_index { home } else { Arc::default() };
            let store = open(&disk, &home).await;
            let recovery = store.recovery();
            assert_eq!(recovery.torn, None, "a sealed pack is never cut");
            if truncated {
                assert!(!recovery.damage.is_empty());
            } else {
                assert_eq!(recovery.missing.len(), usize::from(keeps_index));
            }
            let mut whole = 0;
            for instance in &instances {
                let is_listed = store.instance(&instance.manifest.sop_instance).await.expect("index").is_some();
                whole += usize::from(is_listed && read_back(&store, instance).await.is_ok());
                // The sender sends it again: it must be durable again, not taken for a duplicate.
                commit(&store, instance).await.expect("commit again");
                assert_whole(&store, instance).await;
            }
            assert!(whole >= 15 && whole < instances.len(), "{whole}");
            store.close().await.expect("close");
            let rebuilt = open(&disk, &Arc::default()).await;
            for instance in &instances {
                assert_whole(&rebuilt, instance).await;
            }
        }
    }
}

#[tokio::test]
async fn damage_to_a_held_study_ends_the_hold() {
    let faulty = FaultyDisk::new();
    let disk = faulty.disk();
    let home = Arc::default();
    let instances = filled(&disk, &home).await;
    let store = open(&disk, &home).await;
    let entries = store.instances(STUDY).await.expect("instances").into_iter().map(|instance| instance.entry);
    let study = StudyManifest::new(STUDY.into(), 1, 1, entries.collect());
    let address = store.put_manifest(study.encode().expect("encode")).await.expect("put");
    assert_eq!(store.hold(address).await.expect("hold"), Hold::Held);
    assert_eq!(store.held().await.expect("held").len(), 1);
    assert!(store.verify_study(address).await.expect("verify").is_complete());

    let chunk = instances[7].cut.head[0].chunk();
    let (path, at) = locate(&disk, chunk.bytes()).await;
    flip(&disk, &path, at, 0).await;
    let mut events = store.events();
    let report = store.verify_study(address).await.expect("verify");
    assert_eq!((report.corrupt.as_slice(), report.instances), ([chunk.hash()].as_slice(), 30));
    assert!(!report.is_complete());
    assert_eq!(events.recv().await, Ok(StoreEvent::Quarantined(chunk.hash())));
    assert_eq!(events.recv().await, Ok(StoreEvent::HoldLost(address)));
    assert_eq!(store.held().await.expect("held"), []);
    assert_eq!(store.hold(address).await.expect("hold"), Hold::Incomplete { missing: vec![chunk.hash()] });
    store.put(PutGroup { chunks: vec![chunk.clone()], ..PutGroup::default() }).await.expect("put again");
    assert_eq!(store.hold(address).await.expect("hold"), Hold::Held);
}

#[tokio::test]
async fn an_unusable_index_is_rebuilt_from_the_packs() {
    let root = tempfile::tempdir().expect("temporary directory");
    let disk = Disk::real(root.path());
    let home = || Arc::new(FjallHome::new(root.path().join("index"), 8 << 20));
    let instances: Vec<TestInstance> = (0..5).map(|n| instance(n, n, 20_000)).collect();
    let store = open_with(&disk, home(), config()).await;
    for instance in &instances {
        commit(&store, instance).await.expect("commit");
    }
    store.close().await.expect("close");
    drop(store);
    let store = open_with(&disk, home(), config()).await;
    assert_eq!(*store.recovery(), Recovery::default(), "a closed store is complete");
    assert_whole(&store, &instances[4]).await;
    store.close().await.expect("close");
    drop(store);

    // Opening tells damage by error: whatever fjall keeps in its first generation, broken.
    let names = disk.list("index/1").await.expect("list");
    assert!(!names.is_empty());
    for name in names {
        let path = format!("index/1/{name}");
        if disk.list(&path).await.is_err() {
            disk.replace(&path, "rubbish".into()).await.expect("damage the index");
        }
    }
    let store = open_with(&disk, home(), config()).await;
    assert!(store.recovery().index_rebuilt && store.recovery().records_replayed > 0, "{:?}", store.recovery());
    for instance in &instances {
        assert_whole(&store, instance).await;
    }
}
