//! What the tests share: opening a store, instances to put, files to damage.

use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::TryStreamExt as _;
use maillage_host::engine::MemoryHome;
use maillage_host::{Batch, Clock, Disk, EngineHome, UnixMillis};
use maillage_store::{
    CutInstance, Cutting, Hash, InstanceIdentity, InstanceManifest, ManifestFlags, Store, StoreConfig, StoreError,
    Stored, cut,
};

pub(crate) const STUDY: &str = "1.2.250.1";

/// Small, so that tests cross extents and packs.
pub(crate) fn config() -> StoreConfig {
    StoreConfig {
        pack_bytes: 256 << 10,
        extent_bytes: 32 << 10,
        reserve_bytes: 0,
        queue_bytes: 1 << 20,
        landing_bytes: 1 << 20,
        group_bytes: 128 << 10,
        open_files: 2,
    }
}

pub(crate) async fn open(disk: &Disk, home: &Arc<MemoryHome>) -> Store {
    open_with(disk, Arc::<MemoryHome>::clone(home), config()).await
}

pub(crate) async fn open_with(disk: &Disk, home: Arc<dyn EngineHome>, config: StoreConfig) -> Store {
    Store::open(disk.clone(), "images", home, Clock::from_fn(|| UnixMillis(1_700_000_000_000)), config)
        .await
        .expect("open the store")
}

/// Bytes that are different for each `seed`, and incompressible enough to be no record by chance.
pub(crate) fn noise(seed: u64, len: usize) -> Bytes {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes.into()
}

pub(crate) struct TestInstance {
    pub(crate) cut: CutInstance,
    pub(crate) manifest: InstanceManifest,
    pub(crate) dataset: Bytes,
}

/// The `number`-th slice of series 1 of [`STUDY`], with content by `seed`.
pub(crate) fn instance(number: u64, seed: u64, len: usize) -> TestInstance {
    let dataset = noise(seed, len);
    let cut = cut(dataset.clone(), len / 10);
    let identity = InstanceIdentity {
        sop_instance: format!("{STUDY}.1.{number}"),
        sop_class: "1.2.840.10008.5.1.4.1.1.2".into(),
        series_uid: format!("{STUDY}.1"),
        study_uid: STUDY.into(),
        transfer_syntax: "1.2.840.10008.1.2.1".into(),
    };
    let manifest = InstanceManifest::of(&cut, identity, b"attributes".to_vec(), ManifestFlags::default());
    TestInstance { cut, manifest, dataset }
}

/// All pieces of a data set.
pub(crate) fn cut_with(cutting: Cutting) -> CutInstance {
    let piece = |n| cutting.piece(n).expect("made").expect("a piece");
    let pieces = (0..cutting.pieces()).map(piece).collect();
    cutting.finish(pieces).expect("all of them")
}

pub(crate) async fn commit(store: &Store, instance: &TestInstance) -> Result<Stored, StoreError> {
    static NOW: AtomicU64 = AtomicU64::new(1_700_000_000_000);
    let now = UnixMillis(NOW.fetch_add(1, Ordering::Relaxed));
    store.commit_instance(instance.cut.clone(), instance.manifest.clone(), now, "CT1".into()).await
}

/// What the library and the packs give back for `instance`, from its SOP instance UID alone.
pub(crate) async fn read_back(store: &Store, instance: &TestInstance) -> Result<Bytes, StoreError> {
    let listed = store.instance(&instance.manifest.sop_instance).await?.expect("listed");
    let manifest =
        store.instance_manifest(listed.entry.manifest).await?.ok_or(StoreError::Missing(listed.entry.manifest))?;
    let pieces: Vec<Bytes> = store.read_instance(&manifest).try_collect().await?;
    Ok(pieces.concat().into())
}

pub(crate) async fn assert_whole(store: &Store, instance: &TestInstance) {
    assert_eq!(read_back(store, instance).await.expect("read back"), instance.dataset);
}

pub(crate) async fn packs(disk: &Disk) -> Vec<String> {
    let names = disk.list("images/packs").await.expect("list");
    names.into_iter().map(|name| format!("images/packs/{name}")).collect()
}

/// Flips one bit of a file, durably.
pub(crate) async fn flip(disk: &Disk, path: &str, at: u64, bit: u8) {
    let file = disk.open(path).await.expect("open");
    let byte = file.read_at(at, 1).await.expect("read")[0];
    file.write_at(at, vec![Bytes::from(vec![byte ^ (1 << bit)])], true).await.expect("write");
}

/// The library as one comparable text.
pub(crate) async fn listing(store: &Store) -> String {
    try_listing(store).await.expect("index")
}

pub(crate) async fn try_listing(store: &Store) -> Result<String, StoreError> {
    let mut text = String::new();
    for study in store.studies(None, 1000).await? {
        text += &format!("{study:?}\n");
        for instance in store.instances(&study.study_uid).await? {
            text += &format!("  {instance:?}\n");
        }
    }
    text += &format!("{:?}\n{:?}\n", store.conflicts(None, 1000).await?, store.held().await?);
    let stats = store.stats().await?;
    Ok(text + &format!("{} chunks, {} bytes", stats.chunks, stats.bytes))
}

/// Where the payload of a stored chunk lies: path and offset.
pub(crate) async fn locate(disk: &Disk, content: &Bytes) -> (String, u64) {
    for path in packs(disk).await {
        let bytes = disk.read(&path).await.expect("read");
        if let Some(at) = bytes.windows(content.len().min(64)).position(|window| content.starts_with(window)) {
            return (path, at as u64);
        }
    }
    panic!("{} is in no pack", Hash::of(content));
}

/// The content of an index at this moment, as a home of its own.
pub(crate) fn copy(home: &MemoryHome) -> Arc<MemoryHome> {
    let view = home.open().expect("open").view();
    let copied = MemoryHome::default();
    let filled = copied.replace(&mut |fresh| {
        let mut batch = Batch::default();
        view.scan(Bound::Unbounded, Bound::Unbounded, &mut |key, value| {
            batch.put(key, value);
            true
        })?;
        fresh.commit(batch)
    });
    filled.expect("copy");
    Arc::new(copied)
}
