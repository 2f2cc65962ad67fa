//! What is durable and was never proven, what is said of bytes that come again, and what becomes of what landed.

use std::collections::HashSet;

use maillage_dicom::phantom::CtPhantom;
use maillage_host::Disk;
use maillage_host::engine::MemoryHome;
use maillage_store::{Cutting, InstanceManifest, Piece, StoreConfig};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::making::{on_each_piece, prove};
use super::*;
use crate::config::Settings;

struct Bench {
    ingest: Ingest,
    store: Store,
    directory: tempfile::TempDir,
    told: mpsc::UnboundedReceiver<Arrival>,
}

async fn bench() -> Bench {
    bench_in(tempfile::tempdir().expect("a directory")).await
}

async fn bench_in(directory: tempfile::TempDir) -> Bench {
    bench_with(directory, "").await
}

async fn bench_with(directory: tempfile::TempDir, limits: &str) -> Bench {
    let (disk, clock) = (Disk::real(directory.path()), Clock::system());
    let config = StoreConfig { reserve_bytes: 1 << 20, landing_bytes: 64 << 20, ..StoreConfig::default() };
    let store = Store::open(disk, "", Arc::<MemoryHome>::default(), clock.clone(), config).await.expect("it opens");
    let node = "[node]\nname = \"a\"\nzone = \"a\"\ndata_dir = \"/nowhere\"\n";
    let settings = Settings::from_toml(&format!("{node}{limits}")).expect("settings");
    let (metrics, senders) = (Metrics::new(), Senders::new(&settings.into_config()));
    let (gather, told) = mpsc::unbounded_channel();
    let ingest = Ingest::new(store.clone(), clock, metrics, senders, gather, Box::new(|_| None), Box::new(|| true));
    Bench { ingest, store, directory, told }
}

impl Bench {
    async fn receive(&self, uid: &Uid, dataset: &Bytes) -> ReceivedAs {
        self.receive_from(Source::Local, uid, dataset).await.expect("received").outcome
    }

    async fn receive_from(&self, source: Source, uid: &Uid, dataset: &Bytes) -> Result<Received, IngestError> {
        let announced = Announced {
            sop_class: CtPhantom::SOP_CLASS,
            sop_instance: uid.clone(),
            transfer_syntax: CtPhantom::TRANSFER_SYNTAX,
            foreign_preamble: false,
        };
        self.ingest.receive(source, announced, dataset.clone()).await
    }

    /// Codes what has landed, as a node does, until the token is dropped.
    fn start_coder(&self) -> DropGuard {
        let shutdown = CancellationToken::new();
        drop(maillage_host::spawn(code_landed(self.ingest.clone(), shutdown.clone())));
        shutdown.drop_guard()
    }

    /// What the library lists, in bytes of the packs.
    async fn stored(&self, uid: &Uid) -> Option<u64> {
        let listed = self.store.instance(uid.as_str()).await.expect("index")?;
        let manifest = self.store.instance_manifest(listed.entry.manifest).await.expect("read").expect("a manifest");
        Some(manifest.chunks.iter().map(|chunk| u64::from(chunk.len)).sum())
    }

    /// The node's next life.
    async fn reopened(self) -> Self {
        let Self { ingest, store, directory, .. } = self;
        drop(ingest);
        store.close().await.expect("closed");
        drop(store);
        bench_in(directory).await
    }

    /// What is listed of a study, in its order.
    async fn listed(&self, phantom: &CtPhantom) -> Vec<InstanceEntry> {
        let listed = self.store.instances(phantom.study_uid().as_str()).await.expect("index");
        listed.into_iter().map(|instance| instance.entry).collect()
    }

    /// Damages an instance's manifest on the disk.
    async fn rot(&self, listed: &InstanceEntry) {
        let manifest = self.store.get_manifest(listed.manifest).await.expect("read").expect("stored");
        rot(&Disk::real(self.directory.path()), &manifest).await;
    }

    async fn read(&self, uid: &Uid) -> Result<Vec<u8>, StoreError> {
        let listed = self.store.instance(uid.as_str()).await?.expect("listed");
        let manifest = self.store.instance_manifest(listed.entry.manifest).await?.expect("a manifest");
        let pieces: Vec<Bytes> = self.store.read_instance(&manifest).try_collect().await?;
        Ok(pieces.concat())
    }

    /// Stores a slice as a codec leaves it that gives something else back, in a process that ends before it is noticed.
    async fn store_unproven(&self, phantom: &CtPhantom, uid: &Uid, dataset: &Bytes) {
        let prepared = prepare(dataset.clone(), &CtPhantom::TRANSFER_SYNTAX).expect("sound");
        let other: Bytes = [&dataset[..dataset.len() - 1], &[0xff]].concat().into();
        let sealing = self.store.keys().sealing(phantom.study_uid().as_str()).await.expect("a key");
        let key = Arc::clone(sealing.key());
        let cutting = Arc::new(Cutting::new(other, prepared.dataset_hash, prepared.part, Some(Arc::clone(&key))));
        let pieces = on_each_piece(&cutting, true, |cutting, n| cutting.piece(n)).await.expect("made");
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
        self.store.commit_instance(cut, manifest, Clock::system().now(), "CT1".to_owned()).await.expect("stored");
    }
}

/// Flips a bit of what a store's packs have of these bytes.
pub(crate) async fn rot(disk: &Disk, content: &Bytes) {
    let mut found = 0;
    for name in disk.list("packs").await.expect("a list") {
        let path = format!("packs/{name}");
        // Directories stay.
        let Ok(pack) = disk.read(&path).await else { continue };
        for at in memchr::memmem::find_iter(&pack, content) {
            let file = disk.open(&path).await.expect("open");
            let flipped = Bytes::copy_from_slice(&[pack[at] ^ 0x10]);
            file.write_at(at as u64, vec![flipped], true).await.expect("write");
            found += 1;
        }
    }
    assert!(found > 0, "it is in no pack");
}

#[tokio::test]
async fn what_was_stored_and_never_proven_is_stored_anew_when_it_comes_again() {
    let (bench, phantom) = (bench().await, CtPhantom { slices: 1, ..CtPhantom::default() });
    let (uid, dataset) = phantom.slice(0);
    bench.store_unproven(&phantom, &uid, &dataset).await;
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
    let pieces = on_each_piece(&one, true, |cutting, n| cutting.piece(n)).await.expect("made");
    let pieces: Vec<Piece> = pieces.into_iter().flatten().collect();
    assert_eq!(prove(&one, true, &pieces).await.expect("proven"), Vec::<usize>::new());
    let pixels: Vec<usize> = (other.first_of_pixels()..other.pieces()).collect();
    assert_eq!(prove(&other, true, &pieces).await.expect("looked at"), pixels, "a head is not coded");
}

fn modality() -> Source {
    Source::Dimse("CT1".to_owned())
}

#[tokio::test]
async fn what_lands_is_coded_later_and_known_at_once() {
    let (bench, phantom) = (bench().await, CtPhantom { slices: 1, ..CtPhantom::default() });
    let (uid, dataset) = phantom.slice(0);
    let received = bench.receive_from(modality(), &uid, &dataset).await.expect("received");
    assert_eq!(received.outcome, ReceivedAs::New);
    assert_eq!(bench.stored(&uid).await, None, "its sender did not wait for the coder");
    // What comes under its UID meanwhile is judged by what it becomes.
    let again = bench.receive_from(modality(), &uid, &dataset);
    let other: Bytes = [&dataset[..dataset.len() - 1], &[0xff]].concat().into();
    let others = bench.receive_from(modality(), &uid, &other);
    let coder = async { bench.start_coder() };
    let (again, others, _coder) = tokio::join!(again, others, coder);
    assert_eq!(again.expect("received").outcome, ReceivedAs::Duplicate);
    assert_eq!(others.expect("received").outcome, ReceivedAs::Conflict);
    assert_eq!(bench.read(&uid).await.expect("it can be read"), dataset);
    let stored = bench.stored(&uid).await.expect("listed");
    assert!(stored < dataset.len() as u64 / 2, "it is coded: {stored} bytes of {}", dataset.len());
    assert!(bench.store.landing().is_empty());
}

#[tokio::test]
async fn what_landed_before_a_start_is_coded_after_it_and_says_its_patient() {
    let (bench, phantom) = (bench().await, CtPhantom { slices: 3, ..CtPhantom::default() });
    let slices: Vec<_> = (0..3).map(|n| phantom.slice(n)).collect();
    for (uid, dataset) in &slices[..2] {
        bench.receive_from(modality(), uid, dataset).await.expect("received");
    }
    let bench = bench.reopened().await;
    assert_eq!(bench.stored(&slices[0].0).await, None);
    // Another patient's image under the same study comes before what landed is coded.
    let stranger =
        CtPhantom { patient_id: "OTHER".to_owned(), study_uid: Some(phantom.study_uid()), ..phantom.clone() };
    let (uid, dataset) = stranger.slice(2);
    let strange = bench.receive_from(modality(), &uid, &dataset);
    let (strange, _coder) = tokio::join!(strange, async { bench.start_coder() });
    assert!(matches!(strange, Err(IngestError::OtherPatient)), "{strange:?}");
    for (uid, dataset) in &slices[..2] {
        bench.store.landing().until_done(uid.as_str()).await.expect("done");
        assert_eq!(&bench.read(uid).await.expect("it can be read"), dataset);
    }
    let (uid, dataset) = &slices[2];
    assert_eq!(bench.receive_from(modality(), uid, dataset).await.expect("received").outcome, ReceivedAs::New);
}

#[tokio::test]
async fn what_landed_and_was_stored_and_never_proven_is_stored_anew_after_a_start() {
    let (bench, phantom) = (bench().await, CtPhantom { slices: 1, ..CtPhantom::default() });
    let (uid, dataset) = phantom.slice(0);
    bench.receive_from(modality(), &uid, &dataset).await.expect("received");
    assert_eq!(bench.stored(&uid).await, None, "it has only landed");
    bench.store_unproven(&phantom, &uid, &dataset).await;
    let bench = bench.reopened().await;
    assert!(bench.read(&uid).await.is_err(), "it opens to something else");
    let _coder = bench.start_coder();
    bench.store.landing().until_done(uid.as_str()).await.expect("done");
    assert_eq!(bench.read(&uid).await.expect("it can be read"), dataset);
}

#[tokio::test]
async fn what_is_stored_though_its_sender_has_gone_is_told_of() {
    const SENDERS: u32 = 40;
    for source in [Source::Local, modality()] {
        let mut bench = bench().await;
        let _coder = bench.start_coder();
        let mut gone = Vec::new();
        for n in 0..SENDERS {
            let phantom = CtPhantom { slices: 1, seed: n.into(), ..CtPhantom::default() };
            let (uid, dataset) = phantom.slice(0);
            let received = bench.receive_from(source.clone(), &uid, &dataset);
            if tokio::time::timeout(Duration::from_micros(500) * n, received).await.is_err() {
                gone.push((phantom.study_uid(), uid));
            }
        }
        let (mut told, mut stored) = (HashSet::new(), Vec::new());
        for (study, uid) in gone {
            bench.store.landing().until_done(uid.as_str()).await.expect("done");
            if bench.stored(&uid).await.is_some() {
                stored.push(study);
            }
        }
        while let Ok(Arrival::Instance { study } | Arrival::Later { study }) = bench.told.try_recv() {
            told.insert(study);
        }
        assert!(!stored.is_empty(), "some were stored though their senders had gone");
        for study in stored {
            assert!(told.contains(study.as_str()), "{study} of {source:?}");
        }
    }
}

#[tokio::test]
async fn what_is_refused_counts_for_its_senders_rate_as_what_is_taken_does() {
    let directory = tempfile::tempdir().expect("a directory");
    let bench = bench_with(directory, "[ingest]\nrate_kib_s = 1\n").await;
    let _coder = bench.start_coder();
    let phantom = CtPhantom { slices: 2, ..CtPhantom::default() };
    let (uid, dataset) = phantom.slice(0);
    let nonsense = Bytes::from(vec![0xff; 5 << 10]);
    let owed = |seconds: u64| {
        let wait = bench.ingest.wait_of(&modality());
        assert!(wait > Duration::from_secs(seconds - 2) && wait <= Duration::from_secs(seconds), "{wait:?}");
    };
    assert_eq!(bench.ingest.wait_of(&modality()), Duration::ZERO);
    // All but the first second's bytes are waited for.
    let refused = bench.receive_from(modality(), &uid, &nonsense).await;
    assert!(matches!(refused, Err(IngestError::Rejected(_))), "{refused:?}");
    owed(4);
    let refused = bench.ingest.receive_file(modality(), nonsense).await;
    assert!(matches!(refused, Err(IngestError::Rejected(_))), "{refused:?}");
    owed(9);
    bench.ingest.passed_over(&modality(), 2 << 10);
    owed(11);

    // More than an answer can wait for: taken, and nothing after it until most of that is paid.
    bench.receive_from(modality(), &uid, &dataset).await.expect("received");
    owed(15);
    let (next_uid, next) = phantom.slice(1);
    let refused = bench.receive_from(modality(), &next_uid, &next).await.expect_err("refused");
    assert!(matches!(refused, IngestError::Rate) && refused.is_transient(), "{refused}");
    assert_eq!(bench.ingest.wait_of(&Source::Dimse("MR1".to_owned())), Duration::ZERO);
    assert_eq!(bench.receive(&next_uid, &next).await, ReceivedAs::New, "the node's own people have no rate");
}

#[tokio::test]
async fn what_is_refused_costs_nothing_of_its_senders_day() {
    let directory = tempfile::tempdir().expect("a directory");
    let bench = bench_with(directory, "[ingest]\nday_mib = 1\n").await;
    let _coder = bench.start_coder();
    let phantom = CtPhantom { slices: 3, ..CtPhantom::default() };
    let (uid, dataset) = phantom.slice(0);
    let nonsense = Bytes::from(vec![0xff; 2 << 20]);
    let refused = bench.receive_from(modality(), &uid, &nonsense).await;
    assert!(matches!(refused, Err(IngestError::Rejected(_))), "{refused:?}");
    bench.receive_from(modality(), &uid, &dataset).await.expect("received");
    let used_up = async {
        for n in 1..phantom.slices {
            let (uid, dataset) = phantom.slice(n);
            if let Err(error) = bench.receive_from(modality(), &uid, &dataset).await {
                return Some(error);
            }
        }
        None
    };
    assert!(matches!(used_up.await, Some(IngestError::Quota)));
}

#[tokio::test]
async fn a_damaged_image_keeps_no_other_of_its_study_out_and_another_patient_does_not_come_in() {
    let (bench, phantom) = (bench().await, CtPhantom { slices: 3, ..CtPhantom::default() });
    let slices: Vec<_> = (0..3).map(|n| phantom.slice(n)).collect();
    for (uid, dataset) in &slices[..2] {
        bench.receive(uid, dataset).await;
    }
    // The next process remembers no patient.
    let bench = bench.reopened().await;
    let listed = bench.listed(&phantom).await;
    bench.rot(&listed[0]).await;
    let stranger =
        CtPhantom { patient_id: "OTHER".to_owned(), study_uid: Some(phantom.study_uid()), ..phantom.clone() };
    let (uid, dataset) = stranger.slice(2);
    let strange = bench.receive_from(Source::Local, &uid, &dataset).await;
    assert!(matches!(strange, Err(IngestError::OtherPatient)), "{strange:?}");
    let damaged = bench.store.instance_manifest(listed[0].manifest).await;
    assert!(matches!(damaged, Err(StoreError::Corrupt(_))), "{damaged:?}");
    assert_eq!(bench.receive(&slices[2].0, &slices[2].1).await, ReceivedAs::New);
}

#[tokio::test]
async fn damaged_images_of_which_nobody_knows_the_patient_are_stored_anew_and_nothing_comes_in_before() {
    let (bench, phantom) = (bench().await, CtPhantom { slices: 3, ..CtPhantom::default() });
    let slices: Vec<_> = (0..3).map(|n| phantom.slice(n)).collect();
    for (uid, dataset) in &slices[..2] {
        bench.receive(uid, dataset).await;
    }
    let bench = bench.reopened().await;
    for listed in bench.listed(&phantom).await {
        bench.rot(&listed).await;
    }
    let (uid, dataset) = &slices[2];
    let refused = bench.receive_from(Source::Local, uid, dataset).await.expect_err("refused");
    assert!(matches!(refused, IngestError::Store(StoreError::Corrupt(_))) && refused.is_transient(), "{refused}");
    for (uid, dataset) in &slices[..2] {
        bench.receive(uid, dataset).await;
        assert_eq!(&bench.read(uid).await.expect("it can be read"), dataset);
    }
    assert_eq!(bench.receive(uid, dataset).await, ReceivedAs::New);
}
