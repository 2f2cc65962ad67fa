//! Power cuts at every moment: what was acknowledged is there, what was not is whole or absent.

use std::sync::Arc;
use std::time::Duration;

use maillage_host::engine::MemoryHome;
use maillage_store::{StoreError, Stored};

use crate::faulty_disk::FaultyDisk;
use crate::fixture::{TestInstance, assert_whole, commit, copy, instance, listing, open, read_back};

/// Instances of growing sizes, so that groups and packs end at uneven places.
fn numbered(n: usize) -> TestInstance {
    instance(n as u64, n as u64, 3_000 + 1_700 * n)
}

/// Commits instances until the power is cut before the `syncs`-th sync from now, then opens with an
/// index that survived (`keeps_index`) or is empty, and compares.
async fn cut_after(syncs: u64, seed: u64, keeps_index: bool) {
    let faulty = FaultyDisk::new();
    let home = Arc::new(MemoryHome::default());
    let store = open(&faulty.disk(), &home).await;
    let instances: Vec<TestInstance> = (0..24).map(numbered).collect();
    let before = faulty.syncs.load(std::sync::atomic::Ordering::SeqCst);
    let mut acknowledged = Vec::new();
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..instances.len() {
        let (store, tell) = (store.clone(), tell.clone());
        let instance = numbered(n);
        tasks.spawn(async move {
            tokio::time::sleep(Duration::from_millis(n as u64 % 7)).await;
            if commit(&store, &instance).await.is_ok() {
                let _ = tell.send(n);
            }
        });
    }
    while faulty.syncs.load(std::sync::atomic::Ordering::SeqCst) < before + syncs && !tasks.is_empty() {
        tokio::select! {
            () = tokio::time::sleep(Duration::from_micros(50)) => {}
            _ = tasks.join_next() => {}
        }
    }
    faulty.cut_power(seed);
    while let Ok(n) = told.try_recv() {
        acknowledged.push(n);
    }
    tasks.shutdown().await;
    drop(store);
    let home = if keeps_index { home } else { Arc::default() };
    let store = open(&faulty.disk(), &home).await;
    assert_eq!(store.recovery().damage, [], "a crash is no damage (cut {syncs}, seed {seed})");
    for n in acknowledged {
        assert_whole(&store, &instances[n]).await;
    }
    for instance in &instances {
        if store.instance(&instance.manifest.sop_instance).await.expect("index").is_some() {
            assert_whole(&store, instance).await;
        }
        assert!(commit(&store, instance).await.is_ok(), "the store goes on");
        assert_whole(&store, instance).await;
    }
    // And once more, from nothing but the packs.
    let text = listing(&store).await;
    store.close().await.expect("close");
    let rebuilt = open(&faulty.disk(), &Arc::default()).await;
    assert_eq!(listing(&rebuilt).await, text);
    assert_eq!(rebuilt.recovery().damage, []);
}

#[tokio::test(start_paused = true)]
async fn nothing_acknowledged_is_lost_at_a_power_cut_and_the_index_is_rebuilt() {
    for syncs in 1..24 {
        for seed in 0..6 {
            cut_after(syncs, 1_000 * syncs + seed, false).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_index_that_survived_the_power_cut_agrees_with_the_packs() {
    for syncs in 1..24 {
        cut_after(syncs, syncs, true).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_index_any_number_of_batches_behind_is_completed() {
    let faulty = FaultyDisk::new();
    let home = Arc::new(MemoryHome::default());
    let store = open(&faulty.disk(), &home).await;
    let instances: Vec<TestInstance> = (0..24).map(numbered).collect();
    let mut lagging = vec![copy(&home)];
    for instance in &instances {
        commit(&store, instance).await.expect("commit");
        lagging.push(copy(&home));
    }
    // The same UID with other bytes: which of the two came first must not depend on the lag.
    commit(&store, &instance(3, 1_000, 9_000)).await.expect("conflict");
    let text = listing(&store).await;
    store.close().await.expect("close");
    let mut replayed_before = u64::MAX;
    for (done, home) in lagging.iter().enumerate() {
        let store = open(&faulty.disk(), home).await;
        assert_eq!(listing(&store).await, text, "{done} instances were indexed");
        let replayed = store.recovery().records_replayed;
        assert!(replayed < replayed_before && replayed > 0, "only what is lacking: {replayed} after {done}");
        replayed_before = replayed;
        store.close().await.expect("close");
    }
}

#[tokio::test(start_paused = true)]
async fn a_torn_tail_is_cut_and_what_was_there_before_stays() {
    let mut torn = 0;
    for seed in 0..24 {
        let faulty = FaultyDisk::new();
        let store = open(&faulty.disk(), &Arc::default()).await;
        let first = instance(1, 1, 20_000);
        commit(&store, &first).await.expect("commit");
        faulty.faults.lock().expect("lock").sync_takes = Duration::from_secs(3600);
        let second = instance(2, 2, 20_000);
        let waits = tokio::time::timeout(Duration::from_secs(60), commit(&store, &second)).await;
        assert!(waits.is_err(), "not acknowledged before its sync");
        faulty.cut_power(seed);
        let store = open(&faulty.disk(), &Arc::default()).await;
        torn += u64::from(store.recovery().torn.is_some());
        assert_eq!(store.recovery().damage, []);
        drop(store);
        let store = open(&faulty.disk(), &Arc::default()).await;
        assert_eq!(store.recovery().torn, None, "cut once and for all, or it comes back behind shorter records");
        assert_whole(&store, &first).await;
        if store.instance(&second.manifest.sop_instance).await.expect("index").is_some() {
            assert_whole(&store, &second).await;
        }
        commit(&store, &second).await.expect("commit again");
        assert_whole(&store, &second).await;
    }
    assert!(torn > 4, "the seeds tear tails, or this test shows nothing: {torn}");
}

#[tokio::test(start_paused = true)]
async fn a_failed_sync_ends_writing_for_good_and_is_not_believed_after_a_restart() {
    let faulty = FaultyDisk::new();
    let home = Arc::default();
    let store = open(&faulty.disk(), &home).await;
    let mut events = store.events();
    let [first, second, third] = [1, 2, 3].map(|n| instance(n, n, 9_000));
    commit(&store, &first).await.expect("commit");
    tokio::time::sleep(Duration::from_millis(10)).await;
    faulty.faults.lock().expect("lock").fail_sync_in = 1;
    assert!(matches!(commit(&store, &second).await, Err(StoreError::Failed(_))));
    assert!(matches!(commit(&store, &second).await, Err(StoreError::Failed(_))), "never retried into silence");
    assert!(matches!(commit(&store, &third).await, Err(StoreError::Failed(_))));
    assert!(matches!(events.recv().await, Ok(maillage_store::StoreEvent::WriterFailed(_))));
    assert!(store.stats().await.expect("stats").is_failed);
    assert_whole(&store, &first).await;
    drop(store);

    // The process restarts, the machine does not: the page cache still shows what never got to the disk.
    let store = open(&faulty.disk(), &home).await;
    let shown = store.instance(&second.manifest.sop_instance).await.expect("index").is_some();
    assert!(shown, "the cache shows it, so this test tests something");
    assert!(matches!(commit(&store, &second).await, Ok(Stored::Duplicate { .. })));
    faulty.cut_power(0);
    let store = open(&faulty.disk(), &Arc::default()).await;
    assert_whole(&store, &first).await;
    assert_whole(&store, &second).await;
}

#[tokio::test(start_paused = true)]
async fn a_failed_write_ends_writing_for_good() {
    let faulty = FaultyDisk::new();
    let store = open(&faulty.disk(), &Arc::default()).await;
    let [first, second] = [1, 2].map(|n| instance(n, n, 9_000));
    commit(&store, &first).await.expect("commit");
    tokio::time::sleep(Duration::from_millis(10)).await;
    faulty.faults.lock().expect("lock").fail_write_in = 2;
    assert!(matches!(commit(&store, &second).await, Err(StoreError::Failed(_))));
    assert!(matches!(commit(&store, &second).await, Err(StoreError::Failed(_))));
    let store = open(&faulty.disk(), &Arc::default()).await;
    assert_whole(&store, &first).await;
    assert!(read_back(&store, &first).await.is_ok());
    assert!(matches!(commit(&store, &second).await, Ok(Stored::New { .. })));
}

/// The next life of a killed process finds a pack, by a name that no sync has made durable yet.
#[tokio::test]
async fn what_is_added_to_a_pack_that_a_killed_process_made_survives_a_power_cut() {
    let faulty = FaultyDisk::new();
    let home = Arc::new(MemoryHome::default());
    let store = open(&faulty.disk(), &home).await;
    commit(&store, &numbered(1)).await.expect("committed");
    drop(store);
    faulty.forget_that_names_are_durable();
    let store = open(&faulty.disk(), &home).await;
    commit(&store, &numbered(2)).await.expect("committed");
    faulty.cut_power(7);
    drop(store);
    let store = open(&faulty.disk(), &home).await;
    assert_whole(&store, &numbered(1)).await;
    assert_whole(&store, &numbered(2)).await;
}
