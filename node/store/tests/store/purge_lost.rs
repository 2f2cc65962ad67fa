//! Purging what lay in packs that are gone or were cut short: it is done, whatever else is stored goes on, and nothing
//! of it comes back with their files.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use maillage_host::Disk;
use maillage_host::engine::MemoryHome;
use maillage_store::{Hash, Hold, Publication, ScrubPosition, Store, StoreError, Stored, StudyManifest};

use crate::faulty_disk::FaultyDisk;
use crate::fixture::{TestInstance, assert_whole, commit, locate, open, packs};
use crate::purge::{DAY, NOW, assert_gone, commit_until, open_at, publish, slice, study};

const KEPT: &str = "1.2.1";
const GOING: &str = "1.2.2";

/// What becomes of a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lost {
    Removed,
    /// To so many bytes.
    Cut(u64),
}

/// When it is noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Noticed {
    AtStart,
    ByScrub,
    ByThePurge,
}

impl Lost {
    async fn lose(self, disk: &Disk, path: &str) {
        match self {
            Self::Removed => disk.remove(path).await.expect("remove"),
            Self::Cut(len) => {
                let file = disk.open(path).await.expect("open");
                file.set_len(len).await.expect("cut");
                file.sync().await.expect("sync");
            }
        }
    }
}

/// What is in a store of several packs.
struct Filled {
    /// In the first pack.
    kept: Vec<TestInstance>,
    /// In all packs; the study's address.
    going: Vec<TestInstance>,
    address: Hash,
    /// Of another study, in the pack that is lost.
    other: Option<TestInstance>,
    /// The pack that is lost, neither the first nor the last, and its content.
    path: String,
    saved: Bytes,
}

async fn filled(store: &Store, disk: &Disk, is_shared: bool) -> Filled {
    let (kept, going) = (study(KEPT, 3), study(GOING, 150));
    publish(store, KEPT, &kept, 1, 1).await;
    for instance in &going[..110] {
        commit(store, instance).await.expect("commit");
    }
    let other = is_shared.then(|| slice("1.2.3", 0));
    if let Some(other) = &other {
        commit(store, other).await.expect("commit");
    }
    let address = publish(store, GOING, &going, 1, 1).await;
    let (path, _) = locate(disk, going[110].cut.head[0].chunk().bytes()).await;
    let packs = packs(disk).await;
    assert!(packs[1..packs.len() - 1].contains(&path), "{path} of {packs:?}");
    let saved = disk.read(&path).await.expect("read");
    Filled { kept, going, address, other, path, saved }
}

fn publication(manifest: Hash) -> Publication {
    Publication { study_uid: GOING.into(), origin: 1, sequence: 1, manifest }
}

async fn pass(store: &Store) -> bool {
    let (mut position, mut is_lost) = (Some(ScrubPosition::default()), false);
    while let Some(from) = position {
        let step = store.scrub(from, u64::MAX).await.expect("a step");
        is_lost |= step.lost.is_some();
        position = step.next;
    }
    is_lost
}

async fn intents(disk: &Disk) -> usize {
    packs(disk).await.iter().filter(|path| path.ends_with(".purge")).count()
}

/// A closed store with nothing but a study of two images in its one pack: its disk and index, the study and its address.
async fn closed_with_going() -> (Arc<FaultyDisk>, Arc<MemoryHome>, Vec<TestInstance>, Hash) {
    let (faulty, home) = (FaultyDisk::new(), Arc::<MemoryHome>::default());
    let store = open(&faulty.disk(), &home).await;
    let going = study(GOING, 2);
    let address = publish(&store, GOING, &going, 1, 1).await;
    store.close().await.expect("close");
    (faulty, home, going, address)
}

/// What must hold from the purge on, whatever comes back.
async fn is_gone(store: &Store, faulty: &FaultyDisk, kept: &[TestInstance], going: &[TestInstance], case: &str) {
    // What an opening finishes behind its caller is finished by this.
    store.discard(Vec::new()).await.unwrap_or_else(|error| panic!("{case}: {error}"));
    assert!(!store.stats().await.expect("stats").is_failed, "{case}");
    assert_gone(faulty, going, case);
    assert_eq!(store.study_seen(GOING).await.expect("index"), None, "{case}");
    for instance in going {
        assert!(store.instance(&instance.manifest.sop_instance).await.expect("index").is_none(), "{case}");
    }
    for instance in kept {
        assert_whole(store, instance).await;
    }
}

async fn purge_of_a_lost_pack(lost: Lost, noticed: Noticed, is_shared: bool, is_index_lost: bool) {
    let case = format!("{lost:?}, noticed {noticed:?}, shared: {is_shared}, index lost: {is_index_lost}");
    let (faulty, home) = (FaultyDisk::new(), Arc::<MemoryHome>::default());
    let disk = faulty.disk();
    let mut store = open(&disk, &home).await;
    let Filled { mut kept, going, address, other, path, saved } = filled(&store, &disk, is_shared).await;
    if noticed == Noticed::AtStart {
        store.close().await.expect("close");
        lost.lose(&disk, &path).await;
        store = open(&disk, &home).await;
    } else {
        lost.lose(&disk, &path).await;
    }
    if noticed == Noticed::ByScrub {
        pass(&store).await;
    }
    store.purge(&publication(address), false).await.unwrap_or_else(|error| panic!("{case}: {error}"));
    is_gone(&store, &faulty, &kept, &going, &case).await;
    let late = slice(KEPT, 7);
    assert!(matches!(commit(&store, &late).await, Ok(Stored::New { .. })), "{case}: the store goes on");
    kept.push(late);
    store.close().await.expect("close");

    let home = if is_index_lost { Arc::default() } else { home };
    let store = open(&disk, &home).await;
    is_gone(&store, &faulty, &kept, &going, &case).await;
    let late = slice(KEPT, 8);
    assert!(matches!(commit(&store, &late).await, Ok(Stored::New { .. })), "{case}: also after a start");
    kept.push(late);
    store.close().await.expect("close");

    if lost != Lost::Removed {
        assert!(is_shared || !packs(&disk).await.contains(&path), "{case}: nothing in it is kept");
        assert_eq!(intents(&disk).await, 0, "{case}: nothing is left to be done");
        return;
    }
    assert_eq!(intents(&disk).await, 1, "{case}: what may come back is not forgotten");
    disk.replace(&path, saved).await.expect("bring it back");
    for home in [home, Arc::default()] {
        let store = open(&disk, &home).await;
        is_gone(&store, &faulty, &kept, &going, &format!("{case}, and back")).await;
        assert_eq!(store.recovery().damage, [], "{case}");
        assert_eq!(intents(&disk).await, 0, "{case}: nothing is left to be done");
        store.close().await.expect("close");
    }
    if let Some(other) = other {
        assert_whole(&open(&disk, &Arc::default()).await, &other).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_purge_of_what_lay_in_a_lost_pack_is_done_and_does_not_come_back_with_its_file() {
    for lost in [Lost::Removed, Lost::Cut(100_000)] {
        for noticed in [Noticed::AtStart, Noticed::ByScrub, Noticed::ByThePurge] {
            for is_shared in [false, true] {
                for is_index_lost in [false, true] {
                    purge_of_a_lost_pack(lost, noticed, is_shared, is_index_lost).await;
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_lost_pack_held_and_was_mended_elsewhere_does_not_come_back_once_it_is_purged() {
    for is_index_lost in [false, true] {
        let (faulty, home) = (FaultyDisk::new(), Arc::<MemoryHome>::default());
        let disk = faulty.disk();
        let store = open(&disk, &home).await;
        let Filled { kept, going, address, path, saved, .. } = filled(&store, &disk, false).await;
        disk.remove(&path).await.expect("remove");
        assert!(pass(&store).await, "it is lost");
        for instance in &going {
            commit(&store, instance).await.expect("commit");
            assert_whole(&store, instance).await;
        }
        assert!(!pass(&store).await, "nobody misses anything of it any more");
        store.close().await.expect("close");
        let store = open(&disk, &home).await;
        assert_eq!(store.recovery().missing, []);
        store.purge(&publication(address), false).await.expect("purge");
        is_gone(&store, &faulty, &kept, &going, "after the purge").await;
        store.close().await.expect("close");

        disk.replace(&path, saved).await.expect("bring it back");
        for home in [if is_index_lost { Arc::default() } else { home }, Arc::default()] {
            let store = open(&disk, &home).await;
            is_gone(&store, &faulty, &kept, &going, &format!("it is back, index lost: {is_index_lost}")).await;
            assert_eq!(store.recovery().damage, []);
            assert_eq!(intents(&disk).await, 0);
            store.close().await.expect("close");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_power_cut_at_any_sync_of_such_a_purge_leaves_what_is_missing_to_be_done_and_nothing_else() {
    let mut nth = 1;
    loop {
        let (faulty, home) = (FaultyDisk::new(), Arc::<MemoryHome>::default());
        let store = open(&faulty.disk(), &home).await;
        let Filled { kept, going, address, path, saved, .. } = filled(&store, &faulty.disk(), true).await;
        faulty.disk().remove(&path).await.expect("remove");
        faulty.faults.lock().expect("lock").fail_sync_in = nth;
        let purged = store.purge(&publication(address), false).await;
        faulty.cut_power(nth);
        drop(store);
        let (disk, case) = (faulty.disk(), format!("cut at sync {nth}"));
        let store = open(&disk, &home).await;
        store.purge(&publication(address), false).await.expect("purge");
        is_gone(&store, &faulty, &kept, &going, &case).await;
        assert_eq!(intents(&disk).await, 1, "{case}");
        store.close().await.expect("close");
        disk.replace(&path, saved).await.expect("bring it back");
        let store = open(&disk, &Arc::default()).await;
        is_gone(&store, &faulty, &kept, &going, &case).await;
        assert_eq!(intents(&disk).await, 0, "{case}");
        if purged.is_ok() {
            break;
        }
        nth += 1;
    }
    assert!(nth > 5, "the purge was stopped on its way: {nth}");
}

#[tokio::test(start_paused = true)]
async fn a_purge_in_the_last_pack_that_was_cut_short_is_done() {
    for len in [0, 2_000, 5_000, 9_000] {
        let (faulty, home, going, address) = closed_with_going().await;
        let disk = faulty.disk();
        Lost::Cut(len).lose(&disk, &packs(&disk).await[0]).await;
        let store = open(&disk, &home).await;
        store.purge(&publication(address), false).await.expect("purge");
        for home in [home, Arc::default()] {
            let store = open(&disk, &home).await;
            is_gone(&store, &faulty, &[], &going, "after a start").await;
            let late = slice(KEPT, 7);
            commit(&store, &late).await.expect("commit");
            assert_whole(&store, &late).await;
            store.close().await.expect("close");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_number_that_a_purge_waits_for_is_no_other_packs() {
    let (faulty, home, going, address) = closed_with_going().await;
    let disk = faulty.disk();
    let [path] = &packs(&disk).await[..] else { panic!("one pack") };
    let saved = disk.read(path).await.expect("read");
    disk.remove(path).await.expect("remove");
    let store = open(&disk, &home).await;
    store.purge(&publication(address), false).await.expect("purge");
    store.close().await.expect("close");
    // Neither the index nor a file knows that number.
    let store = open(&disk, &Arc::default()).await;
    for instance in &going {
        assert!(matches!(commit(&store, instance).await, Ok(Stored::New { .. })));
    }
    store.close().await.expect("close");
    assert!(!packs(&disk).await.contains(path), "the file may still come back");
    disk.replace(path, saved).await.expect("bring it back");
    let store = open(&disk, &Arc::default()).await;
    store.discard(Vec::new()).await.expect("finish");
    assert_eq!(intents(&disk).await, 0);
    for instance in &going {
        // Sent again after the purge: not what was purged.
        assert_whole(&store, instance).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_pack_that_cannot_be_opened_fails_its_purge_which_the_next_start_finishes() {
    let (faulty, home) = (FaultyDisk::new(), Arc::<MemoryHome>::default());
    let disk = faulty.disk();
    let store = open(&disk, &home).await;
    let Filled { kept, going, address, path, .. } = filled(&store, &disk, true).await;
    faulty.faults.lock().expect("lock").unreadable = Some(path);
    let purged = store.purge(&publication(address), false).await;
    assert!(matches!(purged, Err(StoreError::Failed(_))), "{purged:?}");
    let refused = commit(&store, &slice(KEPT, 7)).await;
    assert!(matches!(refused, Err(StoreError::Failed(_))), "{refused:?}");
    let _ = store.close().await;
    faulty.faults.lock().expect("lock").unreadable = None;
    let store = open(&disk, &home).await;
    is_gone(&store, &faulty, &kept, &going, "once it can be read").await;
    assert_eq!(intents(&disk).await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_purge_in_a_pack_that_vanished_while_it_is_written_ends_writing_until_a_start() {
    let (faulty, home) = (FaultyDisk::new(), Arc::<MemoryHome>::default());
    let disk = faulty.disk();
    let store = open(&disk, &home).await;
    let (kept, going) = (study(KEPT, 2), study(GOING, 2));
    publish(&store, KEPT, &kept, 1, 1).await;
    let address = publish(&store, GOING, &going, 1, 1).await;
    disk.remove(&packs(&disk).await[0]).await.expect("remove");
    let purged = store.purge(&publication(address), false).await;
    assert!(matches!(&purged, Err(StoreError::Failed(why)) if why.contains("is gone")), "{purged:?}");
    let refused = commit(&store, &slice(KEPT, 7)).await;
    assert!(matches!(refused, Err(StoreError::Failed(_))), "nothing is written to a file without a name: {refused:?}");
    let _ = store.close().await;
    for _ in 0..2 {
        let store = open(&disk, &home).await;
        is_gone(&store, &faulty, &[], &going, "after a start").await;
        for instance in &kept {
            commit(&store, instance).await.expect("commit again");
            assert_whole(&store, instance).await;
        }
        store.close().await.expect("close");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_pack_keeps_no_other_from_being_reclaimed() {
    for lost in [Lost::Removed, Lost::Cut(5_000)] {
        let (faulty, home, now) = (FaultyDisk::new(), Arc::default(), Arc::new(AtomicU64::new(NOW)));
        let (disk, today) = (faulty.disk(), NOW / DAY);
        let store = open_at(&faulty, &home, &now).await;
        // In each pack a study that goes, and little of one that is kept: of that, one part lies in both.
        let mut kept = Vec::new();
        for (n, day) in [(1, today + 2), (2, today + 3)] {
            let going = study(&format!("1.2.1{n}"), 20);
            for instance in &going {
                commit_until(&store, instance, day).await;
            }
            kept.push(slice(KEPT, n));
            commit_until(&store, &kept[kept.len() - 1], day).await;
            let uid = &going[0].manifest.study_uid;
            let entries = store.instances(uid).await.expect("index").into_iter().map(|listed| listed.entry).collect();
            let manifest = StudyManifest::new(uid.clone(), 1, 1, entries).encode().expect("encode");
            let manifest = store.put_manifest_until(manifest, Some(day)).await.expect("put");
            let publication = Publication { study_uid: uid.clone(), origin: 1, sequence: 1, manifest };
            store.purge(&publication, false).await.expect("purge");
        }
        let entries = store.instances(KEPT).await.expect("index").into_iter().map(|listed| listed.entry).collect();
        let manifest = StudyManifest::new(KEPT.into(), 1, 1, entries).encode().expect("encode");
        let manifest = store.put_manifest_until(manifest, Some(today + 2)).await.expect("put");
        assert_eq!(store.hold(manifest).await.expect("hold"), Hold::Held);
        let [first, second] = &packs(&disk).await[..] else { panic!("one pack a day") };

        now.fetch_add(4 * DAY, Ordering::SeqCst);
        // Sealed, as they are once their day is over.
        store.discard(Vec::new()).await.expect("seal");
        lost.lose(&disk, first).await;
        store.reclaim().await.expect("reclaim");
        assert!(!packs(&disk).await.contains(second), "{lost:?}: the other is written anew");
        let chunk = kept[1].cut.head[0].chunk();
        assert_eq!(store.get(chunk.hash()).await.expect("read").as_ref(), Some(chunk.bytes()), "{lost:?}");
        store.reclaim().await.expect("again");
        assert!(!store.stats().await.expect("stats").is_failed);
    }
}
