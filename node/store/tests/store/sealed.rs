//! Sealed instances: read with their key, verified with it and without any, and put aside for want of one never.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use maillage_host::UnixMillis;
use maillage_store::{
    Cutting, Hash, Hold, InstanceIdentity, InstanceManifest, KeyId, ManifestFlags, PixelPart, SharedKey, SharedKeys,
    Store, StoreError, Stored, StudyKey, StudyManifest,
};

use crate::faulty_disk::FaultyDisk;
use crate::fixture::{STUDY, TestInstance, assert_whole, commit, cut_with, noise, open, read_back};

fn identity(number: u64) -> InstanceIdentity {
    InstanceIdentity {
        sop_instance: format!("{STUDY}.3.{number}"),
        sop_class: "1.2.840.10008.5.1.4.1.1.2".into(),
        series_uid: format!("{STUDY}.3"),
        study_uid: STUDY.into(),
        transfer_syntax: "1.2.840.10008.1.2.1".into(),
    }
}

/// An instance of 2.5 MB that does not shrink, sealed under `key`.
fn sealed(number: u64, key: &Arc<StudyKey>) -> TestInstance {
    sealed_as(identity(number), number, noise(number, 2_500_000), key)
}

/// … of which the bytes are `stored`: others than those of the data set, if a coder goes wrong.
fn sealed_of(number: u64, stored: Bytes, key: &Arc<StudyKey>) -> TestInstance {
    sealed_as(identity(number), number, stored, key)
}

fn sealed_as(identity: InstanceIdentity, seed: u64, stored: Bytes, key: &Arc<StudyKey>) -> TestInstance {
    let dataset = noise(seed, 2_500_000);
    let part = PixelPart { offset: 5_000, rows: None };
    let cut = cut_with(Cutting::new(stored, Hash::of(&dataset), part, Some(Arc::clone(key))));
    let flags = ManifestFlags::default();
    let manifest = InstanceManifest::sealed(&cut, identity, b"HIDDEN^PATIENT", flags, key).expect("sealed");
    TestInstance { cut, manifest, dataset }
}

/// A mesh that says the same of every key.
#[derive(Debug)]
struct Says(Mutex<SharedKey>);

impl SharedKeys for Says {
    fn find(&self, _: KeyId) -> io::Result<SharedKey> {
        Ok(*self.0.lock().expect("not poisoned"))
    }
}

async fn received(store: &Store, number: u64) -> TestInstance {
    let sealing = store.keys().sealing(STUDY).await.expect("a key");
    let instance = sealed(number, sealing.key());
    assert!(matches!(commit(store, &instance).await, Ok(Stored::New { .. })));
    instance
}

#[tokio::test]
async fn a_sealed_instance_is_read_with_its_key_and_verified_without_any() {
    let faulty = FaultyDisk::new();
    let store = open(&faulty.disk(), &Arc::default()).await;
    let instance = received(&store, 1).await;
    assert_whole(&store, &instance).await;
    assert_eq!(store.attributes(&instance.manifest).expect("opened"), &b"HIDDEN^PATIENT"[..]);
    let entry = store.instances(STUDY).await.expect("instances").remove(0).entry;
    let study = StudyManifest::new(STUDY.into(), 1, 1, vec![entry]).encode().expect("encode");
    let study = store.put_manifest(study).await.expect("put");
    store.close().await.expect("close");

    let store = open(&faulty.disk(), &Arc::default()).await;
    assert_whole(&store, &instance).await;
    let says = Arc::new(Says(Mutex::new(SharedKey::Destroyed)));
    store.keys().share(Arc::<Says>::clone(&says));
    let key = instance.manifest.key.expect("sealed");
    for (said, with_another) in [(SharedKey::Destroyed, false), (SharedKey::Kept([9; 32]), true)] {
        *says.0.lock().expect("not poisoned") = said;
        match read_back(&store, &instance).await {
            Err(StoreError::KeyDestroyed(id)) => assert!(!with_another && id == key),
            Err(StoreError::Contradictory(hash)) => assert!(with_another && hash == instance.manifest.chunks[0].hash),
            other => panic!("{:?}", other.map(|bytes| bytes.len())),
        }
        let report = store.verify_study(study).await.expect("verify");
        assert!(report.is_complete() && report.chunks == instance.manifest.chunks.len() as u64);
        assert_eq!(store.hold(study).await.expect("hold"), Hold::Held);
        assert_eq!(store.stats().await.expect("stats").bad, 0, "good bytes are not put aside");
    }
    *says.0.lock().expect("not poisoned") = SharedKey::Unknown;
    store.keys().forget(&BTreeSet::from([key])).await.expect("forgotten");
    let unknown = read_back(&store, &instance).await;
    assert!(matches!(unknown, Err(StoreError::KeyUnknown { id, damaged: 0 }) if id == key));
}

#[tokio::test]
async fn what_opens_to_something_else_is_found_and_told_from_what_nobody_can_open() {
    let faulty = FaultyDisk::new();
    let store = open(&faulty.disk(), &Arc::default()).await;
    let says = Arc::new(Says(Mutex::new(SharedKey::Unknown)));
    store.keys().share(Arc::<Says>::clone(&says));
    let says = |said| *says.0.lock().expect("not poisoned") = said;
    let right = received(&store, 1).await;
    let key = right.manifest.key.expect("sealed");
    let sealing = store.keys().sealing(STUDY).await.expect("a key");
    let wrong = sealed_of(2, noise(3, 2_500_000), sealing.key());
    let Ok(Stored::New { manifest: wrong }) = commit(&store, &wrong).await else { panic!("new") };
    let entries: Vec<_> = store.instances(STUDY).await.expect("instances").into_iter().map(|it| it.entry).collect();
    let all: Vec<Hash> = entries.iter().map(|entry| entry.manifest).collect();
    let study = StudyManifest::new(STUDY.into(), 1, 1, entries.clone()).encode().expect("encode");
    let study = store.put_manifest(study).await.expect("put");
    let stored = store.verify_study(study).await.expect("verify");
    assert!(stored.is_complete(), "each byte is as it was stored");
    let verify = async || store.verify_instances(STUDY, &entries).await.expect("verify");
    let found = verify().await;
    assert_eq!((found.contradictory.as_slice(), found.is_complete()), (&[wrong][..], false));
    assert_eq!((found.instances, found.chunks, found.bytes), (2, stored.chunks, stored.bytes));
    let of_another_study = store.verify_instances("1.2.3", &entries[..1]).await.expect("verify");
    assert_eq!(of_another_study.contradictory, all[..1]);

    says(SharedKey::Kept([9; 32]));
    assert_eq!(verify().await.contradictory, all, "sealed under another key than is said");
    says(SharedKey::Destroyed);
    let found = verify().await;
    assert!(found.is_complete() && (found.instances, found.chunks) == (0, 0), "nobody is to read them");
    says(SharedKey::Unknown);
    store.keys().forget(&BTreeSet::from([key])).await.expect("forgotten");
    let found = verify().await;
    assert_eq!((found.unopened.as_slice(), found.is_complete()), (all.as_slice(), false));
    assert_eq!((found.contradictory.len(), found.chunks), (0, stored.chunks), "and their bytes are right");
    assert_eq!(store.stats().await.expect("stats").bad, 0, "good bytes are not put aside");
}

#[tokio::test]
async fn a_data_set_sealed_under_another_key_is_a_duplicate_and_takes_no_room() {
    let faulty = FaultyDisk::new();
    let store = open(&faulty.disk(), &Arc::default()).await;
    let instance = received(&store, 1).await;
    let first = instance.manifest.key.expect("sealed");
    assert_eq!(store.keys().rotate(STUDY).await.len(), 1);
    let before = store.stats().await.expect("stats");
    let again = sealed(1, store.keys().sealing(STUDY).await.expect("a key").key());
    let second = again.manifest.key.expect("sealed");
    assert_ne!((first, instance.manifest.chunks[0].hash), (second, again.manifest.chunks[0].hash));
    let Ok(Stored::Duplicate { manifest }) = commit(&store, &again).await else { panic!("a duplicate") };
    let listed = store.listed_as(&identity(1), instance.cut.dataset_hash).await.expect("asked");
    assert_eq!(listed, Some(Stored::Duplicate { manifest }));
    assert_eq!(store.listed_as(&identity(1), Hash([1; 32])).await.expect("asked"), None);
    assert_eq!(store.listed_as(&identity(2), instance.cut.dataset_hash).await.expect("asked"), None);
    // A pack may have been made for what then was not written.
    let after = store.stats().await.expect("stats");
    assert_eq!((after.chunks, after.bytes), (before.chunks, before.bytes));
    assert_eq!(store.keys_of_study(STUDY).await.expect("keys"), (BTreeSet::from([first]), true));

    // The first key was destroyed: what came since takes its place.
    let now = UnixMillis(1_700_000_000_000);
    let (cut, anew) = (again.cut.clone(), again.manifest.clone());
    let stored = store.commit_instance_anew(cut, anew, now, "CT1".into(), None).await.expect("stored");
    assert_ne!(stored.manifest(), manifest);
    assert_eq!(store.keys_of_study(STUDY).await.expect("keys"), (BTreeSet::from([second]), true));
    assert_eq!(store.instances(STUDY).await.expect("instances").len(), 1);
    assert_whole(&store, &again).await;
    store.close().await.expect("close");
    let store = open(&faulty.disk(), &Arc::default()).await;
    assert_whole(&store, &again).await;
    assert_eq!(store.keys_of_study(STUDY).await.expect("keys").0, BTreeSet::from([second]), "also from the packs");
}

#[tokio::test]
async fn a_second_data_set_under_a_uid_names_a_key_of_its_own_study_whichever_the_first_is_of() {
    const OTHER: &str = "1.2.250.2";
    let faulty = FaultyDisk::new();
    let store = open(&faulty.disk(), &Arc::default()).await;
    let first = received(&store, 1).await;
    for (study, seed) in [(STUDY, 2), (OTHER, 3)] {
        let sealing = store.keys().sealing(study).await.expect("a key");
        let second = sealed_as(
            InstanceIdentity { study_uid: study.into(), ..identity(1) },
            seed,
            noise(seed, 2_500_000),
            sealing.key(),
        );
        assert!(matches!(commit(&store, &second).await, Ok(Stored::Conflict { .. })));
        let named = store.keys_of_study(study).await.expect("keys");
        assert_eq!(named, (BTreeSet::from([sealing.key().id()]), true));
    }
    let named = store.keys_of_study(STUDY).await.expect("keys").0;
    assert_eq!(named, BTreeSet::from([first.manifest.key.expect("sealed")]));
}
