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
use maillage_host::{Batch, Clock, Disk, Engine, EngineHome, UnixMillis};
use maillage_store::{Hash, Store, StoreConfig, StoreError};
use maillage_transport::{Endpoint, EndpointConfig, Identity, Membership, PeerId, Socket, frame};
use serde_json::{Value, json};
use tokio::io::{AsyncWriteExt as _, DuplexStream};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

mod commitment;
mod door;
mod purges;

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
    // It goes with the time that passes here.
    let (started, began) = (Clock::system().now().0, Instant::now());
    let clock =
        Clock::from_fn(move || UnixMillis(started + u64::try_from(began.elapsed().as_millis()).unwrap_or_default()));
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
        Ask::Time => Reply::Time { at: 1 },
    }
}

/// An index on a machine that has no descriptor left, now and then.
#[derive(Default)]
pub(crate) struct FlakyHome {
    pub(crate) home: MemoryHome,
    fails: Arc<AtomicBool>,
}

struct FlakyEngine {
    engine: Arc<dyn Engine>,
    fails: Arc<AtomicBool>,
}

impl FlakyHome {
    pub(crate) fn set_fails(&self, fails: bool) {
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

/// Its machine. An index of its own each time: after a kill it may be behind, and is made anew from the packs.
fn host(disk: &Disk, lines: Arc<dyn Lines>) -> Host {
    let spool = StoreConfig { reserve_bytes: 1 << 19, ..StoreConfig::default() };
    Host { disk: disk.clone(), index: Arc::<MemoryHome>::default(), clock: Clock::system(), spool, lines }
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
        Self::start_on(host(disk, Arc::<Cable>::clone(cable)), cable, line).await
    }

    async fn start_on(host: Host, cable: &Arc<Cable>, line: &str) -> Self {
        Self::start_among(&["paris"], cable.gateway, host, line).await
    }

    /// Among centres of these names, which are sites from 1 on.
    async fn start_among(centres: &[&str], gateway: SiteId, host: Host, line: &str) -> Self {
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
    let running = Running::start_on(
        Host { index: Arc::<FlakyHome>::clone(&index), ..host(&disk, Arc::<Cable>::clone(&cable)) },
        &cable,
        "",
    )
    .await;
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
    let running = Running::start_on(
        Host { index: Arc::<FlakyHome>::clone(&index), ..host(&disk, Arc::<Cable>::clone(&cable)) },
        &cable,
        "",
    )
    .await;
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
    let host = host(&disk, Arc::new(Scripted(says)));
    let running = Running::start_among(&["paris", "lyon"], SiteId(9), host, "").await;
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
async fn a_report_whose_delivery_is_not_noted_now_holds_up_no_other() {
    let directory = tempfile::tempdir().expect("a directory");
    let says = |centre: u64, asked: &Ask| match asked {
        // The second hears no quorum.
        Ask::Hello(_) => Some(Reply::Welcome(Welcome { in_touch: centre == 1, centres: Vec::new() })),
        Ask::Feed { .. } => {
            let reports = [4, 5, 6].map(|exam| wire::tests::delivery(exam, 1)).into();
            Some(Reply::Page(Page { reports, next: Position::Event { index: 1, place: 0 }, more: false }))
        }
        Ask::Acknowledge { exam: 4, .. } => Some(Reply::NotNow { why: Line::fitted("in a moment") }),
        Ask::Acknowledge { exam: 5, .. } if centre == 1 => Some(Reply::Have),
        _ => Some(has_all(asked, Safety::Safe)),
    };
    let host = host(&Disk::real(directory.path()), Arc::new(Scripted(says)));
    let running = Running::start_among(&["paris", "lyon"], SiteId(9), host, "").await;
    sleep(Duration::from_secs(10)).await;
    assert_eq!(running.gateway.seen().delivered, 3);
    assert_eq!(running.gateway.seen().unacknowledged, 2, "the second is asked no more after its first refusal");
    running.kill().await;
}

#[tokio::test(start_paused = true)]
async fn where_centres_are_is_written_down_once_it_can_be_and_only_once() {
    let directory = tempfile::tempdir().expect("a directory");
    let disk = Disk::real(directory.path());
    let says = |_: u64, asked: &Ask| match asked {
        Ask::Hello(_) => {
            let peer = Identity::from_secret(&[3; 32]).peer_id().to_bytes();
            let addresses = vec![SocketAddr::from(([192, 0, 2, 1], 7400))];
            let centres = vec![wire::Centre { site: 1, name: Name::fitted("paris"), peer, addresses }];
            Some(Reply::Welcome(Welcome { in_touch: true, centres }))
        }
        _ => Some(has_all(asked, Safety::Safe)),
    };
    // Nothing can be put in the file's place.
    disk.create_dir("mesh.json.new").await.expect("a directory");
    let running = Running::start_among(&["paris"], SiteId(9), host(&disk, Arc::new(Scripted(says))), "").await;
    sleep(Duration::from_secs(5)).await;
    let learnt = running.gateway.mesh().members.clone();
    assert_eq!(learnt[0].addresses, [SocketAddr::from(([192, 0, 2, 1], 7400))]);
    assert!(MeshFile::load(&disk).await.is_err());
    disk.remove_dir("mesh.json.new").await.expect("removed");
    sleep(Duration::from_secs(5)).await;
    assert_eq!(MeshFile::load(&disk).await.expect("it is there").members, learnt);
    disk.remove("mesh.json").await.expect("removed");
    sleep(Duration::from_secs(60)).await;
    assert!(MeshFile::load(&disk).await.is_err(), "it is not written while nothing changes");
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
    running.gateway.schedule().safe(&first, Instant::now());
    running.gateway.drop_instances(std::slice::from_ref(&first)).await.expect("dropped");
    assert!(running.gateway.store().instance(taken[0].as_str()).await.expect("a look").is_none());
    assert!(running.gateway.store().instance_manifest(manifest).await.expect("a look").is_none());
    let (uid, dataset) = phantom.slice(9);
    running.take(&uid, dataset).await.expect("there is room again");
    running.kill().await;
    centre.end().await;
}
