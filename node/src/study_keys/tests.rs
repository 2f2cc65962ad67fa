//! A whole site, step by step: no purge and no crash takes away what was acknowledged, and no purged image is read
//! again.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt as _;
use maillage_consensus::Queue;
use maillage_consensus::exam::ExamState;
use maillage_consensus::ids::{ExamId, Line};
use maillage_dicom::Uid;
use maillage_dicom::phantom::CtPhantom;
use maillage_host::engine::MemoryHome;
use maillage_host::{Clock, Disk, EngineHome};
use maillage_store::{StoreConfig, StoreError};
use maillage_transport::{Endpoint, EndpointConfig, Identity, Membership, Socket};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::config::Settings;
use crate::data_dir::MeshFile;
use crate::gather::publish;
use crate::ingest::tests::rot;
use crate::ingest::{Announced, ReceivedAs, Source};
use crate::outbox::{Local, images_of};
use crate::site::{Host, Member, Site};

/// The disk and the engines of a site, whose processes come and go.
pub(crate) struct Machine {
    directory: tempfile::TempDir,
    state: Arc<MemoryHome>,
    index: Arc<dyn EngineHome>,
    identity: Identity,
}

/// One process.
pub(crate) struct Running {
    site: Site,
    endpoint: Endpoint,
    shutdown: CancellationToken,
}

impl Machine {
    fn new() -> Self {
        Self::with_index(Arc::<MemoryHome>::default())
    }

    pub(crate) fn with_index(index: Arc<dyn EngineHome>) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        Self { directory, state: Arc::default(), index, identity: Identity::generate() }
    }

    pub(crate) fn disk(&self) -> Disk {
        Disk::real(self.directory.path())
    }

    /// Opens the site, and starts none of what it does unasked: the tests take each step.
    pub(crate) async fn run(&self) -> Running {
        let settings = Settings::from_toml(
            "[node]\nname = \"paris\"\nzone = \"paris\"\ndata_dir = \"/nowhere\"\n[storage]\nreserve_mib = 1\n\
             [dicom]\nany_caller = true\n",
        );
        let clock = Clock::system();
        let membership = Membership::new(clock.clone());
        let any = Socket::Udp("127.0.0.1:0".parse().expect("an address"));
        let endpoint = EndpointConfig::new(self.identity.clone(), membership.clone(), any, clock.clone());
        let endpoint = Endpoint::bind(endpoint).expect("a port");
        let mesh = MeshFile::of_founder([7; 32], "test", "paris");
        let member = Member::new(self.identity.clone(), mesh, membership);
        let wires = member.wires(&endpoint);
        let host = Host {
            disk: self.disk(),
            state: Arc::<MemoryHome>::clone(&self.state),
            index: Arc::clone(&self.index),
            clock,
            images: StoreConfig::default(),
            queue: Arc::new(Queue),
        };
        let shutdown = CancellationToken::new();
        let site = Site::open(settings.expect("settings"), member, host, wires, shutdown.clone()).await;
        let site = site.expect("it opens");
        site.found().await.expect("founded");
        let mut tries = 0;
        while let Err(error) = site.node().linearize().await {
            tries += 1;
            assert!(tries < 10, "{error}");
        }
        Running { site, endpoint, shutdown }
    }

    async fn pending_keys(&self) -> Bytes {
        self.disk().read("pending-keys").await.expect("the file of pending keys")
    }
}

impl Running {
    pub(crate) fn node(&self) -> &Node {
        self.site.node()
    }

    pub(crate) async fn end(self) {
        self.shutdown.cancel();
        self.site.stop(self.endpoint.close()).await;
    }

    pub(crate) async fn receive(&self, slice: &Slice) -> ReceivedAs {
        let announced = Announced {
            sop_class: Uid::parse("1.2.840.10008.5.1.4.1.1.2").expect("a UID"),
            sop_instance: Uid::parse(&slice.uid).expect("a UID"),
            transfer_syntax: Uid::parse("1.2.840.10008.1.2.1").expect("a UID"),
            foreign_preamble: false,
        };
        self.node().ingest().receive(Source::Local, announced, slice.dataset.clone()).await.expect("received").outcome
    }

    async fn read(&self, slice: &Slice) -> Result<Bytes, StoreError> {
        let store = self.site.store();
        let listed = store.instance(&slice.uid).await?.expect("listed");
        let manifest = store.instance_manifest(listed.entry.manifest).await?.expect("stored");
        let pieces: Vec<Bytes> = store.read_instance(&manifest).try_collect().await?;
        Ok(pieces.concat().into())
    }

    async fn is_whole(&self, slice: &Slice) {
        assert!(self.read(slice).await.expect("read") == slice.dataset, "as it was received");
    }

    async fn key_of(&self, slice: &Slice) -> KeyId {
        let listed = self.site.store().instance(&slice.uid).await.expect("read").expect("listed");
        let manifest = self.site.store().instance_manifest(listed.entry.manifest).await.expect("read");
        manifest.expect("stored").key.expect("sealed")
    }

    fn in_state(&self, key: KeyId) -> SharedKey {
        StateKeys(self.site.group().clone()).find(key).expect("read")
    }

    async fn publish(&self, study: &str) -> anyhow::Result<()> {
        publish(self.node(), study).await
    }

    pub(crate) fn exam(&self, study: &str) -> Option<ExamId> {
        let study = self.node().read(|view| view.study(study)).expect("read");
        study.map(|study| study.parts[0].exam)
    }

    /// The purge as the mesh decides it. This site has still to carry it out.
    async fn purge(&self, exam: ExamId) {
        let command = Command::Purge { exam, reason: Line::fitted("withdrawn"), withdrawn: true };
        let outcome = self.node().command(CommandId::random(), Name::fitted("dpo"), command).await.expect("decided");
        assert_eq!(outcome, Outcome::Done);
        self.node().linearize().await.expect("a quorum of one");
    }

    async fn carry_out_purges(&self) {
        let mut warned = BTreeSet::new();
        crate::purge::round(self.node(), &CancellationToken::new(), &mut warned).await.expect("confirmed");
        assert!(warned.is_empty(), "nothing failed");
    }
}

#[derive(Clone)]
pub(crate) struct Slice {
    pub(crate) uid: String,
    dataset: Bytes,
}

/// A study of three slices.
pub(crate) fn study() -> (String, [Slice; 3]) {
    study_of(1)
}

/// … one of several of the same examination.
fn study_of(seed: u64) -> (String, [Slice; 3]) {
    let phantom = CtPhantom {
        slices: 3,
        rows: 64,
        columns: 64,
        seed,
        patient_id: "P1".to_owned(),
        patient_name: "HIDDEN^PATIENT".to_owned(),
        accession_number: "A1".to_owned(),
        ..CtPhantom::default()
    };
    let slice = |n| {
        let (uid, dataset) = phantom.slice(n);
        Slice { uid: uid.to_string(), dataset }
    };
    (phantom.study_uid().to_string(), [0, 1, 2].map(slice))
}

fn has(bytes: &[u8], what: &[u8]) -> bool {
    bytes.windows(what.len()).any(|window| window == what)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_durable_before_its_instance_is_acknowledged_and_in_the_state_alone_once_it_is_published() {
    let (machine, (study, [one, two, _])) = (Machine::new(), study());
    let running = machine.run().await;
    assert_eq!(running.receive(&one).await, ReceivedAs::New);
    let key = running.key_of(&one).await;
    assert!(has(&machine.pending_keys().await, &key.0), "by the time of the answer");
    assert_eq!(running.in_state(key), SharedKey::Unknown);
    running.end().await;

    let running = machine.run().await;
    running.is_whole(&one).await;
    assert_eq!(running.receive(&two).await, ReceivedAs::New);
    let other = running.key_of(&two).await;
    assert_ne!(other, key, "a start begins with new keys");
    running.publish(&study).await.expect("published");
    for (slice, key) in [(&one, key), (&two, other)] {
        assert!(matches!(running.in_state(key), SharedKey::Kept(_)));
        running.is_whole(slice).await;
    }
    assert_eq!(machine.pending_keys().await.len(), 8, "no key is left in the file");
    let stored = async || {
        let stats = running.site.store().stats().await.expect("stats");
        (stats.chunks, stats.bytes)
    };
    let before = stored().await;
    assert_eq!(running.receive(&one).await, ReceivedAs::Duplicate);
    assert_eq!(stored().await, before, "a duplicate is not sealed anew");
    assert_eq!(machine.pending_keys().await.len(), 8, "nor is a key made for it");
    running.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_between_any_two_steps_of_a_publication_loses_nothing() {
    let (study, [one, two, three]) = study();
    for steps in 0..5 {
        let machine = Machine::new();
        let running = machine.run().await;
        running.receive(&one).await;
        running.receive(&two).await;
        let key = running.key_of(&one).await;
        let with_keys = machine.pending_keys().await;
        if steps >= 1 {
            let closing = Closing::of(running.node(), &study).await.expect("rotated");
            if steps >= 2 {
                closing.keep(running.node(), &study, 1).await.expect("kept");
            }
        }
        if steps >= 3 {
            running.publish(&study).await.expect("published");
        }
        running.end().await;
        if steps == 3 {
            // It came to its end but for the last step: the file is as it was.
            machine.disk().replace("pending-keys", with_keys).await.expect("replace");
        }

        let running = machine.run().await;
        assert_eq!(running.site.store().keys().pending_studies().contains(&study), steps < 4, "{steps}");
        running.is_whole(&one).await;
        running.receive(&three).await;
        running.publish(&study).await.expect("published");
        assert!(matches!(running.in_state(key), SharedKey::Kept(_)), "{steps}");
        assert_eq!(machine.pending_keys().await.len(), 8, "{steps}: no key is left in the file");
        for slice in [&one, &two, &three] {
            running.is_whole(slice).await;
        }
        running.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_came_after_a_publication_outlives_its_purge() {
    let (study, [one, two, three]) = study();
    // How far the publication of what came since was when the purge came.
    for steps in 0..3 {
        let machine = Machine::new();
        let running = machine.run().await;
        running.receive(&one).await;
        running.publish(&study).await.expect("published");
        running.receive(&two).await;
        if steps >= 1 {
            let closing = Closing::of(running.node(), &study).await.expect("rotated");
            if steps >= 2 {
                closing.keep(running.node(), &study, 2).await.expect("kept");
            }
        }
        let exam = running.exam(&study).expect("an exam");
        let (gone, stays) = (running.key_of(&one).await, running.key_of(&two).await);
        running.purge(exam).await;
        assert_eq!(running.in_state(gone), SharedKey::Destroyed);
        assert!(running.publish(&study).await.is_err(), "first what is to go");
        assert!(matches!(running.read(&one).await, Err(StoreError::KeyDestroyed(key)) if key == gone));
        assert_eq!(running.site.store().stats().await.expect("stats").bad, 0, "good bytes are not put aside");
        running.is_whole(&two).await;
        running.receive(&three).await;
        running.carry_out_purges().await;
        assert!(running.site.store().instance(&one.uid).await.expect("read").is_none());
        running.end().await;

        let running = machine.run().await;
        running.publish(&study).await.expect("published");
        let again = running.exam(&study).expect("an exam of its own");
        assert_ne!(again, exam);
        for slice in [&two, &three] {
            running.is_whole(slice).await;
        }
        assert!(matches!(running.in_state(stays), SharedKey::Kept(_)), "{steps}");
        let purged = running.node().read(|view| view.exam(exam)).expect("read").expect("known");
        assert_eq!(purged.state, ExamState::Purged);
        running.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_sent_again_before_their_purge_is_carried_out_are_stored_anew() {
    let (machine, (study, [one, ..])) = (Machine::new(), study());
    let running = machine.run().await;
    running.receive(&one).await;
    running.publish(&study).await.expect("published");
    let gone = running.key_of(&one).await;
    running.purge(running.exam(&study).expect("an exam")).await;
    // They are still listed here, and nobody can read them: an answer that they are here would lose them.
    running.receive(&one).await;
    assert_ne!(running.key_of(&one).await, gone);
    running.carry_out_purges().await;
    running.is_whole(&one).await;
    running.publish(&study).await.expect("published");
    assert!(running.exam(&study).is_some());
    running.end().await;
    let running = machine.run().await;
    running.is_whole(&one).await;
    running.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_verification_opens_what_is_published_and_what_is_not_and_nothing_that_is_purged() {
    let (machine, (study, [one, two, _])) = (Machine::new(), study());
    let running = machine.run().await;
    let verify = async || running.node().images().verify(&study).await.expect("read");
    assert!(verify().await.is_none(), "nobody knows it");
    running.receive(&one).await;
    let found = verify().await.expect("it is here");
    assert_eq!((found.report.instances, found.unpublished, found.is_complete()), (1, 1, true));
    running.publish(&study).await.expect("published");
    running.receive(&two).await;
    let found = verify().await.expect("known");
    assert_eq!((found.report.instances, found.unpublished, found.is_complete()), (2, 1, true));
    assert!(found.not_here.is_empty() && found.report.chunks > 2);

    running.purge(running.exam(&study).expect("an exam")).await;
    let found = verify().await.expect("some of it is here");
    assert_eq!((found.report.instances, found.unpublished, found.is_complete()), (1, 1, true));
    let key = running.key_of(&two).await;
    running.site.store().keys().forget(&BTreeSet::from([key])).await.expect("forgotten");
    let found = verify().await.expect("it is here, though nobody can open it");
    assert_eq!((found.report.unopened.len(), found.is_complete()), (1, false));
    running.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publication_waits_for_what_is_being_sealed_under_the_key_that_it_closes() {
    let (machine, (study, [one, ..])) = (Machine::new(), study());
    let running = machine.run().await;
    running.receive(&one).await;
    let keys = running.site.store().keys().clone();
    let sealing = keys.sealing(&study).await.expect("a key");
    let rotated = async { keys.rotate(&study).await.len() };
    tokio::pin!(rotated);
    assert!(tokio::time::timeout(Duration::from_millis(200), &mut rotated).await.is_err(), "it waits");
    let held = sealing.key().id();
    drop(sealing);
    assert_eq!(rotated.await, 1);
    assert_ne!(keys.sealing(&study).await.expect("a key").key().id(), held);
    running.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_image_keeps_no_other_from_being_read_by_break_glass() {
    let (machine, (published, [one, ..])) = (Machine::new(), study());
    let running = machine.run().await;
    running.receive(&one).await;
    running.publish(&published).await.expect("published");
    let id = running.exam(&published).expect("an exam");
    let mut exam = running.node().read(|view| view.exam(id)).expect("read").expect("known");
    // As if none of its images were published.
    exam.studies.clear();
    let ((sound, [sound_one, ..]), (_, [damaged_one, ..])) = (study_of(2), study_of(3));
    for slice in [&sound_one, &damaged_one] {
        running.receive(slice).await;
    }
    let store = running.site.store();
    let listed = store.instance(&damaged_one.uid).await.expect("read").expect("listed");
    let manifest = store.get_manifest(listed.entry.manifest).await.expect("read").expect("stored");
    rot(&machine.disk(), &manifest).await;
    let local = images_of(running.node(), &exam).await.expect("it is looked for");
    assert_eq!(local, Local::All(vec![sound]));
    running.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_a_patient_is_open_in_any_pack() {
    let (machine, (_, slices)) = (Machine::new(), study());
    let running = machine.run().await;
    for slice in &slices {
        running.receive(slice).await;
    }
    running.end().await;
    let disk = machine.disk();
    for name in disk.list("packs").await.expect("list") {
        let pack = disk.read(&format!("packs/{name}")).await.expect("read");
        assert!(has(&pack, slices[0].uid.as_bytes()), "the search finds what is there");
        assert!(!has(&pack, b"HIDDEN^PATIENT"), "a name");
        for slice in &slices {
            // From the middle of the image, where there is noise: room ahead in a pack is zeroes, as air is.
            let middle = slice.dataset.len() - 64 * 64;
            assert!(!has(&pack, &slice.dataset[middle..middle + 64]), "pixels");
        }
    }
}
