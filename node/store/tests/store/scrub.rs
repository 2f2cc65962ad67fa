//! Scrubbing: whatever happens to a pack is found by a pass, and nothing that could still be read is given up.

use std::collections::BTreeSet;
use std::sync::Arc;

use maillage_host::Disk;
use maillage_host::engine::MemoryHome;
use maillage_store::{
    Chunk, Hash, Hold, PutGroup, ScrubPosition, Scrubbed, Store, StoreError, StoreEvent, StudyManifest,
};
use proptest::prelude::{ProptestConfig, any, proptest};

use crate::faulty_disk::FaultyDisk;
use crate::fixture::{
    STUDY, TestInstance, assert_whole, commit, flip, instance, listing, locate, open, packs, read_back,
};

/// Instances in a store that was closed, in several packs, held as a study.
async fn filled(disk: &Disk, home: &Arc<MemoryHome>) -> Vec<TestInstance> {
    let store = open(disk, home).await;
    let instances: Vec<TestInstance> = (0..24).map(|n| instance(n, n, 20_000)).collect();
    for instance in &instances {
        commit(&store, instance).await.expect("commit");
    }
    let entries = store.instances(STUDY).await.expect("instances").into_iter().map(|instance| instance.entry);
    let study = StudyManifest::new(STUDY.into(), 1, 1, entries.collect());
    let address = store.put_manifest(study.encode().expect("encode")).await.expect("put");
    assert_eq!(store.hold(address).await.expect("hold"), Hold::Held);
    store.close().await.expect("close");
    instances
}

/// A whole pass, in steps of `bytes`.
async fn pass(store: &Store, bytes: u64) -> Scrubbed {
    let (mut sum, mut position) = (Scrubbed::default(), Some(ScrubPosition::default()));
    while let Some(from) = position {
        let step = store.scrub(from, bytes).await.expect("a step");
        assert_ne!(step.next, Some(from), "a pass gets on");
        position = step.next;
        sum.bytes += step.bytes;
        sum.damaged.extend(step.damaged);
        sum.rewritten += step.rewritten;
        sum.lost = sum.lost.or(step.lost);
    }
    sum
}

fn pieces(instances: &[TestInstance]) -> Vec<Chunk> {
    let manifests = instances.iter().map(|i| Chunk::new(i.manifest.encode().expect("encode")));
    let chunks = instances.iter().flat_map(|i| i.cut.head.iter().chain(&i.cut.pixels));
    chunks.map(|piece| piece.chunk().clone()).chain(manifests).collect()
}

/// What must hold after damage and a pass, however it was damaged.
async fn is_found_and_mended(disk: &Disk, home: &Arc<MemoryHome>, instances: &[TestInstance]) -> Scrubbed {
    let store = open(disk, home).await;
    let found = pass(&store, 1 << 16).await;
    let bad: BTreeSet<Hash> = store.bad_chunks(usize::MAX).await.expect("bad").into_iter().collect();
    for piece in pieces(instances) {
        match store.get(piece.hash()).await {
            Ok(Some(bytes)) => assert_eq!(bytes, piece.bytes(), "wrong bytes are never served"),
            Ok(None) => assert!(!store.has(piece.hash()).await.expect("has")),
            Err(StoreError::Corrupt(hash)) => assert!(bad.contains(&hash), "{hash} was found by the pass"),
            Err(other) => panic!("{other}"),
        }
    }
    let whole_now = whole(&store, instances).await;
    let again = pass(&store, u64::MAX).await;
    assert_eq!((again.damaged.len(), again.rewritten), (0, 0), "one pass finds all of it");
    let is_held = !store.held().await.expect("held").is_empty();
    assert!(!is_held || bad.is_empty(), "what is damaged is not held");
    let listed = listing(&store).await;
    store.close().await.expect("close");
    drop(store);

    // Whatever the index still knew does not depend on it any more.
    let rebuilt = open(disk, &Arc::default()).await;
    let whole_rebuilt = whole(&rebuilt, instances).await;
    assert!(whole_now.is_subset(&whole_rebuilt), "{whole_now:?} {whole_rebuilt:?}");
    drop(rebuilt);

    let store = open(disk, home).await;
    assert_eq!(listing(&store).await, listed, "a restart changes nothing");
    // What comes from another site makes it whole.
    let mut events = store.events();
    for instance in instances {
        let chunks = instance.cut.head.iter().chain(&instance.cut.pixels).map(|piece| piece.chunk().clone()).collect();
        let manifests = vec![Chunk::new(instance.manifest.encode().expect("encode"))];
        store.put(PutGroup { chunks, manifests, ..PutGroup::default() }).await.expect("put");
    }
    let repaired = std::iter::from_fn(|| events.try_recv().ok());
    let repaired: BTreeSet<Hash> =
        repaired.filter_map(|event| if let StoreEvent::Repaired(hash) = event { Some(hash) } else { None }).collect();
    for instance in instances {
        assert_whole(&store, instance).await;
    }
    let study = bad.difference(&repaired).count();
    assert!(study <= 1, "all but the study's own manifest came again: {study}");
    found
}

async fn whole(store: &Store, instances: &[TestInstance]) -> BTreeSet<usize> {
    let mut whole = BTreeSet::new();
    for (n, instance) in instances.iter().enumerate() {
        if store.instance(&instance.manifest.sop_instance).await.expect("index").is_some()
            && read_back(store, instance).await.is_ok()
        {
            whole.insert(n);
        }
    }
    whole
}

fn run<F: Future>(test: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(test)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn flipped_bits_anywhere_are_found_and_mended(flips in proptest::collection::vec((any::<u64>(), any::<u64>(), 0u8..8), 1..6)) {
        run(async {
            let faulty = FaultyDisk::new();
            let (disk, home) = (faulty.disk(), Arc::default());
            let instances = filled(&disk, &home).await;
            let packs = packs(&disk).await;
            for (pack, at, bit) in flips {
                let pack = &packs[usize::try_from(pack % packs.len() as u64).expect("small")];
                let len = disk.read(pack).await.expect("read").len() as u64;
                flip(&disk, pack, at % len, bit).await;
            }
            is_found_and_mended(&disk, &home, &instances).await;
        });
    }

    #[test]
    fn a_cut_anywhere_is_found_and_mended(pack in any::<u64>(), at in any::<u64>(), while_open in any::<bool>()) {
        run(async {
            let faulty = FaultyDisk::new();
            let (disk, home) = (faulty.disk(), Arc::default());
            let instances = filled(&disk, &home).await;
            let packs = packs(&disk).await;
            let pack = &packs[usize::try_from(pack % packs.len() as u64).expect("small")];
            let file = disk.open(pack).await.expect("open");
            let len = file.len().await.expect("len");
            let store = if while_open { Some(open(&disk, &home).await) } else { None };
            file.set_len(at % len).await.expect("cut");
            file.sync().await.expect("sync");
            if let Some(store) = store {
                pass(&store, 1 << 16).await;
                store.close().await.expect("close");
            }
            is_found_and_mended(&disk, &home, &instances).await;
        });
    }
}

#[tokio::test]
async fn a_flip_in_each_kind_of_record_is_found_for_what_it_is() {
    let faulty = FaultyDisk::new();
    let (disk, home) = (faulty.disk(), Arc::default());
    let instances = filled(&disk, &home).await;
    let chunk = instances[3].cut.pixels[0].chunk().clone();
    let (path, at) = locate(&disk, chunk.bytes()).await;
    flip(&disk, &path, at + 5_000, 3).await;
    let found = is_found_and_mended(&disk, &home, &instances).await;
    assert_eq!((found.damaged.as_slice(), found.rewritten), ([chunk.hash()].as_slice(), 0), "a payload");

    // Only its header: the payload, which may be the last copy, is kept.
    let chunk = instances[4].cut.pixels[0].chunk().clone();
    let (path, at) = locate(&disk, chunk.bytes()).await;
    flip(&disk, &path, at - 30, 3).await;
    let found = is_found_and_mended(&disk, &home, &instances).await;
    assert_eq!(found.damaged, []);
    assert!(found.rewritten >= 1, "a header: {found:?}");

    // The record that lists an instance: nothing but the index knew it any more.
    let uid = format!("{STUDY}.1.5");
    let (path, at) = commit_record(&disk, &uid).await;
    flip(&disk, &path, at, 0).await;
    let found = is_found_and_mended(&disk, &home, &instances).await;
    assert_eq!((found.damaged.len(), found.rewritten), (0, 1), "a commit");
}

/// Where the payload of the commit of an instance lies: its last mention in the packs behind the chunks.
async fn commit_record(disk: &Disk, sop_instance: &str) -> (String, u64) {
    for path in packs(disk).await {
        let bytes = disk.read(&path).await.expect("read");
        let found = bytes.windows(sop_instance.len()).enumerate().filter(|(_, w)| *w == sop_instance.as_bytes());
        for (at, _) in found {
            // A record header of kind 3 (commit) begins less than 300 bytes before it.
            let from = at.saturating_sub(300);
            let header = bytes[from..at].windows(6).rposition(|w| w.starts_with(b"MaRe"));
            if header.is_some_and(|header| bytes[from + header + 5] == 3) {
                return (path, at as u64);
            }
        }
    }
    panic!("{sop_instance} is listed by no record");
}

#[tokio::test]
async fn a_pack_that_vanishes_under_a_running_store_is_noticed_and_what_it_held_is_asked_for() {
    let faulty = FaultyDisk::new();
    let (disk, home) = (faulty.disk(), Arc::default());
    let instances = filled(&disk, &home).await;
    let store = open(&disk, &home).await;
    let (mut events, held) = (store.events(), store.held().await.expect("held"));
    assert_eq!(held.len(), 1);
    // Read, so that its file is open: it could be read for as long as the process runs.
    assert_whole(&store, &instances[0]).await;
    let lost = packs(&disk).await[0].clone();
    disk.remove(&lost).await.expect("remove");
    let found = pass(&store, 1 << 16).await;
    assert!(found.lost.is_some_and(|pack| lost.ends_with(&pack.to_string())), "{found:?}");
    assert!(found.damaged.len() > 10, "{}", found.damaged.len());
    assert_eq!(store.held().await.expect("held"), []);
    let told: Vec<StoreEvent> = std::iter::from_fn(|| events.try_recv().ok()).collect();
    assert!(told.contains(&StoreEvent::HoldLost(held[0].manifest)), "{told:?}");
    let (studies, unknown) = store.studies_of(found.damaged.clone()).await.expect("studies");
    assert_eq!((studies, unknown), (BTreeSet::from([STUDY.to_owned()]), Vec::new()));
    assert!(matches!(read_back(&store, &instances[0]).await, Err(StoreError::Corrupt(_))), "never from a ghost");
    let lacking = store.lacks(held[0].manifest).await;
    assert!(matches!(&lacking, Ok(missing) if missing.len() > 10) || lacking.is_err(), "{lacking:?}");
    store.close().await.expect("close");
    drop(store);
    is_found_and_mended(&disk, &home, &instances).await;
}

#[tokio::test]
async fn a_pack_that_vanishes_while_it_is_written_ends_writing() {
    let faulty = FaultyDisk::new();
    let (disk, home) = (faulty.disk(), Arc::default());
    let store = open(&disk, &home).await;
    commit(&store, &instance(0, 0, 20_000)).await.expect("commit");
    let pack = packs(&disk).await[0].clone();
    disk.remove(&pack).await.expect("remove");
    pass(&store, u64::MAX).await;
    let refused = commit(&store, &instance(1, 1, 20_000)).await;
    assert!(matches!(&refused, Err(StoreError::Failed(why)) if why.contains("is gone")), "{refused:?}");
}

#[tokio::test]
async fn a_pass_goes_on_where_it_stood_and_reads_everything_once() {
    let faulty = FaultyDisk::new();
    let (disk, home) = (faulty.disk(), Arc::default());
    let instances = filled(&disk, &home).await;
    let total = {
        let store = open(&disk, &home).await;
        let all = pass(&store, u64::MAX).await;
        store.close().await.expect("close");
        all.bytes
    };
    let chunk = instances[20].cut.pixels[0].chunk().clone();
    let (path, at) = locate(&disk, chunk.bytes()).await;
    flip(&disk, &path, at, 3).await;
    let (mut bytes, mut position, mut damaged, mut steps) = (0, Some(ScrubPosition::default()), Vec::new(), 0);
    while let Some(from) = position {
        // Each step in a process of its own; what stands still is never begun anew.
        let store = open(&disk, &home).await;
        let step = store.scrub(from, 1).await.expect("a step");
        (position, bytes, steps) = (step.next, bytes + step.bytes, steps + 1);
        damaged.extend(step.damaged);
        store.close().await.expect("close");
    }
    assert_eq!(damaged, [chunk.hash()]);
    assert!(steps >= packs(&disk).await.len() && bytes <= 2 * total, "{steps} steps, {bytes} of {total} bytes");
}

#[tokio::test]
async fn readers_and_writers_are_seen_to_wait() {
    let faulty = FaultyDisk::new();
    let store = open(&faulty.disk(), &Arc::default()).await;
    assert!(!store.is_waited_for());
    faulty.faults.lock().expect("lock").sync_takes = std::time::Duration::from_millis(50);
    let put = maillage_host::spawn({
        let store = store.clone();
        async move { commit(&store, &instance(0, 0, 20_000)).await.map(drop) }
    });
    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    assert!(store.is_waited_for(), "a sender waits");
    put.await.expect("joined").expect("stored");
    assert!(!store.is_waited_for());
}
