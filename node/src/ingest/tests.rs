//! What is durable and was never proven, and what is said of bytes that come again.

use maillage_dicom::phantom::CtPhantom;
use maillage_host::Disk;
use maillage_host::engine::MemoryHome;
use maillage_store::{Cutting, InstanceManifest, Piece, StoreConfig};

use super::making::{on_each_piece, prove};
use super::*;
use crate::config::Settings;

struct Bench {
    ingest: Ingest,
    store: Store,
    _directory: tempfile::TempDir,
}

async fn bench() -> Bench {
    let directory = tempfile::tempdir().expect("a directory");
    let (disk, clock) = (Disk::real(directory.path()), Clock::system());
    let config = StoreConfig { reserve_bytes: 1 << 20, ..StoreConfig::default() };
    let store = Store::open(disk, "", Arc::<MemoryHome>::default(), clock.clone(), config).await.expect("it opens");
    let settings =
        Settings::from_toml("[node]\nname = \"a\"\nzone = \"a\"\ndata_dir = \"/nowhere\"\n").expect("settings");
    let (metrics, senders) = (Metrics::new(), Senders::new(&settings.into_config()));
    let (gather, _) = mpsc::unbounded_channel();
    let ingest = Ingest::new(store.clone(), clock, metrics, senders, gather, Box::new(|_| None), Box::new(|| true));
    Bench { ingest, store, _directory: directory }
}

impl Bench {
    async fn receive(&self, uid: &Uid, dataset: &Bytes) -> ReceivedAs {
        let announced = Announced {
            sop_class: CtPhantom::SOP_CLASS,
            sop_instance: uid.clone(),
            transfer_syntax: CtPhantom::TRANSFER_SYNTAX,
            foreign_preamble: false,
        };
        self.ingest.receive(Source::Local, announced, dataset.clone()).await.expect("received").outcome
    }

    async fn read(&self, uid: &Uid) -> Result<Vec<u8>, StoreError> {
        let listed = self.store.instance(uid.as_str()).await?.expect("listed");
        let manifest = self.store.instance_manifest(listed.entry.manifest).await?.expect("a manifest");
        let pieces: Vec<Bytes> = self.store.read_instance(&manifest).try_collect().await?;
        Ok(pieces.concat())
    }
}

#[tokio::test]
async fn what_was_stored_and_never_proven_is_stored_anew_when_it_comes_again() {
    let (bench, phantom) = (bench().await, CtPhantom { slices: 1, ..CtPhantom::default() });
    let (uid, dataset) = phantom.slice(0);
    // As a codec leaves it that gives something else back, in a process that ends before it is noticed.
    let prepared = prepare(dataset.clone(), &CtPhantom::TRANSFER_SYNTAX).expect("sound");
    let other: Bytes = [&dataset[..dataset.len() - 1], &[0xff]].concat().into();
    let sealing = bench.store.keys().sealing(phantom.study_uid().as_str()).await.expect("a key");
    let key = Arc::clone(sealing.key());
    let cutting = Arc::new(Cutting::new(other, prepared.dataset_hash, prepared.part, Some(Arc::clone(&key))));
    let pieces = on_each_piece(&cutting, |cutting, n| cutting.piece(n)).await.expect("made");
    let cut = cutting.finish(pieces.into_iter().flatten().collect()).expect("all of them");
    let identity = InstanceIdentity {
        sop_instance: uid.to_string(),
        sop_class: CtPhantom::SOP_CLASS.to_string(),
        series_uid: phantom.series_uid().to_string(),
        study_uid: phantom.study_uid().to_string(),
        transfer_syntax: CtPhantom::TRANSFER_SYNTAX.to_string(),
    };
    let attributes = encode_attributes(&prepared.attributes).expect("encodes");
    let manifest =
        InstanceManifest::sealed(&cut, identity, &attributes, ManifestFlags::default(), &key).expect("sealed");
    bench.store.commit_instance(cut, manifest, Clock::system().now(), "CT1".to_owned()).await.expect("stored");
    drop(sealing);
    assert!(bench.read(&uid).await.is_err(), "it opens to something else");

    bench.receive(&uid, &dataset).await;
    assert_eq!(bench.read(&uid).await.expect("it can be read"), dataset);
    assert_eq!(bench.receive(&uid, &dataset).await, ReceivedAs::Duplicate);
}

#[tokio::test]
async fn pieces_that_do_not_give_their_bytes_back_are_named() {
    let phantom = CtPhantom { slices: 2, ..CtPhantom::default() };
    let cutting_of = |n: u32| {
        let (_, dataset) = phantom.slice(n);
        let prepared = prepare(dataset.clone(), &CtPhantom::TRANSFER_SYNTAX).expect("sound");
        Arc::new(Cutting::new(dataset, prepared.dataset_hash, prepared.part, None))
    };
    let (one, other) = (cutting_of(0), cutting_of(1));
    let pieces = on_each_piece(&one, |cutting, n| cutting.piece(n)).await.expect("made");
    let pieces: Vec<Piece> = pieces.into_iter().flatten().collect();
    assert_eq!(prove(&one, &pieces).await.expect("proven"), Vec::<usize>::new());
    let pixels: Vec<usize> = (other.first_of_pixels()..other.pieces()).collect();
    assert_eq!(prove(&other, &pieces).await.expect("looked at"), pixels, "a head is not coded");
}
