//! How fast a real disk takes instances, by hand: `cargo test --release -p maillage-store -- --ignored --nocapture`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use maillage_host::engine::FjallHome;
use maillage_host::{Clock, Disk, offload, spawn};
use maillage_store::{CutInstance, Store, StoreConfig};
use tokio::time::Instant;

use crate::fixture::{instance, noise};

const LEN: usize = 525_000;
const HEAD: usize = 4_000;

#[expect(clippy::cast_precision_loss, reason = "figures for a reader")]
fn megabytes_per_second(count: u64, begun: Instant) -> f64 {
    (count * LEN as u64) as f64 / 1e6 / begun.elapsed().as_secs_f64()
}

async fn commit(store: &Store, number: u64, pixels: &[u8]) {
    // The number in head and pixels both: a chunk that repeats would be deduplicated, not written.
    let number_bytes = number.to_le_bytes();
    let dataset = [&number_bytes, &pixels[..HEAD - 8], &number_bytes, &pixels[HEAD - 8..]].concat();
    let cut: CutInstance = offload(move || Ok(maillage_store::cut(dataset.into(), HEAD))).await.expect("cut");
    let mut manifest = instance(number, 0, 100).manifest;
    manifest = maillage_store::InstanceManifest::of(
        &cut,
        maillage_store::InstanceIdentity {
            sop_instance: manifest.sop_instance,
            sop_class: manifest.sop_class,
            series_uid: manifest.series_uid,
            study_uid: manifest.study_uid,
            transfer_syntax: manifest.transfer_syntax,
        },
        vec![0; 500],
        manifest.flags,
    );
    store.commit_instance(cut, manifest, Clock::system().now(), "CT1".into()).await.expect("commit");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement, not a check"]
async fn instances_of_half_a_megabyte_on_a_real_disk() {
    // Not the temporary directory, which may be memory.
    let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("temporary directory");
    let disk = Disk::real(root.path());
    let home = Arc::new(FjallHome::new(root.path().join("index"), 32 << 20));
    let store = Store::open(disk.clone(), "images", home, Clock::system(), StoreConfig::default()).await.expect("open");
    let pixels = Arc::new(noise(1, LEN - 16));
    let number = Arc::new(AtomicU64::new(0));

    // The yardsticks, taken in each round, for other work on the machine moves all figures alike.
    let raw = async |name: &str, per_sync: usize| {
        disk.remove(name).await.expect("remove");
        let file = disk.create(name).await.expect("create");
        let begun = Instant::now();
        for n in 0..400 / per_sync as u64 {
            let at = n * (per_sync * LEN) as u64;
            file.write_at(at, vec![noise(n, 64).repeat(LEN / 64).into(); per_sync], true).await.expect("write");
        }
        megabytes_per_second(400, begun)
    };
    let rounds = 7;
    for round in 0..rounds {
        println!("round {round}, raw append, 1 a sync: {:.0} MB/s", raw("raw", 1).await);
        let begun = Instant::now();
        for _ in 0..400 {
            commit(&store, number.fetch_add(1, Ordering::Relaxed), &pixels).await;
        }
        println!("round {round}, raw append, 8 a sync: {:.0} MB/s", raw("raw", 8).await);
        println!("round {round}, one by one: {:.0} MB/s", megabytes_per_second(400, begun));
        let begun = Instant::now();
        let tasks: Vec<_> = (0..8)
            .map(|_| {
                let (store, pixels, number) = (store.clone(), Arc::clone(&pixels), Arc::clone(&number));
                spawn(async move {
                    for _ in 0..200 {
                        commit(&store, number.fetch_add(1, Ordering::Relaxed), &pixels).await;
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.expect("commits");
        }
        println!("round {round}, 8 at once: {:.0} MB/s", megabytes_per_second(1600, begun));
    }
    let stats = store.stats().await.expect("stats");
    let datasets = number.load(Ordering::Relaxed) * LEN as u64;
    assert!(stats.bytes >= datasets, "every byte was written: {} of {datasets}", stats.bytes);
    let instances = store.instances(crate::fixture::STUDY).await.expect("instances");
    let begun = Instant::now();
    for instance in instances.iter().take(1_000) {
        let manifest = store.instance_manifest(instance.entry.manifest).await.expect("read").expect("stored");
        for chunk in manifest.chunks {
            store.get(chunk.hash).await.expect("get").expect("stored");
        }
    }
    println!("read and verified: {:.0} MB/s", megabytes_per_second(1_000, begun));
    store.close().await.expect("close");
}
