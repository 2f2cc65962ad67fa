//! What lands: there after every crash until it is done, gone then, and never taken for something else.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use maillage_host::engine::MemoryHome;
use maillage_store::{Arrived, ArrivedError, Claimed, Hash, Landed, Publication, Store, StoreConfig, StoreError};

use crate::faulty_disk::FaultyDisk;
use crate::fixture::{STUDY, config, flip, noise, open, open_with};

fn dataset(number: u64) -> Bytes {
    noise(number, 2_000 + 1_900 * usize::try_from(number % 16).expect("small"))
}

fn uid(number: u64) -> String {
    format!("{STUDY}.9.{number}")
}

/// Lands data set `number`; the claim comes back when there is no room.
async fn land(store: &Store, number: u64) -> Result<Option<Claimed>, StoreError> {
    let claimed = store.landing().claim(STUDY, &uid(number)).expect("nobody else brings it in");
    let sealing = store.keys().sealing(STUDY).await?;
    let landed = Landed {
        study_uid: STUDY.to_owned(),
        sop_instance: uid(number),
        sop_class: "1.2.840.10008.5.1.4.1.1.2".to_owned(),
        transfer_syntax: "1.2.840.10008.1.2.1".to_owned(),
        dataset_hash: Hash::of(&dataset(number)),
        received_at: 1_700_000_000_000 + number,
        source: "CT1".to_owned(),
        key: sealing.key().id(),
    };
    let refused = store.landing().put(claimed, landed, sealing.into_parts(), dataset(number)).await?;
    Ok(refused.map(|(claimed, as_it_came)| {
        assert_eq!(as_it_came, dataset(number));
        claimed
    }))
}

async fn landed(store: &Store, number: u64) {
    assert!(land(store, number).await.expect("landed").is_none(), "there is room");
}

/// What waits to be coded.
async fn waiting(store: &Store) -> Vec<Arrived> {
    let mut arrived = Vec::new();
    while let Ok(next) = tokio::time::timeout(Duration::from_millis(1), store.landing().next()).await {
        arrived.push(next);
    }
    arrived
}

fn number_of(arrived: &Arrived) -> u64 {
    arrived.landed.received_at - 1_700_000_000_000
}

async fn files(faulty: &Arc<FaultyDisk>) -> Vec<String> {
    let names = faulty.disk().list("images/landing").await.expect("list");
    names.into_iter().map(|name| format!("images/landing/{name}")).collect()
}

/// Lands data sets until the power is cut before the `syncs`-th sync from now, and looks at what is there then.
/// Returns how many were torn.
async fn cut_after(syncs: u64, seed: u64) -> u64 {
    let faulty = FaultyDisk::new();
    let store = open(&faulty.disk(), &Arc::default()).await;
    // So that the cut comes inside one, mostly.
    faulty.faults.lock().expect("lock").sync_takes = Duration::from_millis(1);
    let synced = || faulty.syncs.load(std::sync::atomic::Ordering::SeqCst);
    let before = synced();
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..24 {
        let (store, tell) = (store.clone(), tell.clone());
        tasks.spawn(async move {
            tokio::time::sleep(Duration::from_millis(number % 7)).await;
            if matches!(land(&store, number).await, Ok(None)) {
                let _ = tell.send(number);
            }
        });
    }
    while synced() < before + syncs && !tasks.is_empty() {
        tokio::select! {
            () = tokio::time::sleep(Duration::from_micros(50)) => {}
            _ = tasks.join_next() => {}
        }
    }
    tokio::time::sleep(Duration::from_micros(100 * (seed % 8))).await;
    faulty.cut_power(seed);
    faulty.faults.lock().expect("lock").sync_takes = Duration::ZERO;
    let mut acknowledged = std::collections::BTreeSet::new();
    while let Ok(number) = told.try_recv() {
        acknowledged.insert(number);
    }
    tasks.shutdown().await;
    drop(store);
    let store = open(&faulty.disk(), &Arc::default()).await;
    assert_eq!(store.landing().size().1, 0, "a crash is no damage (cut {syncs}, seed {seed})");
    let mut torn = 0;
    for arrived in waiting(&store).await {
        let number = number_of(&arrived);
        match store.landing().read(&arrived).await {
            Ok((_, found)) => {
                assert_eq!(found, dataset(number), "cut {syncs}, seed {seed}");
                acknowledged.remove(&number);
            }
            Err(ArrivedError::Torn) => torn += 1,
            Err(other) => panic!("{other} (cut {syncs}, seed {seed})"),
        }
        store.landing().done(arrived).await;
    }
    assert!(acknowledged.is_empty(), "acknowledged and not there: {acknowledged:?} (cut {syncs}, seed {seed})");
    assert!(store.landing().is_empty());
    assert_eq!(files(&faulty).await, Vec::<String>::new(), "all is done");
    torn
}

#[tokio::test(start_paused = true)]
async fn nothing_that_landed_is_lost_at_a_power_cut() {
    let mut torn = 0;
    for syncs in 1..16 {
        for seed in 0..8 {
            torn += cut_after(syncs, 1_000 * syncs + seed).await;
        }
    }
    assert!(torn > 10, "the seeds tear some, or this test shows nothing: {torn}");
}

#[tokio::test(start_paused = true)]
async fn what_is_done_is_gone_and_what_is_not_comes_again_in_its_order() {
    let faulty = FaultyDisk::new();
    let home = Arc::new(MemoryHome::default());
    let store = open(&faulty.disk(), &home).await;
    for number in 0..4 {
        landed(&store, number).await;
    }
    let arrived = waiting(&store).await;
    assert_eq!(arrived.iter().map(number_of).collect::<Vec<_>>(), [0, 1, 2, 3]);
    for arrived in arrived.into_iter().take(2) {
        store.landing().done(arrived).await;
    }
    drop(store);
    // A file is removed as a whole: what was done of it comes again, and is a duplicate.
    let store = open(&faulty.disk(), &home).await;
    let arrived = waiting(&store).await;
    assert_eq!(arrived.iter().map(number_of).collect::<Vec<_>>(), [0, 1, 2, 3]);
    for arrived in arrived {
        store.landing().done(arrived).await;
    }
    assert_eq!(files(&faulty).await, Vec::<String>::new());
    landed(&store, 5).await;
    let [arrived] = <[Arrived; 1]>::try_from(waiting(&store).await).expect("one");
    store.landing().done(arrived).await;
    assert_eq!(files(&faulty).await.len(), 1, "more may come soon");
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(files(&faulty).await, Vec::<String>::new(), "nothing comes");
    assert_eq!(store.landing().size(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn damage_is_told_from_a_torn_tail_and_stays_for_whoever_can_mend_it() {
    // Of the first record: what is said, the sealed bytes, the record's header; then the file's.
    for (at, read) in [(4096 + 64 + 20, false), (4096 + 64 + 900, true), (4096 + 3, false)] {
        let faulty = FaultyDisk::new();
        let home = Arc::new(MemoryHome::default());
        let store = open(&faulty.disk(), &home).await;
        for number in 1..4 {
            landed(&store, number).await;
        }
        drop(store);
        let [path] = <[String; 1]>::try_from(files(&faulty).await).expect("one file");
        flip(&faulty.disk(), &path, at, 3).await;
        let store = open(&faulty.disk(), &home).await;
        assert_eq!(store.landing().size().1, u64::from(!read), "byte {at}");
        assert_eq!(store.landing().count_of(STUDY), (2 + u64::from(read), 0), "byte {at}");
        let mut whole = Vec::new();
        for arrived in waiting(&store).await {
            match store.landing().read(&arrived).await {
                Ok((_, found)) => {
                    assert_eq!(found, dataset(number_of(&arrived)));
                    whole.push(number_of(&arrived));
                    store.landing().done(arrived).await;
                }
                Err(ArrivedError::Damaged(_)) => store.landing().stuck(arrived),
                Err(other) => panic!("{other}"),
            }
        }
        assert_eq!(whole, [2, 3], "byte {at}");
        assert_eq!(store.landing().size().1, 1);
        assert_eq!(store.landing().count_of(STUDY), (0, u64::from(read)), "of which study, its record says");
        assert_eq!(store.landing().count_of("1.2.3"), (0, 0));
        assert!(store.landing().is_empty(), "nobody waits for what is lost");
        assert_eq!(files(&faulty).await, [path]);
    }
}

#[tokio::test(start_paused = true)]
async fn without_room_the_claim_comes_back_and_nothing_is_left_of_it() {
    for hides_its_space in [false, true] {
        let faulty = FaultyDisk::new();
        let home = Arc::new(MemoryHome::default());
        let config = StoreConfig { landing_bytes: 1 << 30, ..config() };
        let store = open_with(&faulty.disk(), Arc::<MemoryHome>::clone(&home), config.clone()).await;
        {
            let mut faults = faulty.faults.lock().expect("lock");
            faults.capacity = Some(180_000);
            faults.hides_its_space = hides_its_space;
        }
        let mut taken = Vec::new();
        for number in 0..24 {
            match land(&store, number).await.expect("no failure") {
                None => taken.push(number),
                Some(claimed) => {
                    assert!(store.landing().claim(STUDY, &uid(number)).is_none(), "it is still claimed");
                    drop(claimed);
                    assert!(store.landing().claim(STUDY, &uid(number)).is_some());
                }
            }
        }
        assert!(taken.len() >= 2 && taken.len() < 24, "{taken:?}");
        faulty.cut_power(5);
        let store = open_with(&faulty.disk(), Arc::<MemoryHome>::clone(&home), config).await;
        assert_eq!(store.landing().size().1, 0, "what there was no room for is not lost");
        let mut found = Vec::new();
        for arrived in waiting(&store).await {
            match store.landing().read(&arrived).await {
                Ok((_, bytes)) => {
                    assert_eq!(bytes, dataset(number_of(&arrived)));
                    found.push(number_of(&arrived));
                }
                Err(error) => assert!(matches!(error, ArrivedError::Torn), "{error}"),
            }
        }
        assert_eq!(found, taken);
    }
    let faulty = FaultyDisk::new();
    let config = StoreConfig { landing_bytes: 40_000, ..config() };
    let store = open_with(&faulty.disk(), Arc::<MemoryHome>::default(), config).await;
    let mut taken = 0;
    for number in 0..24 {
        taken += u64::from(land(&store, number).await.expect("no failure").is_none());
    }
    assert!((1..10).contains(&taken), "{taken} fit into 40,000 bytes");
    for arrived in waiting(&store).await {
        store.landing().done(arrived).await;
    }
    tokio::time::sleep(Duration::from_secs(6)).await;
    landed(&store, 30).await;
}

#[tokio::test(start_paused = true)]
async fn a_failed_sync_is_never_taken_for_a_success() {
    let faulty = FaultyDisk::new();
    let store = open(&faulty.disk(), &Arc::default()).await;
    landed(&store, 1).await;
    faulty.faults.lock().expect("lock").fail_sync_in = 1;
    assert!(matches!(land(&store, 2).await, Err(StoreError::Failed(_))));
    assert!(matches!(land(&store, 3).await, Err(StoreError::Failed(_))), "nor tried again");
    assert!(store.stats().await.expect("stats").is_failed);
    assert_eq!(waiting(&store).await.iter().map(number_of).collect::<Vec<_>>(), [1]);
}

#[tokio::test(start_paused = true)]
async fn a_purge_waits_until_no_file_has_anything_of_its_study() {
    let faulty = FaultyDisk::new();
    let store = open(&faulty.disk(), &Arc::default()).await;
    let publication = Publication { study_uid: STUDY.to_owned(), origin: 1, sequence: 1, manifest: Hash([9; 32]) };
    landed(&store, 0).await;
    let [arrived] = <[Arrived; 1]>::try_from(waiting(&store).await).expect("one");
    assert!(matches!(store.purge(&publication, true).await, Err(StoreError::Landed)), "it is still to be coded");
    store.purge(&publication, false).await.expect("what was received elsewhere does not land here");
    store.landing().done(arrived).await;
    store.purge(&publication, true).await.expect("purged");
    assert_eq!(files(&faulty).await, Vec::<String>::new(), "more might have come into the file");
    faulty.cut_power(7);
    drop(store);
    let store = open(&faulty.disk(), &Arc::default()).await;
    assert!(waiting(&store).await.is_empty(), "nothing comes back");
    landed(&store, 1).await;
    let [arrived] = <[Arrived; 1]>::try_from(waiting(&store).await).expect("one");
    store.landing().stuck(arrived);
    store.purge(&publication, true).await.expect("what cannot be coded keeps no purge waiting");
    assert_eq!(files(&faulty).await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn nothing_lands_of_a_study_while_it_is_held_off() {
    let store = open(&FaultyDisk::new().disk(), &Arc::default()).await;
    landed(&store, 0).await;
    let held_off = store.landing().hold_off(STUDY).expect("nobody else does");
    assert!(store.landing().hold_off(STUDY).is_none(), "one at a time");
    assert!(store.landing().may_take("1.2.3", 1_000), "other studies go on");
    assert!(land(&store, 1).await.expect("no error").is_some(), "its claim comes back");
    drop(held_off);
    landed(&store, 1).await;
    assert_eq!(waiting(&store).await.iter().map(number_of).collect::<Vec<_>>(), [0, 1]);
}

#[tokio::test(start_paused = true)]
async fn a_uid_has_one_way_in_and_a_study_s_key_waits_for_what_it_sealed() {
    let faulty = FaultyDisk::new();
    let home = Arc::new(MemoryHome::default());
    let store = open(&faulty.disk(), &home).await;
    landed(&store, 1).await;
    assert!(store.landing().claim(STUDY, &uid(1)).is_none());
    assert!(store.landing().has_of(STUDY) && !store.landing().has_of("1.2"));
    let soon = Duration::from_secs(1);
    let waits = |store: &Store| {
        let store = store.clone();
        async move { tokio::time::timeout(soon, store.keys().rotate(STUDY)).await }
    };
    assert!(waits(&store).await.is_err(), "its key is in use");
    assert!(tokio::time::timeout(soon, store.landing().until_done(&uid(1))).await.is_err());
    drop(store);
    // And by what a start finds.
    let store = open(&faulty.disk(), &home).await;
    assert!(store.landing().claim(STUDY, &uid(1)).is_none());
    assert!(waits(&store).await.is_err());
    assert!(tokio::time::timeout(soon, store.landing().until_earlier_done(STUDY)).await.is_err());
    let blocked = StoreError::Full { free: 1, reserve: 2 };
    store.landing().set_blocked(Some(blocked));
    assert!(matches!(store.landing().until_done(&uid(1)).await, Err(StoreError::Full { .. })));
    assert!(land(&store, 2).await.expect("no failure").is_some(), "nothing lands meanwhile");
    store.landing().set_blocked(None);
    for arrived in waiting(&store).await {
        store.landing().done(arrived).await;
    }
    store.landing().until_done(&uid(1)).await.expect("done");
    store.landing().until_earlier_done(STUDY).await.expect("done");
    assert_eq!(waits(&store).await.expect("at once").len(), 2, "one of each life");
}

#[tokio::test(start_paused = true)]
async fn what_a_stopped_node_left_is_never_taken_for_torn() {
    let faulty = FaultyDisk::new();
    let home = Arc::new(MemoryHome::default());
    let store = open(&faulty.disk(), &home).await;
    landed(&store, 1).await;
    drop(store);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let [path] = <[String; 1]>::try_from(files(&faulty).await).expect("one file");
    flip(&faulty.disk(), &path, 4096 + 64 + 900, 3).await;
    let store = open(&faulty.disk(), &home).await;
    let [arrived] = <[Arrived; 1]>::try_from(waiting(&store).await).expect("one");
    let read = store.landing().read(&arrived).await;
    assert!(matches!(read, Err(ArrivedError::Damaged(_))), "{read:?}");
}
