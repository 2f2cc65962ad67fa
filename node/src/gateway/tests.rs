//! A gateway and a real centre in this process, on a clock that runs as fast as it can: an hour's outage with
//! images arriving all the while.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use bytes::Bytes;
use futures::future::BoxFuture;
use http_body_util::BodyExt as _;
use maillage_consensus::command::Command;
use maillage_consensus::ids::{CommandId, Line, Name, PeerKey, SiteId};
use maillage_consensus::raft::Duplex;
use maillage_consensus::{Outcome, Queue};
use maillage_dicom::Uid;
use maillage_dicom::phantom::CtPhantom;
use maillage_host::engine::{MemoryHome, Reader};
use maillage_host::{Batch, Clock, Disk, Engine, EngineHome};
use maillage_store::{Hash, Store, StoreConfig, StoreError};
use maillage_transport::{Endpoint, EndpointConfig, Identity, Membership, PeerId, Socket, frame};
use serde_json::{Value, json};
use tokio::io::{AsyncWriteExt as _, DuplexStream};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use super::ask::AskError;
use super::door::Door;
use super::lines::Lines;
use super::schedule::Key;
use super::serve::{Host, Opened};
use super::wire::{self, Ask, Held, Item, Kept, Offer, Page, Position, Reply, Safety, Welcome};
use super::{Counts, Gateway, ask};
use crate::commitment::{Commitments, Reference, Requester, Settled, reason};
use crate::config::Settings;
use crate::data_dir::{MESH_FILE_FORMAT, MeshFile, MeshFileMember};
use crate::ingest::tests::rot;
use crate::ingest::{Announced, IngestError, Source};
use crate::site::{Host as SiteHost, Member, Role, Site};

/// A founded mesh of one centre, and a member of it that is a gateway.
struct Centre {
    site: Site,
    gateway: SiteId,
    shutdown: CancellationToken,
    endpoint: Endpoint,
    directory: tempfile::TempDir,
}

fn settings(text: &str) -> Settings {
    let common = "[http]\nlisten = \"127.0.0.1:0\"\n[storage]\nreserve_mib = 1\ncommitment_timeout_s = 600\n[dicom]\nany_caller = true\nmax_instance_mib = 1\n";
    Settings::from_toml(&format!("{text}\n{common}")).expect("settings")
}

async fn centre() -> Centre {
    let directory = tempfile::tempdir().expect("a directory");
    let clock = Clock::system();
    let (identity, membership) = (Identity::generate(), Membership::new(clock.clone()));
    let any = Socket::Udp(SocketAddr::from(([127, 0, 0, 1], 0)));
    let endpoint = EndpointConfig::new(identity.clone(), membership.clone(), any, clock.clone());
    let endpoint = Endpoint::bind(endpoint).expect("a port");
    let member = Member::new(identity, MeshFile::of_founder([7; 32], "test", "paris"), membership);
    let wires = member.wires(&endpoint);
    let host = SiteHost {
        disk: Disk::real(directory.path()),
        state: Arc::<MemoryHome>::default(),
        index: Arc::<MemoryHome>::default(),
        clock,
        images: StoreConfig { reserve_bytes: 1 << 20, ..StoreConfig::default() },
        queue: Arc::new(Queue),
    };
    let shutdown = CancellationToken::new();
    // Seldom, since an hour has many heartbeats.
    let raft = "[raft]\nheartbeat_ms = 1000\nelection_min_ms = 4000\nelection_max_ms = 8000";
    let settings = settings(&format!("[node]\nname = \"paris\"\nzone = \"paris\"\ndata_dir = \"/nowhere\"\n{raft}"));
    let site = Site::open(settings, member, host, wires, shutdown.clone()).await.expect("it opens");
    site.start();
    site.found().await.expect("founded");
    let command =
        async |command| site.node().command(CommandId::random(), Name::default(), command).await.expect("an outcome");
    let (token, hospitals) = (PeerKey::new(vec![2; 38]).expect("a key"), vec![Line::fitted("CHU")]);
    command(Command::CreateGatewayToken { key: token.clone(), lifetime_ms: 60_000, hospitals }).await;
    let mut joiner = crate::roster::testing::site(9, "chu").description;
    joiner.key = PeerKey::new(vec![3; 38]).expect("a key");
    let Outcome::Joined { site: gateway } = command(Command::JoinGateway { token, joiner }).await else {
        panic!("the gateway joins");
    };
    Centre { site, gateway, shutdown, endpoint, directory }
}

impl Centre {
    async fn end(self) {
        self.shutdown.cancel();
        self.site.stop(self.endpoint.close()).await;
    }

    /// The SOP Instance UIDs of a study here.
    async fn instances(&self, study: &str) -> Vec<String> {
        let instances = self.site.store().instances(study).await.expect("a list");
        instances.into_iter().map(|instance| instance.entry.sop_instance).collect()
    }
}

/// Streams straight to a centre's door, while the line is up. While it is down nothing answers, as packets that
/// are dropped.
struct Cable {
    door: Arc<Door>,
    gateway: SiteId,
    up: AtomicBool,
}

impl Cable {
    fn to(centre: &Centre) -> Arc<Self> {
        let door = Door::new(centre.site.node().clone());
        Arc::new(Self { door, gateway: centre.gateway, up: AtomicBool::new(true) })
    }
}

impl Lines for Cable {
    fn open(&self, _: u64) -> BoxFuture<'_, io::Result<Duplex>> {
        Box::pin(async move {
            if !self.up.load(Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
            let (near, far) = tokio::io::duplex(256 << 10);
            let (door, gateway) = (Arc::clone(&self.door), self.gateway);
            maillage_host::spawn(async move { door.answer(gateway, halves(far)).await });
            Ok(halves(near))
        })
    }

    fn know(&self, _: BTreeMap<u64, (PeerId, Vec<SocketAddr>)>) {}
}

fn halves(end: DuplexStream) -> Duplex {
    let (reader, writer) = tokio::io::split(end);
    Duplex { reader: Box::new(reader), writer: Box::new(writer) }
}

/// Centres that give these answers to what each is asked; without one they are still at it, for ever.
struct Scripted(fn(u64, &Ask) -> Option<Reply>);

impl Lines for Scripted {
    fn open(&self, centre: u64) -> BoxFuture<'_, io::Result<Duplex>> {
        let (near, far) = tokio::io::duplex(256 << 10);
        let (says, mut far) = (self.0, halves(far));
        maillage_host::spawn(async move {
            let Ok(Some(asked)) = frame::read(&mut far.reader, wire::ASK_MAX).await else { return };
            let reply = says(centre, &wire::decode(&asked).expect("a question"));
            loop {
                let bytes = wire::encode(reply.as_ref().unwrap_or(&Reply::Working)).expect("encodes");
                if frame::write(&mut far.writer, &bytes, wire::REPLY_MAX).await.is_err() || reply.is_some() {
                    return;
                }
                sleep(Duration::from_millis(400)).await;
            }
        });
        Box::pin(std::future::ready(Ok::<_, io::Error>(halves(near))))
    }

    fn know(&self, _: BTreeMap<u64, (PeerId, Vec<SocketAddr>)>) {}
}

/// The answers of a centre that has everything, in so many zones.
fn has_all(asked: &Ask, safety: Safety) -> Reply {
    match asked {
        Ask::Hello(_) => Reply::Welcome(Welcome { in_touch: true, centres: Vec::new() }),
        Ask::Offer(_) => Reply::Have,
        Ask::Safe { items } => Reply::Safety(vec![safety; items.len()]),
        Ask::Held { references } => Reply::Held(vec![Held::Safe; references.len()]),
        Ask::Feed { .. } => {
            Reply::Page(Page { reports: Vec::new(), next: Position::Event { index: 1, place: 0 }, more: false })
        }
        Ask::SenderDone { .. } | Ask::Acknowledge { .. } => Reply::Done,
    }
}

/// An index on a machine that has no descriptor left, now and then.
#[derive(Default)]
struct FlakyHome {
    home: MemoryHome,
    fails: Arc<AtomicBool>,
}

struct FlakyEngine {
    engine: Arc<dyn Engine>,
    fails: Arc<AtomicBool>,
}

impl FlakyHome {
    fn set_fails(&self, fails: bool) {
        self.fails.store(fails, Ordering::SeqCst);
    }

    fn flaky(&self, engine: Arc<dyn Engine>) -> Arc<dyn Engine> {
        Arc::new(FlakyEngine { engine, fails: Arc::clone(&self.fails) })
    }
}

impl EngineHome for FlakyHome {
    fn open(&self) -> io::Result<Arc<dyn Engine>> {
        Ok(self.flaky(self.home.open()?))
    }

    fn replace(&self, fill: &mut dyn FnMut(&dyn Engine) -> io::Result<()>) -> io::Result<Arc<dyn Engine>> {
        Ok(self.flaky(self.home.replace(fill)?))
    }
}

impl FlakyEngine {
    fn may_read(&self) -> io::Result<()> {
        // EMFILE.
        if self.fails.load(Ordering::SeqCst) { Err(io::Error::from_raw_os_error(24)) } else { Ok(()) }
    }
}

impl Reader for FlakyEngine {
    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.may_read()?;
        self.engine.get(key)
    }

    fn scan(&self, from: Bound<&[u8]>, to: Bound<&[u8]>, each: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> io::Result<()> {
        self.may_read()?;
        self.engine.scan(from, to, each)
    }
}

impl Engine for FlakyEngine {
    fn commit(&self, batch: Batch) -> io::Result<()> {
        self.engine.commit(batch)
    }

    fn persist(&self) -> io::Result<()> {
        self.engine.persist()
    }

    fn view(&self) -> Box<dyn Reader> {
        self.engine.view()
    }
}

/// A gateway's process, as far as it is one.
struct Running {
    gateway: Gateway,
    shutdown: CancellationToken,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Running {
    async fn start(disk: &Disk, cable: &Arc<Cable>, spool_bytes_max: u64) -> Self {
        Self::start_with(disk, cable, &format!("spool_bytes_max = {spool_bytes_max}")).await
    }

    async fn start_with(disk: &Disk, cable: &Arc<Cable>, line: &str) -> Self {
        // An index of its own each time: after a kill it may be behind, and is made anew from the packs.
        Self::start_on(Arc::<MemoryHome>::default(), disk, cable, line).await
    }

    async fn start_on(index: Arc<dyn EngineHome>, disk: &Disk, cable: &Arc<Cable>, line: &str) -> Self {
        Self::start_among(&["paris"], Arc::<Cable>::clone(cable), cable.gateway, index, disk, line).await
    }

    /// Among centres of these names, which are sites from 1 on.
    async fn start_among(
        centres: &[&str],
        lines: Arc<dyn Lines>,
        gateway: SiteId,
        index: Arc<dyn EngineHome>,
        disk: &Disk,
        line: &str,
    ) -> Self {
        let text = format!(
            "[node]\nname = \"chu\"\nzone = \"chu\"\ndata_dir = \"/nowhere\"\nrole = \"gateway\"\n\
             [gateway]\n{line}"
        );
        let member = |(site_id, name): (u64, &&str)| MeshFileMember {
            peer_id: Identity::generate().peer_id().to_string(),
            site_id,
            name: (*name).to_owned(),
            addresses: Vec::new(),
        };
        let mesh = MeshFile {
            format: MESH_FILE_FORMAT,
            mesh_id: "07".repeat(32),
            mesh_name: "test".to_owned(),
            site_id: gateway.0,
            site_name: "chu".to_owned(),
            epoch: 1,
            has_log: false,
            role: Role::Gateway,
            members: (1..).zip(centres).map(member).collect(),
        };
        let spool = StoreConfig { reserve_bytes: 1 << 19, ..StoreConfig::default() };
        let host = Host { disk: disk.clone(), index, clock: Clock::system(), spool, lines };
        let opened = Opened::open(settings(&text).into_config(), mesh, host).await.expect("it opens");
        let (gateway, shutdown) = (opened.gateway.clone(), CancellationToken::new());
        let tasks = opened.start(&shutdown);
        Self { gateway, shutdown, tasks }
    }

    /// Without any courtesy to what is under way.
    async fn kill(self) {
        self.shutdown.cancel();
        futures::future::join_all(self.tasks).await;
    }

    async fn take(&self, uid: &Uid, dataset: Bytes) -> Result<(), IngestError> {
        let announced = Announced {
            sop_class: CtPhantom::SOP_CLASS,
            sop_instance: uid.clone(),
            transfer_syntax: CtPhantom::TRANSFER_SYNTAX,
            foreign_preamble: false,
        };
        self.gateway.ingest().receive(Source::Dimse("CT1".to_owned()), announced, dataset).await.map(drop)
    }

    /// What `maillage status` is told.
    async fn status(&self) -> Value {
        let request = Request::get("/api/v1/status").body(Body::empty()).expect("a request");
        let answer = self.gateway.control_router().oneshot(request).await.expect("an answer");
        let body = answer.into_body().collect().await.expect("a body").to_bytes();
        serde_json::from_slice(&body).expect("JSON")
    }

    /// Waits until a centre has everything.
    async fn is_through(&self, instances: u64) -> Duration {
        let since = Instant::now();
        let through = async {
            loop {
                let counts = self.gateway.schedule().counts();
                if counts.pushed + counts.safe == instances {
                    return;
                }
                sleep(Duration::from_millis(100)).await;
            }
        };
        timeout(Duration::from_secs(600), through).await.unwrap_or_else(|_| {
            panic!("not through: {:?}", self.gateway.schedule().counts());
        });
        since.elapsed()
    }
}

fn phantom(slices: u32) -> CtPhantom {
    CtPhantom { slices, rows: 32, columns: 32, accession_number: "A1".to_owned(), ..CtPhantom::default() }
}

#[tokio::test(start_paused = true)]
async fn an_hour_without_any_centre_while_images_arrive_loses_none_and_doubles_none() {
    const IMAGES: u32 = 120;
    let (centre, directory) = (centre().await, tempfile::tempdir().expect("a directory"));
    let (cable, disk) = (Cable::to(&centre), Disk::real(directory.path()));
    let phantom = phantom(IMAGES);
    let mut running = Running::start(&disk, &cable, 1 << 30).await;
    cable.up.store(false, Ordering::SeqCst);
    let since = Instant::now();
    for n in 0..IMAGES {
        let (uid, dataset) = phantom.slice(n);
        running.take(&uid, dataset).await.expect("images are taken while nobody answers");
        sleep(Duration::from_secs(3600) / IMAGES).await;
        if n == IMAGES / 2 {
            running.kill().await;
            running = Running::start(&disk, &cable, 1 << 30).await;
        }
    }
    assert!(since.elapsed() >= Duration::from_secs(3600));
    let counts = running.gateway.schedule().counts();
    assert_eq!((counts.waiting + counts.in_flight, counts.pushed), (IMAGES.into(), 0), "{counts:?}");
    let study = phantom.study_uid().to_string();
    assert_eq!(centre.instances(&study).await, Vec::<String>::new());

    cable.up.store(true, Ordering::SeqCst);
    let took = running.is_through(IMAGES.into()).await;
    assert!(took < Duration::from_secs(30), "an hour's images are there {took:?} after the line is");
    let mut sent: Vec<String> = (0..IMAGES).map(|n| phantom.slice(n).0.to_string()).collect();
    sent.sort();
    let mut came = centre.instances(&study).await;
    came.sort();
    assert_eq!(came, sent, "each once");
    assert!(centre.site.store().conflicts(None, 10).await.expect("a list").is_empty());
    // One zone has them: they stay here.
    sleep(Duration::from_secs(60)).await;
    assert_eq!(running.gateway.schedule().counts().safe, 0);
    assert_eq!(running.gateway.store().instances(&study).await.expect("a list").len(), IMAGES as usize);
    running.kill().await;
    centre.end().await;
}

#[tokio::test(start_paused = true)]
async fn images_wait_for_a_centre_that_is_named_though_another_answers() {
    let (centre, directory) = (centre().await, tempfile::tempdir().expect("a directory"));
    let (cable, disk) = (Cable::to(&centre), Disk::real(directory.path()));
    let phantom = phantom(2);
    let study = phantom.study_uid().to_string();
    let running = Running::start_with(&disk, &cable, "centres = [\"lyon\"]").await;
    for n in 0..2 {
        let (uid, dataset) = phantom.slice(n);
        running.take(&uid, dataset).await.expect("taken");
    }
    sleep(Duration::from_secs(120)).await;
    let counts = running.gateway.schedule().counts();
    assert_eq!((counts.waiting, counts.in_flight, counts.pushed), (2, 0, 0), "{counts:?}");
    assert_eq!(centre.instances(&study).await, Vec::<String>::new());
    let status = running.status().await;
    let shown = &status["centres"][0];
    assert_eq!((&shown["name"], &shown["state"]), (&json!("paris"), &json!("answers")), "{status}");
    assert_eq!((&shown["allowed"], &status["centre"]), (&json!(false), &Value::Null), "{status}");
    let warnings = status["warnings"].to_string();
    assert!(warnings.contains("none of gateway.centres (lyon) answers"), "{warnings}");
    assert!(warnings.contains("no centre of the mesh has this name"), "{warnings}");
    running.kill().await;

    let running = Running::start_with(&disk, &cable, "centres = [\"lyon\", \"paris\"]").await;
    running.is_through(2).await;
    assert_eq!(centre.instances(&study).await.len(), 2);
    let status = running.status().await;
    assert_eq!((&status["centres"][0]["allowed"], &status["centre"]), (&json!(true), &json!("paris")), "{status}");
    assert!(!status["warnings"].to_string().contains("none of"), "{status}");
    running.kill().await;
    centre.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_just_now_is_sent_once_it_can_be() {
    let (centre, directory) = (centre().await, tempfile::tempdir().expect("a directory"));
    let (cable, disk) = (Cable::to(&centre), Disk::real(directory.path()));
    let index = Arc::<FlakyHome>::default();
    let running = Running::start_on(Arc::<FlakyHome>::clone(&index), &disk, &cable, "").await;
    cable.up.store(false, Ordering::SeqCst);
    let (uid, dataset) = phantom(1).slice(0);
    running.take(&uid, dataset).await.expect("taken");
    sleep(Duration::from_secs(30)).await;
    index.set_fails(true);
    cable.up.store(true, Ordering::SeqCst);
    sleep(Duration::from_secs(30)).await;
    let told = running.gateway.metrics().text();
    assert!(told.contains("outcome=\"unread\""), "it was tried: {told}");
    let counts = running.gateway.schedule().counts();
    assert_eq!((counts.pushed, counts.rejected), (0, 0), "{counts:?}");
    index.set_fails(false);
    running.is_through(1).await;
    assert_eq!(centre.instances(phantom(1).study_uid().as_str()).await, [uid.to_string()]);
    running.kill().await;
    centre.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_could_not_be_looked_at_when_it_arrived_is_sent_all_the_same() {
    let (centre, directory) = (centre().await, tempfile::tempdir().expect("a directory"));
    let (cable, disk) = (Cable::to(&centre), Disk::real(directory.path()));
    let index = Arc::<FlakyHome>::default();
    let running = Running::start_on(Arc::<FlakyHome>::clone(&index), &disk, &cable, "").await;
    let (uid, dataset) = phantom(1).slice(0);
    running.take(&uid, dataset).await.expect("taken");
    index.set_fails(true);
    sleep(Duration::from_secs(15)).await;
    assert_eq!(running.gateway.schedule().counts(), Counts::default(), "nobody knows of it");
    index.set_fails(false);
    running.is_through(1).await;
    assert_eq!(centre.instances(phantom(1).study_uid().as_str()).await, [uid.to_string()]);
    running.kill().await;
    centre.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_centre_that_cannot_say_what_is_safe_holds_up_nothing_while_another_can() {
    let directory = tempfile::tempdir().expect("a directory");
    let disk = Disk::real(directory.path());
    let says = |centre: u64, asked: &Ask| match asked {
        Ask::Safe { .. } if centre == 1 => Some(Reply::NotNow { why: Line::fitted("its disk fails") }),
        _ => Some(has_all(asked, Safety::Safe)),
    };
    let (lines, index) = (Arc::new(Scripted(says)), Arc::<MemoryHome>::default());
    let running = Running::start_among(&["paris", "lyon"], lines, SiteId(9), index, &disk, "").await;
    for n in 0..3 {
        let (uid, dataset) = phantom(3).slice(n);
        running.take(&uid, dataset).await.expect("taken");
    }
    running.is_through(3).await;
    assert_eq!(running.gateway.schedule().current(), Some(1));
    sleep(Duration::from_secs(60)).await;
    assert_eq!(running.gateway.schedule().counts().safe, 3);
    running.kill().await;
}

#[tokio::test(start_paused = true)]
async fn a_centre_that_only_ever_says_that_it_is_at_it_is_waited_for_no_longer_than_it_may_take() {
    let (lines, started) = (Scripted(|_, _| None), Instant::now());
    let asked = ask::ask(&lines, 1, &Ask::Safe { items: Vec::new() }).await;
    assert!(matches!(asked, Err(AskError::Unanswered)), "{asked:?}");
    assert_eq!(started.elapsed().as_secs(), 300);
}

#[tokio::test(start_paused = true)]
async fn a_full_spool_refuses_with_room_to_come_and_takes_again_when_there_is() {
    let (centre, directory) = (centre().await, tempfile::tempdir().expect("a directory"));
    let (cable, disk) = (Cable::to(&centre), Disk::real(directory.path()));
    cable.up.store(false, Ordering::SeqCst);
    let running = Running::start(&disk, &cable, 1 << 20).await;
    let phantom = CtPhantom { rows: 256, columns: 256, ..phantom(10) };
    let mut taken = Vec::new();
    let refused = loop {
        let n = u32::try_from(taken.len()).expect("few");
        let (uid, dataset) = phantom.slice(n);
        match running.take(&uid, dataset).await {
            Ok(()) => taken.push(uid),
            Err(error) => break error,
        }
        sleep(Duration::from_secs(1)).await;
    };
    assert!(matches!(refused, IngestError::Store(StoreError::Full { .. })), "the sender may try again: {refused}");
    assert!((6..10).contains(&taken.len()), "{}", taken.len());
    // What is dropped makes room; without that nothing does.
    let key = running.gateway.schedule().rejects(1);
    assert!(key.is_empty());
    cable.up.store(true, Ordering::SeqCst);
    running.is_through(taken.len() as u64).await;
    let (first, manifest) = {
        let schedule = running.gateway.schedule();
        let (key, spooled, _) = schedule.named(taken[0].as_str()).expect("spooled");
        (key.clone(), spooled.manifest)
    };
    running.gateway.drop_instances(std::slice::from_ref(&first), false).await.expect("dropped");
    assert!(running.gateway.store().instance(taken[0].as_str()).await.expect("a look").is_none());
    assert!(running.gateway.store().instance_manifest(manifest).await.expect("a look").is_none());
    let (uid, dataset) = phantom.slice(9);
    running.take(&uid, dataset).await.expect("there is room again");
    running.kill().await;
    centre.end().await;
}

/// Other bytes that say the same of themselves.
fn changed(dataset: &Bytes) -> Bytes {
    let mut changed = dataset.to_vec();
    *changed.last_mut().expect("a byte") ^= 1;
    changed.into()
}

fn key(uid: &Uid, dataset: &Bytes) -> Key {
    Key { sop_instance: uid.to_string(), dataset: Hash::of(dataset) }
}

#[tokio::test(start_paused = true)]
async fn a_purge_reaches_what_is_safe_and_what_no_centre_takes_and_their_keys() {
    let (centre, directory) = (centre().await, tempfile::tempdir().expect("a directory"));
    let (cable, disk) = (Cable::to(&centre), Disk::real(directory.path()));
    let running = Running::start(&disk, &cable, 1 << 30).await;
    let (phantom, study) = (phantom(2), phantom(2).study_uid().to_string());
    for n in 0..2 {
        let (uid, dataset) = phantom.slice(n);
        running.take(&uid, dataset).await.expect("taken");
    }
    running.is_through(2).await;
    let known = || centre.site.node().read(|view| view.study(&study)).expect("read");
    let published = async {
        loop {
            match known() {
                Some(study) => return study.parts[0].exam,
                None => sleep(Duration::from_secs(1)).await,
            }
        }
    };
    let exam = timeout(Duration::from_secs(600), published).await.expect("published");
    // Of the first image other bytes come, which no centre takes. It is safe, as far as this gateway was told.
    let (uid, first) = phantom.slice(0);
    running.take(&uid, changed(&first)).await.expect("kept apart");
    let rejected = async {
        while running.gateway.schedule().counts().rejected == 0 {
            sleep(Duration::from_secs(1)).await;
        }
    };
    timeout(Duration::from_secs(600), rejected).await.expect("no centre takes it");
    running.gateway.schedule().safe(&key(&uid, &first), Instant::now());
    let counts = running.gateway.schedule().counts();
    assert_eq!((counts.safe, counts.rejected), (1, 1), "{counts:?}");

    let purge = Command::Purge { exam, reason: Line::fitted("withdrawn"), withdrawn: true };
    let purged = centre.site.node().command(CommandId::random(), Name::fitted("dpo"), purge).await;
    assert_eq!(purged.expect("an outcome"), Outcome::Done);
    sleep(Duration::from_secs(3600 + 180)).await;
    assert!(known().is_none());
    assert_eq!(running.gateway.schedule().counts(), Counts::default());
    let store = running.gateway.store();
    assert_eq!(store.studies(None, 9).await.expect("a list"), []);
    assert_eq!(store.conflicts(None, 9).await.expect("a list"), []);
    assert_eq!(disk.read("pending-keys").await.expect("the keys").len(), 8, "no key is left in the file");
    running.kill().await;
    centre.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_purged_takes_nothing_along_that_nobody_else_has() {
    let (centre, directory) = (centre().await, tempfile::tempdir().expect("a directory"));
    let (cable, disk) = (Cable::to(&centre), Disk::real(directory.path()));
    cable.up.store(false, Ordering::SeqCst);
    let running = Running::start(&disk, &cable, 1 << 30).await;
    let (gateway, store) = (&running.gateway, running.gateway.store());
    let (uid, first) = phantom(1).slice(0);
    let second = changed(&first);
    let (one, other) = (key(&uid, &first), key(&uid, &second));
    let take_both = async || {
        running.take(&uid, first.clone()).await.expect("taken");
        running.take(&uid, second.clone()).await.expect("kept apart");
        // What is kept apart is looked for now and then.
        sleep(Duration::from_secs(20)).await;
        assert!(gateway.schedule().get(&one).is_some() && gateway.schedule().get(&other).is_some());
    };
    let here = async || {
        let first = store.instance(uid.as_str()).await.expect("a look");
        (first.is_some(), store.seconds(uid.as_str()).await.expect("a look").len())
    };
    take_both().await;
    gateway.drop_instances(std::slice::from_ref(&one), true).await.expect("no error");
    assert_eq!(here().await, (true, 1), "it waits for the other, which is neither purged nor safe");
    gateway.drop_instances(std::slice::from_ref(&other), true).await.expect("dropped");
    assert_eq!(here().await, (true, 0), "which goes alone");
    assert!(gateway.schedule().get(&one).is_some() && gateway.schedule().get(&other).is_none());

    take_both().await;
    // Another image is coming in under the UID: it would be gone with them.
    let claimed = store.landing().claim("1.2", uid.as_str()).expect("nothing is");
    gateway.drop_instances(&[other.clone(), one.clone()], true).await.expect("no error");
    assert_eq!(here().await, (true, 1));
    drop(claimed);
    gateway.drop_instances(&[other.clone(), one.clone()], true).await.expect("dropped");
    assert_eq!(here().await, (false, 0), "both go where both are purged");
    assert_eq!(gateway.schedule().counts(), Counts::default());
    running.kill().await;
    centre.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_contested_is_not_dropped_for_being_safe_nor_offered_again() {
    let (centre, directory) = (centre().await, tempfile::tempdir().expect("a directory"));
    let (cable, disk) = (Cable::to(&centre), Disk::real(directory.path()));
    let running = Running::start(&disk, &cable, 1 << 30).await;
    let gateway = &running.gateway;
    let slices = [0, 1].map(|n| phantom(2).slice(n));
    for (uid, dataset) in &slices {
        running.take(uid, dataset.clone()).await.expect("taken");
    }
    running.is_through(2).await;
    let keys = [0, 1].map(|n: usize| key(&slices[n].0, &slices[n].1));
    keys.iter().for_each(|key| gateway.schedule().safe(key, Instant::now()));
    let to_drop = || gateway.schedule().to_drop(Instant::now(), Duration::ZERO, 0, 1);
    // Which of them was safe first is the gateway's to say.
    let first = usize::from(to_drop() == [keys[1].clone()]);
    running.take(&slices[first].0, changed(&slices[first].1)).await.expect("kept apart");
    assert_eq!(to_drop(), [keys[first].clone()]);
    gateway.drop_instances(&to_drop(), false).await.expect("no error");
    assert!(gateway.store().instance(slices[first].0.as_str()).await.expect("a look").is_some());
    assert_eq!(to_drop(), [keys[1 - first].clone()], "the next round goes past it");
    running.kill().await;
    centre.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_key_is_forgotten_once_nothing_is_sealed_under_it_nor_will_be() {
    let (centre, directory) = (centre().await, tempfile::tempdir().expect("a directory"));
    let (cable, disk) = (Cable::to(&centre), Disk::real(directory.path()));
    cable.up.store(false, Ordering::SeqCst);
    let running = Running::start(&disk, &cable, 1 << 30).await;
    let (gateway, store) = (&running.gateway, running.gateway.store());
    let (phantom, study) = (phantom(2), phantom(2).study_uid().to_string());
    let slices = [0, 1].map(|n| phantom.slice(n));
    let take = async |n: usize| {
        let (uid, dataset) = &slices[n];
        running.take(uid, dataset.clone()).await.expect("taken");
        sleep(Duration::from_secs(1)).await;
        key(uid, dataset)
    };
    let purge = async |key: &Key| gateway.drop_instances(std::slice::from_ref(key), true).await.expect("dropped");
    let forget = async || {
        gateway.forget_keys().await.expect("no error");
        store.keys().pending(&study)
    };
    let (one, other) = (take(0).await, take(1).await);
    let of_both = store.keys().pending(&study);
    assert_eq!(of_both.len(), 1);
    purge(&one).await;
    assert_eq!(forget().await, of_both, "the other is sealed under it");

    let one = take(0).await;
    assert_eq!(store.keys().pending(&study).len(), 2, "what comes later is sealed under another");
    purge(&one).await;
    assert_eq!(forget().await, of_both);
    let spooled = gateway.schedule().get(&other).map(|(spooled, _)| spooled.clone()).expect("spooled");
    let manifest = store.instance_manifest(spooled.manifest).await.expect("read").expect("stored");
    assert!(store.attributes(&manifest).is_ok(), "it can be opened");

    // Something is being sealed under a new one.
    let sealing = store.keys().sealing(&study).await.expect("a key");
    gateway.dropped().insert(study.clone());
    assert_eq!(forget().await.len(), 2);
    drop(sealing);
    assert_eq!(forget().await, of_both, "nothing came of it");

    // Something may be about to take the key of what is listed under its UID.
    let claimed = store.landing().claim(&study, "1.2.3").expect("nothing is");
    purge(&other).await;
    assert_eq!(forget().await, of_both);
    drop(claimed);
    assert!(forget().await.is_empty());
    running.kill().await;
    centre.end().await;
}

#[tokio::test(start_paused = true)]
async fn keys_that_a_process_left_behind_are_forgotten_by_the_next() {
    let (centre, directory) = (centre().await, tempfile::tempdir().expect("a directory"));
    let (cable, disk) = (Cable::to(&centre), Disk::real(directory.path()));
    cable.up.store(false, Ordering::SeqCst);
    let mut running = Running::start(&disk, &cable, 1 << 30).await;
    let other = CtPhantom { accession_number: "A2".to_owned(), ..phantom(1) };
    let slices = [phantom(1), other.clone()].map(|phantom| phantom.slice(0));
    for (uid, dataset) in &slices {
        running.take(uid, dataset.clone()).await.expect("taken");
    }
    sleep(Duration::from_secs(1)).await;
    running.gateway.drop_instances(&[key(&slices[0].0, &slices[0].1)], true).await.expect("dropped");
    running.kill().await;
    running = Running::start(&disk, &cable, 1 << 30).await;
    sleep(Duration::from_secs(10)).await;
    let left = running.gateway.store().keys().pending_studies();
    assert_eq!(left.into_iter().collect::<Vec<_>>(), [other.study_uid().to_string()]);
    running.kill().await;
    centre.end().await;
}

async fn rot_manifest(store: &Store, directory: &tempfile::TempDir, uid: &Uid) {
    let listed = store.instance(uid.as_str()).await.expect("index").expect("listed");
    let manifest = store.get_manifest(listed.entry.manifest).await.expect("read").expect("stored");
    rot(&Disk::real(directory.path()), &manifest).await;
}

/// A sender's request, by the last number of its UID.
async fn request_commitment(commitments: &Commitments, number: u32, sop_instance: &Uid) -> Uid {
    let uid = Uid::parse(&format!("1.9.{number}")).expect("a UID");
    let reference = Reference { sop_class: CtPhantom::SOP_CLASS, sop_instance: sop_instance.clone() };
    commitments.request(uid.clone(), Requester::Web, vec![reference]).await.expect("taken");
    uid
}

fn settled(commitments: &Commitments, uid: &Uid) -> Option<Vec<(u32, u16)>> {
    let Settled { failed, .. } = commitments.get(uid).expect("known").settled?;
    Some(failed)
}

#[tokio::test(start_paused = true)]
async fn a_damaged_image_in_the_spool_holds_up_no_request_for_commitment() {
    let directory = tempfile::tempdir().expect("a directory");
    let disk = Disk::real(directory.path());
    let (lines, index) =
        (Arc::new(Scripted(|_, asked| Some(has_all(asked, Safety::Safe)))), Arc::<MemoryHome>::default());
    let running = Running::start_among(&["paris"], lines, SiteId(9), index, &disk, "").await;
    let slices = [0, 1].map(|n| phantom(2).slice(n));
    for (uid, dataset) in &slices {
        running.take(uid, dataset.clone()).await.expect("taken");
    }
    running.is_through(2).await;
    sleep(Duration::from_secs(10)).await;
    assert_eq!(running.gateway.schedule().counts().safe, 2);
    rot_manifest(running.gateway.store(), &directory, &slices[0].0).await;
    let commitments = running.gateway.commitments();
    let damaged = request_commitment(commitments, 1, &slices[0].0).await;
    let sound = request_commitment(commitments, 2, &slices[1].0).await;
    sleep(Duration::from_secs(30)).await;
    assert_eq!(settled(commitments, &sound), Some(Vec::new()));
    assert_eq!(settled(commitments, &damaged), Some(Vec::new()), "the mesh has it");
    running.kill().await;
}

#[tokio::test(start_paused = true)]
async fn other_bytes_under_its_uid_do_not_make_a_damaged_image_safe() {
    let directory = tempfile::tempdir().expect("a directory");
    let disk = Disk::real(directory.path());
    // Something is safe under the UID, and not these bytes.
    let (lines, index) =
        (Arc::new(Scripted(|_, asked| Some(has_all(asked, Safety::Pending)))), Arc::<MemoryHome>::default());
    let running = Running::start_among(&["paris"], lines, SiteId(9), index, &disk, "").await;
    let (uid, dataset) = phantom(1).slice(0);
    running.take(&uid, dataset).await.expect("taken");
    running.is_through(1).await;
    rot_manifest(running.gateway.store(), &directory, &uid).await;
    let commitments = running.gateway.commitments();
    let asked = request_commitment(commitments, 1, &uid).await;
    sleep(Duration::from_secs(610)).await;
    assert_eq!(settled(commitments, &asked), Some(vec![(0, reason::PROCESSING)]));
    running.kill().await;
}

#[tokio::test(start_paused = true)]
async fn a_request_for_commitment_is_answered_in_time_though_the_wall_clock_stands() {
    let directory = tempfile::tempdir().expect("a directory");
    let disk = Disk::real(directory.path());
    let (lines, index) =
        (Arc::new(Scripted(|_, asked| Some(has_all(asked, Safety::Pending)))), Arc::<MemoryHome>::default());
    let running = Running::start_among(&["paris"], lines, SiteId(9), index, &disk, "").await;
    let (uid, dataset) = phantom(1).slice(0);
    running.take(&uid, dataset).await.expect("taken");
    running.is_through(1).await;
    let commitments = running.gateway.commitments();
    // The machine's own clock knows nothing of the time that passes here.
    let asked = request_commitment(commitments, 1, &uid).await;
    sleep(Duration::from_secs(590)).await;
    assert_eq!(settled(commitments, &asked), None);
    sleep(Duration::from_secs(20)).await;
    assert_eq!(settled(commitments, &asked), Some(vec![(0, reason::PROCESSING)]));
    running.kill().await;
}

#[tokio::test(start_paused = true)]
async fn a_damaged_image_at_a_centre_holds_up_no_other_request_for_commitment() {
    let centre = centre().await;
    let (cable, phantom) = (Cable::to(&centre), phantom(1));
    let (first, data_set) = offer_of(&phantom, 0);
    assert_eq!(offer(&cable, first, &data_set).await, Reply::Stored(Kept::New));
    let uid = phantom.slice(0).0;
    rot_manifest(centre.site.store(), &centre.directory, &uid).await;
    let commitments = centre.site.node().commitments();
    let damaged = request_commitment(commitments, 1, &uid).await;
    let unknown = request_commitment(commitments, 2, &Uid::parse("1.2.3").expect("a UID")).await;
    sleep(Duration::from_secs(60)).await;
    for uid in [unknown, damaged] {
        assert_eq!(settled(commitments, &uid), Some(vec![(0, reason::NO_SUCH_INSTANCE)]), "{uid}");
    }
    centre.end().await;
}

/// One offer on a stream of its own, with whatever is sent behind it.
async fn offer(cable: &Cable, offer: Offer, data_set: &[u8]) -> Reply {
    let mut line = ask::open(cable, 1, &Ask::Offer(offer)).await.expect("a stream");
    match ask::answer(&mut line.reader).await.expect("an answer") {
        Reply::Send => {}
        reply => return reply,
    }
    // A door that has seen enough may have closed.
    let _ = line.writer.write_all(data_set).await;
    let _ = line.writer.shutdown().await;
    ask::answer(&mut line.reader).await.expect("an answer")
}

fn offer_of(phantom: &CtPhantom, n: u32) -> (Offer, Bytes) {
    let (uid, data_set) = phantom.slice(n);
    let text = |uid: &str| maillage_consensus::ids::UidText::fitted(uid);
    let offer = Offer {
        study: text(phantom.study_uid().as_str()),
        sop_instance: text(uid.as_str()),
        sop_class: text(CtPhantom::SOP_CLASS.as_str()),
        transfer_syntax: text(CtPhantom::TRANSFER_SYNTAX.as_str()),
        dataset: *blake3::hash(&data_set).as_bytes(),
        bytes: data_set.len() as u64,
        source: Name::fitted("CT1"),
        received_at: 5,
        foreign_preamble: false,
    };
    (offer, data_set)
}

#[tokio::test(start_paused = true)]
async fn a_door_takes_what_is_right_once_and_says_what_is_wrong_with_the_rest() {
    let centre = centre().await;
    let cable = Cable::to(&centre);
    let phantom = phantom(3);
    let (first, data_set) = offer_of(&phantom, 0);
    assert_eq!(offer(&cable, first.clone(), &data_set).await, Reply::Stored(Kept::New));
    assert_eq!(offer(&cable, first.clone(), &data_set).await, Reply::Have, "and is not sent twice");
    // Other bytes than were offered: nothing is kept of them.
    let (second, data_set) = offer_of(&phantom, 1);
    let mut wrong = data_set.to_vec();
    *wrong.last_mut().expect("a byte") ^= 1;
    assert!(matches!(offer(&cable, second.clone(), &wrong).await, Reply::NotNow { .. }));
    assert_eq!(centre.instances(phantom.study_uid().as_str()).await.len(), 1);
    assert_eq!(offer(&cable, second, &data_set).await, Reply::Stored(Kept::New));
    // Another patient under the study's UID is set apart for a person, for good.
    let (mut third, data_set) = offer_of(&phantom, 2);
    let mut data_set = data_set.to_vec();
    let id = phantom.patient_id.as_bytes();
    let at = data_set.windows(id.len()).position(|window| window == id).expect("the patient's id");
    data_set[at] ^= 1;
    third.dataset = *blake3::hash(&data_set).as_bytes();
    assert_eq!(offer(&cable, third, &data_set).await, Reply::Rejected { reason: Name::fitted("other-patient") });
    let huge = Offer { bytes: u64::MAX, ..first.clone() };
    assert_eq!(offer(&cable, huge, b"").await, Reply::Rejected { reason: Name::fitted("too-large") });
    // One that stops half-way is given up, and another is served meanwhile.
    let (half, _) = offer_of(&phantom, 2);
    let mut line = ask::open(&*cable, 1, &Ask::Offer(half)).await.expect("a stream");
    assert_eq!(ask::answer(&mut line.reader).await.expect("an answer"), Reply::Send);
    line.writer.write_all(&data_set[..100]).await.expect("sent");
    assert_eq!(offer(&cable, first.clone(), b"").await, Reply::Have);
    assert!(ask::answer(&mut line.reader).await.is_err(), "it is closed without an answer");

    // One zone has it, which is not safe; and garbage closes a stream, not the door.
    let item = Item {
        study: first.study.clone(),
        sop_instance: first.sop_instance.clone(),
        dataset: first.dataset,
        received_at: 5,
    };
    let says = ask::ask(&*cable, 1, &Ask::Safe { items: vec![item] }).await.expect("an answer");
    assert_eq!(says, Reply::Safety(vec![Safety::Pending]));
    let mut line = cable.open(1).await.expect("a stream");
    let garbage = wire::encode(&Reply::Done).expect("encodes");
    frame::write(&mut line.writer, &[9, 9], 100).await.expect("written");
    frame::write(&mut line.writer, &garbage, 100).await.expect("written");
    assert!(ask::answer(&mut line.reader).await.is_err());
    assert_eq!(offer(&cable, first, b"").await, Reply::Have);
    centre.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_centre_whose_store_has_stopped_writing_takes_nothing_and_claims_to_have_nothing() {
    let centre = centre().await;
    let (cable, phantom) = (Cable::to(&centre), phantom(2));
    let (first, data_set) = offer_of(&phantom, 0);
    assert_eq!(offer(&cable, first.clone(), &data_set).await, Reply::Stored(Kept::New));
    assert_eq!(offer(&cable, first.clone(), b"").await, Reply::Have);
    // What is written to a file that has no name any more is not durable. What is there can be read on.
    let disk = Disk::real(centre.directory.path());
    for name in disk.list("packs").await.expect("a list") {
        // Directories stay.
        let _ = disk.remove(&format!("packs/{name}")).await;
    }
    let (second, data_set) = offer_of(&phantom, 1);
    assert!(matches!(offer(&cable, second.clone(), &data_set).await, Reply::NotNow { .. }));
    assert!(centre.site.store().has_stopped_writing());
    for offered in [first, second] {
        assert!(matches!(offer(&cable, offered, b"").await, Reply::NotNow { .. }));
    }
    centre.end().await;
}
