//! Purging: no byte is left in any file, whatever is kept stays whole, at whatever moment the power is cut.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use maillage_host::engine::MemoryHome;
use maillage_host::{Clock, UnixMillis};
use maillage_store::{
    Chunk, Hash, Hold, InstanceEntry, InstanceIdentity, InstanceManifest, ManifestFlags, Publication, PutGroup, Store,
    StoreError, Stored, StudyManifest, cut,
};

use crate::faulty_disk::FaultyDisk;
use crate::fixture::{TestInstance, assert_whole, commit, config, copy, listing, noise, open, packs, read_back};

pub(crate) const DAY: u64 = 86_400_000;
pub(crate) const NOW: u64 = 1_700_000_000_000;
/// Bytes looked for in each piece: more than any chance has.
const NEEDLE: usize = 24;

/// A study of `instances` slices, each with pixels of its own behind the same 5,000 bytes in all studies.
pub(crate) fn study(uid: &str, instances: u64) -> Vec<TestInstance> {
    (0..instances).map(|number| slice(uid, number)).collect()
}

pub(crate) fn slice(uid: &str, number: u64) -> TestInstance {
    let seed = u64::from_le_bytes(*Hash::of(uid.as_bytes()).0.first_chunk().expect("long")) ^ number;
    let head = noise(seed, 900 + 40 * usize::try_from(number).expect("few"));
    let shared = noise(77, 5_000);
    let dataset: Bytes = [&head[..], &shared].concat().into();
    let cut = cut(dataset.clone(), head.len());
    let identity = InstanceIdentity {
        sop_instance: format!("{uid}.1.{number}"),
        sop_class: "1.2.840.10008.5.1.4.1.1.2".into(),
        series_uid: format!("{uid}.1"),
        study_uid: uid.into(),
        transfer_syntax: "1.2.840.10008.1.2.1".into(),
    };
    let manifest = InstanceManifest::of(&cut, identity, b"attributes".to_vec(), ManifestFlags::default());
    TestInstance { cut, manifest, dataset }
}

/// Commits, publishes and holds; the address of the study's manifest.
pub(crate) async fn publish(store: &Store, uid: &str, instances: &[TestInstance], origin: u64, sequence: u64) -> Hash {
    for instance in instances {
        commit(store, instance).await.expect("commit");
    }
    let listed = store.instances(uid).await.expect("instances");
    let entries = listed.into_iter().map(|instance| instance.entry).collect();
    let manifest = StudyManifest::new(uid.into(), origin, sequence, entries).encode().expect("encode");
    let address = store.put_manifest(manifest).await.expect("put");
    assert_eq!(store.hold(address).await.expect("hold"), Hold::Held);
    address
}

/// The first file in which one of `needles` is, durable or not. In one pass, by their first bytes.
fn file_with(faulty: &FaultyDisk, needles: &[&[u8]]) -> Option<String> {
    let start = |bytes: &[u8]| bytes.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
    let starts: BTreeMap<u64, &[u8]> = needles.iter().map(|needle| (start(needle).expect("long"), *needle)).collect();
    let has = |bytes: &[u8]| {
        let mut last = start(bytes).unwrap_or_default();
        for at in 0..bytes.len().saturating_sub(8) {
            if last != 0 && starts.get(&last).is_some_and(|needle| bytes[at..].starts_with(needle)) {
                return true;
            }
            last = last >> 8 | u64::from(bytes[at + 8]) << 56;
        }
        false
    };
    let files = faulty.files.lock().expect("lock");
    let found = files.iter().find(|(_, content)| {
        let content = content.lock().expect("lock");
        has(&content.seen) || has(&content.durable)
    });
    found.map(|(name, _)| name.clone())
}

/// Purges what the manifest at an address says, while it is here.
async fn purge(store: &Store, manifest: Hash, own: bool) -> Result<(), StoreError> {
    let said = store.study_manifest(manifest).await?;
    let said = said.unwrap_or_else(|| StudyManifest::new("1.2.0".into(), 0, 0, Vec::new()));
    let StudyManifest { study_uid, origin, sequence, .. } = said;
    store.purge(&Publication { study_uid, origin, sequence, manifest }, own).await
}

pub(crate) fn assert_gone(faulty: &FaultyDisk, instances: &[TestInstance], when: &str) {
    let mut needles = Vec::new();
    for instance in instances {
        let head = &instance.dataset[..instance.dataset.len() - 5_000];
        needles.extend((0..head.len() - NEEDLE).step_by(100).map(|at| &head[at..at + NEEDLE]));
    }
    assert_eq!(file_with(faulty, &needles), None, "{when}");
}

#[tokio::test(start_paused = true)]
async fn after_a_purge_no_byte_is_in_any_file_and_what_others_share_is_whole() {
    let faulty = FaultyDisk::new();
    let home = Arc::new(MemoryHome::default());
    let store = open(&faulty.disk(), &home).await;
    let (first, second) = (study("1.2.1", 7), study("1.2.2", 7));
    let address = publish(&store, "1.2.1", &first, 1, 1).await;
    let kept = publish(&store, "1.2.2", &second, 1, 1).await;
    assert!(file_with(&faulty, &[&first[0].dataset[..NEEDLE]]).is_some(), "the search finds what is there");
    purge(&store, address, false).await.expect("purge");
    assert_gone(&faulty, &first, "after the purge");
    for instance in &second {
        assert_whole(&store, instance).await;
    }
    assert!(store.verify_study(kept).await.expect("verify").is_complete());
    assert_eq!(store.study_seen("1.2.1").await.expect("index"), None);
    assert!(store.instance(&first[0].manifest.sop_instance).await.expect("index").is_none());
    assert_eq!(store.held().await.expect("held").len(), 1);
    purge(&store, address, false).await.expect("again is no error");
    let text = listing(&store).await;
    store.close().await.expect("close");
    for home in [home, Arc::default()] {
        let store = open(&faulty.disk(), &home).await;
        assert_eq!(listing(&store).await, text, "an opening brings nothing back");
        assert_eq!((&store.recovery().damage, &store.recovery().missing), (&vec![], &vec![]));
        store.close().await.expect("close");
    }
    // What comes once more is new, whole, and not purged by what is past.
    let store = open(&faulty.disk(), &Arc::default()).await;
    assert!(matches!(commit(&store, &first[0]).await, Ok(Stored::New { .. })));
    assert_whole(&store, &first[0]).await;
}

#[tokio::test(start_paused = true)]
async fn a_purge_takes_earlier_publications_along_and_leaves_what_another_site_published() {
    let faulty = FaultyDisk::new();
    let store = open(&faulty.disk(), &Arc::default()).await;
    let all = study("1.2.1", 6);
    publish(&store, "1.2.1", &all[..2], 1, 1).await;
    let second = publish(&store, "1.2.1", &all[2..4], 1, 2).await;
    // Another site received the last of them too.
    let listed = store.instance(&all[3].manifest.sop_instance).await.expect("index").expect("listed");
    let others = StudyManifest::new("1.2.1".into(), 2, 1, vec![listed.entry]).encode().expect("encode");
    let others = store.put_manifest(others).await.expect("put");
    assert_eq!(store.hold(others).await.expect("hold"), Hold::Held);
    // And these came after the last publication.
    for instance in &all[4..] {
        commit(&store, instance).await.expect("commit");
    }
    purge(&store, second, false).await.expect("purge");
    assert_gone(&faulty, &all[..3], "both publications");
    for instance in &all[3..] {
        assert_whole(&store, instance).await;
    }
    assert_eq!(store.held().await.expect("held").len(), 1);
    purge(&store, others, false).await.expect("purge");
    assert_gone(&faulty, &all[..4], "the other site's too");
    assert_eq!(store.study_seen("1.2.1").await.expect("index").expect("seen").instances, 2);
}

#[tokio::test(start_paused = true)]
async fn what_its_own_node_prepared_and_never_published_keeps_nothing_of_a_purged_part() {
    let faulty = FaultyDisk::new();
    let store = open(&faulty.disk(), &Arc::default()).await;
    let all = study("1.2.1", 4);
    let published = publish(&store, "1.2.1", &all[..3], 1, 1).await;
    publish(&store, "1.2.1", &all[3..], 1, 2).await;
    purge(&store, published, false).await.expect("purge");
    assert_whole(&store, &all[0]).await;
    let all = study("1.2.2", 4);
    let published = publish(&store, "1.2.2", &all[..3], 1, 1).await;
    publish(&store, "1.2.2", &all[3..], 1, 2).await;
    purge(&store, published, true).await.expect("purge");
    assert_gone(&faulty, &all[..3], "its own");
    assert_whole(&store, &all[3]).await;
    assert_eq!(store.held().await.expect("held").iter().filter(|held| held.study_uid == "1.2.2").count(), 0);
}

/// Other bytes under the UID of the first slice of study 1.2.1.
fn other_first_slice() -> TestInstance {
    let mut second = slice("1.2.9", 0);
    second.manifest.sop_instance = "1.2.1.1.0".into();
    second.manifest.series_uid = "1.2.1.1".into();
    second.manifest.study_uid = "1.2.1".into();
    second
}

#[tokio::test(start_paused = true)]
async fn a_second_data_set_that_a_list_names_goes_and_leaves_the_first() {
    let faulty = FaultyDisk::new();
    let store = open(&faulty.disk(), &Arc::default()).await;
    let (first, second) = (slice("1.2.1", 0), other_first_slice());
    commit(&store, &first).await.expect("commit");
    assert!(matches!(commit(&store, &second).await, Ok(Stored::Conflict { .. })));
    let seconds = store.seconds("1.2.1.1.0").await.expect("seconds");
    let entries = seconds.into_iter().map(|second| second.entry).collect();
    let list = StudyManifest::new("1.2.1".into(), 1, 1, entries).encode().expect("encode");
    let list = store.put_manifest(list).await.expect("put");
    purge(&store, list, false).await.expect("purge");
    assert_gone(&faulty, &[second], "the second data set");
    assert_whole(&store, &first).await;
    let text = listing(&store).await;
    store.close().await.expect("close");
    for _ in 0..2 {
        let store = open(&faulty.disk(), &Arc::default()).await;
        assert_eq!(store.conflicts(None, 9).await.expect("conflicts"), []);
        assert_eq!(listing(&store).await, text, "nor do the packs know it");
        assert_whole(&store, &first).await;
        store.close().await.expect("close");
    }
}

#[tokio::test(start_paused = true)]
async fn a_conflicting_second_data_set_and_a_repaired_first_place_go_along() {
    let faulty = FaultyDisk::new();
    let disk = faulty.disk();
    let store = open(&disk, &Arc::default()).await;
    let (first, second) = (study("1.2.1", 3), other_first_slice());
    let address = publish(&store, "1.2.1", &first, 1, 1).await;
    assert!(matches!(commit(&store, &second).await, Ok(Stored::Conflict { .. })));
    // A chunk is damaged, noticed and written anew: its first place is still on the disk.
    let chunk = first[1].cut.head[0].chunk();
    let (path, at) = crate::fixture::locate(&disk, chunk.bytes()).await;
    crate::fixture::flip(&disk, &path, at + 700, 3).await;
    assert!(matches!(store.get(chunk.hash()).await, Err(StoreError::Corrupt(_))));
    store.put(PutGroup { chunks: vec![chunk.clone()], ..PutGroup::default() }).await.expect("repair");
    assert_whole(&store, &first[1]).await;
    purge(&store, address, false).await.expect("purge");
    assert_gone(&faulty, &first, "the damaged place too");
    assert_gone(&faulty, &[second], "the second data set");
    assert_eq!(store.conflicts(None, 9).await.expect("conflicts"), []);
}

/// Stops a purge at its n-th write (or sync), cuts the power, opens with an index that is `lag`: 0 current,
/// 1 of before the purge, 2 empty.
async fn cut_while_purging(nth: u64, at_sync: bool, lag: u64, seed: u64) -> bool {
    let faulty = FaultyDisk::new();
    let home = Arc::new(MemoryHome::default());
    let store = open(&faulty.disk(), &home).await;
    let (first, second) = (study("1.2.1", 5), study("1.2.2", 3));
    let kept = publish(&store, "1.2.2", &second[..2], 1, 1).await;
    let address = publish(&store, "1.2.1", &first, 1, 1).await;
    commit(&store, &second[2]).await.expect("commit");
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    let before = copy(&home);
    {
        let mut faults = faulty.faults.lock().expect("lock");
        *(if at_sync { &mut faults.fail_sync_in } else { &mut faults.fail_write_in }) = nth;
    }
    let publication = Publication { study_uid: "1.2.1".into(), origin: 1, sequence: 1, manifest: address };
    let purged = store.purge(&publication, false).await;
    // Whatever else was going on: a put may be refused, never lost once acknowledged.
    let late = slice("1.2.2", 9);
    let acknowledged = commit(&store, &late).await.is_ok();
    faulty.cut_power(seed);
    drop(store);
    let home = match lag {
        0 => home,
        1 if purged.is_err() => before,
        _ => Arc::default(),
    };
    let case = format!("{nth}, {}, index {lag}, seed {seed}", if at_sync { "sync" } else { "write" });
    let store = open(&faulty.disk(), &home).await;
    assert_eq!((&store.recovery().damage, &store.recovery().missing), (&vec![], &vec![]), "{case}");
    if purged.is_ok() {
        assert_gone(&faulty, &first, &case);
        assert_eq!(store.study_seen("1.2.1").await.expect("index"), None, "{case}");
    } else {
        for instance in &first {
            // Gone or whole, never half.
            if store.instance(&instance.manifest.sop_instance).await.expect("index").is_some() {
                assert_whole(&store, instance).await;
            }
        }
        purge(&store, address, false).await.expect("purge");
        assert_gone(&faulty, &first, &case);
    }
    for instance in &second {
        assert_whole(&store, instance).await;
    }
    assert!(store.verify_study(kept).await.expect("verify").is_complete(), "{case}");
    if acknowledged {
        assert_whole(&store, &late).await;
    }
    assert!(commit(&store, &late).await.is_ok(), "{case}: the store goes on");
    let text = listing(&store).await;
    store.close().await.expect("close");
    let rebuilt = open(&faulty.disk(), &Arc::default()).await;
    assert_eq!(listing(&rebuilt).await, text, "{case}");
    assert_eq!(rebuilt.recovery().damage, [], "{case}");
    assert_gone(&faulty, &first, &case);
    purged.is_ok()
}

#[tokio::test(start_paused = true)]
async fn a_power_cut_at_any_write_or_sync_of_a_purge_brings_nothing_back_and_loses_nothing() {
    for at_sync in [false, true] {
        let mut nth = 1;
        loop {
            let mut was_through = true;
            for lag in 0..3 {
                for seed in 0..2 {
                    was_through &= cut_while_purging(nth, at_sync, lag, 100 * nth + seed).await;
                }
            }
            if was_through {
                break;
            }
            nth += 1;
        }
        assert!(nth > if at_sync { 2 } else { 10 }, "the purge was stopped on its way: {nth}");
    }
}

#[tokio::test(start_paused = true)]
async fn puts_that_share_chunks_with_what_is_being_purged_lose_nothing() {
    for seed in 0..8_u64 {
        let faulty = FaultyDisk::new();
        let store = open(&faulty.disk(), &Arc::default()).await;
        let first = study("1.2.1", 12);
        let address = publish(&store, "1.2.1", &first, 1, 1).await;
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..12 {
            let store = store.clone();
            tasks.spawn(async move {
                tokio::time::sleep(std::time::Duration::from_micros(number * 37 * (seed + 1) % 400)).await;
                let instance = slice("1.2.2", number);
                commit(&store, &instance).await.expect("commit");
                instance
            });
        }
        purge(&store, address, false).await.expect("purge");
        while let Some(instance) = tasks.join_next().await {
            assert_eq!(read_back(&store, &instance.expect("ran")).await.expect("whole").len() % 40, 20);
        }
        assert_gone(&faulty, &first, "after the purge");
    }
}

pub(crate) async fn open_at(faulty: &Arc<FaultyDisk>, home: &Arc<MemoryHome>, now: &Arc<AtomicU64>) -> Store {
    let clock = Arc::clone(now);
    let clock = Clock::from_fn(move || UnixMillis(clock.load(Ordering::SeqCst)));
    Store::open(faulty.disk(), "images", Arc::<MemoryHome>::clone(home), clock, config()).await.expect("open")
}

pub(crate) async fn commit_until(store: &Store, instance: &TestInstance, day: u64) {
    let (cut, manifest) = (instance.cut.clone(), instance.manifest.clone());
    store.commit_instance_until(cut, manifest, UnixMillis(NOW), "CT1".into(), Some(day)).await.expect("commit");
}

#[tokio::test(start_paused = true)]
async fn a_days_packs_are_removed_whole_and_little_that_is_kept_is_written_anew() {
    let (faulty, home, now) = (FaultyDisk::new(), Arc::default(), Arc::new(AtomicU64::new(NOW)));
    let store = open_at(&faulty, &home, &now).await;
    let today = NOW / DAY;
    let (soon, later, held) = (study("1.2.1", 20), study("1.2.2", 3), study("1.2.3", 2));
    for instance in soon.iter().chain(&held) {
        commit_until(&store, instance, today + 2).await;
    }
    for instance in &later {
        commit_until(&store, instance, today + 30).await;
    }
    let addresses = [("1.2.1", &soon), ("1.2.2", &later), ("1.2.3", &held)].map(async |(uid, instances)| {
        let entries = store.instances(uid).await.expect("index").into_iter().map(|listed| listed.entry).collect();
        let day = if uid == "1.2.2" { today + 30 } else { today + 2 };
        let manifest = StudyManifest::new(uid.into(), 1, 1, entries).encode().expect("encode");
        let address = store.put_manifest_until(manifest, Some(day)).await.expect("put");
        assert_eq!(store.hold(address).await.expect("hold"), Hold::Held);
        (address, instances.len())
    });
    let [soon_at, _, held_at] = futures::future::join_all(addresses).await[..] else { panic!("three") };
    assert_eq!(packs(&faulty.disk()).await.len(), 2, "one pack a day");
    purge(&store, soon_at.0, false).await.expect("purge");
    assert_gone(&faulty, &soon, "overwritten");
    assert_eq!(store.reclaim().await.expect("reclaim").packs, 0, "its day has not come");
    let used = faulty.used();

    now.fetch_add(3 * DAY, Ordering::SeqCst);
    assert_eq!(store.reclaim().await.expect("reclaim").packs, 1, "little is kept in a pack past its day");
    assert!(faulty.used() < used, "room is made");
    assert_eq!(store.held().await.expect("held").len(), 2);
    let text = listing(&store).await;
    store.close().await.expect("close");
    for home in [home, Arc::default()] {
        let store = open_at(&faulty, &home, &now).await;
        assert_eq!((&store.recovery().damage, &store.recovery().missing), (&vec![], &vec![]));
        assert_eq!(listing(&store).await, text);
        for instance in held.iter().chain(&later) {
            assert_whole(&store, instance).await;
        }
        store.close().await.expect("close");
    }
    let store = open_at(&faulty, &Arc::default(), &now).await;
    purge(&store, held_at.0, false).await.expect("purge");
    assert_gone(&faulty, &held, "wherever it had lain");
    for instance in &later {
        assert_whole(&store, instance).await;
    }
}

#[tokio::test(start_paused = true)]
async fn no_image_goes_because_the_day_of_its_pack_is_over() {
    let (faulty, home, now) = (FaultyDisk::new(), Arc::default(), Arc::new(AtomicU64::new(NOW)));
    let store = open_at(&faulty, &home, &now).await;
    let today = NOW / DAY;
    // Of the pack of the first day all stays; of that of the second little, once a study of it is purged.
    let (first, second, gone) = (study("1.2.1", 20), study("1.2.2", 3), study("1.2.3", 20));
    for (instances, day) in [(&first, today + 1), (&second, today + 2), (&gone, today + 2)] {
        for instance in instances {
            commit_until(&store, instance, day).await;
        }
    }
    let address = publish(&store, "1.2.3", &gone, 1, 1).await;
    now.fetch_add(400 * DAY, Ordering::SeqCst);
    for _ in 0..2 {
        store.reclaim().await.expect("reclaim");
        for instance in first.iter().chain(&second).chain(&gone) {
            assert_whole(&store, instance).await;
        }
    }
    purge(&store, address, false).await.expect("purge");
    store.reclaim().await.expect("reclaim");
    assert_gone(&faulty, &gone, "which were purged");
    store.close().await.expect("close");
    for home in [home, Arc::default()] {
        let store = open_at(&faulty, &home, &now).await;
        for instance in first.iter().chain(&second) {
            assert_whole(&store, instance).await;
        }
        assert!(!packs(&faulty.disk()).await.is_empty());
        store.close().await.expect("close");
    }
}

#[tokio::test(start_paused = true)]
async fn the_number_of_a_removed_pack_is_another_packs_only_once_the_index_on_disk_says_that_it_is_gone() {
    let (faulty, home, now) = (FaultyDisk::new(), Arc::default(), Arc::new(AtomicU64::new(NOW)));
    let store = open_at(&faulty, &home, &now).await;
    let today = NOW / DAY;
    let [kept, soon, after] = ["1.2.1", "1.2.2", "1.2.3"].map(|uid| slice(uid, 0));
    commit_until(&store, &kept, today + 30).await;
    commit_until(&store, &soon, today + 2).await;
    let entries = store.instances("1.2.2").await.expect("index").into_iter().map(|listed| listed.entry).collect();
    let manifest = StudyManifest::new("1.2.2".into(), 1, 1, entries).encode().expect("encode");
    let address = store.put_manifest_until(manifest, Some(today + 2)).await.expect("put");
    assert_eq!(packs(&faulty.disk()).await.len(), 2, "one pack a day");
    purge(&store, address, false).await.expect("purge");
    assert_eq!(packs(&faulty.disk()).await.len(), 1, "nothing was left in the other");
    // The power is cut before the index on disk knows that the pack is gone, and again after the next one was made.
    drop(store);
    faulty.cut_power(1);
    let home = Arc::new(home.crashed());
    let store = open_at(&faulty, &home, &now).await;
    commit_until(&store, &after, today + 40).await;
    assert_eq!(packs(&faulty.disk()).await.len(), 2);
    drop(store);
    faulty.cut_power(2);
    let store = open_at(&faulty, &Arc::new(home.crashed()), &now).await;
    assert_eq!((&store.recovery().damage, &store.recovery().missing), (&vec![], &vec![]));
    assert_whole(&store, &kept).await;
    assert_whole(&store, &after).await;
}

#[tokio::test(start_paused = true)]
async fn what_a_fetch_brings_for_a_purged_study_is_discarded() {
    let faulty = FaultyDisk::new();
    let store = open(&faulty.disk(), &Arc::default()).await;
    let (first, second) = (study("1.2.1", 2), study("1.2.2", 2));
    publish(&store, "1.2.2", &second, 1, 1).await;
    let chunks: Vec<_> = first.iter().flat_map(|instance| instance.cut.chunks().cloned()).collect();
    let hashes = chunks.iter().map(Chunk::hash).collect();
    store.put(PutGroup { chunks, ..PutGroup::default() }).await.expect("put");
    store.discard(hashes).await.expect("discard");
    assert_gone(&faulty, &first, "nothing refers to it");
    for instance in &second {
        assert_whole(&store, instance).await;
    }
}

/// What a site says that a study consists of.
fn published(uid: &str, instances: &[TestInstance], origin: u64, sequence: u64) -> Bytes {
    let entry = |instance: &TestInstance| InstanceEntry {
        sop_instance: instance.manifest.sop_instance.clone(),
        series_uid: instance.manifest.series_uid.clone(),
        manifest: Hash::of(&instance.manifest.encode().expect("encode")),
        bytes: instance.manifest.total_len,
        dataset_hash: instance.manifest.dataset_hash,
    };
    let study = StudyManifest::new(uid.into(), origin, sequence, instances.iter().map(entry).collect());
    study.encode().expect("encode")
}

/// Puts a publication as a pull does: its pieces and manifests, nothing of it listed as received.
async fn pull(store: &Store, uid: &str, instances: &[TestInstance], origin: u64, day: Option<u64>) -> Hash {
    let address = store.put_manifest_until(published(uid, instances, origin, 1), day).await.expect("put");
    let manifests = instances.iter().map(|one| Chunk::new(one.manifest.encode().expect("encode"))).collect();
    store.put(PutGroup { manifests, day, ..PutGroup::default() }).await.expect("put");
    let chunks = instances.iter().flat_map(|one| one.cut.clone().into_chunks()).collect();
    store.put(PutGroup { chunks, day, ..PutGroup::default() }).await.expect("put");
    address
}

#[tokio::test(start_paused = true)]
async fn what_is_kept_for_the_time_being_goes_without_a_trace_and_its_packs_with_it() {
    let faulty = FaultyDisk::new();
    let store = open(&faulty.disk(), &Arc::default()).await;
    let (kept, other) = (study("1.2.1", 300), study("1.2.2", 3));
    let others = publish(&store, "1.2.2", &other, 1, 1).await;
    let before = (listing(&store).await, packs(&faulty.disk()).await.len());
    let address = pull(&store, "1.2.1", &kept, 2, Some(NOW / DAY + 1)).await;
    let bytes: usize = kept.iter().map(|one| one.dataset.len() - 5_000).sum();
    let said = store.stored_bytes(vec![address]).await.expect("index");
    assert!(said > bytes as u64, "{said} bytes are at least those of its own data sets, {bytes}");
    store.evict(address).await.expect("evict");
    assert_gone(&faulty, &kept, "after it was evicted");
    assert_eq!((listing(&store).await, packs(&faulty.disk()).await.len()), before);
    assert_eq!(store.stored_bytes(vec![address]).await.expect("index"), 0);
    assert!(store.verify_study(others).await.expect("verify").is_complete());
    store.evict(address).await.expect("again is no error");
}

#[tokio::test(start_paused = true)]
async fn an_earlier_publication_goes_and_all_that_the_later_lists_stays_though_its_manifest_alone_had_come() {
    let faulty = FaultyDisk::new();
    let store = open(&faulty.disk(), &Arc::default()).await;
    let (all, day) = (study("1.2.1", 9), Some(NOW / DAY + 1));
    let earlier = pull(&store, "1.2.1", &all[..6], 2, day).await;
    let stored = async |manifests: &[Hash]| store.stored_bytes(manifests.to_vec()).await.expect("index");
    let alone = stored(&[earlier]).await;
    let manifests = [published("1.2.1", &all[..6], 2, 1), published("1.2.1", &all, 2, 2)];
    let [len_of_earlier, len_of_later] = manifests.each_ref().map(|manifest| manifest.len() as u64);
    let [_, manifest] = manifests;
    let later = store.put_manifest_until(manifest, day).await.expect("put");
    assert_eq!(stored(&[earlier, later]).await, alone + len_of_later, "what both list is counted once");

    store.evict(earlier).await.expect("evict");
    assert!(!store.has(earlier).await.expect("index"));
    assert_eq!(stored(&[later]).await, alone + len_of_later - len_of_earlier);
    let lacking: Vec<Hash> = all[6..].iter().map(|one| Hash::of(&one.manifest.encode().expect("encode"))).collect();
    assert_eq!(store.lacks(later).await.expect("index"), lacking, "only what the earlier did not list");
    assert!(!store.was_held(later).await.expect("index"));
    store.evict(later).await.expect("evict");
    assert_gone(&faulty, &all[..6], "with the last that lists it");
}

#[tokio::test(start_paused = true)]
async fn what_is_held_was_received_or_is_part_of_another_publication_is_not_evicted() {
    let faulty = FaultyDisk::new();
    let store = open(&faulty.disk(), &Arc::default()).await;
    let all = study("1.2.1", 9);
    let address = pull(&store, "1.2.1", &all, 2, None).await;
    // The first three were received here too and are not published yet; the next three another site published.
    for instance in &all[..3] {
        assert!(matches!(commit(&store, instance).await, Ok(Stored::New { .. })));
    }
    let third = pull(&store, "1.2.1", &all[3..6], 3, None).await;
    assert_eq!(store.hold(third).await.expect("hold"), Hold::Held);
    // Held itself: nothing of it goes.
    assert_eq!(store.hold(address).await.expect("hold"), Hold::Held);
    store.evict(address).await.expect("evict");
    assert!(store.verify_study(address).await.expect("verify").is_complete());
    store.release(address).await.expect("release");
    assert!(store.was_held(address).await.expect("index"), "until just now");
    store.evict(address).await.expect("evict");
    for instance in &all[..3] {
        assert_whole(&store, instance).await;
    }
    assert!(store.verify_study(third).await.expect("verify").is_complete());
    assert_gone(&faulty, &all[6..], "what only it had");
    assert!(matches!(store.hold(address).await, Err(StoreError::Missing(_))), "it is not here to be held");
    store.close().await.expect("close");
    let store = open(&faulty.disk(), &Arc::default()).await;
    for instance in &all[..3] {
        assert_whole(&store, instance).await;
    }
    assert!(store.verify_study(third).await.expect("verify").is_complete());
}
