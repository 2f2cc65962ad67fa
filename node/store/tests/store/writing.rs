//! Group commit, back-pressure, packs and days.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use maillage_host::engine::MemoryHome;
use maillage_host::{Clock, Disk, UnixMillis};
use maillage_store::{Chunk, PackId, PutGroup, Store, StoreConfig, StoreError};

use crate::faulty_disk::FaultyDisk;
use crate::fixture::{assert_whole, commit, config, instance, locate, noise, open, open_with, packs};

#[tokio::test(start_paused = true)]
async fn concurrent_puts_share_few_fsyncs_and_none_is_answered_before_one() {
    let faulty = FaultyDisk::new();
    let config = StoreConfig { extent_bytes: 4 << 20, group_bytes: 4 << 20, pack_bytes: 1 << 30, ..config() };
    let store = open_with(&faulty.disk(), Arc::<MemoryHome>::default(), config).await;
    commit(&store, &instance(0, 0, 1_000)).await.expect("the pack is made");
    tokio::time::sleep(Duration::from_millis(10)).await;
    faulty.faults.lock().expect("lock").sync_takes = Duration::from_millis(5);
    let before = faulty.syncs.load(Ordering::SeqCst);
    let begun = tokio::time::Instant::now();
    let instances: Vec<_> = (1..101).map(|n| instance(n, n, 8_000)).collect();
    let answers = futures::future::join_all(instances.iter().map(|instance| commit(&store, instance))).await;
    assert!(answers.iter().all(Result::is_ok));
    let syncs = faulty.syncs.load(Ordering::SeqCst) - before;
    assert!((1..=4).contains(&syncs), "100 puts took {syncs} syncs");
    assert!(begun.elapsed() >= Duration::from_millis(5));
    faulty.cut_power(0);
    let store = open(&faulty.disk(), &Arc::default()).await;
    for instance in &instances {
        assert_whole(&store, instance).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_put_that_relies_on_an_unsynced_chunk_waits_for_its_sync() {
    let faulty = FaultyDisk::new();
    let store = open(&faulty.disk(), &Arc::default()).await;
    commit(&store, &instance(0, 0, 1_000)).await.expect("the pack is made");
    tokio::time::sleep(Duration::from_millis(10)).await;
    faulty.faults.lock().expect("lock").sync_takes = Duration::from_secs(10);
    let begun = tokio::time::Instant::now();
    let chunk = Chunk::new(noise(9, 9_000));
    let put = |chunk: &Chunk| store.put(PutGroup { chunks: vec![chunk.clone()], ..PutGroup::default() });
    let late = async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        put(&chunk).await.expect("put");
        begun.elapsed()
    };
    let (first, late) = futures::join!(put(&chunk), late);
    first.expect("put");
    assert!(late >= Duration::from_secs(10), "answered after {late:?}");
    assert!(late < Duration::from_secs(20), "but it needs no sync of its own");
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_makes_putters_wait_and_loses_nothing() {
    let faulty = FaultyDisk::new();
    let config = StoreConfig { queue_bytes: 40_000, group_bytes: 10_000, ..config() };
    let store = open_with(&faulty.disk(), Arc::<MemoryHome>::default(), config).await;
    let instances: Vec<_> = (0..20).map(|n| instance(n, n, 15_000)).collect();
    // One larger than the whole queue must get through too.
    let large = instance(99, 99, 90_000);
    let puts = instances.iter().chain([&large]).map(|instance| commit(&store, instance));
    assert!(futures::future::join_all(puts).await.iter().all(Result::is_ok));
    for instance in instances.iter().chain([&large]) {
        assert_whole(&store, instance).await;
    }
}

#[tokio::test(start_paused = true)]
async fn packs_rotate_by_size_and_by_day_and_have_no_spare_room_when_sealed() {
    let faulty = FaultyDisk::new();
    let disk = faulty.disk();
    let now = Arc::new(AtomicU64::new(1_700_000_000_000));
    let clock = { Arc::clone(&now) };
    let clock = Clock::from_fn(move || UnixMillis(clock.load(Ordering::SeqCst)));
    let store =
        Store::open(disk.clone(), "images", Arc::new(MemoryHome::default()), clock, config()).await.expect("open");
    commit(&store, &instance(1, 1, 10_000)).await.expect("commit");
    commit(&store, &instance(2, 2, 10_000)).await.expect("commit");
    assert_eq!(packs(&disk).await.len(), 1);
    now.fetch_add(86_400_000, Ordering::SeqCst);
    commit(&store, &instance(3, 3, 10_000)).await.expect("commit");
    let paths = packs(&disk).await;
    assert_eq!(paths.len(), 2, "a pack holds one day's records");
    let sealed = disk.read(&paths[0]).await.expect("read");
    assert!(sealed.len() < 30_000, "{} bytes", sealed.len());
    for n in 4..30 {
        commit(&store, &instance(n, n, 20_000)).await.expect("commit");
    }
    let paths = packs(&disk).await;
    assert!(paths.len() >= 4, "{paths:?}");
    for path in &paths {
        let name = path.rsplit('/').next().expect("a name");
        assert!(PackId::parse(name).is_some());
        let len = disk.read(path).await.expect("read").len();
        assert!(len <= 256 << 10 || path == paths.last().expect("some"), "{path} has {len} bytes");
    }
}

/// The days of the packs that are there, sorted.
async fn days(disk: &Disk) -> Vec<u64> {
    let mut days = Vec::new();
    for path in packs(disk).await {
        let header = disk.read(&path).await.expect("read");
        days.push(u64::from_le_bytes(header[24..32].try_into().expect("a day")));
    }
    days.sort_unstable();
    days
}

#[tokio::test(start_paused = true)]
async fn in_whatever_order_days_come_no_more_than_so_many_packs_are_made_and_what_ends_together_lies_together() {
    const OPEN: usize = 16;
    let faulty = FaultyDisk::new();
    let disk = faulty.disk();
    let store = open(&disk, &Arc::default()).await;
    let today: u64 = 1_700_000_000_000 / 86_400_000;
    let day_of = |seed: u64| today + 10 + 10 * (seed * 7 % 50);
    let put = async |seed: u64, day: u64| {
        let chunks = vec![Chunk::new(noise(seed, 500))];
        store.put(PutGroup { chunks, day: Some(day), ..PutGroup::default() }).await.expect("put");
    };
    for seed in 0..200 {
        put(seed, day_of(seed)).await;
    }
    assert_eq!(packs(&disk).await.len(), OPEN);
    let first: BTreeSet<u64> = (0..OPEN as u64).map(day_of).collect();
    assert_eq!(days(&disk).await, Vec::from_iter(first.iter().copied()));
    let nearest = |day: u64| {
        let days = first.iter().copied();
        days.min_by_key(|one| (one.abs_diff(day), std::cmp::Reverse(*one))).expect("some")
    };
    for seed in (OPEN as u64..200).step_by(9) {
        let (path, _) = locate(&disk, &noise(seed, 500)).await;
        let header = disk.read(&path).await.expect("read");
        let day = u64::from_le_bytes(header[24..32].try_into().expect("a day"));
        assert_eq!(day, nearest(day_of(seed)));
    }

    // Those that were not written to for a day give way to others.
    tokio::time::advance(Duration::from_secs(25 * 3600)).await;
    for seed in 200..300 {
        put(seed, today + 1000 + seed).await;
    }
    assert_eq!(packs(&disk).await.len(), 2 * OPEN);
    // What should have gone by now goes today.
    tokio::time::advance(Duration::from_secs(25 * 3600)).await;
    put(300, 1).await;
    let days = days(&disk).await;
    assert_eq!((days[0], days.len()), (today, 2 * OPEN + 1));
}

#[tokio::test(start_paused = true)]
async fn a_closed_store_takes_nothing_and_still_reads() {
    let faulty = FaultyDisk::new();
    let store = open(&faulty.disk(), &Arc::default()).await;
    let first = instance(1, 1, 10_000);
    commit(&store, &first).await.expect("commit");
    store.close().await.expect("close");
    assert!(matches!(commit(&store, &first).await, Err(StoreError::Closed)));
    assert!(matches!(store.close().await, Err(StoreError::Closed)));
    assert_whole(&store, &first).await;
}
