//! Instances whose pixels are coded: what is read is what was received, and a lie is never shown.

use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use maillage_codec::{SampleWidth, Shape};
use maillage_store::{
    CHUNK_BYTES_MAX, Chunk, Cutting, Form, Hash, InstanceIdentity, InstanceManifest, ManifestFlags, PixelPart,
    PutGroup, Store, StoreError, Stored, StudyManifest,
};

use crate::faulty_disk::FaultyDisk;
use crate::fixture::{STUDY, TestInstance, assert_whole, commit, cut_with, noise, open};

const HEAD: usize = 1_001;

/// A radiograph of `rows` rows of 900 columns, with a head before and padding behind.
fn radiograph(number: u64, rows: usize) -> TestInstance {
    let sample = |x: usize, y: usize| u16::try_from(2000 + (x * y / 90 + 7 * x) % 900).expect("small");
    let row = |y: usize| (0..900).flat_map(move |x| sample(x, y).to_le_bytes());
    let pixels: Vec<u8> = (0..rows).flat_map(row).collect();
    let dataset: Bytes = [&noise(number, HEAD)[..], &[0; 12], &pixels, &[0; 7]].concat().into();
    let shape = Shape { width: SampleWidth::TwoLittle, components: 1, columns: 900, bits_stored: 12 };
    let part = PixelPart { offset: HEAD, rows: Some((HEAD + 12, shape)) };
    let cut = cut_with(Cutting::new(dataset.clone(), Hash::of(&dataset), part, None));
    let identity = InstanceIdentity {
        sop_instance: format!("{STUDY}.2.{number}"),
        sop_class: "1.2.840.10008.5.1.4.1.1.1".into(),
        series_uid: format!("{STUDY}.2"),
        study_uid: STUDY.into(),
        transfer_syntax: "1.2.840.10008.1.2.1".into(),
    };
    let manifest = InstanceManifest::of(&cut, identity, Vec::new(), ManifestFlags::default());
    TestInstance { cut, manifest, dataset }
}

async fn read(store: &Store, manifest: &InstanceManifest) -> Result<Vec<u8>, StoreError> {
    let pieces: Vec<Bytes> = store.read_instance(manifest).try_collect().await?;
    Ok(pieces.concat())
}

#[tokio::test]
async fn a_coded_instance_is_read_as_it_came_and_takes_less_room() {
    let faulty = FaultyDisk::new();
    let store = open(&faulty.disk(), &Arc::default()).await;
    let instance = radiograph(1, 1_500);
    assert!(instance.manifest.is_coded() && instance.cut.pixels.len() > 3);
    let Ok(Stored::New { manifest: address }) = commit(&store, &instance).await else { panic!("new") };
    assert_whole(&store, &instance).await;
    let stats = store.stats().await.expect("stats");
    assert!(stats.bytes < instance.dataset.len() as u64 / 3, "{} bytes", stats.bytes);
    assert_eq!(store.study_seen(STUDY).await.expect("seen").expect("here").bytes, instance.dataset.len() as u64);

    let entry = store.instances(STUDY).await.expect("instances").remove(0).entry;
    assert_eq!((entry.manifest, entry.bytes), (address, instance.dataset.len() as u64));
    let study = StudyManifest::new(STUDY.into(), 1, 1, vec![entry]).encode().expect("encode");
    let study = store.put_manifest(study).await.expect("put");
    let report = store.verify_study(study).await.expect("verify");
    assert!(report.is_complete());
    assert_eq!(report.bytes, instance.cut.stored_len());
    store.close().await.expect("close");

    let again = open(&faulty.disk(), &Arc::default()).await;
    assert_whole(&again, &instance).await;
    assert_eq!(commit(&again, &instance).await.expect("again"), Stored::Duplicate { manifest: address });
}

#[tokio::test]
async fn the_same_data_set_stored_raw_before_is_a_duplicate() {
    let faulty = FaultyDisk::new();
    let store = open(&faulty.disk(), &Arc::default()).await;
    let coded = radiograph(1, 200);
    let raw_cut = maillage_store::cut(coded.dataset.clone(), HEAD);
    let raw_manifest = InstanceManifest { chunks: raw_cut.entries().collect(), ..coded.manifest.clone() };
    let raw = TestInstance { cut: raw_cut, manifest: raw_manifest, dataset: coded.dataset.clone() };
    assert!(matches!(commit(&store, &raw).await, Ok(Stored::New { .. })));
    assert!(matches!(commit(&store, &coded).await, Ok(Stored::Duplicate { .. })));
    assert_eq!(store.instances(STUDY).await.expect("instances").len(), 1);
    assert_whole(&store, &coded).await;
    assert_eq!(read(&store, &raw.manifest).await.expect("the raw chunks are still there"), raw.dataset);
}

#[tokio::test]
async fn a_manifest_that_lies_about_coded_chunks_gives_an_error_and_not_other_pixels() {
    let faulty = FaultyDisk::new();
    let store = open(&faulty.disk(), &Arc::default()).await;
    let instance = radiograph(1, 1_500);
    commit(&store, &instance).await.expect("commit");

    // Right chunks, of the same length, in the wrong order: only the hash of the whole can tell.
    let one = radiograph(2, 582);
    let two = radiograph(3, 582);
    for other in [&one, &two] {
        commit(&store, other).await.expect("commit");
    }
    let mut swapped = one.manifest.clone();
    swapped.chunks[0] = two.manifest.chunks[0];
    assert!(swapped.validate().is_ok());
    let pieces: Vec<_> = store.read_instance(&swapped).collect().await;
    assert!(matches!(pieces.last(), Some(Err(StoreError::Contradictory(hash))) if *hash == one.manifest.dataset_hash));
    assert_eq!(pieces.len(), one.manifest.chunks.len(), "the last piece was not given");

    // Bytes that are no coded chunk, under that name.
    let stray = Chunk::new(noise(9, 4_000));
    store.put(PutGroup { chunks: vec![stray.clone()], ..PutGroup::default() }).await.expect("put");
    let mut lying = instance.manifest.clone();
    let last = lying.chunks.last_mut().expect("chunks");
    assert_eq!(last.form, Form::Coded);
    (last.hash, last.len) = (stray.hash(), 4_000);
    let error = read(&store, &lying).await.expect_err("not coded");
    assert!(matches!(error, StoreError::Contradictory(hash) if hash == stray.hash()), "{error}");

    // A chunk of another length than the manifest says, raw or coded.
    let mut longer = instance.manifest.clone();
    longer.chunks[1].len += 1;
    assert!(matches!(read(&store, &longer).await, Err(StoreError::Contradictory(_))));
    assert!(instance.manifest.chunks.iter().all(|chunk| chunk.raw_len as usize <= CHUNK_BYTES_MAX));
}
