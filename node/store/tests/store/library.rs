//! Duplicates, conflicts, holds, pages: what the library says.

use std::sync::Arc;

use bytes::Bytes;
use maillage_host::UnixMillis;
use maillage_store::{Hash, Hold, InstanceManifest, PutGroup, Refusal, StoreError, Stored, StudyManifest};

use crate::faulty_disk::FaultyDisk;
use crate::fixture::{STUDY, assert_whole, commit, instance, listing, open};

#[tokio::test]
async fn the_same_data_set_again_is_a_duplicate_and_writes_nothing() {
    let faulty = FaultyDisk::new();
    let store = open(&faulty.disk(), &Arc::default()).await;
    let first = instance(1, 1, 50_000);
    let Ok(Stored::New { manifest }) = commit(&store, &first).await else { panic!("new") };
    let before = store.stats().await.expect("stats");
    assert_eq!(commit(&store, &first).await.expect("again"), Stored::Duplicate { manifest });
    let mut relabelled = instance(1, 1, 50_000);
    relabelled.manifest.attributes = b"read by a newer version".to_vec();
    assert_eq!(commit(&store, &relabelled).await.expect("again"), Stored::Duplicate { manifest });
    assert_eq!(store.stats().await.expect("stats"), before);
    assert_eq!(store.study_seen(STUDY).await.expect("seen").expect("here").instances, 1);
}

#[tokio::test]
async fn other_bytes_under_a_taken_uid_are_kept_apart_and_listed() {
    let faulty = FaultyDisk::new();
    let store = open(&faulty.disk(), &Arc::default()).await;
    let (first, second) = (instance(1, 1, 30_000), instance(1, 2, 31_000));
    let Ok(Stored::New { manifest }) = commit(&store, &first).await else { panic!("new") };
    let conflict = commit(&store, &second).await.expect("kept");
    let Stored::Conflict { manifest: other, first: kept } = conflict else { panic!("{conflict:?}") };
    assert_eq!(kept, manifest);
    assert_ne!(other, manifest);
    assert_eq!(commit(&store, &second).await.expect("again"), conflict);
    assert_whole(&store, &first).await;
    assert_eq!(store.instances(STUDY).await.expect("instances").len(), 1);
    assert_eq!(store.study_seen(STUDY).await.expect("seen").expect("here").bytes, 30_000);
    let conflicts = store.conflicts(None, 10).await.expect("conflicts");
    assert_eq!(conflicts.len(), 1);
    assert_eq!((conflicts[0].first, conflicts[0].second.entry.manifest), (Some(manifest), other));
    let kept = store.instance_manifest(other).await.expect("read").expect("stored");
    assert_eq!(kept.dataset_hash, second.cut.dataset_hash);
    assert!(store.has_all(&kept.chunks.iter().map(|chunk| chunk.hash).collect::<Vec<_>>()).await.expect("has"));

    let text = listing(&store).await;
    store.close().await.expect("close");
    assert_eq!(listing(&open(&faulty.disk(), &Arc::default()).await).await, text, "the packs know it all");
}

#[tokio::test]
async fn concurrent_puts_of_one_instance_make_it_new_once() {
    let faulty = FaultyDisk::new();
    let store = open(&faulty.disk(), &Arc::default()).await;
    let (same, other) = (instance(1, 1, 10_000), instance(1, 2, 10_000));
    let answers =
        futures::future::join_all((0..20).map(|n| commit(&store, if n % 4 == 3 { &other } else { &same }))).await;
    let answers: Vec<Stored> = answers.into_iter().map(|answer| answer.expect("stored")).collect();
    assert_eq!(answers.iter().filter(|answer| matches!(answer, Stored::New { .. })).count(), 1);
    assert_eq!(answers.iter().filter(|answer| matches!(answer, Stored::Conflict { .. })).count(), 5);
    assert_eq!(store.conflicts(None, 10).await.expect("conflicts").len(), 1);
}

#[tokio::test]
async fn a_study_is_held_only_when_all_of_it_is_here_and_stays_held_after_a_restart() {
    let faulty = FaultyDisk::new();
    let (source, target) = (FaultyDisk::new(), open(&faulty.disk(), &Arc::default()).await);
    let source = open(&source.disk(), &Arc::default()).await;
    for n in 0..5 {
        commit(&source, &instance(n, n, 15_000)).await.expect("commit");
    }
    let entries: Vec<_> = source.instances(STUDY).await.expect("instances").into_iter().map(|it| it.entry).collect();
    let study = StudyManifest::new(STUDY.into(), 9, 1, entries.clone());
    let bytes = study.encode().expect("encode");
    let address = Hash::of(&bytes);
    assert!(matches!(target.hold(address).await, Err(StoreError::Missing(hash)) if hash == address));
    assert_eq!(target.put_manifest(bytes).await.expect("put"), address);
    // As a node fetches it: first what is missing are the manifests, then the chunks.
    let mut rounds = 0;
    while let Hold::Incomplete { missing } = target.hold(address).await.expect("hold") {
        rounds += 1;
        assert!(rounds <= 2 && target.held().await.expect("held").is_empty());
        for hash in missing {
            let bytes = source.get(hash).await.expect("get").expect("there");
            let chunk = maillage_store::Chunk::checked(hash, bytes).expect("right");
            target.put(PutGroup { chunks: vec![chunk], ..PutGroup::default() }).await.expect("put");
        }
    }
    assert_eq!(rounds, 2);
    let report = target.verify_study(address).await.expect("verify");
    assert!(report.is_complete());
    assert_eq!((report.instances, report.chunks, report.bytes), (5, 10, 75_000));
    let held = target.held().await.expect("held");
    assert_eq!((held.len(), held[0].manifest, held[0].study_uid.as_str()), (1, address, STUDY));
    target.close().await.expect("close");

    let again = open(&faulty.disk(), &Arc::default()).await;
    assert_eq!(again.held().await.expect("held"), held);
    again.release(address).await.expect("release");
    again.release(address).await.expect("twice is no error");
    again.close().await.expect("close");
    let again = open(&faulty.disk(), &Arc::default()).await;
    assert_eq!(again.held().await.expect("held"), []);
}

#[tokio::test]
async fn a_manifest_that_lies_about_its_instance_is_found_contradictory() {
    let faulty = FaultyDisk::new();
    let store = open(&faulty.disk(), &Arc::default()).await;
    commit(&store, &instance(1, 1, 15_000)).await.expect("commit");
    let mut lying = instance(1, 1, 15_000).manifest;
    lying.dataset_hash = Hash::of(b"something else");
    let manifest = store.put_manifest(lying.encode().expect("encode")).await.expect("put");
    let mut entry = store.instances(STUDY).await.expect("instances").remove(0).entry;
    entry.manifest = manifest;
    entry.dataset_hash = lying.dataset_hash;
    let study = StudyManifest::new(STUDY.into(), 1, 1, vec![entry]).encode().expect("encode");
    let address = store.put_manifest(study).await.expect("put");
    let report = store.verify_study(address).await.expect("verify");
    assert_eq!(report.contradictory, [manifest]);
    assert!(!report.is_complete());
}

#[tokio::test]
async fn studies_come_in_pages_in_order() {
    let faulty = FaultyDisk::new();
    let store = open(&faulty.disk(), &Arc::default()).await;
    for (n, len) in [(3, 3_000), (1, 1_000), (2, 2_000)] {
        let mut instance = instance(n, n, len);
        instance.manifest.study_uid = format!("1.2.{n}");
        commit(&store, &instance).await.expect("commit");
    }
    let page = store.studies(None, 2).await.expect("page");
    assert_eq!(page.iter().map(|study| study.study_uid.as_str()).collect::<Vec<_>>(), ["1.2.1", "1.2.2"]);
    let rest = store.studies(Some("1.2.2"), 2).await.expect("page");
    assert_eq!((rest.len(), rest[0].seen.bytes, rest[0].seen.instances), (1, 3_000, 1));
    assert!(rest[0].seen.last_received_at > UnixMillis(0));
    assert_eq!(store.study_seen("1.2.4").await.expect("seen"), None);
    assert_eq!(store.instances("1.2").await.expect("instances"), [], "a prefix is not the study");
}

#[tokio::test]
async fn what_makes_no_sense_is_refused() {
    let faulty = FaultyDisk::new();
    let store = open(&faulty.disk(), &Arc::default()).await;
    let (one, two) = (instance(1, 1, 5_000), instance(2, 2, 5_000));
    let refusal = |result: Result<Stored, StoreError>| match result {
        Err(StoreError::Refused(refusal)) => refusal,
        other => panic!("{other:?}"),
    };
    let now = UnixMillis(1);
    let mismatch = store.commit_instance(one.cut.clone(), two.manifest.clone(), now, "CT1".into()).await;
    assert_eq!(refusal(mismatch), Refusal::ManifestMismatch);
    let mut traversal = one.manifest.clone();
    traversal.sop_instance = "../../etc".into();
    let traversal = store.commit_instance(one.cut.clone(), traversal, now, "CT1".into()).await;
    assert!(matches!(refusal(traversal), Refusal::Manifest(_)));
    let long = store.commit_instance(one.cut.clone(), one.manifest.clone(), now, "x".repeat(65)).await;
    assert_eq!(refusal(long), Refusal::Source);
    assert!(matches!(store.put_manifest(Bytes::from_static(b"no manifest")).await, Err(StoreError::Refused(_))));
    let large = maillage_store::Chunk::new(vec![0; (1 << 20) + 1].into());
    let put = store.put(PutGroup { chunks: vec![large], ..PutGroup::default() }).await;
    assert!(matches!(put, Err(StoreError::Refused(Refusal::ChunkSize))));
    let commit = maillage_store::InstanceCommit::new(&one.manifest, now, "CT1".into()).expect("valid");
    let put = store.put(PutGroup { commit: Some(commit), ..PutGroup::default() }).await;
    assert!(matches!(put, Err(StoreError::Refused(Refusal::ManifestAbsent))));
    assert_eq!(store.stats().await.expect("stats").chunks, 0);
    assert_eq!(store.get(Hash::of(b"never")).await.expect("get"), None);
    let nothing = InstanceManifest { chunks: Vec::new(), total_len: 0, head_len: 0, ..one.manifest };
    let nothing = store.put_manifest(nothing.encode().expect("an empty data set is none of our business")).await;
    assert!(nothing.is_ok());
}
