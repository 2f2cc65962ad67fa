//! One site's node without its process: the production code from a disk, a clock and the links to
//! others, to a running member of the mesh.
//!
//! `serve` gives it the real machine; the simulator gives it a simulated one. Nothing in here knows
//! which.

use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use bytes::Bytes;
use maillage_consensus::command::{Command, UnixMillisField};
use maillage_consensus::ids::{CommandId, Line, Name, SiteId};
use maillage_consensus::machine::Machine;
use maillage_consensus::mesh::SiteRole;
use maillage_consensus::raft::{Committed, Duplex, Group, GroupConfig, Links, ProposeError, StartError, Timing};
use maillage_consensus::{StateClock, View};
use maillage_dicom::dimse::scp::{ServiceRequest, StoreHandler as _, StoreRequest};
use maillage_dicom::dimse::status::{Status, StoreStatus};
use maillage_host::engine::EngineHome;
use maillage_host::{Clock, Disk};
use maillage_store::{Hash, OpenError, Store, StoreConfig};
use maillage_transport::chunk::{self, ChunkSource, Limits};
use maillage_transport::fetch::{ChunkFault, Fetcher, Holders};
use maillage_transport::{Alpn, Endpoint, Identity, Membership, PeerId};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::commitment::{self, Commitments};
use crate::copies::pace::Pace;
use crate::gateway::Gates;
use crate::gateway::door::{self, Door};
use crate::images::{Images, Reach, StoreSource};
use crate::ingest::{Arrival, FORMAT_OF_SEALED_CHUNKS, Ingest, code_landed};
use crate::links::MeshLinks;
use crate::metrics::Metrics;
use crate::node::{Node, Parts};
use crate::outbox::{self, Outbox, Owner};
use crate::prefetch::{self, Ledger, Readers};
use crate::presence::Presence;
use crate::purge;
use crate::repair;
use crate::roster::Roster;
use crate::scrub::Scrub;
use crate::senders::Senders;
use crate::study_keys::StateKeys;
use crate::{arriving, audit, claimed, copies, duties, founding, gather, http, joining, links, pack_day, scp};

pub use crate::config::{ConfigError, Role, Settings};
pub use crate::data_dir::{MeshFile, MeshFileMember};
pub use crate::gateway::{Host as GatewayHost, Lines, Node as GatewayNode, mesh_lines};
pub use crate::http::Remote;
pub use crate::joining::{JoinError, Joining};
pub use crate::outbox::OpenJournalError;

/// Faults of holders that wait to be counted.
const FAULTS_QUEUE: usize = 256;
/// A successor that does not take over by then is not waited for.
const HAND_OVER: Duration = Duration::from_secs(1);
/// What is under way when the node stops is given so long.
const STOP_GRACE: Duration = Duration::from_secs(10);
/// … or so short when the node stops because it can no longer be trusted with data: nothing it still does counts.
const END_GRACE: Duration = Duration::from_secs(2);
/// The index is made durable within this, unless the disk does not answer.
const CLOSE_GRACE: Duration = Duration::from_secs(5);

/// What a node takes from the machine that it runs on.
pub struct Host {
    /// Its data directory.
    pub disk: Disk,
    /// Where the replicated state is kept.
    pub state: Arc<dyn EngineHome>,
    /// Where the index of the images is kept.
    pub index: Arc<dyn EngineHome>,
    /// Its wall clock.
    pub clock: Clock,
    /// How the images are laid out on the disk.
    pub images: StoreConfig,
    /// What applies committed commands.
    pub queue: Arc<dyn Machine>,
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host").field("disk", &self.disk).finish_non_exhaustive()
    }
}

/// How a node reaches the others: by one QUIC port, or by whatever a simulator has instead.
pub struct Wires {
    /// Opens Raft's streams.
    pub links: Arc<dyn Links>,
    /// Asks for chunks.
    pub holders: Arc<dyn Holders>,
}

impl fmt::Debug for Wires {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wires")
    }
}

/// Who a node is, and whom it knows.
#[derive(Clone)]
pub struct Member {
    /// Its key.
    pub identity: Identity,
    /// Which mesh it belongs to, as its data directory says.
    pub mesh: MeshFile,
    /// The others, fed from the replicated state as it comes.
    roster: Roster,
}

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Member").field("mesh", &self.mesh).finish_non_exhaustive()
    }
}

impl Member {
    /// A member that admits to `membership` whom it knows.
    pub fn new(identity: Identity, mesh: MeshFile, membership: Membership) -> Self {
        let roster = Roster::remembered(SiteId(mesh.site_id), membership, &mesh.members);
        Self { identity, mesh, roster }
    }

    /// Wires over the port of this member.
    pub fn wires(&self, endpoint: &Endpoint) -> Wires {
        Wires {
            links: Arc::new(MeshLinks::new(endpoint.clone(), self.roster.clone())),
            holders: Arc::new(endpoint.clone()),
        }
    }
}

/// Why a node cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartFailure {
    /// The images cannot be opened.
    #[error("open the images: {0}")]
    Images(#[from] OpenError),
    /// Raft cannot start.
    #[error("start Raft: {0}")]
    Raft(#[from] StartError),
    /// The data directory says that this site had a log, and there is none: it must not vote as if it
    /// had promised nothing.
    #[error("the Raft log of this site is gone, and the site must not vote as if it had promised nothing")]
    LogLost,
    /// What the outbox holds cannot be read.
    #[error(transparent)]
    Outbox(#[from] OpenJournalError),
    /// The storage commitments under way cannot be read.
    #[error("read commitment: {0}")]
    Commitments(#[source] std::io::Error),
    /// What was prefetched cannot be read.
    #[error("read what is prefetched: {0}")]
    Prefetched(#[source] std::io::Error),
    /// What the data directory says of the mesh is no sense.
    #[error("mesh.json: {0}")]
    Mesh(String),
}

/// What a started site's tasks take over.
struct Inbox {
    arrivals: mpsc::UnboundedReceiver<Arrival>,
    faults: mpsc::Receiver<ChunkFault>,
}

/// A node that is open, and once [`Site::start`] was called, running. Clones share it.
#[derive(Clone)]
pub struct Site(Arc<Inner>);

struct Inner {
    node: Node,
    /// What answers gateways.
    door: Arc<Door>,
    disk: Disk,
    dicom: Arc<scp::Port>,
    inbox: Mutex<Option<Inbox>>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
    shutdown: CancellationToken,
}

impl fmt::Debug for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Site").field(&self.0.node.site()).finish()
    }
}

impl Site {
    /// Opens the images and the Raft group. It may be asked for a vote from its first moment: open its
    /// door next, by [`Site::serve_raft`] or to [`Site::answer_raft`], and only then the others.
    ///
    /// # Errors
    /// See [`StartFailure`].
    pub async fn open(
        settings: Settings,
        member: Member,
        host: Host,
        wires: Wires,
        shutdown: CancellationToken,
    ) -> Result<Self, StartFailure> {
        let Member { identity, mesh, roster } = member;
        let config = settings.into_config();
        let mesh_id = blake3::Hash::from_hex(&mesh.mesh_id).map_err(|error| StartFailure::Mesh(error.to_string()))?;
        let mesh_id = *mesh_id.as_bytes();
        let Host { disk, state, index, clock, images, queue } = host;
        let store = Store::open(disk.clone(), "", index, clock.clone(), images).await?;
        for damage in &store.recovery().damage {
            tracing::error!(pack = %damage.pack, offset = damage.offset, bytes = damage.bytes, "damaged bytes in a pack; the chunks in it will be fetched again");
        }
        // Before this site promises anything to others: a damaged outbox is somebody's to look at first.
        let owner = Owner { site: mesh.site_id, mesh: mesh_id };
        let outbox = Outbox::open(disk.clone(), owner, clock.clone()).await?;
        let commitments = Commitments::open(disk.clone(), clock.clone()).await.map_err(StartFailure::Commitments)?;
        let prefetched = Ledger::open(disk.clone()).await.map_err(StartFailure::Prefetched)?;
        let raft = &config.raft;
        let group = Group::start(GroupConfig {
            node_id: mesh.site_id,
            mesh_id,
            epoch: mesh.epoch,
            timing: Timing {
                heartbeat: Duration::from_millis(raft.heartbeat_ms),
                election_min: Duration::from_millis(raft.election_min_ms),
                election_max: Duration::from_millis(raft.election_max_ms),
            },
            keepalive: GroupConfig::KEEPALIVE.min(Duration::from_secs(raft.session_ttl_s) / 5),
            format: raft.format_max,
            snapshot_every: raft.snapshot_every,
            keep_log: raft.keep_log,
            disk: disk.clone(),
            home: state,
            machine: queue,
            links: wires.links,
            clock: clock.clone(),
        })
        .await?;
        if mesh.has_log && !group.is_initialized().await {
            return Err(StartFailure::LogLost);
        }
        store.keys().share(Arc::new(StateKeys(group.clone())));
        let metrics = Metrics::new();
        let presence = Presence::default();
        let (faults_tx, faults) = mpsc::channel(FAULTS_QUEUE);
        let fetcher = Fetcher::new(wires.holders, faults_tx);
        let site = SiteId(mesh.site_id);
        let pace = Pace::of_mb_s(config.storage.copy_mb_s_max);
        let reach = Reach { roster: roster.clone(), presence: presence.clone(), fetcher, pace };
        let images = Images::new(site, store.clone(), group.clone(), reach, metrics.clone(), prefetched);
        let (gather, arrivals) = mpsc::unbounded_channel();
        let known = group.clone();
        let mesh_patient = Box::new(move |study: &str| {
            let frozen = known.reader().view();
            let part = View::new(&*frozen).study(study).ok()??.parts.into_iter().next()?.part;
            Some((part.says.patient.id, part.says.patient.issuer))
        });
        let (known, format_max) = (group.clone(), config.raft.format_max);
        let may_seal = Box::new(move || {
            let format = View::new(&*known.reader().view()).format();
            format.is_ok_and(|format| format.min(format_max) >= FORMAT_OF_SEALED_CHUNKS)
        });
        let senders = Senders::new(&config);
        let ingest =
            Ingest::new(store.clone(), clock.clone(), metrics.clone(), senders, gather, mesh_patient, may_seal);
        let (known, now) = (group.clone(), clock.clone());
        ingest.laid_down_by(Box::new(move |study, says| {
            let frozen = known.reader().view();
            let now = UnixMillisField(now.now().0);
            pack_day::of_images(&View::new(&*frozen), study, says, now).ok().flatten()
        }));
        let dicom = scp::Port::new(ingest.clone(), metrics.clone());
        let disk_of_node = disk.clone();
        let scrub = Scrub::open(disk.clone(), clock.clone(), config.storage.scrub_mb_s).await;
        let parts = Parts {
            config,
            disk,
            identity,
            mesh,
            mesh_id,
            clock,
            group,
            store,
            roster,
            presence,
            images,
            ingest,
            metrics,
            outbox,
            commitments,
            scrub,
            gates: Gates::default(),
            state_clock: StateClock::default(),
            readers: Readers::default(),
        };
        let node = Node::new(parts);
        let inner = Inner {
            door: Door::new(node.clone()),
            node,
            disk: disk_of_node,
            dicom,
            inbox: Mutex::new(Some(Inbox { arrivals, faults })),
            tasks: Mutex::default(),
            shutdown,
        };
        Ok(Self(Arc::new(inner)))
    }

    /// Starts what the node does unasked: its session, a leader's duties, publishing what was received,
    /// making copies. A second call does nothing.
    pub fn start(&self) {
        let inbox = self.0.inbox.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(Inbox { arrivals, mut faults }) = inbox else { return };
        let (node, shutdown) = (&self.0.node, &self.0.shutdown);
        self.run(duties::run(node.clone(), shutdown.clone()));
        if let Ok(target) = node.config().audit.syslog.parse() {
            self.run(audit::forward(node.clone(), self.0.disk.clone(), target, shutdown.clone()));
        }
        let (first, arriving) = arriving::channel();
        self.run(code_landed(node.ingest().clone(), shutdown.clone()));
        self.run(gather::run(node.clone(), arrivals, first, shutdown.clone()));
        self.run(arriving::run(node.clone(), arriving, shutdown.clone()));
        self.run(copies::run(node.clone(), shutdown.clone()));
        self.run(claimed::run(node.clone(), shutdown.clone()));
        self.run(prefetch::run(node.clone(), shutdown.clone()));
        self.run(copies::confined::run(node.clone(), shutdown.clone()));
        self.run(copies::leaving::run(node.clone(), shutdown.clone()));
        self.run(copies::room::run(node.clone(), shutdown.clone()));
        self.run(commitment::run(node.clone(), shutdown.clone()));
        self.run(commitment::report(commitment::Teller::of(node), shutdown.clone()));
        self.run(purge::run(node.clone(), shutdown.clone()));
        self.run(repair::run(node.clone(), shutdown.clone()));
        self.run(node.scrub().clone().run(node.clone(), shutdown.clone()));
        self.run(node.outbox().clone().keep(shutdown.clone()));
        self.run(outbox::send(node.clone(), shutdown.clone()));
        let (node, stopped) = (node.clone(), shutdown.clone());
        self.run(async move {
            while let Some(Some(fault)) = stopped.run_until_cancelled(faults.recv()).await {
                node.metrics().fetch_fault(fault.reason.as_str());
                if let Some(site) = node.roster().site(&fault.peer).filter(|_| fault.reason.is_an_offence()) {
                    node.metrics().wrong_bytes_of(site.0);
                }
            }
        });
    }

    /// Opens the mesh's doors on `endpoint`: for `chunks` (see [`Site::chunks`]), for joins and for gateways. Raft's is
    /// opened by [`Site::serve_raft`], before anything else.
    pub fn serve_mesh(&self, endpoint: &Endpoint, chunks: Arc<dyn ChunkSource>) {
        self.run(chunk::serve(endpoint.accept(Alpn::Chunk), chunks, Limits::default()));
        let (node, shutdown) = (self.0.node.clone(), self.0.shutdown.clone());
        self.run(joining::serve(endpoint.accept(Alpn::Join), node, shutdown.clone()));
        self.run(door::serve(endpoint.accept(Alpn::Gate), Arc::clone(&self.0.door), shutdown));
    }

    /// Opens Raft's door on `endpoint`. It may be asked for a vote from its first moment.
    pub fn serve_raft(&self, endpoint: &Endpoint) {
        let node = &self.0.node;
        let door = endpoint.accept(Alpn::Raft);
        let serving = links::serve(door, node.group().clone(), node.roster().clone(), self.0.shutdown.clone());
        drop(maillage_host::spawn(serving));
    }

    /// Answers one of Raft's streams from the node of site `from`.
    pub async fn answer_raft(&self, from: u64, stream: Duplex) {
        self.0.node.group().serve(from, stream).await;
    }

    /// Answers one question of the gateway that is site `from`.
    pub async fn answer_gate(&self, from: u64, stream: Duplex) {
        self.0.door.answer(SiteId(from), stream).await;
    }

    /// What other sites may read here.
    pub fn chunks(&self) -> Arc<dyn ChunkSource> {
        Arc::new(StoreSource { store: self.0.node.store().clone(), metrics: self.0.node.metrics().clone() })
    }

    /// Founds the mesh, once, when this node is its founder.
    ///
    /// # Errors
    /// When Raft cannot start the group or commit the founding.
    pub async fn found(&self) -> anyhow::Result<()> {
        founding::found(&self.0.node).await.context("found the mesh")
    }

    /// Makes a join token.
    ///
    /// # Errors
    /// When the mesh cannot decide now, or refuses.
    pub async fn create_token(&self, lifetime: Duration) -> anyhow::Result<String> {
        self.create_token_for(lifetime, SiteRole::Centre).await
    }

    /// Makes a join token for a gateway of these hospitals.
    ///
    /// # Errors
    /// When the mesh cannot decide now, or refuses.
    pub async fn create_gateway_token(&self, lifetime: Duration, hospitals: Vec<Line>) -> anyhow::Result<String> {
        self.create_token_for(lifetime, SiteRole::Gateway { hospitals }).await
    }

    async fn create_token_for(&self, lifetime: Duration, role: SiteRole) -> anyhow::Result<String> {
        Ok(self.0.node.create_token(CommandId::random(), Name::default(), lifetime, role).await?.text)
    }

    /// Answers a request to join, of whoever proved to hold the token `token`.
    ///
    /// # Errors
    /// When the request is none.
    pub async fn admit(&self, token: PeerId, seen_at: std::net::IpAddr, request: &[u8]) -> anyhow::Result<Vec<u8>> {
        joining::admit(&self.0.node, &token, seen_at, request).await
    }

    /// The node's HTTP, as on its local port.
    pub fn http(&self) -> Router {
        http::local_router(self.0.node.clone())
    }

    /// The node's HTTP, as on its unix socket: to whoever administers it.
    pub fn control(&self) -> Router {
        http::control_router(self.0.node.clone())
    }

    /// Takes in what a C-STORE brought, as the DICOM port does.
    pub async fn c_store(&self, request: StoreRequest, data_set: Bytes) -> StoreStatus {
        self.0.dicom.store(request, data_set).await
    }

    /// Takes a request for storage commitment, as the DICOM port does.
    pub async fn n_action(&self, request: ServiceRequest) -> Status {
        commitment::Desk::new(self.0.node.commitments().clone()).take(request).await.err().unwrap_or(Status::SUCCESS)
    }

    /// What is prefetched here, by its study manifests.
    pub async fn prefetched(&self) -> Vec<Hash> {
        self.0.node.images().prefetched().all().await.into_keys().collect()
    }

    /// Proposes a command in this node's name, with its place in the log.
    ///
    /// # Errors
    /// See [`ProposeError`].
    pub async fn propose(&self, id: CommandId, user: Name, command: Command) -> Result<Committed, ProposeError> {
        self.0.node.propose(id, user, command).await
    }

    /// Its part in Raft.
    pub fn group(&self) -> &Group {
        self.0.node.group()
    }

    /// Its images.
    pub fn store(&self) -> &Store {
        self.0.node.store()
    }

    /// Its number.
    pub fn id(&self) -> u64 {
        self.0.node.site().0
    }

    pub(crate) fn node(&self) -> &Node {
        &self.0.node
    }

    pub(crate) fn dicom(&self) -> &Arc<scp::Port> {
        &self.0.dicom
    }

    /// Runs a task of the node until it ends.
    pub(crate) fn run<F>(&self, task: F)
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let handle = maillage_host::spawn(async move { drop(task.await) });
        let watched = async move {
            // A panic of one task must not leave a node that looks alive without it.
            if handle.await.is_err_and(|error| error.is_panic()) {
                tracing::error!("a task of the node panicked; the process ends");
                std::process::abort();
            }
        };
        let watched = maillage_host::spawn(watched);
        self.0.tasks.lock().unwrap_or_else(PoisonError::into_inner).push(watched);
    }

    /// Ends what is under way and closes the images. The doors must have been closed by the shutdown
    /// token; `close_port` closes the mesh's, once Raft has ended.
    pub async fn stop(&self, close_port: impl Future<Output = ()>) {
        tracing::info!("stopping");
        let node = &self.0.node;
        hand_over(node).await;
        let tasks = std::mem::take(&mut *self.0.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        let ended = futures::future::join_all(tasks);
        let serving_ends_with_the_port = async {
            // Chunk serving and presence end with the port.
            tokio::time::sleep(Duration::from_millis(50)).await;
            node.group().shutdown().await;
            close_port.await;
        };
        let grace = if node.group_status().fatal.is_some() { END_GRACE } else { STOP_GRACE };
        if tokio::time::timeout(grace, async { tokio::join!(ended, serving_ends_with_the_port) }).await.is_err() {
            tracing::warn!("some work did not end in time");
        }
        // A disk that does not answer holds up nothing but itself: what is on it is as after a kill.
        match tokio::time::timeout(CLOSE_GRACE, node.store().close()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "close the images"),
            Err(_) => tracing::error!("the images were not closed in time: the disk does not answer"),
        }
        tracing::info!("stopped");
    }
}

/// A leader that stops hands over first: the others need not miss it for an election's time.
async fn hand_over(node: &Node) {
    if node.group().leads().is_none() {
        return;
    }
    let status = node.group_status();
    let nearest = status
        .voters
        .iter()
        .filter(|id| **id != node.site().0)
        .filter_map(|id| Some((status.lag.get(id).copied().flatten()?, *id)))
        .min();
    if let Some((_, successor)) = nearest
        && tokio::time::timeout(HAND_OVER, node.group().transfer_leader(successor)).await.is_err()
    {
        tracing::debug!("leadership not handed over in time: the others will elect");
    }
}

#[cfg(test)]
mod tests;
